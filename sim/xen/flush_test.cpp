// SPDX-License-Identifier: Apache-2.0
// How many invalidations a change causes, of which kind, on which units. Numbers are those of the interface's list of
// testable behaviours; what one family's driver makes of a range is that family's business and tested there.
#include <gtest/gtest.h>

#include "sim/xen/xen_test_support.hpp"

namespace iommu::xen {
namespace {

class XenFlush : public XenFamilies {
 protected:
  // A neighbour keeps the table, so that unmapping empties nothing and the flush can be exact.
  static std::uint16_t with_neighbour(Machine& m) {
    const std::uint16_t context = m.attached(m.guest());
    EXPECT_EQ(m.map(m.guest(), context, Dfn(0x1ff), Gfn(1), 1).status, Errno::Ok);
    m.unit().forget_history();
    return context;
  }
};
XEN_ON_ALL_FAMILIES(XenFlush);

// Behaviour 75. Kills: a flush per page.
TEST_P(XenFlush, OneCallIsOneFlush) {
  Machine m(family());
  const std::uint16_t context = with_neighbour(m);
  const std::uint64_t calls = m.xen.counters().flush_calls;
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 32).status, Errno::Ok);
  ASSERT_EQ(m.unmap(m.guest(), context, Dfn(0x100), 32).status, Errno::Ok);
  EXPECT_EQ(m.xen.counters().flush_calls, calls + 1);
  EXPECT_EQ(m.unit().count(InvalidationKind::Iotlb), 1U);
  EXPECT_EQ(m.unit().fences, 1U);
}
// Behaviour 75, slices.
TEST_P(XenFlush, EverySliceOfAPreemptedCallFlushesForItself) {
  Machine m(family(), {.xen = {.slice_pages = 8}});
  const std::uint16_t context = with_neighbour(m);
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 32).status, Errno::Ok);
  ASSERT_EQ(m.unmap(m.guest(), context, Dfn(0x100), 32).status, Errno::Ok);
  EXPECT_EQ(m.unit().count(InvalidationKind::Iotlb), 4U);
  EXPECT_EQ(m.unit().fences, 4U);
}
// Behaviour 76, as far as every family has it: one aligned page is one command for that page.
TEST_P(XenFlush, AnAlignedPageIsInvalidatedAlone) {
  Machine m(family());
  const std::uint16_t context = with_neighbour(m);
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 2).status, Errno::Ok);
  ASSERT_NE(m.reach(kNic, Dfn(0x101)), std::nullopt);
  ASSERT_EQ(m.unmap(m.guest(), context, Dfn(0x100), 1).status, Errno::Ok);
  ASSERT_EQ(m.unit().applied.size(), 1U);
  const InvalidationScope scope = m.unit().applied.front();
  EXPECT_EQ(scope.domain, m.context(m.guest(), context).tags.front());
  ASSERT_TRUE(scope.range);
  EXPECT_EQ(scope.range->first, Dfn(0x100).address().value());
  EXPECT_EQ(scope.range->last, Dfn(0x101).address().value() - 1);
}
// Behaviours 76 and 80 on any family: whatever the command names, it covers what was unmapped.
TEST_P(XenFlush, AnyRangeIsCovered) {
  for (const auto& [first, pages] : {std::pair{0x101ULL, 3U}, {0x100ULL, 12U}, {0x110ULL, 16U}, {0xfffULL, 2U}}) {
    Machine m(family());
    const std::uint16_t context = with_neighbour(m);
    ASSERT_EQ(m.map(m.guest(), context, Dfn(first), Gfn(20), pages).status, Errno::Ok);
    for (std::uint64_t i = 0; i < pages; ++i) ASSERT_NE(m.reach(kNic, Dfn(first + i)), std::nullopt);
    ASSERT_EQ(m.unmap(m.guest(), context, Dfn(first), pages).status, Errno::Ok);
    for (std::uint64_t i = 0; i < pages; ++i) EXPECT_EQ(m.reach(kNic, Dfn(first + i)), std::nullopt);
    EXPECT_EQ(m.unit().count(InvalidationKind::Iotlb), 1U);
  }
}
// Behaviours 77 and 81: entries that were not present are cached nowhere.
TEST_P(XenFlush, AddingAloneNeedsNoInvalidation) {
  Machine m(family());
  const std::uint16_t context = with_neighbour(m);
  const ContextCounters before = m.xen.counters();
  EXPECT_EQ(m.reach(kNic, Dfn(0x100)), std::nullopt);
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 8).status, Errno::Ok);
  EXPECT_EQ(m.unit().fences, 0U);
  EXPECT_TRUE(m.unit().applied.empty());
  EXPECT_EQ(m.xen.counters().flushes_skipped, before.flushes_skipped + 1);
  EXPECT_NE(m.reach(kNic, Dfn(0x100)), std::nullopt);
}
// Behaviour 78.
TEST_P(XenFlush, AddingIsInvalidatedWhereNotPresentEntriesAreCached) {
  MachineOptions options;
  options.features.caching_mode = true;
  if (family().unsupported != nullptr && !family().unsupported(options.features).empty()) GTEST_SKIP();
  Machine m(family(), options);
  const std::uint16_t context = with_neighbour(m);
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 8).status, Errno::Ok);
  EXPECT_EQ(m.unit().count(InvalidationKind::Iotlb), 1U);
  EXPECT_EQ(m.unit().fences, 1U);
}
// Behaviour 49: what was mapped before a conflict is as usable as after a success. Kills: a flush that a refusal skips.
TEST_P(XenFlush, PagesMappedBeforeAConflictAreInvalidatedToo) {
  MachineOptions options;
  options.features.caching_mode = true;
  if (family().unsupported != nullptr && !family().unsupported(options.features).empty()) GTEST_SKIP();
  Machine m(family(), options);
  const std::uint16_t context = with_neighbour(m);
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x1fd), Gfn(20), 4).status, Errno::AddressInUse);
  ASSERT_EQ(m.unit().count(InvalidationKind::Iotlb), 1U);
  const auto range = m.unit().applied.front().range;
  EXPECT_TRUE(!range ||
              (range->first <= Dfn(0x1fd).address().value() && range->last >= Dfn(0x1ff).address().value() - 1));
}
// Behaviour 79. Kills: fences on units that have none of the context's devices, and units that are left out.
TEST_P(XenFlush, EveryUnitInUseGetsACommandAndAFenceAndNoOther) {
  Machine m(family(), {.units = 3});  // the NIC behind the first, the disk behind the last
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x1ff), Gfn(1), 1).status, Errno::Ok);
  const auto flushed = [&](std::uint64_t first, std::uint64_t second, std::uint64_t third) {
    for (const auto& unit : m.units) unit->forget_history();
    ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 1).status, Errno::Ok);
    ASSERT_EQ(m.unmap(m.guest(), context, Dfn(0x100), 1).status, Errno::Ok);
    const std::array<std::uint64_t, 3> expected{first, second, third};
    for (std::size_t i = 0; i < m.units.size(); ++i) {
      EXPECT_EQ(m.units[i]->applied.size(), expected[i]) << i;
      EXPECT_EQ(m.units[i]->fences, expected[i]) << i;
    }
  };
  flushed(1, 0, 0);
  ASSERT_EQ(m.reattach(m.guest(), kDisk, context), Errno::Ok);
  flushed(1, 0, 1);
  ASSERT_EQ(m.reattach(m.guest(), kNic, 0), Errno::Ok);
  flushed(0, 0, 1);
  ASSERT_EQ(m.reattach(m.guest(), kDisk, 0), Errno::Ok);
  flushed(0, 0, 0);
}
// Two descriptors in the ring for each flush: the command and its fence. (79)
TEST_P(XenFlush, AFlushIsTwoCommandsInTheRing) {
  Machine m(family());
  const std::uint16_t context = with_neighbour(m);
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 1).status, Errno::Ok);
  m.xen.unit(0).reset_counters();
  ASSERT_EQ(m.unmap(m.guest(), context, Dfn(0x100), 1).status, Errno::Ok);
  const InvalidationCounters& submitted = m.xen.unit(0).submitted();
  EXPECT_EQ(submitted.commands(), 2U);
  EXPECT_EQ(submitted.fence, 1U);
  EXPECT_EQ(submitted.iotlb_page, 1U);
  EXPECT_EQ(m.xen.unit(0).queue().counters().fences, 1U);
  EXPECT_EQ(m.xen.unit(0).queue().counters().tail_writes, 2U) << "one for each, as Xen does it";
  EXPECT_EQ(m.xen.unit(0).queue().counters().bytes % 2, 0U);
}
// Behaviour 82. Kills: one command for all devices, or a device's before the unit's.
TEST_P(XenFlush, EveryDeviceWithACacheAddsACommandAndAFence) {
  MachineOptions options;
  options.features.device_tlb = true;
  Machine m(family(), options);
  const std::uint16_t context = with_neighbour(m);
  for (unsigned i = 0; i < 3; ++i) {
    const RequesterId device = RequesterId::bdf(8, i, 0);
    m.assign(m.guest(), {.requester = device, .device_tlb = true});
    ASSERT_EQ(m.reattach(m.guest(), device, context), Errno::Ok);
  }
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 1).status, Errno::Ok);
  m.unit().forget_history();
  ASSERT_EQ(m.unmap(m.guest(), context, Dfn(0x100), 1).status, Errno::Ok);
  EXPECT_EQ(m.unit().count(InvalidationKind::Iotlb), 1U);
  EXPECT_EQ(m.unit().count(InvalidationKind::DeviceTlb), 3U);
  EXPECT_EQ(m.unit().fences, 4U);
  EXPECT_EQ(m.unit().applied.front().kind, InvalidationKind::Iotlb);
}
// A context without devices is in no cache.
TEST_P(XenFlush, AContextWithoutDevicesNeedsNoInvalidation) {
  Machine m(family());
  const std::uint16_t context = m.alloc(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 8).status, Errno::Ok);
  m.unit().forget_history();
  ASSERT_EQ(m.unmap(m.guest(), context, Dfn(0x100), 8).status, Errno::Ok);
  EXPECT_EQ(m.unit().fences, 0U);
}
// Where walks are not coherent, every line that was written is flushed, and only then.
TEST_P(XenFlush, LinesAreFlushedForAUnitThatDoesNotSnoop) {
  MachineOptions options;
  options.features.coherent_walks = false;
  for (const bool coherent : {true, false}) {
    options.features.coherent_walks = coherent;
    Machine m(family(), options);
    const std::uint16_t context = with_neighbour(m);
    const std::uint64_t before = m.cpu.charged()[CostId::CacheLineFlush];
    ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 8).status, Errno::Ok);
    EXPECT_EQ(m.cpu.charged()[CostId::CacheLineFlush] - before, coherent ? 0U : 1U);
  }
}

}  // namespace
}  // namespace iommu::xen
