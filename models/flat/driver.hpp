// SPDX-License-Identifier: Apache-2.0
// How software programs the two units: tables in memory, and registers in place of commands.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "models/flat/table.hpp"
#include "sim/translation/family.hpp"

namespace iommu::flat {

// What both have in common: one page size, no commands.
class FlatDriver : public TableDriver {
 public:
  [[nodiscard]] std::uint64_t page_sizes(TableKind) const final { return 1ULL << kPageLg2; }
  [[nodiscard]] bool has_command_ring() const final { return false; }
  [[nodiscard]] std::uint32_t domain_tags() const final { return 1U << 16; }  // software's own; no hardware has them
  [[nodiscard]] InvalidationScope widen(const InvalidationScope& exact) const final { return exact; }
  [[nodiscard]] CommandWords encode(const InvalidationScope&) const final { return {}; }
  [[nodiscard]] CommandWords encode_fence(std::uint64_t, std::uint32_t) const final { return {}; }
  [[nodiscard]] CommandRing ring() const final { return {}; }
  [[nodiscard]] std::uint64_t tail_value(std::uint32_t) const final { return 0; }
};

class TceDriver final : public FlatDriver {
 public:
  explicit TceDriver(const DriverOptions& options) : window_{0, options.features.aperture_lg2} {}
  std::unique_ptr<PageTable> create_table(TableKind kind, TableMemory& memory) override;
  std::unique_ptr<PageTable> view_table(TableKind kind, TableRoot root, TableMemory& memory) override;
  [[nodiscard]] std::uint64_t max_input(TableKind) const override { return window_.last(); }
  std::optional<std::vector<RegisterWrite>> bring_up(TableMemory& memory) override;
  // All devices of a bus share its table. EditStatus::AlreadyMapped: another device of the bus uses another one that
  // maps something.
  TableEdit attach(RequesterId requester, const ContextSetting& setting, TableMemory& memory) override;
  TableEdit detach(RequesterId requester, TableMemory& memory) override;
  [[nodiscard]] std::vector<InvalidationScope> context_scopes(RequesterId requester,
                                                              std::optional<ContextSetting> old) const override;
  [[nodiscard]] std::vector<RegisterStep> invalidation_steps(const InvalidationScope& scope) const override;

 private:
  struct User {
    TableRoot table;
    DomainTag tag;
  };
  struct Bus {
    std::map<RequesterId, User> users;
    DomainTag tag;  // of the table that the bus translates by now
  };
  [[nodiscard]] bool maps_something(TableRoot table, TableMemory& memory) const;
  TableEdit write_tar(unsigned bus, std::uint64_t value, TableMemory& memory) const;
  Window window_;
  std::uint64_t bus_table_ = 0;
  std::map<unsigned, Bus> buses_;
};

// DEVIATION(gart-001): a machine's northbridges all use one table; here each unit has its own, so that a machine with
// an aperture has one unit.
class GartDriver final : public FlatDriver {
 public:
  explicit GartDriver(const DriverOptions& options) : window_{kApertureFirst, options.features.aperture_lg2} {}
  // Every table is a view of the only one.
  std::unique_ptr<PageTable> create_table(TableKind kind, TableMemory& memory) override;
  std::unique_ptr<PageTable> view_table(TableKind kind, TableRoot root, TableMemory& memory) override;
  [[nodiscard]] std::uint64_t max_input(TableKind) const override { return window_.last(); }
  std::optional<std::vector<RegisterWrite>> bring_up(TableMemory& memory) override;
  // Devices are not told apart: nothing is written.
  TableEdit attach(RequesterId, const ContextSetting&, TableMemory&) override { return {}; }
  TableEdit detach(RequesterId, TableMemory&) override { return {}; }
  [[nodiscard]] std::vector<InvalidationScope> context_scopes(RequesterId,
                                                              std::optional<ContextSetting>) const override {
    return {};
  }
  [[nodiscard]] std::vector<RegisterStep> invalidation_steps(const InvalidationScope& scope) const override;

 private:
  Window window_;
  std::uint64_t table_ = 0;
  std::uint64_t unmapped_ = 0;  // leads to the scratch page
};

}  // namespace iommu::flat
