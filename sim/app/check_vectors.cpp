// SPDX-License-Identifier: Apache-2.0
#include "sim/app/check_vectors.hpp"

#include <fmt/format.h>

#include <charconv>
#include <numeric>
#include <ostream>

#include "models/families.hpp"
#include "sim/app/vector_file.hpp"
#include "sim/app/verbs.hpp"

namespace iommu {

namespace {

constexpr std::size_t kExamples = 8;

std::string describe(const VectorOutcome& outcome) {
  switch (outcome.result) {
    case VectorResult::Translated:
      return fmt::format("translated to {:#x}", outcome.output);
    case VectorResult::Fault: {
      const RecordedFault fault = outcome.fault.value_or(RecordedFault{});
      return fmt::format("fault {:#x} (page {:#x}, requester {:#06x}, {}{})", outcome.reason, fault.page,
                         fault.requester.value(), fault.access == Access::Write ? "write" : "read",
                         fault.pasid ? fmt::format(", PASID {}", fault.pasid->value()) : "");
    }
    case VectorResult::Blocked:
      return outcome.reason == 0 ? "blocked" : fmt::format("blocked, would be fault {:#x}", outcome.reason);
    case VectorResult::Interrupt:
      return "interrupt";
    case VectorResult::Unknown:
      return "unknown";
  }
  return {};
}

std::string joined(const std::vector<std::string_view>& names) {
  std::string text;
  for (const std::string_view name : names) text.append(text.empty() ? "" : "+").append(name);
  return text;
}

void count(const VectorRecord& record, const std::vector<VectorJudgement>& judgements, VectorReport& report) {
  for (std::size_t i = 0; i < judgements.size(); ++i) {
    const VectorJudgement& judgement = judgements[i];
    switch (judgement.verdict) {
      case VectorVerdict::Agree:
        ++report.agree;
        break;
      case VectorVerdict::Unknown:
        ++report.unknown;
        break;
      case VectorVerdict::Deviation:
        ++report.deviations[joined(judgement.rules)];
        break;
      case VectorVerdict::Disagree: {
        ++report.disagree;
        if (report.examples.size() >= kExamples) break;
        if (i >= record.accesses.size()) {
          report.examples.push_back(fmt::format("{}: {} [{}]", record.id, judgement.detail, record.notes));
          break;
        }
        const VectorAccess& access = record.accesses[i];
        const std::string tried =
            judgement.rules.empty() ? "" : fmt::format(" (rules tried: {})", joined(judgement.rules));
        report.examples.push_back(fmt::format("{} access {}: {} {:#x}: recorded {}, the model says {}{}{} [{}]",
                                              record.id, i, access.request.access == Access::Write ? "write" : "read",
                                              access.request.address.value(), describe(access.recorded),
                                              describe(judgement.ours), tried,
                                              judgement.detail.empty() ? "" : "; " + judgement.detail, record.notes));
        break;
      }
    }
  }
}

void print(const std::string& title, const VectorReport& report, std::ostream& out) {
  out << fmt::format("{}: {} records\n  agree {}\n  deviation {}\n", title, report.records, report.agree,
                     report.deviation());
  for (const auto& [rule, times] : report.deviations) out << fmt::format("    {}: {}\n", rule, times);
  out << fmt::format("  unknown {}\n", report.unknown);
  for (const auto& [reason, times] : report.skipped) out << fmt::format("  skipped {}: {}\n", times, reason);
  out << fmt::format("  disagree {}\n", report.disagree);
  for (const std::string& example : report.examples) out << "    " << example << '\n';
}

}  // namespace

std::span<const VectorFamily* const> vector_families() {
  static const std::vector<const VectorFamily*> kWithVectors = [] {
    std::vector<const VectorFamily*> found;
    for (const FamilyDescriptor* family : families())
      if (family->vectors != nullptr) found.push_back(family->vectors);
    return found;
  }();
  return kWithVectors;
}

std::uint64_t VectorReport::deviation() const {
  return std::accumulate(deviations.begin(), deviations.end(), std::uint64_t{0},
                         [](std::uint64_t sum, const auto& entry) { return sum + entry.second; });
}

void VectorReport::merge(const VectorReport& other) {
  records += other.records;
  agree += other.agree;
  unknown += other.unknown;
  disagree += other.disagree;
  for (const auto& [rule, times] : other.deviations) deviations[rule] += times;
  for (const auto& [reason, times] : other.skipped) skipped[reason] += times;
}

VectorFileResult check_vector_file(const std::string& path, std::span<const VectorFamily* const> families) {
  VectorReport report;
  VectorFile file(path);
  for (;;) {
    auto next = file.next(families);
    if (const auto* error = std::get_if<VectorFileError>(&next)) return *error;
    if (std::holds_alternative<VectorFileEnd>(next)) break;
    const auto& read = std::get<VectorFileRecord>(next);
    ++report.records;
    if (const std::string missing = read.family->lacks(read.record); !missing.empty()) {
      report.skipped[missing] += read.record.accesses.size();
      continue;
    }
    count(read.record, judge(read.record, *read.family), report);
  }
  if (report.records == 0) return VectorFileError{path, 0, "holds no records"};
  return report;
}

int run_check_vectors(std::span<const std::string> paths, std::ostream& out, std::ostream& err) {
  VectorReport total;
  bool readable = true;
  for (const std::string& path : paths) {
    const VectorFileResult result = check_vector_file(path);
    if (const auto* error = std::get_if<VectorFileError>(&result)) {
      readable = false;
      err << error->path << (error->record == 0 ? "" : fmt::format(":{}", error->record)) << ": " << error->what
          << '\n';
      continue;
    }
    print(path, std::get<VectorReport>(result), out);
    total.merge(std::get<VectorReport>(result));
  }
  if (paths.size() > 1) print("total", total, out);
  return readable && total.disagree == 0 ? kExitOk : kExitUser;
}

}  // namespace iommu
