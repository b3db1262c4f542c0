// SPDX-License-Identifier: Apache-2.0
// Shadow translation: the guest's unit announces caching mode, so that its driver invalidates after every change, map
// or unmap. Each invalidation makes Xen read the guest's tables over the range and bring its own copy, with machine
// frames, up to date. A domain-wide invalidation means comparing the whole address space.
#pragma once

#include <cstdint>
#include <vector>

#include "sim/xen/virtual_devices.hpp"

namespace iommu::xen {

struct ShadowCounters {
  std::uint64_t compared = 0;  // entries, of the guest's tables and of the shadow
  std::uint64_t changed = 0;   // 4 KiB pages entered or removed
  std::uint64_t syncs = 0;     // of a range
  std::uint64_t resyncs = 0;   // of a whole address space
  std::uint64_t refused_scans = 0;
};

// For one sync at most. An honest guest with 16 GiB mapped in single pages stays below it; tables that contain
// themselves do not.
struct ShadowLimits {
  std::uint64_t entries = 1ULL << 23;  // of a guest's tables
  std::uint64_t pieces = 1ULL << 22;   // runs of pages found there
};

class ShadowTranslation final : public VirtualDevices {
 public:
  ShadowTranslation(Hypervisor& xen, Domain& domain, VirtualUnit& unit, const FamilyDescriptor& family,
                    ShadowLimits limits = {});

  [[nodiscard]] const ShadowCounters& counters() const { return counters_; }
  void reset_counters() { counters_ = {}; }

 private:
  // A run of pages with one translation.
  struct Piece {
    AddressRange input;
    std::uint64_t machine = 0;
    Permissions permissions;
  };
  struct GuestPieces {
    bool refused = false;
    std::vector<Piece> pieces;
  };
  [[nodiscard]] ContextKind kind() const override { return ContextKind::Stage2; }
  [[nodiscard]] bool can_translate(const Context& guest) const override { return guest.kind == ContextKind::Stage2; }
  Task<Errno> adopt(CpuPort& cpu, Device& device, const Context& guest) override;
  Task<void> invalidate_translations(CpuPort& cpu, std::vector<InvalidationScope> scopes) override;

  Task<Errno> sync(CpuPort& cpu, Device& device, TableRoot root, AddressRange range);
  Task<GuestPieces> read_guest(CpuPort& cpu, TableRoot root, AddressRange range);
  Task<std::vector<Piece>> read_shadow(CpuPort& cpu, const IoContext& context, AddressRange range);
  [[nodiscard]] std::vector<AddressRange> reserved_for(const Device& device) const;
  void append_machine_pieces(std::vector<Piece>& pieces, const MappedLeaf& leaf, AddressRange range) const;

  ShadowLimits limits_;
  std::unique_ptr<TableDriver> reader_;  // the family's way of reading a guest's tables
  ShadowCounters counters_;
};

}  // namespace iommu::xen
