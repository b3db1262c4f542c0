// SPDX-License-Identifier: Apache-2.0
// A guest kernel's driver for a virtio-iommu. MAP and UNMAP are only queued; the queue is kicked and polled empty when
// a map is synchronised, when an unmap must be over, or when it is full. ATTACH and PROBE are waited for. One lock
// covers all of it, the kick and the poll included. What a queued MAP ended in nobody looks at: the device's accesses
// fault. [linux drivers/iommu/virtio-iommu.c, and drivers/iommu/iommu.c, iommu_pgsize, for the pieces in which it is
// asked]
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "sim/base/cpu_port.hpp"
#include "sim/base/task.hpp"
#include "sim/guest/dma_space.hpp"
#include "sim/guest/driver_queue.hpp"
#include "sim/guest/guest_table_memory.hpp"
#include "sim/guest/virtio_table_spaces.hpp"
#include "sim/translation/queue_client.hpp"
#include "sim/virtio/iommu_abi.hpp"

namespace iommu::guest {

// Tables of the kernel's own, if the device takes them.
struct VirtioOwnTables {
  const FamilyDescriptor* family = nullptr;  // null: none
  IommuDriverSetting setting{};
};

class VirtioIommuDriver {
 public:
  // Everything passed by reference outlives it. `refused_features`: that it does not accept, for tests.
  VirtioIommuDriver(MmioPort& registers, GuestMemory& memory, GuestPages& pages, std::uint64_t refused_features = 0,
                    const VirtioOwnTables& tables = {});
  ~VirtioIommuDriver();
  VirtioIommuDriver(const VirtioIommuDriver&) = delete;
  VirtioIommuDriver& operator=(const VirtioIommuDriver&) = delete;

  // False: no such device behind the registers, or out of memory.
  Task<bool> bring_up(CpuPort& cpu);
  // A domain of its own for the endpoint; nullptr: the device refuses it.
  Task<DmaSpace*> attach(CpuPort& cpu, RequesterId endpoint);
  // What the device reported since the last call; its buffers go back to it.
  Task<std::vector<virtio::FaultRecord>> take_faults(CpuPort& cpu);

  // For VirtioTableSpaces. invalidate() is over when the device has answered.
  [[nodiscard]] std::uint32_t first_domain() const { return config_.domain_start; }
  Task<virtio::RequestStatus> bind(CpuPort& cpu, virtio::AttachTableRequest request);
  Task<void> invalidate(CpuPort& cpu, std::vector<virtio::InvalidateRequest> requests);

  [[nodiscard]] std::uint64_t table_bytes() const { return tables_ ? tables_->table_bytes() : 0; }
  // Requests whose answer was an error, or none.
  [[nodiscard]] std::uint64_t refused() const { return refused_; }

 private:
  friend class VirtioDmaSpace;
  struct Reserved {
    std::vector<IovaRange> ranges;
    bool has_msi_window = false;
    std::uint16_t hardware = 0;  // the property that says what the unit is; 0: none
    std::vector<std::uint64_t> identity{};
  };
  // Queues a request and returns its head; kicks and polls first when there is no room. The lock is held.
  template <class Request>
  Task<std::uint16_t> queue_locked(CpuPort& cpu, Request request);
  // A request that nobody waits for, and one with its answer.
  template <class Request>
  Task<void> queue(CpuPort& cpu, Request request);
  template <class Request>
  Task<virtio::RequestStatus> send(CpuPort& cpu, Request request);
  Task<std::optional<Reserved>> probe(CpuPort& cpu, RequesterId endpoint);
  [[nodiscard]] Reserved read_properties() const;
  // Kicks and polls until the queue is empty.
  Task<void> sync(CpuPort& cpu);
  Task<void> sync_locked(CpuPort& cpu);
  void note_used(DriverQueue::Used used);

  Task<bool> negotiate(CpuPort& cpu);
  Task<bool> set_up_queue(CpuPort& cpu, std::uint32_t index, std::optional<DriverQueue>& queue);
  Task<void> read_config(CpuPort& cpu);
  void fill_event_queue();
  Task<void> poke(CpuPort& cpu, std::uint64_t offset, std::uint64_t value);
  Task<std::uint64_t> peek(CpuPort& cpu, std::uint64_t offset);
  Task<std::uint64_t> peek64(CpuPort& cpu, std::uint64_t offset);
  [[nodiscard]] bool has(unsigned feature) const { return (features_ >> feature & 1) != 0; }

  MmioPort& registers_;
  GuestMemory& memory_;
  GuestPages& pages_;
  std::uint64_t refused_features_;
  std::uint64_t features_ = 0;  // negotiated
  virtio::IommuConfig config_;
  std::optional<DriverQueue> requests_;
  std::optional<DriverQueue> events_;
  Gpa slots_;
  Gpa event_slots_;
  Gpa long_buffer_;
  SpinLock lock_{"virtio iommu requests"};
  struct Answer {
    Gpa tail;
    virtio::RequestStatus status = virtio::RequestStatus::IoError;  // of the last request with this head
  };
  std::vector<Answer> answers_;  // by head
  std::uint32_t domains_ = 0;
  std::uint64_t refused_ = 0;
  std::vector<std::unique_ptr<DmaSpace>> spaces_;
  std::unique_ptr<VirtioTableSpaces> tables_;
};

}  // namespace iommu::guest
