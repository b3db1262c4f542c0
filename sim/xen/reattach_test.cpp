// SPDX-License-Identifier: Apache-2.0
// Devices: which context they are in, what moves with them, what happens when moving fails. Numbers are those of the
// interface's list of testable behaviours.
#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <tuple>
#include <utility>

#include "sim/xen/xen_test_support.hpp"

namespace iommu::xen {
namespace {

using abi::Subop;

constexpr RequesterId kPhantom = RequesterId::bdf(3, 0, 1);
constexpr RequesterId kFarPhantom = RequesterId::bdf(40, 0, 0);  // needs a device table page of its own
constexpr ReservedRegion kFirmware{Dfn(0x100000), 4};            // memory that nobody is given

class XenReattach : public XenFamilies {};
XEN_ON_ALL_FAMILIES(XenReattach);

// Behaviour 33 (v7). Kills: devices looked up among all domains.
TEST_P(XenReattach, DevicesOfOthersAndOfNobodyAreNoDevice) {
  Machine m(family());
  const std::uint16_t context = m.alloc(m.guest());
  EXPECT_EQ(m.reattach(m.guest(), kAlien, context), Errno::NoDevice);
  EXPECT_EQ(m.reattach(m.guest(), RequesterId::bdf(99, 1, 1), context), Errno::NoDevice);
  abi::ReattachDevice segment = Machine::reattach_argument(kNic, context);
  segment.dev.seg = 1;
  EXPECT_EQ(m.call(m.guest(), Subop::ReattachDevice, segment), Errno::NoDevice);
  EXPECT_EQ(m.reach(kAlien, Dfn(3)), m.frame(*m.other, Gfn(3)));
}
// Behaviour 34.
TEST_P(XenReattach, UnknownContextsAreNoEntryAndTheDeviceStays) {
  Machine m(family());
  EXPECT_EQ(m.reattach(m.guest(), kNic, 1), Errno::NoEntry);  // not even initialised
  ASSERT_EQ(m.init(m.guest(), 4, 6), Errno::Ok);
  for (const std::uint16_t unknown : std::array<std::uint16_t, 4>{1, 4, 5, 0xffff})
    EXPECT_EQ(m.reattach(m.guest(), kNic, unknown), Errno::NoEntry) << unknown;
  EXPECT_EQ(m.reach(kNic, Dfn(3)), m.frame(m.guest(), Gfn(3)));
}
TEST_P(XenReattach, AProcessAddressSpaceIsUnsupported) {
  Machine m(family());
  const std::uint16_t context = m.alloc(m.guest());
  abi::ReattachDevice argument = Machine::reattach_argument(kNic, context);
  argument.pasid = 1;
  EXPECT_EQ(m.call(m.guest(), Subop::ReattachDevice, argument), Errno::Unsupported);
}
// Behaviour 35. Kills: a move that rewrites what is there already.
TEST_P(XenReattach, TheSameContextAgainDoesNothing) {
  Machine m(family());
  const std::uint16_t context = m.attached(m.guest());
  m.unit().forget_history();
  const std::uint64_t writes = m.cpu.charged()[CostId::ContextEntryWrite];
  EXPECT_EQ(m.reattach(m.guest(), kNic, context), Errno::Ok);
  EXPECT_TRUE(m.unit().applied.empty());
  EXPECT_EQ(m.unit().fences, 0U);
  EXPECT_EQ(m.cpu.charged()[CostId::ContextEntryWrite], writes);
}
// Behaviour 36. Kills: a move that leaves the old context's translations, or the old device entry, in caches.
TEST_P(XenReattach, NothingOfTheOldContextIsUsableAfterwards) {
  Machine m(family());
  const std::uint16_t one = m.attached(m.guest());
  const std::uint16_t two = m.alloc(m.guest());
  ASSERT_EQ(m.map(m.guest(), one, Dfn(7), Gfn(70), 2).status, Errno::Ok);
  ASSERT_EQ(m.map(m.guest(), two, Dfn(7), Gfn(80), 1).status, Errno::Ok);
  ASSERT_EQ(m.reach(kNic, Dfn(7)), m.frame(m.guest(), Gfn(70)));
  ASSERT_EQ(m.reach(kNic, Dfn(8)), m.frame(m.guest(), Gfn(71)));
  ASSERT_EQ(m.reattach(m.guest(), kNic, two), Errno::Ok);
  EXPECT_EQ(m.reach(kNic, Dfn(7)), m.frame(m.guest(), Gfn(80)));
  EXPECT_EQ(m.reach(kNic, Dfn(8)), std::nullopt);
  ASSERT_EQ(m.reattach(m.guest(), kNic, 0), Errno::Ok);
  EXPECT_EQ(m.reach(kNic, Dfn(7)), m.frame(m.guest(), Gfn(7)));
}
// The same for what a device keeps itself, and after the unit's own caches (a translation on its way would come back).
// Kills: a move without a flush of the device's cache, or before that of the unit.
TEST_P(XenReattach, ADevicesOwnCacheIsFlushedAfterTheUnits) {
  MachineOptions options;
  options.features.device_tlb = true;
  Machine m(family(), options);
  constexpr RequesterId kCaching = RequesterId::bdf(8, 0, 0);
  m.assign(m.guest(), {.requester = kCaching, .device_tlb = true});
  ASSERT_EQ(m.unit().device_cached(kCaching, Dfn(7).address()), m.frame(m.guest(), Gfn(7)).address());
  const std::uint16_t context = m.alloc(m.guest());
  m.unit().forget_history();
  ASSERT_EQ(m.reattach(m.guest(), kCaching, context), Errno::Ok);
  EXPECT_EQ(m.unit().device_cached(kCaching, Dfn(7).address()), std::nullopt);
  ASSERT_FALSE(m.unit().applied.empty());
  EXPECT_EQ(m.unit().applied.back().kind, InvalidationKind::DeviceTlb);
  EXPECT_EQ(m.unit().count(InvalidationKind::DeviceTlb), 1U);
  // A device without a cache is not asked.
  m.unit().forget_history();
  ASSERT_EQ(m.reattach(m.guest(), kNic, context), Errno::Ok);
  EXPECT_EQ(m.unit().count(InvalidationKind::DeviceTlb), 0U);
}
// Behaviour 42.
TEST_P(XenReattach, DevicesOfOneContextShareMappingsAndOneTagPerUnit) {
  Machine m(family(), {.units = 2});
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.reattach(m.guest(), kDisk, context), Errno::Ok);
  ASSERT_EQ(m.map(m.guest(), context, Dfn(7), Gfn(70), 1).status, Errno::Ok);
  EXPECT_EQ(m.reach(kNic, Dfn(7)), m.frame(m.guest(), Gfn(70)));
  EXPECT_EQ(m.reach(kDisk, Dfn(7)), m.frame(m.guest(), Gfn(70)));
  EXPECT_EQ(m.context(m.guest(), context).tags.size(), 2U);
}
// Behaviour 43. Kills: one tag for a domain.
TEST_P(XenReattach, ContextsHaveDifferentTagsOnOneUnit) {
  Machine m(family(), {.units = 2});
  const std::uint16_t one = m.alloc(m.guest());
  const std::uint16_t two = m.alloc(m.guest());
  const std::uint16_t alien = m.alloc(*m.other);
  for (std::size_t unit = 0; unit < 2; ++unit) {
    std::vector<DomainTag> tags{m.context(m.guest(), 0).tags[unit], m.context(m.guest(), one).tags[unit],
                                m.context(m.guest(), two).tags[unit], m.context(*m.other, 0).tags[unit],
                                m.context(*m.other, alien).tags[unit]};
    std::sort(tags.begin(), tags.end());
    EXPECT_EQ(std::unique(tags.begin(), tags.end()), tags.end());
    EXPECT_NE(tags.front(), DomainTag(0)) << "0 may tag entries that are not present";
  }
}
// Behaviour 41. Kills: a device-table entry for a bridge, whose id belongs to requests of devices behind it.
TEST_P(XenReattach, BridgesMoveButNothingIsProgrammed) {
  Machine m(family());
  constexpr RequesterId kBridge = RequesterId::bdf(7, 0, 0);
  m.assign(m.guest(), {.requester = kBridge, .device_class = DeviceClass::Bridge});
  EXPECT_EQ(m.reach(kBridge, Dfn(3)), std::nullopt);
  const std::uint16_t context = m.alloc(m.guest());
  m.unit().forget_history();
  const std::uint64_t writes = m.cpu.charged()[CostId::ContextEntryWrite];
  EXPECT_EQ(m.reattach(m.guest(), kBridge, context), Errno::Ok);
  EXPECT_EQ(m.guest().devices.at(kBridge).context, &m.context(m.guest(), context));
  EXPECT_EQ(m.cpu.charged()[CostId::ContextEntryWrite], writes);
  EXPECT_TRUE(m.unit().applied.empty());
}

// Phantom functions -------------------------------------------------------------------------------------------------

// Behaviour 39, first half.
TEST_P(XenReattach, PhantomFunctionsFollowTheirDevice) {
  Machine m(family());
  constexpr RequesterId kCard = RequesterId::bdf(9, 0, 0);
  m.assign(m.guest(), {.requester = kCard, .phantom_functions = {kPhantom, kFarPhantom}});
  const std::uint16_t context = m.alloc(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(7), Gfn(70), 1).status, Errno::Ok);
  for (const RequesterId f : {kCard, kPhantom, kFarPhantom}) EXPECT_EQ(m.reach(f, Dfn(7)), m.frame(m.guest(), Gfn(7)));
  ASSERT_EQ(m.reattach(m.guest(), kCard, context), Errno::Ok);
  for (const RequesterId f : {kCard, kPhantom, kFarPhantom}) EXPECT_EQ(m.reach(f, Dfn(7)), m.frame(m.guest(), Gfn(70)));
  EXPECT_EQ(m.reattach(m.guest(), kPhantom, 0), Errno::NoDevice) << "a phantom is no device of its own";
  ASSERT_EQ(m.xen.deassign_device(m.cpu, m.guest(), kCard).run(), Errno::Ok);
  for (const RequesterId f : {kCard, kPhantom, kFarPhantom}) EXPECT_EQ(m.reach(f, Dfn(7)), std::nullopt);
}

// A driver that refuses chosen attachments; otherwise the family's own. Statics, because a family's factory is a plain
// function.
struct Refusal {
  const FamilyDescriptor* family = nullptr;
  std::vector<std::pair<RequesterId, std::uint64_t>> moves;  // of a function to a stage-2 root
  std::function<void()> meanwhile;                           // what devices do at the moment of a refusal
};
Refusal refusal;

class RefusingDriver final : public TableDriver {
 public:
  explicit RefusingDriver(std::unique_ptr<TableDriver> real) : real_(std::move(real)) {}
  TableEdit attach(RequesterId requester, const ContextSetting& setting, TableMemory& memory) override {
    const std::pair move{requester, setting.stage2.address};
    if (std::find(refusal.moves.begin(), refusal.moves.end(), move) != refusal.moves.end()) {
      if (refusal.meanwhile) refusal.meanwhile();
      TableEdit edit;
      edit.status = EditStatus::NoMemory;
      return edit;
    }
    return real_->attach(requester, setting, memory);
  }
  std::unique_ptr<PageTable> create_table(TableKind kind, TableMemory& memory) override {
    return real_->create_table(kind, memory);
  }
  std::unique_ptr<PageTable> view_table(TableKind kind, TableRoot root, TableMemory& memory) override {
    return real_->view_table(kind, root, memory);
  }
  [[nodiscard]] std::uint64_t page_sizes(TableKind kind) const override { return real_->page_sizes(kind); }
  [[nodiscard]] std::uint64_t max_input(TableKind kind) const override { return real_->max_input(kind); }
  std::optional<std::vector<RegisterWrite>> bring_up(TableMemory& memory) override { return real_->bring_up(memory); }
  TableEdit detach(RequesterId requester, TableMemory& memory) override { return real_->detach(requester, memory); }
  [[nodiscard]] std::vector<InvalidationScope> context_scopes(RequesterId requester,
                                                              std::optional<ContextSetting> old) const override {
    return real_->context_scopes(requester, old);
  }
  [[nodiscard]] std::uint32_t domain_tags() const override { return real_->domain_tags(); }
  [[nodiscard]] InvalidationScope widen(const InvalidationScope& exact) const override { return real_->widen(exact); }
  [[nodiscard]] CommandWords encode(const InvalidationScope& scope) const override { return real_->encode(scope); }
  [[nodiscard]] CommandWords encode_fence(std::uint64_t address, std::uint32_t data) const override {
    return real_->encode_fence(address, data);
  }
  [[nodiscard]] CommandRing ring() const override { return real_->ring(); }
  [[nodiscard]] std::uint64_t tail_value(std::uint32_t index) const override { return real_->tail_value(index); }

 private:
  std::unique_ptr<TableDriver> real_;
};

FamilyDescriptor refusing(const FamilyDescriptor& family) {
  refusal = {.family = &family, .moves = {}, .meanwhile = {}};
  FamilyDescriptor descriptor = family;
  descriptor.make_driver = [](const DriverOptions& options) -> std::unique_ptr<TableDriver> {
    return std::make_unique<RefusingDriver>(refusal.family->make_driver(options));
  };
  return descriptor;
}

// Behaviour 39, second half. Kills: functions that stay where they were put before one failed, and caches that keep
// what they saw there.
TEST_P(XenReattach, WhenOnePhantomFunctionCannotMoveAllStay) {
  const FamilyDescriptor stubborn = refusing(family());
  Machine m(stubborn);
  constexpr RequesterId kCard = RequesterId::bdf(9, 0, 0);
  m.assign(m.guest(), {.requester = kCard, .phantom_functions = {kPhantom, kFarPhantom}, .reserved = {kFirmware}});
  const std::uint16_t context = m.alloc(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(7), Gfn(70), 1).status, Errno::Ok);
  IoContext& target = m.context(m.guest(), context);
  refusal.moves = {{kFarPhantom, target.stage2.address}};
  // In between, a function that has moved already may use the context that it will be taken from again.
  refusal.meanwhile = [&] { EXPECT_EQ(m.reach(kPhantom, Dfn(7)), m.frame(m.guest(), Gfn(70))); };
  EXPECT_EQ(m.reattach(m.guest(), kCard, context), Errno::NoMemory);
  for (const RequesterId f : {kCard, kPhantom, kFarPhantom}) EXPECT_EQ(m.reach(f, Dfn(7)), m.frame(m.guest(), Gfn(7)));
  EXPECT_EQ(m.guest().devices.at(kCard).context, m.guest().default_context.get());
  EXPECT_TRUE(target.devices.empty());
  EXPECT_FALSE(target.is_reserved(kFirmware.first, 1)) << "what was inserted for the device goes again";
  EXPECT_TRUE(m.guest().default_context->is_reserved(kFirmware.first, 1));
  EXPECT_FALSE(m.guest().crashed);
  EXPECT_EQ(m.free(m.guest(), context), Errno::Ok) << "the context is as usable as before";
}
// Behaviour 40. Kills: a function that keeps the context it was refused, and a crash of the hardware domain.
TEST_P(XenReattach, WhenForwardAndBackFailTheFunctionIsBlockedAndTheDomainCrashes) {
  const FamilyDescriptor stubborn = refusing(family());
  Machine m(stubborn);
  constexpr RequesterId kCard = RequesterId::bdf(9, 0, 0);
  constexpr RequesterId kHostCard = RequesterId::bdf(10, 0, 0);
  const DeviceSetting card{.requester = kCard, .phantom_functions = {kPhantom}};
  m.assign(m.guest(), card);
  m.assign(*m.dom0, {.requester = kHostCard, .phantom_functions = {kFarPhantom}});
  for (const auto& [domain, device, last] :
       {std::tuple{&m.guest(), kCard, kPhantom}, std::tuple{m.dom0, kHostCard, kFarPhantom}}) {
    const std::uint16_t context = m.alloc(*domain);
    ASSERT_EQ(m.map(*domain, context, Dfn(7), Gfn(70), 1).status, Errno::Ok);
    refusal.moves = {{last, m.context(*domain, context).stage2.address},
                     {device, domain->default_context->stage2.address}};
    EXPECT_EQ(m.reattach(*domain, device, context), Errno::InputOutput);
    EXPECT_EQ(m.reach(device, Dfn(7)), std::nullopt);
    EXPECT_EQ(m.reach(last, Dfn(7)), m.frame(*domain, Gfn(7)));
    EXPECT_EQ(domain->crashed, domain != m.dom0);
    EXPECT_EQ(m.free(*domain, context), Errno::Ok);
    EXPECT_EQ(m.reach(device, Dfn(7)), std::nullopt);
  }
}

// Freeing a context moves all its devices or none (Z5). Kills: devices that are left in a context that is gone, and a
// context that stays dying although it goes on.
TEST_P(XenReattach, WhenADeviceCannotLeaveAContextIsNotFreed) {
  const FamilyDescriptor stubborn = refusing(family());
  Machine m(stubborn);
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.reattach(m.guest(), kDisk, context), Errno::Ok);
  ASSERT_EQ(m.map(m.guest(), context, Dfn(7), Gfn(70), 1).status, Errno::Ok);
  refusal.moves = {{kDisk, m.guest().default_context->stage2.address}};
  EXPECT_EQ(m.free(m.guest(), context, abi::kFreeReattachDefault), Errno::NoMemory);
  for (const RequesterId device : {kNic, kDisk}) EXPECT_EQ(m.reach(device, Dfn(7)), m.frame(m.guest(), Gfn(70)));
  EXPECT_EQ(m.map(m.guest(), context, Dfn(8), Gfn(71), 1).status, Errno::Ok);
  EXPECT_FALSE(m.guest().crashed);
  refusal.moves.clear();
  EXPECT_EQ(m.free(m.guest(), context, abi::kFreeReattachDefault), Errno::Ok);
  for (const RequesterId device : {kNic, kDisk}) EXPECT_EQ(m.reach(device, Dfn(7)), m.frame(m.guest(), Gfn(7)));
}

// Reserved regions --------------------------------------------------------------------------------------------------

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

// Assignment --------------------------------------------------------------------------------------------------------

class XenAssign : public XenFamilies {};
XEN_ON_ALL_FAMILIES(XenAssign);

TEST_P(XenAssign, ADeviceBelongsToOneDomain) {
  Machine m(family());
  EXPECT_EQ(m.xen.assign_device(m.cpu, *m.other, {.requester = kNic}).run(), Errno::Busy);
  EXPECT_EQ(m.xen.assign_device(m.cpu, m.guest(), {.requester = kNic}).run(), Errno::Busy);
  EXPECT_EQ(m.reach(kNic, Dfn(3)), m.frame(m.guest(), Gfn(3)));
}
// Kills: a second device that takes over requests of the first one's phantom functions.
TEST_P(XenAssign, NoRequesterIdBelongsToTwoDevices) {
  Machine m(family());
  constexpr RequesterId kCard = RequesterId::bdf(9, 0, 0);
  EXPECT_EQ(m.xen.assign_device(m.cpu, *m.other, {.requester = kCard, .phantom_functions = {kNic}}).run(), Errno::Busy);
  m.assign(m.guest(), {.requester = kCard, .phantom_functions = {kPhantom}});
  EXPECT_EQ(m.xen.assign_device(m.cpu, *m.other, {.requester = kPhantom}).run(), Errno::Busy);
  EXPECT_EQ(m.reach(kPhantom, Dfn(3)), m.frame(m.guest(), Gfn(3)));
}
TEST_P(XenAssign, AUnitThatDoesNotExistIsNoDevice) {
  Machine m(family());
  EXPECT_EQ(m.xen.assign_device(m.cpu, *m.other, {.requester = kPhantom, .unit = 1}).run(), Errno::NoDevice);
}
// Kills: a device that is taken away but still translated, from tables or from caches.
TEST_P(XenAssign, ADeviceThatIsTakenAwayReachesNothing) {
  MachineOptions options;
  options.features.device_tlb = true;
  Machine m(family(), options);
  constexpr RequesterId kCard = RequesterId::bdf(9, 0, 0);
  m.assign(m.guest(), {.requester = kCard, .reserved = {kFirmware}, .device_tlb = true});
  ASSERT_NE(m.reach(kCard, Dfn(3)), std::nullopt);
  ASSERT_NE(m.unit().device_cached(kCard, Dfn(3).address()), std::nullopt);
  EXPECT_EQ(m.xen.deassign_device(m.cpu, m.guest(), kCard).run(), Errno::Ok);
  EXPECT_EQ(m.reach(kCard, Dfn(3)), std::nullopt);
  EXPECT_EQ(m.unit().device_cached(kCard, Dfn(3).address()), std::nullopt);
  EXPECT_EQ(m.reach(kNic, kFirmware.first), std::nullopt);
  EXPECT_EQ(m.xen.deassign_device(m.cpu, m.guest(), kCard).run(), Errno::NoDevice);
  EXPECT_EQ(m.reattach(m.guest(), kCard, 0), Errno::NoDevice);
  EXPECT_EQ(m.xen.assign_device(m.cpu, *m.other, {.requester = kCard}).run(), Errno::Ok);
}
// Behaviour 45. Kills: a device that keeps a context of the domain it left.
TEST_P(XenAssign, AMovedDeviceIsInTheOtherDomainsContextZero) {
  Machine m(family());
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(900), Gfn(70), 1).status, Errno::Ok);
  ASSERT_NE(m.reach(kNic, Dfn(900)), std::nullopt);
  EXPECT_EQ(m.xen.move_device(m.cpu, m.guest(), *m.other, kNic).run(), Errno::Ok);
  EXPECT_EQ(m.reach(kNic, Dfn(900)), m.frame(*m.other, Gfn(900)));
  EXPECT_TRUE(m.context(m.guest(), context).devices.empty());
  EXPECT_EQ(m.reattach(m.guest(), kNic, 0), Errno::NoDevice);
  EXPECT_EQ(m.free(m.guest(), context), Errno::Ok);
}
// A move waits for the lock of one context while the other one is emptied and freed. Kills: a context that is gone
// before everybody who means to lock it has found it dying.
TEST_P(XenAssign, AContextIsKeptWhileSomebodyMeansToLockIt) {
  Machine m(family());
  const std::uint16_t one = m.attached(m.guest());
  const std::uint16_t two = m.alloc(m.guest());
  Stepper stepper(m.host);
  CpuPort& holder = stepper.add_cpu();
  SpinLock& home = m.guest().default_context->lock;
  const auto hold = [](CpuPort& cpu, SpinLock& lock) -> Task<void> { co_await cpu.acquire(lock); };
  auto holding = hold(holder, home);
  holding.start();
  auto moving = m.xen.reattach(stepper.add_cpu(), m.guest(), kNic, *m.guest().default_context);
  moving.start();
  stepper.run();
  ASSERT_FALSE(moving.done()) << "it waits for context 0";
  ASSERT_EQ(m.reattach(m.guest(), kNic, two), Errno::Ok);
  ASSERT_EQ(m.free(m.guest(), one), Errno::Ok);
  ASSERT_EQ(m.free(m.guest(), m.alloc(m.guest())), Errno::Ok);  // sweeps what nobody needs
  EXPECT_EQ(m.guest().retired_contexts.size(), 1U);
  holder.release(home);
  stepper.run();
  ASSERT_TRUE(moving.done());
  EXPECT_EQ(moving.result(), Errno::Invalid) << "the device has moved meanwhile";
  EXPECT_EQ(m.guest().devices.at(kNic).context, &m.context(m.guest(), two));
  ASSERT_EQ(m.free(m.guest(), m.alloc(m.guest())), Errno::Ok);
  EXPECT_TRUE(m.guest().retired_contexts.empty());
}
// Moves of one device by several vCPUs, between contexts that come and go. Kills: two locks taken in different orders,
// a context that is used after it was freed (sanitizers watch), a device that is nowhere or in two places.
TEST_P(XenAssign, ConcurrentMovesEndWithEveryDeviceInOneContext) {
  for (std::uint64_t seed = 1; seed <= 25; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Machine m(family());
    ASSERT_EQ(m.init(m.guest(), 3, 6), Errno::Ok);
    Stepper stepper(m.host);
    Rng rng(seed);
    const auto work = [&](CpuPort& cpu, std::uint64_t page) -> Task<void> {
      const Gpa at = Gfn(page).address();
      for (int i = 0; i < 12; ++i) {
        const RequesterId device = rng.chance(0.5) ? kNic : kDisk;
        const auto context = static_cast<std::uint16_t>(rng.below(4));
        Subop subop = Subop::AllocContext;
        abi::AllocContext alloc;
        abi::FreeContext free{.ctx_no = context, .free_flags = abi::kFreeReattachDefault};
        abi::ReattachDevice move = Machine::reattach_argument(device, context);
        const std::uint64_t what = rng.below(4);
        if (what == 0) (void)m.guest().memory.write(at, std::as_bytes(std::span(&alloc, 1)));
        if (what == 1) (void)m.guest().memory.write(at, std::as_bytes(std::span(&free, 1)));
        if (what >= 2) (void)m.guest().memory.write(at, std::as_bytes(std::span(&move, 1)));
        if (what == 1) subop = Subop::FreeContext;
        if (what >= 2) subop = Subop::ReattachDevice;
        co_await m.op.call(cpu, m.guest(), static_cast<std::uint32_t>(subop), at);
      }
    };
    std::vector<Task<void>> tasks;
    for (std::uint64_t cpu = 0; cpu < 3; ++cpu) tasks.push_back(work(stepper.add_cpu(), 0x100 + cpu));
    for (auto& task : tasks) task.start();
    stepper.run(Rng(seed, "order"));
    for (auto& task : tasks) EXPECT_TRUE(task.done()) << "vCPUs wait for each other";
    for (const RequesterId device : {kNic, kDisk}) {
      unsigned places = 0;
      IoContext* const home = m.guest().devices.at(device).context;
      const auto count = [&](const IoContext* context) {
        if (context == nullptr) return;
        const bool inside =
            std::find(context->devices.begin(), context->devices.end(), device) != context->devices.end();
        places += inside ? 1U : 0U;
        EXPECT_EQ(inside, context == home);
      };
      count(m.guest().default_context.get());
      for (const auto& slot : m.guest().pv->slots) count(slot.get());
      EXPECT_EQ(places, 1U);
      // Only context 0 maps anything.
      EXPECT_EQ(m.reach(device, Dfn(3)).has_value(), home == m.guest().default_context.get());
    }
  }
}

}  // namespace
}  // namespace iommu::xen
