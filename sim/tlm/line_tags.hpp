// SPDX-License-Identifier: Apache-2.0
// Which 64-byte lines the last-level cache holds: tags only, true LRU within a set. Not an AssociativeCache: a server's
// LLC has hundreds of thousands of lines, and one tag of eight bytes per line is all that timing needs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "sim/base/address.hpp"
#include "sim/base/check.hpp"

namespace iommu {

class LineTags {
 public:
  static constexpr unsigned kLineLg2 = 6;

  // No lines: nothing ever hits. `ways` divides `lines`.
  LineTags(std::uint64_t lines, std::uint32_t ways) : ways_(ways), sets_(lines == 0 ? 0 : lines / ways) {
    SIM_CHECK(lines == 0 || (ways != 0 && lines % ways == 0), "cache shapes are validated with the scenario");
    tags_.resize(lines, kEmpty);
  }

  // True on a hit, which makes the line the most recently used.
  bool touch(Hpa address) {
    if (sets_ == 0) return false;
    const std::uint64_t line = address.value() >> kLineLg2;
    const auto set = first_of(line);
    const auto found = std::find(set, set + ways_, line);
    if (found == set + ways_) return false;
    std::rotate(set, found, found + 1);
    return true;
  }
  // Puts the line in as the most recently used, in place of the set's oldest.
  void fill(Hpa address) {
    if (sets_ == 0 || touch(address)) return;
    const std::uint64_t line = address.value() >> kLineLg2;
    const auto set = first_of(line);
    std::rotate(set, set + ways_ - 1, set + ways_);
    *set = line;
  }

 private:
  static constexpr std::uint64_t kEmpty = ~0ULL;
  // Sets are chosen by a mix of all address bits, as LLCs with slices do: equal strides do not pile up in one set.
  [[nodiscard]] std::vector<std::uint64_t>::iterator first_of(std::uint64_t line) {
    const std::uint64_t mixed = (line ^ line >> 29) * 0x9e3779b97f4a7c15ULL;
    const auto set = static_cast<std::uint64_t>(static_cast<unsigned __int128>(mixed) * sets_ >> 64);
    return tags_.begin() + static_cast<std::ptrdiff_t>(set * ways_);
  }

  std::uint32_t ways_;
  std::uint64_t sets_;
  std::vector<std::uint64_t> tags_;
};

}  // namespace iommu
