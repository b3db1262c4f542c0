// SPDX-License-Identifier: Apache-2.0
#include "sim/report/result.hpp"

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "sim/base/check.hpp"

namespace iommu {

using Json = nlohmann::ordered_json;

void RunResult::set(MetricId metric, double value) {
  SIM_CHECK(std::isfinite(value), "a metric is a finite number");
  SIM_CHECK(metrics_.emplace(metric.index(), value).second, "a metric is set once per run");
}

void RunResult::set_latency(MetricId mean, MetricId p50, MetricId p99, const Histogram& samples) {
  set(mean, samples.mean_ps() / 1e3);
  set(p50, to_ns(samples.percentile(0.50)));
  set(p99, to_ns(samples.percentile(0.99)));
}

void RunResult::set_costs(const CostTable& table, const CostCounts& counts) {
  for (const CostName& name : kCostNames) {
    const CostRow& row = table[name.id];
    if (counts[name.id] != 0)
      costs.push_back({std::string(name.key), row.value, row.unit, row.source, row.mark, counts[name.id]});
  }
}

std::optional<double> RunResult::find(MetricId metric) const {
  const auto found = metrics_.find(metric.index());
  return found == metrics_.end() ? std::nullopt : std::optional(found->second);
}

std::vector<std::string> metrics_never_set(const std::vector<RunResult>& runs) {
  std::set<std::size_t> seen;
  for (const RunResult& run : runs)
    for (const auto& [index, value] : run.metrics()) seen.insert(index);
  std::vector<std::string> missing;
  for (std::size_t i = 0; i < all_metrics().size(); ++i)
    if (!seen.contains(i)) missing.push_back(all_metrics()[i].name);
  return missing;
}

std::string to_line(const RunResult& run) {
  Json json{{"labels", run.labels}, {"metrics", Json::array()}, {"costs", Json::array()}};
  for (const auto& [index, value] : run.metrics()) json["metrics"].push_back({index, value});
  for (const CostUse& c : run.costs)
    json["costs"].push_back({c.row, c.value, c.unit, c.source, static_cast<unsigned>(c.mark), c.count});
  json["warden"] = {run.warden.checked, run.warden.stale, run.warden.violations, run.warden.exposure_max_ns};
  if (run.warden.shared) json["warden_shared"] = {run.warden.shared->strayed, run.warden.shared->foreign};
  json["failures"] = run.failures;
  return json.dump();
}

class RunResultReader {
 public:
  static RunResult read(const Json& json) {
    RunResult run;
    run.labels = json.at("labels").get<Labels>();
    for (const Json& m : json.at("metrics")) {
      const auto index = m.at(0).get<std::size_t>();
      if (index >= all_metrics().size()) throw nlohmann::json::other_error::create(500, "no such metric", &json);
      run.metrics_[index] = m.at(1).get<double>();
    }
    for (const Json& c : json.at("costs")) {
      const auto mark = c.at(4).get<unsigned>();
      if (mark > static_cast<unsigned>(Mark::Guess)) throw nlohmann::json::other_error::create(500, "no mark", &json);
      run.costs.push_back({c.at(0), c.at(1), c.at(2), c.at(3), static_cast<Mark>(mark), c.at(5)});
    }
    const Json& w = json.at("warden");
    run.warden = {w.at(0), w.at(1), w.at(2), w.at(3)};
    if (const auto shared = json.find("warden_shared"); shared != json.end())
      run.warden.shared = WardenLine::Shared{shared->at(0), shared->at(1)};
    run.failures = json.at("failures").get<std::vector<std::string>>();
    return run;
  }
};

std::optional<RunResult> parse_run(const std::string& line) {
  try {
    return RunResultReader::read(Json::parse(line));
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;
  }
}

}  // namespace iommu
