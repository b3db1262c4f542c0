// SPDX-License-Identifier: Apache-2.0
// The command queue: fetching, checking and decoding. [§4] A bad command stays at the head, and nothing is fetched
// until software acknowledges the error. [§7.1]
#include <algorithm>
#include <utility>

#include "models/smmuv3/core.hpp"
#include "models/smmuv3/register_rows.hpp"

namespace iommu::smmuv3 {

namespace {

std::span<const std::uint64_t> words_of(const Command& command) { return std::span(command.words).first(2); }
unsigned opcode_of(const Command& command) { return static_cast<unsigned>(get<kCommand, "OP">(words_of(command))); }

bool is_by_address(unsigned opcode) {
  return opcode == kCmdTlbiNhVa || opcode == kCmdTlbiNhVaa || opcode == kCmdTlbiS2Ipa;
}
bool is_stage1_only(unsigned opcode) {
  return opcode == kCmdCfgiCd || opcode == kCmdCfgiCdAll || (opcode >= kCmdTlbiNhAll && opcode <= kCmdTlbiNhVaa);
}
// Commands with an SSec bit: Secure streams are out of reach here. [§4.1.6]
bool names_stream(unsigned opcode) {
  return opcode <= kCmdCfgiCdAll || (opcode >= kCmdAtcInv && opcode <= kCmdStallTerm);
}

RequesterId requester(std::uint64_t stream) { return RequesterId(static_cast<std::uint16_t>(stream)); }

InvalidationScope configuration_scope(const Command& command) {
  const auto words = words_of(command);
  InvalidationScope scope{.kind = InvalidationKind::Context, .requester = requester(get<kCfgi, "StreamID">(words))};
  switch (opcode_of(command)) {
    case kCmdCfgiSteRange: {
      constexpr unsigned kRequesterBits = 16;
      const auto bits = static_cast<unsigned>(get<kCfgi, "Range">(words)) + 1;
      scope.requester_ignore = static_cast<std::uint16_t>(bits_between(0, std::min(bits, kRequesterBits)));
      if (bits >= kRequesterBits) scope.requester.reset(), scope.requester_ignore = 0;
      return scope;
    }
    case kCmdCfgiCd:
    case kCmdCfgiCdAll:
      // Cached contexts carry no SubstreamID: all of the stream's go, as the specification permits.
      scope.kind = InvalidationKind::ProcessContext;
      return scope;
    default:
      return scope;
  }
}

InvalidationScope atc_scope(const Command& command) {
  const auto words = words_of(command);
  InvalidationScope scope{.kind = InvalidationKind::DeviceTlb, .requester = requester(get<kAtcInv, "StreamID">(words))};
  if (get<kAtcInv, "SSV">(words) != 0) {
    scope.asid = AsidTag(static_cast<std::uint32_t>(get<kAtcInv, "SubstreamID">(words)));
    scope.global_pages = get<kAtcInv, "Global">(words) != 0;
  }
  const auto size = static_cast<unsigned>(get<kAtcInv, "Size">(words));
  if (size >= kAtcInvAll) return scope;
  const std::uint64_t inside = bits_between(0, size + kPageLg2);
  const std::uint64_t first = get<kAtcInv, "Address">(words) << kPageLg2 & ~inside;
  scope.range = AddressRange{first, first | inside};
  return scope;
}

PageRequestResponse page_response(const Command& command) {
  const auto words = words_of(command);
  PageRequestResponse response{.requester = requester(get<kPriResp, "StreamID">(words)),
                               .group = static_cast<std::uint16_t>(get<kPriResp, "PRGIndex">(words))};
  if (get<kPriResp, "SSV">(words) != 0)
    response.pasid = Pasid(static_cast<std::uint32_t>(get<kPriResp, "SubstreamID">(words)));
  switch (static_cast<PageResponseCode>(get<kPriResp, "Resp">(words))) {
    case PageResponseCode::Success:
      response.code = PageRequestResponse::Code::Success;
      break;
    case PageResponseCode::Invalid:
      response.code = PageRequestResponse::Code::Invalid;
      break;
    default:
      response.code = PageRequestResponse::Code::Failure;
      break;
  }
  return response;
}

}  // namespace

const CommandRow* Core::command_row(const Command& command) {
  const auto found = std::ranges::find(kCommandRows, opcode_of(command), &CommandRow::opcode);
  return found == kCommandRows.end() ? nullptr : &*found;
}

bool Core::has_command() const {
  if (!is_enabled(Queue::Commands) || is_active(mask_of<kGerror, "CMDQ_ERR">)) return false;
  const RingIndices indices = pending_commands();
  return !indices.is_empty() && indices.occupancy() <= indices.format.entries;  // smmuv3-003
}

RingIndices Core::pending_commands() const {
  RingIndices indices = ring(Queue::Commands);
  if (is_syncing_) indices.head = indices.next(indices.head);
  return indices;
}

// A CMD_SYNC is consumed when it has completed: whoever polls for it without a message sees the index move past it.
// [§4.7.3]
void Core::completed() {
  if (!std::exchange(is_syncing_, false)) return;
  const RingIndices indices = ring(Queue::Commands);
  registers_.set(kRegCmdqCons, with<kCmdqCons, "RD">(reg(kRegCmdqCons), indices.next(indices.head)));
}

void Core::stop_commands(CommandError error) {
  registers_.set(kRegCmdqCons, with<kCmdqCons, "ERR">(reg(kRegCmdqCons), static_cast<std::uint64_t>(error)));
  activate(mask_of<kGerror, "CMDQ_ERR">);
}

CommandError Core::validate(const Command& command) const {
  const unsigned opcode = opcode_of(command);
  const auto words = words_of(command);
  const bool stalls = opcode == kCmdResume || opcode == kCmdStallTerm;
  const bool needs_stage2 = opcode == kCmdTlbiS12Vmall || opcode == kCmdTlbiS2Ipa;
  const bool illegal = command_row(command) == nullptr || (is_stage1_only(opcode) && !capabilities_.stage1) ||
                       (needs_stage2 && !capabilities_.stage2) || (opcode == kCmdAtcInv && !capabilities_.ats) ||
                       (opcode == kCmdPriResp && !capabilities_.page_requests) ||
                       (stalls && capabilities_.stall_model == StallModel::Absent) ||
                       (names_stream(opcode) && get<kCfgi, "SSec">(words) != 0);
  if (illegal) return CommandError::Illegal;
  // One page by range, without a level, is a reserved combination. [§4.4.1.1]
  if (is_by_address(opcode) && capabilities_.range_invalidation && get<kTlbi, "TG">(words) != 0 &&
      get<kTlbi, "NUM">(words) == 0 && get<kTlbi, "SCALE">(words) == 0 && get<kTlbi, "TTL">(words) == 0)
    return CommandError::Illegal;
  if (opcode == kCmdPriResp &&
      static_cast<PageResponseCode>(get<kPriResp, "Resp">(words)) == PageResponseCode::Reserved)
    return CommandError::Illegal;
  if (opcode == kCmdSync && static_cast<SyncSignal>(get<kSync, "CS">(words)) == SyncSignal::Reserved)
    return CommandError::Illegal;
  return CommandError::None;
}

Task<std::optional<Command>> Core::fetch_command(MemoryPort& memory) {
  std::optional<Command> none;
  completed();
  if (!has_command()) co_return none;
  const std::uint64_t base = reg(kRegCmdqBase);
  const std::uint64_t consumer = reg(kRegCmdqCons);
  const RingIndices indices = ring(Queue::Commands);
  const auto block = co_await memory.read_block<2>(queue_address(Queue::Commands, indices.head), AccessKind::Command);
  // Software may have switched the queue off, or moved it, while the command was on its way.
  if (!has_command() || reg(kRegCmdqBase) != base || reg(kRegCmdqCons) != consumer) co_return none;
  Command command;
  command.bytes = kCommandBytes;
  std::copy(block.words.begin(), block.words.end(), command.words.begin());
  const CommandError error = block.failed ? CommandError::Abort : validate(command);
  if (error != CommandError::None) {
    stop_commands(error);
    co_return none;
  }
  command.row = command_row(command);
  is_syncing_ = opcode_of(command) == kCmdSync;
  if (!is_syncing_) registers_.set(kRegCmdqCons, with<kCmdqCons, "RD">(consumer, indices.next(indices.head)));
  std::optional<Command> fetched = command;
  co_return fetched;
}

CommandEffect Core::apply(const Command& command) {
  CommandEffect effect;
  if (validate(command) != CommandError::None) {  // not one of fetch_command()'s
    effect.error = true;
    return effect;
  }
  switch (opcode_of(command)) {
    case kCmdPrefetchConfig:
    case kCmdPrefetchAddr:
      break;  // a hint, and not required to do anything
    case kCmdCfgiSte:
    case kCmdCfgiSteRange:
    case kCmdCfgiCd:
    case kCmdCfgiCdAll:
      effect.scopes = {configuration_scope(command)};
      break;
    case kCmdAtcInv:
      if (is_translating()) effect.scopes = {atc_scope(command)};
      break;
    case kCmdPriResp:
      if (is_translating()) effect.page_response = page_response(command);
      break;
    case kCmdResume:
      if (const StallResolution resolution = resume(command); resolution.tag) effect.resolutions = {resolution};
      break;
    case kCmdStallTerm:
      effect.resolutions = {terminate_all(requester(get<kResume, "StreamID">(words_of(command))))};
      break;
    case kCmdSync: {
      const auto words = words_of(command);
      const std::uint64_t address = (get<kSync, "MSIAddress">(words) << field_of<kSync, "MSIAddress">.shift()) &
                                    bits_between(0, capabilities_.output_bits);
      const bool message = static_cast<SyncSignal>(get<kSync, "CS">(words)) == SyncSignal::Interrupt &&
                           capabilities_.messages && get<kSync, "MSIAddress">(words) != 0;
      effect.fence = FenceCompletion{.orders_records = true};  // [§4.7.3]
      if (message) effect.fence->status = FenceCompletion::StatusWrite{Hpa(address), get<kSync, "MSIData">(words), 4};
      effect.fence->is_barrier = !message;
      break;
    }
    default:
      effect.scopes = {tlbi_scope(command)};
      break;
  }
  return effect;
}

// [§3.17.6]
InvalidationScope Core::of_vmid(const Command& command) const {
  InvalidationScope scope{.kind = InvalidationKind::Iotlb, .domain = DomainTag(0)};
  if (!capabilities_.stage2) return scope;
  scope.domain = DomainTag(static_cast<std::uint32_t>(get<kTlbi, "VMID">(words_of(command))));
  const std::uint64_t wildcard = get<kCr0, "VMW">(reg(kRegCr0));
  if (wildcard <= kLargestVmidWildcard)
    scope.domain_ignore = static_cast<std::uint32_t>(bits_between(0, static_cast<unsigned>(wildcard)));
  return scope;
}

// Granule and level hints do not narrow the scope: more may go than was asked for.
AddressRange Core::tlbi_range(const Command& command) const {
  const auto words = words_of(command);
  const std::uint64_t first = get<kTlbi, "Address">(words) << kPageLg2;
  const unsigned granule = capabilities_.range_invalidation ? kTlbiGranules[get<kTlbi, "TG">(words)] : 0;
  if (granule == 0) return {first, first | bits_between(0, kPageLg2)};
  const unsigned shift = static_cast<unsigned>(get<kTlbi, "SCALE">(words)) + granule;
  const std::uint64_t bytes = (get<kTlbi, "NUM">(words) + 1) << shift;
  const std::uint64_t last = first + (bytes - 1);
  return {first, last < first ? ~0ULL : last};
}

InvalidationScope Core::tlbi_scope(const Command& command) const {
  const auto words = words_of(command);
  InvalidationScope scope = of_vmid(command);
  const unsigned opcode = opcode_of(command);
  if (opcode == kCmdTlbiNsnhAll) return {.kind = InvalidationKind::Iotlb};
  if (is_by_address(opcode)) {
    scope.range = tlbi_range(command);
    scope.leaf_only = get<kTlbi, "Leaf">(words) != 0;
  }
  switch (opcode) {
    case kCmdTlbiNhAsid:
    case kCmdTlbiNhVa:
      scope.asid = AsidTag(static_cast<std::uint32_t>(get<kTlbi, "ASID">(words)));
      scope.global_pages = opcode == kCmdTlbiNhVa;
      break;
    case kCmdTlbiNhAll:
    case kCmdTlbiNhVaa:
      scope.stage1_only = true;
      break;
    default:
      return scope;
  }
  // Addresses that differ only in a tag that TBI ignores have one translation.
  if (scope.range) scope.ignored_top_bits = kTopByteBits;
  return scope;
}

// A tag that nothing waits under, or another stream's, resumes nothing: no tag in the answer. [§4.7.1]
StallResolution Core::resume(const Command& command) {
  const auto words = words_of(command);
  StallResolution resolution{.requester = requester(get<kResume, "StreamID">(words))};
  const auto tag = static_cast<StallTag>(get<kResume, "STAG">(words));
  const auto waiting = stalled_.find(tag);
  if (waiting == stalled_.end() || waiting->second.requester != resolution.requester) return resolution;
  stalled_.erase(waiting);
  resolution.tag = tag;
  const bool retry = get<kResume, "Ac">(words) != 0;
  resolution.action = retry ? StallResolution::Action::Retry : StallResolution::Action::Terminate;
  const bool zero = get<kResume, "Ab">(words) == 0 && !capabilities_.terminates_only_with_abort;
  resolution.termination = !retry && zero ? Termination::ReadsZero : Termination::Abort;
  return resolution;
}

StallResolution Core::terminate_all(RequesterId stream) {
  std::erase_if(stalled_, [stream](const auto& waiting) { return waiting.second.requester == stream; });
  // Their records are of no use any more. [§4.7.2]
  std::erase_if(events_, [stream](const Record& record) {
    return record.stall && get<kEvent, "StreamID">(std::span<const std::uint64_t>(record.words)) == stream.value();
  });
  return {.requester = stream};
}

}  // namespace iommu::smmuv3
