// SPDX-License-Identifier: Apache-2.0
#include "models/amdvi/capabilities.hpp"

#include "models/amdvi/format.hpp"

namespace iommu::amdvi {

namespace {
// Of a unit made from features. Their values are choices; the specification leaves them to the implementation.
constexpr unsigned kCapabilityRevision = 1;
constexpr unsigned kPasidBits = 16;  // as current hardware has them [linux amd_iommu_types.h, PASID_MASK]
constexpr unsigned kInput39 = 39, kInput48 = 48, kInput57 = 57;
constexpr unsigned kMinHostBits = 36, kMaxHostBits = 52;
constexpr unsigned kDefaultHostBits = 52;  // PAsize 0: a recorder without capability block
constexpr unsigned kLevels4 = 4, kLevels5 = 5;
constexpr unsigned kGva48 = 2, kGva57 = 3;  // GVAsize

constexpr std::uint64_t flag(bool value) { return value ? 1 : 0; }
}  // namespace

std::string unsupported(const UnitFeatures& f) {
  if (f.input_address_bits != kInput39 && f.input_address_bits != kInput48 && f.input_address_bits != kInput57)
    return "input_address_bits must be 39, 48 or 57";
  if (f.host_address_bits < kMinHostBits || f.host_address_bits > kMaxHostBits)
    return "host_address_bits must be 36 to 52";
  if (f.nested && f.input_address_bits == kInput39)
    return "nested translation needs input_address_bits of 48 or 57: guest tables have at least four levels";
  if (!f.coherent_walks) return "table walks of this family are always coherent";
  return {};
}

Identity compose(const UnitFeatures& f) {
  const bool five = f.input_address_bits == kInput57;
  const unsigned levels_code = (five ? kLevels5 : kLevels4) - kFewestTranslationLevels;
  Identity id;
  id.capability_header = static_cast<std::uint32_t>(pack<kCapabilityHeader>({
      {"CapID", kCapabilityId},
      {"CapType", kCapabilityType},
      {"CapRev", kCapabilityRevision},
      {"IotlbSup", flag(f.device_tlb)},
      {"NpCache", flag(f.caching_mode)},
      {"EFRSup", 1},
      {"CapExt", 1},
  }));
  id.misc_info0 = static_cast<std::uint32_t>(pack<kMiscInfo0>({
      {"GVAsize", five ? kGva57 : kGva48},
      {"PAsize", f.host_address_bits},
      {"VAsize", five ? kInput57 : kInput48},
  }));
  id.extended_features = pack<kExtendedFeatures>({
      {"PreFSup", 1},
      {"GTSup", 1},
      {"IASup", 1},
      {"HESup", 1},
      {"HATS", levels_code},
      {"GATS", levels_code},
      {"GLXSup", 1},
      {"PASMax", kPasidBits - 1},
      {"USSup", 1},
      {"MsiCapMmioSup", 1},
      {"GIoSup", 1},
      {"HASup", flag(f.accessed_dirty)},
      {"HDSup", flag(f.accessed_dirty)},
      {"V2HDDisSup", 1},
      {"GAUpdateDisSup", 1},
  });
  return id;
}

namespace {
template <FieldName kName>
unsigned feature(const Identity& id) {
  return static_cast<unsigned>(get<kExtendedFeatures, kName>(id.extended_features));
}
}  // namespace

Capabilities::Capabilities(const Identity& id)
    : host_address_bits(static_cast<unsigned>(get<kMiscInfo0, "PAsize">(id.misc_info0))),
      host_levels(feature<"HATS">(id) == kNoHostTranslation ? 0 : kFewestTranslationLevels + feature<"HATS">(id)),
      guest_levels(kFewestTranslationLevels + feature<"GATS">(id)),
      largest_glx(feature<"GLXSup">(id)),
      pasid_bits(feature<"PASMax">(id) + 1),
      device_tlb(get<kCapabilityHeader, "IotlbSup">(id.capability_header) != 0),
      prefetch(feature<"PreFSup">(id) != 0),
      page_requests(feature<"PPRSup">(id) != 0),
      enhanced_page_requests(feature<"EPHSup">(id) != 0),
      guest_translation(feature<"GTSup">(id) != 0),
      guest_io(feature<"GIoSup">(id) != 0),
      user_supervisor(feature<"USSup">(id) != 0),
      secure_ats(feature<"SATSSup">(id) != 0),
      invalidate_all(feature<"IASup">(id) != 0),
      iotlb_types(feature<"InvIotlbTypeSup">(id) != 0),
      hardware_error_registers(feature<"HESup">(id) != 0),
      msi_in_mmio(feature<"MsiCapMmioSup">(id) != 0),
      host_accessed(feature<"HASup">(id) != 0),
      host_dirty(feature<"HDSup">(id) != 0),
      guest_accessed_disable(feature<"GAUpdateDisSup">(id) != 0),
      guest_dirty_disable(feature<"V2HDDisSup">(id) != 0) {
  if (host_address_bits == 0) host_address_bits = kDefaultHostBits;
}

}  // namespace iommu::amdvi
