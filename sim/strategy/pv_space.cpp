// SPDX-License-Identifier: Apache-2.0
#include "sim/strategy/pv_space.hpp"

#include <algorithm>
#include <bit>
#include <limits>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace iommu::strategy {

namespace {

using guest::DmaStatus;
using xen::abi::BatchKind;
using xen::abi::BatchOp;
using xen::abi::Subop;

std::uint32_t map_flags(Permissions permissions) {
  return (permissions.read ? xen::abi::kMapReadable : 0U) | (permissions.write ? xen::abi::kMapWriteable : 0U);
}

std::uint32_t undoable_pages(PagePiece piece) { return xen::abi::kMostUndoablePages >> (piece.page_lg2 - kPageLg2); }

class PvSpace final : public guest::DmaSpace {
 public:
  PvSpace(IommuCalls& calls, const PvSpaceSetting& setting) : calls_(calls), setting_(setting) {
    // No larger pages than a call could undo one of.
    if (setting_.all_or_nothing) setting_.page_sizes &= (xen::abi::kMostUndoablePages << (kPageLg2 + 1)) - 1;
  }

  [[nodiscard]] bool can_defer() const override { return setting_.deferred_flush; }
  [[nodiscard]] bool undoes_maps() const override { return setting_.all_or_nothing; }
  [[nodiscard]] Iova last_address() const override { return setting_.last; }

  Task<DmaStatus> map(CpuPort& cpu, guest::MapSegment segment) override;
  Task<DmaStatus> sync_map(CpuPort& cpu, guest::IovaRange range) override;
  Task<guest::UnmapGather> unmap(CpuPort& cpu, guest::IovaRange range, guest::Flush flush) override;
  // Whoever unmapped has flushed.
  Task<void> sync(CpuPort&, guest::UnmapGather) override { co_return; }
  Task<std::vector<DmaStatus>> sync_all(CpuPort& cpu, std::vector<guest::UnmapGather> gathers) override;
  Task<void> flush_all(CpuPort& cpu) override;
  void reclaim_tables(const std::vector<std::uint64_t>&) override {}

 private:
  // Pages that Xen did not map, or did not unmap.
  struct Refusal {
    BatchKind kind = BatchKind::Map;
    guest::IovaRange range;
    DmaStatus status = DmaStatus::Rejected;
  };
  // What one vCPU has queued. Whoever hands it over holds the lock until Xen has answered, so that a flush finds no
  // operation that is neither here nor there.
  struct Queue {
    SpinLock lock{"pv batch"};
    std::vector<BatchOp> ops;
    std::vector<std::uint64_t> frames;  // scatter: of consecutive addresses from `dfn` on
    std::uint64_t dfn = 0;
    std::uint32_t flags = 0;
    std::optional<Gpa> buffer;  // what Xen reads of it
  };
  [[nodiscard]] bool batches() const { return setting_.batch > 1; }
  Queue& queue_of(const CpuPort& cpu);
  [[nodiscard]] std::optional<Gpa> buffer_of(Queue& queue);
  Task<void> add(CpuPort& cpu, BatchOp op);
  Task<void> add_frames(CpuPort& cpu, guest::MapSegment segment);
  Task<void> submit(CpuPort& cpu, Queue& queue, std::uint16_t flags = 0);
  Task<void> submit_frames(CpuPort& cpu, Queue& queue);
  void note_refusals(const std::vector<BatchOp>& ops);
  // Forgets and returns what was refused of a range.
  [[nodiscard]] std::vector<Refusal> take_refusals(guest::IovaRange range, BatchKind kind);
  Task<void> remove_around(CpuPort& cpu, guest::IovaRange range, std::vector<Refusal> holes);
  Task<std::int64_t> map_piece(CpuPort& cpu, guest::MapSegment segment, PagePiece piece);
  Task<std::int64_t> unmap_piece(CpuPort& cpu, guest::IovaRange range, PagePiece piece, Subop subop);

  // A call counts pages in 32 bits.
  static bool fits_in_call(Bytes length) {
    return length.value() >> kPageLg2 <= std::numeric_limits<std::uint32_t>::max();
  }

  IommuCalls& calls_;
  PvSpaceSetting setting_;
  std::vector<std::unique_ptr<Queue>> queues_;  // by vCPU
  std::vector<Refusal> refusals_;
};

Task<DmaStatus> PvSpace::map(CpuPort& cpu, guest::MapSegment segment) {
  if (!fits_in_call(segment.length)) co_return DmaStatus::Rejected;
  if (setting_.scatter && segment.length.value() >> kPageLg2 <= xen::abi::kMostScatteredFrames) {
    co_await add_frames(cpu, segment);
    co_return DmaStatus::Ok;
  }
  for (std::uint64_t done = 0; done < segment.length.value();) {
    PagePiece piece =
        next_piece(segment.iova.value(), segment.address.value(), segment.length.value(), done, setting_.page_sizes);
    if (setting_.all_or_nothing) piece.pages = std::min(piece.pages, undoable_pages(piece));
    done += std::uint64_t{piece.pages} << piece.page_lg2;
    if (!batches()) {
      const std::int64_t status = co_await map_piece(cpu, segment, piece);
      if (status == 0) continue;
      if (setting_.all_or_nothing && piece.offset != 0)
        co_await unmap(cpu, {segment.iova, Bytes(piece.offset)}, guest::Flush::Immediate);
      co_return to_dma_status(status);
    }
    co_await add(cpu, {.kind = static_cast<std::uint16_t>(BatchKind::Map),
                       .map_flags = map_flags(segment.permissions),
                       .gfn = Gfn(segment.address + Bytes(piece.offset)).value(),
                       .dfn = Dfn(segment.iova + Bytes(piece.offset)).value(),
                       .pgsize = 1U << piece.page_lg2,
                       .nr_pages = piece.pages});
  }
  co_return DmaStatus::Ok;
}

Task<DmaStatus> PvSpace::sync_map(CpuPort& cpu, guest::IovaRange range) {
  if (batches()) {
    co_await submit(cpu, queue_of(cpu));
  } else if (setting_.scatter) {
    co_await submit_frames(cpu, queue_of(cpu));
  } else {
    co_return DmaStatus::Ok;
  }
  const std::vector<Refusal> refused = take_refusals(range, BatchKind::Map);
  if (refused.empty()) co_return DmaStatus::Ok;
  // The caller unmaps the range up to the first hole; what lies behind one would stay.
  co_await remove_around(cpu, range, refused);
  co_return refused.front().status;
}

Task<guest::UnmapGather> PvSpace::unmap(CpuPort& cpu, guest::IovaRange range, guest::Flush flush) {
  guest::UnmapGather gather;
  gather.status = DmaStatus::Rejected;
  gather.range = range;
  if (!fits_in_call(range.length)) co_return gather;
  if (setting_.scatter) co_await submit_frames(cpu, queue_of(cpu));
  const bool later = setting_.deferred_flush && flush == guest::Flush::Deferred;
  gather.status = DmaStatus::Ok;
  for (std::uint64_t done = 0; done < range.length.value() && gather.status == DmaStatus::Ok;) {
    const std::uint64_t at = range.first.value();
    const PagePiece piece = next_piece(at, at, range.length.value(), done, setting_.page_sizes);
    done += std::uint64_t{piece.pages} << piece.page_lg2;
    if (!batches()) {
      const std::int64_t status =
          co_await unmap_piece(cpu, range, piece, later ? Subop::UnmapPagesDeferred : Subop::UnmapPages);
      gather.status = to_dma_status(status);
      continue;
    }
    co_await add(cpu, {.kind = static_cast<std::uint16_t>(later ? BatchKind::UnmapDeferred : BatchKind::Unmap),
                       .dfn = Dfn(range.first + Bytes(piece.offset)).value(),
                       .pgsize = 1U << piece.page_lg2,
                       .nr_pages = piece.pages});
  }
  if (!batches() || flush != guest::Flush::Immediate) co_return gather;
  co_await submit(cpu, queue_of(cpu));
  if (!take_refusals(range, BatchKind::Unmap).empty()) gather.status = DmaStatus::Rejected;
  co_return gather;
}

Task<std::vector<DmaStatus>> PvSpace::sync_all(CpuPort& cpu, std::vector<guest::UnmapGather> gathers) {
  if (batches()) co_await submit(cpu, queue_of(cpu));
  std::vector<DmaStatus> statuses;
  for (const guest::UnmapGather& gather : gathers) {
    const bool refused = batches() && !take_refusals(gather.range, BatchKind::Unmap).empty();
    statuses.push_back(refused ? DmaStatus::Rejected : gather.status);
  }
  co_return statuses;
}

Task<void> PvSpace::flush_all(CpuPort& cpu) {
  if (batches()) {
    Queue& mine = queue_of(cpu);
    for (std::size_t i = 0; i < queues_.size(); ++i)
      if (queues_[i].get() != &mine) co_await submit(cpu, *queues_[i]);
    co_await submit(cpu, mine, xen::abi::kBatchFlushContext);
    co_return;
  }
  xen::abi::FlushContext request;
  request.ctx_no = setting_.context;
  const auto reply = co_await calls_.call(cpu, Subop::FlushContext, request);
  static_cast<void>(reply);  // only a context that is gone can refuse, and then nothing is left to flush
}

Task<std::int64_t> PvSpace::map_piece(CpuPort& cpu, guest::MapSegment segment, PagePiece piece) {
  xen::abi::MapPages request;
  request.ctx_no = setting_.context;
  request.gfn = Gfn(segment.address + Bytes(piece.offset)).value();
  request.dfn = Dfn(segment.iova + Bytes(piece.offset)).value();
  request.map_flags = map_flags(segment.permissions) | (setting_.all_or_nothing ? xen::abi::kMapAllOrNothing : 0U);
  request.pgsize = 1U << piece.page_lg2;
  request.nr_pages = piece.pages;
  const auto reply = co_await calls_.call(cpu, Subop::MapPages, request);
  co_return reply.status;
}

Task<std::int64_t> PvSpace::unmap_piece(CpuPort& cpu, guest::IovaRange range, PagePiece piece, Subop subop) {
  xen::abi::UnmapPages request;
  request.ctx_no = setting_.context;
  request.dfn = Dfn(range.first + Bytes(piece.offset)).value();
  request.pgsize = 1U << piece.page_lg2;
  request.nr_pages = piece.pages;
  const auto reply = co_await calls_.call(cpu, subop, request);
  co_return reply.status;
}

// Queues --------------------------------------------------------------------------------------------------------------

PvSpace::Queue& PvSpace::queue_of(const CpuPort& cpu) {
  const std::size_t index = cpu.id().value();
  while (queues_.size() <= index) queues_.push_back(std::make_unique<Queue>());
  return *queues_[index];
}

// For a batch's operations, or for a list of frames.
std::optional<Gpa> PvSpace::buffer_of(Queue& queue) {
  const Bytes batch(sizeof(BatchOp) * setting_.batch);
  const Bytes list(sizeof(std::uint64_t) * xen::abi::kMostScatteredFrames);
  if (!queue.buffer) queue.buffer = calls_.pages().allocate(guest::order_for(batches() ? batch : list));
  return queue.buffer;
}

Task<void> PvSpace::add(CpuPort& cpu, BatchOp op) {
  co_await cpu.charge(CostId::CommandWrite);
  Queue& queue = queue_of(cpu);
  queue.ops.push_back(op);
  if (queue.ops.size() >= setting_.batch) co_await submit(cpu, queue);
}

Task<void> PvSpace::submit(CpuPort& cpu, Queue& queue, std::uint16_t flags) {
  co_await cpu.acquire(queue.lock);
  // Tasks of one vCPU may have queued more than a call carries while one of them waited for the lock.
  while (!queue.ops.empty() || flags != 0) {
    const auto count = std::min<std::size_t>(queue.ops.size(), setting_.batch);
    const auto end = queue.ops.begin() + static_cast<std::ptrdiff_t>(count);
    std::vector<BatchOp> ops(queue.ops.begin(), end);
    queue.ops.erase(queue.ops.begin(), end);
    const bool is_last = queue.ops.empty();
    const auto buffer = buffer_of(queue);
    for (BatchOp& op : ops) op.status = static_cast<std::int32_t>(xen::Errno::NoMemory);
    if (buffer) {
      calls_.memory().write(*buffer, std::as_bytes(std::span(ops)));
      xen::abi::Batch request;
      request.ctx_no = setting_.context;
      request.flags = is_last ? flags : std::uint16_t{0};
      request.nr_ops = static_cast<std::uint32_t>(count);
      request.ops = buffer->value();
      const auto reply = co_await calls_.call(cpu, Subop::Batch, request);
      static_cast<void>(calls_.memory().read(*buffer, std::as_writable_bytes(std::span(ops))));  // its own memory
      if (reply.status != 0)
        for (std::size_t i = reply.argument.first; i < ops.size(); ++i) {
          ops[i].done = 0;
          ops[i].status = static_cast<std::int32_t>(reply.status);
        }
    }
    note_refusals(ops);
    if (is_last) break;
  }
  cpu.release(queue.lock);
}

void PvSpace::note_refusals(const std::vector<BatchOp>& ops) {
  for (const BatchOp& op : ops) {
    if (op.status == 0) continue;
    const unsigned order = static_cast<unsigned>(std::countr_zero(op.pgsize)) - kPageLg2;
    const Iova first = Dfn(op.dfn + (std::uint64_t{op.done} << order)).address();
    const Bytes length(std::uint64_t{op.nr_pages - op.done} << (order + kPageLg2));
    refusals_.push_back({static_cast<BatchKind>(op.kind), {first, length}, to_dma_status(op.status)});
  }
}

std::vector<PvSpace::Refusal> PvSpace::take_refusals(guest::IovaRange range, BatchKind kind) {
  std::vector<Refusal> taken;
  const auto concerns = [&](const Refusal& refusal) { return refusal.kind == kind && refusal.range.overlaps(range); };
  std::copy_if(refusals_.begin(), refusals_.end(), std::back_inserter(taken), concerns);
  std::erase_if(refusals_, concerns);
  std::sort(taken.begin(), taken.end(), [](const auto& a, const auto& b) { return a.range.first < b.range.first; });
  return taken;
}

// Unmaps what of a range is not a hole.
Task<void> PvSpace::remove_around(CpuPort& cpu, guest::IovaRange range, std::vector<Refusal> holes) {
  const Iova end = range.first + range.length;
  holes.push_back({.range = {end, 0_B}});
  Iova at = range.first;
  for (std::size_t i = 0; i < holes.size(); ++i) {
    const guest::IovaRange piece{at, std::max(holes[i].range.first, at) - at};
    at = holes[i].range.first + holes[i].range.length;
    for (std::uint64_t done = 0; done < piece.length.value();) {
      const std::uint64_t first = piece.first.value();
      const PagePiece pages = next_piece(first, first, piece.length.value(), done, setting_.page_sizes);
      done += std::uint64_t{pages.pages} << pages.page_lg2;
      co_await unmap_piece(cpu, piece, pages, Subop::UnmapPages);
    }
  }
}

Task<void> PvSpace::add_frames(CpuPort& cpu, guest::MapSegment segment) {
  Queue& queue = queue_of(cpu);
  const std::uint64_t pages = segment.length.value() >> kPageLg2;
  const std::uint32_t flags = map_flags(segment.permissions);
  const bool continues = Dfn(segment.iova).value() == queue.dfn + queue.frames.size() && flags == queue.flags &&
                         queue.frames.size() + pages <= xen::abi::kMostScatteredFrames;
  if (!queue.frames.empty() && !continues) co_await submit_frames(cpu, queue);
  if (queue.frames.empty()) {
    queue.dfn = Dfn(segment.iova).value();
    queue.flags = flags;
  }
  for (std::uint64_t i = 0; i < pages; ++i) queue.frames.push_back(Gfn(segment.address).value() + i);
}

Task<void> PvSpace::submit_frames(CpuPort& cpu, Queue& queue) {
  if (queue.frames.empty()) co_return;
  const std::vector<std::uint64_t> frames = std::exchange(queue.frames, {});
  xen::abi::MapScattered request;
  request.ctx_no = setting_.context;
  request.dfn = queue.dfn;
  request.map_flags = queue.flags;
  request.nr_frames = static_cast<std::uint32_t>(frames.size());
  co_await cpu.acquire(queue.lock);
  // One line of the list at a time is what composing it costs.
  constexpr std::uint64_t kFramesPerLine = 64 / sizeof(std::uint64_t);
  co_await cpu.charge(CostId::CommandWrite, (frames.size() + kFramesPerLine - 1) / kFramesPerLine);
  std::int64_t status = static_cast<std::int64_t>(xen::Errno::NoMemory);
  if (const auto buffer = buffer_of(queue)) {
    calls_.memory().write(*buffer, std::as_bytes(std::span(frames)));
    request.frames = buffer->value();
    const auto reply = co_await calls_.call(cpu, Subop::MapScattered, request);
    status = reply.status;
    if (status != 0) request.mapped = std::min(reply.argument.mapped, request.nr_frames);
  }
  cpu.release(queue.lock);
  if (status == 0) co_return;
  const Iova first = Dfn(request.dfn + request.mapped).address();
  const Bytes length(std::uint64_t{request.nr_frames - request.mapped} << kPageLg2);
  refusals_.push_back({BatchKind::Map, {first, length}, to_dma_status(status)});
}

}  // namespace

PagePiece next_piece(std::uint64_t iova, std::uint64_t address, std::uint64_t length, std::uint64_t done,
                     std::uint32_t page_sizes) {
  const std::uint64_t at = iova + done;
  const std::uint64_t to = address + done;
  const std::uint64_t rest = length - done;
  const auto fits = [&](unsigned lg2) {
    const std::uint64_t size = 1ULL << lg2;
    return (page_sizes & size) != 0 && ((at | to) & (size - 1)) == 0 && rest >= size;
  };
  unsigned lg2 = kPageLg2;
  for (unsigned larger = kPageLg2 + 1; larger < 32; ++larger)
    if (fits(larger)) lg2 = larger;
  std::uint64_t span = rest;
  for (unsigned larger = 31; larger > lg2; --larger) {
    const std::uint64_t size = 1ULL << larger;
    if ((page_sizes & size) == 0 || ((at ^ to) & (size - 1)) != 0) continue;
    const std::uint64_t before = size - (at & (size - 1));
    if (before < rest && rest - before >= size) span = std::min(span, before);
  }
  return {done, lg2, static_cast<std::uint32_t>(span >> lg2)};
}

std::unique_ptr<guest::DmaSpace> make_pv_space(IommuCalls& calls, const PvSpaceSetting& setting) {
  return std::make_unique<PvSpace>(calls, setting);
}

}  // namespace iommu::strategy
