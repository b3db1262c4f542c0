// SPDX-License-Identifier: Apache-2.0
#include "models/vtd/register_rows.hpp"

#include <algorithm>

#include "models/vtd/spec.hpp"

namespace iommu::vtd {

namespace {

constexpr unsigned kFrcdBytes = 16;

// clang-format off
std::vector<RegisterRow> fixed_rows(const Identity& id, const Capabilities& capabilities) {
  const std::uint64_t masked = mask_of<kEventControl, "IM">;  // both events are masked out of reset
  return {
      {"VER_REG",     offset::kVer,     4, id.version, 0, 0},
      {"CAP_REG",     offset::kCap,     8, id.cap,     0, 0},
      {"ECAP_REG",    offset::kEcap,    8, id.ecap,    0, 0},
      {"GCMD_REG",    offset::kGcmd,    4, 0, 0, 0},  // write-only: reads as zero
      {"GSTS_REG",    offset::kGsts,    4, 0, 0, 0},
      {"RTADDR_REG",  offset::kRtaddr,  8, 0, mask_of<kRtaddr, "TTM"> | mask_of<kRtaddr, "RTA">, 0},
      {"CCMD_REG",    offset::kCcmd,    8, 0, mask_of<kCcmd, "DID"> | mask_of<kCcmd, "SID"> | mask_of<kCcmd, "FM"> |
                                              mask_of<kCcmd, "CIRG"> | mask_of<kCcmd, "ICC">, 0},
      {"FSTS_REG",    offset::kFsts,    4, 0, 0, mask_of<kFsts, "PFO"> | mask_of<kFsts, "IQE"> |
                                                 mask_of<kFsts, "ICE"> | mask_of<kFsts, "ITE">},
      {"FECTL_REG",   offset::kFectl,   4, masked, mask_of<kEventControl, "IM">, 0},
      {"FEDATA_REG",  offset::kFedata,  4, 0, mask_of<kEventData, "IMD"> | mask_of<kEventData, "EIMD">, 0},
      {"FEADDR_REG",  offset::kFeaddr,  4, 0, mask_of<kEventAddress, "MA">, 0},
      {"FEUADDR_REG", offset::kFeuaddr, 4, 0, mask_of<kEventUpperAddress, "MUA">, 0},
      {"PMEN_REG",    offset::kPmen,    4, 0, 0, 0},  // no protected regions: CAP.PLMR = CAP.PHMR = 0
      {"IQH_REG",     offset::kIqh,     8, 0, 0, 0},
      {"IQT_REG",     offset::kIqt,     8, 0, mask_of<kIqt, "QT">, 0},
      {"IQA_REG",     offset::kIqa,     8, 0, mask_of<kIqa, "QS"> | mask_of<kIqa, "DW"> | mask_of<kIqa, "IQA">, 0},
      {"ICS_REG",     offset::kIcs,     4, 0, 0, mask_of<kIcs, "IWC">},
      {"IECTL_REG",   offset::kIectl,   4, masked, mask_of<kEventControl, "IM">, 0},
      {"IEDATA_REG",  offset::kIedata,  4, 0, mask_of<kEventData, "IMD"> | mask_of<kEventData, "EIMD">, 0},
      {"IEADDR_REG",  offset::kIeaddr,  4, 0, mask_of<kEventAddress, "MA">, 0},
      {"IEUADDR_REG", offset::kIeuaddr, 4, 0, mask_of<kEventUpperAddress, "MUA">, 0},
      {"IQERCD_REG",  offset::kIqercd,  8, 0, 0, 0},
      {"IRTA_REG",    offset::kIrta,    8, 0, mask_of<kIrta, "S"> | mask_of<kIrta, "EIME"> | mask_of<kIrta, "IRTA">, 0},
      {"IVA_REG",     capabilities.iotlb_offset + offset::kIvaInIotlbBlock, 8, 0,
                      mask_of<kIva, "AM"> | mask_of<kIva, "IH"> | mask_of<kIva, "ADDR">, 0},
      {"IOTLB_REG",   capabilities.iotlb_offset + offset::kIotlbInIotlbBlock, 8, 0,
                      mask_of<kIotlb, "DID"> | mask_of<kIotlb, "DW"> | mask_of<kIotlb, "DR"> |
                      mask_of<kIotlb, "IIRG"> | mask_of<kIotlb, "IVT">, 0},
  };
}
// clang-format on

}  // namespace

std::vector<RegisterRow> register_rows(const Identity& identity) {
  const Capabilities capabilities(identity);
  std::vector<RegisterRow> rows = fixed_rows(identity, capabilities);
  for (unsigned i = 0; i < capabilities.fault_records; ++i) {
    const std::uint64_t at = capabilities.fault_offset + std::uint64_t{i} * kFrcdBytes;
    rows.push_back({"FRCD_REG low", at, 8, 0, 0, 0});
    rows.push_back({"FRCD_REG high", at + sizeof(std::uint64_t), 8, 0, 0, mask_of<kFrcd, "F">});
  }
  return rows;
}

std::uint64_t register_bytes(const Identity& identity) {
  std::uint64_t end = 0;
  for (const RegisterRow& row : register_rows(identity)) end = std::max(end, row.offset + row.bytes);
  return (end + kPageSize.value() - 1) / kPageSize.value() * kPageSize.value();
}

}  // namespace iommu::vtd
