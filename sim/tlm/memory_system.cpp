// SPDX-License-Identifier: Apache-2.0
#include "sim/tlm/memory_system.hpp"

#include <algorithm>

namespace iommu {

namespace {
constexpr std::uint64_t kLine = 1ULL << LineTags::kLineLg2;
}  // namespace

const char* MemoryParameters::problem() const {
  if (llc_hit <= Picoseconds{} || dram <= Picoseconds{}) return "memory latencies must be greater than zero";
  if (outstanding == 0) return "memory must allow at least one access in service";
  if (bytes_per_second < 1'000'000) return "memory bandwidth must be at least 1 MB/s";
  if (llc_ways == 0 || llc_size.value() % (kLine * llc_ways) != 0)
    return "the last-level cache's size must be a multiple of 64 bytes times its ways";
  return nullptr;
}

bool MemorySystem::Port::begin(MemoryAccess& access) {
  system_.arrive({.object = &access,
                  .port = this,
                  .arrived = system_.calendar_.now(),
                  .bytes = access.bytes,
                  .address = access.address,
                  .kind = access.kind,
                  .is_write = access.op != MemoryOp::Read,
                  .form = Form::Awaited});
  return false;
}

void MemorySystem::Port::post(PostedAccess& access) {
  system_.arrive({.object = &access,
                  .port = this,
                  .arrived = system_.calendar_.now(),
                  .bytes = access.bytes,
                  .address = access.address,
                  .kind = access.kind,
                  .is_write = access.op != MemoryOp::Read,
                  .form = Form::Posted});
}

void MemorySystem::Port::post(DataTransfer& transfer) {
  system_.arrive({.object = &transfer,
                  .port = this,
                  .arrived = system_.calendar_.now(),
                  .bytes = transfer.bytes,
                  .address = transfer.address,
                  .kind = AccessKind::Data,
                  .is_write = transfer.access == Access::Write,
                  .form = Form::Transfer});
}

MemorySystem::MemorySystem(Calendar& calendar, HostMemory& memory, const MemoryParameters& parameters)
    : calendar_(calendar),
      memory_(memory),
      parameters_(parameters),
      tags_(parameters.llc_size.value() / kLine, parameters.llc_ways) {
  SIM_CHECK(parameters.problem() == nullptr, "memory parameters are validated with the scenario");
}

MemorySystem::Port& MemorySystem::add_port(std::string name) {
  ports_.push_back(std::make_unique<Port>(*this, std::move(name)));
  return *ports_.back();
}

MemoryCountsByKind MemorySystem::total() const {
  MemoryCountsByKind sum{};
  for (const auto& port : ports_) {
    for (std::size_t kind = 0; kind < kAccessKinds; ++kind) {
      sum[kind].reads += port->counts()[kind].reads;
      sum[kind].writes += port->counts()[kind].writes;
      sum[kind].bytes += port->counts()[kind].bytes;
      sum[kind].llc_hits += port->counts()[kind].llc_hits;
      sum[kind].waited += port->counts()[kind].waited;
    }
  }
  return sum;
}

Picoseconds MemorySystem::transfer_time(std::uint32_t bytes) const {
  constexpr std::uint64_t kPicosecondsPerSecond = 1'000'000'000'000;
  return Picoseconds(static_cast<std::int64_t>(bytes * kPicosecondsPerSecond / parameters_.bytes_per_second));
}

void MemorySystem::arrive(const Item& item) {
  if (in_service_ == parameters_.outstanding)
    waiting_.push(item);
  else
    serve(item);
}

// Takes the item into service: now, or when the bandwidth of those before it is spent.
void MemorySystem::serve(const Item& item) {
  const Picoseconds start = std::max(calendar_.now(), bandwidth_free_);
  bandwidth_free_ = start + transfer_time(item.bytes);
  if (free_.empty()) {
    free_.push_back(static_cast<std::uint32_t>(slots_.size()));
    slots_.emplace_back();
  }
  const std::uint32_t slot = free_.back();
  free_.pop_back();
  ++in_service_;
  Item& served = slots_[slot];
  served = item;
  served.waited = start - item.arrived;
  const LlcPolicy policy =
      (item.is_write ? parameters_.write_policy : parameters_.read_policy)[static_cast<std::size_t>(item.kind)];
  const bool hit = policy != LlcPolicy::Bypass && hits(item);
  served.allocates = policy == LlcPolicy::Allocate && !hit;

  MemoryCounts& counts = item.port->counts_[static_cast<std::size_t>(item.kind)];
  ++(item.is_write ? counts.writes : counts.reads);
  counts.bytes += item.bytes;
  counts.llc_hits += hit ? 1 : 0;
  counts.waited += served.waited;
  calendar_.call_at<&MemorySystem::complete>(start + (hit ? parameters_.llc_hit : parameters_.dram), this, slot);
}

bool MemorySystem::hits(const Item& item) {
  bool all = true;
  const std::uint64_t last = (item.address.value() + std::max(item.bytes, 1U) - 1) / kLine;
  for (std::uint64_t line = item.address.value() / kLine; line <= last; ++line)
    all = tags_.touch(Hpa(line * kLine)) && all;
  return all;
}

void MemorySystem::fill_lines(const Item& item) {
  const std::uint64_t last = (item.address.value() + std::max(item.bytes, 1U) - 1) / kLine;
  for (std::uint64_t line = item.address.value() / kLine; line <= last; ++line) tags_.fill(Hpa(line * kLine));
}

void MemorySystem::complete(std::uint64_t slot) {
  const Item item = slots_[slot];
  free_.push_back(static_cast<std::uint32_t>(slot));
  --in_service_;
  if (item.allocates) fill_lines(item);
  // The next is served before anybody hears of this one: what a completion starts queues behind what waits already.
  if (!waiting_.is_empty()) serve(waiting_.pop());
  item.port->waited_ = item.waited;
  switch (item.form) {
    case Form::Awaited: {
      auto& access = *static_cast<MemoryAccess*>(item.object);
      memory_.perform(access);
      access.waiter.resume();
      return;
    }
    case Form::Posted: {
      auto& access = *static_cast<PostedAccess*>(item.object);
      memory_.perform(access);
      if (access.done != nullptr) access.done(access.context, access.argument);
      return;
    }
    case Form::Transfer: {
      auto& transfer = *static_cast<DataTransfer*>(item.object);
      transfer.failed = !memory_.contains(transfer.address, transfer.bytes);
      if (transfer.done != nullptr) transfer.done(transfer.context, transfer.argument);
      return;
    }
  }
}

}  // namespace iommu
