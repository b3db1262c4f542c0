// SPDX-License-Identifier: Apache-2.0
// Shadow translation: what the guest's tables say is what its devices reach, once the guest has said so; whatever else
// they say is not.
#include <gtest/gtest.h>

#include <map>

#include "sim/xen/virtual_machine_test_support.hpp"

namespace iommu::xen {
namespace {

using Shadow = VirtualMachine<ShadowTranslation>;

class XenShadow : public XenFamilies {
 protected:
  void SetUp() override {
    if (!Shadow::is_possible(family())) GTEST_SKIP();
  }
};
XEN_ON_ALL_FAMILIES(XenShadow);

// Kills: frames taken for machine frames as they stand in the guest's entries.
TEST_P(XenShadow, WhatTheGuestMapsAndAnnouncesIsReachable) {
  Shadow v(family());
  v.start();
  EXPECT_EQ(v.machine.reach(kNic, Dfn(3)), v.frame(Gfn(3))) << "not behind the unit yet";
  PageTable& table = v.attach(kNic);
  EXPECT_EQ(v.machine.reach(kNic, Dfn(3)), std::nullopt) << "an empty table";
  v.map(table, kNic, Dfn(0x1234), Gfn(70), 3);
  for (std::uint64_t i = 0; i < 3; ++i) EXPECT_EQ(v.machine.reach(kNic, Dfn(0x1234 + i)), v.frame(Gfn(70 + i)));
  EXPECT_EQ(v.machine.reach(kNic, Dfn(0x1237)), std::nullopt);
  EXPECT_EQ(v.machine.references(v.machine.guest(), Gfn(70)), 1U);
  EXPECT_EQ(v.machine.xen.references().total(), 3U);
  EXPECT_EQ(v.translation->counters().changed, 3U);
}
// The price of shadowing: Xen sees no write to a table. Kills: a shadow that peeks without being told.
TEST_P(XenShadow, WhatIsNotAnnouncedDoesNotExist) {
  Shadow v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  ASSERT_EQ(table.map({.input = 0x5000, .output = 0x7000}).status, EditStatus::Ok);
  EXPECT_EQ(v.machine.reach(kNic, Dfn(5)), std::nullopt);
  v.flush_all(kNic);
  EXPECT_EQ(v.machine.reach(kNic, Dfn(5)), v.frame(Gfn(7)));
}
// Kills: an unmap that leaves the shadow, the unit's caches, or a reference.
TEST_P(XenShadow, WhatIsUnmappedAndInvalidatedIsGone) {
  Shadow v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  v.map(table, kNic, Dfn(0x100), Gfn(70), 8);
  for (std::uint64_t i = 0; i < 8; ++i) ASSERT_NE(v.machine.reach(kNic, Dfn(0x100 + i)), std::nullopt);
  v.unmap(table, kNic, Dfn(0x102), 3);
  for (std::uint64_t i = 0; i < 8; ++i)
    EXPECT_EQ(v.machine.reach(kNic, Dfn(0x100 + i)).has_value(), i < 2 || i > 4) << i;
  EXPECT_EQ(v.machine.xen.references().total(), 5U);
}
TEST_P(XenShadow, ARemappedAddressShowsTheNewFrameAndPermissions) {
  Shadow v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  v.map(table, kNic, Dfn(0x100), Gfn(70));
  ASSERT_EQ(v.machine.reach(kNic, Dfn(0x100)), v.frame(Gfn(70)));
  // Without telling anybody in between: one invalidation shows the change from frame to frame.
  ASSERT_EQ(table.unmap(0x100000, kPageSize, ReclaimTables::WhenCovered).status, EditStatus::Ok);
  v.map(table, kNic, Dfn(0x100), Gfn(80), 1, kReadOnly);
  EXPECT_EQ(v.machine.reach(kNic, Dfn(0x100)), v.frame(Gfn(80)));
  EXPECT_EQ(v.machine.reach(kNic, Dfn(0x100), Access::Write), std::nullopt);
  EXPECT_EQ(v.machine.references(v.machine.guest(), Gfn(70)), 0U);
  EXPECT_EQ(v.machine.references(v.machine.guest(), Gfn(80)), 1U);
}
// An invalidation costs what it covers. Kills: a resync of everything for one page.
TEST_P(XenShadow, AnInvalidationComparesItsRangeOnly) {
  Shadow v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  v.map(table, kNic, Dfn(0), Gfn(0), 256);
  v.translation->reset_counters();
  v.map(table, kNic, Dfn(0x400), Gfn(70));
  EXPECT_EQ(v.translation->counters().syncs, 1U);
  EXPECT_EQ(v.translation->counters().resyncs, 0U);
  EXPECT_LE(v.translation->counters().compared, 4U);
  v.translation->reset_counters();
  v.flush_all(kNic);
  EXPECT_EQ(v.translation->counters().resyncs, 1U);
  EXPECT_EQ(v.translation->counters().compared, 2 * 257U);
  EXPECT_EQ(v.translation->counters().changed, 0U);
}
// Every invalidation traps and costs. Kills: traps that nobody pays for.
TEST_P(XenShadow, EveryMapAndUnmapTraps) {
  Shadow v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  const std::uint64_t doorbells = v.unit.traps().doorbell;
  const std::uint64_t exits = v.machine.cpu.charged()[CostId::VmExitMmio];
  v.map(table, kNic, Dfn(0x100), Gfn(70));
  v.unmap(table, kNic, Dfn(0x100));
  EXPECT_EQ(v.unit.traps().doorbell - doorbells, 2U);
  EXPECT_GE(v.machine.cpu.charged()[CostId::VmExitMmio] - exits, 2U);
  EXPECT_EQ(v.unit.traps().device_model, 0U);
}
// Only the guest's own memory. Kills: foreign, mmio or machine frames that a guest names and a device reaches.
TEST_P(XenShadow, WhatIsNotTheGuestsMemoryIsLeftOut) {
  Shadow v(family());
  Domain& guest = v.machine.guest();
  ASSERT_TRUE(guest.p2m.add({Gfn(0x10000), 1, v.machine.frame(*v.machine.other, Gfn(9)), FrameType::Foreign}));
  ASSERT_TRUE(guest.p2m.add({Gfn(0x10001), 1, Mfn(Hpa(v.machine.host.size().value())), FrameType::Mmio}));
  v.start();
  PageTable& table = v.attach(kNic);
  v.map(table, kNic, Dfn(0x100), Gfn(0x10000), 2);
  v.map(table, kNic, Dfn(0x200), Gfn(kGuestPages - 1), 3);
  v.map(table, kNic, Dfn(0x300), Gfn(1ULL << 30), 1);
  EXPECT_EQ(v.machine.reach(kNic, Dfn(0x100)), std::nullopt);
  EXPECT_EQ(v.machine.reach(kNic, Dfn(0x101)), std::nullopt);
  EXPECT_EQ(v.machine.reach(kNic, Dfn(0x200)), v.frame(Gfn(kGuestPages - 1)));
  EXPECT_EQ(v.machine.reach(kNic, Dfn(0x201)), std::nullopt);
  EXPECT_EQ(v.machine.reach(kNic, Dfn(0x300)), std::nullopt);
  EXPECT_EQ(v.machine.xen.references().total(), 1U);
}
// A guest's large page over scattered machine memory. Kills: a shadow that takes the first frame for the whole page.
TEST_P(XenShadow, ALargeGuestPageIsCutWhereTheMachineIsNotContiguous) {
  Shadow v(family());
  Domain& guest = v.machine.guest();
  // Exchange two frames in the middle of a two-megabyte block.
  const Mfn a = v.machine.frame(guest, Gfn(0x300));
  const Mfn b = v.machine.frame(guest, Gfn(0x310));
  guest.p2m.remove(Gfn(0x300), 1);
  guest.p2m.remove(Gfn(0x310), 1);
  ASSERT_TRUE(guest.p2m.add({Gfn(0x300), 1, b, FrameType::Ram}) && guest.p2m.add({Gfn(0x310), 1, a, FrameType::Ram}));
  v.start();
  PageTable& table = v.attach(kNic);
  const TableEdit edit = table.map({.input = 1ULL << 30,
                                    .output = Gfn(0x200).address().value(),
                                    .length = 2_MiB,
                                    .permissions = kReadWrite,
                                    .max_page_lg2 = 21});
  ASSERT_EQ(edit.status, EditStatus::Ok);
  v.flush_all(kNic);
  for (std::uint64_t i = 0; i < 512; ++i)
    ASSERT_EQ(v.machine.reach(kNic, Dfn((1ULL << 18) + i)), v.frame(Gfn(0x200 + i))) << i;
  EXPECT_EQ(v.machine.xen.references().total(), 512U);
  // A hole in it: the rest goes on.
  guest.p2m.remove(Gfn(0x280), 1);
  v.flush_all(kNic);
  EXPECT_EQ(v.machine.reach(kNic, Dfn((1ULL << 18) + 0x80)), std::nullopt);
  EXPECT_EQ(v.machine.reach(kNic, Dfn((1ULL << 18) + 0x81)), v.frame(Gfn(0x281)));
  EXPECT_EQ(v.machine.xen.references().total(), 511U);
}
// Reserved regions are in the shadow but in no table of the guest. Kills: a sync that removes them, or drops references
// that nobody took.
TEST_P(XenShadow, ReservedRegionsSurviveEverySync) {
  Shadow v(family());
  constexpr RequesterId kCard = RequesterId::bdf(9, 0, 0);
  const ReservedRegion firmware{Dfn(0x100000), 4};
  v.machine.assign(v.machine.guest(), {.requester = kCard, .reserved = {firmware}});
  v.start();
  PageTable& table = v.attach(kCard);
  EXPECT_EQ(v.machine.reach(kCard, firmware.first), Mfn(firmware.first.value()));
  v.flush_all(kCard);
  EXPECT_EQ(v.machine.reach(kCard, firmware.first + 3), Mfn(firmware.first.value() + 3));
  // The guest's own idea of these addresses does not count; beside them it does.
  v.map(table, kCard, Dfn(firmware.first.value() - 1), Gfn(70), 6);
  v.flush_all(kCard);
  EXPECT_EQ(v.machine.reach(kCard, Dfn(firmware.first.value() - 1)), v.frame(Gfn(70)));
  EXPECT_EQ(v.machine.reach(kCard, firmware.first), Mfn(firmware.first.value()));
  EXPECT_EQ(v.machine.reach(kCard, firmware.first + 4), v.frame(Gfn(75)));
  EXPECT_EQ(v.machine.xen.references().total(), 2U);
  v.unmap(table, kCard, Dfn(firmware.first.value() - 1), 6);
  EXPECT_EQ(v.machine.xen.references().total(), 0U);
  EXPECT_EQ(v.translation->refused(), 0U);
}
// The guest's device tables decide. Kills: a device that keeps translating after it was detached, or is not blocked.
TEST_P(XenShadow, ADetachedDeviceIsBlockedAndComesBackWithItsTable) {
  Shadow v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  v.map(table, kNic, Dfn(0x100), Gfn(70));
  ASSERT_NE(v.machine.reach(kNic, Dfn(0x100)), std::nullopt);
  v.kernel.detach(kNic);
  EXPECT_EQ(v.machine.reach(kNic, Dfn(0x100)), std::nullopt);
  EXPECT_EQ(v.machine.reach(kNic, Dfn(3)), std::nullopt);
  v.kernel.attach(kNic, 2, &table);
  EXPECT_EQ(v.machine.reach(kNic, Dfn(0x100)), v.frame(Gfn(70)));
}
TEST_P(XenShadow, ANewTableReplacesTheOldOneEntirely) {
  Shadow v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  v.map(table, kNic, Dfn(0x100), Gfn(70), 2);
  ASSERT_NE(v.machine.reach(kNic, Dfn(0x100)), std::nullopt);
  const auto second = v.kernel.driver().create_table(TableKind::Stage2, v.kernel.pool());
  ASSERT_EQ(second->map({.input = 0x101000, .output = 0x50000}).status, EditStatus::Ok);
  v.kernel.attach(kNic, 1, second.get());
  EXPECT_EQ(v.machine.reach(kNic, Dfn(0x100)), std::nullopt);
  EXPECT_EQ(v.machine.reach(kNic, Dfn(0x101)), v.frame(Gfn(0x50)));
  EXPECT_EQ(v.machine.xen.references().total(), 1U);
}
// Two devices with tables of their own. Kills: one shadow for all, and an invalidation by tag that meets both.
TEST_P(XenShadow, DevicesOfDifferentGuestDomainsDoNotMix) {
  Shadow v(family());
  v.start();
  PageTable& one = v.attach(kNic, 1);
  PageTable& two = v.attach(kDisk, 2);
  v.map(one, kNic, Dfn(0x100), Gfn(70));
  v.map(two, kDisk, Dfn(0x100), Gfn(80));
  EXPECT_EQ(v.machine.reach(kNic, Dfn(0x100)), v.frame(Gfn(70)));
  EXPECT_EQ(v.machine.reach(kDisk, Dfn(0x100)), v.frame(Gfn(80)));
  v.unmap(one, kNic, Dfn(0x100));
  EXPECT_EQ(v.machine.reach(kNic, Dfn(0x100)), std::nullopt);
  EXPECT_EQ(v.machine.reach(kDisk, Dfn(0x100)), v.frame(Gfn(80)));
}
// What a guest's fence promises. Kills: a fence of the guest's that completes before the machine's, and frames given
// back before it.
TEST_P(XenShadow, AnInvalidationIsFinishedWhenTheGuestsFenceIs) {
  Shadow v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  v.map(table, kNic, Dfn(0x100), Gfn(70));
  ASSERT_NE(v.machine.reach(kNic, Dfn(0x100)), std::nullopt);
  ASSERT_EQ(table.unmap(0x100000, kPageSize, ReclaimTables::WhenCovered).status, EditStatus::Ok);
  // The guest's submission on a vCPU of its own, while the real unit is slow.
  v.machine.unit().execution = CachingUnit::Execution::OnRequest;
  Stepper stepper(v.machine.host);
  auto submission =
      v.kernel.queue().submit(stepper.add_cpu(), {1, v.kernel.scope(kNic, Shadow::bytes(Dfn(0x100), 1))}, Fence::Poll);
  submission.start();
  stepper.run();
  EXPECT_FALSE(submission.done()) << "the guest's fence completed before the machine's";
  EXPECT_EQ(v.machine.xen.references().total(), 1U) << "the frame is given back before the fence";
  v.machine.unit().execute();
  stepper.run();
  EXPECT_TRUE(submission.done());
  EXPECT_EQ(v.machine.reach(kNic, Dfn(0x100)), std::nullopt);
  EXPECT_EQ(v.machine.xen.references().total(), 0U);
}

// Any history of maps, unmaps and invalidations against a map of pages. Kills what single steps miss: a comparison that
// goes wrong at the edges of ranges, a reference too many.
TEST_P(XenShadow, AgreesWithAnOracleOverRandomHistories) {
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Shadow v(family());
    v.start();
    PageTable& table = v.attach(kNic);
    Rng rng(seed);
    std::map<std::uint64_t, std::pair<std::uint64_t, Permissions>> guest;  // dfn -> gfn, as the tables have it
    std::map<std::uint64_t, std::pair<std::uint64_t, Permissions>> told;   // as announced
    const auto announce = [&](std::uint64_t first, std::uint64_t pages) {
      v.kernel.invalidate({1, v.kernel.scope(kNic, Shadow::bytes(Dfn(first), pages))});
      // What the command names may be wider than the range: the smallest block around it.
      std::uint64_t lg2 = 0;
      while (first >> lg2 != (first + pages - 1) >> lg2) ++lg2;
      const std::uint64_t from = first >> lg2 << lg2;
      const std::uint64_t to = from + (1ULL << lg2);
      told.erase(told.lower_bound(from), told.lower_bound(to));
      for (auto at = guest.lower_bound(from); at != guest.lower_bound(to); ++at) told.insert(*at);
    };
    for (int step = 0; step < 150; ++step) {
      const std::uint64_t first = 0x1f0 + rng.below(64);
      const std::uint64_t pages = 1 + rng.below(12);
      for (std::uint64_t dfn = first; dfn < first + pages; ++dfn) {
        if (rng.chance(0.5)) {
          if (guest.erase(dfn) == 0) continue;
          ASSERT_EQ(table.unmap(dfn << kPageLg2, kPageSize, ReclaimTables::WhenCovered).status, EditStatus::Ok);
        } else if (!guest.contains(dfn)) {
          const std::uint64_t gfn = rng.below(kGuestPages);
          const Permissions permissions = rng.chance(0.5) ? kReadWrite : kReadOnly;
          const TableEdit edit =
              table.map({.input = dfn << kPageLg2, .output = gfn << kPageLg2, .permissions = permissions});
          ASSERT_EQ(edit.status, EditStatus::Ok);
          guest[dfn] = {gfn, permissions};
        }
      }
      if (rng.chance(0.2)) {
        v.flush_all(kNic);
        told = guest;
      } else {
        announce(first, pages);
      }
      const std::uint64_t probe = 0x1e0 + rng.below(96);
      const auto expected = told.find(probe);
      const auto there = v.machine.reach(kNic, Dfn(probe));
      ASSERT_EQ(there, expected == told.end() ? std::nullopt : v.frame(Gfn(expected->second.first)));
      if (expected != told.end()) {
        ASSERT_EQ(v.machine.reach(kNic, Dfn(probe), Access::Write).has_value(), expected->second.second.write);
      }
      ASSERT_EQ(v.machine.xen.references().total(), told.size());
    }
  }
}

// Hostile tables ----------------------------------------------------------------------------------------------------

// A table that contains itself makes 2^36 pages out of one. Kills: a sync that never ends, or takes all memory.
TEST_P(XenShadow, TablesThatContainThemselvesAreRefusedAndTheDeviceIsBlocked) {
  Shadow v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  ASSERT_EQ(table.map({.input = 0, .output = 0x7000}).status, EditStatus::Ok);
  // Every entry of every table links the last level, which is full of pages.
  GuestPool& pool = v.kernel.pool();
  const std::uint64_t root = table.root().address;
  std::vector<std::uint64_t> levels{root};
  for (unsigned i = 0; i < table.root().top_level; ++i) {
    const auto below = v.kernel.pool().read64(levels.back());
    ASSERT_NE(below, 0U);
    for (std::uint64_t entry = 1; entry < 512; ++entry) pool.write64(levels.back() + 8 * entry, below);
    // The family knows where the pointer is; the test finds the table by looking for the next page that is used.
    std::uint64_t next = 0;
    for (std::uint64_t page = Gfn(kGuestPages / 2).address().value(); page < Gfn(kGuestPages).address().value();
         page += kPageSize.value()) {
      const bool known = std::find(levels.begin(), levels.end(), page) != levels.end();
      if (!known && (below & ~0xfffULL & ((1ULL << 40) - 1)) == page) next = page;
    }
    ASSERT_NE(next, 0U);
    levels.push_back(next);
  }
  const std::uint64_t leaf = pool.read64(levels.back());
  for (std::uint64_t entry = 1; entry < 512; ++entry) pool.write64(levels.back() + 8 * entry, leaf);
  v.flush_all(kNic);
  EXPECT_EQ(v.translation->refused(), 1U);
  EXPECT_EQ(v.translation->counters().refused_scans, 1U);
  EXPECT_EQ(v.machine.reach(kNic, Dfn(0)), std::nullopt);
  EXPECT_EQ(v.machine.xen.references().total(), 0U);
  EXPECT_FALSE(v.machine.guest().crashed);
}
// Roots and tables outside memory are empty. Kills: a read of whatever lies there.
TEST_P(XenShadow, TablesOutsideMemoryAreEmpty) {
  Shadow v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  v.map(table, kNic, Dfn(0x100), Gfn(70));
  ContextSetting setting = v.kernel.setting(kNic);
  for (const std::uint64_t nowhere : {kGuestPages << kPageLg2, std::uint64_t{1} << 46}) {
    setting.stage2.address = nowhere;
    v.kernel.point(kNic, setting);
    v.kernel.invalidate({1, {.kind = InvalidationKind::Iotlb, .domain = setting.domain}});
    EXPECT_EQ(v.machine.reach(kNic, Dfn(0x100)), std::nullopt);
    EXPECT_EQ(v.machine.xen.references().total(), 0U);
  }
}
// Xen's heap runs out in the middle of a sync. Kills: references of pages that stay mapped, or of pages that never
// were; a device that goes on with half a table.
TEST_P(XenShadow, WithoutTablePagesTheDeviceIsBlockedAndTheBooksBalance) {
  Shadow v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  v.map(table, kNic, Dfn(0x100), Gfn(70), 4);
  // One page is left: too little for three tables.
  const auto last = v.machine.frames->allocate();
  ASSERT_TRUE(last);
  for (unsigned order = 18; order <= 18; --order)
    while (v.machine.frames->allocate(order)) {
    }
  ASSERT_TRUE(v.machine.frames->release(*last));
  for (std::uint64_t i = 0; i < 3; ++i)
    ASSERT_EQ(table.map({.input = (i + 1) << 39, .output = 0x7000}).status, EditStatus::Ok);
  v.flush_all(kNic);
  EXPECT_EQ(v.translation->refused(), 1U);
  EXPECT_EQ(v.machine.reach(kNic, Dfn(0x100)), std::nullopt) << "blocked";
  std::uint64_t mapped = 0;
  const auto shadow = std::find_if(v.machine.guest().private_contexts.begin(), v.machine.guest().private_contexts.end(),
                                   [](const auto& c) { return c->table->lookup(Dfn(0x100).address().value()); });
  ASSERT_NE(shadow, v.machine.guest().private_contexts.end());
  (*shadow)->table->for_each_leaf({}, [&](const MappedLeaf&) { ++mapped; });
  EXPECT_EQ(v.machine.xen.references().total(), mapped);
}

}  // namespace
}  // namespace iommu::xen
