// SPDX-License-Identifier: Apache-2.0
// What the strategies with a virtual unit have in common: the unit, the guest's driver for it, and Xen's half behind
// it.
#pragma once

#include <memory>
#include <utility>

#include "sim/guest/iommu_driver.hpp"
#include "sim/strategy/strategy.hpp"
#include "sim/xen/virtual_devices.hpp"

namespace iommu::strategy {

// Translation: xen::NestedTranslation or xen::ShadowTranslation.
template <class Translation>
class VirtualIommu : public DmaStrategy {
 public:
  template <class... More>
  VirtualIommu(const StrategyEnvironment& environment, const DriverOptions& guest_driver, More&&... more)
      : environment_(environment),
        unit_(environment.family, guest_driver.features, environment.domain, environment.options.trap_target),
        translation_(environment.xen, environment.domain, unit_, std::forward<More>(more)...),
        driver_(environment.family,
                {.driver = guest_driver,
                 .leaf_hint = environment.options.leaf_hint ? guest::LeafHint::On : guest::LeafHint::Off},
                unit_, environment.domain.memory, environment.pages) {
    unit_.connect(translation_);
  }

  Task<xen::Errno> start(CpuPort& cpu) override { co_return co_await bring_up(cpu, nullptr); }
  Task<guest::DmaSpace*> attach(CpuPort& cpu, RequesterId device) override {
    if (translation_.add_device(device) != xen::Errno::Ok) co_return nullptr;
    co_await device_added(cpu);
    co_return co_await driver_.attach(cpu, device);
  }
  [[nodiscard]] xen::VirtualUnit* virtual_unit() override { return &unit_; }
  Task<void> forward_fault(CpuPort& cpu, RequesterId device, Fault fault) override {
    co_await unit_.forward_fault(cpu, device, fault);
  }
  [[nodiscard]] StrategyCounters counters() const override {
    StrategyCounters counters;
    counters.traps = unit_.traps();
    counters.commands_emulated = unit_.commands_emulated();
    counters.guest = unit_.commands();
    counters.faults = unit_.faults();
    for (const auto& queue : driver_.own_queues()) counters.own_queues.merge(queue->counters());
    return counters;
  }
  void reset_counters() override {
    unit_.reset_counters();
    driver_.reset_counters();
  }
  [[nodiscard]] std::uint64_t guest_table_bytes() const override { return driver_.table_bytes(); }

 protected:
  // `window`: registers of the guest's own command rings, if it has any.
  Task<xen::Errno> bring_up(CpuPort& cpu, MmioPort* window) {
    const bool up = co_await driver_.bring_up(cpu, window);
    co_return up ? xen::Errno::Ok : xen::Errno::NoMemory;
  }
  // A device came behind the unit, which the guest may have enabled long ago.
  virtual Task<void> device_added(CpuPort&) { co_return; }
  [[nodiscard]] const Translation& translation() const { return translation_; }
  [[nodiscard]] Translation& translation() { return translation_; }

 private:
  StrategyEnvironment environment_;
  xen::VirtualUnit unit_;
  Translation translation_;
  guest::IommuDriver driver_;
};

}  // namespace iommu::strategy
