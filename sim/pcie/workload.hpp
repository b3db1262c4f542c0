// SPDX-License-Identifier: Apache-2.0
// Pure traffic: what a synthetic device would like to do next. No time, no state of the bus.
#pragma once

#include <cstdint>
#include <optional>

#include "sim/base/rng.hpp"
#include "sim/base/units.hpp"
#include "sim/translation/request.hpp"

namespace iommu {

struct DmaOperation {
  Iova address;
  Bytes length;
  Access access = Access::Read;
};

// Counts I/Os of all devices of a run as they complete, those that failed included.
struct IoMeter {
  std::uint64_t completed = 0;
};

class Workload {
 public:
  virtual ~Workload() = default;
  // The next operation; nullopt: no more traffic.
  virtual std::optional<DmaOperation> next(Rng& rng, Picoseconds now) = 0;
};

}  // namespace iommu
