// SPDX-License-Identifier: Apache-2.0
// Runs jobs in child processes, one process per job, several at once: SystemC keeps global state, so a process
// simulates once. A job that crashes takes nothing else with it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "sim/app/elaborate.hpp"

namespace iommu {

struct ForkedResult {
  enum class Status : std::uint8_t { Done, Failed, Crashed };
  Status status = Status::Crashed;
  std::string text;  // Done: what the job returned; Failed: the message of what it threw; Crashed: how it ended
};

// Called in the child; what it returns travels to the parent and holds no newline.
using ForkedJob = std::function<std::string(std::size_t job, const ProgressFn& progress)>;
// Called in the parent, for a job that reported progress.
using ForkedProgress = std::function<void(std::size_t job, const Progress& progress)>;

// Results in the order of jobs, whatever the order of their ends. At most `parallel` (>= 1) at once.
[[nodiscard]] std::vector<ForkedResult> run_forked(std::size_t jobs, std::size_t parallel, const ForkedJob& work,
                                                   const ForkedProgress& progress);

}  // namespace iommu
