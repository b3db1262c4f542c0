// SPDX-License-Identifier: Apache-2.0
// The two page-table formats of AMD-Vi for the shared walker and editor. Levels count from the leaf, so level n is the
// specification's level n + 1: NextLevel 1 leads to level 0.
#pragma once

#include <bit>
#include <cstdint>
#include <optional>

#include "models/amdvi/spec.hpp"
#include "sim/translation/page_format.hpp"

namespace iommu::amdvi {

inline constexpr unsigned kIndexBits = 9;
inline constexpr Level kTopHostLevel = 5;  // Mode 6
inline constexpr Level kTopGuestLevel4 = 3, kTopGuestLevel5 = 4;
inline constexpr Level kLargestGuestLeaf = 2;    // 1 GiB
inline constexpr Level kLargestWrittenLeaf = 2;  // the largest page that Xen writes by default

constexpr unsigned span_lg2_of(Level level) { return kPageLg2 + kIndexBits * level; }
constexpr std::uint64_t entry_offset_of(Level level, std::uint64_t input) {
  return (input >> span_lg2_of(level) & bits_between(0, kIndexBits)) * sizeof(std::uint64_t);
}

// What configuration decides about host entries.
struct HostOptions {
  unsigned output_bits = 52;   // editors refuse pages beyond; hardware does not check
  bool large_pages = true;     // editors may write them; hardware always takes them
  bool mark_accessed = false;  // HAD[0]
  bool mark_dirty = false;     // HAD[1]
};

class HostFormat {
 public:
  constexpr HostFormat() = default;
  constexpr explicit HostFormat(HostOptions options) : options_(options) {}

  [[nodiscard]] constexpr std::uint64_t entry_offset(Level level, std::uint64_t input) const {
    return entry_offset_of(level, input);
  }
  [[nodiscard]] constexpr unsigned span_lg2(Level level) const { return span_lg2_of(level); }
  [[nodiscard]] constexpr bool can_be_leaf(Level level) const {
    return level == 0 || (options_.large_pages && level <= kLargestWrittenLeaf);
  }
  [[nodiscard]] constexpr bool is_present(std::uint64_t entry) const { return get<kHostPage, "PR">(entry) != 0; }

  // Why an entry is malformed, in the order in which that is checked.
  enum class Defect : std::uint8_t { None, Level, Size, Skipped, Reserved };

  // Presence, permission, encoding, reserved bits: amdvi-001.
  [[nodiscard]] constexpr DecodedEntry decode(std::uint64_t entry, Level level, std::uint64_t input,
                                              Access access) const {
    DecodedEntry decoded;
    if (!is_present(entry)) return decoded;
    decoded.allowed = {.read = get<kHostPage, "IR">(entry) != 0, .write = get<kHostPage, "IW">(entry) != 0};
    if (!decoded.allowed.allow(access)) {
      decoded.kind = EntryKind::Denied;
    } else if (defect(entry, level, input) != Defect::None) {
      decoded.kind = EntryKind::Malformed;
    } else if (is_page(entry)) {
      decoded.kind = EntryKind::Leaf;
      decoded.page_lg2 = static_cast<std::uint8_t>(page_lg2(entry, level));
      decoded.address = (entry & mask_of<kHostPage, "Address">)&bits_between(decoded.page_lg2, 64);  // amdvi-003
      decoded.attributes.snoop = get<kHostPage, "FC">(entry) != 0;
    } else {
      decoded.kind = EntryKind::Table;
      decoded.address = entry & mask_of<kHostTable, "Address">;
      decoded.next_level = next_level(entry);
    }
    return decoded;
  }

  [[nodiscard]] constexpr Defect defect(std::uint64_t entry, Level level, std::uint64_t input) const {
    if (is_page(entry)) {
      if (level == kTopHostLevel) return Defect::Level;  // the topmost level holds no pages [§2.2.3, Table 15]
      if (get<kHostPage, "NextLevel">(entry) == kNextLevelSized) {
        const unsigned lg2 = sized_lg2(entry);
        if (lg2 <= span_lg2_of(level) || lg2 >= span_lg2_of(static_cast<Level>(level + 1))) return Defect::Size;
      }
      return (entry & kHostPage.must_be_zero_mask()) != 0 ? Defect::Reserved : Defect::None;
    }
    const Level next = next_level(entry);
    if (next >= level) return Defect::Level;
    if ((input & bits_between(span_lg2_of(static_cast<Level>(next + 1)), span_lg2_of(level))) != 0)
      return Defect::Skipped;
    return (entry & kHostTable.must_be_zero_mask()) != 0 ? Defect::Reserved : Defect::None;
  }

  [[nodiscard]] constexpr std::optional<std::uint64_t> mark_used(std::uint64_t entry, Level /*level*/,
                                                                 Access access) const {
    if (!options_.mark_accessed && !options_.mark_dirty) return std::nullopt;
    std::uint64_t marked = entry;
    if (options_.mark_accessed) marked |= mask_of<kHostPage, "A">;
    if (options_.mark_dirty && access == Access::Write && is_page(entry)) marked |= mask_of<kHostPage, "D">;
    return marked == entry ? std::nullopt : std::optional(marked);
  }

  // A table grants everything: the leaf alone decides.
  [[nodiscard]] constexpr std::uint64_t make_table(std::uint64_t table, Level level) const {
    return with<kHostTable, "NextLevel">(table, level) | mask_of<kHostTable, "PR"> | mask_of<kHostTable, "IR"> |
           mask_of<kHostTable, "IW">;
  }
  // FC keeps peers' accesses coherent, as Xen and Linux set it. 0 where the page is out of reach.
  [[nodiscard]] constexpr std::uint64_t make_leaf(std::uint64_t page, Level /*level*/, Permissions permissions) const {
    if ((page & bits_between(options_.output_bits, 64)) != 0) return 0;
    std::uint64_t entry = page | mask_of<kHostPage, "PR"> | mask_of<kHostPage, "FC">;
    entry = with<kHostPage, "IR">(entry, permissions.read ? 1 : 0);
    return with<kHostPage, "IW">(entry, permissions.write ? 1 : 0);
  }

 private:
  static constexpr bool is_page(std::uint64_t entry) {
    const std::uint64_t next = get<kHostPage, "NextLevel">(entry);
    return next == kNextLevelPage || next == kNextLevelSized;
  }
  static constexpr Level next_level(std::uint64_t entry) {
    return static_cast<Level>(get<kHostTable, "NextLevel">(entry) - 1);
  }
  // The lowest zero bit of the address is half the page. [§2.2.3, Table 14]
  static constexpr unsigned sized_lg2(std::uint64_t entry) {
    return kPageLg2 + 1 + static_cast<unsigned>(std::countr_one(get<kHostPage, "Address">(entry)));
  }
  static constexpr unsigned page_lg2(std::uint64_t entry, Level level) {
    return get<kHostPage, "NextLevel">(entry) == kNextLevelSized ? sized_lg2(entry) : span_lg2_of(level);
  }

  HostOptions options_;
};

// What configuration and the request decide about guest entries.
struct GuestOptions {
  unsigned host_address_bits = 52;
  bool supervisor = false;    // the request has supervisor privilege
  bool checks_user = true;    // EFR.USSup
  bool mark_accessed = true;  // GAUpdateDis clear
  bool mark_dirty = true;     // GDUpdateDis clear
  bool large_pages = true;    // editors may write them
};

class GuestFormat {
 public:
  constexpr explicit GuestFormat(GuestOptions options) : options_(options) {}

  [[nodiscard]] constexpr std::uint64_t entry_offset(Level level, std::uint64_t input) const {
    return entry_offset_of(level, input);
  }
  [[nodiscard]] constexpr unsigned span_lg2(Level level) const { return span_lg2_of(level); }
  [[nodiscard]] constexpr bool can_be_leaf(Level level) const {
    return level == 0 || (options_.large_pages && level <= kLargestGuestLeaf);
  }
  [[nodiscard]] constexpr bool is_present(std::uint64_t entry) const { return get<kGuestPage, "P">(entry) != 0; }
  // A user request, but the entry is a supervisor's.
  [[nodiscard]] constexpr bool denies_user(std::uint64_t entry) const {
    return options_.checks_user && !options_.supervisor && get<kGuestPage, "US">(entry) == 0;
  }

  // Presence, permission, reserved bits: amdvi-001. Writes obey RW whatever the privilege, as with CR0.WP set.
  [[nodiscard]] constexpr DecodedEntry decode(std::uint64_t entry, Level level, std::uint64_t /*input*/,
                                              Access access) const {
    DecodedEntry decoded;
    if (!is_present(entry)) return decoded;
    decoded.allowed = {.read = true, .write = get<kGuestPage, "RW">(entry) != 0};
    const bool leaf = is_leaf(entry, level);
    if (denies_user(entry) || !decoded.allowed.allow(access)) {
      decoded.kind = EntryKind::Denied;
    } else if ((entry & (leaf ? reserved_in_page(level) : reserved_in_table())) != 0) {
      decoded.kind = EntryKind::Malformed;
    } else {
      decoded.kind = leaf ? EntryKind::Leaf : EntryKind::Table;
      decoded.address = entry & mask_of<kGuestPage, "Address">;
      if (leaf && level > 0) decoded.address &= ~mask_of<kGuestLargePage, "PAT">;
      decoded.next_level = leaf ? 0 : static_cast<Level>(level - 1);
      decoded.page_lg2 = static_cast<std::uint8_t>(span_lg2_of(level));
    }
    return decoded;
  }
  [[nodiscard]] constexpr std::optional<std::uint64_t> mark_used(std::uint64_t entry, Level level,
                                                                 Access access) const {
    std::uint64_t marked = entry;
    if (options_.mark_accessed) marked |= mask_of<kGuestPage, "A">;
    if (options_.mark_dirty && access == Access::Write && is_leaf(entry, level)) marked |= mask_of<kGuestPage, "D">;
    return marked == entry ? std::nullopt : std::optional(marked);
  }

  // A table grants everything: the leaf alone decides. Marks are preset, as Linux does for kernel DMA: the walker then
  // needs no write.
  [[nodiscard]] constexpr std::uint64_t make_table(std::uint64_t table, Level /*level*/) const {
    return table | mask_of<kGuestTable, "P"> | mask_of<kGuestTable, "RW"> | mask_of<kGuestTable, "US"> |
           mask_of<kGuestTable, "A">;
  }
  // What may be written may be read. No rights: not present.
  [[nodiscard]] constexpr std::uint64_t make_leaf(std::uint64_t page, Level level, Permissions permissions) const {
    if (permissions.none()) return 0;
    std::uint64_t entry = page | mask_of<kGuestPage, "P"> | mask_of<kGuestPage, "US"> | mask_of<kGuestPage, "A">;
    if (permissions.write) entry |= mask_of<kGuestPage, "RW"> | mask_of<kGuestPage, "D">;
    return with<kGuestPage, "PS">(entry, level > 0 ? 1 : 0);
  }

 private:
  [[nodiscard]] static constexpr bool is_leaf(std::uint64_t entry, Level level) {
    return level == 0 || (get<kGuestPage, "PS">(entry) != 0 && level <= kLargestGuestLeaf);
  }
  [[nodiscard]] constexpr std::uint64_t beyond_host() const {
    return mask_of<kGuestTable, "Address"> & bits_between(options_.host_address_bits, 64);
  }
  [[nodiscard]] constexpr std::uint64_t reserved_in_table() const {
    return kGuestTable.must_be_zero_mask() | beyond_host();
  }
  [[nodiscard]] constexpr std::uint64_t reserved_in_page(Level level) const {
    return kGuestPage.must_be_zero_mask() | beyond_host() |
           (bits_between(kPageLg2, span_lg2_of(level)) & ~mask_of<kGuestLargePage, "PAT">);
  }

  GuestOptions options_;
};

static_assert(PageFormat<HostFormat> && PageFormat<GuestFormat>);

}  // namespace iommu::amdvi
