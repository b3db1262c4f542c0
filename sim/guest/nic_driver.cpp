// SPDX-License-Identifier: Apache-2.0
#include "sim/guest/nic_driver.hpp"

#include <algorithm>
#include <bit>

#include "sim/base/check.hpp"

namespace iommu::guest {

NicDriver::NicDriver(CpuPort& cpu, DmaApi& api, GuestPages& pages, const NicDriverSetting& setting)
    : cpu_(cpu), api_(api), pages_(pages), setting_(setting) {
  SIM_CHECK(setting.budget > 0, "a poll takes completions");
}

NicQueueSetup NicDriver::queue_setup() const {
  return {.kind = setting_.kind,
          .descriptor_ring = descriptor_ring_,
          .completion_ring = completion_ring_,
          .entries = setting_.ring_entries,
          .packet_size = setting_.packet_size,
          .packet_interval = setting_.packet_interval};
}

Task<std::optional<Iova>> NicDriver::map_ring(Bytes entry_size, DmaDirection ring_direction) {
  const Bytes bytes = entry_size * setting_.ring_entries;
  const auto ring = pages_.allocate(order_for(bytes));
  if (!ring) co_return std::nullopt;
  const DmaMapping mapped = co_await api_.map(cpu_, *ring, bytes, ring_direction, DmaUse::Coherent);
  if (mapped.status != DmaStatus::Ok) co_return std::nullopt;
  co_return mapped.address;
}

Task<bool> NicDriver::prepare() {
  if (transfer_size() == 0_B || transfer_size() > setting_.buffer_size) co_return false;
  const auto descriptors = co_await map_ring(setting_.descriptor_size, DmaDirection::ToDevice);
  const auto completions = co_await map_ring(setting_.completion_size, DmaDirection::FromDevice);
  if (!descriptors || !completions) co_return false;
  descriptor_ring_ = *descriptors;
  completion_ring_ = *completions;
  posted_.resize(setting_.ring_entries);
  for (std::uint32_t i = setting_.ring_entries; i-- > 0;) free_cookies_.push_back(i);
  // Small buffers share pages, as in a driver that splits pages: unmapping one must not disturb its neighbour.
  const std::uint64_t per_page = std::max<std::uint64_t>(1, kPageSize.value() / setting_.buffer_size.value());
  while (free_buffers_.size() < setting_.ring_entries) {
    const auto page = pages_.allocate(order_for(setting_.buffer_size));
    if (!page) co_return false;
    for (std::uint64_t i = 0; i < per_page && free_buffers_.size() < setting_.ring_entries; ++i)
      free_buffers_.push_back(*page + setting_.buffer_size * i);
  }
  co_return true;
}

// Maps a free buffer and posts it. False: no buffer is free, or mapping failed.
Task<bool> NicDriver::post_next(NicQueue& queue) {
  if (free_buffers_.empty() || free_cookies_.empty()) co_return false;
  const Gpa buffer = free_buffers_.back();
  free_buffers_.pop_back();
  const DmaMapping mapped = co_await api_.map(cpu_, buffer, transfer_size(), direction());
  if (mapped.status != DmaStatus::Ok) {
    ++statistics_.failed_maps;
    free_buffers_.push_back(buffer);
    co_return false;
  }
  co_await cpu_.charge(CostId::DriverSubmit);
  const std::uint32_t cookie = free_cookies_.back();
  if (queue.post({mapped.address, transfer_size(), cookie}) != NicPostStatus::Ok) {
    co_await api_.unmap(cpu_, mapped.address, transfer_size());
    free_buffers_.push_back(buffer);
    co_return false;
  }
  free_cookies_.pop_back();
  posted_[cookie] = {buffer, mapped.address};
  ++submitted_;
  co_return true;
}

Task<void> NicDriver::complete(NicCompletion completion) {
  const auto cookie = static_cast<std::uint32_t>(completion.cookie);
  const Posted done = posted_[cookie];
  co_await api_.unmap(cpu_, done.address, transfer_size());
  co_await cpu_.charge(CostId::DriverComplete);
  co_await cpu_.charge(CostId::StackWork);
  free_buffers_.push_back(done.buffer);
  free_cookies_.push_back(cookie);
  ++completed_;
  if (meter_ != nullptr) ++meter_->completed;
  if (completion.faulted) {
    ++statistics_.faulted;
    co_return;
  }
  ++statistics_.packets;
  statistics_.bytes += completion.length.value();
  statistics_.latency.add(cpu_.now() - completion.posted);
  statistics_.last_completion = cpu_.now();
}

Task<void> NicDriver::run(NicQueue& queue) {
  for (bool more = true; more && submitted_ < setting_.packets;) more = co_await post_next(queue);
  co_await cpu_.charge(CostId::MmioWrite);
  queue.ring_doorbell();
  while (completed_ < setting_.packets && completed_ < submitted_) {
    if (queue.completions_waiting() == 0) {
      queue.arm_interrupt();
      co_await cpu_.idle(queue.signal());
      ++statistics_.interrupts;
      co_await cpu_.charge(CostId::Interrupt);
    }
    std::uint32_t refilled = 0;
    for (std::uint32_t polled = 0; polled < setting_.budget; ++polled) {
      const auto completion = queue.take_completion();
      if (!completion) break;
      co_await complete(*completion);
      // Normally one buffer; more when mapping failed before.
      for (bool more = true; more && submitted_ < setting_.packets;) {
        more = co_await post_next(queue);
        if (more) ++refilled;
      }
    }
    if (refilled == 0) continue;
    co_await cpu_.charge(CostId::MmioWrite);
    queue.ring_doorbell();
  }
  done_ = true;
}

}  // namespace iommu::guest
