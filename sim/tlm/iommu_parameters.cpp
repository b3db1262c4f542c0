// SPDX-License-Identifier: Apache-2.0
#include "sim/tlm/iommu_parameters.hpp"

#include <algorithm>
#include <bit>

namespace iommu {

namespace {

bool is_negative(const IommuTiming& t, const InvalidationTiming& i) {
  constexpr Picoseconds kZero{};
  return t.lookup_latency < kZero || t.lookup_interval < kZero || t.first_level_latency < kZero ||
         t.port_tlb_latency < kZero || t.message_latency < kZero || t.walk_start < kZero || t.walk_interval < kZero ||
         t.context_start < kZero || t.table_read_issue < kZero || i.fetch_start < kZero || i.decode < kZero ||
         i.scan < kZero || i.scan_entry < kZero;
}

}  // namespace

const char* IommuParameters::problem() const {
  if (is_negative(timing, invalidation)) return "IOMMU latencies cannot be negative";
  const std::uint64_t fetch = invalidation.fetch_bytes.value();
  if (fetch < 16 || fetch > 64 || !std::has_single_bit(fetch))
    return "the command fetch size must be 16, 32 or 64 bytes";
  if (request_queue == 0) return "the request queue needs at least one entry";
  if (lookup_ports == 0 || lookup_ports > 16) return "lookup ports must be 1 to 16";
  if (miss_entries == 0 || miss_entries > 65535) return "miss entries must be 1 to 65535";
  if (walkers == 0 || walkers > 4096) return "walkers must be 1 to 4096";
  if (context_fetchers == 0 || context_fetchers > 4096) return "context fetchers must be 1 to 4096";
  if (ports == 0 || ports > 256) return "ports must be 1 to 256";
  if (translation_slots > 65535) return "translation slots of a port must be at most 65535";
  if (prefetch_pages > 8) return "at most 8 pages are prefetched";
  const auto shape_is_valid = [](const CacheShape& shape) { return shape.is_valid(); };
  if (!iotlb.is_valid() || !iotlb_large.is_valid() || !first_level.is_valid() || !port_tlb.is_valid() ||
      !context_cache.is_valid() || !stage2_leaf_cache.is_valid() ||
      !std::all_of(stage1_walk_cache.begin(), stage1_walk_cache.end(), shape_is_valid) ||
      !std::all_of(stage2_walk_cache.begin(), stage2_walk_cache.end(), shape_is_valid))
    return "cache entries must be a power-of-two number of sets times the ways";
  return nullptr;
}

}  // namespace iommu
