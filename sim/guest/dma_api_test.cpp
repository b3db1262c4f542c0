// SPDX-License-Identifier: Apache-2.0
// The DMA API over a scripted address space: what is called in which order, what happens on failure, and that no
// address is used again while a device may still reach what it meant before.
#include "sim/guest/dma_api.hpp"

#include <gtest/gtest.h>

#include <random>
#include <set>

#include "sim/base/rng.hpp"
#include "sim/guest/guest_test_support.hpp"

namespace iommu::guest {
namespace {

using test::Call;
using test::kDevice;
using test::Observer;
using test::ScriptedSpace;
using test::What;

constexpr Gpa kBuffer{0x40000000};
using Calls = std::vector<Call>;

class DmaApiTest : public testing::Test {
 protected:
  DmaApiTest() { observer_.space = &space_; }
  ~DmaApiTest() override { EXPECT_FALSE(cpu_.would_block()) << "a lock was left held"; }

  DmaApi& make(const DmaApiOptions& options = {}, unsigned cpus = 1) {
    api_ = std::make_unique<DmaApi>(kDevice, space_, observer_, options, cpus);
    return *api_;
  }
  DmaApi& make_lazy(std::uint32_t entries = 250) {
    return make({.unmapping = Unmapping::Lazy, .flush_queue_entries = entries});
  }
  DmaMapping map(Gpa address = kBuffer, Bytes length = 4_KiB, DmaDirection direction = DmaDirection::Bidirectional) {
    return api_->map(cpu_, address, length, direction).run();
  }
  DmaMapping map_list(std::vector<ScatterEntry> list) {
    return api_->map_scatterlist(cpu_, std::move(list), kReadWrite).run();
  }
  DmaStatus unmap(Iova address, Bytes length = 4_KiB) { return api_->unmap(cpu_, address, length).run(); }
  DmaStatus map_at(std::uint64_t page, std::uint64_t pages = 1) {
    return api_->map_at(cpu_, {MapSegment{Dfn(page).address(), kBuffer, kPageSize * pages}}).run();
  }
  DmaStatus unmap_at(std::uint64_t page, std::uint64_t pages = 1) {
    return api_->unmap_at(cpu_, range(page, pages)).run();
  }
  static IovaRange range(std::uint64_t page, std::uint64_t pages) { return {Dfn(page).address(), kPageSize * pages}; }
  Calls calls() { return std::exchange(space_.calls, {}); }

  ScriptedSpace space_;
  Observer observer_;
  ImmediateCpu cpu_;
  std::unique_ptr<DmaApi> api_;
};

// Mapping -------------------------------------------------------------------------------------------------------------

// Kills: an address without the buffer's offset; one page too few when the buffer crosses a boundary; no sync.
TEST_F(DmaApiTest, MapCoversAllPagesUnderTheBuffer) {
  make();
  const DmaMapping mapped = map(kBuffer + 0xff0_B, 0x20_B);
  ASSERT_EQ(mapped.status, DmaStatus::Ok);
  EXPECT_EQ(mapped.address.offset_in(kPageLg2), 0xff0U);
  ASSERT_EQ(space_.pages.size(), 2U);
  const Dfn first(mapped.address);
  EXPECT_EQ(space_.pages[first].frame, Gfn(kBuffer));
  EXPECT_EQ(space_.pages[first + 1].frame, Gfn(kBuffer) + 1);
  EXPECT_EQ(calls(), (Calls{Call::Map, Call::SyncMap}));
  ASSERT_EQ(observer_.events.size(), 2U);
  EXPECT_EQ(observer_.events[0].what, What::MapCalled);
  EXPECT_EQ(observer_.events[1].what, What::Mapped);
  EXPECT_EQ(observer_.events[1].range, range(first.value(), 2));
}

// Kills: permissions swapped between the directions, or all for everyone.
TEST_F(DmaApiTest, PermissionsAreThoseOfTheDirection) {
  make();
  const auto permissions = [&](DmaDirection direction) {
    return space_.pages[Dfn(map(kBuffer, 1_KiB, direction).address)].permissions;
  };
  EXPECT_EQ(permissions(DmaDirection::ToDevice), kReadOnly);
  EXPECT_EQ(permissions(DmaDirection::FromDevice), kWriteOnly);
  EXPECT_EQ(permissions(DmaDirection::Bidirectional), kReadWrite);
}

// Kills: segments that do not follow one another; neighbours that are not merged; a sync per segment; an unmap per
// segment.
TEST_F(DmaApiTest, AScatterlistIsOneRangeWithOneSync) {
  make();
  const DmaMapping mapped = map_list({{Gpa(0x10800), 0x800_B}, {Gpa(0x11000), 4_KiB}, {Gpa(0x30000), 0x1001_B}});
  ASSERT_EQ(mapped.status, DmaStatus::Ok);
  EXPECT_EQ(mapped.address.offset_in(kPageLg2), 0x800U);
  EXPECT_EQ(calls(), (Calls{Call::Map, Call::Map, Call::SyncMap})) << "the first two are neighbours";
  const Dfn first(mapped.address);
  const std::vector<std::uint64_t> frames{0x10, 0x11, 0x30, 0x31};
  ASSERT_EQ(space_.pages.size(), frames.size());
  for (std::size_t i = 0; i < frames.size(); ++i) EXPECT_EQ(space_.pages[first + i].frame, Gfn(frames[i]));
  EXPECT_EQ(unmap(first.address(), 16_KiB), DmaStatus::Ok);
  EXPECT_EQ(calls(), (Calls{Call::Unmap, Call::Sync}));
  EXPECT_TRUE(space_.pages.empty());
}

// Kills: an allocation for nothing; sizes that wrap to a few pages.
TEST_F(DmaApiTest, EmptyAndImpossibleMapsAreRejectedWithoutEffect) {
  make();
  EXPECT_EQ(map(kBuffer, 0_B).status, DmaStatus::Rejected);
  EXPECT_EQ(map(kBuffer + 1_B, 0_B).status, DmaStatus::Rejected);
  EXPECT_EQ(map(kBuffer, Bytes(~0ULL)).status, DmaStatus::Rejected);
  EXPECT_EQ(map_list({}).status, DmaStatus::Rejected);
  EXPECT_EQ(map_list({{kBuffer, 4_KiB}, {kBuffer, 0_B}}).status, DmaStatus::Rejected);
  EXPECT_EQ(map_list({{kBuffer, Bytes(1ULL << 47)}, {kBuffer, Bytes((1ULL << 47) + 4096)}}).status,
            DmaStatus::Rejected);
  EXPECT_TRUE(space_.calls.empty() && observer_.events.empty());
  EXPECT_EQ(api_->counters().failures, 6U);
  EXPECT_EQ(api_->counters().maps, 0U);
}

// Kills: a failure reported as success; addresses beyond what the space translates.
TEST_F(DmaApiTest, ExhaustedAddressesAreReported) {
  space_.last = Iova(0x3fff);
  make();
  for (int i = 0; i < 3; ++i) {
    const DmaMapping mapped = map();
    ASSERT_EQ(mapped.status, DmaStatus::Ok);
    EXPECT_LE(mapped.address, space_.last);
  }
  EXPECT_EQ(map().status, DmaStatus::NoAddress);
  EXPECT_EQ(api_->counters().failures, 1U);
}

// Ranges from the space and from the options overlap and touch. Kills: one list in place of both; ranges that the
// allocator takes for disjoint.
TEST_F(DmaApiTest, WhatTheSpaceKeepsBackIsNeverHandedOut) {
  space_.last = Dfn(0x1f).address();
  space_.kept_back = {range(0x8, 4), range(0x10, 4)};
  make({.iova = {.reserved = {{.first = 0x12, .pages = 4}, {.first = 0xc, .pages = 2}}}});
  std::set<Dfn> pages;
  for (DmaMapping mapped = map(); mapped.status == DmaStatus::Ok; mapped = map()) pages.insert(Dfn(mapped.address));
  EXPECT_EQ(pages.size(), 0x1fU - 6 - 6) << "page 0 and the reserved ones";
  for (const Dfn page : pages) {
    EXPECT_FALSE(page >= Dfn(0x8) && page < Dfn(0xe)) << page.value();
    EXPECT_FALSE(page >= Dfn(0x10) && page < Dfn(0x16)) << page.value();
  }
}

// The second of three segments fails after its first page. Kills: pages left mapped; addresses lost, or free before the
// undo is fenced; an observer that never hears the end.
TEST_F(DmaApiTest, AFailedMapLeavesNothing) {
  make();
  space_.maps_left = 1;
  const DmaMapping failed = map_list({{Gpa(0x10000), 8_KiB}, {Gpa(0x20000), 8_KiB}, {Gpa(0x30000), 8_KiB}});
  EXPECT_EQ(failed.status, DmaStatus::NoMemory);
  EXPECT_TRUE(space_.pages.empty());
  EXPECT_TRUE(space_.reachable.empty());
  EXPECT_EQ(calls(), (Calls{Call::Map, Call::Map, Call::Unmap, Call::Sync}));
  EXPECT_EQ(observer_.count(What::Mapped), 0U);
  EXPECT_EQ(observer_.events.back().what, What::Fenced);
  EXPECT_EQ(observer_.events.back().range.length, 16_KiB) << "what was tried";
  space_.maps_left.reset();
  const DmaMapping again = map_list({{Gpa(0x10000), 8_KiB}, {Gpa(0x20000), 16_KiB}});
  EXPECT_EQ(Dfn(again.address).value(), 0xffff8U) << "the same six pages, from the cache of eights";
  EXPECT_EQ(unmap(Dfn(0xffff8).address(), 24_KiB), DmaStatus::Ok);
  EXPECT_EQ(api_->counters().maps, 1U);
  EXPECT_EQ(api_->counters().failures, 1U);
}

// Unmapping -----------------------------------------------------------------------------------------------------------

// Kills: an unmap that returns before its fence; addresses given back before it.
TEST_F(DmaApiTest, StrictUnmapIsFencedBeforeItsAddressIsFree) {
  make();
  const DmaMapping mapped = map(kBuffer + 8_B, 100_B);
  calls();
  EXPECT_EQ(unmap(mapped.address, 100_B), DmaStatus::Ok);
  EXPECT_EQ(calls(), (Calls{Call::Unmap, Call::Sync}));
  ASSERT_EQ(observer_.events.size(), 4U);
  EXPECT_EQ(observer_.events[2].what, What::UnmapCalled);
  EXPECT_EQ(observer_.events[3].what, What::Fenced);
  EXPECT_EQ(observer_.events[3].range, range(Dfn(mapped.address).value(), 1));
  EXPECT_EQ(map(kBuffer + 8_B, 100_B).address, mapped.address);
}

// Kills: unmapping what is not mapped, a part, too much, or twice.
TEST_F(DmaApiTest, UnmapTakesExactlyWhatMapReturned) {
  make();
  const DmaMapping mapped = map(kBuffer, 8_KiB);
  calls();
  EXPECT_EQ(unmap(mapped.address, 4_KiB), DmaStatus::Rejected);
  EXPECT_EQ(unmap(mapped.address + 4_KiB, 4_KiB), DmaStatus::Rejected);
  EXPECT_EQ(unmap(mapped.address, 12_KiB), DmaStatus::Rejected);
  EXPECT_EQ(unmap(Iova(0x5000), 4_KiB), DmaStatus::Rejected);
  EXPECT_EQ(unmap_at(Dfn(mapped.address).value(), 2), DmaStatus::Rejected) << "the allocator owns it";
  EXPECT_TRUE(space_.calls.empty());
  EXPECT_EQ(unmap(mapped.address, 8_KiB), DmaStatus::Ok);
  EXPECT_EQ(unmap(mapped.address, 8_KiB), DmaStatus::Rejected);
  EXPECT_EQ(api_->counters().unmaps, 1U);
  EXPECT_EQ(api_->counters().failures, 6U);
}

// Kills: declaring a range fenced, or reusing it, although the space could not unmap it.
TEST_F(DmaApiTest, AddressesThatCannotBeUnmappedAreNeverReused) {
  make();
  const DmaMapping mapped = map();
  space_.unmap_fails = true;
  EXPECT_EQ(unmap(mapped.address), DmaStatus::NoMemory);
  EXPECT_EQ(observer_.count(What::Fenced), 0U);
  space_.unmap_fails = false;
  EXPECT_NE(map().address, mapped.address);
}

// Kills: calls into a space that has nothing to do; the wrong address.
TEST_F(DmaApiTest, AnIdentitySpaceIsNeverCalled) {
  space_.identity = true;
  make({.unmapping = Unmapping::Lazy});
  EXPECT_FALSE(api_->is_lazy());
  EXPECT_EQ(map(kBuffer + 123_B).address, Iova(kBuffer.value() + 123));
  EXPECT_EQ(unmap(Iova(kBuffer.value() + 123)), DmaStatus::Ok);
  EXPECT_EQ(map_at(5), DmaStatus::Ok);
  EXPECT_EQ(unmap_at(5), DmaStatus::Ok);
  EXPECT_TRUE(space_.calls.empty() && observer_.events.empty());
  EXPECT_EQ(api_->counters().maps, 2U);
  EXPECT_EQ(api_->counters().unmaps, 2U);
}

// Lazy unmapping ------------------------------------------------------------------------------------------------------

// Kills: deferring under a space whose every unmap is final.
TEST_F(DmaApiTest, LazyStaysStrictWhenThereIsNothingToDefer) {
  space_.deferrable = false;
  make_lazy();
  EXPECT_FALSE(api_->is_lazy());
  const DmaMapping mapped = map();
  calls();
  unmap(mapped.address);
  EXPECT_EQ(calls(), (Calls{Call::Unmap, Call::Sync}));
}

// Kills: a queue of one entry more or less; a flush per unmap; a flush that leaves its own queue full; addresses that
// never come back.
TEST_F(DmaApiTest, TheUnmapAfterAFullQueueFlushesOnce) {
  make_lazy(250);
  std::vector<Iova> addresses;
  for (int i = 0; i < 251; ++i) addresses.push_back(map().address);
  calls();
  for (int i = 0; i < 250; ++i) unmap(addresses[static_cast<std::size_t>(i)]);
  EXPECT_EQ(space_.count(Call::FlushAll), 0U);
  EXPECT_EQ(space_.count(Call::Sync), 0U);
  EXPECT_EQ(space_.count(Call::UnmapDeferred), 250U);
  EXPECT_EQ(api_->waiting(), 250U);
  EXPECT_EQ(observer_.count(What::Fenced), 0U);
  EXPECT_EQ(api_->allocator().counters().cached_frees, 0U);
  unmap(addresses[250]);
  EXPECT_EQ(space_.count(Call::FlushAll), 1U);
  EXPECT_EQ(api_->counters().flushes_by_full_queue, 1U);
  EXPECT_EQ(api_->waiting(), 1U) << "the last one was unmapped before the flush, but nobody relies on that";
  EXPECT_EQ(observer_.count(What::Fenced), 250U);
  EXPECT_EQ(api_->allocator().counters().cached_frees, 250U);
}

// Kills: reclaiming a table before the flush that makes it unreachable; never reclaiming it.
TEST_F(DmaApiTest, FreedTablesWaitForTheFlush) {
  space_.frees_tables = true;
  make_lazy(2);
  for (int i = 0; i < 2; ++i) unmap(map().address);
  EXPECT_TRUE(space_.reclaimed.empty());
  unmap(map().address);
  EXPECT_EQ(space_.reclaimed, (std::vector<std::uint64_t>{1, 2}));
  api_->flush(cpu_).run();
  EXPECT_EQ(space_.reclaimed, (std::vector<std::uint64_t>{1, 2, 3}));
  EXPECT_EQ(api_->waiting(), 0U);
}

// Random maps and unmaps; the space itself fails the test when a page is mapped again too early. Kills: any way of
// giving back an address before its fence.
TEST_F(DmaApiTest, NoAddressIsReusedBeforeItsFence) {
  for (const std::uint64_t seed : {std::uint64_t{7}, std::uint64_t{std::random_device{}()}}) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Rng rng(seed, "dma");
    DmaApiOptions options{.unmapping = Unmapping::Lazy, .flush_queue_entries = 16};
    options.iova.last_page = 255;  // tight, so that addresses come round
    options.iova.magazine_entries = 3;
    make(options, 2);
    ImmediateCpu other(CpuId(1));
    std::map<Iova, Bytes> live;
    std::uint64_t refused = 0;
    for (int step = 0; step < 3000; ++step) {
      CpuPort& cpu = rng.chance(0.5) ? static_cast<CpuPort&>(cpu_) : other;
      if (rng.chance(0.5)) {
        const Bytes length(1 + rng.below(5 * 4096));
        const DmaMapping mapped =
            api_->map(cpu, kBuffer + Bytes(rng.below(4096)), length, DmaDirection::ToDevice).run();
        if (mapped.status == DmaStatus::Ok)
          EXPECT_TRUE(live.emplace(mapped.address, length).second);
        else
          ++refused;
      } else if (!live.empty()) {
        const auto victim = std::next(live.begin(), static_cast<std::ptrdiff_t>(rng.below(live.size())));
        ASSERT_EQ(api_->unmap(cpu, victim->first, victim->second).run(), DmaStatus::Ok);
        live.erase(victim);
      }
    }
    EXPECT_GT(api_->counters().flushes_by_full_queue, 10U);
    EXPECT_EQ(api_->counters().failures, refused);
    for (const auto& [address, length] : live) unmap(address, length);
    api_->flush(cpu_).run();
    EXPECT_TRUE(space_.pages.empty());
    EXPECT_TRUE(space_.reachable.empty());
    EXPECT_EQ(observer_.count(What::UnmapCalled), observer_.count(What::Fenced));
  }
}

// Addresses of a recording
// ---------------------------------------------------------------------------------------------

// Kills: one sync per segment; a segment at another address than asked for.
TEST_F(DmaApiTest, MapAtUsesTheCallersAddresses) {
  make();
  std::vector<MapSegment> segments{{Iova(0x100000), Gpa(0x7000), 8_KiB, kReadOnly},
                                   {Iova(0x102000), Gpa(0x3000), 4_KiB, kReadOnly}};
  EXPECT_EQ(api_->map_at(cpu_, segments).run(), DmaStatus::Ok);
  EXPECT_EQ(calls(), (Calls{Call::Map, Call::Map, Call::SyncMap}));
  EXPECT_EQ(space_.pages[Dfn(0x102)].frame, Gfn(3));
  EXPECT_EQ(space_.pages[Dfn(0x102)].permissions, kReadOnly);
  EXPECT_EQ(unmap_at(0x100, 3), DmaStatus::Ok);
  EXPECT_EQ(calls(), (Calls{Call::Unmap, Call::Sync}));
  EXPECT_EQ(api_->allocator().counters().cached_frees, 0U) << "the allocator never owned it";
}

// Kills: segments with gaps, broken pages or an end beyond the space taken for valid.
TEST_F(DmaApiTest, MapAtRefusesWhatIsNoRangeOfPages) {
  space_.last = Iova(0xffffff);
  make();
  const std::vector<std::vector<MapSegment>> bad{
      {},
      {{Iova(0x1000), kBuffer, 0_B}},
      {{Iova(0x1800), kBuffer, 4_KiB}},
      {{Iova(0x1000), kBuffer + 1_B, 4_KiB}},
      {{Iova(0x1000), kBuffer, 0x1001_B}},
      {{Iova(0x1000), kBuffer, 4_KiB}, {Iova(0x3000), kBuffer, 4_KiB}},
      {{Iova(0xfff000), kBuffer, 8_KiB}},
      {{Iova(0xfff000), kBuffer, Bytes(0 - 0xfff000ULL)}},
      {{Iova(0x1000000), kBuffer, 4_KiB}},
  };
  for (const auto& segments : bad) EXPECT_EQ(api_->map_at(cpu_, segments).run(), DmaStatus::Rejected);
  EXPECT_EQ(api_->counters().failures, bad.size());
  EXPECT_TRUE(space_.calls.empty());
  EXPECT_EQ(map_at(0xfff), DmaStatus::Ok) << "the last page";
}

// The undo of a refused map must not take somebody else's pages with it. Kills: mapping first and finding out later.
TEST_F(DmaApiTest, MapAtOverSomethingLiveChangesNothing) {
  make();
  ASSERT_EQ(map_at(100, 4), DmaStatus::Ok);
  const auto before = space_.pages.size();
  calls();
  EXPECT_EQ(map_at(98, 3), DmaStatus::Rejected);
  EXPECT_EQ(map_at(103, 2), DmaStatus::Rejected);
  EXPECT_EQ(map_at(101, 1), DmaStatus::Rejected);
  EXPECT_EQ(map_at(90, 50), DmaStatus::Rejected);
  EXPECT_EQ(space_.pages.size(), before);
  EXPECT_TRUE(space_.calls.empty());
  EXPECT_EQ(map_at(96, 4), DmaStatus::Ok);
  EXPECT_EQ(map_at(104, 4), DmaStatus::Ok);
  EXPECT_EQ(unmap_at(100, 4), DmaStatus::Ok);
}

// Kills: all or nothing by first page only; pieces forgotten with the part that was unmapped.
TEST_F(DmaApiTest, UnmapAtTakesPartsAndSeveral) {
  make();
  map_at(100, 4);
  map_at(104, 4);
  EXPECT_EQ(unmap_at(99, 2), DmaStatus::Rejected);
  EXPECT_EQ(unmap_at(107, 2), DmaStatus::Rejected);
  EXPECT_EQ(unmap_at(100, 0), DmaStatus::Rejected);
  EXPECT_EQ(space_.pages.size(), 8U);
  EXPECT_EQ(unmap_at(102, 4), DmaStatus::Ok) << "the end of one and the beginning of the other";
  EXPECT_EQ(unmap_at(101, 2), DmaStatus::Rejected);
  EXPECT_EQ(map_at(101, 1), DmaStatus::Rejected);
  EXPECT_EQ(map_at(102, 4), DmaStatus::Ok);
  EXPECT_EQ(unmap_at(100, 8), DmaStatus::Ok);
  EXPECT_TRUE(space_.pages.empty());
  EXPECT_EQ(unmap_at(100, 1), DmaStatus::Rejected);
}

// Kills: reuse of a waiting range without a flush; a flush when another range waits.
TEST_F(DmaApiTest, MapAtOverAWaitingRangeFlushesFirst) {
  make_lazy();
  map_at(100, 2);
  map_at(200, 1);
  unmap_at(100, 2);
  calls();
  EXPECT_EQ(map_at(102), DmaStatus::Ok);
  EXPECT_EQ(space_.count(Call::FlushAll), 0U);
  EXPECT_EQ(map_at(101), DmaStatus::Ok);
  EXPECT_EQ(space_.count(Call::FlushAll), 1U);
  EXPECT_EQ(api_->counters().flushes_by_reuse, 1U);
  EXPECT_EQ(api_->waiting(), 0U);
}

}  // namespace
}  // namespace iommu::guest
