// SPDX-License-Identifier: Apache-2.0
// The register rows of a unit, by number. FRCD records follow the fixed rows, two rows (low, high) each.
#pragma once

#include <vector>

#include "models/vtd/capabilities.hpp"
#include "sim/translation/register_file.hpp"

namespace iommu::vtd {

enum Reg : std::size_t {
  kRegVer,
  kRegCap,
  kRegEcap,
  kRegGcmd,
  kRegGsts,
  kRegRtaddr,
  kRegCcmd,
  kRegFsts,
  kRegFectl,
  kRegFedata,
  kRegFeaddr,
  kRegFeuaddr,
  kRegPmen,
  kRegIqh,
  kRegIqt,
  kRegIqa,
  kRegIcs,
  kRegIectl,
  kRegIedata,
  kRegIeaddr,
  kRegIeuaddr,
  kRegIqercd,
  kRegIrta,
  kRegIva,
  kRegIotlb,
  kFixedRegisters,
};

[[nodiscard]] std::vector<RegisterRow> register_rows(const Identity& identity);
// Bytes of MMIO that the registers occupy, a multiple of 4 KiB.
[[nodiscard]] std::uint64_t register_bytes(const Identity& identity);

}  // namespace iommu::vtd
