// SPDX-License-Identifier: Apache-2.0
// The rules that explain where QEMU departs from the SMMUv3 specification must be right, each of them needed, and none
// may excuse a wrong core.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "models/smmuv3/recorder.hpp"
#include "models/smmuv3/spec.hpp"
#include "models/smmuv3/vector_rules.hpp"
#include "sim/app/vector_file.hpp"

namespace iommu::smmuv3 {
namespace {

constexpr std::size_t kEvery = 8;  // of the recorded configurations; the tool replays all of them
constexpr unsigned kQemu7 = 7, kQemu11 = 11;

template <class Visit>
void for_each_record(std::size_t every, const Visit& visit) {
  constexpr std::array kFamilies{&kVectorFamily};
  for (const std::string& path : {std::string("models/smmuv3/vectors/smmuv3-qemu7.jsonl.gz"),
                                  std::string("models/smmuv3/vectors/smmuv3-qemu11.jsonl.gz")}) {
    VectorFile file(path);
    for (std::size_t number = 0;; ++number) {
      auto next = file.next(kFamilies);
      ASSERT_FALSE(std::holds_alternative<VectorFileError>(next)) << path;
      if (std::holds_alternative<VectorFileEnd>(next)) break;
      if (number % every == 0) visit(std::get<VectorFileRecord>(next).record);
    }
  }
}

std::size_t disagreements(const std::vector<VectorJudgement>& judgements) {
  return static_cast<std::size_t>(std::ranges::count(judgements, VectorVerdict::Disagree, &VectorJudgement::verdict));
}
// Every departure is a rule, in this order.
std::string_view name_of(Departure departure) { return kVectorFamily.rules[static_cast<std::size_t>(departure)].name; }
std::vector<Departure> all_departures() {
  std::vector<Departure> all;
  for (unsigned i = 0; i < static_cast<unsigned>(Departure::kCount); ++i) all.push_back(static_cast<Departure>(i));
  return all;
}

// What no shipped record reaches: shown on records made by hand, below.
constexpr std::array kUnreached{Departure::ContextPointerCut,   Departure::Stage2TableCut,
                                Departure::Stage2InputByOutput, Departure::Stage2StartUnchecked,
                                Departure::TableBaseCut,        Departure::DeviceTablesTaken};

TEST(Smmuv3Vectors, TheIndependentWalkerIsTheCoreWithoutDeparturesAndTheRecorderWithThem) {
  std::size_t accesses = 0;
  for_each_record(kEvery, [&](const VectorRecord& record) {
    const auto judgements = judge(record, kVectorFamily);
    EXPECT_EQ(disagreements(judgements), 0U) << record.id;
    const VectorMemory memory(record);
    for (std::size_t i = 0; i < record.accesses.size(); ++i, ++accesses) {
      const VectorOutcome& ours = judgements[i].ours;
      const VectorCase c{record, record.accesses[i], memory, record.id_registers, ours};
      EXPECT_TRUE(recorder_outcome(c, 0).agrees_with(ours)) << record.id << " access " << i;
      EXPECT_TRUE(recorder_outcome(c, departures_of(record.recorder_major)).agrees_with(record.accesses[i].recorded))
          << record.id << " access " << i;
    }
  });
  EXPECT_GT(accesses, 500U);
}

TEST(Smmuv3Vectors, EveryRuleIsNeeded) {
  std::array<std::size_t, static_cast<std::size_t>(Departure::kCount)> needed{};
  for_each_record(1, [&](const VectorRecord& record) {
    const VectorMemory memory(record);
    const Departures all = departures_of(record.recorder_major);
    const VectorOutcome nothing;
    for (const VectorAccess& access : record.accesses) {
      const VectorCase c{record, access, memory, record.id_registers, nothing};
      for (const Departure d : all_departures()) {
        if ((all & bit_of(d)) == 0) continue;
        if (!recorder_outcome(c, all & ~bit_of(d)).agrees_with(access.recorded)) ++needed[static_cast<std::size_t>(d)];
      }
    }
  });
  for (const Departure d : all_departures()) {
    const bool unreached = std::ranges::find(kUnreached, d) != kUnreached.end();
    EXPECT_EQ(needed[static_cast<std::size_t>(d)] == 0, unreached) << name_of(d);
  }
}

// By hand -------------------------------------------------------------------------------------------------------------

constexpr std::uint64_t kStreams = 0x4000'0000, kDescriptor = 0x4001'0000, kTable = 0x4002'0000, kEvents = 0x4003'0000;
constexpr std::uint64_t kStage2Table = 0x4004'0000;
constexpr std::uint64_t kLeafOutput = 0x8000'0000, kInput = 0x345;
constexpr std::uint64_t kCode40 = 2, kCode44 = 4;  // address sizes
constexpr std::uint64_t kTxsz39 = 64 - 39;         // three levels of 4 KiB tables

// A stream with one stage in 4 KiB tables: a block at the first level.
struct Made {
  std::array<std::uint64_t, 8> ste{}, cd{};
  std::uint64_t leaf = 0, stage2_leaf = 0;  // of the second GiB

  template <FieldName kName>
  Made& stream(std::uint64_t value) {
    put<kSte, kName>(std::span<std::uint64_t>(ste), value);
    return *this;
  }
  template <FieldName kName>
  Made& context(std::uint64_t value) {
    put<kCd, kName>(std::span<std::uint64_t>(cd), value);
    return *this;
  }
  [[nodiscard]] VectorRecord record(unsigned major) const {
    VectorRecord r;
    r.id = "made";
    r.family = "smmuv3";
    r.recorder_major = major;
    r.id_registers = {{"IDR0", 0xd44101b}, {"IDR1", 0x2730010}, {"IDR3", 0x1414}, {"IDR5", 0x74}, {"AIDR", 1}};
    r.ram = {{.base = kStreams, .bytes = 0x8000'0000}};
    for (std::size_t i = 0; i < ste.size(); ++i) {
      r.words.emplace_back(kStreams + 8 * i, ste[i]);
      r.words.emplace_back(kDescriptor + 8 * i, cd[i]);
    }
    r.words.emplace_back(kTable, leaf);
    r.words.emplace_back(kStage2Table + 8, stage2_leaf);
    using Kind = VectorRegisterAccess::Kind;
    constexpr std::uint64_t kLg2 = 4;
    r.setup = {{Kind::Write, offset::kStrtabBase, 8, kStreams},
               {Kind::Write, offset::kStrtabBaseCfg, 4, kLg2},
               {Kind::Write, offset::kEventqBase, 8, kEvents | kLg2},
               {Kind::Write, offset::kCr0, 4, mask_of<kCr0, "SMMUEN"> | mask_of<kCr0, "EVENTQEN">}};
    VectorAccess access;
    access.request = {.requester = RequesterId(0), .pasid = {}, .address = Iova(kInput)};
    r.accesses.push_back(access);
    return r;
  }
};
Made stage1() {
  Made m;
  m.stream<"V">(1).stream<"Config">(5).stream<"S1ContextPtr">(kDescriptor >> field_of<kSte, "S1ContextPtr">.shift());
  m.context<"V">(1).context<"AA64">(1).context<"A">(1).context<"R">(1).context<"EPD1">(1).context<"IPS">(kCode44);
  m.context<"T0SZ">(kTxsz39).context<"TTB0">(kTable >> kTtbLg2);
  m.leaf = kLeafOutput | mask_of<kStage1Leaf, "Valid"> | mask_of<kStage1Leaf, "AF"> | mask_of<kStage1Leaf, "APUser">;
  return m;
}
Made stage2() {
  Made m;
  m.stream<"V">(1).stream<"Config">(6).stream<"S2AA64">(1).stream<"S2R">(1).stream<"S2PS">(kCode44);
  m.stream<"S2T0SZ">(kTxsz39).stream<"S2SL0">(1).stream<"S2TTB">(kTable >> kTtbLg2);
  m.leaf = kLeafOutput | mask_of<kStage2Leaf, "Valid"> | mask_of<kStage2Leaf, "AF"> | mask_of<kStage2Leaf, "S2APRead">;
  return m;
}

// Tables and page one to one, in memory that stage 2 takes for a device's.
Made nested() {
  Made m = stage1();
  m.stream<"Config">(7).stream<"S2AA64">(1).stream<"S2R">(1).stream<"S2PS">(kCode44);
  m.stream<"S2T0SZ">(kTxsz39).stream<"S2SL0">(1).stream<"S2TTB">(kStage2Table >> kTtbLg2);
  m.leaf = (m.leaf ^ kLeafOutput) | kStreams;
  m.stage2_leaf =
      kStreams | mask_of<kStage2Leaf, "Valid"> | mask_of<kStage2Leaf, "AF"> | mask_of<kStage2Leaf, "S2APRead">;
  return m;
}

VectorJudgement judged(const Made& made, unsigned major) {
  VectorRecord record = made.record(major);
  const VectorMemory memory(record);
  const VectorOutcome nothing;
  VectorAccess& access = record.accesses.front();
  access.recorded = recorder_outcome({record, access, memory, record.id_registers, nothing}, departures_of(major));
  const VectorJudgement judgement = judge(record, kVectorFamily).front();
  EXPECT_TRUE(recorder_outcome({record, access, memory, record.id_registers, nothing}, 0).agrees_with(judgement.ours));
  return judgement;
}
void expect_only(const Made& made, unsigned major, Departure departure) {
  const VectorJudgement judgement = judged(made, major);
  EXPECT_EQ(judgement.verdict, VectorVerdict::Deviation) << name_of(departure);
  EXPECT_EQ(judgement.rules, std::vector<std::string_view>{name_of(departure)});
}

TEST(Smmuv3Vectors, RulesThatNoShippedRecordReachesAreNeededByRecordsMadeByHand) {
  for (const unsigned major : {kQemu7, kQemu11}) EXPECT_EQ(judged(stage1(), major).verdict, VectorVerdict::Agree);
  EXPECT_EQ(judged(stage1(), kQemu7).ours.output, kLeafOutput | kInput);
  EXPECT_EQ(judged(stage2(), kQemu11).verdict, VectorVerdict::Agree);
  EXPECT_EQ(judged(stage2(), kQemu11).ours.output, kLeafOutput | kInput);

  constexpr std::uint64_t kBeyond = 1ULL << 49, kTop = 1ULL << 51;
  expect_only(stage1().stream<"S1ContextPtr">((kDescriptor | kBeyond) >> field_of<kSte, "S1ContextPtr">.shift()),
              kQemu7, Departure::ContextPointerCut);
  expect_only(stage1().context<"TTB0">((kTable | kTop) >> kTtbLg2), kQemu7, Departure::TableBaseCut);
  expect_only(stage2().stream<"S2TTB">((kTable | kBeyond) >> kTtbLg2), kQemu11, Departure::Stage2TableCut);
  expect_only(stage2().stream<"S2PS">(kCode40).stream<"S2T0SZ">(64 - 42), kQemu11, Departure::Stage2InputByOutput);
  EXPECT_EQ(judged(nested(), kQemu11).ours.output, kStreams | kInput);
  EXPECT_EQ(judged(nested(), kQemu11).verdict, VectorVerdict::Agree);
  expect_only(nested().stream<"S2PTW">(1), kQemu11, Departure::DeviceTablesTaken);
  // A table that is its own next table, down to the page.
  Made loop = stage2().stream<"S2SL0">(2);
  loop.leaf = (loop.leaf ^ kLeafOutput) | kTable | mask_of<kTableDescriptor, "Table">;
  expect_only(loop, kQemu11, Departure::Stage2StartUnchecked);
}

// Wrong cores ---------------------------------------------------------------------------------------------------------

// A core that takes itself for another unit than the recorder was, and then errs otherwise than the recorder does.
struct Mutant {
  const char* name;
  const char* id_register;
  std::uint64_t flipped;
};
constexpr std::array kMutants{
    Mutant{"narrow_output", "IDR5", 4 ^ 3},
    Mutant{"wide_output", "IDR5", 4 ^ 5},
    Mutant{"no_4k", "IDR5", mask_of<kIdr5, "GRAN4K">},
    Mutant{"no_16k", "IDR5", mask_of<kIdr5, "GRAN16K">},
    Mutant{"no_64k", "IDR5", mask_of<kIdr5, "GRAN64K">},
    Mutant{"no_flat_permissions", "IDR3", mask_of<kIdr3, "HAD">},
    Mutant{"no_stage1", "IDR0", mask_of<kIdr0, "S1P">},
    Mutant{"updates_of_flags", "IDR0", mask_of<kIdr0, "HTTU">},
    Mutant{"narrow_streams", "IDR1", 16 ^ 8},
    Mutant{"other_stage2", "IDR0", mask_of<kIdr0, "S2P">},
};
template <std::size_t kIndex>
std::unique_ptr<IommuCore> make_mutant(const VectorRegisters& registers) {
  VectorRegisters wrong = registers;
  wrong[kMutants[kIndex].id_register] ^= kMutants[kIndex].flipped;
  return kVectorFamily.make_core(wrong);
}
using Make = std::unique_ptr<IommuCore> (*)(const VectorRegisters&);
template <std::size_t... kIndices>
constexpr std::array<Make, sizeof...(kIndices)> makers(std::index_sequence<kIndices...>) {
  return {make_mutant<kIndices>...};
}
constexpr auto kMakers = makers(std::make_index_sequence<kMutants.size()>{});

class Smmuv3Mutants : public testing::TestWithParam<std::size_t> {};
TEST_P(Smmuv3Mutants, AreNotExcusedByAnyRule) {
  std::size_t caught = 0;
  for_each_record(kEvery, [&](const VectorRecord& record) {
    VectorFamily wrong = kVectorFamily;
    wrong.make_core = kMakers[GetParam()];
    const auto right = judge(record, kVectorFamily), judgements = judge(record, wrong);
    for (std::size_t i = 0; i < record.accesses.size(); ++i) {
      if (judgements[i].ours.agrees_with(right[i].ours)) continue;
      ++caught;
      // It may happen to do what the recorder did wrong, but no rule may help it.
      const bool agrees = judgements[i].ours.agrees_with(record.accesses[i].recorded);
      EXPECT_EQ(judgements[i].verdict, agrees ? VectorVerdict::Agree : VectorVerdict::Disagree)
          << record.id << " access " << i;
    }
  });
  EXPECT_GT(caught, 0U) << "no record shows the mutant";
}
INSTANTIATE_TEST_SUITE_P(All, Smmuv3Mutants, testing::Range(std::size_t{0}, kMutants.size()),
                         [](const auto& info) { return std::string(kMutants[info.param].name); });

}  // namespace
}  // namespace iommu::smmuv3
