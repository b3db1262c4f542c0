// SPDX-License-Identifier: Apache-2.0
// Every number that a run may report, declared once: name, unit, which way is better, what it means. A single metric is
// set by a name that is checked at compile time; a breakdown is a family of metrics that share a declaration and differ
// in their last part.
//
//   result.set("dma.throughput", gbit_per_second);            // a misspelt name does not compile
//   result.set({"invalidation.commands", "fence"}, n)  // a breakdown: its member is checked at run time
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sim/base/costs.hpp"

namespace iommu {

enum class Better : std::uint8_t { Neither, Higher, Lower };
[[nodiscard]] constexpr std::string_view to_string(Better b) {
  constexpr std::array<std::string_view, 3> kNames{"neither", "higher", "lower"};
  return kNames[static_cast<std::size_t>(b)];
}

// How a table prints a metric. Files always hold the shortest decimal that reads back as the same number.
enum class Digits : std::uint8_t { Integer, One, Two, Three };
// Whether the terminal's comparison shows the metric or leaves it to the files.
enum class Shown : std::uint8_t { Always, InFiles };

struct MetricRow {
  std::string_view name;
  std::string_view unit;  // "1" for a plain ratio
  Better better = Better::Neither;
  Digits digits = Digits::One;
  Shown shown = Shown::Always;
  std::string_view description;
};

// A breakdown: metrics `prefix.member`, one per member.
struct MetricFamily {
  std::string_view prefix;
  std::span<const std::string_view> members;
  std::string_view unit;
  Better better = Better::Neither;
  Digits digits = Digits::One;
  std::string_view description;
};

// clang-format off
inline constexpr std::array kMetrics{
  // I/O as the workload counts it: packets, accesses, recorded DMAs.
  MetricRow{"io.count",              "1",      Better::Neither, Digits::Integer, Shown::Always,  "I/Os completed in the measured part"},
  MetricRow{"io.rate",               "1/s",    Better::Higher,  Digits::Integer, Shown::Always,  "I/Os completed per simulated second"},
  MetricRow{"io.latency.mean",       "ns",     Better::Lower,   Digits::One,     Shown::Always,  "From the driver's submission (or the device's start) to completion, mean"},
  MetricRow{"io.latency.p50",        "ns",     Better::Lower,   Digits::One,     Shown::InFiles, "the same, median"},
  MetricRow{"io.latency.p99",        "ns",     Better::Lower,   Digits::One,     Shown::Always,  "the same, 99th percentile"},
  MetricRow{"time.measured",         "ns",     Better::Neither, Digits::Integer, Shown::InFiles, "Simulated time of the measured part"},
  MetricRow{"dma.throughput",        "Gb/s",   Better::Higher,  Digits::Two,     Shown::Always,  "Payload that devices moved, per simulated second"},
  MetricRow{"dma.transfers",         "1",      Better::Neither, Digits::Integer, Shown::InFiles, "Device-level DMA operations completed"},
  MetricRow{"dma.bytes",             "B",      Better::Neither, Digits::Integer, Shown::InFiles, "Bytes that devices moved by DMA, descriptors and completions included"},
  MetricRow{"dma.faults",            "1",      Better::Lower,   Digits::Integer, Shown::Always,  "DMA operations that the IOMMU refused in part or whole"},
  MetricRow{"dma.latency.mean",      "ns",     Better::Lower,   Digits::One,     Shown::Always,  "One DMA operation as the device sees it, mean"},
  MetricRow{"dma.latency.p50",       "ns",     Better::Lower,   Digits::One,     Shown::Always,  "the same, median"},
  MetricRow{"dma.latency.p99",       "ns",     Better::Lower,   Digits::One,     Shown::Always,  "the same, 99th percentile"},

  MetricRow{"iotlb.lookups",         "1",      Better::Neither, Digits::Integer, Shown::Always,  "Translation requests looked up in the IOTLB"},
  MetricRow{"iotlb.misses",          "1",      Better::Lower,   Digits::Integer, Shown::Always,  "Lookups that found no entry"},
  MetricRow{"iotlb.miss_ratio",      "1",      Better::Lower,   Digits::Three,   Shown::Always,  "Misses per lookup"},
  MetricRow{"iotlb.merged",          "1",      Better::Neither, Digits::Integer, Shown::Always,  "Misses that joined a walk of the same page already running"},
  MetricRow{"walk.count",            "1",      Better::Lower,   Digits::Integer, Shown::InFiles, "Walks started"},
  MetricRow{"walk.reads_per_miss",   "1",      Better::Lower,   Digits::Two,     Shown::Always,  "Memory reads of walks (contexts and both stages) per walk"},
  MetricRow{"walk.reads_max",        "1",      Better::Lower,   Digits::Integer, Shown::Always,  "Most memory reads that one walk needed"},
  MetricRow{"walk.reads_cold",       "1",      Better::Lower,   Digits::Integer, Shown::Always,  "The same since boot: caches were empty at first"},
  MetricRow{"walk.rate",             "1/s",    Better::Neither, Digits::Integer, Shown::InFiles, "Walks completed per simulated second"},
  MetricRow{"walk.fills_dropped",    "1",      Better::Neither, Digits::Integer, Shown::InFiles, "Walks overtaken by an invalidation, whose result was used once and not cached"},
  // Only where the unit walks ahead of demand.
  MetricRow{"prefetch.translations", "1",      Better::Neither, Digits::Integer, Shown::InFiles, "Translations that walks ahead of demand brought"},
  MetricRow{"prefetch.used",         "1",      Better::Higher,  Digits::Integer, Shown::InFiles, "Translations walked ahead that a request was answered by for the first time"},
  // Only where transactions stalled.
  MetricRow{"stall.transactions",    "1",      Better::Lower,   Digits::Integer, Shown::InFiles, "Transactions that faulted, waited for software and have ended"},
  MetricRow{"stall.terminated",      "1",      Better::Lower,   Digits::Integer, Shown::InFiles, "of them, those that software ended instead of retrying"},
  MetricRow{"stall.time.mean",       "ns",     Better::Lower,   Digits::One,     Shown::InFiles, "Of one of them: all the time that it waited for software, mean"},
  MetricRow{"stall.time.p99",        "ns",     Better::Lower,   Digits::One,     Shown::InFiles, "the same, 99th percentile"},
  MetricRow{"miss.cost.mean",        "ns",     Better::Lower,   Digits::One,     Shown::Always,  "From a missing lookup to its translation, mean"},
  MetricRow{"miss.cost.p50",         "ns",     Better::Lower,   Digits::One,     Shown::InFiles, "the same, median"},
  MetricRow{"miss.cost.p99",         "ns",     Better::Lower,   Digits::One,     Shown::Always,  "the same, 99th percentile"},
  MetricRow{"miss.cost.queue",       "ns",     Better::Lower,   Digits::One,     Shown::Always,  "of the mean: waiting for a miss entry, a walker slot, the initiation interval"},
  MetricRow{"miss.cost.context",     "ns",     Better::Lower,   Digits::One,     Shown::Always,  "of the mean: reading device tables"},
  MetricRow{"miss.cost.stage1",      "ns",     Better::Lower,   Digits::One,     Shown::Always,  "of the mean: reading stage-1 entries"},
  MetricRow{"miss.cost.stage2",      "ns",     Better::Lower,   Digits::One,     Shown::Always,  "of the mean: reading stage-2 entries"},

  MetricRow{"miss.cost.memory",      "ns",     Better::Lower,   Digits::One,     Shown::InFiles, "of the mean: waiting for the memory system to begin service"},

  MetricRow{"invalidation.commands",         "1",  Better::Lower,   Digits::Integer, Shown::Always,  "Commands that the unit executed, fences included"},
  MetricRow{"invalidation.commands_per_io",  "1",  Better::Lower,   Digits::Three,   Shown::Always,  "the same, per I/O"},
  MetricRow{"invalidation.bytes",            "B",  Better::Lower,   Digits::Integer, Shown::Always,  "Command ring bytes that the unit fetched"},
  MetricRow{"invalidation.fence_wait.mean",  "ns", Better::Lower,   Digits::One,     Shown::Always,  "From the doorbell to the poll that sees the status write, mean"},
  MetricRow{"invalidation.fence_wait.p99",   "ns", Better::Lower,   Digits::One,     Shown::InFiles, "the same, 99th percentile"},
  MetricRow{"invalidation.entries_removed",  "1",  Better::Neither, Digits::Integer, Shown::InFiles, "IOTLB entries that invalidations removed"},
  MetricRow{"invalidation.induced_misses",   "1",  Better::Lower,   Digits::Integer, Shown::Always,  "Misses on pages still mapped whose entry an over-broad invalidation had removed"},

  MetricRow{"hypervisor.hypercalls",        "1",   Better::Lower,   Digits::Integer, Shown::Always,  "Hypercalls"},
  MetricRow{"hypervisor.exits",             "1",   Better::Lower,   Digits::Integer, Shown::Always,  "Traps of guest accesses: to emulated registers, and stores to write-protected tables"},
  MetricRow{"hypervisor.hypercalls_per_io", "1",   Better::Lower,   Digits::Three,   Shown::Always,  "Hypercalls per I/O"},
  MetricRow{"hypervisor.exits_per_io",      "1",   Better::Lower,   Digits::Three,   Shown::Always,  "Traps per I/O"},
  // Only where a guest's tables are write-protected.
  MetricRow{"hypervisor.table_stores_per_io", "1", Better::Lower,   Digits::Three,   Shown::Always,  "Trapped stores to write-protected tables per I/O"},
  MetricRow{"guest.protected_pages",        "1",   Better::Neither, Digits::Integer, Shown::InFiles, "Guest pages that are write-protected at the end: I/O page tables and parts of device tables"},

  MetricRow{"guest.maps",                   "1",   Better::Neither, Digits::Integer, Shown::InFiles, "dma_map calls"},
  MetricRow{"guest.unmaps",                 "1",   Better::Neither, Digits::Integer, Shown::InFiles, "dma_unmap calls"},
  MetricRow{"guest.flushes",                "1",   Better::Lower,   Digits::Integer, Shown::InFiles, "Flush-queue flushes of lazy unmapping"},
  MetricRow{"guest.flush_time.mean",        "ns",  Better::Lower,   Digits::One,     Shown::Always,  "One flush as the guest sees it: an unmap with its invalidation (strict), one flush of a whole queue (lazy)"},
  MetricRow{"cpu.cycles_per_io",            "cycles", Better::Lower, Digits::Integer, Shown::Always, "vCPU time per I/O, waiting for locks and fences included"},
  MetricRow{"cpu.utilisation",              "1",   Better::Lower,   Digits::Three,   Shown::Always,  "Busy part of the domains' vCPUs"},
  MetricRow{"cpu.emulation_cycles_per_io", "cycles", Better::Lower, Digits::Integer, Shown::Always, "Time of the threads that emulate devices, per I/O; only where devices are emulated"},
  MetricRow{"lock.contended",               "1",   Better::Lower,   Digits::Integer, Shown::InFiles, "Lock acquisitions that had to wait"},
  MetricRow{"memory.table_bytes",           "B",   Better::Lower,   Digits::Integer, Shown::Always,  "Memory in I/O page tables and device tables at the end, of guests and Xen"},
  MetricRow{"memory.reads",                 "1",   Better::Neither, Digits::Integer, Shown::InFiles, "Reads that the host memory served"},
  MetricRow{"memory.llc_hit_ratio",         "1",   Better::Higher,  Digits::Three,   Shown::InFiles, "Part of memory requests that hit the last-level cache"},

  // Only where buffers are bounced.
  MetricRow{"bounce.bytes_copied",   "B",      Better::Lower,   Digits::Integer, Shown::InFiles, "Bytes that were copied into and out of bounce buffers"},
  MetricRow{"bounce.slots_most",     "1",      Better::Lower,   Digits::Integer, Shown::InFiles, "Most slots of bounce buffers in use at once"},
  MetricRow{"bounce.full",           "1",      Better::Lower,   Digits::Integer, Shown::InFiles, "Maps that found no free run of slots"},
  // Only where a scenario tolerates failures (measure.tolerate_failures).
  MetricRow{"io.failed",             "1",      Better::Lower,   Digits::Integer, Shown::Always,  "I/Os that failed"},
  MetricRow{"devices.cut_off",       "1",      Better::Lower,   Digits::Integer, Shown::Always,  "Devices whose bus mastering Xen cleared because they faulted and faulted"},
  MetricRow{"guest.failures",        "1",      Better::Lower,   Digits::Integer, Shown::Always,  "Calls of the DMA API that failed"},

  // Only where a recorded trace was replayed.
  MetricRow{"trace.skipped",         "1",      Better::Lower,   Digits::Integer, Shown::Always,  "Trace lines dropped: classes the scenario excludes, DMA outside any live mapping"},

  // The warden; also in the report's own object.
  MetricRow{"warden.checked",        "1",      Better::Neither, Digits::Integer, Shown::InFiles, "DMAs compared with the true mappings"},
  MetricRow{"warden.stale",          "1",      Better::Lower,   Digits::Integer, Shown::InFiles, "DMAs through a mapping that software had unmapped already"},
  MetricRow{"warden.violations",     "1",      Better::Lower,   Digits::Integer, Shown::InFiles, "DMAs that no live or lingering mapping allowed"},
  MetricRow{"warden.strayed",        "1",      Better::Lower,   Digits::Integer, Shown::InFiles, "DMAs through the tables of another domain's device that has the same requester id; only with topology.group_split: permitted"},
  MetricRow{"warden.foreign",        "1",      Better::Lower,   Digits::Integer, Shown::InFiles, "of them, those that reached memory of another domain"},
  MetricRow{"warden.exposure_max",   "ns",     Better::Lower,   Digits::Integer, Shown::InFiles, "Longest time from unmap to the fence after which the device cannot reach the page"},
  MetricRow{"warden.exposure_mean",  "ns",     Better::Lower,   Digits::Integer, Shown::InFiles, "Mean of the same"},
};

inline constexpr std::array<std::string_view, 8> kCommandKinds{
    "context", "process_context", "iotlb_page", "iotlb_domain", "iotlb_global", "device_tlb", "interrupt_entry", "fence"};
inline constexpr std::array<std::string_view, 3> kWalkParts{"context", "stage1", "stage2"};
inline constexpr std::array<std::string_view, 5> kCacheNames{
    "context", "stage1_tables", "stage2_tables", "stage2_leaves", "iotlb"};
inline constexpr std::array<std::string_view, 13> kHypercallNames{
    "query_capabilities", "init", "alloc_context", "free_context", "reattach_device", "map_pages", "unmap_pages", "flush", "grant_map", "grant_unmap",
    "put_tce", "put_tce_indirect", "stuff_tce"};
inline constexpr std::array<std::string_view, 3> kProposalNames{"batch", "batched_operations", "map_scattered"};
inline constexpr std::array<std::string_view, 2> kTagNames{"peak", "refused"};
inline constexpr std::array<std::string_view, 4> kArenaNames{"pages", "peak", "reserve_peak", "refused"};
inline constexpr std::array<std::string_view, 2> kForwardedFaults{"reported", "kept"};
inline constexpr std::array<std::string_view, 8> kVirtioRequestNames{"unknown", "attach", "detach", "map", "unmap", "probe", "attach_table", "invalidate"};
inline constexpr std::array<std::string_view, 4> kExitNames{"doorbell", "register", "table_store", "device_model"};
inline constexpr std::array<std::string_view, 3> kWaitNames{"locks", "fences", "idle"};
inline constexpr auto kCostKeys = [] {
  std::array<std::string_view, kCosts> keys{};
  for (std::size_t i = 0; i < kCosts; ++i) keys[i] = kCostNames[i].key;
  return keys;
}();

inline constexpr std::array kMetricFamilies{
  MetricFamily{"invalidation.commands", kCommandKinds,   "1",      Better::Lower,   Digits::Integer, "Commands executed, by kind; one that invalidates several kinds counts as each"},
  MetricFamily{"guest.commands",        kCommandKinds,   "1",      Better::Neither, Digits::Integer, "Commands that the guest gave its virtual unit, by kind"},
  MetricFamily{"trace.recorded",                kCommandKinds,   "1",      Better::Neither, Digits::Integer, "Invalidations that the recorded driver issued, by kind (compare invalidation.commands)"},
  MetricFamily{"walk.reads",                    kWalkParts,      "1",      Better::Lower,   Digits::Integer, "Memory reads of walks, by what was read"},
  MetricFamily{"cache.lookups",                 kCacheNames,     "1",      Better::Neither, Digits::Integer, "Lookups, by cache of the IOMMU"},
  MetricFamily{"cache.hits",                    kCacheNames,     "1",      Better::Higher,  Digits::Integer, "Hits, by cache of the IOMMU"},
  MetricFamily{"hypervisor.hypercalls", kHypercallNames, "1",      Better::Lower,   Digits::Integer, "Hypercalls, by sub-operation"},
  MetricFamily{"pv.proposals",          kProposalNames,  "1",      Better::Neither, Digits::Integer, "Calls of what this project proposes beside the RFC, and what batches carried; only where they are offered"},
  MetricFamily{"pv.arena",              kArenaNames,     "1",      Better::Lower,   Digits::Integer, "Xen's pool of table pages, since boot: its pages, the most in use, the most set aside for splitting large pages, and allocations refused; only where it is measured"},
  MetricFamily{"pv.domain_tags",        kTagNames,       "1",      Better::Lower,   Digits::Integer, "Domain tags (DID, DomainID, VMID) since boot, of all units: the most in use at once, and requests for one that found none; only under pv_iommu"},
  MetricFamily{"hypervisor.exits",      kExitNames,      "1",      Better::Lower,   Digits::Integer, "Traps, by what was trapped; device_model: those that went on to the device model"},
  // Only where a device of a guest with an IOMMU of its own faulted.
  MetricFamily{"guest.faults",          kForwardedFaults,    "1",  Better::Lower,   Digits::Integer, "Faults of assigned devices: reported by the IOMMU that the guest knows, or kept from it (the host's own, or no buffer)"},
  // Only under virtio_iommu.
  MetricFamily{"virtio.requests",       kVirtioRequestNames, "1",  Better::Lower,   Digits::Integer, "Requests that the guest gave its virtio-iommu, by type"},
  MetricFamily{"cpu.cycles_per_io",            kCostKeys,       "cycles", Better::Lower,   Digits::One,     "vCPU time per I/O, by cost row"},
  MetricFamily{"cpu.wait_cycles_per_io",        kWaitNames,      "cycles", Better::Lower,   Digits::One,     "vCPU time per I/O spent waiting, beside the cost rows (idle is not part of cpu.cycles_per_io)"},
};
// clang-format on

// A metric's place in the declared order: single metrics first, then the families' members.
class MetricId {
 public:
  // A single metric; an unknown name does not compile.
  consteval MetricId(const char* name) : index_(index_of(name)) {}  // NOLINT(google-explicit-constructor)
  // A member of a family; the family's name is checked at compile time, the member aborts when it is unknown.
  struct Family {
    consteval Family(const char* prefix) : index(family_index_of(prefix)) {}  // NOLINT(google-explicit-constructor)
    std::size_t index;
  };
  MetricId(Family family, std::string_view member);

  [[nodiscard]] constexpr std::size_t index() const { return index_; }

 private:
  static consteval std::size_t index_of(std::string_view name) {
    for (std::size_t i = 0; i < kMetrics.size(); ++i)
      if (kMetrics[i].name == name) return i;
    throw "no such metric is declared in metrics.hpp";
  }
  static consteval std::size_t family_index_of(std::string_view prefix) {
    for (std::size_t i = 0; i < kMetricFamilies.size(); ++i)
      if (kMetricFamilies[i].prefix == prefix) return i;
    throw "no such family of metrics is declared in metrics.hpp";
  }
  std::size_t index_;
};

// A declared metric with its full name, single or member of a family.
struct MetricInfo {
  std::string name;
  std::string_view unit;
  Better better;
  Digits digits;
  Shown shown;
  std::string_view description;
};

// All of them, in declared order; MetricId::index() indexes it.
[[nodiscard]] const std::vector<MetricInfo>& all_metrics();

}  // namespace iommu
