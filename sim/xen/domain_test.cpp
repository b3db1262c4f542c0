// SPDX-License-Identifier: Apache-2.0
// Domains and their memory: the map from guest to machine frames, what context 0 shows of it, and creation that fails.
#include "sim/xen/domain.hpp"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "sim/xen/xen_test_support.hpp"

namespace iommu::xen {
namespace {

// The map on its own ------------------------------------------------------------------------------------------------

TEST(XenP2m, LookupKnowsHowFarItIsContiguous) {
  P2m p2m;
  ASSERT_TRUE(p2m.add({Gfn(10), 5, Mfn(100), FrameType::Ram}));
  const auto entry = p2m.lookup(Gfn(12));
  ASSERT_TRUE(entry);
  EXPECT_EQ(entry->machine, Mfn(102));
  EXPECT_EQ(entry->contiguous, 3U);
  EXPECT_FALSE(p2m.lookup(Gfn(9)) || p2m.lookup(Gfn(15)));
  EXPECT_EQ(p2m.absent(Gfn(3)), 7U);
  EXPECT_EQ(p2m.absent(Gfn(12)), 0U);
}
// Kills: entries that are replaced silently, and sums that wrap.
TEST(XenP2m, OverlapsEmptyRangesAndWrapsAreRefused) {
  P2m p2m;
  ASSERT_TRUE(p2m.add({Gfn(10), 5, Mfn(100), FrameType::Ram}));
  EXPECT_FALSE(p2m.add({Gfn(14), 1, Mfn(1), FrameType::Ram}));
  EXPECT_FALSE(p2m.add({Gfn(8), 3, Mfn(1), FrameType::Ram}));
  EXPECT_FALSE(p2m.add({Gfn(0), 100, Mfn(1), FrameType::Ram}));
  EXPECT_FALSE(p2m.add({Gfn(20), 0, Mfn(1), FrameType::Ram}));
  EXPECT_FALSE(p2m.add({Gfn(~0ULL - 1), 5, Mfn(1), FrameType::Ram}));
  EXPECT_EQ(p2m.extents().size(), 1U);
}
TEST(XenP2m, NeighboursOfOneKindMergeAndOthersDoNot) {
  P2m p2m;
  ASSERT_TRUE(p2m.add({Gfn(10), 5, Mfn(100), FrameType::Ram}));
  ASSERT_TRUE(p2m.add({Gfn(15), 5, Mfn(105), FrameType::Ram}));
  ASSERT_TRUE(p2m.add({Gfn(20), 5, Mfn(110), FrameType::Mmio}));
  ASSERT_TRUE(p2m.add({Gfn(25), 5, Mfn(300), FrameType::Mmio}));
  EXPECT_EQ(p2m.extents().size(), 3U);
  EXPECT_EQ(p2m.lookup(Gfn(11))->contiguous, 9U);
}
// Only the guest's own memory is memory to whoever reads arguments or tables. Kills: hypercall arguments in foreign
// pages or registers of devices.
TEST(XenP2m, ForeignAndMmioFramesAreNoMemoryOfTheGuest) {
  P2m p2m;
  ASSERT_TRUE(p2m.add({Gfn(1), 1, Mfn(101), FrameType::Ram}));
  ASSERT_TRUE(p2m.add({Gfn(2), 1, Mfn(102), FrameType::Foreign}));
  ASSERT_TRUE(p2m.add({Gfn(3), 1, Mfn(103), FrameType::Mmio}));
  EXPECT_EQ(p2m.memory_frame(Gfn(1)), Mfn(101));
  EXPECT_EQ(p2m.memory_frame(Gfn(2)), std::nullopt);
  EXPECT_EQ(p2m.memory_frame(Gfn(3)), std::nullopt);
  EXPECT_EQ(p2m.memory_frame(Gfn(4)), std::nullopt);
}
// Against a map of single frames. Kills: a removal that takes an edge too many, or forgets the machine frame's offset.
TEST(XenP2m, AgreesWithAMapOfSingleFrames) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Rng rng(seed);
    P2m p2m;
    std::map<std::uint64_t, std::uint64_t> oracle;
    for (int step = 0; step < 200; ++step) {
      const std::uint64_t first = rng.below(64);
      const std::uint64_t pages = rng.below(16);
      if (rng.chance(0.4)) {
        p2m.remove(Gfn(first), pages);
        for (std::uint64_t i = 0; i < pages; ++i) oracle.erase(first + i);
      } else {
        const std::uint64_t machine = rng.below(1000);
        bool fits = pages != 0;
        for (std::uint64_t i = 0; i < pages; ++i) fits &= !oracle.contains(first + i);
        ASSERT_EQ(p2m.add({Gfn(first), pages, Mfn(machine), FrameType::Ram}), fits);
        for (std::uint64_t i = 0; fits && i < pages; ++i) oracle[first + i] = machine + i;
      }
      for (std::uint64_t gfn = 0; gfn < 90; ++gfn) {
        const auto entry = p2m.lookup(Gfn(gfn));
        const auto expected = oracle.find(gfn);
        ASSERT_EQ(entry.has_value(), expected != oracle.end()) << gfn;
        if (!entry) continue;
        ASSERT_EQ(entry->machine, Mfn(expected->second));
        for (std::uint64_t i = 0; i < entry->contiguous; ++i) ASSERT_EQ(oracle.at(gfn + i), expected->second + i);
      }
    }
  }
}

// Domains -----------------------------------------------------------------------------------------------------------

class XenDomain : public XenFamilies {};
XEN_ON_ALL_FAMILIES(XenDomain);

// Kills: memory that two domains have.
TEST_P(XenDomain, NoFrameBelongsToTwoDomains) {
  Machine m(family());
  std::set<std::uint64_t> seen;
  for (const auto& domain : m.xen.domains()) {
    std::uint64_t pages = 0;
    for (const P2mExtent& extent : domain->p2m.extents()) {
      pages += extent.pages;
      for (std::uint64_t i = 0; i < extent.pages; ++i) ASSERT_TRUE(seen.insert((extent.machine + i).value()).second);
    }
    EXPECT_EQ(pages, domain->setting.memory.value() >> kPageLg2);
  }
}
// Kills: a context 0 that shows another domain's frames, or frames in the wrong order.
TEST_P(XenDomain, ContextZeroIsTheDomainsMemoryAndNothingElse) {
  for (const Backing backing : {Backing::Contiguous, Backing::Fragmented}) {
    for (const unsigned page_lg2 : {12U, 21U}) {
      Machine m(family());
      Domain* domain =
          m.xen.create_domain({.name = "fresh", .memory = 4_MiB + 20_KiB, .backing = backing, .page_lg2 = page_lg2});
      ASSERT_NE(domain, nullptr);
      constexpr RequesterId kCard = RequesterId::bdf(9, 0, 0);
      m.assign(*domain, {.requester = kCard});
      const std::uint64_t pages = domain->setting.memory.value() >> kPageLg2;
      for (std::uint64_t i = 0; i < pages; ++i) ASSERT_EQ(m.reach(kCard, Dfn(i)), m.frame(*domain, Gfn(i)));
      EXPECT_EQ(m.reach(kCard, Dfn(pages)), std::nullopt);
      const auto leaf = domain->default_context->table->lookup(0);
      ASSERT_TRUE(leaf);
      EXPECT_LE(leaf->page_lg2, page_lg2);
      if (backing == Backing::Contiguous && page_lg2 == 21) EXPECT_EQ(leaf->page_lg2, 21U);
    }
  }
}
TEST_P(XenDomain, FragmentedMemoryIsScatteredAndTheSameForTheSameSeed) {
  std::vector<std::uint64_t> runs[2];
  for (auto& run : runs) {
    Machine m(family());
    Domain* domain = m.xen.create_domain({.name = "fresh", .memory = 2_MiB, .backing = Backing::Fragmented});
    ASSERT_NE(domain, nullptr);
    for (std::uint64_t i = 0; i < 512; ++i) run.push_back(m.frame(*domain, Gfn(i)).value());
    EXPECT_GT(domain->p2m.extents().size(), 400U);
  }
  EXPECT_EQ(runs[0], runs[1]);
}
// A blocked context 0 (behaviour 15) still shows reserved regions.
TEST_P(XenDomain, ABlockedContextZeroShowsReservedRegionsOnly) {
  Machine m(family(), {.default_context = DefaultContext::Blocked});
  constexpr RequesterId kCard = RequesterId::bdf(9, 0, 0);
  m.assign(m.guest(), {.requester = kCard, .reserved = {{Dfn(0x40), 2}}});
  EXPECT_EQ(m.reach(kCard, Dfn(0x40)), Mfn(0x40));
  EXPECT_EQ(m.reach(kCard, Dfn(0x42)), std::nullopt);
  EXPECT_EQ(m.reach(kCard, Dfn(0)), std::nullopt);
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(7), Gfn(70), 1).status, Errno::Ok);
  EXPECT_EQ(m.reach(kNic, Dfn(7)), m.frame(m.guest(), Gfn(70)));
}
// Kills: memory, table pages or tags that a domain keeps that never came to be.
TEST_P(XenDomain, ADomainThatDoesNotFitLeavesNothingBehind) {
  Machine m(family());
  const std::uint64_t used = m.frames->used();
  const std::size_t domains = m.xen.domains().size();
  EXPECT_EQ(m.xen.create_domain({.name = "vast", .memory = 1024_GiB}), nullptr);
  EXPECT_EQ(m.frames->used(), used);
  // Memory for its pages, but not for the table that maps them.
  std::uint64_t left = 0;
  while (m.frames->allocate(18)) {
  }
  std::vector<Mfn> hoard;
  while (const auto frame = m.frames->allocate()) hoard.push_back(*frame);
  for (; left < 1025; ++left) ASSERT_TRUE(m.frames->release(hoard[hoard.size() - 1 - left]));
  const std::uint64_t full = m.frames->used();
  EXPECT_EQ(m.xen.create_domain({.name = "tight", .memory = 4_MiB}), nullptr);
  EXPECT_EQ(m.frames->used(), full);
  EXPECT_EQ(m.xen.domains().size(), domains);
  const auto tag = m.xen.unit(0).allocate_tag();
  ASSERT_TRUE(tag);
  Machine fresh(family());
  EXPECT_EQ(fresh.xen.unit(0).allocate_tag(), tag) << "a tag was lost";
}
TEST_P(XenDomain, WithoutTagsThereIsNoDomain) {
  Machine m(family());
  while (m.xen.unit(0).allocate_tag()) {
  }
  const std::uint64_t used = m.frames->used();
  EXPECT_EQ(m.xen.create_domain({.name = "untagged", .memory = 1_MiB}), nullptr);
  EXPECT_EQ(m.frames->used(), used);
}
TEST_P(XenDomain, DomainsAreFoundByTheirNumber) {
  Machine m(family());
  for (const auto& domain : m.xen.domains()) EXPECT_EQ(m.xen.find_domain(domain->id), domain.get());
  EXPECT_EQ(m.xen.find_domain(DomainId(0x7ff0)), nullptr);
}
// A machine without units has domains, but nothing that concerns devices.
TEST_P(XenDomain, WithoutUnitsThereAreDomainsButNoDevices) {
  HostMemory host{1_GiB};
  FrameAllocator frames{Mfn(0x100), 0x10000};
  Hypervisor xen(host, frames, {});
  ImmediateCpu cpu;
  EXPECT_EQ(xen.bring_up(cpu).run(), Errno::Ok);
  Domain* domain = xen.create_domain({.name = "plain", .memory = 1_MiB});
  ASSERT_NE(domain, nullptr);
  EXPECT_EQ(xen.assign_device(cpu, *domain, {.requester = kNic}).run(), Errno::NoDevice);
  IommuOp op(xen, DeferredFlush::Unavailable);
  for (std::uint32_t subop = 0; subop < abi::kRfcSubops; ++subop)
    EXPECT_EQ(op.call(cpu, *domain, subop, Gpa(0)).run(), static_cast<std::int64_t>(Errno::NoDevice));
  EXPECT_EQ(xen.table_bytes(), 0U);
}
// What a report says about table memory is what was taken from the heap and the arenas.
TEST_P(XenDomain, TableMemoryIsCountedToThePage) {
  Machine m(family());
  const std::uint64_t before = m.xen.table_bytes();
  const std::uint16_t context = m.alloc(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0), Gfn(0), 1024).status, Errno::Ok);
  EXPECT_EQ(m.xen.table_bytes() - before, m.arena_used(m.guest()) << kPageLg2);
}

// Memory that comes and goes. Kills: a context 0 that keeps a page that was taken away, or shows none that was added.
TEST_P(XenDomain, ContextZeroFollowsChangesOfTheMemory) {
  Machine m(family());
  ASSERT_NE(m.reach(kNic, Dfn(0x101)), std::nullopt);
  m.unit().forget_history();
  EXPECT_EQ(m.xen.remove_memory(m.cpu, m.guest(), Gfn(0x100), 4).run(), Errno::Ok);
  EXPECT_EQ(m.unit().fences, 1U) << "a change of the map costs a flush";
  for (std::uint64_t i = 0; i < 4; ++i) EXPECT_EQ(m.reach(kNic, Dfn(0x100 + i)), std::nullopt);
  EXPECT_EQ(m.reach(kNic, Dfn(0x104)), m.frame(m.guest(), Gfn(0x104)));
  EXPECT_EQ(m.xen.remove_memory(m.cpu, m.guest(), Gfn(0xff), 2).run(), Errno::NoEntry);
  EXPECT_NE(m.reach(kNic, Dfn(0xff)), std::nullopt) << "all or nothing";
  const Mfn granted = m.frame(*m.other, Gfn(9));
  EXPECT_EQ(m.xen.add_memory(m.cpu, m.guest(), {Gfn(0x101), 1, granted, FrameType::Foreign}).run(), Errno::Ok);
  EXPECT_EQ(m.reach(kNic, Dfn(0x101)), granted);
  EXPECT_EQ(m.xen.add_memory(m.cpu, m.guest(), {Gfn(0x101), 1, granted, FrameType::Foreign}).run(),
            Errno::AddressInUse);
  EXPECT_EQ(m.xen.remove_memory(m.cpu, m.guest(), Gfn(0x101), 1).run(), Errno::Ok);
  EXPECT_EQ(m.reach(kNic, Dfn(0x101)), std::nullopt);
}
// Behaviour 83: with `dma=0` changes of the memory are no business of any unit's.
TEST_P(XenDomain, ABlockedContextZeroNeedsNoFlushForChangesOfTheMemory) {
  Machine m(family(), {.default_context = DefaultContext::Blocked});
  const ContextCounters before = m.xen.counters();
  EXPECT_EQ(m.xen.remove_memory(m.cpu, m.guest(), Gfn(0x100), 4).run(), Errno::Ok);
  EXPECT_EQ(m.xen.add_memory(m.cpu, m.guest(), {Gfn(0x100), 4, Mfn(0x90000), FrameType::Ram}).run(), Errno::Ok);
  EXPECT_EQ(m.unit().fences, 0U);
  EXPECT_TRUE(m.unit().applied.empty());
  EXPECT_EQ(m.xen.counters().flush_calls, before.flush_calls);
  EXPECT_EQ(m.reach(kNic, Dfn(0x100)), std::nullopt);
}

// A unit of the machine, as Xen drives it ---------------------------------------------------------------------------

class XenPhysicalUnit : public XenFamilies {};
XEN_ON_ALL_FAMILIES(XenPhysicalUnit);

TEST_P(XenPhysicalUnit, IsTranslatingAfterBringUpAndBlocksWhatNobodyAttached) {
  Machine m(family());
  EXPECT_TRUE(m.unit().core().is_translating());
  for (const RequesterId nobody : {RequesterId::bdf(3, 0, 7), RequesterId::bdf(77, 1, 2), RequesterId(0xffff)})
    EXPECT_EQ(m.reach(nobody, Dfn(3)), std::nullopt);
}
TEST_P(XenPhysicalUnit, BringUpWithoutMemoryIsNoMemory) {
  for (std::uint64_t pages = 0; pages < 2; ++pages) {
    HostMemory host{1_GiB};
    FrameAllocator frames{Mfn(0x100), pages + 1};
    while (frames.used() < 1) ASSERT_TRUE(frames.allocate());
    CachingUnit registers(family(), {}, host);
    Hypervisor xen(host, frames, {});
    xen.add_unit({.name = "unit", .family = &family(), .driver = {}}, registers);
    ImmediateCpu cpu(CpuId(0), [&host](Hpa a) { return host.read32(a); });
    EXPECT_EQ(xen.bring_up(cpu).run(), Errno::NoMemory);
    EXPECT_FALSE(registers.core().is_translating());
  }
}
// Kills: tag 0, which may tag entries that are not present; tags given twice; more tags than the hardware has.
TEST_P(XenPhysicalUnit, TagsAreDistinctAndAsManyAsTheHardwareHas) {
  HostMemory host{1_GiB};
  FrameAllocator frames{Mfn(0x100), 0x1000};
  CachingUnit registers(family(), {}, host);
  Hypervisor xen(host, frames, {});
  PhysicalUnit& unit = xen.add_unit({.name = "unit", .family = &family(), .driver = {}}, registers);
  std::vector<bool> seen(unit.driver().domain_tags(), false);
  std::uint32_t count = 0;
  while (const auto tag = unit.allocate_tag()) {
    ASSERT_LT(tag->value(), seen.size());
    ASSERT_FALSE(seen[tag->value()]);
    seen[tag->value()] = true;
    ++count;
  }
  EXPECT_FALSE(seen[0]);
  EXPECT_EQ(count, unit.driver().domain_tags() - 1);
  unit.release_tag(DomainTag(7));
  unit.release_tag(DomainTag(3));
  EXPECT_EQ(unit.allocate_tag(), DomainTag(3));
  EXPECT_EQ(unit.allocate_tag(), DomainTag(7));
}
// Nothing to invalidate is no fence; something is one, whatever the number of commands.
TEST_P(XenPhysicalUnit, AnInvalidationIsItsCommandsAndOneFence) {
  Machine m(family());
  PhysicalUnit& unit = m.xen.unit(0);
  unit.reset_counters();
  unit.invalidate(m.cpu, {}).run();
  EXPECT_EQ(m.unit().fences, 0U);
  std::vector<InvalidationScope> scopes;
  for (std::uint32_t tag = 1; tag <= 5; ++tag)
    scopes.push_back({.kind = InvalidationKind::Iotlb, .domain = DomainTag(tag)});
  unit.invalidate(m.cpu, scopes).run();
  EXPECT_EQ(m.unit().fences, 1U);
  EXPECT_EQ(m.unit().applied.size(), 5U);
  EXPECT_EQ(unit.submitted().iotlb_domain, 5U);
  EXPECT_EQ(unit.submitted().fence, 1U);
}
// Far more than the ring holds. Kills: a ring that overflows, or that waits for ever.
TEST_P(XenPhysicalUnit, MoreCommandsThanTheRingHoldsAllArrive) {
  Machine m(family());
  std::vector<InvalidationScope> scopes(1500, {.kind = InvalidationKind::Iotlb, .domain = DomainTag(1)});
  m.xen.unit(0).invalidate(m.cpu, scopes).run();
  EXPECT_EQ(m.unit().applied.size(), scopes.size());
}

}  // namespace
}  // namespace iommu::xen
