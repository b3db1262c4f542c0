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

// What segments cover together; nullopt: they leave gaps, are not whole pages, or reach too far.
std::optional<IovaRange> range_of(const std::vector<MapSegment>& segments, Iova last_address) {
  if (segments.empty()) return std::nullopt;
  IovaRange range{segments.front().iova, 0_B};
  for (const MapSegment& segment : segments) {
    const bool whole = segment.iova.is_aligned(kPageLg2) && segment.address.is_aligned(kPageLg2) &&
                       segment.length % kPageSize == 0_B && segment.length != 0_B;
    if (!whole || segment.iova != range.first + range.length) return std::nullopt;
    if (segment.iova > last_address || segment.length > last_address - segment.iova + 1_B) return std::nullopt;
    range.length += segment.length;
  }
  return range;
}

// Of all pieces together; nullopt: there is none, one is empty, or no address space holds them.
std::optional<Bytes> pages_under(const std::vector<ScatterEntry>& list, Iova last_address) {
  Bytes total;
  for (const ScatterEntry& entry : list) {
    if (entry.length == 0_B || entry.length.value() - 1 > last_address.value()) return std::nullopt;
    total += whole_pages(Bytes(entry.address.offset_in(kPageLg2)) + entry.length);
    if (total.value() - 1 > last_address.value()) return std::nullopt;
  }
  if (list.empty()) return std::nullopt;
  return total;
}

// With the space's own limits. Reserved ranges become disjoint.
IovaAllocatorShape limited(IovaAllocatorShape shape, const DmaSpace& space) {
  shape.last_page = std::min(shape.last_page, Dfn(space.last_address()).value());
  for (const IovaRange& range : space.reserved()) shape.reserved.push_back({Dfn(range.first).value(), range.pages()});
  std::sort(shape.reserved.begin(), shape.reserved.end(),
            [](const PageRange& a, const PageRange& b) { return a.first < b.first; });
  std::vector<PageRange> merged;
  for (const PageRange& range : shape.reserved) {
    if (merged.empty() || range.first > merged.back().first + merged.back().pages)
      merged.push_back(range);
    else
      merged.back().pages = std::max(merged.back().pages, range.first + range.pages - merged.back().first);
  }
  shape.reserved = std::move(merged);
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
      allocator_(limited(options.iova, space), cpus),
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

Task<DmaMapping> DmaApi::map(CpuPort& cpu, Gpa address, Bytes length, DmaDirection direction, DmaUse use) {
  std::vector<ScatterEntry> whole{ScatterEntry{address, length}};
  co_return co_await map_scatterlist(cpu, std::move(whole), permissions_for(direction), use);
}

Task<DmaMapping> DmaApi::map_scatterlist(CpuPort& cpu, std::vector<ScatterEntry> list, Permissions permissions,
                                         DmaUse use) {
  Installing work = co_await prepare(cpu, std::move(list), permissions, use);
  co_await enter(cpu, work);
  co_await publish(cpu, work, IovaOwner::Allocator);
  co_return work.result;
}

Task<std::vector<DmaMapping>> DmaApi::map_many(CpuPort& cpu, std::vector<ScatterEntry> buffers,
                                               DmaDirection direction) {
  std::vector<Installing> all;
  for (std::size_t i = 0; i < buffers.size(); ++i) {
    std::vector<ScatterEntry> whole{buffers[i]};
    all.push_back(co_await prepare(cpu, std::move(whole), permissions_for(direction), DmaUse::Streaming));
    co_await enter(cpu, all.back());
  }
  std::vector<DmaMapping> results;
  for (std::size_t i = 0; i < all.size(); ++i) {
    co_await publish(cpu, all[i], IovaOwner::Allocator);
    results.push_back(all[i].result);
  }
  co_return results;
}

Task<DmaApi::Installing> DmaApi::prepare(CpuPort& cpu, std::vector<ScatterEntry> list, Permissions permissions,
                                         DmaUse use) {
  co_await cpu.charge(CostId::DmaMapOther);
  Installing work;
  const auto total = pages_under(list, space_.last_address());
  if (!total) {
    ++counters_.failures;
    work.result.status = DmaStatus::Rejected;
    co_return work;
  }
  if (space_.chooses_addresses()) {
    work.result = co_await place(cpu, std::move(list), permissions, use);
    co_return work;
  }
  const std::uint64_t offset = list.front().address.offset_in(kPageLg2);
  if (space_.is_identity()) {
    ++counters_.maps;
    work.result.address = Iova(list.front().address.value());
    co_return work;
  }
  const auto first = co_await allocator_.allocate(cpu, total->value() >> kPageLg2);
  if (!first) {
    ++counters_.failures;
    work.result.status = DmaStatus::NoAddress;
    co_return work;
  }
  Iova next = *first;
  for (const ScatterEntry& entry : list) {
    const Gpa start = entry.address.aligned_down(kPageLg2);
    const Bytes bytes = whole_pages(Bytes(entry.address.offset_in(kPageLg2)) + entry.length);
    // Neighbours in guest memory are one segment, as in a merged scatterlist.
    if (!work.segments.empty() && work.segments.back().address + work.segments.back().length == start)
      work.segments.back().length += bytes;
    else
      work.segments.push_back({next, start, bytes, permissions});
    next = next + bytes;
  }
  work.range = {*first, *total};
  work.result.address = *first + Bytes(offset);
  co_return work;
}

Task<DmaMapping> DmaApi::place(CpuPort& cpu, std::vector<ScatterEntry> list, Permissions permissions, DmaUse use) {
  Bytes total;
  for (const ScatterEntry& entry : list) total += entry.length;
  const DmaSpace::Placed placed = co_await space_.place(cpu, std::move(list), permissions, use);
  DmaMapping result{placed.status, placed.address};
  ++(placed.status == DmaStatus::Ok ? counters_.maps : counters_.failures);
  if (placed.status == DmaStatus::Ok) placed_.emplace(placed.address, total);
  co_return result;
}

Task<DmaStatus> DmaApi::withdraw(CpuPort& cpu, Iova address, Bytes length) {
  const auto [begin, end] = placed_.equal_range(address);
  const auto found = std::find_if(begin, end, [&](const auto& placed) { return placed.second == length; });
  if (found == end) {
    ++counters_.failures;
    co_return DmaStatus::Rejected;
  }
  placed_.erase(found);
  ++counters_.unmaps;
  const Picoseconds began = cpu.now();
  const DmaStatus status = co_await space_.withdraw(cpu, address, length);
  counters_.flush_time.add(cpu.now() - began);
  if (status != DmaStatus::Ok) ++counters_.failures;
  co_return status;
}

Task<void> DmaApi::enter(CpuPort& cpu, Installing& work) {
  for (const MapSegment& segment : work.segments) {
    observer_.on_map_called(cpu.now(), device_, segment);
    work.tried += segment.length;
    work.result.status = co_await space_.map(cpu, segment);
    if (work.result.status != DmaStatus::Ok) {
      if (space_.undoes_maps()) work.undone = segment.length;
      break;
    }
  }
}

// On failure nothing stays mapped.
Task<void> DmaApi::publish(CpuPort& cpu, Installing& work, IovaOwner owner) {
  if (work.segments.empty()) co_return;
  DmaStatus& status = work.result.status;
  if (status == DmaStatus::Ok) status = co_await space_.sync_map(cpu, work.range);
  if (status == DmaStatus::Ok) {
    observer_.on_mapped(cpu.now(), device_, work.range);
    live_.emplace(work.range.first, Live{work.range.length, owner});
    ++counters_.maps;
    co_return;
  }
  ++counters_.failures;
  work.result.address = Iova();
  const IovaRange partial{work.range.first, work.tried};
  observer_.on_unmap_called(cpu.now(), device_, partial);
  const IovaRange left{partial.first, work.tried - work.undone};
  if (left.length != 0_B) {
    const UnmapGather gather = co_await space_.unmap(cpu, left, Flush::Immediate);
    co_await space_.sync(cpu, gather);
  }
  observer_.on_fenced(cpu.now(), device_, partial);
  if (owner == IovaOwner::Allocator) co_await allocator_.free(cpu, work.range.first, work.range.pages());
}

std::optional<IovaRange> DmaApi::take_live(Iova address, Bytes length) {
  const IovaRange range = pages_around(address, length);
  const auto found = live_.find(range.first);
  if (found == live_.end() || found->second.length != range.length || found->second.owner != IovaOwner::Allocator) {
    ++counters_.failures;
    return std::nullopt;
  }
  live_.erase(found);
  return range;
}

Task<DmaStatus> DmaApi::unmap(CpuPort& cpu, Iova address, Bytes length) {
  co_await cpu.charge(CostId::DmaUnmapOther);
  if (space_.is_identity()) {
    ++counters_.unmaps;
    co_return DmaStatus::Ok;
  }
  if (space_.chooses_addresses()) co_return co_await withdraw(cpu, address, length);
  const auto range = take_live(address, length);
  if (!range) co_return DmaStatus::Rejected;
  co_return co_await remove(cpu, *range, IovaOwner::Allocator);
}

Task<std::vector<DmaStatus>> DmaApi::unmap_many(CpuPort& cpu, std::vector<Mapped> mappings) {
  std::vector<DmaStatus> statuses(mappings.size(), DmaStatus::Ok);
  std::vector<UnmapGather> gathers;
  std::vector<std::size_t> owners;  // of the gathers
  const Picoseconds began = cpu.now();
  for (std::size_t i = 0; i < mappings.size(); ++i) {
    if (space_.is_identity() || space_.chooses_addresses() || lazy_) {
      statuses[i] = co_await unmap(cpu, mappings[i].address, mappings[i].length);
      continue;
    }
    co_await cpu.charge(CostId::DmaUnmapOther);
    const auto range = take_live(mappings[i].address, mappings[i].length);
    statuses[i] = range ? DmaStatus::Ok : DmaStatus::Rejected;
    if (!range) continue;
    ++counters_.unmaps;
    observer_.on_unmap_called(cpu.now(), device_, *range);
    gathers.push_back(co_await space_.unmap(cpu, *range, Flush::Gathered));
    owners.push_back(i);
  }
  if (gathers.empty()) co_return statuses;
  const std::vector<DmaStatus> synced = co_await space_.sync_all(cpu, gathers);
  counters_.flush_time.add(cpu.now() - began);
  for (std::size_t g = 0; g < gathers.size(); ++g) {
    statuses[owners[g]] = synced[g];
    if (synced[g] != DmaStatus::Ok) {
      ++counters_.failures;  // part of it may still translate: nobody's from here on
      continue;
    }
    observer_.on_fenced(cpu.now(), device_, gathers[g].range);
    co_await free_iova(cpu, gathers[g].range, IovaOwner::Allocator);
  }
  co_return statuses;
}

Task<DmaStatus> DmaApi::map_at(CpuPort& cpu, std::vector<MapSegment> segments) {
  co_await cpu.charge(CostId::DmaMapOther);
  if (space_.is_identity()) {
    ++counters_.maps;
    co_return DmaStatus::Ok;
  }
  const auto range = range_of(segments, space_.last_address());
  if (!range || is_in_use(*range) || space_.chooses_addresses()) {
    ++counters_.failures;
    co_return DmaStatus::Rejected;
  }
  if (waits(*range)) {
    ++counters_.flushes_by_reuse;
    co_await flush(cpu);
  }
  co_await cpu.charge(CostId::IovaAllocCached);  // the recorded kernel allocated too; what it chose is in the trace
  Installing work{.result = {.address = range->first}, .segments = std::move(segments), .range = *range};
  co_await enter(cpu, work);
  co_await publish(cpu, work, IovaOwner::Caller);
  co_return work.result.status;
}

Task<DmaStatus> DmaApi::unmap_at(CpuPort& cpu, IovaRange range) {
  co_await cpu.charge(CostId::DmaUnmapOther);
  if (space_.is_identity()) {
    ++counters_.unmaps;
    co_return DmaStatus::Ok;
  }
  if (!disown(range)) {
    ++counters_.failures;
    co_return DmaStatus::Rejected;
  }
  co_return co_await remove(cpu, range, IovaOwner::Caller);
}

bool DmaApi::is_in_use(IovaRange range) const {
  const auto above = live_.lower_bound(range.first + range.length);
  if (above == live_.begin()) return false;
  const auto below = std::prev(above);
  return range.overlaps({below->first, below->second.length});
}

bool DmaApi::disown(IovaRange range) {
  if (!range.first.is_aligned(kPageLg2) || range.length % kPageSize != 0_B || range.length == 0_B) return false;
  const Iova end = range.first + range.length;
  auto piece = live_.upper_bound(range.first);
  if (piece == live_.begin()) return false;
  --piece;
  std::vector<std::pair<Iova, Live>> remaining;  // of the pieces, outside the range
  Iova covered = range.first;
  const auto first = piece;
  for (; covered < end; ++piece) {
    const bool continues = piece != live_.end() && piece->first <= covered &&
                           piece->first + piece->second.length > covered && piece->second.owner == IovaOwner::Caller;
    if (!continues) return false;
    const Iova piece_end = piece->first + piece->second.length;
    if (piece->first < range.first)
      remaining.push_back({piece->first, {range.first - piece->first, IovaOwner::Caller}});
    if (piece_end > end) remaining.push_back({end, {piece_end - end, IovaOwner::Caller}});
    covered = piece_end;
  }
  live_.erase(first, piece);
  live_.insert(remaining.begin(), remaining.end());
  return true;
}

Task<DmaStatus> DmaApi::remove(CpuPort& cpu, IovaRange range, IovaOwner owner) {
  ++counters_.unmaps;
  const Picoseconds began = cpu.now();
  observer_.on_unmap_called(began, device_, range);
  const UnmapGather gather = co_await space_.unmap(cpu, range, lazy_ ? Flush::Deferred : Flush::Immediate);
  if (gather.status != DmaStatus::Ok) {
    // Part of the range may still translate: it is nobody's from here on, and never safe.
    ++counters_.failures;
    co_await space_.sync(cpu, gather);
    co_return gather.status;
  }
  if (lazy_) {
    co_await queue(cpu, gather, owner);
    co_return DmaStatus::Ok;
  }
  co_await space_.sync(cpu, gather);
  observer_.on_fenced(cpu.now(), device_, range);
  counters_.flush_time.add(cpu.now() - began);
  co_await free_iova(cpu, range, owner);
  co_return DmaStatus::Ok;
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
  const Picoseconds began = cpu.now();
  co_await space_.flush_all(cpu);
  counters_.flush_time.add(cpu.now() - began);
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
