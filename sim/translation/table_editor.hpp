// SPDX-License-Identifier: Apache-2.0
// The one page-table editor, over any PageFormat and any TableMemory. It never shows hardware an intermediate state:
// every single write leaves each translation either as it was or as it will be. New tables are complete before they are
// linked, and a table goes away by one write to its parent.
//
// One editor at a time edits a table: it counts what is in each table so that merging and emptying cost O(1) per page.
// Pages whose leaf spans several entries (contiguous hints) are read, never written.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "sim/translation/table_contents.hpp"
#include "sim/translation/table_driver.hpp"
#include "sim/translation/table_reader.hpp"

namespace iommu {

template <PageFormat F>
class TableEditor final : public PageTable {
 public:
  // A table with its root allocated; null when memory is exhausted.
  static std::unique_ptr<TableEditor> create(F format, TableGeometry geometry, TableMemory& memory) {
    const auto root = memory.allocate(geometry.root_pages_lg2);
    if (!root) return nullptr;
    auto editor = view(format, {*root, geometry.top_level}, geometry, memory);
    editor->owned_pages_ = editor->root_pages();
    editor->contents_.adopt(*root, {.present = 0, .links = 0, .owned = true});
    return editor;
  }
  // An editor over tables that exist. Allocates nothing until an edit needs a table.
  static std::unique_ptr<TableEditor> view(F format, TableRoot root, TableGeometry geometry, TableMemory& memory) {
    return std::unique_ptr<TableEditor>(new TableEditor(format, root, geometry, memory));
  }

  [[nodiscard]] TableRoot root() const override { return reader_.root(); }
  [[nodiscard]] std::uint64_t table_pages() const override { return owned_pages_; }

  TableEdit map(const MapRequest& request) override {
    Work work{.edit = {}, .line = {}, .tracking = request.coalesce};
    const std::uint64_t length = request.length.value();
    if (((request.input | request.output | length) & low_mask(granule_lg2())) != 0) return refused();
    Path path = reader_.start();
    std::uint64_t done = 0;
    while (done < length && work.edit.status == EditStatus::Ok) {
      const std::uint64_t input = request.input + done;
      if (input < request.input || !reader_.contains(input)) {
        work.edit.status = EditStatus::OutOfRange;
        break;
      }
      done += map_one(work, path, request, done);
    }
    work.edit.pages_done = done >> kPageLg2;
    return std::move(work.edit);
  }

  TableEdit unmap(std::uint64_t input, Bytes length, ReclaimTables reclaim) override {
    Work work;
    if (((input | length.value()) & low_mask(granule_lg2())) != 0) return refused();
    Path path = reader_.start();
    std::uint64_t done = 0;
    while (done < length.value() && work.edit.status == EditStatus::Ok) {
      const std::uint64_t at = input + done;
      if (at < input || !reader_.contains(at)) {
        work.edit.status = EditStatus::OutOfRange;
        break;
      }
      done += unmap_one(work, path, at, length.value() - done, reclaim);
    }
    work.edit.pages_done = done >> kPageLg2;
    return std::move(work.edit);
  }

  [[nodiscard]] std::optional<MappedLeaf> lookup(std::uint64_t input) const override { return reader_.lookup(input); }
  std::uint64_t for_each_leaf(AddressRange range, const std::function<void(const MappedLeaf&)>& visit) const override {
    return reader_.scan(range, ~0ULL, visit).entries_read;
  }
  LeafScan scan_leaves(AddressRange range, std::uint64_t max_entries,
                       const std::function<void(const MappedLeaf&)>& visit) const override {
    return reader_.scan(range, max_entries, visit);
  }

  LeafScan scan_tables(AddressRange range, std::uint64_t max_entries,
                       const std::function<void(const TableSpan&)>& visit) const override {
    return reader_.scan_tables(range, max_entries, visit);
  }

  std::vector<std::uint64_t> detach_all_tables() override {
    std::vector<std::uint64_t> pages;
    for (const std::uint64_t table : contents_.drop_all())
      add_pages(pages, table, table == root().address ? geometry_.root_pages_lg2 : geometry_.table_pages_lg2);
    owned_pages_ = 0;
    return pages;
  }

 private:
  using Path = TablePath;
  using Step = TableStep;

  // One call's edit, the line written last, and whether counts of links are worth keeping up.
  struct Work {
    TableEdit edit;
    std::optional<std::uint64_t> line;
    Coalesce tracking = Coalesce::Yes;
  };

  TableEditor(F format, TableRoot root, TableGeometry geometry, TableMemory& memory)
      : format_(format),
        geometry_(geometry),
        memory_(memory),
        reader_(format, root, geometry, memory),
        contents_(format, geometry, memory, reader_) {}

  [[nodiscard]] static constexpr std::uint64_t low_mask(unsigned lg2) { return (1ULL << lg2) - 1; }
  [[nodiscard]] unsigned granule_lg2() const { return format_.span_lg2(0); }
  [[nodiscard]] std::uint64_t root_pages() const { return 1ULL << geometry_.root_pages_lg2; }
  [[nodiscard]] static TableEdit refused() {
    TableEdit edit;
    edit.status = EditStatus::OutOfRange;
    return edit;
  }

  // Mapping -------------------------------------------------------------------------------------------------------

  // The highest level whose leaf fits here, and is no larger than the request allows.
  [[nodiscard]] Level leaf_level(std::uint64_t aligned, std::uint64_t remaining, unsigned max_lg2, Level below) const {
    for (Level level = below; level > 0; --level) {
      const unsigned lg2 = format_.span_lg2(level);
      if (format_.can_be_leaf(level) && lg2 <= max_lg2 && (aligned & low_mask(lg2)) == 0 && remaining >> lg2 != 0)
        return level;
    }
    return 0;
  }

  // Maps one leaf at `done` bytes into the request; returns the bytes mapped, 0 with a status when it stopped.
  std::uint64_t map_one(Work& work, Path& path, const MapRequest& request, std::uint64_t done) {
    const std::uint64_t input = request.input + done;
    const std::uint64_t output = request.output + done;
    Level level = leaf_level(input | output, request.length.value() - done, request.max_page_lg2, root().top_level);
    DecodedEntry found = reader_.find(path, input, level);
    while (found.kind == EntryKind::Table && !contents_.is_empty(found)) {
      level = leaf_level(input | output, request.length.value() - done, request.max_page_lg2,
                         static_cast<Level>(std::min(level, path.back().level) - 1));
      found = reader_.find(path, input, level);
    }
    const Step at = path.back();
    const bool replaces_table = found.kind == EntryKind::Table;
    if (!replaces_table && format_.is_present(path.entry)) return stop(work, EditStatus::AlreadyMapped);
    level = std::min(level, at.level);
    const auto leaf = make_leaf(input, output, level, request.permissions);
    if (!leaf) return stop(work, EditStatus::OutOfRange);
    if (at.level == level) {
      if (replaces_table) collect(work, found);
      write_entry(work, at, input, *leaf);
    } else if (!link_chain(work, at, input, level, *leaf)) {
      return stop(work, EditStatus::NoMemory);
    }
    work.edit.added = true;
    if (request.coalesce == Coalesce::Yes) coalesce(work, path, input);
    return 1ULL << format_.span_lg2(level);
  }

  static std::uint64_t stop(Work& work, EditStatus status) {
    work.edit.status = status;
    return 0;
  }

  // Nullopt when the format cannot express it: an output beyond its width, or no permission at all.
  [[nodiscard]] std::optional<std::uint64_t> make_leaf(std::uint64_t input, std::uint64_t output, Level level,
                                                       Permissions permissions) const {
    const std::uint64_t entry = format_.make_leaf(output, level, permissions);
    const DecodedEntry back = reader_.decode(entry, level, input);
    if (back.kind != EntryKind::Leaf || back.address != output || permissions.none()) return std::nullopt;
    return entry;
  }

  // Tables between `at` and the leaf's level, built bottom up and linked by one write.
  bool link_chain(Work& work, const Step& at, std::uint64_t input, Level level, std::uint64_t leaf) {
    auto tables = allocate(work, static_cast<std::size_t>(at.level - level));
    if (tables.empty()) return false;
    std::uint64_t entry = leaf;
    for (Level l = level; l < at.level; ++l) {
      const std::uint64_t table = tables[l - level];
      put_private(work, table, l, input, entry);
      contents_.adopt(table, {.present = 1, .links = 0, .owned = true});
      entry = format_.make_table(table, static_cast<Level>(l + 1));
    }
    write_entry(work, at, input, entry);
    return true;
  }

  // While the table just written is one contiguous page: a larger leaf in its parent takes its place.
  void coalesce(Work& work, Path& path, std::uint64_t input) {
    (void)reader_.find(path, input, 0);
    while (path.depth() > 1) {
      const Step low = path.back();
      const Step high = path.parent();
      if (high.level != low.level + 1 || !format_.can_be_leaf(high.level) || !contents_.is_one_page(low, input)) return;
      const std::uint64_t base = input & ~low_mask(format_.span_lg2(high.level));
      const std::uint64_t entry = memory_.read64(low.table + format_.entry_offset(low.level, base));
      const DecodedEntry first = reader_.decode(entry, low.level, base);
      if ((first.address & low_mask(format_.span_lg2(high.level))) != 0) return;
      const auto leaf = make_leaf(base, first.address, high.level, first.allowed);
      if (!leaf) return;
      path.pop();
      write_entry(work, high, base, *leaf);
      forget(work, low.table);
    }
  }

  // Unmapping -----------------------------------------------------------------------------------------------------

  std::uint64_t unmap_one(Work& work, Path& path, std::uint64_t input, std::uint64_t remaining, ReclaimTables reclaim) {
    Level highest = root().top_level;
    while (highest > 0 && !covers(input, remaining, highest)) --highest;
    DecodedEntry found = reader_.find(path, input, highest);
    while (found.kind == EntryKind::Table) {
      if (contents_.is_full(found)) {  // all of it goes by one write
        collect(work, found);
        return clear(work, path, input, reclaim);
      }
      found = reader_.find(path, input, found.next_level);
    }
    if (found.kind != EntryKind::Leaf) return stop(work, EditStatus::NotMapped);
    const Level level = path.back().level;
    if (found.page_lg2 != format_.span_lg2(level)) return stop(work, EditStatus::OutOfRange);
    if (covers(input, remaining, level)) return clear(work, path, input, reclaim);
    if (!split(work, path.back(), input, remaining, found)) return stop(work, EditStatus::NoMemory);
    (void)reader_.find(path, input, 0);
    return clear(work, path, input, reclaim);
  }

  [[nodiscard]] bool covers(std::uint64_t input, std::uint64_t remaining, Level level) const {
    const unsigned lg2 = format_.span_lg2(level);
    return (input & low_mask(lg2)) == 0 && remaining >> lg2 != 0;
  }

  // Clears the entry at the path's end, and tables that this empties when asked to.
  std::uint64_t clear(Work& work, Path& path, std::uint64_t input, ReclaimTables reclaim) {
    const std::uint64_t bytes = 1ULL << format_.span_lg2(path.back().level);
    write_entry(work, path.back(), input, 0);
    while (reclaim == ReclaimTables::WhenEmpty && path.depth() > 1 && contents_.of(path.back()).present == 0) {
      const std::uint64_t emptied = path.back().table;
      path.pop();
      write_entry(work, path.back(), input, 0);
      forget(work, emptied);
    }
    return bytes;
  }

  // Replaces a leaf by tables that map the same, down to the level at which `input` can be cleared. All memory is taken
  // first, and one write links the whole.
  bool split(Work& work, const Step& at, std::uint64_t input, std::uint64_t remaining, const DecodedEntry& leaf) {
    Level target = at.level;
    do --target;
    while (target > 0 && !(format_.can_be_leaf(target) && covers(input, remaining, target)));
    const auto tables = allocate(work, static_cast<std::size_t>(at.level - target));
    if (tables.empty()) return false;
    const std::uint64_t base = input & ~low_mask(format_.span_lg2(at.level));
    std::uint64_t lower = 0;  // entry that links the table below
    for (Level level = target; level < at.level; ++level) {
      const std::uint64_t table = tables[level - target];
      const std::uint64_t span = 1ULL << format_.span_lg2(level);
      const std::uint64_t first = input & ~low_mask(format_.span_lg2(static_cast<Level>(level + 1)));
      for (std::uint64_t i = 0; i < contents_.entries_per_table(level); ++i) {
        const std::uint64_t in = first + i * span;
        const bool links_lower = level > target && in == (input & ~(span - 1));
        put_private(work, table, level, in,
                    links_lower ? lower : format_.make_leaf(leaf.address + (in - base), level, leaf.allowed));
      }
      contents_.adopt(table, {.present = contents_.entries_per_table(level), .links = std::nullopt, .owned = true});
      lower = format_.make_table(table, static_cast<Level>(level + 1));
    }
    write_entry(work, at, input, lower);
    work.edit.structure_changed = true;
    return true;
  }

  // Table memory --------------------------------------------------------------------------------------------------

  // All or nothing; empty when memory is exhausted.
  std::vector<std::uint64_t> allocate(Work& work, std::size_t count) {
    std::vector<std::uint64_t> tables;
    while (tables.size() < count) {
      const auto table = memory_.allocate(geometry_.table_pages_lg2);
      if (!table) {
        for (const std::uint64_t t : tables) memory_.release(t, geometry_.table_pages_lg2);
        return {};
      }
      tables.push_back(*table);
    }
    owned_pages_ += count << geometry_.table_pages_lg2;
    work.edit.tables_allocated += static_cast<std::uint32_t>(count);
    work.edit.lines_touched +=
        static_cast<std::uint32_t>((count << geometry_.table_pages_lg2) * (kPageSize.value() / kLineBytes));
    return tables;
  }

  // Into a table that hardware cannot reach yet: its lines are counted with its allocation.
  void put_private(Work& work, std::uint64_t table, Level level, std::uint64_t input, std::uint64_t entry) {
    memory_.write64(table + format_.entry_offset(level, input), entry);
    ++work.edit.entries_written;
  }

  // The only write that hardware can see.
  void write_entry(Work& work, const Step& at, std::uint64_t input, std::uint64_t entry) {
    if (contents_.write(at, input, entry, work.tracking)) work.edit.modified = true;
    ++work.edit.entries_written;
    const std::uint64_t line = (at.table + format_.entry_offset(at.level, input)) / kLineBytes;
    if (work.line != line) ++work.edit.lines_touched;
    work.line = line;
  }

  // A table and all below it are about to become unreachable.
  void collect(Work& work, const DecodedEntry& link) {
    if (link.next_level > 0) {
      (void)contents_.all_entries(link, [&](const DecodedEntry& e) {
        if (e.kind == EntryKind::Table) collect(work, e);
        return true;
      });
    }
    forget(work, link.address);
  }
  void forget(Work& work, std::uint64_t table) {
    if (contents_.drop(table)) owned_pages_ -= 1ULL << geometry_.table_pages_lg2;
    work.edit.structure_changed = true;
    add_pages(work.edit.freed_tables, table, geometry_.table_pages_lg2);
  }
  static void add_pages(std::vector<std::uint64_t>& pages, std::uint64_t table, unsigned pages_lg2) {
    for (std::uint64_t i = 0; i < 1ULL << pages_lg2; ++i) pages.push_back(table + i * kPageSize.value());
  }

  static constexpr std::uint64_t kLineBytes = 64;

  F format_;
  TableGeometry geometry_;
  TableMemory& memory_;
  TableReader<F> reader_;
  TableContents<F> contents_;
  std::uint64_t owned_pages_ = 0;
};

}  // namespace iommu
