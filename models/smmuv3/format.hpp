// SPDX-License-Identifier: Apache-2.0
// The two VMSAv8-64 table formats for the shared walker and editor, with 4, 16 and 64 KiB granules. [DDI 0487 D8]
// Levels count from the leaf: 0 is the architecture's level 3. A starting table may be smaller than the granule
// (stage 1) or several tables side by side (stage 2), so its index width follows from the input size.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "models/smmuv3/spec.hpp"
#include "sim/translation/page_format.hpp"

namespace iommu::smmuv3 {

// Where the index of each level lies.
struct Granule {
  std::uint8_t lg2 = 12;
  std::uint8_t input_bits = 48;
  std::uint8_t top_level = 3;

  [[nodiscard]] constexpr unsigned stride() const { return lg2 - kDescriptorLg2; }
  [[nodiscard]] constexpr unsigned span_lg2(Level level) const { return lg2 + stride() * level; }
  // log2 of the bytes of the starting table, or of all that are concatenated there.
  [[nodiscard]] constexpr unsigned root_lg2() const { return input_bits - span_lg2(top_level) + kDescriptorLg2; }
  [[nodiscard]] constexpr std::uint64_t entry_offset(Level level, std::uint64_t input) const {
    const unsigned bits = level >= top_level ? input_bits - span_lg2(top_level) : stride();
    return (input >> span_lg2(level) & bits_between(0, bits)) << kDescriptorLg2;
  }
  // Levels of stage 1: as few as resolve the input. [DDI 0487 D8.2]
  [[nodiscard]] static constexpr Granule of_stage1(unsigned lg2, unsigned input_bits) {
    const unsigned stride = lg2 - kDescriptorLg2;
    const unsigned levels = (input_bits - lg2 + stride - 1) / stride;
    return {static_cast<std::uint8_t>(lg2), static_cast<std::uint8_t>(input_bits),
            static_cast<std::uint8_t>(levels - 1)};
  }
};

// What both stages read alike.
class DescriptorReader {
 public:
  // `wide_output`: the unit's addresses have 52 bits, so that the 64 KiB granule carries bits 51:48 lower down.
  constexpr DescriptorReader(Granule granule, unsigned output_bits, bool wide_output)
      : granule_(granule),
        beyond_output_(bits_between(output_bits, 64)),
        has_high_bits_(wide_output && granule.lg2 == kGranules0[1]),
        largest_leaf_(granule.lg2 == kGranules0[0] || has_high_bits_ ? 2 : 1) {}
  // For software that never uses blocks.
  constexpr void forbid_blocks() { largest_leaf_ = 0; }

  [[nodiscard]] constexpr const Granule& granule() const { return granule_; }
  [[nodiscard]] constexpr bool can_be_leaf(Level level) const { return level <= largest_leaf_; }
  [[nodiscard]] static constexpr bool is_present(std::uint64_t entry) {
    return get<kTableDescriptor, "Valid">(entry) != 0;
  }

  // Kind, address and size; Malformed stands for an output beyond the effective address size. Permissions are the
  // stage's business. Order: §7.3.22.
  [[nodiscard]] constexpr DecodedEntry decode(std::uint64_t entry, Level level, std::uint64_t input) const {
    DecodedEntry decoded;
    if (!is_present(entry)) return decoded;
    const bool bit1 = get<kTableDescriptor, "Table">(entry) != 0;
    if (level > 0 && bit1) {
      decoded.kind = EntryKind::Table;
      decoded.next_level = static_cast<Level>(level - 1);
      decoded.address = output(entry, granule_.lg2);
    } else {
      // A page needs bit 1; a block exists at some levels only.
      if (level == 0 ? !bit1 : !can_be_leaf(level)) return decoded;
      decoded.kind = EntryKind::Leaf;
      const unsigned span = granule_.span_lg2(level);
      decoded.address = output(entry, span);
      decoded.page_lg2 = static_cast<std::uint8_t>(span);
      if (get<kStage1Leaf, "Contiguous">(entry) != 0) join_block(decoded, level, input);
    }
    if ((decoded.address & beyond_output_) != 0) decoded.kind = EntryKind::Malformed;
    return decoded;
  }
  // Inverse of the address part.
  [[nodiscard]] constexpr std::uint64_t address_bits(std::uint64_t address) const {
    std::uint64_t entry = address & (mask_of<kTableDescriptor, "OA"> | mask_of<kTableDescriptor, "OAHigh">);
    if (has_high_bits_) entry = with<kTableDescriptor, "OAHigh">(entry, address >> kBeyond48Bits);
    return entry;
  }
  [[nodiscard]] constexpr std::uint64_t make_table(std::uint64_t table) const {
    return address_bits(table) | mask_of<kTableDescriptor, "Valid"> | mask_of<kTableDescriptor, "Table">;
  }

 private:
  [[nodiscard]] constexpr std::uint64_t output(std::uint64_t entry, unsigned lg2) const {
    const std::uint64_t field = entry & (mask_of<kTableDescriptor, "OA"> | mask_of<kTableDescriptor, "OAHigh">);
    std::uint64_t address = field & bits_between(lg2, 64);
    if (has_high_bits_) address |= get<kTableDescriptor, "OAHigh">(entry) << kBeyond48Bits;
    return address;
  }
  // smmuv3-005: only where the entry stands at its own place in the block.
  constexpr void join_block(DecodedEntry& decoded, Level level, std::uint64_t input) const {
    const unsigned lg2 = decoded.page_lg2 + contiguous_lg2(granule_.lg2, level);
    if (lg2 > granule_.input_bits) return;
    if (((decoded.address ^ input) & bits_between(decoded.page_lg2, lg2)) != 0) return;
    decoded.address &= bits_between(lg2, 64);
    decoded.page_lg2 = static_cast<std::uint8_t>(lg2);
  }

  Granule granule_;
  std::uint64_t beyond_output_;
  bool has_high_bits_;
  Level largest_leaf_;
};

enum class FlagHandling : std::uint8_t {
  Fault,           // a clear access flag is F_ACCESS
  Ignore,          // AFFD
  UpdateAccess,    // HA
  UpdateAndDirty,  // HA and HD
};

// What CD and STE decide about stage-1 descriptors.
struct Stage1Options {
  Granule granule;
  unsigned output_bits = 48;
  bool wide_output = false;
  FlagHandling flags = FlagHandling::Fault;
  AccessMode mode{};
  bool never_user_data = false;      // PAN: privileged data accesses keep off pages that users may access
  bool write_execute_never = false;  // WXN
  bool flat_permissions = false;     // HAD: APTable is ignored
  bool blocks = true;                // false: an editor that uses pages only
};

class Stage1Format {
 public:
  constexpr explicit Stage1Format(const Stage1Options& options)
      : reader_(options.granule, options.output_bits, options.wide_output),
        flags_(options.flags),
        mode_(options.mode),
        never_user_data_(options.never_user_data),
        write_execute_never_(options.write_execute_never),
        flat_permissions_(options.flat_permissions) {
    if (!options.blocks) reader_.forbid_blocks();
  }

  [[nodiscard]] constexpr std::uint64_t entry_offset(Level level, std::uint64_t input) const {
    return reader_.granule().entry_offset(level, input);
  }
  [[nodiscard]] constexpr unsigned span_lg2(Level level) const { return reader_.granule().span_lg2(level); }
  [[nodiscard]] constexpr bool can_be_leaf(Level level) const { return reader_.can_be_leaf(level); }
  [[nodiscard]] static constexpr bool is_present(std::uint64_t entry) { return DescriptorReader::is_present(entry); }
  // The leaf is refused for its access flag, before any permission is looked at.
  [[nodiscard]] constexpr bool lacks_access_flag(std::uint64_t entry) const {
    return flags_ == FlagHandling::Fault && get<kStage1Leaf, "AF">(entry) == 0;
  }

  [[nodiscard]] constexpr DecodedEntry decode(std::uint64_t entry, Level level, std::uint64_t input,
                                              Access access) const {
    DecodedEntry decoded = reader_.decode(entry, level, input);
    if (decoded.kind == EntryKind::Table) {
      if (!flat_permissions_) decoded.allowed = of_table(entry);
    } else if (decoded.kind == EntryKind::Leaf) {
      decoded.allowed = of_leaf(entry);
      decoded.attributes.is_global = get<kStage1Leaf, "nG">(entry) == 0;
      if (lacks_access_flag(entry) || !decoded.allowed.allow(access)) decoded.kind = EntryKind::Denied;
      // A read of a clean page may be cached, but not for writes: the first one must mark it.
      if (access == Access::Read && is_clean(entry)) decoded.allowed.write = false;
    }
    return decoded;
  }
  // Execution depends on who may write, and tables have a say in that.
  [[nodiscard]] constexpr Permissions granted(Permissions all) const {
    const bool executable = !all.execute_never && all.never_written;
    return {.read = mode_.execute ? executable : all.read, .write = all.write, .execute_never = !executable};
  }
  [[nodiscard]] constexpr std::optional<std::uint64_t> mark_used(std::uint64_t entry, Level level,
                                                                 Access access) const {
    if (flags_ < FlagHandling::UpdateAccess || (level > 0 && get<kTableDescriptor, "Table">(entry) != 0))
      return std::nullopt;
    std::uint64_t marked = entry | mask_of<kStage1Leaf, "AF">;
    if (access == Access::Write && is_clean(entry)) marked &= ~mask_of<kStage1Leaf, "APRead">;
    return marked == entry ? std::nullopt : std::optional(marked);
  }

  // A table grants everything: the leaf alone decides.
  [[nodiscard]] constexpr std::uint64_t make_table(std::uint64_t table, Level /*level*/) const {
    return reader_.make_table(table);
  }
  // Devices are unprivileged; the access flag is preset, and pages belong to one address space, as Linux has it
  // [linux drivers/iommu/io-pgtable-arm.c]. There is no write-only stage-1 page. No rights: not present.
  [[nodiscard]] constexpr std::uint64_t make_leaf(std::uint64_t page, Level level, Permissions permissions) const {
    if (permissions.none()) return 0;
    std::uint64_t entry = reader_.address_bits(page) | mask_of<kStage1Leaf, "Valid"> | mask_of<kStage1Leaf, "AF"> |
                          mask_of<kStage1Leaf, "nG"> | mask_of<kStage1Leaf, "APUser">;
    entry = with<kStage1Leaf, "Page">(entry, level == 0 ? 1 : 0);
    entry = with<kStage1Leaf, "APRead">(entry, permissions.write ? 0 : 1);
    return with<kStage1Leaf, "SH">(entry, kInnerShareable);
  }

 private:
  // Writable, but a write must first clear AP[2].
  [[nodiscard]] constexpr bool is_clean(std::uint64_t entry) const {
    return flags_ == FlagHandling::UpdateAndDirty && get<kStage1Leaf, "DBM">(entry) != 0 &&
           get<kStage1Leaf, "APRead">(entry) != 0;
  }
  [[nodiscard]] constexpr Permissions of_leaf(std::uint64_t entry) const {
    const bool user = get<kStage1Leaf, "APUser">(entry) != 0;
    const bool writable = get<kStage1Leaf, "APRead">(entry) == 0 || is_clean(entry);
    const bool data = mode_.privileged ? !user || !never_user_data_ : user;
    const std::uint64_t never = mode_.privileged ? get<kStage1Leaf, "PXN">(entry) : get<kStage1Leaf, "UXN">(entry);
    return rights(data, {.user = user, .any = writable}, never != 0);
  }
  [[nodiscard]] constexpr Permissions of_table(std::uint64_t entry) const {
    const bool user = get<kTableDescriptor, "APTableUser">(entry) == 0;
    const bool writable = get<kTableDescriptor, "APTableRead">(entry) == 0;
    const std::uint64_t never =
        mode_.privileged ? get<kTableDescriptor, "PXNTable">(entry) : get<kTableDescriptor, "UXNTable">(entry);
    return rights(mode_.privileged || user, {.user = user, .any = writable}, never != 0);
  }
  struct Writers {
    bool user, any;
  };
  // Instructions are fetched from what may not be read as well.
  [[nodiscard]] constexpr Permissions rights(bool data, Writers writers, bool execute_never) const {
    return {.read = data || mode_.execute,
            .write = data && writers.any,
            .execute_never = execute_never,
            .never_written = !forbid_execution(writers)};
  }
  // What users may write is never executed with privilege; under WXN nobody executes what he may write, a clean page
  // included. [DDI 0487 D8.4.1.2.3 R_VWLLR, R_FYMXJ, R_SYMMB; D8.5 R_TTLCV]
  [[nodiscard]] constexpr bool forbid_execution(Writers writers) const {
    const bool by_user = writers.any && writers.user;
    if (!write_execute_never_) return mode_.privileged && by_user;
    return mode_.privileged ? writers.any : by_user;
  }

  DescriptorReader reader_;
  FlagHandling flags_;
  AccessMode mode_;
  bool never_user_data_, write_execute_never_, flat_permissions_;
};

// What the STE decides about stage-2 descriptors.
struct Stage2Options {
  Granule granule;
  unsigned output_bits = 48;
  bool wide_output = false;
  FlagHandling flags = FlagHandling::Fault;
  AccessMode mode{};
  bool execution_by_privilege = false;  // XNX
  bool no_device_memory = false;        // S2PTW, for accesses to stage-1 tables and CDs
  bool blocks = true;                   // false: an editor that uses pages only
};

class Stage2Format {
 public:
  constexpr explicit Stage2Format(const Stage2Options& options)
      : reader_(options.granule, options.output_bits, options.wide_output),
        flags_(options.flags),
        mode_(options.mode),
        execution_by_privilege_(options.execution_by_privilege),
        no_device_memory_(options.no_device_memory) {
    if (!options.blocks) reader_.forbid_blocks();
  }

  [[nodiscard]] constexpr std::uint64_t entry_offset(Level level, std::uint64_t input) const {
    return reader_.granule().entry_offset(level, input);
  }
  [[nodiscard]] constexpr unsigned span_lg2(Level level) const { return reader_.granule().span_lg2(level); }
  [[nodiscard]] constexpr bool can_be_leaf(Level level) const { return reader_.can_be_leaf(level); }
  [[nodiscard]] static constexpr bool is_present(std::uint64_t entry) { return DescriptorReader::is_present(entry); }
  [[nodiscard]] constexpr bool lacks_access_flag(std::uint64_t entry) const {
    return flags_ == FlagHandling::Fault && get<kStage2Leaf, "AF">(entry) == 0;
  }

  [[nodiscard]] constexpr DecodedEntry decode(std::uint64_t entry, Level level, std::uint64_t input,
                                              Access access) const {
    DecodedEntry decoded = reader_.decode(entry, level, input);
    if (decoded.kind != EntryKind::Leaf) return decoded;
    const bool never = is_execute_never(entry);
    decoded.allowed = {.read = mode_.execute ? !never : get<kStage2Leaf, "S2APRead">(entry) != 0,
                       .write = get<kStage2Leaf, "S2APWrite">(entry) != 0 || is_clean(entry),
                       .execute_never = never};
    if (lacks_access_flag(entry) || !decoded.allowed.allow(access) ||
        (no_device_memory_ && get<kStage2Leaf, "MemAttrHigh">(entry) == kDeviceMemory))
      decoded.kind = EntryKind::Denied;
    if (access == Access::Read && is_clean(entry)) decoded.allowed.write = false;
    return decoded;
  }
  [[nodiscard]] constexpr std::optional<std::uint64_t> mark_used(std::uint64_t entry, Level level,
                                                                 Access access) const {
    if (flags_ < FlagHandling::UpdateAccess || (level > 0 && get<kTableDescriptor, "Table">(entry) != 0))
      return std::nullopt;
    std::uint64_t marked = entry | mask_of<kStage2Leaf, "AF">;
    if (access == Access::Write && is_clean(entry)) marked |= mask_of<kStage2Leaf, "S2APWrite">;
    return marked == entry ? std::nullopt : std::optional(marked);
  }

  [[nodiscard]] constexpr std::uint64_t make_table(std::uint64_t table, Level /*level*/) const {
    return reader_.make_table(table);
  }
  [[nodiscard]] constexpr std::uint64_t make_leaf(std::uint64_t page, Level level, Permissions permissions) const {
    if (permissions.none()) return 0;
    std::uint64_t entry = reader_.address_bits(page) | mask_of<kStage2Leaf, "Valid"> | mask_of<kStage2Leaf, "AF">;
    entry = with<kStage2Leaf, "Page">(entry, level == 0 ? 1 : 0);
    entry = with<kStage2Leaf, "S2APRead">(entry, permissions.read ? 1 : 0);
    entry = with<kStage2Leaf, "S2APWrite">(entry, permissions.write ? 1 : 0);
    entry = with<kStage2Leaf, "MemAttrHigh">(entry, kNormalWriteBack);
    entry = with<kStage2Leaf, "MemAttrLow">(entry, kNormalWriteBack);
    return with<kStage2Leaf, "SH">(entry, kInnerShareable);
  }

 private:
  [[nodiscard]] constexpr bool is_clean(std::uint64_t entry) const {
    return flags_ == FlagHandling::UpdateAndDirty && get<kStage2Leaf, "DBM">(entry) != 0 &&
           get<kStage2Leaf, "S2APWrite">(entry) == 0;
  }

  // Without XNX the lower bit means nothing; with it, it turns the upper one round for the privileged.
  // [DDI 0487 D8.4.2.1]
  [[nodiscard]] constexpr bool is_execute_never(std::uint64_t entry) const {
    const bool never = get<kStage2Leaf, "XN1">(entry) != 0;
    const bool turned = execution_by_privilege_ && mode_.privileged && get<kStage2Leaf, "XN0">(entry) != 0;
    return never != turned;
  }

  DescriptorReader reader_;
  FlagHandling flags_;
  AccessMode mode_;
  bool execution_by_privilege_, no_device_memory_;
};

static_assert(PageFormat<Stage1Format> && PageFormat<Stage2Format>);

}  // namespace iommu::smmuv3
