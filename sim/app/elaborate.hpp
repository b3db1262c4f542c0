// SPDX-License-Identifier: Apache-2.0
// Builds the simulated machine of one run and runs it. SystemC keeps global state: call this once per process.
#pragma once

#include <functional>

#include "sim/base/units.hpp"
#include "sim/report/result.hpp"
#include "sim/scenario/scenario.hpp"

namespace iommu {

// How far a run has come, now and then; may be empty. `done` of `total` I/Os, the warm-up included; `total` is 0 when
// the end is a time.
struct Progress {
  std::uint64_t done = 0;
  std::uint64_t total = 0;
  Picoseconds now;
};
using ProgressFn = std::function<void(const Progress&)>;

// Arbitrary but reproducible permutation of SystemC's process order; 0 keeps the natural one. Results may not depend on
// it.
struct RunOptions {
  std::uint64_t shuffle = 0;
};

// What a scenario, a trace or a family makes impossible is thrown as std::runtime_error with one clear line.
RunResult run_one(const scenario::Scenario& scenario, const scenario::RunSelection& selection,
                  const RunOptions& options, const ProgressFn& progress);

}  // namespace iommu
