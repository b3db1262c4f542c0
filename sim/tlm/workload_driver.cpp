// SPDX-License-Identifier: Apache-2.0
#include "sim/tlm/workload_driver.hpp"

#include <utility>

namespace iommu {

WorkloadDriver::WorkloadDriver(Calendar& calendar, PcieEndpoint& endpoint, Workload& workload, RequesterId requester,
                               const WorkloadDriverParameters& parameters, Rng rng)
    : calendar_(calendar),
      endpoint_(endpoint),
      workload_(workload),
      requester_(requester),
      parameters_(parameters),
      rng_(rng),
      operations_(parameters.outstanding) {
  SIM_CHECK(parameters.outstanding > 0, "a driver keeps at least one operation in flight");
}

void WorkloadDriver::start() {
  if (parameters_.warmup == 0) result_.began = calendar_.now();
  for (EndpointOperation& operation : operations_) issue(operation);
}

void WorkloadDriver::measure_from_now() {
  result_ = {};
  result_.began = calendar_.now();
}

void WorkloadDriver::issue(EndpointOperation& operation) {
  if (done_ || exhausted_) return;
  const auto next = workload_.next(rng_, calendar_.now());
  if (!next) {
    exhausted_ = true;
    if (in_flight_ == 0) done_ = true;
    return;
  }
  operation.requester = requester_;
  operation.address = next->address;
  operation.length = next->length;
  operation.access = next->access;
  operation.done = [](void* self, std::uint64_t i) { static_cast<WorkloadDriver*>(self)->operation_over(i); };
  operation.context = this;
  operation.argument = static_cast<std::uint64_t>(&operation - operations_.data());
  if (endpoint_.submit(operation)) {
    ++in_flight_;
    return;
  }
  problem_ = next->length == Bytes(0) ? "DMA of zero bytes" : "DMA past the end of the address space";
  exhausted_ = true;
  if (in_flight_ == 0) done_ = true;
}

void WorkloadDriver::operation_over(std::uint64_t index) {
  EndpointOperation& operation = operations_[index];
  --in_flight_;
  ++completed_;
  if (meter_ != nullptr) ++meter_->completed;
  if (completed_ > parameters_.warmup && !done_) record(operation);
  if (completed_ == parameters_.warmup) result_.began = calendar_.now();
  issue(operation);
  if (exhausted_ && in_flight_ == 0) done_ = true;
}

void WorkloadDriver::record(const EndpointOperation& operation) {
  ++result_.operations;
  if (operation.faulted)
    ++result_.faulted;
  else
    result_.bytes += operation.length.value();
  result_.latency.add(operation.completed - operation.submitted);
  result_.ended = calendar_.now();
  if (result_.operations == parameters_.operations) done_ = true;
}

}  // namespace iommu
