// SPDX-License-Identifier: Apache-2.0
#include "sim/app/explain.hpp"

#include <filesystem>
#include <utility>

#include "models/families.hpp"
#include "sim/scenario/nearest.hpp"

namespace iommu {

namespace {

using scenario::ScenarioError;

struct Option {
  const char* name;
  bool given;
};
void refuse(std::initializer_list<Option> options, const std::string& target, const std::string& belongs_to) {
  for (const Option& option : options)
    if (option.given)
      throw ScenarioError({std::string(option.name) + " belongs to " + belongs_to + "; '" + target + "' is none"});
}

}  // namespace

void explain(const ExplainArguments& a, const scenario::LoadOptions& options, std::ostream& out) {
  const std::string& target = a.target;
  const bool is_scenario = target.ends_with(".yaml") || target.ends_with(".yml");
  const bool is_vectors = target.ends_with(".jsonl") || target.ends_with(".jsonl.gz");
  if (!is_scenario)
    refuse({{"--strategy", a.strategy.has_value()},
            {"--family", a.family.has_value()},
            {"--device", a.device.has_value()},
            {"--iova", a.iova.has_value()},
            {"--at", a.after.has_value()}},
           target, "scenarios (.yaml)");
  if (!is_vectors) refuse({{"--record", a.record.has_value()}}, target, "recorded translations (.jsonl.gz)");
  if (is_scenario) return explain_scenario(a, options, out);
  if (is_vectors) return explain_record(a, out);
  refuse({{"--access", a.access.has_value()}}, target, "scenarios and recorded translations");
  std::error_code ignored;
  if (std::filesystem::exists(target, ignored))
    throw ScenarioError({target + ": neither a scenario (.yaml) nor recorded translations (.jsonl, .jsonl.gz)"});
  explain_name(target, out);
}

}  // namespace iommu
