// SPDX-License-Identifier: Apache-2.0
#include "sim/guest/aperture.hpp"

#include <algorithm>

#include "sim/base/check.hpp"

namespace iommu::guest {

void Aperture::reserve(IovaRange range) {
  for (std::uint64_t i = 0; i < taken_.size(); ++i)
    if (range.overlaps({first_ + kPageSize * i, kPageSize})) taken_[i] = true;
}

std::optional<Iova> Aperture::allocate_from(std::uint64_t begin, std::uint64_t pages) {
  std::uint64_t run = 0;
  for (std::uint64_t i = begin; i < taken_.size() && pages != 0; ++i) {
    run = taken_[i] ? 0 : run + 1;
    if (run < pages) continue;
    const std::uint64_t first = i + 1 - pages;
    std::fill_n(taken_.begin() + static_cast<std::ptrdiff_t>(first), pages, true);
    next_ = i + 1;
    return first_ + kPageSize * first;
  }
  return std::nullopt;
}

void Aperture::free(Iova first, std::uint64_t pages) {
  const std::uint64_t index = (first - first_) / kPageSize;
  SIM_CHECK(index + pages <= taken_.size(), "what is freed was allocated");
  std::fill_n(taken_.begin() + static_cast<std::ptrdiff_t>(index), pages, false);
  if (freed_ahead_ == FreedAhead::Skipped && index >= next_) next_ = index + pages;
}

}  // namespace iommu::guest
