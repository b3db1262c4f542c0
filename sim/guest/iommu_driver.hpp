// SPDX-License-Identifier: Apache-2.0
// A guest kernel's driver for an IOMMU with its own tables: the same TableDriver that Xen uses on hardware, over guest
// memory, with the unit's registers behind whatever the platform puts there (a trap, under a hypervisor).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "sim/base/cpu_port.hpp"
#include "sim/base/task.hpp"
#include "sim/guest/table_spaces.hpp"
#include "sim/translation/queue_client.hpp"

namespace iommu::guest {

class IommuDriver final : public TableSpaces {
 public:
  // Everything passed by reference outlives it.
  IommuDriver(const FamilyDescriptor& family, const IommuDriverSetting& setting, MmioPort& registers,
              GuestMemory& memory, GuestPages& pages);

  // `window`: registers of command rings that are the kernel's own (QueueDriver), which it then uses for what they
  // take; null: there are none. False: out of memory.
  Task<bool> bring_up(CpuPort& cpu, MmioPort* window = nullptr);

  // Its own rings, by number; none where the hypervisor did not place them.
  [[nodiscard]] const std::vector<std::unique_ptr<QueueClient>>& own_queues() const { return own_queues_; }
  void reset_counters();

 private:
  Task<void> invalidate(CpuPort& cpu, std::vector<InvalidationScope> scopes) override;
  Task<bool> announce(CpuPort& cpu, RequesterId device, ContextSetting setting) override;
  Task<bool> bring_up_own_queues(CpuPort& cpu, MmioPort& window);
  [[nodiscard]] QueueClient& queue_for(CpuId cpu, const std::vector<InvalidationScope>& scopes);

  MmioPort& registers_;
  std::unique_ptr<QueueClient> queue_;  // from bring_up() on
  std::vector<std::unique_ptr<QueueClient>> own_queues_;
};

}  // namespace iommu::guest
