// SPDX-License-Identifier: Apache-2.0
// A physical IOMMU as Xen drives it: device tables, domain tags, and the command queue with its fences.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "sim/base/cpu_port.hpp"
#include "sim/base/histogram.hpp"
#include "sim/base/task.hpp"
#include "sim/memory/frame_allocator.hpp"
#include "sim/memory/host_memory.hpp"
#include "sim/translation/family.hpp"
#include "sim/xen/errno.hpp"
#include "sim/xen/invalidation_counters.hpp"

namespace iommu {
class MmioPort;
class QueueClient;
}  // namespace iommu

namespace iommu::xen {

struct PhysicalUnitSetting {
  std::string name;
  const FamilyDescriptor* family = nullptr;
  DriverOptions driver;
};

class PhysicalUnit {
 public:
  // Everything passed by reference outlives it.
  PhysicalUnit(PhysicalUnitSetting setting, MmioPort& registers, HostMemory& memory, FrameAllocator& frames);
  ~PhysicalUnit();
  PhysicalUnit(const PhysicalUnit&) = delete;
  PhysicalUnit& operator=(const PhysicalUnit&) = delete;

  // Device table, command ring, translation on. Once.
  Task<Errno> bring_up(CpuPort& cpu);

  // Commands for the scopes, one fence, and the wait for it. Nothing without scopes. InputOutput: the unit did not
  // answer, so that nothing that the scopes name may be reused.
  Task<Errno> invalidate(CpuPort& cpu, std::vector<InvalidationScope> scopes);
  // An anomaly: the next so many invalidations stay without an answer, and are not executed.
  void lose_invalidations(std::uint32_t count) { lost_ = count; }

  // Points a requester at a setting; what must be invalidated then is context_scopes() of the driver.
  Task<Errno> point(CpuPort& cpu, RequesterId requester, ContextSetting setting);
  Task<Errno> block(CpuPort& cpu, RequesterId requester);

  [[nodiscard]] MmioPort& registers() { return registers_; }
  Task<void> write_registers(CpuPort& cpu, std::vector<RegisterWrite> writes);
  // A group of further command rings for a guest; nullopt: there is none, or none left.
  std::optional<std::uint32_t> allocate_queue_group();
  void release_queue_group(std::uint32_t group);

  // A tag that nobody uses; nullopt: the hardware has no more.
  std::optional<DomainTag> allocate_tag();
  // One more user of a tag.
  void share_tag(DomainTag tag);
  // Once for each user; no cache holds anything under it any more when the last one goes.
  void release_tag(DomainTag tag);
  // Since bring_up().
  struct TagCounters {
    std::uint64_t in_use = 0;
    std::uint64_t peak = 0;
    std::uint64_t refused = 0;
  };
  [[nodiscard]] const TagCounters& tag_counters() const { return tag_counters_; }

  [[nodiscard]] TableDriver& driver() { return *driver_; }
  [[nodiscard]] const std::string& name() const { return setting_.name; }
  [[nodiscard]] const UnitFeatures& features() const { return setting_.driver.features; }
  // From bring_up() on; where there is a command ring.
  [[nodiscard]] const QueueClient& queue() const { return *queue_; }
  // From the first access of an invalidation to what says that it is complete; of all queues.
  [[nodiscard]] Histogram fence_wait() const;
  [[nodiscard]] const InvalidationCounters& submitted() const { return submitted_; }
  void reset_counters();
  // Held over operations on contexts where they exclude each other by unit.
  [[nodiscard]] SpinLock& operation_lock() { return operation_lock_; }
  // Device tables and queue, in 4 KiB pages.
  [[nodiscard]] std::uint64_t table_pages() const;

 private:
  class CountedMemory;
  Task<Errno> bring_up_queues(CpuPort& cpu);
  [[nodiscard]] QueueClient& queue_for(CpuId cpu);
  Task<Errno> change_entry(CpuPort& cpu, TableEdit edit);
  Task<void> invalidate_by_registers(CpuPort& cpu, std::vector<InvalidationScope> scopes);
  Task<void> poll(CpuPort& cpu, RegisterPoll wanted);
  PhysicalUnitSetting setting_;
  MmioPort& registers_;
  std::unique_ptr<CountedMemory> tables_;
  std::unique_ptr<TableDriver> driver_;
  std::unique_ptr<QueueClient> queue_;  // from bring_up() on
  // Further rings of the host's: CPUs are spread over them, and the first one is left alone. [linux
  // drivers/iommu/arm/arm-smmu-v3/tegra241-cmdqv.c, tegra241_cmdqv_get_cmdq]
  std::vector<std::unique_ptr<QueueClient>> further_;
  std::vector<bool> queue_groups_;  // by group: taken
  SpinLock table_lock_{"device tables"};
  SpinLock register_lock_{"invalidation registers"};
  Histogram register_wait_;
  SpinLock operation_lock_{"unit operations"};
  std::vector<std::uint16_t> tags_;  // by tag: its users
  std::size_t lowest_free_tag_ = 1;  // no free tag below it
  TagCounters tag_counters_;
  InvalidationCounters submitted_;
  std::uint32_t lost_ = 0;
};

}  // namespace iommu::xen
