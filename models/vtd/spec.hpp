// SPDX-License-Identifier: Apache-2.0
// Intel VT-d, as data: register and structure layouts, fault reasons, invalidation descriptors. Nothing here decides.
// Citations name sections of the pinned revision. Registers are cited by their name in its chapter "Register
// Descriptions"; fault reasons by their condition in its table of fault reason encodings.
//
// Assumptions, where the sources at hand leave a choice open (each is referred to by tag where it is used):
//   ASSUMPTION(vtd-001): in one paging entry, permission is checked before reserved bits.
//   ASSUMPTION(vtd-002): a second-stage entry with R = W = 0 is SSS.2 in scalable mode; a single missing right SGN.6/7.
//   ASSUMPTION(vtd-003): SFS.9 and SSS.5 (mark needed, walk not snooped) arise only where page-walk snooping can be
//                        chosen at all (ECAP.SMPWCS = 1) and the PASID-table entry does not choose it.
//   ASSUMPTION(vtd-004): reads, and writes that are not four bytes, of the interrupt range without PASID are
//                        LGN.4/SGN.8.
//   ASSUMPTION(vtd-005): every request in abort-DMA mode is reported as RTA.4.
//   ASSUMPTION(vtd-006): a RID_PASID beyond the PASID directory is SCT.9, as the reason texts of
//                        linux drivers/iommu/intel/dmar.c have it; others report SCT.4.
//   ASSUMPTION(vtd-007): access errors of PASID structures (SPD.1, SPT.1) are not qualified faults.
//
// What the model leaves out:
//   DEVIATION(vtd-001):  FSTS_REG.ICE and ITE never arise: endpoints answer every device-TLB invalidation.
//   DEVIATION(vtd-002):  no page requests and no requests to execute: ECAP.PRS = ECAP.ERS = 0. A read that asks to
//                        execute is checked as a read; NXE and XD deny nothing.
//   DEVIATION(vtd-003):  interrupt requests are not remapped: they pass unchanged.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "sim/base/bits.hpp"
#include "sim/translation/iommu_core.hpp"
#include "sim/translation/request.hpp"

namespace iommu::vtd {

inline constexpr std::string_view kSpec = "Intel VT-d 4.1";

// clang-format off

// ---------------------------------------------------------------------------------------------------------- Registers

inline constexpr auto kVer = layout("VER_REG", "Register Descriptions, Version Register", 32, {
    {"MIN", 3, 0}, {"MAX", 7, 4}, {"rsv", 31, 8, FieldKind::MustBeZero}});

inline constexpr auto kCap = layout("CAP_REG", "Register Descriptions, Capability Register", 64, {
    {"ND",       2,  0}, {"AFL",     3,  3}, {"RWBF",    4,  4}, {"PLMR",  5,  5}, {"PHMR", 6, 6}, {"CM", 7, 7},
    {"SAGAW",   12,  8}, {"rsv0",   15, 13, FieldKind::MustBeZero},
    {"MGAW",    21, 16}, {"ZLR",    22, 22}, {"dep",    23, 23, FieldKind::MustBeZero},
    {"FRO",     33, 24}, {"SSLPS",  37, 34}, {"rsv1",   38, 38, FieldKind::MustBeZero}, {"PSI", 39, 39},
    {"NFR",     47, 40}, {"MAMV",   53, 48}, {"DWD",    54, 54}, {"DRD",  55, 55},
    {"FS1GP",   56, 56}, {"rsv2",   58, 57, FieldKind::MustBeZero}, {"PI", 59, 59},
    {"FS5LP",   60, 60}, {"ECMDS",  61, 61}, {"ESIRTPS", 62, 62}, {"ESRTPS", 63, 63}});

inline constexpr auto kEcap = layout("ECAP_REG", "Register Descriptions, Extended Capability Register", 64, {
    {"C",       0,  0}, {"QI",      1,  1}, {"DT",      2,  2}, {"IR",    3,  3}, {"EIM",  4,  4},
    {"dep0",    5,  5, FieldKind::MustBeZero}, {"PT", 6, 6}, {"SC", 7, 7},
    {"IRO",    17,  8}, {"rsv0",   19, 18, FieldKind::MustBeZero}, {"MHMV", 23, 20},
    {"dep1",   24, 24, FieldKind::MustBeZero}, {"MTS", 25, 25}, {"NEST", 26, 26},
    {"dep2",   28, 27, FieldKind::MustBeZero}, {"PRS", 29, 29}, {"ERS", 30, 30}, {"SRS", 31, 31},
    {"dep3",   32, 32, FieldKind::MustBeZero}, {"NWFS", 33, 33}, {"EAFS", 34, 34}, {"PSS", 39, 35},
    {"PASID",  40, 40}, {"DIT",    41, 41}, {"PDS",   42, 42}, {"SMTS", 43, 43}, {"VCS",  44, 44},
    {"SSADS",  45, 45}, {"SSTS",   46, 46}, {"FSTS",  47, 47}, {"SMPWCS", 48, 48}, {"RPS", 49, 49},
    {"rsv1",   50, 50, FieldKind::MustBeZero}, {"PMS", 51, 51}, {"ADMS", 52, 52}, {"RPRIVS", 53, 53},
    {"rsv2",   63, 54, FieldKind::MustBeZero}});

inline constexpr auto kGcmd = layout("GCMD_REG", "Register Descriptions, Global Command Register", 32, {
    {"rsv",    22,  0, FieldKind::MustBeZero}, {"CFI", 23, 23}, {"SIRTP", 24, 24}, {"IRE", 25, 25}, {"QIE", 26, 26},
    {"WBF",    27, 27}, {"EAFL",   28, 28}, {"SFL",   29, 29}, {"SRTP", 30, 30}, {"TE",   31, 31}});

inline constexpr auto kGsts = layout("GSTS_REG", "Register Descriptions, Global Status Register", 32, {
    {"rsv",    22,  0, FieldKind::MustBeZero}, {"CFIS", 23, 23}, {"IRTPS", 24, 24}, {"IRES", 25, 25}, {"QIES", 26, 26},
    {"WBFS",   27, 27}, {"AFLS",   28, 28}, {"FLS",   29, 29}, {"RTPS", 30, 30}, {"TES",  31, 31}});

inline constexpr auto kRtaddr = layout("RTADDR_REG", "Register Descriptions, Root Table Address Register", 64, {
    {"rsv",     9,  0, FieldKind::MustBeZero}, {"TTM", 11, 10}, {"RTA", 63, 12}});
enum class TableMode : std::uint8_t { Legacy = 0, Scalable = 1, Reserved = 2, Abort = 3 };

inline constexpr auto kCcmd = layout("CCMD_REG", "Register Descriptions, Context Command Register", 64, {
    {"DID",    15,  0}, {"SID",    31, 16}, {"FM",    33, 32}, {"rsv",  58, 34, FieldKind::MustBeZero},
    {"CAIG",   60, 59}, {"CIRG",   62, 61}, {"ICC",   63, 63}});

inline constexpr auto kFsts = layout("FSTS_REG", "Register Descriptions, Fault Status Register", 32, {
    {"PFO",     0,  0}, {"PPF",     1,  1}, {"AFO",    2,  2}, {"APF",   3,  3}, {"IQE",   4,  4}, {"ICE",  5,  5},
    {"ITE",     6,  6}, {"dep",     7,  7, FieldKind::MustBeZero}, {"FRI", 15, 8},
    {"rsv",    31, 16, FieldKind::MustBeZero}});

// FECTL_REG and IECTL_REG; FEDATA/IEDATA, FEADDR/IEADDR, FEUADDR/IEUADDR likewise share layouts.
inline constexpr auto kEventControl = layout("FECTL_REG, IECTL_REG", "Register Descriptions, Fault Event Control Register", 32, {
    {"rsv",    29,  0, FieldKind::MustBeZero}, {"IP", 30, 30}, {"IM", 31, 31}});
inline constexpr auto kEventData = layout("FEDATA_REG, IEDATA_REG", "Register Descriptions, Fault Event Data Register", 32, {
    {"IMD",    15,  0}, {"EIMD",   31, 16}});
inline constexpr auto kEventAddress = layout("FEADDR_REG, IEADDR_REG", "Register Descriptions, Fault Event Address Register", 32, {
    {"rsv",     1,  0, FieldKind::MustBeZero}, {"MA", 31, 2}});
inline constexpr auto kEventUpperAddress = layout("FEUADDR_REG, IEUADDR_REG", "Register Descriptions, Fault Event Upper Address Register", 32, {
    {"MUA",    31,  0}});

inline constexpr auto kPmen = layout("PMEN_REG", "Register Descriptions, Protected Memory Enable Register", 32, {
    {"PRS",     0,  0}, {"rsv",    30,  1, FieldKind::MustBeZero}, {"EPM", 31, 31}});

inline constexpr auto kIqh = layout("IQH_REG", "Register Descriptions, Invalidation Queue Head Register", 64, {
    {"rsv0",    3,  0, FieldKind::MustBeZero}, {"QH", 18, 4}, {"rsv1", 63, 19, FieldKind::MustBeZero}});
inline constexpr auto kIqt = layout("IQT_REG", "Register Descriptions, Invalidation Queue Tail Register", 64, {
    {"rsv0",    3,  0, FieldKind::MustBeZero}, {"QT", 18, 4}, {"rsv1", 63, 19, FieldKind::MustBeZero}});
inline constexpr auto kIqa = layout("IQA_REG", "Register Descriptions, Invalidation Queue Address Register", 64, {
    {"QS",      2,  0}, {"rsv",    10,  3, FieldKind::MustBeZero}, {"DW", 11, 11}, {"IQA", 63, 12}});
inline constexpr auto kIcs = layout("ICS_REG", "Register Descriptions, Invalidation Completion Status Register", 32, {
    {"IWC",     0,  0}, {"rsv",    31,  1, FieldKind::MustBeZero}});
inline constexpr auto kIqercd = layout("IQERCD_REG", "Register Descriptions, Invalidation Queue Error Record Register", 64, {
    {"IQEI",    3,  0}, {"rsv",    31,  4, FieldKind::MustBeZero}, {"ITESID", 47, 32}, {"ICESID", 63, 48}});
// IQERCD_REG.IQEI: why the queue stopped.
enum class QueueError : std::uint8_t {
  None = 0, InvalidTail = 1, FetchFailed = 2, InvalidType = 3, Reserved = 4, InvalidWidth = 5, MisalignedTail = 6,
  InvalidMode = 7,
};

inline constexpr auto kIrta = layout("IRTA_REG", "Register Descriptions, Interrupt Remapping Table Address Register", 64, {
    {"S",       3,  0}, {"rsv",    10,  4, FieldKind::MustBeZero}, {"EIME", 11, 11}, {"IRTA", 63, 12}});

inline constexpr auto kIva = layout("IVA_REG", "Register Descriptions, Invalidate Address Register", 64, {
    {"AM",      5,  0}, {"IH",      6,  6}, {"rsv",   11,  7, FieldKind::MustBeZero}, {"ADDR", 63, 12}});
inline constexpr auto kIotlb = layout("IOTLB_REG", "Register Descriptions, IOTLB Invalidate Register", 64, {
    {"rsv0",   31,  0, FieldKind::MustBeZero}, {"DID", 47, 32}, {"DW", 48, 48}, {"DR", 49, 49},
    {"rsv1",   56, 50, FieldKind::MustBeZero}, {"IAIG", 58, 57}, {"rsv2", 59, 59, FieldKind::MustBeZero},
    {"IIRG",   61, 60}, {"rsv3",   62, 62, FieldKind::MustBeZero}, {"IVT", 63, 63}});
// CCMD_REG and context-cache descriptors; IOTLB_REG and IOTLB descriptors. Zero is reserved.
enum class ContextGranularity : std::uint8_t { Global = 1, Domain = 2, Device = 3 };
enum class IotlbGranularity : std::uint8_t { Global = 1, Domain = 2, Page = 3 };

inline constexpr auto kFrcd = layout("FRCD_REG", "Register Descriptions, Fault Recording Registers", 128, {
    {"rsv0",   11,  0, FieldKind::MustBeZero}, {"FI", 63, 12},
    {"SID",    79, 64}, {"rsv1",   91, 80, FieldKind::MustBeZero}, {"T2", 92, 92}, {"PRIV", 93, 93}, {"EXE", 94, 94},
    {"PP",     95, 95}, {"FR",    103, 96}, {"PV",  123, 104}, {"AT", 125, 124}, {"T1", 126, 126}, {"F", 127, 127}});

// Register offsets. FRCD and IVA/IOTLB stand where CAP.FRO and ECAP.IRO say, in units of 16 bytes.
namespace offset {
inline constexpr std::uint64_t kVer = 0x00, kCap = 0x08, kEcap = 0x10, kGcmd = 0x18, kGsts = 0x1c, kRtaddr = 0x20,
    kCcmd = 0x28, kFsts = 0x34, kFectl = 0x38, kFedata = 0x3c, kFeaddr = 0x40, kFeuaddr = 0x44, kAflog = 0x58,
    kPmen = 0x64, kPlmbase = 0x68, kPlmlimit = 0x6c, kPhmbase = 0x70, kPhmlimit = 0x78, kIqh = 0x80, kIqt = 0x88,
    kIqa = 0x90, kIcs = 0x9c, kIectl = 0xa0, kIedata = 0xa4, kIeaddr = 0xa8, kIeuaddr = 0xac, kIqercd = 0xb0,
    kIrta = 0xb8;
inline constexpr std::uint64_t kUnit = 16;            // of CAP.FRO and ECAP.IRO
inline constexpr std::uint64_t kIvaInIotlbBlock = 0, kIotlbInIotlbBlock = 8;
}  // namespace offset

// --------------------------------------------------------------------------------------------------------- Structures

inline constexpr unsigned kRootEntryBytes = 16, kContextEntryBytes = 16, kScalableContextEntryBytes = 32,
    kPasidDirectoryEntryBytes = 8, kPasidEntryBytes = 64, kPasidsPerTableLg2 = 6;

inline constexpr auto kRootEntry = layout("Root Entry", "§9.1", 128, {
    {"P",       0,  0}, {"rsv0",   11,  1, FieldKind::MustBeZero}, {"CTP", 63, 12},
    {"rsv1",  127, 64, FieldKind::MustBeZero}});

// One half: lower for devfn 0 to 127, upper for 128 to 255.
inline constexpr auto kScalableRootEntry = layout("Scalable-Mode Root Entry (half)", "§9.2", 64, {
    {"P",       0,  0}, {"rsv",    11,  1, FieldKind::MustBeZero}, {"CTP", 63, 12}});

inline constexpr auto kContextEntry = layout("Context Entry", "§9.3", 128, {
    {"P",       0,  0}, {"FPD",     1,  1}, {"TT",     3,  2}, {"rsv0", 11,  4, FieldKind::MustBeZero},
    {"SSPTPTR", 63, 12},
    {"AW",     66, 64}, {"ign",    70, 67, FieldKind::Ignored}, {"rsv1", 71, 71, FieldKind::MustBeZero},
    {"DID",    87, 72}, {"rsv2",  127, 88, FieldKind::MustBeZero}});
enum class TranslationType : std::uint8_t { Untranslated = 0, DeviceTlb = 1, PassThrough = 2 };

inline constexpr auto kScalableContextEntry = layout("Scalable-Mode Context Entry", "§9.4", 256, {
    {"P",       0,  0}, {"FPD",     1,  1}, {"DTE",    2,  2}, {"PASIDE", 3, 3}, {"PRE",  4,  4},
    {"rsv0",    8,  5, FieldKind::MustBeZero}, {"PDTS", 11, 9}, {"PASIDDIRPTR", 63, 12},
    {"RID_PASID", 83, 64}, {"RID_PRIV", 84, 84}, {"rsv1", 127, 85, FieldKind::MustBeZero},
    {"rsv2",  191, 128, FieldKind::MustBeZero}, {"rsv3", 255, 192, FieldKind::MustBeZero}});
inline constexpr unsigned kSmallestDirectoryLg2 = 7;  // a directory has 2^(PDTS + 7) entries

inline constexpr auto kPasidDirectoryEntry = layout("Scalable-Mode PASID Directory Entry", "§9.5", 64, {
    {"P",       0,  0}, {"FPD",     1,  1}, {"rsv",   11,  2, FieldKind::MustBeZero}, {"SMPTBLPTR", 63, 12}});

inline constexpr auto kPasidEntry = layout("Scalable-Mode PASID Table Entry", "§9.6", 512, {
    {"P",       0,  0}, {"FPD",     1,  1}, {"AW",     4,  2}, {"rsv0",  5,  5, FieldKind::MustBeZero}, {"PGTT", 8, 6},
    {"SSADE",   9,  9}, {"rsv1",   11, 10, FieldKind::MustBeZero}, {"SSPTPTR", 63, 12},
    {"DID",    79, 64}, {"rsv2",   86, 80, FieldKind::MustBeZero}, {"PWSNP", 87, 87}, {"PGSNP", 88, 88},
    {"CD",     89, 89}, {"EMTE",   90, 90}, {"rsv3",   95, 91, FieldKind::MustBeZero}, {"PAT", 127, 96},
    {"SRE",   128, 128}, {"rsv4", 129, 129, FieldKind::MustBeZero}, {"FSPM", 131, 130}, {"WPE", 132, 132},
    {"NXE",   133, 133, FieldKind::Ignored}, {"SMEP", 134, 134, FieldKind::Ignored}, {"EAFE", 135, 135},
    {"rsv5",  139, 136, FieldKind::MustBeZero}, {"FSPTPTR", 191, 140},
    {"rsv6",  255, 192, FieldKind::MustBeZero}, {"rsv7", 319, 256, FieldKind::MustBeZero},
    {"rsv8",  383, 320, FieldKind::MustBeZero}, {"rsv9", 447, 384, FieldKind::MustBeZero},
    {"rsv10", 511, 448, FieldKind::MustBeZero}});
enum class PasidTranslation : std::uint8_t { FirstStage = 1, SecondStage = 2, Nested = 3, PassThrough = 4 };  // PGTT
enum class FirstStageMode : std::uint8_t { FourLevel = 0, FiveLevel = 1 };                                    // FSPM

// AW of context and PASID entries, and the bits of CAP.SAGAW: AW n is a table of n + 2 levels.
inline constexpr unsigned kLevelsOfAw0 = 2;

// First stage. A leaf above the lowest level has PS = 1 (and PAT at bit 12); address bits below the page are reserved.
inline constexpr auto kFirstStageTable = layout("FS paging entry referencing a table", "§9.7", 64, {
    {"P",       0,  0}, {"RW",      1,  1}, {"US",     2,  2}, {"PWT",   3,  3, FieldKind::Ignored},
    {"PCD",     4,  4, FieldKind::Ignored}, {"A", 5, 5}, {"ign0", 6, 6, FieldKind::Ignored},
    {"PS",      7,  7, FieldKind::MustBeZero}, {"ign1", 9, 8, FieldKind::Ignored}, {"EA", 10, 10},
    {"ign2",   11, 11, FieldKind::Ignored}, {"ADDR", 51, 12}, {"ign3", 62, 52, FieldKind::Ignored},
    {"XD",     63, 63, FieldKind::Ignored}});
inline constexpr auto kFirstStagePage = layout("FS paging entry mapping a page", "§9.7", 64, {
    {"P",       0,  0}, {"RW",      1,  1}, {"US",     2,  2}, {"PWT",   3,  3, FieldKind::Ignored},
    {"PCD",     4,  4, FieldKind::Ignored}, {"A", 5, 5}, {"D", 6, 6}, {"PS", 7, 7},  // PAT in a 4 KiB page
    {"ign0",    9,  8, FieldKind::Ignored}, {"EA", 10, 10}, {"ign1", 11, 11, FieldKind::Ignored},
    {"ADDR",   51, 12}, {"ign2",   62, 52, FieldKind::Ignored}, {"XD", 63, 63, FieldKind::Ignored}});
// PAT of a page above the lowest level: the one bit below the page that is not reserved.
inline constexpr auto kFirstStageLargePage = layout("FS paging entry mapping a large page, low bits", "§9.7", 64, {
    {"attributes", 11, 0}, {"PAT", 12, 12, FieldKind::Ignored}, {"ADDR", 51, 13}, {"ign", 63, 52, FieldKind::Ignored}});

// Second stage. There is no present bit: an entry with R = W = 0 is not present. Xen keeps a contiguity marker in bits
// 52 to 55, which hardware ignores.
inline constexpr auto kSecondStageTable = layout("SS paging entry referencing a table", "§9.8", 64, {
    {"R",       0,  0}, {"W",       1,  1}, {"X",      2,  2, FieldKind::Ignored}, {"ign0", 6, 3, FieldKind::Ignored},
    {"PS",      7,  7, FieldKind::MustBeZero}, {"A", 8, 8}, {"ign1", 10, 9, FieldKind::Ignored},
    {"rsv0",   11, 11, FieldKind::MustBeZero}, {"ADDR", 51, 12}, {"ign2", 61, 52, FieldKind::Ignored},
    {"rsv1",   62, 62, FieldKind::MustBeZero}, {"ign3", 63, 63, FieldKind::Ignored}});
// SNP is reserved where ECAP.SC = 0, TM where ECAP.DT = 0.
inline constexpr auto kSecondStagePage = layout("SS paging entry mapping a page", "§9.8", 64, {
    {"R",       0,  0}, {"W",       1,  1}, {"X",      2,  2, FieldKind::Ignored}, {"EMT",  5, 3, FieldKind::Ignored},
    {"IPAT",    6,  6, FieldKind::Ignored}, {"PS", 7, 7}, {"A", 8, 8}, {"D", 9, 9},  // PS ignored in a 4 KiB page
    {"ign0",   10, 10, FieldKind::Ignored}, {"SNP", 11, 11}, {"ADDR", 51, 12}, {"ign1", 61, 52, FieldKind::Ignored},
    {"TM",     62, 62}, {"ign2",   63, 63, FieldKind::Ignored}});

static_assert(kVer.is_partition() && kCap.is_partition() && kEcap.is_partition() && kGcmd.is_partition());
static_assert(kGsts.is_partition() && kRtaddr.is_partition() && kCcmd.is_partition() && kFsts.is_partition());
static_assert(kEventControl.is_partition() && kEventData.is_partition() && kEventAddress.is_partition());
static_assert(kEventUpperAddress.is_partition() && kPmen.is_partition() && kIqh.is_partition() && kIqt.is_partition());
static_assert(kIqa.is_partition() && kIcs.is_partition() && kIqercd.is_partition() && kIrta.is_partition());
static_assert(kIva.is_partition() && kIotlb.is_partition() && kFrcd.is_partition());
static_assert(kRootEntry.is_partition() && kScalableRootEntry.is_partition() && kContextEntry.is_partition());
static_assert(kScalableContextEntry.is_partition() && kPasidDirectoryEntry.is_partition() && kPasidEntry.is_partition());
static_assert(kFirstStageTable.is_partition() && kFirstStagePage.is_partition() && kFirstStageLargePage.is_partition());
static_assert(kSecondStageTable.is_partition() && kSecondStagePage.is_partition());

// Addresses that hardware takes for interrupt requests. [§3.14]
inline constexpr std::uint64_t kInterruptFirst = 0xfee00000, kInterruptLast = 0xfeefffff;

// ------------------------------------------------------------------------------------------- Invalidation descriptors
// 128 bits, or 256 (IQA_REG.DW = 1) whose upper half is reserved. The type's upper bits stand at 11:9.

inline constexpr auto kDescriptor = layout("Invalidation descriptor", "§6.5.2", 128, {
    {"TYPE",    3,  0}, {"body0",   8,  4}, {"TYPE_HI", 11, 9}, {"body1", 63, 12}, {"body2", 127, 64}});
inline constexpr auto kContextCacheDescriptor = layout("Context-cache Invalidate", "§6.5.2.1", 128, {
    {"TYPE",    3,  0}, {"G",       5,  4}, {"rsv0",   8,  6, FieldKind::MustBeZero}, {"TYPE_HI", 11, 9},
    {"rsv1",   15, 12, FieldKind::MustBeZero}, {"DID", 31, 16}, {"SID", 47, 32}, {"FM", 49, 48},
    {"rsv2",   63, 50, FieldKind::MustBeZero}, {"rsv3", 127, 64, FieldKind::MustBeZero}});
inline constexpr auto kPasidCacheDescriptor = layout("PASID-cache Invalidate", "§6.5.2.2", 128, {
    {"TYPE",    3,  0}, {"G",       5,  4}, {"rsv0",   8,  6, FieldKind::MustBeZero}, {"TYPE_HI", 11, 9},
    {"rsv1",   15, 12, FieldKind::MustBeZero}, {"DID", 31, 16}, {"PASID", 51, 32},
    {"rsv2",   63, 52, FieldKind::MustBeZero}, {"rsv3", 127, 64, FieldKind::MustBeZero}});
inline constexpr auto kIotlbDescriptor = layout("IOTLB Invalidate", "§6.5.2.3", 128, {
    {"TYPE",    3,  0}, {"G",       5,  4}, {"DW",     6,  6}, {"DR",    7,  7},
    {"rsv0",    8,  8, FieldKind::MustBeZero}, {"TYPE_HI", 11, 9}, {"rsv1", 15, 12, FieldKind::MustBeZero},
    {"DID",    31, 16}, {"rsv2",   63, 32, FieldKind::MustBeZero},
    {"AM",     69, 64}, {"IH",     70, 70}, {"rsv3",  75, 71, FieldKind::MustBeZero}, {"ADDR", 127, 76}});
inline constexpr auto kPasidIotlbDescriptor = layout("PASID-based-IOTLB Invalidate", "§6.5.2.4", 128, {
    {"TYPE",    3,  0}, {"G",       5,  4}, {"rsv0",   8,  6, FieldKind::MustBeZero}, {"TYPE_HI", 11, 9},
    {"rsv1",   15, 12, FieldKind::MustBeZero}, {"DID", 31, 16}, {"PASID", 51, 32},
    {"rsv2",   63, 52, FieldKind::MustBeZero},
    {"AM",     69, 64}, {"IH",     70, 70}, {"rsv3",  75, 71, FieldKind::MustBeZero}, {"ADDR", 127, 76}});
inline constexpr auto kDeviceTlbDescriptor = layout("Device-TLB Invalidate", "§6.5.2.5", 128, {
    {"TYPE",    3,  0}, {"rsv0",    8,  4, FieldKind::MustBeZero}, {"TYPE_HI", 11, 9}, {"PFSID_LO", 15, 12},
    {"MIP",    20, 16}, {"rsv1",   31, 21, FieldKind::MustBeZero}, {"SID", 47, 32},
    {"rsv2",   51, 48, FieldKind::MustBeZero}, {"PFSID_HI", 63, 52},
    {"S",      64, 64}, {"rsv3",   75, 65, FieldKind::MustBeZero}, {"ADDR", 127, 76}});
inline constexpr auto kPasidDeviceTlbDescriptor = layout("PASID-based-Device-TLB Invalidate", "§6.5.2.6", 128, {
    {"TYPE",    3,  0}, {"MIP",     8,  4}, {"TYPE_HI", 11, 9}, {"PFSID_LO", 15, 12}, {"SID", 31, 16},
    {"PASID",  51, 32}, {"PFSID_HI", 63, 52},
    {"G",      64, 64}, {"rsv",    74, 65, FieldKind::MustBeZero}, {"S", 75, 75}, {"ADDR", 127, 76}});
inline constexpr auto kInterruptDescriptor = layout("Interrupt Entry Cache Invalidate", "§6.5.2.7", 128, {
    {"TYPE",    3,  0}, {"G",       4,  4}, {"rsv0",   8,  5, FieldKind::MustBeZero}, {"TYPE_HI", 11, 9},
    {"rsv1",   26, 12, FieldKind::MustBeZero}, {"IM", 31, 27}, {"IIDX", 47, 32},
    {"rsv2",   63, 48, FieldKind::MustBeZero}, {"rsv3", 127, 64, FieldKind::MustBeZero}});
inline constexpr auto kWaitDescriptor = layout("Invalidation Wait", "§6.5.2.8", 128, {
    {"TYPE",    3,  0}, {"IF",      4,  4}, {"SW",     5,  5}, {"FN",    6,  6}, {"PD",    7,  7},
    {"rsv0",    8,  8, FieldKind::MustBeZero}, {"TYPE_HI", 11, 9}, {"rsv1", 31, 12, FieldKind::MustBeZero},
    {"STDATA", 63, 32}, {"rsv2",   65, 64, FieldKind::MustBeZero}, {"STADDR", 127, 66}});
static_assert(kDescriptor.is_partition() && kContextCacheDescriptor.is_partition() && kPasidCacheDescriptor.is_partition());
static_assert(kIotlbDescriptor.is_partition() && kPasidIotlbDescriptor.is_partition() && kDeviceTlbDescriptor.is_partition());
static_assert(kPasidDeviceTlbDescriptor.is_partition() && kInterruptDescriptor.is_partition() && kWaitDescriptor.is_partition());

enum class PasidCacheGranularity : std::uint8_t { Domain = 0, Pasid = 1, Global = 3 };
enum class PasidIotlbGranularity : std::uint8_t { Pasid = 2, Page = 3 };

inline constexpr unsigned kContextCache = 1, kIotlbInvalidate = 2, kDeviceTlb = 3, kInterruptCache = 4, kWait = 5,
    kPasidIotlb = 6, kPasidCache = 7, kPasidDeviceTlb = 8;
inline constexpr std::array<CommandRow, 8> kCommandRows{{
    {kContextCache,    "cc_inv_dsc",        "§6.5.2.1"},
    {kIotlbInvalidate, "iotlb_inv_dsc",     "§6.5.2.3"},
    {kDeviceTlb,       "dev_tlb_inv_dsc",   "§6.5.2.5"},
    {kInterruptCache,  "iec_inv_dsc",       "§6.5.2.7"},
    {kWait,            "inv_wait_dsc",      "§6.5.2.8"},
    {kPasidIotlb,      "p_iotlb_inv_dsc",   "§6.5.2.4"},
    {kPasidCache,      "pc_inv_dsc",        "§6.5.2.2"},
    {kPasidDeviceTlb,  "p_dev_tlb_inv_dsc", "§6.5.2.6"},
}};

// -------------------------------------------------------------------------------------------------------------- Faults
// Conditions without a row: RTA.3 and SCT.8 arise from page requests, SPT.5 and SGN.3 from requests to execute (ECAP.ERS
// = 0), none of which is modelled. SCT.4 (43h, a context entry programmed wrongly in another way than SCT.3 and SCT.9),
// SGN.9 (88h) and SGN.10 (89h): no source at hand says when they arise.

enum class Qualified : bool { No, Yes };
namespace detail {
constexpr FaultRow row(unsigned code, std::string_view name, FaultClass kind, Qualified qualified, std::string_view meaning) {
  return {code, name, kind, qualified == Qualified::Yes, "§7.2.3", meaning};
}
}  // namespace detail

inline constexpr std::array kFaultRows{
    // Legacy mode
    detail::row(0x08, "LRT.1",   FaultClass::MemoryAccess,      Qualified::No,  "root entry cannot be read"),
    detail::row(0x01, "LRT.2",   FaultClass::ContextNotPresent, Qualified::No,  "root entry not present"),
    detail::row(0x0a, "LRT.3",   FaultClass::ContextInvalid,    Qualified::No,  "reserved bits set in a root entry"),
    detail::row(0x09, "LCT.1",   FaultClass::MemoryAccess,      Qualified::No,  "context entry cannot be read"),
    detail::row(0x02, "LCT.2",   FaultClass::ContextNotPresent, Qualified::Yes, "context entry not present"),
    detail::row(0x0b, "LCT.3",   FaultClass::ContextInvalid,    Qualified::Yes, "reserved bits set in a context entry"),
    detail::row(0x03, "LCT.4.1", FaultClass::ContextInvalid,    Qualified::Yes, "AW of a context entry not supported"),
    detail::row(0x03, "LCT.4.2", FaultClass::ContextInvalid,    Qualified::Yes, "TT of a context entry not supported"),
    detail::row(0x03, "LCT.4.3", FaultClass::MemoryAccess,      Qualified::Yes, "SSPTPTR leads to an entry that cannot be read"),
    detail::row(0x0d, "LCT.5",   FaultClass::Blocked,           Qualified::Yes, "TT blocks translation and translated requests"),
    detail::row(0x07, "LSS.1",   FaultClass::MemoryAccess,      Qualified::Yes, "second-stage entry cannot be read"),
    detail::row(0x0c, "LSS.2",   FaultClass::Reserved,          Qualified::Yes, "reserved bits set in a second-stage entry"),
    detail::row(0x04, "LGN.1.1", FaultClass::AddressSize,       Qualified::Yes, "address beyond min(MGAW, AW)"),
    detail::row(0x04, "LGN.1.3", FaultClass::AddressSize,       Qualified::Yes, "pass-through: address beyond the host address width"),
    detail::row(0x05, "LGN.2",   FaultClass::Permission,        Qualified::Yes, "no write permission"),
    detail::row(0x06, "LGN.3",   FaultClass::Permission,        Qualified::Yes, "no read permission"),
    detail::row(0x0e, "LGN.4",   FaultClass::Blocked,           Qualified::Yes, "address in the interrupt range"),
    // Root-table address
    detail::row(0x30, "RTA.1.1", FaultClass::ContextInvalid,    Qualified::No,  "TTM reserved, or abort-DMA mode not supported"),
    detail::row(0x30, "RTA.1.2", FaultClass::ContextInvalid,    Qualified::No,  "reserved bits set in RTADDR_REG"),
    detail::row(0x30, "RTA.1.3", FaultClass::ContextInvalid,    Qualified::No,  "TTM asks for scalable mode, which is not supported"),
    detail::row(0x31, "RTA.2",   FaultClass::Blocked,           Qualified::No,  "request with PASID in legacy mode"),
    detail::row(0x33, "RTA.4",   FaultClass::Blocked,           Qualified::No,  "request in abort-DMA mode"),
    // Scalable mode
    detail::row(0x38, "SRT.1",   FaultClass::MemoryAccess,      Qualified::No,  "scalable-mode root entry cannot be read"),
    detail::row(0x39, "SRT.2",   FaultClass::ContextNotPresent, Qualified::No,  "scalable-mode root entry not present"),
    detail::row(0x3a, "SRT.3",   FaultClass::ContextInvalid,    Qualified::No,  "reserved bits set in a scalable-mode root entry"),
    detail::row(0x40, "SCT.1",   FaultClass::MemoryAccess,      Qualified::No,  "scalable-mode context entry cannot be read"),
    detail::row(0x41, "SCT.2",   FaultClass::ContextNotPresent, Qualified::Yes, "scalable-mode context entry not present"),
    detail::row(0x42, "SCT.3",   FaultClass::ContextInvalid,    Qualified::Yes, "reserved bits set in a scalable-mode context entry"),
    detail::row(0x44, "SCT.5",   FaultClass::Blocked,           Qualified::Yes, "DTE clear for a translation or translated request"),
    detail::row(0x45, "SCT.6",   FaultClass::Blocked,           Qualified::Yes, "PASIDE clear for a request with PASID"),
    detail::row(0x46, "SCT.7",   FaultClass::ContextInvalid,    Qualified::Yes, "PASID beyond the PASID directory"),
    detail::row(0x48, "SCT.9",   FaultClass::ContextInvalid,    Qualified::Yes, "RID_PASID beyond the PASID directory"),
    detail::row(0x50, "SPD.1",   FaultClass::MemoryAccess,      Qualified::No,  "PASID-directory entry cannot be read"),
    detail::row(0x51, "SPD.2",   FaultClass::ContextNotPresent, Qualified::Yes, "PASID-directory entry not present"),
    detail::row(0x52, "SPD.3",   FaultClass::ContextInvalid,    Qualified::Yes, "reserved bits set in a PASID-directory entry"),
    detail::row(0x58, "SPT.1",   FaultClass::MemoryAccess,      Qualified::No,  "PASID-table entry cannot be read"),
    detail::row(0x59, "SPT.2",   FaultClass::ContextNotPresent, Qualified::Yes, "PASID-table entry not present"),
    detail::row(0x5a, "SPT.3",   FaultClass::ContextInvalid,    Qualified::Yes, "reserved bits set in a PASID-table entry"),
    detail::row(0x5b, "SPT.4.1", FaultClass::ContextInvalid,    Qualified::Yes, "PGTT not supported"),
    detail::row(0x5b, "SPT.4.2", FaultClass::ContextInvalid,    Qualified::Yes, "AW of a PASID-table entry not supported"),
    detail::row(0x5b, "SPT.4.3", FaultClass::ContextInvalid,    Qualified::Yes, "FSPM not supported"),
    detail::row(0x5d, "SPT.6",   FaultClass::Blocked,           Qualified::Yes, "SRE clear for a supervisor request"),
    detail::row(0x70, "SFS.1",   FaultClass::MemoryAccess,      Qualified::Yes, "first-stage entry cannot be read"),
    detail::row(0x71, "SFS.2",   FaultClass::NotPresent,        Qualified::Yes, "first-stage entry not present"),
    detail::row(0x72, "SFS.3",   FaultClass::Reserved,          Qualified::Yes, "reserved bits set in a first-stage entry"),
    detail::row(0x73, "SFS.4",   FaultClass::MemoryAccess,      Qualified::Yes, "FSPTPTR leads to an entry that cannot be read"),
    detail::row(0x74, "SFS.5",   FaultClass::AddressSize,       Qualified::Yes, "nested: address of a first-stage entry beyond min(MGAW, AW)"),
    detail::row(0x75, "SFS.6",   FaultClass::Permission,        Qualified::Yes, "nested: no permission to read the top first-stage entry"),
    detail::row(0x76, "SFS.7",   FaultClass::Permission,        Qualified::Yes, "nested: no permission to read a first-stage entry"),
    detail::row(0x77, "SFS.8",   FaultClass::Permission,        Qualified::Yes, "nested: no permission to mark a first-stage entry"),
    detail::row(0x78, "SSS.1",   FaultClass::MemoryAccess,      Qualified::Yes, "second-stage entry cannot be read"),
    detail::row(0x79, "SSS.2",   FaultClass::NotPresent,        Qualified::Yes, "second-stage entry with R = W = 0"),
    detail::row(0x7a, "SSS.3",   FaultClass::Reserved,          Qualified::Yes, "reserved bits set in a second-stage entry"),
    detail::row(0x7b, "SSS.4",   FaultClass::MemoryAccess,      Qualified::Yes, "SSPTPTR leads to an entry that cannot be read"),
    detail::row(0x7c, "SSS.5",   FaultClass::Reserved,          Qualified::Yes, "second-stage entry needs a mark, walk not snooped"),
    detail::row(0x7d, "SSS.6",   FaultClass::MemoryAccess,      Qualified::Yes, "marking a second-stage entry failed"),
    detail::row(0x80, "SGN.1",   FaultClass::AddressSize,       Qualified::Yes, "first stage: address not canonical"),
    detail::row(0x81, "SGN.2",   FaultClass::Permission,        Qualified::Yes, "first stage: user request, supervisor page"),
    detail::row(0x83, "SGN.4",   FaultClass::AddressSize,       Qualified::Yes, "pass-through: address beyond the host address width"),
    detail::row(0x84, "SGN.5",   FaultClass::AddressSize,       Qualified::Yes, "input of the second stage beyond min(MGAW, AW)"),
    detail::row(0x85, "SGN.6",   FaultClass::Permission,        Qualified::Yes, "no write permission"),
    detail::row(0x86, "SGN.7",   FaultClass::Permission,        Qualified::Yes, "no read permission"),
    detail::row(0x87, "SGN.8",   FaultClass::Blocked,           Qualified::Yes, "address in the interrupt range"),
    detail::row(0x90, "SFS.9",   FaultClass::Reserved,          Qualified::Yes, "first-stage entry needs a mark, walk not snooped"),
    detail::row(0x91, "SFS.10",  FaultClass::MemoryAccess,      Qualified::Yes, "marking a first-stage entry failed"),
};
// clang-format on

namespace detail {
template <FieldName kName>
consteval const FaultRow* find_fault() {
  for (const FaultRow& row : kFaultRows)
    if (row.name == kName.view()) return &row;
  throw "no such fault condition";
}
}  // namespace detail
// kFault<"LRT.2">: the row of a condition; a misspelt one does not compile.
template <FieldName kName>
inline constexpr const FaultRow* kFault = detail::find_fault<kName>();

}  // namespace iommu::vtd
