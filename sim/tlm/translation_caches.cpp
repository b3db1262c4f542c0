// SPDX-License-Identifier: Apache-2.0
#include "sim/tlm/translation_caches.hpp"

#include <algorithm>

namespace iommu {

namespace {

// How much of the address space a pointer to a table of this level is taken to cover: the least that any 4 KiB or
// larger granule covers. Covering less than the table does costs reach, never correctness.
constexpr std::uint8_t table_lg2(Level level) { return static_cast<std::uint8_t>(kPageLg2 + 9 * (level + 1)); }

BlockKey block(const WalkTag& tag, std::uint64_t address, std::uint8_t lg2, bool is_leaf = true) {
  return {tag, address >> lg2, lg2, is_leaf};
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
      leaves_(parameters.stage2_leaf_cache, seed + 4),
      ghosts_(ghost_shape(parameters), seed + 5) {
  for (std::size_t level = 0; level < IommuParameters::kLevels; ++level) {
    stage1_.emplace_back(parameters.stage1_walk_cache[level], seed + 8 + level);
    stage2_.emplace_back(parameters.stage2_walk_cache[level], seed + 16 + level);
    has_tables_[0] = has_tables_[0] || parameters.stage1_walk_cache[level].entries != 0;
    has_tables_[1] = has_tables_[1] || parameters.stage2_walk_cache[level].entries != 0;
  }
  if (parameters.first_level.entries == 0) return;
  for (std::uint32_t port = 0; port < parameters.first_level_ports; ++port)
    first_level_.emplace_back(parameters.first_level, seed + 32 + port);
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

const CachedTranslation* TranslationCaches::find(const WalkTag& tag, Iova address) {
  return sizes_.first([&](std::uint8_t lg2) -> const CachedTranslation* {
    return cache_for(lg2).find(block(tag, address.value(), lg2));
  });
}

void TranslationCaches::fill(const WalkTag& tag, Iova address, const Translation& translation, Epoch began) {
  const std::uint8_t lg2 = translation.page_lg2;
  const bool filled = cache_for(lg2).fill(block(tag, address.value(), lg2), CachedTranslation::of(translation), began);
  if (filled) sizes_.add(lg2);
  ++(filled ? statistics_.iotlb.fills : statistics_.iotlb.fills_dropped);
}

const CachedTranslation* TranslationCaches::find_first_level(std::uint8_t port, const TranslationRequest& request) {
  FirstLevel& cache = first_level_[port % first_level_.size()];
  const auto* found = first_level_sizes_.first([&](std::uint8_t lg2) -> const CachedTranslation* {
    return cache.find({who_is(request), request.address.value() >> lg2, lg2});
  });
  ++(found != nullptr ? statistics_.first_level.hits : statistics_.first_level.misses);
  return found;
}

void TranslationCaches::fill_first_level(std::uint8_t port, const TranslationRequest& request, const WalkTag& tag,
                                         const CachedTranslation& translation, Epoch began) {
  const std::uint8_t lg2 = translation.page_lg2;
  FirstLevel& cache = first_level_[port % first_level_.size()];
  const bool filled = cache.fill({who_is(request, tag), request.address.value() >> lg2, lg2}, translation, began);
  if (filled) first_level_sizes_.add(lg2);
  ++(filled ? statistics_.first_level.fills : statistics_.first_level.fills_dropped);
}

bool TranslationCaches::was_removed_needlessly(const WalkTag& tag, Iova address, const Translation& translation) {
  Ghost* ghost = ghosts_.find(block(tag, address.value(), translation.page_lg2));
  if (ghost == nullptr || !ghost->is_live) return false;
  ghost->is_live = false;
  const CachedTranslation now = CachedTranslation::of(translation);
  return ghost->translation.page == now.page && ghost->translation.allowed == now.allowed;
}

void TranslationCaches::erase(const InvalidationScope& scope) {
  const bool is_context = scope.kind == InvalidationKind::Context || scope.kind == InvalidationKind::ProcessContext;
  if (!is_context && scope.kind != InvalidationKind::Iotlb) return;
  // First-level entries carry the address space of stage 1, which need not be what the process table is indexed by.
  InvalidationScope first_level_scope = scope;
  if (scope.kind == InvalidationKind::ProcessContext) first_level_scope.asid.reset();
  for (FirstLevel& cache : first_level_) statistics_.first_level.erased += cache.erase(first_level_scope);
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
    return contexts_.shape().entries;
  if (scope.kind != InvalidationKind::Iotlb) return 0;
  std::uint32_t most = std::max(examined(iotlb_.shape(), scope), examined(large_.shape(), scope));
  most = std::max(most, examined(leaves_.shape(), scope));
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
