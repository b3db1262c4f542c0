// SPDX-License-Identifier: Apache-2.0
// A timed IOMMU on memory, for tests and benchmarks: test_core's architecture, no SystemC.
#pragma once

#include <deque>
#include <memory>
#include <optional>

#include "sim/tlm/iommu_unit.hpp"
#include "sim/tlm/memory_system.hpp"
#include "sim/tlm/test_core.hpp"

namespace iommu::testing_core {

// Memory that always takes `dram`: no cache, no queue that a test did not ask for.
inline MemoryParameters flat_memory() {
  MemoryParameters p;
  p.llc_size = 0_B;
  p.dram = 80_ns;
  p.outstanding = 4096;
  p.bytes_per_second = 1'000'000'000'000'000;
  return p;
}

class Machine {
 public:
  static constexpr RequesterId kNic = RequesterId(0x0100);
  static constexpr DomainTag kDomain{7};

  explicit Machine(const IommuParameters& parameters = {}, const MemoryParameters& memory = flat_memory())
      : host_(64_GiB), memory_(*calendar_, host_, memory), tables(host_) {
    unit_ = std::make_unique<IommuUnit>(*calendar_, core, memory_.add_port("iommu"), parameters, MmioParameters{}, 1);
    root = tables.allocate();
    core.ring = tables.allocate();
    for (Core::Further& further : core.further) further.ring = tables.allocate();
    tables.attach(core, kNic, ContextKind::Stage2, Hpa(), root, kDomain);
  }
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
  ~Machine() { calendar_->clear(); }

  // A request that the machine owns. Done when `completed(id)` has a value.
  std::size_t submit(Iova address, Access access = Access::Read, RequesterId requester = kNic) {
    return submit_at(0, address, access, requester, std::nullopt);
  }
  // At one of the unit's ports.
  std::size_t submit_at(std::uint8_t port, Iova address, Access access, RequesterId requester,
                        std::optional<Pasid> pasid) {
    return submit({.requester = requester, .pasid = pasid, .address = address, .length = 64_B, .access = access}, port);
  }
  std::size_t submit(const TranslationRequest& request, std::uint8_t port = 0) {
    requests_.emplace_back();
    UnitRequest& r = requests_.back();
    r.port = port;
    r.translation = request;
    r.on_done<&Machine::on_done>(this, requests_.size() - 1);
    unit_->submit(r);
    return requests_.size() - 1;
  }
  void on_done(std::uint64_t id) {
    done_.push_back(id);
    if (hook != nullptr) hook(*this, id);
  }
  [[nodiscard]] std::optional<Picoseconds> completed(std::size_t id) const {
    return std::find(done_.begin(), done_.end(), id) == done_.end() ? std::nullopt
                                                                    : std::optional(requests_[id].completed);
  }
  [[nodiscard]] UnitRequest& request(std::size_t id) { return requests_[id]; }
  [[nodiscard]] std::optional<Hpa> address(std::size_t id) const {
    const auto* t = std::get_if<Translation>(&requests_[id].response);
    return t != nullptr ? std::optional(t->address) : std::nullopt;
  }
  [[nodiscard]] const std::deque<std::uint64_t>& order() const { return done_; }

  void run() { calendar_->run_until(Picoseconds(INT64_MAX)); }
  // Everything that happens up to and including `t`, and then time itself.
  void run_to(Picoseconds t) {
    calendar_->run_until(t);
    if (calendar_->now() < t) calendar_->skip_to(t);
  }
  // Latency of one request through the machine as it is, which must be idle.
  Picoseconds latency_of(Iova address, Access access = Access::Read, RequesterId requester = kNic) {
    const Picoseconds start = calendar_->now();
    const std::size_t id = submit(address, access, requester);
    run();
    return requests_[id].completed - start;
  }

  // Puts a command into the ring; doorbell() tells the unit.
  void command(std::uint64_t first, std::uint64_t second = 0) {
    const Hpa at = core.ring + Bytes(16 * (tail_ % (1U << Core::kRingLg2)));
    host_.write64(at, first);
    host_.write64(at + 8_B, second);
    ++tail_;
  }
  void flush_page(Iova page) {
    command(kFlushPage | static_cast<std::uint64_t>(kDomain.value()) << 32, page.aligned_down(kPageLg2).value());
  }
  void fence(std::uint32_t value) { command(kFence | static_cast<std::uint64_t>(value) << 32, status().value()); }
  void further_command(std::size_t queue, std::uint64_t first, std::uint64_t second = 0) {
    const Hpa at = core.further[queue].ring + Bytes(16 * (further_tails_[queue]++ % (1U << Core::kRingLg2)));
    host_.write64(at, first);
    host_.write64(at + 8_B, second);
  }
  void further_doorbell(std::size_t queue) {
    unit_->registers().poke_register(kFurtherTail + 8 * queue, 8, further_tails_[queue]);
  }
  // Arrives at once.
  void doorbell() { unit_->registers().poke_register(kTail, 8, tail_); }
  [[nodiscard]] static Hpa status() { return Hpa(0x8000); }
  [[nodiscard]] std::uint32_t status_word() const { return host_.read32(status()); }

  [[nodiscard]] IommuUnit& unit() { return *unit_; }
  [[nodiscard]] const IommuStatistics& statistics() const { return unit_->statistics(); }
  [[nodiscard]] Calendar& calendar() { return *calendar_; }
  [[nodiscard]] MemorySystem& memory() { return memory_; }
  [[nodiscard]] HostMemory& host() { return host_; }

 private:
  std::unique_ptr<Calendar> calendar_ = std::make_unique<Calendar>();
  HostMemory host_;
  MemorySystem memory_;
  std::deque<UnitRequest> requests_;
  std::deque<std::uint64_t> done_;
  std::uint64_t tail_ = 0;
  std::array<std::uint64_t, 2> further_tails_{};

 public:
  Core core;
  Tables tables;
  Hpa root;
  void (*hook)(Machine&, std::uint64_t) = nullptr;  // called as each request completes

 private:
  std::unique_ptr<IommuUnit> unit_;
};

}  // namespace iommu::testing_core
