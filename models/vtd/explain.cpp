// SPDX-License-Identifier: Apache-2.0
// Which layout of spec.hpp an entry has, found from what was read before it. Nothing is decided here: a wrong answer
// would print wrong names and no more.
#include "models/vtd/explain.hpp"

#include <array>

#include "models/vtd/capabilities.hpp"
#include "models/vtd/format.hpp"
#include "models/vtd/register_rows.hpp"
#include "models/vtd/spec.hpp"

namespace iommu::vtd {

namespace {

// clang-format off
constexpr std::array kLayouts{
    // Registers
    view_of<kVer>(), view_of<kCap>(), view_of<kEcap>(), view_of<kGcmd>(), view_of<kGsts>(), view_of<kRtaddr>(),
    view_of<kCcmd>(), view_of<kFsts>(), view_of<kPmen>(), view_of<kIqh>(), view_of<kIqt>(), view_of<kIqa>(),
    view_of<kIcs>(), view_of<kIqercd>(), view_of<kIrta>(), view_of<kIva>(), view_of<kIotlb>(), view_of<kFrcd>("FRCD_REG"),
    view_of<kEventControl>("FECTL_REG"), view_of<kEventControl>("IECTL_REG"),
    view_of<kEventData>("FEDATA_REG"), view_of<kEventData>("IEDATA_REG"),
    view_of<kEventAddress>("FEADDR_REG"), view_of<kEventAddress>("IEADDR_REG"),
    view_of<kEventUpperAddress>("FEUADDR_REG"), view_of<kEventUpperAddress>("IEUADDR_REG"),
    // Device tables
    view_of<kRootEntry>("root entry"), view_of<kScalableRootEntry>("scalable root entry"),
    view_of<kContextEntry>("context entry"), view_of<kScalableContextEntry>("scalable context entry"),
    view_of<kPasidDirectoryEntry>("PASID directory entry"), view_of<kPasidEntry>("PASID table entry"),
    // First stage
    view_of<kFirstStagePage>("FS-PTE"),
    view_of<kFirstStageTable>("FS-PDE"), view_of<kFirstStagePage>("FS-PDE"),
    view_of<kFirstStageTable>("FS-PDPE"), view_of<kFirstStagePage>("FS-PDPE"),
    view_of<kFirstStageTable>("FS-PML4E"), view_of<kFirstStageTable>("FS-PML5E"),
    // Second stage
    view_of<kSecondStagePage>("SS-PTE"),
    view_of<kSecondStageTable>("SS-PDE"), view_of<kSecondStagePage>("SS-PDE"),
    view_of<kSecondStageTable>("SS-PDPE"), view_of<kSecondStagePage>("SS-PDPE"),
    view_of<kSecondStageTable>("SS-PML4E"), view_of<kSecondStageTable>("SS-PML5E"),
    // Invalidation descriptors
    view_of<kContextCacheDescriptor>("cc_inv_dsc"), view_of<kPasidCacheDescriptor>("pc_inv_dsc"),
    view_of<kIotlbDescriptor>("iotlb_inv_dsc"), view_of<kPasidIotlbDescriptor>("p_iotlb_inv_dsc"),
    view_of<kDeviceTlbDescriptor>("dev_tlb_inv_dsc"), view_of<kPasidDeviceTlbDescriptor>("p_dev_tlb_inv_dsc"),
    view_of<kInterruptDescriptor>("iec_inv_dsc"), view_of<kWaitDescriptor>("inv_wait_dsc"),
};
// clang-format on

constexpr const LayoutView* find(std::string_view name) { return find_layout(kLayouts, name); }
const LayoutView* find(std::string_view name, std::span<const Field> fields) {
  return find_layout(kLayouts, name, fields);
}

// Root and context entries differ in size between the modes, so the reads themselves tell them apart.
const LayoutView* device_table(std::span<const DeviceTableRead> so_far) {
  const bool scalable = so_far.front().words.size() * sizeof(std::uint64_t) != kRootEntryBytes;
  constexpr std::array kLegacy{find("root entry"), find("context entry")};
  constexpr std::array kScalable{find("scalable root entry"), find("scalable context entry"),
                                 find("PASID directory entry"), find("PASID table entry")};
  const std::span<const LayoutView* const> chain =
      scalable ? std::span<const LayoutView* const>(kScalable) : std::span<const LayoutView* const>(kLegacy);
  return so_far.size() <= chain.size() ? chain[so_far.size() - 1] : nullptr;
}

const LayoutView* page_entry(const PageEntryRead& read) {
  constexpr std::array<std::string_view, 5> kFirst{"FS-PTE", "FS-PDE", "FS-PDPE", "FS-PML4E", "FS-PML5E"};
  constexpr std::array<std::string_view, 5> kSecond{"SS-PTE", "SS-PDE", "SS-PDPE", "SS-PML4E", "SS-PML5E"};
  if (read.level >= kFirst.size()) return nullptr;
  const bool may_be_page = read.level <= kLargestLeafLevel;
  if (read.stage == Stage::Stage1) {
    const bool page = read.level == 0 || (may_be_page && get<kFirstStagePage, "PS">(read.entry) != 0);
    return find(kFirst[read.level], page ? std::span<const Field>(kFirstStagePage.fields) : kFirstStageTable.fields);
  }
  const bool page = read.level == 0 || (may_be_page && get<kSecondStagePage, "PS">(read.entry) != 0);
  return find(kSecond[read.level], page ? std::span<const Field>(kSecondStagePage.fields) : kSecondStageTable.fields);
}

// FRCD, IVA and IOTLB stand where the unit's own capabilities say.
std::vector<RegisterPlace> registers(IommuCore& core) {
  constexpr unsigned kWord = sizeof(std::uint64_t);
  Identity identity;
  identity.version = static_cast<std::uint32_t>(core.mmio_read(offset::kVer, sizeof(std::uint32_t)));
  identity.cap = core.mmio_read(offset::kCap, kWord);
  identity.ecap = core.mmio_read(offset::kEcap, kWord);
  std::vector<RegisterPlace> places;
  for (const RegisterRow& row : register_rows(identity)) {
    if (row.name == "FRCD_REG high") continue;
    const bool record = row.name == "FRCD_REG low";
    const std::string_view name = record ? "FRCD_REG" : row.name;
    places.push_back({name, row.offset, record ? 2 * kWord : row.bytes, find(name)});
  }
  return places;
}

}  // namespace

constinit const FamilyLayouts kFamilyLayouts{
    .all = kLayouts, .registers = registers, .device_table = device_table, .page_entry = page_entry};

}  // namespace iommu::vtd
