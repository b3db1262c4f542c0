// SPDX-License-Identifier: Apache-2.0
// VT-d as one of the families.
#pragma once

#include "sim/translation/family.hpp"

namespace iommu::vtd {

[[nodiscard]] const FamilyDescriptor& family();

}  // namespace iommu::vtd
