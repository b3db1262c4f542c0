// SPDX-License-Identifier: Apache-2.0
// A split virtqueue as the device sees it. Everything in it is the driver's word: a ring or a chain that no driver may
// write is a defect, after which the device must not use the queue any more; nothing is followed for ever.
//
//   while (auto* chain = std::get_if<Chain>(&(popped = queue.pop()))) { ...; queue.push_used(chain->head, written); }
//   if (queue.take_notification()) ...
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <variant>
#include <vector>

#include "sim/memory/guest_memory.hpp"
#include "sim/virtio/ring_abi.hpp"

namespace iommu::virtio {

struct Buffer {
  Gpa address;
  std::uint32_t length = 0;
};

// Bytes of all buffers together.
[[nodiscard]] std::uint64_t bytes_of(std::span<const Buffer> buffers);
// Copies from or to a place in a list of buffers, whose boundaries carry no meaning. False: it ends before, or part of
// it is not the guest's memory; a write has then changed nothing.
[[nodiscard]] bool read_from(const GuestMemory& memory, std::span<const Buffer> buffers, std::uint64_t offset,
                             std::span<std::byte> into);
[[nodiscard]] bool write_to(GuestMemory& memory, std::span<const Buffer> buffers, std::uint64_t offset,
                            std::span<const std::byte> from);

// A descriptor chain: one request of the driver.
struct Chain {
  std::uint16_t head = 0;
  std::vector<Buffer> readable;
  std::vector<Buffer> writable;
};

// Why a queue cannot be used any more.
enum class Defect : std::uint8_t {
  OutsideMemory,          // a part of the queue, or an indirect table, is not the guest's memory
  IndexJump,              // more chains available than the queue has entries
  BadIndex,               // a head or next that is no descriptor of its table
  TooLong,                // a chain of more descriptors than the queue has entries, or a loop
  EmptyBuffer,            // a descriptor of no bytes
  ReadableAfterWritable,  // in one chain
  BadIndirect,            // not negotiated, nested, chained on, or no whole number of descriptors
};

class DeviceQueue {
 public:
  enum class Indirect : std::uint8_t { Refused, Allowed };
  enum class Suppression : std::uint8_t { ByFlag, ByEventIndex };
  struct Rules {
    Indirect indirect = Indirect::Refused;
    Suppression suppression = Suppression::ByFlag;
  };
  struct Empty {};

  // `memory` outlives it.
  DeviceQueue(GuestMemory& memory, QueuePlace place, Rules rules) : memory_(memory), place_(place), rules_(rules) {}

  // The next available chain. Takes it, unless there is a defect.
  [[nodiscard]] std::variant<Empty, Chain, Defect> pop();
  // Gives a chain back. False: the used ring is not the guest's memory.
  [[nodiscard]] bool push_used(std::uint16_t head, std::uint32_t written);
  // Whether the driver wants to be told of what was pushed since the last call.
  [[nodiscard]] bool take_notification();
  // Asks to be told of chains that are not taken yet. Who does so looks once more whether there is one.
  [[nodiscard]] bool ask_for_notification();

 private:
  struct Table {
    Gpa first;
    std::uint32_t entries = 0;
  };
  [[nodiscard]] std::variant<Chain, Defect> read_chain(std::uint16_t head) const;
  [[nodiscard]] std::variant<Table, Defect> indirect_table(const Descriptor& descriptor) const;

  GuestMemory& memory_;
  QueuePlace place_;
  Rules rules_;
  std::uint16_t next_ = 0;  // available index
  std::uint16_t used_ = 0;  // used index
  std::uint16_t told_ = 0;  // used index at the last take_notification()
};

}  // namespace iommu::virtio
