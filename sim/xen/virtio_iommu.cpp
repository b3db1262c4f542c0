// SPDX-License-Identifier: Apache-2.0
#include "sim/xen/virtio_iommu.hpp"

#include <algorithm>
#include <cstring>
#include <utility>
#include <variant>

namespace iommu::xen {

namespace {
using virtio::Chain;
using virtio::DeviceQueue;
using virtio::RequestType;

// For one notification: a ring that grows while it is served must not keep its vCPU for ever.
constexpr std::uint32_t kMostRequestsPerKick = 1U << 16;

constexpr std::uint64_t bit(unsigned feature) { return 1ULL << feature; }
constexpr std::uint64_t kFeatures =
    bit(virtio::kFeatureInputRange) | bit(virtio::kFeatureDomainRange) | bit(virtio::kFeatureMapUnmap) |
    bit(virtio::kFeatureProbe) | bit(virtio::kFeatureMmio) | bit(virtio::kFeatureBypassConfig) |
    bit(virtio::kFeatureIndirectDescriptors) | bit(virtio::kFeatureEventIndex) | bit(virtio::kFeatureVersion1);

std::uint64_t features_of(const VirtioIommuSetting& setting) {
  const std::uint64_t tables = setting.tables.binding != nullptr ? bit(virtio::kFeatureAttachTable) : 0;
  return (kFeatures | tables) & ~setting.withheld_features;
}

constexpr auto kTailBytes = static_cast<std::uint32_t>(sizeof(virtio::RequestTail));

// Writes a request's tail. False: its buffers end before, or are not the guest's memory.
bool put_tail(GuestMemory& memory, const Chain& chain, std::uint64_t at, virtio::RequestStatus status) {
  const virtio::RequestTail tail{.status = static_cast<std::uint8_t>(status)};
  return virtio::write_to(memory, chain.writable, at, std::as_bytes(std::span(&tail, 1)));
}
}  // namespace

VirtioIommu::VirtioIommu(Hypervisor& xen, Domain& domain, const VirtioIommuSetting& setting)
    : domain_(domain),
      setting_(setting),
      spaces_(xen, domain, setting.spaces),
      registers_({.device_id = virtio::kIommuDeviceId,
                  .features = features_of(setting),
                  .queues = virtio::kIommuQueues,
                  .queue_entries = setting.queue_entries,
                  .config_bytes = sizeof(virtio::IommuConfig)}) {
  fill_config();
}

void VirtioIommu::fill_config() {
  const virtio::IommuConfig config{
      .page_size_mask = spaces_.page_sizes(),
      .input_end = spaces_.last_input(),
      .domain_end = ~0U,
      .probe_size = setting_.probe_size,
      .bypass = static_cast<std::uint8_t>(spaces_.unattached() == Unattached::Bypass ? 1 : 0)};
  std::memcpy(registers_.config().data(), &config, sizeof config);
}

// Registers -----------------------------------------------------------------------------------------------------------

Task<void> VirtioIommu::charge_exit(CpuPort& cpu) {
  co_await cpu.charge(CostId::VmExitMmio);
  co_await cpu.charge(CostId::MmioDecode);
  if (setting_.spaces.placement == TrapTarget::DeviceModel) {
    ++counters_.traps.device_model;
    co_await cpu.charge(CostId::DeviceModelExit);
  }
}

Task<std::uint64_t> VirtioIommu::read(CpuPort& cpu, std::uint64_t offset, unsigned bytes) {
  co_await charge_exit(cpu);
  ++counters_.traps.register_access;
  co_return registers_.read(offset, bytes);
}

Task<void> VirtioIommu::write(CpuPort& cpu, std::uint64_t offset, unsigned bytes, std::uint64_t value) {
  co_await charge_exit(cpu);
  co_await cpu.acquire(lock_);
  const virtio::MmioEffect effect = registers_.write(offset, bytes, value);
  if (effect.notified)
    ++counters_.traps.doorbell;
  else
    ++counters_.traps.register_access;
  if (effect.was_reset) {
    for (auto& queue : queues_) queue.reset();
    co_await spaces_.detach_all(cpu);
  }
  if (effect.readiness) make_queue(*effect.readiness);
  if (effect.config) co_await write_config(cpu, *effect.config);
  // New buffers for events need no service: what found none was dropped.
  if (effect.notified == virtio::kRequestQueue) co_await serve_requests(cpu, *queues_[virtio::kRequestQueue]);
  cpu.release(lock_);
}

void VirtioIommu::make_queue(std::uint32_t index) {
  queues_[index].reset();
  const auto place = registers_.queue(index);
  if (!place) return;
  const bool indirect = registers_.is_negotiated(virtio::kFeatureIndirectDescriptors);
  const bool by_index = registers_.is_negotiated(virtio::kFeatureEventIndex);
  queues_[index].emplace(
      domain_.memory, *place,
      DeviceQueue::Rules{
          .indirect = indirect ? DeviceQueue::Indirect::Allowed : DeviceQueue::Indirect::Refused,
          .suppression = by_index ? DeviceQueue::Suppression::ByEventIndex : DeviceQueue::Suppression::ByFlag});
}

// Only `bypass` can be written, and only 0 or 1 is kept. [§5.13.4.2]
Task<void> VirtioIommu::write_config(CpuPort& cpu, virtio::MmioEffect::ConfigWrite write) {
  const bool is_bypass = write.offset == offsetof(virtio::IommuConfig, bypass) && write.bytes == 1;
  if (!is_bypass || write.value > 1 || !registers_.is_negotiated(virtio::kFeatureBypassConfig)) co_return;
  co_await spaces_.set_unattached(cpu, write.value == 1 ? Unattached::Bypass : Unattached::Blocked);
  fill_config();
}

Task<Errno> VirtioIommu::add_endpoint(CpuPort& cpu, RequesterId endpoint, EndpointKind kind) {
  co_await cpu.acquire(lock_);
  const Errno added = co_await spaces_.add_endpoint(cpu, endpoint, kind);
  cpu.release(lock_);
  co_return added;
}

// Requests ------------------------------------------------------------------------------------------------------------

Task<void> VirtioIommu::serve_requests(CpuPort& cpu, DeviceQueue& queue) {
  for (std::uint32_t n = 0; n < kMostRequestsPerKick; ++n) {
    auto popped = queue.pop();
    // A driver that added one since then saw the old event index and may not notify.
    if (std::holds_alternative<DeviceQueue::Empty>(popped) && queue.ask_for_notification()) popped = queue.pop();
    if (std::holds_alternative<DeviceQueue::Empty>(popped)) break;
    const auto* chain = std::get_if<Chain>(&popped);
    bool is_sound = chain != nullptr;
    if (is_sound) {
      const std::uint32_t written = co_await serve(cpu, *chain);
      is_sound = queue.push_used(chain->head, written);
    }
    if (is_sound) continue;
    registers_.need_reset();
    break;
  }
  co_await notify(cpu, queue);
}

Task<void> VirtioIommu::notify(CpuPort& cpu, DeviceQueue& queue) {
  if (!queue.take_notification()) co_return;
  registers_.raise(virtio::kInterruptUsedBuffer);
  co_await cpu.charge(CostId::InterruptInject);
}

// Bytes written; 0: a request that cannot be parsed, whose buffers come back as they were. [§5.13.6]
Task<std::uint32_t> VirtioIommu::serve(CpuPort& cpu, Chain chain) {
  co_await cpu.charge(CostId::VirtioRequest);
  virtio::RequestHead head;
  const bool has_head =
      virtio::read_from(domain_.memory, chain.readable, 0, std::as_writable_bytes(std::span(&head, 1)));
  const bool maps = registers_.is_negotiated(virtio::kFeatureMapUnmap);
  const bool binds = registers_.is_negotiated(virtio::kFeatureAttachTable);
  std::uint32_t written = 0;
  std::size_t kind = has_head ? head.type : 0;
  if (kind == static_cast<std::size_t>(RequestType::Attach))
    written = co_await serve_attach(cpu, std::move(chain));
  else if (kind == static_cast<std::size_t>(RequestType::Detach))
    written = co_await serve_detach(cpu, std::move(chain));
  else if (kind == static_cast<std::size_t>(RequestType::Map) && maps)
    written = co_await serve_map(cpu, std::move(chain));
  else if (kind == static_cast<std::size_t>(RequestType::Unmap) && maps)
    written = co_await serve_unmap(cpu, std::move(chain));
  else if (kind == static_cast<std::size_t>(RequestType::Probe) && registers_.is_negotiated(virtio::kFeatureProbe))
    written = serve_probe(chain);
  else if (kind == static_cast<std::size_t>(RequestType::AttachTable) && binds)
    written = co_await serve_attach_table(cpu, std::move(chain));
  else if (kind == static_cast<std::size_t>(RequestType::Invalidate) && binds)
    written = co_await serve_invalidate(cpu, std::move(chain));
  else
    kind = 0;
  ++counters_.requests[kind];
  if (written == 0) ++counters_.refused;
  co_return written;
}

bool VirtioIommu::read_request(const Chain& chain, std::span<std::byte> request) {
  return virtio::read_from(domain_.memory, chain.readable, 0, request) &&
         put_tail(domain_.memory, chain, 0, Status::DeviceError);
}

std::uint32_t VirtioIommu::finish(const Chain& chain, Status status) {
  if (status != Status::Ok) ++counters_.refused;
  // It was there when the request was read; a guest may have given the page away since.
  return put_tail(domain_.memory, chain, 0, status) ? kTailBytes : 0;
}

Task<std::uint32_t> VirtioIommu::serve_attach(CpuPort& cpu, Chain chain) {
  const auto request = parse<virtio::AttachRequest>(chain);
  if (!request) co_return 0;
  const bool may_bypass = registers_.is_negotiated(virtio::kFeatureBypassConfig);
  const std::uint32_t known = may_bypass ? virtio::kAttachBypass : 0;
  Status status = Status::Invalid;
  if (request->reserved == 0 && (request->flags & ~known) == 0) {
    const SpaceKind kind = (request->flags & virtio::kAttachBypass) != 0 ? SpaceKind::Bypass : SpaceKind::Translated;
    status = co_await spaces_.attach(cpu, request->domain, request->endpoint, kind);
  }
  co_return finish(chain, status);
}

Task<std::uint32_t> VirtioIommu::serve_detach(CpuPort& cpu, Chain chain) {
  const auto request = parse<virtio::DetachRequest>(chain);
  if (!request) co_return 0;
  const Status status = co_await spaces_.detach(cpu, request->domain, request->endpoint);
  co_return finish(chain, status);
}

Task<std::uint32_t> VirtioIommu::serve_map(CpuPort& cpu, Chain chain) {
  const auto request = parse<virtio::MapRequest>(chain);
  if (!request) co_return 0;
  const std::uint32_t mmio = registers_.is_negotiated(virtio::kFeatureMmio) ? virtio::kMapMmio : 0;
  Status status = Status::Invalid;
  if ((request->flags & ~(virtio::kMapRead | virtio::kMapWrite | mmio)) == 0)
    status = co_await spaces_.map(cpu, *request);
  co_return finish(chain, status);
}

Task<std::uint32_t> VirtioIommu::serve_unmap(CpuPort& cpu, Chain chain) {
  const auto request = parse<virtio::UnmapRequest>(chain);
  if (!request) co_return 0;
  const Status status = co_await spaces_.unmap(cpu, *request);
  co_return finish(chain, status);
}

// The tail follows the properties, for which there must be room; where there is not, it is what the buffer ends with.
std::uint32_t VirtioIommu::serve_probe(const Chain& chain) {
  virtio::ProbeRequest request;
  if (!virtio::read_from(domain_.memory, chain.readable, 0, std::as_writable_bytes(std::span(&request, 1)))) return 0;
  const std::uint64_t room = virtio::bytes_of(chain.writable);
  if (room < kTailBytes) return 0;
  const auto properties = static_cast<std::uint32_t>(std::min<std::uint64_t>(room - kTailBytes, setting_.probe_size));
  const std::vector<std::byte> nothing(properties);
  if (!virtio::write_to(domain_.memory, chain.writable, 0, nothing)) return 0;
  if (!put_tail(domain_.memory, chain, properties, Status::Invalid)) return 0;
  Status status = Status::Invalid;
  if (properties == setting_.probe_size) status = write_properties(chain, request.endpoint);
  if (status != Status::Ok) ++counters_.refused;
  static_cast<void>(put_tail(domain_.memory, chain, properties, status));
  return properties + kTailBytes;
}

VirtioIommu::Status VirtioIommu::write_properties(const Chain& chain, std::uint32_t endpoint) {
  const auto reserved = spaces_.reserved(endpoint);
  if (!reserved) return Status::NoEntry;
  std::vector<std::uint64_t> identity;
  if (setting_.tables.binding != nullptr) identity = setting_.tables.binding->identity(setting_.tables.unit);
  const std::uint64_t hardware = identity.empty() ? 0 : sizeof(virtio::HardwareProperty) + 8 * identity.size();
  if (reserved->size() * sizeof(virtio::ReservedMemoryProperty) + hardware > setting_.probe_size)
    return Status::DeviceError;
  std::uint64_t at = 0;
  for (const ReservedAddresses& region : *reserved) {
    const virtio::ReservedMemoryProperty property{
        .subtype = static_cast<std::uint8_t>(region.kind), .start = region.range.first, .end = region.range.last};
    static_cast<void>(virtio::write_to(domain_.memory, chain.writable, at, std::as_bytes(std::span(&property, 1))));
    at += sizeof property;
  }
  if (identity.empty()) return Status::Ok;
  const auto length = static_cast<std::uint16_t>(hardware - sizeof(virtio::PropertyHead));
  const virtio::HardwareProperty property{.head = {setting_.tables.binding->property, length}};
  static_cast<void>(virtio::write_to(domain_.memory, chain.writable, at, std::as_bytes(std::span(&property, 1))));
  static_cast<void>(
      virtio::write_to(domain_.memory, chain.writable, at + sizeof property, std::as_bytes(std::span(identity))));
  return Status::Ok;
}

// Events --------------------------------------------------------------------------------------------------------------

Task<void> VirtioIommu::report_fault(CpuPort& cpu, RequesterId endpoint, Iova address, Access access) {
  co_await cpu.acquire(lock_);
  const auto led = spaces_.translate(endpoint, address, access);
  const auto* reason = std::get_if<virtio::FaultReason>(&led);
  const virtio::FaultRecord record{
      // A unit that refuses what is mapped has a reason that the driver cannot know.
      .reason = static_cast<std::uint8_t>(reason != nullptr ? *reason : virtio::FaultReason::Unknown),
      .flags = virtio::kFaultAddress | (access == Access::Read ? virtio::kFaultRead : virtio::kFaultWrite),
      .endpoint = endpoint.value(),
      .address = address.value()};
  bool is_told = false;
  std::optional<DeviceQueue>& queue = queues_[virtio::kEventQueue];
  if (registers_.is_live() && queue) {
    const auto popped = queue->pop();
    if (const auto* chain = std::get_if<Chain>(&popped)) {
      // A buffer that is too small comes back unwritten.
      is_told = virtio::write_to(domain_.memory, chain->writable, 0, std::as_bytes(std::span(&record, 1)));
      const auto written = static_cast<std::uint32_t>(is_told ? sizeof record : 0);
      if (!queue->push_used(chain->head, written)) registers_.need_reset();
      co_await notify(cpu, *queue);
    } else if (std::holds_alternative<virtio::Defect>(popped)) {
      registers_.need_reset();
    }
  }
  ++(is_told ? counters_.events : counters_.events_dropped);
  cpu.release(lock_);
}

}  // namespace iommu::xen
