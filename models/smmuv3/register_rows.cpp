// SPDX-License-Identifier: Apache-2.0
#include "models/smmuv3/register_rows.hpp"

#include "models/smmuv3/spec.hpp"
#include "sim/base/check.hpp"

namespace iommu::smmuv3 {

// clang-format off
std::vector<RegisterRow> register_rows(const Identity& id) {
  const Capabilities capabilities(id);
  std::uint64_t control = mask_of<kCr0, "SMMUEN"> | mask_of<kCr0, "EVENTQEN"> | mask_of<kCr0, "CMDQEN">;
  if (capabilities.page_requests) control |= mask_of<kCr0, "PRIQEN">;
  if (capabilities.ats) control |= mask_of<kCr0, "ATSCHK">;
  if (capabilities.vmid_wildcards) control |= mask_of<kCr0, "VMW">;
  constexpr std::uint64_t kAll32 = 0xffffffff;
  constexpr std::uint64_t kInterrupts = mask_of<kIrqCtrl, "GERROR_IRQEN"> | mask_of<kIrqCtrl, "PRIQ_IRQEN"> |
                                        mask_of<kIrqCtrl, "EVENTQ_IRQEN">;
  constexpr std::uint64_t kErrors = mask_of<kGerror, "CMDQ_ERR"> | mask_of<kGerror, "EVENTQ_ABT_ERR"> |
      mask_of<kGerror, "PRIQ_ABT_ERR"> | mask_of<kGerror, "MSI_CMDQ_ABT_ERR"> | mask_of<kGerror, "MSI_EVENTQ_ABT_ERR"> |
      mask_of<kGerror, "MSI_PRIQ_ABT_ERR"> | mask_of<kGerror, "MSI_GERROR_ABT_ERR"> | mask_of<kGerror, "SFM_ERR">;
  constexpr std::uint64_t kQueue = mask_of<kQueueBase, "LOG2SIZE"> | mask_of<kQueueBase, "ADDR"> | mask_of<kQueueBase, "RWA">;
  constexpr std::uint64_t kProducer = mask_of<kQueueProd, "WR"> | mask_of<kQueueProd, "OVFLG">;
  constexpr std::uint64_t kConsumer = mask_of<kQueueCons, "RD"> | mask_of<kQueueCons, "OVACKFLG">;
  constexpr std::uint64_t kMessage = mask_of<kIrqCfg0, "ADDR">;
  const std::uint64_t gbpa = pack<kGbpa>({{"SHCFG", kUseIncomingShareability}});
  std::vector<RegisterRow> rows{
      {"SMMU_IDR0",            offset::kIdr0,          4, id.idr0, 0, 0},
      {"SMMU_IDR1",            offset::kIdr1,          4, id.idr1, 0, 0},
      {"SMMU_IDR2",            offset::kIdr2,          4, 0, 0, 0},
      {"SMMU_IDR3",            offset::kIdr3,          4, id.idr3, 0, 0},
      {"SMMU_IDR4",            offset::kIdr4,          4, 0, 0, 0},
      {"SMMU_IDR5",            offset::kIdr5,          4, id.idr5, 0, 0},
      {"SMMU_IIDR",            offset::kIidr,          4, id.iidr, 0, 0},
      {"SMMU_AIDR",            offset::kAidr,          4, id.aidr, 0, 0},
      {"SMMU_CR0",             offset::kCr0,           4, 0, control, 0},
      {"SMMU_CR0ACK",          offset::kCr0ack,        4, 0, 0, 0},
      {"SMMU_CR1",             offset::kCr1,           4, 0, kCr1.mask_of(FieldKind::Value), 0},
      {"SMMU_CR2",             offset::kCr2,           4, 0, mask_of<kCr2, "RECINVSID"> | mask_of<kCr2, "PTM">, 0},
      {"SMMU_STATUSR",         offset::kStatusr,       4, 0, 0, 0},
      {"SMMU_GBPA",            offset::kGbpa,          4, gbpa, 0, 0},  // by its own update procedure
      {"SMMU_IRQ_CTRL",        offset::kIrqCtrl,       4, 0, kInterrupts, 0},
      {"SMMU_IRQ_CTRLACK",     offset::kIrqCtrlack,    4, 0, 0, 0},
      {"SMMU_GERROR",          offset::kGerror,        4, 0, 0, 0},
      {"SMMU_GERRORN",         offset::kGerrorn,       4, 0, kErrors, 0},
      {"SMMU_GERROR_IRQ_CFG0", offset::kGerrorIrqCfg0, 8, 0, kMessage, 0},
      {"SMMU_GERROR_IRQ_CFG1", offset::kGerrorIrqCfg1, 4, 0, kAll32, 0},
      {"SMMU_GERROR_IRQ_CFG2", offset::kGerrorIrqCfg2, 4, 0, kAll32, 0},
      {"SMMU_STRTAB_BASE",     offset::kStrtabBase,    8, 0, mask_of<kStrtabBase, "ADDR"> | mask_of<kStrtabBase, "RA">, 0},
      {"SMMU_STRTAB_BASE_CFG", offset::kStrtabBaseCfg, 4, 0, kStrtabCfg.mask_of(FieldKind::Value), 0},
      {"SMMU_CMDQ_BASE",       offset::kCmdqBase,      8, 0, kQueue, 0},
      {"SMMU_CMDQ_PROD",       offset::kCmdqProd,      4, 0, mask_of<kQueueProd, "WR">, 0},
      {"SMMU_CMDQ_CONS",       offset::kCmdqCons,      4, 0, mask_of<kCmdqCons, "RD"> | mask_of<kCmdqCons, "ERR">, 0},
      {"SMMU_EVENTQ_BASE",     offset::kEventqBase,    8, 0, kQueue, 0},
      {"SMMU_EVENTQ_PROD",     offset::kEventqProd,    4, 0, kProducer, 0},
      {"SMMU_EVENTQ_CONS",     offset::kEventqCons,    4, 0, kConsumer, 0},
      {"SMMU_EVENTQ_IRQ_CFG0", offset::kEventqIrqCfg0, 8, 0, kMessage, 0},
      {"SMMU_EVENTQ_IRQ_CFG1", offset::kEventqIrqCfg1, 4, 0, kAll32, 0},
      {"SMMU_EVENTQ_IRQ_CFG2", offset::kEventqIrqCfg2, 4, 0, kAll32, 0},
      {"SMMU_PRIQ_BASE",       offset::kPriqBase,      8, 0, kQueue, 0},
      {"SMMU_PRIQ_PROD",       offset::kPriqProd,      4, 0, kProducer, 0},
      {"SMMU_PRIQ_CONS",       offset::kPriqCons,      4, 0, kConsumer, 0},
      {"SMMU_PRIQ_IRQ_CFG0",   offset::kPriqIrqCfg0,   8, 0, kMessage, 0},
      {"SMMU_PRIQ_IRQ_CFG1",   offset::kPriqIrqCfg1,   4, 0, kAll32, 0},
      {"SMMU_PRIQ_IRQ_CFG2",   offset::kPriqIrqCfg2,   4, 0, kAll32, 0},
  };
  SIM_CHECK(rows.size() == kRegisters, "a row for each number");
  if (!capabilities.page_requests)
    for (std::size_t row = kRegPriqBase; row < kRegisters; ++row) rows[row].writable = 0;
  return rows;
}
// clang-format on

}  // namespace iommu::smmuv3
