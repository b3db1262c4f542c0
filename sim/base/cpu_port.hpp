// SPDX-License-Identifier: Apache-2.0
// What guest and hypervisor code runs on. All of it is Tasks on a vCPU: charging work takes the vCPU's time, a lock
// that is taken makes the vCPU spin, a fence makes it poll. In unit tests (ImmediateCpu) everything answers at once.
//
//   co_await cpu.charge(CostId::TableWrite, edit.entries_written);
//   co_await cpu.acquire(lock);  ...  cpu.release(lock);
//   co_await cpu.poll(status_address, expected);   // burns the vCPU until the word is there
#pragma once

#include <coroutine>
#include <cstdint>
#include <deque>

#include "sim/base/address.hpp"
#include "sim/base/costs.hpp"
#include "sim/base/ids.hpp"
#include "sim/base/units.hpp"

namespace iommu {

class CpuPort;
struct CpuWait;

// A FIFO spinlock. State only; the CpuPort that waits in it decides how long waiting takes.
struct SpinLock {
  explicit SpinLock(std::string_view lock_name) : name(lock_name) {}
  std::string_view name;
  bool held = false;
  std::deque<CpuWait*> waiters;
  std::uint64_t acquisitions = 0;
  std::uint64_t contended = 0;
  Picoseconds spin_time{};  // vCPU time burnt waiting for it, all waiters
};

// Something a vCPU can sleep on without burning cycles (an interrupt, work in a queue). A signal that is raised while
// nobody waits is remembered once.
struct Signal {
  bool raised = false;
  std::deque<CpuWait*> waiters;
};

enum class CpuWaitKind : std::uint8_t { Charge, Acquire, Poll, Idle, SleepUntil };

struct CpuWait {
  CpuWaitKind kind = CpuWaitKind::Charge;
  CostId cost = CostId::Hypercall;
  std::uint64_t times = 1;
  SpinLock* lock = nullptr;
  Signal* signal = nullptr;
  Hpa poll_address{};
  std::uint32_t poll_value = 0;
  Picoseconds until{};
  CpuPort* cpu = nullptr;
  std::coroutine_handle<> waiter{};
};

class CpuPort {
 public:
  explicit CpuPort(CpuId id) : id_(id) {}
  CpuPort(const CpuPort&) = delete;
  CpuPort& operator=(const CpuPort&) = delete;
  virtual ~CpuPort() = default;

  [[nodiscard]] CpuId id() const { return id_; }
  [[nodiscard]] virtual Picoseconds now() const = 0;

  struct Awaiter {
    CpuPort& port;
    CpuWait wait;
    bool await_ready() {
      wait.cpu = &port;
      return port.begin(wait);
    }
    void await_suspend(std::coroutine_handle<> caller) { wait.waiter = caller; }
    void await_resume() const {}
  };

  [[nodiscard]] Awaiter charge(CostId cost, std::uint64_t times = 1) {
    return make({.kind = CpuWaitKind::Charge, .cost = cost, .times = times});
  }
  [[nodiscard]] Awaiter acquire(SpinLock& lock) { return make({.kind = CpuWaitKind::Acquire, .lock = &lock}); }
  virtual void release(SpinLock& lock) = 0;
  // Spins until the 32-bit word at `address` equals `value`.
  [[nodiscard]] Awaiter poll(Hpa address, std::uint32_t value) {
    return make({.kind = CpuWaitKind::Poll, .poll_address = address, .poll_value = value});
  }
  // Sleeps until the signal is raised; consumes it.
  [[nodiscard]] Awaiter idle(Signal& signal) { return make({.kind = CpuWaitKind::Idle, .signal = &signal}); }
  [[nodiscard]] Awaiter sleep_until(Picoseconds t) { return make({.kind = CpuWaitKind::SleepUntil, .until = t}); }

 protected:
  // True when there is nothing to wait for; false: `wait.waiter` is resumed later.
  virtual bool begin(CpuWait& wait) = 0;

 private:
  Awaiter make(CpuWait wait) { return Awaiter{*this, wait}; }
  CpuId id_;
};

// Raises a signal from anywhere; whoever implements CpuPort supplies the wake-up.
class SignalPort {
 public:
  virtual ~SignalPort() = default;
  virtual void raise(Signal& signal) = 0;
};

}  // namespace iommu
