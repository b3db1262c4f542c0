// SPDX-License-Identifier: Apache-2.0
// Changes of a domain's memory while devices use it.
#include "sim/xen/hypervisor.hpp"

namespace iommu::xen {

namespace {
bool shows_memory(const Domain& domain) {
  return domain.default_context && domain.setting.default_context == DefaultContext::Identity &&
         domain.setting.hardware_mode == HardwareDomainMode::Strict;
}
AddressRange bytes_of(Gfn first, std::uint64_t pages) {
  return {first.address().value(), first.address().value() + (pages << kPageLg2) - 1};
}
}  // namespace

Task<Errno> Hypervisor::add_memory(CpuPort& cpu, Domain& domain, P2mExtent extent) {
  co_await cpu.acquire(domain.p2m_lock);
  Errno status = domain.p2m.add(extent) ? Errno::Ok : Errno::AddressInUse;
  co_await cpu.charge(CostId::P2mLookup);
  if (status == Errno::Ok && shows_memory(domain)) {
    IoContext& context = *domain.default_context;
    co_await cpu.acquire(context.lock);
    const AddressRange range = bytes_of(extent.first, extent.pages);
    TableEdit edit = context.table->map({.input = range.first,
                                         .output = extent.machine.address().value(),
                                         .length = kPageSize * extent.pages,
                                         .permissions = kReadWrite,
                                         .max_page_lg2 = domain.setting.page_lg2});
    status = to_errno(edit.status);
    if (status != Errno::Ok) {
      domain.p2m.remove(extent.first, extent.pages);
      const Bytes mapped = kPageSize * edit.pages_done;
      if (edit.pages_done != 0) edit.merge(context.table->unmap(range.first, mapped, ReclaimTables::WhenEmpty));
    }
    co_await charge_edit(cpu, edit);
    const Errno flushed = co_await flush_edit(cpu, domain, context, range, edit);
    if (status == Errno::Ok) status = flushed;
    cpu.release(context.lock);
  }
  cpu.release(domain.p2m_lock);
  co_return status;
}

Task<Errno> Hypervisor::remove_memory(CpuPort& cpu, Domain& domain, Gfn first, std::uint64_t pages) {
  co_await cpu.acquire(domain.p2m_lock);
  Errno status = Errno::Ok;
  for (std::uint64_t done = 0; done < pages && status == Errno::Ok;) {
    const auto entry = domain.p2m.lookup(first + done);
    if (entry)
      done += entry->contiguous;
    else
      status = Errno::NoEntry;
  }
  co_await cpu.charge(CostId::P2mLookup);
  if (status == Errno::Ok && pages != 0) {
    domain.p2m.remove(first, pages);
    co_await cpu.charge(CostId::TlbShootdown);  // before the IOMMUs: [p2m-ept.c, ept_sync_domain() in ept_set_entry()]
    if (shows_memory(domain)) {
      IoContext& context = *domain.default_context;
      co_await cpu.acquire(context.lock);
      const AddressRange range = bytes_of(first, pages);
      const TableEdit edit = context.table->unmap(range.first, kPageSize * pages, ReclaimTables::WhenEmpty);
      status = to_errno(edit.status);
      co_await charge_edit(cpu, edit);
      const Errno flushed = co_await flush_edit(cpu, domain, context, range, edit);
      if (status == Errno::Ok) status = flushed;
      cpu.release(context.lock);
    }
  }
  cpu.release(domain.p2m_lock);
  co_return status;
}

}  // namespace iommu::xen
