// SPDX-License-Identifier: Apache-2.0
// A recorded driver's map and unmap calls on a DMA API.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "sim/guest/dma_api.hpp"
#include "sim/pcie/trace_player.hpp"

namespace iommu::guest {

// Whose IOVAs a replay uses. Recorded is exact under strict unmapping. Under lazy unmapping a kernel would not have
// reused an address so soon, so addresses recorded under strict are only a choice that forces a flush at every reuse.
// OnePerSegment: for spaces that choose addresses themselves, which map each segment in a call of its own.
enum class TraceAddresses : std::uint8_t { Recorded, Allocated, OnePerSegment };

class TraceOperations final : public DriverOperations {
 public:
  TraceOperations(DmaApi& api, TraceAddresses addresses) : api_(api), addresses_(addresses) {}

  Task<std::vector<Iova>> map(CpuPort& cpu, Map call) override;
  Task<void> unmap(CpuPort& cpu, Unmap call) override;

  [[nodiscard]] std::uint64_t failures() const { return failures_; }

 private:
  struct Mapped {
    Iova first;
    Bytes length;
  };
  Task<std::vector<Iova>> map_recorded(CpuPort& cpu, Map call);
  Task<std::vector<Iova>> map_allocated(CpuPort& cpu, Map call);
  Task<std::vector<Iova>> map_each(CpuPort& cpu, Map call);
  Task<DmaStatus> remove(CpuPort& cpu, Mapped mapped);

  DmaApi& api_;
  TraceAddresses addresses_;
  std::unordered_map<std::uint32_t, std::vector<Mapped>> live_;  // by map call
  std::uint64_t failures_ = 0;
};

}  // namespace iommu::guest
