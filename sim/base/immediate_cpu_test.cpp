// SPDX-License-Identifier: Apache-2.0
#include "sim/base/immediate_cpu.hpp"

#include <gtest/gtest.h>

#include "sim/base/task.hpp"

namespace iommu {
namespace {

Task<void> charge_twice(CpuPort& cpu) {
  co_await cpu.charge(CostId::TableWrite, 3);
  co_await cpu.charge(CostId::TableWrite);
}
TEST(ImmediateCpu, CountsWhatIsCharged) {
  ImmediateCpu cpu;
  charge_twice(cpu).run();
  EXPECT_EQ(cpu.charged()[CostId::TableWrite], 4U);
  EXPECT_FALSE(cpu.would_block());
}

// Whatever would wait for ever says so and goes on. Kills: a test CPU that hides a deadlock.
Task<void> lock_twice(CpuPort& cpu, SpinLock& lock) {
  co_await cpu.acquire(lock);
  co_await cpu.acquire(lock);
}
Task<void> poll(CpuPort& cpu, std::uint32_t value) { co_await cpu.poll(Hpa(8), value); }
Task<void> idle(CpuPort& cpu, Signal& signal) { co_await cpu.idle(signal); }

TEST(ImmediateCpu, TakingAHeldLockWouldBlock) {
  ImmediateCpu cpu;
  SpinLock lock("lock");
  lock_twice(cpu, lock).run();
  EXPECT_TRUE(cpu.would_block());
}
TEST(ImmediateCpu, ReleasingAFreeLockIsAnError) {
  ImmediateCpu cpu;
  SpinLock lock("lock");
  cpu.release(lock);
  EXPECT_TRUE(cpu.would_block());
}
TEST(ImmediateCpu, PollsLookAtMemory) {
  ImmediateCpu cpu(CpuId(1), [](Hpa a) { return static_cast<std::uint32_t>(a.value()); });
  poll(cpu, 8).run();
  EXPECT_FALSE(cpu.would_block());
  poll(cpu, 9).run();
  EXPECT_TRUE(cpu.would_block());
}
TEST(ImmediateCpu, ASignalIsRememberedOnce) {
  ImmediateCpu cpu;
  Signal signal;
  cpu.raise(signal);
  cpu.raise(signal);
  idle(cpu, signal).run();
  EXPECT_FALSE(cpu.would_block());
  idle(cpu, signal).run();
  EXPECT_TRUE(cpu.would_block());
}

}  // namespace
}  // namespace iommu
