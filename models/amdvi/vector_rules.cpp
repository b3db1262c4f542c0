// SPDX-License-Identifier: Apache-2.0
#include "models/amdvi/vector_rules.hpp"

#include <algorithm>
#include <array>
#include <memory>

#include "models/amdvi/core.hpp"

namespace iommu::amdvi {

namespace {

std::uint64_t register_of(const VectorRegisters& registers, std::string_view name) {
  const auto found = registers.find(name);
  return found == registers.end() ? 0 : found->second;
}

std::unique_ptr<IommuCore> make_core(const VectorRegisters& registers) {
  Identity identity;
  identity.extended_features = register_of(registers, "EXT_FEATURE");
  return std::make_unique<Core>(identity);
}

std::string lacks(const VectorRecord& record) {
  if (!record.id_registers.contains("EXT_FEATURE")) return "register EXT_FEATURE";
  const std::uint64_t features = register_of(record.id_registers, "EXT_FEATURE");
  if (get<kExtendedFeatures, "SNPSup">(features) != 0) return "SevSnp";
  if (get<kExtendedFeatures, "vIommuSup">(features) != 0) return "vIOMMU";
  if (get<kExtendedFeatures, "DevTblSegSup">(features) != 0) return "segmented device tables";
  return {};
}

// QEMU keeps the access in bits 49:48 of a page fault, where GN and NX are, and no address.
std::optional<std::pair<unsigned, RecordedFault>> read_record(std::span<const std::uint64_t> words) {
  if (words.size() != 2 || get<kTranslationEvent, "EventCode">(words) == 0) return std::nullopt;
  RecordedFault fault;
  fault.page = Iova(get<kTranslationEvent, "Address">(words)).aligned_down(kPageLg2).value();
  fault.requester = RequesterId(static_cast<std::uint16_t>(get<kTranslationEvent, "DeviceID">(words)));
  fault.access = get<kTranslationEvent, "NX">(words) != 0 ? Access::Write : Access::Read;
  return std::pair{static_cast<unsigned>(get<kTranslationEvent, "EventCode">(words)), fault};
}

std::optional<std::pair<unsigned, RecordedFault>> recorded_fault(IommuCore& core, const VectorMemory& memory) {
  constexpr unsigned kWord = 8;
  const std::uint64_t tail = core.mmio_read(offset::kEventTail, kWord);
  if (tail == 0) return std::nullopt;
  const std::uint64_t base = get<kRingBase, "Base">(core.mmio_read(offset::kEventBase, kWord)) << kPageLg2;
  const std::array<std::uint64_t, 2> words{memory.read(base).value_or(0), memory.read(base + kWord).value_or(0)};
  RecordedFault fault;
  fault.page = Iova(get<kTranslationEvent, "Address">(words)).aligned_down(kPageLg2).value();
  fault.requester = RequesterId(static_cast<std::uint16_t>(get<kTranslationEvent, "DeviceID">(words)));
  fault.access = get<kTranslationEvent, "RW">(words) != 0 ? Access::Write : Access::Read;
  return std::pair{static_cast<unsigned>(get<kTranslationEvent, "EventCode">(words)), fault};
}

}  // namespace

const VectorFamily kVectorFamily{.name = "amdvi",
                                 .lacks = lacks,
                                 .make_core = make_core,
                                 .read_record = read_record,
                                 .recorded_fault = recorded_fault,
                                 .rules = {},
                                 .memory_rules = {}};

}  // namespace iommu::amdvi
