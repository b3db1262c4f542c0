// SPDX-License-Identifier: Apache-2.0
// What a timed IOMMU is made of. Each member is a scenario key of the same name; the comment gives unit, range and
// meaning.
//
// Unloaded closed forms, which the tests of iommu_unit check to the picosecond (`read` is the memory system's latency):
//   hit                   lookup_latency
//   miss, context known   lookup_latency + walk_start + n * (table_read_issue + read)        n table reads and marks
//   context unknown       adds context_start + m * (table_read_issue + read)     m device-table reads
//   in two tiers          adds first_level_latency + port_tlb_latency, as far as these exist, and behind them
//                         2 * message_latency
// Saturated rates: hits lookup_ports / lookup_interval; walks min(1 / walk_interval, walkers / walk duration).
#pragma once

#include <array>
#include <cstdint>

#include "sim/base/units.hpp"
#include "sim/translation/cache.hpp"

namespace iommu {

enum class Ordering : std::uint8_t {
  InOrder,     // responses leave in the order of arrival: a miss blocks every hit behind it
  OutOfOrder,  // hits may overtake misses (see hit_under_miss), and misses each other
};

struct IommuTiming {
  Picoseconds lookup_latency = 2_ns;   // >= 0: from the start of a lookup to hit or miss
  Picoseconds lookup_interval = 1_ns;  // >= 0: between the starts of lookups on one port; 0: unlimited
  Picoseconds first_level_latency{};   // >= 0: lookup of the first-level TLB, before the next one on a miss
  Picoseconds port_tlb_latency{};      // >= 0: lookup of the port's main TLB, before the shared part on a miss
  Picoseconds message_latency{};       // >= 0: between a port and the shared part, each way
  Picoseconds walk_start = 5_ns;       // >= 0: from having a walker to its first read; walk-cache lookup included
  Picoseconds walk_interval{};         // >= 0: between the starts of two walks of the unit; 0: limited by walkers only
  Picoseconds context_start = 5_ns;    // >= 0: from having a context fetcher to its first read
  Picoseconds table_read_issue{};      // >= 0: before each table read: next address, path to the memory port
};

struct InvalidationTiming {
  Picoseconds fetch_start = 10_ns;  // >= 0: from the doorbell's arrival to the first descriptor read, when idle
  Picoseconds decode = 5_ns;        // >= 0: per descriptor, after its fetch
  Picoseconds scan = 50_ns;         // >= 0: per invalidation, finding and removing what it covers
  Picoseconds scan_entry{};         // >= 0: added per cache entry examined; caches in parallel, the largest counts
  Bytes fetch_bytes{16};  // 16 … 64, power of two: read from memory at once; more than one descriptor is a burst
};

// Which DMA a fence waits for besides the translations in the unit.
enum class DrainPolicy : std::uint8_t {
  TranslationsOnly,    // requests in the unit; DMA already translated may land after the fence
  TranslationsAndDma,  // also DMA between the unit and memory
};

struct IommuParameters {
  IommuTiming timing;
  InvalidationTiming invalidation;
  DrainPolicy drain = DrainPolicy::TranslationsAndDma;

  Ordering ordering = Ordering::OutOfOrder;
  std::uint32_t hit_under_miss = ~0U;  // 0 … : unanswered older misses a hit may overtake; OutOfOrder only
  std::uint32_t request_queue =
      64;                           // 1 …: requests that wait for a lookup or a miss entry; full: can_accept() is false
  std::uint32_t lookup_ports = 1;   // 1 … 16: lookups that may start in one lookup_interval
  std::uint32_t miss_entries = 32;  // 1 … 65535: pages being missed on; requests to the same page share one
  std::uint32_t walkers = 8;        // 1 … 4096: walks at once
  std::uint32_t context_fetchers = 2;  // 1 … 4096: device-table lookups at once

  CacheShape iotlb{.entries = 128, .ways = 8};
  CacheShape iotlb_large{};  // pages of 2 MiB and more; no entries: they share `iotlb`
  // A unit in two tiers: each port has TLBs and slots of its own; contexts, IOTLB and walks are shared behind them.
  CacheShape first_level{};             // a small TLB per port, looked up first; no entries: none
  CacheShape port_tlb{};                // the main TLB of a port; no entries: none
  std::uint32_t ports = 1;              // 1 … 256
  std::uint32_t translation_slots = 0;  // 0 … 65535: per port, translations asked for behind its TLBs; 0: no limit
  std::uint32_t prefetch_pages = 0;     // 0 … 8: pages behind a missed one that are walked ahead, while walkers idle
  CacheShape context_cache{.entries = 64, .ways = 4};
  static constexpr std::size_t kLevels = 5;
  // Pointers to tables of a level, per stage: index 0 holds pointers to leaf tables.
  std::array<CacheShape, kLevels> stage1_walk_cache{};
  std::array<CacheShape, kLevels> stage2_walk_cache{};
  CacheShape stage2_leaf_cache{};  // whole stage-2 translations, for the addresses of stage-1 tables

  // Why the parameters cannot be, in words for a scenario error; null when they can.
  [[nodiscard]] const char* problem() const;
};

}  // namespace iommu
