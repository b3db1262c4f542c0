// SPDX-License-Identifier: Apache-2.0
// Looks up fields, layouts, fault rows and command rows of a family by name: vtd.SS-PTE.R, vtd.LGN.4, vtd.inv_wait_dsc.
#include <fmt/format.h>

#include <algorithm>
#include <ostream>
#include <vector>

#include "models/families.hpp"
#include "sim/app/explain.hpp"
#include "sim/app/explain_text.hpp"
#include "sim/scenario/nearest.hpp"

namespace iommu {

namespace {

using scenario::did_you_mean;
using scenario::ScenarioError;

// Two spellings of one thing: case and punctuation do not count, and registers may be named without their suffix.
bool is_same(std::string_view asked, std::string_view name) {
  constexpr std::string_view kSuffix = "_REG";
  if (folded(asked) == folded(name)) return true;
  return name.ends_with(kSuffix) && folded(asked) == folded(name.substr(0, name.size() - kSuffix.size()));
}

std::span<const LayoutView> layouts_of(const FamilyDescriptor& family) {
  return family.layouts == nullptr ? std::span<const LayoutView>() : family.layouts->all;
}

void print_head(const FamilyDescriptor& family, const LayoutView& layout, std::ostream& out) {
  out << fmt::format("{}: {}, {} bits  {}\n", layout.name, layout.title, layout.width, cite(family, layout.citation));
}

void print_field(const Field& field, std::ostream& out) {
  out << fmt::format("  {:<13} {:<14} {}\n", field.name, bits_text(field), kind_text(field.kind));
}

void print_fault(const FamilyDescriptor& family, const FaultRow& row, std::ostream& out) {
  out << fmt::format("{}: fault {:#x}, {}: {}  {}\n", row.name, row.code, class_text(row.kind), row.meaning,
                     cite(family, row.citation));
  out << fmt::format("  {}\n", row.qualified ? "a table entry may ask hardware not to record it" : "always recorded");
}

void print_command(const FamilyDescriptor& family, const CommandRow& row, std::ostream& out) {
  out << fmt::format("{}: command, opcode {:#x}  {}\n", row.name, row.opcode, cite(family, row.citation));
}

void print_family(const FamilyDescriptor& family, std::ostream& out) {
  out << fmt::format("{}: {}\n\nlayouts (explain {}.NAME, explain {}.NAME.FIELD)\n", family.name, family.specification,
                     family.name, family.name);
  for (const LayoutView& layout : layouts_of(family))
    out << fmt::format("  {:<24} {:>3} bits  {}  {}\n", layout.name, layout.width, layout.title,
                       cite(family, layout.citation));
  if (layouts_of(family).empty()) out << "  none are published for this family\n";
  out << "\nfaults\n";
  for (const FaultRow& row : family.fault_rows)
    out << fmt::format("  {:<24} {:#5x}  {}\n", row.name, row.code, row.meaning);
  out << "\ncommands\n";
  for (const CommandRow& row : family.command_rows) out << fmt::format("  {:<24} {:#5x}\n", row.name, row.opcode);
}

// Fault, command and layouts of this name, whole; false: there is none.
bool print_whole(const FamilyDescriptor& family, std::string_view name, std::ostream& out) {
  bool found = false;
  for (const FaultRow& row : family.fault_rows)
    if (is_same(name, row.name)) print_fault(family, row, out), found = true;
  for (const CommandRow& row : family.command_rows)
    if (is_same(name, row.name)) print_command(family, row, out), found = true;
  for (const LayoutView& layout : layouts_of(family)) {
    if (!is_same(name, layout.name)) continue;
    print_head(family, layout, out);
    for (const Field& field : layout.fields) print_field(field, out);
    found = true;
  }
  return found;
}

// "; did you mean …": a name that begins so, or else the nearest.
std::string begun_or_near(std::string_view word, const std::vector<std::string>& names) {
  for (const std::string& name : names)
    if (folded(name).starts_with(folded(word))) return fmt::format("; did you mean '{}'?", name);
  return did_you_mean(word, names);
}

// The field in every layout of this name. Throws when the layouts exist and have no such field.
bool print_fields(const FamilyDescriptor& family, std::string_view layout_name, std::string_view field_name,
                  std::ostream& out) {
  bool has_layout = false, has_field = false;
  std::vector<std::string> candidates;
  for (const LayoutView& layout : layouts_of(family)) {
    if (!is_same(layout_name, layout.name)) continue;
    has_layout = true;
    for (const Field& field : layout.fields) {
      candidates.emplace_back(field.name);
      if (!is_same(field_name, field.name)) continue;
      print_head(family, layout, out);
      print_field(field, out);
      has_field = true;
    }
  }
  if (has_layout && !has_field)
    throw ScenarioError({fmt::format("{}.{} has no field '{}'{}", family.name, layout_name, field_name.substr(0, 60),
                                     begun_or_near(field_name, candidates))});
  return has_field;
}

bool is_layout(const FamilyDescriptor& family, std::string_view name) {
  return std::ranges::find(layouts_of(family), name, &LayoutView::name) != layouts_of(family).end();
}

[[noreturn]] void complain(const FamilyDescriptor& family, std::string_view name) {
  std::vector<std::string> candidates;
  for (const LayoutView& layout : layouts_of(family)) candidates.emplace_back(layout.name);
  for (const FaultRow& row : family.fault_rows) candidates.emplace_back(row.name);
  for (const CommandRow& row : family.command_rows) candidates.emplace_back(row.name);
  // The nearest to the name as it stands or, for LAYOUT.FIELD, to its first part; case does not count.
  const auto nearest_of = [&](std::string_view word) -> std::string {
    if (folded(word).size() > 1)
      for (const std::string& c : candidates)
        if (folded(c).starts_with(folded(word)) || folded(c).ends_with(folded(word))) return c;
    std::vector<std::string> plain;
    for (const std::string& c : candidates) plain.push_back(folded(c));
    const auto best = scenario::nearest(folded(word), plain);
    if (!best) return {};
    return candidates[static_cast<std::size_t>(std::ranges::find(plain, *best) - plain.begin())];
  };
  const std::size_t dot = name.rfind('.');
  std::string near;
  if (dot != std::string_view::npos)
    if (const std::string layout = nearest_of(name.substr(0, dot)); is_layout(family, layout))
      near = layout + std::string(name.substr(dot));
  if (near.empty()) near = nearest_of(name);
  throw ScenarioError({fmt::format(
      "{} has no layout, fault or command '{}'{}; `iommusim explain {}` lists them", family.name, name.substr(0, 60),
      near.empty() ? "" : fmt::format("; did you mean '{}.{}'?", family.name, near), family.name)});
}

}  // namespace

void explain_name(const std::string& name, std::ostream& out) {
  const std::string_view whole(name);
  const std::size_t dot = whole.find('.');
  std::vector<std::string> known;
  const FamilyDescriptor* family = nullptr;
  for (const FamilyDescriptor* candidate : families()) {
    known.emplace_back(candidate->name);
    if (is_same(whole.substr(0, dot), candidate->name)) family = candidate;
  }
  if (family == nullptr)
    throw ScenarioError({fmt::format(
        "'{}' is no file that exists and no family{}; expected a scenario (.yaml), recorded translations (.jsonl.gz), "
        "or FAMILY.LAYOUT.FIELD such as vtd.SS-PTE.R",
        whole.substr(0, 80), did_you_mean(whole.substr(0, dot), known))});
  if (dot == std::string_view::npos) return print_family(*family, out);
  const std::string_view rest = whole.substr(dot + 1);
  if (folded(rest).empty()) return print_family(*family, out);
  if (print_whole(*family, rest, out)) return;
  const std::size_t last = rest.rfind('.');
  if (last != std::string_view::npos && print_fields(*family, rest.substr(0, last), rest.substr(last + 1), out)) return;
  complain(*family, rest);
}

}  // namespace iommu
