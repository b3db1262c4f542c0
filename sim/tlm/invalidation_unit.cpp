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

InvalidationUnit::InvalidationUnit(Calendar& calendar, IommuCore& core, MemorySystem::Port& memory,
                                   InvalidationTarget& target, InFlightTracker& in_flight,
                                   const IommuParameters& parameters, IommuStatistics& statistics)
    : calendar_(calendar),
      core_(core),
      memory_(memory),
      target_(target),
      in_flight_(in_flight),
      timing_(parameters.invalidation),
      policy_(parameters.drain),
      statistics_(statistics),
      port_(memory, parameters.invalidation.fetch_bytes, statistics.invalidation) {}

void InvalidationUnit::on_doorbell() {
  port_.on_doorbell();
  wake();
}

void InvalidationUnit::invalidate_by_register(const std::vector<InvalidationScope>& scopes) {
  for (const InvalidationScope& scope : scopes) by_register_.push(scope);
  ++statistics_.invalidation.register_based;
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
      core_.invalidation_done();
      continue;
    }
    if (!core_.has_command()) break;
    const std::optional<Command> command = co_await core_.fetch_command(port_);
    if (!command) {  // the core has recorded why, and waits for software
      target_.core_acted();
      if (by_register_.is_empty()) break;
      continue;
    }
    co_await Delay{calendar_, timing_.decode};
    const CommandEffect effect = core_.apply(*command);
    target_.core_acted();
    co_await execute(effect);
  }
  is_running_ = false;
}

Task<void> InvalidationUnit::execute(CommandEffect effect) {
  InvalidationCounts& counts = statistics_.invalidation;
  ++counts.commands;
  if (effect.error) ++counts.errors;
  for (std::size_t i = 0; i < effect.scopes.size(); ++i) {
    const InvalidationScope scope = effect.scopes[i];
    co_await invalidate(scope);
  }
  if (!effect.fence) co_return;
  ++counts.fences;
  const FenceCompletion fence = *effect.fence;
  const Picoseconds decoded = calendar_.now();
  co_await complete(fence);
  statistics_.invalidation.fence_wait.add(calendar_.now() - decoded);
}

Task<void> InvalidationUnit::invalidate(InvalidationScope scope) {
  ++statistics_.invalidation.scopes[static_cast<std::size_t>(class_of(scope))];
  if (scope.kind == InvalidationKind::DeviceTlb) {
    if (device_tlbs_ == nullptr) co_return;
    ++device_tlbs_pending_;
    device_tlbs_->invalidate(
        scope, [](void* self, std::uint64_t) { static_cast<InvalidationUnit*>(self)->device_tlb_done(); }, this, 0);
    co_return;
  }
  const Picoseconds scan = timing_.scan + timing_.scan_entry * target_.entries_examined(scope);
  co_await Delay{calendar_, scan};
  target_.take_effect(scope);
}

Task<void> InvalidationUnit::complete(FenceCompletion fence) {
  co_await Drain{*this};
  if (fence.status) {
    const std::uint64_t data = fence.status->data;
    // A status address outside memory loses the write, as on a bus; software polls for ever, the unit goes on.
    (void)co_await memory_.write(fence.status->address, std::span(&data, 1), fence.status->bytes,
                                 AccessKind::Completion);
  }
  if (!fence.interrupt) co_return;
  if (const auto message = core_.fence_interrupt()) target_.raise(*message);
}

// Drain -------------------------------------------------------------------------------------------------------------
// In this order: requests in the unit, then the DMA that they and earlier ones have become, then device TLBs.

void InvalidationUnit::begin_drain(std::coroutine_handle<> waiter) {
  drain_waiter_ = waiter;
  drain_step_ = DrainStep::Requests;
  advance_drain();
}

void InvalidationUnit::on_drained() {
  if (drain_step_ == DrainStep::Requests) calendar_.call_at<&InvalidationUnit::advance_drain_at>(calendar_.now(), this);
}

void InvalidationUnit::advance_drain_at(std::uint64_t) {
  if (drain_step_ == DrainStep::Requests) advance_drain();
}

void InvalidationUnit::advance_drain() {
  if (drain_step_ == DrainStep::Requests && target_.is_drained()) {
    drain_step_ = DrainStep::Dma;
    if (policy_ == DrainPolicy::TranslationsAndDma) {
      in_flight_.drain([](void* self, std::uint64_t) { static_cast<InvalidationUnit*>(self)->dma_drained(); }, this, 0);
      return;
    }
    drain_step_ = DrainStep::DeviceTlbs;
  }
  if (drain_step_ != DrainStep::DeviceTlbs || device_tlbs_pending_ != 0) return;
  drain_step_ = DrainStep::None;
  calendar_.resume_at(calendar_.now(), std::exchange(drain_waiter_, {}));
}

void InvalidationUnit::dma_drained() {
  drain_step_ = DrainStep::DeviceTlbs;
  advance_drain();
}

void InvalidationUnit::device_tlb_done() {
  --device_tlbs_pending_;
  if (drain_step_ == DrainStep::DeviceTlbs) advance_drain();
}

}  // namespace iommu
