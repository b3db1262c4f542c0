// SPDX-License-Identifier: Apache-2.0
#include "sim/guest/table_spaces.hpp"

#include <algorithm>
#include <bit>
#include <utility>

namespace iommu::guest {

namespace {
DmaStatus to_dma_status(EditStatus status) {
  switch (status) {
    case EditStatus::Ok:
      return DmaStatus::Ok;
    case EditStatus::NoMemory:
      return DmaStatus::NoMemory;
    case EditStatus::AlreadyMapped:
    case EditStatus::NotMapped:
    case EditStatus::OutOfRange:
      break;
  }
  return DmaStatus::Rejected;
}
}  // namespace

// One device's page table, with the invalidations that its changes need.
class TableDmaSpace final : public DmaSpace {
 public:
  // `all`: the scope of everything under this table.
  TableDmaSpace(TableSpaces& owner, std::unique_ptr<PageTable> table, InvalidationScope all,
                std::vector<IovaRange> reserved)
      : owner_(owner), table_(std::move(table)), all_(all), reserved_(std::move(reserved)) {}

  [[nodiscard]] std::vector<IovaRange> reserved() const override { return reserved_; }

  [[nodiscard]] Iova last_address() const override { return Iova(owner_.driver().max_input(owner_.table_kind())); }
  Task<DmaStatus> map(CpuPort& cpu, MapSegment segment) override {
    const std::uint64_t sizes = owner_.driver().page_sizes(owner_.table_kind());
    const TableEdit edit = table_->map({.input = segment.iova.value(),
                                        .output = segment.address.value(),
                                        .length = segment.length,
                                        .permissions = segment.permissions,
                                        .max_page_lg2 = static_cast<unsigned>(std::bit_width(sizes) - 1)});
    co_await charge(cpu, edit);
    co_return to_dma_status(edit.status);
  }
  Task<DmaStatus> sync_map(CpuPort& cpu, IovaRange range) override {
    if (owner_.flushes_after_map()) co_await owner_.invalidate(cpu, {1, scope_of(range)});
    co_return DmaStatus::Ok;
  }
  Task<UnmapGather> unmap(CpuPort& cpu, IovaRange range, Flush) override {
    TableEdit edit = table_->unmap(range.first.value(), range.length, ReclaimTables::WhenCovered);
    co_await charge(cpu, edit);
    UnmapGather gather;
    gather.status = to_dma_status(edit.status);
    gather.range = range;
    gather.freed_tables = std::move(edit.freed_tables);
    co_return gather;
  }
  Task<void> sync(CpuPort& cpu, UnmapGather gather) override {
    InvalidationScope scope = scope_of(gather.range);
    scope.leaf_only = owner_.setting_.leaf_hint == LeafHint::On && gather.freed_tables.empty();
    co_await owner_.invalidate(cpu, {1, scope});
    reclaim_tables(gather.freed_tables);
  }
  Task<std::vector<DmaStatus>> sync_all(CpuPort& cpu, std::vector<UnmapGather> gathers) override {
    std::vector<InvalidationScope> scopes;
    std::vector<DmaStatus> statuses;
    for (const UnmapGather& gather : gathers) {
      scopes.push_back(scope_of(gather.range));
      scopes.back().leaf_only = owner_.setting_.leaf_hint == LeafHint::On && gather.freed_tables.empty();
      statuses.push_back(gather.status);
    }
    co_await owner_.invalidate(cpu, std::move(scopes));
    for (const UnmapGather& gather : gathers) reclaim_tables(gather.freed_tables);
    co_return statuses;
  }
  Task<void> flush_all(CpuPort& cpu) override { co_await owner_.invalidate(cpu, {1, all_}); }
  void reclaim_tables(const std::vector<std::uint64_t>& tables) override {
    for (const std::uint64_t table : tables) owner_.tables_.release(table, 0);
  }

 private:
  [[nodiscard]] InvalidationScope scope_of(IovaRange range) const {
    InvalidationScope scope = all_;
    scope.range = AddressRange{range.first.value(), range.first.value() + range.length.value() - 1};
    return scope;
  }
  // Follows the edit at once: its stores may have trapped.
  Task<void> charge(CpuPort& cpu, TableEdit edit) {
    co_await owner_.settle_stores(cpu);
    co_await cpu.charge(CostId::TableRead, table_->root().top_level + 1U);  // one walk down, then along the last table
    co_await owner_.charge(cpu, edit);
  }

  TableSpaces& owner_;
  std::unique_ptr<PageTable> table_;
  InvalidationScope all_;
  std::vector<IovaRange> reserved_;
};

TableSpaces::TableSpaces(const FamilyDescriptor& family, const IommuDriverSetting& setting, GuestMemory& memory,
                         GuestPages& pages)
    : setting_(setting), memory_(memory), tables_(memory, pages), driver_(family.make_driver(setting.driver)) {}

TableSpaces::~TableSpaces() = default;

Task<DmaSpace*> TableSpaces::attach(CpuPort& cpu, RequesterId device, std::vector<IovaRange> reserved) {
  const std::uint64_t tag = kFirstDomainTag + spaces_.size();
  if (tag >= driver_->domain_tags()) co_return nullptr;
  auto table = driver_->create_table(table_kind(), tables_);
  if (!table) co_return nullptr;
  co_await cpu.charge(CostId::TableAllocate);
  ContextSetting setting{.kind = setting_.driver.stage1 ? ContextKind::Stage1 : ContextKind::Stage2,
                         .domain = DomainTag(static_cast<std::uint32_t>(tag))};
  (setting_.driver.stage1 ? setting.stage1 : setting.stage2) = table->root();
  const bool announced = co_await announce(cpu, device, setting);
  if (!announced) {
    for (const std::uint64_t page : table->detach_all_tables()) tables_.release(page, 0);
    co_return nullptr;
  }
  // What undoing the attachment would have to remove is what the table's translations are tagged with.
  const std::vector<InvalidationScope> scopes = driver_->context_scopes(device, setting);
  const auto all = std::find_if(scopes.begin(), scopes.end(), [](const InvalidationScope& scope) {
    return scope.kind == InvalidationKind::Iotlb && !scope.range;
  });
  InvalidationScope whole{.kind = InvalidationKind::Iotlb, .domain = setting.domain};
  if (all != scopes.end()) whole = *all;
  spaces_.push_back(std::make_unique<TableDmaSpace>(*this, std::move(table), whole, std::move(reserved)));
  co_return spaces_.back().get();
}

Task<bool> TableSpaces::write_entry(CpuPort& cpu, RequesterId device, ContextSetting setting) {
  const TableEdit edit = driver_->attach(device, setting, tables_);
  co_await settle_stores(cpu);
  co_await cpu.charge(CostId::ContextEntryWrite, edit.entries_written);
  co_return edit.status == EditStatus::Ok;
}

Task<void> TableSpaces::settle_stores(CpuPort& cpu) {
  if (StoreTrap* trap = memory_.store_trap(); trap != nullptr) co_await trap->settle(cpu);
}

Task<void> TableSpaces::charge(CpuPort& cpu, const TableEdit& edit) {
  co_await cpu.charge(CostId::TableWrite, edit.entries_written);
  co_await cpu.charge(CostId::TableAllocate, edit.tables_allocated);
  if (!setting_.driver.features.coherent_walks) co_await cpu.charge(CostId::CacheLineFlush, edit.lines_touched);
}

}  // namespace iommu::guest
