// SPDX-License-Identifier: Apache-2.0
// Device tables as software writes them: root and context entries, PASID directory and table. The word with the present
// bit comes last, and entries that hardware may be using change by one write where the layout allows it.
#include <algorithm>

#include "models/vtd/driver.hpp"
#include "sim/base/check.hpp"

namespace iommu::vtd {

namespace {

constexpr unsigned kUpperHalfFirstDevfn = 128;
constexpr std::uint64_t kLineBytes = 64;

std::uint64_t aw_of(Level top_level) { return top_level + 1U - kLevelsOfAw0; }

// An entry of two words: both at once, as Xen does with a 16-byte compare-exchange.
void write_pair(TableMemory& memory, std::uint64_t address, std::span<const std::uint64_t, 2> words, TableEdit& edit) {
  memory.write128(address, words[0], words[1]);
  ++edit.entries_written;
  ++edit.lines_touched;
}

std::array<std::uint64_t, 2> read_pair(TableMemory& memory, std::uint64_t address) {
  return {memory.read64(address), memory.read64(address + 8)};
}

void count_new_table(TableEdit& edit) {
  ++edit.tables_allocated;
  edit.lines_touched += static_cast<std::uint32_t>(kPageSize.value() / kLineBytes);
}

// What an entry that was (not) present says about the edit.
void classify(TableEdit& edit, std::uint64_t was_present) {
  if (was_present != 0)
    edit.modified = true;
  else
    edit.added = true;
}

bool uses_first_stage(const std::array<std::uint64_t, 8>& entry) {
  const auto type = static_cast<PasidTranslation>(get<kPasidEntry, "PGTT">(entry));
  return get<kPasidEntry, "P">(entry) != 0 &&
         (type == PasidTranslation::FirstStage || type == PasidTranslation::Nested);
}

// Words 0 and 1 hold type, domain and second stage and change together; words 2 and 3 hold the first stage, which
// matters only under a type that uses it. Two different first stages cannot be exchanged in one step: not present in
// between.
void write_process(TableMemory& memory, std::uint64_t address, const std::array<std::uint64_t, 8>& entry,
                   TableEdit& edit) {
  std::array<std::uint64_t, 8> old{};
  for (std::size_t i = 0; i < old.size(); ++i) old[i] = memory.read64(address + 8 * i);
  if (old == entry) return;
  classify(edit, get<kPasidEntry, "P">(old));
  const std::span<const std::uint64_t, 8> words(entry);
  const bool first_stage_differs = old[2] != entry[2] || old[3] != entry[3];
  if (uses_first_stage(old) && uses_first_stage(entry) && first_stage_differs) {
    constexpr std::array<std::uint64_t, 2> kNothing{};
    write_pair(memory, address, kNothing, edit);
  }
  const bool tables_first = uses_first_stage(entry);
  if (first_stage_differs && tables_first) write_pair(memory, address + 16, words.subspan<2, 2>(), edit);
  write_pair(memory, address, words.subspan<0, 2>(), edit);
  if (first_stage_differs && !tables_first) write_pair(memory, address + 16, words.subspan<2, 2>(), edit);
  edit.lines_touched = std::max<std::uint32_t>(edit.lines_touched, 1);
}

TableEdit failed(EditStatus status) {
  TableEdit edit;
  edit.status = status;
  return edit;
}

}  // namespace

// Legacy: one root entry for each bus. Scalable: its lower half for devfn 0 to 127, its upper half for the others.
std::uint64_t Driver::root_slot(RequesterId requester) const {
  SIM_CHECK(root_table_ != 0, "a unit is brought up before devices are attached");
  const std::uint64_t entry = root_table_ + std::uint64_t{requester.bus()} * kRootEntryBytes;
  return is_scalable() && requester.devfn() >= kUpperHalfFirstDevfn ? entry + kRootEntryBytes / 2 : entry;
}

TableEdit Driver::attach(RequesterId requester, const ContextSetting& setting, TableMemory& memory) {
  TableEdit edit =
      is_scalable() ? attach_scalable(requester, setting, memory) : attach_legacy(requester, setting, memory);
  if (edit.status == EditStatus::Ok) attached_[requester] = setting;
  return edit;
}

// Legacy mode ---------------------------------------------------------------------------------------------------------

std::optional<std::array<std::uint64_t, 2>> Driver::legacy_entry(const ContextSetting& setting) const {
  const bool bypass = setting.kind == ContextKind::Bypass;
  if (!bypass && setting.kind != ContextKind::Stage2) return std::nullopt;
  if (setting.domain.value() >= domain_tags()) return std::nullopt;
  // Pass-through needs a width too: the widest.
  const std::uint64_t aw = aw_of(bypass ? top_level(TableKind::Stage2) : setting.stage2.top_level);
  if (!capabilities_.supports_width(aw)) return std::nullopt;
  const bool device_tlb = capabilities_.device_tlb && setting.allow_device_tlb;
  const TranslationType type = bypass       ? TranslationType::PassThrough
                               : device_tlb ? TranslationType::DeviceTlb
                                            : TranslationType::Untranslated;
  std::array<std::uint64_t, 2> entry{};
  put<kContextEntry, "P">(entry, 1);
  put<kContextEntry, "TT">(entry, static_cast<std::uint64_t>(type));
  put<kContextEntry, "SSPTPTR">(entry, bypass ? 0 : setting.stage2.address >> kPageLg2);
  put<kContextEntry, "AW">(entry, aw);
  put<kContextEntry, "DID">(entry, setting.domain.value());
  return entry;
}

std::optional<std::uint64_t> Driver::legacy_slot(RequesterId requester, TableMemory& memory) const {
  const auto root = read_pair(memory, root_slot(requester));
  if (get<kRootEntry, "P">(root) == 0) return std::nullopt;
  return (get<kRootEntry, "CTP">(root) << kPageLg2) + std::uint64_t{requester.devfn()} * kContextEntryBytes;
}

TableEdit Driver::attach_legacy(RequesterId requester, const ContextSetting& setting, TableMemory& memory) {
  const auto entry = legacy_entry(setting);
  if (!entry) return failed(EditStatus::OutOfRange);
  TableEdit edit;
  auto slot = legacy_slot(requester, memory);
  if (!slot) {
    const auto table = memory.allocate();
    if (!table) return failed(EditStatus::NoMemory);
    count_new_table(edit);
    std::array<std::uint64_t, 2> root{};
    put<kRootEntry, "P">(root, 1);
    put<kRootEntry, "CTP">(root, *table >> kPageLg2);
    write_pair(memory, root_slot(requester), root, edit);
    slot = legacy_slot(requester, memory);
  }
  const auto old = read_pair(memory, *slot);
  if (old == *entry) return edit;
  write_pair(memory, *slot, *entry, edit);
  classify(edit, get<kContextEntry, "P">(old));
  return edit;
}

// Scalable mode -------------------------------------------------------------------------------------------------------

std::optional<std::array<std::uint64_t, 8>> Driver::process_entry(const ContextSetting& setting) const {
  const bool nested = setting.kind == ContextKind::Nested;
  const bool first = nested || setting.kind == ContextKind::Stage1;
  const bool second = nested || setting.kind == ContextKind::Stage2;
  if (nested && !capabilities_.nested) return std::nullopt;
  if (setting.domain.value() >= domain_tags()) return std::nullopt;
  if (second && !capabilities_.supports_width(aw_of(setting.stage2.top_level))) return std::nullopt;
  const bool five = first && setting.stage1.top_level == kTopLevel5;
  if (first && !(five ? capabilities_.five_level_first_stage : setting.stage1.top_level == kTopLevel4))
    return std::nullopt;
  const PasidTranslation type = nested   ? PasidTranslation::Nested
                                : first  ? PasidTranslation::FirstStage
                                : second ? PasidTranslation::SecondStage
                                         : PasidTranslation::PassThrough;
  std::array<std::uint64_t, 8> entry{};
  put<kPasidEntry, "P">(entry, 1);
  put<kPasidEntry, "PGTT">(entry, static_cast<std::uint64_t>(type));
  put<kPasidEntry, "AW">(entry, aw_of(second ? setting.stage2.top_level : top_level(TableKind::Stage2)));
  put<kPasidEntry, "DID">(entry, setting.domain.value());
  put<kPasidEntry, "PWSNP">(entry, capabilities_.walk_snoop ? 1 : 0);
  if (second) put<kPasidEntry, "SSPTPTR">(entry, setting.stage2.address >> kPageLg2);
  if (first) {
    put<kPasidEntry, "FSPM">(entry,
                             static_cast<std::uint64_t>(five ? FirstStageMode::FiveLevel : FirstStageMode::FourLevel));
    put<kPasidEntry, "FSPTPTR">(entry, setting.stage1.address >> kPageLg2);
  }
  return entry;
}

// The PASID-table entry of requests without PASID.
std::optional<std::uint64_t> Driver::scalable_slot(RequesterId requester, TableMemory& memory) const {
  const std::uint64_t root = memory.read64(root_slot(requester));
  if (get<kScalableRootEntry, "P">(root) == 0) return std::nullopt;
  const std::uint64_t context = (get<kScalableRootEntry, "CTP">(root) << kPageLg2) +
                                std::uint64_t{requester.devfn() % kUpperHalfFirstDevfn} * kScalableContextEntryBytes;
  const auto words = read_pair(memory, context);
  if (get<kScalableContextEntry, "P">(words) == 0) return std::nullopt;
  const std::uint64_t directory = memory.read64(get<kScalableContextEntry, "PASIDDIRPTR">(words) << kPageLg2);
  return (get<kPasidDirectoryEntry, "SMPTBLPTR">(directory) << kPageLg2) + std::uint64_t{kRidPasid} * kPasidEntryBytes;
}

TableEdit Driver::attach_scalable(RequesterId requester, const ContextSetting& setting, TableMemory& memory) {
  const auto entry = process_entry(setting);
  if (!entry) return failed(EditStatus::OutOfRange);
  TableEdit edit;
  if (const auto slot = scalable_slot(requester, memory)) {
    write_process(memory, *slot, *entry, edit);
    return edit;
  }
  // Directory, PASID table and, for the first device of this half bus, context table: all or nothing.
  const std::uint64_t root = memory.read64(root_slot(requester));
  const bool has_contexts = get<kScalableRootEntry, "P">(root) != 0;
  std::vector<std::uint64_t> pages;
  for (int i = has_contexts ? 1 : 0; i < 3; ++i) {
    const auto page = memory.allocate();
    if (!page) {
      for (const std::uint64_t p : pages) memory.release(p);
      return failed(EditStatus::NoMemory);
    }
    pages.push_back(*page);
    count_new_table(edit);
  }
  const std::uint64_t directory = pages[0];
  const std::uint64_t processes = pages[1];
  write_process(memory, processes + std::uint64_t{kRidPasid} * kPasidEntryBytes, *entry, edit);
  std::uint64_t link = with<kPasidDirectoryEntry, "P">(0, 1);
  link = with<kPasidDirectoryEntry, "SMPTBLPTR">(link, processes >> kPageLg2);
  memory.write64(directory, link);
  ++edit.entries_written;

  std::array<std::uint64_t, 4> context{};
  put<kScalableContextEntry, "P">(context, 1);
  put<kScalableContextEntry, "DTE">(context, capabilities_.device_tlb && setting.allow_device_tlb ? 1 : 0);
  put<kScalableContextEntry, "PASIDDIRPTR">(context, directory >> kPageLg2);
  put<kScalableContextEntry, "RID_PASID">(context, kRidPasid);
  const std::uint64_t contexts = has_contexts ? get<kScalableRootEntry, "CTP">(root) << kPageLg2 : pages[2];
  const std::uint64_t slot =
      contexts + std::uint64_t{requester.devfn() % kUpperHalfFirstDevfn} * kScalableContextEntryBytes;
  write_pair(memory, slot, std::span<const std::uint64_t, 4>(context).subspan<0, 2>(), edit);
  if (!has_contexts) {
    memory.write64(root_slot(requester),
                   with<kScalableRootEntry, "CTP">(with<kScalableRootEntry, "P">(0, 1), contexts >> kPageLg2));
    ++edit.entries_written;
    ++edit.lines_touched;
  }
  return edit;
}

TableEdit Driver::detach(RequesterId requester, TableMemory& memory) {
  TableEdit edit;
  attached_.erase(requester);
  if (is_scalable()) {
    // The context entry stays, as in Linux: it only leads to the PASID table. [intel_pasid_tear_down_entry]
    if (const auto slot = scalable_slot(requester, memory)) write_process(memory, *slot, {}, edit);
    return edit;
  }
  const auto slot = legacy_slot(requester, memory);
  if (!slot || get<kContextEntry, "P">(read_pair(memory, *slot)) == 0) return edit;
  constexpr std::array<std::uint64_t, 2> kNothing{};
  write_pair(memory, *slot, kNothing, edit);
  edit.modified = true;
  return edit;
}

// What to invalidate
// ---------------------------------------------------------------------------------------------------

// Legacy: [xen/drivers/passthrough/vtd/iommu.c, domain_context_mapping_one]. Scalable: [linux
// drivers/iommu/intel/pasid.c, pasid_flush_caches and intel_pasid_tear_down_entry].
std::vector<InvalidationScope> Driver::context_scopes(RequesterId requester, std::optional<ContextSetting> old) const {
  // Not-present entries are cached in caching mode only, and under domain-id 0. [CAP_REG.CM]
  if (!old && !options_.features.caching_mode) return {};
  const DomainTag tag = old ? old->domain : DomainTag(0);
  const InvalidationScope context{.kind = InvalidationKind::Context, .domain = tag, .requester = requester};
  if (!is_scalable()) {
    InvalidationScope iotlb{.kind = InvalidationKind::Iotlb, .domain = tag};
    const auto now = attached_.find(requester);
    if (!old && now != attached_.end()) iotlb.domain = now->second.domain;
    return {context, iotlb};
  }
  std::vector<InvalidationScope> scopes;
  if (!old) scopes.push_back(context);  // the context entry itself changed
  const auto now = attached_.find(requester);
  const ContextSetting* setting = old ? &*old : now != attached_.end() ? &now->second : nullptr;
  if (setting == nullptr) return scopes;
  constexpr AsidTag kRidTag(kRidPasid);
  scopes.push_back({.kind = InvalidationKind::ProcessContext, .domain = setting->domain, .asid = kRidTag});
  InvalidationScope iotlb{.kind = InvalidationKind::Iotlb, .domain = setting->domain};
  // Second-stage results carry no PASID of their own: the whole domain goes.
  const bool by_pasid = !old || setting->kind == ContextKind::Bypass || setting->kind == ContextKind::Stage1;
  if (by_pasid) iotlb.asid = kRidTag;
  scopes.push_back(iotlb);
  return scopes;
}

}  // namespace iommu::vtd
