// SPDX-License-Identifier: Apache-2.0
// Scalable mode: root, context, PASID-directory and PASID-table entries.
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "models/vtd/core_test_support.hpp"

namespace iommu::vtd::test {
namespace {

Context context_of(Bench& bench) {
  const ContextResult found = bench.core.find_context(bench.request, bench.port).run();
  const auto* context = std::get_if<Context>(&found);
  EXPECT_NE(context, nullptr) << std::get<Fault>(found).row->name;
  return context == nullptr ? Context{} : *context;
}

// Kills: directory and table index exchanged or cut, the other half of the root entry.
TEST(VtdScalable, DirectoryAndTableIndexMakeUpThePasid) {
  for (const unsigned devfn : {0U, 127U, 128U, 255U}) {
    for (const std::uint32_t pasid : {0U, 1U, 63U, 64U, 8191U, 8192U, 0xfffffU}) {
      Bench bench(Setting::PassThrough);
      const RequesterId device(static_cast<std::uint16_t>(0x3f00 | devfn));
      const std::uint64_t context = 0x60000 + devfn % 128 * 32, directory = 0x1000000, table = 0x70000;
      bench.write(Bench::kRoot + 0x3f * 16 + (devfn >= 128 ? 8 : 0), 0x60000 | mask_of<kScalableRootEntry, "P">);
      for (unsigned i = 0; i < 4; ++i) bench.write(context + 8 * i, bench.word(bench.context + 8 * i));
      bench.set<kScalableContextEntry, "PASIDDIRPTR">(context, directory >> 12);
      bench.set<kScalableContextEntry, "PDTS">(context, 7);
      bench.write(directory + pasid / 64 * 8, table | mask_of<kPasidDirectoryEntry, "P">);
      bench.set_process(table + pasid % 64 * 64);
      bench.set<kPasidEntry, "DID">(table + pasid % 64 * 64, 0xbeef);
      bench.request.requester = device;
      for (const bool explicit_pasid : {false, true}) {
        bench.set<kScalableContextEntry, "RID_PASID">(context, explicit_pasid ? 5 : pasid);
        bench.request.pasid = explicit_pasid ? std::optional(Pasid(pasid)) : std::nullopt;
        const Context found = context_of(bench);
        EXPECT_EQ(found.domain, DomainTag(0xbeef));
        EXPECT_EQ(found.process, AsidTag(pasid));
      }
    }
  }
}

// Kills: a bound that is one off, or that does not follow PDTS.
TEST(VtdScalable, EachDirectorySizeEndsWhereItShould) {
  for (std::uint32_t size = 0; size < 8; ++size) {
    const std::uint32_t end = 1U << (size + 13);  // PASIDs
    for (const std::uint32_t pasid : {end - 1, end}) {
      Bench bench(Setting::PassThrough);
      bench.set<kScalableContextEntry, "PDTS">(bench.context, size);
      bench.request.pasid = Pasid(pasid);
      EXPECT_EQ(row_of(bench.translate()), pasid < end ? "SPD.2" : "SCT.7") << size;
    }
  }
}

// Kills: RID_PASID used although the unit says that it takes 0. [ECAP_REG.RPS]
TEST(VtdScalable, WithoutRidPasidSupportRequestsUsePasidZero) {
  Identity identity = Bench::full();
  identity.ecap = with<kEcap, "RPS">(identity.ecap, 0);
  Bench bench(Setting::PassThrough, {}, identity);
  bench.write(Bench::kDirectory, Bench::kPasidTable | mask_of<kPasidDirectoryEntry, "P">);
  bench.set_process(Bench::kPasidTable);
  EXPECT_EQ(context_of(bench).process, AsidTag(0));
}

// Reserved fields bit by bit, against the list of the specification [§9.2, §9.4 to §9.6]. Everything optional is there
// but page requests, memory types and the extended accessed bit.
TEST(VtdScalable, EachReservedBitOfAStructureFaultsAndNoOther) {
  struct Row {
    std::uint64_t Bench::* entry;
    unsigned bits;
    std::set<unsigned> checked_otherwise;  // present bits, pointers, indices, types, what changes the outcome
    std::string fault;
    bool (*reserved)(unsigned bit);
  };
  const auto range = [](unsigned first, unsigned last) {
    std::set<unsigned> bits;
    for (unsigned bit = first; bit <= last; ++bit) bits.insert(bit);
    return bits;
  };
  const auto joined = [](std::initializer_list<std::set<unsigned>> sets) {
    std::set<unsigned> all;
    for (const auto& s : sets) all.insert(s.begin(), s.end());
    return all;
  };
  const std::vector<Row> rows{
      {&Bench::root_entry, 64, joined({{0}, range(12, 47)}), "SRT.3", [](unsigned b) { return b < 12 || b >= 48; }},
      {&Bench::context, 256, joined({{0}, range(12, 47), range(64, 83), {84}}), "SCT.3",
       [](unsigned b) { return (b >= 4 && b <= 8) || (b >= 48 && b < 64) || b >= 85; }},
      {&Bench::directory, 64, joined({{0}, range(12, 47)}), "SPD.3",
       [](unsigned b) { return (b >= 2 && b < 12) || b >= 48; }},
      {&Bench::process, 512, joined({{0}, range(2, 4), range(6, 8), range(12, 47), {87}}), "SPT.3",
       [](unsigned b) {
         return b == 5 || b == 10 || b == 11 || (b >= 48 && b < 64) || (b >= 80 && b <= 86) || (b >= 89 && b < 128) ||
                b == 129 || (b >= 135 && b <= 139) || b >= 192;
       }},
  };
  for (const Row& row : rows) {
    for (unsigned bit = 0; bit < row.bits; ++bit) {
      if (row.checked_otherwise.contains(bit)) continue;
      Bench bench(Setting::SecondStage);
      bench.flip(bench.*row.entry, bit);
      EXPECT_EQ(row_of(bench.translate()), row.reserved(bit) ? row.fault : "translated") << row.fault << " bit " << bit;
    }
  }
}

// Kills: a field that is taken for reserved where the unit has it, or ignored where it has not.
TEST(VtdScalable, OptionalFieldsAreReservedWithoutTheirCapability) {
  struct Row {
    std::uint64_t Bench::* entry;
    unsigned bit;
    std::string fault;
    std::uint64_t (*ecap)(std::uint64_t ecap, std::uint64_t value);
  };
  const std::vector<Row> rows{
      {&Bench::context, 2, "SCT.3", [](std::uint64_t e, std::uint64_t v) { return with<kEcap, "DT">(e, v); }},
      {&Bench::context, 3, "SCT.3", [](std::uint64_t e, std::uint64_t v) { return with<kEcap, "PASID">(e, v); }},
      {&Bench::context, 4, "SCT.3", [](std::uint64_t e, std::uint64_t v) { return with<kEcap, "PRS">(e, v); }},
      {&Bench::context, 84, "SCT.3", [](std::uint64_t e, std::uint64_t v) { return with<kEcap, "RPRIVS">(e, v); }},
      {&Bench::process, 9, "SPT.3", [](std::uint64_t e, std::uint64_t v) { return with<kEcap, "SSADS">(e, v); }},
      {&Bench::process, 87, "SPT.3", [](std::uint64_t e, std::uint64_t v) { return with<kEcap, "SMPWCS">(e, v); }},
      {&Bench::process, 88, "SPT.3", [](std::uint64_t e, std::uint64_t v) { return with<kEcap, "SC">(e, v); }},
      {&Bench::process, 89, "SPT.3", [](std::uint64_t e, std::uint64_t v) { return with<kEcap, "MTS">(e, v); }},
      {&Bench::process, 90, "SPT.3", [](std::uint64_t e, std::uint64_t v) { return with<kEcap, "MTS">(e, v); }},
      {&Bench::process, 96, "SPT.3", [](std::uint64_t e, std::uint64_t v) { return with<kEcap, "MTS">(e, v); }},
      {&Bench::process, 128, "SPT.3", [](std::uint64_t e, std::uint64_t v) { return with<kEcap, "SRS">(e, v); }},
      {&Bench::process, 135, "SPT.3", [](std::uint64_t e, std::uint64_t v) { return with<kEcap, "EAFS">(e, v); }},
  };
  for (const Row& row : rows) {
    for (const std::uint64_t supported : {0ULL, 1ULL}) {
      Identity identity = Bench::full();
      identity.ecap = row.ecap(identity.ecap, supported);
      Bench bench(Setting::PassThrough, {}, identity);
      bench.write(bench.context, bench.word(bench.context) & ~0b1100ULL);  // DTE, PASIDE
      bench.set<kPasidEntry, "PWSNP">(bench.process, 0);
      bench.flip(bench.*row.entry, row.bit);
      // RID_PRIV makes the request a supervisor's, which SRE must allow.
      const std::string otherwise = row.bit == 84 ? "SPT.6" : "translated";
      EXPECT_EQ(row_of(bench.translate()), supported == 0 ? row.fault : otherwise) << row.fault << " bit " << row.bit;
    }
  }
}

// Kills: a translation type that needs another capability than its own.
TEST(VtdScalable, EachTranslationTypeNeedsItsCapability) {
  const std::map<Setting, std::vector<std::string>> needed{{Setting::FirstStage, {"FSTS"}},
                                                           {Setting::SecondStage, {"SSTS"}},
                                                           {Setting::Nested, {"NEST"}},
                                                           {Setting::PassThrough, {"PT"}}};
  const std::map<std::string, std::uint64_t> masks{{"FSTS", mask_of<kEcap, "FSTS">},
                                                   {"SSTS", mask_of<kEcap, "SSTS">},
                                                   {"NEST", mask_of<kEcap, "NEST">},
                                                   {"PT", mask_of<kEcap, "PT">}};
  for (const auto& [setting, own] : needed) {
    for (const auto& [name, mask] : masks) {
      Identity identity = Bench::full();
      identity.ecap &= ~mask;
      Bench bench(setting, {}, identity);
      EXPECT_EQ(row_of(bench.translate()), name == own[0] ? "SPT.4.1" : "translated") << name;
    }
  }
  for (const std::uint64_t reserved : {0ULL, 5ULL, 6ULL, 7ULL}) {
    Bench bench(Setting::PassThrough);
    bench.set<kPasidEntry, "PGTT">(bench.process, reserved);
    EXPECT_EQ(row_of(bench.translate()), "SPT.4.1");
  }
}

// What caches will be tagged with, and what invalidation will look for.
TEST(VtdScalable, ContextsCarryTheTagsOfTheirStages) {
  for (const Setting setting : {Setting::FirstStage, Setting::SecondStage, Setting::Nested, Setting::PassThrough}) {
    Bench bench(setting);
    const Context context = context_of(bench);
    const bool first = setting == Setting::FirstStage || setting == Setting::Nested;
    const std::map<Setting, ContextKind> kinds{{Setting::FirstStage, ContextKind::Stage1},
                                               {Setting::SecondStage, ContextKind::Stage2},
                                               {Setting::Nested, ContextKind::Nested},
                                               {Setting::PassThrough, ContextKind::Bypass}};
    EXPECT_EQ(context.kind, kinds.at(setting));
    EXPECT_EQ(context.domain, DomainTag(Bench::kDomain));
    EXPECT_EQ(context.asid, first ? std::optional(AsidTag(Bench::kRidPasid)) : std::nullopt);
    EXPECT_EQ(context.process, AsidTag(Bench::kRidPasid));
  }
}

}  // namespace
}  // namespace iommu::vtd::test
