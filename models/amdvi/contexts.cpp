// SPDX-License-Identifier: Apache-2.0
// From a requester to its context: the device table entry and, for guest translation, the GCR3 table. [§2.2.2, §2.2.6]
#include <algorithm>

#include "models/amdvi/core.hpp"
#include "models/amdvi/decoded_context.hpp"

namespace iommu::amdvi {

namespace {

constexpr std::uint64_t kEntriesPerPage = kPageSize.value() / kDeviceTableEntryBytes;
constexpr unsigned kMaxPasidBits = 20;

std::uint64_t gcr3_root(std::span<const std::uint64_t> entry) {
  return get<kDeviceTableEntry, "GCR3a">(entry) << kGcr3aLsb | get<kDeviceTableEntry, "GCR3b">(entry) << kGcr3bLsb |
         get<kDeviceTableEntry, "GCR3c">(entry) << kGcr3cLsb;
}

EventContext events_of(std::span<const std::uint64_t> entry) {
  return {.domain = get<kDeviceTableEntry, "DomainID">(entry),
          .suppress_all = get<kDeviceTableEntry, "SA">(entry) != 0,
          .suppress_one = get<kDeviceTableEntry, "SE">(entry) != 0,
          .guest = false};
}

}  // namespace

// Words 2 and 3 matter to interrupts only, save GuestPagingMode. [§2.2.2]
const FaultRow* Core::check_entry(const Entry& entry) const {
  const Capabilities& c = capabilities_;
  std::array<std::uint64_t, 2> reserved{kDeviceTableEntry.must_be_zero_mask(0), kDeviceTableEntry.must_be_zero_mask(1)};
  if (!c.enhanced_page_requests) reserved[0] |= mask_of<kDeviceTableEntry, "PPR"> | mask_of<kDeviceTableEntry, "GPRP">;
  if (!c.guest_io) reserved[0] |= mask_of<kDeviceTableEntry, "GIOV">;
  if (!c.secure_ats) reserved[1] |= mask_of<kDeviceTableEntry, "SATS">;
  if (!c.guest_translation) {
    reserved[0] |=
        mask_of<kDeviceTableEntry, "GV"> | mask_of<kDeviceTableEntry, "GLX"> | mask_of<kDeviceTableEntry, "GCR3a">;
    reserved[1] |= mask_of<kDeviceTableEntry, "GCR3b"> | mask_of<kDeviceTableEntry, "GCR3c">;
  }
  if ((entry[0] & reserved[0]) != 0 || (entry[1] & reserved[1]) != 0) return kFault<"ILLEGAL_DEV_TABLE_ENTRY.reserved">;
  const bool guest = get<kDeviceTableEntry, "GV">(entry) != 0 && get<kControl, "GTEn">(reg(kRegControl)) != 0;
  if (!guest) return nullptr;
  const std::uint64_t glx = get<kDeviceTableEntry, "GLX">(entry);
  const std::uint64_t levels = get<kDeviceTableEntry, "GuestPagingMode">(entry) + kFewestTranslationLevels;
  if (glx == kReservedGlx || glx > c.largest_glx || levels > kTopGuestLevel5 + 1U || levels > c.guest_levels)
    return kFault<"ILLEGAL_DEV_TABLE_ENTRY.level">;
  return nullptr;
}

// A request without PASID uses the guest tables of PASID 0 where GIOV asks for it. [§2.2.6]
bool Core::uses_guest_tables(const TranslationRequest& request, const Entry& entry) const {
  if (get<kDeviceTableEntry, "GV">(entry) == 0 || get<kControl, "GTEn">(reg(kRegControl)) == 0) return false;
  return request.pasid.has_value() || get<kDeviceTableEntry, "GIOV">(entry) != 0;
}

Context Core::decode_entry(const Entry& entry) const {
  const std::uint64_t mode = get<kDeviceTableEntry, "Mode">(entry);
  const std::uint64_t had = get<kDeviceTableEntry, "HAD">(entry);
  Context context;
  context.domain = DomainTag(static_cast<std::uint32_t>(get<kDeviceTableEntry, "DomainID">(entry)));
  context.kind = mode == 0 ? ContextKind::Bypass : ContextKind::Stage2;
  if (mode != 0)
    context.stage2 = {get<kDeviceTableEntry, "HostPTRoot">(entry) << kPageLg2, static_cast<Level>(mode - 1)};
  context.faults_suppressed = get<kDeviceTableEntry, "SA">(entry) != 0;
  context.family_bits = pack<kDecoded>({
      {"valid", 1},
      {"translates", get<kDeviceTableEntry, "TV">(entry)},
      {"mode", mode},
      {"read", get<kDeviceTableEntry, "IR">(entry)},
      {"write", get<kDeviceTableEntry, "IW">(entry)},
      {"device_tlb", capabilities_.device_tlb ? get<kDeviceTableEntry, "I">(entry) : 0},
      {"excluded", get<kDeviceTableEntry, "EX">(entry)},
      {"suppress_one", get<kDeviceTableEntry, "SE">(entry)},
      {"mark_accessed", capabilities_.host_accessed ? had & 1U : 0},  // amdvi-010
      {"mark_dirty", capabilities_.host_dirty ? had >> 1U : 0},
  });
  return context;
}

Task<ContextResult> Core::find_context(TranslationRequest request, MemoryPort& memory) {
  const std::uint64_t table = reg(kRegDeviceTableBase);
  const std::uint64_t device = request.requester.value();
  if (device >= (get<kDeviceTableBase, "Size">(table) + 1) * kEntriesPerPage) {  // amdvi-002
    const FaultRow* row = request.type == AddressType::TranslationRequest ? kFault<"INVALID_DEVICE_REQUEST.tr_device">
                                                                          : kFault<"IO_PAGE_FAULT.device">;
    ContextResult result = fault_of(request, row, Stage::Context, {});
    co_return result;
  }
  const Hpa address((get<kDeviceTableBase, "DevTabBase">(table) << kPageLg2) + device * kDeviceTableEntryBytes);
  const auto block = co_await memory.read_block<4>(address, AccessKind::DeviceTable);
  if (block.failed) {
    Fault fault = fault_of(request, kFault<"DEV_TAB_HARDWARE_ERROR">, Stage::Context, {});
    fault.table_entry = address;
    ContextResult result = fault;
    co_return result;
  }
  const Entry& entry = block.words;
  Context context;
  if (get<kDeviceTableEntry, "V">(entry) == 0) {  // everything is forwarded, whatever else the entry holds
    ContextResult result = context;
    co_return result;
  }
  if (const FaultRow* row = check_entry(entry)) {
    ContextResult result = fault_of(request, row, Stage::Context, events_of(entry));
    co_return result;
  }
  context = decode_entry(entry);
  // Without PASID there is no privilege: such requests are the user's.
  if (!request.pasid) context.privilege = Override::Never;
  const bool walks = get<kDecoded, "translates">(context.family_bits) != 0 &&
                     get<kDecoded, "mode">(context.family_bits) <= capabilities_.host_levels;
  if (walks && uses_guest_tables(request, entry)) {
    if (const auto answer = answer_by_address(request, context); answer && std::holds_alternative<Fault>(*answer)) {
      ContextResult refused = std::get<Fault>(*answer);
      co_return refused;
    }
    co_return co_await find_guest_context(request, context, entry, memory);
  }
  ContextResult result = context;
  // An entry that lets nothing through is no context.
  if (!walks)
    if (const auto answer = answer_from_context(request, context); answer && std::holds_alternative<Fault>(*answer))
      result = std::get<Fault>(*answer);
  co_return result;
}

// GLX + 1 levels of entries, each indexed by nine bits of the PASID; the last holds the guest's table root, which is
// guest-physical where there are host tables. [§2.2.6; amdvi-013]
Task<ContextResult> Core::find_guest_context(TranslationRequest request, Context context, Entry entry,
                                             MemoryPort& memory) {
  EventContext events = events_of(entry);
  events.guest = true;
  const std::uint32_t pasid = request.pasid.value_or(Pasid(0)).value();
  auto level = static_cast<unsigned>(get<kDeviceTableEntry, "GLX">(entry));
  const unsigned bits = std::min({kGcr3IndexBits * (level + 1), capabilities_.pasid_bits, kMaxPasidBits});
  if (std::uint64_t{pasid} >> bits != 0) {
    ContextResult result = fault_of(request, kFault<"IO_PAGE_FAULT.pasid">, Stage::Context, events);
    co_return result;
  }
  std::uint64_t table = gcr3_root(entry);
  for (;; --level) {
    const std::uint64_t index = pasid >> (kGcr3IndexBits * level) & bits_between(0, kGcr3IndexBits);
    const Hpa address(table + index * kGcr3EntryBytes);
    const MemoryResult read = co_await memory.read64(address, AccessKind::DeviceTable);
    const FaultRow* row = read.failed                                          ? kFault<"PAGE_TAB_HARDWARE_ERROR.guest">
                          : get<kGcr3Entry, "V">(read.value) == 0              ? kFault<"IO_PAGE_FAULT.gcr3_absent">
                          : (read.value & kGcr3Entry.must_be_zero_mask()) != 0 ? kFault<"IO_PAGE_FAULT.gcr3_reserved">
                                                                               : nullptr;
    if (row != nullptr) {
      Fault fault = fault_of(request, row, Stage::Context, events);
      if (read.failed) fault.table_entry = address;
      ContextResult result = fault;
      co_return result;
    }
    table = get<kGcr3Entry, "Address">(read.value) << kPageLg2;
    if (level == 0) break;
  }
  const bool five = get<kDeviceTableEntry, "GuestPagingMode">(entry) == kGuestFiveLevels;
  context.kind = context.kind == ContextKind::Bypass ? ContextKind::Stage1 : ContextKind::Nested;
  context.asid = AsidTag(pasid);
  context.process = AsidTag(pasid);
  context.stage1 = {table, five ? kTopGuestLevel5 : kTopGuestLevel4};
  ContextResult result = context;
  co_return result;
}

}  // namespace iommu::amdvi
