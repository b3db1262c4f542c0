// SPDX-License-Identifier: Apache-2.0
#include "sim/app/elaborate.hpp"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <systemc>
#include <vector>

#include "models/families.hpp"
#include "sim/app/machine.hpp"
#include "sim/app/run_metrics.hpp"
#include "sim/base/rng.hpp"

namespace iommu {

namespace {

constexpr std::uint64_t kProgressReports = 50;

// A foreign SystemC process that does nothing, at times of its own. Some are made before the machine and some after it,
// so that the kernel runs its processes in another order and the engine stops at other times; no result may change.
class Bystander final : public sc_core::sc_module {
 public:
  Bystander(const sc_core::sc_module_name& name, std::uint64_t seed) : sc_module(name), rng_(seed, this->name()) {
    SC_HAS_PROCESS(Bystander);
    SC_METHOD(act);
  }

 private:
  void act() {
    if (++acts_ < kActs) next_trigger(sc_core::sc_time(static_cast<double>(1 + rng_.below(5000)), sc_core::SC_NS));
  }
  static constexpr std::uint64_t kActs = 2000;
  Rng rng_;
  std::uint64_t acts_ = 0;
};

using Bystanders = std::vector<std::unique_ptr<Bystander>>;

Bystanders make_bystanders(std::uint64_t seed, const std::string& prefix) {
  Bystanders bystanders;
  for (std::uint64_t i = 0; seed != 0 && i < 1 + Rng(seed, prefix).below(4); ++i)
    bystanders.push_back(std::make_unique<Bystander>((prefix + std::to_string(i)).c_str(), seed));
  return bystanders;
}

// Warm-up and measured part of a run.
class Measurement {
 public:
  Measurement(Machine& machine, const ProgressFn& progress)
      : machine_(machine), setting_(machine.scenario().measure), progress_(progress) {}

  RunResult run() {
    machine_.start();
    if (setting_.warmup_ios != 0) until_ios(setting_.warmup_ios);
    machine_.reset_statistics();
    const Picoseconds began = machine_.calendar().now();
    if (setting_.duration)
      until_time(began + *setting_.duration);
    else if (setting_.ios)
      until_ios(setting_.warmup_ios + *setting_.ios);
    else
      until_over();
    return collect_metrics(machine_, machine_.calendar().now() - began);
  }

 private:
  void until_ios(std::uint64_t target) {
    while (machine_.completed_ios() < target) {
      const std::uint64_t mark = std::min(target, machine_.completed_ios() + chunk());
      const RunEnd end = machine_.engine().run_while([&] { return machine_.completed_ios() < mark; }, limit());
      report();
      if (machine_.completed_ios() < mark) give_up(end, target);
    }
  }
  void until_over() {
    while (!machine_.is_over()) {
      const std::uint64_t mark = machine_.completed_ios() + 4096;
      const RunEnd end =
          machine_.engine().run_while([&] { return !machine_.is_over() && machine_.completed_ios() < mark; }, limit());
      report();
      if (!machine_.is_over() && machine_.completed_ios() < mark) give_up(end, 0);
    }
  }
  void until_time(Picoseconds end) {
    const Picoseconds step((end - machine_.calendar().now()).value() / static_cast<std::int64_t>(kProgressReports) + 1);
    for (Picoseconds t = machine_.calendar().now(); t < end;) {
      t = std::min(end, t + step);
      machine_.engine().run_until(t);
      report();
    }
  }

  [[nodiscard]] Picoseconds limit() const { return setting_.time_limit; }
  [[nodiscard]] std::uint64_t chunk() const {
    return std::max<std::uint64_t>(1, (setting_.warmup_ios + setting_.ios.value_or(0)) / kProgressReports);
  }
  void report() const {
    if (!progress_) return;
    std::uint64_t total = setting_.ios ? setting_.warmup_ios + *setting_.ios : 0;
    if (!setting_.ios && !setting_.duration)
      for (const auto& trace : machine_.traces()) total += trace ? trace->dmas.size() : 0;
    progress_({machine_.completed_ios(), total, machine_.calendar().now()});
  }
  [[noreturn]] void give_up(RunEnd end, std::uint64_t target) const {
    std::string text = "stopped after " + std::to_string(machine_.completed_ios());
    if (target != 0) text += " of " + std::to_string(target);
    text += " I/Os at " + std::to_string(std::llround(to_ns(machine_.calendar().now()))) + " ns: ";
    throw std::runtime_error(text + (end == RunEnd::LimitReached ? "measure.time_limit reached" : machine_.waits()));
  }

  Machine& machine_;
  const scenario::MeasureSetting& setting_;
  const ProgressFn& progress_;
};

}  // namespace

RunResult run_one(const scenario::Scenario& scenario, const scenario::RunSelection& selection,
                  const RunOptions& options, const ProgressFn& progress) {
  const FamilyDescriptor* family = find_unit(selection.family);
  if (family == nullptr) throw std::runtime_error("there is no family '" + selection.family + "'");
  const Bystanders before = make_bystanders(options.shuffle, "before");
  Machine machine(scenario, scenario.strategies[selection.strategy], *family);
  const Bystanders after = make_bystanders(options.shuffle, "after");
  machine.boot();
  RunResult result = Measurement(machine, progress).run();
  result.labels = selection.labels;
  return result;
}

}  // namespace iommu
