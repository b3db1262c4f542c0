// SPDX-License-Identifier: Apache-2.0
// Everything a timed IOMMU remembers: contexts, final translations, pointers to tables, stage-2 leaves; and what it
// remembers having forgotten (the ghosts that tell an invalidation-induced miss from any other). No time: the unit
// decides when to look and when an invalidation takes effect.
//
// All caches of final translations and of tables see every Iotlb scope, so one epoch dates all of them. Contexts have
// their own, and so do first-level TLBs, which depend on both: on page tables and on which tables a requester uses.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "sim/tlm/iommu_parameters.hpp"
#include "sim/tlm/iommu_statistics.hpp"
#include "sim/translation/cache.hpp"
#include "sim/translation/iommu_core.hpp"

namespace iommu {

[[nodiscard]] constexpr std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
  const std::uint64_t x = (a ^ (b + 0x9e3779b97f4a7c15ULL + (a << 6) + (a >> 2))) * 0xbf58476d1ce4e5b9ULL;
  return x ^ x >> 31;
}

// Who asks: a requester, with or without PASID. Domain and address space are known once the context is; they take no
// part in equality, only in invalidation.
struct ContextKey {
  RequesterId requester;
  std::optional<Pasid> pasid;
  WalkTag tag;

  friend bool operator==(const ContextKey& a, const ContextKey& b) {
    return a.requester == b.requester && a.pasid == b.pasid;
  }
  [[nodiscard]] std::uint64_t hash() const { return mix(requester.value(), pasid ? pasid->value() + 1ULL : 0); }
  [[nodiscard]] std::uint64_t set_index() const {
    return static_cast<std::uint64_t>(requester.value()) + (pasid ? pasid->value() * 7ULL : 0);
  }
  [[nodiscard]] CacheTags tags() const {
    return {.domain = tag.domain, .asid = tag.asid, .requester = requester, .range = {}};
  }
};

// A block of an input address space: `number` is the address shifted by `lg2`. A global page belongs to every address
// space of its domain: its tag names none.
struct BlockKey {
  WalkTag tag;
  std::uint64_t number = 0;
  std::uint8_t lg2 = kPageLg2;
  bool is_leaf = true;
  bool is_global = false;

  friend bool operator==(const BlockKey&, const BlockKey&) = default;
  [[nodiscard]] std::uint64_t hash() const {
    return mix(number << 6 ^ lg2,
               static_cast<std::uint64_t>(tag.domain.value()) << 32 | (tag.asid ? tag.asid->value() + 1ULL : 0));
  }
  [[nodiscard]] std::uint64_t set_index() const { return number; }
  [[nodiscard]] AddressRange range() const { return {number << lg2, (number << lg2) + ((1ULL << lg2) - 1)}; }
  [[nodiscard]] CacheTags tags() const {
    return {.domain = tag.domain,
            .asid = tag.asid,
            .requester = {},
            .range = range(),
            .is_leaf = is_leaf,
            .is_global = is_global};
  }
};

// The same for the TLBs of ports, which know the requester and not yet its context. Whether the page is global takes no
// part in equality.
struct RequesterBlockKey {
  ContextKey who;
  std::uint64_t number = 0;
  std::uint8_t lg2 = kPageLg2;
  bool is_global = false;

  friend bool operator==(const RequesterBlockKey& a, const RequesterBlockKey& b) {
    return a.number == b.number && a.lg2 == b.lg2 && a.who == b.who;
  }
  [[nodiscard]] std::uint64_t hash() const { return mix(who.hash(), number << 6 ^ lg2); }
  [[nodiscard]] std::uint64_t set_index() const { return number; }
  [[nodiscard]] CacheTags tags() const {
    return {.domain = who.tag.domain,
            .asid = is_global ? std::nullopt : who.tag.asid,
            .requester = who.requester,
            .range = {number << lg2, (number << lg2) + ((1ULL << lg2) - 1)},
            .is_global = is_global};
  }
};

// A translation without its offset in the page.
struct CachedTranslation {
  Hpa page;
  Permissions allowed;
  MemoryAttributes attributes;
  std::uint8_t page_lg2 = kPageLg2;
  bool is_untried = false;  // walked ahead of demand, which has not come yet

  [[nodiscard]] static CachedTranslation of(const Translation& t) {
    return {t.address.aligned_down(t.page_lg2), t.allowed, t.attributes, t.page_lg2, false};
  }
  [[nodiscard]] Translation at(Iova address) const {
    return {page + Bytes(address.offset_in(page_lg2)), page_lg2, allowed, attributes, false};
  }
};

// Page sizes that a cache may hold, so that a lookup probes no others.
class PageSizes {
 public:
  void add(std::uint8_t lg2) { mask_ |= 1ULL << lg2; }
  // Calls probe(lg2) from the smallest size up until one returns non-null.
  template <class Probe>
  auto* first(Probe&& probe) const {
    for (std::uint64_t left = mask_; left != 0; left &= left - 1)
      if (auto* found = probe(static_cast<std::uint8_t>(std::countr_zero(left)))) return found;
    return decltype(probe(std::uint8_t{}))(nullptr);
  }

 private:
  std::uint64_t mask_ = 0;
};

// When a walk began to look: what it learns is dropped from any cache that an invalidation covering it has cleaned
// since.
struct WalkEpoch {
  Epoch translations = 0;
  Epoch contexts = 0;
  Epoch ports = 0;  // sees the scopes of both
};

class TranslationCaches {
 public:
  TranslationCaches(const IommuParameters& parameters, std::uint64_t seed, IommuStatistics& statistics);

  [[nodiscard]] WalkEpoch epoch() const {
    // The TLBs of ports all see the same scopes.
    return {iotlb_.epoch(), contexts_.epoch(), ports_.front().first_level.epoch()};
  }

  const Context* find_context(const TranslationRequest& request);
  void fill_context(const TranslationRequest& request, const Context& context, Epoch began);

  // The IOTLB; null on a miss. Permissions are the caller's to check.
  const CachedTranslation* find(const WalkTag& tag, Iova address) {
    const CachedTranslation* found = find_tagged(tag, address);
    return found == nullptr && has_globals_ && tag.asid ? find_global(tag, address) : found;
  }
  void fill(const WalkTag& tag, Iova address, const Translation& translation, Epoch began) {
    fill(tag, address, CachedTranslation::of(translation), began);
  }
  void fill(const WalkTag& tag, Iova address, const CachedTranslation& translation, Epoch began);

  // Of the TLBs of ports.
  [[nodiscard]] bool has_first_level() const { return has_first_level_; }
  [[nodiscard]] bool has_port_tlb() const { return has_port_tlb_; }
  const CachedTranslation* find_first_level(std::uint8_t port, const TranslationRequest& request) {
    return find_at(port_of(port).first_level, request, statistics_.first_level);
  }
  // What it finds moves into the first level as well.
  const CachedTranslation* find_port_tlb(std::uint8_t port, const TranslationRequest& request);
  // Both levels, as far as they exist.
  void fill_port(std::uint8_t port, const TranslationRequest& request, const WalkTag& tag,
                 const CachedTranslation& translation, Epoch began);
  // A request was answered by an untried translation, of the IOTLB or of a port: none of its copies is from now on.
  void count_first_use(const WalkTag& tag, Iova address);
  void count_first_use(std::uint8_t port, const TranslationRequest& request);

  // Whether a request from this port would hit somewhere; counts and marks nothing.
  [[nodiscard]] bool holds(std::uint8_t port, const TranslationRequest& request, const WalkTag& tag) const;

  // True when the translation had been resident, unchanged, until an invalidation removed it; asked once per walk.
  bool was_removed_needlessly(const WalkTag& tag, Iova address, const Translation& translation);

  // The instant at which an invalidation takes effect.
  void erase(const InvalidationScope& scope);
  // Entries that an invalidation has to examine in the cache where it takes longest.
  [[nodiscard]] std::uint32_t entries_examined(const InvalidationScope& scope) const;

  // Walk caches, for WalkView.
  std::optional<CachedTable> deepest(Stage stage, const WalkTag& tag, std::uint64_t input);
  void fill_table(Stage stage, const WalkTag& tag, std::uint64_t input, const CachedTable& table, Epoch began);
  std::optional<CachedStage2Leaf> find_stage2_leaf(const WalkTag& tag, Gpa address);
  void fill_stage2_leaf(const WalkTag& tag, Gpa address, const CachedStage2Leaf& leaf, Epoch began);

 private:
  using TranslationCache = AssociativeCache<BlockKey, CachedTranslation>;
  using PortTlb = AssociativeCache<RequesterBlockKey, CachedTranslation>;
  using TableCache = AssociativeCache<BlockKey, CachedTable>;
  using LeafCache = AssociativeCache<BlockKey, CachedStage2Leaf>;
  struct PortTlbs {
    PortTlb first_level;
    PortTlb main;
  };
  struct Ghost {
    CachedTranslation translation;
    bool is_live = false;
  };

  [[nodiscard]] TranslationCache& cache_for(std::uint8_t page_lg2) {
    return has_large_ && page_lg2 >= kLargeLg2 ? large_ : iotlb_;
  }
  [[nodiscard]] PortTlbs& port_of(std::uint8_t port) { return ports_[port % ports_.size()]; }
  const CachedTranslation* find_at(PortTlb& tlb, const TranslationRequest& request, CacheCounts& counts);
  const CachedTranslation* find_tagged(const WalkTag& tag, Iova address);
  // In the IOTLB; counts and marks nothing.
  CachedTranslation* peek(const WalkTag& tag, Iova address);
  const CachedTranslation* find_global(const WalkTag& tag, Iova address);
  std::vector<TableCache>& tables_of(Stage stage) { return stage == Stage::Stage1 ? stage1_ : stage2_; }
  std::array<CacheCounts, 5>& counts_of(Stage stage) {
    return stage == Stage::Stage1 ? statistics_.stage1_walk_cache : statistics_.stage2_walk_cache;
  }

  static constexpr std::uint8_t kLargeLg2 = 21;

  IommuStatistics& statistics_;
  AssociativeCache<ContextKey, Context> contexts_;
  TranslationCache iotlb_;
  TranslationCache large_;
  bool has_large_;
  bool has_globals_ = false;  // a global page has been cached
  PageSizes sizes_;
  std::vector<PortTlbs> ports_;
  bool has_first_level_;
  bool has_port_tlb_;
  PageSizes port_sizes_;
  std::vector<TableCache> stage1_;
  std::vector<TableCache> stage2_;
  std::array<bool, 2> has_tables_{};
  LeafCache leaves_;
  PageSizes leaf_sizes_;
  AssociativeCache<BlockKey, Ghost> ghosts_;
};

// The walk caches as one walk sees them.
class WalkView final : public WalkCachePort {
 public:
  explicit WalkView(TranslationCaches& caches) : caches_(&caches) {}
  void begin(Epoch epoch) { epoch_ = epoch; }

  std::optional<CachedTable> deepest(Stage stage, const WalkTag& tag, std::uint64_t input) override {
    return caches_->deepest(stage, tag, input);
  }
  void fill(Stage stage, const WalkTag& tag, std::uint64_t input, const CachedTable& table) override {
    caches_->fill_table(stage, tag, input, table, epoch_);
  }
  std::optional<CachedStage2Leaf> find_stage2_leaf(const WalkTag& tag, Gpa address) override {
    return caches_->find_stage2_leaf(tag, address);
  }
  void fill_stage2_leaf(const WalkTag& tag, Gpa address, const CachedStage2Leaf& leaf) override {
    caches_->fill_stage2_leaf(tag, address, leaf, epoch_);
  }

 private:
  TranslationCaches* caches_;
  Epoch epoch_ = 0;
};

}  // namespace iommu
