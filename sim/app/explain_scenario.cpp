// SPDX-License-Identifier: Apache-2.0
// A device of a scenario's machine: what it has mapped, and how one of its addresses is translated now.
#include <fmt/format.h>

#include <algorithm>
#include <ostream>
#include <stdexcept>

#include "models/families.hpp"
#include "sim/app/explain.hpp"
#include "sim/app/explain_steps.hpp"
#include "sim/app/explain_text.hpp"
#include "sim/app/machine.hpp"
#include "sim/scenario/nearest.hpp"

namespace iommu {

namespace {

using scenario::did_you_mean;
using scenario::Scenario;
using scenario::ScenarioError;

constexpr std::size_t kListed = 6;  // mapped ranges

// The place of a name in a list; the first when none is asked for.
std::size_t choose(const std::optional<std::string>& wanted, const std::vector<std::string>& names,
                   std::string_view option, std::string_view what) {
  if (!wanted) return 0;
  const auto found = std::ranges::find(names, *wanted);
  if (found == names.end())
    throw ScenarioError({fmt::format("{}: the scenario has no {} '{}'{}", option, what, wanted->substr(0, 60),
                                     did_you_mean(*wanted, names))});
  return static_cast<std::size_t>(found - names.begin());
}

std::uint64_t parse(const std::string& text, Radix radix, std::string_view option, std::string_view expected) {
  const auto value = parse_number(text, radix);
  if (!value) throw ScenarioError({fmt::format("{}: '{}' is no {}", option, text.substr(0, 60), expected)});
  return *value;
}

std::optional<Access> parse_access(const std::optional<std::string>& text) {
  if (!text) return std::nullopt;
  if (*text == "read") return Access::Read;
  if (*text == "write") return Access::Write;
  throw ScenarioError({fmt::format("--access: '{}' is neither read nor write", text->substr(0, 60))});
}

// Everything that the command line chose, checked before a machine is built.
struct Choice {
  const scenario::Variation* variation = nullptr;
  const Scenario* scenario = nullptr;
  const FamilyDescriptor* family = nullptr;
  std::size_t strategy = 0;
  std::size_t device = 0;
  std::optional<std::uint64_t> address{};
  std::optional<Access> access{};
  std::uint64_t after = 0;
};

Choice choose(const ExplainArguments& a, const scenario::Variation& variation) {
  const Scenario& s = variation.scenario;
  std::vector<std::string> strategies, devices, known;
  for (const auto& strategy : s.strategies) strategies.push_back(strategy.label);
  for (const auto& device : s.devices) devices.push_back(device.name);
  for (const FamilyDescriptor* family : families()) known.emplace_back(family->name);
  Choice c{.variation = &variation, .scenario = &s};
  c.strategy = choose(a.strategy, strategies, "--strategy", "strategy");
  c.device = choose(a.device, devices, "--device", "device");
  const std::string family = a.family.value_or(s.families.front());
  c.family = find_unit(family);
  if (c.family == nullptr)
    throw ScenarioError(
        {fmt::format("--family: unknown family '{}'{}", family.substr(0, 60), did_you_mean(family, known))});
  if (a.iova) c.address = parse(*a.iova, Radix::DecimalOrHex, "--iova", "address of 64 bits; expected 0x… or decimal");
  c.access = parse_access(a.access);
  if (a.after) c.after = parse(*a.after, Radix::Decimal, "--at", "number of I/Os");
  return c;
}

void advance(Machine& machine, std::uint64_t ios) {
  if (ios == 0) return;
  machine.start();
  const RunEnd end = machine.engine().run_while([&] { return machine.completed_ios() < ios && !machine.is_over(); },
                                                machine.scenario().measure.time_limit);
  if (machine.completed_ios() < ios)
    throw std::runtime_error(fmt::format("--at: only {} of {} I/Os happen: {}", machine.completed_ios(), ios,
                                         end == RunEnd::LimitReached ? "measure.time_limit reached"
                                         : machine.is_over()         ? "the workload ends"
                                                                     : machine.waits()));
}

class ScenarioExplainer {
 public:
  ScenarioExplainer(Machine& machine, const Choice& choice, std::ostream& out)
      : machine_(machine),
        choice_(choice),
        device_(choice.scenario->devices[choice.device]),
        guest_(*machine.guests()[device_.domain_index]),
        out_(out) {}

  void explain() {
    if (guest_.strategy().software_translation() != nullptr)
      throw std::runtime_error(
          fmt::format("device '{}' is emulated: software translates its DMA and no table takes part", device_.name));
    ranges_ = mapped_ranges();
    const TranslationRequest request = chosen_request();
    print_question(request);
    if (!choice_.address) print_ranges();
    out_ << "\nwhat hardware does\n";
    ImmediateMemoryPort memory(machine_.host_memory());
    IommuCore& core = machine_.core(device_.iommu_index);
    const TranslationResponse response =
        explain_translation(core, memory, request, *choice_.family, TableSpace::Host, out_);
    print_truth(request, response);
    print_virtual_unit(request, response);
    out_ << "\nTables only: what the IOTLB and walk caches hold at this time plays no part here.\n";
  }

 private:
  [[nodiscard]] bool is_guest_physical() const {
    return guest_.strategy().addressing(device_.bdf) == strategy::Addressing::GuestPhysical;
  }

  // By the warden; where addresses are guest-physical, the guest's memory.
  [[nodiscard]] std::vector<strategy::MappedPages> mapped_ranges() const {
    if (!is_guest_physical()) return machine_.warden().mapped(device_.bdf);
    std::vector<strategy::MappedPages> ranges;
    for (const xen::P2mExtent& extent : guest_.domain().p2m.extents()) {
      if (extent.type != xen::FrameType::Ram) continue;
      const Iova first(extent.first.address().value());
      if (!ranges.empty() && ranges.back().first + Bytes(ranges.back().pages << kPageLg2) == first)
        ranges.back().pages += extent.pages;
      else
        ranges.push_back({first, extent.pages, strategy::PageState::Mapped, kReadWrite});
    }
    return ranges;
  }

  [[nodiscard]] TranslationRequest chosen_request() const {
    TranslationRequest request{.requester = device_.shared_id.value_or(device_.bdf), .pasid = {}, .address = {}};
    if (choice_.address)
      request.address = Iova(*choice_.address);
    else if (!ranges_.empty())
      request.address = ranges_.front().first;
    const auto truth = machine_.warden().truth(device_.bdf, request.address);
    // Unless asked otherwise: what the device may do there.
    const bool writes = truth && truth->permissions.write;
    request.access = choice_.access.value_or(writes ? Access::Write : Access::Read);
    return request;
  }

  // What stands between the device and others of its isolation group: nothing.
  void print_group() {
    const Scenario& s = *choice_.scenario;
    if (device_.shared_id) out_ << fmt::format("its requests reach the IOMMU as {}\n", bdf_text(*device_.shared_id));
    const scenario::IsolationGroup& group = s.topology.groups[device_.group];
    if (group.devices.size() == 1) return;
    std::string names, reasons;
    for (const std::size_t d : group.devices)
      if (d != choice_.device)
        names += fmt::format("{}{} ({}, domain {})", names.empty() ? "" : ", ", s.devices[d].name,
                             bdf_text(s.devices[d].bdf), s.devices[d].domain);
    for (const std::string& reason : group.reasons) reasons += (reasons.empty() ? "" : "; ") + reason;
    out_ << fmt::format("not isolated from {}: {}\n", names, reasons);
  }

  void print_question(const TranslationRequest& request) {
    const Scenario& s = *choice_.scenario;
    std::string axes;
    for (const auto& [name, value] : choice_.variation->labels) axes += fmt::format(", {} {}", name, value);
    out_ << fmt::format("{} ({}) {} {:#x}: where does that go?\n", device_.name, bdf_text(device_.bdf),
                        request.access == Access::Read ? "reads" : "writes to", request.address.value());
    const std::uint64_t ios = machine_.completed_ios();
    out_ << fmt::format("scenario {}{}, strategy {}, family {} ({}), {}\n", s.name, axes,
                        s.strategies[choice_.strategy].label, choice_.family->name, choice_.family->specification,
                        ios == 0 ? "after boot" : fmt::format("after {} I/Os", ios));
    print_group();
  }

  static std::string_view state_text(strategy::PageState state) {
    switch (state) {
      case strategy::PageState::Mapping:
        return ", being mapped";
      case strategy::PageState::AwaitingFence:
        return ", unmapped but not yet fenced";
      case strategy::PageState::Mapped:
        break;
    }
    return "";
  }

  void print_ranges() {
    std::uint64_t pages = 0;
    for (const strategy::MappedPages& range : ranges_) pages += range.pages;
    out_ << (is_guest_physical() ? "\naddresses are guest-physical, all of the guest's memory is mapped: "
                                 : "\nmapped now: ")
         << fmt::format("{} pages in {} range{}\n", pages, ranges_.size(), ranges_.size() == 1 ? "" : "s");
    for (std::size_t i = 0; i < ranges_.size() && i < kListed; ++i) {
      const strategy::MappedPages& range = ranges_[i];
      out_ << fmt::format("  --iova {}  {:>6} page{} {}{}\n", address_text(range.first.value()), range.pages,
                          range.pages == 1 ? ", " : "s,", rights_text(range.permissions), state_text(range.state));
    }
    if (ranges_.size() > kListed) out_ << fmt::format("  and {} more\n", ranges_.size() - kListed);
  }

  // Does hardware do what software asked for?
  void print_truth(const TranslationRequest& request, const TranslationResponse& response) {
    const auto truth = machine_.warden().truth(device_.bdf, request.address);
    const auto* translation = std::get_if<Translation>(&response);
    if (!truth) {
      out_ << "software: nothing is mapped there"
           << (translation == nullptr ? ", as the fault says\n" : ": the device can reach what it should not\n");
      return;
    }
    const Hpa frame = truth->frame.address() + Bytes(request.address.offset_in(kPageLg2));
    out_ << fmt::format("software: mapped to host {:#x}, {}{}: {}\n", frame.value(), rights_text(truth->permissions),
                        state_text(truth->state), compared(*truth, frame, request, translation));
  }

  static std::string_view compared(const strategy::PageTruth& truth, Hpa frame, const TranslationRequest& request,
                                   const Translation* translation) {
    if (translation == nullptr)
      return truth.permissions.allow(request.access) ? "they differ" : "they agree that this access is refused";
    if (translation->address != frame) return "they differ";
    if (!truth.permissions.allow(request.access)) return "the same place, but software did not permit this access";
    return translation->allowed == (translation->allowed & truth.permissions)
               ? "they agree"
               : "they agree on the place; hardware also permits what software did not ask for";
  }

  void print_virtual_unit(const TranslationRequest& request, const TranslationResponse& response) {
    xen::VirtualUnit* unit = guest_.strategy().virtual_unit();
    if (unit == nullptr) return;
    out_ << "\nwhat the guest's own unit would answer (Xen emulates it; its tables are in guest memory)\n";
    const TranslationResponse own =
        explain_translation(unit->core(), unit->guest_memory(), request, *choice_.family, TableSpace::Guest, out_);
    const auto* guest = std::get_if<Translation>(&own);
    if (guest == nullptr) return;
    const Gpa address(guest->address.value());
    const auto host = guest_.domain().p2m.translate(address);
    if (!host) {
      out_ << fmt::format("p2m: guest-physical {:#x} is not the guest's memory\n", address.value());
      return;
    }
    const auto* real = std::get_if<Translation>(&response);
    out_ << fmt::format("p2m: guest-physical {:#x} is host {:#x}, {} hardware reaches\n", address.value(),
                        host->value(), real != nullptr && real->address == *host ? "what" : "not what");
  }

  Machine& machine_;
  const Choice& choice_;
  const scenario::DeviceSetting& device_;
  Guest& guest_;
  std::ostream& out_;
  std::vector<strategy::MappedPages> ranges_;
};

}  // namespace

void explain_scenario(const ExplainArguments& arguments, scenario::LoadOptions options, std::ostream& out) {
  if (arguments.family && find_family(*arguments.family) != nullptr) options.select_families = {*arguments.family};
  const scenario::LoadedScenario loaded = scenario::load_scenario(arguments.target, options);
  const scenario::Variation& variation = loaded.variations.front();
  const Choice choice = choose(arguments, variation);
  try {
    Machine machine(variation.scenario, variation.scenario.strategies[choice.strategy], *choice.family);
    machine.boot();
    advance(machine, choice.after);
    ScenarioExplainer(machine, choice, out).explain();
  } catch (const std::runtime_error& e) {
    throw ScenarioError({fmt::format("{}: {}", arguments.target, e.what())});
  }
}

}  // namespace iommu
