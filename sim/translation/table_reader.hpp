// SPDX-License-Identifier: Apache-2.0
// Reading a page table as software does: at once, for any access, and from one page to the next without starting at the
// root. For walks as hardware does them see walker.hpp.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <optional>

#include "sim/base/check.hpp"
#include "sim/translation/table_driver.hpp"

namespace iommu {

struct TableGeometry {
  Level top_level = 3;
  unsigned input_bits = 48;
  unsigned root_pages_lg2 = 0;   // concatenated root tables
  unsigned table_pages_lg2 = 0;  // of every other table, in 4 KiB pages
};

struct TableStep {
  std::uint64_t table = 0;
  Level level = 0;
};

// The tables from the root to the entry found last.
struct TablePath {
  static constexpr std::size_t kMaxDepth = 8;
  std::array<TableStep, kMaxDepth> steps{};
  std::array<Permissions, kMaxDepth> allowed{};  // by the entries above each step
  std::size_t size = 0;
  std::uint64_t input = 0;
  std::uint64_t entry = 0;  // as read from the last step

  [[nodiscard]] std::size_t depth() const { return size; }
  [[nodiscard]] const TableStep& back() const { return steps[size - 1]; }
  [[nodiscard]] const TableStep& parent() const { return steps[size - 2]; }
  void pop() { --size; }
  void push(TableStep step, Permissions from_above) {
    SIM_CHECK(size < kMaxDepth, "levels descend, so a path is short");
    steps[size] = step;
    allowed[size] = from_above;
    ++size;
  }
};

template <PageFormat F>
class TableReader {
 public:
  TableReader(F format, TableRoot root, TableGeometry geometry, TableMemory& memory)
      : format_(format), root_(root), geometry_(geometry), memory_(memory) {
    SIM_CHECK(root.top_level == geometry.top_level, "the geometry is that of this root");
  }

  [[nodiscard]] TableRoot root() const { return root_; }
  [[nodiscard]] bool contains(std::uint64_t input) const {
    return geometry_.input_bits >= 64 || input >> geometry_.input_bits == 0;
  }

  // An entry whatever the access: Denied only when neither reads nor writes are permitted. A pointer that does not
  // descend is malformed here, whatever the format says: a foreign table must not make a reader loop.
  [[nodiscard]] DecodedEntry decode(std::uint64_t entry, Level level, std::uint64_t input) const {
    DecodedEntry decoded = format_.decode(entry, level, input, Access::Read);
    if (decoded.kind == EntryKind::Denied) decoded = format_.decode(entry, level, input, Access::Write);
    if (decoded.kind == EntryKind::Table && decoded.next_level >= level) decoded.kind = EntryKind::Malformed;
    return decoded;
  }

  [[nodiscard]] TablePath start() const {
    TablePath path;
    path.push({root_.address, root_.top_level}, kReadWrite);
    return path;
  }

  // Moves a path to the entry for `input`: at level `stop` (or the next lower one that exists), or above it where the
  // walk ends. Tables shared with the path's previous input are not read again.
  DecodedEntry find(TablePath& path, std::uint64_t input, Level stop, std::uint64_t* entries_read = nullptr) const {
    while (path.size > 1 && (!same_table(path, input) || path.parent().level <= stop)) path.pop();
    path.input = input;
    for (;;) {
      const TableStep at = path.back();
      path.entry = memory_.read64(at.table + format_.entry_offset(at.level, input));
      if (entries_read != nullptr) ++*entries_read;
      const DecodedEntry decoded = decode(path.entry, at.level, input);
      if (decoded.kind != EntryKind::Table || at.level <= stop) return decoded;
      path.push({decoded.address, decoded.next_level}, path.allowed[path.size - 1] & decoded.allowed);
    }
  }

  [[nodiscard]] std::optional<MappedLeaf> lookup(std::uint64_t input) const {
    if (!contains(input)) return std::nullopt;
    TablePath path = start();
    const DecodedEntry found = find(path, input, 0);
    return leaf_of(path, found);
  }

  LeafScan scan(AddressRange range, std::uint64_t max_entries,
                const std::function<void(const MappedLeaf&)>& visit) const {
    SIM_CHECK(max_entries >= TablePath::kMaxDepth, "a scan that may not read one path never ends");
    LeafScan result;
    TablePath path = start();
    const std::uint64_t end = geometry_.input_bits >= 64 ? ~0ULL : (1ULL << geometry_.input_bits) - 1;
    const std::uint64_t last = std::min(range.last, end);
    for (std::uint64_t at = range.first; at <= last;) {
      // One find reads at most one entry per level.
      if (max_entries - result.entries_read < TablePath::kMaxDepth) {
        result.resume_at = at;
        return result;
      }
      const DecodedEntry found = find(path, at, 0, &result.entries_read);
      unsigned lg2 = format_.span_lg2(path.back().level);
      if (found.kind == EntryKind::Leaf && found.page_lg2 > lg2) lg2 = found.page_lg2;
      if (const auto leaf = leaf_of(path, found)) visit(*leaf);
      const std::uint64_t next = lg2 >= 64 ? 0 : ((at >> lg2) + 1) << lg2;
      if (next == 0) break;  // past the top of the space
      at = next;
    }
    return result;
  }

  LeafScan scan_tables(AddressRange range, std::uint64_t max_entries,
                       const std::function<void(const TableSpan&)>& visit) const {
    LeafScan result;
    const TableSpan top = span_of({root_.address, root_.top_level}, 0);
    visit(top);
    scan_below(top, range, max_entries, visit, result);
    return result;
  }

 private:
  [[nodiscard]] TableSpan span_of(TableStep at, std::uint64_t input) const {
    const unsigned lg2 =
        at.level == geometry_.top_level ? geometry_.input_bits : format_.span_lg2(static_cast<Level>(at.level + 1));
    const unsigned span_lg2 = format_.span_lg2(at.level);
    const std::uint64_t inside = lg2 >= 64 ? ~0ULL : (1ULL << lg2) - 1;
    return {.address = at.table,
            .length = Bytes(TableSpan::kEntryBytes << (lg2 - span_lg2)),
            .level = at.level,
            .span_lg2 = static_cast<std::uint8_t>(span_lg2),
            .input = {input, input | inside}};
  }
  // The tables below one; levels descend, so this ends.
  void scan_below(const TableSpan& table, AddressRange range, std::uint64_t max_entries,
                  const std::function<void(const TableSpan&)>& visit, LeafScan& result) const {
    if (table.level == 0 || !table.input.overlaps(range)) return;
    const std::uint64_t last = std::min(range.last, table.input.last) >> table.span_lg2;
    for (std::uint64_t i = std::max(range.first, table.input.first) >> table.span_lg2; i <= last; ++i) {
      const std::uint64_t input = i << table.span_lg2;
      if (result.entries_read >= max_entries) result.resume_at = input;
      if (result.resume_at) return;
      ++result.entries_read;
      const std::uint64_t entry = memory_.read64(table.address + format_.entry_offset(table.level, input));
      const DecodedEntry decoded = decode(entry, table.level, input);
      if (decoded.kind != EntryKind::Table) continue;
      const TableSpan below = span_of({decoded.address, decoded.next_level}, input);
      visit(below);
      scan_below(below, range, max_entries, visit, result);
    }
  }

  // Whether `input` has its entry in the table at the path's end. Where levels are skipped that is less than its
  // parent's entry spans.
  [[nodiscard]] bool same_table(const TablePath& path, std::uint64_t input) const {
    const unsigned table_lg2 = format_.span_lg2(static_cast<Level>(path.back().level + 1));
    return (path.input ^ input) >> table_lg2 == 0;
  }
  [[nodiscard]] std::optional<MappedLeaf> leaf_of(const TablePath& path, const DecodedEntry& found) const {
    if (found.kind != EntryKind::Leaf) return std::nullopt;
    const Permissions allowed = path.allowed[path.size - 1] & found.allowed;
    if (allowed.none()) return std::nullopt;
    const std::uint64_t page = ~((1ULL << found.page_lg2) - 1);
    return MappedLeaf{path.input & page, found.address & page, found.page_lg2, allowed};
  }

  F format_;
  TableRoot root_;
  TableGeometry geometry_;
  TableMemory& memory_;
};

}  // namespace iommu
