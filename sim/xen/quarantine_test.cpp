// SPDX-License-Identifier: Apache-2.0
// Devices that are nobody's, and devices that fault too often. Numbers are those of the interface's list of testable
// behaviours.
#include <gtest/gtest.h>

#include <array>

#include "sim/xen/xen_test_support.hpp"

namespace iommu::xen {
namespace {

class XenQuarantine : public XenFamilies {};
XEN_ON_ALL_FAMILIES(XenQuarantine);

// Behaviour 89.
TEST_P(XenQuarantine, BasicQuarantineFaultsEveryRequest) {
  Machine m(family());
  const std::uint64_t used = m.frames->used();
  ASSERT_EQ(m.xen.deassign_device(m.cpu, m.guest(), kNic).run(), Errno::Ok);
  for (const std::uint64_t dfn : std::array<std::uint64_t, 4>{0, 3, 1ULL << 20, m.xen.last_dfn().value()})
    for (const Access access : {Access::Read, Access::Write}) EXPECT_EQ(m.reach(kNic, Dfn(dfn), access), std::nullopt);
  EXPECT_EQ(m.xen.scratch_page(kNic), std::nullopt);
  EXPECT_EQ(m.frames->used(), used);
}
// Behaviour 90. Kills: a scratch page that is somebody's, one for all devices, and addresses that it does not cover.
TEST_P(XenQuarantine, AScratchPageTakesEveryRequestOfItsDevice) {
  Machine m(family(), {.xen = {.quarantine = Quarantine::ScratchPage}});
  ASSERT_EQ(m.xen.deassign_device(m.cpu, m.guest(), kNic).run(), Errno::Ok);
  ASSERT_EQ(m.xen.deassign_device(m.cpu, m.guest(), kDisk).run(), Errno::Ok);
  const auto page = m.xen.scratch_page(kNic);
  ASSERT_TRUE(page);
  EXPECT_NE(page, m.xen.scratch_page(kDisk));
  for (const auto& domain : m.xen.domains()) EXPECT_EQ(domain->p2m.frame_of(*page), std::nullopt);
  for (const std::uint64_t dfn :
       std::array<std::uint64_t, 7>{0, 3, 511, 512, 0x12345, 1ULL << 30, m.xen.last_dfn().value()})
    for (const Access access : {Access::Read, Access::Write}) {
      EXPECT_EQ(m.reach(kNic, Dfn(dfn), access), page) << dfn;
      EXPECT_EQ(m.reach(kDisk, Dfn(dfn), access), m.xen.scratch_page(kDisk)) << dfn;
    }
  EXPECT_LE(m.xen.unit(0).driver().page_sizes(TableKind::Stage2) & 0xfffU, 0U);
}
TEST_P(XenQuarantine, ADeviceLeavesQuarantineAndItsPagesReturn) {
  Machine m(family(), {.xen = {.quarantine = Quarantine::ScratchPage}});
  const std::uint64_t used = m.frames->used();
  const std::uint64_t bytes = m.xen.table_bytes();
  const auto tag = m.xen.unit(0).allocate_tag();
  ASSERT_TRUE(tag);
  m.xen.unit(0).release_tag(*tag);
  ASSERT_EQ(m.xen.deassign_device(m.cpu, m.guest(), kNic).run(), Errno::Ok);
  EXPECT_GT(m.frames->used(), used);
  EXPECT_GT(m.xen.table_bytes(), bytes);
  ASSERT_NE(m.reach(kNic, Dfn(3)), std::nullopt);  // cached
  ASSERT_EQ(m.xen.assign_device(m.cpu, *m.other, {.requester = kNic}).run(), Errno::Ok);
  EXPECT_EQ(m.reach(kNic, Dfn(3)), m.frame(*m.other, Gfn(3)));
  EXPECT_EQ(m.reach(kNic, Dfn(1 << 20)), std::nullopt);
  EXPECT_EQ(m.frames->used(), used);
  EXPECT_EQ(m.xen.table_bytes(), bytes);
  EXPECT_EQ(m.xen.unit(0).allocate_tag(), tag);
}
// Kills: a page that shows the device what somebody left in it.
TEST_P(XenQuarantine, AScratchPageBeginsEmpty) {
  Machine m(family(), {.xen = {.quarantine = Quarantine::ScratchPage}});
  std::vector<Mfn> used;
  for (int i = 0; i < 64; ++i) used.push_back(*m.frames->allocate());
  for (const Mfn frame : used) m.host.write64(frame.address(), 7);
  for (const Mfn frame : used) ASSERT_TRUE(m.frames->release(frame));
  ASSERT_EQ(m.xen.deassign_device(m.cpu, m.guest(), kNic).run(), Errno::Ok);
  const auto page = m.xen.scratch_page(kNic);
  ASSERT_TRUE(page);
  ASSERT_NE(std::find(used.begin(), used.end(), *page), used.end()) << "this test is about a page that is used again";
  EXPECT_EQ(m.host.read64(page->address()), 0U);
}
// One free frame more each time. Kills: a scratch page that was not completed and keeps frames or a tag.
TEST_P(XenQuarantine, AScratchPageThatCannotBeCompletedKeepsNothing) {
  Machine m(family(), {.xen = {.quarantine = Quarantine::ScratchPage}});
  std::vector<Mfn> hoard;
  while (const auto frame = m.frames->allocate()) hoard.push_back(*frame);
  const auto tag = m.xen.unit(0).allocate_tag();
  ASSERT_TRUE(tag);
  m.xen.unit(0).release_tag(*tag);
  int refusals = 0;
  for (;; ++refusals) {
    ASSERT_LT(refusals, 10);
    const std::uint64_t used = m.frames->used();
    ASSERT_EQ(m.xen.deassign_device(m.cpu, m.guest(), kNic).run(), Errno::Ok);
    if (m.xen.scratch_page(kNic)) break;
    EXPECT_EQ(m.frames->used(), used);
    EXPECT_EQ(m.xen.unit(0).allocate_tag(), tag);
    m.xen.unit(0).release_tag(*tag);
    m.assign(m.guest(), {.requester = kNic});
    ASSERT_TRUE(m.frames->release(hoard.back()));
    hoard.pop_back();
  }
  EXPECT_GT(refusals, 2);
}
// Kills: a page that goes back to the heap although its device may still write to it.
TEST_P(XenQuarantine, AScratchPageWhoseFlushStaysUnansweredIsNotReused) {
  Machine m(family(), {.xen = {.quarantine = Quarantine::ScratchPage}});
  ASSERT_EQ(m.xen.deassign_device(m.cpu, m.guest(), kNic).run(), Errno::Ok);
  const std::uint64_t used = m.frames->used();
  m.xen.unit(0).lose_invalidations(1);
  (void)m.xen.assign_device(m.cpu, *m.other, {.requester = kNic}).run();
  EXPECT_EQ(m.frames->used(), used);
}
// Kills: a device that keeps the scratch page in its own cache.
TEST_P(XenQuarantine, ADeviceWithACacheForgetsItsScratchPage) {
  MachineOptions options{.xen = {.quarantine = Quarantine::ScratchPage}};
  options.features.device_tlb = true;
  Machine m(family(), options);
  const DeviceSetting card{.requester = RequesterId::bdf(9, 0, 0), .device_tlb = true};
  m.assign(m.guest(), card);
  ASSERT_EQ(m.xen.deassign_device(m.cpu, m.guest(), card.requester).run(), Errno::Ok);
  ASSERT_EQ(m.unit().device_cached(card.requester, Dfn(3).address()), m.xen.scratch_page(card.requester)->address());
  m.assign(*m.other, card);
  EXPECT_EQ(m.unit().device_cached(card.requester, Dfn(3).address()), m.frame(*m.other, Gfn(3)).address());
}
TEST_P(XenQuarantine, PhantomFunctionsAreInQuarantineToo) {
  Machine m(family(), {.xen = {.quarantine = Quarantine::ScratchPage}});
  constexpr RequesterId kCard = RequesterId::bdf(9, 0, 0);
  constexpr RequesterId kPhantom = RequesterId::bdf(9, 0, 1);
  m.assign(m.guest(), {.requester = kCard, .phantom_functions = {kPhantom}});
  ASSERT_EQ(m.xen.deassign_device(m.cpu, m.guest(), kCard).run(), Errno::Ok);
  EXPECT_EQ(m.reach(kPhantom, Dfn(3)), m.xen.scratch_page(kCard));
  EXPECT_EQ(m.reach(kCard, Dfn(3)), m.xen.scratch_page(kCard));
}
// Kills: a device that keeps its old translations because there was no memory for the scratch page.
TEST_P(XenQuarantine, WithoutMemoryForAScratchPageTheDeviceIsBlocked) {
  Machine m(family(), {.xen = {.quarantine = Quarantine::ScratchPage}});
  ASSERT_NE(m.reach(kNic, Dfn(3)), std::nullopt);
  for (unsigned order = 19; order-- > 0;)
    while (m.frames->allocate(order)) {
    }
  ASSERT_EQ(m.xen.deassign_device(m.cpu, m.guest(), kNic).run(), Errno::Ok);
  EXPECT_EQ(m.reach(kNic, Dfn(3)), std::nullopt);
  EXPECT_EQ(m.xen.scratch_page(kNic), std::nullopt);
}

// Faults ------------------------------------------------------------------------------------------------------------

// Behaviour 91. Kills: the ninth, the eleventh, and a count that starts again for each burst.
TEST(XenFaults, TheTenthFaultInARowCutsBusMastering) {
  FaultThrottle throttle;
  for (int i = 1; i < 10; ++i) EXPECT_EQ(throttle.count(1_ms * i), BusMastering::On) << i;
  EXPECT_EQ(throttle.count(10_ms), BusMastering::CutOff);
  EXPECT_EQ(throttle.count(1000_ms), BusMastering::CutOff) << "for good";
}
TEST(XenFaults, TenMillisecondsApartIsNotYetSlow) {
  FaultThrottle throttle;
  for (int i = 1; i < 10; ++i) EXPECT_EQ(throttle.count(10_ms * i), BusMastering::On);
  EXPECT_EQ(throttle.count(100_ms), BusMastering::CutOff);
}
TEST(XenFaults, SlowFaultsNeverCutBusMastering) {
  FaultThrottle throttle;
  for (int i = 1; i < 1000; ++i) EXPECT_EQ(throttle.count(11_ms * i), BusMastering::On);
}
// The count halves, it does not vanish: nine, a pause, then six more.
TEST(XenFaults, APauseHalvesTheCount) {
  FaultThrottle throttle;
  for (int i = 1; i <= 9; ++i) EXPECT_EQ(throttle.count(1_ms * i), BusMastering::On);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(throttle.count(50_ms + 1_ms * i), BusMastering::On) << i;
  EXPECT_EQ(throttle.count(55_ms), BusMastering::CutOff);
}
TEST_P(XenQuarantine, FaultsOfPhantomFunctionsCountForTheirDeviceAndForNoOther) {
  Machine m(family());
  constexpr RequesterId kCard = RequesterId::bdf(9, 0, 0);
  constexpr RequesterId kPhantom = RequesterId::bdf(9, 0, 1);
  m.assign(m.guest(), {.requester = kCard, .phantom_functions = {kPhantom}});
  for (int i = 0; i < 9; ++i) EXPECT_EQ(m.xen.note_fault(i % 2 == 0 ? kCard : kPhantom, 1_us * i), BusMastering::On);
  EXPECT_EQ(m.xen.note_fault(kNic, 9_us), BusMastering::On);
  EXPECT_EQ(m.xen.note_fault(RequesterId::bdf(99, 0, 0), 9_us), BusMastering::On) << "nobody's";
  EXPECT_EQ(m.xen.note_fault(kPhantom, 9_us), BusMastering::CutOff);
}

}  // namespace
}  // namespace iommu::xen
