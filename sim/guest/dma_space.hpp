// SPDX-License-Identifier: Apache-2.0
// The address space in which one device of a guest does DMA, as the guest's DMA API sees it: the operations that a
// kernel's IOMMU driver provides. Every strategy implements it; the DMA API above is the same for all.
//
// One dma_map is: allocate an IOVA, map() for every physically contiguous segment, sync_map() once.
// One dma_unmap is: unmap(), then sync() (strict), or flush_all() much later (lazy) before the IOVA may be used again.
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

enum class DmaStatus : std::uint8_t {
  Ok,
  NoAddress,  // IOVA space exhausted
  NoMemory,   // no page for a table
  Rejected,   // the range is in use, or the memory is not the guest's
};

// Whether an unmap is followed by sync() at once, or by flush_all() some time later.
enum class Flush : std::uint8_t { Immediate, Deferred };

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
  // The highest IOVA a device may use.
  [[nodiscard]] virtual Iova last_address() const = 0;

  // Does not undo a partial map on failure: the caller unmaps what it asked for.
  virtual Task<DmaStatus> map(CpuPort& cpu, MapSegment segment) = 0;
  // After the last map() of one dma_map: the device may use the range when this returns.
  virtual Task<DmaStatus> sync_map(CpuPort& cpu, IovaRange range) = 0;
  virtual Task<UnmapGather> unmap(CpuPort& cpu, IovaRange range, Flush flush) = 0;
  // When this returns no device uses the range any more. Returns freed tables to their pool.
  virtual Task<void> sync(CpuPort& cpu, UnmapGather gather) = 0;
  // The same for everything unmapped so far with Flush::Deferred; does not return freed tables.
  virtual Task<void> flush_all(CpuPort& cpu) = 0;
  virtual void reclaim_tables(const std::vector<std::uint64_t>& tables) = 0;
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
