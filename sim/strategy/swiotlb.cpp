// SPDX-License-Identifier: Apache-2.0
// Bounce buffers: devices stay in context 0 and use guest-physical addresses, but of nothing except a pool that the
// guest's kernel copies its buffers into and out of. [Linux 6.6 kernel/dma/swiotlb.c with swiotlb=force]
//
// It protects nothing within the guest: hardware lets a device reach all of the guest's memory, and the warden watches
// that none does. Memory that CPU and device share (rings) is not copied, as memory of dma_alloc_coherent is not.
#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "sim/base/check.hpp"
#include "sim/guest/bounce_pool.hpp"
#include "sim/guest/shared_pages.hpp"
#include "sim/strategy/strategy.hpp"

namespace iommu::strategy {

namespace {

using guest::BouncePool;
using guest::DmaStatus;
using guest::DmaUse;
using guest::ScatterEntry;

constexpr Bytes kLine{64};

// Where buffer and bounce buffer are, and who writes: what the kernel keeps beside each slot.
struct Bounce {
  std::vector<ScatterEntry> originals;
  Bytes length;
  Permissions permissions;
  DmaUse use = DmaUse::Streaming;
  guest::SharedPages::Pages pages;
};

// Pages around a buffer at guest-physical addresses.
guest::MapSegment pages_around(Gpa address, Bytes length, Permissions permissions) {
  const Gpa first = address.aligned_down(kPageLg2);
  const Bytes whole = (address - first + length + kPageSize - 1_B) / kPageSize * kPageSize;
  return {Iova(first.value()), first, whole, permissions};
}

class BouncingSpace final : public guest::PlacingSpace {
 public:
  BouncingSpace(RequesterId device, const StrategyEnvironment& environment, BouncePool& pool, BounceCounters& counters)
      : memory_(environment.domain.memory),
        last_(environment.domain.setting.memory.value() - 1),
        pool_(pool),
        counters_(counters),
        pages_(device, environment.observer) {}

  [[nodiscard]] Iova last_address() const override { return last_; }

  // DEVIATION(swiotlb-001): a scatterlist of several pieces gets one bounce buffer; Linux bounces piece by piece, since
  // its callers take an address a piece.
  Task<Placed> place(CpuPort& cpu, std::vector<ScatterEntry> list, Permissions permissions, DmaUse use) override {
    if (!is_guests(list)) co_return Placed{};
    const auto shared = live_.find(Iova(list.front().address.value()));
    if (use == DmaUse::Coherent && shared != live_.end()) co_return Placed{};
    Bounce bounce{std::move(list), 0_B, permissions, use, {}};
    for (const ScatterEntry& piece : bounce.originals) bounce.length += piece.length;
    Placed placed;
    if (use == DmaUse::Coherent)
      placed = place_here(bounce);
    else
      placed = co_await place_in_pool(cpu, bounce);
    if (placed.status != DmaStatus::Ok) co_return placed;
    bounce.pages = {pages_around(Gpa(placed.address.value()), bounce.length, permissions)};
    pages_.add(cpu.now(), bounce.pages);
    live_.emplace(placed.address, std::move(bounce));
    co_return placed;
  }

  Task<DmaStatus> withdraw(CpuPort& cpu, Iova address, Bytes length) override {
    const auto found = live_.find(address);
    if (found == live_.end() || found->second.length != length) co_return DmaStatus::Rejected;
    const Bounce bounce = std::move(found->second);
    live_.erase(found);
    // No fence: nothing stops the device, before or after.
    pages_.begin_removal(cpu.now(), bounce.pages);
    pages_.end_removal(cpu.now(), bounce.pages);
    if (bounce.use == DmaUse::Streaming) {
      if (bounce.permissions.write) co_await copy(cpu, bounce, Gpa(address.value()), Direction::Back);
      const bool released = co_await pool_.release(cpu, Gpa(address.value()), length);
      SIM_CHECK(released, "a bounce buffer has its slots until it is released");
    }
    co_return DmaStatus::Ok;
  }

 private:
  enum class Direction : std::uint8_t { Out, Back };

  [[nodiscard]] bool is_guests(const std::vector<ScatterEntry>& list) const {
    return std::ranges::all_of(list, [&](const ScatterEntry& piece) {
      return piece.length != 0_B && piece.address.value() <= last_.value() &&
             piece.length.value() - 1 <= last_.value() - piece.address.value();
    });
  }
  // In place; the pieces must follow one another.
  static Placed place_here(const Bounce& bounce) {
    Gpa next = bounce.originals.front().address;
    for (const ScatterEntry& piece : bounce.originals) {
      if (piece.address != next) return {};
      next = next + piece.length;
    }
    return {DmaStatus::Ok, Iova(bounce.originals.front().address.value())};
  }
  // Copied whatever the direction: a device that writes a part must not clobber the rest. [Linux 6.6 swiotlb.c,
  // swiotlb_tbl_map_single]
  Task<Placed> place_in_pool(CpuPort& cpu, const Bounce& bounce) {
    Placed placed{DmaStatus::NoAddress, Iova()};
    const auto address = co_await pool_.allocate(cpu, bounce.originals.front().address, bounce.length);
    if (!address) {
      ++counters_.full;
      co_return placed;
    }
    co_await copy(cpu, bounce, *address, Direction::Out);
    placed = {DmaStatus::Ok, Iova(address->value())};
    co_return placed;
  }
  Task<void> copy(CpuPort& cpu, const Bounce& bounce, Gpa at, Direction direction) {
    std::vector<std::byte> bytes;
    for (const ScatterEntry& piece : bounce.originals) {
      bytes.resize(piece.length.value());
      const bool read = memory_.read(direction == Direction::Out ? piece.address : at, bytes);
      const bool written = memory_.write(direction == Direction::Out ? at : piece.address, bytes);
      SIM_CHECK(read && written, "buffers lie in the guest's memory");
      at = at + piece.length;
    }
    counters_.bytes_copied += bounce.length.value();
    co_await cpu.charge(CostId::BounceCopyLine, (bounce.length + kLine - 1_B) / kLine);
  }

  GuestMemory& memory_;
  Iova last_;
  BouncePool& pool_;
  BounceCounters& counters_;
  guest::SharedPages pages_;
  std::map<Iova, Bounce> live_;
};

class Swiotlb final : public DmaStrategy {
 public:
  explicit Swiotlb(const StrategyEnvironment& environment) : environment_(environment) {}

  Task<xen::Errno> start(CpuPort&) override {
    const Bytes size = environment_.options.pool_size;
    const auto first = environment_.pages.allocate(guest::order_for(size));
    if (!first) co_return xen::Errno::NoMemory;
    pool_ = std::make_unique<BouncePool>(*first, size, environment_.options.areas);
    co_return xen::Errno::Ok;
  }
  Task<guest::DmaSpace*> attach(CpuPort&, RequesterId device) override {
    if (!pool_ || !environment_.domain.devices.contains(device)) co_return nullptr;
    spaces_.push_back(std::make_unique<BouncingSpace>(device, environment_, *pool_, counters_));
    co_return spaces_.back().get();
  }
  [[nodiscard]] StrategyCounters counters() const override {
    StrategyCounters counters;
    counters.bounce = counters_;
    if (pool_) counters.bounce->most_slots = pool_->most_used();
    return counters;
  }
  void reset_counters() override {
    counters_ = {};
    if (pool_) pool_->reset_counters();
  }

 private:
  StrategyEnvironment environment_;
  BounceCounters counters_;
  std::unique_ptr<BouncePool> pool_;
  std::vector<std::unique_ptr<BouncingSpace>> spaces_;
};

}  // namespace

const StrategyDescriptor kSwiotlb{
    .name = "swiotlb",
    .description = "devices use bounce buffers at guest-physical addresses; every buffer is copied",
    .host_driver = [](const UnitFeatures& host, const StrategyOptions&) { return DriverOptions{.features = host}; },
    .make = [](const StrategyEnvironment& environment) -> std::unique_ptr<DmaStrategy> {
      return std::make_unique<Swiotlb>(environment);
    }};

}  // namespace iommu::strategy
