// SPDX-License-Identifier: Apache-2.0
#include "sim/base/bits.hpp"

#include <gtest/gtest.h>

namespace iommu {
namespace {

// clang-format off
constexpr auto kEntry = layout("test entry", "-", 64, {
    {"R", 0, 0}, {"W", 1, 1}, {"rsv", 11, 2, FieldKind::MustBeZero}, {"ADDR", 51, 12}, {"ign", 63, 52, FieldKind::Ignored}});
constexpr auto kOverlap = layout("overlap", "-", 64, {{"A", 32, 0}, {"B", 63, 32}});
constexpr auto kGap = layout("gap", "-", 64, {{"A", 30, 0}, {"B", 63, 32}});
constexpr auto kCrossing = layout("crossing", "-", 128, {{"A", 64, 0}, {"B", 127, 65}});
constexpr auto kWide = layout("wide", "-", 128, {{"TYPE", 3, 0}, {"rsv", 63, 4, FieldKind::MustBeZero}, {"ADDR", 127, 64}});
// clang-format on
static_assert(kEntry.is_partition() && kWide.is_partition());

// Kills: a partition proof that only counts bits, or that forgets one of the three ways to be wrong.
TEST(Bits, PartitionProofRefusesOverlapGapAndCrossing) {
  EXPECT_FALSE(kOverlap.is_partition());
  EXPECT_FALSE(kGap.is_partition());
  EXPECT_FALSE(kCrossing.is_partition());
}

// Kills: a reserved mask that includes ignored bits.
TEST(Bits, ReservedMaskHoldsExactlyTheMustBeZeroRows) {
  EXPECT_EQ(kEntry.must_be_zero_mask(), 0xffcU);
  EXPECT_EQ(kWide.must_be_zero_mask(0), ~0xfULL);
  EXPECT_EQ(kWide.must_be_zero_mask(1), 0U);
}

// Kills: shifting by the msb, or a mask one bit short.
TEST(Bits, GetWithAndPackAgree) {
  const std::uint64_t word = pack<kEntry>({{"W", 1}, {"ADDR", 0xffffffffffULL}});
  EXPECT_EQ(word, 0x000ffffffffff002ULL);
  EXPECT_EQ((get<kEntry, "ADDR">(word)), 0xffffffffffULL);
  EXPECT_EQ((with<kEntry, "ADDR">(word, 1)), 0x1002U);
}

// Kills: reading every field from the first word.
TEST(Bits, FieldsOfWideRecordsLiveInTheirOwnWord) {
  auto record = pack_record<kWide>({{"TYPE", 5}, {"ADDR", 0x123}});
  EXPECT_EQ(record[1], 0x123U);
  put<kWide, "ADDR">(record, 0x456);
  EXPECT_EQ((get<kWide, "ADDR">(record)), 0x456U);
  EXPECT_EQ((get<kWide, "TYPE">(record)), 5U);
}

// Kills: `1 << 64` at the edges.
TEST(Bits, BitsBetweenHandlesTheWholeWord) {
  EXPECT_EQ(bits_between(0, 64), ~0ULL);
  EXPECT_EQ(bits_between(64, 64), 0U);
  EXPECT_EQ(bits_between(39, 52), 0x000fff8000000000ULL);
}

}  // namespace
}  // namespace iommu
