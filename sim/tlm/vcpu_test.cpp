// SPDX-License-Identifier: Apache-2.0
#include "sim/tlm/vcpu.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "sim/base/task.hpp"

namespace iommu {
namespace {

constexpr Picoseconds kHandover = 100_ns;
constexpr Picoseconds kFree = 20_ns;
constexpr Picoseconds kPoll = 70_ns;
constexpr Picoseconds kWork = 500_ns;
constexpr Hpa kWord{0x1000};

class VcpuTest : public testing::Test {
 protected:
  VcpuTest() {
    costs_[CostId::LockHandover].time = kHandover;
    costs_[CostId::LockUncontended].time = kFree;
    costs_[CostId::FencePoll].time = kPoll;
    costs_[CostId::StackWork].time = kWork;
    costs_[CostId::TableWrite].time = 7_ns;
  }
  ~VcpuTest() override { calendar_.clear(); }
  void spawn(Task<void> task) {
    tasks_.push_back(std::move(task));
    tasks_.back().start();
  }
  void run() { calendar_.run_until(1_ms); }
  void run_to(Picoseconds t) {
    calendar_.run_until(t);
    if (calendar_.now() < t) calendar_.skip_to(t);
  }

  Calendar calendar_;
  HostMemory memory_{1_MiB};
  CostTable costs_;
  Vcpus vcpus_{calendar_, memory_, costs_};
  std::vector<Picoseconds> marks_;
  std::vector<int> order_;
  std::vector<Task<void>> tasks_;  // destroyed before what they are parked in

  Task<void> charge(CpuPort& cpu, CostId row, std::uint64_t times) {
    co_await cpu.charge(row, times);
    marks_.push_back(cpu.now());
  }
  Task<void> critical_sections(CpuPort& cpu, SpinLock& lock, int rounds, int name) {
    for (int i = 0; i < rounds; ++i) {
      co_await cpu.acquire(lock);
      order_.push_back(name);
      co_await cpu.charge(CostId::StackWork);
      cpu.release(lock);
      marks_.push_back(cpu.now());
    }
  }
  Task<void> poll(CpuPort& cpu, std::uint32_t value) {
    co_await cpu.poll(kWord, value);
    marks_.push_back(cpu.now());
  }
  Task<void> idle(CpuPort& cpu, Signal& signal) {
    co_await cpu.idle(signal);
    marks_.push_back(cpu.now());
  }
  Task<void> sleep(CpuPort& cpu, Picoseconds until) {
    co_await cpu.sleep_until(until);
    marks_.push_back(cpu.now());
  }
};

// Mutant killed: charging the row once whatever `times` says.
TEST_F(VcpuTest, ChargeTakesTimesRowsAndCountsThem) {
  Vcpu& cpu = vcpus_.add();
  spawn(charge(cpu, CostId::TableWrite, 3));
  run_to(20'999_ps);
  EXPECT_TRUE(marks_.empty());
  run();
  EXPECT_EQ(marks_, std::vector{21_ns});
  EXPECT_EQ(cpu.counts()[CostId::TableWrite], 3U);
  EXPECT_EQ(cpu.times().busy(), 21_ns);
  EXPECT_DOUBLE_EQ(cycles(cpu.times().busy(), 2'000'000'000), 42.0);
}

// Mutant killed: parking for work that costs nothing.
TEST_F(VcpuTest, ChargeOfNothingDoesNotPark) {
  Vcpu& cpu = vcpus_.add();
  spawn(charge(cpu, CostId::TableWrite, 0));
  EXPECT_TRUE(tasks_[0].done());
}

// Mutants killed: no cost for a free lock; counting an uncontended acquisition as contended.
TEST_F(VcpuTest, FreeLockCostsItsRow) {
  Vcpu& cpu = vcpus_.add();
  SpinLock lock("l");
  spawn(critical_sections(cpu, lock, 1, 0));
  run();
  EXPECT_EQ(marks_, std::vector{kFree + kWork});
  EXPECT_EQ(lock.acquisitions, 1U);
  EXPECT_EQ(lock.contended, 0U);
  EXPECT_FALSE(lock.held);
}

// Mutants killed: freeing the lock before the hand-over; a hand-over without cost; spinning that leaves the vCPU idle.
TEST_F(VcpuTest, SecondVcpuSpinsForTheHoldersTimeAndTheHandover) {
  Vcpu& a = vcpus_.add();
  Vcpu& b = vcpus_.add();
  SpinLock lock("l");
  spawn(critical_sections(a, lock, 1, 0));
  spawn(critical_sections(b, lock, 1, 1));
  run();
  EXPECT_EQ(marks_, (std::vector{kFree + kWork, kFree + kWork + kHandover + kWork}));
  EXPECT_EQ(b.times().spinning, kFree + kWork + kHandover);
  EXPECT_EQ(lock.spin_time, b.times().spinning);
  EXPECT_EQ(b.counts()[CostId::LockHandover], 1U);
  EXPECT_EQ(b.counts()[CostId::LockUncontended], 0U);
}

// Mutants killed: LIFO or random hand-over (order), a barging lock (the releaser takes it again at once).
TEST_F(VcpuTest, ConvoyPassesOneCriticalSectionPerHoldAndHandoverInFifoOrder) {
  SpinLock lock("l");
  constexpr int kCpus = 5;
  constexpr int kRounds = 20;
  for (int i = 0; i < kCpus; ++i) spawn(critical_sections(vcpus_.add(), lock, kRounds, i));
  run();
  ASSERT_EQ(marks_.size(), std::size_t{kCpus * kRounds});
  for (std::size_t i = 1; i < marks_.size(); ++i) EXPECT_EQ(marks_[i] - marks_[i - 1], kWork + kHandover);
  for (std::size_t i = 0; i < order_.size(); ++i) EXPECT_EQ(order_[i], static_cast<int>(i % kCpus));
}

// Mutants killed: waking on any write to the word; not counting the poll as busy time; FencePoll not charged.
TEST_F(VcpuTest, PollEndsAFencePollAfterTheWriteOfTheValue) {
  Vcpu& cpu = vcpus_.add();
  spawn(poll(cpu, 2));
  run_to(300_ns);
  memory_.write32(kWord, 1);
  run_to(900_ns);
  EXPECT_TRUE(marks_.empty());
  EXPECT_EQ(cpu.times().polling, 900_ns);
  memory_.write32(kWord, 2);
  run_to(900_ns + kPoll - 1_ps);
  EXPECT_TRUE(marks_.empty());
  run();
  EXPECT_EQ(marks_, std::vector{900_ns + kPoll});
  EXPECT_EQ(cpu.times().charged, kPoll);
}

// Mutant killed: waiting for a write although the word has the value.
TEST_F(VcpuTest, PollOfAValueThatIsThereCostsOneFencePoll) {
  memory_.write32(kWord, 2);
  spawn(poll(vcpus_.add(), 2));
  run();
  EXPECT_EQ(marks_, std::vector{kPoll});
}

// Mutant killed: one watcher per word, so that the second poll replaces the first.
TEST_F(VcpuTest, TwoVcpusPollTheSameWordForDifferentValues) {
  spawn(poll(vcpus_.add(), 1));
  spawn(poll(vcpus_.add(), 2));
  run_to(100_ns);
  memory_.write32(kWord, 1);
  run_to(200_ns);
  memory_.write32(kWord, 2);
  run();
  EXPECT_EQ(marks_, (std::vector{100_ns + kPoll, 200_ns + kPoll}));
}

// Mutants killed: idle time counted as busy; a raise that wakes every sleeper.
TEST_F(VcpuTest, SignalWakesTheLongestSleeperAndIdlingIsNotBusy) {
  Vcpu& a = vcpus_.add();
  Vcpu& b = vcpus_.add();
  Signal signal;
  spawn(idle(a, signal));
  spawn(idle(b, signal));
  run_to(400_ns);
  vcpus_.raise(signal);
  run();
  EXPECT_EQ(marks_, std::vector{400_ns});
  EXPECT_TRUE(tasks_[0].done());
  EXPECT_FALSE(tasks_[1].done());
  EXPECT_EQ(a.times().busy(), Picoseconds(0));
  EXPECT_EQ(b.waits_for(), "a signal");
}

// Mutants killed: losing a raise without a sleeper; remembering more than one.
TEST_F(VcpuTest, SignalRaisedWithoutSleeperIsRememberedOnce) {
  Vcpu& cpu = vcpus_.add();
  Signal signal;
  vcpus_.raise(signal);
  vcpus_.raise(signal);
  spawn(idle(cpu, signal));
  EXPECT_TRUE(tasks_[0].done());
  spawn(idle(cpu, signal));
  run();
  EXPECT_FALSE(tasks_[1].done());
}

// Mutant killed: sleeping for a duration instead of until a time.
TEST_F(VcpuTest, SleepEndsAtItsTimeAndThePastDoesNotPark) {
  Vcpu& cpu = vcpus_.add();
  run_to(100_ns);
  spawn(sleep(cpu, 50_ns));
  EXPECT_TRUE(tasks_[0].done());
  spawn(sleep(cpu, 250_ns));
  run();
  EXPECT_EQ(marks_, (std::vector{100_ns, 250_ns}));
}

// Mutant killed: two charges of one vCPU running at the same time.
TEST_F(VcpuTest, TwoTasksOfOneVcpuAreChargedOneAfterTheOther) {
  Vcpu& cpu = vcpus_.add();
  spawn(charge(cpu, CostId::StackWork, 1));
  spawn(charge(cpu, CostId::StackWork, 1));
  run();
  EXPECT_EQ(marks_, (std::vector{kWork, kWork + kWork}));
  EXPECT_EQ(cpu.times().busy(), kWork + kWork);
}

// Mutants killed: a spinning task that keeps the holder on the same vCPU from running (deadlock); busy beyond wall
// time.
TEST_F(VcpuTest, TaskThatSpinsForALockHeldOnItsOwnVcpuDoesNotLockItOut) {
  Vcpu& cpu = vcpus_.add();
  SpinLock lock("l");
  spawn(critical_sections(cpu, lock, 2, 0));
  spawn(critical_sections(cpu, lock, 2, 1));
  run();
  EXPECT_EQ(order_, (std::vector{0, 1, 0, 1}));
  EXPECT_EQ(cpu.times().busy(), calendar_.now());
}

// Mutants killed: a dangling watcher in host memory; a calendar event that resumes a destroyed task (under ASan).
TEST_F(VcpuTest, DestroyingParkedTasksIsClean) {
  SpinLock lock("l");
  Signal signal;
  {
    Calendar calendar;
    Vcpus vcpus(calendar, memory_, costs_);
    std::vector<Task<void>> tasks;
    tasks.push_back(critical_sections(vcpus.add(), lock, 1, 0));
    tasks.push_back(critical_sections(vcpus.add(), lock, 1, 1));
    tasks.push_back(poll(vcpus.add(), 1));
    tasks.push_back(idle(vcpus.add(), signal));
    tasks.push_back(sleep(vcpus.add(), 1_us));
    for (auto& task : tasks) task.start();
    calendar.run_until(100_ns);
    EXPECT_EQ(vcpus.vcpus()[1]->waits_for(), "lock l");
    EXPECT_EQ(vcpus.vcpus()[2]->waits_for(), "word 0x1000 = 1");
    calendar.clear();
  }
  memory_.write32(kWord, 1);
  EXPECT_TRUE(marks_.empty());
}

// Mutant killed: reset_statistics() that forgets the poll in progress or counts its past.
TEST_F(VcpuTest, ResetStartsTheAccountInTheMiddleOfAWait) {
  Vcpu& cpu = vcpus_.add();
  spawn(poll(cpu, 1));
  run_to(300_ns);
  cpu.reset_statistics();
  run_to(500_ns);
  EXPECT_EQ(cpu.times().polling, 200_ns);
}

}  // namespace
}  // namespace iommu
