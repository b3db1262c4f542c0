// SPDX-License-Identifier: Apache-2.0
// One translation, watched: every device-table read and every page-table entry, in order, and how it ends. Functional:
// no caches, no time, and nothing that is watched changes.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "sim/translation/family.hpp"
#include "sim/translation/layouts.hpp"

namespace iommu {

// A walk of one stage begins.
struct WalkStep {
  Stage stage = Stage::Stage2;
  std::uint64_t input = 0;
  TableRoot root;
  enum class Purpose : std::uint8_t { Request, Entry, Mark, Output } purpose = Purpose::Request;
};
struct EntryStep {
  PageEntryRead read;
  std::uint64_t table = 0;
  Hpa address;
  DecodedEntry decoded;
  bool within_stage1 = false;           // a stage-2 entry on the way to something of stage 1
  std::optional<std::uint64_t> marked;  // what hardware makes of the entry
};
// A page-table entry that could not be read.
struct FailedStep {
  Hpa address;
};
// A page-table entry that was read on the way to a device table: no observer watches such walks.
struct UnwatchedStep {
  Stage stage = Stage::Stage2;
  Hpa address;
  std::uint64_t entry = 0;
};
struct DeviceTableStep {
  std::size_t ordinal = 0;  // into device_table_reads()
};
using ExplainedStep = std::variant<DeviceTableStep, WalkStep, EntryStep, FailedStep, UnwatchedStep>;

// Between a core and memory that answers at once. Writes stay in it and are read back from it.
class TranslationLog final : public MemoryPort, public WalkObserver {
 public:
  explicit TranslationLog(MemoryPort& memory) : memory_(memory) {}

  bool begin(MemoryAccess& access) override;
  void on_walk(Stage stage, std::uint64_t input, TableRoot root) override;
  void on_entry(Stage stage, Level level, std::uint64_t table, Hpa entry_address, std::uint64_t entry,
                const DecodedEntry& decoded) override;

  [[nodiscard]] const std::vector<ExplainedStep>& steps() const { return steps_; }
  [[nodiscard]] const std::vector<DeviceTableRead>& device_table_reads() const { return device_tables_; }
  struct EventWrite {
    Hpa address;
    std::vector<std::uint64_t> words;
  };
  [[nodiscard]] const std::vector<EventWrite>& events() const { return events_; }

 private:
  void read(MemoryAccess& access);
  void write(const MemoryAccess& access);
  void exchange(MemoryAccess& access);
  void mark(Hpa address, std::uint64_t value);

  MemoryPort& memory_;
  std::unordered_map<std::uint64_t, std::uint64_t> written_;
  std::vector<ExplainedStep> steps_;
  std::vector<DeviceTableRead> device_tables_;
  std::vector<EventWrite> events_;
  std::optional<std::uint64_t> stage2_input_;  // of the latest stage-2 walk
  std::optional<std::uint64_t> entry_input_;   // of the one that led to the latest stage-1 entry
  bool in_stage1_ = false;
  bool has_stage1_leaf_ = false;
};

// Whose memory the tables are in: what the addresses of entries are called.
enum class TableSpace : std::uint8_t { Host, Guest };

// Translates, prints every step and the result. A fault is recorded, in the core's registers or only in the log, and
// what software would find is printed.
TranslationResponse explain_translation(IommuCore& core, MemoryPort& memory, const TranslationRequest& request,
                                        const FamilyDescriptor& family, TableSpace space, std::ostream& out);

}  // namespace iommu
