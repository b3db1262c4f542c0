// SPDX-License-Identifier: Apache-2.0
// A timed IOMMU: an IommuCore (what tables and registers mean) with caches, queues, walkers and an invalidation unit
// around it. The core decides, the unit sequences; one request through an idle unit gets exactly what the core alone
// would answer.
//
//   submit ─► lookup port ─► context cache ─► IOTLB ─► done            a hit: one event, no coroutine, no allocation
//                                │ miss          │ miss
//                                ▼               ▼
//                        context fetcher    miss entry (merges equal pages) ─► walker ─► IOTLB ─► done
//
// In two tiers, each port has TLBs and translation slots before all that; what misses there crosses to the shared part
// as a message, and the answer comes back as one.
//
// Walks ahead of demand go to idle walkers only, change nothing in memory, record nothing, and are overtaken and waited
// for by invalidations and fences like any other.
//
// A hit that lacks the permission walks again: the walk knows whether that is a fault. Requests of a Bypass context, of
// a unit that is not translating, with translated addresses, ATS requests and those that ask for privilege or execution
// use no IOTLB. What plain requests are checked as may be their context's decision: copies are told apart by it.
//
// Invalidation. Walks fill caches only if no invalidation covering them came after they began to read. A fence is
// signalled after every request that might carry an older translation has been answered, and, by DrainPolicy, served by
// memory.
//
// Stalls. A fault that software is to decide on ends nothing: its record is written and the request waits, out of
// everybody's way, until a command or a register resolves it; a retried one is translated as though it had just
// arrived. A fence waits for no stalled request, but as the family demands for the records of those before it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "sim/base/calendar.hpp"
#include "sim/tlm/fifo.hpp"
#include "sim/tlm/in_flight.hpp"
#include "sim/tlm/invalidation_unit.hpp"
#include "sim/tlm/iommu_parameters.hpp"
#include "sim/tlm/iommu_statistics.hpp"
#include "sim/tlm/memory_system.hpp"
#include "sim/tlm/mmio_target.hpp"
#include "sim/tlm/port_slots.hpp"
#include "sim/tlm/stalled_requests.hpp"
#include "sim/tlm/table_walkers.hpp"
#include "sim/tlm/translation_caches.hpp"
#include "sim/tlm/unit_request.hpp"
#include "sim/translation/iommu_core.hpp"

namespace iommu {

class IommuUnit final : private RegisterListener, private InvalidationTarget, private WalkClient {
 public:
  // `core` and `memory` outlive the unit. Destroying the unit drops walks in flight: clear the calendar first.
  IommuUnit(Calendar& calendar, IommuCore& core, MemorySystem::Port& memory, const IommuParameters& parameters,
            const MmioParameters& mmio, std::uint64_t seed);
  ~IommuUnit() override = default;

  // Requests
  // ----------------------------------------------------------------------------------------------------------- Room
  // for one more request. Ask before each submit.
  [[nodiscard]] bool can_accept() const { return queued_ < parameters_.request_queue; }
  // Calls back once, when a full queue has room again: in the order of asking, one caller per place that becomes free.
  void on_space(Calendar::Action action, void* context, std::uint64_t argument = 0);
  // The request's `done` runs from the calendar, never inside submit().
  void submit(UnitRequest& request);
  // Whoever software's fault handler stands for; called after each record.
  using FaultListener = void (*)(void* self, const Fault& fault);
  void on_fault(FaultListener listener, void* self) {
    fault_listener_ = listener;
    fault_listener_self_ = self;
  }
  // Records a fault found without the unit's help (an access without time), and sends the interrupt if software asked
  // for one. Faults of submitted requests have been recorded when they are done.
  void record(Fault fault);
  // A device's page request, for software. Answers, the unit's own or software's, go to DeviceTlbPort::respond().
  void request_page(const PageRequest& request);

  // Software's side
  // ----------------------------------------------------------------------------------------------------
  [[nodiscard]] MmioTarget& registers() { return registers_; }
  [[nodiscard]] IommuCore& core() { return core_; }

  // Around it
  // ---------------------------------------------------------------------------------------------------------- The root
  // port enters each DMA here when its translation is delivered, and leaves when memory has served it.
  [[nodiscard]] InFlightTracker& in_flight() { return in_flight_; }
  void connect(DeviceTlbPort& device_tlbs);
  void connect(InterruptSink& sink) { interrupts_ = &sink; }

  [[nodiscard]] const IommuStatistics& statistics() const { return statistics_; }
  // Counts from zero again, after a warm-up; caches keep their contents.
  void reset_statistics() { statistics_ = {}; }
  [[nodiscard]] const IommuParameters& parameters() const { return parameters_; }
  // Requests submitted and not yet answered.
  [[nodiscard]] std::uint64_t pending() const { return pending_; }
  // What requests wait for that time alone will not bring; empty when there is nothing.
  [[nodiscard]] std::string waits_for() const;

 private:
  // The way of a request, in order.
  void look_up(std::uint64_t request);
  void resolve(UnitRequest& request);
  void with_context(UnitRequest& request, const Context& context, const WalkEpoch& began);
  void answer_uncached(UnitRequest& request, const TranslationResponse& response);
  void translate_directly(UnitRequest& request, const Context& context, const WalkEpoch& began);
  void miss(UnitRequest& request, const Context& context, const WalkEpoch& began);
  void answer(UnitRequest& request, const TranslationResponse& response);
  void conclude(UnitRequest& request);
  void finish(UnitRequest& request);
  void want_context(UnitRequest& request);
  void mark_missed(UnitRequest& request);
  void block(UnitRequest& request);
  void join(UnitRequest& request);
  void answer_merged(UnitRequest& request, const TranslationResponse& response, Epoch began);
  void release_held(std::uint64_t answered_sequence);
  void deliver(UnitRequest& request);

  void admit(UnitRequest& request);
  void schedule_lookup(UnitRequest& request);
  void leave_queue();
  void release_in_order();
  void write_down(const Fault& fault);
  void resume_recorded();
  void readmit_blocked();
  void count_walk(const MissEntry& entry, const TranslationResponse& response);
  void count_answer(UnitRequest& request);
  void cache(const MissEntry& entry, const Translation& translation);
  void post_interrupt(const InterruptMessage& message);
  Task<void> write_events();
  void interrupt_written(std::uint64_t slot);

  // Two tiers.
  void enter_port(UnitRequest& request);
  void look_up_first_level(std::uint64_t request);
  void look_up_port_tlb_later(UnitRequest& request);
  void look_up_port_tlb(std::uint64_t request);
  [[nodiscard]] bool may_hit_at_port(const UnitRequest& request) const;
  enum class PortLookup : std::uint8_t { First, Again };
  [[nodiscard]] bool answer_at_port(UnitRequest& request, const CachedTranslation* found, PortLookup lookup);
  void leave_port(UnitRequest& request);
  void arrive_at_shared(std::uint64_t request);
  void send_back(UnitRequest& request);
  void arrive_next_at_port(std::uint64_t);
  void arrive_at_port(UnitRequest& request);
  void hand_on(std::uint8_t port, UnitRequest* followers);
  void look_up_again(UnitRequest& request);
  [[nodiscard]] PortSlots& slots_of(std::uint8_t port) { return slots_[port % slots_.size()]; }

  // Walks ahead.
  void prefetch_behind(const MissEntry& demanded, const Translation& translation);
  void prefetch_finished(MissEntry& entry, const TranslationResponse& response);
  void keep_prefetched(const MissEntry& entry, const Translation& translation);

  // Stalls.
  enum class Woken : std::uint8_t { No, Yes };
  void stall(UnitRequest& request, const Fault& fault);
  void step_aside(UnitRequest& request);
  void retry(UnitRequest& request, Woken woken);
  void terminate(UnitRequest& request, Termination termination);
  void deliver_terminated(std::uint64_t request);
  void wake_deferred();
  void outdate_stalls(const InvalidationScope& scope);

  // WalkClient
  void context_found(ContextFetch& fetch, const ContextResult& result) override;
  void walk_finished(MissEntry& entry, const TranslationResponse& response) override;

  // RegisterListener, InvalidationTarget
  void on_register_effect(const RegisterEffect& effect) override;
  void take_effect(const InvalidationScope& scope) override;
  [[nodiscard]] std::uint32_t entries_examined(const InvalidationScope& scope) const override;
  void raise(const InterruptMessage& message) override { post_interrupt(message); }
  void core_acted() override;
  void resolve_stalls(const std::vector<StallResolution>& resolutions) override;
  void withdraw_outdated_stalls() override;
  [[nodiscard]] bool is_recording() const override { return is_writing_events_; }
  void when_recorded(std::coroutine_handle<> waiter) override;

  void overtake(MissEntry& entry);
  void overtake_walks(const InvalidationScope& scope);
  void overtake_contexts(const InvalidationScope& scope);
  void drain_answered(const InvalidationScope& scope);
  [[nodiscard]] static bool may_concern(const InvalidationScope& scope, const UnitRequest& request);
  void drain(UnitRequest* chain);
  void drain_one(UnitRequest& request);

  Calendar& calendar_;
  IommuCore& core_;
  IommuParameters parameters_;
  IommuStatistics statistics_;
  FaultListener fault_listener_ = nullptr;
  void* fault_listener_self_ = nullptr;
  TranslationCaches caches_;
  TableWalkers walkers_;
  InFlightTracker in_flight_;
  InFlightTracker draining_;  // requests that a fence waits for
  CacheScanner scanner_;
  std::vector<std::unique_ptr<InvalidationUnit>> invalidation_;  // by queue, the unit's first one first
  MmioTarget registers_;
  MemorySystem::Port& memory_;

  bool has_ports_;                          // in two tiers
  std::vector<PortSlots> slots_;            // by port
  Fifo<UnitRequest*> returning_;            // answered, on the way to their port
  std::vector<Picoseconds> lookup_starts_;  // of the last lookup_ports lookups, oldest at next_port_
  std::size_t next_port_ = 0;
  std::uint64_t next_sequence_ = 0;
  std::uint32_t queued_ = 0;
  std::uint64_t pending_ = 0;
  std::uint32_t outstanding_misses_ = 0;
  Fifo<UnitRequest*> order_;    // InOrder: all that were looked up or wait for it, oldest first
  Fifo<UnitRequest*> held_;     // OutOfOrder: hits that wait for older misses
  Fifo<UnitRequest*> blocked_;  // misses without a miss entry
  StalledRequests stalled_;
  struct SpaceWaiter {
    Calendar::Action action = nullptr;
    void* context = nullptr;
    std::uint64_t argument = 0;
  };
  Fifo<SpaceWaiter> space_waiters_;
  InterruptSink* interrupts_ = nullptr;
  Task<void> event_writer_;
  bool is_writing_events_ = false;
  std::uint64_t event_rounds_ = 0;  // times that all records which were there have been written
  struct RecordWaiter {
    std::uint64_t round = 0;
    std::coroutine_handle<> waiter;
  };
  Fifo<RecordWaiter> record_waiters_;
  struct InterruptWrite {
    PostedAccess access;
    InterruptMessage message;
  };
  std::vector<std::unique_ptr<InterruptWrite>> interrupt_writes_;  // grown to the most that were ever in flight
  std::vector<std::uint32_t> free_interrupt_writes_;
};

}  // namespace iommu
