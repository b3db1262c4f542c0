// SPDX-License-Identifier: Apache-2.0
// When a device that faults and faults loses bus mastering. [xen/drivers/passthrough/pci.c, pci_check_disable_device:
// the count halves at a fault more than 10 ms after the one before; the tenth disables]
#pragma once

#include "sim/base/units.hpp"

namespace iommu::xen {

enum class BusMastering : std::uint8_t { On, CutOff };

class FaultThrottle {
 public:
  static constexpr unsigned kThreshold = 10;
  static constexpr Picoseconds kDecay{10'000'000'000};

  // What a fault at this time leads to. CutOff is for good.
  BusMastering count(Picoseconds now) {
    if (now - last_ > kDecay) count_ /= 2;
    last_ = now;
    ++count_;
    if (count_ >= kThreshold) state_ = BusMastering::CutOff;
    return state_;
  }
  [[nodiscard]] BusMastering state() const { return state_; }

 private:
  unsigned count_ = 0;
  Picoseconds last_{};
  BusMastering state_ = BusMastering::On;
};

}  // namespace iommu::xen
