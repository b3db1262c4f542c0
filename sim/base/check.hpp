// SPDX-License-Identifier: Apache-2.0
// Internal consistency checks. SIM_CHECK states what must hold if the simulator itself is right; whatever a guest,
// device, trace or scenario can cause is an architectural fault, an error code or a ScenarioError instead, never a
// check.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace iommu::detail {
[[noreturn]] inline void check_failed(const char* condition, const char* file, int line, const char* why) {
  std::fprintf(stderr, "%s:%d: internal error: %s (%s)\n", file, line, why, condition);
  std::abort();
}
}  // namespace iommu::detail

#define SIM_CHECK(condition, why) \
  ((condition) ? static_cast<void>(0) : ::iommu::detail::check_failed(#condition, __FILE__, __LINE__, why))
