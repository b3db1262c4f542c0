// SPDX-License-Identifier: Apache-2.0
#include "models/smmuv3/capabilities.hpp"

#include <algorithm>

namespace iommu::smmuv3 {

namespace {
// Of a unit made from features. Their values are choices; the specification leaves them to the implementation.
constexpr unsigned kStreamBits = 16, kSubstreamBits = 20;
constexpr unsigned kStallsHeld = 1024;
constexpr unsigned kMinorRevision = 2;  // SMMUv3.2, the first that has range invalidation for sure
constexpr unsigned kMinInputBits = 64 - kLargestTxsz, kMaxInputBits = 64 - kSmallestTxsz48;
constexpr unsigned kBreakBeforeMakeLevel2 = 2;  // BBML: block and table may change places without a gap
constexpr unsigned kWideOutputBits = 52;

constexpr std::uint64_t flag(bool value) { return value ? 1 : 0; }

template <class Enum>
constexpr std::uint64_t code(Enum e) {
  return static_cast<std::uint64_t>(e);
}

std::uint64_t size_code(unsigned bits) {
  return static_cast<std::uint64_t>(std::find(kAddressSizes.begin(), kAddressSizes.end(), bits) -
                                    kAddressSizes.begin());
}
}  // namespace

std::string unsupported(const UnitFeatures& f) {
  if (size_code(f.host_address_bits) == kAddressSizes.size())
    return "host_address_bits must be 32, 36, 40, 42, 44, 48 or 52";
  if (f.input_address_bits < kMinInputBits || f.input_address_bits > kMaxInputBits)
    return "input_address_bits must be 25 to 48";
  if (f.caching_mode) return "caching_mode does not exist here: not-present entries are never cached";
  return {};
}

namespace {
// Of the block of further queues: all of it, or as much of it as one guest is shown.
std::uint32_t queue_parameters(FurtherQueues queues) {
  if (queues == FurtherQueues::None) return 0;
  const bool all = queues == FurtherQueues::All;
  return static_cast<std::uint32_t>(pack<kCmdqvParam>({{"CMDQV_VER", kCmdqvVersion},
                                                       {"CMDQV_NUM_CMDQ_LOG2", all ? kVcmdqsLg2 : kGuestVcmdqsLg2},
                                                       {"CMDQV_NUM_VI_LOG2", all ? kVintfsLg2 : 0},
                                                       {"CMDQV_NUM_SID_PER_VI_LOG2", kSidsLg2}}));
}
}  // namespace

Identity compose(const UnitFeatures& f) {
  Identity id;
  id.queue_parameters = queue_parameters(f.further_queues);
  if (f.further_queues == FurtherQueues::OneGuests) id.queue_view = QueueView::Guest;
  id.idr0 = static_cast<std::uint32_t>(pack<kIdr0>({
      {"S2P", 1},
      {"S1P", 1},
      {"TTF", code(TableFormats::AArch64)},
      {"COHACC", flag(f.coherent_walks)},
      {"HTTU", code(f.accessed_dirty ? FlagUpdates::AccessAndDirty : FlagUpdates::None)},
      {"ATS", flag(f.device_tlb)},
      {"ASID16", 1},
      {"MSI", 1},
      {"SEV", 1},
      {"PRI", flag(f.device_tlb)},
      {"VMW", 1},
      {"VMID16", 1},
      {"CD2L", 1},
      {"TTENDIAN", code(Endianness::Little)},
      {"STALL_MODEL", code(f.stall ? StallModel::Configurable : StallModel::Absent)},
      {"ST_LEVEL", 1},
  }));
  id.idr1 = static_cast<std::uint32_t>(pack<kIdr1>({
      {"SIDSIZE", kStreamBits},
      {"SSIDSIZE", kSubstreamBits},
      {"PRIQS", f.device_tlb ? kLargestQueueLg2 : 0},
      {"EVENTQS", kLargestQueueLg2},
      {"CMDQS", kLargestQueueLg2},
      {"ATTR_PERMS_OVR", 1},
  }));
  id.idr3 = static_cast<std::uint32_t>(
      pack<kIdr3>({{"HAD", 1}, {"XNX", 1}, {"PPS", 1}, {"RIL", 1}, {"BBML", kBreakBeforeMakeLevel2}}));
  id.idr5 = static_cast<std::uint32_t>(pack<kIdr5>({
      {"OAS", size_code(f.host_address_bits)},
      {"GRAN4K", 1},
      {"GRAN16K", 1},
      {"GRAN64K", 1},
      {"VAX", flag(f.host_address_bits == kWideOutputBits)},
      {"STALL_MAX", f.stall ? kStallsHeld : 0},
  }));
  id.aidr = static_cast<std::uint32_t>(pack<kAidr>({{"ArchMinorRev", kMinorRevision}}));
  return id;
}

Capabilities::Capabilities(const Identity& id)
    : output_bits(kAddressSizes[std::min<std::uint64_t>(get<kIdr5, "OAS">(id.idr5), kAddressSizes.size() - 1)]),
      stream_bits(std::min(kStreamBits, static_cast<unsigned>(get<kIdr1, "SIDSIZE">(id.idr1)))),
      substream_bits(std::min(kSubstreamBits, static_cast<unsigned>(get<kIdr1, "SSIDSIZE">(id.idr1)))),
      command_queue_lg2(std::min(kLargestQueueLg2, static_cast<unsigned>(get<kIdr1, "CMDQS">(id.idr1)))),
      event_queue_lg2(std::min(kLargestQueueLg2, static_cast<unsigned>(get<kIdr1, "EVENTQS">(id.idr1)))),
      page_queue_lg2(std::min(kLargestQueueLg2, static_cast<unsigned>(get<kIdr1, "PRIQS">(id.idr1)))),
      stalls(static_cast<unsigned>(get<kIdr5, "STALL_MAX">(id.idr5))),
      stall_model(static_cast<StallModel>(get<kIdr0, "STALL_MODEL">(id.idr0))),
      endianness(static_cast<Endianness>(get<kIdr0, "TTENDIAN">(id.idr0))),
      flag_updates(static_cast<FlagUpdates>(get<kIdr0, "HTTU">(id.idr0))),
      granules(static_cast<std::uint8_t>(get<kIdr5, "GRAN4K">(id.idr5) | get<kIdr5, "GRAN64K">(id.idr5) << 1 |
                                         get<kIdr5, "GRAN16K">(id.idr5) << 2)),
      stage1(get<kIdr0, "S1P">(id.idr0) != 0),
      stage2(get<kIdr0, "S2P">(id.idr0) != 0),
      two_level_streams(get<kIdr0, "ST_LEVEL">(id.idr0) != 0),
      two_level_contexts(get<kIdr0, "CD2L">(id.idr0) != 0),
      ats(get<kIdr0, "ATS">(id.idr0) != 0),
      split_stage_ats(get<kIdr0, "NS1ATS">(id.idr0) == 0),
      page_requests(get<kIdr0, "PRI">(id.idr0) != 0),
      messages(get<kIdr0, "MSI">(id.idr0) != 0),
      wide_asids(get<kIdr0, "ASID16">(id.idr0) != 0),
      wide_vmids(get<kIdr0, "VMID16">(id.idr0) != 0),
      vmid_wildcards(get<kIdr0, "VMW">(id.idr0) != 0),
      terminates_only_with_abort(get<kIdr0, "TERM_MODEL">(id.idr0) != 0),
      range_invalidation(get<kIdr3, "RIL">(id.idr3) != 0),
      flat_permissions(get<kIdr3, "HAD">(id.idr3) != 0),
      attribute_override(get<kIdr1, "ATTR_PERMS_OVR">(id.idr1) != 0),
      stage2_execution_by_privilege(get<kIdr3, "XNX">(id.idr3) != 0),
      wide_output(output_bits == kWideOutputBits),
      wide_input(get<kIdr5, "VAX">(id.idr5) != 0),
      checks_context_pointer(id.aidr != 0) {}

bool Capabilities::supports_granule(unsigned lg2) const {
  for (std::size_t i = 0; i < kGranules0.size(); ++i)
    if (kGranules0[i] == lg2 && lg2 != 0) return (granules >> i & 1) != 0;
  return false;
}

unsigned Capabilities::address_size(std::uint64_t size_code) const {
  const unsigned bits = size_code < kAddressSizes.size() ? kAddressSizes[size_code] : kAddressSizes.back();
  return std::min(bits, output_bits);
}

}  // namespace iommu::smmuv3
