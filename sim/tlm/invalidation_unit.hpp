// SPDX-License-Identifier: Apache-2.0
// Executes what software invalidates: fetches descriptors through memory, decodes them, takes the time to scan the
// caches, and completes fences once nothing can use an older translation any more.
//
// Unloaded time from the doorbell's arrival to the visible status write of one invalidation and one fence:
//   fetch_start + 2 * (read + decode) + scan + scan_entry * entries + drain + write      (one descriptor per fetch)
// Commands execute in order, one at a time; a fence holds up what follows it.
#pragma once

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
  // No request is being drained. When this becomes true, InvalidationUnit::on_drained() is called.
  [[nodiscard]] virtual bool is_drained() const = 0;
  virtual void raise(const InterruptMessage& message) = 0;
  // The core fetched or applied a command: it may have interrupts to raise and event records to write.
  virtual void core_acted() = 0;
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

class InvalidationUnit {
 public:
  InvalidationUnit(Calendar& calendar, IommuCore& core, MemorySystem::Port& memory, InvalidationTarget& target,
                   InFlightTracker& in_flight, const IommuParameters& parameters, IommuStatistics& statistics);

  void connect(DeviceTlbPort& device_tlbs) { device_tlbs_ = &device_tlbs; }
  // The register write that makes commands pending has arrived.
  void on_doorbell();
  // Register-based invalidation: applied after what is being executed; the core is told when it is complete.
  void invalidate_by_register(const std::vector<InvalidationScope>& scopes);
  void on_drained();
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

  void wake();
  void begin_service(std::uint64_t);
  Task<void> serve();
  Task<void> execute(CommandEffect effect);
  Task<void> invalidate(InvalidationScope scope);
  Task<void> complete(FenceCompletion fence);
  void begin_drain(std::coroutine_handle<> waiter);
  void advance_drain();
  void advance_drain_at(std::uint64_t);
  void dma_drained();
  void device_tlb_done();

  Calendar& calendar_;
  IommuCore& core_;
  MemorySystem::Port& memory_;
  InvalidationTarget& target_;
  InFlightTracker& in_flight_;
  InvalidationTiming timing_;
  DrainPolicy policy_;
  IommuStatistics& statistics_;
  CommandPort port_;
  DeviceTlbPort* device_tlbs_ = nullptr;
  Fifo<InvalidationScope> by_register_;
  bool is_running_ = false;
  std::uint64_t device_tlbs_pending_ = 0;

  enum class DrainStep : std::uint8_t { None, Requests, Dma, DeviceTlbs };
  DrainStep drain_step_ = DrainStep::None;
  std::coroutine_handle<> drain_waiter_;
  Task<void> service_;  // last: destroyed before what it uses
};

}  // namespace iommu
