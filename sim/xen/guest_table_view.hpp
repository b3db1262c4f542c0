// SPDX-License-Identifier: Apache-2.0
// A guest's tables, for reading them as Xen does.
#pragma once

#include <optional>

#include "sim/memory/guest_memory.hpp"
#include "sim/translation/table_driver.hpp"

namespace iommu::xen {

// Counts the pages that Xen has to map to see them.
class GuestTableView final : public TableMemory {
 public:
  explicit GuestTableView(const GuestMemory& memory) : memory_(memory) {}
  std::uint64_t read64(std::uint64_t address) override {
    const std::uint64_t page = address >> kPageLg2;
    if (page != last_page_) ++page_changes_;
    last_page_ = page;
    return memory_.read64(Gpa(address)).value_or(0);
  }
  void write64(std::uint64_t, std::uint64_t) override {}
  std::optional<std::uint64_t> allocate(unsigned) override { return std::nullopt; }
  void release(std::uint64_t, unsigned) override {}
  [[nodiscard]] std::uint64_t page_changes() const { return page_changes_; }

 private:
  const GuestMemory& memory_;
  std::uint64_t last_page_ = ~0ULL;
  std::uint64_t page_changes_ = 0;
};

}  // namespace iommu::xen
