// SPDX-License-Identifier: Apache-2.0
// Invalidation scopes as descriptors. [§6.5.2]
#include <algorithm>
#include <bit>

#include "models/vtd/driver.hpp"

namespace iommu::vtd {

namespace {

using Words = std::array<std::uint64_t, 4>;

constexpr std::array<std::uint16_t, 4> kFunctionsIgnored{0, 4, 6, 7};  // by FM: function bits that do not take part
constexpr unsigned kAllPagesLg2 = 64 - kPageLg2;

// The smallest naturally aligned block of 2^result bytes around the range.
unsigned block_lg2(AddressRange range, unsigned smallest) {
  return std::max(smallest, static_cast<unsigned>(std::bit_width(range.first ^ range.last)));
}
AddressRange block_of(std::uint64_t address, unsigned lg2) {
  const std::uint64_t inside = bits_between(0, lg2);
  return {address & ~inside, address | inside};
}
AddressRange block_around(AddressRange range, unsigned smallest) {
  return block_of(range.first, block_lg2(range, smallest));
}

template <const auto& kLayout>
Words start(unsigned type) {
  constexpr unsigned kTypeBits = field_of<kLayout, "TYPE">.width();
  Words words{};
  put<kLayout, "TYPE">(words, type);
  put<kLayout, "TYPE_HI">(words, type >> kTypeBits);
  return words;
}

template <class Enum>
constexpr std::uint64_t code(Enum e) {
  return static_cast<std::uint64_t>(e);
}

std::uint64_t tag(std::optional<DomainTag> domain) { return domain ? domain->value() : 0; }

Words context_command(const InvalidationScope& scope) {
  Words words = start<kContextCacheDescriptor>(kContextCache);
  ContextGranularity granularity = scope.domain ? ContextGranularity::Domain : ContextGranularity::Global;
  if (scope.requester) granularity = ContextGranularity::Device;
  put<kContextCacheDescriptor, "G">(words, code(granularity));
  put<kContextCacheDescriptor, "DID">(words, tag(scope.domain));
  if (scope.requester) {
    const auto mask = std::find(kFunctionsIgnored.begin(), kFunctionsIgnored.end(), scope.requester_ignore);
    put<kContextCacheDescriptor, "SID">(words, scope.requester->value());
    put<kContextCacheDescriptor, "FM">(words, static_cast<std::uint64_t>(mask - kFunctionsIgnored.begin()));
  }
  return words;
}

Words process_command(const InvalidationScope& scope) {
  Words words = start<kPasidCacheDescriptor>(kPasidCache);
  PasidCacheGranularity granularity = PasidCacheGranularity::Global;
  if (scope.domain) granularity = scope.asid ? PasidCacheGranularity::Pasid : PasidCacheGranularity::Domain;
  put<kPasidCacheDescriptor, "G">(words, code(granularity));
  put<kPasidCacheDescriptor, "DID">(words, tag(scope.domain));
  if (scope.asid) put<kPasidCacheDescriptor, "PASID">(words, scope.asid->value());
  return words;
}

template <const auto& kLayout>
void put_pages(Words& words, const InvalidationScope& scope) {
  put<kLayout, "AM">(words, block_lg2(*scope.range, kPageLg2) - kPageLg2);
  put<kLayout, "ADDR">(words, scope.range->first >> kPageLg2);
  put<kLayout, "IH">(words, scope.leaf_only ? 1 : 0);
}

Words iotlb_command(const InvalidationScope& scope) {
  Words words = start<kIotlbDescriptor>(kIotlbInvalidate);
  IotlbGranularity granularity = IotlbGranularity::Global;
  if (scope.domain) granularity = scope.range ? IotlbGranularity::Page : IotlbGranularity::Domain;
  put<kIotlbDescriptor, "G">(words, code(granularity));
  put<kIotlbDescriptor, "DID">(words, tag(scope.domain));
  // Both drains, as Linux and Xen ask where CAP.DRD and CAP.DWD allow.
  put<kIotlbDescriptor, "DR">(words, 1);
  put<kIotlbDescriptor, "DW">(words, 1);
  if (granularity == IotlbGranularity::Page) put_pages<kIotlbDescriptor>(words, scope);
  return words;
}

Words pasid_iotlb_command(const InvalidationScope& scope) {
  Words words = start<kPasidIotlbDescriptor>(kPasidIotlb);
  put<kPasidIotlbDescriptor, "G">(words,
                                  code(scope.range ? PasidIotlbGranularity::Page : PasidIotlbGranularity::Pasid));
  put<kPasidIotlbDescriptor, "DID">(words, tag(scope.domain));
  put<kPasidIotlbDescriptor, "PASID">(words, scope.asid->value());
  if (scope.range) put_pages<kPasidIotlbDescriptor>(words, scope);
  return words;
}

// As in PCIe ATS: the one bits from the page number's lowest bit up, and a zero above them, say how many pages.
struct AtsPages {
  std::uint64_t page = 0;
  std::uint64_t sized = 0;
};
AtsPages ats_pages(std::optional<AddressRange> range) {
  const unsigned lg2 = range ? block_lg2(*range, kPageLg2) - kPageLg2 : kAllPagesLg2;
  const std::uint64_t first = range ? range->first >> kPageLg2 >> lg2 << lg2 : 0;
  return lg2 == 0 ? AtsPages{first, 0} : AtsPages{first | bits_between(0, lg2 - 1), 1};
}

Words device_tlb_command(const InvalidationScope& scope) {
  const AtsPages pages = ats_pages(scope.range);
  const std::uint64_t source = scope.requester ? scope.requester->value() : 0;
  if (!scope.asid) {
    Words words = start<kDeviceTlbDescriptor>(kDeviceTlb);
    put<kDeviceTlbDescriptor, "SID">(words, source);
    put<kDeviceTlbDescriptor, "S">(words, pages.sized);
    put<kDeviceTlbDescriptor, "ADDR">(words, pages.page);
    return words;
  }
  Words words = start<kPasidDeviceTlbDescriptor>(kPasidDeviceTlb);
  put<kPasidDeviceTlbDescriptor, "SID">(words, source);
  put<kPasidDeviceTlbDescriptor, "PASID">(words, scope.asid->value());
  put<kPasidDeviceTlbDescriptor, "S">(words, pages.sized);
  put<kPasidDeviceTlbDescriptor, "ADDR">(words, pages.page);
  return words;
}

Words interrupt_command(const InvalidationScope& scope) {
  Words words = start<kInterruptDescriptor>(kInterruptCache);
  if (!scope.range) return words;  // global
  put<kInterruptDescriptor, "G">(words, 1);
  put<kInterruptDescriptor, "IM">(words, block_lg2(*scope.range, 0));
  put<kInterruptDescriptor, "IIDX">(words, scope.range->first);
  return words;
}

}  // namespace

// The block one page-selective command names, if the range can be had that way.
std::optional<AddressRange> Driver::block_for(const InvalidationScope& scope) const {
  if (!scope.range || !scope.domain || !capabilities_.page_selective) return std::nullopt;
  if (block_lg2(*scope.range, kPageLg2) > capabilities_.max_address_mask + kPageLg2) return std::nullopt;
  const AddressRange block = block_around(*scope.range, kPageLg2);
  const AddressRange pages{scope.range->first & ~bits_between(0, kPageLg2),
                           scope.range->last | bits_between(0, kPageLg2)};
  if (options_.range_flush == RangeFlush::ExactOrDomain && block != pages) return std::nullopt;
  return block;
}

InvalidationScope Driver::widen(const InvalidationScope& exact) const {
  InvalidationScope wide = exact;
  switch (exact.kind) {
    case InvalidationKind::Context: {
      const bool has_mask = std::find(kFunctionsIgnored.begin(), kFunctionsIgnored.end(), exact.requester_ignore) !=
                            kFunctionsIgnored.end();
      // A device-selective command names a mask of functions and, in legacy mode, the domain as well.
      if (!has_mask || (!exact.domain && !is_scalable())) {
        wide.requester.reset();
        wide.requester_ignore = 0;
      }
      return wide;
    }
    case InvalidationKind::ProcessContext:
      if (!exact.domain) wide.asid.reset();
      return wide;
    case InvalidationKind::Iotlb:
      wide.range = block_for(exact);
      wide.leaf_only = wide.range && exact.leaf_only;
      wide.stage1_only = false;
      wide.global_pages = false;
      if (!exact.domain || !is_scalable()) wide.asid.reset();
      // No command takes global pages of one address space only.
      if (exact.global_pages) {
        wide.asid.reset();
        wide.range.reset();
        wide.leaf_only = false;
      }
      return wide;
    case InvalidationKind::DeviceTlb:
      if (exact.range) wide.range = block_around(*exact.range, kPageLg2);
      if (!is_scalable()) wide.asid.reset();
      return wide;
    case InvalidationKind::InterruptEntry:
      if (exact.range) wide.range = block_around(*exact.range, 0);
      return wide;
  }
  return wide;
}

CommandWords Driver::encode(const InvalidationScope& scope) const {
  const InvalidationScope wide = widen(scope);
  switch (wide.kind) {
    case InvalidationKind::Context:
      return {context_command(wide)};
    case InvalidationKind::ProcessContext:
      return {process_command(wide)};
    case InvalidationKind::Iotlb:
      return {wide.asid ? pasid_iotlb_command(wide) : iotlb_command(wide)};
    case InvalidationKind::DeviceTlb:
      return {device_tlb_command(wide)};
    case InvalidationKind::InterruptEntry:
      return {interrupt_command(wide)};
  }
  return {};
}

// FN: later descriptors wait for this one, as Xen asks; the status write waits for earlier ones in any case.
CommandWords Driver::encode_fence(std::uint64_t status_address, std::uint32_t status_data) const {
  constexpr unsigned kAddressShift = field_of<kWaitDescriptor, "STADDR">.shift();
  Words words = start<kWaitDescriptor>(kWait);
  put<kWaitDescriptor, "SW">(words, 1);
  put<kWaitDescriptor, "FN">(words, 1);
  put<kWaitDescriptor, "STDATA">(words, status_data);
  put<kWaitDescriptor, "STADDR">(words, status_address >> kAddressShift);
  return {words};
}

}  // namespace iommu::vtd
