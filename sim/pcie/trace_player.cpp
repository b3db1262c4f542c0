// SPDX-License-Identifier: Apache-2.0
#include "sim/pcie/trace_player.hpp"

#include <algorithm>
#include <utility>

#include "sim/base/check.hpp"

namespace iommu {

TracePlayer::TracePlayer(const Trace& trace, TracePlayerParameters parameters, Calendar& calendar, CpuPort& cpu,
                         DmaPort& dma, SignalPort& signals, DriverOperations& driver)
    : trace_(trace),
      parameters_(parameters),
      calendar_(calendar),
      cpu_(cpu),
      dma_(dma),
      signals_(signals),
      driver_(driver),
      requester_(trace.requester),
      mappings_(trace.maps.size()) {
  SIM_CHECK(parameters.outstanding > 0, "a player keeps at least one DMA in flight");
  for (std::size_t m = 0; m < mappings_.size(); ++m) mappings_[m].dmas_left = trace.maps[m].dmas;
}

void TracePlayer::start() {
  statistics_.started = statistics_.finished = calendar_.now();
  for (std::uint32_t i = 0; i < parameters_.outstanding; ++i) tasks_.push_back(dma_slot());
  tasks_.push_back(call_loop());
  for (Task<void>& task : tasks_) task.start();
}

Task<void> TracePlayer::call_loop() {
  for (const TraceOperation operation : trace_.operations) {
    if (operation.kind == TraceOperationKind::Map)
      co_await do_map(operation.index);
    else if (operation.kind == TraceOperationKind::Unmap)
      co_await do_unmap(trace_.unmaps[operation.index].map);
  }
  calls_done_ = true;
  statistics_.finished = calendar_.now();
}

Task<void> TracePlayer::do_map(std::uint32_t index) {
  const TraceMap& map = trace_.maps[index];
  const Picoseconds began = calendar_.now();
  DriverOperations::Map call{.id = index, .segments = trace_.segments_of(map), .permissions = map.permissions};
  std::vector<Iova> addresses = co_await driver_.map(cpu_, call);
  SIM_CHECK(addresses.empty() || addresses.size() == map.segments, "a mapping has one bus address per segment");
  Mapping& mapping = mappings_[index];
  mapping.addresses = std::move(addresses);
  mapping.state = mapping.addresses.empty() ? MapState::Failed : MapState::Mapped;
  if (mapping.state == MapState::Failed) {
    ++statistics_.failed_maps;
  } else {
    ++statistics_.maps;
    statistics_.map_latency.add(calendar_.now() - began);
  }
  if (can_issue()) issue_.open(calendar_, 1);
}

Task<void> TracePlayer::do_unmap(std::uint32_t map) {
  while (mappings_[map].dmas_left > 0) {
    awaited_map_ = map;
    call_waits_ = true;
    co_await cpu_.idle(dma_finished_);
  }
  if (mappings_[map].state != MapState::Mapped) co_return;
  const Picoseconds began = calendar_.now();
  DriverOperations::Unmap call{.id = map, .segments = trace_.segments_of(trace_.maps[map])};
  co_await driver_.unmap(cpu_, call);
  mappings_[map].addresses = {};
  ++statistics_.unmaps;
  statistics_.unmap_latency.add(calendar_.now() - began);
}

bool TracePlayer::can_issue() const {
  return next_dma_ < trace_.dmas.size() && mappings_[trace_.dmas[next_dma_].map].state != MapState::NotYet;
}

// One of the DMAs that may be in flight. Slots wait together and take what is next in trace order.
Task<void> TracePlayer::dma_slot() {
  while (next_dma_ < trace_.dmas.size()) {
    if (!can_issue()) {
      co_await issue_.wait();
      continue;
    }
    const TraceDma& dma = trace_.dmas[next_dma_];
    ++next_dma_;
    if (can_issue()) issue_.open(calendar_, 1);
    const Mapping& mapping = mappings_[dma.map];
    if (mapping.state == MapState::Failed) {
      ++statistics_.skipped_dmas;
      dma_over(dma);
      continue;
    }
    const Bytes offset = dma.iova - trace_.segments[dma.segment].iova;
    const Iova bus = mapping.addresses[dma.segment - trace_.maps[dma.map].first_segment] + offset;
    DmaTransfer transfer{.requester = requester_, .address = bus, .length = dma.length, .access = dma.access};
    const Picoseconds began = calendar_.now();
    ++in_flight_;
    const DmaResult result = co_await dma_.transfer(transfer);
    --in_flight_;
    account(dma, began, result);
    dma_over(dma);
  }
  issue_.open(calendar_);  // the others have nothing to wait for any more
}

void TracePlayer::account(const TraceDma& dma, Picoseconds began, DmaResult result) {
  ++statistics_.dmas;
  if (result.faulted)
    ++statistics_.faulted;
  else
    statistics_.bytes += dma.length.value();
  statistics_.dma_latency.add(calendar_.now() - began);
  statistics_.finished = calendar_.now();
}

void TracePlayer::reset_statistics() {
  statistics_ = {};
  statistics_.started = statistics_.finished = calendar_.now();
}

void TracePlayer::dma_over(const TraceDma& dma) {
  if (meter_ != nullptr) ++meter_->completed;
  Mapping& mapping = mappings_[dma.map];
  --mapping.dmas_left;
  if (call_waits_ && awaited_map_ == dma.map && mapping.dmas_left == 0) {
    call_waits_ = false;
    signals_.raise(dma_finished_);
  }
}

}  // namespace iommu
