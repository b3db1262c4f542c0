// SPDX-License-Identifier: Apache-2.0
// The variants of pv_iommu: whatever goes to Xen together, in lists, in large pages or by an older interface, a device
// reaches what is mapped for it and nothing else; and each variant saves what it is there to save.
#include <gtest/gtest.h>

#include <random>

#include "sim/base/rng.hpp"
#include "sim/strategy/pv_space.hpp"
#include "sim/strategy/strategy_test_support.hpp"

namespace iommu::strategy::test {
namespace {

using guest::DmaApi;
using guest::DmaDirection;
using guest::DmaMapping;
using guest::DmaStatus;
using guest::ScatterEntry;

constexpr Gpa kBuffer{0x200000};

struct Variant {
  const char* name;
  MachineOptions options;
};
const std::array kVariants{
    Variant{"batch", {.strategy = {.batch = 5}}},
    Variant{"wide_batch", {.strategy = {.batch = 512}}},
    Variant{"scatter", {.strategy = {.scatter = true}}},
    Variant{"order", {.backing = xen::Backing::Contiguous, .page_lg2 = 21, .page_order = xen::PageOrder::Explicit}},
    Variant{"torn_order", {.page_order = xen::PageOrder::Explicit}},
    Variant{"order_batch", {.strategy = {.batch = 7}, .page_lg2 = 21, .page_order = xen::PageOrder::Explicit}},
    Variant{"undone", {.strategy = {.all_or_nothing = true}}},
    Variant{"undone_order",
            {.strategy = {.all_or_nothing = true}, .page_lg2 = 21, .page_order = xen::PageOrder::Explicit}},
    Variant{"v3", {.strategy = {.rfc_version = RfcVersion::V3}}},
};
using VariantPair = std::tuple<Variant, const FamilyDescriptor*>;
class PvVariants : public testing::TestWithParam<VariantPair> {
 protected:
  static const Variant& variant() { return std::get<0>(GetParam()); }
  static const FamilyDescriptor& family() { return *std::get<1>(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(All, PvVariants,
                         testing::Combine(testing::ValuesIn(kVariants),
                                          testing::ValuesIn(families().begin(), families().end())),
                         [](const testing::TestParamInfo<VariantPair>& info) {
                           return std::string(std::get<0>(info.param).name) + "_" +
                                  std::string(std::get<1>(info.param)->name);
                         });

// Random scatterlists, some with large pieces. Kills: an operation left in a queue after its sync; pieces in another
// order; a size that does not fit its addresses; references that leak.
TEST_P(PvVariants, StrictChurnOfScatterlistsAgreesWithTheOracle) {
  for (const std::uint64_t seed : {std::uint64_t{21}, std::uint64_t{std::random_device{}()}}) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Rng rng(seed, "variants");
    Machine m(family(), kPvIommu, variant().options);
    Machine::Device& nic = m.attach(kNic);
    struct Mapping {
      Iova address;
      std::vector<Gpa> pages;  // by page
    };
    std::vector<Mapping> live;
    for (int step = 0; step < 60; ++step) {
      if (rng.chance(0.6) || live.empty()) {
        std::vector<ScatterEntry> list;
        Mapping mapping;
        const std::uint64_t pieces = 1 + rng.below(12);
        for (std::uint64_t i = 0; i < pieces; ++i) {
          const bool large = rng.below(10) == 0;
          const std::uint64_t pages = large ? 512 : 1 + rng.below(5);
          const Gpa at(4096 * (large ? 512 * rng.below(3) : rng.below(1500)));
          list.push_back({at, kPageSize * pages});
          for (std::uint64_t p = 0; p < pages; ++p) mapping.pages.push_back(at + kPageSize * p);
        }
        const DmaMapping made = nic.api->map_scatterlist(m.cpu, list, kReadWrite).run();
        ASSERT_EQ(made.status, DmaStatus::Ok);
        mapping.address = made.address;
        live.push_back(std::move(mapping));
      } else {
        const auto victim = live.begin() + static_cast<std::ptrdiff_t>(rng.below(live.size()));
        ASSERT_EQ(m.unmap(nic, victim->address, kPageSize * victim->pages.size()), DmaStatus::Ok);
        const std::uint64_t page = rng.below(victim->pages.size());
        EXPECT_EQ(m.dma(kNic, victim->address + kPageSize * page), std::nullopt);
        live.erase(victim);
      }
      for (const Mapping& mapping : live) {
        const std::uint64_t page = rng.below(mapping.pages.size());
        ASSERT_EQ(m.dma(kNic, mapping.address + kPageSize * page), m.host_address(mapping.pages[page]));
      }
    }
    for (const Mapping& mapping : live) m.unmap(nic, mapping.address, kPageSize * mapping.pages.size());
    EXPECT_EQ(m.warden.report().violations, 0U);
    EXPECT_EQ(m.warden.report().stale, 0U);
    EXPECT_EQ(m.xen.references().total(), 0U);
    EXPECT_EQ(nic.api->counters().failures, 0U);
  }
}

// Kills: pieces behind the one that Xen refuses that stay mapped; a failure that becomes success, or somebody else's.
TEST_P(PvVariants, AScatterlistWithAPieceThatIsNoMemoryFailsWhole) {
  Machine m(family(), kPvIommu, variant().options);
  Machine::Device& nic = m.attach(kNic);
  const DmaMapping other = m.map(nic, kBuffer, 8_KiB);
  std::vector<ScatterEntry> list;
  for (std::uint64_t i = 0; i < 12; ++i) list.push_back({kBuffer + kPageSize * (2 * i), kPageSize});
  list[6].address = Gpa(Machine::kGuestMemory.value() + 0x5000);
  const std::uint64_t references = m.xen.references().total();
  const DmaMapping made = nic.api->map_scatterlist(m.cpu, list, kReadWrite).run();
  EXPECT_NE(made.status, DmaStatus::Ok);
  EXPECT_EQ(m.xen.references().total(), references);
  for (std::uint64_t page = 0xfffff; page > 0xfffff - 64; --page)
    if (Dfn(page).address() < other.address || Dfn(page).address() > other.address + 8_KiB)
      EXPECT_EQ(m.peek(kNic, Dfn(page).address()), std::nullopt) << page;
  EXPECT_EQ(m.dma(kNic, other.address), m.host_address(kBuffer));
  list[6].address = kBuffer;
  EXPECT_EQ(nic.api->map_scatterlist(m.cpu, list, kReadWrite).run().status, DmaStatus::Ok);
}

std::vector<ScatterEntry> scattered(std::uint64_t pages) {
  std::vector<ScatterEntry> list;
  for (std::uint64_t i = 0; i < pages; ++i) list.push_back({kBuffer + kPageSize * (2 * i), kPageSize});
  return list;
}
std::uint64_t calls_to_map(const MachineOptions& options, std::uint64_t pages) {
  Machine m(*families().front(), kPvIommu, options);
  Machine::Device& nic = m.attach(kNic);
  const std::uint64_t before = m.cpu.charged()[CostId::Hypercall];
  EXPECT_EQ(nic.api->map_scatterlist(m.cpu, scattered(pages), kReadWrite).run().status, DmaStatus::Ok);
  return m.cpu.charged()[CostId::Hypercall] - before;
}
// F19. Kills: a queue that is emptied too early, or a list that is cut.
TEST(PvBatch, AScatterlistTakesOneCallPerBatch) {
  EXPECT_EQ(calls_to_map({}, 16), 16U);
  EXPECT_EQ(calls_to_map({.strategy = {.batch = 4}}, 16), 4U);
  EXPECT_EQ(calls_to_map({.strategy = {.batch = 5}}, 16), 4U);
  EXPECT_EQ(calls_to_map({.strategy = {.batch = 64}}, 16), 1U);
  EXPECT_EQ(calls_to_map({.strategy = {.scatter = true}}, 16), 1U);
}

// F6. Kills: an unmap of what Xen has undone; pieces of the list before it that stay.
TEST(PvUndo, ARefusedMapNeedsNoUnmapOfItsOwn) {
  const auto calls_to_fail = [](const MachineOptions& options, std::vector<ScatterEntry> list) {
    Machine m(*families().front(), kPvIommu, options);
    Machine::Device& nic = m.attach(kNic);
    const std::uint64_t before = m.cpu.charged()[CostId::Hypercall];
    EXPECT_NE(nic.api->map_scatterlist(m.cpu, list, kReadWrite).run().status, DmaStatus::Ok);
    EXPECT_EQ(m.xen.references().total(), 0U);
    EXPECT_EQ(m.warden.report().violations, 0U);
    return m.cpu.charged()[CostId::Hypercall] - before;
  };
  const MachineOptions undone{.strategy = {.all_or_nothing = true}};
  const Gpa end(Machine::kGuestMemory.value());
  const std::vector<ScatterEntry> tail{{end - 8_KiB, 16_KiB}};  // its second half is nobody's memory
  EXPECT_EQ(calls_to_fail({}, tail), 2U);
  EXPECT_EQ(calls_to_fail(undone, tail), 1U);
  const std::vector<ScatterEntry> list{{kBuffer, 4_KiB}, {kBuffer + 16_KiB, 4_KiB}, {end, 4_KiB}};
  EXPECT_EQ(calls_to_fail({}, list), 4U);
  EXPECT_EQ(calls_to_fail(undone, list), 4U) << "two segments to take back";
}

// F2. Kills: a device outside that gets a context or no address space; calls for a device that maps nothing; a warden
// that is told the wrong meaning of its addresses.
TEST(PvBuses, DevicesOfOtherBusesStayInTheDefaultContext) {
  for (const FamilyDescriptor* family : families()) {
    Machine m(*family, kPvIommu, {.buses = {.first = kNic.bus(), .last = kNic.bus()}});
    Machine::Device& nic = m.attach(kNic);
    Machine::Device& disk = m.attach(kDisk);
    EXPECT_FALSE(nic.space->is_identity());
    EXPECT_TRUE(disk.space->is_identity());
    const std::uint64_t before = m.cpu.charged()[CostId::Hypercall];
    const DmaMapping mapped = m.map(disk, kBuffer, 8_KiB);
    EXPECT_EQ(mapped.address.value(), kBuffer.value());
    EXPECT_EQ(m.dma(kDisk, mapped.address), m.host_address(kBuffer));
    EXPECT_EQ(m.unmap(disk, mapped.address, 8_KiB), DmaStatus::Ok);
    EXPECT_EQ(m.cpu.charged()[CostId::Hypercall], before);
    const DmaMapping translated = m.map(nic, kBuffer, 8_KiB);
    EXPECT_EQ(m.dma(kNic, translated.address), m.host_address(kBuffer));
    EXPECT_EQ(m.unmap(nic, translated.address, 8_KiB), DmaStatus::Ok);
    EXPECT_EQ(m.dma(kNic, translated.address), std::nullopt);
    EXPECT_EQ(m.warden.report().violations, 0U);
  }
}

// Kills: a fence per buffer; a sync that forgets all but one; an address handed out before the fence.
TEST(PvBatch, ManyBuffersShareOneCallAndOneFence) {
  for (const Way& way : kTranslating)
    for (const FamilyDescriptor* family : families()) {
      Machine m(*family, way, {.strategy = {.batch = 16}});
      Machine::Device& nic = m.attach(kNic);
      std::uint64_t calls = m.cpu.charged()[CostId::Hypercall];
      const auto mapped = nic.api->map_many(m.cpu, scattered(8), DmaDirection::Bidirectional).run();
      std::vector<DmaApi::Mapped> mappings;
      for (std::uint64_t i = 0; i < 8; ++i) {
        ASSERT_EQ(mapped[i].status, DmaStatus::Ok);
        EXPECT_EQ(m.dma(kNic, mapped[i].address), m.host_address(kBuffer + kPageSize * (2 * i)));
        mappings.push_back({mapped[i].address, kPageSize});
      }
      if (way.descriptor == &kPvIommu) EXPECT_EQ(m.cpu.charged()[CostId::Hypercall] - calls, 1U);
      mappings.push_back({Iova(0x1000), kPageSize});  // never mapped
      calls = m.cpu.charged()[CostId::Hypercall];
      const std::uint64_t fences = m.unit.fences;
      const auto unmapped = nic.api->unmap_many(m.cpu, mappings).run();
      if (way.descriptor == &kPvIommu) {
        EXPECT_EQ(m.cpu.charged()[CostId::Hypercall] - calls, 1U);
        EXPECT_EQ(m.unit.fences - fences, 1U);
      }
      for (std::uint64_t i = 0; i < 8; ++i) {
        EXPECT_EQ(unmapped[i], DmaStatus::Ok);
        EXPECT_EQ(m.dma(kNic, mapped[i].address), std::nullopt);
      }
      EXPECT_EQ(unmapped[8], DmaStatus::Rejected);
      EXPECT_EQ(m.warden.report().violations, 0U);
      EXPECT_EQ(m.warden.report().stale, 0U);
    }
}

// F18. Kills: unmaps that wait for ever, a flush that does not see what another vCPU has queued, a range that is reused
// before its flush.
TEST(PvBatch, DeferredUnmapsGoWithTheNextCallAndEndWithTheFlush) {
  Machine m(*families().front(), kPvIommu,
            {.strategy = {.deferred_flush = true, .batch = 64}, .unmapping = guest::Unmapping::Lazy});
  Machine::Device& nic = m.attach(kNic);
  ImmediateCpu second(CpuId(1), [&](Hpa a) { return m.host.read32(a); });
  const DmaMapping a = m.map(nic, kBuffer);
  const DmaMapping b = nic.api->map(second, kBuffer + 64_KiB, 4_KiB, DmaDirection::Bidirectional).run();
  const std::uint64_t calls = m.cpu.charged()[CostId::Hypercall];
  ASSERT_EQ(m.unmap(nic, a.address), DmaStatus::Ok);
  ASSERT_EQ(nic.api->unmap(second, b.address, 4_KiB).run(), DmaStatus::Ok);
  EXPECT_EQ(m.cpu.charged()[CostId::Hypercall], calls) << "nothing is asked for yet";
  EXPECT_EQ(m.peek(kNic, a.address), m.host_address(kBuffer)) << "the hazard that deferring is";
  const DmaMapping c = m.map(nic, kBuffer + 128_KiB);
  EXPECT_EQ(m.cpu.charged()[CostId::Hypercall], calls + 1);
  EXPECT_EQ(m.peek(kNic, a.address), std::nullopt) << "the unmap went along";
  EXPECT_NE(c.address, a.address);
  nic.api->flush(m.cpu).run();
  EXPECT_EQ(m.dma(kNic, a.address), std::nullopt);
  EXPECT_EQ(m.dma(kNic, b.address), std::nullopt);
  EXPECT_EQ(m.dma(kNic, c.address), m.host_address(kBuffer + 128_KiB));
  EXPECT_EQ(m.xen.references().total(), 1U);
  EXPECT_EQ(m.warden.report().violations, 0U);
}

// F1, against a search through all sizes. Kills: pieces that overlap, leave gaps, are misaligned, or smaller than they
// could be.
TEST(PvPieces, TileARangeWithTheLargestPagesThatFit) {
  Rng rng(7);
  const std::uint32_t sizes = 1U << 12 | 1U << 21 | 1U << 30;
  for (int i = 0; i < 2000; ++i) {
    const std::uint64_t skew = rng.chance(0.5) ? 0 : rng.below(4096) << 12;
    const std::uint64_t iova = rng.below(1 << 20) << 12;
    const std::uint64_t address = iova + (skew << (rng.chance(0.5) ? 9 : 0));
    const std::uint64_t length = (1 + rng.below(rng.chance(0.3) ? 600000 : 3000)) << 12;
    for (std::uint64_t done = 0; done < length;) {
      const PagePiece piece = next_piece(iova, address, length, done, sizes);
      ASSERT_EQ(piece.offset, done);
      ASSERT_GT(piece.pages, 0U);
      const std::uint64_t bytes = std::uint64_t{piece.pages} << piece.page_lg2;
      ASSERT_LE(bytes, length - done);
      for (const unsigned lg2 : {12U, 21U, 30U}) {
        const std::uint64_t inside = (1ULL << lg2) - 1;
        if (lg2 <= piece.page_lg2)
          ASSERT_EQ(((iova + done) | (address + done)) & ((1ULL << piece.page_lg2) - 1), 0U);
        else  // no page of a larger size lies within the piece
          for (std::uint64_t at = (iova + done + inside) & ~inside; at + inside + 1 <= iova + done + bytes;
               at += inside + 1)
            ASSERT_NE((iova ^ address) & inside, 0U);
      }
      done += bytes;
    }
  }
}

// What large pages save. Kills: a driver that asks for single pages although it knows better.
TEST(PvPieces, ALargeBufferIsOneCallAndFewEntries) {
  Machine m(*families().front(), kPvIommu,
            {.backing = xen::Backing::Contiguous, .page_lg2 = 21, .page_order = xen::PageOrder::Explicit});
  Machine::Device& nic = m.attach(kNic);
  const std::uint64_t calls = m.cpu.charged()[CostId::Hypercall];
  const std::uint64_t written = m.cpu.charged()[CostId::TableWrite];
  ASSERT_EQ(m.map(nic, Gpa(0x400000), 4_MiB).status, DmaStatus::Ok);
  EXPECT_EQ(m.cpu.charged()[CostId::Hypercall] - calls, 1U);
  EXPECT_LT(m.cpu.charged()[CostId::TableWrite] - written, 8U);
}

// Behaviour 65 end to end. Kills: a call of more pages than v3 takes; a deferred flush that v3 does not have.
TEST(PvV3, ALargeBufferTakesACallForEach256Pages) {
  Machine m(*families().front(), kPvIommu,
            {.strategy = {.rfc_version = RfcVersion::V3}, .unmapping = guest::Unmapping::Lazy});
  Machine::Device& nic = m.attach(kNic);
  EXPECT_FALSE(nic.api->is_lazy());
  const std::uint64_t calls = m.cpu.charged()[CostId::Hypercall];
  const DmaMapping mapped = m.map(nic, kBuffer, 4_MiB);
  ASSERT_EQ(mapped.status, DmaStatus::Ok);
  EXPECT_EQ(m.cpu.charged()[CostId::Hypercall] - calls, 4U);
  EXPECT_EQ(m.unmap(nic, mapped.address, 4_MiB), DmaStatus::Ok);
  EXPECT_EQ(m.cpu.charged()[CostId::Hypercall] - calls, 8U);
  EXPECT_EQ(m.hypercall_v3.counters().of(xen::abi_v3::Subop::MapPages), 4U);
}

}  // namespace
}  // namespace iommu::strategy::test
