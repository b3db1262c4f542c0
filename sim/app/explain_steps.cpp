// SPDX-License-Identifier: Apache-2.0
#include "sim/app/explain_steps.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <ostream>
#include <string>

#include "sim/app/explain_text.hpp"
#include "sim/base/check.hpp"

namespace iommu {

bool TranslationLog::begin(MemoryAccess& access) {
  switch (access.op) {
    case MemoryOp::Read:
      read(access);
      break;
    case MemoryOp::Write:
      write(access);
      break;
    case MemoryOp::CompareExchange:
      exchange(access);
      break;
  }
  return true;
}

void TranslationLog::read(MemoryAccess& access) {
  SIM_CHECK(memory_.begin(access), "what is explained is in memory that answers at once");
  const std::size_t words = std::max<std::size_t>(1, access.bytes / sizeof(std::uint64_t));
  for (std::size_t i = 0; i < words && !access.failed; ++i)
    if (const auto changed = written_.find(access.address.value() + i * sizeof(std::uint64_t));
        changed != written_.end())
      access.words[i] = changed->second;
  if (access.kind == AccessKind::DeviceTable) {
    const auto* first = access.words.data();
    device_tables_.push_back({access.address, {first, first + words}, access.failed});
    steps_.emplace_back(DeviceTableStep{device_tables_.size() - 1});
  } else if (access.failed) {
    steps_.emplace_back(FailedStep{access.address});
  } else if (access.kind == AccessKind::Stage1Entry || access.kind == AccessKind::Stage2Entry) {
    const Stage stage = access.kind == AccessKind::Stage1Entry ? Stage::Stage1 : Stage::Stage2;
    steps_.emplace_back(UnwatchedStep{stage, access.address, access.words[0]});
  }
}

// Only whether memory takes the write is asked of it.
void TranslationLog::write(const MemoryAccess& access) {
  const std::size_t words = std::max<std::size_t>(1, access.bytes / sizeof(std::uint64_t));
  for (std::size_t i = 0; i < words && access.bytes % sizeof(std::uint64_t) == 0; ++i)
    written_[access.address.value() + i * sizeof(std::uint64_t)] = access.words[i];
  if (access.kind == AccessKind::Event)
    events_.push_back({access.address, {access.words.begin(), access.words.begin() + words}});
}

void TranslationLog::exchange(MemoryAccess& access) {
  MemoryAccess probe = access;
  probe.op = MemoryOp::Read;
  probe.bytes = sizeof(std::uint64_t);
  SIM_CHECK(memory_.begin(probe), "what is explained is in memory that answers at once");
  access.failed = probe.failed;
  if (probe.failed) return;
  const auto changed = written_.find(access.address.value());
  const std::uint64_t found = changed != written_.end() ? changed->second : probe.words[0];
  if (found == access.words[0]) {
    written_[access.address.value()] = access.words[1];
    mark(access.address, access.words[1]);
  }
  access.words[0] = found;
}

void TranslationLog::mark(Hpa address, std::uint64_t value) {
  for (auto step = steps_.rbegin(); step != steps_.rend(); ++step)
    if (auto* entry = std::get_if<EntryStep>(&*step); entry != nullptr && entry->address == address) {
      entry->marked = value;
      return;
    }
}

void TranslationLog::on_walk(Stage stage, std::uint64_t input, TableRoot root) {
  WalkStep step{stage, input, root, WalkStep::Purpose::Request};
  if (stage == Stage::Stage1) {
    in_stage1_ = true;
    has_stage1_leaf_ = false;
    entry_input_.reset();
  } else if (in_stage1_) {
    const bool again = entry_input_ == input;
    step.purpose = again              ? WalkStep::Purpose::Mark
                   : has_stage1_leaf_ ? WalkStep::Purpose::Output
                                      : WalkStep::Purpose::Entry;
    stage2_input_ = input;
  }
  steps_.emplace_back(step);
}

void TranslationLog::on_entry(Stage stage, Level level, std::uint64_t table, Hpa entry_address, std::uint64_t entry,
                              const DecodedEntry& decoded) {
  if (stage == Stage::Stage1) {
    entry_input_ = stage2_input_;
    has_stage1_leaf_ = decoded.kind == EntryKind::Leaf;
  }
  if (!steps_.empty() && std::holds_alternative<UnwatchedStep>(steps_.back())) steps_.pop_back();
  steps_.emplace_back(EntryStep{
      {stage, level, entry}, table, entry_address, decoded, stage == Stage::Stage2 && in_stage1_, std::nullopt});
}

namespace {

class Printer {
 public:
  Printer(const FamilyDescriptor& family, const TranslationLog& log, const TranslationRequest& request,
          TableSpace space, std::ostream& out)
      : family_(family), log_(log), request_(request), space_(space), out_(out) {}

  void steps() {
    for (const ExplainedStep& step : log_.steps()) std::visit([this](const auto& s) { print(s); }, step);
    if (log_.steps().empty()) out_ << "  no table is read\n";
  }

  void result(const Translation& translation) {
    if (translation.is_bypass) {
      out_ << fmt::format("result: {} address {:#x}, untranslated\n", space_name(), translation.address.value());
      return;
    }
    out_ << fmt::format("result: {} address {:#x}, page of {}, {}{}{}\n", space_name(), translation.address.value(),
                        size_text(translation.page_lg2), rights_text(translation.allowed),
                        translation.attributes.snoop ? ", snooped" : "",
                        translation.attributes.is_global ? ", global" : "");
  }

  void result(const Fault& fault) {
    const FaultRow& row = *fault.row;
    out_ << fmt::format("result: fault {} (code {:#x}, {}): {}  {}\n", row.name, row.code, class_text(row.kind),
                        row.meaning, cite(family_, row.citation));
    if (fault.gpa) out_ << fmt::format("        stage 2 refused guest-physical {:#x}\n", fault.gpa->value());
    if (fault.stall)
      out_ << "        the transaction waits for software to resume or end it\n";
    else
      out_ << fmt::format("        the device {}\n", fault.termination == Termination::Abort
                                                         ? "gets an abort"
                                                         : "reads zero, its writes are dropped");
    if (fault.suppressed && row.qualified)
      out_ << "        not recorded: a table entry asks hardware not to record faults of this kind\n";
  }

 private:
  [[nodiscard]] std::string_view space_name() const { return space_ == TableSpace::Host ? "host" : "guest-physical"; }
  [[nodiscard]] std::string next() { return fmt::format("{:>3}", ++number_); }

  // The entry, then its fields and what they come to; both lines aligned under each other.
  void block(unsigned indent, std::string_view name, Hpa address, std::span<const std::uint64_t> words,
             const LayoutView* layout, std::string_view conclusion) {
    constexpr std::size_t kPerLine = 2;
    const std::string left(indent, ' ');
    const std::string citation = layout == nullptr ? std::string() : "  " + cite(family_, layout->citation);
    const std::string margin = left + std::string(5, ' ');
    out_ << fmt::format("{}{}  {:<23}{} = {}{}\n", left, next(), name, address_text(address.value()),
                        words_text(words.first(std::min(kPerLine, words.size()))), citation);
    for (std::size_t i = kPerLine; i < words.size(); i += kPerLine)
      out_ << margin << std::string(40, ' ') << words_text(words.subspan(i, std::min(kPerLine, words.size() - i)))
           << '\n';
    const std::string fields = layout == nullptr ? std::string() : fields_text(*layout, words);
    if (fields.empty() && conclusion.empty()) return;
    out_ << margin << fields << (fields.empty() || conclusion.empty() ? "" : "  ") << conclusion << '\n';
  }

  void print(const DeviceTableStep& step) {
    const std::span<const DeviceTableRead> reads(log_.device_table_reads());
    const DeviceTableRead& read = reads[step.ordinal];
    const LayoutView* layout = family_.layouts == nullptr || family_.layouts->device_table == nullptr
                                   ? nullptr
                                   : family_.layouts->device_table(reads.first(step.ordinal + 1));
    const std::string_view name = layout == nullptr ? "device table entry" : layout->name;
    if (read.failed)
      out_ << fmt::format("{}  {:<23}{} cannot be read\n", next(), name, address_text(read.address.value()));
    else
      block(0, name, read.address, read.words, layout, {});
  }

  void print(const WalkStep& step) {
    constexpr std::array<std::string_view, 4> kPurposes{"", ", where the next entry is", ", to mark that entry",
                                                        ", what stage 1 gave"};
    const bool first = step.stage == Stage::Stage1;
    const bool nested = step.purpose != WalkStep::Purpose::Request;
    indent_ = nested && step.purpose != WalkStep::Purpose::Output ? 4 : 0;
    out_ << fmt::format("{}     stage {} of {}{:#x}{}: {} levels from {:#x}\n", std::string(indent_, ' '),
                        first ? 1 : 2, nested ? "guest-physical " : "", step.input,
                        kPurposes[static_cast<std::size_t>(step.purpose)], step.root.top_level + 1, step.root.address);
  }

  void print(const EntryStep& step) {
    const LayoutView* layout = family_.layouts == nullptr || family_.layouts->page_entry == nullptr
                                   ? nullptr
                                   : family_.layouts->page_entry(step.read);
    const bool first = step.read.stage == Stage::Stage1;
    const std::string name =
        layout == nullptr ? fmt::format("stage {} level {}", first ? 1 : 2, static_cast<unsigned>(step.read.level))
                          : std::string(layout->name);
    block(first ? 0 : indent_, name, step.address, std::span(&step.read.entry, 1), layout, conclusion(step));
  }

  void print(const FailedStep& step) {
    out_ << fmt::format("{}{}  {:<23}{} cannot be read\n", std::string(indent_, ' '), next(), "page-table entry",
                        address_text(step.address.value()));
  }

  void print(const UnwatchedStep& step) {
    block(0, fmt::format("stage {} entry", step.stage == Stage::Stage1 ? 1 : 2), step.address,
          std::span(&step.entry, 1), nullptr, {});
  }

  [[nodiscard]] std::string conclusion(const EntryStep& step) const {
    const DecodedEntry& d = step.decoded;
    std::string text;
    switch (d.kind) {
      case EntryKind::Absent:
        text = "-> not present";
        break;
      case EntryKind::Malformed:
        text = "-> reserved bits or an encoding that is not supported";
        break;
      case EntryKind::Denied:
        text = fmt::format("-> does not permit a {}", request_.access == Access::Read ? "read" : "write");
        break;
      case EntryKind::Table:
        text = fmt::format("-> table {:#x}", d.address);
        break;
      case EntryKind::Leaf:
        text = fmt::format("-> page {:#x} of {}, {}", d.address, size_text(d.page_lg2), rights_text(d.allowed));
        break;
    }
    return step.marked ? text + fmt::format(", becomes {:#018x}", *step.marked) : text;
  }

  const FamilyDescriptor& family_;
  const TranslationLog& log_;
  const TranslationRequest& request_;
  TableSpace space_;
  std::ostream& out_;
  unsigned number_ = 0;
  unsigned indent_ = 0;
};

std::vector<std::uint64_t> read_register(IommuCore& core, const RegisterPlace& place) {
  constexpr unsigned kWord = sizeof(std::uint64_t);
  if (place.bytes < kWord) return {core.mmio_read(place.offset, place.bytes)};
  std::vector<std::uint64_t> words;
  for (unsigned at = 0; at < place.bytes; at += kWord) words.push_back(core.mmio_read(place.offset + at, kWord));
  return words;
}

struct RegisterValue {
  RegisterPlace place;
  std::vector<std::uint64_t> words;
};
std::vector<RegisterValue> read_registers(IommuCore& core, const FamilyDescriptor& family) {
  std::vector<RegisterValue> values;
  if (family.layouts == nullptr || family.layouts->registers == nullptr) return values;
  for (const RegisterPlace& place : family.layouts->registers(core))
    values.push_back({place, read_register(core, place)});
  return values;
}

// What software finds after the fault: registers that changed, records in memory.
void print_record(IommuCore& core, TranslationLog& log, const Fault& fault, const FamilyDescriptor& family,
                  std::ostream& out) {
  const std::vector<RegisterValue> before = read_registers(core, family);
  const auto interrupt = core.record(fault);
  core.write_events(log).run();
  const std::vector<RegisterValue> after = read_registers(core, family);
  std::string text;
  for (std::size_t i = 0; i < after.size(); ++i) {
    const auto& [place, words] = after[i];
    if (words == before[i].words) continue;
    text += fmt::format("  {:<20} {:#06x} = {}{}\n", place.name, place.offset, words_text(words, place.bytes),
                        place.layout == nullptr ? "" : "  " + cite(family, place.layout->citation));
    if (place.layout != nullptr) text += fmt::format("    {}\n", fields_text(*place.layout, words));
  }
  for (const TranslationLog::EventWrite& event : log.events()) {
    const LayoutView* layout =
        family.layouts == nullptr || family.layouts->event == nullptr ? nullptr : family.layouts->event(event.words);
    text +=
        fmt::format("  {} {} = {}{}\n", layout == nullptr ? "event" : layout->name, address_text(event.address.value()),
                    words_text(event.words), layout == nullptr ? "" : "  " + cite(family, layout->citation));
    if (layout != nullptr) text += fmt::format("    {}\n", fields_text(*layout, event.words));
  }
  if (interrupt)
    text += fmt::format("  interrupt: {:#x} written to {:#x}\n", interrupt->data, interrupt->address.value());
  if (fault.suppressed && fault.row->qualified) return;
  out << (text.empty() ? "recorded: nothing; earlier records stand until software clears them\n"
                       : "recorded:\n" + text);
}

}  // namespace

TranslationResponse explain_translation(IommuCore& core, MemoryPort& memory, const TranslationRequest& request,
                                        const FamilyDescriptor& family, TableSpace space, std::ostream& out) {
  TranslationLog log(memory);
  TranslationResponse response = core.translate(request, log, {.caches = nullptr, .observer = &log}).run();
  Printer printer(family, log, request, space, out);
  printer.steps();
  std::visit([&](const auto& answer) { printer.result(answer); }, response);
  if (const auto* fault = std::get_if<Fault>(&response); fault != nullptr && space == TableSpace::Host)
    print_record(core, log, *fault, family, out);
  return response;
}

}  // namespace iommu
