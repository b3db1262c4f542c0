// SPDX-License-Identifier: Apache-2.0
// From a stream to its context: stream table and context descriptors. [§3.3, §5] Checks come in the order of §7.3.22.
#include <algorithm>
#include <utility>

#include "models/smmuv3/core.hpp"
#include "models/smmuv3/decoded_context.hpp"
#include "models/smmuv3/register_rows.hpp"
#include "sim/translation/answers.hpp"

namespace iommu::smmuv3 {

namespace {

constexpr unsigned kStartLevelsSl0 = 2;   // 4 KiB granule: S2SL0 n starts at level 2 - n, larger ones at level 3 - n
constexpr unsigned kConcatenatedLg2 = 4;  // at most 16 starting tables side by side [DDI 0487 D8.2]
constexpr std::uint64_t kReservedSl0 = 3;

StreamConfig config_of(std::span<const std::uint64_t> ste) {
  const auto config = static_cast<StreamConfig>(get<kSte, "Config">(ste));
  return config < StreamConfig::Bypass ? StreamConfig::Abort : config;
}

FlagHandling flags_of(bool access_updates, bool dirty_updates, bool faults_disabled) {
  if (access_updates) return dirty_updates ? FlagHandling::UpdateAndDirty : FlagHandling::UpdateAccess;
  return faults_disabled ? FlagHandling::Ignore : FlagHandling::Fault;
}

// Level of S2SL0, counted from the leaf.
std::optional<Level> start_level(std::uint64_t sl0, unsigned granule_lg2) {
  if (sl0 == kReservedSl0) return std::nullopt;
  const bool small = granule_lg2 == kGranules0[0];
  return static_cast<Level>(small ? sl0 + kLevels - 1 - kStartLevelsSl0 : sl0);
}

// Whether the starting level suits the input size: at least one bit resolved there, at most 16 tables. [DDI 0487 D8.2]
bool is_consistent(Granule granule) {
  const unsigned least = granule.span_lg2(granule.top_level) + 1;
  const unsigned most = granule.span_lg2(granule.top_level) + granule.stride() + kConcatenatedLg2;
  return granule.input_bits >= least && granule.input_bits <= most;
}

Override override_of(std::uint64_t field) {
  const auto value = static_cast<AttributeOverride>(field);
  return value == AttributeOverride::On    ? Override::Always
         : value == AttributeOverride::Off ? Override::Never
                                           : Override::AsRequested;
}

std::uint64_t aligned(std::uint64_t address, unsigned lg2) { return address >> lg2 << lg2; }

// A starting table is aligned to its size, and to 64 bytes where output addresses have 52 bits. [§5.2 S2TTB]
std::uint64_t table_base(std::uint64_t ttb, Granule granule, unsigned output_bits) {
  constexpr unsigned kWideBits = 52, kWideAlignmentLg2 = 6;
  const unsigned least = output_bits == kWideBits ? kWideAlignmentLg2 : kTtbLg2;
  return aligned(ttb << kTtbLg2, std::max(least, granule.root_lg2()));
}

}  // namespace

bool Core::has_stage(const Ste& ste, StreamConfig stage) {
  const StreamConfig config = config_of(ste);
  return config == stage || config == StreamConfig::Nested;
}

AtsMode Core::ats_mode(const Ste& ste) const {
  if (!capabilities_.ats || config_of(ste) <= StreamConfig::Bypass) return AtsMode::Disabled;
  const auto mode = static_cast<AtsMode>(get<kSte, "EATS">(ste));
  return mode > AtsMode::SplitStage ? AtsMode::Disabled : mode;
}

// Stream table --------------------------------------------------------------------------------------------------------

Task<Core::Located8> Core::read_ste(TranslationRequest request, MemoryPort& memory) const {
  Located8 result;
  const auto fail = [&](const FaultRow* row, std::uint64_t address) {
    result.fault = fault_of(request, row, Stage::Context);
    if (row == kFault<"F_STE_FETCH">) result.fault->table_entry = Hpa(address);
    if (row == kFault<"C_BAD_STREAMID">) result.fault->suppressed = get<kCr2, "RECINVSID">(reg(kRegCr2)) == 0;
  };
  const std::uint64_t config = reg(kRegStrtabBaseCfg);
  const std::uint64_t stream = request.requester.value();
  const auto log2size = static_cast<unsigned>(get<kStrtabCfg, "LOG2SIZE">(config));
  if (stream >> std::min(log2size, capabilities_.stream_bits) != 0) {
    fail(kFault<"C_BAD_STREAMID">, 0);
    co_return result;
  }
  const std::uint64_t base = reg(kRegStrtabBase) & mask_of<kStrtabBase, "ADDR">;
  constexpr unsigned kSteLg2 = 6, kL1StdLg2 = 3;
  std::uint64_t address = aligned(base, log2size + kSteLg2) + stream * kSteBytes;
  const bool two_level = static_cast<StreamTableFormat>(get<kStrtabCfg, "FMT">(config)) == StreamTableFormat::TwoLevel;
  if (two_level && capabilities_.two_level_streams) {
    const auto asked = static_cast<unsigned>(get<kStrtabCfg, "SPLIT">(config));
    const bool valid =
        std::find(kStreamTableSplits.begin(), kStreamTableSplits.end(), asked) != kStreamTableSplits.end();
    const unsigned split = valid ? asked : kStreamTableSplits[0];
    const unsigned table_lg2 = std::max(kSteLg2, log2size > split ? log2size - split + kL1StdLg2 : 0);
    const std::uint64_t entry = aligned(base, table_lg2) + (stream >> split) * kL1StdBytes;
    MemoryResult first{.value = 0, .failed = true};
    if (!capabilities_.beyond_output(entry)) first = co_await memory.read64(Hpa(entry), AccessKind::DeviceTable);
    if (first.failed) {
      fail(kFault<"F_STE_FETCH">, entry);
      co_return result;
    }
    const auto span = static_cast<unsigned>(get<kL1Std, "Span">(first.value));
    const std::uint64_t index = stream & bits_between(0, split);
    if (span == 0 || span > kLargestSpan || span > split + 1 || index >> (span - 1) != 0) {
      fail(kFault<"C_BAD_STREAMID">, 0);
      co_return result;
    }
    address = aligned(first.value & mask_of<kL1Std, "L2Ptr">, kSteLg2 + span - 1) + index * kSteBytes;
  }
  if (capabilities_.beyond_output(address)) {  // smmuv3-002
    fail(kFault<"F_STE_FETCH">, address);
    co_return result;
  }
  const auto ste = co_await memory.read_block<8>(Hpa(address), AccessKind::DeviceTable);
  result.words = ste.words;
  if (ste.failed) fail(kFault<"F_STE_FETCH">, address);
  co_return result;
}

// SteIllegal() of §5.2.2.
bool Core::is_illegal(const Ste& ste) const {
  if (get<kSte, "V">(ste) == 0) return true;
  const StreamConfig config = config_of(ste);
  if (config == StreamConfig::Abort) return false;
  const bool stage1 = has_stage(ste, StreamConfig::Stage1);
  const bool stage2 = has_stage(ste, StreamConfig::Stage2);
  if ((stage1 && !capabilities_.stage1) || (stage2 && !capabilities_.stage2)) return true;
  if (capabilities_.ats && config != StreamConfig::Bypass) {
    const auto mode = static_cast<AtsMode>(get<kSte, "EATS">(ste));
    const bool stalls = get<kSte, "S2S">(ste) != 0;
    if (mode == AtsMode::SplitStage && (config != StreamConfig::Nested || stalls || !capabilities_.split_stage_ats))
      return true;
    if (mode == AtsMode::Full && stalls && stage2) return true;
  }
  if (stage1) {
    if (get<kSte, "S1STALLD">(ste) != 0 && capabilities_.stall_model != StallModel::Configurable) return true;
    const std::uint64_t contexts = get<kSte, "S1CDMax">(ste);
    const auto format = static_cast<ContextTableFormat>(get<kSte, "S1Fmt">(ste));
    const bool two_level = format == ContextTableFormat::TwoLevel4K || format == ContextTableFormat::TwoLevel64K;
    if (capabilities_.substream_bits != 0 && contexts > capabilities_.substream_bits) return true;
    if (capabilities_.substream_bits != 0 && contexts != 0 && !capabilities_.two_level_contexts && two_level)
      return true;
    // Under stage 2 the pointer is intermediate; the IAS is the OAS. [§3.4]
    if (capabilities_.checks_context_pointer &&
        capabilities_.beyond_output(get<kSte, "S1ContextPtr">(ste) << field_of<kSte, "S1ContextPtr">.shift()))
      return true;
  }
  if (stage2 && is_stage2_illegal(ste)) return true;
  return capabilities_.stage2 && config != StreamConfig::Bypass && !capabilities_.wide_vmids &&
         get<kSte, "S2VMID">(ste) >> kSmallVmidBits != 0;
}

bool Core::is_stage2_illegal(const Ste& ste) const {
  const bool stalls = get<kSte, "S2S">(ste) != 0;
  if (stalls ? capabilities_.stall_model == StallModel::Absent : capabilities_.stall_model == StallModel::Forced)
    return true;
  if (get<kSte, "S2AA64">(ste) == 0) return true;
  const bool access = get<kSte, "S2HA">(ste) != 0, dirty = get<kSte, "S2HD">(ste) != 0;
  if ((access || dirty) && capabilities_.flag_updates == FlagUpdates::None) return true;
  if (dirty && capabilities_.flag_updates == FlagUpdates::Access) return true;
  const unsigned granule_lg2 = kGranules0[get<kSte, "S2TG">(ste)];
  if (!capabilities_.supports_granule(granule_lg2)) return true;
  const bool largest = granule_lg2 == kGranules0[1];
  const unsigned output = capabilities_.address_size(get<kSte, "S2PS">(ste));
  constexpr unsigned kNarrow = kAddressSizes[5];
  const unsigned table_bits = largest ? output : std::min(output, kNarrow);
  if ((get<kSte, "S2TTB">(ste) << kTtbLg2 & bits_between(table_bits, 64)) != 0) return true;
  const auto t0sz = static_cast<unsigned>(get<kSte, "S2T0SZ">(ste));
  const unsigned least = std::max(largest ? kSmallestTxsz52 : kSmallestTxsz48, 64 - capabilities_.output_bits);
  if (t0sz < least || t0sz > kLargestTxsz) return true;
  const auto level = start_level(get<kSte, "S2SL0">(ste), granule_lg2);
  if (!level || !is_consistent({static_cast<std::uint8_t>(granule_lg2), static_cast<std::uint8_t>(64 - t0sz), *level}))
    return true;
  const bool big = get<kSte, "S2ENDI">(ste) != 0;
  return big;  // big-endian tables are not modelled, whatever TTENDIAN says
}

// Nothing when the substream is usable.
const FaultRow* Core::check_substream(const TranslationRequest& request, const Ste& ste) const {
  const std::uint64_t contexts = capabilities_.substream_bits == 0 ? 0 : get<kSte, "S1CDMax">(ste);
  const bool stage1 = has_stage(ste, StreamConfig::Stage1);
  const auto missing = static_cast<DefaultSubstream>(get<kSte, "S1DSS">(ste));
  if (request.pasid) {
    if (!stage1 || contexts == 0 || request.pasid->value() >> contexts != 0) return kFault<"C_BAD_SUBSTREAMID">;
    if (missing == DefaultSubstream::Substream0 && request.pasid->value() == 0) return kFault<"F_STREAM_DISABLED">;
    return nullptr;
  }
  const bool terminates = missing != DefaultSubstream::Bypass && missing != DefaultSubstream::Substream0;
  return stage1 && contexts != 0 && terminates ? kFault<"F_STREAM_DISABLED"> : nullptr;
}

void Core::decode_stage2(const Ste& ste, Context& context) const {
  const std::uint64_t code = get<kSte, "S2TG">(ste);
  const std::uint64_t input_bits = 64 - get<kSte, "S2T0SZ">(ste);
  const unsigned granule_lg2 = kGranules0[code];
  const Level level = *start_level(get<kSte, "S2SL0">(ste), granule_lg2);
  const Granule granule{static_cast<std::uint8_t>(granule_lg2), static_cast<std::uint8_t>(input_bits), level};
  const unsigned output = capabilities_.address_size(get<kSte, "S2PS">(ste));
  context.stage2 = {table_base(get<kSte, "S2TTB">(ste), granule, output), level, granule.input_bits, granule.lg2};
  std::uint64_t& bits = context.family_bits;
  bits = with<kDecoded, "stage2_input_bits">(bits, input_bits);
  bits = with<kDecoded, "stage2_granule">(bits, code);
  bits = with<kDecoded, "stage2_output">(bits, get<kSte, "S2PS">(ste));
  bits = with<kDecoded, "stage2_flags">(
      bits, static_cast<std::uint64_t>(
                flags_of(get<kSte, "S2HA">(ste) != 0, get<kSte, "S2HD">(ste) != 0, get<kSte, "S2AFFD">(ste) != 0)));
  bits = with<kDecoded, "stage2_protect">(bits, get<kSte, "S2PTW">(ste));
  bits = with<kDecoded, "stage2_stall">(bits, get<kSte, "S2S">(ste));
  bits = with<kDecoded, "stage2_record">(bits, get<kSte, "S2R">(ste));
}

// Context descriptors -------------------------------------------------------------------------------------------------

// A structure that stage 2 may stand in front of.
Task<Core::Pointer> Core::locate_structure(TranslationRequest request, Context context, std::uint64_t address,
                                           MemoryPort& memory) {
  Pointer pointer{Hpa(address), std::nullopt};
  if (context.kind != ContextKind::Stage2) co_return pointer;
  const Origin origin{.access = FaultingAccess::ContextDescriptor, .intermediate = Gpa(address)};
  const Stage2Format format = stage2_format(context, origin.access, {});
  if (address >> get<kDecoded, "stage2_input_bits">(context.family_bits) != 0) {
    pointer.fault = stage2_fault(request, context, kFault<"F_TRANSLATION">, origin);
    co_return pointer;
  }
  const WalkResult found =
      co_await walk_tables(format, context.stage2, address, Access::Read, HostTables{memory, AccessKind::Stage2Entry},
                           Stage::Stage2, context.stage2_tag(), WalkAids{});
  if (const auto* leaf = std::get_if<WalkLeaf>(&found)) {
    pointer.host = Hpa(leaf->address);
  } else {
    const auto& stop = std::get<WalkStop>(found);
    pointer.fault = stage2_stop(request, context, format,
                                {stop.kind, stop.level, Gpa(address), stop.entry, stop.entry_address}, origin);
  }
  co_return pointer;
}

Task<Core::Located8> Core::read_cd(TranslationRequest request, Ste ste, Context context, std::uint64_t index,
                                   MemoryPort& memory) {
  Located8 result;
  const auto fail = [&](const FaultRow* row, Hpa address) {
    result.fault = fault_of(request, row, Stage::Context);
    if (row == kFault<"F_CD_FETCH">) result.fault->table_entry = address;
  };
  const std::uint64_t contexts = capabilities_.substream_bits == 0 ? 0 : get<kSte, "S1CDMax">(ste);
  const auto format = static_cast<ContextTableFormat>(contexts == 0 ? 0 : get<kSte, "S1Fmt">(ste));
  const std::uint64_t base = get<kSte, "S1ContextPtr">(ste) << field_of<kSte, "S1ContextPtr">.shift();
  std::uint64_t address = base + index * kCdBytes;
  if (format == ContextTableFormat::TwoLevel4K || format == ContextTableFormat::TwoLevel64K) {
    const unsigned per_table = format == ContextTableFormat::TwoLevel4K ? kCdsPer4KLg2 : kCdsPer64KLg2;
    const Pointer first = co_await locate_structure(request, context, base + (index >> per_table) * kL1CdBytes, memory);
    if (first.fault) {
      result.fault = first.fault;
      co_return result;
    }
    const MemoryResult entry = co_await memory.read64(first.host, AccessKind::DeviceTable);
    const std::uint64_t table = entry.value & mask_of<kL1Cd, "L2Ptr">;
    if (entry.failed) {
      fail(kFault<"F_CD_FETCH">, first.host);
      co_return result;
    }
    if (get<kL1Cd, "V">(entry.value) == 0 || capabilities_.beyond_output(table)) {  // smmuv3-004
      fail(kFault<"C_BAD_SUBSTREAMID">, {});
      if (!request.pasid) result.fault->pasid = Pasid(0);
      co_return result;
    }
    address = table + (index & bits_between(0, per_table)) * kCdBytes;
  }
  const Pointer last = co_await locate_structure(request, context, address, memory);
  if (last.fault) {
    result.fault = last.fault;
    co_return result;
  }
  const auto cd = co_await memory.read_block<8>(last.host, AccessKind::DeviceTable);
  result.words = cd.words;
  if (cd.failed) fail(kFault<"F_CD_FETCH">, last.host);
  co_return result;
}

// One TTB with its size, granule and address. [CDTxSZInvalid(), CDTTBxOutOfRange() of §5.4.2]
bool Core::is_range_illegal(std::uint64_t txsz, unsigned granule, std::uint64_t table, unsigned output_bits) const {
  if (!capabilities_.supports_granule(granule)) return true;
  const bool largest = granule == kGranules0[1];
  const unsigned least = capabilities_.wide_input && largest ? kSmallestTxsz52 : kSmallestTxsz48;
  if (txsz < least || txsz > kLargestTxsz) return true;
  constexpr unsigned kNarrow = kAddressSizes[5];
  return (table << kTtbLg2 & bits_between(largest ? output_bits : std::min(output_bits, kNarrow), 64)) != 0;
}

// CdIllegal() of §5.4.2.
bool Core::is_illegal(const Cd& cd, const Ste& ste) const {
  if (get<kCd, "V">(cd) == 0) return true;
  const bool stalls = get<kCd, "S">(cd) != 0;
  if (stalls && get<kSte, "S1STALLD">(ste) != 0) return true;
  if (capabilities_.terminates_only_with_abort && get<kCd, "A">(cd) == 0) return true;
  if (stalls ? capabilities_.stall_model == StallModel::Absent : capabilities_.stall_model == StallModel::Forced)
    return true;
  const bool lower = get<kCd, "EPD0">(cd) == 0, upper = get<kCd, "EPD1">(cd) == 0;
  if ((lower || upper) && get<kCd, "ENDI">(cd) != 0) return true;  // big-endian tables are not modelled
  if (get<kCd, "AA64">(cd) == 0) return true;
  const bool access = get<kCd, "HA">(cd) != 0, dirty = get<kCd, "HD">(cd) != 0;
  if ((access || dirty) && capabilities_.flag_updates == FlagUpdates::None) return true;
  if (dirty && capabilities_.flag_updates == FlagUpdates::Access) return true;
  if (!capabilities_.wide_asids && get<kCd, "ASID">(cd) >> kSmallVmidBits != 0) return true;
  const unsigned output = capabilities_.address_size(get<kCd, "IPS">(cd));
  return (lower &&
          is_range_illegal(get<kCd, "T0SZ">(cd), kGranules0[get<kCd, "TG0">(cd)], get<kCd, "TTB0">(cd), output)) ||
         (upper &&
          is_range_illegal(get<kCd, "T1SZ">(cd), kGranules1[get<kCd, "TG1">(cd)], get<kCd, "TTB1">(cd), output));
}

void Core::decode_stage1(const Cd& cd, Context& context) const {
  const unsigned output = capabilities_.address_size(get<kCd, "IPS">(cd));
  std::uint64_t& bits = context.family_bits;
  const auto root = [&](std::uint64_t txsz, unsigned granule_lg2, std::uint64_t ttb) {
    const Granule granule = Granule::of_stage1(granule_lg2, static_cast<unsigned>(64 - txsz));
    return TableRoot{table_base(ttb, granule, output), granule.top_level, granule.input_bits, granule.lg2};
  };
  if (get<kCd, "EPD0">(cd) == 0) {
    const unsigned granule = kGranules0[get<kCd, "TG0">(cd)];
    context.stage1 = root(get<kCd, "T0SZ">(cd), granule, get<kCd, "TTB0">(cd));
    bits = with<kDecoded, "input_bits0">(bits, 64 - get<kCd, "T0SZ">(cd));
    bits = with<kDecoded, "granule0">(bits, granule);
  }
  if (get<kCd, "EPD1">(cd) == 0) {
    const unsigned granule = kGranules1[get<kCd, "TG1">(cd)];
    context.stage1_upper = root(get<kCd, "T1SZ">(cd), granule, get<kCd, "TTB1">(cd));
    bits = with<kDecoded, "input_bits1">(bits, 64 - get<kCd, "T1SZ">(cd));
    bits = with<kDecoded, "granule1">(bits, granule);
  }
  bits = with<kDecoded, "output_bits">(bits, output);
  bits =
      with<kDecoded, "flags">(bits, static_cast<std::uint64_t>(flags_of(
                                        get<kCd, "HA">(cd) != 0, get<kCd, "HD">(cd) != 0, get<kCd, "AFFD">(cd) != 0)));
  bits = with<kDecoded, "top_byte_ignored0">(bits, get<kCd, "TBI0">(cd));
  bits = with<kDecoded, "top_byte_ignored1">(bits, get<kCd, "TBI1">(cd));
  bits = with<kDecoded, "flat0">(bits, capabilities_.flat_permissions ? get<kCd, "HAD0">(cd) : 0);
  bits = with<kDecoded, "flat1">(bits, capabilities_.flat_permissions ? get<kCd, "HAD1">(cd) : 0);
  bits = with<kDecoded, "never_user_data">(bits, get<kCd, "PAN">(cd));
  bits = with<kDecoded, "write_execute_never">(bits, get<kCd, "WXN">(cd));
  bits = with<kDecoded, "stall">(bits, get<kCd, "S">(cd));
  bits = with<kDecoded, "record">(bits, get<kCd, "R">(cd));
  bits = with<kDecoded, "abort">(bits, get<kCd, "A">(cd));
  context.asid = AsidTag(static_cast<std::uint32_t>(get<kCd, "ASID">(cd)));
}

Task<ContextResult> Core::find_context(TranslationRequest request, MemoryPort& memory) {
  const bool by_ats = request.type != AddressType::Untranslated;
  // Nothing but the two ATS events is recorded on behalf of ATS; the requester is told of an error. [§7.3.22]
  const auto stop = [&](Fault fault) {
    if (by_ats && fault.row != kFault<"F_BAD_ATS_TREQ"> && fault.row != kFault<"F_TRANSL_FORBIDDEN">) {
      fault.row = kFault<"ATS error">;
      fault.suppressed = true;
      fault.termination = Termination::Abort;
      if (fault.stall) stalled_.erase(*std::exchange(fault.stall, std::nullopt));
    }
    ContextResult result = fault;
    return result;
  };
  const Located8 stream = co_await read_ste(request, memory);
  if (stream.fault) co_return stop(*stream.fault);
  const Ste& ste = stream.words;
  if (is_illegal(ste)) co_return stop(fault_of(request, kFault<"C_BAD_STE">, Stage::Context));
  const StreamConfig config = config_of(ste);
  if (config == StreamConfig::Abort) {
    Fault fault = fault_of(request, kFault<"abort">, Stage::Context);
    fault.suppressed = true;
    co_return stop(fault);
  }
  Context context;
  context.domain = DomainTag(capabilities_.stage2 ? static_cast<std::uint32_t>(get<kSte, "S2VMID">(ste)) : 0);
  context.family_bits = with<kDecoded, "ats">(0, static_cast<std::uint64_t>(ats_mode(ste)));
  context.privilege = override_of(capabilities_.attribute_override ? get<kSte, "PRIVCFG">(ste) : 0);
  context.execution = override_of(capabilities_.attribute_override ? get<kSte, "INSTCFG">(ste) : 0);
  if (const auto refused = refused_by_kind(request, context)) co_return stop(*refused);
  if (const FaultRow* row = check_substream(request, ste)) co_return stop(fault_of(request, row, Stage::Context));

  if (has_stage(ste, StreamConfig::Stage2)) {
    context.kind = ContextKind::Stage2;
    decode_stage2(ste, context);
  }
  const bool substreams = capabilities_.substream_bits != 0 && get<kSte, "S1CDMax">(ste) != 0;
  const bool skips = !request.pasid && substreams &&
                     static_cast<DefaultSubstream>(get<kSte, "S1DSS">(ste)) == DefaultSubstream::Bypass;
  if (has_stage(ste, StreamConfig::Stage1) && !skips) {
    const std::uint64_t index = request.pasid ? request.pasid->value() : 0;
    const Located8 cd = co_await read_cd(request, ste, context, index, memory);
    if (cd.fault) co_return stop(*cd.fault);
    if (is_illegal(cd.words, ste)) co_return stop(fault_of(request, kFault<"C_BAD_CD">, Stage::Context));
    decode_stage1(cd.words, context);
    context.stage1_entry = {ste[0], ste[1]};
    context.process = AsidTag(static_cast<std::uint32_t>(index));
    context.kind = context.kind == ContextKind::Stage2 ? ContextKind::Nested : ContextKind::Stage1;
  }
  ContextResult result = context;
  co_return result;
}

}  // namespace iommu::smmuv3
