// SPDX-License-Identifier: Apache-2.0
// PV-IOMMU: the guest asks Xen for contexts and for every change in them, by hypercall. [PV-IOMMU RFC v7, and its Linux
// driver for the guest's side: one call for each contiguous piece, and every unmap flushes before it returns]
#include <memory>
#include <vector>

#include "sim/strategy/identity_space.hpp"
#include "sim/strategy/pv_calls.hpp"
#include "sim/strategy/pv_space.hpp"
#include "sim/strategy/pv_v3.hpp"
#include "sim/strategy/strategy.hpp"

namespace iommu::strategy {

namespace {

using xen::abi::Subop;

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
    page_sizes_ = query.argument.pgsize_mask;
    if (query.status == 0 && (query.argument.cap_flags & xen::abi::kCapBuses) != 0) {
      const auto reply = co_await calls_.call(cpu, Subop::QueryBuses, xen::abi::Buses{});
      buses_ = {.first = reply.argument.first, .last = reply.argument.last};
      co_return static_cast<xen::Errno>(reply.status);
    }
    co_return static_cast<xen::Errno>(query.status);
  }

  Task<guest::DmaSpace*> attach(CpuPort& cpu, RequesterId device) override {
    if (!buses_.contains(device.bus())) co_return leave_in_default(device);
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
    const StrategyOptions& options = environment_.options;
    const PvSpaceSetting space{.context = made.argument.ctx_no,
                               .last = last_address_,
                               .page_sizes = page_sizes_,
                               .deferred_flush = options.deferred_flush,
                               .batch = options.batch,
                               .scatter = options.scatter,
                               .all_or_nothing = options.all_or_nothing};
    spaces_.push_back(make_pv_space(calls_, space));
    co_return spaces_.back().get();
  }

  [[nodiscard]] Addressing addressing(RequesterId device) const override {
    return buses_.contains(device.bus()) ? Addressing::Mapped : Addressing::GuestPhysical;
  }

 private:
  // Without a context of its own a device reaches the whole guest, if context 0 shows it.
  guest::DmaSpace* leave_in_default(RequesterId device) {
    const xen::Domain& domain = environment_.domain;
    if (!domain.devices.contains(device) || domain.setting.default_context != xen::DefaultContext::Identity)
      return nullptr;
    spaces_.push_back(std::make_unique<IdentitySpace>(Iova(domain.setting.memory.value() - 1)));
    return spaces_.back().get();
  }

  StrategyEnvironment environment_;
  IommuCalls calls_;
  xen::BusRange buses_;
  Iova last_address_;
  std::uint32_t page_sizes_ = 0;
  std::vector<std::unique_ptr<guest::DmaSpace>> spaces_;
};

}  // namespace

const StrategyDescriptor kPvIommu{
    .name = "pv_iommu",
    .description = "the guest changes its I/O address spaces by hypercall",
    .host_driver = [](const UnitFeatures& host, const StrategyOptions&) { return DriverOptions{.features = host}; },
    .make = [](const StrategyEnvironment& environment) -> std::unique_ptr<DmaStrategy> {
      if (environment.options.rfc_version == RfcVersion::V3) return make_pv_iommu_v3(environment);
      return std::make_unique<PvIommu>(environment);
    }};

}  // namespace iommu::strategy
