// SPDX-License-Identifier: Apache-2.0
// A virtual unit: what a guest's register accesses cause, what they cost, and that none of them can hurt anybody.
#include "sim/xen/virtual_unit.hpp"

#include <gtest/gtest.h>

#include "models/vtd/family.hpp"
#include "models/vtd/spec.hpp"
#include "sim/xen/virtual_machine_test_support.hpp"

namespace iommu::xen {
namespace {

// Writes down what reaches it.
class Recorder final : public VirtualUnitSink {
 public:
  explicit Recorder(Domain& domain) : domain_(domain) {}
  Task<void> invalidate(CpuPort&, std::vector<InvalidationScope> scopes) override {
    batches.push_back(std::move(scopes));
    if (status) fence_was_there.push_back(domain_.memory.read64(*status).value_or(0) != 0);
    co_return;
  }
  Task<void> configuration_changed(CpuPort&) override {
    ++configurations;
    co_return;
  }
  std::vector<std::vector<InvalidationScope>> batches;
  std::vector<bool> fence_was_there;
  std::optional<Gpa> status;
  unsigned configurations = 0;

 private:
  Domain& domain_;
};

// A unit with a recorder behind it, and a kernel that drives it.
struct Bench {
  explicit Bench(const FamilyDescriptor& family, TrapTarget target = TrapTarget::Xen)
      : machine(family),
        options(VirtualMachine<ShadowTranslation>::guest_options(family, {})),
        unit(family, options.features, machine.guest(), target),
        recorder(machine.guest()),
        kernel(machine, unit, options) {
    unit.connect(recorder);
  }
  InvalidationScope domain(std::uint32_t tag) const {
    return {.kind = InvalidationKind::Iotlb, .domain = DomainTag(tag)};
  }
  // Puts commands at the ring's start, which is where an untouched ring is, and rings the doorbell.
  void ring(const std::vector<CommandWords>& commands) {
    const CommandRing where = kernel.driver().ring();
    for (const CommandWords& command : commands) {
      const std::uint64_t at = where.base + index % where.entries * where.entry_bytes;
      for (unsigned w = 0; w < where.entry_bytes / 8; ++w) kernel.pool().write64(at + 8 * w, command.words[w]);
      ++index;
    }
    kernel.write(where.tail_register, 8, kernel.driver().tail_value(index));
  }
  Machine machine;
  DriverOptions options;
  VirtualUnit unit;
  Recorder recorder;
  GuestKernel kernel;
  std::uint32_t index = 0;
};

class XenVirtualUnit : public XenFamilies {
 protected:
  void SetUp() override {
    if (!VirtualMachine<ShadowTranslation>::is_possible(family())) GTEST_SKIP();
  }
};
XEN_ON_ALL_FAMILIES(XenVirtualUnit);
class XenVirtualUnitOfADeviceModel : public XenFamilies {};
XEN_ON_ALL_FAMILIES(XenVirtualUnitOfADeviceModel);

// Kills: accesses that are free, and doorbells counted as others.
TEST_P(XenVirtualUnit, EveryAccessCostsOneExitToWhoeverAnswers) {
  for (const TrapTarget target : {TrapTarget::Xen, TrapTarget::DeviceModel}) {
    Bench b(family(), target);
    b.kernel.bring_up();
    b.unit.reset_counters();
    const CostCounts before = b.machine.cpu.charged();
    b.ring({b.kernel.driver().encode(b.domain(1))});
    b.unit.read(b.machine.cpu, 0, 4).run();
    b.kernel.write(0, 4, 0);
    EXPECT_EQ(b.unit.traps().doorbell, 1U);
    EXPECT_EQ(b.unit.traps().register_access, 2U);
    EXPECT_EQ(b.unit.traps().total(), 3U);
    EXPECT_EQ(b.unit.traps().device_model, target == TrapTarget::DeviceModel ? 3U : 0U);
    const CostCounts& after = b.machine.cpu.charged();
    EXPECT_EQ(after[CostId::VmExitMmio] - before[CostId::VmExitMmio], 3U);
    EXPECT_EQ(after[CostId::MmioDecode] - before[CostId::MmioDecode], 3U);
    EXPECT_EQ(after[CostId::DeviceModelExit] - before[CostId::DeviceModelExit], b.unit.traps().device_model);
    EXPECT_EQ(after[CostId::CommandEmulate] - before[CostId::CommandEmulate], 1U);
    EXPECT_EQ(b.unit.commands_emulated(), 1U);
  }
}
// A virtual device's DMA goes where the guest's tables say, in guest-physical addresses. Kills: machine addresses
// handed to a device model; a translation that is free, or cached; a fault that the guest never sees.
TEST_P(XenVirtualUnitOfADeviceModel, TranslatesDmaOfVirtualDevices) {
  VirtualMachine<NestedTranslation> v(family());
  v.start();
  PageTable& table = v.attach(kNic);
  v.map(table, kNic, Dfn(5), Gfn(7), 1, kReadOnly);
  const auto translate = [&](Access access) {
    const TranslationRequest request{
        .requester = kNic, .pasid = {}, .address = Dfn(5).address() + 0x123_B, .access = access};
    return v.unit.translate(v.machine.cpu, request).run();
  };
  const CostCounts before = v.machine.cpu.charged();
  const TranslationResponse there = translate(Access::Read);
  ASSERT_TRUE(std::holds_alternative<Translation>(there));
  EXPECT_EQ(std::get<Translation>(there).address.value(), (Gfn(7).address() + 0x123_B).value());
  EXPECT_EQ(v.machine.cpu.charged()[CostId::Hypercall] - before[CostId::Hypercall], 1U);
  EXPECT_GE(v.machine.cpu.charged()[CostId::GuestPageAccess] - before[CostId::GuestPageAccess], 4U);
  EXPECT_TRUE(std::holds_alternative<Fault>(translate(Access::Write)));
  if (&family() == &vtd::family()) {
    const std::uint64_t status = v.unit.read(v.machine.cpu, vtd::offset::kFsts, 4).run();
    EXPECT_NE((status & mask_of<vtd::kFsts, "PPF">), 0U);
  }
  v.unmap(table, kNic, Dfn(5));
  EXPECT_TRUE(std::holds_alternative<Fault>(translate(Access::Read)));
}
TEST_P(XenVirtualUnit, SwitchingTranslationOnIsAnnounced) {
  Bench b(family());
  EXPECT_EQ(b.recorder.configurations, 0U);
  b.kernel.bring_up();
  EXPECT_GT(b.recorder.configurations, 0U);
  EXPECT_TRUE(b.unit.core().is_translating());
}
// Commands up to a fence are one batch, which has taken effect when the fence's word is there. Kills: a fence before
// its commands, and a call for each of them.
TEST_P(XenVirtualUnit, CommandsAreHandedOnInBatchesBeforeTheirFence) {
  Bench b(family());
  b.kernel.bring_up();
  b.recorder.batches.clear();
  const std::uint64_t page = *b.kernel.pool().allocate(0);
  b.recorder.status = Gpa(page);
  TableDriver& driver = b.kernel.driver();
  b.ring({driver.encode(b.domain(1)), driver.encode(b.domain(2)), driver.encode_fence(page, 5),
          driver.encode(b.domain(3))});
  ASSERT_EQ(b.recorder.batches.size(), 2U);
  ASSERT_EQ(b.recorder.batches[0].size(), 2U);
  EXPECT_EQ(b.recorder.batches[0][0].domain, DomainTag(1));
  EXPECT_EQ(b.recorder.batches[0][1].domain, DomainTag(2));
  EXPECT_EQ(b.recorder.batches[1].size(), 1U);
  EXPECT_EQ(b.recorder.fence_was_there, (std::vector{false, true}));
  EXPECT_EQ(b.machine.guest().memory.read64(Gpa(page)).value_or(0) & 0xffffffffU, 5U);
  EXPECT_EQ(b.unit.commands().fence, 1U);
  EXPECT_EQ(b.unit.commands().iotlb_domain, 3U);
}
// A fence may name any address. Kills: a write to machine memory at a guest's address, or a crash where nothing is.
TEST_P(XenVirtualUnit, AFenceOutsideTheGuestsMemoryWritesNothing) {
  Bench b(family());
  b.kernel.bring_up();
  const std::uint64_t outside = kGuestPages << kPageLg2;
  const std::uint64_t frame = b.machine.frame(b.machine.guest(), Gfn(9)).address().value();
  const std::uint64_t own_mark = b.machine.guest().memory.read64(Gfn(9).address()).value_or(1);
  for (const std::uint64_t address : {outside, frame, std::uint64_t{1} << 45}) {
    const std::uint64_t before = b.machine.host.read64(Hpa(address));
    b.ring({b.kernel.driver().encode_fence(address, 0x55)});
    if (address >= outside) EXPECT_EQ(b.machine.host.read64(Hpa(address)), before);
  }
  EXPECT_EQ(b.machine.guest().memory.read64(Gfn(9).address()).value_or(1), own_mark);
  EXPECT_EQ(b.unit.commands().fence, 3U);
}
// Kills: a trap that runs for ever or reads beyond the ring; a unit that does not recover.
TEST_P(XenVirtualUnit, AbsurdTailsEndInABoundedTrap) {
  Bench b(family());
  b.kernel.bring_up();
  const CommandRing ring = b.kernel.driver().ring();
  for (const std::uint64_t tail : {~0ULL, 1ULL << 63, 0x7fffULL, 1ULL, 0xfffffff0ULL, 0ULL}) {
    const std::uint64_t before = b.unit.commands_emulated();
    b.kernel.write(ring.tail_register, 8, tail);
    b.kernel.write(ring.head_register, 8, tail);
    EXPECT_LE(b.unit.commands_emulated() - before, 2 * 65536U) << tail;
  }
}
// Interrupts that a core wants for itself must not pile up in it. Kills: a guest that grows the hypervisor's memory.
TEST_P(XenVirtualUnit, InterruptsOfCommandErrorsAreDelivered) {
  Bench b(family());
  b.kernel.bring_up();
  for (int i = 0; i < 3; ++i) {
    CommandWords nonsense;
    nonsense.words.fill(~0ULL);
    b.ring({nonsense});
  }
  EXPECT_EQ(b.unit.core().take_interrupt(), std::nullopt);
}
// The same where the guest asked for them, on a family whose register for that this test knows.
TEST(XenVirtualUnitInterrupts, AnUnmaskedCommandErrorIsOneInterrupt) {
  Bench b(vtd::family());
  b.kernel.bring_up();
  b.kernel.write(vtd::offset::kFectl, 4, 0);
  CommandWords nonsense;
  nonsense.words.fill(~0ULL);
  b.unit.reset_counters();
  const std::uint64_t injected = b.machine.cpu.charged()[CostId::InterruptInject];
  b.ring({nonsense});
  EXPECT_EQ(b.unit.interrupts(), 1U);
  EXPECT_EQ(b.machine.cpu.charged()[CostId::InterruptInject] - injected, 1U);
}

// The ring itself may lie outside memory.
TEST_P(XenVirtualUnit, ARingOutsideMemoryYieldsNoCommand) {
  Bench b(family());
  b.kernel.bring_up();
  const CommandRing ring = b.kernel.driver().ring();
  // The pages of the ring leave the guest.
  b.machine.guest().p2m.remove(Gfn(ring.base >> kPageLg2), 16);
  b.recorder.batches.clear();
  b.kernel.write(ring.tail_register, 8, b.kernel.driver().tail_value(3));
  EXPECT_TRUE(b.recorder.batches.empty());
  EXPECT_EQ(b.unit.commands_emulated(), 0U);
}

// Any register, any value, any ring contents, with shadow and nested translation behind: nothing crashes, hangs or
// leaks, and no device reaches a page that is not the guest's.
template <class Translation>
void abuse(const FamilyDescriptor& family, std::uint64_t seed) {
  using Virtual = VirtualMachine<Translation>;
  Virtual v(family);
  v.start();
  PageTable& table = v.attach(kNic);
  v.map(table, kNic, Dfn(0x100), Gfn(70), 4);
  Rng rng(seed);
  const std::uint64_t first_table = kGuestPages / 2;
  const auto word = [&]() -> std::uint64_t {
    switch (rng.below(4)) {
      case 0:
        return rng.next();
      case 1:
        return (first_table + rng.below(64)) << kPageLg2 | rng.below(4096);
      case 2:
        return rng.below(64);
      default:
        return 1ULL << rng.below(64);
    }
  };
  for (int step = 0; step < 300; ++step) {
    switch (rng.below(4)) {
      case 0:
        v.kernel.write(rng.below(family.mmio_bytes / 8 + 2) * 8, rng.chance(0.5) ? 8 : 4, word());
        break;
      case 1:
        v.kernel.write(v.kernel.driver().ring().tail_register, 8, word());
        break;
      case 2:  // corrupt a table, a device entry or a command: they are all in these pages
        v.machine.guest().memory.write64(Gpa((first_table + rng.below(24)) << kPageLg2 | rng.below(512) << 3), word());
        break;
      default:
        (void)v.unit.read(v.machine.cpu, rng.below(family.mmio_bytes), 4).run();
        break;
    }
    if (step % 16 != 0) continue;
    for (int probe = 0; probe < 8; ++probe) {
      const Dfn dfn(rng.chance(0.5) ? rng.below(kGuestPages) : 0x100 + rng.below(8));
      const auto there = v.machine.reach(kNic, dfn);
      if (!there) continue;
      bool owned = false;
      for (const P2mExtent& extent : v.machine.guest().p2m.extents())
        owned |= *there >= extent.machine && *there < extent.machine + extent.pages;
      ASSERT_TRUE(owned) << "the device reached a page of somebody else's";
    }
    ASSERT_EQ(v.machine.reach(kAlien, Dfn(3)), v.machine.frame(*v.machine.other, Gfn(3)));
  }
  EXPECT_FALSE(v.machine.guest().crashed);
}
TEST_P(XenVirtualUnit, RandomAbuseOfAShadowedUnitHurtsNobody) {
  for (std::uint64_t seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    abuse<ShadowTranslation>(family(), seed);
  }
}
TEST_P(XenVirtualUnit, RandomAbuseOfANestedUnitHurtsNobody) {
  if (!VirtualMachine<NestedTranslation>::is_possible(family())) GTEST_SKIP();
  for (std::uint64_t seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    abuse<NestedTranslation>(family(), seed);
  }
}

}  // namespace
}  // namespace iommu::xen
