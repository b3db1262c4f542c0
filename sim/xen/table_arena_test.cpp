// SPDX-License-Identifier: Apache-2.0
// The pool of table pages, and the pages that it sets aside for splitting large pages.
#include "sim/xen/table_arena.hpp"

#include <gtest/gtest.h>

#include "sim/xen/xen_test_support.hpp"

namespace iommu::xen {
namespace {

TEST(XenArena, GivesTheLowestFreePageZeroedAndStopsAtItsEnd) {
  HostMemory host{1_GiB};
  TableArena arena(host, Mfn(0x100), 3);
  host.write64(Mfn(0x101).address(), 7);
  EXPECT_EQ(arena.allocate(0), Mfn(0x100).address().value());
  EXPECT_EQ(arena.allocate(0), Mfn(0x101).address().value());
  EXPECT_EQ(host.read64(Mfn(0x101).address()), 0U);
  EXPECT_EQ(arena.allocate(0), Mfn(0x102).address().value());
  EXPECT_EQ(arena.allocate(0), std::nullopt);
  arena.release(Mfn(0x101).address().value(), 0);
  EXPECT_EQ(arena.used(), 2U);
  EXPECT_EQ(arena.counters().refused, 1U);
  EXPECT_EQ(arena.counters().peak, 3U);
  EXPECT_EQ(arena.allocate(1), std::nullopt) << "single pages only";
  EXPECT_EQ(arena.allocate(0), Mfn(0x101).address().value());
}
TEST(XenArena, PagesThatAreSetAsideAreForSplittingOnly) {
  HostMemory host{1_GiB};
  TableArena arena(host, Mfn(0x100), 3);
  arena.set_aside(2);
  EXPECT_TRUE(arena.allocate(0));
  EXPECT_FALSE(arena.allocate(0));
  arena.allocate_for(TableArena::Purpose::Splitting);
  EXPECT_TRUE(arena.allocate(0));
  arena.give_up(1);
  arena.allocate_for(TableArena::Purpose::Mapping);
  EXPECT_FALSE(arena.allocate(0));
  arena.give_up(1);
  EXPECT_TRUE(arena.allocate(0));
  EXPECT_EQ(arena.reserve(), 0U);
}

class XenShatterReserve : public XenFamilies {
 protected:
  static MachineOptions options(ShatterReserve reserve) {
    return {.xen = {.coalesce = Coalesce::Yes, .shatter_reserve = reserve}};
  }
  // A large page, and then single pages far apart until the arena has no more.
  static std::uint16_t exhausted(Machine& m) {
    EXPECT_EQ(m.init(m.guest(), 2, 4), Errno::Ok);
    const std::uint16_t context = m.attached(m.guest());
    EXPECT_EQ(m.map(m.guest(), context, Dfn(1024), Gfn(512), 512).status, Errno::Ok);
    EXPECT_GT(m.context(m.guest(), context).table->lookup(Dfn(1024).address().value())->page_lg2, kPageLg2);
    std::uint64_t at = 8;
    while (m.map(m.guest(), context, Dfn(at << 9), Gfn(7), 1).status == Errno::Ok) ++at;
    EXPECT_EQ(m.map(m.guest(), context, Dfn(at << 9), Gfn(7), 1).status, Errno::NoMemory);
    return context;
  }
};
XEN_ON_ALL_FAMILIES(XenShatterReserve);

// The review's objection: without a reserve a guest can fill the pool and cannot unmap a part of a large page.
TEST_P(XenShatterReserve, WithoutAReserveAFullArenaMakesUnmapFail) {
  Machine m(family(), options(ShatterReserve::None));
  const std::uint16_t context = exhausted(m);
  EXPECT_EQ(m.unmap(m.guest(), context, Dfn(1024 + 7), 1).status, Errno::NoMemory);
  EXPECT_EQ(m.reach(kNic, Dfn(1024 + 7)), m.frame(m.guest(), Gfn(512 + 7)));
}
// Kills: a reserve that mappings can use up, or that is not open to the split.
TEST_P(XenShatterReserve, WithAReserveUnmapNeverFailsForWantOfMemory) {
  Machine m(family(), options(ShatterReserve::Kept));
  const std::uint16_t context = exhausted(m);
  EXPECT_EQ(m.guest().pv->arena->reserve(), 1U);
  EXPECT_EQ(m.unmap(m.guest(), context, Dfn(1024 + 7), 1).status, Errno::Ok);
  EXPECT_EQ(m.reach(kNic, Dfn(1024 + 7)), std::nullopt);
  EXPECT_EQ(m.reach(kNic, Dfn(1024 + 8)), m.frame(m.guest(), Gfn(512 + 8)));
  EXPECT_EQ(m.guest().pv->arena->reserve(), 0U);
  // Merged again, it is set aside again; unmapped as a whole or freed, it is given up.
  ASSERT_EQ(m.map(m.guest(), context, Dfn(1024 + 7), Gfn(512 + 7), 1).status, Errno::Ok);
  EXPECT_EQ(m.guest().pv->arena->reserve(), 1U);
  ASSERT_EQ(m.unmap(m.guest(), context, Dfn(1024), 512).status, Errno::Ok);
  EXPECT_EQ(m.guest().pv->arena->reserve(), 0U);
  ASSERT_EQ(m.map(m.guest(), context, Dfn(1024), Gfn(512), 512).status, Errno::Ok);
  EXPECT_EQ(m.guest().pv->arena->reserve(), 1U);
  ASSERT_EQ(m.free(m.guest(), context, abi::kFreeReattachDefault), Errno::Ok);
  EXPECT_EQ(m.guest().pv->arena->reserve(), 0U);
  EXPECT_EQ(m.arena_used(m.guest()), 0U);
}
// Any history: every unmap of what is mapped succeeds, whatever the arena is filled with. Kills: a reserve that drifts.
TEST_P(XenShatterReserve, HoldsOverRandomHistories) {
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Machine m(family(), options(ShatterReserve::Kept));
    ASSERT_EQ(m.init(m.guest(), 2, 4), Errno::Ok);
    const std::uint16_t context = m.attached(m.guest());
    Rng rng(seed);
    for (int step = 0; step < 120; ++step) {
      const Dfn block((rng.below(20) + 1) << 9);
      const std::uint64_t offset = rng.below(512);
      if (rng.chance(0.5)) {
        // Fill what is missing of the block, so that it merges.
        for (std::uint64_t i = 0; i < 512;) {
          const auto mapped = m.map(m.guest(), context, block + i, Gfn(512 + i), static_cast<std::uint32_t>(512 - i));
          i += mapped.done + 1;
          if (mapped.status == Errno::NoMemory) break;
        }
      } else {
        const Errno status =
            m.unmap(m.guest(), context, block + offset, 1 + static_cast<std::uint32_t>(rng.below(8))).status;
        ASSERT_NE(status, Errno::NoMemory) << "step " << step;
      }
      std::uint64_t large = 0;
      m.context(m.guest(), context).table->for_each_leaf({}, [&](const MappedLeaf& leaf) {
        large += leaf.page_lg2 == 21 ? 1U : 0U;
      });
      ASSERT_EQ(m.guest().pv->arena->reserve(), large) << "step " << step;
      ASSERT_LE(m.arena_used(m.guest()) + large, m.guest().pv->arena->pages()) << "step " << step;
    }
  }
}

}  // namespace
}  // namespace iommu::xen
