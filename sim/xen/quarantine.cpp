// SPDX-License-Identifier: Apache-2.0
// Devices that are nobody's, and devices that fault. Regions that firmware reserved for a device are not kept in
// quarantine: with a scratch page they lead there too.
#include <algorithm>
#include <utility>

#include "sim/xen/hypervisor.hpp"

namespace iommu::xen {

namespace {
// Xen's heap, remembering what was taken.
class RecordedTables final : public TableMemory {
 public:
  struct Block {
    std::uint64_t address = 0;
    unsigned pages_lg2 = 0;
  };
  explicit RecordedTables(TableMemory& heap) : heap_(heap) {}
  std::uint64_t read64(std::uint64_t address) override { return heap_.read64(address); }
  void write64(std::uint64_t address, std::uint64_t value) override { heap_.write64(address, value); }
  std::optional<std::uint64_t> allocate(unsigned pages_lg2) override {
    const auto block = heap_.allocate(pages_lg2);
    if (block) blocks_.push_back({*block, pages_lg2});
    return block;
  }
  void release(std::uint64_t address, unsigned pages_lg2) override {
    heap_.release(address, pages_lg2);
    std::erase_if(blocks_, [address](const Block& block) { return block.address == address; });
  }
  [[nodiscard]] const std::vector<Block>& blocks() const { return blocks_; }

 private:
  TableMemory& heap_;
  std::vector<Block> blocks_;
};

// Every entry becomes what the first one is, so that every address leads where address 0 does.
std::uint64_t repeat_first_entry(TableMemory& memory, const RecordedTables::Block& block) {
  const std::uint64_t words = (kPageSize.value() << block.pages_lg2) / sizeof(std::uint64_t);
  const std::uint64_t entry = memory.read64(block.address);
  for (std::uint64_t i = 1; i < words; ++i) memory.write64(block.address + sizeof(std::uint64_t) * i, entry);
  return words;
}
}  // namespace

// One table per level, shared by all entries of the level above. [xen/drivers/passthrough/x86/iommu.c,
// iommu_quarantine_dev_init]
std::optional<Hypervisor::Scratch> Hypervisor::make_scratch(const DeviceSetting& device) {
  PhysicalUnit& unit = *units_[device.unit];
  Scratch scratch;
  scratch.device = device;
  RecordedTables tables(heap_);
  const auto tag = unit.allocate_tag();
  const auto page = frames_.allocate();
  bool complete = false;
  if (tag && page) {
    memory_.clear_page(*page);
    if (const auto table = unit.driver().create_table(TableKind::Stage2, tables)) {
      scratch.setting = {.kind = ContextKind::Stage2, .domain = *tag, .stage2 = table->root()};
      complete = table->map({.input = 0, .output = page->address().value()}).status == EditStatus::Ok;
    }
  }
  for (const RecordedTables::Block& block : tables.blocks()) {
    if (complete) scratch.entries += repeat_first_entry(heap_, block);
    scratch.tables.emplace_back(block.address, block.pages_lg2);
  }
  if (page) scratch.page = *page;
  if (complete) return scratch;
  for (const auto& [address, pages_lg2] : scratch.tables) heap_.release(address, pages_lg2);
  if (page) heap_.release(page->address().value());
  if (tag) unit.release_tag(*tag);
  return std::nullopt;
}

void Hypervisor::drop_scratch(const Scratch& scratch) {
  for (const auto& [address, pages_lg2] : scratch.tables) heap_.release(address, pages_lg2);
  heap_.release(scratch.page.address().value());
  units_[scratch.device.unit]->release_tag(scratch.setting.domain);
}

// The device is blocked. Without memory for a scratch page it stays so.
Task<void> Hypervisor::quarantine(CpuPort& cpu, DeviceSetting device) {
  if (options_.quarantine != Quarantine::ScratchPage || device.device_class == DeviceClass::Bridge) co_return;
  auto scratch = make_scratch(device);
  if (!scratch) co_return;
  co_await cpu.charge(CostId::TableAllocate, scratch->tables.size());
  co_await cpu.charge(CostId::TableWrite, scratch->entries);
  const ContextSetting setting = scratch->setting;
  const RequesterId requester = device.requester;
  quarantined_.emplace(requester, std::move(*scratch));
  PhysicalUnit& unit = *units_[device.unit];
  std::vector<InvalidationScope> scopes;
  for (const RequesterId function : device.functions()) {
    const Errno pointed = co_await unit.point(cpu, function, setting);
    if (pointed != Errno::Ok) continue;  // it stays blocked
    const auto due = unit.driver().context_scopes(function, std::nullopt);
    scopes.insert(scopes.end(), due.begin(), due.end());
  }
  if (device.shared_id && !shared_entries_.contains({device.unit, *device.shared_id})) {
    const SharedEdit shared = co_await point_shared(cpu, device, setting, SharedEntries::Take);
    scopes.insert(scopes.end(), shared.scopes.begin(), shared.scopes.end());
  }
  co_await unit.invalidate(cpu, scopes);
}

Task<void> Hypervisor::release_from_quarantine(CpuPort& cpu, RequesterId device) {
  auto node = quarantined_.extract(device);
  if (!node) co_return;
  const Scratch scratch = std::move(node.mapped());
  PhysicalUnit& unit = *units_[scratch.device.unit];
  std::vector<InvalidationScope> scopes;
  for (const RequesterId function : scratch.device.functions()) {
    co_await unit.block(cpu, function);
    const auto due = unit.driver().context_scopes(function, scratch.setting);
    scopes.insert(scopes.end(), due.begin(), due.end());
  }
  const SharedEdit shared = co_await leave_shared(cpu, scratch.device);
  scopes.insert(scopes.end(), shared.scopes.begin(), shared.scopes.end());
  Errno flushed = co_await unit.invalidate(cpu, scopes);
  if (scratch.device.device_tlb && flushed == Errno::Ok) {
    std::vector<InvalidationScope> remote;
    for (const RequesterId function : scratch.device.functions())
      remote.push_back({.kind = InvalidationKind::DeviceTlb, .requester = function});
    flushed = co_await unit.invalidate(cpu, remote);
  }
  // Without an answer the device may go on writing to its page: nobody gets that again.
  if (flushed == Errno::Ok) drop_scratch(scratch);
}

std::optional<Mfn> Hypervisor::scratch_page(RequesterId device) const {
  const auto found = quarantined_.find(device);
  if (found == quarantined_.end()) return std::nullopt;
  return found->second.page;
}

Hypervisor::Owner Hypervisor::owner_of(RequesterId function) {
  for (const auto& domain : domains_)
    for (const auto& [requester, assigned] : domain->devices) {
      const std::vector<RequesterId> functions = assigned.setting.functions();
      if (std::find(functions.begin(), functions.end(), function) != functions.end()) return {domain.get(), requester};
    }
  return {};
}

BusMastering Hypervisor::note_fault(RequesterId device, Picoseconds now) {
  const Owner owner = owner_of(device);
  return owner.domain == nullptr ? BusMastering::On : owner.domain->devices.at(owner.device).faults.count(now);
}

}  // namespace iommu::xen
