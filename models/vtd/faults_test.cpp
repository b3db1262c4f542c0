// SPDX-License-Identifier: Apache-2.0
// Every fault row has a way to arise. The ways are one table, in the order in which a unit checks: from it follow that
// each row is produced, that the earlier of two faults wins, and which faults FPD keeps from being recorded.
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "models/vtd/core_test_support.hpp"

namespace iommu::vtd::test {
namespace {

struct FaultCase {
  std::string_view row;
  Setting setting;
  std::string_view what;
  void (*break_it)(Bench&);
  void (*identity)(Identity&) = nullptr;
};

// Fields by layout, where a case needs them. Levels: 3 is the top of four.
template <const auto& kLayout, FieldName kName>
void set(Bench& b, std::uint64_t at, std::uint64_t value) {
  b.set<kLayout, kName>(at, value);
}
void second(Bench& b, std::uint64_t at, std::uint64_t r, std::uint64_t w) {
  set<kSecondStagePage, "R">(b, at, r);
  set<kSecondStagePage, "W">(b, at, w);
}
template <FieldName kName>
void clear_ecap(Identity& id) {
  id.ecap = with<kEcap, kName>(id.ecap, 0);
}
std::uint64_t guest_leaf(Bench& b, std::uint64_t first_stage_entry) {
  return b.guest_table_entries[first_stage_entry & ~std::uint64_t{0xfff}][0];
}
void reads(Bench& b) { b.request.access = Access::Read; }
void writes(Bench& b) { b.request.access = Access::Write; }

constexpr unsigned kAddressBitBeyondHost = 50;
constexpr std::uint64_t kBeyond48 = 1ULL << 48;

// clang-format off
const std::vector<FaultCase> kLegacyCases{
    {"LGN.4", Setting::Legacy, "reads the interrupt range",
     [](Bench& b) { b.request.address = Iova(0xfee00000); b.request.pasid.reset(); b.request.type = AddressType::Untranslated; reads(b); }},
    {"RTA.1.1", Setting::Legacy, "reserved mode", [](Bench& b) { b.set_root(TableMode::Reserved); }},
    {"RTA.1.1", Setting::Legacy, "abort mode unsupported", [](Bench& b) { b.set_root(TableMode::Abort); }, clear_ecap<"ADMS">},
    {"RTA.4",   Setting::Legacy, "abort mode", [](Bench& b) { b.set_root(TableMode::Abort); }},
    {"RTA.1.2", Setting::Legacy, "root table beyond the host", [](Bench& b) { b.set_root(TableMode::Legacy, kBeyond48); }},
    {"RTA.1.3", Setting::Legacy, "scalable mode unsupported", [](Bench& b) { b.set_root(TableMode::Scalable); }, clear_ecap<"SMTS">},
    {"RTA.2",   Setting::Legacy, "PASID in legacy mode", [](Bench& b) { b.request.pasid = Pasid(1); }},
    {"LRT.1",   Setting::Legacy, "root unreadable", [](Bench& b) { b.port.failing.insert(b.root_entry); }},
    {"LRT.2",   Setting::Legacy, "root absent", [](Bench& b) { set<kRootEntry, "P">(b, b.root_entry, 0); }},
    {"LRT.3",   Setting::Legacy, "root reserved low", [](Bench& b) { b.flip(b.root_entry, 1); }},
    {"LRT.3",   Setting::Legacy, "root reserved high", [](Bench& b) { b.flip(b.root_entry, 127); }},
    {"LRT.3",   Setting::Legacy, "context table beyond the host", [](Bench& b) { b.flip(b.root_entry, kAddressBitBeyondHost); }},
    {"LCT.1",   Setting::Legacy, "context unreadable", [](Bench& b) { b.port.failing.insert(b.context); }},
    {"LCT.2",   Setting::Legacy, "context absent", [](Bench& b) { set<kContextEntry, "P">(b, b.context, 0); }},
    {"LCT.3",   Setting::Legacy, "context reserved", [](Bench& b) { b.flip(b.context, 71); }},
    {"LCT.3",   Setting::Legacy, "SSPTPTR beyond the host", [](Bench& b) { b.flip(b.context, kAddressBitBeyondHost); }},
    {"LCT.4.1", Setting::Legacy, "AW of 66 bits", [](Bench& b) { set<kContextEntry, "AW">(b, b.context, 4); }},
    {"LCT.4.1", Setting::Legacy, "AW of 30 bits", [](Bench& b) { set<kContextEntry, "AW">(b, b.context, 0); }},
    {"LCT.4.2", Setting::Legacy, "TT reserved", [](Bench& b) { set<kContextEntry, "TT">(b, b.context, 3); }},
    {"LCT.4.2", Setting::Legacy, "TT without device TLBs", [](Bench& b) { set<kContextEntry, "TT">(b, b.context, 1); }, clear_ecap<"DT">},
    {"LCT.5",   Setting::Legacy, "translation request blocked", [](Bench& b) { b.request.type = AddressType::TranslationRequest; }},
    {"LCT.5",   Setting::Legacy, "translated request blocked", [](Bench& b) { b.request.type = AddressType::Translated; }},
    {"LGN.1.1", Setting::Legacy, "address beyond AW", [](Bench& b) { b.request.address = Iova(kBeyond48); }},
    {"LCT.4.3", Setting::Legacy, "top entry unreadable", [](Bench& b) { b.port.failing.insert(b.stage2[3]); }},
    {"LGN.3",   Setting::Legacy, "top not readable", [](Bench& b) { reads(b); second(b, b.stage2[3], 0, 1); }},
    {"LSS.2",   Setting::Legacy, "top reserved", [](Bench& b) { b.flip(b.stage2[3], 11); }},
    {"LSS.1",   Setting::Legacy, "next entry unreadable", [](Bench& b) { b.port.failing.insert(b.stage2[2]); }},
    {"LGN.3",   Setting::Legacy, "next entry absent", [](Bench& b) { reads(b); second(b, b.stage2[2], 0, 0); }},
    {"LGN.2",   Setting::Legacy, "page not writable", [](Bench& b) { writes(b); second(b, b.stage2[0], 1, 0); }},
    {"LSS.2",   Setting::Legacy, "page beyond the host", [](Bench& b) { b.flip(b.stage2[0], kAddressBitBeyondHost); }},
    {"LGN.4",   Setting::Legacy, "page in the interrupt range", [](Bench& b) { set<kSecondStagePage, "ADDR">(b, b.stage2[0], 0xfee55); }},
};
const std::vector<FaultCase> kLegacyPassThroughCases{
    {"LCT.4.2", Setting::LegacyPassThrough, "unsupported", [](Bench&) {}, clear_ecap<"PT">},
    {"LCT.5",   Setting::LegacyPassThrough, "translation request", [](Bench& b) { b.request.type = AddressType::TranslationRequest; }},
    {"LGN.1.3", Setting::LegacyPassThrough, "beyond the host", [](Bench& b) { b.request.address = Iova(kBeyond48); }},
};
const std::vector<FaultCase> kSecondStageCases{
    {"SGN.8", Setting::SecondStage, "reads the interrupt range",
     [](Bench& b) { b.request.address = Iova(0xfee00000); b.request.pasid.reset(); b.request.type = AddressType::Untranslated; reads(b); }},
    {"RTA.1.2", Setting::SecondStage, "root table beyond the host", [](Bench& b) { b.set_root(TableMode::Scalable, kBeyond48); }},
    {"SRT.1",   Setting::SecondStage, "root unreadable", [](Bench& b) { b.port.failing.insert(b.root_entry); }},
    {"SRT.2",   Setting::SecondStage, "root absent", [](Bench& b) { set<kScalableRootEntry, "P">(b, b.root_entry, 0); }},
    {"SRT.3",   Setting::SecondStage, "root reserved", [](Bench& b) { b.flip(b.root_entry, 1); }},
    {"SRT.3",   Setting::SecondStage, "context table beyond the host", [](Bench& b) { b.flip(b.root_entry, kAddressBitBeyondHost); }},
    {"SCT.1",   Setting::SecondStage, "context unreadable", [](Bench& b) { b.port.failing.insert(b.context); }},
    {"SCT.2",   Setting::SecondStage, "context absent", [](Bench& b) { set<kScalableContextEntry, "P">(b, b.context, 0); }},
    {"SCT.3",   Setting::SecondStage, "context reserved", [](Bench& b) { b.flip(b.context, 255); }},
    {"SCT.3",   Setting::SecondStage, "directory beyond the host", [](Bench& b) { b.flip(b.context, kAddressBitBeyondHost); }},
    {"SCT.3",   Setting::SecondStage, "DTE without device TLBs", [](Bench& b) { set<kScalableContextEntry, "DTE">(b, b.context, 1); }, clear_ecap<"DT">},
    {"SCT.5",   Setting::SecondStage, "DTE clear", [](Bench& b) { b.request.type = AddressType::TranslationRequest; set<kScalableContextEntry, "DTE">(b, b.context, 0); }},
    {"SCT.6",   Setting::SecondStage, "PASIDE clear", [](Bench& b) { b.request.pasid = Pasid(Bench::kRidPasid); set<kScalableContextEntry, "PASIDE">(b, b.context, 0); }},
    {"SCT.7",   Setting::SecondStage, "PASID beyond the directory", [](Bench& b) { b.request.pasid = Pasid(128 * 64); }},
    {"SCT.9",   Setting::SecondStage, "RID_PASID beyond the directory", [](Bench& b) { b.request.pasid.reset(); set<kScalableContextEntry, "RID_PASID">(b, b.context, 128 * 64); }},
    {"SPD.1",   Setting::SecondStage, "directory unreadable", [](Bench& b) { b.port.failing.insert(b.directory); }},
    {"SPD.2",   Setting::SecondStage, "directory absent", [](Bench& b) { set<kPasidDirectoryEntry, "P">(b, b.directory, 0); }},
    {"SPD.3",   Setting::SecondStage, "directory reserved", [](Bench& b) { b.flip(b.directory, 2); }},
    {"SPD.3",   Setting::SecondStage, "PASID table beyond the host", [](Bench& b) { b.flip(b.directory, kAddressBitBeyondHost); }},
    {"SPT.1",   Setting::SecondStage, "PASID entry unreadable", [](Bench& b) { b.port.failing.insert(b.process); }},
    {"SPT.2",   Setting::SecondStage, "PASID entry absent", [](Bench& b) { set<kPasidEntry, "P">(b, b.process, 0); }},
    {"SPT.3",   Setting::SecondStage, "PASID entry reserved", [](Bench& b) { b.flip(b.process, 511); }},
    {"SPT.3",   Setting::SecondStage, "SSPTPTR beyond the host", [](Bench& b) { set<kPasidEntry, "PGTT">(b, b.process, 2); b.flip(b.process, kAddressBitBeyondHost); }},
    {"SPT.3",   Setting::SecondStage, "SRE without supervisor requests", [](Bench& b) { set<kPasidEntry, "SRE">(b, b.process, 1); }, clear_ecap<"SRS">},
    {"SPT.4.1", Setting::SecondStage, "PGTT reserved", [](Bench& b) { set<kPasidEntry, "PGTT">(b, b.process, 5); }},
    {"SPT.4.1", Setting::SecondStage, "second stage unsupported", [](Bench& b) { set<kPasidEntry, "PGTT">(b, b.process, 2); }, clear_ecap<"SSTS">},
    {"SPT.4.2", Setting::SecondStage, "AW unsupported", [](Bench& b) { set<kPasidEntry, "AW">(b, b.process, 4); }},
    {"SPT.6",   Setting::SecondStage, "supervisor request", [](Bench& b) { b.request.pasid = Pasid(Bench::kRidPasid); b.request.privileged = true; }},
    {"SPT.6",   Setting::SecondStage, "RID_PRIV", [](Bench& b) { b.request.pasid.reset(); set<kScalableContextEntry, "RID_PRIV">(b, b.context, 1); }},
    {"SGN.5",   Setting::SecondStage, "address beyond AW", [](Bench& b) { b.request.address = Iova(kBeyond48); }},
    {"SSS.4",   Setting::SecondStage, "top unreadable", [](Bench& b) { b.port.failing.insert(b.stage2[3]); }},
    {"SSS.2",   Setting::SecondStage, "top absent", [](Bench& b) { second(b, b.stage2[3], 0, 0); }},
    {"SGN.7",   Setting::SecondStage, "top not readable", [](Bench& b) { reads(b); second(b, b.stage2[3], 0, 1); }},
    {"SSS.3",   Setting::SecondStage, "top reserved", [](Bench& b) { b.flip(b.stage2[3], 11); }},
    {"SSS.5",   Setting::SecondStage, "mark without snooping", [](Bench& b) { set<kPasidEntry, "SSADE">(b, b.process, 1); set<kPasidEntry, "PWSNP">(b, b.process, 0); }},
    {"SSS.6",   Setting::SecondStage, "mark fails", [](Bench& b) { set<kPasidEntry, "SSADE">(b, b.process, 1); b.port.failing_swaps.insert(b.stage2[3]); }},
    {"SSS.1",   Setting::SecondStage, "next entry unreadable", [](Bench& b) { b.port.failing.insert(b.stage2[2]); }},
    {"SGN.6",   Setting::SecondStage, "page not writable", [](Bench& b) { writes(b); second(b, b.stage2[0], 1, 0); }},
    {"SSS.3",   Setting::SecondStage, "page beyond the host", [](Bench& b) { b.flip(b.stage2[0], kAddressBitBeyondHost); }},
    {"SGN.8",   Setting::SecondStage, "page in the interrupt range", [](Bench& b) { set<kSecondStagePage, "ADDR">(b, b.stage2[0], 0xfee55); }},
};
const std::vector<FaultCase> kPassThroughCases{
    {"SPT.4.1", Setting::PassThrough, "unsupported", [](Bench&) {}, clear_ecap<"PT">},
    {"SGN.4",   Setting::PassThrough, "beyond the host", [](Bench& b) { b.request.address = Iova(kBeyond48); }},
    {"SGN.8",   Setting::PassThrough, "interrupt range with PASID", [](Bench& b) { b.request.pasid = Pasid(Bench::kRidPasid); b.request.address = Iova(0xfeefffff); }},
};
const std::vector<FaultCase> kFirstStageCases{
    {"SPT.3",   Setting::FirstStage, "FSPTPTR beyond the host", [](Bench& b) { b.flip(b.process, 128 + kAddressBitBeyondHost); }},
    {"SPT.4.1", Setting::FirstStage, "first stage unsupported", [](Bench&) {}, clear_ecap<"FSTS">},
    {"SPT.4.3", Setting::FirstStage, "FSPM reserved", [](Bench& b) { set<kPasidEntry, "FSPM">(b, b.process, 2); }},
    {"SPT.4.3", Setting::FirstStage, "five levels unsupported", [](Bench& b) { set<kPasidEntry, "FSPM">(b, b.process, 1); },
     [](Identity& id) { id.cap = with<kCap, "FS5LP">(id.cap, 0); }},
    {"SPT.6",   Setting::FirstStage, "supervisor request", [](Bench& b) { b.request.pasid = Pasid(Bench::kRidPasid); b.request.privileged = true; }},
    {"SGN.1",   Setting::FirstStage, "address not canonical", [](Bench& b) { b.request.address = Iova(1ULL << 47); }},
    {"SFS.4",   Setting::FirstStage, "top unreadable", [](Bench& b) { b.port.failing.insert(b.stage1[3]); }},
    {"SFS.2",   Setting::FirstStage, "top absent", [](Bench& b) { set<kFirstStageTable, "P">(b, b.stage1[3], 0); }},
    {"SGN.2",   Setting::FirstStage, "top is the supervisor's", [](Bench& b) { set<kFirstStageTable, "US">(b, b.stage1[3], 0); }},
    {"SFS.3",   Setting::FirstStage, "top reserved", [](Bench& b) { set<kFirstStageTable, "PS">(b, b.stage1[3], 1); }},
    {"SFS.9",   Setting::FirstStage, "mark without snooping", [](Bench& b) { set<kPasidEntry, "PWSNP">(b, b.process, 0); }},
    {"SFS.10",  Setting::FirstStage, "mark fails", [](Bench& b) { b.port.failing_swaps.insert(b.stage1[3]); }},
    {"SFS.1",   Setting::FirstStage, "next entry unreadable", [](Bench& b) { b.port.failing.insert(b.stage1[2]); }},
    {"SGN.6",   Setting::FirstStage, "page not writable", [](Bench& b) { writes(b); set<kFirstStagePage, "RW">(b, b.stage1[0], 0); }},
    {"SFS.3",   Setting::FirstStage, "page beyond the host", [](Bench& b) { b.flip(b.stage1[0], kAddressBitBeyondHost); }},
    {"SGN.8",   Setting::FirstStage, "page in the interrupt range", [](Bench& b) { set<kFirstStagePage, "ADDR">(b, b.stage1[0], 0xfee55); }},
};
// With a second stage of 39 bits, so that guest-physical addresses can be too wide for it and still fit an entry.
const std::vector<FaultCase> kNestedCases{
    {"SPT.4.1", Setting::Nested, "nesting unsupported", [](Bench&) {}, clear_ecap<"NEST">},
    {"SGN.1",   Setting::Nested, "address not canonical", [](Bench& b) { b.request.address = Iova(1ULL << 47); }},
    {"SFS.5",   Setting::Nested, "FSPTPTR beyond the second stage", [](Bench& b) { b.flip(b.process, 128 + 40); }},
    {"SSS.4",   Setting::Nested, "second stage unreadable for the top table", [](Bench& b) { b.port.failing.insert(b.guest_table_entries[Bench::kStage1Root][2]); }},
    {"SSS.1",   Setting::Nested, "second-stage page entry unreadable", [](Bench& b) { b.port.failing.insert(b.guest_table_entries[Bench::kStage1Root][0]); }},
    {"SSS.2",   Setting::Nested, "top table not mapped", [](Bench& b) { second(b, guest_leaf(b, b.stage1[3]), 0, 0); }},
    {"SFS.6",   Setting::Nested, "top table not readable", [](Bench& b) { second(b, guest_leaf(b, b.stage1[3]), 0, 1); }},
    {"SSS.3",   Setting::Nested, "top table mapped with reserved bits", [](Bench& b) { b.flip(guest_leaf(b, b.stage1[3]), kAddressBitBeyondHost); }},
    {"SFS.4",   Setting::Nested, "top entry unreadable", [](Bench& b) { b.port.failing.insert(b.stage1[3]); }},
    {"SFS.2",   Setting::Nested, "top entry absent", [](Bench& b) { set<kFirstStageTable, "P">(b, b.stage1[3], 0); }},
    {"SFS.3",   Setting::Nested, "top entry reserved", [](Bench& b) { set<kFirstStageTable, "PS">(b, b.stage1[3], 1); }},
    {"SFS.8",   Setting::Nested, "top table not writable for a mark", [](Bench& b) { second(b, guest_leaf(b, b.stage1[3]), 1, 0); }},
    {"SFS.10",  Setting::Nested, "mark fails", [](Bench& b) { b.port.failing_swaps.insert(b.stage1[3]); }},
    {"SFS.7",   Setting::Nested, "next table not readable", [](Bench& b) { second(b, guest_leaf(b, b.stage1[2]), 0, 1); }},
    {"SFS.1",   Setting::Nested, "next entry unreadable", [](Bench& b) { b.port.failing.insert(b.stage1[2]); }},
    {"SGN.5",   Setting::Nested, "output beyond the second stage", [](Bench& b) { b.flip(b.stage1[0], 40); }},
    {"SGN.7",   Setting::Nested, "output not readable", [](Bench& b) { reads(b); second(b, b.stage2[0], 0, 1); }},
    {"SGN.8",   Setting::Nested, "page in the interrupt range", [](Bench& b) { set<kSecondStagePage, "ADDR">(b, b.stage2[0], 0xfee55); }},
};
// clang-format on

const std::vector<const std::vector<FaultCase>*> kAllCases{
    &kLegacyCases, &kLegacyPassThroughCases, &kSecondStageCases, &kPassThroughCases, &kFirstStageCases, &kNestedCases};

Shape shape_of(Setting setting) { return {.levels1 = 4, .levels2 = setting == Setting::Nested ? 3U : 4U}; }

Identity identity_of(std::initializer_list<const FaultCase*> cases) {
  Identity identity = Bench::full();
  for (const FaultCase* c : cases)
    if (c->identity != nullptr) c->identity(identity);
  return identity;
}

// A bench with cases applied in the given order.
struct Broken : Bench {
  Broken(std::initializer_list<const FaultCase*> cases)
      : Bench((*cases.begin())->setting, shape_of((*cases.begin())->setting), identity_of(cases)) {
    for (const FaultCase* c : cases) c->break_it(*this);
  }
};

// Without this, a case may fault for another reason than its own. Kills: a bench that never translates.
TEST(VtdFaults, NothingFaultsUnbroken) {
  for (const Setting setting : kAllSettings) {
    for (const Access access : {Access::Read, Access::Write}) {
      Bench bench(setting, shape_of(setting));
      bench.request.access = access;
      EXPECT_EQ(row_of(bench.translate()), "translated") << static_cast<int>(setting);
    }
  }
}

TEST(VtdFaults, EachCaseIsItsRow) {
  for (const auto* cases : kAllCases) {
    for (const FaultCase& c : *cases) {
      Broken bench{&c};
      EXPECT_EQ(row_of(bench.translate()), c.row) << c.what;
    }
  }
}

// Rows that nothing produces. Kills: a row whose condition the core forgot, and a check that hides another.
TEST(VtdFaults, EveryRowIsProduced) {
  std::set<std::string_view> produced;
  for (const auto* cases : kAllCases) {
    for (const FaultCase& c : *cases) {
      Broken bench{&c};
      const TranslationResponse response = bench.translate();
      if (const auto* fault = std::get_if<Fault>(&response)) produced.insert(fault->row->name);
    }
  }
  for (const FaultRow& row : kFaultRows) EXPECT_TRUE(produced.contains(row.name)) << row.name << " was never produced";
}

// Each pair of one setting: the one that is checked first is reported. Kills: any two checks in exchanged order.
TEST(VtdFaults, TheEarlierOfTwoFaultsIsReported) {
  for (const auto* cases : kAllCases) {
    for (std::size_t first = 0; first < cases->size(); ++first) {
      for (std::size_t later = first + 1; later < cases->size(); ++later) {
        const FaultCase& expected = (*cases)[first];
        Broken bench{&(*cases)[later], &expected};  // the expected one last, so that its own condition holds
        EXPECT_EQ(row_of(bench.translate()), expected.row) << expected.what << " before " << (*cases)[later].what;
      }
    }
  }
}

// FPD of an entry counts from reading that entry on, for qualified conditions only, whether or not the entry is
// present. Kills: FPD taken from one of the entries only, FPD ignored in an absent entry, an unqualified row held back.
TEST(VtdFaults, FpdSuppressesQualifiedFaultsFromItsEntryOn) {
  for (const auto* cases : kAllCases) {
    for (const FaultCase& c : *cases) {
      const unsigned places = c.setting == Setting::Legacy || c.setting == Setting::LegacyPassThrough ? 1 : 3;
      for (unsigned place = 0; place < places; ++place) {
        Broken bench{&c};
        const std::uint64_t at = place == 0 ? bench.context : place == 1 ? bench.directory : bench.process;
        static_assert(mask_of<kContextEntry, "FPD"> == mask_of<kPasidEntry, "FPD"> &&
                      mask_of<kContextEntry, "FPD"> == mask_of<kScalableContextEntry, "FPD"> &&
                      mask_of<kContextEntry, "FPD"> == mask_of<kPasidDirectoryEntry, "FPD">);
        bench.write(at, bench.word(at) | mask_of<kContextEntry, "FPD">);
        bool has_read = false;
        bench.port.before = [&](const MemoryAccess& a) {
          has_read |= a.address == Hpa(at) && !bench.port.failing.contains(at);
        };
        const TranslationResponse response = bench.translate();
        ASSERT_EQ(row_of(response), c.row) << c.what;
        const auto& fault = std::get<Fault>(response);
        EXPECT_EQ(fault.suppressed, fault.row->qualified && has_read) << c.row << " " << c.what << ", place " << place;
        bench.core.record(fault);
        EXPECT_EQ((get<kFsts, "PPF">(bench.core.mmio_read(offset::kFsts, 4))), fault.suppressed ? 0U : 1U);
      }
    }
  }
}

// A record says who, where and why. Kills: exchanged type, a PASID without its present bit, a lost privilege.
TEST(VtdFaults, EachCaseIsRecordedWithItsRequest) {
  for (const auto* cases : kAllCases) {
    for (const FaultCase& c : *cases) {
      Broken bench{&c};
      const TranslationRequest request = bench.request;
      const TranslationResponse response = bench.translate();
      ASSERT_TRUE(std::holds_alternative<Fault>(response));
      bench.core.record(std::get<Fault>(response));
      const std::uint64_t at = get<kCap, "FRO">(bench.core.mmio_read(offset::kCap, 8)) * 16;
      const std::array<std::uint64_t, 2> words{bench.core.mmio_read(at, 8), bench.core.mmio_read(at + 8, 8)};
      EXPECT_EQ((get<kFrcd, "F">(words)), 1U);
      EXPECT_EQ((get<kFrcd, "FR">(words)), std::get<Fault>(response).row->code);
      EXPECT_EQ((get<kFrcd, "FI">(words)), request.address.value() >> 12);
      EXPECT_EQ((get<kFrcd, "SID">(words)), Bench::kDevice.value());
      EXPECT_EQ((get<kFrcd, "T1">(words)), request.access == Access::Read ? 1U : 0U);
      EXPECT_EQ((get<kFrcd, "AT">(words)), static_cast<std::uint64_t>(request.type));
      EXPECT_EQ((get<kFrcd, "PP">(words)), request.pasid ? 1U : 0U);
      EXPECT_EQ((get<kFrcd, "PV">(words)), request.pasid ? request.pasid->value() : 0U);
      EXPECT_EQ((get<kFrcd, "PRIV">(words)), request.pasid && request.privileged ? 1U : 0U);
    }
  }
}

using Rows = std::vector<std::string>;
Rows repeat(Rows rows, const Rows& more, unsigned times = 1) {
  while (times-- > 0) rows.insert(rows.end(), more.begin(), more.end());
  return rows;
}

// Memory fails at access 1, 2, 3 … of a translation: the fault of that access, nothing read after it, and no success
// before all accesses were good. Kills: a read whose failure is ignored, one row for all levels.
TEST(VtdFaults, MemoryFailingAtEachAccessIsTheFaultOfThatAccess) {
  const Rows scalable{"SRT.1", "SCT.1", "SPD.1", "SPT.1"};
  const Rows walk2{"SSS.4", "SSS.1", "SSS.1"};  // the nested setting has three levels
  const auto first = [&](const char* row) {
    return repeat(repeat(repeat(repeat({}, walk2), {row}), walk2), {"SFS.10"});
  };
  const std::map<Setting, Rows> expected{
      {Setting::Legacy, {"LRT.1", "LCT.1", "LCT.4.3", "LSS.1", "LSS.1", "LSS.1"}},
      {Setting::LegacyPassThrough, {"LRT.1", "LCT.1"}},
      {Setting::PassThrough, scalable},
      {Setting::SecondStage, repeat(repeat(scalable, {"SSS.4", "SSS.6"}), {"SSS.1", "SSS.6"}, 3)},
      {Setting::FirstStage, repeat(repeat(scalable, {"SFS.4", "SFS.10"}), {"SFS.1", "SFS.10"}, 3)},
      {Setting::Nested, repeat(repeat(repeat(scalable, first("SFS.4")), first("SFS.1"), 3), walk2)},
  };
  for (const auto& [setting, rows] : expected) {
    for (std::uint64_t n = 1;; ++n) {
      Bench bench(setting, shape_of(setting));
      if (setting == Setting::SecondStage) bench.set<kPasidEntry, "SSADE">(bench.process, 1);
      bench.port.fail_access = n;
      const TranslationResponse response = bench.translate();
      if (n > rows.size()) {
        EXPECT_EQ(row_of(response), "translated") << static_cast<int>(setting) << " access " << n;
        EXPECT_EQ(bench.port.accesses, rows.size());
        break;
      }
      EXPECT_EQ(row_of(response), rows[n - 1]) << static_cast<int>(setting) << " access " << n;
      EXPECT_EQ(bench.port.accesses, n);
    }
  }
}

}  // namespace
}  // namespace iommu::vtd::test
