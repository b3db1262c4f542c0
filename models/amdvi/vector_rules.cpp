// SPDX-License-Identifier: Apache-2.0
#include "models/amdvi/vector_rules.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <memory>
#include <utility>
#include <vector>

#include "models/amdvi/core.hpp"

namespace iommu::amdvi {

namespace {

std::uint64_t register_of(const VectorRegisters& registers, std::string_view name) {
  const auto found = registers.find(name);
  return found == registers.end() ? 0 : found->second;
}

std::unique_ptr<IommuCore> make_core(const VectorRegisters& registers) {
  Identity identity;
  identity.extended_features = register_of(registers, "EXT_FEATURE");
  return std::make_unique<Core>(identity);
}

std::string lacks(const VectorRecord& record) {
  if (!record.id_registers.contains("EXT_FEATURE")) return "register EXT_FEATURE";
  const std::uint64_t features = register_of(record.id_registers, "EXT_FEATURE");
  if (get<kExtendedFeatures, "SNPSup">(features) != 0) return "SevSnp";
  if (get<kExtendedFeatures, "vIommuSup">(features) != 0) return "vIOMMU";
  if (get<kExtendedFeatures, "DevTblSegSup">(features) != 0) return "segmented device tables";
  return {};
}

// QEMU keeps the access in bits 49:48 of a page fault, where GN and NX are, and no address.
std::optional<std::pair<unsigned, RecordedFault>> read_record(std::span<const std::uint64_t> words) {
  if (words.size() != 2 || get<kTranslationEvent, "EventCode">(words) == 0) return std::nullopt;
  RecordedFault fault;
  fault.page = Iova(get<kTranslationEvent, "Address">(words)).aligned_down(kPageLg2).value();
  fault.requester = RequesterId(static_cast<std::uint16_t>(get<kTranslationEvent, "DeviceID">(words)));
  fault.access = get<kTranslationEvent, "NX">(words) != 0 ? Access::Write : Access::Read;
  return std::pair{static_cast<unsigned>(get<kTranslationEvent, "EventCode">(words)), fault};
}

std::optional<std::pair<unsigned, RecordedFault>> recorded_fault(IommuCore& core, const VectorMemory& memory) {
  constexpr unsigned kWord = 8;
  const std::uint64_t tail = core.mmio_read(offset::kEventTail, kWord);
  if (tail == 0) return std::nullopt;
  const std::uint64_t base = get<kRingBase, "Base">(core.mmio_read(offset::kEventBase, kWord)) << kPageLg2;
  const std::array<std::uint64_t, 2> words{memory.read(base).value_or(0), memory.read(base + kWord).value_or(0)};
  RecordedFault fault;
  fault.page = Iova(get<kTranslationEvent, "Address">(words)).aligned_down(kPageLg2).value();
  fault.requester = RequesterId(static_cast<std::uint16_t>(get<kTranslationEvent, "DeviceID">(words)));
  fault.access = get<kTranslationEvent, "RW">(words) != 0 ? Access::Write : Access::Read;
  return std::pair{static_cast<unsigned>(get<kTranslationEvent, "EventCode">(words)), fault};
}

// What the tables say ------------------------------------------------------------------------------------------------

constexpr unsigned kQemu7 = 7;
constexpr std::uint64_t kRights = mask_of<kHostPage, "IR"> | mask_of<kHostPage, "IW">;
constexpr std::uint64_t kOpenTable = kRights | mask_of<kHostTable, "PR">;
constexpr std::size_t kMaxPath = 12;

bool is_qemu7(const VectorCase& c) { return c.record.recorder_major == kQemu7; }
std::uint64_t word(const VectorCase& c, std::uint64_t address) { return c.memory.read(address).value_or(0); }
std::uint64_t next_level(std::uint64_t entry) { return get<kHostPage, "NextLevel">(entry); }
bool is_page(std::uint64_t entry) {
  return next_level(entry) == kNextLevelPage || next_level(entry) == kNextLevelSized;
}
bool is_present(std::uint64_t entry) { return get<kHostPage, "PR">(entry) != 0; }

std::uint64_t device_table(const VectorCase& c) {
  std::uint64_t base = 0;
  for (const VectorRegisterAccess& access : c.record.setup)
    if (access.kind == VectorRegisterAccess::Kind::Write && access.offset == offset::kDeviceTableBase)
      base = access.value;
  return base;
}
std::uint64_t entry_address(const VectorCase& c) {
  return (get<kDeviceTableBase, "DevTabBase">(device_table(c)) << kPageLg2) +
         std::uint64_t{c.access.request.requester.value()} * kDeviceTableEntryBytes;
}
std::array<std::uint64_t, 4> device_entry(const VectorCase& c) {
  std::array<std::uint64_t, 4> entry{};
  for (std::size_t i = 0; i < entry.size(); ++i) entry[i] = word(c, entry_address(c) + 8 * i);
  return entry;
}

// The entries of a walk, from the device table's (whose Mode is like a NextLevel) to where it ends, whatever it is.
// `level` is that of the table which holds the entry.
struct Step {
  std::uint64_t address = 0;
  std::uint64_t value = 0;
  Level level = 0;
  [[nodiscard]] bool is_device_entry() const { return level > kTopHostLevel; }
  [[nodiscard]] Level next() const { return static_cast<Level>(next_level(value) - 1); }
  [[nodiscard]] bool descends() const { return is_present(value) && !is_page(value) && next() < level; }
};
std::vector<Step> path_of(const VectorCase& c) {
  std::vector<Step> path;
  const auto entry = device_entry(c);
  if (get<kDeviceTableEntry, "V">(entry) == 0 || get<kDeviceTableEntry, "TV">(entry) == 0) return path;
  path.push_back({entry_address(c), entry[0], kTopHostLevel + 1});
  while (path.size() < kMaxPath && path.back().descends()) {
    const Step last = path.back();
    const std::uint64_t address =
        (last.value & mask_of<kHostTable, "Address">)+entry_offset_of(last.next(), c.access.request.address.value());
    const auto value = c.memory.read(address);
    if (!value) break;
    path.push_back({address, *value, last.next()});
  }
  return path;
}
// The page-table entry that the walk ends at, if it ends at one that is a page.
std::optional<Step> page_of(const VectorCase& c) {
  const std::vector<Step> path = path_of(c);
  if (path.size() < 2 || !is_page(path.back().value)) return std::nullopt;
  return path.back();
}

bool is_fault(const VectorCase& c, EventCode code) {
  return c.outcome.result == VectorResult::Fault && c.outcome.reason == static_cast<unsigned>(code);
}

// Tables that the recorder's walk is spelled out with, in memory that no table of the record is in.
class Scratch {
 public:
  explicit Scratch(const VectorCase& c) : case_(c) {}

  // From `slot`, an entry of a table of level `level`, down to `lowest`, with `value` as this input's entry there.
  // `control` is what the first of the links has besides address and level.
  void spell_out(std::uint64_t slot, Level level, std::uint64_t control, Level lowest, std::uint64_t value,
                 std::vector<VectorWord>& words) {
    for (; level > lowest; --level) {
      const std::uint64_t table = page();
      words.emplace_back(slot, with<kHostTable, "NextLevel">(control | table, level));
      slot = table + entry_offset_of(static_cast<Level>(level - 1), case_.access.request.address.value());
      control = kOpenTable;
    }
    words.emplace_back(slot, value);
  }

 private:
  std::uint64_t page() {
    for (;; next_ += kPageSize.value()) {
      const auto is_here = [&](const auto& w) { return w.first >> kPageLg2 == next_ >> kPageLg2 && w.second != 0; };
      if (std::ranges::none_of(case_.memory.words(), is_here)) break;
    }
    return std::exchange(next_, next_ + kPageSize.value());
  }
  const VectorCase& case_;
  std::uint64_t next_ = 0x10000;
};

// Rules --------------------------------------------------------------------------------------------------------------

// Entries beyond the size of the device table are read like others.
std::optional<VectorChange> device_table_size_ignored(const VectorCase& c) {
  constexpr std::uint64_t kPerPage = kPageSize.value() / kDeviceTableEntryBytes;
  const std::uint64_t base = device_table(c);
  if (c.access.request.requester.value() < (get<kDeviceTableBase, "Size">(base) + 1) * kPerPage) return std::nullopt;
  constexpr std::uint64_t kLargest = field_of<kDeviceTableBase, "Size">.value_mask();
  return VectorChange{.registers = {{.kind = VectorRegisterAccess::Kind::Write,
                                     .offset = offset::kDeviceTableBase,
                                     .bytes = 8,
                                     .value = with<kDeviceTableBase, "Size">(base, kLargest)}}};
}

// What QEMU takes for reserved: the words for interrupts in any case, and for QEMU 7 what an older revision reserved,
// which had no GPRP, PPR, HAD[0], GuestPagingMode and HPTMode, and nothing in word 3.
bool has_reserved(const VectorCase& c) {
  const auto entry = device_entry(c);
  if (!is_qemu7(c)) return kDeviceTableEntry.violates_reserved(entry);
  constexpr std::uint64_t kHad0 = 1ULL << field_of<kDeviceTableEntry, "HAD">.shift();
  const std::uint64_t first = kDeviceTableEntry.must_be_zero_mask(0) | mask_of<kDeviceTableEntry, "PPR"> |
                              mask_of<kDeviceTableEntry, "GPRP"> | kHad0;
  const std::uint64_t third = kDeviceTableEntry.must_be_zero_mask(2) | mask_of<kDeviceTableEntry, "GuestPagingMode"> |
                              mask_of<kDeviceTableEntry, "HPTMode">;
  return (entry[0] & first) != 0 || (entry[2] & third) != 0 || entry[3] != 0;
}

// Reserved bits are checked in entries that are not valid, and in the words for interrupts without IV.
std::optional<VectorChange> entry_checked_whole(const VectorCase& c) {
  if (is_fault(c, EventCode::IllegalDevTableEntry) || is_fault(c, EventCode::DevTabHardwareError) || !has_reserved(c))
    return std::nullopt;
  VectorOutcome outcome{.result = VectorResult::Fault,
                        .reason = static_cast<unsigned>(EventCode::IllegalDevTableEntry)};
  outcome.fault = RecordedFault{.page = c.access.request.address.aligned_down(kPageLg2).value(),
                                .requester = c.access.request.requester,
                                .access = c.access.request.access};
  return VectorChange{.outcome = outcome};
}

// Bits that are reserved only where a feature is absent are not checked.
std::optional<VectorChange> absent_features_unchecked(const VectorCase& c) {
  if (!is_fault(c, EventCode::IllegalDevTableEntry) || has_reserved(c)) return std::nullopt;
  const auto entry = device_entry(c);
  const std::uint64_t first = entry[0] & ~(mask_of<kDeviceTableEntry, "PPR"> | mask_of<kDeviceTableEntry, "GPRP"> |
                                           mask_of<kDeviceTableEntry, "GIOV">);
  const std::uint64_t second = entry[1] & ~mask_of<kDeviceTableEntry, "SATS">;
  return VectorChange{.words = {{entry_address(c), first}, {entry_address(c) + 8, second}}};
}

// QEMU 7 forwards what TV = 0 should block, under IR and IW.
std::optional<VectorChange> untranslated_forwarded(const VectorCase& c) {
  const auto entry = device_entry(c);
  if (!is_qemu7(c) || get<kDeviceTableEntry, "V">(entry) == 0 || get<kDeviceTableEntry, "TV">(entry) != 0 ||
      !is_fault(c, EventCode::IoPageFault))
    return std::nullopt;
  constexpr std::uint64_t kMode = mask_of<kDeviceTableEntry, "Mode">;
  return VectorChange{.words = {{entry_address(c), (entry[0] & ~kMode) | mask_of<kDeviceTableEntry, "TV">}}};
}

// TV = 0 and Mode 7 block without an event.
std::optional<VectorChange> blocked_without_event(const VectorCase& c) {
  const auto entry = device_entry(c);
  const bool cause = get<kDeviceTableEntry, "TV">(entry) == 0 || get<kDeviceTableEntry, "Mode">(entry) == kReservedMode;
  if (is_qemu7(c) || get<kDeviceTableEntry, "V">(entry) == 0 || !cause || !is_fault(c, EventCode::IoPageFault))
    return std::nullopt;
  return VectorChange{.outcome = VectorOutcome{.result = VectorResult::Blocked, .reason = c.outcome.reason}};
}

// Mode 0 forwards whatever IR and IW say.
std::optional<VectorChange> forwarded_without_rights(const VectorCase& c) {
  const auto entry = device_entry(c);
  if (is_qemu7(c) || get<kDeviceTableEntry, "Mode">(entry) != 0 || get<kDeviceTableEntry, "TV">(entry) == 0 ||
      !is_fault(c, EventCode::IoPageFault))
    return std::nullopt;
  return VectorChange{.words = {{entry_address(c), entry[0] | kRights}}};
}

// A table may be followed by one of the same or a higher level: as if the second one's entry stood in the first.
std::optional<VectorChange> next_level_not_below(const VectorCase& c) {
  const std::vector<Step> path = path_of(c);
  if (!is_qemu7(c) || path.empty()) return std::nullopt;
  const Step& last = path.back();
  if (!is_present(last.value) || is_page(last.value) || last.next() < last.level) return std::nullopt;
  const std::uint64_t table = last.value & mask_of<kHostTable, "Address">;
  const std::uint64_t second = word(c, table + entry_offset_of(last.next(), c.access.request.address.value()));
  if (!is_present(second) || is_page(second)) return std::nullopt;
  return VectorChange{.words = {{last.address, second & (last.value | ~kRights)}}};
}

// Address bits of levels that NextLevel skips are ignored: as if each skipped level had a table. QEMU 7 also ignores
// those above Mode: as if Mode were 6.
std::optional<VectorChange> skipped_bits_ignored(const VectorCase& c) {
  VectorChange change;
  Scratch scratch(c);
  const std::uint64_t input = c.access.request.address.value();
  for (const Step& step : path_of(c)) {
    if (!step.descends()) break;
    const auto below = static_cast<Level>(step.next() + 1);
    const unsigned first_skipped = span_lg2_of(below);
    if (!step.is_device_entry()) {
      if ((input & bits_between(first_skipped, span_lg2_of(step.level))) == 0) continue;
      constexpr std::uint64_t kLink = mask_of<kHostTable, "Address"> | mask_of<kHostTable, "NextLevel">;
      scratch.spell_out(step.address, step.level, step.value & ~kLink, below, step.value, change.words);
    } else if (is_qemu7(c) && first_skipped < 64 && (input & bits_between(first_skipped, 64)) != 0) {
      constexpr std::uint64_t kRoot = mask_of<kDeviceTableEntry, "HostPTRoot"> | mask_of<kDeviceTableEntry, "Mode">;
      scratch.spell_out(step.address, step.level, step.value & ~kRoot, below, (step.value & kRoot) | kOpenTable,
                        change.words);
    }
  }
  if (change.words.empty()) return std::nullopt;
  return change;
}

// Reserved bits of page-table entries are not checked.
std::optional<VectorChange> table_reserved_unchecked(const VectorCase& c) {
  VectorChange change;
  for (const Step& step : path_of(c)) {
    if (step.is_device_entry() || !is_present(step.value)) continue;
    const std::uint64_t reserved = is_page(step.value) ? kHostPage.must_be_zero_mask() : kHostTable.must_be_zero_mask();
    if ((step.value & reserved) != 0) change.words.emplace_back(step.address, step.value & ~reserved);
  }
  if (change.words.empty()) return std::nullopt;
  return change;
}

// QEMU 7 does not look at PR of the last entry, unless the entry is all zero.
std::optional<VectorChange> page_presence_unchecked(const VectorCase& c) {
  const std::optional<Step> page = page_of(c);
  if (!is_qemu7(c) || !page || page->value == 0 || is_present(page->value)) return std::nullopt;
  return VectorChange{.words = {{page->address, page->value | mask_of<kHostPage, "PR">}}};
}

// QEMU 11 judges by the last entry alone. Those above it count only when all together leave no right: then the walk
// ends at the entry where that happens, which is taken for a page of its level's default size.
std::optional<VectorChange> rights_of_last_entry_only(const VectorCase& c) {
  const std::vector<Step> path = path_of(c);
  if (is_qemu7(c) || path.empty() || (path[0].value & kRights) == 0) return std::nullopt;
  VectorChange change;
  std::uint64_t common = kRights;
  for (const Step& step : path) {
    if (!is_present(step.value)) return std::nullopt;  // refused there by either reading
    common &= step.value;
    const bool ends = common == 0;
    std::uint64_t taken = step.value;
    if (ends)
      taken = with<kHostPage, "NextLevel">(taken, kNextLevelPage);
    else if (!is_page(step.value))
      taken |= kRights;
    if (taken != step.value) change.words.emplace_back(step.address, taken);
    if (ends) break;
  }
  if (change.words.empty()) return std::nullopt;
  return change;
}

// A page may have any size at any level: spelled out as the smallest page around the input.
std::optional<VectorChange> page_of_any_size(const VectorCase& c) {
  const std::optional<Step> page = page_of(c);
  if (!page || !is_present(page->value)) return std::nullopt;
  const std::uint64_t input = c.access.request.address.value();
  const HostFormat::Defect defect = HostFormat().defect(page->value, page->level, input);
  if (defect != HostFormat::Defect::Size && defect != HostFormat::Defect::Level) return std::nullopt;
  const std::uint64_t address = page->value & mask_of<kHostPage, "Address">;
  const unsigned lg2 = next_level(page->value) == kNextLevelPage
                           ? span_lg2_of(page->level)
                           : static_cast<unsigned>(std::countr_one(address | bits_between(0, kPageLg2))) + 1;
  const std::uint64_t inside = bits_between(kPageLg2, lg2);
  const std::uint64_t smallest = ((address & ~inside) | (input & inside)) & mask_of<kHostPage, "Address">;
  VectorChange change;
  Scratch(c).spell_out(page->address, page->level, kOpenTable, 0, smallest | (page->value & kOpenTable), change.words);
  return change;
}

// SA and SE do not keep page faults from being logged.
std::optional<VectorChange> suppression_ignored(const VectorCase& c) {
  const auto entry = device_entry(c);
  const std::uint64_t second = entry[1] & ~(mask_of<kDeviceTableEntry, "SA"> | mask_of<kDeviceTableEntry, "SE">);
  if (is_qemu7(c) || get<kDeviceTableEntry, "V">(entry) == 0 || second == entry[1] ||
      c.outcome.result != VectorResult::Blocked)
    return std::nullopt;
  return VectorChange{.words = {{entry_address(c) + 8, second}}};
}

// QEMU 7 kept one translation of an earlier configuration (amdvi-2026-8, access 5): its commands name another DomainID.
std::optional<VectorChange> stale_translation(const VectorCase& c) {
  constexpr std::string_view kRecord = "amdvi-2026-280";
  constexpr std::uint64_t kInput = 0x42000, kOutput = 0x46ad6000, kBytes = 0x2000;
  const std::uint64_t inside = c.access.request.address.value() - kInput;
  if (!is_qemu7(c) || c.record.id != kRecord || inside >= kBytes) return std::nullopt;
  return VectorChange{.outcome = VectorOutcome{.result = VectorResult::Translated, .output = kOutput + inside}};
}

// QEMU 7 keeps no event log.
std::optional<VectorChange> events_not_logged(const VectorCase& c) {
  if (!is_qemu7(c) || c.outcome.result != VectorResult::Fault) return std::nullopt;
  return VectorChange{.outcome = VectorOutcome{.result = VectorResult::Blocked, .reason = c.outcome.reason}};
}

// Events hold no address, and only page faults say whether it was a write.
std::optional<VectorChange> event_without_address(const VectorCase& c) {
  if (is_qemu7(c) || c.outcome.result != VectorResult::Fault) return std::nullopt;
  VectorOutcome outcome = c.outcome;
  outcome.fault->page = 0;
  if (!is_fault(c, EventCode::IoPageFault)) outcome.fault->access = Access::Read;
  return VectorChange{.outcome = outcome};
}

// A page at address 0 whose target is no memory: the recorder cannot tell it from a block.
std::optional<VectorChange> page_zero_outside_memory(const VectorCase& c) {
  if (c.outcome.result != VectorResult::Translated || c.outcome.page_lg2 < kPageLg2 || c.outcome.page_lg2 >= 64 ||
      c.outcome.output >> c.outcome.page_lg2 != 0)
    return std::nullopt;
  const auto holds = [&](const VectorRegion& r) {
    return c.outcome.output >= r.base && c.outcome.output - r.base < r.bytes;
  };
  if (std::ranges::any_of(c.record.ram, holds)) return std::nullopt;
  return VectorChange{.outcome = VectorOutcome{.result = VectorResult::Blocked}};
}

// clang-format off
constexpr std::array kRules{
    VectorRule{"device-table-size-ignored", "§3.4.1 Size", "reads entries beyond the device table", device_table_size_ignored},
    VectorRule{"entry-checked-whole", "§2.2.2 V, IV", "checks reserved bits of words that are not in use", entry_checked_whole},
    VectorRule{"absent-features-unchecked", "§2.2.2, Table 7", "ignores bits of features that are absent", absent_features_unchecked},
    VectorRule{"untranslated-forwarded", "§2.2.2 TV", "forwards requests of entries with TV = 0", untranslated_forwarded},
    VectorRule{"blocked-without-event", "§2.5.3", "logs nothing for TV = 0 and Mode 7", blocked_without_event},
    VectorRule{"forwarded-without-rights", "§2.2.2 Mode", "does not check IR and IW in Mode 0", forwarded_without_rights},
    VectorRule{"suppression-ignored", "§2.2.2 SA, SE", "logs page faults in spite of SA and SE", suppression_ignored},
    VectorRule{"next-level-not-below", "§2.2.3 NextLevel", "follows NextLevel to the same or a higher level", next_level_not_below},
    VectorRule{"skipped-bits-ignored", "§2.2.3", "ignores address bits of skipped levels", skipped_bits_ignored},
    VectorRule{"page-presence-unchecked", "§2.2.3 PR", "takes a last entry that is not present for a page", page_presence_unchecked},
    VectorRule{"table-reserved-unchecked", "§2.2.3", "ignores reserved bits of page-table entries", table_reserved_unchecked},
    VectorRule{"rights-of-last-entry-only", "§2.2.3 IR, IW", "ignores rights of device table and directories", rights_of_last_entry_only},
    VectorRule{"page-of-any-size", "§2.2.3, Table 15", "takes page sizes that the level does not have", page_of_any_size},
    VectorRule{"stale-translation", "§2.4.3", "serves a page of an earlier configuration", stale_translation},
    VectorRule{"events-not-logged", "§2.5", "keeps no event log", events_not_logged},
    VectorRule{"event-without-address", "§2.5.2 to §2.5.5", "leaves address and RW of events out", event_without_address},
    VectorRule{"page-zero-outside-memory", "-", "shows nothing of a page at 0 without memory", page_zero_outside_memory},
};
// clang-format on

}  // namespace

const VectorFamily kVectorFamily{.name = "amdvi",
                                 .lacks = lacks,
                                 .make_core = make_core,
                                 .read_record = read_record,
                                 .recorded_fault = recorded_fault,
                                 .rules = kRules,
                                 .memory_rules = {}};

}  // namespace iommu::amdvi
