// SPDX-License-Identifier: Apache-2.0
// What this family keeps in Context::family_bits and Fault::family_bits: the model's own encoding, so that one cached
// word spares re-reading STE and CD, and so that an event can be written long after its fault.
#pragma once

#include "sim/base/bits.hpp"

namespace iommu::smmuv3 {

// clang-format off
inline constexpr auto kDecoded = layout("decoded context", "-", 64, {
    // Stage 1, lower and upper range. Zero input bits: the range is disabled (EPD).
    {"input_bits0",  5,  0}, {"input_bits1", 11,  6}, {"granule0",  16, 12}, {"granule1",  21, 17},
    {"output_bits", 27, 22}, {"flags",       29, 28},  // FlagHandling
    {"top_byte_ignored0", 30, 30}, {"top_byte_ignored1", 31, 31}, {"flat0", 32, 32}, {"flat1", 33, 33},
    {"never_user_data", 34, 34}, {"stall",   35, 35}, {"record",    36, 36}, {"abort",     37, 37},
    // Stage 2
    {"stage2_input_bits", 43, 38}, {"stage2_granule", 45, 44},  // by S2TG
    {"stage2_output", 48, 46},                                  // by S2PS
    {"stage2_flags", 50, 49}, {"stage2_protect", 51, 51}, {"stage2_stall", 52, 52}, {"stage2_record", 53, 53},
    {"ats",         55, 54},  // AtsMode
    {"write_execute_never", 56, 56},
    {"unused",      63, 57, FieldKind::Ignored}});

inline constexpr auto kFaultDetail = layout("event details", "-", 64, {
    {"class",        1,  0}, {"stage2",       2,  2}, {"table_read",   3,  3}, {"privileged",   4,  4},
    {"instruction",  5,  5}, {"unused",      63,  6, FieldKind::Ignored}});
// clang-format on
static_assert(kDecoded.is_partition() && kFaultDetail.is_partition());

}  // namespace iommu::smmuv3
