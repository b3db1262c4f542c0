// SPDX-License-Identifier: Apache-2.0
// Devices use guest-physical addresses: nothing is mapped, and the DMA API asks for nothing.
#pragma once

#include "sim/guest/dma_space.hpp"

namespace iommu::strategy {

class IdentitySpace final : public guest::DmaSpace {
 public:
  explicit IdentitySpace(Iova last) : last_(last) {}
  [[nodiscard]] bool is_identity() const override { return true; }
  [[nodiscard]] bool can_defer() const override { return false; }
  [[nodiscard]] Iova last_address() const override { return last_; }

  Task<guest::DmaStatus> map(CpuPort&, guest::MapSegment) override { co_return guest::DmaStatus::Rejected; }
  Task<guest::DmaStatus> sync_map(CpuPort&, guest::IovaRange) override { co_return guest::DmaStatus::Rejected; }
  Task<guest::UnmapGather> unmap(CpuPort&, guest::IovaRange range, guest::Flush) override {
    guest::UnmapGather gather;
    gather.status = guest::DmaStatus::Rejected;
    gather.range = range;
    co_return gather;
  }
  Task<void> sync(CpuPort&, guest::UnmapGather) override { co_return; }
  Task<void> flush_all(CpuPort&) override { co_return; }
  void reclaim_tables(const std::vector<std::uint64_t>&) override {}

 private:
  Iova last_;
};

}  // namespace iommu::strategy
