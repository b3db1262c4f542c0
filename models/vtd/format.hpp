// SPDX-License-Identifier: Apache-2.0
// The two page-table formats of VT-d for the shared walker and editor. Levels count from the leaf: 0 is the FS-PTE or
// SS-PTE, 1 the PDE, 2 the PDPTE, 3 the PML4E, 4 the PML5E.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "models/vtd/spec.hpp"
#include "sim/translation/page_format.hpp"

namespace iommu::vtd {

inline constexpr unsigned kIndexBits = 9;
inline constexpr Level kTopLevel4 = 3, kTopLevel5 = 4;
inline constexpr Level kLargestLeafLevel = 2;  // 1 GiB

constexpr unsigned span_lg2_of(Level level) { return kPageLg2 + kIndexBits * level; }
constexpr std::uint64_t entry_offset_of(Level level, std::uint64_t input) {
  return (input >> span_lg2_of(level) & bits_between(0, kIndexBits)) * sizeof(std::uint64_t);
}

// What configuration decides about second-stage entries.
struct SecondStageOptions {
  unsigned host_address_bits = 48;
  std::uint8_t large_pages = 0;  // CAP.SSLPS: bit 0 2 MiB, bit 1 1 GiB
  bool snoop_control = false;    // ECAP.SC
  bool device_tlb = false;       // ECAP.DT
  bool marks = false;            // SSADE: accessed and dirty bits are kept
  bool marks_forbidden = false;  // an entry that needs a mark faults instead (SSS.5)
};

class SecondStageFormat {
 public:
  using Options = SecondStageOptions;
  constexpr explicit SecondStageFormat(Options options) : options_(options) {
    const std::uint64_t beyond_host = mask_of<kSecondStageTable, "ADDR"> & bits_between(options.host_address_bits, 64);
    reserved_table_ = kSecondStageTable.must_be_zero_mask() | beyond_host;
    std::uint64_t reserved = kSecondStagePage.must_be_zero_mask() | beyond_host;
    if (!options.snoop_control) reserved |= mask_of<kSecondStagePage, "SNP">;
    if (!options.device_tlb) reserved |= mask_of<kSecondStagePage, "TM">;
    for (Level level = 0; level <= kLargestLeafLevel; ++level)
      reserved_page_[level] = reserved | bits_between(kPageLg2, span_lg2_of(level));
  }
  [[nodiscard]] constexpr const Options& options() const { return options_; }
  // The same unit, another use: marks may differ, capabilities and widths do not.
  [[nodiscard]] constexpr SecondStageFormat with_use(Options options) const {
    SecondStageFormat format = *this;
    format.options_ = options;
    return format;
  }

  [[nodiscard]] constexpr std::uint64_t entry_offset(Level level, std::uint64_t input) const {
    return entry_offset_of(level, input);
  }
  [[nodiscard]] constexpr unsigned span_lg2(Level level) const { return span_lg2_of(level); }
  [[nodiscard]] constexpr bool can_be_leaf(Level level) const {
    return level == 0 || (level <= kLargestLeafLevel && (options_.large_pages >> (level - 1) & 1) != 0);
  }
  [[nodiscard]] constexpr bool is_leaf(std::uint64_t entry, Level level) const {
    return level == 0 || (get<kSecondStagePage, "PS">(entry) != 0 && can_be_leaf(level));
  }
  [[nodiscard]] constexpr bool is_present(std::uint64_t entry) const {
    return (entry & (mask_of<kSecondStagePage, "R"> | mask_of<kSecondStagePage, "W">)) != 0;
  }

  // Presence is R or W: a reserved-bit fault needs one of them set. [§9.8] Permission before reserved: vtd-001.
  [[nodiscard]] constexpr DecodedEntry decode(std::uint64_t entry, Level level, std::uint64_t /*input*/,
                                              Access access) const {
    DecodedEntry decoded;
    decoded.allowed = {.read = get<kSecondStagePage, "R">(entry) != 0, .write = get<kSecondStagePage, "W">(entry) != 0};
    if (decoded.allowed.none()) return decoded;
    const bool leaf = is_leaf(entry, level);
    if (!decoded.allowed.allow(access)) {
      decoded.kind = EntryKind::Denied;
    } else if ((entry & (leaf ? reserved_page_[level] : reserved_table_)) != 0) {
      decoded.kind = EntryKind::Malformed;
    } else if (options_.marks_forbidden && needs_mark(entry, level, access)) {
      decoded.kind = EntryKind::Denied;
    } else {
      decoded.kind = leaf ? EntryKind::Leaf : EntryKind::Table;
      decoded.address = entry & mask_of<kSecondStagePage, "ADDR">;
      decoded.next_level = leaf ? 0 : static_cast<Level>(level - 1);
      decoded.page_lg2 = static_cast<std::uint8_t>(span_lg2_of(level));
      decoded.attributes.snoop = leaf && get<kSecondStagePage, "SNP">(entry) != 0;
    }
    return decoded;
  }
  [[nodiscard]] constexpr std::optional<std::uint64_t> mark_used(std::uint64_t entry, Level level,
                                                                 Access access) const {
    if (!options_.marks) return std::nullopt;
    const std::uint64_t marked = with_marks(entry, level, access);
    return marked == entry ? std::nullopt : std::optional(marked);
  }
  // The mark that an entry lacks for this use, whether or not marks are kept.
  [[nodiscard]] constexpr bool needs_mark(std::uint64_t entry, Level level, Access access) const {
    return with_marks(entry, level, access) != entry;
  }

  // A table grants everything: the leaf alone decides.
  [[nodiscard]] constexpr std::uint64_t make_table(std::uint64_t table, Level /*level*/) const {
    return table | mask_of<kSecondStageTable, "R"> | mask_of<kSecondStageTable, "W">;
  }
  [[nodiscard]] constexpr std::uint64_t make_leaf(std::uint64_t page, Level level, Permissions permissions) const {
    std::uint64_t entry = page;
    entry = with<kSecondStagePage, "R">(entry, permissions.read ? 1 : 0);
    entry = with<kSecondStagePage, "W">(entry, permissions.write ? 1 : 0);
    return with<kSecondStagePage, "PS">(entry, level > 0 ? 1 : 0);
  }

 private:
  [[nodiscard]] constexpr std::uint64_t with_marks(std::uint64_t entry, Level level, Access access) const {
    std::uint64_t marked = entry | mask_of<kSecondStagePage, "A">;
    if (access == Access::Write && is_leaf(entry, level)) marked |= mask_of<kSecondStagePage, "D">;
    return marked;
  }
  Options options_;
  std::uint64_t reserved_table_ = 0;
  std::array<std::uint64_t, kLargestLeafLevel + 1> reserved_page_{};
};

// What configuration and the PASID-table entry decide about first-stage entries.
struct FirstStageOptions {
  unsigned host_address_bits = 48;
  bool one_gib_pages = false;      // CAP.FS1GP; 2 MiB pages are always supported
  bool supervisor = false;         // the request has supervisor privilege
  bool write_protect = true;       // WPE: supervisor writes obey R/W
  bool extended_accessed = false;  // EAFE: EA is kept as well
  bool marks_forbidden = false;    // an entry that needs a mark faults instead (SFS.9)
};

class FirstStageFormat {
 public:
  using Options = FirstStageOptions;
  constexpr explicit FirstStageFormat(Options options) : options_(options) {
    const std::uint64_t beyond_host = mask_of<kFirstStageTable, "ADDR"> & bits_between(options.host_address_bits, 64);
    reserved_table_ = kFirstStageTable.must_be_zero_mask() | beyond_host;
    const std::uint64_t reserved = kFirstStagePage.must_be_zero_mask() | beyond_host;
    for (Level level = 0; level <= kLargestLeafLevel; ++level)
      reserved_page_[level] =
          reserved | (bits_between(kPageLg2, span_lg2_of(level)) & ~mask_of<kFirstStageLargePage, "PAT">);
  }
  [[nodiscard]] constexpr const Options& options() const { return options_; }
  // The same unit, another use: privilege and marks may differ, capabilities and widths do not.
  [[nodiscard]] constexpr FirstStageFormat with_use(Options options) const {
    FirstStageFormat format = *this;
    format.options_ = options;
    return format;
  }

  [[nodiscard]] constexpr std::uint64_t entry_offset(Level level, std::uint64_t input) const {
    return entry_offset_of(level, input);
  }
  [[nodiscard]] constexpr unsigned span_lg2(Level level) const { return span_lg2_of(level); }
  [[nodiscard]] constexpr bool can_be_leaf(Level level) const {
    return level < kLargestLeafLevel || (level == kLargestLeafLevel && options_.one_gib_pages);
  }
  [[nodiscard]] constexpr bool is_leaf(std::uint64_t entry, Level level) const {
    return level == 0 || (get<kFirstStagePage, "PS">(entry) != 0 && can_be_leaf(level));
  }
  [[nodiscard]] constexpr bool is_present(std::uint64_t entry) const { return get<kFirstStagePage, "P">(entry) != 0; }
  // A user request, but the entry is a supervisor's (SGN.2, where a denial is otherwise SGN.6).
  [[nodiscard]] constexpr bool denies_user(std::uint64_t entry) const {
    return !options_.supervisor && get<kFirstStagePage, "US">(entry) == 0;
  }

  // Supervisor writes obey R/W only under WPE.
  [[nodiscard]] constexpr bool allows_write(std::uint64_t entry) const {
    return (options_.supervisor && !options_.write_protect) || get<kFirstStagePage, "RW">(entry) != 0;
  }

  // Permission before reserved bits: vtd-001.
  [[nodiscard]] constexpr DecodedEntry decode(std::uint64_t entry, Level level, std::uint64_t /*input*/,
                                              Access access) const {
    DecodedEntry decoded;
    if (!is_present(entry)) return decoded;
    decoded.allowed = {.read = true, .write = allows_write(entry)};
    const bool leaf = is_leaf(entry, level);
    if (denies_user(entry) || !decoded.allowed.allow(access)) {
      decoded.kind = EntryKind::Denied;
    } else if ((entry & (leaf ? reserved_page_[level] : reserved_table_)) != 0) {
      decoded.kind = EntryKind::Malformed;
    } else if (options_.marks_forbidden && with_marks(entry, level, access) != entry) {
      decoded.kind = EntryKind::Denied;
    } else {
      decoded.kind = leaf ? EntryKind::Leaf : EntryKind::Table;
      decoded.address = entry & mask_of<kFirstStagePage, "ADDR">;
      if (leaf && level > 0) decoded.address &= ~mask_of<kFirstStageLargePage, "PAT">;
      decoded.next_level = leaf ? 0 : static_cast<Level>(level - 1);
      decoded.page_lg2 = static_cast<std::uint8_t>(span_lg2_of(level));
    }
    return decoded;
  }
  [[nodiscard]] constexpr std::optional<std::uint64_t> mark_used(std::uint64_t entry, Level level,
                                                                 Access access) const {
    const std::uint64_t marked = with_marks(entry, level, access);
    return marked == entry ? std::nullopt : std::optional(marked);
  }

  // A table grants everything: the leaf alone decides. Marks are preset, as Linux does for kernel DMA: the walker then
  // needs no write.
  [[nodiscard]] constexpr std::uint64_t make_table(std::uint64_t table, Level /*level*/) const {
    return table | mask_of<kFirstStageTable, "P"> | mask_of<kFirstStageTable, "RW"> | mask_of<kFirstStageTable, "US"> |
           mask_of<kFirstStageTable, "A">;
  }
  // There is no write-only first-stage page: what may be written may be read. No rights: not present.
  [[nodiscard]] constexpr std::uint64_t make_leaf(std::uint64_t page, Level level, Permissions permissions) const {
    if (permissions.none()) return 0;
    std::uint64_t entry =
        page | mask_of<kFirstStagePage, "P"> | mask_of<kFirstStagePage, "US"> | mask_of<kFirstStagePage, "A">;
    if (permissions.write) entry |= mask_of<kFirstStagePage, "RW"> | mask_of<kFirstStagePage, "D">;
    return with<kFirstStagePage, "PS">(entry, level > 0 ? 1 : 0);
  }

 private:
  [[nodiscard]] constexpr std::uint64_t with_marks(std::uint64_t entry, Level level, Access access) const {
    std::uint64_t marked = entry | mask_of<kFirstStagePage, "A">;
    if (options_.extended_accessed) marked |= mask_of<kFirstStagePage, "EA">;
    if (access == Access::Write && is_leaf(entry, level)) marked |= mask_of<kFirstStagePage, "D">;
    return marked;
  }
  Options options_;
  std::uint64_t reserved_table_ = 0;
  std::array<std::uint64_t, kLargestLeafLevel + 1> reserved_page_{};
};

static_assert(PageFormat<SecondStageFormat> && PageFormat<FirstStageFormat>);

}  // namespace iommu::vtd
