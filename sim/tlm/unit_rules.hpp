// SPDX-License-Identifier: Apache-2.0
// Which requests of a timed IOMMU may share what.
#pragma once

#include "sim/tlm/table_walkers.hpp"
#include "sim/translation/request.hpp"

namespace iommu {

// `mode`: what the request is checked as, where its context is known; else what it says of itself.
[[nodiscard]] inline MissKey key_of(const TranslationRequest& r, AccessMode mode) {
  return {r.requester, r.pasid, r.type, mode, r.address.value() >> kPageLg2};
}

// In front of caches of translations: plain requests only. What others get depends on the request as well: an ATS
// request on the context's permission to ask, one for privilege or execution on the context's permission to have them.
// A context may override what plain requests are checked as; its walks' tag says so.
[[nodiscard]] inline bool uses_caches(const TranslationRequest& request) {
  return request.type == AddressType::Untranslated && !request.privileged && !request.execute;
}

[[nodiscard]] inline bool is_cacheable(const TranslationRequest& request, const Translation& translation) {
  return !translation.is_bypass && uses_caches(request);
}

}  // namespace iommu
