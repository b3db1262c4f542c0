// SPDX-License-Identifier: Apache-2.0
#include "sim/guest/trace_operations.hpp"

#include <algorithm>
#include <utility>

namespace iommu::guest {

namespace {
Bytes whole_pages(Bytes bytes) { return (bytes + kPageSize - 1_B) / kPageSize * kPageSize; }

bool is_page_aligned(const TraceSegment& segment) {
  return segment.iova.is_aligned(kPageLg2) && segment.physical.is_aligned(kPageLg2) &&
         segment.length % kPageSize == 0_B;
}
}  // namespace

Task<std::vector<Iova>> TraceOperations::map(CpuPort& cpu, Map call) {
  std::vector<Iova> addresses;
  if (addresses_ == TraceAddresses::Recorded)
    addresses = co_await map_recorded(cpu, call);
  else if (addresses_ == TraceAddresses::OnePerSegment)
    addresses = co_await map_each(cpu, call);
  else
    addresses = co_await map_allocated(cpu, call);
  if (addresses.empty()) ++failures_;
  co_return addresses;
}

Task<std::vector<Iova>> TraceOperations::map_recorded(CpuPort& cpu, Map call) {
  std::vector<Iova> addresses;
  std::vector<MapSegment> segments;
  Bytes total;
  for (const TraceSegment& segment : call.segments) {
    if (!is_page_aligned(segment)) co_return addresses;
    segments.push_back({segment.iova, segment.physical, segment.length, call.permissions});
    total += segment.length;
  }
  if (segments.empty()) co_return addresses;
  const Mapped mapped{segments.front().iova, total};
  const DmaStatus status = co_await api_.map_at(cpu, std::move(segments));
  if (status != DmaStatus::Ok) co_return addresses;
  live_[call.id] = {mapped};
  for (const TraceSegment& segment : call.segments)
    addresses.push_back(api_.is_identity() ? Iova(segment.physical.value()) : segment.iova);
  co_return addresses;
}

Task<std::vector<Iova>> TraceOperations::map_allocated(CpuPort& cpu, Map call) {
  std::vector<Iova> addresses;
  std::vector<ScatterEntry> list;
  Bytes total;
  for (const TraceSegment& segment : call.segments) {
    list.push_back({segment.physical, segment.length});
    total += whole_pages(Bytes(segment.physical.offset_in(kPageLg2)) + segment.length);
  }
  const DmaMapping mapped = co_await api_.map_scatterlist(cpu, std::move(list), call.permissions);
  if (mapped.status != DmaStatus::Ok) co_return addresses;
  live_[call.id] = {Mapped{mapped.address, total}};
  Iova next = mapped.address.aligned_down(kPageLg2);
  for (const TraceSegment& segment : call.segments) {
    const Bytes offset(segment.physical.offset_in(kPageLg2));
    addresses.push_back(api_.is_identity() ? Iova(segment.physical.value()) : next + offset);
    next = next + whole_pages(offset + segment.length);
  }
  co_return addresses;
}

Task<std::vector<Iova>> TraceOperations::map_each(CpuPort& cpu, Map call) {
  std::vector<Iova> addresses;
  std::vector<Mapped> done;
  for (const TraceSegment& segment : call.segments) {
    std::vector<ScatterEntry> one{ScatterEntry{segment.physical, segment.length}};
    const DmaMapping mapped = co_await api_.map_scatterlist(cpu, std::move(one), call.permissions);
    if (mapped.status != DmaStatus::Ok) {
      for (const Mapped& earlier : done) co_await remove(cpu, earlier);
      addresses.clear();
      co_return addresses;
    }
    done.push_back({mapped.address, segment.length});
    addresses.push_back(mapped.address);
  }
  live_[call.id] = std::move(done);
  co_return addresses;
}

Task<DmaStatus> TraceOperations::remove(CpuPort& cpu, Mapped mapped) {
  if (addresses_ == TraceAddresses::Recorded) co_return co_await api_.unmap_at(cpu, {mapped.first, mapped.length});
  if (addresses_ == TraceAddresses::OnePerSegment) co_return co_await api_.unmap(cpu, mapped.first, mapped.length);
  co_return co_await api_.unmap(cpu, mapped.first.aligned_down(kPageLg2), mapped.length);
}

Task<void> TraceOperations::unmap(CpuPort& cpu, Unmap call) {
  const auto found = live_.find(call.id);
  if (found == live_.end()) co_return;
  const std::vector<Mapped> pieces = std::move(found->second);
  live_.erase(found);
  for (const Mapped& piece : pieces) {
    const DmaStatus status = co_await remove(cpu, piece);
    if (status != DmaStatus::Ok) ++failures_;
  }
}

}  // namespace iommu::guest
