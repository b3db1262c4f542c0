// SPDX-License-Identifier: Apache-2.0
// What register writes cause.
#include "models/amdvi/core.hpp"

namespace iommu::amdvi {

namespace {

// Of the capability block. [§3.2]
constexpr std::uint64_t kHeaderOffset = 0x00, kMiscInfo0Offset = 0x10;
constexpr unsigned kUpperShift = 32;

// Whether a ring may run: the unit and the ring are enabled, and its length is legal.
bool is_enabled(std::uint64_t control, std::uint64_t ring_enable) {
  return get<kControl, "IommuEn">(control) != 0 && (control & ring_enable) != 0;
}
bool is_length_legal(std::uint64_t base) { return get<kRingBase, "Len">(base) >= kSmallestRingLg2; }

}  // namespace

Core::Core(const Identity& identity)
    : capabilities_(identity), identity_(identity), registers_(register_rows(identity), kMmioBytes) {}

std::uint32_t Core::read_capability(std::uint64_t at) const {
  if (at == kHeaderOffset) return identity_.capability_header;
  return at == kMiscInfo0Offset ? identity_.misc_info0 : 0;
}

std::uint64_t Core::mmio_read(std::uint64_t at, unsigned bytes) { return registers_.read(at, bytes); }

RegisterEffect Core::mmio_write(std::uint64_t at, unsigned bytes, std::uint64_t value) {
  RegisterEffect effect;
  for (const RegisterChange& change : registers_.write(at, bytes, value)) {
    switch (change.row) {
      case kRegControl:
        write_control(change.before, effect);
        break;
      case kRegDeviceTableBase:
      case kRegExclusionBase:
      case kRegExclusionLimit:
        effect.configuration_changed = is_translating();
        break;
      case kRegCommandBase:  // a new ring starts empty [§3.4.2]
        registers_.set(kRegCommandHead, 0);
        registers_.set(kRegCommandTail, 0);
        break;
      case kRegEventBase:
        registers_.set(kRegEventHead, 0);
        registers_.set(kRegEventTail, 0);
        break;
      case kRegCommandHead:  // hardware's own while it runs
        if (get<kStatus, "CmdBufRun">(reg(kRegStatus)) != 0) registers_.set(kRegCommandHead, change.before);
        break;
      case kRegEventTail:
        if (get<kStatus, "EventLogRun">(reg(kRegStatus)) != 0) registers_.set(kRegEventTail, change.before);
        break;
      case kRegCommandTail:
        effect.commands_pending = has_command();
        break;
      default:
        break;
    }
  }
  return effect;
}

void Core::set_status(std::uint64_t mask, std::uint64_t value) {
  registers_.set(kRegStatus, value != 0 ? reg(kRegStatus) | mask : reg(kRegStatus) & ~mask);
}

// A ring that stopped (bad command, overflow) runs again once its enable has been 0 and 1. [§2.4, §2.5.1]
void Core::write_control(std::uint64_t before, RegisterEffect& effect) {
  const std::uint64_t control = reg(kRegControl);
  constexpr std::uint64_t kCommands = mask_of<kControl, "CmdBufEn">, kEvents = mask_of<kControl, "EventLogEn">;
  if (!is_enabled(control, kCommands))
    set_status(mask_of<kStatus, "CmdBufRun">, 0);
  else if (!is_enabled(before, kCommands))
    set_status(mask_of<kStatus, "CmdBufRun">, is_length_legal(reg(kRegCommandBase)) ? 1 : 0);
  if (!is_enabled(control, kEvents))
    set_status(mask_of<kStatus, "EventLogRun">, 0);
  else if (!is_enabled(before, kEvents))
    set_status(mask_of<kStatus, "EventLogRun">,
               is_length_legal(reg(kRegEventBase)) && get<kStatus, "EventOverflow">(reg(kRegStatus)) == 0 ? 1 : 0);
  constexpr std::uint64_t kChangesTranslation = mask_of<kControl, "IommuEn"> | mask_of<kControl, "GTEn">;
  effect.configuration_changed = ((before ^ control) & kChangesTranslation) != 0;
  effect.commands_pending = has_command();
}

RingIndices Core::ring(Reg base, Reg head, Reg tail) const {
  const RingFormat format{
      .entries = 1U << get<kRingBase, "Len">(reg(base)), .entry_bytes = kRingEntryBytes, .full = FullRule::OneFree};
  const auto index = [&](Reg row) {  // amdvi-011
    return static_cast<std::uint32_t>(get<kRingPointer, "Ptr">(reg(row))) % format.entries;
  };
  return {.format = format, .head = index(head), .tail = index(tail)};
}

Hpa Core::ring_address(Reg base, std::uint32_t index) const {
  return Hpa((get<kRingBase, "Base">(reg(base)) << kPageLg2) + std::uint64_t{index} * kRingEntryBytes);
}

// The unit's own interrupt, from its MSI capability. [§2.8]
std::optional<InterruptMessage> Core::interrupt_message() const {
  if (get<kMsiCapability, "MsiEn">(reg(kRegMsiCapability)) == 0) return std::nullopt;
  return InterruptMessage{Hpa(reg(kRegMsiAddressHigh) << kUpperShift | reg(kRegMsiAddressLow)),
                          static_cast<std::uint32_t>(reg(kRegMsiData))};
}

std::optional<InterruptMessage> Core::take_interrupt() {
  if (interrupts_.empty()) return std::nullopt;
  const InterruptMessage message = interrupts_.front();
  interrupts_.pop_front();
  return message;
}

// The status bit is set in any case; it stands for further completions until software clears it. [§2.4.1]
std::optional<InterruptMessage> Core::fence_interrupt() {
  const bool was_set = get<kStatus, "ComWaitInt">(reg(kRegStatus)) != 0;
  set_status(mask_of<kStatus, "ComWaitInt">, 1);
  if (was_set || get<kControl, "ComWaitIntEn">(reg(kRegControl)) == 0) return std::nullopt;
  return interrupt_message();
}

}  // namespace iommu::amdvi
