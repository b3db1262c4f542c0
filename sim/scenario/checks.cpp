// SPDX-License-Identifier: Apache-2.0
#include "sim/scenario/checks.hpp"

#include <algorithm>
#include <bit>
#include <optional>
#include <set>

#include "sim/scenario/nearest.hpp"
#include "sim/scenario/schema.hpp"

namespace iommu::scenario {

namespace {

std::string at_index(const char* list, std::size_t index, const std::string& rest = {}) {
  return std::string(list) + "[" + std::to_string(index) + "]" + (rest.empty() ? "" : "." + rest);
}

std::string size_text(Bytes size) { return format_quantity(size.value(), size_dimension()); }

// ASSUMPTION(scenario-001): Xen, its heap and its tables need 64 MiB of the host besides the guests.
constexpr Bytes kXenReserve = 64_MiB;
// ASSUMPTION(scenario-002): a guest keeps 1 MiB for its kernel, rings and page tables besides DMA buffers.
constexpr Bytes kGuestReserve = 1_MiB;

void check_measure(const Scenario& s, const Complain& complain) {
  const bool traces_only = s.vifs.empty() && std::ranges::all_of(s.devices, [](const DeviceSetting& d) {
                             return d.workload.kind == WorkloadKind::Trace;
                           });
  if (s.measure.ios && s.measure.duration)
    complain("measure.duration", "both 'ios' and 'duration' are given; expected one of them");
  if (!s.measure.ios && !s.measure.duration && !traces_only)
    complain("measure", "expected 'ios' or 'duration': only a trace ends by itself");
  if (s.measure.duration && *s.measure.duration > s.measure.time_limit)
    complain("measure.duration", "longer than 'time_limit'");
}

void check_nic(const NicWorkload& nic, const std::string& path, const Complain& complain) {
  if (nic.buffer_size < nic.packet_size)
    complain(path + ".buffer_size",
             "a buffer of " + size_text(nic.buffer_size) + " does not hold a packet of " + size_text(nic.packet_size));
  if (nic.payloads_in_flight > nic.ring_entries)
    complain(path + ".payloads_in_flight", "more than the ring's " + std::to_string(nic.ring_entries) + " entries");
}

void check_random_dma(const RandomDmaWorkload& dma, Bytes memory, const std::string& path, const Complain& complain) {
  if (dma.window + kGuestReserve > memory)
    complain(path + ".window", "a window of " + size_text(dma.window) + " does not fit into the guest's " +
                                   size_text(memory) + " (it keeps " + size_text(kGuestReserve) + " for itself)");
  if (dma.access_size > dma.window || dma.window % dma.access_size != Bytes(0))
    complain(path + ".access_size", "the window is not a multiple of it");
  if (dma.window % dma.page_size != Bytes(0)) complain(path + ".page_size", "the window is not a multiple of it");
  if (dma.pattern == Pattern::Strided && (dma.stride > dma.window || dma.stride % dma.access_size != Bytes(0)))
    complain(path + ".stride", "expected a multiple of access_size, at most the window");
}

void check_device(Scenario& s, std::size_t index, const Complain& complain) {
  DeviceSetting& device = s.devices[index];
  const auto domain = std::ranges::find(s.domains, device.domain, &DomainSetting::name);
  if (domain == s.domains.end()) {
    std::vector<std::string> names;
    for (const DomainSetting& d : s.domains) names.push_back(d.name);
    complain(at_index("devices", index, "domain"),
             "there is no domain '" + device.domain + "'" + did_you_mean(device.domain, names));
    return;
  }
  device.domain_index = static_cast<std::size_t>(domain - s.domains.begin());
  if (device.vcpu >= domain->vcpus)
    complain(at_index("devices", index, "vcpu"),
             "domain '" + domain->name + "' has " + std::to_string(domain->vcpus) + " vCPUs, numbered from 0");
  const std::string path = at_index("devices", index, "workload");
  if (device.workload.kind == WorkloadKind::Nic) check_nic(device.workload.nic, path, complain);
  if (device.workload.kind == WorkloadKind::RandomDma)
    check_random_dma(device.workload.random_dma, domain->memory, path, complain);
}

// Devices that stand for several become several.
void make_copies(Scenario& s, const Complain& complain) {
  constexpr unsigned kDevicesPerBus = 32;
  s.devices_as_written = s.devices;
  std::vector<DeviceSetting> devices;
  for (std::size_t d = 0; d < s.devices.size(); ++d) {
    const DeviceSetting& device = s.devices[d];
    if (device.bdf.device() + device.count > kDevicesPerBus)
      complain(at_index("devices", d, "count"), "a bus has 32 devices");
    for (unsigned i = 0; i < device.count && device.bdf.device() + i < kDevicesPerBus; ++i) {
      DeviceSetting& copy = devices.emplace_back(device);
      copy.count = 1;
      copy.vcpu += i;
      copy.bdf = RequesterId::bdf(device.bdf.bus(), device.bdf.device() + i, device.bdf.function());
      if (i != 0) copy.name += "_" + std::to_string(i);
    }
  }
  s.devices = std::move(devices);
}

void check_devices(Scenario& s, const Complain& complain) {
  for (std::size_t i = 0; i < s.devices.size(); ++i) {
    check_device(s, i, complain);
    for (std::size_t earlier = 0; earlier < i; ++earlier) {
      if (s.devices[earlier].bdf == s.devices[i].bdf)
        complain(at_index("devices", i, "bdf"), "device '" + s.devices[earlier].name + "' has this BDF already");
      if (s.devices[earlier].name == s.devices[i].name)
        complain(at_index("devices", i, "name"), "the name '" + s.devices[i].name + "' is already taken");
    }
  }
}

// The place of a domain; nullopt after reporting.
std::optional<std::size_t> find_domain(const Scenario& s, const std::string& name, const std::string& path,
                                       const Complain& complain) {
  const auto found = std::ranges::find(s.domains, name, &DomainSetting::name);
  if (found != s.domains.end()) return static_cast<std::size_t>(found - s.domains.begin());
  std::vector<std::string> names;
  for (const DomainSetting& d : s.domains) names.push_back(d.name);
  complain(path, "there is no domain '" + name + "'" + did_you_mean(name, names));
  return std::nullopt;
}

void check_vif_vcpus(const Scenario& s, const VifSetting& vif, std::size_t index, const Complain& complain) {
  const auto check = [&](const char* key, std::uint64_t vcpu, const DomainSetting& domain) {
    if (vcpu >= domain.vcpus)
      complain(at_index("vifs", index, key),
               "domain '" + domain.name + "' has " + std::to_string(domain.vcpus) + " vCPUs, numbered from 0");
  };
  check("frontend_vcpu", vif.frontend_vcpu, s.domains[vif.frontend_index]);
  check("map_vcpu", vif.map_vcpu, s.domains[vif.backend_index]);
  check("read_vcpu", vif.read_vcpu, s.domains[vif.backend_index]);
  check("unmap_vcpu", vif.unmap_vcpu, s.domains[vif.backend_index]);
}

void check_vifs(Scenario& s, const Complain& complain) {
  for (std::size_t i = 0; i < s.vifs.size(); ++i) {
    VifSetting& vif = s.vifs[i];
    const auto frontend = find_domain(s, vif.frontend, at_index("vifs", i, "frontend"), complain);
    const auto backend = find_domain(s, vif.backend, at_index("vifs", i, "backend"), complain);
    if (!frontend || !backend) continue;
    vif.frontend_index = *frontend;
    vif.backend_index = *backend;
    if (*frontend == *backend) complain(at_index("vifs", i, "backend"), "both ends are in one domain");
    check_vif_vcpus(s, vif, i, complain);
    if (vif.packet_size.value() > vif.ring_slots * kPageSize.value())
      complain(at_index("vifs", i, "packet_size"), "more than the ring's slots hold");
    if (vif.ring_slots * kPageSize.value() + kGuestReserve.value() > s.domains[*frontend].memory.value())
      complain(at_index("vifs", i, "ring_slots"), "more than the memory of domain '" + vif.frontend + "' holds");
  }
  const bool all_idle = s.vifs.empty() && std::ranges::all_of(s.devices, [](const DeviceSetting& d) {
                          return d.workload.kind == WorkloadKind::Idle;
                        });
  if (all_idle) complain("devices", "no device does anything, and there is no virtual interface");
}

void check_domains(const Scenario& s, const Complain& complain) {
  Bytes needed = kXenReserve;
  std::set<std::string> names;
  for (std::size_t i = 0; i < s.domains.size(); ++i) {
    const DomainSetting& domain = s.domains[i];
    needed += domain.memory;
    if (!names.insert(domain.name).second)
      complain(at_index("domains", i, "name"), "the name '" + domain.name + "' is already taken");
    if (domain.memory % domain.p2m.page_size != Bytes(0))
      complain(at_index("domains", i, "memory"),
               "not a multiple of its p2m's pages of " + size_text(domain.p2m.page_size));
    if (std::ranges::none_of(s.devices, [&](const DeviceSetting& d) { return d.domain == domain.name; }) &&
        std::ranges::none_of(s.vifs, [&](const VifSetting& v) { return v.frontend == domain.name; }))
      complain(at_index("domains", i, "name"), "no device is assigned to domain '" + domain.name + "'");
    if (domain.kind == DomainKind::Dom0 && i != 0) complain(at_index("domains", i, "kind"), "Dom0 is the first domain");
    if (needed > s.platform.memory.size.value) {
      complain(at_index("domains", i, "memory"), "the domains and Xen's " + size_text(kXenReserve) + " need " +
                                                     size_text(needed) + "; platform '" + s.platform.name + "' has " +
                                                     size_text(s.platform.memory.size.value));
      return;
    }
  }
}

void check_bounce_pool(const Scenario& s, const StrategySetting& strategy, const std::string& path,
                       const Complain& complain) {
  if (!std::has_single_bit(strategy.pool_size.value())) complain(path + ".pool_size", "expected a power of two");
  for (const DomainSetting& domain : s.domains)
    if (strategy.pool_size + kGuestReserve > domain.memory)
      complain(path + ".pool_size", "a pool of " + size_text(strategy.pool_size) + " does not fit into the " +
                                        size_text(domain.memory) + " of domain '" + domain.name + "' (it keeps " +
                                        size_text(kGuestReserve) + " for itself)");
}

// One table for all devices of a bus, or of the machine: whoever shares it shares a kernel.
void check_flat_table(const Scenario& s, const StrategySetting& strategy, const std::string& path,
                      const Complain& complain) {
  const bool is_gart = strategy.kind == StrategyKind::Gart;
  const Bytes size = is_gart ? strategy.aperture : strategy.window;
  if (!std::has_single_bit(size.value()))
    complain(path + (is_gart ? ".aperture" : ".window"), "expected a power of two");
  if (is_gart && s.domains.size() != 1) complain(path, "one aperture serves one kernel; there are several domains");
  if (is_gart && s.topology.iommus.size() != 1) complain(path, "one aperture is of one unit; there are several iommus");
  for (const DeviceSetting& a : s.devices)
    for (const DeviceSetting& b : s.devices)
      if (a.bdf < b.bdf && a.bdf.bus() == b.bdf.bus() && a.domain != b.domain)
        complain(path, "devices '" + a.name + "' and '" + b.name + "' share a bus, and so a table, but no domain");
}

// A device that may not leave a default context that shows nothing reaches nothing.
void check_covered(const Scenario& s, const StrategySetting& strategy, const std::string& path,
                   const Complain& complain) {
  for (const DeviceSetting& device : s.devices)
    if (device.bdf.bus() < strategy.buses[0] || device.bdf.bus() > strategy.buses[1])
      complain(path, "device '" + device.name + "' is on another bus, and the default context is blocked");
}

void check_strategies(Scenario& s, const Complain& complain) {
  std::set<std::string> labels;
  for (std::size_t i = 0; i < s.strategies.size(); ++i) {
    StrategySetting& strategy = s.strategies[i];
    if (strategy.label.empty()) strategy.label = to_string(strategy.kind);
    if (!labels.insert(strategy.label).second)
      complain(at_index("strategies", i), "two strategies are called '" + strategy.label + "'; give one a 'label'");
    if (strategy.rfc_version == RfcVersion::V3) {
      const StrategySetting plain;
      if (strategy.deferred_flush || strategy.batch > 1 || strategy.scatter ||
          strategy.page_order != plain.page_order || strategy.lock != plain.lock ||
          strategy.tag_allocation != plain.tag_allocation || strategy.error_report != plain.error_report ||
          strategy.buses != plain.buses)
        complain(at_index("strategies", i, "rfc_version"),
                 "v3 has no deferred_flush, batch, scatter, page_order, lock, tag_allocation, error_report or buses to "
                 "choose");
      if (s.domains.size() > 1)
        complain(at_index("strategies", i, "rfc_version"), "v3 serves the hardware domain, and there is one only");
    }
    if (strategy.batch > 1 && strategy.scatter)
      complain(at_index("strategies", i, "scatter"), "a batch carries scatterlists already: give 'batch' or 'scatter'");
    if (strategy.error_report == ErrorReport::Address && (strategy.batch > 1 || strategy.scatter))
      complain(at_index("strategies", i, "error_report"),
               "operations of a batch have a status each, and lists a count: without 'batch' and 'scatter' only");
    if (strategy.error_report == ErrorReport::Address && strategy.superpages)
      complain(at_index("strategies", i, "error_report"),
               "undoing a map might need a table to split a merged page with: without 'superpages' only");
    if (strategy.buses.size() != 2 || strategy.buses[0] > strategy.buses[1])
      complain(at_index("strategies", i, "buses"), "expected the first and the last bus, such as [0, 15]");
    else if (strategy.default_context == DefaultContext::Blocked)
      check_covered(s, strategy, at_index("strategies", i, "buses"), complain);
    if (strategy.page_order == PageOrder::Explicit && strategy.superpages)
      complain(at_index("strategies", i, "superpages"), "with page_order: explicit nothing is left to merge");
    const bool any_lazy =
        std::ranges::any_of(s.domains, [](const DomainSetting& d) { return d.dma_api.policy == DmaPolicy::Lazy; });
    if (strategy.deferred_flush && !any_lazy)
      complain(at_index("strategies", i, "deferred_flush"),
               "needs a guest that defers: no domain has dma_api.policy: lazy");
    if (!own_unit(strategy.kind).empty()) check_flat_table(s, strategy, at_index("strategies", i), complain);
    if (strategy.kind == StrategyKind::Swiotlb) check_bounce_pool(s, strategy, at_index("strategies", i), complain);
  }
  for (std::size_t i = 0; i < s.strategies.size(); ++i) {
    if (s.strategies[i].endpoints == Endpoints::Physical) continue;
    if (s.strategies[i].mapping == VirtioMapping::Tables)
      complain(at_index("strategies", i, "mapping"),
               "a device model, which endpoints: virtual asks for, walks no tables");
    for (const DeviceSetting& device : s.devices)
      if (device.workload.kind == WorkloadKind::RandomDma)
        complain(
            at_index("strategies", i, "endpoints"),
            "device '" + device.name + "' does random_dma, which no device model emulates; expected a nic or a trace");
  }
  std::set<std::string> families;
  for (std::size_t i = 0; i < s.families.size(); ++i)
    if (!families.insert(s.families[i]).second) complain(at_index("families", i), "given twice");
}

void check_cache(const CachePlatform& cache, const std::string& path, const Complain& complain) {
  const std::uint64_t entries = cache.entries.value;
  const std::uint64_t ways = cache.ways.value == 0 ? entries : cache.ways.value;
  if (entries == 0) return;
  if (entries % ways != 0 || !std::has_single_bit(entries / ways))
    complain(path + ".entries.value",
             std::to_string(entries) + " entries in sets of " + std::to_string(ways) + " make no power of two of sets");
  if (cache.replacement.value == Replacement::TreePlru && !std::has_single_bit(ways))
    complain(path + ".replacement", "tree_plru needs a power of two of ways");
}

void check_platform(const Platform& p, const Complain& complain) {
  const IommuPlatform& u = p.iommu;
  check_cache(u.iotlb, "platform.iommu.iotlb", complain);
  check_cache(u.iotlb_large, "platform.iommu.iotlb_large", complain);
  check_cache(u.first_level, "platform.iommu.first_level", complain);
  check_cache(u.port_tlb, "platform.iommu.port_tlb", complain);
  check_cache(u.context_cache, "platform.iommu.context_cache", complain);
  check_cache(u.stage2_leaf_cache, "platform.iommu.stage2_leaf_cache", complain);
  constexpr std::array<const char*, kWalkCacheReaches> kReaches{"reach_2m", "reach_1g", "reach_512g", "reach_256t"};
  for (std::size_t r = 0; r < kWalkCacheReaches; ++r) {
    check_cache(u.stage1_walk_cache[r], std::string("platform.iommu.stage1_walk_cache.") + kReaches[r], complain);
    check_cache(u.stage2_walk_cache[r], std::string("platform.iommu.stage2_walk_cache.") + kReaches[r], complain);
  }
  const std::uint64_t bits = u.input_address_bits.value;
  if (bits != 39 && bits != 48 && bits != 57)
    complain("platform.iommu.input_address_bits.value", "expected 39, 48 or 57 (three, four or five levels)");
  constexpr std::array<std::uint64_t, 7> kWidths{1, 2, 4, 8, 12, 16, 32};
  if (std::ranges::find(kWidths, p.pcie.lanes.value) == kWidths.end())
    complain("platform.pcie.lanes.value", "a link has 1, 2, 4, 8, 12, 16 or 32 lanes");
  const std::uint64_t llc_line_set = 64 * p.memory.llc_ways.value;
  if (p.memory.llc_size.value.value() % llc_line_set != 0)
    complain("platform.memory.llc_size.value", "not a multiple of 64 bytes times llc_ways");
}

}  // namespace

void check_scenario(Scenario& scenario, const Complain& complain) {
  check_measure(scenario, complain);
  make_copies(scenario, complain);
  check_devices(scenario, complain);
  check_domains(scenario, complain);
  check_vifs(scenario, complain);
  check_strategies(scenario, complain);
  check_platform(scenario.platform, complain);
  resolve_topology(scenario, complain);
}

}  // namespace iommu::scenario
