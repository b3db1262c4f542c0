// SPDX-License-Identifier: Apache-2.0
// Commands and registers.
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "models/smmuv3/stream_bench.hpp"

namespace iommu::smmuv3 {
namespace {

using test::FailingPort;
using test::kNic;
using test::options;
using test::StreamBench;
using test::Unit;

constexpr std::uint64_t kStream = kNic.value();

template <const auto& kLayout>
CommandWords command(Opcode opcode, std::initializer_list<FieldValue> values) {
  auto words = pack_record<kLayout>(values);
  iommu::put<kLayout, "OP">(std::span<std::uint64_t>(words), opcode);
  return {{words[0], words[1], 0, 0}};
}

DriverOptions everything() {
  DriverOptions o = options(ContextKind::Nested);
  o.features.stall = true;
  return o;
}

struct Case {
  CommandWords words;
  std::vector<InvalidationScope> scopes{};
};

std::vector<Case> cases() {
  const InvalidationScope stream{.kind = InvalidationKind::Context, .requester = kNic};
  InvalidationScope descriptors = stream;
  descriptors.kind = InvalidationKind::ProcessContext;
  InvalidationScope eight = stream;
  eight.requester_ignore = 7;
  const AddressRange page{0x5000, 0x5fff};
  constexpr std::uint64_t kPage = 5;
  return {
      {command<kPrefetch>(kCmdPrefetchConfig, {{"StreamID", kStream}})},
      {command<kPrefetch>(kCmdPrefetchAddr, {{"StreamID", kStream}, {"Address", kPage}})},
      {command<kCfgi>(kCmdCfgiSte, {{"StreamID", kStream}}), {stream}},
      {command<kCfgi>(kCmdCfgiSteRange, {{"StreamID", kStream}, {"Range", 2}}), {eight}},
      {command<kCfgi>(kCmdCfgiSteRange, {{"StreamID", kStream}, {"Range", 31}}), {{.kind = InvalidationKind::Context}}},
      {command<kCfgi>(kCmdCfgiCd, {{"StreamID", kStream}, {"SubstreamID", 3}}), {descriptors}},
      {command<kCfgi>(kCmdCfgiCdAll, {{"StreamID", kStream}}), {descriptors}},
      {command<kTlbi>(kCmdTlbiNhAll, {{"VMID", 7}}), {{.domain = DomainTag(7), .stage1_only = true}}},
      {command<kTlbi>(kCmdTlbiNhAsid, {{"VMID", 7}, {"ASID", 3}}), {{.domain = DomainTag(7), .asid = AsidTag(3)}}},
      {command<kTlbi>(kCmdTlbiNhVa, {{"VMID", 7}, {"ASID", 3}, {"Address", kPage}, {"Leaf", 1}}),
       {{.domain = DomainTag(7),
         .asid = AsidTag(3),
         .range = page,
         .leaf_only = true,
         .global_pages = true,
         .ignored_top_bits = 8}}},
      {command<kTlbi>(kCmdTlbiNhVaa, {{"VMID", 7}, {"Address", kPage}}),
       {{.domain = DomainTag(7), .range = page, .stage1_only = true, .ignored_top_bits = 8}}},
      {command<kTlbi>(kCmdTlbiS12Vmall, {{"VMID", 7}}), {{.domain = DomainTag(7)}}},
      {command<kTlbi>(kCmdTlbiS2Ipa, {{"VMID", 7}, {"Address", kPage}}), {{.domain = DomainTag(7), .range = page}}},
      // (2 + 1) * 2^1 granules of 16 KiB
      {command<kTlbi>(kCmdTlbiS2Ipa, {{"VMID", 7}, {"Address", 8}, {"NUM", 2}, {"SCALE", 1}, {"TG", 2}}),
       {{.domain = DomainTag(7), .range = AddressRange{0x8000, 0x8000 + 6 * 0x4000 - 1}}}},
      {command<kTlbi>(kCmdTlbiNsnhAll, {}), {{}}},
      {command<kAtcInv>(kCmdAtcInv, {{"StreamID", kStream}, {"Address", kPage}, {"Size", 1}}),
       {{.kind = InvalidationKind::DeviceTlb, .requester = kNic, .range = AddressRange{0x4000, 0x5fff}}}},
      {command<kAtcInv>(kCmdAtcInv,
                        {{"StreamID", kStream}, {"SSV", 1}, {"SubstreamID", 4}, {"Global", 1}, {"Size", kAtcInvAll}}),
       {{.kind = InvalidationKind::DeviceTlb, .asid = AsidTag(4), .requester = kNic, .global_pages = true}}},
      {command<kPriResp>(kCmdPriResp, {{"StreamID", kStream}, {"PRGIndex", 5}, {"Resp", 2}})},
      {command<kResume>(kCmdResume, {{"StreamID", kStream}, {"STAG", 1}})},
      {command<kResume>(kCmdStallTerm, {{"StreamID", kStream}})},
      {command<kSync>(kCmdSync, {})},
  };
}

// Kills: an opcode that is not decoded, a field read from another command's place, a row that nothing uses.
TEST(Smmuv3Commands, EveryCommandInvalidatesWhatItSays) {
  Unit unit(everything());
  unit.bring_up();
  std::set<unsigned> used;
  for (const Case& c : cases()) {
    const auto effects = unit.execute({c.words});
    ASSERT_EQ(effects.size(), 1U) << std::hex << c.words.words[0];
    EXPECT_EQ(effects[0].scopes, c.scopes) << std::hex << c.words.words[0];
    EXPECT_FALSE(effects[0].error);
    used.insert(static_cast<unsigned>(get<kCommand, "OP">(std::span<const std::uint64_t>(c.words.words))));
  }
  for (const CommandRow& row : kCommandRows) EXPECT_TRUE(used.contains(row.opcode)) << row.name;
}

TEST(Smmuv3Commands, PageResponsesNameGroupAndOutcome) {
  Unit unit(everything());
  unit.bring_up();
  const std::array codes{PageRequestResponse::Code::Failure, PageRequestResponse::Code::Invalid,
                         PageRequestResponse::Code::Success};
  for (std::uint64_t resp = 0; resp < codes.size(); ++resp) {
    const auto effects = unit.execute({command<kPriResp>(
        kCmdPriResp, {{"StreamID", kStream}, {"SSV", 1}, {"SubstreamID", 6}, {"PRGIndex", 0x1ff}, {"Resp", resp}})});
    ASSERT_TRUE(effects.at(0).page_response);
    EXPECT_EQ(effects[0].page_response->code, codes[resp]);
    EXPECT_EQ(effects[0].page_response->group, 0x1ff);
    EXPECT_EQ(effects[0].page_response->pasid, Pasid(6));
  }
}

// Kills: a signal that is not asked for, an MSI to address zero.
TEST(Smmuv3Commands, SyncSignalsOnlyWhatItIsAskedFor) {
  Unit unit(everything());
  unit.bring_up();
  const auto fence = [&](std::initializer_list<FieldValue> values) {
    return *unit.execute({command<kSync>(kCmdSync, values)}).at(0).fence;
  };
  EXPECT_TRUE(fence({{"CS", 0}, {"MSIAddress", 4}}).is_barrier);
  EXPECT_TRUE(fence({{"CS", 2}, {"MSIAddress", 4}}).is_barrier) << "an event reaches no memory";
  EXPECT_TRUE(fence({{"CS", 1}}).is_barrier) << "address zero sends nothing";
  const FenceCompletion message = fence({{"CS", 1}, {"MSIAddress", 0x1004 >> 2}, {"MSIData", 0xabcd}});
  ASSERT_TRUE(message.status);
  EXPECT_EQ(message.status->address, Hpa(0x1004));
  EXPECT_EQ(message.status->data, 0xabcdU);
}

// §4.7.3: software that wants no message polls the index. Kills: an index that moves past a CMD_SYNC which has only
// been fetched, one that is fetched twice meanwhile, one that never moves.
TEST(Smmuv3Commands, TheIndexPassesASyncOnceItHasCompleted) {
  for (std::uint64_t signal = 0; signal <= 2; ++signal) {
    Unit unit(everything());
    unit.bring_up();
    const auto consumed = [&] { return get<kCmdqCons, "RD">(unit.core.mmio_read(offset::kCmdqCons, 4)); };
    unit.put(command<kTlbi>(kCmdTlbiNsnhAll, {}));
    unit.put(command<kSync>(kCmdSync, {{"CS", signal}, {"MSIAddress", 4}}));
    unit.core.mmio_write(offset::kCmdqProd, 4, unit.tail);
    EXPECT_TRUE(unit.core.fetch_command(unit.port).run());
    EXPECT_EQ(consumed(), 1U);
    const auto sync = unit.core.fetch_command(unit.port).run();
    ASSERT_TRUE(sync);
    EXPECT_TRUE(unit.core.apply(*sync).fence);
    EXPECT_EQ(consumed(), 1U) << "fetched, not completed";
    EXPECT_FALSE(unit.core.has_command());
    EXPECT_FALSE(unit.core.fetch_command(unit.port).run()) << "there is no other";
    EXPECT_EQ(consumed(), 2U) << "asking for the next one ends it";
    unit.put(command<kSync>(kCmdSync, {{"CS", signal}}));
    unit.core.mmio_write(offset::kCmdqProd, 4, unit.tail);
    EXPECT_TRUE(unit.core.fetch_command(unit.port).run());
    EXPECT_EQ(consumed(), 2U);
    unit.core.completed();
    EXPECT_EQ(consumed(), 3U);
    unit.core.completed();
    EXPECT_EQ(consumed(), 3U) << "there is nothing to complete";
  }
}

// Kills: an illegal command that is consumed or has an effect, an error code or GERROR left out, and a queue that does
// not go on after the acknowledgement.
TEST(Smmuv3Commands, IllegalOnesStopTheQueueUntilAcknowledged) {
  const std::vector<std::pair<bool, CommandWords>> illegal{
      {true, command<kCfgi>(static_cast<Opcode>(0), {})},
      {true, command<kCfgi>(static_cast<Opcode>(0x18), {})},  // EL3
      {true, command<kCfgi>(static_cast<Opcode>(0x20), {})},  // EL2, without Hyp
      {true, command<kCfgi>(static_cast<Opcode>(0x50), {})},  // Secure
      {true, command<kCfgi>(static_cast<Opcode>(0xff), {})},
      {true, command<kCfgi>(kCmdCfgiSte, {{"SSec", 1}})},
      {true, command<kAtcInv>(kCmdAtcInv, {{"SSec", 1}})},
      {true, command<kSync>(kCmdSync, {{"CS", 3}})},
      {true, command<kPriResp>(kCmdPriResp, {{"Resp", 3}})},
      {true, command<kTlbi>(kCmdTlbiNhVa, {{"TG", 1}})},
      {false, command<kAtcInv>(kCmdAtcInv, {})},    // without ATS
      {false, command<kPriResp>(kCmdPriResp, {})},  // without PRI
      {false, command<kResume>(kCmdResume, {})},    // without stalls
      {false, command<kResume>(kCmdStallTerm, {})},
  };
  for (const auto& [full, words] : illegal) {
    Unit unit(full ? everything() : DriverOptions{});
    unit.bring_up();
    unit.core.mmio_write(offset::kGerrorIrqCfg0, 8, 0x1000);
    unit.core.mmio_write(offset::kIrqCtrl, 4, mask_of<kIrqCtrl, "GERROR_IRQEN">);
    const CommandWords sync = command<kSync>(kCmdSync, {});
    EXPECT_EQ(unit.execute({sync, words, sync}).size(), 1U) << std::hex << words.words[0];
    const std::uint64_t consumer = unit.core.mmio_read(offset::kCmdqCons, 4);
    EXPECT_EQ((get<kCmdqCons, "RD">(consumer)), 1U) << "stays at the command";
    EXPECT_EQ((get<kCmdqCons, "ERR">(consumer)), static_cast<std::uint64_t>(CommandError::Illegal));
    EXPECT_EQ(unit.core.mmio_read(offset::kGerror, 4), (mask_of<kGerror, "CMDQ_ERR">));
    EXPECT_TRUE(unit.core.take_interrupt());
    EXPECT_FALSE(unit.core.has_command());
    EXPECT_TRUE(unit.core.apply({.words = words.words, .bytes = kCommandBytes, .row = nullptr}).error);
    // Software replaces it and acknowledges.
    const std::uint64_t at = unit.driver.ring().base + kCommandBytes;
    unit.memory.write64(at, sync.words[0]);
    unit.memory.write64(at + 8, sync.words[1]);
    EXPECT_TRUE(unit.core.mmio_write(offset::kGerrorn, 4, mask_of<kGerror, "CMDQ_ERR">).commands_pending);
    EXPECT_EQ(unit.drain().size(), 2U);
  }
}

TEST(Smmuv3Commands, AFailedFetchIsAnAbort) {
  Unit unit(everything());
  unit.bring_up();
  unit.put(command<kSync>(kCmdSync, {}));
  unit.core.mmio_write(offset::kCmdqProd, 4, 1);
  FailingPort port(unit.port, 0);
  EXPECT_FALSE(unit.core.fetch_command(port).run());
  EXPECT_EQ((get<kCmdqCons, "ERR">(unit.core.mmio_read(offset::kCmdqCons, 4))),
            static_cast<std::uint64_t>(CommandError::Abort));
  unit.core.mmio_write(offset::kGerrorn, 4, mask_of<kGerror, "CMDQ_ERR">);
  EXPECT_EQ(unit.drain().size(), 1U);
}

// Kills: a wrap bit that is not part of the index, and a hostile producer index that is believed.
TEST(Smmuv3Commands, IndexesWrapAndInconsistentOnesAreNotFollowed) {
  DriverOptions o;
  o.features.command_ring_entries = 256;
  Unit unit(o);
  unit.bring_up();
  const CommandWords sync = command<kSync>(kCmdSync, {});
  const std::vector<CommandWords> many(200, sync);
  for (int round = 0; round < 5; ++round) EXPECT_EQ(unit.execute(many).size(), many.size());
  const std::uint64_t head = get<kCmdqCons, "RD">(unit.core.mmio_read(offset::kCmdqCons, 4));
  unit.core.mmio_write(offset::kCmdqProd, 4, (head + 256 + 1) % 512);  // more than the ring holds
  EXPECT_FALSE(unit.core.has_command());
  unit.core.mmio_write(offset::kCmdqProd, 4, (head + 256) % 512);  // full
  EXPECT_TRUE(unit.core.has_command());
}

// §3.17.6. Kills: a wildcard that also widens lookups' tags, or is one bit off.
TEST(Smmuv3Commands, VmidWildcardsIgnoreLowBits) {
  Unit unit(everything());
  unit.bring_up();
  const std::uint64_t control = unit.core.mmio_read(offset::kCr0, 4);
  for (std::uint64_t wildcard = 0; wildcard < 8; ++wildcard) {
    unit.core.mmio_write(offset::kCr0, 4, with<kCr0, "VMW">(control, wildcard));
    const auto scopes = unit.execute({command<kTlbi>(kCmdTlbiS12Vmall, {{"VMID", 0x20}})}).at(0).scopes;
    const std::uint64_t group = wildcard <= 4 ? 1ULL << wildcard : 1;
    for (std::uint32_t vmid = 0; vmid < 0x40; ++vmid)
      EXPECT_EQ(matches(scopes.at(0), {.domain = DomainTag(vmid)}), vmid / group == 0x20 / group) << vmid;
  }
}

// With TBI, aliases of one page differ in their top byte only. Kills: an invalidation that misses an alias.
TEST(Smmuv3Commands, AddressesAreMatchedWithoutTheirTopByte) {
  Unit unit(everything());
  unit.bring_up();
  const auto scopes =
      unit.execute({command<kTlbi>(kCmdTlbiNhVa, {{"VMID", 1}, {"ASID", 1}, {"Address", 5}})}).at(0).scopes;
  const auto hits = [&](std::uint64_t first) {
    return matches(scopes.at(0), {.domain = DomainTag(1), .asid = AsidTag(1), .range = {first, first | 0xfff}});
  };
  EXPECT_TRUE(hits(0x5000));
  EXPECT_TRUE(hits(0xab00'0000'0000'5000));
  EXPECT_FALSE(hits(0xab00'0000'0000'6000));
}

// Registers -----------------------------------------------------------------------------------------------------------

TEST(Smmuv3Registers, IdentifyTheUnitByNamedFields) {
  DriverOptions o = everything();
  o.features.host_address_bits = 52;
  Unit unit(o);
  const std::uint64_t idr0 = unit.core.mmio_read(offset::kIdr0, 4), idr5 = unit.core.mmio_read(offset::kIdr5, 4);
  EXPECT_EQ((get<kIdr0, "TTF">(idr0)), static_cast<std::uint64_t>(TableFormats::AArch64));
  EXPECT_EQ((get<kIdr0, "S1P">(idr0)), 1U);
  EXPECT_EQ((get<kIdr0, "S2P">(idr0)), 1U);
  EXPECT_EQ((get<kIdr0, "STALL_MODEL">(idr0)), static_cast<std::uint64_t>(StallModel::Configurable));
  EXPECT_EQ((kAddressSizes.at(get<kIdr5, "OAS">(idr5))), 52U);
  EXPECT_EQ((get<kIdr5, "VAX">(idr5)), 1U);
  EXPECT_EQ((get<kIdr3, "RIL">(unit.core.mmio_read(offset::kIdr3, 4))), 1U);
  unit.core.mmio_write(offset::kIdr0, 4, 0);
  EXPECT_EQ(unit.core.mmio_read(offset::kIdr0, 4), idr0);
}

// Kills: a stream table or queue that moves while it is in use.
TEST(Smmuv3Registers, StructuresInUseCannotBeMoved) {
  Unit unit(everything());
  unit.bring_up();
  for (const auto& [at, bytes] : {std::pair{offset::kStrtabBase, 8U},
                                  {offset::kStrtabBaseCfg, 4U},
                                  {offset::kCr2, 4U},
                                  {offset::kCmdqBase, 8U},
                                  {offset::kCmdqCons, 4U},
                                  {offset::kEventqBase, 8U},
                                  {offset::kEventqProd, 4U},
                                  {offset::kPriqBase, 8U}}) {
    const std::uint64_t before = unit.core.mmio_read(at, bytes);
    unit.core.mmio_write(at, bytes, ~before);
    EXPECT_EQ(unit.core.mmio_read(at, bytes), before) << std::hex << at;
  }
  unit.core.mmio_write(offset::kCr0, 4, 0);
  unit.core.mmio_write(offset::kCmdqCons, 4, 5);
  EXPECT_EQ(unit.core.mmio_read(offset::kCmdqCons, 4), 5U);
}

// §6.3.14.1. Kills: an update without Update, and Update that stays.
TEST(Smmuv3Registers, BypassAttributesChangeOnlyByUpdate) {
  Unit unit(DriverOptions{});
  const auto through = [&] { return test::print(unit.translate(kNic, 0x1234)); };
  EXPECT_EQ(through(), std::to_string(0x1234));
  unit.core.mmio_write(offset::kGbpa, 4, mask_of<kGbpa, "ABORT">);
  EXPECT_EQ(through(), std::to_string(0x1234));
  unit.core.mmio_write(offset::kGbpa, 4, mask_of<kGbpa, "ABORT"> | mask_of<kGbpa, "Update">);
  EXPECT_EQ(unit.core.mmio_read(offset::kGbpa, 4), (mask_of<kGbpa, "ABORT">));
  EXPECT_TRUE(unit.core.is_translating());
  EXPECT_EQ(through(), "abort");
}

TEST(Smmuv3Registers, FeaturesThatCannotBeHadAreNamed) {
  UnitFeatures f;
  EXPECT_EQ(unsupported(f), "");
  f.host_address_bits = 46;
  EXPECT_NE(unsupported(f), "");
  f = {};
  f.input_address_bits = 57;
  EXPECT_NE(unsupported(f), "");
  f = {};
  f.caching_mode = true;
  EXPECT_NE(unsupported(f), "");
}

}  // namespace
}  // namespace iommu::smmuv3
