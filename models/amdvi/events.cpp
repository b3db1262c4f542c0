// SPDX-License-Identifier: Apache-2.0
// Events and their log in memory. [§2.5]
#include "models/amdvi/core.hpp"

namespace iommu::amdvi {

namespace {

using Event = std::array<std::uint64_t, 2>;

// Events that wait to be written. More than this are lost as if the log were full: a driver of the core that never
// writes them must not make it grow.
constexpr std::size_t kMostPending = 256;

template <const auto& kLayout>
void put_pasid(Event& event, const Fault& fault) {
  const std::uint64_t pasid = fault.pasid ? fault.pasid->value() : 0;
  put<kLayout, "PASIDhi">(event, pasid >> kPasidLowBits);
  if constexpr (kLayout.find("DomainOrPASID") != nullptr)
    put<kLayout, "DomainOrPASID">(event, pasid);
  else
    put<kLayout, "PASIDlo">(event, pasid);
}

template <const auto& kLayout>
Event start(const Fault& fault) {
  Event event{};
  put<kLayout, "EventCode">(event, fault.row->code);
  put<kLayout, "DeviceID">(event, fault.requester.value());
  const bool of_gpa = get<kEventBits, "gpa">(fault.family_bits) != 0 && fault.gpa;
  put<kLayout, "Address">(event, of_gpa ? fault.gpa->value() : fault.address.value());
  return event;
}

// GN says whether the PASID or the DomainID stands in the event. [§2.5.3: amdvi-005]
template <const auto& kLayout>
void put_address_space(Event& event, const Fault& fault) {
  const std::uint64_t guest = get<kEventBits, "guest">(fault.family_bits);
  put<kLayout, "GN">(event, guest);
  if (guest != 0)
    put_pasid<kLayout>(event, fault);
  else
    put<kLayout, "DomainOrPASID">(event, get<kEventBits, "domain">(fault.family_bits));
}

std::uint64_t is_write(const Fault& fault) { return fault.access == Access::Write ? 1 : 0; }
std::uint64_t is_translation(const Fault& fault) { return fault.type == AddressType::TranslationRequest ? 1 : 0; }

Event translation_event(const Fault& fault) {
  const auto& flags = flags_of(*fault.row);
  Event event = start<kTranslationEvent>(fault);
  put<kTranslationEvent, "TR">(event, is_translation(fault));
  put<kTranslationEvent, "RW">(event, is_write(fault));
  put<kTranslationEvent, "RZ">(event, flags.reserved ? 1 : 0);
  if (static_cast<EventCode>(fault.row->code) == EventCode::IllegalDevTableEntry) {
    put_pasid<kTranslationEvent>(event, fault);
    return event;
  }
  put_address_space<kTranslationEvent>(event, fault);
  put<kTranslationEvent, "US">(event, fault.pasid && !fault.privileged ? 1 : 0);
  put<kTranslationEvent, "PR">(event, flags.present ? 1 : 0);
  put<kTranslationEvent, "PE">(event, flags.permission ? 1 : 0);
  return event;
}

// The address is that of the entry which could not be read. [§2.5.4, §2.5.5]
Event hardware_event(const Fault& fault) {
  Event event = start<kHardwareEvent>(fault);
  put<kHardwareEvent, "Address">(event, fault.table_entry.value_or(Hpa()).value());
  put<kHardwareEvent, "TR">(event, is_translation(fault));
  put<kHardwareEvent, "RW">(event, is_write(fault));
  put<kHardwareEvent, "Type">(event, flags_of(*fault.row).type);
  if (static_cast<EventCode>(fault.row->code) == EventCode::PageTabHardwareError)
    put_address_space<kHardwareEvent>(event, fault);
  return event;
}

Event request_event(const Fault& fault) {
  Event event = start<kInvalidRequestEvent>(fault);
  put_pasid<kInvalidRequestEvent>(event, fault);
  put<kInvalidRequestEvent, "GN">(event, fault.pasid ? 1 : 0);
  put<kInvalidRequestEvent, "US">(event, fault.pasid && !fault.privileged ? 1 : 0);
  put<kInvalidRequestEvent, "TR">(event, is_translation(fault));
  put<kInvalidRequestEvent, "Type">(event, flags_of(*fault.row).type);
  return event;
}

Event encode(const Fault& fault) {
  switch (static_cast<EventCode>(fault.row->code)) {
    case EventCode::DevTabHardwareError:
    case EventCode::PageTabHardwareError:
      return hardware_event(fault);
    case EventCode::InvalidDeviceRequest:
      return request_event(fault);
    default:
      return translation_event(fault);
  }
}

bool is_hardware_error(const Event& event) {
  const auto code = static_cast<EventCode>(get<kHardwareEvent, "EventCode">(event));
  return code == EventCode::DevTabHardwareError || code == EventCode::PageTabHardwareError ||
         code == EventCode::CommandHardwareError;
}

}  // namespace

// The interrupt follows once the event is in memory.
std::optional<InterruptMessage> Core::record(const Fault& fault) {
  if (fault.suppressed && fault.row->qualified) return std::nullopt;
  if (fault.row->qualified && get<kEventBits, "suppress_one">(fault.family_bits) != 0) {  // amdvi-008
    if (faulted_once_[fault.requester.value()]) return std::nullopt;
    faulted_once_.set(fault.requester.value());
  }
  log(encode(fault));
  return std::nullopt;
}

void Core::device_tlb_timed_out(RequesterId device, Hpa command) {
  Event event{};
  put<kCommandEvent, "EventCode">(event, kFault<"IOTLB_INV_TIMEOUT">->code);
  put<kCommandEvent, "DeviceID">(event, device.value());
  put<kCommandEvent, "Address">(event, command.value());
  log(event);
}

void Core::log(const Event& event) {
  if (is_hardware_error(event)) capture_hardware_error(event);
  if (get<kStatus, "EventLogRun">(reg(kRegStatus)) == 0) return;  // lost
  if (pending_events_.size() < kMostPending)
    pending_events_.push_back(event);
  else
    log_overflow();
}

// The first hardware error is also kept in registers, for the log itself may be what failed. [§3.4.10]
void Core::capture_hardware_error(const Event& event) {
  if (!capabilities_.hardware_error_registers) return;
  const std::uint64_t status = reg(kRegHardwareEventStatus);
  if (get<kHardwareEventStatus, "HEV">(status) != 0) {
    registers_.set(kRegHardwareEventStatus, with<kHardwareEventStatus, "HEO">(status, 1));
    return;
  }
  registers_.set(kRegHardwareEventHigh, event[0]);
  registers_.set(kRegHardwareEventLow, event[1]);
  registers_.set(kRegHardwareEventStatus, with<kHardwareEventStatus, "HEV">(status, 1));
}

// Logging stops; software clears the overflow and enables the log anew. [§2.5.1]
void Core::log_overflow() {
  pending_events_.clear();
  set_status(mask_of<kStatus, "EventOverflow">, 1);
  set_status(mask_of<kStatus, "EventLogRun">, 0);
  if (get<kControl, "EventIntEn">(reg(kRegControl)) == 0) return;
  if (const auto message = interrupt_message()) interrupts_.push_back(*message);
}

// The tail moves once the event is there. An event whose place is no memory is lost, as on a bus.
Task<void> Core::write_events(MemoryPort& memory) {
  while (!pending_events_.empty()) {
    const Event event = pending_events_.front();
    pending_events_.pop_front();
    if (get<kStatus, "EventLogRun">(reg(kRegStatus)) == 0) continue;
    const std::uint64_t base = reg(kRegEventBase);
    const RingIndices indices = ring(kRegEventBase, kRegEventHead, kRegEventTail);
    if (indices.is_full()) {
      log_overflow();
      continue;
    }
    (void)co_await memory.write(ring_address(kRegEventBase, indices.tail), event, kRingEntryBytes, AccessKind::Event);
    // Software may have stopped or moved the log meanwhile.
    if (get<kStatus, "EventLogRun">(reg(kRegStatus)) == 0 || reg(kRegEventBase) != base ||
        ring(kRegEventBase, kRegEventHead, kRegEventTail).tail != indices.tail)
      continue;
    registers_.set(kRegEventTail, with<kRingPointer, "Ptr">(0, indices.next(indices.tail)));
    if (get<kControl, "EventIntEn">(reg(kRegControl)) == 0) continue;
    const bool was_set = get<kStatus, "EventLogInt">(reg(kRegStatus)) != 0;
    set_status(mask_of<kStatus, "EventLogInt">, 1);
    const auto message = interrupt_message();
    if (!was_set && message) interrupts_.push_back(*message);
  }
}

}  // namespace iommu::amdvi
