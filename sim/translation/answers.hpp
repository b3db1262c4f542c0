// SPDX-License-Identifier: Apache-2.0
// How cores answer requests, alike in every family.
#pragma once

#include "sim/base/task.hpp"
#include "sim/translation/invalidation.hpp"
#include "sim/translation/request.hpp"

namespace iommu {

// A fault of a request; what recording it needs besides is the family's.
[[nodiscard]] inline Fault fault_of(const TranslationRequest& request, const FaultRow* row, Stage stage) {
  Fault fault;
  fault.row = row;
  fault.stage = stage;
  fault.address = request.address;
  fault.access = request.access;
  fault.requester = request.requester;
  fault.pasid = request.pasid;
  fault.type = request.type;
  fault.privileged = request.privileged;
  fault.execute = request.execute;
  return fault;
}

// The largest naturally aligned block around `address`, at most 2^block_lg2 bytes and at least a page, that keeps clear
// of a range which does not contain the address: what may be cached beside addresses that mean something else.
[[nodiscard]] constexpr std::uint8_t block_outside(AddressRange range, std::uint64_t address, std::uint8_t block_lg2) {
  const auto reaches = [&](std::uint8_t lg2) {
    const std::uint64_t offset = lg2 >= 64 ? ~0ULL : (1ULL << lg2) - 1;
    return range.overlaps({address & ~offset, address | offset});
  };
  while (block_lg2 > kPageLg2 && reaches(block_lg2)) --block_lg2;
  return block_lg2;
}

// For a walk that is no coroutine itself (which spares a frame) and needs no table.
[[nodiscard]] inline Task<TranslationResponse> at_once(TranslationResponse response) { co_return response; }

}  // namespace iommu
