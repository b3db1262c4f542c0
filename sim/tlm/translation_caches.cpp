// SPDX-License-Identifier: Apache-2.0
#include "sim/tlm/translation_caches.hpp"

#include <algorithm>
#include <utility>

namespace iommu {

namespace {

// How much of the address space a pointer to a table of this level is taken to cover: the least that any 4 KiB or
// larger granule covers. Covering less than the table does costs reach, never correctness.
constexpr std::uint8_t table_lg2(Level level) { return static_cast<std::uint8_t>(kPageLg2 + 9 * (level + 1)); }

BlockKey block(const WalkTag& tag, std::uint64_t address, std::uint8_t lg2, bool is_leaf = true) {
  return {tag, address >> lg2, lg2, is_leaf};
}

// Of a final translation.
BlockKey leaf(const WalkTag& tag, std::uint64_t address, std::uint8_t lg2, bool is_global) {
  if (!is_global || !tag.asid) return block(tag, address, lg2);
  return {{tag.domain, std::nullopt, tag.mode}, address >> lg2, lg2, true, true};
}

ContextKey who_is(const TranslationRequest& request, const WalkTag& tag = {}) {
  return {request.requester, request.pasid, tag};
}

// Entries in reach of a scope: those of the sets that its pages fall into, or all.
std::uint32_t examined(const CacheShape& shape, const InvalidationScope& scope) {
  if (!scope.range || shape.entries == 0) return shape.entries;
  const std::uint64_t pages = (scope.range->last >> kPageLg2) - (scope.range->first >> kPageLg2) + 1;
  const std::uint64_t sets = std::min<std::uint64_t>(pages == 0 ? shape.sets() : pages, shape.sets());
  return static_cast<std::uint32_t>(sets) * shape.associativity();
}

// Ghosts outnumber the entries that can be removed at once, so that a flush of everything is remembered whole.
CacheShape ghost_shape(const IommuParameters& parameters) {
  const std::uint32_t wanted = 4 * (parameters.iotlb.entries + parameters.iotlb_large.entries);
  return {.entries = std::bit_ceil(std::clamp(wanted, 64U, 1U << 16U)), .ways = 4};
}

}  // namespace

TranslationCaches::TranslationCaches(const IommuParameters& parameters, std::uint64_t seed, IommuStatistics& statistics)
    : statistics_(statistics),
      contexts_(parameters.context_cache, seed + 1),
      iotlb_(parameters.iotlb, seed + 2),
      large_(parameters.iotlb_large, seed + 3),
      has_large_(parameters.iotlb_large.entries != 0),
      has_first_level_(parameters.first_level.entries != 0),
      has_port_tlb_(parameters.port_tlb.entries != 0),
      leaves_(parameters.stage2_leaf_cache, seed + 4),
      ghosts_(ghost_shape(parameters), seed + 5) {
  for (std::size_t level = 0; level < IommuParameters::kLevels; ++level) {
    stage1_.emplace_back(parameters.stage1_walk_cache[level], seed + 8 + level);
    stage2_.emplace_back(parameters.stage2_walk_cache[level], seed + 16 + level);
    has_tables_[0] = has_tables_[0] || parameters.stage1_walk_cache[level].entries != 0;
    has_tables_[1] = has_tables_[1] || parameters.stage2_walk_cache[level].entries != 0;
  }
  for (std::uint32_t port = 0; port < parameters.ports; ++port)
    ports_.push_back(
        {.first_level = {parameters.first_level, seed + 32 + port}, .main = {parameters.port_tlb, seed + 512 + port}});
}

const Context* TranslationCaches::find_context(const TranslationRequest& request) {
  const Context* found = contexts_.find(who_is(request));
  ++(found != nullptr ? statistics_.contexts.hits : statistics_.contexts.misses);
  return found;
}

void TranslationCaches::fill_context(const TranslationRequest& request, const Context& context, Epoch began) {
  const bool filled = contexts_.fill(who_is(request, context.context_tag()), context, began);
  ++(filled ? statistics_.contexts.fills : statistics_.contexts.fills_dropped);
}

const CachedTranslation* TranslationCaches::find_tagged(const WalkTag& tag, Iova address) {
  return sizes_.first([&](std::uint8_t lg2) -> const CachedTranslation* {
    return cache_for(lg2).find(block(tag, address.value(), lg2));
  });
}

const CachedTranslation* TranslationCaches::find_global(const WalkTag& tag, Iova address) {
  return sizes_.first([&](std::uint8_t lg2) -> const CachedTranslation* {
    return cache_for(lg2).find(leaf(tag, address.value(), lg2, true));
  });
}

void TranslationCaches::fill(const WalkTag& tag, Iova address, const CachedTranslation& translation, Epoch began) {
  const std::uint8_t lg2 = translation.page_lg2;
  const BlockKey key = leaf(tag, address.value(), lg2, translation.attributes.is_global);
  const bool filled = cache_for(lg2).fill(key, translation, began);
  if (filled) sizes_.add(lg2);
  has_globals_ = has_globals_ || (filled && key.is_global);
  ++(filled ? statistics_.iotlb.fills : statistics_.iotlb.fills_dropped);
}

const CachedTranslation* TranslationCaches::find_at(PortTlb& tlb, const TranslationRequest& request,
                                                    CacheCounts& counts) {
  const auto* found = port_sizes_.first([&](std::uint8_t lg2) -> const CachedTranslation* {
    return tlb.find({who_is(request), request.address.value() >> lg2, lg2});
  });
  ++(found != nullptr ? counts.hits : counts.misses);
  return found;
}

const CachedTranslation* TranslationCaches::find_port_tlb(std::uint8_t port, const TranslationRequest& request) {
  PortTlbs& tlbs = port_of(port);
  const auto* found = find_at(tlbs.main, request, statistics_.port_tlb);
  if (found == nullptr || !has_first_level_) return found;
  const std::uint8_t lg2 = found->page_lg2;
  const RequesterBlockKey wanted{who_is(request), request.address.value() >> lg2, lg2};
  tlbs.first_level.fill(*tlbs.main.stored_key(wanted), *found, tlbs.first_level.epoch());
  ++statistics_.first_level.fills;
  return found;
}

void TranslationCaches::fill_port(std::uint8_t port, const TranslationRequest& request, const WalkTag& tag,
                                  const CachedTranslation& translation, Epoch began) {
  const std::uint8_t lg2 = translation.page_lg2;
  const RequesterBlockKey key{who_is(request, tag), request.address.value() >> lg2, lg2,
                              translation.attributes.is_global};
  PortTlbs& tlbs = port_of(port);
  const auto fill = [&](PortTlb& tlb, CacheCounts& counts) {
    const bool filled = tlb.fill(key, translation, began);
    if (filled) port_sizes_.add(lg2);
    ++(filled ? counts.fills : counts.fills_dropped);
  };
  if (has_first_level_) fill(tlbs.first_level, statistics_.first_level);
  if (has_port_tlb_) fill(tlbs.main, statistics_.port_tlb);
}

CachedTranslation* TranslationCaches::peek(const WalkTag& tag, Iova address) {
  return sizes_.first([&](std::uint8_t lg2) -> CachedTranslation* {
    CachedTranslation* own = cache_for(lg2).peek(block(tag, address.value(), lg2));
    return own != nullptr || !has_globals_ ? own : cache_for(lg2).peek(leaf(tag, address.value(), lg2, true));
  });
}

void TranslationCaches::count_first_use(const WalkTag& tag, Iova address) {
  if (CachedTranslation* found = peek(tag, address); found != nullptr && std::exchange(found->is_untried, false))
    ++statistics_.prefetch_used;
}

// The IOTLB's copy, where it still is, knows whether another port was first.
void TranslationCaches::count_first_use(std::uint8_t port, const TranslationRequest& request) {
  PortTlbs& tlbs = port_of(port);
  std::optional<WalkTag> tag;
  (void)port_sizes_.first([&](std::uint8_t lg2) -> CachedTranslation* {
    const RequesterBlockKey key{who_is(request), request.address.value() >> lg2, lg2};
    for (PortTlb* tlb : {&tlbs.first_level, &tlbs.main}) {
      CachedTranslation* copy = tlb->peek(key);
      if (copy == nullptr) continue;
      copy->is_untried = false;
      tag = tlb->stored_key(key)->who.tag;
    }
    return nullptr;
  });
  if (tag && peek(*tag, request.address) != nullptr) return count_first_use(*tag, request.address);
  ++statistics_.prefetch_used;
}

bool TranslationCaches::holds(std::uint8_t port, const TranslationRequest& request, const WalkTag& tag) const {
  const std::uint64_t address = request.address.value();
  const PortTlbs& tlbs = ports_[port % ports_.size()];
  const auto at_port = [&](std::uint8_t lg2) { return tlbs.main.peek({who_is(request), address >> lg2, lg2}); };
  const auto shared = [&](std::uint8_t lg2) {
    const TranslationCache& cache = has_large_ && lg2 >= kLargeLg2 ? large_ : iotlb_;
    const auto* own = cache.peek(block(tag, address, lg2));
    return own != nullptr || !has_globals_ ? own : cache.peek(leaf(tag, address, lg2, true));
  };
  return port_sizes_.first(at_port) != nullptr || sizes_.first(shared) != nullptr;
}

bool TranslationCaches::was_removed_needlessly(const WalkTag& tag, Iova address, const Translation& translation) {
  Ghost* ghost = ghosts_.find(leaf(tag, address.value(), translation.page_lg2, translation.attributes.is_global));
  if (ghost == nullptr || !ghost->is_live) return false;
  ghost->is_live = false;
  const CachedTranslation now = CachedTranslation::of(translation);
  return ghost->translation.page == now.page && ghost->translation.allowed == now.allowed;
}

void TranslationCaches::erase(const InvalidationScope& scope) {
  const bool is_context = scope.kind == InvalidationKind::Context || scope.kind == InvalidationKind::ProcessContext;
  if (!is_context && scope.kind != InvalidationKind::Iotlb) return;
  // Entries of ports carry the address space of stage 1, which need not be what the process table is indexed by.
  InvalidationScope port_scope = scope;
  if (scope.kind == InvalidationKind::ProcessContext) port_scope.asid.reset();
  for (PortTlbs& tlbs : ports_) {
    statistics_.first_level.erased += tlbs.first_level.erase(port_scope);
    statistics_.port_tlb.erased += tlbs.main.erase(port_scope);
  }
  if (is_context) {
    statistics_.contexts.erased += contexts_.erase(scope);
    return;
  }
  const auto remember = [this](const BlockKey& key, const CachedTranslation& translation) {
    ghosts_.fill(key, {translation, true}, ghosts_.epoch());
  };
  statistics_.iotlb.erased += iotlb_.erase(scope, remember) + large_.erase(scope, remember);
  for (const Stage stage : {Stage::Stage1, Stage::Stage2})
    for (std::size_t level = 0; level < IommuParameters::kLevels; ++level)
      counts_of(stage)[level].erased += tables_of(stage)[level].erase(scope);
  statistics_.stage2_leaf_cache.erased += leaves_.erase(scope);
}

std::uint32_t TranslationCaches::entries_examined(const InvalidationScope& scope) const {
  if (scope.kind == InvalidationKind::Context || scope.kind == InvalidationKind::ProcessContext)
    return std::max(contexts_.shape().entries, ports_.front().main.shape().entries);
  if (scope.kind != InvalidationKind::Iotlb) return 0;
  std::uint32_t most = std::max(examined(iotlb_.shape(), scope), examined(large_.shape(), scope));
  most = std::max({most, examined(leaves_.shape(), scope), examined(ports_.front().main.shape(), scope)});
  if (scope.leaf_only) return most;
  for (std::size_t level = 0; level < IommuParameters::kLevels; ++level)
    most = std::max({most, examined(stage1_[level].shape(), scope), examined(stage2_[level].shape(), scope)});
  return most;
}

std::optional<CachedTable> TranslationCaches::deepest(Stage stage, const WalkTag& tag, std::uint64_t input) {
  if (!has_tables_[stage == Stage::Stage1 ? 0 : 1]) return std::nullopt;
  auto& tables = tables_of(stage);
  auto& counts = counts_of(stage);
  for (std::size_t level = 0; level < tables.size(); ++level) {
    if (tables[level].shape().entries == 0) continue;
    const auto* found = tables[level].find(block(tag, input, table_lg2(static_cast<Level>(level)), false));
    ++(found != nullptr ? counts[level].hits : counts[level].misses);
    if (found != nullptr) return *found;
  }
  return std::nullopt;
}

void TranslationCaches::fill_table(Stage stage, const WalkTag& tag, std::uint64_t input, const CachedTable& table,
                                   Epoch began) {
  if (table.level >= IommuParameters::kLevels) return;
  TableCache& cache = tables_of(stage)[table.level];
  if (cache.shape().entries == 0) return;
  CacheCounts& counts = counts_of(stage)[table.level];
  const bool filled = cache.fill(block(tag, input, table_lg2(table.level), false), table, began);
  ++(filled ? counts.fills : counts.fills_dropped);
}

std::optional<CachedStage2Leaf> TranslationCaches::find_stage2_leaf(const WalkTag& tag, Gpa address) {
  if (leaves_.shape().entries == 0) return std::nullopt;
  const auto* found = leaf_sizes_.first(
      [&](std::uint8_t lg2) -> const CachedStage2Leaf* { return leaves_.find(block(tag, address.value(), lg2)); });
  ++(found != nullptr ? statistics_.stage2_leaf_cache.hits : statistics_.stage2_leaf_cache.misses);
  return found != nullptr ? std::optional(*found) : std::nullopt;
}

void TranslationCaches::fill_stage2_leaf(const WalkTag& tag, Gpa address, const CachedStage2Leaf& leaf, Epoch began) {
  if (leaves_.shape().entries == 0) return;
  const bool filled = leaves_.fill(block(tag, address.value(), leaf.page_lg2), leaf, began);
  if (filled) leaf_sizes_.add(leaf.page_lg2);
  ++(filled ? statistics_.stage2_leaf_cache.fills : statistics_.stage2_leaf_cache.fills_dropped);
}

}  // namespace iommu
