// SPDX-License-Identifier: Apache-2.0
// A timed IOMMU as what a root port has its addresses translated by.
#pragma once

#include "sim/tlm/iommu_unit.hpp"
#include "sim/tlm/root_port.hpp"

namespace iommu {

class UnitTranslation final : public TranslationPort {
 public:
  // `port`: of the unit, that this root port's requests enter by.
  explicit UnitTranslation(IommuUnit& unit, std::uint8_t port = 0) : unit_(unit), port_(port) {}
  [[nodiscard]] bool can_accept() const override { return unit_.can_accept(); }
  void on_space(Calendar::Action action, void* context, std::uint64_t argument) override {
    unit_.on_space(action, context, argument);
  }
  void submit(UnitRequest& request) override {
    request.port = port_;
    unit_.submit(request);
  }
  [[nodiscard]] InFlightTracker& in_flight() override { return unit_.in_flight(); }

 private:
  IommuUnit& unit_;
  std::uint8_t port_;
};

}  // namespace iommu
