// SPDX-License-Identifier: Apache-2.0
// Instruction fetches: what makes a read one, and what both stages and ATS make of it.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "models/smmuv3/stream_bench.hpp"
#include "sim/base/rng.hpp"

namespace iommu::smmuv3 {
namespace {

using test::kInput;
using test::kNic;
using test::kOutput;
using test::options;
using test::print;
using test::StreamBench;

enum class Wxn : std::uint8_t { Clear, Set, Any };
struct Row {
  unsigned uxn, pxn, ap;  // AP[2:1]
  Wxn wxn;
  bool privileged, user;  // may execute
};
// DDI 0487 table D8-65, where PrivWXN and UnprivWXN stand for a right to execute that is taken away.
constexpr std::array kRows{
    Row{0, 0, 0b00, Wxn::Clear, true, true},  Row{0, 0, 0b00, Wxn::Set, false, true},
    Row{0, 0, 0b01, Wxn::Clear, false, true}, Row{0, 0, 0b01, Wxn::Set, false, false},
    Row{0, 0, 0b10, Wxn::Any, true, true},    Row{0, 0, 0b11, Wxn::Any, true, true},
    Row{0, 1, 0b00, Wxn::Any, false, true},   Row{0, 1, 0b01, Wxn::Clear, false, true},
    Row{0, 1, 0b01, Wxn::Set, false, false},  Row{0, 1, 0b10, Wxn::Any, false, true},
    Row{0, 1, 0b11, Wxn::Any, false, true},   Row{1, 0, 0b00, Wxn::Clear, true, false},
    Row{1, 0, 0b00, Wxn::Set, false, false},  Row{1, 0, 0b01, Wxn::Any, false, false},
    Row{1, 0, 0b10, Wxn::Any, true, false},   Row{1, 0, 0b11, Wxn::Any, true, false},
    Row{1, 1, 0b00, Wxn::Any, false, false},  Row{1, 1, 0b01, Wxn::Any, false, false},
    Row{1, 1, 0b10, Wxn::Any, false, false},  Row{1, 1, 0b11, Wxn::Any, false, false},
};
const Row& row_of(unsigned uxn, unsigned pxn, unsigned ap, unsigned wxn) {
  return *std::ranges::find_if(kRows, [&](const Row& r) {
    return r.uxn == uxn && r.pxn == pxn && r.ap == ap && (r.wxn == Wxn::Any || (r.wxn == Wxn::Set) == (wxn != 0));
  });
}

std::uint64_t leaf_with(std::uint64_t entry, unsigned uxn, unsigned pxn, unsigned ap) {
  entry = with<kStage1Leaf, "UXN">(with<kStage1Leaf, "PXN">(entry, pxn), uxn);
  return with<kStage1Leaf, "APRead">(with<kStage1Leaf, "APUser">(entry, ap & 1), ap >> 1);
}

TranslationRequest fetch_of(const StreamBench& bench, bool privileged = false) {
  TranslationRequest request = bench.request();
  request.execute = true;
  request.privileged = privileged;
  return request;
}

const std::string kAllowed = std::to_string(kOutput), kDenied = "F_PERMISSION";
std::string outcome(bool allowed) { return allowed ? kAllowed : kDenied; }

// Page descriptors under random tables, against the table of the architecture applied to what the tables leave of each
// field. Kills: a field of the other privilege; WXN that looks at the wrong writer, at reads, or at what a table took
// away; users' right to write forgotten; a hierarchy that HAD does not switch off; execute-never that stops data.
TEST(Smmuv3Execution, StageOneFollowsTheTableOfTheArchitecture) {
  StreamBench bench(ContextKind::Stage1);
  const std::uint64_t leaf = bench.entry(*bench.stage1, kInput, 0);
  const std::array<std::uint64_t, 2> tables{bench.entry(*bench.stage1, kInput, 1),
                                            bench.entry(*bench.stage1, kInput, 2)};
  Rng rng(1, "execution");
  for (int i = 0; i < 1500; ++i) {
    const auto bit = [&](double p) { return rng.chance(p) ? 1U : 0U; };
    unsigned uxn = bit(0.3), pxn = bit(0.3), user = bit(0.6), read_only = bit(0.4);
    const unsigned wxn = bit(0.5), flat = bit(0.2);
    bench.set_entry(*bench.stage1, kInput, 0, leaf_with(leaf, uxn, pxn, read_only << 1 | user));
    bench.cd<"WXN">(wxn);
    bench.cd<"HAD0">(flat);
    for (Level level : {Level{1}, Level{2}}) {
      const std::array<unsigned, 4> limits{bit(0.15), bit(0.15), bit(0.15), bit(0.15)};
      std::uint64_t entry = with<kTableDescriptor, "UXNTable">(tables[level - 1U], limits[0]);
      entry = with<kTableDescriptor, "PXNTable">(entry, limits[1]);
      entry = with<kTableDescriptor, "APTableUser">(entry, limits[2]);
      bench.set_entry(*bench.stage1, kInput, level, with<kTableDescriptor, "APTableRead">(entry, limits[3]));
      if (flat != 0) continue;
      uxn |= limits[0];
      pxn |= limits[1];
      user &= ~limits[2];
      read_only |= limits[3];
    }
    const Row& row = row_of(uxn, pxn, read_only << 1 | user, wxn);
    SCOPED_TRACE("UXN " + std::to_string(uxn) + " PXN " + std::to_string(pxn) + " AP " +
                 std::to_string(read_only << 1 | user) + " WXN " + std::to_string(wxn) + " round " + std::to_string(i));
    EXPECT_EQ(print(bench.translate(fetch_of(bench))), outcome(row.user));
    EXPECT_EQ(print(bench.translate(fetch_of(bench, true))), outcome(row.privileged));
    TranslationRequest data = bench.request();
    EXPECT_EQ(print(bench.translate(data)), outcome(user != 0));
    data.privileged = true;
    EXPECT_EQ(print(bench.translate(data)), kAllowed);
    data.access = Access::Write;
    EXPECT_EQ(print(bench.translate(data)), outcome(read_only == 0));
  }
}

// [DDI 0487 D8.5 R_TTLCV] Kills: a clean page taken for a read-only one, a refused fetch that marks, PAN that stops
// fetches.
TEST(Smmuv3Execution, CleanPagesAreWritableAndPanIsForData) {
  DriverOptions o = options(ContextKind::Stage1);
  o.features.accessed_dirty = true;
  StreamBench bench(ContextKind::Stage1, o);
  const std::uint64_t clean = with<kStage1Leaf, "DBM">(
      with<kStage1Leaf, "AF">(leaf_with(bench.entry(*bench.stage1, kInput, 0), 0, 0, 0b11), 0), 1);
  bench.set_entry(*bench.stage1, kInput, 0, clean);
  bench.cd<"WXN">(1);
  EXPECT_EQ(print(bench.translate(fetch_of(bench))), kDenied);
  EXPECT_EQ(print(bench.translate(fetch_of(bench, true))), kDenied);
  EXPECT_EQ(bench.entry(*bench.stage1, kInput, 0), clean);
  bench.set_entry(*bench.stage1, kInput, 0, with<kStage1Leaf, "DBM">(clean, 0));
  bench.cd<"PAN">(1);
  TranslationRequest data = bench.request();
  data.privileged = true;
  EXPECT_EQ(print(bench.translate(data)), kDenied);
  EXPECT_EQ(print(bench.translate(fetch_of(bench, true))), kAllowed);
}

// [§5.4] Kills: UWXN that denies with VMSAv8-64.
TEST(Smmuv3Execution, UwxnIsIgnored) {
  StreamBench bench(ContextKind::Stage1);
  bench.set_entry(*bench.stage1, kInput, 0, leaf_with(bench.entry(*bench.stage1, kInput, 0), 0, 0, 0b01));
  bench.cd<"UWXN">(1);
  EXPECT_EQ(print(bench.translate(fetch_of(bench))), kAllowed);
}

// [§5.2 INSTCFG, PRIVCFG; §7.3; §13.1.2] Kills: an override of the other attribute, of writes, or where the unit has
// none; InD or PnU before the override; a write recorded as a fetch.
TEST(Smmuv3Execution, OverridesDecideWhatARequestIsAndTheEventSaysSo) {
  StreamBench bench(ContextKind::Stage1);
  bench.set_entry(*bench.stage1, kInput, 0, leaf_with(bench.entry(*bench.stage1, kInput, 0), 1, 1, 0b11));
  Identity without = compose(bench.options_used.features);
  without.idr1 &= ~static_cast<std::uint32_t>(mask_of<kIdr1, "ATTR_PERMS_OVR">);
  Core other(without);
  for (const auto& [at, bytes] : {std::pair{offset::kStrtabBase, 8U}, {offset::kStrtabBaseCfg, 4U}, {offset::kCr0, 4U}})
    other.mmio_write(at, bytes, bench.core.mmio_read(at, bytes));
  for (std::uint64_t instruction = 0; instruction < 4; ++instruction)
    for (std::uint64_t privilege = 0; privilege < 4; ++privilege)
      for (unsigned asked = 0; asked < 8; ++asked) {
        TranslationRequest request = bench.request((asked & 1) != 0 ? Access::Write : Access::Read);
        request.execute = (asked & 2) != 0;
        request.privileged = (asked & 4) != 0;
        const bool write = request.access == Access::Write;
        bench.ste<"INSTCFG">(instruction);
        bench.ste<"PRIVCFG">(privilege);
        const bool fetches = !write && (instruction < 2 ? request.execute : instruction == 3);
        const bool privileged = privilege < 2 ? request.privileged : privilege == 3;
        SCOPED_TRACE(std::to_string(instruction) + std::to_string(privilege) + " " + std::to_string(asked));
        EXPECT_EQ(print(bench.translate(request)), outcome(!write && !fetches));
        EXPECT_EQ(print(other.translate(request, bench.port).run()), outcome(!write && !request.execute));
        if (!write && !fetches) continue;
        const auto event = bench.event(request);
        EXPECT_EQ((get<kEvent, "ID">(event)), kFault<"F_PERMISSION">->code);
        EXPECT_EQ((get<kEvent, "RnW">(event)), write ? 0U : 1U);
        EXPECT_EQ((get<kEvent, "InD">(event)), fetches ? 1U : 0U);
        EXPECT_EQ((get<kEvent, "PnU">(event)), privileged ? 1U : 0U);
        EXPECT_EQ((get<kEvent, "S2">(event)), 0U);
      }
}

// [§7.3.22] Kills: execution looked at before presence or the access flag; InD in F_PERMISSION only.
TEST(Smmuv3Execution, PresenceAndAccessFlagComeFirst) {
  StreamBench bench(ContextKind::Stage1);
  const std::uint64_t never = leaf_with(bench.entry(*bench.stage1, kInput, 0), 1, 1, 0b11);
  for (const auto& [entry, row] : {std::pair{with<kStage1Leaf, "Valid">(never, 0), kFault<"F_TRANSLATION">},
                                   {with<kStage1Leaf, "AF">(never, 0), kFault<"F_ACCESS">},
                                   {never, kFault<"F_PERMISSION">}}) {
    bench.set_entry(*bench.stage1, kInput, 0, entry);
    const auto event = bench.event(fetch_of(bench));
    EXPECT_EQ((get<kEvent, "ID">(event)), row->code);
    EXPECT_EQ((get<kEvent, "InD">(event)), 1U);
  }
}

// [DDI 0487 tables D8-77, D8-78] Kills: XN's bits exchanged; the lower one without XNX, or blind to privilege; stage 2
// asked for the table of stage 1 as though that were fetched; a fetch that needs the right to read.
TEST(Smmuv3Execution, StageTwoHasItsOwnField) {
  for (const ContextKind kind : {ContextKind::Stage2, ContextKind::Nested}) {
    StreamBench bench(kind);
    const std::uint64_t page = kind == ContextKind::Nested ? kOutput : kInput;
    if (kind == ContextKind::Nested) {
      bench.set_entry(*bench.stage1, kInput, 0, leaf_with(bench.entry(*bench.stage1, kInput, 0), 0, 0, 0b11));
      const std::uint64_t table = bench.stage1->root().address;
      bench.set_entry(*bench.stage2, table, 0, with<kStage2Leaf, "XN1">(bench.entry(*bench.stage2, table, 0), 1));
    }
    const std::uint64_t leaf = bench.entry(*bench.stage2, page, 0);
    for (unsigned xn = 0; xn < 4; ++xn) {
      const std::uint64_t entry = with<kStage2Leaf, "XN0">(with<kStage2Leaf, "XN1">(leaf, xn >> 1), xn & 1);
      const bool user = xn == 0b00 || xn == 0b01, privileged = xn == 0b00 || xn == 0b11;
      bench.set_entry(*bench.stage2, page, 0, entry);
      EXPECT_EQ(print(bench.translate(fetch_of(bench))), outcome(user)) << xn;
      EXPECT_EQ(print(bench.translate(fetch_of(bench, true))), outcome(privileged)) << xn;
      EXPECT_EQ(print(bench.translate(bench.request())), kAllowed) << xn;
      bench.set_entry(*bench.stage2, page, 0, with<kStage2Leaf, "S2APRead">(entry, 0));
      EXPECT_EQ(print(bench.translate(fetch_of(bench))), outcome(user)) << xn;
      EXPECT_EQ(print(bench.translate(bench.request())), kDenied) << xn;
      for (const bool privilege : {false, true}) {
        const Stage2Format without({.granule = {12, 48, 3}, .mode = {.privileged = privilege, .execute = true}});
        EXPECT_EQ(without.decode(entry, 0, page, Access::Read).kind == EntryKind::Leaf, xn >> 1 == 0) << xn;
      }
    }
    const auto event = bench.event(fetch_of(bench));
    EXPECT_EQ((get<kEvent, "ID">(event)), kFault<"F_PERMISSION">->code);
    EXPECT_EQ((get<kEvent, "S2">(event)), 1U);
    EXPECT_EQ((get<kEvent, "InD">(event)), 1U);
    EXPECT_EQ((get<kEvent, "CLASS">(event)), static_cast<std::uint64_t>(FaultingAccess::Input));
  }
}

// [§13.7.1] Kills: execution granted unasked, without PASID or without the right to read; a request refused because it
// may not execute; each override's own rule.
TEST(Smmuv3Execution, AtsRequestsAreToldWhetherTheyMayExecute) {
  StreamBench bench(ContextKind::Stage1);
  bench.ste<"S1CDMax">(1);
  bench.ste<"S1DSS">(static_cast<std::uint64_t>(DefaultSubstream::Terminate));
  bench.ste<"EATS">(static_cast<std::uint64_t>(AtsMode::Full));
  const std::uint64_t leaf = bench.entry(*bench.stage1, kInput, 0);
  struct Case {
    AttributeOverride override;
    unsigned uxn, ap;
    bool asks, reads, executes;
  };
  using enum AttributeOverride;
  const std::vector<Case> cases{
      {Incoming, 0, 0b01, true, true, true},  {Incoming, 0, 0b01, false, true, false},
      {Incoming, 1, 0b01, true, true, false}, {Incoming, 0, 0b00, true, false, false},  // execute-only
      {On, 0, 0b00, true, true, true},        {On, 0, 0b01, false, true, false},
      {On, 1, 0b01, true, false, false},      {Off, 1, 0b01, true, true, true},
      {Off, 0, 0b00, true, false, false},     {Off, 1, 0b01, false, true, false},
  };
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const Case& c = cases[i];
    bench.ste<"INSTCFG">(static_cast<std::uint64_t>(c.override));
    bench.set_entry(*bench.stage1, kInput, 0, leaf_with(leaf, c.uxn, 0, c.ap));
    TranslationRequest ask = bench.request();
    ask.type = AddressType::TranslationRequest;
    ask.pasid = Pasid(0);
    ask.execute = c.asks;
    const TranslationResponse response = bench.translate(ask);
    ASSERT_TRUE(std::holds_alternative<Translation>(response)) << i << print(response);
    EXPECT_EQ(std::get<Translation>(response).allowed.read, c.reads) << i;
    EXPECT_EQ(std::get<Translation>(response).executable, c.executes) << i;
  }
  // Without PASID there is neither attribute. [§13.7]
  bench.ste<"S1CDMax">(0);
  bench.ste<"INSTCFG">(0);
  TranslationRequest bare = bench.request();
  bare.type = AddressType::TranslationRequest;
  bare.execute = bare.privileged = true;
  bench.set_entry(*bench.stage1, kInput, 0, leaf_with(leaf, 0, 0, 0b00));
  EXPECT_TRUE(std::get<Translation>(bench.translate(bare)).allowed.none()) << "not privileged";
  bench.set_entry(*bench.stage1, kInput, 0, leaf_with(leaf, 0, 0, 0b01));
  EXPECT_FALSE(std::get<Translation>(bench.translate(bare)).executable);
}

// What walks have cached, by its tag.
class RememberedTables final : public WalkCachePort {
 public:
  std::optional<CachedTable> deepest(Stage stage, const WalkTag& tag, std::uint64_t input) override {
    const auto found = std::ranges::find_if(tables_, [&](const Table& t) {
      return t.stage == stage && t.tag == tag && t.block == input >> kTableLg2 && t.table.level == 0;
    });
    return found == tables_.end() ? std::nullopt : std::optional(found->table);
  }
  void fill(Stage stage, const WalkTag& tag, std::uint64_t input, const CachedTable& table) override {
    tables_.push_back({stage, tag, input >> kTableLg2, table});
  }
  std::optional<CachedStage2Leaf> find_stage2_leaf(const WalkTag& tag, Gpa address) override {
    const auto found = std::ranges::find_if(
        leaves_, [&](const Leaf& l) { return l.tag == tag && l.page == address.value() >> kPageLg2; });
    return found == leaves_.end() ? std::nullopt : std::optional(found->leaf);
  }
  void fill_stage2_leaf(const WalkTag& tag, Gpa address, const CachedStage2Leaf& leaf) override {
    leaves_.push_back({tag, address.value() >> kPageLg2, leaf});
  }

 private:
  static constexpr unsigned kTableLg2 = 21;
  struct Table {
    Stage stage;
    WalkTag tag;
    std::uint64_t block;
    CachedTable table;
  };
  struct Leaf {
    WalkTag tag;
    std::uint64_t page;
    CachedStage2Leaf leaf;
  };
  std::vector<Table> tables_;
  std::vector<Leaf> leaves_;
};

// What tables permit differs by privilege and by what the access is. Kills: walks of one kind that begin where one of
// another kind has been, at either stage.
TEST(Smmuv3Execution, CachedTablesServeWalksOfTheirKindOnly) {
  for (unsigned first = 0; first < 4; ++first)
    for (unsigned second = 0; second < 4; ++second) {
      StreamBench bench(ContextKind::Nested);
      bench.set_entry(*bench.stage1, kInput, 0, leaf_with(bench.entry(*bench.stage1, kInput, 0), 0, 0, 0b11));
      std::uint64_t table = with<kTableDescriptor, "APTableUser">(bench.entry(*bench.stage1, kInput, 2), 1);
      bench.set_entry(*bench.stage1, kInput, 2, with<kTableDescriptor, "PXNTable">(table, 1));
      // Users may only execute, the privileged only read; by stage 2 nobody may execute.
      bench.set_entry(*bench.stage2, kOutput, 0, with<kStage2Leaf, "XN1">(bench.entry(*bench.stage2, kOutput, 0), 1));
      RememberedTables remembered;
      for (const unsigned kind : {first, second}) {
        TranslationRequest request = bench.request();
        request.privileged = (kind & 1) != 0;
        request.execute = (kind & 2) != 0;
        const std::string alone = print(bench.translate(request));
        const auto cached = bench.core.translate(request, bench.port, {.caches = &remembered}).run();
        EXPECT_EQ(print(cached), alone) << first << second << kind;
        EXPECT_EQ(alone, outcome(kind == 1)) << kind;
      }
    }
}

// [§8] Kills: X without PASID, or none.
TEST(Smmuv3Execution, PageRequestsCarryTheFlag) {
  DriverOptions o = options(ContextKind::Stage1);
  o.features.device_tlb = true;
  StreamBench bench(ContextKind::Stage1, o);
  const std::uint64_t queue = bench.core.mmio_read(offset::kPriqBase, 8) & mask_of<kQueueBase, "ADDR">;
  for (unsigned i = 0; i < 4; ++i) {
    PageRequest request{.requester = kNic, .page = Iova(kInput), .execute = (i & 1) != 0};
    if ((i & 2) != 0) request.pasid = Pasid(1);
    ASSERT_FALSE(bench.core.record_page_request(request)) << "software is asked";
    bench.core.write_events(bench.port).run();
    const std::array words{bench.memory.read64(queue + i * kPageRequestBytes),
                           bench.memory.read64(queue + i * kPageRequestBytes + 8)};
    EXPECT_EQ((get<kPageRequest, "X">(words)), i == 3 ? 1U : 0U) << i;
  }
}

}  // namespace
}  // namespace iommu::smmuv3
