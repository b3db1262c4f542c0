// SPDX-License-Identifier: Apache-2.0
#include "sim/guest/iommu_driver.hpp"

#include <algorithm>
#include <utility>

#include "sim/base/check.hpp"
#include "sim/translation/queue_driver.hpp"

namespace iommu::guest {

IommuDriver::IommuDriver(const FamilyDescriptor& family, const IommuDriverSetting& setting, MmioPort& registers,
                         GuestMemory& memory, GuestPages& pages)
    : TableSpaces(family, setting, memory, pages), registers_(registers) {}

// The status words are in guest memory; the vCPU polls the machine's.
class GuestQueueClient final : public QueueClient {
 public:
  GuestQueueClient(const TableDriver& driver, TableMemory& tables, MmioPort& registers, const GuestMemory& memory,
                   std::uint64_t status_page)
      : QueueClient(driver, tables, registers, kLinuxQueue, status_page), memory_(memory) {}

 private:
  [[nodiscard]] Hpa status_host_address(std::uint64_t address) const override {
    const auto host = memory_.translate(Gpa(address));
    SIM_CHECK(host.has_value(), "a kernel allocates status words from its own memory");
    return *host;
  }
  const GuestMemory& memory_;
};

Task<bool> IommuDriver::bring_up(CpuPort& cpu, MmioPort* window) {
  const auto writes = driver().bring_up(tables());
  const auto status_page = tables().allocate(0);
  if (!writes || !status_page) co_return false;
  for (const RegisterWrite& write : *writes) co_await registers_.write(cpu, write.offset, write.bytes, write.value);
  queue_ = std::make_unique<GuestQueueClient>(driver(), tables(), registers_, memory(), *status_page);
  if (window == nullptr || driver().queues() == nullptr) co_return true;
  co_return co_await bring_up_own_queues(cpu, *window);
}

// As far as they come up; without one of them everything goes the other way, as in Linux. A ring is a page, so that it
// follows itself in machine memory as well.
Task<bool> IommuDriver::bring_up_own_queues(CpuPort& cpu, MmioPort& window) {
  const QueueDriver& queues = *driver().queues();
  std::vector<RegisterWrite> setup = queues.enable();
  const std::vector<RegisterWrite> open = queues.open(0, std::nullopt);
  setup.insert(setup.end(), open.begin(), open.end());
  for (const RegisterWrite& write : setup) co_await registers_.write(cpu, write.offset, write.bytes, write.value);
  const auto entries =
      std::min<std::uint32_t>(setting().driver.features.command_ring_entries,
                              static_cast<std::uint32_t>(kPageSize.value()) / driver().ring().entry_bytes);
  for (std::uint32_t number = 0; number < queues.limits().guest_rings; ++number) {
    const auto base = tables().allocate(0);
    if (!base) co_return false;
    const auto placed = queues.place(0, {.ring = number, .base = Hpa(*base), .entries = entries});
    for (const RegisterWrite& write : placed) co_await registers_.write(cpu, write.offset, write.bytes, write.value);
    const auto start = queues.start(number);
    for (const RegisterWrite& write : start) co_await window.write(cpu, write.offset, write.bytes, write.value);
    const std::uint64_t running = co_await window.read(cpu, queues.status_register(number), 4);
    if (running == 0) co_return true;
    own_queues_.push_back(std::make_unique<QueueClient>(driver(), queues, queues.ring(number, *base, entries), tables(),
                                                        window, kLinuxQueue));
  }
  co_return true;
}

void IommuDriver::reset_counters() {
  if (queue_) queue_->reset_counters();
  for (const auto& queue : own_queues_) queue->reset_counters();
}

// Its CPU's own ring, if that may carry all of it. [linux drivers/iommu/arm/arm-smmu-v3/tegra241-cmdqv.c,
// tegra241_cmdqv_get_cmdq]
QueueClient& IommuDriver::queue_for(CpuId cpu, const std::vector<InvalidationScope>& scopes) {
  const auto may = [this](const InvalidationScope& scope) {
    return driver().queues()->guest_may(driver().widen(scope));
  };
  if (own_queues_.empty() || !std::ranges::all_of(scopes, may)) return *queue_;
  return *own_queues_[cpu.value() % own_queues_.size()];
}

Task<void> IommuDriver::invalidate(CpuPort& cpu, std::vector<InvalidationScope> scopes) {
  if (!scopes.empty()) co_await queue_for(cpu.id(), scopes).submit(cpu, scopes, Fence::Poll);
}

Task<bool> IommuDriver::announce(CpuPort& cpu, RequesterId device, ContextSetting setting) {
  const bool written = co_await write_entry(cpu, device, setting);
  if (written) co_await invalidate(cpu, driver().context_scopes(device, std::nullopt));
  co_return written;
}

}  // namespace iommu::guest
