// SPDX-License-Identifier: Apache-2.0
// A unit in the hands of hostile software: bytes choose capabilities, edit tables, write registers and commands, ask
// for translations, and change memory and registers between two reads of one walk. Whatever they do, every request ends
// within a bound, gets a fault of the specification or no more than the tables give, and the registers stay consistent.
#include <cstddef>
#include <cstdint>
#include <span>

#include "models/amdvi/core_test_support.hpp"
#include "sim/base/check.hpp"
#include "sim/translation/core_fuzz_test_support.hpp"

namespace iommu::amdvi::test {
namespace {

using iommu::test::FuzzInput;
using iommu::test::HostileSoftware;

// Reads and marks of one walk; of a nested one, with two host walks for each guest entry and one for the output.
constexpr std::uint64_t kHostBound = 2 * 6, kGuestLevels = 5, kContextBound = 1 + 3;
constexpr std::uint64_t kQuietBound = kContextBound + kGuestLevels * (2 * kHostBound + 2) + kHostBound;
// Under an adversary each mark may be tried again.
constexpr std::uint64_t kHostileBound = kQuietBound * kMaxMarkAttempts * kMaxMarkAttempts;

Identity chosen_identity(FuzzInput& in) {
  Identity id = Bench::full();
  id.extended_features ^= in.take(8);
  id.capability_header ^= static_cast<std::uint32_t>(in.take(4));
  constexpr std::array<unsigned, 4> kWidths{36, 39, 48, 52};
  id.misc_info0 =
      static_cast<std::uint32_t>(with<kMiscInfo0, "PAsize">(id.misc_info0, kWidths[in.take(1) % kWidths.size()]));
  return id;
}

class Session final : public HostileSoftware {
 public:
  explicit Session(FuzzInput bytes)
      : HostileSoftware(bytes, {.accesses = kQuietBound, .hostile_accesses = kHostileBound}, kFaultRows),
        bench_(kAllSettings[in.take(1) % kAllSettings.size()],
               {.mode = 3 + static_cast<unsigned>(in.take(1) % 4),
                .guest_levels = 4 + static_cast<unsigned>(in.take(1) % 2),
                .glx = static_cast<unsigned>(in.take(1) % 3),
                .host_leaf = static_cast<Level>(in.take(1) % 3),
                .guest_leaf = static_cast<Level>(in.take(1) % 3)},
               chosen_identity(in), in.take(1) % 2 == 0 ? Bench::kInput & bits_between(0, 39) : 0x7f'ffff'f000) {
    collect_entries();
    bench_.port.before = [this](const MemoryAccess&) { interfere(); };
  }

 private:
  Unit unit() override { return {bench_.core, bench_.host, bench_.port}; }

  void collect_entries() {
    const auto add = [this](std::uint64_t entry) {
      if (entry != 0) entries_.push_back(entry);
    };
    for (std::uint64_t word = 0; word < 4; ++word) add(bench_.entry + 8 * word);
    for (const std::uint64_t e : bench_.gcr3_entries) add(e);
    for (const std::uint64_t e : bench_.guest_entries) add(e);
    for (const std::uint64_t e : bench_.host_entries) add(e);
    for (const auto& [page, path] : bench_.guest_table_entries)
      for (const std::uint64_t e : path) add(e);
  }

  void edit() override {
    const std::uint64_t entry = entries_[in.take(1) % entries_.size()];
    change(entry, in.take(1));
  }
  // To some other table, or to itself.
  std::uint64_t pointer(std::uint64_t /*old*/) override {
    return (entries_[in.take(1) % entries_.size()] & ~0xfffULL) | in.take(2) | in.take(1) << 56;
  }

  void write_register() override {
    const std::uint64_t at = in.take(2);
    (void)bench_.core.mmio_write((at & 0x3f) * 8 + ((at & 0x40) != 0 ? offset::kCommandHead : 0) + (at & 0x80) / 32,
                                 in.take(1) % 2 == 0 || (at & 0x80) != 0 ? 4 : 8, in.take(8));
    while (bench_.core.take_interrupt()) {
    }
  }

  void write_command() override {
    const std::uint64_t at = Bench::kCommands + in.take(1) * kRingEntryBytes;
    const std::uint64_t opcode = in.take(1) % 10;
    bench_.write(at, in.take(7) | opcode << 60);
    bench_.write(at + 8, in.take(8));
  }

  void run_commands() override {
    HostileSoftware::run_commands();
    write_events();
  }

  // Under an adversary too: a command is checked as it was fetched.
  void applied(const CommandEffect& effect) override { SIM_CHECK(!effect.error, "what is fetched is legal"); }

  void write_events() {
    const std::uint64_t before = bench_.port.accesses;
    bench_.core.write_events(bench_.port).run();
    SIM_CHECK(!bench_.core.has_events(), "all events are written or lost");
    SIM_CHECK(bench_.port.accesses - before <= 256, "as many writes as events can wait");
  }

  void translate() override {
    const std::uint64_t flags = in.take(1);
    const TranslationRequest request = varied(bench_.request, flags);
    const bool quiet = is_quiet();
    const TranslationResponse response = answer_to(request);
    if (const auto* fault = std::get_if<Fault>(&response)) {
      SIM_CHECK((fault->row->kind == FaultClass::MemoryAccess) == fault->table_entry.has_value(),
                "what failed in memory is named");
      (void)bench_.core.record(*fault);
      if ((flags & 128) != 0) write_events();
      return;
    }
    const auto& translation = std::get<Translation>(response);
    if (translation.is_bypass) return;
    SIM_CHECK(request.type != AddressType::Translated, "translated requests meet no table");
    SIM_CHECK(translation.page_lg2 >= kPageLg2 && translation.page_lg2 < 57, "pages are of 4 KiB to 2^56 bytes");
    if (quiet && !translation.allowed.none()) compare(request, translation);
  }

  // The tables, read once more by other code: the same output, and at least the rights that were given.
  void compare(const TranslationRequest& request, const Translation& got) {
    const ContextResult found = bench_.core.find_context(request, bench_.port).run();
    const Context& context = std::get<Context>(found);
    const std::uint64_t entry = bench_.reg(offset::kDeviceTableBase) / 4096 * 4096 + request.requester.value() * 32UL;
    Permissions allowed{.read = (bench_.word(entry) >> 61 & 1) != 0, .write = (bench_.word(entry) >> 62 & 1) != 0};
    std::uint64_t address = request.address.value();
    const bool guest = context.kind == ContextKind::Stage1 || context.kind == ContextKind::Nested;
    if (guest) read_guest(context, address, allowed);
    if (context.kind == ContextKind::Stage2 || context.kind == ContextKind::Nested)
      read_host(context.stage2, address, allowed);
    SIM_CHECK(address == got.address.value(), "the output is what the tables say");
    SIM_CHECK((got.allowed & allowed) == got.allowed, "no right that the tables do not give");
    SIM_CHECK(request.pasid || request.address.value() < kInterruptFirst || request.address.value() > kInterruptLast,
              "interrupts are not translated");
  }
  void read_host(TableRoot root, std::uint64_t& address, Permissions& allowed) {
    constexpr std::uint64_t kAddress = bits_between(12, 52);
    std::uint64_t table = root.address;
    for (unsigned level = root.top_level + 1U;;) {  // counted from 1
      const std::uint64_t entry = bench_.word(Bench::entry_at(table, level - 1, address));
      SIM_CHECK((entry & 1) != 0, "an absent entry translates nothing");
      allowed = allowed & Permissions{.read = (entry >> 61 & 1) != 0, .write = (entry >> 62 & 1) != 0};
      const std::uint64_t next = entry >> 9 & 7;
      if (next != 0 && next != 7) {
        SIM_CHECK(next < level, "tables lead down");
        level = static_cast<unsigned>(next);
        table = entry & kAddress;
        continue;
      }
      unsigned lg2 = 12 + 9 * (level - 1);
      if (next == 7)
        for (lg2 = 13; (entry >> (lg2 - 1) & 1) != 0; ++lg2) {
        }
      const std::uint64_t in_page = bits_between(0, lg2);
      address = (entry & kAddress & ~in_page) | (address & in_page);
      return;
    }
  }
  void read_guest(const Context& context, std::uint64_t& address, Permissions& allowed) {
    std::uint64_t table = context.stage1.address;
    for (unsigned level = context.stage1.top_level;; --level) {
      std::uint64_t at = Bench::entry_at(table, level, address);
      Permissions unused = kReadWrite;
      if (context.kind == ContextKind::Nested) read_host(context.stage2, at, unused);
      const std::uint64_t entry = bench_.word(at);
      SIM_CHECK((entry & 1) != 0, "an absent entry translates nothing");
      allowed = allowed & Permissions{.read = true, .write = (entry & 2) != 0};
      table = entry & bits_between(12, 52);
      if (level > 0 && (entry & 0x80) == 0) continue;
      const std::uint64_t in_page = bits_between(0, 12 + 9 * level);
      address = (table & ~in_page) | (address & in_page);
      return;
    }
  }

  void check_registers() override {
    const std::uint64_t control = bench_.reg(offset::kControl), status = bench_.reg(offset::kStatus);
    const bool on = get<kControl, "IommuEn">(control) != 0;
    const auto runs = [&](std::uint64_t enable) { return on && enable != 0; };
    SIM_CHECK(bench_.core.is_translating() == on, "IommuEn says what the unit does");
    SIM_CHECK((get<kStatus, "CmdBufRun">(status)) == 0 || runs(get<kControl, "CmdBufEn">(control)),
              "commands run only while enabled");
    SIM_CHECK((get<kStatus, "EventLogRun">(status)) == 0 || runs(get<kControl, "EventLogEn">(control)),
              "events are logged only while enabled");
    SIM_CHECK((get<kStatus, "CmdBufRun">(status)) != 0 || !bench_.core.has_command(), "a ring that stopped is still");
    const std::uint64_t error = bench_.reg(offset::kHardwareEventStatus);
    SIM_CHECK((get<kHardwareEventStatus, "HEO">(error)) == 0 || bench_.core.capabilities().hardware_error_registers,
              "absent registers stay zero");
  }

  Bench bench_;
  std::vector<std::uint64_t> entries_;
};

}  // namespace
}  // namespace iommu::amdvi::test

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  iommu::amdvi::test::Session(iommu::test::FuzzInput(std::span(data, size))).run();
  return 0;
}
