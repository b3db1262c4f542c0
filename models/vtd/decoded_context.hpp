// SPDX-License-Identifier: Apache-2.0
// What this family keeps in Context::family_bits: the model's own encoding, so that one cached word spares re-reading
// the context and PASID entries.
#pragma once

#include "sim/base/bits.hpp"

namespace iommu::vtd {

// clang-format off
inline constexpr auto kDecoded = layout("decoded context", "-", 64, {
    {"input_bits",    6,  0},  // addresses have fewer bits than this, or are refused
    {"scalable",      7,  7},
    {"device_tlb",    8,  8},  // translation and translated requests are allowed
    {"supervisor",    9,  9},  // SRE
    {"write_protect", 10, 10}, // WPE
    {"extended_accessed", 11, 11},
    {"second_stage_marks", 12, 12},
    {"marks_forbidden", 13, 13},
    {"snoop",        14, 14},  // PGSNP
    {"unused",       63, 15, FieldKind::Ignored}});
// clang-format on
static_assert(kDecoded.is_partition());

}  // namespace iommu::vtd
