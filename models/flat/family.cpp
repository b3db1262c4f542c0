// SPDX-License-Identifier: Apache-2.0
#include "models/flat/family.hpp"

#include <array>
#include <memory>
#include <string>

#include "models/flat/core.hpp"
#include "models/flat/driver.hpp"

namespace iommu::flat {

namespace {

constexpr std::array kAperture{AddressRange{kApertureFirst, kApertureLast}};

template <class Core>
std::unique_ptr<IommuCore> make_core(const UnitFeatures& features) {
  return std::make_unique<Core>(features);
}
template <class Driver>
std::unique_ptr<TableDriver> make_driver(const DriverOptions& options) {
  return std::make_unique<Driver>(options);
}

std::string outside(const UnitFeatures& features, unsigned smallest, unsigned largest) {
  if (features.nested) return "a unit with one flat table does not nest";
  if (features.aperture_lg2 >= smallest && features.aperture_lg2 <= largest) return {};
  return "its table translates 2^" + std::to_string(smallest) + " to 2^" + std::to_string(largest) + " bytes";
}

constexpr FamilyDescriptor kTceUnit{
    .name = "tce",
    .specification = kTceSpec,
    .make_core = make_core<TceCore>,
    .make_driver = make_driver<TceDriver>,
    .fault_rows = kFaultRows,
    .command_rows = {},
    .mmio_bytes = kTceMmioBytes,
    .fixed_inputs = {},
    .unsupported =
        [](const UnitFeatures& features) {
          return outside(features, kSmallestTceWindowLg2, kSmallestTceWindowLg2 + kLargestTableOrder);
        },
};

constexpr FamilyDescriptor kGartUnit{
    .name = "gart",
    .specification = kGartSpec,
    .make_core = make_core<GartCore>,
    .make_driver = make_driver<GartDriver>,
    .fault_rows = kFaultRows,
    .command_rows = {},
    .mmio_bytes = kGartMmioBytes,
    .fixed_inputs = kAperture,
    .unsupported =
        [](const UnitFeatures& features) { return outside(features, kSmallestApertureLg2, kLargestApertureLg2); },
};

}  // namespace

const FamilyDescriptor& tce_unit() { return kTceUnit; }
const FamilyDescriptor& gart_unit() { return kGartUnit; }

}  // namespace iommu::flat
