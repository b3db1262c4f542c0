// SPDX-License-Identifier: Apache-2.0
// What each way of translation costs, in things that can be counted: hypercalls, exits, commands of the physical unit,
// table reads. Every number follows from the mechanism.
#include <gtest/gtest.h>

#include "sim/strategy/strategy_test_support.hpp"
#include "sim/xen/grant_abi.hpp"

namespace iommu::strategy::test {
namespace {

using guest::DmaMapping;
using guest::DmaStatus;

constexpr Gpa kBuffer{0x123000};

// What happened during some operations.
struct Events {
  std::uint64_t hypercalls = 0;
  std::uint64_t exits = 0;      // all traps of the virtual unit
  std::uint64_t doorbells = 0;  // of them
  std::uint64_t device_model = 0;
  std::uint64_t commands = 0;  // of the physical unit
  std::uint64_t fences = 0;    // on it
  friend bool operator==(const Events&, const Events&) = default;
  friend void PrintTo(const Events& e, std::ostream* out) {
    *out << "hypercalls " << e.hypercalls << ", exits " << e.exits << " (doorbells " << e.doorbells << ", device model "
         << e.device_model << "), commands " << e.commands << ", fences " << e.fences;
  }
};

class Counted {
 public:
  explicit Counted(Machine& machine) : machine_(machine), charged_(machine.cpu.charged()) {
    machine.hypercall.reset_counters();
    machine.strategy().reset_counters();
    machine.unit.applied.clear();
    machine.unit.commands = 0;
    machine.unit.fences = 0;
  }
  // What was counted must also have been charged.
  [[nodiscard]] Events events() const {
    const StrategyCounters counters = machine_.strategy().counters();
    const xen::TrapCounters traps = counters.traps;
    const Events e{.hypercalls = machine_.hypercall.counters().total() + counters.other_hypercalls(),
                   .exits = traps.total(),
                   .doorbells = traps.doorbell,
                   .device_model = traps.device_model,
                   .commands = machine_.unit.commands,
                   .fences = machine_.unit.fences};
    EXPECT_EQ(charged(CostId::Hypercall), e.hypercalls);
    EXPECT_EQ(charged(CostId::VmExitMmio), e.exits - traps.table_store);
    EXPECT_EQ(charged(CostId::VmExitStore), traps.table_store);
    EXPECT_EQ(charged(CostId::StoreEmulate), traps.table_store);
    EXPECT_EQ(charged(CostId::DeviceModelExit), e.device_model);
    return e;
  }
  [[nodiscard]] std::uint64_t charged(CostId cost) const { return machine_.cpu.charged()[cost] - charged_[cost]; }

 private:
  Machine& machine_;
  CostCounts charged_;
};

class Costs : public OnPairs {
 protected:
  // Hypercalls that it takes to hand over so many structures, as many as a page holds each time.
  static std::uint64_t calls_for(std::uint64_t pages, std::size_t structure) {
    const std::uint64_t in_a_page = 4096 / structure;
    return (pages + in_a_page - 1) / in_a_page;
  }
  // By strategy: nothing, by hypercall, nested, emulated in caching mode, emulated with write-protected tables, virtio.
  // Where a unit in caching mode is told of something, a virtio-iommu is asked for it, unless said otherwise.
  static Events expected(const Events& pv, const Events& nested, const Events& told, const Events& trapped,
                         const std::optional<Events>& virtio = std::nullopt) {
    if (is(kPvIommu) || is(kGrants)) return pv;
    if (is(kNested) || binds_tables()) return nested;
    if (is(kEmulatedViommu)) return is_write_protected() ? trapped : told;
    if (is(kVirtioIommu)) return virtio.value_or(told);
    return {};
  }
};
ON_STRATEGIES(Costs, kAllWays);
class PvCosts : public Costs {};
ON_STRATEGIES(PvCosts, (std::array{Way(kPvIommu)}));
class NestedCosts : public Costs {};
ON_STRATEGIES(NestedCosts, (std::array{Way(kNested)}));
class EmulatedCosts : public Costs {};
ON_STRATEGIES(EmulatedCosts, (std::array{kShadowTold}));
class TrappedCosts : public Costs {};
ON_STRATEGIES(TrappedCosts, (std::array{kShadowTrapped}));
class VirtioCosts : public Costs {};
ON_STRATEGIES(VirtioCosts, (std::array{Way(kVirtioIommu)}));
class DefaultContextCosts : public Costs {};  // of what walks context 0's table
ON_STRATEGIES(DefaultContextCosts, (std::array{Way(kPassthrough), Way(kNested)}));

// Kills: a hypercall per page; an exit to map under nesting; a map that does not trap under emulation; a flush for
// entries that nothing can have cached.
TEST_P(Costs, OneMapCallCosts) {
  for (const Bytes length : {1_B, 4_KiB, 64_KiB, is(kSwiotlb) ? 256_KiB : 3_MiB}) {
    Machine m(family(), strategy(), plain());
    Machine::Device& nic = m.attach(kNic);
    const std::uint64_t pages = (length.value() + 4095) / 4096;
    const std::uint64_t calls = is(kGrants) ? calls_for(pages, sizeof(xen::abi::MapGrantRef)) : 1;
    const Counted counted(m);
    ASSERT_EQ(m.map(nic, kBuffer, length).status, DmaStatus::Ok);
    // A table's first entry is written before the table is linked: the link takes its place.
    EXPECT_EQ(counted.events(), expected({.hypercalls = calls}, {}, {.exits = 1, .doorbells = 1}, {.exits = pages}))
        << length.value();
  }
}

// Kills: a flush per page; a fence that nobody waits for; an unmap that returns without one; a flush per trapped store.
TEST_P(Costs, OneStrictUnmapCallCosts) {
  for (const Bytes length : {1_B, 4_KiB, 64_KiB, is(kSwiotlb) ? 256_KiB : 3_MiB}) {
    Machine m(family(), strategy(), plain());
    Machine::Device& nic = m.attach(kNic);
    if (is_write_protected() && length == 3_MiB) continue;  // tables go as well: see TrappedCosts
    if (is_write_protected()) m.map(nic, kBuffer);          // a table that empties is flushed at once
    const std::uint64_t stores = (length.value() + kPageSize.value() - 1) >> kPageLg2;
    const DmaMapping mapped = m.map(nic, kBuffer, length);
    // Grants: each frame's entry goes by itself.
    const std::uint64_t pages = is(kGrants) ? (length.value() + 4095) / 4096 : 1;
    const std::uint64_t calls = is(kGrants) ? calls_for(pages, sizeof(xen::abi::UnmapGrantRef)) : 1;
    const Counted counted(m);
    ASSERT_EQ(m.unmap(nic, mapped.address, length), DmaStatus::Ok);
    EXPECT_EQ(counted.events(), expected({.hypercalls = calls, .commands = pages, .fences = pages},
                                         {.exits = 1, .doorbells = 1, .commands = 1, .fences = 1},
                                         {.exits = 1, .doorbells = 1, .commands = 1, .fences = 1},
                                         {.exits = stores + 1, .doorbells = 1, .commands = 1, .fences = 1}))
        << length.value();
  }
}

// A PV call takes one contiguous piece; tables take any number of them with one sync. Kills: a sync per piece.
TEST_P(Costs, AScatterlistCostsPvACallPerPiece) {
  Machine m(family(), strategy());
  Machine::Device& nic = m.attach(kNic);
  std::vector<guest::ScatterEntry> list;
  for (std::uint64_t i = 0; i < 7; ++i) list.push_back({Gpa(0x400000 - i * 0x2000), 4_KiB});
  const Counted mapping(m);
  const DmaMapping mapped = nic.api->map_scatterlist(m.cpu, list, kReadWrite).run();
  if (is(kGrants)) {
    EXPECT_EQ(mapped.status, DmaStatus::Rejected) << "the frames do not follow one another";
    EXPECT_EQ(mapping.events(), (Events{.hypercalls = 2, .commands = 7, .fences = 7})) << "mapped and unmapped again";
    return;
  }
  ASSERT_EQ(mapped.status, DmaStatus::Ok);
  EXPECT_EQ(mapping.events(), expected({.hypercalls = 7}, {}, {.exits = 1, .doorbells = 1}, {.exits = 7}));
  const Counted unmapping(m);
  ASSERT_EQ(m.unmap(nic, mapped.address, 28_KiB), DmaStatus::Ok);
  EXPECT_EQ(unmapping.events().hypercalls, is(kPvIommu) ? 1U : 0U);
  EXPECT_LE(unmapping.events().doorbells, 1U);
}

// Kills: traps that go to Xen although a device model was asked for, or to both where neither traps.
TEST_P(Costs, ADeviceModelSeesEveryTrap) {
  Machine m(family(), strategy(), {.strategy = {.trap_target = xen::TrapTarget::DeviceModel}});
  Machine::Device& nic = m.attach(kNic);
  const Counted counted(m);
  const DmaMapping mapped = m.map(nic, kBuffer);
  m.unmap(nic, mapped.address);
  EXPECT_EQ(counted.events(), expected({.hypercalls = 2, .commands = 1, .fences = 1},
                                       {.exits = 1, .doorbells = 1, .device_model = 1, .commands = 1, .fences = 1},
                                       {.exits = 2, .doorbells = 2, .device_model = 2, .commands = 1, .fences = 1},
                                       {.exits = 3, .doorbells = 1, .device_model = 3, .commands = 1, .fences = 1}));
}

// Kills: an unmap that flushes although it is deferred; a flush per range.
TEST_P(Costs, LazyUnmapsShareOneFlush) {
  constexpr std::uint64_t kUnmaps = 20;
  Machine m(family(), strategy(), lazy());
  Machine::Device& nic = m.attach(kNic);
  if (is_write_protected()) m.map(nic, kBuffer);  // a table that empties is flushed at once
  std::vector<Iova> addresses;
  for (std::uint64_t i = 0; i < kUnmaps; ++i) addresses.push_back(m.map(nic, kBuffer).address);
  const Counted unmapping(m);
  for (const Iova address : addresses) m.unmap(nic, address);
  if (is(kGrants)) {
    EXPECT_FALSE(nic.api->is_lazy());
    EXPECT_EQ(unmapping.events(), (Events{.hypercalls = kUnmaps, .commands = 1, .fences = 1}))
        << "the last of the buffers takes the frame's entry with it";
    return;
  }
  EXPECT_EQ(unmapping.events(), expected({.hypercalls = kUnmaps}, {}, {}, {.exits = kUnmaps}));
  const Counted flushing(m);
  nic.api->flush(m.cpu).run();
  EXPECT_EQ(flushing.events(), expected({.hypercalls = 1, .commands = 1, .fences = 1},
                                        {.exits = 1, .doorbells = 1, .commands = 1, .fences = 1},
                                        {.exits = 1, .doorbells = 1, .commands = 1, .fences = 1},
                                        {.exits = 1, .doorbells = 1, .commands = 1, .fences = 1},
                                        Events{.exits = 1, .doorbells = 1, .commands = kUnmaps, .fences = kUnmaps}))
      << "virtio: one kick, but each UNMAP is over before it is answered";
  if (is(kPassthrough) || is(kSwiotlb)) EXPECT_FALSE(nic.api->is_lazy());
}

// Without the option every unmap flushes, as in the RFC. Kills: laziness that is only pretended.
TEST_P(PvCosts, WithoutDeferredFlushLazyStaysStrict) {
  Machine m(family(), strategy(), {.unmapping = guest::Unmapping::Lazy});
  Machine::Device& nic = m.attach(kNic);
  EXPECT_FALSE(nic.api->is_lazy());
  const DmaMapping mapped = m.map(nic, kBuffer);
  const Counted counted(m);
  m.unmap(nic, mapped.address);
  EXPECT_EQ(counted.events(), (Events{.hypercalls = 1, .commands = 1, .fences = 1}));
}

// What a flush means for a shadow: everything that is mapped is compared, however little was unmapped. Strict looks at
// one range. Kills: a resync that looks at less than all, or a range sync that looks at all.
TEST_P(EmulatedCosts, AFlushComparesEverything) {
  constexpr std::uint64_t kLive = 100;
  const auto compared_by_one_unmap = [&](const MachineOptions& options) {
    Machine m(family(), strategy(), options);
    Machine::Device& nic = m.attach(kNic);
    for (std::uint64_t i = 0; i < kLive; ++i) m.map(nic, kBuffer);
    const DmaMapping mapped = m.map(nic, kBuffer);
    const Counted counted(m);
    m.unmap(nic, mapped.address);
    nic.api->flush(m.cpu).run();
    const StrategyCounters counters = m.strategy().counters();
    EXPECT_EQ(counters.shadow_changes, 1U);
    EXPECT_EQ(counted.charged(CostId::ShadowEntry), counters.shadow_entries);
    return counters;
  };
  const StrategyCounters lazily = compared_by_one_unmap(lazy());
  EXPECT_EQ(lazily.shadow_resyncs, 1U);
  EXPECT_EQ(lazily.shadow_entries, 2 * kLive + 1) << "the guest's entries and the shadow's, which has one more";
  const StrategyCounters strictly = compared_by_one_unmap({});
  EXPECT_EQ(strictly.shadow_entries, 1U + 2 * kLive) << "one for the unmap, the rest for the flush at the end";
}

// What a flush means where every store has trapped: nothing is compared, whatever is mapped. Kills: a shadow that reads
// the guest's tables again at each invalidation; a store that reads more than its entry; a page protected or let go
// without its price.
TEST_P(TrappedCosts, AStoreSyncsItsEntryAndAFlushComparesNothing) {
  Machine m(family(), strategy(), lazy());
  Machine::Device& nic = m.attach(kNic);
  for (int i = 0; i < 100; ++i) m.map(nic, kBuffer);
  const DmaMapping mapped = m.map(nic, kBuffer);
  const Counted unmapping(m);
  m.unmap(nic, mapped.address);
  EXPECT_EQ(m.strategy().counters().shadow_entries, 1U) << "the shadow's; the guest's is absent";
  EXPECT_EQ(m.strategy().counters().shadow_changes, 1U);
  EXPECT_EQ(unmapping.charged(CostId::GuestPageAccess), 0U) << "the store tells the entry";
  EXPECT_EQ(unmapping.charged(CostId::P2mProtect), 0U);
  const Counted flushing(m);
  nic.api->flush(m.cpu).run();
  EXPECT_EQ(m.strategy().counters().shadow_entries, 0U);
  EXPECT_EQ(m.strategy().counters().shadow_resyncs, 0U);
  const Counted elsewhere(m);
  ASSERT_EQ(m.map_at(nic, 0x1234000000, kBuffer, 4_KiB), DmaStatus::Ok);
  EXPECT_EQ(elsewhere.events(), Events{.exits = 1}) << "one store links two tables";
  EXPECT_EQ(elsewhere.charged(CostId::P2mProtect), 2U);
  EXPECT_EQ(elsewhere.charged(CostId::GuestPageAccess), 3U) << "down to the pages, and back to the table above them";
}

// A table that a store unlinks is not protected any more, and one flush, by Xen, covers all that went with it. Kills:
// protection that stays; a flush per page of the table; references that wait for a flush that has happened.
TEST_P(TrappedCosts, UnlinkingATableIsOneStore) {
  Machine m(family(), strategy());
  Machine::Device& nic = m.attach(kNic);
  m.map(nic, kBuffer);
  const std::uint64_t references = m.xen.references().total();
  constexpr std::uint64_t kAt = 0x40000000;
  for (std::uint64_t i = 0; i < 512; ++i)  // in the wrong order, so that no large page takes their place
    ASSERT_EQ(m.map_at(nic, kAt + i * 0x1000, Gpa(0x400000 - i * 0x1000), 4_KiB), DmaStatus::Ok);
  const Counted counted(m);
  ASSERT_EQ(m.unmap_at(nic, kAt, 2_MiB), DmaStatus::Ok);
  EXPECT_EQ(counted.events(), (Events{.exits = 2, .doorbells = 1, .commands = 1, .fences = 1}));
  EXPECT_EQ(counted.charged(CostId::P2mProtect), 1U);
  EXPECT_EQ(m.strategy().counters().shadow_changes, 512U);
  EXPECT_EQ(m.xen.references().total(), references);
}

// Cold: nothing cached. A nested walk reads one stage-1 entry per level, and for each of these addresses and for the
// result all levels of stage 2. Kills: levels walked twice; table reads booked under another kind; a context of five
// reads.
TEST_P(Costs, AColdMissReads) {
  Machine m(family(), strategy());
  Machine::Device& nic = m.attach(kNic);
  const DmaMapping mapped = m.map(nic, kBuffer);
  HostTableMemory scratch(m.host, m.xen.frames());
  const auto driver = family().make_driver(m.host_driver());
  const std::uint64_t stage2 = driver->create_table(TableKind::Stage2, scratch)->root().top_level + 1U;
  struct Reads {
    std::uint64_t context = 0, stage1 = 0, stage2 = 0;
  };
  const auto reads = [&] {
    return Reads{m.unit.reads(AccessKind::DeviceTable), m.unit.reads(AccessKind::Stage1Entry),
                 m.unit.reads(AccessKind::Stage2Entry)};
  };
  // The context alone first: where the guest owns process tables, finding it takes a walk of stage 2 as well.
  const Reads start = reads();
  ASSERT_TRUE(std::holds_alternative<Context>(m.unit.find_context(kNic)));
  const Reads found = reads();
  EXPECT_LE(found.context - start.context, 4U);
  EXPECT_EQ(found.stage1, start.stage1);
  EXPECT_LE(found.stage2 - start.stage2, is(kNested) || binds_tables() ? stage2 : 0U);
  // Not through m.dma(): walk caches would spare what this test counts.
  EXPECT_EQ(m.peek(kNic, mapped.address), m.target(mapped.address, kBuffer));
  const Reads end = reads();
  const std::uint64_t stage1_reads = end.stage1 - found.stage1;
  const std::uint64_t stage2_reads = end.stage2 - found.stage2 - (found.stage2 - start.stage2);
  if (!is(kNested) && !binds_tables()) {
    EXPECT_EQ(stage1_reads, 0U);
    EXPECT_EQ(stage2_reads, stage2);
    EXPECT_LE(stage2_reads, 4U);
    return;
  }
  const std::uint64_t stage1 = driver->create_table(TableKind::Stage1, scratch)->root().top_level + 1U;
  EXPECT_EQ(stage1_reads, stage1);
  EXPECT_EQ(stage2_reads, (stage1 + 1) * stage2);
  EXPECT_LE(stage1_reads + stage2_reads, 24U);
}

// Larger pages of the domain's memory shorten every stage-2 walk. Kills: context 0 in single pages whatever the
// domain's.
TEST_P(DefaultContextCosts, LargePagesOfTheDomainShortenEveryWalk) {
  const auto reads = [&](unsigned page_lg2) {
    Machine m(family(), strategy(), {.backing = xen::Backing::Contiguous, .page_lg2 = page_lg2});
    Machine::Device& nic = m.attach(kNic);
    const DmaMapping mapped = m.map(nic, kBuffer);
    const std::uint64_t before = m.unit.reads(AccessKind::Stage2Entry);
    EXPECT_EQ(m.peek(kNic, mapped.address), m.host_address(kBuffer));
    return m.unit.reads(AccessKind::Stage2Entry) - before;
  };
  const std::uint64_t small = reads(12);
  const std::uint64_t large = reads(21);
  EXPECT_EQ(large * 4, small * 3) << "three levels instead of four in every walk";
}

// Kills: guest tables that nobody counts; tables of Xen counted as the guest's.
TEST_P(Costs, GuestTableMemoryIsTheGuestsOnly) {
  Machine m(family(), strategy());
  Machine::Device& nic = m.attach(kNic);
  const std::uint64_t before = m.strategy().guest_table_bytes();
  const std::uint64_t kernel = m.pages.used();
  const bool maps_there = m.map_at(nic, 0x1234000000, kBuffer, 4_KiB) == DmaStatus::Ok;
  ASSERT_EQ(maps_there, !nic.api->chooses_addresses());
  const std::uint64_t grown = m.strategy().guest_table_bytes() - before;
  EXPECT_EQ(grown >> kPageLg2, m.pages.used() - kernel);
  if (is(kNested) || is(kEmulatedViommu) || binds_tables())
    EXPECT_EQ(grown, (12_KiB).value());
  else
    EXPECT_EQ(grown + before, 0U);
  if (is(kPassthrough) || !maps_there) return;
  ASSERT_EQ(m.unmap_at(nic, 0x1234000000, 4_KiB), DmaStatus::Ok);
  EXPECT_EQ(m.pages.used() - kernel, grown >> kPageLg2) << "Linux keeps tables that one call does not cover";
}

// Kills: counters that a reset forgets.
TEST_P(Costs, ResetCountersStartsFromZero) {
  Machine m(family(), strategy(), {.strategy = {.trap_target = xen::TrapTarget::DeviceModel}});
  Machine::Device& nic = m.attach(kNic);
  m.unmap(nic, m.map(nic, kBuffer).address);
  m.strategy().reset_counters();
  const StrategyCounters counters = m.strategy().counters();
  EXPECT_EQ(counters.traps.total() + counters.traps.device_model + counters.commands_emulated, 0U);
  EXPECT_EQ(counters.shadow_entries + counters.shadow_changes + counters.shadow_resyncs + counters.refused_scans, 0U);
  EXPECT_EQ(counters.guest.commands(), 0U);
}

// With the hint, an unmap that empties no table keeps walk caches; one that does, does not. Kills: the hint always, or
// never; forwarding without it.
TEST_P(NestedCosts, TheLeafHintReachesHardware) {
  for (const bool hint : {false, true}) {
    Machine m(family(), strategy(), {.strategy = {.leaf_hint = hint}});
    Machine::Device& nic = m.attach(kNic);
    const auto leaf_only = [&](std::uint64_t at, Bytes length) {
      EXPECT_EQ(m.map_at(nic, at, kBuffer, length), DmaStatus::Ok);
      const Counted counted(m);
      EXPECT_EQ(m.unmap_at(nic, at, length), DmaStatus::Ok);
      EXPECT_EQ(m.unit.applied.size(), 1U);
      return !m.unit.applied.empty() && m.unit.applied.front().leaf_only;
    };
    EXPECT_EQ(leaf_only(0x40000000, 4_KiB), hint);
    EXPECT_FALSE(leaf_only(0x40000000, 2_MiB)) << "frees the table";
  }
}

// What one map and one unmap are made of. Kills: a kick per request; requests that nobody counts or charges; a device
// model that reaches tables without a call.
TEST_P(VirtioCosts, AMapIsOneRequestAPieceAndOneKick) {
  for (const xen::TrapTarget target : {xen::TrapTarget::Xen, xen::TrapTarget::DeviceModel}) {
    Machine m(family(), strategy(), {.strategy = {.trap_target = target}});
    Machine::Device& nic = m.attach(kNic);
    std::vector<guest::ScatterEntry> list;
    for (std::uint64_t i = 0; i < 7; ++i) list.push_back({Gpa(0x400000 - i * 0x2000), 4_KiB});
    const Counted mapping(m);
    const DmaMapping mapped = nic.api->map_scatterlist(m.cpu, list, kReadWrite).run();
    EXPECT_EQ(mapping.events().doorbells, 1U);
    EXPECT_EQ(mapping.charged(CostId::CommandWrite), 7U);
    EXPECT_EQ(mapping.charged(CostId::VirtioRequest), 7U);
    EXPECT_EQ(mapping.charged(CostId::MappingTree), 14U) << "the driver's tree and the device's";
    EXPECT_EQ(mapping.charged(CostId::FencePoll), 1U);
    EXPECT_EQ(mapping.charged(CostId::BackendCall), target == xen::TrapTarget::DeviceModel ? 7U : 0U);
    EXPECT_EQ(mapping.charged(CostId::InterruptInject), 0U) << "the driver polls";
    EXPECT_EQ(m.strategy().counters().virtio->of(virtio::RequestType::Map), 7U);
    const Counted unmapping(m);
    m.unmap(nic, mapped.address, 28_KiB);
    EXPECT_EQ(m.strategy().counters().virtio->of(virtio::RequestType::Unmap), 1U) << "one range of several mappings";
    EXPECT_EQ(unmapping.charged(CostId::BackendCall), target == xen::TrapTarget::DeviceModel ? 1U : 0U);
    EXPECT_EQ(m.strategy().counters().virtio->refused, 0U);
  }
}

// The ring holds 256 requests, each with a table of its own. Kills: a driver that loses requests when the ring is full,
// or kicks before it must.
TEST_P(VirtioCosts, AFullRingIsKickedEarly) {
  Machine m(family(), strategy());
  Machine::Device& nic = m.attach(kNic);
  for (const std::uint64_t pieces : {255U, 256U, 257U, 513U}) {
    std::vector<guest::ScatterEntry> list;
    for (std::uint64_t i = 0; i < pieces; ++i) list.push_back({Gpa(0x600000 - i * 0x2000), 4_KiB});
    const Counted mapping(m);
    const DmaMapping mapped = nic.api->map_scatterlist(m.cpu, list, kReadWrite).run();
    ASSERT_EQ(mapped.status, DmaStatus::Ok);
    EXPECT_EQ(mapping.events().doorbells, (pieces + 255) / 256) << pieces;
    for (std::uint64_t i = 0; i < pieces; ++i)
      ASSERT_EQ(m.dma(kNic, mapped.address + kPageSize * i), m.host_address(list[i].address));
    ASSERT_EQ(m.unmap(nic, mapped.address, kPageSize * pieces), DmaStatus::Ok);
  }
}

// Kills: a kick without a request.
TEST_P(VirtioCosts, ASyncWithNothingQueuedDoesNotTrap) {
  Machine m(family(), strategy());
  Machine::Device& nic = m.attach(kNic);
  const Counted counted(m);
  nic.space->flush_all(m.cpu).run();
  EXPECT_EQ(counted.events(), Events{});
}

}  // namespace
}  // namespace iommu::strategy::test
