// SPDX-License-Identifier: Apache-2.0
#include "sim/virtio/device_queue.hpp"

#include <algorithm>
#include <optional>

#include "sim/virtio/guest_values.hpp"

namespace iommu::virtio {

namespace {
// The part of a list of buffers that [offset, offset + bytes) is; nullopt: the list ends before.
std::optional<std::vector<Buffer>> part_of(std::span<const Buffer> buffers, std::uint64_t offset, std::uint64_t bytes) {
  std::vector<Buffer> part;
  for (const Buffer& buffer : buffers) {
    if (bytes == 0) break;
    if (offset >= buffer.length) {
      offset -= buffer.length;
      continue;
    }
    const auto length = static_cast<std::uint32_t>(std::min<std::uint64_t>(buffer.length - offset, bytes));
    part.push_back({buffer.address + Bytes(offset), length});
    bytes -= length;
    offset = 0;
  }
  return bytes == 0 ? std::optional(part) : std::nullopt;
}

// Whether all of it is the guest's memory.
bool is_reachable(const GuestMemory& memory, const Buffer& buffer) {
  const std::uint64_t last = buffer.address.value() + (buffer.length - 1);
  if (last < buffer.address.value()) return false;
  for (std::uint64_t page = buffer.address.value() >> kPageLg2; page <= last >> kPageLg2; ++page)
    if (!memory.translate(Gfn(page).address())) return false;
  return true;
}
}  // namespace

std::uint64_t bytes_of(std::span<const Buffer> buffers) {
  std::uint64_t sum = 0;
  for (const Buffer& buffer : buffers) sum += buffer.length;
  return sum;
}

bool read_from(const GuestMemory& memory, std::span<const Buffer> buffers, std::uint64_t offset,
               std::span<std::byte> into) {
  const auto part = part_of(buffers, offset, into.size());
  if (!part) return false;
  for (const Buffer& buffer : *part) {
    if (!memory.read(buffer.address, into.first(buffer.length))) return false;
    into = into.subspan(buffer.length);
  }
  return true;
}

bool write_to(GuestMemory& memory, std::span<const Buffer> buffers, std::uint64_t offset,
              std::span<const std::byte> from) {
  const auto part = part_of(buffers, offset, from.size());
  if (!part) return false;
  if (!std::all_of(part->begin(), part->end(), [&](const Buffer& b) { return is_reachable(memory, b); })) return false;
  for (const Buffer& buffer : *part) {
    if (!memory.write(buffer.address, from.first(buffer.length))) return false;
    from = from.subspan(buffer.length);
  }
  return true;
}

std::variant<DeviceQueue::Empty, Chain, Defect> DeviceQueue::pop() {
  const auto available = load<std::uint16_t>(memory_, place_.driver + Bytes(kRingIndex));
  if (!available) return Defect::OutsideMemory;
  if (*available == next_) return Empty{};
  if (static_cast<std::uint16_t>(*available - next_) > place_.entries) return Defect::IndexJump;
  const auto head = load<std::uint16_t>(memory_, place_.available_entry(next_));
  if (!head) return Defect::OutsideMemory;
  const std::variant<Chain, Defect> chain = read_chain(*head);
  if (const auto* defect = std::get_if<Defect>(&chain)) return *defect;
  ++next_;
  return std::get<Chain>(chain);
}

std::variant<DeviceQueue::Table, Defect> DeviceQueue::indirect_table(const Descriptor& descriptor) const {
  const bool may_be = rules_.indirect == Indirect::Allowed && (descriptor.flags & kDescriptorNext) == 0;
  const bool whole = descriptor.length != 0 && descriptor.length % sizeof(Descriptor) == 0;
  if (!may_be || !whole) return Defect::BadIndirect;
  return Table{Gpa(descriptor.address), static_cast<std::uint32_t>(descriptor.length / sizeof(Descriptor))};
}

std::variant<Chain, Defect> DeviceQueue::read_chain(std::uint16_t head) const {
  Chain chain;
  chain.head = head;
  Table table{place_.descriptors, place_.entries};
  std::uint32_t index = head;
  bool is_indirect = false;
  // As many buffers as the queue has entries, and the descriptor that leads to an indirect table. [§2.7.5.3.1]
  for (std::uint32_t left = place_.entries + 1U; left != 0; --left) {
    if (index >= table.entries) return Defect::BadIndex;
    const auto descriptor = load<Descriptor>(memory_, table.first + Bytes(sizeof(Descriptor) * index));
    if (!descriptor) return Defect::OutsideMemory;
    if ((descriptor->flags & kDescriptorIndirect) != 0) {
      const std::variant<Table, Defect> nested = indirect_table(*descriptor);
      if (is_indirect || std::holds_alternative<Defect>(nested)) return Defect::BadIndirect;
      table = std::get<Table>(nested);
      index = 0;
      is_indirect = true;
      continue;
    }
    if (chain.readable.size() + chain.writable.size() == place_.entries) break;
    if (descriptor->length == 0) return Defect::EmptyBuffer;
    const bool is_writable = (descriptor->flags & kDescriptorWrite) != 0;
    if (!is_writable && !chain.writable.empty()) return Defect::ReadableAfterWritable;
    (is_writable ? chain.writable : chain.readable).push_back({Gpa(descriptor->address), descriptor->length});
    if ((descriptor->flags & kDescriptorNext) == 0) return chain;
    index = descriptor->next;
  }
  return Defect::TooLong;
}

bool DeviceQueue::push_used(std::uint16_t head, std::uint32_t written) {
  const UsedElement element{.id = head, .length = written};
  if (!store(memory_, place_.used_entry(used_), element)) return false;
  ++used_;
  return store(memory_, place_.device + Bytes(kRingIndex), used_);
}

bool DeviceQueue::take_notification() {
  const std::uint16_t old = told_;
  told_ = used_;
  if (old == used_) return false;
  if (rules_.suppression == Suppression::ByEventIndex) {
    const auto event = load<std::uint16_t>(memory_, place_.used_event());
    return event && passes_event(*event, used_, old);
  }
  const auto flags = load<std::uint16_t>(memory_, place_.driver + Bytes(kRingFlags));
  return flags && (*flags & kAvailableNoInterrupt) == 0;
}

bool DeviceQueue::ask_for_notification() {
  return rules_.suppression == Suppression::ByFlag || store(memory_, place_.available_event(), next_);
}

}  // namespace iommu::virtio
