// SPDX-License-Identifier: Apache-2.0
// Changes of contexts, devices and memory whose invalidation no unit answers (Z16): an error, never a page, a tag or a
// device that somebody else gets while caches may know the old state. Maps and unmaps: iommu_op_batch_test.cpp.
#include <gtest/gtest.h>

#include "sim/xen/xen_test_support.hpp"

namespace iommu::xen {
namespace {

std::uint16_t context_of(const Domain& domain, RequesterId device) {
  return domain.devices.at(device).context->number.value();
}
class XenLostFence : public XenFamilies {};
XEN_ON_ALL_FAMILIES(XenLostFence);

// Kills: an answer that nobody waits for; a device left between two contexts; pages of the old one reused; a
// hardware domain that crashes, or a guest that goes on.
TEST_P(XenLostFence, AMoveWithoutAnAnswerBlocksTheDeviceAndCrashesAGuest) {
  for (const bool is_host : {false, true}) {
    Machine m(family());
    Domain& domain = is_host ? *m.dom0 : m.guest();
    constexpr RequesterId kCard = RequesterId::bdf(9, 0, 0);
    m.assign(domain, {.requester = kCard});
    const std::uint16_t one = m.attached(domain, kCard);
    const std::uint16_t two = m.alloc(domain);
    ASSERT_EQ(m.map(domain, two, Dfn(1), Gfn(20), 1).status, Errno::Ok);
    m.xen.unit(0).lose_invalidations(1);
    EXPECT_EQ(m.reattach(domain, kCard, two), Errno::InputOutput);
    EXPECT_EQ(domain.crashed, !is_host);
    EXPECT_EQ(domain.devices.at(kCard).context, &m.context(domain, one));
    EXPECT_TRUE(m.context(domain, two).devices.empty());
    EXPECT_EQ(m.free(domain, one), Errno::Busy) << "caches may know it";
    EXPECT_EQ(m.reattach(domain, kCard, two), Errno::Ok);
    EXPECT_EQ(m.reach(kCard, Dfn(1)), m.frame(domain, Gfn(20)));
    m.xen.unit(0).lose_invalidations(1);
    EXPECT_EQ(m.xen.move_device(m.cpu, domain, *m.other, kCard).run(), Errno::InputOutput);
    EXPECT_FALSE(m.other->devices.contains(kCard));
  }
}
TEST_P(XenLostFence, AChangeOfMemoryWithoutAnAnswerIsAnErrorAndCrashesAGuest) {
  Machine m(family());
  constexpr RequesterId kHostCard = RequesterId::bdf(10, 0, 0);
  m.assign(*m.dom0, {.requester = kHostCard});
  for (Domain* domain : {&m.guest(), m.dom0}) {
    m.xen.unit(0).lose_invalidations(1);
    EXPECT_EQ(m.xen.remove_memory(m.cpu, *domain, Gfn(0x100), 4).run(), Errno::InputOutput);
    EXPECT_EQ(domain->crashed, domain != m.dom0);
  }
}

// The unit may use the context for ever that a device was to move to: its tables, frames and tags are nobody's again.
// Kills: a teardown that frees what a device may still reach.
TEST_P(XenLostFence, AMoveWithoutAFenceGivesUpTheContextThatItWasToReach) {
  for (const TagAllocation when : {TagAllocation::AtCreation, TagAllocation::AtAttach}) {
    Machine m(family(), {.xen = {.tag_allocation = when}});
    const std::uint16_t context = m.alloc(m.guest());
    ASSERT_EQ(m.map(m.guest(), context, Dfn(7), Gfn(70), 2).status, Errno::Ok);
    const std::uint64_t arena = m.arena_used(m.guest());
    const std::uint64_t tags = m.xen.unit(0).tag_counters().in_use + (when == TagAllocation::AtAttach ? 1 : 0);
    m.xen.unit(0).lose_invalidations(1);
    EXPECT_EQ(m.reattach(m.guest(), kNic, context), Errno::InputOutput);
    EXPECT_EQ(context_of(m.guest(), kNic), 0U);
    EXPECT_EQ(m.free(m.guest(), context), Errno::InputOutput);
    EXPECT_EQ(m.references(m.guest(), Gfn(70)), 1U);
    EXPECT_EQ(m.arena_used(m.guest()), arena);
    EXPECT_EQ(m.xen.unit(0).tag_counters().in_use, tags);
    EXPECT_EQ(m.map(m.guest(), context, Dfn(9), Gfn(9), 1).status, Errno::Invalid);
  }
}
// Kills: a device that its next owner gets while the unit may lead it to the last one's memory.
TEST_P(XenLostFence, ADeviceIsNobodysUntilItsUnitHasForgottenTheLastOwner) {
  Machine m(family());
  ASSERT_EQ(m.reach(kNic, Dfn(7)), m.frame(m.guest(), Gfn(7)));
  m.xen.unit(0).lose_invalidations(2);
  EXPECT_EQ(m.xen.deassign_device(m.cpu, m.guest(), kNic).run(), Errno::InputOutput);
  EXPECT_EQ(m.xen.assign_device(m.cpu, *m.other, {.requester = kNic}).run(), Errno::InputOutput);
  EXPECT_FALSE(m.other->devices.contains(kNic));
  EXPECT_EQ(m.xen.assign_device(m.cpu, *m.other, {.requester = kNic}).run(), Errno::Ok);
  EXPECT_EQ(m.reach(kNic, Dfn(7)), m.frame(*m.other, Gfn(7)));
  // The same when it never arrived.
  constexpr RequesterId kCard = RequesterId::bdf(9, 0, 0);
  m.xen.unit(0).lose_invalidations(1);
  if (m.xen.assign_device(m.cpu, m.guest(), {.requester = kCard}).run() == Errno::Ok) return;  // nothing to invalidate
  EXPECT_EQ(m.xen.assign_device(m.cpu, *m.other, {.requester = kCard}).run(), Errno::Ok);
  EXPECT_EQ(m.reach(kCard, Dfn(7)), m.frame(*m.other, Gfn(7)));
}
// Kills: tables that go back to the pool with the regions of a device that leaves such a context.
TEST_P(XenLostFence, AContextThatWasGivenUpKeepsItsTablesWhenDevicesLeave) {
  Machine m(family());
  constexpr RequesterId kCard = RequesterId::bdf(9, 0, 0);
  m.assign(m.guest(), {.requester = kCard, .reserved = {{Dfn(0x100000), 2}}});
  const std::uint16_t context = m.alloc(m.guest());
  m.xen.unit(0).lose_invalidations(1);
  EXPECT_EQ(m.reattach(m.guest(), kCard, context), Errno::InputOutput);
  EXPECT_EQ(m.reattach(m.guest(), kCard, context), Errno::Ok);
  const std::uint64_t used = m.arena_used(m.guest());
  EXPECT_EQ(m.reattach(m.guest(), kCard, 0), Errno::Ok);
  EXPECT_EQ(m.arena_used(m.guest()), used);
}
TEST_P(XenLostFence, ADeviceThatIsTakenAwayWithoutAFenceGivesUpItsContext) {
  Machine m(family());
  constexpr RequesterId kCard = RequesterId::bdf(9, 0, 0);
  m.assign(m.guest(), {.requester = kCard, .reserved = {{Dfn(0x100000), 2}}});
  const std::uint16_t context = m.attached(m.guest(), kCard);
  ASSERT_EQ(m.map(m.guest(), context, Dfn(7), Gfn(70), 1).status, Errno::Ok);
  const std::uint64_t used = m.arena_used(m.guest());
  m.xen.unit(0).lose_invalidations(1);
  EXPECT_EQ(m.xen.deassign_device(m.cpu, m.guest(), kCard).run(), Errno::InputOutput);
  EXPECT_EQ(m.free(m.guest(), context), Errno::InputOutput);
  EXPECT_EQ(m.references(m.guest(), Gfn(70)), 1U);
  EXPECT_EQ(m.arena_used(m.guest()), used);
}

}  // namespace
}  // namespace iommu::xen
