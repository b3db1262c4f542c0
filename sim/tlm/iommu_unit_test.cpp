// SPDX-License-Identifier: Apache-2.0
// Timing gates and behaviour of the timed IOMMU. Expected times are formulas over named parameters: not done one
// picosecond before, done at the time.
#include "sim/tlm/iommu_unit.hpp"

#include <gtest/gtest.h>

#include "sim/base/rng.hpp"
#include "sim/tlm/test_machine.hpp"

namespace iommu::testing_core {
namespace {

constexpr RequesterId kNic = Machine::kNic;
constexpr unsigned kLevels = 4;
constexpr unsigned kContextReads = 2;

Iova page(std::uint64_t n) { return Iova(0x10000000 + n * kPageSize.value()); }
Hpa frame(std::uint64_t n) { return Hpa(0x20000000 + n * kPageSize.value()); }
void map_pages(Machine& m, std::uint64_t count) {
  for (std::uint64_t n = 0; n < count; ++n) m.tables.map(m.root, page(n).value(), frame(n).value());
}
// Pending one picosecond before `t`, done at `t`.
void expect_done_at(Machine& m, std::size_t id, Picoseconds t) {
  m.run_to(t - 1_ps);
  EXPECT_FALSE(m.completed(id)) << "request " << id << " is early";
  m.run_to(t);
  ASSERT_TRUE(m.completed(id)) << "request " << id << " is late";
  EXPECT_EQ(m.completed(id)->value(), t.value());
}
Picoseconds read_time(const IommuParameters& p) { return p.timing.table_read_issue + flat_memory().dram; }
Picoseconds walk_time(const IommuParameters& p, int reads) { return p.timing.walk_start + read_time(p) * reads; }
Picoseconds context_time(const IommuParameters& p) { return p.timing.context_start + read_time(p) * kContextReads; }

IommuParameters some() {
  IommuParameters p;
  p.timing.table_read_issue = 3_ns;
  p.timing.lookup_latency = 2_ns;
  return p;
}
// Everything known but the pages: the context is cached.
void warm_context(Machine& m) {
  m.tables.map(m.root, 0, 0);
  (void)m.latency_of(Iova(0));
}

// One request at a time ---------------------------------------------------------------------------------------------

// Kills: forgotten or doubled latency of any step of a cold walk, of the context fetch, of a hit.
TEST(IommuUnit, ColdMissWarmMissAndHitTakeExactlyTheirClosedForms) {
  const IommuParameters p = some();
  Machine m(p);
  map_pages(m, 2);
  const std::size_t cold = m.submit(page(0));
  expect_done_at(m, cold, p.timing.lookup_latency + context_time(p) + walk_time(p, kLevels));
  EXPECT_EQ(m.address(cold), frame(0));
  const Picoseconds warm = m.calendar().now();
  expect_done_at(m, m.submit(page(1)), warm + p.timing.lookup_latency + walk_time(p, kLevels));
  const Picoseconds hit = m.calendar().now();
  const std::size_t id = m.submit(page(1) + 0x123_B);
  expect_done_at(m, id, hit + p.timing.lookup_latency);
  EXPECT_EQ(m.address(id), frame(1) + 0x123_B);
  EXPECT_EQ(m.request(id).path, UnitPath::Hit);
  EXPECT_EQ(m.statistics().hits, 1U);
  EXPECT_EQ(m.statistics().misses, 2U);
}

// Kills: a nested walk that skips stage 2 of a table, or of the result.
TEST(IommuUnit, ColdNestedWalkReads24EntriesOneAfterTheOther) {
  const IommuParameters p = some();
  Machine m(p);
  // Stage 2 maps guest-physical to host-physical memory one to one, where stage 1's tables and pages lie.
  const Hpa stage1 = m.tables.allocate();
  const Hpa stage2 = m.tables.allocate();
  m.tables.map(stage1, page(0).value(), frame(0).value());
  for (std::uint64_t a = 0x100000; a < 0x180000; a += kPageSize.value()) m.tables.map(stage2, a, a);
  m.tables.map(stage2, frame(0).value(), frame(9).value());
  m.tables.attach(m.core, kNic, ContextKind::Nested, stage1, stage2, DomainTag(3));
  const std::size_t id = m.submit(page(0) + 8_B);
  expect_done_at(m, id, p.timing.lookup_latency + context_time(p) + walk_time(p, 24));
  EXPECT_EQ(m.address(id), frame(9) + 8_B);
  EXPECT_EQ(m.statistics().stage1_reads_per_miss[4], 1U);
  EXPECT_EQ(m.statistics().stage2_reads_per_miss[20], 1U);
  EXPECT_EQ(m.statistics().reads_per_miss[24 + kContextReads], 1U);
  EXPECT_EQ(m.request(id).split.stage1, read_time(p) * 4);
  EXPECT_EQ(m.request(id).split.stage2, p.timing.walk_start + read_time(p) * 20);
  EXPECT_EQ(m.request(id).split.context, context_time(p));
  EXPECT_EQ(m.request(id).split.queue, 0_ps);
  EXPECT_EQ(m.request(id).split.total(), m.request(id).completed - m.request(id).arrival);
}

// Kills: walk caches that do not shorten the walk, or start it a level too low.
TEST(IommuUnit, WalkCacheOfLeafTablesLeavesOneRead) {
  IommuParameters p = some();
  p.stage2_walk_cache[0] = {.entries = 4, .ways = 0};
  Machine m(p);
  map_pages(m, 600);
  (void)m.latency_of(page(0));
  EXPECT_EQ(m.latency_of(page(1)), p.timing.lookup_latency + walk_time(p, 1));
  EXPECT_EQ(m.latency_of(page(599)), p.timing.lookup_latency + walk_time(p, kLevels)) << "another leaf table";
  EXPECT_EQ(m.address(2), frame(599));
}

// Kills: caching a large page as a small one, or looking it up by its small page number.
TEST(IommuUnit, LargePageIsOneEntryForAllItsSmallPages) {
  IommuParameters p = some();
  p.iotlb_large = {.entries = 4, .ways = 0};
  Machine m(p);
  m.tables.map(m.root, 0x40000000, 0x80000000, kReadWrite, 1);
  (void)m.latency_of(Iova(0x40000000));
  EXPECT_EQ(m.latency_of(Iova(0x401ff123)), p.timing.lookup_latency);
  EXPECT_EQ(m.address(1), Hpa(0x801ff123));
  EXPECT_EQ(m.statistics().hits_by_page_lg2[21], 1U);
}

// Kills: a two-tier TLB whose first level costs or saves nothing.
TEST(IommuUnit, FirstLevelHitSparesTheMainLookup) {
  IommuParameters p = some();
  p.first_level = {.entries = 4, .ways = 0};
  p.ports = 2;
  p.timing.first_level_latency = 1_ns;
  Machine m(p);
  map_pages(m, 1);
  const Picoseconds both = p.timing.first_level_latency + p.timing.lookup_latency;
  EXPECT_EQ(m.latency_of(page(0)), both + context_time(p) + walk_time(p, kLevels));
  EXPECT_EQ(m.latency_of(page(0)), p.timing.first_level_latency);
  EXPECT_EQ(m.statistics().first_level.hits, 1U);
}

// Kills: an accessed mark that costs no time or is lost.
TEST(IommuUnit, AccessedMarkCostsOneAccessMoreAndStaysInMemory) {
  const IommuParameters p = some();
  Machine m(p);
  warm_context(m);
  map_pages(m, 1);
  m.core.marks = true;
  EXPECT_EQ(m.latency_of(page(0)), p.timing.lookup_latency + walk_time(p, 2 * kLevels));
  EXPECT_NE((get<kEntry, "A">(m.host().read64(m.tables.leaf_slot()))), 0U);
  EXPECT_EQ(m.statistics().marks, 4U);
}

// Kills: an IOTLB entry made for a device that bypasses, or latency charged for tables it does not read.
TEST(IommuUnit, BypassedRequestsReadNoPageTables) {
  const IommuParameters p = some();
  Machine m(p);
  m.tables.attach(m.core, RequesterId(0x0108), ContextKind::Bypass, Hpa(), Hpa(), DomainTag(1));
  EXPECT_EQ(m.latency_of(page(5), Access::Read, RequesterId(0x0108)), p.timing.lookup_latency + context_time(p));
  EXPECT_EQ(m.latency_of(page(5), Access::Write, RequesterId(0x0108)), p.timing.lookup_latency);
  EXPECT_EQ(m.address(1), Hpa(page(5).value()));
  m.core.is_enabled = false;
  EXPECT_EQ(m.latency_of(page(6)), p.timing.lookup_latency);
  EXPECT_EQ(m.address(2), Hpa(page(6).value()));
  EXPECT_EQ(m.statistics().lookups, 0U);
  EXPECT_EQ(m.statistics().bypassed, 3U);
}

// Kills: a fault that is cached, not recorded, or answered from a read's translation.
TEST(IommuUnit, PermissionMismatchOnAHitWalksAgainAndFaults) {
  const IommuParameters p = some();
  Machine m(p);
  m.tables.map(m.root, page(0).value(), frame(0).value(), kReadOnly);
  (void)m.latency_of(page(0));
  EXPECT_EQ(m.latency_of(page(0), Access::Write), p.timing.lookup_latency + walk_time(p, kLevels));
  ASSERT_EQ(m.core.recorded.size(), 1U);
  EXPECT_EQ(m.core.recorded[0].row, &kDenied);
  EXPECT_FALSE(m.address(1));
  EXPECT_EQ(m.statistics().permission_misses, 1U);
  EXPECT_EQ(m.latency_of(page(0)), p.timing.lookup_latency) << "reads still hit";
  // Software grants the right; the old entry must not stand in the way.
  m.tables.map(m.root, page(0).value(), frame(0).value(), kReadWrite);
  (void)m.latency_of(page(0), Access::Write);
  EXPECT_EQ(m.address(3), frame(0));
}

// Kills: hanging or aborting when tables lead outside memory or a device is unknown.
TEST(IommuUnit, MissingContextAndBrokenTablesFault) {
  Machine m;
  (void)m.latency_of(page(0), Access::Read, RequesterId(0x4200));
  (void)m.latency_of(page(0));
  m.host().write64(m.root, Format{}.make_table(0xfffffff000000, 3));
  (void)m.latency_of(page(1));
  ASSERT_EQ(m.core.recorded.size(), 3U);
  EXPECT_EQ(m.core.recorded[0].row, &kNoContext);
  EXPECT_EQ(m.core.recorded[1].row, &kNoPage);
  EXPECT_EQ(m.core.recorded[2].row, &kNoMemory);
}

// Kills: interrupt lost, or raised before its write reached memory.
TEST(IommuUnit, FaultInterruptArrivesAfterItsMemoryWrite) {
  struct Sink : InterruptSink {
    void raise(const InterruptMessage& message) override {
      data = message.data;
      when = calendar->now();
    }
    Calendar* calendar = nullptr;
    std::uint32_t data = 0;
    Picoseconds when;
  } sink;
  Machine m;
  sink.calendar = &m.calendar();
  m.unit().connect(sink);
  m.core.fault_interrupt = InterruptMessage{Hpa(0x9000), 42};
  const Picoseconds faulted = m.latency_of(page(0));
  EXPECT_EQ(sink.data, 42U);
  EXPECT_EQ(m.host().read32(Hpa(0x9000)), 42U);
  EXPECT_EQ(sink.when, faulted + flat_memory().dram);
}

// The shell around one request adds time and changes nothing. Kills: any divergence of shell and core.
TEST(IommuUnit, OneRequestGetsWhatThePureCoreAnswers) {
  constexpr std::uint64_t kSeed = 11;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  Rng rng(kSeed);
  IommuParameters p = some();
  p.stage2_walk_cache[0] = p.stage2_walk_cache[1] = p.stage2_walk_cache[2] = {.entries = 4, .ways = 2};
  Machine m(p);
  for (int i = 0; i < 200; ++i)
    m.tables.map(m.root, page(rng.below(4000)).value(), frame(rng.below(4000)).value(),
                 {.read = rng.chance(0.8), .write = rng.chance(0.6)});
  ImmediateMemoryPort now(m.host());
  for (int i = 0; i < 2000; ++i) {
    const Iova address = page(rng.below(4000)) + Bytes(rng.below(64) * 64);
    const Access access = rng.chance(0.5) ? Access::Read : Access::Write;
    (void)m.latency_of(address, access);
    const UnitRequest& r = m.request(static_cast<std::size_t>(i));
    const TranslationResponse pure = m.core.translate(r.translation, now).run();
    ASSERT_EQ(r.response.index(), pure.index()) << i;
    if (const auto* t = std::get_if<Translation>(&pure)) {
      ASSERT_EQ(m.address(static_cast<std::size_t>(i)), t->address) << i;
      ASSERT_EQ(std::get<Translation>(r.response).allowed, t->allowed) << i;
    } else {
      ASSERT_EQ(std::get<Fault>(r.response).row, std::get<Fault>(pure).row) << i;
    }
  }
  EXPECT_GT(m.statistics().hits, 0U);
  EXPECT_GT(m.statistics().faulted, 0U);
}

// Many at a time ----------------------------------------------------------------------------------------------------

// Kills: a lookup port that serves two at once, or waits without need.
TEST(IommuUnit, LookupIntervalAndPortsSetTheHitRate) {
  for (const std::uint32_t ports : {1U, 2U}) {
    IommuParameters p = some();
    p.timing.lookup_interval = 5_ns;
    p.lookup_ports = ports;
    Machine m(p);
    map_pages(m, 1);
    (void)m.latency_of(page(0));
    m.run_to(m.calendar().now() + 1_us);
    const Picoseconds start = m.calendar().now();
    std::size_t last = 0;
    for (int i = 0; i < 20; ++i) last = m.submit(page(0));
    const auto rounds = static_cast<std::int64_t>(19 / ports);
    expect_done_at(m, last, start + p.timing.lookup_interval * rounds + p.timing.lookup_latency);
  }
}

// Kills: one walk per request to the same page, a merged request answered with another's offset.
TEST(IommuUnit, RequestsToOnePageShareOneWalk) {
  const IommuParameters p = some();
  Machine m(p);
  warm_context(m);
  map_pages(m, 1);
  const std::uint64_t walks = m.statistics().walks;
  std::vector<std::size_t> ids;
  for (std::uint64_t i = 0; i < 5; ++i) ids.push_back(m.submit(page(0) + Bytes(64 * i)));
  m.run();
  EXPECT_EQ(m.statistics().walks, walks + 1);
  EXPECT_EQ(m.statistics().merges, 4U);
  for (std::uint64_t i = 0; i < 5; ++i) {
    EXPECT_EQ(m.address(ids[i]), frame(0) + Bytes(64 * i));
    EXPECT_EQ(m.completed(ids[i]), m.completed(ids[0]));
  }
}

// Kills: handing a read's walk to a write that it does not permit.
TEST(IommuUnit, MergedRequestWithoutPermissionWalksForItself) {
  const IommuParameters p = some();
  Machine m(p);
  warm_context(m);
  m.tables.map(m.root, page(0).value(), frame(0).value(), kReadOnly);
  const std::size_t read = m.submit(page(0));
  const std::size_t write = m.submit(page(0), Access::Write);
  m.run();
  EXPECT_EQ(m.address(read), frame(0));
  EXPECT_FALSE(m.address(write));
  EXPECT_EQ(m.core.recorded.size(), 1U);
}

// Kills: more walks at once than walkers; a slot not reused; the interval ignored.
TEST(IommuUnit, WalkersAndTheirIntervalLimitTheWalkRate) {
  constexpr int kWalks = 12;
  for (const auto& [walkers, interval] : {std::pair(3U, 0_ns), std::pair(12U, 46_ns)}) {
    IommuParameters p = some();
    p.timing.lookup_interval = 0_ps;
    p.timing.walk_interval = interval;
    p.walkers = walkers;
    Machine m(p);
    warm_context(m);
    map_pages(m, kWalks);
    const Picoseconds start = m.calendar().now() + 1_us;
    m.run_to(start);
    std::size_t last = 0;
    for (std::uint64_t n = 0; n < kWalks; ++n) last = m.submit(page(n));
    const Picoseconds one = walk_time(p, kLevels);
    const Picoseconds expected = walkers == 3 ? one * (kWalks / 3) : interval * (kWalks - 1) + one;
    expect_done_at(m, last, start + p.timing.lookup_latency + expected);
  }
}

// Kills: misses beyond the miss entries lost, or hits behind them blocked.
TEST(IommuUnit, MissesWithoutAnEntryWaitAndHitsPassThem) {
  IommuParameters p = some();
  p.timing.lookup_interval = 0_ps;
  p.miss_entries = 1;
  Machine m(p);
  warm_context(m);
  map_pages(m, 3);
  const Picoseconds start = m.calendar().now();
  const std::size_t first = m.submit(page(0));
  const std::size_t second = m.submit(page(1));
  const std::size_t hit = m.submit(Iova(0));
  const Picoseconds one = walk_time(p, kLevels);
  m.run();
  EXPECT_EQ(m.completed(hit), start + p.timing.lookup_latency);
  EXPECT_EQ(m.completed(first), start + p.timing.lookup_latency + one);
  EXPECT_EQ(m.completed(second), start + p.timing.lookup_latency + one * 2);
  EXPECT_EQ(m.request(second).split.queue, one);
}

// Kills: hits overtaking in order, or blocked out of order; a limit off by one.
TEST(IommuUnit, OrderingDecidesWhetherAHitPassesMisses) {
  const auto hit_time = [](Ordering ordering, std::uint32_t hit_under_miss) {
    IommuParameters p = some();
    p.timing.lookup_interval = 0_ps;
    p.timing.walk_interval = 100_ns;
    p.ordering = ordering;
    p.hit_under_miss = hit_under_miss;
    Machine m(p);
    warm_context(m);
    map_pages(m, 2);
    m.run_to(10_us);
    (void)m.submit(page(0));
    (void)m.submit(page(1));
    const std::size_t hit = m.submit(Iova(0));
    m.run();
    return *m.completed(hit) - 10_us;
  };
  const IommuParameters p = some();
  const Picoseconds first = p.timing.lookup_latency + walk_time(p, kLevels);
  EXPECT_EQ(hit_time(Ordering::OutOfOrder, 2), p.timing.lookup_latency);
  EXPECT_EQ(hit_time(Ordering::OutOfOrder, 1), first);
  EXPECT_EQ(hit_time(Ordering::OutOfOrder, 0), first + 100_ns);
  EXPECT_EQ(hit_time(Ordering::InOrder, ~0U), first + 100_ns);
}

// Kills: counting any answered miss as one that the held hit waited for.
TEST(IommuUnit, HeldHitWaitsForOlderMissesOnly) {
  IommuParameters p = some();
  p.timing.lookup_interval = 0_ps;
  p.hit_under_miss = 0;
  p.stage2_walk_cache[0] = {.entries = 4, .ways = 0};
  Machine m(p);
  warm_context(m);
  map_pages(m, 1);
  m.tables.map(m.root, 0x1000, 0x1000);
  const std::size_t older = m.submit(page(0));  // four reads
  const std::size_t hit = m.submit(Iova(0));
  const std::size_t younger = m.submit(Iova(0x1000));  // one read: its leaf table is known
  m.run();
  EXPECT_LT(*m.completed(younger), *m.completed(older));
  EXPECT_EQ(m.completed(hit), m.completed(older));
}

// Kills: responses of misses out of order under InOrder.
TEST(IommuUnit, InOrderMeansOrderOfArrivalForEveryone) {
  IommuParameters p = some();
  p.ordering = Ordering::InOrder;
  p.stage2_walk_cache[0] = {.entries = 4, .ways = 0};
  Machine m(p);
  warm_context(m);  // the leaf table of page 0 is known: its walk is short
  map_pages(m, 1);
  m.tables.map(m.root, 0x1000, 0x1000);
  (void)m.submit(page(0));       // long walk
  (void)m.submit(Iova(0x1000));  // short walk
  m.run();
  const std::deque<std::uint64_t> expected{0, 1, 2};
  EXPECT_EQ(m.order(), expected);
}

// Kills: a queue that accepts more than it holds, or never calls back.
TEST(IommuUnit, FullQueueRefusesAndCallsBackWhenThereIsRoom) {
  IommuParameters p = some();
  p.request_queue = 2;
  p.timing.lookup_interval = 10_ns;
  Machine m(p);
  warm_context(m);
  m.run_to(1_us);
  (void)m.submit(Iova(0));
  (void)m.submit(Iova(0));
  EXPECT_FALSE(m.unit().can_accept());
  std::optional<Picoseconds> called;
  struct Context {
    Machine* m;
    std::optional<Picoseconds>* called;
  } context{&m, &called};
  m.unit().on_space(
      [](void* c, std::uint64_t) {
        auto* x = static_cast<Context*>(c);
        *x->called = x->m->calendar().now();
        EXPECT_TRUE(x->m->unit().can_accept());
      },
      &context);
  m.run();
  EXPECT_EQ(called, 1_us + p.timing.lookup_latency);
}

// Kills: one context fetch per request.
TEST(IommuUnit, RequestsOfOneDeviceShareOneContextFetch) {
  const IommuParameters p = some();
  Machine m(p);
  map_pages(m, 4);
  for (std::uint64_t n = 0; n < 4; ++n) (void)m.submit(page(n));
  m.run();
  EXPECT_EQ(m.statistics().context_fetches, 1U);
  EXPECT_EQ(m.statistics().reads[static_cast<std::size_t>(AccessKind::DeviceTable)], kContextReads);
  for (std::size_t n = 0; n < 4; ++n) EXPECT_EQ(m.address(n), frame(n));
}

// Kills: contexts shared between devices, or a cache that evicts without fetching again.
TEST(IommuUnit, DevicesWithoutRoomInTheContextCacheFetchAgain) {
  IommuParameters p = some();
  p.context_cache = {.entries = 1, .ways = 0};
  Machine m(p);
  m.tables.attach(m.core, RequesterId(0x0200), ContextKind::Stage2, Hpa(), m.root, Machine::kDomain);
  map_pages(m, 1);
  (void)m.latency_of(page(0));
  EXPECT_EQ(m.latency_of(page(0), Access::Read, RequesterId(0x0200)), p.timing.lookup_latency + context_time(p))
      << "the IOTLB is shared by the domain";
  EXPECT_EQ(m.latency_of(page(0)), p.timing.lookup_latency + context_time(p));
}

// Kills: parts of the latency counted twice or dropped, under load.
TEST(IommuUnit, LatencyPartsAddUpForEveryRequest) {
  constexpr std::uint64_t kSeed = 5;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  Rng rng(kSeed);
  IommuParameters p = some();
  p.walkers = 2;
  p.miss_entries = 3;
  p.iotlb = {.entries = 8, .ways = 2};
  MemoryParameters memory = flat_memory();
  memory.outstanding = 1;
  Machine m(p, memory);
  map_pages(m, 64);
  for (int i = 0; i < 500; ++i) {
    while (!m.unit().can_accept()) m.run_to(m.calendar().now() + 10_ns);
    (void)m.submit(page(rng.below(64)));
    m.run_to(m.calendar().now() + Picoseconds(static_cast<std::int64_t>(rng.below(200'000))));
  }
  m.run();
  Picoseconds memory_wait;
  for (std::size_t i = 0; i < 500; ++i) {
    const UnitRequest& r = m.request(i);
    ASSERT_TRUE(m.completed(i));
    ASSERT_EQ(r.split.total(), r.completed - r.arrival);
    ASSERT_GE(r.split.queue, 0_ps);
    memory_wait += r.split.memory;
  }
  EXPECT_GT(memory_wait, 0_ps);
  EXPECT_EQ(m.unit().pending(), 0U);
  const IommuStatistics& s = m.statistics();
  EXPECT_EQ(s.hits + s.misses, s.lookups);
  EXPECT_EQ(s.lookups, 500U);
}

// Mutants killed: a unit that asks tables about interrupt messages; one that asks after the IOTLB.
TEST(IommuUnit, AddressesOfFixedMeaningNeedNoTables) {
  Machine m(some());
  m.core.fixed = AddressRange{page(1).value(), page(1).value() + 0xfff};
  map_pages(m, 2);
  const std::size_t id = m.submit(page(1), Access::Write);
  expect_done_at(m, id, some().timing.lookup_latency);
  EXPECT_EQ(m.address(id), Hpa(page(1).value()));
  EXPECT_EQ(m.statistics().walks, 0U);
  EXPECT_EQ(m.statistics().context_fetches, 0U);
  EXPECT_EQ(m.latency_of(page(0)), some().timing.lookup_latency + context_time(some()) + walk_time(some(), kLevels));
}

struct CountInterrupts final : InterruptSink {
  void raise(const InterruptMessage& message) override { data.push_back(message.data); }
  std::vector<std::uint32_t> data;
};

// Mutants killed: records that stay in the unit; an interrupt before its record is in memory; two writers at once,
// which would write a record twice.
TEST(IommuUnit, EventRecordsReachMemoryBeforeTheirInterrupts) {
  Machine m(some());
  CountInterrupts interrupts;
  m.unit().connect(interrupts);
  m.core.logs_events = true;
  for (std::uint64_t n = 0; n < 3; ++n) (void)m.submit(page(100 + n));
  m.run();
  EXPECT_EQ(m.core.recorded.size(), 3U);
  for (std::uint64_t n = 0; n < 3; ++n) EXPECT_EQ(m.host().read64(Core::kEventLog + Bytes(8 * n)), n + 1);
  EXPECT_EQ(interrupts.data, (std::vector<std::uint32_t>{1, 2, 3}));
  EXPECT_FALSE(m.core.has_events());
}

// Mutant killed: a cached copy that answers a request of another kind, whose rights the walk alone can tell.
TEST(IommuUnit, AtsAndPrivilegedRequestsAreNotAnsweredFromCopiesOfPlainOnes) {
  IommuParameters p = some();
  p.first_level = {.entries = 8};
  Machine m(p);
  map_pages(m, 1);
  m.latency_of(page(0));
  const std::uint64_t walks = m.statistics().walks;
  for (const bool privileged : {true, false}) {
    UnitRequest request;
    request.translation.requester = kNic;
    request.translation.address = page(0);
    request.translation.privileged = privileged;
    if (!privileged) request.translation.type = AddressType::TranslationRequest;
    request.done = [](void*, std::uint64_t) {};
    m.unit().submit(request);
    m.run();
    EXPECT_EQ(request.path, UnitPath::Miss);
  }
  EXPECT_EQ(m.statistics().walks, walks + 2);
}

// A process table that led to a context without stage 1 tags it all the same. Mutant killed: contexts tagged by their
// stage 1 only, which a process-table invalidation then misses.
TEST(TranslationCaches, ProcessInvalidationForgetsAContextWithoutStageOne) {
  IommuStatistics statistics;
  TranslationCaches caches(some(), 1, statistics);
  Context context;
  context.kind = ContextKind::Stage2;
  context.domain = DomainTag(7);
  context.process = AsidTag(3);
  TranslationRequest request;
  request.requester = kNic;
  caches.fill_context(request, context, caches.epoch().contexts);
  ASSERT_NE(caches.find_context(request), nullptr);
  InvalidationScope other{.kind = InvalidationKind::ProcessContext, .domain = DomainTag(7), .asid = AsidTag(4)};
  caches.erase(other);
  EXPECT_NE(caches.find_context(request), nullptr);
  InvalidationScope scope{.kind = InvalidationKind::ProcessContext, .domain = DomainTag(7), .asid = AsidTag(3)};
  caches.erase(scope);
  EXPECT_EQ(caches.find_context(request), nullptr);
}

// Mutant killed: a first-level TLB that keeps what was found through a context which is void.
TEST(TranslationCaches, ProcessInvalidationReachesTheFirstLevelWithoutStageOne) {
  IommuParameters p = some();
  p.first_level = {.entries = 8};
  IommuStatistics statistics;
  TranslationCaches caches(p, 1, statistics);
  Context context;
  context.domain = DomainTag(7);
  context.process = AsidTag(3);
  TranslationRequest request;
  request.requester = kNic;
  caches.fill_port(0, request, context.stage1_tag(), CachedTranslation{}, caches.epoch().ports);
  ASSERT_NE(caches.find_first_level(0, request), nullptr);
  caches.erase({.kind = InvalidationKind::ProcessContext, .domain = DomainTag(7), .asid = AsidTag(3)});
  EXPECT_EQ(caches.find_first_level(0, request), nullptr);
}

}  // namespace
}  // namespace iommu::testing_core
