// SPDX-License-Identifier: Apache-2.0
// The three address spaces of DMA translation, as types that do not convert into each other:
//   Iova  what a device puts on the bus;  Gpa  what stage 1 yields (guest-physical);  Hpa  what memory decodes.
// Frames are the same spaces counted in 4 KiB pages, named as Xen names them: Dfn (device), Gfn (guest), Mfn (machine).
#pragma once

#include <compare>
#include <cstdint>
#include <functional>

#include "sim/base/units.hpp"

namespace iommu {

template <class Space>
class Address {
 public:
  constexpr Address() = default;
  constexpr explicit Address(std::uint64_t value) : value_(value) {}
  [[nodiscard]] constexpr std::uint64_t value() const { return value_; }
  [[nodiscard]] constexpr Address aligned_down(unsigned lg2) const { return Address(value_ >> lg2 << lg2); }
  [[nodiscard]] constexpr std::uint64_t offset_in(unsigned lg2) const { return value_ & ((1ULL << lg2) - 1); }
  [[nodiscard]] constexpr bool is_aligned(unsigned lg2) const { return offset_in(lg2) == 0; }

  friend constexpr auto operator<=>(Address, Address) = default;
  friend constexpr Address operator+(Address a, Bytes b) { return Address(a.value_ + b.value()); }
  friend constexpr Address operator-(Address a, Bytes b) { return Address(a.value_ - b.value()); }
  friend constexpr Bytes operator-(Address a, Address b) { return Bytes(a.value_ - b.value_); }

 private:
  std::uint64_t value_ = 0;
};

template <class Space>
class Frame {
 public:
  constexpr Frame() = default;
  constexpr explicit Frame(std::uint64_t value) : value_(value) {}
  constexpr explicit Frame(Address<Space> a) : value_(a.value() >> kPageLg2) {}
  [[nodiscard]] constexpr std::uint64_t value() const { return value_; }
  [[nodiscard]] constexpr Address<Space> address() const { return Address<Space>(value_ << kPageLg2); }

  friend constexpr auto operator<=>(Frame, Frame) = default;
  friend constexpr Frame operator+(Frame f, std::uint64_t pages) { return Frame(f.value_ + pages); }

 private:
  std::uint64_t value_ = 0;
};

using Iova = Address<struct IovaSpace>;
using Gpa = Address<struct GpaSpace>;
using Hpa = Address<struct HpaSpace>;
using Dfn = Frame<struct IovaSpace>;
using Gfn = Frame<struct GpaSpace>;
using Mfn = Frame<struct HpaSpace>;

}  // namespace iommu

template <class Space>
struct std::hash<iommu::Address<Space>> {
  std::size_t operator()(iommu::Address<Space> a) const noexcept { return std::hash<std::uint64_t>{}(a.value()); }
};
template <class Space>
struct std::hash<iommu::Frame<Space>> {
  std::size_t operator()(iommu::Frame<Space> f) const noexcept { return std::hash<std::uint64_t>{}(f.value()); }
};
