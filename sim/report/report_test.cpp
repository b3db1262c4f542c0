// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <set>
#include <sstream>

#include "sim/report/writers.hpp"

namespace iommu {
namespace {

using testing::HasSubstr;

RunResult run(const std::string& strategy, double throughput) {
  RunResult r;
  r.labels = {{"strategy", strategy}, {"family", "vtd"}};
  r.set("iotlb.misses", 12345678);  // set before what is declared earlier: order of files is the declared one
  r.set("dma.throughput", throughput);
  r.set({"walk.reads", "stage1"}, 3);
  r.warden = {100, 2, 0, 1500.5};
  CostTable table;
  table[CostId::Hypercall] = {.time = 400_ns, .value = 1200, .unit = "cycles", .source = "a|b", .mark = Mark::Memory};
  CostCounts counts;
  counts.add(CostId::Hypercall, 7);
  r.set_costs(table, counts);
  return r;
}

Report report() {
  Report r{.scenario = "s", .description = "Question", .seed = 7, .platform = "p", .runs = {}, .assumptions = {}};
  r.runs = {run("nested", 0.1), run("pv,iommu", 93.25)};
  r.assumptions = {{"iommu.walkers", "16", "no source", Mark::Guess}};
  return r;
}

// The golden bytes of schema 1. Kills: another key order, 12345678.0, 0.10000000000000001.
TEST(ReportJson, HasTheDeclaredShapeAndStableBytes) {
  Report r = report();
  r.runs.resize(1);
  EXPECT_EQ(report_json(r), R"({
 "schema": 1,
 "scenario": "s",
 "seed": 7,
 "runs": [
  {
   "labels": {
    "strategy": "nested",
    "family": "vtd"
   },
   "metrics": {
    "dma.throughput": {
     "value": 0.1,
     "unit": "Gb/s"
    },
    "iotlb.misses": {
     "value": 12345678,
     "unit": "1"
    },
    "walk.reads.stage1": {
     "value": 3,
     "unit": "1"
    }
   },
   "costs": [
    {
     "row": "hypercall",
     "value": 1200,
     "unit": "cycles",
     "source": "a|b",
     "mark": "memory",
     "count": 7
    }
   ],
   "warden": {
    "checked": 100,
    "stale": 2,
    "violations": 0,
    "exposure_max_ns": 1500.5
   }
  }
 ]
}
)");
}

TEST(MetricsCsv, IsLongFormWithQuotedLabels) {
  EXPECT_THAT(metrics_csv(report()), testing::StartsWith("strategy,family,metric,value,unit\n"
                                                         "nested,vtd,dma.throughput,0.1,Gb/s\n"));
  EXPECT_THAT(metrics_csv(report()), HasSubstr("\"pv,iommu\",vtd,dma.throughput,93.25,Gb/s\n"));
}

// Kills: a pipe in a source that breaks the table; a cost or assumption that is left out.
TEST(ReportMarkdown, ListsCostsAndAssumptionsWithMarks) {
  const std::string text = report_markdown(report());
  EXPECT_THAT(text, HasSubstr("| hypercall | 1200 cycles | memory | a\\|b | 14 |"));
  EXPECT_THAT(text, HasSubstr("| iommu.walkers | 16 | guess | no source |"));
  EXPECT_THAT(text, HasSubstr("- warden, nested: 100 checked, 2 stale, 0 violations"));
}

TEST(Comparison, FourColumnsFitIntoAHundredCharactersAndAlign) {
  Report r = report();
  r.runs = {run("passthrough", 99), run("pv_iommu", 80), run("nested", 70), run("emulated_viommu", 1)};
  std::istringstream lines(comparison(r, Colour::Plain));
  std::string line;
  std::set<std::size_t> widths;
  while (std::getline(lines, line) && !line.starts_with("warden")) {
    EXPECT_LE(line.size(), 100U) << line;
    if (!line.empty()) widths.insert(line.size());
  }
  EXPECT_EQ(widths.size(), 1U);
}

TEST(Comparison, ShowsNoColourUnlessAsked) {
  EXPECT_EQ(comparison(report(), Colour::Plain).find('\033'), std::string::npos);
  EXPECT_NE(comparison(report(), Colour::Ansi).find('\033'), std::string::npos);
}

TEST(FormatValue, GroupsThousands) {
  EXPECT_EQ(format_value(1234567, Digits::Integer), "1,234,567");
  EXPECT_EQ(format_value(123, Digits::Integer), "123");
  EXPECT_EQ(format_value(-1234.56, Digits::One), "-1,234.6");
  EXPECT_EQ(format_value(0.12345, Digits::Three), "0.123");
}

TEST(Metrics, NamesAreUniqueAndDocumented) {
  std::set<std::string> names;
  for (const MetricInfo& info : all_metrics()) {
    EXPECT_TRUE(names.insert(info.name).second) << info.name;
    EXPECT_FALSE(info.description.empty()) << info.name;
    EXPECT_FALSE(info.unit.empty()) << info.name;
  }
}

// Kills: an index of a family's member that is off by one.
TEST(Metrics, IdsNameWhatTheyIndex) {
  EXPECT_EQ(all_metrics()[MetricId("miss.cost.stage2").index()].name, "miss.cost.stage2");
  EXPECT_EQ(all_metrics()[MetricId({"cpu.cycles_per_io", "interrupt"}).index()].name, "cpu.cycles_per_io.interrupt");
}

TEST(Metrics, NeverSetListsWhatNoRunSet) {
  const auto missing = metrics_never_set({run("a", 1)});
  EXPECT_EQ(missing.size(), all_metrics().size() - 3);
  EXPECT_THAT(missing, testing::Not(testing::Contains("dma.throughput")));
}

TEST(MetricsDeathTest, UndeclaredMembersAndSecondSetsAreInternalErrors) {
  EXPECT_DEATH(MetricId({"walk.reads", "stage3"}), "no such member");
  EXPECT_DEATH(
      {
        RunResult r;
        r.set("dma.bytes", 1);
        r.set("dma.bytes", 1);
      },
      "once per run");
}

TEST(RunLine, ReadsBackToTheSameRun) {
  RunResult r = run("x", 1.0 / 3);
  r.failures = {"warden: 1 violation"};
  EXPECT_EQ(parse_run(to_line(r)), r);
  EXPECT_EQ(to_line(r).find('\n'), std::string::npos);
  r.warden.shared = {7, 3};
  EXPECT_EQ(parse_run(to_line(r)), r);
}

// Kills: figures of shared ids in reports of machines without any; or none where there are some.
TEST(ReportMarkdown, TellsOfSharedRequesterIdsWhereDomainsShareThem) {
  Report r = report();
  EXPECT_THAT(report_markdown(r), testing::Not(HasSubstr("shared id")));
  r.runs[0].warden.shared = {7, 3};
  EXPECT_THAT(report_markdown(r),
              HasSubstr("7 through another domain's tables by a shared id, 3 of them to its memory"));
}

TEST(RunLine, GarbageIsNoRun) {
  const std::string line = to_line(run("x", 1));
  for (const std::string& bad : {std::string(), std::string("{}"), std::string("[1]"), line.substr(0, line.size() / 2)})
    EXPECT_EQ(parse_run(bad), std::nullopt) << bad;
}

TEST(WriteFile, ReplacesAFileAndSaysWhenItCannot) {
  const std::string folder = testing::TempDir() + "iommusim_write_file";
  std::filesystem::create_directories(folder);
  write_file(folder + "/a", "1");
  write_file(folder + "/a", "2");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 1);
  EXPECT_THROW(write_file(folder + "/missing/a", "1"), std::runtime_error);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace iommu
