// SPDX-License-Identifier: Apache-2.0
#include "sim/xen/iommu_op.hpp"

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>
#include <utility>

#include "sim/xen/guest_copy.hpp"

namespace iommu::xen {

namespace {
constexpr unsigned k2MibLg2 = 21;
constexpr unsigned k1GibLg2 = 30;
}  // namespace

std::uint64_t IommuOp::Counters::total() const {
  return std::accumulate(by_subop.begin(), by_subop.end(),
                         flush_context + batch + map_scattered + query_buses + unknown);
}

void IommuOp::count(std::uint32_t subop) {
  if (subop == static_cast<std::uint32_t>(abi::Subop::UnmapPagesDeferred))
    subop = static_cast<std::uint32_t>(abi::Subop::UnmapPages);
  if (subop < counters_.by_subop.size())
    ++counters_.by_subop[subop];
  else if (subop == static_cast<std::uint32_t>(abi::Subop::FlushContext))
    ++counters_.flush_context;
  else if (subop == static_cast<std::uint32_t>(abi::Subop::Batch))
    ++counters_.batch;
  else if (subop == static_cast<std::uint32_t>(abi::Subop::MapScattered))
    ++counters_.map_scattered;
  else if (subop == static_cast<std::uint32_t>(abi::Subop::QueryBuses))
    ++counters_.query_buses;
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
      if (options_.deferred == DeferredFlush::Unavailable) co_return Errno::Unsupported;
      co_return co_await unmap_pages(cpu, call, UnmapFlush::Later);
    case abi::Subop::FlushContext:
      if (options_.deferred == DeferredFlush::Unavailable) co_return Errno::Unsupported;
      co_return co_await flush_context(cpu, call);
    case abi::Subop::Batch:
      if (options_.batching == Batching::Unavailable) co_return Errno::Unsupported;
      co_return co_await batch(cpu, call);
    case abi::Subop::MapScattered:
      if (options_.scattered == ScatteredMap::Unavailable) co_return Errno::Unsupported;
      co_return co_await map_scattered(cpu, call);
    case abi::Subop::QueryBuses:
      co_return options_.buses.is_all() ? Errno::Unsupported : query_buses(call);
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
  if (options_.deferred == DeferredFlush::Offered) capabilities.cap_flags |= abi::kCapDeferredFlush;
  if (options_.batching == Batching::Offered) capabilities.cap_flags |= abi::kCapBatch;
  if (options_.scattered == ScatteredMap::Offered) capabilities.cap_flags |= abi::kCapScatter;
  if (can_undo()) capabilities.cap_flags |= abi::kCapAllOrNothing;
  if (!options_.buses.is_all()) capabilities.cap_flags |= abi::kCapBuses;
  capabilities.pgsize_mask = page_sizes();
  capabilities.max_ctx_no = call.target.pv ? call.target.pv->contexts : std::uint16_t{0};
  return copy_out(call.caller.memory, call.argument, capabilities) ? Errno::Ok : Errno::BadAddress;
}

Errno IommuOp::query_buses(Call call) const {
  const BusRange range = buses_of(call.target);
  const abi::Buses buses{.first = range.first, .last = range.last};
  return copy_out(call.caller.memory, call.argument, buses) ? Errno::Ok : Errno::BadAddress;
}

BusRange IommuOp::buses_of(const Domain& domain) const {
  return domain.setting.privilege == Privilege::HardwareDomain ? BusRange{} : options_.buses;
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
  if (request.dev.seg != 0 || !PvContexts::owns(call.target, device)) co_return Errno::NoDevice;
  if (!buses_of(call.target).contains(request.dev.bus)) co_return Errno::NotPermitted;
  co_return co_await contexts_.reattach(cpu, call.target, device, request.ctx_no);
}

std::uint32_t IommuOp::page_sizes() const {
  constexpr std::uint32_t kSingle = 1U << kPageLg2;
  // Merging keeps its own account of the tables that a split will need.
  if (options_.page_order == PageOrder::Single || xen_.options().coalesce == Coalesce::Yes) return kSingle;
  for (std::size_t i = 0; i < xen_.units(); ++i)
    if (!xen_.unit(i).features().superpages) return kSingle;
  return kSingle | 1U << k2MibLg2 | 1U << k1GibLg2;
}

std::optional<unsigned> IommuOp::page_lg2(std::uint32_t pgsize) const {
  if (!std::has_single_bit(pgsize) || (pgsize & page_sizes()) == 0) return std::nullopt;
  return static_cast<unsigned>(std::countr_zero(pgsize));
}

bool IommuOp::can_undo() const {
  return options_.error_report == ErrorReport::Address && xen_.options().coalesce == Coalesce::No;
}

std::optional<IommuOp::MapFlags> IommuOp::map_flags_of(std::uint32_t map_flags) const {
  const std::uint32_t known =
      abi::kMapReadable | abi::kMapWriteable | abi::kMapCache | (can_undo() ? abi::kMapAllOrNothing : 0U);
  const Permissions permissions{.read = (map_flags & abi::kMapReadable) != 0,
                                .write = (map_flags & abi::kMapWriteable) != 0};
  if (permissions.none() || (map_flags & ~known) != 0) return std::nullopt;
  const bool undone = (map_flags & abi::kMapAllOrNothing) != 0;
  return MapFlags{permissions, undone ? PartialMap::Undone : PartialMap::Kept};
}

std::uint64_t IommuOp::slice_units(unsigned page_lg2) const {
  return std::max<std::uint64_t>(xen_.options().slice_pages >> (page_lg2 - kPageLg2), 1);
}

Task<void> IommuOp::continue_call(CpuPort& cpu) {
  ++counters_.continuations;
  co_await cpu.charge(CostId::Hypercall);
}

std::vector<SpinLock*> IommuOp::locks_of(Domain& domain, const IoContext& context) {
  std::vector<SpinLock*> locks;
  if (options_.lock == LockGranularity::Domain) locks.push_back(&domain.pv_lock);
  for (std::size_t i = 0; options_.lock == LockGranularity::Iommu && i < xen_.units(); ++i)
    if (xen_.uses_unit(domain, context, i)) locks.push_back(&xen_.unit(i).operation_lock());
  return locks;
}

// DEVIATION(pv-001): the context's own lock is taken inside a coarser one as well, for what else it protects; it costs
// a free lock more than a hypervisor that has the coarser one only.
Task<std::vector<PagesDone>> IommuOp::change(CpuPort& cpu, Domain& domain, IoContext& context,
                                             std::vector<PageOperation> operations, AfterRefusal after) {
  const std::vector<SpinLock*> locks = locks_of(domain, context);
  ++context.pins;
  for (SpinLock* lock : locks) co_await cpu.acquire(*lock);
  auto answers = co_await xen_.change_pages(cpu, domain, context, std::move(operations), after);
  const auto unanswered = [](const PagesDone& done) { return done.status == Errno::InputOutput; };
  if (std::any_of(answers.begin(), answers.end(), unanswered)) {
    const Errno status = co_await retry_flush(cpu, domain, context);
    for (PagesDone& done : answers)
      if (unanswered(done)) done.status = status == Errno::Ok ? done.after_flush : status;
  }
  for (SpinLock* lock : locks) cpu.release(*lock);
  --context.pins;
  co_return answers;
}

// A flush that a unit did not answer is tried again, each time in a continuation of its own; then the guest is told,
// and what it unmapped stays taken until a later flush succeeds.
Task<Errno> IommuOp::retry_flush(CpuPort& cpu, Domain& domain, IoContext& context) {
  constexpr int kRetries = 3;
  Errno status = Errno::InputOutput;
  for (int i = 0; i < kRetries && status != Errno::Ok; ++i) {
    co_await continue_call(cpu);
    status = co_await xen_.flush_context(cpu, domain, context);
  }
  co_return status;
}

Task<Errno> IommuOp::flush(CpuPort& cpu, Domain& domain, IoContext& context) {
  const std::vector<SpinLock*> locks = locks_of(domain, context);
  ++context.pins;
  for (SpinLock* lock : locks) co_await cpu.acquire(*lock);
  Errno status = co_await xen_.flush_context(cpu, domain, context);
  if (status != Errno::Ok) status = co_await retry_flush(cpu, domain, context);
  for (SpinLock* lock : locks) cpu.release(*lock);
  --context.pins;
  co_return status;
}

Task<Errno> IommuOp::map_pages(CpuPort& cpu, Call call) {
  abi::MapPages request;
  if (!copy_in(call.caller.memory, call.argument, request)) co_return Errno::BadAddress;
  IoContext* context = PvContexts::usable(call.target, request.ctx_no);
  const auto flags = map_flags_of(request.map_flags);
  const auto size = page_lg2(request.pgsize);
  if (context == nullptr || !flags || !size) co_return Errno::Invalid;
  const unsigned order = *size - kPageLg2;
  if (!is_aligned(request.gfn | request.dfn, order)) co_return Errno::Invalid;
  const bool whole = flags->partial == PartialMap::Undone;
  if (whole && std::uint64_t{request.nr_pages} << order > abi::kMostUndoablePages) co_return Errno::TooBig;
  Errno status = Errno::Ok;
  while (request.nr_pages != 0) {
    const std::uint64_t most = whole ? request.nr_pages : slice_units(*size);
    const std::uint64_t slice = std::min<std::uint64_t>(request.nr_pages, most);
    std::vector<PageOperation> one{PageOperation{.gfn = Gfn(request.gfn),
                                                 .dfn = Dfn(request.dfn),
                                                 .pages = slice << order,
                                                 .permissions = flags->permissions,
                                                 .page_lg2 = *size,
                                                 .partial = flags->partial}};
    const auto answers = co_await change(cpu, call.target, *context, std::move(one), AfterRefusal::Stop);
    const std::uint64_t done = answers.front().pages >> order;
    request.gfn += done << order;
    request.dfn += done << order;
    request.nr_pages -= static_cast<std::uint32_t>(done);
    request.mapped += static_cast<std::uint32_t>(done);
    request.dfn += answers.front().undone;
    status = answers.front().status;
    if (status != Errno::Ok || request.nr_pages == 0) break;
    if (!copy_out(call.caller.memory, call.argument, request)) co_return Errno::BadAddress;
    co_await continue_call(cpu);
    context = PvContexts::usable(call.target, request.ctx_no);
    if (context == nullptr) co_return Errno::Invalid;
  }
  co_return copy_out(call.caller.memory, call.argument, request) ? status : Errno::BadAddress;
}

// Pages of a larger size that were mapped in part are unmapped as far as they go, and not counted.
Task<Errno> IommuOp::unmap_pages(CpuPort& cpu, Call call, UnmapFlush flush) {
  using enum PageOperation::Kind;
  abi::UnmapPages request;
  if (!copy_in(call.caller.memory, call.argument, request)) co_return Errno::BadAddress;
  IoContext* context = PvContexts::usable(call.target, request.ctx_no);
  const auto size = page_lg2(request.pgsize);
  if (context == nullptr || !size) co_return Errno::Invalid;
  const unsigned order = *size - kPageLg2;
  if (!is_aligned(request.dfn, order)) co_return Errno::Invalid;
  Errno status = Errno::Ok;
  while (request.nr_pages != 0) {
    const std::uint64_t slice = std::min<std::uint64_t>(request.nr_pages, slice_units(*size));
    std::vector<PageOperation> one{PageOperation{.kind = flush == UnmapFlush::Later ? UnmapLater : Unmap,
                                                 .dfn = Dfn(request.dfn),
                                                 .pages = slice << order,
                                                 .page_lg2 = *size}};
    const auto answers = co_await change(cpu, call.target, *context, std::move(one), AfterRefusal::Stop);
    const std::uint64_t done = answers.front().pages >> order;
    request.dfn += done << order;
    request.nr_pages -= static_cast<std::uint32_t>(done);
    request.unmapped += static_cast<std::uint32_t>(done);
    status = answers.front().status;
    if (status != Errno::Ok || request.nr_pages == 0) break;
    if (!copy_out(call.caller.memory, call.argument, request)) co_return Errno::BadAddress;
    co_await continue_call(cpu);
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
  co_return co_await flush(cpu, call.target, *context);
}

}  // namespace iommu::xen
