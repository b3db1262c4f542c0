// SPDX-License-Identifier: Apache-2.0
// `iommusim check-vectors FILE…`: replays recorded translations (JSON lines, plain or gzip) and counts what agrees.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "sim/translation/vectors.hpp"

namespace iommu {

struct VectorReport {
  std::uint64_t records = 0;
  std::uint64_t agree = 0;
  std::uint64_t unknown = 0;
  std::uint64_t disagree = 0;
  std::map<std::string, std::uint64_t> deviations;  // by rule; several rules that explain one access are joined by '+'
  std::map<std::string, std::uint64_t> skipped;     // accesses, by what the model lacks
  std::vector<std::string> examples;                // of disagreement
  void merge(const VectorReport& other);
  [[nodiscard]] std::uint64_t deviation() const;
};
struct VectorFileError {
  std::string path;
  std::uint64_t record = 0;  // counted from 1; 0: the file as a whole
  std::string what;
};
using VectorFileResult = std::variant<VectorReport, VectorFileError>;

// Families whose vectors can be checked, by name.
[[nodiscard]] std::span<const VectorFamily* const> vector_families();
[[nodiscard]] VectorFileResult check_vector_file(const std::string& path,
                                                 std::span<const VectorFamily* const> families = vector_families());

// Prints each file's counts and, for several, the total. The exit code: kExitUser if a file cannot be read or one
// access disagrees.
int run_check_vectors(std::span<const std::string> paths, std::ostream& out, std::ostream& err);

}  // namespace iommu
