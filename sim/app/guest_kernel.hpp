// SPDX-License-Identifier: Apache-2.0
// One guest of a run: its kernel's memory, the strategy by which it gets DMA translation, and for each device a DMA API
// and a driver.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "sim/app/device_run.hpp"
#include "sim/strategy/strategy.hpp"
#include "sim/strategy/warden.hpp"

namespace iommu {

// A device as the guest's kernel gets it. References outlive the guest.
struct GuestDevice {
  const scenario::DeviceSetting& setting;
  DmaPort& dma;
  PcieEndpoint* pcie = nullptr;  // null: it is emulated
  const Trace* trace = nullptr;
};

// What all guests of a machine share; outlives them.
struct GuestEnvironment {
  Calendar& calendar;
  Vcpus& vcpus;
  strategy::Warden& warden;
  IoMeter& meter;
  xen::Hypervisor& xen;
  xen::IommuOp& hypercall;
  const FamilyDescriptor& family;
  UnitFeatures host;
  std::uint64_t seed = 1;
  Picoseconds doorbell_latency;
  xen::IommuOpV3* hypercall_v3 = nullptr;  // where that is Xen's interface
};

class Guest {
 public:
  // `domain` exists and has its devices; `cpus` are its vCPUs.
  Guest(const GuestEnvironment& environment, const scenario::DomainSetting& setting,
        const scenario::StrategySetting& strategy, xen::Domain& domain, std::vector<Vcpu*> cpus);
  Guest(const Guest&) = delete;
  Guest& operator=(const Guest&) = delete;

  // The kernel boots and takes its devices. Why it cannot; empty: it did.
  Task<std::string> boot(std::vector<GuestDevice> devices);
  // Drivers and devices begin.
  void start();
  [[nodiscard]] bool is_over() const;
  void reset_statistics();

  [[nodiscard]] const scenario::DomainSetting& setting() const { return setting_; }
  [[nodiscard]] const xen::Domain& domain() const { return domain_; }
  [[nodiscard]] const std::vector<Vcpu*>& cpus() const { return cpus_; }
  [[nodiscard]] bool has_strategy() const { return strategy_ != nullptr; }
  [[nodiscard]] const strategy::DmaStrategy& strategy() const { return *strategy_; }
  [[nodiscard]] strategy::DmaStrategy& strategy() { return *strategy_; }
  // Its kernel's own, from boot() on.
  [[nodiscard]] guest::GuestPages& pages() { return *pages_; }
  void add_to(IoTotals& totals) const;

  // DMA API calls of all devices since the last reset_statistics().
  struct DmaApiTotals {
    std::uint64_t maps = 0;
    std::uint64_t unmaps = 0;
    std::uint64_t flushes = 0;
    std::uint64_t failures = 0;
    Histogram flush_time;
  };
  [[nodiscard]] DmaApiTotals dma_api() const;

 private:
  // Devices that have one requester id have one API, made for the first of them. [Linux: one DMA domain per group]
  // DEVIATION(guest-001): devices of a group with ids of their own have a DMA domain each, as guests see no bridges.
  struct OpenApi {
    const scenario::DeviceSetting* first = nullptr;
    Vcpu* cpu = nullptr;
    std::unique_ptr<guest::DmaApi> api{};
    Task<void> flush_timer{};
  };
  Task<std::string> take(GuestDevice device);
  // nullptr: no address space for it.
  Task<guest::DmaApi*> open_api(Vcpu& cpu, const scenario::DeviceSetting& device);
  bool claim_pages(const std::vector<GuestDevice>& devices);
  [[nodiscard]] guest::DmaApiOptions dma_api_options() const;
  [[nodiscard]] strategy::StrategyOptions strategy_options(const scenario::StrategySetting& strategy) const;

  GuestEnvironment environment_;
  const scenario::DomainSetting& setting_;
  const scenario::StrategySetting& strategy_setting_;
  xen::Domain& domain_;
  std::vector<Vcpu*> cpus_;
  std::unique_ptr<guest::GuestPages> pages_;
  std::unique_ptr<strategy::DmaStrategy> strategy_;
  std::vector<OpenApi> apis_;
  std::vector<std::unique_ptr<DeviceRun>> devices_;
};

// Whether guests own command rings of the units.
[[nodiscard]] bool has_guest_queues(const scenario::StrategySetting& strategy);
// The strategy that a scenario names.
[[nodiscard]] const strategy::StrategyDescriptor& strategy_of(scenario::StrategyKind kind);
[[nodiscard]] std::optional<xen::ShadowSync> shadow_sync(const scenario::StrategySetting& strategy);
// Its options as far as they decide how units are programmed.
[[nodiscard]] strategy::StrategyOptions unit_options(const scenario::StrategySetting& strategy);

}  // namespace iommu
