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

// ASSUMPTION(virtio-007): the header names the format and the property, and lays out neither: the words are those that
// Linux's iommufd takes and tells. [uapi/linux/virtio_iommu.h v0.12, ATTACH_TABLE_INTEL_PT, PROBE_T_HW_INTEL_VTD; linux
// include/uapi/linux/iommufd.h, iommu_hwpt_vtd_s1, iommu_hw_info_vtd]
constexpr TableBinding kBinding{.format = 2,
                                .property = 3,
                                .identity = [](const UnitFeatures& features) -> std::vector<std::uint64_t> {
                                  const Identity id = compose(features);
                                  return {id.cap, id.ecap};
                                },
                                .asid = AsidTag(kRidPasid)};

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
    .binding = &kBinding,
};

}  // namespace

const FamilyDescriptor& family() { return kFamily; }

}  // namespace iommu::vtd
