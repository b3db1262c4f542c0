// SPDX-License-Identifier: Apache-2.0
// How software programs the command rings beside a unit's first one. They come in groups, each with an owner: group 0
// is the host's own; the others are for guests, each restricted to its owner's domain tag and devices, and used without
// anybody else taking part. Everything here says which registers to write; whoever writes them pays.
//
// A guest that is shown its group finds it as group 0 of its virtual unit: what it programs there traps. The registers
// that it needs from then on are in the group's window, and the host maps them to it.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "sim/translation/table_driver.hpp"

namespace iommu {

class QueueDriver {
 public:
  static constexpr unsigned kIndexBytes = 4;  // of head, tail and status registers

  struct Limits {
    std::uint32_t groups = 0;  // group 0 included
    std::uint32_t host_rings = 0;
    std::uint32_t guest_rings = 0;  // of each other group
    std::uint32_t devices = 0;      // of each other group
    std::uint32_t entries = 0;      // of a ring, a power of two
  };
  struct Window {
    std::uint64_t offset = 0;  // in the unit's registers
    std::uint64_t bytes = 0;
  };

  virtual ~QueueDriver() = default;
  [[nodiscard]] virtual Limits limits() const = 0;

  // The host's side, registers of the unit --------------------------------------------------------------------------
  // All rings of the unit; once.
  [[nodiscard]] virtual std::vector<RegisterWrite> enable() const = 0;
  // The group's owner: a guest's domain tag, or nobody but the host.
  [[nodiscard]] virtual std::vector<RegisterWrite> open(std::uint32_t group, std::optional<DomainTag> owner) const = 0;
  // Its rings have been removed and its devices forgotten.
  [[nodiscard]] virtual std::vector<RegisterWrite> close(std::uint32_t group) const = 0;
  // Where a ring is, in the memory of whoever reads it; the owner starts it.
  [[nodiscard]] virtual std::vector<RegisterWrite> place(std::uint32_t group, const RingPlacement& placement) const = 0;
  // Nothing more is fetched; status_register() reads as zero once the command under way is over.
  [[nodiscard]] virtual RegisterWrite stop(std::uint32_t group, std::uint32_t ring) const = 0;
  [[nodiscard]] virtual std::vector<RegisterWrite> remove(std::uint32_t group, std::uint32_t ring) const = 0;
  // In commands of the group, `seen_as` means `device`; slots are numbered from 0 to Limits::devices.
  [[nodiscard]] virtual std::vector<RegisterWrite> name_device(std::uint32_t group, std::uint32_t slot,
                                                               RequesterId seen_as, RequesterId device) const = 0;
  [[nodiscard]] virtual std::vector<RegisterWrite> forget_device(std::uint32_t group, std::uint32_t slot) const = 0;
  // What the owner may touch.
  [[nodiscard]] virtual Window window(std::uint32_t group) const = 0;

  // The owner's side, registers in its window -----------------------------------------------------------------------
  [[nodiscard]] virtual CommandRing ring(std::uint32_t ring, std::uint64_t base, std::uint32_t entries) const = 0;
  [[nodiscard]] virtual std::vector<RegisterWrite> start(std::uint32_t ring) const = 0;
  // Not zero while the ring is running.
  [[nodiscard]] virtual std::uint64_t status_register(std::uint32_t ring) const = 0;
  // Whether a guest's ring may carry the command for a scope.
  [[nodiscard]] virtual bool guest_may(const InvalidationScope& scope) const = 0;
  // A fence that signals nothing but that the head passes it.
  [[nodiscard]] virtual CommandWords encode_fence() const = 0;
  [[nodiscard]] virtual std::uint32_t head_index(std::uint64_t head_register) const = 0;
};

}  // namespace iommu
