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

// Behaviour 33 (v7). Kills: devices looked up among all domains, or after the context.
TEST_P(XenReattach, DevicesOfOthersAndOfNobodyAreNoDevice) {
  Machine m(family());
  const std::uint16_t context = m.alloc(m.guest());
  EXPECT_EQ(m.reattach(m.guest(), kAlien, context), Errno::NoDevice);
  EXPECT_EQ(m.reattach(m.guest(), RequesterId::bdf(99, 1, 1), context), Errno::NoDevice);
  abi::ReattachDevice segment = Machine::reattach_argument(kNic, context);
  segment.dev.seg = 1;
  EXPECT_EQ(m.call(m.guest(), Subop::ReattachDevice, segment), Errno::NoDevice);
  EXPECT_EQ(m.reattach(m.guest(), kAlien, 77), Errno::NoDevice) << "whatever the context";
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
    std::vector<DomainTag> tags{m.context(m.guest(), 0).tag_on(unit), m.context(m.guest(), one).tag_on(unit),
                                m.context(m.guest(), two).tag_on(unit), m.context(*m.other, 0).tag_on(unit),
                                m.context(*m.other, alien).tag_on(unit)};
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

// Where tags are taken at attach. Kills: a tag that a context keeps although the device could not come.
TEST_P(XenReattach, ARefusedMoveKeepsNoTagThatItTook) {
  const FamilyDescriptor stubborn = refusing(family());
  Machine m(stubborn, {.xen = {.tag_allocation = TagAllocation::AtAttach}});
  const std::uint16_t context = m.alloc(m.guest());
  const std::uint64_t in_use = m.xen.unit(0).tag_counters().in_use;
  refusal.moves = {{kNic, m.context(m.guest(), context).stage2.address}};
  EXPECT_NE(m.reattach(m.guest(), kNic, context), Errno::Ok);
  EXPECT_EQ(m.context(m.guest(), context).tags.front(), std::nullopt);
  EXPECT_EQ(m.xen.unit(0).tag_counters().in_use, in_use);
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

}  // namespace
}  // namespace iommu::xen
