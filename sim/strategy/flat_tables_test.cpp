// SPDX-License-Identifier: Apache-2.0
// Flat tables: what devices reach, what calls of a hypervisor answer, and for how long a cache that is invalidated late
// leaves the door open. Behaviour numbers are those of the list of testable behaviours.
#include <gtest/gtest.h>

#include <array>
#include <random>
#include <vector>

#include "sim/base/rng.hpp"
#include "sim/strategy/strategy_test_support.hpp"
#include "sim/xen/tce_calls.hpp"

namespace iommu::strategy::test {
namespace {

using guest::DmaDirection;
using guest::DmaMapping;
using guest::DmaStatus;
using xen::abi::kTceValue;
using xen::abi::TceStatus;

constexpr Gpa kBuffer{0x123000};
constexpr unsigned kSmallLg2 = 25;  // 8192 pages

const FamilyDescriptor& unit_of(const StrategyDescriptor& strategy) { return *find_unit(strategy.own_unit); }

MachineOptions tce_by(TableOwner owner, unsigned lg2 = kSmallLg2) {
  MachineOptions options;
  options.strategy.table_owner = owner;
  options.host.aperture_lg2 = lg2;
  return options;
}
MachineOptions gart_at(ApertureFlush flush) {
  MachineOptions options;
  options.strategy.flush_at = flush;
  options.host.aperture_lg2 = kSmallLg2;
  return options;
}
std::uint64_t hypercalls(Machine& m) { return m.strategy().counters().other_hypercalls(); }

// Kills: strategies whose unit nobody has, or whose unit is one of the families that are compared.
TEST(FlatTables, HaveUnitsOfTheirOwn) {
  for (const StrategyDescriptor* strategy : kStrategies) {
    if (strategy->own_unit.empty()) continue;
    ASSERT_NE(find_unit(strategy->own_unit), nullptr) << strategy->name;
    EXPECT_EQ(find_family(strategy->own_unit), nullptr) << strategy->name;
  }
  EXPECT_EQ(find_unit("vtd"), find_family("vtd"));
  EXPECT_EQ(find_unit("tcx"), nullptr);
}

class TceOf : public testing::TestWithParam<TableOwner> {};
INSTANTIATE_TEST_SUITE_P(Owners, TceOf, testing::Values(TableOwner::Hypervisor, TableOwner::Kernel),
                         [](const auto& owner) { return owner.param == TableOwner::Kernel ? "kernel" : "hypervisor"; });

// Kills: a wrong entry, index or byte order; an offset lost; pages of a scatterlist apart or swapped.
TEST_P(TceOf, BuffersAreReachedAtTheirFrames) {
  Machine m(unit_of(kTce), kTce, tce_by(GetParam()));
  Machine::Device& nic = m.attach(kNic);
  const std::vector<guest::ScatterEntry> list{{kBuffer + 0x10_B, 8_KiB - 0x10_B}, {Gpa(0x300000), 100_B}};
  const DmaMapping mapped = nic.api->map_scatterlist(m.cpu, list, kReadWrite).run();
  ASSERT_EQ(mapped.status, DmaStatus::Ok);
  EXPECT_EQ(m.dma(kNic, mapped.address, Access::Write), m.host_address(kBuffer + 0x10_B));
  EXPECT_EQ(m.dma(kNic, mapped.address + 4_KiB), m.host_address(kBuffer + 4_KiB + 0x10_B));
  EXPECT_EQ(m.dma(kNic, mapped.address + 8_KiB - 0x10_B), m.host_address(Gpa(0x300000)));
  EXPECT_EQ(m.dma(kNic, mapped.address + 12_KiB), std::nullopt) << "the neighbour";
  EXPECT_EQ(m.unit.reads(AccessKind::Stage2Entry), 4U) << "one read a translation";
  const DmaMapping out = m.map(nic, kBuffer, 4_KiB, DmaDirection::ToDevice);
  EXPECT_EQ(m.dma(kNic, out.address, Access::Write), std::nullopt);
  const DmaMapping in = m.map(nic, kBuffer, 4_KiB, DmaDirection::FromDevice);
  EXPECT_TRUE(m.dma(kNic, in.address, Access::Read)) << "reads are always allowed";
  EXPECT_EQ(m.warden.report().violations, 0U);
}

// Kills: one table for all buses; two tables for the devices of one; a second bus that lets the first one through.
TEST_P(TceOf, EachBusHasATableOfItsOwn) {
  Machine m(unit_of(kTce), kTce, tce_by(GetParam()));
  const RequesterId neighbour = RequesterId::bdf(kNic.bus(), 1, 0);
  ASSERT_EQ(m.xen.assign_device(m.cpu, *m.domain, {.requester = neighbour}).run(), xen::Errno::Ok);
  Machine::Device& nic = m.attach(kNic);
  Machine::Device& disk = m.attach(kDisk);
  Machine::Device& same = m.attach(neighbour);
  const DmaMapping a = m.map(nic, kBuffer);
  EXPECT_EQ(m.dma(kDisk, a.address), std::nullopt);
  const DmaMapping b = m.map(disk, kBuffer + 64_KiB);
  EXPECT_EQ(a.address, b.address) << "each bus has its own addresses";
  EXPECT_EQ(m.dma(kNic, a.address), m.host_address(kBuffer));
  EXPECT_EQ(m.dma(kDisk, b.address), m.host_address(kBuffer + 64_KiB));
  const DmaMapping c = m.map(same, kBuffer + 128_KiB);
  EXPECT_NE(c.address, a.address) << "one allocator a bus";
  EXPECT_EQ(m.dma(neighbour, c.address), m.host_address(kBuffer + 128_KiB));
  EXPECT_EQ(m.peek(kNic, c.address), m.host_address(kBuffer + 128_KiB)) << "isolation ends at the bus";
  EXPECT_EQ(m.warden.report().violations, 0U);
}

// A device of another owner on a bus in use. Kills: the table of one owner under the device of another.
TEST_P(TceOf, ABusInUseIsNotGivenToAnotherTable) {
  Machine m(unit_of(kTce), kTce, tce_by(GetParam()));
  Machine::Device& nic = m.attach(kNic);
  const DmaMapping mapped = m.map(nic, kBuffer);
  const RequesterId stranger = RequesterId::bdf(kNic.bus(), 2, 0);
  EXPECT_NE(m.xen.assign_device(m.cpu, *m.other, {.requester = stranger}).run(), xen::Errno::Ok);
  EXPECT_EQ(m.dma(kNic, mapped.address), m.host_address(kBuffer));
}

// Kills: growing beyond the window; a failure that keeps pages; the hole handed out.
TEST_P(TceOf, AFullWindowRefusesAndRecovers) {
  Machine m(unit_of(kTce), kTce, tce_by(GetParam()));
  Machine::Device& nic = m.attach(kNic);
  EXPECT_EQ(m.map(nic, Gpa(0x1000), 15_MiB).status, DmaStatus::Ok);
  const DmaMapping second = m.map(nic, Gpa(0x1000), 15_MiB);
  ASSERT_EQ(second.status, DmaStatus::Ok);
  EXPECT_EQ(m.map(nic, Gpa(0x1000), 2_MiB).status, DmaStatus::NoAddress);
  ASSERT_EQ(m.unmap(nic, second.address, 15_MiB), DmaStatus::Ok);
  EXPECT_EQ(m.map(nic, Gpa(0x1000), 2_MiB).status, DmaStatus::Ok);
  EXPECT_EQ(m.peek(kNic, Iova(0xa0000)), std::nullopt);
  EXPECT_EQ(m.map(nic, Gpa(Machine::kGuestMemory.value()), 4_KiB).status, DmaStatus::Rejected);
  EXPECT_EQ(m.map(nic, Gpa(~0ULL - 0xfff), 64_B).status, DmaStatus::Rejected);
}

// One entry by itself, 512 in a list; any number are taken away by one call, each with a kill of its own.
TEST(TceByHypervisor, CallsAndKillsAreCounted) {
  Machine m(unit_of(kTce), kTce, tce_by(TableOwner::Hypervisor));
  Machine::Device& nic = m.attach(kNic);
  const auto cost = [&](auto&& call) {
    const std::uint64_t before = hypercalls(m);
    m.unit.applied.clear();
    call();
    return std::pair(hypercalls(m) - before, m.unit.applied.size());
  };
  DmaMapping mapped;
  EXPECT_EQ(cost([&] { mapped = m.map(nic, kBuffer, 100_B); }), std::pair(1UL, std::size_t{1}));
  EXPECT_EQ(cost([&] { m.unmap(nic, mapped.address, 100_B); }), std::pair(1UL, std::size_t{1}));
  EXPECT_EQ(cost([&] { mapped = m.map(nic, kBuffer, 600 * kPageSize); }), std::pair(2UL, std::size_t{600}));
  EXPECT_EQ(cost([&] { m.unmap(nic, mapped.address, 600 * kPageSize); }), std::pair(1UL, std::size_t{600}));
  EXPECT_EQ(m.xen.references().total(), 0U);
  EXPECT_EQ(m.cpu.charged()[CostId::Hypercall], 5U);
}

// Random life with every cache warm. Kills: kills of another page, bus or moment.
TEST(TceByHypervisor, AfterAnUnmapTheDeviceFaults) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  Rng rng(seed, "tce");
  Machine m(unit_of(kTce), kTce, tce_by(TableOwner::Hypervisor));
  Machine::Device& nic = m.attach(kNic);
  struct Live {
    Iova address;
    Gpa buffer;
    Bytes length;
  };
  std::vector<Live> live;
  for (int step = 0; step < 300; ++step) {
    if (live.size() < 8 && rng.below(2) == 0) {
      const Gpa buffer(rng.below(1000) * 4096);
      const Bytes length((1 + rng.below(20)) * 4096);
      const DmaMapping mapped = m.map(nic, buffer, length);
      ASSERT_EQ(mapped.status, DmaStatus::Ok);
      live.push_back({mapped.address, buffer, length});
    } else if (!live.empty()) {
      const std::size_t victim = rng.below(live.size());
      const Live gone = live[victim];
      for (Bytes at; at < gone.length; at += kPageSize)
        ASSERT_EQ(m.dma(kNic, gone.address + at), m.host_address(gone.buffer + at));
      ASSERT_EQ(m.unmap(nic, gone.address, gone.length), DmaStatus::Ok);
      for (Bytes at; at < gone.length; at += kPageSize) ASSERT_EQ(m.dma(kNic, gone.address + at), std::nullopt);
      live.erase(live.begin() + static_cast<std::ptrdiff_t>(victim));
    }
  }
  EXPECT_EQ(m.warden.report().violations + m.warden.report().stale, 0U);
}

// The calls themselves, on a window of bus 3.
class TceCallsTest : public testing::Test {
 protected:
  TceCallsTest() : m_(unit_of(kTce), kTce, tce_by(TableOwner::Hypervisor)), calls_(m_.xen, *m_.domain) {
    m_.attach(kNic);
    calls_.add_window(3, *m_.domain->devices.at(kNic).context);
  }
  static std::uint64_t tce(Gpa page, Permissions permissions = kReadWrite) {
    std::uint64_t value = with<kTceValue, "page">(0, Gfn(page).value());
    value = with<kTceValue, "Read">(value, permissions.read ? 1 : 0);
    return with<kTceValue, "Write">(value, permissions.write ? 1 : 0);
  }
  void list(Gpa at, const std::vector<std::uint64_t>& tces) {
    for (std::size_t i = 0; i < tces.size(); ++i)
      ASSERT_TRUE(m_.domain->memory.write64(at + Bytes(8) * i, xen::abi::big_endian(tces[i])));
  }
  TceStatus put(std::uint64_t page, std::uint64_t value, std::uint32_t liobn = 3) {
    return calls_.put(m_.cpu, liobn, Dfn(page).address(), value).run();
  }
  std::uint64_t get(std::uint64_t page) {
    const auto got = calls_.get(m_.cpu, 3, Dfn(page).address()).run();
    EXPECT_EQ(got.status, TceStatus::Success);
    return got.tce;
  }
  bool reaches(std::uint64_t page, Access access = Access::Read) {
    return m_.peek(kNic, Dfn(page).address(), access).has_value();
  }
  static constexpr Gpa kList{0x40000};
  Machine m_;
  xen::TceCalls calls_;
};

// Behaviour 110. Kills: each limit one off or left out; a table changed by a call that is refused.
TEST_F(TceCallsTest, AListThatIsTooLongOrCrookedChangesNothing) {
  list(kList, std::vector<std::uint64_t>(600, tce(kBuffer)));
  const auto put_list = [&](std::uint64_t page, Gpa from, std::uint64_t count) {
    return calls_.put_indirect(m_.cpu, 3, Dfn(page).address(), from, count).run();
  };
  EXPECT_EQ(put_list(5, kList, 513), TceStatus::Parameter);
  EXPECT_EQ(put_list(5, kList + 8_B, 1), TceStatus::Parameter);
  EXPECT_EQ(put_list(8191, kList, 2), TceStatus::Parameter) << "beyond the window";
  EXPECT_EQ(put_list(1ULL << 51, kList, 1), TceStatus::Parameter);
  EXPECT_EQ(put_list(5, Gpa(Machine::kGuestMemory.value()), 1), TceStatus::TooHard);
  EXPECT_EQ(calls_.put_indirect(m_.cpu, 4, Iova(0x5000), kList, 1).run(), TceStatus::TooHard);
  EXPECT_FALSE(reaches(5));
  EXPECT_EQ(put_list(5, kList, 512), TceStatus::Success);
  EXPECT_TRUE(reaches(5) && reaches(516));
  EXPECT_FALSE(reaches(517));
  EXPECT_EQ(put_list(600, kList, 0), TceStatus::Success);
}

// Kills: entries written before all were looked at.
TEST_F(TceCallsTest, ABadEntryOfAListIsFoundBeforeAnyIsWritten) {
  for (const std::uint64_t bad : std::array<std::uint64_t, 3>{tce(kBuffer) | 4, tce(Gpa(Machine::kGuestMemory.value())),
                                                              tce(kBuffer) | 1ULL << 63}) {
    list(kList, {tce(kBuffer), tce(kBuffer), bad});
    EXPECT_NE(calls_.put_indirect(m_.cpu, 3, Dfn(5).address(), kList, 3).run(), TceStatus::Success);
    EXPECT_FALSE(reaches(5));
  }
  EXPECT_EQ(m_.xen.references().total(), 0U);
}

TEST_F(TceCallsTest, SingleEntriesAreReplacedReadAndStuffed) {
  EXPECT_EQ(get(5), 0U) << "never touched";
  EXPECT_EQ(put(5, tce(kBuffer, kReadOnly)), TceStatus::Success);
  EXPECT_EQ(get(5), tce(kBuffer, kReadOnly));
  EXPECT_TRUE(m_.dma(kNic, Dfn(5).address()));
  EXPECT_FALSE(reaches(5, Access::Write));
  EXPECT_EQ(put(5, tce(kBuffer + 4_KiB)), TceStatus::Success) << "over what is there";
  EXPECT_EQ(m_.unit.translate({.requester = kNic, .pasid = {}, .address = Dfn(5).address()}).index(), 0U);
  EXPECT_EQ(m_.peek(kNic, Dfn(5).address()), m_.host_address(kBuffer + 4_KiB));
  EXPECT_EQ(m_.xen.references().total(), 1U);
  EXPECT_EQ(put(5, tce(kBuffer, {.read = false, .write = false})), TceStatus::Success) << "without rights: unmapped";
  EXPECT_FALSE(reaches(5));
  EXPECT_EQ(put(5, 0), TceStatus::Success) << "again";
  EXPECT_EQ(put(5, tce(kBuffer), 9), TceStatus::TooHard);
  EXPECT_EQ(put(8192, tce(kBuffer)), TceStatus::Parameter);
  EXPECT_EQ(calls_.put(m_.cpu, 3, Iova(0x5008), tce(kBuffer)).run(), TceStatus::Parameter);
  EXPECT_EQ(put(6, tce(kBuffer)), TceStatus::Success);
  EXPECT_EQ(calls_.stuff(m_.cpu, 3, Dfn(5).address(), 1, 4).run(), TceStatus::Parameter);
  EXPECT_EQ(calls_.stuff(m_.cpu, 3, Dfn(8190).address(), 0, 3).run(), TceStatus::Parameter);
  EXPECT_TRUE(reaches(6));
  EXPECT_EQ(calls_.stuff(m_.cpu, 3, Dfn(5).address(), 0xdead000, 4).run(), TceStatus::Success)
      << "poison without rights";
  EXPECT_FALSE(reaches(6));
  EXPECT_EQ(m_.xen.references().total(), 0U);
}

// Behaviour 109. Kills: an unmap that flushes; a wrap that does not; a window that the warden does not see; stale DMA
// taken for a violation, or for nothing.
TEST(TceByKernel, AFreedEntryThatIsCachedIsUsableUntilTheAllocatorWraps) {
  Machine m(unit_of(kTce), kTce, tce_by(TableOwner::Kernel));
  Machine::Device& nic = m.attach(kNic);
  const std::uint64_t began = m.cpu.charged()[CostId::MmioWrite];
  const DmaMapping mapped = m.map(nic, kBuffer);
  EXPECT_TRUE(m.dma(kNic, mapped.address));
  m.pass(1_us);
  ASSERT_EQ(m.unmap(nic, mapped.address), DmaStatus::Ok);
  EXPECT_EQ(m.cpu.charged()[CostId::MmioWrite], began) << "neither call touches the unit";
  m.pass(1_us);
  EXPECT_EQ(m.dma(kNic, mapped.address), m.host_address(kBuffer)) << "still in the TCE cache";
  EXPECT_EQ(m.peek(kNic, mapped.address), std::nullopt) << "gone from the table";
  EXPECT_EQ(m.warden.report().stale, 1U);
  EXPECT_EQ(m.warden.report().exposures, 0U);
  for (int i = 0; i < 3; ++i) m.unmap(nic, m.map(nic, Gpa(0x1000), 15_MiB).address, 15_MiB);
  EXPECT_GT(m.cpu.charged()[CostId::MmioWrite], began);
  EXPECT_EQ(m.dma(kNic, mapped.address), std::nullopt);
  const WardenReport report = m.warden.report();
  EXPECT_EQ(report.violations, 0U);
  EXPECT_GE(report.exposures, 1U);
  EXPECT_GE(report.exposure_max, 1_us);
}

// What is freed ahead of the search is used again without a flush: the cache may then lead to the former buffer. Kills:
// an allocator that is safer than the kernel's; a warden that blames the wrong party.
TEST(TceByKernel, AnAddressFreedAheadOfTheSearchIsReusedUnflushed) {
  Machine m(unit_of(kTce), kTce, tce_by(TableOwner::Kernel));
  Machine::Device& nic = m.attach(kNic);
  m.unmap(nic, m.map(nic, kBuffer, 14_MiB).address, 14_MiB);
  const DmaMapping late = m.map(nic, kBuffer);
  m.unmap(nic, m.map(nic, Gpa(0x1000), 15_MiB).address, 15_MiB);
  EXPECT_EQ(m.map(nic, kBuffer, 2000 * kPageSize).status, DmaStatus::Ok) << "wraps";
  EXPECT_TRUE(m.dma(kNic, late.address)) << "cached after the flush";
  m.unmap(nic, late.address);
  DmaMapping again;
  for (int i = 0; i < 9000 && again.address != late.address; ++i) again = m.map(nic, kBuffer + 64_KiB);
  ASSERT_EQ(again.address, late.address);
  EXPECT_EQ(m.dma(kNic, again.address), m.host_address(kBuffer)) << "the former buffer";
  EXPECT_EQ(m.warden.report().stale, 1U);
  EXPECT_EQ(m.warden.report().violations, 0U);
}

// GART ----------------------------------------------------------------------------------------------------------------

std::optional<Hpa> target_of(Machine& m, Iova address, Access access = Access::Read) {
  TranslationRequest request{.requester = kNic, .pasid = {}, .address = address};
  request.access = access;
  const TranslationResponse response = m.unit.translate(request);
  const auto* translation = std::get_if<Translation>(&response);
  return translation == nullptr ? std::nullopt : std::optional(translation->address);
}

// Behaviour 112. Kills: a unit that refuses, or translates, what lies outside; an aperture that is a page too large.
TEST(Gart, OutsideTheApertureNothingIsTranslated) {
  Machine m(unit_of(kGart), kGart, gart_at(ApertureFlush::Map));
  Machine::Device& nic = m.attach(kNic);
  for (const std::uint64_t at : {0x0ULL, 0x1234567ULL, 0x7ffffffcULL, 0x82000000ULL, 0xfffffffcULL, 0x123456789cULL})
    EXPECT_EQ(target_of(m, Iova(at), Access::Write), Hpa(at)) << at;
  const DmaMapping mapped = m.map(nic, kBuffer + 0x10_B, 8_KiB, DmaDirection::ToDevice);
  ASSERT_EQ(mapped.status, DmaStatus::Ok);
  EXPECT_GE(mapped.address, Iova(0x80000000 + 32 * 4096)) << "the first pages are kept back";
  EXPECT_EQ(m.dma(kNic, mapped.address), m.host_address(kBuffer + 0x10_B));
  EXPECT_EQ(m.dma(kNic, mapped.address + 4_KiB, Access::Write), m.host_address(kBuffer + 4_KiB + 0x10_B))
      << "there are no rights";
  EXPECT_EQ(m.warden.report().violations, 0U);
}

// Kills: entries that fault when freed; a scratch page that is the guest's; frames of the guest in the aperture's
// place.
TEST(Gart, FreedEntriesLeadToAScratchPage) {
  Machine m(unit_of(kGart), kGart, gart_at(ApertureFlush::Map));
  Machine::Device& nic = m.attach(kNic);
  const DmaMapping mapped = m.map(nic, kBuffer);
  ASSERT_EQ(m.unmap(nic, mapped.address), DmaStatus::Ok);
  const auto scratch = target_of(m, mapped.address);
  ASSERT_TRUE(scratch);
  EXPECT_FALSE(m.is_guests(*scratch));
  EXPECT_EQ(target_of(m, Iova(0x81fff000)), scratch) << "as those that were never used";
}

// Kills: a flush per unmap; none per map; entries that are read again without one.
TEST(Gart, FlushesWithEveryMapOrWhenTheAllocatorWraps) {
  for (const ApertureFlush flush : {ApertureFlush::Map, ApertureFlush::Wrap}) {
    Machine m(unit_of(kGart), kGart, gart_at(flush));
    Machine::Device& nic = m.attach(kNic);
    m.unit.applied.clear();
    const DmaMapping mapped = m.map(nic, kBuffer);
    EXPECT_EQ(m.unit.applied.size(), flush == ApertureFlush::Map ? 1U : 0U);
    EXPECT_TRUE(m.dma(kNic, mapped.address));
    m.unmap(nic, mapped.address);
    EXPECT_EQ(m.unit.applied.size(), flush == ApertureFlush::Map ? 1U : 0U);
    EXPECT_TRUE(m.dma(kNic, mapped.address)) << "cached";
    EXPECT_EQ(m.warden.report().stale, 1U);
    m.map(nic, kBuffer + 64_KiB);
    EXPECT_EQ(m.unit.applied.size(), flush == ApertureFlush::Map ? 2U : 0U);
    const bool still_cached = target_of(m, mapped.address) == m.host_address(kBuffer);
    EXPECT_EQ(still_cached, flush == ApertureFlush::Wrap);
    if (flush == ApertureFlush::Map) continue;
    for (int i = 0; i < 3; ++i) m.unmap(nic, m.map(nic, kBuffer, 14_MiB).address, 14_MiB);
    EXPECT_EQ(m.unit.applied.size(), 1U);
    EXPECT_NE(target_of(m, mapped.address), m.host_address(kBuffer));
    EXPECT_EQ(m.warden.report().violations, 0U);
  }
}

// Kills: wraps over what is taken; an overflow that is not told.
TEST(Gart, AFullApertureRefusesAndRecovers) {
  Machine m(unit_of(kGart), kGart, gart_at(ApertureFlush::Wrap));
  Machine::Device& nic = m.attach(kNic);
  const DmaMapping first = m.map(nic, Gpa(0x1000), 15_MiB);
  EXPECT_EQ(m.map(nic, Gpa(0x1000), 15_MiB).status, DmaStatus::Ok);
  EXPECT_EQ(m.map(nic, Gpa(0x1000), 4_MiB).status, DmaStatus::NoAddress);
  EXPECT_EQ(m.unmap(nic, first.address, 15_MiB), DmaStatus::Ok);
  EXPECT_EQ(m.map(nic, Gpa(0x1000), 4_MiB).address, first.address + 0_B);
}

}  // namespace
}  // namespace iommu::strategy::test
