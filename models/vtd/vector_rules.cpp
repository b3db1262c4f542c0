// SPDX-License-Identifier: Apache-2.0
#include "models/vtd/vector_rules.hpp"

#include <algorithm>
#include <array>
#include <memory>

#include "models/vtd/core.hpp"

namespace iommu::vtd {

namespace {

[[maybe_unused]] constexpr unsigned kQemu7 = 7;
// Not an identification register: the host address width of a run, where a rule changes it.
constexpr std::string_view kHostBits = "host_address_bits";

std::uint64_t register_of(const VectorRegisters& registers, std::string_view name) {
  const auto found = registers.find(name);
  return found == registers.end() ? 0 : found->second;
}

// QEMU's aw-bits sets the guest and the host address width alike.
Identity identity_of(const VectorRegisters& registers) {
  Identity identity;
  identity.version = static_cast<std::uint32_t>(register_of(registers, "VER"));
  identity.cap = register_of(registers, "CAP");
  identity.ecap = register_of(registers, "ECAP");
  identity.host_address_bits = static_cast<unsigned>(get<kCap, "MGAW">(identity.cap)) + 1;
  if (const std::uint64_t bits = register_of(registers, kHostBits); bits != 0)
    identity.host_address_bits = static_cast<unsigned>(bits);
  return identity;
}

std::string lacks(const VectorRecord& record) {
  if (record.variant == "ir") return "interrupt remapping";
  for (const std::string_view name : {"VER", "CAP", "ECAP"})
    if (!record.id_registers.contains(name)) return "register " + std::string(name);
  const std::uint64_t cap = register_of(record.id_registers, "CAP");
  if (get<kCap, "AFL">(cap) != 0) return "advanced fault logging";
  if (get<kCap, "PLMR">(cap) != 0 || get<kCap, "PHMR">(cap) != 0) return "protected memory regions";
  return {};
}

std::unique_ptr<IommuCore> make_core(const VectorRegisters& registers) {
  return std::make_unique<Core>(identity_of(registers));
}

std::optional<std::pair<unsigned, RecordedFault>> read_record(std::span<const std::uint64_t> words) {
  if (words.size() != 2 || get<kFrcd, "F">(words) == 0) return std::nullopt;
  RecordedFault fault;
  fault.page = get<kFrcd, "FI">(words) << kPageLg2;
  fault.requester = RequesterId(static_cast<std::uint16_t>(get<kFrcd, "SID">(words)));
  fault.access = get<kFrcd, "T1">(words) != 0 ? Access::Read : Access::Write;
  if (get<kFrcd, "PP">(words) != 0) fault.pasid = Pasid(static_cast<std::uint32_t>(get<kFrcd, "PV">(words)));
  return std::pair{static_cast<unsigned>(get<kFrcd, "FR">(words)), fault};
}

std::optional<std::pair<unsigned, RecordedFault>> recorded_fault(IommuCore& core) {
  constexpr unsigned kWord = 8;
  const std::uint64_t at = get<kCap, "FRO">(core.mmio_read(offset::kCap, kWord)) * offset::kUnit;
  const std::array<std::uint64_t, 2> words{core.mmio_read(at, kWord), core.mmio_read(at + kWord, kWord)};
  return read_record(words);
}

constexpr std::array<VectorRule, 0> kRules{};

}  // namespace

const VectorFamily kVectorFamily{.name = "vtd",
                                 .lacks = lacks,
                                 .make_core = make_core,
                                 .read_record = read_record,
                                 .recorded_fault = recorded_fault,
                                 .rules = kRules};

}  // namespace iommu::vtd
