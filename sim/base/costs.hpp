// SPDX-License-Identifier: Apache-2.0
// CPU work, by name. Code charges a CostId; what it costs, who measured it and how far to trust it stands in the
// platform preset, one row per id. A report lists every row that its runs charged, and how often.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "sim/base/units.hpp"

namespace iommu {

// How far a number can be trusted.
enum class Mark : std::uint8_t { Found, Derived, Memory, Guess };
[[nodiscard]] constexpr std::string_view to_string(Mark m) {
  constexpr std::array<std::string_view, 4> kNames{"found", "derived", "memory", "guess"};
  return kNames[static_cast<std::size_t>(m)];
}

// X(id, key in presets, what is charged)
// clang-format off
#define IOMMUSIM_COSTS(X)                                                                                                 \
  X(Hypercall,            "hypercall",              "guest to Xen and back by hypercall, without the work done there")    \
  X(VmExitMmio,           "vm_exit_mmio",           "trapped MMIO access: exit to Xen and return, without the work")      \
  X(MmioDecode,           "mmio_decode",            "decoding the trapped instruction and finding the emulated register") \
  X(VmExitStore,          "vm_exit_store",          "trapped store to a write-protected page: exit to Xen and return, without the work") \
  X(StoreEmulate,         "store_emulate",          "fetching, decoding and carrying out the trapped store")              \
  X(P2mProtect,           "p2m_protect",            "protecting a guest page or letting go of it, with the flush of CPU TLBs") \
  X(DeviceModelExit,      "device_model_exit",      "from Xen to a user-space device model and back")                     \
  X(InterruptInject,      "interrupt_inject",       "delivering a virtual interrupt to a vCPU")                           \
  X(P2mLookup,            "p2m_lookup",             "gfn to mfn, with its lock")                                          \
  X(PageReference,        "page_reference",         "taking or dropping a page reference")                                \
  X(TableRead,            "table_read",             "software reads one I/O page-table entry")                            \
  X(TableWrite,           "table_write",            "software writes one I/O page-table entry")                           \
  X(TableAllocate,        "table_allocate",         "allocating and zeroing one table page")                              \
  X(CacheLineFlush,       "cache_line_flush",       "flushing one line to memory for a non-coherent walker")              \
  X(ContextEntryWrite,    "context_entry_write",    "writing a device-table or process-table entry")                      \
  X(MmioWrite,            "mmio_write",             "uncached register write as the CPU sees it")                         \
  X(MmioRead,             "mmio_read",              "uncached register read, round trip")                                 \
  X(CommandWrite,         "command_write",          "composing one command in the ring")                                  \
  X(FencePoll,            "fence_poll",             "seeing the status write: the line moves to the polling CPU")         \
  X(LockUncontended,      "lock_uncontended",       "taking and releasing a free lock")                                   \
  X(LockHandover,         "lock_handover",          "passing a contended lock to the next waiter")                        \
  X(CommandEmulate,       "command_emulate",        "Xen fetches and decodes one command of a virtual unit")              \
  X(GuestPageAccess,      "guest_page_access",      "Xen maps a guest page to read its tables")                           \
  X(ShadowEntry,          "shadow_entry",           "Xen compares and updates one shadow entry")                          \
  X(VirtioRequest,        "virtio_request",         "a device takes one request from a virtqueue, and answers it")        \
  X(MappingTree,          "mapping_tree",           "finding, adding or removing a node in a tree of mappings")           \
  X(BackendCall,          "backend_call",           "a user-space backend's call that changes an I/O address space")      \
  X(SoftwareTranslate,    "software_translate",     "a device model translates one address of an emulated device")        \
  X(CopyLine,             "copy_line",              "software copies 64 bytes")                                           \
  X(IovaAllocCached,      "iova_alloc_cached",      "IOVA from the per-CPU cache")                                        \
  X(IovaAllocTree,        "iova_alloc_tree",        "IOVA from the tree, under its lock")                                 \
  X(IovaFreeCached,       "iova_free_cached",       "IOVA back to the per-CPU cache")                                     \
  X(IovaFreeTree,         "iova_free_tree",         "IOVA back to the tree, under its lock")                              \
  X(DmaMapOther,          "dma_map_other",          "rest of dma_map: checks, scatterlist walk")                          \
  X(DmaUnmapOther,        "dma_unmap_other",        "rest of dma_unmap: finding the mapping, checks")                     \
  X(FlushQueueAdd,        "flush_queue_add",        "queueing one range for a deferred flush")                            \
  X(BounceSearch,         "bounce_search",          "examining one slot of a bounce pool for a free run")                 \
  X(BounceSlot,           "bounce_slot",            "marking one slot of a bounce pool used or free")                     \
  X(BounceCopyLine,       "bounce_copy_line",       "copying one 64-byte line between a buffer and its bounce buffer")    \
  X(GrantIssue,           "grant_issue",            "a guest writes or ends one entry of its grant table")                \
  X(GrantEntry,           "grant_entry",            "Xen checks and marks one entry of a guest's grant table")            \
  X(GrantTrack,           "grant_track",            "Xen's own records of mapping or unmapping one grant")                \
  X(ApertureAlloc,        "aperture_alloc",         "finding and marking a range in the bitmap of an aperture, under its lock") \
  X(ApertureFree,         "aperture_free",          "clearing a range in the bitmap of an aperture, under its lock")      \
  X(DriverSubmit,         "driver_submit",          "device driver work to post one buffer, without the DMA API")         \
  X(DriverComplete,       "driver_complete",        "device driver work to complete one buffer, without the DMA API")     \
  X(StackWork,            "stack_work",             "everything above the driver, per I/O")                               \
  X(Interrupt,            "interrupt",              "taking one device interrupt")                                        \
  X(GrantCopy,            "grant_copy",             "Xen copies a packet's header between two domains, one operation")    \
  X(TlbShootdown,         "tlb_shootdown",          "other CPUs drop their translations of a p2m entry that is gone")     \
  X(PageCopy,             "page_copy",              "copying 4 KiB from one buffer into another")
// clang-format on

enum class CostId : std::uint8_t {
#define X(id, key, meaning) id,
  IOMMUSIM_COSTS(X)
#undef X
};

struct CostName {
  CostId id;
  std::string_view key;
  std::string_view meaning;
};
inline constexpr std::array kCostNames{
#define X(id, key, meaning) CostName{CostId::id, key, meaning},
    IOMMUSIM_COSTS(X)
#undef X
};
inline constexpr std::size_t kCosts = kCostNames.size();

// Charged by virtual interfaces and by changes of a running domain's memory alone.
inline constexpr std::array kMemorySharingCosts{CostId::GrantCopy, CostId::TlbShootdown, CostId::PageCopy};

struct CostRow {
  Picoseconds time;
  // As written in the preset, for reports: "1300 cycles".
  double value = 0;
  std::string unit;
  std::string source;
  Mark mark = Mark::Guess;
};

// All rows of a platform; indexing by id never fails because a preset must give every row.
class CostTable {
 public:
  [[nodiscard]] const CostRow& operator[](CostId id) const { return rows_[static_cast<std::size_t>(id)]; }
  CostRow& operator[](CostId id) { return rows_[static_cast<std::size_t>(id)]; }

 private:
  std::array<CostRow, kCosts> rows_;
};

// How often each row was charged; one per vCPU or summed.
class CostCounts {
 public:
  void add(CostId id, std::uint64_t times) { counts_[static_cast<std::size_t>(id)] += times; }
  [[nodiscard]] std::uint64_t operator[](CostId id) const { return counts_[static_cast<std::size_t>(id)]; }

 private:
  std::array<std::uint64_t, kCosts> counts_{};
};

}  // namespace iommu
