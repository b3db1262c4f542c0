// SPDX-License-Identifier: Apache-2.0
// What the driver writes, the core reads: stream table, descriptors, page tables, commands, registers.
#include "models/smmuv3/driver.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "models/smmuv3/unit_test_support.hpp"
#include "sim/translation/driver_test_support.hpp"
#include "sim/translation/table_test_support.hpp"

namespace iommu::smmuv3 {
namespace {

using iommu::test::options;
using iommu::test::print;
using iommu::test::RandomScopes;
using iommu::test::WatchedTableMemory;
using test::kDisk;
using test::kNic;
using test::Unit;

constexpr std::uint64_t kOutput = 0x1234'0000;

// Kills: registers written while their guard is set, a queue that is not enabled.
TEST(Smmuv3Driver, BringUpEnablesQueuesAndThenTranslation) {
  Unit unit(options(ContextKind::Nested));
  EXPECT_FALSE(unit.core.is_translating());
  unit.bring_up();
  EXPECT_TRUE(unit.core.is_translating());
  const std::uint64_t control = unit.core.mmio_read(offset::kCr0ack, 4);
  EXPECT_EQ((get<kCr0, "CMDQEN">(control)), 1U);
  EXPECT_EQ((get<kCr0, "EVENTQEN">(control)), 1U);
  EXPECT_EQ((get<kCr0, "PRIQEN">(control)), 1U);
  EXPECT_EQ(print(unit.translate(kNic, 0)), "C_BAD_STREAMID");
}
TEST(Smmuv3Driver, RingHoldsWhatWasAskedFor) {
  for (const std::uint32_t entries : {1U, 128U, 256U, 1000U, 4096U, 1U << 20}) {
    DriverOptions o;
    o.features.command_ring_entries = entries;
    Unit unit(o);
    unit.bring_up();
    unit.expect_ring_holds(std::min(entries, 1U << kLargestQueueLg2));
  }
}
TEST(Smmuv3Driver, BringUpWithoutMemoryFailsAndKeepsNothing) {
  for (std::uint64_t pages = 0; pages < 4; ++pages) iommu::test::expect_bring_up_fails<Driver>(pages);
}

class Smmuv3Attach : public testing::TestWithParam<std::tuple<ContextKind, unsigned, unsigned>> {};

// Every kind, granule and a range of input sizes. Kills: a wrong TxSZ, TG, SL0, IPS, alignment of concatenated tables,
// pointer or valid bit.
TEST_P(Smmuv3Attach, CoreTranslatesWhatTheDriverMapped) {
  const auto [kind, granule, bits] = GetParam();
  for (const RequesterId device : {kNic, kDisk}) {
    DriverOptions o = options(kind);
    o.granule_lg2 = granule;
    o.features.input_address_bits = bits;
    Unit unit(o);
    unit.bring_up();
    const auto stage2 = unit.driver.create_table(TableKind::Stage2, unit.memory);
    const auto stage1 = unit.driver.create_table(TableKind::Stage1, unit.memory);
    ASSERT_TRUE(stage1 && stage2);
    // Stage-1 tables and descriptors are where stage 2 maps them one to one.
    ASSERT_EQ(stage2->map({.input = 0, .output = 0, .length = 1_GiB, .max_page_lg2 = 30}).status, EditStatus::Ok);
    auto& mapped = kind == ContextKind::Stage2 ? *stage2 : *stage1;
    const std::uint64_t page = 1ULL << granule;
    // High inputs too, so that every bit of the starting index counts.
    for (const std::uint64_t input : std::array{std::uint64_t{0x4000'0000} + page, (std::uint64_t{1} << bits) - page})
      if (bits > 31 || input < 1ULL << 31)
        ASSERT_EQ(
            mapped.map({.input = input, .output = kOutput, .length = Bytes(page), .permissions = kReadOnly}).status,
            EditStatus::Ok);
    const ContextSetting setting{
        .kind = kind, .domain = DomainTag(7), .stage1 = stage1->root(), .stage2 = stage2->root()};
    const auto context = unit.attach(device, setting);
    ASSERT_TRUE(context);
    if (kind != ContextKind::Bypass) EXPECT_EQ(context->domain, DomainTag(7));
    const std::uint64_t input = (1ULL << bits) - page;
    unit.expect_mapped(device, kind, input, kOutput);
    // Software that reads foreign tables sees the same.
    if (kind == ContextKind::Stage1) {
      const auto view = unit.driver.view_table(TableKind::Stage1, context->stage1, unit.memory);
      ASSERT_TRUE(view->lookup(input));
      EXPECT_EQ(view->lookup(input)->output, kOutput);
    }
    unit.expect_detach_blocks(device, input, "C_BAD_STE");
  }
}
INSTANTIATE_TEST_SUITE_P(Kinds, Smmuv3Attach,
                         testing::Combine(testing::Values(ContextKind::Bypass, ContextKind::Stage1, ContextKind::Stage2,
                                                          ContextKind::Nested),
                                          testing::Values(12U, 14U, 16U), testing::Values(32U, 39U, 40U, 43U, 48U)));

TEST(Smmuv3Driver, SettingsThatCannotBeExpressedAreRefused) {
  Unit unit(options(ContextKind::Stage2));
  unit.bring_up();
  const auto table = unit.driver.create_table(TableKind::Stage1, unit.memory);
  const ContextSetting stage1{.kind = ContextKind::Stage1, .stage1 = table->root()};
  EXPECT_EQ(unit.driver.attach(kNic, stage1, unit.memory).status, EditStatus::OutOfRange);
  const ContextSetting tag{.kind = ContextKind::Bypass, .domain = DomainTag(0x10000)};
  EXPECT_EQ(unit.driver.attach(kNic, tag, unit.memory).status, EditStatus::OutOfRange);
  const ContextSetting flat{.kind = ContextKind::Stage2, .stage2 = {0x1000, 0}};  // 4 KiB granule: no S2SL0 for it
  EXPECT_EQ(unit.driver.attach(kNic, flat, unit.memory).status, EditStatus::OutOfRange);
  EXPECT_EQ(print(unit.translate(kNic, 0)), "C_BAD_STREAMID");
}

// Kills: an attach that links a table before all memory is there.
TEST(Smmuv3Driver, AttachWithoutMemoryLeavesTheStreamBlocked) {
  for (const ContextKind kind : {ContextKind::Stage2, ContextKind::Stage1}) {
    for (std::uint64_t left = 0; left < 6; ++left) {
      Unit unit(options(kind));
      unit.bring_up();
      const auto table =
          unit.driver.create_table(kind == ContextKind::Stage1 ? TableKind::Stage1 : TableKind::Stage2, unit.memory);
      while (unit.frames.frames() - unit.frames.used() > left) (void)unit.frames.allocate();
      const ContextSetting setting{
          .kind = kind, .domain = DomainTag(1), .stage1 = table->root(), .stage2 = table->root()};
      const TableEdit edit = unit.driver.attach(kNic, setting, unit.memory);
      if (edit.status == EditStatus::Ok) {
        EXPECT_GE(left, kind == ContextKind::Stage1 ? 5U : 4U);
        continue;
      }
      EXPECT_EQ(edit.status, EditStatus::NoMemory);
      EXPECT_TRUE(std::holds_alternative<Fault>(unit.translate(kNic, 0)));
    }
  }
}

struct NamedSetting {
  std::string name;
  ContextSetting setting;
};

// Every pair of settings, every store: the stream is where it was, or where it goes, or (in pairs that no order of
// stores can make) blocked. Kills: storing the word with Config first, changing a descriptor in use, leaving out an
// unused bit that the next setting uses, and blocking where it is not needed.
TEST(Smmuv3Driver, EachStoreOfAChangeShowsTheOldOrTheNewSetting) {
  Unit unit(options(ContextKind::Nested));
  unit.bring_up();
  WatchedTableMemory memory(unit.memory);
  std::vector<std::unique_ptr<PageTable>> tables;
  const auto table = [&](TableKind kind, std::uint64_t output) {
    tables.push_back(unit.driver.create_table(kind, unit.memory));
    tables.back()->map({.input = 0x1000, .output = output});
    if (kind == TableKind::Stage2)  // one to one for stage-1 tables; 0x1000 is theirs to translate
      tables.back()->map({.input = 0x10'0000, .output = 0x10'0000, .length = 1_GiB - 1_MiB, .max_page_lg2 = 30});
    return tables.back()->root();
  };
  const TableRoot s1a = table(TableKind::Stage1, 0x10'a000), s1b = table(TableKind::Stage1, 0x10'b000);
  const TableRoot s2a = table(TableKind::Stage2, 0x20'a000), s2b = table(TableKind::Stage2, 0x20'b000);
  const std::vector<NamedSetting> settings{
      {"bypass", {.kind = ContextKind::Bypass}},
      {"stage 1 a of 1", {.kind = ContextKind::Stage1, .domain = DomainTag(1), .stage1 = s1a}},
      {"stage 1 b of 1", {.kind = ContextKind::Stage1, .domain = DomainTag(1), .stage1 = s1b}},
      {"stage 1 b of 2", {.kind = ContextKind::Stage1, .domain = DomainTag(2), .stage1 = s1b}},
      {"stage 2 a of 1", {.kind = ContextKind::Stage2, .domain = DomainTag(1), .stage2 = s2a}},
      {"stage 2 b of 2", {.kind = ContextKind::Stage2, .domain = DomainTag(2), .stage2 = s2b}},
      {"nested a a of 1", {.kind = ContextKind::Nested, .domain = DomainTag(1), .stage1 = s1a, .stage2 = s2a}},
      {"nested b a of 1", {.kind = ContextKind::Nested, .domain = DomainTag(1), .stage1 = s1b, .stage2 = s2a}},
      {"nested a b of 2", {.kind = ContextKind::Nested, .domain = DomainTag(2), .stage1 = s1a, .stage2 = s2b}},
  };
  const auto seen = [&] {
    const auto context = unit.core.find_context({.requester = kNic, .pasid = {}, .address = Iova(0)}, unit.port).run();
    const auto* found = std::get_if<Context>(&context);
    if (found == nullptr) return ":" + std::string(std::get<Fault>(context).row->name);
    const std::string tag = std::to_string(static_cast<int>(found->kind)) + "/" +
                            (found->kind == ContextKind::Bypass ? "" : std::to_string(found->domain.value()));
    return tag + ":" + print(unit.translate(kNic, 0x1000));
  };
  // Only where two words that both settings look at differ.
  const auto needs_gap = [](const ContextSetting& from, const ContextSetting& to) {
    if (from.kind == ContextKind::Bypass || to.kind == ContextKind::Bypass) return false;
    const bool stage2_in_both = from.kind != ContextKind::Stage1 && to.kind != ContextKind::Stage1;
    if (from.kind == ContextKind::Stage2 && to.kind == ContextKind::Stage2) return true;  // VMID and table
    return from.domain != to.domain || (stage2_in_both && from.stage2 != to.stage2);
  };
  unsigned gaps = 0;
  for (const NamedSetting& from : settings) {
    for (const NamedSetting& to : settings) {
      if (&from == &to) continue;
      ASSERT_EQ(unit.driver.attach(kNic, from.setting, memory).status, EditStatus::Ok);
      const std::string before = seen();
      std::vector<std::string> states;
      memory.on_write = [&](std::uint64_t) { states.push_back(seen()); };
      const TableEdit edit = unit.driver.attach(kNic, to.setting, memory);
      memory.on_write = nullptr;
      const std::string after = seen();
      EXPECT_NE(before, after);
      EXPECT_TRUE(edit.modified && !edit.added);
      bool blocked = false;
      for (const std::string& state : states) {
        if (state == ":C_BAD_STE") blocked = true;
        EXPECT_TRUE(state == before || state == after || state == ":C_BAD_STE")
            << from.name << " to " << to.name << ": " << state;
      }
      EXPECT_EQ(blocked, needs_gap(from.setting, to.setting)) << from.name << " to " << to.name;
      gaps += blocked ? 1 : 0;
      EXPECT_EQ(unit.driver.attach(kNic, to.setting, memory).entries_written, 0U) << "the same again";
    }
  }
  EXPECT_GT(gaps, 0U);
}

// Kills: taking Config, VMID, EATS or the stage-2 fields from a guest.
TEST(Smmuv3Driver, AGuestDecidesOnlyAboutItsOwnDescriptors) {
  Unit unit(options(ContextKind::Nested));
  unit.bring_up();
  const auto stage2 = unit.driver.create_table(TableKind::Stage2, unit.memory);
  ContextSetting setting{.kind = ContextKind::Nested, .domain = DomainTag(9), .stage2 = stage2->root()};
  setting.allow_device_tlb = false;
  setting.stage1_entry = {~0ULL, ~0ULL};
  ASSERT_EQ(unit.driver.attach(kNic, setting, unit.memory).status, EditStatus::Ok);
  const std::uint64_t base = unit.core.mmio_read(offset::kStrtabBase, 8) & mask_of<kStrtabBase, "ADDR">;
  const std::uint64_t link = unit.memory.read64(base + (kNic.value() >> 8) * kL1StdBytes);
  std::array<std::uint64_t, 8> ste{};
  for (std::size_t i = 0; i < ste.size(); ++i)
    ste[i] = unit.memory.read64((link & mask_of<kL1Std, "L2Ptr">)+(kNic.value() & 0xffU) * kSteBytes + 8 * i);
  EXPECT_EQ((get<kSte, "Config">(ste)), static_cast<std::uint64_t>(StreamConfig::Nested));
  EXPECT_EQ((get<kSte, "S2VMID">(ste)), 9U);
  EXPECT_EQ((get<kSte, "EATS">(ste)), 0U);
  EXPECT_EQ((get<kSte, "STRW">(ste)), 0U);
  EXPECT_EQ((get<kSte, "PRIVCFG">(ste)), 0U);
  EXPECT_EQ((get<kSte, "S1CDMax">(ste)), (field_of<kSte, "S1CDMax">.value_mask()));
}

// Commands ------------------------------------------------------------------------------------------------------------

// Random scopes of every kind, over the ring's wrap: the core removes at least what was asked. Kills: NUM or SCALE one
// too small, a widening that narrows, a forgotten criterion.
TEST(Smmuv3Driver, EncodedCommandsRemoveAtLeastTheScope) {
  using enum InvalidationKind;
  constexpr std::array kKinds{Context, Iotlb, DeviceTlb, ProcessContext};
  RandomScopes random(11);
  Rng& rng = random.rng;
  for (const ContextKind kind : {ContextKind::Stage2, ContextKind::Nested}) {
    for (const RangeFlush flush : {RangeFlush::ExactOrDomain, RangeFlush::SmallestBlock}) {
      for (const unsigned granule : {12U, 14U, 16U}) {
        DriverOptions o = options(kind);
        o.range_flush = flush;
        o.granule_lg2 = granule;
        Unit unit(o);
        unit.bring_up();
        for (int i = 0; i < 400; ++i) {
          InvalidationScope scope = random.scope(kKinds, kNic);
          if (o.stage1) scope.asid = random.maybe(random.asid());
          if (scope.kind == ProcessContext) scope.requester = kNic;
          if (scope.kind == Context || scope.kind == ProcessContext)
            scope.requester_ignore = rng.chance(0.5) ? static_cast<std::uint16_t>(rng.below(8)) : 0;
          scope.stage1_only = scope.kind == Iotlb && rng.chance(0.3);
          scope.global_pages = scope.kind == Iotlb && rng.chance(0.3);
          if (rng.chance(0.1)) scope.domain_ignore = 1;
          random.expect_removed(scope, unit.executed(scope));
        }
      }
    }
  }
}

// Kills: a range that is larger than NUM and SCALE make it, or one command per page.
TEST(Smmuv3Driver, ARangeIsOneCommandWhereNumAndScaleNameIt) {
  Unit unit(options(ContextKind::Stage2));
  unit.bring_up();
  const auto scope_of = [](std::uint64_t first_page, std::uint64_t pages) {
    return InvalidationScope{.domain = DomainTag(5),
                             .range = AddressRange{first_page << kPageLg2, ((first_page + pages) << kPageLg2) - 1}};
  };
  for (const std::uint64_t pages : {1ULL, 2ULL, 3ULL, 31ULL, 32ULL, 34ULL, 62ULL, 31ULL << 20}) {
    EXPECT_EQ(unit.driver.widen(scope_of(7, pages)), scope_of(7, pages)) << pages;
    EXPECT_EQ(unit.executed(scope_of(7, pages)), std::vector{scope_of(7, pages)}) << pages;
  }
  const InvalidationScope domain{.domain = DomainTag(5)};
  for (const std::uint64_t pages : {33ULL, 65ULL, 1001ULL}) {
    EXPECT_EQ(unit.driver.widen(scope_of(0, pages)), domain) << pages;
    EXPECT_EQ(unit.executed(scope_of(0, pages)), std::vector{domain}) << pages;
  }
  DriverOptions o = options(ContextKind::Stage2);
  o.range_flush = RangeFlush::SmallestBlock;
  EXPECT_EQ(Driver(o).widen(scope_of(0, 33)), scope_of(0, 34));
  EXPECT_EQ(Driver(o).widen(scope_of(0, 1001)), scope_of(0, 1024));
}

// Kills: an intermediate address given to CMD_TLBI_S2_IPA where both stages are cached together.
TEST(Smmuv3Driver, UnderNestingAStage2RangeTakesTheWholeDomain) {
  Unit unit(options(ContextKind::Nested));
  unit.bring_up();
  const InvalidationScope scope{.domain = DomainTag(5), .range = AddressRange{0x1000, 0x1fff}};
  EXPECT_EQ(unit.executed(scope), std::vector{InvalidationScope{.domain = DomainTag(5)}});
  InvalidationScope by_va = scope;
  by_va.asid = AsidTag(5);
  const auto effect = unit.executed(by_va);
  ASSERT_EQ(effect.size(), 1U);
  EXPECT_EQ(effect[0].range, scope.range);
  EXPECT_EQ(effect[0].asid, AsidTag(5));
}

TEST(Smmuv3Driver, FenceWritesItsStatusWord) {
  Unit unit(options(ContextKind::Stage2));
  unit.bring_up();
  unit.expect_fence_writes_status();
}

// Kills: no CMD_CFGI_STE after an entry became valid (an invalid one may have been cached), or the new domain flushed.
TEST(Smmuv3Driver, ContextChangesInvalidateTheEntryAndTheOldDomain) {
  const Driver driver(options(ContextKind::Nested));
  const InvalidationScope entry{.kind = InvalidationKind::Context, .requester = kNic};
  EXPECT_EQ(driver.context_scopes(kNic, std::nullopt), std::vector{entry});
  const ContextSetting bypass{.kind = ContextKind::Bypass, .domain = DomainTag(9)};
  EXPECT_EQ(driver.context_scopes(kNic, bypass), std::vector{entry});
  const ContextSetting stage2{.kind = ContextKind::Stage2, .domain = DomainTag(9)};
  EXPECT_EQ(driver.context_scopes(kNic, stage2), (std::vector{entry, InvalidationScope{.domain = DomainTag(9)}}));
  const ContextSetting stage1{.kind = ContextKind::Stage1, .domain = DomainTag(9)};
  EXPECT_EQ(driver.context_scopes(kNic, stage1),
            (std::vector{entry, InvalidationScope{.domain = DomainTag(9), .asid = AsidTag(9)}}));
}

TEST(Smmuv3Driver, PageSizesFollowGranuleAndFeatures) {
  DriverOptions o;
  const auto sizes = [&] { return Driver(o).page_sizes(TableKind::Stage2); };
  EXPECT_EQ(sizes(), 1ULL << 12 | 1ULL << 21 | 1ULL << 30);
  o.granule_lg2 = 14;
  EXPECT_EQ(sizes(), 1ULL << 14 | 1ULL << 25);
  o.granule_lg2 = 16;
  EXPECT_EQ(sizes(), 1ULL << 16 | 1ULL << 29);
  o.features.host_address_bits = 52;
  EXPECT_EQ(sizes(), 1ULL << 16 | 1ULL << 29 | 1ULL << 42);
  o.features.superpages = false;
  EXPECT_EQ(sizes(), 1ULL << 16);
}

}  // namespace
}  // namespace iommu::smmuv3
