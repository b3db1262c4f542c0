// SPDX-License-Identifier: Apache-2.0
// How recorded AMD-Vi translations are replayed, and where QEMU, which recorded them, departs from the specification.
#pragma once

#include "sim/translation/vectors.hpp"

namespace iommu::amdvi {

extern const VectorFamily kVectorFamily;

}  // namespace iommu::amdvi
