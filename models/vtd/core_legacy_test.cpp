// SPDX-License-Identifier: Apache-2.0
// Legacy mode: contexts, second-stage tables of every depth and page size, translation types, the interrupt range.
#include <gtest/gtest.h>

#include <tuple>

#include "models/vtd/core_test_support.hpp"
#include "sim/base/rng.hpp"

namespace iommu::vtd::test {
namespace {

constexpr unsigned span_of(unsigned level) { return 12 + 9 * level; }
std::uint64_t offset_of(std::uint64_t address, Level leaf) { return address & bits_between(0, span_of(leaf)); }

class VtdLegacy : public testing::TestWithParam<std::tuple<unsigned, Level>> {
 protected:
  Shape shape_{.levels2 = std::get<0>(GetParam()), .leaf2 = std::get<1>(GetParam())};
  // The highest address that the depth translates, and one with a different index at every level.
  [[nodiscard]] std::vector<std::uint64_t> inputs() const {
    const unsigned bits = span_of(shape_.levels2);
    return {bits_between(0, bits), Bench::kInput & bits_between(0, bits), 0x1000};
  }
};

// Kills: index bits taken one off, a level skipped or read twice, an offset cut to 4 KiB on a large page, a result that
// claims a larger page.
TEST_P(VtdLegacy, TranslatesEveryOffsetOfThePageWithOneReadForEachLevel) {
  for (const std::uint64_t input : inputs()) {
    Bench bench(Setting::Legacy, shape_, Bench::full(), input);
    const std::uint64_t page = input - offset_of(input, shape_.leaf2);
    const std::uint64_t output = Bench::kOutput >> span_of(shape_.leaf2) << span_of(shape_.leaf2);
    for (const std::uint64_t offset :
         {std::uint64_t{0}, offset_of(input, shape_.leaf2), bits_between(0, span_of(shape_.leaf2))}) {
      for (const Access access : {Access::Read, Access::Write}) {
        bench.port.reset_counts();
        const TranslationResponse response = bench.translate(page + offset, access);
        ASSERT_EQ(row_of(response), "translated") << std::hex << page + offset;
        const auto& translation = std::get<Translation>(response);
        EXPECT_EQ(translation.address, Hpa(output + offset));
        EXPECT_EQ(translation.page_lg2, span_of(shape_.leaf2));
        EXPECT_EQ(translation.allowed, kReadWrite);
        EXPECT_FALSE(translation.is_bypass);
        EXPECT_EQ(bench.port.count(AccessKind::DeviceTable), 2U);
        EXPECT_EQ(bench.port.count(AccessKind::Stage2Entry), shape_.levels2 - shape_.leaf2);
      }
    }
  }
}

// Neighbours differ in the index of one level. Kills: an index shared by two levels.
TEST_P(VtdLegacy, AnAddressBesideTheMappedPageIsNotMapped) {
  const std::uint64_t input = inputs()[1];
  for (unsigned bit = span_of(shape_.leaf2); bit < span_of(shape_.levels2); ++bit) {
    Bench bench(Setting::Legacy, shape_, Bench::full(), input);
    EXPECT_EQ(row_of(bench.translate(input ^ 1ULL << bit)), "LGN.3") << bit;
    EXPECT_EQ(row_of(bench.translate(input ^ 1ULL << bit, Access::Write)), "LGN.2") << bit;
  }
}

// Each entry's R and W: what all entries give. Kills: the leaf alone decides, or the last table.
TEST_P(VtdLegacy, PermissionsOfAllLevelsAreIntersected) {
  for (unsigned restricted = shape_.leaf2; restricted < shape_.levels2; ++restricted) {
    for (const Permissions given : {Permissions{}, kReadOnly, kWriteOnly, kReadWrite}) {
      for (const Access access : {Access::Read, Access::Write}) {
        Bench bench(Setting::Legacy, shape_, Bench::full(), inputs()[1]);
        bench.set<kSecondStagePage, "R">(bench.stage2[restricted], given.read ? 1 : 0);
        bench.set<kSecondStagePage, "W">(bench.stage2[restricted], given.write ? 1 : 0);
        bench.request.access = access;
        const TranslationResponse response = bench.translate();
        if (given.allow(access)) {
          ASSERT_EQ(row_of(response), "translated");
          EXPECT_EQ(std::get<Translation>(response).allowed, given);
        } else {
          EXPECT_EQ(row_of(response), access == Access::Read ? "LGN.3" : "LGN.2");
        }
      }
    }
  }
}

// Bit by bit, against the list of the specification [§9.8]: in a table 11 and 62 and, where no page can be, PS; in a
// page the bits below its size; everywhere the address beyond the host's width. SNP and TM are supported here.
TEST_P(VtdLegacy, EachReservedBitFaultsAndNoOther) {
  for (unsigned level = shape_.leaf2; level < shape_.levels2; ++level) {
    const bool is_page = level == shape_.leaf2;
    for (unsigned bit = 2; bit < 64; ++bit) {
      const bool is_address = bit >= 12 && bit < 48;
      const bool below_page = is_page && bit >= 12 && bit < span_of(level);
      const bool reserved =
          below_page || (bit >= 48 && bit <= 51) || (!is_page && (bit == 11 || bit == 62)) || (bit == 7 && level > 2);
      if (is_address && !reserved) continue;
      if (bit == 7 && level > 0 && level <= 2) continue;  // turns a page into a table or back
      Bench bench(Setting::Legacy, shape_, Bench::full(), inputs()[1]);
      bench.flip(bench.stage2[level], bit);
      EXPECT_EQ(row_of(bench.translate()), reserved ? "LSS.2" : "translated") << "level " << level << " bit " << bit;
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Depths, VtdLegacy, testing::Combine(testing::Values(3U, 4U, 5U), testing::Values(0, 1, 2)));

// CAP.SSLPS, ECAP.SC and ECAP.DT make PS, SNP and TM meaningful. Kills: a reserved mask that ignores capabilities.
TEST(VtdLegacyContext, FieldsOfAPageNeedTheirCapability) {
  struct Row {
    unsigned bit;
    Level leaf;
    void (*remove)(Identity&);
  };
  for (const Row& row : {Row{11, 0, [](Identity& id) { id.ecap = with<kEcap, "SC">(id.ecap, 0); }},
                         Row{62, 0, [](Identity& id) { id.ecap = with<kEcap, "DT">(id.ecap, 0); }}}) {
    Identity identity = Bench::full();
    row.remove(identity);
    Bench bench(Setting::Legacy, {}, identity);
    EXPECT_EQ(row_of(bench.translate()), "translated");
    bench.flip(bench.stage2[0], row.bit);
    EXPECT_EQ(row_of(bench.translate()), "LSS.2") << row.bit;
  }
  for (const auto& [leaf, sizes] : {std::pair{Level{1}, 0U}, {Level{1}, 2U}, {Level{2}, 0U}, {Level{2}, 1U}}) {
    Identity identity = Bench::full();
    identity.cap = with<kCap, "SSLPS">(identity.cap, sizes);
    Bench bench(Setting::Legacy, {.leaf2 = leaf}, identity);
    EXPECT_EQ(row_of(bench.translate()), "LSS.2") << "page of level " << unsigned{leaf} << ", SSLPS " << sizes;
  }
}
TEST(VtdLegacyContext, SnoopOfAPageIsReported) {
  Bench bench(Setting::Legacy);
  EXPECT_FALSE(std::get<Translation>(bench.translate()).attributes.snoop);
  bench.set<kSecondStagePage, "SNP">(bench.stage2[0], 1);
  EXPECT_TRUE(std::get<Translation>(bench.translate()).attributes.snoop);
}

// Kills: bus or devfn that select the wrong entry, and a context that keeps another's domain.
TEST(VtdLegacyContext, EachDeviceHasItsOwnEntry) {
  Bench bench(Setting::Legacy);
  bench.write(Bench::kRoot + 9 * 16, 0x50000 | mask_of<kRootEntry, "P">);
  const RequesterId other = RequesterId::bdf(9, 31, 7);
  const std::uint64_t entry = 0x50000 + other.devfn() * 16;
  for (unsigned word = 0; word < 2; ++word) bench.write(entry + 8 * word, bench.word(bench.context + 8 * word));
  bench.set<kContextEntry, "DID">(entry, 77);
  const auto domain_of = [&](RequesterId device) {
    const auto found =
        bench.core.find_context({.requester = device, .pasid = {}, .address = Iova(0)}, bench.port).run();
    const auto* context = std::get_if<Context>(&found);
    return context == nullptr ? std::optional<std::uint32_t>() : std::optional(context->domain.value());
  };
  EXPECT_EQ(domain_of(Bench::kDevice), Bench::kDomain);
  EXPECT_EQ(domain_of(other), 77U);
  EXPECT_FALSE(domain_of(RequesterId::bdf(9, 31, 6)));
  EXPECT_FALSE(domain_of(RequesterId::bdf(8, 31, 7)));
}

// Context entry, bit by bit [§9.3]. Kills: the ignored bits 70:67 taken as reserved, or 71 as ignored.
TEST(VtdLegacyContext, EachReservedBitOfAContextFaultsAndNoOther) {
  for (unsigned bit = 4; bit < 128; ++bit) {
    const bool reserved = bit < 12 || (bit >= 48 && bit < 64) || bit == 71 || bit >= 88;
    const bool ignored = (bit >= 67 && bit <= 70) || (bit >= 72 && bit < 88);  // the latter: domain-id
    if (!reserved && !ignored) continue;
    Bench bench(Setting::Legacy);
    bench.flip(bench.context, bit);
    EXPECT_EQ(row_of(bench.translate()), reserved ? "LCT.3" : "translated") << bit;
  }
}

// Kills: pass-through that walks, that keeps to the tables' width, or that leaves the host's.
TEST(VtdLegacyContext, PassThroughIsBoundedByTheHostAlone) {
  Bench bench(Setting::LegacyPassThrough, {.levels2 = 3});
  for (const std::uint64_t address : {0ULL, 1ULL << 39, (1ULL << 48) - 1}) {
    const TranslationResponse response = bench.translate(address, Access::Write);
    ASSERT_EQ(output_of(response), address);
    EXPECT_TRUE(std::get<Translation>(response).is_bypass);
  }
  EXPECT_EQ(bench.port.count(AccessKind::Stage2Entry), 0U);
  EXPECT_EQ(row_of(bench.translate(1ULL << 48)), "LGN.1.3");
}

// MGAW bounds the input even where AW would translate more. Kills: only one of the two bounds.
TEST(VtdLegacyContext, InputIsBoundedByTheSmallerOfMgawAndAw) {
  Identity identity = Bench::full();
  identity.cap = with<kCap, "MGAW">(identity.cap, 40);
  Bench bench(Setting::Legacy, {}, identity, (1ULL << 41) - 1);
  EXPECT_EQ(row_of(bench.translate()), "translated");
  EXPECT_EQ(row_of(bench.translate(1ULL << 41)), "LGN.1.1");
}

// ATS. Kills: rights given to a request that has none, a fault where no rights is the answer, a translated request that
// is walked.
TEST(VtdLegacyContext, DeviceTlbContextAnswersTranslationAndTranslatedRequests) {
  Bench bench(Setting::Legacy);
  bench.set<kContextEntry, "TT">(bench.context, static_cast<std::uint64_t>(TranslationType::DeviceTlb));
  bench.request.type = AddressType::TranslationRequest;
  bench.set<kSecondStagePage, "W">(bench.stage2[0], 0);
  const TranslationResponse granted = bench.translate();
  EXPECT_EQ(output_of(granted), Bench::kOutput + (Bench::kInput & 0xfff));
  EXPECT_EQ(std::get<Translation>(granted).allowed, kReadOnly);

  for (const std::uint64_t rights : {0ULL, 1ULL}) {  // absent; read-only, asked for writing
    bench.set<kSecondStagePage, "R">(bench.stage2[0], rights);
    bench.request.access = Access::Write;
    const TranslationResponse refused = bench.translate();
    ASSERT_EQ(row_of(refused), "translated");
    EXPECT_TRUE(std::get<Translation>(refused).allowed.none());
  }
  bench.flip(bench.stage2[3], 11);
  EXPECT_EQ(row_of(bench.translate()), "LSS.2");

  bench.request.type = AddressType::Translated;
  bench.port.reset_counts();
  EXPECT_EQ(output_of(bench.translate(0x9999000)), 0x9999000U);
  EXPECT_EQ(bench.port.count(AccessKind::Stage2Entry), 0U);
}

// Kills: other widths, alignments and directions taken for interrupt messages. [§3.14]
TEST(VtdLegacyContext, OnlyAlignedFourByteWritesAreInterruptMessages) {
  Bench bench(Setting::Legacy);
  const auto to = [&](std::uint64_t address, std::uint64_t bytes, Access access) {
    bench.request.length = Bytes(bytes);
    return row_of(bench.translate(address, access));
  };
  for (const std::uint64_t address : {0xfee00000ULL, 0xfeeffffcULL}) {
    EXPECT_EQ(to(address, 4, Access::Write), "translated");
    EXPECT_EQ(to(address, 8, Access::Write), "LGN.4");
    EXPECT_EQ(to(address, 4, Access::Read), "LGN.4");
    EXPECT_EQ(to(address + 2, 4, Access::Write), "LGN.4");
  }
  EXPECT_EQ(bench.port.accesses, 0U);
  EXPECT_EQ(to(0xfedfffff, 1, Access::Read), "LGN.3");
  EXPECT_EQ(to(0xfef00000, 4, Access::Write), "LGN.2");
}

// A large page that reaches into the interrupt range translates beside it, but no cached copy may reach into it. Kills:
// a page size that covers the range, and refusing the whole page.
TEST(VtdLegacyContext, APageAroundTheInterruptRangeIsCutForCaches) {
  const std::uint64_t output = 0xc0000000;  // 1 GiB that contains 0xfee00000
  Bench bench(Setting::Legacy, {.leaf2 = 2});
  bench.set<kSecondStagePage, "ADDR">(bench.stage2[2], output >> 12);
  const std::uint64_t page = Bench::kInput >> 30 << 30;
  for (const std::uint64_t at : {0xfeddf123ULL, 0xfedff000ULL, 0xfef00000ULL, 0xc0000000ULL, 0xff000000ULL}) {
    const TranslationResponse response = bench.translate(page + (at - output));
    ASSERT_EQ(output_of(response), at);
    const unsigned lg2 = std::get<Translation>(response).page_lg2;
    const std::uint64_t first = at >> lg2 << lg2, last = first + bits_between(0, lg2);
    EXPECT_TRUE(last < 0xfee00000 || first > 0xfeefffff) << std::hex << at << " page " << lg2;
    const std::uint64_t twice = at >> (lg2 + 1) << (lg2 + 1), end = twice + bits_between(0, lg2 + 1);
    EXPECT_FALSE(end < 0xfee00000 || twice > 0xfeefffff) << "a larger page would have done";
  }
  for (const std::uint64_t at : {0xfee00000ULL, 0xfeefffffULL})
    EXPECT_EQ(row_of(bench.translate(page + (at - output))), "LGN.4");
}

// The same for input: beside interrupt messages a page translates, but no copy of it may answer for them. With PASID
// the range means nothing. Kills: copies that swallow interrupt messages; pages cut where they need not be.
TEST(VtdLegacyContext, APageWhoseInputReachesIntoTheInterruptRangeIsCutForCaches) {
  constexpr std::uint64_t kBeside = 0xfed12345;
  for (const Setting setting : {Setting::Legacy, Setting::SecondStage, Setting::FirstStage}) {
    Bench bench(setting, {.leaf1 = 2, .leaf2 = 2}, Bench::full(), kBeside);
    const auto response = bench.core.translate(bench.request, bench.port).run();
    const auto* translation = std::get_if<Translation>(&response);
    ASSERT_NE(translation, nullptr);
    const std::uint64_t first = kBeside >> translation->page_lg2 << translation->page_lg2;
    EXPECT_LT(first + (1ULL << translation->page_lg2) - 1, kInterruptFirst);
    EXPECT_EQ(translation->page_lg2, 21);  // 0xfec00000 to 0xfedfffff
  }
}

// Kills: tables read while translation is off; a root that takes effect when it is written instead of with SRTP.
TEST(VtdLegacyContext, TranslationAndRootTakeEffectByCommand) {
  Bench bench(Setting::Legacy);
  bench.core.mmio_write(offset::kRtaddr, 8, 0x7ff000);
  EXPECT_EQ(row_of(bench.translate()), "translated");
  bench.core.mmio_write(offset::kGcmd, 4, 0);
  EXPECT_FALSE(bench.core.is_translating());
  bench.port.reset_counts();
  EXPECT_EQ(output_of(bench.translate(0x123)), 0x123U);
  EXPECT_EQ(bench.port.accesses, 0U);
  bench.core.mmio_write(offset::kGcmd, 4, mask_of<kGcmd, "TE"> | mask_of<kGcmd, "SRTP">);
  EXPECT_EQ(row_of(bench.translate(Bench::kInput)), "LRT.2");
}

// Many mappings of all sizes against a map. Kills: state kept between translations.
TEST(VtdLegacyContext, RandomMappingsTranslateAsAMapSays) {
  constexpr std::uint64_t kSeed = 20261121;
  Rng rng(kSeed);
  Bench bench(Setting::Legacy);
  std::map<std::uint64_t, std::pair<std::uint64_t, Level>> oracle;
  for (int i = 0; i < 200; ++i) {
    const auto leaf = static_cast<Level>(rng.below(3));
    const std::uint64_t input = rng.below(1U << 18) << 30 | rng.below(512) << 21 | rng.below(512) << 12;
    const std::uint64_t page = input >> span_of(leaf) << span_of(leaf);
    const std::uint64_t output = (rng.below(1U << 16) + 4) << 30;
    const auto inside = [&](const auto& entry) { return entry.first >> 30 == page >> 30; };
    if (std::any_of(oracle.begin(), oracle.end(), inside)) continue;  // one mapping in each GiB: no overlaps
    bench.map_second(Bench::kStage2Root, 4, page, output, leaf);
    oracle[page] = {output, leaf};
  }
  for (const auto& [page, mapped] : oracle) {
    const std::uint64_t offset = rng.below(1ULL << span_of(mapped.second));
    EXPECT_EQ(output_of(bench.translate(page + offset)), mapped.first + offset) << "seed " << kSeed;
  }
  EXPECT_GT(oracle.size(), 100U);
}

}  // namespace
}  // namespace iommu::vtd::test
