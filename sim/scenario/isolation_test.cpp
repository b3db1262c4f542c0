// SPDX-License-Identifier: Apache-2.0
// Isolation groups against their definition by pairs, and what a user is told.
#include "sim/scenario/isolation.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sim/base/rng.hpp"

namespace iommu::scenario {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

// A machine of two ports, p0 with and p1 as told, and whatever a test hangs below.
struct Fabric {
  Scenario scenario;
  std::vector<std::string> complaints;

  Fabric() {
    scenario.topology.iommus = {{.name = "unit", .covers = {"p0", "p1"}}};
    scenario.topology.root_ports = {{.name = "p0"}, {.name = "p1"}};
  }
  Fabric& add_switch(const std::string& name, const std::string& upstream, std::optional<bool> acs = std::nullopt) {
    scenario.topology.switches.push_back({.name = name, .upstream = upstream, .latency = Picoseconds(0), .acs = acs});
    return *this;
  }
  Fabric& add_bridge(const std::string& name, const std::string& upstream) {
    add_switch(name, upstream);
    scenario.topology.switches.back().kind = SwitchKind::PciBridge;
    return *this;
  }
  DeviceSetting& add(const std::string& upstream, RequesterId bdf, const std::string& domain = "a") {
    DeviceSetting device;
    device.name = "d" + std::to_string(scenario.devices.size());
    device.bdf = bdf;
    device.upstream = upstream;
    device.domain = domain;
    scenario.devices.push_back(device);
    return scenario.devices.back();
  }
  void resolve() {
    resolve_topology(scenario, [&](const std::string& path, const std::string& message) {
      complaints.push_back(path + ": " + message);
    });
  }
  [[nodiscard]] std::vector<std::size_t> groups() const {
    std::vector<std::size_t> all;
    for (const DeviceSetting& device : scenario.devices) all.push_back(device.group);
    return all;
  }
};

constexpr RequesterId bdf(unsigned bus, unsigned device = 0, unsigned function = 0) {
  return RequesterId::bdf(bus, device, function);
}

// Places below both ports, so that none is unused.
Fabric both_ports() {
  Fabric f;
  f.add("p0", bdf(200));
  f.add("p1", bdf(201));
  return f;
}

// Kills: a switch that groups although it has ACS, given or not; one that does not although it has none.
TEST(Isolation, ASwitchWithoutAcsMakesOneGroupOfAllBelow) {
  for (const std::optional<bool> acs : {std::optional<bool>(), std::optional(true), std::optional(false)}) {
    Fabric f = both_ports();
    f.add_switch("s", "p0", acs).add_switch("low", "s", true);
    f.add("s", bdf(1));
    f.add("low", bdf(2));
    f.resolve();
    EXPECT_THAT(f.complaints, IsEmpty());
    if (acs.value_or(true))
      EXPECT_THAT(f.groups(), ElementsAre(0, 1, 2, 3));
    else
      EXPECT_THAT(f.groups(), ElementsAre(0, 1, 2, 2)) << "a lower switch with ACS does not help";
  }
}

// Kills: a bridge that leaves requests their own ids; one that does so to devices elsewhere.
TEST(Isolation, BehindABridgeRequestsCarryTheIdOfFunctionZeroOfTheBus) {
  Fabric f = both_ports();
  f.add_bridge("b", "p0");
  f.add("b", bdf(5, 1));
  f.add("b", bdf(5, 2, 3));
  f.resolve();
  EXPECT_THAT(f.complaints, IsEmpty());
  EXPECT_THAT(f.groups(), ElementsAre(0, 1, 2, 2));
  EXPECT_EQ(f.scenario.devices[2].shared_id, bdf(5));
  EXPECT_EQ(f.scenario.devices[3].shared_id, bdf(5));
  EXPECT_EQ(f.scenario.devices[0].shared_id, std::nullopt);
  EXPECT_THAT(f.scenario.topology.groups[2].reasons, SizeIs(2));
}

// Kills: functions grouped by bus instead of slot, or although one of them has ACS.
TEST(Isolation, FunctionsOfASlotAreAGroupUnlessTheyHaveAcs) {
  Fabric f = both_ports();
  f.add("p0", bdf(1, 0, 0)).acs = false;
  f.add("p0", bdf(1, 0, 1)).acs = false;
  f.add("p0", bdf(1, 0, 2)).acs = true;
  f.add("p0", bdf(1, 1, 0)).acs = false;
  f.resolve();
  EXPECT_THAT(f.groups(), ElementsAre(0, 1, 2, 2, 3, 4));
}

// Kills: a granularity that is read and ignored.
TEST(Isolation, AUnitThatTellsBusesApartAtBestMakesOneGroupOfEachBus) {
  for (const auto isolation : {UnitGranularity::Bus, UnitGranularity::None}) {
    Fabric f = both_ports();
    f.scenario.topology.iommus[0].isolation = isolation;
    f.add("p0", bdf(1, 0));
    f.add("p1", bdf(1, 1));
    f.resolve();
    if (isolation == UnitGranularity::Bus)
      EXPECT_THAT(f.groups(), ElementsAre(0, 1, 2, 2));
    else
      EXPECT_THAT(f.groups(), ElementsAre(0, 0, 0, 0));
    EXPECT_EQ(f.scenario.devices[3].shared_id, isolation == UnitGranularity::Bus ? bdf(1) : bdf(0));
  }
}

// Kills: a split that goes unnoticed when the two are not neighbours in the list; permission that is ignored;
// a complaint, or a reason, for each device of the group.
TEST(Isolation, AGroupThatDomainsDivideIsRefusedUnlessPermitted) {
  for (const auto split : {GroupSplit::Refused, GroupSplit::Permitted}) {
    Fabric f = both_ports();
    f.scenario.topology.group_split = split;
    f.add_switch("s", "p0", false);
    f.add("s", bdf(1), "a");
    f.add("p1", bdf(2), "b");
    f.add("s", bdf(3), "b");
    f.add("s", bdf(4), "b");
    f.resolve();
    EXPECT_THAT(f.scenario.topology.groups[f.scenario.devices[2].group].reasons, SizeIs(1))
        << "three devices, one cause";
    if (split == GroupSplit::Permitted) {
      EXPECT_THAT(f.complaints, IsEmpty());
      continue;
    }
    ASSERT_THAT(f.complaints, SizeIs(1));
    EXPECT_THAT(f.complaints[0],
                testing::StartsWith("devices[4].domain: device 'd4' is not isolated from device 'd2'"));
    EXPECT_THAT(f.complaints[0], HasSubstr("switch 's' has no ACS"));
  }
}

TEST(Isolation, WhatCannotBeIsRefused) {
  const auto complaint = [](auto&& build) {
    Fabric f = both_ports();
    build(f);
    f.resolve();
    return f.complaints.empty() ? std::string() : f.complaints.front();
  };
  EXPECT_THAT(complaint([](Fabric& f) {
                f.add_bridge("b", "p0");
                f.scenario.topology.switches[0].acs = true;
                f.add("b", bdf(5));
              }),
              HasSubstr("has no ACS"));
  EXPECT_THAT(complaint([](Fabric& f) {
                f.add_bridge("b", "p0").add_switch("s", "b");
                f.add("s", bdf(5));
              }),
              HasSubstr("only devices are on it"));
  EXPECT_THAT(complaint([](Fabric& f) {
                f.add_bridge("b", "p0");
                f.add("b", bdf(5));
                f.add("b", bdf(6));
              }),
              HasSubstr("another number"));
  EXPECT_THAT(complaint([](Fabric& f) {
                f.add_bridge("b", "p0");
                f.add("b", bdf(5));
                f.add("p1", bdf(5, 1));
              }),
              HasSubstr("this bus is that of bridge 'b'"));
  EXPECT_THAT(complaint([](Fabric& f) {
                f.add("p0", bdf(5)).phantom_functions = {1};
                f.add("p0", bdf(5, 0, 1));
              }),
              HasSubstr("05:00.1 is device 'd3' already"));
  EXPECT_THAT(complaint([](Fabric& f) { f.add("p0", bdf(5)).phantom_functions = {2, 2}; }),
              HasSubstr("is device 'd2' already"));
}

// The definition: pairs that are not isolated, and the transitive closure of that.
bool related(const Scenario& s, const DeviceSetting& a, const DeviceSetting& b) {
  const Topology& t = s.topology;
  if (a.root_port_index == b.root_port_index) {
    if (!t.root_ports[a.root_port_index].acs) return true;
    for (const std::size_t above : a.switch_path)
      for (const std::size_t other : b.switch_path)
        if (above == other && (t.switches[above].kind == SwitchKind::PciBridge || t.switches[above].acs == false))
          return true;
  }
  if (a.iommu_index == b.iommu_index) {
    if (t.iommus[a.iommu_index].isolation == UnitGranularity::None) return true;
    if (t.iommus[a.iommu_index].isolation == UnitGranularity::Bus && a.bdf.bus() == b.bdf.bus()) return true;
  }
  return !a.acs && !b.acs && a.upstream == b.upstream && a.bdf.bus() == b.bdf.bus() && a.bdf.device() == b.bdf.device();
}

Fabric random_fabric(Rng& rng) {
  Fabric f = both_ports();
  Topology& t = f.scenario.topology;
  if (rng.chance(0.5)) t.iommus = {{.name = "u0", .covers = {"p0"}}, {.name = "u1", .covers = {"p1"}}};
  for (IommuUnit& unit : t.iommus)
    if (rng.chance(0.2)) unit.isolation = rng.chance(0.5) ? UnitGranularity::Bus : UnitGranularity::None;
  for (RootPort& port : t.root_ports) port.acs = rng.chance(0.8);
  std::vector<std::string> places{"p0", "p1"};
  for (std::uint64_t i = 0, count = rng.below(6); i < count; ++i) {
    const std::string name = "s" + std::to_string(i);
    f.add_switch(name, places[rng.below(places.size())], rng.chance(0.6));
    places.push_back(name);
  }
  // A bus per place: numbers are unique in a fabric, slots are not. No place is empty.
  for (std::uint64_t i = 0, count = places.size() + rng.below(10); i < count; ++i) {
    const std::size_t place = i < places.size() ? i : rng.below(places.size());
    const auto id =
        bdf(static_cast<unsigned>(place), static_cast<unsigned>(rng.below(2)), static_cast<unsigned>(i % 8));
    f.add(places[place], id).acs = rng.chance(0.5);
  }
  if (rng.chance(0.5)) {
    f.add_bridge("b", "p0");
    f.add("b", bdf(100, 1));
    f.add("b", bdf(100, 2));
  }
  return f;
}

// Kills: any cause left out, taken for another's, or not passed on through a third device.
TEST(Isolation, GroupsAreTheClosureOfThePairsThatAreNotIsolated) {
  std::size_t joined = 0;
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Rng rng(seed, "fabric");
    Fabric f = random_fabric(rng);
    f.resolve();
    ASSERT_THAT(f.complaints, IsEmpty());
    const auto& devices = f.scenario.devices;
    std::vector<std::size_t> label(devices.size());
    for (std::size_t i = 0; i < label.size(); ++i) label[i] = i;
    for (bool changed = true; changed;) {
      changed = false;
      for (std::size_t i = 0; i < label.size(); ++i)
        for (std::size_t j = 0; j < label.size(); ++j)
          if (label[j] > label[i] && related(f.scenario, devices[i], devices[j])) {
            label[j] = label[i];
            changed = true;
          } else if (label[j] > label[i] && related(f.scenario, devices[j], devices[i])) {
            ADD_FAILURE() << "the definition is not symmetric";
          }
    }
    for (std::size_t i = 0; i < label.size(); ++i)
      for (std::size_t j = 0; j < i; ++j) {
        ASSERT_EQ(devices[i].group == devices[j].group, label[i] == label[j]) << j << " and " << i;
        joined += label[i] == label[j] ? 1 : 0;
      }
  }
  EXPECT_GT(joined, 300U) << "too few of the fabrics join anything";
}

}  // namespace
}  // namespace iommu::scenario
