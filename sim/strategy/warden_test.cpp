// SPDX-License-Identifier: Apache-2.0
// The warden's own arithmetic, event by event; and that it catches software which cheats.
#include "sim/strategy/warden.hpp"

#include <gtest/gtest.h>

#include "sim/strategy/strategy_test_support.hpp"

namespace iommu::strategy::test {
namespace {

using guest::DmaMapping;
using guest::DmaStatus;

// Guest frame n is machine frame 0x100 + n, for n below 64.
class ShiftedFrames final : public FrameMap {
 public:
  [[nodiscard]] std::optional<Mfn> memory_frame(Gfn frame) const override {
    if (frame.value() >= 64) return std::nullopt;
    return Mfn(0x100 + frame.value());
  }
};

std::optional<ViolationKind> first_of(const Warden& warden) {
  const WardenReport report = warden.report();
  if (!report.first_violation) return std::nullopt;
  return report.first_violation->kind;
}

class WardenTest : public testing::Test {
 protected:
  WardenTest() { warden_.add_device(kNic, frames_, Addressing::Mapped); }

  static guest::IovaRange pages(std::uint64_t first, std::uint64_t count) {
    return {Dfn(first).address(), kPageSize * count};
  }
  void map(Picoseconds now, std::uint64_t iova, std::uint64_t frame, std::uint64_t count = 1,
           Permissions permissions = kReadWrite) {
    warden_.on_map_called(now, kNic, {Dfn(iova).address(), Gfn(frame).address(), kPageSize * count, permissions});
    warden_.on_mapped(now, kNic, pages(iova, count));
  }
  void dma(Picoseconds now, std::uint64_t iova, std::uint64_t machine, Access access = Access::Read,
           Bytes length = 64_B) {
    warden_.on_dma(now, kNic, std::nullopt, Dfn(iova).address(), Mfn(machine).address(), length, access);
  }
  [[nodiscard]] std::optional<ViolationKind> first() const { return first_of(warden_); }

  ShiftedFrames frames_;
  Warden warden_;
};

// Kills: a stray DMA that fails the run although it is tolerated, or is tolerated of a device that nobody named; frames
// of no domain counted as another domain's; a warm-up that stays in the counts.
TEST_F(WardenTest, WhatAToleratedDeviceReachesThroughAnothersTablesIsCounted) {
  map(0_ns, 10, 5);
  warden_.tolerate(kNic, [](Mfn frame) { return frame == Mfn(0x900); });
  dma(1_ns, 10, 0x105);
  dma(2_ns, 10, 0x900);
  dma(3_ns, 10, 0x901);
  dma(4_ns, 11, 0x900);
  WardenReport report = warden_.report();
  EXPECT_EQ(report.checked, 4U);
  EXPECT_EQ(report.strayed, 3U);
  EXPECT_EQ(report.foreign, 2U);
  EXPECT_EQ(report.violations, 0U);
  warden_.reset_counts();
  EXPECT_EQ(warden_.report().strayed + warden_.report().foreign, 0U);
  warden_.add_device(RequesterId::bdf(9, 0, 0), frames_, Addressing::Mapped);
  warden_.on_dma(5_ns, RequesterId::bdf(9, 0, 0), std::nullopt, Dfn(10).address(), Mfn(0x900).address(), 64_B,
                 Access::Read);
  EXPECT_EQ(warden_.report().violations, 1U);
}
// Kills: a sibling with a truth of its own, or with none.
TEST_F(WardenTest, ASiblingUsesWhatIsMappedForTheOther) {
  constexpr RequesterId kSibling = RequesterId::bdf(3, 1, 0);
  warden_.add_sibling(kSibling, kNic);
  map(0_ns, 10, 5);
  warden_.on_dma(1_ns, kSibling, std::nullopt, Dfn(10).address(), Mfn(0x105).address(), 64_B, Access::Read);
  EXPECT_EQ(warden_.report().violations, 0U);
  warden_.on_dma(2_ns, kSibling, std::nullopt, Dfn(11).address(), Mfn(0x106).address(), 64_B, Access::Read);
  EXPECT_EQ(warden_.report().violations, 1U);
  EXPECT_EQ(warden_.mapped(kSibling).size(), 1U);
}
// Kills: a legitimate DMA that is not counted, or counted as anything else.
TEST_F(WardenTest, AMappedPageMayBeUsed) {
  map(0_ns, 10, 5);
  dma(1_ns, 10, 0x105);
  dma(2_ns, 10, 0x105, Access::Write);
  const WardenReport report = warden_.report();
  EXPECT_EQ(report.checked, 2U);
  EXPECT_EQ(report.stale + report.violations + report.exposures, 0U);
}

// The tables may show it already. Kills: waiting for the end of the call.
TEST_F(WardenTest, APageBeingMappedMayBeUsed) {
  warden_.on_map_called(0_ns, kNic, {Dfn(10).address(), Gfn(5).address(), 4_KiB, kReadWrite});
  dma(1_ns, 10, 0x105);
  EXPECT_EQ(warden_.report().violations, 0U);
}

// Kills: each of the four checks left out.
TEST_F(WardenTest, EachKindOfViolationIsTold) {
  dma(1_ns, 10, 0x105);
  ASSERT_EQ(first(), ViolationKind::NotMapped);
  EXPECT_EQ(warden_.report().first_violation->time, 1_ns);
  EXPECT_EQ(warden_.report().first_violation->address, Dfn(10).address());
  EXPECT_NE(warden_.report().first_violation->describe().find("page not mapped: read of 0xa000 by 03:00.0"),
            std::string::npos);

  Warden frame;
  frame.add_device(kNic, frames_, Addressing::Mapped);
  frame.on_map_called(0_ns, kNic, {Dfn(10).address(), Gfn(5).address(), 4_KiB, kReadOnly});
  frame.on_dma(1_ns, kNic, std::nullopt, Dfn(10).address(), Mfn(0x106).address(), 64_B, Access::Read);
  EXPECT_EQ(first_of(frame), ViolationKind::WrongFrame);

  Warden permission;
  permission.add_device(kNic, frames_, Addressing::Mapped);
  permission.on_map_called(0_ns, kNic, {Dfn(10).address(), Gfn(5).address(), 4_KiB, kReadOnly});
  permission.on_dma(1_ns, kNic, std::nullopt, Dfn(10).address(), Mfn(0x105).address(), 64_B, Access::Write);
  EXPECT_EQ(first_of(permission), ViolationKind::NoPermission);

  Warden unknown;
  unknown.on_dma(1_ns, kNic, std::nullopt, Dfn(10).address(), Mfn(0x105).address(), 64_B, Access::Write);
  EXPECT_EQ(first_of(unknown), ViolationKind::UnknownDevice);
  EXPECT_EQ(unknown.report().violations, 1U);
}

// Ages are of the DMA, exposures of the page. Kills: ages from the map; one exposure per call; a fence that forgets
// none or all; a maximum that is the last one.
TEST_F(WardenTest, StaleAgesAndExposuresAreExact) {
  map(0_ns, 10, 5, 2);
  map(0_ns, 20, 8);
  warden_.on_unmap_called(100_ns, kNic, pages(10, 2));
  dma(130_ns, 10, 0x105);
  dma(110_ns, 11, 0x106);
  warden_.on_unmap_called(120_ns, kNic, pages(20, 1));
  dma(140_ns, 20, 0x108);
  warden_.on_fenced(200_ns, kNic, pages(10, 2));
  warden_.on_fenced(210_ns, kNic, pages(20, 1));
  const WardenReport report = warden_.report();
  EXPECT_EQ(report.checked, 3U);
  EXPECT_EQ(report.stale, 3U);
  EXPECT_EQ(report.violations, 0U);
  EXPECT_EQ(report.stale_age_max, 30_ns);
  EXPECT_DOUBLE_EQ(report.stale_age_mean_ps, (30e3 + 10e3 + 20e3) / 3);
  EXPECT_EQ(report.exposures, 3U);
  EXPECT_EQ(report.exposure_max, 100_ns);
  EXPECT_DOUBLE_EQ(report.exposure_mean_ps, (100e3 + 100e3 + 90e3) / 3);
  dma(301_ns, 20, 0x108);
  EXPECT_EQ(first(), ViolationKind::NotMapped) << "after its fence it is nobody's";
}

// A second unmap of a page does not make it younger. Kills: an age that starts again.
TEST_F(WardenTest, AnUnmappedPageKeepsItsAge) {
  map(0_ns, 10, 5);
  warden_.on_unmap_called(10_ns, kNic, pages(10, 1));
  warden_.on_unmap_called(50_ns, kNic, pages(10, 1));
  warden_.on_fenced(60_ns, kNic, pages(10, 1));
  warden_.on_fenced(90_ns, kNic, pages(10, 1));
  EXPECT_EQ(warden_.report().exposure_max, 50_ns);
  EXPECT_EQ(warden_.report().exposures, 1U);
}

// A stale page is stale only for what it allowed. Kills: forgiving everything between unmap and fence.
TEST_F(WardenTest, BetweenUnmapAndFenceOtherFramesAndRightsAreViolations) {
  map(0_ns, 10, 5, 1, kReadOnly);
  warden_.on_unmap_called(10_ns, kNic, pages(10, 1));
  dma(20_ns, 10, 0x105, Access::Write);
  dma(20_ns, 10, 0x109);
  const WardenReport report = warden_.report();
  EXPECT_EQ(report.violations, 2U);
  EXPECT_EQ(report.stale, 0U);
  EXPECT_EQ(first(), ViolationKind::NoPermission) << "the first is kept";
}

// Kills: a check of the first page only; one check per byte; an offset into the next page's frame.
TEST_F(WardenTest, ATransferIsCheckedPageByPage) {
  map(0_ns, 10, 5, 2);
  warden_.on_dma(1_ns, kNic, std::nullopt, Dfn(10).address() + 0xf00_B, Mfn(0x105).address() + 0xf00_B, 0x200_B,
                 Access::Write);
  EXPECT_EQ(warden_.report().checked, 2U);
  EXPECT_EQ(warden_.report().violations, 0U);
  dma(2_ns, 11, 0x106, Access::Write, 0x1001_B);
  EXPECT_EQ(warden_.report().checked, 4U);
  ASSERT_EQ(warden_.report().violations, 1U);
  EXPECT_EQ(warden_.report().first_violation->address, Dfn(12).address());
}

// Kills: pages of a map call that are not the guest's taken for legitimate.
TEST_F(WardenTest, WhatIsNotTheGuestsMemoryIsNeverLegitimate) {
  map(0_ns, 10, 63, 2);
  dma(1_ns, 10, 0x13f);
  EXPECT_EQ(warden_.report().violations, 0U);
  dma(1_ns, 11, 0x140);
  EXPECT_EQ(first(), ViolationKind::NotMapped);
}

// Kills: mapping events required of who maps nothing; frames of the machine taken for the guest's.
TEST_F(WardenTest, GuestPhysicalAddressingFollowsTheFrameMap) {
  warden_.add_device(kDisk, frames_, Addressing::GuestPhysical);
  const auto dma_of_disk = [&](std::uint64_t page, std::uint64_t machine) {
    warden_.on_dma(1_ns, kDisk, std::nullopt, Dfn(page).address(), Mfn(machine).address(), 4_B, Access::Write);
  };
  dma_of_disk(5, 0x105);
  EXPECT_EQ(warden_.report().violations, 0U);
  dma_of_disk(5, 0x106);
  EXPECT_EQ(first(), ViolationKind::WrongFrame);
  dma_of_disk(64, 0x140);
  EXPECT_EQ(warden_.report().violations, 2U);
}

// Kills: devices that share a record; a reset that forgets the truth or the violations.
TEST_F(WardenTest, AResetKeepsWhatIsMappedAndWhatWentWrong) {
  warden_.add_device(kDisk, frames_, Addressing::Mapped);
  map(0_ns, 10, 5);
  warden_.on_dma(1_ns, kDisk, std::nullopt, Dfn(10).address(), Mfn(0x105).address(), 4_B, Access::Read);
  EXPECT_EQ(warden_.report().violations, 1U) << "mapped for the other device";
  warden_.on_unmap_called(2_ns, kNic, pages(10, 1));
  dma(3_ns, 10, 0x105);
  warden_.reset_counts();
  WardenReport report = warden_.report();
  EXPECT_EQ(report.checked + report.stale + report.exposures, 0U);
  EXPECT_EQ(report.stale_age_max + report.exposure_max, 0_ns);
  EXPECT_EQ(report.violations, 1U);
  dma(4_ns, 10, 0x105);
  warden_.on_fenced(5_ns, kNic, pages(10, 1));
  report = warden_.report();
  EXPECT_EQ(report.stale, 1U);
  EXPECT_EQ(report.exposure_max, 3_ns);
}

// Software that invalidates late maps anew what it has not fenced. Kills: a former frame that is a violation before the
// fence, or none after it; one that excuses other frames or rights; a new mapping judged by the former's age; a fence
// that ends the new mapping.
TEST_F(WardenTest, AFrameOfAFormerMappingIsStaleUntilItsFence) {
  map(0_ns, 10, 5, 1, kReadOnly);
  warden_.on_unmap_called(10_ns, kNic, pages(10, 1));
  map(20_ns, 10, 6);
  dma(25_ns, 10, 0x106);
  EXPECT_EQ(warden_.report().stale, 0U);
  dma(30_ns, 10, 0x105);
  EXPECT_EQ(warden_.report().stale, 1U);
  EXPECT_EQ(warden_.report().stale_age_max, 20_ns);
  EXPECT_EQ(warden_.report().violations, 0U);
  dma(31_ns, 10, 0x105, Access::Write);
  dma(32_ns, 10, 0x107);
  EXPECT_EQ(warden_.report().violations, 2U);
  warden_.on_fenced(40_ns, kNic, pages(10, 1));
  EXPECT_EQ(warden_.report().exposure_max, 30_ns);
  dma(41_ns, 10, 0x106, Access::Write);
  EXPECT_EQ(warden_.report().violations, 2U);
  dma(42_ns, 10, 0x105);
  EXPECT_EQ(warden_.report().violations, 3U);
}

// Software that cheats
// --------------------------------------------------------------------------------------------------

// Forwards everything; mutants change one thing.
class ForwardingSpace : public guest::DmaSpace {
 public:
  explicit ForwardingSpace(guest::DmaSpace& inner) : inner_(inner) {}
  [[nodiscard]] bool is_identity() const override { return inner_.is_identity(); }
  [[nodiscard]] bool can_defer() const override { return inner_.can_defer(); }
  [[nodiscard]] Iova last_address() const override { return inner_.last_address(); }
  Task<DmaStatus> map(CpuPort& cpu, guest::MapSegment segment) override { co_return co_await inner_.map(cpu, segment); }
  Task<DmaStatus> sync_map(CpuPort& cpu, guest::IovaRange range) override {
    co_return co_await inner_.sync_map(cpu, range);
  }
  Task<guest::UnmapGather> unmap(CpuPort& cpu, guest::IovaRange range, guest::Flush flush) override {
    co_return co_await inner_.unmap(cpu, range, flush);
  }
  Task<void> sync(CpuPort& cpu, guest::UnmapGather gather) override { co_await inner_.sync(cpu, gather); }
  Task<void> flush_all(CpuPort& cpu) override { co_await inner_.flush_all(cpu); }
  void reclaim_tables(const std::vector<std::uint64_t>& tables) override { inner_.reclaim_tables(tables); }

 protected:
  guest::DmaSpace& inner_;
};

class NeverFlushes final : public ForwardingSpace {
 public:
  using ForwardingSpace::ForwardingSpace;
  Task<guest::UnmapGather> unmap(CpuPort& cpu, guest::IovaRange range, guest::Flush) override {
    co_return co_await inner_.unmap(cpu, range, guest::Flush::Deferred);
  }
  Task<void> sync(CpuPort&, guest::UnmapGather) override { co_return; }
  Task<void> flush_all(CpuPort&) override { co_return; }
};

class MapsTheNextFrame final : public ForwardingSpace {
 public:
  using ForwardingSpace::ForwardingSpace;
  Task<DmaStatus> map(CpuPort& cpu, guest::MapSegment segment) override {
    segment.address = segment.address + kPageSize;
    co_return co_await inner_.map(cpu, segment);
  }
};

class MapsOnePageMore final : public ForwardingSpace {
 public:
  using ForwardingSpace::ForwardingSpace;
  Task<DmaStatus> map(CpuPort& cpu, guest::MapSegment segment) override {
    segment.length += kPageSize;
    co_return co_await inner_.map(cpu, segment);
  }
  Task<DmaStatus> sync_map(CpuPort& cpu, guest::IovaRange range) override {
    range.length += kPageSize;
    co_return co_await inner_.sync_map(cpu, range);
  }
};

class MapsWritable final : public ForwardingSpace {
 public:
  using ForwardingSpace::ForwardingSpace;
  Task<DmaStatus> map(CpuPort& cpu, guest::MapSegment segment) override {
    segment.permissions = kReadWrite;
    co_return co_await inner_.map(cpu, segment);
  }
};

class UnmapsOnePageLess final : public ForwardingSpace {
 public:
  using ForwardingSpace::ForwardingSpace;
  Task<guest::UnmapGather> unmap(CpuPort& cpu, guest::IovaRange range, guest::Flush flush) override {
    range.length -= kPageSize;
    co_return co_await inner_.unmap(cpu, range, flush);
  }
};

template <class Mutant>
WrapSpace with() {
  return [](guest::DmaSpace& inner) { return std::make_unique<Mutant>(inner); };
}

constexpr Gpa kBuffer{0x123000};

class Cheats : public OnPairs {};
ON_STRATEGIES(Cheats, kWithTables);

// The same steps without a mutant: what follows is the mutants' doing.
TEST_P(Cheats, HonestSoftwareIsNotAccused) {
  Machine m(family(), strategy(), {.strategy = {.deferred_flush = true}});
  Machine::Device& nic = m.attach(kNic, with<ForwardingSpace>());
  const DmaMapping mapped = m.map(nic, kBuffer, 8_KiB, guest::DmaDirection::ToDevice);
  EXPECT_TRUE(m.dma(kNic, mapped.address));
  EXPECT_FALSE(m.dma(kNic, mapped.address, Access::Write));
  EXPECT_FALSE(m.dma(kNic, mapped.address + 8_KiB));
  m.unmap(nic, mapped.address, 8_KiB);
  EXPECT_FALSE(m.dma(kNic, mapped.address));
  EXPECT_FALSE(m.dma(kNic, mapped.address + 4_KiB));
  const WardenReport report = m.warden.report();
  EXPECT_EQ(report.checked, 1U);
  EXPECT_EQ(report.violations, 0U);
  EXPECT_EQ(report.exposures, 2U);
}

TEST_P(Cheats, AMissingFlushIsCaught) {
  Machine m(family(), strategy(), {.strategy = {.deferred_flush = true}});
  Machine::Device& nic = m.attach(kNic, with<NeverFlushes>());
  m.map(nic, kBuffer);  // so that no table empties, which Xen flushes of its own accord
  const DmaMapping mapped = m.map(nic, kBuffer);
  EXPECT_TRUE(m.dma(kNic, mapped.address));
  m.unmap(nic, mapped.address);
  EXPECT_TRUE(m.dma(kNic, mapped.address)) << "the cache still answers";
  EXPECT_EQ(first_of(m.warden), ViolationKind::NotMapped);
}

TEST_P(Cheats, ReuseWithoutAFlushIsCaught) {
  Machine m(family(), strategy(), {.strategy = {.deferred_flush = true}});
  Machine::Device& nic = m.attach(kNic, with<NeverFlushes>());
  m.map(nic, kBuffer);  // so that no table empties, which Xen flushes of its own accord
  const DmaMapping mapped = m.map(nic, kBuffer);
  EXPECT_TRUE(m.dma(kNic, mapped.address));
  m.unmap(nic, mapped.address);
  ASSERT_EQ(m.map(nic, kBuffer + 64_KiB).address, mapped.address);
  if (is(kEmulatedViommu) && !is_write_protected()) {
    // Caching mode: the map is announced as well, and Xen finds the shadow to be another.
    EXPECT_EQ(m.dma(kNic, mapped.address), m.host_address(kBuffer + 64_KiB));
    return;
  }
  EXPECT_EQ(m.dma(kNic, mapped.address), m.host_address(kBuffer)) << "the old frame";
  EXPECT_EQ(first_of(m.warden), ViolationKind::WrongFrame);
}

TEST_P(Cheats, AWrongFrameIsCaught) {
  Machine m(family(), strategy());
  Machine::Device& nic = m.attach(kNic, with<MapsTheNextFrame>());
  EXPECT_TRUE(m.dma(kNic, m.map(nic, kBuffer).address));
  EXPECT_EQ(first_of(m.warden), ViolationKind::WrongFrame);
}

TEST_P(Cheats, APageTooManyIsCaught) {
  Machine m(family(), strategy());
  Machine::Device& nic = m.attach(kNic, with<MapsOnePageMore>());
  ASSERT_EQ(m.map_at(nic, 0x40000000, kBuffer, 4_KiB), DmaStatus::Ok);
  EXPECT_TRUE(m.dma(kNic, Iova(0x40001000)));
  EXPECT_EQ(first_of(m.warden), ViolationKind::NotMapped);
}

TEST_P(Cheats, ARightTooManyIsCaught) {
  Machine m(family(), strategy());
  Machine::Device& nic = m.attach(kNic, with<MapsWritable>());
  const DmaMapping mapped = m.map(nic, kBuffer, 4_KiB, guest::DmaDirection::ToDevice);
  EXPECT_TRUE(m.dma(kNic, mapped.address, Access::Write));
  EXPECT_EQ(first_of(m.warden), ViolationKind::NoPermission);
}

TEST_P(Cheats, APageLeftMappedIsCaught) {
  Machine m(family(), strategy());
  Machine::Device& nic = m.attach(kNic, with<UnmapsOnePageLess>());
  const DmaMapping mapped = m.map(nic, kBuffer, 12_KiB);
  m.unmap(nic, mapped.address, 12_KiB);
  EXPECT_FALSE(m.dma(kNic, mapped.address));
  EXPECT_TRUE(m.dma(kNic, mapped.address + 8_KiB));
  EXPECT_EQ(first_of(m.warden), ViolationKind::NotMapped);
}

// The hazard of lazy unmapping, measured. Kills: stale accesses that fault in the model; windows that are not the time
// between unmap and flush.
TEST_P(Cheats, TheExposureOfLazyUnmappingIsMeasured) {
  Machine m(family(), strategy(), lazy());
  Machine::Device& nic = m.attach(kNic);
  m.map(nic, kBuffer);  // so that no table empties, which Xen flushes of its own accord
  const DmaMapping early = m.map(nic, kBuffer);
  const DmaMapping late = m.map(nic, kBuffer, 8_KiB);
  EXPECT_TRUE(m.dma(kNic, early.address));
  m.pass(1_ms);
  m.unmap(nic, early.address);
  m.pass(2_ms);
  m.unmap(nic, late.address, 8_KiB);
  EXPECT_TRUE(m.dma(kNic, early.address)) << "cached before";
  m.pass(3_ms);
  nic.api->flush(m.cpu).run();
  EXPECT_FALSE(m.dma(kNic, early.address));
  const WardenReport report = m.warden.report();
  EXPECT_EQ(report.violations, 0U);
  EXPECT_EQ(report.stale, 1U);
  EXPECT_EQ(report.stale_age_max, 2_ms);
  EXPECT_EQ(report.exposures, 3U);
  EXPECT_EQ(report.exposure_max, 5_ms);
  EXPECT_DOUBLE_EQ(report.exposure_mean_ps, (5e9 + 3e9 + 3e9) / 3);
}

}  // namespace
}  // namespace iommu::strategy::test
