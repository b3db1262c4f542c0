// SPDX-License-Identifier: Apache-2.0
// Lazy unmapping in time: the flush timer, and flushes that overlap one another and the unmaps of other tasks.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "sim/guest/dma_api.hpp"
#include "sim/guest/guest_test_support.hpp"

namespace iommu::guest {
namespace {

using test::Call;
using test::kDevice;
using test::Observer;
using test::ScriptedSpace;
using test::SleepingCpu;
using test::What;

constexpr Gpa kBuffer{0x40000000};

class TimedDmaApiTest : public testing::Test {
 protected:
  TimedDmaApiTest() { observer_.space = &space_; }
  ~TimedDmaApiTest() override { calendar_->clear(); }
  void run_to(Picoseconds t) {
    calendar_->run_until(t);
    if (calendar_->now() < t) calendar_->skip_to(t);
  }
  Task<void> map_and_unmap(CpuPort& cpu) {
    const DmaMapping mapped = co_await api_.map(cpu, kBuffer, 4_KiB, DmaDirection::ToDevice);
    co_await api_.unmap(cpu, mapped.address, 4_KiB);
  }
  Task<void>& start(Task<void> task) {
    tasks_.push_back(std::make_unique<Task<void>>(std::move(task)));
    tasks_.back()->start();
    return *tasks_.back();
  }

  std::unique_ptr<Calendar> calendar_ = std::make_unique<Calendar>();
  SleepingCpu cpu0_{CpuId(0), *calendar_};
  SleepingCpu cpu1_{CpuId(1), *calendar_};
  SleepingCpu timer_{CpuId(0), *calendar_};
  ScriptedSpace space_;
  Observer observer_;
  DmaApi api_{kDevice, space_, observer_, {.unmapping = Unmapping::Lazy, .flush_timeout = 10_ms}, 2, &timer_};
  std::vector<std::unique_ptr<Task<void>>> tasks_;
};

// Kills: a timer that never fires, that restarts with every entry, that fires without work, or only once.
TEST_F(TimedDmaApiTest, TheTimerFlushesTenMillisecondsAfterTheFirstEntry) {
  start(api_.run_flush_timer(timer_));
  run_to(1_ms);
  start(map_and_unmap(cpu0_));
  run_to(5_ms);
  start(map_and_unmap(cpu1_));
  run_to(11_ms - 1_ps);
  EXPECT_EQ(space_.count(Call::FlushAll), 0U);
  EXPECT_EQ(api_.waiting(), 2U);
  run_to(11_ms);
  EXPECT_EQ(api_.waiting(), 0U) << "one flush for all CPUs";
  EXPECT_EQ(api_.counters().flushes_by_timer, 1U);
  EXPECT_EQ(observer_.events.back(), (Observer::Event{What::Fenced, 11_ms, observer_.events.back().range}));
  run_to(100_ms);
  EXPECT_EQ(api_.counters().flushes_by_timer, 1U);
  start(map_and_unmap(cpu0_));
  run_to(110_ms);
  EXPECT_EQ(api_.counters().flushes_by_timer, 2U);
  EXPECT_EQ(api_.allocator().counters().cached_frees, 3U);
}

// A flush is under way when a range is unmapped and queued: the device may have cached it after the flush passed.
// Kills: a flush that covers what was queued while it ran.
TEST_F(TimedDmaApiTest, AFlushCoversOnlyWhatWasQueuedBeforeItBegan) {
  Gate gate;
  start(map_and_unmap(cpu0_));
  space_.flush_gate = &gate;
  start(api_.flush(cpu0_));
  start(map_and_unmap(cpu1_));
  EXPECT_EQ(api_.waiting(), 2U);
  gate.open(*calendar_);
  run_to(1_ns);
  EXPECT_EQ(api_.waiting(), 1U);
  EXPECT_EQ(observer_.count(What::Fenced), 1U);
  start(api_.flush(cpu0_));
  gate.open(*calendar_);
  run_to(2_ns);
  EXPECT_EQ(api_.waiting(), 0U);
  EXPECT_EQ(space_.count(Call::FlushAll), 2U);
}

// The later of two flushes is over first: it covers what the earlier one does. Kills: an earlier flush that, ending
// late, covers what was queued after it began.
TEST_F(TimedDmaApiTest, FlushesMayEndInAnyOrder) {
  Gate slow;
  Gate fast;
  space_.flush_gate = &slow;
  start(map_and_unmap(cpu0_));
  start(api_.flush(cpu0_));
  start(map_and_unmap(cpu1_));
  space_.flush_gate = &fast;
  start(api_.flush(cpu1_));
  start(map_and_unmap(cpu0_));
  fast.open(*calendar_);
  run_to(1_ns);
  EXPECT_EQ(api_.waiting(), 1U);
  slow.open(*calendar_);
  run_to(2_ns);
  EXPECT_EQ(api_.waiting(), 1U) << "queued after both began";
  for (const auto& task : tasks_) EXPECT_TRUE(task->done());
}

}  // namespace
}  // namespace iommu::guest
