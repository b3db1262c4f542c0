// SPDX-License-Identifier: Apache-2.0
// AMD-Vi as one of the families.
#pragma once

#include "sim/translation/family.hpp"

namespace iommu::amdvi {

[[nodiscard]] const FamilyDescriptor& family();

}  // namespace iommu::amdvi
