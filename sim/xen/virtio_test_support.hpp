// SPDX-License-Identifier: Apache-2.0
// A guest that drives a virtio-iommu by hand, for tests: rings at fixed places of its memory, one request at a time.
//
//   VirtioBench b(family);
//   EXPECT_EQ(b.attach(1, kNic), Status::Ok);
//   EXPECT_EQ(b.map(1, 0x5000, 0x5fff, 0x7000), Status::Ok);
#pragma once

#include <array>
#include <bit>
#include <cstring>
#include <optional>
#include <vector>

#include "sim/virtio/guest_values.hpp"
#include "sim/virtio/mmio_registers.hpp"
#include "sim/xen/virtio_iommu.hpp"
#include "sim/xen/xen_test_support.hpp"

namespace iommu::xen {

using Status = virtio::RequestStatus;

struct VirtioBench {
  static constexpr std::uint16_t kEntries = 16;
  static constexpr std::array<virtio::QueuePlace, 2> kPlaces{
      virtio::QueuePlace{Gpa(0x10000), Gpa(0x11000), Gpa(0x12000), kEntries},
      virtio::QueuePlace{Gpa(0x13000), Gpa(0x14000), Gpa(0x15000), kEntries}};
  static constexpr Gpa kRequest{0x20000};
  static constexpr Gpa kAnswer{0x28000};
  static constexpr Gpa kEvents{0x30000};
  static constexpr std::byte kUntouched{0xee};
  static constexpr std::uint64_t kAllFeatures = ~0ULL;

  explicit VirtioBench(const FamilyDescriptor& family, const VirtioIommuSetting& setting = {},
                       const MachineOptions& options = {}, std::uint64_t accepted = kAllFeatures)
      : m(family, options), device(m.xen, m.guest(), setting) {
    for (const RequesterId endpoint : {kNic, kDisk})
      EXPECT_EQ(device.add_endpoint(m.cpu, endpoint, EndpointKind::Physical).run(), Errno::Ok);
    bring_up(accepted);
    for (const auto& unit : m.units) unit->forget_history();
  }

  void poke(std::uint64_t offset, std::uint64_t value, unsigned bytes = 4) {
    device.write(m.cpu, offset, bytes, value).run();
  }
  std::uint64_t peek(std::uint64_t offset, unsigned bytes = 4) { return device.read(m.cpu, offset, bytes).run(); }

  void bring_up(std::uint64_t accepted = kAllFeatures) {
    namespace reg = virtio::offset;
    poke(reg::kStatus, 0);
    poke(reg::kStatus, virtio::kStatusAcknowledge | virtio::kStatusDriver);
    for (std::uint32_t word = 0; word < 2; ++word) {
      poke(reg::kDeviceFeaturesSel, word);
      poke(reg::kDriverFeaturesSel, word);
      poke(reg::kDriverFeatures, peek(reg::kDeviceFeatures) & (accepted >> (32 * word)));
    }
    poke(reg::kStatus, virtio::kStatusFeaturesOk);
    for (std::uint32_t q = 0; q < kPlaces.size(); ++q) set_up_queue(q, kPlaces[q]);
    poke(reg::kStatus, virtio::kStatusDriverOk);
    available = {};
    used = {};
  }
  void set_up_queue(std::uint32_t index, const virtio::QueuePlace& place) {
    namespace reg = virtio::offset;
    poke(reg::kQueueSel, index);
    poke(reg::kQueueNum, place.entries);
    poke(reg::kQueueDescLow, place.descriptors.value());
    poke(reg::kQueueDriverLow, place.driver.value());
    poke(reg::kQueueDeviceLow, place.device.value());
    for (const Gpa ring : {place.driver, place.device})
      for (std::uint64_t at = 0; at < 0x1000; at += 8) put(ring + Bytes(at), std::uint64_t{0});
    poke(reg::kQueueReady, 1);
  }

  template <class T>
  void put(Gpa at, const T& value) {
    EXPECT_TRUE(virtio::store(m.guest().memory, at, value));
  }
  template <class T>
  T get(Gpa at) {
    const auto value = virtio::load<T>(m.guest().memory, at);
    EXPECT_TRUE(value);
    return value.value_or(T{});
  }

  // Makes chains available that begin with descriptors 0, `step`, ...
  void offer(std::uint32_t queue, std::uint16_t head) {
    put(kPlaces[queue].available_entry(available[queue]++), head);
    put(kPlaces[queue].driver + Bytes(virtio::kRingIndex), available[queue]);
  }
  void describe(std::uint32_t queue, std::uint16_t index, const virtio::Descriptor& descriptor) {
    put(kPlaces[queue].descriptors + Bytes(sizeof descriptor * index), descriptor);
  }
  void kick(std::uint32_t queue = virtio::kRequestQueue) { poke(virtio::offset::kQueueNotify, queue); }
  // The next used element, if there is one.
  std::optional<virtio::UsedElement> take(std::uint32_t queue) {
    if (get<std::uint16_t>(kPlaces[queue].device + Bytes(virtio::kRingIndex)) == used[queue]) return std::nullopt;
    return get<virtio::UsedElement>(kPlaces[queue].used_entry(used[queue]++));
  }

  struct Answer {
    bool was_used = false;
    std::uint32_t written = 0;
    std::vector<std::byte> bytes;
    // Of the tail that the written part ends with.
    [[nodiscard]] std::optional<Status> status() const {
      if (written < sizeof(virtio::RequestTail)) return std::nullopt;
      return static_cast<Status>(bytes[written - sizeof(virtio::RequestTail)]);
    }
    [[nodiscard]] bool is_untouched() const {
      return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == kUntouched; });
    }
  };
  // One request of two buffers.
  Answer ask(std::span<const std::byte> request, std::uint32_t room = sizeof(virtio::RequestTail)) {
    EXPECT_TRUE(m.guest().memory.write(kRequest, request));
    EXPECT_TRUE(m.guest().memory.write(kAnswer, std::vector<std::byte>(room, kUntouched)));
    describe(0, 0, {kRequest.value(), static_cast<std::uint32_t>(request.size()), virtio::kDescriptorNext, 1});
    describe(0, 1, {kAnswer.value(), room, virtio::kDescriptorWrite, 0});
    offer(0, 0);
    kick();
    Answer answer;
    const auto element = take(0);
    answer.was_used = element && element->id == 0;
    answer.written = element ? element->length : 0;
    answer.bytes.resize(room);
    EXPECT_TRUE(m.guest().memory.read(kAnswer, answer.bytes));
    return answer;
  }
  template <class Request>
  Answer ask(const Request& request, std::uint32_t room = sizeof(virtio::RequestTail)) {
    return ask(std::as_bytes(std::span(&request, 1)).first(virtio::kReadable<Request>), room);
  }
  template <class Request>
  Status status_of(const Request& request) {
    const auto status = ask(request).status();
    EXPECT_TRUE(status) << "the request came back without a status";
    return status.value_or(Status::IoError);
  }

  Status attach(std::uint32_t domain, RequesterId endpoint, std::uint32_t flags = 0) {
    return status_of(virtio::AttachRequest{.domain = domain, .endpoint = endpoint.value(), .flags = flags});
  }
  Status detach(std::uint32_t domain, RequesterId endpoint) {
    return status_of(virtio::DetachRequest{.domain = domain, .endpoint = endpoint.value()});
  }
  static constexpr std::uint32_t kReadWriteFlags = virtio::kMapRead | virtio::kMapWrite;
  Status map(std::uint32_t domain, std::uint64_t first, std::uint64_t last, std::uint64_t physical,
             std::uint32_t flags = kReadWriteFlags) {
    return status_of(virtio::MapRequest{
        .domain = domain, .virt_start = first, .virt_end = last, .phys_start = physical, .flags = flags});
  }
  Status unmap(std::uint32_t domain, std::uint64_t first, std::uint64_t last) {
    return status_of(virtio::UnmapRequest{.domain = domain, .virt_start = first, .virt_end = last});
  }
  void set_bypass(std::uint8_t value) {
    poke(virtio::offset::kConfig + offsetof(virtio::IommuConfig, bypass), value, 1);
  }

  // A buffer for one event.
  void offer_event(std::uint32_t room = sizeof(virtio::FaultRecord)) {
    const auto head = static_cast<std::uint16_t>(available[1] % kEntries);
    EXPECT_TRUE(m.guest().memory.write(event_buffer(head), std::vector<std::byte>(room, kUntouched)));
    describe(1, head, {event_buffer(head).value(), room, virtio::kDescriptorWrite, 0});
    offer(1, head);
  }
  static Gpa event_buffer(std::uint32_t head) { return kEvents + Bytes(64 * head); }
  std::optional<virtio::FaultRecord> take_event() {
    const auto element = take(1);
    if (!element || element->length != sizeof(virtio::FaultRecord)) return std::nullopt;
    return get<virtio::FaultRecord>(event_buffer(element->id));
  }
  void report(RequesterId endpoint, std::uint64_t address, Access access = Access::Read) {
    device.report_fault(m.cpu, endpoint, Iova(address), access).run();
  }

  std::optional<Mfn> reach(RequesterId endpoint, std::uint64_t address, Access access = Access::Read) {
    return m.reach(endpoint, Dfn(Iova(address)), access);
  }
  Mfn frame(std::uint64_t physical) { return Machine::frame(m.guest(), Gfn(Gpa(physical))); }

  Machine m;
  VirtioIommu device;
  std::array<std::uint16_t, 2> available{};
  std::array<std::uint16_t, 2> used{};
};

class XenVirtio : public XenFamilies {};

}  // namespace iommu::xen
