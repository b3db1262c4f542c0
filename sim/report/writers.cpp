// SPDX-License-Identifier: Apache-2.0
#include "sim/report/writers.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace iommu {

namespace {

using Json = nlohmann::ordered_json;

// Whole numbers up to 2^53 are written as integers.
Json number(double value) {
  constexpr double kExact = 9007199254740992.0;
  if (std::abs(value) <= kExact && value == std::floor(value)) return static_cast<std::int64_t>(value);
  return value;
}

Json run_json(const RunResult& run) {
  Json json = Json::object();
  json["labels"] = Json::object();
  for (const auto& [name, value] : run.labels) json["labels"][name] = value;
  json["metrics"] = Json::object();
  for (const auto& [index, value] : run.metrics()) {
    const MetricInfo& info = all_metrics()[index];
    json["metrics"][info.name] = {{"value", number(value)}, {"unit", info.unit}};
  }
  json["costs"] = Json::array();
  for (const CostUse& c : run.costs)
    json["costs"].push_back({{"row", c.row},
                             {"value", number(c.value)},
                             {"unit", c.unit},
                             {"source", c.source},
                             {"mark", to_string(c.mark)},
                             {"count", c.count}});
  json["warden"] = {{"checked", run.warden.checked},
                    {"stale", run.warden.stale},
                    {"violations", run.warden.violations},
                    {"exposure_max_ns", number(run.warden.exposure_max_ns)}};
  if (run.warden.shared) {
    json["warden"]["strayed"] = run.warden.shared->strayed;
    json["warden"]["foreign"] = run.warden.shared->foreign;
  }
  return json;
}

std::string csv_cell(const std::string& text) {
  if (text.find_first_of(",\"\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

// Names of the labels of all runs, in the order of their first appearance.
std::vector<std::string> label_names(const Report& report) {
  std::vector<std::string> names;
  for (const RunResult& run : report.runs)
    for (const auto& [name, value] : run.labels)
      if (std::ranges::find(names, name) == names.end()) names.push_back(name);
  return names;
}

std::string label_of(const RunResult& run, const std::string& name) {
  for (const auto& [label, value] : run.labels)
    if (label == name) return value;
  return {};
}

bool differs(const Report& report, const std::string& name) {
  return std::ranges::any_of(
      report.runs, [&](const RunResult& r) { return label_of(r, name) != label_of(report.runs.front(), name); });
}

// Runs of one variation stand side by side; `title` names the variation.
struct Block {
  std::string title;
  std::vector<const RunResult*> runs;
};

bool is_column_label(const std::string& name) { return name == "strategy" || name == "family"; }

std::vector<Block> blocks_of(const Report& report) {
  std::vector<Block> blocks;
  for (const RunResult& run : report.runs) {
    std::string title;
    for (const auto& [name, value] : run.labels)
      if (!is_column_label(name)) title += (title.empty() ? "" : ", ") + name + " " + value;
    auto block = std::ranges::find(blocks, title, &Block::title);
    if (block == blocks.end()) block = blocks.insert(blocks.end(), Block{title, {}});
    block->runs.push_back(&run);
  }
  return blocks;
}

std::string column_title(const Report& report, const RunResult& run) {
  std::string title = label_of(run, "strategy");
  if (differs(report, "family")) title += (title.empty() ? "" : "/") + label_of(run, "family");
  return title;
}

std::string cell(const RunResult& run, std::size_t metric) {
  const auto found = run.metrics().find(metric);
  return found == run.metrics().end() ? "-" : format_value(found->second, all_metrics()[metric].digits);
}

std::string unit_text(std::string_view unit) { return unit == "1" ? std::string() : std::string(unit); }

// Metrics that at least one run of the block has.
std::vector<std::size_t> present(const Block& block, bool shown_only) {
  std::vector<std::size_t> indices;
  for (std::size_t i = 0; i < all_metrics().size(); ++i) {
    if (shown_only && all_metrics()[i].shown != Shown::Always) continue;
    if (std::ranges::any_of(block.runs, [i](const RunResult* r) { return r->metrics().contains(i); }))
      indices.push_back(i);
  }
  return indices;
}

std::string group_of(std::size_t metric) {
  const std::string& name = all_metrics()[metric].name;
  return name.substr(0, name.find('.'));
}

std::string warden_text(const RunResult& run) {
  std::string text =
      fmt::format("{} checked, {} stale, {} violations, exposure at most {} ns", run.warden.checked, run.warden.stale,
                  run.warden.violations, format_value(run.warden.exposure_max_ns, Digits::Integer));
  if (run.warden.shared)
    text += fmt::format(", {} through another domain's tables by a shared id, {} of them to its memory",
                        run.warden.shared->strayed, run.warden.shared->foreign);
  return text;
}

// Where a recorded driver was replayed: its invalidations beside those that the replay caused, by kind. Those of the
// guest's virtual unit where it has one, else those of the real unit; empty without a trace.
std::string invalidation_text(const RunResult& run) {
  if (!run.find("trace.skipped")) return {};
  bool has_virtual_unit = false;
  for (const std::string_view kind : kCommandKinds)
    has_virtual_unit |= run.find({"guest.commands", kind}).value_or(0) != 0;
  std::string kinds;
  for (const std::string_view kind : kCommandKinds) {
    const double recorded = run.find({"trace.recorded", kind}).value_or(0);
    const double simulated =
        run.find(has_virtual_unit ? MetricId("guest.commands", kind) : MetricId("invalidation.commands", kind))
            .value_or(0);
    if (recorded == 0 && simulated == 0) continue;
    kinds += fmt::format("{}{} {} ({} recorded)", kinds.empty() ? "" : ", ", kind,
                         format_value(simulated, Digits::Integer), format_value(recorded, Digits::Integer));
  }
  return fmt::format("invalidations of the {} unit: {}", has_virtual_unit ? "guest's virtual" : "real",
                     kinds.empty() ? "none" : kinds);
}

std::string terminal_block(const Report& report, const Block& block, Colour colour) {
  const std::string bold = colour == Colour::Ansi ? "\033[1m" : "";
  const std::string plain = colour == Colour::Ansi ? "\033[0m" : "";
  constexpr std::size_t kNameWidth = 29;
  constexpr std::size_t kUnitWidth = 7;
  std::vector<std::size_t> widths;
  const auto metrics = present(block, true);
  for (const RunResult* run : block.runs) {
    std::size_t width = column_title(report, *run).size();
    for (const std::size_t m : metrics) width = std::max(width, cell(*run, m).size());
    widths.push_back(width + 2);
  }
  std::string out = block.title.empty() ? "" : bold + block.title + plain + "\n";
  out += bold + fmt::format("{:<{}}{:<{}}", "", kNameWidth, "", kUnitWidth);
  for (std::size_t r = 0; r < block.runs.size(); ++r)
    out += fmt::format("{:>{}}", column_title(report, *block.runs[r]), widths[r]);
  out += plain + "\n";
  std::string group;
  for (const std::size_t m : metrics) {
    if (!group.empty() && group != group_of(m)) out += "\n";
    group = group_of(m);
    const MetricInfo& info = all_metrics()[m];
    out += fmt::format("{:<{}}{:<{}}", info.name, kNameWidth, unit_text(info.unit), kUnitWidth);
    for (std::size_t r = 0; r < block.runs.size(); ++r)
      out += fmt::format("{:>{}}", cell(*block.runs[r], m), widths[r]);
    out += "\n";
  }
  out += "\n";
  for (const RunResult* run : block.runs)
    out += fmt::format("warden, {}: {}\n", column_title(report, *run), warden_text(*run));
  for (const RunResult* run : block.runs)
    if (const std::string text = invalidation_text(*run); !text.empty())
      out += fmt::format("{}: {}\n", column_title(report, *run), text);
  return out;
}

std::string markdown_block(const Report& report, const Block& block) {
  std::string out = block.title.empty() ? "" : "### " + block.title + "\n\n";
  out += "| metric | unit |";
  for (const RunResult* run : block.runs) out += " " + column_title(report, *run) + " |";
  out += "\n|---|---|";
  for (std::size_t i = 0; i < block.runs.size(); ++i) out += "---:|";
  out += "\n";
  for (const std::size_t m : present(block, false)) {
    const MetricInfo& info = all_metrics()[m];
    out += "| `" + info.name + "` | " + unit_text(info.unit) + " |";
    for (const RunResult* run : block.runs) out += " " + cell(*run, m) + " |";
    out += "\n";
  }
  out += "\n";
  for (const RunResult* run : block.runs)
    out += "- warden, " + column_title(report, *run) + ": " + warden_text(*run) + "\n";
  for (const RunResult* run : block.runs)
    if (const std::string text = invalidation_text(*run); !text.empty())
      out += "- " + column_title(report, *run) + ": " + text + "\n";
  return out + "\n";
}

std::string markdown_cell(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '|' ? std::string("\\|") : std::string(1, c);
  return out;
}

// Every cost row that a run charged, with how often, one column per run of the first block's shape.
std::string costs_markdown(const Report& report) {
  std::string out =
      "## Costs charged\n\n| row | value | mark | source | times, over all runs |\n|---|---|---|---|---:|\n";
  for (const CostName& name : kCostNames) {
    const CostUse* use = nullptr;
    std::uint64_t count = 0;
    for (const RunResult& run : report.runs)
      for (const CostUse& c : run.costs)
        if (c.row == name.key) {
          use = &c;
          count += c.count;
        }
    if (use != nullptr)
      out += fmt::format("| {} | {} {} | {} | {} | {} |\n", use->row, shortest(use->value), use->unit,
                         to_string(use->mark), markdown_cell(use->source), count);
  }
  return out;
}

std::string assumptions_markdown(const Report& report) {
  std::string out = "\n## Platform " + report.platform + "\n\n| key | value | mark | source |\n|---|---|---|---|\n";
  for (const Assumption& a : report.assumptions)
    out += fmt::format("| {} | {} | {} | {} |\n", a.name, a.value, to_string(a.mark), markdown_cell(a.source));
  return out;
}

}  // namespace

std::string shortest(double value) {
  char buffer[64];
  const Json json = number(value);
  if (json.is_number_integer()) return std::to_string(json.get<std::int64_t>());
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value);
  return {buffer, end.ptr};
}

std::string format_value(double value, Digits digits) {
  std::string text = fmt::format("{:.{}f}", value, static_cast<int>(digits));
  const std::size_t end = text.find('.') == std::string::npos ? text.size() : text.find('.');
  const std::size_t begin = text.front() == '-' ? 1 : 0;
  // Thin groups of three, from the point leftwards.
  for (std::size_t at = end; at > begin + 3;) {
    at -= 3;
    text.insert(at, ",");
  }
  return text;
}

std::string report_json(const Report& report) {
  Json json = Json::object();
  json["schema"] = 1;
  json["scenario"] = report.scenario;
  json["seed"] = report.seed;
  json["runs"] = Json::array();
  for (const RunResult& run : report.runs) json["runs"].push_back(run_json(run));
  return json.dump(1) + "\n";
}

std::string metrics_csv(const Report& report) {
  const auto names = label_names(report);
  std::string out;
  for (const std::string& name : names) out += csv_cell(name) + ",";
  out += "metric,value,unit\n";
  for (const RunResult& run : report.runs) {
    std::string labels;
    for (const std::string& name : names) labels += csv_cell(label_of(run, name)) + ",";
    for (const auto& [index, value] : run.metrics()) {
      const MetricInfo& info = all_metrics()[index];
      out += labels + info.name + "," + shortest(value) + "," + std::string(info.unit) + "\n";
    }
  }
  return out;
}

std::string report_markdown(const Report& report) {
  std::string out = "# " + report.scenario + "\n\n";
  if (!report.description.empty()) out += report.description + ".\n\n";
  out += "Platform " + report.platform + ", seed " + std::to_string(report.seed) + ".\n\n## Comparison\n\n";
  for (const Block& block : blocks_of(report)) out += markdown_block(report, block);
  return out + costs_markdown(report) + assumptions_markdown(report);
}

std::string comparison(const Report& report, Colour colour) {
  std::string out;
  for (const Block& block : blocks_of(report)) out += (out.empty() ? "" : "\n") + terminal_block(report, block, colour);
  return out;
}

void write_file(const std::string& path, const std::string& text) {
  const std::string unfinished = path + ".unfinished";
  {
    std::ofstream stream(unfinished, std::ios::binary | std::ios::trunc);
    stream << text;
    stream.close();
    if (!stream) {
      std::remove(unfinished.c_str());
      throw std::runtime_error(path + ": cannot be written");
    }
  }
  std::error_code failed;
  std::filesystem::rename(unfinished, path, failed);
  if (!failed) return;
  std::remove(unfinished.c_str());
  throw std::runtime_error(path + ": cannot be written (" + failed.message() + ")");
}

}  // namespace iommu
