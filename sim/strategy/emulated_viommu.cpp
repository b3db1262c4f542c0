// SPDX-License-Identifier: Apache-2.0
// Emulated vIOMMU: the guest drives a unit that exists only in software; Xen shadows its tables. In caching mode every
// map and every unmap ends in an invalidation that traps. Linux refuses lazy unmapping on such a unit; a scenario may
// ask what it would do, which is one resynchronisation of the whole shadow per flush. With write-protected tables every
// store to them traps, and the guest's driver is that of hardware: it announces what it unmaps, and may do so lazily.
#include "sim/strategy/virtual_iommu.hpp"
#include "sim/xen/shadow_translation.hpp"

namespace iommu::strategy {

namespace {

// Software reads the guest's tables, so they need no cache-line flushes.
DriverOptions guest_driver_with(const UnitFeatures& host, xen::ShadowSync shadow) {
  DriverOptions options{.features = host, .stage1 = false, .range_flush = RangeFlush::SmallestBlock};
  options.features.nested = false;
  options.features.caching_mode = shadow == xen::ShadowSync::CachingMode;
  options.features.coherent_walks = true;
  options.features.device_tlb = false;
  options.features.further_queues = FurtherQueues::None;
  options.features.host_rings = 0;
  return options;
}

bool has_caching_mode(const UnitFeatures& host, const FamilyDescriptor& family) {
  if (family.unsupported == nullptr) return true;
  UnitFeatures features = guest_driver_with(host, xen::ShadowSync::WriteProtect).features;
  const bool is_possible_without = family.unsupported(features).empty();
  features.caching_mode = true;
  return !is_possible_without || family.unsupported(features).empty();
}

xen::ShadowSync shadow_of(const UnitFeatures& host, const FamilyDescriptor& family, const StrategyOptions& options) {
  if (options.shadow) return *options.shadow;
  return has_caching_mode(host, family) ? xen::ShadowSync::CachingMode : xen::ShadowSync::WriteProtect;
}

DriverOptions guest_driver(const UnitFeatures& host, const FamilyDescriptor& family, const StrategyOptions& options) {
  return guest_driver_with(host, shadow_of(host, family, options));
}

class EmulatedViommu final : public VirtualIommu<xen::ShadowTranslation> {
 public:
  explicit EmulatedViommu(const StrategyEnvironment& environment)
      : EmulatedViommu(environment, shadow_of(environment.host, environment.family, environment.options)) {}
  [[nodiscard]] StrategyCounters counters() const override {
    StrategyCounters counters = VirtualIommu::counters();
    counters.shadow_entries = translation().counters().compared;
    counters.shadow_changes = translation().counters().changed;
    counters.shadow_resyncs = translation().counters().resyncs;
    counters.refused_scans = translation().counters().refused_scans;
    if (shadow_ == xen::ShadowSync::WriteProtect) counters.protected_pages = translation().protected_pages();
    return counters;
  }
  void reset_counters() override {
    VirtualIommu::reset_counters();
    translation().reset_counters();
  }

 private:
  EmulatedViommu(const StrategyEnvironment& environment, xen::ShadowSync shadow)
      : VirtualIommu(environment, guest_driver_with(environment.host, shadow), environment.family, shadow),
        shadow_(shadow) {}
  // The guest need not announce the device's table entry; so that its store to it traps, Xen looks where it will be.
  Task<void> device_added(CpuPort& cpu) override {
    if (shadow_ == xen::ShadowSync::WriteProtect) co_await virtual_unit()->reconsider(cpu);
  }

  xen::ShadowSync shadow_;
};

}  // namespace

const StrategyDescriptor kEmulatedViommu{
    .name = "emulated_viommu",
    .description = "the guest drives an emulated unit; Xen keeps a shadow of its tables",
    .host_driver = [](const UnitFeatures& host, const StrategyOptions&) { return DriverOptions{.features = host}; },
    .guest_driver = guest_driver,
    .make = [](const StrategyEnvironment& environment) -> std::unique_ptr<DmaStrategy> {
      return std::make_unique<EmulatedViommu>(environment);
    }};

}  // namespace iommu::strategy
