// SPDX-License-Identifier: Apache-2.0
// The command line. Exit codes: 0 success; 1 a mistake of the user or a failed check; 2 a crash or an unwritable file.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <exception>
#include <iostream>

#include "sim/app/check_vectors.hpp"
#include "sim/app/verbs.hpp"

namespace iommu {
namespace {

constexpr const char* kExitCodes =
    "Exit codes: 0 success; 1 a mistake in the input or a failed check; 2 a crashed run or an unwritable file.";

CLI::App* add_run(CLI::App& app, RunArguments& arguments) {
  CLI::App* run = app.add_subcommand("run", "Run a scenario, print the comparison, write the report");
  run->add_option("FILE", arguments.file, "Scenario")->required();
  run->add_option("--out", arguments.out, "Folder of the report; results/<scenario> unless given");
  run->add_option("--families", arguments.families, "Instead of the scenario's families; all: every family there is")
      ->delimiter(',');
  run->add_option("--strategies", arguments.strategies, "Only these of the scenario's strategies")->delimiter(',');
  run->add_option("--seed", arguments.seed, "Instead of the scenario's seed");
  run->add_option("--shuffle", arguments.shuffle, "Permute the simulator's process order; results must not change");
  run->add_option("--jobs", arguments.jobs, "Runs at once; as many as processors unless given")
      ->check(CLI::Range(std::size_t{1}, std::size_t{1024}));
  run->add_flag("--quiet", arguments.is_quiet, "Print errors only");
  run->footer(
      "Examples:\n"
      "  iommusim run scenarios/strategies.yaml\n"
      "  iommusim run scenarios/miss_cost.yaml --strategies pv_iommu --out /path/of/results\n" +
      std::string(kExitCodes));
  return run;
}

CLI::App* add_explain(CLI::App& app, ExplainArguments& arguments, bool& wants_assumptions) {
  CLI::App* explain =
      app.add_subcommand("explain", "Show a translation step by step; look up a field, fault or command");
  explain->add_option("TARGET", arguments.target,
                      "A scenario (.yaml), recorded translations (.jsonl.gz), FAMILY, FAMILY.LAYOUT.FIELD, "
                      "FAMILY.FAULT, FAMILY.COMMAND; with --assumptions, a platform");
  explain->add_option("--strategy", arguments.strategy, "Scenario: label; the first unless given");
  explain->add_option("--family", arguments.family, "Scenario: family; the scenario's first unless given");
  explain->add_option("--device", arguments.device, "Scenario: device; the first unless given");
  explain->add_option("--iova", arguments.iova, "Scenario: address; what is mapped is listed unless given");
  explain->add_option("--access", arguments.access, "Scenario: read or write. Record: which access, from 0");
  explain->add_option("--at", arguments.after, "Scenario: after so many I/Os; after boot unless given");
  explain->add_option("--record", arguments.record, "Recorded translations: line, from 1, or id");
  explain->add_flag("--assumptions", wants_assumptions,
                    "Every number of a platform (intel_server) with source and mark, every assumption");
  explain->footer(
      "A fault is an answer: the exit code is 0.\n"
      "Examples:\n"
      "  iommusim explain scenarios/smoke.yaml --strategy nested\n"
      "  iommusim explain scenarios/smoke.yaml --strategy pv_iommu --at 100 --iova 0xdead000 --access write\n"
      "  iommusim explain models/vtd/vectors/vtd-qemu7.jsonl.gz --record 12 --access 2\n"
      "  iommusim explain vtd.SS-PTE.R\n"
      "  iommusim explain vtd.LGN.4\n"
      "  iommusim explain --assumptions pcie_bench");
  return explain;
}

int dispatch(int argc, char** argv) {
  CLI::App app("iommusim: a cycle-level simulator of IOMMUs under a hypervisor\n" + std::string(kExitCodes),
               "iommusim");
  app.require_subcommand(1);
  RunArguments run_arguments;
  CLI::App* run = add_run(app, run_arguments);

  std::vector<std::string> files;
  CLI::App* validate = app.add_subcommand("validate", "Check scenarios; list every mistake with its place");
  validate->add_option("FILE", files, "Scenarios")->required();
  validate->footer("Example:\n  iommusim validate scenarios/*.yaml");

  CLI::App* list = app.add_subcommand("list", "List scenarios, platforms, strategies, families and metrics");

  bool wants_markdown = false;
  CLI::App* schema = app.add_subcommand("schema", "Print the JSON Schema of scenarios, for editors");
  schema->add_flag("--markdown", wants_markdown, "Print the tables of scenarios/README.md instead");
  schema->footer("Example:\n  iommusim schema > schema.json");

  CLI::App* vectors = app.add_subcommand("check-vectors", "Replay recorded translations; exit 1 on any disagreement");
  vectors->add_option("FILE", files, "Vectors (.jsonl, .jsonl.gz)")->required();
  vectors->footer("Example:\n  iommusim check-vectors models/vtd/vectors/*.gz");

  bool wants_assumptions = false;
  ExplainArguments explain_arguments;
  CLI::App* explain = add_explain(app, explain_arguments, wants_assumptions);

  try {
    app.parse(argc, argv);
    if (explain->parsed() && explain_arguments.target.empty() && !wants_assumptions)
      throw CLI::RequiredError("explain: TARGET or --assumptions");
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? kExitOk : kExitUser;
  }
  if (run->parsed()) return run_verb(run_arguments);
  if (validate->parsed()) return validate_verb(files);
  if (vectors->parsed()) return run_check_vectors(files, std::cout, std::cerr);
  if (list->parsed()) return list_verb();
  if (schema->parsed()) return schema_verb(wants_markdown ? SchemaForm::Markdown : SchemaForm::Json);
  if (!wants_assumptions) return explain_verb(explain_arguments);
  constexpr const char* kUsualPlatform = "intel_server";
  return explain_assumptions_verb(explain_arguments.target.empty() ? kUsualPlatform : explain_arguments.target);
}

}  // namespace
}  // namespace iommu

int main(int argc, char** argv) {
  try {
    return iommu::dispatch(argc, argv);
  } catch (const iommu::scenario::ScenarioError& e) {
    for (const std::string& line : e.lines()) fmt::print(stderr, "{}\n", line);
    return iommu::kExitUser;
  } catch (const std::exception& e) {
    fmt::print(stderr, "iommusim: {}\n", e.what());
    return iommu::kExitInternal;
  }
}
