// SPDX-License-Identifier: Apache-2.0
#include "models/smmuv3/recorder.hpp"

#include <algorithm>
#include <array>
#include <optional>
#include <span>
#include <variant>

#include "models/smmuv3/spec.hpp"

namespace iommu::smmuv3 {

namespace {

constexpr unsigned kQemu7 = 7;
constexpr unsigned kNarrow = 48;
constexpr std::uint64_t kStage2Detail = 4;
// Of QEMU's virt machine: flash below, then device memory; the PCIe window reads as ones.
constexpr std::uint64_t kFlashEnd = 0x0800'0000, kWindowFirst = 0x1000'0000, kWindowEnd = 0x3eff'0000;

constexpr std::array kOfBoth{
    Departure::InvalidStreamRecorded, Departure::SecondLevelDoubled,    Departure::SubstreamsForbidden,
    Departure::ContextPointerCut,     Departure::TableBaseCut,          Departure::DevicesReadable,
    Departure::BypassUnchecked,       Departure::TopByteFromLowerRange, Departure::AnyLevelBlock,
    Departure::UserAccessIgnored,     Departure::TablePermissionEarly,  Departure::TableSizeUnchecked,
    Departure::StallDisableChecked,   Departure::DeviceTablesTaken,
};
constexpr std::array kOf7{Departure::SecondLevelUnaligned, Departure::SpanUnchecked,     Departure::UpperRangeByZeros,
                          Departure::AccessFlagIgnored,    Departure::LeafSizeUnchecked, Departure::NoClass};
constexpr std::array kOf11{
    Departure::Stage2TableCut,           Departure::Stage2UpdatesIgnored, Departure::Stage2InputByOutput,
    Departure::Stage2StartUnchecked,     Departure::Stage1SizeUnrecorded, Departure::ConcatenationLost,
    Departure::Stage2TableSizeUnchecked, Departure::Stage2SizeLast,       Departure::LeafSizeLast,
    Departure::BasesTranslatedFirst,     Departure::BaseCutToOutput,      Departure::TablesTranslatedAtBase,
    Departure::TableSizeAtStage2,        Departure::TableFaultsAsStage1,  Departure::DescriptorAccessIsRead,
};

// Why a walk ends without address: an event, or nothing at all.
struct Stop {
  unsigned code = 0;  // 0: silent
  bool recorded = true;
  std::uint64_t detail = 0;
  std::optional<std::uint64_t> memory{};
  std::optional<std::uint64_t> page{};  // of the input; absent where the event has none
  bool is_read = false;                 // RnW, where it is not the transaction's
};
template <class T>
using Or = std::variant<T, Stop>;

struct Stage2 {
  bool enabled = false;
  unsigned granule = 12, input_bits = 48, output_bits = 48, level = 3;  // level counts from the leaf
  std::uint64_t table = 0;
  bool access_flag_ignored = false, record = false, protect = false;
};
struct Range {
  bool enabled = false;
  unsigned granule = 12, input_bits = 48;
  std::uint64_t table = 0;
  bool flat = false;
};
struct Setting {
  bool bypass = false, stage1 = false;
  Stage2 stage2;
  std::array<Range, 2> ranges{};
  unsigned output_bits = 48;
  bool access_flag_ignored = false, record = false;
  std::array<bool, 2> top_byte_ignored{};
};

std::uint64_t low(unsigned bits) { return bits_between(0, bits); }

class Walker {
 public:
  Walker(const VectorCase& c, Departures departures) : c_(c), departures_(departures) {
    for (const VectorRegisterAccess& access : c.record.setup) {
      if (access.kind != VectorRegisterAccess::Kind::Write) continue;
      if (access.offset == offset::kStrtabBase) stream_table_ = access.value;
      if (access.offset == offset::kStrtabBaseCfg) stream_config_ = access.value;
      if (access.offset == offset::kCr0) control_ = access.value;
    }
    const auto id = [&](const char* name) {
      const auto found = c.id_registers.find(name);
      return found == c.id_registers.end() ? 0 : found->second;
    };
    output_bits_ = kAddressSizes[get<kIdr5, "OAS">(id("IDR5"))];
    has_stage2_ = get<kIdr0, "S2P">(id("IDR0")) != 0;
    has_flat_ = get<kIdr3, "HAD">(id("IDR3")) != 0;
  }

  [[nodiscard]] VectorOutcome run() {
    const std::uint64_t address = c_.access.request.address.value();
    if (get<kCr0, "SMMUEN">(control_) == 0) return translated(address);
    const auto setting = configure();
    if (const auto* stop = std::get_if<Stop>(&setting)) return stopped(*stop);
    setting_ = std::get<Setting>(setting);
    const bool skips = setting_.bypass;
    if ((skips || !setting_.stage1) && address >> output_bits_ != 0 && !(skips && has(Departure::BypassUnchecked))) {
      Stop stop = input_stop(kFault<"F_ADDR_SIZE">->code, 2, true);
      if (!skips && has(Departure::Stage1SizeUnrecorded)) stop.recorded = false;
      return stopped(stop);
    }
    if (skips) return translated(address);
    std::uint64_t intermediate = address;
    if (setting_.stage1) {
      const auto first = walk_stage1(address);
      if (const auto* stop = std::get_if<Stop>(&first)) return stopped(*stop);
      intermediate = std::get<std::uint64_t>(first);
    }
    if (!setting_.stage2.enabled) return translated(intermediate);
    const auto second = walk_stage2(intermediate, c_.access.request.access, kStage2Detail | 2);
    if (const auto* stop = std::get_if<Stop>(&second)) return stopped(*stop);
    return translated(std::get<std::uint64_t>(second));
  }

 private:
  [[nodiscard]] bool has(Departure departure) const { return (departures_ & bit_of(departure)) != 0; }
  [[nodiscard]] bool is_write() const { return c_.access.request.access == Access::Write; }

  VectorOutcome translated(std::uint64_t output) const {
    return {.result = VectorResult::Translated, .output = output};
  }
  VectorOutcome stopped(Stop stop) const {
    VectorOutcome outcome{.result = VectorResult::Blocked, .reason = stop.code};
    if (stop.code == 0 || !stop.recorded) return outcome;
    outcome.result = VectorResult::Fault;
    RecordedFault fault;
    fault.requester = c_.access.request.requester;
    fault.page = stop.page.value_or(0) >> kPageLg2 << kPageLg2;
    fault.access = stop.page && (stop.is_read || !is_write()) ? Access::Read : Access::Write;
    fault.detail = stop.detail;
    fault.memory = stop.memory;
    const bool translation = stop.code >= kFault<"F_TRANSLATION">->code;
    if (has(Departure::NoClass) && translation) fault.detail = 0;
    outcome.fault = fault;
    return outcome;
  }
  Stop input_stop(unsigned code, std::uint64_t detail, bool recorded) const {
    return {.code = code, .recorded = recorded, .detail = detail, .page = c_.access.request.address.value()};
  }

  [[nodiscard]] std::optional<std::uint64_t> read(std::uint64_t address) const {
    if (const auto word = c_.memory.read(address)) return word;
    if (!has(Departure::DevicesReadable)) return std::nullopt;
    if (address < kFlashEnd) return 0;
    if (address >= kWindowFirst && address < kWindowEnd) return ~0ULL;
    return std::nullopt;
  }
  using Entry = std::array<std::uint64_t, 8>;
  [[nodiscard]] std::optional<Entry> read_entry(std::uint64_t address) const {
    Entry entry{};
    for (std::size_t i = 0; i < entry.size(); ++i) {
      const auto word = read(address + 8 * i);
      if (!word) return std::nullopt;
      entry[i] = *word;
    }
    return entry;
  }

  Or<std::uint64_t> stream_entry() const {
    const std::uint64_t stream = c_.access.request.requester.value();
    const Stop out_of_range{.code = kFault<"C_BAD_STREAMID">->code, .recorded = has(Departure::InvalidStreamRecorded)};
    const auto size = static_cast<unsigned>(get<kStrtabCfg, "LOG2SIZE">(stream_config_));
    if (stream >> std::min(size, 16U) != 0) return out_of_range;
    const std::uint64_t base = stream_table_ & mask_of<kStrtabBase, "ADDR">;
    if (get<kStrtabCfg, "FMT">(stream_config_) != 1) return (base & ~low(size + 6)) + stream * kSteBytes;
    const auto split = static_cast<unsigned>(get<kStrtabCfg, "SPLIT">(stream_config_));
    const unsigned align = std::max(6U, size > split ? size - split + 3 : 0);
    const std::uint64_t first = (base & ~low(align)) + (stream >> split) * kL1StdBytes;
    const auto descriptor = read(first);
    if (!descriptor) return Stop{.code = kFault<"F_STE_FETCH">->code, .memory = first};
    const auto span = static_cast<unsigned>(get<kL1Std, "Span">(*descriptor));
    const std::uint64_t index = stream & low(split);
    if (span == 0) return out_of_range;
    if ((span > kLargestSpan || span > split + 1) && !has(Departure::SpanUnchecked)) return out_of_range;
    if (has(Departure::SecondLevelDoubled)) {
      if (index >> span != 0) return Stop{.code = kFault<"C_BAD_STE">->code};
    } else if (index >> (span - 1) != 0) {
      return out_of_range;
    }
    std::uint64_t table = *descriptor & mask_of<kL1Std, "L2Ptr"> & ~low(5 + span);
    constexpr unsigned kSpanBits = 5;
    if (has(Departure::SecondLevelUnaligned)) table = *descriptor & ~low(kSpanBits);
    return table + index * kSteBytes;
  }

  Or<Setting> configure() {
    const auto where = stream_entry();
    if (const auto* stop = std::get_if<Stop>(&where)) return *stop;
    const std::uint64_t address = std::get<std::uint64_t>(where);
    const auto ste = address >> output_bits_ != 0 ? std::nullopt : read_entry(address);
    if (!ste) return Stop{.code = kFault<"F_STE_FETCH">->code, .memory = address};
    const Stop bad{.code = kFault<"C_BAD_STE">->code};
    if (get<kSte, "V">(*ste) == 0) return bad;
    const std::uint64_t config = get<kSte, "Config">(*ste);
    Setting setting;
    if (config < 4) return Stop{};
    if (config == 4) {
      setting.bypass = true;
      return setting;
    }
    setting.stage1 = (config & 1) != 0;
    setting.stage2.enabled = (config & 2) != 0;
    if (setting.stage2.enabled && (!has_stage2_ || !configure_stage2(*ste, setting.stage2))) return bad;
    if (has(Departure::SubstreamsForbidden) && get<kSte, "S1CDMax">(*ste) != 0) return bad;
    if (get<kSte, "S1STALLD">(*ste) != 0 && (setting.stage1 || has(Departure::StallDisableChecked))) return bad;
    if (!setting.stage1) return setting;
    return configure_stage1(*ste, setting);
  }

  [[nodiscard]] bool configure_stage2(const Entry& ste, Stage2& stage2) const {
    stage2.granule = kGranules0[get<kSte, "S2TG">(ste)];
    const std::uint64_t size = get<kSte, "S2PS">(ste);
    stage2.output_bits = std::min<unsigned>(size < 7 ? kAddressSizes[size] : output_bits_, output_bits_);
    stage2.table = get<kSte, "S2TTB">(ste) << kTtbLg2;
    if (has(Departure::Stage2TableCut)) stage2.table &= low(kNarrow);
    const auto t0sz = static_cast<unsigned>(get<kSte, "S2T0SZ">(ste));
    const auto sl0 = static_cast<unsigned>(get<kSte, "S2SL0">(ste));
    const unsigned limit = has(Departure::Stage2InputByOutput) ? stage2.output_bits : output_bits_;
    if (stage2.granule == 0 || sl0 == 3 || get<kSte, "S2AA64">(ste) == 0 || get<kSte, "S2ENDI">(ste) != 0 ||
        get<kSte, "S2S">(ste) != 0 || stage2.table >> stage2.output_bits != 0 || t0sz > kLargestTxsz ||
        t0sz < std::max(stage2.granule == 16 ? 12U : 16U, 64 - limit))
      return false;
    if (!has(Departure::Stage2UpdatesIgnored) && (get<kSte, "S2HA">(ste) != 0 || get<kSte, "S2HD">(ste) != 0))
      return false;
    stage2.input_bits = 64 - t0sz;
    stage2.level = stage2.granule == 12 ? sl0 + 1 : sl0;
    const unsigned span = stage2.granule + (stage2.granule - 3) * stage2.level;
    if (stage2.input_bits > span + stage2.granule - 3 + 4) return false;
    if (stage2.input_bits < span + 1 && !has(Departure::Stage2StartUnchecked)) return false;
    stage2.access_flag_ignored = get<kSte, "S2AFFD">(ste) != 0;
    stage2.record = get<kSte, "S2R">(ste) != 0;
    stage2.protect = get<kSte, "S2PTW">(ste) != 0 && !has(Departure::DeviceTablesTaken);
    return true;
  }

  // Of descriptors: what a fault names as RnW.
  [[nodiscard]] Stop of_descriptor(Stop stop) const {
    if (has(Departure::DescriptorAccessIsRead)) stop.is_read = true;
    return stop;
  }

  Or<Setting> configure_stage1(const Entry& ste, Setting setting) {
    std::uint64_t pointer = get<kSte, "S1ContextPtr">(ste) << 6;
    if (!has(Departure::ContextPointerCut)) {
      if (pointer >> output_bits_ != 0) return Stop{.code = kFault<"C_BAD_STE">->code};
    } else {
      pointer &= low(kNarrow);
    }
    setting_ = setting;
    if (setting.stage2.enabled) {
      // The recorder takes it for stage-1 input of a stream that records nothing.
      if (pointer >> output_bits_ != 0) return Stop{};
      const auto host = walk_stage2(pointer, Access::Read, kStage2Detail | 0);
      if (const auto* stop = std::get_if<Stop>(&host)) return of_descriptor(*stop);
      pointer = std::get<std::uint64_t>(host);
    }
    const auto cd = read_entry(pointer);
    if (!cd) return Stop{.code = kFault<"F_CD_FETCH">->code, .memory = pointer};
    const Stop bad{.code = kFault<"C_BAD_CD">->code};
    if (get<kCd, "V">(*cd) == 0 || get<kCd, "AA64">(*cd) == 0 || get<kCd, "A">(*cd) == 0 || get<kCd, "S">(*cd) != 0 ||
        get<kCd, "HA">(*cd) != 0 || get<kCd, "HD">(*cd) != 0)
      return bad;
    const std::uint64_t size = get<kCd, "IPS">(*cd);
    setting.output_bits = std::min<unsigned>(size < 7 ? kAddressSizes[size] : output_bits_, output_bits_);
    setting.access_flag_ignored = get<kCd, "AFFD">(*cd) != 0;
    setting.record = get<kCd, "R">(*cd) != 0;
    setting.top_byte_ignored = {get<kCd, "TBI0">(*cd) != 0, get<kCd, "TBI1">(*cd) != 0};
    if (has(Departure::TopByteFromLowerRange)) setting.top_byte_ignored[1] = setting.top_byte_ignored[0];
    const std::array<std::uint64_t, 2> disabled{get<kCd, "EPD0">(*cd), get<kCd, "EPD1">(*cd)};
    const std::array<std::uint64_t, 2> sizes{get<kCd, "T0SZ">(*cd), get<kCd, "T1SZ">(*cd)};
    const std::array<unsigned, 2> granules{kGranules0[get<kCd, "TG0">(*cd)], kGranules1[get<kCd, "TG1">(*cd)]};
    const std::array<std::uint64_t, 2> tables{get<kCd, "TTB0">(*cd), get<kCd, "TTB1">(*cd)};
    const std::array<std::uint64_t, 2> flat{get<kCd, "HAD0">(*cd), get<kCd, "HAD1">(*cd)};
    for (std::size_t i = 0; i < 2; ++i) {
      Range& range = setting.ranges[i];
      if (disabled[i] != 0) continue;
      range = {true, granules[i], static_cast<unsigned>(64 - sizes[i]), tables[i] << kTtbLg2,
               has_flat_ && flat[i] != 0};
      if (has(Departure::TableBaseCut)) range.table &= low(kCutTableBits);
      if (sizes[i] < kSmallestTxsz48 || sizes[i] > kLargestTxsz || range.granule == 0 || get<kCd, "ENDI">(*cd) != 0 ||
          range.table >> setting.output_bits != 0)
        return bad;
      if (!setting.stage2.enabled || !has(Departure::BasesTranslatedFirst)) continue;
      const auto host = walk_stage2(range.table, Access::Read, kStage2Detail | 1);
      if (const auto* stop = std::get_if<Stop>(&host)) return of_descriptor(*stop);
      range.table = std::get<std::uint64_t>(host);
      if (has(Departure::BaseCutToOutput)) range.table &= low(setting.output_bits);
    }
    return setting;
  }

  Or<std::uint64_t> walk_stage1(std::uint64_t address) {
    const std::size_t upper = address >> kSignBit & 1;
    const auto in_range = [&](std::size_t i, bool ones) {
      const Range& range = setting_.ranges[i];
      const std::uint64_t sign = bits_between(range.input_bits, setting_.top_byte_ignored[upper] ? kSignBit + 1 : 64);
      return range.enabled && (address & sign) == (ones ? sign : 0);
    };
    std::optional<std::size_t> selected;
    if (in_range(upper, upper != 0)) selected = upper;
    if (has(Departure::UpperRangeByZeros) && !selected && in_range(1, false)) selected = 1;
    if (!selected) return input_stop(kFault<"F_TRANSLATION">->code, 2, setting_.record);
    const Range range = setting_.ranges[*selected];
    const unsigned stride = range.granule - 3;
    unsigned level = (range.input_bits - range.granule + stride - 1) / stride - 1;
    const unsigned root = range.input_bits - range.granule - stride * level;
    std::uint64_t table = range.table & ~low(root + 3);
    bool is_host = !setting_.stage2.enabled || has(Departure::BasesTranslatedFirst);
    bool may_write = true, user = true;
    for (bool first = true;; first = false, --level) {
      const unsigned span = range.granule + stride * level;
      const std::uint64_t index = address >> span & low(first ? root : stride);
      std::uint64_t entry = table + index * 8;
      if (!is_host) {
        const bool at_base = has(Departure::TablesTranslatedAtBase);
        const std::uint64_t asked = at_base ? table : entry;
        const auto host = table_host(asked);
        if (const auto* stop = std::get_if<Stop>(&host)) return *stop;
        entry = std::get<std::uint64_t>(host) + (at_base ? index * 8 : 0);
      }
      const auto word = read(entry);
      if (!word) {
        Stop stop = input_stop(kFault<"F_WALK_EABT">->code, 1, true);
        stop.memory = entry;
        return stop;
      }
      const bool valid = get<kTableDescriptor, "Valid">(*word) != 0, bit1 = get<kTableDescriptor, "Table">(*word) != 0;
      const bool block = range.granule == 12 ? level == 1 || level == 2 : level == 1;
      const bool is_table = valid && bit1 && level > 0;
      const bool is_leaf = valid && (level == 0 ? bit1 : !bit1 && (block || has(Departure::AnyLevelBlock)));
      if (!is_table && !is_leaf) return input_stop(kFault<"F_TRANSLATION">->code, 2, setting_.record);
      const std::uint64_t output = *word & low(kNarrow) & ~low(is_table ? range.granule : span);
      const bool too_large = output >> setting_.output_bits != 0;
      const Stop size_fault = input_stop(kFault<"F_ADDR_SIZE">->code, 2, setting_.record);
      if (is_table) {
        if (too_large && !has(Departure::TableSizeUnchecked)) return size_fault;
        const bool read_only = get<kTableDescriptor, "APTableRead">(*word) != 0 && !range.flat;
        if (read_only && is_write() && has(Departure::TablePermissionEarly))
          return input_stop(kFault<"F_PERMISSION">->code, 2, setting_.record);
        may_write = may_write && !read_only;
        if (get<kTableDescriptor, "APTableUser">(*word) != 0 && !range.flat) user = false;
        table = output;
        is_host = !setting_.stage2.enabled;
        if (setting_.stage2.enabled && too_large && has(Departure::TableSizeAtStage2)) {
          Stop stop = size_fault;
          stop.detail = 1;
          return stop;
        }
        continue;
      }
      const bool size_now = !has(Departure::LeafSizeUnchecked) && !has(Departure::LeafSizeLast);
      if (too_large && size_now) return size_fault;
      const bool flagged = get<kStage1Leaf, "AF">(*word) != 0 || setting_.access_flag_ignored;
      if (!flagged && !has(Departure::AccessFlagIgnored))
        return input_stop(kFault<"F_ACCESS">->code, 2, setting_.record);
      user = user && get<kStage1Leaf, "APUser">(*word) != 0;
      may_write = may_write && get<kStage1Leaf, "APRead">(*word) == 0;
      if ((is_write() && !may_write) || (!user && !has(Departure::UserAccessIgnored)))
        return input_stop(kFault<"F_PERMISSION">->code, 2, setting_.record);
      if (too_large && has(Departure::LeafSizeLast)) return size_fault;
      return output | (address & low(span));
    }
  }

  // Where a stage-1 table, or one of its entries, is.
  Or<std::uint64_t> table_host(std::uint64_t address) {
    auto host = walk_stage2(address, Access::Read, kStage2Detail | 1);
    auto* stop = std::get_if<Stop>(&host);
    if (stop == nullptr || !has(Departure::TableFaultsAsStage1)) return host;
    const bool abort = stop->code == kFault<"F_WALK_EABT">->code;
    stop->detail = 1;
    stop->memory = abort ? std::optional(address) : std::nullopt;
    stop->recorded = abort || setting_.record;
    return host;
  }

  Or<std::uint64_t> walk_stage2(std::uint64_t address, Access access, std::uint64_t detail) {
    const Stage2& s = setting_.stage2;
    const auto refuse = [&](unsigned code) {
      Stop stop = input_stop(code, detail, s.record);
      stop.memory = address >> kPageLg2 << kPageLg2;
      return stop;
    };
    if (address >> s.input_bits != 0) return refuse(kFault<"F_TRANSLATION">->code);
    const unsigned stride = s.granule - 3;
    unsigned level = s.level;
    const unsigned top = s.granule + stride * level;
    const unsigned root = s.input_bits > top ? s.input_bits - top : 0;
    std::uint64_t table = s.table & ~low(root + 3);
    for (bool first = true;; first = false, --level) {
      const unsigned span = s.granule + stride * level;
      const unsigned bits = first && !has(Departure::ConcatenationLost) ? root : stride;
      const std::uint64_t entry = table + (address >> span & low(first ? std::min(bits, root) : bits)) * 8;
      const auto word = read(entry);
      if (!word) {
        Stop stop = input_stop(kFault<"F_WALK_EABT">->code, detail, true);
        stop.memory = entry;
        return stop;
      }
      const bool valid = get<kTableDescriptor, "Valid">(*word) != 0, bit1 = get<kTableDescriptor, "Table">(*word) != 0;
      const bool block = s.granule == 12 ? level == 1 || level == 2 : level == 1;
      const bool is_table = valid && bit1 && level > 0;
      const bool is_leaf = valid && (level == 0 ? bit1 : !bit1 && (block || has(Departure::AnyLevelBlock)));
      if (!is_table && !is_leaf) return refuse(kFault<"F_TRANSLATION">->code);
      const std::uint64_t output = *word & low(kNarrow) & ~low(is_table ? s.granule : span);
      const bool too_large = output >> s.output_bits != 0;
      if (is_table) {
        if (too_large && !has(Departure::Stage2TableSizeUnchecked)) return refuse(kFault<"F_ADDR_SIZE">->code);
        table = output;
        continue;
      }
      if (too_large && !has(Departure::Stage2SizeLast)) return refuse(kFault<"F_ADDR_SIZE">->code);
      if (get<kStage2Leaf, "AF">(*word) == 0 && !s.access_flag_ignored) return refuse(kFault<"F_ACCESS">->code);
      const bool allowed = access == Access::Write ? get<kStage2Leaf, "S2APWrite">(*word) != 0
                                                   : get<kStage2Leaf, "S2APRead">(*word) != 0;
      const bool is_table_access = detail != (kStage2Detail | 2);
      const bool is_device = get<kStage2Leaf, "MemAttrHigh">(*word) == kDeviceMemory;
      if (!allowed || (s.protect && is_table_access && is_device)) return refuse(kFault<"F_PERMISSION">->code);
      if (too_large) return refuse(kFault<"F_ADDR_SIZE">->code);
      return output | (address & low(span));
    }
  }

  static constexpr unsigned kCutTableBits = 51;

  const VectorCase& c_;
  Departures departures_;
  std::uint64_t stream_table_ = 0, stream_config_ = 0, control_ = 0;
  unsigned output_bits_ = 48;
  bool has_stage2_ = false, has_flat_ = false;
  Setting setting_;
};

}  // namespace

Departures departures_of(unsigned recorder_major) {
  Departures departures = 0;
  for (const Departure d : kOfBoth) departures |= bit_of(d);
  if (recorder_major == kQemu7)
    for (const Departure d : kOf7) departures |= bit_of(d);
  else
    for (const Departure d : kOf11) departures |= bit_of(d);
  return departures;
}

VectorOutcome recorder_outcome(const VectorCase& c, Departures departures) { return Walker(c, departures).run(); }

}  // namespace iommu::smmuv3
