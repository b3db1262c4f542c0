// SPDX-License-Identifier: Apache-2.0
#include "sim/translation/vectors.hpp"

#include <algorithm>
#include <cstdio>

namespace iommu {

namespace {

constexpr unsigned kMaxCommands = 1U << 16;  // a hostile ring ends somewhere

std::string hex(std::uint64_t value) {
  char text[20];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

bool covers(const VectorRegion& region, std::uint64_t address) {
  return address >= region.base && address - region.base < region.bytes;
}

const VectorRegion* find(const std::vector<VectorRegion>& regions, std::uint64_t address) {
  const auto found =
      std::find_if(regions.begin(), regions.end(), [&](const VectorRegion& r) { return covers(r, address); });
  return found == regions.end() ? nullptr : &*found;
}

// The 32-bit word at `offset` of a pool is ((flat + offset) / 4 + 2^20) << 4, so that no word is a present entry.
std::uint64_t pattern(const VectorRegion& pool, std::uint64_t address) {
  constexpr std::uint64_t kBias = 0x100000;
  const std::uint64_t index = (pool.flat + (address - pool.base)) / 4 + kBias;
  const auto word = [](std::uint64_t i) { return i << 4 & 0xffffffff; };
  return word(index) | word(index + 1) << 32;
}

void write_status(VectorMemory& memory, const FenceCompletion::StatusWrite& status) {
  const std::uint64_t address = status.address.value();
  const std::uint64_t old = memory.read(address & ~7ULL).value_or(0);
  const unsigned shift = (address & 4) != 0 ? 32 : 0;
  const std::uint64_t mask = status.bytes == 4 ? 0xffffffffULL << shift : ~0ULL;
  memory.write(address & ~7ULL, (old & ~mask) | (status.data << shift & mask));
}

void run_commands(IommuCore& core, VectorMemory& memory) {
  for (unsigned i = 0; i < kMaxCommands && core.has_command(); ++i) {
    const std::optional<Command> command = core.fetch_command(memory).run();
    if (!command) continue;
    const CommandEffect effect = core.apply(*command);
    if (effect.fence && effect.fence->status) write_status(memory, *effect.fence->status);
    core.completed();
  }
}

// Empty when every read gave the recorded value.
std::string replay(IommuCore& core, VectorMemory& memory, const std::vector<VectorRegisterAccess>& accesses) {
  for (const VectorRegisterAccess& access : accesses) {
    if (access.kind == VectorRegisterAccess::Kind::Read) {
      const std::uint64_t got = core.mmio_read(access.offset, access.bytes);
      if (got != access.value)
        return "register " + hex(access.offset) + " reads " + hex(got) + ", recorded " + hex(access.value);
      continue;
    }
    if (!core.mmio_write(access.offset, access.bytes, access.value).scopes.empty()) core.invalidation_done();
    run_commands(core, memory);
  }
  return {};
}

class LeafSize final : public WalkObserver {
 public:
  void on_entry(Stage, Level, std::uint64_t, Hpa, std::uint64_t, const DecodedEntry& decoded) override {
    if (decoded.kind == EntryKind::Leaf) page_lg2 = decoded.page_lg2;
  }
  std::uint8_t page_lg2 = 0;
};

struct Run {
  VectorOutcome outcome;
  std::string register_difference;
  VectorMemory::Words words;
};

VectorScene set_up(const VectorRecord& record, const VectorAccess& access, const VectorFamily& family,
                   VectorMemory::Words words, const VectorRegisters& id_registers) {
  VectorScene scene{std::make_unique<VectorMemory>(record), family.make_core(id_registers), {}};
  scene.memory->replace(std::move(words));
  scene.register_difference = replay(*scene.core, *scene.memory, record.setup);
  const std::string difference = replay(*scene.core, *scene.memory, access.before);
  if (scene.register_difference.empty()) scene.register_difference = difference;
  return scene;
}

Run run(const VectorRecord& record, const VectorAccess& access, const VectorFamily& family, VectorMemory::Words words,
        const VectorRegisters& id_registers, const std::vector<VectorRegisterAccess>& registers = {}) {
  const VectorScene scene = set_up(record, access, family, std::move(words), id_registers);
  VectorMemory& memory = *scene.memory;
  (void)replay(*scene.core, memory, registers);
  Run result;
  result.register_difference = scene.register_difference;
  LeafSize leaf;
  const TranslationResponse response =
      scene.core->translate(access.request, memory, {.caches = nullptr, .observer = &leaf}).run();
  if (const auto* translation = std::get_if<Translation>(&response)) {
    result.outcome.result = VectorResult::Translated;
    result.outcome.output = translation->address.value();
    result.outcome.page_lg2 = leaf.page_lg2;
  } else {
    const Fault& fault = std::get<Fault>(response);
    scene.core->record(fault);
    scene.core->write_events(memory).run();
    result.outcome.reason = fault.row->code;
    if (const auto recorded = family.recorded_fault(*scene.core, memory)) {
      result.outcome.result = VectorResult::Fault;
      result.outcome.reason = recorded->first;
      result.outcome.fault = recorded->second;
    }
  }
  result.words = memory.words();
  return result;
}

// What the recorder would do, by the rules that apply; empty names when none changed anything.
struct Hypothesis {
  Run run;
  std::vector<std::string_view> rules;
};

Hypothesis explain(const VectorRecord& record, const VectorAccess& access, const VectorFamily& family,
                   const VectorMemory::Words& before, const Run& ours) {
  Hypothesis hypothesis{ours, {}};
  // A block shows no reason: the recorder may have come to it before the model did, and left other marks.
  const bool blocked = ours.outcome.result == VectorResult::Blocked;
  VectorMemory::Words patched = before;
  VectorRegisters id_registers = record.id_registers;
  std::vector<VectorRegisterAccess> registers;
  std::vector<VectorWord> undo;
  for (const VectorRule& rule : family.rules) {
    const bool untouched = hypothesis.rules.empty() && blocked;
    if (!untouched && hypothesis.run.outcome.agrees_with(access.recorded)) break;
    VectorMemory memory(record);
    memory.replace(patched);
    const auto change = rule.apply({record, access, memory, id_registers, hypothesis.run.outcome});
    if (!change) continue;
    hypothesis.rules.push_back(rule.name);
    for (const auto& [address, value] : change->words) {
      undo.emplace_back(address, memory.read(address).value_or(0));
      patched[address] = value;
    }
    for (const auto& [name, value] : change->id_registers) id_registers.insert_or_assign(name, value);
    registers.insert(registers.end(), change->registers.begin(), change->registers.end());
    if (!change->words.empty() || !change->id_registers.empty() || !change->registers.empty())
      hypothesis.run = run(record, access, family, patched, id_registers, registers);
    if (change->outcome) hypothesis.run.outcome = *change->outcome;
    if (change->marks == VectorMarks::Undone) hypothesis.run.words = patched;
  }
  for (auto it = undo.rbegin(); it != undo.rend(); ++it) hypothesis.run.words[it->first] = it->second;
  return hypothesis;
}

// Nothing when memory afterwards is as recorded.
std::optional<VectorJudgement> judge_memory(const VectorRecord& record, const VectorFamily& family,
                                            const VectorMemory::Words& words) {
  std::map<std::uint64_t, std::uint64_t> before, expected;
  for (const auto& [address, value] : record.words) before[address] = value;
  expected = before;
  for (const auto& [address, value] : record.words_after) expected[address] = value;
  VectorJudgement judgement{.verdict = VectorVerdict::Deviation};
  for (const auto& [address, value] : expected) {
    const auto found = words.find(address);
    const std::uint64_t got = found == words.end() ? 0 : found->second;
    if (got == value) continue;
    const auto rule = std::find_if(family.memory_rules.begin(), family.memory_rules.end(),
                                   [&](const VectorMemoryRule& r) { return r.explains(before[address], value, got); });
    if (rule == family.memory_rules.end()) {
      judgement.detail = "word at " + hex(address) + " is " + hex(got) + " afterwards, recorded " + hex(value);
      judgement.verdict = VectorVerdict::Disagree;
      return judgement;
    }
    if (std::find(judgement.rules.begin(), judgement.rules.end(), rule->name) == judgement.rules.end())
      judgement.rules.push_back(rule->name);
  }
  return judgement.rules.empty() ? std::nullopt : std::optional(judgement);
}

}  // namespace

bool VectorOutcome::agrees_with(const VectorOutcome& recorded) const {
  if (result != recorded.result) return false;
  switch (result) {
    case VectorResult::Translated:
      return output == recorded.output;
    case VectorResult::Fault:
      return reason == recorded.reason && fault == recorded.fault;
    default:
      return true;
  }
}

VectorMemory::VectorMemory(const VectorRecord& record) : record_(record) {
  for (const auto& [address, value] : record.words) words_[address] = value;
}

std::optional<std::uint64_t> VectorMemory::read(std::uint64_t address) const {
  if (const auto found = words_.find(address); found != words_.end()) return found->second;
  if (find(record_.ram, address) == nullptr) return std::nullopt;
  if (find(record_.zeroed, address) != nullptr) return 0;
  if (const VectorRegion* pool = find(record_.pools, address)) return pattern(*pool, address);
  return 0;
}

bool VectorMemory::begin(MemoryAccess& access) {
  const std::uint64_t address = access.address.value();
  access.failed = find(record_.ram, address) == nullptr || address % 8 != 0;
  if (access.op == MemoryOp::Read) {
    for (std::size_t i = 0; i < access.bytes / 8U; ++i) {
      const auto word = access.failed ? std::nullopt : read(address + 8 * i);
      access.failed = !word;
      access.words[i] = word.value_or(0);
    }
  } else if (!access.failed && access.op == MemoryOp::Write) {
    for (std::size_t i = 0; i < access.bytes / 8U; ++i) write(address + 8 * i, access.words[i]);
  } else if (!access.failed) {
    const std::uint64_t found = read(address).value_or(0);
    if (found == access.words[0]) write(address, access.words[1]);
    access.words[0] = found;
  }
  return true;
}

namespace {

struct JudgedAccesses {
  std::vector<VectorJudgement> judgements;
  VectorMemory::Words words;  // afterwards
};

// The first `count` accesses of a record.
JudgedAccesses judge_accesses(const VectorRecord& record, const VectorFamily& family, std::size_t count) {
  JudgedAccesses judged{{}, VectorMemory(record).words()};
  VectorMemory::Words& words = judged.words;
  for (std::size_t i = 0; i < count; ++i) {
    const VectorAccess& access = record.accesses[i];
    VectorJudgement judgement;
    Run ours = run(record, access, family, words, record.id_registers);
    judgement.ours = ours.outcome;
    judgement.detail = ours.register_difference;
    if (!judgement.detail.empty()) {
      judgement.verdict = VectorVerdict::Disagree;
      words = std::move(ours.words);
    } else if (access.recorded.result == VectorResult::Unknown) {
      judgement.verdict = VectorVerdict::Unknown;
      words = std::move(ours.words);
    } else if (ours.outcome.agrees_with(access.recorded)) {
      Hypothesis theirs{ours, {}};
      if (ours.outcome.result == VectorResult::Blocked) theirs = explain(record, access, family, words, ours);
      const bool explained = theirs.run.outcome.agrees_with(access.recorded) && theirs.run.words != ours.words;
      if (explained) {
        judgement.verdict = VectorVerdict::Deviation;
        judgement.rules = std::move(theirs.rules);
      }
      words = explained ? std::move(theirs.run.words) : std::move(ours.words);
    } else {
      Hypothesis theirs = explain(record, access, family, words, ours);
      const bool explained = theirs.run.outcome.agrees_with(access.recorded);
      judgement.verdict = explained ? VectorVerdict::Deviation : VectorVerdict::Disagree;
      judgement.rules = std::move(theirs.rules);
      words = explained ? std::move(theirs.run.words) : std::move(ours.words);
    }
    judged.judgements.push_back(std::move(judgement));
  }
  return judged;
}

}  // namespace

VectorScene scene_before(const VectorRecord& record, const VectorFamily& family, std::size_t access) {
  JudgedAccesses judged = judge_accesses(record, family, access);
  return set_up(record, record.accesses[access], family, std::move(judged.words), record.id_registers);
}

std::vector<VectorJudgement> judge(const VectorRecord& record, const VectorFamily& family) {
  JudgedAccesses judged = judge_accesses(record, family, record.accesses.size());
  std::vector<VectorJudgement>& judgements = judged.judgements;
  const bool comparable = std::none_of(judgements.begin(), judgements.end(), [](const VectorJudgement& j) {
    return j.verdict == VectorVerdict::Disagree || j.verdict == VectorVerdict::Unknown;
  });
  if (comparable)
    if (auto judgement = judge_memory(record, family, judged.words)) judgements.push_back(std::move(*judgement));
  return judgements;
}

}  // namespace iommu
