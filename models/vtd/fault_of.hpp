// SPDX-License-Identifier: Apache-2.0
// A fault of a request, with what recording it needs.
#pragma once

#include "sim/translation/answers.hpp"

namespace iommu::vtd {

enum class Recording : std::uint8_t { Enabled, Disabled };  // Disabled: some FPD on the way is set

[[nodiscard]] inline Fault fault_of(const TranslationRequest& request, const FaultRow* row, Stage stage,
                                    Recording recording) {
  Fault fault = iommu::fault_of(request, row, stage);
  fault.suppressed = row->qualified && recording == Recording::Disabled;
  return fault;
}
[[nodiscard]] inline Recording recording_of(std::uint64_t fpd) {
  return fpd != 0 ? Recording::Disabled : Recording::Enabled;
}

}  // namespace iommu::vtd
