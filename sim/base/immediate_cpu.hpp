// SPDX-License-Identifier: Apache-2.0
// A CPU for unit tests: charges take no time and are counted, and nothing ever parks. What would wait for ever (a lock
// that is held, a word that never comes, a signal nobody raised) sets would_block() and goes on, so that a test fails
// instead of hanging.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>

#include "sim/base/cpu_port.hpp"

namespace iommu {

class ImmediateCpu final : public CpuPort, public SignalPort {
 public:
  // `read32` is what polls look at; without it every poll would block.
  explicit ImmediateCpu(CpuId id = CpuId(0), std::function<std::uint32_t(Hpa)> read32 = {})
      : CpuPort(id), read32_(std::move(read32)) {}

  [[nodiscard]] Picoseconds now() const override { return now_; }
  void release(SpinLock& lock) override {
    if (!lock.held) would_block_ = true;  // not held: just as wrong
    lock.held = false;
  }
  void raise(Signal& signal) override { signal.raised = true; }

  [[nodiscard]] const CostCounts& charged() const { return charged_; }
  [[nodiscard]] bool would_block() const { return would_block_; }

 protected:
  bool begin(CpuWait& wait) override {
    switch (wait.kind) {
      case CpuWaitKind::Charge:
        charged_.add(wait.cost, wait.times);
        break;
      case CpuWaitKind::Acquire:
        charged_.add(CostId::LockUncontended, 1);
        ++wait.lock->acquisitions;
        if (std::exchange(wait.lock->held, true)) would_block_ = true;
        break;
      case CpuWaitKind::Poll:
        charged_.add(CostId::FencePoll, 1);
        if (!read32_ || read32_(wait.poll_address) != wait.poll_value) would_block_ = true;
        break;
      case CpuWaitKind::Idle:
        if (!std::exchange(wait.signal->raised, false)) would_block_ = true;
        break;
      case CpuWaitKind::SleepUntil:
        now_ = std::max(now_, wait.until);
        break;
    }
    return true;
  }

 private:
  std::function<std::uint32_t(Hpa)> read32_;
  CostCounts charged_;
  Picoseconds now_{};
  bool would_block_ = false;
};

}  // namespace iommu
