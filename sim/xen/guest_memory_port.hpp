// SPDX-License-Identifier: Apache-2.0
// The memory of a virtual unit: what its core takes for host-physical addresses are guest-physical ones. Software reads
// on the trapping vCPU, so an access takes no time of its own; whoever drives the core charges for the work.
#pragma once

#include "sim/memory/guest_memory.hpp"
#include "sim/translation/memory_port.hpp"

namespace iommu::xen {

class GuestMemoryPort final : public MemoryPort {
 public:
  explicit GuestMemoryPort(GuestMemory& memory) : memory_(memory) {}

  // An access never crosses a 64-byte line, so one translation serves it.
  bool begin(MemoryAccess& access) override {
    const auto host = memory_.translate(Gpa(access.address.value()));
    if (!host) {
      access.failed = true;
      access.words.fill(0);
      return true;
    }
    const Hpa guest_address = access.address;
    access.address = *host;
    memory_.host().perform(access);
    access.address = guest_address;
    if (access.op != MemoryOp::Read) memory_.note_store(Gpa(access.address.value()), Bytes(access.bytes));
    return true;
  }

 private:
  GuestMemory& memory_;
};

}  // namespace iommu::xen
