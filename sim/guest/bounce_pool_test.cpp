// SPDX-License-Identifier: Apache-2.0
// The pool of bounce buffers: sets, areas, alignment, and agreement with a map of bits.
#include "sim/guest/bounce_pool.hpp"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "sim/base/immediate_cpu.hpp"
#include "sim/base/rng.hpp"

namespace iommu::guest {
namespace {

constexpr Gpa kFirst{0x800000};
constexpr Gpa kOriginal{0x123000};

class BouncePoolTest : public testing::Test {
 protected:
  ~BouncePoolTest() override { EXPECT_FALSE(cpu_.would_block()) << "an area was left locked"; }
  std::optional<Gpa> allocate(BouncePool& pool, Bytes length, Gpa original = kOriginal) {
    return pool.allocate(cpu_, original, length).run();
  }
  bool release(BouncePool& pool, Gpa address, Bytes length) { return pool.release(cpu_, address, length).run(); }
  std::uint64_t charged(CostId cost) const { return cpu_.charged()[cost]; }

  ImmediateCpu cpu_;
};

// A buffer never leaves its set of 128 slots. [interfaces checklist 111] Kills: runs that cross sets; a limit one slot
// off; a pool that grants what it does not have.
TEST_F(BouncePoolTest, ASetIsTheLargestBuffer) {
  BouncePool pool(kFirst, 512_KiB, 1);
  EXPECT_EQ(allocate(pool, 256_KiB + 1_B), std::nullopt);
  EXPECT_EQ(allocate(pool, 256_KiB), kFirst);
  EXPECT_EQ(allocate(pool, 2_KiB), kFirst + 256_KiB);
  EXPECT_EQ(allocate(pool, 256_KiB), std::nullopt) << "512 KiB less one set and a slot";
  EXPECT_EQ(allocate(pool, 0_B), std::nullopt);
  EXPECT_EQ(pool.used(), 129U);
}

// Kills: slots that are not whole; a search that always begins at the start; one that never comes back to it.
TEST_F(BouncePoolTest, TheSearchGoesOnWhereTheLastOneEnded) {
  BouncePool pool(kFirst, 256_KiB, 1);
  EXPECT_EQ(allocate(pool, 1_B), kFirst);
  EXPECT_EQ(allocate(pool, 2049_B), kFirst + 2_KiB);
  EXPECT_TRUE(release(pool, kFirst, 1_B));
  EXPECT_EQ(allocate(pool, 1_B), kFirst + 6_KiB) << "the first slot is free, but behind";
  ASSERT_TRUE(allocate(pool, 248_KiB)) << "all up to the end";
  EXPECT_EQ(allocate(pool, 1_B), kFirst);
  EXPECT_EQ(allocate(pool, 1_B), std::nullopt);
  EXPECT_EQ(pool.most_used(), 128U);
}

// Kills: alignment for buffers below a page; none from a page on; alignment to the pool instead of the original.
TEST_F(BouncePoolTest, FromOnePageOnABufferLiesInItsPageAsTheOriginalDoes) {
  BouncePool pool(kFirst, 256_KiB, 1);
  EXPECT_EQ(allocate(pool, 4095_B, kOriginal + 0x800_B), kFirst);
  EXPECT_EQ(allocate(pool, 1_B), kFirst + 4_KiB);
  EXPECT_EQ(allocate(pool, 4_KiB, kOriginal), kFirst + 8_KiB);
  EXPECT_EQ(allocate(pool, 4_KiB, kOriginal + 0x800_B), kFirst + 14_KiB);
  BouncePool empty(kFirst, 256_KiB, 1);
  EXPECT_EQ(allocate(empty, 256_KiB, kOriginal + 0x800_B), std::nullopt) << "a whole set begins on a page";
}

// Kills: areas that are not a CPU's; others not tried; areas of less than a set.
TEST_F(BouncePoolTest, EachCpuHasItsAreaAndBorrowsFromOthers) {
  BouncePool pool(kFirst, 1_MiB, 3);
  EXPECT_EQ(pool.areas(), 4U);
  EXPECT_EQ(BouncePool(kFirst, 512_KiB, 64).areas(), 2U);
  ImmediateCpu second(CpuId(6));
  EXPECT_EQ(pool.allocate(second, kOriginal, 256_KiB).run(), kFirst + 512_KiB);
  EXPECT_EQ(pool.foreign_searches(), 0U);
  EXPECT_EQ(pool.allocate(second, kOriginal, 256_KiB).run(), kFirst + 768_KiB);
  EXPECT_EQ(pool.allocate(second, kOriginal, 256_KiB).run(), kFirst);
  EXPECT_EQ(pool.foreign_searches(), 3U);
  EXPECT_EQ(allocate(pool, 2_KiB), kFirst + 256_KiB);
}

// Each slot looked at and each slot marked is charged. Kills: a free search; a charge per buffer.
TEST_F(BouncePoolTest, SlotsAreCharged) {
  BouncePool pool(kFirst, 256_KiB, 1);
  const auto first = allocate(pool, 6_KiB);
  EXPECT_EQ(charged(CostId::BounceSearch), 1U);
  EXPECT_EQ(charged(CostId::BounceSlot), 3U);
  EXPECT_EQ(allocate(pool, 4_KiB), kFirst + 8_KiB);
  EXPECT_EQ(charged(CostId::BounceSearch), 3U) << "slot 3 is not where its page begins";
  EXPECT_EQ(charged(CostId::BounceSlot), 5U);
  ASSERT_TRUE(release(pool, *first, 6_KiB));
  EXPECT_EQ(charged(CostId::BounceSlot), 8U);
  EXPECT_EQ(charged(CostId::LockUncontended), 3U);
}

// Kills: freeing by address alone; freeing twice; freeing what lies inside a buffer or outside the pool.
TEST_F(BouncePoolTest, OnlyWhatWasAllocatedIsReleased) {
  BouncePool pool(kFirst, 256_KiB, 1);
  ASSERT_EQ(allocate(pool, 6_KiB), kFirst);
  EXPECT_FALSE(release(pool, kFirst, 2_KiB));
  EXPECT_FALSE(release(pool, kFirst + 2_KiB, 4_KiB));
  EXPECT_FALSE(release(pool, kFirst + 1_B, 6_KiB));
  EXPECT_FALSE(release(pool, kFirst - 2_KiB, 6_KiB));
  EXPECT_FALSE(release(pool, kFirst + 256_KiB, 6_KiB));
  EXPECT_FALSE(release(pool, kFirst + 8_KiB, 0_B));
  EXPECT_EQ(pool.used(), 3U);
  EXPECT_TRUE(release(pool, kFirst, 6_KiB));
  EXPECT_FALSE(release(pool, kFirst, 6_KiB));
  EXPECT_EQ(pool.used(), 0U);
}

// Buffers never overlap, and a request fails only when no run of its set is long enough. Kills: runs that are not
// joined when a buffer between them is freed, or joined over a used one or a set's border.
TEST_F(BouncePoolTest, ChurnAgreesWithAMapOfBits) {
  for (const std::uint64_t seed : {std::uint64_t{5}, std::uint64_t{std::random_device{}()}}) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Rng rng(seed, "pool");
    BouncePool pool(kFirst, 512_KiB, 1);
    std::vector<bool> taken(pool.slots(), false);
    struct Buffer {
      Gpa address;
      Bytes length;
    };
    std::vector<Buffer> live;
    const auto mark = [&](const Buffer& buffer, bool value) {
      const std::uint64_t slot = (buffer.address - kFirst) / BouncePool::kSlot;
      for (std::uint64_t i = slot; i < slot + (buffer.length.value() + 2047) / 2048; ++i) {
        ASSERT_NE(taken[i], value);
        taken[i] = value;
      }
    };
    const auto fits = [&](std::uint64_t wanted, std::uint64_t step) {
      for (std::uint64_t slot = 0; slot < taken.size(); slot += step) {
        std::uint64_t run = 0;
        while (run < wanted && slot % 128 + run < 128 && !taken[slot + run]) ++run;
        if (run == wanted) return true;
      }
      return false;
    };
    for (int step = 0; step < 4000; ++step) {
      if (live.empty() || rng.below(2) == 0) {
        const Bytes length(1 + rng.below(rng.below(20) == 0 ? 262144 : 20000));
        const auto address = allocate(pool, length);
        ASSERT_EQ(address.has_value(), fits((length.value() + 2047) / 2048, length >= 4_KiB ? 2 : 1)) << step;
        if (!address) continue;
        live.push_back({*address, length});
        mark(live.back(), true);
      } else {
        const std::size_t victim = rng.below(live.size());
        ASSERT_TRUE(release(pool, live[victim].address, live[victim].length));
        mark(live[victim], false);
        live.erase(live.begin() + static_cast<std::ptrdiff_t>(victim));
      }
      if (HasFatalFailure()) return;
    }
  }
}

}  // namespace
}  // namespace iommu::guest
