// SPDX-License-Identifier: Apache-2.0
// Nested translation: hardware walks the guest's stage-1 tables over Xen's stage 2. Mapping costs no exit, because
// stage-1 entries that are not present are never cached; unmapping rings a doorbell that traps, or that of a command
// ring which is the guest's own. Configuration is trapped in every case.
#include "sim/strategy/virtual_iommu.hpp"
#include "sim/xen/nested_translation.hpp"

namespace iommu::strategy {

namespace {

// Xen learns of a guest's stage-1 root when its device-table entry is invalidated. Where entries that are not present
// may be left out of invalidation, caching mode makes the guest announce them; families without it announce every
// change.
DriverOptions guest_driver(const UnitFeatures& host, const FamilyDescriptor& family, const StrategyOptions&) {
  DriverOptions options{.features = host, .stage1 = true, .range_flush = RangeFlush::SmallestBlock};
  options.features.nested = false;
  options.features.further_queues = FurtherQueues::None;
  options.features.host_rings = 0;
  options.features.caching_mode = true;
  if (family.unsupported != nullptr && !family.unsupported(options.features).empty())
    options.features.caching_mode = false;
  return options;
}

DriverOptions guest_driver_of(const StrategyEnvironment& environment) {
  DriverOptions options = guest_driver(environment.host, environment.family, environment.options);
  if (environment.options.guest_queue) options.features.further_queues = FurtherQueues::OneGuests;
  return options;
}

class Nested final : public VirtualIommu<xen::NestedTranslation> {
 public:
  explicit Nested(const StrategyEnvironment& environment)
      : VirtualIommu(environment, guest_driver_of(environment)), guest_queue_(environment.options.guest_queue) {}

  Task<xen::Errno> start(CpuPort& cpu) override {
    if (guest_queue_) {
      const xen::Errno opened = co_await translation().open_queues(cpu);
      if (opened != xen::Errno::Ok) co_return opened;
    }
    co_return co_await bring_up(cpu, translation().queue_registers());
  }
  Task<void> stop(CpuPort& cpu) override { co_await translation().close_queues(cpu); }

 private:
  bool guest_queue_;
};

}  // namespace

const StrategyDescriptor kNested{
    .name = "nested",
    .description = "the guest owns stage-1 tables that hardware walks over Xen's stage 2; its doorbell traps",
    .host_driver =
        [](const UnitFeatures& host, const StrategyOptions&) {
          DriverOptions options{.features = host, .stage1 = true};
          options.features.nested = true;
          return options;
        },
    .guest_driver = guest_driver,
    .make = [](const StrategyEnvironment& environment) -> std::unique_ptr<DmaStrategy> {
      return std::make_unique<Nested>(environment);
    }};

}  // namespace iommu::strategy
