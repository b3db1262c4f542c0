// SPDX-License-Identifier: Apache-2.0
// A unit in the hands of hostile software: bytes choose capabilities, edit tables, write registers and descriptors, ask
// for translations, and change memory and registers between two reads of one walk. Whatever they do, every request ends
// within a bound, gets a fault of the specification or no more than the tables give, and the registers stay consistent.
#include <cstddef>
#include <cstdint>
#include <span>

#include "models/vtd/core_test_support.hpp"
#include "sim/base/check.hpp"

namespace iommu::vtd::test {
namespace {

constexpr std::uint64_t kQueue = 0x200000;
constexpr unsigned kMaxDevfnReads = 4;
// Reads and marks of one walk of five levels; of a nested one, with two walks for each entry and one for the output.
constexpr std::uint64_t kWalkBound = 2 * 5;
constexpr std::uint64_t kQuietBound = kMaxDevfnReads + 5 * (2 * kWalkBound + 2) + kWalkBound;
// Under an adversary each mark may be tried again.
constexpr std::uint64_t kHostileBound = kQuietBound * kMaxMarkAttempts * kMaxMarkAttempts;

class Input {
 public:
  explicit Input(std::span<const std::uint8_t> data) : data_(data) {}
  [[nodiscard]] bool empty() const { return data_.empty(); }
  std::uint64_t take(unsigned count) {
    std::uint64_t value = 0;
    for (unsigned i = 0; i < count && !data_.empty(); ++i) {
      value |= std::uint64_t{data_[0]} << 8 * i;
      data_ = data_.subspan(1);
    }
    return value;
  }

 private:
  std::span<const std::uint8_t> data_;
};

Identity chosen_identity(Input& in) {
  Identity id = Bench::full();
  // Capabilities that software reads, flipped at will; the table offsets stay where a unit can have them.
  id.ecap ^= in.take(8) & ~mask_of<kEcap, "IRO">;
  id.cap ^= in.take(8) & ~(mask_of<kCap, "FRO"> | mask_of<kCap, "NFR"> | mask_of<kCap, "MGAW">);
  constexpr std::array<unsigned, 4> kWidths{36, 39, 48, 52};
  id.host_address_bits = kWidths[in.take(1) % kWidths.size()];
  return id;
}

class Session {
 public:
  explicit Session(Input in)
      : in_(in),
        bench_(kAllSettings[in_.take(1) % kAllSettings.size()],
               {.levels1 = 4 + static_cast<unsigned>(in_.take(1) % 2),
                .levels2 = 3 + static_cast<unsigned>(in_.take(1) % 3),
                .leaf1 = static_cast<Level>(in_.take(1) % 3),
                .leaf2 = static_cast<Level>(in_.take(1) % 3)},
               chosen_identity(in_), in_.take(1) % 2 == 0 ? Bench::kInput & bits_between(0, 39) : 0x7f'ffff'f000) {
    bench_.core.mmio_write(offset::kIqa, 8, kQueue);
    collect_entries();
    bench_.port.before = [this](const MemoryAccess&) { interfere(); };
  }
  void run() {
    while (!in_.empty()) step();
  }

 private:
  void step() {
    constexpr unsigned kKinds = 6;
    switch (in_.take(1) % kKinds) {
      case 0:
        edit();
        break;
      case 1:
        write_register();
        break;
      case 2:
        write_descriptor();
        break;
      case 3:
        adversary_steps_ = static_cast<unsigned>(in_.take(1) % 32);
        break;
      case 4:
        run_queue();
        break;
      default:
        translate();
        break;
    }
    check_registers();
  }

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

  void edit() {
    const std::uint64_t entry = entries_[in_.take(1) % entries_.size()] + in_.take(1) % 8 * 8;
    switch (in_.take(1) % 3) {
      case 0:
        bench_.write(entry, bench_.word(entry) ^ 1ULL << in_.take(1) % 64);
        break;
      case 1:  // a pointer to some other table, or to itself
        bench_.write(entry, (entries_[in_.take(1) % entries_.size()] & ~0xfffULL) | in_.take(2));
        break;
      default:
        bench_.write(entry, in_.take(8));
        break;
    }
  }

  void write_register() {
    const std::uint64_t at = in_.take(2) % 0x600;
    (void)bench_.core.mmio_write(at & ~3ULL, in_.take(1) % 2 == 0 ? 4 : 8, in_.take(8));
    if (in_.take(1) % 2 == 0) bench_.core.invalidation_done();
    while (bench_.core.take_interrupt()) {
    }
  }

  void write_descriptor() {
    const std::uint64_t at = kQueue + in_.take(1) % 128 * 32;
    for (unsigned i = 0; i < 4; ++i) bench_.write(at + 8 * i, in_.take(i < 2 ? 8 : 1));
  }

  void interfere() {
    if (adversary_steps_ == 0 || in_.empty()) return;
    --adversary_steps_;
    if (in_.take(1) % 4 == 0)
      write_register();
    else
      edit();
  }

  void run_queue() {
    for (unsigned commands = 0; bench_.core.has_command(); ++commands) {
      SIM_CHECK(commands <= 1U << 15, "a queue that nobody fills runs empty");
      const bool quiet = adversary_steps_ == 0;
      const auto command = bench_.core.fetch_command(bench_.port).run();
      if (!command) {
        SIM_CHECK(!quiet || !bench_.core.has_command(), "a failed fetch stops the queue");
        return;
      }
      SIM_CHECK(command->row != nullptr, "what is fetched is known");
      const CommandEffect effect = bench_.core.apply(*command);
      SIM_CHECK(!quiet || !effect.error, "what is fetched is valid");
      if (effect.fence && effect.fence->interrupt) (void)bench_.core.fence_interrupt();
    }
  }

  void translate() {
    TranslationRequest request = bench_.request;
    const std::uint64_t flags = in_.take(1);
    request.access = (flags & 1) != 0 ? Access::Write : Access::Read;
    request.type = static_cast<AddressType>((flags >> 1 & 3) % 3);
    if ((flags & 8) != 0) request.pasid = Pasid(static_cast<std::uint32_t>(in_.take(3) & 0xfffff));
    if ((flags & 16) != 0) request.requester = RequesterId(static_cast<std::uint16_t>(in_.take(2)));
    if ((flags & 32) != 0) request.address = Iova(in_.take(8));
    request.privileged = (flags & 64) != 0;
    const bool quiet = adversary_steps_ == 0;
    bench_.port.reset_counts();
    const TranslationResponse response = bench_.core.translate(request, bench_.port).run();
    SIM_CHECK(bench_.port.accesses <= (quiet ? kQuietBound : kHostileBound), "a translation is bounded");
    if (const auto* fault = std::get_if<Fault>(&response)) {
      const auto* const end = kFaultRows.data() + kFaultRows.size();
      SIM_CHECK(fault->row >= kFaultRows.data() && fault->row < end, "a fault is one of the specification's");
      (void)bench_.core.record(*fault);
      return;
    }
    const auto& translation = std::get<Translation>(response);
    if (translation.is_bypass) {
      SIM_CHECK(translation.address.value() == request.address.value(), "a bypass changes nothing");
      return;
    }
    SIM_CHECK(request.type != AddressType::Untranslated || translation.allowed.allow(request.access),
              "what is translated is allowed");
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
  static std::uint64_t slot(std::uint64_t table, unsigned level, std::uint64_t input) {
    return table + (input >> (12 + 9 * level) & 511) * 8;
  }
  void second_stage(TableRoot root, std::uint64_t& address, Permissions& allowed) {
    std::uint64_t table = root.address;
    for (unsigned level = root.top_level;; --level) {
      const std::uint64_t entry = bench_.word(slot(table, level, address));
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
      std::uint64_t at = slot(table, level, address);
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

  void check_registers() {
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

  Input in_;
  Bench bench_;
  std::vector<std::uint64_t> entries_;
  unsigned adversary_steps_ = 0;
};

}  // namespace
}  // namespace iommu::vtd::test

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace iommu::vtd::test;
  Session(Input(std::span(data, size))).run();
  return 0;
}
