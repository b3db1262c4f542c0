// SPDX-License-Identifier: Apache-2.0
// The command ring from the software's side, against a real driver and a real core: what is submitted is fetched,
// decoded and completed, by one vCPU whose ports answer at once and by several on a calendar.
#include "sim/translation/queue_client.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "models/vtd/core.hpp"
#include "models/vtd/driver.hpp"
#include "sim/base/calendar.hpp"
#include "sim/base/immediate_cpu.hpp"
#include "sim/memory/host_memory.hpp"
#include "sim/memory/host_table_memory.hpp"

namespace iommu {
namespace {

// A unit that executes commands: at once, or one every `command_time` of a calendar.
class Unit final : public MmioPort {
 public:
  explicit Unit(Calendar* calendar = nullptr, DriverOptions options = {})
      : driver(options), calendar_(calendar), core_(vtd::compose(options.features)) {
    const auto writes = driver.bring_up(memory);
    for (const RegisterWrite& w : *writes) core_.mmio_write(w.offset, w.bytes, w.value);
  }
  Task<void> write(CpuPort& cpu, std::uint64_t offset, unsigned bytes, std::uint64_t value) override {
    co_await cpu.charge(CostId::MmioWrite);
    core_.mmio_write(offset, bytes, value);
    if (calendar_ == nullptr) {
      while (execute_one()) {
      }
    } else if (!busy_ && core_.has_command()) {
      busy_ = true;
      calendar_->call_at<&Unit::step>(calendar_->now() + command_time, this);
    }
  }
  Task<std::uint64_t> read(CpuPort& cpu, std::uint64_t offset, unsigned bytes) override {
    co_await cpu.charge(CostId::MmioRead);
    co_return core_.mmio_read(offset, bytes);
  }

  HostMemory host{1_GiB};
  FrameAllocator frames{Mfn(0x100), 0x1000};
  HostTableMemory memory{host, frames};
  vtd::Driver driver;
  std::vector<InvalidationScope> applied;
  std::uint64_t fences = 0;
  Picoseconds command_time = 100_ns;

 private:
  bool execute_one() {
    if (!core_.has_command()) return false;
    ImmediateMemoryPort port(host);
    const auto command = core_.fetch_command(port).run();
    EXPECT_TRUE(command) << "the core stopped at a command";
    if (!command) return false;
    const CommandEffect effect = core_.apply(*command);
    applied.insert(applied.end(), effect.scopes.begin(), effect.scopes.end());
    if (effect.fence && effect.fence->status) {
      ++fences;
      host.write32(effect.fence->status->address, static_cast<std::uint32_t>(effect.fence->status->data));
    }
    return true;
  }
  void step(std::uint64_t) {
    busy_ = execute_one() && core_.has_command();
    if (busy_) calendar_->call_at<&Unit::step>(calendar_->now() + command_time, this);
  }
  Calendar* calendar_;
  vtd::Core core_;
  bool busy_ = false;
};

// A vCPU on a calendar: every charge takes 10 ns, polls and idle waits look again every 10 ns.
class CalendarCpu final : public CpuPort {
 public:
  CalendarCpu(CpuId id, Calendar& calendar, HostMemory& host) : CpuPort(id), calendar_(calendar), host_(host) {}
  [[nodiscard]] Picoseconds now() const override { return calendar_.now(); }
  void release(SpinLock& lock) override {
    lock.held = false;
    if (lock.waiters.empty()) return;
    CpuWait* next = lock.waiters.front();
    lock.waiters.pop_front();
    lock.held = true;
    calendar_.resume_at(calendar_.now() + 10_ns, next->waiter);
  }
  std::uint64_t polls = 0;

 protected:
  bool begin(CpuWait& wait) override {
    if (wait.kind == CpuWaitKind::Acquire) {
      ++wait.lock->acquisitions;
      if (!std::exchange(wait.lock->held, true)) return true;
      ++wait.lock->contended;
      wait.lock->waiters.push_back(&wait);
      return false;
    }
    if (wait.kind == CpuWaitKind::Poll) {
      ++polls;
      if (is_there(wait)) return true;
    }
    again(wait);
    return false;
  }

 private:
  [[nodiscard]] bool is_there(const CpuWait& wait) const { return host_.read32(wait.poll_address) == wait.poll_value; }
  void again(CpuWait& wait) {
    calendar_.at(
        calendar_.now() + 10_ns,
        [](void* self, std::uint64_t w) {
          auto* cpu = static_cast<CalendarCpu*>(self);
          auto* waiting = reinterpret_cast<CpuWait*>(w);
          if (waiting->kind == CpuWaitKind::Poll && !cpu->is_there(*waiting))
            cpu->again(*waiting);
          else
            waiting->waiter.resume();
        },
        this, reinterpret_cast<std::uint64_t>(&wait));
  }
  Calendar& calendar_;
  HostMemory& host_;
};

InvalidationScope domain(std::uint32_t tag) { return {.domain = DomainTag(tag)}; }
std::vector<InvalidationScope> domains(std::uint32_t first, std::uint32_t count) {
  std::vector<InvalidationScope> scopes;
  for (std::uint32_t i = 0; i < count; ++i) scopes.push_back(domain(first + i));
  return scopes;
}
ImmediateCpu immediate(Unit& unit) {
  return ImmediateCpu(CpuId(0), [&unit](Hpa a) { return unit.host.read32(a); });
}

// Linux's form: commands and fence with one tail write. Kills: a tail written before the last command, or without it.
TEST(QueueClient, SubmitsCommandsAndTheirFenceWithOneTailWrite) {
  Unit unit;
  const auto queue = QueueClient::create(unit.driver, unit.memory, unit, kLinuxQueue);
  ImmediateCpu cpu = immediate(unit);
  queue->submit(cpu, domains(1, 3), Fence::Poll).run();
  EXPECT_EQ(unit.applied, domains(1, 3));
  EXPECT_EQ(unit.fences, 1U);
  EXPECT_EQ(queue->counters().tail_writes, 1U);
  EXPECT_EQ(queue->counters().bytes, 4U * 16);
  EXPECT_EQ(queue->counters().commands[static_cast<std::size_t>(InvalidationKind::Iotlb)], 3U);
  EXPECT_EQ(queue->counters().fence_wait.count(), 1U);
  EXPECT_EQ(cpu.charged()[CostId::CommandWrite], 4U);
  EXPECT_EQ(cpu.charged()[CostId::MmioWrite], 1U);
  EXPECT_EQ(cpu.charged()[CostId::FencePoll], 1U);
  EXPECT_EQ(cpu.charged()[CostId::LockUncontended], 2U);
  EXPECT_EQ(queue->occupancy(), 0U);
  EXPECT_FALSE(cpu.would_block());
}
// Xen's form: each descriptor with its own lock section, two register reads and a tail write.
TEST(QueueClient, XenWritesTheTailForEveryCommand) {
  Unit unit;
  const auto queue = QueueClient::create(unit.driver, unit.memory, unit, kXenQueue);
  ImmediateCpu cpu = immediate(unit);
  queue->submit(cpu, {domain(4)}, Fence::Poll).run();
  EXPECT_EQ(cpu.charged()[CostId::MmioWrite], 2U);
  EXPECT_EQ(cpu.charged()[CostId::MmioRead], 4U);
  EXPECT_EQ(cpu.charged()[CostId::LockUncontended], 2U);
  EXPECT_EQ(unit.applied, domains(4, 1));
  EXPECT_FALSE(cpu.would_block());
}

// Kills: an index that forgets to wrap, and slots that are never given back.
TEST(QueueClient, GoesRoundTheRingManyTimes) {
  for (const QueueDiscipline discipline : {kLinuxQueue, kXenQueue}) {
    Unit unit;
    const auto queue = QueueClient::create(unit.driver, unit.memory, unit, discipline);
    ImmediateCpu cpu = immediate(unit);
    for (std::uint32_t i = 0; i < 1000; ++i) queue->submit(cpu, domains(i % 500, 1 + i % 3), Fence::Poll).run();
    EXPECT_EQ(unit.applied.size(), 1999U);
    EXPECT_EQ(unit.fences, 1000U);
    EXPECT_EQ(queue->occupancy(), 0U);
    EXPECT_FALSE(cpu.would_block());
  }
}
TEST(QueueClient, MoreCommandsThanTheRingHoldsGoInPortions) {
  for (const QueueDiscipline discipline : {kLinuxQueue, kXenQueue}) {
    Unit unit;
    const auto queue = QueueClient::create(unit.driver, unit.memory, unit, discipline);
    ImmediateCpu cpu = immediate(unit);
    const std::uint32_t many = 3 * unit.driver.ring().entries;
    queue->submit(cpu, domains(0, many), Fence::Poll).run();
    EXPECT_EQ(unit.applied, domains(0, many));
    EXPECT_FALSE(cpu.would_block());
    EXPECT_EQ(queue->occupancy(), 0U);
  }
}
// Commands without a fence fill the ring; then a fence is put in to empty it. Kills: a ring that waits for a fence that
// nobody wrote.
TEST(QueueClient, CommandsWithoutFencesNeverLockTheRing) {
  Unit unit;
  const auto queue = QueueClient::create(unit.driver, unit.memory, unit, kLinuxQueue);
  ImmediateCpu cpu = immediate(unit);
  const std::uint32_t entries = unit.driver.ring().entries;
  for (std::uint32_t i = 0; i < 2 * entries; ++i) queue->submit(cpu, {domain(i % 100)}, Fence::None).run();
  EXPECT_EQ(unit.applied.size(), 2U * entries);
  EXPECT_EQ(queue->counters().full_waits, 2U);
  EXPECT_EQ(queue->counters().fences, 2U);
  queue->submit(cpu, {}, Fence::Poll).run();
  EXPECT_EQ(queue->occupancy(), 0U);
  EXPECT_FALSE(cpu.would_block());
}
TEST(QueueClient, NothingToSubmitDoesNothing) {
  Unit unit;
  const auto queue = QueueClient::create(unit.driver, unit.memory, unit, kLinuxQueue);
  ImmediateCpu cpu = immediate(unit);
  queue->submit(cpu, {}, Fence::None).run();
  EXPECT_EQ(cpu.charged()[CostId::LockUncontended], 0U);
  EXPECT_EQ(queue->counters().tail_writes, 0U);
}
TEST(QueueClient, CreationWithoutMemoryFails) {
  Unit unit;
  while (unit.frames.allocate()) {
  }
  EXPECT_EQ(QueueClient::create(unit.driver, unit.memory, unit, kLinuxQueue), nullptr);
}

// Several vCPUs
// ---------------------------------------------------------------------------------------------------------

struct Machine {
  Calendar calendar;
  Unit unit{&calendar};
  std::unique_ptr<QueueClient> queue;
  std::vector<std::unique_ptr<CalendarCpu>> cpus;
  std::vector<Task<void>> tasks;
  std::vector<Picoseconds> finished;

  Machine(QueueDiscipline discipline, unsigned count)
      : queue(QueueClient::create(unit.driver, unit.memory, unit, discipline)) {
    for (unsigned i = 0; i < count; ++i)
      cpus.push_back(std::make_unique<CalendarCpu>(CpuId(static_cast<std::uint16_t>(i)), calendar, unit.host));
  }
  Task<void> repeat(unsigned cpu, std::uint32_t times, std::uint32_t commands, Fence fence) {
    for (std::uint32_t i = 0; i < times; ++i) {
      co_await queue->submit(*cpus[cpu], domains(cpu * 100, commands), fence);
      // What a synchronous flush promises: when submit() returns, the unit has applied this vCPU's commands.
      if (fence == Fence::Poll) {
        const auto done = std::count(unit.applied.begin(), unit.applied.end(), domain(cpu * 100));
        EXPECT_GE(done, i + 1);
      }
    }
    finished.push_back(calendar.now());
  }
  void run(std::uint32_t times, std::uint32_t commands, Fence fence = Fence::Poll) {
    for (unsigned i = 0; i < cpus.size(); ++i) tasks.push_back(repeat(i, times, commands, fence));
    for (auto& task : tasks) task.start();
    calendar.run_until(Picoseconds(1'000'000'000'000));
    for (auto& task : tasks) EXPECT_TRUE(task.done()) << "a vCPU waits for ever";
  }
};

// Kills: vCPUs that share a status word or a number, slots that are counted twice, a lost wake-up when the ring is
// full.
TEST(QueueClient, ManyCpusKeepTheirFencesApart) {
  for (const LockScope scope : {LockScope::Submission, LockScope::SubmissionAndReclaim, LockScope::UntilCompletion}) {
    for (const TailWrites tails : {TailWrites::PerSubmission, TailWrites::PerCommand}) {
      Machine machine({scope, tails}, 8);
      machine.run(20, 5);
      EXPECT_EQ(machine.unit.applied.size(), 8U * 20 * 5);
      EXPECT_EQ(machine.unit.fences, 8U * 20);
      EXPECT_EQ(machine.queue->occupancy(), 0U);
      EXPECT_GT(machine.queue->lock().contended, 0U);
    }
  }
}
TEST(QueueClient, AFullRingMakesSubmittersWaitAndLosesNothing) {
  for (const QueueDiscipline discipline : {kLinuxQueue, kXenQueue}) {
    Machine machine(discipline, 6);
    machine.run(4, 100);
    EXPECT_EQ(machine.unit.applied.size(), 6U * 4 * 100);
    EXPECT_GT(machine.queue->counters().full_waits, 0U);
    EXPECT_EQ(machine.queue->occupancy(), 0U);
  }
}
// The reason for the key: a lock held until completion leaves one fence in flight.
TEST(QueueClient, HoldingTheLockUntilCompletionSerialisesFences) {
  const auto end = [](LockScope scope) {
    Machine machine({scope, TailWrites::PerSubmission}, 4);
    machine.unit.command_time = 1_ns;
    machine.run(50, 1);
    return machine.finished.back();
  };
  EXPECT_GT(end(LockScope::UntilCompletion), end(LockScope::Submission));
}
// A fence that is never completed keeps its vCPU, and destroying everything then is clean (sanitizers watch).
TEST(QueueClient, DestroyingWaitingSubmittersIsClean) {
  Machine machine(kLinuxQueue, 2);
  machine.unit.command_time = Picoseconds(5'000'000'000'000);
  for (unsigned i = 0; i < 2; ++i) machine.tasks.push_back(machine.repeat(i, 1, 1, Fence::Poll));
  for (auto& task : machine.tasks) task.start();
  machine.calendar.run_until(10_us);
  for (auto& task : machine.tasks) EXPECT_FALSE(task.done());
  machine.calendar.clear();
  machine.tasks.clear();
}

}  // namespace
}  // namespace iommu
