// SPDX-License-Identifier: Apache-2.0
// Which requests of a timed IOMMU may share what.
#pragma once

#include "sim/tlm/table_walkers.hpp"
#include "sim/translation/request.hpp"

namespace iommu {

[[nodiscard]] inline MissKey key_of(const TranslationRequest& r) {
  return {r.requester, r.pasid, r.type, r.privileged, r.address.value() >> kPageLg2};
}

// Cached translations answer plain requests only. What others get depends on the request as well: an ATS request on the
// context's permission to ask, a privileged one on rights that a cached copy does not tell apart.
[[nodiscard]] inline bool uses_caches(const TranslationRequest& request) {
  return request.type == AddressType::Untranslated && !request.privileged;
}

[[nodiscard]] inline bool is_cacheable(const TranslationRequest& request, const Translation& translation) {
  return !translation.is_bypass && !translation.allowed.none() && uses_caches(request);
}

}  // namespace iommu
