// SPDX-License-Identifier: Apache-2.0
// Scalable mode, first and second stage each alone: page tables, privilege, accessed and dirty marks, ATS.
#include <gtest/gtest.h>

#include <tuple>

#include "models/vtd/core_test_support.hpp"

namespace iommu::vtd::test {
namespace {

constexpr unsigned span_of(unsigned level) { return 12 + 9 * level; }
constexpr std::uint64_t kAccessed1 = mask_of<kFirstStagePage, "A">, kDirty1 = mask_of<kFirstStagePage, "D">;
constexpr std::uint64_t kAccessed2 = mask_of<kSecondStagePage, "A">, kDirty2 = mask_of<kSecondStagePage, "D">;

Context context_of(Bench& bench) {
  const ContextResult found = bench.core.find_context(bench.request, bench.port).run();
  const auto* context = std::get_if<Context>(&found);
  EXPECT_NE(context, nullptr) << std::get<Fault>(found).row->name;
  return context == nullptr ? Context{} : *context;
}

// First stage ---------------------------------------------------------------------------------------------------------

class VtdFirstStage : public testing::TestWithParam<std::tuple<unsigned, Level>> {
 protected:
  Shape shape_{.levels1 = std::get<0>(GetParam()), .leaf1 = std::get<1>(GetParam())};
  [[nodiscard]] std::vector<std::uint64_t> inputs() const {
    const std::uint64_t half = bits_between(0, span_of(shape_.levels1) - 1);
    return {Bench::kInput & half, half, ~half};  // anywhere, last of the lower half, first of the upper half
  }
};

// Kills: an upper half that is refused, index bits one off, marks that cost another read.
TEST_P(VtdFirstStage, TranslatesBothCanonicalHalves) {
  for (const std::uint64_t input : inputs()) {
    Bench bench(Setting::FirstStage, shape_, Bench::full(), input);
    const std::uint64_t in_page = input & bits_between(0, span_of(shape_.leaf1));
    const std::uint64_t page = Bench::kOutput >> span_of(shape_.leaf1) << span_of(shape_.leaf1);
    for (const Access access : {Access::Read, Access::Write}) {
      bench.request.access = access;
      const TranslationResponse response = bench.translate();
      ASSERT_EQ(row_of(response), "translated") << std::hex << input;
      EXPECT_EQ(output_of(response), page + in_page);
      EXPECT_EQ(std::get<Translation>(response).page_lg2, span_of(shape_.leaf1));
    }
    bench.port.reset_counts();
    EXPECT_EQ(row_of(bench.translate()), "translated");
    EXPECT_EQ(bench.port.count(AccessKind::Stage1Entry), shape_.levels1 - shape_.leaf1) << "all marks are set";
  }
}

// Kills: a canonical check by 48 bits under five levels, or by the sign bit alone.
TEST_P(VtdFirstStage, OtherAddressesAreNotCanonical) {
  const unsigned sign = span_of(shape_.levels1) - 1;
  Bench bench(Setting::FirstStage, shape_, Bench::full(), 0x1000);
  EXPECT_EQ(row_of(bench.translate()), "translated");
  for (unsigned bit = sign; bit < 64; ++bit) {
    EXPECT_EQ(row_of(bench.translate(0x1000 | 1ULL << bit)), "SGN.1") << bit;
    if (bit < 63) EXPECT_EQ(row_of(bench.translate(bits_between(bit + 1, 64) | 0x1000)), "SGN.1") << bit;
  }
}

// Every entry on the way is marked accessed, the page dirty by a write only. Kills: D set by a read or in a table, A
// set only in the page.
TEST_P(VtdFirstStage, UseMarksEveryEntryAndAWriteThePage) {
  Bench bench(Setting::FirstStage, shape_);
  for (const Access access : {Access::Read, Access::Write}) {
    bench.request.access = access;
    ASSERT_EQ(row_of(bench.translate()), "translated");
    for (unsigned level = shape_.leaf1; level < shape_.levels1; ++level) {
      const std::uint64_t dirty = access == Access::Write && level == shape_.leaf1 ? kDirty1 : 0;
      EXPECT_EQ(bench.word(bench.stage1[level]) & (kAccessed1 | kDirty1), kAccessed1 | dirty) << level;
    }
  }
}

// EAFE keeps EA as well, in every entry.
TEST_P(VtdFirstStage, ExtendedAccessedIsKeptWhereAskedFor) {
  constexpr std::uint64_t kExtended = mask_of<kFirstStagePage, "EA">;
  for (const std::uint64_t enabled : {0ULL, 1ULL}) {
    Identity identity = Bench::full();
    identity.ecap = with<kEcap, "EAFS">(identity.ecap, 1);
    Bench bench(Setting::FirstStage, shape_, identity);
    bench.set<kPasidEntry, "EAFE">(bench.process, enabled);
    ASSERT_EQ(row_of(bench.translate()), "translated");
    for (unsigned level = shape_.leaf1; level < shape_.levels1; ++level)
      EXPECT_EQ(bench.word(bench.stage1[level]) & kExtended, enabled != 0 ? kExtended : 0) << level;
  }
}

// Bit by bit [§9.7]: PS where no page can be, the address beyond the host's width, the bits below a page save PAT.
TEST_P(VtdFirstStage, EachReservedBitFaultsAndNoOther) {
  for (unsigned level = shape_.leaf1; level < shape_.levels1; ++level) {
    const bool is_page = level == shape_.leaf1;
    for (unsigned bit = 3; bit < 64; ++bit) {
      const bool below_page = is_page && bit > 12 && bit < span_of(level);
      const bool reserved = below_page || (bit >= 48 && bit <= 51) || (bit == 7 && level > 2);
      const bool changes_output = bit >= 12 && bit < 48 && !reserved && !(is_page && level > 0 && bit == 12);
      if (changes_output || (bit == 7 && level > 0 && level <= 2)) continue;
      Bench bench(Setting::FirstStage, shape_);
      bench.flip(bench.stage1[level], bit);
      EXPECT_EQ(row_of(bench.translate()), reserved ? "SFS.3" : "translated") << "level " << level << " bit " << bit;
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Depths, VtdFirstStage, testing::Combine(testing::Values(4U, 5U), testing::Values(0, 1, 2)));

TEST(VtdFirstStageRights, OneGibPagesNeedTheirCapability) {
  Identity identity = Bench::full();
  identity.cap = with<kCap, "FS1GP">(identity.cap, 0);
  EXPECT_EQ(row_of(Bench(Setting::FirstStage, {.leaf1 = 2}, identity).translate()), "SFS.3");
  EXPECT_EQ(row_of(Bench(Setting::FirstStage, {.leaf1 = 1}, identity).translate()), "translated");
}

// Who may do what with a page [§3.6.1]. Kills: any of U/S, R/W, WPE and the privilege exchanged.
TEST(VtdFirstStageRights, UserAndSupervisorPagesBothPrivilegesAndWriteProtection) {
  for (unsigned combination = 0; combination < 32; ++combination) {
    const bool user_page = combination & 1, writable = combination & 2, protect = combination & 4,
               supervisor = combination & 8, write = combination & 16;
    Bench bench(Setting::FirstStage);
    bench.set<kFirstStagePage, "US">(bench.stage1[0], user_page ? 1 : 0);
    bench.set<kFirstStagePage, "RW">(bench.stage1[0], writable ? 1 : 0);
    bench.set<kPasidEntry, "SRE">(bench.process, 1);
    bench.set<kPasidEntry, "WPE">(bench.process, protect ? 1 : 0);
    bench.request.pasid = Pasid(Bench::kRidPasid);
    bench.request.privileged = supervisor;
    bench.request.access = write ? Access::Write : Access::Read;
    const bool may_write = writable || (supervisor && !protect);
    const std::string expected = !supervisor && !user_page ? "SGN.2" : write && !may_write ? "SGN.6" : "translated";
    EXPECT_EQ(row_of(bench.translate()), expected) << combination;
    if (expected == "translated") EXPECT_EQ(std::get<Translation>(bench.translate()).allowed.write, may_write);
  }
}

// Without PASID the context says who asks; the prefix's bit means nothing. Kills: RID_PRIV ignored, or used for
// requests with PASID.
TEST(VtdFirstStageRights, RidPrivGivesRequestsWithoutPasidTheirPrivilege) {
  for (const std::uint64_t rid_privilege : {0ULL, 1ULL}) {
    for (const bool with_pasid : {false, true}) {
      Bench bench(Setting::FirstStage);
      bench.set<kFirstStagePage, "US">(bench.stage1[0], 0);
      bench.set<kPasidEntry, "SRE">(bench.process, 1);
      bench.set<kScalableContextEntry, "RID_PRIV">(bench.context, rid_privilege);
      if (with_pasid) bench.request.pasid = Pasid(Bench::kRidPasid);
      const bool supervisor = !with_pasid && rid_privilege != 0;
      EXPECT_EQ(row_of(bench.translate()), supervisor ? "translated" : "SGN.2");
    }
  }
}

// Second stage --------------------------------------------------------------------------------------------------------

// Kills: marks without SSADE, D by a read, D in a table.
TEST(VtdSecondStage, MarksAreKeptWhereAskedFor) {
  for (const Level leaf : {Level{0}, Level{1}, Level{2}}) {
    for (const std::uint64_t enabled : {0ULL, 1ULL}) {
      Bench bench(Setting::SecondStage, {.leaf2 = leaf});
      bench.set<kPasidEntry, "SSADE">(bench.process, enabled);
      for (const Access access : {Access::Read, Access::Write}) {
        bench.request.access = access;
        ASSERT_EQ(row_of(bench.translate()), "translated");
        for (unsigned level = leaf; level < 4; ++level) {
          const std::uint64_t dirty = access == Access::Write && level == leaf ? kDirty2 : 0;
          EXPECT_EQ(bench.word(bench.stage2[level]) & (kAccessed2 | kDirty2), enabled != 0 ? kAccessed2 | dirty : 0);
        }
      }
    }
  }
}

// PWSNP = 0 forbids marks, not walks. Kills: a fault where nothing needs a mark.
TEST(VtdSecondStage, WithoutSnoopingOnlyAMissingMarkFaults) {
  for (unsigned missing = 0; missing < 4; ++missing) {
    Bench bench(Setting::SecondStage);
    bench.set<kPasidEntry, "SSADE">(bench.process, 1);
    ASSERT_EQ(row_of(bench.translate()), "translated");  // marks everything accessed
    bench.set<kPasidEntry, "PWSNP">(bench.process, 0);
    EXPECT_EQ(row_of(bench.translate()), "translated");
    EXPECT_EQ(row_of(bench.translate(Bench::kInput, Access::Write)), "SSS.5") << "the page is not dirty";
    bench.set<kSecondStagePage, "A">(bench.stage2[missing], 0);
    EXPECT_EQ(row_of(bench.translate(Bench::kInput, Access::Read)), "SSS.5") << missing;
    EXPECT_EQ(bench.word(bench.stage2[missing]) & kAccessed2, 0U);
    bench.set<kPasidEntry, "SSADE">(bench.process, 0);
    EXPECT_EQ(row_of(bench.translate()), "translated");
  }
}

TEST(VtdSecondStage, PageSnoopOfTheContextForcesSnooping) {
  for (const Setting setting : {Setting::FirstStage, Setting::SecondStage, Setting::Nested}) {
    Bench bench(setting);
    EXPECT_FALSE(std::get<Translation>(bench.translate()).attributes.snoop);
    bench.set<kPasidEntry, "PGSNP">(bench.process, 1);
    EXPECT_TRUE(std::get<Translation>(bench.translate()).attributes.snoop);
  }
}

// A mark is a compare-exchange: software that changed the entry in between is seen. Kills: a plain write, which would
// restore the old entry; a walk that goes on with what it decoded before.
TEST(VtdMarks, AnEntryChangedBeforeItsMarkIsReadAgain) {
  for (const Setting setting : {Setting::FirstStage, Setting::SecondStage}) {
    Bench bench(setting);
    bench.set<kPasidEntry, "SSADE">(bench.process, 1);
    const std::uint64_t page = setting == Setting::FirstStage ? bench.stage1[0] : bench.stage2[0];
    bool changed = false;
    bench.port.before = [&](const MemoryAccess& access) {
      if (changed || access.op != MemoryOp::CompareExchange || access.address != Hpa(page)) return;
      changed = true;
      bench.write(page, bench.word(page) + 0x5000);  // software moves the page
    };
    EXPECT_EQ(output_of(bench.translate()), Bench::kOutput + 0x5000 + (Bench::kInput & 0xfff));
    EXPECT_TRUE(changed);
    EXPECT_NE(bench.word(page) & (kAccessed1 | kAccessed2), 0U);

    bool removed = false;
    bench.write(page, bench.word(page) & ~(kAccessed1 | kAccessed2));
    bench.port.before = [&](const MemoryAccess& access) {
      if (removed || access.op != MemoryOp::CompareExchange || access.address != Hpa(page)) return;
      removed = true;
      bench.write(page, 0);
    };
    EXPECT_EQ(row_of(bench.translate()), setting == Setting::FirstStage ? "SFS.2" : "SSS.2");
    EXPECT_EQ(bench.word(page), 0U) << "the unmapped entry came back";
  }
}

// Whoever changes the entry every time cannot hold the unit up for ever.
TEST(VtdMarks, AnEntryThatChangesEveryTimeFaultsInTheEnd) {
  Bench bench(Setting::FirstStage);
  std::uint64_t attempts = 0;
  bench.port.before = [&](const MemoryAccess& access) {
    if (access.op != MemoryOp::CompareExchange) return;
    ++attempts;
    bench.flip(access.address.value(), 60);
  };
  EXPECT_EQ(row_of(bench.translate()), "SFS.10");
  EXPECT_EQ(attempts, kMaxMarkAttempts);
}

// ATS in scalable mode. Kills: rights beyond the page's, a fault for what is only not mapped.
TEST(VtdAts, TranslationRequestsAreGrantedWhatTheTablesAllow) {
  for (const Setting setting : {Setting::FirstStage, Setting::SecondStage, Setting::Nested}) {
    Bench bench(setting);
    bench.request.type = AddressType::TranslationRequest;
    EXPECT_EQ(std::get<Translation>(bench.translate()).allowed, kReadWrite);
    const bool first = setting != Setting::SecondStage;
    const std::uint64_t page = first ? bench.stage1[0] : bench.stage2[0];
    bench.write(page, 0);
    const TranslationResponse refused = bench.translate();
    ASSERT_EQ(row_of(refused), "translated");
    EXPECT_TRUE(std::get<Translation>(refused).allowed.none());
    bench.request.type = AddressType::Untranslated;
    EXPECT_EQ(row_of(bench.translate()), first ? "SFS.2" : "SSS.2");
  }
}
TEST(VtdAts, TranslatedRequestsPassWithoutAWalk) {
  Bench bench(Setting::Nested);
  bench.request.type = AddressType::Translated;
  bench.port.reset_counts();
  EXPECT_EQ(output_of(bench.translate(0x7654000)), 0x7654000U);
  EXPECT_EQ(bench.port.count(AccessKind::Stage1Entry) + bench.port.count(AccessKind::Stage2Entry), 0U);
}

// A cached context serves requests that would have been refused when it was read. Kills: a check made only on filling.
TEST(VtdAts, ACachedContextStillChecksTheRequest) {
  Bench bench(Setting::SecondStage);
  bench.set<kScalableContextEntry, "DTE">(bench.context, 0);
  const Context cached = context_of(bench);
  TranslationRequest request = bench.request;
  for (const AddressType type : {AddressType::TranslationRequest, AddressType::Translated}) {
    request.type = type;
    EXPECT_EQ(row_of(bench.core.walk(request, cached, bench.port, {}).run()), "SCT.5");
  }
  bench.request.pasid = Pasid(Bench::kRidPasid);
  const Context of_process = context_of(bench);
  request = bench.request;
  request.privileged = true;
  EXPECT_EQ(row_of(bench.core.walk(request, of_process, bench.port, {}).run()), "SPT.6");
}

}  // namespace
}  // namespace iommu::vtd::test
