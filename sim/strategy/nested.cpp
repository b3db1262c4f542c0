// SPDX-License-Identifier: Apache-2.0
// Nested translation: hardware walks the guest's stage-1 tables over Xen's stage 2. Mapping costs no exit, because
// stage-1 entries that are not present are never cached; unmapping rings a doorbell that traps.
#include "sim/strategy/virtual_iommu.hpp"
#include "sim/xen/nested_translation.hpp"

namespace iommu::strategy {

namespace {

// Xen learns of a guest's stage-1 root when its device-table entry is invalidated. Where entries that are not present
// may be left out of invalidation, caching mode makes the guest announce them; families without it announce every
// change.
DriverOptions guest_driver(const UnitFeatures& host, const FamilyDescriptor& family) {
  DriverOptions options{.features = host, .stage1 = true, .range_flush = RangeFlush::SmallestBlock};
  options.features.nested = false;
  options.features.caching_mode = true;
  if (family.unsupported != nullptr && !family.unsupported(options.features).empty())
    options.features.caching_mode = false;
  return options;
}

using Nested = VirtualIommu<xen::NestedTranslation>;

}  // namespace

const StrategyDescriptor kNested{
    .name = "nested",
    .description = "the guest owns stage-1 tables that hardware walks over Xen's stage 2; its doorbell traps",
    .host_driver =
        [](const UnitFeatures& host) {
          DriverOptions options{.features = host, .stage1 = true};
          options.features.nested = true;
          return options;
        },
    .guest_driver = guest_driver,
    .make = [](const StrategyEnvironment& environment) -> std::unique_ptr<DmaStrategy> {
      return std::make_unique<Nested>(environment, guest_driver(environment.host, environment.family));
    }};

}  // namespace iommu::strategy
