// SPDX-License-Identifier: Apache-2.0
// The machine's memory: sparse, zero until written, pages allocated where touched. Contents are real for everything a
// core, a driver or a guest's tables put there; the payload of device DMA is not stored.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "sim/base/address.hpp"
#include "sim/translation/memory_port.hpp"

namespace iommu {

class HostMemory {
 public:
  // Memory decodes [0, size); anything else fails as on a bus. `size` is at most 2^52 bytes.
  explicit HostMemory(Bytes size);

  [[nodiscard]] Bytes size() const { return size_; }
  // Whether [address, address + bytes) is backed by memory.
  [[nodiscard]] bool contains(Hpa address, std::uint64_t bytes) const;

  // Aligned accesses of 4 or 8 bytes. Callers check contains() first: outside memory reads return 0, writes vanish.
  [[nodiscard]] std::uint64_t read64(Hpa address) const;
  [[nodiscard]] std::uint32_t read32(Hpa address) const;
  void write64(Hpa address, std::uint64_t value);
  void write32(Hpa address, std::uint32_t value);
  void clear_page(Mfn frame);

  // Performs one access now; sets `failed` when it leaves memory.
  void perform(MemoryAccess& access);

  // Calls back after every write of the 32-bit word; used by polls. One watcher per word at a time.
  void watch(Hpa word, std::function<void()> on_write);
  void unwatch(Hpa word);

  // Called before write64() and write32() store: software's stores, for whoever models caches. Not for perform().
  using WriteHook = void (*)(void* context, Hpa address);
  void on_write(WriteHook hook, void* context) {
    write_hook_ = hook;
    write_context_ = context;
  }

  // Pages that hold data, for the memory budget.
  [[nodiscard]] std::uint64_t touched_pages() const { return touched_; }

 private:
  // Three radix steps over the page number: 16 bits grown on demand, then 12, then 12.
  static constexpr unsigned kFanLg2 = 12;
  static constexpr std::size_t kFan = 1U << kFanLg2;
  using Page = std::array<std::uint64_t, 512>;
  using Region = std::array<std::unique_ptr<Page>, kFan>;     // 16 MiB
  using Segment = std::array<std::unique_ptr<Region>, kFan>;  // 64 GiB

  [[nodiscard]] const std::uint64_t* find(Hpa address) const;
  std::uint64_t& touch(Hpa address);
  // Within memory; no hook.
  void store64(Hpa address, std::uint64_t value);
  void store32(Hpa address, std::uint32_t value);
  void notify(Hpa word_address);

  Bytes size_;
  std::vector<std::unique_ptr<Segment>> segments_;
  std::uint64_t touched_ = 0;
  WriteHook write_hook_ = nullptr;
  void* write_context_ = nullptr;
  std::unordered_map<std::uint64_t, std::function<void()>> watchers_;
};

// A MemoryPort that answers at once: functional runs and tests.
class ImmediateMemoryPort final : public MemoryPort {
 public:
  explicit ImmediateMemoryPort(HostMemory& memory) : memory_(memory) {}
  bool begin(MemoryAccess& access) override {
    memory_.perform(access);
    ++accesses_[static_cast<std::size_t>(access.kind)];
    return true;
  }
  [[nodiscard]] std::uint64_t accesses(AccessKind kind) const { return accesses_[static_cast<std::size_t>(kind)]; }

 private:
  HostMemory& memory_;
  std::array<std::uint64_t, kAccessKinds> accesses_{};
};

}  // namespace iommu
