// SPDX-License-Identifier: Apache-2.0
// What an invalidation command removes, in words without a vendor. A core turns commands into scopes; caches, device
// TLBs and a hypervisor that shadows or forwards a guest's commands act on scopes; a driver turns scopes into its
// family's commands.
#pragma once

#include <cstdint>
#include <optional>

#include "sim/base/address.hpp"
#include "sim/base/ids.hpp"

namespace iommu {

enum class InvalidationKind : std::uint8_t {
  Context,         // device-table entries (root/context, DTE, STE)
  ProcessContext,  // PASID-table entries, context descriptors
  Iotlb,           // final translations and, unless leaf_only, walk caches
  DeviceTlb,       // ATS: the translation cache of one endpoint
  InterruptEntry,
};
inline constexpr std::size_t kInvalidationKinds = 5;

struct AddressRange {
  std::uint64_t first = 0;
  std::uint64_t last = ~0ULL;  // inclusive, so that the whole space is a range
  [[nodiscard]] constexpr bool overlaps(AddressRange other) const { return first <= other.last && other.first <= last; }
  // The same but for its upper bits, which must be alike at both ends or cover all values.
  [[nodiscard]] constexpr AddressRange without_top(unsigned bits) const {
    return bits == 0 ? *this : AddressRange{first << bits >> bits, last << bits >> bits};
  }
  friend constexpr bool operator==(AddressRange, AddressRange) = default;
};

// Every criterion that is present must match; a scope with none is global.
struct InvalidationScope {
  InvalidationKind kind = InvalidationKind::Iotlb;
  std::optional<DomainTag> domain{};
  std::optional<AsidTag> asid{};           // PASID or ASID within the domain
  std::optional<RequesterId> requester{};  // Context, DeviceTlb
  std::uint16_t requester_ignore = 0;      // bits of the requester id that do not take part in the match
  std::optional<AddressRange> range{};     // Iotlb, DeviceTlb: input addresses; InterruptEntry: indices
  bool leaf_only = false;                  // Iotlb: walk caches may keep non-leaf entries
  bool global_pages = false;               // Iotlb: stage-1 pages marked global go as well
  bool stage1_only = false;                // Iotlb: only what involves a stage 1 (what carries an address-space tag)
  std::uint32_t domain_ignore = 0;         // bits of the domain tag that do not take part in the match
  unsigned ignored_top_bits = 0;           // of input addresses, in the match with `range`: tags in pointers
  friend bool operator==(const InvalidationScope&, const InvalidationScope&) = default;
};

// How a cached object is tagged; optional members do not apply to that object.
struct CacheTags {
  DomainTag domain{};
  std::optional<AsidTag> asid{};
  std::optional<RequesterId> requester{};
  AddressRange range{};
  bool is_leaf = true;
  bool is_global = false;  // of a stage 1, for every address space of the domain
};

[[nodiscard]] constexpr bool matches(const InvalidationScope& scope, const CacheTags& tags) {
  if (scope.domain && ((scope.domain->value() ^ tags.domain.value()) & ~scope.domain_ignore) != 0) return false;
  if (scope.asid && !(tags.is_global && scope.global_pages) && scope.asid != tags.asid) return false;
  if (scope.stage1_only && !tags.asid && !tags.is_global) return false;
  if (scope.requester) {
    if (!tags.requester) return false;
    const unsigned different = static_cast<unsigned>(scope.requester->value()) ^ tags.requester->value();
    if ((different & ~static_cast<unsigned>(scope.requester_ignore)) != 0) return false;
  }
  if (scope.range &&
      !scope.range->without_top(scope.ignored_top_bits).overlaps(tags.range.without_top(scope.ignored_top_bits)))
    return false;
  return tags.is_leaf || !scope.leaf_only;
}

}  // namespace iommu
