// SPDX-License-Identifier: Apache-2.0
// How software programs an SMMUv3: Xen with stage 2, Linux with stage 1, both with nesting. Read driver.cpp (page
// tables, bring-up), driver_contexts.cpp (stream table, context descriptors), driver_commands.cpp.
//
// The domain tag is the VMID, and also the ASID of a stage 1 that the driver sets up: where a hypervisor replaces the
// VMID, address spaces stay apart.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "models/smmuv3/capabilities.hpp"
#include "models/smmuv3/format.hpp"
#include "models/smmuv3/queue_driver.hpp"
#include "models/smmuv3/spec.hpp"
#include "sim/translation/family.hpp"
#include "sim/translation/table_driver.hpp"
#include "sim/translation/table_reader.hpp"

namespace iommu::smmuv3 {

class Driver final : public TableDriver {
 public:
  explicit Driver(const DriverOptions& options);

  // Stage-1 tables translate the lower input range (TTB0), as Linux uses it.
  std::unique_ptr<PageTable> create_table(TableKind kind, TableMemory& memory) override;
  std::unique_ptr<PageTable> view_table(TableKind kind, TableRoot root, TableMemory& memory) override;
  [[nodiscard]] std::uint64_t page_sizes(TableKind kind) const override;
  [[nodiscard]] std::uint64_t max_input(TableKind kind) const override;

  // The last write enables translation: with a unit that has been in use before, submit global invalidations ahead.
  std::optional<std::vector<RegisterWrite>> bring_up(TableMemory& memory) override;
  // Without `stage1`, Stage2 and Bypass; with it, all kinds. OutOfRange: the setting cannot be expressed. Every single
  // store leaves the stream where it was or where it goes, or blocked where no such order of stores exists.
  TableEdit attach(RequesterId requester, const ContextSetting& setting, TableMemory& memory) override;
  TableEdit detach(RequesterId requester, TableMemory& memory) override;
  [[nodiscard]] std::array<std::uint64_t, 2> entry_words(RequesterId requester, TableMemory& memory) const override;
  // A stream table entry may have been cached while it was invalid. Without the device TLB: only its owner knows
  // whether the requester has one.
  [[nodiscard]] std::vector<InvalidationScope> context_scopes(RequesterId requester,
                                                              std::optional<ContextSetting> old) const override;
  [[nodiscard]] std::uint32_t domain_tags() const override;

  [[nodiscard]] InvalidationScope widen(const InvalidationScope& exact) const override;
  [[nodiscard]] CommandWords encode(const InvalidationScope& scope) const override;
  [[nodiscard]] std::optional<CommandWords> encode(const StallResolution& resolution) const override;
  [[nodiscard]] CommandWords encode_fence(std::uint64_t status_address, std::uint32_t status_data) const override;
  [[nodiscard]] CommandRing ring() const override { return ring_; }
  [[nodiscard]] std::uint64_t tail_value(std::uint32_t index) const override { return index; }
  [[nodiscard]] const QueueDriver* queues() const override { return queues_ ? &*queues_ : nullptr; }

 private:
  using Entry = std::array<std::uint64_t, 8>;

  [[nodiscard]] Granule granule(TableKind kind) const;
  [[nodiscard]] Granule granule(TableKind kind, TableRoot root) const;
  [[nodiscard]] Stage1Format stage1(Granule granule) const;
  [[nodiscard]] Stage2Format stage2(Granule granule) const;

  [[nodiscard]] std::optional<Entry> stream_entry(const ContextSetting& setting, std::uint64_t descriptor) const;
  [[nodiscard]] bool put_stage2(Entry& ste, TableRoot root) const;
  [[nodiscard]] std::optional<Entry> descriptor(const ContextSetting& setting) const;
  [[nodiscard]] std::optional<std::uint64_t> stream_slot(RequesterId requester, TableMemory& memory) const;
  [[nodiscard]] std::optional<std::uint64_t> make_stream_slot(RequesterId requester, TableMemory& memory,
                                                              TableEdit& edit);
  // The descriptor that the stream does not use at present.
  [[nodiscard]] std::optional<std::uint64_t> idle_descriptor(RequesterId requester, TableMemory& memory,
                                                             TableEdit& edit);

  [[nodiscard]] std::optional<AddressRange> range_for(const InvalidationScope& scope) const;

  DriverOptions options_;
  Capabilities capabilities_;
  std::optional<VcmdqDriver> queues_;
  std::uint64_t stream_table_ = 0;
  CommandRing ring_;
  // Two descriptors for each stream with a stage 1 of ours take turns, so that a change is one store to its entry.
  struct Descriptors {
    std::uint64_t first = 0;
    bool uses_second = false;
  };
  std::unordered_map<RequesterId, Descriptors> descriptors_;
  std::uint64_t descriptor_page_ = 0;
  std::uint64_t descriptors_used_ = 0;
};

// Bits of an entry that hardware looks at, given the entry itself. [§5.2, §5.4]
[[nodiscard]] std::array<std::uint64_t, 8> used_stream_bits(const std::array<std::uint64_t, 8>& ste);

}  // namespace iommu::smmuv3
