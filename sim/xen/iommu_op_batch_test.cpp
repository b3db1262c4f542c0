// SPDX-License-Identifier: Apache-2.0
// What this project proposes beside the RFC's calls: batches, scattered maps and an explicit page order; and flushes
// that no unit answers.
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

// A unit that does not answer (Z16) -----------------------------------------------------------------------------------

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

}  // namespace
}  // namespace iommu::xen
