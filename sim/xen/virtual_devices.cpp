// SPDX-License-Identifier: Apache-2.0
#include "sim/xen/virtual_devices.hpp"

#include <utility>
#include <variant>

namespace iommu::xen {

namespace {
// Private contexts have no number a guest could name; theirs only orders locks.
constexpr std::uint16_t kFirstPrivateNumber = 0x8000;

bool concerns(const InvalidationScope& scope, RequesterId device) {
  if (!scope.requester) return true;
  const unsigned different = static_cast<unsigned>(scope.requester->value()) ^ device.value();
  return (different & ~static_cast<unsigned>(scope.requester_ignore)) == 0;
}
}  // namespace

ContextNumber VirtualDevices::next_number() const {
  return ContextNumber(static_cast<std::uint16_t>(kFirstPrivateNumber + domain_.private_contexts.size()));
}

// It lives as long as the domain.
Errno VirtualDevices::keep(Hypervisor::NewContext made) {
  if (made.status == Errno::Ok) domain_.private_contexts.push_back(std::move(made.context));
  return made.status;
}

Errno VirtualDevices::make_blocked_context() {
  if (blocked_ != nullptr) return Errno::Ok;
  const Errno made = keep(xen_.make_context(next_number(), ContextKind::Stage2, xen_.heap()));
  if (made == Errno::Ok) blocked_ = domain_.private_contexts.back().get();
  return made;
}

Errno VirtualDevices::add_device(RequesterId requester) {
  if (!domain_.devices.contains(requester)) return Errno::NoDevice;
  const Errno blocked = make_blocked_context();
  if (blocked != Errno::Ok) return blocked;
  const IoContext* other = sibling();
  const Errno made =
      keep(other == nullptr ? xen_.make_context(next_number(), kind(), xen_.heap())
                            : Hypervisor::NewContext{Errno::Ok, xen_.make_sibling(next_number(), *other)});
  if (made != Errno::Ok) return made;
  devices_.push_back(std::make_unique<Device>(Device{requester, domain_.private_contexts.back().get(), std::nullopt}));
  return Errno::Ok;
}

Task<void> VirtualDevices::configuration_changed(CpuPort& cpu) {
  for (const auto& device : devices_) co_await refresh(cpu, *device);
}

Task<void> VirtualDevices::invalidate(CpuPort& cpu, std::vector<InvalidationScope> scopes) {
  std::vector<InvalidationScope> translations;
  for (const auto& device : devices_) {
    bool changed = false;
    for (const InvalidationScope& scope : scopes) {
      const bool about_context =
          scope.kind == InvalidationKind::Context || scope.kind == InvalidationKind::ProcessContext;
      changed |= about_context && concerns(scope, device->requester);
    }
    if (changed) co_await refresh(cpu, *device);
  }
  for (const InvalidationScope& scope : scopes)
    if (scope.kind == InvalidationKind::Iotlb || scope.kind == InvalidationKind::DeviceTlb)
      translations.push_back(scope);
  if (!translations.empty()) co_await invalidate_translations(cpu, std::move(translations));
}

Task<void> VirtualDevices::refresh(CpuPort& cpu, Device& device) {
  if (!unit_.core().is_translating()) {
    co_await leave_for(cpu, device, *domain_.default_context);
    co_return;
  }
  co_await cpu.charge(CostId::GuestPageAccess);
  TranslationRequest request;
  request.requester = device.requester;
  const ContextResult found = co_await read_context(device, request);
  const Context* guest = std::get_if<Context>(&found);
  if (guest == nullptr) {
    co_await block(cpu, device);  // no entry, or a malformed one: the guest blocks its device
    co_return;
  }
  if (guest->kind == ContextKind::Bypass) {
    const Permissions rights = co_await rights_of_bypass(request, *guest);
    if (rights == kReadWrite) {
      co_await leave_for(cpu, device, *domain_.default_context);
      co_return;
    }
    if (!rights.none()) ++refused_;  // half a bypass has no counterpart
    co_await block(cpu, device);
    co_return;
  }
  Errno status = Errno::Unsupported;
  if (can_translate(*guest)) status = co_await adopt(cpu, device, *guest);
  if (status == Errno::Ok) {
    device.guest = *guest;
    status = co_await attach(cpu, device, *device.translation);
  }
  if (status == Errno::Ok) co_return;
  ++refused_;
  co_await block(cpu, device);
}

// An entry may let requests pass untranslated and still deny them.
Task<Permissions> VirtualDevices::rights_of_bypass(TranslationRequest request, Context guest) {
  Permissions rights;
  for (const Access access : {Access::Read, Access::Write}) {
    request.access = access;
    const TranslationResponse response = co_await unit_.core().walk(request, guest, unit_.guest_memory(), {});
    const auto* passed = std::get_if<Translation>(&response);
    if (passed == nullptr || !passed->allowed.allow(access)) continue;
    (access == Access::Read ? rights.read : rights.write) = true;
  }
  co_return rights;
}

Task<Errno> VirtualDevices::attach(CpuPort& cpu, Device& device, IoContext& context) {
  co_return co_await xen_.reattach(cpu, domain_, device.requester, context);
}

Task<ContextResult> VirtualDevices::read_context(Device&, TranslationRequest request) {
  co_return co_await unit_.core().find_context(request, unit_.guest_memory());
}

Task<Errno> VirtualDevices::leave_for(CpuPort& cpu, Device& device, IoContext& context) {
  device.guest.reset();
  const Errno status = co_await attach(cpu, device, context);
  co_await left(cpu, device);
  co_return status;
}

Task<void> VirtualDevices::block(CpuPort& cpu, Device& device) {
  const Errno status = co_await leave_for(cpu, device, *blocked_);
  // A device that can be neither served nor blocked must not go on running.
  if (status != Errno::Ok && status != Errno::NoDevice) domain_.crashed = true;
}

}  // namespace iommu::xen
