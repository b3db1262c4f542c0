// SPDX-License-Identifier: Apache-2.0
// What one SMMU can do: the identification registers, decoded once, or composed from what a scenario asks for.
#pragma once

#include <cstdint>
#include <string>

#include "models/smmuv3/guest_queue.hpp"
#include "models/smmuv3/spec.hpp"
#include "sim/translation/family.hpp"

namespace iommu::smmuv3 {

// The identity of a unit as software reads it.
struct Identity {
  std::uint32_t idr0 = 0, idr1 = 0, idr3 = 0, idr5 = 0;
  std::uint32_t iidr = 0, aidr = 0;
  std::uint32_t queue_parameters = 0;  // CMDQV_PARAM; 0: there is no such block
  QueueView queue_view = QueueView::Hardware;
};

// Registers for the features, by named fields. Both stages, all granules and substreams are always there.
[[nodiscard]] Identity compose(const UnitFeatures& features);
// Why the features cannot be had; empty when they can.
[[nodiscard]] std::string unsupported(const UnitFeatures& features);

struct Capabilities {
  explicit Capabilities(const Identity& identity);

  unsigned output_bits;                  // OAS
  unsigned stream_bits, substream_bits;  // SIDSIZE, SSIDSIZE
  unsigned command_queue_lg2, event_queue_lg2, page_queue_lg2;
  unsigned stalls;  // STALL_MAX
  StallModel stall_model;
  Endianness endianness;
  FlagUpdates flag_updates;
  std::uint8_t granules;  // bit n: kGranules0[n]
  bool stage1, stage2, two_level_streams, two_level_contexts, ats, split_stage_ats, page_requests, messages;
  bool wide_asids, wide_vmids, vmid_wildcards, terminates_only_with_abort, range_invalidation, flat_permissions;
  bool attribute_override;             // PRIVCFG and INSTCFG
  bool stage2_execution_by_privilege;  // XNX
  bool wide_output, wide_input;        // 52 bits, with the 64 KiB granule
  bool checks_context_pointer;         // SMMUv3.1 and later

  [[nodiscard]] bool supports_granule(unsigned lg2) const;
  // Of IPS and S2PS: what exceeds the OAS behaves as the OAS.
  [[nodiscard]] unsigned address_size(std::uint64_t code) const;
  [[nodiscard]] bool beyond_output(std::uint64_t address) const {
    return (address & bits_between(output_bits, 64)) != 0;
  }
};

}  // namespace iommu::smmuv3
