// SPDX-License-Identifier: Apache-2.0
// A latency histogram of fixed size: exact count, sum, minimum and maximum; percentiles within 1/128 of the value.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#include "sim/base/units.hpp"

namespace iommu {

class Histogram {
 public:
  void add(Picoseconds sample) {
    const auto v = static_cast<std::uint64_t>(std::max<std::int64_t>(0, sample.value()));
    const std::size_t bucket = bucket_of(v);
    if (bucket >= buckets_.size()) buckets_.resize(bucket + 1, 0);
    ++buckets_[bucket];
    ++count_;
    sum_ += v;
    min_ = count_ == 1 ? v : std::min(min_, v);
    max_ = std::max(max_, v);
  }
  void merge(const Histogram& other) {
    if (other.count_ == 0) return;
    if (other.buckets_.size() > buckets_.size()) buckets_.resize(other.buckets_.size(), 0);
    for (std::size_t b = 0; b < other.buckets_.size(); ++b) buckets_[b] += other.buckets_[b];
    min_ = count_ == 0 ? other.min_ : std::min(min_, other.min_);
    max_ = std::max(max_, other.max_);
    count_ += other.count_;
    sum_ += other.sum_;
  }
  [[nodiscard]] std::uint64_t count() const { return count_; }
  [[nodiscard]] Picoseconds sum() const { return Picoseconds(static_cast<std::int64_t>(sum_)); }
  [[nodiscard]] Picoseconds max() const { return Picoseconds(static_cast<std::int64_t>(max_)); }
  [[nodiscard]] Picoseconds min() const { return Picoseconds(static_cast<std::int64_t>(min_)); }
  // 0 without samples.
  [[nodiscard]] double mean_ps() const {
    return count_ == 0 ? 0.0 : static_cast<double>(sum_) / static_cast<double>(count_);
  }
  // The smallest recorded value (to bucket precision) that at least `fraction` of the samples do not exceed; 0 without
  // samples.
  [[nodiscard]] Picoseconds percentile(double fraction) const {
    const auto rank = static_cast<std::uint64_t>(fraction * static_cast<double>(count_) + 0.999999);
    std::uint64_t seen = 0;
    for (std::size_t b = 0; b < buckets_.size(); ++b) {
      seen += buckets_[b];
      if (seen >= std::max<std::uint64_t>(rank, 1))
        return Picoseconds(static_cast<std::int64_t>(std::clamp(upper_bound_of(b), min_, max_)));
    }
    return max();
  }

 private:
  static constexpr unsigned kSubLg2 = 7;
  static std::size_t bucket_of(std::uint64_t v) {
    if (v < (1U << kSubLg2)) return v;
    const auto shift = static_cast<unsigned>(std::bit_width(v)) - 1 - kSubLg2;
    return (static_cast<std::size_t>(shift + 1) << kSubLg2) + ((v >> shift) & ((1U << kSubLg2) - 1));
  }
  static std::uint64_t upper_bound_of(std::size_t bucket) {
    if (bucket < (1U << kSubLg2)) return bucket;
    const auto shift = static_cast<unsigned>(bucket >> kSubLg2) - 1;
    const std::uint64_t base = (bucket & ((1U << kSubLg2) - 1)) | 1U << kSubLg2;
    return ((base + 1) << shift) - 1;
  }
  std::vector<std::uint64_t> buckets_;
  std::uint64_t count_ = 0;
  std::uint64_t sum_ = 0;
  std::uint64_t min_ = 0;
  std::uint64_t max_ = 0;
};

}  // namespace iommu
