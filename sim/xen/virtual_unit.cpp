// SPDX-License-Identifier: Apache-2.0
#include "sim/xen/virtual_unit.hpp"

#include <utility>
#include <variant>

#include "sim/base/check.hpp"

namespace iommu::xen {

namespace {
// Beyond any ring: a trap that reaches it has found a core whose ring never empties.
constexpr std::uint64_t kMostCommandsPerTrap = 1ULL << 20;

class CountingPort final : public MemoryPort {
 public:
  explicit CountingPort(MemoryPort& memory) : memory_(memory) {}
  bool begin(MemoryAccess& access) override {
    ++accesses_;
    return memory_.begin(access);
  }
  [[nodiscard]] std::uint64_t accesses() const { return accesses_; }

 private:
  MemoryPort& memory_;
  std::uint64_t accesses_ = 0;
};
}  // namespace

VirtualUnit::VirtualUnit(const FamilyDescriptor& family, const UnitFeatures& features, Domain& domain,
                         TrapTarget target)
    : domain_(domain), features_(features), target_(target), core_(family.make_core(features)), port_(domain.memory) {}

void VirtualUnit::reset_counters() {
  traps_ = {};
  commands_ = {};
  commands_emulated_ = 0;
  interrupts_ = 0;
  faults_ = {};
}

Task<void> VirtualUnit::charge_exit(CpuPort& cpu, CostId exit, CostId work) {
  co_await cpu.charge(exit);
  co_await cpu.charge(work);
  if (target_ == TrapTarget::DeviceModel) {
    ++traps_.device_model;
    co_await cpu.charge(CostId::DeviceModelExit);
  }
}

Task<void> VirtualUnit::write(CpuPort& cpu, std::uint64_t offset, unsigned bytes, std::uint64_t value) {
  SIM_CHECK(sink_ != nullptr, "a virtual unit is connected before its guest runs");
  if (!stores_.empty()) co_await settle(cpu);
  co_await charge_exit(cpu, CostId::VmExitMmio, CostId::MmioDecode);
  co_await cpu.acquire(lock_);
  const RegisterEffect effect = core_->mmio_write(offset, bytes, value);
  if (effect.commands_pending)
    ++traps_.doorbell;
  else
    ++traps_.register_access;
  if (effect.configuration_changed) co_await sink_->configuration_changed(cpu);
  if (effect.placement) co_await sink_->ring_placed(cpu, *effect.placement);
  if (!effect.scopes.empty()) {
    for (const InvalidationScope& scope : effect.scopes) commands_.count(scope);
    co_await sink_->invalidate(cpu, effect.scopes);
    core_->invalidation_done();
  }
  if (effect.commands_pending) co_await run_commands(cpu);
  co_await deliver_interrupts(cpu);
  co_await apply_own_stores(cpu);
  cpu.release(lock_);
}

// What is taken here was stored by this vCPU: whoever stores settles before anybody else runs.
Task<void> VirtualUnit::settle(CpuPort& cpu) {
  std::vector<std::vector<TableChange>> stores = std::exchange(stores_, {});
  for (std::vector<TableChange>& changes : stores) {
    ++traps_.table_store;
    co_await charge_exit(cpu, CostId::VmExitStore, CostId::StoreEmulate);
    co_await cpu.acquire(lock_);
    co_await sink_->tables_changed(cpu, std::move(changes));
    cpu.release(lock_);
  }
}

// The guest may have its status words and event records written over its tables.
Task<void> VirtualUnit::apply_own_stores(CpuPort& cpu) {
  std::vector<std::vector<TableChange>> stores = std::exchange(stores_, {});
  for (std::vector<TableChange>& changes : stores) co_await sink_->tables_changed(cpu, std::move(changes));
}

Task<void> VirtualUnit::reconsider(CpuPort& cpu) {
  co_await cpu.acquire(lock_);
  co_await sink_->configuration_changed(cpu);
  cpu.release(lock_);
}

Task<std::uint64_t> VirtualUnit::read(CpuPort& cpu, std::uint64_t offset, unsigned bytes) {
  co_await charge_exit(cpu, CostId::VmExitMmio, CostId::MmioDecode);
  ++traps_.register_access;
  co_return core_->mmio_read(offset, bytes);
}

Task<TranslationResponse> VirtualUnit::translate(CpuPort& cpu, TranslationRequest request) {
  co_await cpu.charge(CostId::Hypercall);
  co_await cpu.acquire(lock_);
  CountingPort counting(port_);
  const TranslationResponse response = co_await core_->translate(request, counting);
  co_await cpu.charge(CostId::GuestPageAccess, counting.accesses());
  if (const auto* fault = std::get_if<Fault>(&response)) co_await record(cpu, *fault);
  cpu.release(lock_);
  co_return response;
}

Task<void> VirtualUnit::record(CpuPort& cpu, Fault fault) {
  if (core_->record(fault)) {
    ++interrupts_;
    co_await cpu.charge(CostId::InterruptInject);
  }
  co_await deliver_interrupts(cpu);
  co_await apply_own_stores(cpu);
}

Task<void> VirtualUnit::forward_fault(CpuPort& cpu, RequesterId device, Fault fault) {
  co_await cpu.acquire(lock_);
  CountingPort counting(port_);
  const TranslationRequest request{.requester = device,
                                   .pasid = fault.pasid,
                                   .address = fault.address,
                                   .access = fault.access,
                                   .type = fault.type,
                                   .privileged = fault.privileged,
                                   .execute = fault.execute};
  const TranslationResponse response = co_await core_->translate(request, counting);
  co_await cpu.charge(CostId::GuestPageAccess, counting.accesses());
  if (const auto* refused = std::get_if<Fault>(&response)) {
    ++faults_.forwarded;
    Fault recorded = *refused;
    // The request is over already.
    if (recorded.stall) core_->withdraw_stall(*recorded.stall);
    recorded.stall.reset();
    recorded.awaits_stall = false;
    co_await record(cpu, recorded);
  } else {
    ++faults_.kept;
  }
  cpu.release(lock_);
}

// Commands between two fences are one batch for the sink: the guest can tell no difference, and hardware then needs one
// fence for all of them.
Task<void> VirtualUnit::run_commands(CpuPort& cpu) {
  std::vector<InvalidationScope> batch;
  for (std::uint64_t n = 0; n < kMostCommandsPerTrap && core_->has_command(); ++n) {
    const std::optional<Command> command = co_await core_->fetch_command(port_);
    if (!command) break;  // the core has recorded why
    ++commands_emulated_;
    co_await cpu.charge(CostId::CommandEmulate);
    CommandEffect effect = core_->apply(*command);
    if (effect.error) break;
    for (const InvalidationScope& scope : effect.scopes) {
      commands_.count(scope);
      batch.push_back(scope);
    }
    if (!effect.fence) continue;
    ++commands_.fence;
    if (!batch.empty()) co_await sink_->invalidate(cpu, std::exchange(batch, {}));
    core_->completed();
    co_await complete(cpu, *effect.fence);
  }
  if (!batch.empty()) co_await sink_->invalidate(cpu, std::move(batch));
}

// Records of refused commands first: software looks for them when the interrupt comes.
Task<void> VirtualUnit::deliver_interrupts(CpuPort& cpu) {
  if (core_->has_events()) co_await core_->write_events(port_);
  while (core_->take_interrupt()) {
    ++interrupts_;
    co_await cpu.charge(CostId::InterruptInject);
  }
}

Task<void> VirtualUnit::complete(CpuPort& cpu, FenceCompletion fence) {
  if (fence.status) {
    // An address outside the guest's memory goes nowhere, as on a bus.
    const Gpa address(fence.status->address.value());
    if (fence.status->bytes == sizeof(std::uint64_t))
      domain_.memory.write64(address, fence.status->data);
    else
      domain_.memory.write32(address, static_cast<std::uint32_t>(fence.status->data));
  }
  if (!fence.interrupt || !core_->fence_interrupt()) co_return;
  ++interrupts_;
  co_await cpu.charge(CostId::InterruptInject);
}

}  // namespace iommu::xen
