// SPDX-License-Identifier: Apache-2.0
#include "sim/tlm/memory_system.hpp"

#include <gtest/gtest.h>

#include <memory>

namespace iommu {
namespace {

class Memory {
 public:
  explicit Memory(const MemoryParameters& p) : host(1_GiB), system(*calendar, host, p), port(system.add_port("test")) {}
  ~Memory() { calendar->clear(); }

  Picoseconds time_of(Hpa address, Access access = Access::Read, std::uint32_t bytes = 64) {
    const Picoseconds start = calendar->now();
    post(address, access, bytes);
    calendar->run_until(Picoseconds(INT64_MAX));
    return last - start;
  }
  void post(Hpa address, Access access = Access::Read, std::uint32_t bytes = 64) {
    transfers.push_back(std::make_unique<DataTransfer>());
    DataTransfer& t = *transfers.back();
    t.address = address;
    t.access = access;
    t.bytes = bytes;
    t.on_done<&Memory::on_done>(this);
    port.post(t);
  }
  void on_done(std::uint64_t) {
    last = calendar->now();
    ++done;
  }

  std::unique_ptr<Calendar> calendar = std::make_unique<Calendar>();
  HostMemory host;
  MemorySystem system;
  MemorySystem::Port& port;
  std::vector<std::unique_ptr<DataTransfer>> transfers;
  Picoseconds last;
  int done = 0;
};

MemoryParameters small_llc() {
  MemoryParameters p;
  p.llc_size = 256_B;
  p.llc_ways = 4;  // one set: four lines, true LRU
  p.bytes_per_second = 1'000'000'000'000'000;
  return p;
}

// Kills: adding transfer time to the unloaded latency; hitting without allocation; not hitting after it.
TEST(MemorySystem, UnloadedLatencyIsDramThenLlc) {
  const MemoryParameters p = small_llc();
  Memory m(p);
  EXPECT_EQ(m.time_of(Hpa(0x1000), Access::Write), p.dram);
  EXPECT_EQ(m.time_of(Hpa(0x1000), Access::Read), p.llc_hit);
  EXPECT_EQ(m.time_of(Hpa(0x2000), Access::Read), p.dram);
  EXPECT_EQ(m.time_of(Hpa(0x2000), Access::Read), p.dram) << "DMA reads do not allocate";
}

// Kills: FIFO instead of LRU, a set of the wrong size.
TEST(MemorySystem, LlcEvictsTheLeastRecentlyUsedLine) {
  const MemoryParameters p = small_llc();
  Memory m(p);
  for (std::uint64_t line = 0; line < 4; ++line) (void)m.time_of(Hpa(line * 64), Access::Write);
  EXPECT_EQ(m.time_of(Hpa(0)), p.llc_hit);
  (void)m.time_of(Hpa(4 * 64), Access::Write);
  EXPECT_EQ(m.time_of(Hpa(0)), p.llc_hit);
  EXPECT_EQ(m.time_of(Hpa(64)), p.dram);
}

// Kills: DDIO that cannot be switched off.
TEST(MemorySystem, WritePolicyDecidesWhetherDmaAllocates) {
  MemoryParameters p = small_llc();
  p.write_policy[static_cast<std::size_t>(AccessKind::Data)] = LlcPolicy::Bypass;
  Memory m(p);
  (void)m.time_of(Hpa(0), Access::Write);
  EXPECT_EQ(m.time_of(Hpa(0)), p.dram);
}

// Kills: judging a transfer by its first line only.
TEST(MemorySystem, TransferIsAsSlowAsItsSlowestLine) {
  const MemoryParameters p = small_llc();
  Memory m(p);
  (void)m.time_of(Hpa(0), Access::Write);
  EXPECT_EQ(m.time_of(Hpa(0), Access::Read, 128), p.dram);
}

// Kills: a limit off by one, waiting accesses served out of order, slots not reused.
TEST(MemorySystem, OutstandingLimitSetsTheSaturatedRate) {
  MemoryParameters p = small_llc();
  p.llc_size = 0_B;
  p.outstanding = 4;
  Memory m(p);
  constexpr int kRounds = 25;
  for (int i = 0; i < kRounds * 4; ++i) m.post(Hpa(0));
  m.calendar->run_until(p.dram * kRounds - 1_ps);
  EXPECT_EQ(m.done, (kRounds - 1) * 4);
  m.calendar->run_until(p.dram * kRounds);
  EXPECT_EQ(m.done, kRounds * 4);
}

// Kills: bandwidth per access instead of per byte, or spent after service.
TEST(MemorySystem, BandwidthSetsTheSaturatedRate) {
  MemoryParameters p = small_llc();
  p.llc_size = 0_B;
  p.outstanding = 1000;
  p.bytes_per_second = 32'000'000'000;  // 64 bytes every 2 ns
  Memory m(p);
  for (int i = 0; i < 100; ++i) m.post(Hpa(0));
  const Picoseconds last = 2_ns * 99 + p.dram;
  m.calendar->run_until(last - 1_ps);
  EXPECT_EQ(m.done, 99);
  m.calendar->run_until(last);
  EXPECT_EQ(m.done, 100);
  EXPECT_EQ(m.port.counts()[static_cast<std::size_t>(AccessKind::Data)].waited, 2_ns * (99 * 100 / 2));
}

// Kills: sampling a read when it is issued, or making a write visible before its service ends.
TEST(MemorySystem, AccessesTakeEffectAtTheEndOfService) {
  MemoryParameters p = small_llc();
  p.llc_size = 0_B;
  Memory m(p);
  PostedAccess write{};
  write.address = Hpa(0x40);
  write.op = MemoryOp::Write;
  write.words[0] = 5;
  m.port.post(write);
  m.calendar->run_until(p.dram - 1_ps);
  EXPECT_EQ(m.host.read64(Hpa(0x40)), 0U);
  m.calendar->run_until(p.dram);
  EXPECT_EQ(m.host.read64(Hpa(0x40)), 5U);

  PostedAccess read{};
  read.address = Hpa(0x40);
  m.port.post(read);
  m.host.write64(Hpa(0x40), 6);
  m.calendar->run_until(p.dram * 2);
  EXPECT_EQ(read.words[0], 6U);
}

// Kills: aborting, or claiming success, when a device is sent where no memory is.
TEST(MemorySystem, AccessOutsideMemoryFails) {
  Memory m(small_llc());
  (void)m.time_of(Hpa(1ULL << 40));
  EXPECT_TRUE(m.transfers.back()->failed);
  (void)m.time_of(Hpa(0x1000));
  EXPECT_FALSE(m.transfers.back()->failed);
}

// Kills: counting one client's accesses for another.
TEST(MemorySystem, PortsCountTheirOwnAccesses) {
  Memory m(small_llc());
  MemorySystem::Port& other = m.system.add_port("other");
  (void)m.time_of(Hpa(0), Access::Write);
  const auto data = static_cast<std::size_t>(AccessKind::Data);
  EXPECT_EQ(m.port.counts()[data].writes, 1U);
  EXPECT_EQ(m.port.counts()[data].bytes, 64U);
  EXPECT_EQ(other.counts()[data].writes, 0U);
  EXPECT_EQ(m.system.total()[data].writes, 1U);
}

// Kills: a validation that lets a shape through which the cache cannot have.
TEST(MemorySystem, ImpossibleParametersAreNamed) {
  MemoryParameters p;
  EXPECT_EQ(p.problem(), nullptr);
  p.llc_size = 100_B;
  EXPECT_NE(p.problem(), nullptr);
  p = {};
  p.outstanding = 0;
  EXPECT_NE(p.problem(), nullptr);
}

}  // namespace
}  // namespace iommu
