// SPDX-License-Identifier: Apache-2.0
#include "sim/scenario/nearest.hpp"

#include <algorithm>
#include <vector>

namespace iommu::scenario {

std::size_t edit_distance(std::string_view a, std::string_view b) {
  // Rows of the dynamic programme: two back (for swaps), previous, current.
  std::vector<std::size_t> before(b.size() + 1);
  std::vector<std::size_t> previous(b.size() + 1);
  std::vector<std::size_t> current(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) previous[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    current[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replace = previous[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      current[j] = std::min({previous[j] + 1, current[j - 1] + 1, replace});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        current[j] = std::min(current[j], before[j - 2] + 1);
    }
    std::swap(before, previous);
    std::swap(previous, current);
  }
  return previous[b.size()];
}

std::optional<std::string> nearest(std::string_view word, std::span<const std::string> candidates) {
  constexpr std::size_t kLongestWord = 64;  // nobody misspells more than that, and the search is quadratic
  if (word.size() > kLongestWord) return std::nullopt;
  std::optional<std::string> best;
  std::size_t best_distance = 0;
  for (const std::string& candidate : candidates) {
    const std::size_t distance = edit_distance(word, candidate);
    const std::size_t tolerated = std::max<std::size_t>(1, (std::max(word.size(), candidate.size()) + 1) / 3);
    // Of equally near names, people mean the one that begins alike ("MB": MiB rather than B).
    const bool begins_alike = !word.empty() && candidate.starts_with(word.front());
    const bool is_better = !best || distance < best_distance ||
                           (distance == best_distance && begins_alike && !best->starts_with(word.front()));
    if (distance <= tolerated && is_better) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

std::string did_you_mean(std::string_view word, std::span<const std::string> candidates) {
  const auto found = nearest(word, candidates);
  return found ? "; did you mean '" + *found + "'?" : std::string();
}

}  // namespace iommu::scenario
