// SPDX-License-Identifier: Apache-2.0
// Events: each one with its fields, in the order of checks, and what becomes of records.
#include <gtest/gtest.h>

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "models/smmuv3/stream_bench.hpp"

namespace iommu::smmuv3 {
namespace {

using test::FailingPort;
using test::kInput;
using test::kNic;
using test::kNowhere;
using test::kOutput;
using test::options;
using test::print;
using test::StreamBench;

using Event = std::array<std::uint64_t, 4>;

std::uint64_t address_of(const Event& event) {
  return get<kEvent, "Page">(event) << kPageLg2 | get<kEvent, "FetchLow">(event);
}

struct Provocation {
  std::string row;
  ContextKind kind = ContextKind::Stage1;
  std::function<void(StreamBench&)> spoil;
  std::function<void(TranslationRequest&)> ask = [](TranslationRequest&) {};
  std::function<void(const Event&, StreamBench&)> check = [](const Event&, StreamBench&) {};
};

TranslationRequest& ats(TranslationRequest& r, AddressType type) {
  r.type = type;
  return r;
}

std::vector<Provocation> provocations() {
  const auto fetch = [](std::uint64_t at) {
    return [at](const Event& e, StreamBench&) { EXPECT_EQ(address_of(e), at); };
  };
  const auto walk = [](std::uint64_t stage2, FaultingAccess access) {
    return [=](const Event& e, StreamBench&) {
      EXPECT_EQ((get<kEvent, "S2">(e)), stage2);
      EXPECT_EQ((get<kEvent, "CLASS">(e)), static_cast<std::uint64_t>(access));
      EXPECT_EQ((get<kEvent, "InputAddr">(e)), kInput);
    };
  };
  const auto none = [](StreamBench&) {};
  return {
      {"abort", ContextKind::Stage1, [](StreamBench& b) { b.ste<"Config">(0); }},
      {"ATS error", ContextKind::Stage1, [](StreamBench& b) { b.ste<"V">(0); },
       [](TranslationRequest& r) { ats(r, AddressType::TranslationRequest); }},
      {"C_BAD_STREAMID", ContextKind::Stage1, none, [](TranslationRequest& r) { r.requester = test::kDisk; }},
      {"F_STE_FETCH",
       ContextKind::Stage1,
       [](StreamBench& b) { b.memory.write64(b.l1std_address(), with<kL1Std, "Span">(kNowhere, 9)); },
       {},
       fetch(kNowhere)},
      {"C_BAD_STE", ContextKind::Stage1, [](StreamBench& b) { b.ste<"V">(0); }},
      {"F_BAD_ATS_TREQ", ContextKind::Stage1, [](StreamBench& b) { b.ste<"EATS">(0); },
       [](TranslationRequest& r) { ats(r, AddressType::TranslationRequest); }},
      {"F_STREAM_DISABLED", ContextKind::Stage1, [](StreamBench& b) { b.ste<"S1CDMax">(1); }},
      {"F_TRANSL_FORBIDDEN", ContextKind::Stage1, [](StreamBench& b) { b.ste<"EATS">(0); },
       [](TranslationRequest& r) { ats(r, AddressType::Translated); },
       [](const Event& e, StreamBench&) {
         EXPECT_EQ((get<kEvent, "InputAddr">(e)), kInput);
         EXPECT_EQ((get<kEvent, "RnW">(e)), 1U);
       }},
      {"C_BAD_SUBSTREAMID", ContextKind::Stage1, none, [](TranslationRequest& r) { r.pasid = Pasid(5); },
       [](const Event& e, StreamBench&) {
         EXPECT_EQ((get<kEvent, "SubstreamID">(e)), 5U);
         EXPECT_EQ((get<kEvent, "SSV">(e)), 0U) << "this event has no SSV";
       }},
      {"F_CD_FETCH",
       ContextKind::Stage1,
       [](StreamBench& b) { b.ste<"S1ContextPtr">(kNowhere >> 6); },
       {},
       fetch(kNowhere)},
      {"C_BAD_CD", ContextKind::Stage1, [](StreamBench& b) { b.cd<"V">(0); }},
      {"F_WALK_EABT",
       ContextKind::Stage1,
       [](StreamBench& b) { b.cd<"TTB0">(kNowhere >> 4); },
       {},
       [=](const Event& e, StreamBench& b) {
         walk(0, FaultingAccess::Table)(e, b);
         fetch(kNowhere)(e, b);
       }},
      {"F_TRANSLATION",
       ContextKind::Stage1,
       [](StreamBench& b) { b.set_entry(*b.stage1, kInput, 0, 0); },
       {},
       walk(0, FaultingAccess::Input)},
      {"F_ADDR_SIZE",
       ContextKind::Stage1,
       [](StreamBench& b) {
         b.cd<"IPS">(0);
         b.set_entry(*b.stage1, kInput, 0, b.entry(*b.stage1, kInput, 0) | 1ULL << 33);
       },
       {},
       walk(0, FaultingAccess::Input)},
      {"F_ACCESS",
       ContextKind::Stage1,
       [](StreamBench& b) {
         b.set_entry(*b.stage1, kInput, 0, with<kStage1Leaf, "AF">(b.entry(*b.stage1, kInput, 0), 0));
       },
       {},
       walk(0, FaultingAccess::Input)},
      {"F_PERMISSION", ContextKind::Stage1,
       [](StreamBench& b) {
         b.set_entry(*b.stage1, kInput, 0, with<kStage1Leaf, "APRead">(b.entry(*b.stage1, kInput, 0), 1));
       },
       [](TranslationRequest& r) { r.access = Access::Write; },
       [](const Event& e, StreamBench&) { EXPECT_EQ((get<kEvent, "RnW">(e)), 0U); }},
      // The same of stage 2, by what it was asked for.
      {"F_TRANSLATION",
       ContextKind::Nested,
       [](StreamBench& b) { b.set_entry(*b.stage2, b.cd_address(), 0, 0); },
       {},
       [=](const Event& e, StreamBench& b) {
         walk(1, FaultingAccess::ContextDescriptor)(e, b);
         EXPECT_EQ((get<kEvent, "Page">(e)), b.cd_address() >> kPageLg2);
       }},
      {"F_TRANSLATION",
       ContextKind::Nested,
       [](StreamBench& b) { b.set_entry(*b.stage2, b.stage1->root().address, 0, 0); },
       {},
       [=](const Event& e, StreamBench& b) {
         walk(1, FaultingAccess::Table)(e, b);
         EXPECT_EQ((get<kEvent, "Page">(e)), b.stage1->root().address >> kPageLg2);
       }},
      {"F_TRANSLATION",
       ContextKind::Nested,
       [](StreamBench& b) { b.set_entry(*b.stage2, kOutput, 0, 0); },
       {},
       [=](const Event& e, StreamBench& b) {
         walk(1, FaultingAccess::Input)(e, b);
         EXPECT_EQ((get<kEvent, "Page">(e)), kOutput >> kPageLg2);
       }},
      {"F_PERMISSION",
       ContextKind::Nested,
       [](StreamBench& b) {
         const std::uint64_t table = b.stage1->root().address;
         b.set_entry(*b.stage2, table, 0, with<kStage2Leaf, "S2APRead">(b.entry(*b.stage2, table, 0), 0));
       },
       {},
       [=](const Event& e, StreamBench& b) {
         walk(1, FaultingAccess::Table)(e, b);
         EXPECT_EQ((get<kEvent, "TTRnW">(e)), 1U);
       }},
      {"F_ADDR_SIZE", ContextKind::Bypass, none, [](TranslationRequest& r) { r.address = Iova(1ULL << 50); },
       [](const Event& e, StreamBench&) { EXPECT_EQ((get<kEvent, "S2">(e)), 0U); }},
  };
}

// Every row is produced, and by nothing else than its cause. Kills: a check left out or out of order, a field in the
// wrong place, a row that nobody produces.
TEST(Smmuv3Events, EveryEventIsRecordedWithItsFields) {
  std::set<std::string> produced;
  for (const Provocation& p : provocations()) {
    StreamBench bench(p.kind);
    ASSERT_FALSE(std::holds_alternative<Fault>(bench.translate(bench.request()))) << p.row;
    p.spoil(bench);
    TranslationRequest request = bench.request();
    if (p.ask) p.ask(request);
    const Fault fault = bench.fault(request);
    ASSERT_NE(fault.row, nullptr);
    EXPECT_EQ(fault.row->name, p.row);
    produced.insert(std::string(fault.row->name));
    EXPECT_EQ(bench.core.record(fault), std::nullopt);
    const Event event = bench.take_event();
    EXPECT_EQ((get<kEvent, "ID">(event)), fault.row->code);
    for (std::size_t word = 0; word < 4; ++word) EXPECT_EQ(event[word] & kEvent.must_be_zero_mask(word), 0U);
    if (fault.row->code == kNoEvent) continue;
    EXPECT_EQ((get<kEvent, "StreamID">(event)), request.requester.value());
    if (p.check) p.check(event, bench);
    EXPECT_EQ((get<kEvent, "ID">(bench.take_event())), 0U) << "one event";
  }
  for (const FaultRow& row : kFaultRows) EXPECT_TRUE(produced.contains(std::string(row.name))) << row.name;
}

// §7.3.22: two causes at once, the first in the list is recorded. Kills: swapped checks.
TEST(Smmuv3Events, TheFirstCauseInTheListWins) {
  struct Pair {
    std::string row;
    std::function<void(StreamBench&)> spoil;
    std::optional<Pasid> pasid{};
  };
  const auto leaf = [](StreamBench& b, auto change) {
    b.set_entry(*b.stage1, kInput, 0, change(b.entry(*b.stage1, kInput, 0)));
  };
  const std::vector<Pair> pairs{
      {"C_BAD_STE", [](StreamBench& b) { b.ste<"V">(0); }, Pasid(5)},
      {"C_BAD_SUBSTREAMID", [](StreamBench& b) { b.cd<"V">(0); }, Pasid(5)},
      {"F_CD_FETCH",
       [](StreamBench& b) {
         b.cd<"V">(0);
         b.ste<"S1ContextPtr">(kNowhere >> 6);
       }},
      {"C_BAD_CD",
       [&](StreamBench& b) {
         leaf(b, [](std::uint64_t) { return std::uint64_t{0}; });
         b.cd<"A">(0);
         b.cd<"V">(0);
       }},
      {"F_ADDR_SIZE",
       [&](StreamBench& b) {
         b.cd<"IPS">(0);
         leaf(b, [](std::uint64_t e) { return with<kStage1Leaf, "AF">(e, 0) | 1ULL << 33; });
       }},
      {"F_ACCESS",
       [&](StreamBench& b) {
         leaf(b, [](std::uint64_t e) { return with<kStage1Leaf, "AF">(with<kStage1Leaf, "APUser">(e, 0), 0); });
       }},
      // A table that withholds a right does so at the leaf, after what is wrong there.
      {"F_TRANSLATION",
       [&](StreamBench& b) {
         b.set_entry(*b.stage1, kInput, 1, with<kTableDescriptor, "APTableUser">(b.entry(*b.stage1, kInput, 1), 1));
         leaf(b, [](std::uint64_t) { return std::uint64_t{0}; });
       }},
      {"F_PERMISSION",
       [&](StreamBench& b) {
         b.set_entry(*b.stage1, kInput, 1, with<kTableDescriptor, "APTableUser">(b.entry(*b.stage1, kInput, 1), 1));
       }},
  };
  for (const Pair& pair : pairs) {
    StreamBench bench(ContextKind::Stage1);
    pair.spoil(bench);
    TranslationRequest request = bench.request();
    request.pasid = pair.pasid;
    EXPECT_EQ(bench.fault(request).row->name, pair.row);
  }
}

// Kills: R of the wrong stage, a suppressed fault that is recorded, and one that is suppressed although it may not be.
TEST(Smmuv3Events, RecordingFollowsTheStagesOwnFlag) {
  StreamBench bench(ContextKind::Nested);
  bench.cd<"R">(0);
  const std::uint64_t table_entry = bench.entry(*bench.stage1, kInput, 0);
  bench.set_entry(*bench.stage1, kInput, 0, 0);
  EXPECT_EQ((get<kEvent, "ID">(bench.event(bench.request()))), 0U);
  bench.ste<"S2R">(0);
  bench.cd<"R">(1);
  EXPECT_EQ((get<kEvent, "ID">(bench.event(bench.request()))), kFault<"F_TRANSLATION">->code);
  bench.set_entry(*bench.stage1, kInput, 0, table_entry);
  bench.set_entry(*bench.stage2, kOutput, 0, 0);
  EXPECT_EQ((get<kEvent, "ID">(bench.event(bench.request()))), 0U);
  bench.cd<"V">(0);
  EXPECT_EQ((get<kEvent, "ID">(bench.event(bench.request()))), kFault<"C_BAD_CD">->code);
}

// CD.A = 0: the requester is told success. Kills: an abort in spite of it, or RAZ/WI of a configuration error.
TEST(Smmuv3Events, TerminationIsWhatTheDescriptorAsks) {
  StreamBench bench(ContextKind::Stage1);
  bench.set_entry(*bench.stage1, kInput, 0, 0);
  EXPECT_EQ(bench.fault(bench.request()).termination, Termination::Abort);
  bench.cd<"A">(0);
  EXPECT_EQ(bench.fault(bench.request()).termination, Termination::ReadsZero);
  bench.cd<"V">(0);
  EXPECT_EQ(bench.fault(bench.request()).termination, Termination::Abort);
}

// Memory fails at access 0, 1, 2 … of a nested translation with two-level descriptors. Kills: a failed read that is
// taken for an entry, an event without the address that failed.
TEST(Smmuv3Events, EachFailingAccessHasItsEvent) {
  StreamBench bench(ContextKind::Nested);
  const auto level1 = bench.memory.allocate();
  const std::uint64_t cd = bench.cd_address();
  bench.memory.write64(*level1, with<kL1Cd, "V">(cd & ~0xfffULL, 1));
  bench.write(cd & ~0xfffULL, bench.read(cd));
  bench.ste<"S1ContextPtr">(*level1 >> 6);
  bench.ste<"S1Fmt">(static_cast<std::uint64_t>(ContextTableFormat::TwoLevel4K));
  bench.ste<"S1CDMax">(6);
  bench.ste<"S1DSS">(static_cast<std::uint64_t>(DefaultSubstream::Substream0));
  ASSERT_EQ(print(bench.translate(bench.request())), std::to_string(kOutput));
  std::set<std::string> rows;
  std::uint64_t n = 0;
  for (;; ++n) {
    FailingPort port(bench.port, n);
    const TranslationResponse response = bench.core.translate(bench.request(), port).run();
    if (!port.failed) {
      EXPECT_TRUE(std::holds_alternative<Translation>(response));
      break;
    }
    ASSERT_TRUE(std::holds_alternative<Fault>(response)) << n;
    const Fault& fault = std::get<Fault>(response);
    EXPECT_EQ(fault.row->kind, FaultClass::MemoryAccess) << n;
    EXPECT_EQ(fault.table_entry, port.failed) << n;
    rows.insert(std::string(fault.row->name));
    bench.core.record(fault);
    EXPECT_EQ(address_of(bench.take_event()), port.failed->value()) << n;
  }
  EXPECT_EQ(rows, (std::set<std::string>{"F_STE_FETCH", "F_CD_FETCH", "F_WALK_EABT"}));
  EXPECT_GT(n, 30U) << "a nested walk with two-level tables reads this often";
}

// Queue ---------------------------------------------------------------------------------------------------------------

std::uint64_t producer(StreamBench& b) { return b.core.mmio_read(offset::kEventqProd, 4); }
void fill(StreamBench& b, unsigned events) {
  const Fault fault = b.fault(b.request());
  for (unsigned i = 0; i < events; ++i) b.core.record(fault);
  b.core.write_events(b.port).run();
}

// Kills: an entry overwritten, an overflow at the last free entry, toggled twice, or not acknowledged.
TEST(Smmuv3EventQueue, OverflowIsShownOnceAndNothingIsOverwritten) {
  StreamBench bench(ContextKind::Stage1);
  bench.set_entry(*bench.stage1, kInput, 0, 0);
  constexpr unsigned kEntries = 4096 / kEventBytes;
  fill(bench, kEntries);
  EXPECT_EQ((get<kQueueProd, "WR">(producer(bench))), kEntries);
  EXPECT_EQ((get<kQueueProd, "OVFLG">(producer(bench))), 0U);
  fill(bench, 1);
  EXPECT_EQ((get<kQueueProd, "OVFLG">(producer(bench))), 1U);
  fill(bench, 1);
  EXPECT_EQ((get<kQueueProd, "OVFLG">(producer(bench))), 1U);
  EXPECT_EQ((get<kQueueProd, "WR">(producer(bench))), kEntries);
  // Software takes all and acknowledges; the flag then toggles back at the next overflow.
  bench.core.mmio_write(offset::kEventqCons, 4, kEntries | mask_of<kQueueCons, "OVACKFLG">);
  fill(bench, kEntries + 1);
  EXPECT_EQ((get<kQueueProd, "OVFLG">(producer(bench))), 0U);
  EXPECT_EQ((get<kQueueProd, "WR">(producer(bench))), 0U) << "twice round";
}

// Kills: an interrupt for every record, or when it is disabled.
TEST(Smmuv3EventQueue, InterruptsWhenItBecomesNonEmpty) {
  StreamBench bench(ContextKind::Stage1);
  bench.set_entry(*bench.stage1, kInput, 0, 0);
  bench.core.mmio_write(offset::kEventqIrqCfg0, 8, 0xfee0'0040);
  bench.core.mmio_write(offset::kEventqIrqCfg1, 4, 0x55);
  fill(bench, 1);
  EXPECT_FALSE(bench.core.take_interrupt());
  (void)bench.take_event();
  bench.core.mmio_write(offset::kIrqCtrl, 4, mask_of<kIrqCtrl, "EVENTQ_IRQEN">);
  EXPECT_EQ(bench.core.mmio_read(offset::kIrqCtrlack, 4), (mask_of<kIrqCtrl, "EVENTQ_IRQEN">));
  fill(bench, 3);
  const auto message = bench.core.take_interrupt();
  ASSERT_TRUE(message);
  EXPECT_EQ(message->address, Hpa(0xfee0'0040));
  EXPECT_EQ(message->data, 0x55U);
  EXPECT_FALSE(bench.core.take_interrupt());
}

// Kills: an index that moves past a record that was not written, and a queue that goes on with the error active.
TEST(Smmuv3EventQueue, AnAbortedWriteStopsTheQueueUntilAcknowledged) {
  StreamBench bench(ContextKind::Stage1);
  bench.set_entry(*bench.stage1, kInput, 0, 0);
  bench.core.mmio_write(offset::kGerrorIrqCfg0, 8, 0x1000);
  bench.core.mmio_write(offset::kIrqCtrl, 4, mask_of<kIrqCtrl, "GERROR_IRQEN">);
  bench.core.record(bench.fault(bench.request()));
  FailingPort port(bench.port, 0);
  bench.core.write_events(port).run();
  EXPECT_EQ(bench.core.mmio_read(offset::kGerror, 4), (mask_of<kGerror, "EVENTQ_ABT_ERR">));
  EXPECT_TRUE(bench.core.take_interrupt());
  EXPECT_EQ(producer(bench), 0U);
  fill(bench, 1);
  EXPECT_EQ(producer(bench), 0U);
  bench.core.mmio_write(offset::kGerrorn, 4, mask_of<kGerror, "EVENTQ_ABT_ERR">);
  fill(bench, 1);
  EXPECT_EQ(producer(bench), 1U);
}

TEST(Smmuv3EventQueue, NothingIsWrittenWhileItIsDisabled) {
  StreamBench bench(ContextKind::Stage1);
  bench.set_entry(*bench.stage1, kInput, 0, 0);
  bench.core.mmio_write(offset::kCr0, 4, mask_of<kCr0, "SMMUEN">);
  fill(bench, 200);
  EXPECT_EQ(producer(bench), 0U);
  EXPECT_FALSE(bench.core.has_events());
}

// Stall ---------------------------------------------------------------------------------------------------------------

struct StallBench : StreamBench {
  StallBench() : StreamBench(ContextKind::Stage1, with_stall()) { set_entry(*stage1, kInput, 0, 0); }
  static DriverOptions with_stall() {
    DriverOptions o = options(ContextKind::Stage1);
    o.features.stall = true;
    return o;
  }
  static CommandWords resume(RequesterId stream, std::uint64_t tag, unsigned retry, unsigned abort) {
    CommandWords command;
    put_field<"OP">(command, kCmdResume);
    put_field<"StreamID">(command, stream.value());
    put_field<"STAG">(command, tag);
    put_field<"Ac">(command, retry);
    put_field<"Ab">(command, abort);
    return command;
  }
  template <FieldName kName>
  static void put_field(CommandWords& command, std::uint64_t value) {
    iommu::put<kResume, kName>(std::span<std::uint64_t>(command.words), value);
  }
};

// Kills: a tag that is not unique, a stall without record, RESUME that ignores stream, action or abort, or resumes
// twice.
TEST(Smmuv3Stall, WaitsUntilSoftwareResumesItByTag) {
  StallBench bench;
  const Fault first = bench.fault(bench.request());
  const Fault second = bench.fault(bench.request(Access::Write));
  ASSERT_TRUE(first.stall && second.stall);
  EXPECT_NE(first.stall, second.stall);
  bench.core.record(first);
  const Event event = bench.take_event();
  EXPECT_EQ((get<kEvent, "Stall">(event)), 1U);
  EXPECT_EQ((get<kEvent, "STAG">(event)), *first.stall);
  EXPECT_EQ(bench.core.stalled(), 2U);

  EXPECT_TRUE(bench.execute({StallBench::resume(test::kDisk, *first.stall, 1, 0)})[0].resolutions.empty());
  const auto retried = bench.execute({StallBench::resume(kNic, *first.stall, 1, 0)})[0].resolutions;
  ASSERT_EQ(retried.size(), 1U);
  EXPECT_EQ(retried[0].action, StallResolution::Action::Retry);
  EXPECT_EQ(retried[0].tag, first.stall);
  EXPECT_TRUE(bench.execute({StallBench::resume(kNic, *first.stall, 1, 0)})[0].resolutions.empty());
  const auto ended = bench.execute({StallBench::resume(kNic, *second.stall, 0, 0)})[0].resolutions;
  ASSERT_EQ(ended.size(), 1U);
  EXPECT_EQ(ended[0].action, StallResolution::Action::Terminate);
  EXPECT_EQ(ended[0].termination, Termination::ReadsZero);
  EXPECT_EQ(bench.core.stalled(), 0U);
}

// Kills: a stall record that is dropped or that overflows a full queue, and one that outlives its transaction.
TEST(Smmuv3Stall, RecordsWaitForRoomAndAreNeverLost) {
  StallBench bench;
  constexpr unsigned kEntries = 4096 / kEventBytes;
  for (unsigned i = 0; i < kEntries + 2; ++i) bench.core.record(bench.fault(bench.request()));
  bench.core.write_events(bench.port).run();
  EXPECT_FALSE(bench.core.has_events()) << "what must wait is not ready";
  EXPECT_EQ((get<kQueueProd, "OVFLG">(producer(bench))), 0U);
  EXPECT_EQ((get<kQueueProd, "WR">(producer(bench))), kEntries);
  bench.core.mmio_write(offset::kEventqCons, 4, 1);
  EXPECT_TRUE(bench.core.has_events());
  bench.core.write_events(bench.port).run();
  EXPECT_EQ((get<kQueueProd, "WR">(producer(bench))), kEntries + 1);
  // The last one is terminated before there is room: its record must not appear.
  CommandWords term;
  StallBench::put_field<"OP">(term, kCmdStallTerm);
  StallBench::put_field<"StreamID">(term, kNic.value());
  const auto resolutions = bench.execute({term})[0].resolutions;
  ASSERT_EQ(resolutions.size(), 1U);
  EXPECT_FALSE(resolutions[0].tag) << "all of the stream";
  bench.core.mmio_write(offset::kEventqCons, 4, kEntries + 1);
  EXPECT_FALSE(bench.core.has_events());
  EXPECT_EQ(bench.core.stalled(), 0U);
}

TEST(Smmuv3Stall, HoldsAsManyAsItSaysAndSwitchingOffEndsThem) {
  StallBench bench;
  const unsigned most = bench.core.capabilities().stalls;
  for (unsigned i = 0; i < most; ++i) ASSERT_TRUE(bench.fault(bench.request()).stall) << i;
  const Fault beyond = bench.fault(bench.request());
  EXPECT_FALSE(beyond.stall);
  EXPECT_FALSE(beyond.suppressed);
  const RegisterEffect effect = bench.core.mmio_write(offset::kCr0, 4, mask_of<kCr0, "EVENTQEN">);
  EXPECT_EQ(effect.resolutions.size(), most);
  EXPECT_EQ(bench.core.stalled(), 0U);
}

// Kills: a configuration error or an ATS request that stalls.
TEST(Smmuv3Stall, OnlyTranslationFaultsOfOrdinaryTransactionsStall) {
  StallBench bench;
  TranslationRequest ats_request = bench.request();
  ats_request.type = AddressType::TranslationRequest;
  const TranslationResponse answer = bench.translate(ats_request);
  ASSERT_TRUE(std::holds_alternative<Translation>(answer)) << "refused by no rights";
  EXPECT_TRUE(std::get<Translation>(answer).allowed.none());
  bench.cd<"V">(0);
  EXPECT_FALSE(bench.fault(bench.request()).stall);
  EXPECT_EQ(bench.core.stalled(), 0U);
}

// Page requests -------------------------------------------------------------------------------------------------------

TEST(Smmuv3PageRequests, AreQueuedAndAnsweredByTheUnitWhereTheyCannotBe) {
  StreamBench bench(ContextKind::Stage1);
  const PageRequest request{
      .requester = kNic, .pasid = Pasid(3), .page = Iova(kInput), .wanted = kReadWrite, .group = 9};
  EXPECT_FALSE(bench.core.record_page_request(request));
  bench.core.write_events(bench.port).run();
  EXPECT_EQ((get<kQueueProd, "WR">(bench.core.mmio_read(offset::kPriqProd, 4))), 1U);
  const std::uint64_t base = bench.core.mmio_read(offset::kPriqBase, 8) & mask_of<kQueueBase, "ADDR">;
  const std::array<std::uint64_t, 2> entry{bench.memory.read64(base), bench.memory.read64(base + 8)};
  EXPECT_EQ((get<kPageRequest, "StreamID">(entry)), kNic.value());
  EXPECT_EQ((get<kPageRequest, "SubstreamID">(entry)), 3U);
  EXPECT_EQ((get<kPageRequest, "W">(entry)), 1U);
  EXPECT_EQ((get<kPageRequest, "PRGIndex">(entry)), 9U);
  EXPECT_EQ((get<kPageRequest, "Page">(entry)), kInput >> kPageLg2);
  // Full: shown as overflow, and answered so that the device asks again.
  constexpr unsigned kEntries = 4096 / kPageRequestBytes;
  for (unsigned i = 1; i < kEntries; ++i) EXPECT_FALSE(bench.core.record_page_request(request));
  const auto answer = bench.core.record_page_request(request);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->code, PageRequestResponse::Code::Success);
  EXPECT_EQ(answer->group, 9U);
  bench.core.write_events(bench.port).run();
  EXPECT_EQ((get<kQueueProd, "OVFLG">(bench.core.mmio_read(offset::kPriqProd, 4))), 1U);
  bench.core.mmio_write(offset::kCr0, 4, 0);
  EXPECT_EQ(bench.core.record_page_request(request)->code, PageRequestResponse::Code::Failure);
}

}  // namespace
}  // namespace iommu::smmuv3
