// SPDX-License-Identifier: Apache-2.0
// From a file to scenarios: YAML, platform preset, sweep axes, strict reading, checks that span keys.
//
//   const LoadedScenario loaded = load_scenario("scenarios/strategies.yaml", {.families = {"vtd"}});
//   for (const Variation& v : loaded.variations) ...   // one, unless the file varies a key
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "sim/scenario/document.hpp"
#include "sim/scenario/scenario.hpp"

namespace iommu::scenario {

// Why a recorded trace cannot be used; empty: it can.
using TraceCheck = std::function<std::string(const TraceWorkload& trace)>;

struct LoadOptions {
  std::vector<std::string> families;           // names of the registry
  std::vector<std::string> platform_folders;   // searched after the folder platforms/ beside the scenario
  std::vector<std::string> select_families{};  // instead of the scenario's; none: the scenario's
  TraceCheck check_trace{};                    // asked for every trace that a scenario names, when there is one
};

struct Variation {
  std::vector<std::pair<std::string, std::string>> labels;  // of the varied keys, in the order of `vary`
  Scenario scenario;
};

struct LoadedScenario {
  std::vector<Variation> variations;  // at least one; families on different machines are different variations
  Scenario written;                   // as the file has it, with all its families on its own platform
};

// Both throw ScenarioError with every problem found.
[[nodiscard]] LoadedScenario load_scenario(const std::string& path, const LoadOptions& options);
// `path` names the text in messages and is where relative files are looked for; it need not exist.
[[nodiscard]] LoadedScenario parse_scenario(const std::string& text, const std::string& path,
                                            const LoadOptions& options);

// A platform preset by name or file, for `explain` and `list`. Throws ScenarioError.
[[nodiscard]] Platform load_platform(const std::string& name, const LoadOptions& options);
// Names of the presets in the folders, sorted.
[[nodiscard]] std::vector<std::string> list_platforms(const std::vector<std::string>& folders);

// The scenario with every default written out: reads back to the same runs.
[[nodiscard]] std::string effective_yaml(const LoadedScenario& loaded);

// The runs of a scenario: variation × family × strategy.
struct PlannedRun {
  std::size_t variation = 0;
  RunSelection selection;
};
[[nodiscard]] std::vector<PlannedRun> plan_runs(const LoadedScenario& loaded);

}  // namespace iommu::scenario
