// SPDX-License-Identifier: Apache-2.0
#include "sim/xen/shadow_translation.hpp"

#include <algorithm>
#include <utility>

#include "sim/xen/guest_table_view.hpp"

namespace iommu::xen {

namespace {
constexpr AddressRange kEverything{};
constexpr std::uint64_t kEntriesPerPage = 512;

// Remembers where it was read.
class RecordingPort final : public MemoryPort {
 public:
  explicit RecordingPort(MemoryPort& memory) : memory_(memory) {}
  bool begin(MemoryAccess& access) override {
    read_.push_back({access.address.value(), access.address.value() + access.bytes - 1});
    return memory_.begin(access);
  }
  [[nodiscard]] const std::vector<AddressRange>& read() const { return read_; }

 private:
  MemoryPort& memory_;
  std::vector<AddressRange> read_;
};

AddressRange clip(AddressRange a, AddressRange b) { return {std::max(a.first, b.first), std::min(a.last, b.last)}; }
AddressRange leaf_range(const MappedLeaf& leaf) { return {leaf.input, leaf.input + ((1ULL << leaf.page_lg2) - 1)}; }
AddressRange whole_pages(AddressRange range) {
  return {range.first >> kPageLg2 << kPageLg2, range.last | (kPageSize.value() - 1)};
}
std::uint64_t pages_in(AddressRange range) { return (range.last - range.first + 1) >> kPageLg2; }

template <class Piece>
void cut_out(std::vector<Piece>& pieces, const std::vector<AddressRange>& holes) {
  for (const AddressRange hole : holes) {
    std::vector<Piece> kept;
    kept.reserve(pieces.size() + 1);
    for (const Piece& piece : pieces) {
      if (!piece.input.overlaps(hole)) {
        kept.push_back(piece);
        continue;
      }
      if (piece.input.first < hole.first)
        kept.push_back({{piece.input.first, hole.first - 1}, piece.machine, piece.permissions});
      if (piece.input.last > hole.last) {
        const std::uint64_t skipped = hole.last + 1 - piece.input.first;
        kept.push_back({{hole.last + 1, piece.input.last}, piece.machine + skipped, piece.permissions});
      }
    }
    pieces = std::move(kept);
  }
}

// What must go and what must come to turn one list of pieces into another; both ascending and disjoint.
template <class Piece>
struct Difference {
  std::vector<AddressRange> removed;
  std::vector<Piece> added;

  Difference(const std::vector<Piece>& from, const std::vector<Piece>& to) {
    std::size_t f = 0;
    std::size_t t = 0;
    std::uint64_t at = 0;
    while (f < from.size() || t < to.size()) {
      const Piece* old = f < from.size() ? &from[f] : nullptr;
      const Piece* now = t < to.size() ? &to[t] : nullptr;
      const std::uint64_t old_first = old != nullptr ? std::max(old->input.first, at) : ~0ULL;
      const std::uint64_t now_first = now != nullptr ? std::max(now->input.first, at) : ~0ULL;
      const std::uint64_t first = std::min(old_first, now_first);
      std::uint64_t last = ~0ULL;  // of the stretch in which neither list changes
      const bool in_old = old != nullptr && old_first == first;
      const bool in_now = now != nullptr && now_first == first;
      if (old != nullptr) last = std::min(last, in_old ? old->input.last : old_first - 1);
      if (now != nullptr) last = std::min(last, in_now ? now->input.last : now_first - 1);
      compare(in_old ? old : nullptr, in_now ? now : nullptr, {first, last});
      if (old != nullptr && old->input.last == last) ++f;
      if (now != nullptr && now->input.last == last) ++t;
      at = last + 1;
    }
  }

 private:
  static std::uint64_t machine_at(const Piece& piece, std::uint64_t input) {
    return piece.machine + (input - piece.input.first);
  }
  void compare(const Piece* old, const Piece* now, AddressRange where) {
    if (old != nullptr && now != nullptr && machine_at(*old, where.first) == machine_at(*now, where.first) &&
        old->permissions == now->permissions)
      return;
    if (old != nullptr) removed.push_back(where);
    if (now != nullptr) added.push_back({where, machine_at(*now, where.first), now->permissions});
  }
};
}  // namespace

ShadowTranslation::ShadowTranslation(Hypervisor& xen, Domain& domain, VirtualUnit& unit, const FamilyDescriptor& family,
                                     ShadowSync how, ShadowLimits limits)
    : VirtualDevices(xen, domain, unit),
      how_(how),
      limits_(limits),
      reader_(family.make_driver({.features = unit.features(), .stage1 = false})),
      protected_(domain.memory, domain.p2m, *reader_,
                 {.tables = limits.entries / kEntriesPerPage, .entries = limits.entries}) {
  if (how == ShadowSync::WriteProtect) domain.memory.trap_stores(&unit);
}

ShadowTranslation::~ShadowTranslation() {
  if (how_ == ShadowSync::WriteProtect) domain_.memory.trap_stores(nullptr);
}

// Stores ------------------------------------------------------------------------------------------------------------

std::vector<TableChange> ShadowTranslation::on_store(Gpa address, Bytes length) {
  return protected_.on_store(address, length);
}

Task<void> ShadowTranslation::tables_changed(CpuPort& cpu, std::vector<TableChange> changes) {
  for (const TableChange& change : changes)
    for (const auto& device : devices_)
      if (device->requester == change.device) co_await apply(cpu, *device, change);
  co_await charge_protection(cpu);
}

Task<void> ShadowTranslation::apply(CpuPort& cpu, Device& device, TableChange change) {
  if (change.kind == TableChange::Kind::DeviceEntry) co_await refresh(cpu, device);
  if (change.kind == TableChange::Kind::DeviceEntry || !device.guest) co_return;
  Errno status = Errno::TooBig;
  if (change.kind == TableChange::Kind::TooMany)
    ++counters_.refused_scans;
  else
    status = co_await sync(cpu, device,
                           {.root = device.guest->stage2,
                            .range = change.input,
                            .flush = UnmapFlush::Later,
                            .known_tables = change.known_tables});
  if (status != Errno::Ok) {
    ++refused_;
    co_await block(cpu, device);
  } else if (device.translation->removed_pages() > limits_.removed_pages) {
    co_await xen_.flush_removed(cpu, domain_, *device.translation, kEverything);
  }
}

Task<ContextResult> ShadowTranslation::read_context(Device& device, TranslationRequest request) {
  RecordingPort memory(unit_.guest_memory());
  ContextResult found = co_await unit_.core().find_context(request, memory);
  if (how_ == ShadowSync::WriteProtect) protected_.watch_entry(device.requester, memory.read());
  co_return found;
}

Task<void> ShadowTranslation::left(CpuPort& cpu, Device& device) {
  protected_.forget(device.requester);
  if (!unit_.core().is_translating()) protected_.watch_entry(device.requester, {});
  co_await charge_protection(cpu);
  // No device is inside any more, and no cache knows it: this lets go of frames.
  co_await xen_.flush_removed(cpu, domain_, *device.translation, kEverything);
}

Task<void> ShadowTranslation::charge_protection(CpuPort& cpu) {
  const std::uint64_t changes = protected_.take_permission_changes();
  if (changes != 0) co_await cpu.charge(CostId::P2mProtect, changes);
}

// Announcements -----------------------------------------------------------------------------------------------------

Task<Errno> ShadowTranslation::adopt(CpuPort& cpu, Device& device, const Context& guest) {
  const TableRoot root = guest.stage2;
  if (device.guest && device.guest->stage2 == root) co_return Errno::Ok;
  if (how_ == ShadowSync::WriteProtect) {
    // Before they are read: what the guest changes from here on traps.
    if (!protected_.follow(device.requester, root)) {
      ++counters_.refused_scans;
      co_return Errno::TooBig;
    }
    co_await charge_protection(cpu);
    co_await xen_.flush_removed(cpu, domain_, *device.translation, kEverything);
  }
  co_return co_await sync(cpu, device, {.root = root, .range = kEverything});
}

Task<void> ShadowTranslation::invalidate_translations(CpuPort& cpu, std::vector<InvalidationScope> scopes) {
  for (const auto& device : devices_)
    for (const InvalidationScope& scope : scopes) {
      if (!device->guest || scope.kind != InvalidationKind::Iotlb) continue;
      if (!matches(scope, {.domain = device->guest->domain, .asid = scope.asid})) continue;
      co_await invalidate_device(cpu, *device, scope.range ? whole_pages(*scope.range) : kEverything);
    }
}

Task<void> ShadowTranslation::invalidate_device(CpuPort& cpu, Device& device, AddressRange range) {
  if (how_ == ShadowSync::WriteProtect) {
    co_await xen_.flush_removed(cpu, domain_, *device.translation, range);
    co_return;
  }
  const Errno status = co_await sync(cpu, device, {.root = device.guest->stage2, .range = range});
  if (status == Errno::Ok) co_return;
  ++refused_;
  co_await block(cpu, device);
}

// Brings the shadow up to date over a part of the space.
Task<Errno> ShadowTranslation::sync(CpuPort& cpu, Device& device, Part part) {
  if (part.range == kEverything)
    ++counters_.resyncs;
  else
    ++counters_.syncs;
  GuestPieces guest = co_await read_guest(cpu, part);
  std::vector<Piece> shadow = co_await read_shadow(cpu, *device.translation, part.range);
  const std::vector<AddressRange> reserved = reserved_for(device);
  cut_out(guest.pieces, reserved);
  cut_out(shadow, reserved);
  // Tables too large to be honest translate nothing.
  const Difference<Piece> difference(shadow, guest.pieces);
  std::vector<Hypervisor::Piece> added;
  for (const Piece& piece : difference.added) {
    added.push_back({piece.input, Hpa(piece.machine), piece.permissions});
    counters_.changed += pages_in(piece.input);
  }
  for (const AddressRange& gone : difference.removed) counters_.changed += pages_in(gone);
  Errno status = Errno::Ok;
  if (!added.empty() || !difference.removed.empty())
    status = co_await xen_.replace_pages(cpu, domain_, *device.translation, difference.removed, std::move(added),
                                         part.flush);
  co_return guest.refused ? Errno::TooBig : status;
}

// Reserved regions are Xen's to map and to unmap, whatever the guest's tables say there.
std::vector<AddressRange> ShadowTranslation::reserved_for(const Device& device) const {
  std::vector<ReservedRegion> regions;
  for (const IoContext::Reserved& known : device.translation->reserved) regions.push_back(known.region);
  const auto assigned = domain_.devices.find(device.requester);
  if (assigned != domain_.devices.end()) {
    const std::vector<ReservedRegion>& own = assigned->second.setting.reserved;
    regions.insert(regions.end(), own.begin(), own.end());
  }
  std::vector<AddressRange> ranges;
  for (const ReservedRegion& region : regions)
    ranges.push_back({region.first.address().value(), (region.first + region.pages).address().value() - 1});
  return ranges;
}

Task<ShadowTranslation::GuestPieces> ShadowTranslation::read_guest(CpuPort& cpu, Part part) {
  GuestPieces result;
  GuestTableView memory(domain_.memory);
  const auto table = reader_->view_table(TableKind::Stage2, part.root, memory);
  std::uint64_t leaves = 0;
  const LeafScan scan = table->scan_leaves(part.range, limits_.entries, [&](const MappedLeaf& leaf) {
    ++leaves;
    if (result.pieces.size() < limits_.pieces) append_machine_pieces(result.pieces, leaf, part.range);
  });
  if (scan.resume_at || result.pieces.size() >= limits_.pieces) {
    ++counters_.refused_scans;
    result.refused = true;
    result.pieces.clear();
  }
  counters_.compared += leaves;
  const auto beyond_known = [&](std::uint64_t count) { return count - std::min(count, part.known_tables); };
  co_await cpu.charge(CostId::GuestPageAccess, beyond_known(memory.page_changes()));
  co_await cpu.charge(CostId::TableRead, beyond_known(scan.entries_read));
  co_await cpu.charge(CostId::P2mLookup, leaves);
  co_await cpu.charge(CostId::ShadowEntry, leaves);
  co_return result;
}

// The part of a guest's leaf within the range, as machine memory. What is not the guest's memory is left out: a device
// that uses it faults.
void ShadowTranslation::append_machine_pieces(std::vector<Piece>& pieces, const MappedLeaf& leaf,
                                              AddressRange range) const {
  const AddressRange part = clip(leaf_range(leaf), range);
  for (std::uint64_t at = part.first; at <= part.last;) {
    const std::uint64_t guest = leaf.output + (at - leaf.input);
    const auto entry = domain_.p2m.lookup(Gfn(guest >> kPageLg2));
    const std::uint64_t left = (part.last - at) / kPageSize.value() + 1;
    const std::uint64_t run = entry ? entry->contiguous : domain_.p2m.absent(Gfn(guest >> kPageLg2));
    const std::uint64_t pages = std::clamp<std::uint64_t>(run, 1, left);
    const std::uint64_t last = at + (pages << kPageLg2) - 1;
    if (entry && entry->type == FrameType::Ram)
      pieces.push_back({{at, last}, entry->machine.address().value(), leaf.permissions});
    if (last >= part.last) return;
    at = last + 1;
  }
}

Task<std::vector<ShadowTranslation::Piece>> ShadowTranslation::read_shadow(CpuPort& cpu, const IoContext& context,
                                                                           AddressRange range) {
  std::vector<Piece> pieces;
  const std::uint64_t read = context.table->for_each_leaf(range, [&](const MappedLeaf& leaf) {
    const AddressRange part = clip(leaf_range(leaf), range);
    pieces.push_back({part, leaf.output + (part.first - leaf.input), leaf.permissions});
  });
  counters_.compared += pieces.size();
  co_await cpu.charge(CostId::TableRead, read);
  co_await cpu.charge(CostId::ShadowEntry, pieces.size());
  co_return pieces;
}

}  // namespace iommu::xen
