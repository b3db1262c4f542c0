// SPDX-License-Identifier: Apache-2.0
// Nested translation: the first stage's tables and its output go through the second stage.
#include <gtest/gtest.h>

#include <algorithm>
#include <tuple>

#include "models/vtd/core_test_support.hpp"
#include "sim/base/rng.hpp"

namespace iommu::vtd::test {
namespace {

constexpr unsigned span_of(unsigned level) { return 12 + 9 * level; }
constexpr std::uint64_t kAccessed1 = mask_of<kFirstStagePage, "A">, kDirty2 = mask_of<kSecondStagePage, "D">;

class VtdNested : public testing::TestWithParam<std::tuple<unsigned, unsigned>> {
 protected:
  unsigned levels1_ = std::get<0>(GetParam()), levels2_ = std::get<1>(GetParam());
  // Reads of a cold walk: a second-stage walk for each first-stage entry, that entry, and one more walk for the output.
  [[nodiscard]] unsigned cold_reads(unsigned reads1, unsigned reads2) const { return reads1 * (levels2_ + 1) + reads2; }
};

// Four by four levels: 24 reads. Kills: a first-stage pointer taken for host-physical, a walk left out or done twice.
TEST_P(VtdNested, AColdWalkReadsWhatTheGeometrySays) {
  for (const Level leaf1 : {Level{0}, Level{1}, Level{2}}) {
    for (const Level leaf2 : {Level{0}, Level{1}, Level{2}}) {
      Bench bench(Setting::Nested, {.levels1 = levels1_, .levels2 = levels2_, .leaf1 = leaf1, .leaf2 = leaf2});
      ASSERT_EQ(row_of(bench.translate(Bench::kInput, Access::Write)), "translated");  // sets all marks
      bench.port.reset_counts();
      const TranslationResponse response = bench.translate();
      ASSERT_EQ(row_of(response), "translated");
      const unsigned reads1 = levels1_ - leaf1, reads2 = levels2_ - leaf2;
      EXPECT_EQ(bench.port.count(AccessKind::Stage1Entry), reads1);
      EXPECT_EQ(bench.port.count(AccessKind::Stage1Entry) + bench.port.count(AccessKind::Stage2Entry),
                cold_reads(reads1, reads2));
      EXPECT_EQ(std::get<Translation>(response).page_lg2, span_of(std::min(leaf1, leaf2)));
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Geometries, VtdNested, testing::Combine(testing::Values(4U, 5U), testing::Values(3U, 4U, 5U)));

TEST(VtdNestedWalk, FourByFourLevelsAreTwentyFourReads) {
  Bench bench(Setting::Nested);
  ASSERT_EQ(row_of(bench.translate(Bench::kInput, Access::Write)), "translated");
  bench.port.reset_counts();
  ASSERT_EQ(row_of(bench.translate()), "translated");
  EXPECT_EQ(bench.port.accesses - bench.port.count(AccessKind::DeviceTable), 24U);
}

// The two stages as maps, applied one after the other. Kills: an offset of one stage applied to the other's page size,
// rights of one stage only.
TEST(VtdNestedWalk, IsTheCompositionOfBothStages) {
  constexpr std::uint64_t kSeed = 424242;
  Rng rng(kSeed);
  for (int round = 0; round < 150; ++round) {
    const Shape shape{.levels1 = 4 + static_cast<unsigned>(rng.below(2)),
                      .levels2 = 4,
                      .leaf1 = static_cast<Level>(rng.below(3)),
                      .leaf2 = static_cast<Level>(rng.below(3))};
    const std::uint64_t input = rng.below(1ULL << 47);
    Bench bench(Setting::Nested, shape, Bench::full(), input);
    Permissions rights[2]{{.read = true, .write = rng.chance(0.5)},
                          {.read = rng.chance(0.8), .write = rng.chance(0.6)}};
    bench.set<kFirstStagePage, "RW">(bench.stage1[shape.leaf1], rights[0].write ? 1 : 0);
    bench.set<kSecondStagePage, "R">(bench.stage2[shape.leaf2], rights[1].read ? 1 : 0);
    bench.set<kSecondStagePage, "W">(bench.stage2[shape.leaf2], rights[1].write ? 1 : 0);

    const auto map = [](std::uint64_t address, std::uint64_t page, Level leaf) {
      const std::uint64_t in_page = bits_between(0, span_of(leaf));
      return (page & ~in_page) | (address & in_page);
    };
    const std::uint64_t guest = map(input, Bench::kGuestOutput, shape.leaf1);
    const std::uint64_t host = map(guest, Bench::kOutput, shape.leaf2);
    const Permissions both = rights[0] & rights[1];
    for (const Access access : {Access::Read, Access::Write}) {
      bench.request.access = access;
      const TranslationResponse response = bench.translate();
      if (both.allow(access)) {
        ASSERT_EQ(output_of(response), host) << "seed " << kSeed << " round " << round;
        EXPECT_EQ(std::get<Translation>(response).allowed, both);
      } else {
        const std::string expected = !rights[0].allow(access)  ? "SGN.6"
                                     : rights[1].none()        ? "SSS.2"
                                     : access == Access::Write ? "SGN.6"
                                                               : "SGN.7";
        EXPECT_EQ(row_of(response), expected) << "seed " << kSeed << " round " << round;
      }
    }
  }
}

// What software needs to repair a fault: which guest-physical address the second stage refused. Kills: the output's
// address given for a table's, or none.
TEST(VtdNestedWalk, ASecondStageFaultNamesTheGuestPhysicalAddress) {
  {
    Bench bench(Setting::Nested);
    bench.write(bench.stage2[0], 0);
    const TranslationResponse response = bench.translate();
    ASSERT_EQ(row_of(response), "SSS.2");
    EXPECT_EQ(std::get<Fault>(response).gpa, Gpa(Bench::kGuestOutput + (Bench::kInput & 0xfff)));
    EXPECT_EQ(std::get<Fault>(response).stage, Stage::Stage2);
    EXPECT_EQ(std::get<Fault>(response).address, Iova(Bench::kInput));
  }
  for (unsigned level = 0; level < 4; ++level) {
    Bench bench(Setting::Nested);
    const std::uint64_t table = bench.stage1[level] & ~0xfffULL;
    bench.write(bench.guest_table_entries[table][0], 0);
    const TranslationResponse response = bench.translate();
    ASSERT_EQ(row_of(response), "SSS.2");
    EXPECT_EQ(std::get<Fault>(response).gpa, Gpa(Bench::kGuestTables + bench.stage1[level]));
    EXPECT_EQ(std::get<Fault>(response).stage, Stage::Stage1);
  }
  Bench bench(Setting::Nested);
  bench.set<kFirstStagePage, "P">(bench.stage1[0], 0);
  EXPECT_FALSE(std::get<Fault>(bench.translate()).gpa);
}

// A mark is a write of the guest's table: the second stage must allow it, and keeps its own dirty mark of that page.
// Kills: a mark that goes through with read permission only; D set for tables that were only read.
TEST(VtdNestedWalk, MarkingAGuestTableIsAWriteThroughTheSecondStage) {
  for (unsigned level = 0; level < 4; ++level) {
    Bench bench(Setting::Nested);
    bench.set<kPasidEntry, "SSADE">(bench.process, 1);
    const std::uint64_t table = bench.stage1[level] & ~0xfffULL;
    const std::uint64_t leaf = bench.guest_table_entries[table][0];
    bench.set<kSecondStagePage, "W">(leaf, 0);
    EXPECT_EQ(row_of(bench.translate()), "SFS.8") << level;
    EXPECT_EQ(bench.word(bench.stage1[level]) & kAccessed1, 0U);
    EXPECT_EQ(bench.word(leaf) & kDirty2, 0U);

    bench.set<kFirstStagePage, "A">(bench.stage1[level], 1);  // then nothing is written
    EXPECT_EQ(row_of(bench.translate()), "translated") << level;
    EXPECT_EQ(bench.word(leaf) & kDirty2, 0U);

    bench.set<kSecondStagePage, "W">(leaf, 1);
    bench.set<kFirstStagePage, "A">(bench.stage1[level], 0);
    EXPECT_EQ(row_of(bench.translate()), "translated") << level;
    EXPECT_NE(bench.word(leaf) & kDirty2, 0U);
  }
}

// Guest tables need not be contiguous in the host: two of them in one guest page run, apart in the host.
TEST(VtdNestedWalk, GuestTablesMayLieAnywhereInTheHost) {
  Bench bench(Setting::Nested);
  const std::uint64_t far = 0x7000'0000'0000 - 0x1000;  // the last page of the bench's memory is at 2^47
  const std::uint64_t old = bench.stage1[2] & ~0xfffULL;
  for (unsigned i = 0; i < 512; ++i) bench.write(far + 8 * i, bench.word(old + 8 * i));
  for (unsigned i = 0; i < 512; ++i) bench.write(old + 8 * i, ~0ULL);
  bench.set<kSecondStagePage, "ADDR">(bench.guest_table_entries[old][0], far >> 12);
  EXPECT_EQ(output_of(bench.translate()), Bench::kOutput + (Bench::kInput & 0xfff));
}

// The guest writes its own first-stage tables: nothing in them may reach a host address that the second stage does not
// map. Random first-stage tables; every host address touched is a second-stage output or a second-stage table.
TEST(VtdNestedWalk, HostileFirstStageTablesStayWithinTheSecondStage) {
  constexpr std::uint64_t kSeed = 77;
  Rng rng(kSeed);
  constexpr std::uint64_t kWindow = 0x10'0000'0000, kWindowPages = 16;
  unsigned translated = 0;
  for (int round = 0; round < 60; ++round) {
    Bench bench(Setting::Nested);
    const std::uint64_t pool = 0x80'0000'0000;
    for (std::uint64_t i = 0; i < kWindowPages; ++i)
      bench.map_second(Bench::kStage2Root, 4, kWindow + i * 4096, pool + i * 4096);
    for (std::uint64_t i = 0; i < kWindowPages; ++i) {
      for (unsigned e = 0; e < 512; ++e) {
        const std::uint64_t target = rng.chance(0.9) ? kWindow + rng.below(kWindowPages) * 4096 : rng.below(1ULL << 48);
        bench.write(pool + i * 4096 + 8 * e, (target & ~0xfffULL) | (rng.below(0x1000) & ~0x80ULL) | 7);
      }
    }
    bench.set<kPasidEntry, "FSPTPTR">(bench.process, kWindow >> 12);
    bench.port.before = [&](const MemoryAccess& access) {
      if (access.kind != AccessKind::Stage1Entry) return;
      EXPECT_TRUE(access.address.value() - pool < kWindowPages * 4096) << std::hex << access.address.value();
    };
    const TranslationResponse response =
        bench.translate(rng.below(1ULL << 47), rng.chance(0.5) ? Access::Write : Access::Read);
    if (const auto output = output_of(response)) {
      ++translated;
      EXPECT_TRUE(*output - pool < kWindowPages * 4096) << "seed " << kSeed << std::hex << *output;
    }
  }
  EXPECT_GT(translated, 15U);
}

}  // namespace
}  // namespace iommu::vtd::test
