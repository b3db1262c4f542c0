// SPDX-License-Identifier: Apache-2.0
// For tests: a timed unit with the core of a real family, programmed by that family's driver.
#pragma once

#include <deque>
#include <memory>
#include <optional>

#include "models/families.hpp"
#include "sim/memory/host_table_memory.hpp"
#include "sim/tlm/iommu_unit.hpp"
#include "sim/tlm/memory_system.hpp"
#include "sim/translation/ring.hpp"

namespace iommu::test {

class FamilyUnit {
 public:
  static constexpr RequesterId kNic = RequesterId::bdf(3, 0, 0);
  static constexpr RequesterId kDisk = RequesterId::bdf(4, 0, 0);

  FamilyUnit(const FamilyDescriptor& family, const DriverOptions& options, const IommuParameters& parameters)
      : memory_(calendar, host, {}),
        driver(family.make_driver(options)),
        core(family.make_core(options.features)),
        unit(calendar, *core, memory_.add_port("iommu"), parameters, {}, 1) {
    bring_up_ = *driver->bring_up(tables);
    for (const RegisterWrite& w : bring_up_) unit.registers().poke_register(w.offset, w.bytes, w.value);
  }
  FamilyUnit(const FamilyUnit&) = delete;
  FamilyUnit& operator=(const FamilyUnit&) = delete;
  ~FamilyUnit() { calendar.clear(); }

  // The last write of bring-up, which switched the unit on.
  void switch_off() {
    const RegisterWrite& on = bring_up_.back();
    unit.registers().poke_register(on.offset, on.bytes, 0);
  }

  // Done when `is_done(id)`.
  std::size_t submit(const TranslationRequest& request) {
    requests_.emplace_back();
    UnitRequest& r = requests_.back();
    r.translation = request;
    r.on_done<&FamilyUnit::on_done>(this, requests_.size() - 1);
    done_.push_back(false);
    unit.submit(r);
    return requests_.size() - 1;
  }
  std::size_t submit(std::uint64_t address, RequesterId requester = kNic, Access access = Access::Read) {
    return submit({.requester = requester, .pasid = {}, .address = Iova(address), .access = access});
  }
  [[nodiscard]] bool is_done(std::size_t id) const { return done_[id]; }
  [[nodiscard]] UnitRequest& request(std::size_t id) { return requests_[id]; }
  [[nodiscard]] std::optional<Hpa> address(std::size_t id) const {
    const auto* t = std::get_if<Translation>(&requests_[id].response);
    return done_[id] && t != nullptr ? std::optional(t->address) : std::nullopt;
  }
  [[nodiscard]] const Fault* fault(std::size_t id) const { return std::get_if<Fault>(&requests_[id].response); }
  void run() { calendar.run_until(Picoseconds(INT64_MAX)); }

  // Into the ring; ring_doorbell() tells the unit, at once.
  void put(const CommandWords& command) {
    const CommandRing ring = driver->ring();
    const RingIndices at{.format = {.entries = ring.entries, .entry_bytes = ring.entry_bytes, .full = ring.full}};
    for (unsigned w = 0; w < ring.entry_bytes / 8; ++w)
      tables.write64(ring.base + at.offset(tail_) + 8 * w, command.words[w]);
    tail_ = at.next(tail_);
  }
  void ring_doorbell() { unit.registers().poke_register(driver->ring().tail_register, 8, driver->tail_value(tail_)); }
  void invalidate(const InvalidationScope& scope) { put(driver->encode(driver->widen(scope))); }
  void fence(std::uint32_t value) { put(driver->encode_fence(kStatus.value(), value)); }
  [[nodiscard]] std::uint32_t status() const { return host.read32(kStatus); }
  void resolve(const StallResolution& resolution) {
    put(*driver->encode(resolution));
    ring_doorbell();
  }
  [[nodiscard]] std::uint64_t writes(AccessKind kind) const {
    return memory_.total()[static_cast<std::size_t>(kind)].writes;
  }

  static constexpr Hpa kStatus{0x2000};
  Calendar calendar;
  HostMemory host{Bytes(1ULL << 38)};
  FrameAllocator frames{Mfn(0x1000), 0x8000};
  HostTableMemory tables{host, frames};

 private:
  void on_done(std::uint64_t id) { done_[id] = true; }

  MemorySystem memory_;
  std::vector<RegisterWrite> bring_up_;
  std::deque<UnitRequest> requests_;
  std::deque<bool> done_;
  std::uint32_t tail_ = 0;

 public:
  std::unique_ptr<TableDriver> driver;
  std::unique_ptr<IommuCore> core;
  IommuUnit unit;
};

}  // namespace iommu::test
