// SPDX-License-Identifier: Apache-2.0
#include "sim/xen/virtio_spaces.hpp"

#include <algorithm>
#include <utility>

#include "sim/base/check.hpp"

namespace iommu::xen {

namespace {
using virtio::RequestStatus;

Permissions permissions_of(std::uint32_t flags) {
  return {.read = (flags & virtio::kMapRead) != 0, .write = (flags & virtio::kMapWrite) != 0};
}
FrameType frame_type_of(std::uint32_t flags) {
  return (flags & virtio::kMapMmio) != 0 ? FrameType::Mmio : FrameType::Ram;
}
AddressRange bytes_of(const ReservedRegion& region) {
  return {region.first.address().value(), (region.first + region.pages).address().value() - 1};
}
}  // namespace

virtio::RequestStatus VirtioSpaces::to_status(Errno error) {
  switch (error) {
    case Errno::Ok:
      return RequestStatus::Ok;
    case Errno::NoDevice:
      return RequestStatus::NoEntry;
    case Errno::NoMemory:
    case Errno::NoSpace:
      return RequestStatus::NoMemory;
    case Errno::AddressNotAvailable:
      return RequestStatus::Invalid;  // no unit could be told so
    case Errno::AddressInUse:
      return RequestStatus::Unsupported;  // a reserved region of the endpoint is something else there
    default:
      return RequestStatus::DeviceError;
  }
}

VirtioSpaces::VirtioSpaces(Hypervisor& xen, Domain& domain, VirtioSpacesSetting setting)
    : xen_(xen), domain_(domain), setting_(std::move(setting)) {}

std::uint64_t VirtioSpaces::page_sizes() const {
  std::uint64_t sizes = ~0ULL;
  for (std::size_t i = 0; i < xen_.units(); ++i) sizes &= xen_.unit(i).driver().page_sizes(TableKind::Stage2);
  return sizes;
}

std::uint64_t VirtioSpaces::last_input() const { return xen_.last_dfn().address().value() | (kPageSize.value() - 1); }

const IoContext* VirtioSpaces::context_of(std::uint32_t space) const {
  const auto found = spaces_.find(space);
  return found == spaces_.end() ? nullptr : found->second.context;
}

VirtioSpaces::Endpoint* VirtioSpaces::find(std::uint32_t endpoint) {
  const auto found = std::find_if(endpoints_.begin(), endpoints_.end(),
                                  [&](const Endpoint& e) { return e.requester.value() == endpoint; });
  return found == endpoints_.end() ? nullptr : &*found;
}

// A user-space backend asks the kernel for each change; Xen's own needs no call.
Task<void> VirtioSpaces::charge_call(CpuPort& cpu) {
  if (setting_.placement == TrapTarget::DeviceModel) co_await cpu.charge(CostId::BackendCall);
}

// Endpoints -----------------------------------------------------------------------------------------------------------

Errno VirtioSpaces::make_blocked_context() {
  if (blocked_ != nullptr) return Errno::Ok;
  auto made = xen_.make_context(kPrivateNumber, ContextKind::Stage2, xen_.heap());
  if (made.status != Errno::Ok) return made.status;
  blocked_ = made.context.get();
  domain_.private_contexts.push_back(std::move(made.context));
  return Errno::Ok;
}

Task<Errno> VirtioSpaces::add_endpoint(CpuPort& cpu, RequesterId endpoint, EndpointKind kind) {
  if (kind == EndpointKind::Physical && !domain_.devices.contains(endpoint)) co_return Errno::NoDevice;
  if (find(endpoint.value()) != nullptr) co_return Errno::Busy;
  const Errno blocked = make_blocked_context();
  if (blocked != Errno::Ok) co_return blocked;
  endpoints_.push_back({endpoint, kind});
  co_await place_unattached(cpu, endpoints_.back());
  co_return Errno::Ok;
}

std::optional<std::vector<ReservedAddresses>> VirtioSpaces::reserved(std::uint32_t endpoint) const {
  const auto known = std::find_if(endpoints_.begin(), endpoints_.end(),
                                  [&](const Endpoint& e) { return e.requester.value() == endpoint; });
  if (known == endpoints_.end()) return std::nullopt;
  std::vector<ReservedAddresses> all;
  for (const AddressRange& window : setting_.interrupt_windows) all.push_back({window, virtio::ReservedMemory::Msi});
  const auto assigned = domain_.devices.find(known->requester);
  if (assigned != domain_.devices.end() && known->kind == EndpointKind::Physical)
    for (const ReservedRegion& region : assigned->second.setting.reserved) all.push_back({bytes_of(region)});
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.range.first < b.range.first; });
  return all;
}

Task<VirtioSpaces::Status> VirtioSpaces::move(CpuPort& cpu, Endpoint& endpoint, IoContext& context) {
  if (endpoint.kind == EndpointKind::Virtual) co_return Status::Ok;
  co_await charge_call(cpu);
  const Errno moved = co_await xen_.reattach(cpu, domain_, endpoint.requester, context);
  co_return to_status(moved);
}

Task<void> VirtioSpaces::place_unattached(CpuPort& cpu, Endpoint& endpoint) {
  IoContext& wanted = setting_.unattached == Unattached::Bypass ? *domain_.default_context : *blocked_;
  Status status = co_await move(cpu, endpoint, wanted);
  if (status != Status::Ok) status = co_await move(cpu, endpoint, *blocked_);
  // A device that can be neither served nor blocked must not go on running.
  if (status != Status::Ok && status != Status::NoEntry) domain_.crashed = true;
}

Task<void> VirtioSpaces::set_unattached(CpuPort& cpu, Unattached unattached) {
  setting_.unattached = unattached;
  for (Endpoint& endpoint : endpoints_)
    if (!endpoint.space) co_await place_unattached(cpu, endpoint);
}

Task<void> VirtioSpaces::detach_all(CpuPort& cpu) {
  for (Endpoint& endpoint : endpoints_)
    if (endpoint.space) co_await set_free(cpu, endpoint);
}

// Spaces --------------------------------------------------------------------------------------------------------------

Task<VirtioSpaces::Status> VirtioSpaces::attach(CpuPort& cpu, std::uint32_t space, std::uint32_t endpoint,
                                                SpaceKind kind, GuestStage1 tables) {
  Endpoint* known = find(endpoint);
  if (known == nullptr) co_return Status::NoEntry;
  const auto [entry, is_new] = spaces_.try_emplace(space, Space{.kind = kind, .tables = tables});
  Space& target = entry->second;
  if (target.kind != kind) co_return Status::Invalid;
  const bool is_inside = known->space == space;
  if (is_inside && kind == SpaceKind::Tables && target.endpoints == 1)
    co_return co_await exchange_tables(cpu, target, tables);
  if (target.tables != tables) co_return Status::Invalid;
  if (is_inside) co_return Status::Ok;
  const Status status = co_await enter(cpu, *known, target);
  if (status == Status::Ok) {
    const std::optional<std::uint32_t> left = std::exchange(known->space, space);
    ++target.endpoints;
    if (left && --spaces_.at(*left).endpoints == 0) co_await abandon(cpu, *left);
  } else if (is_new) {
    co_await abandon(cpu, space);
  }
  co_return status;
}

Task<VirtioSpaces::Status> VirtioSpaces::detach(CpuPort& cpu, std::uint32_t space, std::uint32_t endpoint) {
  Endpoint* known = find(endpoint);
  if (known == nullptr) co_return Status::NoEntry;
  if (known->space != space) co_return Status::Invalid;
  co_await set_free(cpu, *known);
  co_return Status::Ok;
}

// The last one out takes the space with it.
Task<void> VirtioSpaces::set_free(CpuPort& cpu, Endpoint& endpoint) {
  const std::uint32_t left = *std::exchange(endpoint.space, std::nullopt);
  co_await place_unattached(cpu, endpoint);
  if (--spaces_.at(left).endpoints == 0) co_await abandon(cpu, left);
}

// It is in its old space until it is in the new one: a refusal changes nothing.
Task<VirtioSpaces::Status> VirtioSpaces::enter(CpuPort& cpu, Endpoint& endpoint, Space& space) {
  const auto regions = reserved(endpoint.requester.value());
  const bool conflicts = std::any_of(regions->begin(), regions->end(), [&](const ReservedAddresses& region) {
    return has_mapping(space.mappings, region.range);
  });
  if (conflicts) co_return Status::Unsupported;
  // ASSUMPTION(virtio-006): software that translates for emulated devices reads no tables of guests.
  if (endpoint.kind == EndpointKind::Virtual)
    co_return space.kind == SpaceKind::Tables ? Status::Unsupported : Status::Ok;
  if (space.kind == SpaceKind::Bypass) co_return co_await move(cpu, endpoint, *domain_.default_context);
  if (space.context == nullptr) {
    Status made = Status::Ok;
    if (space.kind == SpaceKind::Tables)
      made = co_await make_nested(cpu, space);
    else
      made = co_await make_real(cpu, space);
    if (made != Status::Ok) co_return made;
  }
  co_return co_await move(cpu, endpoint, *space.context);
}

// A context for what is mapped already, all of it or none.
Task<VirtioSpaces::Status> VirtioSpaces::make_real(CpuPort& cpu, Space& space) {
  co_await charge_call(cpu);
  auto made = xen_.make_context(kPrivateNumber, ContextKind::Stage2, xen_.heap());
  if (made.status != Errno::Ok) co_return to_status(made.status);
  space.context = made.context.get();
  domain_.private_contexts.push_back(std::move(made.context));
  for (const auto& [first, mapping] : space.mappings) {
    const Status status = co_await install(cpu, space, first, mapping);
    if (status == Status::Ok) continue;
    co_await drop_context(cpu, *std::exchange(space.context, nullptr));
    co_return status;
  }
  co_return Status::Ok;
}

Task<void> VirtioSpaces::abandon(CpuPort& cpu, std::uint32_t space) {
  const auto gone = spaces_.extract(space);
  mappings_ -= gone.mapped().mappings.size();
  if (gone.mapped().context != nullptr) co_await drop_context(cpu, *gone.mapped().context);
}

Task<void> VirtioSpaces::drop_context(CpuPort& cpu, IoContext& context) {
  co_await charge_call(cpu);
  co_await cpu.acquire(context.lock);
  const bool is_empty = context.devices.empty();
  context.dying = is_empty;
  cpu.release(context.lock);
  if (!is_empty) co_return;  // a device could not be moved out, and its domain has crashed
  const auto own = std::find_if(domain_.private_contexts.begin(), domain_.private_contexts.end(),
                                [&](const auto& c) { return c.get() == &context; });
  std::unique_ptr<IoContext> dead = std::move(*own);
  domain_.private_contexts.erase(own);
  co_await xen_.destroy_context(cpu, domain_, std::move(dead));
}

// Mappings ------------------------------------------------------------------------------------------------------------

bool VirtioSpaces::has_mapping(const Mappings& mappings, AddressRange range) {
  const auto above = mappings.upper_bound(range.last);
  return above != mappings.begin() && std::prev(above)->second.last >= range.first;
}

bool VirtioSpaces::is_reserved(const Space& space, AddressRange range) const {
  return std::any_of(endpoints_.begin(), endpoints_.end(), [&](const Endpoint& endpoint) {
    if (!endpoint.space || &spaces_.at(*endpoint.space) != &space) return false;
    const auto regions = reserved(endpoint.requester.value());
    return std::any_of(regions->begin(), regions->end(), [&](const auto& r) { return r.range.overlaps(range); });
  });
}

VirtioSpaces::Status VirtioSpaces::check(const Space& space, const virtio::MapRequest& request) const {
  const std::uint64_t sizes = page_sizes();
  const std::uint64_t within_page = (sizes & -sizes) - 1;
  const std::uint64_t unaligned = request.virt_start | request.phys_start | (request.virt_end + 1);
  if ((unaligned & within_page) != 0) return Status::Range;
  if (request.virt_end < request.virt_start || request.virt_end > last_input()) return Status::Range;
  if (has_mapping(space.mappings, {request.virt_start, request.virt_end})) return Status::Invalid;
  if (is_reserved(space, {request.virt_start, request.virt_end})) return Status::Invalid;
  return mappings_ >= setting_.most_mappings ? Status::NoMemory : Status::Ok;
}

std::optional<VirtioSpaces::Backing> VirtioSpaces::backing(std::uint64_t first, const Mapping& mapping) const {
  Backing result;
  const std::uint64_t length = mapping.last - first;  // less one
  if (mapping.physical + length < mapping.physical) return std::nullopt;
  const unsigned entry_lg2 = domain_.setting.page_lg2 - kPageLg2;
  for (std::uint64_t at = first;;) {
    const auto entry = domain_.p2m.lookup(Gfn(Gpa(mapping.physical + (at - first))));
    if (!entry || entry->type != frame_type_of(mapping.flags)) return std::nullopt;
    const std::uint64_t left = ((mapping.last - at) >> kPageLg2) + 1;
    const std::uint64_t pages = std::min(entry->contiguous, left);
    const std::uint64_t last = at + ((pages << kPageLg2) - 1);
    result.pieces.push_back({{at, last}, entry->machine.address(), permissions_of(mapping.flags)});
    result.lookups += ((pages - 1) >> entry_lg2) + 1;
    if (last == mapping.last) return result;
    at = last + 1;
  }
}

Task<VirtioSpaces::Status> VirtioSpaces::map(CpuPort& cpu, virtio::MapRequest request) {
  const auto found = spaces_.find(request.domain);
  if (found == spaces_.end()) co_return Status::NoEntry;
  Space& space = found->second;
  if (space.kind != SpaceKind::Translated || permissions_of(request.flags).none()) co_return Status::Invalid;
  const Status checked = check(space, request);
  if (checked != Status::Ok) co_return checked;
  co_await cpu.charge(CostId::MappingTree);
  const Mapping mapping{request.virt_end, request.phys_start, request.flags};
  Status status = backing(request.virt_start, mapping) ? Status::Ok : Status::Fault;
  if (status == Status::Ok && space.context != nullptr)
    status = co_await install(cpu, space, request.virt_start, mapping);
  if (status != Status::Ok) co_return status;
  space.mappings.emplace(request.virt_start, mapping);
  ++mappings_;
  co_return Status::Ok;
}

// Makes a mapping real. On failure nothing of it is left.
Task<VirtioSpaces::Status> VirtioSpaces::install(CpuPort& cpu, Space& space, std::uint64_t first, Mapping mapping) {
  // Devices that move together bring regions of theirs which are no endpoint's here.
  const std::uint64_t pages = ((mapping.last - first) >> kPageLg2) + 1;
  if (space.context->is_reserved(Dfn(Iova(first)), pages)) co_return Status::Invalid;
  std::optional<Backing> memory = backing(first, mapping);
  if (!memory) co_return Status::Fault;
  const unsigned levels = space.context->table->root().top_level + 1U;
  co_await charge_call(cpu);
  co_await cpu.charge(CostId::P2mLookup, memory->lookups);
  co_await cpu.charge(CostId::TableRead, levels * memory->pieces.size());
  const Errno mapped = co_await xen_.replace_pages(cpu, domain_, *space.context, {}, std::move(memory->pieces));
  if (mapped == Errno::Ok) co_return Status::Ok;
  SIM_CHECK(mapped != Errno::AddressInUse, "the range holds neither a mapping nor a reserved region");
  // The first pages may be there; unmapping stops where they end.
  co_await xen_.replace_pages(cpu, domain_, *space.context, {1, AddressRange{first, mapping.last}}, {});
  co_return to_status(mapped);
}

Task<VirtioSpaces::Status> VirtioSpaces::unmap(CpuPort& cpu, virtio::UnmapRequest request) {
  const auto found = spaces_.find(request.domain);
  if (found == spaces_.end()) co_return Status::NoEntry;
  Space& space = found->second;
  if (space.kind != SpaceKind::Translated || request.reserved != 0) co_return Status::Invalid;
  if (request.virt_end < request.virt_start) co_return Status::Range;
  co_await cpu.charge(CostId::MappingTree);
  Mappings& mappings = space.mappings;
  const auto first = mappings.lower_bound(request.virt_start);
  const auto end = mappings.upper_bound(request.virt_end);
  // None is cut in two.
  const bool cuts_first = first != mappings.begin() && std::prev(first)->second.last >= request.virt_start;
  const bool cuts_last = end != mappings.begin() && std::prev(end)->first >= request.virt_start &&
                         std::prev(end)->second.last > request.virt_end;
  if (cuts_first || cuts_last) co_return Status::Range;
  std::vector<AddressRange> gone;
  for (auto at = first; at != end; at = mappings.erase(at)) gone.push_back({at->first, at->second.last});
  mappings_ -= gone.size();
  Status status = Status::Ok;
  if (!gone.empty() && space.context != nullptr) status = co_await remove(cpu, space, std::move(gone));
  co_return status;
}

// Invalidated on hardware when it returns.
Task<VirtioSpaces::Status> VirtioSpaces::remove(CpuPort& cpu, Space& space, std::vector<AddressRange> ranges) {
  const unsigned levels = space.context->table->root().top_level + 1U;
  co_await charge_call(cpu);
  co_await cpu.charge(CostId::TableRead, levels * ranges.size());
  const Errno status = co_await xen_.replace_pages(cpu, domain_, *space.context, std::move(ranges), {});
  // Whole mappings as they were entered: nothing has to be split, so nothing can fail for want of memory.
  SIM_CHECK(status == Errno::Ok || status == Errno::InputOutput, "what a space has mapped is in its context");
  co_return to_status(status);
}

std::variant<Gpa, virtio::FaultReason> VirtioSpaces::translate(RequesterId endpoint, Iova address,
                                                               Access access) const {
  const auto known =
      std::find_if(endpoints_.begin(), endpoints_.end(), [&](const Endpoint& e) { return e.requester == endpoint; });
  if (known == endpoints_.end()) return virtio::FaultReason::Domain;
  if (!known->space) {
    if (setting_.unattached == Unattached::Bypass) return Gpa(address.value());
    return virtio::FaultReason::Domain;
  }
  const Space& space = spaces_.at(*known->space);
  if (space.kind == SpaceKind::Bypass) return Gpa(address.value());
  const auto above = space.mappings.upper_bound(address.value());
  if (above == space.mappings.begin()) return virtio::FaultReason::Mapping;
  const auto& [first, mapping] = *std::prev(above);
  if (mapping.last < address.value() || !permissions_of(mapping.flags).allow(access))
    return virtio::FaultReason::Mapping;
  return Gpa(mapping.physical + (address.value() - first));
}

}  // namespace iommu::xen
