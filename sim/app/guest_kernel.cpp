// SPDX-License-Identifier: Apache-2.0
#include "sim/app/guest_kernel.hpp"

#include <algorithm>
#include <utility>

#include "sim/base/check.hpp"
#include "sim/scenario/schema.hpp"

namespace iommu {

namespace {

// ASSUMPTION(machine-001): guest kernels leave the first MiB, where firmware keeps its tables, alone.
constexpr Bytes kFirmware = 1_MiB;

xen::TrapTarget trap_target(const scenario::StrategySetting& strategy) {
  const bool in_device_model = strategy.kind == scenario::StrategyKind::Nested
                                   ? strategy.doorbell == scenario::Doorbell::DeviceModel
                                   : strategy.placement == scenario::TrapTarget::DeviceModel;
  return in_device_model ? xen::TrapTarget::DeviceModel : xen::TrapTarget::Xen;
}

}  // namespace

bool has_guest_queues(const scenario::StrategySetting& strategy) {
  return strategy.kind == scenario::StrategyKind::Nested && strategy.doorbell == scenario::Doorbell::GuestQueue;
}

std::optional<xen::ShadowSync> shadow_sync(const scenario::StrategySetting& strategy) {
  if (!strategy.shadow) return std::nullopt;
  return *strategy.shadow == scenario::ShadowSync::CachingMode ? xen::ShadowSync::CachingMode
                                                               : xen::ShadowSync::WriteProtect;
}

strategy::StrategyOptions unit_options(const scenario::StrategySetting& strategy) {
  return {.mapping = strategy.mapping == scenario::VirtioMapping::Tables ? strategy::VirtioMapping::Tables
                                                                         : strategy::VirtioMapping::Requests,
          .shadow = shadow_sync(strategy)};
}

const strategy::StrategyDescriptor& strategy_of(scenario::StrategyKind kind) {
  const strategy::StrategyDescriptor* found = strategy::find_strategy(scenario::to_string(kind));
  SIM_CHECK(found != nullptr, "every strategy of the schema is one of the strategies that there are");
  SIM_CHECK(found->own_unit == scenario::own_unit(kind), "runs are planned for the unit that the strategy has");
  return *found;
}

Guest::Guest(const GuestEnvironment& environment, const scenario::DomainSetting& setting,
             const scenario::StrategySetting& strategy, xen::Domain& domain, std::vector<Vcpu*> cpus)
    : environment_(environment),
      setting_(setting),
      strategy_setting_(strategy),
      domain_(domain),
      cpus_(std::move(cpus)) {}

strategy::StrategyOptions Guest::strategy_options(const scenario::StrategySetting& strategy) const {
  return {.leaf_hint = setting_.dma_api.leaf_hint,
          .rfc_version =
              strategy.rfc_version == scenario::RfcVersion::V3 ? strategy::RfcVersion::V3 : strategy::RfcVersion::V7,
          .deferred_flush = strategy.deferred_flush,
          .batch = static_cast<std::uint32_t>(strategy.batch),
          .scatter = strategy.scatter,
          .all_or_nothing = strategy.error_report == scenario::ErrorReport::Address,
          .arena_order = static_cast<std::uint32_t>(strategy.arena_order),
          .max_contexts = static_cast<std::uint32_t>(strategy.max_contexts),
          .trap_target = trap_target(strategy),
          .pool_size = strategy.pool_size,
          .areas = strategy.areas.value_or(setting_.vcpus),
          .table_owner = strategy.tables == scenario::TableOwner::Kernel ? strategy::TableOwner::Kernel
                                                                         : strategy::TableOwner::Hypervisor,
          .flush_at = strategy.flush == scenario::ApertureFlush::Wrap ? strategy::ApertureFlush::Wrap
                                                                      : strategy::ApertureFlush::Map,
          .endpoints = strategy.endpoints == scenario::Endpoints::Virtual ? xen::EndpointKind::Virtual
                                                                          : xen::EndpointKind::Physical,
          .mapping = unit_options(strategy).mapping,
          .guest_queue = has_guest_queues(strategy),
          .shadow = shadow_sync(strategy)};
}

guest::DmaApiOptions Guest::dma_api_options() const {
  guest::DmaApiOptions options;
  options.unmapping =
      setting_.dma_api.policy == scenario::DmaPolicy::Lazy ? guest::Unmapping::Lazy : guest::Unmapping::Strict;
  options.flush_queue_entries = static_cast<std::uint32_t>(setting_.dma_api.flush_queue_entries);
  options.flush_timeout = setting_.dma_api.flush_timeout;
  for (const AddressRange& fixed : environment_.family.fixed_inputs)
    options.iova.reserved.push_back({fixed.first >> kPageLg2, (fixed.last - fixed.first + 1) >> kPageLg2});
  return options;
}

// The kernel's own pages lie above those that recorded traces name. False: nothing is left for them.
bool Guest::claim_pages(const std::vector<GuestDevice>& devices) {
  Gfn first(Gpa(kFirmware.value()));
  for (const GuestDevice& device : devices)
    if (device.trace != nullptr) first = std::max(first, Gfn(Gpa(device.trace->highest_physical)) + 1);
  const std::uint64_t end = setting_.memory.value() >> kPageLg2;
  if (first.value() >= end) return false;
  pages_ = std::make_unique<guest::GuestPages>(first, end - first.value());
  for (const AddressRange& fixed : environment_.family.fixed_inputs)
    pages_->exclude(Gfn(Gpa(fixed.first)), (fixed.last - fixed.first + 1) >> kPageLg2);
  return true;
}

Task<std::string> Guest::boot(std::vector<GuestDevice> devices) {
  const std::string who = "domain '" + setting_.name + "': ";
  if (!claim_pages(devices))
    co_return who + "its memory ends before what the trace uses, or leaves nothing for the kernel";
  strategy_ =
      strategy_of(strategy_setting_.kind)
          .make({environment_.xen, environment_.hypercall, domain_, *pages_, environment_.family, environment_.host,
                 strategy_options(strategy_setting_), environment_.warden, environment_.hypercall_v3});
  const xen::Errno started = co_await strategy_->start(*cpus_.front());
  if (started != xen::Errno::Ok)
    co_return who + "cannot start " + strategy_setting_.label + " (error " + std::to_string(static_cast<int>(started)) +
        ")";
  for (const GuestDevice& device : devices) {
    const std::string problem = co_await take(device);
    if (!problem.empty()) co_return "device '" + device.setting.name + "': " + problem;
  }
  co_return std::string();
}

Task<guest::DmaApi*> Guest::open_api(Vcpu& cpu, const scenario::DeviceSetting& device) {
  const auto sibling = std::ranges::find_if(apis_, [&](const OpenApi& other) {
    return device.shared_id && other.first->shared_id == device.shared_id &&
           other.first->iommu_index == device.iommu_index;
  });
  if (sibling != apis_.end()) {
    environment_.warden.add_sibling(device.bdf, sibling->first->bdf);
    co_return sibling->api.get();
  }
  guest::DmaSpace* space = co_await strategy_->attach(cpu, device.bdf);
  if (space == nullptr) co_return nullptr;
  environment_.warden.add_device(device.bdf, domain_.p2m, strategy_->addressing(device.bdf));
  OpenApi opened{.first = &device, .cpu = &cpu};
  opened.api =
      std::make_unique<guest::DmaApi>(device.bdf, *space, environment_.warden, dma_api_options(),
                                      static_cast<unsigned>(environment_.vcpus.vcpus().size()), &environment_.vcpus);
  apis_.push_back(std::move(opened));
  co_return apis_.back().api.get();
}

Task<std::string> Guest::take(GuestDevice device) {
  Vcpu& cpu = *cpus_[device.setting.vcpu];
  guest::DmaApi* api = co_await open_api(cpu, device.setting);
  if (api == nullptr) co_return "no DMA address space: out of memory, contexts or domain tags";
  devices_.push_back(make_device_run(device.setting, {.calendar = environment_.calendar,
                                                      .vcpus = environment_.vcpus,
                                                      .cpu = cpu,
                                                      .api = *api,
                                                      .pages = *pages_,
                                                      .dma = device.dma,
                                                      .pcie = device.pcie,
                                                      .meter = environment_.meter,
                                                      .seed = environment_.seed,
                                                      .doorbell_latency = environment_.doorbell_latency,
                                                      .trace = device.trace}));
  co_return co_await devices_.back()->prepare();
}

void Guest::start() {
  for (OpenApi& opened : apis_) {
    if (!opened.api->is_lazy()) continue;
    opened.flush_timer = opened.api->run_flush_timer(*opened.cpu);
    opened.flush_timer.start();
  }
  for (const auto& device : devices_) device->start();
}

bool Guest::is_over() const {
  return std::ranges::all_of(devices_, [](const auto& device) { return device->is_over(); });
}

void Guest::reset_statistics() {
  for (const auto& device : devices_) device->reset_statistics();
  for (const OpenApi& opened : apis_) opened.api->reset_counters();
  for (Vcpu* cpu : cpus_) cpu->reset_statistics();
  strategy_->reset_counters();
}

void Guest::add_to(IoTotals& totals) const {
  for (const auto& device : devices_) device->add_to(totals);
}

Guest::DmaApiTotals Guest::dma_api() const {
  DmaApiTotals totals;
  for (const OpenApi& opened : apis_) {
    const guest::DmaApi::Counters& c = opened.api->counters();
    totals.maps += c.maps;
    totals.unmaps += c.unmaps;
    totals.flushes += c.flushes_by_full_queue + c.flushes_by_timer + c.flushes_by_reuse;
    totals.failures += c.failures;
    totals.flush_time.merge(c.flush_time);
  }
  return totals;
}

}  // namespace iommu
