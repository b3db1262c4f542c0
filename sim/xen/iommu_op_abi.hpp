// SPDX-License-Identifier: Apache-2.0
// The iommu_op hypercall's interface, as a guest sees it. [PV-IOMMU RFC v7 13/14, public header]
//
// Structures are in guest memory, little-endian, with the natural alignment that the RFC leaves implicit; it is spelt
// out here and asserted.
#pragma once

#include <cstddef>
#include <cstdint>

namespace iommu::xen::abi {

enum class Subop : std::uint32_t {
  Noop = 0,
  QueryCapabilities = 1,
  Init = 2,
  AllocContext = 3,
  FreeContext = 4,
  ReattachDevice = 5,
  MapPages = 6,
  UnmapPages = 7,
  RemoteCommand = 8,
  AllocNested = 9,
  FlushNested = 10,
  AttachPasid = 11,
  DetachPasid = 12,
  // Beyond the RFC, offered only where a scenario asks for deferred flushing: unmap_pages that leaves the flush to a
  // later flush_context.
  UnmapPagesDeferred = 0x8000,
  FlushContext = 0x8001,
};
inline constexpr std::size_t kRfcSubops = 13;

// Capability flags.
inline constexpr std::uint32_t kCapDefaultIdentity = 1U << 0;  // context 0 reaches the domain's memory
// Flags of alloc_context, free_context and map_pages.
inline constexpr std::uint32_t kAllocIdentity = 1U << 0;
inline constexpr std::uint32_t kFreeReattachDefault = 1U << 0;
inline constexpr std::uint32_t kMapReadable = 1U << 0;
inline constexpr std::uint32_t kMapWriteable = 1U << 1;
inline constexpr std::uint32_t kMapCache = 1U << 2;

struct Capabilities {
  std::uint64_t max_iova_addr = 0;
  std::uint32_t cap_flags = 0;
  std::uint32_t pgsize_mask = 0;
  std::uint32_t max_pasid = 0;
  std::uint16_t max_ctx_no = 0;
  std::uint16_t pad = 0;
};
static_assert(sizeof(Capabilities) == 24 && offsetof(Capabilities, cap_flags) == 8 &&
              offsetof(Capabilities, pgsize_mask) == 12 && offsetof(Capabilities, max_pasid) == 16 &&
              offsetof(Capabilities, max_ctx_no) == 20);

struct Init {
  std::uint32_t max_ctx_no = 0;
  std::uint32_t arena_order = 0;
};
static_assert(sizeof(Init) == 8 && offsetof(Init, arena_order) == 4);

struct AllocContext {
  std::uint16_t ctx_no = 0;  // out
  std::uint16_t pad = 0;
  std::uint32_t alloc_flags = 0;
};
static_assert(sizeof(AllocContext) == 8 && offsetof(AllocContext, alloc_flags) == 4);

struct FreeContext {
  std::uint16_t ctx_no = 0;
  std::uint16_t pad = 0;
  std::uint32_t free_flags = 0;
};
static_assert(sizeof(FreeContext) == 8 && offsetof(FreeContext, free_flags) == 4);

struct MapPages {
  std::uint16_t ctx_no = 0;
  std::uint16_t pad[3] = {};
  std::uint64_t gfn = 0;
  std::uint64_t dfn = 0;
  std::uint32_t map_flags = 0;
  std::uint32_t pgsize = 0;
  std::uint32_t nr_pages = 0;
  std::uint32_t mapped = 0;  // out; Xen adds to it
};
static_assert(sizeof(MapPages) == 40 && offsetof(MapPages, gfn) == 8 && offsetof(MapPages, dfn) == 16 &&
              offsetof(MapPages, map_flags) == 24 && offsetof(MapPages, pgsize) == 28 &&
              offsetof(MapPages, nr_pages) == 32 && offsetof(MapPages, mapped) == 36);

struct UnmapPages {
  std::uint16_t ctx_no = 0;
  std::uint16_t pad[3] = {};
  std::uint64_t dfn = 0;
  std::uint32_t pgsize = 0;
  std::uint32_t nr_pages = 0;
  std::uint32_t unmapped = 0;  // out; Xen adds to it
  std::uint32_t tail_pad = 0;
};
static_assert(sizeof(UnmapPages) == 32 && offsetof(UnmapPages, dfn) == 8 && offsetof(UnmapPages, pgsize) == 16 &&
              offsetof(UnmapPages, nr_pages) == 20 && offsetof(UnmapPages, unmapped) == 24);

struct PciDevice {
  std::uint16_t seg = 0;
  std::uint8_t bus = 0;
  std::uint8_t devfn = 0;
};
struct ReattachDevice {
  std::uint16_t ctx_no = 0;
  PciDevice dev;
  std::uint16_t pad = 0;
  std::uint32_t pasid = 0;
};
static_assert(sizeof(ReattachDevice) == 12 && offsetof(ReattachDevice, dev) == 2 &&
              offsetof(ReattachDevice, pasid) == 8);

struct RemoteCommand {
  std::uint16_t domid = 0;
  std::uint16_t subop = 0;
  std::uint32_t pad = 0;
  std::uint64_t arg = 0;  // guest-physical address of the sub-operation's structure
};
static_assert(sizeof(RemoteCommand) == 16 && offsetof(RemoteCommand, arg) == 8);

struct FlushContext {
  std::uint16_t ctx_no = 0;
  std::uint16_t pad[3] = {};
};
static_assert(sizeof(FlushContext) == 8);

}  // namespace iommu::xen::abi
