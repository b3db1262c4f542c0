// SPDX-License-Identifier: Apache-2.0
// The queues that the unit fills: events and page requests. [§7, §8]
//
// A record is written in its turn; one that cannot be written is lost, and loss for want of room is an overflow.
// Records of stalled transactions are never lost: they wait.
#include "models/smmuv3/core.hpp"
#include "models/smmuv3/decoded_context.hpp"
#include "models/smmuv3/register_rows.hpp"

namespace iommu::smmuv3 {

namespace {

// Of records that whoever drives the unit has not had written yet. A flood beyond it is lost, as in any unit.
constexpr std::size_t kBufferedRecords = 4096;

using Words = std::array<std::uint64_t, 4>;

bool is_translation_fault(unsigned code) {
  return code >= kFault<"F_TRANSLATION">->code && code <= kFault<"F_PERMISSION">->code;
}

void put_substream(Words& words, const Fault& fault) {
  if (!fault.pasid) return;
  put<kEvent, "SubstreamID">(words, fault.pasid->value());
  if (fault.row != kFault<"C_BAD_SUBSTREAMID">) put<kEvent, "SSV">(words, 1);
}

void put_fetch_address(Words& words, Hpa address) {
  constexpr std::uint64_t kAligned = 7;
  put<kEvent, "FetchLow">(words, address.value() & ~kAligned);
  put<kEvent, "Page">(words, address.value() >> kPageLg2);
}

Words encode(const Fault& fault) {
  Words words{};
  const unsigned code = fault.row->code;
  put<kEvent, "ID">(words, code);
  put<kEvent, "StreamID">(words, fault.requester.value());
  if (fault.row != kFault<"F_STREAM_DISABLED">) put_substream(words, fault);
  const bool walks = is_translation_fault(code) || fault.row == kFault<"F_WALK_EABT">;
  if (walks || fault.row == kFault<"F_TRANSL_FORBIDDEN">) {
    put<kEvent, "RnW">(words, fault.access == Access::Read ? 1 : 0);
    put<kEvent, "InputAddr">(words, fault.address.value());
  }
  if (walks) {
    put<kEvent, "PnU">(words, get<kFaultDetail, "privileged">(fault.family_bits));
    put<kEvent, "InD">(words, get<kFaultDetail, "instruction">(fault.family_bits));
    put<kEvent, "S2">(words, get<kFaultDetail, "stage2">(fault.family_bits));
    put<kEvent, "CLASS">(words, get<kFaultDetail, "class">(fault.family_bits));
  }
  if (is_translation_fault(code)) {
    if (fault.gpa) put<kEvent, "Page">(words, fault.gpa->value() >> kPageLg2);
    if (fault.row == kFault<"F_PERMISSION">)
      put<kEvent, "TTRnW">(words, get<kFaultDetail, "table_read">(fault.family_bits));
    put<kEvent, "Stall">(words, fault.stall ? 1 : 0);
    put<kEvent, "STAG">(words, fault.stall.value_or(0));
  } else if (fault.table_entry) {
    put_fetch_address(words, *fault.table_entry);
  }
  return words;
}

}  // namespace

std::optional<InterruptMessage> Core::record(const Fault& fault) {
  if (fault.suppressed || fault.row->code == kNoEvent) return std::nullopt;
  if (events_.size() < kBufferedRecords || fault.stall) events_.push_back({encode(fault), fault.stall});
  return std::nullopt;
}

bool Core::has_overflow(Queue queue) const {
  const bool events = queue == Queue::Events;
  return get<kQueueProd, "OVFLG">(reg(events ? kRegEventqProd : kRegPriqProd)) !=
         get<kQueueCons, "OVACKFLG">(reg(events ? kRegEventqCons : kRegPriqCons));
}

// One overflow is shown until software acknowledges it. [§7.4, §8.1]
void Core::overflow(Queue queue) {
  if (has_overflow(queue)) return;
  const std::size_t row = queue == Queue::Events ? kRegEventqProd : kRegPriqProd;
  registers_.set(row, reg(row) ^ mask_of<kQueueProd, "OVFLG">);
}

bool Core::is_writable(Queue queue) const {
  const std::uint64_t abort =
      queue == Queue::Events ? mask_of<kGerror, "EVENTQ_ABT_ERR"> : mask_of<kGerror, "PRIQ_ABT_ERR">;
  return is_enabled(queue) && !ring(queue).is_full() && !is_active(abort);
}

bool Core::has_events() const {
  if (!page_requests_.empty()) return true;
  if (events_.empty()) return false;
  if (is_writable(Queue::Events)) return true;
  return std::any_of(events_.begin(), events_.end(), [](const Record& record) { return !record.stall; });
}

Task<bool> Core::write_record(Record record, Queue queue, MemoryPort& memory) {
  const bool events = queue == Queue::Events;
  if (!is_writable(queue)) {
    if (record.stall) co_return false;
    if (is_enabled(queue) && ring(queue).is_full()) overflow(queue);
    co_return true;
  }
  if (record.stall)
    if (const auto waiting = stalled_.find(*record.stall); waiting != stalled_.end())
      waiting->second.is_committed = true;
  const RingIndices indices = ring(queue);
  const std::span<const std::uint64_t> words = std::span(record.words).first(indices.format.entry_bytes / 8);
  const bool written = co_await memory.write(queue_address(queue, indices.tail), words,
                                             static_cast<std::uint8_t>(indices.format.entry_bytes), AccessKind::Event);
  if (!written) {
    activate(events ? mask_of<kGerror, "EVENTQ_ABT_ERR"> : mask_of<kGerror, "PRIQ_ABT_ERR">);
    co_return true;
  }
  // Software may have switched the queue off meanwhile; the record is then in memory and in no queue.
  if (!is_enabled(queue)) co_return true;
  const std::size_t producer = events ? kRegEventqProd : kRegPriqProd;
  const bool was_empty = ring(queue).is_empty();
  registers_.set(producer, with<kQueueProd, "WR">(reg(producer), indices.next(indices.tail)));
  const std::uint64_t wanted =
      events ? get<kIrqCtrl, "EVENTQ_IRQEN">(reg(kRegIrqCtrl)) : get<kIrqCtrl, "PRIQ_IRQEN">(reg(kRegIrqCtrl));
  if (was_empty && wanted != 0)  // [§3.18]
    raise(events ? kRegEventqIrqCfg0 : kRegPriqIrqCfg0, events ? kRegEventqIrqCfg1 : kRegPriqIrqCfg1);
  co_return true;
}

Task<void> Core::write_events(MemoryPort& memory) {
  while (!page_requests_.empty()) {
    const Record record = page_requests_.front();
    page_requests_.pop_front();
    (void)co_await write_record(record, Queue::PageRequests, memory);
  }
  // Each record that is there now gets one turn; those that must wait keep their order.
  for (std::size_t turns = events_.size(); turns > 0 && !events_.empty(); --turns) {
    const Record record = events_.front();
    events_.pop_front();
    const bool left = co_await write_record(record, Queue::Events, memory);
    if (!left) events_.push_back(record);
  }
}

bool Core::withdraw_stall(StallTag tag) {
  const auto waiting = stalled_.find(tag);
  if (waiting == stalled_.end() || waiting->second.is_committed) return false;
  stalled_.erase(waiting);
  std::erase_if(events_, [tag](const Record& record) { return record.stall == tag; });
  return true;
}

// [§8.1, §8.2]
std::optional<PageRequestResponse> Core::record_page_request(const PageRequest& request) {
  const auto answer = [&](PageRequestResponse::Code code) -> std::optional<PageRequestResponse> {
    if (!request.last) return std::nullopt;
    return PageRequestResponse{request.requester, request.pasid, request.group, code};
  };
  if (!is_enabled(Queue::PageRequests) || is_active(mask_of<kGerror, "PRIQ_ABT_ERR">))
    return PageRequestResponse{request.requester, {}, request.group, PageRequestResponse::Code::Failure};
  const RingIndices indices = ring(Queue::PageRequests);
  if (indices.occupancy() + page_requests_.size() >= indices.format.entries) overflow(Queue::PageRequests);
  // While an overflow is shown, what the device asks is answered as done, so that it asks again.
  if (has_overflow(Queue::PageRequests)) return answer(PageRequestResponse::Code::Success);
  Record record;
  put<kPageRequest, "StreamID">(record.words, request.requester.value());
  put<kPageRequest, "SubstreamID">(record.words, request.pasid ? request.pasid->value() : 0);
  put<kPageRequest, "SSV">(record.words, request.pasid ? 1 : 0);
  put<kPageRequest, "Priv">(record.words, request.pasid && request.privileged ? 1 : 0);
  put<kPageRequest, "X">(record.words, request.pasid && request.execute ? 1 : 0);
  put<kPageRequest, "R">(record.words, request.wanted.read ? 1 : 0);
  put<kPageRequest, "W">(record.words, request.wanted.write ? 1 : 0);
  put<kPageRequest, "Last">(record.words, request.last ? 1 : 0);
  put<kPageRequest, "PRGIndex">(record.words, request.group);
  put<kPageRequest, "Page">(record.words, request.page.value() >> kPageLg2);
  page_requests_.push_back(record);
  return std::nullopt;
}

}  // namespace iommu::smmuv3
