// SPDX-License-Identifier: Apache-2.0
// The calendar of simulated time: what happens next, in exact order. All timed modules share one; SystemC's kernel is
// kept in step by the engine in sim/tlm.
//
// Order is (time, order of scheduling). So the arbitration of simultaneous events is stated here, and never depends on
// the order in which a kernel runs its processes. A timing wheel of 1.024 ns buckets covers the near future (where
// nearly all events fall), a heap the rest.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <coroutine>
#include <cstdint>
#include <optional>
#include <queue>
#include <vector>

#include "sim/base/check.hpp"
#include "sim/base/units.hpp"

namespace iommu {

class Calendar {
 public:
  // Plain function and context: scheduling allocates nothing.
  using Action = void (*)(void* context, std::uint64_t argument);

  [[nodiscard]] Picoseconds now() const { return now_; }

  // `when` is not before now(). Events at one time run in the order in which they were scheduled.
  void at(Picoseconds when, Action action, void* context, std::uint64_t argument = 0) {
    SIM_CHECK(when >= now_, "an event is scheduled in the past");
    const Event event{when, next_sequence_++, action, context, argument};
    if (tick_of(when) - tick_of(now_) < kBuckets)
      insert(event);
    else
      later_.push(event);
    ++pending_;
  }
  void after(Picoseconds delay, Action action, void* context, std::uint64_t argument = 0) {
    at(now_ + delay, action, context, argument);
  }
  void resume_at(Picoseconds when, std::coroutine_handle<> waiter) {
    at(
        when, [](void* frame, std::uint64_t) { std::coroutine_handle<>::from_address(frame).resume(); },
        waiter.address());
  }
  // Calls (object->*kMember)(argument).
  template <auto kMember, class T>
  void call_at(Picoseconds when, T* object, std::uint64_t argument = 0) {
    at(when, [](void* self, std::uint64_t a) { (static_cast<T*>(self)->*kMember)(a); }, object, argument);
  }

  [[nodiscard]] bool is_empty() const { return pending_ == 0; }
  [[nodiscard]] std::uint64_t executed() const { return executed_; }

  // Time of the next event; nullopt when there is none.
  [[nodiscard]] std::optional<Picoseconds> next() {
    if (pending_ == 0) return std::nullopt;
    const auto bucket = first_bucket();
    if (!bucket) return later_.top().when;
    return earliest(*bucket).when;
  }

  // Runs the next event if it is due by `limit`.
  bool step(Picoseconds limit) {
    const auto when = next();
    if (!when || *when > limit) return false;
    advance(*when);
    auto& events = wheel_[bucket_of(*when)];
    const Event event = events.back();
    events.pop_back();
    if (events.empty()) clear_bit(bucket_of(*when));
    --pending_;
    ++executed_;
    event.action(event.context, event.argument);
    return true;
  }
  // Runs everything due by `limit`; now() is then the time of the last event run.
  void run_until(Picoseconds limit) {
    while (step(limit)) {
    }
  }
  // Moves now() forward over a span without events.
  void skip_to(Picoseconds when) {
    SIM_CHECK(when >= now_ && (!next() || *next() >= when), "time may not skip over events");
    advance(when);
  }
  // Drops everything pending: before the coroutines that wait here are destroyed.
  void clear() {
    for (auto& bucket : wheel_) bucket.clear();
    occupied_.fill(0);
    later_ = {};
    pending_ = 0;
  }

 private:
  struct Event {
    Picoseconds when;
    std::uint64_t sequence;
    Action action;
    void* context;
    std::uint64_t argument;
  };
  static bool later(const Event& a, const Event& b) {
    return a.when != b.when ? a.when > b.when : a.sequence > b.sequence;
  }
  struct Later {
    bool operator()(const Event& a, const Event& b) const { return later(a, b); }
  };
  static constexpr unsigned kTickLg2 = 10;
  static constexpr std::uint64_t kBuckets = 4096;

  static std::uint64_t tick_of(Picoseconds t) { return static_cast<std::uint64_t>(t.value()) >> kTickLg2; }
  static std::size_t bucket_of(Picoseconds t) { return tick_of(t) % kBuckets; }

  void insert(const Event& event) {
    const std::size_t bucket = bucket_of(event.when);
    auto& events = wheel_[bucket];
    occupied_[bucket / 64] |= 1ULL << (bucket % 64);
    // The bucket being drained stays sorted, latest first; others are sorted when their turn comes.
    if (bucket == sorted_bucket_)
      events.insert(std::upper_bound(events.begin(), events.end(), event, later), event);
    else
      events.push_back(event);
  }
  const Event& earliest(std::size_t bucket) {
    auto& events = wheel_[bucket];
    if (bucket != sorted_bucket_) {
      if (events.size() > 1) std::sort(events.begin(), events.end(), later);
      sorted_bucket_ = bucket;
    }
    return events.back();
  }
  void clear_bit(std::size_t bucket) { occupied_[bucket / 64] &= ~(1ULL << (bucket % 64)); }

  // The first occupied bucket at or after now's, in wheel order.
  [[nodiscard]] std::optional<std::size_t> first_bucket() const {
    const std::size_t start = bucket_of(now_);
    const std::uint64_t head = occupied_[start / 64] >> (start % 64);
    if (head != 0) return start + static_cast<std::size_t>(std::countr_zero(head));
    for (std::size_t i = 1; i <= kBuckets / 64; ++i) {
      const std::size_t word = (start / 64 + i) % (kBuckets / 64);
      if (occupied_[word] != 0) return word * 64 + static_cast<std::size_t>(std::countr_zero(occupied_[word]));
    }
    return std::nullopt;
  }
  void advance(Picoseconds when) {
    now_ = when;
    while (!later_.empty() && tick_of(later_.top().when) - tick_of(now_) < kBuckets) {
      insert(later_.top());
      later_.pop();
    }
    // `when` may have come from the heap: make sure its bucket is in drain order.
    if (const std::size_t bucket = bucket_of(when); !wheel_[bucket].empty()) (void)earliest(bucket);
  }

  Picoseconds now_;
  std::uint64_t next_sequence_ = 0;
  std::uint64_t pending_ = 0;
  std::uint64_t executed_ = 0;
  std::size_t sorted_bucket_ = ~std::size_t{0};
  std::array<std::vector<Event>, kBuckets> wheel_;
  std::array<std::uint64_t, kBuckets / 64> occupied_{};
  std::priority_queue<Event, std::vector<Event>, Later> later_;
};

}  // namespace iommu
