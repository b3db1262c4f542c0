// SPDX-License-Identifier: Apache-2.0
#include "models/smmuv3/queue_driver.hpp"

#include <algorithm>
#include <bit>

namespace iommu::smmuv3 {

namespace at = queue_offset;

namespace {
constexpr std::uint32_t kGuestRings = 1U << kGuestVcmdqsLg2;

RegisterWrite write32(std::uint64_t offset, std::uint64_t value) {
  return {.offset = kQueueBlock + offset, .bytes = 4, .value = value};
}
RegisterWrite write64(std::uint64_t offset, std::uint64_t value) {
  return {.offset = kQueueBlock + offset, .bytes = 8, .value = value};
}
std::uint64_t vintf(std::uint32_t group) { return at::kVintfs + group * at::kVintfStride; }
std::uint64_t in_window(std::uint32_t ring) { return ring * at::kVcmdqStride; }
}  // namespace

QueueDriver::Limits VcmdqDriver::limits() const {
  const std::uint32_t vintfs = 1U << get<kCmdqvParam, "CMDQV_NUM_VI_LOG2">(parameters_);
  const std::uint32_t vcmdqs = 1U << get<kCmdqvParam, "CMDQV_NUM_CMDQ_LOG2">(parameters_);
  const std::uint32_t guests = (vcmdqs - std::min(host_rings_, vcmdqs)) / kGuestRings;
  return {.groups = std::min(vintfs, 1 + guests),
          .host_rings = host_rings_,
          .guest_rings = kGuestRings,
          .devices = 1U << get<kCmdqvParam, "CMDQV_NUM_SID_PER_VI_LOG2">(parameters_),
          .entries = 1U << kLargestQueueLg2};
}

std::uint64_t VcmdqDriver::number(std::uint32_t group, std::uint32_t ring) const {
  return group == 0 ? ring : host_rings_ + (group - 1) * kGuestRings + ring;
}

std::vector<RegisterWrite> VcmdqDriver::enable() const {
  return {write32(at::kConfig, with<kCmdqvConfig, "CMDQV_EN">(kCmdqvConfigReset, 1))};
}

// The owner first, and only then enabled. [linux, tegra241_vintf_hw_init]
std::vector<RegisterWrite> VcmdqDriver::open(std::uint32_t group, std::optional<DomainTag> owner) const {
  const std::uint64_t config =
      owner ? pack<kVintfConfig>({{"VMID", owner->value()}}) : mask_of<kVintfConfig, "HYP_OWN">;
  return {write32(vintf(group) + at::kVintfConfig, config),
          write32(vintf(group) + at::kVintfConfig, with<kVintfConfig, "ENABLE">(config, 1))};
}

std::vector<RegisterWrite> VcmdqDriver::close(std::uint32_t group) const {
  return {write32(vintf(group) + at::kVintfConfig, 0)};
}

std::vector<RegisterWrite> VcmdqDriver::place(std::uint32_t group, const RingPlacement& placement) const {
  const std::uint64_t queue = number(group, placement.ring);
  const std::uint64_t owner = pack<kCmdqAlloc>({{"ALLOC", 1}, {"LVCMDQ", placement.ring}, {"VIRT_INTF_INDX", group}});
  const auto lg2 = static_cast<unsigned>(std::bit_width(placement.entries) - 1);
  const std::uint64_t base =
      (placement.base.value() & mask_of<kVcmdqBase, "ADDR">) | pack<kVcmdqBase>({{"LOG2SIZE", lg2}});
  return {write32(at::kCmdqAlloc + 4 * queue, owner),
          write64(at::kVcmdqPage1 + queue * at::kVcmdqStride + at::kBase, base)};
}

RegisterWrite VcmdqDriver::stop(std::uint32_t group, std::uint32_t ring) const {
  return write32(at::kVcmdqPage0 + number(group, ring) * at::kVcmdqStride + at::kVcmdqConfig, 0);
}

// [linux, tegra241_vcmdq_hw_deinit, tegra241_vcmdq_unmap_lvcmdq]
std::vector<RegisterWrite> VcmdqDriver::remove(std::uint32_t group, std::uint32_t ring) const {
  const std::uint64_t queue = number(group, ring);
  const std::uint64_t page0 = at::kVcmdqPage0 + queue * at::kVcmdqStride;
  const std::uint64_t page1 = at::kVcmdqPage1 + queue * at::kVcmdqStride;
  return {write32(page0 + at::kProd, 0),     write32(page0 + at::kCons, 0),    write64(page1 + at::kBase, 0),
          write64(page1 + at::kConsBase, 0), write32(page0 + at::kGerrorn, 0), write32(at::kCmdqAlloc + 4 * queue, 0)};
}

// The match last: it makes the pair count. [linux, tegra241_vintf_init_vsid]
std::vector<RegisterWrite> VcmdqDriver::name_device(std::uint32_t group, std::uint32_t slot, RequesterId seen_as,
                                                    RequesterId device) const {
  return {write32(vintf(group) + at::kSidReplace + 4 * slot, device.value()),
          write32(vintf(group) + at::kSidMatch + 4 * slot,
                  pack<kSidMatch>({{"ENABLE", 1}, {"VIRT_SID", seen_as.value()}}))};
}

std::vector<RegisterWrite> VcmdqDriver::forget_device(std::uint32_t group, std::uint32_t slot) const {
  return {write32(vintf(group) + at::kSidMatch + 4 * slot, 0), write32(vintf(group) + at::kSidReplace + 4 * slot, 0)};
}

QueueDriver::Window VcmdqDriver::window(std::uint32_t group) const {
  return {.offset = kQueueBlock + at::kVintfPages + std::uint64_t{group} * 2 * at::kPageBytes, .bytes = at::kPageBytes};
}

CommandRing VcmdqDriver::ring(std::uint32_t ring, std::uint64_t base, std::uint32_t entries) const {
  return {.base = base,
          .entries = entries,
          .entry_bytes = kCommandBytes,
          .full = FullRule::WrapBit,
          .tail_register = in_window(ring) + at::kProd,
          .head_register = in_window(ring) + at::kCons,
          .index_reads = 0};
}

std::vector<RegisterWrite> VcmdqDriver::start(std::uint32_t ring) const {
  const auto write = [ring](std::uint64_t offset, std::uint64_t value) {
    return RegisterWrite{.offset = in_window(ring) + offset, .bytes = 4, .value = value};
  };
  return {write(at::kProd, 0), write(at::kCons, 0), write(at::kVcmdqConfig, mask_of<kVcmdqConfig, "CMDQ_EN">)};
}

std::uint64_t VcmdqDriver::status_register(std::uint32_t ring) const { return in_window(ring) + at::kVcmdqStatus; }

// What is encoded as one of kGuestOpcodes.
bool VcmdqDriver::guest_may(const InvalidationScope& scope) const {
  if (scope.kind == InvalidationKind::DeviceTlb) return scope.requester.has_value();
  return scope.kind == InvalidationKind::Iotlb && scope.domain && scope.domain_ignore == 0 && scope.asid;
}

CommandWords VcmdqDriver::encode_fence() const {
  std::array<std::uint64_t, 4> words{};
  put<kSync, "OP">(words, kCmdSync);
  put<kSync, "CS">(words, static_cast<std::uint64_t>(kVcmdqSignal));
  return {words};
}

std::uint32_t VcmdqDriver::head_index(std::uint64_t head_register) const {
  return static_cast<std::uint32_t>(get<kVcmdqCons, "RD">(head_register));
}

}  // namespace iommu::smmuv3
