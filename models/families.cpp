// SPDX-License-Identifier: Apache-2.0
#include "models/families.hpp"

#include <algorithm>
#include <array>

#include "models/amdvi/family.hpp"
#include "models/flat/family.hpp"
#include "models/smmuv3/family.hpp"
#include "models/vtd/family.hpp"

namespace iommu {

std::span<const FamilyDescriptor* const> families() {
  static const std::array kFamilies{
      &vtd::family(),
      &amdvi::family(),
      &smmuv3::family(),
  };
  return kFamilies;
}

const FamilyDescriptor* find_family(std::string_view name) {
  const auto all = families();
  const auto found = std::ranges::find(all, name, &FamilyDescriptor::name);
  return found == all.end() ? nullptr : *found;
}

const FamilyDescriptor* find_unit(std::string_view name) {
  if (const FamilyDescriptor* family = find_family(name); family != nullptr) return family;
  for (const FamilyDescriptor* unit : {&flat::tce_unit(), &flat::gart_unit()})
    if (unit->name == name) return unit;
  return nullptr;
}

}  // namespace iommu
