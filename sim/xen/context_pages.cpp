// SPDX-License-Identifier: Apache-2.0
// The hypervisor's operations on the pages of a context, and the invalidations that follow them.
#include <algorithm>
#include <utility>

#include "sim/xen/hypervisor.hpp"
#include "sim/xen/table_frames.hpp"

namespace iommu::xen {

namespace {
AddressRange bytes_of(Dfn first, std::uint64_t pages) {
  return {first.address().value(), first.address().value() + (pages << kPageLg2) - 1};
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

// Pages of the domain's p2m that a range touches: one lookup tells about all of one.
std::uint64_t pages_of_p2m(const Domain& domain, Gfn first, std::uint64_t pages) {
  const unsigned order = domain.setting.page_lg2 - kPageLg2;
  return ((first.value() + pages - 1) >> order) - (first.value() >> order) + 1;
}

// The same scope over each range; without ranges, as it is.
std::vector<InvalidationScope> over(const InvalidationScope& whole, const std::vector<AddressRange>& ranges) {
  std::vector<InvalidationScope> scopes;
  for (const AddressRange& range : ranges) {
    scopes.push_back(whole);
    scopes.back().range = range;
  }
  if (scopes.empty()) scopes.push_back(whole);
  return scopes;
}

// As the unit's commands can name them. Where one of them has to be the whole domain, the others are in it.
std::vector<InvalidationScope> scopes_of(PhysicalUnit& unit, const InvalidationScope& whole,
                                         const std::vector<AddressRange>& ranges) {
  std::vector<InvalidationScope> scopes;
  for (const InvalidationScope& exact : over(whole, ranges)) {
    const InvalidationScope scope = unit.driver().widen(exact);
    if (!scope.range) return {1, scope};
    if (std::find(scopes.begin(), scopes.end(), scope) == scopes.end()) scopes.push_back(scope);
  }
  return scopes;
}
}  // namespace

Hypervisor::MapRun Hypervisor::next_run(const Domain& domain, const IoContext& context, Gfn gfn, Dfn dfn,
                                        std::uint64_t pages) const {
  MapRun run;
  if (dfn > last_dfn() || context.is_reserved(dfn, 1)) {
    run.status = Errno::AddressNotAvailable;
    return run;
  }
  const auto entry = domain.p2m.lookup(gfn);
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

// A larger page than a table of single ones needs the tables that would split it again, where such pages are kept.
unsigned Hypervisor::largest_leaf(const IoContext& context, const PageOperation& operation) const {
  if (context.arena == nullptr || operation.page_lg2 == kPageLg2) return operation.page_lg2;
  const MappedLeaf whole{.page_lg2 = static_cast<std::uint8_t>(operation.page_lg2), .permissions = kReadWrite};
  const std::uint64_t leaves = operation.pages >> (operation.page_lg2 - kPageLg2);
  const std::uint64_t tables = leaves * xen::tables_to_shatter(whole) + context.table->root().top_level;
  return context.arena->can_set_aside(tables) ? operation.page_lg2 : kPageLg2;
}

void Hypervisor::take_back(IoContext& context, const PageOperation& operation, PagesEdit& work) {
  std::uint64_t tail = work.done.pages & ((1ULL << (operation.page_lg2 - kPageLg2)) - 1);
  if (operation.partial == PartialMap::Undone && work.done.status != Errno::Ok) {
    work.done.undone = work.done.pages - tail;
    tail = work.done.pages;
  }
  if (tail == 0) return;
  work.done.pages -= tail;
  const AddressRange range = bytes_of(operation.dfn + work.done.pages, tail);
  std::vector<Mfn> frames = frames_behind(*context.table, range);
  std::erase_if(frames, [&](Mfn frame) { return !holds_reference(frame.address().value()); });
  work.dropped.insert(work.dropped.end(), frames.begin(), frames.end());
  TableEdit undone = unmap_with_reserve(context, range, ReclaimTables::WhenEmpty);
  undone.pages_done = 0;
  work.edit.merge(std::move(undone));
}

// Page by page until one cannot be entered. The frames count as one contiguous piece to save time; a guest's pages are
// still entered one by one, unless larger ones were asked for.
Hypervisor::PagesEdit Hypervisor::enter_pages(const Domain& domain, IoContext& context,
                                              const PageOperation& operation) {
  PagesEdit work;
  PagesDone& done = work.done;
  const unsigned largest = largest_leaf(context, operation);
  while (done.pages < operation.pages && done.status == Errno::Ok) {
    const MapRun run =
        next_run(domain, context, operation.gfn + done.pages, operation.dfn + done.pages, operation.pages - done.pages);
    done.status = run.status;
    if (run.status != Errno::Ok) break;
    const TableEdit step = context.table->map({.input = (operation.dfn + done.pages).address().value(),
                                               .output = run.machine.address().value(),
                                               .length = kPageSize * run.pages,
                                               .permissions = operation.permissions,
                                               .max_page_lg2 = largest,
                                               .coalesce = options_.coalesce});
    for (std::uint64_t i = 0; i < step.pages_done; ++i) {
      if (!holds_reference((run.machine + i).address().value())) continue;
      references_.take(run.machine + i);
      ++work.references;
    }
    done.pages += step.pages_done;
    done.status = to_errno(step.status);
    // Merging freed them; the split that undoes it will want them back.
    if (context.arena != nullptr && options_.coalesce == Coalesce::Yes)
      context.arena->set_aside(step.freed_tables.size());
    work.edit.merge(step);
  }
  work.range = bytes_of(operation.dfn, std::max<std::uint64_t>(done.pages, 1));
  work.leaves = done.pages;
  if (operation.page_lg2 == kPageLg2 || done.pages == 0) return work;
  work.leaves = 0;
  context.table->for_each_leaf(work.range, [&](const MappedLeaf& leaf) {
    ++work.leaves;
    if (context.arena != nullptr) context.arena->set_aside(xen::tables_to_shatter(leaf));
  });
  return work;
}

Task<Hypervisor::PagesEdit> Hypervisor::map_locked(CpuPort& cpu, Domain& domain, IoContext& context,
                                                   PageOperation operation) {
  PagesEdit work;
  work.done.status = Errno::Invalid;
  if (!context.dying) work = enter_pages(domain, context, operation);
  const std::uint64_t refused = work.done.status == Errno::Ok ? 0 : 1;
  std::uint64_t lookups = work.done.pages;
  if (operation.page_lg2 > kPageLg2 && lookups != 0) lookups = pages_of_p2m(domain, operation.gfn, lookups);
  take_back(context, operation, work);
  co_await cpu.charge(CostId::P2mLookup, lookups + refused);
  co_await cpu.charge(CostId::PageReference, work.references);
  // One walk to find a conflict, one to write.
  if (context.table)
    co_await cpu.charge(CostId::TableRead, 2 * (work.leaves + refused) * (context.table->root().top_level + 1U));
  co_await charge_edit(cpu, work.edit);
  co_return work;
}

Task<PagesDone> Hypervisor::map_pages(CpuPort& cpu, Domain& domain, IoContext& context, Gfn gfn, Dfn dfn,
                                      std::uint64_t pages, Permissions permissions) {
  std::vector<PageOperation> one{PageOperation{.gfn = gfn, .dfn = dfn, .pages = pages, .permissions = permissions}};
  const auto answers = co_await change_pages(cpu, domain, context, std::move(one), AfterRefusal::Stop);
  co_return answers.front();
}

Task<Hypervisor::PagesEdit> Hypervisor::unmap_locked(CpuPort& cpu, IoContext& context, PageOperation operation) {
  PagesEdit work;
  PagesDone& done = work.done;
  const Dfn dfn = operation.dfn;
  if (context.dying)
    done.status = Errno::Invalid;
  else if (dfn > last_dfn())
    done.status = Errno::NoEntry;
  else if (context.is_reserved(dfn, 1))
    done.status = Errno::AddressNotAvailable;
  if (done.status != Errno::Ok || operation.pages == 0) co_return work;
  // Up to the end of the space, or to a reserved region: what is asked for beyond fails there.
  const std::uint64_t asked = std::min(operation.pages, last_dfn().value() - dfn.value() + 1);
  const std::uint64_t pages = context.unreserved_from(dfn, asked);
  const AddressRange range = bytes_of(dfn, pages);
  std::vector<Mfn> frames = frames_behind(*context.table, range);
  if (operation.page_lg2 > kPageLg2) context.table->for_each_leaf(range, [&](const MappedLeaf&) { ++work.leaves; });
  // Without a flush a walk cache goes on using a table that was unlinked, and would miss what is mapped beside the
  // range meanwhile: only a table whose whole range waits for the flush may go.
  const bool later = operation.kind == PageOperation::Kind::UnmapLater;
  const ReclaimTables reclaim = later ? ReclaimTables::WhenCovered : ReclaimTables::WhenEmpty;
  work.edit = unmap_with_reserve(context, range, reclaim);
  done.pages = work.edit.pages_done;
  done.status = to_errno(work.edit.status);
  if (done.status == Errno::Ok && pages < asked) done.status = Errno::AddressNotAvailable;
  work.range = bytes_of(dfn, std::max<std::uint64_t>(done.pages, 1));
  frames.resize(std::min<std::size_t>(frames.size(), done.pages));
  std::erase_if(frames, [&](Mfn frame) { return !holds_reference(frame.address().value()); });
  if (operation.page_lg2 == kPageLg2) work.leaves = done.pages;
  const std::uint64_t touched = work.leaves + (done.status == Errno::Ok ? 0 : 1);
  co_await cpu.charge(CostId::TableRead, touched * (context.table->root().top_level + 1U));
  co_await charge_edit(cpu, work.edit);
  co_await cpu.charge(CostId::PageReference, frames.size());
  if (later) {
    context.deferred_frames.insert(context.deferred_frames.end(), frames.begin(), frames.end());
    const std::vector<std::uint64_t> tables = std::exchange(work.edit.freed_tables, {});
    context.deferred_tables.insert(context.deferred_tables.end(), tables.begin(), tables.end());
  } else {
    work.dropped = std::move(frames);
  }
  co_return work;
}

Task<PagesDone> Hypervisor::unmap_pages(CpuPort& cpu, Domain& domain, IoContext& context, Dfn dfn, std::uint64_t pages,
                                        UnmapFlush flush) {
  using enum PageOperation::Kind;
  std::vector<PageOperation> one{
      PageOperation{.kind = flush == UnmapFlush::Later ? UnmapLater : Unmap, .dfn = dfn, .pages = pages}};
  const auto answers = co_await change_pages(cpu, domain, context, std::move(one), AfterRefusal::Stop);
  co_return answers.front();
}

Task<std::vector<PagesDone>> Hypervisor::change_pages(CpuPort& cpu, Domain& domain, IoContext& context,
                                                      std::vector<PageOperation> operations, AfterRefusal after) {
  std::vector<PagesDone> answers;
  std::vector<AddressRange> ranges;
  std::vector<Mfn> dropped;
  TableEdit all;
  co_await cpu.acquire(context.lock);
  for (std::size_t i = 0; i < operations.size(); ++i) {
    PagesEdit work;
    const bool is_full = context.deferred_frames.size() >= options_.deferred_pages;
    if (operations[i].kind == PageOperation::Kind::UnmapLater && is_full)
      operations[i].kind = PageOperation::Kind::Unmap;
    if (operations[i].kind == PageOperation::Kind::Map)
      work = co_await map_locked(cpu, domain, context, operations[i]);
    else
      work = co_await unmap_locked(cpu, context, operations[i]);
    answers.push_back(work.done);
    dropped.insert(dropped.end(), work.dropped.begin(), work.dropped.end());
    if (operations[i].kind != PageOperation::Kind::UnmapLater) {
      if (needs_flush(work.edit)) ranges.push_back(work.range);
      all.merge(std::move(work.edit));
    }
    if (work.done.status != Errno::Ok && after == AfterRefusal::Stop) break;
  }
  Errno flushed = Errno::Ok;
  if (all.structure_changed) {
    flushed = co_await flush(cpu, domain, context, {});
  } else if (!ranges.empty()) {
    flushed = co_await flush(cpu, domain, context, ranges);
  } else if (all.added) {
    ++counters_.flushes_skipped;
  }
  if (flushed == Errno::Ok) {
    for (const std::uint64_t page : all.freed_tables) context.table_memory->release(page);
    for (const Mfn frame : dropped) references_.drop(frame);
  } else {
    context.deferred_tables.insert(context.deferred_tables.end(), all.freed_tables.begin(), all.freed_tables.end());
    context.deferred_frames.insert(context.deferred_frames.end(), dropped.begin(), dropped.end());
    for (PagesDone& answer : answers)
      if (answer.status == Errno::Ok || answer.pages + answer.undone != 0)
        answer.after_flush = std::exchange(answer.status, flushed);
  }
  cpu.release(context.lock);
  co_return answers;
}

// DEVIATION(grants-002): new rights take two writes at one instant, where Xen overwrites the entry.
Task<Errno> Hypervisor::set_identity_page(CpuPort& cpu, Domain& domain, IoContext& context, Mfn frame,
                                          std::optional<Permissions> permissions) {
  co_await cpu.acquire(context.lock);
  const std::uint64_t at = frame.address().value();
  TableEdit edit;
  if (context.table->lookup(at)) edit = context.table->unmap(at, kPageSize, ReclaimTables::WhenCovered);
  if (permissions) edit.merge(context.table->map({.input = at, .output = at, .permissions = *permissions}));
  const Errno status = to_errno(edit.status);
  co_await cpu.charge(CostId::TableRead, context.table->root().top_level + 1U);
  co_await charge_edit(cpu, edit);
  const Errno flushed = co_await flush_edit(cpu, domain, context, bytes_of(Dfn(frame.value()), 1), edit);
  cpu.release(context.lock);
  co_return status == Errno::Ok ? flushed : status;
}

// Invalidation --------------------------------------------------------------------------------------------------------

bool Hypervisor::needs_flush(const TableEdit& edit) const {
  const bool added_matters = edit.added && !units_.empty() && units_.front()->features().caching_mode;
  return edit.modified || edit.structure_changed || added_matters;
}

// A guest goes on without its answers nowhere but in contexts of its own. [xen/drivers/passthrough/iommu.c,
// iommu_iotlb_flush()]
Task<Errno> Hypervisor::flush_edit(CpuPort& cpu, Domain& domain, IoContext& context, AddressRange range,
                                   TableEdit edit) {
  if (needs_flush(edit)) {
    // A changed structure means stale walk caches above the range: the whole domain goes.
    std::vector<AddressRange> exact{1, range};
    if (edit.structure_changed) exact.clear();
    const Errno flushed = co_await flush(cpu, domain, context, std::move(exact));
    if (flushed != Errno::Ok) {
      context.deferred_tables.insert(context.deferred_tables.end(), edit.freed_tables.begin(), edit.freed_tables.end());
      if (&context == domain.default_context.get()) crash_guest(domain);
      co_return flushed;
    }
  } else {
    ++counters_.flushes_skipped;
  }
  for (const std::uint64_t page : edit.freed_tables) context.table_memory->release(page);
  co_return Errno::Ok;
}

Task<Errno> Hypervisor::flush_context(CpuPort& cpu, Domain& domain, IoContext& context) {
  co_await cpu.acquire(context.lock);
  // What is unmapped from here on waits for the next flush.
  const std::vector<std::uint64_t> tables = std::exchange(context.deferred_tables, {});
  const std::vector<Mfn> frames = std::exchange(context.deferred_frames, {});
  const Errno status = co_await flush(cpu, domain, context, {});
  if (status == Errno::Ok) {
    for (const std::uint64_t page : tables) context.table_memory->release(page);
    for (const Mfn frame : frames) references_.drop(frame);
  } else {
    context.deferred_tables.insert(context.deferred_tables.end(), tables.begin(), tables.end());
    context.deferred_frames.insert(context.deferred_frames.end(), frames.begin(), frames.end());
  }
  cpu.release(context.lock);
  co_return status;
}

Task<Errno> Hypervisor::flush(CpuPort& cpu, Domain& domain, IoContext& context, std::vector<AddressRange> ranges) {
  ++counters_.flush_calls;
  Errno status = Errno::Ok;
  for (std::size_t i = 0; i < units_.size(); ++i) {
    const Errno answered = co_await flush_unit(cpu, domain, context, i, ranges);
    if (answered != Errno::Ok) status = answered;
  }
  if (&context != domain.default_context.get()) co_return status;
  // It is the second stage of nested contexts as well, whose first stages may lead there from any address.
  for (std::size_t n = 0; n < domain.private_contexts.size(); ++n) {
    IoContext& other = *domain.private_contexts[n];
    if (other.table) continue;
    for (std::size_t i = 0; i < units_.size(); ++i) {
      const Errno answered = co_await flush_unit(cpu, domain, other, i, {});
      if (answered != Errno::Ok) status = answered;
    }
  }
  co_return status;
}

Task<Errno> Hypervisor::flush_unit(CpuPort& cpu, Domain& domain, IoContext& context, std::size_t index,
                                   std::vector<AddressRange> ranges) {
  if (!uses_unit(domain, context, index)) co_return Errno::Ok;
  PhysicalUnit& unit = *units_[index];
  const InvalidationScope whole{.kind = InvalidationKind::Iotlb, .domain = context.tag_on(index)};
  Errno status = co_await unit.invalidate(cpu, scopes_of(unit, whole, ranges));
  const std::vector<RequesterId> devices = context.devices;
  for (const RequesterId device : devices) {
    const auto found = domain.devices.find(device);
    if (found == domain.devices.end()) continue;
    const DeviceSetting setting = found->second.setting;
    if (!setting.device_tlb || setting.unit != index) continue;
    for (const RequesterId function : setting.functions()) {
      const InvalidationScope remote{.kind = InvalidationKind::DeviceTlb, .requester = function};
      const Errno answered = co_await unit.invalidate(cpu, over(remote, ranges));
      if (answered != Errno::Ok) status = answered;
    }
  }
  co_return status;
}

}  // namespace iommu::xen
