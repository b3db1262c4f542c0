// SPDX-License-Identifier: Apache-2.0
// Next-fit allocation of a range of addresses by a bitmap, as kernels with one flat table do it: each search begins
// where the last one ended, so that an address is not used again before the range has been gone through once.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "sim/guest/dma_space.hpp"

namespace iommu::guest {

// What becomes of pages that are freed ahead of the next search: free at once, or only after the next wrap.
enum class FreedAhead : std::uint8_t { Usable, Skipped };

class Aperture {
 public:
  Aperture(IovaRange range, FreedAhead freed_ahead)
      : first_(range.first), taken_(range.pages(), false), freed_ahead_(freed_ahead) {}

  // Before anything is allocated: addresses that never are.
  void reserve(IovaRange range);
  // From where the last search ended; nullopt: nothing up to the end.
  std::optional<Iova> allocate_ahead(std::uint64_t pages) { return allocate_from(next_, pages); }
  // From the beginning; nullopt: it is full, or in pieces that are too small.
  std::optional<Iova> allocate_again(std::uint64_t pages) { return allocate_from(0, pages); }
  void free(Iova first, std::uint64_t pages);
  // The last search ended at the end: the next one begins at the beginning.
  [[nodiscard]] bool is_at_end() const { return next_ == taken_.size(); }

 private:
  std::optional<Iova> allocate_from(std::uint64_t begin, std::uint64_t pages);
  Iova first_;
  std::vector<bool> taken_;
  std::uint64_t next_ = 0;
  FreedAhead freed_ahead_;
};

}  // namespace iommu::guest
