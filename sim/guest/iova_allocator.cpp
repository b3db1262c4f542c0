// SPDX-License-Identifier: Apache-2.0
#include "sim/guest/iova_allocator.hpp"

#include <algorithm>
#include <bit>
#include <utility>

#include "sim/base/check.hpp"

namespace iommu::guest {

namespace {
unsigned order_of(std::uint64_t pages) { return static_cast<unsigned>(std::bit_width(std::bit_ceil(pages)) - 1); }
}  // namespace

IovaAllocator::IovaAllocator(IovaAllocatorShape shape, unsigned cpus)
    : shape_(shape), search_from_(shape.last_page + 1), preferred_search_from_(shape.preferred_last_page + 1) {
  SIM_CHECK(cpus > 0 && shape.magazine_entries > 0, "somebody allocates, and a magazine holds something");
  shape_.preferred_last_page = std::min(shape_.preferred_last_page, shape_.last_page);
  preferred_search_from_ = shape_.preferred_last_page + 1;
  for (SizeClass& size : sizes_) size.cpus.resize(cpus);
  for (const PageRange& range : shape_.reserved)
    if (range.pages != 0) tree_.emplace(range.first, range.pages);
}

std::optional<std::uint64_t> IovaAllocator::pop(Magazine& magazine, std::uint64_t last_page) {
  for (std::size_t i = magazine.size(); i-- > 0;) {
    if (magazine[i] > last_page) continue;
    const std::uint64_t page = magazine[i];
    magazine[i] = magazine.back();
    magazine.pop_back();
    return page;
  }
  return std::nullopt;
}

std::optional<std::uint64_t> IovaAllocator::take_cached(SizeClass& size, CpuCache& cache, std::uint64_t last_page) {
  if (cache.loaded.empty()) {
    if (!cache.previous.empty()) {
      std::swap(cache.loaded, cache.previous);
    } else if (!size.depot.empty()) {
      cache.loaded = std::move(size.depot.back());
      size.depot.pop_back();
    }
  }
  return pop(cache.loaded, last_page);
}

bool IovaAllocator::put_cached(CpuCache& cache, std::uint64_t page) {
  if (is_full(cache.loaded)) {
    if (is_full(cache.previous)) return false;
    std::swap(cache.loaded, cache.previous);
  }
  cache.loaded.push_back(page);
  return true;
}

// First fit going down from `from`, aligned; only ranges that end by `last_page`.
std::optional<std::uint64_t> IovaAllocator::search_down(std::uint64_t pages, std::uint64_t from,
                                                        std::uint64_t last_page) const {
  const std::uint64_t alignment = std::bit_ceil(pages);
  std::uint64_t end = std::min(from, last_page + 1);  // exclusive
  auto above = tree_.lower_bound(end);
  while (end >= pages) {
    const std::uint64_t candidate = (end - pages) & ~(alignment - 1);
    if (candidate < shape_.first_page) return std::nullopt;
    if (above == tree_.begin()) return candidate;
    const auto below = std::prev(above);
    if (below->first + below->second <= candidate) return candidate;
    end = std::min(end, below->first);
    above = below;
  }
  return std::nullopt;
}

std::optional<std::uint64_t> IovaAllocator::take_from_tree(std::uint64_t pages, std::uint64_t last_page) {
  std::uint64_t& from = last_page <= shape_.preferred_last_page ? preferred_search_from_ : search_from_;
  auto page = search_down(pages, from, last_page);
  if (!page) page = search_down(pages, last_page + 1, last_page);  // holes above the place searched last
  if (!page) return std::nullopt;
  tree_.emplace(*page, pages);
  from = *page;
  return page;
}

void IovaAllocator::return_to_tree(std::uint64_t page) {
  const auto found = tree_.find(page);
  SIM_CHECK(found != tree_.end(), "an IOVA in a magazine is in the tree");
  const std::uint64_t end = found->first + found->second;
  tree_.erase(found);
  // The next search starts above what was just freed, if that lies above the place where it would have started.
  // What lies above the preferred part says nothing about it. [Linux 6.1 __cached_rbnode_delete_update]
  const auto next = tree_.lower_bound(end);
  const auto raise = [&](std::uint64_t& from, std::uint64_t limit) {
    if (page < from || end > limit + 1) return;
    from = std::min(limit + 1, next == tree_.end() ? limit + 1 : next->first);
  };
  raise(preferred_search_from_, shape_.preferred_last_page);
  raise(search_from_, shape_.last_page);
}

Task<void> IovaAllocator::return_all_to_tree(CpuPort& cpu, Magazine pages) {
  co_await cpu.acquire(tree_lock_);
  for (const std::uint64_t page : pages) return_to_tree(page);
  counters_.tree_frees += pages.size();
  co_await cpu.charge(CostId::IovaFreeTree, pages.size());
  cpu.release(tree_lock_);
}

// Exhausted space: ranges parked in caches go back before the allocation is given up. [Linux 6.1 alloc_iova_fast]
Task<void> IovaAllocator::empty_caches_into_tree(CpuPort& cpu) {
  Magazine parked;
  const auto take = [&](Magazine& magazine) {
    parked.insert(parked.end(), magazine.begin(), magazine.end());
    magazine.clear();
  };
  for (SizeClass& size : sizes_) {
    for (CpuCache& cache : size.cpus) {
      take(cache.loaded);
      take(cache.previous);
    }
    for (Magazine& magazine : size.depot) take(magazine);
    size.depot.clear();
  }
  co_await return_all_to_tree(cpu, std::move(parked));
}

Task<std::optional<std::uint64_t>> IovaAllocator::allocate_below(CpuPort& cpu, std::uint64_t pages,
                                                                 std::uint64_t last_page) {
  const unsigned order = order_of(pages);
  if (order < kCachedOrders) {
    SizeClass& size = sizes_[order];
    const auto page = take_cached(size, size.cpus[cpu.id().value() % size.cpus.size()], last_page);
    if (page) {
      ++counters_.cached_allocations;
      co_await cpu.charge(CostId::IovaAllocCached);
      co_return page;
    }
    pages = std::bit_ceil(pages);  // so that any range of this size class can serve the next request
  }
  co_await cpu.acquire(tree_lock_);
  const auto page = take_from_tree(pages, last_page);
  co_await cpu.charge(CostId::IovaAllocTree);
  cpu.release(tree_lock_);
  if (page) ++counters_.tree_allocations;
  co_return page;
}

Task<std::optional<Iova>> IovaAllocator::allocate(CpuPort& cpu, std::uint64_t pages) {
  if (pages == 0 || pages > shape_.last_page) co_return std::nullopt;
  auto page = co_await allocate_below(cpu, pages, shape_.preferred_last_page);
  if (!page) page = co_await allocate_below(cpu, pages, shape_.last_page);
  if (!page) {
    co_await empty_caches_into_tree(cpu);
    page = co_await allocate_below(cpu, pages, shape_.last_page);
  }
  if (!page) co_return std::nullopt;
  co_return Dfn(*page).address();
}

// Makes room in the magazines of a CPU: a full one goes to the depot, or back to the tree when the depot is full.
Task<void> IovaAllocator::exchange_full(CpuPort& cpu, SizeClass& size, CpuCache& cache) {
  co_await cpu.acquire(depot_lock_);
  Magazine overflow;
  if (is_full(cache.loaded)) {  // else another task of this CPU has made room meanwhile
    Magazine full = std::exchange(cache.loaded, Magazine{});
    if (size.depot.size() < shape_.depot_magazines)
      size.depot.push_back(std::move(full));
    else
      overflow = std::move(full);
  }
  cpu.release(depot_lock_);
  if (!overflow.empty()) co_await return_all_to_tree(cpu, std::move(overflow));
}

Task<void> IovaAllocator::free(CpuPort& cpu, Iova first, std::uint64_t pages) {
  const std::uint64_t page = Dfn(first).value();
  const unsigned order = order_of(pages);
  if (order < kCachedOrders) {
    SizeClass& size = sizes_[order];
    CpuCache& cache = size.cpus[cpu.id().value() % size.cpus.size()];
    while (!put_cached(cache, page)) co_await exchange_full(cpu, size, cache);
    ++counters_.cached_frees;
    co_await cpu.charge(CostId::IovaFreeCached);
    co_return;
  }
  co_await cpu.acquire(tree_lock_);
  return_to_tree(page);
  ++counters_.tree_frees;
  co_await cpu.charge(CostId::IovaFreeTree);
  cpu.release(tree_lock_);
}

}  // namespace iommu::guest
