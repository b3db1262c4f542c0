// SPDX-License-Identifier: Apache-2.0
// A Linux-like DMA API for one device: IOVA allocation, strict or lazy unmapping, scatterlists. What a map or an unmap
// means for the hardware is the DmaSpace's business.
//
//   const auto mapped = co_await api.map(cpu, buffer, 4_KiB, DmaDirection::FromDevice);
//   ... the device writes to mapped.address ...
//   co_await api.unmap(cpu, mapped.address, 4_KiB);
//
// Strict: unmap returns after the invalidation. Lazy: the range waits in a per-CPU flush queue and its IOVA is not
// reused before one flush of the whole address space, which is due when a queue is full or its timer fires. [Linux 6.1
// drivers/iommu/dma-iommu.c: behaviour, not code]
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "sim/base/histogram.hpp"
#include "sim/guest/dma_space.hpp"
#include "sim/guest/iova_allocator.hpp"

namespace iommu::guest {

enum class DmaDirection : std::uint8_t { ToDevice, FromDevice, Bidirectional };
[[nodiscard]] constexpr Permissions permissions_for(DmaDirection direction) {
  return {.read = direction != DmaDirection::FromDevice, .write = direction != DmaDirection::ToDevice};
}

enum class Unmapping : std::uint8_t { Strict, Lazy };

struct DmaApiOptions {
  Unmapping unmapping = Unmapping::Strict;
  // Ranges that may wait on one CPU; the next one flushes first. 250 was Linux's first value, later kernels use 256.
  std::uint32_t flush_queue_entries = 250;
  // How long a range waits at most, if somebody runs run_flush_timer(). [Linux 6.1 IOVA_DEFAULT_FQ_TIMEOUT]
  Picoseconds flush_timeout = 10_ms;
  IovaAllocatorShape iova{};
};

struct DmaMapping {
  DmaStatus status = DmaStatus::Ok;
  Iova address;  // of the first byte
};

class DmaApi {
 public:
  // `cpus`: how many vCPUs call it. `signals` wakes run_flush_timer(); without it nothing fires by time.
  DmaApi(RequesterId device, DmaSpace& space, MappingObserver& observer, const DmaApiOptions& options, unsigned cpus,
         SignalPort* signals = nullptr);

  Task<DmaMapping> map(CpuPort& cpu, Gpa address, Bytes length, DmaDirection direction, DmaUse use = DmaUse::Streaming);
  // One contiguous IOVA range for the whole list, and one sync. Rejected, without effect: an empty piece.
  Task<DmaMapping> map_scatterlist(CpuPort& cpu, std::vector<ScatterEntry> list, Permissions permissions,
                                   DmaUse use = DmaUse::Streaming);
  // Exactly what one map returned. Rejected, without effect: it is not mapped. A space that cannot unmap (its status is
  // returned) keeps the addresses for ever: they would not be safe to hand out again.
  Task<DmaStatus> unmap(CpuPort& cpu, Iova address, Bytes length);

  // Several calls of map() and of unmap() that share their syncs: a space that queues is asked once, and a strict unmap
  // waits for one fence. No Linux driver has such calls; a proposal, as are the batches of hypercalls that it feeds.
  Task<std::vector<DmaMapping>> map_many(CpuPort& cpu, std::vector<ScatterEntry> buffers, DmaDirection direction);
  struct Mapped {
    Iova address;
    Bytes length;
  };
  Task<std::vector<DmaStatus>> unmap_many(CpuPort& cpu, std::vector<Mapped> mappings);

  // The same at addresses that the caller chose (a recorded driver), without the allocator. Segments follow one another
  // in IOVA space and are one driver-level map: one sync. A range that still waits for its flush is flushed first,
  // because the allocator would not have handed it out. Rejected, without effect: segments that leave gaps or are not
  // whole pages within reach, addresses in use, or a space that chooses addresses itself.
  Task<DmaStatus> map_at(CpuPort& cpu, std::vector<MapSegment> segments);
  // What one map_at made, several, or part of one. Rejected, without effect: not all of it is mapped that way.
  Task<DmaStatus> unmap_at(CpuPort& cpu, IovaRange range);

  // A root task: flushes whatever has waited for the timeout. Runs on its own port, as a timer interrupt does.
  Task<void> run_flush_timer(CpuPort& cpu);
  // Flushes everything that waits.
  Task<void> flush(CpuPort& cpu);

  struct Counters {
    std::uint64_t maps = 0;
    std::uint64_t unmaps = 0;
    std::uint64_t flushes_by_full_queue = 0;
    std::uint64_t flushes_by_timer = 0;
    std::uint64_t flushes_by_reuse = 0;  // map_at() of a range that waited
    std::uint64_t failures = 0;          // calls that did not return Ok
    // Of one flush as its caller sees it: an unmap with its invalidation (strict), one flush of all queues (lazy).
    Histogram flush_time;
  };
  [[nodiscard]] const Counters& counters() const { return counters_; }
  void reset_counters() { counters_ = {}; }
  [[nodiscard]] const IovaAllocator& allocator() const { return allocator_; }
  [[nodiscard]] bool is_lazy() const { return lazy_; }
  [[nodiscard]] bool is_identity() const { return space_.is_identity(); }
  [[nodiscard]] bool chooses_addresses() const { return space_.chooses_addresses(); }
  [[nodiscard]] std::uint64_t waiting() const;  // ranges in flush queues that are not flushed yet

 private:
  enum class IovaOwner : std::uint8_t { Allocator, Caller };
  struct Live {
    Bytes length;
    IovaOwner owner = IovaOwner::Allocator;
  };
  struct Waiting {
    UnmapGather gather;
    IovaOwner owner = IovaOwner::Allocator;
    std::uint64_t flushes_begun = 0;  // when it was queued: the flush that covers it began later
    bool fenced = false;
  };
  struct FlushQueue {
    std::deque<Waiting> entries;
    SpinLock lock{"flush queue"};
  };

  Task<DmaMapping> place(CpuPort& cpu, std::vector<ScatterEntry> list, Permissions permissions, DmaUse use);
  Task<DmaStatus> withdraw(CpuPort& cpu, Iova address, Bytes length);
  // A map on its way: addresses, then entries, then published.
  struct Installing {
    DmaMapping result;
    std::vector<MapSegment> segments{};  // none: nothing is left to do
    IovaRange range{};
    Bytes tried{};
    Bytes undone{};  // of `tried`, at its end: the space left nothing of it
  };
  Task<Installing> prepare(CpuPort& cpu, std::vector<ScatterEntry> list, Permissions permissions, DmaUse use);
  Task<void> enter(CpuPort& cpu, Installing& work);
  Task<void> publish(CpuPort& cpu, Installing& work, IovaOwner owner);
  // The caller's ownership of what one map returned ends; nullopt: it is not mapped.
  [[nodiscard]] std::optional<IovaRange> take_live(Iova address, Bytes length);
  Task<DmaStatus> remove(CpuPort& cpu, IovaRange range, IovaOwner owner);
  Task<void> queue(CpuPort& cpu, UnmapGather gather, IovaOwner owner);
  Task<void> flush_space(CpuPort& cpu);
  Task<void> free_iova(CpuPort& cpu, IovaRange range, IovaOwner owner);
  // Returns fenced ranges of a queue to their allocator.
  Task<void> retire(CpuPort& cpu, FlushQueue& from);
  void mark_fenced(Picoseconds now);
  [[nodiscard]] bool waits(IovaRange range) const;
  [[nodiscard]] bool is_in_use(IovaRange range) const;
  // Ends the caller's ownership of a range; false, without effect, when it does not own all of it.
  [[nodiscard]] bool disown(IovaRange range);
  [[nodiscard]] FlushQueue& queue_of(const CpuPort& cpu) { return *queues_[cpu.id().value() % queues_.size()]; }

  RequesterId device_;
  DmaSpace& space_;
  MappingObserver& observer_;
  DmaApiOptions options_;
  bool lazy_;
  IovaAllocator allocator_;
  std::map<Iova, Live> live_;          // by first page; disjoint
  std::multimap<Iova, Bytes> placed_;  // where the space chooses addresses: by first byte, which buffers may share
  std::vector<std::unique_ptr<FlushQueue>> queues_;
  std::uint64_t flushes_begun_ = 0;
  std::uint64_t flushes_done_ = 0;
  SignalPort* signals_;
  Signal timer_armed_;
  bool timer_running_ = false;
  Picoseconds timer_due_;
  Counters counters_;
};

}  // namespace iommu::guest
