// SPDX-License-Identifier: Apache-2.0
// What a timed IOMMU counts. Plain numbers: the report layer names them and adds units.
#pragma once

#include <array>
#include <cstdint>
#include <map>

#include "sim/base/histogram.hpp"
#include "sim/translation/iommu_core.hpp"

namespace iommu {

// A distribution of small counts: exact up to kMost, the rest together in the last bin.
class CountHistogram {
 public:
  static constexpr std::size_t kMost = 63;
  void add(std::uint64_t n) {
    ++bins_[n < kMost ? n : kMost];
    ++count_;
    sum_ += n;
  }
  void merge(const CountHistogram& other) {
    for (std::size_t n = 0; n < bins_.size(); ++n) bins_[n] += other.bins_[n];
    count_ += other.count_;
    sum_ += other.sum_;
  }
  // 0 without samples; kMost: that many or more.
  [[nodiscard]] std::size_t most() const {
    std::size_t n = kMost;
    while (n > 0 && bins_[n] == 0) --n;
    return n;
  }
  [[nodiscard]] std::uint64_t operator[](std::size_t n) const { return bins_[n]; }
  [[nodiscard]] std::uint64_t count() const { return count_; }
  [[nodiscard]] std::uint64_t sum() const { return sum_; }
  [[nodiscard]] double mean() const {
    return count_ == 0 ? 0.0 : static_cast<double>(sum_) / static_cast<double>(count_);
  }

 private:
  std::array<std::uint64_t, kMost + 1> bins_{};
  std::uint64_t count_ = 0;
  std::uint64_t sum_ = 0;
};

// Reports list faults by code, never by where their rows happen to lie in memory.
struct FaultOrder {
  bool operator()(const FaultRow* a, const FaultRow* b) const {
    return a->code != b->code ? a->code < b->code : a->name < b->name;
  }
};

struct CacheCounts {
  std::uint64_t hits = 0;
  std::uint64_t misses = 0;
  std::uint64_t fills = 0;
  std::uint64_t fills_dropped = 0;  // an invalidation overtook the walk
  std::uint64_t erased = 0;
};

// What reports tell apart among invalidation commands.
enum class InvalidationClass : std::uint8_t {
  Context,
  ProcessContext,
  IotlbPage,    // an address range
  IotlbDomain,  // a domain or one address space of it
  IotlbGlobal,
  DeviceTlb,
  InterruptEntry,
};
inline constexpr std::size_t kInvalidationClasses = 7;
[[nodiscard]] constexpr InvalidationClass class_of(const InvalidationScope& scope) {
  switch (scope.kind) {
    case InvalidationKind::Context:
      return InvalidationClass::Context;
    case InvalidationKind::ProcessContext:
      return InvalidationClass::ProcessContext;
    case InvalidationKind::DeviceTlb:
      return InvalidationClass::DeviceTlb;
    case InvalidationKind::InterruptEntry:
      return InvalidationClass::InterruptEntry;
    case InvalidationKind::Iotlb:
      break;
  }
  if (scope.range) return InvalidationClass::IotlbPage;
  return scope.domain || scope.asid ? InvalidationClass::IotlbDomain : InvalidationClass::IotlbGlobal;
}

struct InvalidationCounts {
  std::array<std::uint64_t, kInvalidationClasses> scopes{};  // by InvalidationClass
  std::uint64_t commands = 0;                                // descriptors executed, fences included
  std::uint64_t fences = 0;
  std::uint64_t errors = 0;  // commands that the core refused
  std::uint64_t bytes = 0;   // of descriptors read from memory
  std::uint64_t register_based = 0;
  // Misses on a translation that was resident until an invalidation removed it and that the walk found unchanged.
  // Software that maps the same frame again at the same address after a fence is counted as well: hardware sees no
  // difference.
  std::uint64_t induced_misses = 0;
  std::uint64_t page_responses = 0;  // answers to page requests, software's and the unit's own
  Histogram fence_wait;              // from the decoding of a fence to its status write being visible
};

struct StallCounts {
  std::uint64_t held = 0;      // faults for which a transaction waited for software
  std::uint64_t deferred = 0;  // faults that found no tag free
  std::uint64_t retried = 0;
  std::uint64_t terminated = 0;
  Histogram wait;  // of transactions that stalled: all they waited for software
};

struct IommuStatistics {
  std::uint64_t requests = 0;
  std::uint64_t lookups = 0;  // IOTLB lookups that counted: one per request that needs remapping
  std::uint64_t hits = 0;
  std::uint64_t misses = 0;  // lookups - hits: walks started, merges and permission misses
  std::uint64_t merges = 0;
  std::uint64_t permission_misses = 0;  // resident, but not for this access
  std::uint64_t bypassed = 0;
  std::array<std::uint64_t, 64> hits_by_page_lg2{};
  std::array<std::uint64_t, 64> misses_by_page_lg2{};  // by the page that the walk found
  CacheCounts iotlb;
  CacheCounts first_level;
  CacheCounts port_tlb;
  CacheCounts contexts;
  std::array<CacheCounts, 5> stage1_walk_cache{};
  std::array<CacheCounts, 5> stage2_walk_cache{};
  CacheCounts stage2_leaf_cache;

  std::uint64_t walks = 0;
  std::uint64_t prefetch_walks = 0;  // not among `walks`
  std::uint64_t prefetched = 0;      // translations that they brought
  std::uint64_t prefetch_used = 0;   // of them, those that some request was answered by
  std::uint64_t slot_waits = 0;      // requests that found no translation slot free
  std::uint64_t slot_merges = 0;     // requests that waited for the answer to another one of their port
  std::uint64_t context_fetches = 0;
  std::array<std::uint64_t, kAccessKinds> reads{};  // table reads of walks and context fetches, by AccessKind
  std::uint64_t marks = 0;                          // accessed and dirty updates
  // Per miss that started a walk: all table reads, and those of each kind.
  CountHistogram reads_per_miss;
  CountHistogram context_reads_per_miss;
  CountHistogram stage1_reads_per_miss;
  CountHistogram stage2_reads_per_miss;

  Histogram latency;     // every request, arrival to completion
  Histogram miss_cost;   // requests that started a walk: completion - arrival - an unloaded lookup
  Histogram miss_queue;  // its parts
  Histogram miss_context;
  Histogram miss_stage1;
  Histogram miss_stage2;
  Histogram miss_memory;
  Histogram merged_wait;  // the same for merged requests, which paid for no walk

  std::map<const FaultRow*, std::uint64_t, FaultOrder> faults;
  std::uint64_t faulted = 0;
  StallCounts stalls;
  InvalidationCounts invalidation;

  // Adds another unit's counts.
  void merge(const IommuStatistics& other);
};

}  // namespace iommu
