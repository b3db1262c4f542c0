// SPDX-License-Identifier: Apache-2.0
// Hypervisor calls that change translation control entries, as a guest sees them. [PAPR+ as in Linux asm/hvcall.h and
// arch/powerpc/kvm/book3s_64_vio.c; list entries are big-endian]
#pragma once

#include <cstdint>

#include "sim/base/bits.hpp"

namespace iommu::xen::abi {

// clang-format off
inline constexpr auto kTceValue = layout("TCE", "Linux asm/tce.h TCE_PCI_READ, TCE_PCI_WRITE, TCE_RPN_SHIFT", 64, {
    {"Read",  0,  0}, {"Write", 1, 1},
    {"rsv",  11,  2, FieldKind::MustBeZero},
    {"page", 63, 12}});
// clang-format on
static_assert(kTceValue.is_partition());

// [asm/hvcall.h H_*; values from memory]
enum class TceStatus : std::int64_t {
  Success = 0,
  Hardware = -1,
  Parameter = -4,
  NotEnoughResources = -44,
  TooHard = 9999,  // the hypervisor proper must look at it
};

inline constexpr std::uint64_t kTcesPerList = 512;  // [book3s_64_vio.c kvmppc_h_put_tce_indirect]

// As loads of a big-endian word swap it.
[[nodiscard]] constexpr std::uint64_t big_endian(std::uint64_t word) {
  std::uint64_t swapped = 0;
  for (int i = 0; i < 8; ++i, word >>= 8) swapped = swapped << 8 | (word & 0xff);
  return swapped;
}

}  // namespace iommu::xen::abi
