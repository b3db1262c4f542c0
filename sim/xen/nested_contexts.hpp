// SPDX-License-Identifier: Apache-2.0
// Contexts in which hardware walks a guest's stage 1 over context 0's table: what a guest's tables and invalidations
// mean there, however it announces them.
#pragma once

#include <array>
#include <cstdint>

#include "sim/xen/hypervisor.hpp"

namespace iommu::xen {

// A guest's tables, as it names them. Nothing of this has been looked at.
struct GuestStage1 {
  TableRoot root{};
  std::array<std::uint64_t, 2> entry{};  // of its device table, where process tables are its own as well
  // Process tables in the guest's hands are read by hardware: what the guest announces about them goes there always.
  [[nodiscard]] bool has_process_tables() const { return entry[0] != 0; }
  friend bool operator==(const GuestStage1&, const GuestStage1&) = default;
};

// Gives a nested context this first stage over context 0's table, and the devices inside at once.
Task<Errno> set_guest_stage1(CpuPort& cpu, Hypervisor& xen, Domain& domain, IoContext& context, GuestStage1 stage1);

// A guest's scope (Iotlb, ProcessContext, DeviceTlb) that concerns a device, in the host's tags. Even a global flush of
// the guest's stays within what is the guest's.
[[nodiscard]] InvalidationScope in_host_tags(InvalidationScope scope, RequesterId device, DomainTag host);

}  // namespace iommu::xen
