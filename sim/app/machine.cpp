// SPDX-License-Identifier: Apache-2.0
#include "sim/app/machine.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <stdexcept>
#include <utility>

#include "sim/app/platform_parameters.hpp"
#include "sim/base/check.hpp"

namespace iommu {

namespace {

// ASSUMPTION(machine-002): the machine's first MiB belongs to firmware; Xen and guests get nothing of it.
constexpr std::uint64_t kFirstFrame = 256;

std::uint64_t frames_of(Bytes size) { return (size.value() >> kPageLg2) - kFirstFrame; }

// What the strategy asks of the unit beside what the platform has.
UnitFeatures features_for(const scenario::Scenario& scenario, const scenario::StrategySetting& strategy) {
  UnitFeatures features = unit_features(scenario.platform.iommu);
  const Bytes aperture = strategy.kind == scenario::StrategyKind::Gart ? strategy.aperture : strategy.window;
  features.aperture_lg2 = static_cast<unsigned>(std::bit_width(aperture.value()) - 1);
  return features;
}

// As the scenario says, or as the strategy needs it.
xen::DefaultContext default_context_of(const scenario::StrategySetting& strategy) {
  if (strategy.default_context == scenario::DefaultContext::Blocked) return xen::DefaultContext::Blocked;
  return strategy_of(strategy.kind).default_context;
}

xen::DomainSetting domain_setting(const scenario::DomainSetting& d, xen::DefaultContext default_context) {
  xen::DomainSetting setting;
  setting.name = d.name;
  // DEVIATION(machine-003): Dom0 of a scenario is PVH; a PV Dom0 with its modes exists in sim/xen only.
  if (d.kind == scenario::DomainKind::Dom0) setting.privilege = xen::Privilege::HardwareDomain;
  setting.memory = d.memory;
  setting.backing =
      d.p2m.layout == scenario::P2mLayout::Contiguous ? xen::Backing::Contiguous : xen::Backing::Fragmented;
  setting.page_lg2 = static_cast<unsigned>(std::bit_width(d.p2m.page_size.value()) - 1);
  setting.default_context = default_context;
  return setting;
}

// Of the hardware, as far as Xen uses it.
UnitFeatures host_features(const scenario::Scenario& scenario, const scenario::StrategySetting& strategy) {
  UnitFeatures features = features_for(scenario, strategy);
  if (strategy.host_queues > 1) features.host_rings = static_cast<std::uint32_t>(strategy.host_queues);
  if (features.host_rings != 0 || has_guest_queues(strategy)) features.further_queues = FurtherQueues::All;
  return features;
}

// A guest's ring reaches the unit that it is part of, and no other.
void require_one_unit_per_domain(const scenario::Scenario& scenario) {
  for (const scenario::DeviceSetting& a : scenario.devices)
    for (const scenario::DeviceSetting& b : scenario.devices)
      if (a.domain_index == b.domain_index && a.iommu_index != b.iommu_index)
        throw std::runtime_error("doorbell guest_queue: domain '" + a.domain +
                                 "' has devices behind several IOMMUs ('" + a.name + "', '" + b.name +
                                 "'), and a ring of its own reaches one");
}

xen::IommuOpOptions iommu_op_options(const scenario::StrategySetting& s) {
  constexpr std::array kLocks{xen::LockGranularity::Context, xen::LockGranularity::Domain, xen::LockGranularity::Iommu};
  xen::IommuOpOptions options;
  if (s.deferred_flush) options.deferred = xen::DeferredFlush::Offered;
  if (s.batch > 1) options.batching = xen::Batching::Offered;
  if (s.scatter) options.scattered = xen::ScatteredMap::Offered;
  if (s.page_order == scenario::PageOrder::Explicit) options.page_order = xen::PageOrder::Explicit;
  options.lock = kLocks[static_cast<std::size_t>(s.lock)];
  if (s.error_report == scenario::ErrorReport::Address) options.error_report = xen::ErrorReport::Address;
  options.buses = {static_cast<std::uint8_t>(s.buses[0]), static_cast<std::uint8_t>(s.buses[1])};
  return options;
}

void require_supported(const FamilyDescriptor& family, const UnitFeatures& features, const std::string& whose) {
  if (features.further_queues != FurtherQueues::None && !family.has_further_queues)
    throw std::runtime_error(whose + "family '" + std::string(family.name) +
                             "' has one command queue per unit: neither doorbell guest_queue nor host_queues above 1");
  const std::string why = family.unsupported == nullptr ? std::string() : family.unsupported(features);
  if (!why.empty()) throw std::runtime_error(whose + why);
}

void add(MemoryCounts& to, const MemoryCounts& from) {
  to.reads += from.reads;
  to.writes += from.writes;
  to.bytes += from.bytes;
  to.llc_hits += from.llc_hits;
  to.waited += from.waited;
}

}  // namespace

Machine::Machine(const scenario::Scenario& scenario, const scenario::StrategySetting& strategy,
                 const FamilyDescriptor& family)
    : scenario_(scenario),
      strategy_(strategy),
      family_(family),
      host_driver_(strategy_of(strategy.kind).host_driver(host_features(scenario, strategy), unit_options(strategy))),
      engine_("engine"),
      host_(scenario.platform.memory.size.value),
      memory_(engine_.calendar(), host_, memory_parameters(scenario.platform.memory)),
      frames_(Mfn(kFirstFrame), frames_of(scenario.platform.memory.size.value)),
      vcpus_(engine_.calendar(), host_, scenario.platform.costs),
      boot_cpu_(vcpus_.add()) {
  require_supported(family, host_driver_.features, "");
  if (has_guest_queues(strategy)) require_one_unit_per_domain(scenario);
  if (const auto guest_driver = strategy_of(strategy.kind).guest_driver; guest_driver != nullptr)
    require_supported(
        family, guest_driver(unit_features(scenario.platform.iommu), family, unit_options(strategy)).features,
        strategy.shadow == scenario::ShadowSync::CachingMode ? "shadow: caching_mode: " : "the guest's unit: ");
  for (const AddressRange& fixed : family.fixed_inputs)
    static_cast<void>(
        frames_.reserve(Mfn(Hpa(fixed.first)), (fixed.last - fixed.first + 1) >> kPageLg2));  // devices never reach it
  // A CPU's stores leave lines in the last-level cache, unless software must flush them for the walker.
  if (host_driver_.features.coherent_walks)
    host_.on_write([](void* memory, Hpa at) { static_cast<MemorySystem*>(memory)->touch_line(at); }, &memory_);
  load_traces();
  xen_ = std::make_unique<xen::Hypervisor>(
      host_, frames_,
      xen::HypervisorOptions{
          .coalesce = strategy.superpages ? Coalesce::Yes : Coalesce::No,
          .seed = scenario.seed,
          .shatter_reserve = strategy.shatter_reserve ? xen::ShatterReserve::Kept : xen::ShatterReserve::None,
          .group_split = scenario.topology.group_split == scenario::GroupSplit::Permitted ? xen::GroupSplit::Permitted
                                                                                          : xen::GroupSplit::Refused,
          .tag_allocation = strategy.tag_allocation == scenario::TagAllocation::Attach
                                ? xen::TagAllocation::AtAttach
                                : xen::TagAllocation::AtCreation});
  hypercall_ = std::make_unique<xen::IommuOp>(*xen_, iommu_op_options(strategy));
  if (strategy.rfc_version == scenario::RfcVersion::V3) hypercall_v3_ = std::make_unique<xen::IommuOpV3>(*xen_);
  for (const scenario::IommuUnit& unit : scenario.topology.iommus)
    add_unit(unit, host_driver_.features, memory_.add_port(unit.name));
  add_root_ports();
  add_endpoints();
}

// What is parked in the calendar points into everything else.
Machine::~Machine() { engine_.calendar().clear(); }

void Machine::load_traces() {
  for (const scenario::DeviceSetting& device : scenario_.devices) {
    if (device.workload.kind == scenario::WorkloadKind::Trace)
      traces_.emplace_back(load_trace(device.workload.trace));
    else
      traces_.emplace_back(std::nullopt);
  }
}

void Machine::add_unit(const scenario::IommuUnit& unit, const UnitFeatures& features, MemorySystem::Port& port) {
  Unit u;
  u.core = family_.make_core(features);
  IommuParameters parameters = iommu_parameters(scenario_.platform.iommu);
  parameters.ports = static_cast<std::uint32_t>(unit.covers.size());
  // ASSUMPTION(flat-002): units with one flat table fetch no entry ahead of demand, whatever the platform's do: their
  // kernels hand out a freed address again without a flush, and a freed entry may lead to a scratch page.
  if (!strategy_of(strategy_.kind).own_unit.empty()) parameters.prefetch_pages = 0;
  if (const char* problem = parameters.problem()) throw std::runtime_error("unit '" + unit.name + "': " + problem);
  u.timed = std::make_unique<IommuUnit>(engine_.calendar(), *u.core, port, parameters,
                                        mmio_parameters(scenario_.platform.iommu), scenario_.seed);
  u.timed->on_fault([](void* self, const Fault& fault) { static_cast<Machine*>(self)->note_fault(fault); }, this);
  for (std::size_t p = 0; p < unit.covers.size(); ++p)
    u.ports.push_back(std::make_unique<UnitTranslation>(*u.timed, static_cast<std::uint8_t>(p)));
  u.registers = std::make_unique<CpuMmioPort>(u.timed->registers());
  xen_->add_unit({.name = unit.name, .family = &family_, .driver = host_driver_}, *u.registers);
  units_.push_back(std::move(u));
}

// DEVIATION(machine-010): Xen's fault handler runs when the fault is recorded, on no vCPU and in no time; what it hands
// on to a guest takes the time of a CPU that runs nothing else. Guests do not act on it.
void Machine::note_fault(const Fault& fault) {
  if (xen_->note_fault(fault.requester, engine_.calendar().now()) != xen::BusMastering::CutOff) {
    const xen::Hypervisor::Owner owner = xen_->owner_of(fault.requester);
    const auto domain = std::ranges::find(domains_, owner.domain);
    const auto guest = static_cast<std::size_t>(domain - domains_.begin());
    if (guest >= guests_.size() || !guests_[guest]->has_strategy()) return;
    noted_faults_.push_back({guest, owner.device, fault});
    if (forwarding_ && !forwarding_->done()) return;
    forwarding_ = forward_faults();
    forwarding_->start();
    return;
  }
  for (std::size_t d = 0; d < endpoints_.size(); ++d)
    if (scenario_.devices[d].bdf == fault.requester) endpoints_[d]->cut_off();
}

Task<void> Machine::forward_faults() {
  while (!noted_faults_.empty()) {
    const NotedFault noted = noted_faults_.front();
    noted_faults_.pop_front();
    co_await guests_[noted.guest]->strategy().forward_fault(boot_cpu_, noted.device, noted.fault);
  }
}

std::size_t Machine::devices_cut_off() const {
  return static_cast<std::size_t>(
      std::ranges::count_if(endpoints_, [](const auto& endpoint) { return endpoint->is_cut_off(); }));
}

void Machine::add_root_ports() {
  const RootPortParameters parameters = root_port_parameters(scenario_.platform.pcie);
  for (const scenario::RootPort& port : scenario_.topology.root_ports) {
    const auto unit = std::ranges::find_if(scenario_.topology.iommus, [&](const scenario::IommuUnit& u) {
      return std::ranges::find(u.covers, port.name) != u.covers.end();
    });
    if (unit == scenario_.topology.iommus.end())
      throw std::runtime_error("root port '" + port.name + "' is behind no IOMMU");
    const auto index = static_cast<std::size_t>(unit - scenario_.topology.iommus.begin());
    const auto place = std::ranges::find(unit->covers, port.name) - unit->covers.begin();
    root_ports_.push_back(std::make_unique<PcieRootPort>(engine_.calendar(),
                                                         *units_[index].ports[static_cast<std::size_t>(place)],
                                                         memory_.add_port(port.name), parameters, &warden_));
  }
}

void Machine::add_endpoints() {
  if (emulates_devices()) return;
  for (const scenario::DeviceSetting& device : scenario_.devices) {
    Picoseconds latency;
    for (const std::size_t s : device.switch_path) latency += scenario_.topology.switches[s].latency;
    EndpointParameters parameters = endpoint_parameters(scenario_.platform.pcie, latency);
    parameters.bridge_id = device.shared_id;
    endpoints_.push_back(
        std::make_unique<PcieEndpoint>(engine_.calendar(), *root_ports_[device.root_port_index], parameters));
  }
}

void Machine::add_device_models() {
  for (std::size_t i = 0; i < scenario_.domains.size(); ++i) device_models_.push_back(&vcpus_.add());
  for (const scenario::DeviceSetting& device : scenario_.devices) {
    // Devices that share an id share what the guest attached first.
    const auto attached = std::ranges::find_if(scenario_.devices, [&](const scenario::DeviceSetting& other) {
      return &other == &device ||
             (device.shared_id && other.shared_id == device.shared_id && other.domain_index == device.domain_index &&
              other.iommu_index == device.iommu_index);
    });
    emulated_.push_back(std::make_unique<SoftwareEndpoint>(engine_.calendar(), *device_models_[device.domain_index],
                                                           vcpus_, &warden_, attached->bdf));
  }
}

std::vector<Vcpu*> Machine::add_vcpus(std::uint64_t count) {
  std::vector<Vcpu*> cpus;
  for (std::uint64_t i = 0; i < count; ++i) cpus.push_back(&vcpus_.add());
  return cpus;
}

void Machine::boot() {
  boot_ = bring_up();
  boot_.start();
  engine_.run_while([this] { return !boot_.done(); });
  if (!boot_.done()) throw std::runtime_error("the machine does not come up: " + waits());
  if (const std::string problem = boot_.result(); !problem.empty()) throw std::runtime_error(problem);
}

Task<std::string> Machine::bring_up() {
  const xen::Errno up = co_await xen_->bring_up(boot_cpu_);
  if (up != xen::Errno::Ok) co_return "no host memory for the IOMMUs' own tables";
  // All vCPUs exist before the first guest sizes its per-CPU caches.
  std::vector<std::vector<Vcpu*>> cpus;
  for (const scenario::DomainSetting& domain : scenario_.domains) cpus.push_back(add_vcpus(domain.vcpus));
  if (emulates_devices()) add_device_models();
  for (std::size_t i = 0; i < scenario_.domains.size(); ++i) {
    xen::DomainSetting wanted = domain_setting(scenario_.domains[i], default_context_of(strategy_));
    if (hypercall_v3_) wanted.privilege = xen::Privilege::HardwareDomain;
    if (const std::string_view why = xen_->refusal(wanted); !why.empty())
      co_return "domain '" + scenario_.domains[i].name + "': " + std::string(why);
    xen::Domain* domain = xen_->create_domain(wanted);
    if (domain == nullptr)
      co_return "domain '" + scenario_.domains[i].name + "': not enough host memory, or no domain tag left";
    domains_.push_back(domain);
    if (hypercall_v3_) {
      const xen::Errno made = hypercall_v3_->set_up(*domain, static_cast<std::uint32_t>(strategy_.max_contexts),
                                                    static_cast<std::uint32_t>(strategy_.arena_order));
      if (made != xen::Errno::Ok) co_return "domain '" + scenario_.domains[i].name + "': no memory for its table pool";
    }
    guests_.push_back(
        std::make_unique<Guest>(GuestEnvironment{.calendar = engine_.calendar(),
                                                 .vcpus = vcpus_,
                                                 .warden = warden_,
                                                 .meter = meter_,
                                                 .xen = *xen_,
                                                 .hypercall = *hypercall_,
                                                 .family = family_,
                                                 .host = features_for(scenario_, strategy_),
                                                 .seed = scenario_.seed,
                                                 .doorbell_latency = scenario_.platform.pcie.propagation.value,
                                                 .hypercall_v3 = hypercall_v3_.get()},
                                scenario_.domains[i], strategy_, *domain, std::move(cpus[i])));
    const std::string problem = co_await build_domain(i, *domain);
    if (!problem.empty()) co_return problem;
  }
  for (const scenario::VifSetting& vif : scenario_.vifs)
    if (const std::string problem = build_vif(vif); !problem.empty()) co_return problem;
  co_return std::string();
}

std::string Machine::build_vif(const scenario::VifSetting& vif) {
  Guest& sender = *guests_[vif.frontend_index];
  const Guest& receiver = *guests_[vif.backend_index];
  vifs_.push_back(std::make_unique<strategy::VirtualInterface>(
      *xen_, vcpus_, *domains_[vif.frontend_index], *domains_[vif.backend_index],
      strategy::VirtualInterfaceCpus{.send = *sender.cpus()[vif.frontend_vcpu],
                                     .map = *receiver.cpus()[vif.map_vcpu],
                                     .read = *receiver.cpus()[vif.read_vcpu],
                                     .unmap = *receiver.cpus()[vif.unmap_vcpu]},
      strategy::VirtualInterfaceSetting{.packet_size = vif.packet_size,
                                        .ring_slots = static_cast<std::uint32_t>(vif.ring_slots),
                                        .budget = static_cast<std::uint32_t>(vif.budget)}));
  vifs_.back()->connect(meter_);
  if (vifs_.back()->prepare(sender.pages())) return {};
  return "virtual interface '" + vif.name + "': no pages for its ring";
}

Task<std::string> Machine::build_domain(std::size_t index, xen::Domain& domain) {
  std::vector<GuestDevice> devices;
  for (std::size_t d = 0; d < scenario_.devices.size(); ++d) {
    const scenario::DeviceSetting& setting = scenario_.devices[d];
    if (setting.domain_index != index) continue;
    const Trace* trace = traces_[d] ? &*traces_[d] : nullptr;
    if (emulates_devices()) {
      devices.push_back({setting, *emulated_[d], nullptr, trace});
      continue;
    }
    xen::DeviceSetting device;
    device.requester = setting.bdf;
    device.unit = setting.iommu_index;
    device.shared_id = setting.shared_id;
    device.group = setting.group;
    for (const std::uint64_t function : setting.phantom_functions)
      device.phantom_functions.push_back(
          RequesterId::bdf(setting.bdf.bus(), setting.bdf.device(), static_cast<unsigned>(function)));
    const xen::Errno assigned = co_await xen_->assign_device(boot_cpu_, domain, device);
    if (assigned != xen::Errno::Ok) co_return "device '" + setting.name + "' cannot be assigned to its domain";
    devices.push_back({setting, *endpoints_[d], endpoints_[d].get(), trace});
  }
  const std::string problem = co_await guests_[index]->boot(std::move(devices));
  if (!problem.empty()) co_return problem;
  for (const scenario::DeviceSetting& setting : scenario_.devices)
    if (setting.domain_index == index && shares_id_with_another_domain(setting))
      warden_.tolerate(setting.bdf, foreign_to(domain));
  if (emulates_devices()) start_emulation(index);
  co_return std::string();
}

// The guest's strategy is there to translate.
void Machine::start_emulation(std::size_t domain) {
  strategy::SoftwareTranslation* translation = guests_[domain]->strategy().software_translation();
  SIM_CHECK(translation != nullptr, "only strategies that translate for a device model have emulated devices");
  for (std::size_t d = 0; d < scenario_.devices.size(); ++d)
    if (scenario_.devices[d].domain_index == domain) emulated_[d]->start(*translation);
}

bool Machine::shares_id_with_another_domain(const scenario::DeviceSetting& device) const {
  return device.shared_id && std::ranges::any_of(scenario_.devices, [&](const scenario::DeviceSetting& other) {
           return other.domain_index != device.domain_index && other.iommu_index == device.iommu_index &&
                  other.shared_id == device.shared_id;
         });
}

bool Machine::divides_requester_ids() const {
  return std::ranges::any_of(scenario_.devices,
                             [this](const auto& device) { return shares_id_with_another_domain(device); });
}

strategy::Warden::IsForeign Machine::foreign_to(const xen::Domain& domain) const {
  return [this, &domain](Mfn frame) {
    return std::ranges::any_of(xen_->domains(), [&](const auto& other) {
      return other.get() != &domain && other->p2m.frame_of(frame).has_value();
    });
  };
}

void Machine::start() {
  for (const auto& guest : guests_) guest->start();
  for (const auto& vif : vifs_) vif->start();
}

bool Machine::is_over() const {
  return std::ranges::all_of(guests_, [](const auto& guest) { return guest->is_over(); }) &&
         std::ranges::all_of(vifs_, [](const auto& vif) { return vif->is_done(); });
}

void Machine::reset_statistics() {
  most_reads_before_ = most_reads_of_a_walk();
  for (const Unit& unit : units_) unit.timed->reset_statistics();
  for (const auto& port : root_ports_) port->reset_statistics();
  for (const auto& endpoint : endpoints_) endpoint->reset_statistics();
  for (const auto& endpoint : emulated_) endpoint->reset_statistics();
  for (Vcpu* thread : device_models_) thread->reset_statistics();
  for (std::size_t u = 0; u < xen_->units(); ++u) xen_->unit(u).reset_counters();
  for (const auto& guest : guests_) guest->reset_statistics();
  for (const auto& vif : vifs_) vif->reset_statistics();
  hypercall_->reset_counters();
  if (hypercall_v3_) hypercall_v3_->reset_counters();
  warden_.reset_counts();
  memory_before_ = memory_counts_since_start();
}

std::string Machine::waits() const {
  std::string text;
  for (const auto& cpu : vcpus_.vcpus()) {
    const std::string what = cpu->waits_for();
    if (!what.empty()) text += (text.empty() ? "" : "; ") + ("vCPU " + std::to_string(cpu->id().value())) + ": " + what;
  }
  for (std::size_t u = 0; u < units_.size(); ++u) {
    const std::string what = units_[u].timed->waits_for();
    if (!what.empty()) text += (text.empty() ? "" : "; ") + ("unit " + scenario_.topology.iommus[u].name + ": " + what);
  }
  return text.empty() ? "nothing is left to happen" : text;
}

IommuStatistics Machine::iommu_statistics() const {
  IommuStatistics sum;
  for (const Unit& unit : units_) sum.merge(unit.timed->statistics());
  return sum;
}

std::size_t Machine::most_reads_of_a_walk() const {
  return std::max(most_reads_before_, iommu_statistics().reads_per_miss.most());
}

EndpointStatistics Machine::endpoint_statistics() const {
  EndpointStatistics sum;
  const auto add = [&sum](const EndpointStatistics& s) {
    sum.operations += s.operations;
    sum.bytes += s.bytes;
    sum.faulted += s.faulted;
    sum.latency.merge(s.latency);
  };
  for (const auto& endpoint : endpoints_) add(endpoint->statistics());
  for (const auto& endpoint : emulated_) add(endpoint->statistics());
  return sum;
}

MemoryCounts Machine::memory_counts_since_start() const {
  MemoryCounts sum;
  for (const MemoryCounts& kind : memory_.total()) add(sum, kind);
  return sum;
}

MemoryCounts Machine::memory_counts() const {
  MemoryCounts counts = memory_counts_since_start();
  counts.reads -= memory_before_.reads;
  counts.writes -= memory_before_.writes;
  counts.bytes -= memory_before_.bytes;
  counts.llc_hits -= memory_before_.llc_hits;
  return counts;
}

xen::PhysicalUnit::TagCounters Machine::domain_tags() const {
  xen::PhysicalUnit::TagCounters sum;
  for (std::size_t u = 0; u < xen_->units(); ++u) {
    const xen::PhysicalUnit::TagCounters& c = xen_->unit(u).tag_counters();
    sum.in_use += c.in_use;
    sum.peak += c.peak;
    sum.refused += c.refused;
  }
  return sum;
}

Histogram Machine::fence_wait() const {
  Histogram sum;
  for (std::size_t u = 0; u < xen_->units(); ++u) sum.merge(xen_->unit(u).fence_wait());
  for (const auto& guest : guests_) sum.merge(guest->strategy().counters().own_queues.fence_wait);
  return sum;
}

}  // namespace iommu
