// SPDX-License-Identifier: Apache-2.0
#include "sim/strategy/pv_v3.hpp"

#include <algorithm>
#include <vector>

#include "sim/strategy/pv_calls.hpp"

namespace iommu::strategy {

namespace {

using guest::DmaStatus;
using xen::abi_v3::Operation;
using xen::abi_v3::Subop;

Operation operation(Subop subop, std::uint16_t context = 0) {
  Operation op;
  op.subop_id = static_cast<std::uint16_t>(subop);
  op.ctx_no = context;
  return op;
}

// DEVIATION(pv-002): the first Linux driver filled buffers of 32 operations for the prototype's array of them, ignored
// their errors and claimed the whole size; v1 to v3 take one operation, so this driver calls for each 256 pages, and
// what Xen refuses is an error. [LD0, TSnake41/linux xen-iommu.c; RFC v3 public header]
class PvSpaceV3 final : public guest::DmaSpace {
 public:
  PvSpaceV3(IommuCalls& calls, std::uint16_t context, Iova last, std::uint32_t most_pages)
      : calls_(calls), context_(context), last_(last), most_pages_(most_pages) {}

  // Every unmap has flushed when it returns; there is no call for a flush.
  [[nodiscard]] bool can_defer() const override { return false; }
  [[nodiscard]] Iova last_address() const override { return last_; }

  Task<DmaStatus> map(CpuPort& cpu, guest::MapSegment segment) override {
    for (Bytes done; done < segment.length;) {
      Operation op = operation(Subop::MapPages, context_);
      op.flags = (segment.permissions.read ? xen::abi_v3::kReadable : 0U) |
                 (segment.permissions.write ? xen::abi_v3::kWriteable : 0U);
      op.map_pages = {.gfn = Gfn(segment.address + done).value(),
                      .dfn = Dfn(segment.iova + done).value(),
                      .nr_pages = pages_of(segment.length - done)};
      done += kPageSize * op.map_pages.nr_pages;
      const auto reply = co_await calls_.call(cpu, op);
      if (reply.status != 0) co_return to_dma_status(reply.status);
    }
    co_return DmaStatus::Ok;
  }
  Task<DmaStatus> sync_map(CpuPort&, guest::IovaRange) override { co_return DmaStatus::Ok; }

  Task<guest::UnmapGather> unmap(CpuPort& cpu, guest::IovaRange range, guest::Flush) override {
    guest::UnmapGather gather;
    gather.range = range;
    for (Bytes done; done < range.length && gather.status == DmaStatus::Ok;) {
      Operation op = operation(Subop::UnmapPages, context_);
      op.unmap_pages = {.dfn = Dfn(range.first + done).value(), .nr_pages = pages_of(range.length - done)};
      done += kPageSize * op.unmap_pages.nr_pages;
      const auto reply = co_await calls_.call(cpu, op);
      gather.status = to_dma_status(reply.status);
    }
    co_return gather;
  }
  Task<void> sync(CpuPort&, guest::UnmapGather) override { co_return; }
  Task<void> flush_all(CpuPort&) override { co_return; }
  void reclaim_tables(const std::vector<std::uint64_t>&) override {}

 private:
  [[nodiscard]] std::uint32_t pages_of(Bytes rest) const {
    return static_cast<std::uint32_t>(std::min<std::uint64_t>(rest.value() >> kPageLg2, most_pages_));
  }
  IommuCalls& calls_;
  std::uint16_t context_;
  Iova last_;
  std::uint32_t most_pages_;
};

class PvIommuV3 final : public DmaStrategy {
 public:
  explicit PvIommuV3(const StrategyEnvironment& environment) : calls_(environment) {}

  // The number of contexts was fixed at boot; what is asked for is only what Xen's limits are.
  Task<xen::Errno> start(CpuPort& cpu) override {
    const auto reply = co_await calls_.call(cpu, operation(Subop::QueryCapabilities));
    limits_ = reply.argument.query;
    if (reply.status == 0 && limits_.max_nr_pages == 0) co_return xen::Errno::Invalid;
    co_return static_cast<xen::Errno>(reply.status);
  }
  Task<guest::DmaSpace*> attach(CpuPort& cpu, RequesterId device) override {
    const auto made = co_await calls_.call(cpu, operation(Subop::AllocContext));
    if (made.status != 0) co_return nullptr;
    const std::uint16_t context = made.argument.ctx_no;
    Operation move = operation(Subop::ReattachDevice, context);
    move.device = {
        .seg = 0, .bus = static_cast<std::uint8_t>(device.bus()), .devfn = static_cast<std::uint8_t>(device.devfn())};
    const auto moved = co_await calls_.call(cpu, move);
    if (moved.status != 0) {
      co_await calls_.call(cpu, operation(Subop::FreeContext, context));
      co_return nullptr;
    }
    spaces_.push_back(std::make_unique<PvSpaceV3>(calls_, context, Iova(limits_.max_iova_addr), limits_.max_nr_pages));
    co_return spaces_.back().get();
  }

 private:
  IommuCalls calls_;
  xen::abi_v3::Query limits_;
  std::vector<std::unique_ptr<guest::DmaSpace>> spaces_;
};

}  // namespace

std::unique_ptr<DmaStrategy> make_pv_iommu_v3(const StrategyEnvironment& environment) {
  return std::make_unique<PvIommuV3>(environment);
}

}  // namespace iommu::strategy
