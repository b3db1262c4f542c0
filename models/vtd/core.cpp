// SPDX-License-Identifier: Apache-2.0
// Which path a request takes, and what a walk's stop means as a fault.
#include "models/vtd/core.hpp"

#include <algorithm>

#include "models/vtd/decoded_context.hpp"
#include "models/vtd/fault_of.hpp"
#include "sim/translation/answers.hpp"

namespace iommu::vtd {

namespace {

constexpr std::uint64_t kDwordBytes = 4;
constexpr std::uint8_t kWholeSpaceLg2 = 63;

bool is_interrupt_address(std::uint64_t address) { return address >= kInterruptFirst && address <= kInterruptLast; }
bool is_scalable(const Context& context) { return get<kDecoded, "scalable">(context.family_bits) != 0; }

Fault fault(const TranslationRequest& request, const Context& context, const FaultRow* row, Stage stage) {
  return fault_of(request, row, stage, context.faults_suppressed ? Recording::Disabled : Recording::Enabled);
}

// A request without PASID has the privilege that its context gives it; with PASID, what it asks for.
bool is_supervisor(const TranslationRequest& request, const Context& context) {
  return context.mode_of(request).privileged;
}

const FaultRow* permission_row(Access access, const Context& context) {
  if (is_scalable(context)) return access == Access::Write ? kFault<"SGN.6"> : kFault<"SGN.7">;
  return access == Access::Write ? kFault<"LGN.2"> : kFault<"LGN.3">;
}

// What a second-stage entry refused. A denial that is not of R or W is of a mark. [vtd-002, vtd-003]
const FaultRow* second_stage_row(StopKind kind, Level level, std::uint64_t entry, Access access,
                                 const Context& context) {
  const bool scalable = is_scalable(context);
  const bool top = level == context.stage2.top_level;
  const std::uint64_t right = access == Access::Write ? mask_of<kSecondStagePage, "W"> : mask_of<kSecondStagePage, "R">;
  switch (kind) {
    case StopKind::Absent:
      return scalable ? kFault<"SSS.2"> : permission_row(access, context);
    case StopKind::Malformed:
      return scalable ? kFault<"SSS.3"> : kFault<"LSS.2">;
    case StopKind::MemoryFailed:
      if (scalable) return top ? kFault<"SSS.4"> : kFault<"SSS.1">;
      return top ? kFault<"LCT.4.3"> : kFault<"LSS.1">;
    case StopKind::MarkFailed:
      return kFault<"SSS.6">;
    case StopKind::OutOfRange:
      return kFault<"SGN.5">;
    case StopKind::Denied:
      return (entry & right) != 0 ? kFault<"SSS.5"> : permission_row(access, context);
    case StopKind::Stage2:
      break;
  }
  SIM_CHECK(false, "second stage is never itself nested");
  return nullptr;
}

// Stage 2 refused an address that stage 1 needed for one of its own entries.
const FaultRow* nested_entry_row(const WalkStop& stop, const Context& context) {
  const Stage2Stop& refused = *stop.stage2;
  if (refused.kind == StopKind::OutOfRange) return kFault<"SFS.5">;
  const Access access = stop.while_marking ? Access::Write : Access::Read;
  const FaultRow* row = second_stage_row(refused.kind, refused.level, refused.entry, access, context);
  if (row->kind != FaultClass::Permission) return row;
  if (stop.while_marking) return kFault<"SFS.8">;
  return stop.level == context.stage1.top_level ? kFault<"SFS.6"> : kFault<"SFS.7">;
}

const FaultRow* first_stage_row(const WalkStop& stop, const FirstStageFormat& format, Access access,
                                const Context& context) {
  switch (stop.kind) {
    case StopKind::Absent:
      return kFault<"SFS.2">;
    case StopKind::Malformed:
      return kFault<"SFS.3">;
    case StopKind::MemoryFailed:
      return stop.level == context.stage1.top_level ? kFault<"SFS.4"> : kFault<"SFS.1">;
    case StopKind::MarkFailed:
      return kFault<"SFS.10">;
    case StopKind::Denied:
      if (format.denies_user(stop.entry)) return kFault<"SGN.2">;
      return access == Access::Write && !format.allows_write(stop.entry) ? kFault<"SGN.6"> : kFault<"SFS.9">;
    case StopKind::Stage2:
      return nested_entry_row(stop, context);
    case StopKind::OutOfRange:
      break;
  }
  SIM_CHECK(false, "stage 1 checks its range before it walks");
  return nullptr;
}

// Bits [top - 1, 64) all equal.
bool is_canonical(std::uint64_t address, Level top_level) {
  const std::uint64_t upper = bits_between(span_lg2_of(static_cast<Level>(top_level + 1)) - 1, 64);
  return (address & upper) == 0 || (address & upper) == upper;
}

TranslationResponse respond(const TranslationRequest& request, const Context& context, const WalkLeaf& leaf,
                            Stage stage) {
  if (is_interrupt_address(leaf.address))
    return fault(request, context, is_scalable(context) ? kFault<"SGN.8"> : kFault<"LGN.4">, stage);
  constexpr AddressRange kInterrupts{kInterruptFirst, kInterruptLast};
  std::uint8_t cacheable_lg2 = block_outside(kInterrupts, leaf.address, leaf.page_lg2);
  if (!request.pasid) cacheable_lg2 = block_outside(kInterrupts, request.address.value(), cacheable_lg2);
  Translation translation{Hpa(leaf.address), cacheable_lg2, leaf.allowed, leaf.attributes, false};
  if (get<kDecoded, "snoop">(context.family_bits) != 0) translation.attributes.snoop = true;
  return translation;
}

// A translation request that lacks a right is answered with no rights; only malformed tables are faults. [§4.1]
TranslationResponse refuse(const Fault& refused) {
  const FaultClass kind = refused.row->kind;
  if (refused.type == AddressType::TranslationRequest &&
      (kind == FaultClass::NotPresent || kind == FaultClass::Permission))
    return Translation{Hpa(refused.address.value()), kPageLg2, {}, {}, false};
  return refused;
}

TranslationResponse bypass(const TranslationRequest& request) {
  return Translation{Hpa(request.address.value()), kWholeSpaceLg2, kReadWrite, {}, true};
}

}  // namespace

// Writes of four bytes to 0xFEEx_xxxx without PASID are interrupt requests; without interrupt remapping they go on
// unchanged. They meet no device table. [§3.14, vtd-004]
std::optional<TranslationResponse> Core::answer_without_tables(const TranslationRequest& request) const {
  const std::uint64_t address = request.address.value();
  if (request.pasid || request.type == AddressType::Translated || !is_interrupt_address(address)) return std::nullopt;
  if (request.type == AddressType::Untranslated && request.access == Access::Write &&
      request.length.value() == kDwordBytes && address % kDwordBytes == 0)
    return bypass(request);
  const FaultRow* row = is_scalable() ? kFault<"SGN.8"> : kFault<"LGN.4">;
  return fault_of(request, row, Stage::Context, Recording::Enabled);
}

FirstStageFormat Core::first_stage_format(const TranslationRequest& request, const Context& context) const {
  const std::uint64_t bits = context.family_bits;
  FirstStageOptions use = first_stage_.options();
  use.supervisor = is_supervisor(request, context);
  use.write_protect = get<kDecoded, "write_protect">(bits) != 0;
  use.extended_accessed = get<kDecoded, "extended_accessed">(bits) != 0;
  use.marks_forbidden = get<kDecoded, "marks_forbidden">(bits) != 0;
  return first_stage_.with_use(use);
}

SecondStageFormat Core::second_stage_format(const Context& context) const {
  SecondStageOptions use = second_stage_.options();
  use.marks = get<kDecoded, "second_stage_marks">(context.family_bits) != 0;
  use.marks_forbidden = use.marks && get<kDecoded, "marks_forbidden">(context.family_bits) != 0;
  return second_stage_.with_use(use);
}

// What a context refuses before any table is read.
std::optional<Fault> Core::blocked(const TranslationRequest& request, const Context& context) const {
  const bool scalable = vtd::is_scalable(context);
  const std::uint64_t address = request.address.value();
  const std::uint64_t bits = get<kDecoded, "input_bits">(context.family_bits);
  const bool too_wide = bits < 64 && address >> bits != 0;
  // Contexts may be cached, so what depends on the request is checked here as well.
  if (request.type != AddressType::Untranslated && get<kDecoded, "device_tlb">(context.family_bits) == 0)
    return fault(request, context, scalable ? kFault<"SCT.5"> : kFault<"LCT.5">, Stage::Context);
  if (is_supervisor(request, context) && get<kDecoded, "supervisor">(context.family_bits) == 0)
    return fault(request, context, kFault<"SPT.6">, Stage::Context);
  switch (context.kind) {
    case ContextKind::Bypass:
      if (too_wide) return fault(request, context, scalable ? kFault<"SGN.4"> : kFault<"LGN.1.3">, Stage::Context);
      if (is_interrupt_address(address)) return fault(request, context, kFault<"SGN.8">, Stage::Context);
      return std::nullopt;
    case ContextKind::Stage2:
      if (too_wide) return fault(request, context, scalable ? kFault<"SGN.5"> : kFault<"LGN.1.1">, Stage::Stage2);
      return std::nullopt;
    case ContextKind::Stage1:
    case ContextKind::Nested:
      if (!is_canonical(address, context.stage1.top_level))
        return fault(request, context, kFault<"SGN.1">, Stage::Stage1);
      return std::nullopt;
  }
  return std::nullopt;
}

// Not a coroutine itself, so that a walk has one frame less.
Task<TranslationResponse> Core::walk(TranslationRequest request, Context context, MemoryPort& memory, WalkAids aids) {
  if (const auto fault = blocked(request, context)) return at_once(*fault);
  // A translated request carries a host-physical address that an ATS request was granted.
  if (request.type == AddressType::Translated || context.kind == ContextKind::Bypass) return at_once(bypass(request));
  switch (context.kind) {
    case ContextKind::Stage1:
      return walk_first_stage(request, context, memory, aids);
    case ContextKind::Nested:
      return walk_nested(request, context, memory, aids);
    default:
      return walk_second_stage(request, context, memory, aids);
  }
}

Task<TranslationResponse> Core::walk_second_stage(TranslationRequest request, Context context, MemoryPort& memory,
                                                  WalkAids aids) {
  const WalkResult result =
      co_await walk_tables(second_stage_format(context), context.stage2, request.address.value(), request.access,
                           HostTables{memory, AccessKind::Stage2Entry}, Stage::Stage2, context.stage2_tag(), aids);
  if (const auto* leaf = std::get_if<WalkLeaf>(&result)) co_return respond(request, context, *leaf, Stage::Stage2);
  const auto& stop = std::get<WalkStop>(result);
  const FaultRow* row = second_stage_row(stop.kind, stop.level, stop.entry, request.access, context);
  co_return refuse(fault(request, context, row, Stage::Stage2));
}

Task<TranslationResponse> Core::walk_first_stage(TranslationRequest request, Context context, MemoryPort& memory,
                                                 WalkAids aids) {
  const FirstStageFormat format = first_stage_format(request, context);
  const WalkResult result = co_await walk_tables(format, context.stage1, request.address.value(), request.access,
                                                 HostTables{memory, AccessKind::Stage1Entry}, Stage::Stage1,
                                                 context.stage1_tag(context.mode_of(request)), aids);
  if (const auto* leaf = std::get_if<WalkLeaf>(&result)) co_return respond(request, context, *leaf, Stage::Stage1);
  const auto& stop = std::get<WalkStop>(result);
  co_return refuse(fault(request, context, first_stage_row(stop, format, request.access, context), Stage::Stage1));
}

// Every first-stage entry and the first stage's output go through the second stage; the result is the smaller page with
// the rights that both give. [§3.8]
Task<TranslationResponse> Core::walk_nested(TranslationRequest request, Context context, MemoryPort& memory,
                                            WalkAids aids) {
  const FirstStageFormat format = first_stage_format(request, context);
  const auto input_bits = static_cast<unsigned>(get<kDecoded, "input_bits">(context.family_bits));
  const NestedTables<SecondStageFormat> tables{memory,         AccessKind::Stage1Entry, second_stage_format(context),
                                               context.stage2, context.stage2_tag(),    aids,
                                               input_bits};
  const WalkResult first = co_await walk_tables(format, context.stage1, request.address.value(), request.access, tables,
                                                Stage::Stage1, context.stage1_tag(context.mode_of(request)), aids);
  if (const auto* stop = std::get_if<WalkStop>(&first)) {
    Fault refused = fault(request, context, first_stage_row(*stop, format, request.access, context), Stage::Stage1);
    if (stop->stage2) refused.gpa = stop->stage2->address;
    co_return refuse(refused);
  }
  const auto& leaf = std::get<WalkLeaf>(first);
  const WalkResult second = co_await tables.translate(Gpa(leaf.address), request.access);
  if (const auto* stop = std::get_if<WalkStop>(&second)) {
    Fault refused =
        fault(request, context, second_stage_row(stop->kind, stop->level, stop->entry, request.access, context),
              Stage::Stage2);
    refused.gpa = Gpa(leaf.address);
    co_return refuse(refused);
  }
  WalkLeaf output = std::get<WalkLeaf>(second);
  output.page_lg2 = std::min(output.page_lg2, leaf.page_lg2);
  output.allowed = output.allowed & leaf.allowed;
  co_return respond(request, context, output, Stage::Stage2);
}

}  // namespace iommu::vtd
