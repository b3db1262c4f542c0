// SPDX-License-Identifier: Apache-2.0
// The simulated machine of one run: memory, IOMMUs, root ports, endpoints and vCPUs as platform and topology say, Xen
// on them, and a guest per domain. At most one per process, as SystemC elaborates once.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "sim/app/guest_kernel.hpp"
#include "sim/strategy/virtual_interface.hpp"
#include "sim/tlm/cpu_mmio_port.hpp"
#include "sim/tlm/engine.hpp"
#include "sim/tlm/software_endpoint.hpp"
#include "sim/tlm/unit_translation.hpp"

namespace iommu {

class Machine {
 public:
  // `scenario` outlives the machine. Throws std::runtime_error with one line.
  Machine(const scenario::Scenario& scenario, const scenario::StrategySetting& strategy,
          const FamilyDescriptor& family);
  ~Machine();
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  // Xen comes up, domains are built, guests boot and take their devices. Throws std::runtime_error with one line.
  void boot();
  // Drivers and devices begin.
  void start();
  // Nothing but timers is left to happen.
  [[nodiscard]] bool is_over() const;
  // A measurement begins: everything counts from zero, caches and mappings stay.
  void reset_statistics();

  [[nodiscard]] Engine& engine() { return engine_; }
  [[nodiscard]] const Calendar& calendar() { return engine_.calendar(); }
  [[nodiscard]] std::uint64_t completed_ios() const { return meter_.completed; }
  // What the vCPUs and the units wait for, for the message of a run that does not end.
  [[nodiscard]] std::string waits() const;

  // What hardware sees now, for `explain`.
  [[nodiscard]] HostMemory& host_memory() { return host_; }
  [[nodiscard]] IommuCore& core(std::size_t unit) { return *units_[unit].core; }

  // For the report.
  [[nodiscard]] const scenario::Scenario& scenario() const { return scenario_; }
  [[nodiscard]] const scenario::StrategySetting& strategy() const { return strategy_; }
  [[nodiscard]] const std::vector<std::unique_ptr<Guest>>& guests() const { return guests_; }
  [[nodiscard]] const std::vector<std::unique_ptr<strategy::VirtualInterface>>& vifs() const { return vifs_; }
  [[nodiscard]] IommuStatistics iommu_statistics() const;
  // Of one walk since boot, contexts included.
  [[nodiscard]] std::size_t most_reads_of_a_walk() const;
  [[nodiscard]] EndpointStatistics endpoint_statistics() const;
  // Threads that emulate devices.
  [[nodiscard]] const std::vector<Vcpu*>& device_models() const { return device_models_; }
  [[nodiscard]] MemoryCounts memory_counts() const;
  // Devices that Xen has forbidden to issue requests.
  [[nodiscard]] std::size_t devices_cut_off() const;
  [[nodiscard]] Histogram fence_wait() const;
  // Of all units together; since boot.
  [[nodiscard]] xen::PhysicalUnit::TagCounters domain_tags() const;
  [[nodiscard]] const xen::Hypervisor& xen() const { return *xen_; }
  [[nodiscard]] const xen::IommuOp& hypercall() const { return *hypercall_; }
  [[nodiscard]] const xen::IommuOpV3* hypercall_v3() const { return hypercall_v3_.get(); }
  [[nodiscard]] const strategy::Warden& warden() const { return warden_; }
  [[nodiscard]] const std::vector<std::optional<Trace>>& traces() const { return traces_; }
  // Whether devices of several domains share a requester id, which the scenario must have permitted.
  [[nodiscard]] bool divides_requester_ids() const;

 private:
  // One IOMMU with everything in front of it and behind it.
  struct Unit {
    std::unique_ptr<IommuCore> core;
    std::unique_ptr<IommuUnit> timed;
    std::vector<std::unique_ptr<UnitTranslation>> ports;  // as it covers root ports
    std::unique_ptr<CpuMmioPort> registers;
  };
  void add_unit(const scenario::IommuUnit& unit, const UnitFeatures& features, MemorySystem::Port& port);
  void add_root_ports();
  void add_endpoints();
  void load_traces();
  [[nodiscard]] bool emulates_devices() const { return strategy_.endpoints == scenario::Endpoints::Virtual; }
  void add_device_models();
  void start_emulation(std::size_t domain);
  void note_fault(const Fault& fault);
  Task<void> forward_faults();
  Task<std::string> bring_up();
  Task<std::string> build_domain(std::size_t index, xen::Domain& domain);
  [[nodiscard]] std::string build_vif(const scenario::VifSetting& vif);
  [[nodiscard]] std::vector<Vcpu*> add_vcpus(std::uint64_t count);
  [[nodiscard]] MemoryCounts memory_counts_since_start() const;
  [[nodiscard]] bool shares_id_with_another_domain(const scenario::DeviceSetting& device) const;
  [[nodiscard]] strategy::Warden::IsForeign foreign_to(const xen::Domain& domain) const;

  const scenario::Scenario& scenario_;
  const scenario::StrategySetting& strategy_;
  const FamilyDescriptor& family_;
  DriverOptions host_driver_;

  Engine engine_;
  HostMemory host_;
  MemorySystem memory_;
  FrameAllocator frames_;
  Vcpus vcpus_;
  Vcpu& boot_cpu_;
  strategy::Warden warden_;
  IoMeter meter_;
  std::vector<std::optional<Trace>> traces_;  // by device
  std::vector<Unit> units_;
  std::vector<std::unique_ptr<PcieRootPort>> root_ports_;
  std::vector<std::unique_ptr<PcieEndpoint>> endpoints_;     // by device; none where a device model emulates them
  std::vector<Vcpu*> device_models_;                         // which has one thread a domain
  std::vector<std::unique_ptr<SoftwareEndpoint>> emulated_;  // by device
  std::unique_ptr<xen::Hypervisor> xen_;
  std::unique_ptr<xen::IommuOp> hypercall_;
  std::vector<xen::Domain*> domains_;             // by place in the scenario; strategies may make others
  std::unique_ptr<xen::IommuOpV3> hypercall_v3_;  // null: Xen has the interface of v7
  std::vector<std::unique_ptr<Guest>> guests_;
  std::vector<std::unique_ptr<strategy::VirtualInterface>> vifs_;
  struct NotedFault {
    std::size_t guest = 0;
    RequesterId device;
    Fault fault;
  };
  std::deque<NotedFault> noted_faults_;  // that their guests do not know of yet
  std::optional<Task<void>> forwarding_;
  Task<std::string> boot_;
  MemoryCounts memory_before_;
  std::size_t most_reads_before_ = 0;
};

}  // namespace iommu
