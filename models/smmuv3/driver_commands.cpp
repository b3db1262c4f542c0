// SPDX-License-Identifier: Apache-2.0
// Invalidation scopes as commands. [§4.3 to §4.5]
#include <algorithm>
#include <bit>

#include "models/smmuv3/driver.hpp"

namespace iommu::smmuv3 {

namespace {

using Words = std::array<std::uint64_t, 4>;

constexpr unsigned kRequesterBits = 16;

Words start(Opcode opcode) {
  Words words{};
  put<kCommand, "OP">(words, opcode);
  return words;
}

// The smallest naturally aligned block of 2^result bytes around the range.
unsigned block_lg2(AddressRange range) {
  return std::max(kPageLg2, static_cast<unsigned>(std::bit_width(range.first ^ range.last)));
}
AddressRange block_around(AddressRange range) {
  const std::uint64_t inside = bits_between(0, block_lg2(range));
  return {range.first & ~inside, range.first | inside};
}

// A run of granules as NUM and SCALE: (NUM + 1) * 2^SCALE of them. [§4.4.1.1]
struct Run {
  std::uint64_t num = 0, scale = 0;
  [[nodiscard]] std::uint64_t granules() const { return (num + 1) << scale; }
};
// The shortest run of at least this many; nullopt: the fields cannot name one.
std::optional<Run> run_of(std::uint64_t granules) {
  constexpr std::uint64_t kMostMultiples = field_of<kTlbi, "NUM">.value_mask() + 1;
  for (std::uint64_t scale = 0; scale <= field_of<kTlbi, "SCALE">.value_mask(); ++scale) {
    const std::uint64_t multiples = (granules + bits_between(0, static_cast<unsigned>(scale))) >> scale;
    if (multiples <= kMostMultiples) return Run{multiples - 1, scale};
  }
  return std::nullopt;
}

std::uint64_t tlbi_granule(unsigned lg2) {
  return static_cast<std::uint64_t>(std::find(kTlbiGranules.begin(), kTlbiGranules.end(), lg2) - kTlbiGranules.begin());
}

void put_range(Words& words, const InvalidationScope& scope, unsigned granule_lg2) {
  put<kTlbi, "Address">(words, scope.range->first >> kPageLg2);
  put<kTlbi, "Leaf">(words, scope.leaf_only ? 1 : 0);
  const std::uint64_t granules = ((scope.range->last - scope.range->first) >> granule_lg2) + 1;
  if (granules == 1) return;  // by address alone: of whatever size
  const auto run = run_of(granules);
  if (!run) return;
  put<kTlbi, "TG">(words, tlbi_granule(granule_lg2));
  put<kTlbi, "NUM">(words, run->num);
  put<kTlbi, "SCALE">(words, run->scale);
}

Words iotlb_command(const InvalidationScope& scope, unsigned granule_lg2) {
  if (!scope.domain) return start(kCmdTlbiNsnhAll);
  Opcode opcode = kCmdTlbiS12Vmall;
  if (scope.asid)
    opcode = scope.range ? kCmdTlbiNhVa : kCmdTlbiNhAsid;
  else if (scope.stage1_only)
    opcode = scope.range ? kCmdTlbiNhVaa : kCmdTlbiNhAll;
  else if (scope.range)
    opcode = kCmdTlbiS2Ipa;
  Words words = start(opcode);
  put<kTlbi, "VMID">(words, scope.domain->value());
  if (scope.asid) put<kTlbi, "ASID">(words, scope.asid->value());
  if (scope.range) put_range(words, scope, granule_lg2);
  return words;
}

Words configuration_command(const InvalidationScope& scope) {
  if (!scope.requester) {
    Words all = start(kCmdCfgiSteRange);
    put<kCfgi, "Range">(all, field_of<kCfgi, "Range">.value_mask());
    return all;
  }
  Opcode opcode = kCmdCfgiSte;
  if (scope.requester_ignore != 0) opcode = kCmdCfgiSteRange;
  if (scope.kind == InvalidationKind::ProcessContext) opcode = kCmdCfgiCdAll;
  Words words = start(opcode);
  put<kCfgi, "StreamID">(words, scope.requester->value());
  if (opcode == kCmdCfgiSteRange)
    put<kCfgi, "Range">(words, static_cast<std::uint64_t>(std::bit_width(scope.requester_ignore)) - 1);
  return words;
}

Words device_tlb_command(const InvalidationScope& scope) {
  Words words = start(kCmdAtcInv);
  put<kAtcInv, "StreamID">(words, scope.requester ? scope.requester->value() : 0);
  if (scope.asid) {
    put<kAtcInv, "SSV">(words, 1);
    put<kAtcInv, "SubstreamID">(words, scope.asid->value());
    put<kAtcInv, "Global">(words, scope.global_pages ? 1 : 0);
  }
  const unsigned lg2 = scope.range ? block_lg2(*scope.range) : kAtcInvAll + kPageLg2;
  put<kAtcInv, "Size">(words, lg2 - kPageLg2);
  if (lg2 < kAtcInvAll + kPageLg2) put<kAtcInv, "Address">(words, scope.range->first >> lg2 << (lg2 - kPageLg2));
  return words;
}

bool is_low_mask(unsigned bits) { return (bits & (bits + 1)) == 0; }

}  // namespace

// The range that one command names, if it can be had that way.
std::optional<AddressRange> Driver::range_for(const InvalidationScope& scope) const {
  if (!scope.range) return std::nullopt;
  const unsigned lg2 = options_.granule_lg2;
  const std::uint64_t inside = bits_between(0, lg2);
  const std::uint64_t first = scope.range->first & ~inside;
  const std::uint64_t granules = ((scope.range->last - first) >> lg2) + 1;
  if (granules == 0 || granules >> (64 - lg2) != 0) return std::nullopt;
  const auto run = run_of(granules);
  if (!run) return std::nullopt;
  if (options_.range_flush == RangeFlush::ExactOrDomain && run->granules() != granules) return std::nullopt;
  const std::uint64_t last = first + (run->granules() << lg2) - 1;
  return AddressRange{first, last < first ? ~0ULL : last};
}

InvalidationScope Driver::widen(const InvalidationScope& exact) const {
  InvalidationScope wide = exact;
  switch (exact.kind) {
    case InvalidationKind::Context:
      wide.domain.reset();
      wide.domain_ignore = 0;
      if (!is_low_mask(exact.requester_ignore) || exact.requester_ignore == bits_between(0, kRequesterBits)) {
        wide.requester.reset();
        wide.requester_ignore = 0;
      }
      return wide;
    case InvalidationKind::ProcessContext:
      // Cached descriptors are known by stream and substream, not by address space.
      wide.domain.reset();
      wide.domain_ignore = 0;
      wide.asid.reset();
      if (!exact.requester || exact.requester_ignore != 0) {
        wide.kind = InvalidationKind::Context;
        return widen(wide);
      }
      return wide;
    case InvalidationKind::Iotlb:
      if (!exact.domain || exact.domain_ignore != 0) return {.kind = InvalidationKind::Iotlb};
      wide.range = range_for(exact);
      // An address of stage 2 does not reach what was cached of both stages: all of the domain goes.
      if (!exact.asid && !exact.stage1_only && options_.stage1) wide.range.reset();
      if (exact.asid) wide.stage1_only = false;
      if (exact.asid && exact.global_pages && !wide.range) {
        wide.asid.reset();
        wide.stage1_only = true;
      }
      // Pages that are global go with an address anyway.
      wide.global_pages = wide.asid && wide.range;
      wide.leaf_only = wide.range && exact.leaf_only;
      wide.ignored_top_bits = wide.range && (wide.asid || wide.stage1_only) ? kTopByteBits : 0;
      return wide;
    case InvalidationKind::DeviceTlb:
      if (exact.range) wide.range = block_around(*exact.range);
      if (!exact.asid) wide.global_pages = false;
      return wide;
    case InvalidationKind::InterruptEntry:
      return wide;
  }
  return wide;
}

CommandWords Driver::encode(const InvalidationScope& scope) const {
  const InvalidationScope wide = widen(scope);
  switch (wide.kind) {
    case InvalidationKind::Context:
    case InvalidationKind::ProcessContext:
      return {configuration_command(wide)};
    case InvalidationKind::Iotlb:
      return {iotlb_command(wide, options_.granule_lg2)};
    case InvalidationKind::DeviceTlb:
      return {device_tlb_command(wide)};
    case InvalidationKind::InterruptEntry:
      return {start(kCmdSync)};  // interrupts are not this unit's business: nothing to invalidate
  }
  return {};
}

// All transactions of a requester can only be ended, with an abort; the others one by one. [§4.7.1, §4.7.2]
std::optional<CommandWords> Driver::encode(const StallResolution& resolution) const {
  if (capabilities_.stall_model == StallModel::Absent) return std::nullopt;
  const bool retry = resolution.action == StallResolution::Action::Retry;
  if (!resolution.tag && (retry || resolution.termination != Termination::Abort)) return std::nullopt;
  Words words = start(resolution.tag ? kCmdResume : kCmdStallTerm);
  put<kResume, "StreamID">(words, resolution.requester.value());
  if (resolution.tag) {
    put<kResume, "STAG">(words, *resolution.tag);
    put<kResume, "Ac">(words, retry ? 1 : 0);
    put<kResume, "Ab">(words, !retry && resolution.termination == Termination::Abort ? 1 : 0);
  }
  return CommandWords{words};
}

CommandWords Driver::encode_fence(std::uint64_t status_address, std::uint32_t status_data) const {
  Words words = start(kCmdSync);
  put<kSync, "CS">(words, static_cast<std::uint64_t>(SyncSignal::Interrupt));
  put<kSync, "MSH">(words, kInnerShareable);
  put<kSync, "MSIAttr">(words, kNormalWriteBack << 2 | kNormalWriteBack);
  put<kSync, "MSIData">(words, status_data);
  put<kSync, "MSIAddress">(words, status_address >> field_of<kSync, "MSIAddress">.shift());
  return {words};
}

}  // namespace iommu::smmuv3
