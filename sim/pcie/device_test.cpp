// SPDX-License-Identifier: Apache-2.0
// The NIC and the trace player on a DMA port that takes a fixed time and a driver that is a script.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "sim/pcie/nic.hpp"
#include "sim/pcie/trace_player.hpp"

namespace iommu {
namespace {

constexpr RequesterId kDevice = RequesterId::bdf(0, 4, 0);

// Every transfer takes `latency`; all run at once.
class FixedDma final : public DmaPort {
 public:
  explicit FixedDma(Calendar& calendar) : calendar_(calendar) {}
  bool begin(DmaTransfer& transfer) override {
    began.push_back({transfer.address, transfer.length, transfer.access, calendar_.now()});
    most_in_flight = std::max(most_in_flight, ++in_flight_);
    transfer.faulted = faults && faults(transfer);
    calendar_.at(
        calendar_.now() + (slow == transfer.address ? 20 * latency : latency),
        [](void* self, std::uint64_t t) { static_cast<FixedDma*>(self)->end(*reinterpret_cast<DmaTransfer*>(t)); },
        this, reinterpret_cast<std::uintptr_t>(&transfer));
    return false;
  }
  struct Seen {
    Iova address;
    Bytes length;
    Access access = Access::Read;
    Picoseconds when;
  };
  Picoseconds latency = 100_ns;
  std::optional<Iova> slow;  // takes twenty times as long
  std::function<bool(const DmaTransfer&)> faults;
  std::vector<Seen> began;
  std::uint32_t most_in_flight = 0;

 private:
  void end(DmaTransfer& transfer) {
    --in_flight_;
    transfer.completed = calendar_.now();
    transfer.waiter.resume();
  }
  Calendar& calendar_;
  std::uint32_t in_flight_ = 0;
};

// A CPU that only sleeps; work takes no time except where a test says so.
class SleepingCpu final : public CpuPort, public SignalPort {
 public:
  explicit SleepingCpu(Calendar& calendar) : CpuPort(CpuId(0)), calendar_(calendar) {}
  [[nodiscard]] Picoseconds now() const override { return calendar_.now(); }
  void release(SpinLock&) override {}
  void raise(Signal& signal) override {
    if (signal.waiters.empty()) {
      signal.raised = true;
      return;
    }
    CpuWait* wait = signal.waiters.front();
    signal.waiters.pop_front();
    calendar_.resume_at(calendar_.now(), wait->waiter);
  }

 private:
  bool begin(CpuWait& wait) override {
    if (wait.kind == CpuWaitKind::SleepUntil && wait.until > calendar_.now()) {
      calendar_.call_at<&SleepingCpu::wake>(wait.until, this, reinterpret_cast<std::uintptr_t>(&wait));
      return false;
    }
    if (wait.kind != CpuWaitKind::Idle || std::exchange(wait.signal->raised, false)) return true;
    wait.signal->waiters.push_back(&wait);
    return false;
  }
  void wake(std::uint64_t wait) { reinterpret_cast<CpuWait*>(wait)->waiter.resume(); }
  Calendar& calendar_;
};

constexpr Iova kDescriptors{0x10000};
constexpr Iova kCompletions{0x20000};
constexpr Iova kBuffers{0x100000};

class NicTest : public testing::Test {
 protected:
  NicQueue& build(const NicQueueSetup& setup) {
    nic_ = std::make_unique<RingNic>(calendar_, dma_, cpu_, kDevice, parameters_);
    NicQueue& queue = nic_->add_queue(setup);
    nic_->start();
    return queue;
  }
  static NicQueueSetup ring(NicQueueKind kind, std::uint32_t entries = 16) {
    return {.kind = kind, .descriptor_ring = kDescriptors, .completion_ring = kCompletions, .entries = entries};
  }
  void post(NicQueue& queue, std::uint64_t count) {
    for (std::uint64_t i = 0; i < count; ++i) {
      const Iova at = kBuffers + Bytes(0x1000 * next_);
      ASSERT_EQ(queue.post({.address = at, .length = 2_KiB, .cookie = next_}), NicPostStatus::Ok);
      ++next_;
    }
    queue.ring_doorbell();
  }
  ~NicTest() override { calendar_.clear(); }
  void run_to(Picoseconds t) {
    calendar_.run_until(t);
    if (calendar_.now() < t) calendar_.skip_to(t);
  }
  std::vector<FixedDma::Seen> seen_in(Iova first, Iova last) {
    std::vector<FixedDma::Seen> found;
    std::copy_if(dma_.began.begin(), dma_.began.end(), std::back_inserter(found),
                 [&](const auto& s) { return s.address >= first && s.address < last; });
    return found;
  }
  Calendar calendar_;
  FixedDma dma_{calendar_};
  SleepingCpu cpu_{calendar_};
  NicParameters parameters_{.fetch_batch = 4, .completion_batch = 4};
  std::uint64_t next_ = 0;
  std::unique_ptr<RingNic> nic_;
};

// Mutants killed: a payload before its descriptor; a completion before its payload; payload read instead of written.
TEST_F(NicTest, ReceivedPacketTakesFetchPayloadAndWriteBackInTurn) {
  NicQueue& queue = build(ring(NicQueueKind::Receive));
  post(queue, 1);
  run_to(299'999_ps);
  EXPECT_EQ(queue.completions_waiting(), 0U);
  run_to(300_ns);
  const auto done = queue.take_completion();
  ASSERT_TRUE(done.has_value());
  EXPECT_EQ(done->cookie, 0U);
  EXPECT_EQ(done->length, Bytes(1500));
  EXPECT_EQ(done->finished, 300_ns);
  ASSERT_EQ(dma_.began.size(), 3U);
  EXPECT_EQ(dma_.began[0].address, kDescriptors);
  EXPECT_EQ(dma_.began[0].access, Access::Read);
  EXPECT_EQ(dma_.began[1].address, kBuffers);
  EXPECT_EQ(dma_.began[1].access, Access::Write);
  EXPECT_EQ(dma_.began[2].address, kCompletions);
  EXPECT_EQ(dma_.began[2].access, Access::Write);
}

// Mutant killed: transmission that writes the payload, or takes the receive size.
TEST_F(NicTest, TransmittedPacketIsReadWithItsOwnLength) {
  NicQueue& queue = build(ring(NicQueueKind::Transmit));
  ASSERT_EQ(queue.post({.address = kBuffers, .length = 700_B}), NicPostStatus::Ok);
  queue.ring_doorbell();
  run_to(1_us);
  EXPECT_EQ(dma_.began[1].access, Access::Read);
  EXPECT_EQ(dma_.began[1].length, 700_B);
  EXPECT_EQ(queue.take_completion()->length, 700_B);
}

// Mutant killed: a device that looks at the ring before the doorbell, or before its latency is over.
TEST_F(NicTest, DescriptorsAreInvisibleUntilTheDoorbellArrives) {
  parameters_.doorbell_latency = 200_ns;
  NicQueue& queue = build(ring(NicQueueKind::Receive));
  ASSERT_EQ(queue.post({.address = kBuffers, .length = 2_KiB}), NicPostStatus::Ok);
  run_to(1_us);
  EXPECT_TRUE(dma_.began.empty());
  queue.ring_doorbell();
  run_to(1'199_ns);
  EXPECT_TRUE(dma_.began.empty());
  run_to(1'200_ns);
  EXPECT_EQ(dma_.began.size(), 1U);
}

// Mutants killed: one fetch per descriptor; a batch that runs over the ring's end.
TEST_F(NicTest, DescriptorsAreFetchedInBatchesThatDoNotWrap) {
  NicQueue& queue = build(ring(NicQueueKind::Receive, 6));
  post(queue, 6);
  run_to(10_us);
  while (queue.take_completion()) {
  }
  post(queue, 5);
  run_to(20_us);
  std::vector<std::uint64_t> lengths;
  for (const auto& s : seen_in(kDescriptors, kDescriptors + 4_KiB)) {
    lengths.push_back(s.length.value());
    EXPECT_LE(s.address + s.length, kDescriptors + Bytes(6 * 16));
  }
  EXPECT_EQ(lengths, (std::vector<std::uint64_t>{64, 32, 64, 16}));
}

// Mutants killed: completions in the order in which payloads end; a lost or doubled completion.
TEST_F(NicTest, CompletionsComeInTheOrderOfPosts) {
  NicQueue& queue = build(ring(NicQueueKind::Transmit, 64));
  post(queue, 64);
  run_to(100_us);
  for (std::uint64_t i = 0; i < 64; ++i) EXPECT_EQ(queue.take_completion()->cookie, i);
  EXPECT_FALSE(queue.take_completion().has_value());
  EXPECT_EQ(queue.statistics().packets, 64U);
}

// Mutant killed: a completion written while its own payload, overtaken by later ones, is still moving.
TEST_F(NicTest, SlowPayloadHoldsBackTheCompletionsBehindIt) {
  dma_.slow = kBuffers;
  NicQueue& queue = build(ring(NicQueueKind::Transmit));
  post(queue, 4);
  run_to(2'100_ns);  // fetch and slow payload
  EXPECT_EQ(queue.completions_waiting(), 0U);
  run_to(2'200_ns);
  EXPECT_EQ(queue.completions_waiting(), 4U);
  EXPECT_EQ(queue.take_completion()->cookie, 0U);
}

// Mutants killed: no limit of payloads in flight; a limit of one less.
TEST_F(NicTest, PayloadsInFlightAreLimited) {
  parameters_.payloads_in_flight = 3;
  parameters_.fetch_batch = 16;
  dma_.latency = 1_us;
  NicQueue& queue = build(ring(NicQueueKind::Transmit));
  post(queue, 16);
  run_to(1'500_ns);
  EXPECT_EQ(seen_in(kBuffers, kBuffers + 16_MiB).size(), 3U);
}

// Mutants killed: posting over the end of the ring; accepting nothing-long buffers.
TEST_F(NicTest, FullRingAndEmptyBufferAreRefused) {
  NicQueue& queue = build(ring(NicQueueKind::Receive, 4));
  post(queue, 4);
  EXPECT_EQ(queue.post({.address = kBuffers, .length = 2_KiB}), NicPostStatus::RingFull);
  run_to(10_us);
  EXPECT_EQ(queue.post({.address = kBuffers, .length = 2_KiB}), NicPostStatus::RingFull);  // not taken back yet
  EXPECT_TRUE(queue.take_completion().has_value());
  EXPECT_EQ(queue.post({.address = kBuffers, .length = 0_B}), NicPostStatus::ZeroLength);
  EXPECT_EQ(queue.post({.address = kBuffers, .length = 2_KiB}), NicPostStatus::Ok);
  EXPECT_EQ(queue.statistics().rejected_posts, 3U);
}

// Mutants killed: a fault that hangs the queue or is reported as a packet.
TEST_F(NicTest, FaultsCompleteAsFaultedAndTheQueueGoesOn) {
  dma_.faults = [](const DmaTransfer& t) { return t.address == kBuffers + 4_KiB || t.address == kDescriptors + 64_B; };
  NicQueue& queue = build(ring(NicQueueKind::Receive));
  post(queue, 9);
  run_to(100_us);
  std::vector<bool> faulted;
  while (const auto done = queue.take_completion()) faulted.push_back(done->faulted);
  EXPECT_EQ(faulted, (std::vector<bool>{false, true, false, false, true, true, true, true, false}));
  EXPECT_EQ(queue.statistics().faulted, 5U);
}

// Mutants killed: an interrupt without arming; more than one per arming; one lost when completions are waiting already.
TEST_F(NicTest, InterruptIsRaisedOncePerArming) {
  NicQueue& queue = build(ring(NicQueueKind::Receive));
  post(queue, 2);
  run_to(10_us);
  EXPECT_FALSE(queue.signal().raised);
  queue.arm_interrupt();
  EXPECT_TRUE(queue.signal().raised);
  queue.signal().raised = false;
  post(queue, 2);
  run_to(20_us);
  EXPECT_FALSE(queue.signal().raised);
  EXPECT_EQ(queue.statistics().interrupts, 1U);
}

// Mutants killed: moderation ignored; the timer started by the last completion instead of the first.
TEST_F(NicTest, ModerationDelaysTheInterruptUntilTimeOrCount) {
  parameters_.interrupt_delay = 5_us;
  parameters_.interrupt_frames = 8;
  NicQueue& queue = build(ring(NicQueueKind::Receive));
  queue.arm_interrupt();
  post(queue, 1);
  run_to(1_us);
  post(queue, 1);
  run_to(5'299_ns);
  EXPECT_FALSE(queue.signal().raised);
  run_to(5'300_ns);
  EXPECT_TRUE(queue.signal().raised);
  queue.signal().raised = false;
  while (queue.take_completion()) {
  }
  queue.arm_interrupt();
  post(queue, 8);
  run_to(7_us);
  EXPECT_TRUE(queue.signal().raised);
}

// Mutants killed: drops although there is room; no drop without descriptors.
TEST_F(NicTest, PacketsWithoutDescriptorWaitInTheNicAndThenDrop) {
  parameters_.receive_buffer = 5;
  NicQueueSetup setup = ring(NicQueueKind::Receive);
  setup.packet_interval = 1_us;
  NicQueue& queue = build(setup);
  run_to(20'500_ns);
  EXPECT_EQ(queue.statistics().dropped, 15U);
  post(queue, 16);
  run_to(24'900_ns);
  EXPECT_EQ(queue.statistics().dropped, 15U);
  EXPECT_EQ(queue.statistics().packets, 9U);
}

// Mutant killed: a rate that depends on the device.
TEST_F(NicTest, PacketsArriveAtTheGivenRate) {
  NicQueueSetup setup = ring(NicQueueKind::Receive);
  setup.packet_interval = 2_us;
  NicQueue& queue = build(setup);
  post(queue, 16);
  run_to(20'900_ns);
  EXPECT_EQ(queue.statistics().packets, 10U);
}

// Mutant killed: a stop that starts more packets (the calendar would never run empty).
TEST_F(NicTest, StoppedQueueFinishesWhatIsInFlight) {
  NicQueueSetup setup = ring(NicQueueKind::Receive);
  setup.packet_interval = 1_us;
  NicQueue& queue = build(setup);
  post(queue, 8);
  run_to(3'050_ns);
  nic_->stop();
  calendar_.run_until(1_ms);
  EXPECT_TRUE(calendar_.is_empty());
  EXPECT_EQ(queue.completions_waiting(), 3U);
}

// ---------------------------------------------------------------------------------------------------------------------

// Records calls; each takes `duration`. Bus addresses are the physical ones plus an offset, so that their use shows.
class ScriptedDriver final : public DriverOperations {
 public:
  explicit ScriptedDriver(Calendar& calendar) : calendar_(calendar) {}
  Task<std::vector<Iova>> map(CpuPort& cpu, Map call) override {
    co_await cpu.sleep_until(cpu.now() + duration);
    log.push_back({true, call.id, calendar_.now()});
    std::vector<Iova> addresses;
    if (call.id != refused)
      for (const TraceSegment& s : call.segments) addresses.push_back(Iova(s.physical.value() + kOffset));
    co_return addresses;
  }
  Task<void> unmap(CpuPort& cpu, Unmap call) override {
    log.push_back({false, call.id, calendar_.now()});
    co_await cpu.sleep_until(cpu.now() + duration);
  }
  static constexpr std::uint64_t kOffset = 0x1000000;
  struct Call {
    bool is_map = false;
    std::uint32_t id = 0;
    Picoseconds when;
  };
  std::vector<Call> log;
  Picoseconds duration = 50_ns;
  std::uint32_t refused = ~0U;

 private:
  Calendar& calendar_;
};

class PlayerTest : public testing::Test {
 protected:
  ~PlayerTest() override { calendar_.clear(); }
  std::uint32_t map(std::uint64_t page) {
    const auto index = static_cast<std::uint32_t>(trace_.maps.size());
    trace_.segments.push_back({.iova = Iova(page << 12), .length = 4_KiB, .physical = Gpa((page + 100) << 12)});
    trace_.maps.push_back({.first_segment = index, .length = 4_KiB, .permissions = kReadWrite});
    trace_.operations.push_back({TraceOperationKind::Map, index});
    return index;
  }
  void unmap(std::uint32_t index) {
    trace_.operations.push_back({TraceOperationKind::Unmap, static_cast<std::uint32_t>(trace_.unmaps.size())});
    trace_.unmaps.push_back({index});
  }
  void dma(std::uint32_t index, std::uint64_t offset = 0) {
    trace_.operations.push_back({TraceOperationKind::Dma, static_cast<std::uint32_t>(trace_.dmas.size())});
    trace_.dmas.push_back(
        {.iova = trace_.segments[index].iova + Bytes(offset), .length = 64_B, .map = index, .segment = index});
    ++trace_.maps[index].dmas;
  }
  const TracePlayerStatistics& play(std::uint32_t outstanding = 16) {
    player_ = std::make_unique<TracePlayer>(trace_, TracePlayerParameters{.outstanding = outstanding}, calendar_, cpu_,
                                            dma_, cpu_, driver_);
    player_->start();
    calendar_.run_until(1_ms);
    EXPECT_TRUE(player_->is_done());
    return player_->statistics();
  }
  Calendar calendar_;
  FixedDma dma_{calendar_};
  SleepingCpu cpu_{calendar_};
  ScriptedDriver driver_{calendar_};
  Trace trace_;
  std::unique_ptr<TracePlayer> player_;
};

// Mutants killed: a DMA before its map call has returned; an unmap before the DMA is over; the recorded address on the
// bus.
TEST_F(PlayerTest, DmaWaitsForItsMapAndUnmapForItsDma) {
  const auto a = map(1);
  dma(a, 0x40);
  unmap(a);
  const auto& s = play();
  ASSERT_EQ(dma_.began.size(), 1U);
  EXPECT_EQ(dma_.began[0].when, 50_ns);
  EXPECT_EQ(dma_.began[0].address, Iova((101ULL << 12) + ScriptedDriver::kOffset + 0x40));
  ASSERT_EQ(driver_.log.size(), 2U);
  EXPECT_EQ(driver_.log[1].when, 150_ns);
  EXPECT_EQ(s.finished - s.started, 200_ns);
  EXPECT_EQ(s.maps, 1U);
  EXPECT_EQ(s.unmaps, 1U);
  EXPECT_EQ(s.dma_latency.max(), 100_ns);
  EXPECT_EQ(s.unmap_latency.max(), 50_ns);
}

// Mutant killed: calls that wait for DMAs of other mappings.
TEST_F(PlayerTest, CallsDoNotWaitForDmasOfOtherMappings) {
  dma_.latency = 10_us;
  const auto a = map(1);
  dma(a);
  const auto b = map(2);
  unmap(b);
  (void)play();
  ASSERT_EQ(driver_.log.size(), 3U);
  EXPECT_EQ(driver_.log[2].when, 100_ns);
}

// Mutant killed: DMAs out of trace order when the head waits for its map.
TEST_F(PlayerTest, DmasAreIssuedInTraceOrder) {
  const auto a = map(1);
  dma(a);
  const auto b = map(2);
  dma(b);
  dma(a, 64);
  (void)play();
  ASSERT_EQ(dma_.began.size(), 3U);
  EXPECT_EQ(dma_.began[1].when, 100_ns);
  EXPECT_EQ(dma_.began[2].when, 100_ns);
  EXPECT_EQ(dma_.began[1].address.value() >> 12, ((102ULL << 12) + ScriptedDriver::kOffset) >> 12);
}

// Mutants killed: no limit; a slot that is never used again.
TEST_F(PlayerTest, DmasInFlightAreLimitedAndAllAreMade) {
  const auto a = map(1);
  for (int i = 0; i < 40; ++i) dma(a);
  const auto& s = play(4);
  EXPECT_EQ(dma_.most_in_flight, 4U);
  EXPECT_EQ(s.dmas, 40U);
  EXPECT_EQ(s.bytes, 40U * 64);
  EXPECT_EQ(s.finished, 50_ns + 10 * 100_ns);
}

// Mutant killed: a refused map whose DMAs go to the bus, or whose unmap hangs.
TEST_F(PlayerTest, RefusedMapSkipsItsDmasAndItsUnmap) {
  const auto a = map(1);
  dma(a);
  unmap(a);
  const auto b = map(2);
  dma(b);
  unmap(b);
  driver_.refused = a;
  const auto& s = play();
  EXPECT_EQ(s.failed_maps, 1U);
  EXPECT_EQ(s.skipped_dmas, 1U);
  EXPECT_EQ(s.dmas, 1U);
  EXPECT_EQ(s.unmaps, 1U);
}

// Mutant killed: faults counted as bytes moved.
TEST_F(PlayerTest, FaultedDmasAreCounted) {
  dma_.faults = [](const DmaTransfer&) { return true; };
  const auto a = map(1);
  dma(a);
  const auto& s = play();
  EXPECT_EQ(s.faulted, 1U);
  EXPECT_EQ(s.bytes, 0U);
}

// A whole recorded trace: everything in it happens exactly once. Mutant killed: a lost wake-up.
TEST_F(PlayerTest, ShippedTraceIsPlayedToItsEnd) {
  trace_ = read_trace("scenarios/traces/vtd-nvme-strict.csv.zst");
  player_ = std::make_unique<TracePlayer>(trace_, TracePlayerParameters{}, calendar_, cpu_, dma_, cpu_, driver_);
  player_->start();
  calendar_.run_until(1000_ms);
  EXPECT_TRUE(player_->is_done());
  EXPECT_EQ(player_->statistics().maps, trace_.maps.size());
  EXPECT_EQ(player_->statistics().unmaps, trace_.unmaps.size());
  EXPECT_EQ(player_->statistics().dmas, trace_.dmas.size());
}

}  // namespace
}  // namespace iommu
