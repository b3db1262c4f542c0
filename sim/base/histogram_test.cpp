// SPDX-License-Identifier: Apache-2.0
#include "sim/base/histogram.hpp"

#include <gtest/gtest.h>

#include "sim/base/rng.hpp"

namespace iommu {
namespace {

// Kills: off-by-one ranks, bucket bounds that drift with magnitude.
TEST(Histogram, PercentilesStayWithinOneBucketOfTheSortedSamples) {
  constexpr std::uint64_t kSeed = 7;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  Rng rng(kSeed);
  Histogram histogram;
  std::vector<std::int64_t> samples;
  for (int i = 0; i < 10'000; ++i) {
    const auto v = static_cast<std::int64_t>(rng.below(1ULL << rng.below(40)));
    samples.push_back(v);
    histogram.add(Picoseconds(v));
  }
  std::sort(samples.begin(), samples.end());
  for (const double p : {0.01, 0.5, 0.9, 0.99, 1.0}) {
    const auto exact = samples[static_cast<std::size_t>(p * 10'000) - 1];
    const auto got = histogram.percentile(p).value();
    EXPECT_GE(got, exact) << p;
    EXPECT_LE(static_cast<double>(got), static_cast<double>(exact) * (1 + 1.0 / 128) + 1) << p;
  }
  EXPECT_EQ(histogram.max().value(), samples.back());
  EXPECT_EQ(histogram.min().value(), samples.front());
}

// Kills: dividing by zero, or a percentile of nothing that is not zero.
TEST(Histogram, EmptyHistogramIsZero) {
  const Histogram histogram;
  EXPECT_EQ(histogram.percentile(0.5).value(), 0);
  EXPECT_EQ(histogram.mean_ps(), 0.0);
}

}  // namespace
}  // namespace iommu
