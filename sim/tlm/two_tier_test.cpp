// SPDX-License-Identifier: Apache-2.0
// A unit in two tiers: port TLBs, translation slots, messages between the tiers; and walks ahead of demand. Expected
// times are formulas over named parameters.
#include <gtest/gtest.h>

#include "sim/base/rng.hpp"
#include "sim/tlm/test_machine.hpp"

namespace iommu::testing_core {
namespace {

constexpr int kLevels = 4;
constexpr int kContextReads = 2;

Iova page(std::uint64_t n) { return Iova(0x10000000 + n * kPageSize.value()); }
Hpa frame(std::uint64_t n) { return Hpa(0x20000000 + n * kPageSize.value()); }
void map_pages(Machine& m, std::uint64_t count) {
  for (std::uint64_t n = 0; n < count; ++n) m.tables.map(m.root, page(n).value(), frame(n).value());
}

IommuParameters two_tiers() {
  IommuParameters p;
  p.first_level = {.entries = 2, .ways = 0};
  p.port_tlb = {.entries = 16, .ways = 4};
  p.ports = 2;
  p.timing.first_level_latency = 1_ns;
  p.timing.port_tlb_latency = 3_ns;
  p.timing.message_latency = 8_ns;
  p.timing.lookup_latency = 4_ns;
  return p;
}
Picoseconds at_port(const IommuParameters& p) { return p.timing.first_level_latency + p.timing.port_tlb_latency; }
Picoseconds to_shared_and_back(const IommuParameters& p) {
  return at_port(p) + p.timing.message_latency * 2 + p.timing.lookup_latency;
}
Picoseconds walk(const IommuParameters& p) { return p.timing.walk_start + flat_memory().dram * kLevels; }
Picoseconds context(const IommuParameters& p) { return p.timing.context_start + flat_memory().dram * kContextReads; }
Picoseconds latency(Machine& m, std::size_t id) { return m.request(id).completed - m.request(id).arrival; }
std::size_t at(Machine& m, std::uint8_t port, Iova address) {
  return m.submit_at(port, address, Access::Read, Machine::kNic, std::nullopt);
}

// Ports and messages ------------------------------------------------------------------------------------------------

// Kills: a step of the way that costs nothing or twice, TLBs of a port that another port fills or hits, a hit in the
// main TLB that the first level does not learn of.
TEST(TwoTiers, EveryStepCostsExactlyItsLatency) {
  const IommuParameters p = two_tiers();
  Machine m(p);
  map_pages(m, 4);
  EXPECT_EQ(m.latency_of(page(0)), to_shared_and_back(p) + context(p) + walk(p));
  EXPECT_EQ(m.latency_of(page(0)), p.timing.first_level_latency);
  (void)m.latency_of(page(1));
  (void)m.latency_of(page(2));  // page 0 has left the first level
  EXPECT_EQ(m.latency_of(page(0)), at_port(p));
  EXPECT_EQ(m.latency_of(page(0)), p.timing.first_level_latency);
  const std::size_t other = at(m, 1, page(0));
  m.run();
  EXPECT_EQ(latency(m, other), to_shared_and_back(p)) << "another port finds it in the shared part";
  EXPECT_EQ(m.address(other), frame(0));
  const UnitRequest& r = m.request(other);
  EXPECT_EQ(r.split.total(), latency(m, other));
  EXPECT_EQ(r.split.queue, p.timing.message_latency * 2);
}

// Kills: an answer on its way that an invalidation and its fence do not wait for, or that fills the port after them.
TEST(TwoTiers, FenceWaitsForAnswersOnTheirWayAndTheyFillNothing) {
  IommuParameters p = two_tiers();
  p.timing.message_latency = 5_us;
  Machine m(p);
  map_pages(m, 1);
  (void)m.latency_of(page(0));
  const std::size_t id = at(m, 1, page(0));
  const Picoseconds there = m.calendar().now() + at_port(p) + p.timing.message_latency + p.timing.lookup_latency;
  m.run_to(there + 1_ns);
  m.tables.map(m.root, page(0).value(), frame(9).value());
  m.flush_page(page(0));
  m.fence(1);
  m.doorbell();
  m.run_to(there + p.timing.message_latency - 1_ps);
  EXPECT_EQ(m.status_word(), 0U) << "the old translation has not reached its port";
  m.run();
  EXPECT_EQ(m.status_word(), 1U);
  EXPECT_EQ(m.address(id), frame(0));
  const std::size_t again = at(m, 1, page(0));
  m.run();
  EXPECT_EQ(m.address(again), frame(9));
}

// Slots -------------------------------------------------------------------------------------------------------------

// Kills: more translations under way than slots, slots that another port's requests take, a waiting request that is
// forgotten, hits that wait for a slot.
TEST(TwoTiers, RequestsWaitForASlotOfTheirPortAndHitsDoNot) {
  IommuParameters p = two_tiers();
  p.translation_slots = 2;
  Machine m(p);
  map_pages(m, 8);
  (void)m.latency_of(page(7));
  std::vector<std::size_t> ids;
  for (std::uint64_t n = 0; n < 5; ++n) ids.push_back(at(m, 0, page(n)));
  const std::size_t hit = at(m, 0, page(7));
  const std::size_t elsewhere = at(m, 1, page(5));
  m.run();
  const Picoseconds miss = to_shared_and_back(p) + walk(p);
  const Picoseconds lookup_turn = p.timing.lookup_interval;
  EXPECT_EQ(latency(m, ids[0]), miss);
  EXPECT_EQ(latency(m, ids[1]), miss + lookup_turn);
  // The third leaves its port when the first is back, without looking up anything before.
  EXPECT_EQ(latency(m, ids[2]), miss * 2 - at_port(p));
  EXPECT_EQ(latency(m, ids[4]), miss * 3 - at_port(p) * 2);
  EXPECT_EQ(latency(m, hit), p.timing.first_level_latency);
  EXPECT_EQ(latency(m, elsewhere), miss + lookup_turn * 2);
  EXPECT_EQ(m.statistics().slot_waits, 3U);
  for (std::uint64_t n = 0; n < 5; ++n) EXPECT_EQ(m.address(ids[n]), frame(n));
}

// Kills: equal misses that take a slot or a walk each; a follower that is given a right it lacks, or another offset.
TEST(TwoTiers, RequestsToOnePageShareASlot) {
  IommuParameters p = two_tiers();
  p.translation_slots = 1;
  Machine m(p);
  m.tables.map(m.root, page(0).value(), frame(0).value(), kReadOnly);
  const std::size_t first = m.submit(page(0));
  const std::size_t same = m.submit(page(0) + 0x40_B);
  const std::size_t writes = m.submit(page(0), Access::Write);
  m.run();
  EXPECT_EQ(m.address(same), frame(0) + 0x40_B);
  EXPECT_EQ(m.request(same).completed, m.request(first).completed);
  EXPECT_FALSE(m.address(writes));
  EXPECT_EQ(m.core.recorded.size(), 1U);
  EXPECT_EQ(m.statistics().slot_merges, 2U);
  EXPECT_EQ(m.statistics().walks, 2U);
  EXPECT_EQ(m.request(same).path, UnitPath::Merged);
  EXPECT_EQ(m.statistics().hits, 0U) << "it waited for a walk";
  EXPECT_EQ(m.statistics().lookups, 3U);
}

// Kills: a wait for an answer that the port will not keep, or that is another device's.
TEST(TwoTiers, OnlyWhoTheAnswerCanServeWaitsForIt) {
  IommuParameters p = two_tiers();
  p.translation_slots = 4;
  Machine m(p);
  map_pages(m, 2);
  constexpr RequesterId kOther(0x0200);
  m.tables.attach(m.core, kOther, ContextKind::Stage2, Hpa(), m.root, Machine::kDomain);
  for (int n = 0; n < 2; ++n)
    (void)m.submit(
        {.requester = Machine::kNic, .pasid = {}, .address = page(0), .type = AddressType::TranslationRequest});
  (void)m.submit(page(1));
  const std::size_t other = m.submit(page(1), Access::Read, kOther);
  m.run();
  EXPECT_EQ(m.statistics().slot_merges, 0U);
  EXPECT_EQ(m.address(other), frame(1));
  EXPECT_FALSE(m.request(other).internal.slot) << "and gives its own back";
}

// Walks ahead -------------------------------------------------------------------------------------------------------

std::uint64_t misses(std::uint32_t prefetch_pages, bool sequential) {
  IommuParameters p;
  p.prefetch_pages = prefetch_pages;
  p.iotlb = {.entries = 1024, .ways = 4};
  Machine m(p);
  constexpr std::uint64_t kPages = 256;
  map_pages(m, 4 * kPages + 8);
  Rng rng(7);
  for (std::uint64_t n = 0; n < kPages; ++n) (void)m.latency_of(page(sequential ? n : rng.below(kPages) * 4));
  return m.statistics().misses;
}

// Kills: a prefetch that brings nothing, the wrong page, or is counted as a hit before it is there.
TEST(Prefetch, TurnsSequentialMissesIntoHitsAndDoesNotHelpRandomOnes) {
  EXPECT_EQ(misses(0, true), 256U);
  EXPECT_EQ(misses(1, true), 128U);
  EXPECT_EQ(misses(3, true), 64U);
  EXPECT_EQ(misses(3, false), misses(0, false)) << "every fourth page in random order";
}

// Kills: walks ahead that take a walker or a miss entry from demand, or delay it.
TEST(Prefetch, UsesIdleWalkersOnly) {
  IommuParameters p;
  p.walkers = 1;
  p.prefetch_pages = 1;
  Machine m(p);
  map_pages(m, 20);
  (void)m.latency_of(page(10));
  const std::uint64_t before = m.statistics().prefetch_walks;
  const std::size_t first = m.submit(page(0));
  const std::size_t second = m.submit(page(2));
  m.run();
  EXPECT_EQ(latency(m, first), p.timing.lookup_latency + walk(p));
  EXPECT_EQ(latency(m, second), p.timing.lookup_latency + walk(p) * 2);
  EXPECT_EQ(m.statistics().prefetch_walks, before + 1) << "after the second, when nothing waited";
}

// Kills: a refused prefetch that is recorded or answers a request; marks left by speculation; a page that needs a mark
// and is cached without.
TEST(Prefetch, RecordsNothingAndMarksNothing) {
  IommuParameters p;
  p.prefetch_pages = 2;
  Machine m(p);
  map_pages(m, 2);
  (void)m.latency_of(page(1));  // what follows is not mapped
  EXPECT_TRUE(m.core.recorded.empty());
  EXPECT_EQ(m.statistics().prefetch_walks, 2U);
  m.tables.map(m.root, page(2).value(), frame(2).value());
  EXPECT_EQ(m.latency_of(page(2)), p.timing.lookup_latency + walk(p));
  EXPECT_EQ(m.address(1), frame(2));

  m.core.marks = true;
  map_pages(m, 12);
  (void)m.latency_of(page(8));
  m.tables.map(m.root, page(9).value(), frame(9).value());  // for its slot; unmarked as before
  EXPECT_EQ((get<kEntry, "A">(m.host().read64(m.tables.leaf_slot()))), 0U);
  (void)m.latency_of(page(9));
  EXPECT_NE((get<kEntry, "A">(m.host().read64(m.tables.leaf_slot()))), 0U) << "the demanded walk marked it";
}

// A request that arrives while its page is walked ahead. Kills: a second walk for it, a fault of the walk ahead that
// becomes the request's, a chain of prefetches that a late request breaks.
TEST(Prefetch, DemandJoinsAWalkAhead) {
  IommuParameters p;
  p.prefetch_pages = 1;
  Machine m(p);
  map_pages(m, 4);
  const std::size_t first = m.submit(page(0));
  while (!m.completed(first)) m.calendar().step(Picoseconds(INT64_MAX));
  const std::size_t joined = m.submit(page(1));
  m.run();
  EXPECT_EQ(m.address(joined), frame(1));
  EXPECT_EQ(m.request(joined).path, UnitPath::Merged);
  EXPECT_LE(latency(m, joined), walk(p));
  EXPECT_EQ(m.statistics().walks, 1U);
  EXPECT_EQ(m.latency_of(page(2)), p.timing.lookup_latency) << "walked behind the joined one";

  const std::size_t last = m.submit(page(3));  // hits: brought by nobody else
  m.run();
  (void)last;
  const std::size_t missing = m.submit(page(6), Access::Write);
  m.run();
  EXPECT_FALSE(m.address(missing));
  EXPECT_EQ(m.core.recorded.size(), 1U);
  EXPECT_EQ(m.core.recorded[0].access, Access::Write);
}

// Kills: a use that is counted for each copy, each port or each request; one by a request that waited for the walk, or
// from the shared part, that is not counted; a demanded walk's translation that counts.
TEST(Prefetch, EachTranslationIsUsedOnce) {
  for (const bool has_ports : {false, true}) {
    IommuParameters p = has_ports ? two_tiers() : IommuParameters{};
    p.prefetch_pages = 2;
    Machine m(p);
    map_pages(m, 12);
    const IommuStatistics& s = m.statistics();
    (void)m.latency_of(page(0));
    EXPECT_EQ(s.prefetched, 2U);
    EXPECT_EQ(s.prefetch_used, 0U);
    (void)m.latency_of(page(0));
    EXPECT_EQ(s.prefetch_used, 0U) << "demanded";
    for (const std::uint8_t port : std::array<std::uint8_t, 4>{1, 0, 0, 1}) {
      (void)at(m, port, page(1));  // of the second port first, which finds it in the shared part
      m.run();
      EXPECT_EQ(s.prefetch_used, 1U);
    }
    for (const std::uint8_t port : std::array<std::uint8_t, 3>{0, 0, 1}) {
      (void)at(m, port, page(2));
      m.run();
      EXPECT_EQ(s.prefetch_used, 2U);
    }
    const std::size_t first = m.submit(page(6));
    while (!m.completed(first)) m.calendar().step(Picoseconds(INT64_MAX));
    (void)m.submit(page(7));
    m.run();
    EXPECT_EQ(s.prefetch_used, 3U) << "it waited for the walk ahead";
    (void)m.latency_of(page(7));
    EXPECT_EQ(s.prefetch_used, 3U);
  }
}

// An invalidation comes while a page is walked ahead, after its old entry was read. Kills: the old translation in any
// cache, a fence that is signalled while the walk still reads tables that software is about to free.
TEST(Prefetch, InvalidationLeavesNothingStaleAndItsFenceWaits) {
  IommuParameters p = two_tiers();
  p.prefetch_pages = 1;
  p.invalidation.scan = 1_ns;
  MemoryParameters slow = flat_memory();
  slow.dram = 10_us;
  Machine m(p, slow);
  map_pages(m, 2);
  const std::size_t first = m.submit(page(0));
  while (!m.completed(first)) m.calendar().step(Picoseconds(INT64_MAX));
  // The walk of page 1 began when that of page 0 ended. The flush is read while it reads its second entry, the fence
  // while it reads its third.
  const Picoseconds ahead = m.calendar().now() - p.timing.message_latency + p.timing.walk_start + slow.dram * kLevels;
  ASSERT_EQ(m.statistics().prefetch_walks, 1U);
  m.flush_page(page(1));
  m.fence(1);
  m.doorbell();
  m.run_to(ahead - 1_ps);
  EXPECT_EQ(m.status_word(), 0U);
  m.tables.map(m.root, page(1).value(), frame(9).value());
  m.run();
  EXPECT_EQ(m.status_word(), 1U);
  const std::size_t after = m.submit(page(1));
  m.run();
  EXPECT_EQ(m.address(after), frame(9));
  EXPECT_EQ(m.request(after).path, UnitPath::Miss) << "what the overtaken walk brought is nowhere";
}

// Random traffic, edits and fences over all of it. Kills: whatever lets a translation outlive its fence, in any tier.
TEST(TwoTiers, RandomEditsAreSeenAfterTheirFence) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Rng rng(seed);
    IommuParameters p = two_tiers();
    p.translation_slots = static_cast<std::uint32_t>(rng.below(3));
    p.prefetch_pages = static_cast<std::uint32_t>(rng.below(4));
    p.ordering = rng.chance(0.5) ? Ordering::InOrder : Ordering::OutOfOrder;
    p.miss_entries = 1 + static_cast<std::uint32_t>(rng.below(4));
    p.walkers = 1 + static_cast<std::uint32_t>(rng.below(3));
    Machine m(p);
    constexpr std::uint64_t kPages = 24;
    map_pages(m, kPages);
    std::array<std::uint64_t, kPages> now{};
    for (std::uint64_t n = 0; n < kPages; ++n) now[n] = n;
    for (std::uint32_t round = 1; round <= 30; ++round) {
      for (std::uint64_t i = rng.below(10); i > 0 && m.unit().can_accept(); --i)
        (void)at(m, static_cast<std::uint8_t>(rng.below(2)), page(rng.below(kPages)));
      m.run_to(m.calendar().now() + Picoseconds(static_cast<std::int64_t>(rng.below(600'000))));
      const std::uint64_t edited = rng.below(kPages);
      now[edited] = 100 + round;
      m.tables.map(m.root, page(edited).value(), frame(now[edited]).value());
      m.flush_page(page(edited));
      m.fence(round);
      m.doorbell();
      while (m.status_word() != round) ASSERT_TRUE(m.calendar().step(Picoseconds(INT64_MAX)));
      const std::size_t probe = at(m, static_cast<std::uint8_t>(rng.below(2)), page(edited));
      if (rng.chance(0.5)) m.run();
      while (!m.completed(probe)) ASSERT_TRUE(m.calendar().step(Picoseconds(INT64_MAX)));
      EXPECT_EQ(m.address(probe), frame(now[edited]));
    }
    m.run();
    EXPECT_EQ(m.unit().pending(), 0U);
  }
}

// Global pages ------------------------------------------------------------------------------------------------------

// One domain with a guest-physical space mapped one to one, and a stage 1 for each address space.
struct SharedDomain {
  explicit SharedDomain(const IommuParameters& p) : m(p), stage1(m.tables.allocate()) {
    for (std::uint64_t a = 0x100000; a < 0x180000; a += kPageSize.value()) m.tables.map(m.root, a, a);
    for (std::uint64_t n = 0; n < 4; ++n) m.tables.map(m.root, frame(n).value(), frame(n).value());
    m.tables.attach(m.core, Machine::kNic, ContextKind::Nested, stage1, m.root, Machine::kDomain);
  }
  void map(std::uint64_t n, bool is_global) {
    m.tables.map(stage1, page(n).value(), frame(n).value());
    const std::uint64_t leaf = m.host().read64(m.tables.leaf_slot());
    m.host().write64(m.tables.leaf_slot(), with<kEntry, "G">(leaf, is_global ? 1 : 0));
  }
  std::size_t ask(std::uint32_t address_space, std::uint64_t n) {
    const std::size_t id = m.submit_at(0, page(n), Access::Read, Machine::kNic, Pasid(address_space));
    m.run();
    EXPECT_EQ(m.address(id), frame(n));
    return id;
  }
  void flush(std::uint64_t command, std::uint64_t operand = 0) {
    m.command(command, operand);
    m.doorbell();
    m.run();
  }
  Machine m;
  Hpa stage1;
};

// Kills: an attribute that is lost between walk and cache, a global page that belongs to one address space, one that a
// flush of an address space removes or that a flush of its address spares.
TEST(GlobalPages, ServeEveryAddressSpaceAndOutliveFlushesOfOne) {
  SharedDomain d({});
  d.map(0, true);
  d.map(1, false);
  (void)d.ask(1, 0);
  (void)d.ask(1, 1);
  EXPECT_EQ(d.m.request(d.ask(2, 0)).path, UnitPath::Hit);
  EXPECT_EQ(d.m.request(d.ask(2, 1)).path, UnitPath::Miss);
  d.flush(kFlushAsid | 1ULL << 32);
  EXPECT_EQ(d.m.request(d.ask(1, 0)).path, UnitPath::Hit);
  EXPECT_EQ(d.m.request(d.ask(1, 1)).path, UnitPath::Miss);
  d.flush(kFlushAsidPage | 2ULL << 32, page(0).value());
  EXPECT_EQ(d.m.request(d.ask(1, 0)).path, UnitPath::Miss);
  d.flush(kFlushDomain | static_cast<std::uint64_t>(Machine::kDomain.value()) << 32);
  EXPECT_EQ(d.m.request(d.ask(2, 0)).path, UnitPath::Miss);
}

// Kills: the same in the TLBs of ports, which know the requester only.
TEST(GlobalPages, StayAtPortsAsLong) {
  SharedDomain d(two_tiers());
  d.map(0, true);
  (void)d.ask(1, 0);
  d.flush(kFlushAsid | 1ULL << 32);
  EXPECT_EQ(latency(d.m, d.ask(1, 0)), two_tiers().timing.first_level_latency);
  d.flush(kFlushAsidPage | 2ULL << 32, page(0).value());
  EXPECT_EQ(d.m.request(d.ask(1, 0)).path, UnitPath::Miss);
}

}  // namespace
}  // namespace iommu::testing_core
