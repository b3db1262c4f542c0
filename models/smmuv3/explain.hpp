// SPDX-License-Identifier: Apache-2.0
// The layout tables of this family at run time, for `iommusim explain`.
#pragma once

#include "sim/translation/layouts.hpp"

namespace iommu::smmuv3 {

extern const FamilyLayouts kFamilyLayouts;

}  // namespace iommu::smmuv3
