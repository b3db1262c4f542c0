// SPDX-License-Identifier: Apache-2.0
// A machine's counters as the metrics of a report.
#pragma once

#include "sim/app/machine.hpp"
#include "sim/report/result.hpp"

namespace iommu {

// Everything since the machine's last reset_statistics(), which was `measured` ago.
[[nodiscard]] RunResult collect_metrics(const Machine& machine, Picoseconds measured);

// Of transactions that stalled, if any did. No strategy's driver asks for stalls: a run has them only if its unit is
// another one.
void set_stalls(RunResult& result, const IommuStatistics& statistics);

}  // namespace iommu
