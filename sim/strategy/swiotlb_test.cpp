// SPDX-License-Identifier: Apache-2.0
// Bounce buffers: what is copied when, what a device may use, and what nobody stops it from using.
#include <gtest/gtest.h>

#include <array>
#include <random>
#include <vector>

#include "sim/base/rng.hpp"
#include "sim/strategy/strategy_test_support.hpp"

namespace iommu::strategy::test {
namespace {

using guest::DmaDirection;
using guest::DmaMapping;
using guest::DmaStatus;
using guest::DmaUse;

constexpr Gpa kBuffer{0x123000};

class Swiotlb : public OnPairs {};
ON_STRATEGIES(Swiotlb, (std::array{&kSwiotlb}));

std::vector<std::byte> bytes_at(Machine& m, Gpa address, std::size_t count) {
  std::vector<std::byte> bytes(count);
  EXPECT_TRUE(m.domain->memory.read(address, bytes));
  return bytes;
}
void fill(Machine& m, Gpa address, std::size_t count, std::size_t seed) {
  std::vector<std::byte> bytes(count);
  for (std::size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>(seed + i * 7);
  EXPECT_TRUE(m.domain->memory.write(address, bytes));
}
Gpa bounce_of(const DmaMapping& mapped) { return Gpa(mapped.address.value()); }

// Kills: no copy on map for a direction (a partial write would then bring garbage); a copy back that a device which
// only reads pays for, or one that is missing; a copy one byte short or long.
TEST_P(Swiotlb, MapsCopyInAndUnmapsCopyBackWhatADeviceMayHaveWritten) {
  for (const DmaDirection direction : {DmaDirection::ToDevice, DmaDirection::FromDevice, DmaDirection::Bidirectional}) {
    Machine m(family(), strategy());
    Machine::Device& nic = m.attach(kNic);
    const Gpa buffer = kBuffer + 0x7f5_B;
    fill(m, buffer - 1_B, 5002, 1);
    const auto before = bytes_at(m, buffer - 1_B, 5002);
    const DmaMapping mapped = m.map(nic, buffer, 5000_B, direction);
    ASSERT_EQ(mapped.status, DmaStatus::Ok);
    EXPECT_EQ(bytes_at(m, bounce_of(mapped), 5000), bytes_at(m, buffer, 5000));
    EXPECT_EQ(m.cpu.charged()[CostId::BounceCopyLine], 79U);
    fill(m, bounce_of(mapped) + 64_B, 100, 99);  // the device's write
    EXPECT_EQ(bytes_at(m, buffer - 1_B, 5002), before) << "not before the unmap";
    ASSERT_EQ(m.unmap(nic, mapped.address, 5000_B), DmaStatus::Ok);
    auto after = before;
    if (direction != DmaDirection::ToDevice)
      for (std::size_t i = 0; i < 100; ++i) after[65 + i] = static_cast<std::byte>(99 + i * 7);
    EXPECT_EQ(bytes_at(m, buffer - 1_B, 5002), after);
    const bool came_back = direction != DmaDirection::ToDevice;
    EXPECT_EQ(m.cpu.charged()[CostId::BounceCopyLine], came_back ? 158U : 79U);
    EXPECT_EQ(m.strategy().counters().bounce->bytes_copied, came_back ? 10000U : 5000U);
  }
}

// Kills: buffers in place; a warden that takes any of the guest's pages for fair; one page shared by two buffers that
// is closed with the first, or left open after the last.
TEST_P(Swiotlb, ADeviceMayUseBouncePagesOfItsLiveBuffersOnly) {
  Machine m(family(), strategy());
  Machine::Device& nic = m.attach(kNic);
  const DmaMapping a = m.map(nic, kBuffer, 1500_B, DmaDirection::ToDevice);
  const DmaMapping b = m.map(nic, kBuffer + 2_KiB, 1500_B, DmaDirection::FromDevice);
  ASSERT_EQ(a.address.aligned_down(kPageLg2), b.address.aligned_down(kPageLg2)) << "two slots of one page";
  EXPECT_TRUE(m.dma(kNic, a.address, Access::Read));
  EXPECT_TRUE(m.dma(kNic, b.address, Access::Write));
  ASSERT_EQ(m.unmap(nic, b.address, 1500_B), DmaStatus::Ok);
  EXPECT_TRUE(m.dma(kNic, a.address, Access::Read));
  EXPECT_EQ(m.warden.report().violations, 0U);
  EXPECT_TRUE(m.dma(kNic, b.address, Access::Write)) << "nothing stops it";
  EXPECT_EQ(m.warden.report().violations, 1U);
  ASSERT_EQ(m.unmap(nic, a.address, 1500_B), DmaStatus::Ok);
  EXPECT_TRUE(m.dma(kNic, a.address, Access::Read));
  EXPECT_EQ(m.warden.report().violations, 2U);
  EXPECT_TRUE(m.dma(kNic, Iova(kBuffer.value()))) << "the guest is not protected from its device";
  EXPECT_EQ(m.warden.report().violations, 3U);
}

// Rings are memory that both sides look at all the time. Kills: rings in bounce buffers, where neither side would see
// the other's writes; rings that take slots.
TEST_P(Swiotlb, SharedMemoryIsUsedInPlace) {
  Machine m(family(), strategy());
  Machine::Device& nic = m.attach(kNic);
  const DmaMapping ring = nic.api->map(m.cpu, kBuffer, 1_MiB, DmaDirection::Bidirectional, DmaUse::Coherent).run();
  ASSERT_EQ(ring.status, DmaStatus::Ok);
  EXPECT_EQ(bounce_of(ring), kBuffer);
  EXPECT_TRUE(m.dma(kNic, ring.address + 1_MiB - 4_B, Access::Write));
  EXPECT_EQ(m.cpu.charged()[CostId::BounceCopyLine] + m.cpu.charged()[CostId::BounceSlot], 0U);
  EXPECT_EQ(m.unmap(nic, ring.address, 1_MiB), DmaStatus::Ok);
  EXPECT_EQ(m.warden.report().violations, 0U);
}

// [interfaces checklist 111] Kills: growing without limit; a failure that leaks slots, or takes others' with it.
TEST_P(Swiotlb, AFullPoolRefusesAndRecovers) {
  Machine m(family(), strategy());
  Machine::Device& nic = m.attach(kNic);
  EXPECT_EQ(m.map(nic, kBuffer, 256_KiB + 1_B).status, DmaStatus::NoAddress);
  std::vector<DmaMapping> live;
  for (int i = 0; i < 4; ++i) live.push_back(m.map(nic, kBuffer, 256_KiB));
  for (const DmaMapping& mapped : live) EXPECT_EQ(mapped.status, DmaStatus::Ok);
  EXPECT_EQ(m.map(nic, kBuffer, 1_B).status, DmaStatus::NoAddress);
  EXPECT_EQ(m.strategy().counters().bounce->full, 2U);
  EXPECT_EQ(m.strategy().counters().bounce->most_slots, 512U);
  ASSERT_EQ(m.unmap(nic, live[2].address, 256_KiB), DmaStatus::Ok);
  const DmaMapping again = m.map(nic, kBuffer, 256_KiB);
  EXPECT_EQ(again.address, live[2].address);
  EXPECT_EQ(m.unmap(nic, again.address, 128_KiB), DmaStatus::Rejected) << "not what was mapped";
  EXPECT_EQ(m.unmap(nic, again.address + 2_KiB, 256_KiB), DmaStatus::Rejected);
  EXPECT_EQ(m.unmap(nic, again.address, 256_KiB), DmaStatus::Ok);
  EXPECT_EQ(m.unmap(nic, again.address, 256_KiB), DmaStatus::Rejected) << "already unmapped";
}

// Kills: trusting the caller's addresses.
TEST_P(Swiotlb, MemoryThatIsNotTheGuestsIsNotCopied) {
  Machine m(family(), strategy());
  Machine::Device& nic = m.attach(kNic);
  const Gpa end(Machine::kGuestMemory.value());
  EXPECT_EQ(m.map(nic, end - 2_KiB, 4_KiB).status, DmaStatus::Rejected);
  EXPECT_EQ(m.map(nic, end, 4_B).status, DmaStatus::Rejected);
  EXPECT_EQ(m.map(nic, Gpa(~0ULL - 0xfff), 64_B).status, DmaStatus::Rejected);
  EXPECT_EQ(m.cpu.charged()[CostId::BounceCopyLine], 0U);
}

// Kills: pieces in another order, or apart.
TEST_P(Swiotlb, AScatterlistIsGatheredAndScattered) {
  Machine m(family(), strategy());
  Machine::Device& nic = m.attach(kNic);
  const std::vector<guest::ScatterEntry> list{{Gpa(0x400800), 2_KiB}, {Gpa(0x300000), 4_KiB}, {Gpa(0x500000), 100_B}};
  for (std::size_t i = 0; i < list.size(); ++i) fill(m, list[i].address, list[i].length.value(), 40 * (1 + i));
  const DmaMapping mapped = nic.api->map_scatterlist(m.cpu, list, kReadWrite).run();
  ASSERT_EQ(mapped.status, DmaStatus::Ok);
  EXPECT_EQ(bytes_at(m, bounce_of(mapped) + 2_KiB, 4096), bytes_at(m, Gpa(0x300000), 4096));
  EXPECT_EQ(bytes_at(m, bounce_of(mapped) + 6_KiB, 100), bytes_at(m, Gpa(0x500000), 100));
  fill(m, bounce_of(mapped), 6244, 200);
  const auto written = bytes_at(m, bounce_of(mapped), 6244);
  ASSERT_EQ(m.unmap(nic, mapped.address, 6244_B), DmaStatus::Ok);
  const auto last = bytes_at(m, Gpa(0x500000), 100);
  EXPECT_TRUE(std::equal(last.begin(), last.end(), written.begin() + 6144));
  EXPECT_EQ(bytes_at(m, Gpa(0x400800), 2048), std::vector(written.begin(), written.begin() + 2048));
}

}  // namespace
}  // namespace iommu::strategy::test
