// SPDX-License-Identifier: Apache-2.0
#include "models/vtd/capabilities.hpp"

#include <algorithm>

#include "models/vtd/format.hpp"

namespace iommu::vtd {

namespace {
// Of a unit made from features. Their values are choices; the specification leaves them to the implementation.
constexpr unsigned kVersionMajor = 4;  // the last that keeps register-based invalidation usable
constexpr unsigned kFirstVersionWithoutRegisterInvalidation = 6;
constexpr unsigned kFaultRecords = 8;
constexpr std::uint64_t kFaultRecordBlock = 0x400, kIotlbBlock = 0x500;
constexpr unsigned kMaxAddressMask = 18;  // 2^18 pages
constexpr unsigned kDomainTagsCode = 6;   // 2^(4 + 2 * 6)
constexpr unsigned kPasidBits = 20;
constexpr unsigned kInput39 = 39, kInput48 = 48, kInput57 = 57;
constexpr unsigned kMinHostBits = 36, kMaxHostBits = 52;
constexpr std::uint64_t kAw39 = 1, kAw48 = 2, kAw57 = 3;
constexpr unsigned kWidthOfAw0 = kPageLg2 + kIndexBits * kLevelsOfAw0;

constexpr std::uint64_t flag(bool value) { return value ? 1 : 0; }

std::uint64_t widths_up_to(unsigned input_bits) {
  std::uint64_t widths = 1U << kAw39;
  if (input_bits >= kInput48) widths |= 1U << kAw48;
  if (input_bits >= kInput57) widths |= 1U << kAw57;
  return widths;
}
}  // namespace

std::string unsupported(const UnitFeatures& f) {
  if (f.input_address_bits != kInput39 && f.input_address_bits != kInput48 && f.input_address_bits != kInput57)
    return "input_address_bits must be 39, 48 or 57";
  if (f.host_address_bits < kMinHostBits || f.host_address_bits > kMaxHostBits)
    return "host_address_bits must be 36 to 52";
  if (f.nested && f.input_address_bits == kInput39)
    return "nested translation needs input_address_bits of 48 or 57: the first stage has at least four levels";
  return {};
}

Identity compose(const UnitFeatures& f) {
  Identity id;
  id.host_address_bits = f.host_address_bits;
  id.version = static_cast<std::uint32_t>(pack<kVer>({{"MAX", kVersionMajor}}));
  id.cap = pack<kCap>({
      {"ND", kDomainTagsCode},
      {"CM", flag(f.caching_mode)},
      {"SAGAW", widths_up_to(f.input_address_bits)},
      {"MGAW", f.input_address_bits - 1},
      {"FRO", kFaultRecordBlock / offset::kUnit},
      {"SSLPS", f.superpages ? 3U : 0U},
      {"PSI", 1},
      {"NFR", kFaultRecords - 1},
      {"MAMV", kMaxAddressMask},
      {"DWD", 1},
      {"DRD", 1},
      {"FS1GP", flag(f.superpages)},
      {"FS5LP", flag(f.input_address_bits == kInput57)},
  });
  id.ecap = pack<kEcap>({
      {"C", flag(f.coherent_walks)},
      {"QI", 1},
      {"DT", flag(f.device_tlb)},
      {"PT", 1},
      {"SC", 1},
      {"IRO", kIotlbBlock / offset::kUnit},
      {"NEST", flag(f.nested)},
      {"SRS", 1},
      {"PSS", kPasidBits - 1},
      {"PASID", 1},
      {"SMTS", 1},
      {"SSADS", flag(f.accessed_dirty)},
      {"SSTS", 1},
      {"FSTS", 1},
      {"SMPWCS", flag(f.coherent_walks)},
      {"RPS", 1},
      {"ADMS", 1},
      {"RPRIVS", 1},
  });
  return id;
}

Capabilities::Capabilities(const Identity& id)
    : host_address_bits(id.host_address_bits),
      max_input_bits(static_cast<unsigned>(get<kCap, "MGAW">(id.cap)) + 1),
      domain_tags_lg2(4 + 2 * static_cast<unsigned>(get<kCap, "ND">(id.cap))),
      address_widths(static_cast<std::uint8_t>(get<kCap, "SAGAW">(id.cap))),
      large_pages(static_cast<std::uint8_t>(get<kCap, "SSLPS">(id.cap))),
      fault_records(static_cast<unsigned>(get<kCap, "NFR">(id.cap)) + 1),
      fault_offset(get<kCap, "FRO">(id.cap) * offset::kUnit),
      iotlb_offset(get<kEcap, "IRO">(id.ecap) * offset::kUnit),
      page_selective(get<kCap, "PSI">(id.cap) != 0),
      max_address_mask(static_cast<unsigned>(get<kCap, "MAMV">(id.cap))),
      one_gib_first_stage(get<kCap, "FS1GP">(id.cap) != 0),
      five_level_first_stage(get<kCap, "FS5LP">(id.cap) != 0),
      invalidates_on_root_change(get<kCap, "ESRTPS">(id.cap) != 0),
      register_invalidation(get<kVer, "MAX">(id.version) < kFirstVersionWithoutRegisterInvalidation),
      device_tlb(get<kEcap, "DT">(id.ecap) != 0),
      pass_through(get<kEcap, "PT">(id.ecap) != 0),
      snoop_control(get<kEcap, "SC">(id.ecap) != 0),
      nested(get<kEcap, "NEST">(id.ecap) != 0),
      scalable(get<kEcap, "SMTS">(id.ecap) != 0),
      first_stage(get<kEcap, "FSTS">(id.ecap) != 0),
      second_stage(get<kEcap, "SSTS">(id.ecap) != 0),
      supervisor_requests(get<kEcap, "SRS">(id.ecap) != 0),
      extended_accessed(get<kEcap, "EAFS">(id.ecap) != 0),
      second_stage_marks(get<kEcap, "SSADS">(id.ecap) != 0),
      walk_snoop(get<kEcap, "SMPWCS">(id.ecap) != 0),
      rid_pasid(get<kEcap, "RPS">(id.ecap) != 0),
      rid_privilege(get<kEcap, "RPRIVS">(id.ecap) != 0),
      abort_mode(get<kEcap, "ADMS">(id.ecap) != 0),
      interrupt_remapping(get<kEcap, "IR">(id.ecap) != 0),
      pasids(get<kEcap, "PASID">(id.ecap) != 0),
      page_requests(get<kEcap, "PRS">(id.ecap) != 0),
      memory_types(get<kEcap, "MTS">(id.ecap) != 0) {}

// AW 4 (six levels) was withdrawn: the walker's formats end at five.
bool Capabilities::supports_width(std::uint64_t aw) const { return aw <= kAw57 && (address_widths >> aw & 1) != 0; }

namespace {

struct OptionalField {
  std::size_t word = 0;
  std::uint64_t mask = 0;
  bool Capabilities::* supported = nullptr;
};
template <const auto& kLayout, FieldName kName>
consteval OptionalField optional(bool Capabilities::* supported) {
  return {field_of<kLayout, kName>.word(), field_of<kLayout, kName>.mask(), supported};
}

constexpr std::array kOptionalContextFields{
    optional<kScalableContextEntry, "DTE">(&Capabilities::device_tlb),
    optional<kScalableContextEntry, "PASIDE">(&Capabilities::pasids),
    optional<kScalableContextEntry, "PRE">(&Capabilities::page_requests),
    optional<kScalableContextEntry, "RID_PRIV">(&Capabilities::rid_privilege),
};
constexpr std::array kOptionalProcessFields{
    optional<kPasidEntry, "SSADE">(&Capabilities::second_stage_marks),
    optional<kPasidEntry, "PWSNP">(&Capabilities::walk_snoop),
    optional<kPasidEntry, "PGSNP">(&Capabilities::snoop_control),
    optional<kPasidEntry, "CD">(&Capabilities::memory_types),
    optional<kPasidEntry, "EMTE">(&Capabilities::memory_types),
    optional<kPasidEntry, "PAT">(&Capabilities::memory_types),
    optional<kPasidEntry, "SRE">(&Capabilities::supervisor_requests),
    optional<kPasidEntry, "EAFE">(&Capabilities::extended_accessed),
};

}  // namespace

ReservedBits::ReservedBits(const Capabilities& capabilities) {
  for (std::size_t i = 0; i < context.size(); ++i) context[i] = kScalableContextEntry.must_be_zero_mask(i);
  for (std::size_t i = 0; i < process.size(); ++i) process[i] = kPasidEntry.must_be_zero_mask(i);
  for (const OptionalField& field : kOptionalContextFields)
    if (!(capabilities.*field.supported)) context[field.word] |= field.mask;
  for (const OptionalField& field : kOptionalProcessFields)
    if (!(capabilities.*field.supported)) process[field.word] |= field.mask;
}

static_assert(kWidthOfAw0 == 30, "AW 0 translates 30 bits");

}  // namespace iommu::vtd
