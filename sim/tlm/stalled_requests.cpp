// SPDX-License-Identifier: Apache-2.0
#include "sim/tlm/stalled_requests.hpp"

namespace iommu {

std::vector<UnitRequest*> StalledRequests::take(const StallResolution& resolution) {
  const auto is_meant = [&](const UnitRequest& request) {
    return request.translation.requester == resolution.requester &&
           (!resolution.tag || fault_of(request).stall == resolution.tag);
  };
  std::vector<UnitRequest*> taken = take_if(held_, is_meant);
  const std::vector<UnitRequest*> unrecorded = take_if(deferred_, is_meant);
  taken.insert(taken.end(), unrecorded.begin(), unrecorded.end());
  return taken;
}

UnitRequest* StalledRequests::take_deferred() {
  if (deferred_.empty()) return nullptr;
  UnitRequest* request = deferred_.front();
  deferred_.pop_front();
  return request;
}

}  // namespace iommu
