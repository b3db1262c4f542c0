// SPDX-License-Identifier: Apache-2.0
// The files of a report, as text with stable bytes: fixed order, shortest decimals that read back, no times and no
// paths.
#pragma once

#include <string>

#include "sim/report/result.hpp"

namespace iommu {

[[nodiscard]] std::string report_json(const Report& report);
// Long form: one line per run and metric; the labels of all runs are columns.
[[nodiscard]] std::string metrics_csv(const Report& report);
[[nodiscard]] std::string report_markdown(const Report& report);

enum class Colour : std::uint8_t { Plain, Ansi };
// What the terminal shows: one column per run, shown metrics only, grouped. Runs of a sweep become one block per
// variation.
[[nodiscard]] std::string comparison(const Report& report, Colour colour);

// "17.2", "1.53e+06" never: grouped digits by how the metric is declared.
[[nodiscard]] std::string format_value(double value, Digits digits);
// The shortest decimal that reads back as `value`; whole numbers without a point.
[[nodiscard]] std::string shortest(double value);

// Replaces `path` as a whole or leaves it as it was. Throws std::runtime_error with one line.
void write_file(const std::string& path, const std::string& text);

}  // namespace iommu
