// SPDX-License-Identifier: Apache-2.0
// The one register engine: registers as rows of a table, 32 or 64 bits wide, accessed whole or by 32-bit half. It
// knows which bits software may write or clear; what a write causes is the family's business, row by row.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace iommu {

struct RegisterRow {
  std::string_view name;  // the specification's
  std::uint64_t offset = 0;
  unsigned bytes = 4;  // 4 or 8
  std::uint64_t reset = 0;
  std::uint64_t writable = 0;        // bits that take what software writes
  std::uint64_t cleared_by_one = 0;  // bits that software clears by writing one
};

// One register that a write touched. Bits outside `lanes` were not part of the access.
struct RegisterChange {
  std::size_t row = 0;
  std::uint64_t before = 0;
  std::uint64_t written = 0;
  std::uint64_t lanes = 0;
};
// An 8-byte access may cover two 4-byte registers.
struct RegisterChanges {
  std::array<RegisterChange, 2> items;
  std::size_t count = 0;
  [[nodiscard]] const RegisterChange* begin() const { return items.data(); }
  [[nodiscard]] const RegisterChange* end() const { return items.data() + count; }
};

class RegisterFile {
 public:
  // Rows must not overlap and must lie, aligned to their size, within `size` bytes. Row numbers are table order.
  RegisterFile(std::vector<RegisterRow> rows, std::uint64_t size);

  // What software reads. Unaligned, oversized or unassigned accesses read as zero.
  [[nodiscard]] std::uint64_t read(std::uint64_t offset, unsigned bytes) const;
  // Applies what software writes and says which registers were touched; nothing for unassigned or unaligned accesses.
  RegisterChanges write(std::uint64_t offset, unsigned bytes, std::uint64_t value);

  // Hardware's own view.
  [[nodiscard]] std::uint64_t value(std::size_t row) const { return values_[row]; }
  void set(std::size_t row, std::uint64_t value) { values_[row] = value; }
  [[nodiscard]] const RegisterRow& row(std::size_t number) const { return rows_[number]; }
  [[nodiscard]] std::size_t rows() const { return rows_.size(); }
  void reset();

 private:
  static constexpr std::uint16_t kNone = 0xffff;
  [[nodiscard]] std::optional<std::size_t> row_at(std::uint64_t offset) const;
  [[nodiscard]] bool is_whole(std::uint64_t offset, unsigned bytes) const;
  void write_part(std::uint64_t offset, std::uint64_t value, std::uint64_t lanes, RegisterChanges& changes);

  std::vector<RegisterRow> rows_;
  std::vector<std::uint64_t> values_;
  std::vector<std::uint16_t> by_word_;  // 4-byte word number to row
};

}  // namespace iommu
