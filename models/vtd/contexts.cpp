// SPDX-License-Identifier: Apache-2.0
// From a requester to its context: root, context, PASID-directory and PASID-table entries. [§3.4, §9.1 to §9.6]
//
// Each entry is checked in the order read, present, reserved, programming. FPD counts whether or not its entry is
// present.
#include <algorithm>
#include <utility>

#include "models/vtd/core.hpp"
#include "models/vtd/decoded_context.hpp"
#include "models/vtd/fault_of.hpp"

namespace iommu::vtd {

namespace {

constexpr unsigned kUpperHalfFirstDevfn = 128;

ContextResult stop(const TranslationRequest& request, const FaultRow* row, Recording recording) {
  return fault_of(request, row, Stage::Context, recording);
}

Hpa table_address(std::uint64_t pointer_field, std::uint64_t index, unsigned entry_bytes) {
  return Hpa((pointer_field << kPageLg2) + index * entry_bytes);
}

Level top_level_of_aw(std::uint64_t aw) { return static_cast<Level>(aw + kLevelsOfAw0 - 1); }
unsigned bits_of_aw(std::uint64_t aw) { return span_lg2_of(static_cast<Level>(top_level_of_aw(aw) + 1)); }

}  // namespace

// Of a page-aligned address field that reaches to bit 63.
bool Core::beyond_host(std::uint64_t pointer) const {
  return (pointer & bits_between(capabilities_.host_address_bits - kPageLg2, 64)) != 0;
}

std::optional<const FaultRow*> Core::root_address_fault(const TranslationRequest& request) const {
  const auto mode = static_cast<TableMode>(get<kRtaddr, "TTM">(root_));
  if (mode == TableMode::Reserved || (mode == TableMode::Abort && !capabilities_.abort_mode)) return kFault<"RTA.1.1">;
  if (mode == TableMode::Abort) return kFault<"RTA.4">;
  if ((root_ & kRtaddr.must_be_zero_mask()) != 0 || beyond_host(get<kRtaddr, "RTA">(root_))) return kFault<"RTA.1.2">;
  if (mode == TableMode::Scalable && !capabilities_.scalable) return kFault<"RTA.1.3">;
  if (mode == TableMode::Legacy && request.pasid) return kFault<"RTA.2">;
  return std::nullopt;
}

Task<ContextResult> Core::find_context(TranslationRequest request, MemoryPort& memory) {
  if (const auto fault = root_address_fault(request)) co_return stop(request, *fault, Recording::Enabled);
  if (is_scalable()) co_return co_await find_scalable_context(request, memory);
  co_return co_await find_legacy_context(request, memory);
}

// Legacy mode ---------------------------------------------------------------------------------------------------------

const FaultRow* Core::check_legacy(const TranslationRequest& request, const std::array<std::uint64_t, 2>& entry) const {
  if (get<kContextEntry, "P">(entry) == 0) return kFault<"LCT.2">;
  if (kContextEntry.violates_reserved(entry) || beyond_host(get<kContextEntry, "SSPTPTR">(entry)))
    return kFault<"LCT.3">;
  if (!capabilities_.supports_width(get<kContextEntry, "AW">(entry))) return kFault<"LCT.4.1">;
  const auto type = static_cast<TranslationType>(get<kContextEntry, "TT">(entry));
  const bool supported = type == TranslationType::Untranslated ||
                         (type == TranslationType::DeviceTlb && capabilities_.device_tlb) ||
                         (type == TranslationType::PassThrough && capabilities_.pass_through);
  if (!supported) return kFault<"LCT.4.2">;
  if (request.type != AddressType::Untranslated && type != TranslationType::DeviceTlb) return kFault<"LCT.5">;
  return nullptr;
}

Task<ContextResult> Core::find_legacy_context(TranslationRequest request, MemoryPort& memory) {
  const Hpa root_address = table_address(get<kRtaddr, "RTA">(root_), request.requester.bus(), kRootEntryBytes);
  const auto root = co_await memory.read_block<2>(root_address, AccessKind::DeviceTable);
  if (root.failed) co_return stop(request, kFault<"LRT.1">, Recording::Enabled);
  if (get<kRootEntry, "P">(root.words) == 0) co_return stop(request, kFault<"LRT.2">, Recording::Enabled);
  const std::uint64_t contexts = get<kRootEntry, "CTP">(root.words);
  if (kRootEntry.violates_reserved(root.words) || beyond_host(contexts))
    co_return stop(request, kFault<"LRT.3">, Recording::Enabled);

  const Hpa context_address = table_address(contexts, request.requester.devfn(), kContextEntryBytes);
  const auto entry = co_await memory.read_block<2>(context_address, AccessKind::DeviceTable);
  if (entry.failed) co_return stop(request, kFault<"LCT.1">, Recording::Enabled);
  const Recording recording = recording_of(get<kContextEntry, "FPD">(entry.words));
  if (const FaultRow* row = check_legacy(request, entry.words)) co_return stop(request, row, recording);

  const auto type = static_cast<TranslationType>(get<kContextEntry, "TT">(entry.words));
  const std::uint64_t aw = get<kContextEntry, "AW">(entry.words);
  Context context;
  if (!request.pasid) context.privilege = Override::Never;
  context.kind = type == TranslationType::PassThrough ? ContextKind::Bypass : ContextKind::Stage2;
  context.domain = DomainTag(static_cast<std::uint32_t>(get<kContextEntry, "DID">(entry.words)));
  context.stage2 = {get<kContextEntry, "SSPTPTR">(entry.words) << kPageLg2, top_level_of_aw(aw)};
  context.family_bits = pack<kDecoded>({
      // Pass-through is not paged: only the host's width bounds it. [§3.9]
      {"input_bits", type == TranslationType::PassThrough ? capabilities_.host_address_bits
                                                          : std::min(capabilities_.max_input_bits, bits_of_aw(aw))},
      {"device_tlb", type == TranslationType::DeviceTlb ? 1U : 0U},
  });
  context.faults_suppressed = recording == Recording::Disabled;
  ContextResult result = context;
  co_return result;
}

// Scalable mode -------------------------------------------------------------------------------------------------------

const FaultRow* Core::check_scalable(const TranslationRequest& request, const std::array<std::uint64_t, 4>& entry,
                                     Pasid pasid) const {
  if (get<kScalableContextEntry, "P">(entry) == 0) return kFault<"SCT.2">;
  if (violates(reserved_.context, entry) || beyond_host(get<kScalableContextEntry, "PASIDDIRPTR">(entry)))
    return kFault<"SCT.3">;
  if (request.type != AddressType::Untranslated && get<kScalableContextEntry, "DTE">(entry) == 0)
    return kFault<"SCT.5">;
  if (request.pasid && get<kScalableContextEntry, "PASIDE">(entry) == 0) return kFault<"SCT.6">;
  const std::uint64_t directory_lg2 = get<kScalableContextEntry, "PDTS">(entry) + kSmallestDirectoryLg2;
  if (pasid.value() >> (directory_lg2 + kPasidsPerTableLg2) != 0)
    return request.pasid ? kFault<"SCT.7"> : kFault<"SCT.9">;
  return nullptr;
}

Task<ContextResult> Core::find_scalable_context(TranslationRequest request, MemoryPort& memory) {
  const unsigned devfn = request.requester.devfn();
  const bool upper = devfn >= kUpperHalfFirstDevfn;
  const Hpa root_address = table_address(get<kRtaddr, "RTA">(root_), request.requester.bus(), kRootEntryBytes) +
                           Bytes(upper ? kRootEntryBytes / 2 : 0);
  const MemoryResult root = co_await memory.read64(root_address, AccessKind::DeviceTable);
  if (root.failed) co_return stop(request, kFault<"SRT.1">, Recording::Enabled);
  if (get<kScalableRootEntry, "P">(root.value) == 0) co_return stop(request, kFault<"SRT.2">, Recording::Enabled);
  const std::uint64_t contexts = get<kScalableRootEntry, "CTP">(root.value);
  if ((root.value & kScalableRootEntry.must_be_zero_mask()) != 0 || beyond_host(contexts))
    co_return stop(request, kFault<"SRT.3">, Recording::Enabled);

  const Hpa context_address = table_address(contexts, devfn % kUpperHalfFirstDevfn, kScalableContextEntryBytes);
  const auto entry = co_await memory.read_block<4>(context_address, AccessKind::DeviceTable);
  if (entry.failed) co_return stop(request, kFault<"SCT.1">, Recording::Enabled);
  co_return co_await find_process_context(request, entry.words, memory);
}

const FaultRow* Core::check_process(const std::array<std::uint64_t, 8>& entry) const {
  if (get<kPasidEntry, "P">(entry) == 0) return kFault<"SPT.2">;
  const auto type = static_cast<PasidTranslation>(get<kPasidEntry, "PGTT">(entry));
  const bool nested = type == PasidTranslation::Nested;
  const bool first = type == PasidTranslation::FirstStage || nested;
  const bool second = type == PasidTranslation::SecondStage || nested;
  // A pointer that the translation type does not use is ignored; FSPTPTR is guest-physical under nesting.
  if (violates(reserved_.process, entry) || (second && beyond_host(get<kPasidEntry, "SSPTPTR">(entry))) ||
      (type == PasidTranslation::FirstStage && beyond_host(get<kPasidEntry, "FSPTPTR">(entry))))
    return kFault<"SPT.3">;
  const bool supported = (type == PasidTranslation::FirstStage && capabilities_.first_stage) ||
                         (type == PasidTranslation::SecondStage && capabilities_.second_stage) ||
                         (nested && capabilities_.nested) ||
                         (type == PasidTranslation::PassThrough && capabilities_.pass_through);
  if (!supported) return kFault<"SPT.4.1">;
  if (second && !capabilities_.supports_width(get<kPasidEntry, "AW">(entry))) return kFault<"SPT.4.2">;
  const auto mode = static_cast<FirstStageMode>(get<kPasidEntry, "FSPM">(entry));
  const bool mode_supported =
      mode == FirstStageMode::FourLevel || (mode == FirstStageMode::FiveLevel && capabilities_.five_level_first_stage);
  return first && !mode_supported ? kFault<"SPT.4.3"> : nullptr;
}

Context Core::decode_process(const std::array<std::uint64_t, 8>& entry, Pasid pasid) const {
  const auto type = static_cast<PasidTranslation>(get<kPasidEntry, "PGTT">(entry));
  const bool first = type == PasidTranslation::FirstStage || type == PasidTranslation::Nested;
  const bool second = type == PasidTranslation::SecondStage || type == PasidTranslation::Nested;
  const std::uint64_t aw = get<kPasidEntry, "AW">(entry);
  Context context;
  context.domain = DomainTag(static_cast<std::uint32_t>(get<kPasidEntry, "DID">(entry)));
  context.process = AsidTag(pasid.value());
  if (first) {
    const bool five = static_cast<FirstStageMode>(get<kPasidEntry, "FSPM">(entry)) == FirstStageMode::FiveLevel;
    context.asid = AsidTag(pasid.value());
    context.stage1 = {get<kPasidEntry, "FSPTPTR">(entry) << kPageLg2, five ? kTopLevel5 : kTopLevel4};
  }
  if (second) context.stage2 = {get<kPasidEntry, "SSPTPTR">(entry) << kPageLg2, top_level_of_aw(aw)};
  context.kind = first && second ? ContextKind::Nested
                 : first         ? ContextKind::Stage1
                 : second        ? ContextKind::Stage2
                                 : ContextKind::Bypass;
  const unsigned bits =
      second ? std::min(capabilities_.max_input_bits, bits_of_aw(aw)) : capabilities_.host_address_bits;
  context.family_bits = pack<kDecoded>({
      {"input_bits", bits},
      {"scalable", 1},
      {"supervisor", get<kPasidEntry, "SRE">(entry)},
      {"write_protect", get<kPasidEntry, "WPE">(entry)},
      {"extended_accessed", get<kPasidEntry, "EAFE">(entry)},
      {"second_stage_marks", get<kPasidEntry, "SSADE">(entry)},
      {"marks_forbidden", capabilities_.walk_snoop && get<kPasidEntry, "PWSNP">(entry) == 0 ? 1U : 0U},  // vtd-003
      {"snoop", get<kPasidEntry, "PGSNP">(entry)},
  });
  return context;
}

Task<ContextResult> Core::find_process_context(TranslationRequest request, std::array<std::uint64_t, 4> entry,
                                               MemoryPort& memory) {
  // Where RID_PASID is not supported, its value is taken to be 0. [ECAP_REG.RPS]
  const std::uint64_t rid_pasid = capabilities_.rid_pasid ? get<kScalableContextEntry, "RID_PASID">(entry) : 0;
  const Pasid pasid = request.pasid.value_or(Pasid(static_cast<std::uint32_t>(rid_pasid)));
  std::uint64_t fpd = get<kScalableContextEntry, "FPD">(entry);
  if (const FaultRow* row = check_scalable(request, entry, pasid)) co_return stop(request, row, recording_of(fpd));

  const Hpa directory_address = table_address(get<kScalableContextEntry, "PASIDDIRPTR">(entry),
                                              pasid.value() >> kPasidsPerTableLg2, kPasidDirectoryEntryBytes);
  const MemoryResult directory = co_await memory.read64(directory_address, AccessKind::DeviceTable);
  if (directory.failed) co_return stop(request, kFault<"SPD.1">, recording_of(fpd));
  fpd |= get<kPasidDirectoryEntry, "FPD">(directory.value);
  if (get<kPasidDirectoryEntry, "P">(directory.value) == 0) co_return stop(request, kFault<"SPD.2">, recording_of(fpd));
  const std::uint64_t table = get<kPasidDirectoryEntry, "SMPTBLPTR">(directory.value);
  if ((directory.value & kPasidDirectoryEntry.must_be_zero_mask()) != 0 || beyond_host(table))
    co_return stop(request, kFault<"SPD.3">, recording_of(fpd));

  const std::uint64_t index = pasid.value() & bits_between(0, kPasidsPerTableLg2);
  const Hpa process_address = table_address(table, index, kPasidEntryBytes);
  const auto process = co_await memory.read_block<8>(process_address, AccessKind::DeviceTable);
  if (process.failed) co_return stop(request, kFault<"SPT.1">, recording_of(fpd));
  fpd |= get<kPasidEntry, "FPD">(process.words);
  if (const FaultRow* row = check_process(process.words)) co_return stop(request, row, recording_of(fpd));

  Context context = decode_process(process.words, pasid);
  context.faults_suppressed = fpd != 0;
  if (!request.pasid)
    context.privilege = get<kScalableContextEntry, "RID_PRIV">(entry) != 0 ? Override::Always : Override::Never;
  context.family_bits = with<kDecoded, "device_tlb">(context.family_bits, get<kScalableContextEntry, "DTE">(entry));
  ContextResult result = context;
  co_return result;
}

}  // namespace iommu::vtd
