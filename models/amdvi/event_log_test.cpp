// SPDX-License-Identifier: Apache-2.0
// The event log in memory and its registers: writing, wrapping, overflow and restart, interrupts; registers besides.
#include <gtest/gtest.h>

#include <vector>

#include "models/amdvi/core_test_support.hpp"

namespace iommu::amdvi::test {
namespace {

constexpr std::uint64_t kOverflow = 1, kLogInterrupt = 2, kLogRuns = 8;  // of the status register [§3.4.15]
constexpr std::uint64_t kRingBytes = Bench::kEventEntries * 16;

// A unit whose device faults on every address but the mapped one.
struct Unit : Bench {
  Unit() : Bench(Setting::Host) {}
  void record(std::uint64_t address) { core.record(std::get<Fault>(translate(address))); }
  void write_out() { core.write_events(port).run(); }
  void fault_at(std::uint64_t address) { record(address), write_out(); }
  [[nodiscard]] std::uint64_t status() { return reg(offset::kStatus); }
  [[nodiscard]] std::uint64_t tail() { return reg(offset::kEventTail); }
  void enable_msi() {
    core.mmio_write(offset::kMsiAddressLow, 4, 0xfee02000);
    core.mmio_write(offset::kMsiData, 4, 0x77);
    core.mmio_write(offset::kMsiCapability, 4, 1U << 16);
    control<"EventIntEn">(1);
  }
};
constexpr std::uint64_t kFaulting = 0x7000'0000'0000;

TEST(AmdViEventLog, EventsFollowOneAnotherAndWrap) {
  Unit unit;
  for (std::uint64_t i = 0; i < 3 * Bench::kEventEntries; ++i) {
    unit.fault_at(kFaulting + i * 0x1000);
    const std::uint64_t at = i % Bench::kEventEntries * 16;
    EXPECT_EQ(unit.word(Bench::kEvents + at + 8), kFaulting + i * 0x1000);
    EXPECT_EQ(unit.tail(), (at + 16) % kRingBytes);
    unit.core.mmio_write(offset::kEventHead, 8, unit.tail());
  }
  EXPECT_EQ(unit.status() & kOverflow, 0U);
}
// What is recorded reaches memory in order, once; the tail moves after the event is there.
TEST(AmdViEventLog, TheTailMovesOnceTheEventIsThere) {
  Unit unit;
  unit.record(kFaulting), unit.record(kFaulting + 0x1000);
  EXPECT_TRUE(unit.core.has_events());
  EXPECT_EQ(unit.tail(), 0U);
  std::vector<std::uint64_t> tails;
  unit.port.before = [&](const MemoryAccess& a) {
    EXPECT_EQ(a.kind, AccessKind::Event);
    tails.push_back(unit.tail());
  };
  unit.write_out();
  EXPECT_EQ(tails, (std::vector<std::uint64_t>{0, 16}));
  EXPECT_EQ(unit.tail(), 32U);
  EXPECT_FALSE(unit.core.has_events());
  unit.write_out();
  EXPECT_EQ(tails.size(), 2U);
}
// One entry stays free. Then logging stops until software has cleared the overflow and enabled the log anew. [§2.5.1]
TEST(AmdViEventLog, OverflowStopsTheLogUntilItIsEnabledAnew) {
  Unit unit;
  for (std::uint64_t i = 0; i + 1 < Bench::kEventEntries; ++i) unit.fault_at(kFaulting);
  EXPECT_EQ(unit.status() & (kOverflow | kLogRuns), kLogRuns);
  EXPECT_EQ(unit.tail(), kRingBytes - 16);
  const std::uint64_t last = Bench::kEvents + kRingBytes - 16;
  unit.fault_at(kFaulting);
  EXPECT_EQ(unit.status() & (kOverflow | kLogRuns), kOverflow);
  EXPECT_EQ(unit.tail(), kRingBytes - 16);
  EXPECT_EQ(unit.word(last), 0U) << "the event is lost";
  // Room alone does not help, nor does clearing the overflow, nor enabling the log before that.
  unit.core.mmio_write(offset::kEventHead, 8, unit.tail());
  unit.fault_at(kFaulting);
  EXPECT_EQ(unit.word(last), 0U);
  unit.control<"EventLogEn">(0), unit.control<"EventLogEn">(1);
  EXPECT_EQ(unit.status() & kLogRuns, 0U);
  unit.core.mmio_write(offset::kStatus, 8, kOverflow);
  EXPECT_EQ(unit.status() & (kOverflow | kLogRuns), 0U);
  unit.fault_at(kFaulting);
  EXPECT_EQ(unit.word(last), 0U);
  unit.control<"EventLogEn">(0), unit.control<"EventLogEn">(1);
  EXPECT_EQ(unit.status() & (kOverflow | kLogRuns), kLogRuns);
  unit.fault_at(kFaulting);
  EXPECT_NE(unit.word(last), 0U);
  EXPECT_EQ(unit.tail(), 0U);
}
// A driver that never writes events out does not make the core grow.
TEST(AmdViEventLog, WhatWaitsIsBounded) {
  Unit unit;
  for (int i = 0; i < 10'000; ++i) unit.record(kFaulting);
  EXPECT_EQ(unit.status() & (kOverflow | kLogRuns), kOverflow);
  EXPECT_FALSE(unit.core.has_events());
}
TEST(AmdViEventLog, WithoutLogEventsAreLost) {
  Unit unit;
  unit.control<"EventLogEn">(0);
  unit.record(kFaulting);
  EXPECT_FALSE(unit.core.has_events());
  unit.control<"EventLogEn">(1);
  unit.record(kFaulting);
  unit.control<"EventLogEn">(0);  // before it is written
  unit.write_out();
  EXPECT_EQ(unit.tail(), 0U);
  EXPECT_EQ(unit.word(Bench::kEvents), 0U);
  unit.core.mmio_write(offset::kEventBase, 8, Bench::kEvents | 7UL << 56);  // a reserved length
  unit.control<"EventLogEn">(1);
  EXPECT_EQ(unit.status() & kLogRuns, 0U);
}
TEST(AmdViEventLog, ALogMovedDuringAWriteKeepsItsTail) {
  Unit unit;
  unit.record(kFaulting);
  unit.port.before = [&](const MemoryAccess&) { unit.core.mmio_write(offset::kEventBase, 8, 0x50000 | 8UL << 56); };
  unit.write_out();
  EXPECT_EQ(unit.tail(), 0U);
}
TEST(AmdViEventLog, AnEventWithoutMemoryIsLost) {
  Unit unit;
  unit.port.failing.insert(Bench::kEvents);
  unit.fault_at(kFaulting);
  EXPECT_EQ(unit.tail(), 16U);
  unit.fault_at(kFaulting);
  EXPECT_NE(unit.word(Bench::kEvents + 16), 0U);
}

// Kills: an interrupt for every event, one that is not enabled, none for an overflow. [§2.8, §3.4.15]
TEST(AmdViEventLog, InterruptsOnceUntilSoftwareAcknowledges) {
  Unit unit;
  unit.fault_at(kFaulting);
  EXPECT_FALSE(unit.core.take_interrupt());
  EXPECT_EQ(unit.status() & kLogInterrupt, 0U) << "EventIntEn is clear";
  unit.enable_msi();
  unit.record(kFaulting);
  EXPECT_FALSE(unit.core.take_interrupt()) << "the event is not in memory";
  unit.write_out();
  const auto message = unit.core.take_interrupt();
  ASSERT_TRUE(message);
  EXPECT_EQ(message->address, Hpa(0xfee02000));
  EXPECT_EQ(message->data, 0x77U);
  EXPECT_EQ(unit.status() & kLogInterrupt, kLogInterrupt);
  unit.fault_at(kFaulting);
  EXPECT_FALSE(unit.core.take_interrupt());
  unit.core.mmio_write(offset::kStatus, 8, kLogInterrupt);
  unit.fault_at(kFaulting);
  EXPECT_TRUE(unit.core.take_interrupt());
  // MSI disabled: the status bit only.
  unit.core.mmio_write(offset::kStatus, 8, kLogInterrupt);
  unit.core.mmio_write(offset::kMsiCapability, 4, 0);
  unit.fault_at(kFaulting);
  EXPECT_FALSE(unit.core.take_interrupt());
  EXPECT_EQ(unit.status() & kLogInterrupt, kLogInterrupt);
}
TEST(AmdViEventLog, AnOverflowInterrupts) {
  Unit unit;
  for (std::uint64_t i = 0; i + 1 < Bench::kEventEntries; ++i) unit.fault_at(kFaulting);
  unit.enable_msi();
  unit.fault_at(kFaulting);
  EXPECT_TRUE(unit.core.take_interrupt());
  unit.fault_at(kFaulting);
  EXPECT_FALSE(unit.core.take_interrupt());
}

// The first hardware error stays in its registers until HEV is cleared; a further one sets HEO. [§3.4.10]
TEST(AmdViEventLog, TheFirstHardwareErrorIsKept) {
  Unit unit;
  unit.fault_at(kFaulting);
  EXPECT_EQ(unit.reg(offset::kHardwareEventStatus), 0U) << "a page fault is no hardware error";
  unit.port.failing.insert(unit.entry);
  unit.control<"EventLogEn">(0);  // in the registers whether or not there is a log
  unit.fault_at(0x1000);
  EXPECT_EQ(unit.reg(offset::kHardwareEventHigh), 0x3200'0000'0000'0000 | Bench::kDevice.value());
  EXPECT_EQ(unit.reg(offset::kHardwareEventLow), unit.entry);
  EXPECT_EQ(unit.reg(offset::kHardwareEventStatus), 1U);
  unit.port.failing = {unit.host_entries[3]};
  unit.fault_at(Bench::kInput);
  EXPECT_EQ(unit.reg(offset::kHardwareEventLow), unit.entry);
  EXPECT_EQ(unit.reg(offset::kHardwareEventStatus), 3U);
  unit.core.mmio_write(offset::kHardwareEventStatus, 8, 3);
  unit.fault_at(Bench::kInput);
  EXPECT_EQ(unit.reg(offset::kHardwareEventLow), unit.host_entries[3]);
  EXPECT_EQ(unit.reg(offset::kHardwareEventStatus), 1U);
}

// Registers -----------------------------------------------------------------------------------------------------------

// Each bit of each register that software may set; all others read zero. [§3.4]
TEST(AmdViRegisters, WritableBits) {
  Identity id = Bench::full();
  id.extended_features &= ~(1UL << 1);  // PPRSup
  struct Writable {
    std::uint64_t offset, mask;
  };
  constexpr std::uint64_t kRing = 0x0f0f'ffff'ffff'f000;
  for (const auto& [at, mask] : std::vector<Writable>{
           {0x0000, 0x000f'ffff'ffff'f1ff},
           {0x0008, kRing},
           {0x0010, kRing},
           {0x0020, 0x000f'ffff'ffff'f003},
           {0x0028, 0x000f'ffff'ffff'f000},
           {0x0038, 0},
           {0x2000, 0x7'fff0},
           {0x2008, 0x7'fff0},
           {0x2010, 0x7'fff0},
           {0x2018, 0x7'fff0},
           {0x2030, 0},
           {0x2038, 0},
           {0x3ff8, 0},
       }) {
    Core core(id);
    core.mmio_write(at, 8, ~0UL);
    EXPECT_EQ(core.mmio_read(at, 8), mask) << std::hex << at;
    core.mmio_write(at, 8, 0);
    EXPECT_EQ(core.mmio_read(at, 8), 0U) << std::hex << at;
    core.mmio_write(at + 4, 4, 0xffff'ffff);
    EXPECT_EQ(core.mmio_read(at, 8), mask >> 32 << 32) << std::hex << at;
  }
  Core core(id);
  EXPECT_EQ(core.mmio_read(0x0030, 8), id.extended_features);
  core.mmio_write(0x0030, 8, ~0UL);
  EXPECT_EQ(core.mmio_read(0x0030, 8), id.extended_features);
  EXPECT_EQ(core.read_capability(0), id.capability_header);
  EXPECT_EQ(core.read_capability(0x10), id.misc_info0);
  EXPECT_EQ(core.read_capability(0x04), 0U);
}
TEST(AmdViRegisters, ControlBitsOfAbsentFeaturesReadZero) {
  Identity id = Bench::full();
  Core full(id);
  full.mmio_write(0x0018, 8, ~0UL);
  EXPECT_EQ(full.mmio_read(0x0018, 8), 0x0041'0000'0001'1fff);  // GAUpdateDis, GDUpdateDis, GTEn, bits 12 to 0
  id.extended_features = 0;
  Core bare(id);
  bare.mmio_write(0x0018, 8, ~0UL);
  EXPECT_EQ(bare.mmio_read(0x0018, 8), 0x1fffU);
}
// What makes cached contexts void is said.
TEST(AmdViRegisters, WritesThatVoidContextsSaySo) {
  Unit unit;
  const auto changes = [&](std::uint64_t at, std::uint64_t value) {
    return unit.core.mmio_write(at, 8, value).configuration_changed;
  };
  EXPECT_TRUE(changes(offset::kDeviceTableBase, 0x50'0000));
  EXPECT_TRUE(changes(offset::kExclusionBase, 0x5001));
  EXPECT_TRUE(changes(offset::kControl, unit.reg(offset::kControl) ^ 1UL << 16));  // GTEn
  EXPECT_FALSE(changes(offset::kControl, unit.reg(offset::kControl) ^ 1UL << 4));
  EXPECT_TRUE(changes(offset::kControl, unit.reg(offset::kControl) ^ 1));
  EXPECT_FALSE(unit.core.is_translating());
  EXPECT_FALSE(changes(offset::kDeviceTableBase, 0x60'0000)) << "nothing is translated";
}
// A unit that is off forwards everything.
TEST(AmdViRegisters, DisabledItForwardsEverything) {
  Core core(Bench::full());
  EXPECT_FALSE(core.is_translating());
}

// Addresses with a meaning of their own -------------------------------------------------------------------------------

TEST(AmdViAddresses, InterruptsMeetNoTable) {
  Unit unit;
  unit.request.length = Bytes(4);
  const auto response = unit.translate(0xfee0'1004, Access::Write);
  ASSERT_TRUE(std::holds_alternative<Translation>(response));
  EXPECT_EQ(std::get<Translation>(response).address, Hpa(0xfee0'1004));
  EXPECT_TRUE(std::get<Translation>(response).is_bypass);
  EXPECT_EQ(unit.port.accesses, 0U);
  EXPECT_EQ(row_of(unit.translate(0xfee0'1006, Access::Write)), "INVALID_DEVICE_REQUEST.interrupt_range");
  EXPECT_EQ(row_of(unit.translate(0xfedf'fffc, Access::Write)), "IO_PAGE_FAULT.host_absent");
  EXPECT_EQ(row_of(unit.translate(0xfef0'0000, Access::Write)), "IO_PAGE_FAULT.host_absent");
}
// What may be cached of a large page leaves the interrupt range out: it is not DMA.
TEST(AmdViAddresses, CachedPagesStopAtTheInterruptRange) {
  Unit unit;
  unit.map_host(0xc000'0000, 0x40'0000'0000, 2);  // 1 GiB around the range
  const auto lg2_at = [&](std::uint64_t address) {
    const auto response = unit.translate(address);
    const auto* translation = std::get_if<Translation>(&response);
    return translation == nullptr ? 0U : unsigned{translation->page_lg2};
  };
  EXPECT_EQ(lg2_at(0xc000'0000), 29U);
  EXPECT_EQ(lg2_at(0xfedf'ffff), 21U);
  EXPECT_EQ(lg2_at(0xfef0'0000), 20U);
  EXPECT_EQ(lg2_at(0xff00'0000), 24U);
  EXPECT_EQ(lg2_at(0xfee0'0000), 0U);
  unit.map_host(0x1'0000'0000, 0x50'0000'0000, 2);
  EXPECT_EQ(lg2_at(0x1'0000'0000), 30U);
  // And the exclusion range, of those that it is for.
  unit.core.mmio_write(offset::kExclusionLimit, 8, 0x1'0020'0000);
  unit.core.mmio_write(offset::kExclusionBase, 8, 0x1'0020'0001);
  EXPECT_EQ(lg2_at(0x1'0000'0000), 30U);
  unit.set_entry<"EX">(1);
  EXPECT_EQ(lg2_at(0x1'0000'0000), 21U);
  EXPECT_EQ(lg2_at(0x1'0020'1000), 12U);
  EXPECT_EQ(lg2_at(0x1'0020'0000), 63U) << "forwarded";
}
// A request with a PASID is a guest's: there every address is translated.
TEST(AmdViAddresses, PasidsHaveNoInterruptRange) {
  Bench bench(Setting::Guest);
  bench.request.pasid = Pasid(0);
  EXPECT_EQ(row_of(bench.translate(0xfee0'1000, Access::Write)), "IO_PAGE_FAULT.guest_absent");
}

// Device TLBs ---------------------------------------------------------------------------------------------------------

TEST(AmdViDeviceTlb, TranslationRequestsGetTheRightsOfTheTables) {
  for (const Setting setting : {Setting::Host, Setting::Guest, Setting::Nested}) {
    Bench bench(setting);
    bench.request.type = AddressType::TranslationRequest;
    const std::uint64_t leaf = setting == Setting::Guest ? bench.guest_entries[0] : bench.host_entries[0];
    const auto response = bench.translate();
    ASSERT_TRUE(std::holds_alternative<Translation>(response));
    EXPECT_EQ(std::get<Translation>(response).allowed, kReadWrite);
    EXPECT_EQ(std::get<Translation>(response).address.value(), Bench::kOutput + Bench::kInput % 0x1000);
    if (setting == Setting::Guest)
      bench.set<kGuestPage, "RW">(leaf, 0);
    else
      bench.set<kHostPage, "IW">(leaf, 0);
    const auto narrower = bench.translate();
    EXPECT_EQ(std::get<Translation>(narrower).allowed, kReadOnly);
    bench.set_entry<"IR">(0);
    const auto none = bench.translate();
    EXPECT_TRUE(std::get<Translation>(none).allowed.none());
  }
}
TEST(AmdViDeviceTlb, TranslatedRequestsAreForwarded) {
  for (const Setting setting : kAllSettings) {
    Bench bench(setting);
    bench.request.type = AddressType::Translated;
    EXPECT_EQ(output_of(bench.translate(0xabc'd000)), 0xabc'd000U);
    bench.set_entry<"I">(0);
    EXPECT_EQ(row_of(bench.translate(0xabc'd000)), "INVALID_DEVICE_REQUEST.translated");
  }
  // Without device TLB support I means nothing.
  Identity id = Bench::full();
  id.capability_header &= ~(1U << 24);
  Bench bench(Setting::Host, {}, id);
  bench.request.type = AddressType::Translated;
  EXPECT_EQ(row_of(bench.translate(0xabc'd000)), "INVALID_DEVICE_REQUEST.translated");
}

}  // namespace
}  // namespace iommu::amdvi::test
