// SPDX-License-Identifier: Apache-2.0
// Quantities as people write them: "4 KiB", "46 ns", "100 Gb/s", "1300 cycles". A unit is never implied, and a value is
// never rounded: "1.5 KiB" is 1536 bytes, "0.3 B" is an error.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "sim/base/units.hpp"
#include "sim/scenario/quantities.hpp"

namespace iommu::scenario {

struct UnitName {
  std::string_view name;
  std::uint64_t factor = 1;  // in base units
};

// One dimension: its units, ascending.
struct Dimension {
  std::string_view what;     // "a time"
  std::string_view example;  // "46 ns"
  std::string_view base;     // "picoseconds"
  std::span<const UnitName> units;
};
[[nodiscard]] const Dimension& time_dimension();
[[nodiscard]] const Dimension& size_dimension();
[[nodiscard]] const Dimension& rate_dimension();
[[nodiscard]] const Dimension& frequency_dimension();
[[nodiscard]] const Dimension& cycles_dimension();

// The value in base units, or what is wrong with the text ("'80' lacks a unit; expected a time such as '46 ns' (ps, ns,
// …)").
using ParsedQuantity = std::variant<std::uint64_t, std::string>;
[[nodiscard]] ParsedQuantity parse_quantity(std::string_view text, const Dimension& dimension);

// The shortest exact spelling, in the largest unit that divides the value.
[[nodiscard]] std::string format_quantity(std::uint64_t value, const Dimension& dimension);

// As a regular expression (for JSON Schema).
[[nodiscard]] std::string quantity_pattern(const Dimension& dimension);

// "ps, ns, us, ms, s"
[[nodiscard]] std::string unit_list(const Dimension& dimension);

}  // namespace iommu::scenario
