// SPDX-License-Identifier: Apache-2.0
// A virtio-iommu in the hands of a hostile driver: bytes write its rings, descriptors and requests, its registers, and
// kick it. Whatever they are, the device answers and goes on or asks for a reset, devices reach memory of their guest
// only, and a reset leaves no mapping, no page reference and no table behind.
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <variant>

#include "models/families.hpp"
#include "sim/base/check.hpp"
#include "sim/base/fuzz_test_support.hpp"
#include "sim/base/immediate_cpu.hpp"
#include "sim/virtio/guest_values.hpp"
#include "sim/xen/virtio_iommu.hpp"

namespace iommu::xen {
namespace {

using test::FuzzInput;

constexpr RequesterId kNic = RequesterId::bdf(3, 0, 0);
constexpr RequesterId kEmulated = RequesterId::bdf(3, 0, 1);
constexpr Bytes kGuestMemory = 1_MiB;
constexpr Gpa kRings{0x1000};     // descriptors, driver's ring, device's ring: a page each, for both queues
constexpr Gpa kRequests{0x8000};  // and what they lead to
constexpr std::uint64_t kPlayground = 0x10000;
constexpr std::uint16_t kEntries = 8;

// Of hardware, and of what the guest's tables are for.
constexpr UnitFeatures kUnitFeatures{.nested = true};
constexpr UnitFeatures kGuestFeatures{};

// A unit that executes commands as they come and keeps nothing.
class Unit final : public MmioPort {
 public:
  Unit(const FamilyDescriptor& family, HostMemory& memory)
      : core_(family.make_core(kUnitFeatures)), memory_(memory), port_(memory) {}
  Task<void> write(CpuPort&, std::uint64_t offset, unsigned bytes, std::uint64_t value) override {
    if (!core_->mmio_write(offset, bytes, value).scopes.empty()) core_->invalidation_done();
    while (core_->has_command()) {
      const auto command = core_->fetch_command(port_).run();
      SIM_CHECK(command.has_value(), "Xen writes no command that a unit refuses");
      const CommandEffect effect = core_->apply(*command);
      core_->completed();
      if (!effect.fence || !effect.fence->status) continue;
      if (effect.fence->status->bytes == sizeof(std::uint64_t))
        memory_.write64(effect.fence->status->address, effect.fence->status->data);
      else
        memory_.write32(effect.fence->status->address, static_cast<std::uint32_t>(effect.fence->status->data));
    }
    co_return;
  }
  Task<std::uint64_t> read(CpuPort&, std::uint64_t offset, unsigned bytes) override {
    co_return core_->mmio_read(offset, bytes);
  }
  std::optional<Hpa> translate(RequesterId device, Iova address, Access access) {
    const TranslationResponse response =
        core_->translate({.requester = device, .pasid = {}, .address = address, .access = access}, port_).run();
    const auto* translation = std::get_if<Translation>(&response);
    return translation != nullptr ? std::optional(translation->address) : std::nullopt;
  }

 private:
  std::unique_ptr<IommuCore> core_;
  HostMemory& memory_;
  ImmediateMemoryPort port_;
};

class Session {
 public:
  Session(const FamilyDescriptor& family, FuzzInput bytes)
      : in_(bytes), family_(family), unit_(family, host_), xen_(host_, frames_, {}) {
    xen_.add_unit({.name = "unit", .family = &family, .driver = {.features = kUnitFeatures, .stage1 = true}}, unit_);
    bool is_up = xen_.bring_up(cpu_).run() == Errno::Ok;
    guest_ = xen_.create_domain({.name = "guest", .memory = kGuestMemory});
    SIM_CHECK(is_up && guest_ != nullptr, "the machine is large enough");
    is_up = xen_.assign_device(cpu_, *guest_, {.requester = kNic}).run() == Errno::Ok;
    SIM_CHECK(is_up, "the device is free");
    device_ = std::make_unique<VirtioIommu>(
        xen_, *guest_,
        VirtioIommuSetting{.spaces = {.interrupt_windows = {{0xfee00000, 0xfeefffff}}, .most_mappings = 64},
                           .queue_entries = 32,
                           .probe_size = 128,
                           .tables = {family.binding, kGuestFeatures}});
    add(kNic, EndpointKind::Physical);
    add(kEmulated, EndpointKind::Virtual);
    bring_up();
    warm_up();
    frames_in_use_ = frames_.used();
  }

  void run() {
    while (!in_.empty()) {
      act();
      look();
    }
    poke(virtio::offset::kStatus, 4, 0);
    SIM_CHECK(device_->spaces().mappings() == 0 && device_->spaces().spaces() == 0, "a reset ends every domain");
    SIM_CHECK(xen_.references().total() == 0, "page references are balanced");
    SIM_CHECK(frames_.used() == frames_in_use_, "no table is left behind");
    SIM_CHECK(!cpu_.would_block(), "no lock is left taken");
  }

 private:
  void add(RequesterId endpoint, EndpointKind kind) {
    const bool is_added = device_->add_endpoint(cpu_, endpoint, kind).run() == Errno::Ok;
    SIM_CHECK(is_added, "the endpoint is new");
  }
  void poke(std::uint64_t offset, unsigned bytes, std::uint64_t value) {
    device_->write(cpu_, offset, bytes, value).run();
  }
  void bring_up() {
    namespace reg = virtio::offset;
    poke(reg::kStatus, 4, 0);
    for (std::uint32_t word = 0; word < 2; ++word) {
      poke(reg::kDeviceFeaturesSel, 4, word);
      poke(reg::kDriverFeaturesSel, 4, word);
      poke(reg::kDriverFeatures, 4, device_->read(cpu_, reg::kDeviceFeatures, 4).run());
    }
    poke(reg::kStatus, 4, virtio::kStatusFeaturesOk);
    for (std::uint32_t q = 0; q < virtio::kIommuQueues; ++q) {
      poke(reg::kQueueSel, 4, q);
      poke(reg::kQueueNum, 4, kEntries);
      for (std::uint32_t part = 0; part < 3; ++part)
        poke(reg::kQueueDescLow + std::uint64_t{part} * 0x10, 4, (kRings + kPageSize * (3 * q + part)).value());
      poke(reg::kQueueReady, 4, 1);
    }
    poke(reg::kStatus, 4, virtio::kStatusDriverOk);
    available_ = {};
    for (Bytes at; at < kPageSize * 6; at += 8_B) guest_->memory.write64(kRings + at, 0);
  }

  // What Xen's driver allocates once for a device that nests, in two halves that take turns, stays.
  void warm_up() {
    for (const std::uint64_t root : {0x1000U, 0x2000U, 0x3000U}) {
      virtio::AttachTableRequest bound{.endpoint = kNic.value(), .format = family_.binding->format};
      bound.words = {0, root, 48};
      request(bound);
    }
    poke(virtio::offset::kStatus, 4, 0);
    bring_up();
  }

  template <class T>
  void put(Gpa at, const T& value) {
    static_cast<void>(virtio::store(guest_->memory, at, value));
  }
  // Small numbers are what finds something.
  std::uint64_t page() { return in_.take(1) << kPageLg2; }
  std::uint32_t endpoint() { return std::array{kNic, kEmulated, RequesterId(0)}[in_.take(1) % 3].value(); }

  template <class Request>
  void request(const Request& request) {
    put(kRequests, request);
    const auto readable = static_cast<std::uint32_t>(virtio::kReadable<Request>);
    put(kRings, virtio::Descriptor{kRequests.value(), readable, virtio::kDescriptorNext, 1});
    put(kRings + 16_B, virtio::Descriptor{kRequests.value() + 0x800, 128, virtio::kDescriptorWrite, 0});
    offer(virtio::kRequestQueue, 0);
    poke(virtio::offset::kQueueNotify, 4, virtio::kRequestQueue);
  }
  // Tables where the driver can write them, or anywhere else.
  void bind(std::uint32_t domain) {
    const TableBinding& binding = *family_.binding;
    virtio::AttachTableRequest bound{
        .domain = domain, .endpoint = endpoint(), .format = static_cast<std::uint8_t>(in_.take(1) % 8)};
    if (bound.format == 0) bound.format = binding.format;
    const std::uint64_t words = in_.take(1);
    if (words % 4 != 0)
      bound.words = {0, page() % kPlayground, 48};
    else
      for (std::uint64_t& word : bound.words) word = in_.take(8);
    request(bound);
  }
  void invalidate(std::uint32_t domain) {
    request(virtio::InvalidateRequest{.scope = static_cast<std::uint8_t>(in_.take(1) % 5),
                                      .caches = static_cast<std::uint8_t>(in_.take(1) % 4),
                                      .flags = static_cast<std::uint16_t>(in_.take(1) % 16),
                                      .domain = domain,
                                      .id = in_.take(1),
                                      .address = page(),
                                      .pages = in_.take(1),
                                      .page_lg2 = static_cast<std::uint8_t>(in_.take(1))});
  }
  void offer(std::uint32_t queue, std::uint16_t head) {
    const Gpa ring = kRings + kPageSize * (3 * queue + 1);
    put(ring + Bytes(virtio::kRingEntries + 2 * (available_[queue]++ % kEntries)), head);
    put(ring + Bytes(virtio::kRingIndex), available_[queue]);
  }

  void act() {
    const auto domain = static_cast<std::uint32_t>(in_.take(1) % 3);
    switch (in_.take(1) % 14) {
      case 0:
        return request(virtio::AttachRequest{
            .domain = domain, .endpoint = endpoint(), .flags = static_cast<std::uint32_t>(in_.take(1) % 3)});
      case 1:
        return request(virtio::DetachRequest{.domain = domain, .endpoint = endpoint()});
      case 2:
      case 3: {
        const std::uint64_t first = page();
        return request(virtio::MapRequest{.domain = domain,
                                          .virt_start = first,
                                          .virt_end = first + page() - 1,
                                          .phys_start = page(),
                                          .flags = static_cast<std::uint32_t>(in_.take(1) % 8)});
      }
      case 4: {
        const std::uint64_t first = page();
        return request(virtio::UnmapRequest{.domain = domain, .virt_start = first, .virt_end = first + page() - 1});
      }
      case 5:
        return request(virtio::ProbeRequest{.endpoint = endpoint()});
      case 6:
        return put(Gpa(in_.take(2) % kPlayground), static_cast<std::uint16_t>(in_.take(2)));
      case 7:
        return put(Gpa((in_.take(2) % kPlayground) & ~7ULL), in_.take(8));
      case 8:
        return poke(virtio::offset::kQueueNotify, 4, in_.take(1));
      case 9:
        return poke(in_.take(2) % 0x140, std::array{1U, 2U, 4U, 8U}[in_.take(1) % 4], in_.take(4));
      case 10: {
        const auto accessed = in_.take(1) % 2 == 0 ? Access::Read : Access::Write;
        return device_->report_fault(cpu_, RequesterId(static_cast<std::uint16_t>(endpoint())), Iova(page()), accessed)
            .run();
      }
      case 11:
        return bring_up();
      case 12:
        return bind(domain);
      default:
        return invalidate(domain);
    }
  }

  // Where the endpoints get to: their guest, or nowhere; and to what was mapped, where mappings say it.
  void look() {
    const Iova address(in_.take(1) << kPageLg2);
    for (const Access access : {Access::Read, Access::Write}) {
      if (const auto reached = unit_.translate(kNic, address, access))
        SIM_CHECK(guest_->p2m.frame_of(Mfn(*reached)).has_value(), "a device reaches its guest's memory only");
      if (walks_own_tables()) continue;
      const auto led = device_->spaces().translate(kNic, address, access);
      const auto* place = std::get_if<Gpa>(&led);
      const auto expected = place != nullptr ? guest_->memory.translate(*place) : std::nullopt;
      SIM_CHECK(unit_.translate(kNic, address, access) == expected, "hardware and the device's own record agree");
    }
  }

  [[nodiscard]] bool walks_own_tables() const { return guest_->devices.at(kNic).context->kind == ContextKind::Nested; }

  FuzzInput in_;
  const FamilyDescriptor& family_;
  HostMemory host_{64_MiB};
  FrameAllocator frames_{Mfn(0x100), 0x3000};
  Unit unit_;
  ImmediateCpu cpu_{CpuId(0), [this](Hpa a) { return host_.read32(a); }};
  Hypervisor xen_;
  Domain* guest_ = nullptr;
  std::unique_ptr<VirtioIommu> device_;
  std::array<std::uint16_t, virtio::kIommuQueues> available_{};
  std::uint64_t frames_in_use_ = 0;
};

}  // namespace
}  // namespace iommu::xen

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto all = iommu::families();
  iommu::xen::Session(*all[data[0] % all.size()], iommu::test::FuzzInput({data + 1, size - 1})).run();
  return 0;
}
