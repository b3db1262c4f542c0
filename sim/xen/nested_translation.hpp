// SPDX-License-Identifier: Apache-2.0
// Nested translation: the guest owns stage 1, Xen's stage 2 is context 0's table. Xen learns of a guest's root when its
// context entry is invalidated, and forwards invalidations with the tags exchanged; page tables it never reads.
#pragma once

#include <memory>

#include "sim/xen/guest_queues.hpp"
#include "sim/xen/nested_contexts.hpp"
#include "sim/xen/virtual_devices.hpp"

namespace iommu::xen {

class NestedTranslation final : public VirtualDevices {
 public:
  using VirtualDevices::VirtualDevices;

  // The domain gets command rings of its own on the unit in front of its devices, which are assigned already; before
  // any device is added. All its translations share a tag, because those rings have one. Errno::Unsupported: the
  // devices are behind several units, or that one has no such rings.
  Task<Errno> open_queues(CpuPort& cpu);
  // The domain loses them. Its translations stay.
  Task<void> close_queues(CpuPort& cpu);
  // Their registers; null without them.
  [[nodiscard]] MmioPort* queue_registers() { return queues_ ? &queues_->window() : nullptr; }
  Task<void> ring_placed(CpuPort& cpu, RingPlacement placement) override;

 private:
  [[nodiscard]] const IoContext* sibling() const override { return owner_; }
  [[nodiscard]] ContextKind kind() const override { return ContextKind::Nested; }
  [[nodiscard]] bool can_translate(const Context& guest) const override { return guest.kind == ContextKind::Stage1; }
  Task<Errno> adopt(CpuPort& cpu, Device& device, const Context& guest) override;
  Task<void> invalidate_translations(CpuPort& cpu, std::vector<InvalidationScope> scopes) override;
  std::unique_ptr<GuestQueues> queues_;
  IoContext* owner_ = nullptr;  // of the rings' tag; no device is in it
};

}  // namespace iommu::xen
