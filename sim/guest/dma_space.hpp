// SPDX-License-Identifier: Apache-2.0
// The address space in which one device of a guest does DMA, as the guest's DMA API sees it: the operations that a
// kernel's IOMMU driver provides. Every strategy implements it; the DMA API above is the same for all.
//
// One dma_map is: allocate an IOVA, map() for every physically contiguous segment, sync_map() once.
// One dma_unmap is: unmap(), then sync() (strict), or flush_all() much later (lazy) before the IOVA may be used again.
//
// A space that chooses the addresses itself (bounce buffers, machine addresses, an aperture with an allocator of its
// own) has place() and withdraw() instead; see PlacingSpace.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "sim/base/address.hpp"
#include "sim/base/cpu_port.hpp"
#include "sim/base/task.hpp"
#include "sim/translation/request.hpp"

namespace iommu::guest {

// Pages of IOVA space: both ends page-aligned.
struct IovaRange {
  Iova first;
  Bytes length;
  [[nodiscard]] constexpr std::uint64_t pages() const { return length.value() >> kPageLg2; }
  [[nodiscard]] constexpr bool overlaps(IovaRange other) const {
    return first < other.first + other.length && other.first < first + length;
  }
  friend constexpr bool operator==(IovaRange, IovaRange) = default;
};

// Guest memory that is contiguous in guest-physical and in IOVA space; page-aligned.
struct MapSegment {
  Iova iova;
  Gpa address;
  Bytes length;
  Permissions permissions = kReadWrite;
};

// A piece of a scatterlist; any alignment. All but the first start, and all but the last end, on a page boundary.
struct ScatterEntry {
  Gpa address;
  Bytes length;
};

// What a buffer is mapped for: one transfer, after which it is unmapped, or memory that CPU and device share as long as
// it is mapped (rings, windows). Only spaces that copy buffers tell them apart.
enum class DmaUse : std::uint8_t { Streaming, Coherent };

enum class DmaStatus : std::uint8_t {
  Ok,
  NoAddress,  // IOVA space exhausted, or no run of it is so long
  NoMemory,   // no page for a table
  Rejected,   // the range is in use, or the memory is not the guest's
};

// Whether an unmap is followed by sync() at once, by one sync_all() for several, or by flush_all() some time later.
enum class Flush : std::uint8_t { Immediate, Gathered, Deferred };

// What unmap() leaves behind for the invalidation.
struct UnmapGather {
  DmaStatus status = DmaStatus::Ok;  // Rejected: part of the range was not mapped
  IovaRange range;
  // Guest-physical pages of tables that fell out of use; reusable once the range is invalidated.
  std::vector<std::uint64_t> freed_tables;
};

class DmaSpace {
 public:
  DmaSpace() = default;
  DmaSpace(const DmaSpace&) = delete;
  DmaSpace& operator=(const DmaSpace&) = delete;
  virtual ~DmaSpace() = default;

  // True when bus addresses are guest-physical addresses; the DMA API then calls nothing below.
  [[nodiscard]] virtual bool is_identity() const { return false; }
  // False when every unmap is final on return, so that a lazy DMA API has nothing to defer and stays strict.
  [[nodiscard]] virtual bool can_defer() const { return true; }
  // True: a map() that fails leaves nothing of its own.
  [[nodiscard]] virtual bool undoes_maps() const { return false; }
  // The highest IOVA a device may use.
  [[nodiscard]] virtual Iova last_address() const = 0;
  // Whole pages below it that the device must not be given. In any order; they may overlap.
  [[nodiscard]] virtual std::vector<IovaRange> reserved() const { return {}; }

  // On failure the caller unmaps what it asked for, this segment included unless undoes_maps().
  virtual Task<DmaStatus> map(CpuPort& cpu, MapSegment segment) = 0;
  // After the last map() of one dma_map: the device may use the range when this returns.
  virtual Task<DmaStatus> sync_map(CpuPort& cpu, IovaRange range) = 0;
  virtual Task<UnmapGather> unmap(CpuPort& cpu, IovaRange range, Flush flush) = 0;
  // When this returns no device uses the range any more. Returns freed tables to their pool.
  virtual Task<void> sync(CpuPort& cpu, UnmapGather gather) = 0;
  // The same for several unmaps that were asked for with Flush::Gathered; what became of each.
  virtual Task<std::vector<DmaStatus>> sync_all(CpuPort& cpu, std::vector<UnmapGather> gathers) {
    std::vector<DmaStatus> statuses;
    for (std::size_t i = 0; i < gathers.size(); ++i) {
      statuses.push_back(gathers[i].status);
      co_await sync(cpu, gathers[i]);
    }
    co_return statuses;
  }
  // The same for everything unmapped so far with Flush::Deferred; does not return freed tables.
  virtual Task<void> flush_all(CpuPort& cpu) = 0;
  virtual void reclaim_tables(const std::vector<std::uint64_t>& tables) = 0;

  // True: the DMA API calls place() and withdraw(), none of the above but last_address(), and no observer: only the
  // space knows which pages a buffer takes and when they are fenced.
  [[nodiscard]] virtual bool chooses_addresses() const { return false; }
  struct Placed {
    DmaStatus status = DmaStatus::Rejected;
    Iova address{};  // of the first byte; the others follow in the order of the list
  };
  virtual Task<Placed> place(CpuPort& cpu, std::vector<ScatterEntry> list, Permissions permissions, DmaUse use);
  // Exactly what one place() returned.
  virtual Task<DmaStatus> withdraw(CpuPort& cpu, Iova address, Bytes length);
};

inline Task<DmaSpace::Placed> DmaSpace::place(CpuPort&, std::vector<ScatterEntry>, Permissions, DmaUse) {
  co_return Placed{};
}
inline Task<DmaStatus> DmaSpace::withdraw(CpuPort&, Iova, Bytes) { co_return DmaStatus::Rejected; }

// Base of the spaces that choose addresses themselves.
class PlacingSpace : public DmaSpace {
 public:
  [[nodiscard]] bool chooses_addresses() const final { return true; }
  [[nodiscard]] bool can_defer() const final { return false; }
  Task<Placed> place(CpuPort& cpu, std::vector<ScatterEntry> list, Permissions permissions, DmaUse use) override = 0;
  Task<DmaStatus> withdraw(CpuPort& cpu, Iova address, Bytes length) override = 0;

  Task<DmaStatus> map(CpuPort&, MapSegment) final { co_return DmaStatus::Rejected; }
  Task<DmaStatus> sync_map(CpuPort&, IovaRange) final { co_return DmaStatus::Rejected; }
  Task<UnmapGather> unmap(CpuPort&, IovaRange range, Flush) final {
    UnmapGather gather;
    gather.status = DmaStatus::Rejected;
    gather.range = range;
    co_return gather;
  }
  Task<void> sync(CpuPort&, UnmapGather) final { co_return; }
  Task<void> flush_all(CpuPort&) final { co_return; }
  void reclaim_tables(const std::vector<std::uint64_t>&) final {}
};

// Learns what software believes about its mappings, at the moments that matter. The warden is one. Takes no time.
class MappingObserver {
 public:
  MappingObserver() = default;
  MappingObserver(const MappingObserver&) = delete;
  MappingObserver& operator=(const MappingObserver&) = delete;
  virtual ~MappingObserver() = default;
  // dma_map was called: from now on the device may see the mapping, from on_mapped() it must.
  virtual void on_map_called(Picoseconds now, RequesterId device, MapSegment segment) = 0;
  virtual void on_mapped(Picoseconds now, RequesterId device, IovaRange range) = 0;
  // dma_unmap was called, or dma_map failed: from now on the device must not use the range, but still can.
  virtual void on_unmap_called(Picoseconds now, RequesterId device, IovaRange range) = 0;
  // The invalidation is complete: from now on the device cannot.
  virtual void on_fenced(Picoseconds now, RequesterId device, IovaRange range) = 0;
};

}  // namespace iommu::guest
