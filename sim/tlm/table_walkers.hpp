// SPDX-License-Identifier: Apache-2.0
// Walks in progress: miss entries (one per page being missed on, shared by all its requests), context fetches (one per
// requester), and the walkers that work on them. A walk is a coroutine of the core, owned by its walker's slot; its
// memory accesses go through a port that times and counts them.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "sim/base/calendar.hpp"
#include "sim/base/task.hpp"
#include "sim/tlm/fifo.hpp"
#include "sim/tlm/in_flight.hpp"
#include "sim/tlm/iommu_parameters.hpp"
#include "sim/tlm/iommu_statistics.hpp"
#include "sim/tlm/memory_system.hpp"
#include "sim/tlm/translation_caches.hpp"
#include "sim/tlm/unit_request.hpp"
#include "sim/translation/iommu_core.hpp"

namespace iommu {

// The memory port of one walk or fetch: charges what is waited for to the kind of access.
class WalkPort final : public MemoryPort {
 public:
  WalkPort(Calendar& calendar, MemorySystem::Port& memory, Picoseconds issue)
      : calendar_(calendar), memory_(memory), issue_(issue) {}

  bool begin(MemoryAccess& access) override;
  // A new walk begins; `lead_in` has been spent before its first access and is charged to that. A speculative one
  // leaves memory as it is: what would change it fails.
  enum class Purpose : std::uint8_t { Demand, Speculation };
  void reset(Picoseconds lead_in, Purpose purpose);
  // Closes the account of the last access: call when the walk has ended.
  void settle();

  [[nodiscard]] const LatencySplit& spent() const { return spent_; }
  [[nodiscard]] const std::array<std::uint32_t, kAccessKinds>& reads() const { return reads_; }
  [[nodiscard]] std::uint32_t marks() const { return marks_; }

 private:
  Calendar& calendar_;
  MemorySystem::Port& memory_;
  Picoseconds issue_;
  Picoseconds lead_in_;
  Picoseconds begun_;
  AccessKind kind_ = AccessKind::Data;
  bool is_open_ = false;
  Purpose purpose_ = Purpose::Demand;
  LatencySplit spent_;
  std::array<std::uint32_t, kAccessKinds> reads_{};
  std::uint32_t marks_ = 0;
};

// What distinguishes walks that may serve each other's requests.
struct MissKey {
  RequesterId requester;
  std::optional<Pasid> pasid;
  AddressType type = AddressType::Untranslated;
  AccessMode mode;
  std::uint64_t page = 0;
  friend bool operator==(const MissKey&, const MissKey&) = default;
};

// Requests that wait for one thing, in order of arrival.
class RequestChain {
 public:
  void push(UnitRequest& request) {
    request.internal.next = nullptr;
    (last_ != nullptr ? last_->internal.next : first_) = &request;
    last_ = &request;
  }
  [[nodiscard]] UnitRequest* first() const { return first_; }
  // Empties the chain; the links between the requests stay.
  UnitRequest* take() {
    last_ = nullptr;
    return std::exchange(first_, nullptr);
  }

 private:
  UnitRequest* first_ = nullptr;
  UnitRequest* last_ = nullptr;
};

struct MissEntry {
  MissKey key;
  Context context;
  WalkTag tag;
  TranslationRequest translation;  // what is walked
  std::uint8_t port = 0;
  WalkPort::Purpose purpose = WalkPort::Purpose::Demand;
  RequestChain requests;  // of a demanded walk, the first started it
  WalkEpoch began;
  bool is_walking = false;    // table reads have begun
  bool is_overtaken = false;  // an invalidation covers it: its own requests are drained, later ones walk again
  std::optional<InFlightTracker::Ticket> draining;  // a fence waits for a speculative walk itself
  WalkPort* accounts = nullptr;                     // of its walker, once walking
  std::uint32_t slot = 0;
  std::uint32_t next_in_bucket = 0;
  bool is_used = false;
};

struct ContextFetch {
  ContextKey who;
  RequestChain requests;  // the first started the fetch
  WalkEpoch began;
  bool is_overtaken = false;
  WalkPort* port = nullptr;
  std::uint32_t slot = 0;
  bool is_used = false;
};

// Told when a fetch or a walk has ended. It takes the requests off, calls release(), and answers them.
class WalkClient {
 public:
  virtual ~WalkClient() = default;
  virtual void context_found(ContextFetch& fetch, const ContextResult& result) = 0;
  virtual void walk_finished(MissEntry& entry, const TranslationResponse& response) = 0;
};

class TableWalkers {
 public:
  TableWalkers(Calendar& calendar, IommuCore& core, MemorySystem::Port& memory, const IommuParameters& parameters,
               TranslationCaches& caches, WalkClient& client);

  // The entry on which requests with this key may wait; null when there is none.
  [[nodiscard]] MissEntry* find(const MissKey& key);
  // A new entry; null when all are taken. `began` is when the context was looked for: a walk that reads fresh entries
  // of tables that an old context points to is an old walk. Fill in what is walked and for whom, then start().
  MissEntry* allocate(const MissKey& key, const WalkEpoch& began);
  void start(MissEntry& entry);
  [[nodiscard]] bool has_free_entry() const { return !free_entries_.empty(); }
  [[nodiscard]] bool has_idle_walker() const { return !walks_.free.empty() && walks_.waiting.is_empty(); }

  // The fetch under way for this requester; null when there is none.
  [[nodiscard]] ContextFetch* find_fetch(const TranslationRequest& request);
  ContextFetch& start_fetch(UnitRequest& first);

  // Frees the entry and its walker for the next job. Called by the client, inside its call.
  void release(MissEntry& entry);
  void release(ContextFetch& fetch);

  template <class Visit>
  void for_each_miss(Visit&& visit) {
    for (MissEntry& entry : entries_)
      if (entry.is_used) visit(entry);
  }
  template <class Visit>
  void for_each_fetch(Visit&& visit) {
    for (auto& fetch : fetches_)
      if (fetch->is_used) visit(*fetch);
  }

 private:
  // A pool of slots with an initiation interval: a job starts when a slot is free and the interval since the last start
  // has passed. Jobs wait in order.
  template <class Job>
  struct Pool {
    struct Slot {
      Slot(Calendar& calendar, MemorySystem::Port& memory, Picoseconds issue, TranslationCaches& caches)
          : port(calendar, memory, issue), view(caches) {}
      WalkPort port;
      WalkView view;
      Job* job = nullptr;
      Task<void> root;  // last: destroyed before the port that it uses
    };
    std::vector<std::unique_ptr<Slot>> slots;
    std::vector<std::uint32_t> free;
    Fifo<Job*> waiting;
    Picoseconds interval;
    Picoseconds start_latency;
    Picoseconds next_start;
  };

  template <auto kStart, class Job>
  void dispatch(Pool<Job>& pool);
  void begin_walk(std::uint64_t slot);
  void begin_fetch(std::uint64_t slot);
  Task<void> run_walk(std::uint32_t slot);
  Task<void> run_fetch(std::uint32_t slot);
  [[nodiscard]] std::uint32_t& bucket_of(const MissKey& key);

  Calendar& calendar_;
  IommuCore& core_;
  TranslationCaches& caches_;
  WalkClient& client_;
  std::vector<MissEntry> entries_;
  std::vector<std::uint32_t> free_entries_;
  std::vector<std::uint32_t> buckets_;  // index + 1 of the first entry; 0: none
  std::vector<std::unique_ptr<ContextFetch>> fetches_;
  std::vector<ContextFetch*> free_fetches_;
  Pool<MissEntry> walks_;
  Pool<ContextFetch> contexts_;
};

}  // namespace iommu
