// SPDX-License-Identifier: Apache-2.0
#include "models/families.hpp"

#include <algorithm>
#include <array>

#include "models/amdvi/family.hpp"
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

}  // namespace iommu
