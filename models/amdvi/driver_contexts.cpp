// SPDX-License-Identifier: Apache-2.0
// The device table as software writes it. Words 0 and 1 hold all that DMA depends on, save GuestPagingMode, and change
// by one write, as Xen and Linux do with a 16-byte compare-exchange.
#include "models/amdvi/driver.hpp"
#include "sim/base/check.hpp"

namespace iommu::amdvi {

namespace {

using Entry = std::array<std::uint64_t, 4>;

// What bring_up() writes, and detach(): valid, without translation.
constexpr Entry kBlocked{mask_of<kDeviceTableEntry, "V">, 0, 0, 0};

bool uses_guest_tables(ContextKind kind) { return kind == ContextKind::Stage1 || kind == ContextKind::Nested; }
bool uses_host_tables(ContextKind kind) { return kind == ContextKind::Stage2 || kind == ContextKind::Nested; }
bool has_guest_tables(const Entry& entry) { return get<kDeviceTableEntry, "GV">(entry) != 0; }

Entry read_entry(TableMemory& memory, std::uint64_t slot) {
  Entry entry{};
  for (std::size_t i = 0; i < entry.size(); ++i) entry[i] = memory.read64(slot + 8 * i);
  return entry;
}

void write_first_half(TableMemory& memory, std::uint64_t slot, const Entry& entry, TableEdit& edit) {
  memory.write128(slot, entry[0], entry[1]);
  ++edit.entries_written;
}
void write_second_half(TableMemory& memory, std::uint64_t slot, const Entry& entry, TableEdit& edit) {
  memory.write128(slot + 16, entry[2], entry[3]);
  ++edit.entries_written;
}

// The second half matters to DMA only while the first has guest tables. Two kinds of guest tables cannot be exchanged
// in one step: blocked in between.
void write_entry(TableMemory& memory, std::uint64_t slot, const Entry& entry, TableEdit& edit) {
  const Entry old = read_entry(memory, slot);
  if (old == entry) return;
  (old == kBlocked ? edit.added : edit.modified) = true;
  const bool second_differs = old[2] != entry[2] || old[3] != entry[3];
  if (second_differs && has_guest_tables(old) && has_guest_tables(entry))
    write_first_half(memory, slot, kBlocked, edit);
  const bool second_first = has_guest_tables(entry);
  if (second_differs && second_first) write_second_half(memory, slot, entry, edit);
  write_first_half(memory, slot, entry, edit);
  if (second_differs && !second_first) write_second_half(memory, slot, entry, edit);
  edit.lines_touched += 1;
}

TableEdit failed(EditStatus status) {
  TableEdit edit;
  edit.status = status;
  return edit;
}

}  // namespace

std::uint64_t Driver::slot(RequesterId requester) const {
  SIM_CHECK(device_table_ != 0, "a unit is brought up before devices are attached");
  return device_table_ + std::uint64_t{requester.value()} * kDeviceTableEntryBytes;
}

bool Driver::is_expressible(const ContextSetting& setting) const {
  const bool guest = uses_guest_tables(setting.kind);
  if (guest && !options_.stage1) return false;
  if (setting.domain.value() >= domain_tags()) return false;
  if (uses_host_tables(setting.kind) && setting.stage2.top_level >= capabilities_.host_levels) return false;
  return !guest ||
         (setting.stage1.top_level >= kTopGuestLevel4 && setting.stage1.top_level < capabilities_.guest_levels);
}

Driver::Entry Driver::entry_of(const ContextSetting& setting, std::uint64_t gcr3_table) const {
  Entry entry{};
  put<kDeviceTableEntry, "V">(entry, 1);
  put<kDeviceTableEntry, "TV">(entry, 1);
  put<kDeviceTableEntry, "IR">(entry, 1);
  put<kDeviceTableEntry, "IW">(entry, 1);
  put<kDeviceTableEntry, "DomainID">(entry, setting.domain.value());
  put<kDeviceTableEntry, "I">(entry, capabilities_.device_tlb && setting.allow_device_tlb ? 1 : 0);
  if (uses_host_tables(setting.kind)) {
    put<kDeviceTableEntry, "Mode">(entry, setting.stage2.top_level + 1U);
    put<kDeviceTableEntry, "HostPTRoot">(entry, setting.stage2.address >> kPageLg2);
  }
  if (uses_guest_tables(setting.kind)) {
    const bool five = setting.stage1.top_level == kTopGuestLevel5;
    put<kDeviceTableEntry, "GV">(entry, 1);
    put<kDeviceTableEntry, "GIOV">(entry, 1);  // requests without PASID are the guest's too
    put<kDeviceTableEntry, "GCR3a">(entry, gcr3_table >> kGcr3aLsb);
    put<kDeviceTableEntry, "GCR3b">(entry, gcr3_table >> kGcr3bLsb);
    put<kDeviceTableEntry, "GCR3c">(entry, gcr3_table >> kGcr3cLsb);
    put<kDeviceTableEntry, "GuestPagingMode">(entry, five ? kGuestFiveLevels : kGuestFourLevels);
  }
  return entry;
}

// The one that the entry does not point to.
std::optional<std::uint64_t> Driver::next_gcr3_table(RequesterId requester, TableMemory& memory, TableEdit& edit) {
  Attached& state = attached_[requester];
  const std::size_t turn = 1 - state.turn;
  if (state.gcr3_tables[turn] == 0) {
    const auto page = memory.allocate();
    if (!page) return std::nullopt;
    state.gcr3_tables[turn] = *page;
    ++edit.tables_allocated;
  }
  state.turn = turn;
  return state.gcr3_tables[turn];
}

TableEdit Driver::attach(RequesterId requester, const ContextSetting& setting, TableMemory& memory) {
  if (!is_expressible(setting)) return failed(EditStatus::OutOfRange);
  TableEdit edit;
  Attached& state = attached_[requester];
  std::uint64_t gcr3_table = 0;
  if (uses_guest_tables(setting.kind)) {
    const bool same_guest =
        state.setting && uses_guest_tables(state.setting->kind) && state.setting->stage1 == setting.stage1;
    const auto table =
        same_guest ? std::optional(state.gcr3_tables[state.turn]) : next_gcr3_table(requester, memory, edit);
    if (!table) return failed(EditStatus::NoMemory);
    gcr3_table = *table;
    if (!same_guest) {
      memory.write64(gcr3_table + kRequestsWithoutPasid * kGcr3EntryBytes,
                     setting.stage1.address | mask_of<kGcr3Entry, "V">);
      ++edit.entries_written;
      ++edit.lines_touched;
    }
  }
  write_entry(memory, slot(requester), entry_of(setting, gcr3_table), edit);
  state.setting = setting;
  return edit;
}

TableEdit Driver::detach(RequesterId requester, TableMemory& memory) {
  TableEdit edit;
  attached_[requester].setting.reset();
  write_entry(memory, slot(requester), kBlocked, edit);
  return edit;
}

// What to invalidate --------------------------------------------------------------------------------------------------

// An entry is always valid, so hardware may hold it in any case. [xen/drivers/passthrough/amd/pci_amd_iommu.c,
// amd_iommu_setup_domain_device; linux drivers/iommu/amd/iommu.c, do_detach]
std::vector<InvalidationScope> Driver::context_scopes(RequesterId requester, std::optional<ContextSetting> old) const {
  std::vector<InvalidationScope> scopes{{.kind = InvalidationKind::Context, .requester = requester}};
  if (!old) return scopes;
  InvalidationScope iotlb{.kind = InvalidationKind::Iotlb, .domain = old->domain};
  // Guest tables alone are named by the PASID; what host tables took part in goes by the domain.
  if (old->kind == ContextKind::Stage1) iotlb.asid = AsidTag(kRequestsWithoutPasid);
  scopes.push_back(iotlb);
  return scopes;
}

}  // namespace iommu::amdvi
