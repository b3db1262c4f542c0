// SPDX-License-Identifier: Apache-2.0
// Grant tables, as guests see them: version-1 entries in guest memory and the arguments of grant_table_op.
// [xen/include/public/grant_table.h]
#pragma once

#include <cstddef>
#include <cstdint>

#include "sim/base/bits.hpp"

namespace iommu::xen::abi {

// One entry of a version-1 table. [public/grant_table.h, grant_entry_v1 and GTF_*]
// clang-format off
inline constexpr auto kGrantEntry = layout("grant_entry_v1", "public/grant_table.h", 64, {
    {"type",      1,  0},
    {"readonly",  2,  2},
    {"reading",   3,  3},
    {"writing",   4,  4},
    {"PWT",       5,  5}, {"PCD", 6, 6}, {"PAT", 7, 7},
    {"sub_page",  8,  8},
    {"ign",      15,  9, FieldKind::Ignored},
    {"domid",    31, 16},
    {"frame",    63, 32}});
// clang-format on
static_assert(kGrantEntry.is_partition());
enum class GrantType : std::uint8_t { Invalid = 0, PermitAccess = 1, AcceptTransfer = 2, Transitive = 3 };
// The first references belong to the toolstack. [public/grant_table.h, GNTTAB_NR_RESERVED_ENTRIES]
inline constexpr std::uint32_t kReservedGrants = 8;

// [public/grant_table.h, GNTTABOP_*]
enum class GrantCommand : std::uint32_t { MapGrantRef = 0, UnmapGrantRef = 1 };

// [public/grant_table.h, GNTST_*]
enum class GrantStatus : std::int16_t {
  Okay = 0,
  GeneralError = -1,
  BadDomain = -2,
  BadGrantReference = -3,
  BadHandle = -4,
  NoDeviceSpace = -7,
  PermissionDenied = -8,
  BadPage = -9,
};

// [public/grant_table.h, GNTMAP_*]
inline constexpr std::uint32_t kGrantDeviceMap = 1U << 0;
inline constexpr std::uint32_t kGrantHostMap = 1U << 1;
inline constexpr std::uint32_t kGrantReadOnly = 1U << 2;

struct MapGrantRef {
  std::uint64_t host_addr = 0;
  std::uint32_t flags = 0;
  std::uint32_t ref = 0;
  std::uint16_t dom = 0;
  std::int16_t status = 0;
  std::uint32_t handle = 0;
  std::uint64_t dev_bus_addr = 0;
};
static_assert(sizeof(MapGrantRef) == 32 && offsetof(MapGrantRef, dom) == 16 && offsetof(MapGrantRef, status) == 18 &&
              offsetof(MapGrantRef, handle) == 20 && offsetof(MapGrantRef, dev_bus_addr) == 24);

struct UnmapGrantRef {
  std::uint64_t host_addr = 0;
  std::uint64_t dev_bus_addr = 0;
  std::uint32_t handle = 0;
  std::int16_t status = 0;
  std::int16_t pad = 0;
};
static_assert(sizeof(UnmapGrantRef) == 24 && offsetof(UnmapGrantRef, handle) == 16 &&
              offsetof(UnmapGrantRef, status) == 20);

}  // namespace iommu::xen::abi
