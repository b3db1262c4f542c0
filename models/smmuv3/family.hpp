// SPDX-License-Identifier: Apache-2.0
// SMMUv3 as one of the families.
#pragma once

#include "sim/translation/family.hpp"

namespace iommu::smmuv3 {

[[nodiscard]] const FamilyDescriptor& family();

}  // namespace iommu::smmuv3
