// SPDX-License-Identifier: Apache-2.0
// VINTFs as groups and VCMDQs as rings. VINTF 0 with HYP_OWN is the host's, as in Linux; VCMDQs are given out in
// ascending order, the host's first. [linux drivers/iommu/arm/arm-smmu-v3/tegra241-cmdqv.c, tegra241_cmdqv_hw_reset]
#pragma once

#include "models/smmuv3/guest_queue_spec.hpp"
#include "sim/translation/queue_driver.hpp"

namespace iommu::smmuv3 {

class VcmdqDriver final : public QueueDriver {
 public:
  // Of VCMDQ_PARAM, as the block has it; `host_rings` of the VCMDQs are the host's.
  VcmdqDriver(std::uint32_t parameters, std::uint32_t host_rings) : parameters_(parameters), host_rings_(host_rings) {}

  [[nodiscard]] Limits limits() const override;
  [[nodiscard]] std::vector<RegisterWrite> enable() const override;
  [[nodiscard]] std::vector<RegisterWrite> open(std::uint32_t group, std::optional<DomainTag> owner) const override;
  [[nodiscard]] std::vector<RegisterWrite> close(std::uint32_t group) const override;
  [[nodiscard]] std::vector<RegisterWrite> place(std::uint32_t group, const RingPlacement& placement) const override;
  [[nodiscard]] RegisterWrite stop(std::uint32_t group, std::uint32_t ring) const override;
  [[nodiscard]] std::vector<RegisterWrite> remove(std::uint32_t group, std::uint32_t ring) const override;
  [[nodiscard]] std::vector<RegisterWrite> name_device(std::uint32_t group, std::uint32_t slot, RequesterId seen_as,
                                                       RequesterId device) const override;
  [[nodiscard]] std::vector<RegisterWrite> forget_device(std::uint32_t group, std::uint32_t slot) const override;
  [[nodiscard]] Window window(std::uint32_t group) const override;

  [[nodiscard]] CommandRing ring(std::uint32_t ring, std::uint64_t base, std::uint32_t entries) const override;
  [[nodiscard]] std::vector<RegisterWrite> start(std::uint32_t ring) const override;
  [[nodiscard]] std::uint64_t status_register(std::uint32_t ring) const override;
  [[nodiscard]] bool guest_may(const InvalidationScope& scope) const override;
  [[nodiscard]] CommandWords encode_fence() const override;
  [[nodiscard]] std::uint32_t head_index(std::uint64_t head_register) const override;

 private:
  // Of all VCMDQs, the one that is a ring of a group.
  [[nodiscard]] std::uint64_t number(std::uint32_t group, std::uint32_t ring) const;
  std::uint32_t parameters_;
  std::uint32_t host_rings_;
};

}  // namespace iommu::smmuv3
