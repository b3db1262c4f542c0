// SPDX-License-Identifier: Apache-2.0
// A guest kernel's own pages, and table memory made of them: addresses are guest-physical.
#pragma once

#include <bit>
#include <cstdint>
#include <optional>

#include "sim/base/address.hpp"
#include "sim/memory/frame_allocator.hpp"
#include "sim/memory/guest_memory.hpp"
#include "sim/translation/table_driver.hpp"

namespace iommu::guest {

// The order of the smallest block that holds so many bytes.
[[nodiscard]] constexpr unsigned order_for(Bytes bytes) {
  const std::uint64_t pages = (bytes.value() + kPageSize.value() - 1) >> kPageLg2;
  return static_cast<unsigned>(std::bit_width(std::bit_ceil(pages)) - 1);
}

// Hands out guest pages of one range, lowest first. All users of one kernel share it.
class GuestPages {
 public:
  GuestPages(Gfn first, std::uint64_t pages) : frames_(Mfn(first.value()), pages) {}

  // Before anything was handed out: pages of the range that never are. Those outside do not matter.
  void exclude(Gfn first, std::uint64_t pages);
  // 2^order pages, aligned to their number; nullopt: none left.
  [[nodiscard]] std::optional<Gpa> allocate(unsigned order = 0) {
    const auto frame = frames_.allocate(order);
    if (!frame) return std::nullopt;
    return Gfn(frame->value()).address();
  }
  // False, without effect: they are not in use.
  [[nodiscard]] bool release(Gpa address, unsigned order = 0) {
    return frames_.release(Mfn(Gfn(address).value()), order);
  }
  [[nodiscard]] std::uint64_t used() const { return frames_.used(); }

 private:
  FrameAllocator frames_;  // it counts frames; whose they are does not matter to it
};

class GuestTableMemory final : public TableMemory {
 public:
  GuestTableMemory(GuestMemory& memory, GuestPages& pages) : memory_(memory), pages_(pages) {}

  // Outside guest memory reads return 0 and writes vanish, as on a bus.
  std::uint64_t read64(std::uint64_t address) override { return memory_.read64(Gpa(address)).value_or(0); }
  void write64(std::uint64_t address, std::uint64_t value) override { memory_.write64(Gpa(address), value); }
  std::optional<std::uint64_t> allocate(unsigned pages_lg2) override;
  void release(std::uint64_t address, unsigned pages_lg2) override;

  [[nodiscard]] std::uint64_t pages_in_use() const { return in_use_; }

 private:
  GuestMemory& memory_;
  GuestPages& pages_;
  std::uint64_t in_use_ = 0;
};

}  // namespace iommu::guest
