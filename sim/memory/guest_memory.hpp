// SPDX-License-Identifier: Apache-2.0
// A guest's memory as software sees it: guest-physical addresses, backed by host memory through a frame map (Xen's
// p2m). Whatever a guest may ask for is checked: outside its memory every access fails, none crashes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "sim/base/address.hpp"
#include "sim/base/cpu_port.hpp"
#include "sim/base/task.hpp"
#include "sim/memory/host_memory.hpp"

namespace iommu {

// Where guest frames are. Implemented by the hypervisor.
class FrameMap {
 public:
  FrameMap() = default;
  FrameMap(const FrameMap&) = delete;
  FrameMap& operator=(const FrameMap&) = delete;
  virtual ~FrameMap() = default;
  // The machine frame of guest memory; nullopt for anything that is not memory of this guest.
  [[nodiscard]] virtual std::optional<Mfn> memory_frame(Gfn frame) const = 0;
  // Whether CPUs' stores to the frame trap.
  [[nodiscard]] virtual bool is_write_protected(Gfn) const { return false; }

  [[nodiscard]] std::optional<Hpa> translate(Gpa address) const {
    const auto frame = memory_frame(Gfn(address));
    if (!frame) return std::nullopt;
    return frame->address() + Bytes(address.offset_in(kPageLg2));
  }
};

// Where stores to write-protected frames go. A store is two things: its effect on memory, which is immediate like all
// edits of memory here, and what the vCPU goes through, which takes time:
//
//   memory.write64(entry, value);                 // whoever stores ...
//   if (memory.store_trap() != nullptr) co_await memory.store_trap()->settle(cpu);   // ... before anything else
//   happens
class StoreTrap {
 public:
  StoreTrap() = default;
  StoreTrap(const StoreTrap&) = delete;
  StoreTrap& operator=(const StoreTrap&) = delete;
  virtual ~StoreTrap() = default;
  // Bytes of one protected frame have just been stored, by one instruction.
  virtual void on_store(Gpa address, Bytes length) = 0;
  // Returns when all stores so far that nobody else has settled have been trapped and emulated, at this vCPU's expense.
  virtual Task<void> settle(CpuPort& cpu) = 0;
};

class GuestMemory {
 public:
  GuestMemory(HostMemory& host, const FrameMap& frames) : host_(host), frames_(frames) {}

  [[nodiscard]] std::optional<Hpa> translate(Gpa address) const { return frames_.translate(address); }

  // Aligned words; nullopt or false outside guest memory.
  [[nodiscard]] std::optional<std::uint64_t> read64(Gpa address) const;
  bool write64(Gpa address, std::uint64_t value);
  bool write32(Gpa address, std::uint32_t value);

  // Bytes at any alignment. Nothing is written unless all of it can be.
  [[nodiscard]] bool read(Gpa address, std::span<std::byte> into) const;
  bool write(Gpa address, std::span<const std::byte> from);

  // Zeroes a page, if it is the guest's.
  void clear_page(Gfn frame);

  // Null: stores never trap. The trap outlives its use here.
  void trap_stores(StoreTrap* trap) { trap_ = trap; }
  [[nodiscard]] StoreTrap* store_trap() const { return trap_; }
  // For whoever has stored to the guest's memory by way of the host's: bytes of one frame.
  void note_store(Gpa address, Bytes length) {
    if (trap_ != nullptr && frames_.is_write_protected(Gfn(address))) trap_->on_store(address, length);
  }

  [[nodiscard]] HostMemory& host() const { return host_; }

 private:
  [[nodiscard]] bool contains(Gpa address, std::size_t bytes) const;
  template <class Visit>
  bool for_each_word(Gpa address, std::size_t bytes, Visit&& visit) const;
  HostMemory& host_;
  const FrameMap& frames_;
  StoreTrap* trap_ = nullptr;
};

}  // namespace iommu
