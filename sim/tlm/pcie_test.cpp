// SPDX-License-Identifier: Apache-2.0
// Link, root port, endpoint and workload driver against closed forms. Addresses are translated by a scripted unit, so
// that what is tested is this side of it.
#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "sim/base/task.hpp"
#include "sim/pcie/random_dma.hpp"
#include "sim/tlm/endpoint.hpp"
#include "sim/tlm/root_port.hpp"
#include "sim/tlm/workload_driver.hpp"

namespace iommu {
namespace {

constexpr RequesterId kNic = RequesterId::bdf(0, 4, 0);
constexpr FaultRow kRow{.code = 5, .name = "blocked", .citation = {}, .meaning = {}};

// Translates to the same address after a latency that the test chooses by address.
class ScriptedTranslation final : public TranslationPort {
 public:
  explicit ScriptedTranslation(Calendar& calendar) : calendar_(calendar) {}
  [[nodiscard]] bool can_accept() const override { return pending_ < capacity; }
  void on_space(Calendar::Action action, void* context, std::uint64_t argument) override {
    waiters_.push({action, context, argument});
  }
  void submit(UnitRequest& request) override {
    EXPECT_TRUE(can_accept());
    most_pending = std::max(most_pending, ++pending_);
    order.push_back(request.translation.address);
    if (faults && faults(request.translation.address)) {
      Fault fault;
      fault.row = &kRow;
      request.response = fault;
    } else {
      Translation translation;
      translation.address = Hpa(request.translation.address.value());
      request.response = translation;
    }
    calendar_.call_at<&ScriptedTranslation::answer>(calendar_.now() + latency(request.translation.address), this,
                                                    reinterpret_cast<std::uintptr_t>(&request));
  }
  [[nodiscard]] InFlightTracker& in_flight() override { return in_flight_; }

  std::function<Picoseconds(Iova)> latency = [](Iova) { return 10_ns; };
  std::function<bool(Iova)> faults;
  std::uint32_t capacity = 1000;
  std::uint32_t most_pending = 0;
  std::vector<Iova> order;

 private:
  void answer(std::uint64_t argument) {
    auto& request = *reinterpret_cast<UnitRequest*>(argument);
    --pending_;
    request.done(request.context, request.argument);
    if (!waiters_.is_empty() && can_accept()) {
      const auto waiter = waiters_.pop();
      waiter.action(waiter.context, waiter.argument);
    }
  }
  struct Waiter {
    Calendar::Action action = nullptr;
    void* context = nullptr;
    std::uint64_t argument = 0;
  };
  Calendar& calendar_;
  InFlightTracker in_flight_;
  Fifo<Waiter> waiters_;
  std::uint32_t pending_ = 0;
};

struct Seen {
  Picoseconds when;
  Iova iova;
  Bytes length;
  Access access = Access::Read;
};
class Recorder final : public DmaObserver {
 public:
  void on_dma(Picoseconds now, RequesterId, std::optional<Pasid>, Iova iova, Hpa, Bytes length,
              Access access) override {
    seen.push_back({now, iova, length, access});
  }
  std::vector<Seen> seen;
};

constexpr Picoseconds kMemory = 80_ns;
constexpr Picoseconds kPropagation = 150_ns;
constexpr Picoseconds kTranslation = 10_ns;

class PcieTest : public testing::Test {
 protected:
  // Call once, after changing parameters.
  void build() {
    memory_ = std::make_unique<MemorySystem>(calendar_, host_,
                                             MemoryParameters{.llc_hit = kMemory,
                                                              .dram = kMemory,
                                                              .outstanding = 4096,
                                                              .bytes_per_second = 1'000'000'000'000'000,
                                                              .llc_size = Bytes(0)});
    port_ = std::make_unique<PcieRootPort>(calendar_, translation_, memory_->add_port("root port"), root_, &recorder_);
    endpoint_ = std::make_unique<PcieEndpoint>(calendar_, *port_, device_);
  }
  ~PcieTest() override { calendar_.clear(); }

  EndpointOperation& submit(Iova address, Bytes length, Access access) {
    operations_.push_back(std::make_unique<EndpointOperation>());
    EndpointOperation& op = *operations_.back();
    op.requester = kNic;
    op.address = address;
    op.length = length;
    op.access = access;
    op.done = [](void* self, std::uint64_t i) { static_cast<PcieTest*>(self)->finished_.push_back(i); };
    op.context = this;
    op.argument = operations_.size() - 1;
    EXPECT_TRUE(endpoint_->submit(op));
    return op;
  }
  void run() { calendar_.run_until(100_ms); }
  // Payload rate of saturating accesses in bits per second.
  double saturate(Bytes size, Access access, std::uint64_t operations) {
    RandomDma traffic({.base = Iova(0), .window = Bytes(size.value() * 512), .access_size = size, .access = access});
    WorkloadDriver driver(calendar_, *endpoint_, traffic, kNic,
                          {.outstanding = 256, .warmup = operations / 4, .operations = operations}, Rng(1, "test"));
    driver.start();
    run();
    EXPECT_TRUE(driver.is_done());
    EXPECT_EQ(driver.result().operations, operations);
    return driver.result().bits_per_second();
  }
  [[nodiscard]] Picoseconds wire(TlpKind kind, std::uint64_t payload) const {
    return serialisation_time(tlp_size(kind, Bytes(payload), root_.link), root_.link);
  }

  Calendar calendar_;
  HostMemory host_{16_MiB};
  RootPortParameters root_{.propagation = kPropagation};
  EndpointParameters device_{.tags = 256};
  ScriptedTranslation translation_{calendar_};
  Recorder recorder_;
  std::unique_ptr<MemorySystem> memory_;
  std::unique_ptr<PcieRootPort> port_;
  std::unique_ptr<PcieEndpoint> endpoint_;
  std::vector<std::unique_ptr<EndpointOperation>> operations_;
  std::vector<std::uint64_t> finished_;
};

// Mutants killed: no serialisation of the payload; propagation twice; memory accepted before the translation.
TEST_F(PcieTest, UnloadedWriteIsAcceptedAfterWirePropagationTranslationAndMemory) {
  build();
  const auto& op = submit(Iova(0x1000), 64_B, Access::Write);
  const Picoseconds expected = wire(TlpKind::MemoryWrite, 64) + kPropagation + kTranslation + kMemory;
  calendar_.run_until(expected - 1_ps);
  EXPECT_TRUE(finished_.empty());
  run();
  EXPECT_EQ(op.completed, expected);
  ASSERT_EQ(recorder_.seen.size(), 1U);
  EXPECT_EQ(recorder_.seen[0].when, expected);
}

// Mutants killed: completion without serialisation; one-way propagation; observer called when the completion arrives.
TEST_F(PcieTest, UnloadedReadReturnsAfterARoundTrip) {
  build();
  const auto& op = submit(Iova(0x1000), 64_B, Access::Read);
  const Picoseconds at_memory = wire(TlpKind::MemoryRead, 0) + kPropagation + kTranslation + kMemory;
  const Picoseconds expected = at_memory + wire(TlpKind::CompletionWithData, 64) + kPropagation;
  calendar_.run_until(expected - 1_ps);
  EXPECT_TRUE(finished_.empty());
  run();
  EXPECT_EQ(op.completed, expected);
  EXPECT_EQ(recorder_.seen[0].when, at_memory);
}

// Mutant killed: switch latency charged once instead of each way.
TEST_F(PcieTest, SwitchLatencyCountsEachWay) {
  device_.switch_latency = 100_ns;
  build();
  const auto& op = submit(Iova(0x1000), 64_B, Access::Read);
  run();
  EXPECT_EQ(op.completed, wire(TlpKind::MemoryRead, 0) + kTranslation + kMemory +
                              wire(TlpKind::CompletionWithData, 64) + 2 * (kPropagation + 100_ns));
}

// Mutants killed: packets across a page; packets above the limits.
TEST_F(PcieTest, TransferIsCutAtPagesAndAtTheLimitOfItsKind) {
  build();
  submit(Iova(0x1f80), 1024_B, Access::Write);
  run();
  std::vector<std::uint64_t> lengths;
  for (const Seen& s : recorder_.seen) lengths.push_back(s.length.value());
  EXPECT_EQ(lengths, (std::vector<std::uint64_t>{128, 256, 256, 256, 128}));
  recorder_.seen.clear();
  submit(Iova(0x1f80), 1024_B, Access::Read);
  run();
  lengths.clear();
  for (const Seen& s : recorder_.seen) lengths.push_back(s.length.value());
  EXPECT_EQ(lengths, (std::vector<std::uint64_t>{128, 512, 384}));
}

// Mutant killed: any packet of a request that is left out of the wire's account.
TEST_F(PcieTest, SaturatedThroughputIsTheClosedFormForEverySize) {
  for (const std::uint64_t size : {64U, 128U, 256U, 512U, 2048U}) {
    for (const Access access : {Access::Read, Access::Write}) {
      SCOPED_TRACE(size);
      calendar_.clear();
      root_.posted = {.headers = 1000, .data = 10000};
      root_.nonposted_headers = 1000;
      root_.write_translations = root_.read_translations = 1000;
      build();
      const double rate = saturate(Bytes(size), access, 4000);
      const WireCost cost = wire_cost(Iova(0), Bytes(size), access, root_.link);
      const Bytes bottleneck = std::max(cost.upstream, cost.downstream);
      const double expected =
          static_cast<double>(size) * 8e12 / static_cast<double>(serialisation_time(bottleneck, root_.link).value());
      EXPECT_NEAR(rate / expected, 1.0, 0.01);
    }
  }
}

// Mutant killed: tags that are never limited, or never given back.
TEST_F(PcieTest, TagsLimitReadsInFlight) {
  device_.tags = 4;
  root_.read_translations = 100;
  build();
  const double rate = saturate(64_B, Access::Read, 2000);
  const Picoseconds round_trip =
      wire(TlpKind::MemoryRead, 0) + kTranslation + kMemory + wire(TlpKind::CompletionWithData, 64) + 2 * kPropagation;
  EXPECT_NEAR(rate / (4 * 64 * 8e12 / static_cast<double>(round_trip.value())), 1.0, 0.01);
  EXPECT_GT(endpoint_->statistics().waits_for_tag, 0U);
}

// Mutant killed: reads that ignore the device's room for completions.
TEST_F(PcieTest, RoomForCompletionsLimitsReadsInFlight) {
  device_.completion_buffer = Credits{.headers = 1000, .data = 64};  // two requests of 512 bytes
  root_.read_translations = 100;
  build();
  EXPECT_EQ(device_.problem(root_.link), nullptr);
  const double rate = saturate(512_B, Access::Read, 1000);
  const Picoseconds round_trip = 2 * kPropagation + wire(TlpKind::MemoryRead, 0) + kTranslation + kMemory +
                                 2 * wire(TlpKind::CompletionWithData, 256);
  EXPECT_LT(rate, 1.01 * 2 * 512 * 8e12 / static_cast<double>(round_trip.value()));
  EXPECT_GT(rate, 0.80 * 2 * 512 * 8e12 / static_cast<double>(round_trip.value()));
}

// Mutants killed: posted credits that are not taken; credits that are back before the update has crossed the link.
TEST_F(PcieTest, PostedCreditsLimitWritesInFlight) {
  root_.posted = {.headers = 4, .data = 400};
  build();
  const double rate = saturate(64_B, Access::Write, 2000);
  const Picoseconds loop = wire(TlpKind::MemoryWrite, 64) + kPropagation + kTranslation + kMemory + kPropagation +
                           serialisation_time(8_B, root_.link);
  EXPECT_NEAR(rate / (4 * 64 * 8e12 / static_cast<double>(loop.value())), 1.0, 0.02);
  EXPECT_GT(endpoint_->statistics().waits_for_credit, 0U);
  EXPECT_LE(port_->statistics().most_buffered, 4U);
}

// Mutant killed: data credits ignored (headers alone would allow 100 packets).
TEST_F(PcieTest, PostedDataCreditsLimitLargeWrites) {
  root_.posted = {.headers = 100, .data = 32};  // two packets of 256 bytes
  build();
  for (int i = 0; i < 20; ++i) submit(Iova(0x1000), 256_B, Access::Write);
  run();
  EXPECT_EQ(finished_.size(), 20U);
  EXPECT_LE(port_->statistics().most_buffered, 2U);
}

// Mutant killed: an engine that ignores its interval.
TEST_F(PcieTest, EngineStartsOneOperationPerInterval) {
  device_.write_interval = 50_ns;
  build();
  EXPECT_NEAR(saturate(64_B, Access::Write, 2000) / (64 * 8 / 50e-9), 1.0, 0.01);
}

// Mutants killed: a write used before an older one whose walk is still running; a window that is not limited.
TEST_F(PcieTest, WritesReachMemoryInOrderBehindASlowTranslation) {
  root_.write_translations = 3;
  translation_.latency = [](Iova a) { return a == Iova(0x1000) ? 1_us : 10_ns; };
  build();
  for (std::uint64_t i = 1; i <= 6; ++i) submit(Iova(i << 12), 64_B, Access::Write);
  run();
  ASSERT_EQ(recorder_.seen.size(), 6U);
  for (std::uint64_t i = 0; i < 6; ++i) EXPECT_EQ(recorder_.seen[i].iova, Iova((i + 1) << 12));
  EXPECT_GE(recorder_.seen[0].when, 1_us);
  EXPECT_EQ(translation_.most_pending, 3U);
}

// Mutants killed: completions in order although they may overtake; the other way round.
TEST_F(PcieTest, ReadsOvertakeASlowTranslationOnlyIfBothOrdersAllowIt) {
  translation_.latency = [](Iova a) { return a == Iova(0x1000) ? 1_us : 10_ns; };
  const auto run_with = [&](ReturnOrder translations, ReturnOrder completions) {
    calendar_.clear();
    finished_.clear();
    operations_.clear();
    root_.read_translation_order = translations;
    root_.completion_order = completions;
    build();
    submit(Iova(0x1000), 64_B, Access::Read);
    submit(Iova(0x2000), 64_B, Access::Read);
    run();
    return finished_;
  };
  EXPECT_EQ(run_with(ReturnOrder::InOrder, ReturnOrder::OutOfOrder), (std::vector<std::uint64_t>{0, 1}));
  EXPECT_EQ(run_with(ReturnOrder::OutOfOrder, ReturnOrder::InOrder), (std::vector<std::uint64_t>{0, 1}));
  EXPECT_EQ(run_with(ReturnOrder::OutOfOrder, ReturnOrder::OutOfOrder), (std::vector<std::uint64_t>{1, 0}));
}

// Mutant killed: a read that passes an older write.
TEST_F(PcieTest, ReadPushesOlderWritesAheadOfIt) {
  translation_.latency = [](Iova a) { return a == Iova(0x1000) ? 1_us : 10_ns; };
  build();
  submit(Iova(0x1000), 64_B, Access::Write);
  run();
  calendar_.clear();
  recorder_.seen.clear();
  submit(Iova(0x1000), 64_B, Access::Write);
  submit(Iova(0x2000), 64_B, Access::Read);
  run();
  ASSERT_EQ(recorder_.seen.size(), 2U);
  EXPECT_EQ(recorder_.seen[0].access, Access::Write);

  root_.reads_pass_writes = ReadsPassWrites::Yes;
  build();
  recorder_.seen.clear();
  submit(Iova(0x1000), 64_B, Access::Write);
  submit(Iova(0x2000), 64_B, Access::Read);
  run();
  EXPECT_EQ(recorder_.seen[0].access, Access::Read);
}

// Mutants killed: submitting into a full unit; a lane that is forgotten when it is full.
TEST_F(PcieTest, FullIommuHoldsRequestsBackAndNoneIsLost) {
  translation_.capacity = 2;
  translation_.latency = [](Iova) { return 300_ns; };
  build();
  for (std::uint64_t i = 1; i <= 20; ++i) submit(Iova(i << 12), 64_B, i % 2 == 0 ? Access::Read : Access::Write);
  run();
  EXPECT_EQ(finished_.size(), 20U);
  EXPECT_EQ(translation_.most_pending, 2U);
  EXPECT_GT(port_->statistics().iommu_full, 0U);
}

// Mutants killed: a refused read that never completes; a refused write that reaches memory; a leaked credit or tag.
TEST_F(PcieTest, RefusedAccessesCompleteAsFaultedAndTouchNoMemory) {
  device_.tags = 2;
  root_.posted = {.headers = 2, .data = 400};
  root_.nonposted_headers = 2;
  translation_.faults = [](Iova) { return true; };
  build();
  for (std::uint64_t i = 1; i <= 20; ++i) submit(Iova(i << 12), 600_B, i % 2 == 0 ? Access::Read : Access::Write);
  run();
  EXPECT_EQ(finished_.size(), 20U);
  EXPECT_TRUE(recorder_.seen.empty());
  for (const auto& op : operations_) EXPECT_TRUE(op->faulted);
  EXPECT_EQ(endpoint_->statistics().faulted, 20U);
  EXPECT_EQ(translation_.in_flight().in_flight(), 0U);
}

// Mutant killed: an access to where no memory is counts as done.
TEST_F(PcieTest, AccessOutsideMemoryIsFaulted) {
  build();
  const auto& op = submit(Iova(1ULL << 40), 64_B, Access::Read);
  run();
  EXPECT_TRUE(op.faulted);
  EXPECT_EQ(port_->statistics().unbacked, 1U);
}

// Mutants killed: entering the tracker only when memory is asked; leaving it before memory has served the DMA.
TEST_F(PcieTest, DmaIsInFlightFromTranslationToMemory) {
  translation_.latency = [](Iova a) { return a == Iova(0x1000) ? 1_us : 10_ns; };
  build();
  submit(Iova(0x1000), 64_B, Access::Write);
  submit(Iova(0x2000), 64_B, Access::Write);  // translated early, held by order
  calendar_.run_until(900_ns);
  EXPECT_EQ(translation_.in_flight().in_flight(), 1U);
  bool drained = false;
  translation_.in_flight().drain([](void* flag, std::uint64_t) { *static_cast<bool*>(flag) = true; }, &drained, 0);
  calendar_.run_until(recorder_.seen.empty() ? 1_us : 2_us);
  EXPECT_FALSE(drained);
  run();
  EXPECT_TRUE(drained);
  EXPECT_EQ(translation_.in_flight().in_flight(), 0U);
}

// Mutants killed: a zero-length transfer that waits for ever; an address that wraps around.
TEST_F(PcieTest, ImpossibleTransfersAreRefusedAtOnce) {
  build();
  DmaTransfer nothing{.requester = kNic, .address = Iova(0x1000)};
  EXPECT_TRUE(endpoint_->begin(nothing));
  EXPECT_TRUE(nothing.faulted);
  DmaTransfer wrapping{.requester = kNic, .address = Iova(~0ULL - 10), .length = 64_B};
  EXPECT_TRUE(endpoint_->begin(wrapping));
  EXPECT_TRUE(wrapping.faulted);
  EXPECT_EQ(endpoint_->statistics().refused, 2U);
}

class ZeroBytes final : public Workload {
 public:
  std::optional<DmaOperation> next(Rng&, Picoseconds) override { return DmaOperation{Iova(0), Bytes(0), Access::Read}; }
};
// Mutant killed: asking the workload again and again for an operation that the device can do.
TEST_F(PcieTest, WorkloadThatAsksForZeroBytesStopsWithAnError) {
  build();
  ZeroBytes traffic;
  WorkloadDriver driver(calendar_, *endpoint_, traffic, kNic, {}, Rng(1, "test"));
  driver.start();
  run();
  EXPECT_TRUE(driver.is_done());
  EXPECT_EQ(driver.problem(), "DMA of zero bytes");
}

// Mutant killed: the warm-up counted into the measurement; more operations measured than asked for.
TEST_F(PcieTest, DriverMeasuresExactlyTheWindow) {
  build();
  RandomDma traffic({.window = 64_KiB, .access_size = 64_B, .access = Access::Read});
  WorkloadDriver driver(calendar_, *endpoint_, traffic, kNic, {.outstanding = 1, .warmup = 10, .operations = 5},
                        Rng(1, "test"));
  driver.start();
  run();
  EXPECT_TRUE(driver.is_done());
  EXPECT_EQ(driver.completed(), 15U);
  EXPECT_EQ(driver.result().operations, 5U);
  EXPECT_EQ(driver.result().latency.count(), 5U);
  const Picoseconds round_trip =
      wire(TlpKind::MemoryRead, 0) + kTranslation + kMemory + wire(TlpKind::CompletionWithData, 64) + 2 * kPropagation;
  EXPECT_EQ(driver.result().ended - driver.result().began, round_trip * 5);
  EXPECT_EQ(driver.result().latency.max(), round_trip);
}

// Mutant killed: one device that keeps the link for itself.
TEST_F(PcieTest, DevicesOnOneRootPortShareTheLinkFairly) {
  build();
  PcieEndpoint second(calendar_, *port_, device_);
  RandomDma traffic({.window = 64_KiB, .access_size = 256_B, .access = Access::Write});
  WorkloadDriver a(calendar_, *endpoint_, traffic, kNic, {.outstanding = 64}, Rng(1, "a"));
  WorkloadDriver b(calendar_, second, traffic, RequesterId::bdf(0, 5, 0), {.outstanding = 64}, Rng(1, "b"));
  a.start();
  b.start();
  calendar_.run_until(100_us);
  EXPECT_GT(a.completed(), 1000U);
  EXPECT_NEAR(static_cast<double>(a.completed()) / static_cast<double>(b.completed()), 1.0, 0.02);
}

}  // namespace
}  // namespace iommu
