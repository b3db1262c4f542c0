// SPDX-License-Identifier: Apache-2.0
// How a cache chooses a set and what to evict there. In base because both the cache and the scenario that configures it
// name it.
#pragma once

#include <cstdint>

namespace iommu {

enum class Replacement : std::uint8_t { Lru, TreePlru, Random };

enum class SetIndex : std::uint8_t {
  LowBits,  // of the page number: equal strides may pile up in one set, a contiguous range never does
  Hashed,   // of page number and tags: any range fills sets unevenly, so that fewer entries than there are take effect
};

}  // namespace iommu
