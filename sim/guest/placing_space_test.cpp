// SPDX-License-Identifier: Apache-2.0
// The DMA API over a space that chooses addresses itself: what it is asked, and what callers may give back.
#include <gtest/gtest.h>

#include <vector>

#include "sim/guest/guest_test_support.hpp"
#include "sim/guest/trace_operations.hpp"

namespace iommu::guest {
namespace {

using test::kDevice;
using test::Observer;

// Buffers side by side, 64 bytes apart.
class RowSpace final : public PlacingSpace {
 public:
  struct Placement {
    Iova address;
    Bytes length;
    Permissions permissions;
    DmaUse use = DmaUse::Streaming;
  };
  std::vector<Placement> placed;
  std::size_t withdrawn = 0;
  std::size_t room = ~std::size_t{0};

  [[nodiscard]] Iova last_address() const override { return Iova((1ULL << 32) - 1); }
  Task<Placed> place(CpuPort&, std::vector<ScatterEntry> list, Permissions permissions, DmaUse use) override {
    Placed result{DmaStatus::NoAddress, Iova()};
    if (placed.size() >= room) co_return result;
    Bytes length;
    for (const ScatterEntry& piece : list) length += piece.length;
    result = {DmaStatus::Ok, next_};
    placed.push_back({next_, length, permissions, use});
    next_ = next_ + length + 64_B;
    co_return result;
  }
  Task<DmaStatus> withdraw(CpuPort&, Iova address, Bytes length) override {
    ++withdrawn;
    for (const Placement& p : placed)
      if (p.address == address && p.length == length) co_return DmaStatus::Ok;
    ADD_FAILURE() << "never placed";
    co_return DmaStatus::Rejected;
  }

 private:
  Iova next_{0x1001};
};

class PlacingSpaces : public testing::Test {
 protected:
  RowSpace space_;
  Observer observer_;
  ImmediateCpu cpu_;
  DmaApi api_{kDevice, space_, observer_, {.unmapping = Unmapping::Lazy}, 1};
};

// Kills: addresses of the API's own allocator; a length or use that is lost; laziness where nothing can wait; an
// observer told twice.
TEST_F(PlacingSpaces, ChooseEveryAddress) {
  EXPECT_FALSE(api_.is_lazy());
  const DmaMapping first = api_.map(cpu_, Gpa(0x5010), 100_B, DmaDirection::ToDevice).run();
  EXPECT_EQ(first.address, Iova(0x1001));
  const DmaMapping ring = api_.map(cpu_, Gpa(0x7000), 4_KiB, DmaDirection::Bidirectional, DmaUse::Coherent).run();
  EXPECT_EQ(ring.address, Iova(0x1001) + 164_B);
  EXPECT_EQ(space_.placed[0].permissions, kReadOnly);
  EXPECT_EQ(space_.placed[0].use, DmaUse::Streaming);
  EXPECT_EQ(space_.placed[1].use, DmaUse::Coherent);
  EXPECT_EQ(api_.map_at(cpu_, {MapSegment{Iova(0x8000), Gpa(0x8000), 4_KiB}}).run(), DmaStatus::Rejected);
  EXPECT_TRUE(observer_.events.empty());
  EXPECT_EQ(api_.counters().maps, 2U);
}

// Kills: unmaps of what was never mapped, of a part, or twice, that reach the space.
TEST_F(PlacingSpaces, TakeBackExactlyWhatTheyPlaced) {
  const DmaMapping mapped = api_.map(cpu_, Gpa(0x5010), 100_B, DmaDirection::ToDevice).run();
  EXPECT_EQ(api_.unmap(cpu_, mapped.address, 99_B).run(), DmaStatus::Rejected);
  EXPECT_EQ(api_.unmap(cpu_, mapped.address + 1_B, 99_B).run(), DmaStatus::Rejected);
  EXPECT_EQ(space_.withdrawn, 0U);
  EXPECT_EQ(api_.unmap(cpu_, mapped.address, 100_B).run(), DmaStatus::Ok);
  EXPECT_EQ(api_.unmap(cpu_, mapped.address, 100_B).run(), DmaStatus::Rejected);
  EXPECT_EQ(space_.withdrawn, 1U);
  EXPECT_EQ(api_.counters().unmaps, 1U);
  EXPECT_EQ(api_.counters().failures, 3U);
}

// Kills: one call for all segments; addresses in another order; segments that stay when a later one fails.
TEST_F(PlacingSpaces, ARecordedMapIsOneCallASegment) {
  TraceOperations operations(api_, TraceAddresses::OnePerSegment);
  const std::vector<TraceSegment> segments{{Iova(0xffff0800), 0x800_B, Gpa(0x7800)},
                                           {Iova(0xffff1000), 0x1100_B, Gpa(0x2000)}};
  const auto addresses = operations.map(cpu_, {.id = 1, .segments = segments, .permissions = kReadOnly}).run();
  EXPECT_EQ(addresses, (std::vector{Iova(0x1001), Iova(0x1001) + 0x840_B}));
  operations.unmap(cpu_, {.id = 1, .segments = {}}).run();
  EXPECT_EQ(space_.withdrawn, 2U);
  EXPECT_EQ(operations.failures(), 0U);
  space_.room = 3;
  EXPECT_TRUE(operations.map(cpu_, {.id = 2, .segments = segments, .permissions = kReadOnly}).run().empty());
  EXPECT_EQ(space_.placed.size(), 3U);
  EXPECT_EQ(space_.withdrawn, 3U) << "the first segment is taken back";
  EXPECT_EQ(operations.failures(), 1U);
}

}  // namespace
}  // namespace iommu::guest
