// SPDX-License-Identifier: Apache-2.0
// A small machine for tests of the hypervisor: real tables in real memory, real commands in a real ring, and a family's
// core that executes them. The unit caches what it translates, as hardware does, so that a flush that was forgotten
// shows as a stale translation.
//
//   Machine m(family);
//   const auto context = m.alloc(m.guest);
//   m.map(m.guest, context, Dfn(5), Gfn(7), 1);
//   EXPECT_EQ(m.reach(kNic, Dfn(5)), m.frame(m.guest, Gfn(7)));
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "models/families.hpp"
#include "sim/base/immediate_cpu.hpp"
#include "sim/base/rng.hpp"
#include "sim/memory/frame_allocator.hpp"
#include "sim/memory/host_memory.hpp"
#include "sim/translation/queue_client.hpp"
#include "sim/xen/hypervisor.hpp"
#include "sim/xen/iommu_op.hpp"

namespace iommu::xen {

inline constexpr RequesterId kNic = RequesterId::bdf(3, 0, 0);
inline constexpr RequesterId kDisk = RequesterId::bdf(4, 0, 0);
inline constexpr RequesterId kAlien = RequesterId::bdf(5, 0, 0);  // a device of another guest
inline constexpr std::uint64_t kGuestPages = 2048;

// A family's core behind a register port, with caches. Commands are executed when their tail is written, or when the
// test says so.
class CachingUnit final : public MmioPort {
 public:
  enum class Execution : std::uint8_t { AtOnce, OnRequest };

  CachingUnit(const FamilyDescriptor& family, const UnitFeatures& features, HostMemory& memory)
      : core_(family.make_core(features)), memory_(memory), port_(memory) {}

  Task<void> write(CpuPort& cpu, std::uint64_t offset, unsigned bytes, std::uint64_t value) override {
    co_await cpu.charge(CostId::MmioWrite);
    const RegisterEffect effect = core_->mmio_write(offset, bytes, value);
    if (effect.configuration_changed) {
      contexts_.clear();
      iotlb_.clear();
    }
    for (const InvalidationScope& scope : effect.scopes) apply(scope);
    if (!effect.scopes.empty()) core_->invalidation_done();
    if (execution == Execution::AtOnce) execute();
  }
  Task<std::uint64_t> read(CpuPort& cpu, std::uint64_t offset, unsigned bytes) override {
    co_await cpu.charge(CostId::MmioRead);
    co_return core_->mmio_read(offset, bytes);
  }

  void execute() {
    while (core_->has_command()) {
      const auto command = core_->fetch_command(port_).run();
      EXPECT_TRUE(command) << "the hypervisor wrote a command that the unit refuses";
      if (!command) return;
      const CommandEffect effect = core_->apply(*command);
      EXPECT_FALSE(effect.error) << "the hypervisor wrote a malformed command";
      if (before_command) before_command(effect);
      for (const InvalidationScope& scope : effect.scopes) apply(scope);
      core_->completed();
      if (!effect.fence || !effect.fence->status) continue;
      ++fences;
      const auto& status = *effect.fence->status;
      if (status.bytes == sizeof(std::uint64_t))
        memory_.write64(status.address, status.data);
      else
        memory_.write32(status.address, static_cast<std::uint32_t>(status.data));
    }
  }

  // What a device's access meets: caches first.
  TranslationResponse translate(TranslationRequest request) {
    if (!core_->is_translating()) return core_->translate(request, port_).run();
    if (auto answer = core_->answer_without_tables(request)) return *answer;
    const ContextResult found = context_of(request);
    if (const auto* fault = std::get_if<Fault>(&found)) return *fault;
    const Context& context = std::get<Context>(found);
    for (const Entry& entry : iotlb_) {
      const bool mine = entry.tags.domain == context.domain && entry.tags.asid == context.asid;
      const std::uint64_t at = request.address.value();
      if (!mine || request.type != AddressType::Untranslated || !entry.tags.range.overlaps({at, at})) continue;
      if (!entry.translation.allowed.allow(request.access)) continue;
      Translation hit = entry.translation;
      hit.address = Hpa(hit.address.value() + (at - entry.tags.range.first));
      return hit;
    }
    TranslationResponse response = core_->walk(request, context, port_, {}).run();
    if (const auto* translation = std::get_if<Translation>(&response)) cache(request, context, *translation);
    return response;
  }
  // A device with a translation cache: asks once, then uses what it was told until told otherwise.
  std::optional<Hpa> device_cached(RequesterId device, Iova address) {
    for (const DeviceEntry& entry : device_tlb_)
      if (entry.device == device && entry.page == Dfn(address)) return entry.host;
    const TranslationResponse response =
        translate({.requester = device, .pasid = {}, .address = address, .type = AddressType::TranslationRequest});
    const auto* translation = std::get_if<Translation>(&response);
    if (translation == nullptr || translation->allowed.none()) return std::nullopt;
    device_tlb_.push_back({device, Dfn(address), translation->address});
    return translation->address;
  }

  Execution execution = Execution::AtOnce;
  std::function<void(const CommandEffect&)> before_command;
  std::vector<InvalidationScope> applied;
  std::uint64_t fences = 0;
  [[nodiscard]] std::uint64_t count(InvalidationKind kind) const {
    return static_cast<std::uint64_t>(
        std::count_if(applied.begin(), applied.end(), [kind](const auto& scope) { return scope.kind == kind; }));
  }
  void forget_history() {
    applied.clear();
    fences = 0;
  }
  IommuCore& core() { return *core_; }

 private:
  struct Entry {
    CacheTags tags;
    Translation translation;  // address: of the first byte of the range
  };
  struct ContextEntry {
    RequesterId device;
    Context context;
  };
  struct DeviceEntry {
    RequesterId device;
    Dfn page;
    Hpa host;
  };

  ContextResult context_of(const TranslationRequest& request) {
    for (const ContextEntry& entry : contexts_)
      if (entry.device == request.requester && request.type == AddressType::Untranslated) return entry.context;
    const ContextResult found = core_->find_context(request, port_).run();
    const auto* context = std::get_if<Context>(&found);
    if (context != nullptr && request.type == AddressType::Untranslated)
      contexts_.push_back({request.requester, *context});
    return found;
  }
  void cache(const TranslationRequest& request, const Context& context, const Translation& translation) {
    if (translation.is_bypass || request.type != AddressType::Untranslated) return;
    const std::uint64_t size = 1ULL << translation.page_lg2;
    const std::uint64_t first = request.address.aligned_down(translation.page_lg2).value();
    Entry entry{{.domain = context.domain, .asid = context.asid, .range = {first, first + (size - 1)}}, translation};
    entry.translation.address = translation.address.aligned_down(translation.page_lg2);
    iotlb_.push_back(entry);
  }
  void apply(const InvalidationScope& scope) {
    applied.push_back(scope);
    switch (scope.kind) {
      case InvalidationKind::Context:
      case InvalidationKind::ProcessContext:
        std::erase_if(contexts_, [&](const ContextEntry& e) {
          return matches(scope, {.domain = e.context.domain, .asid = e.context.process, .requester = e.device});
        });
        return;
      case InvalidationKind::Iotlb:
        std::erase_if(iotlb_, [&](const Entry& e) { return matches(scope, e.tags); });
        return;
      case InvalidationKind::DeviceTlb:
        std::erase_if(device_tlb_, [&](const DeviceEntry& e) {
          const std::uint64_t first = e.page.address().value();
          return matches(scope, {.domain = scope.domain.value_or(DomainTag(0)),
                                 .asid = scope.asid,
                                 .requester = e.device,
                                 .range = {first, first + kPageSize.value() - 1}});
        });
        return;
      case InvalidationKind::InterruptEntry:
        return;
    }
  }

  std::unique_ptr<IommuCore> core_;
  HostMemory& memory_;
  ImmediateMemoryPort port_;
  std::vector<Entry> iotlb_;
  std::vector<ContextEntry> contexts_;
  std::vector<DeviceEntry> device_tlb_;
};

struct MachineOptions {
  UnitFeatures features{};
  bool stage1 = false;
  std::size_t units = 1;
  HypervisorOptions xen{};
  DeferredFlush deferred = DeferredFlush::Unavailable;
  IommuOpOptions op{};                     // its `deferred` is the one above
  std::uint64_t host_frames = 1ULL << 19;  // 2 GiB
  unsigned guest_page_lg2 = kPageLg2;
  std::uint64_t guest_pages = kGuestPages;
  DefaultContext default_context = DefaultContext::Identity;
};

// Host, one unit or several, Dom0, a guest with a NIC and a disk, and another guest with a device of its own.
class Machine {
 public:
  explicit Machine(const FamilyDescriptor& family, const MachineOptions& options = {})
      : xen(host, frames_of(options), options.xen), op(xen, op_options(options)), family_(family) {
    for (std::size_t i = 0; i < options.units; ++i) {
      units.push_back(std::make_unique<CachingUnit>(family, options.features, host));
      const DriverOptions driver{.features = options.features, .stage1 = options.stage1};
      xen.add_unit({.name = "unit" + std::to_string(i), .family = &family, .driver = driver}, *units.back());
    }
    EXPECT_EQ(xen.bring_up(cpu).run(), Errno::Ok);
    dom0 = xen.create_domain({.name = "dom0", .memory = 4_MiB, .privilege = Privilege::HardwareDomain});
    guest_ = xen.create_domain({.name = "guest",
                                .memory = kPageSize * options.guest_pages,
                                .page_lg2 = options.guest_page_lg2,
                                .default_context = options.default_context});
    other = xen.create_domain({.name = "other", .memory = 4_MiB});
    assign(*guest_, {.requester = kNic});
    assign(*guest_, {.requester = kDisk, .unit = options.units - 1});
    assign(*other, {.requester = kAlien});
    for (const auto& unit : units) unit->forget_history();
  }
  ~Machine() { EXPECT_FALSE(cpu.would_block()) << "somebody waited for a lock or a fence that never comes"; }
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  HostMemory host{8_GiB};
  std::unique_ptr<FrameAllocator> frames;
  Hypervisor xen;
  IommuOp op;
  ImmediateCpu cpu{CpuId(0), [this](Hpa a) { return host.read32(a); }};
  std::vector<std::unique_ptr<CachingUnit>> units;
  Domain* dom0 = nullptr;
  Domain* other = nullptr;
  [[nodiscard]] Domain& guest() { return *guest_; }
  [[nodiscard]] CachingUnit& unit() { return *units.front(); }

  Errno assign(Domain& domain, const DeviceSetting& device) {
    const Errno status = xen.assign_device(cpu, domain, device).run();
    EXPECT_EQ(status, Errno::Ok);
    return status;
  }

  // Hypercalls
  // --------------------------------------------------------------------------------------------------------- A page of
  // each domain's memory carries arguments.
  static constexpr Gpa kArgument{0x8000};
  template <class T>
  Errno call(Domain& caller, abi::Subop subop, T& argument, Gpa at = kArgument) {
    EXPECT_TRUE(caller.memory.write(at, std::as_bytes(std::span(&argument, 1))));
    const Errno status = raw(caller, static_cast<std::uint32_t>(subop), at);
    EXPECT_TRUE(caller.memory.read(at, std::as_writable_bytes(std::span(&argument, 1))));
    return status;
  }
  Errno raw(Domain& caller, std::uint32_t subop, Gpa at) {
    return static_cast<Errno>(op.call(cpu, caller, subop, at).run());
  }
  Errno init(Domain& domain, std::uint32_t contexts = 8, std::uint32_t arena_order = 8) {
    abi::Init argument{.max_ctx_no = contexts, .arena_order = arena_order};
    return call(domain, abi::Subop::Init, argument);
  }
  struct Allocated {
    Errno status = Errno::Ok;
    std::uint16_t number = 0;
  };
  Allocated try_alloc(Domain& domain, std::uint32_t flags = 0) {
    abi::AllocContext argument{.alloc_flags = flags};
    const Errno status = call(domain, abi::Subop::AllocContext, argument);
    return {status, argument.ctx_no};
  }
  // Initialises the domain on its first context.
  std::uint16_t alloc(Domain& domain) {
    if (!domain.pv) EXPECT_EQ(init(domain), Errno::Ok);
    const Allocated made = try_alloc(domain);
    EXPECT_EQ(made.status, Errno::Ok);
    return made.number;
  }
  Errno free(Domain& domain, std::uint16_t context, std::uint32_t flags = 0) {
    abi::FreeContext argument{.ctx_no = context, .free_flags = flags};
    return call(domain, abi::Subop::FreeContext, argument);
  }
  Errno reattach(Domain& domain, RequesterId device, std::uint16_t context) {
    abi::ReattachDevice argument = reattach_argument(device, context);
    return call(domain, abi::Subop::ReattachDevice, argument);
  }
  static abi::ReattachDevice reattach_argument(RequesterId device, std::uint16_t context) {
    abi::ReattachDevice argument;
    argument.ctx_no = context;
    argument.dev.bus = static_cast<std::uint8_t>(device.bus());
    argument.dev.devfn = static_cast<std::uint8_t>(device.devfn());
    return argument;
  }
  // A context with the NIC in it.
  std::uint16_t attached(Domain& domain, RequesterId device = kNic) {
    const std::uint16_t context = alloc(domain);
    EXPECT_EQ(reattach(domain, device, context), Errno::Ok);
    return context;
  }
  struct Pages {
    Errno status = Errno::Ok;
    std::uint32_t done = 0;
  };
  static constexpr std::uint32_t kReadWriteFlags = abi::kMapReadable | abi::kMapWriteable;
  static abi::MapPages map_argument(std::uint16_t context, Dfn dfn, Gfn gfn, std::uint32_t pages,
                                    std::uint32_t flags = kReadWriteFlags) {
    abi::MapPages argument;
    argument.ctx_no = context;
    argument.gfn = gfn.value();
    argument.dfn = dfn.value();
    argument.map_flags = flags;
    argument.pgsize = static_cast<std::uint32_t>(kPageSize.value());
    argument.nr_pages = pages;
    return argument;
  }
  Pages map(Domain& domain, std::uint16_t context, Dfn dfn, Gfn gfn, std::uint32_t pages,
            std::uint32_t flags = kReadWriteFlags) {
    abi::MapPages argument = map_argument(context, dfn, gfn, pages, flags);
    const Errno status = call(domain, abi::Subop::MapPages, argument);
    return {status, argument.mapped};
  }
  static abi::UnmapPages unmap_argument(std::uint16_t context, Dfn dfn, std::uint32_t pages) {
    abi::UnmapPages argument;
    argument.ctx_no = context;
    argument.dfn = dfn.value();
    argument.pgsize = static_cast<std::uint32_t>(kPageSize.value());
    argument.nr_pages = pages;
    return argument;
  }
  Pages unmap(Domain& domain, std::uint16_t context, Dfn dfn, std::uint32_t pages,
              abi::Subop subop = abi::Subop::UnmapPages) {
    abi::UnmapPages argument = unmap_argument(context, dfn, pages);
    const Errno status = call(domain, subop, argument);
    return {status, argument.unmapped};
  }
  abi::Capabilities capabilities(Domain& domain) {
    abi::Capabilities argument;
    EXPECT_EQ(call(domain, abi::Subop::QueryCapabilities, argument), Errno::Ok);
    return argument;
  }

  // The device's side
  // ---------------------------------------------------------------------------------------------------- The frame that
  // a device's access ends in; nullopt: it faults.
  std::optional<Mfn> reach(RequesterId device, Dfn dfn, Access access = Access::Read) {
    const TranslationResponse response =
        unit_of(device).translate({.requester = device, .pasid = {}, .address = dfn.address(), .access = access});
    const auto* translation = std::get_if<Translation>(&response);
    if (translation == nullptr || !translation->allowed.allow(access)) return std::nullopt;
    return Mfn(translation->address);
  }
  CachingUnit& unit_of(RequesterId device) {
    for (const auto& domain : xen.domains()) {
      const auto found = domain->devices.find(device);
      if (found != domain->devices.end()) return *units[found->second.setting.unit];
    }
    return unit();
  }

  // Xen's side ------------------------------------------------------------------------------------------------------
  static Mfn frame(const Domain& domain, Gfn gfn) {
    const auto entry = domain.p2m.lookup(gfn);
    EXPECT_TRUE(entry);
    return entry ? entry->machine : Mfn(0);
  }
  std::uint32_t references(const Domain& domain, Gfn gfn) { return xen.references().of(frame(domain, gfn)); }
  static IoContext& context(Domain& domain, std::uint16_t number) {
    return number == 0 ? *domain.default_context : *domain.pv->slots[number - 1U];
  }
  static std::uint64_t arena_used(const Domain& domain) { return domain.pv->arena->used(); }
  [[nodiscard]] std::uint64_t fences() const {
    std::uint64_t sum = 0;
    for (const auto& unit : units) sum += unit->fences;
    return sum;
  }
  [[nodiscard]] const FamilyDescriptor& family() const { return family_; }

 private:
  static IommuOpOptions op_options(const MachineOptions& options) {
    IommuOpOptions op = options.op;
    op.deferred = options.deferred;
    return op;
  }
  FrameAllocator& frames_of(const MachineOptions& options) {
    frames = std::make_unique<FrameAllocator>(Mfn(0x100), options.host_frames);
    return *frames;
  }
  const FamilyDescriptor& family_;
  Domain* guest_ = nullptr;
};

// For fuzzers, which have no test that could fail.
inline void expectations_are_fatal() { GTEST_FLAG_SET(throw_on_failure, true); }

// Addresses with a meaning of their own, which no table translates.
inline bool is_fixed(const FamilyDescriptor& family, Dfn page) {
  const std::uint64_t first = page.address().value();
  return std::ranges::any_of(family.fixed_inputs, [first](const AddressRange& range) {
    return range.overlaps({first, first + (kPageSize.value() - 1)});
  });
}
// Whether machine memory is the domain's own, not lent to it.
inline bool owns(const Domain& domain, Mfn frame) {
  return std::ranges::any_of(domain.p2m.extents(), [frame](const P2mExtent& extent) {
    return extent.type != FrameType::Foreign && frame >= extent.machine && frame < extent.machine + extent.pages;
  });
}
// References that the tables of a domain's contexts explain, those included that were given up without a fence.
inline std::uint64_t explained_references(const Machine& m, const Domain& domain) {
  std::uint64_t pages = 0;
  const auto add = [&](const IoContext* context) {
    if (context == nullptr || !context->table) return;
    pages += context->deferred_frames.size();
    context->table->for_each_leaf({}, [&](const MappedLeaf& leaf) {
      for (std::uint64_t i = 0; i < 1ULL << (leaf.page_lg2 - kPageLg2); ++i)
        if (m.host.contains(Hpa(leaf.output + (i << kPageLg2)), 8) &&
            !context->is_reserved(Dfn(Iova(leaf.input)) + i, 1))
          ++pages;
    });
  };
  if (!domain.pv) return 0;
  for (const auto& slot : domain.pv->slots) add(slot.get());
  for (const auto& retired : domain.retired_contexts) add(retired.get());
  return pages;
}

// Somebody else has a lock; its CPU releases it.
inline Task<void> hold(CpuPort& cpu, SpinLock& lock) { co_await cpu.acquire(lock); }

// vCPUs that park at every step, so that a test decides who goes on.
class Stepper {
 public:
  explicit Stepper(HostMemory& host) : host_(host) {}

  class Cpu final : public CpuPort {
   public:
    Cpu(CpuId id, Stepper& stepper) : CpuPort(id), stepper_(stepper) {}
    [[nodiscard]] Picoseconds now() const override { return {}; }
    void release(SpinLock& lock) override {
      EXPECT_TRUE(lock.held);
      lock.held = false;
      if (lock.waiters.empty()) return;
      lock.held = true;
      stepper_.ready_.push_back(lock.waiters.front());
      lock.waiters.pop_front();
    }

   protected:
    bool begin(CpuWait& wait) override {
      if (wait.kind == CpuWaitKind::Acquire) {
        if (!std::exchange(wait.lock->held, true)) return true;
        wait.lock->waiters.push_back(&wait);
        return false;
      }
      stepper_.ready_.push_back(&wait);
      return false;
    }

   private:
    Stepper& stepper_;
  };

  Cpu& add_cpu() {
    cpus_.push_back(std::make_unique<Cpu>(CpuId(static_cast<std::uint16_t>(cpus_.size())), *this));
    return *cpus_.back();
  }
  // Runs whoever can, in random order, until all that is left polls in vain or waits for such a one.
  void run(Rng rng = Rng(1)) {
    while (step(rng)) {
    }
  }
  // One step of a randomly chosen vCPU; false: nobody can go on.
  bool step(Rng& rng) {
    std::vector<std::size_t> able;
    for (std::size_t i = 0; i < ready_.size(); ++i) {
      const CpuWait& wait = *ready_[i];
      if (wait.kind != CpuWaitKind::Poll || host_.read32(wait.poll_address) == wait.poll_value) able.push_back(i);
    }
    if (able.empty()) return false;
    const auto chosen = ready_.begin() + static_cast<std::ptrdiff_t>(able[rng.below(able.size())]);
    CpuWait* wait = *chosen;
    ready_.erase(chosen);
    wait->waiter.resume();
    return true;
  }

 private:
  HostMemory& host_;
  std::vector<std::unique_ptr<Cpu>> cpus_;
  std::deque<CpuWait*> ready_;
};

// Suites whose behaviour no family may change run on all of them.
class XenFamilies : public testing::TestWithParam<const FamilyDescriptor*> {
 protected:
  [[nodiscard]] static const FamilyDescriptor& family() { return *GetParam(); }
};
inline std::string family_name(const testing::TestParamInfo<const FamilyDescriptor*>& info) {
  return std::string(info.param->name);
}
#define XEN_ON_ALL_FAMILIES(suite) \
  INSTANTIATE_TEST_SUITE_P(Families, suite, testing::ValuesIn(families().begin(), families().end()), family_name)

}  // namespace iommu::xen
