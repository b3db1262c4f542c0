// SPDX-License-Identifier: Apache-2.0
#include "sim/pcie/trace_builder.hpp"

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstdio>
#include <limits>
#include <numeric>

namespace iommu {

namespace {

constexpr std::uint32_t kMostOperations = std::numeric_limits<std::uint32_t>::max() - 2;
constexpr Bytes kLargestDma{1 << 20};

template <class... Args>
std::string text(const char* format, Args... args) {
  std::array<char, 200> buffer{};
  std::snprintf(buffer.data(), buffer.size(), format, args...);
  return buffer.data();
}

bool wraps(std::uint64_t first, Bytes length) { return first + (length.value() - 1) < first; }

Permissions united(Permissions a, Permissions b) { return {.read = a.read || b.read, .write = a.write || b.write}; }

}  // namespace

std::uint64_t TraceBuilder::last_byte(std::uint32_t segment) const {
  const TraceSegment& where = segments_[segment].where;
  return where.iova.value() + (where.length.value() - 1);
}

// The live segment that holds the address, or end().
TraceBuilder::Live::const_iterator TraceBuilder::live_at(std::uint64_t address) const {
  auto after = live_.upper_bound(address);
  if (after == live_.begin()) return live_.end();
  --after;
  return last_byte(after->second) >= address ? after : live_.end();
}

std::optional<Bytes> TraceBuilder::mapped_from(Iova iova) const {
  const auto found = live_at(iova.value());
  if (found == live_.end()) return std::nullopt;
  return Bytes(last_byte(found->second) - iova.value() + 1);
}

TraceBuilder::Problem TraceBuilder::map(std::uint64_t line, Iova iova, Bytes length, Gpa physical,
                                        std::optional<Permissions> permissions) {
  if (length == Bytes(0)) return "maps zero bytes";
  if (!iova.is_aligned(kPageLg2) || !physical.is_aligned(kPageLg2) || length % kPageSize != Bytes(0))
    return "maps something other than whole 4 KiB pages";
  if (wraps(iova.value(), length) || wraps(physical.value(), length)) return "maps past the end of the address space";
  if (operations_.size() >= kMostOperations) return "the trace has too many operations";
  const std::uint64_t first = iova.value();
  const std::uint64_t last = first + (length.value() - 1);
  auto overlap = live_at(first);
  if (overlap == live_.end()) {
    overlap = live_.lower_bound(first);
    if (overlap != live_.end() && overlap->first > last) overlap = live_.end();
  }
  if (overlap != live_.end()) {
    const Segment& there = segments_[overlap->second];
    if (there.where.iova == iova && there.where.length == length && there.where.physical == physical) {
      ++repeated_maps_;
      return {};
    }
    return text("maps %" PRIx64 ", which line %" PRIu64 " had mapped", first, there.line);
  }
  const auto index = static_cast<std::uint32_t>(segments_.size());
  segments_.push_back({.where = {.iova = iova, .length = length, .physical = physical},
                       .line = line,
                       .operation = static_cast<std::uint32_t>(operations_.size()),
                       .free_since = last_unmap_of(first, last),
                       .call = index,
                       .permissions = permissions,
                       .seen = {}});
  operations_.push_back({TraceOperationKind::Map, index});
  live_.emplace(first, index);
  return {};
}

TraceBuilder::Problem TraceBuilder::unmap(Iova iova, Bytes length) {
  if (length == Bytes(0)) return "unmaps zero bytes";
  const std::uint64_t first = iova.value();
  if (wraps(first, length)) return "unmaps past the end of the address space";
  if (operations_.size() >= kMostOperations) return "the trace has too many operations";
  const std::uint64_t last = first + (length.value() - 1);
  std::vector<std::uint32_t> covered;
  for (std::uint64_t at = first;;) {
    const auto found = live_at(at);
    if (found == live_.end()) return text("unmaps %" PRIx64 ", which is not mapped", at);
    const std::uint64_t end = last_byte(found->second);
    if (found->first != at || end > last)
      return text("unmaps a part of what line %" PRIu64 " mapped", segments_[found->second].line);
    covered.push_back(found->second);
    if (end == last) break;
    at = end + 1;
  }
  // One call made all of them, so all of their range was free when it began.
  const std::uint32_t call = *std::min_element(covered.begin(), covered.end());
  for (const std::uint32_t segment : covered) {
    if (segments_[segment].free_since > segments_[call].operation)
      return text("unmaps as one what line %" PRIu64 " and line %" PRIu64 " mapped apart", segments_[call].line,
                  segments_[segment].line);
    segments_[segment].call = call;
    live_.erase(segments_[segment].where.iova.value());
  }
  remember_unmap(first, last);
  operations_.push_back({TraceOperationKind::Unmap, call});
  return {};
}

TraceBuilder::Problem TraceBuilder::dma(Iova iova, Bytes length, Access access, TraceDmaClass kind,
                                        std::optional<Permissions> seen) {
  if (length == Bytes(0)) return "DMA of zero bytes";
  if (length > kLargestDma) return "one DMA of more than 1 MiB";
  if (wraps(iova.value(), length)) return "DMA past the end of the address space";
  while (length > Bytes(0)) {
    const auto found = live_at(iova.value());
    if (found == live_.end()) return text("DMA to %" PRIx64 ", which is not mapped", iova.value());
    if (operations_.size() >= kMostOperations) return "the trace has too many operations";
    Segment& segment = segments_[found->second];
    const Bytes part = std::min(length, Bytes(last_byte(found->second) - iova.value() + 1));
    if (seen) segment.seen = united(segment.seen, *seen);
    operations_.push_back({TraceOperationKind::Dma, static_cast<std::uint32_t>(dmas_.size())});
    dmas_.push_back({.iova = iova, .length = part, .map = 0, .segment = found->second, .access = access, .kind = kind});
    iova = iova + part;
    length -= part;
  }
  return {};
}

// The operation after the last unmap of any byte of the range; 0 when there was none.
std::uint32_t TraceBuilder::last_unmap_of(std::uint64_t first, std::uint64_t last) const {
  std::uint32_t latest = 0;
  auto range = unmapped_.upper_bound(first);
  if (range != unmapped_.begin() && std::prev(range)->second.last >= first) --range;
  for (; range != unmapped_.end() && range->first <= last; ++range)
    latest = std::max(latest, range->second.operation_after);
  return latest;
}

void TraceBuilder::remember_unmap(std::uint64_t first, std::uint64_t last) {
  auto range = unmapped_.upper_bound(first);
  if (range != unmapped_.begin() && std::prev(range)->second.last >= first) --range;
  while (range != unmapped_.end() && range->first <= last) {
    const std::uint64_t old_first = range->first;
    const Unmapped old = range->second;
    range = unmapped_.erase(range);
    if (old_first < first) unmapped_[old_first] = {first - 1, old.operation_after};
    if (old.last > last) unmapped_[last + 1] = {old.last, old.operation_after};
  }
  unmapped_[first] = {last, static_cast<std::uint32_t>(operations_.size()) + 1};
}

Trace TraceBuilder::finish() {
  Trace trace;
  trace.repeated_maps = repeated_maps_;
  const std::vector<Place> places = group_calls(trace);
  trace.dmas = dmas_;
  for (TraceDma& dma : trace.dmas) {
    const Place place = places[dma.segment];
    dma.map = place.map;
    dma.segment = place.segment;
    ++trace.maps[dma.map].dmas;
  }
  for (const Operation& operation : operations_) {
    std::uint32_t index = operation.index;
    if (operation.kind == TraceOperationKind::Map) {
      if (segments_[index].call != index) continue;  // part of a call that began earlier
      index = places[index].map;
    } else if (operation.kind == TraceOperationKind::Unmap) {
      trace.unmaps.push_back({places[index].map});
      index = static_cast<std::uint32_t>(trace.unmaps.size() - 1);
    }
    trace.operations.push_back({operation.kind, index});
  }
  return trace;
}

// Segments of one call become neighbours, in ascending order of address; calls keep the order in which they began.
std::vector<TraceBuilder::Place> TraceBuilder::group_calls(Trace& trace) const {
  std::vector<std::uint32_t> order(segments_.size());
  std::iota(order.begin(), order.end(), 0U);
  std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
    if (segments_[a].call != segments_[b].call) return segments_[a].call < segments_[b].call;
    return segments_[a].where.iova < segments_[b].where.iova;
  });
  std::vector<Place> places(segments_.size());
  std::vector<Permissions> seen;  // by call
  std::optional<std::uint32_t> current;
  for (const std::uint32_t i : order) {
    const Segment& segment = segments_[i];
    const auto here = static_cast<std::uint32_t>(trace.segments.size());
    if (current != segment.call) {
      current = segment.call;
      trace.maps.push_back({.first_segment = here, .segments = 0, .line = segments_[segment.call].line});
      seen.emplace_back();
    }
    TraceMap& map = trace.maps.back();
    ++map.segments;
    map.length += segment.where.length;
    map.permissions = united(map.permissions, segment.permissions.value_or(Permissions{}));
    seen.back() = united(seen.back(), segment.seen);
    places[i] = {.map = static_cast<std::uint32_t>(trace.maps.size() - 1), .segment = here};
    trace.segments.push_back(segment.where);
    const std::uint64_t last = segment.where.physical.value() + (segment.where.length.value() - 1);
    trace.highest_physical = std::max(trace.highest_physical, last);
  }
  for (std::size_t m = 0; m < trace.maps.size(); ++m) {
    Permissions& permissions = trace.maps[m].permissions;
    if (permissions.none()) permissions = seen[m].none() ? kReadWrite : seen[m];
  }
  return places;
}

}  // namespace iommu
