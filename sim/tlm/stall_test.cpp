// SPDX-License-Identifier: Apache-2.0
// Faults that wait for software, with the cores, tables and commands of every family that has them.
#include <gtest/gtest.h>

#include "sim/tlm/family_unit_test_support.hpp"

namespace iommu::test {
namespace {

constexpr std::uint64_t kMapped = 0x4000'0000;
constexpr std::uint64_t kMissing = 0x4000'8000;  // the first of many pages that nobody mapped
constexpr std::uint64_t kFrames = 0x1'0000'0000;

constexpr std::uint64_t missing(std::uint64_t n) { return kMissing + n * kPageSize.value(); }

DriverOptions stalling() {
  DriverOptions o;
  o.stage1 = true;
  o.features.stall = true;
  return o;
}

// Two devices of one address space in which kMapped is mapped.
class StallUnit : public FamilyUnit {
 public:
  explicit StallUnit(const FamilyDescriptor& family, const IommuParameters& parameters = {})
      : FamilyUnit(family, stalling(), parameters), space_(driver->create_table(TableKind::Stage1, tables)) {
    const ContextSetting setting{.kind = ContextKind::Stage1, .domain = DomainTag(7), .stage1 = space_->root()};
    for (const RequesterId device : {kNic, kDisk})
      EXPECT_EQ(driver->attach(device, setting, tables).status, EditStatus::Ok);
    map(kMapped);
    run();
  }
  void map(std::uint64_t page) {
    EXPECT_EQ(space_->map({.input = page, .output = kFrames + page}).status, EditStatus::Ok);
  }
  // Stalls, and has been recorded.
  std::size_t stall(std::uint64_t address, RequesterId requester = kNic) {
    const std::size_t id = submit(address, requester);
    run();
    EXPECT_FALSE(is_done(id));
    return id;
  }
  // Stalls at one page after another until a record finds the queue full; how many that took.
  std::uint64_t fill_record_queue() {
    std::uint64_t count = 0;
    for (std::uint64_t before = ~0ULL; writes(AccessKind::Event) != before; ++count) {
      before = writes(AccessKind::Event);
      (void)stall(missing(count));
    }
    return count;
  }
  void wait(Picoseconds time) { calendar.skip_to(calendar.now() + time); }
  void resume(std::size_t id, StallResolution::Action action, Termination termination = Termination::Abort) {
    resolve({.requester = request(id).translation.requester,
             .tag = fault(id)->stall,
             .action = action,
             .termination = termination});
    run();
  }
  void invalidate_all_and_fence(std::uint32_t value) {
    invalidate({.kind = InvalidationKind::Iotlb});
    fence(value);
    ring_doorbell();
  }
  void invalidate_page_and_fence(std::uint64_t page, std::uint32_t value) {
    invalidate({.kind = InvalidationKind::Iotlb,
                .domain = DomainTag(7),
                .range = AddressRange{page, page + kPageSize.value() - 1},
                .stage1_only = true});
    fence(value);
    ring_doorbell();
    run();
    EXPECT_EQ(status(), value);
  }
  [[nodiscard]] const StallCounts& counts() const { return unit.statistics().stalls; }

 private:
  std::unique_ptr<PageTable> space_;
};

class Stall : public testing::TestWithParam<const FamilyDescriptor*> {
 protected:
  static constexpr auto kRetry = StallResolution::Action::Retry;
  static constexpr auto kTerminate = StallResolution::Action::Terminate;
};

std::vector<const FamilyDescriptor*> families_that_stall() {
  std::vector<const FamilyDescriptor*> all;
  for (const FamilyDescriptor* family : families())
    if (family->make_driver(stalling())->encode(StallResolution{.requester = FamilyUnit::kNic})) all.push_back(family);
  return all;
}
INSTANTIATE_TEST_SUITE_P(Families, Stall, testing::ValuesIn(families_that_stall()),
                         [](const auto& info) { return std::string(info.param->name); });

// Kills: a stalled transaction that is answered at once, that is not recorded, whose retry uses what was found before,
// and time that is lost from or counted twice in the split.
TEST_P(Stall, RetriedTransactionIsTranslatedAnew) {
  StallUnit u(*GetParam());
  const std::size_t id = u.stall(kMissing);
  EXPECT_EQ(u.writes(AccessKind::Event), 1U);
  EXPECT_EQ(u.unit.pending(), 1U);
  u.wait(10_us);
  u.resume(id, kRetry);
  EXPECT_FALSE(u.is_done(id)) << "nothing has changed: it stalls again";
  EXPECT_EQ(u.writes(AccessKind::Event), 2U);
  u.map(kMissing);
  u.resume(id, kRetry);
  EXPECT_EQ(u.address(id), Hpa(kFrames + kMissing));
  const UnitRequest& r = u.request(id);
  EXPECT_EQ(r.split.total(), r.completed - r.arrival);
  EXPECT_GT(r.split.stalled, 10_us) << "both times";
  EXPECT_EQ(r.path, UnitPath::Miss);
  const std::size_t again = u.stall(missing(1));
  u.map(missing(1));
  (void)u.submit(missing(1), u.kDisk);
  u.run();
  u.resume(again, kRetry);
  EXPECT_EQ(u.request(again).path, UnitPath::Hit) << "by what the other brought";
  EXPECT_EQ(u.counts().wait.count(), 2U);
  EXPECT_EQ(u.counts().held, 3U);
  EXPECT_EQ(u.counts().retried, 3U);
  EXPECT_EQ(u.unit.pending(), 0U);
  EXPECT_EQ(u.unit.statistics().faulted, 0U);
}

// Kills: a termination that is recorded once more, or that ends otherwise than software said.
TEST_P(Stall, TerminatedTransactionEndsAsSoftwareSays) {
  StallUnit u(*GetParam());
  for (const Termination how : {Termination::Abort, Termination::ReadsZero}) {
    const std::size_t id = u.stall(kMissing);
    u.wait(10_us);
    u.resume(id, kRetry);
    const std::uint64_t recorded = u.writes(AccessKind::Event);
    u.resume(id, kTerminate, how);
    ASSERT_TRUE(u.is_done(id));
    EXPECT_GT(u.request(id).split.stalled, 10_us);
    EXPECT_EQ(u.fault(id)->termination, how);
    EXPECT_FALSE(u.fault(id)->stall);
    EXPECT_EQ(u.writes(AccessKind::Event), recorded);
  }
  EXPECT_EQ(u.unit.statistics().faulted, 2U);
}

// Kills: a command for one requester that ends another's transactions, or not all.
TEST_P(Stall, AllTransactionsOfOneRequesterCanBeEnded) {
  StallUnit u(*GetParam());
  const std::size_t first = u.stall(missing(0));
  const std::size_t second = u.stall(missing(1));
  const std::size_t other = u.stall(missing(2), u.kDisk);
  u.resolve({.requester = u.kNic});
  u.run();
  EXPECT_TRUE(u.is_done(first) && u.is_done(second));
  EXPECT_FALSE(u.is_done(other));
  EXPECT_EQ(u.counts().terminated, 2U);
}

// Kills: a stalled transaction in whose queue others wait: for their order, for their turn to overtake a miss.
TEST_P(Stall, OthersPassAStalledTransaction) {
  for (const Ordering ordering : {Ordering::InOrder, Ordering::OutOfOrder}) {
    IommuParameters p;
    p.ordering = ordering;
    p.hit_under_miss = 0;
    p.miss_entries = 1;
    p.request_queue = 2;
    StallUnit u(*GetParam(), p);
    (void)u.submit(kMapped);
    u.run();
    const std::size_t stalled = u.submit(kMissing);
    const std::size_t behind = u.submit(kMapped);
    u.run();
    EXPECT_FALSE(u.is_done(stalled));
    EXPECT_TRUE(u.is_done(behind));
    for (std::uint64_t n = 0; n < 5; ++n) EXPECT_TRUE(u.unit.can_accept()), (void)u.stall(missing(n));
    u.map(kMissing);
    u.resume(stalled, kRetry);
    EXPECT_TRUE(u.is_done(stalled));
  }
}

// Kills: a fence that waits for software's decision; one that is signalled before the record of a stall is in memory.
TEST_P(Stall, FencePassesStalledTransactionsButNotTheirRecords) {
  StallUnit u(*GetParam());
  (void)u.submit(kMapped);  // the context is known: the walk begins before the invalidation takes effect
  u.run();
  const std::size_t walking = u.submit(kMissing);
  u.invalidate_all_and_fence(1);
  while (u.status() == 0 && u.calendar.step(Picoseconds(INT64_MAX))) {
  }
  EXPECT_EQ(u.status(), 1U);
  EXPECT_FALSE(u.is_done(walking));
  EXPECT_EQ(u.writes(AccessKind::Event), 1U);
  u.run();
  EXPECT_FALSE(u.is_done(walking)) << "software knows of it and decides";
}

// The invalidation takes effect while the walk is under way; the fault's record then finds the queue full. Kills: a
// stall that rests for good on what a fence has declared gone, because only what came after it outdates it.
TEST_P(Stall, AnInvalidationDuringTheWalkOutdatesItsStall) {
  IommuParameters slow;
  slow.timing.table_read_issue = 10_us;
  StallUnit u(*GetParam(), slow);
  const std::uint64_t count = u.fill_record_queue();
  const std::uint64_t held = u.counts().held;
  const std::size_t walking = u.submit(missing(count));
  u.calendar.run_until(u.calendar.now() + slow.timing.table_read_issue);
  u.invalidate_all_and_fence(1);
  u.calendar.run_until(u.calendar.now() + slow.timing.table_read_issue);
  const auto global = static_cast<std::size_t>(InvalidationClass::IotlbGlobal);
  ASSERT_EQ(u.unit.statistics().invalidation.scopes[global], 1U);
  ASSERT_EQ(u.counts().held, held) << "the walk reads on";
  while (u.counts().held == held) ASSERT_TRUE(u.calendar.step(Picoseconds(INT64_MAX)));
  ASSERT_EQ(u.status(), 0U);
  u.map(missing(count));
  u.run();
  EXPECT_EQ(u.status(), 1U);
  EXPECT_EQ(u.address(walking), Hpa(kFrames + missing(count)));
}

// More stalls than the record queue holds. Kills: a record written after a fence that rests on tables invalidated
// before it; a transaction that is retried although software knows of it; a retried one that is forgotten.
TEST_P(Stall, UnrecordedStallsAreTranslatedAnewAfterInvalidationAndFence) {
  StallUnit u(*GetParam());
  const std::uint64_t count = u.fill_record_queue();
  const std::uint64_t recorded = u.writes(AccessKind::Event);
  ASSERT_EQ(recorded, count - 1) << "the last one found the queue full";
  for (std::uint64_t n = 0; n < count; ++n) u.map(missing(n));
  u.invalidate_all_and_fence(1);
  u.run();
  EXPECT_EQ(u.status(), 1U);
  EXPECT_EQ(u.address(count - 1), Hpa(kFrames + missing(count - 1)));
  EXPECT_FALSE(u.is_done(0));
  EXPECT_EQ(u.writes(AccessKind::Event), recorded);
}

// Kills: a transaction beyond the limit that is recorded, terminated or forgotten; a free tag for which somebody waits.
TEST_P(Stall, MoreThanTheUnitCanNameWaitForATag) {
  StallUnit u(*GetParam());
  std::vector<std::size_t> ids;
  while (u.counts().deferred < 3) ids.push_back(u.stall(missing(ids.size())));
  const std::size_t named = ids.size() - 3;
  EXPECT_EQ(u.counts().held, named);
  u.resume(ids[0], kTerminate);
  EXPECT_EQ(u.counts().held, named + 1) << "one tag, one more stall";
  EXPECT_TRUE(u.fault(ids[named])->stall);
  // The others need no tag once their pages are there: the first passes the free one on.
  u.map(missing(named + 1));
  u.map(missing(named + 2));
  u.resume(ids[1], kTerminate);
  EXPECT_TRUE(u.address(ids[named + 1]) && u.address(ids[named + 2]));
  EXPECT_EQ(u.counts().held, named + 1);
  EXPECT_EQ(u.counts().deferred, 3U) << "nobody was woken for nothing";
}

// Kills: a tag that a retried transaction gives back and nobody gets; who waits for a tag woken by one that is not
// free, or let past those who have waited longer; waiting ones that end with a tag still to come.
TEST_P(Stall, TagsPassInOrderToWhoWaits) {
  StallUnit u(*GetParam());
  std::vector<std::size_t> ids;
  while (u.counts().deferred < 3) ids.push_back(u.stall(missing(ids.size())));
  const std::size_t named = ids.size() - 3;
  const auto has_tag = [&](std::size_t n) { return u.fault(ids[n])->stall.has_value(); };
  u.resume(ids[0], kRetry);
  EXPECT_TRUE(has_tag(0)) << "it stalls again, under the tag that it gave back";
  EXPECT_EQ(u.counts().deferred, 3U);
  u.map(missing(0));
  u.resume(ids[0], kRetry);
  EXPECT_TRUE(u.address(ids[0]));
  EXPECT_TRUE(has_tag(named) && !has_tag(named + 1) && !has_tag(named + 2));
  EXPECT_EQ(u.counts().deferred, 3U);
  // One that had waited gives its tag on as any other.
  u.resume(ids[named], kTerminate);
  EXPECT_TRUE(has_tag(named + 1) && !has_tag(named + 2));
  EXPECT_EQ(u.counts().deferred, 3U);
  // All end, those without a tag too, and nobody is woken by what had none to give.
  const std::size_t other = u.stall(missing(ids.size()), u.kDisk);
  EXPECT_EQ(u.counts().deferred, 4U);
  u.resolve({.requester = u.kNic});
  u.run();
  EXPECT_TRUE(u.is_done(ids[named + 2]));
  EXPECT_FALSE(u.fault(ids[named + 2])->awaits_stall);
  EXPECT_FALSE(u.is_done(other));
  EXPECT_TRUE(u.fault(other)->stall);
  EXPECT_EQ(u.counts().deferred, 4U);
  u.resolve({.requester = u.kDisk});
  u.run();
  EXPECT_EQ(u.unit.pending(), 0U);
  EXPECT_EQ(u.unit.waits_for(), "");
}

// Kills: one that was woken, and came too late for the tag, put behind those that have waited less.
TEST_P(Stall, WhoWasWokenForNothingIsTheNextAgain) {
  IommuParameters slow;
  slow.timing.table_read_issue = 10_us;
  StallUnit u(*GetParam(), slow);
  std::vector<std::size_t> ids;
  while (u.counts().deferred < 2) ids.push_back(u.stall(missing(ids.size())));
  const std::size_t woken = ids.size() - 2, last = ids.size() - 1;
  const std::size_t quicker = u.submit(missing(ids.size()));
  u.calendar.run_until(u.calendar.now() + slow.timing.table_read_issue * 2);
  u.resume(ids[0], kTerminate);
  EXPECT_TRUE(u.fault(quicker)->stall) << "its walk had begun before";
  EXPECT_FALSE(u.fault(ids[woken])->stall);
  u.resume(ids[1], kTerminate);
  EXPECT_TRUE(u.fault(ids[woken])->stall);
  EXPECT_FALSE(u.fault(ids[last])->stall);
}

// Kills: a tag that an invalidation takes back and that nobody gets.
TEST_P(Stall, ATagThatIsTakenBackGoesToWhoWaits) {
  StallUnit u(*GetParam());
  std::vector<std::size_t> ids;
  while (u.counts().deferred < 1) ids.push_back(u.stall(missing(ids.size())));
  const std::size_t unrecorded = ids.size() - 2;
  ASSERT_LT(u.writes(AccessKind::Event), ids.size() - 1) << "the queue is smaller than the tags are many";
  u.map(missing(unrecorded));
  u.invalidate_page_and_fence(missing(unrecorded), 1);
  EXPECT_EQ(u.address(ids[unrecorded]), Hpa(kFrames + missing(unrecorded)));
  EXPECT_TRUE(u.fault(ids.back())->stall);
}

IommuParameters one_slot() {
  IommuParameters p;
  p.port_tlb = {.entries = 8, .ways = 0};
  p.timing.message_latency = 8_ns;
  p.translation_slots = 1;
  return p;
}

// A stalled transaction keeps its translation slot. Kills: a slot that is lost, freed twice or handed on by nobody,
// however the stall ends; followers that wait for a decision on another's fault.
TEST_P(Stall, SlotsAreKeptAndGivenBack) {
  {
    IommuParameters p = one_slot();
    p.translation_slots = 2;
    StallUnit u(*GetParam(), p);
    (void)u.submit(kMissing);
    (void)u.submit(kMissing);
    u.run();
    EXPECT_EQ(u.counts().held, 2U) << "the follower took the free slot";
  }
  for (const auto end : {kRetry, kTerminate}) {
    StallUnit u(*GetParam(), one_slot());
    const std::size_t stalled = u.submit(kMissing);
    const std::size_t follower = u.submit(kMissing);
    u.run();
    EXPECT_EQ(u.unit.statistics().slot_merges, 1U);
    const std::size_t behind = u.submit(kMapped);
    u.run();
    EXPECT_FALSE(u.is_done(stalled) || u.is_done(follower) || u.is_done(behind));
    EXPECT_EQ(u.counts().held, 1U) << "the follower waits for the slot, no longer for the answer";
    u.map(kMissing);
    u.resume(stalled, end);
    EXPECT_TRUE(u.is_done(stalled));
    EXPECT_EQ(u.address(stalled).has_value(), end == kRetry);
    EXPECT_EQ(u.address(follower), Hpa(kFrames + kMissing));
    EXPECT_EQ(u.address(behind), Hpa(kFrames + kMapped));
    for (std::uint64_t n = 1; n < 4; ++n) {
      u.map(missing(n));
      const std::size_t later = u.submit(missing(n));
      u.run();
      EXPECT_EQ(u.address(later), Hpa(kFrames + missing(n)));
    }
    EXPECT_EQ(u.unit.pending(), 0U);
  }
}

// Kills: an invalidation of other pages that takes back a stall which does not rest on them.
TEST_P(Stall, OnlyStallsThatRestOnWhatWasInvalidatedAreTakenBack) {
  StallUnit u(*GetParam());
  const std::uint64_t count = u.fill_record_queue();
  const std::uint64_t last = missing(count - 1);
  u.map(last);
  u.invalidate_page_and_fence(kMapped, 1);
  EXPECT_FALSE(u.is_done(count - 1));
  EXPECT_EQ(u.counts().held, count);
  u.invalidate_page_and_fence(last, 2);
  EXPECT_EQ(u.address(count - 1), Hpa(kFrames + last));
}

// Kills: transactions that outlive the unit's being switched off.
TEST_P(Stall, SwitchingOffEndsWhatIsStalled) {
  StallUnit u(*GetParam());
  const std::size_t id = u.stall(kMissing);
  u.switch_off();
  u.run();
  EXPECT_TRUE(u.is_done(id));
  EXPECT_EQ(u.unit.waits_for(), "");
}

// Kills: a run that ends without saying for whom.
TEST_P(Stall, UnansweredTransactionIsNamedByTheUnit) {
  StallUnit u(*GetParam());
  EXPECT_EQ(u.unit.waits_for(), "");
  (void)u.stall(kMissing);
  (void)u.stall(missing(1), u.kDisk);
  EXPECT_TRUE(u.unit.waits_for().starts_with("2 stalled, the oldest of 03:00.0 at 0x40008000 since "))
      << u.unit.waits_for();
}

// Kills: a fault without time, which nobody holds, that keeps a tag for good.
TEST_P(Stall, FaultThatNobodyHoldsKeepsNoTag) {
  StallUnit u(*GetParam());
  ImmediateMemoryPort port(u.host);
  const TranslationResponse response =
      u.core->translate({.requester = u.kNic, .pasid = {}, .address = Iova(kMissing)}, port).run();
  const Fault fault = std::get<Fault>(response);
  ASSERT_TRUE(fault.stall);
  u.unit.record(fault);
  u.run();
  EXPECT_EQ(u.writes(AccessKind::Event), 1U);
  EXPECT_FALSE(u.core->withdraw_stall(*fault.stall));
  EXPECT_EQ(u.fault(u.stall(kMissing))->stall.has_value(), true);
}

// Page requests -----------------------------------------------------------------------------------------------------

// Kills: an answer that is lost on its way to the device, the unit's own or software's.
TEST(PageRequests, AnswersReachTheDevice) {
  struct Devices : DeviceTlbPort {
    void invalidate(const InvalidationScope&, Calendar::Action done, void* context, std::uint64_t argument) override {
      done(context, argument);
    }
    void respond(const PageRequestResponse& response) override { responses.push_back(response); }
    std::vector<PageRequestResponse> responses;
  };
  for (const FamilyDescriptor* family : families()) {
    Devices devices;
    FamilyUnit u(*family, {}, {});
    u.unit.connect(devices);
    u.unit.request_page({.requester = u.kNic, .page = Iova(kMissing), .group = 5});
    u.run();
    ASSERT_EQ(devices.responses.size(), 1U) << family->name << ": page requests are not enabled";
    EXPECT_EQ(devices.responses[0].code, PageRequestResponse::Code::Failure);
    EXPECT_EQ(devices.responses[0].group, 5U);
    EXPECT_EQ(u.unit.statistics().invalidation.page_responses, 1U);
  }
}

}  // namespace
}  // namespace iommu::test
