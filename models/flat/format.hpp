// SPDX-License-Identifier: Apache-2.0
// Entries of the two flat tables: how many bytes one takes, what it says, and how software writes it.
#pragma once

#include <bit>
#include <cstdint>
#include <optional>

#include "models/flat/spec.hpp"

namespace iommu::flat {

struct Entry {
  std::uint64_t address = 0;
  Permissions allowed;
};

// Swapped as loads and stores of a big-endian word are.
[[nodiscard]] constexpr std::uint64_t byte_swapped(std::uint64_t word) {
  std::uint64_t swapped = 0;
  for (int i = 0; i < 8; ++i, word >>= 8) swapped = swapped << 8 | (word & 0xff);
  return swapped;
}

struct TceFormat {
  static constexpr unsigned kEntryBytes = 8;
  // nullopt: it allows nothing.
  [[nodiscard]] static constexpr std::optional<Entry> decode(std::uint64_t raw) {
    const std::uint64_t tce = byte_swapped(raw);
    const Entry entry{get<kTce, "RPN">(tce) << kPageLg2,
                      {.read = get<kTce, "Read">(tce) != 0, .write = get<kTce, "Write">(tce) != 0}};
    return entry.allowed.none() ? std::nullopt : std::optional(entry);
  }
  [[nodiscard]] static constexpr std::uint64_t encode(Entry entry) {
    std::uint64_t tce = with<kTce, "RPN">(0, entry.address >> kPageLg2);
    tce = with<kTce, "Read">(tce, entry.allowed.read ? 1 : 0);
    return byte_swapped(with<kTce, "Write">(tce, entry.allowed.write ? 1 : 0));
  }
  [[nodiscard]] static constexpr bool can_hold(std::uint64_t address) { return address >> 48 == 0; }
};

struct GartFormat {
  static constexpr unsigned kEntryBytes = 4;
  [[nodiscard]] static constexpr std::optional<Entry> decode(std::uint64_t raw) {
    if (get<kGartEntry, "VALID">(raw) == 0) return std::nullopt;
    return Entry{get<kGartEntry, "PA39_32">(raw) << 32 | get<kGartEntry, "PA31_12">(raw) << kPageLg2, kReadWrite};
  }
  // There are no rights to write down.
  [[nodiscard]] static constexpr std::uint64_t encode(Entry entry) {
    std::uint64_t raw = with<kGartEntry, "PA31_12">(0, entry.address >> kPageLg2);
    raw = with<kGartEntry, "PA39_32">(raw, entry.address >> 32);
    return with<kGartEntry, "VALID">(with<kGartEntry, "COHERENT">(raw, 1), 1);
  }
  [[nodiscard]] static constexpr bool can_hold(std::uint64_t address) { return address >> kGartPhysicalBits == 0; }
};

}  // namespace iommu::flat
