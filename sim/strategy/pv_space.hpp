// SPDX-License-Identifier: Apache-2.0
// A PV-IOMMU context as the guest's DMA API sees it: one hypercall for each contiguous piece and page size, as the
// RFC's Linux driver does it, or operations that are queued and go to Xen together.
#pragma once

#include <cstdint>
#include <memory>

#include "sim/guest/dma_space.hpp"
#include "sim/strategy/pv_calls.hpp"

namespace iommu::strategy {

struct PvSpaceSetting {
  std::uint16_t context = 0;
  Iova last;
  std::uint32_t page_sizes = 0;  // pgsize_mask
  bool deferred_flush = false;
  // Operations that one hypercall carries: maps wait for sync_map(), unmaps for their sync or, deferred, for the next
  // call that goes anyway. 1: one operation a call.
  std::uint32_t batch = 1;
  bool scatter = false;         // maps wait for sync_map(), and go as one list of frames
  bool all_or_nothing = false;  // Xen undoes a call that fails; a map then leaves nothing
};

[[nodiscard]] std::unique_ptr<guest::DmaSpace> make_pv_space(IommuCalls& calls, const PvSpaceSetting& setting);

// A part of a range that is aligned in both spaces, in pages of one size. [Linux drivers/iommu/iommu.c, iommu_pgsize:
// the largest size that fits and, of it, as many as there are before a larger one fits: behaviour, not code]
struct PagePiece {
  std::uint64_t offset = 0;
  unsigned page_lg2 = kPageLg2;
  std::uint32_t pages = 0;
};
// The first piece of what is left of a range from `iova` on to `address` when `done` bytes are taken. For an unmap,
// whose output does not matter, both are the same.
[[nodiscard]] PagePiece next_piece(std::uint64_t iova, std::uint64_t address, std::uint64_t length, std::uint64_t done,
                                   std::uint32_t page_sizes);

}  // namespace iommu::strategy
