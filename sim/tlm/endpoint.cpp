// SPDX-License-Identifier: Apache-2.0
#include "sim/tlm/endpoint.hpp"

#include <utility>

namespace iommu {

namespace {
bool is_possible(Iova address, Bytes length) {
  return length > Bytes(0) && address.value() + (length.value() - 1) >= address.value();
}
}  // namespace

const char* EndpointParameters::problem(const LinkParameters& link) const {
  if (tags == 0) return "a device has at least one tag";
  if (read_interval < Picoseconds(0) || write_interval < Picoseconds(0) || switch_latency < Picoseconds(0))
    return "intervals and latencies of a device are not negative";
  if (completion_buffer) {
    // The largest request may be cut once more than its size says, if it starts off a boundary.
    const std::uint64_t parts = link.max_read_request.value() / link.read_completion_boundary.value() + 1;
    if (completion_buffer->headers < parts || completion_buffer->data < data_credits(link.max_read_request) + parts)
      return "the completion buffer holds the completions of at least one max_read_request";
  }
  return nullptr;
}

PcieEndpoint::PcieEndpoint(Calendar& calendar, PcieRootPort& root_port, const EndpointParameters& parameters)
    : calendar_(calendar),
      root_port_(root_port),
      parameters_(parameters),
      free_tags_(parameters.tags),
      free_completions_(parameters.completion_buffer) {
  SIM_CHECK(parameters.problem(root_port.parameters().link) == nullptr, "devices are validated with the scenario");
  reads_.access = Access::Read;
  reads_.interval = parameters.read_interval;
  writes_.access = Access::Write;
  writes_.interval = parameters.write_interval;
}

// ASSUMPTION(pcie-010): a device that may not issue requests finds out 1 us after it tried; no source.
constexpr Picoseconds kRefusal = 1_us;

bool PcieEndpoint::submit(EndpointOperation& operation) {
  if (!is_possible(operation.address, operation.length)) {
    ++statistics_.refused;
    return false;
  }
  operation.faulted = false;
  operation.submitted = calendar_.now();
  operation.internal = {};
  if (is_cut_off_) {
    calendar_.call_at<&PcieEndpoint::refuse>(calendar_.now() + kRefusal, this,
                                             reinterpret_cast<std::uintptr_t>(&operation));
    return true;
  }
  EngineState& engine = engine_at(static_cast<std::uint64_t>(operation.access));
  engine.queue.push(&operation);
  if (!engine.is_parked) issue(engine);
  return true;
}

std::uint32_t PcieEndpoint::next_bytes(const EndpointOperation& operation) const {
  const Bytes left = operation.length - operation.internal.issued;
  const Iova at = operation.address + operation.internal.issued;
  return static_cast<std::uint32_t>(next_request(at, left, operation.access, root_port_.parameters().link).value());
}

Credits PcieEndpoint::completion_room(std::uint64_t address, std::uint32_t bytes) const {
  Credits room;
  for (Bytes left(bytes); left > Bytes(0);) {
    const Bytes part = next_completion(address, left, root_port_.parameters().link);
    ++room.headers;
    room.data += data_credits(part);
    address += part.value();
    left -= part;
  }
  return room;
}

// Brings the engine to its next packet, or parks it until something changes.
void PcieEndpoint::issue(EngineState& engine) {
  engine.is_parked = false;
  while (!engine.queue.is_empty()) {
    const bool begins = !engine.queue.front()->internal.is_started;
    if (begins && engine.next_start > calendar_.now()) {
      engine.is_parked = true;
      calendar_.call_at<&PcieEndpoint::wake>(engine.next_start, this, static_cast<std::uint64_t>(engine.access));
      return;
    }
    if (!root_port_.is_link_free()) {
      engine.is_parked = true;
      root_port_.on_link([](void* self, std::uint64_t a) { static_cast<PcieEndpoint*>(self)->take_turn(a); }, this,
                         static_cast<std::uint64_t>(engine.access));
      return;
    }
    send_next(engine);
    if (engine.is_parked) return;
  }
}

void PcieEndpoint::wake(std::uint64_t access) { issue(engine_at(access)); }

// The link is this engine's for one packet.
void PcieEndpoint::take_turn(std::uint64_t access) {
  EngineState& engine = engine_at(access);
  engine.is_parked = false;
  send_next(engine);
  if (!engine.is_parked) issue(engine);
}

void PcieEndpoint::send_next(EngineState& engine) {
  EndpointOperation& operation = *engine.queue.front();
  const std::uint32_t bytes = next_bytes(operation);
  switch (reserve(engine, bytes)) {
    case Room::NoTag:
      ++statistics_.waits_for_tag;
      engine.is_parked = engine.waits_for_tag = true;
      return;
    case Room::NoCredit:
      ++statistics_.waits_for_credit;
      return wait_for_credit(engine);
    case Room::Yes:
      break;
  }
  if (!std::exchange(operation.internal.is_started, true)) engine.next_start = calendar_.now() + engine.interval;
  Tlp& tlp = root_port_.allocate();
  tlp.request.translation = {.requester = parameters_.bridge_id.value_or(operation.requester),
                             .pasid = operation.pasid,
                             .address = operation.address + operation.internal.issued,
                             .length = Bytes(bytes),
                             .access = operation.access};
  tlp.sender.reset();
  if (parameters_.bridge_id) tlp.sender = operation.requester;
  tlp.bytes = bytes;
  tlp.extra_latency = parameters_.switch_latency;
  tlp.owner = &operation;
  tlp.on_done<&PcieEndpoint::answered>(this);
  operation.internal.issued += Bytes(bytes);
  ++operation.internal.unanswered;
  if (operation.internal.issued == operation.length) engine.queue.pop();
  root_port_.send(tlp);
}

PcieEndpoint::Room PcieEndpoint::reserve(const EngineState& engine, std::uint32_t bytes) {
  Credits room;
  if (engine.access == Access::Read) {
    if (free_tags_ == 0) return Room::NoTag;
    if (free_completions_) {
      const EndpointOperation& operation = *reads_.queue.front();
      room = completion_room((operation.address + operation.internal.issued).value(), bytes);
      if (free_completions_->headers < room.headers || free_completions_->data < room.data) return Room::NoTag;
    }
  }
  if (!root_port_.credits(engine.access).take(calendar_.now(), PcieRootPort::credits_for(engine.access, bytes)))
    return Room::NoCredit;
  if (engine.access == Access::Read) {
    --free_tags_;
    if (free_completions_) {
      free_completions_->headers -= room.headers;
      free_completions_->data -= room.data;
    }
  }
  return Room::Yes;
}

void PcieEndpoint::wait_for_credit(EngineState& engine) {
  engine.is_parked = true;
  const auto access = static_cast<std::uint64_t>(engine.access);
  if (const auto when = root_port_.credits(engine.access).next_update())
    return calendar_.call_at<&PcieEndpoint::wake>(*when, this, access);
  root_port_.on_credits([](void* self, std::uint64_t a) { static_cast<PcieEndpoint*>(self)->credit_freed(a); }, this,
                        access);
}

void PcieEndpoint::credit_freed(std::uint64_t access) { wait_for_credit(engine_at(access)); }

void PcieEndpoint::answered(std::uint64_t argument) {
  Tlp& tlp = PcieRootPort::tlp_at(argument);
  EndpointOperation& operation = *static_cast<EndpointOperation*>(tlp.owner);
  const bool is_read = operation.access == Access::Read;
  if (is_read) {
    ++free_tags_;
    if (free_completions_) {
      const Credits room = completion_room(tlp.request.translation.address.value(), tlp.bytes);
      free_completions_->headers += room.headers;
      free_completions_->data += room.data;
    }
  }
  operation.faulted = operation.faulted || tlp.faulted;
  --operation.internal.unanswered;
  const bool is_last = operation.internal.issued == operation.length && operation.internal.unanswered == 0;
  root_port_.recycle(tlp);
  if (is_read && std::exchange(reads_.waits_for_tag, false)) issue(reads_);
  if (is_last) complete(operation);
}

void PcieEndpoint::complete(EndpointOperation& operation) {
  operation.completed = calendar_.now();
  ++statistics_.operations;
  statistics_.latency.add(operation.completed - operation.submitted);
  if (operation.faulted)
    ++statistics_.faulted;
  else
    statistics_.bytes += operation.length.value();
  operation.done(operation.context, operation.argument);
}

void PcieEndpoint::refuse(std::uint64_t operation) {
  auto& refused = *reinterpret_cast<EndpointOperation*>(operation);
  refused.faulted = true;
  complete(refused);
}

bool PcieEndpoint::begin(DmaTransfer& transfer) {
  if (!is_possible(transfer.address, transfer.length)) {
    ++statistics_.refused;
    transfer.faulted = true;
    transfer.completed = calendar_.now();
    return true;
  }
  if (free_slots_.empty()) {
    free_slots_.push_back(static_cast<std::uint32_t>(slots_.size()));
    slots_.push_back(std::make_unique<TransferSlot>());
  }
  const std::uint32_t index = free_slots_.back();
  free_slots_.pop_back();
  TransferSlot& slot = *slots_[index];
  slot.transfer = &transfer;
  slot.operation.requester = transfer.requester;
  slot.operation.pasid = transfer.pasid;
  slot.operation.address = transfer.address;
  slot.operation.length = transfer.length;
  slot.operation.access = transfer.access;
  slot.operation.done = [](void* self, std::uint64_t i) { static_cast<PcieEndpoint*>(self)->transfer_done(i); };
  slot.operation.context = this;
  slot.operation.argument = index;
  const bool is_submitted = submit(slot.operation);
  SIM_CHECK(is_submitted, "the operation was checked before");
  return false;
}

void PcieEndpoint::transfer_done(std::uint64_t index) {
  TransferSlot& slot = *slots_[index];
  DmaTransfer& transfer = *slot.transfer;
  transfer.faulted = slot.operation.faulted;
  transfer.completed = slot.operation.completed;
  free_slots_.push_back(static_cast<std::uint32_t>(index));
  transfer.waiter.resume();
}

}  // namespace iommu
