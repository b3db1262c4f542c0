// SPDX-License-Identifier: Apache-2.0
// A domain's physical-to-machine map: which machine frames its guest frames are. Kept as extents, so that its size
// follows fragmentation and not the amount of memory.
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_set>
#include <vector>

#include "sim/base/address.hpp"
#include "sim/memory/guest_memory.hpp"

namespace iommu::xen {

// Foreign: memory of another domain, mapped here. Only Ram is the domain's own memory.
enum class FrameType : std::uint8_t { Ram, Mmio, Foreign };

struct P2mExtent {
  Gfn first;
  std::uint64_t pages = 0;
  Mfn machine;
  FrameType type = FrameType::Ram;
};

class P2m final : public FrameMap {
 public:
  struct Entry {
    Mfn machine;
    FrameType type = FrameType::Ram;
    std::uint64_t contiguous = 1;  // pages from here on that follow one another in machine memory too
  };

  // False, without effect: it overlaps what is there, or is empty.
  bool add(P2mExtent extent);
  // Forgets whatever the range holds.
  void remove(Gfn first, std::uint64_t pages);
  [[nodiscard]] std::optional<Entry> lookup(Gfn frame) const;
  // Frames from here on that are nothing, up to the next extent; 0 where lookup() finds something.
  [[nodiscard]] std::uint64_t absent(Gfn frame) const;
  // The guest frame of its own memory that is this machine frame.
  [[nodiscard]] std::optional<Gfn> frame_of(Mfn machine) const;
  [[nodiscard]] std::optional<Mfn> memory_frame(Gfn frame) const override;
  // DEVIATION(shadow-001): only CPUs' stores trap. Xen gives such a page a type of its own, for which DMA by way of the
  // p2m is refused; here a device may write it, and nobody notices.
  void write_protect(Gfn frame) { protected_.insert(frame); }
  void allow_writes(Gfn frame) { protected_.erase(frame); }
  [[nodiscard]] bool is_write_protected(Gfn frame) const override { return protected_.contains(frame); }
  [[nodiscard]] std::size_t write_protected_frames() const { return protected_.size(); }
  [[nodiscard]] const std::vector<P2mExtent>& extents() const { return extents_; }

 private:
  // The first extent that ends after `frame`.
  [[nodiscard]] std::vector<P2mExtent>::const_iterator first_reaching(Gfn frame) const;
  std::vector<P2mExtent> extents_;  // ascending, disjoint
  std::unordered_set<Gfn> protected_;
};

}  // namespace iommu::xen
