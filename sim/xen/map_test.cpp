// SPDX-License-Identifier: Apache-2.0
// map_pages: what is entered, what is refused and where it stops. Numbers are those of the interface's list of testable
// behaviours; (Zn) names a trap of the RFC's code.
#include <gtest/gtest.h>

#include <array>

#include "sim/xen/xen_test_support.hpp"

namespace iommu::xen {
namespace {

using abi::Subop;

class XenMap : public XenFamilies {};
XEN_ON_ALL_FAMILIES(XenMap);

// Behaviours 46 and 47.
TEST_P(XenMap, ContextZeroAndUnknownContextsAreInvalid) {
  Machine m(family());
  EXPECT_EQ(m.map(m.guest(), 1, Dfn(1), Gfn(1), 1).status, Errno::Invalid);  // not even initialised
  ASSERT_EQ(m.init(m.guest(), 4, 6), Errno::Ok);
  for (const std::uint16_t context : std::array<std::uint16_t, 5>{0, 1, 4, 5, 0xffff})
    EXPECT_EQ(m.map(m.guest(), context, Dfn(0x5000), Gfn(1), 1).status, Errno::Invalid) << context;
  EXPECT_EQ(m.reach(kNic, Dfn(0x5000)), std::nullopt);
  EXPECT_EQ(m.xen.references().total(), 0U);
}
// The plain case: n pages, n references, one structure filled in.
TEST_P(XenMap, PagesBecomeReachableAndKeepAReferenceEach) {
  Machine m(family());
  const std::uint16_t context = m.attached(m.guest());
  const auto mapped = m.map(m.guest(), context, Dfn(0x1234), Gfn(100), 5);
  EXPECT_EQ(mapped.status, Errno::Ok);
  EXPECT_EQ(mapped.done, 5U);
  for (std::uint64_t i = 0; i < 5; ++i) {
    EXPECT_EQ(m.reach(kNic, Dfn(0x1234 + i)), m.frame(m.guest(), Gfn(100 + i)));
    EXPECT_EQ(m.references(m.guest(), Gfn(100 + i)), 1U);
  }
  EXPECT_EQ(m.reach(kNic, Dfn(0x1233)), std::nullopt);
  EXPECT_EQ(m.reach(kNic, Dfn(0x1239)), std::nullopt);
  EXPECT_EQ(m.xen.references().total(), 5U);
  EXPECT_EQ(m.cpu.charged()[CostId::P2mLookup], 5U);
  EXPECT_EQ(m.cpu.charged()[CostId::PageReference], 5U);
}
// Behaviour 48. Kills: a mapping that replaces another.
TEST_P(XenMap, AMappedAddressIsInUseAndKeepsItsFrame) {
  Machine m(family());
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(7), Gfn(70), 1).status, Errno::Ok);
  const auto again = m.map(m.guest(), context, Dfn(7), Gfn(80), 1);
  EXPECT_EQ(again.status, Errno::AddressInUse);
  EXPECT_EQ(again.done, 0U);
  EXPECT_EQ(m.map(m.guest(), context, Dfn(7), Gfn(70), 1).status, Errno::AddressInUse) << "even with the same frame";
  EXPECT_EQ(m.reach(kNic, Dfn(7)), m.frame(m.guest(), Gfn(70)));
  EXPECT_EQ(m.references(m.guest(), Gfn(70)), 1U);
  EXPECT_EQ(m.references(m.guest(), Gfn(80)), 0U);
}
// Behaviour 49. Kills: rollback of what was done, references of what was not, a count that includes the conflict.
TEST_P(XenMap, AConflictLeavesThePagesBeforeItMappedAndThoseAfterItUntouched) {
  for (std::uint64_t conflict = 0; conflict < 6; ++conflict) {
    SCOPED_TRACE(conflict);
    Machine m(family());
    const std::uint16_t context = m.attached(m.guest());
    ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100 + conflict), Gfn(7), 1).status, Errno::Ok);
    const auto mapped = m.map(m.guest(), context, Dfn(0x100), Gfn(20), 6);
    EXPECT_EQ(mapped.status, Errno::AddressInUse);
    EXPECT_EQ(mapped.done, conflict);
    for (std::uint64_t i = 0; i < 6; ++i) {
      const Gfn there = i == conflict ? Gfn(7) : Gfn(20 + i);
      const auto expected = i <= conflict ? std::optional(m.frame(m.guest(), there)) : std::nullopt;
      EXPECT_EQ(m.reach(kNic, Dfn(0x100 + i)), expected);
      EXPECT_EQ(m.references(m.guest(), Gfn(20 + i)), i < conflict ? 1U : 0U);
    }
  }
}
// Behaviour 50.
TEST_P(XenMap, AFrameWithoutBackingStopsTheCall) {
  Machine m(family());
  const std::uint16_t context = m.attached(m.guest());
  const auto mapped = m.map(m.guest(), context, Dfn(0x100), Gfn(kGuestPages - 2), 5);
  EXPECT_EQ(mapped.status, Errno::NoEntry);
  EXPECT_EQ(mapped.done, 2U);
  EXPECT_EQ(m.reach(kNic, Dfn(0x101)), m.frame(m.guest(), Gfn(kGuestPages - 1)));
  EXPECT_EQ(m.reach(kNic, Dfn(0x102)), std::nullopt);
  for (const Gfn nowhere : {Gfn(~0ULL), Gfn(1ULL << 52), Gfn(1ULL << 40)})
    EXPECT_EQ(m.map(m.guest(), context, Dfn(0x200), nowhere, 2).status, Errno::NoEntry);
}
// Behaviour 51, and the hardware domain's privilege.
TEST_P(XenMap, ForeignPagesAreForTheHardwareDomainOnly) {
  Machine m(family());
  const Mfn theirs = m.frame(*m.other, Gfn(9));
  ASSERT_TRUE(m.guest().p2m.add({Gfn(0x10000), 1, theirs, FrameType::Foreign}));
  ASSERT_TRUE(m.dom0->p2m.add({Gfn(0x10000), 1, theirs, FrameType::Foreign}));
  const std::uint16_t context = m.attached(m.guest());
  EXPECT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(0x10000), 1).status, Errno::NotPermitted);
  EXPECT_EQ(m.reach(kNic, Dfn(0x100)), std::nullopt);
  EXPECT_EQ(m.xen.references().total(), 0U);
  constexpr RequesterId kHostCard = RequesterId::bdf(10, 0, 0);
  m.assign(*m.dom0, {.requester = kHostCard});
  const std::uint16_t host = m.attached(*m.dom0, kHostCard);
  EXPECT_EQ(m.map(*m.dom0, host, Dfn(0x100), Gfn(0x10000), 1).status, Errno::Ok);
  EXPECT_EQ(m.reach(kHostCard, Dfn(0x100)), theirs);
  EXPECT_EQ(m.xen.references().of(theirs), 1U);
}
// Behaviour 51 (Z13). Kills: a refusal that keeps a lock, or a reference of the pages before it: the next change of the
// same memory, or of the same context, would wait for ever.
TEST_P(XenMap, ARefusedForeignPageLeavesNoLockAndNoReference) {
  Machine m(family());
  const P2mExtent foreign{Gfn(kGuestPages), 1, m.frame(*m.other, Gfn(9)), FrameType::Foreign};
  ASSERT_EQ(m.xen.add_memory(m.cpu, m.guest(), foreign).run(), Errno::Ok);
  const std::uint16_t context = m.attached(m.guest());
  const auto mapped = m.map(m.guest(), context, Dfn(0x100), Gfn(kGuestPages - 2), 4);
  EXPECT_EQ(mapped.status, Errno::NotPermitted);
  EXPECT_EQ(mapped.done, 2U);
  EXPECT_FALSE(m.context(m.guest(), context).lock.held);
  EXPECT_FALSE(m.guest().p2m_lock.held);
  EXPECT_EQ(m.xen.references().total(), 2U);
  EXPECT_EQ(m.xen.remove_memory(m.cpu, m.guest(), Gfn(kGuestPages), 1).run(), Errno::Ok);
  EXPECT_EQ(m.unmap(m.guest(), context, Dfn(0x100), 2).status, Errno::Ok);
  EXPECT_EQ(m.xen.references().total(), 0U);
}
// Behaviour 30, whatever the history. Kills: a table page that is forgotten, or given back twice.
TEST_P(XenMap, AllTablePagesReturnToTheArena) {
  Machine m(family());
  const std::uint16_t context = m.alloc(m.guest());
  const std::uint64_t empty = m.arena_used(m.guest());
  for (const std::uint64_t dfn : {1ULL, 0x200ULL, 0x40000ULL, 0x8000000ULL, 0x1ffULL})
    ASSERT_EQ(m.map(m.guest(), context, Dfn(dfn), Gfn(20), 1).status, Errno::Ok);
  EXPECT_GE(m.arena_used(m.guest()), empty + 5);
  for (const std::uint64_t dfn : {0x40000ULL, 1ULL, 0x8000000ULL, 0x1ffULL, 0x200ULL})
    ASSERT_EQ(m.unmap(m.guest(), context, Dfn(dfn), 1).status, Errno::Ok);
  EXPECT_EQ(m.arena_used(m.guest()), empty);
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x200), Gfn(20), 700).status, Errno::Ok);
  ASSERT_EQ(m.free(m.guest(), context), Errno::Ok);
  EXPECT_EQ(m.arena_used(m.guest()), 0U);
}
// Behaviour 52.
TEST_P(XenMap, MmioIsMappedWithoutAReference) {
  Machine m(family());
  const Mfn bar{Hpa(m.host.size().value())};
  ASSERT_TRUE(m.guest().p2m.add({Gfn(0x10000), 8, bar, FrameType::Mmio}));
  const std::uint16_t context = m.attached(m.guest());
  EXPECT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(0x10000), 8).status, Errno::Ok);
  EXPECT_EQ(m.reach(kNic, Dfn(0x107)), bar + 7);
  EXPECT_EQ(m.xen.references().total(), 0U);
  EXPECT_EQ(m.unmap(m.guest(), context, Dfn(0x100), 8).status, Errno::Ok);
}
// Behaviour 54. Kills: a flush, or a count, for nothing.
TEST_P(XenMap, NoPagesSucceedAndDoNothing) {
  Machine m(family());
  const std::uint16_t context = m.attached(m.guest());
  m.unit().forget_history();
  const auto mapped = m.map(m.guest(), context, Dfn(1), Gfn(1), 0);
  EXPECT_EQ(mapped.status, Errno::Ok);
  EXPECT_EQ(mapped.done, 0U);
  const auto unmapped = m.unmap(m.guest(), context, Dfn(1), 0);
  EXPECT_EQ(unmapped.status, Errno::Ok);
  EXPECT_EQ(unmapped.done, 0U);
  EXPECT_TRUE(m.unit().applied.empty());
  EXPECT_EQ(m.unit().fences, 0U);
}
// Behaviour 55. Kills: addresses masked to the width of the table, which alias others.
TEST_P(XenMap, AddressesBeyondTheLimitAreRefusedAndAliasNothing) {
  Machine m(family());
  const std::uint16_t context = m.attached(m.guest());
  const std::uint64_t limit = m.xen.last_dfn().value() + 1;
  for (const std::uint64_t beyond :
       std::array<std::uint64_t, 7>{limit, limit + 5, limit * 2, limit * 4 + 5, 1ULL << 51, (1ULL << 52) + 5, ~0ULL}) {
    EXPECT_EQ(m.map(m.guest(), context, Dfn(beyond), Gfn(5), 1).status, Errno::AddressNotAvailable) << beyond;
    EXPECT_EQ(m.unmap(m.guest(), context, Dfn(beyond), 1).status, Errno::NoEntry) << beyond;
  }
  EXPECT_EQ(m.reach(kNic, Dfn(5)), std::nullopt);
  const auto across = m.map(m.guest(), context, Dfn(limit - 2), Gfn(5), 4);
  EXPECT_EQ(across.status, Errno::AddressNotAvailable);
  EXPECT_EQ(across.done, 2U);
  EXPECT_EQ(m.reach(kNic, Dfn(0)), std::nullopt);
  EXPECT_EQ(m.unmap(m.guest(), context, Dfn(limit - 2), 4).done, 2U);
  EXPECT_EQ(m.xen.references().total(), 0U);
}
// Behaviour 56 (Z12).
TEST_P(XenMap, AMappingWithoutPermissionsIsInvalidAndLeaksNoReference) {
  Machine m(family());
  const std::uint16_t context = m.alloc(m.guest());
  for (const std::uint32_t flags : {0U, abi::kMapCache, 8U, 1U << 31, abi::kMapReadable | 8U})
    EXPECT_EQ(m.map(m.guest(), context, Dfn(1), Gfn(1), 1, flags).status, Errno::Invalid) << flags;
  EXPECT_EQ(m.xen.references().total(), 0U);
  EXPECT_EQ(m.unmap(m.guest(), context, Dfn(1), 1).status, Errno::NoEntry);
}
// Behaviour 57. Kills: permission bits exchanged, or always both.
TEST_P(XenMap, PermissionsAreThoseAskedFor) {
  Machine m(family());
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(1), Gfn(1), 1, abi::kMapReadable).status, Errno::Ok);
  ASSERT_EQ(m.map(m.guest(), context, Dfn(2), Gfn(2), 1, abi::kMapWriteable).status, Errno::Ok);
  ASSERT_EQ(m.map(m.guest(), context, Dfn(3), Gfn(3), 1, Machine::kReadWriteFlags | abi::kMapCache).status, Errno::Ok);
  EXPECT_EQ(m.reach(kNic, Dfn(1), Access::Read), m.frame(m.guest(), Gfn(1)));
  EXPECT_EQ(m.reach(kNic, Dfn(1), Access::Write), std::nullopt);
  EXPECT_EQ(m.reach(kNic, Dfn(2), Access::Write), m.frame(m.guest(), Gfn(2)));
  EXPECT_EQ(m.reach(kNic, Dfn(3), Access::Read), m.frame(m.guest(), Gfn(3)));
  EXPECT_EQ(m.reach(kNic, Dfn(3), Access::Write), m.frame(m.guest(), Gfn(3)));
}
// Of formats that can express it.
TEST_P(XenMap, AWriteOnlyMappingFaultsReads) {
  Machine m(family());
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(2), Gfn(2), 1, abi::kMapWriteable).status, Errno::Ok);
  EXPECT_EQ(m.reach(kNic, Dfn(2), Access::Read), std::nullopt);
}
// Behaviour 59. Kills: a count of what was asked for, and lost arena pages.
TEST_P(XenMap, AnEmptyArenaStopsTheCallAndWhatWasMappedStays) {
  Machine m(family());
  ASSERT_EQ(m.init(m.guest(), 2, 3), Errno::Ok);  // eight table pages
  const std::uint16_t context = m.attached(m.guest());
  // Each piece needs a last-level table of its own.
  std::uint64_t pieces = 0;
  Machine::Pages mapped;
  while (mapped.status == Errno::Ok) {
    mapped = m.map(m.guest(), context, Dfn((pieces << 9) + 508), Gfn(40), 4);
    if (mapped.status == Errno::Ok) ++pieces;
  }
  EXPECT_EQ(mapped.status, Errno::NoMemory);
  EXPECT_EQ(mapped.done, 0U);
  ASSERT_GT(pieces, 1U);
  // A call that needs one table too many: its first half is there.
  const auto across = m.map(m.guest(), context, Dfn((pieces << 9) - 512 + 504), Gfn(44), 4);
  EXPECT_EQ(across.status, Errno::Ok);
  ASSERT_EQ(m.unmap(m.guest(), context, Dfn((pieces << 9) - 4), 4).status, Errno::Ok);
  const auto half = m.map(m.guest(), context, Dfn((pieces << 9) - 4), Gfn(50), 8);
  EXPECT_EQ(half.status, Errno::NoMemory);
  EXPECT_EQ(half.done, 4U);
  EXPECT_EQ(m.reach(kNic, Dfn((pieces << 9) - 1)), m.frame(m.guest(), Gfn(53)));
  EXPECT_EQ(m.reach(kNic, Dfn(pieces << 9)), std::nullopt);
  EXPECT_EQ(m.references(m.guest(), Gfn(53)), 1U);
  EXPECT_EQ(m.references(m.guest(), Gfn(54)), 0U);
  EXPECT_EQ(m.free(m.guest(), context, abi::kFreeReattachDefault), Errno::Ok);
  EXPECT_EQ(m.arena_used(m.guest()), 0U);
  EXPECT_EQ(m.xen.references().total(), 0U);
}
// Behaviours 60 and 61.
TEST_P(XenMap, AFullTableOfContiguousPagesBecomesOneLargePage) {
  Machine m(family(), {.xen = {.coalesce = Coalesce::Yes}});
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.frame(m.guest(), Gfn(512)).value() % 512, 0U);
  ASSERT_EQ(m.map(m.guest(), context, Dfn(1024), Gfn(512), 511).status, Errno::Ok);
  ASSERT_NE(m.reach(kNic, Dfn(1024)), std::nullopt);
  const std::uint64_t used = m.arena_used(m.guest());
  m.unit().forget_history();
  ASSERT_EQ(m.map(m.guest(), context, Dfn(1024 + 511), Gfn(512 + 511), 1).status, Errno::Ok);
  EXPECT_EQ(m.context(m.guest(), context).table->lookup(Dfn(1024).address().value())->page_lg2, 21);
  EXPECT_EQ(m.arena_used(m.guest()), used - 1);
  for (const std::uint64_t i : {0U, 1U, 255U, 511U})
    EXPECT_EQ(m.reach(kNic, Dfn(1024 + i)), m.frame(m.guest(), Gfn(512 + i)));
  ASSERT_EQ(m.unit().count(InvalidationKind::Iotlb), 1U);
  EXPECT_FALSE(m.unit().applied.front().range) << "merging raises a domain-wide flush";
}
// Behaviour 60, negative: what is not contiguous, aligned or equal stays as it is.
TEST_P(XenMap, PagesThatAreNotOneBlockDoNotBecomeALargePage) {
  Machine m(family(), {.xen = {.coalesce = Coalesce::Yes}});
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(1024), Gfn(513), 512).status, Errno::Ok);  // misaligned frames
  ASSERT_EQ(m.map(m.guest(), context, Dfn(2048), Gfn(512), 300).status, Errno::Ok);
  ASSERT_EQ(m.map(m.guest(), context, Dfn(2348), Gfn(812), 212, abi::kMapReadable).status, Errno::Ok);
  for (const std::uint64_t dfn : {1024U, 2048U})
    EXPECT_EQ(m.context(m.guest(), context).table->lookup(Dfn(dfn).address().value())->page_lg2, kPageLg2);
  EXPECT_EQ(m.reach(kNic, Dfn(1024 + 511)), m.frame(m.guest(), Gfn(513 + 511)));
  EXPECT_EQ(m.reach(kNic, Dfn(2048 + 511), Access::Write), std::nullopt);
}
// Behaviour 62 (Z11). Kills: a table page that returns to the arena before the flush that follows the edit.
TEST_P(XenMap, AReplacedTableReturnsToTheArenaOnlyAfterTheFlush) {
  Machine m(family(), {.xen = {.coalesce = Coalesce::Yes}});
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(1024), Gfn(512), 511).status, Errno::Ok);
  const std::uint64_t used = m.arena_used(m.guest());
  std::uint64_t seen = 0;
  m.unit().before_command = [&](const CommandEffect&) {
    ++seen;
    EXPECT_EQ(m.arena_used(m.guest()), used);
  };
  ASSERT_EQ(m.map(m.guest(), context, Dfn(1024 + 511), Gfn(512 + 511), 1).status, Errno::Ok);
  EXPECT_GT(seen, 1U);
  EXPECT_EQ(m.arena_used(m.guest()), used - 1);
}
// Behaviour 63. Kills: slices that repeat, skip, or forget what was counted.
TEST_P(XenMap, APreemptedCallGoesOnWhereItStopped) {
  for (const std::uint64_t slice : {1ULL, 3ULL, 7ULL, 64ULL}) {
    Machine m(family(), {.xen = {.slice_pages = slice}});
    const std::uint16_t context = m.attached(m.guest());
    const std::uint64_t traps = m.cpu.charged()[CostId::Hypercall];
    abi::MapPages map = Machine::map_argument(context, Dfn(0x100), Gfn(20), 50);
    EXPECT_EQ(m.call(m.guest(), Subop::MapPages, map), Errno::Ok);
    EXPECT_EQ(map.mapped, 50U);
    EXPECT_EQ(map.nr_pages, 0U);
    EXPECT_EQ(map.gfn, 70U);
    EXPECT_EQ(map.dfn, 0x100U + 50);
    const std::uint64_t slices = (50 + slice - 1) / slice;
    EXPECT_EQ(m.op.counters().continuations, slices - 1);
    EXPECT_EQ(m.cpu.charged()[CostId::Hypercall] - traps, slices);
    for (std::uint64_t i = 0; i < 50; ++i) EXPECT_EQ(m.reach(kNic, Dfn(0x100 + i)), m.frame(m.guest(), Gfn(20 + i)));
    abi::UnmapPages unmap = Machine::unmap_argument(context, Dfn(0x100), 50);
    EXPECT_EQ(m.call(m.guest(), Subop::UnmapPages, unmap), Errno::Ok);
    EXPECT_EQ(unmap.unmapped, 50U);
    EXPECT_EQ(m.op.counters().continuations, 2 * (slices - 1));
    EXPECT_EQ(m.xen.references().total(), 0U);
  }
}
// Behaviour 64: the documented choice is that the count adds up, so that continuations need no memory of their own.
TEST_P(XenMap, TheCountAddsToWhatTheCallerLeftThere) {
  Machine m(family());
  const std::uint16_t context = m.attached(m.guest());
  abi::MapPages map = Machine::map_argument(context, Dfn(0x100), Gfn(20), 3);
  map.mapped = 39;
  EXPECT_EQ(m.call(m.guest(), Subop::MapPages, map), Errno::Ok);
  EXPECT_EQ(map.mapped, 42U);
  abi::UnmapPages unmap = Machine::unmap_argument(context, Dfn(0x100), 3);
  unmap.unmapped = 0xffffffff;
  EXPECT_EQ(m.call(m.guest(), Subop::UnmapPages, unmap), Errno::Ok);
  EXPECT_EQ(unmap.unmapped, 2U);
}
// Behaviour 66, and frames that are scattered in the machine.
TEST_P(XenMap, OneCallAndACallPerPageGiveTheSameTable) {
  Machine m(family());
  Domain* scattered =
      m.xen.create_domain({.name = "scattered", .memory = 1_MiB, .backing = Backing::Fragmented, .page_lg2 = kPageLg2});
  ASSERT_NE(scattered, nullptr);
  ASSERT_GT(scattered->p2m.extents().size(), 16U) << "this test is about scattered frames";
  m.assign(*scattered, {.requester = RequesterId::bdf(20, 0, 0)});
  const std::uint16_t one = m.attached(*scattered, RequesterId::bdf(20, 0, 0));
  const std::uint16_t two = m.alloc(*scattered);
  EXPECT_EQ(m.map(*scattered, one, Dfn(0x100), Gfn(16), 64).done, 64U);
  for (std::uint64_t i = 0; i < 64; ++i) ASSERT_EQ(m.map(*scattered, two, Dfn(0x100 + i), Gfn(16 + i), 1).done, 1U);
  for (std::uint64_t i = 0; i < 64; ++i) {
    const std::uint64_t input = Dfn(0x100 + i).address().value();
    const auto leaf = m.context(*scattered, one).table->lookup(input);
    EXPECT_EQ(leaf, m.context(*scattered, two).table->lookup(input));
    EXPECT_EQ(m.reach(RequesterId::bdf(20, 0, 0), Dfn(0x100 + i)), m.frame(*scattered, Gfn(16 + i)));
  }
}

// The structure may vanish while the call is preempted: the caller's loss. Kills: a crash, or pages that nobody counts.
TEST_P(XenMap, AContextFreedDuringAPreemptedCallEndsIt) {
  Machine m(family(), {.xen = {.slice_pages = 4}});
  const std::uint16_t context = m.alloc(m.guest());
  Stepper stepper(m.host);
  abi::MapPages map = Machine::map_argument(context, Dfn(0x100), Gfn(20), 50);
  ASSERT_TRUE(m.guest().memory.write(Gpa(0x20000), std::as_bytes(std::span(&map, 1))));
  auto mapping = m.op.call(stepper.add_cpu(), m.guest(), static_cast<std::uint32_t>(Subop::MapPages), Gpa(0x20000));
  mapping.start();
  Rng rng(1);
  while (m.op.counters().continuations < 2) ASSERT_TRUE(stepper.step(rng));
  ASSERT_FALSE(mapping.done());
  ASSERT_FALSE(m.context(m.guest(), context).lock.held) << "between two slices";
  ASSERT_EQ(m.free(m.guest(), context), Errno::Ok);
  stepper.run();
  ASSERT_TRUE(mapping.done());
  EXPECT_EQ(mapping.result(), static_cast<std::int64_t>(Errno::Invalid));
  ASSERT_TRUE(m.guest().memory.read(Gpa(0x20000), std::as_writable_bytes(std::span(&map, 1))));
  EXPECT_EQ(map.mapped, 8U);
  EXPECT_EQ(m.xen.references().total(), 0U);
}

}  // namespace
}  // namespace iommu::xen
