// SPDX-License-Identifier: Apache-2.0
#include "sim/xen/nested_translation.hpp"

#include <optional>
#include <utility>

#include "sim/base/check.hpp"

namespace iommu::xen {

namespace {
// A guest's scope as it concerns one device, in the host's tags; nullopt: it does not concern it.
std::optional<InvalidationScope> translated(const InvalidationScope& scope, RequesterId device, const Context& guest,
                                            DomainTag host) {
  const CacheTags tags{.domain = guest.domain, .asid = guest.asid, .requester = device, .is_global = true};
  if (!matches(scope, tags)) return std::nullopt;
  const bool is_device_tlb = scope.kind == InvalidationKind::DeviceTlb;
  if (is_device_tlb && scope.requester && *scope.requester != device) return std::nullopt;
  return in_host_tags(scope, device, host);
}
}  // namespace

Task<Errno> NestedTranslation::adopt(CpuPort& cpu, Device& device, const Context& guest) {
  co_return co_await set_guest_stage1(cpu, xen_, domain_, *device.translation, {guest.stage1, guest.stage1_entry});
}

Task<void> NestedTranslation::invalidate_translations(CpuPort& cpu, std::vector<InvalidationScope> scopes) {
  for (std::size_t unit = 0; unit < xen_.units(); ++unit) {
    std::vector<InvalidationScope> host;
    for (const auto& device : devices_) {
      const auto assigned = domain_.devices.find(device->requester);
      if (!device->guest || assigned == domain_.devices.end() || assigned->second.setting.unit != unit) continue;
      for (const InvalidationScope& scope : scopes) {
        if (scope.kind == InvalidationKind::DeviceTlb && !assigned->second.setting.device_tlb) continue;
        const auto mine = translated(scope, device->requester, *device->guest, device->translation->tag_on(unit));
        if (mine) host.push_back(xen_.unit(unit).driver().widen(*mine));
      }
    }
    const Errno flushed = co_await xen_.unit(unit).invalidate(cpu, std::move(host));
    if (flushed != Errno::Ok) crash_guest(domain_);  // its own unit cannot say that nobody answered
  }
}

// Rings ---------------------------------------------------------------------------------------------------------------

Task<Errno> NestedTranslation::open_queues(CpuPort& cpu) {
  SIM_CHECK(!queues_ && devices_.empty(), "rings are opened once, before there are translations");
  if (domain_.devices.empty()) co_return Errno::NoDevice;
  const std::size_t unit = domain_.devices.begin()->second.setting.unit;
  for (const auto& [requester, assigned] : domain_.devices)
    if (assigned.setting.unit != unit) co_return Errno::Unsupported;
  if (xen_.unit(unit).driver().queues() == nullptr) co_return Errno::Unsupported;
  const Errno made = keep(xen_.make_context(next_number(), kind(), xen_.heap()));
  if (made != Errno::Ok) co_return made;
  IoContext& owner = *domain_.private_contexts.back();
  auto queues = std::make_unique<GuestQueues>(xen_, domain_, xen_.unit(unit));
  const Errno opened = co_await queues->open(cpu, owner.tag_on(unit));
  if (opened != Errno::Ok) co_return opened;
  owner_ = &owner;
  queues_ = std::move(queues);
  co_return Errno::Ok;
}

Task<void> NestedTranslation::close_queues(CpuPort& cpu) {
  if (queues_) co_await queues_->close(cpu);
}

Task<void> NestedTranslation::ring_placed(CpuPort& cpu, RingPlacement placement) {
  if (!queues_) co_return;
  const Errno placed = co_await queues_->place(cpu, placement);
  if (placed != Errno::Ok) ++refused_;
}

}  // namespace iommu::xen
