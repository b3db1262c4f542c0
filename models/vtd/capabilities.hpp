// SPDX-License-Identifier: Apache-2.0
// What one remapping unit can do: the capability registers, decoded once, or composed from what a scenario asks for.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "models/vtd/spec.hpp"
#include "sim/translation/family.hpp"

namespace iommu::vtd {

// The identity of a unit as software reads it, plus the host address width, which no register reports (the ACPI DMAR
// table does).
struct Identity {
  std::uint32_t version = 0;
  std::uint64_t cap = 0;
  std::uint64_t ecap = 0;
  unsigned host_address_bits = 48;
};

// Registers for the features, by named fields. Scalable mode, both stages and queued invalidation are always there; a
// unit for `nested` also combines the stages.
[[nodiscard]] Identity compose(const UnitFeatures& features);
// MMIO of such a unit.
inline constexpr std::uint64_t kComposedRegisterBytes = 4096;
// Why the features cannot be had; empty when they can.
[[nodiscard]] std::string unsupported(const UnitFeatures& features);

struct Capabilities {
  explicit Capabilities(const Identity& identity);

  unsigned host_address_bits;
  unsigned max_input_bits;  // MGAW
  unsigned domain_tags_lg2;
  std::uint8_t address_widths;  // SAGAW: bit n, AW = n
  std::uint8_t large_pages;     // SSLPS
  unsigned fault_records;
  std::uint64_t fault_offset, iotlb_offset;
  bool page_selective;
  unsigned max_address_mask;
  bool one_gib_first_stage, five_level_first_stage;
  bool invalidates_on_root_change;  // ESRTPS
  bool register_invalidation;       // gone from version 6 on
  bool device_tlb, pass_through, snoop_control, nested, scalable, first_stage, second_stage;
  bool supervisor_requests, extended_accessed, second_stage_marks, walk_snoop, rid_pasid, rid_privilege, abort_mode;
  bool interrupt_remapping;
  bool pasids, page_requests, memory_types;

  [[nodiscard]] bool supports_width(std::uint64_t aw) const;
};

// Bits of scalable-mode structures that must be zero: the reserved ones, and fields whose capability is absent, which
// hardware takes for reserved. [§9.4, §9.6]
struct ReservedBits {
  explicit ReservedBits(const Capabilities& capabilities);
  std::array<std::uint64_t, 4> context{};
  std::array<std::uint64_t, 8> process{};
};
template <std::size_t N>
[[nodiscard]] constexpr bool violates(const std::array<std::uint64_t, N>& reserved,
                                      const std::array<std::uint64_t, N>& entry) {
  std::uint64_t set = 0;
  for (std::size_t i = 0; i < N; ++i) set |= reserved[i] & entry[i];
  return set != 0;
}

}  // namespace iommu::vtd
