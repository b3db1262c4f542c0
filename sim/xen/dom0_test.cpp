// SPDX-License-Identifier: Apache-2.0
// The hardware domain: what its context 0 shows in each mode, which modes it may have, and how many domains there may
// be. Numbers are those of the interface's list of testable behaviours.
#include <gtest/gtest.h>

#include "sim/xen/xen_test_support.hpp"

namespace iommu::xen {
namespace {

constexpr RequesterId kCard = RequesterId::bdf(9, 0, 0);

DomainSetting hardware(DomainType type, HardwareDomainMode mode) {
  return {.name = "dom0",
          .memory = 8_MiB,
          .privilege = Privilege::HardwareDomain,
          .page_lg2 = 30,
          .type = type,
          .hardware_mode = mode};
}

// A host with one unit, a hardware domain as told with a card, and a guest.
class Host {
 public:
  Host(const FamilyDescriptor& family, const DomainSetting& setting) : unit(family, {}, memory) {
    xen.add_unit({.name = "unit", .family = &family, .driver = {}}, unit);
    EXPECT_EQ(xen.bring_up(cpu).run(), Errno::Ok);
    Mfn next(0x100);
    for (const auto& [first, count] : frames.free_runs()) {
      for (; next < first; next = next + 1) xens.push_back(next);
      next = first + count;
    }
    dom0 = xen.create_domain(setting);
    if (dom0 == nullptr) return;
    guest = xen.create_domain({.name = "guest", .memory = 4_MiB});
    EXPECT_EQ(xen.assign_device(cpu, *dom0, {.requester = kCard}).run(), Errno::Ok);
    unit.forget_history();
  }
  std::optional<Mfn> reach(Mfn frame, Access access = Access::Write) {
    const TranslationResponse response =
        unit.translate({.requester = kCard, .pasid = {}, .address = Dfn(frame.value()).address(), .access = access});
    const auto* translation = std::get_if<Translation>(&response);
    if (translation == nullptr || !translation->allowed.allow(access)) return std::nullopt;
    return Mfn(translation->address);
  }
  static Mfn frame(const Domain& domain, std::size_t extent = 0) { return domain.p2m.extents()[extent].machine; }

  HostMemory memory{8_GiB};
  FrameAllocator frames{Mfn(0x100), 1ULL << 18};
  Hypervisor xen{memory, frames, {}};
  ImmediateCpu cpu{CpuId(0), [this](Hpa a) { return memory.read32(a); }};
  CachingUnit unit;
  std::vector<Mfn> xens;  // what Xen had before there was any domain
  Domain* dom0 = nullptr;
  Domain* guest = nullptr;
};

class XenDom0 : public XenFamilies {};
XEN_ON_ALL_FAMILIES(XenDom0);

// Behaviour 92. Kills: relaxed that shows Xen's tables, or only what is free of guests; another address than the
// frame's.
TEST_P(XenDom0, RelaxedReachesAllMemoryButXens) {
  Host h(family(), hardware(DomainType::Pv, HardwareDomainMode::Relaxed));
  ASSERT_NE(h.dom0, nullptr);
  for (const Mfn frame : {Host::frame(*h.dom0), Host::frame(*h.guest), Mfn(0x100 + (1ULL << 18) - 1)})
    EXPECT_EQ(h.reach(frame), frame);
  ASSERT_FALSE(h.xens.empty());
  for (const Mfn frame : h.xens) EXPECT_EQ(h.reach(frame), std::nullopt) << frame.value();
  EXPECT_EQ(h.reach(Mfn(0x100 + (1ULL << 18))), std::nullopt);
}
TEST_P(XenDom0, StrictReachesItsOwnMemoryAtItsMachineAddresses) {
  Host h(family(), hardware(DomainType::Pv, HardwareDomainMode::Strict));
  ASSERT_NE(h.dom0, nullptr);
  const Mfn own = Host::frame(*h.dom0);
  EXPECT_EQ(h.dom0->p2m.lookup(Gfn(own.value()))->machine, own) << "guest frames are machine frames";
  EXPECT_EQ(h.reach(own), own);
  EXPECT_EQ(h.reach(Host::frame(*h.guest)), std::nullopt);
}
TEST_P(XenDom0, PassthroughIsNotTranslatedAtAll) {
  Host h(family(), hardware(DomainType::Pv, HardwareDomainMode::Passthrough));
  ASSERT_NE(h.dom0, nullptr);
  for (const Mfn frame : {Host::frame(*h.dom0), Host::frame(*h.guest), h.xens.front(), Mfn(0x7)})
    EXPECT_EQ(h.reach(frame), frame);
  EXPECT_EQ(h.dom0->default_context->table, nullptr);
  EXPECT_EQ(h.xen.deassign_device(h.cpu, *h.dom0, kCard).run(), Errno::Ok);
  EXPECT_EQ(h.reach(Host::frame(*h.dom0)), std::nullopt);
  EXPECT_EQ(h.xen.assign_device(h.cpu, *h.dom0, {.requester = kCard, .reserved = {{Dfn(0x100000), 4}}}).run(),
            Errno::Ok);
  EXPECT_EQ(h.reach(Mfn(0x7)), Mfn(0x7));
}
// Behaviour 93. Kills: a PVH Dom0 whose wish for less protection is granted, or that passes for a PV one.
TEST_P(XenDom0, PvhIsStrictAndNeverPassedThrough) {
  Host relaxed(family(), hardware(DomainType::Hvm, HardwareDomainMode::Relaxed));
  ASSERT_NE(relaxed.dom0, nullptr);
  EXPECT_EQ(relaxed.dom0->setting.hardware_mode, HardwareDomainMode::Strict);
  EXPECT_EQ(relaxed.reach(Mfn(0)), Host::frame(*relaxed.dom0)) << "its frame numbers are its own";
  EXPECT_EQ(relaxed.reach(Mfn(0x800)), std::nullopt);
  Host passed(family(), hardware(DomainType::Hvm, HardwareDomainMode::Passthrough));
  EXPECT_EQ(passed.dom0, nullptr);
  EXPECT_FALSE(passed.xen.refusal(hardware(DomainType::Hvm, HardwareDomainMode::Passthrough)).empty());
}
// Changes of its memory (grants, foreign pages). Kills: a flush where context 0 does not depend on the p2m, or none
// where it does.
TEST_P(XenDom0, OnlyAStrictContextZeroFollowsTheMemory) {
  for (const auto mode : {HardwareDomainMode::Strict, HardwareDomainMode::Relaxed, HardwareDomainMode::Passthrough}) {
    Host h(family(), hardware(DomainType::Pv, mode));
    ASSERT_NE(h.dom0, nullptr);
    const Mfn granted = Host::frame(*h.guest);
    const Gfn at(granted.value());
    const auto calls = [&] { return h.xen.counters().flush_calls; };
    const std::uint64_t before = calls();
    EXPECT_EQ(h.xen.add_memory(h.cpu, *h.dom0, {at, 1, granted, FrameType::Foreign}).run(), Errno::Ok);
    EXPECT_EQ(h.unit.fences, 0U) << "an entry that is new needs no flush";
    if (mode == HardwareDomainMode::Strict) EXPECT_EQ(h.reach(granted), granted);
    EXPECT_EQ(h.xen.remove_memory(h.cpu, *h.dom0, at, 1).run(), Errno::Ok);
    EXPECT_EQ(h.unit.fences, mode == HardwareDomainMode::Strict ? 1U : 0U);
    EXPECT_EQ(calls() > before, mode == HardwareDomainMode::Strict);
    EXPECT_EQ(h.reach(granted).has_value(), mode != HardwareDomainMode::Strict);
    EXPECT_EQ(h.cpu.charged()[CostId::TlbShootdown], 1U) << "CPUs forget the page in any mode";
  }
}
// `dma=0`: the context blocks, and no change of the memory concerns any unit (behaviours 15 and 83).
TEST_P(XenDom0, WithoutDmaTheDefaultContextShowsNothing) {
  DomainSetting setting = hardware(DomainType::Hvm, HardwareDomainMode::Strict);
  setting.default_context = DefaultContext::Blocked;
  Host h(family(), setting);
  ASSERT_NE(h.dom0, nullptr);
  EXPECT_EQ(h.reach(Mfn(0)), std::nullopt);
  EXPECT_EQ(h.xen.add_memory(h.cpu, *h.dom0, {Gfn(0x1000), 1, Host::frame(*h.guest), FrameType::Foreign}).run(),
            Errno::Ok);
  EXPECT_EQ(h.xen.remove_memory(h.cpu, *h.dom0, Gfn(0x1000), 1).run(), Errno::Ok);
  EXPECT_EQ(h.unit.fences, 0U);
  setting.type = DomainType::Pv;
  setting.hardware_mode = HardwareDomainMode::Relaxed;
  EXPECT_EQ(Host(family(), setting).dom0, nullptr) << "blocked and relaxed contradict each other";
}
TEST_P(XenDom0, ThereIsOneHardwareDomainAndGuestsAreStrict) {
  Host h(family(), hardware(DomainType::Pv, HardwareDomainMode::Relaxed));
  const std::uint64_t used = h.frames.used();
  EXPECT_EQ(h.xen.create_domain(hardware(DomainType::Pv, HardwareDomainMode::Strict)), nullptr);
  DomainSetting guest{.name = "guest", .memory = 4_MiB, .type = DomainType::Pv};
  guest.hardware_mode = HardwareDomainMode::Relaxed;
  EXPECT_EQ(h.xen.create_domain(guest), nullptr);
  EXPECT_EQ(h.frames.used(), used);
}
// Kills: numbers that reach into those which Xen keeps for its own domains.
TEST_P(XenDom0, DomainNumbersEndBeforeTheReservedOnes) {
  HostMemory memory{1_GiB};
  FrameAllocator frames{Mfn(0x100), 0x1000};
  Hypervisor xen{memory, frames, {}};  // without a unit: no tags that run out before
  for (std::size_t i = 0; i < 0x7ff0; ++i) ASSERT_NE(xen.create_domain({.name = "d", .memory = 0_B}), nullptr) << i;
  EXPECT_EQ(xen.create_domain({.name = "d", .memory = 0_B}), nullptr);
  EXPECT_EQ(xen.domains().back()->id, DomainId(0x7fef));
}

}  // namespace
}  // namespace iommu::xen
