// SPDX-License-Identifier: Apache-2.0
// The units by themselves: entries against words computed from the drivers' own macros, every fault, and what registers
// that nobody should write do.
#include <gtest/gtest.h>

#include <set>
#include <variant>

#include "models/flat/core.hpp"
#include "models/flat/driver.hpp"
#include "sim/memory/host_memory.hpp"

namespace iommu::flat {
namespace {

constexpr RequesterId kDevice = RequesterId::bdf(3, 0, 0);
constexpr std::uint64_t kBusTablePage = 0x10000;
constexpr std::uint64_t kTable = 0x200000;

// Kills: an address field off by a bit, a byte order, a right at the other's place. [asm/tce.h TCE_RPN_SHIFT 12,
// TCE_READ_SHIFT 0, TCE_WRITE_SHIFT 1; amd_gart_64.c GPTE_ENCODE]
TEST(FlatFormats, EntriesAreTheDriversWords) {
  EXPECT_EQ(TceFormat::encode({0x0000123456789000, kReadOnly}), byte_swapped(0x0000123456789001));
  EXPECT_EQ(TceFormat::encode({0x1000, kWriteOnly}), 0x0210000000000000ULL);
  const std::uint64_t physical = 0xab12345000;
  const std::uint64_t gpte = (physical & 0xfffff000) | physical >> 32 << 4 | 1 | 2;
  EXPECT_EQ(GartFormat::encode({physical, kReadOnly}), gpte);
  EXPECT_EQ(GartFormat::decode(gpte)->address, physical);
  EXPECT_EQ(GartFormat::decode(gpte)->allowed, kReadWrite);
  EXPECT_EQ(GartFormat::decode(gpte & ~1ULL), std::nullopt);
  EXPECT_EQ(TceFormat::decode(byte_swapped(0x1000)), std::nullopt) << "an address without rights";
  EXPECT_FALSE(GartFormat::can_hold(1ULL << 40));
  EXPECT_FALSE(TceFormat::can_hold(1ULL << 48));
}

class FlatCores : public testing::Test {
 protected:
  FlatCores() : tce_({.aperture_lg2 = 25}) {
    tce_.mmio_write(kBusTableRegister, 8, kBusTablePage | 1);
    std::uint64_t tar = with<kTar, "address">(0, kTable >> 15);
    memory_.write64(Hpa(kBusTablePage + 8 * kDevice.bus()), with<kTar, "valid">(tar, 1));
  }
  TranslationResponse ask(IommuCore& core, std::uint64_t address, Access access = Access::Read,
                          RequesterId device = kDevice) {
    TranslationRequest request{.requester = device, .pasid = {}, .address = Iova(address)};
    request.access = access;
    return core.translate(request, port_).run();
  }
  unsigned fault_of(const TranslationResponse& response) {
    const auto* fault = std::get_if<Fault>(&response);
    return fault == nullptr ? 0 : fault->row->code;
  }
  void entry(std::uint64_t page, Entry what) { memory_.write64(Hpa(kTable + 8 * page), TceFormat::encode(what)); }

  HostMemory memory_{16_MiB};
  ImmediateMemoryPort port_{memory_};
  TceCore tce_;
};

// Every row is produced. Kills: checks left out or in another order.
TEST_F(FlatCores, EachFaultIsTold) {
  std::set<unsigned> seen;
  const auto expect = [&](FaultId id, const TranslationResponse& response) {
    EXPECT_EQ(fault_of(response), row_of(id)->code);
    seen.insert(fault_of(response));
  };
  entry(5, {0x7000, kReadOnly});
  EXPECT_EQ(std::get<Translation>(ask(tce_, 0x5123)).address, Hpa(0x7123));
  expect(FaultId::Denied, ask(tce_, 0x5000, Access::Write));
  expect(FaultId::NotValid, ask(tce_, 0x6000));
  expect(FaultId::OutOfWindow, ask(tce_, 1ULL << 25));
  expect(FaultId::OutOfWindow, ask(tce_, ~0ULL << 12));
  expect(FaultId::NoTable, ask(tce_, 0x5000, Access::Read, RequesterId::bdf(4, 0, 0)));
  const std::uint64_t nowhere = with<kTar, "valid">(with<kTar, "address">(0, (1ULL << 40) >> 15), 1);
  memory_.write64(Hpa(kBusTablePage + 8 * 5), nowhere);
  expect(FaultId::TableRead, ask(tce_, 0x5000, Access::Read, RequesterId::bdf(5, 0, 0)));
  EXPECT_EQ(seen.size(), kFaultRows.size());
}

// Kills: invalidations that are another bus's or page's; idle before it is done; writes of the wrong width that count.
TEST_F(FlatCores, RegistersInvalidateWhatTheySay) {
  EXPECT_EQ(tce_.mmio_read(kSplitQueueRegister, 8), kQueuesIdle);
  const auto killed = tce_.mmio_write(kKillRegister, 8, with<kKill, "ONE">(0x5000 | 3, 1));
  ASSERT_EQ(killed.scopes.size(), 1U);
  EXPECT_EQ(killed.scopes[0].domain, DomainTag(3));
  EXPECT_EQ(killed.scopes[0].range, (AddressRange{0x5000, 0x5fff}));
  EXPECT_EQ(tce_.mmio_read(kSplitQueueRegister, 8), 0U);
  tce_.invalidation_done();
  EXPECT_EQ(tce_.mmio_read(kSplitQueueRegister, 8), kQueuesIdle);
  EXPECT_TRUE(tce_.mmio_write(kKillRegister, 4, ~0ULL).scopes.empty());
  EXPECT_TRUE(tce_.mmio_write(kKillRegister, 8, 0x5003).scopes.empty()) << "it names no kind";
  EXPECT_FALSE(tce_.mmio_write(kKillRegister, 8, with<kKill, "ALL">(0, 1)).scopes[0].domain);
  const auto bus = tce_.mmio_write(kTarRegister + 8 * 7, 8, 0);
  ASSERT_EQ(bus.scopes.size(), 2U);
  EXPECT_TRUE(matches(bus.scopes[0], {.requester = RequesterId::bdf(7, 31, 7)}));
  EXPECT_FALSE(matches(bus.scopes[0], {.requester = RequesterId::bdf(8, 0, 0)}));
  EXPECT_EQ(bus.scopes[1].domain, DomainTag(7));
  for (std::uint64_t offset = 0; offset < kTceMmioBytes; offset += 4)
    if (offset != kBusTableRegister) tce_.mmio_write(offset, 4, ~0ULL);
  EXPECT_TRUE(tce_.is_translating());
}

TEST_F(FlatCores, TheApertureIsWhereItsRegistersSay) {
  GartCore gart({});
  EXPECT_FALSE(gart.is_translating());
  gart.mmio_write(kApertureBaseRegister, 4, kApertureFirst >> 25);
  gart.mmio_write(kTableBaseRegister, 4, kTable >> 12 << 4);
  gart.mmio_write(kApertureControlRegister, 4, 1);
  memory_.write64(Hpa(kTable), GartFormat::encode({0x7000, kReadWrite}) << 32);
  EXPECT_EQ(std::get<Translation>(ask(gart, kApertureFirst + 0x1123)).address, Hpa(0x7123));
  EXPECT_EQ(fault_of(ask(gart, kApertureFirst)), row_of(FaultId::NotValid)->code);
  EXPECT_TRUE(std::get<Translation>(ask(gart, kApertureFirst - 4)).is_bypass);
  EXPECT_TRUE(std::get<Translation>(ask(gart, kApertureFirst + (32_MiB).value())).is_bypass);
  EXPECT_EQ(gart.mmio_write(kCacheControlRegister, 4, 1).scopes.size(), 1U);
  EXPECT_EQ(gart.mmio_read(kCacheControlRegister, 4) & 1, 1U);
  gart.invalidation_done();
  EXPECT_EQ(gart.mmio_read(kCacheControlRegister, 4) & 1, 0U);
}

}  // namespace
}  // namespace iommu::flat
