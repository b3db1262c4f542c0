// SPDX-License-Identifier: Apache-2.0
// A unit in the hands of hostile software: bytes choose capabilities and a stream, edit its entry, its descriptor and
// its tables, write registers and commands, ask for translations, and change memory and registers between two reads of
// one walk. Whatever they do, every request ends within a bound, gets an event of the specification or no more than the
// tables give, and the registers stay consistent. A plain unit left in peace is held against the independent walker of
// the vector rules: the same address, or the same event.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <variant>
#include <vector>

#include "models/smmuv3/core.hpp"
#include "models/smmuv3/driver.hpp"
#include "models/smmuv3/recorder.hpp"
#include "models/smmuv3/vector_rules.hpp"
#include "sim/base/check.hpp"
#include "sim/memory/host_memory.hpp"
#include "sim/memory/host_table_memory.hpp"

namespace iommu::smmuv3 {
namespace {

constexpr RequesterId kDevice = RequesterId::bdf(3, 0, 0);
constexpr unsigned kMemoryLg2 = 38;
constexpr std::uint64_t kQueues = 0x8000'0000;  // rings that bytes fill
constexpr std::uint64_t kTables = 0x2000'0000, kTableFrames = 0x2000;
constexpr std::uint64_t kInput = 0x4000'0000, kOutput = 0x6000'0000;
// Accesses for one walk of four levels with marks; for one stage-1 entry that is read and marked; for the whole.
constexpr std::uint64_t kStage2Bound = 4 * 2;
constexpr std::uint64_t kEntryBound = 2 * (kStage2Bound + 1);
constexpr std::uint64_t kQuietBound = 2 + kEntryBound + 4 * kEntryBound + kStage2Bound;
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

// As QEMU 11 is, which the independent walker knows: no substreams, stalls or updates of flags.
Identity plain() { return {.idr0 = 0xd44'101b, .idr1 = 0x273'0010, .idr3 = 0x1414, .idr5 = 0x74, .aidr = 1}; }
Identity rich(Input& in) {
  UnitFeatures features{.nested = true, .device_tlb = true, .accessed_dirty = true, .stall = true};
  Identity id = compose(features);
  constexpr auto kFixed = static_cast<std::uint32_t>(mask_of<kIdr0, "TTF"> | mask_of<kIdr0, "TTENDIAN">);
  id.idr0 ^= static_cast<std::uint32_t>(in.take(4)) & ~kFixed;
  id.idr1 ^= static_cast<std::uint32_t>(in.take(4));
  id.idr3 ^= static_cast<std::uint32_t>(in.take(4));
  constexpr auto kWide = static_cast<std::uint32_t>(mask_of<kIdr5, "DS"> | mask_of<kIdr5, "D128">);
  id.idr5 ^= static_cast<std::uint32_t>(in.take(4)) & ~kWide;
  return id;
}

class Session {
 public:
  explicit Session(Input in)
      : in_(in), is_plain_(in_.take(1) % 2 == 0), core_(is_plain_ ? plain() : rich(in_)), driver_(options()) {
    host_.on_write([](void* self, Hpa at) { static_cast<Session*>(self)->dirty_.push_back(at.value()); }, this);
    const auto writes = driver_.bring_up(memory_);
    for (const RegisterWrite& w : *writes) core_.mmio_write(w.offset, w.bytes, w.value);
    attach();
    collect_words();
    record_.ram.push_back({.base = 0, .bytes = 1ULL << kMemoryLg2});
    const Identity id = plain();
    record_.id_registers = {
        {"IDR0", id.idr0}, {"IDR1", id.idr1}, {"IDR3", id.idr3}, {"IDR5", id.idr5}, {"AIDR", id.aidr}};
  }
  void run() {
    while (!in_.empty()) step();
  }

 private:
  // Counts, and lets the adversary act between two accesses.
  class Port final : public MemoryPort {
   public:
    explicit Port(Session& session) : session_(session) {}
    bool begin(MemoryAccess& access) override {
      ++accesses;
      session_.interfere();
      session_.host_.perform(access);
      if (access.op == MemoryOp::Read) return true;
      for (unsigned i = 0; i < access.bytes; i += 8) session_.dirty_.push_back(access.address.value() + i);
      return true;
    }
    std::uint64_t accesses = 0;

   private:
    Session& session_;
  };

  DriverOptions options() {
    constexpr std::array<unsigned, 3> kGranules{12, 14, 16};
    kind_ = static_cast<ContextKind>(in_.take(1) % 4);
    granule_ = kGranules[in_.take(1) % kGranules.size()];
    constexpr std::array<unsigned, 4> kInputs{33, 39, 43, 48};
    DriverOptions o;
    o.features.host_address_bits = 44;
    o.features.input_address_bits = kInputs[in_.take(1) % kInputs.size()];
    o.features.nested = true;
    o.stage1 = true;
    o.granule_lg2 = granule_;
    return o;
  }
  void attach() {
    stage1_ = driver_.create_table(TableKind::Stage1, memory_);
    stage2_ = driver_.create_table(TableKind::Stage2, memory_);
    const unsigned block_lg2 = 2 * granule_ - 3;
    const std::uint64_t block = 1ULL << block_lg2, page = 1ULL << granule_;
    const auto map_block = [&](PageTable& table, std::uint64_t input, std::uint64_t output) {
      table.map({.input = input, .output = output, .length = Bytes(block), .max_page_lg2 = block_lg2});
    };
    // Stage-1 tables one to one, a page and a block.
    for (std::uint64_t at = kTables; at < kTables + (kTableFrames << kPageLg2); at += block)
      map_block(*stage2_, at, at);
    stage2_->map({.input = kOutput, .output = kOutput, .length = Bytes(page)});
    for (PageTable* table : {stage1_.get(), stage2_.get()}) {
      table->map({.input = kInput, .output = kOutput, .length = Bytes(page)});
      map_block(*table, kInput + block, kTables);
    }
    const ContextSetting setting{
        .kind = kind_, .domain = DomainTag(7), .stage1 = stage1_->root(), .stage2 = stage2_->root()};
    SIM_CHECK(driver_.attach(kDevice, setting, memory_).status == EditStatus::Ok, "drivers use such settings");
  }
  // One word of each value: entries of other streams are all the same.
  void collect_words() {
    std::set<std::uint64_t> values{0};
    for (const std::uint64_t at : dirty_)
      if (values.insert(host_.read64(Hpa(at))).second) words_.push_back(at);
  }

  void step() {
    constexpr unsigned kKinds = 7;
    switch (in_.take(1) % kKinds) {
      case 0:
      case 1:
        edit();
        break;
      case 2:
        write_register();
        break;
      case 3:
        write_command();
        break;
      case 4:
        adversary_steps_ = static_cast<unsigned>(in_.take(1) % 32);
        break;
      case 5:
        run_queue();
        break;
      default:
        translate();
        break;
    }
    check_registers();
  }

  void edit() {
    // Structures of 64 bytes have words that are still zero.
    std::uint64_t at = words_[in_.take(1) % words_.size()];
    const std::uint64_t how = in_.take(1);
    if ((how & 0x80) != 0) at = (at & ~0x3fULL) | (how >> 3 & 7) * 8;
    const std::uint64_t old = host_.read64(Hpa(at));
    switch (how % 3) {
      case 0:
        host_.write64(Hpa(at), old ^ 1ULL << in_.take(1) % 64);
        break;
      case 1:  // a pointer to some other table, or to itself
        host_.write64(Hpa(at), (words_[in_.take(1) % words_.size()] & ~0xfffULL) | (old & 0xfff));
        break;
      default:
        host_.write64(Hpa(at), in_.take(8));
        break;
    }
  }

  void write_register() {
    // Offsets in use are below 0xe0, and in the second page.
    const std::uint64_t at = in_.take(1);
    const std::uint64_t page = (at & 3) == 3 ? 0x10000 : 0;
    const RegisterEffect effect = core_.mmio_write(page | (at & ~3ULL), in_.take(1) % 2 == 0 ? 4 : 8,
                                                   in_.take(1) % 2 == 0 ? in_.take(8) : value());
    (void)effect;
    while (core_.take_interrupt()) {
    }
  }
  // Likely ones: a queue of ours, an index, a switch.
  std::uint64_t value() {
    const std::uint64_t v = in_.take(1);
    return v % 2 == 0 ? kQueues + (v & 0xf0) * 0x100 + v % 16 : v >> 1;
  }

  void write_command() {
    const std::uint64_t at = kQueues + in_.take(1) % 128 * kCommandBytes;
    const std::uint64_t first = in_.take(8);
    const auto& row = kCommandRows[in_.take(1) % kCommandRows.size()];
    host_.write64(Hpa(at), in_.take(1) % 4 == 0 ? first : (first & ~0xffULL) | row.opcode);
    host_.write64(Hpa(at + 8), in_.take(8));
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
    for (unsigned commands = 0; core_.has_command(); ++commands) {
      SIM_CHECK(commands <= 1U << (kLargestQueueLg2 + 1), "a queue that nobody fills runs empty");
      const bool quiet = adversary_steps_ == 0;
      const auto command = core_.fetch_command(port_).run();
      if (!command) {
        SIM_CHECK(!quiet || !core_.has_command(), "a failed fetch stops the queue");
        return;
      }
      SIM_CHECK(command->row != nullptr, "what is fetched is known");
      const CommandEffect effect = core_.apply(*command);
      SIM_CHECK(!quiet || !effect.error, "what is fetched is valid");
    }
  }

  TranslationRequest request() {
    const std::uint64_t flags = in_.take(1);
    TranslationRequest r{.requester = kDevice, .pasid = {}, .address = Iova(kInput + in_.take(2))};
    r.access = (flags & 1) != 0 ? Access::Write : Access::Read;
    if ((flags & 2) != 0) r.address = Iova(in_.take(8));
    if ((flags & 4) != 0) r.address = Iova(kInput + (1ULL << (2 * granule_ - 3)) + in_.take(3));
    if ((flags & 8) != 0) r.requester = RequesterId(static_cast<std::uint16_t>(in_.take(2)));
    if (is_plain_) return r;
    if ((flags & 16) != 0) r.pasid = Pasid(static_cast<std::uint32_t>(in_.take(3) & 0xfffff));
    r.type = static_cast<AddressType>((flags >> 5 & 3) % 3);
    r.privileged = (flags & 128) != 0;
    return r;
  }

  void translate() {
    const TranslationRequest r = request();
    const bool quiet = adversary_steps_ == 0;
    const bool comparable = quiet && is_plain_ && get<kCr0, "SMMUEN">(core_.mmio_read(offset::kCr0, 4)) != 0;
    VectorOutcome expected;
    if (comparable) expected = independent(r);
    port_.accesses = 0;
    const TranslationResponse response = core_.translate(r, port_).run();
    SIM_CHECK(port_.accesses <= (quiet ? kQuietBound : kHostileBound), "a translation is bounded");
    if (const auto* fault = std::get_if<Fault>(&response)) {
      const auto* const end = kFaultRows.data() + kFaultRows.size();
      SIM_CHECK(fault->row >= kFaultRows.data() && fault->row < end, "a fault is one of the specification's");
      const auto recorded = record(*fault);
      if (comparable) compare(expected, *fault, recorded);
      return;
    }
    const auto& translation = std::get<Translation>(response);
    if (comparable)
      SIM_CHECK(expected.result == VectorResult::Translated && expected.output == translation.address.value(),
                "the output is what the tables say");
    if (translation.is_bypass) {
      SIM_CHECK(translation.address.value() == r.address.value(), "a bypass changes nothing");
      return;
    }
    if (translation.allowed.none()) return;  // an answer to a device TLB
    SIM_CHECK(r.type != AddressType::Untranslated || translation.allowed.allow(r.access),
              "what is translated is allowed");
    SIM_CHECK(!core_.capabilities().beyond_output(translation.address.value()), "outputs are within the OAS");
    SIM_CHECK(translation.page_lg2 >= kPageLg2 && translation.page_lg2 < 64, "pages are of 4 KiB or more");
  }

  // The event that a fault left in the queue, if it did.
  std::optional<std::pair<unsigned, RecordedFault>> record(const Fault& fault) {
    core_.write_events(port_).run();  // what waited
    const std::uint64_t before = core_.mmio_read(offset::kEventqProd, 4);
    core_.record(fault);
    core_.write_events(port_).run();
    const std::uint64_t after = core_.mmio_read(offset::kEventqProd, 4);
    const bool written = get<kQueueProd, "WR">(after) != get<kQueueProd, "WR">(before);
    if (is_plain_) core_.mmio_write(offset::kEventqCons, 4, after);  // software reads; otherwise queues fill up
    while (core_.take_interrupt()) {
    }
    if (!written || adversary_steps_ != 0) return std::nullopt;
    const std::uint64_t base = core_.mmio_read(offset::kEventqBase, 8);
    const auto lg2 = std::min(static_cast<unsigned>(get<kQueueBase, "LOG2SIZE">(base)), kLargestQueueLg2);
    const std::uint64_t table = base & mask_of<kQueueBase, "ADDR"> & ~bits_between(0, lg2 + 5);
    const std::uint64_t at = table + (before & bits_between(0, lg2)) * kEventBytes;
    if (at >> kMemoryLg2 != 0) return std::nullopt;  // written to nowhere
    std::array<std::uint64_t, kEventBytes / 8> words{};
    for (std::size_t i = 0; i < words.size(); ++i) words[i] = host_.read64(Hpa(at + 8 * i));
    return kVectorFamily.read_record(words);
  }

  VectorOutcome independent(const TranslationRequest& r) {
    using Kind = VectorRegisterAccess::Kind;
    record_.setup = {
        {Kind::Write, offset::kStrtabBase, 8, core_.mmio_read(offset::kStrtabBase, 8)},
        {Kind::Write, offset::kStrtabBaseCfg, 4, core_.mmio_read(offset::kStrtabBaseCfg, 4)},
        {Kind::Write, offset::kCr0, 4, core_.mmio_read(offset::kCr0, 4)},
    };
    for (const std::uint64_t at : dirty_)
      if (at >> kMemoryLg2 == 0) image_.write(at, host_.read64(Hpa(at)));
    dirty_.clear();
    const VectorAccess access{.request = r, .before = {}, .recorded = {}};
    const VectorOutcome nothing;
    // The one departure that the specification allows, where software asks for it.
    const bool records = get<kCr2, "RECINVSID">(core_.mmio_read(offset::kCr2, 4)) != 0;
    const Departures departures = records ? bit_of(Departure::InvalidStreamRecorded) : 0;
    return recorder_outcome({record_, access, image_, record_.id_registers, nothing}, departures);
  }
  static void compare(const VectorOutcome& expected, const Fault& fault,
                      const std::optional<std::pair<unsigned, RecordedFault>>& recorded) {
    SIM_CHECK(expected.result != VectorResult::Translated, "the tables give an address");
    SIM_CHECK(expected.reason == 0 || expected.reason == fault.row->code, "the event is what the tables say");
    if (!recorded) return;
    SIM_CHECK(expected.result == VectorResult::Fault, "this event is not recorded");
    SIM_CHECK(recorded->second == expected.fault, "the event says where");
  }

  void check_registers() {
    const std::uint64_t control = core_.mmio_read(offset::kCr0, 4);
    SIM_CHECK(core_.mmio_read(offset::kCr0ack, 4) == control, "updates are acknowledged");
    const std::uint64_t active = core_.mmio_read(offset::kGerror, 4) ^ core_.mmio_read(offset::kGerrorn, 4);
    SIM_CHECK((active & mask_of<kGerror, "CMDQ_ERR">) == 0 || !core_.has_command(), "an error holds the queue");
    const bool fetches = (control & mask_of<kCr0, "CMDQEN">) != 0;
    SIM_CHECK(fetches || !core_.has_command(), "a disabled queue is not read");
    SIM_CHECK(core_.stalled() <= core_.capabilities().stalls, "no more stall than STALL_MAX");
  }

  Input in_;
  bool is_plain_;
  ContextKind kind_ = ContextKind::Nested;
  unsigned granule_ = kPageLg2;
  HostMemory host_{Bytes(1ULL << kMemoryLg2)};
  FrameAllocator frames_{Mfn(kTables >> kPageLg2), kTableFrames};
  HostTableMemory memory_{host_, frames_};
  Core core_;
  Driver driver_;
  std::unique_ptr<PageTable> stage1_, stage2_;
  std::vector<std::uint64_t> dirty_, words_;
  VectorRecord record_;
  VectorMemory image_{record_};
  Port port_{*this};
  unsigned adversary_steps_ = 0;
};

}  // namespace
}  // namespace iommu::smmuv3

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using iommu::smmuv3::Session;
  Session(iommu::smmuv3::Input(std::span(data, size))).run();
  return 0;
}
