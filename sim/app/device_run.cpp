// SPDX-License-Identifier: Apache-2.0
#include "sim/app/device_run.hpp"

#include <utility>
#include <vector>

#include "sim/app/platform_parameters.hpp"
#include "sim/base/check.hpp"
#include "sim/base/rng.hpp"
#include "sim/guest/nic_driver.hpp"
#include "sim/guest/trace_operations.hpp"
#include "sim/pcie/random_dma.hpp"
#include "sim/tlm/workload_driver.hpp"

namespace iommu {

namespace {

class NicRun final : public DeviceRun {
 public:
  NicRun(const scenario::DeviceSetting& setting, const DeviceEnvironment& e)
      : driver_(e.cpu, e.api, e.pages, nic_driver_setting(setting.workload.nic)),
        nic_(e.calendar, e.dma, e.vcpus, setting.bdf, nic_parameters(setting.workload.nic, e.doorbell_latency)) {
    driver_.connect(e.meter);
  }
  Task<std::string> prepare() override {
    const bool prepared = co_await driver_.prepare();
    if (!prepared)
      co_return "its rings and buffers do not fit into the guest's memory, or cannot be mapped (Xen's table pool is too small?)";
    queue_ = &nic_.add_queue(driver_.queue_setup());
    co_return std::string();
  }
  void start() override {
    nic_.start();
    task_ = driver_.run(*queue_);
    task_.start();
  }
  [[nodiscard]] bool is_over() const override { return driver_.is_done(); }
  void reset_statistics() override {
    driver_.reset_statistics();
    queue_->reset_statistics();
  }
  void add_to(IoTotals& totals) const override {
    const guest::NicDriverStatistics& s = driver_.statistics();
    totals.ios += s.packets + s.faulted;
    totals.failed += s.faulted;
    totals.payload_bytes += s.bytes;
    totals.latency.merge(s.latency);
  }

 private:
  guest::NicDriver driver_;
  RingNic nic_;
  NicQueue* queue_ = nullptr;
  Task<void> task_;
};

// The window is mapped once, in one scatterlist. Its pages are handed to the DMA API from the last to the first, so
// that no two are neighbours in guest memory and each keeps a page-table entry of its own.
class RandomDmaRun final : public DeviceRun {
 public:
  RandomDmaRun(const scenario::DeviceSetting& setting, const DeviceEnvironment& e) : setting_(setting), e_(e) {}

  Task<std::string> prepare() override {
    const scenario::RandomDmaWorkload& w = setting_.workload.random_dma;
    const auto memory = e_.pages.allocate(guest::order_for(w.window));
    if (!memory)
      co_return "the guest has no contiguous memory for a window of " + std::to_string(w.window.value()) + " bytes";
    const Permissions permissions = w.direction == scenario::DmaDirection::Read ? kReadOnly : kWriteOnly;
    const guest::DmaMapping mapped =
        co_await e_.api.map_scatterlist(e_.cpu, pieces(*memory), permissions, guest::DmaUse::Coherent);
    if (mapped.status != guest::DmaStatus::Ok) co_return "its window cannot be mapped (Xen's table pool is too small?)";
    traffic_.emplace(parameters(mapped.address));
    SIM_CHECK(e_.pcie != nullptr, "scenarios are checked: no device model emulates random DMA");
    driver_.emplace(e_.calendar, *e_.pcie, *traffic_, setting_.bdf,
                    WorkloadDriverParameters{.outstanding = static_cast<std::uint32_t>(w.outstanding)},
                    Rng(e_.seed, setting_.name + ".workload"));
    driver_->connect(e_.meter);
    co_return std::string();
  }
  void start() override { driver_->start(); }
  [[nodiscard]] bool is_over() const override { return driver_->is_done(); }
  void reset_statistics() override { driver_->measure_from_now(); }
  void add_to(IoTotals& totals) const override {
    const WorkloadResult& r = driver_->result();
    totals.ios += r.operations;
    totals.failed += r.faulted;
    totals.payload_bytes += r.bytes;
    totals.latency.merge(r.latency);
  }

 private:
  [[nodiscard]] std::vector<guest::ScatterEntry> pieces(Gpa memory) const {
    const scenario::RandomDmaWorkload& w = setting_.workload.random_dma;
    if (e_.api.is_identity() || e_.api.chooses_addresses()) return {guest::ScatterEntry{memory, w.window}};
    std::vector<guest::ScatterEntry> list;
    for (std::uint64_t offset = w.window.value(); offset > 0;) {
      offset -= w.page_size.value();
      list.push_back({memory + Bytes(offset), w.page_size});
    }
    return list;
  }
  [[nodiscard]] RandomDmaParameters parameters(Iova base) const {
    const scenario::RandomDmaWorkload& w = setting_.workload.random_dma;
    constexpr std::array kPatterns{DmaPattern::Random, DmaPattern::Sequential, DmaPattern::Strided};
    RandomDmaParameters p;
    p.base = base;
    p.window = w.window;
    p.access_size = w.access_size;
    p.stride = w.stride;
    p.access = w.direction == scenario::DmaDirection::Read ? Access::Read : Access::Write;
    p.stray = w.stray;
    p.pattern = kPatterns[static_cast<std::size_t>(w.pattern)];
    return p;
  }

  const scenario::DeviceSetting& setting_;
  DeviceEnvironment e_;
  std::optional<RandomDma> traffic_;
  std::optional<WorkloadDriver> driver_;
};

class TraceRun final : public DeviceRun {
 public:
  TraceRun(const scenario::DeviceSetting& setting, const DeviceEnvironment& e)
      : operations_(e.api, addresses_for(e.api)),
        player_(*e.trace, {.outstanding = static_cast<std::uint32_t>(setting.workload.trace.dmas_in_flight)},
                e.calendar, e.cpu, e.dma, e.vcpus, operations_) {
    player_.set_requester(setting.bdf);
    player_.connect(e.meter);
  }
  Task<std::string> prepare() override { co_return std::string(); }
  void start() override { player_.start(); }
  [[nodiscard]] bool is_over() const override { return player_.is_done(); }
  void reset_statistics() override { player_.reset_statistics(); }
  void add_to(IoTotals& totals) const override {
    const TracePlayerStatistics& s = player_.statistics();
    totals.ios += s.dmas + s.skipped_dmas;
    totals.failed += s.faulted + s.skipped_dmas;
    totals.payload_bytes += s.bytes;
    totals.latency.merge(s.dma_latency);
  }

 private:
  static guest::TraceAddresses addresses_for(const guest::DmaApi& api) {
    if (api.chooses_addresses()) return guest::TraceAddresses::OnePerSegment;
    return api.is_lazy() ? guest::TraceAddresses::Allocated : guest::TraceAddresses::Recorded;
  }
  guest::TraceOperations operations_;
  TracePlayer player_;
};

// Attached, and nothing else.
class IdleRun final : public DeviceRun {
 public:
  Task<std::string> prepare() override { co_return std::string(); }
  void start() override {}
  [[nodiscard]] bool is_over() const override { return true; }
  void reset_statistics() override {}
  void add_to(IoTotals&) const override {}
};

TraceDmaClass to_dma_class(scenario::TraceClass name) {
  constexpr std::array kClasses{
      TraceDmaClass::SubmissionQueue, TraceDmaClass::CompletionQueue, TraceDmaClass::Data, TraceDmaClass::PrpList,
      TraceDmaClass::ShadowDoorbell,  TraceDmaClass::ReceiveBuffer,   TraceDmaClass::Other};
  return kClasses[static_cast<std::size_t>(name)];
}

}  // namespace

std::unique_ptr<DeviceRun> make_device_run(const scenario::DeviceSetting& setting,
                                           const DeviceEnvironment& environment) {
  switch (setting.workload.kind) {
    case scenario::WorkloadKind::Nic:
      return std::make_unique<NicRun>(setting, environment);
    case scenario::WorkloadKind::RandomDma:
      return std::make_unique<RandomDmaRun>(setting, environment);
    case scenario::WorkloadKind::Idle:
      return std::make_unique<IdleRun>();
    case scenario::WorkloadKind::Trace:
      break;
  }
  return std::make_unique<TraceRun>(setting, environment);
}

Trace load_trace(const scenario::TraceWorkload& workload) {
  TraceOptions options;
  options.drop.clear();
  for (const scenario::TraceClass name : workload.drop) options.drop.push_back(to_dma_class(name));
  return read_trace(workload.resolved, options);
}

}  // namespace iommu
