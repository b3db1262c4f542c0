// SPDX-License-Identifier: Apache-2.0
// The machine frames that an I/O page table leads to.
#pragma once

#include <algorithm>
#include <vector>

#include "sim/base/address.hpp"
#include "sim/translation/table_driver.hpp"

namespace iommu::xen {

// Machine frames of the mapped pages of a range, ascending by input address.
inline std::vector<Mfn> frames_behind(const PageTable& table, AddressRange range) {
  std::vector<Mfn> frames;
  table.for_each_leaf(range, [&](const MappedLeaf& leaf) {
    const std::uint64_t end = leaf.input + (1ULL << leaf.page_lg2);
    for (std::uint64_t at = std::max(leaf.input, range.first); at < end && at < range.last; at += kPageSize.value())
      frames.push_back(Mfn(Hpa(leaf.output + (at - leaf.input))));
  });
  return frames;
}

}  // namespace iommu::xen
