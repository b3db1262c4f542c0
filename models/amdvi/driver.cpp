// SPDX-License-Identifier: Apache-2.0
#include "models/amdvi/driver.hpp"

#include <algorithm>
#include <bit>

#include "sim/base/check.hpp"
#include "sim/translation/table_editor.hpp"

namespace iommu::amdvi {

namespace {
constexpr unsigned kDeviceTablePagesLg2 = 9;  // 2^16 entries of 32 bytes
constexpr unsigned kLargestRingLg2 = 15;      // the largest Len
constexpr unsigned kEventLogLg2 = 9;          // entries, as Xen and Linux have it [xen IOMMU_EVENT_LOG_DEFAULT_ENTRIES]
constexpr unsigned kEntriesPerPageLg2 = 8;

constexpr unsigned ring_pages_lg2(unsigned entries_lg2) { return entries_lg2 - kEntriesPerPageLg2; }
std::uint64_t ring_base(std::uint64_t address, unsigned entries_lg2) {
  return with<kRingBase, "Len">(address, entries_lg2);
}
}  // namespace

Driver::Driver(const DriverOptions& options) : options_(options), capabilities_(compose(options.features)) {}

// Page tables ---------------------------------------------------------------------------------------------------------

Level Driver::top_level(TableKind kind) const {
  if (kind == TableKind::Stage1)
    return capabilities_.guest_levels > kTopGuestLevel4 + 1U ? kTopGuestLevel5 : kTopGuestLevel4;
  return static_cast<Level>((options_.features.input_address_bits - kPageLg2) / kIndexBits - 1);
}

TableGeometry Driver::geometry(TableKind kind, Level top_level) {
  const unsigned bits = std::min(span_lg2_of(static_cast<Level>(top_level + 1)), 64U);
  return {.top_level = top_level, .input_bits = kind == TableKind::Stage1 ? bits - 1 : bits, .root_pages_lg2 = 0};
}

HostFormat Driver::host_format() const {
  return HostFormat({.output_bits = capabilities_.host_address_bits, .large_pages = options_.features.superpages});
}

GuestFormat Driver::guest_format() const {
  return GuestFormat(
      {.host_address_bits = capabilities_.host_address_bits, .large_pages = options_.features.superpages});
}

std::unique_ptr<PageTable> Driver::create_table(TableKind kind, TableMemory& memory) {
  const TableGeometry shape = geometry(kind, top_level(kind));
  if (kind == TableKind::Stage1) return TableEditor<GuestFormat>::create(guest_format(), shape, memory);
  return TableEditor<HostFormat>::create(host_format(), shape, memory);
}

std::unique_ptr<PageTable> Driver::view_table(TableKind kind, TableRoot root, TableMemory& memory) {
  SIM_CHECK(root.top_level <= kTopHostLevel, "roots come from decoded contexts");
  const TableGeometry shape = geometry(kind, root.top_level);
  if (kind == TableKind::Stage1) return TableEditor<GuestFormat>::view(guest_format(), root, shape, memory);
  return TableEditor<HostFormat>::view(host_format(), root, shape, memory);
}

std::uint64_t Driver::page_sizes(TableKind kind) const {
  std::uint64_t sizes = 0;
  for (Level level = 0; level <= kTopHostLevel; ++level) {
    const bool leaf = kind == TableKind::Stage1 ? guest_format().can_be_leaf(level) : host_format().can_be_leaf(level);
    if (leaf) sizes |= 1ULL << span_lg2_of(level);
  }
  return sizes;
}

std::uint64_t Driver::max_input(TableKind kind) const {
  return bits_between(0, geometry(kind, top_level(kind)).input_bits);
}

// Bring-up ------------------------------------------------------------------------------------------------------------

// [xen/drivers/passthrough/amd/iommu_init.c, enable_iommu; linux drivers/iommu/amd/init.c, early_enable_iommu]
std::optional<std::vector<RegisterWrite>> Driver::bring_up(TableMemory& memory) {
  const std::uint32_t wanted = std::max(options_.features.command_ring_entries, 1U << kSmallestRingLg2);
  const unsigned ring_lg2 = std::min(static_cast<unsigned>(std::bit_width(wanted - 1)), kLargestRingLg2);
  const std::array pages_lg2{kDeviceTablePagesLg2, ring_pages_lg2(ring_lg2), ring_pages_lg2(kEventLogLg2)};
  std::array<std::uint64_t, pages_lg2.size()> blocks{};
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const auto block = memory.allocate(pages_lg2[i]);
    if (!block) {
      while (i-- > 0) memory.release(blocks[i], pages_lg2[i]);
      return std::nullopt;
    }
    blocks[i] = *block;
  }
  const auto [device_table, commands, events] = blocks;
  device_table_ = device_table;
  constexpr std::uint64_t kBlocked = mask_of<kDeviceTableEntry, "V">;
  for (std::uint64_t device = 0; device < 1U << 16; ++device)
    memory.write64(device_table_ + device * kDeviceTableEntryBytes, kBlocked);
  ring_ = {.base = commands,
           .entries = 1U << ring_lg2,
           .entry_bytes = kRingEntryBytes,
           .full = FullRule::OneFree,
           .tail_register = offset::kCommandTail,
           .head_register = offset::kCommandHead,
           .fence_bytes = sizeof(std::uint64_t)};

  constexpr std::uint64_t kSize = field_of<kDeviceTableBase, "Size">.value_mask();
  const std::uint64_t rings_on = pack<kControl>({{"EventLogEn", 1}, {"CmdBufEn", 1}});
  const std::uint64_t on = rings_on | pack<kControl>({{"IommuEn", 1}, {"GTEn", options_.stage1 ? 1U : 0U}});
  return std::vector<RegisterWrite>{
      {.offset = offset::kDeviceTableBase, .value = with<kDeviceTableBase, "Size">(device_table_, kSize)},
      {.offset = offset::kCommandBase, .value = ring_base(commands, ring_lg2)},
      {.offset = offset::kEventBase, .value = ring_base(events, kEventLogLg2)},
      {.offset = offset::kCommandHead, .value = 0},
      {.offset = offset::kCommandTail, .value = 0},
      {.offset = offset::kEventHead, .value = 0},
      {.offset = offset::kEventTail, .value = 0},
      {.offset = offset::kControl, .value = on},
  };
}

}  // namespace iommu::amdvi
