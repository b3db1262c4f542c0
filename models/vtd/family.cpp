// SPDX-License-Identifier: Apache-2.0
#include "models/vtd/family.hpp"

#include <memory>

#include "models/vtd/capabilities.hpp"
#include "models/vtd/core.hpp"
#include "models/vtd/driver.hpp"
#include "models/vtd/spec.hpp"
#include "models/vtd/vector_rules.hpp"

namespace iommu::vtd {

namespace {

constexpr FamilyDescriptor kFamily{
    .name = "vtd",
    .specification = kSpec,
    .make_core = [](const UnitFeatures& features) -> std::unique_ptr<IommuCore> {
      return std::make_unique<Core>(compose(features));
    },
    .make_driver = [](const DriverOptions& options) -> std::unique_ptr<TableDriver> {
      return std::make_unique<Driver>(options);
    },
    .fault_rows = kFaultRows,
    .command_rows = kCommandRows,
    .mmio_bytes = kComposedRegisterBytes,
    .unsupported = unsupported,
    .vectors = &kVectorFamily,
};

}  // namespace

const FamilyDescriptor& family() { return kFamily; }

}  // namespace iommu::vtd
