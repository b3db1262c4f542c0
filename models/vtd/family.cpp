// SPDX-License-Identifier: Apache-2.0
#include "models/vtd/family.hpp"

#include <array>
#include <memory>

#include "models/vtd/capabilities.hpp"
#include "models/vtd/core.hpp"
#include "models/vtd/driver.hpp"
#include "models/vtd/explain.hpp"
#include "models/vtd/spec.hpp"
#include "models/vtd/vector_rules.hpp"

namespace iommu::vtd {

namespace {

// Interrupt requests. [VTD 4.1 §3.14]
constexpr std::array kFixedInputs{AddressRange{kInterruptFirst, kInterruptLast}};

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
    .fixed_inputs = kFixedInputs,
    .unsupported = unsupported,
    .vectors = &kVectorFamily,
    .layouts = &kFamilyLayouts,
};

}  // namespace

const FamilyDescriptor& family() { return kFamily; }

}  // namespace iommu::vtd
