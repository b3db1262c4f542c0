// SPDX-License-Identifier: Apache-2.0
// A recorded translation, step by step: what software programmed, what the model reads and answers, what the recorder
// answered, and the rule that accounts for a difference.
#include <fmt/format.h>

#include <algorithm>
#include <ostream>

#include "models/families.hpp"
#include "sim/app/explain.hpp"
#include "sim/app/explain_steps.hpp"
#include "sim/app/explain_text.hpp"
#include "sim/app/vector_file.hpp"

namespace iommu {

namespace {

using scenario::ScenarioError;

// By line, counted from 1, or by id.
VectorFileRecord find_record(const std::string& path, const std::string& wanted) {
  const auto number = parse_number(wanted, Radix::Decimal);
  VectorFile file(path);
  for (std::uint64_t line = 1;; ++line) {
    VectorFileNext next = file.next(vector_families());
    if (const auto* error = std::get_if<VectorFileError>(&next))
      throw ScenarioError(
          {fmt::format("{}{}: {}", path, error->record == 0 ? "" : fmt::format(":{}", error->record), error->what)});
    if (std::holds_alternative<VectorFileEnd>(next)) {
      if (line == 1) throw ScenarioError({path + ": holds no records"});
      throw ScenarioError({number
                               ? fmt::format("--record: {} holds records 1 to {}", path, line - 1)
                               : fmt::format("--record: {} has no record '{}'; expected a number from 1 to {} or the "
                                             "id of one",
                                             path, wanted.substr(0, 60), line - 1)});
    }
    auto& read = std::get<VectorFileRecord>(next);
    if (number ? *number == line : read.record.id == wanted) return std::move(read);
  }
}

std::size_t find_access(const VectorRecord& record, const std::optional<std::string>& wanted) {
  if (record.accesses.empty()) throw ScenarioError({fmt::format("record {} has no access", record.id)});
  if (!wanted) return 0;
  const auto number = parse_number(*wanted, Radix::Decimal);
  if (!number || *number >= record.accesses.size())
    throw ScenarioError({fmt::format("--access: '{}' is none of record {}'s, which are 0 to {}", wanted->substr(0, 60),
                                     record.id, record.accesses.size() - 1)});
  return static_cast<std::size_t>(*number);
}

std::string_view verb(Access access) { return access == Access::Write ? "write" : "read"; }

std::string outcome_text(const VectorOutcome& outcome, const FamilyDescriptor& family) {
  const auto rows_of = [&](unsigned code) {
    std::string names;
    for (const FaultRow& row : family.fault_rows)
      if (row.code == code) names.append(names.empty() ? "" : " or ").append(row.name);
    return names.empty() ? std::string("no condition of the specification") : names;
  };
  switch (outcome.result) {
    case VectorResult::Translated:
      return fmt::format("translated to {:#x}", outcome.output);
    case VectorResult::Fault: {
      const RecordedFault fault = outcome.fault.value_or(RecordedFault{});
      return fmt::format("fault {:#x} ({}) of a {} by {} in page {:#x}", outcome.reason, rows_of(outcome.reason),
                         verb(fault.access), bdf_text(fault.requester), fault.page);
    }
    case VectorResult::Blocked:
      return "blocked, nothing recorded";
    case VectorResult::Interrupt:
      return "taken for an interrupt";
    case VectorResult::Unknown:
      break;
  }
  return "not known: the recorder could not tell";
}

class RecordExplainer {
 public:
  RecordExplainer(const VectorFileRecord& read, std::size_t access, const FamilyDescriptor& family, std::ostream& out)
      : record_(read.record),
        vectors_(*read.family),
        number_(access),
        access_(read.record.accesses[access]),
        family_(family),
        out_(out) {}

  void explain() {
    VectorScene scene = scene_before(record_, vectors_, number_);
    const TranslationRequest& request = access_.request;
    out_ << fmt::format("{} {} {:#x}: where does that go?\n", bdf_text(request.requester),
                        request.access == Access::Read ? "reads" : "writes to", request.address.value());
    out_ << fmt::format("record {}, access {} of 0 to {}, recorded with QEMU {}, family {} ({})\n", record_.id, number_,
                        record_.accesses.size() - 1, record_.recorder_major, family_.name, family_.specification);
    if (!record_.notes.empty()) out_ << fmt::format("made as: {}\n", record_.notes);
    print_registers(*scene.core);
    out_ << "\nwhat the model does\n";
    explain_translation(*scene.core, *scene.memory, request, family_, TableSpace::Host, out_);
    print_verdict();
  }

 private:
  void print_registers(IommuCore& core) {
    std::vector<RegisterPlace> places;
    if (family_.layouts != nullptr && family_.layouts->registers != nullptr) places = family_.layouts->registers(core);
    out_ << "\nregisters\n";
    for (const auto& [name, value] : record_.id_registers) {
      const auto place = std::ranges::find_if(places, [&](const RegisterPlace& p) {
        return p.name.starts_with(name + "_") || p.name.ends_with("_" + name);
      });
      print_register("is", name, {.kind = {}, .bytes = 8, .value = value},
                     place == places.end() ? nullptr : place->layout);
    }
    for (const VectorRegisterAccess& write : record_.setup) print_access(write, places);
    for (const VectorRegisterAccess& write : access_.before) print_access(write, places);
  }

  // Reads only confirm: the model was compared with them.
  void print_access(const VectorRegisterAccess& access, const std::vector<RegisterPlace>& places) {
    if (access.kind == VectorRegisterAccess::Kind::Read) return;
    const auto place = std::ranges::find_if(places, [&](const RegisterPlace& p) {
      return access.offset >= p.offset && access.offset - p.offset < p.bytes;
    });
    if (place == places.end()) return print_register("write", "?", access, nullptr);
    const std::uint64_t within = access.offset - place->offset;
    const bool is_whole = within == 0 && access.bytes == place->bytes;
    const std::string name = within == 0 ? std::string(place->name) : fmt::format("{}+{}", place->name, within);
    print_register("write", name, access, is_whole ? place->layout : nullptr);
  }

  void print_register(std::string_view what, std::string_view name, const VectorRegisterAccess& access,
                      const LayoutView* layout) {
    const std::span words(&access.value, 1);
    const std::string line = fmt::format(
        "  {:<5}  {:<20} {:>7} = {:<18}  {}", what, name, what == "is" ? "" : fmt::format("{:#x}", access.offset),
        words_text(words, access.bytes), layout == nullptr ? "" : fields_text(*layout, words));
    out_ << line.substr(0, line.find_last_not_of(' ') + 1) << '\n';
  }

  void print_verdict() {
    out_ << fmt::format("\nQEMU:   {}\n", outcome_text(access_.recorded, family_));
    const std::vector<VectorJudgement> judgements = judge(record_, vectors_);
    const VectorJudgement& judgement = judgements[number_];
    switch (judgement.verdict) {
      case VectorVerdict::Agree:
        out_ << "verdict: they agree\n";
        break;
      case VectorVerdict::Unknown:
        out_ << "verdict: nothing to compare\n";
        break;
      case VectorVerdict::Deviation:
        out_ << "verdict: QEMU departs from the specification in a known way\n";
        break;
      case VectorVerdict::Disagree:
        out_ << fmt::format("verdict: they disagree{}{}\n", judgement.detail.empty() ? "" : ": ", judgement.detail);
        break;
    }
    print_rules(vectors_.rules, judgement.rules);
    if (judgements.size() == record_.accesses.size()) return;
    const VectorJudgement& memory = judgements.back();
    out_ << fmt::format("memory after the last access: {}\n",
                        memory.verdict == VectorVerdict::Deviation ? "differs in a known way" : memory.detail);
    print_rules(vectors_.memory_rules, memory.rules);
  }

  template <class Rules>
  void print_rules(const Rules& rules, const std::vector<std::string_view>& names) {
    for (const auto& rule : rules)
      if (std::ranges::find(names, rule.name) != names.end())
        out_ << fmt::format("  rule {}: QEMU {}  [{}]\n", rule.name, rule.what, rule.citation);
  }

  const VectorRecord& record_;
  const VectorFamily& vectors_;
  std::size_t number_;
  const VectorAccess& access_;
  const FamilyDescriptor& family_;
  std::ostream& out_;
};

}  // namespace

void explain_record(const ExplainArguments& arguments, std::ostream& out) {
  if (!arguments.record)
    throw ScenarioError({arguments.target + ": expected --record N, a record's line (from 1) or id"});
  const VectorFileRecord read = find_record(arguments.target, *arguments.record);
  const FamilyDescriptor* family = find_family(read.record.family);
  if (family == nullptr) throw ScenarioError({fmt::format("there is no family '{}'", read.record.family)});
  if (const std::string missing = read.family->lacks(read.record); !missing.empty())
    throw ScenarioError({fmt::format("record {} needs what the model lacks: {}", read.record.id, missing)});
  const std::size_t access = find_access(read.record, arguments.access);
  RecordExplainer(read, access, *family, out).explain();
}

}  // namespace iommu
