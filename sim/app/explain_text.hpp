// SPDX-License-Identifier: Apache-2.0
// Words for what `iommusim explain` prints: fields by name, rights, requesters, citations. Knows no family.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "sim/translation/family.hpp"
#include "sim/translation/layouts.hpp"

namespace iommu {

// "[<specification> §9.1]"
[[nodiscard]] std::string cite(const FamilyDescriptor& family, std::string_view section);
// "03:00.0"
[[nodiscard]] std::string bdf_text(RequesterId requester);
// "read and write"
[[nodiscard]] std::string rights_text(Permissions permissions);
[[nodiscard]] std::string_view class_text(FaultClass kind);
// "0x…" with 12 digits, more where the address has them.
[[nodiscard]] std::string address_text(std::uint64_t address);
// "4 KiB"
[[nodiscard]] std::string size_text(unsigned lg2);
// All words, with the digits of so many bytes each.
[[nodiscard]] std::string words_text(std::span<const std::uint64_t> words, unsigned bytes = 8);

// "R=1 W=1 ADDR=0x106". Small records show every field that carries meaning, large ones those that are not zero.
// Reserved and ignored fields appear only when they are set, and say so.
[[nodiscard]] std::string fields_text(const LayoutView& layout, std::span<const std::uint64_t> words);

// A field's place: "bit 7", "bits 51:12".
[[nodiscard]] std::string bits_text(const Field& field);
[[nodiscard]] std::string_view kind_text(FieldKind kind);

// A whole text as a number: decimal, or hexadecimal after 0x where that is allowed.
enum class Radix : std::uint8_t { Decimal, DecimalOrHex };
[[nodiscard]] std::optional<std::uint64_t> parse_number(std::string_view text, Radix radix);

// Letters and digits only, in upper case: what two spellings of a name have in common.
[[nodiscard]] std::string folded(std::string_view name);

}  // namespace iommu
