// SPDX-License-Identifier: Apache-2.0
// PV-IOMMU: the guest asks Xen for contexts and for every change in them, by hypercall. [PV-IOMMU RFC v7, and its Linux
// driver for the guest's side: one call for each contiguous piece, and every unmap flushes before it returns]
#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <vector>

#include "sim/strategy/strategy.hpp"

namespace iommu::strategy {

namespace {

using guest::DmaStatus;
using xen::abi::Subop;

DmaStatus to_dma_status(std::int64_t result) {
  if (result == 0) return DmaStatus::Ok;
  return result == static_cast<std::int64_t>(xen::Errno::NoMemory) ? DmaStatus::NoMemory : DmaStatus::Rejected;
}

// The guest's hypercall glue. Structures go through pages of guest memory, one for each call under way: a task that is
// preempted in its call must find its structure as it left it.
class IommuCalls {
 public:
  explicit IommuCalls(const StrategyEnvironment& environment) : environment_(environment) {}

  template <class T>
  struct Reply {
    std::int64_t status = 0;
    T argument{};
  };
  // The argument as Xen left it.
  template <class T>
  Task<Reply<T>> call(CpuPort& cpu, Subop subop, T argument) {
    Reply<T> reply;
    reply.status = static_cast<std::int64_t>(xen::Errno::NoMemory);
    const auto page = take_page();
    if (!page) co_return reply;
    GuestMemory& memory = environment_.domain.memory;
    memory.write(*page, std::as_bytes(std::span(&argument, 1)));
    reply.status =
        co_await environment_.hypercall.call(cpu, environment_.domain, static_cast<std::uint32_t>(subop), *page);
    if (!memory.read(*page, std::as_writable_bytes(std::span(&reply.argument, 1))))
      reply.status = static_cast<std::int64_t>(xen::Errno::BadAddress);
    free_pages_.push_back(*page);
    co_return reply;
  }

 private:
  std::optional<Gpa> take_page() {
    if (free_pages_.empty()) return environment_.pages.allocate();
    const Gpa page = free_pages_.back();
    free_pages_.pop_back();
    return page;
  }
  StrategyEnvironment environment_;
  std::vector<Gpa> free_pages_;
};

class PvSpace final : public guest::DmaSpace {
 public:
  PvSpace(IommuCalls& calls, std::uint16_t context, Iova last, bool deferred)
      : calls_(calls), context_(context), last_(last), deferred_(deferred) {}

  [[nodiscard]] bool can_defer() const override { return deferred_; }
  [[nodiscard]] Iova last_address() const override { return last_; }

  Task<DmaStatus> map(CpuPort& cpu, guest::MapSegment segment) override {
    if (!fits_in_call(segment.length)) co_return DmaStatus::Rejected;
    xen::abi::MapPages request;
    request.ctx_no = context_;
    request.gfn = Gfn(segment.address).value();
    request.dfn = Dfn(segment.iova).value();
    request.map_flags = (segment.permissions.read ? xen::abi::kMapReadable : 0U) |
                        (segment.permissions.write ? xen::abi::kMapWriteable : 0U);
    request.pgsize = static_cast<std::uint32_t>(kPageSize.value());
    request.nr_pages = static_cast<std::uint32_t>(segment.length.value() >> kPageLg2);
    const auto reply = co_await calls_.call(cpu, Subop::MapPages, request);
    co_return to_dma_status(reply.status);
  }
  Task<DmaStatus> sync_map(CpuPort&, guest::IovaRange) override { co_return DmaStatus::Ok; }

  Task<guest::UnmapGather> unmap(CpuPort& cpu, guest::IovaRange range, guest::Flush flush) override {
    guest::UnmapGather gather;
    gather.status = DmaStatus::Rejected;
    gather.range = range;
    if (!fits_in_call(range.length)) co_return gather;
    xen::abi::UnmapPages request;
    request.ctx_no = context_;
    request.dfn = Dfn(range.first).value();
    request.pgsize = static_cast<std::uint32_t>(kPageSize.value());
    request.nr_pages = static_cast<std::uint32_t>(range.pages());
    const bool later = deferred_ && flush == guest::Flush::Deferred;
    const auto reply = co_await calls_.call(cpu, later ? Subop::UnmapPagesDeferred : Subop::UnmapPages, request);
    gather.status = to_dma_status(reply.status);
    co_return gather;
  }
  // The hypercall has flushed.
  Task<void> sync(CpuPort&, guest::UnmapGather) override { co_return; }
  Task<void> flush_all(CpuPort& cpu) override {
    xen::abi::FlushContext request;
    request.ctx_no = context_;
    const auto reply = co_await calls_.call(cpu, Subop::FlushContext, request);
    static_cast<void>(reply);  // only a context that is gone can refuse, and then nothing is left to flush
  }
  void reclaim_tables(const std::vector<std::uint64_t>&) override {}

 private:
  // A call counts pages in 32 bits.
  static bool fits_in_call(Bytes length) {
    return length.value() >> kPageLg2 <= std::numeric_limits<std::uint32_t>::max();
  }

  IommuCalls& calls_;
  std::uint16_t context_;
  Iova last_;
  bool deferred_;
};

class PvIommu final : public DmaStrategy {
 public:
  explicit PvIommu(const StrategyEnvironment& environment) : environment_(environment), calls_(environment) {}

  // [Linux driver of the RFC: query; without contexts yet, initialise and query again]
  Task<xen::Errno> start(CpuPort& cpu) override {
    auto query = co_await calls_.call(cpu, Subop::QueryCapabilities, xen::abi::Capabilities{});
    if (query.status == 0 && query.argument.max_ctx_no == 0) {
      const xen::abi::Init init{.max_ctx_no = environment_.options.max_contexts,
                                .arena_order = environment_.options.arena_order};
      const auto initialised = co_await calls_.call(cpu, Subop::Init, init);
      if (initialised.status != 0) co_return static_cast<xen::Errno>(initialised.status);
      query = co_await calls_.call(cpu, Subop::QueryCapabilities, xen::abi::Capabilities{});
    }
    last_address_ = Iova(query.argument.max_iova_addr);
    co_return static_cast<xen::Errno>(query.status);
  }

  Task<guest::DmaSpace*> attach(CpuPort& cpu, RequesterId device) override {
    const auto made = co_await calls_.call(cpu, Subop::AllocContext, xen::abi::AllocContext{});
    if (made.status != 0) co_return nullptr;
    xen::abi::ReattachDevice move;
    move.ctx_no = made.argument.ctx_no;
    move.dev.bus = static_cast<std::uint8_t>(device.bus());
    move.dev.devfn = static_cast<std::uint8_t>(device.devfn());
    const auto moved = co_await calls_.call(cpu, Subop::ReattachDevice, move);
    if (moved.status != 0) {
      xen::abi::FreeContext unused;
      unused.ctx_no = made.argument.ctx_no;
      co_await calls_.call(cpu, Subop::FreeContext, unused);
      co_return nullptr;
    }
    spaces_.push_back(
        std::make_unique<PvSpace>(calls_, made.argument.ctx_no, last_address_, environment_.options.deferred_flush));
    co_return spaces_.back().get();
  }

 private:
  StrategyEnvironment environment_;
  IommuCalls calls_;
  Iova last_address_;
  std::vector<std::unique_ptr<PvSpace>> spaces_;
};

}  // namespace

const StrategyDescriptor kPvIommu{
    .name = "pv_iommu",
    .description = "the guest changes its I/O address spaces by hypercall",
    .host_driver = [](const UnitFeatures& host) { return DriverOptions{.features = host}; },
    .make = [](const StrategyEnvironment& environment) -> std::unique_ptr<DmaStrategy> {
      return std::make_unique<PvIommu>(environment);
    }};

}  // namespace iommu::strategy
