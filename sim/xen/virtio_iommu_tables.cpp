// SPDX-License-Identifier: Apache-2.0
// Requests about tables of the driver's own. Where the proposal leaves a choice: reserved bytes and unknown flags are
// INVAL; a format that is not the unit's, and anything about requests with PASID, UNSUPP; of a device table entry only
// what a guest may decide is used.
#include <bit>

#include "sim/xen/virtio_iommu.hpp"

namespace iommu::xen {

namespace {
using virtio::InvalidateScope;

constexpr unsigned kLevelLg2 = 9;

bool is_zero(std::span<const std::uint64_t> words) {
  return std::ranges::all_of(words, [](std::uint64_t word) { return word == 0; });
}

// nullopt: no tree of pages of 512 entries is so wide.
std::optional<Level> top_level_of(std::uint64_t width) {
  if (width <= kPageLg2 || width > 64 || (width - kPageLg2) % kLevelLg2 != 0) return std::nullopt;
  return static_cast<Level>((width - kPageLg2) / kLevelLg2 - 1);
}
}  // namespace

VirtioIommu::Tables VirtioIommu::tables_of(const virtio::AttachTableRequest& request) const {
  const TableBinding& binding = *setting_.tables.binding;
  if (request.format != binding.format) return {Status::Unsupported};
  if (request.reserved != decltype(request.reserved){} || request.reserved1 != 0) return {};
  const std::span<const std::uint64_t> words(request.words);
  if (binding.is_entry != nullptr) {
    const std::array entry{words[0], words[1]};
    if (!binding.is_entry(entry) || !is_zero(words.subspan(entry.size()))) return {};
    return {Status::Ok, {.entry = entry}};
  }
  const virtio::PageTableWords table{words[0], words[1], words[2]};
  const auto top_level = top_level_of(table.width);
  if (table.flags != 0 || !top_level || !is_zero(words.subspan(3))) return {};
  if (table.address % kPageSize.value() != 0 || table.address > spaces_.last_input()) return {};
  return {Status::Ok, {.root = {.address = table.address, .top_level = *top_level}}};
}

Task<std::uint32_t> VirtioIommu::serve_attach_table(CpuPort& cpu, virtio::Chain chain) {
  const auto request = parse<virtio::AttachTableRequest>(chain);
  if (!request) co_return 0;
  const Tables tables = tables_of(*request);
  Status status = tables.status;
  if (status == Status::Ok)
    status = co_await spaces_.attach(cpu, request->domain, request->endpoint, SpaceKind::Tables, tables.stage1);
  co_return finish(chain, status);
}

VirtioIommu::Scopes VirtioIommu::pages_of(const virtio::InvalidateRequest& request, InvalidationScope scope) const {
  if (request.caches != virtio::kInvalidateTlb || request.pages == 0 || request.page_lg2 >= 64) return {};
  if ((spaces_.table_page_sizes() >> request.page_lg2 & 1) == 0) return {};
  const std::uint64_t last_page = request.pages - 1;
  const std::uint64_t room = ~request.address >> request.page_lg2;  // pages that follow the first one
  const std::uint64_t inside = (1ULL << request.page_lg2) - 1;
  if ((request.address & inside) != 0 || last_page > room) return {Status::Range};
  scope.range = AddressRange{request.address, request.address + (last_page << request.page_lg2) + inside};
  scope.leaf_only = (request.flags & virtio::kInvalidateLeaf) != 0;
  return {Status::Ok, {scope}};
}

VirtioIommu::Scopes VirtioIommu::scopes_of(const virtio::InvalidateRequest& request) const {
  constexpr std::uint16_t kFlags = virtio::kInvalidateLeaf | virtio::kInvalidateById | virtio::kInvalidateGlobal;
  constexpr std::uint8_t kCaches = virtio::kInvalidatePasidCache | virtio::kInvalidateTlb;
  const auto kind = static_cast<InvalidateScope>(request.scope);
  if (kind == InvalidateScope::Pasid || (request.flags & virtio::kInvalidateByPasid) != 0) return {Status::Unsupported};
  if ((request.flags & ~kFlags) != 0 || (request.caches & ~kCaches) != 0) return {};
  if (request.reserved != decltype(request.reserved){}) return {};
  const TableBinding& binding = *setting_.tables.binding;
  const bool by_id = (request.flags & virtio::kInvalidateById) != 0;
  if (by_id && (binding.asid || request.id > ~std::uint32_t{0})) return {};
  InvalidationScope scope{.kind = InvalidationKind::Iotlb, .asid = binding.asid};
  if (by_id) scope.asid = AsidTag(static_cast<std::uint32_t>(request.id));
  scope.stage1_only = !scope.asid;
  scope.global_pages = (request.flags & virtio::kInvalidateGlobal) != 0;
  if (kind == InvalidateScope::Address) return pages_of(request, scope);
  if (kind != InvalidateScope::Domain || request.caches == 0) return {};
  Scopes result{Status::Ok};
  // What process tables lead to goes with them.
  if ((request.caches & virtio::kInvalidatePasidCache) != 0)
    result.scopes.push_back({.kind = InvalidationKind::ProcessContext, .asid = binding.asid});
  result.scopes.push_back(scope);
  return result;
}

Task<std::uint32_t> VirtioIommu::serve_invalidate(CpuPort& cpu, virtio::Chain chain) {
  const auto request = parse<virtio::InvalidateRequest>(chain);
  if (!request) co_return 0;
  Scopes wanted = scopes_of(*request);
  Status status = wanted.status;
  for (const InvalidationScope& scope : wanted.scopes) counters_.invalidations.count(scope);
  if (status == Status::Ok) status = co_await spaces_.invalidate(cpu, request->domain, std::move(wanted.scopes));
  co_return finish(chain, status);
}

}  // namespace iommu::xen
