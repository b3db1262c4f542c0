// SPDX-License-Identifier: Apache-2.0
// The sub-operations that this project proposes beside the RFC's: many changes in one call. [proposals;
// iommu_op_abi.hpp]
#include <algorithm>
#include <bit>
#include <utility>

#include "sim/xen/guest_copy.hpp"
#include "sim/xen/iommu_op.hpp"

namespace iommu::xen {

namespace {

// Pages of guest memory that Xen maps to read or write so many bytes from an address on.
std::uint64_t guest_pages(Gpa first, std::uint64_t bytes) {
  return bytes == 0 ? 0 : (first.offset_in(kPageLg2) + bytes - 1) / kPageSize.value() + 1;
}

// Neighbouring frames of a list are one operation.
std::vector<PageOperation> runs_of(const std::vector<std::uint64_t>& frames, Dfn first, Permissions permissions) {
  std::vector<PageOperation> runs;
  for (std::size_t i = 0; i < frames.size(); ++i) {
    if (i != 0 && frames[i] == frames[i - 1] + 1)
      ++runs.back().pages;
    else
      runs.push_back({.gfn = Gfn(frames[i]), .dfn = first + i, .pages = 1, .permissions = permissions});
  }
  return runs;
}

}  // namespace

std::optional<PageOperation> IommuOp::operation_of(const abi::BatchOp& op) const {
  using enum PageOperation::Kind;
  const auto size = page_lg2(op.pgsize);
  if (!size || op.pad != 0) return std::nullopt;
  const unsigned order = *size - kPageLg2;
  PageOperation operation{.dfn = Dfn(op.dfn), .pages = std::uint64_t{op.nr_pages} << order, .page_lg2 = *size};
  switch (static_cast<abi::BatchKind>(op.kind)) {
    case abi::BatchKind::Map: {
      const auto flags = map_flags_of(op.map_flags);
      // Each operation has a status of its own.
      if (!flags || flags->partial == PartialMap::Undone || !is_aligned(op.gfn | op.dfn, order)) return std::nullopt;
      operation.gfn = Gfn(op.gfn);
      operation.permissions = flags->permissions;
      return operation;
    }
    case abi::BatchKind::Unmap:
    case abi::BatchKind::UnmapDeferred:
      if (!is_aligned(op.dfn, order) || op.map_flags != 0) return std::nullopt;
      operation.kind = op.kind == static_cast<std::uint16_t>(abi::BatchKind::Unmap) ? Unmap : UnmapLater;
      if (operation.kind == UnmapLater && options_.deferred == DeferredFlush::Unavailable) return std::nullopt;
      return operation;
  }
  return std::nullopt;
}

// Operations of one slice are those that together stay below its limit; one that is larger alone is several slices.
Task<Errno> IommuOp::batch(CpuPort& cpu, Call call) {
  abi::Batch request;
  if (!copy_in(call.caller.memory, call.argument, request)) co_return Errno::BadAddress;
  const bool flush_at_end = (request.flags & abi::kBatchFlushContext) != 0;
  if (PvContexts::usable(call.target, request.ctx_no) == nullptr || (request.flags & ~abi::kBatchFlushContext) != 0 ||
      request.pad != 0 || request.first > request.nr_ops ||
      (flush_at_end && options_.deferred == DeferredFlush::Unavailable))
    co_return Errno::Invalid;
  if (request.nr_ops > abi::kMostBatchOps) co_return Errno::TooBig;
  for (bool began = false; request.first < request.nr_ops; began = true) {
    if (began) {
      if (!copy_out(call.caller.memory, call.argument, request)) co_return Errno::BadAddress;
      co_await continue_call(cpu);
    }
    const Sliced slice = co_await batch_slice(cpu, call, request);
    if (slice.status != Errno::Ok) co_return slice.status;
    request.first += slice.operations;
  }
  if (flush_at_end) {
    IoContext* context = PvContexts::usable(call.target, request.ctx_no);
    if (context == nullptr) co_return Errno::Invalid;
    const Errno flushed = co_await flush(cpu, call.target, *context);
    if (flushed != Errno::Ok) co_return flushed;
  }
  co_return copy_out(call.caller.memory, call.argument, request) ? Errno::Ok : Errno::BadAddress;
}

Task<IommuOp::Sliced> IommuOp::batch_slice(CpuPort& cpu, Call call, abi::Batch request) {
  constexpr std::uint64_t kBytes = sizeof(abi::BatchOp);
  const auto address = [&](std::uint64_t index) { return Gpa(request.ops) + Bytes(index * kBytes); };
  std::vector<abi::BatchOp> ops;
  std::vector<PageOperation> operations;
  std::vector<std::size_t> sound;  // of the slice's, those that can be tried
  std::uint64_t pages = 0;
  for (std::uint32_t i = request.first; i < request.nr_ops; ++i) {
    abi::BatchOp op;
    if (!copy_in(call.caller.memory, address(i), op)) co_return Sliced{Errno::BadAddress, 0};
    const auto operation = operation_of(op);
    const std::uint64_t more = operation ? operation->pages : 0;
    if (!ops.empty() && (pages + more > xen_.options().slice_pages)) break;
    pages += more;
    op.done = 0;
    op.status = static_cast<std::int32_t>(operation ? Errno::Ok : Errno::Invalid);
    if (operation) {
      sound.push_back(ops.size());
      operations.push_back(*operation);
    }
    ops.push_back(op);
  }
  co_await cpu.charge(CostId::GuestPageAccess, guest_pages(address(request.first), ops.size() * kBytes));
  IoContext* context = PvContexts::usable(call.target, request.ctx_no);
  if (context == nullptr) co_return Sliced{Errno::Invalid, 0};
  counters_.batched_operations += ops.size();
  std::vector<PagesDone> answers(1);
  if (pages > xen_.options().slice_pages)
    answers.front() = co_await in_slices(cpu, call.target, request.ctx_no, operations.front());
  else
    answers = co_await change(cpu, call.target, *context, operations, AfterRefusal::GoOn);
  for (std::size_t i = 0; i < answers.size(); ++i) {
    abi::BatchOp& op = ops[sound[i]];
    op.done = static_cast<std::uint32_t>(answers[i].pages >> (operations[i].page_lg2 - kPageLg2));
    op.status = static_cast<std::int32_t>(answers[i].status);
  }
  for (std::size_t i = 0; i < ops.size(); ++i)
    if (!copy_out(call.caller.memory, address(request.first + i), ops[i])) co_return Sliced{Errno::BadAddress, 0};
  co_return Sliced{Errno::Ok, static_cast<std::uint32_t>(ops.size())};
}

// The operation's `done` is what a continuation goes on from.
Task<PagesDone> IommuOp::in_slices(CpuPort& cpu, Domain& domain, std::uint16_t context_number, PageOperation whole) {
  const std::uint64_t most = slice_units(whole.page_lg2) << (whole.page_lg2 - kPageLg2);
  PagesDone total;
  for (;;) {
    IoContext* context = PvContexts::usable(domain, context_number);
    if (context == nullptr) {
      total.status = Errno::Invalid;
      co_return total;
    }
    PageOperation part = whole;
    part.pages = std::min(whole.pages - total.pages, most);
    part.gfn = whole.gfn + total.pages;
    part.dfn = whole.dfn + total.pages;
    const auto answers = co_await change(cpu, domain, *context, {1, part}, AfterRefusal::Stop);
    total.pages += answers.front().pages;
    total.status = answers.front().status;
    if (total.status != Errno::Ok || total.pages == whole.pages) co_return total;
    co_await continue_call(cpu);
  }
}

Task<Errno> IommuOp::map_scattered(CpuPort& cpu, Call call) {
  abi::MapScattered request;
  if (!copy_in(call.caller.memory, call.argument, request)) co_return Errno::BadAddress;
  const auto flags = map_flags_of(request.map_flags);
  if (PvContexts::usable(call.target, request.ctx_no) == nullptr || !flags || flags->partial == PartialMap::Undone ||
      request.mapped > request.nr_frames)
    co_return Errno::Invalid;
  if (request.nr_frames > abi::kMostScatteredFrames) co_return Errno::TooBig;
  Errno status = Errno::Ok;
  while (request.mapped < request.nr_frames) {
    const std::uint64_t slice = std::min<std::uint64_t>(request.nr_frames - request.mapped, xen_.options().slice_pages);
    const Gpa list = Gpa(request.frames) + Bytes(sizeof(std::uint64_t) * request.mapped);
    std::vector<std::uint64_t> frames(slice);
    if (!copy_in(call.caller.memory, list, frames)) co_return Errno::BadAddress;
    co_await cpu.charge(CostId::GuestPageAccess, guest_pages(list, slice * sizeof(std::uint64_t)));
    IoContext* context = PvContexts::usable(call.target, request.ctx_no);
    if (context == nullptr) co_return Errno::Invalid;
    const auto answers =
        co_await change(cpu, call.target, *context,
                        runs_of(frames, Dfn(request.dfn) + request.mapped, flags->permissions), AfterRefusal::Stop);
    for (const PagesDone& run : answers) request.mapped += static_cast<std::uint32_t>(run.pages);
    status = answers.back().status;
    if (status != Errno::Ok || request.mapped == request.nr_frames) break;
    if (!copy_out(call.caller.memory, call.argument, request)) co_return Errno::BadAddress;
    co_await continue_call(cpu);
  }
  co_return copy_out(call.caller.memory, call.argument, request) ? status : Errno::BadAddress;
}

}  // namespace iommu::xen
