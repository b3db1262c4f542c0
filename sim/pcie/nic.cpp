// SPDX-License-Identifier: Apache-2.0
#include "sim/pcie/nic.hpp"

#include <algorithm>
#include <utility>

#include "sim/base/check.hpp"

namespace iommu {

NicQueue::NicQueue(Calendar& calendar, DmaPort& dma, SignalPort& signals, RequesterId requester,
                   const NicParameters& parameters, const NicQueueSetup& setup)
    : calendar_(calendar),
      dma_(dma),
      signals_(signals),
      requester_(requester),
      parameters_(parameters),
      setup_(setup),
      slots_(setup.entries) {
  SIM_CHECK(setup.entries > 0, "a ring has at least one entry");
  SIM_CHECK(parameters.fetch_batch > 0 && parameters.prefetch > 0 && parameters.payloads_in_flight > 0 &&
                parameters.completion_batch > 0 && parameters.interrupt_frames > 0,
            "a NIC's batches hold at least one");
}

// Driver's side -------------------------------------------------------------------------------------------------------

NicPostStatus NicQueue::post(NicBuffer buffer) {
  if (buffer.length == Bytes(0) || outstanding_ == setup_.entries) {
    ++statistics_.rejected_posts;
    return buffer.length == Bytes(0) ? NicPostStatus::ZeroLength : NicPostStatus::RingFull;
  }
  Slot fresh;
  fresh.buffer = buffer;
  fresh.posted = calendar_.now();
  slot(posted_) = fresh;
  ++posted_;
  ++outstanding_;
  return NicPostStatus::Ok;
}

void NicQueue::ring_doorbell() {
  calendar_.call_at<&NicQueue::see_doorbell>(calendar_.now() + parameters_.doorbell_latency, this, posted_);
}

void NicQueue::see_doorbell(std::uint64_t tail) {
  visible_ = std::max(visible_, tail);
  descriptors_.open(calendar_);
}

std::optional<NicCompletion> NicQueue::take_completion() {
  if (delivered_.empty()) return std::nullopt;
  const NicCompletion done = delivered_.front();
  delivered_.pop_front();
  --outstanding_;
  return done;
}

void NicQueue::arm_interrupt() {
  armed_ = true;
  consider_interrupt();
}

// Device's side -------------------------------------------------------------------------------------------------------

void NicQueue::start() {
  tasks_.push_back(fetch_loop());
  for (std::uint32_t i = 0; i < parameters_.payloads_in_flight; ++i) tasks_.push_back(payload_loop());
  tasks_.push_back(completion_loop());
  if (setup_.kind == NicQueueKind::Receive && setup_.packet_interval) tasks_.push_back(arrival_loop());
  for (Task<void>& task : tasks_) task.start();
}

void NicQueue::stop() {
  stopped_ = true;
  descriptors_.open(calendar_);
  payloads_.open(calendar_);
}

DmaTransfer NicQueue::transfer(Iova address, Bytes length, Access access) const {
  return {.requester = requester_, .address = address, .length = length, .access = access};
}

Iova NicQueue::entry(Iova ring, Bytes size, std::uint64_t sequence) const {
  return ring + Bytes(sequence % setup_.entries * size.value());
}

// How many of `wanted` entries from `sequence` on lie side by side in the ring.
std::uint64_t NicQueue::until_wrap(std::uint64_t sequence, std::uint64_t wanted) const {
  return std::min(wanted, setup_.entries - sequence % setup_.entries);
}

Task<void> NicQueue::fetch_loop() {
  while (!stopped_) {
    const std::uint64_t room = parameters_.prefetch - (fetched_ - started_);
    const std::uint64_t wanted = std::min<std::uint64_t>({visible_ - fetched_, room, parameters_.fetch_batch});
    if (wanted == 0) {
      co_await descriptors_.wait();
      continue;
    }
    const std::uint64_t count = until_wrap(fetched_, wanted);
    const Iova address = entry(setup_.descriptor_ring, parameters_.descriptor_size, fetched_);
    const Bytes length(count * parameters_.descriptor_size.value());
    const DmaResult fetch = co_await dma_.transfer(transfer(address, length, Access::Read));
    for (std::uint64_t i = 0; i < count; ++i) slot(fetched_ + i).faulted = fetch.faulted;
    fetched_ += count;
    payloads_.open(calendar_, count);
  }
}

bool NicQueue::has_packet() const {
  return setup_.kind == NicQueueKind::Transmit || !setup_.packet_interval || packets_in_nic_ > 0;
}

// One of the packets that may be moving at once.
Task<void> NicQueue::payload_loop() {
  while (!stopped_) {
    if (started_ == fetched_ || !has_packet()) {
      co_await payloads_.wait();
      continue;
    }
    Slot& mine = slot(started_);
    ++started_;
    mine.taken = calendar_.now();
    descriptors_.open(calendar_);  // there is room to prefetch
    if (mine.faulted) {            // there is no descriptor to act on; a packet, if any, waits for the next
      finish(mine);
      continue;
    }
    if (packets_in_nic_ > 0) --packets_in_nic_;
    const bool receives = setup_.kind == NicQueueKind::Receive;
    const Bytes length = receives ? std::min(setup_.packet_size, mine.buffer.length) : mine.buffer.length;
    const Access access = receives ? Access::Write : Access::Read;
    const DmaResult moved = co_await dma_.transfer(transfer(mine.buffer.address, length, access));
    mine.faulted = moved.faulted;
    mine.moved = moved.faulted ? Bytes(0) : length;
    finish(mine);
  }
}

void NicQueue::finish(Slot& moved) {
  moved.finished = true;
  finished_.open(calendar_);
}

Task<void> NicQueue::completion_loop() {
  for (;;) {
    std::uint64_t ready = 0;
    while (ready < parameters_.completion_batch && completed_ + ready < started_ && slot(completed_ + ready).finished)
      ++ready;
    if (ready == 0) {
      co_await finished_.wait();
      continue;
    }
    const std::uint64_t count = until_wrap(completed_, ready);
    const Iova address = entry(setup_.completion_ring, parameters_.completion_size, completed_);
    const Bytes length(count * parameters_.completion_size.value());
    const DmaResult written = co_await dma_.transfer(transfer(address, length, Access::Write));
    for (std::uint64_t i = 0; i < count; ++i) {
      if (written.faulted) slot(completed_).faulted = true;
      deliver(completed_);
      ++completed_;
    }
    consider_interrupt();
  }
}

void NicQueue::deliver(std::uint64_t sequence) {
  const Slot& done = slot(sequence);
  const Picoseconds now = calendar_.now();
  if (done.faulted) {
    ++statistics_.faulted;
  } else {
    ++statistics_.packets;
    statistics_.bytes += done.moved.value();
    statistics_.latency.add(now - done.taken);
  }
  delivered_.push_back({.cookie = done.buffer.cookie,
                        .length = done.moved,
                        .faulted = done.faulted,
                        .posted = done.posted,
                        .finished = now});
}

// Packets from the wire at a fixed rate. What finds the NIC's buffer full is lost.
Task<void> NicQueue::arrival_loop() {
  Picoseconds next = calendar_.now() + *setup_.packet_interval;
  while (!stopped_) {
    co_await sleep_until(calendar_, next);
    next += *setup_.packet_interval;
    if (packets_in_nic_ >= parameters_.receive_buffer && (started_ == fetched_ || packets_in_nic_ > 0)) {
      ++statistics_.dropped;
      continue;
    }
    ++packets_in_nic_;
    payloads_.open(calendar_, 1);
  }
}

// Raises the signal when enough completions wait, or the oldest has waited long enough.
void NicQueue::consider_interrupt() {
  if (!armed_ || delivered_.empty()) return;
  const Picoseconds due = delivered_.front().finished + parameters_.interrupt_delay;
  if (delivered_.size() >= parameters_.interrupt_frames || due <= calendar_.now()) {
    armed_ = false;
    ++statistics_.interrupts;
    signals_.raise(signal_);
    return;
  }
  if (timer_ && *timer_ <= due) return;
  timer_ = due;
  calendar_.call_at<&NicQueue::timer_expired>(due, this);
}

void NicQueue::timer_expired(std::uint64_t) {
  timer_.reset();
  consider_interrupt();
}

// RingNic -------------------------------------------------------------------------------------------------------------

NicQueue& RingNic::add_queue(const NicQueueSetup& setup) {
  queues_.push_back(std::make_unique<NicQueue>(calendar_, dma_, signals_, requester_, parameters_, setup));
  return *queues_.back();
}

void RingNic::start() {
  for (const auto& queue : queues_) queue->start();
}

void RingNic::stop() {
  for (const auto& queue : queues_) queue->stop();
}

}  // namespace iommu
