// SPDX-License-Identifier: Apache-2.0
// What one IOMMU can do: the PCI capability block and the extended features, decoded once, or composed from what a
// scenario asks for.
#pragma once

#include <cstdint>
#include <string>

#include "models/amdvi/spec.hpp"
#include "sim/translation/family.hpp"

namespace iommu::amdvi {

// The identity of a unit as software reads it.
struct Identity {
  std::uint32_t capability_header = 0;
  std::uint32_t misc_info0 = 0;
  std::uint64_t extended_features = 0;
};

// Registers for the features, by named fields. Guest translation and the queue commands are always there; SevSnp,
// vIOMMU, guest interrupts and page requests are absent and reported absent.
[[nodiscard]] Identity compose(const UnitFeatures& features);
// Why the features cannot be had; empty when they can.
[[nodiscard]] std::string unsupported(const UnitFeatures& features);

struct Capabilities {
  explicit Capabilities(const Identity& identity);

  unsigned host_address_bits;  // PAsize
  unsigned host_levels;        // HATS; 0: no host translation
  unsigned guest_levels;       // GATS
  unsigned largest_glx;
  unsigned pasid_bits;
  bool device_tlb;
  bool prefetch, page_requests, enhanced_page_requests, guest_translation, guest_io, user_supervisor, secure_ats;
  bool invalidate_all, iotlb_types, hardware_error_registers, msi_in_mmio;
  bool host_accessed, host_dirty, guest_accessed_disable, guest_dirty_disable;
};

}  // namespace iommu::amdvi
