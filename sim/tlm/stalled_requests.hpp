// SPDX-License-Identifier: Apache-2.0
// Requests that faulted and wait for software: stalled ones, which software names by requester and tag, and deferred
// ones, which are to stall as soon as a tag is free. Who waits here holds up nobody and is held up by no fence.
//
// A tag that becomes free wakes one deferred request, the oldest. It is translated anew; if it then needs no tag, it
// wakes the next, so that nobody waits while a tag is free.
#pragma once

#include <algorithm>
#include <deque>
#include <vector>

#include "sim/tlm/unit_request.hpp"
#include "sim/translation/iommu_core.hpp"

namespace iommu {

class StalledRequests {
 public:
  // The request's response is the fault: with a tag, or awaiting one.
  void hold(UnitRequest& request) { held_.push_back(&request); }
  void defer(UnitRequest& request) {
    if (request.internal.was_woken)
      deferred_.push_front(&request);
    else
      deferred_.push_back(&request);
  }

  // Takes off whom the resolution names, oldest first: one stalled request, or all requests of a requester.
  [[nodiscard]] std::vector<UnitRequest*> take(const StallResolution& resolution);
  // Takes off those held whose stall rests on what an invalidation removed, if `withdraw(tag)` gets the tag back; the
  // others stay, as software knows of them by now.
  template <class Withdraw>
  [[nodiscard]] std::vector<UnitRequest*> take_outdated(Withdraw&& withdraw) {
    return take_if(held_, [&](UnitRequest& request) {
      return request.internal.is_outdated && withdraw(*fault_of(request).stall);
    });
  }
  // The oldest deferred request, off the queue; null when there is none.
  [[nodiscard]] UnitRequest* take_deferred();

  template <class Visit>
  void for_each_held(Visit&& visit) {
    for (UnitRequest* request : held_) visit(*request);
  }
  [[nodiscard]] bool is_empty() const { return held_.empty() && deferred_.empty(); }
  [[nodiscard]] std::size_t size() const { return held_.size() + deferred_.size(); }
  // Of all that wait; there is one.
  [[nodiscard]] const UnitRequest& oldest() const { return held_.empty() ? *deferred_.front() : *held_.front(); }

 private:
  static const Fault& fault_of(const UnitRequest& request) { return std::get<Fault>(request.response); }
  template <class Chooses>
  static std::vector<UnitRequest*> take_if(std::deque<UnitRequest*>& from, Chooses&& chooses) {
    std::vector<UnitRequest*> taken;
    std::erase_if(from, [&](UnitRequest* request) {
      if (!chooses(*request)) return false;
      taken.push_back(request);
      return true;
    });
    return taken;
  }

  std::deque<UnitRequest*> held_;  // in the order in which they stalled
  std::deque<UnitRequest*> deferred_;
};

}  // namespace iommu
