// SPDX-License-Identifier: Apache-2.0
#include "sim/guest/bounce_pool.hpp"

#include <algorithm>
#include <bit>

#include "sim/base/check.hpp"

namespace iommu::guest {

BouncePool::BouncePool(Gpa first, Bytes size, std::uint64_t areas) : first_(first), slots_(size / kSlot) {
  SIM_CHECK(first.is_aligned(kPageLg2) && std::has_single_bit(size.value()) && size >= kLargest && areas > 0,
            "a pool is a power of two of sets");
  for (std::uint64_t i = 0; i < slots_.size(); ++i)
    slots_[i].free_run = static_cast<std::uint32_t>(kSetSlots - i % kSetSlots);
  const std::uint64_t count = std::min(std::bit_ceil(areas), slots_.size() / kSetSlots);
  for (std::uint64_t i = 0; i < count; ++i) areas_.push_back(std::make_unique<Area>());
  area_slots_ = slots_.size() / count;
}

std::uint64_t BouncePool::used() const {
  std::uint64_t sum = 0;
  for (const auto& area : areas_) sum += area->used;
  return sum;
}

void BouncePool::reset_counters() {
  most_used_ = used();
  foreign_searches_ = 0;
}

Task<std::optional<Gpa>> BouncePool::allocate(CpuPort& cpu, Gpa original, Bytes length) {
  if (length == 0_B) co_return std::nullopt;
  const std::uint64_t own = cpu.id().value() & (areas_.size() - 1);
  for (std::uint64_t i = 0; i < areas_.size(); ++i) {
    const std::uint64_t index = (own + i) & (areas_.size() - 1);
    Area& area = *areas_[index];
    if (i != 0) ++foreign_searches_;
    co_await cpu.acquire(area.lock);
    const Search found = search(index, original, length);
    co_await cpu.charge(CostId::BounceSearch, found.examined);
    if (found.slot) {
      const std::uint64_t count = slots_for(length);
      take(index, *found.slot, count);
      co_await cpu.charge(CostId::BounceSlot, count);
      cpu.release(area.lock);
      co_return first_ + kSlot** found.slot;
    }
    cpu.release(area.lock);
  }
  co_return std::nullopt;
}

// From one page on, slots that lie in their page as the original does are the only ones looked at; once one was seen,
// the search goes in steps of a page.
BouncePool::Search BouncePool::search(std::uint64_t area, Gpa original, Bytes length) const {
  const std::uint64_t wanted = slots_for(length);
  Search result;
  if (wanted > area_slots_ - areas_[area]->used) return result;
  const std::uint64_t in_page = length >= kPageSize ? kPageSize / kSlot - 1 : 0;
  const std::uint64_t original_slot = original.offset_in(kPageLg2) / kSlot.value();
  const std::uint64_t base = area * area_slots_;
  std::uint64_t index = areas_[area]->next;
  for (std::uint64_t checked = 0; checked < area_slots_;) {
    const std::uint64_t slot = base + index;
    const bool is_aligned = ((slot ^ original_slot) & in_page) == 0;
    ++result.examined;
    if (is_aligned && slots_[slot].free_run >= wanted) {
      result.slot = slot;
      return result;
    }
    const std::uint64_t step = is_aligned ? in_page + 1 : 1;
    checked += step;
    index = index + step >= area_slots_ ? 0 : index + step;
  }
  return result;
}

void BouncePool::take(std::uint64_t area, std::uint64_t slot, std::uint64_t count) {
  for (std::uint64_t i = slot; i < slot + count; ++i) slots_[i].free_run = 0;
  slots_[slot].allocated = static_cast<std::uint32_t>(count);
  recount_before(slot, 0);
  const std::uint64_t next = slot + count - area * area_slots_;
  areas_[area]->next = next >= area_slots_ ? 0 : next;
  areas_[area]->used += count;
  most_used_ = std::max(most_used_, used());
}

void BouncePool::recount_before(std::uint64_t slot, std::uint32_t run) {
  for (std::uint64_t i = slot; i % kSetSlots != 0 && slots_[i - 1].free_run != 0; --i) slots_[i - 1].free_run = ++run;
}

Task<bool> BouncePool::release(CpuPort& cpu, Gpa address, Bytes length) {
  const bool inside = address >= first_ && address < first_ + kSlot * slots_.size();
  if (!inside || (address - first_) % kSlot != 0_B) co_return false;
  const std::uint64_t slot = (address - first_) / kSlot;
  const std::uint64_t count = slots_for(length);
  Area& area = *areas_[slot / area_slots_];
  co_await cpu.acquire(area.lock);
  const bool is_ours = count != 0 && slots_[slot].allocated == count;
  if (is_ours) {
    give_back(slot, count);
    area.used -= count;
    co_await cpu.charge(CostId::BounceSlot, count);
  }
  cpu.release(area.lock);
  co_return is_ours;
}

void BouncePool::give_back(std::uint64_t slot, std::uint64_t count) {
  slots_[slot].allocated = 0;
  const std::uint64_t end = slot + count;
  std::uint32_t run = end % kSetSlots == 0 ? 0 : slots_[end].free_run;
  for (std::uint64_t i = end; i > slot; --i) slots_[i - 1].free_run = ++run;
  recount_before(slot, run);
}

}  // namespace iommu::guest
