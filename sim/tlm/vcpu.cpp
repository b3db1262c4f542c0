// SPDX-License-Identifier: Apache-2.0
#include "sim/tlm/vcpu.hpp"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "sim/base/check.hpp"

namespace iommu {

Picoseconds Vcpu::now() const { return all_.calendar_.now(); }

Vcpu::State Vcpu::state() const {
  if (active_.wait != nullptr) return active_.state;
  if (spinners_ != 0) return State::Spinning;
  return pollers_ != 0 ? State::Polling : State::Idle;
}

VcpuTimes Vcpu::times() const {
  VcpuTimes result = times_;
  const Picoseconds elapsed = now() - since_;
  switch (state()) {
    case State::Charged:
      result.charged += elapsed;
      break;
    case State::Spinning:
      result.spinning += elapsed;
      break;
    case State::Polling:
      result.polling += elapsed;
      break;
    case State::Idle:
      break;
  }
  return result;
}

void Vcpu::account() {
  times_ = times();
  since_ = now();
}

void Vcpu::reset_statistics() {
  times_ = {};
  since_ = now();
  counts_ = {};
}

Picoseconds Vcpu::count(CostId id, std::uint64_t times) {
  counts_.add(id, times);
  return all_.costs_[id].time * static_cast<std::int64_t>(times);
}

void Vcpu::run(const Job& job) {
  if (active_.wait != nullptr) return queued_.push(job);
  account();
  active_ = job;
  all_.calendar_.call_at<&Vcpu::finish>(now() + job.duration, this);
}

void Vcpu::finish(std::uint64_t) {
  account();
  const Job done = std::exchange(active_, Job{});
  if (!queued_.is_empty()) run(queued_.pop());
  if (done.wait->kind == CpuWaitKind::Acquire && done.state == State::Spinning)
    done.wait->lock->spin_time += now() - done.wait->until;
  done.wait->waiter.resume();
}

bool Vcpu::begin(CpuWait& wait) {
  switch (wait.kind) {
    case CpuWaitKind::Charge:
      return begin_charge(wait);
    case CpuWaitKind::Acquire:
      return begin_acquire(wait);
    case CpuWaitKind::Poll:
      return begin_poll(wait);
    case CpuWaitKind::Idle:
      return begin_idle(wait);
    case CpuWaitKind::SleepUntil:
      break;
  }
  if (wait.until <= now()) return true;
  waiting_.push_back(&wait);
  all_.calendar_.call_at<&Vcpu::wake>(wait.until, this, reinterpret_cast<std::uintptr_t>(&wait));
  return false;
}

bool Vcpu::begin_charge(CpuWait& wait) {
  const Picoseconds duration = count(wait.cost, wait.times);
  if (duration == Picoseconds(0)) return true;
  run({&wait, duration, State::Charged});
  return false;
}

bool Vcpu::begin_acquire(CpuWait& wait) {
  SpinLock& lock = *wait.lock;
  ++lock.acquisitions;
  if (!lock.held) {
    lock.held = true;
    const Picoseconds duration = count(CostId::LockUncontended, 1);
    if (duration == Picoseconds(0)) return true;
    run({&wait, duration, State::Charged});
    return false;
  }
  ++lock.contended;
  wait.until = now();  // when the spinning began
  lock.waiters.push_back(&wait);
  waiting_.push_back(&wait);
  account();
  ++spinners_;
  return false;
}

void Vcpu::release(SpinLock& lock) {
  SIM_CHECK(lock.held, "a lock is released by its holder");
  if (lock.waiters.empty()) {
    lock.held = false;
    return;
  }
  CpuWait& next = *lock.waiters.front();
  lock.waiters.pop_front();
  static_cast<Vcpu*>(next.cpu)->grant(next);
}

// The lock passes to this vCPU's task without becoming free.
void Vcpu::grant(CpuWait& wait) {
  account();
  --spinners_;
  forget(wait);
  run({&wait, count(CostId::LockHandover, 1), State::Spinning});
}

bool Vcpu::begin_poll(CpuWait& wait) {
  if (all_.memory_.read32(wait.poll_address) == wait.poll_value) {
    const Picoseconds duration = count(CostId::FencePoll, 1);
    if (duration == Picoseconds(0)) return true;
    run({&wait, duration, State::Charged});
    return false;
  }
  account();
  ++pollers_;
  waiting_.push_back(&wait);
  all_.watch(wait);
  return false;
}

void Vcpu::word_matches(CpuWait& wait) {
  account();
  --pollers_;
  forget(wait);
  run({&wait, count(CostId::FencePoll, 1), State::Charged});
}

bool Vcpu::begin_idle(CpuWait& wait) {
  if (std::exchange(wait.signal->raised, false)) return true;
  wait.signal->waiters.push_back(&wait);
  waiting_.push_back(&wait);
  return false;
}

void Vcpu::wake(std::uint64_t wait) {
  auto& woken = *reinterpret_cast<CpuWait*>(wait);  // NOLINT(performance-no-int-to-ptr)
  forget(woken);
  woken.waiter.resume();
}

void Vcpu::forget(const CpuWait& wait) { std::erase(waiting_, &wait); }

std::string Vcpu::waits_for() const {
  std::string text;
  for (const CpuWait* wait : waiting_) {
    if (!text.empty()) text += ", ";
    char word[64];
    switch (wait->kind) {
      case CpuWaitKind::Acquire:
        text += "lock ";
        text += wait->lock->name;
        break;
      case CpuWaitKind::Poll:
        std::snprintf(word, sizeof word, "word %#llx = %u", static_cast<unsigned long long>(wait->poll_address.value()),
                      wait->poll_value);
        text += word;
        break;
      case CpuWaitKind::Idle:
        text += "a signal";
        break;
      case CpuWaitKind::SleepUntil:
      case CpuWaitKind::Charge:
        text += "time";
        break;
    }
  }
  return text;
}

Vcpus::~Vcpus() {
  for (const auto& [address, waits] : polls_) memory_.unwatch(Hpa(address));
}

Vcpu& Vcpus::add() {
  vcpus_.push_back(std::make_unique<Vcpu>(*this, CpuId(static_cast<std::uint16_t>(vcpus_.size()))));
  vcpus_.back()->since_ = calendar_.now();
  return *vcpus_.back();
}

void Vcpus::raise(Signal& signal) {
  if (signal.waiters.empty()) {
    signal.raised = true;
    return;
  }
  CpuWait& wait = *signal.waiters.front();
  signal.waiters.pop_front();
  auto* cpu = static_cast<Vcpu*>(wait.cpu);
  // From the calendar, so that whoever raises the signal does not run the sleeper inside its own call.
  calendar_.call_at<&Vcpu::wake>(calendar_.now(), cpu, reinterpret_cast<std::uintptr_t>(&wait));
}

void Vcpus::watch(CpuWait& wait) {
  auto& waits = polls_[wait.poll_address.value()];
  waits.push_back(&wait);
  if (waits.size() == 1)
    memory_.watch(wait.poll_address, [this, address = wait.poll_address.value()] { word_written(address); });
}

void Vcpus::word_written(std::uint64_t address) {
  auto& waits = polls_[address];
  const std::uint32_t value = memory_.read32(Hpa(address));
  std::vector<CpuWait*> matched;
  std::erase_if(waits, [&](CpuWait* wait) {
    if (wait->poll_value != value) return false;
    matched.push_back(wait);
    return true;
  });
  if (waits.empty()) {
    polls_.erase(address);
    memory_.unwatch(Hpa(address));
  }
  for (CpuWait* wait : matched) static_cast<Vcpu*>(wait->cpu)->word_matches(*wait);
}

}  // namespace iommu
