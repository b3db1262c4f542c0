// SPDX-License-Identifier: Apache-2.0
// What one device does during a run, together with its driver in the guest: a ring NIC, random DMA over a window, or a
// recorded trace.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "sim/base/histogram.hpp"
#include "sim/base/task.hpp"
#include "sim/guest/dma_api.hpp"
#include "sim/guest/guest_table_memory.hpp"
#include "sim/pcie/trace.hpp"
#include "sim/pcie/workload.hpp"
#include "sim/scenario/scenario.hpp"
#include "sim/tlm/endpoint.hpp"
#include "sim/tlm/vcpu.hpp"

namespace iommu {

// What a device and its driver run on; all outlives them.
struct DeviceEnvironment {
  Calendar& calendar;
  Vcpus& vcpus;
  Vcpu& cpu;  // runs the driver
  guest::DmaApi& api;
  guest::GuestPages& pages;
  DmaPort& dma;
  PcieEndpoint* pcie = nullptr;  // null: the device is emulated
  IoMeter& meter;
  std::uint64_t seed = 1;
  Picoseconds doorbell_latency;
  const Trace* trace = nullptr;  // of kind trace
};

// I/Os since the last reset_statistics(), as workloads count them: packets, accesses, recorded DMAs.
struct IoTotals {
  std::uint64_t ios = 0;  // those that failed included
  std::uint64_t failed = 0;
  std::uint64_t payload_bytes = 0;
  Histogram latency;
};

class DeviceRun {
 public:
  DeviceRun() = default;
  DeviceRun(const DeviceRun&) = delete;
  DeviceRun& operator=(const DeviceRun&) = delete;
  virtual ~DeviceRun() = default;

  // On the driver's vCPU, before start(): maps what lasts. Why it is impossible; empty: it is not.
  virtual Task<std::string> prepare() = 0;
  virtual void start() = 0;
  // Nothing will ever happen any more.
  [[nodiscard]] virtual bool is_over() const = 0;
  virtual void reset_statistics() = 0;
  virtual void add_to(IoTotals& totals) const = 0;
};

[[nodiscard]] std::unique_ptr<DeviceRun> make_device_run(const scenario::DeviceSetting& setting,
                                                         const DeviceEnvironment& environment);

// Opens the trace of a device of kind trace. Throws TraceError.
[[nodiscard]] Trace load_trace(const scenario::TraceWorkload& workload);

}  // namespace iommu
