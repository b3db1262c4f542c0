// SPDX-License-Identifier: Apache-2.0
// Devices and the domains that have them. Numbers are those of the interface's list of testable behaviours.
#include <gtest/gtest.h>

#include "sim/xen/xen_test_support.hpp"

namespace iommu::xen {
namespace {

using abi::Subop;

constexpr RequesterId kPhantom = RequesterId::bdf(3, 0, 1);
constexpr ReservedRegion kFirmware{Dfn(0x100000), 4};  // memory that nobody is given

class XenAssign : public XenFamilies {};
XEN_ON_ALL_FAMILIES(XenAssign);

TEST_P(XenAssign, ADeviceBelongsToOneDomain) {
  Machine m(family());
  EXPECT_EQ(m.xen.assign_device(m.cpu, *m.other, {.requester = kNic}).run(), Errno::Busy);
  EXPECT_EQ(m.xen.assign_device(m.cpu, m.guest(), {.requester = kNic}).run(), Errno::Busy);
  EXPECT_EQ(m.reach(kNic, Dfn(3)), m.frame(m.guest(), Gfn(3)));
}
// Kills: a second device that takes over requests of the first one's phantom functions.
TEST_P(XenAssign, NoRequesterIdBelongsToTwoDevices) {
  Machine m(family());
  constexpr RequesterId kCard = RequesterId::bdf(9, 0, 0);
  EXPECT_EQ(m.xen.assign_device(m.cpu, *m.other, {.requester = kCard, .phantom_functions = {kNic}}).run(), Errno::Busy);
  m.assign(m.guest(), {.requester = kCard, .phantom_functions = {kPhantom}});
  EXPECT_EQ(m.xen.assign_device(m.cpu, *m.other, {.requester = kPhantom}).run(), Errno::Busy);
  EXPECT_EQ(m.reach(kPhantom, Dfn(3)), m.frame(m.guest(), Gfn(3)));
  constexpr RequesterId kBridge = RequesterId::bdf(7, 0, 0);  // no id of its own is programmed
  m.assign(m.guest(), {.requester = kBridge, .device_class = DeviceClass::Bridge});
  EXPECT_EQ(m.xen.assign_device(m.cpu, *m.other, {.requester = kBridge, .device_class = DeviceClass::Bridge}).run(),
            Errno::Busy);
}
TEST_P(XenAssign, AUnitThatDoesNotExistIsNoDevice) {
  Machine m(family());
  EXPECT_EQ(m.xen.assign_device(m.cpu, *m.other, {.requester = kPhantom, .unit = 1}).run(), Errno::NoDevice);
}
// Kills: a device that is taken away but still translated, from tables or from caches.
TEST_P(XenAssign, ADeviceThatIsTakenAwayReachesNothing) {
  MachineOptions options;
  options.features.device_tlb = true;
  Machine m(family(), options);
  constexpr RequesterId kCard = RequesterId::bdf(9, 0, 0);
  m.assign(m.guest(), {.requester = kCard, .reserved = {kFirmware}, .device_tlb = true});
  ASSERT_NE(m.reach(kCard, Dfn(3)), std::nullopt);
  ASSERT_NE(m.unit().device_cached(kCard, Dfn(3).address()), std::nullopt);
  EXPECT_EQ(m.xen.deassign_device(m.cpu, m.guest(), kCard).run(), Errno::Ok);
  EXPECT_EQ(m.reach(kCard, Dfn(3)), std::nullopt);
  EXPECT_EQ(m.unit().device_cached(kCard, Dfn(3).address()), std::nullopt);
  EXPECT_EQ(m.reach(kNic, kFirmware.first), std::nullopt);
  EXPECT_EQ(m.xen.deassign_device(m.cpu, m.guest(), kCard).run(), Errno::NoDevice);
  EXPECT_EQ(m.reattach(m.guest(), kCard, 0), Errno::NoDevice);
  EXPECT_EQ(m.xen.assign_device(m.cpu, *m.other, {.requester = kCard}).run(), Errno::Ok);
}
// A move waits for a lock while its target is freed. Kills: a device in a context that is gone.
TEST_P(XenAssign, AMoveWhoseTargetIsFreedMeanwhileIsInvalid) {
  Machine m(family());
  const std::uint16_t context = m.alloc(m.guest());
  Stepper stepper(m.host);
  CpuPort& holder = stepper.add_cpu();
  SpinLock& home = m.guest().default_context->lock;
  auto holding = hold(holder, home);
  holding.start();
  auto moving = m.xen.reattach(stepper.add_cpu(), m.guest(), kNic, m.context(m.guest(), context));
  moving.start();
  stepper.run();
  ASSERT_FALSE(moving.done());
  ASSERT_EQ(m.free(m.guest(), context), Errno::Ok);
  holder.release(home);
  stepper.run();
  ASSERT_TRUE(moving.done());
  EXPECT_EQ(moving.result(), Errno::Invalid);
  EXPECT_EQ(m.guest().devices.at(kNic).context, m.guest().default_context.get());
  EXPECT_EQ(m.reach(kNic, Dfn(3)), m.frame(m.guest(), Gfn(3)));
}
// Assignment waits for context 0 while the guest, which sees the device already, moves it. Kills: a device that ends in
// a context of a domain which does not have it.
TEST_P(XenAssign, AGuestCannotMoveADeviceThatIsOnItsWayIn) {
  Machine m(family());
  const std::uint16_t context = m.alloc(m.guest());
  Stepper stepper(m.host);
  CpuPort& holder = stepper.add_cpu();
  SpinLock& home = m.guest().default_context->lock;
  auto holding = hold(holder, home);
  holding.start();
  constexpr RequesterId kCard = RequesterId::bdf(9, 0, 0);
  auto assigning = m.xen.assign_device(stepper.add_cpu(), m.guest(), {.requester = kCard});
  assigning.start();
  stepper.run();
  ASSERT_FALSE(assigning.done());
  EXPECT_EQ(m.reattach(m.guest(), kCard, context), Errno::NoDevice);
  EXPECT_EQ(m.xen.deassign_device(m.cpu, m.guest(), kCard).run(), Errno::Busy);
  holder.release(home);
  stepper.run();
  ASSERT_TRUE(assigning.done());
  EXPECT_EQ(assigning.result(), Errno::Ok);
  EXPECT_EQ(m.reach(kCard, Dfn(3)), m.frame(m.guest(), Gfn(3)));
  EXPECT_EQ(m.reattach(m.guest(), kCard, context), Errno::Ok);
}
// Behaviour 45. Kills: a device that keeps a context of the domain it left.
TEST_P(XenAssign, AMovedDeviceIsInTheOtherDomainsContextZero) {
  Machine m(family());
  const std::uint16_t context = m.attached(m.guest());
  ASSERT_EQ(m.map(m.guest(), context, Dfn(900), Gfn(70), 1).status, Errno::Ok);
  ASSERT_NE(m.reach(kNic, Dfn(900)), std::nullopt);
  EXPECT_EQ(m.xen.move_device(m.cpu, m.guest(), *m.other, kNic).run(), Errno::Ok);
  EXPECT_EQ(m.reach(kNic, Dfn(900)), m.frame(*m.other, Gfn(900)));
  EXPECT_TRUE(m.context(m.guest(), context).devices.empty());
  EXPECT_EQ(m.reattach(m.guest(), kNic, 0), Errno::NoDevice);
  EXPECT_EQ(m.free(m.guest(), context), Errno::Ok);
}
// A move waits for the lock of one context while the other one is emptied and freed. Kills: a context that is gone
// before everybody who means to lock it has found it dying.
TEST_P(XenAssign, AContextIsKeptWhileSomebodyMeansToLockIt) {
  Machine m(family());
  const std::uint16_t one = m.attached(m.guest());
  const std::uint16_t two = m.alloc(m.guest());
  Stepper stepper(m.host);
  CpuPort& holder = stepper.add_cpu();
  SpinLock& home = m.guest().default_context->lock;
  auto holding = hold(holder, home);
  holding.start();
  auto moving = m.xen.reattach(stepper.add_cpu(), m.guest(), kNic, *m.guest().default_context);
  moving.start();
  stepper.run();
  ASSERT_FALSE(moving.done()) << "it waits for context 0";
  ASSERT_EQ(m.reattach(m.guest(), kNic, two), Errno::Ok);
  ASSERT_EQ(m.free(m.guest(), one), Errno::Ok);
  ASSERT_EQ(m.free(m.guest(), m.alloc(m.guest())), Errno::Ok);  // sweeps what nobody needs
  EXPECT_EQ(m.guest().retired_contexts.size(), 1U);
  holder.release(home);
  stepper.run();
  ASSERT_TRUE(moving.done());
  EXPECT_EQ(moving.result(), Errno::Invalid) << "the device has moved meanwhile";
  EXPECT_EQ(m.guest().devices.at(kNic).context, &m.context(m.guest(), two));
  ASSERT_EQ(m.free(m.guest(), m.alloc(m.guest())), Errno::Ok);
  EXPECT_TRUE(m.guest().retired_contexts.empty());
}
// Moves of one device by several vCPUs, between contexts that come and go. Kills: two locks taken in different orders,
// a context that is used after it was freed (sanitizers watch), a device that is nowhere or in two places.
TEST_P(XenAssign, ConcurrentMovesEndWithEveryDeviceInOneContext) {
  for (std::uint64_t seed = 1; seed <= 25; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Machine m(family());
    ASSERT_EQ(m.init(m.guest(), 3, 6), Errno::Ok);
    Stepper stepper(m.host);
    Rng rng(seed);
    const auto work = [&](CpuPort& cpu, std::uint64_t page) -> Task<void> {
      const Gpa at = Gfn(page).address();
      for (int i = 0; i < 12; ++i) {
        const RequesterId device = rng.chance(0.5) ? kNic : kDisk;
        const auto context = static_cast<std::uint16_t>(rng.below(4));
        Subop subop = Subop::AllocContext;
        abi::AllocContext alloc;
        abi::FreeContext free{.ctx_no = context, .free_flags = abi::kFreeReattachDefault};
        abi::ReattachDevice move = Machine::reattach_argument(device, context);
        const std::uint64_t what = rng.below(4);
        if (what == 0) (void)m.guest().memory.write(at, std::as_bytes(std::span(&alloc, 1)));
        if (what == 1) (void)m.guest().memory.write(at, std::as_bytes(std::span(&free, 1)));
        if (what >= 2) (void)m.guest().memory.write(at, std::as_bytes(std::span(&move, 1)));
        if (what == 1) subop = Subop::FreeContext;
        if (what >= 2) subop = Subop::ReattachDevice;
        co_await m.op.call(cpu, m.guest(), static_cast<std::uint32_t>(subop), at);
      }
    };
    std::vector<Task<void>> tasks;
    for (std::uint64_t cpu = 0; cpu < 3; ++cpu) tasks.push_back(work(stepper.add_cpu(), 0x100 + cpu));
    for (auto& task : tasks) task.start();
    stepper.run(Rng(seed, "order"));
    for (auto& task : tasks) EXPECT_TRUE(task.done()) << "vCPUs wait for each other";
    for (const RequesterId device : {kNic, kDisk}) {
      unsigned places = 0;
      IoContext* const home = m.guest().devices.at(device).context;
      const auto count = [&](const IoContext* context) {
        if (context == nullptr) return;
        const bool inside =
            std::find(context->devices.begin(), context->devices.end(), device) != context->devices.end();
        places += inside ? 1U : 0U;
        EXPECT_EQ(inside, context == home);
      };
      count(m.guest().default_context.get());
      for (const auto& slot : m.guest().pv->slots) count(slot.get());
      EXPECT_EQ(places, 1U);
      // Only context 0 maps anything.
      EXPECT_EQ(m.reach(device, Dfn(3)).has_value(), home == m.guest().default_context.get());
    }
  }
}

}  // namespace
}  // namespace iommu::xen
