// SPDX-License-Identifier: Apache-2.0
// A guest learns of its device's faults where the IOMMU that it knows reports them, and nowhere else.
#include <gtest/gtest.h>

#include "sim/strategy/strategy_test_support.hpp"

namespace iommu::strategy::test {
namespace {

class Faults : public OnPairs {};
ON_STRATEGIES(Faults, kAllWays);

// Kills: a fault that a strategy loses, or counts as told when the guest's unit has none.
TEST_P(Faults, AreReportedByTheIommuThatTheGuestKnows) {
  Machine m(family(), strategy(), plain());
  Machine::Device& nic = m.attach(kNic);
  const auto tell = [&](Iova address) {
    Fault fault;
    fault.address = address;
    fault.access = Access::Write;
    fault.requester = kNic;
    m.strategy().forward_fault(m.cpu, kNic, fault).run();
  };
  constexpr Iova kAt(0x123400000000);
  tell(kAt);
  const bool has_unit = is(kNested) || is(kEmulatedViommu);
  ASSERT_EQ(m.strategy().counters().faults.has_value(), has_unit || is(kVirtioIommu));
  if (!m.strategy().counters().faults) return;
  EXPECT_EQ(m.strategy().counters().faults->forwarded, 1U);
  ASSERT_EQ(m.map_at(nic, kAt.value(), Gpa(0x123000), 4_KiB), guest::DmaStatus::Ok);
  tell(kAt);
  // A virtual unit knows that it refused nothing; a virtio-iommu is told of a refusal, for a reason it does not know.
  EXPECT_EQ(m.strategy().counters().faults->forwarded, has_unit ? 1U : 2U);
  EXPECT_EQ(m.strategy().counters().faults->kept, has_unit ? 1U : 0U);
  m.strategy().reset_counters();
  EXPECT_EQ(m.strategy().counters().faults->forwarded, 0U);
}

}  // namespace
}  // namespace iommu::strategy::test
