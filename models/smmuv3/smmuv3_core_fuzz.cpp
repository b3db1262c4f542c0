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
#include "sim/translation/core_fuzz_test_support.hpp"

namespace iommu::smmuv3 {
namespace {

using iommu::test::FuzzInput;
using iommu::test::HostileSoftware;
using iommu::test::TestPort;

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

// As QEMU 11 is, which the independent walker knows: no substreams, stalls or updates of flags.
Identity plain() { return {.idr0 = 0xd44'101b, .idr1 = 0x273'0010, .idr3 = 0x1414, .idr5 = 0x74, .aidr = 1}; }
Identity rich(FuzzInput& in) {
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

class Session final : public HostileSoftware {
 public:
  explicit Session(FuzzInput bytes)
      : HostileSoftware(
            bytes,
            {.accesses = kQuietBound, .hostile_accesses = kHostileBound, .commands = 1U << (kLargestQueueLg2 + 1)},
            kFaultRows),
        is_plain_(in.take(1) % 2 == 0),
        core_(is_plain_ ? plain() : rich(in)),
        driver_(options()) {
    host_.on_write([](void* self, Hpa at) { static_cast<Session*>(self)->dirty_.push_back(at.value()); }, this);
    port_.before = [this](const MemoryAccess& access) {
      interfere();
      if (access.op == MemoryOp::Read) return;
      for (unsigned i = 0; i < access.bytes; i += 8) dirty_.push_back(access.address.value() + i);
    };
    const auto writes = driver_.bring_up(memory_);
    for (const RegisterWrite& w : *writes) core_.mmio_write(w.offset, w.bytes, w.value);
    attach();
    collect_words();
    record_.ram.push_back({.base = 0, .bytes = 1ULL << kMemoryLg2});
    const Identity id = plain();
    record_.id_registers = {
        {"IDR0", id.idr0}, {"IDR1", id.idr1}, {"IDR3", id.idr3}, {"IDR5", id.idr5}, {"AIDR", id.aidr}};
  }

 private:
  Unit unit() override { return {core_, host_, port_}; }
  // Tables are edited twice as often as all else is done.
  [[nodiscard]] std::span<const Act> acts() const override {
    static constexpr std::array kActs{Act::Edit,      Act::Edit,        Act::WriteRegister, Act::WriteCommand,
                                      Act::Interfere, Act::RunCommands, Act::Translate};
    return kActs;
  }

  DriverOptions options() {
    constexpr std::array<unsigned, 3> kGranules{12, 14, 16};
    kind_ = static_cast<ContextKind>(in.take(1) % 4);
    granule_ = kGranules[in.take(1) % kGranules.size()];
    constexpr std::array<unsigned, 4> kInputs{33, 39, 43, 48};
    DriverOptions o;
    o.features.host_address_bits = 44;
    o.features.input_address_bits = kInputs[in.take(1) % kInputs.size()];
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

  void edit() override {
    // Structures of 64 bytes have words that are still zero.
    std::uint64_t at = words_[in.take(1) % words_.size()];
    const std::uint64_t how = in.take(1);
    if ((how & 0x80) != 0) at = (at & ~0x3fULL) | (how >> 3 & 7) * 8;
    change(at, how);
  }
  // To some other table, or to itself.
  std::uint64_t pointer(std::uint64_t old) override {
    return (words_[in.take(1) % words_.size()] & ~0xfffULL) | (old & 0xfff);
  }

  void write_register() override {
    // Offsets in use are below 0xe0, and in the second page.
    const std::uint64_t at = in.take(1);
    const std::uint64_t page = (at & 3) == 3 ? 0x10000 : 0;
    const RegisterEffect effect =
        core_.mmio_write(page | (at & ~3ULL), in.take(1) % 2 == 0 ? 4 : 8, in.take(1) % 2 == 0 ? in.take(8) : value());
    (void)effect;
    while (core_.take_interrupt()) {
    }
  }
  // Likely ones: a queue of ours, an index, a switch.
  std::uint64_t value() {
    const std::uint64_t v = in.take(1);
    return v % 2 == 0 ? kQueues + (v & 0xf0) * 0x100 + v % 16 : v >> 1;
  }

  void write_command() override {
    const std::uint64_t at = kQueues + in.take(1) % 128 * kCommandBytes;
    const std::uint64_t first = in.take(8);
    const auto& row = kCommandRows[in.take(1) % kCommandRows.size()];
    host_.write64(Hpa(at), in.take(1) % 4 == 0 ? first : (first & ~0xffULL) | row.opcode);
    host_.write64(Hpa(at + 8), in.take(8));
  }

  TranslationRequest request() {
    const std::uint64_t flags = in.take(1);
    TranslationRequest r{.requester = kDevice, .pasid = {}, .address = Iova(kInput + in.take(2))};
    r.access = (flags & 1) != 0 ? Access::Write : Access::Read;
    if ((flags & 2) != 0) r.address = Iova(in.take(8));
    if ((flags & 4) != 0) r.address = Iova(kInput + (1ULL << (2 * granule_ - 3)) + in.take(3));
    if ((flags & 8) != 0) r.requester = RequesterId(static_cast<std::uint16_t>(in.take(2)));
    if (is_plain_) return r;
    r.execute = (flags >> 5 & 3) == 3;
    if ((flags & 16) != 0) {
      const std::uint64_t pasid = in.take(3);
      r.pasid = Pasid(static_cast<std::uint32_t>(pasid & 0xfffff));
      r.execute = r.execute || pasid >> 20 != 0;
    }
    r.type = static_cast<AddressType>((flags >> 5 & 3) % 3);
    r.privileged = (flags & 128) != 0;
    return r;
  }

  void translate() override {
    const TranslationRequest r = request();
    const bool comparable = is_quiet() && is_plain_ && get<kCr0, "SMMUEN">(core_.mmio_read(offset::kCr0, 4)) != 0;
    VectorOutcome expected;
    if (comparable) expected = independent(r);
    const TranslationResponse response = answer_to(r);
    if (const auto* fault = std::get_if<Fault>(&response)) {
      const auto recorded = record(*fault);
      if (comparable) compare(expected, *fault, recorded);
      return;
    }
    const auto& translation = std::get<Translation>(response);
    if (comparable)
      SIM_CHECK(expected.result == VectorResult::Translated && expected.output == translation.address.value(),
                "the output is what the tables say");
    if (translation.is_bypass || translation.allowed.none()) return;  // no rights: an answer to a device TLB
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
    if (!written || !is_quiet()) return std::nullopt;
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

  void check_registers() override {
    const std::uint64_t control = core_.mmio_read(offset::kCr0, 4);
    SIM_CHECK(core_.mmio_read(offset::kCr0ack, 4) == control, "updates are acknowledged");
    const std::uint64_t active = core_.mmio_read(offset::kGerror, 4) ^ core_.mmio_read(offset::kGerrorn, 4);
    SIM_CHECK((active & mask_of<kGerror, "CMDQ_ERR">) == 0 || !core_.has_command(), "an error holds the queue");
    const bool fetches = (control & mask_of<kCr0, "CMDQEN">) != 0;
    SIM_CHECK(fetches || !core_.has_command(), "a disabled queue is not read");
    SIM_CHECK(core_.stalled() <= core_.capabilities().stalls, "no more stall than STALL_MAX");
  }

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
  TestPort port_{host_};
};

}  // namespace
}  // namespace iommu::smmuv3

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  iommu::smmuv3::Session(iommu::test::FuzzInput(std::span(data, size))).run();
  return 0;
}
