// SPDX-License-Identifier: Apache-2.0
// Pure functional walks, no caches: what a golden model or a differential test pays for each translation.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <memory>
#include <variant>

#include "models/amdvi/core.hpp"
#include "models/amdvi/driver.hpp"
#include "sim/base/check.hpp"
#include "sim/memory/host_memory.hpp"
#include "sim/memory/host_table_memory.hpp"

namespace iommu::amdvi {
namespace {

constexpr RequesterId kDevice = RequesterId::bdf(3, 0, 0);
constexpr std::uint64_t kPages = 4096;
constexpr std::uint64_t kFirst = 0x4321'0000'0000;

// A device with 16 MiB mapped in 4 KiB pages.
struct Machine {
  explicit Machine(ContextKind kind) : driver(options(kind)), core(compose(options(kind).features)) {
    const auto writes = driver.bring_up(memory);
    SIM_CHECK(writes.has_value(), "there is memory enough");
    for (const RegisterWrite& w : *writes) core.mmio_write(w.offset, w.bytes, w.value);
    stage1 = driver.create_table(TableKind::Stage1, memory);
    stage2 = driver.create_table(TableKind::Stage2, memory);
    PageTable& mapped = kind == ContextKind::Stage2 ? *stage2 : *stage1;
    for (std::uint64_t i = 0; i < kPages; ++i)
      mapped.map({.input = kFirst + i * kPageSize.value(), .output = (0x100'0000 + i) * kPageSize.value()});
    if (kind == ContextKind::Nested) {
      stage2->map({.input = 0, .output = 0, .length = Bytes(0x8000 * kPageSize.value())});  // guest tables
      const std::uint64_t pages = 0x100'0000 * kPageSize.value();
      stage2->map({.input = pages, .output = 2 * pages, .length = Bytes(kPages * kPageSize.value())});
    }
    const ContextSetting setting{
        .kind = kind, .domain = DomainTag(1), .stage1 = stage1->root(), .stage2 = stage2->root()};
    SIM_CHECK(driver.attach(kDevice, setting, memory).status == EditStatus::Ok, "the setting is one that drivers use");
  }
  static DriverOptions options(ContextKind kind) {
    DriverOptions o;
    o.features.nested = kind == ContextKind::Nested;
    o.stage1 = kind != ContextKind::Stage2;
    return o;
  }
  [[nodiscard]] static TranslationRequest request(std::uint64_t i) {
    return {.requester = kDevice, .pasid = {}, .address = Iova(kFirst + i * 7 % kPages * kPageSize.value())};
  }
  [[nodiscard]] Context context() { return std::get<Context>(core.find_context(request(0), port).run()); }

  HostMemory host{Bytes(1ULL << 40)};
  FrameAllocator frames{Mfn(0x1000), 0x7000};
  HostTableMemory memory{host, frames};
  Driver driver;
  Core core;
  ImmediateMemoryPort port{host};
  std::unique_ptr<PageTable> stage1, stage2;
};

void report_reads(benchmark::State& state, const Machine& machine) {
  const auto reads = machine.port.accesses(AccessKind::Stage1Entry) + machine.port.accesses(AccessKind::Stage2Entry);
  state.counters["reads_per_walk"] =
      static_cast<double>(reads) / static_cast<double>(std::max<std::int64_t>(1, state.iterations()));
}

// The walk alone, from a context that is known.
template <ContextKind kKind>
void walk(benchmark::State& state) {
  Machine machine(kKind);
  const Context context = machine.context();
  std::uint64_t i = 0;
  for ([[maybe_unused]] auto step : state) {
    const TranslationResponse response = machine.core.walk(Machine::request(++i), context, machine.port, {}).run();
    SIM_CHECK(std::holds_alternative<Translation>(response), "every page is mapped");
    benchmark::DoNotOptimize(response);
  }
  report_reads(state, machine);
}
// With the device tables.
template <ContextKind kKind>
void translate(benchmark::State& state) {
  Machine machine(kKind);
  std::uint64_t i = 0;
  for ([[maybe_unused]] auto step : state) {
    const TranslationResponse response = machine.core.translate(Machine::request(++i), machine.port).run();
    SIM_CHECK(std::holds_alternative<Translation>(response), "every page is mapped");
    benchmark::DoNotOptimize(response);
  }
  report_reads(state, machine);
}

BENCHMARK(walk<ContextKind::Stage2>)->Name("amdvi/walk/host_4_levels");
BENCHMARK(walk<ContextKind::Stage1>)->Name("amdvi/walk/guest_4_levels");
BENCHMARK(walk<ContextKind::Nested>)->Name("amdvi/walk/nested_24_reads");
BENCHMARK(translate<ContextKind::Stage2>)->Name("amdvi/translate/host");
BENCHMARK(translate<ContextKind::Nested>)->Name("amdvi/translate/nested");

}  // namespace
}  // namespace iommu::amdvi
