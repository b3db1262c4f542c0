// SPDX-License-Identifier: Apache-2.0
// A virtio-iommu device that Xen, or a device model behind it, offers to a guest: registers on memory-mapped I/O, a
// request queue and an event queue. [VIRTIO 1.3 §5.13]
//
// Every register access traps. A notification is served on the vCPU that wrote it, before it goes on: all requests that
// are available, in order, each with its real change and its invalidation before its buffer is used.
// ASSUMPTION(virtio-001): no thread of its own serves the queue (no ioeventfd): the vCPU that kicks would only spin for
// it.
//
// With `tables` a driver may bring page tables of its own instead of mappings, as a proposal has it that is not part of
// the specification (iommu_abi.hpp): the unit nests over them, and the driver says what to invalidate.
//
// Where the specification leaves a choice: an endpoint moves between domains without being detached when the move
// fails; an UNMAP with reserved bits does nothing; a mapping without permissions is INVAL; guest-physical addresses
// that are not memory (MMIO with that flag) are FAULT; more mappings than the device keeps, NOMEM; an event without a
// buffer is dropped. A queue that no driver may have written so ends in DEVICE_NEEDS_RESET.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "sim/base/cpu_port.hpp"
#include "sim/base/task.hpp"
#include "sim/translation/family.hpp"
#include "sim/translation/queue_client.hpp"
#include "sim/virtio/device_queue.hpp"
#include "sim/virtio/mmio_registers.hpp"
#include "sim/xen/invalidation_counters.hpp"
#include "sim/xen/virtio_spaces.hpp"

namespace iommu::xen {

// What a driver may bring instead of mappings: tables of its own, written for such a unit. No binding: none.
struct VirtioTables {
  const TableBinding* binding = nullptr;
  UnitFeatures unit{};
};

struct VirtioIommuSetting {
  VirtioSpacesSetting spaces{};
  std::uint16_t queue_entries = 256;    // [qemu hw/virtio/virtio-iommu.c, VIOMMU_DEFAULT_QUEUE_SIZE]
  std::uint32_t probe_size = 512;       // [qemu hw/virtio/virtio-iommu.c, VIOMMU_PROBE_SIZE]
  std::uint64_t withheld_features = 0;  // that are not offered
  VirtioTables tables{};                // physical units can nest
};

struct VirtioIommuCounters {
  TrapCounters traps;  // doorbell: notifications of a live queue
  // By RequestType; 0: types that nobody knows.
  std::array<std::uint64_t, virtio::kRequestTypes> requests{};
  std::uint64_t refused = 0;           // requests that ended in another status than OK, or in none
  InvalidationCounters invalidations;  // what INVALIDATE asked for
  std::uint64_t events = 0;
  std::uint64_t events_dropped = 0;
  [[nodiscard]] std::uint64_t of(virtio::RequestType type) const { return requests[static_cast<std::size_t>(type)]; }
};

class VirtioIommu final : public MmioPort {
 public:
  // Both outlive it. Units are up.
  VirtioIommu(Hypervisor& xen, Domain& domain, const VirtioIommuSetting& setting);

  // MmioPort, as the guest's accesses trap.
  Task<void> write(CpuPort& cpu, std::uint64_t offset, unsigned bytes, std::uint64_t value) override;
  Task<std::uint64_t> read(CpuPort& cpu, std::uint64_t offset, unsigned bytes) override;

  Task<Errno> add_endpoint(CpuPort& cpu, RequesterId endpoint, EndpointKind kind);
  // An access was refused, by the endpoint's unit or by translate(): tells the driver.
  Task<void> report_fault(CpuPort& cpu, RequesterId endpoint, Iova address, Access access);

  [[nodiscard]] const VirtioSpaces& spaces() const { return spaces_; }
  [[nodiscard]] const virtio::MmioRegisters& registers() const { return registers_; }
  [[nodiscard]] const VirtioIommuCounters& counters() const { return counters_; }
  void reset_counters() { counters_ = {}; }

 private:
  using Status = virtio::RequestStatus;
  Task<void> charge_exit(CpuPort& cpu);
  void fill_config();
  void make_queue(std::uint32_t index);
  Task<void> write_config(CpuPort& cpu, virtio::MmioEffect::ConfigWrite write);
  Task<void> serve_requests(CpuPort& cpu, virtio::DeviceQueue& queue);
  Task<std::uint32_t> serve(CpuPort& cpu, virtio::Chain chain);
  Task<std::uint32_t> serve_attach(CpuPort& cpu, virtio::Chain chain);
  Task<std::uint32_t> serve_detach(CpuPort& cpu, virtio::Chain chain);
  Task<std::uint32_t> serve_map(CpuPort& cpu, virtio::Chain chain);
  Task<std::uint32_t> serve_unmap(CpuPort& cpu, virtio::Chain chain);
  Task<std::uint32_t> serve_attach_table(CpuPort& cpu, virtio::Chain chain);
  Task<std::uint32_t> serve_invalidate(CpuPort& cpu, virtio::Chain chain);
  std::uint32_t serve_probe(const virtio::Chain& chain);
  // What the device reads of a request; nullopt: it is too short, or its status has no place. That is seen before the
  // request has any effect.
  template <class Request>
  [[nodiscard]] std::optional<Request> parse(const virtio::Chain& chain) {
    Request request;
    const auto bytes = std::as_writable_bytes(std::span(&request, 1)).first(virtio::kReadable<Request>);
    if (!read_request(chain, bytes)) return std::nullopt;
    return request;
  }
  [[nodiscard]] bool read_request(const virtio::Chain& chain, std::span<std::byte> request);
  std::uint32_t finish(const virtio::Chain& chain, Status status);
  struct Tables {
    Status status = Status::Invalid;
    GuestStage1 stage1{};
  };
  [[nodiscard]] Tables tables_of(const virtio::AttachTableRequest& request) const;
  struct Scopes {
    Status status = Status::Invalid;
    std::vector<InvalidationScope> scopes{};
  };
  [[nodiscard]] Scopes scopes_of(const virtio::InvalidateRequest& request) const;
  [[nodiscard]] Scopes pages_of(const virtio::InvalidateRequest& request, InvalidationScope scope) const;
  Status write_properties(const virtio::Chain& chain, std::uint32_t endpoint);
  // Unless the driver does not want to be told.
  Task<void> notify(CpuPort& cpu, virtio::DeviceQueue& queue);

  Domain& domain_;
  VirtioIommuSetting setting_;
  VirtioSpaces spaces_;
  virtio::MmioRegisters registers_;
  std::array<std::optional<virtio::DeviceQueue>, virtio::kIommuQueues> queues_{};
  SpinLock lock_{"virtio iommu"};
  VirtioIommuCounters counters_;
};

}  // namespace iommu::xen
