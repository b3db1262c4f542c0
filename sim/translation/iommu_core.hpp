// SPDX-License-Identifier: Apache-2.0
// The architecture of one IOMMU, without time: what its registers, tables and commands mean. One implementation per
// family.
//
// The same core serves four users: the functional model (ports answer at once), the timed IOMMU (ports park), Xen's
// emulated vIOMMU (the memory port is guest memory, the registers are trapped), and check-vectors. A core owns
// registers and queue indices but no caches: whoever drives it decides what to cache and applies the scopes that
// commands yield.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "sim/base/task.hpp"
#include "sim/translation/invalidation.hpp"
#include "sim/translation/memory_port.hpp"
#include "sim/translation/request.hpp"
#include "sim/translation/walker.hpp"

namespace iommu {

enum class ContextKind : std::uint8_t { Bypass, Stage1, Stage2, Nested };

// What a context makes of something that requests say of themselves.
enum class Override : std::uint8_t { AsRequested, Never, Always };

// A device's translation context, decoded: everything a walk needs, so that a cached context spares the device tables.
struct Context {
  ContextKind kind = ContextKind::Bypass;
  DomainTag domain;             // tags stage-2 and final translations
  std::optional<AsidTag> asid;  // tags stage-1 and final translations; absent without stage 1
  // Tags the cached context itself where a process table led to it, with or without stage 1: what a ProcessContext
  // invalidation by address space matches.
  std::optional<AsidTag> process;
  TableRoot stage1;  // address is guest-physical when kind is Nested, else host-physical
  // Where stage 1 translates two input ranges, of the upper one: input addresses whose sign is set.
  TableRoot stage1_upper;
  TableRoot stage2;
  // Of a Stage1 or Nested context whose process tables are in the hands of stage 1's software: the words of the device
  // table entry that lead to them. A hypervisor that nests hands them on in ContextSetting.
  std::array<std::uint64_t, 2> stage1_entry{};
  // Bits that only the family reads back (permission and cacheability controls of its entries).
  std::uint64_t family_bits = 0;
  bool faults_suppressed = false;  // the context asks hardware not to record qualified faults
  Override privilege = Override::AsRequested;
  Override execution = Override::Never;  // Never: the unit does not tell instruction fetches from reads, or not here

  // As whose and as what a request is checked here.
  [[nodiscard]] AccessMode mode_of(const TranslationRequest& request) const {
    const bool is_plain = !request.privileged && !request.execute;
    if (is_plain && privilege != Override::Always && execution != Override::Always) return {};  // nearly all
    const AccessMode asked = mode_asked(request);
    return {.privileged = privilege == Override::AsRequested ? asked.privileged : privilege == Override::Always,
            .execute = execution == Override::AsRequested ? asked.execute : execution == Override::Always};
  }

  [[nodiscard]] WalkTag stage1_tag(AccessMode mode = {}) const { return {domain, asid, mode}; }
  [[nodiscard]] WalkTag stage2_tag(AccessMode mode = {}) const { return {domain, std::nullopt, mode}; }
  // Of a cached copy of the context itself.
  [[nodiscard]] WalkTag context_tag() const { return {domain, process ? process : asid}; }
};
using ContextResult = std::variant<Context, Fault>;

// A command as fetched: its words and, for reports, its row in the family's command table.
struct CommandRow {
  unsigned opcode = 0;
  std::string_view name;
  std::string_view citation;
};
struct Command {
  std::array<std::uint64_t, 4> words{};
  std::uint8_t bytes = 16;
  const CommandRow* row = nullptr;  // null: unknown opcode
};

// What completing a fence does, once everything before it has taken effect.
struct FenceCompletion {
  struct StatusWrite {
    Hpa address;
    std::uint64_t data = 0;
    std::uint8_t bytes = 4;
  };
  std::optional<StatusWrite> status{};
  bool interrupt = false;
  // A barrier only: later commands are not fetched before earlier ones completed, but nothing is signalled.
  bool is_barrier = false;
  // Records of earlier faults are in memory before the fence completes, and none that rests on what was invalidated
  // before it is written after it: stalls whose record still waits for room are withdrawn and translated anew.
  bool orders_records = false;
};

// What software decided about stalled transactions of one requester.
struct StallResolution {
  enum class Action : std::uint8_t { Retry, Terminate };
  RequesterId requester;
  std::optional<StallTag> tag{};  // absent: all of the requester
  Action action = Action::Terminate;
  Termination termination = Termination::Abort;
};

// A device asks software to make a page present. `last` closes the group that software answers as one.
struct PageRequest {
  RequesterId requester;
  std::optional<Pasid> pasid{};
  Iova page;
  Permissions wanted = kReadOnly;
  bool privileged = false;
  bool last = true;
  std::uint16_t group = 0;
  bool execute = false;
};

// The answer to a group of page requests of a device.
struct PageRequestResponse {
  enum class Code : std::uint8_t { Success, Invalid, Failure };
  RequesterId requester;
  std::optional<Pasid> pasid{};
  std::uint16_t group = 0;
  Code code = Code::Success;
};

// What a command asks of whoever drives the core. `error` means the core has recorded a command error in its registers
// and fetches nothing more until software clears it.
struct CommandEffect {
  std::vector<InvalidationScope> scopes;
  std::optional<FenceCompletion> fence{};
  bool error = false;
  std::vector<StallResolution> resolutions{};
  std::optional<PageRequestResponse> page_response{};
};

// A ring of commands into a unit: the unit's first one, or a further one beside it.
class CommandQueue {
 public:
  CommandQueue() = default;
  CommandQueue(const CommandQueue&) = delete;
  CommandQueue& operator=(const CommandQueue&) = delete;
  virtual ~CommandQueue() = default;

  // True when the ring holds a command that may be fetched now.
  [[nodiscard]] virtual bool has_command() const = 0;
  // Fetches the command at the head and advances the head; nullopt when there is none or fetching it failed (which the
  // core has then recorded as a command error).
  virtual Task<std::optional<Command>> fetch_command(MemoryPort& memory) = 0;
  virtual CommandEffect apply(const Command& command) = 0;
  // What was fetched last has taken effect, a fence has completed: where software sees that from the ring's index, it
  // does so from now on. Fetching the next command implies it.
  virtual void completed() {}
};

// Software has placed a further ring of its unit, or taken it away. Only whoever emulates a unit wants to know.
struct RingPlacement {
  std::uint32_t ring = 0;     // of the software's own
  Hpa base;                   // as software wrote it
  std::uint32_t entries = 0;  // 0: taken away
  friend bool operator==(const RingPlacement&, const RingPlacement&) = default;
};

// What a register write asks of whoever drives the core.
struct RegisterEffect {
  bool commands_pending = false;  // the command ring's tail moved, or fetching was enabled
  // Register-based invalidation: apply, then call invalidation_done().
  std::vector<InvalidationScope> scopes;
  bool configuration_changed = false;  // translation enabled, disabled, or its root replaced: cached contexts are void
  std::vector<StallResolution> resolutions{};
  std::vector<std::uint32_t> further_queues{};  // of further_queues(): their tail moved, or fetching was enabled
  std::optional<RingPlacement> placement{};
};

// A message-signalled interrupt that the core wants written.
struct InterruptMessage {
  Hpa address;
  std::uint32_t data = 0;
};

class IommuCore : public CommandQueue {
 public:
  // Translation ------------------------------------------------------------------------------------------------------
  // False while the unit passes every request through untranslated (before software enables it).
  [[nodiscard]] virtual bool is_translating() const = 0;
  // Requests whose answer needs no table: address ranges with a fixed meaning, such as interrupt messages. Asked while
  // translating, before find_context() and walk(), which may then take it that there is no such answer.
  [[nodiscard]] virtual std::optional<TranslationResponse> answer_without_tables(const TranslationRequest&) const {
    return std::nullopt;
  }
  // Reads the device tables. Never caches.
  virtual Task<ContextResult> find_context(TranslationRequest request, MemoryPort& memory) = 0;
  // Reads the page tables of a context. The result's page is what may be cached: none of its addresses has an answer
  // without tables, so whoever finds a request in a cache need not ask.
  virtual Task<TranslationResponse> walk(TranslationRequest request, Context context, MemoryPort& memory,
                                         WalkAids aids) = 0;
  // Both, as a functional model does it.
  Task<TranslationResponse> translate(TranslationRequest request, MemoryPort& memory, WalkAids aids = {});

  // Records a fault where software looks for it; returns the interrupt to raise, if software asked for one.
  virtual std::optional<InterruptMessage> record(const Fault& fault) = 0;
  // Where faults are logged in memory: whether record(), fetch_command() or apply() left records to be written.
  // Software sees a record once it is in memory, and its interrupt comes through take_interrupt().
  [[nodiscard]] virtual bool has_events() const { return false; }
  // Writes them all. One at a time: whoever drives the core awaits it before starting another.
  virtual Task<void> write_events(MemoryPort& memory);

  // Takes back a stall whose record has not begun to be written, and the record with it; false when it has, and
  // software will resolve it. For faults that nobody records or holds, and for those that an invalidation made void.
  virtual bool withdraw_stall(StallTag) { return false; }

  // Queues a device's page request for software, written by write_events(). What comes back is the unit's own answer,
  // where it may not or need not ask.
  virtual std::optional<PageRequestResponse> record_page_request(const PageRequest& request) {
    return PageRequestResponse{request.requester, request.pasid, request.group, PageRequestResponse::Code::Failure};
  }

  // Commands ---------------------------------------------------------------------------------------------------------
  // The core itself is the unit's first queue; these stand beside it, each with a head of its own. They exist as long
  // as the core.
  [[nodiscard]] virtual std::span<CommandQueue* const> further_queues() { return {}; }
  // The interrupt of a completed fence, if enabled.
  virtual std::optional<InterruptMessage> fence_interrupt() = 0;
  // Register-based invalidation has taken effect: clears the busy bit software polls.
  virtual void invalidation_done() = 0;
  // An interrupt that no other function returns: unmasking a pending event, a command error. Ask after mmio_write() and
  // fetch_command() until it is empty.
  virtual std::optional<InterruptMessage> take_interrupt() { return std::nullopt; }

  // Registers --------------------------------------------------------------------------------------------------------
  // `bytes` is 4 or 8, `offset` aligned to it; anything else reads as zero and is ignored on write, as on hardware.
  virtual std::uint64_t mmio_read(std::uint64_t offset, unsigned bytes) = 0;
  virtual RegisterEffect mmio_write(std::uint64_t offset, unsigned bytes, std::uint64_t value) = 0;
};

}  // namespace iommu
