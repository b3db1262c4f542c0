// SPDX-License-Identifier: Apache-2.0
// Stream table entries and context descriptors as software writes them: by 64-bit stores, in an order in which each one
// leaves the entry equal, in the bits hardware looks at, to what it was or to what it will be. [§3.21.3; linux
// drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c, arm_smmu_write_entry]
#include <algorithm>
#include <bit>

#include "models/smmuv3/driver.hpp"
#include "sim/base/check.hpp"

namespace iommu::smmuv3 {

namespace {

using Entry = std::array<std::uint64_t, 8>;

constexpr unsigned kStreamTableSplit = kStreamTableSplits[1];
constexpr unsigned kSecondLevelPagesLg2 = 2;  // 256 entries of 64 bytes
constexpr std::uint64_t kWholeSpan = kStreamTableSplit + 1;
constexpr std::uint64_t kLineBytes = 64;
constexpr unsigned kLowestLevelOfSl0 = 1;  // 4 KiB granule: S2SL0 = 0 is level 1 from the leaf

template <class Enum>
constexpr std::uint64_t code(Enum e) {
  return static_cast<std::uint64_t>(e);
}
std::uint64_t code_of(std::span<const std::uint8_t> values, unsigned value) {
  return static_cast<std::uint64_t>(std::find(values.begin(), values.end(), value) - values.begin());
}

Entry read_entry(TableMemory& memory, std::uint64_t address) {
  Entry entry{};
  for (std::size_t i = 0; i < entry.size(); ++i) entry[i] = memory.read64(address + 8 * i);
  return entry;
}

// Stores words that differ; `current` follows.
void store(TableMemory& memory, std::uint64_t address, Entry& current, const Entry& wanted, std::size_t word,
           TableEdit& edit) {
  if (current[word] == wanted[word]) return;
  current[word] = wanted[word];
  memory.write64(address + 8 * word, wanted[word]);
  ++edit.entries_written;
}

void write_stream_entry(TableMemory& memory, std::uint64_t address, const Entry& wanted, TableEdit& edit) {
  Entry current = read_entry(memory, address);
  if (current == wanted) return;
  edit.lines_touched += 1;
  const bool was_valid = get<kSte, "V">(current) != 0;
  (was_valid ? edit.modified : edit.added) = true;
  const Entry used_now = used_stream_bits(current);
  const Entry used_then = used_stream_bits(wanted);
  // First what the old entry does not look at.
  Entry prepared{};
  std::vector<std::size_t> critical;
  for (std::size_t i = 0; i < prepared.size(); ++i) {
    prepared[i] = (current[i] & used_now[i]) | (wanted[i] & ~used_now[i]);
    if (((prepared[i] ^ wanted[i]) & used_then[i]) != 0) critical.push_back(i);
  }
  if (critical.size() > 1) {  // no order of stores is safe: the stream is blocked in between
    Entry blocked = current;
    put<kSte, "V">(blocked, 0);
    store(memory, address, current, blocked, 0, edit);
    for (std::size_t i = 1; i < wanted.size(); ++i) store(memory, address, current, wanted, i, edit);
    store(memory, address, current, wanted, 0, edit);
    return;
  }
  for (std::size_t i = 0; i < prepared.size(); ++i)
    if (critical.empty() || i != critical.front()) store(memory, address, current, prepared, i, edit);
  if (!critical.empty()) store(memory, address, current, wanted, critical.front(), edit);
  for (std::size_t i = 0; i < wanted.size(); ++i) store(memory, address, current, wanted, i, edit);
}

TableEdit failed(EditStatus status) {
  TableEdit edit;
  edit.status = status;
  return edit;
}

void count_new_table(TableEdit& edit, unsigned pages_lg2) {
  ++edit.tables_allocated;
  edit.lines_touched += static_cast<std::uint32_t>((kPageSize.value() << pages_lg2) / kLineBytes);
}

// What of a guest's words of an entry is the guest's to decide. [linux arm-smmu-v3.h, STRTAB_STE_*_NESTING_ALLOWED]
void put_guest_words(Entry& ste, const std::array<std::uint64_t, 2>& guest) {
  put<kSte, "S1Fmt">(ste, get<kSte, "S1Fmt">(guest));
  put<kSte, "S1ContextPtr">(ste, get<kSte, "S1ContextPtr">(guest));
  put<kSte, "S1CDMax">(ste, get<kSte, "S1CDMax">(guest));
  put<kSte, "S1DSS">(ste, get<kSte, "S1DSS">(guest));
  put<kSte, "S1CIR">(ste, get<kSte, "S1CIR">(guest));
  put<kSte, "S1COR">(ste, get<kSte, "S1COR">(guest));
  put<kSte, "S1CSH">(ste, get<kSte, "S1CSH">(guest));
  put<kSte, "S1STALLD">(ste, get<kSte, "S1STALLD">(guest));
}

}  // namespace

std::array<std::uint64_t, 8> used_stream_bits(const std::array<std::uint64_t, 8>& ste) {
  Entry used{};
  const auto mark = [&](const Field& field) { used[field.word()] |= field.mask(); };
  mark(field_of<kSte, "V">);
  if (get<kSte, "V">(ste) == 0) return used;
  mark(field_of<kSte, "Config">);
  const std::uint64_t config = get<kSte, "Config">(ste);
  if (config < code(StreamConfig::Bypass)) return used;
  mark(field_of<kSte, "PRIVCFG">);
  mark(field_of<kSte, "SHCFG">);
  if (config == code(StreamConfig::Bypass)) return used;
  mark(field_of<kSte, "EATS">);
  mark(field_of<kSte, "S2VMID">);
  const bool stage1 = config == code(StreamConfig::Stage1) || config == code(StreamConfig::Nested);
  const bool stage2 = config == code(StreamConfig::Stage2) || config == code(StreamConfig::Nested);
  if (stage1) {
    for (const Field& field : {field_of<kSte, "S1Fmt">, field_of<kSte, "S1ContextPtr">, field_of<kSte, "S1CDMax">,
                               field_of<kSte, "S1DSS">, field_of<kSte, "S1CIR">, field_of<kSte, "S1COR">,
                               field_of<kSte, "S1CSH">, field_of<kSte, "S1STALLD">, field_of<kSte, "STRW">})
      mark(field);
  }
  if (stage2) {
    for (const Field& field :
         {field_of<kSte, "S2T0SZ">, field_of<kSte, "S2SL0">, field_of<kSte, "S2IR0">, field_of<kSte, "S2OR0">,
          field_of<kSte, "S2SH0">, field_of<kSte, "S2TG">, field_of<kSte, "S2PS">, field_of<kSte, "S2AA64">,
          field_of<kSte, "S2ENDI">, field_of<kSte, "S2AFFD">, field_of<kSte, "S2PTW">, field_of<kSte, "S2HD">,
          field_of<kSte, "S2HA">, field_of<kSte, "S2S">, field_of<kSte, "S2R">, field_of<kSte, "S2TTB">})
      mark(field);
  }
  return used;
}

// Stream table --------------------------------------------------------------------------------------------------------

std::optional<std::uint64_t> Driver::stream_slot(RequesterId requester, TableMemory& memory) const {
  SIM_CHECK(stream_table_ != 0, "a unit is brought up before devices are attached");
  const std::uint64_t stream = requester.value();
  const std::uint64_t link = memory.read64(stream_table_ + (stream >> kStreamTableSplit) * kL1StdBytes);
  if (get<kL1Std, "Span">(link) == 0) return std::nullopt;
  return (link & mask_of<kL1Std, "L2Ptr">)+(stream & bits_between(0, kStreamTableSplit)) * kSteBytes;
}

std::optional<std::uint64_t> Driver::make_stream_slot(RequesterId requester, TableMemory& memory, TableEdit& edit) {
  if (const auto slot = stream_slot(requester, memory)) return slot;
  const auto table = memory.allocate(kSecondLevelPagesLg2);
  if (!table) return std::nullopt;
  count_new_table(edit, kSecondLevelPagesLg2);
  memory.write64(stream_table_ + (std::uint64_t{requester.value()} >> kStreamTableSplit) * kL1StdBytes,
                 with<kL1Std, "Span">(*table, kWholeSpan));
  ++edit.entries_written;
  ++edit.lines_touched;
  return stream_slot(requester, memory);
}

bool Driver::put_stage2(Entry& ste, TableRoot root) const {
  const Granule shape = granule(TableKind::Stage2, root);
  const bool small = shape.lg2 == kGranules0[0];
  if (!capabilities_.supports_granule(shape.lg2) || (small && shape.top_level < kLowestLevelOfSl0)) return false;
  const std::uint64_t sl0 = shape.top_level - (small ? kLowestLevelOfSl0 : 0);
  constexpr std::uint64_t kReserved = 3;
  if (sl0 >= kReserved || shape.input_bits > capabilities_.output_bits) return false;
  put<kSte, "S2T0SZ">(ste, 64U - shape.input_bits);
  put<kSte, "S2SL0">(ste, sl0);
  put<kSte, "S2IR0">(ste, kCacheableWalk);
  put<kSte, "S2OR0">(ste, kCacheableWalk);
  put<kSte, "S2SH0">(ste, kInnerShareable);
  put<kSte, "S2TG">(ste, code_of(kGranules0, shape.lg2));
  put<kSte, "S2PS">(ste, code_of(kAddressSizes, capabilities_.output_bits));
  put<kSte, "S2AA64">(ste, 1);
  put<kSte, "S2PTW">(ste, 1);
  put<kSte, "S2R">(ste, 1);
  put<kSte, "S2TTB">(ste, root.address >> kTtbLg2);
  return true;
}

// `descriptor`: where stage 1's CD is, unless a guest's own words lead to it.
std::optional<Entry> Driver::stream_entry(const ContextSetting& setting, std::uint64_t descriptor) const {
  Entry ste{};
  put<kSte, "V">(ste, 1);
  put<kSte, "SHCFG">(ste, kUseIncomingShareability);
  if (setting.kind == ContextKind::Bypass) {
    put<kSte, "Config">(ste, code(StreamConfig::Bypass));
    return ste;
  }
  const bool stage1 = setting.kind != ContextKind::Stage2;
  const bool stage2 = setting.kind != ContextKind::Stage1;
  const StreamConfig config = !stage1 ? StreamConfig::Stage2 : stage2 ? StreamConfig::Nested : StreamConfig::Stage1;
  put<kSte, "Config">(ste, code(config));
  put<kSte, "S2VMID">(ste, setting.domain.value());
  if (capabilities_.ats && setting.allow_device_tlb) put<kSte, "EATS">(ste, code(AtsMode::Full));
  if (stage1) {
    put<kSte, "S1ContextPtr">(ste, descriptor >> field_of<kSte, "S1ContextPtr">.shift());
    put<kSte, "S1CIR">(ste, kCacheableWalk);
    put<kSte, "S1COR">(ste, kCacheableWalk);
    put<kSte, "S1CSH">(ste, kInnerShareable);
    if (stage2 && setting.stage1_entry[0] != 0) put_guest_words(ste, setting.stage1_entry);
  }
  if (stage2 && !put_stage2(ste, setting.stage2)) return std::nullopt;
  return ste;
}

std::optional<Entry> Driver::descriptor(const ContextSetting& setting) const {
  const Granule shape = granule(TableKind::Stage1, setting.stage1);
  constexpr unsigned kLeast = 64 - kLargestTxsz, kMost = 64 - kSmallestTxsz48;
  if (!capabilities_.supports_granule(shape.lg2) || shape.input_bits < kLeast || shape.input_bits > kMost ||
      Granule::of_stage1(shape.lg2, shape.input_bits).top_level != setting.stage1.top_level)
    return std::nullopt;
  Entry cd{};
  put<kCd, "T0SZ">(cd, 64U - shape.input_bits);
  put<kCd, "TG0">(cd, code_of(kGranules0, shape.lg2));
  put<kCd, "IR0">(cd, kCacheableWalk);
  put<kCd, "OR0">(cd, kCacheableWalk);
  put<kCd, "SH0">(cd, kInnerShareable);
  put<kCd, "EPD1">(cd, 1);
  put<kCd, "V">(cd, 1);
  put<kCd, "IPS">(cd, code_of(kAddressSizes, capabilities_.output_bits));
  put<kCd, "AA64">(cd, 1);
  const bool marks = capabilities_.flag_updates == FlagUpdates::AccessAndDirty;
  put<kCd, "HA">(cd, marks ? 1 : 0);
  put<kCd, "HD">(cd, marks ? 1 : 0);
  put<kCd, "S">(cd, capabilities_.stall_model == StallModel::Absent ? 0 : 1);
  put<kCd, "R">(cd, 1);
  put<kCd, "A">(cd, 1);
  put<kCd, "ASET">(cd, 1);
  put<kCd, "ASID">(cd, setting.domain.value());
  put<kCd, "TTB0">(cd, setting.stage1.address >> kTtbLg2);
  put<kCd, "MAIR">(cd, kMairWriteBack);
  return cd;
}

std::optional<std::uint64_t> Driver::idle_descriptor(RequesterId requester, TableMemory& memory, TableEdit& edit) {
  constexpr std::uint64_t kPairBytes = 2 * kCdBytes, kPairsPerPage = kPageSize.value() / kPairBytes;
  const auto found = descriptors_.find(requester);
  if (found != descriptors_.end()) return found->second.first + (found->second.uses_second ? 0 : kCdBytes);
  if (descriptor_page_ == 0 || descriptors_used_ == kPairsPerPage) {
    const auto page = memory.allocate();
    if (!page) return std::nullopt;
    count_new_table(edit, 0);
    descriptor_page_ = *page;
    descriptors_used_ = 0;
  }
  const std::uint64_t first = descriptor_page_ + descriptors_used_++ * kPairBytes;
  descriptors_[requester] = {.first = first, .uses_second = true};
  return first;
}

TableEdit Driver::attach(RequesterId requester, const ContextSetting& setting, TableMemory& memory) {
  const bool stage1 = setting.kind == ContextKind::Stage1 || setting.kind == ContextKind::Nested;
  if ((stage1 && !options_.stage1) || setting.domain.value() >= domain_tags()) return failed(EditStatus::OutOfRange);
  const bool own_descriptor = stage1 && (setting.kind == ContextKind::Stage1 || setting.stage1_entry[0] == 0);
  const auto cd = own_descriptor ? descriptor(setting) : std::optional(Entry{});
  if (!cd || !stream_entry(setting, 0)) return failed(EditStatus::OutOfRange);
  TableEdit edit;
  const auto slot = make_stream_slot(requester, memory, edit);
  if (!slot) return failed(EditStatus::NoMemory);
  std::uint64_t descriptor_address = 0;
  if (own_descriptor) {
    const auto idle = idle_descriptor(requester, memory, edit);
    if (!idle) {
      edit.status = EditStatus::NoMemory;
      return edit;
    }
    // Nothing points to it, and what did is invalidated: any order of stores will do.
    Descriptors& pair = descriptors_[requester];
    const std::uint64_t active = pair.uses_second ? pair.first + kCdBytes : pair.first;
    const Entry now = read_entry(memory, *slot);
    const bool leads_to_active =
        get<kSte, "V">(now) != 0 && get<kSte, "S1ContextPtr">(now) << field_of<kSte, "S1ContextPtr">.shift() == active;
    descriptor_address = *idle;
    if (leads_to_active && read_entry(memory, active) == *cd) {
      descriptor_address = active;
    } else {
      Entry current = read_entry(memory, *idle);
      for (std::size_t i = 0; i < cd->size(); ++i) store(memory, *idle, current, *cd, i, edit);
      ++edit.lines_touched;
      pair.uses_second = *idle != pair.first;
    }
  }
  write_stream_entry(memory, *slot, *stream_entry(setting, descriptor_address), edit);
  return edit;
}

TableEdit Driver::detach(RequesterId requester, TableMemory& memory) {
  TableEdit edit;
  const auto slot = stream_slot(requester, memory);
  if (!slot) return edit;
  Entry current = read_entry(memory, *slot);
  if (get<kSte, "V">(current) == 0) return edit;
  Entry blocked = current;
  put<kSte, "V">(blocked, 0);
  store(memory, *slot, current, blocked, 0, edit);
  ++edit.lines_touched;
  edit.modified = true;
  return edit;
}

std::array<std::uint64_t, 2> Driver::entry_words(RequesterId requester, TableMemory& memory) const {
  const auto slot = stream_slot(requester, memory);
  if (!slot) return {};
  const Entry ste = read_entry(memory, *slot);
  return {ste[0], ste[1]};
}

std::vector<InvalidationScope> Driver::context_scopes(RequesterId requester, std::optional<ContextSetting> old) const {
  std::vector<InvalidationScope> scopes{{.kind = InvalidationKind::Context, .requester = requester}};
  if (!old || old->kind == ContextKind::Bypass) return scopes;
  InvalidationScope iotlb{.kind = InvalidationKind::Iotlb, .domain = old->domain};
  if (old->kind == ContextKind::Stage1) iotlb.asid = AsidTag(old->domain.value());
  scopes.push_back(iotlb);
  return scopes;
}

}  // namespace iommu::smmuv3
