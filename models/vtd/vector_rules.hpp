// SPDX-License-Identifier: Apache-2.0
// How recorded VT-d translations are replayed, and where QEMU, which recorded them, departs from the specification.
#pragma once

#include "sim/translation/vectors.hpp"

namespace iommu::vtd {

extern const VectorFamily kVectorFamily;

}  // namespace iommu::vtd
