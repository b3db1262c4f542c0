// SPDX-License-Identifier: Apache-2.0
#include "sim/scenario/loader.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "sim/scenario/schema.hpp"

namespace iommu::scenario {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::EndsWith;
using testing::HasSubstr;
using testing::SizeIs;
using testing::StartsWith;

const LoadOptions kOptions{.families = {"vtd", "amdvi", "smmuv3"}, .platform_folders = {"scenarios/platforms"}};

std::string text_of(const std::string& path) {
  std::ifstream stream(path);
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

// The smoke scenario with one text replaced.
std::string smoke_with(const std::string& from, const std::string& to) {
  std::string text = text_of("scenarios/smoke.yaml");
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

std::vector<std::string> errors_of(const std::string& text) {
  try {
    (void)parse_scenario(text, "s.yaml", kOptions);
  } catch (const ScenarioError& e) {
    return e.lines();
  }
  return {};
}

TEST(ScenarioErrors, NothingIsWrongWithTheSmokeScenario) {
  EXPECT_THAT(errors_of(text_of("scenarios/smoke.yaml")), SizeIs(0));
}

// Kills: unknown keys are ignored; position of the value instead of the key.
TEST(ScenarioErrors, MisspeltKeyNamesLineColumnAndNearestKey) {
  EXPECT_THAT(errors_of(smoke_with("ring_entries", "ring_entires")),
              Contains(AllOf(StartsWith("s.yaml:22:88:"), HasSubstr("unknown key 'ring_entires' in workload"),
                             HasSubstr("did you mean 'ring_entries'?"))));
}

// Kills: stopping at the first error.
TEST(ScenarioErrors, AllAreListedInFileOrder) {
  std::string text = smoke_with("seed: 1", "sede: 1");
  text.replace(text.find("1500 B"), 6, "1500");
  const auto lines = errors_of(text);
  ASSERT_THAT(lines, SizeIs(2));
  EXPECT_THAT(lines[0], HasSubstr("'sede'"));
  EXPECT_THAT(lines[1], AllOf(HasSubstr("'1500' lacks a unit"), HasSubstr("B, KiB, MiB, GiB, TiB")));
}

struct BadCase {
  const char* name;
  const char* from;
  const char* to;
  const char* message;
};

class BadScenario : public testing::TestWithParam<BadCase> {};

TEST_P(BadScenario, SaysWhatIsWrongAndWhere) {
  const BadCase& bad = GetParam();
  EXPECT_THAT(errors_of(smoke_with(bad.from, bad.to)),
              Contains(AllOf(testing::ContainsRegex("^s.yaml:[0-9]+:[0-9]+: "), HasSubstr(bad.message))))
      << bad.name;
}

constexpr const char* kDevice = "strategies: [passthrough";
INSTANTIATE_TEST_SUITE_P(
    Each, BadScenario,
    testing::Values(
        BadCase{"wrong unit", "64 MiB", "64 ns", "unknown unit 'ns'"},
        BadCase{"misspelt unit", "64 MiB", "64 MB", "did you mean 'MiB'?"},
        BadCase{"out of range", "vcpus: 1", "vcpus: 1000", "from 1 to 256"},
        BadCase{"wrong type", "vcpus: 1", "vcpus: [1]", "found a list"},
        BadCase{"quoted number", "vcpus: 1", "vcpus: \"1\"", "expected a number"},
        BadCase{"not a power of two", "ring_entries: 32", "ring_entries: 33", "a power of two"},
        BadCase{"key given twice", "seed: 1", "seed: 1\nseed: 2", "given twice; first in line 5"},
        BadCase{"missing key", "    upstream: port0\n", "", "key 'upstream' is missing in device"},
        BadCase{"key of another kind", "ring_entries: 32", "window: 1 MiB", "belongs to kind: random_dma"},
        BadCase{"unknown family", "[vtd]", "[vtq]", "did you mean 'vtd'?"},
        BadCase{"unknown strategy", "nested", "netsed", "did you mean 'nested'?"},
        BadCase{"unknown platform", "platform: intel_server", "platform: intel_sever", "did you mean 'intel_server'?"},
        BadCase{"unknown root port", "upstream: port0", "upstream: prt0", "did you mean 'port0'?"},
        BadCase{"unknown domain", "domain: guest0", "domain: guest1", "there is no domain 'guest1'"},
        BadCase{"vcpu that is not there", "domain: guest0", "domain: guest0\n    vcpu: 1", "has 1 vCPUs"},
        BadCase{"more memory than the platform", "64 MiB", "65 GiB", "platform 'intel_server' has 64 GiB"},
        BadCase{"memory not in pages of the p2m", "64 MiB", "65537 KiB", "not a multiple of its p2m's pages"},
        BadCase{"packet larger than buffer", "buffer_size: 2 KiB", "buffer_size: 1 KiB", "does not hold a packet"},
        BadCase{"strategy twice", "[passthrough, ", "[passthrough, passthrough, ", "give one a 'label'"},
        BadCase{"deferred flush under strict", "pv_iommu,", "{kind: pv_iommu, deferred_flush: true},",
                "no domain has dma_api.policy: lazy"},
        BadCase{"no end", "measure: {warmup_ios: 50, ios: 300}", "measure: {}", "expected 'ios' or 'duration'"},
        BadCase{"two ends", "ios: 300}", "ios: 300, duration: 1 ms}", "expected one of them"},
        BadCase{"two devices with one BDF", kDevice,
                "  - {name: nic1, bdf: '03:00.0', upstream: port0, domain: guest0, workload: {kind: trace, file: x}}\n"
                "strategies: [passthrough",
                "device 'nic0' has this BDF already"},
        BadCase{"bad BDF", "03:00.0", "03:20.0", "bus:device.function"},
        BadCase{"zero-size DMA",
                "kind: nic, direction: receive, packet_size: 1500 B, buffer_size: 2 KiB, ring_entries: 32",
                "kind: random_dma, access: read, window: 1 MiB, access_size: 0 B", "out of range"},
        BadCase{"window larger than memory",
                "kind: nic, direction: receive, packet_size: 1500 B, buffer_size: 2 KiB, ring_entries: 32",
                "kind: random_dma, access: read, window: 1 GiB, access_size: 64 B",
                "does not fit into the guest's 64 MiB"},
        BadCase{"device behind no IOMMU", "root_ports: [{name: port0}]",
                "root_ports: [{name: port0}, {name: p1}]\n  switches: [{name: s, upstream: p1, latency: 1 ns}]",
                "no device is behind root port 'p1'"},
        BadCase{"device behind two IOMMUs", "covers: [port0]}]", "covers: [port0]}, {name: u1, covers: [port0]}]",
                "behind two IOMMUs"},
        BadCase{
            "cyclic topology", "root_ports: [{name: port0}]",
            "root_ports: [{name: port0}]\n  switches: [{name: a, upstream: b, latency: 1 ns}, {name: b, upstream: a, "
            "latency: 1 ns}]",
            "the topology is cyclic"},
        BadCase{"platform row without source", "platform: intel_server",
                "platform: {extends: intel_server, cpu: {frequency: {value: 2 GHz, mark: guess}}}",
                "key 'source' is missing"},
        BadCase{"impossible cache", "platform: intel_server",
                "platform: {extends: intel_server, iommu: {iotlb: {entries: 100}}}", "no power of two of sets"},
        BadCase{"unknown cost row", "platform: intel_server",
                "platform: {extends: intel_server, costs: {hypercal: 100 cycles}}", "did you mean 'hypercall'?"},
        BadCase{"Dom0 that is not the first", "  - name: guest0\n    memory",
                "  - {name: a, memory: 4 MiB}\n  - name: guest0\n    kind: dom0\n    memory",
                "Dom0 is the first domain"},
        BadCase{"virtual interface to itself", kDevice,
                "vifs: [{name: v, frontend: guest0, backend: guest0}]\nstrategies: [passthrough",
                "both ends are in one domain"},
        BadCase{"virtual interface to nobody", kDevice,
                "vifs: [{name: v, frontend: guest0, backend: gest0}]\nstrategies: [passthrough",
                "did you mean 'guest0'?"},
        BadCase{"virtual interface on a vCPU that is not there", kDevice,
                "vifs: [{name: v, frontend: guest0, backend: guest0, read_vcpu: 4}]\nstrategies: [passthrough",
                "has 1 vCPUs"},
        BadCase{"nothing that does anything",
                "kind: nic, direction: receive, packet_size: 1500 B, buffer_size: 2 KiB, ring_entries: 32",
                "kind: idle", "no device does anything"},
        BadCase{"varied key that is not there", "families: [vtd]",
                "families: [vtd]\nvary: [{key: 'devices[3].vcpu', values: [0]}]", "leads nowhere"},
        BadCase{"varied value of a wrong type", "families: [vtd]",
                "families: [vtd]\nvary: [{key: 'domains[0].memory', values: [64 MiB, 3]}]", "'3' lacks a unit"}));

// Kills: coverage of a device taken from any unit instead of its root port's.
TEST(ScenarioErrors, DeviceBehindAnUncoveredRootPortIsBehindNoIommu) {
  std::string text = smoke_with("root_ports: [{name: port0}]", "root_ports: [{name: port0}, {name: port1}]");
  text.replace(text.find("upstream: port0"), 15, "upstream: port1");
  EXPECT_THAT(errors_of(text), Contains(HasSubstr("device 'nic0' is behind no IOMMU")));
}

// Each must end in a line, not in a crash or a long wait.
TEST(HostileYaml, EndsInOneClearLine) {
  std::string deep(100'000, '[');
  std::string laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n";
  for (char c = 'b'; c < 'k'; ++c) {
    laughs += std::string(1, c) + ": &" + c + " [";
    for (int i = 0; i < 10; ++i) laughs += std::string(i == 0 ? "*" : ", *") + static_cast<char>(c - 1);
    laughs += "]\n";
  }
  const std::vector<std::pair<std::string, std::string>> cases{{"", "empty"},
                                                               {"# only a comment\n", "empty"},
                                                               {"- 1\n", "expected keys and values"},
                                                               {"a: &x [*x]\n", "part of what it names"},
                                                               {"a: " + deep, "nested deeper than"},
                                                               {laughs, "more than 100000 values"},
                                                               {"a: 1\n---\nb: 2\n", "a second document"},
                                                               {std::string("a: \0b", 5), "not a text file"},
                                                               {"a: \xff\xfe\n", "not a text file"},
                                                               {"a: [1\nb: }", "not valid YAML"},
                                                               {"a: !binary x\n", "tags"},
                                                               {"? [a]\n: b\n", "a key must be a word"},
                                                               {std::string(2'000'000, 'a'), "larger than 1 MiB"}};
  for (const auto& [text, message] : cases)
    EXPECT_THAT(errors_of(text), Contains(HasSubstr(message))) << text.substr(0, 60);
}

std::vector<std::string> shipped() {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator("scenarios"))
    if (entry.path().extension() == ".yaml") files.push_back(entry.path().string());
  return files;
}

// Kills: a family that runs on another's machine; a family that runs twice.
TEST(FamilyPlatforms, GiveEachFamilyItsMachineOnce) {
  std::string text = text_of("scenarios/smoke.yaml");
  text = text.replace(text.find("families: [vtd]"), 15,
                      "families: [vtd, amdvi]\nfamily_platforms: [{family: amdvi, platform: amd_server}]");
  const LoadedScenario loaded = parse_scenario(text, "scenarios/test.yaml", kOptions);
  const auto runs = plan_runs(loaded);
  ASSERT_EQ(runs.size(), 8U);
  for (const PlannedRun& run : runs)
    EXPECT_EQ(loaded.variations[run.variation].scenario.platform.name,
              run.selection.family == "vtd" ? "intel_server" : "amd_server");
  EXPECT_EQ(loaded.written.platform.name, "intel_server");
  EXPECT_EQ(loaded.written.families.size(), 2U);
}

// Kills: one label for runs on several machines.
TEST(FamilyPlatforms, HardwareOfAStrategysOwnRunsOnceOnTheFirstMachine) {
  std::string text = text_of("scenarios/flat_tables.yaml");
  text = text.replace(text.find("families: [vtd]"), 15,
                      "families: [vtd, amdvi]\nfamily_platforms: [{family: amdvi, platform: amd_server}]");
  const LoadedScenario loaded = parse_scenario(text, "scenarios/test.yaml", kOptions);
  std::size_t flat = 0;
  for (const PlannedRun& run : plan_runs(loaded)) {
    if (run.selection.family != "tce" && run.selection.family != "gart") continue;
    ++flat;
    EXPECT_EQ(loaded.variations[run.variation].scenario.platform.name, "intel_server");
  }
  EXPECT_EQ(flat, 4U);
}

// Kills: a selection that only filters, or that forgets the families' own machines.
TEST(FamilyPlatforms, CommandLineMayAskForOtherFamilies) {
  LoadOptions options = kOptions;
  options.select_families = {"amdvi"};
  const LoadedScenario loaded = load_scenario("scenarios/families.yaml", options);
  ASSERT_EQ(loaded.variations.size(), 1U);
  EXPECT_EQ(loaded.variations[0].scenario.platform.name, "amd_server");
}

// Kills: a key that is read but not written, or written in another spelling.
TEST(EffectiveYaml, OfEveryShippedScenarioReadsBackToItself) {
  ASSERT_FALSE(shipped().empty());
  for (const std::string& file : shipped()) {
    const LoadedScenario loaded = load_scenario(file, kOptions);
    const std::string written = effective_yaml(loaded);
    const LoadedScenario again = parse_scenario(written, "scenarios/again.yaml", kOptions);
    EXPECT_EQ(effective_yaml(again), written) << file;
    EXPECT_EQ(again.variations.size(), loaded.variations.size()) << file;
    for (std::size_t v = 0; v < loaded.variations.size(); ++v)
      EXPECT_EQ(write_document(write_object(again.variations[v].scenario, scenario_schema())),
                write_document(write_object(loaded.variations[v].scenario, scenario_schema())));
  }
}

TEST(Schema, EveryKeyIsDocumentedAndOnce) {
  for (const ObjectInfo* object : all_objects())
    for (const KeyInfo& key : object->keys) {
      EXPECT_FALSE(key.doc.empty()) << object->name << "." << key.name;
      EXPECT_FALSE(key.type.summary.empty()) << object->name << "." << key.name;
      EXPECT_EQ(std::ranges::count(object->keys, key.name, &KeyInfo::name), 1) << object->name << "." << key.name;
    }
}

// The table is generated: iommusim schema --markdown
TEST(Schema, ReadmeHoldsTheGeneratedTable) { EXPECT_THAT(text_of("scenarios/README.md"), EndsWith(schema_markdown())); }

TEST(Platform, CyclesBecomeTimeByTheFrequency) {
  const Platform platform = load_platform("intel_server", kOptions);
  EXPECT_EQ(platform.costs[CostId::Hypercall].time, Picoseconds(409'333));  // 1200 cycles at 3 GHz
  EXPECT_EQ(platform.costs[CostId::Hypercall].unit, "cycles");
}

TEST(Platform, ExtendingKeepsWhatIsNotReplaced) {
  const Platform base = load_platform("intel_server", kOptions);
  const Platform derived = load_platform("pcie_bench", kOptions);
  EXPECT_EQ(derived.pcie.generation.value, 3U);
  EXPECT_EQ(derived.iommu.walk_start.value, base.iommu.walk_start.value);
}

// Kills: an override that keeps the preset's source, which would claim a measurement for a user's number.
TEST(Platform, BareOverrideIsMarkedAGuessOfTheScenario) {
  const LoadedScenario loaded =
      parse_scenario(smoke_with("platform: intel_server", "platform: {extends: intel_server, iommu: {walkers: 3}}"),
                     "s.yaml", kOptions);
  const Row<std::uint64_t>& walkers = loaded.variations.front().scenario.platform.iommu.walkers;
  EXPECT_EQ(walkers.value, 3U);
  EXPECT_EQ(walkers.mark, Mark::Guess);
  EXPECT_EQ(walkers.source, "set by the scenario");
}

TEST(Vary, RunsAreVariationsTimesFamiliesTimesStrategiesInOrder) {
  const LoadedScenario loaded = parse_scenario(
      smoke_with("families: [vtd]",
                 "families: [vtd]\nvary: [{key: 'devices[0].workload.ring_entries', values: [64, 128]}, {key: seed, "
                 "values: [1, 2]}]"),
      "s.yaml", kOptions);
  const auto runs = plan_runs(loaded);
  ASSERT_THAT(runs, SizeIs(2 * 2 * 4));
  EXPECT_EQ(loaded.variations[1].scenario.devices[0].workload.nic.ring_entries, 64U);
  EXPECT_EQ(loaded.variations[1].scenario.seed, 2U);
  const std::vector<std::pair<std::string, std::string>> expected{
      {"strategy", "pv_iommu"}, {"family", "vtd"}, {"ring_entries", "64"}, {"seed", "2"}};
  EXPECT_EQ(runs[5].selection.labels, expected);
}

// Kills: combinations instead of single changes; a value that stays set for the next axis; an effective form that holds
// the first axis' first value instead of what was written.
TEST(Vary, EachChangesOneKeyAndLeavesTheOthersAsWritten) {
  const std::string text = smoke_with("ring_entries: 32", "ring_entries: 64") +
                           "sweep: each\nvary:\n  - {key: \"devices[0].workload.ring_entries\", values: [32, 128]}\n"
                           "  - {key: \"domains[0].memory\", label: ram, values: [32 MiB]}\n";
  const LoadedScenario loaded = parse_scenario(text, "s.yaml", kOptions);
  ASSERT_EQ(loaded.variations.size(), 3U);
  const std::array<std::uint64_t, 3> entries{32, 128, 64};
  for (std::size_t v = 0; v < 3; ++v) {
    const Scenario& s = loaded.variations[v].scenario;
    EXPECT_EQ(s.devices[0].workload.nic.ring_entries, entries[v]);
    EXPECT_EQ(s.domains[0].memory, v == 2 ? 32_MiB : 64_MiB);
  }
  using Labels = std::vector<std::pair<std::string, std::string>>;
  EXPECT_EQ(loaded.variations[1].labels, (Labels{{"ring_entries", "128"}, {"ram", "as written"}}));
  EXPECT_EQ(loaded.variations[2].labels, (Labels{{"ring_entries", "as written"}, {"ram", "32 MiB"}}));
  EXPECT_EQ(loaded.written.devices[0].workload.nic.ring_entries, 64U);
  const std::string written = effective_yaml(loaded);
  EXPECT_EQ(effective_yaml(parse_scenario(written, "again.yaml", kOptions)), written);
}

// Kills: copies that share a BDF, a name or a vCPU; copies that are copied again when the effective form is read.
TEST(Copies, OfADeviceHaveTheirOwnNumbersAndVcpus) {
  const std::string text = text_of("scenarios/smoke.yaml");
  const auto with = [&](const std::string& count) {
    return smoke_with("domain: guest0\n", "domain: guest0\n    count: " + count + "\n");
  };
  EXPECT_THAT(errors_of(with("2")), Contains(HasSubstr("vCPUs, numbered from 0")));
  EXPECT_THAT(errors_of(with("33")), SizeIs(testing::Ge(1U)));
  std::string wide = with("3");
  const std::size_t memory = wide.find("memory: 64 MiB");
  ASSERT_NE(memory, std::string::npos);
  const std::size_t vcpus = wide.find("vcpus: 1");
  if (vcpus != std::string::npos)
    wide.replace(vcpus, 8, "vcpus: 3");
  else
    wide.insert(memory, "vcpus: 3\n    ");
  const LoadedScenario loaded = parse_scenario(wide, "s.yaml", kOptions);
  const Scenario& s = loaded.variations.front().scenario;
  ASSERT_EQ(s.devices.size(), 3U);
  for (unsigned i = 0; i < 3; ++i) {
    EXPECT_EQ(s.devices[i].bdf, RequesterId::bdf(3, i, 0));
    EXPECT_EQ(s.devices[i].vcpu, i);
    EXPECT_EQ(s.devices[i].count, 1U);
  }
  EXPECT_NE(s.devices[0].name, s.devices[1].name);
  const std::string written = effective_yaml(loaded);
  EXPECT_EQ(parse_scenario(written, "again.yaml", kOptions).variations.front().scenario.devices.size(), 3U);
}

// Kills: variants of pv_iommu that contradict each other and are run all the same.
TEST(ScenarioErrors, VariantsOfPvIommuThatCannotBeTogetherAreRefused) {
  const auto with = [](const std::string& keys) {
    return errors_of(smoke_with("strategies: [passthrough, pv_iommu, nested, emulated_viommu]",
                                "strategies: [{kind: pv_iommu, " + keys + "}]"));
  };
  EXPECT_THAT(with("batch: 4"), SizeIs(0));
  EXPECT_THAT(with("batch: 4, scatter: true"), Contains(HasSubstr("'batch' or 'scatter'")));
  EXPECT_THAT(with("page_order: explicit, superpages: true"), Contains(HasSubstr("nothing is left to merge")));
  EXPECT_THAT(with("rfc_version: v3, lock: domain"), Contains(HasSubstr("v3 has no")));
  EXPECT_THAT(with("rfc_version: v3, tag_allocation: attach"), Contains(HasSubstr("v3 has no")));
  EXPECT_THAT(with("error_report: address, page_order: explicit, tag_allocation: attach, buses: [3, 4]"), SizeIs(0));
  EXPECT_THAT(with("error_report: address, batch: 2"), Contains(HasSubstr("a status each")));
  EXPECT_THAT(with("error_report: address, superpages: true"), Contains(HasSubstr("split a merged page")));
  EXPECT_THAT(with("buses: [4, 3]"), Contains(HasSubstr("the first and the last bus")));
  EXPECT_THAT(with("buses: [3, 3, 3]"), Contains(HasSubstr("the first and the last bus")));
  EXPECT_THAT(with("buses: [3, 256]"), SizeIs(testing::Ge(1U)));
  EXPECT_THAT(with("buses: [4, 9], default_context: blocked"), Contains(HasSubstr("'nic0' is on another bus")));
  EXPECT_THAT(with("batch: 0"), SizeIs(testing::Ge(1U)));
  EXPECT_THAT(with("lock: global"), Contains(HasSubstr("context")));
}

TEST(Quantities, AreExactOrRefused) {
  EXPECT_EQ(std::get<std::uint64_t>(parse_quantity("1.5 KiB", size_dimension())), 1536U);
  EXPECT_EQ(std::get<std::uint64_t>(parse_quantity("46ns", time_dimension())), 46'000U);
  EXPECT_EQ(std::get<std::uint64_t>(parse_quantity("1 GB/s", rate_dimension())), 8'000'000'000U);
  for (const char* bad : {"0.3 B", "-1 B", "1e3 B", "", "B", "1.", "99999999 TiB", "1 k", "1 KiB KiB"})
    EXPECT_TRUE(std::holds_alternative<std::string>(parse_quantity(bad, size_dimension()))) << bad;
  for (const std::uint64_t value : {0ULL, 1ULL, 1024ULL, 1536ULL, 1ULL << 40})
    EXPECT_EQ(std::get<std::uint64_t>(parse_quantity(format_quantity(value, size_dimension()), size_dimension())),
              value);
}

}  // namespace
}  // namespace iommu::scenario
