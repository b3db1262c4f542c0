// SPDX-License-Identifier: Apache-2.0
// Tables of the kernel's own behind a virtio-iommu: each is bound to its endpoint by an ATTACH_TABLE request, maps need
// no request at all, and what leaves a table is invalidated by request.
#pragma once

#include <span>
#include <vector>

#include "sim/guest/table_spaces.hpp"
#include "sim/virtio/iommu_abi.hpp"

namespace iommu::guest {

class VirtioIommuDriver;

class VirtioTableSpaces final : public TableSpaces {
 public:
  // `setting`: for stage 1. The family's tables can be bound; the driver outlives it.
  VirtioTableSpaces(VirtioIommuDriver& requests, const FamilyDescriptor& family, const IommuDriverSetting& setting,
                    GuestMemory& memory, GuestPages& pages);

  // Whether a unit behind which a PROBE found this is one that the tables are written for.
  [[nodiscard]] bool matches(std::uint16_t property, std::span<const std::uint64_t> identity) const;
  // Once, before attach(). False: out of memory.
  [[nodiscard]] bool prepare();

 private:
  Task<void> invalidate(CpuPort& cpu, std::vector<InvalidationScope> scopes) override;
  Task<bool> announce(CpuPort& cpu, RequesterId device, ContextSetting setting) override;
  [[nodiscard]] virtio::InvalidateRequest request_for(const InvalidationScope& scope) const;
  // Domains of the virtio-iommu are numbered as the tables' tags are.
  [[nodiscard]] std::uint32_t domain_of(DomainTag tag) const;

  VirtioIommuDriver& requests_;
  const TableBinding& binding_;
};

}  // namespace iommu::guest
