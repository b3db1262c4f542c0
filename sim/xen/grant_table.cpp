// SPDX-License-Identifier: Apache-2.0
#include "sim/xen/grant_table.hpp"

#include <algorithm>
#include <span>
#include <utility>

#include "sim/base/check.hpp"

namespace iommu::xen {

namespace {
using abi::GrantStatus;

constexpr std::uint32_t kMapFlags = abi::kGrantDeviceMap | abi::kGrantHostMap;
constexpr unsigned kMarkAttempts = 5;        // [grant_table.c, _set_status_v1]
constexpr std::uint32_t kUnmapBatch = 32;    // [grant_table.c, GNTTAB_UNMAP_BATCH_SIZE]
constexpr std::uint8_t kOverflowBit = 0x80;  // [grant_table.c, map_grant_ref: pin & 0x80808080]
constexpr std::uint32_t kEntriesPerPage = 4096 / 8;

bool is_read_only(std::uint32_t flags) { return (flags & abi::kGrantReadOnly) != 0; }

template <class T>
bool copy_in(const GuestMemory& memory, Gpa from, T& into) {
  return memory.read(from, std::as_writable_bytes(std::span(&into, 1)));
}
template <class T>
bool copy_out(GuestMemory& memory, Gpa to, const T& from) {
  return memory.write(to, std::as_bytes(std::span(&from, 1)));
}
}  // namespace

bool GrantTables::Active::is_pinned() const {
  return std::ranges::any_of(pins, [](std::uint8_t count) { return count != 0; });
}
bool GrantTables::Active::is_written() const {
  return pins[static_cast<std::size_t>(Use::HostWrite)] != 0 || pins[static_cast<std::size_t>(Use::DeviceWrite)] != 0;
}
bool GrantTables::Active::is_near_overflow() const {
  return std::ranges::any_of(pins, [](std::uint8_t count) { return (count & kOverflowBit) != 0; });
}

std::optional<Permissions> GrantTables::FrameUse::permissions() const {
  if (writers != 0) return kReadWrite;
  return readers != 0 ? std::optional(kReadOnly) : std::nullopt;
}

GrantTables::Table& GrantTables::table_of(const Domain& domain) {
  auto& table = tables_[domain.id];
  if (!table) table = std::make_unique<Table>();
  return *table;
}

Errno GrantTables::set_table(Domain& domain, std::vector<Gfn> pages) {
  if (pages.size() > limits_.table_pages) return Errno::TooBig;
  for (const Gfn page : pages)
    if (!domain.p2m.memory_frame(page)) return Errno::Invalid;
  table_of(domain).pages = std::move(pages);
  return Errno::Ok;
}

std::optional<Gpa> GrantTables::entry_address(const Table& table, std::uint32_t ref) {
  if (ref / kEntriesPerPage >= table.pages.size()) return std::nullopt;
  return table.pages[ref / kEntriesPerPage].address() + Bytes(8) * (ref % kEntriesPerPage);
}

std::optional<std::uint32_t> GrantTables::take_handle(Table& table) const {
  if (!table.free_handles.empty()) {
    const std::uint32_t handle = table.free_handles.back();
    table.free_handles.pop_back();
    return handle;
  }
  if (table.mappings.size() >= limits_.mappings) return std::nullopt;
  table.mappings.emplace_back();
  return static_cast<std::uint32_t>(table.mappings.size() - 1);
}

Task<std::int64_t> GrantTables::call(CpuPort& cpu, Domain& caller, std::uint32_t command, Gpa arguments,
                                     std::uint32_t count) {
  co_await cpu.charge(CostId::Hypercall);
  switch (static_cast<abi::GrantCommand>(command)) {
    case abi::GrantCommand::MapGrantRef:
      ++counters_.map_calls;
      co_return co_await map(cpu, caller, arguments, count);
    case abi::GrantCommand::UnmapGrantRef:
      ++counters_.unmap_calls;
      co_return co_await unmap(cpu, caller, arguments, count);
  }
  co_return static_cast<std::int64_t>(Errno::NotImplemented);
}

// Mapping -------------------------------------------------------------------------------------------------------------

Task<std::int64_t> GrantTables::map(CpuPort& cpu, Domain& caller, Gpa arguments, std::uint32_t count) {
  for (std::uint32_t i = 0; i < count; ++i) {
    const Gpa at = arguments + Bytes(sizeof(abi::MapGrantRef)) * i;
    abi::MapGrantRef request;
    if (!copy_in(caller.memory, at, request)) co_return static_cast<std::int64_t>(Errno::BadAddress);
    const abi::MapGrantRef answer = co_await map_one(cpu, caller, request);
    if (!copy_out(caller.memory, at, answer)) co_return static_cast<std::int64_t>(Errno::BadAddress);
  }
  co_return 0;
}

// DEVIATION(grants-001): a CPU mapping (host_map) counts like a device's, but makes no page-table entry: no CPU of the
// model reads one.
Task<abi::MapGrantRef> GrantTables::map_one(CpuPort& cpu, Domain& caller, abi::MapGrantRef request) {
  const auto refuse = [&](GrantStatus status) {
    request.status = static_cast<std::int16_t>(status);
    return request;
  };
  if ((request.flags & kMapFlags) == 0) co_return refuse(GrantStatus::BadGrantReference);
  Domain* owner = xen_.find_domain(DomainId(request.dom));
  if (owner == nullptr) co_return refuse(GrantStatus::BadDomain);
  const auto handle = take_handle(table_of(caller));
  if (!handle) co_return refuse(GrantStatus::NoDeviceSpace);
  const Pinned pinned = co_await pin(cpu, *owner, caller.id, request);
  GrantStatus status = pinned.status;
  if (status == GrantStatus::Okay) {
    status = co_await count_use(cpu, caller, *owner, pinned.frame, request.flags);
    if (status != GrantStatus::Okay) co_await complete(cpu, {owner, request.ref, request.flags});
  }
  if (status != GrantStatus::Okay) {
    table_of(caller).free_handles.push_back(*handle);
    co_return refuse(status);
  }
  xen_.take_reference(pinned.frame);
  table_of(caller).mappings[*handle] = {request.flags, owner->id, request.ref};
  ++counters_.maps;
  request.handle = *handle;
  request.dev_bus_addr = pinned.frame.address().value();
  request.status = static_cast<std::int16_t>(GrantStatus::Okay);
  co_return request;
}

// Takes one more use of an owner's grant; the first use, and the first that writes, are marked in the owner's table.
Task<GrantTables::Pinned> GrantTables::pin(CpuPort& cpu, Domain& owner, DomainId user, abi::MapGrantRef request) {
  Table& table = table_of(owner);
  Pinned result;
  if (!entry_address(table, request.ref)) {
    result.status = GrantStatus::BadGrantReference;
    co_return result;
  }
  co_await cpu.acquire(table.lock);
  // No reference into the map is kept: others come and go while entries are marked.
  const Active before = table.active[request.ref];
  const bool was_pinned = before.is_pinned();
  if (was_pinned && (before.user != user || before.is_near_overflow())) result.status = GrantStatus::GeneralError;
  const bool first_writer = !is_read_only(request.flags) && !before.is_written();
  if (result.status == GrantStatus::Okay && (!was_pinned || first_writer))
    result.status = co_await mark_entry(cpu, owner, user, request);
  Active& active = table.active[request.ref];
  if (result.status == GrantStatus::Okay && !was_pinned) {
    const auto word = owner.memory.read64(*entry_address(table, request.ref));
    const auto entry = owner.p2m.lookup(Gfn(get<abi::kGrantEntry, "frame">(word.value_or(0))));
    if (!entry) {
      result.status = GrantStatus::BadPage;
    } else if (entry->type != FrameType::Ram) {
      result.status = GrantStatus::GeneralError;  // not the owner's to give
    } else {
      active.user = user;
      active.frame = entry->machine;
    }
    if (result.status != GrantStatus::Okay) clear_marks(owner, request.ref);
  }
  result.frame = active.frame;
  if (result.status == GrantStatus::Okay) {
    const bool read_only = is_read_only(request.flags);
    if ((request.flags & abi::kGrantDeviceMap) != 0)
      ++active.pins[static_cast<std::size_t>(read_only ? Use::DeviceRead : Use::DeviceWrite)];
    if ((request.flags & abi::kGrantHostMap) != 0)
      ++active.pins[static_cast<std::size_t>(read_only ? Use::HostRead : Use::HostWrite)];
  } else if (!active.is_pinned()) {
    table.active.erase(request.ref);
  }
  cpu.release(table.lock);
  co_return result;
}

// Atomically, against an owner that may change the entry at any time; one that does so again and again is refused.
Task<GrantStatus> GrantTables::mark_entry(CpuPort& cpu, Domain& owner, DomainId user, abi::MapGrantRef request) {
  using abi::kGrantEntry;
  Table& table = table_of(owner);
  const Gpa at = *entry_address(table, request.ref);
  const bool was_pinned = table.active[request.ref].is_pinned();
  for (unsigned attempt = 0; attempt < kMarkAttempts; ++attempt) {
    const std::uint64_t seen = owner.memory.read64(at).value_or(0);
    const bool is_for_user =
        get<kGrantEntry, "type">(seen) == static_cast<std::uint64_t>(abi::GrantType::PermitAccess) &&
        get<kGrantEntry, "sub_page">(seen) == 0 && get<kGrantEntry, "domid">(seen) == user.value();
    if (!was_pinned && !is_for_user) co_return GrantStatus::GeneralError;
    std::uint64_t marked = with<kGrantEntry, "reading">(seen, 1);
    if (!is_read_only(request.flags)) {
      if (get<kGrantEntry, "readonly">(seen) != 0) co_return GrantStatus::GeneralError;
      marked = with<kGrantEntry, "writing">(marked, 1);
    }
    co_await cpu.charge(CostId::GrantEntry);
    if (owner.memory.read64(at) != seen) continue;
    const bool written = owner.memory.write64(at, marked);
    co_return written ? GrantStatus::Okay : GrantStatus::GeneralError;
  }
  co_return GrantStatus::GeneralError;
}

// What is not pinned any more is not marked any more.
void GrantTables::clear_marks(Domain& owner, std::uint32_t ref) {
  Table& table = table_of(owner);
  const auto at = entry_address(table, ref);
  const auto word = at ? owner.memory.read64(*at) : std::nullopt;
  if (!word) return;
  const Active& active = table.active[ref];
  std::uint64_t entry = *word;
  if (!active.is_written()) entry = with<abi::kGrantEntry, "writing">(entry, 0);
  if (!active.is_pinned()) entry = with<abi::kGrantEntry, "reading">(entry, 0);
  owner.memory.write64(*at, entry);
}

void GrantTables::unpin(Domain& owner, std::uint32_t ref, std::uint32_t flags) {
  Table& table = table_of(owner);
  Active& active = table.active[ref];
  const bool read_only = is_read_only(flags);
  const auto drop = [&](Use use) {
    SIM_CHECK(active.pins[static_cast<std::size_t>(use)] != 0, "a use that ends was counted");
    --active.pins[static_cast<std::size_t>(use)];
  };
  if ((flags & abi::kGrantDeviceMap) != 0) drop(read_only ? Use::DeviceRead : Use::DeviceWrite);
  if ((flags & abi::kGrantHostMap) != 0) drop(read_only ? Use::HostRead : Use::HostWrite);
  clear_marks(owner, ref);
  if (!active.is_pinned()) table.active.erase(ref);
}

// IOMMU entries -------------------------------------------------------------------------------------------------------

Task<GrantStatus> GrantTables::count_use(CpuPort& cpu, Domain& user, Domain& owner, Mfn frame, std::uint32_t flags) {
  co_await cpu.charge(CostId::GrantTrack);
  FrameUse& use = table_of(user).frames[frame];
  const auto before = use.permissions();
  ++(is_read_only(flags) ? use.readers : use.writers);
  if (before == use.permissions()) co_return GrantStatus::Okay;
  const Errno changed = co_await change_entry(cpu, user, owner, frame);
  if (changed == Errno::Ok) co_return GrantStatus::Okay;
  --(is_read_only(flags) ? use.readers : use.writers);
  if (!use.permissions()) table_of(user).frames.erase(frame);
  co_return GrantStatus::GeneralError;
}

Task<GrantStatus> GrantTables::uncount_use(CpuPort& cpu, Domain& user, Domain& owner, Mfn frame, std::uint32_t flags) {
  co_await cpu.charge(CostId::GrantTrack);
  FrameUse& use = table_of(user).frames[frame];
  const auto before = use.permissions();
  --(is_read_only(flags) ? use.readers : use.writers);
  Errno changed = Errno::Ok;
  if (before != use.permissions()) changed = co_await change_entry(cpu, user, owner, frame);
  if (!table_of(user).frames[frame].permissions()) table_of(user).frames.erase(frame);
  co_return changed == Errno::Ok ? GrantStatus::Okay : GrantStatus::GeneralError;
}

// A domain whose context 0 shows its memory has no entry for a grant of its own, nor a context without a table.
Task<Errno> GrantTables::change_entry(CpuPort& cpu, Domain& user, Domain& owner, Mfn frame) {
  if (user.setting.default_context != DefaultContext::Blocked || !user.default_context) co_return Errno::Ok;
  Table* first = &table_of(user);
  Table* second = &table_of(owner);
  if (owner.id < user.id) std::swap(first, second);
  co_await cpu.acquire(first->lock);
  if (second != first) co_await cpu.acquire(second->lock);
  // Both locks are held: what is due is what the counts say now, whoever came first.
  const auto uses = table_of(user).frames.find(frame);
  const auto now = uses == table_of(user).frames.end() ? std::nullopt : uses->second.permissions();
  const Errno status = co_await xen_.set_identity_page(cpu, user, *user.default_context, frame, now);
  ++counters_.entry_changes;
  if (second != first) cpu.release(second->lock);
  cpu.release(first->lock);
  co_return status;
}

// Unmapping -----------------------------------------------------------------------------------------------------------

Task<std::int64_t> GrantTables::unmap(CpuPort& cpu, Domain& caller, Gpa arguments, std::uint32_t count) {
  std::int64_t result = 0;
  for (std::uint32_t done = 0; done < count && result == 0;) {
    std::vector<Done> batch;
    for (std::uint32_t i = 0; i < kUnmapBatch && done < count && result == 0; ++i, ++done) {
      const Gpa at = arguments + Bytes(sizeof(abi::UnmapGrantRef)) * done;
      abi::UnmapGrantRef request;
      if (!copy_in(caller.memory, at, request)) {
        result = static_cast<std::int64_t>(Errno::BadAddress);
        break;
      }
      const Unmapped unmapped = co_await unmap_one(cpu, caller, request);
      if (unmapped.done.owner != nullptr) batch.push_back(unmapped.done);
      request.status = static_cast<std::int16_t>(unmapped.status);
      if (!copy_out(caller.memory, at, request)) result = static_cast<std::int64_t>(Errno::BadAddress);
    }
    for (const Done& finished : batch) co_await complete(cpu, finished);
  }
  co_return result;
}

Task<GrantTables::Unmapped> GrantTables::unmap_one(CpuPort& cpu, Domain& caller, abi::UnmapGrantRef request) {
  Table& table = table_of(caller);
  Unmapped result;
  result.status = GrantStatus::BadHandle;
  if (request.handle >= table.mappings.size() || table.mappings[request.handle].flags == 0) co_return result;
  Mapping& mapping = table.mappings[request.handle];
  Domain* owner = xen_.find_domain(mapping.owner);
  SIM_CHECK(owner != nullptr, "domains do not go away");
  const Mfn frame = table_of(*owner).active[mapping.ref].frame;
  if (request.dev_bus_addr != 0 && request.dev_bus_addr != frame.address().value()) {
    result.status = GrantStatus::GeneralError;
    co_return result;
  }
  std::uint32_t ended = 0;
  if (request.host_addr != 0) ended |= mapping.flags & abi::kGrantHostMap;
  if (request.dev_bus_addr != 0) ended |= mapping.flags & abi::kGrantDeviceMap;
  const std::uint32_t read_only = mapping.flags & abi::kGrantReadOnly;
  result.status = GrantStatus::Okay;
  if (ended == 0) co_return result;
  result.done = {owner, mapping.ref, ended | read_only};
  mapping.flags &= ~ended;
  if ((mapping.flags & kMapFlags) != 0) co_return result;
  mapping.flags = 0;
  table.free_handles.push_back(request.handle);
  result.status = co_await uncount_use(cpu, caller, *owner, frame, read_only);
  // Without an answer of the unit a device may still reach the frame.
  if (result.status == GrantStatus::Okay) xen_.drop_reference(frame);
  ++counters_.unmaps;
  co_return result;
}

Task<void> GrantTables::complete(CpuPort& cpu, Done done) {
  Table& table = table_of(*done.owner);
  co_await cpu.acquire(table.lock);
  co_await cpu.charge(CostId::GrantEntry);
  unpin(*done.owner, done.ref, done.flags);
  cpu.release(table.lock);
}

}  // namespace iommu::xen
