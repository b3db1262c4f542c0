// SPDX-License-Identifier: Apache-2.0
// The declarations of every key of a scenario and of a platform.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "sim/scenario/key.hpp"
#include "sim/scenario/scenario.hpp"

namespace iommu::scenario {

[[nodiscard]] const ObjectSchema<Scenario>& scenario_schema();
[[nodiscard]] const ObjectSchema<Platform>& platform_schema();

// Every object of the schema, the scenario first, each once.
[[nodiscard]] std::vector<const ObjectInfo*> all_objects();

// One number of a platform, for lists of assumptions.
struct PlatformRow {
  std::string key;  // "iommu.iotlb_entries"
  std::string value;
  std::string source;
  Mark mark = Mark::Guess;
};
[[nodiscard]] std::vector<PlatformRow> platform_rows(const Platform& platform);

// The tables of scenarios/README.md.
[[nodiscard]] std::string schema_markdown();

// The spelling of enumerators, as in scenarios and reports.
[[nodiscard]] std::string to_string(StrategyKind kind);
// The hardware that it runs on instead of the scenario's families; empty: it runs on each of them.
[[nodiscard]] std::string own_unit(StrategyKind kind);
[[nodiscard]] std::string to_string(RequesterId id);

}  // namespace iommu::scenario
