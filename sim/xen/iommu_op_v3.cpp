// SPDX-License-Identifier: Apache-2.0
#include "sim/xen/iommu_op_v3.hpp"

#include <algorithm>
#include <span>

namespace iommu::xen {

using abi_v3::Operation;

Task<std::int64_t> IommuOpV3::call(CpuPort& cpu, Domain& caller, Gpa argument) {
  co_await cpu.charge(CostId::Hypercall);
  Errno status = Errno::Ok;
  Operation operation;
  if (caller.setting.privilege != Privilege::HardwareDomain || !caller.setting.has_iommu || xen_.units() == 0)
    status = Errno::NotPermitted;
  else if (!caller.memory.read(argument, std::as_writable_bytes(std::span(&operation, 1))))
    status = Errno::BadAddress;
  if (status != Errno::Ok) {
    ++counters_.unknown;
    co_return static_cast<std::int64_t>(status);
  }
  if (operation.subop_id < counters_.by_subop.size())
    ++counters_.by_subop[operation.subop_id];
  else
    ++counters_.unknown;
  // One lock per domain, held over the whole operation.
  co_await cpu.acquire(caller.pv_lock);
  status = co_await dispatch(cpu, caller, operation);
  cpu.release(caller.pv_lock);
  if (!caller.memory.write(argument, std::as_bytes(std::span(&operation, 1)))) status = Errno::BadAddress;
  co_return static_cast<std::int64_t>(status);
}

Task<Errno> IommuOpV3::dispatch(CpuPort& cpu, Domain& caller, Operation& operation) {
  switch (static_cast<abi_v3::Subop>(operation.subop_id)) {
    case abi_v3::Subop::Noop:
      co_return Errno::Ok;
    case abi_v3::Subop::QueryCapabilities:
      query(caller, operation);
      co_return Errno::Ok;
    case abi_v3::Subop::AllocContext:
      co_return alloc(caller, operation);
    case abi_v3::Subop::FreeContext: {
      if (operation.ctx_no == 0) co_return Errno::Invalid;
      const auto occupied = (operation.flags & abi_v3::kTeardownReattachDefault) != 0
                                ? OccupiedContext::MoveDevicesToDefault
                                : OccupiedContext::Refuse;
      const PvContexts::Freed freed = co_await contexts_.free(cpu, caller, operation.ctx_no, occupied);
      co_return freed.status;
    }
    case abi_v3::Subop::ReattachDevice: {
      const abi_v3::Device device = operation.device;
      const RequesterId requester(static_cast<std::uint16_t>(device.bus << 8 | device.devfn));
      if (device.seg != 0 || !PvContexts::owns(caller, requester)) co_return Errno::NoEntry;
      co_return co_await contexts_.reattach(cpu, caller, requester, operation.ctx_no);
    }
    case abi_v3::Subop::MapPages:
      co_return co_await map(cpu, caller, operation);
    case abi_v3::Subop::UnmapPages:
      co_return co_await unmap(cpu, caller, operation);
    case abi_v3::Subop::LookupPage:
      co_return co_await lookup(cpu, caller, operation);
  }
  co_return Errno::Invalid;
}

void IommuOpV3::query(const Domain& caller, Operation& operation) const {
  operation.query = {.max_ctx_no = caller.pv ? caller.pv->contexts : std::uint16_t{0},
                     .pad = 0,
                     .max_nr_pages = abi_v3::kMostPages,
                     .max_iova_addr = abi_v3::kLastAddress};
}

Errno IommuOpV3::alloc(Domain& caller, Operation& operation) {
  const PvContexts::Numbered next = PvContexts::next_number(caller);
  if (next.status != Errno::Ok) return next.status;
  operation.ctx_no = next.number;
  return contexts_.allocate(caller, next.number);
}

Task<Errno> IommuOpV3::map(CpuPort& cpu, Domain& caller, Operation& operation) {
  abi_v3::MapPages& request = operation.map_pages;
  request.mapped = 0;
  const Permissions permissions{.read = (operation.flags & abi_v3::kReadable) != 0,
                                .write = (operation.flags & abi_v3::kWriteable) != 0};
  IoContext* context = PvContexts::usable(caller, operation.ctx_no);
  if (context == nullptr || permissions.none()) co_return Errno::Invalid;
  if (request.nr_pages > abi_v3::kMostPages) co_return Errno::TooBig;
  const Dfn limit{Iova(abi_v3::kLastAddress)};
  if (Dfn(request.dfn) > limit) co_return Errno::AddressNotAvailable;
  const std::uint64_t pages = std::min<std::uint64_t>(request.nr_pages, limit.value() - request.dfn + 1);
  const PagesDone done =
      co_await xen_.map_pages(cpu, caller, *context, Gfn(request.gfn), Dfn(request.dfn), pages, permissions);
  request.mapped = static_cast<std::uint32_t>(done.pages);
  if (done.status == Errno::Ok && pages < request.nr_pages) co_return Errno::AddressNotAvailable;
  co_return done.status;
}

Task<Errno> IommuOpV3::unmap(CpuPort& cpu, Domain& caller, Operation& operation) {
  abi_v3::UnmapPages& request = operation.unmap_pages;
  request.unmapped = 0;
  IoContext* context = PvContexts::usable(caller, operation.ctx_no);
  if (context == nullptr) co_return Errno::Invalid;
  if (request.nr_pages > abi_v3::kMostPages) co_return Errno::TooBig;
  const PagesDone done =
      co_await xen_.unmap_pages(cpu, caller, *context, Dfn(request.dfn), request.nr_pages, UnmapFlush::Now);
  request.unmapped = static_cast<std::uint32_t>(done.pages);
  co_return done.status;
}

Task<Errno> IommuOpV3::lookup(CpuPort& cpu, Domain& caller, Operation& operation) {
  IoContext* context = PvContexts::usable(caller, operation.ctx_no);
  if (context == nullptr) co_return Errno::Invalid;
  abi_v3::LookupPage& request = operation.lookup_page;
  co_await cpu.acquire(context->lock);
  std::optional<MappedLeaf> leaf;
  if (!context->dying && Dfn(request.dfn) <= xen_.last_dfn())
    leaf = context->table->lookup(Dfn(request.dfn).address().value());
  cpu.release(context->lock);
  co_await cpu.charge(CostId::TableRead, xen_.units());
  if (!leaf) co_return Errno::NoEntry;
  const Mfn frame(Hpa(leaf->output + (Dfn(request.dfn).address().value() - leaf->input)));
  const auto gfn = caller.p2m.frame_of(frame);
  if (!gfn) co_return Errno::NoEntry;
  request.gfn = gfn->value();
  co_return Errno::Ok;
}

}  // namespace iommu::xen
