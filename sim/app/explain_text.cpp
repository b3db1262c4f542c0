// SPDX-License-Identifier: Apache-2.0
#include "sim/app/explain_text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>

namespace iommu {

std::string cite(const FamilyDescriptor& family, std::string_view section) {
  return fmt::format("[{}{} {}]", family.specification, section.starts_with("§") ? "" : ",", section);
}

std::string bdf_text(RequesterId requester) {
  return fmt::format("{:02x}:{:02x}.{}", requester.bus(), requester.device(), requester.function());
}

std::string rights_text(Permissions permissions) {
  if (permissions.none()) return "no access";
  if (permissions.read && permissions.write) return "read and write";
  return permissions.read ? "read only" : "write only";
}

std::string_view class_text(FaultClass kind) {
  constexpr std::array<std::string_view, 10> kNames{
      "no context",        "invalid context", "not present",         "no permission",       "malformed entry",
      "address too large", "memory failed",   "request not allowed", "interrupt remapping", "malformed command"};
  return kNames[static_cast<std::size_t>(kind)];
}

std::string address_text(std::uint64_t address) { return fmt::format("{:#014x}", address); }

std::string size_text(unsigned lg2) {
  constexpr std::array<std::string_view, 7> kUnits{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  return fmt::format("{} {}", 1U << lg2 % 10, kUnits[lg2 / 10]);
}

std::string words_text(std::span<const std::uint64_t> words, unsigned bytes) {
  std::string text;
  for (const std::uint64_t word : words)
    text += fmt::format("{}{:#0{}x}", text.empty() ? "" : " ", word, 2 + 2 * std::min(bytes, 8U));
  return text;
}

std::string fields_text(const LayoutView& layout, std::span<const std::uint64_t> words) {
  constexpr std::ptrdiff_t kShown = 8;  // a record with more fields than that shows those that are set
  const bool shows_all = std::ranges::count(layout.fields, FieldKind::Value, &Field::kind) <= kShown;
  std::string text;
  bool is_first = true, is_hidden = false;
  for (const Field& field : layout.fields) {
    if (field.word() >= words.size()) continue;
    const std::uint64_t value = words[field.word()] >> field.shift() & field.value_mask();
    const bool carries = field.kind == FieldKind::Value;
    const bool shown = value != 0 || (carries && (shows_all || is_first));
    is_first = is_first && !carries;
    if (!shown) {
      is_hidden = is_hidden || carries;
      continue;
    }
    text += fmt::format("{}{}={}", text.empty() ? "" : " ", field.name,
                        value < 10 ? fmt::format("{}", value) : fmt::format("{:#x}", value));
    if (field.kind == FieldKind::MustBeZero) text += "(reserved!)";
    if (field.kind == FieldKind::Ignored) text += "(ignored)";
  }
  return is_hidden ? text + " others=0" : text;
}

std::string bits_text(const Field& field) {
  return field.msb == field.lsb ? fmt::format("bit {}", field.lsb) : fmt::format("bits {}:{}", field.msb, field.lsb);
}

std::string_view kind_text(FieldKind kind) {
  constexpr std::array<std::string_view, 3> kNames{"value", "reserved", "ignored"};
  return kNames[static_cast<std::size_t>(kind)];
}

std::optional<std::uint64_t> parse_number(std::string_view text, Radix radix) {
  const bool is_hex = radix == Radix::DecimalOrHex && (text.starts_with("0x") || text.starts_with("0X"));
  if (is_hex) text.remove_prefix(2);
  std::uint64_t value = 0;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, value, is_hex ? 16 : 10);
  return parsed.ec == std::errc() && parsed.ptr == end ? std::optional(value) : std::nullopt;
}

std::string folded(std::string_view name) {
  std::string text;
  for (const char c : name)
    if (std::isalnum(static_cast<unsigned char>(c)) != 0)
      text += static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return text;
}

}  // namespace iommu
