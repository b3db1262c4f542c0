// SPDX-License-Identifier: Apache-2.0
// Which pages of a guest hold what its virtual unit's devices translate through: page tables, and the device-table
// entries that lead to them. These pages are write-protected; what a store to one of them changes is found here.
//
// A page may stand in several places: in the trees of several devices, more than once or on several levels of one tree
// (a guest may point a table at itself), in a device table as well. It stays protected until the last of them is gone.
// Places are remembered as they were read. What a page holds by now does not matter, so that a guest that changes a
// table unseen (a device can) unbalances nothing.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "sim/base/ids.hpp"
#include "sim/translation/table_driver.hpp"
#include "sim/xen/guest_table_view.hpp"
#include "sim/xen/p2m.hpp"

namespace iommu::xen {

// What a store to protected pages means for one device.
struct TableChange {
  enum class Kind : std::uint8_t {
    DeviceEntry,   // its device-table entry may be another one
    Translations,  // of `input`
    TooMany,       // it has more tables than anybody keeps track of; they are not protected any more
  };
  RequesterId device;
  Kind kind = Kind::Translations;
  AddressRange input{};
  std::uint64_t known_tables = 0;  // from the root to the one that was written
};

// For one device.
struct ProtectionLimits {
  std::uint64_t tables = 1U << 14;
  std::uint64_t entries = 1U << 23;  // read to find them
  std::uint64_t places = 64;         // of one page: a store there means that many changes
};

class ProtectedTables {
 public:
  // All outlive it. `reader` is the family's way of reading a guest's tables.
  ProtectedTables(const GuestMemory& memory, P2m& p2m, TableDriver& reader, ProtectionLimits limits)
      : memory_(memory), p2m_(p2m), reader_(reader), limits_(limits) {}
  ~ProtectedTables();
  ProtectedTables(const ProtectedTables&) = delete;
  ProtectedTables& operator=(const ProtectedTables&) = delete;

  // From now on the device translates through these tables and no others. False: they exceed a limit, and none is
  // protected.
  [[nodiscard]] bool follow(RequesterId device, TableRoot root);
  // It translates through none.
  void forget(RequesterId device);
  // The guest-physical bytes that its device-table entry was read from; they replace those of before.
  void watch_entry(RequesterId device, const std::vector<AddressRange>& bytes);

  // Bytes of one page were stored. Tables that the store linked are protected, and those it unlinked are not, when this
  // returns: a store that comes next must not slip through.
  std::vector<TableChange> on_store(Gpa address, Bytes length);

  [[nodiscard]] std::size_t pages() const { return places_.size(); }
  // Pages that were protected or let go since the last call.
  std::uint64_t take_permission_changes();

 private:
  struct Place {
    RequesterId device;
    AddressRange bytes;              // guest-physical
    std::optional<TableSpan> table;  // absent: a device-table entry
  };
  // One device's tree as it was read.
  struct Tree {
    Tree(const GuestMemory& guest, TableDriver& reader, TableRoot root)
        : memory(guest), view(reader.view_table(TableKind::Stage2, root, memory)), levels(root.top_level + 1U) {}
    GuestTableView memory;
    std::unique_ptr<PageTable> view;
    std::vector<std::map<std::uint64_t, TableSpan>> levels;  // by level, by first input
    std::uint64_t tables = 0;
  };

  // Reads a part of the tree again, below a level.
  bool read_below(RequesterId device, Tree& tree, Level level, AddressRange input);
  bool add_table(RequesterId device, Tree& tree, const TableSpan& table);
  void remove_table(RequesterId device, const TableSpan& table);
  [[nodiscard]] bool has_table(RequesterId device, const TableSpan& table) const;
  [[nodiscard]] std::uint64_t tables_above(RequesterId device, Level level, std::uint64_t input) const;
  void add_place(Gfn page, const Place& place);
  template <class Predicate>
  void remove_places(AddressRange bytes, const Predicate& goes);

  const GuestMemory& memory_;
  P2m& p2m_;
  TableDriver& reader_;
  ProtectionLimits limits_;
  std::map<RequesterId, std::unique_ptr<Tree>> trees_;
  std::map<RequesterId, std::vector<AddressRange>> entries_;
  std::unordered_map<Gfn, std::vector<Place>> places_;
  std::uint64_t permission_changes_ = 0;
};

}  // namespace iommu::xen
