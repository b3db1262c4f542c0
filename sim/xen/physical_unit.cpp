// SPDX-License-Identifier: Apache-2.0
#include "sim/xen/physical_unit.hpp"

#include <algorithm>
#include <bit>
#include <utility>

#include "sim/base/check.hpp"
#include "sim/memory/host_table_memory.hpp"
#include "sim/translation/queue_client.hpp"
#include "sim/translation/queue_driver.hpp"

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
      tags_(driver_->domain_tags(), 0) {
  tags_.front() = 1;  // may tag not-present entries; Xen leaves it alone on every unit
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
  if (!queue_) co_return Errno::NoMemory;
  co_return co_await bring_up_queues(cpu);
}

Task<Errno> PhysicalUnit::bring_up_queues(CpuPort& cpu) {
  const QueueDriver* queues = driver_->queues();
  if (queues == nullptr) co_return Errno::Ok;
  const QueueDriver::Limits limits = queues->limits();
  queue_groups_.assign(limits.groups, false);
  queue_groups_.front() = true;
  co_await write_registers(cpu, queues->enable());
  if (limits.host_rings == 0) co_return Errno::Ok;
  co_await write_registers(cpu, queues->open(0, std::nullopt));
  const CommandRing first = driver_->ring();
  const auto pages_lg2 =
      static_cast<unsigned>(std::bit_width((std::uint64_t{first.entries} * first.entry_bytes - 1) >> kPageLg2));
  for (std::uint32_t number = 0; number < limits.host_rings; ++number) {
    const auto base = tables_->allocate(pages_lg2);
    if (!base) co_return Errno::NoMemory;
    co_await write_registers(cpu, queues->place(0, {.ring = number, .base = Hpa(*base), .entries = first.entries}));
    std::vector<RegisterWrite> start = queues->start(number);
    for (RegisterWrite& write : start) write.offset += queues->window(0).offset;
    co_await write_registers(cpu, start);
    CommandRing ring = queues->ring(number, *base, first.entries);
    ring.tail_register += queues->window(0).offset;
    ring.head_register += queues->window(0).offset;
    further_.push_back(std::make_unique<QueueClient>(*driver_, *queues, ring, *tables_, registers_, kXenQueue));
  }
  co_return Errno::Ok;
}

Task<void> PhysicalUnit::write_registers(CpuPort& cpu, std::vector<RegisterWrite> writes) {
  for (const RegisterWrite& write : writes) co_await registers_.write(cpu, write.offset, write.bytes, write.value);
}

QueueClient& PhysicalUnit::queue_for(CpuId cpu) {
  return further_.empty() ? *queue_ : *further_[cpu.value() % further_.size()];
}

Histogram PhysicalUnit::fence_wait() const {
  Histogram all = register_wait_;
  if (queue_) all.merge(queue_->counters().fence_wait);
  for (const auto& queue : further_) all.merge(queue->counters().fence_wait);
  return all;
}

std::optional<std::uint32_t> PhysicalUnit::allocate_queue_group() {
  const auto free = std::find(queue_groups_.begin(), queue_groups_.end(), false);
  if (free == queue_groups_.end()) return std::nullopt;
  *free = true;
  return static_cast<std::uint32_t>(free - queue_groups_.begin());
}

void PhysicalUnit::release_queue_group(std::uint32_t group) {
  SIM_CHECK(queue_groups_.at(group), "a released group was allocated");
  queue_groups_[group] = false;
}

Task<Errno> PhysicalUnit::invalidate(CpuPort& cpu, std::vector<InvalidationScope> scopes) {
  if (scopes.empty()) co_return Errno::Ok;
  if (!driver_->has_command_ring()) {
    co_await invalidate_by_registers(cpu, std::move(scopes));
    co_return Errno::Ok;
  }
  SIM_CHECK(queue_ != nullptr, "commands go to a unit that is up");
  if (lost_ != 0) {
    --lost_;
    co_return Errno::InputOutput;
  }
  for (const InvalidationScope& scope : scopes) submitted_.count(driver_->widen(scope));
  ++submitted_.fence;
  co_await queue_for(cpu.id()).submit(cpu, std::move(scopes), Fence::Poll);
  co_return Errno::Ok;
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
  while (lowest_free_tag_ < tags_.size() && tags_[lowest_free_tag_] != 0) ++lowest_free_tag_;
  if (lowest_free_tag_ == tags_.size()) {
    ++tag_counters_.refused;
    return std::nullopt;
  }
  tags_[lowest_free_tag_] = 1;
  tag_counters_.peak = std::max(tag_counters_.peak, ++tag_counters_.in_use);
  return DomainTag(static_cast<std::uint32_t>(lowest_free_tag_));
}

void PhysicalUnit::share_tag(DomainTag tag) {
  SIM_CHECK(tag.value() < tags_.size() && tags_[tag.value()] != 0, "a shared tag was allocated");
  ++tags_[tag.value()];
}

void PhysicalUnit::release_tag(DomainTag tag) {
  SIM_CHECK(tag.value() < tags_.size() && tags_[tag.value()] != 0, "a released tag was allocated");
  if (--tags_[tag.value()] != 0) return;
  --tag_counters_.in_use;
  lowest_free_tag_ = std::min<std::size_t>(lowest_free_tag_, tag.value());
}

void PhysicalUnit::reset_counters() {
  submitted_ = {};
  register_wait_ = {};
  if (queue_) queue_->reset_counters();
  for (const auto& queue : further_) queue->reset_counters();
}

std::uint64_t PhysicalUnit::table_pages() const { return tables_->pages(); }

}  // namespace iommu::xen
