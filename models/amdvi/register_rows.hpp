// SPDX-License-Identifier: Apache-2.0
// The register rows of a unit, by number.
#pragma once

#include <vector>

#include "models/amdvi/capabilities.hpp"
#include "sim/translation/register_file.hpp"

namespace iommu::amdvi {

enum Reg : std::size_t {
  kRegDeviceTableBase,
  kRegCommandBase,
  kRegEventBase,
  kRegControl,
  kRegExclusionBase,
  kRegExclusionLimit,
  kRegExtendedFeatures,
  kRegPprBase,
  kRegHardwareEventHigh,
  kRegHardwareEventLow,
  kRegHardwareEventStatus,
  kRegMsiCapability,
  kRegMsiAddressLow,
  kRegMsiAddressHigh,
  kRegMsiData,
  kRegExtendedFeatures2,
  kRegCommandHead,
  kRegCommandTail,
  kRegEventHead,
  kRegEventTail,
  kRegStatus,
  kRegPprHead,
  kRegPprTail,
};

[[nodiscard]] std::vector<RegisterRow> register_rows(const Identity& identity);

}  // namespace iommu::amdvi
