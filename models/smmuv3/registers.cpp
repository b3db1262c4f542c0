// SPDX-License-Identifier: Apache-2.0
// What register writes cause. Updates complete at once: an acknowledge register follows in the same write.
#include <algorithm>

#include "models/smmuv3/core.hpp"
#include "models/smmuv3/guest_queue.hpp"
#include "models/smmuv3/register_rows.hpp"

namespace iommu::smmuv3 {

Core::Core(const Identity& identity) : capabilities_(identity), registers_(register_rows(identity), kRegisterBytes) {
  if (identity.queue_parameters != 0)
    guest_queues_ = std::make_unique<GuestQueues>(*this, identity.queue_parameters, identity.queue_view);
}

Core::~Core() = default;

std::span<CommandQueue* const> Core::further_queues() {
  if (guest_queues_ == nullptr) return {};
  return guest_queues_->queues();
}

std::uint64_t Core::mmio_read(std::uint64_t at, unsigned bytes) {
  if (guest_queues_ != nullptr && at >= kQueueBlock) return guest_queues_->read(at - kQueueBlock, bytes);
  return registers_.read(at, bytes);
}

RegisterEffect Core::mmio_write(std::uint64_t at, unsigned bytes, std::uint64_t value) {
  RegisterEffect effect;
  if (guest_queues_ != nullptr && at >= kQueueBlock) {
    guest_queues_->write(at - kQueueBlock, bytes, value, effect);
    return effect;
  }
  const auto changes = registers_.write(at, bytes, value);
  // First what does not count: one write may reach two registers, and the meaning of one depends on the other.
  for (const RegisterChange& change : changes)
    if (is_guarded(change.row)) registers_.set(change.row, change.before);
  for (const RegisterChange& change : changes) {
    if (is_guarded(change.row)) continue;
    switch (change.row) {
      case kRegCr0:
        write_control(change.before, effect);
        break;
      case kRegIrqCtrl:
        registers_.set(kRegIrqCtrlack, reg(kRegIrqCtrl));
        break;
      case kRegGbpa:  // only together with Update, which then reads as zero [§6.3.14.1]
        if (get<kGbpa, "Update">(change.written) != 0) {
          registers_.set(kRegGbpa, change.written & kGbpa.mask_of(FieldKind::Value) & ~mask_of<kGbpa, "Update">);
          effect.configuration_changed = true;
        }
        break;
      case kRegCmdqBase:
      case kRegCmdqCons:
        is_syncing_ = false;  // what is still under way is no command of this ring any more
        break;
      case kRegGerrorn:
      case kRegCmdqProd:
        effect.commands_pending = has_command();
        break;
      default:
        break;
    }
  }
  return effect;
}

// Registers that say where structures are must not change while they are in use. [§6.3, "Guarded by"]
bool Core::is_guarded(std::size_t row) const {
  const std::uint64_t control = reg(kRegCr0);
  switch (row) {
    case kRegStrtabBase:
    case kRegStrtabBaseCfg:
    case kRegCr2:
      return get<kCr0, "SMMUEN">(control) != 0;
    case kRegCr1:
      return control != 0;
    case kRegCmdqBase:
    case kRegCmdqCons:
      return get<kCr0, "CMDQEN">(control) != 0;
    case kRegEventqBase:
    case kRegEventqProd:
      return get<kCr0, "EVENTQEN">(control) != 0;
    case kRegPriqBase:
    case kRegPriqProd:
      return get<kCr0, "PRIQEN">(control) != 0;
    default:
      return false;
  }
}

void Core::write_control(std::uint64_t before, RegisterEffect& effect) {
  const std::uint64_t control = reg(kRegCr0);
  registers_.set(kRegCr0ack, control);
  if (get<kCr0, "SMMUEN">(control) != get<kCr0, "SMMUEN">(before)) effect.configuration_changed = true;
  // Switching off terminates what has stalled. [§6.3.9.6]
  if (get<kCr0, "SMMUEN">(control) == 0 && !stalled_.empty()) {
    for (const auto& [tag, waiting] : stalled_)
      effect.resolutions.push_back({.requester = waiting.requester, .tag = tag});
    stalled_.clear();
    std::erase_if(events_, [](const Record& record) { return record.stall.has_value(); });
  }
  effect.commands_pending = has_command();
}

bool Core::is_enabled(Queue queue) const {
  const std::uint64_t control = reg(kRegCr0);
  switch (queue) {
    case Queue::Commands:
      return get<kCr0, "CMDQEN">(control) != 0;
    case Queue::Events:
      return get<kCr0, "EVENTQEN">(control) != 0;
    case Queue::PageRequests:
      return get<kCr0, "PRIQEN">(control) != 0 && get<kCr0, "SMMUEN">(control) != 0;
  }
  return false;
}

namespace {
struct QueueRows {
  std::size_t base, producer, consumer;
  std::uint32_t entry_bytes;
};

QueueRows rows_of(std::uint8_t queue) {
  static constexpr std::array<QueueRows, 3> kRows{{
      {kRegCmdqBase, kRegCmdqProd, kRegCmdqCons, kCommandBytes},
      {kRegEventqBase, kRegEventqProd, kRegEventqCons, kEventBytes},
      {kRegPriqBase, kRegPriqProd, kRegPriqCons, kPageRequestBytes},
  }};
  return kRows[queue];
}

}  // namespace

// The indexes with their wrap bit, cut to the queue's size: bits above are ignored. [§3.5.1]
RingIndices Core::ring(Queue queue) const {
  const QueueRows rows = rows_of(static_cast<std::uint8_t>(queue));
  const unsigned limit = queue == Queue::Commands ? capabilities_.command_queue_lg2
                         : queue == Queue::Events ? capabilities_.event_queue_lg2
                                                  : capabilities_.page_queue_lg2;
  const unsigned lg2 = std::min(limit, static_cast<unsigned>(get<kQueueBase, "LOG2SIZE">(reg(rows.base))));
  RingIndices indices{.format = {.entries = 1U << lg2, .entry_bytes = rows.entry_bytes, .full = FullRule::WrapBit}};
  const std::uint64_t inside = bits_between(0, lg2 + 1);
  indices.tail = static_cast<std::uint32_t>(get<kQueueProd, "WR">(reg(rows.producer)) & inside);
  indices.head = static_cast<std::uint32_t>(get<kQueueCons, "RD">(reg(rows.consumer)) & inside);
  return indices;
}

// The base is aligned to the larger of the queue's size and 32 bytes; addresses are cut to the OAS. [§3.4.3, §6.3.26]
Hpa Core::queue_address(Queue queue, std::uint32_t index) const {
  const QueueRows rows = rows_of(static_cast<std::uint8_t>(queue));
  const RingIndices indices = ring(queue);
  const std::uint64_t bytes = std::max<std::uint64_t>(std::uint64_t{indices.format.entries} * rows.entry_bytes, 32);
  const std::uint64_t base = reg(rows.base) & mask_of<kQueueBase, "ADDR"> & ~(bytes - 1);
  return Hpa((base + indices.offset(index)) & bits_between(0, capabilities_.output_bits));
}

// An error is active while GERROR and GERRORN differ. [§7.5]
bool Core::is_active(std::uint64_t error) const { return ((reg(kRegGerror) ^ reg(kRegGerrorn)) & error) != 0; }

void Core::activate(std::uint64_t error) {
  if (is_active(error)) return;
  registers_.set(kRegGerror, reg(kRegGerror) ^ error);
  if (get<kIrqCtrl, "GERROR_IRQEN">(reg(kRegIrqCtrl)) != 0) raise(kRegGerrorIrqCfg0, kRegGerrorIrqCfg1);
}

// Address zero sends nothing; wired interrupts do not exist (smmuv3-006).
void Core::raise(std::size_t address_row, std::size_t data_row) {
  const std::uint64_t address = reg(address_row) & mask_of<kIrqCfg0, "ADDR">;
  if (!capabilities_.messages || address == 0) return;
  interrupts_.push_back(
      {Hpa(address & bits_between(0, capabilities_.output_bits)), static_cast<std::uint32_t>(reg(data_row))});
}

std::optional<InterruptMessage> Core::take_interrupt() {
  if (interrupts_.empty()) return std::nullopt;
  const InterruptMessage message = interrupts_.front();
  interrupts_.pop_front();
  return message;
}

}  // namespace iommu::smmuv3
