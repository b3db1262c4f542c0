// SPDX-License-Identifier: Apache-2.0
// What no single key can say: combinations that cannot be, names that lead nowhere, memory that is not there.
#pragma once

#include "sim/scenario/topology.hpp"

namespace iommu::scenario {

// Also fills in what is resolved: labels, device indices.
void check_scenario(Scenario& scenario, const Complain& complain);

}  // namespace iommu::scenario
