// SPDX-License-Identifier: Apache-2.0
#include "sim/base/task.hpp"

#include <gtest/gtest.h>

namespace iommu {
namespace {

struct Gate {
  std::coroutine_handle<> waiter;
  bool await_ready() const { return false; }
  void await_suspend(std::coroutine_handle<> h) { waiter = h; }
  void await_resume() const {}
};
struct Live {
  explicit Live(int& count) : count_(count) { ++count_; }
  ~Live() { --count_; }
  Live(const Live&) = delete;
  Live& operator=(const Live&) = delete;
  int& count_;
};

Task<int> ready(int v) { co_return v; }
Task<int> sum(int n) {
  int total = 0;
  for (int i = 0; i < n; ++i) {
    const int v = co_await ready(1);
    total += v;
  }
  co_return total;
}
Task<int> behind(Gate& gate, int& live) {
  const Live marker(live);
  co_await gate;
  co_return 7;
}
Task<void> root(Gate& gate, int& live, int& result) {
  const int v = co_await behind(gate, live);
  result = v;
}

// Kills: symmetric transfer that is not a tail call (the stack overflows in unoptimised builds).
TEST(Task, AMillionChildrenThatAnswerAtOnceKeepTheStackConstant) { EXPECT_EQ(sum(1'000'000).run(), 1'000'000); }

// Kills: a child that does not resume its caller.
TEST(Task, ParkedChildResumesItsCaller) {
  Gate gate;
  int live = 0;
  int result = 0;
  Task<void> task = root(gate, live, result);
  task.start();
  EXPECT_FALSE(task.done());
  EXPECT_EQ(live, 1);
  gate.waiter.resume();
  EXPECT_TRUE(task.done());
  EXPECT_EQ(result, 7);
  EXPECT_EQ(live, 0);
}

// Kills: a root whose destruction leaks the frames of its parked children.
TEST(Task, DestroyingAParkedRootDestroysItsLocals) {
  Gate gate;
  int live = 0;
  int result = 0;
  {
    Task<void> task = root(gate, live, result);
    task.start();
    EXPECT_EQ(live, 1);
  }
  EXPECT_EQ(live, 0);
  EXPECT_EQ(result, 0);
}

}  // namespace
}  // namespace iommu
