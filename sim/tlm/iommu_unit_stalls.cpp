// SPDX-License-Identifier: Apache-2.0
// The timed IOMMU's part in stalls: a faulting request that software is to decide on steps aside, and comes back or
// ends as software says.
#include <cinttypes>
#include <cstdio>
#include <utility>

#include "sim/tlm/iommu_unit.hpp"

namespace iommu {

void IommuUnit::stall(UnitRequest& request, const Fault& fault) {
  request.response = fault;
  request.internal.stalled_since = calendar_.now();
  step_aside(request);
  if (fault.awaits_stall) {
    ++statistics_.stalls.deferred;
    stalled_.defer(request);
  } else {
    ++statistics_.stalls.held;
    stalled_.hold(request);
    write_down(fault);
  }
  request.internal.was_woken = false;
  // Who followed it may need less than what it was refused.
  if (request.internal.slot) hand_on(request.port, slots_of(request.port).detach(request));
}

// Whatever waits for this request's answer waits no longer: neither requests behind it nor a fence. What it learnt is
// void if an invalidation came meanwhile.
void IommuUnit::step_aside(UnitRequest& request) {
  if (parameters_.ordering == Ordering::InOrder) {
    order_.remove(&request);
    release_in_order();
  }
  if (std::exchange(request.internal.is_missed, false)) {
    --outstanding_misses_;
    if (!held_.is_empty()) release_held(request.internal.sequence);
  }
  const auto draining = std::exchange(request.internal.draining, std::nullopt);
  request.internal.is_outdated = draining.has_value();
  if (draining) draining_.leave(*draining);
}

// As though it had just arrived.
void IommuUnit::retry(UnitRequest& request, Woken woken) {
  request.split.stalled += calendar_.now() - request.internal.stalled_since;
  const auto slot = request.internal.slot;
  request.internal = {};
  request.internal.slot = slot;
  request.internal.was_woken = woken == Woken::Yes;
  request.path = UnitPath::Hit;
  admit(request);
}

void IommuUnit::terminate(UnitRequest& request, Termination termination) {
  Fault& fault = std::get<Fault>(request.response);
  fault.stall.reset();
  fault.awaits_stall = false;
  fault.termination = termination;
  request.split.stalled += calendar_.now() - request.internal.stalled_since;
  ++statistics_.faulted;
  calendar_.call_at<&IommuUnit::deliver_terminated>(calendar_.now(), this, reinterpret_cast<std::uint64_t>(&request));
}

void IommuUnit::deliver_terminated(std::uint64_t request) {
  // NOLINTNEXTLINE(performance-no-int-to-ptr): calendar arguments are integers
  UnitRequest& ended = *reinterpret_cast<UnitRequest*>(request);
  const std::uint8_t port = ended.port;
  UnitRequest* followers = ended.internal.slot ? slots_of(port).release(ended) : nullptr;
  deliver(ended);
  hand_on(port, followers);
}

void IommuUnit::resolve_stalls(const std::vector<StallResolution>& resolutions) {
  for (const StallResolution& resolution : resolutions) {
    for (UnitRequest* request : stalled_.take(resolution)) {
      const bool freed_tag = std::get<Fault>(request->response).stall.has_value();
      if (resolution.action == StallResolution::Action::Retry) {
        ++statistics_.stalls.retried;
        retry(*request, freed_tag ? Woken::Yes : Woken::No);
        continue;
      }
      ++statistics_.stalls.terminated;
      terminate(*request, resolution.termination);
      if (freed_tag) wake_deferred();
    }
  }
}

void IommuUnit::wake_deferred() {
  if (UnitRequest* next = stalled_.take_deferred()) retry(*next, Woken::Yes);
}

void IommuUnit::outdate_stalls(const InvalidationScope& scope) {
  stalled_.for_each_held([&](UnitRequest& request) {
    if (may_concern(scope, request)) request.internal.is_outdated = true;
  });
}

void IommuUnit::withdraw_outdated_stalls() {
  const auto withdraw = [this](StallTag tag) { return core_.withdraw_stall(tag); };
  for (UnitRequest* request : stalled_.take_outdated(withdraw)) retry(*request, Woken::Yes);
}

std::string IommuUnit::waits_for() const {
  if (stalled_.is_empty()) return {};
  const UnitRequest& oldest = stalled_.oldest();
  const RequesterId who = oldest.translation.requester;
  char text[160];
  std::snprintf(text, sizeof text, "%zu stalled, the oldest of %02x:%02x.%x at %#" PRIx64 " since %.0f ns",
                stalled_.size(), static_cast<unsigned>(who.bus()), static_cast<unsigned>(who.device()),
                static_cast<unsigned>(who.function()), oldest.translation.address.value(),
                to_ns(oldest.internal.stalled_since));
  return text;
}

}  // namespace iommu
