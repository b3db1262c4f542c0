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

// Stage 1 by a context descriptor: what a guest may ask for; other ways have requests of their own. [uapi/linux/
// virtio_iommu.h v0.12, ATTACH_TABLE_ARM_SMMU3, PROBE_T_HW_ARM_SMMU3; linux include/uapi/linux/iommufd.h,
// iommu_hwpt_arm_smmuv3]
bool asks_for_stage1(const std::array<std::uint64_t, 2>& words) {
  return get<kSte, "V">(words) != 0 && get<kSte, "Config">(words) == static_cast<std::uint64_t>(StreamConfig::Stage1);
}
constexpr TableBinding kBinding{.format = 1,
                                .property = 2,
                                .identity = [](const UnitFeatures& features) -> std::vector<std::uint64_t> {
                                  const Identity id = compose(features);
                                  return {id.idr0, id.idr1, 0, id.idr3, 0, id.idr5};
                                },
                                .is_entry = asks_for_stage1};

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
    .binding = &kBinding,
};

}  // namespace

const FamilyDescriptor& family() { return kFamily; }

}  // namespace iommu::smmuv3
