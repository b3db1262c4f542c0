// SPDX-License-Identifier: Apache-2.0
// A split virtqueue as a driver keeps it, in the guest's own memory. [VIRTIO 1.3 §2.7.13, §2.7.14; linux
// drivers/virtio/virtio_ring.c: which descriptors and when to notify]
//
//   const auto head = queue.begin(2);                     // nullopt: full
//   queue.put(*head, readable, writable);
//   if (queue.publish()) ... notify the device ...
//   while (const auto used = queue.take()) ...
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "sim/guest/guest_table_memory.hpp"
#include "sim/memory/guest_memory.hpp"
#include "sim/virtio/ring_abi.hpp"

namespace iommu::guest {

struct DriverQueueRules {
  enum class Indirect : std::uint8_t { No, Yes };
  enum class Suppression : std::uint8_t { ByFlag, ByEventIndex };
  Indirect indirect = Indirect::No;
  Suppression suppression = Suppression::ByFlag;
};

class DriverQueue {
 public:
  struct Buffer {
    Gpa address;
    std::uint32_t length = 0;
  };
  struct Used {
    std::uint16_t head = 0;
    std::uint32_t written = 0;
  };
  // Buffers of one chain.
  static constexpr unsigned kMostBuffers = 2;

  // nullopt: no memory. `memory` outlives it; the pages are kept for good.
  static std::optional<DriverQueue> allocate(GuestMemory& memory, GuestPages& pages, std::uint16_t entries,
                                             DriverQueueRules rules);

  [[nodiscard]] const virtio::QueuePlace& place() const { return place_; }
  // A head for a chain of so many buffers, 1 to kMostBuffers; nullopt: too many chains are under way.
  [[nodiscard]] std::optional<std::uint16_t> begin(unsigned buffers);
  void put(std::uint16_t head, std::optional<Buffer> readable, std::optional<Buffer> writable);
  // Makes what was put visible. True: the device wants to be notified.
  [[nodiscard]] bool publish();
  // A chain that the device is done with.
  [[nodiscard]] std::optional<Used> take();

  [[nodiscard]] bool is_idle() const { return taken_ == published_; }
  // The device is done with all that was published when this word has this value: flags, which it leaves zero, and
  // index.
  [[nodiscard]] Hpa used_word() const { return used_word_; }
  [[nodiscard]] std::uint32_t used_when_idle() const { return std::uint32_t{published_} << 16; }
  // The device need not interrupt for what it uses from now on.
  void want_no_interrupt();

 private:
  DriverQueue(GuestMemory& memory, virtio::QueuePlace place, Gpa indirect, DriverQueueRules rules, Hpa used_word);
  void write_descriptor(Gpa table, std::uint16_t index, const virtio::Descriptor& descriptor);

  GuestMemory* memory_;
  virtio::QueuePlace place_;
  Gpa indirect_tables_;
  DriverQueueRules rules_;
  Hpa used_word_;
  std::vector<std::uint16_t> free_;                      // descriptors
  std::vector<std::optional<std::uint16_t>> continued_;  // by descriptor: the next of its chain
  std::vector<bool> in_use_;                             // by head
  std::uint16_t put_ = 0;                                // available index, as far as put
  std::uint16_t published_ = 0;
  std::uint16_t taken_ = 0;  // used index
};

}  // namespace iommu::guest
