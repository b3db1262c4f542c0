// SPDX-License-Identifier: Apache-2.0
#include "sim/xen/table_arena.hpp"

#include <algorithm>

#include "sim/base/check.hpp"

namespace iommu::xen {

TableArena::TableArena(HostMemory& memory, Mfn first, std::uint64_t pages)
    : memory_(memory), first_(first), in_use_(pages, false) {
  counters_.pages = pages;
}

std::optional<std::uint64_t> TableArena::allocate(unsigned pages_lg2) {
  while (lowest_free_ < in_use_.size() && in_use_[lowest_free_]) ++lowest_free_;
  const bool kept_back = purpose_ == Purpose::Mapping && used_ + set_aside_ >= in_use_.size();
  if (pages_lg2 != 0 || kept_back || lowest_free_ == in_use_.size()) {
    ++counters_.refused;
    return std::nullopt;
  }
  in_use_[lowest_free_] = true;
  ++used_;
  counters_.peak = std::max(counters_.peak, used_);
  const Mfn frame = first_ + lowest_free_;
  memory_.clear_page(frame);
  return frame.address().value();
}

void TableArena::give_up(std::uint64_t pages) {
  SIM_CHECK(pages <= set_aside_, "what is given up was set aside");
  set_aside_ -= pages;
}

void TableArena::release(std::uint64_t address, unsigned pages_lg2) {
  const std::uint64_t index = Mfn(Hpa(address)).value() - first_.value();
  SIM_CHECK(pages_lg2 == 0 && index < in_use_.size() && in_use_[index], "a released table page came from this arena");
  in_use_[index] = false;
  lowest_free_ = std::min(lowest_free_, index);
  --used_;
}

}  // namespace iommu::xen
