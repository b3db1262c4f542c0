// SPDX-License-Identifier: Apache-2.0
// Quantities that only configuration knows. Time and sizes are those of sim/base/units.hpp.
#pragma once

#include <cstdint>

#include "sim/base/units.hpp"

namespace iommu::scenario {

using Hertz = Quantity<struct HertzUnit, std::uint64_t>;
using BitsPerSecond = Quantity<struct BitRateUnit, std::uint64_t>;

// Time that `amount` takes at `rate`, rounded to the nearest picosecond.
[[nodiscard]] constexpr Picoseconds transfer_time(Bytes amount, BitsPerSecond rate) {
  const double ps = static_cast<double>(amount.value()) * 8e12 / static_cast<double>(rate.value());
  return Picoseconds(static_cast<std::int64_t>(ps + 0.5));
}

}  // namespace iommu::scenario
