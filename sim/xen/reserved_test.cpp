// SPDX-License-Identifier: Apache-2.0
// Reserved regions: firmware's memory, which a device must reach in whatever context it is. Numbers are those of the
// interface's list of testable behaviours.
#include <gtest/gtest.h>

#include "sim/xen/xen_test_support.hpp"

namespace iommu::xen {
namespace {

constexpr ReservedRegion kFirmware{Dfn(0x100000), 4};  // memory that nobody is given

class XenReserved : public XenFamilies {
 protected:
  static constexpr RequesterId kCard = RequesterId::bdf(9, 0, 0);
  static constexpr RequesterId kTwin = RequesterId::bdf(9, 1, 0);
  static std::optional<Mfn> itself(Dfn dfn) { return Mfn(dfn.value()); }
};
XEN_ON_ALL_FAMILIES(XenReserved);

// Behaviour 37. Kills: regions that stay behind, or vanish under a second user.
TEST_P(XenReserved, RegionsFollowTheirDeviceAndVanishWithTheLastUser) {
  Machine m(family());
  m.assign(m.guest(), {.requester = kCard, .reserved = {kFirmware}});
  m.assign(m.guest(), {.requester = kTwin, .reserved = {kFirmware}});
  EXPECT_EQ(m.reach(kCard, kFirmware.first + 3), itself(kFirmware.first + 3));
  const std::uint16_t context = m.alloc(m.guest());
  ASSERT_EQ(m.reattach(m.guest(), kCard, context), Errno::Ok);
  EXPECT_EQ(m.reach(kCard, kFirmware.first), itself(kFirmware.first));
  EXPECT_EQ(m.reach(kTwin, kFirmware.first), itself(kFirmware.first)) << "the twin still needs it";
  EXPECT_EQ(m.reach(kCard, kFirmware.first + 4), std::nullopt);
  ASSERT_EQ(m.reattach(m.guest(), kTwin, context), Errno::Ok);
  EXPECT_EQ(m.reach(kNic, kFirmware.first), std::nullopt) << "the default context has no user left";
  ASSERT_EQ(m.reattach(m.guest(), kCard, 0), Errno::Ok);
  EXPECT_EQ(m.reach(kTwin, kFirmware.first), itself(kFirmware.first));
  ASSERT_EQ(m.reattach(m.guest(), kTwin, 0), Errno::Ok);
  EXPECT_FALSE(m.context(m.guest(), context).is_reserved(kFirmware.first, 4));
  EXPECT_EQ(m.xen.references().total(), 0U) << "firmware's pages are nobody's memory";
}
// Removing a region is a change like any other: devices that stay must not see it any more.
TEST_P(XenReserved, ARegionThatVanishesIsFlushed) {
  Machine m(family());
  m.assign(m.guest(), {.requester = kCard, .reserved = {kFirmware}});
  ASSERT_EQ(m.reach(kNic, kFirmware.first), itself(kFirmware.first));  // cached for another device of the context
  const std::uint16_t context = m.alloc(m.guest());
  ASSERT_EQ(m.reattach(m.guest(), kCard, context), Errno::Ok);
  EXPECT_EQ(m.reach(kNic, kFirmware.first), std::nullopt);
}
// Another device may use the region until the entry is gone. Kills: an edit that relies on the flush of the move.
TEST_P(XenReserved, ARegionThatIsUsedDuringTheMoveIsFlushedAfterwards) {
  Machine m(family());
  m.assign(m.guest(), {.requester = kCard, .reserved = {kFirmware}});
  const std::uint16_t context = m.alloc(m.guest());
  m.unit().before_command = [&](const CommandEffect& effect) {
    if (effect.fence) (void)m.reach(kNic, kFirmware.first);
  };
  ASSERT_EQ(m.reattach(m.guest(), kCard, context), Errno::Ok);
  m.unit().before_command = nullptr;
  EXPECT_EQ(m.reach(kNic, kFirmware.first), std::nullopt);
}
// Kills: a table page of a region that was refused half way.
TEST_P(XenReserved, ARegionThatIsRefusedHalfWayGivesItsTablesBack) {
  Machine m(family());
  constexpr Dfn kEdge{0x100200};  // a table ends before it
  m.assign(m.guest(), {.requester = kCard, .reserved = {{Dfn(kEdge.value() - 2), 4}}});
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, kEdge, Gfn(70), 1).status, Errno::Ok);
  const std::uint64_t used = m.arena_used(m.guest());
  EXPECT_EQ(m.reattach(m.guest(), kCard, context), Errno::AddressInUse);
  EXPECT_EQ(m.arena_used(m.guest()), used);
}
// Behaviour 38. Kills: regions checked by their first page, and what was inserted before the conflict staying.
TEST_P(XenReserved, APartlyOverlappingRegionIsInUseAndChangesNothing) {
  Machine m(family());
  m.assign(m.guest(), {.requester = kCard, .reserved = {kFirmware}});
  const ReservedRegion fine{Dfn(0x180000), 1};
  for (const ReservedRegion region : {ReservedRegion{kFirmware.first + 3, 4}, ReservedRegion{kFirmware.first, 3},
                                      ReservedRegion{Dfn(kFirmware.first.value() - 1), 6}})
    EXPECT_EQ(m.xen.assign_device(m.cpu, m.guest(), {.requester = kTwin, .reserved = {fine, region}}).run(),
              Errno::AddressInUse);
  EXPECT_FALSE(m.guest().devices.contains(kTwin));
  EXPECT_FALSE(m.guest().default_context->is_reserved(fine.first, 1));
  EXPECT_EQ(m.reach(kNic, fine.first), std::nullopt);
  EXPECT_EQ(m.reach(kCard, kFirmware.first + 3), itself(kFirmware.first + 3));
}
// Where the guest's own memory or mapping is, a region cannot go. Kills: firmware ranges that replace mappings.
TEST_P(XenReserved, ARegionOverAMappingIsInUse) {
  Machine m(family());
  EXPECT_EQ(m.xen.assign_device(m.cpu, m.guest(), {.requester = kTwin, .reserved = {{Dfn(kGuestPages - 1), 4}}}).run(),
            Errno::AddressInUse);
  EXPECT_EQ(m.reach(kNic, Dfn(kGuestPages - 1)), m.frame(m.guest(), Gfn(kGuestPages - 1)));
  EXPECT_EQ(m.reach(kNic, Dfn(kGuestPages)), std::nullopt);
  m.assign(m.guest(), {.requester = kCard, .reserved = {kFirmware}});
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, kFirmware.first + 2, Gfn(70), 1).status, Errno::Ok);
  EXPECT_EQ(m.reattach(m.guest(), kCard, context), Errno::AddressInUse);
  EXPECT_EQ(m.reach(kCard, kFirmware.first), itself(kFirmware.first)) << "the device stays where it was";
  EXPECT_EQ(m.reach(kNic, kFirmware.first + 2), m.frame(m.guest(), Gfn(70)));
  EXPECT_EQ(m.reach(kNic, kFirmware.first), std::nullopt);
}
TEST_P(XenReserved, EmptyRegionsAndRegionsOutsideTheSpaceAreInvalid) {
  Machine m(family());
  const std::uint64_t last = m.xen.last_dfn().value();
  for (const ReservedRegion region : {ReservedRegion{Dfn(5000), 0}, ReservedRegion{Dfn(last), 2},
                                      ReservedRegion{Dfn(~0ULL), 1}, ReservedRegion{Dfn(1), ~0ULL}})
    EXPECT_EQ(m.xen.assign_device(m.cpu, m.guest(), {.requester = kCard, .reserved = {region}}).run(), Errno::Invalid);
  EXPECT_EQ(m.reach(kCard, Dfn(0)), std::nullopt);
  m.assign(m.guest(), {.requester = kCard, .reserved = {{Dfn(last), 1}}});  // the last page is in the space
}
// Behaviour 53 (Z10). Kills: a check of the first address only.
TEST_P(XenReserved, MapAndUnmapStopAtTheFirstReservedPage) {
  Machine m(family());
  m.assign(m.guest(), {.requester = kCard, .reserved = {kFirmware}});
  const std::uint16_t context = m.attached(m.guest(), kCard);
  for (std::uint64_t i = 0; i < kFirmware.pages; ++i) {
    EXPECT_EQ(m.map(m.guest(), context, kFirmware.first + i, Gfn(5), 1).status, Errno::AddressNotAvailable);
    EXPECT_EQ(m.unmap(m.guest(), context, kFirmware.first + i, 1).status, Errno::AddressNotAvailable);
  }
  const Dfn before(kFirmware.first.value() - 3);
  const auto mapped = m.map(m.guest(), context, before, Gfn(5), 10);
  EXPECT_EQ(mapped.status, Errno::AddressNotAvailable);
  EXPECT_EQ(mapped.done, 3U);
  EXPECT_EQ(m.reach(kCard, before + 2), m.frame(m.guest(), Gfn(7)));
  EXPECT_EQ(m.reach(kCard, kFirmware.first), itself(kFirmware.first));
  const auto unmapped = m.unmap(m.guest(), context, before, 10);
  EXPECT_EQ(unmapped.status, Errno::AddressNotAvailable);
  EXPECT_EQ(unmapped.done, 3U);
  EXPECT_EQ(m.reach(kCard, before), std::nullopt);
  EXPECT_EQ(m.reach(kCard, kFirmware.first + 3), itself(kFirmware.first + 3));
  EXPECT_EQ(m.xen.references().total(), 0U);
}

}  // namespace
}  // namespace iommu::xen
