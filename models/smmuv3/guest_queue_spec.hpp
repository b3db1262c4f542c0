// SPDX-License-Identifier: Apache-2.0
// The command-queue virtualisation of the Tegra241 (Grace) SMMUs, as data. NVIDIA publishes no manual: rows cite the
// two drivers of the block,
//   [cmdqv]       linux drivers/iommu/arm/arm-smmu-v3/tegra241-cmdqv.c
//   [cmdqv-qemu]  qemu hw/arm/tegra241-cmdqv.h
// and the commits that introduced them (918eb5c856f6, a9d40285bdef). A VCMDQ is a command ring; a VINTF is a group of
// them with an owner, the host (HYP_OWN) or a guest with a VMID and a table of StreamIDs. Where these leave a choice
// open:
//   ASSUMPTION(smmuv3-008): a command that a queue does not take, and a CMD_SYNC with any signal, is CERROR_ILL_OPCODE;
//   a
//                           StreamID that no SID_MATCH names is CERROR_ILL_ACCESS. The drivers name the codes, not
//                           causes.
//   ASSUMPTION(smmuv3-009): what says where a ring is and whose, is kept while it is enabled, as §6.3 of the SMMU has
//   it:
//                           BASE and CONS of a VCMDQ, its ALLOC, the VMID and HYP_OWN of its VINTF.
//   ASSUMPTION(smmuv3-010): enabling and disabling complete at once, but that a command under way is finished first.
//   DEVIATION(smmuv3-011):  the block stands behind the SMMU's own pages, where hardware has a device of its own; its
//   wired
//                           interrupt does not exist (owners see errors in their queue's registers); indexes are not
//                           written to memory (CONS_DRAM_EN, which Linux leaves off as well); CMDQ_INIT_ERR never
//                           comes.
#pragma once

#include "models/smmuv3/spec.hpp"

namespace iommu::smmuv3 {

// clang-format off

// Configuration page, the host's. [cmdqv, "CMDQV global base regs"]
inline constexpr auto kCmdqvConfig = layout("CMDQV_CONFIG", "[cmdqv-qemu]", 32, {
    {"CMDQV_EN",  0,  0}, {"CMDQV_PER_CMD_OFFSET", 3, 1}, {"CMDQ_MAX_CLK_BATCH", 11, 4},
    {"CMDQ_MAX_CMD_BATCH", 19, 12}, {"CONS_DRAM_EN", 20, 20}, {"rsv", 31, 21, FieldKind::MustBeZero}});
inline constexpr std::uint64_t kCmdqvConfigReset = pack<kCmdqvConfig>({  // V_CONFIG_RESET [cmdqv-qemu], not yet enabled
    {"CMDQV_PER_CMD_OFFSET", 1}, {"CMDQ_MAX_CLK_BATCH", 0x40}, {"CMDQ_MAX_CMD_BATCH", 0x20}});
inline constexpr auto kCmdqvParam = layout("CMDQV_PARAM", "[cmdqv-qemu]", 32, {
    {"CMDQV_VER", 3,  0}, {"CMDQV_NUM_CMDQ_LOG2", 7, 4}, {"CMDQV_NUM_VI_LOG2", 11, 8},
    {"CMDQV_NUM_SID_PER_VI_LOG2", 15, 12}, {"rsv", 31, 16, FieldKind::MustBeZero}});
inline constexpr auto kCmdqvStatus = layout("CMDQV_STATUS", "[cmdqv]", 32, {
    {"CMDQV_ENABLED", 0, 0}, {"rsv", 31, 1, FieldKind::MustBeZero}});
inline constexpr auto kCmdqAlloc = layout("CMDQV_CMDQ_ALLOC_MAP", "[cmdqv-qemu]", 32, {
    {"ALLOC",     0,  0}, {"LVCMDQ",    7,  1}, {"rsv0",     14,  8, FieldKind::MustBeZero}, {"VIRT_INTF_INDX", 20, 15},
    {"rsv1",     31, 21, FieldKind::MustBeZero}});

inline constexpr auto kVintfConfig = layout("VINTF_CONFIG", "[cmdqv]", 32, {
    {"ENABLE",    0,  0}, {"VMID",     16,  1}, {"HYP_OWN",  17, 17}, {"rsv", 31, 18, FieldKind::MustBeZero}});
inline constexpr auto kVintfStatus = layout("VINTF_STATUS", "[cmdqv], [cmdqv-qemu]", 32, {
    {"ENABLE_OK", 0,  0}, {"STATUS",    3,  1}, {"rsv0",     15,  4, FieldKind::MustBeZero}, {"VI_NUM_LVCMDQ", 23, 16},
    {"rsv1",     31, 24, FieldKind::MustBeZero}});
inline constexpr std::uint64_t kVcmdqError = 1;  // VINTF_STATUS.STATUS [cmdqv-qemu, V_VINTF_STATUS_VCMDQ_ERROR]
inline constexpr auto kSidMatch = layout("VINTF_SID_MATCH", "[cmdqv-qemu]", 32, {
    {"ENABLE",    0,  0}, {"VIRT_SID", 20,  1}, {"rsv",      31, 21, FieldKind::MustBeZero}});
inline constexpr auto kSidReplace = layout("VINTF_SID_REPLACE", "[cmdqv-qemu]", 32, {
    {"PHYS_SID", 19,  0}, {"rsv",      31, 20, FieldKind::MustBeZero}});

// A VCMDQ: page 0, its owner's.
inline constexpr auto kVcmdqCons = layout("VCMDQ_CONS_INDX", "[cmdqv-qemu]", 32, {
    {"RD",       19,  0}, {"rsv0",     23, 20, FieldKind::MustBeZero}, {"ERR", 30, 24},
    {"rsv1",     31, 31, FieldKind::MustBeZero}});
inline constexpr auto kVcmdqProd = layout("VCMDQ_PROD_INDX", "[cmdqv-qemu]", 32, {
    {"WR",       19,  0}, {"rsv",      31, 20, FieldKind::MustBeZero}});
inline constexpr auto kVcmdqConfig = layout("VCMDQ_CONFIG", "[cmdqv-qemu]", 32, {
    {"CMDQ_EN",   0,  0}, {"rsv",      31,  1, FieldKind::MustBeZero}});
inline constexpr auto kVcmdqStatus = layout("VCMDQ_STATUS", "[cmdqv-qemu]", 32, {
    {"CMDQ_EN_OK", 0, 0}, {"rsv",      31,  1, FieldKind::MustBeZero}});
inline constexpr auto kVcmdqGerror = layout("VCMDQ_GERROR, VCMDQ_GERRORN", "[cmdqv-qemu]", 32, {
    {"CMDQ_ERR",  0,  0}, {"CONS_DRAM_WR_ABT_ERR", 1, 1}, {"CMDQ_INIT_ERR", 2, 2},
    {"rsv",      31,  3, FieldKind::MustBeZero}});
// Page 1, the host's: a guest's accesses to it trap. [cmdqv, "VINTF has two 64KB MMIO pages"]
inline constexpr auto kVcmdqBase = layout("VCMDQ_BASE", "[cmdqv]", 64, {
    {"LOG2SIZE",  4,  0}, {"ADDR",     47,  5}, {"rsv",      63, 48, FieldKind::MustBeZero}});
inline constexpr auto kVcmdqConsBase = layout("VCMDQ_CONS_INDX_BASE", "[cmdqv-qemu]", 64, {
    {"ADDR",     47,  0}, {"rsv",      63, 48, FieldKind::MustBeZero}});
// VCMDQ_CONS_INDX.ERR [cmdqv-qemu, V_VCMDQ_CONS_INDX_ERR_*]; up to 3 as CommandError.
inline constexpr std::uint64_t kCerrorIllegalAccess = 4;

static_assert(kCmdqvConfig.is_partition() && kCmdqvParam.is_partition() && kCmdqvStatus.is_partition());
static_assert(kCmdqAlloc.is_partition() && kVintfConfig.is_partition() && kVintfStatus.is_partition());
static_assert(kSidMatch.is_partition() && kSidReplace.is_partition() && kVcmdqCons.is_partition());
static_assert(kVcmdqProd.is_partition() && kVcmdqConfig.is_partition() && kVcmdqStatus.is_partition());
static_assert(kVcmdqGerror.is_partition() && kVcmdqBase.is_partition() && kVcmdqConsBase.is_partition());

// Of the whole block. [cmdqv; cmdqv-qemu, "Tegra241 CMDQV MMIO layout", SMMU_CMDQV_CMDQ_ALLOC_MAP_, SID_MATCH_0]
namespace queue_offset {
inline constexpr std::uint64_t kConfig = 0x00, kParam = 0x04, kStatus = 0x08, kVintfErrorMap = 0x14,
    kVintfInterruptMask = 0x1c, kCmdqErrorMap = 0x24, kCmdqAlloc = 0x200, kVintfs = 0x1000;
inline constexpr std::uint64_t kVcmdqPage0 = 0x10000, kVcmdqPage1 = 0x20000, kVintfPages = 0x30000;
// Within a VINTF's registers, kVintfStride apart.
inline constexpr std::uint64_t kVintfConfig = 0x00, kVintfStatus = 0x04, kSidMatch = 0x40, kSidReplace = 0x80,
    kLvcmdqErrorMap = 0xc0, kVintfStride = 0x100;
// Within a page of VCMDQs, kVcmdqStride apart.
inline constexpr std::uint64_t kCons = 0x00, kProd = 0x04, kVcmdqConfig = 0x08, kVcmdqStatus = 0x0c, kGerror = 0x10,
    kGerrorn = 0x14, kVcmdqStride = 0x80;
inline constexpr std::uint64_t kBase = 0x00, kConsBase = 0x08;  // in page 1
inline constexpr std::uint64_t kPageBytes = 0x10000;            // and a VINTF has two of them
}  // namespace queue_offset

// What a Tegra241 has: 64 VINTFs, of which Linux keeps the first for the host, 128 VCMDQs, two of them for each VINTF, 16
// StreamIDs in each. [cmdqv-qemu: "Hardware supports up to 128 entries", "VINTF1-63", CMDQV_NUM_SID_PER_VI_LOG2; linux
// a2ee315db426: "a VINTF is pre-assigned with 2 lvcmdqs"]
inline constexpr unsigned kCmdqvVersion = 1, kVcmdqsLg2 = 7, kVintfsLg2 = 6, kSidsLg2 = 4, kGuestVcmdqsLg2 = 1;
inline constexpr unsigned kMostVintfs = 1U << kVintfsLg2, kMostVcmdqs = 1U << kVcmdqsLg2;
inline constexpr unsigned kMostSids = 1U << kSidsLg2;
inline constexpr std::uint64_t kQueueBlock = kRegisterBytes;  // smmuv3-011
inline constexpr std::uint64_t kQueueBlockBytes =
    queue_offset::kVintfPages + std::uint64_t{kMostVintfs} * 2 * queue_offset::kPageBytes;

// What a VCMDQ takes whose owner is a guest, besides CMD_SYNC. [cmdqv, tegra241_guest_vcmdq_supports_cmd; linux
// a9d40285bdef: "only TLB and ATC invalidation commands are supported by the VCMDQ HW"]
inline constexpr std::array<Opcode, 3> kGuestOpcodes{kCmdTlbiNhAsid, kCmdTlbiNhVa, kCmdAtcInv};
// Of any owner: "only support CS_NONE in the CS field of CMD_SYNC". [linux 918eb5c856f6]
inline constexpr SyncSignal kVcmdqSignal = SyncSignal::None;

// clang-format on

}  // namespace iommu::smmuv3
