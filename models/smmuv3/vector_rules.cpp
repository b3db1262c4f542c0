// SPDX-License-Identifier: Apache-2.0
#include "models/smmuv3/vector_rules.hpp"

#include <algorithm>
#include <array>
#include <memory>

#include "models/smmuv3/core.hpp"

namespace iommu::smmuv3 {

namespace {

[[maybe_unused]] constexpr unsigned kQemu7 = 7;

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
    words[i] = memory.read((base & mask_of<kQueueBase, "ADDR">) + index * kEventBytes + kWord * i).value_or(0);
  return read_record(words);
}

// clang-format off
constexpr std::array<VectorRule, 0> kRules{
};
// clang-format on

}  // namespace

const VectorFamily kVectorFamily{.name = "smmuv3",
                                 .lacks = lacks,
                                 .make_core = make_core,
                                 .read_record = read_record,
                                 .recorded_fault = recorded_fault,
                                 .rules = kRules,
                                 .memory_rules = {}};

}  // namespace iommu::smmuv3
