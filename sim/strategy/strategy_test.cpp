// SPDX-License-Identifier: Apache-2.0
// What every way of translation must give its guest: a device reaches what is mapped for it, in no moment anything
// else, and nothing after the fence.
#include "sim/strategy/strategy.hpp"

#include <gtest/gtest.h>

#include <random>
#include <set>

#include "sim/base/rng.hpp"
#include "sim/strategy/strategy_test_support.hpp"

namespace iommu::strategy::test {
namespace {

using guest::DmaDirection;
using guest::DmaMapping;
using guest::DmaStatus;

constexpr Gpa kBuffer{0x123000};

// Kills: a strategy listed twice, or under a name that scenarios cannot find.
TEST(Strategies, AreFoundByTheirOwnNameAndNoOther) {
  std::set<std::string_view> names;
  for (const StrategyDescriptor* strategy : kStrategies) {
    EXPECT_TRUE(names.insert(strategy->name).second);
    EXPECT_EQ(find_strategy(strategy->name), strategy);
    EXPECT_FALSE(strategy->description.empty());
  }
  EXPECT_EQ(find_strategy("nest"), nullptr);
  EXPECT_EQ(find_strategy(""), nullptr);
}

class AnyStrategy : public OnPairs {};
ON_STRATEGIES(AnyStrategy, kAllWays);
class Translating : public OnPairs {};
ON_STRATEGIES(Translating, kTranslating);
class WithTables : public OnPairs {};
ON_STRATEGIES(WithTables, kWithTables);
class Virtio : public OnPairs {};
ON_STRATEGIES(Virtio, (std::array{&kVirtioIommu}));

// Kills: a wrong frame, an offset lost, a page too many or too few.
TEST_P(AnyStrategy, AMappedBufferIsReachedAtItsFrames) {
  Machine m(family(), strategy(), plain());
  Machine::Device& nic = m.attach(kNic);
  const DmaMapping mapped = m.map(nic, kBuffer + 0x10_B, 12_KiB);
  ASSERT_EQ(mapped.status, DmaStatus::Ok);
  for (const Bytes offset : {0_B, 0xfec_B, 0xff0_B, 8_KiB, 12_KiB - 4_B}) {
    const auto expected = m.target(mapped.address + offset, kBuffer + 0x10_B + offset);
    EXPECT_EQ(m.dma(kNic, mapped.address + offset, Access::Read), expected);
    EXPECT_EQ(m.dma(kNic, mapped.address + offset, Access::Write), expected);
  }
  EXPECT_EQ(m.warden.report().violations, 0U);
  EXPECT_EQ(m.warden.report().checked, 10U);
}

// Kills: a device that reaches memory of another guest or of Xen.
TEST_P(AnyStrategy, NothingOutsideTheGuestIsReached) {
  Machine m(family(), strategy());
  m.attach(kNic);
  for (const std::uint64_t page : {0x0ULL, 0x800ULL, 0xfffULL, 0x1000ULL, 0x1001ULL, 0x3000ULL, 0xffffffffULL}) {
    const auto reached = m.dma(kNic, Dfn(page).address());
    if ((is(kPassthrough) || is(kSwiotlb)) && page < Machine::kGuestMemory.value() >> kPageLg2)
      EXPECT_EQ(reached, m.host_address(Gfn(page).address()));
    else
      EXPECT_EQ(reached, std::nullopt) << page;
  }
}

// Kills: attaching what Xen did not assign.
TEST_P(AnyStrategy, ADeviceOfSomebodyElseIsRefused) {
  Machine m(family(), strategy());
  ASSERT_EQ(m.start(), xen::Errno::Ok);
  EXPECT_EQ(m.strategy().attach(m.cpu, RequesterId::bdf(9, 0, 0)).run(), nullptr);
}

// Kills: pages beyond the buffer's; permissions that are not the direction's.
TEST_P(Translating, NeighboursAndOtherDirectionsFault) {
  Machine m(family(), strategy());
  Machine::Device& nic = m.attach(kNic);
  const DmaMapping in = m.map(nic, kBuffer, 8_KiB, DmaDirection::FromDevice);
  const DmaMapping out = m.map(nic, kBuffer + 64_KiB, 8_KiB, DmaDirection::ToDevice);
  EXPECT_EQ(m.dma(kNic, in.address, Access::Write), m.host_address(kBuffer));
  EXPECT_EQ(m.dma(kNic, in.address + 8_KiB, Access::Write), std::nullopt);
  EXPECT_EQ(m.dma(kNic, out.address, Access::Read), m.host_address(kBuffer + 64_KiB));
  EXPECT_EQ(m.dma(kNic, out.address, Access::Write), std::nullopt);
  EXPECT_EQ(m.dma(kNic, out.address - 4_KiB, Access::Read), std::nullopt);
  EXPECT_EQ(m.warden.report().violations, 0U);
}

// With every cache warm. Kills: a missing flush, one of the wrong tag or range, one before the tables change.
TEST_P(Translating, AfterAStrictUnmapTheDeviceFaults) {
  Machine m(family(), strategy());
  Machine::Device& nic = m.attach(kNic);
  const DmaMapping kept = m.map(nic, kBuffer, 4_KiB);
  for (const Bytes length : {4_KiB, 12_KiB, 2_MiB + 4_KiB}) {
    const DmaMapping mapped = m.map(nic, kBuffer, length);
    ASSERT_EQ(mapped.status, DmaStatus::Ok);
    for (Bytes offset; offset < length; offset += 4_KiB) EXPECT_TRUE(m.dma(kNic, mapped.address + offset));
    EXPECT_EQ(m.unmap(nic, mapped.address, length), DmaStatus::Ok);
    for (Bytes offset; offset < length; offset += 4_KiB)
      EXPECT_EQ(m.dma(kNic, mapped.address + offset), std::nullopt) << offset.value();
  }
  EXPECT_EQ(m.dma(kNic, kept.address), m.host_address(kBuffer)) << "the neighbour was not unmapped";
  EXPECT_EQ(m.warden.report().violations, 0U);
  EXPECT_EQ(m.warden.report().stale, 0U);
}

// Kills: address spaces shared between devices; a flush that takes another device's tag.
TEST_P(Translating, TwoDevicesAreApart) {
  Machine m(family(), strategy());
  Machine::Device& nic = m.attach(kNic);
  Machine::Device& disk = m.attach(kDisk);
  const DmaMapping a = m.map(nic, kBuffer);
  const DmaMapping b = m.map(disk, kBuffer + 64_KiB);
  ASSERT_EQ(a.address, b.address) << "each has an allocator of its own";
  EXPECT_EQ(m.dma(kNic, a.address), m.host_address(kBuffer));
  EXPECT_EQ(m.dma(kDisk, b.address), m.host_address(kBuffer + 64_KiB));
  m.unmap(nic, a.address);
  EXPECT_EQ(m.dma(kNic, a.address), std::nullopt);
  EXPECT_EQ(m.dma(kDisk, b.address), m.host_address(kBuffer + 64_KiB));
  m.unmap(disk, b.address);
  EXPECT_EQ(m.dma(kDisk, b.address), std::nullopt);
  EXPECT_EQ(m.warden.report().violations, 0U);
}

// Random life of two devices against an oracle, caches always warm. Strict: what is not mapped faults, always. Kills:
// flushes that are too narrow for walk caches, tables freed too early, wrong pieces of scatterlists.
TEST_P(Translating, StrictChurnAgreesWithTheOracle) {
  for (const std::uint64_t seed : {std::uint64_t{3}, std::uint64_t{std::random_device{}()}}) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Rng rng(seed, "churn");
    Machine m(family(), strategy());
    struct Mapping {
      Machine::Device* device = nullptr;
      Iova address;
      Bytes length;
      Gpa buffer;
    };
    std::vector<Machine::Device*> devices{&m.attach(kNic), &m.attach(kDisk)};
    std::vector<Mapping> live;
    std::vector<Mapping> dead;
    const auto probe = [&](const Mapping& mapping, bool is_live) {
      const Bytes offset(rng.below(mapping.length.value()) & ~3ULL);
      const auto reached = m.dma(mapping.device->requester, mapping.address.aligned_down(2) + offset, Access::Write);
      const auto expected = m.host_address(mapping.buffer.aligned_down(2) + offset);
      if (is_live)
        ASSERT_EQ(reached, expected);
      else
        ASSERT_EQ(reached, std::nullopt);
    };
    for (int step = 0; step < 250; ++step) {
      const auto choice = rng.below(10);
      if (choice < 4 || live.empty()) {
        Mapping mapping{devices[rng.below(2)],
                        {},
                        Bytes(4 + rng.below(choice == 0 ? 600 * 4096 : 20000)),
                        Gpa(rng.below(5_MiB / 1_B) & ~3ULL)};
        const DmaMapping made = m.map(*mapping.device, mapping.buffer, mapping.length);
        ASSERT_EQ(made.status, DmaStatus::Ok);
        mapping.address = made.address;
        std::erase_if(dead, [&](const Mapping& d) {  // these addresses have another meaning now
          return d.device == mapping.device && d.address < made.address + mapping.length + 8_KiB &&
                 made.address < d.address + d.length + 8_KiB;
        });
        live.push_back(mapping);
      } else if (choice < 7) {
        const std::size_t victim = rng.below(live.size());
        ASSERT_EQ(m.unmap(*live[victim].device, live[victim].address, live[victim].length), DmaStatus::Ok);
        dead.push_back(live[victim]);
        live.erase(live.begin() + static_cast<std::ptrdiff_t>(victim));
      }
      for (int i = 0; i < 3; ++i) {
        if (!live.empty()) probe(live[rng.below(live.size())], true);
        if (!dead.empty()) probe(dead[rng.below(dead.size())], false);
      }
      if (HasFatalFailure()) FAIL() << "step " << step;
    }
    const WardenReport report = m.warden.report();
    EXPECT_EQ(report.violations, 0U) << report.first_violation->describe();
    EXPECT_EQ(report.stale, 0U);
    EXPECT_GT(report.checked, 500U);
    for (const Mapping& mapping : live) m.unmap(*mapping.device, mapping.address, mapping.length);
  }
}

// The same under lazy unmapping: between unmap and flush the device may reach the old frame or nothing, and live
// mappings always work. Kills: reuse before the flush; a flush that leaves something; tables emptied but not flushed
// that hide what is mapped into them next.
TEST_P(Translating, LazyChurnIsStaleAtMost) {
  for (const std::uint64_t seed : {std::uint64_t{4}, std::uint64_t{std::random_device{}()}}) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Rng rng(seed, "lazy");
    Machine m(family(), strategy(), lazy(20));
    Machine::Device& nic = m.attach(kNic);
    struct Mapping {
      Iova address;
      Bytes length;
      Gpa buffer;
    };
    std::vector<Mapping> live;
    std::vector<Mapping> waiting;
    for (int step = 0; step < 600; ++step) {
      if (rng.below(5) < 3 || live.empty()) {
        Mapping mapping{{}, Bytes(4096 * (1 + rng.below(rng.below(8) == 0 ? 520 : 4))), Gpa(4096 * rng.below(1400))};
        const DmaMapping made = m.map(nic, mapping.buffer, mapping.length);
        ASSERT_EQ(made.status, DmaStatus::Ok);
        mapping.address = made.address;
        live.push_back(mapping);
      } else {
        const std::size_t victim = rng.below(live.size());
        const std::uint64_t flushed = nic.api->counters().flushes_by_full_queue;
        ASSERT_EQ(m.unmap(nic, live[victim].address, live[victim].length), DmaStatus::Ok);
        if (nic.api->counters().flushes_by_full_queue != flushed) waiting.clear();
        waiting.push_back(live[victim]);
        live.erase(live.begin() + static_cast<std::ptrdiff_t>(victim));
      }
      for (int i = 0; i < 2; ++i) {
        if (!live.empty()) {
          const Mapping& at = live[rng.below(live.size())];
          const Bytes offset(4096 * rng.below(at.length.value() / 4096));
          ASSERT_EQ(m.dma(kNic, at.address + offset), m.host_address(at.buffer + offset)) << "step " << step;
        }
        if (waiting.empty()) continue;
        const Mapping& at = waiting[rng.below(waiting.size())];
        const auto reached = m.dma(kNic, at.address);
        if (reached) ASSERT_EQ(reached, m.host_address(at.buffer)) << "step " << step;
      }
    }
    EXPECT_GT(m.warden.report().stale, 0U) << "the hazard is modelled";
    nic.api->flush(m.cpu).run();
    for (const Mapping& at : waiting) ASSERT_EQ(m.dma(kNic, at.address), std::nullopt);
    const WardenReport report = m.warden.report();
    EXPECT_EQ(report.violations, 0U) << report.first_violation->describe();
  }
}

// Intermediate states -------------------------------------------------------------------------------------------------

// Every write of guest and Xen is observed. Kills: tables linked before they are complete; an entry written in halves;
// a neighbour disturbed.
TEST_P(Translating, MapAndUnmapShowNoIntermediateState) {
  Machine m(family(), strategy());
  Machine::Device& nic = m.attach(kNic);
  constexpr std::uint64_t kAt = 0x40000000;
  ASSERT_EQ(m.map_at(nic, kAt - 0x1000, kBuffer, 4_KiB), DmaStatus::Ok);  // in another table than what follows
  const auto kept = m.host_address(kBuffer);
  const auto frame = [&](std::uint64_t i) { return m.host_address(Gpa(0x200000 + i * 0x1000)); };
  {
    StateWatch watch(m, kNic);
    watch.expect(Iova(kAt - 0x1000), {kept}, StateWatch::Fault::Never);
    watch.expect(Iova(kAt - 0x2000), {});
    for (const std::uint64_t i : {0U, 1U, 511U, 512U, 513U}) watch.expect(Iova(kAt + i * 0x1000), {frame(i)});
    watch.expect(Iova(kAt + 514 * 0x1000), {});
    ASSERT_EQ(m.map_at(nic, kAt, Gpa(0x200000), 514 * kPageSize), DmaStatus::Ok);
    ASSERT_EQ(m.unmap_at(nic, kAt, 514 * kPageSize), DmaStatus::Ok);
    EXPECT_GT(watch.states(), is(kPvIommu) ? 500U : 10U) << "guests use large pages, Xen's contexts do not";
  }
  EXPECT_EQ(m.peek(kNic, Iova(kAt)), std::nullopt);
}

// Contiguous memory at aligned addresses becomes a large page where a guest's driver builds the tables; unmapping a
// part splits it. Kills: a split that shows a hole; one that keeps the part.
TEST_P(WithTables, APartOfALargePageIsUnmappedWithoutDisturbingTheRest) {
  Machine m(family(), strategy(), {.backing = xen::Backing::Contiguous, .page_lg2 = 21});
  Machine::Device& nic = m.attach(kNic);
  constexpr std::uint64_t kAt = 0x40000000;
  ASSERT_EQ(m.map_at(nic, kAt, Gpa(0x200000), 2_MiB), DmaStatus::Ok);
  const auto frame = [&](std::uint64_t i) { return m.host_address(Gpa(0x200000 + i * 0x1000)); };
  for (const std::uint64_t i : {0U, 100U, 101U, 511U}) EXPECT_EQ(m.dma(kNic, Iova(kAt + i * 0x1000)), frame(i));
  {
    StateWatch watch(m, kNic);
    // Emulated: Xen replaces its large page by what is left, so others may fault for a moment, but never lead
    // elsewhere.
    const auto others = is(kEmulatedViommu) ? StateWatch::Fault::Allowed : StateWatch::Fault::Never;
    for (const std::uint64_t i : {0U, 99U, 101U, 511U}) watch.expect(Iova(kAt + i * 0x1000), {frame(i)}, others);
    watch.expect(Iova(kAt + 100 * 0x1000), {frame(100)});
    ASSERT_EQ(m.unmap_at(nic, kAt + 100 * 0x1000, 4_KiB), DmaStatus::Ok);
  }
  EXPECT_EQ(m.dma(kNic, Iova(kAt + 100 * 0x1000)), std::nullopt);
  for (const std::uint64_t i : {0U, 99U, 101U, 511U}) EXPECT_EQ(m.dma(kNic, Iova(kAt + i * 0x1000)), frame(i));
  EXPECT_EQ(m.warden.report().violations, 0U);
}

// Before: guest-physical addresses. After: nothing. Kills: a device that passes through another context on its way, or
// keeps its old one in a cache.
TEST_P(Translating, AttachingLeadsFromTheGuestsMemoryToNothing) {
  Machine m(family(), strategy());
  const Iova low(0x5000);
  const auto identity = m.host_address(Gpa(0x5000));
  ASSERT_TRUE(identity);
  EXPECT_EQ(m.dma(kNic, low), identity);
  {
    StateWatch watch(m, kNic);
    watch.expect(low, {identity});
    ASSERT_EQ(m.start(), xen::Errno::Ok);
    m.attach(kNic);
  }
  EXPECT_EQ(m.peek(kNic, low), std::nullopt);
  EXPECT_EQ(m.dma(kNic, low), std::nullopt) << "the old context is still cached";
}

// Failure
// ---------------------------------------------------------------------------------------------------------------

// The guest maps what is not its memory. Kills: trusting the guest's addresses.
TEST_P(Translating, MemoryThatIsNotTheGuestsIsNeverReached) {
  Machine m(family(), strategy());
  Machine::Device& nic = m.attach(kNic);
  const Gpa end(Machine::kGuestMemory.value());
  std::vector<guest::ScatterEntry> list{{kBuffer, 8_KiB}, {end - 4_KiB, 8_KiB}};
  const DmaMapping mapped = nic.api->map_scatterlist(m.cpu, list, kReadWrite).run();
  if (is(kPvIommu)) {
    EXPECT_EQ(mapped.status, DmaStatus::Rejected) << "Xen checks when it maps";
    for (std::uint64_t page = 0xffff0; page < 0x100000; ++page)
      EXPECT_EQ(m.dma(kNic, Dfn(page).address()), std::nullopt);
    EXPECT_EQ(m.map(nic, kBuffer, 16_KiB).status, DmaStatus::Ok);
  } else if (is(kVirtioIommu) && !binds_tables()) {
    ASSERT_EQ(mapped.status, DmaStatus::Ok) << "nobody looks at the answer of a request that was queued";
    EXPECT_EQ(m.dma(kNic, mapped.address + 4_KiB), m.host_address(kBuffer + 4_KiB));
    EXPECT_EQ(m.dma(kNic, mapped.address + 8_KiB), std::nullopt) << "the device refuses the whole piece";
    EXPECT_EQ(m.unmap(nic, mapped.address, 16_KiB), DmaStatus::Ok);
    EXPECT_EQ(m.dma(kNic, mapped.address), std::nullopt);
  } else {
    ASSERT_EQ(mapped.status, DmaStatus::Ok) << "the guest may write into its tables what it likes";
    EXPECT_EQ(m.dma(kNic, mapped.address + 8_KiB), m.host_address(end - 4_KiB));
    EXPECT_EQ(m.dma(kNic, mapped.address + 12_KiB), std::nullopt);
    EXPECT_EQ(m.unmap(nic, mapped.address, 16_KiB), DmaStatus::Ok);
  }
  EXPECT_EQ(m.warden.report().violations, 0U);
}

// One more kernel page each time, from too few to enough. Kills: a partial map that stays; a crash on the way; pages
// that a failure loses.
TEST_P(WithTables, ShortOfMemoryAMapFailsAndLeavesNothing) {
  std::uint64_t failures = 0;
  bool succeeded = false;
  for (std::uint64_t spare = 0; !succeeded; ++spare) {
    ASSERT_LT(spare, 64U);
    // PV: Xen's pool for the domain, 16 pages. Others: the kernel's pages.
    Machine m(family(), strategy(), {.strategy = {.arena_order = 4}});
    Machine::Device& nic = m.attach(kNic);
    std::vector<Gpa> hoard;
    if (is(kPvIommu)) {
      // A table per mapping, 2 MiB apart; the root and two levels are there after the first.
      for (std::uint64_t i = 0; spare < 15 && i < 15 - spare; ++i)
        static_cast<void>(m.map_at(nic, 0x80000000 + i * (2_MiB).value(), kBuffer, 4_KiB));
    } else {
      while (const auto page = m.pages.allocate()) hoard.push_back(*page);
      for (std::uint64_t i = 0; i < spare; ++i) {
        ASSERT_TRUE(m.pages.release(hoard.back()));
        hoard.pop_back();
      }
    }
    constexpr std::uint64_t kAt = 0x123400000000 - 0x1000;  // two tables of every level
    const DmaStatus status = m.map_at(nic, kAt, kBuffer, 8_KiB);
    succeeded = status == DmaStatus::Ok;
    if (succeeded) {
      EXPECT_EQ(m.dma(kNic, Iova(kAt + 0x1000)), m.host_address(kBuffer + 4_KiB));
      continue;
    }
    ++failures;
    EXPECT_EQ(status, DmaStatus::NoMemory);
    for (const std::uint64_t at : {kAt, kAt + 0x1000}) {
      EXPECT_EQ(m.peek(kNic, Iova(at)), std::nullopt);
      EXPECT_EQ(m.dma(kNic, Iova(at)), std::nullopt);
    }
    for (const Gpa page : hoard) ASSERT_TRUE(m.pages.release(page));
    if (is(kPvIommu)) continue;
    EXPECT_EQ(m.map_at(nic, kAt, kBuffer, 8_KiB), DmaStatus::Ok) << "with memory again";
    EXPECT_EQ(m.dma(kNic, Iova(kAt)), m.host_address(kBuffer));
  }
  EXPECT_GT(failures, 2U);
}

// [VIRTIO 1.3 §5.13.6.10] Kills: a part of a mapping that is unmapped, or forgotten; the whole of it unmapped for a
// part.
TEST_P(Virtio, APartOfAMappingCannotBeUnmapped) {
  Machine m(family(), strategy());
  Machine::Device& nic = m.attach(kNic);
  constexpr std::uint64_t kAt = 0x40000000;
  ASSERT_EQ(m.map_at(nic, kAt, Gpa(0x200000), 64_KiB), DmaStatus::Ok);
  EXPECT_EQ(m.unmap_at(nic, kAt + 0x4000, 4_KiB), DmaStatus::Rejected);
  for (std::uint64_t offset = 0; offset < 0x10000; offset += 0x1000)
    EXPECT_EQ(m.dma(kNic, Iova(kAt + offset)), m.host_address(Gpa(0x200000 + offset)));
}

// Host memory that a MAP needs is the host's. Kills: a refusal that the driver sees although it does not look; a
// refused MAP that the device serves in part.
TEST_P(Virtio, ShortOfHostMemoryAMapSucceedsAndTheDeviceFaults) {
  Machine m(family(), strategy());
  Machine::Device& nic = m.attach(kNic);
  std::vector<Mfn> hoard;
  while (const auto frame = m.xen.frames().allocate()) hoard.push_back(*frame);
  constexpr std::uint64_t kAt = 0x123400000000 - 0x1000;
  EXPECT_EQ(m.map_at(nic, kAt, kBuffer, 8_KiB), DmaStatus::Ok);
  EXPECT_EQ(m.strategy().counters().virtio->refused, 1U);
  for (const std::uint64_t at : {kAt, kAt + 0x1000}) EXPECT_EQ(m.dma(kNic, Iova(at)), std::nullopt);
  EXPECT_EQ(m.xen.references().total(), 0U);
  EXPECT_EQ(m.unmap_at(nic, kAt, 8_KiB), DmaStatus::Ok);
  for (const Mfn frame : hoard) ASSERT_TRUE(m.xen.frames().release(frame));
  EXPECT_EQ(m.map_at(nic, kAt, kBuffer, 8_KiB), DmaStatus::Ok);
  EXPECT_EQ(m.dma(kNic, Iova(kAt)), m.host_address(kBuffer));
}

// The RFC's second scenario. Kills: tables, commands or references for a device that no unit knows; a translation that
// forgets the mapping's rights, or outlives it; a fault that nobody reports.
TEST_P(Virtio, AnEmulatedDeviceIsTranslatedBySoftwareAlone) {
  for (const xen::TrapTarget target : {xen::TrapTarget::Xen, xen::TrapTarget::DeviceModel}) {
    Machine m(family(), strategy(), {.strategy = {.trap_target = target, .endpoints = xen::EndpointKind::Virtual}});
    const std::uint64_t tables = m.xen.table_bytes();
    Machine::Device& nic = m.attach(kNic);
    SoftwareTranslation* software = m.strategy().software_translation();
    ASSERT_NE(software, nullptr);
    const std::uint64_t commands = m.unit.commands;
    const DmaMapping mapped = m.map(nic, kBuffer, 8_KiB, DmaDirection::ToDevice);
    const auto leads = [&](Iova address, Access access) {
      return software->translate(m.cpu, kNic, address, access).run();
    };
    const CostCounts before = m.cpu.charged();
    EXPECT_EQ(leads(mapped.address + 0x1010_B, Access::Read), m.host_address(kBuffer + 0x1010_B));
    EXPECT_EQ(m.cpu.charged()[CostId::SoftwareTranslate] - before[CostId::SoftwareTranslate], 1U);
    EXPECT_EQ(m.cpu.charged()[CostId::BackendCall] - before[CostId::BackendCall],
              target == xen::TrapTarget::Xen ? 1U : 0U)
        << "Xen's mappings are asked for, the device model's own are at hand";
    EXPECT_EQ(leads(mapped.address, Access::Write), std::nullopt);
    EXPECT_EQ(leads(mapped.address + 8_KiB, Access::Read), std::nullopt);
    ASSERT_EQ(m.unmap(nic, mapped.address, 8_KiB), DmaStatus::Ok);
    EXPECT_EQ(leads(mapped.address, Access::Read), std::nullopt);
    EXPECT_EQ(m.strategy().counters().virtio->events, 3U);
    EXPECT_EQ(m.unit.commands, commands);
    EXPECT_EQ(m.xen.references().total(), 0U);
    EXPECT_LE(m.xen.table_bytes(), tables + 4096) << "the empty context that blocks";
  }
  Machine m(family(), strategy());
  EXPECT_EQ(m.strategy().software_translation(), nullptr) << "a unit translates for assigned devices";
}

// A kernel that cannot even start. Kills: a crash, or success without tables.
TEST_P(Translating, AKernelWithoutMemoryDoesNotStart) {
  for (std::uint64_t pages = 0; pages < 12; ++pages) {
    Machine m(family(), strategy(), {.kernel_pages = pages});
    if (m.start() != xen::Errno::Ok) continue;
    const auto* space = m.strategy().attach(m.cpu, kNic).run();
    if (pages == 0) EXPECT_EQ(space, nullptr);
    // Refused or not, it must not reach what only passes through.
    if (space != nullptr) EXPECT_EQ(m.dma(kNic, Iova(0x5000)), std::nullopt);
  }
}

}  // namespace
}  // namespace iommu::strategy::test
