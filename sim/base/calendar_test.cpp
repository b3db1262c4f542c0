// SPDX-License-Identifier: Apache-2.0
#include "sim/base/calendar.hpp"

#include <gtest/gtest.h>

#include <map>
#include <memory>

#include "sim/base/rng.hpp"

namespace iommu {
namespace {

// The calendar against a multimap, with events that schedule more events at zero, near and far distances.
class CalendarOracle {
 public:
  explicit CalendarOracle(std::uint64_t seed) : rng_(seed) {}
  void run(unsigned initial, std::uint64_t total) {
    total_ = total;
    for (unsigned i = 0; i < initial; ++i) schedule();
    calendar_->run_until(Picoseconds(INT64_MAX));
  }
  [[nodiscard]] bool ran_in_order() const {
    return std::equal(expected_.begin(), expected_.end(), ran_.begin(), ran_.end(),
                      [](const auto& a, const auto& b) { return a.first == b.first && a.second == b.second; });
  }
  [[nodiscard]] std::size_t ran() const { return ran_.size(); }

 private:
  void schedule() {
    const std::uint64_t horizons[] = {1, 3'000, 5'000'000, 100'000'000};
    const Picoseconds when =
        calendar_->now() + Picoseconds(static_cast<std::int64_t>(rng_.below(horizons[rng_.below(4)])));
    expected_.emplace(when.value(), next_);
    calendar_->call_at<&CalendarOracle::on_event>(when, this, next_++);
  }
  void on_event(std::uint64_t id) {
    ran_.emplace_back(calendar_->now().value(), id);
    for (int i = 0; i < 2; ++i)
      if (next_ < total_ && rng_.chance(0.51)) schedule();
  }
  std::unique_ptr<Calendar> calendar_ = std::make_unique<Calendar>();
  Rng rng_;
  std::uint64_t next_ = 0;
  std::uint64_t total_ = 0;
  std::multimap<std::int64_t, std::uint64_t> expected_;
  std::vector<std::pair<std::int64_t, std::uint64_t>> ran_;
};

// Kills: unsorted buckets, a lost wrap of the wheel, ties broken by anything but scheduling order.
TEST(Calendar, RunsEventsInTimeThenSchedulingOrder) {
  constexpr std::uint64_t kSeed = 1;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  CalendarOracle oracle(kSeed);
  oracle.run(1000, 20'000);
  EXPECT_GT(oracle.ran(), 1000U);
  EXPECT_TRUE(oracle.ran_in_order());
}

// Kills: clear() that leaves an occupied bit or a heap entry behind.
TEST(Calendar, ClearedCalendarIsEmpty) {
  auto calendar = std::make_unique<Calendar>();
  int runs = 0;
  const auto count = [](void* n, std::uint64_t) { ++*static_cast<int*>(n); };
  calendar->at(5_ns, count, &runs);
  calendar->at(1_ms, count, &runs);
  calendar->clear();
  EXPECT_TRUE(calendar->is_empty());
  EXPECT_FALSE(calendar->next().has_value());
  calendar->run_until(2_ms);
  EXPECT_EQ(runs, 0);
}

}  // namespace
}  // namespace iommu
