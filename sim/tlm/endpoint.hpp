// SPDX-License-Identifier: Apache-2.0
// A device's DMA engine in time: cuts operations into packets, issues them under its own limits and the link's credits,
// and collects the answers.
//
// Reads and writes are two engines with a queue each: neither blocks the other except on the link, where they take
// turns. Closed forms: an engine starts at most one operation per interval; read throughput is at most tags *
// max_read_request per round trip (tags * length for shorter reads).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "sim/base/calendar.hpp"
#include "sim/base/histogram.hpp"
#include "sim/pcie/dma_port.hpp"
#include "sim/tlm/fifo.hpp"
#include "sim/tlm/root_port.hpp"

namespace iommu {

struct EndpointParameters {
  std::uint32_t tags = 32;       // 1 …: read requests without an answer
  Picoseconds read_interval{};   // >= 0: between the starts of two read operations
  Picoseconds write_interval{};  // >= 0: between the starts of two write operations
  // Room for completions, which a device reserves before it asks [PCIe 6.0 §2.6.1: endpoints advertise infinite
  // completion credits]. nullopt: as much as the tags can ask for.
  std::optional<Credits> completion_buffer{};
  Picoseconds switch_latency{};  // >= 0: of the switches between device and root port, each way
  // What a bridge between device and root port puts in place of the device's ids.
  std::optional<RequesterId> bridge_id{};

  // Why the parameters cannot be on this link; null when they can.
  [[nodiscard]] const char* problem(const LinkParameters& link) const;
};

// One operation of the device. The owner keeps it in place until `done` has run.
struct EndpointOperation {
  RequesterId requester;
  std::optional<Pasid> pasid;
  Iova address;
  Bytes length;  // > 0; submit() says so
  Access access = Access::Read;
  Calendar::Action done = nullptr;  // runs from the calendar
  void* context = nullptr;
  std::uint64_t argument = 0;

  bool faulted = false;  // at least one packet was refused
  Picoseconds submitted;
  Picoseconds completed;  // Read: last byte at the device. Write: last byte accepted by memory.

  struct Internal {
    Bytes issued;
    std::uint32_t unanswered = 0;
    bool is_started = false;
  } internal;
};

struct EndpointStatistics {
  std::uint64_t operations = 0;  // completed
  std::uint64_t bytes = 0;
  std::uint64_t faulted = 0;
  std::uint64_t refused = 0;        // operations of no bytes, or past the end of the address space
  std::uint64_t waits_for_tag = 0;  // times that an engine ran out of tags or completion room
  std::uint64_t waits_for_credit = 0;
  Histogram latency;  // of operations: submission to completion
};

class PcieEndpoint final : public DmaPort {
 public:
  PcieEndpoint(Calendar& calendar, PcieRootPort& root_port, const EndpointParameters& parameters);
  PcieEndpoint(const PcieEndpoint&) = delete;
  PcieEndpoint& operator=(const PcieEndpoint&) = delete;

  // False, and nothing happens, for an operation of no bytes or past the end of the address space.
  [[nodiscard]] bool submit(EndpointOperation& operation);
  bool begin(DmaTransfer& transfer) override;
  // Bus mastering goes off, for good: what is submitted from here on fails without leaving the device; what is on its
  // way still arrives.
  void cut_off() { is_cut_off_ = true; }
  [[nodiscard]] bool is_cut_off() const { return is_cut_off_; }

  [[nodiscard]] const EndpointStatistics& statistics() const { return statistics_; }
  void reset_statistics() { statistics_ = {}; }
  [[nodiscard]] const EndpointParameters& parameters() const { return parameters_; }
  [[nodiscard]] PcieRootPort& root_port() { return root_port_; }

 private:
  struct EngineState {
    Access access = Access::Read;
    Picoseconds interval;
    Picoseconds next_start;
    Fifo<EndpointOperation*> queue;
    bool is_parked = false;  // something will call wake()
    bool waits_for_tag = false;
  };
  enum class Room : std::uint8_t { Yes, NoTag, NoCredit };

  void issue(EngineState& engine);
  void wake(std::uint64_t access);
  void take_turn(std::uint64_t access);
  void send_next(EngineState& engine);
  [[nodiscard]] Room reserve(const EngineState& engine, std::uint32_t bytes);
  void wait_for_credit(EngineState& engine);
  void credit_freed(std::uint64_t access);
  void answered(std::uint64_t tlp);
  void complete(EndpointOperation& operation);
  void refuse(std::uint64_t operation);
  void transfer_done(std::uint64_t slot);
  [[nodiscard]] Credits completion_room(std::uint64_t address, std::uint32_t bytes) const;
  [[nodiscard]] std::uint32_t next_bytes(const EndpointOperation& operation) const;
  [[nodiscard]] EngineState& engine_at(std::uint64_t access) {
    return access == static_cast<std::uint64_t>(Access::Read) ? reads_ : writes_;
  }

  // A DmaTransfer on its way.
  struct TransferSlot {
    EndpointOperation operation;
    DmaTransfer* transfer = nullptr;
  };

  Calendar& calendar_;
  PcieRootPort& root_port_;
  EndpointParameters parameters_;
  EngineState reads_;
  EngineState writes_;
  bool is_cut_off_ = false;
  std::uint32_t free_tags_;
  std::optional<Credits> free_completions_;
  std::vector<std::unique_ptr<TransferSlot>> slots_;
  std::vector<std::uint32_t> free_slots_;
  EndpointStatistics statistics_;
};

}  // namespace iommu
