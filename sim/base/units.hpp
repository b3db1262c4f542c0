// SPDX-License-Identifier: Apache-2.0
// Quantities that do not mix: time in picoseconds, sizes in bytes. A bare integer never carries a unit.
// Example: `Picoseconds latency = 80_ns; Bytes page = 4_KiB;`
#pragma once

#include <compare>
#include <cstdint>

namespace iommu {

// An integer with a unit. Arithmetic that keeps the unit is allowed, everything else needs `.value()`.
template <class Unit, class Rep>
class Quantity {
 public:
  using rep = Rep;
  constexpr Quantity() = default;
  constexpr explicit Quantity(Rep value) : value_(value) {}
  [[nodiscard]] constexpr Rep value() const { return value_; }

  friend constexpr auto operator<=>(Quantity, Quantity) = default;
  friend constexpr Quantity operator+(Quantity a, Quantity b) { return Quantity(a.value_ + b.value_); }
  friend constexpr Quantity operator-(Quantity a, Quantity b) { return Quantity(a.value_ - b.value_); }
  friend constexpr Quantity operator*(Quantity a, Rep times) { return Quantity(a.value_ * times); }
  friend constexpr Quantity operator*(Rep times, Quantity a) { return a * times; }
  friend constexpr Quantity operator/(Quantity a, Rep parts) { return Quantity(a.value_ / parts); }
  friend constexpr Rep operator/(Quantity a, Quantity b) { return a.value_ / b.value_; }
  friend constexpr Quantity operator%(Quantity a, Quantity b) { return Quantity(a.value_ % b.value_); }
  constexpr Quantity& operator+=(Quantity other) { return *this = *this + other; }
  constexpr Quantity& operator-=(Quantity other) { return *this = *this - other; }

 private:
  Rep value_{};
};

// Simulated time. Signed so that differences are safe; 2^63 ps is 106 days, far beyond any run.
using Picoseconds = Quantity<struct PicosecondUnit, std::int64_t>;
using Bytes = Quantity<struct ByteUnit, std::uint64_t>;

[[nodiscard]] constexpr double to_ns(Picoseconds t) { return static_cast<double>(t.value()) / 1e3; }
[[nodiscard]] constexpr double to_seconds(Picoseconds t) { return static_cast<double>(t.value()) / 1e12; }

inline namespace literals {
constexpr Picoseconds operator""_ps(unsigned long long v) { return Picoseconds(static_cast<std::int64_t>(v)); }
constexpr Picoseconds operator""_ns(unsigned long long v) { return Picoseconds(static_cast<std::int64_t>(v) * 1'000); }
constexpr Picoseconds operator""_us(unsigned long long v) {
  return Picoseconds(static_cast<std::int64_t>(v) * 1'000'000);
}
constexpr Picoseconds operator""_ms(unsigned long long v) {
  return Picoseconds(static_cast<std::int64_t>(v) * 1'000'000'000);
}
constexpr Bytes operator""_B(unsigned long long v) { return Bytes(v); }
constexpr Bytes operator""_KiB(unsigned long long v) { return Bytes(v << 10); }
constexpr Bytes operator""_MiB(unsigned long long v) { return Bytes(v << 20); }
constexpr Bytes operator""_GiB(unsigned long long v) { return Bytes(v << 30); }
}  // namespace literals

inline constexpr unsigned kPageLg2 = 12;
inline constexpr Bytes kPageSize{1ULL << kPageLg2};

}  // namespace iommu
