// SPDX-License-Identifier: Apache-2.0
#include "sim/tlm/invalidation_unit.hpp"

#include <gtest/gtest.h>

#include <set>

#include "sim/base/rng.hpp"
#include "sim/tlm/test_machine.hpp"

namespace iommu::testing_core {
namespace {

Iova page(std::uint64_t n) { return Iova(0x10000000 + n * kPageSize.value()); }
Hpa frame(std::uint64_t n) { return Hpa(0x20000000 + n * kPageSize.value()); }
Picoseconds read_time() { return flat_memory().dram; }
Picoseconds write_time() { return flat_memory().dram; }

// Runs until the status word shows `value`; the time at which it did.
Picoseconds time_of_status(Machine& m, std::uint32_t value) {
  while (m.status_word() != value && m.calendar().step(Picoseconds(INT64_MAX))) {
  }
  EXPECT_EQ(m.status_word(), value);
  return m.calendar().now();
}

// Kills: any step of the queue left out or doubled.
TEST(InvalidationUnit, InvalidationAndFenceTakeExactlyTheirClosedForm) {
  IommuParameters p;
  p.invalidation.scan_entry = 2_ns;
  Machine m(p);
  m.run_to(1_us);
  m.command(kFlushAll);
  m.fence(1);
  m.doorbell();
  const InvalidationTiming& t = p.invalidation;
  const Picoseconds expected = 1_us + t.fetch_start + (read_time() + t.decode) * 2 + t.scan +
                               t.scan_entry * static_cast<std::int64_t>(p.iotlb.entries) + write_time();
  m.run_to(expected - 1_ps);
  EXPECT_EQ(m.status_word(), 0U);
  m.run_to(expected);
  EXPECT_EQ(m.status_word(), 1U);
  EXPECT_EQ(m.statistics().invalidation.commands, 2U);
  EXPECT_EQ(m.statistics().invalidation.bytes, 32U);
  EXPECT_EQ(m.statistics().invalidation.fence_wait.sum(), write_time());
}

// Several queues. Kills: a queue that waits for another's fetch, fence or drain; scans of one unit at the same time.
TEST(InvalidationUnit, QueuesFetchSideBySideAndTakeTurnsAtTheCaches) {
  IommuParameters p;
  Machine m(p);
  const InvalidationTiming& t = p.invalidation;
  for (std::size_t queue = 0; queue < 2; ++queue) {
    m.further_command(queue, kFlushAll);
    m.further_command(queue, kFence | std::uint64_t{1} << 32, (Machine::status() + Bytes(64 * (queue + 1))).value());
  }
  m.further_doorbell(0);
  m.further_doorbell(1);
  const Picoseconds first = t.fetch_start + (read_time() + t.decode) * 2 + t.scan + write_time();
  const auto status = [&](std::size_t queue) { return m.host().read32(Machine::status() + Bytes(64 * (queue + 1))); };
  m.run_to(first - 1_ps);
  EXPECT_EQ(status(0), 0U);
  m.run_to(first);
  EXPECT_EQ(status(0), 1U) << "as if it were alone";
  EXPECT_EQ(m.core.further[0].head, 2U);
  EXPECT_EQ(m.core.further[1].head, 1U) << "its fence has not completed";
  m.run_to(first + t.scan - 1_ps);
  EXPECT_EQ(status(1), 0U);
  m.run_to(first + t.scan);
  EXPECT_EQ(status(1), 1U) << "one scan later, and nothing else";
  EXPECT_EQ(m.core.further[1].head, 2U);
}

// Kills: a fence that also waits for what another queue's later invalidations drain, and so for ever.
TEST(InvalidationUnit, AQueueThatNeverRestsHoldsUpAnothersFenceByOneScanAtATime) {
  IommuParameters p;
  p.iotlb.entries = 0;
  p.timing.walk_start = 3_us;
  Machine m(p);
  for (std::uint64_t n = 0; n < 64; ++n) m.tables.map(m.root, page(n).value(), frame(n).value());
  for (std::uint64_t n = 0; n < 60; ++n) m.further_command(0, kFlushAll);
  m.further_doorbell(0);
  // Requests without end, each of which some flush covers.
  static std::uint64_t next;
  next = 0;
  m.hook = [](Machine& machine, std::uint64_t) {
    if (++next < 400) machine.submit(page(next % 64));
  };
  for (std::uint64_t n = 0; n < 4; ++n) m.submit(page(n));
  m.further_command(1, kFlushAll);
  m.further_command(1, kFence | std::uint64_t{7} << 32, Machine::status().value());
  m.further_doorbell(1);
  while (m.status_word() != 7 && m.calendar().step(Picoseconds(INT64_MAX))) {
  }
  const InvalidationTiming& t = p.invalidation;
  // Two scans of the other queue's at most, and the requests that were under way: one walk, and its queue.
  EXPECT_LT(m.calendar().now(), t.fetch_start + (read_time() + t.decode) * 2 + t.scan * 3 + 10_us + write_time());
  EXPECT_LT(next, 60U) << "requests went on meanwhile, and were not waited for";
  m.hook = nullptr;
}

// Kills: a scan that ignores that one page lies in one set.
TEST(InvalidationUnit, PageScanExaminesOneSet) {
  IommuParameters p;
  p.invalidation.scan_entry = 2_ns;
  Machine m(p);
  m.flush_page(page(0));
  m.fence(1);
  m.doorbell();
  const InvalidationTiming& t = p.invalidation;
  EXPECT_EQ(time_of_status(m, 1), t.fetch_start + (read_time() + t.decode) * 2 + t.scan +
                                      t.scan_entry * static_cast<std::int64_t>(p.iotlb.ways) + write_time());
}

// Kills: burst fetches that cost a read per descriptor, or that use descriptors written after the line was read.
TEST(InvalidationUnit, BurstFetchReadsOneLineForFourDescriptors) {
  IommuParameters p;
  p.invalidation.fetch_bytes = 64_B;
  Machine m(p);
  for (int i = 0; i < 3; ++i) m.flush_page(page(0));
  m.fence(1);
  m.doorbell();
  const InvalidationTiming& t = p.invalidation;
  EXPECT_EQ(time_of_status(m, 1), t.fetch_start + read_time() + t.decode * 4 + t.scan * 3 + write_time());
  EXPECT_EQ(m.statistics().invalidation.bytes, 64U);
}

TEST(InvalidationUnit, DescriptorsWrittenAfterTheLineWasReadAreFetchedAgain) {
  IommuParameters p;
  p.invalidation.fetch_bytes = 64_B;
  Machine m(p);
  m.flush_page(page(0));
  m.doorbell();
  // The line has been read and its first descriptor is being executed; the second slot was empty then.
  m.run_to(p.invalidation.fetch_start + read_time() + p.invalidation.decode);
  m.fence(1);
  m.doorbell();
  m.run();
  EXPECT_EQ(m.status_word(), 1U);
  EXPECT_EQ(m.statistics().invalidation.bytes, 128U);
}

// Kills: keeping a line that was still being read when the doorbell rang. The second descriptor is overwritten between
// the two: what was read of it is not what software meant.
TEST(InvalidationUnit, DoorbellDuringALineFetchVoidsWhatIsFetchedAhead) {
  IommuParameters p;
  p.invalidation.fetch_bytes = 64_B;
  Machine m(p);
  m.flush_page(page(0));
  m.doorbell();
  m.run_to(p.invalidation.fetch_start + 10_ns);
  m.fence(1);
  m.doorbell();
  m.run();
  EXPECT_EQ(m.status_word(), 1U);
  EXPECT_EQ(m.statistics().invalidation.bytes, 128U);
}

// Kills: a first-level TLB, tagged by requester, that keeps serving a requester whose tables were replaced.
TEST(InvalidationUnit, ContextFlushCleansFirstLevelTlbs) {
  IommuParameters p;
  p.first_level = {.entries = 4, .ways = 0};
  Machine m(p);
  m.tables.map(m.root, page(0).value(), frame(0).value());
  (void)m.latency_of(page(0));
  const Hpa other = m.tables.allocate();
  m.tables.map(other, page(0).value(), frame(8).value());
  m.tables.attach(m.core, Machine::kNic, ContextKind::Stage2, Hpa(), other, DomainTag(8));
  m.command(kFlushContext);
  m.doorbell();
  m.run();
  (void)m.latency_of(page(0));
  EXPECT_EQ(m.address(1), frame(8));
}

// Kills: letting a request that came after a context flush join a fetch that read the old context.
TEST(InvalidationUnit, NoRequestJoinsAnOvertakenContextFetch) {
  IommuParameters p;
  p.timing.table_read_issue = 500_ns;
  Machine m(p);
  m.tables.map(m.root, page(0).value(), frame(0).value());
  const std::size_t old = m.submit(page(0));
  m.run_to(p.timing.lookup_latency + p.timing.context_start + 1_us);  // the second device-table read is on its way
  m.command(kFlushContext);
  m.doorbell();
  m.run_to(m.calendar().now() + p.invalidation.fetch_start + read_time() + p.invalidation.decode + p.invalidation.scan);
  ASSERT_EQ(m.statistics().invalidation.commands, 1U);
  ASSERT_EQ(m.statistics().context_fetches, 0U);
  (void)m.submit(page(0));
  m.run();
  EXPECT_EQ(m.address(old), frame(0));
  EXPECT_EQ(m.statistics().context_fetches, 2U);
}

// Kills: erasing when the doorbell rings, or not at all.
TEST(InvalidationUnit, EntryIsUsableUntilTheScanEndsAndGoneThen) {
  IommuParameters p;
  Machine m(p);
  m.tables.map(m.root, page(0).value(), frame(0).value());
  (void)m.latency_of(page(0));
  const Picoseconds rung = m.calendar().now();
  m.flush_page(page(0));
  m.doorbell();
  const InvalidationTiming& t = p.invalidation;
  const Picoseconds gone = rung + t.fetch_start + read_time() + t.decode + t.scan;
  m.run_to(gone - p.timing.lookup_latency - 1_ps);
  const std::size_t before = m.submit(page(0));
  m.run_to(gone);
  const std::size_t after = m.submit(page(0));
  m.run();
  EXPECT_EQ(m.request(before).path, UnitPath::Hit);
  EXPECT_EQ(m.request(after).path, UnitPath::Miss);
  EXPECT_EQ(m.statistics().iotlb.erased, 1U);
}

// Kills: a broad flush that erases nothing, or a page flush that erases other pages; and counting as induced a miss
// whose translation has changed.
TEST(InvalidationUnit, OnlyMissesOnUnchangedTranslationsAreInduced) {
  Machine m;
  for (std::uint64_t n = 0; n < 3; ++n) {
    m.tables.map(m.root, page(n).value(), frame(n).value());
    (void)m.latency_of(page(n));
  }
  m.flush_page(page(1));
  m.doorbell();
  m.run();
  EXPECT_EQ(m.latency_of(page(0)), m.unit().parameters().timing.lookup_latency);
  m.tables.map(m.root, page(2).value(), frame(7).value());
  m.command(kFlushAll);
  m.doorbell();
  m.run();
  for (std::uint64_t n = 0; n < 3; ++n) (void)m.latency_of(page(n));
  EXPECT_EQ(m.statistics().invalidation.induced_misses, 2U) << "pages 0 and 1; page 2 had changed";
  const auto& scopes = m.statistics().invalidation.scopes;
  EXPECT_EQ(scopes[static_cast<std::size_t>(InvalidationClass::IotlbPage)], 1U);
  EXPECT_EQ(scopes[static_cast<std::size_t>(InvalidationClass::IotlbGlobal)], 1U);
}

// Kills: a walk that read the old entry and fills the cache after the invalidation.
TEST(InvalidationUnit, WalkThatBeganBeforeAnInvalidationNeverFillsAfterIt) {
  IommuParameters p;
  p.stage2_walk_cache[0] = {.entries = 4, .ways = 0};
  p.timing.table_read_issue = 200_ns;  // a walk much longer than an invalidation
  Machine m(p);
  m.tables.map(m.root, page(0).value(), frame(0).value());
  m.tables.map(m.root, page(1).value(), frame(1).value());
  (void)m.latency_of(page(1));
  const std::size_t old = m.submit(page(0));
  m.run_to(m.calendar().now() + 100_ns);
  m.flush_page(page(0));
  m.doorbell();
  m.run();
  EXPECT_EQ(m.address(old), frame(0));
  m.tables.map(m.root, page(0).value(), frame(5).value());
  (void)m.latency_of(page(0));
  EXPECT_EQ(m.address(m.order().back()), frame(5));
  EXPECT_GT(m.statistics().iotlb.fills_dropped, 0U);
}

// Kills: a fence that does not wait for walks in flight, or one that lets a late request join an overtaken walk.
TEST(InvalidationUnit, FenceWaitsForTheWalksItCoversAndNoRequestJoinsThem) {
  IommuParameters p;
  p.timing.table_read_issue = 500_ns;
  Machine m(p);
  m.tables.map(m.root, 0, 0);
  (void)m.latency_of(Iova(0));
  m.tables.map(m.root, page(0).value(), frame(0).value());
  const std::size_t old = m.submit(page(0));
  const Picoseconds walking = m.calendar().now() + 100_ns;
  m.run_to(walking);
  m.flush_page(page(0));
  m.fence(1);
  m.doorbell();
  m.run_to(walking + 400_ns);
  ASSERT_EQ(m.statistics().invalidation.fences, 1U);
  const std::size_t late = m.submit(page(0));
  const Picoseconds fenced = time_of_status(m, 1);
  ASSERT_TRUE(m.completed(old));
  EXPECT_EQ(fenced, *m.completed(old) + write_time());
  EXPECT_FALSE(m.completed(late)) << "a later request is none of the fence's business";
  m.run();
  EXPECT_EQ(m.statistics().walks, 3U);
  EXPECT_EQ(m.request(late).path, UnitPath::Miss);
}

// Kills: draining walks that the scope does not cover.
TEST(InvalidationUnit, FenceDoesNotWaitForUnrelatedWalks) {
  IommuParameters p;
  p.timing.table_read_issue = 5_us;
  Machine m(p);
  m.tables.map(m.root, page(0).value(), frame(0).value());
  const std::size_t unrelated = m.submit(page(0));
  m.run_to(100_ns);
  m.flush_page(page(9));
  m.fence(1);
  m.doorbell();
  (void)time_of_status(m, 1);
  EXPECT_FALSE(m.completed(unrelated));
}

// Kills: a context flush that forgets requests still fetching, or walking, with the old context.
TEST(InvalidationUnit, ContextFlushDrainsRequestsWithTheOldContext) {
  IommuParameters p;
  p.timing.table_read_issue = 500_ns;
  Machine m(p);
  m.tables.map(m.root, page(0).value(), frame(0).value());
  const std::size_t old = m.submit(page(0));
  m.run_to(1'300_ns);  // both device-table reads are done: the walk has the context
  const Hpa other = m.tables.allocate();
  m.tables.map(other, page(0).value(), frame(8).value());
  m.tables.attach(m.core, Machine::kNic, ContextKind::Stage2, Hpa(), other, DomainTag(8));
  m.command(kFlushContext);
  m.fence(1);
  m.doorbell();
  const Picoseconds fenced = time_of_status(m, 1);
  ASSERT_TRUE(m.completed(old));
  EXPECT_EQ(m.address(old), frame(0));
  EXPECT_EQ(fenced, *m.completed(old) + write_time());
  (void)m.latency_of(page(0));
  EXPECT_EQ(m.address(1), frame(8));
}

// Kills: a fence signalled while translated DMA is between the unit and memory, or one that waits for DMA that came
// later.
TEST(InvalidationUnit, FenceWaitsForDmaInFlightButNotForLaterDma) {
  for (const DrainPolicy policy : {DrainPolicy::TranslationsAndDma, DrainPolicy::TranslationsOnly}) {
    IommuParameters p;
    p.drain = policy;
    Machine m(p);
    InFlightTracker& dma = m.unit().in_flight();
    const auto early = dma.enter();
    m.flush_page(page(0));
    m.fence(1);
    m.doorbell();
    m.run_to(10_us);
    EXPECT_EQ(m.status_word(), policy == DrainPolicy::TranslationsOnly ? 1U : 0U);
    const auto late = dma.enter();
    dma.leave(early);
    m.run();
    EXPECT_EQ(m.status_word(), 1U);
    dma.leave(late);
  }
}

// Kills: a fence that overtakes device TLBs.
TEST(InvalidationUnit, FenceWaitsForDeviceTlbs) {
  struct Devices : DeviceTlbPort {
    void invalidate(const InvalidationScope&, Calendar::Action d, void* c, std::uint64_t a) override {
      done = d;
      context = c;
      argument = a;
    }
    Calendar::Action done = nullptr;
    void* context = nullptr;
    std::uint64_t argument = 0;
  } devices;
  Machine m;
  m.unit().connect(devices);
  m.command(kFlushDevice);
  m.fence(1);
  m.doorbell();
  m.run();
  EXPECT_EQ(m.status_word(), 0U);
  ASSERT_NE(devices.done, nullptr);
  devices.done(devices.context, devices.argument);
  m.run();
  EXPECT_EQ(m.status_word(), 1U);
}

// Kills: a busy bit that clears before the caches are clean and drained.
TEST(InvalidationUnit, RegisterBasedInvalidationClearsBusyWhenItIsDone) {
  IommuParameters p;
  Machine m(p);
  m.tables.map(m.root, page(0).value(), frame(0).value());
  (void)m.latency_of(page(0));
  const Picoseconds written = m.calendar().now();
  m.unit().registers().poke_register(kFlushNow, 8, 1);
  m.run_to(written + p.invalidation.fetch_start + p.invalidation.scan - 1_ps);
  EXPECT_EQ(m.core.busy, 1U);
  m.run_to(written + p.invalidation.fetch_start + p.invalidation.scan);
  EXPECT_EQ(m.core.busy, 0U);
  EXPECT_EQ(m.statistics().iotlb.erased, 1U);
  EXPECT_EQ(m.statistics().invalidation.register_based, 1U);
}

// Kills: writes that overtake each other, reads that overtake writes.
TEST(MmioTarget, RegistersSeeWritesInOrderAndReadsBehindThem) {
  Machine m;
  MmioTarget& registers = m.unit().registers();
  const MmioParameters& t = registers.parameters();
  registers.write_register(kTail, 8, 0, 50_ns);
  registers.write_register(kEnable, 8, 0);
  m.run_to(t.write_latency + 50_ns - 1_ps);
  EXPECT_TRUE(m.core.is_enabled);
  m.run_to(t.write_latency + 50_ns);
  EXPECT_FALSE(m.core.is_enabled);
  struct Reader {
    static Task<void> read(MmioTarget& target, Calendar& calendar, Picoseconds& when, std::uint64_t& value) {
      value = co_await target.read_register(kFlushNow, 8);
      when = calendar.now();
    }
  };
  m.core.busy = 77;
  Picoseconds when;
  std::uint64_t value = 0;
  const Picoseconds start = m.calendar().now();
  Task<void> reader = Reader::read(registers, m.calendar(), when, value);
  reader.start();
  m.run();
  EXPECT_EQ(value, 77U);
  EXPECT_EQ(when, start + t.read_latency);
}

// The guarantee: after a fence's status write, no request completes with a translation that was removed before it.
// Software here moves a page, flushes it, waits for its fence, and only then calls the old frame free; requests never
// stop. Kills: every way in which an old translation survives (late fill, merge into an overtaken walk, held answers,
// contexts).
class Remapper {
 public:
  Remapper(Machine& m, std::uint64_t seed) : m_(m), rng_(seed) {
    current_ = this;
    m.hook = [](Machine&, std::uint64_t id) { current_->on_done(id); };
    for (std::uint64_t n = 0; n < kPages; ++n) {
      frames_[n] = n;
      m.tables.map(m.root, page(n).value(), frame(n).value());
    }
  }
  void run(int rounds) {
    for (int round = 0; round < rounds; ++round) {
      const std::vector<std::uint64_t> old = rng_.chance(0.3) ? move_all() : move_one();
      const auto value = static_cast<std::uint32_t>(round + 1);
      m_.fence(value);
      m_.doorbell();
      while (m_.status_word() != value) {
        while (m_.unit().can_accept() && rng_.chance(0.6))
          (void)m_.submit(page(rng_.below(kPages)) + Bytes(rng_.below(64) * 64));
        m_.run_to(m_.calendar().now() + Picoseconds(static_cast<std::int64_t>(rng_.below(40'000))));
      }
      freed_.insert(old.begin(), old.end());
    }
    m_.run();
  }
  std::uint64_t answered = 0;
  std::uint64_t stale = 0;

 private:
  static constexpr std::uint64_t kPages = 24;
  std::vector<std::uint64_t> move_one() {
    const std::uint64_t n = rng_.below(kPages);
    const std::uint64_t old = std::exchange(frames_[n], next_frame_++);
    m_.tables.map(m_.root, page(n).value(), frame(frames_[n]).value());
    if (rng_.chance(0.3))
      m_.command(kFlushAll);
    else
      m_.flush_page(page(n));
    return {old};
  }
  // New tables for everything, and the device attached to them: a walk that has begun is wrong from its first read on.
  std::vector<std::uint64_t> move_all() {
    std::vector<std::uint64_t> old(frames_.begin(), frames_.end());
    m_.root = m_.tables.allocate();
    for (std::uint64_t n = 0; n < kPages; ++n) {
      frames_[n] = next_frame_++;
      m_.tables.map(m_.root, page(n).value(), frame(frames_[n]).value());
    }
    m_.tables.attach(m_.core, Machine::kNic, ContextKind::Stage2, Hpa(), m_.root, Machine::kDomain);
    m_.command(kFlushContext);
    m_.command(kFlushAll);
    return old;
  }
  void on_done(std::uint64_t id) {
    ++answered;
    const auto target = m_.address(id);
    if (!target) {
      ++stale;  // every page is always mapped
      return;
    }
    const std::uint64_t n = (target->value() - frame(0).value()) >> kPageLg2;
    stale += freed_.count(n);
  }
  inline static Remapper* current_ = nullptr;
  Machine& m_;
  Rng rng_;
  std::array<std::uint64_t, kPages> frames_{};
  std::uint64_t next_frame_ = kPages;
  std::set<std::uint64_t> freed_;
};

TEST(InvalidationUnit, NothingOldIsDeliveredAfterItsFence) {
  for (const Ordering ordering : {Ordering::OutOfOrder, Ordering::InOrder}) {
    for (std::uint64_t seed = 1; seed <= 6; ++seed) {
      SCOPED_TRACE(testing::Message() << "seed " << seed << " ordering " << static_cast<int>(ordering));
      IommuParameters p;
      p.ordering = ordering;
      p.hit_under_miss = seed % 3 == 0 ? 1 : ~0U;
      p.walkers = 3;
      p.miss_entries = 6;
      p.iotlb = {.entries = 16, .ways = 4};
      p.stage2_walk_cache[0] = {.entries = 4, .ways = 0};
      p.timing.table_read_issue = seed % 2 == 0 ? 0_ps : 60_ns;
      if (seed > 3) p.first_level = {.entries = 4, .ways = 0};
      Machine m(p);
      Remapper software(m, seed);
      software.run(150);
      EXPECT_GT(software.answered, 1000U);
      EXPECT_EQ(software.stale, 0U);
    }
  }
}

}  // namespace
}  // namespace iommu::testing_core
