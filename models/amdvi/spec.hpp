// SPDX-License-Identifier: Apache-2.0
// AMD-Vi, as data: registers, device table, page tables, commands and events. Nothing here decides.
// Citations name sections of the pinned revision, as the sources at hand give them: Linux (amd_iommu_types.h,
// generic_pt/fmt/amdv1.h), Xen (amd/iommu-defs.h), OpenVMM (amd_iommu), VirtualBox (iommu-amd.h, after revision 3.05).
//
// Assumptions, where those sources leave a choice open (each is referred to by tag where it is used):
//   ASSUMPTION(amdvi-001): within one paging entry, presence is checked first, then permission, then encoding, then
//                          reserved bits; the walk stops at the first entry that refuses.
//   ASSUMPTION(amdvi-002): a DeviceID beyond the device table, Mode 7, a Mode beyond HATS and TV = 0 are IO_PAGE_FAULTs
//                          (VirtualBox's list of event causes), not ILLEGAL_DEV_TABLE_ENTRY (OpenVMM, for some).
//   ASSUMPTION(amdvi-003): page-address bits below a page of default size are ignored, not reserved.
//   ASSUMPTION(amdvi-004): an address beyond the levels of Mode is a non-zero bit of a skipped level.
//   ASSUMPTION(amdvi-005): a fault of the host tables under guest translation reports the guest-physical address with
//                          GN = 0 and the DomainID; one of the guest tables the virtual address with GN = 1, the PASID.
//   ASSUMPTION(amdvi-006): a GCR3 entry that cannot be read, and an entry that cannot be marked, are
//                          PAGE_TAB_HARDWARE_ERRORs.
//   ASSUMPTION(amdvi-007): reads of the interrupt range, and writes that are not four bytes, are
//                          INVALID_DEVICE_REQUESTs of a valid entry; with V = 0 they are forwarded like all others.
//   ASSUMPTION(amdvi-008): SE suppresses page faults of a device after its first, until its entry is invalidated.
//   ASSUMPTION(amdvi-009): at a bad command the head stays; CmdBufRun is clear until CmdBufEn is written 0 and 1 again.
//   ASSUMPTION(amdvi-010): HAD[0] enables accessed marks of host entries, HAD[1] dirty marks.
//   ASSUMPTION(amdvi-011): ring pointers beyond the ring are taken modulo its size.
//   ASSUMPTION(amdvi-012): a guest address that is not canonical is a guest page that is not present.
//   ASSUMPTION(amdvi-013): a translated request of a device with guest tables needs its GCR3 entry like any other.
//   DEVIATION(amdvi-014):  no requests to execute: EFR.NXSup = 0. A read that asks to execute is checked as a read, and
//                          NX of guest entries denies nothing.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "sim/base/bits.hpp"
#include "sim/translation/iommu_core.hpp"
#include "sim/translation/request.hpp"

namespace iommu::amdvi {

inline constexpr std::string_view kSpec = "AMD IOMMU 48882 Rev 3.11";

// clang-format off

// -------------------------------------------------------------------------------------- PCI capability block [§3.2]

inline constexpr auto kCapabilityHeader = layout("Capability Header", "§3.2.1", 32, {
    {"CapID",     7,  0}, {"CapPtr",  15,  8}, {"CapType",  18, 16}, {"CapRev",  23, 19}, {"IotlbSup", 24, 24},
    {"HtTunnel", 25, 25}, {"NpCache", 26, 26}, {"EFRSup",   27, 27}, {"CapExt",  28, 28},
    {"rsv",      31, 29, FieldKind::MustBeZero}});
inline constexpr unsigned kCapabilityId = 0x0f, kCapabilityType = 3;
inline constexpr auto kMiscInfo0 = layout("Miscellaneous Information Register 0", "§3.2.5", 32, {
    {"MsiNum",    4,  0}, {"GVAsize",  7,  5}, {"PAsize",   14,  8}, {"VAsize",  21, 15}, {"HtAtsResv", 22, 22},
    {"rsv",      26, 23, FieldKind::MustBeZero}, {"MsiNumPPR", 31, 27}});

// ------------------------------------------------------------------------------------------------ Registers [§3.4]

inline constexpr auto kDeviceTableBase = layout("Device Table Base Address Register", "§3.4.1", 64, {
    {"Size",      8,  0}, {"rsv0",   11,  9, FieldKind::MustBeZero}, {"DevTabBase", 51, 12},
    {"rsv1",     63, 52, FieldKind::MustBeZero}});
// Command Buffer, Event Log and PPR Log.
inline constexpr auto kRingBase = layout("Base Address Register of a ring", "§3.4.2, §3.4.3", 64, {
    {"rsv0",     11,  0, FieldKind::MustBeZero}, {"Base", 51, 12}, {"rsv1", 55, 52, FieldKind::MustBeZero},
    {"Len",      59, 56}, {"rsv2",   63, 60, FieldKind::MustBeZero}});
inline constexpr unsigned kSmallestRingLg2 = 8;  // Len below this is reserved [§3.4.1]
inline constexpr unsigned kRingEntryBytes = 16;
inline constexpr auto kRingPointer = layout("Head or Tail Pointer Register of a ring", "§3.4.15", 64, {
    {"rsv0",      3,  0, FieldKind::MustBeZero}, {"Ptr", 18, 4}, {"rsv1", 63, 19, FieldKind::MustBeZero}});

inline constexpr auto kControl = layout("IOMMU Control Register", "§3.4.4", 64, {
    {"IommuEn",   0,  0}, {"HtTunEn",  1,  1}, {"EventLogEn", 2,  2}, {"EventIntEn", 3,  3}, {"ComWaitIntEn", 4, 4},
    {"InvTimeOut",7,  5}, {"PassPW",   8,  8}, {"ResPassPW",  9,  9}, {"Coherent",  10, 10}, {"Isoc",   11, 11},
    {"CmdBufEn", 12, 12}, {"PPRLogEn",13, 13}, {"PprIntEn",  14, 14}, {"PPREn",     15, 15}, {"GTEn",   16, 16},
    {"GAEn",     17, 17}, {"CRW",     21, 18}, {"SmiFEn",    22, 22}, {"SlfWBdis",  23, 23}, {"SmiFLogEn", 24, 24},
    {"GAMEn",    27, 25}, {"GALogEn", 28, 28}, {"GAIntEn",   29, 29}, {"DualPprLogEn", 31, 30},
    {"DualEventLogEn", 33, 32}, {"DevTblSegEn", 36, 34}, {"PrivAbrtEn", 38, 37}, {"PprAutoRspEn", 39, 39},
    {"MarcEn",   40, 40}, {"BlkStopMrkEn", 41, 41}, {"PprAutoRspAon", 42, 42}, {"NumIntRemapMode", 44, 43},
    {"EPHEn",    45, 45}, {"HADUpdate", 47, 46}, {"GDUpdateDis", 48, 48}, {"rsv0", 49, 49, FieldKind::MustBeZero},
    {"XTEn",     50, 50}, {"IntCapXTEn", 51, 51}, {"vCmdEn", 52, 52}, {"vIommuEn", 53, 53}, {"GAUpdateDis", 54, 54},
    {"GAPPIEn",  55, 55}, {"TMPMEn",   56, 56}, {"rsv1", 57, 57, FieldKind::MustBeZero}, {"GCR3TRPMode", 58, 58},
    {"IRTCacheDis", 59, 59}, {"GstBufferTRPMode", 60, 60}, {"SNPAVICEn", 63, 61}});

inline constexpr auto kExclusionBase = layout("Exclusion Base Register", "§3.4.5", 64, {
    {"ExEn",      0,  0}, {"Allow",    1,  1}, {"rsv0", 11,  2, FieldKind::MustBeZero}, {"ExBase", 51, 12},
    {"rsv1",     63, 52, FieldKind::MustBeZero}});
// The low bits read as zero and count as ones.
inline constexpr auto kExclusionLimit = layout("Exclusion Range Limit Register", "§3.4.6", 64, {
    {"rsv0",     11,  0, FieldKind::MustBeZero}, {"ExLimit", 51, 12}, {"rsv1", 63, 52, FieldKind::MustBeZero}});

inline constexpr auto kExtendedFeatures = layout("Extended Feature Register", "§3.4.7", 64, {
    {"PreFSup",   0,  0}, {"PPRSup",   1,  1}, {"XTSup",    2,  2}, {"NXSup",    3,  3}, {"GTSup",    4,  4},
    {"GAPPISup",  5,  5}, {"IASup",    6,  6}, {"GASup",    7,  7}, {"HESup",    8,  8}, {"PCSup",    9,  9},
    {"HATS",     11, 10}, {"GATS",    13, 12}, {"GLXSup",  15, 14}, {"SmiFSup", 17, 16}, {"SmiFRC",  20, 18},
    {"GAMSup",   23, 21}, {"DualPprLogSup", 25, 24}, {"rsv0", 27, 26, FieldKind::MustBeZero},
    {"DualEventLogSup", 29, 28}, {"rsv1", 30, 30, FieldKind::MustBeZero}, {"SATSSup", 31, 31},
    {"PASMax",   36, 32}, {"USSup",   37, 37}, {"DevTblSegSup", 39, 38}, {"PprOvrflwEarlySup", 40, 40},
    {"PprAutoRspSup", 41, 41}, {"MarcSup", 43, 42}, {"BlkStopMrkSup", 44, 44}, {"PerfOptSup", 45, 45},
    {"MsiCapMmioSup", 46, 46}, {"SnoopAttrSup", 47, 47}, {"GIoSup", 48, 48}, {"HASup", 49, 49}, {"EPHSup", 50, 50},
    {"AttrFWSup", 51, 51}, {"HDSup",  52, 52}, {"V2HDDisSup", 53, 53}, {"InvIotlbTypeSup", 54, 54},
    {"vIommuSup", 55, 55}, {"VMGuardIoSup", 56, 56}, {"VMTableSize", 60, 57}, {"GAUpdateDisSup", 61, 61},
    {"ForcePhyDestSup", 62, 62}, {"SNPSup", 63, 63}});
// HATS and GATS n: tables of n + 4 levels; HATS 3: no host tables. GLXSup: the largest GLX.
inline constexpr unsigned kFewestTranslationLevels = 4, kNoHostTranslation = 3;

inline constexpr auto kStatus = layout("IOMMU Status Register", "§3.4.15", 64, {
    {"EventOverflow", 0, 0}, {"EventLogInt", 1, 1}, {"ComWaitInt", 2, 2}, {"EventLogRun", 3, 3}, {"CmdBufRun", 4, 4},
    {"PprOverflow", 5, 5}, {"PprInt", 6, 6}, {"PprLogRun", 7, 7}, {"GALogRun", 8, 8}, {"GALOverflow", 9, 9},
    {"GAInt",    10, 10}, {"PprOvrflwB", 11, 11}, {"PprLogActive", 12, 12}, {"rsv0", 14, 13, FieldKind::MustBeZero},
    {"EvtOvrflwB", 15, 15}, {"EventLogActive", 16, 16}, {"PprOvrflwEarlyB", 17, 17}, {"PprOvrflwEarly", 18, 18},
    {"rsv1",     63, 19, FieldKind::MustBeZero}});

inline constexpr auto kHardwareEventStatus = layout("Hardware Event Status Register", "§3.4.10", 64, {
    {"HEV",       0,  0}, {"HEO",      1,  1}, {"rsv", 63, 2, FieldKind::MustBeZero}});

// The MSI capability of the unit, as MMIO shows it where EFR.MsiCapMmioSup is set.
inline constexpr auto kMsiCapability = layout("MSI Capability Header Register", "§3.4.11", 32, {
    {"MsiCapID",  7,  0}, {"MsiCapPtr", 15, 8}, {"MsiEn", 16, 16}, {"MsiMultMessCap", 19, 17},
    {"MsiMultMessEn", 22, 20}, {"Msi64En", 23, 23}, {"rsv", 31, 24, FieldKind::MustBeZero}});
inline constexpr unsigned kMsiCapabilityId = 0x05;
inline constexpr auto kMsiAddressLow = layout("MSI Address Low Register", "§3.4.11", 32, {
    {"rsv",       1,  0, FieldKind::MustBeZero}, {"MsiAddr", 31, 2}});
inline constexpr auto kMsiData = layout("MSI Data Register", "§3.4.11", 32, {
    {"MsiData",  15,  0}, {"rsv",     31, 16, FieldKind::MustBeZero}});

namespace offset {
inline constexpr std::uint64_t kDeviceTableBase = 0x0000, kCommandBase = 0x0008, kEventBase = 0x0010, kControl = 0x0018,
    kExclusionBase = 0x0020, kExclusionLimit = 0x0028, kExtendedFeatures = 0x0030, kPprBase = 0x0038,
    kHardwareEventHigh = 0x0040, kHardwareEventLow = 0x0048, kHardwareEventStatus = 0x0050,
    kMsiCapability = 0x0158, kMsiAddressLow = 0x015c, kMsiAddressHigh = 0x0160, kMsiData = 0x0164,
    kExtendedFeatures2 = 0x01a0, kCommandHead = 0x2000, kCommandTail = 0x2008, kEventHead = 0x2010, kEventTail = 0x2018,
    kStatus = 0x2020, kPprHead = 0x2030, kPprTail = 0x2038;
}  // namespace offset
inline constexpr std::uint64_t kMmioBytes = 0x4000;  // [§3.4]

// ------------------------------------------------------------------------------------------ Device table [§2.2.2]

inline constexpr unsigned kDeviceTableEntryBytes = 32;
// GPRP, PPR, GIOV, GV, GLX and GCR3 are reserved where their feature is absent.
inline constexpr auto kDeviceTableEntry = layout("Device Table Entry", "§2.2.2, Table 7", 256, {
    {"V",         0,   0}, {"TV",       1,   1}, {"rsv0",   6,   2, FieldKind::MustBeZero}, {"HAD", 8, 7},
    {"Mode",     11,   9}, {"HostPTRoot", 51, 12}, {"PPR",  52,  52}, {"GPRP",     53,  53}, {"GIOV",   54,  54},
    {"GV",       55,  55}, {"GLX",     57,  56}, {"GCR3a", 60,  58}, {"IR",       61,  61}, {"IW",     62,  62},
    {"rsv1",     63,  63, FieldKind::MustBeZero},
    {"DomainID", 79,  64}, {"GCR3b",   95,  80}, {"I",     96,  96}, {"SE",       97,  97}, {"SA",     98,  98},
    {"IoCtl",   100,  99}, {"Cache",  101, 101}, {"SD",   102, 102}, {"EX",      103, 103}, {"SysMgt", 105, 104},
    {"SATS",    106, 106}, {"GCR3c",  127, 107},
    {"IV",      128, 128}, {"IntTabLen", 132, 129}, {"IG", 133, 133}, {"IntTabRoot", 179, 134},
    {"rsv2",    181, 180, FieldKind::MustBeZero}, {"GuestPagingMode", 183, 182}, {"InitPass", 184, 184},
    {"EIntPass", 185, 185}, {"NMIPass", 186, 186}, {"HPTMode", 187, 187}, {"IntCtl", 189, 188},
    {"Lint0Pass", 190, 190}, {"Lint1Pass", 191, 191},
    {"rsv3",    206, 192, FieldKind::MustBeZero}, {"vImuEn", 207, 207}, {"GDeviceID", 223, 208}, {"GuestID", 239, 224},
    {"rsv4",    245, 240, FieldKind::MustBeZero}, {"AttrV", 246, 246}, {"Mode0FC", 247, 247},
    {"SnoopAttribute", 255, 248}});
// The GCR3 table root pointer in its three pieces. [§2.2.2, Table 7]
inline constexpr unsigned kGcr3aLsb = 12, kGcr3bLsb = 15, kGcr3cLsb = 31;
inline constexpr unsigned kReservedMode = 7, kReservedGlx = 3;
inline constexpr unsigned kGuestFourLevels = 0, kGuestFiveLevels = 1;  // GuestPagingMode

// Guest CR3 tables: GLX + 1 levels of entries; the lowest level holds guest CR3s, indexed by PASID. [§2.2.6]
inline constexpr unsigned kGcr3IndexBits = 9, kGcr3EntryBytes = 8;
inline constexpr auto kGcr3Entry = layout("GCR3 Table Entry", "§2.2.6", 64, {
    {"V",         0,  0}, {"rsv0",    11,  1, FieldKind::MustBeZero}, {"Address", 51, 12},
    {"rsv1",     63, 52, FieldKind::MustBeZero}});

// -------------------------------------------------------------------------------- Host page tables (v1) [§2.2.3]
// NextLevel 0: a page of the level's default size. 7: a page whose size the low one bits of its address give. Else the
// level of the next table, which is below this one and may skip levels.

inline constexpr auto kHostTable = layout("I/O page directory entry (PDE)", "§2.2.3", 64, {
    {"PR",        0,  0}, {"ign0",     4,  1, FieldKind::Ignored}, {"A", 5, 5}, {"ign1", 8, 6, FieldKind::Ignored},
    {"NextLevel",11,  9}, {"Address", 51, 12}, {"rsv", 60, 52, FieldKind::MustBeZero}, {"IR", 61, 61}, {"IW", 62, 62},
    {"ign2",     63, 63, FieldKind::Ignored}});
inline constexpr auto kHostPage = layout("I/O page translation entry (PTE)", "§2.2.3", 64, {
    {"PR",        0,  0}, {"ign0",     4,  1, FieldKind::Ignored}, {"A", 5, 5}, {"D", 6, 6},
    {"ign1",      8,  7, FieldKind::Ignored}, {"NextLevel", 11, 9}, {"Address", 51, 12},
    {"rsv",      58, 52, FieldKind::MustBeZero}, {"U", 59, 59}, {"FC", 60, 60}, {"IR", 61, 61}, {"IW", 62, 62},
    {"ign2",     63, 63, FieldKind::Ignored}});
inline constexpr unsigned kNextLevelPage = 0, kNextLevelSized = 7;

// ------------------------------------------------------------------------------- Guest page tables (v2) [§2.2.6]
// As AMD64 long mode has them.

inline constexpr auto kGuestTable = layout("guest page directory entry", "§2.2.6", 64, {
    {"P",         0,  0}, {"RW",       1,  1}, {"US",      2,  2}, {"PWT",   3,  3, FieldKind::Ignored},
    {"PCD",       4,  4, FieldKind::Ignored}, {"A", 5, 5}, {"ign0", 6, 6, FieldKind::Ignored},
    {"PS",        7,  7, FieldKind::MustBeZero}, {"ign1", 11, 8, FieldKind::Ignored}, {"Address", 51, 12},
    {"ign2",     62, 52, FieldKind::Ignored}, {"NX", 63, 63, FieldKind::Ignored}});
inline constexpr auto kGuestPage = layout("guest page translation entry", "§2.2.6", 64, {
    {"P",         0,  0}, {"RW",       1,  1}, {"US",      2,  2}, {"PWT",   3,  3, FieldKind::Ignored},
    {"PCD",       4,  4, FieldKind::Ignored}, {"A", 5, 5}, {"D", 6, 6}, {"PS", 7, 7},  // PAT in a 4 KiB page
    {"G",         8,  8}, {"ign0",    11,  9, FieldKind::Ignored}, {"Address", 51, 12},
    {"ign1",     62, 52, FieldKind::Ignored}, {"NX", 63, 63, FieldKind::Ignored}});
// PAT of a page above the lowest level: the one bit below the page that is not reserved.
inline constexpr auto kGuestLargePage = layout("guest large page, low bits", "§2.2.6", 64, {
    {"attributes", 11, 0}, {"PAT", 12, 12, FieldKind::Ignored}, {"Address", 51, 13}, {"ign", 63, 52, FieldKind::Ignored}});

// Addresses that hardware takes for interrupt requests. [§2.1.2]
inline constexpr std::uint64_t kInterruptFirst = 0xfee00000, kInterruptLast = 0xfeefffff;

// ------------------------------------------------------------------------------------------------ Commands [§2.4]

inline constexpr auto kCommand = layout("Generic command", "§2.4", 128, {
    {"operand1", 59,  0}, {"OpCode", 63, 60}, {"operand2", 127, 64}});
inline constexpr auto kCompletionWait = layout("COMPLETION_WAIT", "§2.4.1", 128, {
    {"s",         0,  0}, {"i",        1,  1}, {"f",       2,  2}, {"StoreAddress", 51, 3},
    {"rsv",      59, 52, FieldKind::MustBeZero}, {"OpCode", 63, 60}, {"StoreData", 127, 64}});
// INVALIDATE_DEVTAB_ENTRY and INVALIDATE_INTERRUPT_TABLE.
inline constexpr auto kInvalidateDevice = layout("INVALIDATE_DEVTAB_ENTRY, INVALIDATE_INTERRUPT_TABLE", "§2.4.2, §2.4.5", 128, {
    {"DeviceID", 15,  0}, {"rsv0",    59, 16, FieldKind::MustBeZero}, {"OpCode", 63, 60},
    {"rsv1",    127, 64, FieldKind::MustBeZero}});
inline constexpr auto kInvalidatePages = layout("INVALIDATE_IOMMU_PAGES", "§2.4.3", 128, {
    {"PASID",    19,  0}, {"rsv0",    31, 20, FieldKind::MustBeZero}, {"DomainID", 47, 32},
    {"rsv1",     59, 48, FieldKind::MustBeZero}, {"OpCode", 63, 60},
    {"S",        64, 64}, {"PDE",     65, 65}, {"GN",     66, 66}, {"rsv2", 75, 67, FieldKind::MustBeZero},
    {"Address", 127, 76}});
// Type is reserved where EFR.InvIotlbTypeSup is clear. PASID in its three pieces.
inline constexpr auto kInvalidateIotlb = layout("INVALIDATE_IOTLB_PAGES", "§2.4.4", 128, {
    {"DeviceID", 15,  0}, {"PASIDb",  23, 16}, {"Maxpend", 31, 24}, {"QueueID", 47, 32}, {"PASIDa", 55, 48},
    {"PASIDc",   59, 56}, {"OpCode",  63, 60},
    {"S",        64, 64}, {"rsv0",    65, 65, FieldKind::MustBeZero}, {"GN", 66, 66},
    {"rsv1",     67, 67, FieldKind::MustBeZero}, {"Type", 69, 68}, {"rsv2", 75, 70, FieldKind::MustBeZero},
    {"Address", 127, 76}});
inline constexpr unsigned kPasidbLsb = 8, kPasidcLsb = 16;
inline constexpr auto kPrefetchPages = layout("PREFETCH_IOMMU_PAGES", "§2.4.6", 128, {
    {"DeviceID", 15,  0}, {"rsv0",    23, 16, FieldKind::MustBeZero}, {"PFCount", 31, 24}, {"PASID", 51, 32},
    {"rsv1",     59, 52, FieldKind::MustBeZero}, {"OpCode", 63, 60},
    {"S",        64, 64}, {"rsv2",    65, 65, FieldKind::MustBeZero}, {"GN", 66, 66},
    {"rsv3",     67, 67, FieldKind::MustBeZero}, {"Inval", 68, 68}, {"rsv4", 75, 69, FieldKind::MustBeZero},
    {"Address", 127, 76}});
inline constexpr auto kCompletePpr = layout("COMPLETE_PPR_REQUEST", "§2.4.7", 128, {
    {"DeviceID", 15,  0}, {"rsv0",    31, 16, FieldKind::MustBeZero}, {"PASID", 51, 32},
    {"rsv1",     59, 52, FieldKind::MustBeZero}, {"OpCode", 63, 60},
    {"rsv2",     65, 64, FieldKind::MustBeZero}, {"GN", 66, 66}, {"rsv3", 95, 67, FieldKind::MustBeZero},
    {"CompletionTag", 111, 96}, {"rsv4", 127, 112, FieldKind::MustBeZero}});
inline constexpr auto kInvalidateAll = layout("INVALIDATE_IOMMU_ALL", "§2.4.8", 128, {
    {"rsv0",     59,  0, FieldKind::MustBeZero}, {"OpCode", 63, 60}, {"rsv1", 127, 64, FieldKind::MustBeZero}});

inline constexpr unsigned kOpCompletionWait = 1, kOpInvalidateDevtabEntry = 2, kOpInvalidateIommuPages = 3,
    kOpInvalidateIotlbPages = 4, kOpInvalidateInterruptTable = 5, kOpPrefetchIommuPages = 6, kOpCompletePprRequest = 7,
    kOpInvalidateIommuAll = 8;
inline constexpr std::array<CommandRow, 8> kCommandRows{{
    {kOpCompletionWait,           "COMPLETION_WAIT",            "§2.4.1"},
    {kOpInvalidateDevtabEntry,    "INVALIDATE_DEVTAB_ENTRY",    "§2.4.2"},
    {kOpInvalidateIommuPages,     "INVALIDATE_IOMMU_PAGES",     "§2.4.3"},
    {kOpInvalidateIotlbPages,     "INVALIDATE_IOTLB_PAGES",     "§2.4.4"},
    {kOpInvalidateInterruptTable, "INVALIDATE_INTERRUPT_TABLE", "§2.4.5"},
    {kOpPrefetchIommuPages,       "PREFETCH_IOMMU_PAGES",       "§2.4.6"},
    {kOpCompletePprRequest,       "COMPLETE_PPR_REQUEST",       "§2.4.7"},
    {kOpInvalidateIommuAll,       "INVALIDATE_IOMMU_ALL",       "§2.4.8"},
}};

// -------------------------------------------------------------------------------------------------- Events [§2.5]
// Bits 31 to 20 of most are reserved; the DomainID stands where the PASID would, when GN is clear.

inline constexpr auto kTranslationEvent = layout("ILLEGAL_DEV_TABLE_ENTRY, IO_PAGE_FAULT", "§2.5.2, §2.5.3", 128, {
    {"DeviceID", 15,  0}, {"PASIDhi", 19, 16}, {"rsv0",   31, 20, FieldKind::MustBeZero}, {"DomainOrPASID", 47, 32},
    {"GN",       48, 48}, {"NX",      49, 49}, {"US",     50, 50}, {"I",  51, 51}, {"PR", 52, 52}, {"RW", 53, 53},
    {"PE",       54, 54}, {"RZ",      55, 55}, {"TR",     56, 56}, {"rsv1", 59, 57, FieldKind::MustBeZero},
    {"EventCode",63, 60}, {"Address", 127, 64}});
inline constexpr auto kHardwareEvent = layout("DEV_TAB_HARDWARE_ERROR, PAGE_TAB_HARDWARE_ERROR, COMMAND_HARDWARE_ERROR",
    "§2.5.4, §2.5.5, §2.5.7", 128, {
    {"DeviceID", 15,  0}, {"PASIDhi", 19, 16}, {"rsv0",   31, 20, FieldKind::MustBeZero}, {"DomainOrPASID", 47, 32},
    {"GN",       48, 48}, {"rsv1",    50, 49, FieldKind::MustBeZero}, {"I", 51, 51},
    {"rsv2",     52, 52, FieldKind::MustBeZero}, {"RW", 53, 53}, {"rsv3", 55, 54, FieldKind::MustBeZero},
    {"TR",       56, 56}, {"Type",    58, 57}, {"rsv4", 59, 59, FieldKind::MustBeZero}, {"EventCode", 63, 60},
    {"Address", 127, 64}});
// Type of hardware errors: nobody answered.
inline constexpr unsigned kMasterAbort = 1;
inline constexpr auto kCommandEvent = layout("ILLEGAL_COMMAND_ERROR, IOTLB_INV_TIMEOUT", "§2.5.6, §2.5.8", 128, {
    {"DeviceID", 15,  0}, {"rsv0",    59, 16, FieldKind::MustBeZero}, {"EventCode", 63, 60}, {"Address", 127, 64}});
inline constexpr auto kInvalidRequestEvent = layout("INVALID_DEVICE_REQUEST", "§2.5.9", 128, {
    {"DeviceID", 15,  0}, {"PASIDhi", 19, 16}, {"rsv0",   31, 20, FieldKind::MustBeZero}, {"PASIDlo", 47, 32},
    {"GN",       48, 48}, {"US",      49, 49}, {"rsv1",   55, 50, FieldKind::MustBeZero}, {"TR", 56, 56},
    {"Type",     59, 57}, {"EventCode", 63, 60}, {"Address", 127, 64}});
inline constexpr unsigned kPasidLowBits = 16;  // of a PASID in two pieces

enum class EventCode : std::uint8_t {
  IllegalDevTableEntry = 1, IoPageFault = 2, DevTabHardwareError = 3, PageTabHardwareError = 4, IllegalCommandError = 5,
  CommandHardwareError = 6, IotlbInvTimeout = 7, InvalidDeviceRequest = 8,
};

static_assert(kCapabilityHeader.is_partition() && kMiscInfo0.is_partition());
static_assert(kDeviceTableBase.is_partition() && kRingBase.is_partition() && kRingPointer.is_partition());
static_assert(kControl.is_partition() && kExclusionBase.is_partition() && kExclusionLimit.is_partition());
static_assert(kExtendedFeatures.is_partition() && kStatus.is_partition() && kHardwareEventStatus.is_partition());
static_assert(kMsiCapability.is_partition() && kMsiAddressLow.is_partition() && kMsiData.is_partition());
static_assert(kDeviceTableEntry.is_partition() && kGcr3Entry.is_partition());
static_assert(kHostTable.is_partition() && kHostPage.is_partition());
static_assert(kGuestTable.is_partition() && kGuestPage.is_partition() && kGuestLargePage.is_partition());
static_assert(kCommand.is_partition() && kCompletionWait.is_partition() && kInvalidateDevice.is_partition());
static_assert(kInvalidatePages.is_partition() && kInvalidateIotlb.is_partition() && kPrefetchPages.is_partition());
static_assert(kCompletePpr.is_partition() && kInvalidateAll.is_partition());
static_assert(kTranslationEvent.is_partition() && kHardwareEvent.is_partition() && kCommandEvent.is_partition());
static_assert(kInvalidRequestEvent.is_partition());

// -------------------------------------------------------------------------------------------------------------- Faults
// One row for each cause of an event; `flags` is what the event says of the cause. SA and SE suppress page faults only.
// Causes that need what is not modelled (interrupt remapping, page requests, execute requests, port I/O, SMI filters,
// nested paging checks of SNP) have no row.

namespace detail {
struct EventFlags {
  bool present = false;     // PR
  bool permission = false;  // PE
  bool reserved = false;    // RZ
  unsigned type = 0;        // Type
};
struct EventCause {
  FaultRow row;
  EventFlags flags;
};
enum class Flag : std::uint8_t { NotPresent, Permission, Reserved, Encoding };
constexpr EventFlags flags_of(Flag flag) {
  return {.present = flag != Flag::NotPresent, .permission = flag == Flag::Permission, .reserved = flag == Flag::Reserved};
}
constexpr EventCause page_fault(std::string_view name, FaultClass kind, Flag flag, std::string_view meaning) {
  return {{static_cast<unsigned>(EventCode::IoPageFault), name, kind, true, "§2.5.3", meaning}, flags_of(flag)};
}
constexpr EventCause other(EventCode code, std::string_view name, FaultClass kind, EventFlags flags,
                           std::string_view citation, std::string_view meaning) {
  return {{static_cast<unsigned>(code), name, kind, false, citation, meaning}, flags};
}

inline constexpr std::array kCauses{
    other(EventCode::IllegalDevTableEntry, "ILLEGAL_DEV_TABLE_ENTRY.reserved", FaultClass::ContextInvalid,
          {.reserved = true}, "§2.5.2", "reserved bits set in a device table entry"),
    other(EventCode::IllegalDevTableEntry, "ILLEGAL_DEV_TABLE_ENTRY.level", FaultClass::ContextInvalid, {},
          "§2.5.2", "GLX or GuestPagingMode of a device table entry not supported"),
    page_fault("IO_PAGE_FAULT.device", FaultClass::ContextNotPresent, Flag::NotPresent, "DeviceID beyond the device table"),
    page_fault("IO_PAGE_FAULT.untranslated", FaultClass::Blocked, Flag::NotPresent, "TV clear in a valid device table entry"),
    page_fault("IO_PAGE_FAULT.mode", FaultClass::ContextInvalid, Flag::Encoding, "Mode reserved or beyond HATS"),
    page_fault("IO_PAGE_FAULT.range", FaultClass::AddressSize, Flag::Encoding, "address beyond the levels of Mode"),
    page_fault("IO_PAGE_FAULT.host_absent", FaultClass::NotPresent, Flag::NotPresent, "host entry not present"),
    page_fault("IO_PAGE_FAULT.host_denied", FaultClass::Permission, Flag::Permission, "no permission by device table entry or host entries"),
    page_fault("IO_PAGE_FAULT.host_level", FaultClass::Reserved, Flag::Encoding, "invalid NextLevel"),
    page_fault("IO_PAGE_FAULT.host_size", FaultClass::Reserved, Flag::Encoding, "invalid page size"),
    page_fault("IO_PAGE_FAULT.host_skipped", FaultClass::AddressSize, Flag::Encoding, "address bits of a skipped level not zero"),
    page_fault("IO_PAGE_FAULT.host_reserved", FaultClass::Reserved, Flag::Reserved, "reserved bits set in a host entry"),
    page_fault("IO_PAGE_FAULT.pasid", FaultClass::ContextNotPresent, Flag::NotPresent, "PASID beyond the GCR3 table, or no guest translation"),
    page_fault("IO_PAGE_FAULT.gcr3_absent", FaultClass::ContextNotPresent, Flag::NotPresent, "GCR3 entry not valid"),
    page_fault("IO_PAGE_FAULT.gcr3_reserved", FaultClass::ContextInvalid, Flag::Reserved, "reserved bits set in a GCR3 entry"),
    page_fault("IO_PAGE_FAULT.guest_absent", FaultClass::NotPresent, Flag::NotPresent, "guest entry not present, or address not canonical"),
    page_fault("IO_PAGE_FAULT.guest_denied", FaultClass::Permission, Flag::Permission, "no write permission by guest entries"),
    page_fault("IO_PAGE_FAULT.guest_user", FaultClass::Permission, Flag::Permission, "user request, supervisor page"),
    page_fault("IO_PAGE_FAULT.guest_reserved", FaultClass::Reserved, Flag::Reserved, "reserved bits set in a guest entry"),
    other(EventCode::DevTabHardwareError, "DEV_TAB_HARDWARE_ERROR", FaultClass::MemoryAccess, {.type = kMasterAbort},
          "§2.5.4", "device table entry cannot be read"),
    other(EventCode::PageTabHardwareError, "PAGE_TAB_HARDWARE_ERROR.host", FaultClass::MemoryAccess, {.type = kMasterAbort},
          "§2.5.5", "host entry cannot be read or marked"),
    other(EventCode::PageTabHardwareError, "PAGE_TAB_HARDWARE_ERROR.guest", FaultClass::MemoryAccess, {.type = kMasterAbort},
          "§2.5.5", "GCR3 or guest entry cannot be read or marked"),
    other(EventCode::IllegalCommandError, "ILLEGAL_COMMAND_ERROR", FaultClass::Command, {},
          "§2.5.6", "command unknown, not supported, or with reserved bits set"),
    other(EventCode::CommandHardwareError, "COMMAND_HARDWARE_ERROR", FaultClass::Command, {.type = kMasterAbort},
          "§2.5.7", "command cannot be read"),
    other(EventCode::IotlbInvTimeout, "IOTLB_INV_TIMEOUT", FaultClass::Command, {},
          "§2.5.8", "a device did not answer an invalidation"),
    // The types of translation requests count on their own.
    other(EventCode::InvalidDeviceRequest, "INVALID_DEVICE_REQUEST.interrupt_range", FaultClass::Blocked, {.type = 0},
          "§2.5.9", "access to the interrupt range that is no interrupt"),
    other(EventCode::InvalidDeviceRequest, "INVALID_DEVICE_REQUEST.translated", FaultClass::Blocked, {.type = 1},
          "§2.5.9", "translated request while I is clear"),
    other(EventCode::InvalidDeviceRequest, "INVALID_DEVICE_REQUEST.tr_interrupt_range", FaultClass::Blocked, {.type = 0},
          "§2.5.9", "translation request for the interrupt range"),
    other(EventCode::InvalidDeviceRequest, "INVALID_DEVICE_REQUEST.tr_disabled", FaultClass::Blocked, {.type = 1},
          "§2.5.9", "translation request while I is clear"),
    other(EventCode::InvalidDeviceRequest, "INVALID_DEVICE_REQUEST.tr_device", FaultClass::Blocked, {.type = 2},
          "§2.5.9", "translation request with a DeviceID beyond the device table"),
};
}  // namespace detail
// clang-format on

inline constexpr auto kFaultRows = [] {
  std::array<FaultRow, detail::kCauses.size()> rows{};
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = detail::kCauses[i].row;
  return rows;
}();

namespace detail {
template <FieldName kName>
consteval const FaultRow* find_fault() {
  for (const FaultRow& row : kFaultRows)
    if (row.name == kName.view()) return &row;
  throw "no such cause";
}
}  // namespace detail
// kFault<"IO_PAGE_FAULT.mode">: the row of a cause; a misspelt one does not compile.
template <FieldName kName>
inline constexpr const FaultRow* kFault = detail::find_fault<kName>();

// What an event of this row says of its cause.
[[nodiscard]] constexpr const detail::EventFlags& flags_of(const FaultRow& row) {
  return detail::kCauses[static_cast<std::size_t>(&row - kFaultRows.data())].flags;
}

}  // namespace iommu::amdvi
