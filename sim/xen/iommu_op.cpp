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
// The RFC's contexts map 4 KiB pages; larger leaves come from coalescing only.
constexpr std::uint32_t kPageSizes = 1U << kPageLg2;

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
  return contexts_.init(call.target, init.max_ctx_no, init.arena_order);
}

Errno IommuOp::alloc_context(Call call) {
  abi::AllocContext alloc;
  if (!copy_in(call.caller.memory, call.argument, alloc)) return Errno::BadAddress;
  if (alloc.alloc_flags != 0) return Errno::Unsupported;  // identity without its capability, or unknown
  const PvContexts::Numbered next = PvContexts::next_number(call.target);
  if (next.status != Errno::Ok) return next.status;
  alloc.ctx_no = next.number;
  // Before anything changes: a number that cannot be told to the guest would be lost.
  if (!copy_out(call.caller.memory, call.argument, alloc)) return Errno::BadAddress;
  return contexts_.allocate(call.target, next.number);
}

Task<Errno> IommuOp::free_context(CpuPort& cpu, Call call) {
  abi::FreeContext request;
  if (!copy_in(call.caller.memory, call.argument, request)) co_return Errno::BadAddress;
  if (request.ctx_no == 0 || (request.free_flags & ~abi::kFreeReattachDefault) != 0) co_return Errno::Invalid;
  const auto occupied = (request.free_flags & abi::kFreeReattachDefault) != 0 ? OccupiedContext::MoveDevicesToDefault
                                                                              : OccupiedContext::Refuse;
  const PvContexts::Freed freed = co_await contexts_.free(cpu, call.target, request.ctx_no, occupied);
  // Each further slice is a trap of its own.
  if (freed.slices > 1) {
    counters_.continuations += freed.slices - 1;
    co_await cpu.charge(CostId::Hypercall, freed.slices - 1);
  }
  co_return freed.status;
}

Task<Errno> IommuOp::reattach_device(CpuPort& cpu, Call call) {
  abi::ReattachDevice request;
  if (!copy_in(call.caller.memory, call.argument, request)) co_return Errno::BadAddress;
  if (request.pasid != 0) co_return Errno::Unsupported;
  const RequesterId device(static_cast<std::uint16_t>(request.dev.bus << 8 | request.dev.devfn));
  if (request.dev.seg != 0 || !call.target.devices.contains(device)) co_return Errno::NoDevice;
  co_return co_await contexts_.reattach(cpu, call.target, device, request.ctx_no);
}

Task<Errno> IommuOp::map_pages(CpuPort& cpu, Call call) {
  abi::MapPages request;
  if (!copy_in(call.caller.memory, call.argument, request)) co_return Errno::BadAddress;
  IoContext* context = PvContexts::usable(call.target, request.ctx_no);
  const Permissions permissions{.read = (request.map_flags & abi::kMapReadable) != 0,
                                .write = (request.map_flags & abi::kMapWriteable) != 0};
  const std::uint32_t known = abi::kMapReadable | abi::kMapWriteable | abi::kMapCache;
  if (context == nullptr || permissions.none() || (request.map_flags & ~known) != 0 ||
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
    context = PvContexts::usable(call.target, request.ctx_no);
    if (context == nullptr) co_return Errno::Invalid;
  }
  co_return copy_out(call.caller.memory, call.argument, request) ? status : Errno::BadAddress;
}

Task<Errno> IommuOp::unmap_pages(CpuPort& cpu, Call call, UnmapFlush flush) {
  abi::UnmapPages request;
  if (!copy_in(call.caller.memory, call.argument, request)) co_return Errno::BadAddress;
  IoContext* context = PvContexts::usable(call.target, request.ctx_no);
  if (context == nullptr || !std::has_single_bit(request.pgsize) || (request.pgsize & kPageSizes) == 0)
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
    context = PvContexts::usable(call.target, request.ctx_no);
    if (context == nullptr) co_return Errno::Invalid;
  }
  co_return copy_out(call.caller.memory, call.argument, request) ? status : Errno::BadAddress;
}

Task<Errno> IommuOp::flush_context(CpuPort& cpu, Call call) {
  abi::FlushContext request;
  if (!copy_in(call.caller.memory, call.argument, request)) co_return Errno::BadAddress;
  IoContext* context = PvContexts::usable(call.target, request.ctx_no);
  if (context == nullptr) co_return Errno::Invalid;
  co_await xen_.flush_context(cpu, call.target, *context);
  co_return Errno::Ok;
}

}  // namespace iommu::xen
