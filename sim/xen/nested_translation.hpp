// SPDX-License-Identifier: Apache-2.0
// Nested translation: the guest owns stage 1, Xen's stage 2 is context 0's table. Xen learns of a guest's root when its
// context entry is invalidated, and forwards invalidations with the tags exchanged; page tables it never reads.
#pragma once

#include "sim/xen/virtual_devices.hpp"

namespace iommu::xen {

class NestedTranslation final : public VirtualDevices {
 public:
  using VirtualDevices::VirtualDevices;

 private:
  [[nodiscard]] ContextKind kind() const override { return ContextKind::Nested; }
  [[nodiscard]] bool can_translate(const Context& guest) const override { return guest.kind == ContextKind::Stage1; }
  Task<Errno> adopt(CpuPort& cpu, Device& device, const Context& guest) override;
  Task<void> invalidate_translations(CpuPort& cpu, std::vector<InvalidationScope> scopes) override;
};

}  // namespace iommu::xen
