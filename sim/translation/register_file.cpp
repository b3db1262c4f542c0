// SPDX-License-Identifier: Apache-2.0
#include "sim/translation/register_file.hpp"

#include <utility>

#include "sim/base/check.hpp"

namespace iommu {

namespace {
constexpr std::uint64_t kLowHalf = 0xffffffff;
constexpr unsigned kHalfBits = 32;
constexpr unsigned kHalfBytes = 4, kWholeBytes = 8;
}  // namespace

RegisterFile::RegisterFile(std::vector<RegisterRow> rows, std::uint64_t size)
    : rows_(std::move(rows)), values_(rows_.size()), by_word_(size / kHalfBytes, kNone) {
  for (std::size_t number = 0; number < rows_.size(); ++number) {
    const RegisterRow& row = rows_[number];
    SIM_CHECK(row.bytes == kHalfBytes || row.bytes == kWholeBytes, "registers have 32 or 64 bits");
    SIM_CHECK(row.offset % row.bytes == 0 && row.offset + row.bytes <= size, "a register lies in its block");
    for (std::uint64_t at = row.offset; at < row.offset + row.bytes; at += kHalfBytes) {
      SIM_CHECK(by_word_[at / kHalfBytes] == kNone, "registers do not overlap");
      by_word_[at / kHalfBytes] = static_cast<std::uint16_t>(number);
    }
  }
  reset();
}

void RegisterFile::reset() {
  for (std::size_t number = 0; number < rows_.size(); ++number) values_[number] = rows_[number].reset;
}

std::optional<std::size_t> RegisterFile::row_at(std::uint64_t offset) const {
  const std::uint64_t word = offset / kHalfBytes;
  if (word >= by_word_.size() || by_word_[word] == kNone) return std::nullopt;
  return by_word_[word];
}

bool RegisterFile::is_whole(std::uint64_t offset, unsigned bytes) const {
  const auto number = row_at(offset);
  return number && rows_[*number].bytes == bytes && rows_[*number].offset == offset;
}

std::uint64_t RegisterFile::read(std::uint64_t offset, unsigned bytes) const {
  if ((bytes != kHalfBytes && bytes != kWholeBytes) || offset % bytes != 0) return 0;
  if (bytes == kWholeBytes && !is_whole(offset, bytes))
    return read(offset, kHalfBytes) | read(offset + kHalfBytes, kHalfBytes) << kHalfBits;
  const auto number = row_at(offset);
  if (!number) return 0;
  if (bytes == kWholeBytes) return values_[*number];
  return (offset == rows_[*number].offset ? values_[*number] : values_[*number] >> kHalfBits) & kLowHalf;
}

RegisterChanges RegisterFile::write(std::uint64_t offset, unsigned bytes, std::uint64_t value) {
  RegisterChanges changes;
  if ((bytes != kHalfBytes && bytes != kWholeBytes) || offset % bytes != 0) return changes;
  if (bytes == kHalfBytes) {
    write_part(offset, value & kLowHalf, kLowHalf, changes);
  } else if (is_whole(offset, bytes)) {
    write_part(offset, value, ~0ULL, changes);
  } else {
    write_part(offset, value & kLowHalf, kLowHalf, changes);
    write_part(offset + kHalfBytes, value >> kHalfBits, kLowHalf, changes);
  }
  return changes;
}

void RegisterFile::write_part(std::uint64_t offset, std::uint64_t value, std::uint64_t lanes,
                              RegisterChanges& changes) {
  const auto number = row_at(offset);
  if (!number) return;
  const RegisterRow& row = rows_[*number];
  if (offset != row.offset) {
    value <<= kHalfBits;
    lanes <<= kHalfBits;
  }
  std::uint64_t& current = values_[*number];
  changes.items[changes.count++] = {.row = *number, .before = current, .written = value, .lanes = lanes};
  current = (current & ~(row.writable & lanes)) | (value & row.writable & lanes);
  current &= ~(value & row.cleared_by_one & lanes);
}

}  // namespace iommu
