// SPDX-License-Identifier: Apache-2.0
// Runs pure traffic on a device as fast as it may: keeps a number of operations in flight and measures them after a
// warm-up. No coroutine and no allocation per operation.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "sim/base/calendar.hpp"
#include "sim/base/histogram.hpp"
#include "sim/base/rng.hpp"
#include "sim/pcie/workload.hpp"
#include "sim/tlm/endpoint.hpp"

namespace iommu {

struct WorkloadDriverParameters {
  std::uint32_t outstanding = 32;             // 1 …: operations in flight
  std::uint64_t warmup = 0;                   // operations completed before the measurement begins
  std::optional<std::uint64_t> operations{};  // measured; nullopt: until the traffic ends or the run does
};

// The measured part: from the completion that ended the warm-up to the last one counted.
struct WorkloadResult {
  std::uint64_t operations = 0;
  std::uint64_t bytes = 0;  // of those that did not fault
  std::uint64_t faulted = 0;
  Histogram latency;  // submission to completion
  Picoseconds began;
  Picoseconds ended;
  [[nodiscard]] double bits_per_second() const {
    const double seconds = to_seconds(ended - began);
    return seconds > 0 ? static_cast<double>(bytes) * 8 / seconds : 0.0;
  }
};

class WorkloadDriver {
 public:
  // References outlive the driver.
  WorkloadDriver(Calendar& calendar, PcieEndpoint& endpoint, Workload& workload, RequesterId requester,
                 const WorkloadDriverParameters& parameters, Rng rng);
  WorkloadDriver(const WorkloadDriver&) = delete;
  WorkloadDriver& operator=(const WorkloadDriver&) = delete;

  void start();
  // Forgets what was measured so far.
  void measure_from_now();
  // Counts operations there as well; outlives the driver.
  void connect(IoMeter& meter) { meter_ = &meter; }

  // The measurement is complete; traffic stops, what is in flight runs out.
  [[nodiscard]] bool is_done() const { return done_; }
  // Operations completed, the warm-up included.
  [[nodiscard]] std::uint64_t completed() const { return completed_; }
  [[nodiscard]] const WorkloadResult& result() const { return result_; }
  // Why the traffic stopped early; empty when it did not: an operation that no device can do.
  [[nodiscard]] const std::string& problem() const { return problem_; }

 private:
  void issue(EndpointOperation& operation);
  void operation_over(std::uint64_t operation);
  void record(const EndpointOperation& operation);

  Calendar& calendar_;
  PcieEndpoint& endpoint_;
  Workload& workload_;
  RequesterId requester_;
  WorkloadDriverParameters parameters_;
  Rng rng_;
  std::vector<EndpointOperation> operations_;
  std::uint32_t in_flight_ = 0;
  std::uint64_t completed_ = 0;
  bool exhausted_ = false;
  bool done_ = false;
  std::string problem_;
  WorkloadResult result_;
  IoMeter* meter_ = nullptr;
};

}  // namespace iommu
