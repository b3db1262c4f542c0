// SPDX-License-Identifier: Apache-2.0
// Layout tables: registers, table entries and descriptors as data. One row per field; the reserved mask is computed
// from the rows and `is_partition()` proves in a static_assert that every bit has exactly one row.
//
//   inline constexpr auto kPte = layout("SS-PTE", "§9.8", 64, {{"R", 0, 0}, {"W", 1, 1}, {"ADDR", 51, 12}, ...});
//   static_assert(kPte.is_partition());
//   get<kPte, "ADDR">(entry)   with<kPte, "R">(entry, 1)   pack<kPte>({{"R", 1}, {"W", 1}})   kPte.must_be_zero_mask()
//
// Layouts may be wider than a word (descriptors, context entries): bits are then counted through the whole record and
// the functions take the record's words. A field never crosses a word.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string_view>
#include <utility>

namespace iommu {

enum class FieldKind : std::uint8_t {
  Value,       // carries meaning
  MustBeZero,  // reserved: a non-zero value is an error where the specification checks it
  Ignored,     // available to software, or reserved-and-preserved: never checked
};

struct Field {
  std::string_view name;
  unsigned msb = 0;
  unsigned lsb = 0;
  FieldKind kind = FieldKind::Value;

  [[nodiscard]] constexpr unsigned width() const { return msb - lsb + 1; }
  [[nodiscard]] constexpr std::size_t word() const { return lsb / 64; }
  [[nodiscard]] constexpr unsigned shift() const { return lsb % 64; }
  [[nodiscard]] constexpr std::uint64_t value_mask() const { return width() == 64 ? ~0ULL : (1ULL << width()) - 1; }
  [[nodiscard]] constexpr std::uint64_t mask() const { return value_mask() << shift(); }
};

inline constexpr std::size_t kMaxLayoutWords = 16;

template <std::size_t N>
struct Layout {
  std::string_view name;      // the specification's name
  std::string_view citation;  // section in the family's pinned specification
  unsigned width = 64;        // in bits, a multiple of 32
  std::array<Field, N> fields;
  // Kept, not computed from the fields when asked: page walks ask for every entry.
  std::array<std::uint64_t, kMaxLayoutWords> must_be_zero{};

  [[nodiscard]] constexpr std::size_t words() const { return (width + 63) / 64; }

  // Every bit of the record is covered by exactly one field, and no field crosses a word.
  [[nodiscard]] constexpr bool is_partition() const {
    std::array<std::uint64_t, kMaxLayoutWords> seen{};
    for (const Field& f : fields) {
      if (f.lsb > f.msb || f.msb >= width || f.msb / 64 != f.lsb / 64) return false;
      if ((seen[f.word()] & f.mask()) != 0) return false;
      seen[f.word()] |= f.mask();
    }
    for (unsigned bit = 0; bit < width; ++bit)
      if ((seen[bit / 64] >> (bit % 64) & 1) == 0) return false;
    return true;
  }

  [[nodiscard]] constexpr std::uint64_t mask_of(FieldKind kind, std::size_t word = 0) const {
    std::uint64_t mask = 0;
    for (const Field& f : fields)
      if (f.kind == kind && f.word() == word) mask |= f.mask();
    return mask;
  }
  [[nodiscard]] constexpr std::uint64_t must_be_zero_mask(std::size_t word = 0) const { return must_be_zero[word]; }
  // Whether a reserved bit is set anywhere in the record.
  [[nodiscard]] constexpr bool violates_reserved(std::span<const std::uint64_t> record) const {
    for (std::size_t w = 0; w < words(); ++w)
      if ((record[w] & must_be_zero_mask(w)) != 0) return true;
    return false;
  }
  [[nodiscard]] constexpr const Field* find(std::string_view field_name) const {
    for (const Field& f : fields)
      if (f.name == field_name) return &f;
    return nullptr;
  }
};

template <std::size_t N>
constexpr Layout<N> layout(std::string_view name, std::string_view citation, unsigned width, const Field (&rows)[N]) {
  Layout<N> result{name, citation, width, {}};
  std::copy(rows, rows + N, result.fields.begin());
  for (std::size_t w = 0; w < result.words(); ++w) result.must_be_zero[w] = result.mask_of(FieldKind::MustBeZero, w);
  return result;
}

// A string usable as a template argument, so that a misspelt field name does not compile.
template <std::size_t N>
struct FieldName {
  char text[N]{};
  // Implicit on purpose: it makes get<kPte, "ADDR"> readable.
  constexpr FieldName(const char (&s)[N]) { std::copy_n(s, N, text); }  // NOLINT(google-explicit-constructor)
  [[nodiscard]] constexpr std::string_view view() const { return {text, N - 1}; }
};

namespace detail {
template <const auto& kLayout, FieldName kName>
consteval Field find_field() {
  const Field* f = kLayout.find(kName.view());
  if (f == nullptr) throw "no such field in this layout";
  return *f;
}
}  // namespace detail

template <const auto& kLayout, FieldName kName>
inline constexpr Field field_of = detail::find_field<kLayout, kName>();

template <const auto& kLayout, FieldName kName>
constexpr std::uint64_t get(std::uint64_t word) {
  constexpr Field f = field_of<kLayout, kName>;
  static_assert(f.word() == 0);
  return word >> f.shift() & f.value_mask();
}
template <const auto& kLayout, FieldName kName>
constexpr std::uint64_t get(std::span<const std::uint64_t> record) {
  constexpr Field f = field_of<kLayout, kName>;
  return record[f.word()] >> f.shift() & f.value_mask();
}

// The word with one field replaced; a value too wide for the field is cut to it.
template <const auto& kLayout, FieldName kName>
[[nodiscard]] constexpr std::uint64_t with(std::uint64_t word, std::uint64_t value) {
  constexpr Field f = field_of<kLayout, kName>;
  static_assert(f.word() == 0);
  return (word & ~f.mask()) | (value & f.value_mask()) << f.shift();
}
template <const auto& kLayout, FieldName kName>
constexpr void put(std::span<std::uint64_t> record, std::uint64_t value) {
  constexpr Field f = field_of<kLayout, kName>;
  record[f.word()] = (record[f.word()] & ~f.mask()) | (value & f.value_mask()) << f.shift();
}

// A field's bits in place, for masks and for combining with runtime widths.
template <const auto& kLayout, FieldName kName>
inline constexpr std::uint64_t mask_of = field_of<kLayout, kName>.mask();

using FieldValue = std::pair<std::string_view, std::uint64_t>;

// A whole record from named values; fields not named are zero. Unknown names and values that do not fit throw, which in
// a constant expression is a compile error.
template <const auto& kLayout>
constexpr auto pack_record(std::initializer_list<FieldValue> values) {
  std::array<std::uint64_t, kLayout.words()> record{};
  for (const auto& [name, value] : values) {
    const Field* f = kLayout.find(name);
    if (f == nullptr) throw "no such field in this layout";
    if ((value & ~f->value_mask()) != 0) throw "value does not fit its field";
    record[f->word()] |= value << f->shift();
  }
  return record;
}
template <const auto& kLayout>
constexpr std::uint64_t pack(std::initializer_list<FieldValue> values) {
  static_assert(kLayout.words() == 1);
  return pack_record<kLayout>(values)[0];
}

// Bits [low, high) of a word: for masks that depend on a runtime width such as the host address width.
constexpr std::uint64_t bits_between(unsigned low, unsigned high) {
  const std::uint64_t below_high = high >= 64 ? ~0ULL : (1ULL << high) - 1;
  const std::uint64_t below_low = low >= 64 ? ~0ULL : (1ULL << low) - 1;
  return below_high & ~below_low;
}

}  // namespace iommu
