// SPDX-License-Identifier: Apache-2.0
// A small IOMMU architecture for tests of the timed shell: one directory read and one entry read per context, 9-bit
// radix tables of four levels, one or two stages, a command ring. Nobody's hardware.
#pragma once

#include <array>
#include <deque>
#include <optional>

#include "sim/base/bits.hpp"
#include "sim/memory/host_memory.hpp"
#include "sim/translation/iommu_core.hpp"
#include "sim/translation/walker.hpp"

namespace iommu::testing_core {

// clang-format off
inline constexpr auto kEntry = layout("test entry", "-", 64, {
    {"R", 0, 0}, {"W", 1, 1}, {"LEAF", 2, 2}, {"A", 3, 3}, {"G", 4, 4}, {"NX", 5, 5}, {"P", 6, 6},
    {"ign", 11, 7, FieldKind::Ignored}, {"ADDR", 51, 12},
    {"ign", 63, 52, FieldKind::Ignored}});
// clang-format on
static_assert(kEntry.is_partition());

struct Format {
  bool marks = false;  // keeps accessed marks
  AccessMode mode{};   // NX is for fetches, which need no R; P keeps all but the privileged out
  [[nodiscard]] std::uint64_t entry_offset(Level level, std::uint64_t input) const {
    return (input >> span_lg2(level) & 511) * 8;
  }
  [[nodiscard]] unsigned span_lg2(Level level) const { return kPageLg2 + 9U * level; }
  [[nodiscard]] DecodedEntry decode(std::uint64_t entry, Level level, std::uint64_t, Access access) const {
    DecodedEntry d;
    d.allowed = {.read = get<kEntry, "R">(entry) != 0, .write = get<kEntry, "W">(entry) != 0};
    if (d.allowed.none()) return d;
    if (mode.execute) d.allowed.read = get<kEntry, "NX">(entry) == 0;
    if (!mode.privileged && get<kEntry, "P">(entry) != 0) d.allowed = {};
    d.address = get<kEntry, "ADDR">(entry) << kPageLg2;
    const bool is_leaf = level == 0 || get<kEntry, "LEAF">(entry) != 0;
    // What a table withholds shows at the leaf.
    d.kind = !is_leaf ? EntryKind::Table : d.allowed.allow(access) ? EntryKind::Leaf : EntryKind::Denied;
    d.next_level = static_cast<Level>(level - 1);
    d.page_lg2 = static_cast<std::uint8_t>(span_lg2(level));
    d.attributes.is_global = is_leaf && get<kEntry, "G">(entry) != 0;
    return d;
  }
  [[nodiscard]] std::optional<std::uint64_t> mark_used(std::uint64_t entry, Level, Access) const {
    if (!marks || get<kEntry, "A">(entry) != 0) return std::nullopt;
    return with<kEntry, "A">(entry, 1);
  }
  [[nodiscard]] bool can_be_leaf(Level level) const { return level <= 2; }
  [[nodiscard]] std::uint64_t make_table(std::uint64_t table, Level) const {
    return pack<kEntry>({{"R", 1}, {"W", 1}, {"ADDR", table >> kPageLg2}});
  }
  [[nodiscard]] std::uint64_t make_leaf(std::uint64_t page, Level, Permissions p) const {
    return pack<kEntry>({{"R", p.read}, {"W", p.write}, {"LEAF", 1}, {"ADDR", page >> kPageLg2}});
  }
  [[nodiscard]] bool is_present(std::uint64_t entry) const { return entry != 0; }
};
static_assert(PageFormat<Format>);

inline constexpr FaultRow kNoContext{1, "NO_CONTEXT", FaultClass::ContextNotPresent, false, "-", "no context"};
inline constexpr FaultRow kNoPage{2, "NO_PAGE", FaultClass::NotPresent, false, "-", "no page"};
inline constexpr FaultRow kDenied{3, "DENIED", FaultClass::Permission, false, "-", "denied"};
inline constexpr FaultRow kNoMemory{4, "NO_MEMORY", FaultClass::MemoryAccess, false, "-", "table outside memory"};

// Commands are two words: opcode | tag << 32, operand.
enum Opcode : std::uint32_t {
  kFlushAll = 1,
  kFlushDomain,
  kFlushPage,
  kFlushContext,
  kFence,
  kFlushDevice,
  kFlushAsid,
  kFlushAsidPage
};
// Registers.
enum Offset : std::uint64_t {
  kTail = 0x00,
  kEnable = 0x08,
  kFlushNow = 0x10,
  kFurtherTail = 0x18
};  // the last: two of them

class Core final : public IommuCore {
 public:
  static constexpr unsigned kRingLg2 = 6;

  // Beside the first ring: the same commands, an index each that moves when a command has completed.
  class Further final : public CommandQueue {
   public:
    explicit Further(Core& core) : core_(core) {}
    bool has_command() const override { return fetched_ != tail; }
    Task<std::optional<Command>> fetch_command(MemoryPort& memory) override {
      const Hpa at = ring + Bytes(16 * (fetched_ % (1U << kRingLg2)));
      const MemoryBlock<2> words = co_await memory.read_block<2>(at, AccessKind::Command);
      ++fetched_;
      std::optional<Command> command = Command{{words.words[0], words.words[1], 0, 0}, 16, nullptr};
      co_return command;
    }
    CommandEffect apply(const Command& command) override { return core_.apply(command); }
    void completed() override { head = fetched_; }
    Hpa ring{};
    std::uint64_t head = 0;
    std::uint64_t tail = 0;

   private:
    Core& core_;
    std::uint64_t fetched_ = 0;
  };
  std::array<Further, 2> further{Further(*this), Further(*this)};
  std::span<CommandQueue* const> further_queues() override { return further_; }
  Hpa ring{};
  Hpa directory{};  // one word per bus: table of 32-byte entries {kind, stage-1 root, stage-2 root, domain}
  bool marks = false;
  bool is_enabled = true;
  std::optional<InterruptMessage> fault_interrupt;
  Termination termination = Termination::Abort;  // of the faults to come
  std::vector<Fault> recorded;
  std::uint64_t busy = 0;  // register-based invalidations not done

  std::optional<AsidTag> process;                  // of every context
  std::optional<RequesterId> fetches, privileged;  // whose contexts make all reads fetches, all requests privileged
  std::optional<AddressRange> fixed;               // answered without tables
  std::uint32_t events_to_write = 0;               // logged at kEventLog, one word each, when a fault is recorded
  bool logs_events = false;
  static constexpr Hpa kEventLog{0x9000};

  bool is_translating() const override { return is_enabled; }
  std::optional<TranslationResponse> answer_without_tables(const TranslationRequest& request) const override {
    if (!fixed || !fixed->overlaps({request.address.value(), request.address.value()})) return std::nullopt;
    return Translation{Hpa(request.address.value()), kPageLg2, kWriteOnly, {}, true};
  }
  bool has_events() const override { return events_to_write != 0; }
  Task<void> write_events(MemoryPort& memory) override {
    while (events_to_write != 0) {
      const std::uint64_t number = recorded.size() - events_to_write;
      co_await memory.write64(kEventLog + Bytes(8 * number), number + 1, AccessKind::Event);
      --events_to_write;
      event_interrupts_.push_back({Hpa(0xa000), static_cast<std::uint32_t>(number + 1)});
    }
  }
  std::optional<InterruptMessage> take_interrupt() override {
    if (event_interrupts_.empty()) return std::nullopt;
    const InterruptMessage message = event_interrupts_.front();
    event_interrupts_.pop_front();
    return message;
  }
  Task<ContextResult> find_context(TranslationRequest request, MemoryPort& memory) override {
    const MemoryResult table =
        co_await memory.read64(directory + Bytes(request.requester.bus() * 8), AccessKind::DeviceTable);
    const Hpa entry = Hpa(table.value) + Bytes(request.requester.devfn() * 32);
    const MemoryBlock<4> words = co_await memory.read_block<4>(entry, AccessKind::DeviceTable);
    ContextResult result = fault(kNoContext, Stage::Context, request);
    if (!table.failed && !words.failed && table.value != 0 && words.words[0] != 0) {
      Context context;
      context.kind = static_cast<ContextKind>(words.words[0] - 1);
      context.domain = DomainTag(static_cast<std::uint32_t>(words.words[3]));
      context.process = process;
      context.execution = request.requester == fetches ? Override::Always : Override::AsRequested;
      if (request.requester == privileged) context.privilege = Override::Always;
      context.stage1 = {words.words[1], 3};
      context.stage2 = {words.words[2], 3};
      if (context.kind == ContextKind::Nested) context.asid = AsidTag(request.pasid ? request.pasid->value() : 0);
      result = context;
    }
    co_return result;
  }
  Task<TranslationResponse> walk(TranslationRequest request, Context context, MemoryPort& memory,
                                 WalkAids aids) override {
    TranslationResponse response = Translation{Hpa(request.address.value()), 63, kReadWrite, {}, true};
    if (context.kind == ContextKind::Bypass) co_return response;
    const AccessMode mode = context.mode_of(request);
    const Format format{marks, mode};
    const std::uint64_t input = request.address.value();
    std::optional<WalkResult> result;
    MemoryAttributes attributes;
    if (context.kind == ContextKind::Nested) {
      const NestedTables<Format> nested{memory,         AccessKind::Stage1Entry, Format{},
                                        context.stage2, context.stage2_tag(),    aids};
      const WalkResult first = co_await walk_tables(format, context.stage1, input, request.access, nested,
                                                    Stage::Stage1, context.stage1_tag(mode), aids);
      result = first;
      if (const auto* leaf = std::get_if<WalkLeaf>(&first)) {
        attributes = leaf->attributes;
        const NestedTables<Format> output{memory,         AccessKind::Stage2Entry,  Format{false, mode},
                                          context.stage2, context.stage2_tag(mode), aids};
        const WalkResult second = co_await output.translate(Gpa(leaf->address), request.access);
        result = second;
        if (auto* both = std::get_if<WalkLeaf>(&*result)) {
          both->allowed = both->allowed & leaf->allowed;
          both->page_lg2 = std::min(both->page_lg2, leaf->page_lg2);
        }
      }
    } else {
      const HostTables tables{memory, AccessKind::Stage2Entry};
      const WalkResult only = co_await walk_tables(format, context.stage2, input, request.access, tables, Stage::Stage2,
                                                   context.stage2_tag(mode), aids);
      result = only;
    }
    if (const auto* leaf = std::get_if<WalkLeaf>(&*result)) {
      response = Translation{Hpa(leaf->address), leaf->page_lg2, leaf->allowed, attributes, false};
    } else {
      const auto kind = std::get<WalkStop>(*result).kind;
      response = fault(kind == StopKind::Denied         ? kDenied
                       : kind == StopKind::MemoryFailed ? kNoMemory
                                                        : kNoPage,
                       Stage::Stage2, request);
    }
    co_return response;
  }
  std::optional<InterruptMessage> record(const Fault& fault) override {
    recorded.push_back(fault);
    if (logs_events) ++events_to_write;
    return fault_interrupt;
  }

  bool has_command() const override { return head_ != tail_; }
  Task<std::optional<Command>> fetch_command(MemoryPort& memory) override {
    const Hpa at = ring + Bytes(16 * (head_ % (1U << kRingLg2)));
    const MemoryBlock<2> words = co_await memory.read_block<2>(at, AccessKind::Command);
    ++head_;
    std::optional<Command> command = Command{{words.words[0], words.words[1], 0, 0}, 16, nullptr};
    co_return command;
  }
  CommandEffect apply(const Command& command) override {
    CommandEffect effect;
    const auto opcode = static_cast<std::uint32_t>(command.words[0]);
    const auto tag = static_cast<std::uint32_t>(command.words[0] >> 32);
    const std::uint64_t operand = command.words[1];
    InvalidationScope scope;
    if (opcode == kFlushDomain || opcode == kFlushPage) scope.domain = DomainTag(tag);
    // Of an address space in any domain: all but global pages, or one page, global or not.
    if (opcode == kFlushAsid || opcode == kFlushAsidPage) scope.asid = AsidTag(tag);
    if (opcode == kFlushAsidPage) scope.range = AddressRange{operand, operand + kPageSize.value() - 1};
    scope.global_pages = opcode == kFlushAsidPage;
    if (opcode == kFlushPage) scope.range = AddressRange{operand, operand + kPageSize.value() - 1};
    if (opcode == kFlushContext) scope.kind = InvalidationKind::Context;
    if (opcode == kFlushDevice) scope.kind = InvalidationKind::DeviceTlb;
    if (opcode == kFence)
      effect.fence = FenceCompletion{FenceCompletion::StatusWrite{Hpa(operand), tag, 4}, false, false};
    else
      effect.scopes.push_back(scope);
    return effect;
  }
  std::optional<InterruptMessage> fence_interrupt() override { return std::nullopt; }
  void invalidation_done() override { busy = 0; }
  std::uint64_t mmio_read(std::uint64_t offset, unsigned) override { return offset == kFlushNow ? busy : tail_; }
  RegisterEffect mmio_write(std::uint64_t offset, unsigned, std::uint64_t value) override {
    RegisterEffect effect;
    if (offset >= kFurtherTail) {
      const auto queue = static_cast<std::uint32_t>((offset - kFurtherTail) / 8);
      further[queue].tail = value;
      effect.further_queues = {queue};
    } else if (offset == kTail) {
      tail_ = value;
      effect.commands_pending = true;
    } else if (offset == kEnable) {
      is_enabled = value != 0;
      effect.configuration_changed = true;
    } else if (offset == kFlushNow) {
      busy = 1;
      effect.scopes.emplace_back();
    }
    return effect;
  }
  [[nodiscard]] std::uint64_t tail() const { return tail_; }

 private:
  Fault fault(const FaultRow& row, Stage stage, const TranslationRequest& r) const {
    Fault f;
    f.termination = termination;
    f.row = &row;
    f.stage = stage;
    f.address = r.address;
    f.access = r.access;
    f.requester = r.requester;
    f.pasid = r.pasid;
    return f;
  }
  std::array<CommandQueue*, 2> further_{&further[0], &further[1]};
  std::deque<InterruptMessage> event_interrupts_;
  std::uint64_t head_ = 0;
  std::uint64_t tail_ = 0;
};

// Tables in host memory, written as software would, at once.
class Tables {
 public:
  explicit Tables(HostMemory& memory) : memory_(memory) {}

  [[nodiscard]] Hpa allocate() {
    next_ = next_ + kPageSize;
    return next_ - kPageSize;
  }
  // Maps a page of 2^(12 + 9 * level) bytes; `at` tells where a table's address lies in host memory.
  void map(Hpa root, std::uint64_t input, std::uint64_t output, Permissions p = kReadWrite, Level level = 0) {
    const Format format;
    Hpa table = root;
    for (Level l = 3; l > level; --l) {
      const Hpa slot = table + Bytes(format.entry_offset(l, input));
      std::uint64_t entry = memory_.read64(slot);
      if (entry == 0) {
        entry = format.make_table(allocate().value(), l);
        memory_.write64(slot, entry);
      }
      table = Hpa(get<kEntry, "ADDR">(entry) << kPageLg2);
    }
    leaf_slot_ = table + Bytes(format.entry_offset(level, input));
    memory_.write64(leaf_slot_, format.make_leaf(output, level, p));
  }
  // Where the last map() wrote its leaf.
  [[nodiscard]] Hpa leaf_slot() const { return leaf_slot_; }

  void attach(Core& core, RequesterId requester, ContextKind kind, Hpa stage1, Hpa stage2, DomainTag domain) {
    if (core.directory == Hpa()) core.directory = allocate();
    const Hpa slot = core.directory + Bytes(requester.bus() * 8);
    if (memory_.read64(slot) == 0) {
      memory_.write64(slot, allocate().value());
      (void)allocate();  // 256 entries of 32 bytes are two pages
    }
    const Hpa entry = Hpa(memory_.read64(slot)) + Bytes(requester.devfn() * 32);
    memory_.write64(entry, static_cast<std::uint64_t>(kind) + 1);
    memory_.write64(entry + 8_B, stage1.value());
    memory_.write64(entry + 16_B, stage2.value());
    memory_.write64(entry + 24_B, domain.value());
  }

 private:
  HostMemory& memory_;
  Hpa next_{0x100000};
  Hpa leaf_slot_;
};

}  // namespace iommu::testing_core
