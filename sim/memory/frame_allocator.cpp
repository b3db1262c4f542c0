// SPDX-License-Identifier: Apache-2.0
#include "sim/memory/frame_allocator.hpp"

#include <algorithm>

namespace iommu {

FrameAllocator::FrameAllocator(Mfn first, std::uint64_t frames) : first_(first.value()), frames_(frames) {
  if (frames > 0) free_.emplace(first_, frames);
}

std::optional<Mfn> FrameAllocator::allocate(unsigned order) {
  if (order >= 52) return std::nullopt;  // beyond any address space
  const std::uint64_t count = 1ULL << order;
  for (auto extent = free_.begin(); extent != free_.end(); ++extent) {
    const auto [start, length] = *extent;
    const std::uint64_t aligned = (start + count - 1) & ~(count - 1);
    if (aligned - start > length || length - (aligned - start) < count) continue;
    take(extent, aligned, count);
    return Mfn(aligned);
  }
  return std::nullopt;
}

std::optional<Mfn> FrameAllocator::reserve(Mfn first, std::uint64_t frames) {
  auto extent = free_.upper_bound(first.value());
  if (extent == free_.begin() || frames == 0) return std::nullopt;
  --extent;
  const auto [start, length] = *extent;
  const std::uint64_t skipped = first.value() - start;
  if (skipped >= length || length - skipped < frames) return std::nullopt;
  take(extent, first.value(), frames);
  return first;
}

bool FrameAllocator::release(Mfn first, unsigned order) {
  const std::uint64_t start = first.value();
  if (order >= 52 || start < first_) return false;
  const std::uint64_t count = 1ULL << order;
  if (count > frames_ || start - first_ > frames_ - count) return false;
  const auto next = free_.lower_bound(start);
  if (next != free_.end() && next->first < start + count) return false;
  const auto previous = next == free_.begin() ? free_.end() : std::prev(next);
  if (previous != free_.end() && previous->first + previous->second > start) return false;

  std::uint64_t merged_start = start;
  std::uint64_t merged_count = count;
  if (next != free_.end() && next->first == start + count) {
    merged_count += next->second;
    free_.erase(next);
  }
  if (previous != free_.end() && previous->first + previous->second == start) {
    merged_start = previous->first;
    merged_count += previous->second;
  }
  free_[merged_start] = merged_count;
  used_ -= count;
  return true;
}

void FrameAllocator::take(Extents::iterator extent, std::uint64_t first, std::uint64_t count) {
  const auto [start, length] = *extent;
  const std::uint64_t end = start + length;
  if (first == start)
    free_.erase(extent);
  else
    extent->second = first - start;
  if (first + count < end) free_.emplace(first + count, end - (first + count));
  used_ += count;
  peak_ = std::max(peak_, used_);
}

}  // namespace iommu
