// SPDX-License-Identifier: Apache-2.0
#include "sim/tlm/root_port.hpp"

#include <algorithm>
#include <utility>
#include <variant>

namespace iommu {

namespace {
// One flow-control update packet [PCIe 6.0 §3.5.1]: 6 bytes and 2 of framing.
constexpr Bytes kFlowControlUpdate{8};

std::uint64_t argument_of(Tlp& tlp) { return reinterpret_cast<std::uintptr_t>(&tlp); }
}  // namespace

const char* RootPortParameters::problem() const {
  if (const char* p = link.problem()) return p;
  if (propagation < Picoseconds(0)) return "propagation is not negative";
  if (posted.headers == 0 || nonposted_headers == 0)
    return "a root port grants at least one header credit of each kind";
  if (posted.data < data_credits(link.max_payload)) return "posted data credits cover at least one max_payload";
  if (write_translations == 0 || read_translations == 0)
    return "a root port asks for at least one translation at a time";
  return nullptr;
}

Tlp& PcieRootPort::tlp_at(std::uint64_t argument) {
  return *reinterpret_cast<Tlp*>(argument);  // NOLINT(performance-no-int-to-ptr)
}

PcieRootPort::PcieRootPort(Calendar& calendar, TranslationPort& translation, MemorySystem::Port& memory,
                           const RootPortParameters& parameters, DmaObserver* observer)
    : calendar_(calendar),
      translation_(translation),
      memory_(memory),
      parameters_(parameters),
      observer_(observer),
      upstream_(parameters.link, parameters.propagation),
      downstream_(parameters.link, parameters.propagation),
      posted_(parameters.posted, parameters.propagation + serialisation_time(kFlowControlUpdate, parameters.link)),
      nonposted_({.headers = parameters.nonposted_headers, .data = 0},
                 parameters.propagation + serialisation_time(kFlowControlUpdate, parameters.link)) {
  SIM_CHECK(parameters.problem() == nullptr, "root ports are validated with the scenario");
  reads_.access = Access::Read;
  reads_.limit = parameters.read_translations;
  reads_.order = parameters.read_translation_order;
  writes_.access = Access::Write;
  writes_.limit = parameters.write_translations;
}

Credits PcieRootPort::credits_for(Access access, std::uint32_t bytes) {
  return {.headers = 1, .data = access == Access::Write ? data_credits(Bytes(bytes)) : 0};
}

Tlp& PcieRootPort::allocate() {
  if (free_.empty()) {
    tlps_.push_back(std::make_unique<Tlp>());
    return *tlps_.back();
  }
  Tlp& tlp = *free_.back();
  free_.pop_back();
  return tlp;
}

void PcieRootPort::send(Tlp& tlp) {
  tlp.faulted = false;
  tlp.internal.is_translated = false;
  tlp.internal.has_data = false;
  const bool is_read = tlp.request.translation.access == Access::Read;
  const Bytes size = is_read ? tlp_size(TlpKind::MemoryRead, Bytes(0), parameters_.link)
                             : tlp_size(TlpKind::MemoryWrite, Bytes(tlp.bytes), parameters_.link);
  const Picoseconds arrival = upstream_.send(calendar_.now(), size) + tlp.extra_latency;
  calendar_.call_at<&PcieRootPort::arrive>(arrival, this, argument_of(tlp));
}

void PcieRootPort::arrive(std::uint64_t argument) {
  Tlp& tlp = tlp_at(argument);
  statistics_.most_buffered = std::max(statistics_.most_buffered, ++buffered_);
  if (tlp.request.translation.access == Access::Write) {
    ++statistics_.writes;
    ++writes_arrived_;
  } else {
    ++statistics_.reads;
    tlp.internal.writes_before = writes_arrived_;
    if (parameters_.completion_order == ReturnOrder::InOrder) completions_.push(&tlp);
  }
  Lane& lane = lane_of(tlp);
  lane.waiting.push(&tlp);
  submit_from(lane);
}

void PcieRootPort::submit_from(Lane& lane) {
  while (!lane.waiting.is_empty() && lane.asked < lane.limit && !lane.waits_for_space) {
    if (!translation_.can_accept()) {
      ++statistics_.iommu_full;
      lane.waits_for_space = true;
      translation_.on_space([](void* self, std::uint64_t access) { static_cast<PcieRootPort*>(self)->space(access); },
                            this, static_cast<std::uint64_t>(lane.access));
      return;
    }
    Tlp& tlp = *lane.waiting.pop();
    ++lane.asked;
    if (lane.order == ReturnOrder::InOrder) lane.window.push(&tlp);
    tlp.request.on_done<&PcieRootPort::translated>(this, argument_of(tlp));
    translation_.submit(tlp.request);
  }
}

void PcieRootPort::space(std::uint64_t access) {
  Lane& lane = access == static_cast<std::uint64_t>(Access::Read) ? reads_ : writes_;
  lane.waits_for_space = false;
  submit_from(lane);
}

void PcieRootPort::translated(std::uint64_t argument) {
  Tlp& tlp = tlp_at(argument);
  tlp.internal.is_translated = true;
  tlp.faulted = std::holds_alternative<Fault>(tlp.request.response);
  if (!tlp.faulted) tlp.internal.ticket = translation_.in_flight().enter();
  Lane& lane = lane_of(tlp);
  if (lane.order == ReturnOrder::OutOfOrder) {
    --lane.asked;
    use(tlp);
  } else {
    while (!lane.window.is_empty() && lane.window.front()->internal.is_translated) {
      --lane.asked;
      use(*lane.window.pop());
    }
  }
  submit_from(lane);
}

void PcieRootPort::use(Tlp& tlp) {
  if (tlp.faulted) ++statistics_.faulted;
  if (tlp.request.translation.access == Access::Read)
    use_read(tlp);
  else
    use_write(tlp);
}

void PcieRootPort::use_write(Tlp& tlp) {
  if (tlp.faulted)
    write_over(tlp);
  else
    access_memory(tlp);
  ++writes_used_;
  release_reads();
}

void PcieRootPort::use_read(Tlp& tlp) {
  const bool overtakes = parameters_.reads_pass_writes == ReadsPassWrites::Yes;
  if (!overtakes && (!reads_behind_writes_.is_empty() || tlp.internal.writes_before > writes_used_)) {
    reads_behind_writes_.push(&tlp);
    return;
  }
  give_back(tlp);
  if (tlp.faulted)
    read_over(tlp);
  else
    access_memory(tlp);
}

// Memory serves in the order in which accesses reach it, so a read may follow as soon as the writes before it are on
// their way.
void PcieRootPort::release_reads() {
  while (!reads_behind_writes_.is_empty() && reads_behind_writes_.front()->internal.writes_before <= writes_used_) {
    Tlp& tlp = *reads_behind_writes_.pop();
    give_back(tlp);
    if (tlp.faulted)
      read_over(tlp);
    else
      access_memory(tlp);
  }
}

void PcieRootPort::access_memory(Tlp& tlp) {
  DataTransfer& data = tlp.internal.data;
  data.address = std::get<Translation>(tlp.request.response).address;
  data.bytes = tlp.bytes;
  data.access = tlp.request.translation.access;
  data.failed = false;
  data.on_done<&PcieRootPort::memory_done>(this, argument_of(tlp));
  memory_.post(data);
}

void PcieRootPort::memory_done(std::uint64_t argument) {
  Tlp& tlp = tlp_at(argument);
  const TranslationRequest& request = tlp.request.translation;
  if (tlp.internal.data.failed) {
    tlp.faulted = true;
    ++statistics_.unbacked;
  } else if (observer_ != nullptr) {
    observer_->on_dma(calendar_.now(), tlp.sender.value_or(request.requester), request.pasid, request.address,
                      tlp.internal.data.address, Bytes(tlp.bytes), request.access);
  }
  translation_.in_flight().leave(tlp.internal.ticket);
  if (request.access == Access::Read)
    read_over(tlp);
  else
    write_over(tlp);
}

void PcieRootPort::write_over(Tlp& tlp) {
  give_back(tlp);
  tlp.completed = calendar_.now();
  if (!tlp.faulted) return finish(argument_of(tlp));
  // From the calendar: a dropped write may end inside the event of another request.
  calendar_.call_at<&PcieRootPort::finish>(calendar_.now(), this, argument_of(tlp));
}

void PcieRootPort::read_over(Tlp& tlp) {
  if (parameters_.completion_order == ReturnOrder::OutOfOrder) return send_completions(tlp);
  tlp.internal.has_data = true;
  while (!completions_.is_empty() && completions_.front()->internal.has_data) send_completions(*completions_.pop());
}

// A faulted read is answered by one completion without data: unsupported request.
void PcieRootPort::send_completions(Tlp& tlp) {
  Picoseconds arrival;
  if (tlp.faulted) {
    arrival = downstream_.send(calendar_.now(), tlp_size(TlpKind::Completion, Bytes(0), parameters_.link));
    ++statistics_.completions;
  } else {
    std::uint64_t at = tlp.request.translation.address.value();
    for (Bytes left(tlp.bytes); left > Bytes(0);) {
      const Bytes part = next_completion(at, left, parameters_.link);
      arrival = downstream_.send(calendar_.now(), tlp_size(TlpKind::CompletionWithData, part, parameters_.link));
      ++statistics_.completions;
      at += part.value();
      left -= part;
    }
  }
  tlp.completed = arrival + tlp.extra_latency;
  calendar_.call_at<&PcieRootPort::finish>(tlp.completed, this, argument_of(tlp));
}

void PcieRootPort::finish(std::uint64_t argument) {
  Tlp& tlp = tlp_at(argument);
  tlp.done(tlp.context, argument);
}

void PcieRootPort::give_back(const Tlp& tlp) {
  --buffered_;
  const Access access = tlp.request.translation.access;
  credits(access).give_back(calendar_.now(), credits_for(access, tlp.bytes));
  for (const Sender& waiter : std::exchange(credit_waiters_, {})) waiter.action(waiter.context, waiter.argument);
}

void PcieRootPort::on_credits(Calendar::Action action, void* context, std::uint64_t argument) {
  credit_waiters_.push_back({action, context, argument});
}

void PcieRootPort::on_link(Calendar::Action action, void* context, std::uint64_t argument) {
  turns_.push({action, context, argument});
  if (turns_.size() == 1) schedule_turn();
}

void PcieRootPort::schedule_turn() {
  calendar_.call_at<&PcieRootPort::give_turn>(std::max(calendar_.now(), upstream_.free_at()), this);
}

// The sender stays at the head while it is called, so that nobody sends in between; it may queue up again.
void PcieRootPort::give_turn(std::uint64_t) {
  const Sender next = turns_.front();
  next.action(next.context, next.argument);
  turns_.pop();
  if (!turns_.is_empty()) schedule_turn();
}

void PcieRootPort::reset_statistics() {
  statistics_ = {};
  upstream_.reset_statistics();
  downstream_.reset_statistics();
}

}  // namespace iommu
