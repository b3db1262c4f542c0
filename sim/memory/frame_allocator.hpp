// SPDX-License-Identifier: Apache-2.0
// Hands out machine frames of one contiguous range: first fit, lowest address first, so that a run is reproducible.
// Memory use depends on fragmentation, not on the size of the range.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "sim/base/address.hpp"

namespace iommu {

class FrameAllocator {
 public:
  FrameAllocator(Mfn first, std::uint64_t frames);

  // 2^order frames, aligned to their number; nullopt when no such block is free.
  [[nodiscard]] std::optional<Mfn> allocate(unsigned order = 0);
  // Takes exactly these frames (a guest's memory at a chosen place); nullopt when one of them is taken or outside.
  [[nodiscard]] std::optional<Mfn> reserve(Mfn first, std::uint64_t frames);
  // Gives back 2^order frames. Parts of a larger block may be given back one by one. False, and nothing happens, when
  // one of them is not in use.
  [[nodiscard]] bool release(Mfn first, unsigned order = 0);

  // What is free now: first frame and number, ascending.
  [[nodiscard]] std::vector<std::pair<Mfn, std::uint64_t>> free_runs() const {
    std::vector<std::pair<Mfn, std::uint64_t>> runs;
    for (const auto& [first, count] : free_) runs.emplace_back(Mfn(first), count);
    return runs;
  }
  [[nodiscard]] std::uint64_t frames() const { return frames_; }
  [[nodiscard]] std::uint64_t used() const { return used_; }
  [[nodiscard]] std::uint64_t peak_used() const { return peak_; }

 private:
  using Extents = std::map<std::uint64_t, std::uint64_t>;  // first frame -> number of free frames
  void take(Extents::iterator extent, std::uint64_t first, std::uint64_t count);

  std::uint64_t first_;
  std::uint64_t frames_;
  Extents free_;
  std::uint64_t used_ = 0;
  std::uint64_t peak_ = 0;
};

}  // namespace iommu
