// SPDX-License-Identifier: Apache-2.0
// Facts about units that translate by one flat table: translation control entries (TCE) with a table for each bus, and
// the graphics aperture remapping table (GART). Neither has a specification that anybody can read: the sources are
// kernels that drive them.
#pragma once

#include <array>
#include <cstdint>

#include "sim/base/bits.hpp"
#include "sim/base/units.hpp"
#include "sim/translation/request.hpp"

namespace iommu::flat {

inline constexpr std::string_view kTceSpec = "Linux 5.3: pci-calgary_64.c, tce_64.c, asm/tce.h; 6.6: pci-ioda.c";
inline constexpr std::string_view kGartSpec = "Linux 5.3: amd_gart_64.c, asm/gart.h, amd_nb.c";

// clang-format off
// One TCE, big-endian in memory.
inline constexpr auto kTce = layout("TCE", "asm/tce.h", 64, {
    {"Read",      0,  0}, {"Write", 1, 1}, {"HubId", 7, 2, FieldKind::Ignored},
    {"rsv",      11,  8, FieldKind::Ignored},
    {"RPN",      47, 12},
    {"unused",   63, 48, FieldKind::Ignored}});
// A table address register: where the table of one bus is. 2^size * 64 KiB.
inline constexpr auto kTar = layout("TAR", "pci-calgary_64.c TAR_SW_BITS, asm/calgary.h", 64, {
    {"size",      2,  0}, {"valid", 3, 3}, {"rsv", 14, 4, FieldKind::Ignored},
    {"address",  47, 15},
    {"rsv2",     63, 48, FieldKind::Ignored}});
// DEVIATION(tce-001): the TARs of all 256 buses lie in a page of memory that one register points to; hardware has four of
// them as registers in each chip.
inline constexpr auto kBusTable = layout("BUS_TABLE", "this model", 64, {
    {"enable",    0,  0}, {"rsv", 11, 1, FieldKind::Ignored},
    {"address",  63, 12}});
// Invalidates entries of the TCE cache: one page or all pages of a partitionable endpoint, which is a bus here.
inline constexpr auto kKill = layout("TCE_KILL", "pci-ioda.c PHB3_TCE_KILL_*", 64, {
    {"PE",        7,  0}, {"rsv", 11, 8, FieldKind::Ignored},
    {"address",  60, 12},
    {"ONE",      61, 61}, {"ALL_OF_PE", 62, 62}, {"ALL", 63, 63}});

inline constexpr auto kGartEntry = layout("GPTE", "amd_gart_64.c GPTE_ENCODE, asm/gart.h", 32, {
    {"VALID",     0,  0}, {"COHERENT", 1, 1}, {"rsv", 3, 2, FieldKind::Ignored},
    {"PA39_32",  11,  4}, {"PA31_12", 31, 12}});
inline constexpr auto kApertureControl = layout("GARTAPERTURECTL", "asm/gart.h", 32, {
    {"GARTEN",    0,  0}, {"order", 3, 1}, {"DISGARTCPU", 4, 4}, {"DISGARTIO", 5, 5}, {"DISTLBWALKPRB", 6, 6},
    {"rsv",      31,  7, FieldKind::Ignored}});
inline constexpr auto kApertureBase = layout("GARTAPERTUREBASE", "amd_gart_64.c read_aperture", 32, {
    {"base",     14,  0}, {"rsv", 31, 15, FieldKind::Ignored}});  // in units of 32 MiB
inline constexpr auto kTableBase = layout("GARTTABLEBASE", "asm/gart.h enable_gart_translation", 32, {
    {"rsv",       3,  0, FieldKind::Ignored}, {"address", 31, 4}});  // bits 39:12
inline constexpr auto kCacheControl = layout("GARTCACHECTL", "asm/gart.h", 32, {
    {"INVGART",   0,  0}, {"GARTPTEERR", 1, 1}, {"rsv", 31, 2, FieldKind::Ignored}});
// clang-format on
static_assert(kTce.is_partition() && kTar.is_partition() && kBusTable.is_partition() && kKill.is_partition());
static_assert(kGartEntry.is_partition() && kApertureControl.is_partition() && kApertureBase.is_partition() &&
              kTableBase.is_partition() && kCacheControl.is_partition());

// Registers.
inline constexpr std::uint64_t kBusTableRegister = 0x0000;
inline constexpr std::uint64_t kKillRegister = 0x0210;        // [pci-ioda.c pnv_ioda_get_inval_reg]
inline constexpr std::uint64_t kTarRegister = 0x0580;         // of bus 0, 8 bytes a bus [pci-calgary_64.c tar_offsets]
inline constexpr std::uint64_t kSplitQueueRegister = 0x4870;  // [pci-calgary_64.c split_queue_offsets]
inline constexpr std::uint64_t kArbiterRegister = 0x8200;     // phb_offsets[0] | PHB_AER_OFFSET
inline constexpr std::uint64_t kBridgeStatusRegister = 0x8120;  // phb_offsets[0] | PHB_PLSSR_OFFSET
inline constexpr std::uint64_t kQueuesIdle = 0xff;              // [pci-calgary_64.c calgary_tce_cache_blast]
inline constexpr std::uint64_t kTceMmioBytes = 0x10000;
inline constexpr std::uint64_t kBuses = 256;
inline constexpr unsigned kLargestTableOrder = 7;      // [asm/calgary.h TCE_TABLE_SIZE_8M]
inline constexpr unsigned kSmallestTceWindowLg2 = 25;  // 8 Ki entries

inline constexpr std::uint64_t kApertureControlRegister = 0x90;
inline constexpr std::uint64_t kApertureBaseRegister = 0x94;
inline constexpr std::uint64_t kTableBaseRegister = 0x98;
inline constexpr std::uint64_t kCacheControlRegister = 0x9c;
inline constexpr std::uint64_t kGartMmioBytes = 0x100;
inline constexpr unsigned kSmallestApertureLg2 = 25;  // 32 MiB << order
inline constexpr unsigned kLargestApertureLg2 = 31;
inline constexpr unsigned kGartPhysicalBits = 40;  // [amd_gart_64.c GART_MAX_PHYS_ADDR]
// ASSUMPTION(gart-001): firmware puts the aperture at 2 GiB, and no memory is there up to 4 GiB.
inline constexpr std::uint64_t kApertureFirst = 0x80000000;
inline constexpr std::uint64_t kApertureLast = 0xffffffff;

// DEVIATION(flat-001): the codes are this model's; chips report faults in error registers that kernels only dump.
enum class FaultId : std::uint8_t { NoTable, OutOfWindow, NotValid, Denied, TableRead };
inline constexpr std::array kFaultRows{
    FaultRow{1, "no table", FaultClass::ContextNotPresent, false, "asm/calgary.h TAR_VALID", "the bus has no table"},
    FaultRow{2, "out of window", FaultClass::AddressSize, false, "pci-calgary_64.c it_size", "beyond the table's end"},
    FaultRow{3, "not valid", FaultClass::NotPresent, false, "asm/gart.h GPTE_VALID", "the entry allows nothing"},
    FaultRow{4, "denied", FaultClass::Permission, false, "asm/tce.h TCE_READ_SHIFT",
             "the entry allows the other access"},
    FaultRow{5, "table read", FaultClass::MemoryAccess, false, "this model", "the entry could not be read"},
};
[[nodiscard]] constexpr const FaultRow* row_of(FaultId id) { return &kFaultRows[static_cast<std::size_t>(id)]; }

}  // namespace iommu::flat
