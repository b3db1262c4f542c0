// SPDX-License-Identifier: Apache-2.0
// virtio-iommu: the guest asks a paravirtual device for every change, in requests on a virtqueue; Xen, or a device
// model behind it, keeps the I/O page tables. Requests of one dma_map or dma_unmap share a kick, which is one exit.
// Or its endpoints are emulated devices, whose DMA the device model translates by what was mapped; then no table and no
// unit take part. Or the guest's own tables are bound to endpoints, and hardware nests over them: then maps need no
// request, and an unmap asks for its invalidation. [virtio-iommu RFC of 2017, its two scenarios; VIRTIO 1.3 §5.13]
#include "sim/xen/virtio_iommu.hpp"
#include "sim/guest/virtio_iommu_driver.hpp"
#include "sim/strategy/strategy.hpp"

namespace iommu::strategy {

namespace {

bool binds_tables(const StrategyOptions& options) { return options.mapping == VirtioMapping::Tables; }

// How the guest writes its tables: as for a unit without a hypervisor's stage.
DriverOptions table_driver(const StrategyEnvironment& environment) {
  DriverOptions options = kNested.guest_driver(environment.host, environment.family, environment.options);
  options.features.caching_mode = false;
  return options;
}

xen::VirtioIommuSetting device_setting(const StrategyEnvironment& environment) {
  xen::VirtioIommuSetting setting{.spaces = {.placement = environment.options.trap_target,
                                             .interrupt_windows = {environment.family.fixed_inputs.begin(),
                                                                   environment.family.fixed_inputs.end()}}};
  if (binds_tables(environment.options))
    setting.tables = {environment.family.binding, table_driver(environment).features};
  return setting;
}

guest::VirtioOwnTables own_tables(const StrategyEnvironment& environment) {
  if (!binds_tables(environment.options)) return {};
  const auto leaf_hint = environment.options.leaf_hint ? guest::LeafHint::On : guest::LeafHint::Off;
  return {&environment.family, {.driver = table_driver(environment), .leaf_hint = leaf_hint}};
}

class VirtioIommu final : public DmaStrategy, public SoftwareTranslation {
 public:
  explicit VirtioIommu(const StrategyEnvironment& environment)
      : options_(environment.options),
        memory_(environment.domain.memory),
        device_(environment.xen, environment.domain, device_setting(environment)),
        driver_(device_, environment.domain.memory, environment.pages, 0, own_tables(environment)) {}

  Task<xen::Errno> start(CpuPort& cpu) override {
    const bool up = co_await driver_.bring_up(cpu);
    co_return up ? xen::Errno::Ok : xen::Errno::NoMemory;
  }
  Task<guest::DmaSpace*> attach(CpuPort& cpu, RequesterId device) override {
    const xen::Errno added = co_await device_.add_endpoint(cpu, device, options_.endpoints);
    if (added != xen::Errno::Ok) co_return nullptr;
    co_return co_await driver_.attach(cpu, device);
  }
  Task<void> forward_fault(CpuPort& cpu, RequesterId device, Fault fault) override {
    co_await device_.report_fault(cpu, device, fault.address, fault.access);
  }
  [[nodiscard]] StrategyCounters counters() const override {
    StrategyCounters counters;
    counters.traps = device_.counters().traps;
    counters.virtio = device_.counters();
    counters.faults = xen::FaultForwarding{device_.counters().events, device_.counters().events_dropped};
    counters.guest = device_.counters().invalidations;
    return counters;
  }
  [[nodiscard]] std::uint64_t guest_table_bytes() const override { return driver_.table_bytes(); }
  void reset_counters() override { device_.reset_counters(); }

  [[nodiscard]] SoftwareTranslation* software_translation() override {
    return options_.endpoints == xen::EndpointKind::Virtual ? this : nullptr;
  }
  Task<std::optional<Hpa>> translate(CpuPort& cpu, RequesterId device, Iova address, Access access) override {
    // A device model asks Xen where the mappings are Xen's, and looks for itself where they are its own.
    if (options_.trap_target == xen::TrapTarget::Xen) co_await cpu.charge(CostId::BackendCall);
    co_await cpu.charge(CostId::SoftwareTranslate);
    const auto led = device_.spaces().translate(device, address, access);
    std::optional<Hpa> host;
    if (const auto* place = std::get_if<Gpa>(&led)) host = memory_.translate(*place);
    if (!host) co_await device_.report_fault(cpu, device, address, access);
    co_return host;
  }

 private:
  StrategyOptions options_;
  const GuestMemory& memory_;
  xen::VirtioIommu device_;
  guest::VirtioIommuDriver driver_;
};

}  // namespace

const StrategyDescriptor kVirtioIommu{
    .name = "virtio_iommu",
    .description = "the guest asks a paravirtual IOMMU by requests on a virtqueue; each kick traps",
    .host_driver =
        [](const UnitFeatures& host, const StrategyOptions& options) {
          return binds_tables(options) ? kNested.host_driver(host, options) : DriverOptions{.features = host};
        },
    .make = [](const StrategyEnvironment& environment) -> std::unique_ptr<DmaStrategy> {
      return std::make_unique<VirtioIommu>(environment);
    }};

}  // namespace iommu::strategy
