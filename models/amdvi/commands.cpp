// SPDX-License-Identifier: Apache-2.0
// The command buffer: fetching, checking and decoding commands. [§2.4]
//
// A command is checked before the head moves: the head stays at a bad one and nothing more is fetched (amdvi-009).
#include <algorithm>
#include <bit>

#include "models/amdvi/core.hpp"

namespace iommu::amdvi {

namespace {

using Words = std::array<std::uint64_t, 4>;

std::span<const std::uint64_t> body(const Words& words) { return std::span(words).first(2); }
unsigned opcode_of(const Words& words) { return static_cast<unsigned>(get<kCommand, "OpCode">(body(words))); }

const CommandRow* row_of(unsigned opcode) {
  const auto found = std::find_if(kCommandRows.begin(), kCommandRows.end(),
                                  [opcode](const CommandRow& row) { return row.opcode == opcode; });
  return found == kCommandRows.end() ? nullptr : &*found;
}

RequesterId requester(std::uint64_t device) { return RequesterId(static_cast<std::uint16_t>(device)); }
DomainTag domain_tag(std::uint64_t domain) { return DomainTag(static_cast<std::uint32_t>(domain)); }
AsidTag asid_tag(std::uint64_t pasid) { return AsidTag(static_cast<std::uint32_t>(pasid)); }

// S: the lowest zero bit of the address, from bit 12, is half the range; without one below bit 51 it is everything.
// [§2.4.3; linux drivers/iommu/amd/iommu.c, build_inv_address]
constexpr unsigned kLargestRangeLg2 = 52;
std::optional<AddressRange> range_of(std::uint64_t page, std::uint64_t sized) {
  const unsigned lg2 = kPageLg2 + (sized != 0 ? static_cast<unsigned>(std::countr_one(page)) + 1 : 0);
  if (lg2 >= kLargestRangeLg2) return std::nullopt;
  const std::uint64_t first = page << kPageLg2 >> lg2 << lg2;
  return AddressRange{first, first | bits_between(0, lg2)};
}

// Guest form: what the PASID's tables and its GCR3 entry gave. Host form: also what guest translation made of it, which
// is tagged by guest addresses and cannot be told apart. [§2.4.3]
enum class GuestTables : std::uint8_t { Disabled, Enabled };
std::vector<InvalidationScope> page_scopes(std::span<const std::uint64_t> c, GuestTables guest_tables) {
  InvalidationScope scope{.kind = InvalidationKind::Iotlb, .domain = domain_tag(get<kInvalidatePages, "DomainID">(c))};
  scope.range = range_of(get<kInvalidatePages, "Address">(c), get<kInvalidatePages, "S">(c));
  const bool directories = get<kInvalidatePages, "PDE">(c) != 0;
  scope.leaf_only = !directories;
  if (get<kInvalidatePages, "GN">(c) == 0) {
    if (guest_tables == GuestTables::Disabled) return {scope};
    InvalidationScope nested{.kind = InvalidationKind::Iotlb, .domain = scope.domain};
    nested.stage1_only = true;
    return {scope, nested};
  }
  scope.asid = asid_tag(get<kInvalidatePages, "PASID">(c));
  if (!directories || scope.range) return {scope};
  return {{.kind = InvalidationKind::ProcessContext, .domain = scope.domain, .asid = scope.asid}, scope};
}

InvalidationScope device_tlb_scope(std::span<const std::uint64_t> c) {
  InvalidationScope scope{.kind = InvalidationKind::DeviceTlb,
                          .requester = requester(get<kInvalidateIotlb, "DeviceID">(c)),
                          .range = range_of(get<kInvalidateIotlb, "Address">(c), get<kInvalidateIotlb, "S">(c))};
  if (get<kInvalidateIotlb, "GN">(c) != 0)
    scope.asid = asid_tag(get<kInvalidateIotlb, "PASIDa">(c) | get<kInvalidateIotlb, "PASIDb">(c) << kPasidbLsb |
                          get<kInvalidateIotlb, "PASIDc">(c) << kPasidcLsb);
  return scope;
}

FenceCompletion fence(std::span<const std::uint64_t> c) {
  FenceCompletion completion;
  constexpr unsigned kAddressShift = field_of<kCompletionWait, "StoreAddress">.shift();
  if (get<kCompletionWait, "s">(c) != 0)
    completion.status = FenceCompletion::StatusWrite{Hpa(get<kCompletionWait, "StoreAddress">(c) << kAddressShift),
                                                     get<kCompletionWait, "StoreData">(c), sizeof(std::uint64_t)};
  completion.interrupt = get<kCompletionWait, "i">(c) != 0;
  completion.is_barrier = !completion.status && !completion.interrupt;
  return completion;
}

bool violates_reserved(unsigned opcode, std::span<const std::uint64_t> c) {
  switch (opcode) {
    case kOpCompletionWait:
      return kCompletionWait.violates_reserved(c);
    case kOpInvalidateDevtabEntry:
    case kOpInvalidateInterruptTable:
      return kInvalidateDevice.violates_reserved(c);
    case kOpInvalidateIommuPages:
      return kInvalidatePages.violates_reserved(c);
    case kOpInvalidateIotlbPages:
      return kInvalidateIotlb.violates_reserved(c);
    case kOpPrefetchIommuPages:
      return kPrefetchPages.violates_reserved(c);
    case kOpCompletePprRequest:
      return kCompletePpr.violates_reserved(c);
    default:
      return kInvalidateAll.violates_reserved(c);
  }
}

}  // namespace

bool Core::has_command() const {
  return get<kStatus, "CmdBufRun">(reg(kRegStatus)) != 0 &&
         !ring(kRegCommandBase, kRegCommandHead, kRegCommandTail).is_empty();
}

// What a command needs that the unit lacks makes it illegal.
bool Core::is_legal(const Command& command) const {
  const unsigned opcode = opcode_of(command.words);
  const auto c = body(command.words);
  if (row_of(opcode) == nullptr || violates_reserved(opcode, c)) return false;
  switch (opcode) {
    case kOpInvalidateIommuPages:
      return capabilities_.guest_translation || get<kInvalidatePages, "GN">(c) == 0;
    case kOpInvalidateIotlbPages:
      return capabilities_.device_tlb && (capabilities_.iotlb_types || get<kInvalidateIotlb, "Type">(c) == 0) &&
             (capabilities_.guest_translation || get<kInvalidateIotlb, "GN">(c) == 0);
    case kOpPrefetchIommuPages:
      return capabilities_.prefetch;
    case kOpCompletePprRequest:
      return capabilities_.page_requests;
    case kOpInvalidateIommuAll:
      return capabilities_.invalidate_all;
    default:
      return true;
  }
}

void Core::stop_commands(EventCode code, Hpa command) {
  const bool hardware = code == EventCode::CommandHardwareError;
  set_status(mask_of<kStatus, "CmdBufRun">, 0);
  Event event{};
  put<kHardwareEvent, "EventCode">(event, static_cast<std::uint64_t>(code));
  put<kHardwareEvent, "Type">(event, hardware ? kMasterAbort : 0);
  put<kHardwareEvent, "Address">(event, command.value());
  log(event);
}

Task<std::optional<Command>> Core::fetch_command(MemoryPort& memory) {
  std::optional<Command> none;
  if (!has_command()) co_return none;
  const RingIndices indices = ring(kRegCommandBase, kRegCommandHead, kRegCommandTail);
  const std::uint64_t base = reg(kRegCommandBase);
  const Hpa address = ring_address(kRegCommandBase, indices.head);
  const auto block = co_await memory.read_block<2>(address, AccessKind::Command);
  // Software may have stopped the ring, or moved it, while the command was on its way.
  if (!has_command() || reg(kRegCommandBase) != base ||
      ring(kRegCommandBase, kRegCommandHead, kRegCommandTail).head != indices.head)
    co_return none;
  Command command;
  command.bytes = kRingEntryBytes;
  std::copy(block.words.begin(), block.words.end(), command.words.begin());
  if (block.failed || !is_legal(command)) {
    stop_commands(block.failed ? EventCode::CommandHardwareError : EventCode::IllegalCommandError, address);
    co_return none;
  }
  command.row = row_of(opcode_of(command.words));
  registers_.set(kRegCommandHead, with<kRingPointer, "Ptr">(0, indices.next(indices.head)));
  std::optional<Command> fetched = command;
  co_return fetched;
}

CommandEffect Core::apply(const Command& command) {
  CommandEffect effect;
  if (!is_legal(command)) {  // not one of fetch_command()'s
    effect.error = true;
    return effect;
  }
  const auto c = body(command.words);
  switch (opcode_of(command.words)) {
    case kOpCompletionWait:
      effect.fence = fence(c);
      break;
    case kOpInvalidateDevtabEntry: {
      const RequesterId device = requester(get<kInvalidateDevice, "DeviceID">(c));
      faulted_once_.reset(device.value());
      effect.scopes = {{.kind = InvalidationKind::Context, .requester = device}};
      break;
    }
    case kOpInvalidateIommuPages:
      effect.scopes =
          page_scopes(c, get<kControl, "GTEn">(reg(kRegControl)) != 0 ? GuestTables::Enabled : GuestTables::Disabled);
      break;
    case kOpInvalidateIotlbPages:
      effect.scopes = {device_tlb_scope(c)};
      break;
    case kOpInvalidateInterruptTable:
      effect.scopes = {
          {.kind = InvalidationKind::InterruptEntry, .requester = requester(get<kInvalidateDevice, "DeviceID">(c))}};
      break;
    case kOpPrefetchIommuPages:  // a hint; the invalidation it may ask for names a device, whose domain is not at hand
      if (get<kPrefetchPages, "Inval">(c) != 0)
        effect.scopes = {{.kind = InvalidationKind::Iotlb,
                          .range = range_of(get<kPrefetchPages, "Address">(c), get<kPrefetchPages, "S">(c))}};
      break;
    case kOpCompletePprRequest:  // nobody made a page request
      break;
    default:
      faulted_once_.reset();
      effect.scopes = {{.kind = InvalidationKind::Context},
                       {.kind = InvalidationKind::ProcessContext},
                       {.kind = InvalidationKind::Iotlb},
                       {.kind = InvalidationKind::InterruptEntry}};
      break;
  }
  return effect;
}

}  // namespace iommu::amdvi
