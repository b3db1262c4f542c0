// SPDX-License-Identifier: Apache-2.0
#include "sim/translation/queue_client.hpp"

#include <algorithm>

#include "sim/base/check.hpp"

namespace iommu {

namespace {
constexpr std::uint32_t kFenceSlots = 1;
}  // namespace

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
  while (free_ < slots || free_words_.empty()) {
    ++counters_.full_waits;
    if (pending_.empty()) {  // only commands without a fence are in the way
      const Pending own = co_await put_fence(cpu);
      co_await write_tail(cpu);
      --word_readers_[own.word];  // waited for below, like anybody's
    }
    const Pending oldest = pending_.front();
    ++word_readers_[oldest.word];
    const bool shares = discipline_.lock_scope == LockScope::SubmissionAndReclaim;
    if (shares) cpu.release(lock_);
    co_await cpu.poll(status_host_address(status_address(oldest.word)), oldest.number);
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
  SIM_CHECK(!free_words_.empty(), "a page of status words serves hundreds of waiting tasks");
  if (++last_number_ == 0) ++last_number_;  // a word that was never written holds 0
  const Pending fence{last_number_, unfenced_ + kFenceSlots, free_words_.back()};
  free_words_.pop_back();
  ++word_readers_[fence.word];
  unfenced_ = 0;
  put(driver_.encode_fence(status_address(fence.word), fence.number));
  pending_.push_back(fence);
  ++counters_.fences;
  co_return fence;
}

// Head and tail are read for what that costs; how much room there is, software knows.
Task<void> QueueClient::write_tail(CpuPort& cpu) {
  if (discipline_.tail_writes == TailWrites::PerCommand) {
    (void)co_await registers_.read(cpu, ring_.tail_register, 8);
    (void)co_await registers_.read(cpu, ring_.head_register, 8);
  }
  ++counters_.tail_writes;
  co_await registers_.write(cpu, ring_.tail_register, 8, driver_.tail_value(tail_));
}

Task<void> QueueClient::wait_for(CpuPort& cpu, Pending fence) {
  const Picoseconds began = cpu.now();
  co_await cpu.poll(status_host_address(status_address(fence.word)), fence.number);
  counters_.fence_wait.add(cpu.now() - began);
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
  if (--word_readers_[word] == 0) free_words_.push_back(word);
}

}  // namespace iommu
