// SPDX-License-Identifier: Apache-2.0
// A family's layout tables at run time: what `iommusim explain` needs to name the fields of what hardware reads,
// without knowing the family. No model depends on it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "sim/base/bits.hpp"
#include "sim/translation/iommu_core.hpp"

namespace iommu {

struct LayoutView {
  std::string_view name;      // as people ask for it: "SS-PTE". Several layouts may share one (table and page).
  std::string_view title;     // the specification's
  std::string_view citation;  // section in the family's specification
  unsigned width = 64;        // in bits
  std::span<const Field> fields;
};
// Of a layout with static storage.
template <const auto& kLayout>
constexpr LayoutView view_of(std::string_view name = kLayout.name) {
  return {name, kLayout.name, kLayout.citation, kLayout.width, kLayout.fields};
}

// The first layout of a name; null when there is none.
[[nodiscard]] constexpr const LayoutView* find_layout(std::span<const LayoutView> all, std::string_view name) {
  for (const LayoutView& layout : all)
    if (layout.name == name) return &layout;
  return nullptr;
}
// Of the layouts of one name, the one with these fields; where there is none such, the first.
[[nodiscard]] inline const LayoutView* find_layout(std::span<const LayoutView> all, std::string_view name,
                                                   std::span<const Field> fields) {
  for (const LayoutView& layout : all)
    if (layout.name == name && layout.fields.data() == fields.data()) return &layout;
  return find_layout(all, name);
}

struct RegisterPlace {
  std::string_view name;
  std::uint64_t offset = 0;
  unsigned bytes = 4;                  // 4 or a multiple of 8
  const LayoutView* layout = nullptr;  // null: an address, or unknown
};

// Of registers whose rows have the names of their layouts.
template <typename Rows>
[[nodiscard]] std::vector<RegisterPlace> register_places(const Rows& rows, std::span<const LayoutView> all) {
  std::vector<RegisterPlace> places;
  for (const auto& row : rows) places.push_back({row.name, row.offset, row.bytes, find_layout(all, row.name)});
  return places;
}

// One read of device tables.
struct DeviceTableRead {
  Hpa address;
  std::vector<std::uint64_t> words;
  bool failed = false;
};

// One page-table entry that a walk met.
struct PageEntryRead {
  Stage stage = Stage::Stage2;
  Level level = 0;
  std::uint64_t entry = 0;
};

struct FamilyLayouts {
  std::span<const LayoutView> all;
  // Every register of a unit, those with places of their own per unit included.
  std::vector<RegisterPlace> (*registers)(IommuCore& core) = nullptr;
  // What the last of the reads that one translation has made is. Never called with none.
  const LayoutView* (*device_table)(std::span<const DeviceTableRead> so_far) = nullptr;
  const LayoutView* (*page_entry)(const PageEntryRead& read) = nullptr;
  // A record of a fault in memory; null for families that record in registers.
  const LayoutView* (*event)(std::span<const std::uint64_t> words) = nullptr;
};

}  // namespace iommu
