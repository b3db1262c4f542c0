// SPDX-License-Identifier: Apache-2.0
#include "models/amdvi/family.hpp"

#include <array>
#include <memory>

#include "models/amdvi/capabilities.hpp"
#include "models/amdvi/core.hpp"
#include "models/amdvi/driver.hpp"
#include "models/amdvi/explain.hpp"
#include "models/amdvi/spec.hpp"
#include "models/amdvi/vector_rules.hpp"

namespace iommu::amdvi {

namespace {

// Interrupt requests. [§2.1.2]
constexpr std::array kFixedInputs{AddressRange{kInterruptFirst, kInterruptLast}};

// ASSUMPTION(virtio-008): the header names the format and the property, and lays out neither: as VT-d's, a root and a
// width; the GCR3 table is the host's. [uapi/linux/virtio_iommu.h v0.12, ATTACH_TABLE_AMD_PT, PROBE_T_HW_AMD; linux
// include/uapi/linux/iommufd.h, iommu_hw_info_amd]
constexpr TableBinding kBinding{.format = 6,
                                .property = 5,
                                .identity = [](const UnitFeatures& features) -> std::vector<std::uint64_t> {
                                  return {compose(features).extended_features, 0};
                                },
                                .asid = AsidTag(kRequestsWithoutPasid)};

constexpr FamilyDescriptor kFamily{
    .name = "amdvi",
    .specification = kSpec,
    .make_core = [](const UnitFeatures& features) -> std::unique_ptr<IommuCore> {
      return std::make_unique<Core>(compose(features));
    },
    .make_driver = [](const DriverOptions& options) -> std::unique_ptr<TableDriver> {
      return std::make_unique<Driver>(options);
    },
    .fault_rows = kFaultRows,
    .command_rows = kCommandRows,
    .mmio_bytes = kMmioBytes,
    .fixed_inputs = kFixedInputs,
    .unsupported = unsupported,
    .vectors = &kVectorFamily,
    .layouts = &kFamilyLayouts,
    .binding = &kBinding,
};

}  // namespace

const FamilyDescriptor& family() { return kFamily; }

}  // namespace iommu::amdvi
