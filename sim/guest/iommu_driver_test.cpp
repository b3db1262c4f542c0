// SPDX-License-Identifier: Apache-2.0
// A kernel's IOMMU driver on a bare machine: the family's own core reads the tables and executes the commands.
#include "sim/guest/iommu_driver.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <variant>

#include "models/families.hpp"
#include "sim/base/immediate_cpu.hpp"
#include "sim/memory/host_memory.hpp"

namespace iommu::guest {
namespace {

constexpr RequesterId kNic = RequesterId::bdf(1, 0, 0);
constexpr RequesterId kDisk = RequesterId::bdf(2, 3, 1);
constexpr Iova kAt{0x40000000};
constexpr Gpa kBuffer{0x5000000};

// A machine without hypervisor: guest-physical is host-physical.
class SameFrames final : public FrameMap {
 public:
  [[nodiscard]] std::optional<Mfn> memory_frame(Gfn frame) const override {
    if (frame.value() >= 1ULL << 20) return std::nullopt;
    return Mfn(frame.value());
  }
};

// Executes commands at once and remembers them.
class Unit final : public MmioPort {
 public:
  Unit(const FamilyDescriptor& family, const UnitFeatures& features, HostMemory& memory)
      : core(family.make_core(features)), memory_(memory), port_(memory) {}
  Task<void> write(CpuPort& cpu, std::uint64_t offset, unsigned bytes, std::uint64_t value) override {
    co_await cpu.charge(CostId::MmioWrite);
    if (before_write) before_write();
    const RegisterEffect effect = core->mmio_write(offset, bytes, value);
    if (!effect.scopes.empty()) core->invalidation_done();
    while (core->has_command()) {
      const auto command = core->fetch_command(port_).run();
      EXPECT_TRUE(command) << "the driver wrote a command that the unit refuses";
      if (!command) co_return;
      const CommandEffect done = core->apply(*command);
      EXPECT_FALSE(done.error);
      applied.insert(applied.end(), done.scopes.begin(), done.scopes.end());
      if (!done.fence || !done.fence->status) continue;
      ++fences;
      const auto& status = *done.fence->status;
      if (status.bytes == sizeof(std::uint64_t))
        memory_.write64(status.address, status.data);
      else
        memory_.write32(status.address, static_cast<std::uint32_t>(status.data));
    }
  }
  Task<std::uint64_t> read(CpuPort& cpu, std::uint64_t offset, unsigned bytes) override {
    co_await cpu.charge(CostId::MmioRead);
    co_return core->mmio_read(offset, bytes);
  }

  std::optional<Hpa> translate(RequesterId device, Iova address, Access access = Access::Read) {
    const TranslationResponse response =
        core->translate({.requester = device, .pasid = {}, .address = address, .access = access}, port_).run();
    const auto* translation = std::get_if<Translation>(&response);
    return translation == nullptr ? std::nullopt : std::optional(translation->address);
  }
  std::optional<Context> context(RequesterId device) {
    TranslationRequest request;
    request.requester = device;
    const ContextResult found = core->find_context(request, port_).run();
    const auto* context = std::get_if<Context>(&found);
    return context == nullptr ? std::nullopt : std::optional(*context);
  }

  std::unique_ptr<IommuCore> core;
  std::function<void()> before_write;
  std::vector<InvalidationScope> applied;
  std::uint64_t fences = 0;

 private:
  HostMemory& memory_;
  ImmediateMemoryPort port_;
};

struct Mode {
  const FamilyDescriptor* family = nullptr;
  bool stage1 = false;
  bool caching_mode = false;
};

struct Bench {
  explicit Bench(const Mode& mode, std::uint64_t kernel_pages = 1024, LeafHint hint = LeafHint::Off,
                 bool coherent = true)
      : pages(Gfn(0x100), kernel_pages),
        unit(*mode.family, features(mode, coherent), host),
        driver(*mode.family,
               {.driver = {.features = features(mode, coherent), .stage1 = mode.stage1}, .leaf_hint = hint}, unit,
               memory, pages) {}
  ~Bench() { EXPECT_FALSE(cpu.would_block()) << "a fence that never completes, or a lock left held"; }

  static UnitFeatures features(const Mode& mode, bool coherent) {
    UnitFeatures f;
    f.caching_mode = mode.caching_mode;
    f.coherent_walks = coherent;
    return f;
  }
  bool bring_up() { return driver.bring_up(cpu).run(); }
  DmaSpace& attach(RequesterId device) {
    DmaSpace* space = driver.attach(cpu, device).run();
    SIM_CHECK(space != nullptr, "the test has memory enough");
    return *space;
  }
  DmaStatus map(DmaSpace& space, Iova iova, Gpa address, Bytes length, Permissions permissions = kReadWrite) {
    const DmaStatus status = space.map(cpu, {iova, address, length, permissions}).run();
    if (status == DmaStatus::Ok) EXPECT_EQ(space.sync_map(cpu, {iova, length}).run(), DmaStatus::Ok);
    return status;
  }
  UnmapGather unmap(DmaSpace& space, Iova iova, Bytes length) {
    return space.unmap(cpu, {iova, length}, Flush::Immediate).run();
  }
  void forget() {
    unit.applied.clear();
    unit.fences = 0;
  }
  // Whether the commands since forget() removed what a device has cached of an address.
  [[nodiscard]] bool removed(RequesterId device, Iova address) {
    const auto context = unit.context(device);
    const std::uint64_t first = address.aligned_down(kPageLg2).value();
    const CacheTags tags{
        .domain = context->domain, .asid = context->asid, .range = {first, first + kPageSize.value() - 1}};
    return std::any_of(unit.applied.begin(), unit.applied.end(), [&](const InvalidationScope& scope) {
      return scope.kind == InvalidationKind::Iotlb && matches(scope, tags);
    });
  }

  HostMemory host{4_GiB};
  SameFrames frames;
  GuestMemory memory{host, frames};
  GuestPages pages;
  ImmediateCpu cpu{CpuId(0), [this](Hpa a) { return host.read32(a); }};
  Unit unit;
  IommuDriver driver;
};

std::vector<Mode> modes() {
  std::vector<Mode> all;
  for (const FamilyDescriptor* family : families())
    for (const bool stage1 : {false, true})
      for (const bool caching : {false, true}) all.push_back({family, stage1, caching});
  return all;
}

class IommuDriverTest : public testing::TestWithParam<Mode> {};
INSTANTIATE_TEST_SUITE_P(All, IommuDriverTest, testing::ValuesIn(modes()), [](const auto& info) {
  return std::string(info.param.family->name) + (info.param.stage1 ? "_stage1" : "_stage2") +
         (info.param.caching_mode ? "_caching" : "");
});

// Kills: tables of the wrong stage or root; permissions lost; a page beyond the segment.
TEST_P(IommuDriverTest, TheCoreTranslatesWhatIsMappedAndNoMore) {
  Bench b(GetParam());
  ASSERT_TRUE(b.bring_up());
  EXPECT_TRUE(b.unit.core->is_translating());
  DmaSpace& space = b.attach(kNic);
  EXPECT_EQ(b.unit.translate(kNic, kAt), std::nullopt);
  ASSERT_EQ(b.map(space, kAt, kBuffer, 8_KiB), DmaStatus::Ok);
  EXPECT_EQ(b.unit.translate(kNic, kAt + 0x1234_B), Hpa(kBuffer.value() + 0x1234));
  EXPECT_EQ(b.unit.translate(kNic, kAt + 8_KiB), std::nullopt);
  EXPECT_EQ(b.unit.translate(kNic, kAt - 1_B), std::nullopt);
  EXPECT_EQ(b.unit.translate(kDisk, kAt), std::nullopt);
  ASSERT_EQ(b.map(space, kAt + 1_MiB, kBuffer, 4_KiB, kReadOnly), DmaStatus::Ok);
  EXPECT_EQ(b.unit.translate(kNic, kAt + 1_MiB), Hpa(kBuffer.value()));
  EXPECT_EQ(b.unit.translate(kNic, kAt + 1_MiB, Access::Write), std::nullopt);
}

// Kills: mapping over what is mapped; addresses beyond the table; unmapping what is not mapped reported as done.
TEST_P(IommuDriverTest, ImpossibleEditsAreRejected) {
  Bench b(GetParam());
  ASSERT_TRUE(b.bring_up());
  DmaSpace& space = b.attach(kNic);
  ASSERT_EQ(b.map(space, kAt, kBuffer, 4_KiB), DmaStatus::Ok);
  EXPECT_EQ(b.map(space, kAt, kBuffer + 4_KiB, 4_KiB), DmaStatus::Rejected);
  EXPECT_EQ(b.unit.translate(kNic, kAt), Hpa(kBuffer.value()));
  EXPECT_EQ(b.map(space, space.last_address() + 1_B, kBuffer, 4_KiB), DmaStatus::Rejected);
  EXPECT_EQ(b.map(space, Dfn(space.last_address()).address(), kBuffer, 4_KiB), DmaStatus::Ok) << "the last page";
  EXPECT_EQ(b.unmap(space, kAt + 4_KiB, 4_KiB).status, DmaStatus::Rejected);
  EXPECT_EQ(b.unmap(space, kAt, 4_KiB).status, DmaStatus::Ok);
}

// Not-present entries of stage 2 may be cached in caching mode; those of stage 1 never. Kills: a map that is announced
// always or never, or over less than its range; one without a fence.
TEST_P(IommuDriverTest, OnlyACachedAbsenceIsInvalidatedByAMap) {
  Bench b(GetParam());
  ASSERT_TRUE(b.bring_up());
  DmaSpace& space = b.attach(kNic);
  b.forget();
  ASSERT_EQ(b.map(space, kAt, kBuffer, 12_KiB), DmaStatus::Ok);
  const bool announced = GetParam().caching_mode && !GetParam().stage1;
  for (const Bytes offset : {0_B, 4_KiB, 8_KiB}) EXPECT_EQ(b.removed(kNic, kAt + offset), announced);
  EXPECT_EQ(b.unit.fences, announced ? 1U : 0U);
}

// Kills: sync before the tables changed; a range cut short; another device's tag; more than one command and fence.
TEST_P(IommuDriverTest, SyncInvalidatesTheRangeOfThisDeviceOnly) {
  Bench b(GetParam());
  ASSERT_TRUE(b.bring_up());
  DmaSpace& nic = b.attach(kNic);
  DmaSpace& disk = b.attach(kDisk);
  ASSERT_EQ(b.map(nic, kAt, kBuffer, 20_KiB), DmaStatus::Ok);
  ASSERT_EQ(b.map(disk, kAt, kBuffer, 20_KiB), DmaStatus::Ok);
  b.forget();
  UnmapGather gather = b.unmap(nic, kAt, 20_KiB);
  EXPECT_EQ(gather.status, DmaStatus::Ok);
  EXPECT_TRUE(b.unit.applied.empty()) << "that is what sync is for";
  EXPECT_EQ(b.unit.translate(kNic, kAt), std::nullopt);
  nic.sync(b.cpu, std::move(gather)).run();
  for (const Bytes offset : {0_B, 4_KiB, 16_KiB}) {
    EXPECT_TRUE(b.removed(kNic, kAt + offset));
    EXPECT_FALSE(b.removed(kDisk, kAt + offset));
  }
  EXPECT_EQ(b.unit.applied.size(), 1U);
  EXPECT_EQ(b.unit.fences, 1U);
  EXPECT_EQ(b.unit.translate(kDisk, kAt), Hpa(kBuffer.value()));
}

// Kills: a flush of one range only; of every device.
TEST_P(IommuDriverTest, FlushAllCoversEverythingOfTheDevice) {
  Bench b(GetParam());
  ASSERT_TRUE(b.bring_up());
  DmaSpace& nic = b.attach(kNic);
  b.attach(kDisk);
  b.forget();
  nic.flush_all(b.cpu).run();
  for (const Iova address : {Iova(0), kAt, nic.last_address()}) {
    EXPECT_TRUE(b.removed(kNic, address));
    EXPECT_FALSE(b.removed(kDisk, address));
  }
  EXPECT_EQ(b.unit.fences, 1U);
}

// Kills: tables handed out again while walks may still read them; tables that never come back.
TEST_P(IommuDriverTest, FreedTablesAreReusedOnlyAfterTheFence) {
  Bench b(GetParam());
  ASSERT_TRUE(b.bring_up());
  DmaSpace& space = b.attach(kNic);
  const std::uint64_t before = b.driver.table_bytes();
  ASSERT_EQ(b.map(space, kAt, kBuffer, 4_KiB), DmaStatus::Ok);
  ASSERT_EQ(b.map(space, kAt + 4_KiB, kBuffer + 64_KiB, 2_MiB - 4_KiB), DmaStatus::Ok);
  const std::uint64_t used = b.pages.used();
  UnmapGather gather = b.unmap(space, kAt, 2_MiB);
  ASSERT_EQ(gather.status, DmaStatus::Ok);
  ASSERT_EQ(gather.freed_tables.size(), 1U) << "one call covers the whole table";
  EXPECT_EQ(b.pages.used(), used);
  std::uint64_t used_at_command = 0;
  b.unit.before_write = [&] { used_at_command = b.pages.used(); };
  space.sync(b.cpu, std::move(gather)).run();
  EXPECT_EQ(used_at_command, used) << "free before the command that makes it so";
  EXPECT_EQ(b.pages.used(), used - 1);
  ASSERT_EQ(b.map(space, kAt, kBuffer, 4_KiB), DmaStatus::Ok) << "takes it again";
  EXPECT_EQ(b.pages.used(), used);
  EXPECT_EQ(b.driver.table_bytes(), before + ((used - (before >> kPageLg2)) << kPageLg2));
  EXPECT_EQ(b.unit.translate(kNic, kAt + 4_KiB), std::nullopt) << "an old entry in a reused table";
  // Lazily: whoever queues the range returns the tables.
  UnmapGather last = b.unmap(space, kAt, 4_KiB);
  ASSERT_TRUE(last.freed_tables.empty()) << "Linux keeps a table that one call does not cover";
}

// Kills: the hint without being asked; with tables freed, when walk caches hold pointers to them.
TEST_P(IommuDriverTest, TheLeafHintIsGivenOnlyWhenNoTableWasFreed) {
  for (const LeafHint hint : {LeafHint::Off, LeafHint::On}) {
    Bench b(GetParam(), 1024, hint);
    ASSERT_TRUE(b.bring_up());
    DmaSpace& space = b.attach(kNic);
    const auto leaf_only = [&](Bytes length) {
      EXPECT_EQ(b.map(space, kAt, kBuffer, length), DmaStatus::Ok);
      UnmapGather gather = b.unmap(space, kAt, length);
      b.forget();
      space.sync(b.cpu, std::move(gather)).run();
      return b.unit.applied.size() == 1 && b.unit.applied.front().leaf_only;
    };
    EXPECT_EQ(leaf_only(4_KiB), hint == LeafHint::On);
    ASSERT_EQ(b.map(space, kAt + 4_KiB, kBuffer, 2_MiB - 4_KiB), DmaStatus::Ok);  // so that there is a table to free
    ASSERT_EQ(b.map(space, kAt, kBuffer, 4_KiB), DmaStatus::Ok);
    UnmapGather gather = b.unmap(space, kAt, 2_MiB);
    ASSERT_FALSE(gather.freed_tables.empty());
    b.forget();
    space.sync(b.cpu, std::move(gather)).run();
    ASSERT_EQ(b.unit.applied.size(), 1U);
    EXPECT_FALSE(b.unit.applied.front().leaf_only);
  }
}

// Kills: devices that share a tag, and with it cached translations; tag 0.
TEST_P(IommuDriverTest, EveryDeviceHasATagOfItsOwn) {
  Bench b(GetParam());
  ASSERT_TRUE(b.bring_up());
  b.attach(kNic);
  b.attach(kDisk);
  const auto nic = b.unit.context(kNic);
  const auto disk = b.unit.context(kDisk);
  ASSERT_TRUE(nic && disk);
  EXPECT_NE(nic->domain, disk->domain);
  EXPECT_NE(nic->domain.value() * disk->domain.value(), 0U);
}

// Allocation n fails, for n = 1, 2, 3 … Kills: a crash, success without tables, pages lost by an attach that failed.
TEST_P(IommuDriverTest, WithoutMemoryItRefuses) {
  bool attached = false;
  std::uint64_t refusals = 0;
  for (std::uint64_t kernel_pages = 0; !attached; ++kernel_pages) {
    ASSERT_LT(kernel_pages, 1024U);
    Bench b(GetParam(), kernel_pages);
    if (!b.bring_up()) {
      EXPECT_FALSE(b.unit.core->is_translating());
      ++refusals;
      continue;
    }
    const std::uint64_t used = b.pages.used();
    attached = b.driver.attach(b.cpu, kNic).run() != nullptr;
    if (attached) break;
    ++refusals;
    EXPECT_EQ(b.pages.used(), used) << kernel_pages << " pages";
    EXPECT_EQ(b.unit.context(kNic), std::nullopt);
  }
  EXPECT_GT(refusals, 3U);
}

// Kills: lines flushed for a walker that snoops, or not flushed for one that does not; writes that cost nothing.
TEST_P(IommuDriverTest, TableWorkIsCharged) {
  for (const bool coherent : {false, true}) {
    Bench b(GetParam(), 1024, LeafHint::Off, coherent);
    ASSERT_TRUE(b.bring_up());
    DmaSpace& space = b.attach(kNic);
    ASSERT_EQ(b.map(space, kAt, kBuffer, 4_KiB), DmaStatus::Ok);
    const CostCounts before = b.cpu.charged();
    ASSERT_EQ(b.map(space, kAt + 4_KiB, kBuffer, 12_KiB), DmaStatus::Ok);
    const auto charged = [&](CostId cost) { return b.cpu.charged()[cost] - before[cost]; };
    EXPECT_EQ(charged(CostId::TableWrite), 3U);
    EXPECT_EQ(charged(CostId::TableAllocate), 0U);
    EXPECT_EQ(charged(CostId::CacheLineFlush), coherent ? 0U : 1U) << "three entries of one line";
  }
}

}  // namespace
}  // namespace iommu::guest
