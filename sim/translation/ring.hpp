// SPDX-License-Identifier: Apache-2.0
// Index arithmetic of the one ring: command rings, event rings, page-request rings. Families differ in what they store
// in the index registers, not in what a ring is.
#pragma once

#include <cstdint>

namespace iommu {

// How a ring tells full from empty.
enum class FullRule : std::uint8_t {
  OneFree,  // one slot stays unused
  WrapBit,  // indices carry one more bit than the ring needs
};

struct RingFormat {
  std::uint32_t entries = 0;  // a power of two
  std::uint32_t entry_bytes = 16;
  FullRule full = FullRule::OneFree;
  [[nodiscard]] constexpr std::uint32_t modulus() const { return full == FullRule::WrapBit ? 2 * entries : entries; }
};

// Producer and consumer of one ring, as indices modulo RingFormat::modulus().
struct RingIndices {
  RingFormat format;
  std::uint32_t head = 0;
  std::uint32_t tail = 0;

  [[nodiscard]] constexpr std::uint32_t next(std::uint32_t index) const { return (index + 1) % format.modulus(); }
  [[nodiscard]] constexpr std::uint32_t occupancy() const {
    return (tail + format.modulus() - head) % format.modulus();
  }
  [[nodiscard]] constexpr bool is_empty() const { return head == tail; }
  [[nodiscard]] constexpr bool is_full() const {
    return occupancy() >= (format.full == FullRule::OneFree ? format.entries - 1 : format.entries);
  }
  // Byte offset of an index within the ring's memory.
  [[nodiscard]] constexpr std::uint64_t offset(std::uint32_t index) const {
    return static_cast<std::uint64_t>(index % format.entries) * format.entry_bytes;
  }
};

}  // namespace iommu
