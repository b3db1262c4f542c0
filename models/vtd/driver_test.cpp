// SPDX-License-Identifier: Apache-2.0
// What the driver writes, the core reads: device tables, page tables, descriptors, registers.
#include "models/vtd/driver.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "models/vtd/core.hpp"
#include "sim/translation/driver_test_support.hpp"
#include "sim/translation/table_test_support.hpp"

namespace iommu::vtd {
namespace {

using iommu::test::options;
using iommu::test::print;
using iommu::test::RandomScopes;
using iommu::test::WatchedTableMemory;

constexpr RequesterId kNic = RequesterId::bdf(3, 0, 0);
constexpr RequesterId kHigh = RequesterId::bdf(3, 31, 7);  // upper half of the scalable root entry
constexpr std::uint64_t kOutput = 0x12345000;

struct Unit : iommu::test::DrivenUnit<Driver, Core> {
  explicit Unit(const DriverOptions& o) : DrivenUnit(o, compose(o.features)) {}
};

// Kills: registers written in an order that the unit refuses, or without repeating QIE.
TEST(VtdDriver, BringUpEnablesQueueThenRootThenTranslation) {
  for (const bool scalable : {false, true}) {
    DriverOptions o;
    o.stage1 = scalable;
    Unit unit(o);
    EXPECT_FALSE(unit.core.is_translating());
    unit.bring_up();
    EXPECT_TRUE(unit.core.is_translating());
    const std::uint64_t status = unit.core.mmio_read(offset::kGsts, 4);
    EXPECT_EQ((get<kGsts, "QIES">(status)), 1U);
    EXPECT_EQ((get<kGsts, "RTPS">(status)), 1U);
    EXPECT_EQ((get<kGsts, "TES">(status)), 1U);
    EXPECT_EQ(print(unit.translate(kNic, 0)), scalable ? "SRT.2" : "LRT.2");
  }
}
TEST(VtdDriver, RingHoldsWhatWasAskedFor) {
  for (const std::uint32_t entries : {1U, 128U, 256U, 4096U, 1U << 20}) {
    DriverOptions o;
    o.features.command_ring_entries = entries;
    Unit unit(o);
    unit.bring_up();
    unit.expect_ring_holds(std::min(entries, 32768U));
  }
}
TEST(VtdDriver, BringUpWithoutMemoryFailsAndKeepsNothing) {
  for (const std::uint64_t pages : {0U, 1U}) iommu::test::expect_bring_up_fails<Driver>(pages);
}

class VtdAttach : public testing::TestWithParam<std::tuple<ContextKind, unsigned, bool>> {};

// Every kind, width and half of a root entry. Kills: a wrong AW, type, pointer, half or missing present bit.
TEST_P(VtdAttach, CoreTranslatesWhatTheDriverMapped) {
  const auto [kind, bits, upper] = GetParam();
  const RequesterId device = upper ? kHigh : kNic;
  Unit unit(options(kind, bits));
  unit.bring_up();
  const auto stage2 = unit.driver.create_table(TableKind::Stage2, unit.memory);
  const auto stage1 = unit.driver.create_table(TableKind::Stage1, unit.memory);
  // Stage-1 tables are where stage 2 maps them one to one.
  stage2->map({.input = 0, .output = 0, .length = 1_GiB, .max_page_lg2 = 30});
  const std::uint64_t input = 0x5000'3000;
  auto& mapped = kind == ContextKind::Stage2 ? *stage2 : *stage1;
  mapped.map({.input = input, .output = kOutput, .permissions = kReadOnly});
  const ContextSetting setting{
      .kind = kind, .domain = DomainTag(7), .stage1 = stage1->root(), .stage2 = stage2->root()};
  const auto context = unit.attach(device, setting);
  ASSERT_TRUE(context);
  EXPECT_EQ(context->domain, DomainTag(7));
  unit.expect_mapped(device, kind, input, kOutput);
  unit.expect_detach_blocks(device, input, options(kind).stage1 ? "SPT.2" : "LCT.2");
}
INSTANTIATE_TEST_SUITE_P(Kinds, VtdAttach,
                         testing::Combine(testing::Values(ContextKind::Bypass, ContextKind::Stage1, ContextKind::Stage2,
                                                          ContextKind::Nested),
                                          testing::Values(48U, 57U), testing::Bool()));

TEST(VtdDriver, ThreeLevelTablesTranslateThirtyNineBits) {
  Unit unit(options(ContextKind::Stage2, 39));
  unit.bring_up();
  const auto table = unit.driver.create_table(TableKind::Stage2, unit.memory);
  EXPECT_EQ(unit.driver.max_input(TableKind::Stage2), (1ULL << 39) - 1);
  const std::uint64_t last = (1ULL << 39) - kPageSize.value();
  table->map({.input = last, .output = kOutput});
  unit.driver.attach(kNic, {.kind = ContextKind::Stage2, .domain = DomainTag(1), .stage2 = table->root()}, unit.memory);
  EXPECT_EQ(print(unit.translate(kNic, last)), std::to_string(kOutput));
}

TEST(VtdDriver, SettingsThatAModeCannotExpressAreRefused) {
  Unit legacy(options(ContextKind::Stage2));
  legacy.bring_up();
  const auto table = legacy.driver.create_table(TableKind::Stage1, legacy.memory);
  const ContextSetting stage1{.kind = ContextKind::Stage1, .stage1 = table->root()};
  EXPECT_EQ(legacy.driver.attach(kNic, stage1, legacy.memory).status, EditStatus::OutOfRange);
  const ContextSetting tag{.kind = ContextKind::Bypass, .domain = DomainTag(0x10000)};
  EXPECT_EQ(legacy.driver.attach(kNic, tag, legacy.memory).status, EditStatus::OutOfRange);
  const ContextSetting deep{.kind = ContextKind::Stage2, .stage2 = {0x1000, kTopLevel5}};
  EXPECT_EQ(legacy.driver.attach(kNic, deep, legacy.memory).status, EditStatus::OutOfRange);
  EXPECT_EQ(print(legacy.translate(kNic, 0)), "LRT.2");
}

// Kills: an attach that links a table before all memory is there.
TEST(VtdDriver, AttachWithoutMemoryChangesNothing) {
  for (const ContextKind kind : {ContextKind::Stage2, ContextKind::Stage1}) {
    for (std::uint64_t left = 0; left < 4; ++left) {
      Unit unit(options(kind));
      unit.bring_up();
      const auto table =
          unit.driver.create_table(kind == ContextKind::Stage1 ? TableKind::Stage1 : TableKind::Stage2, unit.memory);
      while (unit.frames.frames() - unit.frames.used() > left) (void)unit.frames.allocate();
      const std::uint64_t used = unit.frames.used();
      const ContextSetting setting{
          .kind = kind, .domain = DomainTag(1), .stage1 = table->root(), .stage2 = table->root()};
      const TableEdit edit = unit.driver.attach(kNic, setting, unit.memory);
      const std::uint64_t needed = kind == ContextKind::Stage1 ? 3 : 1;
      EXPECT_EQ(edit.status, left < needed ? EditStatus::NoMemory : EditStatus::Ok);
      if (left < needed) {
        EXPECT_EQ(unit.frames.used(), used);
        EXPECT_EQ(edit.entries_written, 0U);
      }
    }
  }
}

// interfaces §6, behaviour 36: by the old or the new table, never a mix. Kills: writing the halves one by one, and
// clearing the present bit where it is not needed.
TEST(VtdDriver, ReplacingASettingNeverShowsAMix) {
  for (const bool scalable : {false, true}) {
    for (const ContextKind to : {ContextKind::Stage2, ContextKind::Bypass, ContextKind::Stage1}) {
      if (to == ContextKind::Stage1 && !scalable) continue;
      DriverOptions o = options(ContextKind::Stage2);
      o.stage1 = scalable;
      Unit unit(o);
      unit.bring_up();
      WatchedTableMemory memory(unit.memory);
      const auto a = unit.driver.create_table(TableKind::Stage2, unit.memory);
      const auto b =
          unit.driver.create_table(to == ContextKind::Stage1 ? TableKind::Stage1 : TableKind::Stage2, unit.memory);
      a->map({.input = 0x1000, .output = 0xa000});
      b->map({.input = 0x1000, .output = 0xb000});
      const ContextSetting from_setting{.kind = ContextKind::Stage2, .domain = DomainTag(1), .stage2 = a->root()};
      const ContextSetting to_setting{.kind = to, .domain = DomainTag(2), .stage1 = b->root(), .stage2 = b->root()};
      unit.driver.attach(kNic, from_setting, memory);
      const auto seen = [&] {
        const auto context =
            unit.core.find_context({.requester = kNic, .pasid = {}, .address = Iova(0)}, unit.port).run();
        const auto* found = std::get_if<Context>(&context);
        return std::pair{found != nullptr ? found->domain.value() : 0, print(unit.translate(kNic, 0x1000))};
      };
      const std::pair old_state{1U, std::to_string(0xa000)};
      const std::pair new_state{2U, std::to_string(to == ContextKind::Bypass ? 0x1000 : 0xb000)};
      for (const auto& [setting, before, after] :
           {std::tuple{to_setting, old_state, new_state}, std::tuple{from_setting, new_state, old_state}}) {
        memory.on_write = [&](std::uint64_t) { EXPECT_TRUE(seen() == before || seen() == after) << seen().second; };
        const TableEdit edit = unit.driver.attach(kNic, setting, memory);
        memory.on_write = nullptr;
        EXPECT_TRUE(edit.modified && !edit.added);
        EXPECT_EQ(seen(), after);
      }
      EXPECT_EQ(unit.driver.attach(kNic, from_setting, memory).entries_written, 0U);
    }
  }
}

// Two first stages cannot be exchanged at once: then the device is blocked in between, never half moved.
TEST(VtdDriver, ReplacingAFirstStageBlocksInBetween) {
  Unit unit(options(ContextKind::Stage1));
  unit.bring_up();
  WatchedTableMemory memory(unit.memory);
  const auto a = unit.driver.create_table(TableKind::Stage1, unit.memory);
  const auto b = unit.driver.create_table(TableKind::Stage1, unit.memory);
  a->map({.input = 0x1000, .output = 0xa000});
  b->map({.input = 0x1000, .output = 0xb000});
  unit.driver.attach(kNic, {.kind = ContextKind::Stage1, .domain = DomainTag(1), .stage1 = a->root()}, memory);
  std::vector<std::string> seen;
  memory.on_write = [&](std::uint64_t) { seen.push_back(print(unit.translate(kNic, 0x1000))); };
  unit.driver.attach(kNic, {.kind = ContextKind::Stage1, .domain = DomainTag(2), .stage1 = b->root()}, memory);
  EXPECT_EQ(seen, (std::vector<std::string>{"SPT.2", "SPT.2", std::to_string(0xb000)}));
}

// Commands
// ---------------------------------------------------------------------------------------------------------------

// Random scopes of every kind, over the ring's wrap: the core removes at least what was asked. Kills: a descriptor
// whose mask is one too small, a widening that narrows, a forgotten granularity.
TEST(VtdDriver, EncodedCommandsRemoveAtLeastTheScope) {
  using enum InvalidationKind;
  constexpr std::array kKinds{Context, Iotlb, DeviceTlb, InterruptEntry, ProcessContext};
  RandomScopes random(11);
  for (const ContextKind kind : {ContextKind::Stage2, ContextKind::Nested}) {
    for (const RangeFlush flush : {RangeFlush::ExactOrDomain, RangeFlush::SmallestBlock}) {
      DriverOptions o = options(kind);
      o.range_flush = flush;
      Unit unit(o);
      unit.bring_up();
      // ProcessContext exists in scalable mode only.
      const std::span<const InvalidationKind> kinds = std::span(kKinds).first(o.stage1 ? 5 : 4);
      for (int i = 0; i < 600; ++i) {
        InvalidationScope scope = random.scope(kinds, kNic);
        if (scope.kind != Context && o.stage1) scope.asid = random.maybe(random.asid());
        if (scope.kind == Context) scope.requester_ignore = random.rng.chance(0.5) ? 7 : 0;
        random.expect_removed(scope, unit.executed(scope));
      }
    }
  }
}

// interfaces §6, behaviours 76 and 80.
TEST(VtdDriver, AnAlignedPowerOfTwoIsOnePageSelectiveCommandAndAllElseTheDomain) {
  Unit unit(options(ContextKind::Stage2));
  unit.bring_up();
  const auto scope_of = [](std::uint64_t first_page, std::uint64_t pages) {
    return InvalidationScope{.domain = DomainTag(5),
                             .range = AddressRange{first_page << kPageLg2, ((first_page + pages) << kPageLg2) - 1}};
  };
  for (const std::uint64_t pages : {1ULL, 2ULL, 512ULL, 1ULL << 18}) {
    EXPECT_EQ(unit.driver.widen(scope_of(pages, pages)), scope_of(pages, pages));
    EXPECT_EQ(unit.executed(scope_of(pages, pages)), std::vector{scope_of(pages, pages)});
  }
  const InvalidationScope domain{.domain = DomainTag(5)};
  for (const auto& wide : {scope_of(1, 2), scope_of(0, 3), scope_of(0, 1ULL << 19)}) {
    EXPECT_EQ(unit.driver.widen(wide), domain);
    EXPECT_EQ(unit.executed(wide), std::vector{domain});
  }
}
// Linux rounds to the block around the range instead. [linux drivers/iommu/intel: PSI alignment]
TEST(VtdDriver, SmallestBlockCoversAMisalignedRange) {
  DriverOptions o = options(ContextKind::Stage2);
  o.range_flush = RangeFlush::SmallestBlock;
  const Driver driver(o);
  const InvalidationScope scope{.domain = DomainTag(5), .range = AddressRange{0x1000, 0x2fff}};
  EXPECT_EQ(driver.widen(scope).range, (AddressRange{0, 0x3fff}));
  const InvalidationScope across{.domain = DomainTag(5), .range = AddressRange{(1ULL << 40) - 0x1000, 1ULL << 40}};
  EXPECT_FALSE(driver.widen(across).range);  // the block is larger than one command names
}

TEST(VtdDriver, FenceWritesItsStatusWord) {
  for (const ContextKind kind : {ContextKind::Stage2, ContextKind::Stage1}) {
    Unit unit(options(kind));
    unit.bring_up();
    unit.expect_fence_writes_status();
  }
}

// What Xen and Linux flush after a context change. Kills: flushing the new domain instead of the old one, and flushing
// not- present entries that hardware does not cache.
TEST(VtdDriver, ContextChangesInvalidateTheOldDomain) {
  const ContextSetting old{.kind = ContextKind::Stage2, .domain = DomainTag(9)};
  const Driver legacy(options(ContextKind::Stage2));
  const auto scopes = legacy.context_scopes(kNic, old);
  ASSERT_EQ(scopes.size(), 2U);
  EXPECT_EQ(scopes[0],
            (InvalidationScope{.kind = InvalidationKind::Context, .domain = DomainTag(9), .requester = kNic}));
  EXPECT_EQ(scopes[1], (InvalidationScope{.kind = InvalidationKind::Iotlb, .domain = DomainTag(9)}));
  EXPECT_TRUE(legacy.context_scopes(kNic, std::nullopt).empty());

  const Driver scalable(options(ContextKind::Stage1));
  const auto pasid_scopes =
      scalable.context_scopes(kNic, ContextSetting{.kind = ContextKind::Stage1, .domain = DomainTag(9)});
  ASSERT_EQ(pasid_scopes.size(), 2U);
  EXPECT_EQ(pasid_scopes[0].kind, InvalidationKind::ProcessContext);
  EXPECT_EQ(pasid_scopes[1], (InvalidationScope{.domain = DomainTag(9), .asid = AsidTag(0)}));
  EXPECT_EQ(scalable.context_scopes(kNic, old)[1], (InvalidationScope{.domain = DomainTag(9)}));
}
TEST(VtdDriver, CachingModeInvalidatesWhatBecomesPresent) {
  for (const ContextKind kind : {ContextKind::Bypass, ContextKind::Stage1}) {
    DriverOptions o = options(kind);
    o.features.caching_mode = true;
    Unit unit(o);
    unit.bring_up();
    const auto table = unit.driver.create_table(TableKind::Stage1, unit.memory);
    unit.driver.attach(kNic, {.kind = kind, .domain = DomainTag(4), .stage1 = table->root()}, unit.memory);
    const auto scopes = unit.driver.context_scopes(kNic, std::nullopt);
    ASSERT_EQ(scopes.size(), o.stage1 ? 3U : 2U);
    EXPECT_EQ(scopes[0].domain, DomainTag(0));
    EXPECT_EQ(scopes[0].requester, kNic);
    EXPECT_EQ(scopes.back().domain, DomainTag(4));
  }
}

TEST(VtdDriver, PageSizesFollowTheUnit) {
  DriverOptions o;
  constexpr std::uint64_t k4K = 1ULL << 12, k2M = 1ULL << 21, k1G = 1ULL << 30;
  EXPECT_EQ(Driver(o).page_sizes(TableKind::Stage2), k4K | k2M | k1G);
  o.features.superpages = false;
  EXPECT_EQ(Driver(o).page_sizes(TableKind::Stage2), k4K);
  EXPECT_EQ(Driver(o).page_sizes(TableKind::Stage1), k4K | k2M);
}

}  // namespace
}  // namespace iommu::vtd
