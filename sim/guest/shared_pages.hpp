// SPDX-License-Identifier: Apache-2.0
// Tells an observer about pages that several buffers of one device share: a page may be used from its first buffer on
// until its last one is fenced, with the rights of all of them together.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "sim/guest/dma_space.hpp"

namespace iommu::guest {

class SharedPages {
 public:
  SharedPages(RequesterId device, MappingObserver& observer) : device_(device), observer_(observer) {}

  // Whole pages that a buffer takes.
  using Pages = std::vector<MapSegment>;

  // The device may use them from now on.
  void add(Picoseconds now, const Pages& pages);
  // The buffer is withdrawn; until end_removal() of the same pages the device may still reach them.
  void begin_removal(Picoseconds now, const Pages& pages);
  void end_removal(Picoseconds now, const Pages& pages);

 private:
  struct Use {
    Gpa address;
    std::uint32_t readers = 0;
    std::uint32_t writers = 0;
    std::uint32_t buffers = 0;
    std::uint32_t removals = 0;  // begun, not ended
    [[nodiscard]] Permissions permissions() const { return {.read = readers != 0, .write = writers != 0}; }
  };
  // Calls visit(page, its use, what this buffer does with it) for every page.
  template <class Visit>
  void for_each(const Pages& pages, const Visit& visit);
  void announce(Picoseconds now, Iova page, const Use& use);

  RequesterId device_;
  MappingObserver& observer_;
  std::map<Iova, Use> uses_;
};

}  // namespace iommu::guest
