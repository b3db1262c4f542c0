// SPDX-License-Identifier: Apache-2.0
#include "sim/guest/virtio_iommu_driver.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <iterator>
#include <map>
#include <utility>

#include "sim/base/check.hpp"
#include "sim/virtio/guest_values.hpp"
#include "sim/virtio/mmio_registers.hpp"

namespace iommu::guest {

namespace {
using virtio::RequestStatus;
namespace reg = virtio::offset;

constexpr std::uint16_t kMostEntries = 256;  // of either queue, whatever the device offers
// Each chain's own bytes: the request, and its tail behind it.
constexpr Bytes kSlot = 64_B;
constexpr Bytes kTailOffset = 60_B;
static_assert(virtio::kReadable<virtio::InvalidateRequest> <= kTailOffset.value());
// Where interrupts go when the device names no window for them. [linux, MSI_IOVA_BASE and MSI_IOVA_LENGTH]
constexpr IovaRange kSoftwareMsiWindow{Iova(0x8000000), 1_MiB};

constexpr std::uint64_t bit(unsigned feature) { return 1ULL << feature; }
constexpr std::uint64_t kKnownFeatures =
    bit(virtio::kFeatureInputRange) | bit(virtio::kFeatureDomainRange) | bit(virtio::kFeatureMapUnmap) |
    bit(virtio::kFeatureProbe) | bit(virtio::kFeatureMmio) | bit(virtio::kFeatureBypassConfig) |
    bit(virtio::kFeatureIndirectDescriptors) | bit(virtio::kFeatureEventIndex) | bit(virtio::kFeatureVersion1);

std::uint32_t flags_of(Permissions permissions) {
  return (permissions.read ? virtio::kMapRead : 0U) | (permissions.write ? virtio::kMapWrite : 0U);
}

// How much of a range Linux asks for in one call: so many pages of the largest size that addresses and length allow, up
// to where a still larger one fits. [iommu_pgsize]
Bytes call_length(std::uint64_t page_sizes, std::uint64_t input, std::uint64_t output, Bytes length) {
  const std::uint64_t addresses = input | output;
  const std::uint64_t alignment = addresses == 0 ? ~0ULL : (addresses & -addresses) * 2 - 1;
  const std::uint64_t possible = page_sizes & alignment & (std::bit_floor(length.value()) * 2 - 1);
  SIM_CHECK(possible != 0, "ranges are whole pages of the smallest size");
  const std::uint64_t page = std::bit_floor(possible);
  const std::uint64_t larger = page_sizes & ~(page * 2 - 1);
  std::uint64_t span = length.value();
  if (larger != 0) {
    const std::uint64_t next = larger & -larger;
    const std::uint64_t offset = next - (addresses & (next - 1));
    if (((input ^ output) & (next - 1)) == 0 && offset + next <= span) span = offset;
  }
  return Bytes(span / page * page);
}
}  // namespace

// One domain of the device, with the driver's own record of its mappings.
class VirtioDmaSpace final : public DmaSpace {
 public:
  VirtioDmaSpace(VirtioIommuDriver& driver, std::uint32_t domain, std::vector<IovaRange> reserved)
      : driver_(driver), domain_(domain), reserved_(std::move(reserved)) {}

  [[nodiscard]] Iova last_address() const override { return Iova(driver_.config_.input_end); }
  [[nodiscard]] std::vector<IovaRange> reserved() const override { return reserved_; }

  Task<DmaStatus> map(CpuPort& cpu, MapSegment segment) override {
    for (Bytes done; done < segment.length;) {
      const Iova first = segment.iova + done;
      const Gpa physical = segment.address + done;
      const Bytes length =
          call_length(driver_.config_.page_size_mask, first.value(), physical.value(), segment.length - done);
      co_await cpu.charge(CostId::MappingTree);
      if (!remember(first, length)) co_return DmaStatus::Rejected;
      const virtio::MapRequest request{.domain = domain_,
                                       .virt_start = first.value(),
                                       .virt_end = first.value() + (length.value() - 1),
                                       .phys_start = physical.value(),
                                       .flags = flags_of(segment.permissions)};
      co_await driver_.queue(cpu, request);
      done += length;
    }
    co_return DmaStatus::Ok;
  }
  Task<DmaStatus> sync_map(CpuPort& cpu, IovaRange) override {
    co_await driver_.sync(cpu);
    co_return DmaStatus::Ok;
  }
  Task<UnmapGather> unmap(CpuPort& cpu, IovaRange range, Flush) override {
    UnmapGather gather;
    gather.range = range;
    for (Bytes done; done < range.length;) {
      const Iova first = range.first + done;
      const Bytes asked =
          call_length(driver_.config_.page_size_mask, first.value(), first.value(), range.length - done);
      co_await cpu.charge(CostId::MappingTree);
      const Bytes forgotten = forget(first, asked);
      if (forgotten < asked) {
        gather.status = DmaStatus::Rejected;
        break;
      }
      const virtio::UnmapRequest request{
          .domain = domain_, .virt_start = first.value(), .virt_end = first.value() + (forgotten.value() - 1)};
      co_await driver_.queue(cpu, request);
      done += forgotten;
    }
    co_return gather;
  }
  Task<void> sync(CpuPort& cpu, UnmapGather) override { co_await driver_.sync(cpu); }
  Task<void> flush_all(CpuPort& cpu) override { co_await driver_.sync(cpu); }
  void reclaim_tables(const std::vector<std::uint64_t>&) override {}

 private:
  // False: part of it is mapped.
  bool remember(Iova first, Bytes length) {
    const auto above = mappings_.lower_bound(first + length);
    if (above != mappings_.begin()) {
      const auto& [below, below_length] = *std::prev(above);
      if (first < below + below_length) return false;
    }
    mappings_.emplace(first, length);
    return true;
  }
  // Bytes of the mappings that begin in the range, whole ones, which may reach beyond it. One that begins before it
  // cannot be cut, and ends the search.
  Bytes forget(Iova first, Bytes length) {
    Bytes sum;
    auto at = mappings_.upper_bound(first);
    if (at != mappings_.begin()) {
      const auto below = std::prev(at);
      if (below->first == first)
        at = below;
      else if (first < below->first + below->second)
        return sum;
    }
    while (at != mappings_.end() && at->first < first + length) {
      sum += at->second;
      at = mappings_.erase(at);
    }
    return sum;
  }

  VirtioIommuDriver& driver_;
  std::uint32_t domain_;
  std::vector<IovaRange> reserved_;
  std::map<Iova, Bytes> mappings_;  // disjoint
};

VirtioIommuDriver::VirtioIommuDriver(MmioPort& registers, GuestMemory& memory, GuestPages& pages,
                                     std::uint64_t refused_features, const VirtioOwnTables& tables)
    : registers_(registers), memory_(memory), pages_(pages), refused_features_(refused_features) {
  if (tables.family != nullptr)
    tables_ = std::make_unique<VirtioTableSpaces>(*this, *tables.family, tables.setting, memory, pages);
}

VirtioIommuDriver::~VirtioIommuDriver() = default;

// Bring-up ------------------------------------------------------------------------------------------------------------

Task<void> VirtioIommuDriver::poke(CpuPort& cpu, std::uint64_t offset, std::uint64_t value) {
  co_await registers_.write(cpu, offset, 4, value);
}
Task<std::uint64_t> VirtioIommuDriver::peek(CpuPort& cpu, std::uint64_t offset) {
  co_return co_await registers_.read(cpu, offset, 4);
}
Task<std::uint64_t> VirtioIommuDriver::peek64(CpuPort& cpu, std::uint64_t offset) {
  const std::uint64_t low = co_await peek(cpu, offset);
  const std::uint64_t high = co_await peek(cpu, offset + 4);
  co_return low | high << 32;
}

// [VIRTIO 1.3 §3.1.1, §4.2.3.1]
Task<bool> VirtioIommuDriver::bring_up(CpuPort& cpu) {
  const bool agreed = co_await negotiate(cpu);
  if (!agreed) co_return false;
  const bool has_requests = co_await set_up_queue(cpu, virtio::kRequestQueue, requests_);
  const bool has_events = co_await set_up_queue(cpu, virtio::kEventQueue, events_);
  if (!has_requests || !has_events) co_return false;
  co_await read_config(cpu);
  const auto slots = pages_.allocate(order_for(kSlot * requests_->place().entries));
  const auto event_slots = pages_.allocate(order_for(kSlot * events_->place().entries));
  const auto probe = pages_.allocate(
      order_for(Bytes(sizeof(virtio::ProbeRequest) + config_.probe_size + sizeof(virtio::RequestTail))));
  if (tables_ && has(virtio::kFeatureAttachTable) && !tables_->prepare()) co_return false;
  const bool has_pages = (config_.page_size_mask & kPageSize.value()) != 0;
  if (!slots || !event_slots || !probe || !has_pages) co_return false;
  slots_ = *slots;
  event_slots_ = *event_slots;
  long_buffer_ = *probe;
  answers_.resize(requests_->place().entries);
  requests_->want_no_interrupt();
  co_await poke(
      cpu, reg::kStatus,
      virtio::kStatusAcknowledge | virtio::kStatusDriver | virtio::kStatusFeaturesOk | virtio::kStatusDriverOk);
  fill_event_queue();
  co_return true;
}

Task<bool> VirtioIommuDriver::negotiate(CpuPort& cpu) {
  const std::uint64_t magic = co_await peek(cpu, reg::kMagicValue);
  const std::uint64_t version = co_await peek(cpu, reg::kVersion);
  const std::uint64_t device = co_await peek(cpu, reg::kDeviceId);
  if (magic != virtio::kMagic || version != virtio::kMmioVersion || device != virtio::kIommuDeviceId) co_return false;
  co_await poke(cpu, reg::kStatus, 0);
  co_await poke(cpu, reg::kStatus, virtio::kStatusAcknowledge);
  co_await poke(cpu, reg::kStatus, virtio::kStatusAcknowledge | virtio::kStatusDriver);
  std::uint64_t offered = 0;
  for (std::uint32_t word = 0; word < 2; ++word) {
    co_await poke(cpu, reg::kDeviceFeaturesSel, word);
    const std::uint64_t bits = co_await peek(cpu, reg::kDeviceFeatures);
    offered |= bits << (32 * word);
  }
  const std::uint64_t own_tables = tables_ ? bit(virtio::kFeatureAttachTable) : 0;
  features_ = offered & (kKnownFeatures | own_tables) & ~refused_features_;
  if (!has(virtio::kFeatureVersion1) || !has(virtio::kFeatureMapUnmap)) co_return false;
  for (std::uint32_t word = 0; word < 2; ++word) {
    co_await poke(cpu, reg::kDriverFeaturesSel, word);
    co_await poke(cpu, reg::kDriverFeatures, features_ >> (32 * word) & 0xffff'ffffU);
  }
  constexpr std::uint32_t kAgreed = virtio::kStatusAcknowledge | virtio::kStatusDriver | virtio::kStatusFeaturesOk;
  co_await poke(cpu, reg::kStatus, kAgreed);
  const std::uint64_t status = co_await peek(cpu, reg::kStatus);
  co_return (status & virtio::kStatusFeaturesOk) != 0;
}

Task<bool> VirtioIommuDriver::set_up_queue(CpuPort& cpu, std::uint32_t index, std::optional<DriverQueue>& queue) {
  co_await poke(cpu, reg::kQueueSel, index);
  const std::uint64_t most = co_await peek(cpu, reg::kQueueNumMax);
  const auto entries = static_cast<std::uint16_t>(std::bit_floor(std::min<std::uint64_t>(most, kMostEntries)));
  if (entries < DriverQueue::kMostBuffers) co_return false;
  queue = DriverQueue::allocate(
      memory_, pages_, entries,
      {.indirect =
           has(virtio::kFeatureIndirectDescriptors) ? DriverQueueRules::Indirect::Yes : DriverQueueRules::Indirect::No,
       .suppression = has(virtio::kFeatureEventIndex) ? DriverQueueRules::Suppression::ByEventIndex
                                                      : DriverQueueRules::Suppression::ByFlag});
  if (!queue) co_return false;
  const virtio::QueuePlace place = queue->place();
  co_await poke(cpu, reg::kQueueNum, entries);
  const std::array<std::pair<std::uint64_t, Gpa>, 3> areas{std::pair{reg::kQueueDescLow, place.descriptors},
                                                           std::pair{reg::kQueueDriverLow, place.driver},
                                                           std::pair{reg::kQueueDeviceLow, place.device}};
  for (const auto& [offset, address] : areas) {
    co_await poke(cpu, offset, address.value() & 0xffff'ffffU);
    co_await poke(cpu, offset + 4, address.value() >> 32);
  }
  co_await poke(cpu, reg::kQueueReady, 1);
  co_return true;
}

Task<void> VirtioIommuDriver::read_config(CpuPort& cpu) {
  using Config = virtio::IommuConfig;
  config_.page_size_mask = co_await peek64(cpu, reg::kConfig + offsetof(Config, page_size_mask));
  config_.input_end = ~0ULL;
  config_.domain_end = ~0U;
  if (has(virtio::kFeatureInputRange))
    config_.input_end = co_await peek64(cpu, reg::kConfig + offsetof(Config, input_end));
  if (has(virtio::kFeatureDomainRange)) {
    const std::uint64_t first = co_await peek(cpu, reg::kConfig + offsetof(Config, domain_start));
    const std::uint64_t last = co_await peek(cpu, reg::kConfig + offsetof(Config, domain_end));
    config_.domain_start = static_cast<std::uint32_t>(first);
    config_.domain_end = static_cast<std::uint32_t>(last);
  }
  if (!has(virtio::kFeatureProbe)) co_return;
  const std::uint64_t size = co_await peek(cpu, reg::kConfig + offsetof(Config, probe_size));
  config_.probe_size = static_cast<std::uint32_t>(size);
}

// Requests ------------------------------------------------------------------------------------------------------------

template <class Request>
Task<std::uint16_t> VirtioIommuDriver::queue_locked(CpuPort& cpu, Request request) {
  auto head = requests_->begin(DriverQueue::kMostBuffers);
  if (!head) {
    co_await sync_locked(cpu);
    head = requests_->begin(DriverQueue::kMostBuffers);
  }
  SIM_CHECK(head.has_value(), "an empty queue has room for one request");
  co_await cpu.charge(CostId::CommandWrite);
  constexpr auto kReadable = static_cast<std::uint32_t>(virtio::kReadable<Request>);
  constexpr bool kProbes = std::is_same_v<Request, virtio::ProbeRequest>;
  // The one buffer for long requests: those are waited for under the lock.
  constexpr bool kIsLong = kProbes || kReadable > kTailOffset.value();
  const Gpa at = kIsLong ? long_buffer_ : slots_ + kSlot * *head;
  const Gpa writable = kIsLong ? at + Bytes(kReadable) : at + kTailOffset;
  const Bytes properties(kProbes ? config_.probe_size : 0);
  const bool written = memory_.write(at, std::as_bytes(std::span(&request, 1)).first(kReadable));
  SIM_CHECK(written, "a kernel allocates its requests from its own memory");
  answers_[*head] = {writable + properties};
  requests_->put(
      *head, DriverQueue::Buffer{at, kReadable},
      DriverQueue::Buffer{writable, static_cast<std::uint32_t>(properties.value() + sizeof(virtio::RequestTail))});
  co_return *head;
}

template <class Request>
Task<void> VirtioIommuDriver::queue(CpuPort& cpu, Request request) {
  co_await cpu.acquire(lock_);
  co_await queue_locked(cpu, request);
  cpu.release(lock_);
}

template <class Request>
Task<RequestStatus> VirtioIommuDriver::send(CpuPort& cpu, Request request) {
  co_await cpu.acquire(lock_);
  const std::uint16_t head = co_await queue_locked(cpu, request);
  co_await sync_locked(cpu);
  const RequestStatus status = answers_[head].status;
  cpu.release(lock_);
  co_return status;
}

Task<void> VirtioIommuDriver::sync(CpuPort& cpu) {
  co_await cpu.acquire(lock_);
  co_await sync_locked(cpu);
  cpu.release(lock_);
}

Task<void> VirtioIommuDriver::sync_locked(CpuPort& cpu) {
  if (requests_->publish()) co_await poke(cpu, reg::kQueueNotify, virtio::kRequestQueue);
  if (requests_->is_idle()) co_return;
  co_await cpu.poll(requests_->used_word(), requests_->used_when_idle());
  while (const auto used = requests_->take()) note_used(*used);
  requests_->want_no_interrupt();
}

// A buffer that came back unwritten is a failure. [§5.13.6.1]
void VirtioIommuDriver::note_used(DriverQueue::Used used) {
  Answer& answer = answers_[used.head];
  const auto tail = virtio::load<virtio::RequestTail>(memory_, answer.tail);
  const bool is_written = used.written != 0 && tail;
  answer.status = is_written ? static_cast<RequestStatus>(tail->status) : RequestStatus::IoError;
  if (answer.status != RequestStatus::Ok) ++refused_;
}

// Endpoints -----------------------------------------------------------------------------------------------------------

Task<RequestStatus> VirtioIommuDriver::bind(CpuPort& cpu, virtio::AttachTableRequest request) {
  if (request.domain > config_.domain_end) co_return RequestStatus::NoEntry;
  co_return co_await send(cpu, request);
}

Task<void> VirtioIommuDriver::invalidate(CpuPort& cpu, std::vector<virtio::InvalidateRequest> requests) {
  for (const virtio::InvalidateRequest& request : requests) co_await queue(cpu, request);
  co_await sync(cpu);
}

Task<DmaSpace*> VirtioIommuDriver::attach(CpuPort& cpu, RequesterId endpoint) {
  Reserved reserved;
  if (has(virtio::kFeatureProbe)) {
    const std::optional<Reserved> probed = co_await probe(cpu, endpoint);
    if (!probed) co_return nullptr;
    reserved = *probed;
  }
  if (!reserved.has_msi_window) reserved.ranges.push_back(kSoftwareMsiWindow);
  const std::uint64_t domain = std::uint64_t{config_.domain_start} + domains_;
  if (domain > config_.domain_end) co_return nullptr;
  if (tables_ && has(virtio::kFeatureAttachTable)) {
    if (!tables_->matches(reserved.hardware, reserved.identity)) co_return nullptr;
    co_return co_await tables_->attach(cpu, endpoint, std::move(reserved.ranges));
  }
  const virtio::AttachRequest request{.domain = static_cast<std::uint32_t>(domain), .endpoint = endpoint.value()};
  const RequestStatus status = co_await send(cpu, request);
  if (status != RequestStatus::Ok) co_return nullptr;
  ++domains_;
  spaces_.push_back(std::make_unique<VirtioDmaSpace>(*this, request.domain, std::move(reserved.ranges)));
  co_return spaces_.back().get();
}

// The lock covers the buffer as well: it is the only one.
Task<std::optional<VirtioIommuDriver::Reserved>> VirtioIommuDriver::probe(CpuPort& cpu, RequesterId endpoint) {
  std::optional<Reserved> found;
  const virtio::ProbeRequest request{.endpoint = endpoint.value()};
  co_await cpu.acquire(lock_);
  const std::uint16_t head = co_await queue_locked(cpu, request);
  co_await sync_locked(cpu);
  if (answers_[head].status == RequestStatus::Ok) found = read_properties();
  cpu.release(lock_);
  co_return found;
}

// [§5.13.6.6: properties follow one another, up to an empty one or the end; unknown ones are skipped]
VirtioIommuDriver::Reserved VirtioIommuDriver::read_properties() const {
  Reserved result;
  const Gpa first = long_buffer_ + Bytes(sizeof(virtio::ProbeRequest));
  for (std::uint64_t at = 0; at + sizeof(virtio::PropertyHead) <= config_.probe_size;) {
    const auto head = virtio::load<virtio::PropertyHead>(memory_, first + Bytes(at));
    const auto type = static_cast<std::uint16_t>(head ? head->type & virtio::kPropertyTypeMask : 0);
    if (type == 0) break;
    const std::uint64_t size = sizeof *head + head->length;
    const bool is_region =
        head->type == virtio::kPropertyReservedMemory && size >= sizeof(virtio::ReservedMemoryProperty);
    if (is_region && at + size <= config_.probe_size) {
      const auto region = virtio::load<virtio::ReservedMemoryProperty>(memory_, first + Bytes(at));
      if (region && region->start <= region->end) {
        const Iova begin = Iova(region->start).aligned_down(kPageLg2);
        const Iova last = Iova(region->end).aligned_down(kPageLg2);
        result.ranges.push_back({begin, last - begin + kPageSize});
        result.has_msi_window |= region->subtype == static_cast<std::uint8_t>(virtio::ReservedMemory::Msi);
      }
    }
    const bool is_hardware = type != virtio::kPropertyReservedMemory && size >= sizeof(virtio::HardwareProperty);
    if (is_hardware && at + size <= config_.probe_size) {
      result.hardware = type;
      result.identity.resize((size - sizeof(virtio::HardwareProperty)) / sizeof(std::uint64_t));
      static_cast<void>(memory_.read(first + Bytes(at + sizeof(virtio::HardwareProperty)),
                                     std::as_writable_bytes(std::span(result.identity))));
    }
    at += size;
  }
  return result;
}

// Events --------------------------------------------------------------------------------------------------------------

void VirtioIommuDriver::fill_event_queue() {
  while (const auto head = events_->begin(1))
    events_->put(*head, std::nullopt, DriverQueue::Buffer{event_slots_ + kSlot * *head, sizeof(virtio::FaultRecord)});
  static_cast<void>(events_->publish());  // the device looks when it has something to say
}

Task<std::vector<virtio::FaultRecord>> VirtioIommuDriver::take_faults(CpuPort& cpu) {
  std::vector<virtio::FaultRecord> faults;
  co_await cpu.acquire(lock_);
  while (const auto used = events_->take()) {
    const auto record = virtio::load<virtio::FaultRecord>(memory_, event_slots_ + kSlot * used->head);
    const bool is_valid = record && used->written == sizeof *record &&
                          std::all_of(record->reserved.begin(), record->reserved.end(), [](auto b) { return b == 0; });
    if (is_valid) faults.push_back(*record);
  }
  fill_event_queue();
  cpu.release(lock_);
  co_return faults;
}

}  // namespace iommu::guest
