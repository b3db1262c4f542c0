// SPDX-License-Identifier: Apache-2.0
#include "sim/guest/iommu_driver.hpp"

#include <algorithm>
#include <bit>
#include <utility>

#include "sim/base/check.hpp"
#include "sim/translation/queue_driver.hpp"

namespace iommu::guest {

namespace {
constexpr std::uint64_t kFirstDomainTag = 1;  // 0 may tag not-present entries

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
  TableDmaSpace(IommuDriver& driver, std::unique_ptr<PageTable> table, InvalidationScope all)
      : driver_(driver), table_(std::move(table)), all_(all) {}

  [[nodiscard]] Iova last_address() const override { return Iova(driver_.driver_->max_input(driver_.table_kind())); }
  Task<DmaStatus> map(CpuPort& cpu, MapSegment segment) override {
    const std::uint64_t sizes = driver_.driver_->page_sizes(driver_.table_kind());
    const TableEdit edit = table_->map({.input = segment.iova.value(),
                                        .output = segment.address.value(),
                                        .length = segment.length,
                                        .permissions = segment.permissions,
                                        .max_page_lg2 = static_cast<unsigned>(std::bit_width(sizes) - 1)});
    co_await charge(cpu, edit);
    co_return to_dma_status(edit.status);
  }
  Task<DmaStatus> sync_map(CpuPort& cpu, IovaRange range) override {
    if (driver_.flushes_after_map()) co_await driver_.invalidate(cpu, {1, scope_of(range)});
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
    scope.leaf_only = driver_.setting_.leaf_hint == LeafHint::On && gather.freed_tables.empty();
    co_await driver_.invalidate(cpu, {1, scope});
    reclaim_tables(gather.freed_tables);
  }
  Task<std::vector<DmaStatus>> sync_all(CpuPort& cpu, std::vector<UnmapGather> gathers) override {
    std::vector<InvalidationScope> scopes;
    std::vector<DmaStatus> statuses;
    for (const UnmapGather& gather : gathers) {
      scopes.push_back(scope_of(gather.range));
      scopes.back().leaf_only = driver_.setting_.leaf_hint == LeafHint::On && gather.freed_tables.empty();
      statuses.push_back(gather.status);
    }
    co_await driver_.invalidate(cpu, std::move(scopes));
    for (const UnmapGather& gather : gathers) reclaim_tables(gather.freed_tables);
    co_return statuses;
  }
  Task<void> flush_all(CpuPort& cpu) override { co_await driver_.invalidate(cpu, {1, all_}); }
  void reclaim_tables(const std::vector<std::uint64_t>& tables) override {
    for (const std::uint64_t table : tables) driver_.tables_.release(table, 0);
  }

 private:
  [[nodiscard]] InvalidationScope scope_of(IovaRange range) const {
    InvalidationScope scope = all_;
    scope.range = AddressRange{range.first.value(), range.first.value() + range.length.value() - 1};
    return scope;
  }
  // Follows the edit at once: its stores may have trapped.
  Task<void> charge(CpuPort& cpu, TableEdit edit) {
    co_await driver_.settle_stores(cpu);
    co_await cpu.charge(CostId::TableRead, table_->root().top_level + 1U);  // one walk down, then along the last table
    co_await driver_.charge(cpu, edit);
  }

  IommuDriver& driver_;
  std::unique_ptr<PageTable> table_;
  InvalidationScope all_;
};

IommuDriver::IommuDriver(const FamilyDescriptor& family, const IommuDriverSetting& setting, MmioPort& registers,
                         GuestMemory& memory, GuestPages& pages)
    : setting_(setting),
      registers_(registers),
      memory_(memory),
      tables_(memory, pages),
      driver_(family.make_driver(setting.driver)) {}

IommuDriver::~IommuDriver() = default;

// The status words are in guest memory; the vCPU polls the machine's.
class GuestQueueClient final : public QueueClient {
 public:
  GuestQueueClient(const TableDriver& driver, TableMemory& tables, MmioPort& registers, const GuestMemory& memory,
                   std::uint64_t status_page)
      : QueueClient(driver, tables, registers, kLinuxQueue, status_page), memory_(memory) {}

 private:
  [[nodiscard]] Hpa status_host_address(std::uint64_t address) const override {
    const auto host = memory_.translate(Gpa(address));
    SIM_CHECK(host.has_value(), "a kernel allocates status words from its own memory");
    return *host;
  }
  const GuestMemory& memory_;
};

Task<bool> IommuDriver::bring_up(CpuPort& cpu, MmioPort* window) {
  const auto writes = driver_->bring_up(tables_);
  const auto status_page = tables_.allocate(0);
  if (!writes || !status_page) co_return false;
  for (const RegisterWrite& write : *writes) co_await registers_.write(cpu, write.offset, write.bytes, write.value);
  queue_ = std::make_unique<GuestQueueClient>(*driver_, tables_, registers_, memory_, *status_page);
  if (window == nullptr || driver_->queues() == nullptr) co_return true;
  co_return co_await bring_up_own_queues(cpu, *window);
}

// As far as they come up; without one of them everything goes the other way, as in Linux. A ring is a page, so that it
// follows itself in machine memory as well.
Task<bool> IommuDriver::bring_up_own_queues(CpuPort& cpu, MmioPort& window) {
  const QueueDriver& queues = *driver_->queues();
  std::vector<RegisterWrite> setup = queues.enable();
  const std::vector<RegisterWrite> open = queues.open(0, std::nullopt);
  setup.insert(setup.end(), open.begin(), open.end());
  for (const RegisterWrite& write : setup) co_await registers_.write(cpu, write.offset, write.bytes, write.value);
  const auto entries =
      std::min<std::uint32_t>(setting_.driver.features.command_ring_entries,
                              static_cast<std::uint32_t>(kPageSize.value()) / driver_->ring().entry_bytes);
  for (std::uint32_t number = 0; number < queues.limits().guest_rings; ++number) {
    const auto base = tables_.allocate(0);
    if (!base) co_return false;
    const auto placed = queues.place(0, {.ring = number, .base = Hpa(*base), .entries = entries});
    for (const RegisterWrite& write : placed) co_await registers_.write(cpu, write.offset, write.bytes, write.value);
    const auto start = queues.start(number);
    for (const RegisterWrite& write : start) co_await window.write(cpu, write.offset, write.bytes, write.value);
    const std::uint64_t running = co_await window.read(cpu, queues.status_register(number), 4);
    if (running == 0) co_return true;
    own_queues_.push_back(std::make_unique<QueueClient>(*driver_, queues, queues.ring(number, *base, entries), tables_,
                                                        window, kLinuxQueue));
  }
  co_return true;
}

void IommuDriver::reset_counters() {
  if (queue_) queue_->reset_counters();
  for (const auto& queue : own_queues_) queue->reset_counters();
}

// Its CPU's own ring, if that may carry all of it. [linux drivers/iommu/arm/arm-smmu-v3/tegra241-cmdqv.c,
// tegra241_cmdqv_get_cmdq]
QueueClient& IommuDriver::queue_for(CpuId cpu, const std::vector<InvalidationScope>& scopes) {
  const auto may = [this](const InvalidationScope& scope) {
    return driver_->queues()->guest_may(driver_->widen(scope));
  };
  if (own_queues_.empty() || !std::ranges::all_of(scopes, may)) return *queue_;
  return *own_queues_[cpu.value() % own_queues_.size()];
}

Task<void> IommuDriver::invalidate(CpuPort& cpu, std::vector<InvalidationScope> scopes) {
  if (!scopes.empty()) co_await queue_for(cpu.id(), scopes).submit(cpu, scopes, Fence::Poll);
}

Task<DmaSpace*> IommuDriver::attach(CpuPort& cpu, RequesterId device) {
  const std::uint64_t tag = kFirstDomainTag + spaces_.size();
  if (tag >= driver_->domain_tags()) co_return nullptr;
  auto table = driver_->create_table(table_kind(), tables_);
  if (!table) co_return nullptr;
  co_await cpu.charge(CostId::TableAllocate);
  ContextSetting setting{.kind = setting_.driver.stage1 ? ContextKind::Stage1 : ContextKind::Stage2,
                         .domain = DomainTag(static_cast<std::uint32_t>(tag))};
  (setting_.driver.stage1 ? setting.stage1 : setting.stage2) = table->root();
  const TableEdit edit = driver_->attach(device, setting, tables_);
  co_await settle_stores(cpu);
  co_await cpu.charge(CostId::ContextEntryWrite, edit.entries_written);
  if (edit.status != EditStatus::Ok) {
    for (const std::uint64_t page : table->detach_all_tables()) tables_.release(page, 0);
    co_return nullptr;
  }
  co_await invalidate(cpu, driver_->context_scopes(device, std::nullopt));
  // What undoing the attachment would have to remove is what the table's translations are tagged with.
  const std::vector<InvalidationScope> scopes = driver_->context_scopes(device, setting);
  const auto all = std::find_if(scopes.begin(), scopes.end(), [](const InvalidationScope& scope) {
    return scope.kind == InvalidationKind::Iotlb && !scope.range;
  });
  InvalidationScope whole{.kind = InvalidationKind::Iotlb, .domain = setting.domain};
  if (all != scopes.end()) whole = *all;
  spaces_.push_back(std::make_unique<TableDmaSpace>(*this, std::move(table), whole));
  co_return spaces_.back().get();
}

Task<void> IommuDriver::settle_stores(CpuPort& cpu) {
  if (StoreTrap* trap = memory_.store_trap(); trap != nullptr) co_await trap->settle(cpu);
}

Task<void> IommuDriver::charge(CpuPort& cpu, const TableEdit& edit) {
  co_await cpu.charge(CostId::TableWrite, edit.entries_written);
  co_await cpu.charge(CostId::TableAllocate, edit.tables_allocated);
  if (!setting_.driver.features.coherent_walks) co_await cpu.charge(CostId::CacheLineFlush, edit.lines_touched);
}

}  // namespace iommu::guest
