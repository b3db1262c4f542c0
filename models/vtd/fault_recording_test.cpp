// SPDX-License-Identifier: Apache-2.0
// Primary fault recording [§7.3]: records, overflow, compression, the fault event.
#include <gtest/gtest.h>

#include "models/vtd/core_test_support.hpp"

namespace iommu::vtd::test {
namespace {

constexpr std::uint64_t kPending = mask_of<kFsts, "PPF">, kOverflow = mask_of<kFsts, "PFO">;
constexpr std::uint64_t kMasked = mask_of<kEventControl, "IM">, kEventPending = mask_of<kEventControl, "IP">;
constexpr std::uint64_t kQueueError = mask_of<kFsts, "IQE">;
constexpr InterruptMessage kMessage{Hpa(0x12345678'fee00ab8ULL), 0x4242};

struct Recorder {
  Core core{Bench::full()};
  std::uint64_t records = get<kCap, "FRO">(core.mmio_read(offset::kCap, 8)) * 16;
  unsigned count = static_cast<unsigned>(get<kCap, "NFR">(core.mmio_read(offset::kCap, 8))) + 1;

  std::optional<InterruptMessage> fault(unsigned device, std::uint64_t page = 1) {
    Fault f;
    f.row = kFault<"LGN.2">;
    f.requester = RequesterId(static_cast<std::uint16_t>(device));
    f.address = Iova(page << 12);
    f.access = Access::Write;
    return core.record(f);
  }
  [[nodiscard]] std::uint64_t status() { return core.mmio_read(offset::kFsts, 4); }
  [[nodiscard]] std::uint64_t index() { return get<kFsts, "FRI">(status()); }
  [[nodiscard]] std::uint64_t high(unsigned record) { return core.mmio_read(records + record * 16 + 8, 8); }
  [[nodiscard]] bool is_pending(unsigned record) { return high(record) >> 63 != 0; }
  [[nodiscard]] std::uint64_t source(unsigned record) { return high(record) & 0xffff; }
  void clear(unsigned record) { core.mmio_write(records + record * 16 + 12, 4, 1ULL << 31); }
  void clear_status(std::uint64_t bits) { core.mmio_write(offset::kFsts, 4, bits); }
  void enable_event() {
    core.mmio_write(offset::kFedata, 4, kMessage.data);
    core.mmio_write(offset::kFeaddr, 4, kMessage.address.value() & 0xffffffff);
    core.mmio_write(offset::kFeuaddr, 4, kMessage.address.value() >> 32);
    core.mmio_write(offset::kFectl, 4, 0);
  }
  [[nodiscard]] std::uint64_t event_control() { return core.mmio_read(offset::kFectl, 4); }
};

// Kills: records that overwrite each other, an index that does not wrap, a pending bit that stays.
TEST(VtdFaultRecording, RecordsFillInTurnAndWrap) {
  Recorder r;
  EXPECT_EQ(r.status(), 0U);
  for (unsigned i = 0; i < r.count; ++i) {
    r.fault(100 + i);
    EXPECT_TRUE(r.is_pending(i));
    EXPECT_EQ(r.source(i), 100 + i);
    EXPECT_EQ(r.status() & kPending, kPending);
    EXPECT_EQ(r.index(), 0U) << "FRI names the first record while one is pending";
  }
  for (unsigned i = 0; i < r.count; ++i) {
    EXPECT_EQ(r.status() & kPending, kPending);
    r.clear(i);
    EXPECT_FALSE(r.is_pending(i));
  }
  EXPECT_EQ(r.status() & kPending, 0U);
  r.fault(7);
  EXPECT_EQ(r.source(0), 7U);
}

// FRI names the record of the first fault since PPF was clear. Kills: FRI stuck at 0.
TEST(VtdFaultRecording, TheIndexNamesTheFirstPendingRecord) {
  Recorder r;
  for (unsigned i = 0; i < 3; ++i) {
    r.fault(i);
    r.clear(i);
  }
  r.fault(3);
  r.fault(4);
  EXPECT_EQ(r.index(), 3U);
}

// Kills: an overflow that overwrites, or that records again before software has cleared it.
TEST(VtdFaultRecording, AFullSetOfRecordsOverflowsUntilSoftwareClearsIt) {
  Recorder r;
  for (unsigned i = 0; i < r.count; ++i) r.fault(i);
  EXPECT_EQ(r.status() & kOverflow, 0U);
  r.fault(500);
  EXPECT_EQ(r.status() & kOverflow, kOverflow);
  EXPECT_EQ(r.source(0), 0U);
  r.clear(0);
  r.fault(501);
  EXPECT_FALSE(r.is_pending(0)) << "nothing is recorded while PFO is set";
  r.clear_status(kOverflow);
  EXPECT_EQ(r.status() & kOverflow, 0U);
  r.fault(502);
  EXPECT_EQ(r.source(0), 502U);
  r.fault(503);
  EXPECT_EQ(r.status() & kOverflow, kOverflow);
}

// A source with a pending fault has one record. Kills: compression by address, or across sources; an overflow by a
// fault that needs no record.
TEST(VtdFaultRecording, FaultsOfOneSourceAreCompressed) {
  Recorder r;
  for (std::uint64_t page = 0; page < 3 * r.count; ++page) r.fault(9, page);
  EXPECT_TRUE(r.is_pending(0));
  EXPECT_FALSE(r.is_pending(1));
  EXPECT_EQ(r.status() & kOverflow, 0U);
  EXPECT_EQ(r.core.mmio_read(r.records, 8), 0U) << "the first fault's page stays";
  r.clear(0);
  r.fault(9, 5);
  EXPECT_TRUE(r.is_pending(1));
}

// Records are read-only but for F, which one clears. Kills: software that forges or edits a record.
TEST(VtdFaultRecording, SoftwareCanOnlyClearF) {
  Recorder r;
  r.fault(9, 0x123);
  const std::uint64_t low = r.core.mmio_read(r.records, 8), high = r.high(0);
  r.core.mmio_write(r.records, 8, ~0ULL);
  r.core.mmio_write(r.records + 8, 8, ~0ULL >> 1);
  EXPECT_EQ(r.core.mmio_read(r.records, 8), low);
  EXPECT_EQ(r.high(0), high);
  r.core.mmio_write(r.records + 16 + 8, 8, ~0ULL);
  EXPECT_FALSE(r.is_pending(1));
  r.core.mmio_write(r.records + 8, 8, 1ULL << 63);
  EXPECT_EQ(r.high(0), high & ~(1ULL << 63));
}

// Kills: an event for each fault instead of the first, or one that a mask does not hold back.
TEST(VtdFaultRecording, TheFirstFaultRaisesTheEvent) {
  Recorder r;
  r.enable_event();
  const auto message = r.fault(1);
  ASSERT_TRUE(message);
  EXPECT_EQ(message->address, kMessage.address);
  EXPECT_EQ(message->data, kMessage.data);
  EXPECT_FALSE(r.fault(2)) << "the condition has been signalled";
  r.clear(0);
  EXPECT_FALSE(r.fault(3)) << "a fault is still pending";
  r.clear(1);
  r.clear(2);
  EXPECT_TRUE(r.fault(4));
}
TEST(VtdFaultRecording, AMaskedEventIsPendingAndComesWithUnmasking) {
  Recorder r;
  r.enable_event();
  r.core.mmio_write(offset::kFectl, 4, kMasked);
  EXPECT_FALSE(r.fault(1));
  EXPECT_NE(r.event_control() & kEventPending, 0U);
  EXPECT_FALSE(r.core.take_interrupt());
  r.core.mmio_write(offset::kFectl, 4, 0);
  const auto message = r.core.take_interrupt();
  ASSERT_TRUE(message);
  EXPECT_EQ(message->data, kMessage.data);
  EXPECT_EQ(r.event_control(), 0U);
  EXPECT_FALSE(r.core.take_interrupt());
}
// Kills: an event for what software has serviced in the meantime.
TEST(VtdFaultRecording, ServicingEveryFaultWithdrawsThePendingEvent) {
  Recorder r;
  EXPECT_NE(r.event_control() & kMasked, 0U) << "masked out of reset";
  r.fault(1);
  EXPECT_NE(r.event_control() & kEventPending, 0U);
  r.clear(0);
  EXPECT_EQ(r.event_control() & kEventPending, 0U);
  r.core.mmio_write(offset::kFectl, 4, 0);
  EXPECT_FALSE(r.core.take_interrupt());
}
// A queue error keeps the event pending although the fault has been serviced.
TEST(VtdFaultRecording, AnotherConditionKeepsTheEventPending) {
  Recorder r;
  r.core.mmio_write(offset::kGcmd, 4, mask_of<kGcmd, "QIE">);
  r.core.mmio_write(offset::kIqt, 8, 16);
  HostMemory host{Bytes(1ULL << 20)};
  ImmediateMemoryPort port(host);
  EXPECT_FALSE(r.core.fetch_command(port).run());  // a descriptor of zeroes
  ASSERT_NE(r.status() & kQueueError, 0U);
  r.fault(1);
  r.clear(0);
  EXPECT_NE(r.event_control() & kEventPending, 0U);
  r.clear_status(kQueueError);
  EXPECT_EQ(r.event_control() & kEventPending, 0U);
}

// Bits beyond MGAW are not kept. Kills: a record with address bits that the unit does not have. [FRCD_REG.FI]
TEST(VtdFaultRecording, TheAddressIsCutToTheGuestWidth) {
  UnitFeatures features = Bench::everything();
  features.input_address_bits = 48;
  Core core(compose(features));
  Fault f;
  f.row = kFault<"LGN.1.1">;
  f.address = Iova(0xfff1'2345'6789'a000);
  core.record(f);
  const std::uint64_t at = get<kCap, "FRO">(core.mmio_read(offset::kCap, 8)) * 16;
  EXPECT_EQ(core.mmio_read(at, 8), 0x2345'6789'a000U);
}

TEST(VtdFaultRecording, PrivilegeAndPasidComeWithThePasidOnly) {
  Recorder r;
  Fault f;
  f.row = kFault<"SGN.7">;
  f.privileged = true;
  for (const bool with_pasid : {false, true}) {
    f.requester = RequesterId(with_pasid ? 2 : 1);
    if (with_pasid) f.pasid = Pasid(0xabcde);
    r.core.record(f);
    const std::array<std::uint64_t, 2> words{0, r.high(with_pasid ? 1 : 0)};
    EXPECT_EQ((get<kFrcd, "PP">(words)), with_pasid ? 1U : 0U);
    EXPECT_EQ((get<kFrcd, "PRIV">(words)), with_pasid ? 1U : 0U);
    EXPECT_EQ((get<kFrcd, "PV">(words)), with_pasid ? 0xabcdeU : 0U);
  }
}

}  // namespace
}  // namespace iommu::vtd::test
