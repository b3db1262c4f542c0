// SPDX-License-Identifier: Apache-2.0
// One AMD IOMMU without time: registers, device table, page walks, events and commands.
// Read in this order: core.cpp (which path a request takes), contexts.cpp, registers.cpp, commands.cpp, events.cpp.
//
// Domain tags are DomainIDs, address-space tags are PASIDs. Events are logged in memory: record() and fetch_command()
// leave them to write_events(). Interrupt remapping is not modelled: interrupts are forwarded as they are.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "models/amdvi/capabilities.hpp"
#include "models/amdvi/fault_of.hpp"
#include "models/amdvi/format.hpp"
#include "models/amdvi/register_rows.hpp"
#include "models/amdvi/spec.hpp"
#include "sim/translation/iommu_core.hpp"
#include "sim/translation/register_file.hpp"

namespace iommu::amdvi {

class Core final : public IommuCore {
 public:
  explicit Core(const Identity& identity);

  [[nodiscard]] const Capabilities& capabilities() const { return capabilities_; }
  // The PCI capability block, by byte offset within it. [§3.2]
  [[nodiscard]] std::uint32_t read_capability(std::uint64_t offset) const;

  [[nodiscard]] bool is_translating() const override;
  [[nodiscard]] std::optional<TranslationResponse> answer_without_tables(
      const TranslationRequest& request) const override;
  Task<ContextResult> find_context(TranslationRequest request, MemoryPort& memory) override;
  Task<TranslationResponse> walk(TranslationRequest request, Context context, MemoryPort& memory,
                                 WalkAids aids) override;
  std::optional<InterruptMessage> record(const Fault& fault) override;
  [[nodiscard]] bool has_events() const override { return !pending_events_.empty(); }
  Task<void> write_events(MemoryPort& memory) override;

  [[nodiscard]] bool has_command() const override;
  Task<std::optional<Command>> fetch_command(MemoryPort& memory) override;
  CommandEffect apply(const Command& command) override;
  std::optional<InterruptMessage> fence_interrupt() override;
  void invalidation_done() override {}  // there is no invalidation by registers
  std::optional<InterruptMessage> take_interrupt() override;
  // A device did not answer the INVALIDATE_IOTLB_PAGES command at this address in time.
  void device_tlb_timed_out(RequesterId device, Hpa command);

  std::uint64_t mmio_read(std::uint64_t offset, unsigned bytes) override;
  RegisterEffect mmio_write(std::uint64_t offset, unsigned bytes, std::uint64_t value) override;

 private:
  using Entry = std::array<std::uint64_t, 4>;
  using Event = std::array<std::uint64_t, 2>;

  // Contexts (contexts.cpp)
  [[nodiscard]] const FaultRow* check_entry(const Entry& entry) const;
  [[nodiscard]] Context decode_entry(const Entry& entry) const;
  [[nodiscard]] bool uses_guest_tables(const TranslationRequest& request, const Entry& entry) const;
  Task<ContextResult> find_guest_context(TranslationRequest request, Context context, Entry entry, MemoryPort& memory);

  // Walks (core.cpp)
  [[nodiscard]] std::optional<TranslationResponse> answer_by_address(const TranslationRequest& request,
                                                                     const Context& context) const;
  [[nodiscard]] std::optional<TranslationResponse> answer_from_context(const TranslationRequest& request,
                                                                       const Context& context) const;
  [[nodiscard]] bool is_excluded(std::uint64_t address, const Context& context) const;
  [[nodiscard]] std::uint8_t cacheable_lg2(std::uint64_t input, const Context& context, std::uint8_t page_lg2) const;
  [[nodiscard]] TranslationResponse respond(const TranslationRequest& request, const Context& context,
                                            const WalkLeaf& leaf) const;
  [[nodiscard]] GuestFormat guest_format(AccessMode mode) const;
  Task<TranslationResponse> walk_host(TranslationRequest request, Context context, MemoryPort& memory, WalkAids aids);
  Task<TranslationResponse> walk_guest(TranslationRequest request, Context context, MemoryPort& memory, WalkAids aids);
  Task<TranslationResponse> walk_nested(TranslationRequest request, Context context, MemoryPort& memory, WalkAids aids);

  // Commands (commands.cpp)
  [[nodiscard]] bool is_legal(const Command& command) const;
  void stop_commands(EventCode code, Hpa command);

  // Registers (registers.cpp) and events (events.cpp)
  [[nodiscard]] std::uint64_t reg(Reg row) const { return registers_.value(row); }
  [[nodiscard]] RingIndices ring(Reg base, Reg head, Reg tail) const;
  [[nodiscard]] Hpa ring_address(Reg base, std::uint32_t index) const;
  void set_status(std::uint64_t mask, std::uint64_t value);
  void write_control(std::uint64_t before, RegisterEffect& effect);
  [[nodiscard]] std::optional<InterruptMessage> interrupt_message() const;
  void log(const Event& event);
  void log_overflow();
  void capture_hardware_error(const Event& event);

  Capabilities capabilities_;
  Identity identity_;
  RegisterFile registers_;
  std::deque<Event> pending_events_;
  std::deque<InterruptMessage> interrupts_;
  std::bitset<1U << 16> faulted_once_;  // DeviceIDs whose further page faults SE suppresses
};

}  // namespace iommu::amdvi
