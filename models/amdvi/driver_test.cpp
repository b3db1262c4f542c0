// SPDX-License-Identifier: Apache-2.0
// What the driver writes, the core reads: device table, page tables, commands, registers.
#include "models/amdvi/driver.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "models/amdvi/core.hpp"
#include "sim/translation/driver_test_support.hpp"
#include "sim/translation/table_test_support.hpp"

namespace iommu::amdvi {
namespace {

using iommu::test::options;
using iommu::test::print;
using iommu::test::RandomScopes;
using iommu::test::WatchedTableMemory;

constexpr RequesterId kNic = RequesterId::bdf(3, 0, 0);
constexpr RequesterId kLast = RequesterId::bdf(255, 31, 7);  // the last entry of the device table
constexpr std::uint64_t kOutput = 0x12345000;

struct Unit : iommu::test::DrivenUnit<Driver, Core> {
  explicit Unit(const DriverOptions& o) : DrivenUnit(o, compose(o.features)) {}
};

// Kills: rings enabled before their bases are there, and a device table that forwards what is not attached.
TEST(AmdViDriver, BringUpBlocksEveryDevice) {
  for (const bool stage1 : {false, true}) {
    DriverOptions o;
    o.stage1 = stage1;
    Unit unit(o);
    EXPECT_FALSE(unit.core.is_translating());
    unit.bring_up();
    EXPECT_TRUE(unit.core.is_translating());
    const std::uint64_t status = unit.core.mmio_read(offset::kStatus, 8);
    EXPECT_EQ((get<kStatus, "CmdBufRun">(status)), 1U);
    EXPECT_EQ((get<kStatus, "EventLogRun">(status)), 1U);
    EXPECT_EQ((get<kControl, "GTEn">(unit.core.mmio_read(offset::kControl, 8))), stage1 ? 1U : 0U);
    for (const RequesterId device : {RequesterId(0), kNic, kLast})
      EXPECT_EQ(print(unit.translate(device, 0)), "IO_PAGE_FAULT.untranslated");
  }
}
TEST(AmdViDriver, RingHoldsWhatWasAskedFor) {
  for (const std::uint32_t entries : {1U, 256U, 257U, 512U, 4096U, 1U << 20}) {
    DriverOptions o;
    o.features.command_ring_entries = entries;
    Unit unit(o);
    unit.bring_up();
    const CommandRing ring = unit.driver.ring();
    unit.expect_ring_holds(std::min(entries, 32768U));
    EXPECT_EQ((1U << get<kRingBase, "Len">(unit.core.mmio_read(offset::kCommandBase, 8))), ring.entries);
  }
}
TEST(AmdViDriver, BringUpWithoutMemoryFailsAndKeepsNothing) {
  for (const std::uint64_t pages : {0U, 1U, 2U, 511U, 512U, 513U}) iommu::test::expect_bring_up_fails<Driver>(pages);
}

class AmdViAttach : public testing::TestWithParam<std::tuple<ContextKind, unsigned, bool>> {};

// Every kind and width, and the ends of the device table. Kills: a wrong Mode, GuestPagingMode, GCR3 piece or pointer.
TEST_P(AmdViAttach, CoreTranslatesWhatTheDriverMapped) {
  const auto [kind, bits, last] = GetParam();
  const RequesterId device = last ? kLast : kNic;
  Unit unit(options(kind, bits));
  unit.bring_up();
  const auto stage2 = unit.driver.create_table(TableKind::Stage2, unit.memory);
  const auto stage1 = unit.driver.create_table(TableKind::Stage1, unit.memory);
  // Guest tables are where the host tables map them one to one.
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
  unit.expect_detach_blocks(device, input, "IO_PAGE_FAULT.untranslated");
}
INSTANTIATE_TEST_SUITE_P(Kinds, AmdViAttach,
                         testing::Combine(testing::Values(ContextKind::Bypass, ContextKind::Stage1, ContextKind::Stage2,
                                                          ContextKind::Nested),
                                          testing::Values(48U, 57U), testing::Bool()));

TEST(AmdViDriver, ThreeLevelTablesTranslateThirtyNineBits) {
  Unit unit(options(ContextKind::Stage2, 39));
  unit.bring_up();
  const auto table = unit.driver.create_table(TableKind::Stage2, unit.memory);
  EXPECT_EQ(unit.driver.max_input(TableKind::Stage2), (1ULL << 39) - 1);
  const std::uint64_t last = (1ULL << 39) - kPageSize.value();
  table->map({.input = last, .output = kOutput});
  unit.driver.attach(kNic, {.kind = ContextKind::Stage2, .domain = DomainTag(1), .stage2 = table->root()}, unit.memory);
  EXPECT_EQ(print(unit.translate(kNic, last)), std::to_string(kOutput));
  EXPECT_EQ(print(unit.translate(kNic, last + kPageSize.value())), "IO_PAGE_FAULT.range");
}

TEST(AmdViDriver, SettingsThatTheUnitCannotExpressAreRefused) {
  Unit unit(options(ContextKind::Stage2));
  unit.bring_up();
  const auto table = unit.driver.create_table(TableKind::Stage1, unit.memory);
  const auto refused = [&](const ContextSetting& setting) {
    const TableEdit edit = unit.driver.attach(kNic, setting, unit.memory);
    return edit.status == EditStatus::OutOfRange && edit.entries_written == 0;
  };
  EXPECT_TRUE(refused({.kind = ContextKind::Stage1, .stage1 = table->root()}));
  EXPECT_TRUE(refused({.kind = ContextKind::Bypass, .domain = DomainTag(0x10000)}));
  EXPECT_TRUE(refused({.kind = ContextKind::Stage2, .stage2 = {0x1000, 4}}));  // five levels, HATS allows four
  EXPECT_EQ(print(unit.translate(kNic, 0)), "IO_PAGE_FAULT.untranslated");
  Unit guest(options(ContextKind::Stage1));
  guest.bring_up();
  EXPECT_EQ(guest.driver.attach(kNic, {.kind = ContextKind::Stage1, .stage1 = {0x1000, 2}}, guest.memory).status,
            EditStatus::OutOfRange);
}

// Only guest tables need memory of their own: the GCR3 table.
TEST(AmdViDriver, AttachWithoutMemoryChangesNothing) {
  Unit unit(options(ContextKind::Stage1));
  unit.bring_up();
  const auto table = unit.driver.create_table(TableKind::Stage1, unit.memory);
  while (unit.frames.allocate()) {
  }
  const ContextSetting setting{
      .kind = ContextKind::Stage1, .domain = DomainTag(1), .stage1 = table->root(), .stage2 = table->root()};
  const TableEdit edit = unit.driver.attach(kNic, setting, unit.memory);
  EXPECT_EQ(edit.status, EditStatus::NoMemory);
  EXPECT_EQ(edit.entries_written, 0U);
  EXPECT_EQ(print(unit.translate(kNic, 0)), "IO_PAGE_FAULT.untranslated");
  ContextSetting bypass = setting;
  bypass.kind = ContextKind::Bypass;
  EXPECT_EQ(unit.driver.attach(kNic, bypass, unit.memory).status, EditStatus::Ok);
}

// interfaces §6, behaviour 36: by the old or the new setting, never a mix, between any two kinds. Kills: writing the
// words one by one, changing the GCR3 table that the entry points to, and GuestPagingMode in the wrong order.
TEST(AmdViDriver, ReplacingASettingNeverShowsAMix) {
  constexpr std::array kKinds{ContextKind::Bypass, ContextKind::Stage1, ContextKind::Stage2, ContextKind::Nested};
  for (const ContextKind from : kKinds)
    for (const ContextKind to : kKinds)
      for (const unsigned bits : {48U, 57U}) {
        Unit unit(options(ContextKind::Nested, bits));
        unit.bring_up();
        WatchedTableMemory memory(unit.memory);
        const auto setting_of = [&](ContextKind kind, std::uint32_t domain, std::uint64_t output) {
          const auto stage2 = unit.driver.create_table(TableKind::Stage2, unit.memory);
          const auto stage1 = unit.driver.create_table(TableKind::Stage1, unit.memory);
          stage1->map({.input = 0x8000'1000, .output = output});
          if (kind == ContextKind::Stage2)
            stage2->map({.input = 0x8000'1000, .output = output});
          else
            stage2->map({.input = 0, .output = 0, .length = 1_GiB, .max_page_lg2 = 30});
          return ContextSetting{
              .kind = kind, .domain = DomainTag(domain), .stage1 = stage1->root(), .stage2 = stage2->root()};
        };
        const ContextSetting old_setting = setting_of(from, 1, 0xa000);
        const ContextSetting new_setting = setting_of(to, 2, 0xb000);
        unit.driver.attach(kNic, old_setting, memory);
        const auto seen = [&] {
          const auto context =
              unit.core.find_context({.requester = kNic, .pasid = {}, .address = Iova(0)}, unit.port).run();
          const auto* found = std::get_if<Context>(&context);
          return std::pair{found != nullptr ? found->domain.value() : 0, print(unit.translate(kNic, 0x8000'1000))};
        };
        const auto state = [&](ContextKind kind, std::uint32_t domain, std::uint64_t output) {
          return std::pair{domain, std::to_string(kind == ContextKind::Bypass ? 0x8000'1000 : output)};
        };
        const auto old_state = state(from, 1, 0xa000), new_state = state(to, 2, 0xb000);
        ASSERT_EQ(seen(), old_state);
        // Twice there and back: both GCR3 tables are in use.
        for (int turn = 0; turn < 2; ++turn)
          for (const auto& [setting, before, after] :
               {std::tuple{new_setting, old_state, new_state}, std::tuple{old_setting, new_state, old_state}}) {
            memory.on_write = [&](std::uint64_t) { EXPECT_TRUE(seen() == before || seen() == after) << seen().second; };
            const TableEdit edit = unit.driver.attach(kNic, setting, memory);
            memory.on_write = nullptr;
            EXPECT_TRUE(edit.modified && !edit.added);
            EXPECT_EQ(seen(), after);
          }
        EXPECT_EQ(unit.driver.attach(kNic, old_setting, memory).entries_written, 0U);
      }
}

// Guest tables of another depth cannot be exchanged at once: then the device is blocked in between, never half moved.
TEST(AmdViDriver, ReplacingGuestTablesOfAnotherDepthBlocksInBetween) {
  Unit unit(options(ContextKind::Stage1, 57));
  unit.bring_up();
  WatchedTableMemory memory(unit.memory);
  const auto deep = unit.driver.create_table(TableKind::Stage1, unit.memory);
  deep->map({.input = 0x1000, .output = 0xa000});
  // The lower four of its five levels, as a table of its own.
  const TableRoot shallow{unit.memory.read64(deep->root().address) & mask_of<kGuestTable, "Address">, 3};
  unit.driver.attach(kNic, {.kind = ContextKind::Stage1, .domain = DomainTag(1), .stage1 = deep->root()}, memory);
  std::vector<std::string> seen;
  memory.on_write = [&](std::uint64_t) { seen.push_back(print(unit.translate(kNic, 0x1000))); };
  unit.driver.attach(kNic, {.kind = ContextKind::Stage1, .domain = DomainTag(2), .stage1 = shallow}, memory);
  const std::string through = std::to_string(0xa000);
  EXPECT_EQ(seen,
            (std::vector<std::string>{through, "IO_PAGE_FAULT.untranslated", "IO_PAGE_FAULT.untranslated", through}));
}

// Commands
// ---------------------------------------------------------------------------------------------------------------

// Random scopes of every kind, over the ring's wrap: the core removes at least what was asked. Kills: a range
// of half the size, a widening that narrows, a forgotten form.
TEST(AmdViDriver, EncodedCommandsRemoveAtLeastTheScope) {
  using enum InvalidationKind;
  constexpr std::array kKinds{Context, Iotlb, DeviceTlb, InterruptEntry, ProcessContext};
  RandomScopes random(11);
  for (const ContextKind kind : {ContextKind::Stage2, ContextKind::Nested}) {
    for (const RangeFlush flush : {RangeFlush::ExactOrDomain, RangeFlush::SmallestBlock}) {
      DriverOptions o = options(kind);
      o.range_flush = flush;
      Unit unit(o);
      unit.bring_up();
      // ProcessContext needs GCR3 entries.
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

// Xen names one page, 2 MiB, 1 GiB or everything; Linux any power of two: the smallest block around the range. Each is
// one command. Kills: the bits of a size off by one.
TEST(AmdViDriver, OneCommandOfTheSmallestBlock) {
  constexpr std::uint64_t k2M = 512, k1G = 512 * 512;  // in pages
  struct Case {
    std::uint64_t first_page, pages;
    std::optional<std::pair<std::uint64_t, std::uint64_t>> xen, linux;  // first page and pages
  };
  const std::vector<Case> cases{
      {5, 1, {{5, 1}}, {{5, 1}}},
      {6, 2, {{0, k2M}}, {{6, 2}}},
      {5, 2, {{0, k2M}}, {{4, 4}}},
      {k2M, k2M, {{k2M, k2M}}, {{k2M, k2M}}},
      {k2M - 1, 2, {{0, k1G}}, {{0, 2 * k2M}}},
      {k1G, k1G, {{k1G, k1G}}, {{k1G, k1G}}},
      {k1G - 1, 2, {}, {{0, 2 * k1G}}},
      {(1ULL << 35) - 1, 2, {}, {{0, 1ULL << 36}}},
      {(1ULL << 40) - 1, 2, {}, {}},
      {0, 1ULL << 52, {}, {}},
  };
  for (const RangeFlush flush : {RangeFlush::ExactOrDomain, RangeFlush::SmallestBlock}) {
    DriverOptions o = options(ContextKind::Stage2);
    o.range_flush = flush;
    Unit unit(o);
    unit.bring_up();
    const auto scope_of = [](std::uint64_t first_page, std::uint64_t pages) {
      return InvalidationScope{.domain = DomainTag(5),
                               .range = AddressRange{first_page << kPageLg2, ((first_page + pages) << kPageLg2) - 1}};
    };
    for (const Case& c : cases) {
      const auto& expected = flush == RangeFlush::SmallestBlock ? c.linux : c.xen;
      const InvalidationScope wide =
          expected ? scope_of(expected->first, expected->second) : InvalidationScope{.domain = DomainTag(5)};
      const InvalidationScope exact = scope_of(c.first_page, c.pages);
      EXPECT_EQ(unit.driver.widen(exact), wide) << c.first_page << "+" << c.pages;
      EXPECT_EQ(unit.executed(exact), std::vector{wide}) << c.first_page << "+" << c.pages;
    }
  }
}

// Worked by hand. [§2.4.3]
TEST(AmdViDriver, PageCommandsBitByBit) {
  DriverOptions o = options(ContextKind::Nested);
  o.range_flush = RangeFlush::SmallestBlock;
  const Driver driver(o);
  const auto words = [&](const InvalidationScope& scope) {
    const CommandWords command = driver.encode(scope);
    return std::pair(command.words[0], command.words[1]);
  };
  using Pair = std::pair<std::uint64_t, std::uint64_t>;
  InvalidationScope scope{.domain = DomainTag(0x1234), .range = AddressRange{0x1234'5000, 0x1234'5fff}};
  EXPECT_EQ(words(scope), Pair(0x3000'1234'0000'0000, 0x1234'5002));  // PDE
  scope.leaf_only = true;
  EXPECT_EQ(words(scope), Pair(0x3000'1234'0000'0000, 0x1234'5000));
  scope.range = AddressRange{0x1234'0000, 0x1234'7fff};  // 32 KiB: ones in 13:12, zero in 14
  EXPECT_EQ(words(scope), Pair(0x3000'1234'0000'0000, 0x1234'3001));
  scope.range.reset();
  EXPECT_EQ(words(scope), Pair(0x3000'1234'0000'0000, 0x7fff'ffff'ffff'f001));
  scope.asid = AsidTag(0xabcde);
  EXPECT_EQ(words(scope), Pair(0x3000'1234'000a'bcde, 0x7fff'ffff'ffff'f005));  // GN
  const InvalidationScope device{.kind = InvalidationKind::DeviceTlb,
                                 .asid = AsidTag(0xabcde),
                                 .requester = RequesterId(0x0318),
                                 .range = AddressRange{0x1234'5000, 0x1234'5fff}};
  EXPECT_EQ(words(device), Pair(0x4ade'0318'00bc'0318, 0x1234'5004));
  EXPECT_EQ(words({.kind = InvalidationKind::Context, .requester = RequesterId(0x0318)}),
            Pair(0x2000'0000'0000'0318, 0));
  EXPECT_EQ(words({.kind = InvalidationKind::InterruptEntry, .requester = RequesterId(0x0318)}),
            Pair(0x5000'0000'0000'0318, 0));
  EXPECT_EQ(words({.kind = InvalidationKind::Iotlb}), Pair(0x8000'0000'0000'0000, 0));
}

// The store is of eight bytes: its place has no three lowest bits.
TEST(AmdViDriver, FenceWritesItsStatusWord) {
  Unit unit(options(ContextKind::Stage2));
  unit.bring_up();
  EXPECT_EQ(unit.driver.ring().fence_bytes, 8U);
  unit.expect_fence_writes_status();
}

// What Xen and Linux flush after a change of an entry: the entry, which hardware may hold in any case, and what the old
// domain left. Kills: flushing the new domain instead of the old one.
TEST(AmdViDriver, ContextChangesInvalidateTheEntryAndTheOldDomain) {
  const Driver driver(options(ContextKind::Nested));
  const InvalidationScope entry{.kind = InvalidationKind::Context, .requester = kNic};
  EXPECT_EQ(driver.context_scopes(kNic, std::nullopt), std::vector{entry});
  for (const ContextKind kind : {ContextKind::Bypass, ContextKind::Stage2, ContextKind::Nested}) {
    const auto scopes = driver.context_scopes(kNic, ContextSetting{.kind = kind, .domain = DomainTag(9)});
    EXPECT_EQ(scopes, (std::vector{entry, InvalidationScope{.domain = DomainTag(9)}}));
  }
  const auto scopes = driver.context_scopes(kNic, ContextSetting{.kind = ContextKind::Stage1, .domain = DomainTag(9)});
  EXPECT_EQ(scopes, (std::vector{entry, InvalidationScope{.domain = DomainTag(9), .asid = AsidTag(0)}}));
}

TEST(AmdViDriver, PageSizesFollowTheUnit) {
  DriverOptions o;
  constexpr std::uint64_t k4K = 1ULL << 12, k2M = 1ULL << 21, k1G = 1ULL << 30;
  EXPECT_EQ(Driver(o).page_sizes(TableKind::Stage2), k4K | k2M | k1G);
  EXPECT_EQ(Driver(o).page_sizes(TableKind::Stage1), k4K | k2M | k1G);
  o.features.superpages = false;
  EXPECT_EQ(Driver(o).page_sizes(TableKind::Stage2), k4K);
  EXPECT_EQ(Driver(o).page_sizes(TableKind::Stage1), k4K);
}

}  // namespace
}  // namespace iommu::amdvi
