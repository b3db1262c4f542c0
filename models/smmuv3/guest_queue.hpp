// SPDX-License-Identifier: Apache-2.0
// The block of further command queues beside an SMMU: VCMDQs, and the VINTFs that own them. It restricts what a guest's
// queue may ask for, puts the guest's VMID into its commands and exchanges its StreamIDs; what a command then means is
// the SMMU's business.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "models/smmuv3/guest_queue_spec.hpp"
#include "sim/translation/iommu_core.hpp"
#include "sim/translation/ring.hpp"

namespace iommu::smmuv3 {

class Core;

// Whether software is shown hardware, or the part of it that is a guest's: there the hypervisor wires HYP_OWN to zero.
// [linux a9d40285bdef]
enum class QueueView : std::uint8_t { Hardware, Guest };

class GuestQueues {
 public:
  // `parameters` is CMDQV_PARAM; the core outlives the block.
  GuestQueues(Core& core, std::uint32_t parameters, QueueView view);
  ~GuestQueues();
  GuestQueues(const GuestQueues&) = delete;
  GuestQueues& operator=(const GuestQueues&) = delete;

  [[nodiscard]] std::span<CommandQueue* const> queues() const { return queues_; }

  // Offsets within the block; registers are of 32 bits, those of 64 are two of them.
  [[nodiscard]] std::uint64_t read(std::uint64_t offset, unsigned bytes) const;
  void write(std::uint64_t offset, unsigned bytes, std::uint64_t value, RegisterEffect& effect);

 private:
  struct Vcmdq {
    std::uint32_t cons = 0, prod = 0, config = 0, gerror = 0, gerrorn = 0, alloc = 0;
    std::uint64_t base = 0, cons_base = 0;
    bool is_under_way = false;  // a command is being fetched or executed
    bool is_syncing = false;    // it is a CMD_SYNC, which is consumed when it has completed
  };
  struct Vintf {
    std::uint32_t config = 0;
    std::array<std::uint32_t, kMostSids> match{}, replace{};
  };
  class Queue;
  // A register of a VCMDQ, in one of the two windows on it.
  struct Place {
    std::size_t queue = 0;
    std::uint64_t at = 0;
    bool is_page1 = false;
  };

  // As a queue.
  [[nodiscard]] bool has_command(std::size_t number) const;
  Task<std::optional<Command>> fetch_command(std::size_t number, MemoryPort& memory);
  void completed(std::size_t number);
  [[nodiscard]] std::uint64_t admit(const Vcmdq& queue, Command& command) const;
  [[nodiscard]] bool exchange_stream(const Vintf& owner, Command& command) const;
  void stop(Vcmdq& queue, std::uint64_t error);

  [[nodiscard]] const Vintf* owner_of(const Vcmdq& queue) const;
  [[nodiscard]] RingIndices ring_of(const Vcmdq& queue) const;
  [[nodiscard]] static Hpa address_of(const Vcmdq& queue, const RingIndices& ring);
  [[nodiscard]] static bool has_error(const Vcmdq& queue);
  [[nodiscard]] std::optional<std::size_t> logical(std::size_t vintf, std::uint64_t lvcmdq) const;
  [[nodiscard]] std::optional<Place> place_of(std::uint64_t offset) const;

  [[nodiscard]] std::uint32_t read32(std::uint64_t offset) const;
  [[nodiscard]] std::uint32_t read_configuration(std::uint64_t offset) const;
  [[nodiscard]] std::uint32_t read_vintf(std::size_t number, std::uint64_t at) const;
  [[nodiscard]] std::uint32_t read_queue(const Place& place) const;
  [[nodiscard]] std::uint32_t error_map(std::optional<std::size_t> vintf, std::size_t word) const;
  void write32(std::uint64_t offset, std::uint32_t value, RegisterEffect& effect);
  void write_configuration(std::uint64_t offset, std::uint32_t value);
  void write_vintf(Vintf& vintf, std::uint64_t at, std::uint32_t value);
  void write_queue(const Place& place, std::uint32_t value, RegisterEffect& effect);
  void tell_pending(RegisterEffect& effect, std::size_t number) const;

  Core& core_;
  std::uint32_t parameters_;
  QueueView view_;
  std::uint32_t config_;
  std::uint64_t interrupt_mask_ = 0;
  std::vector<Vintf> vintfs_;
  std::vector<Vcmdq> vcmdqs_;
  std::vector<std::unique_ptr<Queue>> storage_;
  std::vector<CommandQueue*> queues_;
};

}  // namespace iommu::smmuv3
