// SPDX-License-Identifier: Apache-2.0
// A guest kernel's driver for an IOMMU with its own tables: the same TableDriver that Xen uses on hardware, over guest
// memory, with the unit's registers behind whatever the platform puts there (a trap, under a hypervisor).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "sim/base/cpu_port.hpp"
#include "sim/base/task.hpp"
#include "sim/guest/dma_space.hpp"
#include "sim/guest/guest_table_memory.hpp"
#include "sim/translation/family.hpp"
#include "sim/translation/queue_client.hpp"

namespace iommu::guest {

// Whether an unmap that freed no table asks to keep walk caches.
enum class LeafHint : std::uint8_t { Off, On };

struct IommuDriverSetting {
  DriverOptions driver;  // stage1: DMA uses stage-1 tables, else stage 2
  LeafHint leaf_hint = LeafHint::Off;
};

class IommuDriver {
 public:
  // Everything passed by reference outlives it.
  IommuDriver(const FamilyDescriptor& family, const IommuDriverSetting& setting, MmioPort& registers,
              GuestMemory& memory, GuestPages& pages);
  ~IommuDriver();
  IommuDriver(const IommuDriver&) = delete;
  IommuDriver& operator=(const IommuDriver&) = delete;

  // `window`: registers of command rings that are the kernel's own (QueueDriver), which it then uses for what they
  // take; null: there are none. False: out of memory.
  Task<bool> bring_up(CpuPort& cpu, MmioPort* window = nullptr);
  // A DMA address space of its own for the device; nullptr: out of memory or domain tags.
  Task<DmaSpace*> attach(CpuPort& cpu, RequesterId device);

  // Its own rings, by number; none where the hypervisor did not place them.
  [[nodiscard]] const std::vector<std::unique_ptr<QueueClient>>& own_queues() const { return own_queues_; }
  void reset_counters();

  [[nodiscard]] std::uint64_t table_bytes() const { return tables_.pages_in_use() << kPageLg2; }

 private:
  friend class TableDmaSpace;
  Task<void> invalidate(CpuPort& cpu, std::vector<InvalidationScope> scopes);
  Task<bool> bring_up_own_queues(CpuPort& cpu, MmioPort& window);
  [[nodiscard]] QueueClient& queue_for(CpuId cpu, const std::vector<InvalidationScope>& scopes);
  Task<void> charge(CpuPort& cpu, const TableEdit& edit);
  // The vCPU goes on when its stores to tables, should they be write-protected, have been emulated.
  Task<void> settle_stores(CpuPort& cpu);
  [[nodiscard]] TableKind table_kind() const { return setting_.driver.stage1 ? TableKind::Stage1 : TableKind::Stage2; }
  // Not-present entries may be cached: maps must be invalidated too. Stage-1 entries never are.
  [[nodiscard]] bool flushes_after_map() const {
    return setting_.driver.features.caching_mode && !setting_.driver.stage1;
  }

  IommuDriverSetting setting_;
  MmioPort& registers_;
  GuestMemory& memory_;
  GuestTableMemory tables_;
  std::unique_ptr<TableDriver> driver_;
  std::unique_ptr<QueueClient> queue_;  // from bring_up() on
  std::vector<std::unique_ptr<QueueClient>> own_queues_;
  std::vector<std::unique_ptr<DmaSpace>> spaces_;
};

}  // namespace iommu::guest
