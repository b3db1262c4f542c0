// SPDX-License-Identifier: Apache-2.0
// A unit in the hands of hostile software: bytes choose capabilities, edit tables, write registers and descriptors, ask
// for translations, and change memory and registers between two reads of one walk. Whatever they do, every request ends
// within a bound, gets a fault of the specification or no more than the tables give, and the registers stay consistent.
#include <cstddef>
#include <cstdint>
#include <span>

#include "models/vtd/core_test_support.hpp"
#include "sim/base/check.hpp"
#include "sim/translation/core_fuzz_test_support.hpp"

namespace iommu::vtd::test {
namespace {

using iommu::test::FuzzInput;
using iommu::test::HostileSoftware;

constexpr std::uint64_t kQueue = 0x200000;
constexpr unsigned kMaxDevfnReads = 4;
// Reads and marks of one walk of five levels; of a nested one, with two walks for each entry and one for the output.
constexpr std::uint64_t kWalkBound = 2 * 5;
constexpr std::uint64_t kQuietBound = kMaxDevfnReads + 5 * (2 * kWalkBound + 2) + kWalkBound;
// Under an adversary each mark may be tried again.
constexpr std::uint64_t kHostileBound = kQuietBound * kMaxMarkAttempts * kMaxMarkAttempts;

Identity chosen_identity(FuzzInput& in) {
  Identity id = Bench::full();
  // Capabilities that software reads, flipped at will; the table offsets stay where a unit can have them.
  id.ecap ^= in.take(8) & ~mask_of<kEcap, "IRO">;
  id.cap ^= in.take(8) & ~(mask_of<kCap, "FRO"> | mask_of<kCap, "NFR"> | mask_of<kCap, "MGAW">);
  constexpr std::array<unsigned, 4> kWidths{36, 39, 48, 52};
  id.host_address_bits = kWidths[in.take(1) % kWidths.size()];
  return id;
}

class Session final : public HostileSoftware {
 public:
  explicit Session(FuzzInput bytes)
      : HostileSoftware(bytes, {.accesses = kQuietBound, .hostile_accesses = kHostileBound}, kFaultRows),
        bench_(kAllSettings[in.take(1) % kAllSettings.size()],
               {.levels1 = 4 + static_cast<unsigned>(in.take(1) % 2),
                .levels2 = 3 + static_cast<unsigned>(in.take(1) % 3),
                .leaf1 = static_cast<Level>(in.take(1) % 3),
                .leaf2 = static_cast<Level>(in.take(1) % 3)},
               chosen_identity(in), in.take(1) % 2 == 0 ? Bench::kInput & bits_between(0, 39) : 0x7f'ffff'f000) {
    bench_.core.mmio_write(offset::kIqa, 8, kQueue);
    collect_entries();
    bench_.port.before = [this](const MemoryAccess&) { interfere(); };
  }

 private:
  Unit unit() override { return {bench_.core, bench_.host, bench_.port}; }

  void collect_entries() {
    const auto add = [this](std::uint64_t entry) {
      if (entry != 0) entries_.push_back(entry);
    };
    add(bench_.root_entry), add(bench_.context), add(bench_.directory), add(bench_.process);
    for (const std::uint64_t e : bench_.stage1) add(e);
    for (const std::uint64_t e : bench_.stage2) add(e);
    for (const auto& [page, path] : bench_.guest_table_entries)
      for (const std::uint64_t e : path) add(e);
  }

  void edit() override {
    const std::uint64_t entry = entries_[in.take(1) % entries_.size()] + in.take(1) % 8 * 8;
    change(entry, in.take(1));
  }
  // To some other table, or to itself.
  std::uint64_t pointer(std::uint64_t /*old*/) override {
    return (entries_[in.take(1) % entries_.size()] & ~0xfffULL) | in.take(2);
  }

  void write_register() override {
    const std::uint64_t at = in.take(2) % 0x600;
    (void)bench_.core.mmio_write(at & ~3ULL, in.take(1) % 2 == 0 ? 4 : 8, in.take(8));
    if (in.take(1) % 2 == 0) bench_.core.invalidation_done();
    while (bench_.core.take_interrupt()) {
    }
  }

  void write_command() override {
    const std::uint64_t at = kQueue + in.take(1) % 128 * 32;
    for (unsigned i = 0; i < 4; ++i) bench_.write(at + 8 * i, in.take(i < 2 ? 8 : 1));
  }

  void translate() override {
    const TranslationRequest request = varied(bench_.request, in.take(1));
    const bool quiet = is_quiet();
    const TranslationResponse response = answer_to(request);
    if (const auto* fault = std::get_if<Fault>(&response)) {
      (void)bench_.core.record(*fault);
      return;
    }
    const auto& translation = std::get<Translation>(response);
    if (translation.is_bypass) return;
    SIM_CHECK(translation.page_lg2 >= kPageLg2 && translation.page_lg2 <= 30, "pages are of 4 KiB to 1 GiB");
    if (quiet && !translation.allowed.none()) compare(request, translation);
  }

  // The tables, read once more by other code: the same output, and at least the rights that were given.
  void compare(const TranslationRequest& request, const Translation& got) {
    const ContextResult found = bench_.core.find_context(request, bench_.port).run();
    const Context& context = std::get<Context>(found);
    std::uint64_t address = request.address.value();
    Permissions allowed = kReadWrite;
    if (context.kind == ContextKind::Stage1 || context.kind == ContextKind::Nested)
      first_stage(context, address, allowed);
    // Supervisors may write where R/W is clear, unless they are write-protected: only the second stage binds them.
    if (request.privileged || !request.pasid) allowed = kReadWrite;
    if (context.kind == ContextKind::Stage2 || context.kind == ContextKind::Nested)
      second_stage(context.stage2, address, allowed);
    SIM_CHECK(address == got.address.value(), "the output is what the tables say");
    SIM_CHECK((got.allowed & allowed) == got.allowed, "no right that the tables do not give");
    SIM_CHECK(address < kInterruptFirst || address > kInterruptLast, "interrupts are not written through pages");
  }
  void second_stage(TableRoot root, std::uint64_t& address, Permissions& allowed) {
    std::uint64_t table = root.address;
    for (unsigned level = root.top_level;; --level) {
      const std::uint64_t entry = bench_.word(Bench::entry_at(table, level, address));
      allowed = allowed & Permissions{.read = (entry & 1) != 0, .write = (entry & 2) != 0};
      table = entry & mask_of<kSecondStagePage, "ADDR">;
      if (level > 0 && (entry & mask_of<kSecondStagePage, "PS">) == 0) continue;
      address = table | (address & bits_between(0, 12 + 9 * level));
      return;
    }
  }
  void first_stage(const Context& context, std::uint64_t& address, Permissions& allowed) {
    std::uint64_t table = context.stage1.address;
    for (unsigned level = context.stage1.top_level;; --level) {
      std::uint64_t at = Bench::entry_at(table, level, address);
      Permissions unused = kReadWrite;
      if (context.kind == ContextKind::Nested) second_stage(context.stage2, at, unused);
      const std::uint64_t entry = bench_.word(at);
      SIM_CHECK((entry & mask_of<kFirstStagePage, "P">) != 0, "an absent entry translates nothing");
      allowed = allowed & Permissions{.read = true, .write = (entry & mask_of<kFirstStagePage, "RW">) != 0};
      table = entry & mask_of<kFirstStagePage, "ADDR">;
      if (level > 0 && (entry & mask_of<kFirstStagePage, "PS">) == 0) continue;
      const std::uint64_t in_page = bits_between(0, 12 + 9 * level);
      address = (table & ~in_page) | (address & in_page);
      return;
    }
  }

  void check_registers() override {
    Core& core = bench_.core;
    const std::uint64_t cap = core.mmio_read(offset::kCap, 8);
    const std::uint64_t status = core.mmio_read(offset::kFsts, 4);
    const std::uint64_t records = get<kCap, "NFR">(cap) + 1;
    bool pending = false;
    for (std::uint64_t i = 0; i < records; ++i)
      pending |= core.mmio_read(get<kCap, "FRO">(cap) * 16 + i * 16 + 8, 8) >> 63 != 0;
    SIM_CHECK(pending == (get<kFsts, "PPF">(status) != 0), "PPF is the OR of all F");
    SIM_CHECK((get<kFsts, "FRI">(status)) < records, "FRI names a record");
    const bool has_error = get<kFsts, "IQE">(status) != 0;
    const bool has_reason = get<kIqercd, "IQEI">(core.mmio_read(offset::kIqercd, 8)) != 0;
    SIM_CHECK(has_error == has_reason, "a queue error has its reason");
    SIM_CHECK(!(has_error && core.has_command()), "an error holds the queue");
    SIM_CHECK(core.is_translating() == ((core.mmio_read(offset::kGsts, 4) & mask_of<kGsts, "TES">) != 0),
              "TES says what the unit does");
  }

  Bench bench_;
  std::vector<std::uint64_t> entries_;
};

}  // namespace
}  // namespace iommu::vtd::test

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  iommu::vtd::test::Session(iommu::test::FuzzInput(std::span(data, size))).run();
  return 0;
}
