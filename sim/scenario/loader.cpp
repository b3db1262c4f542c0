// SPDX-License-Identifier: Apache-2.0
#include "sim/scenario/loader.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <set>

#include "sim/scenario/checks.hpp"
#include "sim/scenario/nearest.hpp"
#include "sim/scenario/schema.hpp"

namespace iommu::scenario {

namespace fs = std::filesystem;

namespace {

constexpr std::size_t kMaxVariations = 10'000;

// A file's text, at most a little more than parse_document() accepts; nullopt when it cannot be read.
std::optional<std::string> read_text(const fs::path& path) {
  std::error_code ignored;
  if (!fs::is_regular_file(path, ignored)) return std::nullopt;
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return std::nullopt;
  constexpr std::size_t kMost = (std::size_t{1} << 20) + 1;
  std::string text(kMost, '\0');
  stream.read(text.data(), static_cast<std::streamsize>(kMost));
  text.resize(static_cast<std::size_t>(stream.gcount()));
  return text;
}

// Files with the extension .yaml in the folder, without it.
std::vector<std::string> yaml_stems(const fs::path& folder) {
  std::vector<std::string> stems;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored))
    if (entry.path().extension() == ".yaml") stems.push_back(entry.path().stem().string());
  std::ranges::sort(stems);
  return stems;
}

bool is_row(const Node& node) { return node.kind == Node::Kind::Map && node.find("value") != nullptr; }

// `replacement` in place of `base`: maps merge key by key, a bare value replaces a row's and says so.
void overlay(Node& base, const Node& replacement) {
  if (is_row(base) && replacement.kind == Node::Kind::Scalar) {
    base = Node::map(replacement.at);
    base.add("value", replacement);
    base.add("source", Node::scalar("set by the scenario", replacement.at));
    base.add("mark", Node::scalar("guess", replacement.at));
    return;
  }
  if (base.kind != Node::Kind::Map || replacement.kind != Node::Kind::Map || is_row(base) || is_row(replacement)) {
    base = replacement;
    return;
  }
  for (std::size_t i = 0; i < replacement.entries.size(); ++i) {
    const Entry& entry = replacement.entries[i];
    Node* existing = base.find(entry.key);
    const bool is_repeated = replacement.find(entry.key) != &entry.value;
    if (existing != nullptr && !is_repeated) {
      overlay(*existing, entry.value);
    } else {
      base.entries.push_back(entry);  // unknown or repeated: reading will complain
    }
  }
}

class Loader {
 public:
  Loader(const LoadOptions& options, std::vector<fs::path> folders) : options_(options), folders_(std::move(folders)) {}

  [[noreturn]] void fail() { throw ScenarioError(diagnostics_.lines()); }
  void fail_if_wrong() {
    if (!diagnostics_.is_clean()) fail();
  }
  Diagnostics& diagnostics() { return diagnostics_; }

  Node parse(const std::string& text, const std::string& display) {
    auto root = parse_document(text, diagnostics_.add_file(display), diagnostics_);
    if (!root) fail();
    return std::move(*root);
  }

  // The node of a preset with everything that it extends.
  Node platform_node(const std::string& name, Position asked_at, std::set<std::string> chain = {}) {
    if (!chain.insert(name).second) {
      diagnostics_.error(asked_at, "platform '" + name.substr(0, 60) + "' extends itself");
      fail();
    }
    const bool is_plain = name.find('/') == std::string::npos && !name.empty() && name.front() != '.';
    for (const fs::path& folder : folders_) {
      if (!is_plain) break;
      const fs::path path = folder / (name + ".yaml");
      const auto text = read_text(path);
      if (!text) continue;
      Node node = parse(*text, path.string());
      return extended(std::move(node), chain);
    }
    std::vector<std::string> known;
    for (const fs::path& folder : folders_) std::ranges::copy(yaml_stems(folder), std::back_inserter(known));
    diagnostics_.error(asked_at, "there is no platform '" + name.substr(0, 60) + "'" + did_you_mean(name, known));
    fail();
  }

  // Resolves `extends` of a platform's map; a scalar names a preset.
  Node extended(Node node, const std::set<std::string>& chain = {}) {
    if (node.kind == Node::Kind::Scalar) return platform_node(node.text, node.at, chain);
    const Node* base_name = node.find("extends");
    if (base_name == nullptr || base_name->kind != Node::Kind::Scalar) return node;
    Node base = platform_node(base_name->text, base_name->at, chain);
    std::erase_if(node.entries, [](const Entry& e) { return e.key == "extends"; });
    overlay(base, node);
    base.at = node.at;
    return base;
  }

  // Sets the node at a path of a varied key; reports a path that does not exist.
  void set(Node& root, const Node& key, const Node& value) {
    const auto steps = parse_path(key.text);
    Node* node = &root;
    if (!steps) {
      diagnostics_.error(key.at, "'" + key.text.substr(0, 60) + "' is not a key such as devices[0].workload.window");
      return;
    }
    for (std::size_t i = 0; i < steps->size(); ++i) {
      const PathStep& step = (*steps)[i];
      Node* next = nullptr;
      if (step.index && *step.index < node->items.size()) next = &node->items[*step.index];
      if (!step.index) next = node->find(step.key);
      if (next == nullptr && !step.index && node->kind == Node::Kind::Map && i + 1 == steps->size())
        next = &node->add(step.key, value);  // an omitted key; reading complains if there is no such one
      if (next == nullptr) {
        diagnostics_.error(key.at, "'" + key.text.substr(0, 60) + "' leads nowhere" +
                                       (step.index ? std::string() : did_you_mean(step.key, keys_of(*node))));
        return;
      }
      node = next;
    }
    overlay(*node, value);
  }

  Scenario read(const Node& root, const fs::path& beside) {
    Reader reader{diagnostics_, options_.families};
    auto scenario = read_object(reader, root, scenario_schema());
    if (!scenario || !diagnostics_.is_clean()) return {};
    finish_costs(scenario->platform);
    const Complain complain = [&](const std::string& path, const std::string& message) {
      diagnostics_.error(deepest_at(root, path).at, message);
    };
    check_scenario(*scenario, complain);
    resolve_traces(*scenario, beside, complain);
    return std::move(*scenario);
  }

  Platform read_platform(const Node& root) {
    Reader reader{diagnostics_, options_.families};
    auto platform = read_object(reader, root, platform_schema());
    fail_if_wrong();
    finish_costs(*platform);
    return std::move(*platform);
  }

 private:
  static std::vector<std::string> keys_of(const Node& node) {
    std::vector<std::string> keys;
    for (const Entry& e : node.entries) keys.push_back(e.key);
    return keys;
  }
  static void finish_costs(Platform& platform) {
    const double ps_per_cycle = 1e12 / static_cast<double>(platform.cpu.frequency.value.value());
    for (const CostName& name : kCostNames) {
      CostRow& row = platform.costs[name.id];
      if (row.unit == "cycles") row.time = Picoseconds(static_cast<std::int64_t>(row.value * ps_per_cycle + 0.5));
    }
  }

  void resolve_traces(Scenario& scenario, const fs::path& beside, const Complain& complain) const {
    for (std::size_t i = 0; i < scenario.devices.size(); ++i) {
      WorkloadSetting& workload = scenario.devices[i].workload;
      if (workload.kind != WorkloadKind::Trace) continue;
      workload.trace.resolved = (beside / workload.trace.file).string();
      if (!options_.check_trace) continue;
      if (const std::string problem = options_.check_trace(workload.trace); !problem.empty())
        complain("devices[" + std::to_string(i) + "].workload.file", problem);
    }
  }

  const LoadOptions& options_;
  std::vector<fs::path> folders_;
  Diagnostics diagnostics_;
};

std::vector<fs::path> platform_folders(const LoadOptions& options, const fs::path& beside) {
  std::vector<fs::path> folders;
  if (!beside.empty()) folders.push_back(beside);
  for (const std::string& folder : options.platform_folders) folders.emplace_back(folder);
  return folders;
}

// One list of (key node, value node) per combination, the first axis slowest. No value: the key stays as written.
using Assignment = std::vector<std::pair<const Node*, const Node*>>;
std::vector<Assignment> one_at_a_time(const Node& vary, Diagnostics& diagnostics) {
  std::vector<Assignment> all;
  Assignment as_written;
  for (const Node& axis : vary.items) {
    const Node* key = axis.find("key");
    if (key != nullptr && axis.find("values") != nullptr) as_written.emplace_back(key, nullptr);
  }
  for (const Node& axis : vary.items) {
    const Node* values = axis.find("values");
    const auto own = std::ranges::find(as_written, axis.find("key"), &Assignment::value_type::first);
    if (values == nullptr || own == as_written.end()) continue;  // reading complains
    for (const Node& value : values->items) {
      if (all.size() == kMaxVariations) {
        diagnostics.error(values->at, "more than " + std::to_string(kMaxVariations) + " values");
        return all;
      }
      Assignment& assignment = all.emplace_back(as_written);
      assignment[static_cast<std::size_t>(own - as_written.begin())].second = &value;
    }
  }
  if (all.empty()) all.emplace_back();
  return all;
}

std::vector<Assignment> combinations(const Node& root, Diagnostics& diagnostics) {
  std::vector<Assignment> all(1);
  const Node* vary = root.find("vary");
  if (vary == nullptr) return all;
  const Node* sweep = root.find("sweep");
  if (sweep != nullptr && sweep->text == "each") return one_at_a_time(*vary, diagnostics);
  for (const Node& axis : vary->items) {
    const Node* key = axis.find("key");
    const Node* values = axis.find("values");
    if (key == nullptr || values == nullptr || values->items.empty()) continue;  // reading complains
    if (all.size() * values->items.size() > kMaxVariations) {
      diagnostics.error(values->at, "more than " + std::to_string(kMaxVariations) + " combinations");
      return all;
    }
    std::vector<Assignment> longer;
    for (const Assignment& assignment : all)
      for (const Node& value : values->items) {
        longer.push_back(assignment);
        longer.back().emplace_back(key, &value);
      }
    all = std::move(longer);
  }
  return all;
}

std::string last_part(const std::string& key) {
  const std::size_t dot = key.rfind('.');
  return dot == std::string::npos ? key : key.substr(dot + 1);
}

void label_axes(Variation& variation, const Assignment& assignment) {
  std::vector<VarySetting>& axes = variation.scenario.vary;
  for (std::size_t i = 0; i < axes.size() && i < assignment.size(); ++i) {
    if (axes[i].label.empty()) axes[i].label = last_part(axes[i].key);
    variation.labels.emplace_back(axes[i].label,
                                  assignment[i].second == nullptr ? "as written" : assignment[i].second->text);
  }
}

}  // namespace

// Families that share a machine; `platform` is null for the scenario's own.
struct FamilyGroup {
  Node families = Node::sequence();
  const Node* platform = nullptr;
};

// In the order in which the families are listed. Whatever is malformed is left for reading to complain about.
std::vector<FamilyGroup> family_groups(const Node& root) {
  const Node* families = root.find("families");
  const Node* own = root.find("family_platforms");
  if (families == nullptr || own == nullptr || families->items.empty()) return {};
  std::vector<FamilyGroup> groups;
  for (const Node& family : families->items) {
    const Node* platform = nullptr;
    for (const Node& entry : own->items) {
      const Node* name = entry.find("family");
      if (name != nullptr && name->text == family.text) platform = entry.find("platform");
    }
    auto group = std::ranges::find(groups, platform, &FamilyGroup::platform);
    if (group == groups.end()) group = groups.insert(groups.end(), FamilyGroup{Node::sequence(families->at), platform});
    group->families.items.push_back(family);
  }
  return groups;
}

void select_families(Node& root, const std::vector<std::string>& selected) {
  Node* families = root.find("families");
  if (families == nullptr || selected.empty()) return;
  const Position at = families->at;
  *families = Node::sequence(at);
  for (const std::string& family : selected) families->items.push_back(Node::scalar(family, at));
}

LoadedScenario parse_scenario(const std::string& text, const std::string& path, const LoadOptions& options) {
  const fs::path beside = fs::path(path).parent_path();
  Loader loader(options, platform_folders(options, beside / "platforms"));
  Node root = loader.parse(text, path);
  if (Node* platform = root.find("platform")) *platform = loader.extended(std::move(*platform));
  select_families(root, options.select_families);
  std::vector<Node> machines;  // the document once per machine
  for (const FamilyGroup& group : family_groups(root)) {
    Node& machine = machines.emplace_back(root);
    *machine.find("families") = group.families;
    Node* platform = machine.find("platform");
    if (group.platform != nullptr && platform != nullptr) *platform = loader.extended(*group.platform);
  }
  if (machines.empty()) machines.push_back(root);
  LoadedScenario loaded;
  for (const Assignment& assignment : combinations(root, loader.diagnostics()))
    for (const Node& machine : machines) {
      Node varied = machine;
      for (const auto& [key, value] : assignment)
        if (value != nullptr) loader.set(varied, *key, *value);
      Variation variation{{}, loader.read(varied, beside)};
      label_axes(variation, assignment);
      loaded.variations.push_back(std::move(variation));
    }
  const bool is_first_as_written = machines.size() == 1 && loaded.variations.front().scenario.sweep == Sweep::Product;
  loaded.written = is_first_as_written ? loaded.variations.front().scenario : loader.read(root, beside);
  loaded.written.vary = loaded.variations.front().scenario.vary;  // with their labels
  loader.fail_if_wrong();
  return loaded;
}

LoadedScenario load_scenario(const std::string& path, const LoadOptions& options) {
  if (const auto text = read_text(path)) return parse_scenario(*text, path, options);
  const fs::path folder = fs::path(path).parent_path();
  std::vector<std::string> known;
  for (const std::string& stem : yaml_stems(folder.empty() ? fs::path(".") : folder))
    known.push_back((folder / (stem + ".yaml")).string());
  throw ScenarioError({path + ": cannot be read" + did_you_mean(path, known)});
}

Platform load_platform(const std::string& name, const LoadOptions& options) {
  Loader loader(options, platform_folders(options, {}));
  return loader.read_platform(loader.platform_node(name, {}));
}

std::vector<std::string> list_platforms(const std::vector<std::string>& folders) {
  std::vector<std::string> names;
  for (const std::string& folder : folders) std::ranges::copy(yaml_stems(folder), std::back_inserter(names));
  std::ranges::sort(names);
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

std::string effective_yaml(const LoadedScenario& loaded) {
  Scenario written = loaded.written;
  written.devices = written.devices_as_written;
  return "# Every default written out; reads back to the same runs.\n" +
         write_document(write_object(written, scenario_schema()));
}

std::vector<PlannedRun> plan_runs(const LoadedScenario& loaded) {
  std::vector<PlannedRun> runs;
  for (std::size_t v = 0; v < loaded.variations.size(); ++v) {
    const Variation& variation = loaded.variations[v];
    for (const std::string& family : variation.scenario.families)
      for (std::size_t s = 0; s < variation.scenario.strategies.size(); ++s) {
        const std::vector<std::string>& only = variation.scenario.strategies[s].families;
        if (!only.empty() && std::ranges::find(only, family) == only.end()) continue;
        const std::string own = own_unit(variation.scenario.strategies[s].kind);
        const std::string& unit = own.empty() ? family : own;
        PlannedRun run{v, {.strategy = s, .family = unit, .labels = {}}};
        run.selection.labels = {{"strategy", variation.scenario.strategies[s].label}, {"family", unit}};
        run.selection.labels.insert(run.selection.labels.end(), variation.labels.begin(), variation.labels.end());
        // What has hardware of its own runs once, on the machine of the first family, and says on what.
        const auto is_planned = [&](const PlannedRun& r) { return r.selection.labels == run.selection.labels; };
        if (!own.empty() && std::ranges::any_of(runs, is_planned)) continue;
        runs.push_back(std::move(run));
      }
  }
  return runs;
}

}  // namespace iommu::scenario
