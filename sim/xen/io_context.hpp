// SPDX-License-Identifier: Apache-2.0
// One IOMMU context of a domain: what its devices' addresses mean. Context 0 is the domain's normal mapping; others are
// made by the guest (PV-IOMMU) or by Xen for a virtual unit (a shadow, or a nested pair of tables).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "sim/base/check.hpp"
#include "sim/base/cpu_port.hpp"
#include "sim/base/ids.hpp"
#include "sim/translation/iommu_core.hpp"
#include "sim/translation/table_driver.hpp"

namespace iommu::xen {

class TableArena;

// Device addresses that must stay mapped to themselves (firmware-owned memory).
struct ReservedRegion {
  Dfn first;
  std::uint64_t pages = 0;
  [[nodiscard]] bool overlaps(Dfn other, std::uint64_t other_pages) const {
    return first < other + other_pages && other < first + pages;
  }
  friend bool operator==(const ReservedRegion&, const ReservedRegion&) = default;
};

// Table pages that it takes to turn a large page into single ones.
[[nodiscard]] constexpr std::uint64_t tables_to_shatter(const MappedLeaf& leaf) {
  constexpr std::uint64_t kEntries = 512;
  return ((1ULL << (leaf.page_lg2 - kPageLg2)) - 1) / (kEntries - 1);
}

// When a context takes its domain tag of a unit: for every unit when it is made [PV-IOMMU RFC v7], or when the first of
// its devices comes that is behind the unit, until the last one leaves [its to-do list].
enum class TagAllocation : std::uint8_t { AtCreation, AtAttach };

struct IoContext {
  explicit IoContext(ContextNumber context_number) : number(context_number) {}

  ContextNumber number;
  std::uint64_t serial = 0;  // in order of creation: whoever locks two contexts begins with the older one
  // Stage2: `table` is the context's own. Nested: `stage1` is the guest's, and stage 2 is context 0's table.
  ContextKind kind = ContextKind::Stage2;
  std::unique_ptr<PageTable> table;
  TableMemory* table_memory = nullptr;  // where `table` lives
  TableArena* arena = nullptr;          // the same, if it keeps pages for splitting this context's large pages
  TableRoot stage1;
  TableRoot stage2;
  std::array<std::uint64_t, 2> stage1_entry{};  // Nested: the guest's own words of the device table entry
  // By unit. Absent: none of its devices is behind the unit, and tags are taken at the first attach.
  std::vector<std::optional<DomainTag>> tags;
  TagAllocation tag_allocation = TagAllocation::AtCreation;
  std::vector<RequesterId> devices;
  bool dying = false;
  // A unit never said that it forgot this context: what it names stays taken for good.
  bool unfenced = false;
  std::uint32_t pins = 0;  // tasks that know it and are not among its lock's waiters yet
  SpinLock lock{"io context"};

  // Unmapped without a flush: tables and machine frames that stay taken until flush_context().
  std::vector<std::uint64_t> deferred_tables;
  std::vector<Mfn> deferred_frames;

  // Removed from a shadow without a flush: pages from `first` on whose frames stay taken until flush_removed().
  struct Removed {
    std::uint64_t first = 0;
    std::vector<Mfn> frames;
  };
  std::vector<Removed> removed;
  [[nodiscard]] std::uint64_t removed_pages() const {
    std::uint64_t pages = 0;
    for (const Removed& r : removed) pages += r.frames.size();
    return pages;
  }

  struct Reserved {
    ReservedRegion region;
    std::uint32_t users = 0;
  };
  std::vector<Reserved> reserved;
  [[nodiscard]] bool is_reserved(Dfn first, std::uint64_t pages) const {
    for (const Reserved& r : reserved)
      if (r.region.overlaps(first, pages)) return true;
    return false;
  }
  // Of `pages` from an address that is not reserved, those before the next reserved one.
  [[nodiscard]] std::uint64_t unreserved_from(Dfn first, std::uint64_t pages) const {
    for (const Reserved& r : reserved)
      if (r.region.first > first) pages = std::min(pages, r.region.first.value() - first.value());
    return pages;
  }
  // Where it has devices, and where tags are taken at creation.
  [[nodiscard]] DomainTag tag_on(std::size_t unit) const {
    SIM_CHECK(tags[unit], "a context that devices use on a unit has a tag there");
    return *tags[unit];
  }
  [[nodiscard]] ContextSetting setting_on(std::size_t unit) const {
    return {.kind = kind, .domain = tag_on(unit), .stage1 = stage1, .stage2 = stage2, .stage1_entry = stage1_entry};
  }
};

}  // namespace iommu::xen
