// SPDX-License-Identifier: Apache-2.0
// The invalidation queue: fetching, checking and decoding descriptors. [§6.5.2]
//
// A descriptor is checked before the head moves: the head stays at a bad one, and nothing is fetched until software
// clears FSTS_REG.IQE.
#include <algorithm>
#include <bit>

#include "models/vtd/core.hpp"
#include "models/vtd/register_rows.hpp"

namespace iommu::vtd {

namespace {

using Words = std::array<std::uint64_t, 4>;

constexpr unsigned kNarrowBytes = 16, kWideBytes = 32;
constexpr unsigned kSmallestQueueLg2 = kPageLg2;  // 2^QS pages
constexpr unsigned kInterruptIndexBits = 16;

constexpr std::array<std::uint16_t, 4> kFunctionsIgnored{0, 4, 6, 7};  // by FM: function bits that do not take part

std::span<const std::uint64_t> low_half(const Words& words) { return std::span(words).first(2); }

unsigned type_of(const Words& words) {
  return static_cast<unsigned>(get<kDescriptor, "TYPE">(low_half(words)) |
                               get<kDescriptor, "TYPE_HI">(low_half(words)) << field_of<kDescriptor, "TYPE">.width());
}

const CommandRow* row_of(unsigned type) {
  const auto found = std::find_if(kCommandRows.begin(), kCommandRows.end(),
                                  [type](const CommandRow& row) { return row.opcode == type; });
  return found == kCommandRows.end() ? nullptr : &*found;
}

template <const auto& kLayout>
bool violates(const Words& words) {
  return kLayout.violates_reserved(low_half(words));
}

bool violates_reserved(unsigned type, const Words& words) {
  switch (type) {
    case kContextCache:
      return violates<kContextCacheDescriptor>(words) || get<kContextCacheDescriptor, "G">(low_half(words)) == 0;
    case kIotlbInvalidate:
      return violates<kIotlbDescriptor>(words) || get<kIotlbDescriptor, "G">(low_half(words)) == 0;
    case kDeviceTlb:
      return violates<kDeviceTlbDescriptor>(words);
    case kInterruptCache:
      return violates<kInterruptDescriptor>(words);
    case kWait:
      return violates<kWaitDescriptor>(words);
    case kPasidIotlb:
      return violates<kPasidIotlbDescriptor>(words) ||
             get<kPasidIotlbDescriptor, "G">(low_half(words)) < static_cast<unsigned>(PasidIotlbGranularity::Pasid);
    case kPasidCache: {
      const auto g = static_cast<PasidCacheGranularity>(get<kPasidCacheDescriptor, "G">(low_half(words)));
      return violates<kPasidCacheDescriptor>(words) ||
             (g != PasidCacheGranularity::Domain && g != PasidCacheGranularity::Pasid &&
              g != PasidCacheGranularity::Global);
    }
    default:
      return violates<kPasidDeviceTlbDescriptor>(words);
  }
}

AddressRange pages(std::uint64_t page, std::uint64_t mask_lg2) {
  const auto span_lg2 = static_cast<unsigned>(mask_lg2 + kPageLg2);
  if (span_lg2 >= 64) return {};
  const std::uint64_t first = page << kPageLg2 >> span_lg2 << span_lg2;
  return {first, first | bits_between(0, span_lg2)};
}

// S = 1: the number of one bits from bit 12 up gives the size, as in PCIe ATS.
AddressRange ats_range(std::uint64_t page, std::uint64_t size_flag) {
  return pages(page, size_flag == 0 ? 0 : static_cast<std::uint64_t>(std::countr_one(page)) + 1);
}

RequesterId requester(std::uint64_t source) { return RequesterId(static_cast<std::uint16_t>(source)); }
DomainTag domain_tag(std::uint64_t did) { return DomainTag(static_cast<std::uint32_t>(did)); }
AsidTag asid_tag(std::uint64_t pasid) { return AsidTag(static_cast<std::uint32_t>(pasid)); }

InvalidationScope pasid_cache_scope(std::span<const std::uint64_t> d) {
  InvalidationScope scope{.kind = InvalidationKind::ProcessContext};
  const auto granularity = static_cast<PasidCacheGranularity>(get<kPasidCacheDescriptor, "G">(d));
  if (granularity != PasidCacheGranularity::Global) scope.domain = domain_tag(get<kPasidCacheDescriptor, "DID">(d));
  if (granularity == PasidCacheGranularity::Pasid) scope.asid = asid_tag(get<kPasidCacheDescriptor, "PASID">(d));
  return scope;
}

InvalidationScope pasid_iotlb_scope(std::span<const std::uint64_t> d) {
  InvalidationScope scope{.kind = InvalidationKind::Iotlb,
                          .domain = domain_tag(get<kPasidIotlbDescriptor, "DID">(d)),
                          .asid = asid_tag(get<kPasidIotlbDescriptor, "PASID">(d))};
  if (static_cast<PasidIotlbGranularity>(get<kPasidIotlbDescriptor, "G">(d)) == PasidIotlbGranularity::Page) {
    scope.range = pages(get<kPasidIotlbDescriptor, "ADDR">(d), get<kPasidIotlbDescriptor, "AM">(d));
    scope.leaf_only = get<kPasidIotlbDescriptor, "IH">(d) != 0;
  }
  return scope;
}

InvalidationScope interrupt_scope(std::span<const std::uint64_t> d) {
  InvalidationScope scope{.kind = InvalidationKind::InterruptEntry};
  if (get<kInterruptDescriptor, "G">(d) == 0) return scope;
  const auto mask =
      static_cast<unsigned>(std::min<std::uint64_t>(get<kInterruptDescriptor, "IM">(d), kInterruptIndexBits));
  const std::uint64_t first = get<kInterruptDescriptor, "IIDX">(d) >> mask << mask;
  scope.range = AddressRange{first, first | bits_between(0, mask)};
  return scope;
}

InvalidationScope pasid_device_tlb_scope(std::span<const std::uint64_t> d) {
  InvalidationScope scope{
      .kind = InvalidationKind::DeviceTlb,
      .requester = requester(get<kPasidDeviceTlbDescriptor, "SID">(d)),
      .range = ats_range(get<kPasidDeviceTlbDescriptor, "ADDR">(d), get<kPasidDeviceTlbDescriptor, "S">(d))};
  if (get<kPasidDeviceTlbDescriptor, "G">(d) == 0) scope.asid = asid_tag(get<kPasidDeviceTlbDescriptor, "PASID">(d));
  return scope;
}

FenceCompletion fence(std::span<const std::uint64_t> d) {
  FenceCompletion completion;
  constexpr unsigned kAddressShift = field_of<kWaitDescriptor, "STADDR">.shift();
  if (get<kWaitDescriptor, "SW">(d) != 0)
    completion.status = FenceCompletion::StatusWrite{Hpa(get<kWaitDescriptor, "STADDR">(d) << kAddressShift),
                                                     get<kWaitDescriptor, "STDATA">(d), 4};
  completion.interrupt = get<kWaitDescriptor, "IF">(d) != 0;
  completion.is_barrier = !completion.status && !completion.interrupt;
  return completion;
}

}  // namespace

std::uint64_t Core::queue_bytes() const { return 1ULL << (get<kIqa, "QS">(reg(kRegIqa)) + kSmallestQueueLg2); }

bool Core::has_command() const {
  return is_queue_enabled() && get<kFsts, "IQE">(reg(kRegFsts)) == 0 && reg(kRegIqh) != reg(kRegIqt);
}

void Core::write_queue_tail(RegisterEffect& effect) {
  const bool wide = get<kIqa, "DW">(reg(kRegIqa)) != 0;
  if (wide && reg(kRegIqt) % kWideBytes != 0) {
    registers_.set(kRegIqt, reg(kRegIqt) / kWideBytes * kWideBytes);  // the odd bit is reserved and zero
    stop_queue(QueueError::MisalignedTail);
  }
  effect.commands_pending = has_command();
}

void Core::stop_queue(QueueError error) {
  const std::uint64_t status = reg(kRegFsts);
  registers_.set(kRegIqercd, with<kIqercd, "IQEI">(reg(kRegIqercd), static_cast<std::uint64_t>(error)));
  registers_.set(kRegFsts, with<kFsts, "IQE">(status, 1));
  if (get<kFsts, "IQE">(status) != 0 || get<kFsts, "PPF">(status) != 0 || get<kFsts, "PFO">(status) != 0) return;
  if (const auto message = raise(Event::Fault)) interrupts_.push_back(*message);
}

QueueError Core::validate(const Command& command) const {
  const unsigned type = type_of(command.words);
  const bool needs_pasids = type == kPasidIotlb || type == kPasidCache || type == kPasidDeviceTlb;
  const bool needs_device_tlb = type == kDeviceTlb || type == kPasidDeviceTlb;
  if (row_of(type) == nullptr || (needs_pasids && !capabilities_.scalable) ||
      (needs_device_tlb && !capabilities_.device_tlb))
    return QueueError::InvalidType;
  if (needs_pasids && !is_scalable()) return QueueError::InvalidMode;
  const bool upper_half = command.bytes == kWideBytes && (command.words[2] | command.words[3]) != 0;
  if (upper_half || violates_reserved(type, command.words)) return QueueError::Reserved;
  const auto d = low_half(command.words);
  const bool page = (type == kIotlbInvalidate &&
                     static_cast<IotlbGranularity>(get<kIotlbDescriptor, "G">(d)) == IotlbGranularity::Page) ||
                    (type == kPasidIotlb && static_cast<PasidIotlbGranularity>(get<kPasidIotlbDescriptor, "G">(d)) ==
                                                PasidIotlbGranularity::Page);
  if (page && get<kIotlbDescriptor, "AM">(d) > capabilities_.max_address_mask) return QueueError::Reserved;
  return QueueError::None;
}

Task<std::optional<Command>> Core::fetch_command(MemoryPort& memory) {
  std::optional<Command> none;
  if (!has_command()) co_return none;
  const std::uint64_t address_register = reg(kRegIqa);
  const std::uint64_t head = reg(kRegIqh);
  const bool wide = get<kIqa, "DW">(address_register) != 0;
  const std::uint64_t base = get<kIqa, "IQA">(address_register);
  if (reg(kRegIqt) >= queue_bytes() || head >= queue_bytes()) {
    stop_queue(QueueError::InvalidTail);
    co_return none;
  }
  if (wide && head % kWideBytes != 0) {  // the width was changed while the head stood at an odd descriptor
    stop_queue(QueueError::MisalignedTail);
    co_return none;
  }
  Command command;
  command.bytes = wide ? kWideBytes : kNarrowBytes;
  bool failed = beyond_host(base);
  const Hpa address((base << kPageLg2) + head);
  if (!failed && wide) {
    const auto block = co_await memory.read_block<4>(address, AccessKind::Command);
    failed = block.failed;
    command.words = block.words;
  } else if (!failed) {
    const auto block = co_await memory.read_block<2>(address, AccessKind::Command);
    failed = block.failed;
    std::copy(block.words.begin(), block.words.end(), command.words.begin());
  }
  // Software may have switched the queue off, or moved it, while the descriptor was on its way.
  if (!has_command() || reg(kRegIqh) != head || reg(kRegIqa) != address_register) co_return none;
  const QueueError error = failed ? QueueError::FetchFailed : validate(command);
  if (error != QueueError::None) {
    stop_queue(error);
    co_return none;
  }
  command.row = row_of(type_of(command.words));
  registers_.set(kRegIqh, (head + command.bytes) % queue_bytes());
  std::optional<Command> fetched = command;
  co_return fetched;
}

CommandEffect Core::apply(const Command& command) {
  CommandEffect effect;
  if (validate(command) != QueueError::None) {  // not one of fetch_command()'s
    effect.error = true;
    return effect;
  }
  const auto d = low_half(command.words);
  switch (type_of(command.words)) {
    case kContextCache:
      effect.scopes = context_scopes(static_cast<ContextGranularity>(get<kContextCacheDescriptor, "G">(d)),
                                     get<kContextCacheDescriptor, "DID">(d), get<kContextCacheDescriptor, "SID">(d),
                                     get<kContextCacheDescriptor, "FM">(d));
      break;
    case kIotlbInvalidate: {
      auto granularity = static_cast<IotlbGranularity>(get<kIotlbDescriptor, "G">(d));
      if (granularity == IotlbGranularity::Page && !capabilities_.page_selective)
        granularity = IotlbGranularity::Domain;
      effect.scopes = iotlb_scopes(granularity, get<kIotlbDescriptor, "DID">(d), get<kIotlbDescriptor, "ADDR">(d),
                                   get<kIotlbDescriptor, "AM">(d), get<kIotlbDescriptor, "IH">(d) != 0);
      break;
    }
    case kDeviceTlb:
      effect.scopes = {{.kind = InvalidationKind::DeviceTlb,
                        .requester = requester(get<kDeviceTlbDescriptor, "SID">(d)),
                        .range = ats_range(get<kDeviceTlbDescriptor, "ADDR">(d), get<kDeviceTlbDescriptor, "S">(d))}};
      break;
    case kInterruptCache:
      effect.scopes = {interrupt_scope(d)};
      break;
    case kWait:
      effect.fence = fence(d);
      break;
    case kPasidIotlb:
      effect.scopes = {pasid_iotlb_scope(d)};
      break;
    case kPasidCache:
      effect.scopes = {pasid_cache_scope(d)};
      break;
    default:
      effect.scopes = {pasid_device_tlb_scope(d)};
      break;
  }
  return effect;
}

// Scalable-mode context entries carry no domain-id: a domain-selective command reaches them all, a device-selective one
// by source-id alone.
std::vector<InvalidationScope> Core::context_scopes(ContextGranularity granularity, std::uint64_t domain,
                                                    std::uint64_t source, std::uint64_t function_mask) const {
  InvalidationScope scope{.kind = InvalidationKind::Context};
  if (granularity != ContextGranularity::Global && !is_scalable()) scope.domain = domain_tag(domain);
  if (granularity == ContextGranularity::Device) {
    scope.requester = requester(source);
    scope.requester_ignore = kFunctionsIgnored[function_mask];
  }
  return {scope};
}

// A page-selective command names second-stage input. Cached results of nested walks are tagged with first-stage input
// and cannot be told apart by it: those of the domain all go. [§6.5.2.3]
std::vector<InvalidationScope> Core::iotlb_scopes(IotlbGranularity granularity, std::uint64_t domain,
                                                  std::uint64_t page, std::uint64_t mask_lg2, bool leaf_only) const {
  InvalidationScope scope{.kind = InvalidationKind::Iotlb};
  if (granularity == IotlbGranularity::Global) return {scope};
  scope.domain = domain_tag(domain);
  if (granularity == IotlbGranularity::Domain) return {scope};
  scope.range = pages(page, mask_lg2);
  scope.leaf_only = leaf_only;
  if (!is_scalable() || !capabilities_.nested) return {scope};
  InvalidationScope nested{.kind = InvalidationKind::Iotlb, .domain = scope.domain};
  nested.stage1_only = true;
  return {scope, nested};
}

}  // namespace iommu::vtd
