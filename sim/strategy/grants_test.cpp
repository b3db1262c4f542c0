// SPDX-License-Identifier: Apache-2.0
// Grants as a way of translation: buffers of a guest that a driver domain's device reaches page by page.
#include <gtest/gtest.h>

#include <array>
#include <random>
#include <vector>

#include "sim/base/rng.hpp"
#include "sim/strategy/strategy_test_support.hpp"

namespace iommu::strategy::test {
namespace {

using guest::DmaDirection;
using guest::DmaMapping;
using guest::DmaStatus;

constexpr Gpa kBuffer{0x123000};

class Grants : public OnPairs {};
ON_STRATEGIES(Grants, (std::array{&kGrants}));

// Kills: addresses that are not the machine's; a page shared by two buffers that is closed with the first; rights that
// stay when the last writer goes.
TEST_P(Grants, BuffersOfOnePageShareItsEntry) {
  Machine m(family(), strategy());
  Machine::Device& nic = m.attach(kNic);
  const DmaMapping in = m.map(nic, kBuffer, 1500_B, DmaDirection::FromDevice);
  const DmaMapping out = m.map(nic, kBuffer + 2_KiB, 1500_B, DmaDirection::ToDevice);
  EXPECT_EQ(in.address.value(), m.host_address(kBuffer)->value());
  EXPECT_EQ(out.address, in.address + 2_KiB);
  EXPECT_TRUE(m.dma(kNic, out.address, Access::Read));
  EXPECT_TRUE(m.dma(kNic, in.address, Access::Write));
  EXPECT_EQ(m.unmap(nic, in.address, 1500_B), DmaStatus::Ok);
  EXPECT_TRUE(m.dma(kNic, out.address, Access::Read));
  EXPECT_FALSE(m.dma(kNic, in.address, Access::Write));
  EXPECT_EQ(m.unmap(nic, out.address, 1500_B), DmaStatus::Ok);
  EXPECT_FALSE(m.dma(kNic, out.address, Access::Read));
  EXPECT_EQ(m.warden.report().violations, 0U);
  EXPECT_EQ(m.warden.report().stale, 0U);
  EXPECT_EQ(m.xen.references().total(), 0U);
}

// The same buffer twice. Kills: mappings found by address alone.
TEST_P(Grants, ABufferMayBeMappedTwice) {
  Machine m(family(), strategy());
  Machine::Device& nic = m.attach(kNic);
  const DmaMapping first = m.map(nic, kBuffer);
  const DmaMapping second = m.map(nic, kBuffer);
  EXPECT_EQ(first.address, second.address);
  EXPECT_EQ(m.unmap(nic, first.address), DmaStatus::Ok);
  EXPECT_TRUE(m.dma(kNic, second.address));
  EXPECT_EQ(m.unmap(nic, second.address), DmaStatus::Ok);
  EXPECT_FALSE(m.dma(kNic, second.address));
  EXPECT_EQ(m.unmap(nic, second.address), DmaStatus::Rejected);
}

// Kills: a refusal that leaves grants, entries or references behind; memory granted that is not the guest's.
TEST_P(Grants, WhatCannotBeMappedLeavesNothing) {
  Machine m(family(), strategy());
  Machine::Device& nic = m.attach(kNic);
  const Gpa end(Machine::kGuestMemory.value());
  EXPECT_EQ(m.map(nic, end - 4_KiB, 8_KiB).status, DmaStatus::Rejected);
  EXPECT_EQ(m.map(nic, Gpa(~0ULL - 0xfff), 64_B).status, DmaStatus::Rejected);
  const DmaMapping scattered = m.map(nic, kBuffer, 64_KiB);
  EXPECT_EQ(scattered.status, DmaStatus::Rejected) << "fragmented memory, and no bounce buffer";
  EXPECT_EQ(m.xen.references().total(), 0U);
  for (std::uint64_t page = 0; page < 16; ++page)
    EXPECT_FALSE(m.dma(kNic, Iova(m.host_address(kBuffer + kPageSize * page)->value())));
}

// Random life of two devices of the driver domain, caches always warm. Kills: entries by device instead of by domain;
// flushes that miss.
TEST_P(Grants, ChurnAgreesWithTheOracle) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  Rng rng(seed, "grants");
  Machine m(family(), strategy());
  const std::array devices{&m.attach(kNic), &m.attach(kDisk)};
  struct Live {
    std::size_t device;
    Iova address;
    std::uint64_t page;
    bool writes;
    Bytes length;  // distinct: an unmap does not say which of two buffers at one address it means
  };
  std::vector<Live> live;
  for (int step = 0; step < 200; ++step) {
    if (live.size() < 10 && rng.below(2) == 0) {
      const Live next{rng.below(2), {}, rng.below(4), rng.below(2) == 0, Bytes(static_cast<std::uint64_t>(step) + 4)};
      const Gpa buffer = kBuffer + kPageSize * next.page + Bytes(64 * rng.below(20));
      const DmaMapping mapped = m.map(*devices[next.device], buffer, next.length,
                                      next.writes ? DmaDirection::FromDevice : DmaDirection::ToDevice);
      ASSERT_EQ(mapped.status, DmaStatus::Ok);
      live.push_back(next);
      live.back().address = mapped.address;
    } else if (!live.empty()) {
      const std::size_t victim = rng.below(live.size());
      ASSERT_EQ(m.unmap(*devices[live[victim].device], live[victim].address, live[victim].length), DmaStatus::Ok);
      live.erase(live.begin() + static_cast<std::ptrdiff_t>(victim));
    }
    for (std::uint64_t page = 0; page < 4; ++page) {
      bool reads = false;
      bool writes = false;
      for (const Live& l : live)
        if (l.page == page) {
          reads = true;
          writes = writes || l.writes;
        }
      const Iova at(m.host_address(kBuffer + kPageSize * page)->value());
      ASSERT_EQ(m.peek(kNic, at, Access::Read).has_value(), reads);
      ASSERT_EQ(m.peek(kNic, at, Access::Write).has_value(), writes);
    }
    if (live.empty()) continue;
    const Live& used = live[rng.below(live.size())];
    ASSERT_TRUE(m.dma(devices[used.device]->requester, used.address, used.writes ? Access::Write : Access::Read));
  }
  EXPECT_EQ(m.warden.report().violations, 0U);
}

}  // namespace
}  // namespace iommu::strategy::test
