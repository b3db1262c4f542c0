// SPDX-License-Identifier: Apache-2.0
// What this project proposes beside the RFC's calls, continued: maps that are undone when they fail, contexts for the
// devices of some buses only, domain tags that are taken when devices come, and what a call excludes while it works.
#include <gtest/gtest.h>

#include <vector>

#include "sim/xen/xen_test_support.hpp"

namespace iommu::xen {
namespace {

using abi::Subop;

std::uint16_t context_of(const Domain& domain, RequesterId device) {
  return domain.devices.at(device).context->number.value();
}
constexpr std::uint32_t kUndone = Machine::kReadWriteFlags | abi::kMapAllOrNothing;

// Maps that are undone ------------------------------------------------------------------------------------------------

class XenUndo : public XenFamilies {};
XEN_ON_ALL_FAMILIES(XenUndo);

MachineOptions undoing() { return {.op = {.error_report = ErrorReport::Address}}; }

// Kills: a flag that is there without being asked for, a limit that nobody checks, batches whose operations are undone.
TEST_P(XenUndo, TheFlagExistsOnlyWhereItIsOfferedAndForMapPagesAlone) {
  Machine plain(family());
  const std::uint16_t context = plain.attached(plain.guest());
  EXPECT_EQ(plain.capabilities(plain.guest()).cap_flags & abi::kCapAllOrNothing, 0U);
  EXPECT_EQ(plain.map(plain.guest(), context, Dfn(7), Gfn(7), 1, kUndone).status, Errno::Invalid);

  MachineOptions merging = undoing();
  merging.xen.coalesce = Coalesce::Yes;
  Machine merged(family(), merging);
  EXPECT_EQ(merged.capabilities(merged.guest()).cap_flags & abi::kCapAllOrNothing, 0U) << "undoing may need a table";

  MachineOptions options = undoing();
  options.op.batching = Batching::Offered;
  options.op.scattered = ScatteredMap::Offered;
  Machine m(family(), options);
  const std::uint16_t mine = m.attached(m.guest());
  EXPECT_NE(m.capabilities(m.guest()).cap_flags & abi::kCapAllOrNothing, 0U);
  EXPECT_EQ(m.map(m.guest(), mine, Dfn(7), Gfn(7), abi::kMostUndoablePages + 1, kUndone).status, Errno::TooBig);
  abi::MapScattered list{.ctx_no = mine, .dfn = 7, .frames = 0x40000, .map_flags = kUndone, .nr_frames = 1};
  EXPECT_EQ(m.call(m.guest(), Subop::MapScattered, list), Errno::Invalid);
  abi::BatchOp op{.map_flags = kUndone, .gfn = 7, .dfn = 7, .pgsize = 4096, .nr_pages = 1};
  ASSERT_TRUE(m.guest().memory.write(Gpa(0x40000), std::as_bytes(std::span(&op, 1))));
  abi::Batch batch{.ctx_no = mine, .nr_ops = 1, .ops = 0x40000};
  EXPECT_EQ(m.call(m.guest(), Subop::Batch, batch), Errno::Ok);
  ASSERT_TRUE(m.guest().memory.read(Gpa(0x40000), std::as_writable_bytes(std::span(&op, 1))));
  EXPECT_EQ(op.status, static_cast<std::int32_t>(Errno::Invalid));
  EXPECT_EQ(m.xen.references().total(), 0U);
}
// Wherever it fails: nothing of the call is left, what was there before is untouched, and `dfn` says where. Kills: a
// rollback that forgets a reference, a table or a flush; one that takes the obstacle away as well; a wrong address.
TEST_P(XenUndo, AMapThatFailsLeavesNothingAndNamesTheAddress) {
  for (const std::uint32_t conflict : {0U, 1U, 5U, 511U, 512U, 599U}) {
    MachineOptions options = undoing();
    options.xen.slice_pages = 100;
    Machine m(family(), options);
    const std::uint16_t context = m.attached(m.guest());
    const Dfn first(0x1e0);
    ASSERT_EQ(m.map(m.guest(), context, first + conflict, Gfn(9), 1).status, Errno::Ok);
    const std::uint64_t arena = m.arena_used(m.guest());
    const std::uint64_t references = m.xen.references().total();
    abi::MapPages argument = Machine::map_argument(context, first, Gfn(20), 600, kUndone);
    EXPECT_EQ(m.call(m.guest(), Subop::MapPages, argument), Errno::AddressInUse) << conflict;
    EXPECT_EQ(argument.mapped, 0U);
    EXPECT_EQ(argument.dfn, (first + conflict).value());
    EXPECT_EQ(m.reach(kNic, first + conflict), m.frame(m.guest(), Gfn(9)));
    if (conflict != 0) {
      EXPECT_EQ(m.reach(kNic, first), std::nullopt);
      EXPECT_EQ(m.reach(kNic, first + (conflict - 1)), std::nullopt);
    }
    EXPECT_EQ(m.xen.references().total(), references);
    EXPECT_EQ(m.arena_used(m.guest()), arena);
    EXPECT_EQ(m.op.counters().continuations, 0U) << "one slice, so that nobody sees half of it";
  }
}
// A frame that is nothing, the end of the space, an exhausted pool: the same.
TEST_P(XenUndo, EveryReasonIsUndone) {
  Machine m(family(), undoing());
  const std::uint16_t context = m.attached(m.guest());
  abi::MapPages argument = Machine::map_argument(context, Dfn(0x100), Gfn(kGuestPages - 3), 8, kUndone);
  EXPECT_EQ(m.call(m.guest(), Subop::MapPages, argument), Errno::NoEntry);
  EXPECT_EQ(argument.dfn, 0x103U);
  argument = Machine::map_argument(context, m.xen.last_dfn(), Gfn(1), 2, kUndone);
  EXPECT_EQ(m.call(m.guest(), Subop::MapPages, argument), Errno::AddressNotAvailable);
  EXPECT_EQ(argument.dfn, m.xen.last_dfn().value() + 1);
  EXPECT_EQ(m.xen.references().total(), 0U);
  EXPECT_EQ(m.reach(kNic, Dfn(0x100)), std::nullopt);
  while (m.guest().pv->arena->allocate(0)) {
  }
  argument = Machine::map_argument(context, Dfn(0x1ff), Gfn(1), 2, kUndone);
  EXPECT_EQ(m.call(m.guest(), Subop::MapPages, argument), Errno::NoMemory);
  EXPECT_EQ(m.xen.references().total(), 0U);
  EXPECT_EQ(m.reach(kNic, Dfn(0x1ff)), std::nullopt);
}
// A device saw the pages meanwhile. Kills: undone pages that stay in the IOTLB; frames that are free before the flush.
TEST_P(XenUndo, WhatWasUndoneIsFlushedBeforeItsFramesAreFree) {
  Machine m(family(), undoing());
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(0x104), Gfn(9), 1).status, Errno::Ok);
  m.unit().forget_history();
  EXPECT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 8, kUndone).status, Errno::AddressInUse);
  EXPECT_EQ(m.unit().fences, 1U);
  ASSERT_FALSE(m.unit().applied.empty());
  m.xen.unit(0).lose_invalidations(1000);
  EXPECT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 8, kUndone).status, Errno::InputOutput);
  EXPECT_EQ(m.references(m.guest(), Gfn(20)), 1U) << "a device may still reach it";
  m.xen.unit(0).lose_invalidations(1);
  EXPECT_EQ(m.map(m.guest(), context, Dfn(0x100), Gfn(20), 8, kUndone).status, Errno::AddressInUse);
  EXPECT_EQ(m.references(m.guest(), Gfn(20)), 0U);
}

// Buses ---------------------------------------------------------------------------------------------------------------

class XenBuses : public XenFamilies {};
XEN_ON_ALL_FAMILIES(XenBuses);

// Kills: a range that is told and not kept, one that binds the hardware domain, one that changes a device it refuses.
TEST_P(XenBuses, AGuestMovesOnlyDevicesOfItsBusesAndIsToldWhich) {
  Machine m(family(), {.op = {.buses = {.first = 8, .last = 9}}});
  for (const unsigned bus : {7U, 8U, 9U, 10U}) m.assign(m.guest(), {.requester = RequesterId::bdf(bus, 0, 0)});
  abi::Buses buses;
  EXPECT_NE(m.capabilities(m.guest()).cap_flags & abi::kCapBuses, 0U);
  EXPECT_EQ(m.call(m.guest(), Subop::QueryBuses, buses), Errno::Ok);
  EXPECT_EQ(buses.first, 8U);
  EXPECT_EQ(buses.last, 9U);
  const std::uint16_t context = m.alloc(m.guest());
  for (const unsigned bus : {7U, 10U}) {
    const RequesterId outside = RequesterId::bdf(bus, 0, 0);
    EXPECT_EQ(m.reattach(m.guest(), outside, context), Errno::NotPermitted);
    EXPECT_EQ(m.reach(outside, Dfn(7)), m.frame(m.guest(), Gfn(7)));
  }
  for (const unsigned bus : {8U, 9U}) EXPECT_EQ(m.reattach(m.guest(), RequesterId::bdf(bus, 0, 0), context), Errno::Ok);
  EXPECT_EQ(m.reattach(m.guest(), RequesterId::bdf(11, 0, 0), context), Errno::NoDevice) << "not even its own";

  m.assign(*m.dom0, {.requester = RequesterId::bdf(1, 0, 0)});
  EXPECT_EQ(m.reattach(*m.dom0, RequesterId::bdf(1, 0, 0), m.alloc(*m.dom0)), Errno::Ok);
  EXPECT_EQ(m.call(*m.dom0, Subop::QueryBuses, buses), Errno::Ok);
  EXPECT_EQ(buses.last, 0xffU);
}
TEST_P(XenBuses, WithoutARangeThereIsNothingToAsk) {
  Machine m(family());
  abi::Buses buses;
  EXPECT_EQ(m.capabilities(m.guest()).cap_flags & abi::kCapBuses, 0U);
  EXPECT_EQ(m.call(m.guest(), Subop::QueryBuses, buses), Errno::Unsupported);
}

// Tags at attach ------------------------------------------------------------------------------------------------------

class XenLateTags : public XenFamilies {};
XEN_ON_ALL_FAMILIES(XenLateTags);

MachineOptions late_tags(std::size_t units = 1) {
  return {.units = units, .xen = {.tag_allocation = TagAllocation::AtAttach}};
}
std::vector<DomainTag> take_all_tags(PhysicalUnit& unit) {
  std::vector<DomainTag> hoard;
  while (const auto tag = unit.allocate_tag()) hoard.push_back(*tag);
  return hoard;
}

// Kills: tags of units that no device is behind; a tag per device; tags that stay when the last device leaves.
TEST_P(XenLateTags, AContextHasTagsWhereItsDevicesAre) {
  Machine m(family(), late_tags(2));  // the disk is behind the second unit
  const std::uint16_t number = m.alloc(m.guest());
  const IoContext& context = m.context(m.guest(), number);
  EXPECT_EQ(context.tags, (std::vector<std::optional<DomainTag>>(2)));
  ASSERT_EQ(m.reattach(m.guest(), kNic, number), Errno::Ok);
  EXPECT_TRUE(context.tags[0]);
  EXPECT_FALSE(context.tags[1]);
  ASSERT_EQ(m.map(m.guest(), number, Dfn(7), Gfn(70), 1).status, Errno::Ok);
  ASSERT_EQ(m.reattach(m.guest(), kDisk, number), Errno::Ok);
  EXPECT_EQ(m.reach(kNic, Dfn(7)), m.frame(m.guest(), Gfn(70)));
  EXPECT_EQ(m.reach(kDisk, Dfn(7)), m.frame(m.guest(), Gfn(70)));
  ASSERT_EQ(m.reattach(m.guest(), kNic, 0), Errno::Ok);
  EXPECT_FALSE(context.tags[0]);
  EXPECT_TRUE(context.tags[1]);
  const std::uint64_t in_use = m.xen.unit(1).tag_counters().in_use;
  ASSERT_EQ(m.free(m.guest(), number, abi::kFreeReattachDefault), Errno::Ok);
  EXPECT_EQ(m.xen.unit(1).tag_counters().in_use, in_use - 1);
}
// Contexts are free where tags are scarce: running out is told by the attach, and the device stays where it was.
// Kills: -ENOSPC at creation; a device without translation, a reserved region or a tag left behind by a refused attach.
TEST_P(XenLateTags, RunningOutIsReportedByTheAttachAndChangesNothing) {
  Machine m(family(), late_tags());
  const std::uint16_t one = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), one, Dfn(7), Gfn(70), 1).status, Errno::Ok);
  const std::vector<DomainTag> hoard = take_all_tags(m.xen.unit(0));
  const std::uint16_t two = m.alloc(m.guest());
  const std::uint64_t refused = m.xen.unit(0).tag_counters().refused;
  EXPECT_EQ(m.reattach(m.guest(), kNic, two), Errno::NoSpace);
  EXPECT_EQ(m.xen.unit(0).tag_counters().refused, refused + 1);
  EXPECT_EQ(context_of(m.guest(), kNic), one);
  EXPECT_EQ(m.reach(kNic, Dfn(7)), m.frame(m.guest(), Gfn(70)));
  // A second device of a context needs no tag of its own; one that leaves gives its context's back.
  EXPECT_EQ(m.reattach(m.guest(), kDisk, one), Errno::Ok);
  ASSERT_EQ(m.reattach(m.guest(), kDisk, 0), Errno::Ok);
  ASSERT_EQ(m.reattach(m.guest(), kNic, 0), Errno::Ok);
  EXPECT_EQ(m.reattach(m.guest(), kNic, two), Errno::Ok);
  EXPECT_EQ(m.reach(kNic, Dfn(7)), std::nullopt);
}
// Kills: a tag that is given away while caches still hold what was translated under it.
TEST_P(XenLateTags, TheNextOwnerOfATagSeesNothingOfTheLast) {
  Machine m(family(), late_tags());
  const std::uint16_t mine = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), mine, Dfn(7), Gfn(7), 1).status, Errno::Ok);
  ASSERT_NE(m.reach(kNic, Dfn(7)), std::nullopt);
  const std::optional<DomainTag> tag = m.context(m.guest(), mine).tags.front();
  ASSERT_EQ(m.reattach(m.guest(), kNic, 0), Errno::Ok);
  const std::uint16_t alien = m.attached(*m.other, kAlien);
  ASSERT_EQ(m.context(*m.other, alien).tags.front(), tag) << "this test is about a tag that is used again";
  EXPECT_EQ(m.reach(kAlien, Dfn(7)), std::nullopt);
  // And back: mappings outlive the tag.
  ASSERT_EQ(m.reattach(m.guest(), kNic, mine), Errno::Ok);
  EXPECT_EQ(m.reach(kNic, Dfn(7)), m.frame(m.guest(), Gfn(7)));
}

// Lock granularity ----------------------------------------------------------------------------------------------------

class XenLocks : public XenFamilies {};
XEN_ON_ALL_FAMILIES(XenLocks);

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
TEST_P(XenLocks, ACoarserLockKeepsOtherContextsOutUntilTheFlushIsDone) {
  EXPECT_TRUE(second_gets_to_its_flush(family(), LockGranularity::Context));
  EXPECT_FALSE(second_gets_to_its_flush(family(), LockGranularity::Domain));
  EXPECT_FALSE(second_gets_to_its_flush(family(), LockGranularity::Iommu));
}
// A call waits for the coarser lock while its context is freed. Kills: a context that is gone before the call finds it
// dying.
TEST_P(XenLocks, AContextIsKeptForACallThatWaitsForTheCoarserLock) {
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
TEST_P(XenLocks, ALockPerUnitLeavesOtherUnitsAlone) {
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
