// SPDX-License-Identifier: Apache-2.0
// Spaces whose tables are the driver's own.
#include <algorithm>
#include <utility>

#include "sim/xen/virtio_spaces.hpp"

namespace iommu::xen {

std::uint64_t VirtioSpaces::table_page_sizes() const {
  std::uint64_t sizes = ~0ULL;
  for (std::size_t i = 0; i < xen_.units(); ++i) sizes &= xen_.unit(i).driver().page_sizes(TableKind::Stage1);
  return sizes;
}

Task<VirtioSpaces::Status> VirtioSpaces::make_nested(CpuPort& cpu, Space& space) {
  co_await charge_call(cpu);
  auto made = xen_.make_context(kPrivateNumber, ContextKind::Nested, xen_.heap());
  if (made.status != Errno::Ok) co_return to_status(made.status);
  space.context = made.context.get();
  domain_.private_contexts.push_back(std::move(made.context));
  const Errno status = co_await set_guest_stage1(cpu, xen_, domain_, *space.context, space.tables);
  co_return to_status(status);
}

// What cannot be made real leaves the tables that were there.
Task<VirtioSpaces::Status> VirtioSpaces::exchange_tables(CpuPort& cpu, Space& space, GuestStage1 tables) {
  co_await charge_call(cpu);
  const Errno status = co_await set_guest_stage1(cpu, xen_, domain_, *space.context, tables);
  if (status == Errno::Ok) {
    space.tables = tables;
  } else {
    space.context->stage1 = space.tables.root;
    space.context->stage1_entry = space.tables.entry;
  }
  co_return to_status(status);
}

Task<VirtioSpaces::Status> VirtioSpaces::invalidate(CpuPort& cpu, std::uint32_t space,
                                                    std::vector<InvalidationScope> scopes) {
  const auto found = spaces_.find(space);
  if (found == spaces_.end()) co_return Status::NoEntry;
  const Space& target = found->second;
  if (target.kind != SpaceKind::Tables) co_return Status::Invalid;
  co_await charge_call(cpu);
  Errno status = Errno::Ok;
  for (std::size_t unit = 0; unit < xen_.units(); ++unit) {
    const Errno answered = co_await invalidate_on(cpu, target, unit, scopes);
    if (answered != Errno::Ok) status = answered;
  }
  co_return to_status(status);
}

// Device TLBs last: a request under way could fill one from the unit's caches.
Task<Errno> VirtioSpaces::invalidate_on(CpuPort& cpu, const Space& space, std::size_t unit,
                                        std::vector<InvalidationScope> scopes) {
  const TableDriver& driver = xen_.unit(unit).driver();
  std::vector<InvalidationScope> caches;
  std::vector<InvalidationScope> device_tlbs;
  const auto add = [](std::vector<InvalidationScope>& to, const InvalidationScope& scope) {
    if (std::find(to.begin(), to.end(), scope) == to.end()) to.push_back(scope);
  };
  for (const RequesterId device : space.context->devices) {
    const auto assigned = domain_.devices.find(device);
    if (assigned == domain_.devices.end() || assigned->second.setting.unit != unit) continue;
    const DeviceSetting& setting = assigned->second.setting;
    for (const RequesterId function : setting.seen_ids()) {
      for (InvalidationScope scope : scopes) {
        if (scope.kind == InvalidationKind::ProcessContext) scope.requester = function;
        add(caches, driver.widen(in_host_tags(scope, function, space.context->tag_on(unit))));
        if (scope.kind != InvalidationKind::Iotlb || !setting.device_tlb) continue;
        const InvalidationScope remote{.kind = InvalidationKind::DeviceTlb, .range = scope.range};
        add(device_tlbs, driver.widen(in_host_tags(remote, function, space.context->tag_on(unit))));
      }
    }
  }
  Errno status = Errno::Ok;
  if (!caches.empty()) status = co_await xen_.unit(unit).invalidate(cpu, std::move(caches));
  if (status == Errno::Ok && !device_tlbs.empty())
    status = co_await xen_.unit(unit).invalidate(cpu, std::move(device_tlbs));
  co_return status;
}

}  // namespace iommu::xen
