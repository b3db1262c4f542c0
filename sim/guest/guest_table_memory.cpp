// SPDX-License-Identifier: Apache-2.0
#include "sim/guest/guest_table_memory.hpp"

#include "sim/base/check.hpp"

namespace iommu::guest {

void GuestPages::exclude(Gfn first, std::uint64_t pages) {
  for (std::uint64_t i = 0; i < pages; ++i) static_cast<void>(frames_.reserve(Mfn(first.value() + i), 1));
}

std::optional<std::uint64_t> GuestTableMemory::allocate(unsigned pages_lg2) {
  const auto block = pages_.allocate(pages_lg2);
  if (!block) return std::nullopt;
  for (std::uint64_t i = 0; i < 1ULL << pages_lg2; ++i) memory_.clear_page(Gfn(*block) + i);
  in_use_ += 1ULL << pages_lg2;
  return block->value();
}

void GuestTableMemory::release(std::uint64_t address, unsigned pages_lg2) {
  const bool released = pages_.release(Gpa(address), pages_lg2);
  SIM_CHECK(released, "a released table page was allocated");
  in_use_ -= 1ULL << pages_lg2;
}

}  // namespace iommu::guest
