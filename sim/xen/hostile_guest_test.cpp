// SPDX-License-Identifier: Apache-2.0
// A guest that does whatever it likes with the hypercall. Nothing crashes or hangs, books balance, and no device ever
// reaches a page that is neither its domain's memory nor mapped for it.
#include <gtest/gtest.h>

#include <map>

#include "sim/xen/xen_test_support.hpp"

namespace iommu::xen {
namespace {

using abi::Subop;

class XenHostile : public XenFamilies {};
XEN_ON_ALL_FAMILIES(XenHostile);

// Any number, any bytes, anywhere. Kills: a field that is used before it is checked.
TEST_P(XenHostile, RandomBytesAsArguments) {
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Machine m(family(), {.deferred = DeferredFlush::Offered});
    Rng rng(seed);
    ASSERT_EQ(m.init(m.guest(), 6, 5), Errno::Ok);
    for (int step = 0; step < 400; ++step) {
      for (std::uint64_t word = 0; word < 6; ++word) {
        std::uint64_t value = 0;
        for (unsigned shift = 0; shift < 64; shift += 16) {
          const std::uint64_t piece = rng.chance(0.6) ? rng.below(8) : rng.chance(0.5) ? rng.next() & 0xffff : 0;
          value |= piece << shift;
        }
        m.guest().memory.write64(Machine::kArgument + Bytes(8 * word), value);
      }
      const std::uint32_t subop = rng.chance(0.9) ? static_cast<std::uint32_t>(rng.below(14))
                                                  : 0x8000 + static_cast<std::uint32_t>(rng.below(3));
      const Gpa at = rng.chance(0.9) ? Machine::kArgument : Gpa(rng.next() >> rng.below(64));
      const Errno status = m.raw(m.guest(), subop, at);
      ASSERT_LE(static_cast<std::int32_t>(status), 0);
      ASSERT_EQ(m.reach(kAlien, Dfn(3)), m.frame(*m.other, Gfn(3)));
    }
    EXPECT_EQ(m.xen.references().total(), explained_references(m, m.guest()));
  }
}

// Calls that make sense, in any order, with everything that may go wrong. Kills: a path on which a reference, a table
// page or a tag is lost, and one on which a device reaches what was taken from it: in the last two also where the unit
// now and then does not answer.
TEST_P(XenHostile, RandomCallsKeepTheBooksAndTheWalls) {
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Machine m(family(), {.xen = {.coalesce = seed % 2 == 0 ? Coalesce::Yes : Coalesce::No, .slice_pages = 16},
                         .deferred = DeferredFlush::Offered});
    Rng rng(seed);
    constexpr RequesterId kCard = RequesterId::bdf(9, 0, 0);
    m.assign(m.guest(), {.requester = kCard, .reserved = {{Dfn(0x100000), 2}}});
    const std::vector<RequesterId> devices{kNic, kDisk, kCard};
    ASSERT_TRUE(m.guest().p2m.add({Gfn(0x10000), 4, m.frame(*m.other, Gfn(9)), FrameType::Foreign}));
    ASSERT_EQ(m.init(m.guest(), 4, 5), Errno::Ok);
    const auto number = [&] { return static_cast<std::uint16_t>(rng.below(6)); };
    // Addresses on few tables, near each other and near the reserved region.
    const auto address = [&] {
      const std::uint64_t near[] = {0, 0x1f8, 0x400, 0xffff8, 0x100004, m.xen.last_dfn().value() - 20};
      return Dfn(near[rng.below(6)] + rng.below(24));
    };
    const auto frame = [&] {
      if (rng.chance(0.1)) return Gfn(0x10000 + rng.below(4));
      if (rng.chance(0.1)) return Gfn(kGuestPages - 3 + rng.below(6));
      return Gfn(512 + rng.below(1024));
    };
    for (int step = 0; step < 400; ++step) {
      if (seed > 6 && rng.chance(0.05)) m.xen.unit(0).lose_invalidations(static_cast<std::uint32_t>(rng.below(6)));
      switch (rng.below(8)) {
        case 0:
          (void)m.try_alloc(m.guest());
          break;
        case 1:
          (void)m.free(m.guest(), number(), rng.chance(0.5) ? abi::kFreeReattachDefault : 0);
          break;
        case 2:
          (void)m.reattach(m.guest(), devices[rng.below(devices.size())], number());
          break;
        case 3:
        case 4:
          (void)m.map(m.guest(), number(), address(), frame(), static_cast<std::uint32_t>(rng.below(40)),
                      static_cast<std::uint32_t>(rng.below(4)));
          break;
        case 5:
          (void)m.unmap(m.guest(), number(), address(), static_cast<std::uint32_t>(rng.below(40)));
          break;
        case 6:
          (void)m.unmap(m.guest(), number(), address(), static_cast<std::uint32_t>(rng.below(40)),
                        Subop::UnmapPagesDeferred);
          break;
        default: {
          abi::FlushContext flush{.ctx_no = number()};
          (void)m.call(m.guest(), Subop::FlushContext, flush);
          break;
        }
      }
      const RequesterId device = devices[rng.below(devices.size())];
      const Dfn dfn = address();
      const auto there = m.reach(device, dfn);
      if (there && (dfn < Dfn(0x100000) || dfn >= Dfn(0x100002))) {
        ASSERT_TRUE(owns(m.guest(), *there)) << "step " << step;
        // Context 0 needs no references: memory stays while its domain lives.
        if (m.guest().devices.at(device).context != m.guest().default_context.get()) {
          ASSERT_GT(m.xen.references().of(*there), 0U) << "step " << step;
        }
      }
      if (step % 16 == 0) ASSERT_EQ(m.xen.references().total(), explained_references(m, m.guest())) << "step " << step;
    }
    m.xen.unit(0).lose_invalidations(0);
    for (std::uint16_t context = 1; context <= 4; ++context)
      (void)m.free(m.guest(), context, abi::kFreeReattachDefault);
    EXPECT_EQ(m.xen.references().total(), explained_references(m, m.guest()));
    if (m.guest().retired_contexts.empty()) {
      EXPECT_EQ(m.xen.references().total(), 0U);
      EXPECT_EQ(m.arena_used(m.guest()), 0U);
    }
    if (m.guest().crashed) continue;  // its devices may be blocked
    for (const RequesterId device : devices) EXPECT_EQ(m.reach(device, Dfn(3)), m.frame(m.guest(), Gfn(3)));
  }
}

// Everything at the edge of its field. Kills: sums that wrap.
TEST_P(XenHostile, ExtremeValuesAreRefusedOrHarmless) {
  Machine m(family());
  const std::uint16_t context = m.attached(m.guest());
  const auto extremes = {0ULL,       1ULL,       0xfffULL,   1ULL << 31, 1ULL << 40,
                         1ULL << 51, 1ULL << 52, 1ULL << 63, ~0ULL - 1,  ~0ULL};
  for (const std::uint64_t dfn : extremes)
    for (const std::uint64_t gfn : extremes)
      for (const std::uint32_t pages : {1U, 2U, 0xffffffffU}) {
        abi::MapPages map = Machine::map_argument(context, Dfn(dfn), Gfn(gfn), pages);
        (void)m.call(m.guest(), Subop::MapPages, map);
        abi::UnmapPages unmap = Machine::unmap_argument(context, Dfn(dfn), pages);
        (void)m.call(m.guest(), Subop::UnmapPages, unmap);
        ASSERT_EQ(m.xen.references().total(), explained_references(m, m.guest()));
      }
  EXPECT_EQ(m.free(m.guest(), context, abi::kFreeReattachDefault), Errno::Ok);
  EXPECT_EQ(m.xen.references().total(), 0U);
}

// An argument in a page that is not the guest's memory. Kills: results written to another domain's memory.
TEST_P(XenHostile, ArgumentsInForeignOrDevicePagesAreBadAddresses) {
  Machine m(family());
  const Mfn theirs = m.frame(*m.other, Gfn(9));
  ASSERT_TRUE(m.guest().p2m.add({Gfn(0x10000), 1, theirs, FrameType::Foreign}));
  ASSERT_TRUE(m.guest().p2m.add({Gfn(0x10001), 1, Mfn(0x60), FrameType::Mmio}));
  m.host.write64(theirs.address(), 0x1234);
  for (const Gfn page : {Gfn(0x10000), Gfn(0x10001)})
    EXPECT_EQ(m.raw(m.guest(), static_cast<std::uint32_t>(Subop::QueryCapabilities), page.address()),
              Errno::BadAddress);
  EXPECT_EQ(m.host.read64(theirs.address()), 0x1234U);
}

// A guest may overwrite its argument while the call is preempted. Xen works on its own copy. Kills: a second read of
// what was checked.
TEST_P(XenHostile, AnArgumentThatChangesDuringTheCallChangesNothing) {
  Machine m(family(), {.xen = {.slice_pages = 2}});
  const std::uint16_t context = m.attached(m.guest());
  Stepper stepper(m.host);
  abi::MapPages map = Machine::map_argument(context, Dfn(0x100), Gfn(20), 8);
  ASSERT_TRUE(m.guest().memory.write(Gpa(0x20000), std::as_bytes(std::span(&map, 1))));
  auto call = m.op.call(stepper.add_cpu(), m.guest(), static_cast<std::uint32_t>(Subop::MapPages), Gpa(0x20000));
  call.start();
  Rng rng(1);
  const abi::MapPages other = Machine::map_argument(context, Dfn(0x900), Gfn(90), 500);
  while (m.xen.references().total() == 0) ASSERT_TRUE(stepper.step(rng));
  while (!call.done()) {
    ASSERT_TRUE(m.guest().memory.write(Gpa(0x20000), std::as_bytes(std::span(&other, 1))));
    ASSERT_TRUE(stepper.step(rng) || call.done());
  }
  EXPECT_EQ(call.result(), 0);
  EXPECT_EQ(m.xen.references().total(), 8U);
  EXPECT_EQ(m.reach(kNic, Dfn(0x107)), m.frame(m.guest(), Gfn(27)));
  EXPECT_EQ(m.reach(kNic, Dfn(0x900)), std::nullopt);
}

}  // namespace
}  // namespace iommu::xen
