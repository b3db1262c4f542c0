// SPDX-License-Identifier: Apache-2.0
// What an editor remembers about the tables it edits, so that merging 512 pages into a larger one and noticing that a
// table is empty cost O(1) per page written instead of a scan. Xen keeps the same knowledge as contiguity markers in
// ignored bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "sim/translation/table_reader.hpp"

namespace iommu {

// `links` counts entries that continue the one before them (same permissions, output follows on): a table with a link
// between all of its entries is one larger page. Unknown after edits that do not merge.
struct TableInfo {
  std::uint32_t present = 0;
  std::optional<std::uint32_t> links;
  bool owned = false;  // allocated by the editor
};

template <PageFormat F>
class TableContents {
 public:
  TableContents(F format, TableGeometry geometry, TableMemory& memory, const TableReader<F>& reader)
      : format_(format), geometry_(geometry), memory_(memory), reader_(reader) {}

  void adopt(std::uint64_t table, TableInfo info) { known_[table] = info; }

  // Counted by reading the table when it was not this editor that filled it.
  TableInfo& of(const TableStep& at) {
    const auto [position, is_new] = known_.try_emplace(at.table);
    TableInfo& info = position->second;
    if (!is_new) return info;
    for (std::uint64_t i = 0; i < entries_per_table(at.level); ++i)
      if (format_.is_present(read(at, i << format_.span_lg2(at.level)))) ++info.present;
    return info;
  }
  // Forgets a table; returns whether it was owned.
  bool drop(std::uint64_t table) {
    const auto position = known_.find(table);
    if (position == known_.end()) return false;
    const bool owned = position->second.owned;
    known_.erase(position);
    return owned;
  }
  // Forgets all; the owned ones in ascending order.
  std::vector<std::uint64_t> drop_all() {
    std::vector<std::uint64_t> owned;
    for (const auto& [table, info] : known_)
      if (info.owned) owned.push_back(table);
    std::sort(owned.begin(), owned.end());
    known_.clear();
    return owned;
  }

  [[nodiscard]] std::uint32_t entries_per_table(Level level) const {
    const unsigned table_lg2 =
        level == geometry_.top_level ? geometry_.input_bits : format_.span_lg2(static_cast<Level>(level + 1));
    return 1U << (table_lg2 - format_.span_lg2(level));
  }

  // One write: keeps the counters; returns whether the entry was present before.
  bool write(const TableStep& at, std::uint64_t input, std::uint64_t entry, Coalesce tracking) {
    TableInfo& info = of(at);
    const std::uint64_t address = at.table + format_.entry_offset(at.level, input);
    const bool was_present = format_.is_present(memory_.read64(address));
    if (tracking == Coalesce::No) info.links.reset();
    const std::uint32_t before = info.links ? links_around(at, input) : 0;
    memory_.write64(address, entry);
    if (info.links) *info.links = *info.links - before + links_around(at, input);
    info.present += (format_.is_present(entry) ? 1U : 0U) - (was_present ? 1U : 0U);
    return was_present;
  }

  // Whether all entries of the table that holds `input` continue each other.
  bool is_one_page(const TableStep& at, std::uint64_t input) {
    TableInfo& info = of(at);
    if (!info.links) info.links = count_links(at, input);
    return *info.links == entries_per_table(at.level) - 1;
  }
  // No leaf below: such a subtree may be replaced by a larger page.
  bool is_empty(const DecodedEntry& link) {
    const std::uint32_t present = of({link.address, link.next_level}).present;
    if (present == 0 || link.next_level == 0) return present == 0;
    return all_entries(link, [&](const DecodedEntry& e) {
      return e.kind == EntryKind::Absent || (e.kind == EntryKind::Table && is_empty(e));
    });
  }
  // Leaves everywhere below: such a subtree may be unmapped by one write.
  bool is_full(const DecodedEntry& link) {
    const Level level = link.next_level;
    if (of({link.address, level}).present != entries_per_table(level)) return false;
    return level == 0 || all_entries(link, [&](const DecodedEntry& e) {
             return e.kind == EntryKind::Leaf || (e.kind == EntryKind::Table && is_full(e));
           });
  }
  // Calls `visit(entry)` for the entries of the table that `link` points to, until it returns false.
  template <class Visit>
  bool all_entries(const DecodedEntry& link, const Visit& visit) const {
    const TableStep at{link.address, link.next_level};
    for (std::uint64_t i = 0; i < entries_per_table(at.level); ++i) {
      const std::uint64_t input = i << format_.span_lg2(at.level);
      if (!visit(reader_.decode(read(at, input), at.level, input))) return false;
    }
    return true;
  }

 private:
  [[nodiscard]] std::uint64_t read(const TableStep& at, std::uint64_t input) const {
    return memory_.read64(at.table + format_.entry_offset(at.level, input));
  }
  [[nodiscard]] std::uint64_t index_of(Level level, std::uint64_t input) const {
    return input >> format_.span_lg2(level) & (entries_per_table(level) - 1);
  }
  // Whether the entry for `input` continues the one before it in the same table.
  [[nodiscard]] bool is_linked(const TableStep& at, std::uint64_t input) const {
    const std::uint64_t span = 1ULL << format_.span_lg2(at.level);
    const DecodedEntry left = reader_.decode(read(at, input - span), at.level, input - span);
    const DecodedEntry right = reader_.decode(read(at, input), at.level, input);
    return left.kind == EntryKind::Leaf && right.kind == EntryKind::Leaf && right.address == left.address + span &&
           left.allowed == right.allowed && left.attributes == right.attributes && left.page_lg2 == right.page_lg2;
  }
  [[nodiscard]] std::uint32_t links_around(const TableStep& at, std::uint64_t input) const {
    const std::uint64_t index = index_of(at.level, input);
    const std::uint64_t span = 1ULL << format_.span_lg2(at.level);
    const bool left = index > 0 && is_linked(at, input);
    const bool right = index + 1 < entries_per_table(at.level) && is_linked(at, input + span);
    return (left ? 1U : 0U) + (right ? 1U : 0U);
  }
  [[nodiscard]] std::uint32_t count_links(const TableStep& at, std::uint64_t input) const {
    const unsigned lg2 = format_.span_lg2(at.level);
    const std::uint64_t base = (input >> lg2 << lg2) - (index_of(at.level, input) << lg2);
    std::uint32_t links = 0;
    for (std::uint64_t i = 1; i < entries_per_table(at.level); ++i)
      if (is_linked(at, base + (i << lg2))) ++links;
    return links;
  }

  F format_;
  TableGeometry geometry_;
  TableMemory& memory_;
  const TableReader<F>& reader_;
  std::unordered_map<std::uint64_t, TableInfo> known_;
};

}  // namespace iommu
