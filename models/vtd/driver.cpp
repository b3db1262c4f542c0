// SPDX-License-Identifier: Apache-2.0
#include "models/vtd/driver.hpp"

#include <algorithm>
#include <bit>

#include "sim/base/check.hpp"
#include "sim/translation/table_editor.hpp"

namespace iommu::vtd {

namespace {
constexpr unsigned kNarrowBytes = 16, kWideBytes = 32;
constexpr unsigned kMaxQueuePagesLg2 = 7;  // the largest IQA_REG.QS

constexpr std::uint64_t page_size_mask(Level level) { return 1ULL << span_lg2_of(level); }
}  // namespace

Driver::Driver(const DriverOptions& options) : options_(options), capabilities_(compose(options.features)) {}

// Page tables ---------------------------------------------------------------------------------------------------------

Level Driver::top_level(TableKind kind) const {
  if (kind == TableKind::Stage1) return capabilities_.five_level_first_stage ? kTopLevel5 : kTopLevel4;
  return static_cast<Level>((capabilities_.max_input_bits - kPageLg2) / kIndexBits - 1);
}

TableGeometry Driver::geometry(TableKind kind, Level top_level) {
  const unsigned bits = span_lg2_of(static_cast<Level>(top_level + 1));
  return {.top_level = top_level, .input_bits = kind == TableKind::Stage1 ? bits - 1 : bits, .root_pages_lg2 = 0};
}

SecondStageFormat Driver::second_stage() const {
  return SecondStageFormat({.host_address_bits = capabilities_.host_address_bits,
                            .large_pages = capabilities_.large_pages,
                            .snoop_control = capabilities_.snoop_control,
                            .device_tlb = capabilities_.device_tlb});
}

FirstStageFormat Driver::first_stage() const {
  return FirstStageFormat(
      {.host_address_bits = capabilities_.host_address_bits, .one_gib_pages = capabilities_.one_gib_first_stage});
}

std::unique_ptr<PageTable> Driver::create_table(TableKind kind, TableMemory& memory) {
  const TableGeometry shape = geometry(kind, top_level(kind));
  if (kind == TableKind::Stage1) return TableEditor<FirstStageFormat>::create(first_stage(), shape, memory);
  return TableEditor<SecondStageFormat>::create(second_stage(), shape, memory);
}

std::unique_ptr<PageTable> Driver::view_table(TableKind kind, TableRoot root, TableMemory& memory) {
  SIM_CHECK(root.top_level <= kTopLevel5, "roots come from decoded contexts");
  const TableGeometry shape = geometry(kind, root.top_level);
  if (kind == TableKind::Stage1) return TableEditor<FirstStageFormat>::view(first_stage(), root, shape, memory);
  return TableEditor<SecondStageFormat>::view(second_stage(), root, shape, memory);
}

std::uint64_t Driver::page_sizes(TableKind kind) const {
  std::uint64_t sizes = 0;
  for (Level level = 0; level <= kLargestLeafLevel; ++level) {
    const bool leaf = kind == TableKind::Stage1 ? first_stage().can_be_leaf(level) : second_stage().can_be_leaf(level);
    if (leaf) sizes |= page_size_mask(level);
  }
  return sizes;
}

std::uint64_t Driver::max_input(TableKind kind) const {
  return bits_between(0, geometry(kind, top_level(kind)).input_bits);
}

// Bring-up ------------------------------------------------------------------------------------------------------------

// Queue first, so that the root-table pointer is set with queued invalidation on. [GCMD_REG.SRTP; linux
// drivers/iommu/intel/iommu.c, init_dmars]
std::optional<std::vector<RegisterWrite>> Driver::bring_up(TableMemory& memory) {
  const unsigned entry_bytes = is_scalable() ? kWideBytes : kNarrowBytes;
  const std::uint64_t wanted = std::uint64_t{options_.features.command_ring_entries} * entry_bytes;
  const auto queue_lg2 = std::min<unsigned>(
      kMaxQueuePagesLg2, static_cast<unsigned>(std::bit_width(std::max(wanted, kPageSize.value()) - 1)) - kPageLg2);
  const auto root = memory.allocate();
  if (!root) return std::nullopt;
  const auto queue = memory.allocate(queue_lg2);
  if (!queue) {
    memory.release(*root);
    return std::nullopt;
  }
  root_table_ = *root;
  ring_ = {.base = *queue,
           .entries = static_cast<std::uint32_t>((kPageSize.value() << queue_lg2) / entry_bytes),
           .entry_bytes = entry_bytes,
           .full = FullRule::OneFree,
           .tail_register = offset::kIqt,
           .head_register = offset::kIqh};

  std::uint64_t queue_address = *queue;
  queue_address = with<kIqa, "QS">(queue_address, queue_lg2);
  queue_address = with<kIqa, "DW">(queue_address, is_scalable() ? 1 : 0);
  const auto mode = static_cast<std::uint64_t>(is_scalable() ? TableMode::Scalable : TableMode::Legacy);
  // A command register write repeats what stays enabled.
  const std::uint64_t queue_on = pack<kGcmd>({{"QIE", 1}});
  return std::vector<RegisterWrite>{
      {.offset = offset::kIqt, .bytes = 8, .value = 0},
      {.offset = offset::kIqa, .bytes = 8, .value = queue_address},
      {.offset = offset::kGcmd, .bytes = 4, .value = queue_on},
      {.offset = offset::kRtaddr, .bytes = 8, .value = with<kRtaddr, "TTM">(*root, mode)},
      {.offset = offset::kGcmd, .bytes = 4, .value = queue_on | mask_of<kGcmd, "SRTP">},
      {.offset = offset::kGcmd, .bytes = 4, .value = queue_on | mask_of<kGcmd, "TE">},
  };
}

CommandRing Driver::ring() const { return ring_; }

std::uint64_t Driver::tail_value(std::uint32_t index) const { return std::uint64_t{index} * ring_.entry_bytes; }

}  // namespace iommu::vtd
