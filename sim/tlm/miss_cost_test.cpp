// SPDX-License-Identifier: Apache-2.0
// The published cost of IOTLB misses, out of mechanisms: a PCIe Gen3 x8 device makes random 64 B accesses to windows of
// 4 KiB pages [pcie-bench data set, Neugebauer et al., SIGCOMM 2018; Broadwell, IOMMU on against off].
//
// What makes the curve: the knee is the IOTLB's reach, the floor the walker's initiation interval; reads bend earlier
// than writes because they return in order to a device with few tags, so that one miss holds up the hits behind it.
#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "sim/pcie/random_dma.hpp"
#include "sim/tlm/endpoint.hpp"
#include "sim/tlm/test_machine.hpp"
#include "sim/tlm/unit_translation.hpp"
#include "sim/tlm/workload_driver.hpp"

namespace iommu::testing_core {
namespace {

constexpr double kTolerance = 0.10;
constexpr Picoseconds kMemory = 60_ns;
constexpr Picoseconds kMiss = 293_ns;  // one table read: the upper levels are cached

IommuParameters iommu_parameters() {
  IommuParameters p;
  // 128 entries of which about ten hold the device's rings and other traffic.
  p.iotlb = {.entries = 118, .ways = 0, .replacement = Replacement::Lru};
  p.timing.lookup_latency = 2_ns;
  p.timing.walk_start = 5_ns;
  p.timing.table_read_issue = kMiss - p.timing.walk_start - kMemory;
  p.timing.walk_interval = 49'500_ps;  // measured between 46 and 53 ns
  p.walkers = 8;                       // more than kMiss / walk_interval: the interval is the limit
  for (CacheShape& shape : p.stage2_walk_cache) shape = {.entries = 64, .ways = 0, .replacement = Replacement::Lru};
  return p;
}

RootPortParameters root_port_parameters() {
  RootPortParameters p;
  p.propagation = 175_ns;  // 64 B read with its data in the cache: about 430 ns
  p.read_translations = 8;
  p.write_translations = 16;
  return p;
}

EndpointParameters device_parameters() {
  EndpointParameters p;
  p.tags = 28;
  p.read_interval = 18'300_ps;  // the device issues no faster: 28 Gb/s of reads, 24.3 Gb/s of writes
  p.write_interval = 21'070_ps;
  return p;
}

struct Setting {
  Bytes window;
  Access access = Access::Read;
  bool is_on = true;
  Level page_level = 0;
  std::uint32_t outstanding = 256;
  Bytes size{64};
};

WorkloadResult measure(const Setting& s, RootPortParameters root = root_port_parameters()) {
  MemoryParameters memory = flat_memory();
  memory.dram = kMemory;
  Machine machine(iommu_parameters(), memory);
  machine.core.is_enabled = s.is_on;
  const Bytes page(kPageSize.value() << (9U * s.page_level));
  for (Bytes at; at < s.window; at += page)
    machine.tables.map(machine.root, at.value(), (1ULL << 32) + at.value(), kReadWrite, s.page_level);
  UnitTranslation translation(machine.unit());
  PcieRootPort port(machine.calendar(), translation, machine.memory().add_port("root port"), root, nullptr);
  PcieEndpoint device(machine.calendar(), port, device_parameters());
  RandomDma traffic({.window = s.window, .access_size = s.size, .access = s.access});
  const std::uint64_t operations = s.outstanding == 1 ? 3000 : 20000;
  WorkloadDriver driver(machine.calendar(), device, traffic, Machine::kNic,
                        {.outstanding = s.outstanding, .warmup = operations / 3, .operations = operations},
                        Rng(1, "miss cost"));
  driver.start();
  machine.run();
  EXPECT_TRUE(driver.is_done());
  EXPECT_EQ(driver.result().faulted, 0U);
  machine.calendar().clear();
  return driver.result();
}
double gbit(const Setting& s) { return measure(s).bits_per_second() / 1e9; }

struct Published {
  Bytes window;
  double read, write;    // Gb/s
  double added_latency;  // ns, of one read at a time
};
constexpr std::array kPublished{
    Published{256_KiB, 27.6, 24.3, 2},    Published{512_KiB, 20.2, 24.3, 28}, Published{1_MiB, 14.3, 19.4, 159},
    Published{1536_KiB, 12.6, 15.1, 203}, Published{2_MiB, 11.7, 13.6, 225},  Published{4_MiB, 10.7, 11.9, 257},
    Published{8_MiB, 10.2, 11.5, 275},    Published{64_MiB, 9.8, 11.2, 291},
};

class MissCost : public testing::TestWithParam<Published> {};
INSTANTIATE_TEST_SUITE_P(Windows, MissCost, testing::ValuesIn(kPublished),
                         [](const auto& info) { return std::to_string(info.param.window / 1_KiB) + "KiB"; });

// Mutants killed: no walk interval; reads that overtake misses; a window of translations that is not limited.
TEST_P(MissCost, ReadThroughputIsWithinToleranceOfTheMeasured) {
  const double simulated = gbit({.window = GetParam().window, .access = Access::Read});
  EXPECT_NEAR(simulated / GetParam().read, 1.0, kTolerance) << simulated << " Gb/s";
}

// Mutants killed: the same; writes as short a window as reads.
TEST_P(MissCost, WriteThroughputIsWithinToleranceOfTheMeasured) {
  const double simulated = gbit({.window = GetParam().window, .access = Access::Write});
  EXPECT_NEAR(simulated / GetParam().write, 1.0, kTolerance) << simulated << " Gb/s";
}

// The published latencies are rounded means over a device with jitter: within a tenth and 5 ns. Mutant killed: a miss
// that costs more than the walk.
TEST_P(MissCost, AddedLatencyOfOneReadAtATimeIsThatOfTheMissRatio) {
  const double off = measure({.window = 256_KiB, .is_on = false, .outstanding = 1}).latency.mean_ps() / 1e3;
  const double on = measure({.window = GetParam().window, .outstanding = 1}).latency.mean_ps() / 1e3;
  EXPECT_NEAR(on - off, GetParam().added_latency, 5 + kTolerance * GetParam().added_latency);
}

// Mutant killed: an IOMMU that costs throughput although every access hits.
TEST(MissCostControls, WithoutTranslationTheDeviceIsTheLimit) {
  EXPECT_NEAR(gbit({.window = 64_MiB, .access = Access::Read, .is_on = false}), 28.0, 0.3);
  EXPECT_NEAR(gbit({.window = 64_MiB, .access = Access::Write, .is_on = false}), 24.3, 0.3);
}

// 2 MiB pages: 64 MiB are 32 entries, measured as no cost at all. Mutant killed: IOTLB entries that cover 4 KiB only.
TEST(MissCostControls, LargePagesCostNothing) {
  const double off = gbit({.window = 64_MiB, .is_on = false});
  EXPECT_NEAR(gbit({.window = 64_MiB, .page_level = 1}) / off, 1.0, 0.01);
}

// The dip of reads at 10 % misses comes from order, not from the walker: without it there is none. Measured: -26 %.
TEST(MissCostControls, ReadsDipBecauseTheyReturnInOrder) {
  RootPortParameters free_order = root_port_parameters();
  free_order.read_translation_order = free_order.completion_order = ReturnOrder::OutOfOrder;
  const double in_order = gbit({.window = 512_KiB});
  const double out_of_order = measure({.window = 512_KiB}, free_order).bits_per_second() / 1e9;
  EXPECT_LT(in_order, 0.8 * 28.0);
  EXPECT_GT(out_of_order, 1.2 * in_order);
}

// Larger accesses hide the walks: gone at 512 B. Mutant killed: one walk per cache line instead of per packet.
TEST(MissCostControls, AccessesOf512BytesLoseNothing) {
  const double off = gbit({.window = 64_MiB, .is_on = false, .size = 512_B});
  EXPECT_NEAR(gbit({.window = 64_MiB, .size = 512_B}) / off, 1.0, 0.05);
}

}  // namespace
}  // namespace iommu::testing_core
