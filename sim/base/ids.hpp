// SPDX-License-Identifier: Apache-2.0
// Identifiers as types. The shared words are those of the glossary: a family's own word (source-id, DeviceID, StreamID)
// appears only in models/.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>

namespace iommu {

template <class Tag, class Rep>
class Id {
 public:
  constexpr Id() = default;
  constexpr explicit Id(Rep value) : value_(value) {}
  [[nodiscard]] constexpr Rep value() const { return value_; }
  friend constexpr auto operator<=>(Id, Id) = default;

 private:
  Rep value_{};
};

// Who issued a DMA: PCI bus/device/function, 16 bits.
class RequesterId : public Id<struct RequesterTag, std::uint16_t> {
 public:
  using Id::Id;
  static constexpr RequesterId bdf(unsigned bus, unsigned device, unsigned function) {
    return RequesterId(static_cast<std::uint16_t>(bus << 8 | (device & 31U) << 3 | (function & 7U)));
  }
  [[nodiscard]] constexpr unsigned bus() const { return value() >> 8; }
  [[nodiscard]] constexpr unsigned devfn() const { return value() & 0xffU; }
  [[nodiscard]] constexpr unsigned device() const { return devfn() >> 3; }
  [[nodiscard]] constexpr unsigned function() const { return devfn() & 7U; }
};

using Pasid = Id<struct PasidTag, std::uint32_t>;          // 20 bits
using DomainTag = Id<struct DomainTagTag, std::uint32_t>;  // what caches are tagged with: DID, DomainID, VMID
using AsidTag = Id<struct AsidTagTag, std::uint32_t>;      // address space within a domain tag: PASID, ASID
using DomainId = Id<struct DomainIdTag, std::uint16_t>;    // a Xen domain
using ContextNumber =
    Id<struct ContextTag, std::uint16_t>;        // a Xen IOMMU context of a domain; 0 is the default context
using CpuId = Id<struct CpuTag, std::uint16_t>;  // a vCPU

}  // namespace iommu

template <class Tag, class Rep>
struct std::hash<iommu::Id<Tag, Rep>> {
  std::size_t operator()(iommu::Id<Tag, Rep> id) const noexcept { return std::hash<Rep>{}(id.value()); }
};
template <>
struct std::hash<iommu::RequesterId> {
  std::size_t operator()(iommu::RequesterId id) const noexcept { return id.value(); }
};
