// SPDX-License-Identifier: Apache-2.0
#include "sim/guest/driver_queue.hpp"

#include <array>
#include <utility>

#include "sim/base/check.hpp"
#include "sim/virtio/guest_values.hpp"

namespace iommu::guest {

namespace {
using virtio::Descriptor;
using virtio::load;
using virtio::QueuePlace;

constexpr Bytes kIndirectTable{DriverQueue::kMostBuffers * sizeof(Descriptor)};

template <class T>
void put_value(GuestMemory& memory, Gpa to, const T& value) {
  const bool is_written = virtio::store(memory, to, value);
  SIM_CHECK(is_written, "a kernel allocates its rings from its own memory");
}
}  // namespace

std::optional<DriverQueue> DriverQueue::allocate(GuestMemory& memory, GuestPages& pages, std::uint16_t entries,
                                                 DriverQueueRules rules) {
  const std::array<Bytes, 4> sizes{Bytes(sizeof(Descriptor) * entries),
                                   Bytes(virtio::kRingEntries + virtio::kAvailableEntryBytes * (entries + 1ULL)),
                                   Bytes(virtio::kRingEntries + sizeof(virtio::UsedElement) * (entries + 1ULL)),
                                   kIndirectTable * entries};
  std::array<Gpa, 4> at;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const auto block = pages.allocate(order_for(sizes[i]));
    if (!block) return std::nullopt;
    at[i] = *block;
    for (Bytes offset; offset < sizes[i]; offset += 8_B) memory.write64(*block + offset, 0);
  }
  const auto used_word = memory.translate(at[2]);
  SIM_CHECK(used_word.has_value(), "a kernel allocates its rings from its own memory");
  return DriverQueue(memory, {at[0], at[1], at[2], entries}, at[3], rules, *used_word);
}

DriverQueue::DriverQueue(GuestMemory& memory, QueuePlace place, Gpa indirect, DriverQueueRules rules, Hpa used_word)
    : memory_(&memory),
      place_(place),
      indirect_tables_(indirect),
      rules_(rules),
      used_word_(used_word),
      continued_(place.entries),
      in_use_(place.entries) {
  for (std::uint16_t i = place.entries; i-- > 0;) free_.push_back(i);
}

void DriverQueue::write_descriptor(Gpa table, std::uint16_t index, const Descriptor& descriptor) {
  put_value(*memory_, table + Bytes(sizeof(Descriptor) * index), descriptor);
}

std::optional<std::uint16_t> DriverQueue::begin(unsigned buffers) {
  const std::size_t needed = rules_.indirect == DriverQueueRules::Indirect::Yes ? 1 : buffers;
  if (free_.size() < needed) return std::nullopt;
  return free_.back();
}

void DriverQueue::put(std::uint16_t head, std::optional<Buffer> readable, std::optional<Buffer> writable) {
  SIM_CHECK(!free_.empty() && free_.back() == head && (readable || writable), "begin() has chosen the head");
  std::vector<Descriptor> chain;
  if (readable) chain.push_back({.address = readable->address.value(), .length = readable->length});
  if (writable)
    chain.push_back(
        {.address = writable->address.value(), .length = writable->length, .flags = virtio::kDescriptorWrite});
  in_use_[head] = true;
  // A single buffer needs no table of its own.
  const bool is_indirect = rules_.indirect == DriverQueueRules::Indirect::Yes && chain.size() > 1;
  const Gpa table = is_indirect ? indirect_tables_ + kIndirectTable * head : place_.descriptors;
  std::uint16_t index = is_indirect ? std::uint16_t{0} : head;
  if (!is_indirect) free_.pop_back();
  for (std::size_t i = 0; i < chain.size(); ++i) {
    const std::uint16_t mine = index;
    if (i + 1 < chain.size()) {
      index = is_indirect ? static_cast<std::uint16_t>(index + 1) : free_.back();
      if (!is_indirect) {
        free_.pop_back();
        continued_[mine] = index;
      }
      chain[i].flags |= virtio::kDescriptorNext;
      chain[i].next = index;
    }
    write_descriptor(table, mine, chain[i]);
  }
  if (is_indirect) {
    free_.pop_back();
    write_descriptor(place_.descriptors, head,
                     {.address = table.value(),
                      .length = static_cast<std::uint32_t>(chain.size() * sizeof(Descriptor)),
                      .flags = virtio::kDescriptorIndirect});
  }
  put_value(*memory_, place_.available_entry(put_++), head);
}

bool DriverQueue::publish() {
  const std::uint16_t old = published_;
  if (put_ == old) return false;
  published_ = put_;
  put_value(*memory_, place_.driver + Bytes(virtio::kRingIndex), published_);
  if (rules_.suppression == DriverQueueRules::Suppression::ByEventIndex)
    return virtio::passes_event(load<std::uint16_t>(*memory_, place_.available_event()).value_or(0), published_, old);
  return load<std::uint16_t>(*memory_, place_.device + Bytes(virtio::kRingFlags)).value_or(0) == 0;
}

std::optional<DriverQueue::Used> DriverQueue::take() {
  const auto index = load<std::uint16_t>(*memory_, place_.device + Bytes(virtio::kRingIndex));
  if (!index || *index == taken_) return std::nullopt;
  const auto element = load<virtio::UsedElement>(*memory_, place_.used_entry(taken_));
  if (!element || element->id >= place_.entries || !in_use_[element->id]) return std::nullopt;
  ++taken_;
  const auto head = static_cast<std::uint16_t>(element->id);
  in_use_[head] = false;
  for (std::optional<std::uint16_t> at = head; at;) {
    free_.push_back(*at);
    at = std::exchange(continued_[*at], std::nullopt);
  }
  return Used{head, element->length};
}

void DriverQueue::want_no_interrupt() {
  // As far ahead as an index can be.
  if (rules_.suppression == DriverQueueRules::Suppression::ByEventIndex)
    put_value(*memory_, place_.used_event(), static_cast<std::uint16_t>(taken_ - 1));
  else
    put_value(*memory_, place_.driver + Bytes(virtio::kRingFlags), virtio::kAvailableNoInterrupt);
}

}  // namespace iommu::guest
