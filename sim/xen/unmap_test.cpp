// SPDX-License-Identifier: Apache-2.0
// unmap_pages: what goes, when it may be used again, and what is left when it cannot go. Numbers are those of the
// interface's list of testable behaviours.
#include <gtest/gtest.h>

#include <array>

#include "sim/xen/xen_test_support.hpp"

namespace iommu::xen {
namespace {

using abi::Subop;

class XenUnmap : public XenFamilies {};
XEN_ON_ALL_FAMILIES(XenUnmap);

// Behaviour 67.
TEST_P(XenUnmap, ContextZeroAndUnknownContextsAreInvalid) {
  Machine m(family());
  EXPECT_EQ(m.unmap(m.guest(), 1, Dfn(1), 1).status, Errno::Invalid);  // not even initialised
  ASSERT_EQ(m.init(m.guest(), 4, 6), Errno::Ok);
  for (const std::uint16_t context : std::array<std::uint16_t, 5>{0, 1, 4, 5, 0xffff})
    EXPECT_EQ(m.unmap(m.guest(), context, Dfn(3), 1).status, Errno::Invalid) << context;
  EXPECT_EQ(m.reach(kNic, Dfn(3)), m.frame(m.guest(), Gfn(3))) << "context 0 is not the guest's to change";
}
TEST_P(XenUnmap, PageSizesThatAreNotAnnouncedAreInvalid) {
  Machine m(family());
  const std::uint16_t context = m.alloc(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(512), Gfn(512), 512).status, Errno::Ok);
  for (const std::uint32_t size : {0U, 1U << 21, 0x1800U, 0xffffffffU}) {
    abi::UnmapPages unmap = Machine::unmap_argument(context, Dfn(512), 1);
    unmap.pgsize = size;
    EXPECT_EQ(m.call(m.guest(), Subop::UnmapPages, unmap), Errno::Invalid) << size;
  }
  EXPECT_EQ(m.xen.references().total(), 512U);
}
// Behaviour 68. Kills: holes that are skipped, references of pages behind a hole.
TEST_P(XenUnmap, AHoleStopsTheCallAndWhatWasUnmappedIsFlushed) {
  for (std::uint64_t hole = 0; hole < 5; ++hole) {
    SCOPED_TRACE(hole);
    Machine m(family());
    const std::uint16_t context = m.attached(m.guest());
    for (std::uint64_t i = 0; i < 5; ++i) {
      if (i == hole) continue;
      ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100 + i), Gfn(20 + i), 1).status, Errno::Ok);
      ASSERT_NE(m.reach(kNic, Dfn(0x100 + i)), std::nullopt);
    }
    const auto unmapped = m.unmap(m.guest(), context, Dfn(0x100), 5);
    EXPECT_EQ(unmapped.status, Errno::NoEntry);
    EXPECT_EQ(unmapped.done, hole);
    for (std::uint64_t i = 0; i < 5; ++i) {
      EXPECT_EQ(m.reach(kNic, Dfn(0x100 + i)),
                i > hole ? std::optional(m.frame(m.guest(), Gfn(20 + i))) : std::nullopt);
      EXPECT_EQ(m.references(m.guest(), Gfn(20 + i)), i > hole ? 1U : 0U);
    }
  }
}
// Behaviour 69. Kills: an unmap that returns before its flush.
TEST_P(XenUnmap, AfterReturnNoDeviceOfTheContextSeesThePage) {
  Machine m(family(), {.units = 2});
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.reattach(m.guest(), kDisk, context), Errno::Ok);
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 8).status, Errno::Ok);
  for (std::uint64_t i = 0; i < 8; ++i)
    for (const RequesterId device : {kNic, kDisk}) ASSERT_NE(m.reach(device, Dfn(0x100 + i)), std::nullopt);
  ASSERT_EQ(m.unmap(m.guest(), context, Dfn(0x102), 3).status, Errno::Ok);
  for (std::uint64_t i = 0; i < 8; ++i)
    for (const RequesterId device : {kNic, kDisk})
      EXPECT_EQ(m.reach(device, Dfn(0x100 + i)).has_value(), i < 2 || i > 4) << i;
}
TEST_P(XenUnmap, ADevicesOwnCacheIsFlushedToo) {
  MachineOptions options;
  options.features.device_tlb = true;
  Machine m(family(), options);
  constexpr RequesterId kCaching = RequesterId::bdf(8, 0, 0);
  m.assign(m.guest(), {.requester = kCaching, .device_tlb = true});
  const std::uint16_t context = m.attached(m.guest(), kCaching);
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 3).status, Errno::Ok);
  for (std::uint64_t i = 0; i < 3; ++i)
    ASSERT_NE(m.unit().device_cached(kCaching, Dfn(0x100 + i).address()), std::nullopt);
  ASSERT_EQ(m.unmap(m.guest(), context, Dfn(0x100), 3).status, Errno::Ok);
  for (std::uint64_t i = 0; i < 3; ++i)
    EXPECT_EQ(m.unit().device_cached(kCaching, Dfn(0x100 + i).address()), std::nullopt) << i;
}
// Behaviour 70. The entry goes first, then the fence, then the reference. Kills: the reference, or a table page, given
// back while a device may still use it.
TEST_P(XenUnmap, PagesAndTablesAreGivenBackOnlyAfterTheFence) {
  Machine m(family());
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 3).status, Errno::Ok);
  ASSERT_NE(m.reach(kNic, Dfn(0x101)), std::nullopt);
  const std::uint64_t used = m.arena_used(m.guest());
  m.unit().execution = CachingUnit::Execution::OnRequest;
  Stepper stepper(m.host);
  abi::UnmapPages unmap = Machine::unmap_argument(context, Dfn(0x100), 3);
  ASSERT_TRUE(m.guest().memory.write(Gpa(0x20000), std::as_bytes(std::span(&unmap, 1))));
  auto call = m.op.call(stepper.add_cpu(), m.guest(), static_cast<std::uint32_t>(Subop::UnmapPages), Gpa(0x20000));
  call.start();
  stepper.run();
  ASSERT_FALSE(call.done()) << "the call returned before its fence";
  EXPECT_EQ(m.context(m.guest(), context).table->lookup(Dfn(0x101).address().value()), std::nullopt);
  EXPECT_NE(m.reach(kNic, Dfn(0x101)), std::nullopt) << "the device still has it cached: that is why";
  for (std::uint64_t i = 0; i < 3; ++i) EXPECT_EQ(m.references(m.guest(), Gfn(20 + i)), 1U);
  EXPECT_EQ(m.arena_used(m.guest()), used);
  m.unit().execute();
  stepper.run();
  ASSERT_TRUE(call.done());
  EXPECT_EQ(m.reach(kNic, Dfn(0x101)), std::nullopt);
  EXPECT_EQ(m.xen.references().total(), 0U);
  EXPECT_LT(m.arena_used(m.guest()), used);
}
// Behaviour 71. Kills: a split that loses neighbours, their permissions or their references.
TEST_P(XenUnmap, InsideALargePageTheNeighboursStay) {
  for (const std::uint64_t gone : {0U, 1U, 200U, 511U}) {
    SCOPED_TRACE(gone);
    Machine m(family(), {.xen = {.coalesce = Coalesce::Yes}});
    const std::uint16_t context = m.attached(m.guest());
    ASSERT_EQ(m.map(m.guest(), context, Dfn(1024), Gfn(512), 512, abi::kMapReadable).status, Errno::Ok);
    ASSERT_EQ(m.context(m.guest(), context).table->lookup(Dfn(1024).address().value())->page_lg2, 21);
    ASSERT_NE(m.reach(kNic, Dfn(1024 + gone)), std::nullopt);
    EXPECT_EQ(m.unmap(m.guest(), context, Dfn(1024 + gone), 1).done, 1U);
    for (std::uint64_t i = 0; i < 512; ++i) {
      const auto there = m.reach(kNic, Dfn(1024 + i));
      ASSERT_EQ(there, i == gone ? std::nullopt : std::optional(m.frame(m.guest(), Gfn(512 + i)))) << i;
    }
    EXPECT_EQ(m.reach(kNic, Dfn(1024 + (gone ^ 1)), Access::Write), std::nullopt);
    EXPECT_EQ(m.references(m.guest(), Gfn(512 + gone)), 0U);
    EXPECT_EQ(m.xen.references().total(), 511U);
  }
}
// Behaviour 72. Kills: a large page that is gone although it could not be split.
TEST_P(XenUnmap, ASplitWithoutTablePagesChangesNothing) {
  Machine m(family(), {.xen = {.coalesce = Coalesce::Yes}});
  ASSERT_EQ(m.init(m.guest(), 8, 3), Errno::Ok);
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(1024), Gfn(512), 512).status, Errno::Ok);
  while (m.try_alloc(m.guest()).status == Errno::Ok) {
  }
  while (m.guest().pv->arena->allocate(0)) {
  }
  m.unit().forget_history();
  const auto unmapped = m.unmap(m.guest(), context, Dfn(1024 + 100), 1);
  EXPECT_EQ(unmapped.status, Errno::NoMemory);
  EXPECT_EQ(unmapped.done, 0U);
  EXPECT_EQ(m.context(m.guest(), context).table->lookup(Dfn(1024).address().value())->page_lg2, 21);
  for (const std::uint64_t i : {0U, 100U, 511U})
    EXPECT_EQ(m.reach(kNic, Dfn(1024 + i)), m.frame(m.guest(), Gfn(512 + i)));
  EXPECT_EQ(m.xen.references().total(), 512U);
  EXPECT_EQ(m.unmap(m.guest(), context, Dfn(1024), 512).status, Errno::Ok) << "as a whole it needs no page";
  EXPECT_EQ(m.xen.references().total(), 0U);
}
// Behaviour 73.
TEST_P(XenUnmap, EmptiedTablesGoUpwardAndRaiseADomainWideFlush) {
  Machine m(family());
  const std::uint16_t context = m.attached(m.guest());
  const std::uint64_t empty = m.arena_used(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(1ULL << 30), Gfn(20), 2).status, Errno::Ok);
  ASSERT_GT(m.arena_used(m.guest()), empty + 1);
  m.unit().forget_history();
  ASSERT_EQ(m.unmap(m.guest(), context, Dfn(1ULL << 30), 1).status, Errno::Ok);
  ASSERT_EQ(m.unit().count(InvalidationKind::Iotlb), 1U);
  EXPECT_TRUE(m.unit().applied.front().range) << "nothing was emptied yet";
  m.unit().forget_history();
  ASSERT_EQ(m.unmap(m.guest(), context, Dfn((1ULL << 30) + 1), 1).status, Errno::Ok);
  ASSERT_EQ(m.unit().count(InvalidationKind::Iotlb), 1U);
  EXPECT_FALSE(m.unit().applied.front().range);
  EXPECT_EQ(m.arena_used(m.guest()), empty);
}
// Behaviour 74. Kills: a flush that is decided by what was added and not by what went.
TEST_P(XenUnmap, AnAddressThatIsMappedAgainShowsTheNewFrame) {
  Machine m(family());
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x101), Gfn(5), 1).status, Errno::Ok);  // keeps the table
  for (std::uint64_t i = 0; i < 5; ++i) {
    ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20 + i), 1).status, Errno::Ok);
    EXPECT_EQ(m.reach(kNic, Dfn(0x100)), m.frame(m.guest(), Gfn(20 + i)));
    ASSERT_EQ(m.unmap(m.guest(), context, Dfn(0x100), 1).status, Errno::Ok);
  }
}

// Deferred flushing (beyond the RFC) --------------------------------------------------------------------------------

class XenDeferred : public XenFamilies {};
XEN_ON_ALL_FAMILIES(XenDeferred);

// Kills: a deferred unmap that flushes, or one that gives back what a device can still reach.
TEST_P(XenDeferred, UnmapReturnsWithoutAFlushAndKeepsEverything) {
  Machine m(family(), {.deferred = DeferredFlush::Offered});
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x200), Gfn(20), 512).status, Errno::Ok);
  ASSERT_NE(m.reach(kNic, Dfn(0x202)), std::nullopt);
  const std::uint64_t used = m.arena_used(m.guest());
  m.unit().forget_history();
  const auto unmapped = m.unmap(m.guest(), context, Dfn(0x200), 512, Subop::UnmapPagesDeferred);
  EXPECT_EQ(unmapped.status, Errno::Ok);
  EXPECT_EQ(unmapped.done, 512U);
  EXPECT_EQ(m.unit().fences, 0U);
  EXPECT_EQ(m.reach(kNic, Dfn(0x202)), m.frame(m.guest(), Gfn(22))) << "cached: the hazard is modelled";
  EXPECT_EQ(m.xen.references().total(), 512U);
  EXPECT_EQ(m.arena_used(m.guest()), used);
  abi::FlushContext flush{.ctx_no = context};
  EXPECT_EQ(m.call(m.guest(), Subop::FlushContext, flush), Errno::Ok);
  EXPECT_EQ(m.unit().fences, 1U);
  EXPECT_EQ(m.reach(kNic, Dfn(0x202)), std::nullopt);
  EXPECT_EQ(m.xen.references().total(), 0U);
  EXPECT_LT(m.arena_used(m.guest()), used);
}
// A table that the call does not cover stays, for a walk cache may go on using it. Kills: an unlinked table through
// which a device looks for a page that was mapped beside the others meanwhile.
TEST_P(XenDeferred, ATableThatIsNotCoveredStaysInUse) {
  Machine m(family(), {.deferred = DeferredFlush::Offered});
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 4).status, Errno::Ok);
  const std::uint64_t used = m.arena_used(m.guest());
  ASSERT_EQ(m.unmap(m.guest(), context, Dfn(0x100), 4, Subop::UnmapPagesDeferred).status, Errno::Ok);
  const std::uint64_t allocated = m.cpu.charged()[CostId::TableAllocate];
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x104), Gfn(24), 1).status, Errno::Ok);
  EXPECT_EQ(m.cpu.charged()[CostId::TableAllocate], allocated);
  EXPECT_EQ(m.arena_used(m.guest()), used);
  EXPECT_EQ(m.reach(kNic, Dfn(0x104)), m.frame(m.guest(), Gfn(24)));
}
// A guest that defers and never flushes. Kills: pages remembered without bound; pages given back before their flush.
TEST_P(XenDeferred, BeyondItsLimitDeferringIsFlushingNow) {
  Machine m(family(), {.xen = {.deferred_pages = 3}, .deferred = DeferredFlush::Offered});
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 8).status, Errno::Ok);
  for (std::uint64_t i = 0; i < 6; ++i) ASSERT_NE(m.reach(kNic, Dfn(0x100 + i)), std::nullopt);
  for (std::uint64_t i = 0; i < 6; ++i)
    ASSERT_EQ(m.unmap(m.guest(), context, Dfn(0x100 + i), 1, Subop::UnmapPagesDeferred).status, Errno::Ok);
  EXPECT_EQ(m.context(m.guest(), context).deferred_frames.size(), 3U);
  for (std::uint64_t i = 0; i < 6; ++i) EXPECT_EQ(m.reach(kNic, Dfn(0x100 + i)).has_value(), i < 3) << i;
  EXPECT_EQ(m.xen.references().total(), 5U) << "three await a flush, two are mapped";
  abi::FlushContext flush{.ctx_no = context};
  ASSERT_EQ(m.call(m.guest(), Subop::FlushContext, flush), Errno::Ok);
  EXPECT_EQ(m.xen.references().total(), 2U);
  ASSERT_EQ(m.unmap(m.guest(), context, Dfn(0x106), 1, Subop::UnmapPagesDeferred).status, Errno::Ok);
  EXPECT_EQ(m.xen.references().total(), 2U) << "there is room again";
}
TEST_P(XenDeferred, FlushOfContextZeroOrAnUnknownOneIsInvalid) {
  Machine m(family(), {.deferred = DeferredFlush::Offered});
  m.alloc(m.guest());
  for (const std::uint16_t context : std::array<std::uint16_t, 3>{0, 2, 0xffff}) {
    abi::FlushContext flush{.ctx_no = context};
    EXPECT_EQ(m.call(m.guest(), Subop::FlushContext, flush), Errno::Invalid);
  }
}
// Kills: deferred pages that are forgotten, or given back twice, when their context goes.
TEST_P(XenDeferred, FreeingTheContextGivesBackWhatAwaitedItsFlush) {
  Machine m(family(), {.deferred = DeferredFlush::Offered});
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 4).status, Errno::Ok);
  ASSERT_NE(m.reach(kNic, Dfn(0x102)), std::nullopt);
  ASSERT_EQ(m.unmap(m.guest(), context, Dfn(0x100), 4, Subop::UnmapPagesDeferred).status, Errno::Ok);
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x400), Gfn(20), 512).status, Errno::Ok);  // a whole table
  ASSERT_EQ(m.unmap(m.guest(), context, Dfn(0x400), 512, Subop::UnmapPagesDeferred).status, Errno::Ok);
  EXPECT_FALSE(m.context(m.guest(), context).deferred_tables.empty()) << "this test is about tables as well";
  EXPECT_EQ(m.free(m.guest(), context, abi::kFreeReattachDefault), Errno::Ok);
  EXPECT_EQ(m.xen.references().total(), 0U);
  EXPECT_EQ(m.arena_used(m.guest()), 0U);
  EXPECT_EQ(m.reach(kNic, Dfn(0x102)), m.frame(m.guest(), Gfn(0x102)));
}
// What is unmapped while a flush is on its way waits for the next one. Kills: a flush that gives back what it did not
// cover.
TEST_P(XenDeferred, PagesUnmappedDuringAFlushWaitForTheNext) {
  Machine m(family(), {.deferred = DeferredFlush::Offered});
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 4).status, Errno::Ok);
  ASSERT_EQ(m.unmap(m.guest(), context, Dfn(0x100), 1, Subop::UnmapPagesDeferred).status, Errno::Ok);
  m.unit().execution = CachingUnit::Execution::OnRequest;
  Stepper stepper(m.host);
  abi::FlushContext flush{.ctx_no = context};
  ASSERT_TRUE(m.guest().memory.write(Gpa(0x20000), std::as_bytes(std::span(&flush, 1))));
  auto flushing =
      m.op.call(stepper.add_cpu(), m.guest(), static_cast<std::uint32_t>(Subop::FlushContext), Gpa(0x20000));
  flushing.start();
  stepper.run();
  abi::UnmapPages unmap = Machine::unmap_argument(context, Dfn(0x101), 2);
  ASSERT_TRUE(m.guest().memory.write(Gpa(0x21000), std::as_bytes(std::span(&unmap, 1))));
  auto unmapping =
      m.op.call(stepper.add_cpu(), m.guest(), static_cast<std::uint32_t>(Subop::UnmapPagesDeferred), Gpa(0x21000));
  unmapping.start();
  stepper.run();
  EXPECT_FALSE(flushing.done());
  EXPECT_EQ(m.xen.references().total(), 4U);
  m.unit().execute();
  stepper.run();
  EXPECT_TRUE(flushing.done() && unmapping.done());
  EXPECT_EQ(m.xen.references().total(), 3U) << "one flushed, two awaiting, one mapped";
}

}  // namespace
}  // namespace iommu::xen
