// SPDX-License-Identifier: Apache-2.0
// One request to a timed IOMMU. The submitter owns it and keeps it alive and in place until `done` has run; the unit
// links it into its queues, so submitting allocates nothing.
//
//   request.translation = {.requester = nic, .address = iova, .length = 64_B, .access = Access::Write};
//   request.on_done<&RootPort::translated>(this, tlp_index);
//   unit.submit(request);                  // later: this->translated(tlp_index), with request.response set
#pragma once

#include <cstdint>
#include <optional>

#include "sim/base/calendar.hpp"
#include "sim/translation/cache.hpp"
#include "sim/translation/request.hpp"
#include "sim/translation/walk_cache.hpp"

namespace iommu {

// How the unit answered.
enum class UnitPath : std::uint8_t {
  Bypass,  // remapping took no part, or the address came translated
  Hit,     // from the IOTLB
  Miss,    // by a walk that this request started
  Merged,  // by a walk that another request to the same page had started
};

// Where the time between arrival and completion went. The parts add up to the whole.
struct LatencySplit {
  Picoseconds lookup;   // IOTLB pipeline, unloaded
  Picoseconds queue;    // everything else: lookup port, miss entry, walker, order, another request's walk
  Picoseconds context;  // device-table reads
  Picoseconds stage1;   // stage-1 table reads and marks
  Picoseconds stage2;   // stage-2 table reads and marks
  Picoseconds memory;   // of those reads, the part spent waiting for a busy memory system
  Picoseconds stalled;  // from a fault until software decided

  [[nodiscard]] constexpr Picoseconds total() const {
    return lookup + queue + context + stage1 + stage2 + memory + stalled;
  }
};

struct UnitRequest {
  // Set by the submitter, not touched by the unit.
  TranslationRequest translation;
  std::uint8_t port = 0;  // of the unit, whose TLBs look first
  Calendar::Action done = nullptr;
  void* context = nullptr;
  std::uint64_t argument = 0;

  template <auto kMember, class T>
  void on_done(T* object, std::uint64_t a = 0) {
    done = [](void* self, std::uint64_t x) { (static_cast<T*>(self)->*kMember)(x); };
    context = object;
    argument = a;
  }

  // Set by the unit before `done` runs.
  TranslationResponse response;  // a Fault has been recorded in the unit's registers already
  UnitPath path = UnitPath::Bypass;
  bool context_missed = false;  // device tables had to be read, by this request or one it waited for
  Picoseconds arrival;
  Picoseconds completed;
  LatencySplit split;

  // The unit's own, while submitted.
  struct Internal {
    UnitRequest* next = nullptr;
    std::uint64_t sequence = 0;  // order of lookups
    std::uint32_t to_pass = 0;   // older misses that must be answered before this hit
    std::optional<WalkTag> tag;  // once the context is known
    std::uint32_t context_reads = 0;
    bool is_missed = false;   // left the pipeline for a fetch, a walk or a miss entry
    bool is_counted = false;  // as a lookup
    bool is_answered = false;
    std::optional<std::uint8_t> draining{};  // a fence waits for this request
    bool is_outdated = false;                // stalled by tables that were invalidated since
    bool was_woken = false;  // translated anew because a stall's tag was free: passes that on if it needs none
    Picoseconds stalled_since;
    std::optional<std::uint32_t> slot;  // of its port, from its way to the shared part until the answer is there
    std::optional<Epoch> fills_port;    // the answer may be kept by the port; what it rests on is as old as this
    bool is_behind_port = false;        // its answer has a message's way to go
  } internal;
};

}  // namespace iommu
