// SPDX-License-Identifier: Apache-2.0
// Contexts of a domain: numbers, allocation, freeing, what freeing gives back and when. Numbers are those of the
// interface's list of testable behaviours; (Zn) names a trap of the RFC's code.
#include <gtest/gtest.h>

#include <array>
#include <set>

#include "sim/xen/xen_test_support.hpp"

namespace iommu::xen {
namespace {

using abi::Subop;

constexpr std::uint32_t kIntoDefault = abi::kFreeReattachDefault;

class XenAlloc : public XenFamilies {};
XEN_ON_ALL_FAMILIES(XenAlloc);

// Behaviour 17. Kills: numbers that are bitmap positions, or the next never used one.
TEST_P(XenAlloc, NumbersStartAtOneAndTheLowestFreeOneIsTaken) {
  Machine m(family());
  for (const unsigned expected : {1U, 2U, 3U, 4U}) EXPECT_EQ(m.alloc(m.guest()), expected);
  ASSERT_EQ(m.free(m.guest(), 3), Errno::Ok);
  ASSERT_EQ(m.free(m.guest(), 2), Errno::Ok);
  EXPECT_EQ(m.alloc(m.guest()), 2U);
  EXPECT_EQ(m.alloc(m.guest()), 3U);
  EXPECT_EQ(m.alloc(m.guest()), 5U);
}
// Behaviour 18.
TEST_P(XenAlloc, OneMoreThanAskedForFindsNoSpace) {
  Machine m(family());
  ASSERT_EQ(m.init(m.guest(), 3, 6), Errno::Ok);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(m.try_alloc(m.guest()).status, Errno::Ok);
  EXPECT_EQ(m.try_alloc(m.guest()).status, Errno::NoSpace);
}
// Behaviour 19. Kills: a reused number that still has the old one's mappings.
TEST_P(XenAlloc, AFreedNumberIsReusedEmpty) {
  Machine m(family());
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(7), Gfn(7), 1).status, Errno::Ok);
  ASSERT_EQ(m.free(m.guest(), context, kIntoDefault), Errno::Ok);
  EXPECT_EQ(m.attached(m.guest()), context);
  EXPECT_EQ(m.reach(kNic, Dfn(7)), std::nullopt);
}
// Behaviour 31 (header). Kills: flags that are accepted and ignored.
TEST_P(XenAlloc, IdentityWithoutItsCapabilityAndUnknownFlagsAreRefused) {
  Machine m(family());
  ASSERT_EQ(m.init(m.guest()), Errno::Ok);
  EXPECT_EQ(m.try_alloc(m.guest(), abi::kAllocIdentity).status, Errno::Unsupported);
  EXPECT_EQ(m.try_alloc(m.guest(), 1U << 31).status, Errno::Unsupported);
  EXPECT_EQ(m.try_alloc(m.guest()).number, 1U);
}
// Behaviours 32 and 44 (Z8, Z17). Tags run out before numbers do. Kills: a failed creation that frees its neighbour,
// keeps a tag, or takes a tag that does not exist.
TEST_P(XenAlloc, RunningOutOfDomainTagsIsReportedAndDisturbsNobody) {
  Machine m(family());
  const std::uint16_t first = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), first, Dfn(7), Gfn(7), 1).status, Errno::Ok);
  std::vector<DomainTag> hoard;
  while (const auto tag = m.xen.unit(0).allocate_tag()) hoard.push_back(*tag);
  const std::uint64_t arena = m.arena_used(m.guest());
  for (int i = 0; i < 3; ++i) EXPECT_EQ(m.try_alloc(m.guest()).status, Errno::NoSpace);
  EXPECT_EQ(m.arena_used(m.guest()), arena);
  EXPECT_EQ(m.reach(kNic, Dfn(7)), m.frame(m.guest(), Gfn(7)));
  m.xen.unit(0).release_tag(hoard.back());
  const auto made = m.try_alloc(m.guest());
  EXPECT_EQ(made.status, Errno::Ok);
  EXPECT_EQ(made.number, first + 1);
  EXPECT_EQ(m.context(m.guest(), made.number).tags.front(), hoard.back());
}
// With two units, a tag taken on the first goes back when the second has none.
TEST_P(XenAlloc, ATagOfOneUnitGoesBackWhenAnotherUnitHasNone) {
  Machine m(family(), {.units = 2});
  ASSERT_EQ(m.init(m.guest()), Errno::Ok);
  std::vector<DomainTag> hoard;
  while (const auto tag = m.xen.unit(1).allocate_tag()) hoard.push_back(*tag);
  const auto before = m.xen.unit(0).allocate_tag();
  ASSERT_TRUE(before);
  m.xen.unit(0).release_tag(*before);
  EXPECT_EQ(m.try_alloc(m.guest()).status, Errno::NoSpace);
  EXPECT_EQ(m.xen.unit(0).allocate_tag(), before);
}
// Behaviour 32 as well: no page for the root table.
TEST_P(XenAlloc, AnExhaustedArenaIsNoMemoryAndKeepsNothing) {
  Machine m(family());
  ASSERT_EQ(m.init(m.guest(), 200, 3), Errno::Ok);
  std::uint16_t made = 0;
  Errno status = Errno::Ok;
  while (status == Errno::Ok) {
    status = m.try_alloc(m.guest()).status;
    if (status == Errno::Ok) ++made;
  }
  EXPECT_EQ(status, Errno::NoMemory);
  EXPECT_GT(made, 0U);
  EXPECT_LE(made, 8U);
  ASSERT_EQ(m.free(m.guest(), 1), Errno::Ok);
  EXPECT_EQ(m.try_alloc(m.guest()).number, 1U);
}

class XenFree : public XenFamilies {};
XEN_ON_ALL_FAMILIES(XenFree);

// Behaviour 20.
TEST_P(XenFree, ContextZeroIsInvalid) {
  Machine m(family());
  ASSERT_EQ(m.init(m.guest()), Errno::Ok);
  EXPECT_EQ(m.free(m.guest(), 0), Errno::Invalid);
  EXPECT_EQ(m.free(m.guest(), 0, kIntoDefault), Errno::Invalid);
  EXPECT_NE(m.reach(kNic, Dfn(3)), std::nullopt);
}
// Behaviours 21 and 22.
TEST_P(XenFree, UnknownAndFreedContextsAreNoEntry) {
  Machine m(family());
  EXPECT_EQ(m.free(m.guest(), 1), Errno::NoEntry);  // not even initialised
  const std::uint16_t context = m.alloc(m.guest());
  for (const std::uint16_t unknown : std::array<std::uint16_t, 5>{2, 8, 9, 0x7fff, 0xffff})
    EXPECT_EQ(m.free(m.guest(), unknown), Errno::NoEntry) << unknown;
  EXPECT_EQ(m.free(m.guest(), context), Errno::Ok);
  EXPECT_EQ(m.free(m.guest(), context), Errno::NoEntry);
}
TEST_P(XenFree, UnknownFlagsAreInvalid) {
  Machine m(family());
  const std::uint16_t context = m.alloc(m.guest());
  EXPECT_EQ(m.free(m.guest(), context, 2), Errno::Invalid);
  EXPECT_EQ(m.free(m.guest(), context), Errno::Ok);
}
// Behaviours 23 and 24 (Z4). Kills: a context that stays dying after -EBUSY.
TEST_P(XenFree, ABusyContextStaysUsableInEveryWay) {
  Machine m(family());
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(7), Gfn(7), 1).status, Errno::Ok);
  EXPECT_EQ(m.free(m.guest(), context), Errno::Busy);
  EXPECT_EQ(m.reach(kNic, Dfn(7)), m.frame(m.guest(), Gfn(7)));
  EXPECT_EQ(m.map(m.guest(), context, Dfn(8), Gfn(8), 1).status, Errno::Ok);
  EXPECT_EQ(m.reattach(m.guest(), kDisk, context), Errno::Ok);
  EXPECT_EQ(m.reach(kDisk, Dfn(8)), m.frame(m.guest(), Gfn(8)));
}
// Behaviour 25 (Z5). Kills: a loop that edits the list it walks and misses every other device.
TEST_P(XenFree, WithTheFlagEveryDeviceIsInContextZeroAfterwards) {
  Machine m(family());
  std::vector<RequesterId> devices{kNic, kDisk};
  for (unsigned i = 0; i < 5; ++i) {
    devices.push_back(RequesterId::bdf(6, i, 0));
    m.assign(m.guest(), {.requester = devices.back()});
  }
  const std::uint16_t context = m.alloc(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x9000), Gfn(7), 1).status, Errno::Ok);
  for (const RequesterId device : devices) {
    ASSERT_EQ(m.reattach(m.guest(), device, context), Errno::Ok);
    EXPECT_NE(m.reach(device, Dfn(0x9000)), std::nullopt);
  }
  EXPECT_EQ(m.free(m.guest(), context, kIntoDefault), Errno::Ok);
  for (const RequesterId device : devices) {
    EXPECT_EQ(m.guest().devices.at(device).context, m.guest().default_context.get());
    EXPECT_EQ(m.reach(device, Dfn(5)), m.frame(m.guest(), Gfn(5)));
    EXPECT_EQ(m.reach(device, Dfn(0x9000)), std::nullopt);
  }
}
// Behaviour 26. Kills: references of mmio pages, references kept or dropped twice.
TEST_P(XenFree, DropsOneReferencePerMappedPageAndNoneForMmio) {
  Machine m(family());
  ASSERT_TRUE(m.guest().p2m.add({Gfn(0x10000), 4, Mfn(Hpa(m.host.size().value())), FrameType::Mmio}));
  const std::uint16_t one = m.alloc(m.guest());
  const std::uint16_t two = m.alloc(m.guest());
  ASSERT_EQ(m.map(m.guest(), one, Dfn(0), Gfn(10), 6).status, Errno::Ok);
  ASSERT_EQ(m.map(m.guest(), one, Dfn(100), Gfn(10), 1).status, Errno::Ok);  // a second time in the same context
  ASSERT_EQ(m.map(m.guest(), two, Dfn(0), Gfn(10), 1).status, Errno::Ok);
  ASSERT_EQ(m.map(m.guest(), one, Dfn(200), Gfn(0x10000), 4).status, Errno::Ok);
  EXPECT_EQ(m.references(m.guest(), Gfn(10)), 3U);
  EXPECT_EQ(m.xen.references().total(), 8U);
  ASSERT_EQ(m.free(m.guest(), one), Errno::Ok);
  EXPECT_EQ(m.references(m.guest(), Gfn(10)), 1U);
  EXPECT_EQ(m.xen.references().total(), 1U);
  ASSERT_EQ(m.free(m.guest(), two), Errno::Ok);
  EXPECT_EQ(m.xen.references().total(), 0U);
}
// Behaviour 27 (Z7). Kills: a reference loop that takes the level for the order, or never advances.
TEST_P(XenFree, LargeLeavesGiveBackAllTheirReferences) {
  Machine m(family(), {.xen = {.coalesce = Coalesce::Yes}, .guest_pages = 4096});
  const std::uint16_t context = m.alloc(m.guest());
  const Gfn first(512);
  ASSERT_TRUE(m.frame(m.guest(), first).value() % 512 == 0) << "the guest's memory is aligned for this test";
  ASSERT_EQ(m.map(m.guest(), context, Dfn(1024), first, 1024).status, Errno::Ok);
  const auto leaf = m.context(m.guest(), context).table->lookup(Dfn(1024).address().value());
  ASSERT_TRUE(leaf);
  EXPECT_GT(leaf->page_lg2, kPageLg2) << "this test is about large leaves";
  EXPECT_EQ(m.xen.references().total(), 1024U);
  EXPECT_EQ(m.free(m.guest(), context), Errno::Ok);
  EXPECT_EQ(m.xen.references().total(), 0U);
}
// Behaviours 28 (Z6) and 30. Kills: a teardown in one piece, one that starts again at each slice, and lost pages.
TEST_P(XenFree, AHugeTableIsFreedInSlicesAndAllItsPagesReturn) {
  Machine m(family());
  ASSERT_EQ(m.init(m.guest(), 4, 10), Errno::Ok);
  const std::uint16_t other = m.alloc(m.guest());
  ASSERT_EQ(m.map(m.guest(), other, Dfn(1), Gfn(1), 1).status, Errno::Ok);
  const std::uint64_t before = m.arena_used(m.guest());
  const std::uint16_t context = m.alloc(m.guest());
  for (std::uint64_t i = 0; i < 8; ++i)
    ASSERT_EQ(m.map(m.guest(), context, Dfn(i << 20), Gfn(0), kGuestPages).status, Errno::Ok);
  EXPECT_GT(m.arena_used(m.guest()), before + 32);
  const std::uint64_t continuations = m.op.counters().continuations;
  const std::uint64_t traps = m.cpu.charged()[CostId::Hypercall];
  const std::uint64_t read = m.cpu.charged()[CostId::TableRead];
  const std::uint64_t dropped = m.cpu.charged()[CostId::PageReference];
  EXPECT_EQ(m.free(m.guest(), context), Errno::Ok);
  EXPECT_GE(m.op.counters().continuations, continuations + 3);
  EXPECT_EQ(m.cpu.charged()[CostId::Hypercall] - traps, 1 + m.op.counters().continuations - continuations);
  EXPECT_LT(m.cpu.charged()[CostId::TableRead] - read, 8 * kGuestPages + 8 * 8 * 512) << "slices repeat work";
  EXPECT_GE(m.cpu.charged()[CostId::TableRead] - read, 8 * kGuestPages) << "every entry is read";
  EXPECT_EQ(m.cpu.charged()[CostId::PageReference] - dropped, 8 * kGuestPages);
  EXPECT_EQ(m.arena_used(m.guest()), before);
  EXPECT_EQ(m.xen.references().total(), 1U);
}

// What a context holds in caches is gone when its tag is used again. Kills: a tag that is free before its fence.
TEST_P(XenFree, TheNextOwnerOfATagSeesNothingOfTheLast) {
  Machine m(family());
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(7), Gfn(7), 1).status, Errno::Ok);
  ASSERT_NE(m.reach(kNic, Dfn(7)), std::nullopt);
  const std::optional<DomainTag> tag = m.context(m.guest(), context).tags.front();
  ASSERT_EQ(m.free(m.guest(), context, kIntoDefault), Errno::Ok);
  const std::uint16_t alien = m.attached(*m.other, kAlien);
  ASSERT_EQ(m.context(*m.other, alien).tags.front(), tag) << "this test is about a tag that is used again";
  EXPECT_EQ(m.reach(kAlien, Dfn(7)), std::nullopt);
}

// While a device is moved out of a dying context, nobody may do anything with it (behaviour 29), and when it cannot be
// moved, all is as before (Z5).
TEST_P(XenFree, ADyingContextAcceptsNothing) {
  Machine m(family());
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(7), Gfn(7), 1).status, Errno::Ok);
  m.unit().execution = CachingUnit::Execution::OnRequest;
  Stepper stepper(m.host);
  abi::FreeContext argument{.ctx_no = context, .free_flags = kIntoDefault};
  ASSERT_TRUE(m.guest().memory.write(Gpa(0x20000), std::as_bytes(std::span(&argument, 1))));
  auto freeing = m.op.call(stepper.add_cpu(), m.guest(), static_cast<std::uint32_t>(Subop::FreeContext), Gpa(0x20000));
  freeing.start();
  stepper.run();
  ASSERT_FALSE(freeing.done()) << "the device's old translations await their fence";
  EXPECT_EQ(m.reattach(m.guest(), kDisk, context), Errno::Invalid);
  EXPECT_EQ(m.map(m.guest(), context, Dfn(9), Gfn(9), 1).status, Errno::Invalid);
  EXPECT_EQ(m.unmap(m.guest(), context, Dfn(7), 1).status, Errno::Invalid);
  EXPECT_EQ(m.free(m.guest(), context), Errno::NoEntry);
  EXPECT_EQ(m.references(m.guest(), Gfn(7)), 1U) << "nothing is given back before the fence";
  m.unit().execute();
  m.unit().execution = CachingUnit::Execution::AtOnce;
  stepper.run();
  ASSERT_TRUE(freeing.done());
  EXPECT_EQ(freeing.result(), 0);
  EXPECT_EQ(m.xen.references().total(), 0U);
}

// Calls that found the context alive and then queued for its lock behind the one that frees it. Kills: a change of a
// context that is about to be torn down.
TEST_P(XenFree, ACallThatQueuedBehindTheFreeChangesNothing) {
  for (const Subop subop : {Subop::MapPages, Subop::UnmapPages}) {
    Machine m(family());
    const std::uint16_t context = m.alloc(m.guest());
    ASSERT_EQ(m.map(m.guest(), context, Dfn(7), Gfn(7), 1).status, Errno::Ok);
    Stepper stepper(m.host);
    CpuPort& holder = stepper.add_cpu();
    SpinLock& lock = m.context(m.guest(), context).lock;
    auto holding = hold(holder, lock);
    holding.start();
    const auto start = [&](Subop what, auto argument, Gpa at) {
      EXPECT_TRUE(m.guest().memory.write(at, std::as_bytes(std::span(&argument, 1))));
      auto call = m.op.call(stepper.add_cpu(), m.guest(), static_cast<std::uint32_t>(what), at);
      call.start();
      stepper.run();
      return call;
    };
    auto freeing = start(Subop::FreeContext, abi::FreeContext{.ctx_no = context}, Gpa(0x20000));
    auto changing = subop == Subop::MapPages
                        ? start(subop, Machine::map_argument(context, Dfn(9), Gfn(9), 1), Gpa(0x21000))
                        : start(subop, Machine::unmap_argument(context, Dfn(7), 1), Gpa(0x21000));
    ASSERT_FALSE(freeing.done() || changing.done());
    holder.release(lock);
    stepper.run();
    ASSERT_TRUE(freeing.done() && changing.done());
    EXPECT_EQ(freeing.result(), 0);
    EXPECT_EQ(changing.result(), static_cast<std::int64_t>(Errno::Invalid));
    EXPECT_EQ(m.xen.references().total(), 0U);
  }
}

// Calls of two vCPUs at the same time, in many orders. Kills (Z9): a number given twice or never again, a context that
// is used after it is gone.
TEST_P(XenFree, ConcurrentAllocMapAndFreeKeepTheirBooks) {
  for (std::uint64_t seed = 1; seed <= 25; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Machine m(family());
    ASSERT_EQ(m.init(m.guest(), 3, 8), Errno::Ok);
    Stepper stepper(m.host);
    Rng rng(seed);
    std::multiset<std::uint16_t> held;
    // Each vCPU: alloc, map, maybe attach, free, three times over. Arguments lie in pages of its own.
    const auto work = [&](CpuPort& cpu, std::uint64_t page, RequesterId device) -> Task<void> {
      const Gpa at = Gfn(page).address();
      const auto put = [&m, at](auto argument) {
        (void)m.guest().memory.write(at, std::as_bytes(std::span(&argument, 1)));
      };
      for (int i = 0; i < 3; ++i) {
        put(abi::AllocContext{});
        const std::int64_t made =
            co_await m.op.call(cpu, m.guest(), static_cast<std::uint32_t>(Subop::AllocContext), at);
        EXPECT_EQ(made, 0);
        abi::AllocContext reply;
        (void)m.guest().memory.read(at, std::as_writable_bytes(std::span(&reply, 1)));
        EXPECT_EQ(held.count(reply.ctx_no), 0U) << "a number was given twice";
        held.insert(reply.ctx_no);
        put(Machine::map_argument(reply.ctx_no, Dfn(1), Gfn(page), 40));
        const std::int64_t mapped = co_await m.op.call(cpu, m.guest(), static_cast<std::uint32_t>(Subop::MapPages), at);
        EXPECT_EQ(mapped, 0);
        put(Machine::reattach_argument(device, reply.ctx_no));
        const std::int64_t moved =
            co_await m.op.call(cpu, m.guest(), static_cast<std::uint32_t>(Subop::ReattachDevice), at);
        EXPECT_EQ(moved, 0);
        held.erase(reply.ctx_no);
        put(abi::FreeContext{.ctx_no = reply.ctx_no, .free_flags = kIntoDefault});
        const std::int64_t freed =
            co_await m.op.call(cpu, m.guest(), static_cast<std::uint32_t>(Subop::FreeContext), at);
        EXPECT_EQ(freed, 0);
      }
    };
    std::vector<Task<void>> tasks;
    m.assign(m.guest(), {.requester = RequesterId::bdf(6, 0, 0)});
    tasks.push_back(work(stepper.add_cpu(), 0x100, kNic));
    tasks.push_back(work(stepper.add_cpu(), 0x200, kDisk));
    tasks.push_back(work(stepper.add_cpu(), 0x300, RequesterId::bdf(6, 0, 0)));
    for (auto& task : tasks) task.start();
    stepper.run(rng);
    for (auto& task : tasks) EXPECT_TRUE(task.done()) << "a vCPU waits for ever";
    EXPECT_EQ(m.xen.references().total(), 0U);
    EXPECT_EQ(m.arena_used(m.guest()), 0U);
  }
}

}  // namespace
}  // namespace iommu::xen
