// SPDX-License-Identifier: Apache-2.0
// The hypervisor's operations on IOMMU contexts and on the devices inside them.
#include <algorithm>
#include <utility>

#include "sim/base/check.hpp"
#include "sim/xen/hypervisor.hpp"

namespace iommu::xen {

namespace {
constexpr std::uint64_t kTeardownEntries = 4096;  // table entries read per slice of a teardown

AddressRange bytes_of(Dfn first, std::uint64_t pages) {
  return {first.address().value(), first.address().value() + (pages << kPageLg2) - 1};
}

// What devices keep themselves. It goes after the unit's own caches: a request under way could fill it again.
std::vector<InvalidationScope> device_tlb_scopes(const std::vector<RequesterId>& functions) {
  std::vector<InvalidationScope> scopes;
  for (const RequesterId function : functions)
    scopes.push_back({.kind = InvalidationKind::DeviceTlb, .requester = function});
  return scopes;
}

// First the unit's caches, then those of the devices that have one.
Task<Errno> invalidate_both(CpuPort& cpu, PhysicalUnit& unit, std::vector<InvalidationScope> scopes,
                            std::vector<RequesterId> caching) {
  Errno flushed = co_await unit.invalidate(cpu, std::move(scopes));
  if (flushed == Errno::Ok) flushed = co_await unit.invalidate(cpu, device_tlb_scopes(caching));
  co_return flushed;
}

// A nested context's second stage is context 0's, and so are its reserved regions.
IoContext& holder_of_reserved(Domain& domain, IoContext& context) {
  return context.table ? context : *domain.default_context;
}
}  // namespace

Hypervisor::NewContext Hypervisor::make_context(ContextNumber number, ContextKind kind, TableMemory& tables,
                                                TagAllocation tag_allocation) {
  NewContext made{Errno::Ok, std::make_unique<IoContext>(number)};
  IoContext& context = *made.context;
  context.kind = kind;
  context.serial = contexts_made_++;
  context.tag_allocation = tag_allocation;
  context.tags.resize(units_.size());
  for (std::size_t i = 0; tag_allocation == TagAllocation::AtCreation && i < units_.size(); ++i)
    if (made.status == Errno::Ok) made.status = take_tag(context, i);
  if (made.status == Errno::Ok && kind == ContextKind::Stage2) {
    context.table = units_.front()->driver().create_table(TableKind::Stage2, tables);
    context.table_memory = &tables;
    if (context.table)
      context.stage2 = context.table->root();
    else
      made.status = Errno::NoMemory;
  }
  if (made.status != Errno::Ok) {
    release_tags(context);
    made.context.reset();
  }
  return made;
}

std::unique_ptr<IoContext> Hypervisor::make_sibling(ContextNumber number, const IoContext& other) {
  SIM_CHECK(other.kind == ContextKind::Nested, "a table of its own needs a tag of its own");
  auto context = std::make_unique<IoContext>(number);
  context->kind = other.kind;
  context->serial = contexts_made_++;
  context->tags = other.tags;
  for (std::size_t i = 0; i < units_.size(); ++i) units_[i]->share_tag(context->tag_on(i));
  return context;
}

Errno Hypervisor::take_tag(IoContext& context, std::size_t unit) {
  if (!context.tags[unit]) context.tags[unit] = units_[unit]->allocate_tag();
  return context.tags[unit] ? Errno::Ok : Errno::NoSpace;
}

// Its last device has left the unit, and the unit has forgotten the tag.
void Hypervisor::give_up_tag(const Domain& domain, IoContext& context, std::size_t unit) {
  if (context.tag_allocation == TagAllocation::AtCreation || context.unfenced || !context.tags[unit] ||
      uses_unit(domain, context, unit))
    return;
  units_[unit]->release_tag(*context.tags[unit]);
  context.tags[unit].reset();
}

void Hypervisor::release_tags(IoContext& context) {
  for (std::size_t i = 0; i < units_.size(); ++i)
    if (context.tags[i]) units_[i]->release_tag(*context.tags[i]);
}

void Hypervisor::abandon(Domain& domain, IoContext& context) {
  context.unfenced = true;
  crash_guest(domain);
}

Task<std::uint64_t> Hypervisor::destroy_context(CpuPort& cpu, Domain& domain, std::unique_ptr<IoContext> context) {
  SIM_CHECK(context->dying && context->devices.empty(), "only an empty, dying context is destroyed");
  IoContext& dead = *context;
  domain.retired_contexts.push_back(std::move(context));
  if (dead.unfenced) co_return 0;
  co_await cpu.acquire(dead.lock);
  std::optional<std::uint64_t> at = 0;
  std::uint64_t slices = 0;
  while (dead.table && at) {
    ++slices;
    std::uint64_t dropped = 0;
    std::uint64_t set_aside = 0;
    const LeafScan scan = dead.table->scan_leaves({*at, ~0ULL}, kTeardownEntries, [&](const MappedLeaf& leaf) {
      set_aside += tables_to_shatter(leaf);
      for (std::uint64_t i = 0; i < 1ULL << (leaf.page_lg2 - kPageLg2); ++i) {
        if (!holds_reference(leaf.output + (i << kPageLg2))) continue;
        references_.drop(Mfn(Hpa(leaf.output)) + i);
        ++dropped;
      }
    });
    at = scan.resume_at;
    if (dead.arena != nullptr) dead.arena->give_up(set_aside);
    co_await cpu.charge(CostId::TableRead, scan.entries_read);
    co_await cpu.charge(CostId::PageReference, dropped);
  }
  for (const Mfn frame : dead.deferred_frames) references_.drop(frame);
  for (const IoContext::Removed& gone : dead.removed)
    for (const Mfn frame : gone.frames)
      if (holds_reference(frame.address().value())) references_.drop(frame);
  if (dead.table) {
    for (const std::uint64_t page : dead.table->detach_all_tables()) dead.table_memory->release(page);
    for (const std::uint64_t page : dead.deferred_tables) dead.table_memory->release(page);
    dead.table.reset();
  }
  release_tags(dead);
  cpu.release(dead.lock);
  std::erase_if(domain.retired_contexts,
                [](const auto& c) { return !c->unfenced && !c->lock.held && c->lock.waiters.empty() && c->pins == 0; });
  co_return slices;
}

bool Hypervisor::uses_unit(const Domain& domain, const IoContext& context, std::size_t unit) const {
  return std::any_of(context.devices.begin(), context.devices.end(), [&](RequesterId device) {
    const auto found = domain.devices.find(device);
    return found != domain.devices.end() && found->second.setting.unit == unit;
  });
}

// MMIO frames carry no reference: they are nobody's memory.
bool Hypervisor::holds_reference(std::uint64_t machine_address) const {
  return memory_.contains(Hpa(machine_address).aligned_down(kPageLg2), kPageSize.value());
}

Task<void> Hypervisor::charge_edit(CpuPort& cpu, const TableEdit& edit) {
  co_await cpu.charge(CostId::TableWrite, edit.entries_written);
  co_await cpu.charge(CostId::TableAllocate, edit.tables_allocated);
  if (!units_.empty() && !units_.front()->features().coherent_walks)
    co_await cpu.charge(CostId::CacheLineFlush, edit.lines_touched);
}

// Devices -------------------------------------------------------------------------------------------------------------

Task<Errno> Hypervisor::reattach(CpuPort& cpu, Domain& domain, RequesterId device, IoContext& target) {
  const auto found = domain.devices.find(device);
  if (found == domain.devices.end()) co_return Errno::NoDevice;
  IoContext* const source = found->second.context;
  if (source == &target) co_return Errno::Ok;
  // The older one first, so that crossing moves cannot wait for each other. Reserved regions of a nested context are in
  // context 0, the oldest of all.
  std::vector<IoContext*> locked{&target};
  if (source != nullptr) locked.push_back(source);
  if (!target.table || (source != nullptr && !source->table)) locked.push_back(domain.default_context.get());
  std::sort(locked.begin(), locked.end(), [](const auto* a, const auto* b) { return a->serial < b->serial; });
  locked.erase(std::unique(locked.begin(), locked.end()), locked.end());
  for (IoContext* context : locked) ++context->pins;
  for (IoContext* context : locked) co_await cpu.acquire(context->lock);
  Errno status = Errno::Invalid;
  const auto still = domain.devices.find(device);
  if (still == domain.devices.end())
    status = Errno::NoDevice;
  else if (still->second.context == source && !target.dying)
    status = co_await reattach_locked(cpu, domain, still->second, target);
  for (IoContext* context : locked) {
    --context->pins;
    cpu.release(context->lock);
  }
  co_return status;
}

Task<Errno> Hypervisor::reattach_locked(CpuPort& cpu, Domain& domain, AssignedDevice& device, IoContext& target) {
  IoContext* const source = device.context;
  const DeviceSetting setting = device.setting;
  const Errno reserved = co_await insert_reserved(cpu, domain, target, setting.reserved);
  if (reserved != Errno::Ok) co_return reserved;
  std::optional<ContextSetting> old;
  if (source != nullptr) old = source->setting_on(setting.unit);
  Pointed pointed{.status = take_tag(target, setting.unit)};
  if (pointed.status == Errno::Ok)
    pointed = co_await point_functions(cpu, domain, setting, target.setting_on(setting.unit), old, SharedEntries::Take);
  if (pointed.status != Errno::Ok) {
    if (!pointed.is_fenced) abandon(domain, target);
    give_up_tag(domain, target, setting.unit);
    if (!target.unfenced) co_await remove_reserved(cpu, domain, target, setting.reserved);
    co_return pointed.status;
  }
  device.context = &target;
  target.devices.push_back(setting.requester);
  if (source == nullptr) co_return Errno::Ok;
  std::erase(source->devices, setting.requester);
  give_up_tag(domain, *source, setting.unit);
  if (!source->unfenced) co_await remove_reserved(cpu, domain, *source, setting.reserved);
  co_return Errno::Ok;
}

// Points every function at `now`, or leaves every function as it was; then invalidates what the old setting left
// behind.
Task<Hypervisor::Pointed> Hypervisor::point_functions(CpuPort& cpu, Domain& domain, DeviceSetting device,
                                                      ContextSetting now, std::optional<ContextSetting> old,
                                                      SharedEntries shared) {
  PhysicalUnit& unit = *units_[device.unit];
  const std::vector<RequesterId> functions = device.functions();
  std::vector<InvalidationScope> scopes;
  std::vector<RequesterId> changed;
  const auto add_scopes = [&](RequesterId function, std::optional<ContextSetting> before) {
    for (const InvalidationScope& scope : unit.driver().context_scopes(function, before))
      if (std::find(scopes.begin(), scopes.end(), scope) == scopes.end()) scopes.push_back(scope);
    changed.push_back(function);
  };
  Errno status = Errno::Ok;
  std::size_t done = 0;
  for (; done < functions.size(); ++done) {
    status = co_await unit.point(cpu, functions[done], now);
    if (status != Errno::Ok) break;
    add_scopes(functions[done], old);
  }
  if (status == Errno::Ok && device.shared_id) {
    const SharedEdit edit = co_await point_shared(cpu, device, now, shared);
    status = edit.status;
    scopes.insert(scopes.end(), edit.scopes.begin(), edit.scopes.end());
  }
  if (status != Errno::Ok) {
    for (std::size_t i = 0; i < done; ++i) {
      Errno back = Errno::Ok;
      if (old)
        back = co_await unit.point(cpu, functions[i], *old);
      else
        back = co_await unit.block(cpu, functions[i]);
      add_scopes(functions[i], now);
      if (back == Errno::Ok) continue;
      // Neither here nor there: at least it must not go on using the context that it was refused.
      co_await unit.block(cpu, functions[i]);
      status = Errno::InputOutput;
      crash_guest(domain);
    }
  }
  if (!device.device_tlb || !old) changed.clear();
  const Errno flushed = co_await invalidate_both(cpu, unit, scopes, changed);
  if (flushed == Errno::Ok) co_return Pointed{.status = status};
  owed_fences_.insert_or_assign(device.requester, OwedFence{device.unit, std::move(scopes), std::move(changed)});
  // Caches may know either setting: what they show of one must not become somebody else's.
  for (const RequesterId function : functions) co_await unit.block(cpu, function);
  crash_guest(domain);
  co_return Pointed{.status = flushed, .is_fenced = false};
}

Task<Hypervisor::SharedEdit> Hypervisor::point_shared(CpuPort& cpu, DeviceSetting device, ContextSetting now,
                                                      SharedEntries shared) {
  SharedEdit edit;
  PhysicalUnit& unit = *units_[device.unit];
  const SharedKey key{device.unit, *device.shared_id};
  const auto known = shared_entries_.find(key);
  if (shared == SharedEntries::Keep && (known == shared_entries_.end() || known->second.device != device.requester))
    co_return edit;
  std::optional<ContextSetting> before;
  if (known != shared_entries_.end()) before = known->second.setting;
  edit.status = co_await unit.point(cpu, key.second, now);
  if (edit.status != Errno::Ok) co_return edit;
  shared_entries_.insert_or_assign(key, SharedEntry{device.requester, now});
  edit.scopes = unit.driver().context_scopes(key.second, before);
  co_return edit;
}

// The entry goes to another device that has the id, or nobody's requests pass under it any more.
Task<Hypervisor::SharedEdit> Hypervisor::leave_shared(CpuPort& cpu, DeviceSetting device) {
  SharedEdit edit;
  if (!device.shared_id) co_return edit;
  const SharedKey key{device.unit, *device.shared_id};
  const auto known = shared_entries_.find(key);
  if (known == shared_entries_.end() || known->second.device != device.requester) co_return edit;
  if (const AssignedDevice* heir = other_sharer(device); heir != nullptr) {
    const DeviceSetting next = heir->setting;
    edit = co_await point_shared(cpu, next, heir->context->setting_on(device.unit), SharedEntries::Take);
    if (edit.status == Errno::Ok) co_return edit;
  }
  PhysicalUnit& unit = *units_[device.unit];
  const ContextSetting before = known->second.setting;
  edit.status = co_await unit.block(cpu, key.second);
  edit.scopes = unit.driver().context_scopes(key.second, before);
  shared_entries_.erase(key);
  co_return edit;
}

const AssignedDevice* Hypervisor::other_sharer(const DeviceSetting& device) const {
  for (const auto& domain : domains_)
    for (const auto& [requester, assigned] : domain->devices)
      if (requester != device.requester && assigned.context != nullptr && assigned.setting.unit == device.unit &&
          assigned.setting.shared_id == device.shared_id)
        return &assigned;
  return nullptr;
}

Task<Errno> Hypervisor::deassign_device(CpuPort& cpu, Domain& domain, RequesterId device) {
  const auto found = domain.devices.find(device);
  if (found == domain.devices.end()) co_return Errno::NoDevice;
  if (found->second.context == nullptr) co_return Errno::Busy;  // still on its way in
  IoContext& context = *found->second.context;
  const DeviceSetting setting = found->second.setting;
  std::vector<IoContext*> locked{&context};
  if (!context.table && &context != domain.default_context.get())
    locked.insert(locked.begin(), domain.default_context.get());
  for (IoContext* c : locked) ++c->pins;
  for (IoContext* c : locked) co_await cpu.acquire(c->lock);
  const auto unlock = [&] {
    for (IoContext* c : locked) {
      --c->pins;
      cpu.release(c->lock);
    }
  };
  const auto still = domain.devices.find(device);
  if (still == domain.devices.end() || still->second.context != &context) {
    unlock();
    co_return Errno::Busy;  // somebody else moves it
  }
  PhysicalUnit& unit = *units_[setting.unit];
  std::vector<InvalidationScope> scopes;
  Errno status = Errno::Ok;
  for (const RequesterId function : setting.functions()) {
    const Errno blocked = co_await unit.block(cpu, function);
    if (blocked != Errno::Ok) status = blocked;
    const auto due = unit.driver().context_scopes(function, context.setting_on(setting.unit));
    scopes.insert(scopes.end(), due.begin(), due.end());
  }
  const SharedEdit shared = co_await leave_shared(cpu, setting);
  if (shared.status != Errno::Ok) status = shared.status;
  scopes.insert(scopes.end(), shared.scopes.begin(), shared.scopes.end());
  const std::vector<RequesterId> caching = setting.device_tlb ? setting.functions() : std::vector<RequesterId>();
  const Errno flushed = co_await invalidate_both(cpu, unit, scopes, caching);
  if (flushed != Errno::Ok) {
    owed_fences_.insert_or_assign(device, OwedFence{setting.unit, std::move(scopes), caching});
    abandon(domain, context);
    status = flushed;
  }
  std::erase(context.devices, device);
  domain.devices.erase(device);
  give_up_tag(domain, context, setting.unit);
  if (!context.unfenced) co_await remove_reserved(cpu, domain, context, setting.reserved);
  unlock();
  co_await quarantine(cpu, setting);
  co_return status;
}

Task<Errno> Hypervisor::settle_owed_fence(CpuPort& cpu, RequesterId device) {
  const auto owed = owed_fences_.find(device);
  if (owed == owed_fences_.end()) co_return Errno::Ok;
  const OwedFence fence = owed->second;
  const Errno status = co_await invalidate_both(cpu, *units_[fence.unit], fence.scopes, fence.caching);
  if (status == Errno::Ok) owed_fences_.erase(device);
  co_return status;
}

Task<Errno> Hypervisor::refresh(CpuPort& cpu, Domain& domain, IoContext& context, ContextSetting before) {
  co_await cpu.acquire(context.lock);
  Errno status = Errno::Ok;
  const std::vector<RequesterId> devices = context.devices;
  for (const RequesterId device : devices) {
    const auto found = domain.devices.find(device);
    if (found == domain.devices.end()) continue;
    const DeviceSetting setting = found->second.setting;
    ContextSetting old = before;
    old.domain = context.tag_on(setting.unit);
    const Pointed pointed =
        co_await point_functions(cpu, domain, setting, context.setting_on(setting.unit), old, SharedEntries::Keep);
    if (pointed.status != Errno::Ok) status = pointed.status;
  }
  cpu.release(context.lock);
  co_return status;
}

// Reserved regions ----------------------------------------------------------------------------------------------------

// All regions of a device, or none. A region that is there already gains a user; one that partly overlaps another, or
// whose addresses mean something else, is refused.
Task<Errno> Hypervisor::insert_reserved(CpuPort& cpu, Domain& domain, IoContext& context,
                                        std::vector<ReservedRegion> regions) {
  std::vector<ReservedRegion> inserted;
  for (const ReservedRegion& region : regions) {
    const Errno status = co_await insert_reserved_region(cpu, domain, context, region);
    if (status == Errno::Ok) {
      inserted.push_back(region);
      continue;
    }
    co_await remove_reserved(cpu, domain, context, inserted);
    co_return status;
  }
  co_return Errno::Ok;
}

Task<Errno> Hypervisor::insert_reserved_region(CpuPort& cpu, Domain& domain, IoContext& nominal,
                                               ReservedRegion region) {
  IoContext& context = holder_of_reserved(domain, nominal);
  if (!context.table) co_return Errno::Ok;  // nothing is translated there
  for (IoContext::Reserved& known : context.reserved) {
    if (known.region == region) {
      ++known.users;
      co_return Errno::Ok;
    }
    if (known.region.overlaps(region.first, region.pages)) co_return Errno::AddressInUse;
  }
  TableEdit edit = context.table->map({.input = region.first.address().value(),
                                       .output = region.first.address().value(),
                                       .length = kPageSize * region.pages});
  Errno status = to_errno(edit.status);
  if (status != Errno::Ok && edit.pages_done != 0) {
    const Bytes mapped = kPageSize * edit.pages_done;
    edit.merge(context.table->unmap(region.first.address().value(), mapped, ReclaimTables::WhenEmpty));
  }
  co_await charge_edit(cpu, edit);
  if (status != Errno::Ok) {
    for (const std::uint64_t page : edit.freed_tables) context.table_memory->release(page);  // no device has seen them
    co_return status;
  }
  context.reserved.push_back({region, 1});
  co_await flush_edit(cpu, domain, context, bytes_of(region.first, region.pages), edit);
  co_return status;
}

Task<void> Hypervisor::remove_reserved(CpuPort& cpu, Domain& domain, IoContext& context,
                                       std::vector<ReservedRegion> regions) {
  IoContext& holder = holder_of_reserved(domain, context);
  if (!holder.table) co_return;
  for (const ReservedRegion& region : regions) {
    const TableEdit edit = co_await remove_reserved_region(cpu, holder, region);
    if (edit.pages_done == 0) continue;
    co_await flush_edit(cpu, domain, holder, bytes_of(region.first, region.pages), edit);
  }
}

Task<TableEdit> Hypervisor::remove_reserved_region(CpuPort& cpu, IoContext& context, ReservedRegion region) {
  TableEdit edit;
  const auto known = std::find_if(context.reserved.begin(), context.reserved.end(),
                                  [&](const IoContext::Reserved& r) { return r.region == region; });
  if (known == context.reserved.end() || --known->users != 0) co_return edit;
  context.reserved.erase(known);
  edit = context.table->unmap(region.first.address().value(), kPageSize * region.pages, ReclaimTables::WhenEmpty);
  co_await charge_edit(cpu, edit);
  co_return edit;
}

}  // namespace iommu::xen
