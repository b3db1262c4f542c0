// SPDX-License-Identifier: Apache-2.0
// The register rows of a unit, by number.
#pragma once

#include <vector>

#include "models/smmuv3/capabilities.hpp"
#include "sim/translation/register_file.hpp"

namespace iommu::smmuv3 {

enum Reg : std::size_t {
  kRegIdr0,
  kRegIdr1,
  kRegIdr2,
  kRegIdr3,
  kRegIdr4,
  kRegIdr5,
  kRegIidr,
  kRegAidr,
  kRegCr0,
  kRegCr0ack,
  kRegCr1,
  kRegCr2,
  kRegStatusr,
  kRegGbpa,
  kRegIrqCtrl,
  kRegIrqCtrlack,
  kRegGerror,
  kRegGerrorn,
  kRegGerrorIrqCfg0,
  kRegGerrorIrqCfg1,
  kRegGerrorIrqCfg2,
  kRegStrtabBase,
  kRegStrtabBaseCfg,
  kRegCmdqBase,
  kRegCmdqProd,
  kRegCmdqCons,
  kRegEventqBase,
  kRegEventqProd,
  kRegEventqCons,
  kRegEventqIrqCfg0,
  kRegEventqIrqCfg1,
  kRegEventqIrqCfg2,
  kRegPriqBase,
  kRegPriqProd,
  kRegPriqCons,
  kRegPriqIrqCfg0,
  kRegPriqIrqCfg1,
  kRegPriqIrqCfg2,
  kRegisters,
};

[[nodiscard]] std::vector<RegisterRow> register_rows(const Identity& identity);

}  // namespace iommu::smmuv3
