// SPDX-License-Identifier: Apache-2.0
#include "sim/tlm/software_endpoint.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "sim/tlm/vcpu.hpp"

namespace iommu {
namespace {

constexpr RequesterId kDevice = RequesterId::bdf(3, 0, 0);
constexpr RequesterId kAttached = RequesterId::bdf(2, 0, 0);
constexpr Picoseconds kTranslate = 100_ns;
constexpr Picoseconds kLineTime = 3_ns;
constexpr Hpa kBase{0x7000000};

// Maps every page but one, and charges for the look.
class Translation final : public strategy::SoftwareTranslation {
 public:
  std::vector<Iova> asked;
  std::optional<Dfn> refused;
  Task<std::optional<Hpa>> translate(CpuPort& cpu, RequesterId device, Iova address, Access) override {
    EXPECT_EQ(device, kAttached);
    asked.push_back(address);
    co_await cpu.charge(CostId::SoftwareTranslate);
    std::optional<Hpa> host;
    if (Dfn(address) != refused) host = kBase + Bytes(address.value());
    co_return host;
  }
};

class Observer final : public DmaObserver {
 public:
  struct Seen {
    Picoseconds when;
    Iova address;
    Hpa target;
    Bytes length;
  };
  std::vector<Seen> seen;
  void on_dma(Picoseconds now, RequesterId, std::optional<Pasid>, Iova iova, Hpa target, Bytes length,
              Access) override {
    seen.push_back({now, iova, target, length});
  }
};

class SoftwareEndpointTest : public testing::Test {
 protected:
  SoftwareEndpointTest() {
    costs_[CostId::SoftwareTranslate].time = kTranslate;
    costs_[CostId::CopyLine].time = kLineTime;
    endpoint_.start(translation_);
  }
  ~SoftwareEndpointTest() override { calendar_.clear(); }
  void submit(std::uint64_t address, Bytes length, Access access = Access::Write) {
    tasks_.push_back(transfer({.requester = kDevice, .address = Iova(address), .length = length, .access = access}));
    tasks_.back().start();
  }
  Task<void> transfer(DmaTransfer what) {
    const DmaResult result = co_await endpoint_.transfer(what);
    results_.push_back(result);
  }

  Calendar calendar_;
  HostMemory memory_{1_MiB};
  CostTable costs_;
  Vcpus vcpus_{calendar_, memory_, costs_};
  Translation translation_;
  Observer observer_;
  SoftwareEndpoint endpoint_{calendar_, vcpus_.add(), vcpus_, &observer_, kAttached};
  std::vector<DmaResult> results_;
  std::vector<Task<void>> tasks_;
};

// Kills: a translation per transfer instead of per page; a copy rounded down; transfers side by side on one thread.
TEST_F(SoftwareEndpointTest, ATransferTakesATranslationAPageAndACopyALineOneAfterTheOther) {
  submit(0x1ff0, 0x20_B);  // two pages, a quarter of a line each
  submit(0x5000, 4_KiB + 1_B, Access::Read);
  calendar_.run_until(1_ms);
  ASSERT_EQ(results_.size(), 2U);
  EXPECT_EQ(results_[0].completed, 2 * kTranslate + 2 * kLineTime);
  EXPECT_EQ(results_[1].completed, results_[0].completed + 2 * kTranslate + 65 * kLineTime);
  EXPECT_FALSE(results_[0].faulted || results_[1].faulted);
  ASSERT_EQ(observer_.seen.size(), 4U);
  EXPECT_EQ(observer_.seen[1].address, Iova(0x2000));
  EXPECT_EQ(observer_.seen[1].target, kBase + 0x2000_B);
  EXPECT_EQ(observer_.seen[1].length, 0x10_B);
  EXPECT_EQ(observer_.seen[0].when, kTranslate + kLineTime) << "when it is copied";
  EXPECT_EQ(endpoint_.statistics().operations, 2U);
  EXPECT_EQ(endpoint_.statistics().bytes, 0x20U + 0x1001U);
}

// Kills: a refused page copied all the same, or one that stops the rest.
TEST_F(SoftwareEndpointTest, ARefusedPageFaultsTheTransferAndIsNotTouched) {
  translation_.refused = Dfn(2);
  submit(0x1000, 12_KiB);
  calendar_.run_until(1_ms);
  ASSERT_EQ(results_.size(), 1U);
  EXPECT_TRUE(results_[0].faulted);
  ASSERT_EQ(observer_.seen.size(), 2U);
  EXPECT_EQ(observer_.seen[1].address, Iova(0x3000));
  EXPECT_EQ(endpoint_.statistics().faulted, 1U);
  EXPECT_EQ(endpoint_.statistics().bytes, 0U);
}

// Kills: a length of nothing that is copied for ever; an end that wraps.
TEST_F(SoftwareEndpointTest, WhatNoDeviceCanDoIsRefusedAtOnce) {
  submit(0x1000, 0_B);
  submit(~0xfffULL, 8_KiB);
  ASSERT_EQ(results_.size(), 2U);
  EXPECT_TRUE(results_[0].faulted && results_[1].faulted);
  EXPECT_EQ(endpoint_.statistics().refused, 2U);
  EXPECT_TRUE(translation_.asked.empty());
}

}  // namespace
}  // namespace iommu
