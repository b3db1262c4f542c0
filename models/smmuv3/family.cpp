// SPDX-License-Identifier: Apache-2.0
#include "models/smmuv3/family.hpp"

#include <memory>

#include "models/smmuv3/capabilities.hpp"
#include "models/smmuv3/core.hpp"
#include "models/smmuv3/driver.hpp"
#include "models/smmuv3/explain.hpp"
#include "models/smmuv3/spec.hpp"
#include "models/smmuv3/vector_rules.hpp"

namespace iommu::smmuv3 {

namespace {

constexpr FamilyDescriptor kFamily{
    .name = "smmuv3",
    .specification = kSpec,
    .make_core = [](const UnitFeatures& features) -> std::unique_ptr<IommuCore> {
      return std::make_unique<Core>(compose(features));
    },
    .make_driver = [](const DriverOptions& options) -> std::unique_ptr<TableDriver> {
      return std::make_unique<Driver>(options);
    },
    .fault_rows = kFaultRows,
    .command_rows = kCommandRows,
    .mmio_bytes = kRegisterBytes,
    .has_further_queues = true,
    .fixed_inputs = {},
    .unsupported = unsupported,
    .vectors = &kVectorFamily,
    .layouts = &kFamilyLayouts,
};

}  // namespace

const FamilyDescriptor& family() { return kFamily; }

}  // namespace iommu::smmuv3
