// SPDX-License-Identifier: Apache-2.0
// A guest kernel's pool of bounce buffers: which slots are free, in areas that each have a lock of their own. It hands
// out addresses; who copies what is the business of its user.
//
// [Linux 6.6 kernel/dma/swiotlb.c, kernel/dma/swiotlb.h: behaviour, not code]
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "sim/base/address.hpp"
#include "sim/base/cpu_port.hpp"
#include "sim/base/task.hpp"

namespace iommu::guest {

class BouncePool {
 public:
  static constexpr Bytes kSlot = 2_KiB;                 // IO_TLB_SIZE
  static constexpr std::uint64_t kSetSlots = 128;       // IO_TLB_SEGSIZE: a buffer never leaves its set
  static constexpr Bytes kLargest = kSlot * kSetSlots;  // of one buffer

  // `first` is aligned to a page and followed by `size` bytes, a power of two of at least one set. There are at most
  // `areas` areas, rounded up to a power of two, and no more than sets.
  BouncePool(Gpa first, Bytes size, std::uint64_t areas);

  // Slots for so many bytes: from the area of the CPU, else from the next one that has them. nullopt: none has. From a
  // page on, the buffer lies in its page as the original does, as far as slots can.
  Task<std::optional<Gpa>> allocate(CpuPort& cpu, Gpa original, Bytes length);
  // False, without effect: allocate() did not return this address, or for another length.
  Task<bool> release(CpuPort& cpu, Gpa address, Bytes length);

  [[nodiscard]] std::uint64_t areas() const { return areas_.size(); }
  [[nodiscard]] std::uint64_t slots() const { return slots_.size(); }
  [[nodiscard]] std::uint64_t used() const;
  [[nodiscard]] std::uint64_t most_used() const { return most_used_; }
  // Searches that went on to the area of another CPU.
  [[nodiscard]] std::uint64_t foreign_searches() const { return foreign_searches_; }
  void reset_counters();

 private:
  struct Slot {
    std::uint32_t free_run = 0;   // free slots from here to the next used one or the set's end; 0: used
    std::uint32_t allocated = 0;  // slots of the buffer that begins here
  };
  struct Area {
    std::uint64_t next = 0;  // where the next search begins, within the area
    std::uint64_t used = 0;
    SpinLock lock{"bounce area"};
  };
  struct Search {
    std::optional<std::uint64_t> slot;
    std::uint64_t examined = 0;
  };
  [[nodiscard]] Search search(std::uint64_t area, Gpa original, Bytes length) const;
  void take(std::uint64_t area, std::uint64_t slot, std::uint64_t count);
  void give_back(std::uint64_t slot, std::uint64_t count);
  // Recounts the free slots that end before `slot`, within its set.
  void recount_before(std::uint64_t slot, std::uint32_t run);
  static std::uint64_t slots_for(Bytes length) { return (length + kSlot - 1_B) / kSlot; }

  Gpa first_;
  std::vector<Slot> slots_;
  std::vector<std::unique_ptr<Area>> areas_;
  std::uint64_t area_slots_ = 0;
  std::uint64_t most_used_ = 0;
  std::uint64_t foreign_searches_ = 0;
};

}  // namespace iommu::guest
