// SPDX-License-Identifier: Apache-2.0
// Executes what software invalidates: fetches descriptors through memory, decodes them, takes the time to scan the
// caches, and completes fences once nothing can use an older translation any more.
//
// Unloaded time from the doorbell's arrival to the visible status write of one invalidation and one fence:
//   fetch_start + 2 * (read + decode) + scan + scan_entry * entries + drain + write      (one descriptor per fetch)
// Commands of one queue execute in order, one at a time; a fence holds up what follows it. A unit with several queues
// has one of these for each: they fetch, decode and wait side by side, and take turns at the caches.
#pragma once

#include <algorithm>
#include <coroutine>
#include <cstdint>
#include <vector>

#include "sim/base/calendar.hpp"
#include "sim/base/task.hpp"
#include "sim/tlm/fifo.hpp"
#include "sim/tlm/in_flight.hpp"
#include "sim/tlm/iommu_parameters.hpp"
#include "sim/tlm/iommu_statistics.hpp"
#include "sim/tlm/memory_system.hpp"
#include "sim/translation/iommu_core.hpp"

namespace iommu {

// The unit whose caches are invalidated.
class InvalidationTarget {
 public:
  virtual ~InvalidationTarget() = default;
  // The caches forget what the scope covers, now; requests that may carry it are from now on being drained.
  virtual void take_effect(const InvalidationScope& scope) = 0;
  [[nodiscard]] virtual std::uint32_t entries_examined(const InvalidationScope& scope) const = 0;
  virtual void raise(const InterruptMessage& message) = 0;
  // The core fetched or applied a command: it may have interrupts to raise and event records to write.
  virtual void core_acted() = 0;
  virtual void resolve_stalls(const std::vector<StallResolution>& resolutions) = 0;
  // Stalls that rest on what was invalidated and that software cannot know of yet are translated anew.
  virtual void withdraw_outdated_stalls() = 0;
  // Whether records of faults are yet to be written.
  [[nodiscard]] virtual bool is_recording() const = 0;
  // Resumes the waiter once the records of faults up to now are in memory, or lost. Only while is_recording().
  virtual void when_recorded(std::coroutine_handle<> waiter) = 0;
};

// Fetches descriptors, several at once if `fetch_bytes` says so. Descriptors fetched ahead are used only until the next
// doorbell: those behind the old tail were not written yet when they were read.
class CommandPort final : public MemoryPort {
 public:
  CommandPort(MemorySystem::Port& memory, Bytes fetch, InvalidationCounts& counts)
      : memory_(memory), fetch_bytes_(fetch), counts_(counts) {}

  bool begin(MemoryAccess& access) override;
  void on_doorbell() {
    is_buffered_ = false;
    is_stale_ = true;
  }

 private:
  [[nodiscard]] bool holds(const MemoryAccess& access) const;
  void copy_to(MemoryAccess& access) const;
  void fetched();

  MemorySystem::Port& memory_;
  Bytes fetch_bytes_;
  InvalidationCounts& counts_;
  PostedAccess line_{};
  bool is_buffered_ = false;
  bool is_stale_ = false;  // a doorbell came while the line was being read
  MemoryAccess* pending_ = nullptr;
};

// One invalidation at a time examines the caches of a unit; queues are served in the order in which they ask. None has
// more than one waiting, so that no queue waits longer than for one of each other.
class CacheScanner {
 public:
  // When a scan that is asked for now is over.
  [[nodiscard]] Picoseconds reserve(Picoseconds now, Picoseconds length) {
    free_at_ = std::max(free_at_, now) + length;
    return free_at_;
  }

 private:
  Picoseconds free_at_;
};

// What the queues of one unit share; outlives them.
struct InvalidationEnvironment {
  Calendar& calendar;
  IommuCore& core;
  MemorySystem::Port& memory;
  InvalidationTarget& target;
  InFlightTracker& requests;  // answered or being answered with what an invalidation has removed
  InFlightTracker& dma;
  CacheScanner& scanner;
  IommuStatistics& statistics;
};

class InvalidationUnit {
 public:
  // `queue` outlives the unit.
  InvalidationUnit(const InvalidationEnvironment& environment, CommandQueue& queue, const IommuParameters& parameters);

  void connect(DeviceTlbPort& device_tlbs) { device_tlbs_ = &device_tlbs; }
  // The register write that makes commands pending has arrived.
  void on_doorbell();
  // Register-based invalidation: applied after what is being executed; the core is told when it is complete.
  void invalidate_by_register(const std::vector<InvalidationScope>& scopes);
  // Takes an answer to page requests to the device, if there is a way to it.
  void respond(const PageRequestResponse& response);
  [[nodiscard]] bool is_idle() const { return !is_running_; }

 private:
  struct Delay {
    Calendar& calendar;
    Picoseconds length;
    bool await_ready() const { return length == Picoseconds{}; }
    void await_suspend(std::coroutine_handle<> caller) { calendar.resume_at(calendar.now() + length, caller); }
    void await_resume() const {}
  };
  struct Drain {
    InvalidationUnit& unit;
    bool await_ready() const { return false; }
    void await_suspend(std::coroutine_handle<> caller) { unit.begin_drain(caller); }
    void await_resume() const {}
  };

  struct Recorded {
    InvalidationTarget& target;
    bool await_ready() const { return !target.is_recording(); }
    void await_suspend(std::coroutine_handle<> caller) { target.when_recorded(caller); }
    void await_resume() const {}
  };

  void wake();
  void begin_service(std::uint64_t);
  Task<void> serve();
  Task<void> execute(CommandEffect effect);
  Task<void> invalidate(InvalidationScope scope);
  Task<void> complete(FenceCompletion fence);
  void begin_drain(std::coroutine_handle<> waiter);
  void requests_drained();
  void drain_dma(std::uint64_t);
  void dma_drained();
  void end_drain();
  void device_tlb_done();

  InvalidationEnvironment unit_;
  Calendar& calendar_;
  CommandQueue& queue_;
  InvalidationTiming timing_;
  DrainPolicy policy_;
  CommandPort port_;
  DeviceTlbPort* device_tlbs_ = nullptr;
  Fifo<InvalidationScope> by_register_;
  bool is_running_ = false;
  std::uint64_t device_tlbs_pending_ = 0;

  enum class DrainStep : std::uint8_t { None, Requests, Dma, DeviceTlbs };
  DrainStep drain_step_ = DrainStep::None;
  bool is_beginning_drain_ = false;
  std::coroutine_handle<> drain_waiter_;
  Task<void> service_;  // last: destroyed before what it uses
};

}  // namespace iommu
