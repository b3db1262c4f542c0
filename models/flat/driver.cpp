// SPDX-License-Identifier: Apache-2.0
#include "models/flat/driver.hpp"

#include <algorithm>

#include "sim/base/check.hpp"

namespace iommu::flat {

namespace {
RegisterStep write_of(std::uint64_t offset, unsigned bytes, std::uint64_t value) {
  return {.write = RegisterWrite{offset, bytes, value}, .poll = std::nullopt};
}
RegisterStep read_of(std::uint64_t offset, unsigned bytes, std::uint64_t mask, std::uint64_t value) {
  return {.write = std::nullopt, .poll = RegisterPoll{offset, bytes, mask, value}};
}
}  // namespace

// TCE -----------------------------------------------------------------------------------------------------------------

std::unique_ptr<PageTable> TceDriver::create_table(TableKind, TableMemory& memory) {
  const auto table = memory.allocate(table_pages_lg2(window_, TceFormat::kEntryBytes));
  if (!table) return nullptr;
  return std::make_unique<FlatTable<TceFormat>>(window_, *table, 0, memory, TableOwner::Caller);
}

std::unique_ptr<PageTable> TceDriver::view_table(TableKind, TableRoot root, TableMemory& memory) {
  return std::make_unique<FlatTable<TceFormat>>(Window{0, root.input_bits}, root.address, 0, memory, TableOwner::Unit);
}

std::optional<std::vector<RegisterWrite>> TceDriver::bring_up(TableMemory& memory) {
  const auto table = memory.allocate();
  if (!table) return std::nullopt;
  bus_table_ = *table;
  const std::uint64_t value = with<kBusTable, "enable">(with<kBusTable, "address">(0, *table >> kPageLg2), 1);
  return std::vector{RegisterWrite{kBusTableRegister, 8, value}};
}

TableEdit TceDriver::write_tar(unsigned bus, std::uint64_t value, TableMemory& memory) const {
  TableEdit edit;
  const std::uint64_t at = bus_table_ + sizeof(std::uint64_t) * bus;
  edit.modified = get<kTar, "valid">(memory.read64(at)) != 0;
  edit.added = get<kTar, "valid">(value) != 0;
  memory.write64(at, value);
  edit.entries_written = edit.lines_touched = 1;
  return edit;
}

bool TceDriver::maps_something(TableRoot table, TableMemory& memory) const {
  const FlatTable<TceFormat> view(Window{0, table.input_bits}, table.address, 0, memory, TableOwner::Unit);
  bool any = false;
  view.for_each_leaf({}, [&](const MappedLeaf&) { any = true; });
  return any;
}

TableEdit TceDriver::attach(RequesterId requester, const ContextSetting& setting, TableMemory& memory) {
  Bus& bus = buses_[requester.bus()];
  for (const auto& [other, user] : bus.users)
    if (other != requester && !(user.table == setting.stage2) && maps_something(user.table, memory)) {
      TableEdit refused;
      refused.status = EditStatus::AlreadyMapped;
      return refused;
    }
  bus.users[requester] = {setting.stage2, setting.domain};
  bus.tag = setting.domain;
  std::uint64_t tar = with<kTar, "address">(0, setting.stage2.address >> field_of<kTar, "address">.lsb);
  tar = with<kTar, "size">(tar, setting.stage2.input_bits - kSmallestTceWindowLg2);
  return write_tar(requester.bus(), with<kTar, "valid">(tar, 1), memory);
}

// A bus that loses a device is closed for those that stay, unless they use the same table: it cannot tell them apart.
TableEdit TceDriver::detach(RequesterId requester, TableMemory& memory) {
  Bus& bus = buses_[requester.bus()];
  const auto found = bus.users.find(requester);
  if (found == bus.users.end()) return {};
  const User gone = found->second;
  bus.users.erase(found);
  const bool shared =
      std::ranges::any_of(bus.users, [&](const auto& other) { return other.second.table == gone.table; });
  return shared ? TableEdit{} : write_tar(requester.bus(), 0, memory);
}

std::vector<InvalidationScope> TceDriver::context_scopes(RequesterId requester, std::optional<ContextSetting>) const {
  return {{.kind = InvalidationKind::Context, .requester = requester}};
}

// [Linux 5.3 pci-calgary_64.c calgary_tce_cache_blast for a whole bus; 6.6 pci-ioda.c pnv_pci_phb3_tce_invalidate for
// pages]
std::vector<RegisterStep> TceDriver::invalidation_steps(const InvalidationScope& scope) const {
  std::vector<RegisterStep> steps;
  const auto flush_bus = [&](unsigned bus) {
    steps.push_back(write_of(kArbiterRegister, 4, 0));
    steps.push_back(read_of(kBridgeStatusRegister, 4, 0, 0));
    steps.push_back(write_of(kTarRegister + 8ULL * bus, 8, 0));
    steps.push_back(read_of(kSplitQueueRegister, 8, kQueuesIdle, kQueuesIdle));
    steps.push_back(write_of(kArbiterRegister, 4, 0xffff));
    steps.push_back(read_of(kArbiterRegister, 4, 0, 0));
  };
  if (scope.kind == InvalidationKind::Context && scope.requester) flush_bus(scope.requester->bus());
  if (scope.kind != InvalidationKind::Iotlb) return steps;
  for (const auto& [bus, state] : buses_) {
    if (scope.domain && state.tag != *scope.domain) continue;
    if (!scope.range) {
      flush_bus(bus);
      continue;
    }
    for (std::uint64_t page = scope.range->first >> kPageLg2; page <= scope.range->last >> kPageLg2; ++page) {
      const std::uint64_t value = with<kKill, "PE">(with<kKill, "address">(with<kKill, "ONE">(0, 1), page), bus);
      steps.push_back(write_of(kKillRegister, 8, value));
      steps.push_back(read_of(kSplitQueueRegister, 8, kQueuesIdle, kQueuesIdle));
    }
  }
  return steps;
}

// GART ----------------------------------------------------------------------------------------------------------------

std::unique_ptr<PageTable> GartDriver::create_table(TableKind, TableMemory& memory) {
  SIM_CHECK(table_ != 0, "the unit is up before anybody maps");
  return std::make_unique<FlatTable<GartFormat>>(window_, table_, unmapped_, memory, TableOwner::Unit);
}

std::unique_ptr<PageTable> GartDriver::view_table(TableKind kind, TableRoot, TableMemory& memory) {
  return create_table(kind, memory);
}

// [Linux 5.3 amd_gart_64.c init_amd_gatt, gart_iommu_init; asm/gart.h enable_gart_translation]
std::optional<std::vector<RegisterWrite>> GartDriver::bring_up(TableMemory& memory) {
  const auto scratch = memory.allocate();
  const auto table = memory.allocate(table_pages_lg2(window_, GartFormat::kEntryBytes));
  if (!scratch || !table || !GartFormat::can_hold(*table)) return std::nullopt;
  table_ = *table;
  unmapped_ = GartFormat::encode({*scratch, kReadWrite});
  for (std::uint64_t at = 0; at < window_.entries() * GartFormat::kEntryBytes; at += sizeof(std::uint64_t))
    memory.write64(table_ + at, unmapped_ << 32 | unmapped_);
  std::uint64_t control = with<kApertureControl, "order">(0, window_.size_lg2 - kSmallestApertureLg2);
  control = with<kApertureControl, "DISTLBWALKPRB">(with<kApertureControl, "GARTEN">(control, 1), 1);
  return std::vector{
      RegisterWrite{kApertureBaseRegister, 4, with<kApertureBase, "base">(0, window_.first >> kSmallestApertureLg2)},
      RegisterWrite{kTableBaseRegister, 4, with<kTableBase, "address">(0, table_ >> kPageLg2)},
      RegisterWrite{kApertureControlRegister, 4, control}};
}

// Everything or nothing. [Linux 5.3 amd_nb.c amd_flush_garts]
std::vector<RegisterStep> GartDriver::invalidation_steps(const InvalidationScope& scope) const {
  if (scope.kind != InvalidationKind::Iotlb) return {};
  return {write_of(kCacheControlRegister, 4, pack<kCacheControl>({{"INVGART", 1}})),
          read_of(kCacheControlRegister, 4, mask_of<kCacheControl, "INVGART">, 0)};
}

}  // namespace iommu::flat
