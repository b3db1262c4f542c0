// SPDX-License-Identifier: Apache-2.0
// A virtual unit's devices on the real machine: follows what the guest's device tables say about each assigned device
// and moves it between contexts accordingly. How a guest's translation becomes real is left to two derived classes:
//   NestedTranslation   hardware walks the guest's stage 1 over Xen's stage 2; invalidations are forwarded
//   ShadowTranslation   Xen keeps its own copy of the guest's tables; invalidations bring it up to date
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "sim/xen/hypervisor.hpp"
#include "sim/xen/virtual_unit.hpp"

namespace iommu::xen {

class VirtualDevices : public VirtualUnitSink {
 public:
  // All outlive it.
  VirtualDevices(Hypervisor& xen, Domain& domain, VirtualUnit& unit) : xen_(xen), domain_(domain), unit_(unit) {}

  // A device of the domain that is behind the virtual unit. Errno::NoSpace, NoMemory: no context for it.
  Errno add_device(RequesterId device);

  Task<void> invalidate(CpuPort& cpu, std::vector<InvalidationScope> scopes) final;
  Task<void> configuration_changed(CpuPort& cpu) final;

  // Refused: the guest's tables ask for what cannot be given, and the device is blocked.
  [[nodiscard]] std::uint64_t refused() const { return refused_; }

 protected:
  struct Device {
    RequesterId requester;
    IoContext* translation = nullptr;  // real counterpart of the guest's translation
    std::optional<Context> guest;      // the guest's translation, while it has one
  };
  // The kind of translation context that devices get.
  [[nodiscard]] virtual ContextKind kind() const = 0;
  // Whether a guest's context can be made real.
  [[nodiscard]] virtual bool can_translate(const Context& guest) const = 0;
  // The guest's translation of a device is new or has another root: makes `device.translation` mean it. It is not
  // attached yet, or attached with the old meaning.
  virtual Task<Errno> adopt(CpuPort& cpu, Device& device, const Context& guest) = 0;
  // The context whose tags translation contexts share; null: each has its own.
  [[nodiscard]] virtual const IoContext* sibling() const { return nullptr; }
  // The translations in the scopes (Iotlb, DeviceTlb) are void.
  virtual Task<void> invalidate_translations(CpuPort& cpu, std::vector<InvalidationScope> scopes) = 0;

  // What the guest's device tables say about the device.
  virtual Task<ContextResult> read_context(Device& device, TranslationRequest request);
  // The device does not use `device.translation` any more.
  virtual Task<void> left(CpuPort&, Device&) { co_return; }

  // Reads the guest's device tables again and moves the device to where they say.
  Task<void> refresh(CpuPort& cpu, Device& device);
  Task<Errno> attach(CpuPort& cpu, Device& device, IoContext& context);
  // Of a context that no guest can name.
  Errno keep(Hypervisor::NewContext made);
  [[nodiscard]] ContextNumber next_number() const;
  Task<void> block(CpuPort& cpu, Device& device);

  Hypervisor& xen_;
  Domain& domain_;
  VirtualUnit& unit_;
  std::vector<std::unique_ptr<Device>> devices_;
  std::uint64_t refused_ = 0;

 private:
  Task<Errno> leave_for(CpuPort& cpu, Device& device, IoContext& context);
  Task<Permissions> rights_of_bypass(TranslationRequest request, Context guest);
  Errno make_blocked_context();
  IoContext* blocked_ = nullptr;  // an empty context
};

}  // namespace iommu::xen
