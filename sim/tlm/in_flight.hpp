// SPDX-License-Identifier: Apache-2.0
// What a fence waits for beyond the IOMMU: DMA already translated but not yet at memory, and device TLBs.
#pragma once

#include <array>
#include <cstdint>
#include <utility>

#include "sim/base/calendar.hpp"
#include "sim/translation/invalidation.hpp"
#include "sim/translation/iommu_core.hpp"

namespace iommu {

// Counts DMA between translation and memory. A drain waits for what entered before it and for nothing later, so traffic
// that never pauses cannot hold up a fence: entries are counted in two groups, and a drain starts a new one.
class InFlightTracker {
 public:
  using Ticket = std::uint8_t;

  // The root port calls enter() in the same event in which a translation is delivered, leave() when memory has served
  // the DMA.
  [[nodiscard]] Ticket enter() {
    ++count_[current_];
    return current_;
  }
  void leave(Ticket ticket) {
    SIM_CHECK(count_[ticket] > 0, "DMA leaves that never entered");
    if (--count_[ticket] == 0 && ticket != current_ && waiter_ != nullptr) finish();
  }
  // Calls back once everything that has entered so far has left; at once when nothing is in flight. One drain at a
  // time.
  void drain(Calendar::Action done, void* context, std::uint64_t argument) {
    SIM_CHECK(waiter_ == nullptr, "one drain at a time");
    waiter_ = done;
    context_ = context;
    argument_ = argument;
    current_ ^= 1U;
    if (count_[current_ ^ 1U] == 0) finish();
  }
  [[nodiscard]] std::uint64_t in_flight() const { return count_[0] + count_[1]; }

 private:
  void finish() { std::exchange(waiter_, nullptr)(context_, argument_); }

  std::array<std::uint64_t, 2> count_{};
  Ticket current_ = 0;
  Calendar::Action waiter_ = nullptr;
  void* context_ = nullptr;
  std::uint64_t argument_ = 0;
};

// Sends an ATS invalidation to endpoints; `done` runs when all that it concerns have confirmed (at once if there are
// none).
class DeviceTlbPort {
 public:
  virtual ~DeviceTlbPort() = default;
  virtual void invalidate(const InvalidationScope& scope, Calendar::Action done, void* context,
                          std::uint64_t argument) = 0;
};

// Where message-signalled interrupts of the unit end, after their write has been served.
class InterruptSink {
 public:
  virtual ~InterruptSink() = default;
  virtual void raise(const InterruptMessage& message) = 0;
};

}  // namespace iommu
