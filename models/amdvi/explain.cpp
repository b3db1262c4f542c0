// SPDX-License-Identifier: Apache-2.0
// Which layout of spec.hpp an entry has, found from what was read before it. Nothing is decided here: a wrong answer
// would print wrong names and no more.
#include "models/amdvi/explain.hpp"

#include <array>

#include "models/amdvi/format.hpp"
#include "models/amdvi/register_rows.hpp"
#include "models/amdvi/spec.hpp"

namespace iommu::amdvi {

namespace {

// clang-format off
constexpr std::array kLayouts{
    // Registers
    view_of<kDeviceTableBase>("Device Table Base"), view_of<kRingBase>("Command Buffer Base"),
    view_of<kRingBase>("Event Log Base"), view_of<kRingBase>("PPR Log Base"), view_of<kControl>("IOMMU Control"),
    view_of<kExclusionBase>("Exclusion Base"), view_of<kExclusionLimit>("Exclusion Range Limit"),
    view_of<kExtendedFeatures>("Extended Feature"), view_of<kHardwareEventStatus>("Hardware Event Status"),
    view_of<kMsiCapability>("MSI Capability Header"), view_of<kMsiAddressLow>("MSI Address Low"),
    view_of<kMsiData>("MSI Data"), view_of<kRingPointer>("Command Buffer Head"),
    view_of<kRingPointer>("Command Buffer Tail"), view_of<kRingPointer>("Event Log Head"),
    view_of<kRingPointer>("Event Log Tail"), view_of<kRingPointer>("PPR Log Head"),
    view_of<kRingPointer>("PPR Log Tail"), view_of<kStatus>("IOMMU Status"),
    // Of the PCI function
    view_of<kCapabilityHeader>(), view_of<kMiscInfo0>(),
    // Device tables
    view_of<kDeviceTableEntry>("DTE"), view_of<kGcr3Entry>("GCR3 entry"),
    // Host page tables, by the specification's levels; all pages and all tables are alike
    view_of<kHostPage>("PTE"), view_of<kHostTable>("PDE"),
    view_of<kHostPage>("PTE-L1"), view_of<kHostPage>("PTE-L2"), view_of<kHostPage>("PTE-L3"), view_of<kHostPage>("PTE-L4"),
    view_of<kHostPage>("PTE-L5"), view_of<kHostPage>("PTE-L6"),
    view_of<kHostTable>("PDE-L1"), view_of<kHostTable>("PDE-L2"), view_of<kHostTable>("PDE-L3"), view_of<kHostTable>("PDE-L4"),
    view_of<kHostTable>("PDE-L5"), view_of<kHostTable>("PDE-L6"),
    // Guest page tables
    view_of<kGuestPage>("guest PTE"),
    view_of<kGuestTable>("guest PDE"), view_of<kGuestPage>("guest PDE"),
    view_of<kGuestTable>("guest PDPE"), view_of<kGuestPage>("guest PDPE"),
    view_of<kGuestTable>("guest PML4E"), view_of<kGuestTable>("guest PML5E"),
    // Commands
    view_of<kCompletionWait>(), view_of<kInvalidateDevice>("INVALIDATE_DEVTAB_ENTRY"),
    view_of<kInvalidateDevice>("INVALIDATE_INTERRUPT_TABLE"), view_of<kInvalidatePages>(), view_of<kInvalidateIotlb>(),
    view_of<kPrefetchPages>(), view_of<kCompletePpr>(), view_of<kInvalidateAll>(),
    // Events
    view_of<kTranslationEvent>("ILLEGAL_DEV_TABLE_ENTRY"), view_of<kTranslationEvent>("IO_PAGE_FAULT"),
    view_of<kHardwareEvent>("DEV_TAB_HARDWARE_ERROR"), view_of<kHardwareEvent>("PAGE_TAB_HARDWARE_ERROR"),
    view_of<kCommandEvent>("ILLEGAL_COMMAND_ERROR"), view_of<kHardwareEvent>("COMMAND_HARDWARE_ERROR"),
    view_of<kCommandEvent>("IOTLB_INV_TIMEOUT"), view_of<kInvalidRequestEvent>(),
};
// clang-format on

constexpr const LayoutView* find(std::string_view name) { return find_layout(kLayouts, name); }
const LayoutView* find(std::string_view name, std::span<const Field> fields) {
  return find_layout(kLayouts, name, fields);
}

// The device table entry, then one guest CR3 entry a level.
const LayoutView* device_table(std::span<const DeviceTableRead> so_far) {
  return so_far.size() == 1 ? find("DTE") : find("GCR3 entry");
}

const LayoutView* page_entry(const PageEntryRead& read) {
  constexpr std::array<std::string_view, 6> kPages{"PTE-L1", "PTE-L2", "PTE-L3", "PTE-L4", "PTE-L5", "PTE-L6"};
  constexpr std::array<std::string_view, 6> kTables{"PDE-L1", "PDE-L2", "PDE-L3", "PDE-L4", "PDE-L5", "PDE-L6"};
  constexpr std::array<std::string_view, 5> kGuest{"guest PTE", "guest PDE", "guest PDPE", "guest PML4E",
                                                   "guest PML5E"};
  if (read.stage == Stage::Stage1) {
    if (read.level >= kGuest.size()) return nullptr;
    const bool page = read.level == 0 || (read.level <= kLargestGuestLeaf && get<kGuestPage, "PS">(read.entry) != 0);
    return find(kGuest[read.level], page ? std::span<const Field>(kGuestPage.fields) : kGuestTable.fields);
  }
  if (read.level >= kPages.size()) return nullptr;
  const std::uint64_t next = get<kHostPage, "NextLevel">(read.entry);
  return find(next == kNextLevelPage || next == kNextLevelSized ? kPages[read.level] : kTables[read.level]);
}

const LayoutView* event(std::span<const std::uint64_t> words) {
  switch (static_cast<EventCode>(get<kTranslationEvent, "EventCode">(words))) {
    case EventCode::IllegalDevTableEntry:
      return find("ILLEGAL_DEV_TABLE_ENTRY");
    case EventCode::IoPageFault:
      return find("IO_PAGE_FAULT");
    case EventCode::DevTabHardwareError:
      return find("DEV_TAB_HARDWARE_ERROR");
    case EventCode::PageTabHardwareError:
      return find("PAGE_TAB_HARDWARE_ERROR");
    case EventCode::IllegalCommandError:
      return find("ILLEGAL_COMMAND_ERROR");
    case EventCode::CommandHardwareError:
      return find("COMMAND_HARDWARE_ERROR");
    case EventCode::IotlbInvTimeout:
      return find("IOTLB_INV_TIMEOUT");
    case EventCode::InvalidDeviceRequest:
      return find("INVALID_DEVICE_REQUEST");
  }
  return nullptr;
}

std::vector<RegisterPlace> registers(IommuCore& /*core*/) {
  return register_places(register_rows(Identity{}), kLayouts);
}

}  // namespace

constinit const FamilyLayouts kFamilyLayouts{
    .all = kLayouts, .registers = registers, .device_table = device_table, .page_entry = page_entry, .event = event};

}  // namespace iommu::amdvi
