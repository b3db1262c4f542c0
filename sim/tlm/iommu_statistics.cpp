// SPDX-License-Identifier: Apache-2.0
#include "sim/tlm/iommu_statistics.hpp"

namespace iommu {

namespace {

template <std::size_t kSize>
void add(std::array<std::uint64_t, kSize>& to, const std::array<std::uint64_t, kSize>& from) {
  for (std::size_t i = 0; i < kSize; ++i) to[i] += from[i];
}

void add(CacheCounts& to, const CacheCounts& from) {
  to.hits += from.hits;
  to.misses += from.misses;
  to.fills += from.fills;
  to.fills_dropped += from.fills_dropped;
  to.erased += from.erased;
}

void add(InvalidationCounts& to, const InvalidationCounts& from) {
  add(to.scopes, from.scopes);
  to.commands += from.commands;
  to.fences += from.fences;
  to.errors += from.errors;
  to.bytes += from.bytes;
  to.register_based += from.register_based;
  to.induced_misses += from.induced_misses;
  to.page_responses += from.page_responses;
  to.fence_wait.merge(from.fence_wait);
}

void add(StallCounts& to, const StallCounts& from) {
  to.held += from.held;
  to.deferred += from.deferred;
  to.retried += from.retried;
  to.terminated += from.terminated;
  to.wait.merge(from.wait);
}

}  // namespace

void IommuStatistics::merge(const IommuStatistics& other) {
  requests += other.requests;
  lookups += other.lookups;
  hits += other.hits;
  misses += other.misses;
  merges += other.merges;
  permission_misses += other.permission_misses;
  bypassed += other.bypassed;
  add(hits_by_page_lg2, other.hits_by_page_lg2);
  add(misses_by_page_lg2, other.misses_by_page_lg2);
  add(iotlb, other.iotlb);
  add(first_level, other.first_level);
  add(port_tlb, other.port_tlb);
  add(contexts, other.contexts);
  for (std::size_t level = 0; level < stage1_walk_cache.size(); ++level) {
    add(stage1_walk_cache[level], other.stage1_walk_cache[level]);
    add(stage2_walk_cache[level], other.stage2_walk_cache[level]);
  }
  add(stage2_leaf_cache, other.stage2_leaf_cache);
  walks += other.walks;
  prefetch_walks += other.prefetch_walks;
  prefetched += other.prefetched;
  prefetch_used += other.prefetch_used;
  slot_waits += other.slot_waits;
  slot_merges += other.slot_merges;
  context_fetches += other.context_fetches;
  add(reads, other.reads);
  marks += other.marks;
  reads_per_miss.merge(other.reads_per_miss);
  context_reads_per_miss.merge(other.context_reads_per_miss);
  stage1_reads_per_miss.merge(other.stage1_reads_per_miss);
  stage2_reads_per_miss.merge(other.stage2_reads_per_miss);
  latency.merge(other.latency);
  miss_cost.merge(other.miss_cost);
  miss_queue.merge(other.miss_queue);
  miss_context.merge(other.miss_context);
  miss_stage1.merge(other.miss_stage1);
  miss_stage2.merge(other.miss_stage2);
  miss_memory.merge(other.miss_memory);
  merged_wait.merge(other.merged_wait);
  for (const auto& [row, count] : other.faults) faults[row] += count;
  faulted += other.faulted;
  add(stalls, other.stalls);
  add(invalidation, other.invalidation);
}

}  // namespace iommu
