// SPDX-License-Identifier: Apache-2.0
// The driver of one NIC queue, on one vCPU, as a Linux driver works: keep the ring full of mapped buffers, sleep until
// an interrupt, then poll up to a budget of completions, unmap each, hand it up, map the next buffer.
//
//   NicDriver driver(cpu, api, pages, setting);
//   co_await driver.prepare();                     // rings and buffers
//   NicQueue& queue = nic.add_queue(driver.queue_setup());
//   Task<void> root = driver.run(queue); root.start();
#pragma once

#include <cstdint>
#include <vector>

#include "sim/base/cpu_port.hpp"
#include "sim/base/histogram.hpp"
#include "sim/base/task.hpp"
#include "sim/guest/dma_api.hpp"
#include "sim/guest/guest_table_memory.hpp"
#include "sim/pcie/nic.hpp"
#include "sim/pcie/workload.hpp"

namespace iommu::guest {

struct NicDriverSetting {
  NicQueueKind kind = NicQueueKind::Receive;
  std::uint32_t ring_entries = 256;
  Bytes buffer_size = 2_KiB;  // mapped per packet
  Bytes packet_size{1500};
  std::optional<Picoseconds> packet_interval{};  // nullopt: saturate
  std::uint32_t budget = 64;                     // completions per poll
  std::uint32_t map_batch = 1;                   // most buffers that are mapped, and unmapped, with one sync
  std::uint64_t packets = ~0ULL;                 // stop after so many
  Bytes descriptor_size{16};
  Bytes completion_size{16};
};

struct NicDriverStatistics {
  std::uint64_t packets = 0;
  std::uint64_t bytes = 0;
  std::uint64_t faulted = 0;
  std::uint64_t failed_maps = 0;
  std::uint64_t interrupts = 0;
  Histogram latency;  // of one packet: posted to completed by the driver
  Picoseconds last_completion;
};

class NicDriver {
 public:
  NicDriver(CpuPort& cpu, DmaApi& api, GuestPages& pages, const NicDriverSetting& setting);

  // Allocates buffers and maps the rings for good. False: out of memory or addresses, or a buffer holds no packet.
  Task<bool> prepare();
  [[nodiscard]] NicQueueSetup queue_setup() const;
  // A root task: runs until `packets` are done. Transmit: that many are sent; receive: taken.
  Task<void> run(NicQueue& queue);

  [[nodiscard]] const NicDriverStatistics& statistics() const { return statistics_; }
  void reset_statistics() { statistics_ = {}; }
  // Counts packets there as well; outlives the driver.
  void connect(IoMeter& meter) { meter_ = &meter; }
  [[nodiscard]] bool is_done() const { return done_; }

 private:
  struct Posted {
    Gpa buffer;
    Iova address;
  };
  Task<std::optional<Iova>> map_ring(Bytes entry_size, DmaDirection direction);
  Task<bool> post_next(NicQueue& queue);
  // The same for up to map_batch buffers; how many were posted.
  Task<std::uint32_t> post_some(NicQueue& queue);
  // Unmaps and hands up one completion, or up to map_batch together; how many there were.
  Task<std::uint32_t> complete_some(NicQueue& queue);
  Task<void> complete(NicCompletion completion);
  Task<void> hand_up(NicCompletion completion);
  void note_posted(std::uint32_t cookie, Gpa buffer, Iova address);
  [[nodiscard]] DmaDirection direction() const {
    return setting_.kind == NicQueueKind::Receive ? DmaDirection::FromDevice : DmaDirection::ToDevice;
  }
  [[nodiscard]] Bytes transfer_size() const {
    return setting_.kind == NicQueueKind::Receive ? setting_.buffer_size : setting_.packet_size;
  }

  CpuPort& cpu_;
  DmaApi& api_;
  GuestPages& pages_;
  NicDriverSetting setting_;
  Iova descriptor_ring_;
  Iova completion_ring_;
  std::vector<Gpa> free_buffers_;
  std::vector<Posted> posted_;  // by cookie
  std::vector<std::uint32_t> free_cookies_;
  std::uint64_t submitted_ = 0;
  std::uint64_t completed_ = 0;
  bool done_ = false;
  IoMeter* meter_ = nullptr;
  NicDriverStatistics statistics_;
};

}  // namespace iommu::guest
