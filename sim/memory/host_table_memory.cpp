// SPDX-License-Identifier: Apache-2.0
#include "sim/memory/host_table_memory.hpp"

#include "sim/base/check.hpp"

namespace iommu {

std::optional<std::uint64_t> HostTableMemory::allocate(unsigned pages_lg2) {
  const auto first = frames_.allocate(pages_lg2);
  if (!first) return std::nullopt;
  for (std::uint64_t page = 0; page < 1ULL << pages_lg2; ++page) memory_.clear_page(*first + page);
  return first->address().value();
}

void HostTableMemory::release(std::uint64_t address, unsigned pages_lg2) {
  const bool released = frames_.release(Mfn(Hpa(address)), pages_lg2);
  SIM_CHECK(released, "table memory is released once, by whoever allocated it");
}

}  // namespace iommu
