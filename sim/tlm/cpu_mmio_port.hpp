// SPDX-License-Identifier: Apache-2.0
// A unit's registers as software on a vCPU reaches them: the vCPU pays the cost row, the unit sees the access after it.
#pragma once

#include "sim/tlm/mmio_target.hpp"
#include "sim/translation/queue_client.hpp"

namespace iommu {

class CpuMmioPort final : public MmioPort {
 public:
  // `target` outlives the port. Its read latency is 0: the cost row MmioRead is the whole round trip.
  explicit CpuMmioPort(MmioTarget& target) : target_(target) {}

  Task<void> write(CpuPort& cpu, std::uint64_t offset, unsigned bytes, std::uint64_t value) override {
    co_await cpu.charge(CostId::MmioWrite);
    target_.write_register(offset, bytes, value);
  }
  Task<std::uint64_t> read(CpuPort& cpu, std::uint64_t offset, unsigned bytes) override {
    co_await cpu.charge(CostId::MmioRead);
    const std::uint64_t value = co_await target_.read_register(offset, bytes);  // waits for earlier writes only
    co_return value;
  }

 private:
  MmioTarget& target_;
};

}  // namespace iommu
