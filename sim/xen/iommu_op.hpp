// SPDX-License-Identifier: Apache-2.0
// The iommu_op hypercall: a guest's way to IOMMU contexts of its own. [PV-IOMMU RFC v7]
//
// Where the RFC's code departs from its own header or design, the header and design are followed:
//   init allocates no context and can be retried after -ENOMEM; more than 65534 contexts are -E2BIG; a context that
//   could not be freed stays usable; map and unmap stop at the first reserved page; a mapping without permissions and
//   an unsupported page size are -EINVAL; addresses beyond the reported limit are -EADDRNOTAVAIL; unknown flags are
//   refused; a remote command obeys the target's permission. An existing mapping is -EADDRINUSE, as in the code
//   (header: -EINVAL). `mapped` and `unmapped` add up over slices, so callers zero them.
#pragma once

#include <array>
#include <cstdint>

#include "sim/xen/hypervisor.hpp"
#include "sim/xen/iommu_op_abi.hpp"
#include "sim/xen/pv_contexts.hpp"

namespace iommu::xen {

enum class DeferredFlush : std::uint8_t { Unavailable, Offered };

class IommuOp {
 public:
  IommuOp(Hypervisor& xen, DeferredFlush deferred) : xen_(xen), contexts_(xen), deferred_(deferred) {}

  // The hypercall as the caller's vCPU executes it: trap, work, return value (0 or a negative Errno). `argument` is the
  // guest-physical address of the sub-operation's structure.
  Task<std::int64_t> call(CpuPort& cpu, Domain& caller, std::uint32_t subop, Gpa argument);

  struct Counters {
    std::array<std::uint64_t, abi::kRfcSubops> by_subop{};  // unmap_pages: deferred ones included
    std::uint64_t flush_context = 0;
    std::uint64_t unknown = 0;
    std::uint64_t continuations = 0;
    [[nodiscard]] std::uint64_t total() const;
    [[nodiscard]] std::uint64_t of(abi::Subop subop) const { return by_subop[static_cast<std::size_t>(subop)]; }
  };
  [[nodiscard]] const Counters& counters() const { return counters_; }
  void reset_counters() { counters_ = {}; }

 private:
  // Whose contexts and frames an operation concerns, and in whose memory its argument lies.
  struct Call {
    Domain& caller;
    Domain& target;
    Gpa argument;
  };
  void count(std::uint32_t subop);
  Task<Errno> dispatch(CpuPort& cpu, Call call, std::uint32_t subop);
  Task<Errno> remote(CpuPort& cpu, Call call);
  Errno query(Call call) const;
  Errno init(Call call);
  Errno alloc_context(Call call);
  Task<Errno> free_context(CpuPort& cpu, Call call);
  Task<Errno> reattach_device(CpuPort& cpu, Call call);
  Task<Errno> map_pages(CpuPort& cpu, Call call);
  Task<Errno> unmap_pages(CpuPort& cpu, Call call, UnmapFlush flush);
  Task<Errno> flush_context(CpuPort& cpu, Call call);

  Hypervisor& xen_;
  PvContexts contexts_;
  DeferredFlush deferred_;
  Counters counters_;
};

}  // namespace iommu::xen
