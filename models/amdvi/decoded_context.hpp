// SPDX-License-Identifier: Apache-2.0
// What this family keeps in Context::family_bits and Fault::family_bits: the model's own encodings.
#pragma once

#include "sim/base/bits.hpp"

namespace iommu::amdvi {

// clang-format off
// What a cached context spares re-reading the device table entry for.
inline constexpr auto kDecoded = layout("decoded context", "-", 64, {
    {"valid",        0,  0},  // V; clear: everything is forwarded
    {"translates",   1,  1},  // TV
    {"mode",         4,  2},
    {"read",         5,  5},  // IR
    {"write",        6,  6},  // IW
    {"device_tlb",   7,  7},  // I
    {"excluded",     8,  8},  // EX
    {"suppress_one", 9,  9},  // SE
    {"mark_accessed", 10, 10},  // HAD[0]
    {"mark_dirty",   11, 11},  // HAD[1]
    {"unused",       63, 12, FieldKind::Ignored}});

// What an event says besides what the fault itself holds.
inline constexpr auto kEventBits = layout("fault of an event", "-", 64, {
    {"domain",      15,  0},
    {"guest",       16, 16},  // GN: address and PASID are the guest's
    {"suppress_one", 17, 17}, // SE
    {"gpa",         18, 18},  // the address is the fault's guest-physical one
    {"unused",      63, 19, FieldKind::Ignored}});
// clang-format on
static_assert(kDecoded.is_partition() && kEventBits.is_partition());

}  // namespace iommu::amdvi
