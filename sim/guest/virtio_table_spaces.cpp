// SPDX-License-Identifier: Apache-2.0
#include "sim/guest/virtio_table_spaces.hpp"

#include <algorithm>
#include <utility>

#include "sim/base/check.hpp"
#include "sim/guest/virtio_iommu_driver.hpp"

namespace iommu::guest {

VirtioTableSpaces::VirtioTableSpaces(VirtioIommuDriver& requests, const FamilyDescriptor& family,
                                     const IommuDriverSetting& setting, GuestMemory& memory, GuestPages& pages)
    : TableSpaces(family, setting, memory, pages), requests_(requests), binding_(*family.binding) {
  SIM_CHECK(setting.driver.stage1, "what can be bound is a first stage");
}

bool VirtioTableSpaces::matches(std::uint16_t property, std::span<const std::uint64_t> identity) const {
  return property == binding_.property && std::ranges::equal(identity, binding_.identity(setting().driver.features));
}

// A device table, where one has to be written, is a copy that no unit reads; its words go into the requests. [linux
// for Qualcomm's platforms, drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3-virtio.c, arm_vsmmu_impl_attach_table]
bool VirtioTableSpaces::prepare() { return binding_.is_entry == nullptr || driver().bring_up(tables()).has_value(); }

std::uint32_t VirtioTableSpaces::domain_of(DomainTag tag) const {
  return requests_.first_domain() + (tag.value() - static_cast<std::uint32_t>(kFirstDomainTag));
}

Task<bool> VirtioTableSpaces::announce(CpuPort& cpu, RequesterId device, ContextSetting setting) {
  virtio::AttachTableRequest request{
      .domain = domain_of(setting.domain), .endpoint = device.value(), .format = binding_.format};
  if (binding_.is_entry != nullptr) {
    const bool written = co_await write_entry(cpu, device, setting);
    if (!written) co_return false;
    const auto words = driver().entry_words(device, tables());
    std::copy(words.begin(), words.end(), request.words.begin());
  } else {
    constexpr std::uint64_t kLevelLg2 = 9;
    request.words[0] = 0;
    request.words[1] = setting.stage1.address;
    request.words[2] = kPageLg2 + kLevelLg2 * (setting.stage1.top_level + 1U);
  }
  const virtio::RequestStatus status = co_await requests_.bind(cpu, request);
  co_return status == virtio::RequestStatus::Ok;
}

virtio::InvalidateRequest VirtioTableSpaces::request_for(const InvalidationScope& scope) const {
  SIM_CHECK(scope.kind == InvalidationKind::Iotlb && scope.domain,
            "spaces invalidate translations of their own tables");
  virtio::InvalidateRequest request{.scope = static_cast<std::uint8_t>(virtio::InvalidateScope::Domain),
                                    .caches = virtio::kInvalidateTlb,
                                    .domain = domain_of(*scope.domain)};
  // Where the tables name address spaces, so do requests.
  if (!binding_.asid && scope.asid) {
    request.flags |= virtio::kInvalidateById;
    request.id = scope.asid->value();
  }
  if (!scope.range) return request;
  request.scope = static_cast<std::uint8_t>(virtio::InvalidateScope::Address);
  request.page_lg2 = kPageLg2;
  request.address = scope.range->first >> kPageLg2 << kPageLg2;
  request.pages = ((scope.range->last - request.address) >> kPageLg2) + 1;
  if (scope.leaf_only) request.flags |= virtio::kInvalidateLeaf;
  return request;
}

Task<void> VirtioTableSpaces::invalidate(CpuPort& cpu, std::vector<InvalidationScope> scopes) {
  std::vector<virtio::InvalidateRequest> requests;
  for (const InvalidationScope& scope : scopes) requests.push_back(request_for(scope));
  co_await requests_.invalidate(cpu, std::move(requests));
}

}  // namespace iommu::guest
