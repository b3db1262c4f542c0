// SPDX-License-Identifier: Apache-2.0
#include "sim/translation/iommu_core.hpp"

namespace iommu {

Task<TranslationResponse> IommuCore::translate(TranslationRequest request, MemoryPort& memory, WalkAids aids) {
  if (!is_translating()) {
    TranslationResponse bypass = Translation{Hpa(request.address.value()), 63, kReadWrite, {}, true};
    co_return bypass;
  }
  if (auto answer = answer_without_tables(request)) co_return *answer;
  const ContextResult found = co_await find_context(request, memory);
  if (const auto* fault = std::get_if<Fault>(&found)) {
    TranslationResponse response = *fault;
    co_return response;
  }
  TranslationResponse response = co_await walk(request, std::get<Context>(found), memory, aids);
  co_return response;
}

Task<void> IommuCore::write_events(MemoryPort&) { co_return; }

}  // namespace iommu
