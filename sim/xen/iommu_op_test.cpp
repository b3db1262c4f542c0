// SPDX-License-Identifier: Apache-2.0
// The hypercall's interface: who may call, error codes, capabilities, initialisation, remote commands. Numbers are
// those of the interface's list of testable behaviours; (Zn) names a trap of the RFC's code.
#include <gtest/gtest.h>

#include "sim/xen/xen_test_support.hpp"

namespace iommu::xen {
namespace {

using abi::Subop;

constexpr std::uint32_t number(Subop subop) { return static_cast<std::uint32_t>(subop); }
constexpr Gpa kNowhere{kGuestPages << kPageLg2};  // the first byte after the guest's memory

class XenHypercall : public XenFamilies {};
XEN_ON_ALL_FAMILIES(XenHypercall);

// Behaviour 1. Kills: a noop that reads its argument, or counts as unknown.
TEST_P(XenHypercall, NoopSucceedsAndChangesNothing) {
  Machine m(family());
  const std::uint64_t used = m.frames->used();
  EXPECT_EQ(m.raw(m.guest(), number(Subop::Noop), kNowhere), Errno::Ok);
  EXPECT_FALSE(m.guest().pv);
  EXPECT_EQ(m.frames->used(), used);
  EXPECT_EQ(m.fences(), 0U);
  EXPECT_EQ(m.op.counters().of(Subop::Noop), 1U);
}

// Behaviour 2. Kills: a check that some sub-operations skip.
TEST_P(XenHypercall, EverySubopOfADomainWithoutIommuIsNoDevice) {
  Machine m(family());
  Domain* without = m.xen.create_domain({.name = "no iommu", .memory = 1_MiB, .has_iommu = false});
  ASSERT_NE(without, nullptr);
  for (std::uint32_t subop = 0; subop < abi::kRfcSubops + 2; ++subop)
    EXPECT_EQ(m.raw(*without, subop, Machine::kArgument), Errno::NoDevice) << subop;
}

// Behaviour 3. Kills: a noop that answers before the permission is looked at.
TEST_P(XenHypercall, EverySubopOfADomainThatMayNotIsNoDevice) {
  Machine m(family());
  Domain* barred = m.xen.create_domain({.name = "barred", .memory = 1_MiB, .may_use_pv_iommu = false});
  ASSERT_NE(barred, nullptr);
  for (std::uint32_t subop = 0; subop < abi::kRfcSubops + 2; ++subop)
    EXPECT_EQ(m.raw(*barred, subop, Machine::kArgument), Errno::NoDevice) << subop;
  EXPECT_FALSE(barred->pv);
}

// Behaviour 4. Kills: sub-operations that are reserved but not implemented taken for others.
TEST_P(XenHypercall, UnknownAndUnimplementedSubopsAreUnsupported) {
  Machine m(family());
  for (const std::uint32_t subop : {number(Subop::AllocNested), number(Subop::FlushNested), number(Subop::AttachPasid),
                                    number(Subop::DetachPasid), 13U, 0x7fffU, 0xffffffffU})
    EXPECT_EQ(m.raw(m.guest(), subop, Machine::kArgument), Errno::Unsupported) << subop;
  // Offered only where a scenario asks for it.
  EXPECT_EQ(m.raw(m.guest(), number(Subop::UnmapPagesDeferred), Machine::kArgument), Errno::Unsupported);
  EXPECT_EQ(m.raw(m.guest(), number(Subop::FlushContext), Machine::kArgument), Errno::Unsupported);
}

// §1.5, any. Kills: an operation that goes on with an argument it could not read.
TEST_P(XenHypercall, ArgumentsOutsideMemoryAreBadAddressesAndChangeNothing) {
  Machine m(family(), {.deferred = DeferredFlush::Offered});
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(1), Gfn(1), 1).status, Errno::Ok);
  for (const Subop subop :
       {Subop::QueryCapabilities, Subop::Init, Subop::AllocContext, Subop::FreeContext, Subop::ReattachDevice,
        Subop::MapPages, Subop::UnmapPages, Subop::UnmapPagesDeferred, Subop::FlushContext})
    for (const Gpa at : {kNowhere, kNowhere - 4_B, Gpa(~0ULL), Gpa(1ULL << 63)})
      EXPECT_EQ(m.raw(m.guest(), number(subop), at), Errno::BadAddress) << number(subop);
  EXPECT_EQ(m.raw(*m.dom0, number(Subop::RemoteCommand), Gpa(~0ULL)), Errno::BadAddress);
  EXPECT_EQ(m.reach(kNic, Dfn(1)), m.frame(m.guest(), Gfn(1)));
  EXPECT_EQ(m.xen.references().total(), 1U);
}

// A structure may lie anywhere, across two pages too. Kills: arguments read as aligned words of one page.
TEST_P(XenHypercall, ArgumentsMayLieAtAnyByte) {
  Machine m(family());
  abi::Init init{.max_ctx_no = 3, .arena_order = 4};
  EXPECT_EQ(m.call(m.guest(), Subop::Init, init, Gpa(0x9ffd)), Errno::Ok);
  abi::Capabilities capabilities;
  EXPECT_EQ(m.call(m.guest(), Subop::QueryCapabilities, capabilities, Gpa(0xa001)), Errno::Ok);
  EXPECT_EQ(capabilities.max_ctx_no, 3U);
}

// One trap per call, whatever its outcome. Kills: calls that cost nothing when they fail.
TEST_P(XenHypercall, EveryCallCostsOneTrap) {
  Machine m(family());
  const std::uint64_t before = m.cpu.charged()[CostId::Hypercall];
  (void)m.raw(m.guest(), number(Subop::Noop), kNowhere);
  (void)m.raw(m.guest(), 99, kNowhere);
  (void)m.raw(m.guest(), number(Subop::MapPages), kNowhere);
  EXPECT_EQ(m.cpu.charged()[CostId::Hypercall], before + 3);
  EXPECT_EQ(m.op.counters().total(), 3U);
  EXPECT_EQ(m.op.counters().unknown, 1U);
}

class XenInit : public XenFamilies {};
XEN_ON_ALL_FAMILIES(XenInit);

// Behaviours 5 and 6.
TEST_P(XenInit, ContextsAreZeroBeforeInitAndAsAskedAfterwards) {
  Machine m(family());
  EXPECT_EQ(m.capabilities(m.guest()).max_ctx_no, 0U);
  ASSERT_EQ(m.init(m.guest(), 5, 4), Errno::Ok);
  EXPECT_EQ(m.capabilities(m.guest()).max_ctx_no, 5U);
  EXPECT_EQ(m.capabilities(*m.other).max_ctx_no, 0U);
}

// Behaviours 7 and 8 (Z1). Kills: init that falls through into alloc; a second init that changes something.
TEST_P(XenInit, SecondInitIsDeniedAndInitAllocatesNoContext) {
  Machine m(family());
  ASSERT_EQ(m.init(m.guest(), 5, 4), Errno::Ok);
  for (const auto& slot : m.guest().pv->slots) EXPECT_EQ(slot, nullptr);
  EXPECT_EQ(m.arena_used(m.guest()), 0U);
  const std::uint64_t used = m.frames->used();
  EXPECT_EQ(m.init(m.guest(), 9, 5), Errno::AccessDenied);
  EXPECT_EQ(m.capabilities(m.guest()).max_ctx_no, 5U);
  EXPECT_EQ(m.frames->used(), used);
  EXPECT_EQ(m.try_alloc(m.guest()).number, 1U);
}

// Behaviours 9 and 10 (Z2). Kills: a count narrowed to 16 bits.
TEST_P(XenInit, MoreContextsThanNumbersAreTooBig) {
  Machine m(family());
  EXPECT_EQ(m.init(m.guest(), 0xffffffff, 4), Errno::TooBig);
  EXPECT_EQ(m.init(m.guest(), 0x10000, 4), Errno::TooBig);
  EXPECT_EQ(m.init(m.guest(), 0xffff, 4), Errno::TooBig);
  EXPECT_FALSE(m.guest().pv);
  EXPECT_EQ(m.init(m.guest(), 0xfffe, 4), Errno::Ok);
  EXPECT_EQ(m.capabilities(m.guest()).max_ctx_no, 0xfffeU);
}

// Behaviour 11.
TEST_P(XenInit, ZeroContextsSucceedAndAllocFindsNoSpace) {
  Machine m(family());
  EXPECT_EQ(m.init(m.guest(), 0, 4), Errno::Ok);
  EXPECT_EQ(m.try_alloc(m.guest()).status, Errno::NoSpace);
}
// Alloc before init has no numbers either.
TEST_P(XenInit, AllocBeforeInitFindsNoSpace) {
  Machine m(family());
  EXPECT_EQ(m.try_alloc(m.guest()).status, Errno::NoSpace);
}

// Behaviour 12 (Z18). Kills: a context without an arena taking its tables from the general heap, or crashing.
TEST_P(XenInit, WithoutAnArenaAllocHasNoMemory) {
  Machine m(family());
  const std::uint64_t used = m.frames->used();
  EXPECT_EQ(m.init(m.guest(), 4, 0), Errno::Ok);
  EXPECT_EQ(m.try_alloc(m.guest()).status, Errno::NoMemory);
  EXPECT_EQ(m.frames->used(), used);
}

// Behaviour 13 (Z3). Kills: a failed init that leaves "initialised" set.
TEST_P(XenInit, InitWithoutMemoryCanBeRetried) {
  Machine m(family());
  EXPECT_EQ(m.init(m.guest(), 4, 0xffffffff), Errno::NoMemory);
  std::vector<Mfn> hoard;
  for (unsigned order = 18; order > 3; --order)
    while (const auto block = m.frames->allocate(order)) hoard.push_back(*block);
  EXPECT_EQ(m.init(m.guest(), 4, 4), Errno::NoMemory);
  EXPECT_FALSE(m.guest().pv);
  EXPECT_EQ(m.capabilities(m.guest()).max_ctx_no, 0U);
  ASSERT_TRUE(m.frames->release(hoard.back(), 4));
  EXPECT_EQ(m.init(m.guest(), 4, 4), Errno::Ok);
}

// Behaviour 14. Kills: a page size that is announced but refused, and the other way round (58, Z14).
TEST_P(XenInit, ExactlyTheAnnouncedPageSizesMap) {
  Machine m(family());
  const std::uint16_t context = m.alloc(m.guest());
  const std::uint32_t mask = m.capabilities(m.guest()).pgsize_mask;
  EXPECT_NE(mask & 0x1000U, 0U);
  for (unsigned lg2 = 0; lg2 < 32; ++lg2) {
    abi::MapPages map = Machine::map_argument(context, Dfn(lg2 * 512), Gfn(512), 1);
    map.pgsize = 1U << lg2;
    const Errno expected = (mask >> lg2 & 1) != 0 ? Errno::Ok : Errno::Invalid;
    EXPECT_EQ(m.call(m.guest(), Subop::MapPages, map), expected) << lg2;
  }
  abi::MapPages map = Machine::map_argument(context, Dfn(1 << 18), Gfn(512), 1);
  for (const std::uint32_t size : {0U, 0x1800U, 0x201000U, 0xffffffffU}) {
    map.pgsize = size;
    EXPECT_EQ(m.call(m.guest(), Subop::MapPages, map), Errno::Invalid) << size;
  }
}

// Behaviour 15.
TEST_P(XenInit, DefaultIdentityIsAnnouncedUnlessContextZeroBlocks) {
  Machine identity(family());
  EXPECT_NE(identity.capabilities(identity.guest()).cap_flags & abi::kCapDefaultIdentity, 0U);
  EXPECT_EQ(identity.reach(kNic, Dfn(5)), identity.frame(identity.guest(), Gfn(5)));
  Machine blocked(family(), {.default_context = DefaultContext::Blocked});
  EXPECT_EQ(blocked.capabilities(blocked.guest()).cap_flags & abi::kCapDefaultIdentity, 0U);
  EXPECT_EQ(blocked.reach(kNic, Dfn(5)), std::nullopt);
}

// Behaviour 16. Kills: a count that shrinks as contexts are taken.
TEST_P(XenInit, QueryIsTheSameBeforeAndAfterAllocAndFree) {
  Machine m(family());
  ASSERT_EQ(m.init(m.guest(), 3, 6), Errno::Ok);
  const auto same = [&](const abi::Capabilities& a, const abi::Capabilities& b) {
    return a.max_iova_addr == b.max_iova_addr && a.cap_flags == b.cap_flags && a.pgsize_mask == b.pgsize_mask &&
           a.max_pasid == b.max_pasid && a.max_ctx_no == b.max_ctx_no;
  };
  const abi::Capabilities first = m.capabilities(m.guest());
  EXPECT_TRUE(same(first, m.capabilities(m.guest())));
  const std::uint16_t context = m.alloc(m.guest());
  EXPECT_TRUE(same(first, m.capabilities(m.guest())));
  ASSERT_EQ(m.free(m.guest(), context), Errno::Ok);
  EXPECT_TRUE(same(first, m.capabilities(m.guest())));
}

// The last address is the driver's, and the last page maps. Kills: a limit written by hand, or of the page's first
// byte.
TEST_P(XenInit, TheLastPageMapsAndTheNextDoesNot) {
  Machine m(family());
  const std::uint16_t context = m.attached(m.guest());
  const Dfn last{Iova(m.capabilities(m.guest()).max_iova_addr)};
  EXPECT_EQ(m.capabilities(m.guest()).max_iova_addr & 0xfffU, 0xfffU) << "of the last byte";
  EXPECT_EQ(m.map(m.guest(), context, last, Gfn(3), 1).status, Errno::Ok);
  EXPECT_EQ(m.reach(kNic, last), m.frame(m.guest(), Gfn(3)));
  EXPECT_EQ(m.map(m.guest(), context, last + 1, Gfn(3), 1).status, Errno::AddressNotAvailable);
}

class XenRemote : public XenFamilies {
 protected:
  // Dom0 has its command at kArgument and the inner structure one page further on.
  static constexpr Gpa kInner{0xa000};
  template <class T>
  static Errno remote(Machine& m, Domain& caller, std::uint16_t target, Subop subop, T& inner) {
    EXPECT_TRUE(caller.memory.write(kInner, std::as_bytes(std::span(&inner, 1))));
    abi::RemoteCommand command{
        .domid = target, .subop = static_cast<std::uint16_t>(subop), .pad = 0, .arg = kInner.value()};
    const Errno status = m.call(caller, Subop::RemoteCommand, command);
    EXPECT_TRUE(caller.memory.read(kInner, std::as_writable_bytes(std::span(&inner, 1))));
    return status;
  }
};
XEN_ON_ALL_FAMILIES(XenRemote);

// Behaviour 84.
TEST_P(XenRemote, OnlyTheHardwareDomainMay) {
  Machine m(family());
  abi::Init init{.max_ctx_no = 2, .arena_order = 4};
  EXPECT_EQ(remote(m, m.guest(), m.other->id.value(), Subop::Init, init), Errno::NotPermitted);
  EXPECT_EQ(remote(m, m.guest(), m.guest().id.value(), Subop::Init, init), Errno::NotPermitted);
  EXPECT_FALSE(m.other->pv);
}
// Behaviour 85.
TEST_P(XenRemote, UnknownDomainsAreNoEntry) {
  Machine m(family());
  abi::Init init{.max_ctx_no = 2, .arena_order = 4};
  EXPECT_EQ(remote(m, *m.dom0, 77, Subop::Init, init), Errno::NoEntry);
  EXPECT_EQ(remote(m, *m.dom0, 0xffff, Subop::Init, init), Errno::NoEntry);
}
// Behaviour 86. Kills: a recursion that a guest can drive.
TEST_P(XenRemote, RemoteInsideRemoteIsInvalid) {
  Machine m(family());
  abi::RemoteCommand inner{.domid = m.guest().id.value(), .subop = 0, .pad = 0, .arg = 0};
  EXPECT_EQ(remote(m, *m.dom0, m.guest().id.value(), Subop::RemoteCommand, inner), Errno::Invalid);
}
// Behaviour 87. Kills: contexts of the target with frames of the caller, and results written to the target's memory.
TEST_P(XenRemote, ActsOnTheTargetsContextsAndFrames) {
  Machine m(family());
  const std::uint16_t id = m.guest().id.value();
  abi::Init init{.max_ctx_no = 2, .arena_order = 6};
  ASSERT_EQ(remote(m, *m.dom0, id, Subop::Init, init), Errno::Ok);
  abi::AllocContext alloc;
  ASSERT_EQ(remote(m, *m.dom0, id, Subop::AllocContext, alloc), Errno::Ok);
  EXPECT_EQ(alloc.ctx_no, 1U);
  abi::ReattachDevice move = Machine::reattach_argument(kNic, 1);
  ASSERT_EQ(remote(m, *m.dom0, id, Subop::ReattachDevice, move), Errno::Ok);
  abi::MapPages map = Machine::map_argument(1, Dfn(0x40), Gfn(9), 2);
  ASSERT_EQ(remote(m, *m.dom0, id, Subop::MapPages, map), Errno::Ok);
  EXPECT_EQ(map.mapped, 2U);
  EXPECT_FALSE(m.dom0->pv);
  EXPECT_EQ(m.reach(kNic, Dfn(0x41)), m.frame(m.guest(), Gfn(10)));
  EXPECT_EQ(m.references(m.guest(), Gfn(9)), 1U);
}
// Behaviour 88 (Z15).
TEST_P(XenRemote, ATargetThatMayNotIsRefused) {
  Machine m(family());
  Domain* barred = m.xen.create_domain({.name = "barred", .memory = 1_MiB, .may_use_pv_iommu = false});
  ASSERT_NE(barred, nullptr);
  abi::Init init{.max_ctx_no = 2, .arena_order = 4};
  EXPECT_EQ(remote(m, *m.dom0, barred->id.value(), Subop::Init, init), Errno::NoDevice);
  EXPECT_FALSE(barred->pv);
}
// The target's own calls and the remote ones concern the same contexts.
TEST_P(XenRemote, SecondInitOfATargetIsDeniedWhoeverAsks) {
  Machine m(family());
  ASSERT_EQ(m.init(m.guest(), 2, 4), Errno::Ok);
  abi::Init init{.max_ctx_no = 3, .arena_order = 4};
  EXPECT_EQ(remote(m, *m.dom0, m.guest().id.value(), Subop::Init, init), Errno::AccessDenied);
  EXPECT_EQ(m.capabilities(m.guest()).max_ctx_no, 2U);
}

}  // namespace
}  // namespace iommu::xen
