// SPDX-License-Identifier: Apache-2.0
// What one run found, and what a whole command reports. Plain data: the writers are in writers.hpp, tables in
// comparison.hpp.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "sim/base/costs.hpp"
#include "sim/base/histogram.hpp"
#include "sim/report/metrics.hpp"

namespace iommu {

// Strategy, family and varied keys, in the order in which tables show them.
using Labels = std::vector<std::pair<std::string, std::string>>;

struct CostUse {
  std::string row;
  double value = 0;
  std::string unit;
  std::string source;
  Mark mark = Mark::Guess;
  std::uint64_t count = 0;
  friend bool operator==(const CostUse&, const CostUse&) = default;
};

struct WardenLine {
  std::uint64_t checked = 0;
  std::uint64_t stale = 0;
  std::uint64_t violations = 0;
  double exposure_max_ns = 0;
  // Only where devices of several domains share a requester id.
  struct Shared {
    std::uint64_t strayed = 0;  // pages of DMA through the tables of another domain's device
    std::uint64_t foreign = 0;  // of them, in another domain's memory
    friend bool operator==(const Shared&, const Shared&) = default;
  };
  std::optional<Shared> shared{};
  friend bool operator==(const WardenLine&, const WardenLine&) = default;
};

class RunResult {
 public:
  Labels labels;
  std::vector<CostUse> costs;  // rows charged at least once, in the order of costs.hpp
  WardenLine warden;
  // Why the run must not be believed although it ended: "warden: 3 violations". The command then exits with 1.
  std::vector<std::string> failures;

  // Setting a metric twice is a bug of the caller.
  void set(MetricId metric, double value);
  // A mean and two percentiles, in ns, under names of one pattern; set only those that are declared for `metric`.
  void set_latency(MetricId mean, MetricId p50, MetricId p99, const Histogram& samples);
  // Every row of `table` that `counts` charged.
  void set_costs(const CostTable& table, const CostCounts& counts);
  [[nodiscard]] std::optional<double> find(MetricId metric) const;
  // By declared order.
  [[nodiscard]] const std::map<std::size_t, double>& metrics() const { return metrics_; }

  friend bool operator==(const RunResult&, const RunResult&) = default;

 private:
  friend class RunResultReader;
  std::map<std::size_t, double> metrics_;
};

// A number that results depend on and where it comes from, for the report's list of assumptions.
struct Assumption {
  std::string name;   // "iommu.iotlb_entries"
  std::string value;  // "128"
  std::string source;
  Mark mark = Mark::Guess;
};

struct Report {
  std::string scenario;
  std::string description;
  std::uint64_t seed = 0;
  std::string platform;
  std::vector<RunResult> runs;
  std::vector<Assumption> assumptions;
};

// Declared metrics that no run of `runs` set: for the test that every declared metric is produced by something.
[[nodiscard]] std::vector<std::string> metrics_never_set(const std::vector<RunResult>& runs);

// One run as a line of JSON and back: how a child process hands its result to the parent. parse_run() yields nullopt
// for anything that to_line() did not write.
[[nodiscard]] std::string to_line(const RunResult& run);
[[nodiscard]] std::optional<RunResult> parse_run(const std::string& line);

}  // namespace iommu
