// SPDX-License-Identifier: Apache-2.0
#include "sim/scenario/isolation.hpp"

#include <algorithm>
#include <boost/graph/adjacency_list.hpp>
#include <boost/graph/connected_components.hpp>
#include <map>
#include <utility>

#include "sim/scenario/schema.hpp"

namespace iommu::scenario {

namespace {

// Devices; an edge joins two that are not isolated, and says why.
using Relations = boost::adjacency_list<boost::vecS, boost::vecS, boost::undirectedS, boost::no_property, std::string>;

std::string device_key(std::size_t index, const char* key) { return "devices[" + std::to_string(index) + "]." + key; }

class Isolation {
 public:
  Isolation(Scenario& scenario, const Complain& complain)
      : scenario_(scenario), topology_(scenario.topology), complain_(complain), relations_(scenario.devices.size()) {}

  void resolve() {
    check_bridges();
    check_phantoms();
    for (DeviceSetting& device : scenario_.devices) device.shared_id = shared_id_of(device);
    relate();
    collect_groups();
    if (topology_.group_split == GroupSplit::Refused) refuse_splits();
  }

 private:
  [[nodiscard]] const PcieSwitch* bridge_above(const DeviceSetting& device) const {
    if (device.switch_path.empty()) return nullptr;
    const PcieSwitch& above = topology_.switches[device.switch_path.front()];
    return above.kind == SwitchKind::PciBridge ? &above : nullptr;
  }

  // DEVIATION(topology-001): a conventional bus has one bridge, to PCI Express; its own rate and arbitration are not
  // modelled, only the bridge's latency.
  void check_bridges() {
    for (std::size_t i = 0; i < topology_.switches.size(); ++i) {
      const PcieSwitch& s = topology_.switches[i];
      const std::string path = "topology.switches[" + std::to_string(i) + "].";
      if (s.kind == SwitchKind::PciBridge && s.acs.value_or(false))
        complain_(path + "acs", "a bridge to a conventional bus has no ACS");
      const auto above = std::ranges::find(topology_.switches, s.upstream, &PcieSwitch::name);
      if (above != topology_.switches.end() && above->kind == SwitchKind::PciBridge)
        complain_(path + "upstream", "bridge '" + s.upstream + "' leads to a conventional bus: only devices are on it");
    }
    check_bus_numbers();
  }

  // A conventional bus has one number, and no device elsewhere has it.
  void check_bus_numbers() {
    std::map<const PcieSwitch*, unsigned> bus_of;
    std::map<unsigned, const PcieSwitch*> bridge_of;
    for (const DeviceSetting& device : scenario_.devices) {
      const PcieSwitch* bridge = bridge_above(device);
      if (bridge != nullptr && bus_of.emplace(bridge, device.bdf.bus()).second)
        bridge_of.emplace(device.bdf.bus(), bridge);
    }
    for (std::size_t i = 0; i < scenario_.devices.size(); ++i) {
      const DeviceSetting& device = scenario_.devices[i];
      const PcieSwitch* bridge = bridge_above(device);
      const auto owner = bridge_of.find(device.bdf.bus());
      if (bridge != nullptr && bus_of[bridge] != device.bdf.bus())
        complain_(device_key(i, "bdf"), "another device gives the bus of bridge '" + bridge->name + "' another number");
      else if (owner != bridge_of.end() && owner->second != bridge)
        complain_(device_key(i, "bdf"), "this bus is that of bridge '" + owner->second->name + "'");
    }
  }

  void check_phantoms() {
    std::map<RequesterId, const DeviceSetting*> owners;
    for (const DeviceSetting& device : scenario_.devices) owners.emplace(device.bdf, &device);
    for (std::size_t i = 0; i < scenario_.devices.size(); ++i) {
      const DeviceSetting& device = scenario_.devices[i];
      for (const std::uint64_t function : device.phantom_functions) {
        const auto id = RequesterId::bdf(device.bdf.bus(), device.bdf.device(), static_cast<unsigned>(function));
        const auto [owner, is_free] = owners.emplace(id, &device);
        if (!is_free)
          complain_(device_key(i, "phantom_functions"),
                    to_string(id) + " is device '" + owner->second->name + "' already");
      }
    }
  }

  [[nodiscard]] std::optional<RequesterId> shared_id_of(const DeviceSetting& device) const {
    switch (topology_.iommus[device.iommu_index].isolation) {
      case UnitGranularity::None:
        return RequesterId::bdf(0, 0, 0);
      case UnitGranularity::Bus:
        return RequesterId::bdf(device.bdf.bus(), 0, 0);
      case UnitGranularity::Device:
        break;
    }
    if (bridge_above(device) == nullptr) return std::nullopt;
    return RequesterId::bdf(device.bdf.bus(), 0, 0);
  }

  // The highest place above a device at which requests may turn round instead of going up to the IOMMU. Whatever is
  // below it is not isolated from the device, whether or not lower switches have ACS.
  [[nodiscard]] std::optional<std::string> turning_point(const DeviceSetting& device) const {
    const RootPort& port = topology_.root_ports[device.root_port_index];
    if (!port.acs) return "root port '" + port.name + "' has no ACS";
    for (auto s = device.switch_path.rbegin(); s != device.switch_path.rend(); ++s) {
      const PcieSwitch& above = topology_.switches[*s];
      if (above.kind == SwitchKind::PciBridge) return "bridge '" + above.name + "' leads to a conventional bus";
      if (!above.acs.value_or(true)) return "switch '" + above.name + "' has no ACS";
    }
    return std::nullopt;
  }

  // Why the device is not isolated from every other for which the same can be said.
  [[nodiscard]] std::vector<std::string> causes(const DeviceSetting& device) const {
    std::vector<std::string> all;
    if (auto why = turning_point(device)) all.push_back(std::move(*why));
    if (device.shared_id)
      all.push_back("IOMMU '" + topology_.iommus[device.iommu_index].name + "' sees both as " +
                    to_string(*device.shared_id));
    if (!device.acs) {
      const std::string slot = to_string(device.bdf).substr(0, 5);
      all.push_back("functions of slot " + slot + " below '" + device.upstream + "' have no ACS");
    }
    return all;
  }

  void relate() {
    std::map<std::string, std::size_t> first;
    for (std::size_t i = 0; i < scenario_.devices.size(); ++i)
      for (const std::string& why : causes(scenario_.devices[i]))
        if (const auto [known, is_new] = first.emplace(why, i); !is_new)
          boost::add_edge(known->second, i, why, relations_);
  }

  void collect_groups() {
    std::vector<std::size_t> component(scenario_.devices.size());
    const std::size_t groups = boost::connected_components(
        relations_, boost::make_iterator_property_map(component.begin(), boost::get(boost::vertex_index, relations_)));
    topology_.groups.assign(groups, {});
    for (std::size_t i = 0; i < component.size(); ++i) {
      scenario_.devices[i].group = component[i];
      topology_.groups[component[i]].devices.push_back(i);
    }
    const auto [first, last] = boost::edges(relations_);
    for (auto edge = first; edge != last; ++edge) {
      auto& reasons = topology_.groups[component[boost::source(*edge, relations_)]].reasons;
      if (std::ranges::find(reasons, relations_[*edge]) == reasons.end()) reasons.push_back(relations_[*edge]);
    }
  }

  void refuse_splits() {
    for (const IsolationGroup& group : topology_.groups) {
      const DeviceSetting& first = scenario_.devices[group.devices.front()];
      for (const std::size_t i : group.devices) {
        const DeviceSetting& device = scenario_.devices[i];
        if (device.domain == first.domain) continue;
        complain_(device_key(i, "domain"), "device '" + device.name + "' is not isolated from device '" + first.name +
                                               "' of domain '" + first.domain + "' (" + group.reasons.front() +
                                               "): one domain must have both, or topology.group_split permit it");
        break;
      }
    }
  }

  Scenario& scenario_;
  Topology& topology_;
  const Complain& complain_;
  Relations relations_;
};

}  // namespace

void resolve_isolation(Scenario& scenario, const Complain& complain) { Isolation(scenario, complain).resolve(); }

}  // namespace iommu::scenario
