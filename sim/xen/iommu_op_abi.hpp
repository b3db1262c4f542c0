// SPDX-License-Identifier: Apache-2.0
// The iommu_op hypercall's interface, as a guest sees it. [PV-IOMMU RFC v7 13/14, public header] What is marked as a
// proposal is this project's own, in no version of the RFC: sub-operations from 0x8000 on and capability bits from 16
// on, offered only where a scenario asks for them.
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
  // Proposals. unmap_pages that leaves the flush to a later flush_context:
  UnmapPagesDeferred = 0x8000,
  FlushContext = 0x8001,
  Batch = 0x8002,         // maps and unmaps of one context, with one flush
  MapScattered = 0x8003,  // frames that are no neighbours to addresses that are
  QueryBuses = 0x8004,    // the buses whose devices a guest may move
};
inline constexpr std::size_t kRfcSubops = 13;

// Capability flags.
inline constexpr std::uint32_t kCapDefaultIdentity = 1U << 0;  // context 0 reaches the domain's memory
// Proposals.
inline constexpr std::uint32_t kCapDeferredFlush = 1U << 16;
inline constexpr std::uint32_t kCapBatch = 1U << 17;
inline constexpr std::uint32_t kCapScatter = 1U << 18;
inline constexpr std::uint32_t kCapAllOrNothing = 1U << 19;
inline constexpr std::uint32_t kCapBuses = 1U << 20;
// Flags of alloc_context, free_context and map_pages.
inline constexpr std::uint32_t kAllocIdentity = 1U << 0;
inline constexpr std::uint32_t kFreeReattachDefault = 1U << 0;
inline constexpr std::uint32_t kMapReadable = 1U << 0;
inline constexpr std::uint32_t kMapWriteable = 1U << 1;
inline constexpr std::uint32_t kMapCache = 1U << 2;
// A proposal, of map_pages: a call that fails leaves nothing mapped, and `dfn` is the page that could not be. At most
// kMostUndoablePages pages of 4 KiB. Operations of a batch have statuses of their own, and lists their count.
inline constexpr std::uint32_t kMapAllOrNothing = 1U << 16;
inline constexpr std::uint32_t kMostUndoablePages = 4096;

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

// Proposals -----------------------------------------------------------------------------------------------------------

struct FlushContext {
  std::uint16_t ctx_no = 0;
  std::uint16_t pad[3] = {};
};
static_assert(sizeof(FlushContext) == 8);

// Devices on other buses stay in context 0.
struct Buses {
  std::uint16_t seg = 0;
  std::uint8_t first = 0;
  std::uint8_t last = 0;
};
static_assert(sizeof(Buses) == 4 && offsetof(Buses, last) == 3);

// Of a batch, or of a scattered map: more are -E2BIG.
inline constexpr std::uint32_t kMostBatchOps = 512;
inline constexpr std::uint32_t kMostScatteredFrames = 4096;

// One operation of a batch. A refused one does not stop the batch: each has its own status.
enum class BatchKind : std::uint16_t { Map = 0, Unmap = 1, UnmapDeferred = 2 };
struct BatchOp {
  std::uint16_t kind = 0;
  std::uint16_t pad = 0;
  std::uint32_t map_flags = 0;  // as of map_pages
  std::uint64_t gfn = 0;        // Map
  std::uint64_t dfn = 0;
  std::uint32_t pgsize = 0;
  std::uint32_t nr_pages = 0;
  std::uint32_t done = 0;   // out, in pages of pgsize
  std::int32_t status = 0;  // out
};
static_assert(sizeof(BatchOp) == 40 && offsetof(BatchOp, map_flags) == 4 && offsetof(BatchOp, gfn) == 8 &&
              offsetof(BatchOp, dfn) == 16 && offsetof(BatchOp, pgsize) == 24 && offsetof(BatchOp, nr_pages) == 28 &&
              offsetof(BatchOp, done) == 32 && offsetof(BatchOp, status) == 36);

// The operations take effect in their order; devices may use what was mapped, and may no longer use what was unmapped,
// when the call returns. 0 although operations were refused: their statuses tell.
inline constexpr std::uint16_t kBatchFlushContext = 1U << 0;  // flush_context at the end, in the same call
struct Batch {
  std::uint16_t ctx_no = 0;
  std::uint16_t flags = 0;
  std::uint32_t nr_ops = 0;
  std::uint32_t first = 0;  // Xen advances it: the call begins, and continues, here
  std::uint32_t pad = 0;
  std::uint64_t ops = 0;  // guest-physical address of BatchOp[nr_ops]
};
static_assert(sizeof(Batch) == 24 && offsetof(Batch, nr_ops) == 4 && offsetof(Batch, first) == 8 &&
              offsetof(Batch, ops) == 16);

// Frame i of the list at dfn + i; stops at the first one that cannot be mapped.
struct MapScattered {
  std::uint16_t ctx_no = 0;
  std::uint16_t pad[3] = {};
  std::uint64_t dfn = 0;
  std::uint64_t frames = 0;  // guest-physical address of u64[nr_frames]
  std::uint32_t map_flags = 0;
  std::uint32_t nr_frames = 0;
  std::uint32_t mapped = 0;  // out; Xen adds to it, and continues there
  std::uint32_t tail_pad = 0;
};
static_assert(sizeof(MapScattered) == 40 && offsetof(MapScattered, dfn) == 8 && offsetof(MapScattered, frames) == 16 &&
              offsetof(MapScattered, map_flags) == 24 && offsetof(MapScattered, nr_frames) == 28 &&
              offsetof(MapScattered, mapped) == 32);

}  // namespace iommu::xen::abi
