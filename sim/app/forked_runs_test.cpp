// SPDX-License-Identifier: Apache-2.0
#include "sim/app/forked_runs.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <map>
#include <stdexcept>

namespace iommu {
namespace {

using Status = ForkedResult::Status;

// Kills: results in the order in which children end.
TEST(ForkedRuns, ResultsKeepTheOrderOfJobs) {
  const auto results = run_forked(6, 3,
                                  [](std::size_t job, const ProgressFn&) {
                                    ::usleep(static_cast<useconds_t>((6 - job) * 5'000));
                                    return std::to_string(job * 10);
                                  },
                                  {});
  for (std::size_t i = 0; i < results.size(); ++i) {
    EXPECT_EQ(results[i].status, Status::Done);
    EXPECT_EQ(results[i].text, std::to_string(i * 10));
  }
}

// Kills: a crash that takes its neighbours or the parent with it, or that counts as success.
TEST(ForkedRuns, CrashesAndFailuresStayWithTheirJob) {
  const auto results = run_forked(4, 2,
                                  [](std::size_t job, const ProgressFn&) -> std::string {
                                    if (job == 0) std::raise(SIGKILL);
                                    if (job == 1) throw std::runtime_error("no\nsuch trace");
                                    if (job == 2) ::_exit(0);
                                    return "fine";
                                  },
                                  {});
  EXPECT_EQ(results[0].status, Status::Crashed);
  EXPECT_THAT(results[0].text, testing::HasSubstr("signal"));
  EXPECT_EQ(results[1].status, Status::Failed);
  EXPECT_EQ(results[1].text, "no such trace");
  EXPECT_EQ(results[2].status, Status::Crashed);
  EXPECT_EQ(results[3].status, Status::Done);
}

// Kills: a pipe read once, which cuts results longer than its buffer.
TEST(ForkedRuns, LongResultsAndProgressArriveWhole) {
  std::map<std::size_t, Progress> last;
  const auto results = run_forked(
      2, 2,
      [](std::size_t job, const ProgressFn& progress) {
        for (std::uint64_t i = 0; i <= 1000; ++i) progress({.done = i, .total = 1000, .now = Picoseconds(7)});
        return std::string(500'000, job == 0 ? 'a' : 'b');
      },
      [&](std::size_t job, const Progress& p) { last[job] = p; });
  EXPECT_EQ(results[1].text, std::string(500'000, 'b'));
  EXPECT_EQ(last[0].done, 1000U);
  EXPECT_EQ(last[1].total, 1000U);
}

}  // namespace
}  // namespace iommu
