// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "sim/strategy/strategy.hpp"

namespace iommu::strategy {

const StrategyDescriptor* find_strategy(std::string_view name) {
  const auto found = std::find_if(kStrategies.begin(), kStrategies.end(),
                                  [&](const StrategyDescriptor* strategy) { return strategy->name == name; });
  return found == kStrategies.end() ? nullptr : *found;
}

}  // namespace iommu::strategy
