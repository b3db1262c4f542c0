// SPDX-License-Identifier: Apache-2.0
// Guest translation: which requests it is for, how wide PASIDs are, privilege, and the pages of nested results.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "models/amdvi/core_test_support.hpp"

namespace iommu::amdvi::test {
namespace {

// GIOV decides for requests without PASID alone; without it they are the host tables'. [§2.2.6]
TEST(AmdViGuestTables, PasidsAreTheGuestsWithOrWithoutGiov) {
  for (const bool giov : {false, true}) {
    Bench bench(Setting::Nested);
    bench.set_entry<"GIOV">(giov ? 1 : 0);
    const auto kind_of = [&](std::optional<Pasid> pasid) {
      bench.request.pasid = pasid;
      const auto found = bench.core.find_context(bench.request, bench.port).run();
      const auto* context = std::get_if<Context>(&found);
      return context == nullptr ? std::nullopt : std::optional(context->kind);
    };
    EXPECT_EQ(kind_of(Pasid(0)), ContextKind::Nested);
    EXPECT_EQ(kind_of({}), giov ? ContextKind::Nested : ContextKind::Stage2);
    EXPECT_EQ(kind_of(Pasid(1)), std::nullopt) << "its GCR3 entry is absent";
  }
}

// The smallest of GLX, PASMax and 20 bits. Kills: any of the three left out.
TEST(AmdViGuestTables, WidthOfPasids) {
  struct Width {
    unsigned glx, pasid_max, bits;
  };
  for (const auto& [glx, pasid_max, bits] :
       std::vector<Width>{{0, 19, 9}, {1, 19, 18}, {2, 19, 20}, {2, 15, 16}, {1, 3, 4}, {2, 31, 20}}) {
    Identity id = Bench::full();
    id.extended_features = with<kExtendedFeatures, "PASMax">(id.extended_features, pasid_max);
    const std::uint32_t largest = (1U << bits) - 1;
    Bench bench(Setting::Guest, {.glx = glx}, id);
    bench.set_gcr3(largest, Bench::kGuestRoot);
    bench.request.pasid = Pasid(largest);
    EXPECT_EQ(row_of(bench.translate()), "translated") << glx << " " << pasid_max;
    bench.request.pasid = Pasid(1U << bits);
    EXPECT_EQ(row_of(bench.translate()), "IO_PAGE_FAULT.pasid") << glx << " " << pasid_max;
  }
}

// Supervisors may use supervisor pages, users may not, and the event says which it was. [§2.5.3, US]
TEST(AmdViGuestTables, PrivilegeOfRequestsWithPasid) {
  for (const bool privileged : {false, true}) {
    Bench bench(Setting::Guest);
    bench.request.pasid = Pasid(0);
    bench.request.privileged = privileged;
    bench.set<kGuestPage, "US">(bench.guest_entries[0], 0);
    EXPECT_EQ(row_of(bench.translate()), privileged ? "translated" : "IO_PAGE_FAULT.guest_user");
    bench.set<kGuestPage, "P">(bench.guest_entries[0], 0);
    const auto events = bench.log(bench.translate());
    ASSERT_EQ(events.size(), 1U);
    EXPECT_EQ(events[0][0] >> 50 & 1, privileged ? 0U : 1U);
    // Of an invalid request as well, at its own place. [§2.5.9]
    bench.request.type = AddressType::Translated;
    bench.set_entry<"I">(0);
    const auto invalid = bench.log(bench.translate());
    ASSERT_EQ(invalid.size(), 1U);
    EXPECT_EQ(invalid[0][0] >> 49 & 1, privileged ? 0U : 1U);
  }
  // Without USSup every page is every request's.
  Identity id = Bench::full();
  id.extended_features = with<kExtendedFeatures, "USSup">(id.extended_features, 0);
  Bench bench(Setting::Guest, {}, id);
  bench.set<kGuestPage, "US">(bench.guest_entries[0], 0);
  EXPECT_EQ(row_of(bench.translate()), "translated");
}

// What may be cached of a nested result is the smaller of both pages, with the rights that both give.
TEST(AmdViGuestTables, NestedResultsAreTheSmallerPageAndTheCommonRights) {
  for (Level host = 0; host <= 2; ++host)
    for (Level guest = 0; guest <= 2; ++guest) {
      Bench bench(Setting::Nested, {.host_leaf = host, .guest_leaf = guest});
      const auto response = bench.translate();
      ASSERT_TRUE(std::holds_alternative<Translation>(response));
      const auto& whole = std::get<Translation>(response);
      EXPECT_EQ(whole.page_lg2, 12 + 9 * std::min(host, guest));
      EXPECT_EQ(whole.allowed, kReadWrite);
      bench.set<kHostPage, "IW">(bench.host_entries[host], 0);
      EXPECT_EQ(std::get<Translation>(bench.translate()).allowed, kReadOnly);
      bench.set<kHostPage, "IW">(bench.host_entries[host], 1);
      bench.set<kGuestPage, "RW">(bench.guest_entries[guest], 0);
      EXPECT_EQ(std::get<Translation>(bench.translate()).allowed, kReadOnly);
    }
}

// With a PASID no address has a meaning of its own: large pages are cached whole.
TEST(AmdViGuestTables, PagesOfPasidsReachAcrossTheInterruptRange) {
  constexpr std::uint64_t kAround = 0xc012'3abc;  // the same GiB as the interrupt range
  Bench bench(Setting::Guest, {.guest_leaf = 2}, Bench::full(), kAround);
  const auto lg2_of = [&](std::optional<Pasid> pasid) {
    bench.request.pasid = pasid;
    return unsigned{std::get<Translation>(bench.translate(kAround)).page_lg2};
  };
  EXPECT_EQ(lg2_of(Pasid(0)), 30U);
  EXPECT_EQ(lg2_of({}), 29U);
  bench.request.pasid = Pasid(0);
  EXPECT_EQ(row_of(bench.translate(kInterruptFirst)), "translated");
}

}  // namespace
}  // namespace iommu::amdvi::test
