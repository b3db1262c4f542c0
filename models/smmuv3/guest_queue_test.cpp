// SPDX-License-Identifier: Apache-2.0
// The further command queues, register by register, as their owners and as a hostile owner use them.
#include "models/smmuv3/guest_queue.hpp"

#include <gtest/gtest.h>

#include <set>
#include <utility>
#include <vector>

#include "models/smmuv3/unit_test_support.hpp"
#include "sim/base/rng.hpp"

namespace iommu::smmuv3 {
namespace {

namespace at = queue_offset;
using test::kDisk;
using test::kNic;
using test::options;
using test::Unit;

constexpr std::uint64_t kVmid = 0x4321;
constexpr std::uint64_t kVirtualStream = 5;
constexpr std::uint64_t kRingLg2 = 4;

template <const auto& kLayout>
CommandWords command(unsigned opcode, std::initializer_list<FieldValue> values) {
  auto words = pack_record<kLayout>(values);
  iommu::put<kLayout, "OP">(std::span<std::uint64_t>(words), opcode);
  return {{words[0], words[1], 0, 0}};
}
const CommandWords kSyncNone = command<kSync>(kCmdSync, {});

DriverOptions with_queues() {
  DriverOptions o = options(ContextKind::Nested);
  o.features.stall = true;
  o.features.further_queues = FurtherQueues::All;
  return o;
}

// VCMDQ 2 is logical queue 0 of VINTF 1, a guest's; VCMDQ 0 the host's.
class Queues : public Unit {
 public:
  explicit Queues(const DriverOptions& o = with_queues()) : Unit(o) {
    bring_up();
    set(at::kConfig, 1);
    give(kHost, 0, pack<kVintfConfig>({{"HYP_OWN", 1}}));
    give(kGuest, 1, pack<kVintfConfig>({{"VMID", kVmid}}));
    const std::uint64_t registers = at::kVintfs + at::kVintfStride;
    set(registers + at::kSidReplace + 12, kDisk.value());
    set(registers + at::kSidMatch + 12, pack<kSidMatch>({{"ENABLE", 1}, {"VIRT_SID", kVirtualStream}}));
  }
  static constexpr std::size_t kHost = 0, kGuest = 2;

  RegisterEffect set(std::uint64_t offset, std::uint64_t value, unsigned bytes = 4) {
    return core.mmio_write(kQueueBlock + offset, bytes, value);
  }
  std::uint64_t get32(std::uint64_t offset) { return core.mmio_read(kQueueBlock + offset, 4); }
  static std::uint64_t page0(std::size_t queue) { return at::kVcmdqPage0 + queue * at::kVcmdqStride; }
  static std::uint64_t page1(std::size_t queue) { return at::kVcmdqPage1 + queue * at::kVcmdqStride; }
  // As the guest reaches its queue: logical queue 0 of its VINTF.
  static constexpr std::uint64_t kWindow = at::kVintfPages + 2 * at::kPageBytes;

  void give(std::size_t queue, std::uint64_t vintf, std::uint64_t config) {
    set(at::kVintfs + vintf * at::kVintfStride, config);
    set(at::kVintfs + vintf * at::kVintfStride, config | 1);
    set(at::kCmdqAlloc + 4 * queue, pack<kCmdqAlloc>({{"ALLOC", 1}, {"VIRT_INTF_INDX", vintf}}));
    rings[queue] = *memory.allocate();
    const std::uint64_t base = rings[queue] | pack<kVcmdqBase>({{"LOG2SIZE", kRingLg2}});
    set(page1(queue) + at::kBase, base, 8);
    set(page0(queue) + at::kVcmdqConfig, 1);
  }
  void put_in(std::size_t queue, const CommandWords& words) {
    const std::uint64_t slot = rings[queue] + tails[queue] % (1U << kRingLg2) * kCommandBytes;
    memory.write64(slot, words.words[0]);
    memory.write64(slot + 8, words.words[1]);
    ++tails[queue];
  }
  RegisterEffect ring_bell(std::size_t queue) { return set(page0(queue) + at::kProd, tails[queue] % (2U << kRingLg2)); }
  std::vector<CommandEffect> run(std::size_t queue, const std::vector<CommandWords>& commands) {
    for (const CommandWords& words : commands) put_in(queue, words);
    ring_bell(queue);
    std::vector<CommandEffect> effects;
    CommandQueue& q = *core.further_queues()[queue];
    while (q.has_command()) {
      const auto fetched = q.fetch_command(port).run();
      if (!fetched) break;
      effects.push_back(q.apply(*fetched));
      q.completed();
    }
    return effects;
  }
  std::uint64_t error(std::size_t queue) { return get<kVcmdqCons, "ERR">(get32(page0(queue) + at::kCons)); }
  std::uint64_t consumed(std::size_t queue) { return get<kVcmdqCons, "RD">(get32(page0(queue) + at::kCons)); }

  std::array<std::uint64_t, 4> rings{};
  std::array<std::uint64_t, 4> tails{};
};

// Kills: a VMID that the guest chooses, a StreamID that is not exchanged, an index that passes a CMD_SYNC too early.
TEST(Smmuv3GuestQueue, AGuestsCommandsCarryItsVmidAndItsDevices) {
  Queues u;
  const auto effects =
      u.run(Queues::kGuest, {command<kTlbi>(kCmdTlbiNhAsid, {{"VMID", 7}, {"ASID", 3}}),
                             command<kTlbi>(kCmdTlbiNhVa, {{"VMID", 9}, {"ASID", 3}, {"Address", 5}}),
                             command<kAtcInv>(kCmdAtcInv, {{"StreamID", kVirtualStream}, {"Size", 52}}), kSyncNone});
  ASSERT_EQ(effects.size(), 4U);
  EXPECT_EQ(effects[0].scopes.at(0).domain, DomainTag(kVmid));
  EXPECT_EQ(effects[0].scopes.at(0).asid, AsidTag(3));
  EXPECT_EQ(effects[1].scopes.at(0).domain, DomainTag(kVmid));
  EXPECT_EQ(effects[1].scopes.at(0).range, (AddressRange{0x5000, 0x5fff}));
  EXPECT_EQ(effects[2].scopes.at(0).requester, kDisk);
  EXPECT_TRUE(effects[3].fence && effects[3].fence->is_barrier);
  EXPECT_EQ(u.consumed(Queues::kGuest), 4U);

  CommandQueue& queue = *u.core.further_queues()[Queues::kGuest];
  u.put_in(Queues::kGuest, kSyncNone);
  u.ring_bell(Queues::kGuest);
  EXPECT_TRUE(queue.fetch_command(u.port).run());
  EXPECT_EQ(u.consumed(Queues::kGuest), 4U) << "fetched, not completed";
  EXPECT_FALSE(queue.has_command());
  queue.completed();
  EXPECT_EQ(u.consumed(Queues::kGuest), 5U);
}

// Everything else, one by one. Kills: each command that is let through, an error that is not recorded, one that shows
// in the SMMU's own registers or stops another queue, a queue that does not go on once its owner has acknowledged.
TEST(Smmuv3GuestQueue, WhatAGuestMayNotAskForStopsItsOwnQueueOnly) {
  std::vector<std::pair<std::uint64_t, CommandWords>> refused;
  for (unsigned opcode = 0; opcode < 256; ++opcode) {
    const std::set<unsigned> allowed{kCmdTlbiNhAsid, kCmdTlbiNhVa, kCmdAtcInv, kCmdSync};
    if (!allowed.contains(opcode)) refused.emplace_back(1, command<kCommand>(opcode, {}));
  }
  refused.emplace_back(1, command<kSync>(kCmdSync, {{"CS", 1}, {"MSIAddress", 0x400}, {"MSIData", 1}}));
  refused.emplace_back(1, command<kSync>(kCmdSync, {{"CS", 2}}));
  refused.emplace_back(1, command<kAtcInv>(kCmdAtcInv, {{"StreamID", kVirtualStream}, {"SSec", 1}}));
  refused.emplace_back(1, command<kTlbi>(kCmdTlbiNhVa, {{"TG", 1}}));
  refused.emplace_back(kCerrorIllegalAccess, command<kAtcInv>(kCmdAtcInv, {{"StreamID", kDisk.value()}}));
  refused.emplace_back(kCerrorIllegalAccess, command<kAtcInv>(kCmdAtcInv, {{"StreamID", 0}}));
  Queues u;
  const std::uint64_t vintf = at::kVintfs + at::kVintfStride;
  for (const auto& [error, words] : refused) {
    SCOPED_TRACE(words.words[0]);
    EXPECT_TRUE(u.run(Queues::kGuest, {words, kSyncNone}).empty());
    EXPECT_EQ(u.error(Queues::kGuest), error);
    EXPECT_EQ(u.get32(vintf + at::kLvcmdqErrorMap), 1U);
    EXPECT_EQ((get<kVintfStatus, "STATUS">(u.get32(vintf + at::kVintfStatus))), kVcmdqError);
    EXPECT_EQ(u.get32(at::kCmdqErrorMap), 1U << Queues::kGuest);
    EXPECT_EQ(u.get32(at::kVintfErrorMap), 2U);
    EXPECT_EQ(u.core.mmio_read(offset::kGerror, 4), 0U);
    EXPECT_FALSE(u.core.has_events());
    EXPECT_FALSE(u.core.take_interrupt());
    EXPECT_EQ(u.run(Queues::kHost, {kSyncNone}).size(), 1U) << "the host's queue goes on";
    // The guest puts a CMD_SYNC in its place, as Linux does, and acknowledges in its own window.
    const std::uint64_t slot = u.rings[Queues::kGuest] + (u.tails[Queues::kGuest] - 2) % 16 * kCommandBytes;
    u.memory.write64(slot, kSyncNone.words[0]);
    u.memory.write64(slot + 8, kSyncNone.words[1]);
    const RegisterEffect resumed = u.set(Queues::kWindow + at::kGerrorn, u.get32(Queues::kWindow + at::kGerror));
    EXPECT_EQ(resumed.further_queues, std::vector<std::uint32_t>{Queues::kGuest});
    EXPECT_EQ(u.run(Queues::kGuest, {}).size(), 2U);
    EXPECT_EQ(u.get32(at::kCmdqErrorMap), 0U);
  }
}

// [linux 86c8d5cdadd9: a host kernel issues other commands to its VCMDQs too] Kills: HYP_OWN that is not looked at.
TEST(Smmuv3GuestQueue, TheHostsQueueTakesEveryCommandAndLeavesTheVmidAlone) {
  Queues u;
  const auto effects = u.run(Queues::kHost, {command<kTlbi>(kCmdTlbiS12Vmall, {{"VMID", 7}}),
                                             command<kCfgi>(kCmdCfgiSte, {{"StreamID", kNic.value()}}),
                                             command<kTlbi>(kCmdTlbiNsnhAll, {}), kSyncNone});
  ASSERT_EQ(effects.size(), 4U);
  EXPECT_EQ(effects[0].scopes.at(0).domain, DomainTag(7));
  EXPECT_TRUE(u.run(Queues::kHost, {command<kSync>(kCmdSync, {{"CS", 1}})}).empty());
  EXPECT_EQ(u.error(Queues::kHost), 1U) << "no signal even here";
}

// Kills: a queue that works without one of the four switches, a write that does not tell of what it lets go.
TEST(Smmuv3GuestQueue, IsSilentUntilEverySwitchIsOn) {
  const std::uint64_t vintf = at::kVintfs + at::kVintfStride;
  const std::vector<std::pair<std::uint64_t, std::uint64_t>> switches{
      {at::kConfig, 1},
      {vintf + at::kVintfConfig, pack<kVintfConfig>({{"ENABLE", 1}, {"VMID", kVmid}})},
      {at::kVcmdqPage0 + Queues::kGuest * at::kVcmdqStride + at::kVcmdqConfig, 1}};
  for (const auto& [offset, on] : switches) {
    Queues u;
    u.set(offset, on & ~std::uint64_t{1});
    u.put_in(Queues::kGuest, kSyncNone);
    EXPECT_TRUE(u.ring_bell(Queues::kGuest).further_queues.empty());
    EXPECT_FALSE(u.core.further_queues()[Queues::kGuest]->has_command());
    EXPECT_EQ(u.set(offset, on).further_queues, std::vector<std::uint32_t>{Queues::kGuest});
    EXPECT_EQ(u.run(Queues::kGuest, {}).size(), 1U);
  }
  Queues unallocated;
  unallocated.set(Queues::page0(Queues::kGuest) + at::kVcmdqConfig, 0);
  unallocated.set(at::kCmdqAlloc + 4 * Queues::kGuest, 0);
  unallocated.set(Queues::page0(Queues::kGuest) + at::kVcmdqConfig, 1);
  unallocated.put_in(Queues::kGuest, kSyncNone);
  EXPECT_TRUE(unallocated.ring_bell(Queues::kGuest).further_queues.empty());
  unallocated.set(Queues::kWindow + at::kGerrorn, 7);
  EXPECT_EQ(unallocated.get32(Queues::page0(Queues::kGuest) + at::kGerrorn), 0U) << "the owner's window is gone";
}

// Kills: a ring that moves, or changes hands, while it is enabled; an end that does not wait for what is under way.
TEST(Smmuv3GuestQueue, WhatIsInUseCannotBeMovedAndEndsWhenItsCommandHas) {
  Queues u;
  const std::uint64_t vintf = at::kVintfs + at::kVintfStride;
  for (const auto& [offset, value] : {std::pair{Queues::page1(Queues::kGuest) + at::kBase, 0x7000ULL},
                                      {Queues::page0(Queues::kGuest) + at::kCons, 3ULL},
                                      {at::kCmdqAlloc + 4 * Queues::kGuest, 0ULL}}) {
    const std::uint64_t before = u.get32(offset);
    u.set(offset, value);
    EXPECT_EQ(u.get32(offset), before) << std::hex << offset;
  }
  u.set(vintf + at::kVintfConfig, pack<kVintfConfig>({{"ENABLE", 1}, {"VMID", 1}, {"HYP_OWN", 1}}));
  EXPECT_EQ(u.get32(vintf + at::kVintfConfig), pack<kVintfConfig>({{"ENABLE", 1}, {"VMID", kVmid}}));

  u.put_in(Queues::kGuest, kSyncNone);
  u.put_in(Queues::kGuest, kSyncNone);
  u.ring_bell(Queues::kGuest);
  CommandQueue& queue = *u.core.further_queues()[Queues::kGuest];
  ASSERT_TRUE(queue.fetch_command(u.port).run());
  u.set(Queues::page0(Queues::kGuest) + at::kVcmdqConfig, 0);
  EXPECT_EQ(u.get32(Queues::page0(Queues::kGuest) + at::kVcmdqStatus), 1U);
  EXPECT_FALSE(queue.has_command());
  queue.completed();
  EXPECT_EQ(u.get32(Queues::page0(Queues::kGuest) + at::kVcmdqStatus), 0U);
  EXPECT_EQ(u.consumed(Queues::kGuest), 1U);
}

// Does something while a command is on its way.
class BusyPort final : public MemoryPort {
 public:
  explicit BusyPort(Queues& u) : u_(u) {}
  bool begin(MemoryAccess& access) override {
    u_.set(Queues::page0(Queues::kGuest) + at::kVcmdqConfig, 0);
    u_.set(offset, value, bytes);
    u_.set(Queues::page0(Queues::kGuest) + at::kVcmdqConfig, 1);
    return u_.port.begin(access);
  }
  std::uint64_t offset = 0, value = 0;
  unsigned bytes = 4;

 private:
  Queues& u_;
};

// Kills: a command of a ring that its owner has moved, or of an index it has set, taken for one of the new ring's; a
// queue that seems busy for good after that.
TEST(Smmuv3GuestQueue, ACommandOfARingThatIsMovedMeanwhileIsLost) {
  for (const bool moves_ring : {true, false}) {
    Queues u;
    for (int n = 0; n < 2; ++n) u.put_in(Queues::kGuest, kSyncNone);
    u.ring_bell(Queues::kGuest);
    BusyPort port(u);
    port.offset = moves_ring ? Queues::page1(Queues::kGuest) + at::kBase : Queues::page0(Queues::kGuest) + at::kCons;
    port.value = moves_ring ? *u.memory.allocate() | pack<kVcmdqBase>({{"LOG2SIZE", kRingLg2}}) : 1;
    port.bytes = moves_ring ? 8 : 4;
    CommandQueue& queue = *u.core.further_queues()[Queues::kGuest];
    EXPECT_FALSE(queue.fetch_command(port).run()) << moves_ring;
    EXPECT_TRUE(queue.has_command());
    u.set(Queues::page0(Queues::kGuest) + at::kVcmdqConfig, 0);
    EXPECT_EQ((get<kVcmdqStatus, "CMDQ_EN_OK">(u.get32(Queues::page0(Queues::kGuest) + at::kVcmdqStatus))), 0U);
  }
}

// Kills: commands after an error, reserved bits that are kept, a VINTF's window that shows a queue under any number.
TEST(Smmuv3GuestQueue, AnErrorHoldsTheRingAndWindowsShowTheirOwn) {
  Queues u;
  (void)u.run(Queues::kGuest, {command<kCommand>(0xff, {}), kSyncNone});
  EXPECT_FALSE(u.core.further_queues()[Queues::kGuest]->has_command());
  EXPECT_TRUE(u.ring_bell(Queues::kGuest).further_queues.empty());
  u.set(Queues::page0(Queues::kGuest) + at::kGerrorn, 0xffff'ffff);
  EXPECT_EQ(u.get32(Queues::page0(Queues::kGuest) + at::kGerrorn), kVcmdqGerror.mask_of(FieldKind::Value));
  EXPECT_NE(u.get32(Queues::kWindow + at::kProd), 0U);
  EXPECT_EQ(u.get32(Queues::kWindow + at::kVcmdqStride + at::kProd), 0U);
}

// Kills: a producer index beyond the ring that is believed, a base outside memory that reads something.
TEST(Smmuv3GuestQueue, AnIndexBeyondTheRingAndABaseOutsideMemoryFetchNothing) {
  Queues u;
  for (const std::uint64_t beyond : {17ULL, 20ULL, 31ULL}) {
    u.set(Queues::page0(Queues::kGuest) + at::kProd, beyond);
    EXPECT_FALSE(u.core.further_queues()[Queues::kGuest]->has_command()) << beyond;
  }
  u.set(Queues::page0(Queues::kGuest) + at::kVcmdqConfig, 0);
  u.set(Queues::page1(Queues::kGuest) + at::kBase, bits_between(40, 48), 8);
  u.set(Queues::page0(Queues::kGuest) + at::kProd, 1);
  u.set(Queues::page0(Queues::kGuest) + at::kVcmdqConfig, 1);
  EXPECT_FALSE(u.core.further_queues()[Queues::kGuest]->fetch_command(u.port).run());
  EXPECT_EQ(u.error(Queues::kGuest), static_cast<std::uint64_t>(CommandError::Abort));
}

// [linux a9d40285bdef] Kills: a guest that makes itself the host.
TEST(Smmuv3GuestQueue, InAGuestsUnitHypOwnIsWiredToZeroAndRingsAreTold) {
  DriverOptions o = with_queues();
  o.features.further_queues = FurtherQueues::OneGuests;
  Unit unit(o);
  const auto set = [&](std::uint64_t offset, std::uint64_t value, unsigned bytes = 4) {
    return unit.core.mmio_write(kQueueBlock + offset, bytes, value);
  };
  EXPECT_EQ(unit.core.further_queues().size(), 2U);
  set(at::kVintfs, pack<kVintfConfig>({{"ENABLE", 1}, {"HYP_OWN", 1}}));
  EXPECT_EQ(unit.core.mmio_read(kQueueBlock + at::kVintfs, 4), 1U);
  set(at::kVintfs + at::kVintfStride, 1);
  EXPECT_EQ(unit.core.mmio_read(kQueueBlock + at::kVintfs + at::kVintfStride, 4), 0U) << "it has one VINTF";
  EXPECT_FALSE(set(at::kVintfPages + at::kPageBytes + at::kVcmdqStride, 0x7008, 8).placement) << "not allocated";
  set(at::kCmdqAlloc + 4, pack<kCmdqAlloc>({{"ALLOC", 1}, {"LVCMDQ", 1}}));
  const RegisterEffect placed = set(at::kVintfPages + at::kPageBytes + at::kVcmdqStride, 0x7008, 8);
  EXPECT_EQ(placed.placement, (RingPlacement{.ring = 1, .base = Hpa(0x7000), .entries = 256}));
  EXPECT_EQ(set(at::kVcmdqPage1 + at::kVcmdqStride, 0, 8).placement, (RingPlacement{.ring = 1, .base = Hpa(0)}));
}

// Kills: an access that leaves the tables of queues and VINTFs, a hang. Random registers, random rings.
TEST(Smmuv3GuestQueue, AnyAccessIsSurvived) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Queues u;
    Rng rng(seed);
    const std::vector<std::uint64_t> places{0,
                                            at::kVintfs,
                                            at::kVcmdqPage0,
                                            at::kVcmdqPage1,
                                            at::kVintfPages,
                                            Queues::kWindow,
                                            kQueueBlockBytes - 0x100,
                                            kQueueBlockBytes};
    for (int n = 0; n < 400; ++n) {
      const std::uint64_t offset = places[rng.below(places.size())] + rng.below(0x400);
      const unsigned bytes = rng.chance(0.7) ? 4 : 8;
      const std::uint64_t value = rng.chance(0.5) ? rng.below(64) : rng.next();
      const RegisterEffect effect = u.set(offset, value, bytes);
      (void)u.core.mmio_read(kQueueBlock + offset, bytes);
      for (const std::uint32_t queue : effect.further_queues) ASSERT_LT(queue, u.core.further_queues().size());
      CommandQueue& queue = *u.core.further_queues()[rng.below(4)];
      for (int fetches = 0; fetches < 4 && queue.has_command(); ++fetches)
        if (const auto fetched = queue.fetch_command(u.port).run()) (void)queue.apply(*fetched);
    }
  }
}

}  // namespace
}  // namespace iommu::smmuv3
