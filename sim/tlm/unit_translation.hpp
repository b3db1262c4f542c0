// SPDX-License-Identifier: Apache-2.0
// What a root port is connected to: a timed IOMMU, or nothing at all.
#pragma once

#include "sim/tlm/iommu_unit.hpp"
#include "sim/tlm/root_port.hpp"

namespace iommu {

class UnitTranslation final : public TranslationPort {
 public:
  explicit UnitTranslation(IommuUnit& unit) : unit_(unit) {}
  [[nodiscard]] bool can_accept() const override { return unit_.can_accept(); }
  void on_space(Calendar::Action action, void* context, std::uint64_t argument) override {
    unit_.on_space(action, context, argument);
  }
  void submit(UnitRequest& request) override { unit_.submit(request); }
  [[nodiscard]] InFlightTracker& in_flight() override { return unit_.in_flight(); }

 private:
  IommuUnit& unit_;
};

// A root port that no IOMMU covers: bus addresses are host addresses, at once.
class NoTranslation final : public TranslationPort {
 public:
  explicit NoTranslation(Calendar& calendar) : calendar_(calendar) {}
  [[nodiscard]] bool can_accept() const override { return true; }
  void on_space(Calendar::Action, void*, std::uint64_t) override {}
  void submit(UnitRequest& request) override {
    request.response = Translation{.address = Hpa(request.translation.address.value()),
                                   .page_lg2 = kPageLg2,
                                   .allowed = kReadWrite,
                                   .attributes = {},
                                   .is_bypass = true};
    request.path = UnitPath::Bypass;
    request.arrival = request.completed = calendar_.now();
    calendar_.at(calendar_.now(), request.done, request.context, request.argument);
  }
  [[nodiscard]] InFlightTracker& in_flight() override { return in_flight_; }

 private:
  Calendar& calendar_;
  InFlightTracker in_flight_;
};

}  // namespace iommu
