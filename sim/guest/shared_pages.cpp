// SPDX-License-Identifier: Apache-2.0
#include "sim/guest/shared_pages.hpp"

#include "sim/base/check.hpp"

namespace iommu::guest {

template <class Visit>
void SharedPages::for_each(const Pages& pages, const Visit& visit) {
  for (const MapSegment& segment : pages)
    for (Bytes done; done < segment.length; done += kPageSize) {
      Use& use = uses_[segment.iova + done];
      use.address = segment.address + done;
      visit(segment.iova + done, use, segment.permissions);
    }
}

void SharedPages::announce(Picoseconds now, Iova page, const Use& use) {
  observer_.on_map_called(now, device_, {page, use.address, kPageSize, use.permissions()});
  observer_.on_mapped(now, device_, {page, kPageSize});
}

void SharedPages::add(Picoseconds now, const Pages& pages) {
  for_each(pages, [&](Iova page, Use& use, Permissions wanted) {
    ++use.buffers;
    use.readers += wanted.read ? 1U : 0U;
    use.writers += wanted.write ? 1U : 0U;
    announce(now, page, use);
  });
}

void SharedPages::begin_removal(Picoseconds now, const Pages& pages) {
  for_each(pages, [&](Iova page, Use& use, Permissions had) {
    SIM_CHECK(use.buffers != 0, "a buffer is removed once");
    --use.buffers;
    ++use.removals;
    use.readers -= had.read ? 1U : 0U;
    use.writers -= had.write ? 1U : 0U;
    if (use.buffers == 0) observer_.on_unmap_called(now, device_, {page, kPageSize});
  });
}

void SharedPages::end_removal(Picoseconds now, const Pages& pages) {
  for_each(pages, [&](Iova page, Use& use, Permissions) {
    if (--use.removals != 0) return;
    if (use.buffers != 0) {
      announce(now, page, use);  // the rights that are left
      return;
    }
    observer_.on_fenced(now, device_, {page, kPageSize});
    uses_.erase(page);
  });
}

}  // namespace iommu::guest
