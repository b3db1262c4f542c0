// SPDX-License-Identifier: Apache-2.0
#include "sim/xen/protected_tables.hpp"

#include <algorithm>
#include <functional>
#include <iterator>
#include <utility>

namespace iommu::xen {

namespace {
AddressRange bytes_of(const TableSpan& table) { return {table.address, table.address + table.length.value() - 1}; }
Gfn first_page(AddressRange bytes) { return Gfn(Gpa(bytes.first)); }
Gfn last_page(AddressRange bytes) { return Gfn(Gpa(bytes.last)); }
}  // namespace

ProtectedTables::~ProtectedTables() {
  for (const auto& [page, places] : places_) p2m_.allow_writes(page);
}

bool ProtectedTables::follow(RequesterId device, TableRoot root) {
  forget(device);
  Tree& tree = *trees_.emplace(device, std::make_unique<Tree>(memory_, reader_, root)).first->second;
  const auto all = static_cast<Level>(root.top_level + 1U);
  const bool followed = read_below(device, tree, all, {});
  if (!followed) forget(device);
  return followed;
}

void ProtectedTables::forget(RequesterId device) {
  const auto found = trees_.find(device);
  if (found == trees_.end()) return;
  for (const auto& level : found->second->levels)
    for (const auto& [input, table] : level) remove_table(device, table);
  trees_.erase(found);
}

void ProtectedTables::watch_entry(RequesterId device, const std::vector<AddressRange>& bytes) {
  std::vector<AddressRange>& watched = entries_[device];
  if (watched == bytes) return;
  for (const AddressRange& old : watched)
    remove_places(old, [&](const Place& place) { return place.device == device && !place.table; });
  watched = bytes;
  for (const AddressRange& now : watched)
    for (Gfn page = first_page(now); page <= last_page(now); page = page + 1) add_place(page, {device, now, {}});
}

std::vector<TableChange> ProtectedTables::on_store(Gpa address, Bytes length) {
  const AddressRange stored{address.value(), address.value() + length.value() - 1};
  std::vector<Place> hit;
  if (const auto page = places_.find(Gfn(address)); page != places_.end())
    std::ranges::copy_if(page->second, std::back_inserter(hit),
                         [&](const Place& place) { return place.bytes.overlaps(stored); });
  // From the top down: what is read again below one place includes those that lie there.
  const auto height = [](const Place& place) { return place.table ? place.table->level + 1U : 0U; };
  std::ranges::sort(hit, std::greater{}, height);
  std::vector<TableChange> changes;
  for (const Place& place : hit) {
    if (!place.table) {
      const auto is_known = [&](const TableChange& change) {
        return change.device == place.device && change.kind == TableChange::Kind::DeviceEntry;
      };
      if (std::ranges::none_of(changes, is_known))
        changes.push_back({.device = place.device, .kind = TableChange::Kind::DeviceEntry});
      continue;
    }
    const TableSpan& table = *place.table;
    if (!has_table(place.device, table)) continue;  // it went when a place above it was read again
    TableChange change{.device = place.device, .input = table.inputs_of(stored)};
    change.known_tables = tables_above(place.device, table.level, change.input.first);
    if (!read_below(place.device, *trees_.at(place.device), table.level, change.input)) {
      forget(place.device);
      change.kind = TableChange::Kind::TooMany;
    }
    changes.push_back(change);
  }
  return changes;
}

std::uint64_t ProtectedTables::take_permission_changes() { return std::exchange(permission_changes_, 0); }

bool ProtectedTables::read_below(RequesterId device, Tree& tree, Level level, AddressRange input) {
  for (Level below = 0; below < std::min<std::size_t>(level, tree.levels.size()); ++below) {
    auto& tables = tree.levels[below];
    const auto first = tables.lower_bound(input.first);
    const auto end = tables.upper_bound(input.last);
    for (auto table = first; table != end; ++table) remove_table(device, table->second);
    tree.tables -= static_cast<std::uint64_t>(std::distance(first, end));
    tables.erase(first, end);
  }
  if (level == 0) return true;
  bool fits = true;
  const LeafScan scan = tree.view->scan_tables(input, limits_.entries, [&](const TableSpan& table) {
    if (fits && table.level < level) fits = add_table(device, tree, table);
  });
  return fits && !scan.resume_at;
}

bool ProtectedTables::add_table(RequesterId device, Tree& tree, const TableSpan& table) {
  if (!tree.levels[table.level].emplace(table.input.first, table).second) return true;  // one place, seen twice
  ++tree.tables;
  bool fits = tree.tables <= limits_.tables;
  const AddressRange bytes = bytes_of(table);
  for (Gfn page = first_page(bytes); page <= last_page(bytes); page = page + 1) {
    add_place(page, {device, bytes, table});
    const auto own = std::ranges::count_if(
        places_.at(page), [&](const Place& place) { return place.device == device && place.table.has_value(); });
    fits &= static_cast<std::uint64_t>(own) <= limits_.places;
  }
  return fits;
}

void ProtectedTables::remove_table(RequesterId device, const TableSpan& table) {
  remove_places(bytes_of(table), [&](const Place& place) { return place.device == device && place.table == table; });
}

bool ProtectedTables::has_table(RequesterId device, const TableSpan& table) const {
  const auto tree = trees_.find(device);
  if (tree == trees_.end()) return false;
  const auto& tables = tree->second->levels[table.level];
  const auto found = tables.find(table.input.first);
  return found != tables.end() && found->second == table;
}

// Those on the way to the entry for `input` in a table of the level, that table included.
std::uint64_t ProtectedTables::tables_above(RequesterId device, Level level, std::uint64_t input) const {
  const Tree& tree = *trees_.at(device);
  std::uint64_t count = 0;
  for (std::size_t at = level; at < tree.levels.size(); ++at) {
    const auto next = tree.levels[at].upper_bound(input);
    if (next != tree.levels[at].begin() && std::prev(next)->second.input.overlaps({input, input})) ++count;
  }
  return count;
}

void ProtectedTables::add_place(Gfn page, const Place& place) {
  std::vector<Place>& places = places_[page];
  if (places.empty()) {
    p2m_.write_protect(page);
    ++permission_changes_;
  }
  places.push_back(place);
}

template <class Predicate>
void ProtectedTables::remove_places(AddressRange bytes, const Predicate& goes) {
  for (Gfn page = first_page(bytes); page <= last_page(bytes); page = page + 1) {
    const auto found = places_.find(page);
    if (found == places_.end()) continue;
    std::erase_if(found->second, goes);
    if (!found->second.empty()) continue;
    places_.erase(found);
    p2m_.allow_writes(page);
    ++permission_changes_;
  }
}

}  // namespace iommu::xen
