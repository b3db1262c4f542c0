// SPDX-License-Identifier: Apache-2.0
// The guest's virtio-iommu driver against Xen's device, with whatever features the two agree on.
#include <gtest/gtest.h>

#include "sim/guest/virtio_iommu_driver.hpp"
#include "sim/strategy/strategy_test_support.hpp"
#include "sim/xen/virtio_iommu.hpp"

namespace iommu::strategy::test {
namespace {

constexpr std::uint64_t bit(unsigned feature) { return 1ULL << feature; }
constexpr std::uint64_t kIndirect = bit(virtio::kFeatureIndirectDescriptors);
constexpr std::uint64_t kEventIndex = bit(virtio::kFeatureEventIndex);

class VirtioDriver : public testing::TestWithParam<const FamilyDescriptor*> {
 protected:
  struct Bench {
    explicit Bench(const xen::VirtioIommuSetting& setting = {}, std::uint64_t refused = 0)
        : m(*GetParam(), kPassthrough),
          device(m.xen, *m.domain, setting),
          driver(device, m.domain->memory, m.pages, refused) {
      EXPECT_EQ(device.add_endpoint(m.cpu, kNic, xen::EndpointKind::Physical).run(), xen::Errno::Ok);
    }
    guest::DmaSpace* attach() {
      EXPECT_TRUE(driver.bring_up(m.cpu).run());
      return driver.attach(m.cpu, kNic).run();
    }
    void fault(std::uint64_t address) { device.report_fault(m.cpu, kNic, Iova(address), Access::Write).run(); }
    Machine m;
    xen::VirtioIommu device;
    guest::VirtioIommuDriver driver;
  };
};
INSTANTIATE_TEST_SUITE_P(Families, VirtioDriver, testing::ValuesIn(families().begin(), families().end()),
                         [](const auto& info) { return std::string(info.param->name); });

// More requests than the ring holds, with and without tables of their own, with either way of asking to be told. Kills:
// descriptors lost or used twice; a kick that is not sent; answers of one request taken for another's.
TEST_P(VirtioDriver, EveryRequestArrivesWhateverWasNegotiated) {
  constexpr std::uint64_t kPages = 600;
  for (const std::uint64_t refused : {std::uint64_t{0}, kIndirect, kEventIndex, kIndirect | kEventIndex})
    for (const std::uint16_t entries : std::array<std::uint16_t, 3>{2, 8, 256}) {
      SCOPED_TRACE(testing::Message() << "refused " << std::hex << refused << ", entries " << std::dec << entries);
      Bench b({.queue_entries = entries}, refused);
      guest::DmaSpace* space = b.attach();
      ASSERT_NE(space, nullptr);
      const auto input = [](std::uint64_t i) { return Iova(0x40000000 + i * 0x2000); };
      const auto place = [](std::uint64_t i) { return Gpa(0x1000 + i * 0x1000); };
      for (std::uint64_t i = 0; i < kPages; ++i)
        ASSERT_EQ(space->map(b.m.cpu, {input(i), place(i), 4_KiB}).run(), guest::DmaStatus::Ok);
      space->sync_map(b.m.cpu, {}).run();
      for (std::uint64_t i = 0; i < kPages; ++i) ASSERT_EQ(b.m.peek(kNic, input(i)), b.m.host_address(place(i))) << i;
      for (std::uint64_t i = 0; i < kPages; ++i)
        ASSERT_EQ(space->unmap(b.m.cpu, {input(i), 4_KiB}, guest::Flush::Deferred).run().status, guest::DmaStatus::Ok);
      space->flush_all(b.m.cpu).run();
      for (std::uint64_t i = 0; i < kPages; ++i) ASSERT_EQ(b.m.peek(kNic, input(i)), std::nullopt) << i;
      EXPECT_EQ(b.driver.refused(), 0U);
      EXPECT_EQ(b.device.counters().of(virtio::RequestType::Map), kPages);
      EXPECT_EQ(b.device.counters().of(virtio::RequestType::Unmap), kPages);
      // Without tables of their own requests take two descriptors each.
      const std::uint64_t at_once = (refused & kIndirect) != 0 ? entries / 2U : entries;
      EXPECT_EQ(b.device.counters().traps.doorbell, 2 + 2 * ((kPages + at_once - 1) / at_once))
          << "PROBE, ATTACH, these";
      EXPECT_TRUE(b.device.registers().is_live());
    }
}

// Kills: pieces that the driver asks for in another way than Linux, one by one; a larger page that is not used.
TEST_P(VirtioDriver, ASegmentIsAskedForInPiecesOfOnePageSize) {
  Bench b;
  guest::DmaSpace* space = b.attach();
  ASSERT_NE(space, nullptr);
  const auto requests = [&](std::uint64_t input, std::uint64_t output, Bytes length) {
    const std::uint64_t before = b.device.counters().of(virtio::RequestType::Map);
    EXPECT_EQ(space->map(b.m.cpu, {Iova(input), Gpa(output), length}).run(), guest::DmaStatus::Ok);
    space->sync_map(b.m.cpu, {}).run();
    for (Bytes at; at < length; at += 4_KiB)
      EXPECT_EQ(b.m.peek(kNic, Iova(input) + at), b.m.host_address(Gpa(output) + at));
    const std::uint64_t after = b.device.counters().of(virtio::RequestType::Map);
    EXPECT_EQ(space->unmap(b.m.cpu, {Iova(input), length}, guest::Flush::Immediate).run().status, guest::DmaStatus::Ok);
    space->sync(b.m.cpu, {}).run();
    for (Bytes at; at < length; at += 4_KiB) EXPECT_EQ(b.m.peek(kNic, Iova(input) + at), std::nullopt);
    return after - before;
  };
  EXPECT_EQ(requests(0x40001000, 0x201000, 2_MiB), 1U) << "never aligned together far enough for a large page";
  EXPECT_EQ(requests(0x40001000, 0x202000, 6_MiB), 1U) << "nor these, at any length";
  EXPECT_EQ(requests(0x40000000, 0x200000, 4_MiB), 1U) << "two large pages";
  EXPECT_EQ(requests(0x401ff000, 0x3ff000, 4_KiB + 2_MiB + 8_KiB), 3U) << "up to the large page, it, and the rest";
  EXPECT_EQ(b.driver.refused(), 0U);
}

// Kills: an event that is lost while there are buffers, reported twice, or whose buffer never comes back.
TEST_P(VirtioDriver, FaultsReachTheDriverAsLongAsItTakesThem) {
  constexpr std::uint16_t kEntries = 8;
  Bench b({.queue_entries = kEntries});
  guest::DmaSpace* space = b.attach();
  ASSERT_NE(space, nullptr);
  for (std::uint64_t round = 0; round < 3; ++round) {
    for (std::uint64_t i = 0; i < kEntries + 2U; ++i) b.fault(0x1000 * (round + 1) + i);
    const auto faults = b.driver.take_faults(b.m.cpu).run();
    ASSERT_EQ(faults.size(), kEntries) << "as many as there were buffers";
    for (std::uint64_t i = 0; i < faults.size(); ++i) {
      EXPECT_EQ(faults[i].address, 0x1000 * (round + 1) + i);
      EXPECT_EQ(faults[i].endpoint, kNic.value());
      EXPECT_EQ(faults[i].reason, static_cast<std::uint8_t>(virtio::FaultReason::Mapping));
    }
    EXPECT_EQ(b.device.counters().events_dropped, 2 * (round + 1));
  }
}

// Kills: a driver that goes on with a device that it cannot drive.
TEST_P(VirtioDriver, WithoutWhatItNeedsTheDriverRefusesTheDevice) {
  for (const unsigned feature : {virtio::kFeatureMapUnmap, virtio::kFeatureVersion1}) {
    Bench b({.withheld_features = bit(feature)});
    EXPECT_FALSE(b.driver.bring_up(b.m.cpu).run()) << feature;
  }
  Bench small({.queue_entries = 1});
  EXPECT_FALSE(small.driver.bring_up(small.m.cpu).run()) << "no room for one request without a table";
}

// Kills: reserved regions that the device names and the driver forgets; the software window beside the device's.
TEST_P(VirtioDriver, ReservedRegionsAreTheDevicesAndAWindowForInterrupts) {
  for (const bool named : {true, false}) {
    xen::VirtioIommuSetting setting;
    if (named) setting.spaces.interrupt_windows = {{0xfee00000, 0xfeefffff}};
    Bench b(setting);
    guest::DmaSpace* space = b.attach();
    ASSERT_NE(space, nullptr);
    const guest::IovaRange window =
        named ? guest::IovaRange{Iova(0xfee00000), 1_MiB} : guest::IovaRange{Iova(0x8000000), 1_MiB};
    EXPECT_EQ(space->reserved(), std::vector{window});
    EXPECT_EQ(space->last_address(), Iova(b.device.spaces().last_input()));
  }
}

// Kills: a driver that does not look for which unit its tables must be, or binds them without the feature.
TEST_P(VirtioDriver, TablesForAnotherUnitAreNotBound) {
  const FamilyDescriptor& family = *GetParam();
  const DriverOptions guest = kNested.guest_driver({}, family, {});
  TableBinding another = *family.binding;
  another.identity = [](const UnitFeatures&) { return std::vector<std::uint64_t>{1, 2}; };
  for (const TableBinding* binding : {family.binding, static_cast<const TableBinding*>(&another)})
    for (const std::uint64_t refused : {std::uint64_t{0}, bit(virtio::kFeatureAttachTable)}) {
      Machine m(family, kVirtioTables);
      xen::VirtioIommu device(m.xen, *m.domain, {.tables = {binding, guest.features}});
      guest::VirtioIommuDriver driver(device, m.domain->memory, m.pages, refused, {&family, {.driver = guest}});
      ASSERT_EQ(device.add_endpoint(m.cpu, kNic, xen::EndpointKind::Physical).run(), xen::Errno::Ok);
      ASSERT_TRUE(driver.bring_up(m.cpu).run());
      const guest::DmaSpace* space = driver.attach(m.cpu, kNic).run();
      EXPECT_EQ(space != nullptr, refused != 0 || binding == family.binding);
      EXPECT_EQ(device.counters().of(virtio::RequestType::AttachTable),
                refused == 0 && binding == family.binding ? 1U : 0U);
      EXPECT_EQ(device.counters().of(virtio::RequestType::Attach), refused != 0 ? 1U : 0U) << "then by mappings";
    }
}

}  // namespace
}  // namespace iommu::strategy::test
