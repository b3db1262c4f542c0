// SPDX-License-Identifier: Apache-2.0
#include "sim/xen/guest_queues.hpp"

#include <bit>
#include <utility>

#include "sim/base/check.hpp"

namespace iommu::xen {

namespace {
constexpr Picoseconds kPollDelay = 1_us;  // [linux, tegra241_cmdqv_write_config]
}  // namespace

// Registers -----------------------------------------------------------------------------------------------------------

bool MappedRegisters::holds(std::uint64_t offset, unsigned bytes) const {
  return window_ && offset < window_->bytes && bytes <= window_->bytes - offset;
}

Task<void> MappedRegisters::write(CpuPort& cpu, std::uint64_t offset, unsigned bytes, std::uint64_t value) {
  if (!holds(offset, bytes)) {
    co_await cpu.charge(CostId::VmExitMmio);
    co_return;
  }
  co_await unit_.write(cpu, window_->offset + offset, bytes, value);
}

Task<std::uint64_t> MappedRegisters::read(CpuPort& cpu, std::uint64_t offset, unsigned bytes) {
  if (!holds(offset, bytes)) {
    co_await cpu.charge(CostId::VmExitMmio);
    co_return 0;
  }
  co_return co_await unit_.read(cpu, window_->offset + offset, bytes);
}

// Rings ---------------------------------------------------------------------------------------------------------------

GuestQueues::GuestQueues(Hypervisor& xen, Domain& domain, PhysicalUnit& unit)
    : xen_(xen), domain_(domain), unit_(unit), driver_(*unit.driver().queues()), window_(unit.registers()) {}

Task<Errno> GuestQueues::open(CpuPort& cpu, DomainTag tag) {
  SIM_CHECK(!group_, "a group is opened once");
  group_ = unit_.allocate_queue_group();
  if (!group_) co_return Errno::NoSpace;
  tag_ = tag;
  const Errno named = co_await name_devices(cpu);
  if (named != Errno::Ok) {
    co_await close(cpu);
    co_return named;
  }
  co_await unit_.write_registers(cpu, driver_.open(*group_, tag));
  window_.map(driver_.window(*group_));
  co_return Errno::Ok;
}

// A guest sees its devices under their own names.
Task<Errno> GuestQueues::name_devices(CpuPort& cpu) {
  std::vector<RequesterId> devices;
  for (const auto& [requester, assigned] : domain_.devices)
    if (&xen_.unit(assigned.setting.unit) == &unit_)
      for (const RequesterId function : assigned.setting.functions()) devices.push_back(function);
  if (devices.size() > driver_.limits().devices) co_return Errno::NoSpace;
  for (const RequesterId device : devices) {
    co_await unit_.write_registers(cpu, driver_.name_device(*group_, devices_, device, device));
    ++devices_;
  }
  co_return Errno::Ok;
}

// Hardware reads the ring by machine addresses: all of it must follow itself there, as it does in the guest's. [linux
// drivers/iommu/arm/arm-smmu-v3/tegra241-cmdqv.c, hw_queue_init_phys]
std::optional<Hpa> GuestQueues::machine_address(const RingPlacement& placement) const {
  const Gpa base(placement.base.value());
  const std::uint64_t bytes = std::uint64_t{placement.entries} * unit_.driver().ring().entry_bytes;
  if (base.value() % bytes != 0 || base.value() + bytes < base.value()) return std::nullopt;
  const auto first = domain_.memory.translate(base);
  for (std::uint64_t done = kPageSize.value(); first && done < bytes; done += kPageSize.value()) {
    const auto next = domain_.memory.translate(base + Bytes(done));
    if (!next || *next != *first + Bytes(done)) return std::nullopt;
  }
  return first;
}

Task<Errno> GuestQueues::place(CpuPort& cpu, RingPlacement placement) {
  if (!group_ || placement.ring >= driver_.limits().guest_rings) co_return Errno::Invalid;
  co_await take_back(cpu, placement.ring);
  window_.map(driver_.window(*group_));
  if (placement.entries == 0) co_return Errno::Ok;
  // [linux, tegra241_vintf_alloc_lvcmdq_user: from two entries on]
  if (placement.entries < 2 || placement.entries > driver_.limits().entries || !std::has_single_bit(placement.entries))
    co_return Errno::Invalid;
  co_await cpu.charge(CostId::P2mLookup);
  const auto machine = machine_address(placement);
  if (!machine) co_return Errno::BadAddress;
  const Mfn first(*machine);
  const std::uint64_t last =
      machine->value() + std::uint64_t{placement.entries} * unit_.driver().ring().entry_bytes - 1;
  std::vector<Mfn>& frames = placed_[placement.ring];
  for (Mfn frame = first; frame <= Mfn(Hpa(last)); frame = frame + 1) {
    xen_.take_reference(frame);
    frames.push_back(frame);
  }
  co_await cpu.charge(CostId::PageReference, frames.size());
  co_await unit_.write_registers(
      cpu, driver_.place(*group_, {.ring = placement.ring, .base = *machine, .entries = placement.entries}));
  co_return Errno::Ok;
}

// The command under way is finished; what waits behind it is lost, and close() makes up for that.
Task<void> GuestQueues::take_back(CpuPort& cpu, std::uint32_t ring) {
  const auto placed = placed_.find(ring);
  if (placed == placed_.end()) co_return;
  // Or its owner starts it again. A store of another vCPU that was on its way already is overtaken by the next stop.
  window_.unmap();
  const RegisterWrite stop = driver_.stop(*group_, ring);
  const std::uint64_t status = driver_.window(*group_).offset + driver_.status_register(ring);
  for (std::uint64_t running = 1; running != 0;) {
    co_await unit_.registers().write(cpu, stop.offset, stop.bytes, stop.value);
    running = co_await unit_.registers().read(cpu, status, 4);
    if (running != 0) co_await cpu.sleep_until(cpu.now() + kPollDelay);
  }
  co_await unit_.write_registers(cpu, driver_.remove(*group_, ring));
  for (const Mfn frame : placed->second) xen_.drop_reference(frame);
  placed_.erase(placed);
}

Task<void> GuestQueues::close(CpuPort& cpu) {
  if (!group_) co_return;
  window_.unmap();
  for (std::uint32_t ring = 0; ring < driver_.limits().guest_rings; ++ring) co_await take_back(cpu, ring);
  for (; devices_ > 0; --devices_) co_await unit_.write_registers(cpu, driver_.forget_device(*group_, devices_ - 1));
  co_await unit_.write_registers(cpu, driver_.close(*group_));
  co_await unit_.invalidate(cpu, {1, {.kind = InvalidationKind::Iotlb, .domain = tag_}});
  unit_.release_queue_group(*group_);
  group_.reset();
}

}  // namespace iommu::xen
