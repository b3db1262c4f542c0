// SPDX-License-Identifier: Apache-2.0
// The hypervisor's operations on the pages of a context, and the invalidations that follow them.
#include <algorithm>
#include <utility>

#include "sim/xen/hypervisor.hpp"

namespace iommu::xen {

namespace {
AddressRange bytes_of(Dfn first, std::uint64_t pages) {
  return {first.address().value(), first.address().value() + (pages << kPageLg2) - 1};
}

// Machine frames of the mapped pages of a range, ascending by input address.
std::vector<Mfn> frames_behind(const PageTable& table, AddressRange range) {
  std::vector<Mfn> frames;
  table.for_each_leaf(range, [&](const MappedLeaf& leaf) {
    const std::uint64_t end = leaf.input + (1ULL << leaf.page_lg2);
    for (std::uint64_t at = std::max(leaf.input, range.first); at < end && at < range.last; at += kPageSize.value())
      frames.push_back(Mfn(Hpa(leaf.output + (at - leaf.input))));
  });
  return frames;
}

std::uint64_t tables_to_shatter(const PageTable& table, AddressRange range) {
  std::uint64_t tables = 0;
  table.for_each_leaf(range, [&](const MappedLeaf& leaf) { tables += xen::tables_to_shatter(leaf); });
  return tables;
}

// A range and the whole pages that it cuts.
AddressRange with_whole_pages(const PageTable& table, AddressRange range) {
  AddressRange whole = range;
  if (const auto leaf = table.lookup(range.first)) whole.first = leaf->input;
  if (const auto leaf = table.lookup(range.last)) whole.last = leaf->input + ((1ULL << leaf->page_lg2) - 1);
  return whole;
}

// Pages that were set aside for splitting large pages may be used now, and what is not needed any more is given up.
TableEdit unmap_with_reserve(IoContext& context, AddressRange range, ReclaimTables reclaim) {
  const Bytes length(range.last - range.first + 1);
  if (context.arena == nullptr) return context.table->unmap(range.first, length, reclaim);
  const AddressRange whole = with_whole_pages(*context.table, range);
  const std::uint64_t before = tables_to_shatter(*context.table, whole);
  context.arena->allocate_for(TableArena::Purpose::Splitting);
  TableEdit edit = context.table->unmap(range.first, length, reclaim);
  context.arena->allocate_for(TableArena::Purpose::Mapping);
  context.arena->give_up(before - tables_to_shatter(*context.table, whole));
  return edit;
}
}  // namespace

Hypervisor::MapRun Hypervisor::next_run(const Domain& domain, const Domain& owner, const IoContext& context, Gfn gfn,
                                        Dfn dfn, std::uint64_t pages) const {
  MapRun run;
  if (dfn > last_dfn() || context.is_reserved(dfn, 1)) {
    run.status = Errno::AddressNotAvailable;
    return run;
  }
  const auto entry = owner.p2m.lookup(gfn);
  if (!entry) {
    run.status = Errno::NoEntry;
    return run;
  }
  if (entry->type == FrameType::Foreign && domain.setting.privilege != Privilege::HardwareDomain) {
    run.status = Errno::NotPermitted;
    return run;
  }
  run.machine = entry->machine;
  run.pages = std::min({pages, entry->contiguous, last_dfn().value() - dfn.value() + 1});
  run.pages = context.unreserved_from(dfn, run.pages);
  return run;
}

Task<PagesDone> Hypervisor::map_pages(CpuPort& cpu, Domain& domain, Domain& owner, IoContext& context, Gfn gfn, Dfn dfn,
                                      std::uint64_t pages, Permissions permissions) {
  PagesDone done;
  co_await cpu.acquire(context.lock);
  if (context.dying) done.status = Errno::Invalid;
  TableEdit edit;
  std::uint64_t references = 0;
  while (done.pages < pages && done.status == Errno::Ok) {
    const MapRun run = next_run(domain, owner, context, gfn + done.pages, dfn + done.pages, pages - done.pages);
    done.status = run.status;
    if (run.status != Errno::Ok) break;
    // The frames count as one contiguous piece here to save time; a guest's pages are still entered one by one.
    const TableEdit step = context.table->map({.input = (dfn + done.pages).address().value(),
                                               .output = run.machine.address().value(),
                                               .length = kPageSize * run.pages,
                                               .permissions = permissions,
                                               .coalesce = options_.coalesce});
    for (std::uint64_t i = 0; i < step.pages_done; ++i) {
      if (!holds_reference((run.machine + i).address().value())) continue;
      references_.take(run.machine + i);
      ++references;
    }
    done.pages += step.pages_done;
    done.status = to_errno(step.status);
    // Merging freed them; the split that undoes it will want them back.
    if (context.arena != nullptr) context.arena->set_aside(step.freed_tables.size());
    edit.merge(step);
  }
  const std::uint64_t looked_up = done.pages + (done.status == Errno::Ok ? 0 : 1);
  co_await cpu.charge(CostId::P2mLookup, looked_up);
  co_await cpu.charge(CostId::PageReference, references);
  // One walk to find a conflict, one to write.
  if (context.table) co_await cpu.charge(CostId::TableRead, 2 * looked_up * (context.table->root().top_level + 1U));
  co_await charge_edit(cpu, edit);
  if (done.pages != 0) co_await flush_edit(cpu, domain, context, bytes_of(dfn, done.pages), edit);
  cpu.release(context.lock);
  co_return done;
}

Task<PagesDone> Hypervisor::unmap_pages(CpuPort& cpu, Domain& domain, IoContext& context, Dfn dfn, std::uint64_t pages,
                                        UnmapFlush flush) {
  PagesDone done;
  co_await cpu.acquire(context.lock);
  if (context.dying)
    done.status = Errno::Invalid;
  else if (dfn > last_dfn())
    done.status = Errno::NoEntry;
  else if (context.is_reserved(dfn, 1))
    done.status = Errno::AddressNotAvailable;
  if (done.status != Errno::Ok || pages == 0) {
    cpu.release(context.lock);
    co_return done;
  }
  // Up to the end of the space, or to a reserved region: what is asked for beyond fails there.
  const std::uint64_t asked = std::min(pages, last_dfn().value() - dfn.value() + 1);
  pages = context.unreserved_from(dfn, asked);
  const AddressRange range = bytes_of(dfn, pages);
  std::vector<Mfn> frames = frames_behind(*context.table, range);
  // Without a flush a walk cache goes on using a table that was unlinked, and would miss what is mapped beside the
  // range meanwhile: only a table whose whole range waits for the flush may go.
  const ReclaimTables reclaim = flush == UnmapFlush::Later ? ReclaimTables::WhenCovered : ReclaimTables::WhenEmpty;
  TableEdit edit = unmap_with_reserve(context, range, reclaim);
  done.pages = edit.pages_done;
  done.status = to_errno(edit.status);
  if (done.status == Errno::Ok && pages < asked) done.status = Errno::AddressNotAvailable;
  frames.resize(std::min<std::size_t>(frames.size(), edit.pages_done));
  std::erase_if(frames, [&](Mfn frame) { return !holds_reference(frame.address().value()); });
  const std::uint64_t touched = done.pages + (done.status == Errno::Ok ? 0 : 1);
  co_await cpu.charge(CostId::TableRead, touched * (context.table->root().top_level + 1U));
  co_await charge_edit(cpu, edit);
  co_await cpu.charge(CostId::PageReference, frames.size());
  if (flush == UnmapFlush::Later) {
    context.deferred_frames.insert(context.deferred_frames.end(), frames.begin(), frames.end());
    context.deferred_tables.insert(context.deferred_tables.end(), edit.freed_tables.begin(), edit.freed_tables.end());
  } else {
    if (done.pages != 0) co_await flush_edit(cpu, domain, context, bytes_of(dfn, done.pages), edit);
    for (const Mfn frame : frames) references_.drop(frame);
  }
  cpu.release(context.lock);
  co_return done;
}

Task<Errno> Hypervisor::replace_pages(CpuPort& cpu, Domain& domain, IoContext& context,
                                      std::vector<AddressRange> removed, std::vector<Piece> added) {
  co_await cpu.acquire(context.lock);
  TableEdit edit;
  std::vector<Mfn> dropped;
  AddressRange hull{~0ULL, 0};
  for (const AddressRange& range : removed) {
    std::vector<Mfn> frames = frames_behind(*context.table, range);
    const TableEdit step =
        context.table->unmap(range.first, Bytes(range.last - range.first + 1), ReclaimTables::WhenEmpty);
    frames.resize(std::min<std::size_t>(frames.size(), step.pages_done));
    dropped.insert(dropped.end(), frames.begin(), frames.end());
    edit.merge(step);
    hull = {std::min(hull.first, range.first), std::max(hull.last, range.last)};
  }
  std::uint64_t references = 0;
  for (const Piece& piece : added) {
    if (edit.status != EditStatus::Ok) break;
    const Bytes length(piece.input.last - piece.input.first + 1);
    const TableEdit step = context.table->map({.input = piece.input.first,
                                               .output = piece.machine.value(),
                                               .length = length,
                                               .permissions = piece.permissions,
                                               .max_page_lg2 = domain.setting.page_lg2});
    for (std::uint64_t i = 0; i < step.pages_done; ++i) references_.take(Mfn(piece.machine) + i);
    references += step.pages_done;
    edit.merge(step);
    hull = {std::min(hull.first, piece.input.first), std::max(hull.last, piece.input.last)};
  }
  co_await charge_edit(cpu, edit);
  co_await cpu.charge(CostId::PageReference, references + dropped.size());
  const Errno status = to_errno(edit.status);
  if (hull.first <= hull.last) co_await flush_edit(cpu, domain, context, hull, edit);
  for (const Mfn frame : dropped) references_.drop(frame);
  cpu.release(context.lock);
  co_return status;
}

// Invalidation --------------------------------------------------------------------------------------------------------

Task<void> Hypervisor::flush_edit(CpuPort& cpu, Domain& domain, IoContext& context, AddressRange range,
                                  TableEdit edit) {
  const bool added_matters = edit.added && !units_.empty() && units_.front()->features().caching_mode;
  if (edit.modified || edit.structure_changed || added_matters) {
    // A changed structure means stale walk caches above the range: the whole domain goes.
    std::optional<AddressRange> exact = range;
    if (edit.structure_changed) exact.reset();
    co_await flush(cpu, domain, context, exact);
  } else {
    ++counters_.flushes_skipped;
  }
  for (const std::uint64_t page : edit.freed_tables) context.table_memory->release(page);
}

Task<void> Hypervisor::flush_context(CpuPort& cpu, Domain& domain, IoContext& context) {
  co_await cpu.acquire(context.lock);
  // What is unmapped from here on waits for the next flush.
  const std::vector<std::uint64_t> tables = std::exchange(context.deferred_tables, {});
  const std::vector<Mfn> frames = std::exchange(context.deferred_frames, {});
  co_await flush(cpu, domain, context, std::nullopt);
  for (const std::uint64_t page : tables) context.table_memory->release(page);
  for (const Mfn frame : frames) references_.drop(frame);
  cpu.release(context.lock);
}

Task<void> Hypervisor::flush(CpuPort& cpu, Domain& domain, IoContext& context, std::optional<AddressRange> range) {
  ++counters_.flush_calls;
  for (std::size_t i = 0; i < units_.size(); ++i) co_await flush_unit(cpu, domain, context, i, range);
  if (&context != domain.default_context.get()) co_return;
  // It is the second stage of nested contexts as well, whose first stages may lead there from any address.
  for (std::size_t n = 0; n < domain.private_contexts.size(); ++n) {
    IoContext& other = *domain.private_contexts[n];
    if (other.table) continue;
    for (std::size_t i = 0; i < units_.size(); ++i) co_await flush_unit(cpu, domain, other, i, std::nullopt);
  }
}

Task<void> Hypervisor::flush_unit(CpuPort& cpu, Domain& domain, IoContext& context, std::size_t index,
                                  std::optional<AddressRange> range) {
  if (!uses_unit(domain, context, index)) co_return;
  PhysicalUnit& unit = *units_[index];
  const InvalidationScope scope{.kind = InvalidationKind::Iotlb, .domain = context.tags[index], .range = range};
  co_await unit.invalidate(cpu, {1, unit.driver().widen(scope)});
  const std::vector<RequesterId> devices = context.devices;
  for (const RequesterId device : devices) {
    const auto found = domain.devices.find(device);
    if (found == domain.devices.end()) continue;
    const DeviceSetting setting = found->second.setting;
    if (!setting.device_tlb || setting.unit != index) continue;
    for (const RequesterId function : setting.functions()) {
      const InvalidationScope remote{.kind = InvalidationKind::DeviceTlb, .requester = function, .range = range};
      co_await unit.invalidate(cpu, {1, remote});
    }
  }
}

}  // namespace iommu::xen
