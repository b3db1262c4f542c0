// SPDX-License-Identifier: Apache-2.0
#include "sim/app/platform_parameters.hpp"

#include <stdexcept>
#include <string>

namespace iommu {

namespace {

// Scenario values are checked against ranges that fit.
std::uint32_t u32(const scenario::Row<std::uint64_t>& row) { return static_cast<std::uint32_t>(row.value); }

ReturnOrder return_order(scenario::ReturnSequence sequence) {
  return sequence == scenario::ReturnSequence::InOrder ? ReturnOrder::InOrder : ReturnOrder::OutOfOrder;
}

void require(const char* problem, const char* section) {
  if (problem != nullptr) throw std::runtime_error(std::string("platform.") + section + ": " + problem);
}

CacheShape shape(const scenario::CachePlatform& cache) {
  return {.entries = u32(cache.entries),
          .ways = u32(cache.ways),
          .replacement = cache.replacement.value,
          .index = cache.index.value};
}

// The last index of a walk cache has no key: no family has six levels.
void fill_walk_cache(std::array<CacheShape, IommuParameters::kLevels>& shapes,
                     const scenario::WalkCachePlatform& platform) {
  static_assert(scenario::kWalkCacheReaches + 1 == IommuParameters::kLevels);
  for (std::size_t i = 0; i < scenario::kWalkCacheReaches; ++i) shapes[i] = shape(platform[i]);
}

LinkParameters link_parameters(const scenario::PciePlatform& p) {
  LinkParameters link;
  link.generation = u32(p.generation);
  link.lanes = u32(p.lanes);
  link.max_payload = p.max_payload.value;
  link.max_read_request = p.max_read_request.value;
  link.read_completion_boundary = p.read_completion_boundary.value;
  link.dllp_per_mille = u32(p.dllp_per_mille);
  return link;
}

}  // namespace

MemoryParameters memory_parameters(const scenario::MemoryPlatform& platform) {
  MemoryParameters p;
  p.llc_hit = platform.llc_hit.value;
  p.dram = platform.dram.value;
  p.outstanding = u32(platform.outstanding);
  p.bytes_per_second = platform.bandwidth.value.value() / 8;
  p.llc_size = platform.llc_size.value;
  p.llc_ways = u32(platform.llc_ways);
  p.write_policy[static_cast<std::size_t>(AccessKind::Data)] =
      platform.dma_writes_allocate.value ? LlcPolicy::Allocate : LlcPolicy::Bypass;
  require(p.problem(), "memory");
  return p;
}

RootPortParameters root_port_parameters(const scenario::PciePlatform& platform) {
  RootPortParameters p;
  p.link = link_parameters(platform);
  p.propagation = platform.propagation.value;
  p.posted = {.headers = u32(platform.posted_headers), .data = u32(platform.posted_data)};
  p.nonposted_headers = u32(platform.nonposted_headers);
  p.write_translations = u32(platform.write_translations);
  p.read_translations = u32(platform.read_translations);
  p.read_translation_order = return_order(platform.read_translation_order.value);
  p.completion_order = return_order(platform.completion_order.value);
  p.reads_pass_writes = platform.reads_pass_writes.value ? ReadsPassWrites::Yes : ReadsPassWrites::No;
  require(p.link.problem(), "pcie");
  require(p.problem(), "pcie");
  return p;
}

EndpointParameters endpoint_parameters(const scenario::PciePlatform& platform, Picoseconds switch_latency) {
  EndpointParameters p;
  p.tags = u32(platform.tags);
  p.read_interval = platform.read_interval.value;
  p.write_interval = platform.write_interval.value;
  const Credits room{.headers = u32(platform.completion_headers), .data = u32(platform.completion_data)};
  if ((room.headers == 0) != (room.data == 0))
    throw std::runtime_error("platform.pcie: completion_headers and completion_data are both 0 (no limit) or neither");
  if (room.headers != 0) p.completion_buffer = room;
  p.switch_latency = switch_latency;
  require(p.problem(link_parameters(platform)), "pcie");
  return p;
}

IommuParameters iommu_parameters(const scenario::IommuPlatform& platform) {
  IommuParameters p;
  p.timing = {.lookup_latency = platform.lookup_latency.value,
              .lookup_interval = platform.lookup_interval.value,
              .first_level_latency = platform.first_level_latency.value,
              .port_tlb_latency = platform.port_tlb_latency.value,
              .message_latency = platform.message_latency.value,
              .walk_start = platform.walk_start.value,
              .walk_interval = platform.walk_interval.value,
              .context_start = platform.context_start.value,
              .table_read_issue = platform.table_read_issue.value};
  p.invalidation = {.fetch_start = platform.fetch_start.value,
                    .decode = platform.decode.value,
                    .scan = platform.scan.value,
                    .scan_entry = platform.scan_entry.value,
                    .fetch_bytes = platform.fetch_bytes.value};
  p.drain = platform.drain.value == scenario::Drain::Translations ? DrainPolicy::TranslationsOnly
                                                                  : DrainPolicy::TranslationsAndDma;
  p.ordering = platform.ordering.value == scenario::RequestOrder::InOrder ? Ordering::InOrder : Ordering::OutOfOrder;
  p.hit_under_miss = u32(platform.hit_under_miss);
  p.request_queue = u32(platform.request_queue);
  p.lookup_ports = u32(platform.lookup_ports);
  p.miss_entries = u32(platform.miss_entries);
  p.walkers = u32(platform.walkers);
  p.context_fetchers = u32(platform.context_fetchers);
  p.iotlb = shape(platform.iotlb);
  p.iotlb_large = shape(platform.iotlb_large);
  p.first_level = shape(platform.first_level);
  p.port_tlb = shape(platform.port_tlb);
  p.translation_slots = u32(platform.translation_slots);
  p.prefetch_pages = u32(platform.prefetch_pages);
  p.context_cache = shape(platform.context_cache);
  fill_walk_cache(p.stage1_walk_cache, platform.stage1_walk_cache);
  fill_walk_cache(p.stage2_walk_cache, platform.stage2_walk_cache);
  p.stage2_leaf_cache = shape(platform.stage2_leaf_cache);
  require(p.problem(), "iommu");
  return p;
}

MmioParameters mmio_parameters(const scenario::IommuPlatform& platform) {
  return {.write_latency = platform.register_write_latency.value, .read_latency = Picoseconds(0)};
}

UnitFeatures unit_features(const scenario::IommuPlatform& platform) {
  UnitFeatures f;
  f.host_address_bits = u32(platform.host_address_bits);
  f.input_address_bits = u32(platform.input_address_bits);
  f.coherent_walks = platform.coherent_walks.value;
  f.command_ring_entries = u32(platform.command_ring_entries);
  return f;
}

NicParameters nic_parameters(const scenario::NicWorkload& workload, Picoseconds doorbell_latency) {
  NicParameters p;
  p.descriptor_size = workload.descriptor_size;
  p.completion_size = workload.completion_size;
  p.fetch_batch = static_cast<std::uint32_t>(workload.fetch_batch);
  p.prefetch = static_cast<std::uint32_t>(workload.prefetch);
  p.payloads_in_flight = static_cast<std::uint32_t>(workload.payloads_in_flight);
  p.completion_batch = static_cast<std::uint32_t>(workload.completion_batch);
  p.receive_buffer = static_cast<std::uint32_t>(workload.receive_buffer);
  p.doorbell_latency = doorbell_latency;
  p.interrupt_frames = static_cast<std::uint32_t>(workload.interrupt_frames);
  p.interrupt_delay = workload.interrupt_delay;
  return p;
}

guest::NicDriverSetting nic_driver_setting(const scenario::NicWorkload& workload) {
  guest::NicDriverSetting s;
  s.kind = workload.direction == scenario::NicDirection::Receive ? NicQueueKind::Receive : NicQueueKind::Transmit;
  s.ring_entries = static_cast<std::uint32_t>(workload.ring_entries);
  s.buffer_size = workload.buffer_size;
  s.packet_size = workload.packet_size;
  s.map_batch = static_cast<std::uint32_t>(workload.map_batch);
  if (workload.rate) s.packet_interval = transfer_time(workload.packet_size, *workload.rate);
  s.descriptor_size = workload.descriptor_size;
  s.completion_size = workload.completion_size;
  return s;
}

}  // namespace iommu
