// SPDX-License-Identifier: Apache-2.0
#include "models/smmuv3/vector_rules.hpp"

#include <algorithm>
#include <array>
#include <memory>

#include "models/smmuv3/core.hpp"
#include "models/smmuv3/recorder.hpp"

namespace iommu::smmuv3 {

namespace {

std::uint64_t register_of(const VectorRegisters& registers, std::string_view name) {
  const auto found = registers.find(name);
  return found == registers.end() ? 0 : found->second;
}

Identity identity_of(const VectorRegisters& registers) {
  const auto word = [&](std::string_view name) { return static_cast<std::uint32_t>(register_of(registers, name)); };
  return {.idr0 = word("IDR0"),
          .idr1 = word("IDR1"),
          .idr3 = word("IDR3"),
          .idr5 = word("IDR5"),
          .iidr = word("IIDR"),
          .aidr = word("AIDR")};
}

std::string lacks(const VectorRecord& record) {
  for (const std::string_view name : {"IDR0", "IDR1", "IDR3", "IDR5", "AIDR"})
    if (!record.id_registers.contains(name)) return "register " + std::string(name);
  const std::uint64_t idr0 = register_of(record.id_registers, "IDR0");
  if (static_cast<TableFormats>(get<kIdr0, "TTF">(idr0)) != TableFormats::AArch64) return "AArch32 tables";
  if (get<kIdr0, "HYP">(idr0) != 0) return "EL2";
  const std::uint64_t idr5 = register_of(record.id_registers, "IDR5");
  if (get<kIdr5, "DS">(idr5) != 0 || get<kIdr5, "D128">(idr5) != 0) return "52-bit or 128-bit descriptors";
  return {};
}

std::unique_ptr<IommuCore> make_core(const VectorRegisters& registers) {
  return std::make_unique<Core>(identity_of(registers));
}

bool is_translation_fault(unsigned code) {
  return code >= kFault<"F_TRANSLATION">->code && code <= kFault<"F_PERMISSION">->code;
}

// RecordedFault::detail: S2 and CLASS.
constexpr std::uint64_t kStage2Detail = 4;
std::uint64_t detail_of(std::uint64_t stage2, FaultingAccess access) {
  return (stage2 != 0 ? kStage2Detail : 0) | static_cast<std::uint64_t>(access);
}

std::optional<std::pair<unsigned, RecordedFault>> read_record(std::span<const std::uint64_t> words) {
  if (words.size() != kEventBytes / 8 || get<kEvent, "ID">(words) == 0) return std::nullopt;
  const auto code = static_cast<unsigned>(get<kEvent, "ID">(words));
  RecordedFault fault;
  fault.page = get<kEvent, "InputAddr">(words) >> kPageLg2 << kPageLg2;
  fault.requester = RequesterId(static_cast<std::uint16_t>(get<kEvent, "StreamID">(words)));
  fault.access = get<kEvent, "RnW">(words) != 0 ? Access::Read : Access::Write;
  if (get<kEvent, "SSV">(words) != 0)
    fault.pasid = Pasid(static_cast<std::uint32_t>(get<kEvent, "SubstreamID">(words)));
  const std::uint64_t page = get<kEvent, "Page">(words) << kPageLg2;
  const std::uint64_t stage2 = get<kEvent, "S2">(words);
  if (is_translation_fault(code) || code == kFault<"F_WALK_EABT">->code)
    fault.detail = detail_of(stage2, static_cast<FaultingAccess>(get<kEvent, "CLASS">(words)));
  // The IPA is UNKNOWN in events of stage 1. [§7.3.13]
  if (is_translation_fault(code) && stage2 != 0) fault.memory = page;
  if (code == kFault<"F_WALK_EABT">->code || code == kFault<"F_STE_FETCH">->code || code == kFault<"F_CD_FETCH">->code)
    fault.memory = page | get<kEvent, "FetchLow">(words);
  return std::pair{code, fault};
}

// Queues are empty when an access begins.
std::optional<std::pair<unsigned, RecordedFault>> recorded_fault(IommuCore& core, const VectorMemory& memory) {
  constexpr unsigned kHalf = 4, kWord = 8;
  const std::uint64_t producer = get<kQueueProd, "WR">(core.mmio_read(offset::kEventqProd, kHalf));
  const std::uint64_t consumer = get<kQueueCons, "RD">(core.mmio_read(offset::kEventqCons, kHalf));
  const std::uint64_t base = core.mmio_read(offset::kEventqBase, kWord);
  if (producer == consumer) return std::nullopt;
  const std::uint64_t index = consumer & bits_between(0, static_cast<unsigned>(get<kQueueBase, "LOG2SIZE">(base)));
  std::array<std::uint64_t, kEventBytes / 8> words{};
  for (std::size_t i = 0; i < words.size(); ++i)
    words[i] = memory.read((base & mask_of<kQueueBase, "ADDR">)+index * kEventBytes + kWord * i).value_or(0);
  return read_record(words);
}

// Rules
// -----------------------------------------------------------------------------------------------------------------

// A rule is a departure of the recorder's version, applied on top of those before it. It explains nothing unless the
// hypothesis so far is what the independent walker says as well, and it is named only where it changes the outcome.
template <Departure kDeparture>
std::optional<VectorChange> depart(const VectorCase& c) {
  const Departures all = departures_of(c.record.recorder_major);
  constexpr Departures kBit = bit_of(kDeparture);
  if ((all & kBit) == 0) return std::nullopt;
  const VectorOutcome before = recorder_outcome(c, all & (kBit - 1));
  const VectorOutcome after = recorder_outcome(c, all & (kBit - 1 | kBit));
  if (!before.agrees_with(c.outcome) || after.agrees_with(before)) return std::nullopt;
  return VectorChange{.outcome = after};
}

// clang-format off
constexpr std::array kRules{
    VectorRule{"invalid-stream-recorded", "§6.3.12 RECINVSID, §7.3.3", "records C_BAD_STREAMID although RECINVSID = 0", depart<Departure::InvalidStreamRecorded>},
    VectorRule{"span-unchecked", "§5.1 Span", "takes L1STD.Span beyond SPLIT + 1", depart<Departure::SpanUnchecked>},
    VectorRule{"second-level-doubled", "§5.1 Span, §7.3.3", "takes 2^Span entries and calls what lies beyond C_BAD_STE", depart<Departure::SecondLevelDoubled>},
    VectorRule{"second-level-unaligned", "§5.1 L2Ptr", "does not align L2Ptr to the size of its array", depart<Departure::SecondLevelUnaligned>},
    VectorRule{"substreams-forbidden", "§5.2 S1CDMax", "takes S1CDMax for ILLEGAL where substreams do not exist", depart<Departure::SubstreamsForbidden>},
    VectorRule{"stall-disable-checked", "§5.2 S1STALLD", "takes S1STALLD for ILLEGAL without stage 1", depart<Departure::StallDisableChecked>},
    VectorRule{"context-pointer-cut", "§3.4.3, §5.2 S1ContextPtr", "drops S1ContextPtr[55:48] and does not check its range", depart<Departure::ContextPointerCut>},
    VectorRule{"stage2-table-cut", "§5.2 S2TTB", "drops S2TTB[51:48]", depart<Departure::Stage2TableCut>},
    VectorRule{"stage2-updates-ignored", "§5.2 S2HA, S2HD", "takes S2HA and S2HD although HTTU = 0", depart<Departure::Stage2UpdatesIgnored>},
    VectorRule{"device-tables-taken", "§5.2 S2PTW", "reads stage-1 tables and CDs from what stage 2 maps as device memory", depart<Departure::DeviceTablesTaken>},
    VectorRule{"stage2-input-by-output", "§5.2 S2T0SZ", "limits S2T0SZ by S2PS instead of the IAS", depart<Departure::Stage2InputByOutput>},
    VectorRule{"stage2-start-unchecked", "§5.2 S2SL0", "takes a starting level that resolves no bit", depart<Departure::Stage2StartUnchecked>},
    VectorRule{"table-base-cut", "§5.4 TTB0", "drops TTBx[51]", depart<Departure::TableBaseCut>},
    VectorRule{"devices-readable", "§7.3.10, §7.3.12", "reads structures from flash and from the PCIe window", depart<Departure::DevicesReadable>},
    VectorRule{"bypass-unchecked", "§3.4", "does not check the address of a bypassing stream", depart<Departure::BypassUnchecked>},
    VectorRule{"stage1-size-unrecorded", "§3.4, §7.3.14", "does not record an input beyond the IAS of a stage-2 stream", depart<Departure::Stage1SizeUnrecorded>},
    VectorRule{"concatenation-lost", "DDI 0487 D8.2", "reads the first of concatenated tables for all of them", depart<Departure::ConcatenationLost>},
    VectorRule{"stage2-table-size-unchecked", "§7.3.14", "does not check the size of next-table addresses at stage 2", depart<Departure::Stage2TableSizeUnchecked>},
    VectorRule{"stage2-size-last", "§7.3.22", "checks the output size after permissions at stage 2", depart<Departure::Stage2SizeLast>},
    VectorRule{"top-byte-from-lower-range", "§5.4 TBI1", "takes TBI1 from TBI0", depart<Departure::TopByteFromLowerRange>},
    VectorRule{"upper-range-by-zeros", "§3.4.1", "selects TTB1 for sign bits that are zero", depart<Departure::UpperRangeByZeros>},
    VectorRule{"any-level-block", "DDI 0487 D8.3.2", "takes blocks at every level", depart<Departure::AnyLevelBlock>},
    VectorRule{"access-flag-ignored", "§5.4 AFFD, §7.3.15", "does not look at the access flag", depart<Departure::AccessFlagIgnored>},
    VectorRule{"user-access-ignored", "DDI 0487 D8.4", "takes AP[1] and APTable[0] for granted", depart<Departure::UserAccessIgnored>},
    VectorRule{"table-permission-early", "§7.3.22", "refuses a write at the table that forbids it", depart<Departure::TablePermissionEarly>},
    VectorRule{"table-size-unchecked", "§7.3.14", "does not check the size of next-table addresses at stage 1", depart<Departure::TableSizeUnchecked>},
    VectorRule{"leaf-size-unchecked", "§3.4, §7.3.14", "does not check the output size of stage 1", depart<Departure::LeafSizeUnchecked>},
    VectorRule{"leaf-size-last", "§7.3.22", "checks the output size after permissions at stage 1", depart<Departure::LeafSizeLast>},
    VectorRule{"bases-translated-first", "§7.3.22", "translates both TTBs before it selects one", depart<Departure::BasesTranslatedFirst>},
    VectorRule{"base-cut-to-output", "§3.4.3", "cuts the translated TTB to the size of stage-1 output", depart<Departure::BaseCutToOutput>},
    VectorRule{"tables-translated-at-base", "§3.4.3", "translates a stage-1 table at its base, whatever page the entry is in", depart<Departure::TablesTranslatedAtBase>},
    VectorRule{"table-size-at-stage2", "§7.3.14", "gives CLASS TT to a next-table address beyond stage 1's output size", depart<Departure::TableSizeAtStage2>},
    VectorRule{"table-faults-as-stage1", "§7.3.13", "reports stage 2 of a table's address as stage 1, by CD.R", depart<Departure::TableFaultsAsStage1>},
    VectorRule{"descriptor-access-is-read", "§7.3.13 RnW", "records the access to CD or TTB instead of the transaction's", depart<Departure::DescriptorAccessIsRead>},
    VectorRule{"no-class", "§7.3.13 CLASS", "leaves CLASS zero", depart<Departure::NoClass>},
};
// clang-format on
static_assert(kRules.size() == static_cast<std::size_t>(Departure::kCount));

}  // namespace

const VectorFamily kVectorFamily{.name = "smmuv3",
                                 .lacks = lacks,
                                 .make_core = make_core,
                                 .read_record = read_record,
                                 .recorded_fault = recorded_fault,
                                 .rules = kRules,
                                 .memory_rules = {}};

}  // namespace iommu::smmuv3
