// SPDX-License-Identifier: Apache-2.0
// What a walk asks of the paging-structure caches: the deepest table it may start from, and places for what it learns.
// The functional core runs without one; the timed IOMMU supplies one per walk, so that fills of a walk that an
// invalidation overtook are dropped.
#pragma once

#include <cstdint>
#include <optional>

#include "sim/base/address.hpp"
#include "sim/base/ids.hpp"
#include "sim/translation/page_format.hpp"

namespace iommu {

// Which address space a walk belongs to: what its cached pieces are tagged with.
struct WalkTag {
  DomainTag domain;
  std::optional<AsidTag> asid;  // stage 1 only
  AccessMode mode{};            // whose rights it holds; invalidations cover all
  friend constexpr bool operator==(const WalkTag&, const WalkTag&) = default;
};

// A table reached by a walk: where the next entry is read, and what the levels above allow.
struct CachedTable {
  std::uint64_t table = 0;
  Level level = 0;
  Permissions allowed = kReadWrite;
  std::optional<Hpa> host;  // of `table` when stage 2 has been applied already (combined caching)
};

// A whole stage-2 translation, page-aligned.
struct CachedStage2Leaf {
  std::uint64_t address = 0;
  std::uint8_t page_lg2 = kPageLg2;
  Permissions allowed;
  MemoryAttributes attributes;
};

class WalkCachePort {
 public:
  virtual ~WalkCachePort() = default;
  // The lowest-level table known for `input`, if any.
  virtual std::optional<CachedTable> deepest(Stage stage, const WalkTag& tag, std::uint64_t input) = 0;
  virtual void fill(Stage stage, const WalkTag& tag, std::uint64_t input, const CachedTable& table) = 0;
  virtual std::optional<CachedStage2Leaf> find_stage2_leaf(const WalkTag& tag, Gpa address) = 0;
  virtual void fill_stage2_leaf(const WalkTag& tag, Gpa address, const CachedStage2Leaf& leaf) = 0;
};

}  // namespace iommu
