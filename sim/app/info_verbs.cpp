// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>

#include "models/families.hpp"
#include "sim/app/device_run.hpp"
#include "sim/app/verbs.hpp"
#include "sim/report/metrics.hpp"
#include "sim/scenario/schema.hpp"
#include "sim/strategy/strategy.hpp"

namespace iommu {

namespace fs = std::filesystem;

namespace {

std::vector<fs::path> files_with(const fs::path& folder, std::initializer_list<const char*> extensions) {
  std::vector<fs::path> files;
  std::error_code ignored;
  for (fs::recursive_directory_iterator it(folder, ignored), end; it != end; it.increment(ignored)) {
    if (ignored) break;
    const std::string extension = it->path().extension().string();
    if (std::ranges::find(extensions, extension) != extensions.end()) files.push_back(it->path());
  }
  std::ranges::sort(files);
  return files;
}

std::vector<std::string> lines_of(const fs::path& file) {
  std::ifstream stream(file);
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

// The text of a comment line without its margin; nothing when the line is no comment.
std::string comment_text(const std::string& line) {
  const std::size_t slashes = line.find("//");
  if (slashes == std::string::npos || line.find_first_not_of(' ') != slashes) return {};
  const std::size_t text = line.find_first_not_of(' ', slashes + 2);
  return text == std::string::npos ? std::string() : line.substr(text);
}

// "ASSUMPTION(id): …" with the comment lines that continue it.
void print_tags(const fs::path& root) {
  for (const fs::path& file : files_with(root, {".hpp", ".cpp"})) {
    const auto lines = lines_of(file);
    for (std::size_t i = 0; i < lines.size(); ++i) {
      std::string text = comment_text(lines[i]);
      if (!text.starts_with("ASSUMPTION(") && !text.starts_with("DEVIATION(")) continue;
      for (std::size_t next = i + 1; next < lines.size(); ++next) {
        const std::string more = comment_text(lines[next]);
        if (more.empty() || more.starts_with("ASSUMPTION(") || more.starts_with("DEVIATION(")) break;
        text += " " + more;
      }
      fmt::print("{}\n", text);
    }
  }
}

}  // namespace

std::string installation_root() {
  const char* root = std::getenv("IOMMUSIM_ROOT");
  return root == nullptr ? std::string() : std::string(root);
}

std::vector<std::string> family_names() {
  std::vector<std::string> names;
  for (const FamilyDescriptor* family : families()) names.emplace_back(family->name);
  return names;
}

scenario::LoadOptions load_options() {
  scenario::LoadOptions options{family_names(), {}};
  const std::string root = installation_root();
  options.platform_folders.push_back(root.empty() ? "scenarios/platforms" : root + "/scenarios/platforms");
  return options;
}

scenario::TraceCheck trace_check() {
  // Variations of a scenario name the same few files.
  auto known = std::make_shared<std::map<std::string, std::string>>();
  return [known](const scenario::TraceWorkload& trace) {
    std::string key = trace.resolved;
    for (const scenario::TraceClass dropped : trace.drop) key += " -" + std::to_string(static_cast<int>(dropped));
    const auto [answer, is_new] = known->try_emplace(key);
    if (!is_new) return answer->second;
    try {
      (void)load_trace(trace);
    } catch (const TraceError& e) {
      const std::string line = e.line() == 0 ? "" : "line " + std::to_string(e.line()) + ": ";
      answer->second = "trace '" + trace.file + "' cannot be used: " + line + e.message();
    }
    return answer->second;
  };
}

int validate_verb(const std::vector<std::string>& files) {
  int code = kExitOk;
  scenario::LoadOptions options = load_options();
  options.check_trace = trace_check();
  for (const std::string& file : files) {
    try {
      const auto loaded = scenario::load_scenario(file, options);
      fmt::print("{}: ok, {} runs\n", file, scenario::plan_runs(loaded).size());
    } catch (const scenario::ScenarioError& e) {
      for (const std::string& line : e.lines()) fmt::print(stderr, "{}\n", line);
      code = kExitUser;
    }
  }
  return code;
}

int list_verb() {
  const std::string root = installation_root();
  const fs::path scenarios = root.empty() ? fs::path("scenarios") : fs::path(root) / "scenarios";
  fmt::print("scenarios\n");
  std::error_code ignored;
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(scenarios, ignored))
    if (entry.path().extension() == ".yaml") files.push_back(entry.path());
  std::ranges::sort(files);
  for (const fs::path& file : files) {
    try {
      const auto loaded = scenario::load_scenario(file.string(), load_options());
      fmt::print("  {:<24} {}\n", file.filename().string(), loaded.variations.front().scenario.description);
    } catch (const scenario::ScenarioError&) {
      fmt::print("  {:<24} (not valid: iommusim validate {})\n", file.filename().string(), file.string());
    }
  }
  fmt::print("\nplatforms\n");
  for (const std::string& name : scenario::list_platforms(load_options().platform_folders)) {
    try {
      fmt::print("  {:<24} {}\n", name, scenario::load_platform(name, load_options()).description);
    } catch (const scenario::ScenarioError& e) {
      fmt::print("  {:<24} (not valid: {})\n", name, e.lines().front());
    }
  }
  fmt::print("\nstrategies\n");
  for (const strategy::StrategyDescriptor* s : strategy::kStrategies)
    fmt::print("  {:<24} {}\n", s->name, s->description);
  fmt::print("\nfamilies\n ");
  for (const std::string& family : family_names()) fmt::print(" {}", family);
  fmt::print("\n\nmetrics\n");
  for (const MetricInfo& info : all_metrics())
    fmt::print("  {:<42} {:<7} {}\n", info.name, info.unit == "1" ? "" : info.unit, info.description);
  return kExitOk;
}

int schema_verb(SchemaForm form) {
  fmt::print("{}", form == SchemaForm::Json ? json_schema() : scenario::schema_markdown());
  return kExitOk;
}

int explain_assumptions_verb(const std::string& platform) {
  const scenario::Platform loaded = scenario::load_platform(platform, load_options());
  fmt::print("platform {}: {}\n", loaded.name, loaded.description);
  for (const scenario::PlatformRow& row : scenario::platform_rows(loaded))
    fmt::print("{:<42} {:<14} {:<8} {}\n", row.key, row.value, to_string(row.mark), row.source);
  const std::string root = installation_root();
  if (root.empty()) return kExitOk;
  fmt::print("\nin the model\n");
  print_tags(fs::path(root) / "sim");
  print_tags(fs::path(root) / "models");
  return kExitOk;
}

int explain_verb(const ExplainArguments& arguments) {
  explain(arguments, load_options(), std::cout);
  return kExitOk;
}

}  // namespace iommu
