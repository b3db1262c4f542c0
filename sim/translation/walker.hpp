// SPDX-License-Identifier: Apache-2.0
// The one page-table walker. It knows levels, permissions and accessed/dirty marks; what an entry means is the
// PageFormat's business, and where memory is (and how long it takes) the port's.
//
// A two-stage walk is composition: stage 1 runs over a NestedTables port whose locate() is a stage-2 walk.
#pragma once

#include <optional>
#include <variant>

#include "sim/base/task.hpp"
#include "sim/translation/memory_port.hpp"
#include "sim/translation/page_format.hpp"
#include "sim/translation/walk_cache.hpp"

namespace iommu {

enum class StopKind : std::uint8_t {
  Absent,
  Malformed,
  Denied,
  OutOfRange,    // the input is wider than the tables translate (stage 2 of a nested walk)
  MemoryFailed,  // the entry could not be read
  MarkFailed,    // the entry could not be marked as used
  Stage2,
};

// A mark is retried when software changed the entry at the same moment. Whoever changes it every time is hostile.
inline constexpr unsigned kMaxMarkAttempts = 16;

// Why and where stage 2 refused an address that stage 1 needed.
struct Stage2Stop {
  StopKind kind = StopKind::Absent;
  Level level = 0;
  Gpa address;
  std::uint64_t entry = 0;  // the stage-2 entry that refused
  Hpa entry_address{};      // where it is
};

struct WalkStop {
  StopKind kind = StopKind::Absent;
  Level level = 0;
  std::uint64_t entry = 0;
  std::optional<Stage2Stop> stage2;  // kind == Stage2: refused while fetching (or marking) the entry of this level
  // When the stage-2 refusal was of the write that marks the entry rather than of the read that fetches it.
  bool while_marking = false;
  Hpa entry_address{};  // of the entry that refused, unless stage 2 kept the walk from it
};

struct WalkLeaf {
  std::uint64_t address = 0;  // output for the input address
  std::uint8_t page_lg2 = kPageLg2;
  Permissions allowed;
  MemoryAttributes attributes;
};
using WalkResult = std::variant<WalkLeaf, WalkStop>;

// Where an entry is in host memory, or why it cannot be reached.
struct Located {
  Hpa host;
  std::optional<Stage2Stop> refused;
  std::uint8_t page_lg2 = kPageLg2;  // of the stage-2 page it is in
};

// Tables that live in host memory.
struct HostTables {
  static constexpr bool kNested = false;
  MemoryPort& memory;
  AccessKind kind;
};

// Observes a walk: `explain` prints each step, tests count them. Null in every timed run.
class WalkObserver {
 public:
  virtual ~WalkObserver() = default;
  // A walk of one stage begins. A stage-2 walk for an entry of stage 1 lies between that stage's beginning and entry.
  virtual void on_walk(Stage /*stage*/, std::uint64_t /*input*/, TableRoot /*root*/) {}
  virtual void on_entry(Stage stage, Level level, std::uint64_t table, Hpa entry_address, std::uint64_t entry,
                        const DecodedEntry& decoded) = 0;
};

// Everything a walk may use besides its tables. Null members are absent features, not errors.
struct WalkAids {
  WalkCachePort* caches = nullptr;
  WalkObserver* observer = nullptr;
};

// log2 of the bytes of a table of this level that is not the root.
template <PageFormat F>
constexpr unsigned table_lg2(const F& format, Level level) {
  constexpr unsigned kEntryLg2 = 3;
  return format.span_lg2(static_cast<Level>(level + 1)) - format.span_lg2(level) + kEntryLg2;
}

// What the entries of a walk, taken together, permit.
template <PageFormat F>
constexpr Permissions granted(const F& format, Permissions intersection) {
  if constexpr (requires { format.granted(intersection); })
    return format.granted(intersection);
  else
    return intersection;
}

// Walks `input` from `root`. The permissions of all entries are intersected; the walk stops at the first entry that
// refuses.
template <PageFormat F, class Tables>
Task<WalkResult> walk_tables(F format, TableRoot root, std::uint64_t input, Access access, Tables tables, Stage stage,
                             WalkTag tag, WalkAids aids) {
  Level level = root.top_level;
  unsigned mark_attempts = 0;
  std::uint64_t table = root.address;
  Permissions allowed = kReadWrite;
  std::optional<Hpa> table_host;  // of `table`, when a cached walk knew it
  bool is_new_table = false;      // `table` was learnt in this walk and is not cached yet
  if (aids.observer != nullptr) aids.observer->on_walk(stage, input, root);
  if (aids.caches != nullptr) {
    if (const auto hit = aids.caches->deepest(stage, tag, input); hit && hit->level < level) {
      level = hit->level;
      table = hit->table;
      allowed = hit->allowed;
      table_host = hit->host;
    }
  }
  for (;;) {
    const std::uint64_t offset = format.entry_offset(level, input);
    Hpa entry_address(table + offset);
    if constexpr (Tables::kNested) {
      if (table_host) {
        entry_address = *table_host + Bytes(offset);
      } else {
        const Located located = co_await tables.locate(Gpa(table + offset));
        if (located.refused) {
          WalkStop stop{StopKind::Stage2, level, 0, located.refused, false};
          co_return stop;
        }
        entry_address = located.host;
        // Under nesting the cache holds the table's host address, which spares a later walk this stage-2 walk.
        // Only where one stage-2 page holds the whole table: a granule may be larger than the pages of stage 2.
        if (is_new_table && aids.caches != nullptr && table_lg2(format, level) <= located.page_lg2)
          aids.caches->fill(stage, tag, input,
                            {.table = table, .level = level, .allowed = allowed, .host = located.host - Bytes(offset)});
        is_new_table = false;
      }
    }
    const MemoryResult read = co_await tables.memory.read64(entry_address, tables.kind);
    if (read.failed) {
      WalkStop stop{StopKind::MemoryFailed, level, 0, std::nullopt, false, entry_address};
      co_return stop;
    }
    DecodedEntry decoded = format.decode(read.value, level, input, access);
    // Tables may withhold a right that their entry alone does not use; the leaf is where that counts.
    if (decoded.kind == EntryKind::Leaf && !granted(format, allowed & decoded.allowed).allow(access))
      decoded.kind = EntryKind::Denied;
    if (aids.observer != nullptr) aids.observer->on_entry(stage, level, table, entry_address, read.value, decoded);
    if (decoded.kind != EntryKind::Table && decoded.kind != EntryKind::Leaf) {
      const StopKind kind = decoded.kind == EntryKind::Absent      ? StopKind::Absent
                            : decoded.kind == EntryKind::Malformed ? StopKind::Malformed
                                                                   : StopKind::Denied;
      WalkStop stop{kind, level, read.value, std::nullopt, false, entry_address};
      co_return stop;
    }
    if (const auto marked = format.mark_used(read.value, level, access)) {
      if constexpr (Tables::kNested) {
        const Located writable = co_await tables.locate_for_marking(Gpa(table + offset));
        if (writable.refused) {
          WalkStop stop{StopKind::Stage2, level, read.value, writable.refused, true};
          co_return stop;
        }
      }
      const MemoryResult swapped =
          co_await tables.memory.compare_exchange64(entry_address, read.value, *marked, tables.kind);
      const bool lost = !swapped.failed && swapped.value != read.value;
      if (swapped.failed || (lost && ++mark_attempts == kMaxMarkAttempts)) {
        WalkStop stop{StopKind::MarkFailed, level, read.value, std::nullopt, false, entry_address};
        co_return stop;
      }
      // Somebody changed the entry between read and mark: what was decoded is void, so this level starts again.
      if (lost) continue;
    }
    allowed = allowed & decoded.allowed;
    if (decoded.kind == EntryKind::Leaf) {
      const std::uint64_t in_page = input & ((1ULL << decoded.page_lg2) - 1);
      WalkLeaf leaf{decoded.address | in_page, decoded.page_lg2, granted(format, allowed), decoded.attributes};
      co_return leaf;
    }
    level = decoded.next_level;
    table = decoded.address;
    table_host.reset();
    is_new_table = true;
    if (!Tables::kNested && aids.caches != nullptr)
      aids.caches->fill(stage, tag, input, {.table = table, .level = level, .allowed = allowed, .host = {}});
  }
}

// Stage-1 tables behind a stage-2 table: locate() is a stage-2 walk. The same object translates stage 1's final output.
template <PageFormat Stage2Format>
struct NestedTables {
  static constexpr bool kNested = true;
  MemoryPort& memory;
  AccessKind kind;
  Stage2Format stage2_format;
  TableRoot stage2_root;
  WalkTag stage2_tag;
  WalkAids aids;
  unsigned input_bits = 64;  // width of the guest-physical addresses that stage 2 translates

  // Stage 2 of a guest-physical address, through the cache of whole stage-2 translations when there is one.
  Task<WalkResult> translate(Gpa address, Access access) const {
    if (input_bits < 64 && address.value() >> input_bits != 0) {
      WalkStop stop{StopKind::OutOfRange, stage2_root.top_level, 0, std::nullopt, false};
      co_return stop;
    }
    if (aids.caches != nullptr) {
      if (const auto hit = aids.caches->find_stage2_leaf(stage2_tag, address); hit && hit->allowed.allow(access)) {
        const std::uint64_t in_page = address.offset_in(hit->page_lg2);
        WalkLeaf leaf{hit->address | in_page, hit->page_lg2, hit->allowed, hit->attributes};
        co_return leaf;
      }
    }
    const WalkResult result =
        co_await walk_tables(stage2_format, stage2_root, address.value(), access,
                             HostTables{memory, AccessKind::Stage2Entry}, Stage::Stage2, stage2_tag, aids);
    if (aids.caches != nullptr) {
      if (const auto* leaf = std::get_if<WalkLeaf>(&result)) {
        const std::uint64_t page = leaf->address >> leaf->page_lg2 << leaf->page_lg2;
        aids.caches->fill_stage2_leaf(stage2_tag, address, {page, leaf->page_lg2, leaf->allowed, leaf->attributes});
      }
    }
    co_return result;
  }
  Task<Located> locate(Gpa address) const {
    const WalkResult result = co_await translate(address, Access::Read);
    co_return located(result, address);
  }
  Task<Located> locate_for_marking(Gpa address) const {
    const WalkResult result = co_await translate(address, Access::Write);
    co_return located(result, address);
  }

 private:
  static Located located(const WalkResult& result, Gpa address) {
    if (const auto* leaf = std::get_if<WalkLeaf>(&result)) return {Hpa(leaf->address), std::nullopt, leaf->page_lg2};
    const auto& stop = std::get<WalkStop>(result);
    return {Hpa(), Stage2Stop{stop.kind, stop.level, address, stop.entry, stop.entry_address}, 0};
  }
};

}  // namespace iommu
