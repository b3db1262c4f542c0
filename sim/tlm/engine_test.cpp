// SPDX-License-Identifier: Apache-2.0
// SystemC allows one elaboration per process; test discovery gives each test its own. Run from one process, later tests
// are skipped.
#include "sim/tlm/engine.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

namespace iommu {
namespace {

bool is_elaborated() { return sc_core::sc_get_status() != sc_core::SC_ELABORATION; }
#define REQUIRE_FRESH_PROCESS() \
  if (is_elaborated()) GTEST_SKIP() << "one elaboration per process"

// Ours: an event chain that writes down what it saw.
class Ours {
 public:
  Ours(Calendar& calendar, std::vector<std::string>& log) : calendar_(calendar), log_(log) {}
  void start(Picoseconds step, int times) {
    step_ = step;
    left_ = times;
    calendar_.call_at<&Ours::act>(calendar_.now() + step_, this);
  }
  void act(std::uint64_t) {
    log_.push_back("ours " + std::to_string(calendar_.now().value()));
    if (--left_ > 0) calendar_.call_at<&Ours::act>(calendar_.now() + step_, this);
  }

 private:
  Calendar& calendar_;
  std::vector<std::string>& log_;
  Picoseconds step_;
  int left_ = 0;
};

// Foreign: an SC_METHOD with its own period that also schedules an event of ours each time.
class Foreign : public sc_core::sc_module {
 public:
  Foreign(const sc_core::sc_module_name& name, Engine& engine, std::vector<std::string>& log, Picoseconds period,
          int times)
      : sc_module(name), engine_(engine), log_(log), period_(period), left_(times) {
    sc_core::sc_spawn_options options;
    options.spawn_method();
    sc_core::sc_spawn([this] { tick(); }, "tick", &options);
  }

 private:
  void tick() {
    if (sc_core::sc_time_stamp() != sc_core::SC_ZERO_TIME) {
      log_.push_back("foreign " + std::to_string(engine_.from_sc_time(sc_core::sc_time_stamp()).value()));
      Calendar& calendar = engine_.enter();
      log_.push_back("enters " + std::to_string(calendar.now().value()));
      calendar.call_at<&Foreign::reply>(calendar.now() + 3_ps, this);
      if (--left_ == 0) return;
    }
    sc_core::next_trigger(engine_.to_sc_time(period_));
  }
  void reply(std::uint64_t) { log_.push_back("reply " + std::to_string(engine_.calendar().now().value())); }

  Engine& engine_;
  std::vector<std::string>& log_;
  Picoseconds period_;
  int left_;
};

// Kills: running past a foreign event, time seen wrongly on entry, ours before foreign at the same time.
TEST(Engine, EffectsOfForeignAndOwnEventsAreInExactOrder) {
  REQUIRE_FRESH_PROCESS();
  std::vector<std::string> log;
  Engine engine("engine");
  Foreign foreign("foreign", engine, log, 7_ps, 3);
  Ours ours(engine.calendar(), log);
  ours.start(5_ps, 5);
  EXPECT_EQ(engine.run(), RunEnd::Idle);
  // At 10, ours (scheduled at 5) comes before the reply (scheduled at 7).
  const std::vector<std::string> expected{"ours 5",     "foreign 7", "enters 7", "ours 10",  "reply 10",
                                          "foreign 14", "enters 14", "ours 15",  "reply 17", "ours 20",
                                          "foreign 21", "enters 21", "reply 24", "ours 25"};
  EXPECT_EQ(log, expected);
}

// Kills: results that depend on whether somebody else's module ticks alongside.
TEST(Engine, OwnEventsAreTheSameBesideAForeignClock) {
  REQUIRE_FRESH_PROCESS();
  std::vector<std::string> log;
  Engine engine("engine");
  sc_core::sc_clock clock("clock", sc_core::sc_time::from_value(13));
  Ours ours(engine.calendar(), log);
  ours.start(5_ps, 100);
  EXPECT_EQ(engine.run_until(510_ps), RunEnd::LimitReached);
  ASSERT_EQ(log.size(), 100U);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(log[static_cast<std::size_t>(i)], "ours " + std::to_string(5 * (i + 1)));
}

// Kills: an activation per event when nothing foreign is pending.
TEST(Engine, RunsAheadWhenAlone) {
  REQUIRE_FRESH_PROCESS();
  std::vector<std::string> log;
  Engine engine("engine");
  Ours ours(engine.calendar(), log);
  ours.start(1_ns, 10'000);
  EXPECT_EQ(engine.run(), RunEnd::Idle);
  EXPECT_EQ(log.size(), 10'000U);
  EXPECT_LT(engine.activations(), 10U);
  EXPECT_EQ(engine.from_sc_time(sc_core::sc_time_stamp()), 10_us) << "the kernel has caught up";
}

// Kills: running ahead of the kernel although a module that calls out has forbidden it.
TEST(Engine, KernelTimeIsTheCalendarsTimeOnceRequired) {
  REQUIRE_FRESH_PROCESS();
  Engine engine("engine");
  engine.require_kernel_time();
  struct Probe {
    Engine& engine;
    int left = 50;
    int apart = 0;
    void act(std::uint64_t) {
      apart += engine.from_sc_time(sc_core::sc_time_stamp()) != engine.calendar().now();
      if (--left > 0) engine.calendar().call_at<&Probe::act>(engine.calendar().now() + 7_ns, this);
    }
  } probe{engine};
  engine.calendar().call_at<&Probe::act>(7_ns, &probe);
  EXPECT_EQ(engine.run(), RunEnd::Idle);
  EXPECT_EQ(probe.left, 0);
  EXPECT_EQ(probe.apart, 0);
}

// Kills: losing events at a limit, running past it, not stopping, or not going on.
TEST(Engine, RunsStopAtLimitsAndPredicatesAndContinue) {
  REQUIRE_FRESH_PROCESS();
  std::vector<std::string> log;
  Engine engine("engine");
  Ours ours(engine.calendar(), log);
  ours.start(10_ns, 10);
  EXPECT_EQ(engine.run_until(25_ns), RunEnd::LimitReached);
  EXPECT_EQ(log.size(), 2U);
  EXPECT_EQ(engine.calendar().now(), 20_ns);
  EXPECT_EQ(engine.from_sc_time(sc_core::sc_time_stamp()), 20_ns) << "the kernel has caught up";
  EXPECT_EQ(engine.run_while([&] { return log.size() < 5; }), RunEnd::Stopped);
  EXPECT_EQ(log.size(), 5U);
  EXPECT_EQ(engine.calendar().now(), 50_ns);
  EXPECT_EQ(engine.run_until(100_ns), RunEnd::Idle);
  EXPECT_EQ(log.size(), 10U);
  EXPECT_EQ(log.back(), "ours 100000");
}

// Kills: running ahead of a testbench that owns the kernel and may act between its own sc_start calls.
TEST(Engine, NeverRunsAheadOfAForeignSimulationLoop) {
  REQUIRE_FRESH_PROCESS();
  std::vector<std::string> log;
  Engine engine("engine");
  Ours ours(engine.calendar(), log);
  ours.start(10_ns, 10);
  (void)engine.enter();
  sc_core::sc_start(engine.to_sc_time(35_ns));
  EXPECT_EQ(log.size(), 3U);
  sc_core::sc_start(engine.to_sc_time(65_ns));
  EXPECT_EQ(log.size(), 9U) << "the kernel leaves out the end of a run";
  sc_core::sc_start(engine.to_sc_time(1_ns));
  EXPECT_EQ(log.size(), 10U);
}

}  // namespace
}  // namespace iommu
