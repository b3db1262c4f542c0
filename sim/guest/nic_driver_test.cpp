// SPDX-License-Identifier: Apache-2.0
// The NIC's driver with the NIC it drives, on a DMA port that takes 100 ns and faults where nothing is mapped.
#include "sim/guest/nic_driver.hpp"

#include <gtest/gtest.h>

#include <functional>

#include "sim/guest/guest_test_support.hpp"

namespace iommu::guest {
namespace {

using test::Call;
using test::kDevice;
using test::Observer;
using test::ScriptedSpace;
using test::SleepingCpu;

// Looks at the mapping when a transfer begins and when it ends: a driver may take it away only after that.
class CheckedDma final : public DmaPort {
 public:
  CheckedDma(Calendar& calendar, const ScriptedSpace& space) : calendar_(calendar), space_(space) {}
  bool begin(DmaTransfer& transfer) override {
    ++transfers;
    transfer.faulted = !is_mapped(transfer) || (refuse && refuse(transfer));
    calendar_.call_at<&CheckedDma::end>(calendar_.now() + 100_ns, this, reinterpret_cast<std::uintptr_t>(&transfer));
    return false;
  }
  std::uint64_t transfers = 0;
  std::uint64_t unmapped = 0;
  std::function<bool(const DmaTransfer&)> refuse;

 private:
  void end(std::uint64_t argument) {
    auto& transfer = *reinterpret_cast<DmaTransfer*>(argument);
    transfer.faulted |= !is_mapped(transfer);
    transfer.completed = calendar_.now();
    transfer.waiter.resume();
  }
  bool is_mapped(const DmaTransfer& transfer) {
    for (Dfn page(transfer.address); page.address() < transfer.address + transfer.length; page = page + 1) {
      const auto found = space_.pages.find(page);
      if (found != space_.pages.end() && found->second.permissions.allow(transfer.access)) continue;
      ++unmapped;
      return false;
    }
    return true;
  }
  Calendar& calendar_;
  const ScriptedSpace& space_;
};

class NicDriverTest : public testing::Test {
 protected:
  ~NicDriverTest() override { calendar_->clear(); }

  bool prepare(const NicDriverSetting& setting) {
    driver_ = std::make_unique<NicDriver>(cpu_, api_, pages_, setting);
    driver_->connect(meter_);
    return driver_->prepare().run();
  }
  void start() {
    queue_ = &nic_->add_queue(driver_->queue_setup());
    nic_->start();
    task_ = driver_->run(*queue_);
    task_.start();
  }
  void run(const NicDriverSetting& setting) {
    ASSERT_TRUE(prepare(setting));
    start();
    run_to(10_ms);
  }
  void run_to(Picoseconds t) {
    calendar_->run_until(t);
    if (calendar_->now() < t) calendar_->skip_to(t);
  }
  [[nodiscard]] const NicDriverStatistics& statistics() const { return driver_->statistics(); }

  std::unique_ptr<Calendar> calendar_ = std::make_unique<Calendar>();
  SleepingCpu cpu_{CpuId(0), *calendar_};
  ScriptedSpace space_;
  Observer observer_;
  DmaApi api_{kDevice, space_, observer_, {}, 1};
  GuestPages pages_{Gfn(0x100), 256};
  CheckedDma dma_{*calendar_, space_};
  IoMeter meter_;
  NicParameters parameters_{.interrupt_frames = 8, .interrupt_delay = 1_us};
  std::unique_ptr<RingNic> nic_ = std::make_unique<RingNic>(*calendar_, dma_, cpu_, kDevice, parameters_);
  std::unique_ptr<NicDriver> driver_;
  NicQueue* queue_ = nullptr;
  Task<void> task_;
};

// Kills: a buffer that is unmapped before its packet has arrived, or never; a packet counted twice; a run that goes on.
TEST_F(NicDriverTest, EveryPacketIsMappedReceivedAndUnmapped) {
  run({.ring_entries = 16, .packets = 100});
  EXPECT_TRUE(driver_->is_done());
  EXPECT_TRUE(task_.done());
  EXPECT_EQ(statistics().packets, 100U);
  EXPECT_EQ(statistics().bytes, 100U * 1500U);
  EXPECT_EQ(statistics().faulted + statistics().failed_maps, 0U);
  EXPECT_EQ(statistics().latency.count(), 100U);
  EXPECT_EQ(dma_.unmapped, 0U);
  EXPECT_EQ(meter_.completed, 100U);
  EXPECT_EQ(api_.counters().maps, 102U) << "two rings and every packet";
  EXPECT_EQ(api_.counters().unmaps, 100U);
  EXPECT_EQ(space_.pages.size(), 2U) << "the rings stay";
  EXPECT_EQ(cpu_.charged()[CostId::DriverSubmit], 100U);
  EXPECT_EQ(cpu_.charged()[CostId::DriverComplete], 100U);
  EXPECT_EQ(cpu_.charged()[CostId::StackWork], 100U);
}

// Kills: mappings for the wrong direction, which the port would refuse; buffers of the packet's size on receive.
TEST_F(NicDriverTest, TransmitMapsThePacketForReading) {
  run({.kind = NicQueueKind::Transmit, .ring_entries = 8, .packet_size = 60_B, .packets = 20});
  EXPECT_EQ(statistics().packets, 20U);
  EXPECT_EQ(statistics().bytes, 20U * 60U);
  EXPECT_EQ(dma_.unmapped, 0U);
  std::size_t readable = 0;
  for (const auto& [page, mapping] : space_.pages) readable += mapping.permissions == kReadOnly;
  EXPECT_EQ(readable, 1U) << "the descriptor ring; the completion ring is written";
}

// Two buffers of 2 KiB in a page, each with an address of its own. Kills: a page per buffer; buffers that overlap;
// an unmap that takes the neighbour's mapping.
TEST_F(NicDriverTest, SmallBuffersShareAPage) {
  run({.ring_entries = 16, .buffer_size = 2_KiB, .packets = 64});
  EXPECT_EQ(pages_.used(), 2U + 8U);
  EXPECT_EQ(dma_.unmapped, 0U);
  EXPECT_EQ(statistics().packets, 64U);
}

// Kills: large buffers in one page.
TEST_F(NicDriverTest, LargeBuffersHavePagesEnough) {
  run({.ring_entries = 8, .buffer_size = 9_KiB, .packet_size = 9000_B, .packets = 16});
  EXPECT_EQ(pages_.used(), 2U + 8U * 4U);
  EXPECT_EQ(dma_.unmapped, 0U);
  EXPECT_EQ(statistics().bytes, 16U * 9000U);
}

// A ring of 8 and an interrupt for 8 completions. Kills: an interrupt per packet; polling for ever; a doorbell per
// packet; interrupts counted where none was taken.
TEST_F(NicDriverTest, OneInterruptServesAllThatIsThere) {
  run({.ring_entries = 8, .packets = 64});
  EXPECT_EQ(statistics().interrupts, 8U);
  EXPECT_EQ(cpu_.charged()[CostId::Interrupt], 8U);
  EXPECT_EQ(cpu_.charged()[CostId::MmioWrite], 8U) << "first fill, and a refill after all but the last";
}

// Kills: a budget that is ignored.
TEST_F(NicDriverTest, APollStopsAtItsBudget) {
  run({.ring_entries = 8, .budget = 2, .packets = 64});
  EXPECT_EQ(statistics().packets, 64U);
  EXPECT_GT(cpu_.charged()[CostId::MmioWrite], 24U) << "a doorbell for every two buffers";
}

// Kills: faults counted as packets; a mapping left behind by a packet that faulted; a driver that waits for it.
TEST_F(NicDriverTest, FaultedPacketsAreCountedAndUnmapped) {
  std::uint64_t payloads = 0;
  dma_.refuse = [&](const DmaTransfer& t) { return t.length == Bytes(1500) && ++payloads % 3 == 0; };
  run({.ring_entries = 16, .packets = 90});
  EXPECT_TRUE(driver_->is_done());
  EXPECT_EQ(statistics().faulted, 30U);
  EXPECT_EQ(statistics().packets, 60U);
  EXPECT_EQ(statistics().bytes, 60U * 1500U);
  EXPECT_EQ(meter_.completed, 90U);
  EXPECT_EQ(space_.pages.size(), 2U);
}

// One map fails when the ring is full of life. Kills: a ring that is one short ever after.
TEST_F(NicDriverTest, AfterAFailedMapTheRingFillsAgain) {
  ASSERT_TRUE(prepare({.ring_entries = 8}));
  start();
  space_.maps_left = 3;
  run_to(100_us);
  EXPECT_EQ(statistics().failed_maps, 1U);
  EXPECT_GT(statistics().packets, 100U);
  EXPECT_EQ(queue_->free_entries(), 0U);
}

// Kills: a driver that waits for completions of nothing.
TEST_F(NicDriverTest, WithNothingPostedItEnds) {
  ASSERT_TRUE(prepare({.ring_entries = 8, .packets = 10}));
  space_.maps_left = 0;
  start();
  EXPECT_TRUE(driver_->is_done());
  EXPECT_EQ(statistics().failed_maps, 1U);
  EXPECT_EQ(statistics().packets, 0U);
}

// Kills: division by nothing; packets longer than their buffer; success without rings or buffers.
TEST_F(NicDriverTest, WhatCannotWorkIsRefusedAtTheStart) {
  EXPECT_FALSE(prepare({.buffer_size = 0_B}));
  EXPECT_FALSE(prepare({.kind = NicQueueKind::Transmit, .packet_size = 0_B}));
  EXPECT_FALSE(prepare({.kind = NicQueueKind::Transmit, .buffer_size = 1_KiB, .packet_size = 1500_B}));
  EXPECT_FALSE(prepare({.ring_entries = 0}));
  EXPECT_FALSE(prepare({.ring_entries = 1024, .buffer_size = 4_KiB})) << "256 pages of memory";
  space_.maps_left = 0;
  EXPECT_FALSE(prepare({.ring_entries = 4}));
  space_.maps_left = 1;
  EXPECT_FALSE(prepare({.ring_entries = 4}));
}

}  // namespace
}  // namespace iommu::guest
