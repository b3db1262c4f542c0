// SPDX-License-Identifier: Apache-2.0
// Recorded translations must catch a wrong model: the rules that explain a recorder's departures must not explain ours.
#include "sim/app/check_vectors.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "models/families.hpp"
#include "sim/app/vector_file.hpp"

namespace iommu {
namespace {

constexpr std::size_t kEvery = 6;  // of the recorded configurations; the tool replays all of them

const std::vector<std::string>& files() {
  static const std::vector<std::string> all{"models/vtd/vectors/vtd-qemu7.jsonl.gz",
                                            "models/vtd/vectors/vtd-qemu11.jsonl.gz"};
  return all;
}

template <class Visit>
void for_each_record(const Visit& visit) {
  for (const std::string& path : files()) {
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
  MutantCore(std::unique_ptr<IommuCore> core, Mutant mutant) : core_(std::move(core)), mutant_(mutant) {}

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
  [[nodiscard]] bool has_command() const override { return core_->has_command(); }
  Task<std::optional<Command>> fetch_command(MemoryPort& memory) override { return core_->fetch_command(memory); }
  CommandEffect apply(const Command& command) override { return core_->apply(command); }
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
    const auto rows = find_family("vtd")->fault_rows;
    Fault wrong_fault;
    wrong_fault.row = &*std::ranges::find(rows, kind, &FaultRow::kind);
    wrong_fault.address = request.address;
    wrong_fault.access = request.access;
    wrong_fault.requester = request.requester;
    wrong_fault.pasid = request.pasid;
    wrong_fault.suppressed = context.faults_suppressed;
    return wrong_fault;
  }

  std::unique_ptr<IommuCore> core_;
  Mutant mutant_;
};

template <Mutant kMutant>
std::unique_ptr<IommuCore> make_mutant(const VectorRegisters& registers) {
  return std::make_unique<MutantCore>(find_family("vtd")->vectors->make_core(registers), kMutant);
}

struct Named {
  Mutant mutant;
  std::string name;
  std::unique_ptr<IommuCore> (*make_core)(const VectorRegisters&);
};
void PrintTo(const Named& named, std::ostream* out) { *out << named.name; }
const std::vector<Named>& mutants() {
  static const std::vector<Named> all{
      {Mutant::NextPage, "next_page", make_mutant<Mutant::NextPage>},
      {Mutant::SmallOffset, "small_offset", make_mutant<Mutant::SmallOffset>},
      {Mutant::PermissionIgnored, "permission_ignored", make_mutant<Mutant::PermissionIgnored>},
      {Mutant::AbsentIgnored, "absent_ignored", make_mutant<Mutant::AbsentIgnored>},
      {Mutant::EverythingDenied, "everything_denied", make_mutant<Mutant::EverythingDenied>},
      {Mutant::ReservedIgnored, "reserved_ignored", make_mutant<Mutant::ReservedIgnored>},
      {Mutant::MarksLost, "marks_lost", make_mutant<Mutant::MarksLost>},
  };
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
  std::size_t accesses = 0;
  for_each_record([&](const VectorRecord& record, const VectorFamily& family) {
    EXPECT_EQ(disagreements(judge(record, family)), 0U) << record.id;
    accesses += record.accesses.size();
  });
  EXPECT_GT(accesses, 500U);
}

// The recorder refused before it walked, or did not say why: such an access tells nothing about a walk.
bool is_silent(const VectorAccess& access, const VectorJudgement& right) {
  constexpr std::string_view kBeforeWalks = "canonical-check-by-aw";
  return access.recorded.result == VectorResult::Blocked ||
         std::find(right.rules.begin(), right.rules.end(), kBeforeWalks) != right.rules.end();
}

// Where a wrong core gives another answer than the right one, no rule may make it fit what was recorded. Kills: a rule
// without a precondition, or one that rewrites an outcome instead of the tables.
class MutantCores : public testing::TestWithParam<Named> {};
TEST_P(MutantCores, AreNotExcusedByAnyRule) {
  std::size_t caught = 0;
  for_each_record([&](const VectorRecord& record, const VectorFamily& family) {
    VectorFamily wrong = family;
    wrong.make_core = GetParam().make_core;
    const auto right_judgements = judge(record, family);
    const auto judgements = judge(record, wrong);
    for (std::size_t i = 0; i < record.accesses.size(); ++i) {
      if (same(judgements[i].ours, right_judgements[i].ours) || is_silent(record.accesses[i], right_judgements[i]))
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
INSTANTIATE_TEST_SUITE_P(All, MutantCores, testing::ValuesIn(mutants()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace iommu
