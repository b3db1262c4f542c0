// SPDX-License-Identifier: Apache-2.0
// Split virtqueues in memory, as driver and device share them. [VIRTIO 1.3 §2.7, split-ring.tex]
//
// Three areas, each contiguous: the descriptor table, the driver's ring of available chains and the device's ring of
// used ones. Fields are little-endian with the natural alignment that is asserted here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "sim/base/address.hpp"

namespace iommu::virtio {

inline constexpr std::uint32_t kLargestQueue = 32768;  // entries, a power of two [§2.7]
// What the areas must be aligned to, log2 of bytes. [§2.7]
inline constexpr unsigned kDescriptorAlignLg2 = 4;
inline constexpr unsigned kDriverAlignLg2 = 1;
inline constexpr unsigned kDeviceAlignLg2 = 2;

// Features of every device. [§6]
inline constexpr unsigned kFeatureIndirectDescriptors = 28;
inline constexpr unsigned kFeatureEventIndex = 29;
inline constexpr unsigned kFeatureVersion1 = 32;

struct Descriptor {
  std::uint64_t address = 0;  // guest-physical
  std::uint32_t length = 0;
  std::uint16_t flags = 0;
  std::uint16_t next = 0;
};
static_assert(sizeof(Descriptor) == 16 && offsetof(Descriptor, length) == 8 && offsetof(Descriptor, flags) == 12 &&
              offsetof(Descriptor, next) == 14);
inline constexpr std::uint16_t kDescriptorNext = 1;
inline constexpr std::uint16_t kDescriptorWrite = 2;
inline constexpr std::uint16_t kDescriptorIndirect = 4;

// Both rings begin with flags and index; entries follow, and after the last one the other side's event index.
inline constexpr std::uint64_t kRingFlags = 0;
inline constexpr std::uint64_t kRingIndex = 2;
inline constexpr std::uint64_t kRingEntries = 4;
inline constexpr std::uint64_t kAvailableEntryBytes = 2;
inline constexpr std::uint16_t kAvailableNoInterrupt = 1;  // flags of the driver's ring

struct UsedElement {
  std::uint32_t id = 0;      // head of the chain
  std::uint32_t length = 0;  // bytes that the device wrote
};
static_assert(sizeof(UsedElement) == 8 && offsetof(UsedElement, length) == 4);

// Where a queue is. `entries` is a power of two.
struct QueuePlace {
  Gpa descriptors;
  Gpa driver;
  Gpa device;
  std::uint16_t entries = 0;

  [[nodiscard]] Gpa available_entry(std::uint16_t index) const {
    return driver + Bytes(kRingEntries + kAvailableEntryBytes * (index % entries));
  }
  [[nodiscard]] Gpa used_entry(std::uint16_t index) const {
    return device + Bytes(kRingEntries + sizeof(UsedElement) * (index % entries));
  }
  // The driver's: from which used index on it wants to be told.
  [[nodiscard]] Gpa used_event() const { return driver + Bytes(kRingEntries + kAvailableEntryBytes * entries); }
  // The device's: from which available index on it wants to be told.
  [[nodiscard]] Gpa available_event() const { return device + Bytes(kRingEntries + sizeof(UsedElement) * entries); }
};

// Whether the side that asked to be told when index `event` is passed must be, after a step from `old` to `now`.
// Indices wrap. [§2.7.7.2, §2.7.10.2]
[[nodiscard]] constexpr bool passes_event(std::uint16_t event, std::uint16_t now, std::uint16_t old) {
  return static_cast<std::uint16_t>(now - event - 1) < static_cast<std::uint16_t>(now - old);
}

}  // namespace iommu::virtio
