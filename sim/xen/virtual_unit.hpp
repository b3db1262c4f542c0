// SPDX-License-Identifier: Apache-2.0
// An IOMMU that Xen emulates for a guest: the family's own IommuCore, over guest memory, behind trapped registers. What
// its commands do to the real machine is the sink's business: shadow a table, or forward to hardware.
//
// All of it runs on the vCPU whose access trapped. One trap handles at most what the ring held when it began: the
// unit's lock keeps other vCPUs from moving the tail meanwhile. Stores to tables that the sink has had write-protected
// trap here as well.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "sim/base/cpu_port.hpp"
#include "sim/base/task.hpp"
#include "sim/translation/family.hpp"
#include "sim/translation/queue_client.hpp"
#include "sim/xen/domain.hpp"
#include "sim/xen/guest_memory_port.hpp"
#include "sim/xen/invalidation_counters.hpp"
#include "sim/xen/protected_tables.hpp"

namespace iommu::xen {

// Who answers a trapped access: Xen itself, or a user-space device model behind it.
enum class TrapTarget : std::uint8_t { Xen, DeviceModel };

struct TrapCounters {
  std::uint64_t doorbell = 0;         // register writes that made commands pending
  std::uint64_t register_access = 0;  // all other register accesses
  std::uint64_t table_store = 0;      // stores to write-protected tables
  std::uint64_t device_model = 0;     // of all these: those that went on to the device model
  [[nodiscard]] std::uint64_t total() const { return doorbell + register_access + table_store; }
};

// What became of faults that physical units recorded for a guest's devices.
struct FaultForwarding {
  std::uint64_t forwarded = 0;  // to the unit that the guest knows, which may have had no room for a record
  std::uint64_t kept = 0;       // no fault of that unit, or the guest had no buffer for it
};

// What a guest's invalidations and configuration changes mean for the real machine.
class VirtualUnitSink {
 public:
  VirtualUnitSink() = default;
  VirtualUnitSink(const VirtualUnitSink&) = delete;
  VirtualUnitSink& operator=(const VirtualUnitSink&) = delete;
  virtual ~VirtualUnitSink() = default;
  // Has taken effect, on hardware too, when it returns: a fence of the guest completes then. Tags are the guest's.
  virtual Task<void> invalidate(CpuPort& cpu, std::vector<InvalidationScope> scopes) = 0;
  // The guest switched translation on or off or replaced its device table.
  virtual Task<void> configuration_changed(CpuPort& cpu) = 0;
  // The guest says where a further ring of its unit is. Commands in such a ring are not the virtual unit's business.
  virtual Task<void> ring_placed(CpuPort&, RingPlacement) { co_return; }
  // The guest has stored to a page that the sink has had write-protected.
  virtual std::vector<TableChange> on_store(Gpa, Bytes) { return {}; }
  // What such a store changed becomes real.
  virtual Task<void> tables_changed(CpuPort&, std::vector<TableChange>) { co_return; }
};

class VirtualUnit final : public MmioPort, public StoreTrap {
 public:
  // Everything passed by reference outlives it.
  VirtualUnit(const FamilyDescriptor& family, const UnitFeatures& features, Domain& domain, TrapTarget target);

  // Before the guest's first access.
  void connect(VirtualUnitSink& sink) { sink_ = &sink; }

  // MmioPort, as the guest's accesses trap.
  Task<void> write(CpuPort& cpu, std::uint64_t offset, unsigned bytes, std::uint64_t value) override;
  Task<std::uint64_t> read(CpuPort& cpu, std::uint64_t offset, unsigned bytes) override;

  // The hypercall by which a device model has DMA of a virtual device behind this unit translated. Addresses that come
  // back are guest-physical and may lie outside the guest's memory. Every call reads the guest's tables anew; a fault
  // is recorded in the unit, as hardware would. [Xen vIOMMU staging plan, June 2016: "virtual device's DMA
  // translation"]
  Task<TranslationResponse> translate(CpuPort& cpu, TranslationRequest request);

  // The physical unit refused a request of a device behind this unit: the guest's tables are asked anew, and what
  // refuses it there is recorded as this unit's hardware would. What only the host refuses (a second stage, a shadow
  // that has not caught up) is no fault of a unit that the guest knows. [linux drivers/iommu/arm/arm-smmu-v3/
  // arm-smmu-v3.c, arm_smmu_handle_event: a guest is told of events of stage 1]
  // `device`: as the guest numbers it.
  Task<void> forward_fault(CpuPort& cpu, RequesterId device, Fault fault);

  // StoreTrap.
  // ASSUMPTION(shadow-002): the stores of one edit happen together and trap one after the other, as if each waited for
  // the ones before; no store is merged with another.
  void on_store(Gpa address, Bytes length) override { stores_.push_back(sink_->on_store(address, length)); }
  Task<void> settle(CpuPort& cpu) override;

  // The sink reads the guest's device tables again: a device came behind the unit.
  Task<void> reconsider(CpuPort& cpu);

  // The architecture over guest memory, for sinks: what do the guest's tables say?
  [[nodiscard]] IommuCore& core() { return *core_; }
  [[nodiscard]] MemoryPort& guest_memory() { return port_; }
  [[nodiscard]] const UnitFeatures& features() const { return features_; }

  [[nodiscard]] const TrapCounters& traps() const { return traps_; }
  [[nodiscard]] const InvalidationCounters& commands() const { return commands_; }
  [[nodiscard]] std::uint64_t commands_emulated() const { return commands_emulated_; }
  [[nodiscard]] std::uint64_t interrupts() const { return interrupts_; }
  [[nodiscard]] FaultForwarding faults() const { return faults_; }
  void reset_counters();

 private:
  Task<void> charge_exit(CpuPort& cpu, CostId exit, CostId work);
  Task<void> apply_own_stores(CpuPort& cpu);
  Task<void> run_commands(CpuPort& cpu);
  Task<void> complete(CpuPort& cpu, FenceCompletion fence);
  Task<void> deliver_interrupts(CpuPort& cpu);
  Task<void> record(CpuPort& cpu, Fault fault);

  Domain& domain_;
  UnitFeatures features_;
  TrapTarget target_;
  std::unique_ptr<IommuCore> core_;
  GuestMemoryPort port_;
  VirtualUnitSink* sink_ = nullptr;
  SpinLock lock_{"virtual unit"};
  std::vector<std::vector<TableChange>> stores_;  // that nobody has settled yet
  TrapCounters traps_;
  InvalidationCounters commands_;
  std::uint64_t commands_emulated_ = 0;
  std::uint64_t interrupts_ = 0;
  FaultForwarding faults_;
};

}  // namespace iommu::xen
