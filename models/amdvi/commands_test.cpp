// SPDX-License-Identifier: Apache-2.0
// The command buffer: what each command removes, which commands stop it, how it starts again. Words are written as
// bits.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "models/amdvi/core_test_support.hpp"

namespace iommu::amdvi::test {
namespace {

constexpr std::uint64_t kIllegal = 5, kUnreadable = 6;  // EventCodes

struct CommandCase {
  std::string_view row, what;
  EventWords words;
  std::vector<InvalidationScope> scopes;
  EventWords reserved{};  // bits that must be zero [§2.4]
};

InvalidationScope scope(InvalidationKind kind) { return {.kind = kind}; }
InvalidationScope device(InvalidationKind kind, unsigned requester) {
  return {.kind = kind, .requester = RequesterId(static_cast<std::uint16_t>(requester))};
}
InvalidationScope pages(unsigned domain, std::uint64_t first, std::uint64_t last, bool leaf_only) {
  InvalidationScope s{.domain = DomainTag(domain), .range = AddressRange{first, last}};
  s.leaf_only = leaf_only;
  return s;
}
InvalidationScope all_pages(unsigned domain, bool leaf_only) {
  InvalidationScope s{.domain = DomainTag(domain)};
  s.leaf_only = leaf_only;
  return s;
}
InvalidationScope nested(unsigned domain) {
  InvalidationScope s{.domain = DomainTag(domain)};
  s.stage1_only = true;
  return s;
}
InvalidationScope with_asid(InvalidationScope s, unsigned asid) {
  s.asid = AsidTag(asid);
  return s;
}
InvalidationScope with_range(InvalidationScope s, std::uint64_t first, std::uint64_t last) {
  s.range = AddressRange{first, last};
  return s;
}

// clang-format off
const std::vector<CommandCase>& cases() {
  using enum InvalidationKind;
  constexpr std::uint64_t kDeviceReserved = 0x0fff'ffff'ffff'0000;
  constexpr EventWords kPages{0x0fff'0000'fff0'0000, 0xff8}, kIotlb{0, 0xfca}, kPrefetch{0x0ff0'0000'00ff'0000, 0xfea};
  static const std::vector<CommandCase> all{
    {"COMPLETION_WAIT", "barrier", {0x1000'0000'0000'0004, 0}, {}, {0x0ff0'0000'0000'0000, 0}},
    {"INVALIDATE_DEVTAB_ENTRY", "device", {0x2000'0000'0000'1234, 0}, {device(Context, 0x1234)}, {kDeviceReserved, ~0UL}},
    {"INVALIDATE_IOMMU_PAGES", "a page", {0x3000'0007'0000'0000, 0x5000}, {pages(7, 0x5000, 0x5fff, true), nested(7)}, kPages},
    {"INVALIDATE_IOMMU_PAGES", "a page and directories", {0x3000'0007'0000'0000, 0x5002}, {pages(7, 0x5000, 0x5fff, false), nested(7)}, kPages},
    {"INVALIDATE_IOMMU_PAGES", "two pages", {0x3000'0007'0000'0000, 0x4001}, {pages(7, 0x4000, 0x5fff, true), nested(7)}, kPages},
    {"INVALIDATE_IOMMU_PAGES", "eight pages", {0x3000'0007'0000'0000, 0x1'3003}, {pages(7, 0x1'0000, 0x1'7fff, false), nested(7)}, kPages},
    {"INVALIDATE_IOMMU_PAGES", "2 GiB", {0x3000'ffff'0000'0000, 0x7'3fff'f003}, {pages(0xffff, 0x7'0000'0000, 0x7'7fff'ffff, false), nested(0xffff)}, kPages},
    {"INVALIDATE_IOMMU_PAGES", "all", {0x3000'0007'0000'0000, 0x7fff'ffff'ffff'f003}, {all_pages(7, false), nested(7)}, kPages},
    {"INVALIDATE_IOMMU_PAGES", "all, one bits throughout", {0x3000'0007'0000'0000, 0xffff'ffff'ffff'f003}, {all_pages(7, false), nested(7)}, kPages},
    {"INVALIDATE_IOMMU_PAGES", "a guest page", {0x3000'0007'000a'bcde, 0x5004}, {with_asid(pages(7, 0x5000, 0x5fff, true), 0xabcde)}, kPages},
    {"INVALIDATE_IOMMU_PAGES", "a PASID", {0x3000'0007'000a'bcde, 0x7fff'ffff'ffff'f007},
     {with_asid({.kind = ProcessContext, .domain = DomainTag(7)}, 0xabcde), with_asid(all_pages(7, false), 0xabcde)}, kPages},
    {"INVALIDATE_IOTLB_PAGES", "a page", {0x4000'0100'2000'0100, 0x5000}, {with_range(device(DeviceTlb, 0x100), 0x5000, 0x5fff)}, kIotlb},
    {"INVALIDATE_IOTLB_PAGES", "four pages", {0x4000'0100'0000'0100, 0x5001}, {with_range(device(DeviceTlb, 0x100), 0x4000, 0x7fff)}, kIotlb},
    {"INVALIDATE_IOTLB_PAGES", "all", {0x4000'0100'0000'0100, 0x7fff'ffff'ffff'f001}, {device(DeviceTlb, 0x100)}, kIotlb},
    {"INVALIDATE_IOTLB_PAGES", "PASID 0xabcde", {0x4ade'0100'00bc'0100, 0x5004}, {with_range(with_asid(device(DeviceTlb, 0x100), 0xabcde), 0x5000, 0x5fff)}, kIotlb},
    {"INVALIDATE_INTERRUPT_TABLE", "device", {0x5000'0000'0000'1234, 0}, {device(InterruptEntry, 0x1234)}, {kDeviceReserved, ~0UL}},
    {"PREFETCH_IOMMU_PAGES", "hint", {0x6000'0000'0300'1234, 0x5000}, {}, kPrefetch},
    {"PREFETCH_IOMMU_PAGES", "with invalidation", {0x6000'0000'0300'1234, 0x5010}, {with_range(scope(Iotlb), 0x5000, 0x5fff)}, kPrefetch},
    {"COMPLETE_PPR_REQUEST", "nobody asked", {0x7000'0009'0000'1234, 0x0055'0000'0000}, {}, {0x0ff0'0000'ffff'0000, 0xffff'0000'ffff'fffb}},
    {"INVALIDATE_IOMMU_ALL", "all", {0x8000'0000'0000'0000, 0}, {scope(Context), scope(ProcessContext), scope(Iotlb), scope(InterruptEntry)},
     {0x0fff'ffff'ffff'ffff, ~0UL}},
  };
  return all;
}
// clang-format on

Identity identity() {
  Identity id = Bench::full();
  id.extended_features = with<kExtendedFeatures, "PPRSup">(id.extended_features, 1);
  return id;
}
struct Unit : Bench {
  explicit Unit(const Identity& id = identity()) : Bench(Setting::Host, {}, id) {}
  std::optional<CommandEffect> run(const EventWords& words) { return execute(words[0], words[1]); }
  [[nodiscard]] bool is_running() { return (reg(offset::kStatus) & 1UL << 4) != 0; }
  void restart() { control<"CmdBufEn">(0), control<"CmdBufEn">(1); }
};

// Exact scopes. Kills: a field taken from another place, a size off by one bit, a form without the guest's half.
TEST(AmdViCommands, EachCommandYieldsItsScopes) {
  for (const CommandCase& c : cases()) {
    Unit unit;
    const auto effect = unit.run(c.words);
    ASSERT_TRUE(effect) << c.row << " " << c.what;
    EXPECT_EQ(effect->scopes, c.scopes) << c.row << " " << c.what;
    EXPECT_FALSE(effect->error);
    EXPECT_EQ(unit.reg(offset::kCommandHead), 16U);
    EXPECT_TRUE(unit.is_running() && unit.events().empty());
  }
}
// One test over all of them. Kills: a command of the table that is not executed.
TEST(AmdViCommands, EveryCommandRowIsProduced) {
  Unit unit;
  std::set<std::string_view> produced;
  std::uint64_t tail = 0;
  for (const CommandCase& c : cases()) {
    unit.write(Bench::kCommands + tail, c.words[0]);
    unit.write(Bench::kCommands + tail + 8, c.words[1]);
    tail += 16;
  }
  EXPECT_TRUE(unit.core.mmio_write(offset::kCommandTail, 8, tail).commands_pending);
  for (const CommandCase& c : cases()) {
    const auto command = unit.core.fetch_command(unit.port).run();
    ASSERT_TRUE(command && command->row != nullptr);
    EXPECT_EQ(command->row->name, c.row);
    produced.insert(command->row->name);
  }
  EXPECT_FALSE(unit.core.has_command());
  for (const CommandRow& row : kCommandRows) EXPECT_TRUE(produced.contains(row.name)) << row.name;
}
// Without guest translation there is nothing nested to remove.
TEST(AmdViCommands, HostFormAloneWithoutGuestTables) {
  Unit unit;
  unit.control<"GTEn">(0);
  const auto effect = unit.run({0x3000'0007'0000'0000, 0x5002});
  EXPECT_EQ(effect->scopes, std::vector{pages(7, 0x5000, 0x5fff, false)});
}

// Errors --------------------------------------------------------------------------------------------------------------

// Each bit of each command: flipped, it is another command, means something, or is reserved: an error of the command at
// its address. The reserved bits stand in the table above once more, for the layouts' own lists would say nothing.
TEST(AmdViCommands, EachReservedBitStopsTheBuffer) {
  for (const CommandCase& c : cases())
    for (unsigned bit = 0; bit < 128; ++bit) {
      if (bit >= 60 && bit < 64) continue;
      Unit unit;
      EventWords flipped = c.words;
      flipped[bit / 64] ^= 1UL << bit % 64;
      const bool refused = !unit.run(flipped);
      const bool is_type = c.row == "INVALIDATE_IOTLB_PAGES" && (bit == 68 || bit == 69);  // without InvIotlbTypeSup
      EXPECT_EQ(refused, (c.reserved[bit / 64] >> bit % 64 & 1) != 0 || is_type)
          << c.row << " " << c.what << " bit " << bit;
      EXPECT_EQ(unit.is_running(), !refused);
      const auto events = unit.events();
      ASSERT_EQ(events.size(), refused ? 1U : 0U);
      if (refused) EXPECT_EQ(events[0], (EventWords{kIllegal << 60, Bench::kCommands}));
    }
}
TEST(AmdViCommands, UnknownCommandsAreIllegal) {
  for (const std::uint64_t opcode : {0UL, 9UL, 10UL, 15UL}) {
    Unit unit;
    EXPECT_FALSE(unit.run({opcode << 60, 0}));
    EXPECT_EQ(unit.events(), (std::vector<EventWords>{{kIllegal << 60, Bench::kCommands}})) << opcode;
  }
}
// Kills: a command that the unit does not have and executes all the same.
TEST(AmdViCommands, WhatAUnitLacksIsIllegal) {
  struct Lack {
    EventWords words;
    void (*identity)(Identity&);
  };
  const std::vector<Lack> all{
      {{0x3000'0007'0000'0000, 0x5004}, [](Identity& id) { id.extended_features &= ~(1UL << 4); }},  // GTSup
      {{0x4000'0100'0000'0100, 0x5004}, [](Identity& id) { id.extended_features &= ~(1UL << 4); }},
      {{0x4000'0100'0000'0100, 0x5000}, [](Identity& id) { id.capability_header &= ~(1U << 24); }},  // IotlbSup
      {{0x6000'0000'0000'0000, 0}, [](Identity& id) { id.extended_features &= ~1UL; }},              // PreFSup
      {{0x7000'0000'0000'0000, 0}, [](Identity& id) { id.extended_features &= ~2UL; }},              // PPRSup
      {{0x8000'0000'0000'0000, 0}, [](Identity& id) { id.extended_features &= ~(1UL << 6); }},       // IASup
  };
  for (const Lack& lack : all) {
    EXPECT_TRUE(Unit().run(lack.words));
    Identity id = identity();
    lack.identity(id);
    Unit unit(id);
    EXPECT_FALSE(unit.run(lack.words)) << std::hex << lack.words[0];
    EXPECT_EQ(unit.events().size(), 1U);
  }
  Identity typed = identity();
  typed.extended_features |= 1UL << 54;  // InvIotlbTypeSup
  EXPECT_TRUE(Unit(typed).run({0x4000'0100'0000'0100, 0x5010}));
}

// Kills: a buffer that runs on after an error, that skips the bad command, or that never runs again. [§2.4]
TEST(AmdViCommands, AnErrorHaltsUntilTheBufferIsEnabledAnew) {
  Unit unit;
  const EventWords good = cases()[1].words;
  ASSERT_TRUE(unit.run(good));
  EXPECT_FALSE(unit.run({0, 0}));
  EXPECT_EQ(unit.reg(offset::kCommandHead), 16U) << "the head stays at the bad command";
  EXPECT_FALSE(unit.run(good));
  EXPECT_EQ(unit.events(), (std::vector<EventWords>{{kIllegal << 60, Bench::kCommands + 16}})) << "one event";
  unit.write(Bench::kCommands + 16, good[0]);
  EXPECT_FALSE(unit.core.has_command());
  unit.control<"CmdBufEn">(1);  // it is 1 already
  EXPECT_FALSE(unit.core.has_command());
  unit.control<"CmdBufEn">(0);
  EXPECT_FALSE(unit.core.has_command());
  const std::uint64_t on = unit.reg(offset::kControl) | 1UL << 12;
  EXPECT_TRUE(unit.core.mmio_write(offset::kControl, 8, on).commands_pending);
  EXPECT_TRUE(unit.core.fetch_command(unit.port).run());
  EXPECT_TRUE(unit.core.fetch_command(unit.port).run());
  EXPECT_FALSE(unit.core.has_command());
  EXPECT_EQ(unit.reg(offset::kCommandHead), 48U);
}
// The event names the command's address and type; the hardware error registers hold it too. [§2.5.7, §3.4.10]
TEST(AmdViCommands, AnUnreadableCommandIsAHardwareError) {
  Unit unit;
  unit.port.failing.insert(Bench::kCommands);
  EXPECT_FALSE(unit.run(cases()[0].words));
  EXPECT_FALSE(unit.is_running());
  const EventWords expected{kUnreadable << 60 | 1UL << 57, Bench::kCommands};
  EXPECT_EQ(unit.events(), std::vector{expected});
  EXPECT_EQ(unit.reg(offset::kHardwareEventHigh), expected[0]);
  EXPECT_EQ(unit.reg(offset::kHardwareEventLow), expected[1]);
  unit.port.failing.clear();
  unit.restart();
  EXPECT_TRUE(unit.core.fetch_command(unit.port).run());
}
TEST(AmdViCommands, AForgedCommandIsAnErrorAndDoesNothing) {
  Unit unit;
  Command forged;
  forged.words = {~0UL, ~0UL, ~0UL, ~0UL};
  const CommandEffect effect = unit.core.apply(forged);
  EXPECT_TRUE(effect.error && effect.scopes.empty() && !effect.fence);
}
TEST(AmdViCommands, ADeviceThatDoesNotAnswerIsAnEvent) {
  Unit unit;
  unit.core.device_tlb_timed_out(RequesterId(0x1234), Hpa(0x20010));
  EXPECT_EQ(unit.events(), (std::vector<EventWords>{{0x7000'0000'0000'1234, 0x20010}}));
}

// The ring ------------------------------------------------------------------------------------------------------------

TEST(AmdViCommands, TheRingWrapsAtItsLength) {
  for (const unsigned lg2 : {8U, 9U}) {
    Unit unit;
    unit.control<"CmdBufEn">(0);
    unit.core.mmio_write(offset::kCommandBase, 8, Bench::kCommands | std::uint64_t{lg2} << 56);
    unit.control<"CmdBufEn">(1);
    const std::uint64_t bytes = 16UL << lg2;
    for (std::uint64_t i = 0, tail = 0; i < 5 * bytes / 32; ++i) {
      unit.write(Bench::kCommands + tail, cases()[1].words[0] + i);
      unit.write(Bench::kCommands + tail + 8, 0);
      tail = (tail + 16) % bytes;
      unit.core.mmio_write(offset::kCommandTail, 8, tail);
      const auto command = unit.core.fetch_command(unit.port).run();
      ASSERT_TRUE(command) << i;
      EXPECT_EQ(command->words[0], cases()[1].words[0] + i);
      EXPECT_EQ(unit.reg(offset::kCommandHead), tail);
    }
  }
}
// Lengths below 256 entries are reserved: such a ring does not run. [§3.4.2]
TEST(AmdViCommands, ARingOfReservedLengthDoesNotRun) {
  Unit unit;
  unit.control<"CmdBufEn">(0);
  unit.core.mmio_write(offset::kCommandBase, 8, Bench::kCommands | 7UL << 56);
  unit.control<"CmdBufEn">(1);
  EXPECT_FALSE(unit.is_running());
  EXPECT_FALSE(unit.run(cases()[1].words));
}
TEST(AmdViCommands, ThePointersAreHardwaresOrSoftwares) {
  Unit unit;
  ASSERT_TRUE(unit.run(cases()[1].words));
  unit.core.mmio_write(offset::kCommandHead, 8, 0);
  EXPECT_EQ(unit.reg(offset::kCommandHead), 16U) << "not while it runs";
  unit.control<"CmdBufEn">(0);
  unit.core.mmio_write(offset::kCommandHead, 8, 0);
  EXPECT_EQ(unit.reg(offset::kCommandHead), 0U);
  unit.core.mmio_write(offset::kCommandBase, 8, 0x50000 | 8UL << 56);  // a new ring is empty
  EXPECT_EQ(unit.reg(offset::kCommandTail), 0U);
  unit.control<"CmdBufEn">(1);
  EXPECT_FALSE(unit.core.has_command());
  // Neither does a unit that is off fetch.
  unit.control<"IommuEn">(0);
  EXPECT_FALSE(unit.run(cases()[1].words));
}
// A command on its way when software takes the buffer away is not executed. Kills: a head that moves in a buffer that
// is off, or in another one.
TEST(AmdViCommands, ABufferTakenAwayDuringAFetchYieldsNothing) {
  for (const bool moved : {false, true}) {
    Unit unit;
    unit.port.before = [&](const MemoryAccess&) {
      if (moved)
        unit.core.mmio_write(offset::kCommandBase, 8, 0x50000 | 8UL << 56);
      else
        unit.control<"CmdBufEn">(0);
    };
    EXPECT_FALSE(unit.run(cases()[1].words));
    EXPECT_EQ(unit.reg(offset::kCommandHead), 0U);
    unit.port.before = nullptr;
    EXPECT_TRUE(unit.events().empty());
  }
}

// Fences --------------------------------------------------------------------------------------------------------------

TEST(AmdViFence, StoresEightBytesWhereAskedTo) {
  Unit unit;
  const auto effect = unit.run({0x1000'0012'3456'7898 | 1, 0xdead'beef'0123'4567});
  ASSERT_TRUE(effect && effect->fence && effect->fence->status);
  EXPECT_EQ(effect->fence->status->address, Hpa(0x12'3456'7898));
  EXPECT_EQ(effect->fence->status->data, 0xdead'beef'0123'4567U);
  EXPECT_EQ(effect->fence->status->bytes, 8U);
  EXPECT_FALSE(effect->fence->interrupt || effect->fence->is_barrier);
}
TEST(AmdViFence, WithoutStoreAndInterruptItOrdersOnly) {
  Unit unit;
  const auto effect = unit.run({0x1000'0000'0000'0004, 0});
  ASSERT_TRUE(effect && effect->fence);
  EXPECT_TRUE(effect->fence->is_barrier);
  EXPECT_FALSE(effect->fence->interrupt || effect->fence->status);
}
// Kills: an interrupt for each of several unacknowledged completions, and one that nobody enabled. [§2.4.1]
TEST(AmdViFence, InterruptsOnceUntilSoftwareAcknowledges) {
  Unit unit;
  const auto effect = unit.run({0x1000'0000'0000'0002, 0});
  ASSERT_TRUE(effect && effect->fence);
  EXPECT_TRUE(effect->fence->interrupt && !effect->fence->is_barrier);
  unit.core.mmio_write(offset::kMsiAddressLow, 4, 0xfee01000);
  unit.core.mmio_write(offset::kMsiAddressHigh, 4, 1);
  unit.core.mmio_write(offset::kMsiData, 4, 0x99);
  unit.core.mmio_write(offset::kMsiCapability, 4, 1U << 16);
  EXPECT_FALSE(unit.core.fence_interrupt()) << "ComWaitIntEn is clear";
  EXPECT_EQ(unit.reg(offset::kStatus) & 4, 4U);
  unit.core.mmio_write(offset::kStatus, 8, 4);
  EXPECT_EQ(unit.reg(offset::kStatus) & 4, 0U);
  unit.control<"ComWaitIntEn">(1);
  const auto message = unit.core.fence_interrupt();
  ASSERT_TRUE(message);
  EXPECT_EQ(message->address, Hpa(0x1'fee0'1000));
  EXPECT_EQ(message->data, 0x99U);
  EXPECT_FALSE(unit.core.fence_interrupt()) << "the first completion is not acknowledged";
  unit.core.mmio_write(offset::kStatus, 8, 4);
  EXPECT_TRUE(unit.core.fence_interrupt());
  unit.core.mmio_write(offset::kStatus, 8, 4);
  unit.core.mmio_write(offset::kMsiCapability, 4, 0);
  EXPECT_FALSE(unit.core.fence_interrupt()) << "MSI is disabled";
}

// Tags of what is cached and scopes of what is invalidated meet: by DomainID and PASID, whatever device and stage.
TEST(AmdViCommands, AScopeRemovesWhatTheContextTagged) {
  for (const Setting setting : kAllSettings) {
    Bench bench(setting);
    const auto found = bench.core.find_context(bench.request, bench.port).run();
    const Context context = std::get<Context>(found);
    const CacheTags tags{.domain = context.domain,
                         .asid = context.asid,
                         .requester = Bench::kDevice,
                         .range = {Bench::kInput & ~0xfffUL, Bench::kInput | 0xfff}};
    Unit unit;
    const auto removes = [&](std::uint64_t low, std::uint64_t high) {
      const auto effect = unit.run({0x3000'0000'0000'0000 | low, high});
      return std::any_of(effect->scopes.begin(), effect->scopes.end(),
                         [&](const InvalidationScope& s) { return matches(s, tags); });
    };
    const std::uint64_t own = Bench::kDomain << 32, other = (Bench::kDomain + 1) << 32;
    const std::uint64_t page = Bench::kInput & ~0xfffUL;
    EXPECT_TRUE(removes(own, 0x7fff'ffff'ffff'f003));
    EXPECT_FALSE(removes(other, 0x7fff'ffff'ffff'f003));
    EXPECT_TRUE(removes(own, page | 2));
    // Guest-physical pages elsewhere: what guest tables take part in goes all the same.
    EXPECT_EQ(removes(own, (page ^ 0x10'0000) | 2), context.asid.has_value());
    EXPECT_EQ(removes(own, page | 6), context.asid.has_value());  // PASID 0
    EXPECT_FALSE(removes(own | 1, page | 6));                     // PASID 1
    EXPECT_FALSE(removes(own, (page ^ 0x10'0000) | 6));
    const auto entry = unit.run({0x2000'0000'0000'0000 | Bench::kDevice.value(), 0});
    EXPECT_TRUE(matches(entry->scopes[0], {.requester = Bench::kDevice}));
    EXPECT_FALSE(matches(entry->scopes[0], {.requester = RequesterId(1)}));
  }
}

}  // namespace
}  // namespace iommu::amdvi::test
