// SPDX-License-Identifier: Apache-2.0
// A fixed pool of table pages: what a domain's PV contexts may use, so that a guest cannot exhaust Xen's heap. Pages
// may be set aside for splitting large pages, so that unmapping a part of one does not fail for want of memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "sim/base/address.hpp"
#include "sim/memory/host_memory.hpp"
#include "sim/translation/table_driver.hpp"

namespace iommu::xen {

class TableArena final : public TableMemory {
 public:
  // The pages [first, first + pages) of host memory.
  TableArena(HostMemory& memory, Mfn first, std::uint64_t pages);

  std::uint64_t read64(std::uint64_t address) override { return memory_.read64(Hpa(address)); }
  void write64(std::uint64_t address, std::uint64_t value) override { memory_.write64(Hpa(address), value); }
  // Lowest free page first. Only single pages: page tables need no more.
  std::optional<std::uint64_t> allocate(unsigned pages_lg2) override;
  void release(std::uint64_t address, unsigned pages_lg2) override;

  // Pages that only a split may take.
  void set_aside(std::uint64_t pages) {
    set_aside_ += pages;
    counters_.reserve_peak = std::max(counters_.reserve_peak, set_aside_);
  }
  void give_up(std::uint64_t pages);
  [[nodiscard]] bool can_set_aside(std::uint64_t pages) const {
    return pages <= in_use_.size() && used_ + set_aside_ <= in_use_.size() - pages;
  }
  [[nodiscard]] std::uint64_t reserve() const { return set_aside_; }
  enum class Purpose : std::uint8_t { Mapping, Splitting };
  void allocate_for(Purpose purpose) { purpose_ = purpose; }

  // Since it was made.
  struct Counters {
    std::uint64_t pages = 0;
    std::uint64_t peak = 0;
    std::uint64_t reserve_peak = 0;
    std::uint64_t refused = 0;
  };
  [[nodiscard]] const Counters& counters() const { return counters_; }
  [[nodiscard]] std::uint64_t used() const { return used_; }
  [[nodiscard]] std::uint64_t pages() const { return in_use_.size(); }
  [[nodiscard]] Mfn first() const { return first_; }

 private:
  HostMemory& memory_;
  Mfn first_;
  std::vector<bool> in_use_;
  std::uint64_t lowest_free_ = 0;  // no free page below it
  std::uint64_t used_ = 0;
  std::uint64_t set_aside_ = 0;
  Purpose purpose_ = Purpose::Mapping;
  Counters counters_;
};

}  // namespace iommu::xen
