// SPDX-License-Identifier: Apache-2.0
// Replays a trace: the driver's calls on a vCPU, the device's DMAs on its port.
//
// Calls run in trace order, one after the other. DMAs are issued in trace order, each as soon as its map call has
// returned and the limit of DMAs in flight allows it; recorded times play no part, so a replay shows how fast the same
// work could go. An unmap call waits until every DMA of its mapping has completed (the vCPU sleeps meanwhile, as a
// driver waits for its interrupt).
#pragma once

#include <cstdint>
#include <vector>

#include "sim/base/calendar.hpp"
#include "sim/base/cpu_port.hpp"
#include "sim/base/histogram.hpp"
#include "sim/base/task.hpp"
#include "sim/pcie/dma_port.hpp"
#include "sim/pcie/gate.hpp"
#include "sim/pcie/trace.hpp"
#include "sim/pcie/workload.hpp"

namespace iommu {

// The DMA API as a replayed driver calls it. `id` numbers map calls from 0; an unmap names the map it undoes.
class DriverOperations {
 public:
  struct Map {
    std::uint32_t id = 0;
    std::span<const TraceSegment> segments;  // valid until the task is done
    Permissions permissions;
  };
  struct Unmap {
    std::uint32_t id = 0;
    std::span<const TraceSegment> segments;
  };
  virtual ~DriverOperations() = default;
  // What the device must put on the bus to reach each segment, in order; empty when mapping failed, and then the DMAs
  // and the unmap of this mapping are left out. Parameters are values: they live in the task.
  virtual Task<std::vector<Iova>> map(CpuPort& cpu, Map call) = 0;
  virtual Task<void> unmap(CpuPort& cpu, Unmap call) = 0;
};

struct TracePlayerParameters {
  std::uint32_t outstanding = 16;  // DMAs in flight
};

struct TracePlayerStatistics {
  std::uint64_t maps = 0;
  std::uint64_t failed_maps = 0;
  std::uint64_t unmaps = 0;
  std::uint64_t dmas = 0;
  std::uint64_t skipped_dmas = 0;  // of failed maps
  std::uint64_t faulted = 0;
  std::uint64_t bytes = 0;
  Histogram dma_latency;
  Histogram map_latency;    // of the call, as the driver sees it
  Histogram unmap_latency;  // of the call, without the wait for the device
  Picoseconds started;
  Picoseconds finished;  // the last DMA or call
};

class TracePlayer {
 public:
  // Everything passed by reference outlives the player.
  TracePlayer(const Trace& trace, TracePlayerParameters parameters, Calendar& calendar, CpuPort& cpu, DmaPort& dma,
              SignalPort& signals, DriverOperations& driver);
  TracePlayer(const TracePlayer&) = delete;
  TracePlayer& operator=(const TracePlayer&) = delete;

  void start();
  [[nodiscard]] bool is_done() const { return calls_done_ && next_dma_ == trace_.dmas.size() && in_flight_ == 0; }
  [[nodiscard]] const TracePlayerStatistics& statistics() const { return statistics_; }
  // Since the last reset; `started` is then the time of the reset.
  void reset_statistics();
  // Counts DMAs there as well; outlives the player.
  void connect(IoMeter& meter) { meter_ = &meter; }
  // The requester that DMAs carry; the trace's own unless set before start().
  void set_requester(RequesterId requester) { requester_ = requester; }

 private:
  enum class MapState : std::uint8_t { NotYet, Mapped, Failed };
  struct Mapping {
    MapState state = MapState::NotYet;
    std::uint32_t dmas_left = 0;
    std::vector<Iova> addresses;
  };
  Task<void> call_loop();
  Task<void> do_map(std::uint32_t index);
  Task<void> do_unmap(std::uint32_t map);
  Task<void> dma_slot();
  [[nodiscard]] bool can_issue() const;
  void account(const TraceDma& dma, Picoseconds began, DmaResult result);
  void dma_over(const TraceDma& dma);

  const Trace& trace_;
  TracePlayerParameters parameters_;
  Calendar& calendar_;
  CpuPort& cpu_;
  DmaPort& dma_;
  SignalPort& signals_;
  DriverOperations& driver_;
  RequesterId requester_;
  TracePlayerStatistics statistics_;
  std::vector<Mapping> mappings_;
  std::size_t next_dma_ = 0;
  std::uint32_t in_flight_ = 0;
  bool calls_done_ = false;
  std::uint32_t awaited_map_ = 0;  // of the unmap call that waits
  bool call_waits_ = false;
  Signal dma_finished_;
  IoMeter* meter_ = nullptr;
  Gate issue_;
  std::vector<Task<void>> tasks_;
};

}  // namespace iommu
