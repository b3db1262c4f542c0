// SPDX-License-Identifier: Apache-2.0
// Which path a transaction takes, and what a walk's stop means as an event. [§3.4, §7.3, §13]
#include "models/smmuv3/core.hpp"

#include <algorithm>

#include "models/smmuv3/decoded_context.hpp"
#include "models/smmuv3/register_rows.hpp"
#include "sim/translation/answers.hpp"

namespace iommu::smmuv3 {

namespace {

constexpr std::uint8_t kWholeSpaceLg2 = 63;

TranslationResponse bypass(const TranslationRequest& request) {
  return Translation{Hpa(request.address.value()), kWholeSpaceLg2, kReadWrite, {}, true};
}

AtsMode ats_of(const Context& context) { return static_cast<AtsMode>(get<kDecoded, "ats">(context.family_bits)); }

// One of the two input ranges of stage 1.
struct InputRange {
  TableRoot root;
  Granule granule;
};

// As whose and as what a transaction is checked. An ATS request without PASID and a translated transaction
// (IDR3.PASIDTT = 0) come as unprivileged data; what an ATS request asks to execute is granted beside its rights, and
// refuses nothing. [§3.9.1.3, §13.7]
AccessMode mode_of(TranslationRequest request, const Context& context) {
  const bool by_ats = request.type != AddressType::Untranslated;
  if (by_ats) request.execute = false;
  if (request.type == AddressType::Translated || (by_ats && !request.pasid)) request.privileged = false;
  return context.mode_of(request);
}

std::uint64_t detail_of(const TranslationRequest& request, const Context& context, FaultingAccess access) {
  const AccessMode mode = mode_of(request, context);
  return pack<kFaultDetail>({{"class", static_cast<std::uint64_t>(access)},
                             {"table_read", 1},
                             {"privileged", mode.privileged ? 1U : 0U},
                             {"instruction", mode.execute && request.access == Access::Read ? 1U : 0U}});
}

// The range that VA[55] selects, unless it is disabled or the address is not sign-extended into it. [§3.4.1]
std::optional<InputRange> input_range(const Context& context, std::uint64_t address) {
  const std::uint64_t bits = context.family_bits;
  const bool upper = (address >> kSignBit & 1) != 0;
  const auto input_bits =
      static_cast<unsigned>(upper ? get<kDecoded, "input_bits1">(bits) : get<kDecoded, "input_bits0">(bits));
  const auto granule = static_cast<unsigned>(upper ? get<kDecoded, "granule1">(bits) : get<kDecoded, "granule0">(bits));
  if (input_bits == 0) return std::nullopt;
  const bool tagged =
      (upper ? get<kDecoded, "top_byte_ignored1">(bits) : get<kDecoded, "top_byte_ignored0">(bits)) != 0;
  const std::uint64_t sign = bits_between(input_bits, tagged ? kSignBit + 1 : 64);
  if ((address & sign) != (upper ? sign : 0)) return std::nullopt;
  const TableRoot root = upper ? context.stage1_upper : context.stage1;
  return InputRange{root, {static_cast<std::uint8_t>(granule), static_cast<std::uint8_t>(input_bits), root.top_level}};
}

const FaultRow* row_of(StopKind kind, bool lacks_access_flag) {
  switch (kind) {
    case StopKind::Absent:
    case StopKind::OutOfRange:
      return kFault<"F_TRANSLATION">;
    case StopKind::Malformed:
      return kFault<"F_ADDR_SIZE">;
    case StopKind::Denied:
      return lacks_access_flag ? kFault<"F_ACCESS"> : kFault<"F_PERMISSION">;
    case StopKind::MemoryFailed:
    case StopKind::MarkFailed:
      return kFault<"F_WALK_EABT">;
    case StopKind::Stage2:
      break;
  }
  SIM_CHECK(false, "what stage 2 refused is asked of stage 2");
  return nullptr;
}

}  // namespace

bool Core::is_translating() const {
  return get<kCr0, "SMMUEN">(reg(kRegCr0)) != 0 || get<kGbpa, "ABORT">(reg(kRegGbpa)) != 0;
}

std::optional<TranslationResponse> Core::answer_without_tables(const TranslationRequest& request) const {
  const std::uint64_t control = reg(kRegCr0);
  if (get<kCr0, "SMMUEN">(control) == 0) {
    if (get<kGbpa, "ABORT">(reg(kRegGbpa)) == 0) return bypass(request);
    Fault fault = fault_of(request, kFault<"abort">, Stage::Context);
    fault.suppressed = true;
    return fault;
  }
  // Unchecked, translated transactions pass. [§6.3.9.3]
  if (request.type == AddressType::Translated && capabilities_.ats && get<kCr0, "ATSCHK">(control) == 0)
    return pass_translated(request);
  return std::nullopt;
}

// Of the two behaviours allowed for addresses beyond the OAS, the one without truncation. [§3.9.1.1]
TranslationResponse Core::pass_translated(const TranslationRequest& request) const {
  if (!capabilities_.beyond_output(request.address.value())) return bypass(request);
  Fault fault = fault_of(request, kFault<"abort">, Stage::Context);
  fault.suppressed = true;
  return fault;
}

// Faults --------------------------------------------------------------------------------------------------------------

// Only untranslated transactions stall; the record is then made in any case. [§5.5] No more records of stalls than
// STALL_MAX are without an answer. [§6.3.6]
void Core::stall(Fault& fault) {
  if (fault.type != AddressType::Untranslated) return;
  fault.awaits_stall = stalled_.size() >= capabilities_.stalls;
  if (fault.awaits_stall) return;
  while (stalled_.contains(next_stall_)) ++next_stall_;
  fault.stall = next_stall_;
  fault.suppressed = false;
  stalled_.emplace(next_stall_++, Stalled{.requester = fault.requester});
}

// One of the four translation-related faults, or of a walk's external aborts, at stage 1. [§5.5 A, R, S]
Fault Core::stage1_fault(const TranslationRequest& request, const Context& context, const FaultRow* row) {
  const std::uint64_t bits = context.family_bits;
  Fault fault = fault_of(request, row, Stage::Stage1);
  fault.family_bits = detail_of(request, context, FaultingAccess::Input);
  if (!row->qualified) return fault;
  fault.suppressed = get<kDecoded, "record">(bits) == 0;
  if (get<kDecoded, "abort">(bits) == 0) fault.termination = Termination::ReadsZero;
  if (get<kDecoded, "stall">(bits) != 0) stall(fault);
  return fault;
}

Fault Core::stage2_fault(const TranslationRequest& request, const Context& context, const FaultRow* row,
                         const Origin& origin) {
  const std::uint64_t bits = context.family_bits;
  Fault fault = fault_of(request, row, Stage::Stage2);
  fault.gpa = origin.intermediate;
  fault.family_bits = with<kFaultDetail, "stage2">(detail_of(request, context, origin.access), 1);
  fault.family_bits = with<kFaultDetail, "table_read">(fault.family_bits, origin.is_table_read ? 1 : 0);
  if (!row->qualified) return fault;
  fault.suppressed = get<kDecoded, "stage2_record">(bits) == 0;
  if (get<kDecoded, "stage2_stall">(bits) != 0) stall(fault);
  return fault;
}

Fault Core::stage2_stop(const TranslationRequest& request, const Context& context, const Stage2Format& format,
                        const Stage2Stop& stop, const Origin& origin) {
  const FaultRow* row = row_of(stop.kind, format.lacks_access_flag(stop.entry));
  Fault fault = stage2_fault(request, context, row, origin);
  if (row == kFault<"F_WALK_EABT">) fault.table_entry = stop.entry_address;
  return fault;
}

Fault Core::stage1_stop(const TranslationRequest& request, const Context& context, const Stage1Format& format,
                        const WalkStop& stop) {
  if (stop.kind == StopKind::Stage2) {
    const Origin origin{
        .access = FaultingAccess::Table, .intermediate = stop.stage2->address, .is_table_read = !stop.while_marking};
    return stage2_stop(request, context, stage2_format(context, FaultingAccess::Table, {}), *stop.stage2, origin);
  }
  const FaultRow* row = row_of(stop.kind, format.lacks_access_flag(stop.entry));
  Fault fault = stage1_fault(request, context, row);
  if (row == kFault<"F_WALK_EABT">) {
    fault.table_entry = stop.entry_address;
    fault.family_bits =
        with<kFaultDetail, "class">(fault.family_bits, static_cast<std::uint64_t>(FaultingAccess::Table));
  }
  return fault;
}

// A translation request that is refused gets no rights, and no event. An abort on the way is an error. [§3.9.1]
TranslationResponse Core::refuse(Fault refused) const {
  if (refused.type == AddressType::Untranslated) return refused;
  if (refused.type == AddressType::TranslationRequest && refused.row->qualified)
    return Translation{Hpa(refused.address.value()), kPageLg2, {}, {}, false};
  if (refused.type == AddressType::Translated && refused.row->qualified) return refused;  // stage 2 of split-stage ATS
  refused.row = kFault<"ATS error">;
  refused.suppressed = true;
  return refused;
}

// What a context allows by kind of request. Contexts may be cached, so this is asked with each request.
std::optional<Fault> Core::refused_by_kind(const TranslationRequest& request, const Context& context) const {
  if (ats_of(context) != AtsMode::Disabled) return std::nullopt;
  if (request.type == AddressType::TranslationRequest)
    return fault_of(request, kFault<"F_BAD_ATS_TREQ">, Stage::Context);
  if (request.type == AddressType::Translated) return fault_of(request, kFault<"F_TRANSL_FORBIDDEN">, Stage::Context);
  return std::nullopt;
}

// Walks ---------------------------------------------------------------------------------------------------------------

Stage1Format Core::stage1_format(const TranslationRequest& request, const Context& context, Granule granule) const {
  const std::uint64_t bits = context.family_bits;
  const bool upper = (request.address.value() >> kSignBit & 1) != 0;
  return Stage1Format({.granule = granule,
                       .output_bits = static_cast<unsigned>(get<kDecoded, "output_bits">(bits)),
                       .wide_output = capabilities_.wide_output,
                       .flags = static_cast<FlagHandling>(get<kDecoded, "flags">(bits)),
                       .mode = mode_of(request, context),
                       .never_user_data = get<kDecoded, "never_user_data">(bits) != 0,
                       .write_execute_never = get<kDecoded, "write_execute_never">(bits) != 0,
                       .flat_permissions = (upper ? get<kDecoded, "flat1">(bits) : get<kDecoded, "flat0">(bits)) != 0});
}

// What of it stage 2 tells apart.
AccessMode Core::stage2_mode(AccessMode mode) const {
  mode.privileged = mode.privileged && mode.execute && capabilities_.stage2_execution_by_privilege;
  return mode;
}

Stage2Format Core::stage2_format(const Context& context, FaultingAccess access, AccessMode mode) const {
  const std::uint64_t bits = context.family_bits;
  return Stage2Format(
      {.granule = {kGranules0[get<kDecoded, "stage2_granule">(bits)],
                   static_cast<std::uint8_t>(get<kDecoded, "stage2_input_bits">(bits)), context.stage2.top_level},
       .output_bits = capabilities_.address_size(get<kDecoded, "stage2_output">(bits)),
       .wide_output = capabilities_.wide_output,
       .flags = static_cast<FlagHandling>(get<kDecoded, "stage2_flags">(bits)),
       .mode = mode,
       .execution_by_privilege = capabilities_.stage2_execution_by_privilege,
       .no_device_memory = access != FaultingAccess::Input && get<kDecoded, "stage2_protect">(bits) != 0});
}

// No coroutine itself: a walk costs two frames, not three.
Task<TranslationResponse> Core::walk(TranslationRequest request, Context context, MemoryPort& memory, WalkAids aids) {
  if (const auto fault = refused_by_kind(request, context)) return at_once(*fault);
  const bool translated = request.type == AddressType::Translated;
  // With split stages the requester holds intermediate addresses. [§13.6.3]
  if (translated && ats_of(context) != AtsMode::SplitStage) return at_once(pass_translated(request));
  if (!translated && (context.kind == ContextKind::Stage1 || context.kind == ContextKind::Nested))
    return walk_stage1(request, context, memory, aids);
  // Stage 1 is bypassed: its output is the input, if it has that many bits. [§3.4]
  if (capabilities_.beyond_output(request.address.value())) {
    Fault fault = fault_of(request, kFault<"F_ADDR_SIZE">, Stage::Stage1);
    fault.family_bits = detail_of(request, context, FaultingAccess::Input);
    return at_once(refuse(fault));
  }
  if (context.kind == ContextKind::Bypass) return at_once(bypass(request));
  return walk_stage2(request, context, memory, aids);
}

// An ATS request that asked to execute learns whether it may. [§13.7.1]
Translation Core::respond(const TranslationRequest& request, const Context& context, const WalkLeaf& leaf) {
  Translation translation{
      Hpa(leaf.address), leaf.page_lg2, {.read = leaf.allowed.read, .write = leaf.allowed.write}, leaf.attributes};
  const bool asked = request.type == AddressType::TranslationRequest && request.pasid && request.execute;
  const bool all_is_data = context.execution == Override::Never;
  translation.executable = asked && leaf.allowed.read && (all_is_data || !leaf.allowed.execute_never);
  return translation;
}

Task<TranslationResponse> Core::walk_stage2(TranslationRequest request, Context context, MemoryPort& memory,
                                            WalkAids aids) {
  const std::uint64_t address = request.address.value();
  const AccessMode mode = stage2_mode(mode_of(request, context));
  const Stage2Format format = stage2_format(context, FaultingAccess::Input, mode);
  const Origin origin{.intermediate = Gpa(address)};
  if (address >> get<kDecoded, "stage2_input_bits">(context.family_bits) != 0)
    co_return refuse(stage2_fault(request, context, kFault<"F_TRANSLATION">, origin));
  const WalkResult result =
      co_await walk_tables(format, context.stage2, address, request.access, HostTables{memory, AccessKind::Stage2Entry},
                           Stage::Stage2, context.stage2_tag(mode), aids);
  if (const auto* leaf = std::get_if<WalkLeaf>(&result)) {
    TranslationResponse response = respond(request, context, *leaf);
    co_return response;
  }
  const auto& stop = std::get<WalkStop>(result);
  co_return refuse(stage2_stop(request, context, format,
                               {stop.kind, stop.level, Gpa(address), stop.entry, stop.entry_address}, origin));
}

// Under nesting every stage-1 entry and stage 1's output go through stage 2; the result is the smaller page with the
// rights that both give.
Task<TranslationResponse> Core::walk_stage1(TranslationRequest request, Context context, MemoryPort& memory,
                                            WalkAids aids) {
  const std::uint64_t address = request.address.value();
  const auto range = input_range(context, address);
  if (!range) co_return refuse(stage1_fault(request, context, kFault<"F_TRANSLATION">));
  const Stage1Format format = stage1_format(request, context, range->granule);
  const AccessMode mode = mode_of(request, context);
  const auto stage2_bits = static_cast<unsigned>(get<kDecoded, "stage2_input_bits">(context.family_bits));
  WalkResult first;
  if (context.kind == ContextKind::Nested) {
    const NestedTables<Stage2Format> tables{
        memory,         AccessKind::Stage1Entry, stage2_format(context, FaultingAccess::Table, {}),
        context.stage2, context.stage2_tag(),    aids,
        stage2_bits};
    first = co_await walk_tables(format, range->root, address, request.access, tables, Stage::Stage1,
                                 context.stage1_tag(mode), aids);
  } else {
    first =
        co_await walk_tables(format, range->root, address, request.access, HostTables{memory, AccessKind::Stage1Entry},
                             Stage::Stage1, context.stage1_tag(mode), aids);
  }
  if (const auto* stop = std::get_if<WalkStop>(&first)) co_return refuse(stage1_stop(request, context, format, *stop));
  const WalkLeaf leaf = std::get<WalkLeaf>(first);
  const bool intermediate = request.type == AddressType::TranslationRequest && ats_of(context) == AtsMode::SplitStage;
  if (context.kind == ContextKind::Stage1 || intermediate) {
    TranslationResponse response = respond(request, context, leaf);
    co_return response;
  }
  const AccessMode mode2 = stage2_mode(mode);
  const Stage2Format output = stage2_format(context, FaultingAccess::Input, mode2);
  const NestedTables<Stage2Format> outputs{
      memory, AccessKind::Stage2Entry, output, context.stage2, context.stage2_tag(mode2), aids, stage2_bits};
  const WalkResult second = co_await outputs.translate(Gpa(leaf.address), request.access);
  if (const auto* stop = std::get_if<WalkStop>(&second))
    co_return refuse(stage2_stop(request, context, output,
                                 {stop->kind, stop->level, Gpa(leaf.address), stop->entry, stop->entry_address},
                                 {.intermediate = Gpa(leaf.address)}));
  const auto& last = std::get<WalkLeaf>(second);
  TranslationResponse response =
      respond(request, context,
              {last.address, std::min(last.page_lg2, leaf.page_lg2), last.allowed & leaf.allowed, leaf.attributes});
  co_return response;
}

}  // namespace iommu::smmuv3
