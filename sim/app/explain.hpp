// SPDX-License-Identifier: Apache-2.0
// `iommusim explain`: one translation step by step, or one field, fault or command looked up.
//   a device of a scenario     explain scenarios/smoke.yaml --strategy nested --iova 0xffffe000
//   a recorded translation     explain models/vtd/vectors/vtd-qemu7.jsonl.gz --record 12 --access 2
//   a field, fault or command  explain vtd.SS-PTE.R
// Mistakes of the user are thrown as scenario::ScenarioError with one line each. A fault is an answer, not a mistake.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>

#include "sim/scenario/loader.hpp"

namespace iommu {

struct ExplainArguments {
  std::string target;
  std::optional<std::string> strategy{};  // label; the scenario's first unless given
  std::optional<std::string> family{};
  std::optional<std::string> device{};
  std::optional<std::string> iova{};
  std::optional<std::string> access{};  // read or write; of a record: which one, from 0
  std::optional<std::string> after{};   // I/Os
  std::optional<std::string> record{};  // line, from 1, or the record's id
};

void explain(const ExplainArguments& arguments, const scenario::LoadOptions& options, std::ostream& out);

// Its three parts. At most one scenario per process, as SystemC elaborates once.
void explain_scenario(const ExplainArguments& arguments, scenario::LoadOptions options, std::ostream& out);
void explain_record(const ExplainArguments& arguments, std::ostream& out);
void explain_name(const std::string& name, std::ostream& out);

}  // namespace iommu
