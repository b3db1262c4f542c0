// SPDX-License-Identifier: Apache-2.0
#include "sim/xen/p2m.hpp"

#include <algorithm>

namespace iommu::xen {

namespace {
std::uint64_t end_of(const P2mExtent& extent) { return extent.first.value() + extent.pages; }
}  // namespace

std::vector<P2mExtent>::const_iterator P2m::first_reaching(Gfn frame) const {
  return std::partition_point(extents_.begin(), extents_.end(),
                              [&](const P2mExtent& extent) { return end_of(extent) <= frame.value(); });
}

bool P2m::add(P2mExtent extent) {
  if (extent.pages == 0 || end_of(extent) < extent.pages) return false;
  const auto next = first_reaching(extent.first);
  if (next != extents_.end() && next->first.value() < end_of(extent)) return false;
  const auto place = extents_.begin() + (next - extents_.begin());
  if (place != extents_.begin()) {
    P2mExtent& before = *std::prev(place);
    if (before.type == extent.type && end_of(before) == extent.first.value() &&
        before.machine + before.pages == extent.machine) {
      before.pages += extent.pages;
      return true;
    }
  }
  extents_.insert(place, extent);
  return true;
}

void P2m::remove(Gfn first, std::uint64_t pages) {
  const std::uint64_t end = first.value() + pages;
  std::vector<P2mExtent> kept;
  kept.reserve(extents_.size() + 1);
  for (const P2mExtent& extent : extents_) {
    if (end_of(extent) <= first.value() || extent.first.value() >= end) {
      kept.push_back(extent);
      continue;
    }
    if (extent.first < first)
      kept.push_back({extent.first, first.value() - extent.first.value(), extent.machine, extent.type});
    if (end_of(extent) > end) {
      const std::uint64_t skipped = end - extent.first.value();
      kept.push_back({Gfn(end), end_of(extent) - end, extent.machine + skipped, extent.type});
    }
  }
  extents_ = std::move(kept);
}

std::optional<P2m::Entry> P2m::lookup(Gfn frame) const {
  const auto extent = first_reaching(frame);
  if (extent == extents_.end() || frame < extent->first) return std::nullopt;
  const std::uint64_t offset = frame.value() - extent->first.value();
  return Entry{extent->machine + offset, extent->type, extent->pages - offset};
}

std::uint64_t P2m::absent(Gfn frame) const {
  const auto extent = first_reaching(frame);
  if (extent == extents_.end()) return ~0ULL - frame.value();
  return extent->first > frame ? extent->first.value() - frame.value() : 0;
}

std::optional<Gfn> P2m::frame_of(Mfn machine) const {
  for (const P2mExtent& extent : extents_) {
    if (extent.type != FrameType::Ram || machine < extent.machine || machine >= extent.machine + extent.pages) continue;
    return extent.first + (machine.value() - extent.machine.value());
  }
  return std::nullopt;
}

std::optional<Mfn> P2m::memory_frame(Gfn frame) const {
  const auto entry = lookup(frame);
  if (!entry || entry->type != FrameType::Ram) return std::nullopt;
  return entry->machine;
}

}  // namespace iommu::xen
