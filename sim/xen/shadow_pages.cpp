// SPDX-License-Identifier: Apache-2.0
// The hypervisor's operations on the pages of a context that shadows a guest's tables.
#include <algorithm>
#include <iterator>
#include <utility>

#include "sim/xen/hypervisor.hpp"
#include "sim/xen/table_frames.hpp"

namespace iommu::xen {

namespace {
// The frames of what was removed from a range; what was removed around it stays.
std::vector<Mfn> take_removed(IoContext& context, AddressRange range) {
  std::vector<Mfn> taken;
  std::vector<IoContext::Removed> kept;
  for (const IoContext::Removed& removed : context.removed) {
    bool continues = false;  // the page before was kept
    for (std::uint64_t at = removed.first; const Mfn frame : removed.frames) {
      const AddressRange page{at, at + kPageSize.value() - 1};
      at += kPageSize.value();
      if (range.overlaps(page)) {
        taken.push_back(frame);
        continues = false;
        continue;
      }
      if (!continues) kept.push_back({page.first, {}});
      kept.back().frames.push_back(frame);
      continues = true;
    }
  }
  context.removed = std::move(kept);
  return taken;
}
}  // namespace

Task<Errno> Hypervisor::replace_pages(CpuPort& cpu, Domain& domain, IoContext& context,
                                      std::vector<AddressRange> removed, std::vector<Piece> added, UnmapFlush when) {
  co_await cpu.acquire(context.lock);
  TableEdit edit;
  std::vector<IoContext::Removed> dropped;
  std::uint64_t references = 0;
  AddressRange hull{~0ULL, 0};
  for (const AddressRange& range : removed) {
    std::vector<Mfn> frames = frames_behind(*context.table, range);
    const TableEdit step =
        context.table->unmap(range.first, Bytes(range.last - range.first + 1), ReclaimTables::WhenEmpty);
    frames.resize(std::min<std::size_t>(frames.size(), step.pages_done));
    references += static_cast<std::uint64_t>(
        std::ranges::count_if(frames, [this](Mfn frame) { return holds_reference(frame.address().value()); }));
    dropped.push_back({range.first, std::move(frames)});
    edit.merge(step);
    hull = {std::min(hull.first, range.first), std::max(hull.last, range.last)};
  }
  for (const Piece& piece : added) {
    if (edit.status != EditStatus::Ok) break;
    const Bytes length(piece.input.last - piece.input.first + 1);
    const TableEdit step = context.table->map({.input = piece.input.first,
                                               .output = piece.machine.value(),
                                               .length = length,
                                               .permissions = piece.permissions,
                                               .max_page_lg2 = domain.setting.page_lg2});
    for (std::uint64_t i = 0; i < step.pages_done; ++i) {
      if (!holds_reference((Mfn(piece.machine) + i).address().value())) continue;
      references_.take(Mfn(piece.machine) + i);
      ++references;
    }
    edit.merge(step);
    hull = {std::min(hull.first, piece.input.first), std::max(hull.last, piece.input.last)};
  }
  co_await charge_edit(cpu, edit);
  co_await cpu.charge(CostId::PageReference, references);
  Errno status = to_errno(edit.status);
  TableEdit additions;
  additions.added = edit.added;
  if (when == UnmapFlush::Later && !edit.structure_changed && !needs_flush(additions)) {
    std::ranges::move(dropped, std::back_inserter(context.removed));
    dropped.clear();
  } else if (hull.first <= hull.last) {
    if (edit.structure_changed)  // everything will be flushed
      std::ranges::move(std::exchange(context.removed, {}), std::back_inserter(dropped));
    const Errno flushed = co_await flush_edit(cpu, domain, context, hull, edit);
    if (flushed != Errno::Ok) {
      status = flushed;
      std::ranges::move(std::exchange(dropped, {}), std::back_inserter(context.removed));
    }
  }
  for (const IoContext::Removed& gone : dropped)
    for (const Mfn frame : gone.frames)
      if (holds_reference(frame.address().value())) references_.drop(frame);
  cpu.release(context.lock);
  co_return status;
}

Task<void> Hypervisor::flush_removed(CpuPort& cpu, Domain& domain, IoContext& context, AddressRange range) {
  if (context.removed.empty()) co_return;
  co_await cpu.acquire(context.lock);
  const std::vector<IoContext::Removed> before = context.removed;
  std::vector<Mfn> frames = take_removed(context, range);
  if (!frames.empty()) {
    std::vector<AddressRange> exact{1, range};
    if (range == AddressRange{}) exact.clear();
    const Errno flushed = co_await flush(cpu, domain, context, std::move(exact));
    if (flushed != Errno::Ok) {
      // A virtual unit has no way to say so to the guest that waits for it.
      crash_guest(domain);
      context.removed = before;
      frames.clear();
    }
  }
  for (const Mfn frame : frames)
    if (holds_reference(frame.address().value())) references_.drop(frame);
  cpu.release(context.lock);
}

}  // namespace iommu::xen
