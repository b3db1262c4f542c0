// SPDX-License-Identifier: Apache-2.0
// The structure of the hypercall's first three versions, in guest memory. [PV-IOMMU RFC v3, public header]
#pragma once

#include <cstddef>
#include <cstdint>

namespace iommu::xen::abi_v3 {

enum class Subop : std::uint16_t {
  Noop = 0,
  QueryCapabilities = 1,
  AllocContext = 2,
  FreeContext = 3,
  ReattachDevice = 4,
  MapPages = 5,
  UnmapPages = 6,
  LookupPage = 7,
};
inline constexpr std::size_t kSubops = 8;

inline constexpr std::uint32_t kCreateClone = 1U << 0;  // accepted and ignored, as the RFC masks it off
inline constexpr std::uint32_t kTeardownReattachDefault = 1U << 0;
inline constexpr std::uint32_t kReadable = 1U << 0;
inline constexpr std::uint32_t kWriteable = 1U << 1;

inline constexpr std::uint32_t kMostPages = 256;  // of one map or unmap
inline constexpr std::uint64_t kLastAddress = (1ULL << 39) - 1;

struct Query {
  std::uint16_t max_ctx_no = 0;
  std::uint16_t pad = 0;
  std::uint32_t max_nr_pages = 0;
  std::uint64_t max_iova_addr = 0;
};
struct Device {
  std::uint16_t seg = 0;
  std::uint8_t bus = 0;
  std::uint8_t devfn = 0;
};
struct MapPages {
  std::uint64_t gfn = 0;
  std::uint64_t dfn = 0;
  std::uint32_t nr_pages = 0;
  std::uint32_t mapped = 0;  // out
};
struct UnmapPages {
  std::uint64_t dfn = 0;
  std::uint32_t nr_pages = 0;
  std::uint32_t unmapped = 0;  // out
};
struct LookupPage {
  std::uint64_t gfn = 0;  // out
  std::uint64_t dfn = 0;
};
struct Operation {
  std::uint16_t subop_id = 0;
  std::uint16_t ctx_no = 0;
  std::uint32_t flags = 0;
  union {
    MapPages map_pages{};
    UnmapPages unmap_pages;
    LookupPage lookup_page;
    Device device;
    Query query;
  };
};
static_assert(sizeof(Operation) == 32 && offsetof(Operation, flags) == 4 && offsetof(Operation, map_pages) == 8 &&
              offsetof(MapPages, nr_pages) == 16 && offsetof(UnmapPages, nr_pages) == 8 &&
              offsetof(Query, max_iova_addr) == 8);

}  // namespace iommu::xen::abi_v3
