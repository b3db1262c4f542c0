// SPDX-License-Identifier: Apache-2.0
#include "sim/scenario/topology.hpp"

#include <algorithm>
#include <boost/graph/adjacency_list.hpp>
#include <boost/graph/strong_components.hpp>
#include <map>
#include <optional>

#include "sim/scenario/isolation.hpp"
#include "sim/scenario/nearest.hpp"

namespace iommu::scenario {

namespace {

// Root ports, then switches, then devices; an edge leads from a node to what it is plugged into.
using Graph = boost::adjacency_list<boost::vecS, boost::vecS, boost::directedS>;

std::string indexed(const char* list, std::size_t index, const char* key) {
  return std::string(list) + "[" + std::to_string(index) + "]." + key;
}

class Wiring {
 public:
  Wiring(Scenario& scenario, const Complain& complain)
      : scenario_(scenario), topology_(scenario.topology), complain_(complain) {}

  void resolve() {
    name_nodes();
    connect();
    find_cycles();
    assign_units();
    for (std::size_t d = 0; d < scenario_.devices.size(); ++d) place_device(d);
    find_unused();
  }

 private:
  std::size_t switch_node(std::size_t index) const { return topology_.root_ports.size() + index; }
  std::size_t device_node(std::size_t index) const { return switch_node(topology_.switches.size()) + index; }

  void name_node(const std::string& name, const std::string& path) {
    if (!nodes_.emplace(name, next_node_++).second) complain_(path, "the name '" + name + "' is already taken");
  }

  void name_nodes() {
    for (std::size_t i = 0; i < topology_.root_ports.size(); ++i)
      name_node(topology_.root_ports[i].name, indexed("topology.root_ports", i, "name"));
    for (std::size_t i = 0; i < topology_.switches.size(); ++i)
      name_node(topology_.switches[i].name, indexed("topology.switches", i, "name"));
    for (const auto& [name, node] : nodes_) names_.push_back(name);
  }

  // The node that `upstream` names.
  std::optional<std::size_t> find_upstream(const std::string& upstream, const std::string& path) {
    const auto found = nodes_.find(upstream);
    if (found != nodes_.end()) return found->second;
    complain_(path, "there is no root port or switch '" + upstream + "'" + did_you_mean(upstream, names_));
    return std::nullopt;
  }

  void connect() {
    graph_ = Graph(device_node(scenario_.devices.size()));
    for (std::size_t i = 0; i < topology_.switches.size(); ++i)
      if (const auto up = find_upstream(topology_.switches[i].upstream, indexed("topology.switches", i, "upstream")))
        boost::add_edge(switch_node(i), *up, graph_);
    for (std::size_t i = 0; i < scenario_.devices.size(); ++i)
      if (const auto up = find_upstream(scenario_.devices[i].upstream, indexed("devices", i, "upstream")))
        boost::add_edge(device_node(i), *up, graph_);
  }

  void find_cycles() {
    std::vector<std::size_t> component(boost::num_vertices(graph_));
    boost::strong_components(
        graph_, boost::make_iterator_property_map(component.begin(), boost::get(boost::vertex_index, graph_)));
    std::map<std::size_t, std::size_t> sizes;
    for (const std::size_t c : component) ++sizes[c];
    on_cycle_.assign(boost::num_vertices(graph_), false);
    for (std::size_t i = 0; i < topology_.switches.size(); ++i) {
      const std::size_t node = switch_node(i);
      on_cycle_[node] = sizes[component[node]] > 1 || boost::edge(node, node, graph_).second;
      if (on_cycle_[node])
        complain_(indexed("topology.switches", i, "upstream"),
                  "switch '" + topology_.switches[i].name + "' is upstream of itself: the topology is cyclic");
    }
  }

  void assign_units() {
    units_.resize(topology_.root_ports.size());
    std::map<std::string, std::size_t> unit_names;
    for (std::size_t u = 0; u < topology_.iommus.size(); ++u) {
      const IommuUnit& unit = topology_.iommus[u];
      if (!unit_names.emplace(unit.name, u).second)
        complain_(indexed("topology.iommus", u, "name"), "the name '" + unit.name + "' is already taken");
      for (std::size_t c = 0; c < unit.covers.size(); ++c) {
        const std::string path = indexed("topology.iommus", u, "covers") + "[" + std::to_string(c) + "]";
        const auto port = std::ranges::find(topology_.root_ports, unit.covers[c], &RootPort::name);
        if (port == topology_.root_ports.end()) {
          complain_(path, "there is no root port '" + unit.covers[c] + "'" + did_you_mean(unit.covers[c], names_));
          continue;
        }
        auto& units = units_[static_cast<std::size_t>(port - topology_.root_ports.begin())];
        if (!units.empty())
          complain_(path, "root port '" + unit.covers[c] + "' is covered by '" + topology_.iommus[units.front()].name +
                              "' already; devices behind it would be behind two IOMMUs");
        units.push_back(u);
      }
    }
  }

  std::optional<std::size_t> upstream_of(std::size_t node) const {
    const auto [first, last] = boost::out_edges(node, graph_);
    return first == last ? std::nullopt : std::optional<std::size_t>(boost::target(*first, graph_));
  }

  void place_device(std::size_t index) {
    DeviceSetting& device = scenario_.devices[index];
    std::optional<std::size_t> node = upstream_of(device_node(index));
    while (node && *node >= topology_.root_ports.size()) {
      if (on_cycle_[*node]) return;  // reported
      device.switch_path.push_back(*node - topology_.root_ports.size());
      used_.push_back(*node);
      node = upstream_of(*node);
    }
    if (!node) return;  // reported
    used_.push_back(*node);
    device.root_port_index = *node;
    if (units_[*node].empty()) {
      complain_(indexed("devices", index, "upstream"), "device '" + device.name +
                                                           "' is behind no IOMMU: no unit covers root port '" +
                                                           topology_.root_ports[*node].name + "'");
      return;
    }
    device.iommu_index = units_[*node].front();
  }

  void find_unused() {
    const auto is_used = [&](std::size_t node) { return std::ranges::find(used_, node) != used_.end(); };
    for (std::size_t i = 0; i < topology_.root_ports.size(); ++i)
      if (!is_used(i))
        complain_(indexed("topology.root_ports", i, "name"),
                  "no device is behind root port '" + topology_.root_ports[i].name + "'");
    for (std::size_t i = 0; i < topology_.switches.size(); ++i)
      if (!is_used(switch_node(i)) && !on_cycle_[switch_node(i)])
        complain_(indexed("topology.switches", i, "name"),
                  "no device is behind switch '" + topology_.switches[i].name + "'");
  }

  Scenario& scenario_;
  const Topology& topology_;
  const Complain& complain_;
  Graph graph_;
  std::map<std::string, std::size_t> nodes_;
  std::size_t next_node_ = 0;
  std::vector<std::string> names_;
  std::vector<bool> on_cycle_;
  std::vector<std::vector<std::size_t>> units_;  // of each root port
  std::vector<std::size_t> used_;
};

}  // namespace

void resolve_topology(Scenario& scenario, const Complain& complain) {
  bool is_wired = true;
  const Complain remember = [&](const std::string& path, const std::string& message) {
    is_wired = false;
    complain(path, message);
  };
  Wiring(scenario, remember).resolve();
  if (is_wired) resolve_isolation(scenario, complain);
}

}  // namespace iommu::scenario
