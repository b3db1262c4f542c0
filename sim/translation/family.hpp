// SPDX-License-Identifier: Apache-2.0
// A hardware family as shared code sees it: how to make its core and its driver, and what it can do. The list of
// families is models/families.hpp; nothing registers itself.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sim/translation/iommu_core.hpp"
#include "sim/translation/table_driver.hpp"

namespace iommu {

struct FamilyLayouts;
struct VectorFamily;

// Command rings beside a unit's first one, where the family has those.
enum class FurtherQueues : std::uint8_t {
  None,
  All,        // as hardware has them: some for the host's software, some that it gives to guests
  OneGuests,  // what a guest is shown of them: its own
};

// What a scenario may ask of a unit, in words that every family understands.
struct UnitFeatures {
  unsigned host_address_bits = 48;
  unsigned input_address_bits = 48;  // 39 (three levels), 48 (four) or 57 (five)
  bool nested = false;               // two stages available
  bool caching_mode = false;         // not-present entries may be cached: software must invalidate after map as well
  bool coherent_walks = true;        // false: software flushes each line it writes
  bool device_tlb = false;           // ATS supported
  bool superpages = true;
  unsigned aperture_lg2 = 32;   // where one flat table translates: log2 of the bytes that it does
  bool accessed_dirty = false;  // stage 1 keeps accessed and dirty marks
  bool stall = false;           // faulting transactions may wait for software, where the family has that
  std::uint32_t command_ring_entries = 256;
  FurtherQueues further_queues = FurtherQueues::None;
  std::uint32_t host_rings = 0;  // of the further ones, those that the host's own software uses; 0: its first one alone
};

// How software invalidates a range that one command cannot name.
enum class RangeFlush : std::uint8_t {
  ExactOrDomain,  // the whole domain [xen/drivers/passthrough/vtd/iommu.c, iommu_flush_iotlb]
  SmallestBlock,  // the smallest naturally aligned block that covers it [linux drivers/iommu/intel, PSI alignment]
};

// How a driver programs the unit.
struct DriverOptions {
  UnitFeatures features;
  // Stage-1 capable device tables (guests that own their stage 1, and Xen when it nests).
  bool stage1 = false;
  RangeFlush range_flush = RangeFlush::ExactOrDomain;
  unsigned granule_lg2 = 12;  // of page tables, where the family has several
};

// How a guest names stage-1 tables of its own where it has no unit to write them to: in the ATTACH_TABLE request of a
// virtio-iommu. [virtio-iommu with page tables, uapi/linux/virtio_iommu.h v0.12]
struct TableBinding {
  std::uint8_t format = 0;     // VIRTIO_IOMMU_ATTACH_TABLE_*
  std::uint16_t property = 0;  // VIRTIO_IOMMU_PROBE_T_HW_*: the answer to a PROBE that holds identity()
  // What PROBE tells of a unit with such features.
  std::vector<std::uint64_t> (*identity)(const UnitFeatures&) = nullptr;
  // Tables are named by the first words of a device table entry, which lead to process tables: whether words ask for a
  // translation by those. Null: they are named by the root of the page table.
  bool (*is_entry)(const std::array<std::uint64_t, 2>& words) = nullptr;
  // By which translations of requests without PASID are tagged; nullopt: the process tables say.
  std::optional<AsidTag> asid{};
};

struct FamilyDescriptor {
  std::string_view name;           // as in scenarios: "vtd"
  std::string_view specification;  // pinned revision
  std::unique_ptr<IommuCore> (*make_core)(const UnitFeatures&) = nullptr;
  std::unique_ptr<TableDriver> (*make_driver)(const DriverOptions&) = nullptr;
  std::span<const FaultRow> fault_rows;
  std::span<const CommandRow> command_rows;
  std::uint64_t mmio_bytes = 4096;
  // Units may have command rings beside the first one (UnitFeatures::further_queues).
  bool has_further_queues = false;
  // Input addresses that no table translates, in any context (interrupt messages): software never maps them.
  std::span<const AddressRange> fixed_inputs;
  // Why features cannot be combined on this family, for scenario errors; empty when they can.
  std::string (*unsupported)(const UnitFeatures&) = nullptr;
  // How recorded translations of this family are replayed; null when there are none.
  const VectorFamily* vectors = nullptr;
  // Names of the fields of its tables and registers, for `explain`; null: raw words only.
  const FamilyLayouts* layouts = nullptr;
  // How guests name tables of their own; null: units cannot nest.
  const TableBinding* binding = nullptr;
};

}  // namespace iommu
