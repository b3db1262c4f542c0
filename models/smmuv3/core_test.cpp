// SPDX-License-Identifier: Apache-2.0
// Walks: two input ranges, granules of both stages, sizes, marks, privileges, substreams and ATS.
#include "models/smmuv3/core.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <tuple>
#include <vector>

#include "models/smmuv3/stream_bench.hpp"

namespace iommu::smmuv3 {
namespace {

using test::kInput;
using test::kNic;
using test::kOutput;
using test::options;
using test::print;
using test::StreamBench;

Translation translated(StreamBench& bench, const TranslationRequest& request) {
  const TranslationResponse response = bench.translate(request);
  EXPECT_TRUE(std::holds_alternative<Translation>(response)) << print(response);
  return std::holds_alternative<Translation>(response) ? std::get<Translation>(response) : Translation{};
}

// Kills: TTB1 that is never walked, an address that is not sign-extended taken for one, EPD1 ignored.
TEST(Smmuv3Walk, TheSignBitSelectsTheUpperRange) {
  StreamBench bench(ContextKind::Stage1);
  const auto upper = bench.driver.create_table(TableKind::Stage1, bench.memory);
  upper->map({.input = 0x7000, .output = 0x77000});
  const std::uint64_t high = ~bits_between(0, 48) | 0x7000;
  EXPECT_EQ(print(bench.translate(bench.request(Access::Read, high))), "F_TRANSLATION");
  bench.cd<"EPD1">(0);
  bench.cd<"T1SZ">(16);
  bench.cd<"TG1">(2);
  bench.cd<"TTB1">(upper->root().address >> 4);
  EXPECT_EQ(print(bench.translate(bench.request(Access::Read, high | 8))), std::to_string(0x77008));
  EXPECT_EQ(print(bench.translate(bench.request())), std::to_string(kOutput));
  for (const std::uint64_t gap : {high & ~(1ULL << 48), high & ~(1ULL << 63), kInput | 1ULL << 48, kInput | 1ULL << 62})
    EXPECT_EQ(print(bench.translate(bench.request(Access::Read, gap))), "F_TRANSLATION") << std::hex << gap;
  bench.cd<"EPD0">(1);
  EXPECT_EQ(print(bench.translate(bench.request())), "F_TRANSLATION");
}

// Kills: TBI of the other range, and a tag that reaches bit 55.
TEST(Smmuv3Walk, TopByteIgnoreIsPerRange) {
  StreamBench bench(ContextKind::Stage1);
  const std::uint64_t tagged = kInput | 0xabULL << 56;
  EXPECT_EQ(print(bench.translate(bench.request(Access::Read, tagged))), "F_TRANSLATION");
  bench.cd<"TBI1">(1);
  EXPECT_EQ(print(bench.translate(bench.request(Access::Read, tagged))), "F_TRANSLATION");
  bench.cd<"TBI0">(1);
  EXPECT_EQ(print(bench.translate(bench.request(Access::Read, tagged))), std::to_string(kOutput));
  EXPECT_EQ(print(bench.translate(bench.request(Access::Read, tagged | 1ULL << 55))), "F_TRANSLATION");
  const std::array event = bench.event(bench.request(Access::Read, tagged | 1ULL << 55));
  EXPECT_EQ((get<kEvent, "InputAddr">(event)), tagged | 1ULL << 55) << "unmodified in events";
}

class Smmuv3Granules : public testing::TestWithParam<std::tuple<unsigned, unsigned>> {};
// Stage-1 pages larger than stage 2's, the reverse, and equal: blocks and pages. Kills: the larger of the two sizes, an
// offset taken from the wrong page, tables of 16 or 64 KiB located by their first page only.
TEST_P(Smmuv3Granules, NestedPagesOfAnyTwoSizesCompose) {
  const auto [first, second] = GetParam();
  DriverOptions o = options(ContextKind::Nested);
  o.granule_lg2 = first;
  StreamBench bench(ContextKind::Bypass, o);
  DriverOptions of_stage2 = o;
  of_stage2.granule_lg2 = second;
  Driver other(of_stage2);
  const auto stage1 = bench.driver.create_table(TableKind::Stage1, bench.memory);
  const auto stage2 = other.create_table(TableKind::Stage2, bench.memory);
  const unsigned block1 = first + (first - 3), block2 = second + (second - 3);
  // A page and a block of stage 1, to intermediate addresses that stage 2 maps by pages and by a block.
  const std::uint64_t low = 1ULL << 30, high = 1ULL << 33, page1 = 1ULL << first, page2 = 1ULL << second;
  const std::uint64_t span = std::max(page1, page2);
  ASSERT_EQ(stage1->map({.input = span, .output = low, .length = Bytes(page1), .max_page_lg2 = first}).status,
            EditStatus::Ok);
  ASSERT_EQ(stage1->map({.input = 1ULL << 34, .output = high, .length = Bytes(1ULL << block1), .max_page_lg2 = block1})
                .status,
            EditStatus::Ok);
  // Pages in reverse order, so that neighbours in one space are none in the other.
  const std::uint64_t pages = span / page2;
  for (std::uint64_t i = 0; i < pages; ++i)
    ASSERT_EQ(stage2
                  ->map({.input = low + i * page2,
                         .output = (1ULL << 35) + (pages - 1 - i) * page2,
                         .length = Bytes(page2),
                         .max_page_lg2 = second})
                  .status,
              EditStatus::Ok);
  ASSERT_EQ(stage2->map({.input = high, .output = 1ULL << 36, .length = Bytes(1ULL << block2), .max_page_lg2 = block2})
                .status,
            EditStatus::Ok);
  // Tables one to one, in the smallest pages.
  ASSERT_EQ(stage2->map({.input = 1ULL << 24, .output = 1ULL << 24, .length = 16_MiB, .max_page_lg2 = second}).status,
            EditStatus::Ok);
  TableRoot root1 = stage1->root(), root2 = stage2->root();
  root2.granule_lg2 = static_cast<std::uint8_t>(second);
  root2.input_bits = 48;
  const ContextSetting setting{.kind = ContextKind::Nested, .domain = DomainTag(7), .stage1 = root1, .stage2 = root2};
  ASSERT_EQ(bench.driver.attach(kNic, setting, bench.memory).status, EditStatus::Ok);
  for (std::uint64_t at = 0; at < page1; at += page1 / 8) {
    const Translation t = translated(bench, bench.request(Access::Write, span + at));
    const std::uint64_t expected = (1ULL << 35) + (pages - 1 - at / page2) * page2 + at % page2;
    EXPECT_EQ(t.address, Hpa(expected)) << std::hex << at;
    EXPECT_EQ(t.page_lg2, std::min(first, second));
  }
  const std::uint64_t inside = std::min(1ULL << block1, 1ULL << block2) - 0x1238;
  const Translation block = translated(bench, bench.request(Access::Read, (1ULL << 34) + inside));
  EXPECT_EQ(block.address, Hpa((1ULL << 36) + inside));
  EXPECT_EQ(block.page_lg2, std::min(block1, block2));
}
INSTANTIATE_TEST_SUITE_P(All, Smmuv3Granules,
                         testing::Combine(testing::Values(12U, 14U, 16U), testing::Values(12U, 14U, 16U)));

// Kills: a contiguous block of the wrong size, or taken where an entry is out of place.
TEST(Smmuv3Walk, ContiguousEntriesAreOnePage) {
  StreamBench bench(ContextKind::Stage1);
  constexpr std::uint64_t kBlock = 0x5000'0000, kTo = 0x2000'0000;
  bench.stage1->map({.input = kBlock, .output = kTo, .length = 64_KiB});
  for (std::uint64_t i = 0; i < 16; ++i) {
    const std::uint64_t at = kBlock + i * 0x1000;
    bench.set_entry(*bench.stage1, at, 0, with<kStage1Leaf, "Contiguous">(bench.entry(*bench.stage1, at, 0), 1));
  }
  for (std::uint64_t i = 0; i < 16; ++i) {
    const Translation t = translated(bench, bench.request(Access::Read, kBlock + i * 0x1000 + 8));
    EXPECT_EQ(t.address, Hpa(kTo + i * 0x1000 + 8));
    EXPECT_EQ(t.page_lg2, 16);
  }
  const std::uint64_t odd = kBlock + 0x3000;
  bench.set_entry(*bench.stage1, odd, 0, bench.entry(*bench.stage1, odd, 0) ^ 0x1000);
  const Translation t = translated(bench, bench.request(Access::Read, odd));
  EXPECT_EQ(t.address, Hpa(kTo + 0x2000));
  EXPECT_EQ(t.page_lg2, 12);
}

// 52-bit addresses with the 64 KiB granule. Kills: bits 51:48 dropped, taken where the unit has 48, or a 4 TiB block
// without them.
TEST(Smmuv3Walk, TheLargestGranuleReaches52Bits) {
  DriverOptions o = options(ContextKind::Stage1);
  o.granule_lg2 = 16;
  o.features.host_address_bits = 52;
  StreamBench bench(ContextKind::Bypass, o);
  const auto table = bench.driver.create_table(TableKind::Stage1, bench.memory);
  constexpr std::uint64_t kFar = 0xa'0000'0000'0000 + 0x50000;
  ASSERT_EQ(table->map({.input = 0x10000, .output = kFar, .length = 64_KiB, .max_page_lg2 = 16}).status,
            EditStatus::Ok);
  ASSERT_EQ(
      table->map({.input = 1ULL << 42, .output = 1ULL << 50, .length = Bytes(1ULL << 42), .max_page_lg2 = 42}).status,
      EditStatus::Ok);
  const ContextSetting setting{.kind = ContextKind::Stage1, .domain = DomainTag(1), .stage1 = table->root()};
  ASSERT_EQ(bench.driver.attach(kNic, setting, bench.memory).status, EditStatus::Ok);
  EXPECT_EQ(translated(bench, bench.request(Access::Read, 0x10008)).address, Hpa(kFar + 8));
  const Translation block = translated(bench, bench.request(Access::Read, (1ULL << 42) + 0x123'4567'8900));
  EXPECT_EQ(block.address, Hpa((1ULL << 50) + 0x123'4567'8900));
  EXPECT_EQ(block.page_lg2, 42);
}

// HTTU at both stages. Kills: no mark, a mark by a refused access, a clean page whose read lets writes through, a
// stage-1 mark into a page that stage 2 does not let it write.
TEST(Smmuv3Walk, AccessedAndDirtyAreMarkedWhereTheyArePermitted) {
  DriverOptions o = options(ContextKind::Nested);
  o.features.accessed_dirty = true;
  StreamBench bench(ContextKind::Nested, o);
  const std::uint64_t clean = with<kStage1Leaf, "DBM">(
      with<kStage1Leaf, "APRead">(with<kStage1Leaf, "AF">(bench.entry(*bench.stage1, kInput, 0), 0), 1), 1);
  bench.set_entry(*bench.stage1, kInput, 0, clean);
  const Translation read = translated(bench, bench.request());
  EXPECT_EQ(bench.entry(*bench.stage1, kInput, 0), (with<kStage1Leaf, "AF">(clean, 1)));
  EXPECT_FALSE(read.allowed.write) << "the first write must come here and mark";
  const Translation write = translated(bench, bench.request(Access::Write));
  EXPECT_TRUE(write.allowed.write);
  EXPECT_EQ(bench.entry(*bench.stage1, kInput, 0), (with<kStage1Leaf, "APRead">(with<kStage1Leaf, "AF">(clean, 1), 0)));

  bench.ste<"S2HA">(1);
  bench.ste<"S2HD">(1);
  const std::uint64_t clean2 = with<kStage2Leaf, "DBM">(
      with<kStage2Leaf, "S2APWrite">(with<kStage2Leaf, "AF">(bench.entry(*bench.stage2, kOutput, 0), 0), 0), 1);
  bench.set_entry(*bench.stage2, kOutput, 0, clean2);
  EXPECT_FALSE(translated(bench, bench.request()).allowed.write);
  EXPECT_EQ(bench.entry(*bench.stage2, kOutput, 0), (with<kStage2Leaf, "AF">(clean2, 1)));
  EXPECT_TRUE(translated(bench, bench.request(Access::Write)).allowed.write);
  EXPECT_EQ(bench.entry(*bench.stage2, kOutput, 0),
            (with<kStage2Leaf, "S2APWrite">(with<kStage2Leaf, "AF">(clean2, 1), 1)));

  // Stage 1's table is read-only at stage 2: its mark is what is refused.
  const std::uint64_t table = bench.entry_address(*bench.stage1, kInput, 0) & ~0xfffULL;
  bench.set_entry(*bench.stage1, kInput, 0, clean);
  bench.set_entry(*bench.stage2, table, 0, with<kStage2Leaf, "S2APWrite">(bench.entry(*bench.stage2, table, 0), 0));
  const auto event = bench.event(bench.request());
  EXPECT_EQ((get<kEvent, "ID">(event)), kFault<"F_PERMISSION">->code);
  EXPECT_EQ((get<kEvent, "TTRnW">(event)), 0U);
  EXPECT_EQ((get<kEvent, "CLASS">(event)), static_cast<std::uint64_t>(FaultingAccess::Table));
  EXPECT_EQ(bench.entry(*bench.stage1, kInput, 0), clean);
}

// Kills: AFFD that is not looked at, and permissions checked before the flag.
TEST(Smmuv3Walk, AccessFlagFaultsCanBeDisabled) {
  for (const ContextKind kind : {ContextKind::Stage1, ContextKind::Stage2}) {
    StreamBench bench(kind);
    PageTable& table = kind == ContextKind::Stage1 ? *bench.stage1 : *bench.stage2;
    bench.set_entry(table, kInput, 0, with<kStage1Leaf, "AF">(bench.entry(table, kInput, 0), 0));
    EXPECT_EQ(print(bench.translate(bench.request())), "F_ACCESS");
    if (kind == ContextKind::Stage1)
      bench.cd<"AFFD">(1);
    else
      bench.ste<"S2AFFD">(1);
    EXPECT_EQ(print(bench.translate(bench.request())), std::to_string(kOutput));
  }
}

// Kills: APTable or AP bits swapped, HAD or PAN ignored, PRIVCFG not applied.
TEST(Smmuv3Walk, RightsDependOnPrivilegeTablesAndOverrides) {
  StreamBench bench(ContextKind::Stage1);
  const auto table = [&](std::uint64_t user, std::uint64_t read_only) {
    std::uint64_t entry = bench.entry(*bench.stage1, kInput, 2);
    entry = with<kTableDescriptor, "APTableUser">(entry, user);
    bench.set_entry(*bench.stage1, kInput, 2, with<kTableDescriptor, "APTableRead">(entry, read_only));
  };
  TranslationRequest user = bench.request(), privileged = bench.request();
  privileged.privileged = true;
  TranslationRequest write = bench.request(Access::Write);
  const auto ok = std::to_string(kOutput);
  table(1, 0);
  EXPECT_EQ(print(bench.translate(user)), "F_PERMISSION");
  EXPECT_EQ(print(bench.translate(privileged)), ok);
  bench.ste<"PRIVCFG">(static_cast<std::uint64_t>(AttributeOverride::On));
  EXPECT_EQ(print(bench.translate(user)), ok);
  bench.ste<"PRIVCFG">(static_cast<std::uint64_t>(AttributeOverride::Off));
  EXPECT_EQ(print(bench.translate(privileged)), "F_PERMISSION");
  bench.ste<"PRIVCFG">(0);
  bench.cd<"HAD0">(1);
  EXPECT_EQ(print(bench.translate(user)), ok);
  bench.cd<"HAD0">(0);
  table(0, 1);
  EXPECT_EQ(print(bench.translate(user)), ok);
  EXPECT_EQ(print(bench.translate(write)), "F_PERMISSION");
  EXPECT_FALSE(translated(bench, user).allowed.write);
  table(0, 0);
  bench.cd<"PAN">(1);
  EXPECT_EQ(print(bench.translate(privileged)), "F_PERMISSION") << "the page is one of users";
  EXPECT_EQ(print(bench.translate(user)), ok);
}

// S2PTW. Kills: a check of the transaction's own page, or none of the tables'.
TEST(Smmuv3Walk, TablesInDeviceMemoryAreRefusedWhereProtected) {
  StreamBench bench(ContextKind::Nested);
  const auto make_device = [&](std::uint64_t page) {
    bench.set_entry(*bench.stage2, page, 0, with<kStage2Leaf, "MemAttrHigh">(bench.entry(*bench.stage2, page, 0), 0));
  };
  make_device(kOutput);
  EXPECT_EQ(print(bench.translate(bench.request())), std::to_string(kOutput));
  make_device(bench.stage1->root().address);
  EXPECT_EQ(print(bench.translate(bench.request())), "F_PERMISSION");
  bench.ste<"S2PTW">(0);
  EXPECT_EQ(print(bench.translate(bench.request())), std::to_string(kOutput));
}

// Kills: a block of the wrong level, a page without bit 1.
TEST(Smmuv3Walk, ReservedDescriptorsTranslateNothing) {
  StreamBench bench(ContextKind::Stage1);
  const std::uint64_t page = bench.entry(*bench.stage1, kInput, 0);
  bench.set_entry(*bench.stage1, kInput, 0, with<kStage1Leaf, "Page">(page, 0));
  EXPECT_EQ(print(bench.translate(bench.request())), "F_TRANSLATION");
  bench.set_entry(*bench.stage1, kInput, 3, with<kStage1Leaf, "Page">(page, 0));
  EXPECT_EQ(print(bench.translate(bench.request())), "F_TRANSLATION") << "no block of 512 GiB";
}

// Substreams: linear and two-level tables. Kills: a wrong split, the default substream's modes, S1CDMax one off.
TEST(Smmuv3Substreams, SelectTheirDescriptor) {
  for (const auto& [format, per_table] : {std::pair{ContextTableFormat::Linear, 0U},
                                          {ContextTableFormat::TwoLevel4K, kCdsPer4KLg2},
                                          {ContextTableFormat::TwoLevel64K, kCdsPer64KLg2}}) {
    StreamBench bench(ContextKind::Stage1);
    const auto cd = bench.read(bench.cd_address());
    constexpr unsigned kMax = 12, kOf = 0xabc;
    const auto level1 = bench.memory.allocate(6), level2 = bench.memory.allocate(4);
    std::uint64_t at = *level1 + kOf * kCdBytes;
    if (per_table != 0) {
      bench.memory.write64(*level1 + (kOf >> per_table) * kL1CdBytes, with<kL1Cd, "V">(*level2, 1));
      at = *level2 + (kOf & bits_between(0, per_table)) * kCdBytes;
    }
    auto own = cd;
    iommu::put<kCd, "ASID">(std::span<std::uint64_t>(own), 0x42);
    bench.write(at, own);
    bench.ste<"S1ContextPtr">(*level1 >> 6);
    bench.ste<"S1Fmt">(static_cast<std::uint64_t>(format));
    bench.ste<"S1CDMax">(kMax);
    TranslationRequest request = bench.request();
    EXPECT_EQ(print(bench.translate(request)), "F_STREAM_DISABLED");
    request.pasid = Pasid(kOf);
    const auto context = bench.core.find_context(request, bench.port).run();
    ASSERT_TRUE(std::holds_alternative<Context>(context)) << std::get<Fault>(context).row->name;
    EXPECT_EQ(std::get<Context>(context).asid, AsidTag(0x42));
    EXPECT_EQ(std::get<Context>(context).process, AsidTag(kOf));
    EXPECT_EQ(print(bench.translate(request)), std::to_string(kOutput));
    request.pasid = Pasid(1U << kMax);
    EXPECT_EQ(print(bench.translate(request)), "C_BAD_SUBSTREAMID");
    request.pasid.reset();
    bench.ste<"S1DSS">(static_cast<std::uint64_t>(DefaultSubstream::Bypass));
    EXPECT_EQ(print(bench.translate(request)), std::to_string(kInput)) << "stage 1 is skipped";
    bench.ste<"S1DSS">(static_cast<std::uint64_t>(DefaultSubstream::Substream0));
    request.pasid = Pasid(0);
    EXPECT_EQ(print(bench.translate(request)), "F_STREAM_DISABLED") << "reserved for requests without";
  }
}

// Kills: an L1CD that is not valid followed anyway.
TEST(Smmuv3Substreams, AnInvalidSecondLevelIsABadSubstream) {
  StreamBench bench(ContextKind::Stage1);
  const auto level1 = bench.memory.allocate();
  bench.ste<"S1ContextPtr">(*level1 >> 6);
  bench.ste<"S1Fmt">(static_cast<std::uint64_t>(ContextTableFormat::TwoLevel4K));
  bench.ste<"S1CDMax">(8);
  TranslationRequest request = bench.request();
  request.pasid = Pasid(70);
  EXPECT_EQ(print(bench.translate(request)), "C_BAD_SUBSTREAMID");
  bench.memory.write64(*level1 + kL1CdBytes, with<kL1Cd, "V">(1ULL << 50, 1));  // beyond the OAS
  EXPECT_EQ(print(bench.translate(request)), "C_BAD_SUBSTREAMID");
}

// Addresses that no memory can have. Kills: a size check on one of the two ways past the tables only, an event.
TEST(Smmuv3Ats, TranslatedTransactionsBeyondTheOutputSizeEndWithoutEvent) {
  StreamBench bench(ContextKind::Stage1);
  TranslationRequest use = bench.request(Access::Write, 1ULL << 48);
  use.type = AddressType::Translated;
  for (const std::uint64_t checks : {mask_of<kCr0, "ATSCHK">, std::uint64_t{0}}) {
    const std::uint64_t control = bench.core.mmio_read(offset::kCr0, 4) & ~mask_of<kCr0, "ATSCHK">;
    bench.core.mmio_write(offset::kCr0, 4, control | checks);
    use.address = Iova(1ULL << 48);
    EXPECT_EQ(bench.event(use)[0], 0U);
    use.address = Iova((1ULL << 48) - 4096);
    EXPECT_EQ(print(bench.translate(use)), std::to_string((1ULL << 48) - 4096));
  }
}

// ATS. Kills: a checked transaction that passes, an unchecked one that is walked, rights for what is refused.
TEST(Smmuv3Ats, TranslatedTransactionsPassOnlyWhereTheStreamMay) {
  StreamBench bench(ContextKind::Nested);
  TranslationRequest ask = bench.request();
  ask.type = AddressType::TranslationRequest;
  TranslationRequest use = bench.request(Access::Write, kOutput);
  use.type = AddressType::Translated;
  EXPECT_EQ(print(bench.translate(ask)), std::to_string(kOutput));
  EXPECT_EQ(print(bench.translate(use)), std::to_string(kOutput));
  // Split stages: what the device is told, and uses, is intermediate.
  bench.ste<"EATS">(static_cast<std::uint64_t>(AtsMode::SplitStage));
  bench.set_entry(*bench.stage2, kOutput, 0, bench.entry(*bench.stage2, kOutput, 0) + 0x10'0000);
  EXPECT_EQ(print(bench.translate(ask)), std::to_string(kOutput));
  EXPECT_EQ(print(bench.translate(use)), std::to_string(kOutput + 0x10'0000));
  EXPECT_EQ(print(bench.translate(bench.request())), std::to_string(kOutput + 0x10'0000));
  bench.ste<"EATS">(0);
  EXPECT_EQ(print(bench.translate(use)), "F_TRANSL_FORBIDDEN");
  EXPECT_EQ(print(bench.translate(ask)), "F_BAD_ATS_TREQ");
  const std::uint64_t control = bench.core.mmio_read(offset::kCr0, 4);
  bench.core.mmio_write(offset::kCr0, 4, with<kCr0, "ATSCHK">(control, 0));
  EXPECT_EQ(print(bench.translate(use)), std::to_string(kOutput)) << "unchecked";
  // A page that is not there is no error of the request.
  bench.ste<"EATS">(static_cast<std::uint64_t>(AtsMode::Full));
  bench.set_entry(*bench.stage1, kInput, 0, 0);
  const Translation refused = translated(bench, ask);
  EXPECT_TRUE(refused.allowed.none());
}

// Every ILLEGAL entry, one field at a time. [§5.2.2, §5.4.2] Kills: each clause of the two predicates.
TEST(Smmuv3Validity, EachIllegalFieldIsRefused) {
  const std::vector<std::function<void(StreamBench&)>> bad_stes{
      [](StreamBench& b) { b.ste<"S2AA64">(0); },
      [](StreamBench& b) { b.ste<"S2TG">(3); },
      [](StreamBench& b) { b.ste<"S2T0SZ">(15); },
      [](StreamBench& b) { b.ste<"S2T0SZ">(40); },
      [](StreamBench& b) { b.ste<"S2SL0">(3); },
      [](StreamBench& b) { b.ste<"S2SL0">(0); },
      [](StreamBench& b) { b.ste<"S2ENDI">(1); },
      [](StreamBench& b) { b.ste<"S2S">(1); },
      [](StreamBench& b) { b.ste<"S2HA">(1); },
      [](StreamBench& b) { b.ste<"S2HD">(1); },
      [](StreamBench& b) { b.ste<"S2TTB">(1ULL << 47); },
      [](StreamBench& b) { b.ste<"S1STALLD">(1); },
      [](StreamBench& b) { b.ste<"S1CDMax">(21); },
      [](StreamBench& b) { b.ste<"S1ContextPtr">(1ULL << 43); },
      [](StreamBench& b) {
        b.ste<"EATS">(static_cast<std::uint64_t>(AtsMode::SplitStage));
        b.ste<"Config">(static_cast<std::uint64_t>(StreamConfig::Stage2));
      },
  };
  for (std::size_t i = 0; i < bad_stes.size(); ++i) {
    StreamBench bench(ContextKind::Nested);
    bad_stes[i](bench);
    EXPECT_EQ(print(bench.translate(bench.request())), "C_BAD_STE") << i;
  }
  const std::vector<std::function<void(StreamBench&)>> bad_cds{
      [](StreamBench& b) { b.cd<"V">(0); },
      [](StreamBench& b) { b.cd<"AA64">(0); },
      [](StreamBench& b) { b.cd<"ENDI">(1); },
      [](StreamBench& b) { b.cd<"T0SZ">(15); },
      [](StreamBench& b) { b.cd<"T0SZ">(40); },
      [](StreamBench& b) { b.cd<"TG0">(3); },
      [](StreamBench& b) { b.cd<"HA">(1); },
      [](StreamBench& b) { b.cd<"HD">(1); },
      [](StreamBench& b) { b.cd<"S">(1); },
      [](StreamBench& b) { b.cd<"TTB0">(1ULL << 44); },
      [](StreamBench& b) {
        b.cd<"EPD1">(0);
        b.cd<"T1SZ">(16);
        b.cd<"TG1">(0);
      },
  };
  for (std::size_t i = 0; i < bad_cds.size(); ++i) {
    StreamBench bench(ContextKind::Stage1);
    bad_cds[i](bench);
    EXPECT_EQ(print(bench.translate(bench.request())), "C_BAD_CD") << i;
  }
}

// Fields of a disabled range, of bypass and of abort are ignored. Kills: a check outside its condition.
TEST(Smmuv3Validity, IgnoredFieldsAreIgnored) {
  StreamBench bench(ContextKind::Stage1);
  bench.cd<"T1SZ">(63);
  bench.cd<"TG1">(0);
  bench.cd<"TTB1">(~0ULL);
  bench.ste<"S2TG">(3);
  bench.ste<"S2T0SZ">(63);
  bench.ste<"S2S">(1);
  bench.ste<"EATS">(0);
  bench.cd<"WXN">(1);
  bench.cd<"UWXN">(1);
  bench.cd<"ASET">(0);  // smmuv3-012
  EXPECT_EQ(print(bench.translate(bench.request())), std::to_string(kOutput));
  EXPECT_EQ(print(bench.translate(bench.request(Access::Write))), std::to_string(kOutput));
  bench.cd<"ASET">(1);
  EXPECT_EQ(print(bench.translate(bench.request())), std::to_string(kOutput));
  bench.ste<"Config">(static_cast<std::uint64_t>(StreamConfig::Bypass));
  bench.ste<"S1CDMax">(31);
  EXPECT_EQ(print(bench.translate(bench.request())), std::to_string(kInput));
  bench.ste<"Config">(3);
  EXPECT_EQ(print(bench.translate(bench.request())), "abort");
}

}  // namespace
}  // namespace iommu::smmuv3
