// SPDX-License-Identifier: Apache-2.0
// Several tasks on several vCPUs, several of them on one, each parked at every step for a random time: whatever the
// order, every task must find its own mapping, and no device anything else.
#include <gtest/gtest.h>

#include <random>
#include <utility>

#include "sim/base/calendar.hpp"
#include "sim/base/rng.hpp"
#include "sim/strategy/strategy_test_support.hpp"

namespace iommu::strategy::test {
namespace {

using guest::DmaMapping;
using guest::DmaStatus;

// Every charge and every hand-over of a lock takes a random time. Tasks that share a vCPU may overtake each other.
class ParkingCpu final : public CpuPort {
 public:
  ParkingCpu(CpuId id, Calendar& calendar, HostMemory& host, std::uint64_t seed)
      : CpuPort(id), calendar_(calendar), host_(host), rng_(seed, "parking" + std::to_string(id.value())) {}
  [[nodiscard]] Picoseconds now() const override { return calendar_.now(); }
  void release(SpinLock& lock) override {
    EXPECT_TRUE(lock.held);
    lock.held = !lock.waiters.empty();
    if (!lock.held) return;
    CpuWait* next = lock.waiters.front();
    lock.waiters.pop_front();
    later(*next);
  }

 private:
  bool begin(CpuWait& wait) override {
    if (wait.kind == CpuWaitKind::Acquire) {
      if (!std::exchange(wait.lock->held, true)) return true;
      wait.lock->waiters.push_back(&wait);
      return false;
    }
    if (wait.kind == CpuWaitKind::Poll) EXPECT_EQ(host_.read32(wait.poll_address), wait.poll_value);
    later(wait);
    return false;
  }
  void later(CpuWait& wait) {  // its waiter is known only after begin()
    const Picoseconds time(1 + static_cast<std::int64_t>(rng_.below(1000)));
    calendar_.call_at<&ParkingCpu::wake>(calendar_.now() + time, this, reinterpret_cast<std::uintptr_t>(&wait));
  }
  void wake(std::uint64_t wait) { reinterpret_cast<CpuWait*>(wait)->waiter.resume(); }
  Calendar& calendar_;
  HostMemory& host_;
  Rng rng_;
};

class Interleaving : public OnPairs {
 protected:
  // One task's life: map, use, unmap, again and again.
  static Task<void> work(Machine& m, Machine::Device& device, CpuPort& cpu, std::uint64_t seed, int rounds) {
    Rng rng(seed, "worker");
    for (int i = 0; i < rounds; ++i) {
      const Gpa buffer(4096 * rng.below(1024) + 4 * rng.below(1024));
      const Bytes length(4 + 4 * rng.below(3000));
      const DmaMapping mapped = co_await device.api->map(cpu, buffer, length, guest::DmaDirection::Bidirectional);
      EXPECT_EQ(mapped.status, DmaStatus::Ok);
      const Bytes offset(rng.below(length.value()) & ~3ULL);
      EXPECT_EQ(m.dma(device.requester, mapped.address + offset), m.host_address(buffer + offset));
      co_await cpu.charge(CostId::StackWork);
      EXPECT_EQ(m.dma(device.requester, mapped.address), m.host_address(buffer));
      const DmaStatus unmapped = co_await device.api->unmap(cpu, mapped.address, length);
      EXPECT_EQ(unmapped, DmaStatus::Ok);
    }
  }
  // The device uses addresses that it once saw, whenever it likes; the warden judges.
  static Task<void> misbehave(Machine& m, CpuPort& cpu, std::uint64_t seed, int rounds) {
    Rng rng(seed, "device");
    for (int i = 0; i < rounds; ++i) {
      co_await cpu.charge(CostId::StackWork);
      m.dma(rng.chance(0.5) ? kNic : kDisk, Dfn(0xfffff - rng.below(48)).address(), Access::Write);
    }
  }
  static void run(const MachineOptions& options, std::uint64_t seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Machine m(family(), strategy(), options);
    Machine::Device& nic = m.attach(kNic);
    Machine::Device& disk = m.attach(kDisk);
    Calendar calendar;
    ParkingCpu cpu0(CpuId(0), calendar, m.host, seed);
    ParkingCpu cpu1(CpuId(1), calendar, m.host, seed);
    std::vector<Task<void>> tasks;
    for (std::uint64_t i = 0; i < 6; ++i)
      tasks.push_back(work(m, i % 3 == 0 ? disk : nic, i % 2 == 0 ? cpu0 : cpu1, seed + i, 40));
    tasks.push_back(misbehave(m, cpu0, seed, 2000));
    for (Task<void>& task : tasks) task.start();
    calendar.run_until(Picoseconds(INT64_MAX));
    for (const Task<void>& task : tasks) EXPECT_TRUE(task.done()) << "it waits for ever";
    const WardenReport report = m.warden.report();
    EXPECT_EQ(report.violations, 0U) << report.first_violation->describe();
    EXPECT_GT(report.stale, 0U) << "nobody caught the moment between unmap and fence";
    EXPECT_EQ(nic.api->counters().failures + disk.api->counters().failures, 0U);
  }
};
ON_STRATEGIES(Interleaving, kTranslating);

// Kills: one hypercall argument per vCPU; a table edited across a suspension; an address freed before its fence; locks
// taken in two orders.
TEST_P(Interleaving, StrictTasksFindTheirOwnMappings) {
  for (const std::uint64_t seed : {std::uint64_t{11}, std::uint64_t{std::random_device{}()}}) run({}, seed);
}

// Kills: a flush that covers ranges queued while it ran; tables reclaimed twice or too early.
TEST_P(Interleaving, LazyTasksFindTheirOwnMappings) {
  for (const std::uint64_t seed : {std::uint64_t{12}, std::uint64_t{std::random_device{}()}}) run(lazy(8), seed);
}

// Kills: operations of one task that another one hands over and loses; a flush while a batch of another vCPU is on its
// way; a refusal that is taken for somebody else's.
TEST_P(Interleaving, TasksThatBatchFindTheirOwnMappings) {
  if (!is(kPvIommu)) GTEST_SKIP() << "pv_iommu alone has batches";
  for (const std::uint64_t seed : {std::uint64_t{13}, std::uint64_t{std::random_device{}()}}) {
    MachineOptions options = lazy(8);
    options.strategy.batch = 3;
    run(options, seed);
    options.strategy.deferred_flush = false;
    run(options, seed);
    options.strategy.batch = 1;
    options.strategy.scatter = true;
    run(options, seed);
  }
}

}  // namespace
}  // namespace iommu::strategy::test
