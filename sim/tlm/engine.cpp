// SPDX-License-Identifier: Apache-2.0
#include "sim/tlm/engine.hpp"

#include <algorithm>

namespace iommu {

Engine::Engine(const sc_core::sc_module_name& name) : sc_core::sc_module(name) {
  const double resolution_ps = sc_core::sc_get_time_resolution().to_seconds() * 1e12;
  units_per_ps_ = static_cast<sc_core::sc_time::value_type>(1.0 / resolution_ps + 0.5);
  SIM_CHECK(units_per_ps_ >= 1, "the kernel's time resolution must divide 1 ps");
  sc_core::sc_spawn_options options;
  options.spawn_method();
  options.dont_initialize();
  options.set_sensitivity(&wake_);
  sc_core::sc_spawn([this] { activate(); }, "calendar", &options);
}

sc_core::sc_time Engine::to_sc_time(Picoseconds t) const {
  return sc_core::sc_time::from_value(static_cast<sc_core::sc_time::value_type>(t.value()) * units_per_ps_);
}

Picoseconds Engine::from_sc_time(const sc_core::sc_time& t) const {
  return Picoseconds(static_cast<std::int64_t>(t.value() / units_per_ps_));
}

Calendar& Engine::enter() {
  if (kernel_now() > calendar_.now()) calendar_.skip_to(kernel_now());
  wake_.notify(sc_core::SC_ZERO_TIME);
  return calendar_;
}

RunEnd Engine::run_until(Picoseconds limit) {
  SIM_CHECK(!in_run_, "a run inside a run");
  limit = std::min(limit, Picoseconds(kForever));
  if (limit < kernel_now()) return RunEnd::LimitReached;
  in_run_ = true;
  stopping_ = false;
  limit_ = limit;
  wake_.notify(sc_core::SC_ZERO_TIME);
  // The kernel leaves out what happens at the very end of a run; ours includes its limit.
  sc_core::sc_start(to_sc_time(limit - kernel_now() + Picoseconds(1)), sc_core::SC_EXIT_ON_STARVATION);
  in_run_ = false;
  limit_ = Picoseconds{};
  if (stopping_) return RunEnd::Stopped;
  if (kernel_now() > calendar_.now()) calendar_.skip_to(kernel_now());
  return calendar_.is_empty() && !sc_core::sc_pending_activity() ? RunEnd::Idle : RunEnd::LimitReached;
}

void Engine::activate() {
  ++activations_;
  if (stopping_) return sc_core::sc_pause();
  // Foreign processes finish this time first; this activation is not pending any more, theirs are.
  if (sc_core::sc_pending_activity_at_current_time()) {
    sc_core::next_trigger(sc_core::SC_ZERO_TIME);
    return;
  }
  run_calendar(horizon());
  sleep();
}

// The last time up to which our events may run before the kernel has to.
Picoseconds Engine::horizon() const {
  const Picoseconds now = kernel_now();
  if (!in_run_ || !runs_ahead_ || sc_core::sc_pending_activity_at_current_time()) return now;
  if (!sc_core::sc_pending_activity_at_future_time()) return std::max(now, limit_);
  const Picoseconds foreign = now + from_sc_time(sc_core::sc_time_to_pending_activity());
  return std::max(now, std::min(limit_, foreign - Picoseconds(1)));
}

void Engine::run_calendar(Picoseconds last) {
  while (!stopping_ && calendar_.step(last))
    if (continues_ != nullptr && !continues_(predicate_)) stopping_ = true;
}

// Until the calendar's next event or an enter(). Where a run ends ahead of the kernel, the kernel catches up first.
void Engine::sleep() {
  const Picoseconds now = kernel_now();
  if (stopping_) {
    if (calendar_.now() <= now) return sc_core::sc_pause();
    sc_core::next_trigger(to_sc_time(calendar_.now() - now));
    return;
  }
  const auto next = calendar_.next();
  if (next && *next <= now)
    sc_core::next_trigger(sc_core::SC_ZERO_TIME);
  else if (calendar_.now() > now && (!next || *next > limit_))
    sc_core::next_trigger(to_sc_time(calendar_.now() - now), wake_);
  else if (next)
    sc_core::next_trigger(to_sc_time(*next - now), wake_);
}

}  // namespace iommu
