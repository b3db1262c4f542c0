// SPDX-License-Identifier: Apache-2.0
// How software programs one family of IOMMU: page tables, device tables, commands, registers. Xen uses a driver on the
// physical unit; a guest uses the same driver on its virtual unit. What is written is what the core reads: real entries
// in real memory.
//
// Editing is instantaneous and returns what was done, in countable steps; the caller charges CPU time for them.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "sim/base/units.hpp"
#include "sim/translation/invalidation.hpp"
#include "sim/translation/iommu_core.hpp"
#include "sim/translation/page_format.hpp"
#include "sim/translation/ring.hpp"

namespace iommu {

// The memory that tables live in, as the software that edits them sees it: host memory for Xen, guest memory for a
// guest (addresses are then guest-physical).
class TableMemory {
 public:
  virtual ~TableMemory() = default;
  virtual std::uint64_t read64(std::uint64_t address) = 0;
  virtual void write64(std::uint64_t address, std::uint64_t value) = 0;
  // 16 bytes in one atomic write, as CPUs that program device tables have it.
  virtual void write128(std::uint64_t address, std::uint64_t low, std::uint64_t high) {
    write64(address + sizeof high, high);
    write64(address, low);
  }
  // A zeroed, naturally aligned block of 2^pages_lg2 4 KiB pages; nullopt when the pool is exhausted.
  virtual std::optional<std::uint64_t> allocate(unsigned pages_lg2 = 0) = 0;
  virtual void release(std::uint64_t address, unsigned pages_lg2 = 0) = 0;
};

enum class EditStatus : std::uint8_t { Ok, NoMemory, AlreadyMapped, NotMapped, OutOfRange };

// What an edit did. Counts are steps that cost CPU time; flags decide which invalidation is due.
struct TableEdit {
  EditStatus status = EditStatus::Ok;
  std::uint64_t pages_done = 0;  // 4 KiB pages mapped or unmapped before `status` stopped the edit
  std::uint32_t entries_written = 0;
  std::uint32_t lines_touched = 0;  // distinct 64-byte lines written (a non-coherent walker needs each flushed)
  std::uint32_t tables_allocated = 0;
  bool added = false;              // a not-present entry became present
  bool modified = false;           // a present entry changed or went away
  bool structure_changed = false;  // a table was replaced, split, merged or emptied: walk caches hold stale pointers
  // Tables no longer reachable, 4 KiB each. They may be reused only after the invalidation that covers this edit has
  // completed.
  std::vector<std::uint64_t> freed_tables;

  // Adds what a further edit did; the first status that is not Ok stays.
  void merge(TableEdit other);
};

enum class TableKind : std::uint8_t { Stage1, Stage2 };

// When an emptied table goes away: Linux frees a table only if one call unmaps all it covers, Xen as soon as it is
// empty.
enum class ReclaimTables : std::uint8_t { WhenCovered, WhenEmpty };

// May adjacent equal entries be merged into a larger page?
enum class Coalesce : std::uint8_t { No, Yes };

struct MapRequest {
  std::uint64_t input = 0;
  std::uint64_t output = 0;
  Bytes length = kPageSize;
  Permissions permissions = kReadWrite;
  // Largest page the editor may install at once, log2 of bytes.
  unsigned max_page_lg2 = kPageLg2;
  Coalesce coalesce = Coalesce::No;
};

struct MappedLeaf {
  std::uint64_t input = 0;   // page-aligned
  std::uint64_t output = 0;  // page-aligned
  std::uint8_t page_lg2 = kPageLg2;
  Permissions permissions;
  friend constexpr bool operator==(const MappedLeaf&, const MappedLeaf&) = default;
};

// How far a bounded scan came.
struct LeafScan {
  std::uint64_t entries_read = 0;
  std::optional<std::uint64_t> resume_at;  // absent: the range is finished
};

// One table of a tree, as it stands in it: entry i, of 8 bytes, decides about the inputs from
// input.first + (i << span_lg2) to the next entry's. The same memory may stand in several places.
struct TableSpan {
  static constexpr std::uint64_t kEntryBytes = 8;
  std::uint64_t address = 0;
  Bytes length;
  Level level = 0;
  std::uint8_t span_lg2 = kPageLg2;
  AddressRange input;
  // What the entries that [first, last] touches decide about; the range overlaps the table.
  [[nodiscard]] AddressRange inputs_of(AddressRange stored) const {
    const std::uint64_t end = address + length.value() - 1;
    const std::uint64_t first = (std::max(stored.first, address) - address) / kEntryBytes;
    const std::uint64_t last = (std::min(stored.last, end) - address) / kEntryBytes;
    return {input.first + (first << span_lg2), input.first + (last << span_lg2) + ((1ULL << span_lg2) - 1)};
  }
  friend constexpr bool operator==(const TableSpan&, const TableSpan&) = default;
};

// One page table, editable. Created by a TableDriver; owns no memory until told to (release_all).
class PageTable {
 public:
  virtual ~PageTable() = default;
  [[nodiscard]] virtual TableRoot root() const = 0;
  // Stops at the first page that is already mapped or cannot be stored; pages before it stay.
  virtual TableEdit map(const MapRequest& request) = 0;
  // Stops at the first page that is not mapped. Splits a larger page that the range covers in part.
  virtual TableEdit unmap(std::uint64_t input, Bytes length, ReclaimTables reclaim) = 0;
  [[nodiscard]] virtual std::optional<MappedLeaf> lookup(std::uint64_t input) const = 0;
  // Leaves overlapping the range, in ascending order; returns the number of entries read to find them.
  virtual std::uint64_t for_each_leaf(AddressRange range,
                                      const std::function<void(const MappedLeaf&)>& visit) const = 0;
  // The same, but stops before it reads more than `max_entries` entries: for tables whose author is not trusted, where
  // a table that contains itself makes 2^36 leaves out of one page. `max_entries` is at least 8.
  virtual LeafScan scan_leaves(AddressRange range, std::uint64_t max_entries,
                               const std::function<void(const MappedLeaf&)>& visit) const = 0;
  // The tables that stand in a part of the range, the root first, every table before those below it. Bounded like
  // scan_leaves(), but it is over when it meets its bound: `resume_at` then says no more than that. Kinds of table that
  // nobody shadows need not tell.
  virtual LeafScan scan_tables(AddressRange /*range*/, std::uint64_t /*max_entries*/,
                               const std::function<void(const TableSpan&)>& /*visit*/) const {
    return {};
  }
  // Pages of table memory in use, the root included.
  [[nodiscard]] virtual std::uint64_t table_pages() const = 0;
  // All tables, for release after their last fence. The table is unusable afterwards.
  virtual std::vector<std::uint64_t> detach_all_tables() = 0;
};

// What a device is attached to.
struct ContextSetting {
  ContextKind kind = ContextKind::Stage2;
  DomainTag domain{};
  TableRoot stage1{};  // Nested: guest-physical
  TableRoot stage2{};
  // The requester may keep translations (ATS), where the unit supports it.
  bool allow_device_tlb = true;
  // Nested, where a guest owns the process tables as well: its words of the device table entry, from its Context. Only
  // what a guest may decide is taken from them. Zero: the driver leads to `stage1` itself, and its process table, in
  // the memory of the device tables, is one that stage 2 maps to itself.
  std::array<std::uint64_t, 2> stage1_entry{};
};

struct RegisterWrite {
  std::uint64_t offset = 0;
  unsigned bytes = 8;
  std::uint64_t value = 0;
};

// A register that software reads until it has a value in some of its bits; no bits: read once.
struct RegisterPoll {
  std::uint64_t offset = 0;
  unsigned bytes = 8;
  std::uint64_t mask = 0;
  std::uint64_t value = 0;
};
// One access of an invalidation by registers.
struct RegisterStep {
  std::optional<RegisterWrite> write;
  std::optional<RegisterPoll> poll;
};

// Words of one command as it goes into the ring.
struct CommandWords {
  std::array<std::uint64_t, 4> words{};
};

// The command ring as software sees it: where it is, how large, and how its doorbell is written.
struct CommandRing {
  std::uint64_t base = 0;
  std::uint32_t entries = 0;
  unsigned entry_bytes = 16;
  FullRule full = FullRule::OneFree;
  std::uint64_t tail_register = 0;
  std::uint64_t head_register = 0;
  unsigned fence_bytes = 4;  // of a fence's status write, which is aligned to its size; the data is in the low half
  // Index registers that Xen's driver of the family reads before each tail write: head and tail, or none where it keeps
  // copies of them. [xen/drivers/passthrough/vtd/qinval.c, qinval_next_index and qinval_update_qtail;
  // xen/drivers/passthrough/arm/smmu-v3.c, queue_insert_raw]
  unsigned index_reads = 2;
};

class QueueDriver;

class TableDriver {
 public:
  virtual ~TableDriver() = default;

  // Page tables
  // -------------------------------------------------------------------------------------------------------- A page
  // table of the kind, with its root table allocated; nullptr when memory is exhausted.
  virtual std::unique_ptr<PageTable> create_table(TableKind kind, TableMemory& memory) = 0;
  // An editor over tables that somebody else wrote (a guest's), for reading them back; nothing is allocated.
  virtual std::unique_ptr<PageTable> view_table(TableKind kind, TableRoot root, TableMemory& memory) = 0;
  // Page sizes that leaves may have, as a mask of log2 sizes (bit 12: 4 KiB).
  [[nodiscard]] virtual std::uint64_t page_sizes(TableKind kind) const = 0;
  [[nodiscard]] virtual std::uint64_t max_input(TableKind kind) const = 0;

  // Device tables
  // ------------------------------------------------------------------------------------------------------ Allocates
  // the device table and the command ring and returns the register writes that bring the unit up, in order. Call once.
  // Each write may need `status_after` to be polled; the caller charges for it.
  virtual std::optional<std::vector<RegisterWrite>> bring_up(TableMemory& memory) = 0;
  // Points a requester at a setting (replacing any other) or blocks it. The edit says what to invalidate through
  // context_scopes().
  virtual TableEdit attach(RequesterId requester, const ContextSetting& setting, TableMemory& memory) = 0;
  virtual TableEdit detach(RequesterId requester, TableMemory& memory) = 0;
  // The first words of the entry that attach() wrote, for whoever names tables by them (TableBinding::is_entry).
  [[nodiscard]] virtual std::array<std::uint64_t, 2> entry_words(RequesterId, TableMemory&) const { return {}; }
  // What must be invalidated after a requester's entry changed from `old` (nullopt: it was not present).
  [[nodiscard]] virtual std::vector<InvalidationScope> context_scopes(RequesterId requester,
                                                                      std::optional<ContextSetting> old) const = 0;
  // Domain tags that software may use.
  [[nodiscard]] virtual std::uint32_t domain_tags() const = 0;

  // Commands
  // ----------------------------------------------------------------------------------------------------------- The
  // scope that invalidates [input, input + pages) of a context with one command: the exact range when the family can
  // express it in one command, else a wider one (up to the whole domain).
  [[nodiscard]] virtual InvalidationScope widen(const InvalidationScope& exact) const = 0;
  // False: the unit is told by registers; invalidation_steps() takes the place of all below.
  [[nodiscard]] virtual bool has_command_ring() const { return true; }
  // In this order, and complete after the last.
  [[nodiscard]] virtual std::vector<RegisterStep> invalidation_steps(const InvalidationScope&) const { return {}; }
  [[nodiscard]] virtual CommandWords encode(const InvalidationScope& scope) const = 0;
  [[nodiscard]] virtual CommandWords encode_fence(std::uint64_t status_address, std::uint32_t status_data) const = 0;
  // The command by which software resumes or ends stalled transactions; nullopt where the family has none.
  [[nodiscard]] virtual std::optional<CommandWords> encode(const StallResolution&) const { return std::nullopt; }
  [[nodiscard]] virtual CommandRing ring() const = 0;
  // What goes into the tail register for the entry index that follows the last command.
  [[nodiscard]] virtual std::uint64_t tail_value(std::uint32_t index) const = 0;
  // Rings beside the first one; null: the unit has none, or was not asked for them.
  [[nodiscard]] virtual const QueueDriver* queues() const { return nullptr; }
};

}  // namespace iommu
