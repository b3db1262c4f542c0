// SPDX-License-Identifier: Apache-2.0
// Goldens are in explain_golden/; IOMMUSIM_BLESS=1 in the environment writes them anew.
#include "sim/app/explain.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "models/families.hpp"
#include "sim/app/explain_steps.hpp"
#include "sim/app/explain_text.hpp"
#include "sim/app/forked_runs.hpp"
#include "sim/app/verbs.hpp"
#include "sim/memory/host_memory.hpp"

namespace iommu {
namespace {

using scenario::ScenarioError;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

constexpr const char* kSmoke = "scenarios/smoke.yaml";
constexpr const char* kOlder = "models/vtd/vectors/vtd-qemu7.jsonl.gz";
constexpr const char* kNewer = "models/vtd/vectors/vtd-qemu11.jsonl.gz";

std::string text_of(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

std::string explained(const ExplainArguments& arguments) {
  std::ostringstream out;
  explain(arguments, load_options(), out);
  return out.str();
}

// In a process of its own, because SystemC elaborates once. A mistake comes back as its line.
std::string explained_apart(const ExplainArguments& arguments) {
  constexpr char kStandsForNewline = '\x01';
  const auto swap = [](std::string text, char from, char to) {
    std::ranges::replace(text, from, to);
    return text;
  };
  const auto results = run_forked(
      1, 1, [&](std::size_t, const ProgressFn&) { return swap(explained(arguments), '\n', kStandsForNewline); }, {});
  EXPECT_NE(results[0].status, ForkedResult::Status::Crashed) << results[0].text;
  return swap(results[0].text, kStandsForNewline, '\n');
}

std::vector<std::string> mistakes_of(const ExplainArguments& arguments) {
  try {
    std::ostringstream out;
    explain(arguments, load_options(), out);
  } catch (const ScenarioError& e) {
    return e.lines();
  }
  return {};
}

void expect_golden(const std::string& name, const std::string& text) {
  const std::string path = "sim/app/explain_golden/" + name + ".txt";
  if (std::getenv("IOMMUSIM_BLESS") != nullptr) std::ofstream(path, std::ios::binary) << text;
  EXPECT_EQ(text, text_of(path)) << "golden " << path;
}

// Scenarios
// -------------------------------------------------------------------------------------------------------------

class ExplainStrategy : public testing::TestWithParam<const char*> {};

// Kills: a step lost, repeated or out of order; an entry under another layout's names; a comparison with software or
// with the guest's own unit that always agrees or compares guest-physical with host addresses.
TEST_P(ExplainStrategy, ShowsEveryStepOfTheSmokeScenario) {
  expect_golden(std::string("smoke_") + GetParam(), explained_apart({.target = kSmoke, .strategy = GetParam()}));
}

// Kills: addresses or times in the output that differ between runs.
TEST_P(ExplainStrategy, GivesTheSameBytesAgain) {
  const ExplainArguments arguments{.target = kSmoke, .strategy = GetParam(), .after = "60"};
  const std::string once = explained_apart(arguments);
  EXPECT_THAT(once, HasSubstr("after 60 I/Os"));
  EXPECT_EQ(once, explained_apart(arguments));
}
INSTANTIATE_TEST_SUITE_P(All, ExplainStrategy, testing::Values("passthrough", "pv_iommu", "nested", "emulated_viommu"));

// Kills: an unmapped address taken for a mistake; a fault without its row's meaning or without what software finds.
TEST(ExplainScenario, AnAddressThatIsNotMappedIsAFaultAndIsRecorded) {
  const std::string text =
      explained_apart({.target = kSmoke, .strategy = "pv_iommu", .iova = "0xdead000", .access = "write"});
  EXPECT_THAT(text, StartsWith("nic0 (03:00.0) writes to 0xdead000: where does that go?\n"));
  EXPECT_THAT(text, HasSubstr("-> not present"));
  EXPECT_THAT(text, HasSubstr("result: fault LGN.2 (code 0x5, no permission): no write permission"));
  EXPECT_THAT(text, HasSubstr("recorded:"));
  EXPECT_THAT(text, HasSubstr("FI=0xdead SID=0x300 FR=5"));
  EXPECT_THAT(text, HasSubstr("software: nothing is mapped there, as the fault says"));
  EXPECT_THAT(text, Not(HasSubstr("mapped now")));
}

// Kills: records in memory that are not looked for, or that are named after another event.
TEST(ExplainScenario, ARecordInMemoryIsShownLikeOneInRegisters) {
  const std::string text = explained_apart(
      {.target = kSmoke, .strategy = "pv_iommu", .family = "amdvi", .iova = "0xdead000", .access = "write"});
  EXPECT_THAT(text, HasSubstr("result: fault IO_PAGE_FAULT."));
  EXPECT_THAT(text, HasSubstr("  Event Log Tail       0x2018 = 0x0000000000000010"));
  EXPECT_THAT(text, testing::ContainsRegex("  IO_PAGE_FAULT 0x[0-9a-f]+ = 0x2[0-9a-f]+0300 0x000000000dead000"));
  EXPECT_THAT(text, HasSubstr("DeviceID=0x300"));
}

// Kills: --at without effect: at boot only the two rings are mapped, in operation the buffers of 32 entries are too.
TEST(ExplainScenario, WhatIsMappedFollowsTheRun) {
  const auto pages = [](const std::string& text) {
    const std::size_t at = text.find("mapped now: ");
    return at == std::string::npos ? -1 : std::stoi(text.substr(at + 12));
  };
  EXPECT_EQ(pages(explained_apart({.target = kSmoke, .strategy = "pv_iommu"})), 2);
  const std::string running = explained_apart({.target = kSmoke, .strategy = "pv_iommu", .after = "100"});
  EXPECT_GT(pages(running), 20);
  EXPECT_THAT(running, HasSubstr(": they agree\n"));
}

// Kills: waiting for I/Os that a workload, which ends, never does.
TEST(ExplainScenario, AWorkloadThatEndsTooEarlyIsAMistake) {
  const std::string line = explained_apart({.target = "scenarios/strategies_nvme_trace.yaml", .after = "1000000000"});
  EXPECT_THAT(line, AllOf(StartsWith("scenarios/strategies_nvme_trace.yaml: --at: only "),
                          HasSubstr("of 1000000000 I/Os happen: the workload ends")));
}

struct Mistake {
  const char* name;
  ExplainArguments arguments;
  const char* line;
};
class ExplainMistake : public testing::TestWithParam<Mistake> {};

// Kills: an option that is ignored where it means nothing, a value that is cut or wraps, more or less than one line.
TEST_P(ExplainMistake, IsOneLine) {
  EXPECT_THAT(mistakes_of(GetParam().arguments), ElementsAre(HasSubstr(GetParam().line)));
}
INSTANTIATE_TEST_SUITE_P(
    All, ExplainMistake,
    testing::Values(
        Mistake{"NoFile", {.target = "scenarios/smok.yaml"}, "did you mean 'scenarios/smoke.yaml'?"},
        Mistake{"OtherFile", {.target = "README.md"}, "README.md: neither a scenario (.yaml) nor recorded"},
        Mistake{"Device", {.target = kSmoke, .device = "nic1"}, "no device 'nic1'; did you mean 'nic0'?"},
        Mistake{"Strategy", {.target = kSmoke, .strategy = "pv_iomu"}, "did you mean 'pv_iommu'?"},
        Mistake{"Family", {.target = kSmoke, .family = "vdt"}, "unknown family 'vdt'; did you mean 'vtd'?"},
        Mistake{"Address", {.target = kSmoke, .iova = "0x1g"}, "--iova: '0x1g' is no address of 64 bits"},
        Mistake{"AddressEmpty", {.target = kSmoke, .iova = "0x"}, "--iova: '0x' is no address of 64 bits"},
        Mistake{"AddressWide", {.target = kSmoke, .iova = "0x10000000000000000"}, "is no address of 64 bits"},
        Mistake{"Access", {.target = kSmoke, .access = "wirte"}, "'wirte' is neither read nor write"},
        Mistake{"Negative", {.target = kSmoke, .after = "-3"}, "--at: '-3' is no number of I/Os"},
        Mistake{"RecordOfScenario", {.target = kSmoke, .record = "1"}, "--record belongs to recorded translations"},
        Mistake{"ScenarioOptionOfName", {.target = "vtd.LGN.4", .iova = "0"}, "--iova belongs to scenarios"},
        Mistake{"NoRecordGiven", {.target = kOlder}, "expected --record N"},
        Mistake{"RecordZero", {.target = kOlder, .record = "0"}, "holds records 1 to 600"},
        Mistake{"RecordBeyond", {.target = kOlder, .record = "601"}, "holds records 1 to 600"},
        Mistake{"RecordName", {.target = kOlder, .record = "x"}, "has no record 'x'; expected a number from 1 to 600"},
        Mistake{"AccessBeyond", {.target = kOlder, .access = "9", .record = "1"}, "'9' is none of record vtd-2026-0's"},
        Mistake{"Lacking", {.target = kOlder, .record = "544"}, "needs what the model lacks: interrupt remapping"},
        Mistake{"NoVectors", {.target = "no.jsonl", .record = "1"}, "no.jsonl: cannot be opened"}),
    [](const auto& info) { return info.param.name; });

// Records
// ---------------------------------------------------------------------------------------------------------------

struct Recorded {
  const char* golden;
  const char* file;
  const char* record;
  const char* access;
};
class ExplainRecord : public testing::TestWithParam<Recorded> {};

// Kills: registers of another access, memory before or after other accesses, the recorder's answer in place of the
// model's, a rule that is not named, a mark that is not shown.
TEST_P(ExplainRecord, ShowsRegistersStepsBothAnswersAndTheVerdict) {
  const Recorded& r = GetParam();
  expect_golden(r.golden, explained({.target = r.file, .access = r.access, .record = r.record}));
}
INSTANTIATE_TEST_SUITE_P(All, ExplainRecord,
                         testing::Values(Recorded{"record_legacy", kOlder, "1", "0"},
                                         Recorded{"record_first_stage", kNewer, "830", "1"},
                                         Recorded{"record_fault", kOlder, "vtd-2026-0", "1"}),
                         [](const auto& info) { return info.param.golden; });

// Kills: reads that are lost because no observer sees the walk that makes them.
TEST(ExplainRecord, WalksOnTheWayToDeviceTablesAreShown) {
  const std::string text =
      explained({.target = "models/smmuv3/vectors/smmuv3-qemu11.jsonl.gz", .record = "smmuv3-2026-2"});
  EXPECT_THAT(text,
              HasSubstr("  5  stage 2 entry          0x0000961661e8 = 0x0000000ac05733ff\nresult: fault F_ACCESS"));
  EXPECT_THAT(explained({.target = kNewer, .access = "1", .record = "830"}), Not(HasSubstr("stage 1 entry")));
}

// Kills: every access explained with memory as the first one found it.
TEST(ExplainRecord, TablesAreAsTheAccessesBeforeLeftThem) {
  const auto marks = [](const char* access) {
    const std::string text = explained({.target = kNewer, .access = access, .record = "831"});
    std::size_t count = 0;
    for (std::size_t at = text.find("becomes"); at != std::string::npos; at = text.find("becomes", at + 1)) ++count;
    return count;
  };
  EXPECT_EQ(marks("1"), 2U);
  EXPECT_EQ(marks("3"), 0U);  // the same page in the same way
}

std::string first_record(const char* path) {
  std::string text(1U << 16, '\0');
  gzFile_s* file = gzopen(path, "rb");
  EXPECT_NE(gzgets(file, text.data(), static_cast<int>(text.size())), nullptr);
  gzclose(file);
  return text.substr(0, text.find('\0'));
}

// Kills: a damaged file that crashes, hangs or is read as far as it goes without a word.
TEST(ExplainRecord, ADamagedFileIsOneLine) {
  const std::string path = testing::TempDir() + "explain_damaged.jsonl.gz";
  const ExplainArguments arguments{.target = path, .record = "600"};
  std::ofstream(path, std::ios::binary) << text_of(kOlder).substr(0, 5000);
  EXPECT_THAT(mistakes_of(arguments), ElementsAre(HasSubstr("compressed data ends early")));
  std::ofstream(path, std::ios::binary) << "{\"format\": 1}\n";
  EXPECT_THAT(mistakes_of(arguments), ElementsAre(HasSubstr(":1: 'format' is not a string")));
  std::string overlapping = first_record(kOlder);
  const std::size_t cap = overlapping.find("0x", overlapping.find("\"CAP\"")) + 2;
  overlapping.replace(cap, overlapping.find('"', cap) - cap, "d2008c00260206");  // FRO = 0: over the version register
  std::ofstream(path, std::ios::binary) << overlapping;
  EXPECT_THAT(mistakes_of({.target = path, .record = "1"}), ElementsAre(HasSubstr("lacks: registers that overlap")));
  std::ofstream(path, std::ios::binary) << "\x1f\x8b no gzip";
  EXPECT_THAT(mistakes_of(arguments), ElementsAre(StartsWith(path)));
  std::ofstream(path, std::ios::binary) << "";
  EXPECT_THAT(mistakes_of(arguments), ElementsAre(HasSubstr("holds no records")));
}

// The log
// ---------------------------------------------------------------------------------------------------------------

// Kills: a log that lets marks through to memory, or forgets them, or swaps whatever it finds.
TEST(TranslationLog, WritesStayInIt) {
  HostMemory host(1_MiB);
  const Hpa at(0x1000);
  host.write64(at, 5);
  ImmediateMemoryPort memory(host);
  TranslationLog log(memory);
  const auto run = [&]() -> Task<void> {
    const MemoryResult lost = co_await log.compare_exchange64(at, 4, 9, AccessKind::Stage2Entry);
    EXPECT_EQ(lost.value, 5U);
    const MemoryResult same = co_await log.read64(at, AccessKind::Stage2Entry);
    EXPECT_EQ(same.value, 5U);
    const MemoryResult swapped = co_await log.compare_exchange64(at, 5, 7, AccessKind::Stage2Entry);
    EXPECT_EQ(swapped.value, 5U);
    const MemoryResult changed = co_await log.read64(at, AccessKind::Stage2Entry);
    EXPECT_EQ(changed.value, 7U);
    const MemoryResult outside = co_await log.compare_exchange64(Hpa(1ULL << 40), 0, 1, AccessKind::Stage2Entry);
    EXPECT_TRUE(outside.failed);
  };
  run().run();
  EXPECT_EQ(host.read64(at), 5U);
}

// Names
// -----------------------------------------------------------------------------------------------------------------

// Kills: case or punctuation that counts; a name that finds only the first layout that has it.
TEST(ExplainName, FindsFieldsHoweverTheyAreSpelt) {
  const std::string field = explained({.target = "vtd.SS-PTE.R"});
  EXPECT_EQ(field,
            "SS-PTE: SS paging entry mapping a page, 64 bits  [Intel VT-d 4.1 §9.8]\n"
            "  R             bit 0          value\n");
  EXPECT_EQ(explained({.target = "VTD.sspte.r"}), field);
  EXPECT_EQ(explained({.target = "vtd.SSPTE.PS"}),
            "SS-PTE: SS paging entry mapping a page, 64 bits  [Intel VT-d 4.1 §9.8]\n"
            "  PS            bit 7          value\n");
  const std::string both = explained({.target = "vtd.SS_PDE.PS"});
  EXPECT_THAT(both, AllOf(HasSubstr("referencing a table"), HasSubstr("bit 7          reserved"),
                          HasSubstr("mapping a page"), HasSubstr("bit 7          value")));
  EXPECT_THAT(explained({.target = "vtd.cap.mgaw"}), HasSubstr("MGAW          bits 21:16     value"));
}

// Kills: a fault or command row printed without what it means or where it stands.
TEST(ExplainName, FindsFaultsAndCommands) {
  EXPECT_EQ(explained({.target = "vtd.LGN.4"}),
            "LGN.4: fault 0xe, request not allowed: address in the interrupt range  [Intel VT-d 4.1 §7.2.3]\n"
            "  a table entry may ask hardware not to record it\n");
  EXPECT_THAT(explained({.target = "vtd.LRT.1"}), HasSubstr("always recorded"));
  EXPECT_THAT(explained({.target = "vtd.inv_wait_dsc"}),
              AllOf(HasSubstr("command, opcode 0x5  [Intel VT-d 4.1 §6.5.2.8]"), HasSubstr("STDATA")));
}

// Kills: a miss without a suggestion, or one that cannot be typed back.
TEST(ExplainName, AMissNamesTheNearest) {
  const auto line = [](const char* name) { return mistakes_of({.target = name}); };
  EXPECT_THAT(line("vtd.SSTPE.R"), ElementsAre(HasSubstr("did you mean 'vtd.SS-PTE.R'?")));
  EXPECT_THAT(line("vtd.SS-PTE.RR"), ElementsAre(HasSubstr("vtd.SS-PTE has no field 'RR'; did you mean 'R'?")));
  EXPECT_THAT(line("vtd.scalablecontextentry.RID"), ElementsAre(HasSubstr("did you mean 'RID_PASID'?")));
  EXPECT_THAT(line("vtd.INV_WAIT"), ElementsAre(HasSubstr("did you mean 'vtd.inv_wait_dsc'?")));
  EXPECT_THAT(line("vdt.SS-PTE.R"), ElementsAre(HasSubstr("no family; did you mean 'vtd'?")));
  EXPECT_THAT(line("vtd.qqqqqqqqq"), ElementsAre(Not(HasSubstr("did you mean"))));
}

class ExplainFamily : public testing::TestWithParam<const FamilyDescriptor*> {};

// Kills: a layout, fault or command that cannot be asked for, or whose name means another one.
TEST_P(ExplainFamily, EverythingThatItListsIsFound) {
  const FamilyDescriptor& family = *GetParam();
  const std::string prefix = std::string(family.name) + ".";
  const std::string list = explained({.target = std::string(family.name)});
  for (const FaultRow& row : family.fault_rows) {
    EXPECT_THAT(list, HasSubstr(row.name));
    EXPECT_THAT(explained({.target = prefix + std::string(row.name)}), HasSubstr(std::string(row.name) + ": fault"));
  }
  for (const CommandRow& row : family.command_rows)
    EXPECT_THAT(explained({.target = prefix + std::string(row.name)}), HasSubstr(std::string(row.name) + ": command"));
  if (family.layouts == nullptr) return;
  for (const LayoutView& layout : family.layouts->all) {
    EXPECT_THAT(list, HasSubstr(layout.name));
    for (const Field& field : layout.fields)
      EXPECT_THAT(explained({.target = prefix + std::string(layout.name) + "." + std::string(field.name)}),
                  AllOf(HasSubstr(std::string(layout.title) + ", "), HasSubstr(bits_text(field))));
  }
}

// Kills: a register under the layout of another of a different size, or without any fields at all.
TEST_P(ExplainFamily, RegistersHaveLayoutsOfTheirSize) {
  const FamilyDescriptor& family = *GetParam();
  if (family.layouts == nullptr || family.layouts->registers == nullptr) GTEST_SKIP() << "publishes no registers";
  const auto core = family.make_core(UnitFeatures{});
  std::size_t named = 0;
  for (const RegisterPlace& place : family.layouts->registers(*core)) {
    if (place.layout == nullptr) continue;
    ++named;
    EXPECT_EQ(place.layout->width, 8 * place.bytes) << place.name;
    EXPECT_EQ(place.layout->name, place.name);
  }
  EXPECT_GT(named, 5U);
}
INSTANTIATE_TEST_SUITE_P(All, ExplainFamily, testing::ValuesIn(families().begin(), families().end()),
                         [](const auto& info) { return std::string(info.param->name); });

// Traces that scenarios name
// --------------------------------------------------------------------------------------------

std::vector<std::string> validated(const std::string& trace) {
  constexpr const char* kScenario = "scenarios/strategies_nvme_trace.yaml";
  std::string text = text_of(kScenario);
  const std::size_t at = text.find("file: ") + 6;
  text.replace(at, text.find(',', at) - at, trace);
  scenario::LoadOptions options = load_options();
  options.check_trace = trace_check();
  try {
    (void)scenario::parse_scenario(text, "scenarios/x.yaml", options);
  } catch (const ScenarioError& e) {
    return e.lines();
  }
  return {};
}

// Kills: a trace that is only looked at when the scenario runs; a message without the place in the scenario or, for a
// bad event, in the trace; a good trace refused.
TEST(ValidateTraces, ATraceThatCannotBeReadIsReportedAtItsKey) {
  std::string good = text_of("scenarios/strategies_nvme_trace.yaml");
  const std::size_t at = good.find("file: ") + 6;
  EXPECT_THAT(validated(good.substr(at, good.find(',', at) - at)), ElementsAre());

  const std::size_t line =
      1 + static_cast<std::size_t>(std::count(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(at), '\n'));
  const std::size_t column = at - good.rfind('\n', at);
  const std::string place = "scenarios/x.yaml:" + std::to_string(line) + ":" + std::to_string(column) + ": trace '";
  EXPECT_THAT(validated("traces/none.csv"),
              ElementsAre(StartsWith(place + "traces/none.csv' cannot be used: there is no such file")));
  EXPECT_THAT(validated("traces"), ElementsAre(StartsWith(place + "traces' cannot be used: ")));
  const std::string bad = testing::TempDir() + "explain_bad_trace.csv";
  std::ofstream(bad) << "what is this\n1,2,3\n";
  EXPECT_THAT(validated(bad), ElementsAre(AllOf(StartsWith(place + bad + "' cannot be used: "), HasSubstr("line "))));
}

// Kills: a file read once a variation.
TEST(ValidateTraces, EachIsReadOnce) {
  const scenario::TraceCheck check = trace_check();
  scenario::TraceWorkload trace;
  trace.file = "t.csv";
  trace.resolved = testing::TempDir() + "explain_absent_trace.csv";
  EXPECT_THAT(check(trace), HasSubstr("there is no such file"));
  std::ofstream(trace.resolved) << "what is this\n";
  EXPECT_THAT(check(trace), HasSubstr("there is no such file"));
  EXPECT_THAT(trace_check()(trace), HasSubstr("line "));
  std::remove(trace.resolved.c_str());
}

}  // namespace
}  // namespace iommu
