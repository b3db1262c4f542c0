// SPDX-License-Identifier: Apache-2.0
#include "sim/translation/queue_client.hpp"

#include <algorithm>

#include "sim/base/check.hpp"

namespace iommu {

namespace {
constexpr std::uint32_t kFenceSlots = 1;
}  // namespace

void QueueCounters::merge(const QueueCounters& other) {
  for (std::size_t kind = 0; kind < commands.size(); ++kind) commands[kind] += other.commands[kind];
  fences += other.fences;
  bytes += other.bytes;
  tail_writes += other.tail_writes;
  full_waits += other.full_waits;
  fence_wait.merge(other.fence_wait);
}

std::unique_ptr<QueueClient> QueueClient::create(const TableDriver& driver, TableMemory& memory, MmioPort& registers,
                                                 QueueDiscipline discipline) {
  const auto page = memory.allocate();
  if (!page) return nullptr;
  return std::unique_ptr<QueueClient>(new QueueClient(driver, memory, registers, discipline, *page));
}

QueueClient::QueueClient(const TableDriver& driver, TableMemory& memory, MmioPort& registers,
                         QueueDiscipline discipline, std::uint64_t status_page)
    : driver_(driver),
      memory_(memory),
      registers_(registers),
      discipline_(discipline),
      ring_(driver.ring()),
      format_{.entries = ring_.entries, .entry_bytes = ring_.entry_bytes, .full = ring_.full},
      status_page_(status_page),
      capacity_(ring_.full == FullRule::OneFree ? ring_.entries - 1 : ring_.entries),
      free_(capacity_),
      word_readers_(kPageSize.value() / ring_.fence_bytes, 0) {
  SIM_CHECK(ring_.entries > 2, "a driver's ring holds a command and its fence");
  for (auto i = static_cast<std::uint32_t>(word_readers_.size()); i > 0; --i) free_words_.push_back(i - 1);
}

QueueClient::QueueClient(const TableDriver& driver, const QueueDriver& queues, const CommandRing& ring,
                         TableMemory& memory, MmioPort& registers, QueueDiscipline discipline)
    : driver_(driver),
      memory_(memory),
      registers_(registers),
      discipline_(discipline),
      ring_(ring),
      format_{.entries = ring.entries, .entry_bytes = ring.entry_bytes, .full = ring.full},
      queues_(&queues),
      capacity_(ring.full == FullRule::OneFree ? ring.entries - 1 : ring.entries),
      free_(capacity_) {
  SIM_CHECK(ring_.entries > 2, "a driver's ring holds a command and its fence");
}

Task<void> QueueClient::submit(CpuPort& cpu, std::vector<InvalidationScope> scopes, Fence fence) {
  const std::span<const InvalidationScope> all(scopes);
  const std::size_t portion = capacity_ - kFenceSlots;
  std::size_t done = 0;
  while (all.size() - done > portion) {
    co_await submit_portion(cpu, all.subspan(done, portion), Fence::Poll);
    done += portion;
  }
  if (done < all.size() || fence == Fence::Poll) co_await submit_portion(cpu, all.subspan(done), fence);
}

Task<void> QueueClient::submit_portion(CpuPort& cpu, std::span<const InvalidationScope> scopes, Fence fence) {
  const bool one_by_one = discipline_.tail_writes == TailWrites::PerCommand;
  const std::size_t step = one_by_one ? 1 : std::max<std::size_t>(scopes.size(), 1);
  // One lock section for each command, and another for the fence; or one for all.
  for (std::size_t i = 0; one_by_one && i < scopes.size(); i += step) {
    co_await cpu.acquire(lock_);
    co_await make_room(cpu, 1 + kFenceSlots);
    co_await put_commands(cpu, scopes.subspan(i, step));
    co_await write_tail(cpu);
    cpu.release(lock_);
  }
  const std::span<const InvalidationScope> rest = one_by_one ? scopes.last(0) : scopes;
  if (rest.empty() && fence == Fence::None) co_return;
  co_await cpu.acquire(lock_);
  // A slot for a fence stays free in any case: it is what waiting for room needs.
  co_await make_room(cpu, static_cast<std::uint32_t>(rest.size()) + kFenceSlots);
  co_await put_commands(cpu, rest);
  if (fence == Fence::None) {
    co_await write_tail(cpu);
    cpu.release(lock_);
    co_return;
  }
  const Pending pending = co_await put_fence(cpu);
  co_await write_tail(cpu);
  if (discipline_.lock_scope != LockScope::UntilCompletion) cpu.release(lock_);
  co_await wait_for(cpu, pending);
  if (discipline_.lock_scope == LockScope::SubmissionAndReclaim) co_await cpu.acquire(lock_);
  reclaim(pending.number);
  release_word(pending.word);
  if (discipline_.lock_scope != LockScope::Submission) cpu.release(lock_);
}

// Waits for the oldest fence while there is too little room. Linux lets others submit meanwhile; Xen spins with the
// lock.
Task<void> QueueClient::make_room(CpuPort& cpu, std::uint32_t slots) {
  while (free_ < slots || (queues_ == nullptr && free_words_.empty())) {
    ++counters_.full_waits;
    if (pending_.empty()) {  // only commands without a fence are in the way
      const Pending own = co_await put_fence(cpu);
      co_await write_tail(cpu);
      if (queues_ == nullptr) --word_readers_[own.word];  // waited for below, like anybody's
    }
    const Pending oldest = pending_.front();
    if (queues_ == nullptr) ++word_readers_[oldest.word];
    const bool shares = discipline_.lock_scope == LockScope::SubmissionAndReclaim;
    if (shares) cpu.release(lock_);
    co_await see(cpu, oldest);
    if (shares) co_await cpu.acquire(lock_);
    reclaim(oldest.number);
    release_word(oldest.word);
  }
}

Task<void> QueueClient::put_commands(CpuPort& cpu, std::span<const InvalidationScope> scopes) {
  for (const InvalidationScope& scope : scopes) {
    co_await cpu.charge(CostId::CommandWrite);
    put(driver_.encode(scope));
    ++counters_.commands[static_cast<std::size_t>(scope.kind)];
    ++unfenced_;
  }
}

Task<QueueClient::Pending> QueueClient::put_fence(CpuPort& cpu) {
  co_await cpu.charge(CostId::CommandWrite);
  if (++last_number_ == 0) ++last_number_;  // a word that was never written holds 0
  Pending fence{.number = last_number_, .slots = unfenced_ + kFenceSlots};
  if (queues_ == nullptr) {
    SIM_CHECK(!free_words_.empty(), "a page of status words serves hundreds of waiting tasks");
    fence.word = free_words_.back();
    free_words_.pop_back();
    ++word_readers_[fence.word];
    put(driver_.encode_fence(status_address(fence.word), fence.number));
  } else {
    put(queues_->encode_fence());
  }
  unfenced_ = 0;
  fence.end = tail_;
  pending_.push_back(fence);
  ++counters_.fences;
  co_return fence;
}

// Head and tail are read for what that costs; how much room there is, software knows.
Task<void> QueueClient::write_tail(CpuPort& cpu) {
  const unsigned bytes = queues_ == nullptr ? 8 : QueueDriver::kIndexBytes;
  if (discipline_.tail_writes == TailWrites::PerCommand) {
    for (unsigned reads = 0; reads < ring_.index_reads; ++reads)
      (void)co_await registers_.read(cpu, reads % 2 == 0 ? ring_.tail_register : ring_.head_register, bytes);
  }
  ++counters_.tail_writes;
  co_await registers_.write(cpu, ring_.tail_register, bytes, driver_.tail_value(tail_));
}

Task<void> QueueClient::wait_for(CpuPort& cpu, Pending fence) {
  const Picoseconds began = cpu.now();
  co_await see(cpu, fence);
  counters_.fence_wait.add(cpu.now() - began);
}

// Without a status word: read after read, and after some of them pauses that double. [linux
// drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c, queue_poll, ARM_SMMU_POLL_SPIN_COUNT]
Task<void> QueueClient::see(CpuPort& cpu, Pending fence) {
  if (queues_ == nullptr) {
    co_await cpu.poll(status_host_address(status_address(fence.word)), fence.number);
    co_return;
  }
  constexpr unsigned kSpins = 10;
  constexpr Picoseconds kLongestPause = 1000_ms;
  Picoseconds pause = 1_us;
  for (unsigned reads = 1;; ++reads) {
    const std::uint64_t head = co_await registers_.read(cpu, ring_.head_register, QueueDriver::kIndexBytes);
    // Or somebody else has seen a later one, and indices mean other entries by now.
    const bool is_pending = std::ranges::find(pending_, fence.number, &Pending::number) != pending_.end();
    if (!is_pending || has_passed(queues_->head_index(head), fence.end)) co_return;
    if (reads % kSpins != 0) continue;
    co_await cpu.sleep_until(cpu.now() + pause);
    pause = std::min(pause * 2, kLongestPause);
  }
}

// No more entries lie before the tail than did behind the fence when nothing of it was consumed.
bool QueueClient::has_passed(std::uint32_t head, std::uint32_t end) const {
  const RingIndices left{.format = format_, .head = head % format_.modulus(), .tail = tail_};
  const RingIndices behind{.format = format_, .head = end, .tail = tail_};
  return left.occupancy() <= behind.occupancy();
}

void QueueClient::put(const CommandWords& command) {
  SIM_CHECK(free_ > 0, "room is made before a command is written");
  const RingIndices at{.format = format_, .head = 0, .tail = tail_};
  const std::uint64_t address = ring_.base + at.offset(tail_);
  for (std::size_t w = 0; w < ring_.entry_bytes / 8; ++w) memory_.write64(address + 8 * w, command.words[w]);
  tail_ = at.next(tail_);
  --free_;
  counters_.bytes += ring_.entry_bytes;
}

void QueueClient::reclaim(std::uint32_t number) {
  const auto last =
      std::find_if(pending_.begin(), pending_.end(), [&](const Pending& p) { return p.number == number; });
  if (last == pending_.end()) return;  // a later fence was seen first
  for (auto fence = pending_.begin(); fence != std::next(last); ++fence) free_ += fence->slots;
  pending_.erase(pending_.begin(), std::next(last));
}

void QueueClient::release_word(std::uint32_t word) {
  if (queues_ != nullptr) return;
  if (--word_readers_[word] == 0) free_words_.push_back(word);
}

}  // namespace iommu
