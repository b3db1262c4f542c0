// SPDX-License-Identifier: Apache-2.0
#include "sim/xen/pv_contexts.hpp"

#include <algorithm>
#include <memory>
#include <utility>

namespace iommu::xen {

namespace {
// Context numbers are 16 bits, 0 is the default context and all ones is reserved.
constexpr std::uint32_t kMostContexts = 0xfffe;
constexpr unsigned kLargestArenaOrder = 18;  // Xen's MAX_ORDER
}  // namespace

Errno PvContexts::init(Domain& domain, std::uint32_t contexts, std::uint32_t arena_order) {
  if (domain.pv) return Errno::AccessDenied;
  if (contexts > kMostContexts) return Errno::TooBig;
  if (arena_order > kLargestArenaOrder) return Errno::NoMemory;
  PvState pv;
  pv.contexts = static_cast<std::uint16_t>(contexts);
  pv.arena_order = arena_order;
  if (arena_order != 0) {
    const auto frames = xen_.frames().allocate(arena_order);
    if (!frames) return Errno::NoMemory;
    pv.arena = std::make_unique<TableArena>(xen_.memory(), *frames, 1ULL << arena_order);
  }
  pv.slots.resize(pv.contexts);
  domain.pv = std::move(pv);
  return Errno::Ok;
}

PvContexts::Numbered PvContexts::next_number(const Domain& domain) {
  if (!domain.pv) return {Errno::NoSpace, 0};
  const auto& slots = domain.pv->slots;
  const auto slot = std::find(slots.begin(), slots.end(), nullptr);
  if (slot == slots.end()) return {Errno::NoSpace, 0};
  if (!domain.pv->arena) return {Errno::NoMemory, 0};
  return {Errno::Ok, static_cast<std::uint16_t>(slot - slots.begin() + 1)};
}

Errno PvContexts::allocate(Domain& domain, std::uint16_t number) {
  auto made =
      xen_.make_context(ContextNumber(number), ContextKind::Stage2, *domain.pv->arena, xen_.options().tag_allocation);
  if (made.status != Errno::Ok) return made.status;
  if (xen_.options().shatter_reserve == ShatterReserve::Kept) made.context->arena = domain.pv->arena.get();
  domain.pv->slots[number - 1U] = std::move(made.context);
  return Errno::Ok;
}

IoContext* PvContexts::find(Domain& domain, std::uint16_t number) {
  if (!domain.pv || number == 0 || number > domain.pv->slots.size()) return nullptr;
  return domain.pv->slots[number - 1U].get();
}

bool PvContexts::owns(const Domain& domain, RequesterId device) {
  const auto found = domain.devices.find(device);
  return found != domain.devices.end() && found->second.context != nullptr;
}

IoContext* PvContexts::usable(Domain& domain, std::uint16_t number) {
  IoContext* context = find(domain, number);
  return context != nullptr && !context->dying ? context : nullptr;
}

Task<PvContexts::Freed> PvContexts::free(CpuPort& cpu, Domain& domain, std::uint16_t number, OccupiedContext occupied) {
  Freed freed;
  IoContext* context = usable(domain, number);
  freed.status = Errno::NoEntry;
  if (context == nullptr) co_return freed;
  freed.status = co_await doom(cpu, *context, occupied);
  if (freed.status != Errno::Ok) co_return freed;
  freed.status = co_await move_to_default(cpu, domain, *context);
  if (freed.status != Errno::Ok) co_return freed;
  if (context->unfenced) freed.status = Errno::InputOutput;
  freed.slices = co_await xen_.destroy_context(cpu, domain, std::move(domain.pv->slots[number - 1U]));
  co_return freed;
}

// From here on nobody may attach to it. Under its lock, because somebody may be about to.
Task<Errno> PvContexts::doom(CpuPort& cpu, IoContext& context, OccupiedContext occupied) {
  co_await cpu.acquire(context.lock);
  Errno status = Errno::Ok;
  if (context.dying)
    status = Errno::NoEntry;
  else if (!context.devices.empty() && occupied == OccupiedContext::Refuse)
    status = Errno::Busy;
  else
    context.dying = true;
  cpu.release(context.lock);
  co_return status;
}

// All devices of a dying context, or none: then it lives on.
Task<Errno> PvContexts::move_to_default(CpuPort& cpu, Domain& domain, IoContext& context) {
  std::vector<RequesterId> moved;
  while (!context.devices.empty()) {
    const RequesterId device = context.devices.front();
    const Errno status = co_await xen_.reattach(cpu, domain, device, *domain.default_context);
    if (status == Errno::Ok) {
      moved.push_back(device);
      continue;
    }
    const bool still_inside =
        std::find(context.devices.begin(), context.devices.end(), device) != context.devices.end();
    if (!still_inside) continue;  // somebody else moved it meanwhile
    context.dying = false;
    for (const RequesterId back : moved) {
      const Errno returned = co_await xen_.reattach(cpu, domain, back, context);
      if (returned != Errno::Ok) crash_guest(domain);
    }
    co_return status;
  }
  co_return Errno::Ok;
}

Task<Errno> PvContexts::reattach(CpuPort& cpu, Domain& domain, RequesterId device, std::uint16_t number) {
  IoContext* context = number == 0 ? domain.default_context.get() : find(domain, number);
  if (context == nullptr) co_return Errno::NoEntry;
  if (context->dying) co_return Errno::Invalid;
  co_return co_await xen_.reattach(cpu, domain, device, *context);
}

}  // namespace iommu::xen
