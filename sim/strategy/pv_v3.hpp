// SPDX-License-Identifier: Apache-2.0
// A guest kernel on the hypercall of v1 to v3: the hardware domain, one operation a call, at most 256 pages each.
#pragma once

#include <memory>

#include "sim/strategy/strategy.hpp"

namespace iommu::strategy {

// `environment.hypercall_v3` is there, and its domain is set up.
[[nodiscard]] std::unique_ptr<DmaStrategy> make_pv_iommu_v3(const StrategyEnvironment& environment);

}  // namespace iommu::strategy
