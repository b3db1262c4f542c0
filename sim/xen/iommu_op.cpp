// SPDX-License-Identifier: Apache-2.0
#include "sim/xen/iommu_op.hpp"

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>
#include <span>
#include <type_traits>
#include <utility>

namespace iommu::xen {

namespace {
// Context numbers are 16 bits, 0 is the default context and all ones is reserved.
constexpr std::uint32_t kMostContexts = 0xfffe;
// The RFC's contexts map 4 KiB pages; larger leaves come from coalescing only.
constexpr std::uint32_t kPageSizes = 1U << kPageLg2;
constexpr unsigned kLargestArenaOrder = 18;  // Xen's MAX_ORDER

template <class T>
bool copy_in(const GuestMemory& memory, Gpa from, T& into) {
  static_assert(std::is_trivially_copyable_v<T>);
  return memory.read(from, std::as_writable_bytes(std::span(&into, 1)));
}
template <class T>
bool copy_out(GuestMemory& memory, Gpa to, const T& from) {
  static_assert(std::is_trivially_copyable_v<T>);
  return memory.write(to, std::as_bytes(std::span(&from, 1)));
}
}  // namespace

std::uint64_t IommuOp::Counters::total() const {
  return std::accumulate(by_subop.begin(), by_subop.end(), flush_context + unknown);
}

void IommuOp::count(std::uint32_t subop) {
  if (subop == static_cast<std::uint32_t>(abi::Subop::UnmapPagesDeferred))
    subop = static_cast<std::uint32_t>(abi::Subop::UnmapPages);
  if (subop < counters_.by_subop.size())
    ++counters_.by_subop[subop];
  else if (subop == static_cast<std::uint32_t>(abi::Subop::FlushContext))
    ++counters_.flush_context;
  else
    ++counters_.unknown;
}

Task<std::int64_t> IommuOp::call(CpuPort& cpu, Domain& caller, std::uint32_t subop, Gpa argument) {
  count(subop);
  co_await cpu.charge(CostId::Hypercall);
  const Errno status = co_await dispatch(cpu, {caller, caller, argument}, subop);
  co_return static_cast<std::int64_t>(status);
}

Task<Errno> IommuOp::dispatch(CpuPort& cpu, Call call, std::uint32_t subop) {
  const DomainSetting& target = call.target.setting;
  if (!target.has_iommu || !target.may_use_pv_iommu || xen_.units() == 0) co_return Errno::NoDevice;
  switch (static_cast<abi::Subop>(subop)) {
    case abi::Subop::Noop:
      co_return Errno::Ok;
    case abi::Subop::QueryCapabilities:
      co_return query(call);
    case abi::Subop::Init:
      co_return init(call);
    case abi::Subop::AllocContext:
      co_return alloc_context(call);
    case abi::Subop::FreeContext:
      co_return co_await free_context(cpu, call);
    case abi::Subop::ReattachDevice:
      co_return co_await reattach_device(cpu, call);
    case abi::Subop::MapPages:
      co_return co_await map_pages(cpu, call);
    case abi::Subop::UnmapPages:
      co_return co_await unmap_pages(cpu, call, UnmapFlush::Now);
    case abi::Subop::RemoteCommand:
      co_return co_await remote(cpu, call);
    case abi::Subop::UnmapPagesDeferred:
      if (deferred_ == DeferredFlush::Unavailable) co_return Errno::Unsupported;
      co_return co_await unmap_pages(cpu, call, UnmapFlush::Later);
    case abi::Subop::FlushContext:
      if (deferred_ == DeferredFlush::Unavailable) co_return Errno::Unsupported;
      co_return co_await flush_context(cpu, call);
    case abi::Subop::AllocNested:
    case abi::Subop::FlushNested:
    case abi::Subop::AttachPasid:
    case abi::Subop::DetachPasid:
      break;
  }
  co_return Errno::Unsupported;
}

Task<Errno> IommuOp::remote(CpuPort& cpu, Call call) {
  if (call.caller.setting.privilege != Privilege::HardwareDomain) co_return Errno::NotPermitted;
  abi::RemoteCommand command;
  if (!copy_in(call.caller.memory, call.argument, command)) co_return Errno::BadAddress;
  if (command.subop == static_cast<std::uint16_t>(abi::Subop::RemoteCommand)) co_return Errno::Invalid;
  Domain* target = xen_.find_domain(DomainId(command.domid));
  if (target == nullptr) co_return Errno::NoEntry;
  co_return co_await dispatch(cpu, {call.caller, *target, Gpa(command.arg)}, command.subop);
}

IoContext* IommuOp::guest_context(Domain& domain, std::uint16_t number) {
  if (!domain.pv || number == 0 || number > domain.pv->slots.size()) return nullptr;
  return domain.pv->slots[number - 1U].get();
}

Errno IommuOp::query(Call call) const {
  abi::Capabilities capabilities;
  capabilities.max_iova_addr = xen_.last_dfn().address().value() | (kPageSize.value() - 1);
  if (call.target.setting.default_context == DefaultContext::Identity)
    capabilities.cap_flags |= abi::kCapDefaultIdentity;
  capabilities.pgsize_mask = kPageSizes;
  capabilities.max_ctx_no = call.target.pv ? call.target.pv->contexts : std::uint16_t{0};
  return copy_out(call.caller.memory, call.argument, capabilities) ? Errno::Ok : Errno::BadAddress;
}

Errno IommuOp::init(Call call) {
  abi::Init init;
  if (!copy_in(call.caller.memory, call.argument, init)) return Errno::BadAddress;
  if (call.target.pv) return Errno::AccessDenied;
  if (init.max_ctx_no > kMostContexts) return Errno::TooBig;
  if (init.arena_order > kLargestArenaOrder) return Errno::NoMemory;
  PvState pv;
  pv.contexts = static_cast<std::uint16_t>(init.max_ctx_no);
  pv.arena_order = init.arena_order;
  // The RFC takes order 0 for "no arena": contexts can then not be allocated.
  if (init.arena_order != 0) {
    const auto frames = xen_.frames().allocate(init.arena_order);
    if (!frames) return Errno::NoMemory;
    pv.arena = std::make_unique<TableArena>(xen_.memory(), *frames, 1ULL << init.arena_order);
  }
  pv.slots.resize(pv.contexts);
  call.target.pv = std::move(pv);
  return Errno::Ok;
}

Errno IommuOp::alloc_context(Call call) {
  abi::AllocContext alloc;
  if (!copy_in(call.caller.memory, call.argument, alloc)) return Errno::BadAddress;
  if (alloc.alloc_flags != 0) return Errno::Unsupported;  // identity without its capability, or unknown
  if (!call.target.pv) return Errno::NoSpace;
  PvState& pv = *call.target.pv;
  const auto slot = std::find(pv.slots.begin(), pv.slots.end(), nullptr);
  if (slot == pv.slots.end()) return Errno::NoSpace;
  if (!pv.arena) return Errno::NoMemory;
  alloc.ctx_no = static_cast<std::uint16_t>(slot - pv.slots.begin() + 1);
  // Before anything changes: a number that cannot be told to the guest would be lost.
  if (!copy_out(call.caller.memory, call.argument, alloc)) return Errno::BadAddress;
  auto made = xen_.make_context(ContextNumber(alloc.ctx_no), ContextKind::Stage2, *pv.arena);
  if (made.status == Errno::Ok) *slot = std::move(made.context);
  return made.status;
}

Task<Errno> IommuOp::free_context(CpuPort& cpu, Call call) {
  abi::FreeContext request;
  if (!copy_in(call.caller.memory, call.argument, request)) co_return Errno::BadAddress;
  if (request.ctx_no == 0 || (request.free_flags & ~abi::kFreeReattachDefault) != 0) co_return Errno::Invalid;
  IoContext* context = guest_context(call.target, request.ctx_no);
  if (context == nullptr || context->dying) co_return Errno::NoEntry;
  const Errno doomed = co_await doom(cpu, *context, request.free_flags);
  if (doomed != Errno::Ok) co_return doomed;
  const Errno emptied = co_await move_to_default(cpu, call.target, *context);
  if (emptied != Errno::Ok) co_return emptied;
  const std::uint64_t slices =
      co_await xen_.destroy_context(cpu, call.target, std::move(call.target.pv->slots[request.ctx_no - 1U]));
  // Each further slice is a trap of its own.
  if (slices > 1) {
    counters_.continuations += slices - 1;
    co_await cpu.charge(CostId::Hypercall, slices - 1);
  }
  co_return Errno::Ok;
}

// From here on nobody may attach to it. Under its lock, because somebody may be about to.
Task<Errno> IommuOp::doom(CpuPort& cpu, IoContext& context, std::uint32_t free_flags) {
  co_await cpu.acquire(context.lock);
  Errno status = Errno::Ok;
  if (context.dying)
    status = Errno::NoEntry;
  else if (!context.devices.empty() && (free_flags & abi::kFreeReattachDefault) == 0)
    status = Errno::Busy;
  else
    context.dying = true;
  cpu.release(context.lock);
  co_return status;
}

// All devices of a dying context, or none: then it lives on.
Task<Errno> IommuOp::move_to_default(CpuPort& cpu, Domain& domain, IoContext& context) {
  std::vector<RequesterId> moved;
  while (!context.devices.empty()) {
    const RequesterId device = context.devices.front();
    const Errno status = co_await xen_.reattach(cpu, domain, device, *domain.default_context);
    if (status == Errno::Ok) {
      moved.push_back(device);
      continue;
    }
    const bool still_inside =
        std::find(context.devices.begin(), context.devices.end(), device) != context.devices.end();
    if (!still_inside) continue;  // somebody else moved it meanwhile
    context.dying = false;
    for (const RequesterId back : moved) {
      const Errno returned = co_await xen_.reattach(cpu, domain, back, context);
      if (returned != Errno::Ok) domain.crashed = domain.setting.privilege != Privilege::HardwareDomain;
    }
    co_return status;
  }
  co_return Errno::Ok;
}

Task<Errno> IommuOp::reattach_device(CpuPort& cpu, Call call) {
  abi::ReattachDevice request;
  if (!copy_in(call.caller.memory, call.argument, request)) co_return Errno::BadAddress;
  if (request.pasid != 0) co_return Errno::Unsupported;
  const RequesterId device(static_cast<std::uint16_t>(request.dev.bus << 8 | request.dev.devfn));
  if (request.dev.seg != 0 || !call.target.devices.contains(device)) co_return Errno::NoDevice;
  IoContext* context =
      request.ctx_no == 0 ? call.target.default_context.get() : guest_context(call.target, request.ctx_no);
  if (context == nullptr) co_return Errno::NoEntry;
  if (context->dying) co_return Errno::Invalid;
  co_return co_await xen_.reattach(cpu, call.target, device, *context);
}

Task<Errno> IommuOp::map_pages(CpuPort& cpu, Call call) {
  abi::MapPages request;
  if (!copy_in(call.caller.memory, call.argument, request)) co_return Errno::BadAddress;
  IoContext* context = guest_context(call.target, request.ctx_no);
  const Permissions permissions{.read = (request.map_flags & abi::kMapReadable) != 0,
                                .write = (request.map_flags & abi::kMapWriteable) != 0};
  const std::uint32_t known = abi::kMapReadable | abi::kMapWriteable | abi::kMapCache;
  if (context == nullptr || context->dying || permissions.none() || (request.map_flags & ~known) != 0 ||
      !std::has_single_bit(request.pgsize) || (request.pgsize & kPageSizes) == 0)
    co_return Errno::Invalid;
  Errno status = Errno::Ok;
  while (request.nr_pages != 0) {
    const auto slice =
        static_cast<std::uint32_t>(std::min<std::uint64_t>(request.nr_pages, xen_.options().slice_pages));
    const PagesDone done = co_await xen_.map_pages(cpu, call.target, call.target, *context, Gfn(request.gfn),
                                                   Dfn(request.dfn), slice, permissions);
    request.gfn += done.pages;
    request.dfn += done.pages;
    request.nr_pages -= static_cast<std::uint32_t>(done.pages);
    request.mapped += static_cast<std::uint32_t>(done.pages);
    status = done.status;
    if (status != Errno::Ok || request.nr_pages == 0) break;
    // Preempted: the guest executes the hypercall again, on the structure as it is now.
    if (!copy_out(call.caller.memory, call.argument, request)) co_return Errno::BadAddress;
    ++counters_.continuations;
    co_await cpu.charge(CostId::Hypercall);
    context = guest_context(call.target, request.ctx_no);
    if (context == nullptr || context->dying) co_return Errno::Invalid;
  }
  co_return copy_out(call.caller.memory, call.argument, request) ? status : Errno::BadAddress;
}

Task<Errno> IommuOp::unmap_pages(CpuPort& cpu, Call call, UnmapFlush flush) {
  abi::UnmapPages request;
  if (!copy_in(call.caller.memory, call.argument, request)) co_return Errno::BadAddress;
  IoContext* context = guest_context(call.target, request.ctx_no);
  if (context == nullptr || context->dying || !std::has_single_bit(request.pgsize) ||
      (request.pgsize & kPageSizes) == 0)
    co_return Errno::Invalid;
  Errno status = Errno::Ok;
  while (request.nr_pages != 0) {
    const std::uint64_t slice = std::min<std::uint64_t>(request.nr_pages, xen_.options().slice_pages);
    const PagesDone done = co_await xen_.unmap_pages(cpu, call.target, *context, Dfn(request.dfn), slice, flush);
    request.dfn += done.pages;
    request.nr_pages -= static_cast<std::uint32_t>(done.pages);
    request.unmapped += static_cast<std::uint32_t>(done.pages);
    status = done.status;
    if (status != Errno::Ok || request.nr_pages == 0) break;
    if (!copy_out(call.caller.memory, call.argument, request)) co_return Errno::BadAddress;
    ++counters_.continuations;
    co_await cpu.charge(CostId::Hypercall);
    context = guest_context(call.target, request.ctx_no);
    if (context == nullptr || context->dying) co_return Errno::Invalid;
  }
  co_return copy_out(call.caller.memory, call.argument, request) ? status : Errno::BadAddress;
}

Task<Errno> IommuOp::flush_context(CpuPort& cpu, Call call) {
  abi::FlushContext request;
  if (!copy_in(call.caller.memory, call.argument, request)) co_return Errno::BadAddress;
  IoContext* context = guest_context(call.target, request.ctx_no);
  if (context == nullptr || context->dying) co_return Errno::Invalid;
  co_await xen_.flush_context(cpu, call.target, *context);
  co_return Errno::Ok;
}

}  // namespace iommu::xen
