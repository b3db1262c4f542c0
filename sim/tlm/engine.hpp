// SPDX-License-Identifier: Apache-2.0
// Keeps SystemC's kernel and the calendar of our modules in step. The only place that converts between the two times.
//
// All timed modules share one Calendar, whose order is exact. The engine is an sc_module with one SC_METHOD that runs
// the calendar up to the kernel's next pending activity and then sleeps until the calendar's next event or that
// activity. A foreign SystemC module can act only at its own pending events, so that lookahead is exact: no event of
// ours runs ahead of a foreign one. When nothing foreign is pending, a whole run takes a few kernel activations.
//
// Order at one time: foreign processes first, through all their delta cycles; then our events, in scheduling order. So
// results never depend on the order in which the kernel runs its processes.
//
//   Engine engine("engine");
//   MemorySystem memory(engine.calendar(), …);
//   engine.run_until(10_us);
#pragma once

#include <systemc>

#include "sim/base/calendar.hpp"

namespace iommu {

enum class RunEnd : std::uint8_t {
  Idle,          // nothing is left to happen
  LimitReached,  // something is left, later than the limit
  Stopped,       // stop() was called, or the predicate no longer held
};

class Engine final : public sc_core::sc_module {
 public:
  // At most one per process, as SystemC allows one elaboration. The kernel's time resolution must divide 1 ps.
  explicit Engine(const sc_core::sc_module_name& name);

  [[nodiscard]] Calendar& calendar() { return calendar_; }

  // For foreign SystemC processes: the calendar at the kernel's time, ready for new events; the engine wakes up for
  // them.
  [[nodiscard]] Calendar& enter();
  // Called at construction by whoever calls out into foreign modules: from then on the calendar takes every step at the
  // kernel's time, because a call out must find the kernel there. Costs a kernel activation per distinct time.
  void require_kernel_time() { runs_ahead_ = false; }

  // Runs until nothing is left up to `limit` (an absolute time, included). Returns with kernel and calendar at the time
  // of the last thing that happened; a further call continues.
  RunEnd run_until(Picoseconds limit);
  RunEnd run() { return run_until(Picoseconds(kForever)); }
  // The same while `predicate()` holds; it is asked after every event of ours.
  template <class Predicate>
  RunEnd run_while(Predicate&& predicate, Picoseconds limit = Picoseconds(kForever)) {
    continues_ = [](void* p) -> bool { return (*static_cast<std::remove_reference_t<Predicate>*>(p))(); };
    predicate_ = &predicate;
    const RunEnd end = run_until(limit);
    continues_ = nullptr;
    return end;
  }
  // From inside an event: ends the run after that event.
  void stop() { stopping_ = true; }

  [[nodiscard]] sc_core::sc_time to_sc_time(Picoseconds t) const;
  [[nodiscard]] Picoseconds from_sc_time(const sc_core::sc_time& t) const;
  // How often the kernel activated the engine; tests of the lookahead look at it.
  [[nodiscard]] std::uint64_t activations() const { return activations_; }

 private:
  static constexpr std::int64_t kForever = 1LL << 60;  // 13 days of simulated time, safely convertible to sc_time

  void activate();
  [[nodiscard]] Picoseconds kernel_now() const { return from_sc_time(sc_core::sc_time_stamp()); }
  [[nodiscard]] Picoseconds horizon() const;
  void run_calendar(Picoseconds last);
  void sleep();

  Calendar calendar_;
  sc_core::sc_event wake_;
  sc_core::sc_time::value_type units_per_ps_ = 1;
  Picoseconds limit_;  // of the run in progress; a foreign sc_start() may end anywhere, so outside of runs it is zero
  bool runs_ahead_ = true;
  bool in_run_ = false;
  bool stopping_ = false;
  bool (*continues_)(void*) = nullptr;
  void* predicate_ = nullptr;
  std::uint64_t activations_ = 0;
};

}  // namespace iommu
