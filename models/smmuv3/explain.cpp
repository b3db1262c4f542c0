// SPDX-License-Identifier: Apache-2.0
// Which layout of spec.hpp an entry has, found from what was read before it. Nothing is decided here: a wrong answer
// would print wrong names and no more.
#include "models/smmuv3/explain.hpp"

#include <algorithm>
#include <array>

#include "models/smmuv3/register_rows.hpp"
#include "models/smmuv3/spec.hpp"

namespace iommu::smmuv3 {

namespace {

// clang-format off
constexpr std::array kLayouts{
    // Registers
    view_of<kIdr0>(), view_of<kIdr1>(), view_of<kIdr3>(), view_of<kIdr5>(), view_of<kAidr>(),
    view_of<kCr0>("SMMU_CR0"), view_of<kCr0>("SMMU_CR0ACK"), view_of<kCr1>(), view_of<kCr2>(), view_of<kGbpa>(),
    view_of<kIrqCtrl>("SMMU_IRQ_CTRL"), view_of<kIrqCtrl>("SMMU_IRQ_CTRLACK"),
    view_of<kGerror>("SMMU_GERROR"), view_of<kGerror>("SMMU_GERRORN"),
    view_of<kIrqCfg0>("SMMU_GERROR_IRQ_CFG0"), view_of<kIrqCfg0>("SMMU_EVENTQ_IRQ_CFG0"), view_of<kIrqCfg0>("SMMU_PRIQ_IRQ_CFG0"),
    view_of<kStrtabBase>(), view_of<kStrtabCfg>("SMMU_STRTAB_BASE_CFG"),
    view_of<kQueueBase>("SMMU_CMDQ_BASE"), view_of<kQueueBase>("SMMU_EVENTQ_BASE"), view_of<kQueueBase>("SMMU_PRIQ_BASE"),
    view_of<kQueueProd>("SMMU_CMDQ_PROD"), view_of<kQueueProd>("SMMU_EVENTQ_PROD"), view_of<kQueueProd>("SMMU_PRIQ_PROD"),
    view_of<kCmdqCons>("SMMU_CMDQ_CONS"), view_of<kQueueCons>("SMMU_EVENTQ_CONS"), view_of<kQueueCons>("SMMU_PRIQ_CONS"),
    // Configuration structures
    view_of<kL1Std>(), view_of<kSte>(), view_of<kL1Cd>(), view_of<kCd>(),
    // Descriptors, by stage and the architecture's level; pages and blocks, and tables of all levels, are alike
    view_of<kTableDescriptor>("S1-L0"),
    view_of<kTableDescriptor>("S1-L1"), view_of<kStage1Leaf>("S1-L1"),
    view_of<kTableDescriptor>("S1-L2"), view_of<kStage1Leaf>("S1-L2"),
    view_of<kStage1Leaf>("S1-L3"),
    view_of<kTableDescriptor>("S2-L0"),
    view_of<kTableDescriptor>("S2-L1"), view_of<kStage2Leaf>("S2-L1"),
    view_of<kTableDescriptor>("S2-L2"), view_of<kStage2Leaf>("S2-L2"),
    view_of<kStage2Leaf>("S2-L3"),
    // Commands
    view_of<kPrefetch>("CMD_PREFETCH_CONFIG"), view_of<kPrefetch>("CMD_PREFETCH_ADDR"),
    view_of<kCfgi>("CMD_CFGI_STE"), view_of<kCfgi>("CMD_CFGI_STE_RANGE"), view_of<kCfgi>("CMD_CFGI_CD"), view_of<kCfgi>("CMD_CFGI_CD_ALL"),
    view_of<kTlbi>("CMD_TLBI_NH_ALL"), view_of<kTlbi>("CMD_TLBI_NH_ASID"), view_of<kTlbi>("CMD_TLBI_NH_VA"),
    view_of<kTlbi>("CMD_TLBI_NH_VAA"), view_of<kTlbi>("CMD_TLBI_S12_VMALL"), view_of<kTlbi>("CMD_TLBI_S2_IPA"),
    view_of<kTlbi>("CMD_TLBI_NSNH_ALL"), view_of<kAtcInv>(), view_of<kPriResp>(),
    view_of<kResume>("CMD_RESUME"), view_of<kResume>("CMD_STALL_TERM"), view_of<kSync>(),
    // Records
    view_of<kEvent>("event record"), view_of<kPageRequest>("PRI entry"),
};
// clang-format on

constexpr const LayoutView* find(std::string_view name) { return find_layout(kLayouts, name); }
const LayoutView* find(std::string_view name, std::span<const Field> fields) {
  return find_layout(kLayouts, name, fields);
}

// The structures differ in size from their first-level descriptors, and streams come before contexts.
const LayoutView* device_table(std::span<const DeviceTableRead> so_far) {
  const auto is_whole = [](const DeviceTableRead& read) {
    return read.words.size() * sizeof(std::uint64_t) == kSteBytes;
  };
  const auto before = so_far.first(so_far.size() - 1);
  const bool past_stream = std::any_of(before.begin(), before.end(), is_whole);
  if (past_stream) return is_whole(so_far.back()) ? find("CD") : find("L1CD");
  return is_whole(so_far.back()) ? find("STE") : find("L1STD");
}

const LayoutView* page_entry(const PageEntryRead& read) {
  constexpr std::array<std::string_view, kLevels> kFirst{"S1-L3", "S1-L2", "S1-L1", "S1-L0"};
  constexpr std::array<std::string_view, kLevels> kSecond{"S2-L3", "S2-L2", "S2-L1", "S2-L0"};
  if (read.level >= kLevels) return nullptr;
  const bool table = read.level != 0 && get<kTableDescriptor, "Table">(read.entry) != 0;
  const std::span<const Field> tables(kTableDescriptor.fields);
  if (read.stage == Stage::Stage1)
    return find(kFirst[read.level], table ? tables : std::span<const Field>(kStage1Leaf.fields));
  return find(kSecond[read.level], table ? tables : std::span<const Field>(kStage2Leaf.fields));
}

const LayoutView* event(std::span<const std::uint64_t> /*words*/) { return find("event record"); }

std::vector<RegisterPlace> registers(IommuCore& /*core*/) {
  return register_places(register_rows(Identity{}), kLayouts);
}

}  // namespace

constinit const FamilyLayouts kFamilyLayouts{
    .all = kLayouts, .registers = registers, .device_table = device_table, .page_entry = page_entry, .event = event};

}  // namespace iommu::smmuv3
