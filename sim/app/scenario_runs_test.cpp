// SPDX-License-Identifier: Apache-2.0
// Whole runs: what the mechanisms of the strategies must show, that results are reproducible, and that published curves
// come out. Each run is a process of its own, as in the program.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <sstream>

#include "models/families.hpp"
#include "sim/app/elaborate.hpp"
#include "sim/app/forked_runs.hpp"
#include "sim/app/run_metrics.hpp"
#include "sim/app/verbs.hpp"
#include "sim/scenario/loader.hpp"

namespace iommu {
namespace {

using testing::IsEmpty;

std::string text_of(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

std::string replaced(std::string text, const std::string& what, const std::string& with) {
  const std::size_t at = text.find(what);
  EXPECT_NE(at, std::string::npos) << what;
  return at == std::string::npos ? text : text.replace(at, what.size(), with);
}

scenario::LoadOptions options() {
  scenario::LoadOptions o;
  for (const FamilyDescriptor* family : families()) o.families.emplace_back(family->name);
  o.platform_folders = {"scenarios/platforms"};
  return o;
}

std::string label_of(const Labels& labels, const std::string& name) {
  const auto found = std::ranges::find(labels, name, [](const auto& label) { return label.first; });
  return found == labels.end() ? std::string() : found->second;
}

// Every run of a scenario. A run that fails or crashes is a test failure and is left out.
std::vector<RunResult> runs_of(const std::string& text, std::uint64_t shuffle = 0) {
  const scenario::LoadedScenario loaded = scenario::parse_scenario(text, "scenarios/test.yaml", options());
  const auto plan = scenario::plan_runs(loaded);
  const auto results = run_forked(plan.size(), 2,
                                  [&](std::size_t i, const ProgressFn& progress) {
                                    return to_line(run_one(loaded.variations[plan[i].variation].scenario,
                                                           plan[i].selection, {.shuffle = shuffle}, progress));
                                  },
                                  {});
  std::vector<RunResult> runs;
  for (const ForkedResult& result : results) {
    EXPECT_EQ(result.status, ForkedResult::Status::Done) << result.text;
    const auto run = parse_run(result.text);
    if (result.status == ForkedResult::Status::Done && run) runs.push_back(*run);
  }
  return runs;
}

// By strategy label, for scenarios with one family and no varied key.
std::map<std::string, RunResult> by_strategy(const std::vector<RunResult>& runs) {
  std::map<std::string, RunResult> map;
  for (const RunResult& run : runs) map.emplace(label_of(run.labels, "strategy"), run);
  return map;
}

double value(const RunResult& run, MetricId metric) { return run.find(metric).value_or(std::nan("")); }

const std::string kSmoke = text_of("scenarios/smoke.yaml");
const std::string kLazy =
    replaced(kSmoke, "dma_api: {policy: strict}", "dma_api: {policy: lazy, flush_queue_entries: 50}");

// Kills: a strategy that batches, skips or repeats calls; a map that traps under nesting.
TEST(ScenarioRuns, StrictStrategiesCallAndTrapAsOftenAsTheirMechanismSays) {
  auto runs = by_strategy(runs_of(kSmoke));
  ASSERT_EQ(runs.size(), 4U);
  const double maps = value(runs["pv_iommu"], "guest.maps");
  const double unmaps = value(runs["pv_iommu"], "guest.unmaps");
  ASSERT_GT(unmaps, 100);
  // A call that is under way when the measurement begins or ends is counted on one side only.
  EXPECT_NEAR(value(runs["pv_iommu"], MetricId("hypervisor.hypercalls", "map_pages")), maps, 1);
  EXPECT_NEAR(value(runs["pv_iommu"], MetricId("hypervisor.hypercalls", "unmap_pages")), unmaps, 1);
  EXPECT_EQ(value(runs["pv_iommu"], "hypervisor.exits"), 0);
  EXPECT_EQ(value(runs["nested"], "hypervisor.hypercalls"), 0);
  EXPECT_NEAR(value(runs["nested"], "hypervisor.exits"), value(runs["nested"], "guest.unmaps"), 1);
  EXPECT_NEAR(value(runs["emulated_viommu"], "hypervisor.exits"),
              value(runs["emulated_viommu"], "guest.maps") + value(runs["emulated_viommu"], "guest.unmaps"), 1);
  EXPECT_EQ(value(runs["passthrough"], "hypervisor.exits") + value(runs["passthrough"], "hypervisor.hypercalls"), 0);
}

// Kills: a kick per request, or none; emulated devices that a unit translates for, or that move their bytes for
// nothing; threads of a device model booked to the guest.
TEST(ScenarioRuns, AVirtioIommuTrapsOnceACallAndItsEmulatedDevicesNeedNoUnit) {
  auto runs = by_strategy(
      runs_of(replaced(kSmoke, "strategies: [passthrough, pv_iommu, nested, emulated_viommu]",
                       "strategies:\n  - virtio_iommu\n  - {kind: virtio_iommu, label: emulated, endpoints: virtual, "
                       "placement: device_model}")));
  ASSERT_EQ(runs.size(), 2U);
  for (const auto& [label, run] : runs) {
    EXPECT_THAT(run.failures, IsEmpty()) << label;
    const double calls = value(run, "guest.maps") + value(run, "guest.unmaps");
    EXPECT_NEAR(value(run, MetricId("hypervisor.exits", "doorbell")), calls, 1) << label;
    EXPECT_NEAR(value(run, MetricId("virtio.requests", "map")) + value(run, MetricId("virtio.requests", "unmap")),
                calls, 1)
        << label << ": buffers are one page";
    EXPECT_EQ(value(run, "dma.faults"), 0) << label;
    EXPECT_GT(run.warden.checked, 100U) << label;
    EXPECT_EQ(run.warden.violations, 0U) << label;
  }
  const RunResult& physical = runs["virtio_iommu"];
  const RunResult& emulated = runs["emulated"];
  EXPECT_GT(value(physical, "iotlb.lookups"), 0);
  EXPECT_FALSE(physical.find("cpu.emulation_cycles_per_io"));
  EXPECT_EQ(value(emulated, "iotlb.lookups"), 0);
  EXPECT_EQ(value(emulated, "invalidation.commands"), 0);
  // A packet of 1500 bytes is 24 lines, in one page.
  const auto count = [&](std::string_view row) {
    const auto use = std::ranges::find(emulated.costs, row, &CostUse::row);
    return use == emulated.costs.end() ? 0.0 : static_cast<double>(use->count);
  };
  EXPECT_GE(count("copy_line"), 24 * value(emulated, "io.count") * 0.95);
  EXPECT_GE(count("software_translate"), value(emulated, "io.count") * 0.95);
  EXPECT_GT(value(emulated, "cpu.emulation_cycles_per_io"), 0);
}

// Kills: a walk without stage 2 on each stage-1 entry; a context that is read twice; a walk cache that holds what it
// was told not to.
TEST(ScenarioRuns, ColdWalksReadFourEntriesInOneStageAndTwentyFourInTwo) {
  std::string text =
      replaced(kSmoke, "p2m: {page_size: 2 MiB, layout: contiguous}", "p2m: {page_size: 4 KiB, layout: fragmented}");
  std::string caches;
  for (const char* stage : {"stage1_walk_cache", "stage2_walk_cache"}) {
    caches += std::string("    ") + stage + ":\n";
    for (const char* reach : {"reach_2m", "reach_1g", "reach_512g"})
      caches += std::string("      ") + reach + ": {entries: {value: 0, source: test, mark: guess}}\n";
  }
  text = replaced(text, "platform: intel_server",
                  "platform:\n  extends: intel_server\n  name: uncached\n  iommu:\n" + caches +
                      "    stage2_leaf_cache: {entries: {value: 0, source: test, mark: guess}}");
  auto runs = by_strategy(runs_of(text));
  // Root and context entry; in scalable mode PASID directory and table entry as well.
  EXPECT_EQ(value(runs["passthrough"], "walk.reads_cold"), 4 + 2);
  EXPECT_EQ(value(runs["pv_iommu"], "walk.reads_cold"), 4 + 2);
  EXPECT_EQ(value(runs["emulated_viommu"], "walk.reads_cold"), 4 + 2);
  EXPECT_EQ(value(runs["nested"], "walk.reads_cold"), 24 + 4);
}

// Kills: deferral that is not deferred; a domain-wide flush that does not compare the whole shadow.
TEST(ScenarioRuns, LazyUnmappingHelpsNestedAndMakesEachFlushOfAnEmulatedUnitDearer) {
  auto strict = by_strategy(runs_of(kSmoke));
  auto lazy = by_strategy(runs_of(
      replaced(kLazy, "strategies: [passthrough, pv_iommu,",
               "strategies: [passthrough, pv_iommu, {kind: pv_iommu, label: deferred, deferred_flush: true},")));
  EXPECT_GT(value(lazy["nested"], "io.rate"), 2 * value(strict["nested"], "io.rate"));
  EXPECT_GT(value(lazy["deferred"], "io.rate"), 1.3 * value(strict["pv_iommu"], "io.rate"));
  EXPECT_LT(value(lazy["nested"], "io.rate"), value(lazy["passthrough"], "io.rate"));
  EXPECT_GT(value(lazy["emulated_viommu"], "guest.flush_time.mean"),
            2 * value(strict["emulated_viommu"], "guest.flush_time.mean"));
  // As the RFC has it, every unmap flushes: nothing is left to defer.
  EXPECT_NEAR(value(lazy["pv_iommu"], "io.rate") / value(strict["pv_iommu"], "io.rate"), 1.0, 0.02);
}

// Kills: a fence that is signalled early; a warden that looks at nothing.
TEST(ScenarioRuns, WardenSeesNoViolationAndAnExposureOnlyWhereInvalidationWaits) {
  for (const std::string& text : {kSmoke, kLazy})
    for (const RunResult& run : runs_of(text)) {
      EXPECT_THAT(run.failures, IsEmpty());
      EXPECT_GT(run.warden.checked, 100U);
      EXPECT_EQ(run.warden.violations, 0U);
    }
  auto strict = by_strategy(runs_of(kSmoke));
  auto lazy = by_strategy(runs_of(kLazy));
  EXPECT_EQ(strict["passthrough"].warden.exposure_max_ns, 0);
  EXPECT_GT(strict["nested"].warden.exposure_max_ns, 0);
  EXPECT_GT(lazy["nested"].warden.exposure_max_ns, 10 * strict["nested"].warden.exposure_max_ns);
}

// Kills: hash-ordered containers, uninitialised memory, wall-clock or address dependence in anything that is reported.
TEST(ScenarioRuns, SameScenarioGivesTheSameNumbersInAnyProcessOrder) {
  const auto first = runs_of(kSmoke);
  EXPECT_EQ(runs_of(kSmoke), first);
  for (const std::uint64_t shuffle : {1U, 2U, 3U}) EXPECT_EQ(runs_of(kSmoke, shuffle), first) << "shuffle " << shuffle;
}

// Kills: a throttle that never cuts, that cuts the neighbour or too early; a device that goes on after the cut.
TEST(ScenarioRuns, ADeviceThatFaultsAndFaultsIsCutOff) {
  const std::string text = replaced(text_of("scenarios/faulty_device.yaml"), "ios: 20000", "ios: 4000");
  for (const RunResult& run : runs_of(text)) {
    EXPECT_EQ(value(run, "devices.cut_off"), 1);
    EXPECT_GT(value(run, "io.failed"), 10) << "what is submitted after the cut fails within the device";
    EXPECT_GT(value(run, "io.count") - value(run, "io.failed"), 3000) << "the neighbour goes on";
  }
  for (const RunResult& run : runs_of(replaced(text, "stray: 100", "stray: 0"))) {
    EXPECT_EQ(value(run, "devices.cut_off"), 0);
    EXPECT_EQ(value(run, "io.failed"), 0);
  }
}

// Kills: a batch that the driver never fills; operations that are lost between guest and Xen; a fence per buffer.
TEST(ScenarioRuns, BatchesCarryManyBuffersWithOneCallAndOneFence) {
  const std::string text = replaced(replaced(kSmoke, "strategies: [passthrough, pv_iommu, nested, emulated_viommu]",
                                             "strategies: [pv_iommu, {kind: pv_iommu, label: pv_batch, batch: 64}]"),
                                    "ring_entries: 32", "ring_entries: 32, map_batch: 16");
  auto runs = by_strategy(runs_of(text));
  const RunResult& one = runs["pv_iommu"];
  const RunResult& many = runs["pv_batch"];
  EXPECT_THAT(many.failures, IsEmpty());
  EXPECT_NEAR(value(many, MetricId("pv.proposals", "batched_operations")),
              value(many, "guest.maps") + value(many, "guest.unmaps"), 64);
  EXPECT_LT(value(many, "hypervisor.hypercalls_per_io"), 0.5 * value(one, "hypervisor.hypercalls_per_io"));
  EXPECT_LT(value(many, MetricId("invalidation.commands", "fence")),
            0.5 * value(one, MetricId("invalidation.commands", "fence")));
  EXPECT_GT(value(many, "io.rate"), value(one, "io.rate"));
}

// Kills: a seed that nothing uses.
TEST(ScenarioRuns, AnotherSeedGivesOtherRandomTraffic) {
  const std::string text =
      replaced(replaced(text_of("scenarios/two_stage.yaml"), "ios: 20000", "ios: 500"),
               "strategies: [passthrough, pv_iommu, nested, emulated_viommu]", "strategies: [pv_iommu]");
  EXPECT_NE(runs_of(text), runs_of(replaced(text, "seed: 1", "seed: 2")));
}

const std::string kPrefetching =
    replaced(replaced(kLazy, "platform: intel_server",
                      "platform:\n  extends: intel_server\n  name: ahead\n  iommu:\n"
                      "    prefetch_pages: {value: 2, source: test, mark: guess}"),
             "strategies: [passthrough, pv_iommu, nested, emulated_viommu]", "strategies: [nested]");

// Kills: walks ahead that are reported where the unit has none; translations or uses that nobody counts.
TEST(ScenarioRuns, WalksAheadAreReportedWhereTheUnitHasThem) {
  for (const RunResult& run : runs_of(kSmoke)) EXPECT_FALSE(run.find("prefetch.translations").has_value());
  for (const RunResult& run : runs_of(kPrefetching)) {
    EXPECT_GT(value(run, "prefetch.used"), 0);
    EXPECT_GT(value(run, "prefetch.translations"), 0);
    EXPECT_FALSE(run.find("stall.transactions").has_value());
  }
}

// Kills: times that are not those of the transactions that waited, zeros where nothing stalled.
TEST(ScenarioRuns, StallsAreReportedWhereSomethingStalled) {
  RunResult none, some;
  set_stalls(none, {});
  EXPECT_TRUE(none.metrics().empty());
  IommuStatistics s;
  s.stalls.held = 5;  // one of them stalled again when it was retried
  s.stalls.terminated = 1;
  for (const Picoseconds wait : {1_us, 2_us, 3_us, 6_us}) s.stalls.wait.add(wait);
  set_stalls(some, s);
  EXPECT_EQ(value(some, "stall.transactions"), 4);
  EXPECT_EQ(value(some, "stall.terminated"), 1);
  EXPECT_NEAR(value(some, "stall.time.mean"), 3000, 1);
}

// Kills: a metric that is declared, documented and never set.
TEST(ScenarioRuns, EveryDeclaredMetricIsSetBySomeShippedScenario) {
  auto runs = runs_of(kSmoke);
  const std::string trace =
      replaced(text_of("scenarios/strategies_nvme_trace.yaml"),
               "strategies: [passthrough, pv_iommu, nested, emulated_viommu]", "strategies: [nested]");
  for (RunResult& run : runs_of(trace)) runs.push_back(std::move(run));
  for (RunResult& run : runs_of(text_of("scenarios/shared_requester_id.yaml"))) runs.push_back(std::move(run));
  for (RunResult& run : runs_of(replaced(text_of("scenarios/dom0_iperf.yaml"), "ios: 3000", "ios: 10")))
    runs.push_back(std::move(run));
  const std::string proposals =
      replaced(replaced(kSmoke, "strategies: [passthrough, pv_iommu, nested, emulated_viommu]",
                        "strategies: [{kind: pv_iommu, batch: 4, arena_order: 8}]"),
               "measure: {", "measure: {tolerate_failures: true, ");
  for (RunResult& run : runs_of(proposals)) runs.push_back(std::move(run));
  const std::string others = replaced(
      kSmoke, "strategies: [passthrough, pv_iommu, nested, emulated_viommu]",
      "strategies: [{kind: swiotlb, pool_size: 8 MiB}, grants, {kind: emulated_viommu, shadow: write_protect}, "
      "{kind: virtio_iommu, endpoints: virtual}, {kind: virtio_iommu, label: bound, mapping: tables}, tce]");
  for (RunResult& run : runs_of(others)) runs.push_back(std::move(run));
  for (RunResult& run : runs_of(kPrefetching)) runs.push_back(std::move(run));
  const std::string faulty = replaced(text_of("scenarios/faulty_device.yaml"), "ios: 20000", "ios: 1000");
  for (RunResult& run : runs_of(faulty)) runs.push_back(std::move(run));
  IommuStatistics stalled;
  stalled.stalls.wait.add(1_us);
  set_stalls(runs.emplace_back(), stalled);
  EXPECT_THAT(metrics_never_set(runs), IsEmpty());
}

// Kills: a bridge that leaves requests their own ids; DMA in another domain's memory that nobody counts, or that is
// called a bug of the strategy; failed requests of the same cause that fail the run.
TEST(ScenarioRuns, DmaUnderASharedRequesterIdReachesTheOtherDomainsMemory) {
  const std::string text = text_of("scenarios/shared_requester_id.yaml");
  auto runs = by_strategy(runs_of(text));
  ASSERT_EQ(runs.size(), 4U);
  for (const auto& [strategy, run] : runs) {
    EXPECT_THAT(run.failures, IsEmpty()) << strategy;
    ASSERT_TRUE(run.warden.shared) << strategy;
    EXPECT_GT(run.warden.shared->foreign, 500U) << strategy;
    EXPECT_EQ(run.warden.shared->foreign, run.warden.shared->strayed) << strategy << ": what is mapped is memory";
    // Half of the intruder's window lies beyond what the victim has mapped, unless all of its memory is.
    EXPECT_EQ(value(run, "dma.faults") > 500, strategy != "passthrough") << strategy;
  }
  const std::string together = replaced(replaced(text, "group_split: permitted", "group_split: refused"),
                                        "  - {name: intruder, memory: 64 MiB}\n", "");
  for (const RunResult& run : runs_of(replaced(together, "domain: intruder", "domain: victim"))) {
    EXPECT_THAT(run.failures, IsEmpty());
    EXPECT_FALSE(run.warden.shared);
    EXPECT_EQ(value(run, "dma.faults"), 0);
  }
}

// 16 pages a packet, each a command and a fence on each of two units. Kills: flushes that batch pages or that skip a
// unit; a flush although no device is in context 0, or it shows nothing; mapping that flushes although entries are new.
TEST(ScenarioRuns, EachPageThatDom0UnmapsIsFlushedWhereContextZeroShowsIt) {
  const std::string text =
      replaced(text_of("scenarios/dom0_iperf.yaml"), "{warmup_ios: 200, ios: 3000}", "{warmup_ios: 30, ios: 300}");
  auto runs = by_strategy(runs_of(text));
  ASSERT_EQ(runs.size(), 3U);
  for (const auto& [strategy, run] : runs) {
    EXPECT_THAT(run.failures, IsEmpty()) << strategy;
    EXPECT_GE(value(run, "io.count"), 300);
  }
  // Packets that are under way when the measurement begins or ends have been mapped, read, or half unmapped.
  EXPECT_NEAR(value(runs["default_context"], "invalidation.commands_per_io"), 16 * 2 * 2, 64.0 * 16 / 300);
  EXPECT_EQ(value(runs["pv_contexts"], "invalidation.commands"), 0);
  EXPECT_EQ(value(runs["pv_contexts_dma_0"], "invalidation.commands"), 0);
  EXPECT_GT(value(runs["pv_contexts"], "io.rate"), 1.3 * value(runs["default_context"], "io.rate"));
  // Nothing is written into tables that nobody walks.
  EXPECT_GT(value(runs["pv_contexts"], MetricId("cpu.cycles_per_io", "table_write")), 0);
  EXPECT_EQ(value(runs["pv_contexts_dma_0"], MetricId("cpu.cycles_per_io", "table_write")), 0);
}

// Kills: a packet whose pages cannot be mapped that stops the interface, or counts as received.
TEST(ScenarioRuns, AVirtualInterfaceOfOneVcpuMovesEveryPacket) {
  std::string text = replaced(text_of("scenarios/dom0_iperf.yaml"), "{warmup_ios: 200, ios: 3000}", "{ios: 200}");
  text = replaced(replaced(text, "vcpus: 3", "vcpus: 1"), "map_vcpu: 0, read_vcpu: 1, unmap_vcpu: 2",
                  "ring_slots: 16, budget: 1, map_vcpu: 0, read_vcpu: 0, unmap_vcpu: 0");
  for (const RunResult& run : runs_of(text)) {
    EXPECT_THAT(run.failures, IsEmpty());
    EXPECT_EQ(value(run, "io.count"), 200);
    EXPECT_GT(value(run, "dma.throughput"), 0);
  }
}

// Kills: a replay that drops, repeats or reorders the driver's calls; a guest driver that flushes otherwise than the
// recorded one. That one's unit was not in caching mode: it invalidated on unmap only, as a guest's stage 1 does.
TEST(ScenarioRuns, ReplayedDriverInvalidatesExactlyAsTheRecordedOneDid) {
  const std::string trace =
      replaced(text_of("scenarios/strategies_nvme_trace.yaml"),
               "strategies: [passthrough, pv_iommu, nested, emulated_viommu]", "strategies: [nested, emulated_viommu]");
  auto runs = by_strategy(runs_of(trace));
  const RunResult& nested = runs["nested"];
  EXPECT_THAT(nested.failures, IsEmpty());
  ASSERT_GT(value(nested, MetricId("trace.recorded", "iotlb_page")), 1000);
  for (const std::string_view kind : kCommandKinds)
    EXPECT_EQ(value(nested, MetricId("guest.commands", kind)), value(nested, MetricId("trace.recorded", kind))) << kind;
  // In caching mode the same driver invalidates after each map as well.
  const RunResult& emulated = runs["emulated_viommu"];
  EXPECT_EQ(value(emulated, MetricId("guest.commands", "iotlb_page")),
            value(emulated, "guest.maps") + value(emulated, "guest.unmaps"));
}

// Gb/s at windows of 256 KiB to 64 MiB [pcie-bench data, Neugebauer et al., SIGCOMM 2018, Broadwell].
struct Published {
  const char* window;
  double read, write;
};
constexpr std::array kPublished{Published{"256 KiB", 27.6, 24.3}, Published{"512 KiB", 20.2, 24.3},
                                Published{"1 MiB", 14.3, 19.4},   Published{"1536 KiB", 12.6, 15.1},
                                Published{"2 MiB", 11.7, 13.6},   Published{"4 MiB", 10.7, 11.9},
                                Published{"8 MiB", 10.2, 11.5},   Published{"64 MiB", 9.8, 11.2}};

// Kills: an IOTLB of another reach, a walker without its interval, reads that overtake misses.
TEST(ScenarioRuns, MissCostFollowsThePublishedCurveWithinTenPercent) {
  const auto runs = runs_of(text_of("scenarios/miss_cost.yaml"));
  for (const Published& point : kPublished)
    for (const RunResult& run : runs) {
      if (label_of(run.labels, "window") != point.window) continue;
      const bool is_read = label_of(run.labels, "access") == "read";
      const bool has_misses = label_of(run.labels, "strategy") == "pv_iommu";
      // 2 MiB pages cost nothing at any window.
      const double published = !has_misses ? (is_read ? 27.6 : 24.3) : (is_read ? point.read : point.write);
      EXPECT_NEAR(value(run, "dma.throughput") / published, 1.0, 0.10)
          << point.window << (is_read ? " read" : " write");
    }
}

// Kills: devices let loose while the register write that enables translation is still on its way.
TEST(ScenarioRuns, UnitTranslatesBeforeTheFirstDmaHoweverSlowItsRegisters) {
  const std::string text =
      replaced(kSmoke, "platform: intel_server",
               "platform: {extends: intel_server, name: slow, iommu: {register_write_latency: 50 us}}");
  for (const RunResult& run : runs_of(text)) EXPECT_THAT(run.failures, IsEmpty());
}

// Kills: a device without effect on another's queue; a second unit that translates nothing.
TEST(ScenarioRuns, TwoGuestsBehindTwoUnitsAreCheckedAndCountedTogether) {
  std::string text = replaced(kSmoke, "iommus: [{name: iommu0, covers: [port0]}]",
                              "iommus: [{name: iommu0, covers: [port0]}, {name: iommu1, covers: [port1]}]");
  text = replaced(text, "root_ports: [{name: port0}]", "root_ports: [{name: port0}, {name: port1}]");
  text = replaced(text, "devices:\n",
                  "  - {name: guest1, memory: 64 MiB}\ndevices:\n"
                  "  - name: nic1\n    bdf: \"04:00.0\"\n    upstream: port1\n    domain: guest1\n"
                  "    workload: {kind: nic, direction: transmit, packet_size: 1500 B, buffer_size: 2 KiB, "
                  "ring_entries: 32}\n");
  const auto runs = runs_of(text);
  ASSERT_EQ(runs.size(), 4U);
  for (const RunResult& run : runs) {
    EXPECT_THAT(run.failures, IsEmpty());
    EXPECT_GE(value(run, "io.count"), 300);
  }
}

// Kills: a run that ends as if nothing had happened when the guest has nothing to run on.
TEST(ScenarioRuns, TableArenaThatIsTooSmallFailsWithOneLine) {
  const std::string text = replaced(kSmoke, "strategies: [passthrough, pv_iommu, nested, emulated_viommu]",
                                    "strategies: [{kind: pv_iommu, arena_order: 1}]");
  const scenario::LoadedScenario loaded = scenario::parse_scenario(text, "scenarios/test.yaml", options());
  const auto plan = scenario::plan_runs(loaded);
  const auto results =
      run_forked(1, 1,
                 [&](std::size_t, const ProgressFn& progress) {
                   return to_line(run_one(loaded.variations[0].scenario, plan[0].selection, {}, progress));
                 },
                 {});
  EXPECT_EQ(results[0].status, ForkedResult::Status::Failed);
  EXPECT_THAT(results[0].text, testing::HasSubstr("nic0"));
}

}  // namespace
}  // namespace iommu
