// SPDX-License-Identifier: Apache-2.0
#include "sim/xen/physical_unit.hpp"

#include <algorithm>
#include <utility>

#include "sim/base/check.hpp"
#include "sim/memory/host_table_memory.hpp"
#include "sim/translation/queue_client.hpp"

namespace iommu::xen {

// Xen's heap, counting what this unit has of it.
class PhysicalUnit::CountedMemory final : public TableMemory {
 public:
  CountedMemory(HostMemory& memory, FrameAllocator& frames) : heap_(memory, frames) {}
  std::uint64_t read64(std::uint64_t address) override { return heap_.read64(address); }
  void write64(std::uint64_t address, std::uint64_t value) override { heap_.write64(address, value); }
  void write128(std::uint64_t address, std::uint64_t low, std::uint64_t high) override {
    heap_.write128(address, low, high);
  }
  std::optional<std::uint64_t> allocate(unsigned pages_lg2) override {
    const auto block = heap_.allocate(pages_lg2);
    if (block) pages_ += 1ULL << pages_lg2;
    return block;
  }
  void release(std::uint64_t address, unsigned pages_lg2) override {
    heap_.release(address, pages_lg2);
    pages_ -= 1ULL << pages_lg2;
  }
  [[nodiscard]] std::uint64_t pages() const { return pages_; }

 private:
  HostTableMemory heap_;
  std::uint64_t pages_ = 0;
};

PhysicalUnit::PhysicalUnit(PhysicalUnitSetting setting, MmioPort& registers, HostMemory& memory, FrameAllocator& frames)
    : setting_(std::move(setting)),
      registers_(registers),
      tables_(std::make_unique<CountedMemory>(memory, frames)),
      driver_(setting_.family->make_driver(setting_.driver)),
      tags_(driver_->domain_tags(), false) {
  tags_.front() = true;  // may tag not-present entries; Xen leaves it alone on every unit
}

PhysicalUnit::~PhysicalUnit() = default;

Task<Errno> PhysicalUnit::bring_up(CpuPort& cpu) {
  SIM_CHECK(!queue_, "a unit is brought up once");
  const auto writes = driver_->bring_up(*tables_);
  if (!writes) co_return Errno::NoMemory;
  for (const RegisterWrite& write : *writes) co_await registers_.write(cpu, write.offset, write.bytes, write.value);
  // Writes are posted: a read makes sure that translation is on before any device is let loose.
  if (!writes->empty()) co_await registers_.read(cpu, writes->back().offset, writes->back().bytes);
  if (!driver_->has_command_ring()) co_return Errno::Ok;
  queue_ = QueueClient::create(*driver_, *tables_, registers_, kXenQueue);
  co_return queue_ ? Errno::Ok : Errno::NoMemory;
}

Task<void> PhysicalUnit::invalidate(CpuPort& cpu, std::vector<InvalidationScope> scopes) {
  if (scopes.empty()) co_return;
  if (!driver_->has_command_ring()) {
    co_await invalidate_by_registers(cpu, std::move(scopes));
    co_return;
  }
  SIM_CHECK(queue_ != nullptr, "commands go to a unit that is up");
  for (const InvalidationScope& scope : scopes) submitted_.count(driver_->widen(scope));
  ++submitted_.fence;
  co_await queue_->submit(cpu, std::move(scopes), Fence::Poll);
}

Task<void> PhysicalUnit::invalidate_by_registers(CpuPort& cpu, std::vector<InvalidationScope> scopes) {
  for (const InvalidationScope& scope : scopes) {
    submitted_.count(scope);
    co_await cpu.acquire(register_lock_);
    const Picoseconds began = cpu.now();
    const std::vector<RegisterStep> steps = driver_->invalidation_steps(scope);
    for (const RegisterStep& step : steps) {
      if (step.write) co_await registers_.write(cpu, step.write->offset, step.write->bytes, step.write->value);
      if (step.poll) co_await poll(cpu, *step.poll);
    }
    if (!steps.empty()) register_wait_.add(cpu.now() - began);
    cpu.release(register_lock_);
  }
}

Task<void> PhysicalUnit::poll(CpuPort& cpu, RegisterPoll wanted) {
  for (;;) {
    const std::uint64_t value = co_await registers_.read(cpu, wanted.offset, wanted.bytes);
    if ((value & wanted.mask) == wanted.value) co_return;
  }
}

const Histogram& PhysicalUnit::fence_wait() const { return queue_ ? queue_->counters().fence_wait : register_wait_; }

Task<Errno> PhysicalUnit::change_entry(CpuPort& cpu, TableEdit edit) {
  co_await cpu.charge(CostId::ContextEntryWrite, edit.entries_written);
  co_await cpu.charge(CostId::TableAllocate, edit.tables_allocated);
  if (!features().coherent_walks) co_await cpu.charge(CostId::CacheLineFlush, edit.lines_touched);
  co_return to_errno(edit.status);
}

Task<Errno> PhysicalUnit::point(CpuPort& cpu, RequesterId requester, ContextSetting setting) {
  co_await cpu.acquire(table_lock_);
  const TableEdit edit = driver_->attach(requester, setting, *tables_);
  const Errno status = co_await change_entry(cpu, edit);
  cpu.release(table_lock_);
  co_return status;
}

Task<Errno> PhysicalUnit::block(CpuPort& cpu, RequesterId requester) {
  co_await cpu.acquire(table_lock_);
  const TableEdit edit = driver_->detach(requester, *tables_);
  const Errno status = co_await change_entry(cpu, edit);
  cpu.release(table_lock_);
  co_return status;
}

std::optional<DomainTag> PhysicalUnit::allocate_tag() {
  while (lowest_free_tag_ < tags_.size() && tags_[lowest_free_tag_]) ++lowest_free_tag_;
  if (lowest_free_tag_ == tags_.size()) return std::nullopt;
  tags_[lowest_free_tag_] = true;
  return DomainTag(static_cast<std::uint32_t>(lowest_free_tag_));
}

void PhysicalUnit::release_tag(DomainTag tag) {
  SIM_CHECK(tag.value() < tags_.size() && tags_[tag.value()], "a released tag was allocated");
  tags_[tag.value()] = false;
  lowest_free_tag_ = std::min<std::size_t>(lowest_free_tag_, tag.value());
}

void PhysicalUnit::reset_counters() {
  submitted_ = {};
  register_wait_ = {};
  if (queue_) queue_->reset_counters();
}

std::uint64_t PhysicalUnit::table_pages() const { return tables_->pages(); }

}  // namespace iommu::xen
