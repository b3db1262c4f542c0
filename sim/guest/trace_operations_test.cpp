// SPDX-License-Identifier: Apache-2.0
// A recorded driver's calls on the DMA API, at recorded and at allocated addresses.
#include "sim/guest/trace_operations.hpp"

#include <gtest/gtest.h>

#include "sim/guest/guest_test_support.hpp"

namespace iommu::guest {
namespace {

using test::Call;
using test::kDevice;
using test::Observer;
using test::ScriptedSpace;

class TraceOperationsTest : public testing::Test {
 protected:
  TraceOperations& make(TraceAddresses addresses) {
    api_ = std::make_unique<DmaApi>(kDevice, space_, observer_, DmaApiOptions{}, 1);
    operations_ = std::make_unique<TraceOperations>(*api_, addresses);
    return *operations_;
  }
  std::vector<Iova> map(std::uint32_t id, const std::vector<TraceSegment>& segments,
                        Permissions permissions = kReadWrite) {
    return operations_->map(cpu_, {.id = id, .segments = segments, .permissions = permissions}).run();
  }
  void unmap(std::uint32_t id) { operations_->unmap(cpu_, {.id = id, .segments = {}}).run(); }

  ScriptedSpace space_;
  Observer observer_;
  ImmediateCpu cpu_;
  std::unique_ptr<DmaApi> api_;
  std::unique_ptr<TraceOperations> operations_;
};

const std::vector<TraceSegment> kAligned{{Iova(0xffff0000), 8_KiB, Gpa(0x7000)},
                                         {Iova(0xffff2000), 4_KiB, Gpa(0x1000)}};
const std::vector<TraceSegment> kUnaligned{{Iova(0xffff0800), 0x800_B, Gpa(0x7800)},
                                           {Iova(0xffff1000), 0x1100_B, Gpa(0x2000)}};

// Kills: an allocator's address; segments swapped; permissions of its own; one sync per segment.
TEST_F(TraceOperationsTest, RecordedAddressesAreUsedAsTheyAre) {
  make(TraceAddresses::Recorded);
  EXPECT_EQ(map(1, kAligned, kReadOnly), (std::vector{Iova(0xffff0000), Iova(0xffff2000)}));
  EXPECT_EQ(space_.pages[Dfn(0xffff1)].frame, Gfn(8));
  EXPECT_EQ(space_.pages[Dfn(0xffff2)].frame, Gfn(1));
  EXPECT_EQ(space_.pages[Dfn(0xffff2)].permissions, kReadOnly);
  EXPECT_EQ(space_.count(Call::SyncMap), 1U);
  unmap(1);
  EXPECT_TRUE(space_.pages.empty());
  EXPECT_EQ(space_.count(Call::Unmap), 1U) << "one call undoes one call";
  EXPECT_EQ(operations_->failures(), 0U);
}

// Kills: an address without the segment's offset; pages of a segment counted by length alone; an unmap of another size.
TEST_F(TraceOperationsTest, AllocatedAddressesKeepOffsetsAndOrder) {
  make(TraceAddresses::Allocated);
  const auto addresses = map(1, kUnaligned);
  ASSERT_EQ(addresses.size(), 2U);
  EXPECT_NE(addresses[0], kUnaligned[0].iova);
  EXPECT_EQ(addresses[0].offset_in(kPageLg2), 0x800U);
  EXPECT_EQ(addresses[1], addresses[0].aligned_down(kPageLg2) + 4_KiB);
  EXPECT_EQ(space_.pages.size(), 3U);
  EXPECT_EQ(space_.pages[Dfn(addresses[0])].frame, Gfn(7));
  EXPECT_EQ(space_.pages[Dfn(addresses[1])].frame, Gfn(2));
  EXPECT_EQ(space_.pages[Dfn(addresses[1]) + 1].frame, Gfn(3));
  unmap(1);
  EXPECT_TRUE(space_.pages.empty());
  EXPECT_EQ(operations_->failures(), 0U);
  EXPECT_EQ(map(2, kUnaligned), addresses) << "the allocator got them back";
}

// Kills: recorded bus addresses where a device uses guest-physical ones.
TEST_F(TraceOperationsTest, WithoutTranslationTheDeviceUsesPhysicalAddresses) {
  space_.identity = true;
  for (const TraceAddresses addresses : {TraceAddresses::Recorded, TraceAddresses::Allocated}) {
    make(addresses);
    EXPECT_EQ(map(1, kAligned), (std::vector{Iova(0x7000), Iova(0x1000)}));
    unmap(1);
    EXPECT_EQ(operations_->failures(), 0U);
  }
  EXPECT_TRUE(space_.calls.empty());
}

// A trace is hostile input. Kills: a crash, or addresses returned for a map that failed; a failed map that is unmapped.
TEST_F(TraceOperationsTest, WhatCannotBeMappedYieldsNoAddresses) {
  make(TraceAddresses::Recorded);
  EXPECT_TRUE(map(1, kUnaligned).empty()) << "tables hold whole pages";
  EXPECT_TRUE(map(2, {}).empty());
  EXPECT_TRUE(map(3, {{Iova(0x1000), 0_B, Gpa(0x1000)}}).empty());
  EXPECT_TRUE(map(4, {{Iova(~0xfffULL), 8_KiB, Gpa(0x1000)}}).empty());
  EXPECT_TRUE(map(5, {{Iova(0x1000), Bytes(~0xfffULL), Gpa(0x1000)}}).empty());
  EXPECT_TRUE(space_.calls.empty());
  ASSERT_FALSE(map(6, kAligned).empty());
  EXPECT_TRUE(map(7, kAligned).empty()) << "in use";
  EXPECT_EQ(operations_->failures(), 6U);
  unmap(7);
  unmap(99);
  EXPECT_EQ(space_.pages.size(), 3U);
  unmap(6);
  EXPECT_TRUE(space_.pages.empty());
  unmap(6);
  EXPECT_EQ(operations_->failures(), 6U);
}

// Kills: the same, where the allocator is asked.
TEST_F(TraceOperationsTest, ImpossibleSizesAreNotAllocated) {
  make(TraceAddresses::Allocated);
  EXPECT_TRUE(map(1, {{Iova(0), 0_B, Gpa(0x1800)}}).empty());
  EXPECT_TRUE(map(2, {{Iova(0), Bytes(~0ULL), Gpa(0x1800)}}).empty());
  EXPECT_TRUE(map(3, {}).empty());
  space_.maps_left = 0;
  EXPECT_TRUE(map(4, kAligned).empty());
  EXPECT_TRUE(space_.pages.empty());
  EXPECT_EQ(operations_->failures(), 4U);
}

}  // namespace
}  // namespace iommu::guest
