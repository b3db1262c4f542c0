// SPDX-License-Identifier: Apache-2.0
// Nested translation: hardware walks the guest's first stage over Xen's second. Xen reads no table of the guest; it
// forwards invalidations with its own tags, and so a guest can only ever invalidate what is its own.
#include <gtest/gtest.h>

#include "sim/xen/virtual_machine_test_support.hpp"

namespace iommu::xen {
namespace {

using Nested = VirtualMachine<NestedTranslation>;

class XenNested : public XenFamilies {
 protected:
  void SetUp() override {
    if (!Nested::is_possible(family())) GTEST_SKIP();
  }
};
XEN_ON_ALL_FAMILIES(XenNested);

// Kills: a first stage taken for a final translation, and a trap for every map.
TEST_P(XenNested, MapsAreReachableThroughBothStagesWithoutAnExit) {
  Nested v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  EXPECT_EQ(v.machine.reach(kNic, Dfn(0x100)), std::nullopt);
  const std::uint64_t traps = v.unit.traps().total();
  v.map(table, kNic, Dfn(0x100), Gfn(70), 4);
  EXPECT_EQ(v.unit.traps().total(), traps);
  for (std::uint64_t i = 0; i < 4; ++i) EXPECT_EQ(v.machine.reach(kNic, Dfn(0x100 + i)), v.frame(Gfn(70 + i)));
}
// Kills: an invalidation that is not forwarded, or forwarded with the guest's tag.
TEST_P(XenNested, AnUnmapTrapsAndTheDeviceSeesThePageNoMore) {
  Nested v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  v.map(table, kNic, Dfn(0x100), Gfn(70), 4);
  for (std::uint64_t i = 0; i < 4; ++i) ASSERT_NE(v.machine.reach(kNic, Dfn(0x100 + i)), std::nullopt);
  const std::uint64_t doorbells = v.unit.traps().doorbell;
  v.unmap(table, kNic, Dfn(0x101), 2);
  EXPECT_EQ(v.unit.traps().doorbell, doorbells + 1);
  for (std::uint64_t i = 0; i < 4; ++i)
    EXPECT_EQ(v.machine.reach(kNic, Dfn(0x100 + i)).has_value(), i == 0 || i == 3) << i;
}
// The same tag in two guests. Kills: a guest's invalidations that empty the caches of somebody else's, or miss its own.
TEST_P(XenNested, InvalidationsCarryTheHostsTagsWhateverTheGuestSays) {
  Nested v(family());
  v.start();
  PageTable& table = v.attach(kNic, 1);
  v.map(table, kNic, Dfn(0x100), Gfn(70));
  ASSERT_NE(v.machine.reach(kNic, Dfn(0x100)), std::nullopt);
  ASSERT_NE(v.machine.reach(kAlien, Dfn(3)), std::nullopt);
  const DomainTag mine = v.machine.guest().devices.at(kNic).context->tag_on(0);
  v.machine.unit().forget_history();
  v.flush_all(kNic);
  v.kernel.invalidate({1, InvalidationScope{.kind = InvalidationKind::Iotlb}});  // a global one
  ASSERT_FALSE(v.machine.unit().applied.empty());
  for (const InvalidationScope& scope : v.machine.unit().applied) {
    EXPECT_EQ(scope.domain, mine);
    EXPECT_EQ(scope.domain_ignore, 0U);
  }
  // Tags that the guest does not use concern nobody.
  v.machine.unit().forget_history();
  for (std::uint32_t tag = 2; tag < 12; ++tag)
    v.kernel.invalidate({1, {.kind = InvalidationKind::Iotlb, .domain = DomainTag(tag)}});
  EXPECT_TRUE(v.machine.unit().applied.empty());
}
// What the guest names beyond its memory, the second stage refuses.
TEST_P(XenNested, GuestAddressesOutsideItsMemoryFault) {
  Nested v(family());
  ASSERT_TRUE(
      v.machine.guest().p2m.add({Gfn(0x10000), 1, v.machine.frame(*v.machine.other, Gfn(9)), FrameType::Foreign}));
  v.start();
  PageTable& table = v.attach(kNic);
  v.map(table, kNic, Dfn(0x100), Gfn(kGuestPages));
  v.map(table, kNic, Dfn(0x101), Gfn(0x10000));
  v.map(table, kNic, Dfn(0x102), Gfn(1ULL << 28));
  for (std::uint64_t i = 0; i < 3; ++i) EXPECT_EQ(v.machine.reach(kNic, Dfn(0x100 + i)), std::nullopt);
}
// Kills: a root that Xen reads itself, or believes.
TEST_P(XenNested, ARootOutsideMemoryTranslatesNothing) {
  Nested v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  v.map(table, kNic, Dfn(0x100), Gfn(70));
  ASSERT_NE(v.machine.reach(kNic, Dfn(0x100)), std::nullopt);
  ContextSetting setting = v.kernel.setting(kNic);
  for (const std::uint64_t nowhere : {kGuestPages << kPageLg2, std::uint64_t{1} << 45}) {
    setting.stage1.address = nowhere;
    v.kernel.point(kNic, setting);
    EXPECT_EQ(v.machine.reach(kNic, Dfn(0x100)), std::nullopt);
    EXPECT_EQ(v.machine.reach(kNic, Dfn(3)), std::nullopt);
  }
  setting.stage1 = table.root();
  v.kernel.point(kNic, setting);
  EXPECT_EQ(v.machine.reach(kNic, Dfn(0x100)), v.frame(Gfn(70)));
}
// A root is exchanged under an attached device. Kills: translations of the old root in caches.
TEST_P(XenNested, ANewRootReplacesTheOldOneEntirely) {
  Nested v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  v.map(table, kNic, Dfn(0x100), Gfn(70));
  ASSERT_NE(v.machine.reach(kNic, Dfn(0x100)), std::nullopt);
  const auto second = v.kernel.driver().create_table(TableKind::Stage1, v.kernel.pool());
  ASSERT_EQ(second->map({.input = 0x101000, .output = 0x50000}).status, EditStatus::Ok);
  v.kernel.attach(kNic, 1, second.get());
  EXPECT_EQ(v.machine.reach(kNic, Dfn(0x100)), std::nullopt);
  EXPECT_EQ(v.machine.reach(kNic, Dfn(0x101)), v.frame(Gfn(0x50)));
}
TEST_P(XenNested, ADetachedDeviceIsBlocked) {
  Nested v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  v.map(table, kNic, Dfn(0x100), Gfn(70));
  ASSERT_NE(v.machine.reach(kNic, Dfn(0x100)), std::nullopt);
  v.kernel.detach(kNic);
  EXPECT_EQ(v.machine.reach(kNic, Dfn(0x100)), std::nullopt);
  EXPECT_EQ(v.machine.reach(kNic, Dfn(3)), std::nullopt);
}
TEST_P(XenNested, DevicesOfDifferentGuestDomainsDoNotMix) {
  Nested v(family());
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
// The second stage is context 0's, and so are the regions that firmware needs: the guest identity-maps them in its own
// stage, as it is told to. Kills: devices with such regions that cannot be behind a unit, and regions that stay.
TEST_P(XenNested, ReservedRegionsAreInTheSecondStageWhileTheirDeviceIs) {
  Nested v(family());
  constexpr RequesterId kCard = RequesterId::bdf(9, 0, 0);
  const ReservedRegion firmware{Dfn(0x100000), 4};
  v.machine.assign(v.machine.guest(), {.requester = kCard, .reserved = {firmware}});
  v.start();
  PageTable& table = v.attach(kCard);
  PageTable& nic = v.attach(kNic, 2);
  EXPECT_EQ(v.translation->refused(), 0U);
  v.map(table, kCard, firmware.first, Gfn(firmware.first.value()), 4);
  v.map(nic, kNic, Dfn(0x500), Gfn(firmware.first.value()), 1);
  EXPECT_EQ(v.machine.reach(kCard, firmware.first + 1), Mfn(firmware.first.value() + 1));
  ASSERT_EQ(v.machine.reach(kNic, Dfn(0x500)), Mfn(firmware.first.value())) << "one second stage for all";
  // With its last user it leaves the second stage, and the caches of whoever nests on it.
  ASSERT_EQ(v.machine.xen.deassign_device(v.machine.cpu, v.machine.guest(), kCard).run(), Errno::Ok);
  EXPECT_EQ(v.machine.reach(kNic, Dfn(0x500)), std::nullopt);
  EXPECT_FALSE(v.machine.guest().default_context->is_reserved(firmware.first, 1));
}
// Other devices of the guest go on in context 0.
TEST_P(XenNested, DevicesThatAreNotBehindTheUnitAreUntouched) {
  Nested v(family());
  v.start();
  v.attach(kNic);
  EXPECT_EQ(v.machine.reach(kDisk, Dfn(3)), v.frame(Gfn(3)));
  EXPECT_EQ(v.machine.reach(kAlien, Dfn(3)), v.machine.frame(*v.machine.other, Gfn(3)));
}

}  // namespace
}  // namespace iommu::xen
