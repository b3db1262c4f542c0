// SPDX-License-Identifier: Apache-2.0
// How software programs a VT-d unit: Xen in legacy mode (second stage only), Linux and Xen's nesting in scalable mode.
// Read driver.cpp (page tables, bring-up), driver_contexts.cpp (device tables), driver_commands.cpp (descriptors).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "models/vtd/capabilities.hpp"
#include "models/vtd/format.hpp"
#include "models/vtd/spec.hpp"
#include "sim/translation/family.hpp"
#include "sim/translation/table_driver.hpp"
#include "sim/translation/table_reader.hpp"

namespace iommu::vtd {

// Requests without PASID use this one. [linux drivers/iommu/intel/pasid.h, IOMMU_NO_PASID]
inline constexpr std::uint32_t kRidPasid = 0;

class Driver final : public TableDriver {
 public:
  explicit Driver(const DriverOptions& options);

  std::unique_ptr<PageTable> create_table(TableKind kind, TableMemory& memory) override;
  std::unique_ptr<PageTable> view_table(TableKind kind, TableRoot root, TableMemory& memory) override;
  [[nodiscard]] std::uint64_t page_sizes(TableKind kind) const override;
  // First-stage tables translate the lower half of the canonical addresses, as Linux uses them.
  [[nodiscard]] std::uint64_t max_input(TableKind kind) const override;

  // The last write enables translation: with a unit that has been in use before, submit global invalidations ahead of
  // it.
  std::optional<std::vector<RegisterWrite>> bring_up(TableMemory& memory) override;
  // Legacy mode takes Stage2 and Bypass; scalable mode all kinds. OutOfRange: the mode cannot express the setting.
  TableEdit attach(RequesterId requester, const ContextSetting& setting, TableMemory& memory) override;
  TableEdit detach(RequesterId requester, TableMemory& memory) override;
  // Without the device TLB: only its owner knows whether the requester has one.
  [[nodiscard]] std::vector<InvalidationScope> context_scopes(RequesterId requester,
                                                              std::optional<ContextSetting> old) const override;
  // With caching mode, 0 tags not-present entries and is not for domains.
  [[nodiscard]] std::uint32_t domain_tags() const override { return 1U << capabilities_.domain_tags_lg2; }

  [[nodiscard]] InvalidationScope widen(const InvalidationScope& exact) const override;
  [[nodiscard]] CommandWords encode(const InvalidationScope& scope) const override;
  [[nodiscard]] CommandWords encode_fence(std::uint64_t status_address, std::uint32_t status_data) const override;
  [[nodiscard]] CommandRing ring() const override;
  [[nodiscard]] std::uint64_t tail_value(std::uint32_t index) const override;

 private:
  [[nodiscard]] bool is_scalable() const { return options_.stage1; }
  [[nodiscard]] Level top_level(TableKind kind) const;
  [[nodiscard]] static TableGeometry geometry(TableKind kind, Level top_level);
  [[nodiscard]] SecondStageFormat second_stage() const;
  [[nodiscard]] FirstStageFormat first_stage() const;

  [[nodiscard]] std::uint64_t root_slot(RequesterId requester) const;
  [[nodiscard]] std::optional<std::array<std::uint64_t, 2>> legacy_entry(const ContextSetting& setting) const;
  [[nodiscard]] std::optional<std::array<std::uint64_t, 8>> process_entry(const ContextSetting& setting) const;
  TableEdit attach_legacy(RequesterId requester, const ContextSetting& setting, TableMemory& memory);
  TableEdit attach_scalable(RequesterId requester, const ContextSetting& setting, TableMemory& memory);
  [[nodiscard]] std::optional<std::uint64_t> legacy_slot(RequesterId requester, TableMemory& memory) const;
  [[nodiscard]] std::optional<std::uint64_t> scalable_slot(RequesterId requester, TableMemory& memory) const;

  [[nodiscard]] std::optional<AddressRange> block_for(const InvalidationScope& scope) const;

  DriverOptions options_;
  Capabilities capabilities_;
  std::uint64_t root_table_ = 0;
  CommandRing ring_;
  std::unordered_map<RequesterId, ContextSetting> attached_;
};

}  // namespace iommu::vtd
