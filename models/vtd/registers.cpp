// SPDX-License-Identifier: Apache-2.0
// What register writes cause.
#include "models/vtd/core.hpp"
#include "models/vtd/register_rows.hpp"

namespace iommu::vtd {

namespace {
// IAIG and CAIG: no invalidation was done.
constexpr std::uint64_t kNothingDone = 0;
}  // namespace

Core::Core(const Identity& identity)
    : capabilities_(identity),
      reserved_(capabilities_),
      first_stage_(
          {.host_address_bits = capabilities_.host_address_bits, .one_gib_pages = capabilities_.one_gib_first_stage}),
      second_stage_({.host_address_bits = capabilities_.host_address_bits,
                     .large_pages = capabilities_.large_pages,
                     .snoop_control = capabilities_.snoop_control,
                     .device_tlb = capabilities_.device_tlb}),

      registers_(register_rows(identity), register_bytes(identity)) {}

std::uint64_t Core::mmio_read(std::uint64_t at, unsigned bytes) { return registers_.read(at, bytes); }

RegisterEffect Core::mmio_write(std::uint64_t at, unsigned bytes, std::uint64_t value) {
  RegisterEffect effect;
  for (const RegisterChange& change : registers_.write(at, bytes, value)) {
    switch (change.row) {
      case kRegGcmd:
        write_global_command(change.written, effect);
        break;
      case kRegCcmd:
        if ((change.written & change.lanes & mask_of<kCcmd, "ICC">) != 0) write_context_command(effect);
        break;
      case kRegIotlb:
        if ((change.written & change.lanes & mask_of<kIotlb, "IVT">) != 0) write_iotlb(effect);
        break;
      case kRegFsts:
        after_fault_status_change(change.before, effect);
        break;
      case kRegFectl:
        write_event_control(Event::Fault);
        break;
      case kRegIectl:
        write_event_control(Event::Invalidation);
        break;
      case kRegIcs:
        if (get<kIcs, "IWC">(reg(kRegIcs)) == 0)
          registers_.set(kRegIectl, with<kEventControl, "IP">(reg(kRegIectl), 0));
        break;
      case kRegIqt:
        write_queue_tail(effect);
        break;
      case kRegIqa:
        if (get<kIqa, "DW">(reg(kRegIqa)) != 0 && !capabilities_.scalable) stop_queue(QueueError::InvalidWidth);
        break;
      default:
        if (change.row >= kFixedRegisters) refresh_pending_fault();
        break;
    }
  }
  return effect;
}

bool Core::is_queue_enabled() const { return get<kGsts, "QIES">(reg(kRegGsts)) != 0; }
bool Core::is_scalable() const {
  return capabilities_.scalable && static_cast<TableMode>(get<kRtaddr, "TTM">(root_)) == TableMode::Scalable;
}

// Each command completes at once: its status follows in the same write.
void Core::write_global_command(std::uint64_t value, RegisterEffect& effect) {
  std::uint64_t status = reg(kRegGsts);
  if (get<kGcmd, "SRTP">(value) != 0) {
    root_ = reg(kRegRtaddr);
    status = with<kGsts, "RTPS">(status, 1);
    effect.configuration_changed = true;
    if (capabilities_.invalidates_on_root_change)
      effect.scopes = {{.kind = InvalidationKind::Context},
                       {.kind = InvalidationKind::ProcessContext},
                       {.kind = InvalidationKind::Iotlb}};
  }
  if (const std::uint64_t enable = get<kGcmd, "TE">(value); enable != get<kGsts, "TES">(status)) {
    status = with<kGsts, "TES">(status, enable);
    is_translating_ = enable != 0;
    effect.configuration_changed = true;
  }
  if (const std::uint64_t enable = get<kGcmd, "QIE">(value); enable != get<kGsts, "QIES">(status)) {
    status = with<kGsts, "QIES">(status, enable);
    registers_.set(kRegIqh, 0);  // the head is reset while the queue is off
  }
  if (capabilities_.interrupt_remapping) {
    if (get<kGcmd, "SIRTP">(value) != 0) status = with<kGsts, "IRTPS">(status, 1);
    status = with<kGsts, "IRES">(status, get<kGcmd, "IRE">(value));
    status = with<kGsts, "CFIS">(status, get<kGcmd, "CFI">(value));
  }
  registers_.set(kRegGsts, status);
  effect.commands_pending = has_command();
}

// Register-based invalidation belongs to legacy mode with the queue off; otherwise it reports that nothing was done.
void Core::write_context_command(RegisterEffect& effect) {
  std::uint64_t command = reg(kRegCcmd);
  const std::uint64_t granularity = get<kCcmd, "CIRG">(command);
  const bool possible =
      capabilities_.register_invalidation && !is_queue_enabled() && !is_scalable() && granularity != 0;
  command = with<kCcmd, "CAIG">(command, possible ? granularity : kNothingDone);
  if (!possible) command = with<kCcmd, "ICC">(command, 0);
  registers_.set(kRegCcmd, command);
  if (possible)
    effect.scopes = context_scopes(static_cast<ContextGranularity>(granularity), get<kCcmd, "DID">(command),
                                   get<kCcmd, "SID">(command), get<kCcmd, "FM">(command));
}

void Core::write_iotlb(RegisterEffect& effect) {
  std::uint64_t command = reg(kRegIotlb);
  const std::uint64_t address = reg(kRegIva);
  auto granularity = static_cast<IotlbGranularity>(get<kIotlb, "IIRG">(command));
  const bool page = granularity == IotlbGranularity::Page;
  bool possible =
      capabilities_.register_invalidation && !is_queue_enabled() && !is_scalable() && get<kIotlb, "IIRG">(command) != 0;
  if (page && !capabilities_.page_selective) granularity = IotlbGranularity::Domain;
  if (page && get<kIva, "AM">(address) > capabilities_.max_address_mask) possible = false;
  command = with<kIotlb, "IAIG">(command, possible ? static_cast<std::uint64_t>(granularity) : kNothingDone);
  if (!possible) command = with<kIotlb, "IVT">(command, 0);
  registers_.set(kRegIotlb, command);
  if (possible)
    effect.scopes = iotlb_scopes(granularity, get<kIotlb, "DID">(command), get<kIva, "ADDR">(address),
                                 get<kIva, "AM">(address), get<kIva, "IH">(address) != 0);
}

void Core::invalidation_done() {
  registers_.set(kRegCcmd, with<kCcmd, "ICC">(reg(kRegCcmd), 0));
  registers_.set(kRegIotlb, with<kIotlb, "IVT">(reg(kRegIotlb), 0));
}

std::optional<InterruptMessage> Core::raise(Event event) {
  const bool fault = event == Event::Fault;
  const std::size_t control = fault ? kRegFectl : kRegIectl;
  if (get<kEventControl, "IM">(reg(control)) != 0) {
    registers_.set(control, with<kEventControl, "IP">(reg(control), 1));
    return std::nullopt;
  }
  registers_.set(control, with<kEventControl, "IP">(reg(control), 0));
  const std::uint64_t upper = reg(fault ? kRegFeuaddr : kRegIeuaddr);
  const std::uint64_t lower = reg(fault ? kRegFeaddr : kRegIeaddr);
  constexpr unsigned kUpperShift = 32;
  return InterruptMessage{Hpa(upper << kUpperShift | lower),
                          static_cast<std::uint32_t>(reg(fault ? kRegFedata : kRegIedata))};
}

// Unmasking an event that is pending sends it.
void Core::write_event_control(Event event) {
  const std::size_t control = event == Event::Fault ? kRegFectl : kRegIectl;
  const std::uint64_t value = reg(control);
  if (get<kEventControl, "IM">(value) != 0 || get<kEventControl, "IP">(value) == 0) return;
  if (const auto message = raise(event)) interrupts_.push_back(*message);
}

std::optional<InterruptMessage> Core::take_interrupt() {
  if (interrupts_.empty()) return std::nullopt;
  const InterruptMessage message = interrupts_.front();
  interrupts_.pop_front();
  return message;
}

std::optional<InterruptMessage> Core::fence_interrupt() {
  // One completion that software has not acknowledged stands for those after it. [ICS_REG]
  if (get<kIcs, "IWC">(reg(kRegIcs)) != 0) return std::nullopt;
  registers_.set(kRegIcs, with<kIcs, "IWC">(reg(kRegIcs), 1));
  return raise(Event::Invalidation);
}

}  // namespace iommu::vtd
