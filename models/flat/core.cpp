// SPDX-License-Identifier: Apache-2.0
#include "models/flat/core.hpp"

#include <utility>

#include "sim/translation/answers.hpp"

namespace iommu::flat {

namespace {
Fault fault_of(const TranslationRequest& request, FaultId id, Stage stage) {
  return iommu::fault_of(request, row_of(id), stage);
}
}  // namespace

Task<std::optional<Command>> FlatCore::fetch_command(MemoryPort&) { co_return std::nullopt; }
CommandEffect FlatCore::apply(const Command&) { return {}; }

RegisterEffect FlatCore::invalidate(std::vector<InvalidationScope> scopes) {
  RegisterEffect effect;
  is_invalidating_ = true;
  effect.scopes = std::move(scopes);
  return effect;
}

template <class Format>
Task<TranslationResponse> FlatCore::walk_entry(TranslationRequest request, Window window, std::uint64_t table,
                                               MemoryPort& memory, WalkAids aids) {
  const std::uint64_t input = request.address.value();
  // Translation requests are not known here, nor are addresses that a device got by one.
  if (!window.holds(input) || request.type != AddressType::Untranslated || request.pasid)
    co_return fault_of(request, FaultId::OutOfWindow, Stage::Stage2);
  const std::uint64_t at = table + ((input - window.first) >> kPageLg2) * Format::kEntryBytes;
  if (aids.observer != nullptr)
    aids.observer->on_walk(Stage::Stage2, input,
                           {.address = table, .input_bits = static_cast<std::uint8_t>(window.size_lg2)});
  const MemoryResult read = co_await memory.read64(Hpa(at & ~7ULL), AccessKind::Stage2Entry);
  if (read.failed) co_return fault_of(request, FaultId::TableRead, Stage::Stage2);
  const std::uint64_t raw = Format::kEntryBytes == 8 ? read.value
                            : (at & 4) != 0          ? read.value >> 32
                                                     : read.value & 0xffffffff;
  const auto entry = Format::decode(raw);
  const bool allowed = entry && entry->allowed.allow(request.access);
  if (aids.observer != nullptr) {
    DecodedEntry decoded;
    decoded.kind = allowed ? EntryKind::Leaf : entry ? EntryKind::Denied : EntryKind::Absent;
    if (entry) decoded.address = entry->address;
    if (entry) decoded.allowed = entry->allowed;
    aids.observer->on_entry(Stage::Stage2, 0, table, Hpa(at), raw, decoded);
  }
  if (!entry) co_return fault_of(request, FaultId::NotValid, Stage::Stage2);
  if (!allowed) co_return fault_of(request, FaultId::Denied, Stage::Stage2);
  Translation translation;
  translation.address = Hpa(entry->address + request.address.offset_in(kPageLg2));
  translation.allowed = entry->allowed;
  co_return translation;
}

// TCE -----------------------------------------------------------------------------------------------------------------

Task<ContextResult> TceCore::find_context(TranslationRequest request, MemoryPort& memory) {
  const std::uint64_t bus = request.requester.bus();
  const Hpa at((get<kBusTable, "address">(bus_table_) << kPageLg2) + bus * sizeof(std::uint64_t));
  const MemoryResult tar = co_await memory.read64(at, AccessKind::DeviceTable);
  if (tar.failed) co_return fault_of(request, FaultId::TableRead, Stage::Context);
  if (get<kTar, "valid">(tar.value) == 0) co_return fault_of(request, FaultId::NoTable, Stage::Context);
  Context context;
  context.kind = ContextKind::Stage2;
  context.domain = DomainTag(static_cast<std::uint32_t>(bus));
  context.stage2.address = get<kTar, "address">(tar.value) << field_of<kTar, "address">.lsb;
  context.stage2.input_bits = static_cast<std::uint8_t>(kSmallestTceWindowLg2 + get<kTar, "size">(tar.value));
  co_return context;
}

Task<TranslationResponse> TceCore::walk(TranslationRequest request, Context context, MemoryPort& memory,
                                        WalkAids aids) {
  const Window window{0, context.stage2.input_bits};
  co_return co_await walk_entry<TceFormat>(request, window, context.stage2.address, memory, aids);
}

std::optional<InterruptMessage> TceCore::record(const Fault& fault) {
  last_fault_ = fault.row->code;
  return std::nullopt;
}

std::uint64_t TceCore::mmio_read(std::uint64_t offset, unsigned bytes) {
  if (bytes != 4 && bytes != 8) return 0;
  switch (offset) {
    case kBusTableRegister:
      return bus_table_;
    // DEVIATION(tce-002): software waits until the queues are idle after an invalidation; on chips it waits before it,
    // and reads of registers wait for what was written.
    case kSplitQueueRegister:
      return is_invalidating() ? 0 : kQueuesIdle;
    case kArbiterRegister:
      return arbiter_;
    case kBridgeStatusRegister:
      return last_fault_;
    default:
      return 0;
  }
}

RegisterEffect TceCore::mmio_write(std::uint64_t offset, unsigned bytes, std::uint64_t value) {
  if (offset == kArbiterRegister) arbiter_ = value;
  if (bytes != 8) return {};
  if (offset == kBusTableRegister) {
    bus_table_ = value;
    RegisterEffect effect;
    effect.configuration_changed = true;
    return effect;
  }
  if (offset == kKillRegister) return kill(value);
  if (offset < kTarRegister || offset >= kTarRegister + kBuses * 8 || offset % 8 != 0) return {};
  // A TAR that is written anew: nothing of its bus is cached any more.
  const auto bus = static_cast<std::uint16_t>((offset - kTarRegister) / 8);
  return invalidate({{.kind = InvalidationKind::Context,
                      .requester = RequesterId(static_cast<std::uint16_t>(bus << 8)),
                      .requester_ignore = 0xff},
                     {.kind = InvalidationKind::Iotlb, .domain = DomainTag(bus)}});
}

RegisterEffect TceCore::kill(std::uint64_t value) {
  InvalidationScope scope{.kind = InvalidationKind::Iotlb};
  if (get<kKill, "ALL">(value) != 0) return invalidate({scope});
  scope.domain = DomainTag(static_cast<std::uint32_t>(get<kKill, "PE">(value)));
  if (get<kKill, "ALL_OF_PE">(value) != 0) return invalidate({scope});
  if (get<kKill, "ONE">(value) == 0) return {};
  const std::uint64_t page = get<kKill, "address">(value) << kPageLg2;
  scope.range = AddressRange{page, page | (kPageSize.value() - 1)};
  return invalidate({scope});
}

// GART ----------------------------------------------------------------------------------------------------------------

Window GartCore::aperture() const {
  return {get<kApertureBase, "base">(base_) << kSmallestApertureLg2,
          kSmallestApertureLg2 + static_cast<unsigned>(get<kApertureControl, "order">(control_))};
}

bool GartCore::is_translating() const {
  return get<kApertureControl, "GARTEN">(control_) != 0 && get<kApertureControl, "DISGARTIO">(control_) == 0;
}

// [interfaces checklist 112] Whatever lies outside the aperture goes where it says.
std::optional<TranslationResponse> GartCore::answer_without_tables(const TranslationRequest& request) const {
  if (aperture().holds(request.address.value())) return std::nullopt;
  Translation translation;
  translation.address = Hpa(request.address.value());
  translation.allowed = kReadWrite;
  translation.is_bypass = true;
  return translation;
}

// One for all devices.
Task<ContextResult> GartCore::find_context(TranslationRequest, MemoryPort&) {
  Context context;
  context.kind = ContextKind::Stage2;
  context.stage2.address = get<kTableBase, "address">(table_) << kPageLg2;
  context.stage2.input_bits = static_cast<std::uint8_t>(aperture().size_lg2);
  co_return context;
}

Task<TranslationResponse> GartCore::walk(TranslationRequest request, Context context, MemoryPort& memory,
                                         WalkAids aids) {
  const Window window{aperture().first, context.stage2.input_bits};
  co_return co_await walk_entry<GartFormat>(request, window, context.stage2.address, memory, aids);
}

std::optional<InterruptMessage> GartCore::record(const Fault&) {
  has_error_ = true;
  return std::nullopt;
}

std::uint64_t GartCore::mmio_read(std::uint64_t offset, unsigned bytes) {
  if (bytes != 4) return 0;
  switch (offset) {
    case kApertureControlRegister:
      return control_;
    case kApertureBaseRegister:
      return base_;
    case kTableBaseRegister:
      return table_;
    case kCacheControlRegister:
      return pack<kCacheControl>({{"INVGART", is_invalidating() ? 1U : 0U}, {"GARTPTEERR", has_error_ ? 1U : 0U}});
    default:
      return 0;
  }
}

RegisterEffect GartCore::mmio_write(std::uint64_t offset, unsigned bytes, std::uint64_t value) {
  if (bytes != 4) return {};
  if (offset == kCacheControlRegister) {
    if (get<kCacheControl, "GARTPTEERR">(value) != 0) has_error_ = false;
    if (get<kCacheControl, "INVGART">(value) == 0) return {};
    return invalidate({{.kind = InvalidationKind::Iotlb}});
  }
  std::uint64_t* target = nullptr;
  if (offset == kApertureControlRegister) target = &control_;
  if (offset == kApertureBaseRegister) target = &base_;
  if (offset == kTableBaseRegister) target = &table_;
  if (target == nullptr) return {};
  *target = value & 0xffffffff;
  RegisterEffect effect;
  effect.configuration_changed = true;
  return effect;
}

}  // namespace iommu::flat
