// SPDX-License-Identifier: Apache-2.0
// The command rings of a physical unit that a domain owns: Xen restricts them to the domain's tag and devices, says
// where they are, maps their registers to the domain and takes them back. What the domain does with them it does
// without Xen.
//
//   GuestQueues queues(xen, domain, unit);
//   co_await queues.open(cpu, tag);                                    // from now on queues.window() is the guest's
//   co_await queues.place(cpu, {.ring = 0, .base = ring, .entries = 256});   // on the guest's trapped wish
//   co_await queues.close(cpu);
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "sim/translation/queue_client.hpp"
#include "sim/translation/queue_driver.hpp"
#include "sim/xen/hypervisor.hpp"

namespace iommu::xen {

// Registers of hardware in a guest's address space: an access is an access, and no exit. While they are not mapped, it
// traps and comes to nothing.
class MappedRegisters final : public MmioPort {
 public:
  explicit MappedRegisters(MmioPort& unit) : unit_(unit) {}
  void map(QueueDriver::Window window) { window_ = window; }
  void unmap() { window_.reset(); }
  Task<void> write(CpuPort& cpu, std::uint64_t offset, unsigned bytes, std::uint64_t value) override;
  Task<std::uint64_t> read(CpuPort& cpu, std::uint64_t offset, unsigned bytes) override;

 private:
  [[nodiscard]] bool holds(std::uint64_t offset, unsigned bytes) const;
  MmioPort& unit_;
  std::optional<QueueDriver::Window> window_;
};

class GuestQueues {
 public:
  // All outlive it. The unit's driver has further rings.
  GuestQueues(Hypervisor& xen, Domain& domain, PhysicalUnit& unit);
  GuestQueues(const GuestQueues&) = delete;
  GuestQueues& operator=(const GuestQueues&) = delete;

  // Errno::NoSpace: the unit has no group left, or not enough places for the domain's devices behind it.
  Task<Errno> open(CpuPort& cpu, DomainTag tag);
  // A ring of the guest's memory, or with no entries none. Errno::BadAddress: not memory of the domain, or not
  // contiguous in the machine's; Errno::Invalid: no such ring, or a size that cannot be. The ring that was there is
  // gone in any case.
  Task<Errno> place(CpuPort& cpu, RingPlacement placement);
  // Afterwards hardware reads nothing of the guest's, and no cache holds anything under the tag.
  Task<void> close(CpuPort& cpu);

  [[nodiscard]] MmioPort& window() { return window_; }
  [[nodiscard]] PhysicalUnit& unit() { return unit_; }
  [[nodiscard]] bool is_open() const { return group_.has_value(); }

 private:
  Task<Errno> name_devices(CpuPort& cpu);
  Task<void> take_back(CpuPort& cpu, std::uint32_t ring);
  [[nodiscard]] std::optional<Hpa> machine_address(const RingPlacement& placement) const;

  Hypervisor& xen_;
  Domain& domain_;
  PhysicalUnit& unit_;
  const QueueDriver& driver_;
  MappedRegisters window_;
  std::optional<std::uint32_t> group_;
  DomainTag tag_;
  std::map<std::uint32_t, std::vector<Mfn>> placed_;  // by ring: its frames, each referenced
  std::uint32_t devices_ = 0;
};

}  // namespace iommu::xen
