// SPDX-License-Identifier: Apache-2.0
// The IOVA allocator: where addresses come from, which cache gives them back, and that no two owners ever share one.
#include "sim/guest/iova_allocator.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <map>
#include <random>
#include <set>

#include "sim/base/immediate_cpu.hpp"
#include "sim/base/rng.hpp"

namespace iommu::guest {
namespace {

class IovaAllocatorTest : public testing::Test {
 protected:
  std::optional<std::uint64_t> allocate(IovaAllocator& allocator, std::uint64_t pages, CpuPort& cpu) {
    const auto address = allocator.allocate(cpu, pages).run();
    if (!address) return std::nullopt;
    EXPECT_TRUE(address->is_aligned(kPageLg2));
    return Dfn(*address).value();
  }
  std::optional<std::uint64_t> allocate(IovaAllocator& allocator, std::uint64_t pages = 1) {
    return allocate(allocator, pages, cpu0_);
  }
  void free(IovaAllocator& allocator, std::uint64_t page, std::uint64_t pages, CpuPort& cpu) {
    allocator.free(cpu, Dfn(page).address(), pages).run();
  }
  void free(IovaAllocator& allocator, std::uint64_t page, std::uint64_t pages = 1) {
    free(allocator, page, pages, cpu0_);
  }
  ~IovaAllocatorTest() override { EXPECT_FALSE(cpu0_.would_block() || cpu1_.would_block()) << "a lock was left held"; }

  ImmediateCpu cpu0_{CpuId(0)};
  ImmediateCpu cpu1_{CpuId(1)};
};

// Kills: a search upwards; one that ignores the preferred part; one that starts at the top again every time.
TEST_F(IovaAllocatorTest, AddressesMarchDownFromFourGigabytes) {
  IovaAllocator allocator({}, 1);
  EXPECT_EQ(allocate(allocator), 0xfffffU);
  EXPECT_EQ(allocate(allocator), 0xffffeU);
  EXPECT_EQ(allocate(allocator, 64), 0xfff80U);
  EXPECT_EQ(allocate(allocator), 0xfff7fU);
}

// Kills: alignment to one page; to the size itself, which is not a power of two.
TEST_F(IovaAllocatorTest, EveryRangeIsAlignedToItsSizeRoundedUp) {
  IovaAllocator allocator({}, 1);
  for (std::uint64_t pages = 1; pages <= 100; ++pages) {
    const auto page = allocate(allocator, pages);
    ASSERT_TRUE(page);
    EXPECT_EQ(*page % std::bit_ceil(pages), 0U) << pages << " pages";
  }
}

// Kills: one cache for all CPUs; first-in first-out; a cached allocation that takes the tree's lock or its price.
TEST_F(IovaAllocatorTest, AFreedRangeComesBackFromTheCacheOfItsCpu) {
  IovaAllocator allocator({}, 2);
  const auto first = allocate(allocator);
  const auto second = allocate(allocator);
  free(allocator, *first);
  free(allocator, *second);
  EXPECT_EQ(allocate(allocator, 1, cpu1_), 0xffffdU) << "the other CPU's cache is empty";
  EXPECT_EQ(cpu1_.charged()[CostId::IovaAllocTree], 1U);
  const std::uint64_t locks = cpu0_.charged()[CostId::LockUncontended];
  EXPECT_EQ(allocate(allocator), second);
  EXPECT_EQ(allocate(allocator), first);
  EXPECT_EQ(cpu0_.charged()[CostId::LockUncontended], locks);
  EXPECT_EQ(cpu0_.charged()[CostId::IovaAllocCached], 2U);
  EXPECT_EQ(cpu0_.charged()[CostId::IovaFreeCached], 2U);
  EXPECT_EQ(allocator.counters().cached_allocations, 2U);
  EXPECT_EQ(allocator.counters().tree_allocations, 3U);
}

// Kills: caches by exact size; the tree holding fewer pages than a range of the class may use.
TEST_F(IovaAllocatorTest, ASizeClassServesEverySizeThatRoundsToIt) {
  IovaAllocator allocator({}, 1);
  const auto three = allocate(allocator, 3);
  const auto below = allocate(allocator, 1);
  EXPECT_EQ(*below, *three - 1);
  free(allocator, *three, 3);
  EXPECT_EQ(allocate(allocator, 4), three);
  EXPECT_EQ(allocate(allocator, 3), *three - 8) << "the next four aligned pages below the single one";
}

// Kills: a cache for any size; a large range that is never given back.
TEST_F(IovaAllocatorTest, RangesAboveThirtyTwoPagesGoStraightBackToTheTree) {
  IovaAllocator allocator({}, 1);
  const auto large = allocate(allocator, 33);
  free(allocator, *large, 33);
  EXPECT_EQ(allocator.counters().cached_frees, 0U);
  EXPECT_EQ(cpu0_.charged()[CostId::IovaFreeTree], 1U);
  EXPECT_EQ(allocate(allocator, 33), large);
  const auto small = allocate(allocator, 32);
  free(allocator, *small, 32);
  EXPECT_EQ(allocator.counters().cached_frees, 1U);
}

// Two magazines of four per CPU, a depot of two. Kills: a depot without bound; full magazines that are dropped; a depot
// that only its own CPU can use.
TEST_F(IovaAllocatorTest, FullMagazinesGoToTheDepotAndThenToTheTree) {
  IovaAllocator allocator({.magazine_entries = 4, .depot_magazines = 2}, 2);
  std::vector<std::uint64_t> pages;
  for (int i = 0; i < 20; ++i) pages.push_back(*allocate(allocator));
  for (int i = 0; i < 16; ++i) free(allocator, pages[static_cast<std::size_t>(i)]);
  EXPECT_EQ(allocator.counters().tree_frees, 0U) << "8 with the CPU, 8 in the depot";
  for (std::size_t i = 16; i < 20; ++i) free(allocator, pages[i]);
  EXPECT_EQ(allocator.counters().tree_frees, 4U) << "one magazine found no room";
  EXPECT_EQ(allocator.counters().cached_frees, 20U);
  for (int i = 0; i < 8; ++i) EXPECT_TRUE(allocate(allocator, 1, cpu1_));
  EXPECT_EQ(allocator.counters().cached_allocations, 8U) << "both magazines of the depot";
  EXPECT_TRUE(allocate(allocator, 1, cpu1_));
  EXPECT_EQ(allocator.counters().cached_allocations, 8U);
}

// Kills: page 0 or the page after the last; giving up while ranges are parked in another CPU's cache or in the depot.
TEST_F(IovaAllocatorTest, ExhaustionFirstEmptiesAllCaches) {
  IovaAllocator allocator({.last_page = 64, .magazine_entries = 4, .depot_magazines = 2}, 2);
  std::set<std::uint64_t> pages;
  while (const auto page = allocate(allocator)) pages.insert(*page);
  EXPECT_EQ(pages.size(), 64U);
  EXPECT_EQ(*pages.begin(), 1U);
  EXPECT_EQ(*pages.rbegin(), 64U);
  for (const std::uint64_t page : pages)
    if (page >= 32 && page < 64) free(allocator, page);
  EXPECT_EQ(allocate(allocator, 32, cpu1_), 32U) << "one range out of 32 cached pages";
  EXPECT_EQ(allocate(allocator, 1, cpu1_), std::nullopt);
}

// Kills: using the upper part while the lower has room; not using it at all; a cache that answers a request for the
// lower part from the upper.
TEST_F(IovaAllocatorTest, TheUpperPartServesOnlyWhatTheLowerCannot) {
  IovaAllocator allocator({.first_page = 1, .last_page = 63, .preferred_last_page = 15}, 1);
  for (std::uint64_t i = 15; i >= 1; --i) EXPECT_EQ(allocate(allocator), i);
  EXPECT_EQ(allocate(allocator), 63U);
  EXPECT_EQ(allocate(allocator), 62U);
  free(allocator, 7);
  free(allocator, 63);
  EXPECT_EQ(allocate(allocator), 7U) << "63 was freed later, but 7 is preferred";
  EXPECT_EQ(allocate(allocator), 63U);
}

// Kills: a search that starts at the top of the lower part again because something above it was freed.
TEST_F(IovaAllocatorTest, FreeingInTheUpperPartDoesNotMoveTheSearchInTheLower) {
  IovaAllocator allocator({.last_page = 1023, .preferred_last_page = 255}, 1);
  const auto top = allocate(allocator, 64);
  EXPECT_EQ(top, 192U);
  EXPECT_EQ(allocate(allocator, 1), 191U);
  EXPECT_EQ(allocate(allocator, 64), 64U) << "alignment leaves a hole above";
  const auto upper = allocate(allocator, 256);
  EXPECT_EQ(upper, 768U);
  free(allocator, *upper, 256);
  EXPECT_EQ(allocate(allocator, 32), 32U) << "still below the last one, not in the hole";
  free(allocator, *top, 64);  // this one does
  EXPECT_EQ(allocate(allocator, 64), 192U);
}

// Kills: reserved addresses handed out, also by a range that only overlaps them.
TEST_F(IovaAllocatorTest, ReservedAddressesAreNeverHandedOut) {
  IovaAllocator allocator({.last_page = 63, .reserved = {{20, 3}, {40, 1}}}, 1);
  EXPECT_EQ(allocate(allocator, 16), 48U);
  EXPECT_EQ(allocate(allocator, 16), std::nullopt);
  std::set<std::uint64_t> pages;
  while (const auto page = allocate(allocator)) pages.insert(*page);
  EXPECT_EQ(pages.size(), 63U - 16U - 4U);
  for (const std::uint64_t reserved : {20U, 21U, 22U, 40U}) EXPECT_FALSE(pages.contains(reserved));
}

// Kills: a loop or an overflow on sizes that no space holds.
TEST_F(IovaAllocatorTest, ImpossibleSizesAreRefused) {
  IovaAllocator allocator({.last_page = 1000}, 1);
  EXPECT_EQ(allocate(allocator, 0), std::nullopt);
  EXPECT_EQ(allocate(allocator, 1001), std::nullopt);
  EXPECT_EQ(allocate(allocator, ~0ULL), std::nullopt);
  EXPECT_EQ(allocate(allocator, 1000), std::nullopt) << "aligned, it would begin at page 0";
  EXPECT_EQ(allocate(allocator, 512), std::nullopt) << "the same";
  EXPECT_EQ(allocate(allocator, 256), 512U);
}

// Against an oracle of live ranges, in a space small enough to be exhausted often. Kills: a range handed out twice, one
// lost on its way through magazines and depot, a refusal while an aligned hole exists.
TEST_F(IovaAllocatorTest, NoTwoOwnersShareAPageAndNoneIsLost) {
  for (const std::uint64_t seed : {std::uint64_t{1}, std::uint64_t{20261121}, std::uint64_t{std::random_device{}()}}) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Rng rng(seed, "iova");
    constexpr std::uint64_t kLast = 511;
    const PageRange reserved{100, 5};
    IovaAllocator allocator({.last_page = kLast,
                             .preferred_last_page = 300,
                             .magazine_entries = 3,
                             .depot_magazines = 2,
                             .reserved = {reserved}},
                            2);
    std::map<std::uint64_t, std::uint64_t> live;
    const auto taken = [](std::uint64_t pages) { return pages <= 32 ? std::bit_ceil(pages) : pages; };
    const auto is_free = [&](std::uint64_t first, std::uint64_t pages) {
      if (first == 0 || first + pages - 1 > kLast) return false;
      if (first < reserved.first + reserved.pages && reserved.first < first + pages) return false;
      for (const auto& [other, size] : live)
        if (first < other + taken(size) && other < first + pages) return false;
      return true;
    };
    for (int step = 0; step < 4000; ++step) {
      CpuPort& cpu = rng.chance(0.5) ? static_cast<CpuPort&>(cpu0_) : cpu1_;
      if (rng.chance(0.55)) {
        const std::uint64_t pages = 1 + rng.below(rng.chance(0.2) ? 64 : 5);
        const auto page = allocate(allocator, pages, cpu);
        const std::uint64_t size = taken(pages);
        if (page) {
          ASSERT_EQ(*page % std::bit_ceil(pages), 0U);
          ASSERT_TRUE(is_free(*page, pages)) << pages << " pages at " << *page << ", step " << step;
          live.emplace(*page, pages);
          continue;
        }
        for (std::uint64_t at = 0; at <= kLast; at += std::bit_ceil(pages))
          ASSERT_FALSE(is_free(at, size)) << pages << " pages would fit at " << at << ", step " << step;
      } else if (!live.empty()) {
        auto victim = std::next(live.begin(), static_cast<std::ptrdiff_t>(rng.below(live.size())));
        free(allocator, victim->first, victim->second, cpu);
        live.erase(victim);
      }
    }
    for (const auto& [page, pages] : live) free(allocator, page, pages);
    EXPECT_EQ(allocate(allocator, 256), 256U) << "all of it came back";
  }
}

}  // namespace
}  // namespace iommu::guest
