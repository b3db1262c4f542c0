// SPDX-License-Identifier: Apache-2.0
#include "sim/guest/nic_driver.hpp"

#include <algorithm>
#include <bit>

#include "sim/base/check.hpp"

namespace iommu::guest {

NicDriver::NicDriver(CpuPort& cpu, DmaApi& api, GuestPages& pages, const NicDriverSetting& setting)
    : cpu_(cpu), api_(api), pages_(pages), setting_(setting) {
  SIM_CHECK(setting.budget > 0 && setting.map_batch > 0, "a poll takes completions");
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
  note_posted(cookie, buffer, mapped.address);
  co_return true;
}

// Its cookie is the last free one.
void NicDriver::note_posted(std::uint32_t cookie, Gpa buffer, Iova address) {
  free_cookies_.pop_back();
  posted_[cookie] = {buffer, address};
  ++submitted_;
}

Task<std::uint32_t> NicDriver::post_some(NicQueue& queue) {
  if (setting_.map_batch == 1) {
    const bool posted = co_await post_next(queue);
    co_return posted ? 1 : 0;
  }
  const std::size_t most = std::min<std::uint64_t>(
      {setting_.map_batch, free_buffers_.size(), free_cookies_.size(), setting_.packets - submitted_});
  std::vector<ScatterEntry> buffers;
  for (std::size_t i = 0; i < most; ++i) {
    buffers.push_back({free_buffers_.back(), transfer_size()});
    free_buffers_.pop_back();
  }
  const std::vector<DmaMapping> mapped = co_await api_.map_many(cpu_, buffers, direction());
  std::uint32_t posted = 0;
  for (std::size_t i = 0; i < buffers.size(); ++i) {
    if (mapped[i].status != DmaStatus::Ok) {
      ++statistics_.failed_maps;
      free_buffers_.push_back(buffers[i].address);
      continue;
    }
    co_await cpu_.charge(CostId::DriverSubmit);
    const std::uint32_t cookie = free_cookies_.back();
    if (queue.post({mapped[i].address, transfer_size(), cookie}) != NicPostStatus::Ok) {
      co_await api_.unmap(cpu_, mapped[i].address, transfer_size());
      free_buffers_.push_back(buffers[i].address);
      continue;
    }
    note_posted(cookie, buffers[i].address, mapped[i].address);
    ++posted;
  }
  co_return posted;
}

Task<std::uint32_t> NicDriver::complete_some(NicQueue& queue) {
  std::vector<NicCompletion> completions;
  while (completions.size() < setting_.map_batch) {
    const auto completion = queue.take_completion();
    if (!completion) break;
    completions.push_back(*completion);
  }
  if (setting_.map_batch == 1) {
    if (!completions.empty()) co_await complete(completions.front());
    co_return static_cast<std::uint32_t>(completions.size());
  }
  std::vector<DmaApi::Mapped> mappings;
  for (const NicCompletion& completion : completions)
    mappings.push_back({posted_[static_cast<std::size_t>(completion.cookie)].address, transfer_size()});
  co_await api_.unmap_many(cpu_, std::move(mappings));
  for (std::size_t i = 0; i < completions.size(); ++i) co_await hand_up(completions[i]);
  co_return static_cast<std::uint32_t>(completions.size());
}

Task<void> NicDriver::complete(NicCompletion completion) {
  co_await api_.unmap(cpu_, posted_[static_cast<std::size_t>(completion.cookie)].address, transfer_size());
  co_await hand_up(completion);
}

Task<void> NicDriver::hand_up(NicCompletion completion) {
  const auto cookie = static_cast<std::uint32_t>(completion.cookie);
  co_await cpu_.charge(CostId::DriverComplete);
  co_await cpu_.charge(CostId::StackWork);
  free_buffers_.push_back(posted_[cookie].buffer);
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
  for (std::uint32_t posted = 1; posted != 0 && submitted_ < setting_.packets;) posted = co_await post_some(queue);
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
    for (std::uint32_t polled = 0; polled < setting_.budget;) {
      const std::uint32_t completed = co_await complete_some(queue);
      if (completed == 0) break;
      polled += completed;
      // Normally as many buffers; more when mapping failed before.
      for (std::uint32_t posted = 1; posted != 0 && submitted_ < setting_.packets;) {
        posted = co_await post_some(queue);
        refilled += posted;
      }
    }
    if (refilled == 0) continue;
    co_await cpu_.charge(CostId::MmioWrite);
    queue.ring_doorbell();
  }
  done_ = true;
}

}  // namespace iommu::guest
