// SPDX-License-Identifier: Apache-2.0
// Invalidation scopes as commands. [§2.4]
#include <algorithm>
#include <bit>

#include "models/amdvi/driver.hpp"

namespace iommu::amdvi {

namespace {

using Words = std::array<std::uint64_t, 4>;

constexpr unsigned kEverythingLg2 = 52;  // a range this large is named as everything
// [xen iommu-defs.h, INV_IOMMU_ALL_PAGES_ADDRESS]
constexpr std::uint64_t kAllPages = bits_between(0, 63) >> kPageLg2;

// The smallest naturally aligned block of 2^result bytes around the range.
unsigned block_lg2(AddressRange range) {
  return std::max(kPageLg2, static_cast<unsigned>(std::bit_width(range.first ^ range.last)));
}
AddressRange block_of(std::uint64_t address, unsigned lg2) {
  const std::uint64_t inside = bits_between(0, lg2);
  return {address & ~inside, address | inside};
}

// S and Address: the one bits from bit 12 up, and a zero above them, say how many pages.
struct SizedPages {
  std::uint64_t page = kAllPages;
  std::uint64_t sized = 1;
};
SizedPages sized_pages(std::optional<AddressRange> range) {
  if (!range) return {};
  const unsigned lg2 = block_lg2(*range);
  if (lg2 >= kEverythingLg2) return {};
  const std::uint64_t first = range->first >> lg2 << lg2 >> kPageLg2;
  if (lg2 == kPageLg2) return {first, 0};
  return {first | bits_between(0, lg2 - kPageLg2 - 1), 1};
}

template <const auto& kLayout>
Words start(unsigned opcode) {
  Words words{};
  put<kLayout, "OpCode">(words, opcode);
  return words;
}

Words device_command(unsigned opcode, RequesterId requester) {
  Words words = start<kInvalidateDevice>(opcode);
  put<kInvalidateDevice, "DeviceID">(words, requester.value());
  return words;
}

Words pages_command(const InvalidationScope& scope) {
  Words words = start<kInvalidatePages>(kOpInvalidateIommuPages);
  const SizedPages pages = sized_pages(scope.range);
  put<kInvalidatePages, "DomainID">(words, scope.domain->value());
  put<kInvalidatePages, "S">(words, pages.sized);
  put<kInvalidatePages, "PDE">(words, scope.leaf_only ? 0 : 1);
  put<kInvalidatePages, "Address">(words, pages.page);
  if (scope.asid) {
    put<kInvalidatePages, "GN">(words, 1);
    put<kInvalidatePages, "PASID">(words, scope.asid->value());
  }
  return words;
}

Words device_tlb_command(const InvalidationScope& scope) {
  Words words = start<kInvalidateIotlb>(kOpInvalidateIotlbPages);
  const SizedPages pages = sized_pages(scope.range);
  const std::uint64_t device = scope.requester ? scope.requester->value() : 0;
  put<kInvalidateIotlb, "DeviceID">(words, device);
  put<kInvalidateIotlb, "QueueID">(words, device);
  put<kInvalidateIotlb, "S">(words, pages.sized);
  put<kInvalidateIotlb, "Address">(words, pages.page);
  if (scope.asid) {
    put<kInvalidateIotlb, "GN">(words, 1);
    put<kInvalidateIotlb, "PASIDa">(words, scope.asid->value());
    put<kInvalidateIotlb, "PASIDb">(words, scope.asid->value() >> kPasidbLsb);
    put<kInvalidateIotlb, "PASIDc">(words, scope.asid->value() >> kPasidcLsb);
  }
  return words;
}

}  // namespace

// Xen names 4 KiB, 2 MiB, 1 GiB or everything, Linux any power of two. [xen/drivers/passthrough/amd/iommu_map.c,
// amd_iommu_flush_iotlb_pages; linux drivers/iommu/amd/iommu.c, build_inv_address]
std::optional<AddressRange> Driver::block_around(AddressRange range) const {
  const unsigned lg2 = block_lg2(range);
  if (options_.range_flush == RangeFlush::SmallestBlock)
    return lg2 >= kEverythingLg2 ? std::nullopt : std::optional(block_of(range.first, lg2));
  for (Level level = 0; level <= kLargestWrittenLeaf; ++level)
    if (lg2 <= span_lg2_of(level)) return block_of(range.first, span_lg2_of(level));
  return std::nullopt;
}

// A scope without requester or domain, where commands need one, is everything of its kind.
InvalidationScope Driver::widen(const InvalidationScope& exact) const {
  InvalidationScope wide = exact;
  wide.stage1_only = false;
  wide.global_pages = false;
  const InvalidationScope everything{.kind = exact.kind};
  switch (exact.kind) {
    case InvalidationKind::Context:
      if (!exact.requester || exact.requester_ignore != 0) return everything;
      return {.kind = exact.kind, .requester = exact.requester};
    case InvalidationKind::ProcessContext:
      if (!exact.domain || !exact.asid || !options_.stage1) return everything;
      return {.kind = exact.kind, .domain = exact.domain, .asid = exact.asid};
    case InvalidationKind::Iotlb:
      if (!exact.domain) return everything;
      if (exact.range) wide.range = block_around(*exact.range);
      // No command takes global pages of one address space only.
      if (exact.global_pages || !options_.stage1) wide.asid.reset();
      if (exact.global_pages) wide.range.reset();
      return wide;
    case InvalidationKind::DeviceTlb:
      wide.domain.reset();
      if (exact.range) {
        const unsigned lg2 = block_lg2(*exact.range);
        wide.range = lg2 >= kEverythingLg2 ? std::nullopt : std::optional(block_of(exact.range->first, lg2));
      }
      if (!options_.stage1) wide.asid.reset();
      return wide;
    case InvalidationKind::InterruptEntry:
      if (!exact.requester) return everything;
      return {.kind = exact.kind, .requester = exact.requester};
  }
  return wide;
}

CommandWords Driver::encode(const InvalidationScope& scope) const {
  const InvalidationScope wide = widen(scope);
  const CommandWords everything{start<kInvalidateAll>(kOpInvalidateIommuAll)};
  switch (wide.kind) {
    case InvalidationKind::Context:
      return wide.requester ? CommandWords{device_command(kOpInvalidateDevtabEntry, *wide.requester)} : everything;
    case InvalidationKind::ProcessContext:  // the form that also takes the GCR3 entry
    case InvalidationKind::Iotlb:
      return wide.domain ? CommandWords{pages_command(wide)} : everything;
    case InvalidationKind::DeviceTlb:
      return {device_tlb_command(wide)};
    case InvalidationKind::InterruptEntry:
      return wide.requester ? CommandWords{device_command(kOpInvalidateInterruptTable, *wide.requester)} : everything;
  }
  return {};
}

// [xen/drivers/passthrough/amd/iommu_cmd.c, flush_command_buffer]
CommandWords Driver::encode_fence(std::uint64_t status_address, std::uint32_t status_data) const {
  constexpr unsigned kAddressShift = field_of<kCompletionWait, "StoreAddress">.shift();
  Words words = start<kCompletionWait>(kOpCompletionWait);
  put<kCompletionWait, "s">(words, 1);
  put<kCompletionWait, "StoreAddress">(words, status_address >> kAddressShift);
  put<kCompletionWait, "StoreData">(words, status_data);
  return {words};
}

}  // namespace iommu::amdvi
