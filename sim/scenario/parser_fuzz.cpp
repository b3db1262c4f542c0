// SPDX-License-Identifier: Apache-2.0
// Any bytes as a scenario: a list of complaints or a scenario whose effective form reads back.
#include <cstddef>
#include <cstdint>
#include <string>

#include "sim/base/check.hpp"
#include "sim/scenario/loader.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace iommu::scenario;
  const LoadOptions options{.families = {"vtd"}, .platform_folders = {"scenarios/platforms"}};
  try {
    const LoadedScenario loaded = parse_scenario(std::string(data, data + size), "fuzz.yaml", options);
    const std::string written = effective_yaml(loaded);
    SIM_CHECK(effective_yaml(parse_scenario(written, "again.yaml", options)) == written, "effective.yaml reads back");
  } catch (const ScenarioError&) {
  }
  return 0;
}
