// SPDX-License-Identifier: Apache-2.0
// The software that submits commands to a unit's ring and waits for them: Xen on the physical unit, a guest on its
// virtual one. Real commands go into ring memory, the tail register is really written, and a fence is over when its
// status word says so. Everything takes CPU time; locks and polls are the vCPU's.
//
//   co_await queue.submit(cpu, driver.context_scopes(device, old), Fence::Poll);
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "sim/base/cpu_port.hpp"
#include "sim/base/histogram.hpp"
#include "sim/base/task.hpp"
#include "sim/translation/queue_driver.hpp"
#include "sim/translation/table_driver.hpp"

namespace iommu {

// Registers as software reaches them. The port charges what an access costs: an uncached access, or a trap and all it
// causes.
class MmioPort {
 public:
  MmioPort() = default;
  MmioPort(const MmioPort&) = delete;
  MmioPort& operator=(const MmioPort&) = delete;
  virtual ~MmioPort() = default;
  virtual Task<void> write(CpuPort& cpu, std::uint64_t offset, unsigned bytes, std::uint64_t value) = 0;
  virtual Task<std::uint64_t> read(CpuPort& cpu, std::uint64_t offset, unsigned bytes) = 0;
};

enum class Fence : std::uint8_t {
  Poll,  // a fence follows, and submit() returns when it completed
  None,  // nothing is known about completion; the next fence covers these commands as well
};

// For how long submitting software holds the queue's lock. The tail write is inside in every case, and with it the trap
// of a virtual unit.
enum class LockScope : std::uint8_t {
  // From finding a slot to the tail write; the poll is outside. [xen/drivers/passthrough/vtd/qinval.c,
  // queue_invalidate_wait]
  Submission,
  // As before, and again after completion to give the slots back. Linux even drops and takes the lock in each turn of
  // its
  // polling loop; here it is taken once, when the status word is there. [linux drivers/iommu/intel/dmar.c,
  // qi_submit_sync]
  SubmissionAndReclaim,
  // Until the fence completed: what serialising software would cost. No known driver.
  UntilCompletion,
};

enum class TailWrites : std::uint8_t {
  PerSubmission,  // one for all commands and their fence [linux, qi_submit_sync]
  // One for each command, each with its own lock section and after CommandRing::index_reads. [xen, queue_invalidate_*
  // and arm_smmu_cmdq_issue_cmd]
  PerCommand,
};

struct QueueDiscipline {
  LockScope lock_scope = LockScope::Submission;
  TailWrites tail_writes = TailWrites::PerSubmission;
};
inline constexpr QueueDiscipline kXenQueue{LockScope::Submission, TailWrites::PerCommand};
inline constexpr QueueDiscipline kLinuxQueue{LockScope::SubmissionAndReclaim, TailWrites::PerSubmission};

struct QueueCounters {
  std::array<std::uint64_t, kInvalidationKinds> commands{};  // by InvalidationKind
  std::uint64_t fences = 0;
  std::uint64_t bytes = 0;  // of commands and fences
  std::uint64_t tail_writes = 0;
  std::uint64_t full_waits = 0;  // times that somebody waited for ring space
  Histogram fence_wait;          // from the tail write to the status word being seen
  void merge(const QueueCounters& other);
};

class QueueClient {
 public:
  // After TableDriver::bring_up(), with the ring empty. Takes one page for status words; null when memory is exhausted.
  // Everything passed by reference outlives the client.
  static std::unique_ptr<QueueClient> create(const TableDriver& driver, TableMemory& memory, MmioPort& registers,
                                             QueueDiscipline discipline);
  // On a ring beside the unit's first one. Its fences signal nothing: software reads the head until it has passed them.
  QueueClient(const TableDriver& driver, const QueueDriver& queues, const CommandRing& ring, TableMemory& memory,
              MmioPort& registers, QueueDiscipline discipline);
  QueueClient(const QueueClient&) = delete;
  QueueClient& operator=(const QueueClient&) = delete;
  virtual ~QueueClient() = default;

  // Any number of scopes: more than the ring holds go in portions, each with its own fence.
  Task<void> submit(CpuPort& cpu, std::vector<InvalidationScope> scopes, Fence fence);

  [[nodiscard]] const QueueCounters& counters() const { return counters_; }
  void reset_counters() { counters_ = {}; }
  [[nodiscard]] const SpinLock& lock() const { return lock_; }
  // Slots in use as far as software knows.
  [[nodiscard]] std::uint32_t occupancy() const { return capacity_ - free_; }

 protected:
  QueueClient(const TableDriver& driver, TableMemory& memory, MmioPort& registers, QueueDiscipline discipline,
              std::uint64_t status_page);
  // Where the CPU polls a status word. A guest's addresses are guest-physical: its client translates.
  [[nodiscard]] virtual Hpa status_host_address(std::uint64_t address) const { return Hpa(address); }

 private:
  // A fence under way. It has a status word until nobody looks at it any more, and writes its own number, so that words
  // need no reset and a late reader cannot mistake one fence for another.
  struct Pending {
    std::uint32_t number = 0;
    std::uint32_t slots = 0;  // of all commands since the fence before, and its own
    std::uint32_t word = 0;
    std::uint32_t end = 0;  // index of the entry after it
  };

  Task<void> submit_portion(CpuPort& cpu, std::span<const InvalidationScope> scopes, Fence fence);
  // With the lock held.
  Task<void> make_room(CpuPort& cpu, std::uint32_t slots);
  Task<void> put_commands(CpuPort& cpu, std::span<const InvalidationScope> scopes);
  Task<Pending> put_fence(CpuPort& cpu);
  Task<void> write_tail(CpuPort& cpu);
  Task<void> wait_for(CpuPort& cpu, Pending fence);
  Task<void> see(CpuPort& cpu, Pending fence);
  [[nodiscard]] bool has_passed(std::uint32_t head, std::uint32_t end) const;
  void put(const CommandWords& command);
  // All up to this fence are over: commands complete in order.
  void reclaim(std::uint32_t number);
  void release_word(std::uint32_t word);
  [[nodiscard]] std::uint64_t status_address(std::uint32_t word) const {
    return status_page_ + std::uint64_t{ring_.fence_bytes} * word;
  }

  const TableDriver& driver_;
  TableMemory& memory_;
  MmioPort& registers_;
  QueueDiscipline discipline_;
  CommandRing ring_;
  RingFormat format_;
  const QueueDriver* queues_ = nullptr;  // null: the unit's first ring, whose fences write status words
  std::uint64_t status_page_ = 0;
  SpinLock lock_{"command queue"};
  std::uint32_t tail_ = 0;
  std::uint32_t capacity_;
  std::uint32_t free_;
  std::uint32_t unfenced_ = 0;  // slots of commands that no fence covers yet
  std::uint32_t last_number_ = 0;
  std::deque<Pending> pending_;
  std::vector<unsigned> word_readers_;
  std::vector<std::uint32_t> free_words_;
  QueueCounters counters_;
};

}  // namespace iommu
