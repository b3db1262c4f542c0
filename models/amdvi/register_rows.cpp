// SPDX-License-Identifier: Apache-2.0
#include "models/amdvi/register_rows.hpp"

#include "models/amdvi/spec.hpp"

namespace iommu::amdvi {

namespace {

constexpr std::uint64_t when(bool supported, std::uint64_t mask) { return supported ? mask : 0; }

// Bits of features that are absent read as zero.
std::uint64_t control_bits(const Capabilities& c) {
  return mask_of<kControl, "IommuEn"> | mask_of<kControl, "HtTunEn"> | mask_of<kControl, "EventLogEn"> |
         mask_of<kControl, "EventIntEn"> | mask_of<kControl, "ComWaitIntEn"> | mask_of<kControl, "InvTimeOut"> |
         mask_of<kControl, "PassPW"> | mask_of<kControl, "ResPassPW"> | mask_of<kControl, "Coherent"> |
         mask_of<kControl, "Isoc"> | mask_of<kControl, "CmdBufEn"> |
         when(c.page_requests,
              mask_of<kControl, "PPRLogEn"> | mask_of<kControl, "PprIntEn"> | mask_of<kControl, "PPREn">) |
         when(c.guest_translation, mask_of<kControl, "GTEn">) |
         when(c.guest_dirty_disable, mask_of<kControl, "GDUpdateDis">) |
         when(c.guest_accessed_disable, mask_of<kControl, "GAUpdateDis">);
}

}  // namespace

// clang-format off
std::vector<RegisterRow> register_rows(const Identity& id) {
  const Capabilities c(id);
  constexpr std::uint64_t kRing = mask_of<kRingBase, "Base"> | mask_of<kRingBase, "Len">;
  constexpr std::uint64_t kPointer = mask_of<kRingPointer, "Ptr">;
  constexpr std::uint64_t kWord = ~0ULL;
  // No memory yet: the smallest legal ring is what the length registers hold out of reset.
  const std::uint64_t ring_reset = pack<kRingBase>({{"Len", kSmallestRingLg2}});
  const std::uint64_t msi = when(c.msi_in_mmio, pack<kMsiCapability>({{"MsiCapID", kMsiCapabilityId}, {"Msi64En", 1}}));
  return {
      {"Device Table Base",      offset::kDeviceTableBase,     8, 0, mask_of<kDeviceTableBase, "Size"> |
                                                                     mask_of<kDeviceTableBase, "DevTabBase">, 0},
      {"Command Buffer Base",    offset::kCommandBase,         8, ring_reset, kRing, 0},
      {"Event Log Base",         offset::kEventBase,           8, ring_reset, kRing, 0},
      {"IOMMU Control",          offset::kControl,             8, 0, control_bits(c), 0},
      {"Exclusion Base",         offset::kExclusionBase,       8, 0, mask_of<kExclusionBase, "ExEn"> |
                                                                     mask_of<kExclusionBase, "Allow"> |
                                                                     mask_of<kExclusionBase, "ExBase">, 0},
      {"Exclusion Range Limit",  offset::kExclusionLimit,      8, 0, mask_of<kExclusionLimit, "ExLimit">, 0},
      {"Extended Feature",       offset::kExtendedFeatures,    8, id.extended_features, 0, 0},
      {"PPR Log Base",           offset::kPprBase,             8, when(c.page_requests, ring_reset),
                                                                  when(c.page_requests, kRing), 0},
      {"Hardware Event Upper",   offset::kHardwareEventHigh,   8, 0, when(c.hardware_error_registers, kWord), 0},
      {"Hardware Event Lower",   offset::kHardwareEventLow,    8, 0, when(c.hardware_error_registers, kWord), 0},
      {"Hardware Event Status",  offset::kHardwareEventStatus, 8, 0, 0, mask_of<kHardwareEventStatus, "HEV"> |
                                                                        mask_of<kHardwareEventStatus, "HEO">},
      {"MSI Capability Header",  offset::kMsiCapability,       4, msi, when(c.msi_in_mmio,
                                                                  mask_of<kMsiCapability, "MsiEn">), 0},
      {"MSI Address Low",        offset::kMsiAddressLow,       4, 0, when(c.msi_in_mmio,
                                                                  mask_of<kMsiAddressLow, "MsiAddr">), 0},
      {"MSI Address High",       offset::kMsiAddressHigh,      4, 0, when(c.msi_in_mmio, bits_between(0, 32)), 0},
      {"MSI Data",               offset::kMsiData,             4, 0, when(c.msi_in_mmio, mask_of<kMsiData, "MsiData">), 0},
      {"Extended Feature 2",     offset::kExtendedFeatures2,   8, 0, 0, 0},
      {"Command Buffer Head",    offset::kCommandHead,         8, 0, kPointer, 0},
      {"Command Buffer Tail",    offset::kCommandTail,         8, 0, kPointer, 0},
      {"Event Log Head",         offset::kEventHead,           8, 0, kPointer, 0},
      {"Event Log Tail",         offset::kEventTail,           8, 0, kPointer, 0},
      {"IOMMU Status",           offset::kStatus,              8, 0, 0, mask_of<kStatus, "EventOverflow"> |
                                                                        mask_of<kStatus, "EventLogInt"> |
                                                                        mask_of<kStatus, "ComWaitInt"> |
                                                                        mask_of<kStatus, "PprOverflow"> |
                                                                        mask_of<kStatus, "PprInt">},
      {"PPR Log Head",           offset::kPprHead,             8, 0, when(c.page_requests, kPointer), 0},
      {"PPR Log Tail",           offset::kPprTail,             8, 0, when(c.page_requests, kPointer), 0},
  };
}
// clang-format on

}  // namespace iommu::amdvi
