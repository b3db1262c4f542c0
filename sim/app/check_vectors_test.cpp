// SPDX-License-Identifier: Apache-2.0
// Recorded translations must catch a wrong model: the rules that explain a recorder's departures must not explain ours.
#include "sim/app/check_vectors.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <ostream>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "models/families.hpp"
#include "sim/app/vector_file.hpp"

namespace iommu {
namespace {

constexpr std::size_t kEvery = 6;  // of the recorded configurations; the tool replays all of them

struct Recorded {
  std::string_view family;
  std::vector<std::string> files;
  // Of rules by which the recorder refused before it walked, or walked through other tables than the specification: an
  // access that needs one to be explained tells nothing about a walk.
  std::vector<std::string_view> other_walks;
};
const std::vector<Recorded>& all_recorded() {
  static const std::vector<Recorded> all{
      {"vtd",
       {"models/vtd/vectors/vtd-qemu7.jsonl.gz", "models/vtd/vectors/vtd-qemu11.jsonl.gz"},
       {"canonical-check-by-aw"}},
      {"amdvi",
       {"models/amdvi/vectors/amdvi-qemu7.jsonl.gz", "models/amdvi/vectors/amdvi-qemu11.jsonl.gz"},
       {"forwarded-without-rights", "next-level-not-below", "skipped-bits-ignored", "page-presence-unchecked",
        "table-reserved-unchecked", "rights-of-last-entry-only", "page-of-any-size"}},
  };
  return all;
}
const Recorded& recorded_of(std::string_view family) {
  return *std::ranges::find(all_recorded(), family, &Recorded::family);
}

template <class Visit>
void for_each_record(const Recorded& recorded, const Visit& visit) {
  for (const std::string& path : recorded.files) {
    VectorFile file(path);
    for (std::size_t number = 0;; ++number) {
      auto next = file.next(vector_families());
      ASSERT_FALSE(std::holds_alternative<VectorFileError>(next)) << path;
      if (std::holds_alternative<VectorFileEnd>(next)) break;
      const auto& read = std::get<VectorFileRecord>(next);
      if (number % kEvery == 0 && read.family->lacks(read.record).empty()) visit(read.record, *read.family);
    }
  }
}

// A core that walks wrongly in one way, and is right otherwise.
enum class Mutant : std::uint8_t {
  NextPage,           // the output is one page further
  SmallOffset,        // large pages keep an offset of 4 KiB only
  PermissionIgnored,  // what lacks a right is translated one to one
  AbsentIgnored,      // what is not mapped is translated one to one
  EverythingDenied,   // what is translated is denied
  ReservedIgnored,    // malformed entries are taken for absent ones
  MarksLost,          // accessed and dirty bits are not written
};

class WithoutMarks final : public MemoryPort {
 public:
  explicit WithoutMarks(MemoryPort& memory) : memory_(memory) {}
  bool begin(MemoryAccess& access) override {
    if (access.op != MemoryOp::CompareExchange) return memory_.begin(access);
    access.failed = false;  // as if it had succeeded
    return true;
  }

 private:
  MemoryPort& memory_;
};

class MutantCore final : public IommuCore {
 public:
  MutantCore(const FamilyDescriptor& family, const VectorRegisters& registers, Mutant mutant)
      : rows_(family.fault_rows), core_(family.vectors->make_core(registers)), mutant_(mutant) {}

  [[nodiscard]] bool is_translating() const override { return core_->is_translating(); }
  [[nodiscard]] std::optional<TranslationResponse> answer_without_tables(const TranslationRequest& r) const override {
    return core_->answer_without_tables(r);
  }
  Task<ContextResult> find_context(TranslationRequest request, MemoryPort& memory) override {
    return core_->find_context(request, memory);
  }
  Task<TranslationResponse> walk(TranslationRequest request, Context context, MemoryPort& memory,
                                 WalkAids aids) override {
    WithoutMarks unmarked(memory);
    MemoryPort& port = mutant_ == Mutant::MarksLost ? static_cast<MemoryPort&>(unmarked) : memory;
    TranslationResponse right = co_await core_->walk(request, context, port, aids);
    co_return wrong(request, context, right);
  }
  std::optional<InterruptMessage> record(const Fault& fault) override { return core_->record(fault); }
  [[nodiscard]] bool has_events() const override { return core_->has_events(); }
  Task<void> write_events(MemoryPort& memory) override { return core_->write_events(memory); }
  [[nodiscard]] bool has_command() const override { return core_->has_command(); }
  Task<std::optional<Command>> fetch_command(MemoryPort& memory) override { return core_->fetch_command(memory); }
  CommandEffect apply(const Command& command) override { return core_->apply(command); }
  void completed() override { core_->completed(); }
  std::optional<InterruptMessage> fence_interrupt() override { return core_->fence_interrupt(); }
  void invalidation_done() override { core_->invalidation_done(); }
  std::uint64_t mmio_read(std::uint64_t offset, unsigned bytes) override { return core_->mmio_read(offset, bytes); }
  RegisterEffect mmio_write(std::uint64_t offset, unsigned bytes, std::uint64_t value) override {
    return core_->mmio_write(offset, bytes, value);
  }

 private:
  [[nodiscard]] TranslationResponse wrong(const TranslationRequest& request, const Context& context,
                                          TranslationResponse response) {
    Translation one_to_one;
    one_to_one.address = Hpa(request.address.value());
    one_to_one.allowed = kReadWrite;
    if (auto* translation = std::get_if<Translation>(&response)) {
      if (translation->is_bypass) return response;
      if (mutant_ == Mutant::NextPage) translation->address = translation->address + kPageSize;
      if (mutant_ == Mutant::SmallOffset) {
        const std::uint64_t in_page = translation->address.offset_in(translation->page_lg2);
        translation->address = translation->address - Bytes(in_page >> kPageLg2 << kPageLg2);
      }
      if (mutant_ == Mutant::EverythingDenied) return fault(request, context, FaultClass::Permission);
      return response;
    }
    const FaultClass kind = std::get<Fault>(response).row->kind;
    if (mutant_ == Mutant::PermissionIgnored && kind == FaultClass::Permission) return one_to_one;
    if (mutant_ == Mutant::AbsentIgnored && kind == FaultClass::NotPresent) return one_to_one;
    if (mutant_ == Mutant::ReservedIgnored && kind == FaultClass::Reserved)
      return fault(request, context, FaultClass::NotPresent);
    return response;
  }
  // The first row of the class.
  [[nodiscard]] TranslationResponse fault(const TranslationRequest& request, const Context& context,
                                          FaultClass kind) const {
    Fault wrong_fault;
    wrong_fault.row = &*std::ranges::find(rows_, kind, &FaultRow::kind);
    wrong_fault.address = request.address;
    wrong_fault.access = request.access;
    wrong_fault.requester = request.requester;
    wrong_fault.pasid = request.pasid;
    wrong_fault.suppressed = context.faults_suppressed;
    return wrong_fault;
  }

  std::span<const FaultRow> rows_;
  std::unique_ptr<IommuCore> core_;
  Mutant mutant_;
};

template <std::size_t kRecorded, Mutant kMutant>
std::unique_ptr<IommuCore> make_mutant(const VectorRegisters& registers) {
  return std::make_unique<MutantCore>(*find_family(all_recorded()[kRecorded].family), registers, kMutant);
}

struct Named {
  std::string_view family, name;
  std::unique_ptr<IommuCore> (*make_core)(const VectorRegisters&);
};
void PrintTo(const Named& named, std::ostream* out) { *out << named.family << "/" << named.name; }
template <std::size_t kRecorded>
void add_mutants(std::vector<Named>& all) {
  const std::string_view family = all_recorded()[kRecorded].family;
  all.insert(all.end(), {
                            {family, "next_page", make_mutant<kRecorded, Mutant::NextPage>},
                            {family, "small_offset", make_mutant<kRecorded, Mutant::SmallOffset>},
                            {family, "permission_ignored", make_mutant<kRecorded, Mutant::PermissionIgnored>},
                            {family, "absent_ignored", make_mutant<kRecorded, Mutant::AbsentIgnored>},
                            {family, "everything_denied", make_mutant<kRecorded, Mutant::EverythingDenied>},
                        });
}
std::vector<Named> mutants() {
  constexpr std::size_t kVtd = 0, kAmdVi = 1;
  std::vector<Named> all;
  add_mutants<kVtd>(all);
  // Its recorder keeps marks, and its faults tell these two apart.
  all.push_back({"vtd", "reserved_ignored", make_mutant<kVtd, Mutant::ReservedIgnored>});
  all.push_back({"vtd", "marks_lost", make_mutant<kVtd, Mutant::MarksLost>});
  add_mutants<kAmdVi>(all);
  return all;
}

bool same(const VectorOutcome& a, const VectorOutcome& b) {
  return a.result == b.result && a.output == b.output && a.reason == b.reason;
}

std::size_t disagreements(const std::vector<VectorJudgement>& judgements) {
  return static_cast<std::size_t>(std::count_if(judgements.begin(), judgements.end(), [](const VectorJudgement& j) {
    return j.verdict == VectorVerdict::Disagree;
  }));
}

TEST(CheckVectors, TheModelDisagreesWithNoRecord) {
  for (const Recorded& recorded : all_recorded()) {
    std::size_t accesses = 0;
    for_each_record(recorded, [&](const VectorRecord& record, const VectorFamily& family) {
      EXPECT_EQ(disagreements(judge(record, family)), 0U) << record.id;
      accesses += record.accesses.size();
    });
    EXPECT_GT(accesses, 500U) << recorded.family;
  }
}

// The recorder walked otherwise, or did not say why it refused: such an access tells nothing about a walk.
bool is_silent(const Recorded& recorded, const VectorAccess& access, const VectorJudgement& right) {
  return access.recorded.result == VectorResult::Blocked || access.recorded.result == VectorResult::Unknown ||
         std::ranges::any_of(right.rules, [&](std::string_view rule) {
           return std::ranges::find(recorded.other_walks, rule) != recorded.other_walks.end();
         });
}

// Where a wrong core gives another answer than the right one, no rule may make it fit what was recorded. Kills: a rule
// without a precondition, or one that rewrites an outcome instead of the tables.
class MutantCores : public testing::TestWithParam<Named> {};
TEST_P(MutantCores, AreNotExcusedByAnyRule) {
  const Recorded& recorded = recorded_of(GetParam().family);
  std::size_t caught = 0;
  for_each_record(recorded, [&](const VectorRecord& record, const VectorFamily& family) {
    VectorFamily wrong = family;
    wrong.make_core = GetParam().make_core;
    const auto right_judgements = judge(record, family);
    const auto judgements = judge(record, wrong);
    for (std::size_t i = 0; i < record.accesses.size(); ++i) {
      if (same(judgements[i].ours, right_judgements[i].ours) ||
          is_silent(recorded, record.accesses[i], right_judgements[i]))
        continue;
      std::string rules;
      for (const auto rule : judgements[i].rules) rules.append(rules.empty() ? "" : "+").append(rule);
      EXPECT_EQ(judgements[i].verdict, VectorVerdict::Disagree)
          << record.id << " access " << i << (rules.empty() ? " agrees with a wrong core" : " is excused by " + rules);
    }
    caught += disagreements(judgements) > 0 ? 1 : 0;
  });
  EXPECT_GT(caught, 0U) << "no record shows the mutant";
  RecordProperty("records_that_catch", static_cast<int>(caught));
}
INSTANTIATE_TEST_SUITE_P(All, MutantCores, testing::ValuesIn(mutants()), [](const auto& info) {
  return std::string(info.param.family) + "_" + std::string(info.param.name);
});

}  // namespace
}  // namespace iommu
