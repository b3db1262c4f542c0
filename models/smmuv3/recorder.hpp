// SPDX-License-Identifier: Apache-2.0
// A second opinion on recorded SMMUv3 translations: a plain walker that shares the layouts with the core and nothing
// else. Without departures it follows the specification, and must agree with the core; with those of a recorder's
// version it must give what that version recorded, access by access.
#pragma once

#include <cstdint>

#include "sim/translation/vectors.hpp"

namespace iommu::smmuv3 {

// Where QEMU departs. The order is that of the rules.
enum class Departure : std::uint8_t {
  InvalidStreamRecorded,
  SpanUnchecked,
  SecondLevelDoubled,
  SecondLevelUnaligned,
  SubstreamsForbidden,
  StallDisableChecked,
  ContextPointerCut,
  Stage2TableCut,
  Stage2UpdatesIgnored,
  DeviceTablesTaken,
  Stage2InputByOutput,
  Stage2StartUnchecked,
  TableBaseCut,
  DevicesReadable,
  BypassUnchecked,
  Stage1SizeUnrecorded,
  ConcatenationLost,
  Stage2TableSizeUnchecked,
  Stage2SizeLast,
  TopByteFromLowerRange,
  UpperRangeByZeros,
  AnyLevelBlock,
  AccessFlagIgnored,
  UserAccessIgnored,
  TablePermissionEarly,
  TableSizeUnchecked,
  LeafSizeUnchecked,
  LeafSizeLast,
  BasesTranslatedFirst,
  BaseCutToOutput,
  TablesTranslatedAtBase,
  TableSizeAtStage2,
  TableFaultsAsStage1,
  DescriptorAccessIsRead,
  NoClass,
  kCount,
};
using Departures = std::uint64_t;  // a bit each
[[nodiscard]] constexpr Departures bit_of(Departure departure) { return 1ULL << static_cast<unsigned>(departure); }
// Those of a recorder's major version.
[[nodiscard]] Departures departures_of(unsigned recorder_major);

[[nodiscard]] VectorOutcome recorder_outcome(const VectorCase& c, Departures departures);

}  // namespace iommu::smmuv3
