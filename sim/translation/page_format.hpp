// SPDX-License-Identifier: Apache-2.0
// What a family must say about one kind of page table, so that one walker and one editor serve all of them.
//
// Levels count from the leaf: level 0 is the table whose entries map the smallest page. A format is a small value that
// carries what configuration decides (widths, features); its functions are pure.
#pragma once

#include <concepts>
#include <cstdint>
#include <optional>

#include "sim/translation/request.hpp"

namespace iommu {

using Level = std::uint8_t;

enum class EntryKind : std::uint8_t {
  Absent,     // no translation here
  Table,      // points to the next table
  Leaf,       // maps a page
  Malformed,  // reserved bits or an unsupported encoding
  Denied,     // present, but this access is not permitted by this entry alone
};

// A format may also have granted(Permissions): what the intersection of all entries of a walk comes to, where that is
// more than each of them can say.
//
// An entry, decoded for one access. Which of Absent, Malformed and Denied wins is the format's decision: it knows the
// order in which its specification checks.
struct DecodedEntry {
  EntryKind kind = EntryKind::Absent;
  std::uint64_t address = 0;         // of the next table, or of the page
  Level next_level = 0;              // Table: normally level - 1, lower when levels are skipped
  std::uint8_t page_lg2 = kPageLg2;  // Leaf: log2 of the bytes it maps
  Permissions allowed = kReadWrite;  // by this entry alone; the walker takes the intersection
  MemoryAttributes attributes;
};

template <class F>
concept PageFormat = requires(const F format, Level level, std::uint64_t input, std::uint64_t entry, Access access,
                              Permissions permissions) {
  // Byte offset of the entry for `input` within its table.
  { format.entry_offset(level, input) } -> std::same_as<std::uint64_t>;
  // log2 of the bytes that one entry of this level spans.
  { format.span_lg2(level) } -> std::same_as<unsigned>;
  { format.decode(entry, level, input, access) } -> std::same_as<DecodedEntry>;
  // The entry with accessed/dirty marks as this use requires them; nullopt when nothing changes or the format has none.
  { format.mark_used(entry, level, access) } -> std::same_as<std::optional<std::uint64_t>>;
  // For editors: a leaf of this level may exist; entries to write.
  { format.can_be_leaf(level) } -> std::same_as<bool>;
  { format.make_table(input, level) } -> std::same_as<std::uint64_t>;
  { format.make_leaf(input, level, permissions) } -> std::same_as<std::uint64_t>;
  // A not-present entry, and whether an entry is one, regardless of access.
  { format.is_present(entry) } -> std::same_as<bool>;
};

struct TableRoot {
  std::uint64_t address = 0;  // in the space the table lives in: host-physical, or guest-physical under nesting
  Level top_level = 0;
  // Where a family's tables come in several shapes, which of them; 0: what its driver makes of its options.
  std::uint8_t input_bits = 0;
  std::uint8_t granule_lg2 = 0;
  friend constexpr bool operator==(TableRoot, TableRoot) = default;
};

}  // namespace iommu
