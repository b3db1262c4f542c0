// SPDX-License-Identifier: Apache-2.0
#include "sim/app/run_metrics.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <string>
#include <string_view>
#include <tuple>

#include "sim/scenario/schema.hpp"

namespace iommu {

namespace {

double per(double amount, double of) { return of == 0 ? 0 : amount / of; }
double as_double(std::uint64_t n) { return static_cast<double>(n); }

// What the guests' vCPUs did, all together.
struct CpuTotals {
  VcpuTimes times;
  CostCounts counts;
  std::size_t vcpus = 0;
};

CpuTotals cpu_totals(const Machine& machine) {
  CpuTotals totals;
  for (const auto& guest : machine.guests())
    for (const Vcpu* cpu : guest->cpus()) {
      const VcpuTimes times = cpu->times();
      totals.times.charged += times.charged;
      totals.times.spinning += times.spinning;
      totals.times.polling += times.polling;
      for (const CostName& cost : kCostNames) totals.counts.add(cost.id, cpu->counts()[cost.id]);
      ++totals.vcpus;
    }
  return totals;
}

void set_io(RunResult& r, const IoTotals& io, Picoseconds measured) {
  const double seconds = to_seconds(measured);
  r.set("io.count", as_double(io.ios));
  r.set("io.rate", per(as_double(io.ios), seconds));
  r.set_latency("io.latency.mean", "io.latency.p50", "io.latency.p99", io.latency);
  r.set("time.measured", to_ns(measured));
  r.set("dma.throughput", per(as_double(io.payload_bytes) * 8e-9, seconds));
}

void set_dma(RunResult& r, const EndpointStatistics& dma) {
  r.set("dma.transfers", as_double(dma.operations));
  r.set("dma.bytes", as_double(dma.bytes));
  r.set("dma.faults", as_double(dma.faulted));
  r.set_latency("dma.latency.mean", "dma.latency.p50", "dma.latency.p99", dma.latency);
}

void set_translation(RunResult& r, const IommuStatistics& s, Picoseconds measured) {
  r.set("iotlb.lookups", as_double(s.lookups));
  r.set("iotlb.misses", as_double(s.misses));
  r.set("iotlb.miss_ratio", per(as_double(s.misses), as_double(s.lookups)));
  r.set("iotlb.merged", as_double(s.merges));
  r.set("walk.count", as_double(s.walks));
  r.set("walk.reads_per_miss", s.reads_per_miss.mean());
  r.set("walk.reads_max", as_double(s.reads_per_miss.most()));
  r.set("walk.rate", per(as_double(s.walks), to_seconds(measured)));
  r.set("walk.fills_dropped", as_double(s.iotlb.fills_dropped));
  r.set({"walk.reads", "context"}, as_double(s.context_reads_per_miss.sum()));
  r.set({"walk.reads", "stage1"}, as_double(s.stage1_reads_per_miss.sum()));
  r.set({"walk.reads", "stage2"}, as_double(s.stage2_reads_per_miss.sum()));
  r.set_latency("miss.cost.mean", "miss.cost.p50", "miss.cost.p99", s.miss_cost);
  r.set("miss.cost.queue", s.miss_queue.mean_ps() / 1000);
  r.set("miss.cost.context", s.miss_context.mean_ps() / 1000);
  r.set("miss.cost.stage1", s.miss_stage1.mean_ps() / 1000);
  r.set("miss.cost.stage2", s.miss_stage2.mean_ps() / 1000);
  r.set("miss.cost.memory", s.miss_memory.mean_ps() / 1000);
}

// Only where the unit walks ahead of demand.
void set_prefetch(RunResult& r, const Machine& machine, const IommuStatistics& s) {
  const bool has_own_unit = !scenario::own_unit(machine.strategy().kind).empty();  // flat-002
  if (machine.scenario().platform.iommu.prefetch_pages.value == 0 || has_own_unit) return;
  r.set("prefetch.translations", as_double(s.prefetched));
  r.set("prefetch.used", as_double(s.prefetch_used));
}

CacheCounts sum_of(const std::array<CacheCounts, 5>& levels) {
  CacheCounts sum;
  for (const CacheCounts& level : levels) {
    sum.hits += level.hits;
    sum.misses += level.misses;
  }
  return sum;
}

void set_caches(RunResult& r, const IommuStatistics& s) {
  const std::array<CacheCounts, kCacheNames.size()> caches{s.contexts, sum_of(s.stage1_walk_cache),
                                                           sum_of(s.stage2_walk_cache), s.stage2_leaf_cache, s.iotlb};
  for (std::size_t i = 0; i < caches.size(); ++i) {
    r.set({"cache.lookups", kCacheNames[i]}, as_double(caches[i].hits + caches[i].misses));
    r.set({"cache.hits", kCacheNames[i]}, as_double(caches[i].hits));
  }
}

void set_invalidation(RunResult& r, const IommuStatistics& s, const Histogram& fence_wait, double ios) {
  const InvalidationCounts& i = s.invalidation;
  r.set("invalidation.commands", as_double(i.commands));
  r.set("invalidation.commands_per_io", per(as_double(i.commands), ios));
  r.set("invalidation.bytes", as_double(i.bytes));
  r.set("invalidation.fence_wait.mean", fence_wait.mean_ps() / 1000);
  r.set("invalidation.fence_wait.p99", to_ns(fence_wait.percentile(0.99)));
  r.set("invalidation.entries_removed", as_double(s.iotlb.erased));
  r.set("invalidation.induced_misses", as_double(i.induced_misses));
  for (std::size_t kind = 0; kind < kInvalidationClasses; ++kind)
    r.set({"invalidation.commands", kCommandKinds[kind]}, as_double(i.scopes[kind]));
  r.set({"invalidation.commands", "fence"}, as_double(i.fences));
}

// In the order of kCommandKinds.
std::array<std::uint64_t, kCommandKinds.size()> by_kind(const xen::InvalidationCounters& c) {
  return {c.context,      c.process_context, c.iotlb_page,      c.iotlb_domain,
          c.iotlb_global, c.device_tlb,      c.interrupt_entry, c.fence};
}

// Of guests with a virtio-iommu, if there are any.
void set_virtio(RunResult& r, const Machine& machine) {
  xen::VirtioIommuCounters sum;
  bool has_any = false;
  for (const auto& guest : machine.guests()) {
    const auto c = guest->strategy().counters().virtio;
    if (!c) continue;
    has_any = true;
    for (std::size_t i = 0; i < sum.requests.size(); ++i) sum.requests[i] += c->requests[i];
    sum.refused += c->refused;
  }
  if (!has_any) return;
  static_assert(std::tuple_size_v<decltype(sum.requests)> == kVirtioRequestNames.size());
  // What is not part of the standard, only where it was asked for.
  const bool binds = machine.strategy().mapping == scenario::VirtioMapping::Tables;
  const std::size_t types = binds ? sum.requests.size() : virtio::kFirstProposedRequest;
  for (std::size_t i = 0; i < types; ++i)
    r.set({"virtio.requests", kVirtioRequestNames[i]}, as_double(sum.requests[i]));
  // The driver does not look at them, but whoever reads the report must.
  if (sum.refused != 0)
    r.failures.push_back(std::to_string(sum.refused) + " requests to the virtio-iommu were refused");
}

// Only of what a strategy asks for, so that others' reports do not grow with every proposal.
void set_domain_tags(RunResult& r, const Machine& machine) {
  if (machine.strategy().kind != scenario::StrategyKind::PvIommu) return;
  const xen::PhysicalUnit::TagCounters tags = machine.domain_tags();
  r.set({"pv.domain_tags", "peak"}, as_double(tags.peak));
  r.set({"pv.domain_tags", "refused"}, as_double(tags.refused));
}

void set_proposals(RunResult& r, const Machine& machine, const xen::IommuOp::Counters& h) {
  const scenario::StrategySetting& strategy = machine.strategy();
  if (strategy.batch > 1 || strategy.scatter) {
    r.set({"pv.proposals", "batch"}, as_double(h.batch));
    r.set({"pv.proposals", "batched_operations"}, as_double(h.batched_operations));
    r.set({"pv.proposals", "map_scattered"}, as_double(h.map_scattered));
  }
  const scenario::StrategySetting plain;
  if (strategy.arena_order == plain.arena_order && strategy.page_order == plain.page_order && !strategy.superpages &&
      !strategy.shatter_reserve)
    return;
  xen::TableArena::Counters arena;
  for (const auto& guest : machine.guests()) {
    if (!guest->domain().pv || !guest->domain().pv->arena) continue;
    const xen::TableArena::Counters& c = guest->domain().pv->arena->counters();
    arena.pages += c.pages;
    arena.peak += c.peak;
    arena.reserve_peak += c.reserve_peak;
    arena.refused += c.refused;
  }
  r.set({"pv.arena", "pages"}, as_double(arena.pages));
  r.set({"pv.arena", "peak"}, as_double(arena.peak));
  r.set({"pv.arena", "reserve_peak"}, as_double(arena.reserve_peak));
  r.set({"pv.arena", "refused"}, as_double(arena.refused));
}

void set_hypercalls_v3(RunResult& r, const xen::IommuOpV3::Counters& h, double ios) {
  using xen::abi_v3::Subop;
  r.set("hypervisor.hypercalls", as_double(h.total()));
  r.set("hypervisor.hypercalls_per_io", per(as_double(h.total()), ios));
  constexpr std::array kSubops{Subop::QueryCapabilities, Subop::AllocContext, Subop::FreeContext,
                               Subop::ReattachDevice,    Subop::MapPages,     Subop::UnmapPages};
  constexpr std::array<std::size_t, kSubops.size()> kNames{0, 2, 3, 4, 5, 6};  // in kHypercallNames
  for (std::size_t i = 0; i < kSubops.size(); ++i)
    r.set({"hypervisor.hypercalls", kHypercallNames[kNames[i]]}, as_double(h.of(kSubops[i])));
}

void set_hypervisor(RunResult& r, const Machine& machine, double ios) {
  strategy::StrategyCounters sum;
  std::array<std::uint64_t, kCommandKinds.size()> guest_commands{};
  std::uint64_t guest_tables = 0;
  for (const auto& guest : machine.guests()) {
    const strategy::StrategyCounters c = guest->strategy().counters();
    if (c.bounce) {
      sum.bounce = sum.bounce.value_or(strategy::BounceCounters{});
      sum.bounce->bytes_copied += c.bounce->bytes_copied;
      sum.bounce->most_slots += c.bounce->most_slots;
      sum.bounce->full += c.bounce->full;
    }
    sum.hypercalls.insert(sum.hypercalls.end(), c.hypercalls.begin(), c.hypercalls.end());
    sum.traps.doorbell += c.traps.doorbell;
    sum.traps.register_access += c.traps.register_access;
    sum.traps.table_store += c.traps.table_store;
    sum.traps.device_model += c.traps.device_model;
    if (c.protected_pages) sum.protected_pages = sum.protected_pages.value_or(0) + *c.protected_pages;
    if (c.faults) {
      sum.faults = sum.faults.value_or(xen::FaultForwarding{});
      sum.faults->forwarded += c.faults->forwarded;
      sum.faults->kept += c.faults->kept;
    }
    const auto kinds = by_kind(c.guest);
    for (std::size_t i = 0; i < kinds.size(); ++i) guest_commands[i] += kinds[i];
    guest_tables += guest->strategy().guest_table_bytes();
  }
  if (sum.bounce) {
    r.set("bounce.bytes_copied", as_double(sum.bounce->bytes_copied));
    r.set("bounce.slots_most", as_double(sum.bounce->most_slots));
    r.set("bounce.full", as_double(sum.bounce->full));
  }
  r.set("hypervisor.exits", as_double(sum.traps.total()));
  r.set("hypervisor.exits_per_io", per(as_double(sum.traps.total()), ios));
  r.set({"hypervisor.exits", "doorbell"}, as_double(sum.traps.doorbell));
  r.set({"hypervisor.exits", "register"}, as_double(sum.traps.register_access));
  r.set({"hypervisor.exits", "table_store"}, as_double(sum.traps.table_store));
  r.set({"hypervisor.exits", "device_model"}, as_double(sum.traps.device_model));
  if (sum.protected_pages) {
    r.set("hypervisor.table_stores_per_io", per(as_double(sum.traps.table_store), ios));
    r.set("guest.protected_pages", as_double(*sum.protected_pages));
  }
  for (std::size_t i = 0; i < kCommandKinds.size(); ++i)
    r.set({"guest.commands", kCommandKinds[i]}, as_double(guest_commands[i]));
  if (sum.faults && sum.faults->forwarded + sum.faults->kept != 0) {
    r.set({"guest.faults", "reported"}, as_double(sum.faults->forwarded));
    r.set({"guest.faults", "kept"}, as_double(sum.faults->kept));
  }
  r.set("memory.table_bytes", as_double(machine.xen().table_bytes() + guest_tables));

  if (machine.hypercall_v3() != nullptr) {
    set_hypercalls_v3(r, machine.hypercall_v3()->counters(), ios);
    set_domain_tags(r, machine);
    set_proposals(r, machine, {});
    return;
  }
  using xen::abi::Subop;
  const xen::IommuOp::Counters& h = machine.hypercall().counters();
  const std::uint64_t hypercalls = h.total() + sum.other_hypercalls();
  r.set("hypervisor.hypercalls", as_double(hypercalls));
  r.set("hypervisor.hypercalls_per_io", per(as_double(hypercalls), ios));
  std::map<std::string_view, std::uint64_t> others;
  for (const auto& [name, count] : sum.hypercalls) others[name] += count;
  for (const auto& [name, count] : others) r.set({"hypervisor.hypercalls", name}, as_double(count));
  constexpr std::array kSubops{Subop::QueryCapabilities, Subop::Init,     Subop::AllocContext, Subop::FreeContext,
                               Subop::ReattachDevice,    Subop::MapPages, Subop::UnmapPages};
  for (std::size_t i = 0; i < kSubops.size(); ++i)
    r.set({"hypervisor.hypercalls", kHypercallNames[i]}, as_double(h.of(kSubops[i])));
  r.set({"hypervisor.hypercalls", "flush"}, as_double(h.flush_context));
  set_domain_tags(r, machine);
  set_proposals(r, machine, h);
}

void set_guest(RunResult& r, const Machine& machine) {
  Guest::DmaApiTotals sum;
  for (const auto& guest : machine.guests()) {
    const Guest::DmaApiTotals d = guest->dma_api();
    sum.maps += d.maps;
    sum.unmaps += d.unmaps;
    sum.flushes += d.flushes;
    sum.failures += d.failures;
    sum.flush_time.merge(d.flush_time);
  }
  r.set("guest.maps", as_double(sum.maps));
  r.set("guest.unmaps", as_double(sum.unmaps));
  r.set("guest.flushes", as_double(sum.flushes));
  r.set("guest.flush_time.mean", sum.flush_time.mean_ps() / 1000);
  const bool tolerated = machine.scenario().measure.tolerate_failures;
  if (tolerated) r.set("guest.failures", as_double(sum.failures));
  if (sum.failures != 0 && !tolerated)
    r.failures.push_back(std::to_string(sum.failures) + " calls of the DMA API failed");
}

void set_cpu(RunResult& r, const Machine& machine, Picoseconds measured, double ios) {
  CpuTotals cpu = cpu_totals(machine);
  const std::uint64_t hertz = machine.scenario().platform.cpu.frequency.value.value();
  const auto cycles_per_io = [&](Picoseconds time) { return per(cycles(time, hertz), ios); };
  const Picoseconds all = measured * static_cast<std::int64_t>(cpu.vcpus);
  r.set("cpu.cycles_per_io", cycles_per_io(cpu.times.busy()));
  r.set("cpu.utilisation", per(static_cast<double>(cpu.times.busy().value()), static_cast<double>(all.value())));
  r.set("lock.contended", as_double(cpu.counts[CostId::LockHandover]));
  for (const CostName& cost : kCostNames) {
    if (machine.vifs().empty() && std::ranges::find(kMemorySharingCosts, cost.id) != kMemorySharingCosts.end())
      continue;
    const Picoseconds row = machine.scenario().platform.costs[cost.id].time;
    r.set({"cpu.cycles_per_io", cost.key}, cycles_per_io(row * static_cast<std::int64_t>(cpu.counts[cost.id])));
  }
  // The hand-over of a lock is a cost row already: rows and waits together are the whole.
  const Picoseconds handover = machine.scenario().platform.costs[CostId::LockHandover].time *
                               static_cast<std::int64_t>(cpu.counts[CostId::LockHandover]);
  r.set({"cpu.wait_cycles_per_io", "locks"}, cycles_per_io(cpu.times.spinning - handover));
  r.set({"cpu.wait_cycles_per_io", "fences"}, cycles_per_io(cpu.times.polling));
  r.set({"cpu.wait_cycles_per_io", "idle"}, cycles_per_io(all - cpu.times.busy()));
  if (!machine.device_models().empty()) {
    Picoseconds busy;
    for (const Vcpu* thread : machine.device_models()) {
      busy += thread->times().busy();
      for (const CostName& cost : kCostNames) cpu.counts.add(cost.id, thread->counts()[cost.id]);
    }
    r.set("cpu.emulation_cycles_per_io", cycles_per_io(busy));
  }
  r.set_costs(machine.scenario().platform.costs, cpu.counts);
}

void set_memory(RunResult& r, const MemoryCounts& m) {
  r.set("memory.reads", as_double(m.reads));
  r.set("memory.llc_hit_ratio", per(as_double(m.llc_hits), as_double(m.reads + m.writes)));
}

void set_trace(RunResult& r, const Machine& machine) {
  RecordedInvalidations sum;
  std::uint64_t skipped = 0;
  bool has_trace = false;
  for (const auto& trace : machine.traces()) {
    if (!trace) continue;
    has_trace = true;
    sum.context += trace->recorded.context;
    sum.iotlb_page += trace->recorded.iotlb_page;
    sum.iotlb_domain += trace->recorded.iotlb_domain;
    sum.iotlb_global += trace->recorded.iotlb_global;
    sum.device_tlb += trace->recorded.device_tlb;
    sum.interrupt_entry += trace->recorded.interrupt_entry;
    sum.fence += trace->recorded.fence;
    for (const std::uint64_t dropped : trace->dropped) skipped += dropped;
  }
  if (!has_trace) return;
  r.set("trace.skipped", as_double(skipped));
  r.set({"trace.recorded", "context"}, as_double(sum.context));
  r.set({"trace.recorded", "process_context"}, 0);  // the trace format has no such event
  r.set({"trace.recorded", "iotlb_page"}, as_double(sum.iotlb_page));
  r.set({"trace.recorded", "iotlb_domain"}, as_double(sum.iotlb_domain));
  r.set({"trace.recorded", "iotlb_global"}, as_double(sum.iotlb_global));
  r.set({"trace.recorded", "device_tlb"}, as_double(sum.device_tlb));
  r.set({"trace.recorded", "interrupt_entry"}, as_double(sum.interrupt_entry));
  r.set({"trace.recorded", "fence"}, as_double(sum.fence));
}

void set_warden(RunResult& r, const Machine& machine) {
  const strategy::WardenReport w = machine.warden().report();
  r.warden = {w.checked, w.stale, w.violations, to_ns(w.exposure_max)};
  if (machine.divides_requester_ids()) {
    r.warden.shared = {w.strayed, w.foreign};
    r.set("warden.strayed", as_double(w.strayed));
    r.set("warden.foreign", as_double(w.foreign));
  }
  r.set("warden.checked", as_double(w.checked));
  r.set("warden.stale", as_double(w.stale));
  r.set("warden.violations", as_double(w.violations));
  r.set("warden.exposure_max", to_ns(w.exposure_max));
  r.set("warden.exposure_mean", w.exposure_mean_ps / 1000);
  if (w.violations != 0)
    r.failures.push_back("warden: " + std::to_string(w.violations) + " violations, the first: " +
                         (w.first_violation ? w.first_violation->describe() : std::string("unknown")));
}

// Packets of a virtual interface are I/Os, though no device moves them.
void add_vif(IoTotals& totals, const strategy::VirtualInterfaceStatistics& s) {
  totals.ios += s.packets + s.failed;
  totals.failed += s.failed;
  totals.payload_bytes += s.bytes;
  totals.latency.merge(s.latency);
}

}  // namespace

void set_stalls(RunResult& r, const IommuStatistics& s) {
  if (s.stalls.wait.count() == 0) return;
  r.set("stall.transactions", as_double(s.stalls.wait.count()));
  r.set("stall.terminated", as_double(s.stalls.terminated));
  r.set("stall.time.mean", s.stalls.wait.mean_ps() / 1000);
  r.set("stall.time.p99", to_ns(s.stalls.wait.percentile(0.99)));
}

RunResult collect_metrics(const Machine& machine, Picoseconds measured) {
  RunResult r;
  IoTotals io;
  for (const auto& guest : machine.guests()) guest->add_to(io);
  for (const auto& vif : machine.vifs()) add_vif(io, vif->statistics());
  const auto ios = as_double(io.ios);
  const IommuStatistics translation = machine.iommu_statistics();
  set_io(r, io, measured);
  set_dma(r, machine.endpoint_statistics());
  set_translation(r, translation, measured);
  r.set("walk.reads_cold", as_double(machine.most_reads_of_a_walk()));
  set_prefetch(r, machine, translation);
  set_stalls(r, translation);
  set_caches(r, translation);
  set_invalidation(r, translation, machine.fence_wait(), ios);
  set_hypervisor(r, machine, ios);
  set_virtio(r, machine);
  set_guest(r, machine);
  set_cpu(r, machine, measured, ios);
  set_memory(r, machine.memory_counts());
  set_trace(r, machine);
  set_warden(r, machine);
  const bool tolerated = machine.scenario().measure.tolerate_failures;
  if (tolerated) {
    r.set("io.failed", as_double(io.failed));
    r.set("devices.cut_off", as_double(machine.devices_cut_off()));
  }
  // With divided ids a device's requests fail in the tables of another domain: what the scenario asks to see.
  if (io.failed != 0 && !tolerated && !machine.divides_requester_ids())
    r.failures.push_back(std::to_string(io.failed) + " I/Os failed");
  for (const auto& guest : machine.guests())
    if (guest->domain().crashed) r.failures.push_back("Xen crashed domain '" + guest->setting().name + "'");
  return r;
}

}  // namespace iommu
