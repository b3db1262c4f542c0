// SPDX-License-Identifier: Apache-2.0
// Pure functional walks of every family, no caches: what a golden model or a differential test pays for a translation.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "models/families.hpp"
#include "sim/base/check.hpp"
#include "sim/memory/host_memory.hpp"
#include "sim/memory/host_table_memory.hpp"

namespace iommu {
namespace {

constexpr RequesterId kDevice = RequesterId::bdf(3, 0, 0);
constexpr std::uint64_t kPages = 4096;
constexpr std::uint64_t kFirst = 0x4321'0000'0000;
constexpr std::uint64_t kOutput = 1ULL << 36;

DriverOptions options_for(ContextKind kind) {
  DriverOptions options;
  options.features.nested = kind == ContextKind::Nested;
  options.stage1 = kind != ContextKind::Stage2;
  return options;
}

// A device with 16 MiB mapped in 4 KiB pages.
class Machine {
 public:
  Machine(const FamilyDescriptor& family, ContextKind kind)
      : driver_(family.make_driver(options_for(kind))), core_(family.make_core(options_for(kind).features)) {
    const auto writes = driver_->bring_up(memory_);
    SIM_CHECK(writes.has_value(), "there is memory enough");
    for (const RegisterWrite& w : *writes) core_->mmio_write(w.offset, w.bytes, w.value);
    stage1_ = driver_->create_table(TableKind::Stage1, memory_);
    stage2_ = driver_->create_table(TableKind::Stage2, memory_);
    PageTable& mapped = kind == ContextKind::Stage2 ? *stage2_ : *stage1_;
    for (std::uint64_t i = 0; i < kPages; ++i)
      mapped.map({.input = kFirst + i * kPageSize.value(), .output = kOutput + i * kPageSize.value()});
    if (kind == ContextKind::Nested) {
      stage2_->map({.input = 0, .output = 0, .length = Bytes(0x8000 * kPageSize.value())});  // stage-1 tables
      stage2_->map({.input = kOutput, .output = 2 * kOutput, .length = Bytes(kPages * kPageSize.value())});
    }
    const ContextSetting setting{
        .kind = kind, .domain = DomainTag(1), .stage1 = stage1_->root(), .stage2 = stage2_->root()};
    SIM_CHECK(driver_->attach(kDevice, setting, memory_).status == EditStatus::Ok, "the setting is one drivers use");
  }
  [[nodiscard]] static TranslationRequest request(std::uint64_t i) {
    return {.requester = kDevice, .pasid = {}, .address = Iova(kFirst + i * 7 % kPages * kPageSize.value())};
  }
  [[nodiscard]] IommuCore& core() { return *core_; }
  [[nodiscard]] MemoryPort& port() { return port_; }
  [[nodiscard]] std::uint64_t table_reads() const {
    return port_.accesses(AccessKind::Stage1Entry) + port_.accesses(AccessKind::Stage2Entry);
  }

 private:
  HostMemory host_{Bytes(1ULL << 40)};
  FrameAllocator frames_{Mfn(0x1000), 0x7000};
  HostTableMemory memory_{host_, frames_};
  std::unique_ptr<TableDriver> driver_;
  std::unique_ptr<IommuCore> core_;
  ImmediateMemoryPort port_{host_};
  std::unique_ptr<PageTable> stage1_, stage2_;
};

// Times `translate_one(machine, request)`.
template <typename F>
void measure(benchmark::State& state, Machine& machine, F translate_one) {
  const std::uint64_t before = machine.table_reads();
  std::uint64_t i = 0;
  for ([[maybe_unused]] auto step : state) {
    const TranslationResponse response = translate_one(Machine::request(++i));
    SIM_CHECK(std::holds_alternative<Translation>(response), "every page is mapped");
    benchmark::DoNotOptimize(response);
  }
  state.counters["reads_per_walk"] = static_cast<double>(machine.table_reads() - before) /
                                     static_cast<double>(std::max<std::int64_t>(1, state.iterations()));
}

// The walk alone, from a context that is known.
void walk(benchmark::State& state, const FamilyDescriptor& family, ContextKind kind) {
  Machine machine(family, kind);
  const ContextResult found = machine.core().find_context(Machine::request(0), machine.port()).run();
  const Context& context = std::get<Context>(found);
  measure(state, machine, [&](const TranslationRequest& request) {
    return machine.core().walk(request, context, machine.port(), {}).run();
  });
}
// With the device tables.
void translate(benchmark::State& state, const FamilyDescriptor& family, ContextKind kind) {
  Machine machine(family, kind);
  measure(state, machine,
          [&](const TranslationRequest& request) { return machine.core().translate(request, machine.port()).run(); });
}

[[maybe_unused]] const bool kRegistered = [] {
  constexpr std::array<std::pair<ContextKind, std::string_view>, 3> kKinds{
      {{ContextKind::Stage1, "stage1"}, {ContextKind::Stage2, "stage2"}, {ContextKind::Nested, "nested"}}};
  for (const FamilyDescriptor* family : families())
    for (const auto& [kind, name] : kKinds) {
      const std::string of(family->name);
      const std::string rest = "/" + std::string(name);
      benchmark::RegisterBenchmark((of + "/walk" + rest).c_str(), walk, std::cref(*family), kind);
      benchmark::RegisterBenchmark((of + "/translate" + rest).c_str(), translate, std::cref(*family), kind);
    }
  return true;
}();

}  // namespace
}  // namespace iommu
