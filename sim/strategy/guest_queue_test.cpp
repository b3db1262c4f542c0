// SPDX-License-Identifier: Apache-2.0
// Command rings that a guest owns: what an honest guest gains, and what a hostile one cannot do with them.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "sim/base/rng.hpp"
#include "sim/strategy/strategy_test_support.hpp"
#include "sim/translation/queue_driver.hpp"
#include "sim/xen/nested_translation.hpp"

namespace iommu::strategy::test {
namespace {

constexpr RequesterId kStranger = RequesterId::bdf(9, 0, 0);  // another domain's

std::vector<const FamilyDescriptor*> families_with_queues() {
  std::vector<const FamilyDescriptor*> found;
  for (const FamilyDescriptor* family : families())
    if (family->has_further_queues) found.push_back(family);
  return found;
}

MachineOptions with_queues() {
  MachineOptions options;
  options.host.further_queues = FurtherQueues::All;
  options.host.device_tlb = true;
  options.strategy.guest_queue = true;
  return options;
}

class GuestQueueTest : public testing::TestWithParam<const FamilyDescriptor*> {};

// Kills: an invalidation that still traps, one that a device can do without, configuration that does not trap.
TEST_P(GuestQueueTest, InvalidationsGoWithoutAnExitAndConfigurationTraps) {
  Machine m(*GetParam(), kNested, with_queues());
  auto& nic = m.attach(kNic);
  const std::uint64_t traps = m.strategy().counters().traps.total();
  const auto mapped = m.map(nic, Gpa(0x5000), 8_KiB);
  EXPECT_EQ(m.dma(kNic, mapped.address), m.host_address(Gpa(0x5000)));
  m.unit.applied.clear();
  EXPECT_EQ(m.unmap(nic, mapped.address, 8_KiB), guest::DmaStatus::Ok);
  EXPECT_FALSE(m.dma(kNic, mapped.address));
  EXPECT_EQ(m.strategy().counters().traps.total(), traps);
  EXPECT_EQ(m.strategy().counters().own_queues.fences, 1U);
  EXPECT_EQ(m.unit.further_fences, 1U);
  ASSERT_FALSE(m.unit.applied.empty());
  const ContextResult context = m.unit.find_context(kNic);
  EXPECT_EQ(m.unit.applied[0].domain, std::get<Context>(context).domain) << "hardware puts the real tag in its place";
  m.attach(kDisk);
  EXPECT_GT(m.strategy().counters().traps.total(), traps);
  EXPECT_GT(m.xen.references().total(), 0U) << "of the rings";
  m.strategy().stop(m.cpu).run();
  EXPECT_EQ(m.xen.references().total(), 0U);
}

// Kills: translations with a tag each, which the ring's one tag does not reach.
TEST_P(GuestQueueTest, AllTranslationsOfTheGuestShareTheRingsTag) {
  Machine m(*GetParam(), kNested, with_queues());
  auto& nic = m.attach(kNic);
  auto& disk = m.attach(kDisk);
  const auto a = m.map(nic, Gpa(0x5000));
  const auto b = m.map(disk, Gpa(0x7000));
  EXPECT_EQ(m.dma(kNic, a.address), m.host_address(Gpa(0x5000)));
  EXPECT_EQ(m.dma(kDisk, b.address), m.host_address(Gpa(0x7000)));
  EXPECT_EQ(std::get<Context>(m.unit.find_context(kNic)).domain, std::get<Context>(m.unit.find_context(kDisk)).domain);
  EXPECT_NE(std::get<Context>(m.unit.find_context(kNic)).asid, std::get<Context>(m.unit.find_context(kDisk)).asid);
  EXPECT_EQ(m.unmap(disk, b.address), guest::DmaStatus::Ok);
  EXPECT_FALSE(m.dma(kDisk, b.address));
  EXPECT_TRUE(m.dma(kNic, a.address));
}

// A guest that drives its rings by hand.
class Owner {
 public:
  explicit Owner(Machine& machine)
      : m(machine),
        options(guest_options()),
        unit(m.family(), options.features, *m.domain, xen::TrapTarget::Xen),
        tables(m.domain->memory, m.pages),
        driver(m.family().make_driver(options)),
        translation(m.xen, *m.domain, unit) {
    unit.connect(translation);
    EXPECT_EQ(translation.open_queues(m.cpu).run(), xen::Errno::Ok);
    for (const RegisterWrite& write : queues().enable()) trap(write);
    for (const RegisterWrite& write : queues().open(0, std::nullopt)) trap(write);
    base = *tables.allocate(0);
  }
  static DriverOptions guest_options() {
    DriverOptions o{.features = {}, .stage1 = true};
    o.features.further_queues = FurtherQueues::OneGuests;
    o.features.device_tlb = true;
    return o;
  }
  [[nodiscard]] const QueueDriver& queues() const { return *driver->queues(); }
  void trap(const RegisterWrite& write) { unit.write(m.cpu, write.offset, write.bytes, write.value).run(); }
  void poke(std::uint64_t offset, std::uint64_t value) {
    translation.queue_registers()->write(m.cpu, offset, 4, value).run();
  }
  std::uint64_t peek(std::uint64_t offset) { return translation.queue_registers()->read(m.cpu, offset, 4).run(); }
  // Xen places it, or does not; the guest starts it. Whether it runs.
  bool place(std::uint64_t at, std::uint32_t entries = 256) {
    for (const RegisterWrite& write : queues().place(0, {.ring = 0, .base = Hpa(at), .entries = entries})) trap(write);
    for (const RegisterWrite& write : queues().start(0)) poke(write.offset, write.value);
    tail = 0;
    return peek(queues().status_register(0)) != 0;
  }
  void put(const CommandWords& words) {
    const std::uint64_t slot = base + 16 * (tail++ % 256);
    tables.write64(slot, words.words[0]);
    tables.write64(slot + 8, words.words[1]);
  }
  void ring_bell() { poke(queues().ring(0, base, 256).tail_register, tail % 512); }

  Machine& m;
  DriverOptions options;
  xen::VirtualUnit unit;
  guest::GuestTableMemory tables;
  std::unique_ptr<TableDriver> driver;
  xen::NestedTranslation translation;
  std::uint64_t base = 0;
  std::uint32_t tail = 0;
};

// Another domain's device, with a translation in the unit's caches.
Iova cache_a_strangers_page(Machine& m) {
  EXPECT_EQ(m.xen.assign_device(m.cpu, *m.other, {.requester = kStranger}).run(), xen::Errno::Ok);
  const TranslationRequest request{.requester = kStranger, .pasid = {}, .address = Iova(0x3000)};
  EXPECT_TRUE(std::holds_alternative<Translation>(m.unit.translate(request)));
  return Iova(0x3000);
}

// Whether a scope could remove anything that is not the guest's.
void expect_own(Machine& m, const InvalidationScope& scope, DomainTag own) {
  if (scope.kind == InvalidationKind::DeviceTlb) {
    ASSERT_TRUE(scope.requester && scope.requester_ignore == 0);
    EXPECT_TRUE(m.domain->devices.contains(*scope.requester)) << std::hex << scope.requester->value();
    return;
  }
  EXPECT_EQ(scope.kind, InvalidationKind::Iotlb);
  EXPECT_EQ(scope.domain, own);
  EXPECT_EQ(scope.domain_ignore, 0U);
}

// Commands for another tag, another guest's device, other opcodes, garbage. Kills: a VMID that the guest chooses, an
// opcode or stream that is let through, an error that stops Xen's own queue.
TEST_P(GuestQueueTest, AHostileGuestRemovesNothingOfAnybodyElses) {
  for (std::uint64_t seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Machine m(*GetParam(), kNested, with_queues());
    Owner guest(m);
    const Iova stranger = cache_a_strangers_page(m);
    ASSERT_TRUE(guest.place(guest.base));
    const DomainTag own = m.domain->private_contexts.front()->tag_on(0);
    m.unit.applied.clear();
    Rng rng(seed);
    const CommandRing ring = guest.queues().ring(0, guest.base, 256);
    for (int n = 0; n < 60; ++n) {
      CommandWords words;
      for (std::uint64_t& word : words.words) word = rng.next();
      // An opcode that exists, more often than not.
      constexpr std::array<std::uint64_t, 12> kOpcodes{0x03, 0x06, 0x10, 0x11, 0x12, 0x13,
                                                       0x28, 0x2a, 0x30, 0x40, 0x44, 0x46};
      if (rng.chance(0.9)) words.words[0] = (words.words[0] & ~std::uint64_t{0xfff}) | kOpcodes[rng.below(12)];
      if (rng.chance(0.2)) words = guest.driver->encode({.kind = InvalidationKind::DeviceTlb, .requester = kNic});
      if (rng.chance(0.2)) words = guest.driver->encode({.kind = InvalidationKind::DeviceTlb, .requester = kStranger});
      guest.put(words);
      guest.ring_bell();
      // Whatever was refused: replaced by a fence and acknowledged, in all the ways that its registers have.
      const std::uint64_t slot = guest.base + 16 * ((guest.tail - 1) % 256);
      const CommandWords fence = guest.queues().encode_fence();
      guest.tables.write64(slot, fence.words[0]);
      guest.tables.write64(slot + 8, fence.words[1]);
      for (std::uint64_t offset = 0; offset < 0x20; offset += 4)
        if (offset != ring.tail_register) guest.poke(offset, guest.peek(0x10));
      for (const RegisterWrite& write : guest.queues().start(0))
        if (write.offset != ring.tail_register && write.offset != ring.head_register)
          guest.poke(write.offset, write.value);
    }
    for (const InvalidationScope& scope : m.unit.applied) expect_own(m, scope, own);
    const std::uint64_t commands = m.unit.commands;
    const TranslationRequest request{.requester = kStranger, .pasid = {}, .address = stranger};
    EXPECT_TRUE(std::holds_alternative<Translation>(m.unit.translate(request)));
    m.xen.unit(0).invalidate(m.cpu, {1, {.kind = InvalidationKind::Iotlb, .domain = own}}).run();
    EXPECT_EQ(m.unit.commands, commands + 1) << "Xen's own queue goes on";
    EXPECT_FALSE(m.domain->crashed);
  }
}

// Kills: a ring that hardware reads outside the guest's memory or across pages that are strangers in the machine, a
// page without a reference while hardware reads it.
TEST_P(GuestQueueTest, ARingLiesInTheGuestsMemoryOrNowhere) {
  Machine m(*GetParam(), kNested, with_queues());
  Owner guest(m);
  const std::uint64_t last = Machine::kGuestMemory.value() - kPageSize.value();
  for (const auto& [base, entries] :
       std::vector<std::pair<std::uint64_t, std::uint32_t>>{{Machine::kGuestMemory.value(), 256},  // beyond its end
                                                            {last, 512},                           // its second half is
                                                            {0x8000, 512},  // two pages, which are scattered
                                                            {0x8000, 1},
                                                            {std::uint64_t{1} << 40, 256}}) {
    EXPECT_FALSE(guest.place(base, entries)) << std::hex << base;
    guest.poke(guest.queues().ring(0, base, entries).tail_register, 1);
    EXPECT_EQ(m.unit.refused_further, 0U) << "nothing is read";
  }
  EXPECT_EQ(guest.translation.refused(), 5U);
  EXPECT_EQ(m.xen.references().total(), 0U);
  EXPECT_TRUE(guest.place(guest.base));
  EXPECT_EQ(m.xen.references().of(Mfn(*m.host_address(Gpa(guest.base)))), 1U);
  EXPECT_TRUE(guest.place(last)) << "elsewhere: the first place is given up";
  EXPECT_EQ(m.xen.references().total(), 1U);
}

// Kills: rings that outlive their owner, a tag that is given away while caches know it, a group that is lost.
TEST_P(GuestQueueTest, TeardownStopsTheRingsFlushesTheTagAndReturnsTheGroup) {
  Machine m(*GetParam(), kNested, with_queues());
  const std::uint32_t groups = m.xen.unit(0).driver().queues()->limits().groups;
  for (std::uint32_t round = 0; round < 2 * groups; ++round) {
    Owner guest(m);
    ASSERT_TRUE(guest.place(guest.base));
    guest.put(guest.queues().encode_fence());
    guest.ring_bell();
    const std::uint64_t fences = m.unit.further_fences;
    m.unit.applied.clear();
    guest.translation.close_queues(m.cpu).run();
    EXPECT_EQ(m.xen.references().total(), 0U);
    ASSERT_FALSE(m.unit.applied.empty());
    EXPECT_EQ(m.unit.applied.back().kind, InvalidationKind::Iotlb);
    EXPECT_FALSE(m.unit.applied.back().range || m.unit.applied.back().asid);
    guest.put(guest.queues().encode_fence());
    guest.ring_bell();
    for (const RegisterWrite& write : guest.queues().start(0)) guest.poke(write.offset, write.value);
    EXPECT_EQ(m.unit.further_fences, fences) << "its registers are gone";
    EXPECT_EQ(guest.peek(guest.queues().status_register(0)), 0U);
    guest.tables.release(guest.base, 0);
  }
}

// Kills: a guest that gets rings although there are none left, or more devices than a group can name.
TEST_P(GuestQueueTest, WithoutAGroupOrWithTooManyDevicesTheGuestIsRefused) {
  Machine m(*GetParam(), kNested, with_queues());
  while (m.xen.unit(0).allocate_queue_group()) {
  }
  EXPECT_EQ(m.start(), xen::Errno::NoSpace);
  Machine crowded(*GetParam(), kNested, with_queues());
  for (unsigned n = 0; n < 16; ++n)
    EXPECT_EQ(
        crowded.xen.assign_device(crowded.cpu, *crowded.domain, {.requester = RequesterId::bdf(0x20 + n, 0, 0)}).run(),
        xen::Errno::Ok);
  EXPECT_EQ(crowded.start(), xen::Errno::NoSpace);
  EXPECT_TRUE(crowded.xen.unit(0).allocate_queue_group()) << "the group went back";
  MachineOptions without = with_queues();
  without.host.further_queues = FurtherQueues::None;
  EXPECT_EQ(Machine(*GetParam(), kNested, without).start(), xen::Errno::Unsupported);
}

// The host's own further rings. Kills: a flush that goes to the wrong ring, or to none.
TEST_P(GuestQueueTest, XenSpreadsItsCpusOverSeveralRings) {
  MachineOptions options;
  options.host.further_queues = FurtherQueues::All;
  options.host.host_rings = 3;
  Machine m(*GetParam(), kPvIommu, options);
  auto& nic = m.attach(kNic);
  const std::uint64_t own = m.unit.fences;
  const auto mapped = m.map(nic, Gpa(0x5000), 8_KiB);
  EXPECT_TRUE(m.dma(kNic, mapped.address));
  const std::uint64_t before = m.unit.further_fences;
  EXPECT_EQ(m.unmap(nic, mapped.address, 8_KiB), guest::DmaStatus::Ok);
  EXPECT_FALSE(m.dma(kNic, mapped.address));
  EXPECT_GT(m.unit.further_fences, before);
  EXPECT_EQ(m.unit.fences, own) << "the unit's first ring is left alone";
  EXPECT_EQ(m.unit.refused_further, 0U);
  for (std::uint16_t id = 1; id < 7; ++id) {
    ImmediateCpu cpu(CpuId(id), [&](Hpa at) { return m.host.read32(at); });
    m.xen.unit(0).invalidate(cpu, {1, {.kind = InvalidationKind::Iotlb, .domain = DomainTag(1)}}).run();
  }
  EXPECT_EQ(m.unit.fences, own);
  EXPECT_EQ(m.xen.unit(0).fence_wait().count(), m.unit.further_fences);
}

INSTANTIATE_TEST_SUITE_P(Families, GuestQueueTest, testing::ValuesIn(families_with_queues()),
                         [](const auto& param) { return std::string(param.param->name); });

}  // namespace
}  // namespace iommu::strategy::test
