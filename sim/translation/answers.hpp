// SPDX-License-Identifier: Apache-2.0
// How cores answer requests, alike in every family.
#pragma once

#include "sim/base/task.hpp"
#include "sim/translation/request.hpp"

namespace iommu {

// A fault of a request; what recording it needs besides is the family's.
[[nodiscard]] inline Fault fault_of(const TranslationRequest& request, const FaultRow* row, Stage stage) {
  Fault fault;
  fault.row = row;
  fault.stage = stage;
  fault.address = request.address;
  fault.access = request.access;
  fault.requester = request.requester;
  fault.pasid = request.pasid;
  fault.type = request.type;
  fault.privileged = request.privileged;
  return fault;
}

// For a walk that is no coroutine itself (which spares a frame) and needs no table.
[[nodiscard]] inline Task<TranslationResponse> at_once(TranslationResponse response) { co_return response; }

}  // namespace iommu
