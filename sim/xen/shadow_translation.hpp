// SPDX-License-Identifier: Apache-2.0
// Shadow translation: Xen keeps its own copy, with machine frames, of the guest's tables. How it learns of changes:
//
//   CachingMode    The guest's unit announces caching mode, so that its driver invalidates after every change, map or
//                  unmap. Each invalidation makes Xen read the guest's tables over the range and bring its copy up to
//                  date. A domain-wide invalidation means comparing the whole address space.
//   WriteProtect   The guest's tables are write-protected, so that every store to them traps, and Xen brings up to date
//                  what the written entry decides about. The guest need not say what it maps, nor that a device-table
//                  entry became valid. What it unmaps is removed at once, but hardware is told by the guest's
//                  invalidation, which is one of the range that was removed and of nothing else.
#pragma once

#include <cstdint>
#include <vector>

#include "sim/xen/protected_tables.hpp"
#include "sim/xen/virtual_devices.hpp"

namespace iommu::xen {

enum class ShadowSync : std::uint8_t { CachingMode, WriteProtect };

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
  // WriteProtect: pages that may wait for a guest's invalidation; with more, Xen does not wait.
  std::uint64_t removed_pages = 1ULL << 16;
};

class ShadowTranslation final : public VirtualDevices {
 public:
  ShadowTranslation(Hypervisor& xen, Domain& domain, VirtualUnit& unit, const FamilyDescriptor& family,
                    ShadowSync how = ShadowSync::CachingMode, ShadowLimits limits = {});
  ~ShadowTranslation() override;

  std::vector<TableChange> on_store(Gpa address, Bytes length) override;
  Task<void> tables_changed(CpuPort& cpu, std::vector<TableChange> changes) override;

  [[nodiscard]] const ShadowCounters& counters() const { return counters_; }
  void reset_counters() { counters_ = {}; }
  // Pages of the guest that are write-protected now.
  [[nodiscard]] std::size_t protected_pages() const { return protected_.pages(); }

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
  Task<ContextResult> read_context(Device& device, TranslationRequest request) override;
  Task<void> left(CpuPort& cpu, Device& device) override;

  // A part of an address space that is to be brought up to date.
  struct Part {
    TableRoot root;
    AddressRange range;
    UnmapFlush flush = UnmapFlush::Now;
    std::uint64_t known_tables = 0;  // that need not be read to get there
  };
  Task<void> invalidate_device(CpuPort& cpu, Device& device, AddressRange range);
  Task<void> apply(CpuPort& cpu, Device& device, TableChange change);
  Task<Errno> sync(CpuPort& cpu, Device& device, Part part);
  Task<GuestPieces> read_guest(CpuPort& cpu, Part part);
  Task<void> charge_protection(CpuPort& cpu);
  Task<std::vector<Piece>> read_shadow(CpuPort& cpu, const IoContext& context, AddressRange range);
  [[nodiscard]] std::vector<AddressRange> reserved_for(const Device& device) const;
  void append_machine_pieces(std::vector<Piece>& pieces, const MappedLeaf& leaf, AddressRange range) const;

  ShadowSync how_;
  ShadowLimits limits_;
  std::unique_ptr<TableDriver> reader_;  // the family's way of reading a guest's tables
  ProtectedTables protected_;            // WriteProtect
  ShadowCounters counters_;
};

}  // namespace iommu::xen
