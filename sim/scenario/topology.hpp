// SPDX-License-Identifier: Apache-2.0
// Who is connected to whom: resolves names to indices and refuses what cannot be wired.
#pragma once

#include <functional>
#include <string>

#include "sim/scenario/scenario.hpp"

namespace iommu::scenario {

// Called with the path of the key at fault ("devices[1].upstream") and what is wrong.
using Complain = std::function<void(const std::string& path, const std::string& message)>;

// Fills in the resolved members of every device that can be resolved.
void resolve_topology(Scenario& scenario, const Complain& complain);

}  // namespace iommu::scenario
