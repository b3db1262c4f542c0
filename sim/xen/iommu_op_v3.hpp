// SPDX-License-Identifier: Apache-2.0
// The hypercall as its first three versions had it: one tagged structure per call, for the hardware domain only, with
// contexts that are made available at boot, at most 256 pages a call and one lock per domain held over each operation.
// For comparison with v7 (iommu_op.hpp). [PV-IOMMU RFC v3]
//
// Where the code is not known in detail, this model chooses: addresses beyond the fixed limit are -EADDRNOTAVAIL, a
// lookup of an address that maps nothing is -ENOENT, and so is a lookup of a frame that is not the caller's memory.
#pragma once

#include <array>
#include <cstdint>
#include <numeric>

#include "sim/xen/iommu_op_v3_abi.hpp"
#include "sim/xen/pv_contexts.hpp"

namespace iommu::xen {

class IommuOpV3 {
 public:
  explicit IommuOpV3(Hypervisor& xen) : xen_(xen), contexts_(xen) {}

  // What the boot parameters of the hardware domain do (`dom0-iommu=nb-ctx=N`).
  Errno set_up(Domain& domain, std::uint32_t contexts, std::uint32_t arena_order) {
    return contexts_.init(domain, contexts, arena_order);
  }
  // `argument`: guest-physical address of an abi_v3::Operation.
  Task<std::int64_t> call(CpuPort& cpu, Domain& caller, Gpa argument);

  struct Counters {
    std::array<std::uint64_t, abi_v3::kSubops> by_subop{};
    std::uint64_t unknown = 0;
    [[nodiscard]] std::uint64_t total() const { return std::accumulate(by_subop.begin(), by_subop.end(), unknown); }
    [[nodiscard]] std::uint64_t of(abi_v3::Subop subop) const { return by_subop[static_cast<std::size_t>(subop)]; }
  };
  [[nodiscard]] const Counters& counters() const { return counters_; }
  void reset_counters() { counters_ = {}; }

 private:
  Task<Errno> dispatch(CpuPort& cpu, Domain& caller, abi_v3::Operation& operation);
  void query(const Domain& caller, abi_v3::Operation& operation) const;
  Errno alloc(Domain& caller, abi_v3::Operation& operation);
  Task<Errno> map(CpuPort& cpu, Domain& caller, abi_v3::Operation& operation);
  Task<Errno> unmap(CpuPort& cpu, Domain& caller, abi_v3::Operation& operation);
  Task<Errno> lookup(CpuPort& cpu, Domain& caller, abi_v3::Operation& operation);

  Hypervisor& xen_;
  PvContexts contexts_;
  Counters counters_;
};

}  // namespace iommu::xen
