// SPDX-License-Identifier: Apache-2.0
#include "sim/virtio/mmio_registers.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace iommu::virtio {

namespace {
constexpr std::uint32_t kVendor = 0x006e6558;  // "Xen"; any value will do [§4.2.2]

std::uint32_t word_of(std::uint64_t features, std::uint32_t selector) {
  return selector > 1 ? 0 : static_cast<std::uint32_t>(features >> (32 * selector));
}
void put_low(std::uint64_t& value, std::uint32_t low) { value = (value >> 32 << 32) | low; }
void put_high(std::uint64_t& value, std::uint32_t high) { value = (value & 0xffff'ffffU) | std::uint64_t{high} << 32; }
bool is_aligned(std::uint64_t address, unsigned lg2) { return Gpa(address).is_aligned(lg2); }
}  // namespace

MmioRegisters::MmioRegisters(const MmioSetting& setting)
    : setting_(setting), queues_(setting.queues), config_(setting.config_bytes) {}

bool MmioRegisters::is_negotiated(unsigned feature) const {
  return (status_ & kStatusFeaturesOk) != 0 && (driver_features_ >> feature & 1) != 0;
}

bool MmioRegisters::is_live() const {
  constexpr std::uint32_t kWorking = kStatusFeaturesOk | kStatusDriverOk;
  return (status_ & kWorking) == kWorking && (status_ & (kStatusNeedsReset | kStatusFailed)) == 0;
}

std::optional<QueuePlace> MmioRegisters::queue(std::uint32_t index) const {
  if (index >= queues_.size() || !queues_[index].is_ready) return std::nullopt;
  const Queue& q = queues_[index];
  return QueuePlace{Gpa(q.descriptors), Gpa(q.driver), Gpa(q.device), static_cast<std::uint16_t>(q.entries)};
}

void MmioRegisters::need_reset() {
  status_ |= kStatusNeedsReset;
  raise(kInterruptConfigChange);
}

const MmioRegisters::Queue* MmioRegisters::selected() const {
  return queue_sel_ < queues_.size() ? &queues_[queue_sel_] : nullptr;
}

// Reading ---------------------------------------------------------------------------------------------------------

std::uint64_t MmioRegisters::read(std::uint64_t offset, unsigned bytes) const {
  if (offset >= offset::kConfig) return read_config(offset - offset::kConfig, bytes);
  // Control registers have 32 bits and no other access. [§4.2.2.2]
  return bytes == 4 && offset % 4 == 0 ? read_control(offset) : 0;
}

std::uint64_t MmioRegisters::read_config(std::uint64_t offset, unsigned bytes) const {
  const bool is_wide = bytes == 1 || bytes == 2 || bytes == 4;
  if (!is_wide || offset % bytes != 0 || offset >= config_.size() || bytes > config_.size() - offset) return 0;
  std::uint64_t value = 0;
  std::memcpy(&value, config_.data() + offset, bytes);
  return value;
}

std::uint32_t MmioRegisters::read_control(std::uint64_t offset) const {
  const Queue* queue = selected();
  switch (offset) {
    case offset::kMagicValue:
      return kMagic;
    case offset::kVersion:
      return kMmioVersion;
    case offset::kDeviceId:
      return setting_.device_id;
    case offset::kVendorId:
      return kVendor;
    case offset::kDeviceFeatures:
      return word_of(setting_.features, device_features_sel_);
    case offset::kQueueNumMax:
      return queue != nullptr ? setting_.queue_entries : 0;
    case offset::kQueueReady:
      return queue != nullptr && queue->is_ready ? 1 : 0;
    case offset::kInterruptStatus:
      return interrupt_status_;
    case offset::kStatus:
      return status_;
    default:
      return 0;  // write-only, absent, or a generation that never changes
  }
}

// Writing ---------------------------------------------------------------------------------------------------------

MmioEffect MmioRegisters::write(std::uint64_t offset, unsigned bytes, std::uint64_t value) {
  if (offset < offset::kConfig)
    return bytes == 4 && offset % 4 == 0 ? write_control(offset, static_cast<std::uint32_t>(value)) : MmioEffect{};
  MmioEffect effect;
  const std::uint64_t at = offset - offset::kConfig;
  const bool is_wide = bytes == 1 || bytes == 2 || bytes == 4;
  if (is_wide && at % bytes == 0 && at < config_.size() && bytes <= config_.size() - at)
    effect.config = MmioEffect::ConfigWrite{at, bytes, value};
  return effect;
}

MmioEffect MmioRegisters::write_control(std::uint64_t offset, std::uint32_t value) {
  MmioEffect effect;
  switch (offset) {
    case offset::kDeviceFeaturesSel:
      device_features_sel_ = value;
      break;
    case offset::kDriverFeatures:
      select_features(value);
      break;
    case offset::kDriverFeaturesSel:
      driver_features_sel_ = value;
      break;
    case offset::kQueueSel:
      queue_sel_ = value;
      break;
    case offset::kQueueReady:
      return write_ready(value);
    case offset::kQueueNotify:
      if (is_live() && queue(value)) effect.notified = value;
      break;
    case offset::kInterruptAck:
      interrupt_status_ &= ~value;
      break;
    case offset::kStatus:
      return write_status(value);
    default:
      write_queue(offset, value);
  }
  return effect;
}

// Only while features are being negotiated. [§3.1.1]
void MmioRegisters::select_features(std::uint32_t value) {
  if ((status_ & kStatusFeaturesOk) != 0) return;
  if (driver_features_sel_ == 0) put_low(driver_features_, value);
  if (driver_features_sel_ == 1) put_high(driver_features_, value);
}

// Of a queue that is not ready.
void MmioRegisters::write_queue(std::uint64_t offset, std::uint32_t value) {
  if (queue_sel_ >= queues_.size() || queues_[queue_sel_].is_ready) return;
  Queue& queue = queues_[queue_sel_];
  switch (offset) {
    case offset::kQueueNum:
      queue.entries = value;
      return;
    case offset::kQueueDescLow:
      return put_low(queue.descriptors, value);
    case offset::kQueueDescHigh:
      return put_high(queue.descriptors, value);
    case offset::kQueueDriverLow:
      return put_low(queue.driver, value);
    case offset::kQueueDriverHigh:
      return put_high(queue.driver, value);
    case offset::kQueueDeviceLow:
      return put_low(queue.device, value);
    case offset::kQueueDeviceHigh:
      return put_high(queue.device, value);
    default:
      return;
  }
}

bool MmioRegisters::can_be_ready(const Queue& queue) const {
  return (status_ & kStatusFeaturesOk) != 0 && queue.entries <= setting_.queue_entries &&
         std::has_single_bit(queue.entries) && is_aligned(queue.descriptors, kDescriptorAlignLg2) &&
         is_aligned(queue.driver, kDriverAlignLg2) && is_aligned(queue.device, kDeviceAlignLg2);
}

MmioEffect MmioRegisters::write_ready(std::uint32_t value) {
  MmioEffect effect;
  if (queue_sel_ >= queues_.size()) return effect;
  Queue& queue = queues_[queue_sel_];
  const bool wanted = (value & 1) != 0 && can_be_ready(queue);
  if (wanted != queue.is_ready) effect.readiness = queue_sel_;
  queue.is_ready = wanted;
  return effect;
}

MmioEffect MmioRegisters::write_status(std::uint32_t value) {
  MmioEffect effect;
  if (value == 0) {
    std::fill(queues_.begin(), queues_.end(), Queue{});
    driver_features_ = 0;
    device_features_sel_ = driver_features_sel_ = queue_sel_ = status_ = interrupt_status_ = 0;
    effect.was_reset = true;
    return effect;
  }
  // What it was refused shows in FEATURES_OK, which does not stay. [§3.1.1, step 6; §6.1 for VERSION_1]
  const bool is_modern = (driver_features_ >> kFeatureVersion1 & 1) != 0;
  if ((driver_features_ & ~setting_.features) != 0 || !is_modern) value &= ~kStatusFeaturesOk;
  constexpr std::uint32_t kDrivers =
      kStatusAcknowledge | kStatusDriver | kStatusDriverOk | kStatusFeaturesOk | kStatusFailed;
  status_ |= value & kDrivers;  // a driver clears none of them [§2.1.1]
  return effect;
}

}  // namespace iommu::virtio
