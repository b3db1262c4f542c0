// SPDX-License-Identifier: Apache-2.0
// Arm SMMUv3, as data: registers, stream table entries, context descriptors, VMSAv8-64 descriptors, commands, event
// records. Nothing here decides. Citations name sections of the pinned revision; descriptors of translation tables are
// cited from Arm DDI 0487 (chapter D8), command and event bits that the revision shows as figures also from
// linux drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.h.
//
// One Security state (Non-secure), one StreamWorld (NS-EL1). Where the sources leave a choice open:
//   ASSUMPTION(smmuv3-001): reserved fields of STEs, CDs and commands are ignored, as §5 and §4.1.5 permit.
//   ASSUMPTION(smmuv3-002): an STE or L1STD beyond the OAS is F_STE_FETCH (§3.4.3 note 5 leaves truncation open).
//   ASSUMPTION(smmuv3-003): a queue whose indexes are inconsistent is not consumed; as a producer's it counts as full.
//   ASSUMPTION(smmuv3-004): S1ContextPtr and L1CD.L2Ptr beyond the IAS are C_BAD_STE and C_BAD_SUBSTREAMID (§3.4.3).
//   ASSUMPTION(smmuv3-005): the Contiguous bit counts only where the entry lies at its place in the block; a
//                           misprogrammed block is translated entry by entry.
//   DEVIATION(smmuv3-006):  F_BAD_ATS_TREQ carries StreamID and SubstreamID only; wired interrupts do not exist.
//   ASSUMPTION(smmuv3-007): while IDR5.STALL_MAX transactions are stalled, a further one waits for a tag, unrecorded
//                           (§6.3.6 bounds the records, not the transactions).
//   DEVIATION(smmuv3-012):  no broadcast invalidation reaches the unit (IDR0.BTM = 0), so ASET means nothing.
// CD.UWXN is IGNORED with VMSAv8-64 (§5.4); GBPA's INSTCFG and PRIVCFG only mark what leaves the unit, which nobody
// reads.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "sim/base/bits.hpp"
#include "sim/translation/iommu_core.hpp"
#include "sim/translation/request.hpp"

namespace iommu::smmuv3 {

inline constexpr std::string_view kSpec = "Arm IHI 0070 G.b";

// clang-format off

// ---------------------------------------------------------------------------------------------------------- Registers

inline constexpr auto kIdr0 = layout("SMMU_IDR0", "§6.3.1", 32, {
    {"S2P",       0,  0}, {"S1P",       1,  1}, {"TTF",       3,  2}, {"COHACC",   4,  4}, {"BTM",      5,  5},
    {"HTTU",      7,  6}, {"DORMHINT",  8,  8}, {"HYP",       9,  9}, {"ATS",     10, 10}, {"NS1ATS",  11, 11},
    {"ASID16",   12, 12}, {"MSI",      13, 13}, {"SEV",      14, 14}, {"ATOS",    15, 15}, {"PRI",     16, 16},
    {"VMW",      17, 17}, {"VMID16",   18, 18}, {"CD2L",     19, 19}, {"VATOS",   20, 20}, {"TTENDIAN", 22, 21},
    {"ATSRECERR", 23, 23}, {"STALL_MODEL", 25, 24}, {"TERM_MODEL", 26, 26}, {"ST_LEVEL", 28, 27},
    {"rsv0",     29, 29, FieldKind::MustBeZero}, {"RME_IMPL", 30, 30}, {"rsv1", 31, 31, FieldKind::MustBeZero}});
enum class TableFormats : std::uint8_t { AArch64 = 2 };                  // TTF
enum class FlagUpdates : std::uint8_t { None = 0, Access = 1, AccessAndDirty = 2 };  // HTTU
enum class Endianness : std::uint8_t { Mixed = 0, Little = 2, Big = 3 };  // TTENDIAN
enum class StallModel : std::uint8_t { Configurable = 0, Absent = 1, Forced = 2 };

inline constexpr auto kIdr1 = layout("SMMU_IDR1", "§6.3.2", 32, {
    {"SIDSIZE",   5,  0}, {"SSIDSIZE", 10,  6}, {"PRIQS",    15, 11}, {"EVENTQS", 20, 16}, {"CMDQS",   25, 21},
    {"ATTR_PERMS_OVR", 26, 26}, {"ATTR_TYPES_OVR", 27, 27}, {"REL", 28, 28}, {"QUEUES_PRESET", 29, 29},
    {"TABLES_PRESET", 30, 30}, {"ECMDQ", 31, 31}});
inline constexpr auto kIdr3 = layout("SMMU_IDR3", "§6.3.4", 32, {
    {"rsv0",      1,  0, FieldKind::MustBeZero}, {"HAD", 2, 2}, {"PBHA", 3, 3}, {"XNX", 4, 4}, {"PPS", 5, 5},
    {"rsv1",      6,  6, FieldKind::MustBeZero}, {"MPAM", 7, 7}, {"FWB", 8, 8}, {"STT", 9, 9}, {"RIL", 10, 10},
    {"BBML",     12, 11}, {"E0PD",     13, 13}, {"PTWNNC",   14, 14}, {"DPT",     15, 15}, {"PASIDTT", 16, 16},
    {"EPAN",     17, 17}, {"S1PI",     18, 18}, {"S2PI",     19, 19}, {"S2PO",    20, 20}, {"THE",     21, 21},
    {"MTEPERM",  22, 22}, {"AIE",      23, 23}, {"rsv2",     31, 24, FieldKind::MustBeZero}});
inline constexpr auto kIdr5 = layout("SMMU_IDR5", "§6.3.6", 32, {
    {"OAS",       2,  0}, {"rsv0",      3,  3, FieldKind::MustBeZero}, {"GRAN4K", 4, 4}, {"GRAN16K", 5, 5},
    {"GRAN64K",   6,  6}, {"DS",        7,  7}, {"D128",      8,  8}, {"rsv1", 9, 9, FieldKind::MustBeZero},
    {"VAX",      11, 10}, {"rsv2",     15, 12, FieldKind::MustBeZero}, {"STALL_MAX", 31, 16}});
// OAS, CD.IPS and STE.S2PS by encoding; what exceeds the OAS behaves as the OAS.
inline constexpr std::array<std::uint8_t, 7> kAddressSizes{32, 36, 40, 42, 44, 48, 52};
inline constexpr auto kAidr = layout("SMMU_AIDR", "§6.3.8", 32, {
    {"ArchMinorRev", 3, 0}, {"ArchMajorRev", 7, 4}, {"rsv", 31, 8, FieldKind::MustBeZero}});

inline constexpr auto kCr0 = layout("SMMU_CR0, SMMU_CR0ACK", "§6.3.9", 32, {
    {"SMMUEN",    0,  0}, {"PRIQEN",    1,  1}, {"EVENTQEN",  2,  2}, {"CMDQEN",   3,  3}, {"ATSCHK",   4,  4},
    {"rsv0",      5,  5, FieldKind::MustBeZero}, {"VMW", 8, 6}, {"rsv1", 31, 9, FieldKind::MustBeZero}});
inline constexpr unsigned kLargestVmidWildcard = 4;  // VMW: larger values behave as 0
inline constexpr auto kCr1 = layout("SMMU_CR1", "§6.3.11", 32, {
    {"QUEUE_IC",  1,  0}, {"QUEUE_OC",  3,  2}, {"QUEUE_SH",  5,  4}, {"TABLE_IC", 7,  6}, {"TABLE_OC", 9,  8},
    {"TABLE_SH", 11, 10}, {"rsv",      31, 12, FieldKind::MustBeZero}});
inline constexpr auto kCr2 = layout("SMMU_CR2", "§6.3.12", 32, {
    {"E2H",       0,  0}, {"RECINVSID", 1,  1}, {"PTM",       2,  2}, {"REC_CFG_ATS", 3, 3},
    {"rsv",      31,  4, FieldKind::MustBeZero}});
inline constexpr auto kGbpa = layout("SMMU_GBPA", "§6.3.14", 32, {
    {"MemAttr",   3,  0}, {"MTCFG",     4,  4}, {"rsv0",      7,  5, FieldKind::MustBeZero}, {"ALLOCCFG", 11, 8},
    {"SHCFG",    13, 12}, {"rsv1",     15, 14, FieldKind::MustBeZero}, {"PRIVCFG", 17, 16}, {"INSTCFG", 19, 18},
    {"ABORT",    20, 20}, {"rsv2",     30, 21, FieldKind::MustBeZero}, {"Update", 31, 31}});
inline constexpr std::uint64_t kUseIncomingShareability = 1;  // SHCFG

inline constexpr auto kIrqCtrl = layout("SMMU_IRQ_CTRL, SMMU_IRQ_CTRLACK", "§6.3.18", 32, {
    {"GERROR_IRQEN", 0, 0}, {"PRIQ_IRQEN", 1, 1}, {"EVENTQ_IRQEN", 2, 2}, {"rsv", 31, 3, FieldKind::MustBeZero}});
inline constexpr auto kGerror = layout("SMMU_GERROR, SMMU_GERRORN", "§6.3.20", 32, {
    {"CMDQ_ERR",  0,  0}, {"rsv0",      1,  1, FieldKind::MustBeZero}, {"EVENTQ_ABT_ERR", 2, 2},
    {"PRIQ_ABT_ERR", 3, 3}, {"MSI_CMDQ_ABT_ERR", 4, 4}, {"MSI_EVENTQ_ABT_ERR", 5, 5}, {"MSI_PRIQ_ABT_ERR", 6, 6},
    {"MSI_GERROR_ABT_ERR", 7, 7}, {"SFM_ERR", 8, 8}, {"CMDQP_ERR", 9, 9}, {"DPT_ERR", 10, 10},
    {"rsv1",     31, 11, FieldKind::MustBeZero}});
inline constexpr auto kIrqCfg0 = layout("SMMU_*_IRQ_CFG0", "§6.3.22", 64, {
    {"rsv0",      1,  0, FieldKind::MustBeZero}, {"ADDR", 55, 2}, {"rsv1", 63, 56, FieldKind::MustBeZero}});

inline constexpr auto kStrtabBase = layout("SMMU_STRTAB_BASE", "§6.3.24", 64, {
    {"rsv0",      5,  0, FieldKind::MustBeZero}, {"ADDR", 55, 6}, {"rsv1", 61, 56, FieldKind::MustBeZero},
    {"RA",       62, 62}, {"rsv2",     63, 63, FieldKind::MustBeZero}});
inline constexpr auto kStrtabCfg = layout("SMMU_STRTAB_BASE_CFG", "§6.3.25", 32, {
    {"LOG2SIZE",  5,  0}, {"SPLIT",    10,  6}, {"rsv0",     15, 11, FieldKind::MustBeZero}, {"FMT", 17, 16},
    {"rsv1",     31, 18, FieldKind::MustBeZero}});
enum class StreamTableFormat : std::uint8_t { Linear = 0, TwoLevel = 1 };

// CMDQ, EVENTQ and PRIQ share layouts. WR and RD carry the index and, above it, the wrap bit.
inline constexpr auto kQueueBase = layout("SMMU_*Q_BASE", "§6.3.26", 64, {
    {"LOG2SIZE",  4,  0}, {"ADDR",     55,  5}, {"rsv0",     61, 56, FieldKind::MustBeZero}, {"RWA", 62, 62},
    {"rsv1",     63, 63, FieldKind::MustBeZero}});
inline constexpr auto kQueueProd = layout("SMMU_*Q_PROD", "§6.3.27, §6.3.30", 32, {
    {"WR",       19,  0}, {"rsv",      30, 20, FieldKind::MustBeZero}, {"OVFLG", 31, 31}});
inline constexpr auto kQueueCons = layout("SMMU_EVENTQ_CONS, SMMU_PRIQ_CONS", "§6.3.31", 32, {
    {"RD",       19,  0}, {"rsv",      30, 20, FieldKind::MustBeZero}, {"OVACKFLG", 31, 31}});
inline constexpr auto kCmdqCons = layout("SMMU_CMDQ_CONS", "§6.3.28", 32, {
    {"RD",       19,  0}, {"rsv0",     23, 20, FieldKind::MustBeZero}, {"ERR", 30, 24},
    {"rsv1",     31, 31, FieldKind::MustBeZero}});
enum class CommandError : std::uint8_t { None = 0, Illegal = 1, Abort = 2, AtcInvSync = 3 };  // §7.1
inline constexpr unsigned kLargestQueueLg2 = 19;  // §3.5.1

// Page 0, and the event and PRI indexes in page 1. [§6.2.1, §6.2.2]
namespace offset {
inline constexpr std::uint64_t kIdr0 = 0x00, kIdr1 = 0x04, kIdr2 = 0x08, kIdr3 = 0x0c, kIdr4 = 0x10, kIdr5 = 0x14,
    kIidr = 0x18, kAidr = 0x1c, kCr0 = 0x20, kCr0ack = 0x24, kCr1 = 0x28, kCr2 = 0x2c, kStatusr = 0x40, kGbpa = 0x44,
    kIrqCtrl = 0x50, kIrqCtrlack = 0x54, kGerror = 0x60, kGerrorn = 0x64, kGerrorIrqCfg0 = 0x68,
    kGerrorIrqCfg1 = 0x70, kGerrorIrqCfg2 = 0x74, kStrtabBase = 0x80, kStrtabBaseCfg = 0x88, kCmdqBase = 0x90,
    kCmdqProd = 0x98, kCmdqCons = 0x9c, kEventqBase = 0xa0, kEventqIrqCfg0 = 0xb0, kEventqIrqCfg1 = 0xb8,
    kEventqIrqCfg2 = 0xbc, kPriqBase = 0xc0, kPriqIrqCfg0 = 0xd0, kPriqIrqCfg1 = 0xd8, kPriqIrqCfg2 = 0xdc,
    kEventqProd = 0x100a8, kEventqCons = 0x100ac, kPriqProd = 0x100c8, kPriqCons = 0x100cc;
}  // namespace offset
inline constexpr std::uint64_t kRegisterBytes = 0x20000;  // two pages of 64 KiB

// ------------------------------------------------------------------------------------------ Configuration structures

inline constexpr unsigned kSteBytes = 64, kCdBytes = 64, kL1StdBytes = 8, kL1CdBytes = 8;

inline constexpr auto kL1Std = layout("L1STD", "§5.1", 64, {
    {"Span",      4,  0}, {"ign0",      5,  5, FieldKind::Ignored}, {"L2Ptr", 55, 6},
    {"ign1",     63, 56, FieldKind::Ignored}});
inline constexpr unsigned kLargestSpan = 11;                          // larger values behave as 0
inline constexpr std::array<unsigned, 3> kStreamTableSplits{6, 8, 10};  // others behave as 6 [§6.3.25]

inline constexpr auto kSte = layout("STE", "§5.2", 512, {
    {"V",         0,  0}, {"Config",    3,  1}, {"S1Fmt",     5,  4}, {"S1ContextPtr", 55, 6},
    {"ign0",     58, 56, FieldKind::Ignored}, {"S1CDMax", 63, 59},
    {"S1DSS",    65, 64}, {"S1CIR",    67, 66}, {"S1COR",    69, 68}, {"S1CSH",   71, 70}, {"S2HWU", 75, 72},
    {"DRE",      76, 76}, {"CONT",     80, 77}, {"DCP",      81, 81}, {"PPAR",    82, 82}, {"MEV",   83, 83},
    {"ign1",     87, 84, FieldKind::Ignored}, {"S1PIE", 88, 88}, {"S2FWB", 89, 89}, {"S1MPAM", 90, 90},
    {"S1STALLD", 91, 91}, {"EATS",     93, 92}, {"STRW",     95, 94}, {"MemAttr", 99, 96}, {"MTCFG", 100, 100},
    {"ALLOCCFG", 104, 101}, {"ign2",  107, 105, FieldKind::Ignored}, {"SHCFG", 109, 108}, {"NSCFG", 111, 110},
    {"PRIVCFG", 113, 112}, {"INSTCFG", 115, 114}, {"ign3", 127, 116, FieldKind::Ignored},
    {"S2VMID",  143, 128}, {"ign4",    159, 144, FieldKind::Ignored}, {"S2T0SZ", 165, 160}, {"S2SL0", 167, 166},
    {"S2IR0",   169, 168}, {"S2OR0",   171, 170}, {"S2SH0",  173, 172}, {"S2TG",   175, 174}, {"S2PS", 178, 176},
    {"S2AA64",  179, 179}, {"S2ENDI",  180, 180}, {"S2AFFD", 181, 181}, {"S2PTW",  182, 182}, {"S2HD", 183, 183},
    {"S2HA",    184, 184}, {"S2S",     185, 185}, {"S2R",    186, 186}, {"ign5", 191, 187, FieldKind::Ignored},
    {"ign6",    195, 192, FieldKind::Ignored}, {"S2TTB", 243, 196}, {"ign7", 255, 244, FieldKind::Ignored},
    {"ign8",    319, 256, FieldKind::Ignored}, {"ign9", 383, 320, FieldKind::Ignored},
    {"ign10",   447, 384, FieldKind::Ignored}, {"ign11", 511, 448, FieldKind::Ignored}});
// Config: bit 2 clear aborts; with it, bit 0 is stage 1 and bit 1 stage 2.
enum class StreamConfig : std::uint8_t { Abort = 0, Bypass = 4, Stage1 = 5, Stage2 = 6, Nested = 7 };
enum class ContextTableFormat : std::uint8_t { Linear = 0, TwoLevel4K = 1, TwoLevel64K = 2 };  // S1Fmt; 3 as 0
inline constexpr unsigned kCdsPer4KLg2 = 6, kCdsPer64KLg2 = 10;
enum class DefaultSubstream : std::uint8_t { Terminate = 0, Bypass = 1, Substream0 = 2 };       // S1DSS; 3 as 0
enum class AtsMode : std::uint8_t { Disabled = 0, Full = 1, SplitStage = 2 };                   // EATS; 3 as 0
// PRIVCFG and INSTCFG: unprivileged and data, privileged and instruction; 1 as 0.
enum class AttributeOverride : std::uint8_t { Incoming = 0, Off = 2, On = 3 };
inline constexpr unsigned kSmallVmidBits = 8;  // where IDR0.VMID16 = 0; likewise of ASIDs

inline constexpr auto kL1Cd = layout("L1CD", "§5.3", 64, {
    {"V",         0,  0}, {"ign0",     11,  1, FieldKind::Ignored}, {"L2Ptr", 55, 12},
    {"ign1",     63, 56, FieldKind::Ignored}});

inline constexpr auto kCd = layout("CD", "§5.4", 512, {
    {"T0SZ",      5,  0}, {"TG0",       7,  6}, {"IR0",       9,  8}, {"OR0",     11, 10}, {"SH0",   13, 12},
    {"EPD0",     14, 14}, {"ENDI",     15, 15}, {"T1SZ",     21, 16}, {"TG1",     23, 22}, {"IR1",   25, 24},
    {"OR1",      27, 26}, {"SH1",      29, 28}, {"EPD1",     30, 30}, {"V",       31, 31}, {"IPS",   34, 32},
    {"AFFD",     35, 35}, {"WXN",      36, 36}, {"UWXN",     37, 37}, {"TBI0",    38, 38}, {"TBI1",  39, 39},
    {"PAN",      40, 40}, {"AA64",     41, 41}, {"HD",       42, 42}, {"HA",      43, 43}, {"S",     44, 44},
    {"R",        45, 45}, {"A",        46, 46}, {"ASET",     47, 47}, {"ASID",    63, 48},
    {"NSCFG0",   64, 64}, {"HAD0",     65, 65}, {"ign0",     67, 66, FieldKind::Ignored}, {"TTB0", 115, 68},
    {"ign1",    127, 116, FieldKind::Ignored},
    {"NSCFG1",  128, 128}, {"HAD1",   129, 129}, {"ign2",  131, 130, FieldKind::Ignored}, {"TTB1", 179, 132},
    {"ign3",    191, 180, FieldKind::Ignored}, {"MAIR", 255, 192}, {"AMAIR", 319, 256},
    {"ign4",    383, 320, FieldKind::Ignored}, {"ign5", 447, 384, FieldKind::Ignored},
    {"ign6",    511, 448, FieldKind::Ignored}});
// TG0 and S2TG; TG1. Zero: reserved. log2 of the granule.
inline constexpr std::array<std::uint8_t, 4> kGranules0{12, 16, 14, 0};
inline constexpr std::array<std::uint8_t, 4> kGranules1{0, 14, 12, 16};
inline constexpr unsigned kLargestTxsz = 39, kSmallestTxsz48 = 16, kSmallestTxsz52 = 12;  // IDR3.STT = 0 [§5.4.2]
inline constexpr unsigned kLevels = 4, kDescriptorLg2 = 3;
inline constexpr unsigned kTtbLg2 = 4;  // TTB0, TTB1 and S2TTB are counted in 16 bytes
inline constexpr unsigned kSignBit = 55, kTopByteBits = 8;  // VA[55] selects TTB1; TBI ignores the bits above it

// ------------------------------------------------------------------------------------------------------- Descriptors

inline constexpr auto kTableDescriptor = layout("Table descriptor", "DDI 0487 D8.3.1", 64, {
    {"Valid",     0,  0}, {"Table",     1,  1}, {"ign0",     11,  2, FieldKind::Ignored},
    {"OAHigh",   15, 12}, {"OA",       47, 16}, {"ign1",     58, 48, FieldKind::Ignored},
    {"PXNTable", 59, 59}, {"UXNTable", 60, 60}, {"APTableUser", 61, 61}, {"APTableRead", 62, 62}, {"NSTable", 63, 63}});
inline constexpr auto kStage1Leaf = layout("Stage 1 Block or Page descriptor", "DDI 0487 D8.3.2", 64, {
    {"Valid",     0,  0}, {"Page",      1,  1}, {"AttrIndx",  4,  2}, {"NS",       5,  5}, {"APUser",   6,  6},
    {"APRead",    7,  7}, {"SH",        9,  8}, {"AF",       10, 10}, {"nG",      11, 11}, {"OAHigh",  15, 12},
    {"OA",       47, 16}, {"ign0",     49, 48, FieldKind::Ignored}, {"GP", 50, 50}, {"DBM", 51, 51},
    {"Contiguous", 52, 52}, {"PXN",    53, 53}, {"UXN",      54, 54}, {"ign1",    63, 55, FieldKind::Ignored}});
inline constexpr auto kStage2Leaf = layout("Stage 2 Block or Page descriptor", "DDI 0487 D8.3.2", 64, {
    {"Valid",     0,  0}, {"Page",      1,  1}, {"MemAttrLow", 3, 2}, {"MemAttrHigh", 5, 4}, {"S2APRead", 6, 6},
    {"S2APWrite", 7,  7}, {"SH",        9,  8}, {"AF",       10, 10}, {"ign0",    11, 11, FieldKind::Ignored},
    {"OAHigh",   15, 12}, {"OA",       47, 16}, {"ign1",     50, 48, FieldKind::Ignored}, {"DBM", 51, 51},
    {"Contiguous", 52, 52}, {"XN0",    53, 53}, {"XN1",      54, 54}, {"ign2",     63, 55, FieldKind::Ignored}});
inline constexpr std::uint64_t kDeviceMemory = 0;      // MemAttr[3:2]
inline constexpr std::uint64_t kInnerShareable = 3;    // SH
inline constexpr std::uint64_t kNormalWriteBack = 3;   // MemAttr[3:2] and MemAttr[1:0]: outer and inner write-back
inline constexpr std::uint64_t kMairWriteBack = 0xff;  // MAIR attribute: Normal, write-back, allocating [DDI 0487]
inline constexpr std::uint64_t kCacheableWalk = 1;     // IR, OR: write-back, allocating
inline constexpr unsigned kBeyond48Bits = 48;          // of the output bits in OAHigh, with the 64 KiB granule
// Entries that the Contiguous bit joins, log2, at level 3 and above. [DDI 0487 D8.6.1]
constexpr unsigned contiguous_lg2(unsigned granule_lg2, unsigned level_from_leaf) {
  if (granule_lg2 == 14) return level_from_leaf == 0 ? 7 : 5;
  return granule_lg2 == 16 ? 5 : 4;
}

static_assert(kIdr0.is_partition() && kIdr1.is_partition() && kIdr3.is_partition() && kIdr5.is_partition());
static_assert(kAidr.is_partition() && kCr0.is_partition() && kCr1.is_partition() && kCr2.is_partition());
static_assert(kGbpa.is_partition() && kIrqCtrl.is_partition() && kGerror.is_partition() && kIrqCfg0.is_partition());
static_assert(kStrtabBase.is_partition() && kStrtabCfg.is_partition() && kQueueBase.is_partition());
static_assert(kQueueProd.is_partition() && kQueueCons.is_partition() && kCmdqCons.is_partition());
static_assert(kL1Std.is_partition() && kSte.is_partition() && kL1Cd.is_partition() && kCd.is_partition());
static_assert(kTableDescriptor.is_partition() && kStage1Leaf.is_partition() && kStage2Leaf.is_partition());

// ---------------------------------------------------------------------------------------------------------- Commands

inline constexpr auto kCommand = layout("Command", "§4.1", 128, {
    {"OP",        7,  0}, {"body0",    63,  8}, {"body1", 127, 64}});
inline constexpr auto kPrefetch = layout("CMD_PREFETCH_*", "§4.2", 128, {
    {"OP",        7,  0}, {"ign0",      9,  8, FieldKind::Ignored}, {"SSec", 10, 10}, {"SSV", 11, 11},
    {"SubstreamID", 31, 12}, {"StreamID", 63, 32},
    {"Size",     68, 64}, {"ign1",     75, 69, FieldKind::Ignored}, {"Address", 127, 76}});
inline constexpr auto kCfgi = layout("CMD_CFGI_*", "§4.3", 128, {
    {"OP",        7,  0}, {"ign0",      9,  8, FieldKind::Ignored}, {"SSec", 10, 10},
    {"ign1",     11, 11, FieldKind::Ignored}, {"SubstreamID", 31, 12}, {"StreamID", 63, 32},
    {"Range",    68, 64}, {"ign2",    127, 69, FieldKind::Ignored}});  // bit 64 is Leaf except in STE_RANGE
inline constexpr auto kTlbi = layout("CMD_TLBI_*", "§4.4", 128, {
    {"OP",        7,  0}, {"ign0",     11,  8, FieldKind::Ignored}, {"NUM", 16, 12},
    {"ign1",     19, 17, FieldKind::Ignored}, {"SCALE", 24, 20}, {"ign2", 31, 25, FieldKind::Ignored},
    {"VMID",     47, 32}, {"ASID",     63, 48},
    {"Leaf",     64, 64}, {"ign3",     71, 65, FieldKind::Ignored}, {"TTL", 73, 72}, {"TG", 75, 74},
    {"Address", 127, 76}});
inline constexpr std::array<std::uint8_t, 4> kTlbiGranules{0, 12, 14, 16};  // TG; 0: no range
inline constexpr auto kAtcInv = layout("CMD_ATC_INV", "§4.5.1", 128, {
    {"OP",        7,  0}, {"ign0",      8,  8, FieldKind::Ignored}, {"Global", 9, 9}, {"SSec", 10, 10}, {"SSV", 11, 11},
    {"SubstreamID", 31, 12}, {"StreamID", 63, 32},
    {"Size",     69, 64}, {"ign1",     75, 70, FieldKind::Ignored}, {"Address", 127, 76}});
inline constexpr unsigned kAtcInvAll = 52;  // Size: 2^64 bytes
inline constexpr auto kPriResp = layout("CMD_PRI_RESP", "§4.5.2", 128, {
    {"OP",        7,  0}, {"ign0",      9,  8, FieldKind::Ignored}, {"SSec", 10, 10}, {"SSV", 11, 11},
    {"SubstreamID", 31, 12}, {"StreamID", 63, 32},
    {"PRGIndex", 72, 64}, {"ign1",     75, 73, FieldKind::Ignored}, {"Resp", 77, 76},
    {"ign2",    127, 78, FieldKind::Ignored}});
enum class PageResponseCode : std::uint8_t { Failure = 0, Invalid = 1, Success = 2, Reserved = 3 };
inline constexpr auto kResume = layout("CMD_RESUME, CMD_STALL_TERM", "§4.7.1", 128, {
    {"OP",        7,  0}, {"ign0",      9,  8, FieldKind::Ignored}, {"SSec", 10, 10},
    {"ign1",     11, 11, FieldKind::Ignored}, {"Ac", 12, 12}, {"Ab", 13, 13}, {"ign2", 31, 14, FieldKind::Ignored},
    {"StreamID", 63, 32}, {"STAG",     79, 64}, {"ign3",    127, 80, FieldKind::Ignored}});
inline constexpr auto kSync = layout("CMD_SYNC", "§4.7.3", 128, {
    {"OP",        7,  0}, {"ign0",     11,  8, FieldKind::Ignored}, {"CS", 13, 12},
    {"ign1",     21, 14, FieldKind::Ignored}, {"MSH", 23, 22}, {"MSIAttr", 27, 24},
    {"ign2",     31, 28, FieldKind::Ignored}, {"MSIData", 63, 32},
    {"ign3",     65, 64, FieldKind::Ignored}, {"MSIAddress", 119, 66}, {"ign4", 127, 120, FieldKind::Ignored}});
enum class SyncSignal : std::uint8_t { None = 0, Interrupt = 1, Event = 2, Reserved = 3 };
static_assert(kCommand.is_partition() && kPrefetch.is_partition() && kCfgi.is_partition() && kTlbi.is_partition());
static_assert(kAtcInv.is_partition() && kPriResp.is_partition() && kResume.is_partition() && kSync.is_partition());

inline constexpr unsigned kCommandBytes = 16;
enum Opcode : std::uint8_t {
  kCmdPrefetchConfig = 0x01, kCmdPrefetchAddr = 0x02, kCmdCfgiSte = 0x03, kCmdCfgiSteRange = 0x04, kCmdCfgiCd = 0x05,
  kCmdCfgiCdAll = 0x06, kCmdTlbiNhAll = 0x10, kCmdTlbiNhAsid = 0x11, kCmdTlbiNhVa = 0x12, kCmdTlbiNhVaa = 0x13,
  kCmdTlbiS12Vmall = 0x28, kCmdTlbiS2Ipa = 0x2a, kCmdTlbiNsnhAll = 0x30, kCmdAtcInv = 0x40, kCmdPriResp = 0x41,
  kCmdResume = 0x44, kCmdStallTerm = 0x45, kCmdSync = 0x46,
};
// Opcodes of Secure, Realm, EL2 and EL3 state are CERROR_ILL here, as on any unit without them.
inline constexpr std::array<CommandRow, 18> kCommandRows{{
    {kCmdPrefetchConfig, "CMD_PREFETCH_CONFIG", "§4.2.1"},
    {kCmdPrefetchAddr,   "CMD_PREFETCH_ADDR",   "§4.2.2"},
    {kCmdCfgiSte,        "CMD_CFGI_STE",        "§4.3.1"},
    {kCmdCfgiSteRange,   "CMD_CFGI_STE_RANGE",  "§4.3.2"},
    {kCmdCfgiCd,         "CMD_CFGI_CD",         "§4.3.3"},
    {kCmdCfgiCdAll,      "CMD_CFGI_CD_ALL",     "§4.3.4"},
    {kCmdTlbiNhAll,      "CMD_TLBI_NH_ALL",     "§4.4.2.1"},
    {kCmdTlbiNhAsid,     "CMD_TLBI_NH_ASID",    "§4.4.2.2"},
    {kCmdTlbiNhVa,       "CMD_TLBI_NH_VA",      "§4.4.2.4"},
    {kCmdTlbiNhVaa,      "CMD_TLBI_NH_VAA",     "§4.4.2.3"},
    {kCmdTlbiS12Vmall,   "CMD_TLBI_S12_VMALL",  "§4.4.3.2"},
    {kCmdTlbiS2Ipa,      "CMD_TLBI_S2_IPA",     "§4.4.3.1"},
    {kCmdTlbiNsnhAll,    "CMD_TLBI_NSNH_ALL",   "§4.4.4.1"},
    {kCmdAtcInv,         "CMD_ATC_INV",         "§4.5.1"},
    {kCmdPriResp,        "CMD_PRI_RESP",        "§4.5.2"},
    {kCmdResume,         "CMD_RESUME",          "§4.7.1"},
    {kCmdStallTerm,      "CMD_STALL_TERM",      "§4.7.2"},
    {kCmdSync,           "CMD_SYNC",            "§4.7.3"},
}};

// ------------------------------------------------------------------------------------------------------------- Events

// Every record; which fields mean something depends on the event. [§7.3]
inline constexpr auto kEvent = layout("Event record", "§7.3", 256, {
    {"ID",        7,  0}, {"rsv0",     10,  8, FieldKind::MustBeZero}, {"SSV", 11, 11}, {"SubstreamID", 31, 12},
    {"StreamID", 63, 32},
    {"STAG",     79, 64}, {"rsv1",     94, 80, FieldKind::MustBeZero}, {"Stall", 95, 95},
    {"rsv2",     96, 96, FieldKind::MustBeZero}, {"PnU", 97, 97}, {"InD", 98, 98}, {"RnW", 99, 99},
    {"rsv3",    102, 100, FieldKind::MustBeZero}, {"S2", 103, 103}, {"CLASS", 105, 104},
    {"rsv4",    107, 106, FieldKind::MustBeZero}, {"TTRnW", 108, 108}, {"rsv5", 127, 109, FieldKind::MustBeZero},
    {"InputAddr", 191, 128},
    {"FetchLow", 203, 192}, {"Page",  247, 204}, {"rsv6",  255, 248, FieldKind::MustBeZero}});
// IPA[55:12] stands in Page; FetchAddr[55:3] in Page and FetchLow.
static_assert(kEvent.is_partition());
inline constexpr unsigned kEventBytes = 32;
enum class FaultingAccess : std::uint8_t { ContextDescriptor = 0, Table = 1, Input = 2 };  // CLASS

inline constexpr auto kPageRequest = layout("PRI queue entry", "§8", 128, {
    {"StreamID", 31,  0}, {"SubstreamID", 51, 32}, {"ign0",  57, 52, FieldKind::Ignored}, {"Priv", 58, 58},
    {"X",        59, 59}, {"R",        60, 60}, {"W",        61, 61}, {"Last",    62, 62}, {"SSV",   63, 63},
    {"PRGIndex", 72, 64}, {"ign1",     75, 73, FieldKind::Ignored}, {"Page", 127, 76}});
static_assert(kPageRequest.is_partition());
inline constexpr unsigned kPageRequestBytes = 16;

// Events that need what is not modelled have no row: F_UUT, F_TLB_CONFLICT, F_CFG_CONFLICT, E_PAGE_REQUEST,
// F_VMS_FETCH. Code 0 marks transactions that are terminated without an event.
enum class Qualified : bool { No, Yes };  // Yes: CD.R or STE.S2R may suppress the record
namespace detail {
constexpr FaultRow row(unsigned code, std::string_view name, FaultClass kind, Qualified qualified,
                       std::string_view citation, std::string_view meaning) {
  return {code, name, kind, qualified == Qualified::Yes, citation, meaning};
}
}  // namespace detail
inline constexpr unsigned kNoEvent = 0;

inline constexpr std::array kFaultRows{
    detail::row(kNoEvent, "abort",     FaultClass::Blocked,           Qualified::Yes, "§5.2 Config, §6.3.14 ABORT", "configured to abort; no event"),
    detail::row(kNoEvent, "ATS error", FaultClass::ContextInvalid,    Qualified::Yes, "§3.9.1", "ATS request or translated transaction met a bad configuration; no event"),
    detail::row(0x02, "C_BAD_STREAMID",     FaultClass::ContextNotPresent, Qualified::Yes, "§7.3.3",  "StreamID out of range"),
    detail::row(0x03, "F_STE_FETCH",        FaultClass::MemoryAccess,      Qualified::No,  "§7.3.4",  "STE or L1STD cannot be read"),
    detail::row(0x04, "C_BAD_STE",          FaultClass::ContextInvalid,    Qualified::No,  "§7.3.5",  "STE invalid or ILLEGAL"),
    detail::row(0x05, "F_BAD_ATS_TREQ",     FaultClass::Blocked,           Qualified::No,  "§7.3.6",  "ATS translation request not allowed"),
    detail::row(0x06, "F_STREAM_DISABLED",  FaultClass::Blocked,           Qualified::No,  "§7.3.7",  "transactions without substream, or substream 0, disabled"),
    detail::row(0x07, "F_TRANSL_FORBIDDEN", FaultClass::Blocked,           Qualified::No,  "§7.3.8",  "translated transaction not allowed"),
    detail::row(0x08, "C_BAD_SUBSTREAMID",  FaultClass::ContextInvalid,    Qualified::No,  "§7.3.9",  "SubstreamID not usable"),
    detail::row(0x09, "F_CD_FETCH",         FaultClass::MemoryAccess,      Qualified::No,  "§7.3.10", "CD or L1CD cannot be read"),
    detail::row(0x0a, "C_BAD_CD",           FaultClass::ContextInvalid,    Qualified::No,  "§7.3.11", "CD invalid or ILLEGAL"),
    detail::row(0x0b, "F_WALK_EABT",        FaultClass::MemoryAccess,      Qualified::No,  "§7.3.12", "translation table descriptor cannot be read or updated"),
    detail::row(0x10, "F_TRANSLATION",      FaultClass::NotPresent,        Qualified::Yes, "§7.3.13", "no translation"),
    detail::row(0x11, "F_ADDR_SIZE",        FaultClass::AddressSize,       Qualified::Yes, "§7.3.14", "output address too large"),
    detail::row(0x12, "F_ACCESS",           FaultClass::Permission,        Qualified::Yes, "§7.3.15", "access flag clear"),
    detail::row(0x13, "F_PERMISSION",       FaultClass::Permission,        Qualified::Yes, "§7.3.16", "access not permitted"),
};
// clang-format on

namespace detail {
template <FieldName kName>
consteval const FaultRow* find_fault() {
  for (const FaultRow& row : kFaultRows)
    if (row.name == kName.view()) return &row;
  throw "no such event";
}
}  // namespace detail
template <FieldName kName>
inline constexpr const FaultRow* kFault = detail::find_fault<kName>();

}  // namespace iommu::smmuv3
