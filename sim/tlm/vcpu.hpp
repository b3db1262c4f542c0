// SPDX-License-Identifier: Apache-2.0
// Virtual CPUs with time: what guest and hypervisor tasks run on. A vCPU is busy while work is charged to it, while it
// spins for a lock, and while it polls; waiting for a signal and sleeping leave it idle.
//
// Closed forms, which the tests check to the picosecond:
//   charge            times * row
//   free lock         LockUncontended, held from its start
//   contended lock    the holder's remaining time + LockHandover per hand-over; a convoy passes 1 / (hold +
//   LockHandover) poll              until the word has the value, then FencePoll (FencePoll alone if it has it already)
// Locks are granted in the order of the requests.
//
// Several tasks may share a vCPU: charged work is served in the order in which it was asked for. A task that spins or
// polls leaves the vCPU to the charged work of the others, as if it were preempted: else two tasks of one vCPU could
// lock each other out, which no kernel allows.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "sim/base/calendar.hpp"
#include "sim/base/cpu_port.hpp"
#include "sim/memory/host_memory.hpp"
#include "sim/tlm/fifo.hpp"

namespace iommu {

// Where a vCPU's time went. Idle time is the rest.
struct VcpuTimes {
  Picoseconds charged;
  Picoseconds spinning;  // for locks, hand-over included
  Picoseconds polling;   // until the word had its value
  [[nodiscard]] constexpr Picoseconds busy() const { return charged + spinning + polling; }
};

// Busy time in cycles of a CPU with that frequency.
[[nodiscard]] constexpr double cycles(Picoseconds time, std::uint64_t hertz) {
  return static_cast<double>(time.value()) * 1e-12 * static_cast<double>(hertz);
}

class Vcpus;

class Vcpu final : public CpuPort {
 public:
  Vcpu(Vcpus& all, CpuId id) : CpuPort(id), all_(all) {}

  [[nodiscard]] Picoseconds now() const override;
  void release(SpinLock& lock) override;

  // Since the last reset_statistics(), work in progress counted as far as it has come.
  [[nodiscard]] VcpuTimes times() const;
  [[nodiscard]] const CostCounts& counts() const { return counts_; }
  void reset_statistics();
  // What its tasks wait for, in words for a user whose run does not end: "lock p2m, word 0x1000 = 1, a signal".
  [[nodiscard]] std::string waits_for() const;

 private:
  friend class Vcpus;
  enum class State : std::uint8_t { Idle, Polling, Spinning, Charged };
  // Work that occupies the vCPU for a time and then resumes a task.
  struct Job {
    CpuWait* wait = nullptr;
    Picoseconds duration;
    State state = State::Charged;
  };

  bool begin(CpuWait& wait) override;
  bool begin_charge(CpuWait& wait);
  bool begin_acquire(CpuWait& wait);
  bool begin_poll(CpuWait& wait);
  bool begin_idle(CpuWait& wait);
  [[nodiscard]] Picoseconds count(CostId id, std::uint64_t times);
  void run(const Job& job);
  void finish(std::uint64_t);
  void wake(std::uint64_t wait);
  void grant(CpuWait& wait);
  void word_matches(CpuWait& wait);
  void forget(const CpuWait& wait);
  // Books the time since the last change to the state it was spent in; called before every change.
  void account();
  [[nodiscard]] State state() const;

  Vcpus& all_;
  Job active_;
  Fifo<Job> queued_;
  std::vector<CpuWait*> waiting_;  // not for the vCPU: lock, word, signal, time; in the order in which they began
  std::uint32_t spinners_ = 0;
  std::uint32_t pollers_ = 0;
  Picoseconds since_;
  VcpuTimes times_;
  CostCounts counts_;
};

// All vCPUs of a machine: they share costs, locks, signals, and the words they poll.
class Vcpus final : public SignalPort {
 public:
  // All outlive this object. Clear the calendar before destroying tasks that are parked here.
  Vcpus(Calendar& calendar, HostMemory& memory, const CostTable& costs)
      : calendar_(calendar), memory_(memory), costs_(costs) {}
  Vcpus(const Vcpus&) = delete;
  Vcpus& operator=(const Vcpus&) = delete;
  ~Vcpus() override;

  // Lives as long as this object; ids count up from 0.
  Vcpu& add();
  [[nodiscard]] const std::vector<std::unique_ptr<Vcpu>>& vcpus() const { return vcpus_; }
  [[nodiscard]] const CostTable& costs() const { return costs_; }

  // Wakes the task that has waited longest, or is remembered once.
  void raise(Signal& signal) override;

 private:
  friend class Vcpu;
  void watch(CpuWait& wait);
  void word_written(std::uint64_t address);

  Calendar& calendar_;
  HostMemory& memory_;
  const CostTable& costs_;
  std::vector<std::unique_ptr<Vcpu>> vcpus_;
  std::unordered_map<std::uint64_t, std::vector<CpuWait*>> polls_;  // by word, in the order in which they began
};

}  // namespace iommu
