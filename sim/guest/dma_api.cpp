// SPDX-License-Identifier: Apache-2.0
#include "sim/guest/dma_api.hpp"

#include <algorithm>
#include <utility>

namespace iommu::guest {

namespace {
Bytes whole_pages(Bytes bytes) { return (bytes + kPageSize - 1_B) / kPageSize * kPageSize; }

// [address, address + length) widened to whole pages.
IovaRange pages_around(Iova address, Bytes length) {
  return {address.aligned_down(kPageLg2), whole_pages(Bytes(address.offset_in(kPageLg2)) + length)};
}

IovaAllocatorShape limited(IovaAllocatorShape shape, Iova last_address) {
  shape.last_page = std::min(shape.last_page, Dfn(last_address).value());
  return shape;
}
}  // namespace

DmaApi::DmaApi(RequesterId device, DmaSpace& space, MappingObserver& observer, const DmaApiOptions& options,
               unsigned cpus, SignalPort* signals)
    : device_(device),
      space_(space),
      observer_(observer),
      options_(options),
      lazy_(options.unmapping == Unmapping::Lazy && !space.is_identity() && space.can_defer()),
      allocator_(limited(options.iova, space.last_address()), cpus),
      signals_(signals) {
  for (unsigned i = 0; i < cpus; ++i) queues_.push_back(std::make_unique<FlushQueue>());
}

std::uint64_t DmaApi::waiting() const {
  std::uint64_t count = 0;
  for (const auto& queue : queues_)
    count += static_cast<std::uint64_t>(
        std::count_if(queue->entries.begin(), queue->entries.end(), [](const Waiting& w) { return !w.fenced; }));
  return count;
}

Task<DmaMapping> DmaApi::map(CpuPort& cpu, Gpa address, Bytes length, DmaDirection direction) {
  std::vector<ScatterEntry> whole{ScatterEntry{address, length}};
  co_return co_await map_scatterlist(cpu, std::move(whole), permissions_for(direction));
}

Task<DmaMapping> DmaApi::map_scatterlist(CpuPort& cpu, std::vector<ScatterEntry> list, Permissions permissions) {
  co_await cpu.charge(CostId::DmaMapOther);
  DmaMapping result;
  if (list.empty()) {
    result.status = DmaStatus::Rejected;
    co_return result;
  }
  const std::uint64_t offset = list.front().address.offset_in(kPageLg2);
  if (space_.is_identity()) {
    ++counters_.maps;
    result.address = Iova(list.front().address.value());
    co_return result;
  }
  Bytes total;
  for (const ScatterEntry& entry : list) total += whole_pages(Bytes(entry.address.offset_in(kPageLg2)) + entry.length);
  const auto first = co_await allocator_.allocate(cpu, total.value() >> kPageLg2);
  if (!first) {
    ++counters_.failures;
    result.status = DmaStatus::NoAddress;
    co_return result;
  }
  std::vector<MapSegment> segments;
  Iova next = *first;
  for (const ScatterEntry& entry : list) {
    const Gpa start = entry.address.aligned_down(kPageLg2);
    const Bytes bytes = whole_pages(Bytes(entry.address.offset_in(kPageLg2)) + entry.length);
    // Neighbours in guest memory are one segment, as in a merged scatterlist.
    if (!segments.empty() && segments.back().address + segments.back().length == start)
      segments.back().length += bytes;
    else
      segments.push_back({next, start, bytes, permissions});
    next = next + bytes;
  }
  const IovaRange range{*first, total};
  result.status = co_await install(cpu, segments, range, IovaOwner::Allocator);
  if (result.status == DmaStatus::Ok)
    result.address = *first + Bytes(offset);
  else
    co_await allocator_.free(cpu, *first, range.pages());
  co_return result;
}

// Maps and publishes; on failure nothing stays mapped.
Task<DmaStatus> DmaApi::install(CpuPort& cpu, const std::vector<MapSegment>& segments, IovaRange range,
                                IovaOwner owner) {
  DmaStatus status = DmaStatus::Ok;
  Bytes tried;
  for (const MapSegment& segment : segments) {
    observer_.on_map_called(cpu.now(), device_, segment);
    tried += segment.length;
    status = co_await space_.map(cpu, segment);
    if (status != DmaStatus::Ok) break;
  }
  if (status == DmaStatus::Ok) status = co_await space_.sync_map(cpu, range);
  if (status == DmaStatus::Ok) {
    observer_.on_mapped(cpu.now(), device_, range);
    live_.emplace(range.first, Live{range.length, owner});
    ++counters_.maps;
    co_return status;
  }
  ++counters_.failures;
  const IovaRange partial{range.first, tried};
  observer_.on_unmap_called(cpu.now(), device_, partial);
  const UnmapGather gather = co_await space_.unmap(cpu, partial, Flush::Immediate);
  co_await space_.sync(cpu, gather);
  observer_.on_fenced(cpu.now(), device_, partial);
  co_return status;
}

Task<DmaStatus> DmaApi::unmap(CpuPort& cpu, Iova address, Bytes length) {
  co_await cpu.charge(CostId::DmaUnmapOther);
  if (space_.is_identity()) {
    ++counters_.unmaps;
    co_return DmaStatus::Ok;
  }
  const IovaRange range = pages_around(address, length);
  const auto found = live_.find(range.first);
  if (found == live_.end() || found->second.length != range.length || found->second.owner != IovaOwner::Allocator) {
    ++counters_.failures;
    co_return DmaStatus::Rejected;
  }
  live_.erase(found);
  co_await remove(cpu, range, IovaOwner::Allocator);
  co_return DmaStatus::Ok;
}

Task<DmaStatus> DmaApi::map_at(CpuPort& cpu, std::vector<MapSegment> segments) {
  co_await cpu.charge(CostId::DmaMapOther);
  if (space_.is_identity()) {
    ++counters_.maps;
    co_return DmaStatus::Ok;
  }
  if (segments.empty()) co_return DmaStatus::Rejected;
  IovaRange range{segments.front().iova, 0_B};
  for (const MapSegment& segment : segments) range.length += segment.length;
  if (waits(range)) {
    ++counters_.flushes_by_reuse;
    co_await flush(cpu);
  }
  co_await cpu.charge(CostId::IovaAllocCached);  // the recorded kernel allocated too; what it chose is in the trace
  co_return co_await install(cpu, segments, range, IovaOwner::Caller);
}

// A recorded driver may unmap what several maps made, or part of one: what is live is then up to the tables.
Task<DmaStatus> DmaApi::unmap_at(CpuPort& cpu, IovaRange range) {
  co_await cpu.charge(CostId::DmaUnmapOther);
  if (space_.is_identity()) {
    ++counters_.unmaps;
    co_return DmaStatus::Ok;
  }
  const auto found = live_.find(range.first);
  if (found != live_.end() && found->second.owner == IovaOwner::Caller) live_.erase(found);
  co_await remove(cpu, range, IovaOwner::Caller);
  co_return DmaStatus::Ok;
}

Task<void> DmaApi::remove(CpuPort& cpu, IovaRange range, IovaOwner owner) {
  ++counters_.unmaps;
  observer_.on_unmap_called(cpu.now(), device_, range);
  const UnmapGather gather = co_await space_.unmap(cpu, range, lazy_ ? Flush::Deferred : Flush::Immediate);
  if (gather.status != DmaStatus::Ok) ++counters_.failures;
  if (lazy_) {
    co_await queue(cpu, gather, owner);
    co_return;
  }
  co_await space_.sync(cpu, gather);
  observer_.on_fenced(cpu.now(), device_, range);
  co_await free_iova(cpu, range, owner);
}

Task<void> DmaApi::free_iova(CpuPort& cpu, IovaRange range, IovaOwner owner) {
  if (owner == IovaOwner::Caller)
    co_await cpu.charge(CostId::IovaFreeCached);
  else
    co_await allocator_.free(cpu, range.first, range.pages());
}

Task<void> DmaApi::queue(CpuPort& cpu, UnmapGather gather, IovaOwner owner) {
  FlushQueue& mine = queue_of(cpu);
  co_await cpu.acquire(mine.lock);
  co_await retire(cpu, mine);
  if (mine.entries.size() >= options_.flush_queue_entries) {
    ++counters_.flushes_by_full_queue;
    co_await flush_space(cpu);
    co_await retire(cpu, mine);
  }
  mine.entries.push_back({std::move(gather), owner, flushes_begun_, false});
  co_await cpu.charge(CostId::FlushQueueAdd);
  cpu.release(mine.lock);
  if (!timer_running_ && signals_ != nullptr) {
    timer_running_ = true;
    timer_due_ = cpu.now() + options_.flush_timeout;
    signals_->raise(timer_armed_);
  }
}

// A flush covers what was queued before it began; what is queued while it runs waits for the next one.
Task<void> DmaApi::flush_space(CpuPort& cpu) {
  const std::uint64_t mine = ++flushes_begun_;
  co_await space_.flush_all(cpu);
  flushes_done_ = std::max(flushes_done_, mine);
  mark_fenced(cpu.now());
}

void DmaApi::mark_fenced(Picoseconds now) {
  for (const auto& queue : queues_)
    for (Waiting& entry : queue->entries) {
      if (entry.fenced || entry.flushes_begun >= flushes_done_) continue;
      entry.fenced = true;
      observer_.on_fenced(now, device_, entry.gather.range);
    }
}

Task<void> DmaApi::retire(CpuPort& cpu, FlushQueue& from) {
  while (!from.entries.empty() && from.entries.front().fenced) {
    const Waiting entry = std::move(from.entries.front());
    from.entries.pop_front();
    space_.reclaim_tables(entry.gather.freed_tables);
    co_await free_iova(cpu, entry.gather.range, entry.owner);
  }
}

bool DmaApi::waits(IovaRange range) const {
  return std::any_of(queues_.begin(), queues_.end(), [&](const auto& queue) {
    return std::any_of(queue->entries.begin(), queue->entries.end(),
                       [&](const Waiting& w) { return !w.fenced && w.gather.range.overlaps(range); });
  });
}

Task<void> DmaApi::flush(CpuPort& cpu) {
  co_await flush_space(cpu);
  for (const auto& queue : queues_) {
    co_await cpu.acquire(queue->lock);
    co_await retire(cpu, *queue);
    cpu.release(queue->lock);
  }
}

Task<void> DmaApi::run_flush_timer(CpuPort& cpu) {
  for (;;) {
    co_await cpu.idle(timer_armed_);
    co_await cpu.sleep_until(timer_due_);
    timer_running_ = false;
    ++counters_.flushes_by_timer;
    co_await flush(cpu);
  }
}

}  // namespace iommu::guest
