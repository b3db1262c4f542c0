// SPDX-License-Identifier: Apache-2.0
#include "sim/scenario/quantity_text.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <vector>

#include "sim/scenario/nearest.hpp"

namespace iommu::scenario {

namespace {

constexpr std::array kTimeUnits{UnitName{"ps", 1}, UnitName{"ns", 1'000}, UnitName{"us", 1'000'000},
                                UnitName{"ms", 1'000'000'000}, UnitName{"s", 1'000'000'000'000}};
constexpr std::array kSizeUnits{UnitName{"B", 1}, UnitName{"KiB", 1ULL << 10}, UnitName{"MiB", 1ULL << 20},
                                UnitName{"GiB", 1ULL << 30}, UnitName{"TiB", 1ULL << 40}};
// Bits first; a value is written in the last unit that divides it, and bits are what links are rated in, so bytes
// follow only for reading.
constexpr std::array kRateUnits{UnitName{"b/s", 1},          UnitName{"kb/s", 1'000},
                                UnitName{"Mb/s", 1'000'000}, UnitName{"Gb/s", 1'000'000'000},
                                UnitName{"MB/s", 8'000'000}, UnitName{"GB/s", 8'000'000'000}};
constexpr std::size_t kWritableRateUnits = 4;
constexpr std::array kFrequencyUnits{UnitName{"Hz", 1}, UnitName{"kHz", 1'000}, UnitName{"MHz", 1'000'000},
                                     UnitName{"GHz", 1'000'000'000}};
constexpr std::array kCycleUnits{UnitName{"cycles", 1}};

constexpr Dimension kTime{"a time", "46 ns", "picoseconds", kTimeUnits};
constexpr Dimension kSize{"a size", "4 KiB", "bytes", kSizeUnits};
constexpr Dimension kRate{"a rate", "100 Gb/s", "bits per second", kRateUnits};
constexpr Dimension kFrequency{"a frequency", "3 GHz", "hertz", kFrequencyUnits};
constexpr Dimension kCycles{"a number of cycles", "1300 cycles", "cycles", kCycleUnits};

// Quantities stay below 2^63, so that times are never negative and sums of two cannot wrap.
constexpr auto kLargest = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());

struct Decimal {
  std::uint64_t digits = 0;  // without the point
  std::uint64_t scale = 1;   // 10^decimals
};

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Up to 18 digits, with a point in between or none.
std::optional<Decimal> parse_decimal(std::string_view text) {
  constexpr std::size_t kMaxDigits = 18;
  Decimal d;
  bool after_point = false;
  std::size_t count = 0;
  if (text.empty() || !is_digit(text.front()) || !is_digit(text.back())) return std::nullopt;
  for (const char c : text) {
    if (c == '.' && !after_point) {
      after_point = true;
    } else if (is_digit(c) && ++count <= kMaxDigits) {
      d.digits = d.digits * 10 + static_cast<std::uint64_t>(c - '0');
      if (after_point) d.scale *= 10;
    } else {
      return std::nullopt;
    }
  }
  return d;
}

std::string expected(const Dimension& dimension) {
  return "expected " + std::string(dimension.what) + " such as '" + std::string(dimension.example) + "' (" +
         unit_list(dimension) + ")";
}

}  // namespace

const Dimension& time_dimension() { return kTime; }
const Dimension& size_dimension() { return kSize; }
const Dimension& rate_dimension() { return kRate; }
const Dimension& frequency_dimension() { return kFrequency; }
const Dimension& cycles_dimension() { return kCycles; }

std::string unit_list(const Dimension& dimension) {
  std::string list;
  for (const UnitName& unit : dimension.units) list += (list.empty() ? "" : ", ") + std::string(unit.name);
  return list;
}

ParsedQuantity parse_quantity(std::string_view text, const Dimension& dimension) {
  const std::string shown = "'" + std::string(text.substr(0, 40)) + "'";
  const auto end = std::find_if(text.begin(), text.end(), [](char c) { return !is_digit(c) && c != '.'; });
  const auto number = text.substr(0, static_cast<std::size_t>(end - text.begin()));
  std::string_view unit = text.substr(number.size());
  while (!unit.empty() && unit.front() == ' ') unit.remove_prefix(1);

  const auto decimal = parse_decimal(number);
  if (!decimal) return shown + " is not " + std::string(dimension.what) + "; " + expected(dimension);
  if (unit.empty()) return shown + " lacks a unit; " + expected(dimension);
  const auto found = std::ranges::find(dimension.units, unit, &UnitName::name);
  if (found == dimension.units.end()) {
    std::vector<std::string> names;
    for (const UnitName& u : dimension.units) names.emplace_back(u.name);
    return "unknown unit '" + std::string(unit.substr(0, 20)) + "'; " + expected(dimension) + did_you_mean(unit, names);
  }
  const unsigned __int128 scaled = static_cast<unsigned __int128>(decimal->digits) * found->factor;
  if (scaled % decimal->scale != 0) return shown + " is not a whole number of " + std::string(dimension.base);
  if (scaled / decimal->scale > kLargest) return shown + " is too large";
  return static_cast<std::uint64_t>(scaled / decimal->scale);
}

std::string format_quantity(std::uint64_t value, const Dimension& dimension) {
  auto units = dimension.units;
  if (&dimension == &kRate) units = units.first(kWritableRateUnits);
  std::size_t best = 0;
  for (std::size_t i = 0; i < units.size(); ++i)
    if (value != 0 && value % units[i].factor == 0) best = i;
  return std::to_string(value / units[best].factor) + " " + std::string(units[best].name);
}

std::string quantity_pattern(const Dimension& dimension) {
  std::string units;
  for (const UnitName& unit : dimension.units) units += (units.empty() ? "" : "|") + std::string(unit.name);
  return "^[0-9]+(\\.[0-9]+)? *(" + units + ")$";
}

}  // namespace iommu::scenario
