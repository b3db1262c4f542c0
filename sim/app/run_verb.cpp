// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <thread>

#include "sim/app/forked_runs.hpp"
#include "sim/app/verbs.hpp"
#include "sim/report/writers.hpp"
#include "sim/scenario/nearest.hpp"
#include "sim/scenario/schema.hpp"

namespace iommu {

namespace {

using scenario::LoadedScenario;
using scenario::PlannedRun;
using scenario::ScenarioError;

std::string describe(const Labels& labels) {
  std::string text;
  for (const auto& [name, value] : labels) text += (text.empty() ? "" : ", ") + name + " " + value;
  return text;
}

// The families that the command line asks for, after checking that they exist.
std::vector<std::string> selected_families(const RunArguments& arguments) {
  const auto families = family_names();
  if (arguments.families == std::vector<std::string>{"all"}) return families;
  for (const std::string& family : arguments.families)
    if (std::ranges::find(families, family) == families.end())
      throw ScenarioError({"--families: unknown family '" + family + "'" + scenario::did_you_mean(family, families)});
  return arguments.families;
}

// Replaces what else the command line overrides, after checking that it exists.
void select(const RunArguments& arguments, scenario::Scenario& s) {
  if (arguments.seed) s.seed = *arguments.seed;
  if (arguments.strategies.empty()) return;
  std::vector<std::string> labels;
  for (const auto& strategy : s.strategies) labels.push_back(strategy.label);
  for (const std::string& wanted : arguments.strategies)
    if (std::ranges::find(labels, wanted) == labels.end())
      throw ScenarioError(
          {"--strategies: the scenario has no '" + wanted + "'" + scenario::did_you_mean(wanted, labels)});
  std::erase_if(s.strategies, [&](const scenario::StrategySetting& strategy) {
    return std::ranges::find(arguments.strategies, strategy.label) == arguments.strategies.end();
  });
}

// One line on stderr for runs that take longer than two seconds.
class ProgressLine {
 public:
  explicit ProgressLine(std::size_t runs) : fractions_(runs, 0.0), is_terminal_(::isatty(STDERR_FILENO) != 0) {}
  void update(std::size_t run, const Progress& progress) {
    if (progress.total > 0) fractions_[run] = static_cast<double>(progress.done) / static_cast<double>(progress.total);
    const auto now = std::chrono::steady_clock::now();
    const auto interval = is_terminal_ ? std::chrono::milliseconds(200) : std::chrono::milliseconds(10'000);
    if (now - start_ < std::chrono::seconds(2) || now - last_ < interval) return;
    last_ = now;
    double sum = 0;
    for (const double f : fractions_) sum += std::min(f, 1.0);
    fmt::print(stderr, "{}{:3.0f} % of {} runs{}", is_terminal_ ? "\r" : "",
               100 * sum / static_cast<double>(fractions_.size()), fractions_.size(), is_terminal_ ? "" : "\n");
    std::fflush(stderr);
    has_printed_ = true;
  }
  void clear() const {
    if (is_terminal_ && has_printed_) fmt::print(stderr, "\r{:40}\r", "");
  }

 private:
  std::vector<double> fractions_;
  bool is_terminal_;
  bool has_printed_ = false;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point last_ = start_;
};

Report report_of(const LoadedScenario& loaded) {
  const scenario::Scenario& s = loaded.variations.front().scenario;
  Report report{s.name, s.description, s.seed, {}, {}, {}};
  std::vector<std::string> platforms;
  for (const scenario::Variation& variation : loaded.variations) {
    const scenario::Platform& platform = variation.scenario.platform;
    if (std::ranges::find(platforms, platform.name) != platforms.end()) continue;
    platforms.push_back(platform.name);
    report.platform += (report.platform.empty() ? "" : ", ") + platform.name;
  }
  for (const scenario::Variation& variation : loaded.variations) {
    const auto named = std::ranges::find(platforms, variation.scenario.platform.name);
    if (named == platforms.end()) continue;  // listed already
    const std::string prefix = report.platform == *named ? "" : *named + ": ";
    for (const scenario::PlatformRow& row : scenario::platform_rows(variation.scenario.platform))
      report.assumptions.push_back({prefix + row.key, row.value, row.source, row.mark});
    platforms.erase(named);
  }
  return report;
}

// Puts the results into the report; returns the exit code that they ask for.
int collect(const std::vector<PlannedRun>& plan, const std::vector<ForkedResult>& results, Report& report) {
  int code = kExitOk;
  for (std::size_t i = 0; i < plan.size(); ++i) {
    const std::string name = describe(plan[i].selection.labels);
    if (results[i].status == ForkedResult::Status::Failed) {
      fmt::print(stderr, "iommusim: {}: {}\n", name, results[i].text);
      code = std::max<int>(code, kExitUser);
      continue;
    }
    auto run = results[i].status == ForkedResult::Status::Done ? parse_run(results[i].text) : std::nullopt;
    if (!run) {
      fmt::print(stderr, "iommusim: {}: the run crashed ({})\n", name, results[i].text.substr(0, 80));
      code = kExitInternal;
      continue;
    }
    for (const std::string& failure : run->failures) {
      fmt::print(stderr, "iommusim: {}: {}\n", name, failure);
      code = std::max<int>(code, kExitUser);
    }
    report.runs.push_back(std::move(*run));
  }
  return code;
}

void write_report(const std::string& folder, const Report& report, const LoadedScenario& loaded) {
  std::error_code failed;
  std::filesystem::create_directories(folder, failed);
  if (failed) throw std::runtime_error(folder + ": cannot be created (" + failed.message() + ")");
  write_file(folder + "/report.json", report_json(report));
  write_file(folder + "/metrics.csv", metrics_csv(report));
  write_file(folder + "/report.md", report_markdown(report));
  write_file(folder + "/effective.yaml", effective_yaml(loaded));
}

}  // namespace

int run_verb(const RunArguments& arguments) {
  scenario::LoadOptions options = load_options();
  options.select_families = selected_families(arguments);
  LoadedScenario loaded = scenario::load_scenario(arguments.file, options);
  select(arguments, loaded.written);
  for (scenario::Variation& variation : loaded.variations) select(arguments, variation.scenario);
  const std::vector<PlannedRun> plan = scenario::plan_runs(loaded);
  if (plan.empty()) throw ScenarioError({arguments.file + ": none of its strategies runs on the families asked for"});
  const std::size_t processors = std::max(1U, std::thread::hardware_concurrency());
  ProgressLine line(plan.size());
  const auto results = run_forked(
      plan.size(), arguments.jobs == 0 ? processors : arguments.jobs,
      [&](std::size_t job, const ProgressFn& progress) {
        RunResult run = run_one(loaded.variations[plan[job].variation].scenario, plan[job].selection,
                                {.shuffle = arguments.shuffle}, progress);
        run.labels = plan[job].selection.labels;
        return to_line(run);
      },
      [&](std::size_t job, const Progress& progress) {
        if (!arguments.is_quiet) line.update(job, progress);
      });
  line.clear();
  Report report = report_of(loaded);
  const int code = collect(plan, results, report);
  if (report.runs.empty()) return code;
  const std::string folder = arguments.out.value_or("results/" + report.scenario);
  write_report(folder, report, loaded);
  if (!arguments.is_quiet) {
    fmt::print("{}: {}\n\n{}", report.scenario, report.description,
               comparison(report, ::isatty(STDOUT_FILENO) != 0 ? Colour::Ansi : Colour::Plain));
    fmt::print("\nwritten to {}/: report.json, metrics.csv, report.md, effective.yaml\n", folder);
  }
  return code;
}

}  // namespace iommu
