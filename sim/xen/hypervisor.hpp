// SPDX-License-Identifier: Apache-2.0
// Xen, as far as DMA is concerned: physical units, domains, device assignment, IOMMU contexts. Everything runs on the
// vCPU that causes it and charges that vCPU by named cost rows.
//
//   Hypervisor xen(memory, frames, options);
//   xen.add_unit({"dmar0", &family, driver_options}, registers);
//   co_await xen.bring_up(cpu);
//   Domain* guest = xen.create_domain({.name = "guest", .memory = 1_GiB});
//   co_await xen.assign_device(cpu, *guest, {.requester = nic});      // now in context 0
//
// Hypercalls on top of it: iommu_op.hpp. Virtual units: virtual_unit.hpp.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "sim/base/cpu_port.hpp"
#include "sim/base/task.hpp"
#include "sim/memory/frame_allocator.hpp"
#include "sim/memory/host_table_memory.hpp"
#include "sim/xen/domain.hpp"
#include "sim/xen/errno.hpp"
#include "sim/xen/page_references.hpp"
#include "sim/xen/physical_unit.hpp"

namespace iommu::xen {

// Whether a table page that merging freed stays set aside for the split that may follow. Without it unmapping a part of
// a large page may fail with Errno::NoMemory.
enum class ShatterReserve : std::uint8_t { None, Kept };

// Where a device that is taken from its domain goes. [xen-command-line, quarantine]
enum class Quarantine : std::uint8_t {
  Basic,        // nowhere: its requests fault
  ScratchPage,  // every address leads to one page of the device's own; for devices that fail badly when they fault
};

// Whether domains may divide devices that nothing isolates from one another.
enum class GroupSplit : std::uint8_t { Refused, Permitted };

struct HypervisorOptions {
  Coalesce coalesce = Coalesce::No;  // merge full tables of equal leaves into larger pages
  // Pages that one hypercall slice handles before it is preempted and continues.
  std::uint64_t slice_pages = 4096;
  std::uint64_t seed = 1;  // of scattered memory
  // ASSUMPTION(pv-003): 2^16 pages of one context may wait for a deferred flush, far more than the flush queues of a
  // guest's vCPUs hold; beyond them deferring is as flushing now, or a guest could make Xen remember pages without
  // bound.
  std::uint64_t deferred_pages = 1U << 16;
  ShatterReserve shatter_reserve = ShatterReserve::None;
  Quarantine quarantine = Quarantine::Basic;
  GroupSplit group_split = GroupSplit::Refused;
  TagAllocation tag_allocation = TagAllocation::AtCreation;  // of contexts that guests ask for
};

// Pages of a multi-page operation that were done before `status` stopped it.
struct PagesDone {
  Errno status = Errno::Ok;
  std::uint64_t pages = 0;
  // Where `status` tells of the flush alone (InputOutput): what it is once a later flush has succeeded.
  Errno after_flush = Errno::Ok;
  std::uint64_t undone = 0;  // further ones that were mapped and taken back (PartialMap::Undone)
};

enum class UnmapFlush : std::uint8_t { Now, Later };

// What becomes of the pages before the one that could not be mapped.
enum class PartialMap : std::uint8_t { Kept, Undone };

// One change of a context: pages of `gfn` to `dfn`, or away from there.
struct PageOperation {
  enum class Kind : std::uint8_t { Map, Unmap, UnmapLater };  // UnmapLater: as with UnmapFlush::Later
  Kind kind = Kind::Map;
  Gfn gfn{};  // Map
  Dfn dfn{};
  std::uint64_t pages = 0;
  Permissions permissions{};  // Map
  // Largest page that a map may install at once, and what is counted: a map that stops within one takes it back.
  unsigned page_lg2 = kPageLg2;
  PartialMap partial = PartialMap::Kept;
};

// What follows an operation that was refused.
enum class AfterRefusal : std::uint8_t { GoOn, Stop };

struct ContextCounters {
  std::uint64_t flush_calls = 0;      // decisions to flush after an edit, over all callers
  std::uint64_t flushes_skipped = 0;  // only new entries, and not-present ones are not cached
};

class Hypervisor {
 public:
  // Memory and frames outlive it.
  Hypervisor(HostMemory& memory, FrameAllocator& frames, const HypervisorOptions& options);
  ~Hypervisor();
  Hypervisor(const Hypervisor&) = delete;
  Hypervisor& operator=(const Hypervisor&) = delete;

  // Units ------------------------------------------------------------------------------------------------------------
  PhysicalUnit& add_unit(const PhysicalUnitSetting& setting, MmioPort& registers);
  Task<Errno> bring_up(CpuPort& cpu);
  [[nodiscard]] PhysicalUnit& unit(std::size_t index) { return *units_[index]; }
  [[nodiscard]] std::size_t units() const { return units_.size(); }

  // Domains and devices ----------------------------------------------------------------------------------------------
  // Allocates its memory and builds context 0. nullptr: not enough host memory, or no domain tag left. Takes no time: a
  // toolstack does it before anything runs. Units are up.
  Domain* create_domain(const DomainSetting& setting);
  // Why create_domain() refuses such a domain whatever memory there is; empty: it does not.
  [[nodiscard]] std::string_view refusal(const DomainSetting& setting) const;
  // nullptr: no such domain.
  [[nodiscard]] Domain* find_domain(DomainId id);
  [[nodiscard]] const std::vector<std::unique_ptr<Domain>>& domains() const { return domains_; }
  // Changes of a domain's memory while it runs (grants, foreign mappings, ballooning). Where context 0 shows the
  // memory, it follows, with its flush; where it blocks, no unit is concerned. Errno::AddressInUse: something is there;
  // Errno::NoEntry: a frame of the range is nothing.
  Task<Errno> add_memory(CpuPort& cpu, Domain& domain, P2mExtent extent);
  Task<Errno> remove_memory(CpuPort& cpu, Domain& domain, Gfn first, std::uint64_t pages);
  // Gives a device to a domain, in context 0. Errno::NotPermitted: another domain has a device that it is not isolated
  // from. Errno::InputOutput: its unit has not said that it forgot the last owner's setting.
  Task<Errno> assign_device(CpuPort& cpu, Domain& domain, DeviceSetting device);
  // Takes it away: it goes into quarantine.
  Task<Errno> deassign_device(CpuPort& cpu, Domain& domain, RequesterId device);
  // The page that a device in quarantine reads and writes; nullopt: it is not, or its requests fault.
  [[nodiscard]] std::optional<Mfn> scratch_page(RequesterId device) const;
  // The device's unit has reported a fault. CutOff: the device may not issue requests any more.
  BusMastering note_fault(RequesterId device, Picoseconds now);
  // Whose device it is that issues requests under that id, its own or a phantom function's. Nobody's: domain is null.
  struct Owner {
    Domain* domain = nullptr;
    RequesterId device;
  };
  [[nodiscard]] Owner owner_of(RequesterId function);
  // Gives it to another domain, in that domain's context 0. Where assign_device() would refuse it nothing happens.
  Task<Errno> move_device(CpuPort& cpu, Domain& from, Domain& to, RequesterId device);

  // Contexts ---------------------------------------------------------------------------------------------------------
  // An empty context with one domain tag per unit (TagAllocation::AtCreation) and, unless it is nested, its own table
  // in `tables`. Errno::NoSpace: a unit has no tag left. Errno::NoMemory: no page for the root table.
  struct NewContext {
    Errno status = Errno::Ok;
    std::unique_ptr<IoContext> context;
  };
  NewContext make_context(ContextNumber number, ContextKind kind, TableMemory& tables,
                          TagAllocation tag_allocation = TagAllocation::AtCreation);
  // A nested one that shares the tags of another: what a guest invalidates under its tag then covers both.
  std::unique_ptr<IoContext> make_sibling(ContextNumber number, const IoContext& other);
  // Releases everything a context holds. It is dying and no device is inside, so no cache knows it. Returns the number
  // of slices that this took.
  Task<std::uint64_t> destroy_context(CpuPort& cpu, Domain& domain, std::unique_ptr<IoContext> context);
  // Moves a device and its phantom functions, all or nothing. Errno::InputOutput: the unit did not say that it forgot
  // a setting; the device is blocked, and the target never reused. Errno::NoSpace: no domain tag
  // (TagAllocation::AtAttach).
  Task<Errno> reattach(CpuPort& cpu, Domain& domain, RequesterId device, IoContext& target);
  // Makes a change of a context's own setting (a nested context's stage 1) effective for the devices inside. `before`:
  // what it was; its tag does not matter.
  Task<Errno> refresh(CpuPort& cpu, Domain& domain, IoContext& context, ContextSetting before);

  // Maps pages of the domain into a context; takes page references. Stops at the first page that cannot be mapped; what
  // was mapped stays and has been flushed as far as necessary.
  Task<PagesDone> map_pages(CpuPort& cpu, Domain& domain, IoContext& context, Gfn gfn, Dfn dfn, std::uint64_t pages,
                            Permissions permissions);
  // Unmaps; with UnmapFlush::Later references and freed tables are kept until flush_context().
  Task<PagesDone> unmap_pages(CpuPort& cpu, Domain& domain, IoContext& context, Dfn dfn, std::uint64_t pages,
                              UnmapFlush flush);
  // Several operations under one lock with one flush at the end, over the ranges of those that need one. As many
  // answers as operations were tried. Errno::InputOutput: done, but a unit did not answer the flush; what was unmapped
  // is kept until flush_context() succeeds.
  Task<std::vector<PagesDone>> change_pages(CpuPort& cpu, Domain& domain, IoContext& context,
                                            std::vector<PageOperation> operations, AfterRefusal after);
  // Invalidates a whole context on every unit that it is used on, and lets go of what awaited that. Errno::InputOutput:
  // a unit did not answer, and all is kept.
  Task<Errno> flush_context(CpuPort& cpu, Domain& domain, IoContext& context);
  // Invalidates what an edit of a context's table made necessary; then releases the tables that it freed. InputOutput:
  // a unit did not answer, the tables are kept, and a guest whose context 0 it is has crashed.
  Task<Errno> flush_edit(CpuPort& cpu, Domain& domain, IoContext& context, AddressRange range, TableEdit edit);
  // Changes a context's table as a shadow does: removes the ranges, then adds the pieces, with one flush at the end for
  // what was removed. Moves page references along. With UnmapFlush::Later the flush and the references of what was
  // removed wait for flush_removed(), unless a table went: a walk cache would go on using it and miss what comes next.
  struct Piece {
    AddressRange input;
    Hpa machine;
    Permissions permissions;
  };
  Task<Errno> replace_pages(CpuPort& cpu, Domain& domain, IoContext& context, std::vector<AddressRange> removed,
                            std::vector<Piece> added, UnmapFlush flush = UnmapFlush::Now);
  // Invalidates what replace_pages() removed from the range, if there is anything, and lets go of it.
  Task<void> flush_removed(CpuPort& cpu, Domain& domain, IoContext& context, AddressRange range);
  // Points the page at a machine frame's own address (dfn = mfn) at that frame, or at nothing, with its own flush.
  Task<Errno> set_identity_page(CpuPort& cpu, Domain& domain, IoContext& context, Mfn frame,
                                std::optional<Permissions> permissions);
  // Charges the steps of an edit.
  Task<void> charge_edit(CpuPort& cpu, const TableEdit& edit);

  [[nodiscard]] Dfn last_dfn() const;
  // Whether a device of the context is behind that unit.
  [[nodiscard]] bool uses_unit(const Domain& domain, const IoContext& context, std::size_t unit) const;
  // References that contexts, and rings of guests, hold on machine frames.
  [[nodiscard]] const PageReferences& references() const { return references_; }
  // Of those who map by other ways than contexts (grants).
  void take_reference(Mfn frame) { references_.take(frame); }
  void drop_reference(Mfn frame) { references_.drop(frame); }
  [[nodiscard]] HostTableMemory& heap() { return heap_; }
  [[nodiscard]] FrameAllocator& frames() { return frames_; }
  [[nodiscard]] HostMemory& memory() { return memory_; }
  [[nodiscard]] const HypervisorOptions& options() const { return options_; }
  [[nodiscard]] const ContextCounters& counters() const { return counters_; }
  // Memory in page tables and device tables of all units and contexts.
  [[nodiscard]] std::uint64_t table_bytes() const;

 private:
  // Pages that follow one another in the context and in machine memory.
  struct MapRun {
    Errno status = Errno::Ok;
    Mfn machine;
    std::uint64_t pages = 0;
  };
  [[nodiscard]] MapRun next_run(const Domain& domain, const IoContext& context, Gfn gfn, Dfn dfn,
                                std::uint64_t pages) const;
  // An operation that was done under the context's lock and not flushed yet.
  struct PagesEdit {
    PagesDone done;
    AddressRange range;  // touched
    TableEdit edit;
    std::uint64_t leaves = 0;      // entered or found
    std::uint64_t references = 0;  // taken
    std::vector<Mfn> dropped;      // references to give up after the flush
  };
  [[nodiscard]] PagesEdit enter_pages(const Domain& domain, IoContext& context, const PageOperation& operation);
  Task<PagesEdit> map_locked(CpuPort& cpu, Domain& domain, IoContext& context, PageOperation operation);
  Task<PagesEdit> unmap_locked(CpuPort& cpu, IoContext& context, PageOperation operation);
  // Takes back what a map did of its last page, or all of a refused one (PartialMap::Undone); devices may have seen it.
  void take_back(IoContext& context, const PageOperation& operation, PagesEdit& work);
  [[nodiscard]] unsigned largest_leaf(const IoContext& context, const PageOperation& operation) const;
  // Whether devices may still use what an edit took away, or may remember that nothing was there.
  [[nodiscard]] bool needs_flush(const TableEdit& edit) const;
  Task<Errno> reattach_locked(CpuPort& cpu, Domain& domain, AssignedDevice& device, IoContext& target);
  // Whether the entry of a shared id comes along: always, or only if it leads where the device's own entries do.
  enum class SharedEntries : std::uint8_t { Take, Keep };
  struct Pointed {
    Errno status = Errno::Ok;
    bool is_fenced = true;  // false: caches may know either setting, and every function is blocked
  };
  Task<Pointed> point_functions(CpuPort& cpu, Domain& domain, DeviceSetting device, ContextSetting now,
                                std::optional<ContextSetting> old, SharedEntries shared);
  // What a unit has not said that it forgot of a device. Nobody gets the device before it has.
  struct OwedFence {
    std::size_t unit = 0;
    std::vector<InvalidationScope> scopes;
    std::vector<RequesterId> caching;
  };
  Task<Errno> settle_owed_fence(CpuPort& cpu, RequesterId device);
  // The unit may still use a context that devices have left. Nothing of it is given to anybody any more.
  static void abandon(Domain& domain, IoContext& context);
  [[nodiscard]] Errno take_tag(IoContext& context, std::size_t unit);
  void give_up_tag(const Domain& domain, IoContext& context, std::size_t unit);
  void release_tags(IoContext& context);
  // What changing the entry of a shared id came to, and the invalidations that it leaves to do.
  struct SharedEdit {
    Errno status = Errno::Ok;
    std::vector<InvalidationScope> scopes;
  };
  Task<SharedEdit> point_shared(CpuPort& cpu, DeviceSetting device, ContextSetting now, SharedEntries shared);
  Task<SharedEdit> leave_shared(CpuPort& cpu, DeviceSetting device);
  [[nodiscard]] const AssignedDevice* other_sharer(const DeviceSetting& device) const;
  [[nodiscard]] bool divides_group(const Domain& domain, const DeviceSetting& device) const;
  Task<Errno> insert_reserved(CpuPort& cpu, Domain& domain, IoContext& context, std::vector<ReservedRegion> regions);
  Task<Errno> insert_reserved_region(CpuPort& cpu, Domain& domain, IoContext& nominal, ReservedRegion region);
  Task<void> remove_reserved(CpuPort& cpu, Domain& domain, IoContext& context, std::vector<ReservedRegion> regions);
  Task<TableEdit> remove_reserved_region(CpuPort& cpu, IoContext& context, ReservedRegion region);
  // One flush call: commands and a fence on every unit that the context is used on. No ranges: all of it.
  Task<Errno> flush(CpuPort& cpu, Domain& domain, IoContext& context, std::vector<AddressRange> ranges);
  [[nodiscard]] bool holds_reference(std::uint64_t machine_address) const;
  bool populate(Domain& domain);
  bool build_default_context(Domain& domain);
  bool map_identity(Domain& domain, const P2mExtent& extent);
  Task<Errno> flush_unit(CpuPort& cpu, Domain& domain, IoContext& context, std::size_t index,
                         std::vector<AddressRange> ranges);
  struct Scratch {
    DeviceSetting device;
    ContextSetting setting;
    Mfn page;
    std::vector<std::pair<std::uint64_t, unsigned>> tables;  // address, pages_lg2
    std::uint64_t entries = 0;
  };
  std::optional<Scratch> make_scratch(const DeviceSetting& device);
  void drop_scratch(const Scratch& scratch);
  Task<void> quarantine(CpuPort& cpu, DeviceSetting device);
  Task<void> release_from_quarantine(CpuPort& cpu, RequesterId device);
  [[nodiscard]] bool is_taken(const DeviceSetting& device) const;
  [[nodiscard]] bool has_sound_regions(const DeviceSetting& device) const;
  void destroy_unborn(Domain& domain);

  HostMemory& memory_;
  FrameAllocator& frames_;
  HypervisorOptions options_;
  HostTableMemory heap_;
  PageReferences references_;
  std::vector<std::unique_ptr<PhysicalUnit>> units_;
  std::map<RequesterId, Scratch> quarantined_;
  std::map<RequesterId, OwedFence> owed_fences_;
  // A unit's entry for an id that several devices may have: whose it is now, and where it leads.
  struct SharedEntry {
    RequesterId device;
    ContextSetting setting;
  };
  using SharedKey = std::pair<std::size_t, RequesterId>;  // unit, id
  std::map<SharedKey, SharedEntry> shared_entries_;
  std::vector<std::unique_ptr<Domain>> domains_;
  std::uint64_t contexts_made_ = 0;
  ContextCounters counters_;
};

}  // namespace iommu::xen
