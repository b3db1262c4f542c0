// SPDX-License-Identifier: Apache-2.0
// A whole machine without time, for tests of strategies: a guest's DMA API on a strategy, Xen, real tables in real
// memory, real commands in real rings, and a unit that remembers everything until it is told to forget. So a flush that
// is missing shows at once, and one that is too narrow as well.
//
//   Machine m(family, strategy);
//   auto& nic = m.attach(kNic);
//   const auto mapped = m.map(nic, Gpa(0x5000), 8_KiB);
//   EXPECT_EQ(m.dma(kNic, mapped.address), m.host_address(Gpa(0x5000)));
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "models/families.hpp"
#include "sim/base/immediate_cpu.hpp"
#include "sim/guest/dma_api.hpp"
#include "sim/strategy/strategy.hpp"
#include "sim/strategy/warden.hpp"

namespace iommu::strategy::test {

inline constexpr RequesterId kNic = RequesterId::bdf(3, 0, 0);
inline constexpr RequesterId kDisk = RequesterId::bdf(4, 0, 1);

// A core with caches of unbounded size: contexts, final translations, tables on the way, stage-2 leaves. Commands are
// executed as soon as their tail is written.
class CachingUnit final : public MmioPort, private WalkCachePort {
 public:
  CachingUnit(const FamilyDescriptor& family, const UnitFeatures& features, HostMemory& memory)
      : core_(family.make_core(features)), memory_(memory), port_(memory) {}

  Task<void> write(CpuPort& cpu, std::uint64_t offset, unsigned bytes, std::uint64_t value) override {
    co_await cpu.charge(CostId::MmioWrite);
    const RegisterEffect effect = core_->mmio_write(offset, bytes, value);
    if (effect.configuration_changed) forget_everything();
    for (const InvalidationScope& scope : effect.scopes) apply(scope);
    if (!effect.scopes.empty()) core_->invalidation_done();
    execute();
    for (const std::uint32_t queue : effect.further_queues) execute_further(*core_->further_queues()[queue]);
  }
  Task<std::uint64_t> read(CpuPort& cpu, std::uint64_t offset, unsigned bytes) override {
    co_await cpu.charge(CostId::MmioRead);
    co_return core_->mmio_read(offset, bytes);
  }

  // With caches, as a device meets it.
  TranslationResponse translate(const TranslationRequest& request) {
    if (!core_->is_translating()) return core_->translate(request, port_).run();
    if (auto answer = core_->answer_without_tables(request)) return *answer;
    const auto known = contexts_.find(request.requester);
    Context context;
    if (known != contexts_.end()) {
      context = known->second;
    } else {
      const ContextResult found = core_->find_context(request, port_).run();
      if (const auto* fault = std::get_if<Fault>(&found)) return *fault;
      context = contexts_[request.requester] = std::get<Context>(found);
    }
    const std::uint64_t at = request.address.value();
    for (const Final& final : finals_) {
      if (!(final.tag == context.stage1_tag()) || !final.range.overlaps({at, at})) continue;
      if (!final.translation.allowed.allow(request.access)) continue;
      Translation hit = final.translation;
      hit.address = hit.address + Bytes(at - final.range.first);
      return hit;
    }
    const TranslationResponse response = core_->walk(request, context, port_, {.caches = this}).run();
    const auto* translation = std::get_if<Translation>(&response);
    if (translation != nullptr && !translation->is_bypass) {
      const std::uint64_t inside = (1ULL << translation->page_lg2) - 1;
      Final final{context.stage1_tag(), {at & ~inside, at | inside}, *translation};
      final.translation.address = translation->address - Bytes(at & inside);
      finals_.push_back(final);
    }
    return response;
  }
  // By the tables as they are now.
  TranslationResponse translate_uncached(const TranslationRequest& request) {
    return core_->translate(request, port_).run();
  }
  // The device tables alone.
  ContextResult find_context(RequesterId device) {
    TranslationRequest request;
    request.requester = device;
    return core_->find_context(request, port_).run();
  }
  void forget_everything() {
    contexts_.clear();
    finals_.clear();
    tables_.clear();
    leaves_.clear();
  }

  std::vector<InvalidationScope> applied;
  std::uint64_t commands = 0;  // without fences
  std::uint64_t fences = 0;
  std::uint64_t further_fences = 0;   // of queues beside the unit's first one
  std::uint64_t refused_further = 0;  // commands of those
  [[nodiscard]] std::uint64_t reads(AccessKind kind) const { return port_.accesses(kind); }

 private:
  struct Final {
    WalkTag tag;
    AddressRange range;
    Translation translation;  // address: of the first byte of the range
  };
  struct KnownTable {
    Stage stage = Stage::Stage1;
    WalkTag tag;
    AddressRange range;
    CachedTable table;
  };
  struct Leaf {
    WalkTag tag;
    AddressRange range;
    CachedStage2Leaf leaf;
  };
  static AddressRange block(std::uint64_t address, unsigned lg2) {
    const std::uint64_t inside = (1ULL << lg2) - 1;
    return {address & ~inside, address | inside};
  }

  std::optional<CachedTable> deepest(Stage stage, const WalkTag& tag, std::uint64_t input) override {
    const KnownTable* best = nullptr;
    for (const KnownTable& known : tables_)
      if (known.stage == stage && known.tag == tag && known.range.overlaps({input, input}) &&
          (best == nullptr || known.table.level < best->table.level))
        best = &known;
    if (best == nullptr) return std::nullopt;
    return best->table;
  }
  void fill(Stage stage, const WalkTag& tag, std::uint64_t input, const CachedTable& table) override {
    tables_.push_back({stage, tag, block(input, kPageLg2 + 9U * (table.level + 1U)), table});
  }
  std::optional<CachedStage2Leaf> find_stage2_leaf(const WalkTag& tag, Gpa address) override {
    for (const Leaf& known : leaves_)
      if (known.tag == tag && known.range.overlaps({address.value(), address.value()})) return known.leaf;
    return std::nullopt;
  }
  void fill_stage2_leaf(const WalkTag& tag, Gpa address, const CachedStage2Leaf& leaf) override {
    leaves_.push_back({tag, block(address.value(), leaf.page_lg2), leaf});
  }

  void execute() {
    while (core_->has_command()) {
      const auto command = core_->fetch_command(port_).run();
      EXPECT_TRUE(command) << "Xen wrote a command that the unit refuses";
      if (!command) return;
      const CommandEffect effect = core_->apply(*command);
      EXPECT_FALSE(effect.error) << "Xen wrote a malformed command";
      for (const InvalidationScope& scope : effect.scopes) apply(scope);
      core_->completed();
      if (!effect.fence) ++commands;
      if (!effect.fence || !effect.fence->status) continue;
      ++fences;
      const auto& status = *effect.fence->status;
      if (status.bytes == sizeof(std::uint64_t))
        memory_.write64(status.address, status.data);
      else
        memory_.write32(status.address, static_cast<std::uint32_t>(status.data));
    }
  }
  // Anybody's: what it refuses is between it and its owner.
  void execute_further(CommandQueue& queue) {
    while (queue.has_command()) {
      const auto command = queue.fetch_command(port_).run();
      if (!command) {
        ++refused_further;
        return;
      }
      const CommandEffect effect = queue.apply(*command);
      for (const InvalidationScope& scope : effect.scopes) apply(scope);
      EXPECT_FALSE(effect.fence && effect.fence->status) << "memory that the queue's owner names is not the machine's";
      if (effect.fence) ++further_fences;
      queue.completed();
    }
  }
  void apply(const InvalidationScope& scope) {
    applied.push_back(scope);
    if (scope.kind == InvalidationKind::Iotlb) {
      const auto covers = [&](const WalkTag& tag, AddressRange range, bool is_leaf) {
        return matches(scope, {.domain = tag.domain, .asid = tag.asid, .range = range, .is_leaf = is_leaf});
      };
      std::erase_if(finals_, [&](const Final& f) { return covers(f.tag, f.range, true); });
      std::erase_if(tables_, [&](const KnownTable& t) { return covers(t.tag, t.range, false); });
      std::erase_if(leaves_, [&](const Leaf& l) { return covers(l.tag, l.range, true); });
    } else if (scope.kind == InvalidationKind::Context || scope.kind == InvalidationKind::ProcessContext) {
      std::erase_if(contexts_, [&](const auto& entry) {
        const Context& context = entry.second;
        return matches(scope, {.domain = context.domain,
                               .asid = context.process ? context.process : context.asid,
                               .requester = entry.first});
      });
    }
  }

  std::unique_ptr<IommuCore> core_;
  HostMemory& memory_;
  ImmediateMemoryPort port_;
  std::map<RequesterId, Context> contexts_;
  std::vector<Final> finals_;
  std::vector<KnownTable> tables_;
  std::vector<Leaf> leaves_;
};

// A strategy, in one of its variants.
struct Way {
  const StrategyDescriptor* descriptor = nullptr;
  std::optional<xen::ShadowSync> shadow{};
  std::optional<VirtioMapping> mapping{};
  std::string_view variant{};

  Way(const StrategyDescriptor& strategy) : descriptor(&strategy) {}  // NOLINT(google-explicit-constructor)
  Way(const StrategyDescriptor& strategy, xen::ShadowSync how, std::string_view name)
      : descriptor(&strategy), shadow(how), variant(name) {}
  Way(const StrategyDescriptor& strategy, VirtioMapping what, std::string_view name)
      : descriptor(&strategy), mapping(what), variant(name) {}
  [[nodiscard]] bool binds_tables() const { return mapping == VirtioMapping::Tables; }
  // As far as it says more than `options`.
  [[nodiscard]] StrategyOptions options(StrategyOptions options) const {
    if (shadow) options.shadow = shadow;
    if (mapping) options.mapping = *mapping;
    return options;
  }
  [[nodiscard]] bool is_write_protected() const { return shadow == xen::ShadowSync::WriteProtect; }
};
// Caching mode on every family: what refuses it is the machine, not the mechanism.
inline const Way kShadowTold{kEmulatedViommu, xen::ShadowSync::CachingMode, ""};
inline const Way kShadowTrapped{kEmulatedViommu, xen::ShadowSync::WriteProtect, "_write_protect"};
inline const Way kVirtioTables{kVirtioIommu, VirtioMapping::Tables, "_tables"};

struct MachineOptions {
  StrategyOptions strategy{};
  guest::Unmapping unmapping = guest::Unmapping::Strict;
  std::uint32_t flush_queue_entries = 250;
  xen::Backing backing = xen::Backing::Fragmented;  // guest frames and machine frames differ everywhere
  unsigned page_lg2 = kPageLg2;
  UnitFeatures host{};
  std::uint64_t kernel_pages = 2048;
  xen::PageOrder page_order = xen::PageOrder::Single;  // pv_iommu
  xen::BusRange buses{};                               // pv_iommu
};

// Puts a faulty or a recording address space before the strategy's.
using WrapSpace = std::function<std::unique_ptr<guest::DmaSpace>(guest::DmaSpace& inner)>;

class Machine {
 public:
  static constexpr Bytes kGuestMemory = 16_MiB;
  static constexpr Bytes kPool = 1_MiB;     // of bounce buffers, at most
  static constexpr Gfn kKernelPages{2048};  // the kernel's own from here on; below: buffers

  struct Device {
    RequesterId requester;
    guest::DmaSpace* space = nullptr;
    std::unique_ptr<guest::DmaSpace> wrapper;
    std::unique_ptr<guest::DmaApi> api;
  };

  Machine(const FamilyDescriptor& family, const Way& way, const MachineOptions& options = {})
      : options_(options),
        family_(family),
        host_driver_(way.descriptor->host_driver(options.host, way.options(options.strategy))),
        copies_(way.descriptor == &kSwiotlb),
        pages(kKernelPages, options.kernel_pages),
        unit(family, host_driver_.features, host),
        xen(host, frames_, {.seed = 5}),
        hypercall(xen, offered(options)),
        hypercall_v3(xen) {
    xen.add_unit({.name = "unit", .family = &family, .driver = host_driver_}, unit);
    EXPECT_EQ(xen.bring_up(cpu).run(), xen::Errno::Ok);
    const bool is_v3 = options.strategy.rfc_version == RfcVersion::V3;
    domain = xen.create_domain({.name = "guest",
                                .memory = kGuestMemory,
                                .privilege = is_v3 ? xen::Privilege::HardwareDomain : xen::Privilege::Guest,
                                .backing = options.backing,
                                .page_lg2 = options.page_lg2,
                                .default_context = way.descriptor->default_context});
    if (is_v3) EXPECT_EQ(hypercall_v3.set_up(*domain, 4, 8), xen::Errno::Ok);
    // Another guest, so that there is somebody else's memory to reach by mistake.
    other = xen.create_domain({.name = "other", .memory = 1_MiB, .default_context = way.descriptor->default_context});
    for (const RequesterId device : {kNic, kDisk})
      EXPECT_EQ(xen.assign_device(cpu, *domain, {.requester = device}).run(), xen::Errno::Ok);
    options_.strategy.pool_size = std::min(options_.strategy.pool_size, kPool);
    options_.strategy = way.options(options_.strategy);
    strategy_ = way.descriptor->make(
        {xen, hypercall, *domain, pages, family, options.host, options_.strategy, warden, &hypercall_v3});
  }
  ~Machine() { EXPECT_FALSE(cpu.would_block()) << "somebody waits for a lock or a fence that never comes"; }
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  xen::Errno start() {
    started_ = true;
    return strategy_->start(cpu).run();
  }
  // Starts the kernel first if that has not happened.
  Device& attach(RequesterId requester, const WrapSpace& wrap = {}) {
    if (!started_) EXPECT_EQ(start(), xen::Errno::Ok);
    Device& device = devices_[requester];
    device.requester = requester;
    device.space = strategy_->attach(cpu, requester).run();
    EXPECT_NE(device.space, nullptr);
    warden.add_device(requester, domain->p2m, strategy_->addressing(requester));
    if (wrap) device.wrapper = wrap(*device.space);
    if (device.wrapper) device.space = device.wrapper.get();
    guest::DmaApiOptions api{.unmapping = options_.unmapping, .flush_queue_entries = options_.flush_queue_entries};
    for (const AddressRange& fixed : family_.fixed_inputs)
      api.iova.reserved.push_back({fixed.first >> kPageLg2, (fixed.last - fixed.first + 1) >> kPageLg2});
    device.api = std::make_unique<guest::DmaApi>(requester, *device.space, warden, api, 1);
    return device;
  }

  guest::DmaMapping map(Device& device, Gpa address, Bytes length = 4_KiB,
                        guest::DmaDirection direction = guest::DmaDirection::Bidirectional) {
    return device.api->map(cpu, address, length, direction).run();
  }
  guest::DmaStatus unmap(Device& device, Iova address, Bytes length = 4_KiB) {
    return device.api->unmap(cpu, address, length).run();
  }
  guest::DmaStatus map_at(Device& device, std::uint64_t iova, Gpa address, Bytes length) {
    return device.api->map_at(cpu, {guest::MapSegment{Iova(iova), address, length}}).run();
  }
  guest::DmaStatus unmap_at(Device& device, std::uint64_t iova, Bytes length) {
    return device.api->unmap_at(cpu, {Iova(iova), length}).run();
  }

  // One access of a device, shown to the warden if it goes through. nullopt: it faults.
  std::optional<Hpa> dma(RequesterId device, Iova address, Access access = Access::Read) {
    const TranslationResponse response = unit.translate(request(device, address, access));
    const auto* translation = std::get_if<Translation>(&response);
    if (translation == nullptr) return std::nullopt;
    warden.on_dma(cpu.now(), device, std::nullopt, address, translation->address, 4_B, access);
    return translation->address;
  }
  // What the tables say now, whatever caches hold.
  std::optional<Hpa> peek(RequesterId device, Iova address, Access access = Access::Read) {
    const TranslationResponse response = unit.translate_uncached(request(device, address, access));
    const auto* translation = std::get_if<Translation>(&response);
    return translation == nullptr ? std::nullopt : std::optional(translation->address);
  }
  [[nodiscard]] std::optional<Hpa> host_address(Gpa address) const { return domain->memory.translate(address); }
  // Where the device finds a byte of a buffer: in the buffer, or in the bounce buffer that it uses instead.
  [[nodiscard]] std::optional<Hpa> target(Iova address, Gpa buffer) const {
    return host_address(copies_ ? Gpa(address.value()) : buffer);
  }
  // Whether machine memory belongs to the guest.
  [[nodiscard]] bool is_guests(Hpa address) const {
    for (const xen::P2mExtent& extent : domain->p2m.extents())
      if (Mfn(address) >= extent.machine && Mfn(address) < extent.machine + extent.pages) return true;
    return false;
  }
  void pass(Picoseconds time) { cpu.sleep_until(cpu.now() + time).await_ready(); }

  [[nodiscard]] DmaStrategy& strategy() { return *strategy_; }
  [[nodiscard]] const FamilyDescriptor& family() const { return family_; }
  [[nodiscard]] const DriverOptions& host_driver() const { return host_driver_; }

 private:
  static xen::IommuOpOptions offered(const MachineOptions& options) {
    xen::IommuOpOptions op{.page_order = options.page_order, .buses = options.buses};
    if (options.strategy.all_or_nothing) op.error_report = xen::ErrorReport::Address;
    if (options.strategy.deferred_flush) op.deferred = xen::DeferredFlush::Offered;
    if (options.strategy.batch > 1) op.batching = xen::Batching::Offered;
    if (options.strategy.scatter) op.scattered = xen::ScatteredMap::Offered;
    return op;
  }
  static TranslationRequest request(RequesterId device, Iova address, Access access) {
    return {.requester = device, .pasid = {}, .address = address, .access = access};
  }
  MachineOptions options_;
  const FamilyDescriptor& family_;
  DriverOptions host_driver_;
  bool copies_;
  FrameAllocator frames_{Mfn(0x1000), 0x10000};
  bool started_ = false;

 public:
  HostMemory host{4_GiB};
  ImmediateCpu cpu{CpuId(0), [this](Hpa a) { return host.read32(a); }};
  guest::GuestPages pages;
  CachingUnit unit;
  xen::Hypervisor xen;
  xen::IommuOp hypercall;
  xen::IommuOpV3 hypercall_v3;
  xen::Domain* domain = nullptr;
  xen::Domain* other = nullptr;
  Warden warden;

 private:
  std::unique_ptr<DmaStrategy> strategy_;
  std::map<RequesterId, Device> devices_;
};

// Watches a page while software writes: at every write, what the tables say must be one of two things or nothing.
class StateWatch {
 public:
  StateWatch(Machine& machine, RequesterId device) : machine_(machine), device_(device) {
    machine.host.on_write(
        [](void* self, Hpa) {
          auto* watch = static_cast<StateWatch*>(self);
          ++watch->states_;
          watch->check();
        },
        this);
  }
  ~StateWatch() {
    machine_.host.on_write(nullptr, nullptr);
    check();
  }
  StateWatch(const StateWatch&) = delete;
  StateWatch& operator=(const StateWatch&) = delete;

  // `may_fault`: the page may be nothing in between.
  enum class Fault : std::uint8_t { Allowed, Never };
  void expect(Iova address, std::vector<std::optional<Hpa>> allowed, Fault may_fault = Fault::Allowed) {
    pages_.push_back({address, std::move(allowed), may_fault});
    check();
  }
  [[nodiscard]] std::uint64_t states() const { return states_; }

 private:
  struct Page {
    Iova address;
    std::vector<std::optional<Hpa>> allowed;
    Fault may_fault = Fault::Allowed;
  };
  void check() {
    for (const Page& page : pages_) {
      const auto now = machine_.peek(device_, page.address);
      if (!now && page.may_fault == Fault::Allowed) continue;
      if (std::find(page.allowed.begin(), page.allowed.end(), now) != page.allowed.end()) continue;
      ADD_FAILURE() << "after " << states_ << " writes, page " << page.address.value() << " is "
                    << (now ? std::to_string(now->value()) : "a fault");
    }
  }
  Machine& machine_;
  RequesterId device_;
  std::vector<Page> pages_;
  std::uint64_t states_ = 0;
};

// Suites over strategies and families.
using Pair = std::tuple<Way, const FamilyDescriptor*>;
inline std::string pair_name(const testing::TestParamInfo<Pair>& info) {
  const Way& way = std::get<0>(info.param);
  return std::string(way.descriptor->name) + std::string(way.variant) + "_" +
         std::string(std::get<1>(info.param)->name);
}
class OnPairs : public testing::TestWithParam<Pair> {
 protected:
  [[nodiscard]] static const Way& strategy() { return std::get<0>(GetParam()); }
  [[nodiscard]] static const FamilyDescriptor& family() { return *std::get<1>(GetParam()); }
  [[nodiscard]] static bool is(const StrategyDescriptor& which) { return strategy().descriptor == &which; }
  [[nodiscard]] static bool is_write_protected() { return strategy().is_write_protected(); }
  [[nodiscard]] static bool binds_tables() { return strategy().binds_tables(); }
  // Guest frames and machine frames differ; where a buffer's machine frames must follow one another, they do.
  static MachineOptions plain() {
    MachineOptions options;
    if (is(kGrants)) options.backing = xen::Backing::Contiguous;
    return options;
  }
  // Deferred flushing on, where that is an option.
  static MachineOptions lazy(std::uint32_t entries = 250) {
    return {.strategy = {.deferred_flush = true}, .unmapping = guest::Unmapping::Lazy, .flush_queue_entries = entries};
  }
};
// Those that run on every family.
inline const std::vector<Way> kAllWays{Way(kPassthrough), Way(kSwiotlb),     Way(kGrants),
                                       Way(kPvIommu),     Way(kNested),      kShadowTold,
                                       kShadowTrapped,    Way(kVirtioIommu), kVirtioTables};
inline const std::array<Way, 6> kTranslating{Way(kPvIommu),  Way(kNested),      kShadowTold,
                                             kShadowTrapped, Way(kVirtioIommu), kVirtioTables};
// Whose map fails visibly, and whose unmap takes any part of what is mapped.
inline const std::array<Way, 5> kWithTables{Way(kPvIommu), Way(kNested), kShadowTold, kShadowTrapped, kVirtioTables};
inline const std::array<Way, 3> kVirtualUnits{Way(kNested), kShadowTold, kShadowTrapped};
template <class List>
std::vector<Way> ways(const List& list) {
  std::vector<Way> all;
  for (const auto& each : list) {
    if constexpr (std::is_pointer_v<std::decay_t<decltype(each)>>)
      all.emplace_back(*each);
    else
      all.push_back(each);
  }
  return all;
}

}  // namespace iommu::strategy::test

#define ON_STRATEGIES(suite, strategies)                                                           \
  INSTANTIATE_TEST_SUITE_P(                                                                        \
      All, suite,                                                                                  \
      testing::Combine(testing::ValuesIn(::iommu::strategy::test::ways(strategies)),               \
                       testing::ValuesIn(::iommu::families().begin(), ::iommu::families().end())), \
      ::iommu::strategy::test::pair_name)
