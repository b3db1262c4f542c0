// SPDX-License-Identifier: Apache-2.0
// A ring NIC and the contract between it and its driver.
//
// A queue has a descriptor ring and a completion ring in memory that the driver mapped for DMA; the NIC reaches both,
// and every buffer, through its DmaPort only. What moves is addresses and time: descriptor contents are kept here
// beside the ring, and payload bytes are not modelled.
//
//   driver                                             device
//   queue.post({iova, 2_KiB, cookie})  ...
//   co_await cpu.charge(CostId::MmioWrite);
//   queue.ring_doorbell();                      ---->  fetches descriptors in batches (DMA reads)
//                                                      receive: writes a packet; transmit: reads it (DMA)
//   co_await cpu.idle(queue.signal());          <----  writes completions back (DMA writes), raises the signal
//   while (auto done = queue.take_completion()) ...    // completions come in the order of the posts
//   queue.arm_interrupt();                             // one interrupt per arming, at once if completions are waiting
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "sim/base/calendar.hpp"
#include "sim/base/cpu_port.hpp"
#include "sim/base/histogram.hpp"
#include "sim/base/task.hpp"
#include "sim/pcie/dma_port.hpp"
#include "sim/pcie/gate.hpp"

namespace iommu {

enum class NicQueueKind : std::uint8_t { Receive, Transmit };

struct NicParameters {
  Bytes descriptor_size{16};
  Bytes completion_size{16};
  std::uint32_t fetch_batch = 8;          // most descriptors per fetch
  std::uint32_t prefetch = 32;            // most descriptors fetched and not yet used, per queue
  std::uint32_t payloads_in_flight = 32;  // packets whose payload is being moved, per queue
  std::uint32_t completion_batch = 4;     // most completions per write-back
  std::uint32_t receive_buffer = 64;      // packets that wait in the NIC for a descriptor, per queue; more are dropped
  Picoseconds doorbell_latency{};         // driver's register write until the NIC sees the new tail
  // Interrupt moderation: an armed queue raises its signal when so many completions wait or the oldest is so old.
  std::uint32_t interrupt_frames = 32;
  Picoseconds interrupt_delay{};
};

struct NicQueueSetup {
  NicQueueKind kind = NicQueueKind::Receive;
  Iova descriptor_ring{};  // entries * descriptor_size bytes, mapped readable by the device
  Iova completion_ring{};  // entries * completion_size bytes, mapped writable by the device
  std::uint32_t entries = 256;
  // Receive: what arrives from the wire. No interval: a packet is always there, so the queue runs as fast as it can.
  Bytes packet_size{1500};
  std::optional<Picoseconds> packet_interval{};
};

struct NicBuffer {
  Iova address{};
  Bytes length{};  // > 0. Receive: room for a packet; longer packets are cut. Transmit: the packet.
  std::uint64_t cookie = 0;
};

struct NicCompletion {
  std::uint64_t cookie = 0;
  Bytes length;          // bytes moved
  bool faulted = false;  // a descriptor fetch or a payload transfer was refused
  Picoseconds posted;    // when the driver called post()
  Picoseconds finished;  // when the completion reached memory
};

// Counts since the last reset_statistics().
struct NicQueueStatistics {
  std::uint64_t packets = 0;  // completed without a fault
  std::uint64_t bytes = 0;    // of them
  std::uint64_t dropped = 0;  // received while neither a descriptor nor room in the NIC was there
  std::uint64_t faulted = 0;
  std::uint64_t interrupts = 0;
  std::uint64_t rejected_posts = 0;  // zero-length buffers and posts into a full ring
  Histogram latency;                 // of one packet in the NIC: descriptor taken to completion in memory
};

enum class NicPostStatus : std::uint8_t { Ok, RingFull, ZeroLength };

class NicQueue {
 public:
  // Everything passed by reference outlives the queue. Nothing runs before start().
  NicQueue(Calendar& calendar, DmaPort& dma, SignalPort& signals, RequesterId requester,
           const NicParameters& parameters, const NicQueueSetup& setup);
  NicQueue(const NicQueue&) = delete;
  NicQueue& operator=(const NicQueue&) = delete;

  // Driver's side -----------------------------------------------------------------------------------------------------
  // Puts a buffer in the ring; the device does not look before the doorbell. Full means: as many buffers are posted and
  // not yet taken back as the ring has entries.
  [[nodiscard]] NicPostStatus post(NicBuffer buffer);
  void ring_doorbell();
  std::optional<NicCompletion> take_completion();
  [[nodiscard]] std::size_t completions_waiting() const { return delivered_.size(); }
  void arm_interrupt();
  [[nodiscard]] Signal& signal() { return signal_; }
  [[nodiscard]] std::uint32_t free_entries() const { return setup_.entries - outstanding_; }
  [[nodiscard]] const NicQueueSetup& setup() const { return setup_; }

  // Simulation's side -------------------------------------------------------------------------------------------------
  void start();
  // Takes no new descriptor or packet from now on; what is in flight completes.
  void stop();
  [[nodiscard]] const NicQueueStatistics& statistics() const { return statistics_; }
  void reset_statistics() { statistics_ = {}; }

 private:
  // One buffer on its way through the device.
  struct Slot {
    NicBuffer buffer;
    Picoseconds posted;
    Picoseconds taken;
    Bytes moved;
    bool faulted = false;
    bool finished = false;
  };
  Task<void> fetch_loop();
  Task<void> payload_loop();
  Task<void> completion_loop();
  Task<void> arrival_loop();
  [[nodiscard]] bool has_packet() const;
  [[nodiscard]] Slot& slot(std::uint64_t sequence) { return slots_[sequence % setup_.entries]; }
  [[nodiscard]] Iova entry(Iova ring, Bytes size, std::uint64_t sequence) const;
  [[nodiscard]] DmaTransfer transfer(Iova address, Bytes length, Access access) const;
  void deliver(std::uint64_t sequence);
  void consider_interrupt();
  void timer_expired(std::uint64_t);
  void finish(Slot& moved);
  [[nodiscard]] std::uint64_t until_wrap(std::uint64_t sequence, std::uint64_t wanted) const;
  void see_doorbell(std::uint64_t tail);

  Calendar& calendar_;
  DmaPort& dma_;
  SignalPort& signals_;
  RequesterId requester_;
  NicParameters parameters_;
  NicQueueSetup setup_;
  Signal signal_;
  NicQueueStatistics statistics_;

  // Sequence numbers of the ring, each the index of the first entry that has not got so far:
  // completed_ <= started_ <= fetched_ <= visible_ <= posted_.
  std::vector<Slot> slots_;
  std::uint64_t posted_ = 0;
  std::uint64_t visible_ = 0;
  std::uint64_t fetched_ = 0;
  std::uint64_t started_ = 0;
  std::uint64_t completed_ = 0;
  std::uint32_t outstanding_ = 0;  // posted and not yet taken back
  std::uint64_t packets_in_nic_ = 0;
  std::deque<NicCompletion> delivered_;
  bool armed_ = false;
  bool stopped_ = false;

  std::optional<Picoseconds> timer_;  // when the interrupt timer expires

  Gate descriptors_;  // the fetch loop waits for posts and room
  Gate payloads_;     // payload loops wait for descriptors and packets
  Gate finished_;     // the completion loop waits for payloads
  std::vector<Task<void>> tasks_;
};

// The device: its queues share the function's DMA port.
class RingNic {
 public:
  RingNic(Calendar& calendar, DmaPort& dma, SignalPort& signals, RequesterId requester, NicParameters parameters)
      : calendar_(calendar), dma_(dma), signals_(signals), requester_(requester), parameters_(parameters) {}

  NicQueue& add_queue(const NicQueueSetup& setup);
  [[nodiscard]] const std::vector<std::unique_ptr<NicQueue>>& queues() const { return queues_; }
  [[nodiscard]] const NicParameters& parameters() const { return parameters_; }
  void start();
  void stop();

 private:
  Calendar& calendar_;
  DmaPort& dma_;
  SignalPort& signals_;
  RequesterId requester_;
  NicParameters parameters_;
  std::vector<std::unique_ptr<NicQueue>> queues_;
};

}  // namespace iommu
