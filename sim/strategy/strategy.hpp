// SPDX-License-Identifier: Apache-2.0
// One way of giving a guest its DMA translation, written once over TableDriver and CpuPort. A strategy sets up the
// guest's and Xen's side and yields a DmaSpace per device; the DMA API above it and the hardware below it are the same
// for all.
//
// | strategy        | tables the device walks                 | map              | unmap                              |
// | passthrough     | context 0: guest-physical addresses     | nothing          | nothing                            |
// | swiotlb         | context 0: guest-physical addresses     | copy into a pool | copy back                          |
// | grants          | a driver domain's context 0, dfn = mfn  | one hypercall    | one hypercall, a flush a page      |
// | pv_iommu        | Xen's, one stage, one context a device  | one hypercall    | one hypercall with its flush       |
// | nested          | guest's stage 1 over Xen's stage 2      | guest's tables   | trapped doorbell, Xen forwards;    |
// |                 |                                         |                  | or a ring of the guest's own       |
// | emulated_viommu | Xen's shadow of the guest's tables      | trapped doorbell | trapped doorbell                   |
// |  write-protected| the same                                | trapped stores   | trapped stores, trapped doorbell   |
// | virtio_iommu    | Xen's, one stage, one context a domain  | trapped kick     | trapped kick                       |
// |  with tables    | guest's stage 1 over Xen's stage 2      | guest's tables   | trapped kick                       |
// | tce             | one flat table a bus                    | a call, or store | a call, or store and flush on wrap |
// | gart            | one flat table of one aperture          | store and flush  | store                              |
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "sim/base/cpu_port.hpp"
#include "sim/base/task.hpp"
#include "sim/guest/dma_space.hpp"
#include "sim/guest/guest_table_memory.hpp"
#include "sim/strategy/warden.hpp"
#include "sim/translation/family.hpp"
#include "sim/translation/queue_client.hpp"
#include "sim/xen/hypervisor.hpp"
#include "sim/xen/invalidation_counters.hpp"
#include "sim/xen/iommu_op.hpp"
#include "sim/xen/iommu_op_v3.hpp"
#include "sim/xen/shadow_translation.hpp"
#include "sim/xen/virtio_iommu.hpp"
#include "sim/xen/virtual_unit.hpp"

namespace iommu::strategy {

// tce: who writes the tables.
enum class TableOwner : std::uint8_t { Hypervisor, Kernel };
// gart: when the unit's cache is invalidated.
enum class ApertureFlush : std::uint8_t { Map, Wrap };
// Of the hypercall's interface: v3 stands for the first three.
enum class RfcVersion : std::uint8_t { V7, V3 };

// virtio_iommu: what the guest tells the device: each mapping, or where its own tables are.
enum class VirtioMapping : std::uint8_t { Requests, Tables };

// Variants of strategies, as scenarios name them. Each strategy reads its own keys.
struct StrategyOptions {
  // A guest's unmap invalidates final translations only, unless it freed tables (its kernel's leaf hint).
  bool leaf_hint = false;
  // pv_iommu
  RfcVersion rfc_version = RfcVersion::V7;
  bool deferred_flush = false;
  std::uint32_t batch = 1;      // operations that one hypercall carries
  bool scatter = false;         // a scatterlist goes as one list of frames
  bool all_or_nothing = false;  // maps that fail are undone by Xen
  std::uint32_t arena_order = 12;
  std::uint32_t max_contexts = 128;
  // nested, emulated_viommu, virtio_iommu: who answers the trapped accesses.
  xen::TrapTarget trap_target = xen::TrapTarget::Xen;
  // swiotlb: a power of two; at most so many areas, one a CPU.
  Bytes pool_size = 64_MiB;
  std::uint64_t areas = 1;
  TableOwner table_owner = TableOwner::Hypervisor;
  ApertureFlush flush_at = ApertureFlush::Map;
  // virtio_iommu: what its endpoints are.
  xen::EndpointKind endpoints = xen::EndpointKind::Physical;
  VirtioMapping mapping = VirtioMapping::Requests;
  // nested: what a ring of the guest's own can carry goes there, without a trap.
  bool guest_queue = false;
  // emulated_viommu. Absent: caching mode where the family has one, else write protection.
  std::optional<xen::ShadowSync> shadow{};
};

// What a strategy is built on; all outlives it.
struct StrategyEnvironment {
  xen::Hypervisor& xen;
  xen::IommuOp& hypercall;
  xen::Domain& domain;
  guest::GuestPages& pages;  // the guest kernel's
  const FamilyDescriptor& family;
  UnitFeatures host;  // of the physical unit
  StrategyOptions options;
  // What spaces that choose addresses themselves tell of their mappings.
  guest::MappingObserver& observer;
  xen::IommuOpV3* hypercall_v3 = nullptr;  // where that is Xen's interface
};

struct BounceCounters {
  std::uint64_t bytes_copied = 0;  // both ways
  std::uint64_t most_slots = 0;    // in use at once
  std::uint64_t full = 0;          // maps that found no run of free slots
};

struct StrategyCounters {
  xen::TrapCounters traps;
  std::uint64_t commands_emulated = 0;
  std::uint64_t shadow_entries = 0;  // compared
  std::uint64_t shadow_changes = 0;  // of them different: shadow entries written or removed
  std::uint64_t shadow_resyncs = 0;  // whole address spaces compared
  std::uint64_t refused_scans = 0;   // guest tables too large to be honest: their device is blocked
  // Guest pages that are write-protected now; absent where none ever is.
  std::optional<std::uint64_t> protected_pages{};
  xen::InvalidationCounters guest;  // what the guest asked of its virtual unit
  std::optional<BounceCounters> bounce{};
  std::optional<xen::VirtioIommuCounters> virtio{};  // of a virtio-iommu
  // Beside iommu_op's, by name.
  std::vector<std::pair<std::string_view, std::uint64_t>> hypercalls{};
  [[nodiscard]] std::uint64_t other_hypercalls() const {
    std::uint64_t sum = 0;
    for (const auto& [name, count] : hypercalls) sum += count;
    return sum;
  }
  std::optional<xen::FaultForwarding> faults{};  // absent: the guest knows nothing that reports faults
  QueueCounters own_queues;                      // of the guest's own rings, all together
};

// Of devices that a device model emulates.
class SoftwareTranslation {
 public:
  SoftwareTranslation() = default;
  SoftwareTranslation(const SoftwareTranslation&) = delete;
  SoftwareTranslation& operator=(const SoftwareTranslation&) = delete;
  virtual ~SoftwareTranslation() = default;
  // Where an access leads, for the rest of its page; nullopt: it is refused, and the guest has been told. `cpu` is the
  // device model's.
  virtual Task<std::optional<Hpa>> translate(CpuPort& cpu, RequesterId device, Iova address, Access access) = 0;
};

class DmaStrategy {
 public:
  DmaStrategy() = default;
  DmaStrategy(const DmaStrategy&) = delete;
  DmaStrategy& operator=(const DmaStrategy&) = delete;
  virtual ~DmaStrategy() = default;

  // The guest's kernel starts: brings up its virtual unit or asks Xen for contexts. Once, before attach().
  virtual Task<xen::Errno> start(CpuPort& cpu) = 0;
  // The guest's kernel takes a device that Xen has assigned to the domain. The space lives as long as the strategy;
  // nullptr: refused.
  virtual Task<guest::DmaSpace*> attach(CpuPort& cpu, RequesterId device) = 0;
  // What the addresses of a device that was attached mean; for the warden.
  [[nodiscard]] virtual Addressing addressing(RequesterId) const { return Addressing::Mapped; }
  // The unit that the guest believes it has; null without one.
  [[nodiscard]] virtual xen::VirtualUnit* virtual_unit() { return nullptr; }
  // Who translates for the guest's devices if they are emulated; null: a unit does, and they are real.
  [[nodiscard]] virtual SoftwareTranslation* software_translation() { return nullptr; }
  // The physical unit recorded a fault of a device: the guest learns of it where the IOMMU that it knows reports
  // faults. `cpu` is Xen's.
  virtual Task<void> forward_fault(CpuPort&, RequesterId, Fault) { co_return; }
  [[nodiscard]] virtual StrategyCounters counters() const { return {}; }
  virtual void reset_counters() {}
  // The guest is gone: what it owned of hardware goes back to Xen. Nothing else may be asked afterwards.
  virtual Task<void> stop(CpuPort&) { co_return; }
  // Guest memory in I/O tables. Host tables, shadows included, are the hypervisor's.
  [[nodiscard]] virtual std::uint64_t guest_table_bytes() const { return 0; }
};

struct StrategyDescriptor {
  std::string_view name;  // as in scenarios, whose schema documents the strategy's keys
  std::string_view description;
  // The unit that it needs, whatever family was asked for; empty: any family's.
  std::string_view own_unit{};
  // What devices reach before the guest takes them.
  xen::DefaultContext default_context = xen::DefaultContext::Identity;
  // How Xen must program the physical unit for it.
  DriverOptions (*host_driver)(const UnitFeatures& host, const StrategyOptions& options) = nullptr;
  // How the guest programs its virtual unit; null: it has none.
  DriverOptions (*guest_driver)(const UnitFeatures& host, const FamilyDescriptor& family,
                                const StrategyOptions& options) = nullptr;
  std::unique_ptr<DmaStrategy> (*make)(const StrategyEnvironment& environment) = nullptr;
};

extern const StrategyDescriptor kPassthrough;
extern const StrategyDescriptor kSwiotlb;
extern const StrategyDescriptor kGrants;
extern const StrategyDescriptor kPvIommu;
extern const StrategyDescriptor kNested;
extern const StrategyDescriptor kEmulatedViommu;
extern const StrategyDescriptor kVirtioIommu;
extern const StrategyDescriptor kTce;
extern const StrategyDescriptor kGart;
inline constexpr std::array kStrategies{&kPassthrough,    &kSwiotlb,     &kGrants, &kPvIommu, &kNested,
                                        &kEmulatedViommu, &kVirtioIommu, &kTce,    &kGart};

// nullptr: no strategy has this name.
[[nodiscard]] const StrategyDescriptor* find_strategy(std::string_view name);

}  // namespace iommu::strategy
