// SPDX-License-Identifier: Apache-2.0
// The families there are. Nothing registers itself: a family is one line in families.cpp.
#pragma once

#include <span>
#include <string_view>

#include "sim/translation/family.hpp"

namespace iommu {

// In the order in which reports list them.
[[nodiscard]] std::span<const FamilyDescriptor* const> families();
// Null when there is no family of that name.
[[nodiscard]] const FamilyDescriptor* find_family(std::string_view name);

// A family, or hardware that only one strategy runs on and that is compared with no family. Null when there is neither.
[[nodiscard]] const FamilyDescriptor* find_unit(std::string_view name);

}  // namespace iommu
