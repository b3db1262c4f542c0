// SPDX-License-Identifier: Apache-2.0
// A fault of a request, with what its event needs.
#pragma once

#include "models/amdvi/decoded_context.hpp"
#include "models/amdvi/spec.hpp"
#include "sim/translation/answers.hpp"

namespace iommu::amdvi {

// What events report of a device table entry.
struct EventContext {
  std::uint64_t domain = 0;
  bool suppress_all = false;  // SA
  bool suppress_one = false;  // SE
  bool guest = false;         // the fault is of the guest's translation
};

[[nodiscard]] inline Fault fault_of(const TranslationRequest& request, const FaultRow* row, Stage stage,
                                    const EventContext& context) {
  Fault fault = iommu::fault_of(request, row, stage);
  // Page faults of translation requests are answered, not logged. [§2.1.3.2]
  fault.suppressed = row->qualified && (context.suppress_all || request.type == AddressType::TranslationRequest);
  fault.family_bits = pack<kEventBits>({
      {"domain", context.domain},
      {"guest", context.guest ? 1U : 0U},
      {"suppress_one", context.suppress_one ? 1U : 0U},
  });
  return fault;
}

}  // namespace iommu::amdvi
