// SPDX-License-Identifier: Apache-2.0
// Invalidations by kind and granularity, in the words in which traces and reports count them.
#pragma once

#include <cstdint>

#include "sim/translation/invalidation.hpp"

namespace iommu::xen {

struct InvalidationCounters {
  std::uint64_t context = 0;
  std::uint64_t process_context = 0;
  std::uint64_t iotlb_page = 0;
  std::uint64_t iotlb_domain = 0;  // a domain tag, or one address space within it
  std::uint64_t iotlb_global = 0;
  std::uint64_t device_tlb = 0;
  std::uint64_t interrupt_entry = 0;
  std::uint64_t fence = 0;

  void count(const InvalidationScope& scope) {
    switch (scope.kind) {
      case InvalidationKind::Context:
        ++context;
        return;
      case InvalidationKind::ProcessContext:
        ++process_context;
        return;
      case InvalidationKind::DeviceTlb:
        ++device_tlb;
        return;
      case InvalidationKind::InterruptEntry:
        ++interrupt_entry;
        return;
      case InvalidationKind::Iotlb:
        break;
    }
    if (!scope.domain)
      ++iotlb_global;
    else if (!scope.range)
      ++iotlb_domain;
    else
      ++iotlb_page;
  }
  [[nodiscard]] std::uint64_t commands() const {
    return context + process_context + iotlb_page + iotlb_domain + iotlb_global + device_tlb + interrupt_entry + fence;
  }
  friend bool operator==(const InvalidationCounters&, const InvalidationCounters&) = default;
};

}  // namespace iommu::xen
