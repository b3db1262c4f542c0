// SPDX-License-Identifier: Apache-2.0
// IOVA allocation as Linux does it: a tree filled from the top of the 32-bit space downwards, in front of it per-CPU
// magazines of freed ranges by size, and between the two a depot of full magazines per size.
// [Linux 6.1 drivers/iommu/iova.c, alloc_iova_fast, free_iova_fast and the magazine cache: behaviour, not code]
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <vector>

#include "sim/base/address.hpp"
#include "sim/base/cpu_port.hpp"
#include "sim/base/task.hpp"

namespace iommu::guest {

struct PageRange {
  std::uint64_t first = 0;
  std::uint64_t pages = 0;
};

struct IovaAllocatorShape {
  std::uint64_t first_page = 1;                          // page 0 is never handed out
  std::uint64_t last_page = (1ULL << 36) - 1;            // of the whole space
  std::uint64_t preferred_last_page = (1ULL << 20) - 1;  // tried first: addresses below 4 GiB need no 64-bit header
  std::uint32_t magazine_entries = 127;                  // [Linux 6.1 IOVA_MAG_SIZE]
  std::uint32_t depot_magazines = 32;                    // per size [Linux 6.1 MAX_GLOBAL_MAGS]
  std::vector<PageRange> reserved{};                     // disjoint; never handed out (interrupt messages)
};

class IovaAllocator {
 public:
  // Ranges of 2^0 to 2^5 pages are cached. [Linux 6.1 IOVA_RANGE_CACHE_MAX_SIZE = 6]
  static constexpr unsigned kCachedOrders = 6;

  IovaAllocator(IovaAllocatorShape shape, unsigned cpus);

  // A range aligned to its size rounded up to a power of two; nullopt: space exhausted. `cpu`'s id is below `cpus`.
  Task<std::optional<Iova>> allocate(CpuPort& cpu, std::uint64_t pages);
  Task<void> free(CpuPort& cpu, Iova first, std::uint64_t pages);

  struct Counters {
    std::uint64_t cached_allocations = 0;
    std::uint64_t tree_allocations = 0;
    std::uint64_t cached_frees = 0;
    std::uint64_t tree_frees = 0;
  };
  [[nodiscard]] const Counters& counters() const { return counters_; }

 private:
  using Magazine = std::vector<std::uint64_t>;  // first pages
  struct CpuCache {
    Magazine loaded;
    Magazine previous;
  };
  struct SizeClass {
    std::vector<CpuCache> cpus;
    std::vector<Magazine> depot;
  };

  [[nodiscard]] bool is_full(const Magazine& m) const { return m.size() >= shape_.magazine_entries; }
  static std::optional<std::uint64_t> pop(Magazine& magazine, std::uint64_t last_page);
  std::optional<std::uint64_t> take_cached(SizeClass& size, CpuCache& cache, std::uint64_t last_page);
  // False: no room; the caller exchanges magazines.
  bool put_cached(CpuCache& cache, std::uint64_t page);
  std::optional<std::uint64_t> take_from_tree(std::uint64_t pages, std::uint64_t last_page);
  std::optional<std::uint64_t> search_down(std::uint64_t pages, std::uint64_t from, std::uint64_t last_page) const;
  void return_to_tree(std::uint64_t page);
  Task<void> return_all_to_tree(CpuPort& cpu, Magazine pages);
  Task<void> empty_caches_into_tree(CpuPort& cpu);
  Task<void> exchange_full(CpuPort& cpu, SizeClass& size, CpuCache& cache);
  Task<std::optional<std::uint64_t>> allocate_below(CpuPort& cpu, std::uint64_t pages, std::uint64_t last_page);

  IovaAllocatorShape shape_;
  std::array<SizeClass, kCachedOrders> sizes_;
  // Allocated ranges: first page to number of pages.
  std::map<std::uint64_t, std::uint64_t> tree_;
  // Searches start below the range handed out last, so that addresses march downwards.
  std::uint64_t search_from_ = 0;
  std::uint64_t preferred_search_from_ = 0;
  SpinLock tree_lock_{"iova tree"};
  SpinLock depot_lock_{"iova depot"};
  Counters counters_;
};

}  // namespace iommu::guest
