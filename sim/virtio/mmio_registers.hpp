// SPDX-License-Identifier: Apache-2.0
// The register block of a virtio device on memory-mapped I/O: identification, feature negotiation, queues, status,
// configuration space. State only; what a notification or a reset means is the device's business. [VIRTIO 1.3 §4.2,
// transport-mmio.tex; §2.1 and §3.1 for the status byte]
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "sim/virtio/ring_abi.hpp"

namespace iommu::virtio {

namespace offset {
inline constexpr std::uint64_t kMagicValue = 0x000;
inline constexpr std::uint64_t kVersion = 0x004;
inline constexpr std::uint64_t kDeviceId = 0x008;
inline constexpr std::uint64_t kVendorId = 0x00c;
inline constexpr std::uint64_t kDeviceFeatures = 0x010;
inline constexpr std::uint64_t kDeviceFeaturesSel = 0x014;
inline constexpr std::uint64_t kDriverFeatures = 0x020;
inline constexpr std::uint64_t kDriverFeaturesSel = 0x024;
inline constexpr std::uint64_t kQueueSel = 0x030;
inline constexpr std::uint64_t kQueueNumMax = 0x034;
inline constexpr std::uint64_t kQueueNum = 0x038;
inline constexpr std::uint64_t kQueueReady = 0x044;
inline constexpr std::uint64_t kQueueNotify = 0x050;
inline constexpr std::uint64_t kInterruptStatus = 0x060;
inline constexpr std::uint64_t kInterruptAck = 0x064;
inline constexpr std::uint64_t kStatus = 0x070;
inline constexpr std::uint64_t kQueueDescLow = 0x080;
inline constexpr std::uint64_t kQueueDescHigh = 0x084;
inline constexpr std::uint64_t kQueueDriverLow = 0x090;
inline constexpr std::uint64_t kQueueDriverHigh = 0x094;
inline constexpr std::uint64_t kQueueDeviceLow = 0x0a0;
inline constexpr std::uint64_t kQueueDeviceHigh = 0x0a4;
inline constexpr std::uint64_t kConfigGeneration = 0x0fc;
inline constexpr std::uint64_t kConfig = 0x100;
}  // namespace offset

inline constexpr std::uint32_t kMagic = 0x74726976;
inline constexpr std::uint32_t kMmioVersion = 2;
// Status. [§2.1]
inline constexpr std::uint32_t kStatusAcknowledge = 1;
inline constexpr std::uint32_t kStatusDriver = 2;
inline constexpr std::uint32_t kStatusDriverOk = 4;
inline constexpr std::uint32_t kStatusFeaturesOk = 8;
inline constexpr std::uint32_t kStatusNeedsReset = 64;
inline constexpr std::uint32_t kStatusFailed = 128;
// Causes of the interrupt.
inline constexpr std::uint32_t kInterruptUsedBuffer = 1U << 0;
inline constexpr std::uint32_t kInterruptConfigChange = 1U << 1;

struct MmioSetting {
  std::uint32_t device_id = 0;
  std::uint64_t features = 0;  // offered
  std::size_t queues = 1;
  std::uint16_t queue_entries = 256;  // most of each queue
  std::size_t config_bytes = 0;
};

// What a write asks of the device.
struct MmioEffect {
  struct ConfigWrite {
    std::uint64_t offset = 0;
    unsigned bytes = 0;
    std::uint64_t value = 0;
  };
  bool was_reset = false;
  std::optional<std::uint32_t> notified;   // a live queue
  std::optional<std::uint32_t> readiness;  // this queue became ready, or is no more
  std::optional<ConfigWrite> config;       // within the configuration space; the device decides what it means
};

class MmioRegisters {
 public:
  explicit MmioRegisters(const MmioSetting& setting);

  // Accesses that the specification forbids read as zero and change nothing.
  [[nodiscard]] std::uint64_t read(std::uint64_t offset, unsigned bytes) const;
  MmioEffect write(std::uint64_t offset, unsigned bytes, std::uint64_t value);

  // Both sides know it. Before FEATURES_OK nothing is.
  [[nodiscard]] bool is_negotiated(unsigned feature) const;
  // The driver is at work, and the device has found no reason to stop.
  [[nodiscard]] bool is_live() const;
  // nullopt: not ready.
  [[nodiscard]] std::optional<QueuePlace> queue(std::uint32_t index) const;
  [[nodiscard]] std::uint32_t status() const { return status_; }

  // The device's side.
  [[nodiscard]] std::vector<std::byte>& config() { return config_; }
  void raise(std::uint32_t cause) { interrupt_status_ |= cause; }
  // It cannot go on before a reset.
  void need_reset();

 private:
  struct Queue {
    std::uint32_t entries = 0;
    bool is_ready = false;
    std::uint64_t descriptors = 0;
    std::uint64_t driver = 0;
    std::uint64_t device = 0;
  };
  [[nodiscard]] std::uint32_t read_control(std::uint64_t offset) const;
  [[nodiscard]] std::uint64_t read_config(std::uint64_t offset, unsigned bytes) const;
  MmioEffect write_control(std::uint64_t offset, std::uint32_t value);
  void write_queue(std::uint64_t offset, std::uint32_t value);
  MmioEffect write_status(std::uint32_t value);
  MmioEffect write_ready(std::uint32_t value);
  void select_features(std::uint32_t value);
  [[nodiscard]] bool can_be_ready(const Queue& queue) const;
  [[nodiscard]] const Queue* selected() const;

  MmioSetting setting_;
  std::vector<Queue> queues_;
  std::vector<std::byte> config_;
  std::uint64_t driver_features_ = 0;
  std::uint32_t device_features_sel_ = 0;
  std::uint32_t driver_features_sel_ = 0;
  std::uint32_t queue_sel_ = 0;
  std::uint32_t status_ = 0;
  std::uint32_t interrupt_status_ = 0;
};

}  // namespace iommu::virtio
