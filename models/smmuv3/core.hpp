// SPDX-License-Identifier: Apache-2.0
// One SMMUv3 without time: registers, stream tables and context descriptors, stage 1, stage 2 and nested walks, events,
// page requests and commands, for the Non-secure state and its EL1 translation regime. Read in this order: core.cpp
// (which path a transaction takes), contexts.cpp, registers.cpp, commands.cpp, events.cpp.
//
// Domain tags are VMIDs, address-space tags ASIDs. Without stage 2 in the unit, all tags are VMID 0.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "models/smmuv3/capabilities.hpp"
#include "models/smmuv3/format.hpp"
#include "models/smmuv3/spec.hpp"
#include "sim/translation/iommu_core.hpp"
#include "sim/translation/register_file.hpp"
#include "sim/translation/ring.hpp"

namespace iommu::smmuv3 {

class GuestQueues;

class Core final : public IommuCore {
 public:
  explicit Core(const Identity& identity);
  ~Core() override;

  [[nodiscard]] const Capabilities& capabilities() const { return capabilities_; }

  [[nodiscard]] bool is_translating() const override;
  [[nodiscard]] std::optional<TranslationResponse> answer_without_tables(
      const TranslationRequest& request) const override;
  Task<ContextResult> find_context(TranslationRequest request, MemoryPort& memory) override;
  Task<TranslationResponse> walk(TranslationRequest request, Context context, MemoryPort& memory,
                                 WalkAids aids) override;

  std::optional<InterruptMessage> record(const Fault& fault) override;
  // Stall records wait for a full queue to be emptied: ask again after the consumer index moved.
  [[nodiscard]] bool has_events() const override;
  Task<void> write_events(MemoryPort& memory) override;
  bool withdraw_stall(StallTag tag) override;
  std::optional<PageRequestResponse> record_page_request(const PageRequest& request) override;
  // Transactions that wait for software.
  [[nodiscard]] std::size_t stalled() const { return stalled_.size(); }

  [[nodiscard]] bool has_command() const override;
  Task<std::optional<Command>> fetch_command(MemoryPort& memory) override;
  CommandEffect apply(const Command& command) override;
  void completed() override;
  [[nodiscard]] std::span<CommandQueue* const> further_queues() override;
  // Of a command of whatever queue.
  [[nodiscard]] CommandError validate(const Command& command) const;
  // Null: no such opcode.
  [[nodiscard]] static const CommandRow* command_row(const Command& command);
  std::optional<InterruptMessage> fence_interrupt() override { return std::nullopt; }
  void invalidation_done() override {}
  std::optional<InterruptMessage> take_interrupt() override;

  std::uint64_t mmio_read(std::uint64_t offset, unsigned bytes) override;
  RegisterEffect mmio_write(std::uint64_t offset, unsigned bytes, std::uint64_t value) override;

 private:
  using Ste = std::array<std::uint64_t, 8>;
  using Cd = std::array<std::uint64_t, 8>;
  struct Located8 {
    std::array<std::uint64_t, 8> words{};
    std::optional<Fault> fault;
  };
  // Where an access belongs in an event record.
  struct Origin {
    FaultingAccess access = FaultingAccess::Input;
    std::optional<Gpa> intermediate{};  // stage-2 faults
    bool is_table_read = true;          // of the stage-1 entry: fetched, or written to mark it
  };

  // Contexts (contexts.cpp)
  Task<Located8> read_ste(TranslationRequest request, MemoryPort& memory) const;
  [[nodiscard]] bool is_illegal(const Ste& ste) const;
  [[nodiscard]] bool is_stage2_illegal(const Ste& ste) const;
  [[nodiscard]] bool is_illegal(const Cd& cd, const Ste& ste) const;
  [[nodiscard]] bool is_range_illegal(std::uint64_t txsz, unsigned granule, std::uint64_t table,
                                      unsigned output_bits) const;
  [[nodiscard]] const FaultRow* check_substream(const TranslationRequest& request, const Ste& ste) const;
  void decode_stage2(const Ste& ste, Context& context) const;
  void decode_stage1(const Cd& cd, Context& context) const;
  Task<Located8> read_cd(TranslationRequest request, Ste ste, Context context, std::uint64_t index, MemoryPort& memory);
  struct Pointer {
    Hpa host;
    std::optional<Fault> fault;
  };
  Task<Pointer> locate_structure(TranslationRequest request, Context context, std::uint64_t address,
                                 MemoryPort& memory);
  [[nodiscard]] AtsMode ats_mode(const Ste& ste) const;
  [[nodiscard]] static bool has_stage(const Ste& ste, StreamConfig stage);

  // Walks (core.cpp)
  [[nodiscard]] Stage1Format stage1_format(const TranslationRequest& request, const Context& context,
                                           Granule granule) const;
  [[nodiscard]] Stage2Format stage2_format(const Context& context, FaultingAccess access, AccessMode mode) const;
  [[nodiscard]] AccessMode stage2_mode(AccessMode mode) const;
  [[nodiscard]] static Translation respond(const TranslationRequest& request, const Context& context,
                                           const WalkLeaf& leaf);
  [[nodiscard]] std::optional<Fault> refused_by_kind(const TranslationRequest& request, const Context& context) const;
  [[nodiscard]] Fault stage1_fault(const TranslationRequest& request, const Context& context, const FaultRow* row);
  [[nodiscard]] Fault stage2_fault(const TranslationRequest& request, const Context& context, const FaultRow* row,
                                   const Origin& origin);
  [[nodiscard]] Fault stage1_stop(const TranslationRequest& request, const Context& context, const Stage1Format& format,
                                  const WalkStop& stop);
  [[nodiscard]] Fault stage2_stop(const TranslationRequest& request, const Context& context, const Stage2Format& format,
                                  const Stage2Stop& stop, const Origin& origin);
  void stall(Fault& fault);
  [[nodiscard]] TranslationResponse refuse(Fault refused) const;
  [[nodiscard]] TranslationResponse pass_translated(const TranslationRequest& request) const;
  Task<TranslationResponse> walk_stage1(TranslationRequest request, Context context, MemoryPort& memory, WalkAids aids);
  Task<TranslationResponse> walk_stage2(TranslationRequest request, Context context, MemoryPort& memory, WalkAids aids);

  // Commands (commands.cpp)
  void stop_commands(CommandError error);
  [[nodiscard]] InvalidationScope tlbi_scope(const Command& command) const;
  [[nodiscard]] InvalidationScope of_vmid(const Command& command) const;
  [[nodiscard]] AddressRange tlbi_range(const Command& command) const;
  [[nodiscard]] StallResolution resume(const Command& command);
  [[nodiscard]] StallResolution terminate_all(RequesterId requester);

  // Registers (registers.cpp) and events (events.cpp)
  [[nodiscard]] std::uint64_t reg(std::size_t row) const { return registers_.value(row); }
  enum class Queue : std::uint8_t { Commands, Events, PageRequests };
  [[nodiscard]] RingIndices ring(Queue queue) const;
  // Where the next command is fetched.
  [[nodiscard]] RingIndices pending_commands() const;
  [[nodiscard]] Hpa queue_address(Queue queue, std::uint32_t index) const;
  [[nodiscard]] bool is_enabled(Queue queue) const;
  [[nodiscard]] bool is_active(std::uint64_t error) const;
  void activate(std::uint64_t error);
  void raise(std::size_t address_row, std::size_t data_row);
  void write_control(std::uint64_t before, RegisterEffect& effect);
  void keep_guarded(const RegisterChange& change);
  [[nodiscard]] bool is_guarded(std::size_t row) const;

  struct Record {
    std::array<std::uint64_t, 4> words{};
    std::optional<StallTag> stall{};
  };
  [[nodiscard]] bool is_writable(Queue queue) const;
  // True when the record left the buffer, into the queue or nowhere.
  Task<bool> write_record(Record record, Queue queue, MemoryPort& memory);
  void overflow(Queue queue);
  [[nodiscard]] bool has_overflow(Queue queue) const;

  Capabilities capabilities_;
  RegisterFile registers_;
  std::deque<Record> events_;
  std::deque<Record> page_requests_;
  struct Stalled {
    RequesterId requester;
    bool is_committed = false;  // its record has begun to be written
  };
  std::unordered_map<StallTag, Stalled> stalled_;
  StallTag next_stall_ = 0;
  std::deque<InterruptMessage> interrupts_;
  std::unique_ptr<GuestQueues> guest_queues_;  // null: the unit has no further queues
  bool is_syncing_ = false;  // the command at CMDQ_CONS.RD is a CMD_SYNC that has been fetched and not completed
};

}  // namespace iommu::smmuv3
