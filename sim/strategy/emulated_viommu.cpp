// SPDX-License-Identifier: Apache-2.0
// Emulated vIOMMU: the guest drives a unit in caching mode that exists only in software; Xen shadows its tables. Every
// map and every unmap ends in an invalidation that traps. Linux refuses lazy unmapping on such a unit; a scenario may
// ask what it would do, which is one resynchronisation of the whole shadow per flush.
#include "sim/strategy/virtual_iommu.hpp"
#include "sim/xen/shadow_translation.hpp"

namespace iommu::strategy {

namespace {

// Software reads the guest's tables, so they need no cache-line flushes.
DriverOptions guest_driver(const UnitFeatures& host, const FamilyDescriptor&) {
  DriverOptions options{.features = host, .stage1 = false, .range_flush = RangeFlush::SmallestBlock};
  options.features.nested = false;
  options.features.caching_mode = true;
  options.features.coherent_walks = true;
  options.features.device_tlb = false;
  options.features.further_queues = FurtherQueues::None;
  options.features.host_rings = 0;
  return options;
}

class EmulatedViommu final : public VirtualIommu<xen::ShadowTranslation> {
 public:
  using VirtualIommu::VirtualIommu;
  [[nodiscard]] StrategyCounters counters() const override {
    StrategyCounters counters = VirtualIommu::counters();
    counters.shadow_entries = translation().counters().compared;
    counters.shadow_changes = translation().counters().changed;
    counters.shadow_resyncs = translation().counters().resyncs;
    counters.refused_scans = translation().counters().refused_scans;
    return counters;
  }
  void reset_counters() override {
    VirtualIommu::reset_counters();
    translation().reset_counters();
  }
};

}  // namespace

const StrategyDescriptor kEmulatedViommu{
    .name = "emulated_viommu",
    .description = "the guest drives an emulated unit in caching mode; Xen keeps a shadow of its tables",
    .host_driver = [](const UnitFeatures& host) { return DriverOptions{.features = host}; },
    .guest_driver = guest_driver,
    .make = [](const StrategyEnvironment& environment) -> std::unique_ptr<DmaStrategy> {
      return std::make_unique<EmulatedViommu>(environment, guest_driver(environment.host, environment.family),
                                              environment.family);
    }};

}  // namespace iommu::strategy
