// SPDX-License-Identifier: Apache-2.0
// A flat table, editable: one entry a page, from the first address of its window on.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "models/flat/format.hpp"
#include "sim/translation/table_driver.hpp"

namespace iommu::flat {

struct Window {
  std::uint64_t first = 0;
  unsigned size_lg2 = 32;
  [[nodiscard]] constexpr std::uint64_t entries() const { return 1ULL << (size_lg2 - kPageLg2); }
  [[nodiscard]] constexpr std::uint64_t last() const { return first + ((1ULL << size_lg2) - 1); }
  [[nodiscard]] constexpr bool holds(std::uint64_t address) const { return address >= first && address <= last(); }
};

// log2 of the 4 KiB pages that a table takes.
[[nodiscard]] constexpr unsigned table_pages_lg2(Window window, unsigned entry_bytes) {
  const std::uint64_t bytes = window.entries() * entry_bytes;
  return bytes <= kPageSize.value() ? 0 : static_cast<unsigned>(std::bit_width(bytes - 1)) - kPageLg2;
}

enum class TableOwner : std::uint8_t { Caller, Unit };

template <class Format>
class FlatTable final : public PageTable {
 public:
  // `unmapped`: what an entry holds that maps nothing; it may lead to a page nobody minds.
  FlatTable(Window window, std::uint64_t address, std::uint64_t unmapped, TableMemory& memory, TableOwner owner)
      : window_(window), address_(address), unmapped_(unmapped), memory_(memory), owner_(owner) {}

  [[nodiscard]] TableRoot root() const override {
    return {.address = address_, .input_bits = static_cast<std::uint8_t>(window_.size_lg2)};
  }

  TableEdit map(const MapRequest& request) override {
    TableEdit edit;
    std::optional<std::uint64_t> line;
    for (Bytes done; done < request.length; done += kPageSize) {
      const std::uint64_t input = request.input + done.value();
      const std::uint64_t output = request.output + done.value();
      if (!window_.holds(input) || !Format::can_hold(output)) {
        edit.status = EditStatus::OutOfRange;
        return edit;
      }
      if (read(input) != unmapped_) {
        edit.status = EditStatus::AlreadyMapped;
        return edit;
      }
      write(input, Format::encode({output, request.permissions}), edit, line);
      edit.added = true;
      ++edit.pages_done;
    }
    return edit;
  }
  TableEdit unmap(std::uint64_t input, Bytes length, ReclaimTables) override {
    TableEdit edit;
    std::optional<std::uint64_t> line;
    for (Bytes done; done < length; done += kPageSize) {
      const std::uint64_t page = input + done.value();
      if (!window_.holds(page) || read(page) == unmapped_) {
        edit.status = EditStatus::NotMapped;
        return edit;
      }
      write(page, unmapped_, edit, line);
      edit.modified = true;
      ++edit.pages_done;
    }
    return edit;
  }
  [[nodiscard]] std::optional<MappedLeaf> lookup(std::uint64_t input) const override {
    if (!window_.holds(input)) return std::nullopt;
    const std::uint64_t raw = read(input);
    const auto entry = Format::decode(raw);
    if (raw == unmapped_ || !entry) return std::nullopt;
    return MappedLeaf{input >> kPageLg2 << kPageLg2, entry->address, kPageLg2, entry->allowed};
  }
  std::uint64_t for_each_leaf(AddressRange range, const std::function<void(const MappedLeaf&)>& visit) const override {
    return scan_leaves(range, ~0ULL, visit).entries_read;
  }
  LeafScan scan_leaves(AddressRange range, std::uint64_t max_entries,
                       const std::function<void(const MappedLeaf&)>& visit) const override {
    LeafScan scan;
    const std::uint64_t last = std::min(range.last, window_.last());
    for (std::uint64_t at = std::max(range.first, window_.first) >> kPageLg2; at <= last >> kPageLg2; ++at) {
      if (scan.entries_read == max_entries) {
        scan.resume_at = at << kPageLg2;
        return scan;
      }
      ++scan.entries_read;
      if (const auto leaf = lookup(at << kPageLg2)) visit(*leaf);
    }
    return scan;
  }
  [[nodiscard]] std::uint64_t table_pages() const override {
    return owner_ == TableOwner::Unit ? 0 : 1ULL << table_pages_lg2(window_, Format::kEntryBytes);
  }
  std::vector<std::uint64_t> detach_all_tables() override {
    std::vector<std::uint64_t> pages;
    for (std::uint64_t i = 0; i < table_pages(); ++i) pages.push_back(address_ + (i << kPageLg2));
    return pages;
  }

 private:
  [[nodiscard]] std::uint64_t entry_address(std::uint64_t input) const {
    return address_ + ((input - window_.first) >> kPageLg2) * Format::kEntryBytes;
  }
  [[nodiscard]] std::uint64_t read(std::uint64_t input) const {
    const std::uint64_t at = entry_address(input);
    const std::uint64_t word = memory_.read64(at & ~7ULL);
    if constexpr (Format::kEntryBytes == 8) return word;
    return (at & 4) != 0 ? word >> 32 : word & 0xffffffff;
  }
  void write(std::uint64_t input, std::uint64_t raw, TableEdit& edit, std::optional<std::uint64_t>& line) {
    const std::uint64_t at = entry_address(input);
    if constexpr (Format::kEntryBytes == 8) {
      memory_.write64(at, raw);
    } else {
      const std::uint64_t word = memory_.read64(at & ~7ULL);
      memory_.write64(at & ~7ULL, (at & 4) != 0 ? (word & 0xffffffff) | raw << 32 : (word >> 32 << 32) | raw);
    }
    ++edit.entries_written;
    if (line != at / kLineBytes) ++edit.lines_touched;
    line = at / kLineBytes;
  }
  static constexpr std::uint64_t kLineBytes = 64;

  Window window_;
  std::uint64_t address_;
  std::uint64_t unmapped_;
  TableMemory& memory_;
  TableOwner owner_;
};

}  // namespace iommu::flat
