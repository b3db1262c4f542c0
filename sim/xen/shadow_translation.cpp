// SPDX-License-Identifier: Apache-2.0
#include "sim/xen/shadow_translation.hpp"

#include <algorithm>
#include <utility>

namespace iommu::xen {

namespace {
constexpr AddressRange kEverything{};

// A guest's tables for reading: counts the pages that Xen has to map to see them.
class GuestTableView final : public TableMemory {
 public:
  explicit GuestTableView(const GuestMemory& memory) : memory_(memory) {}
  std::uint64_t read64(std::uint64_t address) override {
    const std::uint64_t page = address >> kPageLg2;
    if (page != last_page_) ++page_changes_;
    last_page_ = page;
    return memory_.read64(Gpa(address)).value_or(0);
  }
  void write64(std::uint64_t, std::uint64_t) override {}
  std::optional<std::uint64_t> allocate(unsigned) override { return std::nullopt; }
  void release(std::uint64_t, unsigned) override {}
  [[nodiscard]] std::uint64_t page_changes() const { return page_changes_; }

 private:
  const GuestMemory& memory_;
  std::uint64_t last_page_ = ~0ULL;
  std::uint64_t page_changes_ = 0;
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
                                     ShadowLimits limits)
    : VirtualDevices(xen, domain, unit),
      limits_(limits),
      reader_(family.make_driver({.features = unit.features(), .stage1 = false})) {}

Task<Errno> ShadowTranslation::adopt(CpuPort& cpu, Device& device, const Context& guest) {
  if (device.guest && device.guest->stage2 == guest.stage2) co_return Errno::Ok;
  co_return co_await sync(cpu, device, guest.stage2, kEverything);
}

Task<void> ShadowTranslation::invalidate_translations(CpuPort& cpu, std::vector<InvalidationScope> scopes) {
  for (const auto& device : devices_)
    for (const InvalidationScope& scope : scopes) {
      if (!device->guest || scope.kind != InvalidationKind::Iotlb) continue;
      if (!matches(scope, {.domain = device->guest->domain, .asid = scope.asid})) continue;
      const AddressRange range = scope.range ? whole_pages(*scope.range) : kEverything;
      const Errno status = co_await sync(cpu, *device, device->guest->stage2, range);
      if (status == Errno::Ok) continue;
      ++refused_;
      co_await block(cpu, *device);
    }
}

// Brings the shadow up to date over a range.
Task<Errno> ShadowTranslation::sync(CpuPort& cpu, Device& device, TableRoot root, AddressRange range) {
  if (range == kEverything)
    ++counters_.resyncs;
  else
    ++counters_.syncs;
  GuestPieces guest = co_await read_guest(cpu, root, range);
  std::vector<Piece> shadow = co_await read_shadow(cpu, *device.translation, range);
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
    status = co_await xen_.replace_pages(cpu, domain_, *device.translation, difference.removed, std::move(added));
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

Task<ShadowTranslation::GuestPieces> ShadowTranslation::read_guest(CpuPort& cpu, TableRoot root, AddressRange range) {
  GuestPieces result;
  GuestTableView memory(domain_.memory);
  const auto table = reader_->view_table(TableKind::Stage2, root, memory);
  std::uint64_t leaves = 0;
  const LeafScan scan = table->scan_leaves(range, limits_.entries, [&](const MappedLeaf& leaf) {
    ++leaves;
    if (result.pieces.size() < limits_.pieces) append_machine_pieces(result.pieces, leaf, range);
  });
  if (scan.resume_at || result.pieces.size() >= limits_.pieces) {
    ++counters_.refused_scans;
    result.refused = true;
    result.pieces.clear();
  }
  counters_.compared += leaves;
  co_await cpu.charge(CostId::GuestPageAccess, memory.page_changes());
  co_await cpu.charge(CostId::TableRead, scan.entries_read);
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
