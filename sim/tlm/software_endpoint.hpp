// SPDX-License-Identifier: Apache-2.0
// DMA of a device that a device model emulates: a thread of the device model takes one transfer after the other, has
// each page's address translated by software, and copies. No link, no root port and no IOMMU take part. [virtio-iommu
// RFC of 2017, second scenario]
//
// ASSUMPTION(virtio-003): the thread is not the vCPU's and has a core of its own; copies go through its caches, so they
// take the time of their cost row and none of the memory system's.
// DEVIATION(virtio-004): the driver's doorbell and the device's interrupt cost what a real device's do.
#pragma once

#include <deque>

#include "sim/base/calendar.hpp"
#include "sim/base/cpu_port.hpp"
#include "sim/base/task.hpp"
#include "sim/pcie/dma_port.hpp"
#include "sim/strategy/strategy.hpp"
#include "sim/tlm/endpoint.hpp"

namespace iommu {

class SoftwareEndpoint final : public DmaPort {
 public:
  // `thread` is the device model's; several endpoints may share it. `endpoint`: under which id the guest has attached
  // the device. References outlive this object; `observer` may be null. Clear the calendar before destroying one that
  // has started.
  SoftwareEndpoint(Calendar& calendar, CpuPort& thread, SignalPort& signals, DmaObserver* observer,
                   RequesterId endpoint)
      : calendar_(calendar), thread_(thread), signals_(signals), observer_(observer), endpoint_(endpoint) {}

  // Once, before the first transfer.
  void start(strategy::SoftwareTranslation& translation);
  bool begin(DmaTransfer& transfer) override;

  [[nodiscard]] const EndpointStatistics& statistics() const { return statistics_; }
  void reset_statistics() { statistics_ = {}; }

 private:
  struct Waiting {
    DmaTransfer* transfer = nullptr;
    Picoseconds submitted;
  };
  Task<void> serve(strategy::SoftwareTranslation& translation);
  Task<void> move(strategy::SoftwareTranslation& translation, DmaTransfer& transfer);

  Calendar& calendar_;
  CpuPort& thread_;
  SignalPort& signals_;
  DmaObserver* observer_;
  RequesterId endpoint_;
  Signal work_;
  std::deque<Waiting> queue_;
  EndpointStatistics statistics_;
  Task<void> server_;
};

}  // namespace iommu
