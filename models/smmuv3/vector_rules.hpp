// SPDX-License-Identifier: Apache-2.0
// How recorded SMMUv3 translations are replayed, and where QEMU, which recorded them, departs from the specification.
#pragma once

#include "sim/translation/vectors.hpp"

namespace iommu::smmuv3 {

extern const VectorFamily kVectorFamily;

}  // namespace iommu::smmuv3
