// SPDX-License-Identifier: Apache-2.0
#include "models/vtd/vector_rules.hpp"

#include <algorithm>
#include <array>
#include <memory>

#include "models/vtd/core.hpp"
#include "models/vtd/register_rows.hpp"

namespace iommu::vtd {

namespace {

constexpr unsigned kQemu7 = 7;
constexpr std::uint64_t kWholeAddress = 64;
constexpr std::uint64_t kAwOf48Bits = 2;
// Not an identification register: the host address width of a run, where a rule changes it.
constexpr std::string_view kHostBits = "host_address_bits";

std::uint64_t register_of(const VectorRegisters& registers, std::string_view name) {
  const auto found = registers.find(name);
  return found == registers.end() ? 0 : found->second;
}

// QEMU's aw-bits sets the guest and the host address width alike.
Identity identity_of(const VectorRegisters& registers) {
  Identity identity;
  identity.version = static_cast<std::uint32_t>(register_of(registers, "VER"));
  identity.cap = register_of(registers, "CAP");
  identity.ecap = register_of(registers, "ECAP");
  identity.host_address_bits = static_cast<unsigned>(get<kCap, "MGAW">(identity.cap)) + 1;
  if (const std::uint64_t bits = register_of(registers, kHostBits); bits != 0)
    identity.host_address_bits = static_cast<unsigned>(bits);
  return identity;
}

// Capabilities say where some registers are; a damaged record may put them over others.
bool registers_overlap(const Identity& identity) {
  std::vector<RegisterRow> rows = register_rows(identity);
  std::ranges::sort(rows, {}, &RegisterRow::offset);
  for (std::size_t i = 1; i < rows.size(); ++i)
    if (rows[i - 1].offset + rows[i - 1].bytes > rows[i].offset) return true;
  return false;
}

std::string lacks(const VectorRecord& record) {
  if (record.variant == "ir") return "interrupt remapping";
  for (const std::string_view name : {"VER", "CAP", "ECAP"})
    if (!record.id_registers.contains(name)) return "register " + std::string(name);
  const std::uint64_t cap = register_of(record.id_registers, "CAP");
  if (get<kCap, "AFL">(cap) != 0) return "advanced fault logging";
  if (get<kCap, "PLMR">(cap) != 0 || get<kCap, "PHMR">(cap) != 0) return "protected memory regions";
  if (registers_overlap(identity_of(record.id_registers))) return "registers that overlap";
  return {};
}

std::unique_ptr<IommuCore> make_core(const VectorRegisters& registers) {
  return std::make_unique<Core>(identity_of(registers));
}

std::optional<std::pair<unsigned, RecordedFault>> read_record(std::span<const std::uint64_t> words) {
  if (words.size() != 2 || get<kFrcd, "F">(words) == 0) return std::nullopt;
  RecordedFault fault;
  fault.page = get<kFrcd, "FI">(words) << kPageLg2;
  fault.requester = RequesterId(static_cast<std::uint16_t>(get<kFrcd, "SID">(words)));
  fault.access = get<kFrcd, "T1">(words) != 0 ? Access::Read : Access::Write;
  if (get<kFrcd, "PP">(words) != 0) fault.pasid = Pasid(static_cast<std::uint32_t>(get<kFrcd, "PV">(words)));
  return std::pair{static_cast<unsigned>(get<kFrcd, "FR">(words)), fault};
}

std::optional<std::pair<unsigned, RecordedFault>> recorded_fault(IommuCore& core, const VectorMemory& /*memory*/) {
  constexpr unsigned kWord = 8;
  const std::uint64_t at = get<kCap, "FRO">(core.mmio_read(offset::kCap, kWord)) * offset::kUnit;
  const std::array<std::uint64_t, 2> words{core.mmio_read(at, kWord), core.mmio_read(at + kWord, kWord)};
  return read_record(words);
}

// What the tables say
// ---------------------------------------------------------------------------------------------------

// The entries on the way to the PASID-table entry, as far as they can be read. `words` are 0 beyond that.
struct Path {
  bool scalable = false;
  std::uint64_t other_root_half = 0;  // scalable: the half that the requester does not use
  std::uint64_t context_address = 0, directory_address = 0, process_address = 0;
  std::array<std::uint64_t, 4> context{};
  std::uint64_t directory = 0;
  std::array<std::uint64_t, 8> process{};
  std::uint64_t rid_pasid = 0;  // effective
};

template <std::size_t N>
std::array<std::uint64_t, N> read_entry(const VectorMemory& memory, std::uint64_t address) {
  std::array<std::uint64_t, N> words{};
  for (std::size_t i = 0; i < N; ++i) words[i] = memory.read(address + 8 * i).value_or(0);
  return words;
}

Path path_of(const VectorCase& c) {
  Path path;
  std::uint64_t root = 0;
  for (const VectorRegisterAccess& access : c.record.setup)
    if (access.kind == VectorRegisterAccess::Kind::Write && access.offset == offset::kRtaddr) root = access.value;
  path.scalable = static_cast<TableMode>(get<kRtaddr, "TTM">(root)) == TableMode::Scalable;
  const RequesterId requester = c.access.request.requester;
  const auto entry =
      read_entry<2>(c.memory, (get<kRtaddr, "RTA">(root) << kPageLg2) + requester.bus() * kRootEntryBytes);
  if (!path.scalable) {
    const std::uint64_t table = get<kRootEntry, "CTP">(entry) << kPageLg2;
    const auto context = read_entry<2>(c.memory, table + requester.devfn() * kContextEntryBytes);
    std::copy(context.begin(), context.end(), path.context.begin());
    return path;
  }
  const bool upper = requester.devfn() >= 128;
  path.other_root_half = entry[upper ? 0 : 1];
  path.context_address = (get<kScalableRootEntry, "CTP">(entry[upper ? 1 : 0]) << kPageLg2) +
                         requester.devfn() % 128 * kScalableContextEntryBytes;
  path.context = read_entry<4>(c.memory, path.context_address);
  if (Capabilities(identity_of(c.id_registers)).rid_pasid)
    path.rid_pasid = get<kScalableContextEntry, "RID_PASID">(path.context);
  path.directory_address = (get<kScalableContextEntry, "PASIDDIRPTR">(path.context) << kPageLg2) +
                           (path.rid_pasid >> kPasidsPerTableLg2) * kPasidDirectoryEntryBytes;
  path.directory = c.memory.read(path.directory_address).value_or(0);
  path.process_address = (get<kPasidDirectoryEntry, "SMPTBLPTR">(path.directory) << kPageLg2) +
                         (path.rid_pasid & bits_between(0, kPasidsPerTableLg2)) * kPasidEntryBytes;
  path.process = read_entry<8>(c.memory, path.process_address);
  return path;
}

bool has_fpd(const Path& path) {
  const std::span<const std::uint64_t> context(path.context);
  if (!path.scalable) return get<kContextEntry, "FPD">(context) != 0;
  return (get<kScalableContextEntry, "FPD">(context) | get<kPasidDirectoryEntry, "FPD">(path.directory) |
          get<kPasidEntry, "FPD">(path.process)) != 0;
}

std::uint64_t beyond_host(const VectorCase& c) {
  return bits_between(identity_of(c.id_registers).host_address_bits, 64);
}

// Ours was, or would have been but for FPD, this reason.
bool is_fault(const VectorCase& c, unsigned reason) {
  return c.outcome.result != VectorResult::Translated && c.outcome.reason == reason;
}

VectorOutcome fault_outcome(const VectorCase& c, unsigned reason) {
  VectorOutcome outcome{.result = VectorResult::Fault, .reason = reason};
  outcome.fault = RecordedFault{.page = c.access.request.address.aligned_down(kPageLg2).value(),
                                .requester = c.access.request.requester,
                                .access = c.access.request.access};
  return outcome;
}

// Rules
// ------------------------------------------------------------------------------------------------------------------

// The specification takes 0 for RID_PASID where ECAP.RPS = 0.
std::optional<VectorChange> rid_pasid_without_support(const VectorCase& c) {
  const Path path = path_of(c);
  const std::uint64_t ecap = register_of(c.id_registers, "ECAP");
  if (c.record.recorder_major != kQemu7 || !path.scalable || get<kEcap, "RPS">(ecap) != 0 ||
      get<kScalableContextEntry, "RID_PASID">(path.context) == 0)
    return std::nullopt;
  return VectorChange{.id_registers = {{"ECAP", with<kEcap, "RPS">(ecap, 1)}}};
}

// Both halves of a scalable-mode root entry are checked, used or not.
std::optional<VectorChange> unused_root_half_checked(const VectorCase& c) {
  const Path path = path_of(c);
  const std::uint64_t reserved = kScalableRootEntry.must_be_zero_mask() | beyond_host(c);
  const bool passed_root = c.outcome.result == VectorResult::Translated || c.outcome.reason > kFault<"SRT.3">->code;
  if (!path.scalable || !passed_root || (path.other_root_half & reserved) == 0) return std::nullopt;
  return VectorChange{.outcome = fault_outcome(c, kFault<"SRT.3">->code), .marks = VectorMarks::Undone};
}

// RID_PASID is not compared with the size of the PASID directory.
std::optional<VectorChange> directory_size_ignored(const VectorCase& c) {
  if (!is_fault(c, kFault<"SCT.9">->code)) return std::nullopt;
  const Path path = path_of(c);
  constexpr std::uint64_t kLargest = field_of<kScalableContextEntry, "PDTS">.value_mask();
  std::array<std::uint64_t, 4> context = path.context;
  put<kScalableContextEntry, "PDTS">(context, kLargest);
  return VectorChange{.words = {{path.context_address, context[0]}}};
}

// Reserved bits of a PASID-directory entry below the pointer are not checked; a pointer beyond the host address width
// is followed, and reading there fails.
std::optional<VectorChange> directory_reserved_unchecked(const VectorCase& c) {
  if (!is_fault(c, kFault<"SPD.3">->code)) return std::nullopt;
  const Path path = path_of(c);
  if ((path.directory & beyond_host(c)) != 0) return VectorChange{.outcome = fault_outcome(c, kFault<"SPT.1">->code)};
  return VectorChange{.words = {{path.directory_address, path.directory & ~kPasidDirectoryEntry.must_be_zero_mask()}}};
}

// Fields of a context entry whose capability is absent are ignored.
std::optional<VectorChange> context_capabilities_unchecked(const VectorCase& c) {
  const Path path = path_of(c);
  if (!path.scalable || !is_fault(c, kFault<"SCT.3">->code)) return std::nullopt;
  const ReservedBits reserved{Capabilities(identity_of(c.id_registers))};
  VectorChange change;
  for (std::size_t i = 0; i < path.context.size(); ++i) {
    const std::uint64_t absent = reserved.context[i] & ~kScalableContextEntry.must_be_zero_mask(i);
    if ((path.context[i] & absent) != 0)
      change.words.emplace_back(path.context_address + 8 * i, path.context[i] & ~absent);
  }
  return change.words.empty() ? std::nullopt : std::optional(change);
}

// The programming of a PASID-table entry is checked before its present bit.
std::optional<VectorChange> programming_before_present(const VectorCase& c) {
  if (!is_fault(c, kFault<"SPT.2">->code)) return std::nullopt;
  const Path path = path_of(c);
  const Capabilities capabilities(identity_of(c.id_registers));
  const auto type = static_cast<PasidTranslation>(get<kPasidEntry, "PGTT">(path.process));
  const auto mode = static_cast<FirstStageMode>(get<kPasidEntry, "FSPM">(path.process));
  const bool supported =
      (type == PasidTranslation::FirstStage && capabilities.first_stage && mode == FirstStageMode::FourLevel) ||
      (type == PasidTranslation::SecondStage && capabilities.second_stage &&
       capabilities.supports_width(get<kPasidEntry, "AW">(path.process))) ||
      (type == PasidTranslation::PassThrough && capabilities.pass_through);
  if (supported) return std::nullopt;
  VectorOutcome outcome = fault_outcome(c, kFault<"SPT.4.1">->code);
  if (c.outcome.result == VectorResult::Blocked) outcome.result = VectorResult::Blocked, outcome.fault.reset();
  return VectorChange{.outcome = outcome};
}

// Reserved bits of a PASID-table entry, and fields whose capability is absent, are not checked; a pointer beyond the
// host address width is followed.
std::optional<VectorChange> process_reserved_unchecked(const VectorCase& c) {
  if (!is_fault(c, kFault<"SPT.3">->code)) return std::nullopt;
  const Path path = path_of(c);
  const ReservedBits reserved{Capabilities(identity_of(c.id_registers))};
  VectorChange change;
  for (std::size_t i = 0; i < path.process.size(); ++i)
    if ((path.process[i] & reserved.process[i]) != 0)
      change.words.emplace_back(path.process_address + 8 * i, path.process[i] & ~reserved.process[i]);
  if (((path.process[0] | path.process[2]) & beyond_host(c)) != 0)
    change.id_registers.emplace_back(kHostBits, kWholeAddress);
  return change;
}

// The canonical check takes the width from AW, which the first stage ignores.
std::optional<VectorChange> canonical_check_by_aw(const VectorCase& c) {
  const Path path = path_of(c);
  const bool walked = c.outcome.result == VectorResult::Translated || c.outcome.reason >= kFault<"SFS.1">->code;
  if (!path.scalable || !walked ||
      static_cast<PasidTranslation>(get<kPasidEntry, "PGTT">(path.process)) != PasidTranslation::FirstStage)
    return std::nullopt;
  const std::uint64_t aw = get<kPasidEntry, "AW">(path.process);
  const auto table_bits = static_cast<unsigned>(kPageLg2 + kIndexBits * (aw + kLevelsOfAw0));
  const unsigned bits = std::min(table_bits, Capabilities(identity_of(c.id_registers)).max_input_bits);
  if (aw == kAwOf48Bits) return std::nullopt;
  const std::uint64_t upper = bits_between(bits - 1, 64);
  const std::uint64_t set = c.access.request.address.value() & upper;
  if (set == 0 || set == upper) return std::nullopt;
  const bool fpd = has_fpd(path);
  VectorOutcome outcome = fault_outcome(c, kFault<"SGN.1">->code);
  if (fpd) outcome.result = VectorResult::Blocked, outcome.fault.reset();
  return VectorChange{.outcome = outcome, .marks = VectorMarks::Undone};
}

// A page is refused when any of it lies in the interrupt range, not only the address that was asked for.
std::optional<VectorChange> whole_page_kept_from_interrupts(const VectorCase& c) {
  const unsigned page_lg2 = c.outcome.page_lg2;
  if (c.record.recorder_major == kQemu7 || c.outcome.result != VectorResult::Translated || page_lg2 <= kPageLg2)
    return std::nullopt;
  const std::uint64_t first = c.outcome.output >> page_lg2 << page_lg2;
  if (first > kInterruptLast || first + bits_between(0, page_lg2) < kInterruptFirst) return std::nullopt;
  const bool scalable_unit = get<kEcap, "SMTS">(register_of(c.id_registers, "ECAP")) != 0;
  VectorOutcome outcome = fault_outcome(c, scalable_unit ? kFault<"SGN.8">->code : kFault<"LGN.4">->code);
  if (has_fpd(path_of(c))) outcome.result = VectorResult::Blocked, outcome.fault.reset();
  return VectorChange{.outcome = outcome};
}

// First-stage pages of 1 GiB are walked although CAP.FS1GP = 0.
std::optional<VectorChange> one_gib_without_support(const VectorCase& c) {
  const std::uint64_t cap = register_of(c.id_registers, "CAP");
  if (get<kCap, "FS1GP">(cap) != 0 || !is_fault(c, kFault<"SFS.3">->code)) return std::nullopt;
  return VectorChange{.id_registers = {{"CAP", with<kCap, "FS1GP">(cap, 1)}}};
}

// Any translation type but pass-through is walked as second stage, supported or not.
std::optional<VectorChange> first_stage_taken_for_second(const VectorCase& c) {
  const Path path = path_of(c);
  const auto type = static_cast<PasidTranslation>(get<kPasidEntry, "PGTT">(path.process));
  if (c.record.recorder_major != kQemu7 || !is_fault(c, kFault<"SPT.4.1">->code) ||
      (type != PasidTranslation::FirstStage && type != PasidTranslation::Nested))
    return std::nullopt;
  std::array<std::uint64_t, 8> entry = path.process;
  put<kPasidEntry, "PGTT">(entry, static_cast<std::uint64_t>(PasidTranslation::SecondStage));
  return VectorChange{.words = {{path.process_address, entry[0]}}};
}

// Pass-through takes the unit out of the path: the address is not checked at all.
std::optional<VectorChange> pass_through_unchecked(const VectorCase& c) {
  const Path path = path_of(c);
  const bool pass_through =
      path.scalable
          ? static_cast<PasidTranslation>(get<kPasidEntry, "PGTT">(path.process)) == PasidTranslation::PassThrough
          : static_cast<TranslationType>(get<kContextEntry, "TT">(std::span<const std::uint64_t>(path.context))) ==
                TranslationType::PassThrough;
  const unsigned reason = path.scalable ? kFault<"SGN.4">->code : kFault<"LGN.1.3">->code;
  if (!pass_through || !is_fault(c, reason)) return std::nullopt;
  return VectorChange{
      .outcome = VectorOutcome{.result = VectorResult::Translated, .output = c.access.request.address.value()}};
}

// FPD of the PASID directory and table is not looked at for faults of those structures themselves.
std::optional<VectorChange> process_fpd_ignored(const VectorCase& c) {
  const Path path = path_of(c);
  const bool structure = c.outcome.reason >= kFault<"SPD.1">->code && c.outcome.reason <= kFault<"SPT.4.1">->code;
  const bool fpd = (get<kPasidDirectoryEntry, "FPD">(path.directory) | get<kPasidEntry, "FPD">(path.process)) != 0;
  if (!path.scalable || c.outcome.result != VectorResult::Blocked || !structure || !fpd ||
      get<kScalableContextEntry, "FPD">(path.context) != 0)
    return std::nullopt;
  return VectorChange{.outcome = fault_outcome(c, c.outcome.reason)};
}

// The older recorder has one reason for everything that is wrong with PASID structures.
std::optional<VectorChange> one_reason_for_pasid_structures(const VectorCase& c) {
  const bool structure = c.outcome.reason >= kFault<"SPD.1">->code && c.outcome.reason <= kFault<"SPT.4.1">->code;
  if (c.record.recorder_major != kQemu7 || c.outcome.result != VectorResult::Fault || !structure) return std::nullopt;
  VectorOutcome outcome = c.outcome;
  outcome.reason = kFault<"SPT.1">->code;
  return VectorChange{.outcome = outcome};
}

// Scalable-mode conditions are reported by the reasons of their legacy counterparts, save those of PASID structures and
// of the first stage.
std::optional<VectorChange> legacy_reasons(const VectorCase& c) {
  const Path path = path_of(c);
  if (!path.scalable || c.outcome.result != VectorResult::Fault) return std::nullopt;
  const bool first =
      static_cast<PasidTranslation>(get<kPasidEntry, "PGTT">(path.process)) == PasidTranslation::FirstStage;
  const unsigned denied = c.access.request.access == Access::Write ? kFault<"LGN.2">->code : kFault<"LGN.3">->code;
  const std::array<std::pair<const FaultRow*, unsigned>, 12> counterparts{{
      {kFault<"SRT.1">, kFault<"LRT.1">->code},
      {kFault<"SRT.2">, kFault<"LRT.2">->code},
      {kFault<"SRT.3">, kFault<"LRT.3">->code},
      {kFault<"SCT.1">, kFault<"LCT.1">->code},
      {kFault<"SCT.2">, kFault<"LCT.2">->code},
      {kFault<"SCT.3">, kFault<"LCT.3">->code},
      {kFault<"SGN.5">, kFault<"LGN.1.1">->code},
      {kFault<"SSS.1">, kFault<"LSS.1">->code},
      {kFault<"SSS.2">, denied},
      {kFault<"SSS.3">, kFault<"LSS.2">->code},
      {kFault<"SSS.4">, kFault<"LCT.4.3">->code},
      {first                                      ? nullptr
       : c.access.request.access == Access::Write ? kFault<"SGN.6">
                                                  : kFault<"SGN.7">,
       denied},
  }};
  for (const auto& [row, reason] : counterparts) {
    if (row == nullptr || row->code != c.outcome.reason) continue;
    VectorOutcome outcome = c.outcome;
    outcome.reason = reason;
    return VectorChange{.outcome = outcome};
  }
  return std::nullopt;
}

// A fault record keeps address bits beyond MGAW.
std::optional<VectorChange> whole_address_recorded(const VectorCase& c) {
  const std::uint64_t page = c.access.request.address.aligned_down(kPageLg2).value();
  const std::uint64_t guest = bits_between(0, Capabilities(identity_of(c.id_registers)).max_input_bits);
  if (c.outcome.result != VectorResult::Fault || c.outcome.fault->page != (page & guest) || (page & ~guest) == 0)
    return std::nullopt;
  VectorOutcome outcome = c.outcome;
  outcome.fault->page = page;
  return VectorChange{.outcome = outcome};
}

// A walk's fault names RID_PASID as if the request had carried it; the older recorder keeps 16 bits of it.
std::optional<VectorChange> rid_pasid_recorded(const VectorCase& c) {
  const Path path = path_of(c);
  constexpr unsigned kRecordedBits = 16;
  const std::uint64_t recorded =
      c.record.recorder_major == kQemu7 ? path.rid_pasid & bits_between(0, kRecordedBits) : path.rid_pasid;
  if (!path.scalable || c.outcome.result != VectorResult::Fault || c.outcome.fault->pasid || !c.access.recorded.fault ||
      !c.access.recorded.fault->pasid || c.access.recorded.fault->pasid->value() != recorded)
    return std::nullopt;
  VectorOutcome outcome = c.outcome;
  outcome.fault->pasid = Pasid(static_cast<std::uint32_t>(recorded));
  return VectorChange{.outcome = outcome};
}

// clang-format off
constexpr std::array kRules{
    VectorRule{"rid-pasid-without-rps", "ECAP_REG.RPS", "uses RID_PASID although RPS = 0", rid_pasid_without_support},
    VectorRule{"unused-root-half-checked", "§9.2", "checks both halves of a root entry", unused_root_half_checked},
    VectorRule{"context-capabilities-unchecked", "§9.4, SCT.3", "ignores fields whose capability is absent", context_capabilities_unchecked},
    VectorRule{"pasid-directory-size-ignored", "§9.4 PDTS", "does not bound RID_PASID", directory_size_ignored},
    VectorRule{"pasid-directory-reserved-unchecked", "§9.5, SPD.3", "ignores reserved bits", directory_reserved_unchecked},
    VectorRule{"pasid-entry-programming-before-present", "§9.6, SPT.2", "checks PGTT, AW and FSPM before P", programming_before_present},
    VectorRule{"pasid-entry-reserved-unchecked", "§9.6, SPT.3", "ignores reserved bits and absent capabilities", process_reserved_unchecked},
    VectorRule{"first-stage-taken-for-second", "§9.6 PGTT, SPT.4", "walks PGTT 1 and 3 as second stage", first_stage_taken_for_second},
    VectorRule{"one-gib-without-support", "§9.7, CAP_REG.FS1GP", "takes 1 GiB pages although FS1GP = 0", one_gib_without_support},
    VectorRule{"whole-page-kept-from-interrupts", "§3.14, SGN.8", "refuses a page that touches the interrupt range", whole_page_kept_from_interrupts},
    VectorRule{"canonical-check-by-aw", "§3.6, SGN.1", "takes the canonical width from AW", canonical_check_by_aw},
    VectorRule{"pass-through-unchecked", "LGN.1.3, SGN.4", "does not check the address", pass_through_unchecked},
    VectorRule{"pasid-fpd-ignored", "§9.5, §9.6 FPD", "records in spite of FPD", process_fpd_ignored},
    VectorRule{"one-reason-for-pasid-structures", "§7.2.3", "reports 58h for SPD.x and SPT.x", one_reason_for_pasid_structures},
    VectorRule{"legacy-reasons", "§7.2.3", "reports legacy reasons in scalable mode", legacy_reasons},
    VectorRule{"whole-address-recorded", "FRCD_REG.FI", "keeps address bits beyond MGAW", whole_address_recorded},
    VectorRule{"rid-pasid-recorded", "FRCD_REG.PP", "sets PP for a request without PASID", rid_pasid_recorded},
};
// clang-format on

// A first-stage entry that has one of A and D set, from the start or by an earlier read, is not written again to set
// the other.
bool second_mark_dropped(std::uint64_t before, std::uint64_t recorded, std::uint64_t ours) {
  constexpr std::uint64_t kAccessed = mask_of<kFirstStagePage, "A">, kDirty = mask_of<kFirstStagePage, "D">;
  const std::uint64_t has = recorded & (kAccessed | kDirty);
  const bool by_read = (before & (kAccessed | kDirty)) == 0 && recorded == (before | kAccessed);
  return (recorded == before || by_read) && (has == kAccessed || has == kDirty) &&
         ours == (before | kAccessed | kDirty);
}

constexpr std::array kMemoryRules{
    VectorMemoryRule{"second-mark-dropped", "§3.6.2", "sets neither A nor D where one of them is set",
                     second_mark_dropped},
};

}  // namespace

const VectorFamily kVectorFamily{.name = "vtd",
                                 .lacks = lacks,
                                 .make_core = make_core,
                                 .read_record = read_record,
                                 .recorded_fault = recorded_fault,
                                 .rules = kRules,
                                 .memory_rules = kMemoryRules};

}  // namespace iommu::vtd
