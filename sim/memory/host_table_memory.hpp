// SPDX-License-Identifier: Apache-2.0
// Table memory as whoever runs on the bare machine sees it: an address is a host-physical address, pages come from a
// frame allocator.
#pragma once

#include <cstdint>
#include <optional>

#include "sim/memory/frame_allocator.hpp"
#include "sim/memory/host_memory.hpp"
#include "sim/translation/table_driver.hpp"

namespace iommu {

class HostTableMemory final : public TableMemory {
 public:
  // Both outlive this object; several views may share one allocator.
  HostTableMemory(HostMemory& memory, FrameAllocator& frames) : memory_(memory), frames_(frames) {}

  std::uint64_t read64(std::uint64_t address) override { return memory_.read64(Hpa(address)); }
  void write64(std::uint64_t address, std::uint64_t value) override { memory_.write64(Hpa(address), value); }
  std::optional<std::uint64_t> allocate(unsigned pages_lg2 = 0) override;
  void release(std::uint64_t address, unsigned pages_lg2 = 0) override;

 private:
  HostMemory& memory_;
  FrameAllocator& frames_;
};

}  // namespace iommu
