// SPDX-License-Identifier: Apache-2.0
// I/O page tables in the hands of a guest's kernel, one for each device: the same TableDriver that Xen uses, over guest
// memory. How the unit behind them learns of a table, and of what left it, is the derived classes' business.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "sim/base/cpu_port.hpp"
#include "sim/base/task.hpp"
#include "sim/guest/dma_space.hpp"
#include "sim/guest/guest_table_memory.hpp"
#include "sim/translation/family.hpp"

namespace iommu::guest {

// Whether an unmap that freed no table asks to keep walk caches.
enum class LeafHint : std::uint8_t { Off, On };

struct IommuDriverSetting {
  DriverOptions driver;  // stage1: DMA uses stage-1 tables, else stage 2
  LeafHint leaf_hint = LeafHint::Off;
};

class TableSpaces {
 public:
  // Everything passed by reference outlives it.
  TableSpaces(const FamilyDescriptor& family, const IommuDriverSetting& setting, GuestMemory& memory,
              GuestPages& pages);
  virtual ~TableSpaces();
  TableSpaces(const TableSpaces&) = delete;
  TableSpaces& operator=(const TableSpaces&) = delete;

  // A DMA address space of its own for the device, without the ranges `reserved`; nullptr: out of memory or domain
  // tags, or the unit refuses it.
  Task<DmaSpace*> attach(CpuPort& cpu, RequesterId device, std::vector<IovaRange> reserved = {});
  [[nodiscard]] std::uint64_t table_bytes() const { return tables_.pages_in_use() << kPageLg2; }

 protected:
  static constexpr std::uint64_t kFirstDomainTag = 1;  // 0 may tag not-present entries

  // Has taken effect when it returns. There is at least one.
  virtual Task<void> invalidate(CpuPort& cpu, std::vector<InvalidationScope> scopes) = 0;
  // Makes the table in `setting` the device's, which had none. False: out of memory, or the unit refuses it.
  virtual Task<bool> announce(CpuPort& cpu, RequesterId device, ContextSetting setting) = 0;
  // Writes the device's table entry. False: out of memory.
  Task<bool> write_entry(CpuPort& cpu, RequesterId device, ContextSetting setting);

  [[nodiscard]] TableDriver& driver() const { return *driver_; }
  [[nodiscard]] const IommuDriverSetting& setting() const { return setting_; }
  [[nodiscard]] GuestTableMemory& tables() { return tables_; }
  [[nodiscard]] GuestMemory& memory() { return memory_; }

 private:
  friend class TableDmaSpace;
  Task<void> charge(CpuPort& cpu, const TableEdit& edit);
  // The vCPU goes on when its stores to tables, should they be write-protected, have been emulated.
  Task<void> settle_stores(CpuPort& cpu);
  [[nodiscard]] TableKind table_kind() const { return setting_.driver.stage1 ? TableKind::Stage1 : TableKind::Stage2; }
  // Not-present entries may be cached: maps must be invalidated too. Stage-1 entries never are.
  [[nodiscard]] bool flushes_after_map() const {
    return setting_.driver.features.caching_mode && !setting_.driver.stage1;
  }

  IommuDriverSetting setting_;
  GuestMemory& memory_;
  GuestTableMemory tables_;
  std::unique_ptr<TableDriver> driver_;
  std::vector<std::unique_ptr<DmaSpace>> spaces_;
};

}  // namespace iommu::guest
