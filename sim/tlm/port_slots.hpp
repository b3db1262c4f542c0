// SPDX-License-Identifier: Apache-2.0
// The translation slots of one port of a unit in two tiers: what misses in the port's TLBs takes one on its way to the
// shared part, and keeps it until the answer is there, while it is stalled too. A request to a page for which an older
// one has a slot waits for that answer instead, unless answers to its kind are never kept; without a free slot,
// requests wait in order.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "sim/tlm/fifo.hpp"
#include "sim/tlm/table_walkers.hpp"
#include "sim/tlm/unit_request.hpp"
#include "sim/tlm/unit_rules.hpp"

namespace iommu {

class PortSlots {
 public:
  explicit PortSlots(std::uint32_t slots) : slots_(slots) {
    for (std::uint32_t i = slots; i-- > 0;) free_.push_back(i);
  }

  enum class Outcome : std::uint8_t { HasSlot, Follows, Waits };
  Outcome take(UnitRequest& request, const MissKey& key) {
    for (Slot& slot : slots_)
      if (slot.is_followed && slot.key == key) {
        slot.followers.push(request);
        return Outcome::Follows;
      }
    if (free_.empty()) {
      waiting_.push(&request);
      return Outcome::Waits;
    }
    request.internal.slot = free_.back();
    free_.pop_back();
    slots_[*request.internal.slot].key = key;
    slots_[*request.internal.slot].is_followed = uses_caches(request.translation);
    return Outcome::HasSlot;
  }
  // Nobody follows the request from now on; returns who did, linked, oldest first.
  UnitRequest* detach(UnitRequest& request) {
    Slot& slot = slots_[*request.internal.slot];
    slot.is_followed = false;
    return slot.followers.take();
  }
  // The same, and frees its slot.
  UnitRequest* release(UnitRequest& request) {
    UnitRequest* followers = detach(request);
    free_.push_back(*request.internal.slot);
    request.internal.slot.reset();
    return followers;
  }
  // The next that waits for a slot, while there is one; null when there is neither.
  UnitRequest* next() { return waiting_.is_empty() || free_.empty() ? nullptr : waiting_.pop(); }

 private:
  struct Slot {
    MissKey key;
    RequestChain followers;
    bool is_followed = false;
  };
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_;
  Fifo<UnitRequest*> waiting_;
};

}  // namespace iommu
