// SPDX-License-Identifier: Apache-2.0
// How a cache chooses what to evict. In base because both the cache and the scenario that configures it name it.
#pragma once

#include <cstdint>

namespace iommu {

enum class Replacement : std::uint8_t { Lru, TreePlru, Random };

}  // namespace iommu
