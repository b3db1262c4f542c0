// SPDX-License-Identifier: Apache-2.0
// Shadow translation with write-protected tables: what the guest stores to its tables is what its devices reach,
// without a word from the guest, whatever else the pages of its tables are.
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "sim/base/rng.hpp"
#include "sim/xen/virtual_machine_test_support.hpp"

namespace iommu::xen {
namespace {

using Trapped = VirtualMachine<ShadowTranslation, ShadowSync::WriteProtect>;

class XenWriteProtect : public XenFamilies {
 protected:
  static constexpr Dfn kAt{0x40000};

  // The entry of the root that leads on, and where it is.
  struct Link {
    std::uint64_t address = 0;
    std::uint64_t entry = 0;
  };
  static Link link_in(GuestPool& pool, const PageTable& table) {
    for (std::uint64_t at = table.root().address; at < table.root().address + kPageSize.value(); at += 8)
      if (pool.read64(at) != 0) return {at, pool.read64(at)};
    ADD_FAILURE() << "an empty root";
    return {};
  }
  // The same entry with another page of the guest in it.
  static std::uint64_t leading_to(std::uint64_t entry, std::uint64_t page) {
    const std::uint64_t in_guest = (Gfn(kGuestPages).address().value() - 1) & ~(kPageSize.value() - 1);
    return (entry & ~in_guest) | page;
  }
  static void store(Trapped& v, std::uint64_t address, std::uint64_t value) {
    v.kernel.pool().write64(address, value);
    v.settle();
  }
  static std::uint64_t stores(const Trapped& v) { return v.unit.traps().table_store; }
  // What Xen believes to be protected is what traps.
  static std::uint64_t protected_pages(Trapped& v) {
    const std::uint64_t count = v.machine.guest().p2m.write_protected_frames();
    EXPECT_EQ(count, v.translation->protected_pages());
    return count;
  }
};
XEN_ON_ALL_FAMILIES(XenWriteProtect);

// Kills: a map that waits for an announcement; a table linked later that nobody protects; a store that is not paid for.
TEST_P(XenWriteProtect, WhatTheGuestStoresIsReachableWithoutADoorbell) {
  Trapped v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  EXPECT_EQ(v.machine.reach(kNic, Dfn(3)), std::nullopt) << "an empty table";
  const std::uint64_t doorbells = v.unit.traps().doorbell;
  const CostCounts before = v.machine.cpu.charged();
  const std::uint64_t trapped = stores(v);
  v.map(table, kNic, kAt, Gfn(70));
  EXPECT_EQ(v.machine.reach(kNic, kAt), v.frame(Gfn(70)));
  v.map(table, kNic, kAt + 1, Gfn(80), 2, kReadOnly);
  EXPECT_EQ(v.machine.reach(kNic, kAt + 2), v.frame(Gfn(81)));
  EXPECT_EQ(v.machine.reach(kNic, kAt + 2, Access::Write), std::nullopt);
  EXPECT_EQ(v.machine.reach(kNic, kAt + 3), std::nullopt);
  EXPECT_EQ(v.unit.traps().doorbell, doorbells);
  EXPECT_EQ(stores(v) - trapped, 3U) << "a link, two entries";
  EXPECT_EQ(v.machine.cpu.charged()[CostId::VmExitStore] - before[CostId::VmExitStore], 3U);
  EXPECT_EQ(v.machine.cpu.charged()[CostId::StoreEmulate] - before[CostId::StoreEmulate], 3U);
  EXPECT_EQ(v.machine.xen.references().total(), 3U);
}
// Removed at once, but what hardware and the frame's owner may rely on is the guest's invalidation. Kills: a flush per
// store; a frame let go while a cache may still lead to it; an invalidation that lets go of what it does not cover.
TEST_P(XenWriteProtect, WhatIsUnmappedWaitsForTheGuestsInvalidation) {
  Trapped v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  v.map(table, kNic, kAt, Gfn(70), 8);
  for (std::uint64_t i = 0; i < 8; ++i) ASSERT_NE(v.machine.reach(kNic, kAt + i), std::nullopt);
  for (const std::uint64_t i : {2U, 3U, 5U})
    ASSERT_EQ(table.unmap((kAt + i).address().value(), kPageSize, ReclaimTables::WhenCovered).status, EditStatus::Ok);
  v.settle();
  EXPECT_EQ(v.machine.reach(kNic, kAt + 2), v.frame(Gfn(72))) << "from a cache";
  EXPECT_EQ(v.machine.xen.references().total(), 8U);
  v.kernel.invalidate({1, v.kernel.scope(kNic, Trapped::bytes(kAt + 2, 2))});
  EXPECT_EQ(v.machine.reach(kNic, kAt + 2), std::nullopt);
  EXPECT_EQ(v.machine.reach(kNic, kAt + 3), std::nullopt);
  EXPECT_EQ(v.machine.xen.references().total(), 6U);
  v.flush_all(kNic);
  EXPECT_EQ(v.machine.reach(kNic, kAt + 5), std::nullopt);
  EXPECT_EQ(v.machine.reach(kNic, kAt + 4), v.frame(Gfn(74)));
  EXPECT_EQ(v.machine.xen.references().total(), 5U);
}
// Kills: frames without end for a guest that never invalidates.
TEST_P(XenWriteProtect, AGuestThatNeverInvalidatesIsFlushed) {
  Trapped v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  v.map(table, kNic, kAt, Gfn(0), 200);
  for (std::uint64_t i = 0; i < 150; ++i) {
    ASSERT_EQ(table.unmap((kAt + i).address().value(), kPageSize, ReclaimTables::WhenCovered).status, EditStatus::Ok);
    v.settle();
    ASSERT_LE(v.machine.xen.references().total(), 200 - (i + 1) + 64) << "so many may wait";
  }
}
// The guest's device table is watched too: a family may not ask for an invalidation when an entry becomes valid. Kills:
// device-table entries that only announcements make Xen read; a root that stays protected when the device has left it.
TEST_P(XenWriteProtect, AStoreToADeviceTableEntryMovesTheDevice) {
  Trapped v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  const std::uint64_t empty = protected_pages(v);
  v.map(table, kNic, kAt, Gfn(70));
  const auto second = v.kernel.driver().create_table(TableKind::Stage2, v.kernel.pool());
  ASSERT_EQ(second->map({.input = (kAt + 1).address().value(), .output = 0x50000}).status, EditStatus::Ok);
  const auto third = v.kernel.driver().create_table(TableKind::Stage2, v.kernel.pool());
  ContextSetting setting = v.kernel.setting(kNic);
  const auto move_to = [&](TableRoot root) {
    setting.stage2 = root;
    EXPECT_EQ(v.kernel.driver().attach(kNic, setting, v.kernel.pool()).status, EditStatus::Ok);
    v.settle();
  };
  move_to(second->root());
  EXPECT_EQ(v.machine.reach(kNic, kAt), std::nullopt);
  EXPECT_EQ(v.machine.reach(kNic, kAt + 1), v.frame(Gfn(0x50)));
  move_to(third->root());
  EXPECT_EQ(v.machine.reach(kNic, kAt + 1), std::nullopt);
  EXPECT_EQ(protected_pages(v), empty) << "an empty root, as in the beginning";
  EXPECT_EQ(v.machine.xen.references().total(), 0U);
  v.map(*third, kNic, kAt, Gfn(71));
  EXPECT_EQ(v.machine.reach(kNic, kAt), v.frame(Gfn(71)));
}

// Tables that are several things
// ----------------------------------------------------------------------------------------

// Two devices, roots of their own, everything below shared. Kills: one place per page; protection that ends with the
// first of them; a store that only one shadow hears of.
TEST_P(XenWriteProtect, TablesSharedBetweenTwoSpacesFollowBoth) {
  Trapped v(family());
  v.start();
  PageTable& a = v.attach(kNic, 1);
  PageTable& b = v.attach(kDisk, 2);
  v.map(a, kNic, kAt, Gfn(70));
  GuestPool& pool = v.kernel.pool();
  const Link link = link_in(pool, a);
  const std::uint64_t pages = protected_pages(v);
  store(v, b.root().address + (link.address - a.root().address), link.entry);
  EXPECT_EQ(protected_pages(v), pages);
  EXPECT_EQ(v.machine.reach(kDisk, kAt), v.frame(Gfn(70)));
  v.map(a, kNic, kAt + 1, Gfn(90));
  EXPECT_EQ(v.machine.reach(kNic, kAt + 1), v.frame(Gfn(90)));
  EXPECT_EQ(v.machine.reach(kDisk, kAt + 1), v.frame(Gfn(90)));
  EXPECT_EQ(v.machine.xen.references().total(), 4U);
  store(v, link.address, 0);
  v.flush_all(kNic);
  EXPECT_EQ(v.machine.reach(kNic, kAt), std::nullopt);
  EXPECT_EQ(v.machine.reach(kDisk, kAt), v.frame(Gfn(70)));
  EXPECT_EQ(protected_pages(v), pages) << "the other still leads there";
  v.map(b, kDisk, kAt + 2, Gfn(91));
  EXPECT_EQ(v.machine.reach(kDisk, kAt + 2), v.frame(Gfn(91)));
  EXPECT_EQ(v.machine.xen.references().total(), 3U);
}
// Kills: protection that a second link leaves behind; a table read again although it is gone.
TEST_P(XenWriteProtect, ATableLinkedTwiceStaysProtectedUntilBothAreGone) {
  Trapped v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  const std::uint64_t empty = protected_pages(v);
  v.map(table, kNic, kAt, Gfn(70));
  const std::uint64_t full = protected_pages(v);
  const Link link = link_in(v.kernel.pool(), table);
  const std::uint64_t span = Dfn(1ULL << (9 * table.root().top_level)).value();
  store(v, link.address + 8, link.entry);
  EXPECT_EQ(protected_pages(v), full);
  EXPECT_EQ(v.machine.reach(kNic, kAt + span), v.frame(Gfn(70)));
  v.map(table, kNic, kAt + 1, Gfn(71));
  EXPECT_EQ(v.machine.reach(kNic, kAt + span + 1), v.frame(Gfn(71)));
  store(v, link.address, 0);
  EXPECT_EQ(protected_pages(v), full);
  EXPECT_EQ(v.machine.reach(kNic, kAt + span), v.frame(Gfn(70)));
  store(v, link.address + 8, 0);
  EXPECT_EQ(protected_pages(v), empty);
  v.flush_all(kNic);
  EXPECT_EQ(v.machine.xen.references().total(), 0U);
}
// One entry of the root leads to the root: it is a table of every level. Kills: a walk without end; a store that is
// looked at for one level; books that do not balance when the loop is cut.
TEST_P(XenWriteProtect, ATableThatContainsItselfIsFollowedOnceALevel) {
  Trapped v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  const std::uint64_t empty = protected_pages(v);
  v.map(table, kNic, kAt, Gfn(70));
  const Link link = link_in(v.kernel.pool(), table);
  const std::uint64_t full = protected_pages(v);
  store(v, link.address + 8, leading_to(link.entry, table.root().address));
  EXPECT_EQ(v.translation->refused(), 0U);
  EXPECT_EQ(protected_pages(v), full);
  EXPECT_EQ(v.machine.reach(kNic, kAt), v.frame(Gfn(70)));
  store(v, link.address, 0);
  store(v, link.address + 8, 0);
  EXPECT_EQ(protected_pages(v), empty);
  v.flush_all(kNic);
  EXPECT_EQ(v.machine.xen.references().total(), 0U);
  v.map(table, kNic, kAt + 512, Gfn(75));
}
// Every entry of the root leads to the root. Kills: a store that costs Xen 2^36 entries.
TEST_P(XenWriteProtect, TablesThatContainThemselvesEverywhereAreRefusedAndTheDeviceIsBlocked) {
  Trapped v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  v.map(table, kNic, kAt, Gfn(70));
  const std::uint64_t own = leading_to(link_in(v.kernel.pool(), table).entry, table.root().address);
  for (std::uint64_t at = 0; at < kPageSize.value(); at += 8) store(v, table.root().address + at, own);
  EXPECT_EQ(v.translation->refused(), 1U);
  EXPECT_GE(v.translation->counters().refused_scans, 1U);
  EXPECT_EQ(v.machine.reach(kNic, kAt), std::nullopt);
  EXPECT_LE(protected_pages(v), 4U) << "the device-table entry's";
  EXPECT_FALSE(v.machine.guest().crashed);
  // An honest table again.
  const auto second = v.kernel.driver().create_table(TableKind::Stage2, v.kernel.pool());
  ASSERT_EQ(second->map({.input = kAt.address().value(), .output = 0x50000}).status, EditStatus::Ok);
  v.kernel.attach(kNic, 1, second.get());
  v.settle();
  EXPECT_EQ(v.machine.reach(kNic, kAt), v.frame(Gfn(0x50)));
  EXPECT_EQ(v.machine.xen.references().total(), 1U);
}
// The guest gives a table back to its pool without unlinking it, and gets it again, zeroed. Kills: stores that bypass
// protection because they are not the editor's; translations that survive their table.
TEST_P(XenWriteProtect, ATableFreedWhileLinkedIsEmptiedBeforeItsReuse) {
  Trapped v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  v.map(table, kNic, kAt, Gfn(70), 3);
  const Link link = link_in(v.kernel.pool(), table);
  const std::uint64_t below = leading_to(~0ULL, 0) ^ ~0ULL;  // the bits that name a page of the guest
  const std::uint64_t page = link.entry & below;
  v.machine.guest().memory.clear_page(Gfn(Gpa(page)));
  v.settle();
  v.flush_all(kNic);
  EXPECT_EQ(v.machine.reach(kNic, kAt), std::nullopt);
  EXPECT_EQ(v.machine.xen.references().total(), 0U);
  EXPECT_TRUE(v.machine.guest().p2m.is_write_protected(Gfn(Gpa(page)))) << "still linked";
  store(v, link.address, 0);
  EXPECT_FALSE(v.machine.guest().p2m.is_write_protected(Gfn(Gpa(page))));
  const std::uint64_t before = stores(v);
  store(v, page, link.entry);
  EXPECT_EQ(stores(v), before) << "a page like any other";
}
// A device writes to a table, which no CPU notices. Kills: books kept in the tables themselves; a shadow that takes up
// what nobody announced because it lies beside a store.
TEST_P(XenWriteProtect, WhatADeviceWritesToATableUnbalancesNothing) {
  Trapped v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  const std::uint64_t empty = protected_pages(v);
  v.map(table, kNic, kAt, Gfn(70), 2);
  const Link link = link_in(v.kernel.pool(), table);
  const auto root = *v.machine.guest().memory.translate(Gpa(table.root().address));
  for (std::uint64_t at = 0; at < kPageSize.value(); at += 8)
    v.machine.host.write64(root + Bytes(at), leading_to(link.entry, table.root().address));
  EXPECT_EQ(v.machine.reach(kNic, kAt), v.frame(Gfn(70))) << "as it was before";
  for (std::uint64_t at = 0; at < kPageSize.value(); at += 8) v.machine.host.write64(root + Bytes(at), 0);
  store(v, link.address, 0);
  v.flush_all(kNic);
  EXPECT_EQ(protected_pages(v), empty);
  EXPECT_EQ(v.machine.xen.references().total(), 0U);
}
// The unit itself stores to the guest's memory: status words, event records. Kills: emulated stores that bypass the
// trap.
TEST_P(XenWriteProtect, WhatXenWritesForTheGuestCountsAsAStore) {
  Trapped v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  v.map(table, kNic, kAt, Gfn(70));
  const Link link = link_in(v.kernel.pool(), table);
  MemoryAccess access;
  access.address = Hpa(link.address);
  access.op = MemoryOp::Write;
  access.words[0] = 0;
  ASSERT_TRUE(v.unit.guest_memory().begin(access));
  v.flush_all(kNic);
  EXPECT_EQ(v.machine.reach(kNic, kAt), std::nullopt);
  EXPECT_EQ(v.machine.xen.references().total(), 0U);
}

// Random stores to random words of all tables, of values that lead somewhere in the guest, with an honest table to come
// back to: what is protected is what is linked, every reference is a page that the shadow maps or that awaits its
// flush, and nobody else's memory is reached. Kills: any imbalance that the tests above do not name.
TEST_P(XenWriteProtect, RandomStoresNeverUnbalanceTheBooks) {
  for (const std::uint64_t seed : {std::uint64_t{31}, std::uint64_t{std::random_device{}()}}) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Rng rng(seed, "stores");
    Trapped v(family());
    v.start();
    PageTable& table = v.attach(kNic);
    v.attach(kDisk, 2);
    const std::uint64_t empty = protected_pages(v);
    v.map(table, kNic, kAt, Gfn(70), 4);
    GuestPool& pool = v.kernel.pool();
    const std::uint64_t link = link_in(pool, table).entry;
    std::map<std::uint64_t, std::uint64_t> honest;
    for (int step = 0; step < 300; ++step) {
      const Gfn page(kGuestPages / 2 + rng.below(16));
      const std::uint64_t word = page.address().value() + 8 * rng.below(rng.chance(0.5) ? 8 : 512);
      const std::uint64_t target = Gfn(kGuestPages / 2 + rng.below(20)).address().value();
      const std::uint64_t value = rng.chance(0.3) ? 0 : rng.chance(0.2) ? rng.next() : leading_to(link, target);
      honest.emplace(word, pool.read64(word));
      store(v, word, value);
      if (rng.chance(0.1)) v.flush_all(kNic);
      protected_pages(v);
      for (const RequesterId device : {kNic, kDisk})
        if (const auto reached = v.machine.reach(device, kAt + rng.below(8)))
          ASSERT_TRUE(v.machine.guest().p2m.frame_of(*reached)) << "step " << step;
    }
    for (const auto& [word, value] : honest) store(v, word, 0);
    for (const RequesterId device : {kNic, kDisk}) v.kernel.detach(device);
    v.settle();
    EXPECT_LE(protected_pages(v), empty) << "device-table entries at most";
    std::uint64_t mapped = 0;  // a shadow keeps its pages until its device comes back
    for (const auto& context : v.machine.guest().private_contexts)
      context->table->for_each_leaf({}, [&](const MappedLeaf& leaf) { mapped += 1ULL << (leaf.page_lg2 - kPageLg2); });
    EXPECT_EQ(v.machine.xen.references().total(), mapped);
  }
}

}  // namespace
}  // namespace iommu::xen
