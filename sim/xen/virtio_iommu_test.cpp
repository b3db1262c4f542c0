// SPDX-License-Identifier: Apache-2.0
// The virtio-iommu device as a driver meets it. Numbers are those of the interface's list of testable behaviours.
#include "sim/xen/virtio_iommu.hpp"

#include <gtest/gtest.h>

#include "sim/xen/virtio_test_support.hpp"

namespace iommu::xen {
namespace {

using virtio::FaultReason;

constexpr RequesterId kNobody = RequesterId::bdf(9, 0, 0);
constexpr std::uint32_t kDomain = 7;

class XenVirtioIommu : public XenVirtio {};
XEN_ON_ALL_FAMILIES(XenVirtioIommu);

// Kills: a translation that is off by the range's start; rights that are not the request's; a second endpoint left out.
TEST_P(XenVirtioIommu, MapGivesEveryEndpointOfTheDomainTheRange) {
  VirtioBench b(family());
  ASSERT_EQ(b.attach(kDomain, kNic), Status::Ok);
  ASSERT_EQ(b.attach(kDomain, kDisk), Status::Ok);
  EXPECT_EQ(b.map(kDomain, 0x40000000, 0x40002fff, 0x7000), Status::Ok);
  EXPECT_EQ(b.map(kDomain, 0x40003000, 0x40003fff, 0x9000, virtio::kMapRead), Status::Ok);
  for (const RequesterId endpoint : {kNic, kDisk}) {
    for (std::uint64_t offset = 0; offset < 0x3000; offset += 0x1000)
      EXPECT_EQ(b.reach(endpoint, 0x40000000 + offset, Access::Write), b.frame(0x7000 + offset));
    EXPECT_EQ(b.reach(endpoint, 0x40003000, Access::Read), b.frame(0x9000));
    EXPECT_EQ(b.reach(endpoint, 0x40003000, Access::Write), std::nullopt);
    EXPECT_EQ(b.reach(endpoint, 0x40004000), std::nullopt);
    EXPECT_EQ(b.reach(endpoint, 0x7000), std::nullopt) << "attached, it reaches no memory of its own accord";
  }
  EXPECT_EQ(b.m.xen.references().of(b.frame(0x7000)), 1U);
  EXPECT_EQ(b.m.xen.references().total(), 4U);
  EXPECT_EQ(b.unmap(kDomain, 0x40000000, 0x40003fff), Status::Ok);
  for (const RequesterId endpoint : {kNic, kDisk}) EXPECT_EQ(b.reach(endpoint, 0x40000000), std::nullopt);
  EXPECT_EQ(b.m.xen.references().total(), 0U);
}

// Behaviour 95. Kills: an UNMAP that insists on finding something.
TEST_P(XenVirtioIommu, UnmapOfAnEmptyRangeSucceeds) {
  VirtioBench b(family());
  ASSERT_EQ(b.attach(kDomain, kNic), Status::Ok);
  EXPECT_EQ(b.unmap(kDomain, 0x1000, 0x1fff), Status::Ok);
  EXPECT_EQ(b.unmap(kDomain, 0, ~0ULL), Status::Ok);
  EXPECT_EQ(b.unmap(kDomain, 5, 4), Status::Range) << "no range at all";
}

// Kills: an answer to the driver although no unit gave one; pages that are let go of before.
TEST_P(XenVirtioIommu, UnmapWithoutAnAnswerOfTheUnitIsADeviceError) {
  VirtioBench b(family());
  ASSERT_EQ(b.attach(kDomain, kNic), Status::Ok);
  ASSERT_EQ(b.map(kDomain, 0x10000, 0x10fff, 0x10000), Status::Ok);
  ASSERT_TRUE(b.reach(kNic, 0x10000));
  b.m.xen.unit(0).lose_invalidations(1);
  EXPECT_EQ(b.unmap(kDomain, 0x10000, 0x10fff), Status::DeviceError);
  EXPECT_EQ(b.m.xen.references().total(), 1U);
  ASSERT_EQ(b.detach(kDomain, kNic), Status::Ok);
  EXPECT_EQ(b.m.xen.references().total(), 0U) << "no cache knows the context any more";
}
// Behaviour 96. Kills: an UNMAP that stops at the first hole, or takes a neighbour along.
TEST_P(XenVirtioIommu, UnmapOverSeveralMappingsAndHolesRemovesThemAll) {
  VirtioBench b(family());
  ASSERT_EQ(b.attach(kDomain, kNic), Status::Ok);
  for (const std::uint64_t at : {0x10000U, 0x11000U, 0x14000U, 0x18000U})
    ASSERT_EQ(b.map(kDomain, at, at + 0xfff, at), Status::Ok);
  for (const std::uint64_t at : {0x10000U, 0x14000U, 0x18000U}) ASSERT_TRUE(b.reach(kNic, at));  // caches are warm
  EXPECT_EQ(b.unmap(kDomain, 0xf000, 0x17fff), Status::Ok);
  for (const std::uint64_t at : {0x10000U, 0x11000U, 0x14000U}) EXPECT_EQ(b.reach(kNic, at), std::nullopt) << at;
  EXPECT_EQ(b.reach(kNic, 0x18000), b.frame(0x18000));
  EXPECT_EQ(b.device.spaces().mappings(), 1U);
  EXPECT_EQ(b.m.xen.references().total(), 1U);
}

// Behaviour 97. Kills: a mapping cut in two; the whole ones beside it removed before the refusal.
TEST_P(XenVirtioIommu, UnmapThatWouldSplitAMappingRemovesNothing) {
  VirtioBench b(family());
  ASSERT_EQ(b.attach(kDomain, kNic), Status::Ok);
  ASSERT_EQ(b.map(kDomain, 0x10000, 0x10fff, 0x10000), Status::Ok);
  ASSERT_EQ(b.map(kDomain, 0x11000, 0x14fff, 0x11000), Status::Ok);
  ASSERT_EQ(b.map(kDomain, 0x15000, 0x15fff, 0x15000), Status::Ok);
  EXPECT_EQ(b.unmap(kDomain, 0x10000, 0x12fff), Status::Range) << "its end is inside";
  EXPECT_EQ(b.unmap(kDomain, 0x12000, 0x15fff), Status::Range) << "its start is inside";
  EXPECT_EQ(b.unmap(kDomain, 0x12000, 0x12fff), Status::Range) << "both are";
  for (std::uint64_t at = 0x10000; at < 0x16000; at += 0x1000) EXPECT_EQ(b.reach(kNic, at), b.frame(at));
  EXPECT_EQ(b.unmap(kDomain, 0x10000, 0x15fff), Status::Ok);
}

// Behaviour 98. Kills: an overlap found only when it begins at the same address.
TEST_P(XenVirtioIommu, MapOverAMappingIsInvalid) {
  VirtioBench b(family());
  ASSERT_EQ(b.attach(kDomain, kNic), Status::Ok);
  ASSERT_EQ(b.map(kDomain, 0x11000, 0x12fff, 0x11000), Status::Ok);
  for (const auto& [first, last] :
       {std::pair{0x11000U, 0x11fffU}, std::pair{0x12000U, 0x12fffU}, std::pair{0x10000U, 0x11fffU},
        std::pair{0x12000U, 0x13fffU}, std::pair{0x10000U, 0x13fffU}})
    EXPECT_EQ(b.map(kDomain, first, last, 0x20000), Status::Invalid) << std::hex << first;
  EXPECT_EQ(b.map(kDomain, 0x10000, 0x10fff, 0x20000), Status::Ok) << "just before";
  EXPECT_EQ(b.map(kDomain, 0x13000, 0x13fff, 0x20000), Status::Ok) << "just behind";
  EXPECT_EQ(b.reach(kNic, 0x11000), b.frame(0x11000));
}

// Behaviour 99. Kills: one of the three addresses not looked at; a range that wraps, or leaves the input range.
TEST_P(XenVirtioIommu, MapThatIsNotAlignedOrOutsideTheInputRangeIsOutOfRange) {
  VirtioBench b(family());
  ASSERT_EQ(b.attach(kDomain, kNic), Status::Ok);
  EXPECT_EQ(b.map(kDomain, 0x10800, 0x10fff, 0x10000), Status::Range);
  EXPECT_EQ(b.map(kDomain, 0x10000, 0x10ffe, 0x10000), Status::Range);
  EXPECT_EQ(b.map(kDomain, 0x10000, 0x10fff, 0x10001), Status::Range);
  EXPECT_EQ(b.map(kDomain, 0x11000, 0x10fff, 0x10000), Status::Range);
  const std::uint64_t end = b.device.spaces().last_input();
  EXPECT_EQ(b.map(kDomain, end + 1, end + 0x1000, 0x10000), Status::Range);
  EXPECT_EQ(b.map(kDomain, end - 0xfff, end, 0x10000), Status::Ok);
  EXPECT_EQ(b.reach(kNic, end - 0xfff), b.frame(0x10000));
}

// Behaviour 100. Kills: flags that were not negotiated taken for known; reserved bytes nobody looks at.
TEST_P(XenVirtioIommu, UnknownFlagsAndReservedBytesOfAttachAreInvalid) {
  const std::uint64_t few =
      ~(1ULL << virtio::kFeatureMmio | 1ULL << virtio::kFeatureBypassConfig);  // what is not accepted
  for (const std::uint64_t accepted : {VirtioBench::kAllFeatures, few}) {
    VirtioBench b(family(), {}, {}, accepted);
    EXPECT_EQ(b.attach(kDomain, kNic, 2), Status::Invalid);
    EXPECT_EQ(b.attach(kDomain, kNic, 1U << 31), Status::Invalid);
    EXPECT_EQ(b.status_of(virtio::AttachRequest{.domain = kDomain, .endpoint = kNic.value(), .reserved = 1}),
              Status::Invalid);
    EXPECT_EQ(b.device.spaces().spaces(), 0U);
    ASSERT_EQ(b.attach(kDomain, kNic), Status::Ok);
    for (const std::uint32_t flag : {1U << 3, 1U << 31})
      EXPECT_EQ(b.map(kDomain, 0x1000, 0x1fff, 0x1000, virtio::kMapRead | flag), Status::Invalid);
    EXPECT_EQ(b.map(kDomain, 0x1000, 0x1fff, 0x1000, 0), Status::Invalid) << "a mapping for no access";
    if (accepted == few) {
      EXPECT_EQ(b.attach(kDomain + 1, kNic, virtio::kAttachBypass), Status::Invalid);
      EXPECT_EQ(b.map(kDomain, 0x1000, 0x1fff, 0x1000, virtio::kMapRead | virtio::kMapMmio), Status::Invalid);
    }
    EXPECT_EQ(b.reach(kNic, 0x1000), std::nullopt);
  }
}

// Behaviour 101. Kills: mappings of a domain that translates nothing; a domain made by mapping into it.
TEST_P(XenVirtioIommu, MapAndUnmapNeedADomainThatTranslates) {
  VirtioBench b(family());
  EXPECT_EQ(b.map(kDomain, 0x1000, 0x1fff, 0x5000), Status::NoEntry);
  EXPECT_EQ(b.unmap(kDomain, 0x1000, 0x1fff), Status::NoEntry);
  ASSERT_EQ(b.attach(kDomain, kNic, virtio::kAttachBypass), Status::Ok);
  EXPECT_EQ(b.map(kDomain, 0x1000, 0x1fff, 0x5000), Status::Invalid);
  EXPECT_EQ(b.unmap(kDomain, 0x1000, 0x1fff), Status::Invalid);
  EXPECT_EQ(b.reach(kNic, 0x1000), b.frame(0x1000)) << "it bypasses";
  EXPECT_EQ(b.attach(kDomain, kDisk), Status::Invalid) << "the domain is of the other kind";
  EXPECT_EQ(b.attach(kDomain, kDisk, virtio::kAttachBypass), Status::Ok);
}

// Behaviour 102. Kills: endpoints taken on trust; an endpoint in two domains; a domain that outlives its last endpoint.
TEST_P(XenVirtioIommu, AttachRefusesStrangersAndMovesWhatIsAttachedElsewhere) {
  VirtioBench b(family());
  for (const RequesterId stranger : {kNobody, kAlien}) {
    EXPECT_EQ(b.attach(kDomain, stranger), Status::NoEntry);
    EXPECT_EQ(b.detach(kDomain, stranger), Status::NoEntry);
  }
  EXPECT_EQ(b.device.spaces().spaces(), 0U) << "a refused ATTACH makes no domain";
  ASSERT_EQ(b.attach(1, kNic), Status::Ok);
  ASSERT_EQ(b.attach(1, kDisk), Status::Ok);
  ASSERT_EQ(b.map(1, 0x1000, 0x1fff, 0x5000), Status::Ok);
  ASSERT_TRUE(b.reach(kNic, 0x1000));
  EXPECT_EQ(b.attach(1, kNic), Status::Ok) << "where it is already";
  EXPECT_EQ(b.reach(kNic, 0x1000), b.frame(0x5000));
  EXPECT_EQ(b.attach(2, kNic), Status::Ok);
  EXPECT_EQ(b.reach(kNic, 0x1000), std::nullopt) << "nothing of the old domain";
  EXPECT_EQ(b.reach(kDisk, 0x1000), b.frame(0x5000));
  EXPECT_EQ(b.detach(1, kNic), Status::Invalid);
  EXPECT_EQ(b.attach(2, kDisk), Status::Ok);
  EXPECT_EQ(b.map(1, 0x2000, 0x2fff, 0x5000), Status::NoEntry) << "its last endpoint has left it";
  EXPECT_EQ(b.m.xen.references().total(), 0U);
}

// Behaviour 103. Kills: mappings, page references or tables that outlive their domain.
TEST_P(XenVirtioIommu, TheLastDetachEndsTheDomainAndItsMappings) {
  VirtioBench b(family());
  const std::uint64_t frames = b.m.frames->used();
  for (int round = 0; round < 3; ++round) {
    ASSERT_EQ(b.attach(kDomain, kNic), Status::Ok);
    ASSERT_EQ(b.attach(kDomain, kDisk), Status::Ok);
    EXPECT_EQ(b.reach(kNic, 0x40000000), std::nullopt) << "nothing is left of the domain before";
    ASSERT_EQ(b.map(kDomain, 0x40000000, 0x40003fff, 0x5000), Status::Ok);
    ASSERT_EQ(b.detach(kDomain, kNic), Status::Ok);
    EXPECT_EQ(b.reach(kDisk, 0x40000000), b.frame(0x5000)) << "not the last one";
    ASSERT_EQ(b.detach(kDomain, kDisk), Status::Ok);
    EXPECT_EQ(b.unmap(kDomain, 0x40000000, 0x40003fff), Status::NoEntry);
    EXPECT_EQ(b.detach(kDomain, kDisk), Status::Invalid);
    EXPECT_EQ(b.m.xen.references().total(), 0U);
    EXPECT_EQ(b.m.frames->used(), frames);
    EXPECT_EQ(b.device.spaces().mappings(), 0U);
  }
}

// Behaviour 104. Kills: only the first page of a range compared; regions of an endpoint that attaches later.
TEST_P(XenVirtioIommu, MapInAReservedRegionIsRefused) {
  constexpr AddressRange kWindow{0xfee00000, 0xfeefffff};
  constexpr RequesterId kGraphics = RequesterId::bdf(6, 0, 0);
  VirtioBench b(family(), {.spaces = {.interrupt_windows = {kWindow}}});
  b.m.assign(b.m.guest(), {.requester = kGraphics, .reserved = {{Dfn(0x100000), 2}}});
  ASSERT_EQ(b.device.add_endpoint(b.m.cpu, kGraphics, EndpointKind::Physical).run(), Errno::Ok);
  ASSERT_EQ(b.attach(kDomain, kGraphics), Status::Ok);
  EXPECT_EQ(b.map(kDomain, 0x100001000, 0x100001fff, 0x5000), Status::Invalid);
  EXPECT_EQ(b.map(kDomain, 0xfffff000, 0x100000fff, 0x5000), Status::Invalid);
  EXPECT_EQ(b.map(kDomain, 0xfedff000, 0xfee00fff, 0x5000), Status::Invalid);
  EXPECT_EQ(b.map(kDomain, 0x100002000, 0x100002fff, 0x5000), Status::Ok);
  EXPECT_EQ(b.reach(kGraphics, 0x100001000), Mfn(0x100001)) << "the region itself stays as it is";
  ASSERT_EQ(b.attach(kDomain + 1, kNic), Status::Ok);
  ASSERT_EQ(b.map(kDomain + 1, 0x100000000, 0x100000fff, 0x5000), Status::Ok) << "not reserved for this endpoint";
  EXPECT_EQ(b.attach(kDomain + 1, kGraphics), Status::Unsupported);
  EXPECT_EQ(b.reach(kGraphics, 0x100002000), b.frame(0x5000)) << "refused, it stays where it was";
}

// Behaviour 105. Kills: a status for what nobody understands; a request of another length taken for one.
TEST_P(XenVirtioIommu, RequestsThatCannotBeParsedComeBackUnwritten) {
  VirtioBench b(family(), {.withheld_features = 1ULL << virtio::kFeatureProbe});
  for (const std::uint8_t type : std::array<std::uint8_t, 5>{0, 6, 7, 8, 255}) {
    const VirtioBench::Answer answer = b.ask(virtio::AttachRequest{.head = {type}, .domain = 1});
    EXPECT_TRUE(answer.was_used);
    EXPECT_EQ(answer.written, 0U);
    EXPECT_TRUE(answer.is_untouched());
  }
  const VirtioBench::Answer probe = b.ask(virtio::ProbeRequest{.endpoint = kNic.value()}, 516);
  EXPECT_TRUE(probe.was_used && probe.written == 0 && probe.is_untouched()) << "PROBE is not offered";
  const virtio::AttachRequest whole{.domain = kDomain, .endpoint = kNic.value()};
  const auto bytes = std::as_bytes(std::span(&whole, 1));
  for (const std::size_t cut : {1U, 4U, 19U}) {
    const VirtioBench::Answer answer = b.ask(bytes.first(cut));
    EXPECT_TRUE(answer.was_used && answer.written == 0 && answer.is_untouched()) << cut;
  }
  const VirtioBench::Answer no_tail = b.ask(whole, 3);
  EXPECT_TRUE(no_tail.was_used && no_tail.written == 0 && no_tail.is_untouched()) << "no place for a status";
  EXPECT_EQ(b.device.spaces().spaces(), 0U) << "none of them had an effect";
}

// Behaviour 106. Kills: an unattached endpoint that reaches memory; the two reasons exchanged.
TEST_P(XenVirtioIommu, UnattachedEndpointsAreBlockedAndFaultsSayWhy) {
  VirtioBench b(family());
  EXPECT_EQ(b.reach(kNic, 0x5000), b.frame(0x5000)) << "the device begins in bypass";
  b.set_bypass(0);
  EXPECT_EQ(b.reach(kNic, 0x5000), std::nullopt);
  EXPECT_EQ(b.peek(virtio::offset::kConfig + offsetof(virtio::IommuConfig, bypass), 1), 0U);
  b.offer_event();
  b.report(kNic, 0x5008, Access::Write);
  auto event = b.take_event();
  ASSERT_TRUE(event);
  EXPECT_EQ(event->reason, static_cast<std::uint8_t>(FaultReason::Domain));
  EXPECT_EQ(event->flags, virtio::kFaultWrite | virtio::kFaultAddress);
  EXPECT_EQ(event->endpoint, kNic.value());
  EXPECT_EQ(event->address, 0x5008U);
  ASSERT_EQ(b.attach(kDomain, kNic), Status::Ok);
  ASSERT_EQ(b.map(kDomain, 0x5000, 0x5fff, 0x7000, virtio::kMapRead), Status::Ok);
  for (const auto& [address, access] : {std::pair{0x6000ULL, Access::Read}, std::pair{0x5000ULL, Access::Write}}) {
    EXPECT_EQ(b.reach(kNic, address, access), std::nullopt);
    b.offer_event();
    b.report(kNic, address, access);
    event = b.take_event();
    ASSERT_TRUE(event);
    EXPECT_EQ(event->reason, static_cast<std::uint8_t>(FaultReason::Mapping));
    EXPECT_EQ(event->address, address);
  }
  ASSERT_EQ(b.detach(kDomain, kNic), Status::Ok);
  EXPECT_EQ(b.reach(kNic, 0x5000), std::nullopt) << "detached, it is blocked again";
  b.set_bypass(2);
  EXPECT_EQ(b.reach(kNic, 0x5000), std::nullopt) << "neither 0 nor 1";
  b.set_bypass(1);
  EXPECT_EQ(b.reach(kNic, 0x5000), b.frame(0x5000));
}

// Behaviour 107. Kills: properties written into a buffer that does not hold them; the status at a fixed place.
TEST_P(XenVirtioIommu, ProbeNeedsRoomForAllProperties) {
  VirtioBench b(family(), {.spaces = {.interrupt_windows = {{0xfee00000, 0xfeefffff}}}, .probe_size = 64});
  const virtio::ProbeRequest request{.endpoint = kNic.value()};
  for (const std::uint32_t room : {4U, 5U, 63U, 67U}) {
    const VirtioBench::Answer answer = b.ask(request, room);
    ASSERT_EQ(answer.written, room);
    EXPECT_EQ(answer.status(), Status::Invalid) << room;
    EXPECT_TRUE(std::all_of(answer.bytes.begin(), answer.bytes.end() - 4, [](std::byte v) { return v == std::byte{}; }))
        << "no property";
  }
  const VirtioBench::Answer answer = b.ask(request, 68);
  ASSERT_EQ(answer.status(), Status::Ok);
  const auto property = b.get<virtio::ReservedMemoryProperty>(VirtioBench::kAnswer);
  EXPECT_EQ(property.head.type, virtio::kPropertyReservedMemory);
  EXPECT_EQ(property.head.length, 20U);
  EXPECT_EQ(property.subtype, static_cast<std::uint8_t>(virtio::ReservedMemory::Msi));
  EXPECT_EQ(property.start, 0xfee00000U);
  EXPECT_EQ(property.end, 0xfeefffffU);
  EXPECT_EQ(b.get<std::uint64_t>(VirtioBench::kAnswer + 24_B), 0U) << "the list ends";
  const VirtioBench::Answer unknown = b.ask(virtio::ProbeRequest{.endpoint = kNobody.value()}, 68);
  EXPECT_EQ(unknown.status(), Status::NoEntry);
}

// Behaviour 108. Kills: an event written through an old descriptor; a used entry without a buffer.
TEST_P(XenVirtioIommu, WithoutABufferAnEventIsDroppedAndNothingElseHappens) {
  VirtioBench b(family());
  b.set_bypass(0);
  b.offer_event();
  b.report(kNic, 0x1000);
  ASSERT_TRUE(b.take_event());
  b.report(kNic, 0x2000);
  EXPECT_FALSE(b.take(1));
  EXPECT_EQ(b.get<virtio::FaultRecord>(VirtioBench::event_buffer(0)).address, 0x1000U) << "it is the driver's again";
  EXPECT_EQ(b.device.counters().events, 1U);
  EXPECT_EQ(b.device.counters().events_dropped, 1U);
  b.offer_event(23);
  b.report(kNic, 0x3000);
  const auto small = b.take(1);
  ASSERT_TRUE(small);
  EXPECT_EQ(small->length, 0U) << "too small: it comes back unwritten";
  EXPECT_EQ(b.get<std::byte>(VirtioBench::event_buffer(1)), VirtioBench::kUntouched);
  b.offer_event();
  b.report(kDisk, 0x4000);
  const auto event = b.take_event();
  ASSERT_TRUE(event);
  EXPECT_EQ(event->endpoint, kDisk.value());
  EXPECT_EQ(event->address, 0x4000U);
  EXPECT_TRUE(b.device.registers().is_live());
}

// Kills: guest-physical addresses taken for granted; pieces of a refused mapping left behind.
TEST_P(XenVirtioIommu, MemoryThatIsNotTheGuestsIsABadAddress) {
  VirtioBench b(family());
  ASSERT_EQ(b.attach(kDomain, kNic), Status::Ok);
  const std::uint64_t end = kGuestPages << kPageLg2;
  EXPECT_EQ(b.map(kDomain, 0x10000, 0x11fff, end - 0x1000), Status::Fault);
  EXPECT_EQ(b.map(kDomain, 0x10000, 0x10fff, end), Status::Fault);
  EXPECT_EQ(b.map(kDomain, 0x10000, 0x10fff, ~0xfffULL), Status::Fault);
  EXPECT_EQ(b.map(kDomain, 0x10000, 0x11fff, ~0xfffULL), Status::Fault) << "it wraps";
  EXPECT_EQ(b.map(kDomain, 0x10000, 0x10fff, 0x5000, VirtioBench::kReadWriteFlags | virtio::kMapMmio), Status::Fault)
      << "memory is no MMIO";
  ASSERT_TRUE(b.m.guest().p2m.add({Gfn(0x90000), 2, Mfn(0x7000000), FrameType::Mmio}));
  EXPECT_EQ(b.map(kDomain, 0x10000, 0x11fff, 0x90000000), Status::Fault) << "MMIO is no memory";
  EXPECT_EQ(b.reach(kNic, 0x10000), std::nullopt);
  EXPECT_EQ(b.m.xen.references().total(), 0U);
  EXPECT_EQ(b.map(kDomain, 0x10000, 0x11fff, 0x90000000, VirtioBench::kReadWriteFlags | virtio::kMapMmio), Status::Ok);
  EXPECT_EQ(b.reach(kNic, 0x11000), Mfn(0x7000001));
  EXPECT_EQ(b.m.xen.references().total(), 0U) << "MMIO frames carry none";
  EXPECT_EQ(b.unmap(kDomain, 0x10000, 0x11fff), Status::Ok);
}

// One free frame of the host more each time. Kills: a refused MAP that leaves pages, references or tables behind.
TEST_P(XenVirtioIommu, ShortOfHostMemoryAMapIsRefusedAndLeavesNothing) {
  VirtioBench b(family());
  ASSERT_EQ(b.attach(kDomain, kNic), Status::Ok);
  std::vector<Mfn> hoard;
  while (const auto frame = b.m.frames->allocate()) hoard.push_back(*frame);
  const std::uint64_t used = b.m.frames->used();
  constexpr std::uint64_t kAt = 0x1234'0000'0000 - 0x1000;  // two tables of every level
  std::uint64_t refusals = 0;
  while (b.map(kDomain, kAt, kAt + 0x1fff, 0x5000) != Status::Ok) {
    ++refusals;
    EXPECT_EQ(b.m.xen.references().total(), 0U);
    EXPECT_EQ(b.reach(kNic, kAt), std::nullopt);
    EXPECT_EQ(b.m.frames->used(), used - refusals + 1);
    ASSERT_LT(refusals, 20U);
    ASSERT_TRUE(b.m.frames->release(hoard.back()));
    hoard.pop_back();
  }
  EXPECT_GT(refusals, 2U);
  EXPECT_EQ(b.reach(kNic, kAt + 0x1000), b.frame(0x6000));
}

// Kills: a guest that fills the host's memory with mappings.
TEST_P(XenVirtioIommu, MoreMappingsThanTheDeviceKeepsAreRefused) {
  VirtioBench b(family(), {.spaces = {.most_mappings = 3}});
  ASSERT_EQ(b.attach(1, kNic), Status::Ok);
  ASSERT_EQ(b.attach(2, kDisk), Status::Ok);
  EXPECT_EQ(b.map(1, 0x1000, 0x1fff, 0x5000), Status::Ok);
  EXPECT_EQ(b.map(1, 0x2000, 0x2fff, 0x5000), Status::Ok);
  EXPECT_EQ(b.map(2, 0x1000, 0x1fff, 0x5000), Status::Ok);
  EXPECT_EQ(b.map(2, 0x2000, 0x2fff, 0x5000), Status::NoMemory);
  ASSERT_EQ(b.unmap(1, 0x1000, 0x1fff), Status::Ok);
  EXPECT_EQ(b.map(2, 0x2000, 0x2fff, 0x5000), Status::Ok);
}

// An endpoint of software shares a domain with a real one. Kills: mappings made before the real one came left out of
// its context; software that sees other mappings than hardware.
TEST_P(XenVirtioIommu, AVirtualEndpointIsTranslatedFromTheSameMappings) {
  VirtioBench b(family());
  ASSERT_EQ(b.device.add_endpoint(b.m.cpu, kNobody, EndpointKind::Virtual).run(), Errno::Ok);
  ASSERT_EQ(b.attach(kDomain, kNobody), Status::Ok);
  ASSERT_EQ(b.map(kDomain, 0x10000, 0x11fff, 0x5000, virtio::kMapRead), Status::Ok);
  EXPECT_EQ(b.device.spaces().context_of(kDomain), nullptr) << "software needs no tables";
  EXPECT_EQ(b.m.xen.references().total(), 0U);
  const auto translated = [&](std::uint64_t address, Access access = Access::Read) {
    return b.device.spaces().translate(kNobody, Iova(address), access);
  };
  EXPECT_EQ(std::get<Gpa>(translated(0x11234)), Gpa(0x6234));
  EXPECT_EQ(std::get<FaultReason>(translated(0x12000)), FaultReason::Mapping);
  EXPECT_EQ(std::get<FaultReason>(translated(0x10000, Access::Write)), FaultReason::Mapping);
  ASSERT_EQ(b.attach(kDomain, kNic), Status::Ok);
  EXPECT_EQ(b.reach(kNic, 0x11000), b.frame(0x6000));
  EXPECT_EQ(b.m.xen.references().total(), 2U);
  ASSERT_EQ(b.detach(kDomain, kNobody), Status::Ok);
  EXPECT_EQ(std::get<Gpa>(translated(0x5000)), Gpa(0x5000)) << "unattached in bypass";
  b.set_bypass(0);
  EXPECT_EQ(std::get<FaultReason>(translated(0x5000)), FaultReason::Domain);
}

// Kills: a reset that leaves endpoints attached, queues running or bypass changed. [§5.13.5, §5.13.4.2]
TEST_P(XenVirtioIommu, AResetDetachesEveryEndpoint) {
  VirtioBench b(family());
  b.set_bypass(0);
  ASSERT_EQ(b.attach(kDomain, kNic), Status::Ok);
  ASSERT_EQ(b.map(kDomain, 0x1000, 0x1fff, 0x5000), Status::Ok);
  b.poke(virtio::offset::kStatus, 0);
  EXPECT_EQ(b.reach(kNic, 0x1000), std::nullopt);
  EXPECT_EQ(b.m.xen.references().total(), 0U);
  EXPECT_EQ(b.peek(virtio::offset::kConfig + offsetof(virtio::IommuConfig, bypass), 1), 0U);
  b.kick();
  b.bring_up();
  EXPECT_EQ(b.map(kDomain, 0x1000, 0x1fff, 0x5000), Status::NoEntry);
  EXPECT_EQ(b.attach(kDomain, kNic), Status::Ok);
}

// Kills: work that is not charged, or not to whoever does it.
TEST_P(XenVirtioIommu, AKickCostsOneExitAndEachRequestItsWork) {
  for (const TrapTarget placement : {TrapTarget::Xen, TrapTarget::DeviceModel}) {
    VirtioBench b(family(), {.spaces = {.placement = placement}});
    ASSERT_EQ(b.attach(kDomain, kNic), Status::Ok);
    b.device.reset_counters();
    b.m.unit().forget_history();
    const CostCounts before = b.m.cpu.charged();
    ASSERT_EQ(b.map(kDomain, 0x1000, 0x3fff, 0x5000), Status::Ok);
    ASSERT_EQ(b.unmap(kDomain, 0x1000, 0x3fff), Status::Ok);
    const auto charged = [&](CostId cost) { return b.m.cpu.charged()[cost] - before[cost]; };
    const bool outside = placement == TrapTarget::DeviceModel;
    EXPECT_EQ(b.device.counters().traps.doorbell, 2U);
    EXPECT_EQ(b.device.counters().of(virtio::RequestType::Map), 1U);
    EXPECT_EQ(b.device.counters().of(virtio::RequestType::Unmap), 1U);
    EXPECT_EQ(b.device.counters().refused, 0U);
    EXPECT_EQ(charged(CostId::VmExitMmio), 2U);
    EXPECT_EQ(charged(CostId::DeviceModelExit), outside ? 2U : 0U);
    EXPECT_EQ(charged(CostId::BackendCall), outside ? 2U : 0U);
    EXPECT_EQ(charged(CostId::VirtioRequest), 2U);
    EXPECT_EQ(charged(CostId::MappingTree), 2U);
    EXPECT_EQ(charged(CostId::P2mLookup), 3U) << "one for each page of a p2m of small pages";
    EXPECT_EQ(charged(CostId::PageReference), 6U);
    EXPECT_EQ(b.m.fences(), 1U) << "to unmap";
  }
}

// Kills: interrupts although the driver does not want them, or none where it does.
TEST_P(XenVirtioIommu, UsedBuffersInterruptUnlessTheDriverSaysNo) {
  constexpr std::uint64_t kByFlag = ~(1ULL << virtio::kFeatureEventIndex);
  for (const std::uint64_t accepted : {VirtioBench::kAllFeatures, kByFlag}) {
    VirtioBench b(family(), {}, {}, accepted);
    const auto interrupts = [&] {
      const std::uint64_t before = b.m.cpu.charged()[CostId::InterruptInject];
      EXPECT_EQ(b.attach(kDomain, kNobody), Status::NoEntry);
      return b.m.cpu.charged()[CostId::InterruptInject] - before;
    };
    EXPECT_EQ(interrupts(), 1U);
    EXPECT_EQ(b.peek(virtio::offset::kInterruptStatus), virtio::kInterruptUsedBuffer);
    b.poke(virtio::offset::kInterruptAck, virtio::kInterruptUsedBuffer);
    EXPECT_EQ(b.peek(virtio::offset::kInterruptStatus), 0U);
    if (accepted == kByFlag)
      b.put(VirtioBench::kPlaces[0].driver, virtio::kAvailableNoInterrupt);
    else
      b.put(VirtioBench::kPlaces[0].used_event(), std::uint16_t{2});
    EXPECT_EQ(interrupts(), 0U);
    EXPECT_EQ(interrupts(), accepted == kByFlag ? 0U : 1U) << "used index 2 is passed now";
  }
}

}  // namespace
}  // namespace iommu::xen
