// SPDX-License-Identifier: Apache-2.0
// What a fence waits for beyond the IOMMU: DMA already translated but not yet at memory, and device TLBs.
#pragma once

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "sim/base/calendar.hpp"
#include "sim/translation/invalidation.hpp"
#include "sim/translation/iommu_core.hpp"

namespace iommu {

// Counts what is under way: DMA between translation and memory, requests that carry an older translation. A drain waits
// for what entered before it and for nothing that enters after it began, so traffic that never pauses cannot hold up a
// fence: entries are counted in two groups, and a drain starts a new one. Drains that are asked for while one is under
// way share the next.
class InFlightTracker {
 public:
  using Ticket = std::uint8_t;

  // Of DMA: the root port calls enter() in the same event in which a translation is delivered, leave() when memory has
  // served the DMA.
  [[nodiscard]] Ticket enter() {
    ++count_[current_];
    return current_;
  }
  void leave(Ticket ticket) {
    SIM_CHECK(count_[ticket] > 0, "what leaves has entered");
    if (--count_[ticket] == 0 && ticket != current_ && !draining_.empty()) finish();
  }
  // Calls back once everything that has entered so far has left; at once when nothing is in flight.
  void drain(Calendar::Action done, void* context, std::uint64_t argument) {
    waiting_.push_back({done, context, argument});
    if (draining_.empty()) start();
  }
  [[nodiscard]] std::uint64_t in_flight() const { return count_[0] + count_[1]; }

 private:
  struct Waiter {
    Calendar::Action done = nullptr;
    void* context = nullptr;
    std::uint64_t argument = 0;
  };
  void start() {
    std::swap(draining_, waiting_);
    current_ ^= 1U;
    if (count_[current_ ^ 1U] == 0) finish();
  }
  void finish() {
    // Whoever is called may ask for the next drain, which must not find this one still under way.
    std::vector<Waiter> done;
    std::swap(done, draining_);
    for (const Waiter& waiter : done) waiter.done(waiter.context, waiter.argument);
    if (draining_.empty() && !waiting_.empty()) start();
  }

  std::array<std::uint64_t, 2> count_{};
  Ticket current_ = 0;
  std::vector<Waiter> draining_;
  std::vector<Waiter> waiting_;
};

// Sends an ATS invalidation to endpoints; `done` runs when all that it concerns have confirmed (at once if there are
// none).
class DeviceTlbPort {
 public:
  virtual ~DeviceTlbPort() = default;
  virtual void invalidate(const InvalidationScope& scope, Calendar::Action done, void* context,
                          std::uint64_t argument) = 0;
  // Takes the answer to a group of page requests to the device that asked.
  virtual void respond(const PageRequestResponse&) {}
};

// Where message-signalled interrupts of the unit end, after their write has been served.
class InterruptSink {
 public:
  virtual ~InterruptSink() = default;
  virtual void raise(const InterruptMessage& message) = 0;
};

}  // namespace iommu
