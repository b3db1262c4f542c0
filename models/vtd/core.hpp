// SPDX-License-Identifier: Apache-2.0
// One VT-d remapping unit without time: registers, device tables, page walks, faults and invalidation descriptors.
// Read in this order: core.cpp (which path a request takes), contexts.cpp, registers.cpp, commands.cpp, faults.cpp.
//
// Domain tags are domain-ids: from the context entry in legacy mode, from the PASID-table entry in scalable mode. With
// caching mode (CAP.CM) software keeps domain-id 0 free: a not-present entry may be cached under it. [CAP_REG, §6.1]
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "models/vtd/capabilities.hpp"
#include "models/vtd/format.hpp"
#include "models/vtd/spec.hpp"
#include "sim/translation/iommu_core.hpp"
#include "sim/translation/register_file.hpp"

namespace iommu::vtd {

class Core final : public IommuCore {
 public:
  explicit Core(const Identity& identity);

  [[nodiscard]] const Capabilities& capabilities() const { return capabilities_; }

  [[nodiscard]] bool is_translating() const override { return is_translating_; }
  [[nodiscard]] std::optional<TranslationResponse> answer_without_tables(
      const TranslationRequest& request) const override;
  Task<ContextResult> find_context(TranslationRequest request, MemoryPort& memory) override;
  Task<TranslationResponse> walk(TranslationRequest request, Context context, MemoryPort& memory,
                                 WalkAids aids) override;
  std::optional<InterruptMessage> record(const Fault& fault) override;

  [[nodiscard]] bool has_command() const override;
  Task<std::optional<Command>> fetch_command(MemoryPort& memory) override;
  CommandEffect apply(const Command& command) override;
  std::optional<InterruptMessage> fence_interrupt() override;
  void invalidation_done() override;
  std::optional<InterruptMessage> take_interrupt() override;

  std::uint64_t mmio_read(std::uint64_t offset, unsigned bytes) override;
  RegisterEffect mmio_write(std::uint64_t offset, unsigned bytes, std::uint64_t value) override;

 private:
  // Contexts (contexts.cpp)
  struct Lookup;
  [[nodiscard]] std::optional<const FaultRow*> root_address_fault(const TranslationRequest& request) const;
  Task<ContextResult> find_legacy_context(TranslationRequest request, MemoryPort& memory);
  Task<ContextResult> find_scalable_context(TranslationRequest request, MemoryPort& memory);
  Task<ContextResult> find_process_context(TranslationRequest request, std::array<std::uint64_t, 4> entry,
                                           MemoryPort& memory);
  [[nodiscard]] const FaultRow* check_legacy(const TranslationRequest& request,
                                             const std::array<std::uint64_t, 2>& entry) const;
  [[nodiscard]] const FaultRow* check_scalable(const TranslationRequest& request,
                                               const std::array<std::uint64_t, 4>& entry, Pasid pasid) const;
  [[nodiscard]] const FaultRow* check_process(const std::array<std::uint64_t, 8>& entry) const;
  [[nodiscard]] Context decode_process(const std::array<std::uint64_t, 8>& entry, Pasid pasid) const;
  [[nodiscard]] bool beyond_host(std::uint64_t pointer) const;

  // Walks (core.cpp)
  [[nodiscard]] std::optional<Fault> blocked(const TranslationRequest& request, const Context& context) const;
  Task<TranslationResponse> walk_second_stage(TranslationRequest request, Context context, MemoryPort& memory,
                                              WalkAids aids);
  Task<TranslationResponse> walk_first_stage(TranslationRequest request, Context context, MemoryPort& memory,
                                             WalkAids aids);
  Task<TranslationResponse> walk_nested(TranslationRequest request, Context context, MemoryPort& memory, WalkAids aids);
  [[nodiscard]] FirstStageFormat first_stage_format(const TranslationRequest& request, const Context& context) const;
  [[nodiscard]] SecondStageFormat second_stage_format(const Context& context) const;

  // Commands (commands.cpp)
  [[nodiscard]] QueueError validate(const Command& command) const;
  void stop_queue(QueueError error);
  [[nodiscard]] std::uint64_t queue_bytes() const;
  [[nodiscard]] std::vector<InvalidationScope> context_scopes(ContextGranularity granularity, std::uint64_t domain,
                                                              std::uint64_t source, std::uint64_t function_mask) const;
  [[nodiscard]] std::vector<InvalidationScope> iotlb_scopes(IotlbGranularity granularity, std::uint64_t domain,
                                                            std::uint64_t page, std::uint64_t mask_lg2,
                                                            bool leaf_only) const;

  // Registers (registers.cpp) and faults (faults.cpp)
  enum class Event : std::uint8_t { Fault, Invalidation };
  [[nodiscard]] std::uint64_t reg(std::size_t row) const { return registers_.value(row); }
  [[nodiscard]] std::optional<InterruptMessage> raise(Event event);
  void write_global_command(std::uint64_t value, RegisterEffect& effect);
  void write_context_command(RegisterEffect& effect);
  void write_iotlb(RegisterEffect& effect);
  void write_queue_tail(RegisterEffect& effect);
  void write_event_control(Event event);
  void after_fault_status_change(std::uint64_t before, RegisterEffect& effect);
  void refresh_pending_fault();
  [[nodiscard]] std::size_t fault_record_row(unsigned index) const;
  [[nodiscard]] bool is_queue_enabled() const;
  [[nodiscard]] bool is_scalable() const;

  Capabilities capabilities_;
  ReservedBits reserved_;
  FirstStageFormat first_stage_;  // of the unit; a walk adds what its context and request say
  SecondStageFormat second_stage_;
  RegisterFile registers_;
  // RTADDR_REG as latched by SRTP.
  std::uint64_t root_ = 0;
  bool is_translating_ = false;
  unsigned next_fault_ = 0;
  std::deque<InterruptMessage> interrupts_;
};

}  // namespace iommu::vtd
