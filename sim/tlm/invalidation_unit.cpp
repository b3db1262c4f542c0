// SPDX-License-Identifier: Apache-2.0
#include "sim/tlm/invalidation_unit.hpp"

#include <algorithm>
#include <utility>

namespace iommu {

// Fetching ----------------------------------------------------------------------------------------------------------

bool CommandPort::begin(MemoryAccess& access) {
  if (access.kind != AccessKind::Command || access.op != MemoryOp::Read) return memory_.begin(access);
  if (access.bytes >= fetch_bytes_.value()) {
    counts_.bytes += access.bytes;
    return memory_.begin(access);
  }
  if (holds(access)) {
    copy_to(access);
    return true;
  }
  SIM_CHECK(pending_ == nullptr, "descriptors are fetched one at a time");
  pending_ = &access;
  is_stale_ = false;
  is_buffered_ = false;
  line_.address = Hpa(access.address.value() & ~(fetch_bytes_.value() - 1));
  line_.op = MemoryOp::Read;
  line_.kind = AccessKind::Command;
  line_.bytes = static_cast<std::uint8_t>(fetch_bytes_.value());
  line_.done = [](void* self, std::uint64_t) { static_cast<CommandPort*>(self)->fetched(); };
  line_.context = this;
  counts_.bytes += fetch_bytes_.value();
  memory_.post(line_);
  return false;
}

bool CommandPort::holds(const MemoryAccess& access) const {
  const std::uint64_t first = access.address.value();
  const std::uint64_t line = line_.address.value();
  return is_buffered_ && first >= line && first + access.bytes <= line + fetch_bytes_.value();
}

void CommandPort::copy_to(MemoryAccess& access) const {
  const std::uint64_t word = (access.address - line_.address).value() / 8;
  access.failed = line_.failed;
  for (std::size_t i = 0; i < access.bytes / 8U; ++i) access.words[i] = line_.words[word + i];
}

void CommandPort::fetched() {
  is_buffered_ = !line_.failed && !is_stale_;
  MemoryAccess& access = *std::exchange(pending_, nullptr);
  copy_to(access);
  access.waiter.resume();
}

// Service -----------------------------------------------------------------------------------------------------------

InvalidationUnit::InvalidationUnit(const InvalidationEnvironment& environment, CommandQueue& queue,
                                   const IommuParameters& parameters)
    : unit_(environment),
      calendar_(environment.calendar),
      queue_(queue),
      timing_(parameters.invalidation),
      policy_(parameters.drain),
      port_(environment.memory, parameters.invalidation.fetch_bytes, environment.statistics.invalidation) {}

void InvalidationUnit::on_doorbell() {
  port_.on_doorbell();
  wake();
}

void InvalidationUnit::invalidate_by_register(const std::vector<InvalidationScope>& scopes) {
  for (const InvalidationScope& scope : scopes) by_register_.push(scope);
  ++unit_.statistics.invalidation.register_based;
  wake();
}

void InvalidationUnit::wake() {
  if (std::exchange(is_running_, true)) return;
  calendar_.call_at<&InvalidationUnit::begin_service>(calendar_.now() + timing_.fetch_start, this);
}

void InvalidationUnit::begin_service(std::uint64_t) {
  service_ = serve();
  service_.start();
}

Task<void> InvalidationUnit::serve() {
  for (;;) {
    if (!by_register_.is_empty()) {
      while (!by_register_.is_empty()) {
        const InvalidationScope scope = by_register_.pop();
        co_await invalidate(scope);
      }
      co_await Drain{*this};
      unit_.core.invalidation_done();
      continue;
    }
    if (!queue_.has_command()) break;
    const std::optional<Command> command = co_await queue_.fetch_command(port_);
    if (!command) {  // the core has recorded why, and waits for software
      unit_.target.core_acted();
      if (by_register_.is_empty()) break;
      continue;
    }
    co_await Delay{calendar_, timing_.decode};
    const CommandEffect effect = queue_.apply(*command);
    unit_.target.core_acted();
    co_await execute(effect);
    queue_.completed();
  }
  is_running_ = false;
}

Task<void> InvalidationUnit::execute(CommandEffect effect) {
  InvalidationCounts& counts = unit_.statistics.invalidation;
  ++counts.commands;
  if (effect.error) ++counts.errors;
  unit_.target.resolve_stalls(effect.resolutions);
  if (effect.page_response) respond(*effect.page_response);
  for (std::size_t i = 0; i < effect.scopes.size(); ++i) {
    const InvalidationScope scope = effect.scopes[i];
    co_await invalidate(scope);
  }
  if (!effect.fence) co_return;
  ++counts.fences;
  const FenceCompletion fence = *effect.fence;
  const Picoseconds decoded = calendar_.now();
  co_await complete(fence);
  unit_.statistics.invalidation.fence_wait.add(calendar_.now() - decoded);
}

Task<void> InvalidationUnit::invalidate(InvalidationScope scope) {
  ++unit_.statistics.invalidation.scopes[static_cast<std::size_t>(class_of(scope))];
  if (scope.kind == InvalidationKind::DeviceTlb) {
    if (device_tlbs_ == nullptr) co_return;
    ++device_tlbs_pending_;
    device_tlbs_->invalidate(
        scope, [](void* self, std::uint64_t) { static_cast<InvalidationUnit*>(self)->device_tlb_done(); }, this, 0);
    co_return;
  }
  const Picoseconds scan = timing_.scan + timing_.scan_entry * unit_.target.entries_examined(scope);
  const Picoseconds over = unit_.scanner.reserve(calendar_.now(), scan);
  co_await Delay{calendar_, over - calendar_.now()};
  unit_.target.take_effect(scope);
}

void InvalidationUnit::respond(const PageRequestResponse& response) {
  ++unit_.statistics.invalidation.page_responses;
  if (device_tlbs_ != nullptr) device_tlbs_->respond(response);
}

Task<void> InvalidationUnit::complete(FenceCompletion fence) {
  co_await Drain{*this};
  if (fence.orders_records) {
    co_await Recorded{unit_.target};
    unit_.target.withdraw_outdated_stalls();
  }
  if (fence.status) {
    const std::uint64_t data = fence.status->data;
    // A status address outside memory loses the write, as on a bus; software polls for ever, the unit goes on.
    (void)co_await unit_.memory.write(fence.status->address, std::span(&data, 1), fence.status->bytes,
                                      AccessKind::Completion);
  }
  if (!fence.interrupt) co_return;
  if (const auto message = unit_.core.fence_interrupt()) unit_.target.raise(*message);
}

// Drain -------------------------------------------------------------------------------------------------------------
// In this order: requests in the unit, then the DMA that they and earlier ones have become, then device TLBs.

void InvalidationUnit::begin_drain(std::coroutine_handle<> waiter) {
  drain_waiter_ = waiter;
  drain_step_ = DrainStep::Requests;
  is_beginning_drain_ = true;
  unit_.requests.drain([](void* self, std::uint64_t) { static_cast<InvalidationUnit*>(self)->requests_drained(); },
                       this, 0);
  is_beginning_drain_ = false;
}

// The last request leaves in the middle of what its submitter does with the answer, which may be to enter a DMA.
void InvalidationUnit::requests_drained() {
  if (is_beginning_drain_) return drain_dma(0);
  calendar_.call_at<&InvalidationUnit::drain_dma>(calendar_.now(), this);
}

void InvalidationUnit::drain_dma(std::uint64_t) {
  drain_step_ = DrainStep::Dma;
  if (policy_ == DrainPolicy::TranslationsOnly) return dma_drained();
  unit_.dma.drain([](void* self, std::uint64_t) { static_cast<InvalidationUnit*>(self)->dma_drained(); }, this, 0);
}

void InvalidationUnit::dma_drained() {
  drain_step_ = DrainStep::DeviceTlbs;
  if (device_tlbs_pending_ == 0) end_drain();
}

void InvalidationUnit::device_tlb_done() {
  --device_tlbs_pending_;
  if (drain_step_ == DrainStep::DeviceTlbs && device_tlbs_pending_ == 0) end_drain();
}

void InvalidationUnit::end_drain() {
  drain_step_ = DrainStep::None;
  calendar_.resume_at(calendar_.now(), std::exchange(drain_waiter_, {}));
}

}  // namespace iommu
