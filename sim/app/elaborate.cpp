// SPDX-License-Identifier: Apache-2.0
#include "sim/app/elaborate.hpp"

#include <stdexcept>

namespace iommu {

RunResult run_one(const scenario::Scenario&, const scenario::RunSelection&, const RunOptions&, const ProgressFn&) {
  throw std::runtime_error("running scenarios is not available in this build yet");
}

}  // namespace iommu
