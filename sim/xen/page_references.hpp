// SPDX-License-Identifier: Apache-2.0
// References that IOMMU mappings hold on machine frames: a frame with references may not be given to somebody else.
#pragma once

#include <cstdint>
#include <unordered_map>

#include "sim/base/address.hpp"
#include "sim/base/check.hpp"

namespace iommu::xen {

class PageReferences {
 public:
  void take(Mfn frame) {
    ++counts_[frame];
    ++total_;
  }
  void drop(Mfn frame) {
    const auto found = counts_.find(frame);
    SIM_CHECK(found != counts_.end(), "a dropped reference was taken");
    if (--found->second == 0) counts_.erase(found);
    --total_;
  }
  [[nodiscard]] std::uint32_t of(Mfn frame) const {
    const auto found = counts_.find(frame);
    return found == counts_.end() ? 0 : found->second;
  }
  [[nodiscard]] std::uint64_t total() const { return total_; }

 private:
  std::unordered_map<Mfn, std::uint32_t> counts_;
  std::uint64_t total_ = 0;
};

}  // namespace iommu::xen
