// SPDX-License-Identifier: Apache-2.0
// The one set-associative cache: IOTLB, walk caches, context caches. Pure: lookup latency and ports are the timed
// shell's.
//
// Fills are epoch-checked: whoever will fill remembers epoch() when it started to look, and a fill is dropped if an
// invalidation that covers it happened since. Without that, a walk that read an entry before it was changed would put
// the stale translation back after the invalidation.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <bitset>
#include <cstdint>
#include <optional>
#include <vector>

#include "sim/base/check.hpp"
#include "sim/base/replacement.hpp"
#include "sim/base/rng.hpp"
#include "sim/translation/invalidation.hpp"

namespace iommu {

struct CacheShape {
  std::uint32_t entries = 0;  // 0: no cache; every lookup misses
  std::uint32_t ways = 0;     // 0 or `entries`: fully associative
  Replacement replacement = Replacement::Lru;
  SetIndex index = SetIndex::LowBits;
  [[nodiscard]] constexpr std::uint32_t associativity() const { return ways == 0 ? entries : ways; }
  [[nodiscard]] constexpr std::uint32_t sets() const { return entries == 0 ? 0 : entries / associativity(); }
  // Entries divide into sets of equal size; the number of sets is a power of two; tree-PLRU needs power-of-two ways.
  [[nodiscard]] constexpr bool is_valid() const {
    if (entries == 0) return true;
    const std::uint32_t w = associativity();
    if (w == 0 || entries % w != 0 || !std::has_single_bit(entries / w)) return false;
    return replacement != Replacement::TreePlru || std::has_single_bit(w);
  }
};

using Epoch = std::uint64_t;

// Key: equality-comparable, with
//   std::uint64_t hash() const       chooses way candidates quickly, and the set of SetIndex::Hashed; equal keys have
//                                    equal hashes
//   std::uint64_t set_index() const  its low bits choose the set (page number, requester id, …)
//   CacheTags tags() const           what invalidation scopes match against
template <class Key, class Value>
class AssociativeCache {
 public:
  AssociativeCache(CacheShape shape, std::uint64_t seed)
      : shape_(shape),
        ways_(shape.associativity()),
        set_mask_(shape.sets() - 1),
        rng_(seed, "cache"),
        hashes_(shape.entries, 0),
        entries_(shape.entries) {
    SIM_CHECK(shape.is_valid(), "cache shapes are validated with the scenario");
    if (shape.replacement == Replacement::TreePlru)
      trees_.resize(shape.sets(), 0);
    else if (shape.replacement == Replacement::Lru)
      ages_.resize(shape.entries, 0);
  }

  // The value, and marks it used. Null on a miss. The pointer is valid until the next fill or erase.
  Value* find(const Key& key) {
    const auto slot = slot_of(key);
    if (!slot) return nullptr;
    touch(*slot);
    return &entries_[*slot].value;
  }
  // Like find, without marking it used.
  [[nodiscard]] const Value* peek(const Key& key) const {
    const auto slot = slot_of(key);
    return slot ? &entries_[*slot].value : nullptr;
  }

  [[nodiscard]] Value* peek(const Key& key) {
    const auto slot = slot_of(key);
    return slot ? &entries_[*slot].value : nullptr;
  }

  // The key under which it is stored, whose tags may say more than the one it is looked for by; null on a miss.
  [[nodiscard]] const Key* stored_key(const Key& key) const {
    const auto slot = slot_of(key);
    return slot ? &entries_[*slot].key : nullptr;
  }

  [[nodiscard]] Epoch epoch() const { return epoch_; }

  // Inserts or replaces. False when the cache is absent, or when an invalidation covering the key came after `began`.
  bool fill(const Key& key, const Value& value, Epoch began) {
    if (shape_.entries == 0 || overtaken(key, began)) return false;
    const auto present = slot_of(key);
    const std::uint32_t slot = present ? *present : victim(first_slot(key));
    if (!entries_[slot].valid) ++occupancy_;
    entries_[slot] = {key, value, true};
    hashes_[slot] = key.hash();
    touch(slot);
    return true;
  }

  // Removes what the scope covers and returns how many entries went; `visit(key, value)` sees each of them before.
  std::uint32_t erase(const InvalidationScope& scope) {
    return erase(scope, [](const Key&, const Value&) {});
  }
  template <class Visit>
  std::uint32_t erase(const InvalidationScope& scope, Visit&& visit) {
    ++epoch_;
    log_[epoch_ % kLogged] = scope;
    std::uint32_t erased = 0;
    if (occupancy_ == 0) return 0;
    for (std::uint32_t slot = 0; slot < entries_.size(); ++slot) {
      Entry& entry = entries_[slot];
      if (!entry.valid || !matches(scope, entry.key.tags())) continue;
      visit(entry.key, entry.value);
      entry.valid = false;
      hashes_[slot] = 0;
      ++erased;
    }
    occupancy_ -= erased;
    return erased;
  }

  [[nodiscard]] std::uint32_t occupancy() const { return occupancy_; }
  [[nodiscard]] const CacheShape& shape() const { return shape_; }

 private:
  struct Entry {
    Key key{};
    Value value{};
    bool valid = false;
  };
  // A walk longer than this many invalidations loses its fill even if none of them covered it: safe, and rare.
  static constexpr std::size_t kLogged = 64;

  [[nodiscard]] bool overtaken(const Key& key, Epoch began) const {
    if (began == epoch_) return false;
    if (epoch_ - began >= kLogged) return true;
    const CacheTags tags = key.tags();
    for (Epoch e = began + 1; e <= epoch_; ++e)
      if (matches(log_[e % kLogged], tags)) return true;
    return false;
  }
  [[nodiscard]] std::uint32_t first_slot(const Key& key) const {
    const std::uint64_t index = shape_.index == SetIndex::LowBits ? key.set_index() : key.hash();
    return static_cast<std::uint32_t>(index & set_mask_) * ways_;
  }
  [[nodiscard]] std::optional<std::uint32_t> slot_of(const Key& key) const {
    if (occupancy_ == 0) return std::nullopt;
    const std::uint64_t hash = key.hash();
    const std::uint32_t first = first_slot(key);
    for (std::uint32_t slot = first; slot < first + ways_; ++slot)
      if (hashes_[slot] == hash && entries_[slot].valid && entries_[slot].key == key) return slot;
    return std::nullopt;
  }
  std::uint32_t victim(std::uint32_t first) {
    for (std::uint32_t slot = first; slot < first + ways_; ++slot)
      if (!entries_[slot].valid) return slot;
    switch (shape_.replacement) {
      case Replacement::Random:
        return first + static_cast<std::uint32_t>(rng_.below(ways_));
      case Replacement::TreePlru:
        return first + tree_victim(first / ways_);
      case Replacement::Lru:
        break;
    }
    const auto begin = ages_.begin() + first;
    return first + static_cast<std::uint32_t>(std::min_element(begin, begin + ways_) - begin);
  }
  void touch(std::uint32_t slot) {
    if (shape_.replacement == Replacement::Lru)
      ages_[slot] = ++clock_;
    else if (shape_.replacement == Replacement::TreePlru)
      tree_touch(slot / ways_, slot % ways_);
  }
  // Tree bits: node i has children 2i+1 and 2i+2; a set bit sends the search for a victim to the right.
  std::uint32_t tree_victim(std::uint32_t set) const {
    std::uint32_t node = 0;
    while (node < ways_ - 1) node = 2 * node + 1 + static_cast<std::uint32_t>(trees_[set][node]);
    return node - (ways_ - 1);
  }
  void tree_touch(std::uint32_t set, std::uint32_t way) {
    for (std::uint32_t node = way + ways_ - 1; node != 0;) {
      const std::uint32_t parent = (node - 1) / 2;
      trees_[set][parent] = node == 2 * parent + 1;  // point away from the way just used
      node = parent;
    }
  }

  CacheShape shape_;
  std::uint32_t ways_;
  std::uint64_t set_mask_;
  Rng rng_;
  std::uint32_t occupancy_ = 0;
  std::uint64_t clock_ = 0;
  Epoch epoch_ = 0;
  std::array<InvalidationScope, kLogged> log_{};
  std::vector<std::uint64_t> hashes_;  // beside the entries, so that a search reads few lines
  std::vector<Entry> entries_;
  std::vector<std::uint64_t> ages_;
  std::vector<std::bitset<1024>> trees_;
};

}  // namespace iommu
