// SPDX-License-Identifier: Apache-2.0
// How software programs an AMD IOMMU: Xen with host tables only, Linux and Xen's nesting with guest tables as well.
// Read driver.cpp (page tables, bring-up), driver_contexts.cpp (device table), driver_commands.cpp (commands).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "models/amdvi/capabilities.hpp"
#include "models/amdvi/format.hpp"
#include "models/amdvi/spec.hpp"
#include "sim/translation/family.hpp"
#include "sim/translation/table_driver.hpp"
#include "sim/translation/table_reader.hpp"

namespace iommu::amdvi {

// The PASID whose guest tables serve requests without one. [§2.2.6]
inline constexpr std::uint32_t kRequestsWithoutPasid = 0;

class Driver final : public TableDriver {
 public:
  explicit Driver(const DriverOptions& options);

  std::unique_ptr<PageTable> create_table(TableKind kind, TableMemory& memory) override;
  std::unique_ptr<PageTable> view_table(TableKind kind, TableRoot root, TableMemory& memory) override;
  [[nodiscard]] std::uint64_t page_sizes(TableKind kind) const override;
  // Guest tables translate the lower half of the canonical addresses, as Linux uses them.
  [[nodiscard]] std::uint64_t max_input(TableKind kind) const override;

  // Takes a device table for every DeviceID, in which all are blocked: an entry of zeros would forward untranslated.
  // The last write enables translation.
  std::optional<std::vector<RegisterWrite>> bring_up(TableMemory& memory) override;
  // OutOfRange: the unit cannot express the setting. Guest tables need two GCR3 tables for each requester, which take
  // turns, so that an entry moves from one to the other by one write.
  TableEdit attach(RequesterId requester, const ContextSetting& setting, TableMemory& memory) override;
  TableEdit detach(RequesterId requester, TableMemory& memory) override;
  // Without the device TLB: only its owner knows whether the requester has one.
  [[nodiscard]] std::vector<InvalidationScope> context_scopes(RequesterId requester,
                                                              std::optional<ContextSetting> old) const override;
  [[nodiscard]] std::uint32_t domain_tags() const override {
    return 1U << field_of<kDeviceTableEntry, "DomainID">.width();
  }

  [[nodiscard]] InvalidationScope widen(const InvalidationScope& exact) const override;
  [[nodiscard]] CommandWords encode(const InvalidationScope& scope) const override;
  [[nodiscard]] CommandWords encode_fence(std::uint64_t status_address, std::uint32_t status_data) const override;
  [[nodiscard]] CommandRing ring() const override { return ring_; }
  [[nodiscard]] std::uint64_t tail_value(std::uint32_t index) const override {
    return std::uint64_t{index} * ring_.entry_bytes;
  }

 private:
  using Entry = std::array<std::uint64_t, 4>;

  [[nodiscard]] Level top_level(TableKind kind) const;
  [[nodiscard]] static TableGeometry geometry(TableKind kind, Level top_level);
  [[nodiscard]] HostFormat host_format() const;
  [[nodiscard]] GuestFormat guest_format() const;

  [[nodiscard]] std::uint64_t slot(RequesterId requester) const;
  [[nodiscard]] bool is_expressible(const ContextSetting& setting) const;
  [[nodiscard]] Entry entry_of(const ContextSetting& setting, std::uint64_t gcr3_table) const;
  [[nodiscard]] std::optional<std::uint64_t> next_gcr3_table(RequesterId requester, TableMemory& memory,
                                                             TableEdit& edit);
  [[nodiscard]] std::optional<AddressRange> block_around(AddressRange range) const;

  DriverOptions options_;
  Capabilities capabilities_;
  std::uint64_t device_table_ = 0;
  CommandRing ring_;
  struct Attached {
    std::optional<ContextSetting> setting;
    std::array<std::uint64_t, 2> gcr3_tables{};
    std::size_t turn = 0;
  };
  std::unordered_map<RequesterId, Attached> attached_;
};

}  // namespace iommu::amdvi
