// SPDX-License-Identifier: Apache-2.0
// Faults that hardware records for a guest's device, in the virtual unit that the guest knows. What must be there is
// what that unit makes of the same request by itself.
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>

#include "sim/xen/virtual_machine_test_support.hpp"

namespace iommu::xen {
namespace {

constexpr Dfn kMapped{0x100};
constexpr Dfn kUnmapped{0x105};

template <class Translation>
struct Bench : VirtualMachine<Translation> {
  explicit Bench(const FamilyDescriptor& family) : VirtualMachine<Translation>(family) {
    this->start();
    table = &this->attach(kNic);
    this->map(*table, kNic, kMapped, Gfn(70));
  }
  static TranslationRequest request(Dfn dfn, Access access) {
    return {.requester = kNic, .pasid = {}, .address = dfn.address() + 0x10_B, .access = access};
  }
  // Hardware refuses it, and Xen hands that on.
  void fault(Dfn dfn, Access access) {
    const TranslationResponse answer = this->machine.unit().translate(request(dfn, access));
    const auto* refused = std::get_if<Fault>(&answer);
    ASSERT_NE(refused, nullptr);
    this->unit.forward_fault(this->machine.cpu, kNic, *refused).run();
  }
  // The unit finds the same by itself.
  void find(Dfn dfn, Access access) {
    const TranslationResponse answer = this->unit.translate(this->machine.cpu, request(dfn, access)).run();
    EXPECT_TRUE(std::holds_alternative<Fault>(answer));
  }
  // Everything in which the guest could see a record: the unit's registers and the guest's memory.
  std::string visible() {
    constexpr std::size_t kPage = 4096;
    constexpr std::uint64_t kPages = kGuestPages / 2;  // the kernel's own
    constexpr std::uint64_t kRegisters = 0x14000;      // of any family, with a little beyond
    std::string all(kRegisters + kPages * kPage, 0);
    const auto bytes = std::as_writable_bytes(std::span(all));
    for (std::uint64_t at = 0; at < kRegisters; at += sizeof(std::uint64_t)) {
      const std::uint64_t value = this->unit.core().mmio_read(at, sizeof value);
      std::memcpy(&all[at], &value, sizeof value);
    }
    for (std::uint64_t i = 0; i < kPages; ++i)
      EXPECT_TRUE(this->machine.guest().memory.read(Gfn(kGuestPages / 2 + i).address(),
                                                    bytes.subspan(kRegisters + i * kPage, kPage)));
    return all;
  }
  PageTable* table = nullptr;
};

class XenFaultForwarding : public XenFamilies {
 protected:
  template <class Translation>
  static void compare(unsigned faults) {
    if (!Bench<Translation>::is_possible(family())) return;
    Bench<Translation> forwarded(family());
    Bench<Translation> found(family());
    const std::string before = forwarded.visible();
    ASSERT_TRUE(before == found.visible());
    for (unsigned i = 0; i < faults; ++i) {
      const Access access = i % 2 == 0 ? Access::Write : Access::Read;
      forwarded.fault(kUnmapped + i % 7, access);
      found.find(kUnmapped + i % 7, access);
    }
    const std::string after = forwarded.visible();
    EXPECT_TRUE(after == found.visible());
    EXPECT_FALSE(after == before) << "the guest can see nothing of it";
    EXPECT_EQ(forwarded.unit.interrupts(), found.unit.interrupts());
    EXPECT_EQ(forwarded.unit.faults().forwarded, faults);
    EXPECT_EQ(forwarded.unit.faults().kept, 0U);
  }
};
XEN_ON_ALL_FAMILIES(XenFaultForwarding);

// Kills: a record with the host's reason, address or device; an interrupt too many or none.
TEST_P(XenFaultForwarding, TheGuestFindsTheRecordOfItsOwnUnit) {
  compare<NestedTranslation>(1);
  compare<ShadowTranslation>(1);
}

// Kills: a log that is written beyond its end, or an overflow that nobody marks.
TEST_P(XenFaultForwarding, AFullLogOverflowsAsTheArchitectureHasIt) {
  compare<NestedTranslation>(520);
  compare<ShadowTranslation>(520);
}

// Kills: the second stage's faults told to a guest that knows of no second stage.
TEST_P(XenFaultForwarding, WhatOnlyTheHostRefusesIsNoFaultOfTheGuestsUnit) {
  if (!Bench<NestedTranslation>::is_possible(family())) GTEST_SKIP();
  Bench<NestedTranslation> v(family());
  v.map(*v.table, kNic, kUnmapped, Gfn(kGuestPages));
  const std::string before = v.visible();
  v.fault(kUnmapped, Access::Read);
  EXPECT_TRUE(v.visible() == before);
  EXPECT_EQ(v.unit.faults().forwarded, 0U);
  EXPECT_EQ(v.unit.faults().kept, 1U);
}

// Whatever the guest did to its registers, logs among them. Kills: a crash, a lock left taken; a record in somebody
// else's memory.
TEST_P(XenFaultForwarding, AHostileGuestHarmsNobodyButItself) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  Rng rng(seed, "registers");
  if (!Bench<NestedTranslation>::is_possible(family())) GTEST_SKIP();
  Bench<NestedTranslation> v(family());
  const Fault fault = std::get<Fault>(v.machine.unit().translate(v.request(kUnmapped, Access::Read)));
  const auto alien = v.machine.reach(kAlien, Dfn(3));
  ASSERT_TRUE(alien);
  const std::uint64_t theirs = v.machine.host.read64(alien->address());
  for (int i = 0; i < 400; ++i) {
    const std::uint64_t offset = 8 * rng.below(0x400);
    v.unit.write(v.machine.cpu, offset, 8, rng.below(2) == 0 ? rng.below(1ULL << 40) << 12 | rng.below(64) : ~0ULL)
        .run();
    v.unit.forward_fault(v.machine.cpu, kNic, fault).run();
  }
  EXPECT_EQ(v.machine.host.read64(alien->address()), theirs);
  EXPECT_EQ(v.machine.reach(kAlien, Dfn(3)), alien);
  EXPECT_FALSE(v.machine.cpu.would_block());
}

// Kills: a phantom function's fault that is nobody's; one domain's faults taken for another's.
TEST_P(XenFaultForwarding, EveryFunctionHasTheOwnerOfItsDevice) {
  Machine m(family());
  constexpr RequesterId kCard = RequesterId::bdf(9, 0, 0);
  constexpr RequesterId kPhantom = RequesterId::bdf(9, 0, 4);
  m.assign(m.guest(), {.requester = kCard, .phantom_functions = {kPhantom}});
  for (const RequesterId function : {kCard, kPhantom}) {
    EXPECT_EQ(m.xen.owner_of(function).domain, &m.guest());
    EXPECT_EQ(m.xen.owner_of(function).device, kCard);
  }
  EXPECT_EQ(m.xen.owner_of(kAlien).domain, m.other);
  EXPECT_EQ(m.xen.owner_of(RequesterId::bdf(10, 0, 0)).domain, nullptr);
}

}  // namespace
}  // namespace iommu::xen
