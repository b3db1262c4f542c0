// SPDX-License-Identifier: Apache-2.0
// Where tasks of a device model park until something changes. Opening a gate resumes every parked task, in the order in
// which they parked, from the calendar: never inside the caller, so that a driver that rings a doorbell does not run
// the device.
//
//   while (queue.is_empty()) co_await gate_.wait();      // the condition is tested again after every opening
//   co_await sleep_until(calendar, t);
#pragma once

#include <algorithm>
#include <coroutine>
#include <cstddef>
#include <vector>

#include "sim/base/calendar.hpp"

namespace iommu {

class Gate {
 public:
  struct Awaiter {
    Gate& gate;
    bool await_ready() const { return false; }
    void await_suspend(std::coroutine_handle<> task) { gate.parked_.push_back(task); }
    void await_resume() const {}
  };
  [[nodiscard]] Awaiter wait() { return Awaiter{*this}; }
  void open(Calendar& calendar) { open(calendar, parked_.size()); }
  // Resumes at most so many: for waiters of which each takes one piece of work and looks for more before it parks
  // again.
  void open(Calendar& calendar, std::size_t most) {
    const std::size_t count = std::min(most, parked_.size());
    for (std::size_t i = 0; i < count; ++i) calendar.resume_at(calendar.now(), parked_[i]);
    parked_.erase(parked_.begin(), parked_.begin() + static_cast<std::ptrdiff_t>(count));
  }
  [[nodiscard]] bool has_waiters() const { return !parked_.empty(); }

 private:
  std::vector<std::coroutine_handle<>> parked_;
};

struct SleepAwaiter {
  Calendar& calendar;
  Picoseconds until;
  bool await_ready() const { return until <= calendar.now(); }
  void await_suspend(std::coroutine_handle<> task) { calendar.resume_at(until, task); }
  void await_resume() const {}
};
[[nodiscard]] inline SleepAwaiter sleep_until(Calendar& calendar, Picoseconds t) { return {calendar, t}; }

}  // namespace iommu
