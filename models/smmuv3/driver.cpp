// SPDX-License-Identifier: Apache-2.0
#include "models/smmuv3/driver.hpp"

#include <algorithm>
#include <bit>

#include "sim/base/check.hpp"
#include "sim/translation/table_editor.hpp"

namespace iommu::smmuv3 {

namespace {
constexpr unsigned kStreamTableSplit = kStreamTableSplits[1];  // 256 entries, a bus, for each second-level table
constexpr unsigned kStreamBits = 16;
constexpr unsigned kConcatenatedLg2 = 4;
constexpr unsigned kOutputQueuePagesLg2 = 0;

TableGeometry geometry_of(Granule granule) {
  const unsigned root = granule.root_lg2();
  return {.top_level = granule.top_level,
          .input_bits = granule.input_bits,
          .root_pages_lg2 = root > kPageLg2 ? root - kPageLg2 : 0,
          .table_pages_lg2 = granule.lg2 - kPageLg2};
}

std::uint64_t queue_base(std::uint64_t address, unsigned entries_lg2) {
  return with<kQueueBase, "RWA">(address | entries_lg2, 1);
}
}  // namespace

Driver::Driver(const DriverOptions& options) : options_(options), capabilities_(compose(options.features)) {
  const std::uint32_t parameters = compose(options.features).queue_parameters;
  if (parameters != 0) queues_.emplace(parameters, options.features.host_rings);
}

std::uint32_t Driver::domain_tags() const {
  return 1U << (capabilities_.wide_vmids ? field_of<kSte, "S2VMID">.width() : kSmallVmidBits);
}

// Page tables ---------------------------------------------------------------------------------------------------------

// Stage 2 starts as low as concatenation lets it, which saves a level, as in Linux. [linux
// drivers/iommu/io-pgtable-arm.c, arm_64_lpae_alloc_pgtable_s2]
Granule Driver::granule(TableKind kind) const {
  const unsigned wanted = options_.features.input_address_bits;
  if (kind == TableKind::Stage1) return Granule::of_stage1(options_.granule_lg2, wanted);
  Granule granule{static_cast<std::uint8_t>(options_.granule_lg2),
                  static_cast<std::uint8_t>(std::min(wanted, capabilities_.output_bits)), 0};
  if (granule.lg2 == kGranules0[0]) granule.top_level = 1;  // S2SL0 names no lower one
  while (granule.input_bits > granule.span_lg2(granule.top_level) + granule.stride() + kConcatenatedLg2)
    ++granule.top_level;
  return granule;
}

Granule Driver::granule(TableKind kind, TableRoot root) const {
  const unsigned lg2 = root.granule_lg2 != 0 ? root.granule_lg2 : options_.granule_lg2;
  const Granule own = granule(kind);
  if (root.input_bits == 0 && root.top_level == own.top_level && lg2 == own.lg2) return own;
  Granule result{static_cast<std::uint8_t>(lg2), root.input_bits, root.top_level};
  constexpr unsigned kWidest = kAddressSizes.back();
  if (result.input_bits == 0)
    result.input_bits =
        static_cast<std::uint8_t>(std::min(kWidest, result.span_lg2(result.top_level) + result.stride()));
  return result;
}

Stage1Format Driver::stage1(Granule granule) const {
  return Stage1Format({.granule = granule,
                       .output_bits = capabilities_.output_bits,
                       .wide_output = capabilities_.wide_output,
                       .flags = FlagHandling::Ignore,
                       .blocks = options_.features.superpages});
}

Stage2Format Driver::stage2(Granule granule) const {
  return Stage2Format({.granule = granule,
                       .output_bits = capabilities_.output_bits,
                       .wide_output = capabilities_.wide_output,
                       .flags = FlagHandling::Ignore,
                       .blocks = options_.features.superpages});
}

std::unique_ptr<PageTable> Driver::create_table(TableKind kind, TableMemory& memory) {
  const Granule shape = granule(kind);
  if (kind == TableKind::Stage1) return TableEditor<Stage1Format>::create(stage1(shape), geometry_of(shape), memory);
  return TableEditor<Stage2Format>::create(stage2(shape), geometry_of(shape), memory);
}

std::unique_ptr<PageTable> Driver::view_table(TableKind kind, TableRoot root, TableMemory& memory) {
  SIM_CHECK(root.top_level < kLevels, "roots come from decoded contexts");
  const Granule shape = granule(kind, root);
  if (kind == TableKind::Stage1)
    return TableEditor<Stage1Format>::view(stage1(shape), root, geometry_of(shape), memory);
  return TableEditor<Stage2Format>::view(stage2(shape), root, geometry_of(shape), memory);
}

std::uint64_t Driver::page_sizes(TableKind kind) const {
  const Granule shape = granule(kind);
  const Stage1Format format = stage1(shape);  // leaves are of the same levels at both stages
  std::uint64_t sizes = 0;
  for (Level level = 0; level <= shape.top_level; ++level)
    if (format.can_be_leaf(level)) sizes |= 1ULL << format.span_lg2(level);
  return sizes;
}

std::uint64_t Driver::max_input(TableKind kind) const { return bits_between(0, granule(kind).input_bits); }

// Bring-up ------------------------------------------------------------------------------------------------------------

// Queues before translation, as Linux does. [linux drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c, arm_smmu_device_reset]
std::optional<std::vector<RegisterWrite>> Driver::bring_up(TableMemory& memory) {
  const std::uint32_t wanted = std::clamp<std::uint32_t>(options_.features.command_ring_entries,
                                                         kPageSize.value() / kCommandBytes, 1U << kLargestQueueLg2);
  const auto entries_lg2 = std::min(capabilities_.command_queue_lg2, static_cast<unsigned>(std::bit_width(wanted - 1)));
  const unsigned queue_pages_lg2 = entries_lg2 + static_cast<unsigned>(std::bit_width(kCommandBytes - 1)) - kPageLg2;
  const std::array<unsigned, 4> orders{0, queue_pages_lg2, kOutputQueuePagesLg2, kOutputQueuePagesLg2};
  std::array<std::uint64_t, orders.size()> blocks{};
  for (std::size_t i = 0; i < orders.size(); ++i) {
    const auto block = memory.allocate(orders[i]);
    if (!block) {
      while (i-- > 0) memory.release(blocks[i], orders[i]);
      return std::nullopt;
    }
    blocks[i] = *block;
  }
  const auto [streams, commands, events, requests] = blocks;
  stream_table_ = streams;
  ring_ = {.base = commands,
           .entries = 1U << entries_lg2,
           .entry_bytes = kCommandBytes,
           .full = FullRule::WrapBit,
           .tail_register = offset::kCmdqProd,
           .head_register = offset::kCmdqCons,
           .index_reads = 0};
  constexpr auto kLg2Of = [](unsigned entry_bytes) {
    return kPageLg2 + kOutputQueuePagesLg2 - static_cast<unsigned>(std::bit_width(entry_bytes - 1));
  };
  const std::uint64_t table = pack<kStrtabCfg>({{"LOG2SIZE", kStreamBits},
                                                {"SPLIT", kStreamTableSplit},
                                                {"FMT", static_cast<std::uint64_t>(StreamTableFormat::TwoLevel)}});
  std::uint64_t control = mask_of<kCr0, "CMDQEN"> | mask_of<kCr0, "EVENTQEN">;
  if (capabilities_.ats) control |= mask_of<kCr0, "ATSCHK">;
  std::vector<RegisterWrite> writes{
      {.offset = offset::kCr0, .bytes = 4, .value = 0},
      {.offset = offset::kCr2, .bytes = 4, .value = pack<kCr2>({{"RECINVSID", 1}})},
      {.offset = offset::kStrtabBase, .bytes = 8, .value = with<kStrtabBase, "RA">(streams, 1)},
      {.offset = offset::kStrtabBaseCfg, .bytes = 4, .value = table},
      {.offset = offset::kCmdqBase, .bytes = 8, .value = queue_base(commands, entries_lg2)},
      {.offset = offset::kCmdqProd, .bytes = 4, .value = 0},
      {.offset = offset::kCmdqCons, .bytes = 4, .value = 0},
      {.offset = offset::kEventqBase, .bytes = 8, .value = queue_base(events, kLg2Of(kEventBytes))},
      {.offset = offset::kEventqProd, .bytes = 4, .value = 0},
      {.offset = offset::kEventqCons, .bytes = 4, .value = 0},
  };
  if (capabilities_.page_requests) {
    writes.push_back(
        {.offset = offset::kPriqBase, .bytes = 8, .value = queue_base(requests, kLg2Of(kPageRequestBytes))});
    writes.push_back({.offset = offset::kPriqProd, .bytes = 4, .value = 0});
    writes.push_back({.offset = offset::kPriqCons, .bytes = 4, .value = 0});
    control |= mask_of<kCr0, "PRIQEN">;
  }
  writes.push_back({.offset = offset::kCr0, .bytes = 4, .value = control});
  writes.push_back({.offset = offset::kCr0, .bytes = 4, .value = control | mask_of<kCr0, "SMMUEN">});
  return writes;
}

}  // namespace iommu::smmuv3
