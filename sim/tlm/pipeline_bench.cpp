// SPDX-License-Identifier: Apache-2.0
// How fast the timed IOMMU simulates, in translations per second of host time, beside the budget of each case. Requests
// keep a window full: each answer submits the next.
#include <benchmark/benchmark.h>

#include "sim/base/rng.hpp"
#include "sim/tlm/test_machine.hpp"

namespace iommu::testing_core {
namespace {

constexpr std::uint64_t kWindow = 64;

// Pages that requests go to: `count` of them, `stride` bytes apart.
struct Window {
  std::uint64_t count = 1;
  std::uint64_t stride = kPageSize.value();
};

// Keeps `kWindow` requests in the unit until told to stop.
class Traffic {
 public:
  Traffic(Machine& machine, Window pages, std::uint64_t devices)
      : machine_(machine), pages_(pages), devices_(devices), rng_(1) {
    for (std::uint64_t i = 0; i < kWindow; ++i) {
      requests_[i].on_done<&Traffic::on_done>(this, i);
      requests_[i].translation.length = 64_B;
    }
  }
  void run(std::uint64_t translations) {
    left_ = translations;
    for (std::uint64_t i = 0; i < kWindow; ++i) submit(i);
    machine_.run();
  }
  [[nodiscard]] std::uint64_t faulted() const { return machine_.statistics().faulted; }

 private:
  void submit(std::uint64_t i) {
    if (left_ == 0) return;
    --left_;
    TranslationRequest& t = requests_[i].translation;
    t.address = Iova(rng_.below(pages_.count) * pages_.stride);
    t.requester = RequesterId(static_cast<std::uint16_t>(rng_.below(devices_)));
    machine_.unit().submit(requests_[i]);
  }
  void on_done(std::uint64_t i) { submit(i); }

  Machine& machine_;
  Window pages_;
  std::uint64_t devices_;
  Rng rng_;
  std::uint64_t left_ = 0;
  std::array<UnitRequest, kWindow> requests_{};
};

void report(benchmark::State& state, std::uint64_t translations, const Traffic& traffic, double budget) {
  if (traffic.faulted() != 0) state.SkipWithError("translations faulted");
  state.SetItemsProcessed(static_cast<std::int64_t>(translations));
  state.counters["budget/s"] = budget;
}

IommuParameters base() {
  IommuParameters p;
  p.timing.lookup_interval = 2_ns;
  p.walkers = 16;
  p.miss_entries = 64;
  p.context_cache = {.entries = 4096, .ways = 4};
  return p;
}

void attach_devices(Machine& m, std::uint64_t devices, ContextKind kind, Hpa stage1, Hpa stage2) {
  for (std::uint64_t d = 0; d < devices; ++d)
    m.tables.attach(m.core, RequesterId(static_cast<std::uint16_t>(d)), kind, stage1, stage2, Machine::kDomain);
}

void run(benchmark::State& state, Machine& m, Window pages, double budget) {
  Traffic traffic(m, pages, static_cast<std::uint64_t>(state.range(0)));
  traffic.run(20'000);  // contexts are known, tables in the host's caches
  constexpr std::uint64_t kBatch = 50'000;
  std::uint64_t translations = 0;
  for (auto _ : state) {
    traffic.run(kBatch);
    translations += kBatch;
  }
  report(state, translations, traffic, budget);
}

// Every case takes the number of devices and the GiB over which its pages are spread. The stride is a page more than a
// power of two: equal low bits would put all pages into one set of the IOTLB.
Window spread(const benchmark::State& state, std::uint64_t count) {
  return {count, (static_cast<std::uint64_t>(state.range(1)) << 30) / count + kPageSize.value()};
}

void iotlb_hits(benchmark::State& state) {
  Machine m(base());
  attach_devices(m, static_cast<std::uint64_t>(state.range(0)), ContextKind::Stage2, Hpa(), m.root);
  const Window pages = spread(state, 32);
  for (std::uint64_t n = 0; n < pages.count; ++n) m.tables.map(m.root, n * pages.stride, n << kPageLg2);
  run(state, m, pages, 3e6);
}
BENCHMARK(iotlb_hits)->Args({1, 1})->Args({4096, 1})->Args({1, 1024})->Unit(benchmark::kMillisecond);

void four_level_walks(benchmark::State& state) {
  IommuParameters p = base();
  p.iotlb = {};
  Machine m(p);
  attach_devices(m, static_cast<std::uint64_t>(state.range(0)), ContextKind::Stage2, Hpa(), m.root);
  const Window pages = spread(state, 512);
  for (std::uint64_t n = 0; n < pages.count; ++n) m.tables.map(m.root, n * pages.stride, n << kPageLg2);
  run(state, m, pages, 8e5);
}
BENCHMARK(four_level_walks)->Args({1, 1})->Args({4096, 1})->Args({1, 1024})->Unit(benchmark::kMillisecond);

// 24 reads each: four stage-1 entries, each and the result behind a stage-2 walk of four.
void nested_walks(benchmark::State& state) {
  IommuParameters p = base();
  p.iotlb = {};
  Machine m(p);
  const Hpa stage1 = m.tables.allocate();
  const Hpa stage2 = m.tables.allocate();
  attach_devices(m, static_cast<std::uint64_t>(state.range(0)), ContextKind::Nested, stage1, stage2);
  const Window pages = spread(state, 512);
  for (std::uint64_t n = 0; n < pages.count; ++n) m.tables.map(stage1, n * pages.stride, n << kPageLg2);
  constexpr std::uint64_t kTables = 32 << 20;  // guest-physical memory that holds the tables and the pages
  for (std::uint64_t a = 0; a < kTables; a += kPageSize.value()) m.tables.map(stage2, a, a);
  run(state, m, pages, 2e5);
}
BENCHMARK(nested_walks)->Args({1, 1})->Args({4096, 1})->Args({1, 1024})->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace iommu::testing_core
