// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "sim/translation/family.hpp"

namespace iommu::flat {

// Not families to compare with others: the hardware of the strategies of the same name.
[[nodiscard]] const FamilyDescriptor& tce_unit();
[[nodiscard]] const FamilyDescriptor& gart_unit();

}  // namespace iommu::flat
