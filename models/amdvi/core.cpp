// SPDX-License-Identifier: Apache-2.0
// Which path a request takes, and what a walk's stop means as an event.
#include "models/amdvi/core.hpp"

#include <algorithm>

#include "models/amdvi/decoded_context.hpp"
#include "sim/base/check.hpp"
#include "sim/translation/answers.hpp"

namespace iommu::amdvi {

namespace {

constexpr std::uint64_t kDwordBytes = 4;
constexpr std::uint8_t kWholeSpaceLg2 = 63;

bool is_interrupt_address(std::uint64_t address) { return address >= kInterruptFirst && address <= kInterruptLast; }

EventContext events_of(const Context& context) {
  return {.domain = context.domain.value(),
          .suppress_all = context.faults_suppressed,
          .suppress_one = get<kDecoded, "suppress_one">(context.family_bits) != 0,
          .guest = false};
}

Fault fault(const TranslationRequest& request, const Context& context, const FaultRow* row, Stage stage) {
  return fault_of(request, row, stage, events_of(context));
}

Permissions allowed_by_entry(const Context& context) {
  return {.read = get<kDecoded, "read">(context.family_bits) != 0,
          .write = get<kDecoded, "write">(context.family_bits) != 0};
}

HostFormat host_format(const Context& context) {
  return HostFormat({.mark_accessed = get<kDecoded, "mark_accessed">(context.family_bits) != 0,
                     .mark_dirty = get<kDecoded, "mark_dirty">(context.family_bits) != 0});
}

unsigned input_bits(Level top_level) { return span_lg2_of(static_cast<Level>(top_level + 1)); }
bool exceeds(std::uint64_t address, Level top_level) {
  const unsigned bits = input_bits(top_level);
  return bits < 64 && address >> bits != 0;
}
// Bits [top - 1, 64) all equal.
bool is_canonical(std::uint64_t address, Level top_level) {
  const std::uint64_t upper = bits_between(input_bits(top_level) - 1, 64);
  return (address & upper) == 0 || (address & upper) == upper;
}

// What a host entry refused of `input`.
const FaultRow* host_row(StopKind kind, Level level, std::uint64_t entry, std::uint64_t input) {
  switch (kind) {
    case StopKind::Absent:
      return kFault<"IO_PAGE_FAULT.host_absent">;
    case StopKind::Denied:
      return kFault<"IO_PAGE_FAULT.host_denied">;
    case StopKind::OutOfRange:
      return kFault<"IO_PAGE_FAULT.range">;
    case StopKind::MemoryFailed:
    case StopKind::MarkFailed:
      return kFault<"PAGE_TAB_HARDWARE_ERROR.host">;
    case StopKind::Malformed:
      switch (HostFormat().defect(entry, level, input)) {
        case HostFormat::Defect::Level:
          return kFault<"IO_PAGE_FAULT.host_level">;
        case HostFormat::Defect::Size:
          return kFault<"IO_PAGE_FAULT.host_size">;
        case HostFormat::Defect::Skipped:
          return kFault<"IO_PAGE_FAULT.host_skipped">;
        case HostFormat::Defect::Reserved:
        case HostFormat::Defect::None:
          return kFault<"IO_PAGE_FAULT.host_reserved">;
      }
      break;
    case StopKind::Stage2:
      break;
  }
  SIM_CHECK(false, "host tables are never themselves nested");
  return nullptr;
}

const FaultRow* guest_row(const WalkStop& stop, const GuestFormat& format) {
  switch (stop.kind) {
    case StopKind::Absent:
      return kFault<"IO_PAGE_FAULT.guest_absent">;
    case StopKind::Denied:
      return format.denies_user(stop.entry) ? kFault<"IO_PAGE_FAULT.guest_user"> : kFault<"IO_PAGE_FAULT.guest_denied">;
    case StopKind::Malformed:
      return kFault<"IO_PAGE_FAULT.guest_reserved">;
    case StopKind::MemoryFailed:
    case StopKind::MarkFailed:
      return kFault<"PAGE_TAB_HARDWARE_ERROR.guest">;
    case StopKind::Stage2:
    case StopKind::OutOfRange:
      break;
  }
  SIM_CHECK(false, "refusals of the host tables are reported as such");
  return nullptr;
}

Fault host_fault(const TranslationRequest& request, const Context& context, const WalkStop& stop) {
  Fault refused =
      fault(request, context, host_row(stop.kind, stop.level, stop.entry, request.address.value()), Stage::Stage2);
  if (refused.row->kind == FaultClass::MemoryAccess) refused.table_entry = stop.entry_address;
  return refused;
}

// Of the host tables, at a guest-physical address: amdvi-005.
Fault nested_fault(const TranslationRequest& request, const Context& context, const Stage2Stop& stop) {
  Fault refused =
      fault(request, context, host_row(stop.kind, stop.level, stop.entry, stop.address.value()), Stage::Stage2);
  refused.gpa = stop.address;
  refused.family_bits = with<kEventBits, "gpa">(refused.family_bits, 1);
  if (refused.row->kind == FaultClass::MemoryAccess) refused.table_entry = stop.entry_address;
  return refused;
}

Fault guest_fault(const TranslationRequest& request, const Context& context, const FaultRow* row) {
  Fault refused = fault(request, context, row, Stage::Stage1);
  refused.family_bits = with<kEventBits, "guest">(refused.family_bits, 1);
  return refused;
}

// A translation request that page-faults is answered with no rights and not logged. [§2.1.3.2]
TranslationResponse refuse(const Fault& refused) {
  if (refused.type == AddressType::TranslationRequest &&
      refused.row->code == static_cast<unsigned>(EventCode::IoPageFault))
    return Translation{Hpa(refused.address.value()), kPageLg2, {}, {}, false};
  return refused;
}

TranslationResponse forward(const TranslationRequest& request, Permissions allowed) {
  return Translation{Hpa(request.address.value()), kWholeSpaceLg2, allowed, {}, true};
}

}  // namespace

bool Core::is_translating() const { return get<kControl, "IommuEn">(reg(kRegControl)) != 0; }

// Writes of four bytes to 0xFEEx_xxxx without PASID are interrupt requests; they meet no page table. [§2.1.2]
std::optional<TranslationResponse> Core::answer_without_tables(const TranslationRequest& request) const {
  const std::uint64_t address = request.address.value();
  if (request.pasid || request.type != AddressType::Untranslated || request.access != Access::Write ||
      !is_interrupt_address(address) || request.length.value() != kDwordBytes || address % kDwordBytes != 0)
    return std::nullopt;
  return forward(request, kReadWrite);
}

// Base and limit are of the device's addresses; the limit's low bits count as ones. [§2.2.4, §3.4.5]
bool Core::is_excluded(std::uint64_t address, const Context& context) const {
  const std::uint64_t base = reg(kRegExclusionBase);
  if (get<kExclusionBase, "ExEn">(base) == 0) return false;
  if (get<kExclusionBase, "Allow">(base) == 0 && get<kDecoded, "excluded">(context.family_bits) == 0) return false;
  const std::uint64_t page = address >> kPageLg2;
  return page >= get<kExclusionBase, "ExBase">(base) &&
         page <= get<kExclusionLimit, "ExLimit">(reg(kRegExclusionLimit));
}

// By the type and the address of a request alone: amdvi-007.
std::optional<TranslationResponse> Core::answer_by_address(const TranslationRequest& request,
                                                           const Context& context) const {
  const bool device_tlb = get<kDecoded, "device_tlb">(context.family_bits) != 0;
  const bool is_translation_request = request.type == AddressType::TranslationRequest;
  if (get<kDecoded, "valid">(context.family_bits) == 0) return forward(request, kReadWrite);
  if (request.type == AddressType::Translated) {
    if (!device_tlb) return fault(request, context, kFault<"INVALID_DEVICE_REQUEST.translated">, Stage::Context);
    return forward(request, kReadWrite);
  }
  if (is_translation_request && !device_tlb)
    return fault(request, context, kFault<"INVALID_DEVICE_REQUEST.tr_disabled">, Stage::Context);
  if (!request.pasid && is_interrupt_address(request.address.value()))
    return fault(request, context,
                 is_translation_request ? kFault<"INVALID_DEVICE_REQUEST.tr_interrupt_range">
                                        : kFault<"INVALID_DEVICE_REQUEST.interrupt_range">,
                 Stage::Context);
  if (!request.pasid && is_excluded(request.address.value(), context)) return forward(request, kReadWrite);
  return std::nullopt;
}

// What needs no page table, in the order of checks: amdvi-002, amdvi-004.
std::optional<TranslationResponse> Core::answer_from_context(const TranslationRequest& request,
                                                             const Context& context) const {
  if (const auto answer = answer_by_address(request, context)) return answer;
  const std::uint64_t bits = context.family_bits;
  const std::uint64_t address = request.address.value();
  if (get<kDecoded, "translates">(bits) == 0)
    return refuse(fault(request, context, kFault<"IO_PAGE_FAULT.untranslated">, Stage::Context));
  if (get<kDecoded, "mode">(bits) > capabilities_.host_levels)
    return refuse(fault(request, context, kFault<"IO_PAGE_FAULT.mode">, Stage::Context));
  if (request.pasid && !context.asid) return refuse(guest_fault(request, context, kFault<"IO_PAGE_FAULT.pasid">));
  if (!allowed_by_entry(context).allow(request.access))
    return refuse(fault(request, context, kFault<"IO_PAGE_FAULT.host_denied">, Stage::Context));
  switch (context.kind) {
    case ContextKind::Bypass:
      return forward(request, allowed_by_entry(context));
    case ContextKind::Stage2:
      if (exceeds(address, context.stage2.top_level))
        return refuse(fault(request, context, kFault<"IO_PAGE_FAULT.range">, Stage::Stage2));
      return std::nullopt;
    case ContextKind::Stage1:
    case ContextKind::Nested:
      if (!is_canonical(address, context.stage1.top_level))  // amdvi-012
        return refuse(guest_fault(request, context, kFault<"IO_PAGE_FAULT.guest_absent">));
      return std::nullopt;
  }
  return std::nullopt;
}

// The largest part of a page that may be cached: a cached copy must not reach into input that is answered otherwise.
std::uint8_t Core::cacheable_lg2(std::uint64_t input, const Context& context, std::uint8_t page_lg2) const {
  page_lg2 = block_outside({kInterruptFirst, kInterruptLast}, input, page_lg2);
  const AddressRange exclusion{get<kExclusionBase, "ExBase">(reg(kRegExclusionBase)) << kPageLg2,
                               get<kExclusionLimit, "ExLimit">(reg(kRegExclusionLimit)) << kPageLg2};
  return is_excluded(exclusion.first, context) ? block_outside(exclusion, input, page_lg2) : page_lg2;
}

TranslationResponse Core::respond(const TranslationRequest& request, const Context& context,
                                  const WalkLeaf& leaf) const {
  std::uint8_t lg2 = leaf.page_lg2;
  if (lg2 > kPageLg2 && !request.pasid) lg2 = cacheable_lg2(request.address.value(), context, lg2);
  return Translation{Hpa(leaf.address), lg2, leaf.allowed & allowed_by_entry(context), leaf.attributes, false};
}

GuestFormat Core::guest_format(AccessMode mode) const {
  const std::uint64_t control = reg(kRegControl);
  return GuestFormat({.host_address_bits = capabilities_.host_address_bits,
                      .supervisor = mode.privileged,
                      .checks_user = capabilities_.user_supervisor,
                      .mark_accessed = get<kControl, "GAUpdateDis">(control) == 0,
                      .mark_dirty = get<kControl, "GDUpdateDis">(control) == 0});
}

// Not a coroutine itself, so that a walk has one frame less.
Task<TranslationResponse> Core::walk(TranslationRequest request, Context context, MemoryPort& memory, WalkAids aids) {
  if (const auto answer = answer_from_context(request, context)) return at_once(*answer);
  switch (context.kind) {
    case ContextKind::Stage1:
      return walk_guest(request, context, memory, aids);
    case ContextKind::Nested:
      return walk_nested(request, context, memory, aids);
    default:
      return walk_host(request, context, memory, aids);
  }
}

Task<TranslationResponse> Core::walk_host(TranslationRequest request, Context context, MemoryPort& memory,
                                          WalkAids aids) {
  const WalkResult result =
      co_await walk_tables(host_format(context), context.stage2, request.address.value(), request.access,
                           HostTables{memory, AccessKind::Stage2Entry}, Stage::Stage2, context.stage2_tag(), aids);
  if (const auto* leaf = std::get_if<WalkLeaf>(&result)) co_return respond(request, context, *leaf);
  co_return refuse(host_fault(request, context, std::get<WalkStop>(result)));
}

Task<TranslationResponse> Core::walk_guest(TranslationRequest request, Context context, MemoryPort& memory,
                                           WalkAids aids) {
  const GuestFormat format = guest_format(context.mode_of(request));
  const WalkResult result = co_await walk_tables(format, context.stage1, request.address.value(), request.access,
                                                 HostTables{memory, AccessKind::Stage1Entry}, Stage::Stage1,
                                                 context.stage1_tag(context.mode_of(request)), aids);
  if (const auto* leaf = std::get_if<WalkLeaf>(&result)) co_return respond(request, context, *leaf);
  const auto& stop = std::get<WalkStop>(result);
  Fault refused = guest_fault(request, context, guest_row(stop, format));
  if (refused.row->kind == FaultClass::MemoryAccess) refused.table_entry = stop.entry_address;
  co_return refuse(refused);
}

// Every guest entry and the guest's output go through the host tables; the result is the smaller page with the rights
// that both give. [§2.2.6]
Task<TranslationResponse> Core::walk_nested(TranslationRequest request, Context context, MemoryPort& memory,
                                            WalkAids aids) {
  const GuestFormat format = guest_format(context.mode_of(request));
  const NestedTables<HostFormat> tables{memory,
                                        AccessKind::Stage1Entry,
                                        host_format(context),
                                        context.stage2,
                                        context.stage2_tag(),
                                        aids,
                                        std::min(input_bits(context.stage2.top_level), 64U)};
  const WalkResult first = co_await walk_tables(format, context.stage1, request.address.value(), request.access, tables,
                                                Stage::Stage1, context.stage1_tag(context.mode_of(request)), aids);
  if (const auto* stop = std::get_if<WalkStop>(&first)) {
    if (stop->stage2) co_return refuse(nested_fault(request, context, *stop->stage2));
    Fault refused = guest_fault(request, context, guest_row(*stop, format));
    if (refused.row->kind == FaultClass::MemoryAccess) refused.table_entry = stop->entry_address;
    co_return refuse(refused);
  }
  const auto& leaf = std::get<WalkLeaf>(first);
  const WalkResult second = co_await tables.translate(Gpa(leaf.address), request.access);
  if (const auto* stop = std::get_if<WalkStop>(&second)) {
    const Stage2Stop refused{stop->kind, stop->level, Gpa(leaf.address), stop->entry, stop->entry_address};
    co_return refuse(nested_fault(request, context, refused));
  }
  WalkLeaf output = std::get<WalkLeaf>(second);
  output.page_lg2 = std::min(output.page_lg2, leaf.page_lg2);
  output.allowed = output.allowed & leaf.allowed;
  co_return respond(request, context, output);
}

}  // namespace iommu::amdvi
