// SPDX-License-Identifier: Apache-2.0
// The TLM-2.0 boundary between foreign modules, with a protocol checker on both sides. SystemC allows one elaboration
// per process; test discovery gives each test its own.
#include "sim/tlm/iommu_tlm.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <random>
#include <sstream>

#include "sim/tlm/iommu_tlm_test_support.hpp"

// Asked by LeakSanitizer before it looks for leaks; what a test here must give back it counts itself (is_at_rest).
// NOLINTNEXTLINE(bugprone-reserved-identifier,readability-identifier-naming): a name that the sanitizer prescribes
extern "C" int __lsan_is_turned_off() { return iommu::testing_core::has_threads ? 1 : 0; }

namespace iommu::testing_core {
namespace {

#define REQUIRE_FRESH_PROCESS() \
  if (sc_core::sc_get_status() != sc_core::SC_ELABORATION) GTEST_SKIP() << "one elaboration per process"

constexpr std::uint64_t kInput = 0x10000000;
constexpr std::uint64_t kOutput = 0x20000000;
const std::vector<std::string> kNone;

// A grid of 5 ns: things happen at the same time often.
IommuParameters on_grid() {
  IommuParameters p;
  p.timing = {.lookup_latency = 5_ns, .lookup_interval = 5_ns, .walk_start = 5_ns, .context_start = 5_ns};
  return p;
}
Picoseconds cold_miss(const IommuParameters& p) {
  return p.timing.lookup_latency + p.timing.context_start + p.timing.walk_start + flat_memory().dram * (2 + 4);
}
Dma read(std::uint64_t address) {
  Dma job;
  job.address = address;
  return job;
}
Dma write(std::uint64_t address, std::vector<unsigned char> data) {
  Dma job;
  job.address = address;
  job.data = std::move(data);
  job.command = tlm::TLM_WRITE_COMMAND;
  return job;
}
void run_to_rest(Platform& p) {
  EXPECT_EQ(p.engine.run(), RunEnd::Idle);
  EXPECT_EQ(p.violations(), kNone);
  EXPECT_TRUE(p.is_at_rest()) << "payloads held, or transactions open";
}

// Kills: a phase left out or doubled; a delay of the device or of memory that is dropped or counted twice.
TEST(IommuTlm, FourPhasesTakeEffectAtTheirAnnotatedTimes) {
  REQUIRE_FRESH_PROCESS();
  const IommuParameters parameters = on_grid();
  Platform p(parameters);
  p.tables.map(p.root, kInput, kOutput);
  Dma job = read(kInput + 0x123);
  job.gap = 100_ns;
  job.delay = 20_ns;
  job.end = ResponseEnd::LaterAnnotated;
  p.device.jobs = {job};
  run_to_rest(p);
  const Dma& done = p.device.jobs[0];
  EXPECT_EQ(done.status, tlm::TLM_OK_RESPONSE);
  EXPECT_EQ(done.data[0], Memory::pattern(kOutput + 0x123));
  EXPECT_EQ(done.taken, sc(120_ns)) << "room at once";
  const Picoseconds forwarded = 120_ns + cold_miss(parameters);
  const auto& steps = p.downstream.steps();
  ASSERT_EQ(steps.size(), 4U);
  EXPECT_EQ(steps[0].time, sc(forwarded));
  EXPECT_EQ(steps[1].time, sc(forwarded + p.memory.request_time));
  EXPECT_EQ(steps[2].time, sc(forwarded + p.memory.request_time + p.memory.latency));
  EXPECT_EQ(done.answered, steps[2].time);
  EXPECT_EQ(p.upstream.steps().back().time, done.answered + sc(10_ns + 15_ns)) << "END_RESP, annotated";
}

// Kills: an early answer of memory taken for a late one, its delay lost, END_RESP towards memory missing or too much.
TEST(IommuTlm, EveryPermittedAnswerOfMemoryIsUnderstood) {
  REQUIRE_FRESH_PROCESS();
  Platform p(on_grid());
  p.tables.map(p.root, kInput, kOutput);
  p.memory.replies = {MemoryReply::FourPhases, MemoryReply::NoEndRequest, MemoryReply::UpdatedEndRequest,
                      MemoryReply::UpdatedResponse, MemoryReply::Completed};
  const std::vector<Picoseconds> service{50_ns, 40_ns, 50_ns, 40_ns, 40_ns};
  for (std::size_t i = 0; i < service.size(); ++i) {
    p.device.jobs.push_back(read(kInput + 8 * i));
    p.device.jobs.back().gap = 10_us;
  }
  run_to_rest(p);
  std::vector<sc_core::sc_time> forwarded;
  for (const auto& step : p.downstream.steps())
    if (step.phase == tlm::BEGIN_REQ) forwarded.push_back(step.time);
  ASSERT_EQ(forwarded.size(), service.size());
  for (std::size_t i = 0; i < service.size(); ++i) {
    EXPECT_EQ(p.device.jobs[i].answered, forwarded[i] + sc(service[i])) << "reply " << i;
    EXPECT_EQ(p.device.jobs[i].data[1], Memory::pattern(kOutput + 8 * i + 1)) << "reply " << i;
  }
}

// Kills: a next response that does not wait for END_RESP, however the device gives it.
TEST(IommuTlm, EveryPermittedEndOfAResponseFreesTheResponsePhaseAtItsTime) {
  REQUIRE_FRESH_PROCESS();
  Platform p(on_grid());
  p.tables.map(p.root, kInput, kOutput);
  for (const ResponseEnd end :
       {ResponseEnd::Later, ResponseEnd::LaterAnnotated, ResponseEnd::Updated, ResponseEnd::Completed}) {
    p.device.jobs.push_back(read(kInput));
    p.device.jobs.back().end = end;
  }
  p.memory.request_time = 5_ns;  // responses come every 5 ns, and are held by the device
  run_to_rest(p);
  const std::vector<Picoseconds> held{10_ns, 25_ns, 5_ns};
  for (std::size_t i = 0; i < held.size(); ++i)
    EXPECT_EQ(p.device.jobs[i + 1].answered, p.device.jobs[i].answered + sc(held[i])) << "response " << i;
}

// Kills: a fault answered with success, forwarded to memory, or not recorded; a refusal without its four phases.
TEST(IommuTlm, TranslationFaultIsAnAddressErrorAndIsRecorded) {
  REQUIRE_FRESH_PROCESS();
  Platform p(on_grid());
  p.tables.map(p.root, kInput, kOutput, kReadOnly);
  p.device.jobs = {read(kInput + 0x1000), write(kInput, {1, 2, 3, 4}), read(kInput)};
  run_to_rest(p);
  EXPECT_EQ(p.device.jobs[0].status, tlm::TLM_ADDRESS_ERROR_RESPONSE);
  EXPECT_EQ(p.device.jobs[1].status, tlm::TLM_ADDRESS_ERROR_RESPONSE);
  EXPECT_EQ(p.device.jobs[2].status, tlm::TLM_OK_RESPONSE);
  ASSERT_EQ(p.core.recorded.size(), 2U);
  EXPECT_EQ(p.memory.served(), 1U);
}

// Kills: reads that keep the device's old bytes, or zero those that byte enables exclude; writes that arrive.
TEST(IommuTlm, FaultThatReadsZeroGivesZeroToEnabledBytes) {
  REQUIRE_FRESH_PROCESS();
  Platform p(on_grid());
  p.core.termination = Termination::ReadsZero;
  Dma job = read(kInput);
  job.data = {7, 7, 7, 7};
  job.enables = {TLM_BYTE_ENABLED, TLM_BYTE_DISABLED};
  p.device.jobs = {job, write(kInput, {1})};
  run_to_rest(p);
  EXPECT_EQ(p.device.jobs[0].status, tlm::TLM_OK_RESPONSE);
  EXPECT_EQ(p.device.jobs[0].data, (std::vector<unsigned char>{0, 7, 0, 7}));
  EXPECT_EQ(p.device.jobs[1].status, tlm::TLM_OK_RESPONSE);
  EXPECT_EQ(p.memory.served(), 0U);
}

// Jobs outside the interface's rules, and how each is answered.
std::vector<std::pair<Dma, tlm::tlm_response_status>> malformed() {
  std::vector<std::pair<Dma, tlm::tlm_response_status>> cases(9, {read(kInput), tlm::TLM_GENERIC_ERROR_RESPONSE});
  cases[0].first.has_extension = false;
  cases[1].first.type = AddressType::TranslationRequest;
  cases[2].first.pasid = Pasid(1U << 20);
  cases[3].first.type = static_cast<AddressType>(9);
  cases[4] = {read(kInput), tlm::TLM_COMMAND_ERROR_RESPONSE};
  cases[4].first.command = tlm::TLM_IGNORE_COMMAND;
  cases[5] = {read(kInput + 0xffd), tlm::TLM_BURST_ERROR_RESPONSE};  // four bytes across a page boundary
  cases[6] = {read(kInput), tlm::TLM_BURST_ERROR_RESPONSE};
  cases[6].first.streaming_width = 2;
  cases[7] = {read(~0ULL - 1), tlm::TLM_BURST_ERROR_RESPONSE};  // the end of the address space
  cases[8] = {read(kInput + 0xffc), tlm::TLM_OK_RESPONSE};      // up to the boundary
  return cases;
}

// Kills: any check left out, one that aborts, a malformed request that reaches the unit or memory.
TEST(IommuTlm, MalformedRequestsAreAnsweredWithTheirErrorAndNothingElse) {
  REQUIRE_FRESH_PROCESS();
  Platform p(on_grid());
  p.tables.map(p.root, kInput, kOutput);
  for (const auto& [job, status] : malformed()) p.device.jobs.push_back(job);
  run_to_rest(p);
  for (std::size_t i = 0; i < p.device.jobs.size(); ++i)
    EXPECT_EQ(p.device.jobs[i].status, malformed()[i].second) << "case " << i;
  EXPECT_EQ(p.unit->statistics().requests, 1U);
  EXPECT_EQ(p.memory.served(), 1U);
  for (auto [job, status] : malformed()) {
    tlm::tlm_generic_payload& payload = p.device.make(job);
    sc_core::sc_time delay;
    p.device.initiator->b_transport(payload, delay);
    EXPECT_EQ(payload.get_response_status(), status);
    p.device.drop(payload);
  }
  Dma enabled = read(kInput);
  enabled.enables = {TLM_BYTE_ENABLED};
  tlm::tlm_generic_payload& payload = p.device.make(enabled);
  payload.set_byte_enable_length(0);
  sc_core::sc_time delay;
  p.device.initiator->b_transport(payload, delay);
  EXPECT_EQ(payload.get_response_status(), tlm::TLM_BYTE_ENABLE_ERROR_RESPONSE);
  p.device.drop(payload);
}

// Kills: END_REQ before the unit has room, later than that, or never.
TEST(IommuTlm, EndOfRequestWaitsForRoomInTheUnit) {
  REQUIRE_FRESH_PROCESS();
  IommuParameters parameters = on_grid();
  parameters.request_queue = 1;
  parameters.timing.lookup_interval = 50_ns;
  Platform p(parameters);
  p.tables.map(p.root, kInput, kOutput);
  p.device.jobs = {read(kInput), read(kInput + 8), read(kInput + 16)};
  run_to_rest(p);
  EXPECT_EQ(p.device.jobs[0].taken, sc(0_ps));
  EXPECT_EQ(p.device.jobs[1].taken, sc(5_ns)) << "the first has been looked up";
  EXPECT_EQ(p.device.jobs[2].taken, sc(55_ns)) << "the second has";
}

// Kills: more transactions between END_REQ and END_RESP than were asked for; a place that is not given on.
TEST(IommuTlm, EndOfRequestWaitsForAPlaceAmongTheOutstanding) {
  REQUIRE_FRESH_PROCESS();
  Platform p(on_grid(), 1);
  p.tables.map(p.root, kInput, kOutput);
  p.device.jobs = {read(kInput), read(kInput + 8)};
  for (Dma& job : p.device.jobs) job.end = ResponseEnd::Later;
  run_to_rest(p);
  EXPECT_EQ(p.device.jobs[1].taken, p.device.jobs[0].answered + sc(10_ns));
}

// Kills: a fence that does not know of DMA handed to foreign memory.
TEST(IommuTlm, FenceWaitsForDmaInForeignMemory) {
  REQUIRE_FRESH_PROCESS();
  Platform p(on_grid());
  p.tables.map(p.root, kInput, kOutput);
  p.memory.latency = 10_us;
  p.device.jobs = {write(kInput, {1, 2, 3, 4})};
  EXPECT_EQ(p.engine.run_until(2_us), RunEnd::LimitReached);
  ASSERT_EQ(p.downstream.open(), 1U) << "memory is at work on it";
  const std::uint64_t domain = Machine::kDomain.value();
  p.host.write64(p.core.ring, kFlushPage | domain << 32);
  p.host.write64(p.core.ring + 8_B, kInput);
  p.host.write64(p.core.ring + 16_B, kFence | 77ULL << 32);
  p.host.write64(p.core.ring + 24_B, Machine::status().value());
  (void)p.engine.enter();
  p.unit->registers().poke_register(kTail, 8, 2);
  EXPECT_EQ(p.engine.run_while([&] { return p.host.read32(Machine::status()) == 0; }), RunEnd::Stopped);
  EXPECT_GE(sc_core::sc_time_stamp(), p.device.jobs[0].answered);
  EXPECT_NE(p.device.jobs[0].answered, sc_core::SC_ZERO_TIME);
  run_to_rest(p);
}

// Kills: a blocking transport that does not translate, checks no permission, loses time, or leaves its fault
// unrecorded.
TEST(IommuTlm, BlockingTransportTranslatesAtOnce) {
  REQUIRE_FRESH_PROCESS();
  Platform p(on_grid());
  p.tables.map(p.root, kInput, kOutput, kReadOnly);
  sc_core::sc_start(sc_core::SC_ZERO_TIME);
  sc_core::sc_time delay = sc(7_ns);
  Dma good = read(kInput + 4);
  tlm::tlm_generic_payload& first = p.device.make(good);
  p.device.initiator->b_transport(first, delay);
  EXPECT_EQ(first.get_response_status(), tlm::TLM_OK_RESPONSE);
  EXPECT_EQ(good.data[3], Memory::pattern(kOutput + 7));
  EXPECT_EQ(delay, sc(7_ns + 40_ns)) << "memory's time, added to the caller's";
  p.device.drop(first);
  Dma bad = write(kInput, {1});
  tlm::tlm_generic_payload& second = p.device.make(bad);
  p.device.initiator->b_transport(second, delay);
  EXPECT_EQ(second.get_response_status(), tlm::TLM_ADDRESS_ERROR_RESPONSE);
  p.device.drop(second);
  EXPECT_EQ(p.core.recorded.size(), 1U);
  EXPECT_EQ(p.upstream.blocking_calls(), 2U);
  EXPECT_EQ(p.downstream.blocking_calls(), 1U);
  EXPECT_EQ(p.unit->statistics().requests, 0U) << "no cache took part";
  run_to_rest(p);
}

// Kills: a debug access that records faults or marks entries, stops at a page boundary, or goes past an unmapped page.
TEST(IommuTlm, DebugTransportCrossesPagesAndLeavesNoTrace) {
  REQUIRE_FRESH_PROCESS();
  Platform p(on_grid());
  p.core.marks = true;
  p.tables.map(p.root, kInput, kOutput);
  p.tables.map(p.root, kInput + 0x1000, kOutput + 0x5000);
  const Hpa leaf = p.tables.leaf_slot();
  const std::uint64_t entry = p.host.read64(leaf);
  sc_core::sc_start(sc_core::SC_ZERO_TIME);
  Dma job = read(kInput + 0xff0);
  job.data.assign(0x1100, 0xee);
  tlm::tlm_generic_payload& payload = p.device.make(job);
  EXPECT_EQ(p.device.initiator->transport_dbg(payload), 0x1010U) << "up to the first page that is not mapped";
  EXPECT_EQ(job.data[0xf], Memory::pattern(kOutput + 0xfff));
  EXPECT_EQ(job.data[0x10], Memory::pattern(kOutput + 0x5000));
  EXPECT_EQ(job.data[0x1010], 0xee);
  EXPECT_TRUE(p.core.recorded.empty());
  EXPECT_EQ(p.host.read64(leaf), entry);
  job.data.resize(4);
  payload.set_address(kInput + 0x1000);
  payload.set_data_ptr(job.data.data());
  payload.set_data_length(4);
  payload.set_streaming_width(4);
  sc_core::sc_time delay;
  p.device.initiator->b_transport(payload, delay);
  EXPECT_NE(p.host.read64(leaf), entry) << "a real access marks: so the debug access could have";
  tlm::tlm_dmi dmi;
  EXPECT_FALSE(p.device.initiator->get_direct_mem_ptr(payload, dmi));
  EXPECT_EQ(dmi.get_end_address(), ~0ULL) << "denied everywhere";
  p.device.drop(payload);
  run_to_rest(p);
}

// A partner's breach is an error report, and the IOMMU goes on.
template <class Call>
std::string report_of(Call&& call) {
  try {
    call();
  } catch (const sc_core::sc_report& r) {
    return r.get_msg_type();
  }
  return "no report";
}

// Kills: a breach of the protocol that is accepted, or that brings the IOMMU down.
TEST(IommuTlm, PartnersThatBreakTheProtocolAreReported) {
  REQUIRE_FRESH_PROCESS();
  Platform p(on_grid());
  p.tables.map(p.root, kInput, kOutput);
  sc_core::sc_start(sc_core::SC_ZERO_TIME);
  Dma job = read(kInput);
  tlm::tlm_generic_payload& payload = p.device.make(job);
  const auto forward = [&](tlm::tlm_generic_payload& what, tlm::tlm_phase phase) {
    sc_core::sc_time delay;
    return report_of([&] { (void)p.device.initiator->nb_transport_fw(what, phase, delay); });
  };
  const auto backward = [&](tlm::tlm_generic_payload& what, tlm::tlm_phase phase) {
    sc_core::sc_time delay;
    return report_of([&] { (void)p.memory.target->nb_transport_bw(what, phase, delay); });
  };
  tlm::tlm_generic_payload unmanaged;
  job.fill(unmanaged);
  EXPECT_EQ(forward(unmanaged, tlm::BEGIN_REQ), "iommu_tlm");
  EXPECT_EQ(forward(payload, tlm::END_RESP), "iommu_tlm");
  EXPECT_EQ(forward(payload, tlm::END_REQ), "iommu_tlm");
  EXPECT_EQ(forward(payload, tlm::BEGIN_REQ), "no report");
  EXPECT_EQ(forward(payload, tlm::BEGIN_REQ), "iommu_tlm") << "before END_REQ";
  EXPECT_EQ(backward(payload, tlm::BEGIN_RESP), "iommu_tlm") << "not a payload of ours";
  EXPECT_EQ(backward(payload, tlm::BEGIN_REQ), "iommu_tlm");
  EXPECT_EQ(p.engine.run(), RunEnd::Idle);
  EXPECT_EQ(job.status, tlm::TLM_OK_RESPONSE);
  EXPECT_EQ(p.iommu->in_flight() + p.iommu->payloads_in_use(), 0U);
  EXPECT_EQ(p.device.live_payloads(), 0);
}

// Kills: a request phase that outlives its transaction.
TEST(IommuTlm, MemoryWhoseResponseOvertakesItsEndOfRequestWaitsForIt) {
  REQUIRE_FRESH_PROCESS();
  Platform p(on_grid());
  p.tables.map(p.root, kInput, kOutput);
  p.memory.replies = {MemoryReply::ResponseBeforeEndRequest};
  p.memory.request_time = 100_ns;
  p.device.jobs = {read(kInput), read(kInput + 8)};
  EXPECT_EQ(p.engine.run(), RunEnd::Idle);
  EXPECT_TRUE(p.is_at_rest());
  ASSERT_FALSE(p.violations().empty());
  EXPECT_NE(p.violations().front().find("annotated time goes backwards"), std::string::npos);
  for (const Dma& job : p.device.jobs) EXPECT_EQ(job.status, tlm::TLM_OK_RESPONSE);
  EXPECT_EQ(p.device.jobs[0].answered, sc(cold_miss(on_grid()) + 100_ns));
}

// Many transactions -------------------------------------------------------------------------------------------------

constexpr std::uint64_t kPages = 34;
constexpr std::size_t kJobs = 600;

// Pages: 0 … 11 to read, 12 … 23 to write, 24 … 27 read-only, 28 … 31 not mapped, 32, 33 beyond memory.
void map_pages(Platform& p) {
  p.memory.size = kOutput + 64 * kPageSize.value();
  for (std::uint64_t page = 0; page < kPages; ++page) {
    if (page >= 28 && page < 32) continue;
    const std::uint64_t frame = page >= 32 ? 100 + page : (page * 7) % 64;
    p.tables.map(p.root, kInput + page * kPageSize.value(), kOutput + frame * kPageSize.value(),
                 page >= 24 && page < 28 ? kReadOnly : kReadWrite);
  }
}
std::uint64_t output_of(std::uint64_t input) {
  return kOutput + ((input - kInput) / kPageSize.value() * 7) % 64 * kPageSize.value() + input % kPageSize.value();
}
tlm::tlm_response_status expected_status(const Dma& job) {
  const std::uint64_t page = (job.address - kInput) / kPageSize.value();
  const bool fails = page >= 28 || (page >= 24 && job.command == tlm::TLM_WRITE_COMMAND);
  return fails ? tlm::TLM_ADDRESS_ERROR_RESPONSE : tlm::TLM_OK_RESPONSE;
}

// Reads go anywhere, writes to a place of their own each.
std::vector<Dma> random_jobs(Rng rng) {
  std::vector<Dma> jobs;
  for (std::size_t n = 0; n < kJobs; ++n) {
    const bool is_write = rng.below(2) == 0;
    const bool is_wild = rng.below(4) == 0;
    const std::uint64_t page = is_wild ? 24 + rng.below(kPages - 24) : (is_write ? 12 : 0) + rng.below(12);
    Dma job = read(kInput + page * kPageSize.value() + (n % 256) * 16);
    job.data.resize(1 + rng.below(16));
    if (is_write) {
      job.address = kInput + (is_wild ? page : 12 + n % 12) * kPageSize.value() + n / 12 * 16;
      job.command = tlm::TLM_WRITE_COMMAND;
      for (auto& byte : job.data) byte = static_cast<unsigned char>(rng.next());
    }
    if (rng.below(3) == 0) job.enables = {TLM_BYTE_ENABLED, TLM_BYTE_DISABLED, TLM_BYTE_ENABLED};
    job.gap = 5_ns * static_cast<std::int64_t>(rng.below(8));
    job.delay = 5_ns * static_cast<std::int64_t>(rng.below(3));
    job.end = static_cast<ResponseEnd>(rng.below(4));
    jobs.push_back(std::move(job));
  }
  return jobs;
}
void prepare(Platform& p, std::uint64_t seed) {
  map_pages(p);
  Rng rng(seed, "memory");
  p.memory.replies.clear();
  for (int i = 0; i < 97; ++i) p.memory.replies.push_back(static_cast<MemoryReply>(rng.below(5)));
  p.memory.request_time = 5_ns;
  p.memory.latency = 5_ns;
  p.memory.latency_steps = 30;
  p.device.jobs = random_jobs(Rng(seed, "device"));
}
IommuParameters small_unit() {
  IommuParameters p = on_grid();
  p.iotlb = {.entries = 8, .ways = 2};
  p.request_queue = 4;
  p.miss_entries = 3;
  p.walkers = 2;
  return p;
}

void check_data(Platform& p, const Dma& job) {
  for (std::size_t i = 0; i < job.data.size(); ++i) {
    if (!job.enables.empty() && job.enables[i % job.enables.size()] != TLM_BYTE_ENABLED) continue;
    const std::uint64_t at = output_of(job.address + i);
    const unsigned char stored = job.command == tlm::TLM_WRITE_COMMAND ? p.memory.byte(at) : Memory::pattern(at);
    ASSERT_EQ(job.data[i], stored) << "address " << job.address << " byte " << i;
  }
}

// Kills: any breach of the protocol under load, data to the wrong place, a payload or a place lost.
TEST(IommuTlm, RandomTrafficKeepsTheProtocolOnBothSides) {
  REQUIRE_FRESH_PROCESS();
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  Platform p(small_unit(), 7, seed);
  prepare(p, seed);
  run_to_rest(p);
  std::uint64_t forwarded = 0;
  for (const Dma& job : p.device.jobs) {
    ASSERT_EQ(job.status, expected_status(job)) << "address " << job.address;
    if (job.status == tlm::TLM_OK_RESPONSE) check_data(p, job);
    forwarded += (job.address - kInput) / kPageSize.value() >= 32 || job.status == tlm::TLM_OK_RESPONSE ? 1 : 0;
  }
  EXPECT_EQ(p.memory.served(), forwarded);
  EXPECT_GT(p.unit->statistics().merges, 0U) << "the traffic is not as dense as meant";
  EXPECT_GT(p.unit->statistics().hits, 0U);
}

// Everything that happened, in words; runs in a process of its own.
std::string history(std::uint64_t seed, unsigned request_deltas, unsigned response_deltas, unsigned memory_deltas) {
  std::array<int, 2> pipe{};
  if (::pipe(pipe.data()) != 0) return "no pipe";
  const pid_t child = ::fork();
  if (child == 0) {
    std::ostringstream out;
    Platform p(small_unit(), 7, seed);
    prepare(p, seed);
    p.device.request_deltas = request_deltas;
    p.device.response_deltas = response_deltas;
    p.memory.deltas = memory_deltas;
    out << (p.engine.run() == RunEnd::Idle && p.is_at_rest() && p.violations().empty() ? "" : "not clean\n");
    for (const Dma& job : p.device.jobs)
      out << job.status << ' ' << job.requested << ' ' << job.taken << ' ' << job.answered << '\n';
    for (const auto& step : p.downstream.steps()) out << step.phase << ' ' << step.time << '\n';
    for (const auto& step : p.upstream.steps())  // what the IOMMU says to the device, in order
      if (step.phase == tlm::END_REQ || step.phase == tlm::BEGIN_RESP) out << step.phase << ' ' << step.time << '\n';
    const std::string text = out.str();
    for (std::size_t done = 0; done < text.size();) {
      const ssize_t n = ::write(pipe[1], text.data() + done, text.size() - done);
      if (n <= 0) break;
      done += static_cast<std::size_t>(n);
    }
    ::_exit(0);
  }
  ::close(pipe[1]);
  std::string text;
  std::array<char, 4096> buffer{};
  for (ssize_t n = 0; (n = ::read(pipe[0], buffer.data(), buffer.size())) > 0;)
    text.append(buffer.data(), static_cast<std::size_t>(n));
  ::close(pipe[0]);
  ::waitpid(child, nullptr, 0);
  return text;
}

// Kills: anything decided by the order in which the kernel runs processes of one time.
TEST(IommuTlm, HistoryDoesNotDependOnTheOrderOfProcesses) {
  REQUIRE_FRESH_PROCESS();
  constexpr std::uint64_t kSeed = 11;
  const std::string expected = history(kSeed, 0, 0, 0);
  EXPECT_GT(expected.size(), kJobs * 20);
  EXPECT_EQ(expected.find("not clean"), std::string::npos);
  EXPECT_EQ(history(kSeed, 2, 1, 0), expected);
  EXPECT_EQ(history(kSeed, 1, 0, 3), expected);
  EXPECT_EQ(history(kSeed, 0, 3, 1), expected);
  EXPECT_NE(history(kSeed + 1, 0, 0, 0), expected) << "other traffic, other history";
}

}  // namespace
}  // namespace iommu::testing_core
