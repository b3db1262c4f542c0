// SPDX-License-Identifier: Apache-2.0
// The contexts that a guest made for itself: numbers, allocation, freeing, moving devices between them. What the
// versions of the hypercall have in common; their structures and error codes are theirs.
#pragma once

#include <cstdint>

#include "sim/xen/hypervisor.hpp"

namespace iommu::xen {

enum class OccupiedContext : std::uint8_t { Refuse, MoveDevicesToDefault };

class PvContexts {
 public:
  explicit PvContexts(Hypervisor& xen) : xen_(xen) {}

  // Once per domain, unless it failed. Allocates no context. Errno::AccessDenied: done already; TooBig: more contexts
  // than numbers; NoMemory: no block for the arena. Order 0: no arena, so that allocation has no memory.
  Errno init(Domain& domain, std::uint32_t contexts, std::uint32_t arena_order);

  struct Numbered {
    Errno status = Errno::Ok;
    std::uint16_t number = 0;
  };
  // The number that allocate() would give, without giving it.
  [[nodiscard]] static Numbered next_number(const Domain& domain);
  // Under the number of next_number().
  Errno allocate(Domain& domain, std::uint16_t number);

  struct Freed {
    Errno status = Errno::Ok;
    std::uint64_t slices = 0;  // of the teardown
  };
  Task<Freed> free(CpuPort& cpu, Domain& domain, std::uint16_t number, OccupiedContext occupied);

  // Context 0 included. Errno::NoEntry: no such context; Invalid: it is being freed.
  Task<Errno> reattach(CpuPort& cpu, Domain& domain, RequesterId device, std::uint16_t number);

  // Whether the domain has the device. One that the toolstack is still bringing in it may not move.
  [[nodiscard]] static bool owns(const Domain& domain, RequesterId device);
  // nullptr: context 0, unknown, or being freed.
  [[nodiscard]] static IoContext* usable(Domain& domain, std::uint16_t number);

 private:
  [[nodiscard]] static IoContext* find(Domain& domain, std::uint16_t number);
  static Task<Errno> doom(CpuPort& cpu, IoContext& context, OccupiedContext occupied);
  Task<Errno> move_to_default(CpuPort& cpu, Domain& domain, IoContext& context);

  Hypervisor& xen_;
};

}  // namespace iommu::xen
