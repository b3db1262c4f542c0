// SPDX-License-Identifier: Apache-2.0
// What this project proposes beside the RFC's calls: batches, scattered maps, an explicit page order, and what a call
// excludes while it works.
#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "sim/xen/xen_test_support.hpp"

namespace iommu::xen {
namespace {

using abi::BatchKind;
using abi::BatchOp;
using abi::Subop;

constexpr Gpa kOps{0x40000};
constexpr std::uint32_t k4KiB = 4096;
constexpr std::uint32_t k2MiB = 2U << 20;

MachineOptions offering() {
  return {.deferred = DeferredFlush::Offered,
          .op = {.batching = Batching::Offered, .scattered = ScatteredMap::Offered}};
}
BatchOp map_op(std::uint64_t dfn, std::uint64_t gfn, std::uint32_t pages, std::uint32_t pgsize = k4KiB) {
  return {.kind = static_cast<std::uint16_t>(BatchKind::Map),
          .map_flags = Machine::kReadWriteFlags,
          .gfn = gfn,
          .dfn = dfn,
          .pgsize = pgsize,
          .nr_pages = pages};
}
BatchOp unmap_op(std::uint64_t dfn, std::uint32_t pages, BatchKind kind = BatchKind::Unmap) {
  return {.kind = static_cast<std::uint16_t>(kind), .dfn = dfn, .pgsize = k4KiB, .nr_pages = pages};
}

struct Result {
  Errno status = Errno::Ok;
  std::vector<BatchOp> ops;
  std::uint32_t first = 0;
  [[nodiscard]] Errno of(std::size_t op) const { return static_cast<Errno>(ops[op].status); }
};
Result batch(Machine& m, std::uint16_t context, std::vector<BatchOp> ops, std::uint16_t flags = 0) {
  EXPECT_TRUE(m.guest().memory.write(kOps, std::as_bytes(std::span(ops))));
  abi::Batch argument{
      .ctx_no = context, .flags = flags, .nr_ops = static_cast<std::uint32_t>(ops.size()), .ops = kOps.value()};
  Result result;
  result.status = m.call(m.guest(), Subop::Batch, argument);
  result.first = argument.first;
  result.ops = std::move(ops);
  EXPECT_TRUE(m.guest().memory.read(kOps, std::as_writable_bytes(std::span(result.ops))));
  return result;
}

class XenBatch : public XenFamilies {};
XEN_ON_ALL_FAMILIES(XenBatch);

// Kills: proposals that are there without being asked for, or that a guest cannot find.
TEST_P(XenBatch, ProposalsExistOnlyWhereTheyAreOffered) {
  Machine plain(family());
  std::uint16_t context = plain.alloc(plain.guest());
  EXPECT_EQ(plain.capabilities(plain.guest()).cap_flags, abi::kCapDefaultIdentity);
  EXPECT_EQ(batch(plain, context, {map_op(1, 1, 1)}).status, Errno::Unsupported);
  abi::MapScattered list{.ctx_no = context};
  EXPECT_EQ(plain.call(plain.guest(), Subop::MapScattered, list), Errno::Unsupported);

  Machine m(family(), offering());
  context = m.alloc(m.guest());
  EXPECT_EQ(m.capabilities(m.guest()).cap_flags,
            abi::kCapDefaultIdentity | abi::kCapDeferredFlush | abi::kCapBatch | abi::kCapScatter);
  EXPECT_EQ(batch(m, context, {map_op(1, 1, 1)}).status, Errno::Ok);
  EXPECT_EQ(m.op.counters().batch, 1U);
  EXPECT_EQ(m.op.counters().unknown, 0U);
}

// Kills: a flush per operation, operations out of order, the flush left out, its range too small.
TEST_P(XenBatch, MixedOperationsTakeEffectInOrderWithOneFlush) {
  Machine m(family(), offering());
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x1ff), Gfn(1), 1).status, Errno::Ok);  // keeps the table
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 4).status, Errno::Ok);
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x140), Gfn(30), 1).status, Errno::Ok);
  for (const std::uint64_t dfn : {0x100U, 0x102U, 0x140U}) ASSERT_TRUE(m.reach(kNic, Dfn(dfn)));
  m.unit().forget_history();
  const std::uint64_t flushes = m.xen.counters().flush_calls;
  const std::uint64_t accesses = m.cpu.charged()[CostId::GuestPageAccess];
  const Result done =
      batch(m, context, {unmap_op(0x100, 2), map_op(0x180, 40, 3), unmap_op(0x140, 1), map_op(0x100, 50, 1)});
  EXPECT_EQ(done.status, Errno::Ok);
  for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(done.of(i), Errno::Ok) << i;
  EXPECT_EQ(done.ops[1].done, 3U);
  EXPECT_EQ(m.cpu.charged()[CostId::GuestPageAccess] - accesses, 1U) << "of the list, which is in one page";
  EXPECT_EQ(m.xen.counters().flush_calls, flushes + 1);
  EXPECT_EQ(m.unit().fences, 1U);
  EXPECT_EQ(m.reach(kNic, Dfn(0x100)), m.frame(m.guest(), Gfn(50)));
  EXPECT_EQ(m.reach(kNic, Dfn(0x101)), std::nullopt);
  EXPECT_EQ(m.reach(kNic, Dfn(0x102)), m.frame(m.guest(), Gfn(22)));
  EXPECT_EQ(m.reach(kNic, Dfn(0x140)), std::nullopt);
  EXPECT_EQ(m.reach(kNic, Dfn(0x182)), m.frame(m.guest(), Gfn(42)));
}
// Kills: ranges that are merged into the whole domain although each could be named.
TEST_P(XenBatch, EachUnmappedRangeIsInvalidatedAlone) {
  Machine m(family(), offering());
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 16).status, Errno::Ok);
  m.unit().forget_history();
  ASSERT_EQ(batch(m, context, {unmap_op(0x101, 1), unmap_op(0x108, 1)}).status, Errno::Ok);
  ASSERT_EQ(m.unit().count(InvalidationKind::Iotlb), 2U);
  for (const InvalidationScope& scope : m.unit().applied) EXPECT_TRUE(scope.range);
  EXPECT_EQ(m.unit().fences, 1U);
}
// Kills: a batch that ends at the first refusal, statuses that move to a neighbour, a count of what was not done.
TEST_P(XenBatch, ARefusedOperationKeepsItsStatusAndTheOthersHappen) {
  Machine m(family(), offering());
  const std::uint16_t context = m.attached(m.guest());
  BatchOp odd = map_op(0x300, 1, 1);
  odd.kind = 77;
  odd.done = 77;
  BatchOp flagged = unmap_op(0x100, 1);
  flagged.map_flags = 1;
  BatchOp padded = map_op(0x300, 1, 1);
  padded.pad = 1;
  const Result done = batch(m, context,
                            {map_op(0x100, 20, 2), map_op(0x101, 30, 2), odd, unmap_op(0x200, 1), flagged,
                             map_op(0x110, kGuestPages, 1), map_op(0x120, 40, 1, k2MiB), map_op(0x130, 50, 1), padded});
  EXPECT_EQ(done.status, Errno::Ok);
  const std::array expected{Errno::Ok,      Errno::AddressInUse, Errno::Invalid, Errno::NoEntry, Errno::Invalid,
                            Errno::NoEntry, Errno::Invalid,      Errno::Ok,      Errno::Invalid};
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(done.of(i), expected[i]) << i;
    EXPECT_EQ(done.ops[i].done, expected[i] == Errno::Ok ? done.ops[i].nr_pages : 0) << i;
  }
  EXPECT_EQ(m.reach(kNic, Dfn(0x130)), m.frame(m.guest(), Gfn(50)));
  EXPECT_EQ(m.xen.references().total(), 3U);
}
// Kills: references and table pages that are given back before the one flush.
TEST_P(XenBatch, NothingIsReusedBeforeTheFlushAtTheEnd) {
  Machine m(family(), offering());
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(1024), Gfn(20), 1).status, Errno::Ok);
  ASSERT_EQ(m.map(m.guest(), context, Dfn(4096), Gfn(21), 1).status, Errno::Ok);
  const std::uint64_t used = m.arena_used(m.guest());
  std::uint64_t seen = 0;
  m.unit().before_command = [&](const CommandEffect&) {
    ++seen;
    EXPECT_EQ(m.references(m.guest(), Gfn(20)) + m.references(m.guest(), Gfn(21)), 2U);
    EXPECT_EQ(m.arena_used(m.guest()), used);
  };
  ASSERT_EQ(batch(m, context, {unmap_op(1024, 1), unmap_op(4096, 1)}).status, Errno::Ok);
  EXPECT_GT(seen, 0U);
  EXPECT_EQ(m.xen.references().total(), 0U);
  EXPECT_LT(m.arena_used(m.guest()), used);
}
// Kills: an operation repeated or lost at a preemption; a slice that never ends because one operation is larger.
TEST_P(XenBatch, APreemptedBatchGoesOnWithTheNextOperation) {
  for (const std::uint64_t slice : {1ULL, 3ULL, 5ULL, 64ULL}) {
    MachineOptions options = offering();
    options.xen.slice_pages = slice;
    Machine m(family(), options);
    const std::uint16_t context = m.attached(m.guest());
    std::vector<BatchOp> ops;
    for (std::uint64_t i = 0; i < 10; ++i) ops.push_back(map_op(0x100 + 4 * i, 20 + 2 * i, 2));
    const Result done = batch(m, context, ops);
    EXPECT_EQ(done.status, Errno::Ok);
    EXPECT_EQ(done.first, 10U);
    // Of operations with two pages each; what is larger than a slice is several.
    const std::uint64_t per_slice = std::max<std::uint64_t>(slice / 2, 1);
    const std::uint64_t slices = slice == 1 ? 20 : (10 + per_slice - 1) / per_slice;
    EXPECT_EQ(m.op.counters().continuations, slices - 1) << slice;
    EXPECT_EQ(m.op.counters().batched_operations, 10U);
    for (std::uint64_t i = 0; i < 10; ++i) {
      EXPECT_EQ(done.of(i), Errno::Ok);
      EXPECT_EQ(m.reach(kNic, Dfn(0x101 + 4 * i)), m.frame(m.guest(), Gfn(21 + 2 * i)));
    }
  }
}
// F8. Kills: one operation of a batch that keeps its vCPU for as long as the guest likes; pages lost between its
// slices, or counted beyond a refusal.
TEST_P(XenBatch, AnOperationLargerThanASliceIsPreempted) {
  MachineOptions options = offering();
  options.xen.slice_pages = 7;
  Machine m(family(), options);
  const std::uint16_t context = m.attached(m.guest());
  Result done = batch(m, context, {map_op(0x100, 20, 50)});
  EXPECT_EQ(done.of(0), Errno::Ok);
  EXPECT_EQ(done.ops[0].done, 50U);
  EXPECT_EQ(m.op.counters().continuations, 7U);
  for (std::uint64_t i = 0; i < 50; ++i) ASSERT_EQ(m.reach(kNic, Dfn(0x100 + i)), m.frame(m.guest(), Gfn(20 + i)));
  done = batch(m, context, {map_op(0x200, kGuestPages - 10, 20), unmap_op(0x100, 50)});
  EXPECT_EQ(done.of(0), Errno::NoEntry);
  EXPECT_EQ(done.ops[0].done, 10U);
  EXPECT_EQ(done.of(1), Errno::Ok);
  EXPECT_EQ(done.ops[1].done, 50U);
  for (std::uint64_t i = 0; i < 50; ++i) ASSERT_EQ(m.reach(kNic, Dfn(0x100 + i)), std::nullopt);
  EXPECT_EQ(m.xen.references().total(), 10U);
}
// Kills: an index or an address that is taken on trust.
TEST_P(XenBatch, MalformedBatchesAreRefusedWhole) {
  Machine m(family(), offering());
  const std::uint16_t context = m.alloc(m.guest());
  const auto status = [&](abi::Batch argument) { return m.call(m.guest(), Subop::Batch, argument); };
  const abi::Batch sound{.ctx_no = context, .nr_ops = 1, .ops = kOps.value()};
  const auto with = [&](auto change) {
    abi::Batch argument = sound;
    change(argument);
    return argument;
  };
  EXPECT_EQ(status(with([](auto& b) { b.nr_ops = abi::kMostBatchOps + 1; })), Errno::TooBig);
  EXPECT_EQ(status(with([](auto& b) { b.nr_ops = ~0U; })), Errno::TooBig);
  EXPECT_EQ(status(with([](auto& b) { b.first = 2; })), Errno::Invalid);
  EXPECT_EQ(status(with([](auto& b) { b.flags = 2; })), Errno::Invalid);
  EXPECT_EQ(status(with([](auto& b) { b.ctx_no = 0; })), Errno::Invalid);
  EXPECT_EQ(status(with([](auto& b) { b.ctx_no = 7; })), Errno::Invalid);
  EXPECT_EQ(status(with([](auto& b) { b.ops = ~0ULL - 3; })), Errno::BadAddress);
  EXPECT_EQ(status(with([](auto& b) { b.ops = kPageSize.value() * kGuestPages - 8; })), Errno::BadAddress);
  EXPECT_EQ(m.raw(m.guest(), static_cast<std::uint32_t>(Subop::Batch), Gpa(~0ULL)), Errno::BadAddress);
  EXPECT_EQ(status(with([](auto& b) { b.pad = 1; })), Errno::Invalid);
  EXPECT_EQ(status(with([](auto& b) { b.nr_ops = 0; })), Errno::Ok);
  EXPECT_EQ(status(with([](auto& b) { b.nr_ops = abi::kMostBatchOps; })), Errno::Ok) << "as many as there may be";
  EXPECT_EQ(m.xen.references().total(), 0U);
}
// Kills: a batch as a way round the offer.
TEST_P(XenBatch, WithoutDeferredFlushABatchHasNoneEither) {
  Machine m(family(), {.op = {.batching = Batching::Offered}});
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 1).status, Errno::Ok);
  EXPECT_EQ(batch(m, context, {unmap_op(0x100, 1, BatchKind::UnmapDeferred)}).of(0), Errno::Invalid);
  EXPECT_EQ(batch(m, context, {unmap_op(0x100, 1)}, abi::kBatchFlushContext).status, Errno::Invalid);
  EXPECT_EQ(m.reach(kNic, Dfn(0x100)), m.frame(m.guest(), Gfn(20)));
}
// Kills: a flush at the end that forgets what deferred operations left, or is done without them.
TEST_P(XenBatch, DeferredOperationsWaitForTheFlushOfTheSameBatch) {
  Machine m(family(), offering());
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 4).status, Errno::Ok);
  ASSERT_TRUE(m.reach(kNic, Dfn(0x100)));
  const std::uint64_t flushes = m.xen.counters().flush_calls;
  ASSERT_EQ(batch(m, context, {unmap_op(0x100, 1, BatchKind::UnmapDeferred)}).of(0), Errno::Ok);
  EXPECT_EQ(m.xen.counters().flush_calls, flushes);
  EXPECT_EQ(m.references(m.guest(), Gfn(20)), 1U);
  EXPECT_TRUE(m.reach(kNic, Dfn(0x100))) << "the hazard that deferring is";
  const auto done = batch(m, context, {unmap_op(0x101, 1, BatchKind::UnmapDeferred)}, abi::kBatchFlushContext);
  EXPECT_EQ(done.status, Errno::Ok);
  EXPECT_EQ(m.xen.counters().flush_calls, flushes + 1);
  EXPECT_EQ(m.references(m.guest(), Gfn(20)) + m.references(m.guest(), Gfn(21)), 0U);
  EXPECT_EQ(m.reach(kNic, Dfn(0x100)), std::nullopt);
}

abi::MapScattered scattered(Machine& m, std::uint16_t context, std::uint64_t dfn, std::vector<std::uint64_t> frames) {
  EXPECT_TRUE(m.guest().memory.write(kOps, std::as_bytes(std::span(frames))));
  return {.ctx_no = context,
          .dfn = dfn,
          .frames = kOps.value(),
          .map_flags = Machine::kReadWriteFlags,
          .nr_frames = static_cast<std::uint32_t>(frames.size())};
}
// F19. Kills: frames in another order, neighbours taken for one another, a slice that begins again.
TEST_P(XenBatch, AScatteredMapIsTheSameTableAsACallPerPage) {
  const std::vector<std::uint64_t> frames{9, 10, 11, 700, 30, 29, 28, 31, 5, 6};
  for (const std::uint64_t slice : {1ULL, 4ULL, 4096ULL}) {
    MachineOptions options = offering();
    options.xen.slice_pages = slice;
    Machine m(family(), options);
    const std::uint16_t context = m.attached(m.guest());
    abi::MapScattered list = scattered(m, context, 0x1fa, frames);
    EXPECT_EQ(m.call(m.guest(), Subop::MapScattered, list), Errno::Ok);
    EXPECT_EQ(list.mapped, frames.size());
    for (std::size_t i = 0; i < frames.size(); ++i)
      EXPECT_EQ(m.reach(kNic, Dfn(0x1fa + i)), m.frame(m.guest(), Gfn(frames[i]))) << i;
    EXPECT_EQ(m.xen.references().total(), frames.size());
    EXPECT_EQ(m.op.counters().continuations, (frames.size() + slice - 1) / slice - 1);
  }
}
// Kills: frames behind the one that failed, a count beyond it, an unbounded list.
TEST_P(XenBatch, AScatteredMapStopsAtTheFirstFrameThatCannotBeMapped) {
  Machine m(family(), offering());
  const std::uint16_t context = m.attached(m.guest());
  abi::MapScattered list = scattered(m, context, 0x100, {9, 10, kGuestPages + 5, 11});
  EXPECT_EQ(m.call(m.guest(), Subop::MapScattered, list), Errno::NoEntry);
  EXPECT_EQ(list.mapped, 2U);
  EXPECT_EQ(m.reach(kNic, Dfn(0x103)), std::nullopt);
  list = scattered(m, context, 0x200, {1});
  list.nr_frames = abi::kMostScatteredFrames + 1;
  EXPECT_EQ(m.call(m.guest(), Subop::MapScattered, list), Errno::TooBig);
  list.nr_frames = 1;
  list.frames = ~0ULL - 7;
  EXPECT_EQ(m.call(m.guest(), Subop::MapScattered, list), Errno::BadAddress);
  list.mapped = 2;
  EXPECT_EQ(m.call(m.guest(), Subop::MapScattered, list), Errno::Invalid);
}

// Page order ----------------------------------------------------------------------------------------------------------

MachineOptions ordered(unsigned guest_page_lg2 = 21) {
  return {.op = {.batching = Batching::Offered, .page_order = PageOrder::Explicit}, .guest_page_lg2 = guest_page_lg2};
}
Errno map_large(Machine& m, std::uint16_t context, std::uint64_t dfn, std::uint64_t gfn, abi::MapPages& argument,
                std::uint32_t pages = 1) {
  argument = Machine::map_argument(context, Dfn(dfn), Gfn(gfn), pages);
  argument.pgsize = k2MiB;
  return m.call(m.guest(), Subop::MapPages, argument);
}
std::uint8_t leaf_at(Machine& m, std::uint16_t context, std::uint64_t dfn) {
  return m.context(m.guest(), context).table->lookup(Dfn(dfn).address().value())->page_lg2;
}

// F1. Kills: sizes that hardware does not have, sizes that are advertised and refused, 512 entries instead of one.
TEST_P(XenBatch, AnAdvertisedPageSizeIsInstalledAsOneLeaf) {
  Machine m(family(), ordered());
  EXPECT_EQ(m.capabilities(m.guest()).pgsize_mask, k4KiB | k2MiB | 1U << 30);
  const std::uint16_t context = m.attached(m.guest());
  abi::MapPages map;
  const std::uint64_t lookups = m.cpu.charged()[CostId::P2mLookup];
  const std::uint64_t written = m.cpu.charged()[CostId::TableWrite];
  ASSERT_EQ(map_large(m, context, 1024, 512, map, 2), Errno::Ok);
  EXPECT_EQ(map.mapped, 2U);
  EXPECT_EQ(map.dfn, 2048U);
  EXPECT_EQ(leaf_at(m, context, 1024), 21U);
  EXPECT_EQ(m.cpu.charged()[CostId::P2mLookup] - lookups, 2U) << "one for each page of the p2m";
  EXPECT_LT(m.cpu.charged()[CostId::TableWrite] - written, 8U);
  EXPECT_EQ(m.xen.references().total(), 1024U) << "Xen has no page that counts for 512";
  for (const std::uint64_t i : {0U, 511U, 512U, 1023U})
    EXPECT_EQ(m.reach(kNic, Dfn(1024 + i)), m.frame(m.guest(), Gfn(512 + i)));
  abi::UnmapPages unmap = Machine::unmap_argument(context, Dfn(1024), 2);
  unmap.pgsize = k2MiB;
  EXPECT_EQ(m.call(m.guest(), Subop::UnmapPages, unmap), Errno::Ok);
  EXPECT_EQ(unmap.unmapped, 2U);
  EXPECT_EQ(m.reach(kNic, Dfn(1024)), std::nullopt);
  EXPECT_EQ(m.xen.references().total(), 0U);

  for (const MachineOptions& without :
       {MachineOptions{.features = {.superpages = false}}, MachineOptions{.xen = {.coalesce = Coalesce::Yes}}}) {
    MachineOptions options = without;
    options.op.page_order = PageOrder::Explicit;
    Machine small(family(), options);
    EXPECT_EQ(small.capabilities(small.guest()).pgsize_mask, k4KiB) << "without such pages, or merging them itself";
  }
}
// Behaviours 14 and 27 (Z7) for the largest size. Kills: a size that is announced and refused; a teardown that takes
// the level for the order, gives back one reference for a leaf, or never ends.
TEST_P(XenBatch, AnAdvertisedGigabyteMapsAndIsGivenBackPageByPage) {
  MachineOptions options = ordered(30);
  options.guest_pages = 1U << 18;
  Machine m(family(), options);
  ASSERT_NE(m.capabilities(m.guest()).pgsize_mask & 1U << 30, 0U);
  const std::uint16_t context = m.attached(m.guest());
  abi::MapPages map = Machine::map_argument(context, Dfn(1U << 18), Gfn(0), 1);
  map.pgsize = 1U << 30;
  ASSERT_EQ(m.call(m.guest(), Subop::MapPages, map), Errno::Ok);
  EXPECT_EQ(map.mapped, 1U);
  EXPECT_EQ(leaf_at(m, context, 1U << 18), 30U);
  EXPECT_EQ(m.reach(kNic, Dfn((2U << 18) - 1)), m.frame(m.guest(), Gfn((1U << 18) - 1)));
  EXPECT_EQ(m.xen.references().total(), 1U << 18);
  EXPECT_EQ(m.free(m.guest(), context, abi::kFreeReattachDefault), Errno::Ok);
  EXPECT_EQ(m.xen.references().total(), 0U);
  EXPECT_EQ(m.arena_used(m.guest()), 0U);
}
// Kills: a large leaf over frames that are strangers in the machine.
TEST_P(XenBatch, PiecesThatAreNotContiguousInTheMachineBecomeSmallLeaves) {
  Machine m(family(), ordered());
  Domain* torn = m.xen.create_domain({.name = "torn", .memory = 4_MiB, .backing = Backing::Fragmented});
  m.assign(*torn, {.requester = RequesterId::bdf(20, 0, 0)});
  const std::uint16_t context = m.attached(*torn, RequesterId::bdf(20, 0, 0));
  abi::MapPages map = Machine::map_argument(context, Dfn(1024), Gfn(512), 1);
  map.pgsize = k2MiB;
  ASSERT_EQ(m.call(*torn, Subop::MapPages, map), Errno::Ok);
  EXPECT_EQ(map.mapped, 1U);
  EXPECT_EQ(m.context(*torn, context).table->lookup(Dfn(1024).address().value())->page_lg2, kPageLg2);
  for (const std::uint64_t i : {0U, 1U, 300U, 511U})
    EXPECT_EQ(m.reach(RequesterId::bdf(20, 0, 0), Dfn(1024 + i)), m.frame(*torn, Gfn(512 + i)));
}
// Kills: half a page that stays mapped and is not counted; its references kept; the rest of the call lost.
TEST_P(XenBatch, AMapThatStopsWithinALargePageTakesThatPageBack) {
  Machine m(family(), ordered());
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(1536 + 100), Gfn(1), 1).status, Errno::Ok);
  abi::MapPages map;
  EXPECT_EQ(map_large(m, context, 1024, 512, map, 2), Errno::AddressInUse);
  EXPECT_EQ(map.mapped, 1U);
  EXPECT_EQ(m.reach(kNic, Dfn(1024)), m.frame(m.guest(), Gfn(512)));
  EXPECT_EQ(m.reach(kNic, Dfn(1536 + 99)), std::nullopt);
  EXPECT_EQ(m.reach(kNic, Dfn(1536 + 100)), m.frame(m.guest(), Gfn(1)));
  EXPECT_EQ(m.xen.references().total(), 513U);
}
// The same in a table of its own. Kills: a table that is taken back and never given back; no flush for what devices may
// have seen.
TEST_P(XenBatch, TakingALargePageBackIsFlushedAndGivesItsTablesBack) {
  Machine m(family(), ordered());
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.xen.remove_memory(m.cpu, m.guest(), Gfn(512 + 300), 1).run(), Errno::Ok);
  const std::uint64_t used = m.arena_used(m.guest());
  m.unit().forget_history();
  abi::MapPages map;
  EXPECT_EQ(map_large(m, context, 1024, 512, map), Errno::NoEntry);
  EXPECT_EQ(map.mapped, 0U);
  EXPECT_EQ(m.arena_used(m.guest()), used);
  EXPECT_EQ(m.unit().count(InvalidationKind::Iotlb), 1U);
  EXPECT_EQ(m.xen.references().total(), 0U);
}
// Kills: a misaligned large page; a batch in which a size means another one.
TEST_P(XenBatch, LargePagesAreAlignedInBothSpaces) {
  Machine m(family(), ordered());
  const std::uint16_t context = m.attached(m.guest());
  abi::MapPages map;
  EXPECT_EQ(map_large(m, context, 1024 + 1, 512, map), Errno::Invalid);
  EXPECT_EQ(map_large(m, context, 1024, 512 + 1, map), Errno::Invalid);
  abi::UnmapPages unmap = Machine::unmap_argument(context, Dfn(1024 + 1), 1);
  unmap.pgsize = k2MiB;
  EXPECT_EQ(m.call(m.guest(), Subop::UnmapPages, unmap), Errno::Invalid);
  BatchOp crooked = unmap_op(1025, 1);
  crooked.pgsize = k2MiB;
  const Result done =
      batch(m, context, {map_op(1024, 512, 1, k2MiB), map_op(4096, 512, 1), map_op(4097, 512, 1, k2MiB), crooked});
  EXPECT_EQ(done.of(0), Errno::Ok);
  EXPECT_EQ(done.ops[0].done, 1U);
  EXPECT_EQ(leaf_at(m, context, 1024), 21U);
  EXPECT_EQ(leaf_at(m, context, 4096), kPageLg2);
  EXPECT_EQ(done.of(2), Errno::Invalid);
  EXPECT_EQ(done.of(3), Errno::Invalid);
  EXPECT_EQ(m.reach(kNic, Dfn(1025)), m.frame(m.guest(), Gfn(513)));
}
// Kills: a large leaf that nobody set pages aside for, so that splitting it fails; pages set aside twice.
TEST_P(XenBatch, ALargeLeafReservesTheTablesThatSplitIt) {
  MachineOptions options = ordered();
  options.xen.shatter_reserve = ShatterReserve::Kept;
  Machine m(family(), options);
  ASSERT_EQ(m.init(m.guest(), 2, 4), Errno::Ok);  // 16 pages
  const std::uint16_t context = m.attached(m.guest());
  abi::MapPages map;
  ASSERT_EQ(map_large(m, context, 1024, 512, map), Errno::Ok);
  EXPECT_EQ(m.guest().pv->arena->reserve(), 1U);
  std::uint64_t at = 8;
  while (m.map(m.guest(), context, Dfn(at << 9), Gfn(7), 1).status == Errno::Ok) ++at;
  EXPECT_EQ(map_large(m, context, 1536, 1024, map), Errno::NoMemory) << "its entry has a place, its split has none";
  EXPECT_EQ(m.unmap(m.guest(), context, Dfn(1024 + 7), 1).status, Errno::Ok);
  EXPECT_EQ(m.reach(kNic, Dfn(1024 + 8)), m.frame(m.guest(), Gfn(512 + 8)));
  EXPECT_EQ(m.guest().pv->arena->reserve(), 0U);
  EXPECT_EQ(map_large(m, context, 512ULL * 600, 512, map), Errno::NoMemory) << "nothing is left to reserve";
  EXPECT_EQ(m.free(m.guest(), context, abi::kFreeReattachDefault), Errno::Ok);
  EXPECT_EQ(m.arena_used(m.guest()), 0U);
}

// A unit that does not answer (Z16)
// ------------------------------------------------------------------------------------

// Kills: a failure that is only logged; a page reused although devices may still reach it; a retry that never ends.
TEST_P(XenBatch, AFlushWithoutAnAnswerIsRetriedByContinuation) {
  Machine m(family());
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 2).status, Errno::Ok);
  ASSERT_TRUE(m.reach(kNic, Dfn(0x100)));
  m.xen.unit(0).lose_invalidations(2);
  const std::uint64_t traps = m.cpu.charged()[CostId::Hypercall];
  const auto unmapped = m.unmap(m.guest(), context, Dfn(0x100), 1);
  EXPECT_EQ(unmapped.status, Errno::Ok);
  EXPECT_EQ(unmapped.done, 1U);
  EXPECT_EQ(m.op.counters().continuations, 2U);
  EXPECT_EQ(m.cpu.charged()[CostId::Hypercall] - traps, 3U);
  EXPECT_EQ(m.reach(kNic, Dfn(0x100)), std::nullopt);
  EXPECT_EQ(m.references(m.guest(), Gfn(20)), 0U);
}
TEST_P(XenBatch, AFlushThatTheGuestAsksForIsRetriedAsWell) {
  Machine m(family(), offering());
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 2).status, Errno::Ok);
  ASSERT_TRUE(m.reach(kNic, Dfn(0x100)));
  ASSERT_EQ(m.unmap(m.guest(), context, Dfn(0x100), 2, Subop::UnmapPagesDeferred).status, Errno::Ok);
  m.xen.unit(0).lose_invalidations(2);
  abi::FlushContext flush{.ctx_no = context};
  EXPECT_EQ(m.call(m.guest(), Subop::FlushContext, flush), Errno::Ok);
  EXPECT_EQ(m.op.counters().continuations, 2U);
  EXPECT_EQ(m.reach(kNic, Dfn(0x100)), std::nullopt);
  EXPECT_EQ(m.xen.references().total(), 0U);
}
// Kills: a refusal that hides that the pages before it were not flushed, or that the retry forgets.
TEST_P(XenBatch, ACallThatStopsHalfWayTellsOfItsFlushFirst) {
  Machine m(family(), offering());
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 2).status, Errno::Ok);
  ASSERT_TRUE(m.reach(kNic, Dfn(0x100)));
  m.xen.unit(0).lose_invalidations(1);
  auto unmapped = m.unmap(m.guest(), context, Dfn(0x100), 3);
  EXPECT_EQ(unmapped.status, Errno::NoEntry);
  EXPECT_EQ(unmapped.done, 2U);
  EXPECT_EQ(m.reach(kNic, Dfn(0x100)), std::nullopt);
  EXPECT_EQ(m.xen.references().total(), 0U);
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 2).status, Errno::Ok);
  ASSERT_TRUE(m.reach(kNic, Dfn(0x100)));
  m.xen.unit(0).lose_invalidations(1000);
  unmapped = m.unmap(m.guest(), context, Dfn(0x100), 3);
  EXPECT_EQ(unmapped.status, Errno::InputOutput);
  EXPECT_EQ(unmapped.done, 2U);
  EXPECT_EQ(m.xen.references().total(), 2U) << "devices may still reach them";
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x180), Gfn(30), 2).status, Errno::Ok);
  m.xen.unit(0).lose_invalidations(1);
  const Result done = batch(m, context, {unmap_op(0x180, 3)});
  EXPECT_EQ(done.of(0), Errno::NoEntry) << "the retry succeeded";
  EXPECT_EQ(done.ops[0].done, 2U);
  EXPECT_EQ(m.xen.references().total(), 0U);
}
TEST_P(XenBatch, AFlushThatNeverSucceedsIsAnErrorAndKeepsThePages) {
  Machine m(family(), offering());
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 2).status, Errno::Ok);
  const std::uint64_t used = m.arena_used(m.guest());
  m.xen.unit(0).lose_invalidations(1000);
  EXPECT_EQ(m.unmap(m.guest(), context, Dfn(0x100), 1).status, Errno::InputOutput);
  EXPECT_EQ(batch(m, context, {unmap_op(0x101, 1)}).of(0), Errno::InputOutput);
  abi::FlushContext flush{.ctx_no = context};
  EXPECT_EQ(m.call(m.guest(), Subop::FlushContext, flush), Errno::InputOutput);
  EXPECT_EQ(m.references(m.guest(), Gfn(20)) + m.references(m.guest(), Gfn(21)), 2U) << "devices may still reach them";
  EXPECT_EQ(m.arena_used(m.guest()), used);
  EXPECT_EQ(batch(m, context, {}, abi::kBatchFlushContext).status, Errno::InputOutput);
  m.xen.unit(0).lose_invalidations(0);
  EXPECT_EQ(m.call(m.guest(), Subop::FlushContext, flush), Errno::Ok);
  EXPECT_EQ(m.xen.references().total(), 0U);
  EXPECT_LT(m.arena_used(m.guest()), used);
}

// Elsewhere. Kills: an answer that nobody waits for; a device left between two contexts; pages of the old one reused; a
// hardware domain that crashes, or a guest that goes on.
TEST_P(XenBatch, AMoveWithoutAnAnswerBlocksTheDeviceAndCrashesAGuest) {
  for (const bool is_host : {false, true}) {
    Machine m(family());
    Domain& domain = is_host ? *m.dom0 : m.guest();
    constexpr RequesterId kCard = RequesterId::bdf(9, 0, 0);
    m.assign(domain, {.requester = kCard});
    const std::uint16_t one = m.attached(domain, kCard);
    const std::uint16_t two = m.alloc(domain);
    ASSERT_EQ(m.map(domain, two, Dfn(1), Gfn(20), 1).status, Errno::Ok);
    m.xen.unit(0).lose_invalidations(1);
    EXPECT_EQ(m.reattach(domain, kCard, two), Errno::InputOutput);
    EXPECT_EQ(domain.crashed, !is_host);
    EXPECT_EQ(domain.devices.at(kCard).context, &m.context(domain, one));
    EXPECT_TRUE(m.context(domain, two).devices.empty());
    EXPECT_EQ(m.free(domain, one), Errno::Busy) << "caches may know it";
    EXPECT_EQ(m.reattach(domain, kCard, two), Errno::Ok);
    EXPECT_EQ(m.reach(kCard, Dfn(1)), m.frame(domain, Gfn(20)));
    m.xen.unit(0).lose_invalidations(1);
    EXPECT_EQ(m.xen.move_device(m.cpu, domain, *m.other, kCard).run(), Errno::InputOutput);
    EXPECT_FALSE(m.other->devices.contains(kCard));
  }
}
TEST_P(XenBatch, AChangeOfMemoryWithoutAnAnswerIsAnErrorAndCrashesAGuest) {
  Machine m(family());
  constexpr RequesterId kHostCard = RequesterId::bdf(10, 0, 0);
  m.assign(*m.dom0, {.requester = kHostCard});
  for (Domain* domain : {&m.guest(), m.dom0}) {
    m.xen.unit(0).lose_invalidations(1);
    EXPECT_EQ(m.xen.remove_memory(m.cpu, *domain, Gfn(0x100), 4).run(), Errno::InputOutput);
    EXPECT_EQ(domain->crashed, domain != m.dom0);
  }
}

// Lock granularity ----------------------------------------------------------------------------------------------------

// Two vCPUs that unmap in contexts of their own: while one waits for its fence, can the other get as far?
bool second_gets_to_its_flush(const FamilyDescriptor& family, LockGranularity lock) {
  Machine m(family, {.op = {.lock = lock}});
  const std::uint16_t a = m.attached(m.guest(), kNic);
  const std::uint16_t b = m.attached(m.guest(), kDisk);
  EXPECT_EQ(m.map(m.guest(), a, Dfn(1), Gfn(20), 2).status, Errno::Ok);
  EXPECT_EQ(m.map(m.guest(), b, Dfn(1), Gfn(30), 2).status, Errno::Ok);
  m.unit().execution = CachingUnit::Execution::OnRequest;
  Stepper stepper(m.host);
  std::vector<Task<std::int64_t>> calls;
  Gpa at{0x20000};
  for (const std::uint16_t context : {a, b}) {
    abi::UnmapPages unmap = Machine::unmap_argument(context, Dfn(1), 1);
    EXPECT_TRUE(m.guest().memory.write(at, std::as_bytes(std::span(&unmap, 1))));
    calls.push_back(m.op.call(stepper.add_cpu(), m.guest(), static_cast<std::uint32_t>(Subop::UnmapPages), at));
    calls.back().start();
    stepper.run();  // until it polls for its fence, or waits for a lock
    at = at + kPageSize;
  }
  const bool reached = !m.context(m.guest(), b).table->lookup(kPageSize.value());
  m.unit().execute();
  m.unit().execution = CachingUnit::Execution::AtOnce;
  stepper.run();
  for (auto& call : calls) EXPECT_TRUE(call.done() && call.result() == 0);
  return reached;
}
// Kills: a lock that is released before the flush, one that is not taken, one that belongs to something else.
TEST_P(XenBatch, ACoarserLockKeepsOtherContextsOutUntilTheFlushIsDone) {
  EXPECT_TRUE(second_gets_to_its_flush(family(), LockGranularity::Context));
  EXPECT_FALSE(second_gets_to_its_flush(family(), LockGranularity::Domain));
  EXPECT_FALSE(second_gets_to_its_flush(family(), LockGranularity::Iommu));
}
// A call waits for the coarser lock while its context is freed. Kills: a context that is gone before the call finds it
// dying.
TEST_P(XenBatch, AContextIsKeptForACallThatWaitsForTheCoarserLock) {
  for (const Subop subop : {Subop::UnmapPages, Subop::FlushContext}) {
    Machine m(family(), {.deferred = DeferredFlush::Offered, .op = {.lock = LockGranularity::Domain}});
    const std::uint16_t context = m.alloc(m.guest());
    ASSERT_EQ(m.map(m.guest(), context, Dfn(1), Gfn(20), 1).status, Errno::Ok);
    abi::UnmapPages unmap = Machine::unmap_argument(context, Dfn(1), 1);
    abi::FlushContext flush{.ctx_no = context};
    constexpr Gpa kAt{0x20000};
    ASSERT_TRUE(m.guest().memory.write(kAt, std::as_bytes(std::span(&unmap, 1))));
    if (subop == Subop::FlushContext) ASSERT_TRUE(m.guest().memory.write(kAt, std::as_bytes(std::span(&flush, 1))));
    Stepper stepper(m.host);
    CpuPort& holder = stepper.add_cpu();
    const auto hold = [](CpuPort& cpu, SpinLock& lock) -> Task<void> { co_await cpu.acquire(lock); };
    auto holding = hold(holder, m.guest().pv_lock);
    holding.start();
    auto calling = m.op.call(stepper.add_cpu(), m.guest(), static_cast<std::uint32_t>(subop), kAt);
    calling.start();
    stepper.run();
    ASSERT_FALSE(calling.done());
    ASSERT_EQ(m.free(m.guest(), context), Errno::Ok);
    EXPECT_EQ(m.guest().retired_contexts.size(), 1U);
    holder.release(m.guest().pv_lock);
    stepper.run();
    ASSERT_TRUE(calling.done());
    if (subop == Subop::UnmapPages) EXPECT_EQ(calling.result(), static_cast<std::int64_t>(Errno::Invalid));
    EXPECT_EQ(m.xen.references().total(), 0U);
  }
}
// Kills: a lock of all units instead of those that the context's devices are behind.
TEST_P(XenBatch, ALockPerUnitLeavesOtherUnitsAlone) {
  Machine m(family(), {.units = 2, .op = {.lock = LockGranularity::Iommu}});
  const std::uint16_t nic = m.attached(m.guest(), kNic);
  const std::uint16_t disk = m.attached(m.guest(), kDisk);
  ASSERT_EQ(m.map(m.guest(), nic, Dfn(1), Gfn(20), 1).status, Errno::Ok);
  ASSERT_EQ(m.map(m.guest(), disk, Dfn(1), Gfn(20), 1).status, Errno::Ok);
  m.xen.unit(0).operation_lock().held = true;  // somebody works behind the first unit
  EXPECT_EQ(m.unmap(m.guest(), disk, Dfn(1), 1).status, Errno::Ok);
  EXPECT_FALSE(m.cpu.would_block());
  m.xen.unit(0).operation_lock().held = false;
  EXPECT_EQ(m.unmap(m.guest(), nic, Dfn(1), 1).status, Errno::Ok);
}

}  // namespace
}  // namespace iommu::xen
