// SPDX-License-Identifier: Apache-2.0
// Devices that cannot be kept apart: groups that domains may not divide, and one requester id of several devices.
#include <gtest/gtest.h>

#include <array>
#include <map>

#include "sim/xen/xen_test_support.hpp"

namespace iommu::xen {
namespace {

constexpr RequesterId kFirst = RequesterId::bdf(9, 1, 0);
constexpr RequesterId kSecond = RequesterId::bdf(9, 2, 0);
constexpr RequesterId kBridged = RequesterId::bdf(9, 0, 0);  // what the unit sees of both

DeviceSetting behind_bridge(RequesterId device) { return {.requester = device, .shared_id = kBridged, .group = 4}; }

MachineOptions permissive() { return {.xen = {.group_split = GroupSplit::Permitted}}; }

class XenGroups : public XenFamilies {};
XEN_ON_ALL_FAMILIES(XenGroups);

// Kills: a check of the device's own domain, of one device of the group only, or of devices without a group.
TEST_P(XenGroups, AreNotDividedAmongDomains) {
  Machine m(family());
  m.assign(m.guest(), {.requester = kFirst, .group = 4});
  EXPECT_EQ(m.xen.assign_device(m.cpu, *m.other, {.requester = kSecond, .group = 4}).run(), Errno::NotPermitted);
  EXPECT_EQ(m.reach(kSecond, Dfn(3)), std::nullopt);
  m.assign(*m.other, {.requester = kSecond, .group = 5});
  EXPECT_EQ(m.xen.deassign_device(m.cpu, *m.other, kSecond).run(), Errno::Ok);
  m.assign(m.guest(), {.requester = kSecond, .group = 4});
  EXPECT_EQ(m.xen.move_device(m.cpu, m.guest(), *m.other, kSecond).run(), Errno::NotPermitted);
  EXPECT_EQ(m.reach(kSecond, Dfn(3)), m.frame(m.guest(), Gfn(3))) << "it stays where it was";
  EXPECT_EQ(m.xen.deassign_device(m.cpu, m.guest(), kFirst).run(), Errno::Ok);
  EXPECT_EQ(m.xen.move_device(m.cpu, m.guest(), *m.other, kSecond).run(), Errno::Ok);
}
TEST_P(XenGroups, AreDividedWherePermitted) {
  Machine m(family(), permissive());
  m.assign(m.guest(), {.requester = kFirst, .group = 4});
  m.assign(*m.other, {.requester = kSecond, .group = 4});
  EXPECT_EQ(m.reach(kFirst, Dfn(3)), m.frame(m.guest(), Gfn(3)));
  EXPECT_EQ(m.reach(kSecond, Dfn(3)), m.frame(*m.other, Gfn(3)));
}

// Kills: an entry that stays the first device's, a translation of it that stays cached.
TEST_P(XenGroups, ASharedIdLeadsWhereTheLastDeviceWasAttached) {
  Machine m(family(), permissive());
  m.assign(m.guest(), behind_bridge(kFirst));
  ASSERT_EQ(m.reach(kBridged, Dfn(3)), m.frame(m.guest(), Gfn(3)));
  m.assign(*m.other, behind_bridge(kSecond));
  EXPECT_EQ(m.reach(kBridged, Dfn(3)), m.frame(*m.other, Gfn(3))) << "one domain's device in another's memory";
  EXPECT_EQ(m.reach(kFirst, Dfn(3)), m.frame(m.guest(), Gfn(3))) << "its own id is still its own";
}
TEST_P(XenGroups, ASharedIdFollowsItsDeviceIntoAnotherContext) {
  Machine m(family());
  m.assign(m.guest(), behind_bridge(kFirst));
  m.assign(m.guest(), behind_bridge(kSecond));
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(900), Gfn(70), 1).status, Errno::Ok);
  ASSERT_NE(m.reach(kBridged, Dfn(3)), std::nullopt);
  ASSERT_EQ(m.reattach(m.guest(), kFirst, context), Errno::Ok);
  EXPECT_EQ(m.reach(kBridged, Dfn(900)), m.frame(m.guest(), Gfn(70)));
  EXPECT_EQ(m.reach(kBridged, Dfn(3)), std::nullopt);
}
// Kills: an entry that leads into the memory of a domain that has no device behind the bridge any more; a device that
// is cut off because another one left.
TEST_P(XenGroups, ASharedIdIsBlockedWhenTheLastDeviceLeaves) {
  Machine m(family(), permissive());
  m.assign(m.guest(), behind_bridge(kFirst));
  m.assign(*m.other, behind_bridge(kSecond));
  ASSERT_NE(m.reach(kBridged, Dfn(3)), std::nullopt);
  ASSERT_EQ(m.xen.deassign_device(m.cpu, *m.other, kSecond).run(), Errno::Ok);
  EXPECT_EQ(m.reach(kBridged, Dfn(3)), m.frame(m.guest(), Gfn(3)));
  ASSERT_EQ(m.xen.deassign_device(m.cpu, m.guest(), kFirst).run(), Errno::Ok);
  EXPECT_EQ(m.reach(kBridged, Dfn(3)), std::nullopt);
}
// Kills: an entry of one unit that is given to a device behind another one.
TEST_P(XenGroups, ASharedIdIsAnotherOneBehindAnotherUnit) {
  MachineOptions options = permissive();
  options.units = 2;
  Machine m(family(), options);
  DeviceSetting far = behind_bridge(kSecond);
  far.unit = 1;
  m.assign(m.guest(), behind_bridge(kFirst));
  m.assign(*m.other, far);
  ASSERT_EQ(m.reach(kBridged, Dfn(3)), m.frame(m.guest(), Gfn(3)));
  ASSERT_EQ(m.xen.deassign_device(m.cpu, m.guest(), kFirst).run(), Errno::Ok);
  EXPECT_EQ(m.reach(kBridged, Dfn(3)), std::nullopt);
}
// A context's own setting changes (as a virtual unit's guest makes it). Kills: a shared id that comes along although it
// leads to another device's context.
TEST_P(XenGroups, ASharedIdStaysWithItsDeviceWhenAnothersContextChanges) {
  Machine m(family());
  const std::uint16_t context = m.alloc(m.guest());
  m.assign(m.guest(), behind_bridge(kFirst));
  ASSERT_EQ(m.reattach(m.guest(), kFirst, context), Errno::Ok);
  m.assign(m.guest(), behind_bridge(kSecond));
  ASSERT_EQ(m.reach(kBridged, Dfn(3)), m.frame(m.guest(), Gfn(3)));
  IoContext& changed = m.context(m.guest(), context);
  EXPECT_EQ(m.xen.refresh(m.cpu, m.guest(), changed, changed.setting_on(0)).run(), Errno::Ok);
  EXPECT_EQ(m.reach(kBridged, Dfn(3)), m.frame(m.guest(), Gfn(3)));
}
// Function 0 of the bus is a device itself: its id is the shared one. Kills: an entry that is blocked as its own.
TEST_P(XenGroups, ADeviceWhoseOwnIdIsSharedLeavesItToTheOthers) {
  Machine m(family());
  m.assign(m.guest(), behind_bridge(kBridged));
  m.assign(m.guest(), behind_bridge(kSecond));
  ASSERT_EQ(m.xen.deassign_device(m.cpu, m.guest(), kBridged).run(), Errno::Ok);
  EXPECT_EQ(m.reach(kBridged, Dfn(3)), m.frame(m.guest(), Gfn(3)));
  m.assign(m.guest(), behind_bridge(kBridged));
  ASSERT_EQ(m.xen.deassign_device(m.cpu, m.guest(), kSecond).run(), Errno::Ok);
  EXPECT_EQ(m.reach(kBridged, Dfn(3)), m.frame(m.guest(), Gfn(3)));
}
TEST_P(XenGroups, AScratchPageTakesRequestsUnderASharedIdOnceNobodyHasTheDevices) {
  Machine m(family(), {.xen = {.quarantine = Quarantine::ScratchPage}});
  m.assign(m.guest(), behind_bridge(kFirst));
  m.assign(m.guest(), behind_bridge(kSecond));
  ASSERT_EQ(m.xen.deassign_device(m.cpu, m.guest(), kFirst).run(), Errno::Ok);
  EXPECT_EQ(m.reach(kBridged, Dfn(3)), m.frame(m.guest(), Gfn(3)));
  ASSERT_EQ(m.xen.deassign_device(m.cpu, m.guest(), kSecond).run(), Errno::Ok);
  EXPECT_EQ(m.reach(kBridged, Dfn(3)), m.xen.scratch_page(kSecond));
  m.assign(m.guest(), behind_bridge(kSecond));
  EXPECT_EQ(m.reach(kBridged, Dfn(3)), m.frame(m.guest(), Gfn(3)));
  ASSERT_EQ(m.xen.deassign_device(m.cpu, m.guest(), kSecond).run(), Errno::Ok);
  m.assign(*m.other, {.requester = kSecond});
  EXPECT_EQ(m.reach(kBridged, Dfn(3)), std::nullopt) << "no scratch page that is gone";
}

// Three devices come, go and move. The shared id leads where one of those that are there does, the last that moved as
// long as it is; without any, nowhere.
TEST_P(XenGroups, ASharedIdNeverLeadsWhereNoneOfItsDevicesIs) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Machine m(family(), permissive());
    const std::uint16_t context = m.attached(m.guest());
    ASSERT_EQ(m.map(m.guest(), context, Dfn(3), Gfn(70), 1).status, Errno::Ok);
    Rng rng(seed);
    const std::array<RequesterId, 3> devices{kFirst, kSecond, kBridged};
    std::map<RequesterId, Mfn> home;  // what address 3 is to those that are there
    std::optional<RequesterId> last;
    for (int step = 0; step < 40; ++step) {
      const RequesterId device = devices[rng.below(devices.size())];
      Domain& domain = rng.chance(0.5) ? m.guest() : *m.other;
      if (!home.contains(device)) {
        m.assign(domain, behind_bridge(device));
        home[device] = m.frame(domain, Gfn(3));
        last = device;
      } else if (m.guest().devices.contains(device) && rng.chance(0.5)) {
        const std::uint16_t target = rng.chance(0.5) ? context : 0;
        const Mfn there = m.frame(m.guest(), Gfn(target == 0 ? 3 : 70));
        ASSERT_EQ(m.reattach(m.guest(), device, target), Errno::Ok);
        if (there != std::exchange(home[device], there)) last = device;
      } else {
        Domain& owner = m.guest().devices.contains(device) ? m.guest() : *m.other;
        ASSERT_EQ(m.xen.deassign_device(m.cpu, owner, device).run(), Errno::Ok);
        home.erase(device);
        if (last == device) last.reset();
      }
      const auto reached = m.reach(kBridged, Dfn(3));
      if (last) {
        ASSERT_EQ(reached, home.at(*last));
      } else if (home.empty()) {
        ASSERT_EQ(reached, std::nullopt);
      } else {
        ASSERT_TRUE(std::any_of(home.begin(), home.end(), [&](const auto& h) { return h.second == reached; }));
      }
    }
  }
}

}  // namespace
}  // namespace iommu::xen
