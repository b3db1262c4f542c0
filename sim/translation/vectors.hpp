// SPDX-License-Identifier: Apache-2.0
// Recorded translations of another implementation, replayed on a core. Family-neutral: a family says how to make a core
// from recorded identification registers, how to read its fault records back, and where the recorder is known to depart
// from the specification (rules).
//
// A rule never judges: it says what the recorder does where its precondition holds, by changing the tables or registers
// that the recorder saw differently (the core then walks again), or by rewriting the outcome. A record deviates only if
// the rules that apply lead to exactly what was recorded.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "sim/translation/iommu_core.hpp"

namespace iommu {

struct RecordedFault {
  std::uint64_t page = 0;  // page-aligned input address
  RequesterId requester;
  Access access = Access::Read;
  std::optional<Pasid> pasid{};
  std::uint64_t detail = 0;               // what else the family's record says of the access
  std::optional<std::uint64_t> memory{};  // an intermediate or table address, where the record names one
  friend bool operator==(const RecordedFault&, const RecordedFault&) = default;
};

enum class VectorResult : std::uint8_t { Translated, Fault, Blocked, Interrupt, Unknown };
struct VectorOutcome {
  VectorResult result = VectorResult::Blocked;
  std::uint64_t output = 0;              // Translated
  unsigned reason = 0;                   // Fault; Blocked: what would have been recorded (ours only)
  std::optional<RecordedFault> fault{};  // Fault
  std::uint8_t page_lg2 = 0;             // Translated (ours only): of the leaf that mapped it; 0 without one
  [[nodiscard]] bool agrees_with(const VectorOutcome& recorded) const;
};

struct VectorRegisterAccess {
  enum class Kind : std::uint8_t { Read, Write } kind = Kind::Write;
  std::uint64_t offset = 0;
  unsigned bytes = 4;
  std::uint64_t value = 0;
};

struct VectorAccess {
  TranslationRequest request;
  std::vector<VectorRegisterAccess> before;
  VectorOutcome recorded;
};

struct VectorRegion {
  std::uint64_t base = 0;
  std::uint64_t bytes = 0;
  std::uint64_t flat = 0;  // pools: index of the first byte in the self-identifying pattern
};
using VectorWord = std::pair<std::uint64_t, std::uint64_t>;  // address, value
using VectorRegisters = std::map<std::string, std::uint64_t, std::less<>>;

struct VectorRecord {
  std::string id, family, variant;
  unsigned recorder_major = 0;
  VectorRegisters id_registers;
  std::vector<VectorRegion> ram, pools, zeroed;
  std::vector<VectorWord> words;
  std::vector<VectorRegisterAccess> setup;
  std::vector<VectorAccess> accesses;
  std::vector<VectorWord> words_after;
  std::string notes;
};

// The memory of a record: RAM, pools with self-identifying contents, and the record's words over both.
class VectorMemory final : public MemoryPort {
 public:
  explicit VectorMemory(const VectorRecord& record);
  bool begin(MemoryAccess& access) override;
  [[nodiscard]] std::optional<std::uint64_t> read(std::uint64_t address) const;  // aligned; nullopt outside RAM
  void write(std::uint64_t address, std::uint64_t value) { words_[address] = value; }
  using Words = std::unordered_map<std::uint64_t, std::uint64_t>;
  [[nodiscard]] const Words& words() const { return words_; }
  void replace(Words words) { words_ = std::move(words); }

 private:
  const VectorRecord& record_;
  Words words_;
};

// What a rule sees: the access, and the hypothesis so far of how the recorder got there.
struct VectorCase {
  const VectorRecord& record;
  const VectorAccess& access;
  const VectorMemory& memory;
  const VectorRegisters& id_registers;
  const VectorOutcome& outcome;
};
enum class VectorMarks : std::uint8_t { Kept, Undone };  // Undone: the recorder refused before it walked any table
struct VectorChange {
  std::vector<VectorWord> words{};                // tables as the recorder takes them
  std::vector<VectorRegisterAccess> registers{};  // and registers, written once more after the setup
  std::vector<std::pair<std::string, std::uint64_t>> id_registers{};
  std::optional<VectorOutcome> outcome{};  // or the outcome itself
  VectorMarks marks = VectorMarks::Kept;
};
struct VectorRule {
  std::string_view name;
  std::string_view citation;
  std::string_view what;  // what the recorder does instead
  std::optional<VectorChange> (*apply)(const VectorCase&) = nullptr;
};

// Where memory afterwards differs: one word as recorded before and after the accesses, and as the model leaves it.
struct VectorMemoryRule {
  std::string_view name;
  std::string_view citation;
  std::string_view what;
  bool (*explains)(std::uint64_t before, std::uint64_t recorded, std::uint64_t ours) = nullptr;
};

struct VectorFamily {
  std::string_view name;
  // Why a record cannot be replayed, by the name of what the model lacks; empty when it can.
  std::string (*lacks)(const VectorRecord&) = nullptr;
  std::unique_ptr<IommuCore> (*make_core)(const VectorRegisters&) = nullptr;
  // A fault record as the recorder stored it: its reason and contents; nullopt when it holds no fault.
  std::optional<std::pair<unsigned, RecordedFault>> (*read_record)(std::span<const std::uint64_t>) = nullptr;
  // The fault that a core has recorded, in its registers or in memory.
  std::optional<std::pair<unsigned, RecordedFault>> (*recorded_fault)(IommuCore&, const VectorMemory&) = nullptr;
  std::span<const VectorRule> rules;  // in the order in which they apply
  std::span<const VectorMemoryRule> memory_rules;
};

enum class VectorVerdict : std::uint8_t { Agree, Deviation, Unknown, Disagree };
struct VectorJudgement {
  VectorVerdict verdict = VectorVerdict::Agree;
  std::vector<std::string_view> rules{};  // Deviation
  VectorOutcome ours{};                   // by the specification
  std::string detail{};                   // Disagree: what else differs (a register, memory afterwards)
};
// One judgement per access; one more if memory afterwards differs.
[[nodiscard]] std::vector<VectorJudgement> judge(const VectorRecord& record, const VectorFamily& family);

// A record brought to the point before one of its accesses, which exists: memory as the accesses before it left it,
// registers as software set them. The record outlives it.
struct VectorScene {
  std::unique_ptr<VectorMemory> memory;
  std::unique_ptr<IommuCore> core;
  std::string register_difference;  // of a register that reads otherwise than recorded; empty: none does
};
[[nodiscard]] VectorScene scene_before(const VectorRecord& record, const VectorFamily& family, std::size_t access);

}  // namespace iommu
