// SPDX-License-Identifier: Apache-2.0
// Each rule explains the departure it is for, and nothing next to it: hand-made records, with what the recorder would
// have seen where the rule holds, and the same where its precondition does not.
#include "models/amdvi/vector_rules.hpp"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "models/amdvi/core_test_support.hpp"

namespace iommu::amdvi::test {
namespace {

constexpr std::uint64_t kRam = 0x1000, kRamBytes = 0x100'0000;  // no memory at address 0
constexpr std::uint64_t kDevices = 0x20'0000, kLog = 0x3'0000, kRoot = 0x4'0000;
constexpr std::uint64_t kInput = 0x7f12'3456'7abc, kPage = 0x5'5000, kOutput = kPage + 0xabc;
constexpr unsigned kDevice = 0x208;
constexpr std::uint64_t kOpen = 0x6000'0000'0000'0001;  // PR IR IW
// Where the walk of kInput through four levels reads.
constexpr std::uint64_t k4 = kRoot + 0xfe * 8, k3 = 0x4'1000 + 0x48 * 8, k2 = 0x4'2000 + 0x1a2 * 8,
                        k1 = 0x4'3000 + 0x167 * 8;

// A record of one read, of a device that all rights lead to one page.
struct Record : VectorRecord {
  explicit Record(unsigned major) {
    id = "hand-made", family = "amdvi", recorder_major = major;
    id_registers["EXT_FEATURE"] = 0x850;  // GTSup, IASup; six levels
    ram = {{.base = kRam, .bytes = kRamBytes}};
    set(entry(), 0x6000'0000'0000'0803 | kRoot), set(entry() + 8, 0x42);
    set(k4, kOpen | 0x4'1600), set(k3, kOpen | 0x4'2400), set(k2, kOpen | 0x4'3200), set(k1, kOpen | kPage);
    using enum VectorRegisterAccess::Kind;
    setup = {{.kind = Write, .offset = 0x00, .bytes = 8, .value = kDevices | 0x1ff},
             {.kind = Write, .offset = 0x10, .bytes = 8, .value = kLog | 8UL << 56},
             {.kind = Write, .offset = 0x18, .bytes = 8, .value = 5}};
    VectorAccess access;
    access.request.requester = RequesterId(kDevice);
    access.request.address = Iova(kInput);
    accesses = {access};
  }
  static std::uint64_t entry() { return kDevices + kDevice * 32; }
  void set(std::uint64_t address, std::uint64_t value) {
    for (auto& [at, old] : words)
      if (at == address) {
        old = value;
        return;
      }
    words.emplace_back(address, value);
  }
  [[nodiscard]] std::uint64_t get(std::uint64_t address) const {
    for (const auto& [at, value] : words)
      if (at == address) return value;
    return 0;
  }
  void toggle(std::uint64_t address, std::uint64_t bits) { set(address, get(address) ^ bits); }
  void translated(std::uint64_t output) {
    accesses[0].recorded = {.result = VectorResult::Translated, .output = output};
  }
  void blocked() { accesses[0].recorded = {.result = VectorResult::Blocked}; }
  void fault(unsigned code) {  // an event of QEMU 11
    accesses[0].recorded = {.result = VectorResult::Fault, .reason = code};
    accesses[0].recorded.fault = RecordedFault{.requester = RequesterId(kDevice)};
  }
};

using Rules = std::vector<std::string_view>;
struct RuleCase {
  Rules rules;  // that explain it, in order; none: it must not be explained
  std::string_view what;
  unsigned major;
  void (*record)(Record&);
};
constexpr std::uint64_t kV = 1, kTv = 2, kIr = 1UL << 61, kPr = 1;
void absent(Record& r) { r.toggle(k1, kPr); }

// clang-format off
const std::vector<RuleCase> kCases{
    {{"device-table-size-ignored"}, "beyond the table", 11, [](Record& r) { r.setup[0].value = kDevices; r.translated(kOutput); }},
    {{}, "within the table, absent page", 11, [](Record& r) { absent(r); r.translated(kOutput); }},
    {{"entry-checked-whole", "event-without-address"}, "reserved bit with V = 0", 11, [](Record& r) { r.toggle(Record::entry(), kV | 4); r.fault(1); }},
    {{"entry-checked-whole", "event-without-address"}, "reserved bit of the words for interrupts", 11, [](Record& r) { r.set(Record::entry() + 24, 1); r.fault(1); }},
    {{}, "V = 0 without reserved bits", 11, [](Record& r) { r.toggle(Record::entry(), kV); r.fault(1); }},
    {{"absent-features-unchecked"}, "PPR", 11, [](Record& r) { r.toggle(Record::entry(), 1UL << 52); r.translated(kOutput); }},
    {{}, "a bit that is always reserved", 11, [](Record& r) { r.toggle(Record::entry(), 1UL << 63); r.translated(kOutput); }},
    {{"untranslated-forwarded"}, "TV = 0", 7, [](Record& r) { r.toggle(Record::entry(), kTv); r.translated(kInput); }},
    {{}, "TV = 0 without IR", 7, [](Record& r) { r.toggle(Record::entry(), kTv | kIr); r.translated(kInput); }},
    {{}, "TV = 0, the other recorder", 11, [](Record& r) { r.toggle(Record::entry(), kTv); r.translated(kInput); }},
    {{"blocked-without-event"}, "TV = 0", 11, [](Record& r) { r.toggle(Record::entry(), kTv); r.blocked(); }},
    {{"blocked-without-event"}, "Mode 7", 11, [](Record& r) { r.toggle(Record::entry(), 3UL << 9); r.blocked(); }},
    {{}, "an absent page without event", 11, [](Record& r) { absent(r); r.blocked(); }},
    {{"forwarded-without-rights"}, "Mode 0", 11, [](Record& r) { r.set(Record::entry(), 3); r.translated(kInput); }},
    {{}, "Mode 0, the other recorder", 7, [](Record& r) { r.set(Record::entry(), 3); r.translated(kInput); }},
    {{}, "Mode 0 translated", 11, [](Record& r) { r.set(Record::entry(), 3); r.translated(kOutput); }},
    {{"suppression-ignored", "event-without-address"}, "SA", 11, [](Record& r) { absent(r); r.toggle(Record::entry() + 8, 1UL << 34); r.fault(2); }},
    {{}, "SA and a page that is mapped", 11, [](Record& r) { r.toggle(Record::entry() + 8, 1UL << 34); r.fault(2); }},
    {{"next-level-not-below"}, "a second table of the same level", 7,
     [](Record& r) { r.set(k4, kOpen | 0x5'0800); r.set(0x5'0000 + 0xfe * 8, kOpen | 0x4'1600); r.translated(kOutput); }},
    {{}, "the same, the other recorder", 11,
     [](Record& r) { r.set(k4, kOpen | 0x5'0800); r.set(0x5'0000 + 0xfe * 8, kOpen | 0x4'1600); r.translated(kOutput); }},
    {{"skipped-bits-ignored"}, "level 4 leads to level 1", 11, [](Record& r) { r.set(k4, kOpen | 0x4'3200); r.translated(kOutput); }},
    {{"skipped-bits-ignored"}, "address beyond Mode", 7, [](Record& r) { r.accesses[0].request.address = Iova(kInput | 1UL << 50); r.translated(kOutput); }},
    {{}, "address beyond Mode, the other recorder", 11, [](Record& r) { r.accesses[0].request.address = Iova(kInput | 1UL << 50); r.translated(kOutput); }},
    {{}, "level 4 leads to level 1, another page", 11, [](Record& r) { r.set(k4, kOpen | 0x4'3200); r.translated(kOutput + 0x1000); }},
    {{"page-presence-unchecked"}, "PR of the page", 7, [](Record& r) { absent(r); r.translated(kOutput); }},
    {{}, "a page of zeros", 7, [](Record& r) { r.set(k1, 0); r.translated(0xabc); }},
    {{}, "PR of a directory", 7, [](Record& r) { r.toggle(k2, kPr); r.translated(kOutput); }},
    {{"table-reserved-unchecked"}, "of a directory", 11, [](Record& r) { r.toggle(k2, 1UL << 55); r.translated(kOutput); }},
    {{"table-reserved-unchecked"}, "of the page", 7, [](Record& r) { r.toggle(k1, 1UL << 55); r.translated(kOutput); }},
    {{}, "of a directory, another page", 11, [](Record& r) { r.toggle(k2, 1UL << 55); r.translated(kOutput + 0x1000); }},
    {{"rights-of-last-entry-only"}, "IR of a directory", 11, [](Record& r) { r.toggle(k3, kIr); r.translated(kOutput); }},
    {{"rights-of-last-entry-only"}, "IR of the device entry", 11, [](Record& r) { r.toggle(Record::entry(), kIr); r.translated(kOutput); }},
    {{}, "IR of the page", 11, [](Record& r) { r.toggle(k1, kIr); r.translated(kOutput); }},
    {{}, "IR of a directory, the other recorder", 7, [](Record& r) { r.toggle(k3, kIr); r.translated(kOutput); }},
    {{"page-of-any-size"}, "2 MiB at level 1", 11, [](Record& r) { r.set(k1, kOpen | 0x8f'fe00); r.translated(0x80'0000 | (kInput & 0x1f'ffff)); }},
    {{}, "2 MiB at level 1, another page", 11, [](Record& r) { r.set(k1, kOpen | 0x8f'fe00); r.translated(kOutput); }},
    {{"stale-translation"}, "the one record", 7, [](Record& r) { r.id = "amdvi-2026-280"; r.accesses[0].request.address = Iova(0x42abc); r.translated(0x46ad6abc); }},
    {{}, "another record", 7, [](Record& r) { r.accesses[0].request.address = Iova(0x42abc); r.translated(0x46ad6abc); }},
    {{"events-not-logged"}, "an absent directory", 7, [](Record& r) { r.toggle(k2, kPr); r.blocked(); }},
    {{}, "a page that is mapped", 7, [](Record& r) { r.blocked(); }},
    {{"event-without-address"}, "an absent page", 11, [](Record& r) { absent(r); r.fault(2); }},
    {{}, "an absent page, another code", 11, [](Record& r) { absent(r); r.fault(4); }},
    {{"page-zero-outside-memory"}, "page 0", 11, [](Record& r) { r.set(k1, kOpen); r.blocked(); }},
    {{}, "another page outside memory", 11, [](Record& r) { r.set(k1, kOpen | 0x5000'0000); r.blocked(); }},
};
// clang-format on

TEST(AmdViVectorRules, TheUnbrokenRecordAgrees) {
  for (const unsigned major : {7U, 11U}) {
    Record record(major);
    record.translated(kOutput);
    EXPECT_EQ(judge(record, kVectorFamily)[0].verdict, VectorVerdict::Agree);
  }
}
// Kills: a rule without its precondition, of the wrong recorder, or that changes more than its departure.
TEST(AmdViVectorRules, EachExplainsItsDepartureAndNothingNextToIt) {
  for (const RuleCase& c : kCases) {
    Record record(c.major);
    c.record(record);
    const auto judgements = judge(record, kVectorFamily);
    ASSERT_FALSE(judgements.empty());
    if (c.rules.empty()) {
      EXPECT_EQ(judgements[0].verdict, VectorVerdict::Disagree) << c.what;
      continue;
    }
    EXPECT_EQ(judgements[0].verdict, VectorVerdict::Deviation) << c.rules[0] << ": " << c.what;
    EXPECT_EQ(judgements[0].rules, c.rules) << c.what;
  }
}
TEST(AmdViVectorRules, EachHasACase) {
  std::set<std::string_view> covered;
  for (const RuleCase& c : kCases) covered.insert(c.rules.begin(), c.rules.end());
  for (const VectorRule& rule : kVectorFamily.rules) EXPECT_TRUE(covered.contains(rule.name)) << rule.name;
}
// Records that need what the model lacks are not judged.
TEST(AmdViVectorRules, WhatTheModelLacksIsNamed) {
  Record record(11);
  EXPECT_EQ(kVectorFamily.lacks(record), "");
  record.id_registers["EXT_FEATURE"] |= 1UL << 63;
  EXPECT_NE(kVectorFamily.lacks(record), "");
  record.id_registers["EXT_FEATURE"] = 1UL << 38;
  EXPECT_NE(kVectorFamily.lacks(record), "");
  record.id_registers.clear();
  EXPECT_NE(kVectorFamily.lacks(record), "");
}

}  // namespace
}  // namespace iommu::amdvi::test
