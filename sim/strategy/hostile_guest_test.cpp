// SPDX-License-Identifier: Apache-2.0
// A guest that does with its virtual unit whatever it likes: garbage in tables, rings and registers. Xen and the unit
// must survive it, and its devices must never reach memory that is not the guest's.
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <random>
#include <utility>

#include "sim/base/rng.hpp"
#include "sim/strategy/strategy_test_support.hpp"
#include "sim/xen/nested_translation.hpp"
#include "sim/xen/shadow_translation.hpp"
#include "sim/xen/virtual_unit.hpp"

namespace iommu::strategy::test {
namespace {

constexpr Iova kAt{0x40000000};
constexpr Gpa kBuffer{0x123000};

// The guest's side is driven by hand, on a unit like the strategy's own.
class Hostile : public OnPairs {
 protected:
  struct Guest {
    explicit Guest(Machine& machine)
        : m(machine),
          options(guest_options()),
          unit(family(), options.features, *m.domain, xen::TrapTarget::Xen),
          tables(m.domain->memory, m.pages),
          driver(family().make_driver(options)) {
      if (is(kNested))
        devices = std::make_unique<xen::NestedTranslation>(m.xen, *m.domain, unit);
      else
        devices = std::make_unique<xen::ShadowTranslation>(m.xen, *m.domain, unit, family(), *strategy().shadow);
      unit.connect(*devices);
      for (const RequesterId device : {kNic, kDisk}) EXPECT_EQ(devices->add_device(device), xen::Errno::Ok);
      registers = *driver->bring_up(tables);
      status_page = *tables.allocate(0);
      bring_up();
      table = driver->create_table(is(kNested) ? TableKind::Stage1 : TableKind::Stage2, tables);
      table->map({.input = kAt.value(), .output = kBuffer.value(), .length = 64_KiB});
      ContextSetting setting{.kind = is(kNested) ? ContextKind::Stage1 : ContextKind::Stage2, .domain = DomainTag(1)};
      (is(kNested) ? setting.stage1 : setting.stage2) = table->root();
      for (const RequesterId device : {kNic, kDisk})
        EXPECT_EQ(driver->attach(device, setting, tables).status, EditStatus::Ok);
      invalidate();
    }
    static DriverOptions guest_options() {
      DriverOptions options{.features = {}, .stage1 = is(kNested), .range_flush = RangeFlush::SmallestBlock};
      options.features.caching_mode = !is_write_protected();
      return options;
    }
    void bring_up() {
      for (const RegisterWrite& write : registers) poke(write.offset, write.bytes, write.value);
      tail = 0;
    }
    void poke(std::uint64_t offset, unsigned bytes, std::uint64_t value) {
      unit.write(m.cpu, offset, bytes, value).run();
    }
    void put(const CommandWords& command) {
      const CommandRing ring = driver->ring();
      for (std::size_t w = 0; w < ring.entry_bytes / 8; ++w)
        tables.write64(ring.base + std::uint64_t{tail} * ring.entry_bytes + 8 * w, command.words[w]);
      tail = (tail + 1) % ring.entries;
    }
    void ring_doorbell() { poke(driver->ring().tail_register, 8, driver->tail_value(tail)); }
    // Xen reads everything again.
    void invalidate() {
      for (const RequesterId device : {kNic, kDisk})
        for (const InvalidationScope& scope : driver->context_scopes(device, std::nullopt)) put(driver->encode(scope));
      put(driver->encode({.kind = InvalidationKind::Iotlb}));
      put(driver->encode_fence(status_page, ++fence));
      ring_doorbell();
    }

    // Pages of the kernel that hold something.
    [[nodiscard]] std::vector<Gfn> pages_in_use() const {
      std::vector<Gfn> found;
      for (std::uint64_t i = 0; i < m.pages.used(); ++i) {
        const Gfn page = Machine::kKernelPages + i;
        for (std::uint64_t offset = 0; offset < kPageSize.value(); offset += 8)
          if (m.domain->memory.read64(page.address() + Bytes(offset)).value_or(0) != 0) {
            found.push_back(page);
            break;
          }
      }
      return found;
    }
    void spoil(Gpa word, std::uint64_t value) {
      honest.emplace(word, m.domain->memory.read64(word).value_or(0));
      m.domain->memory.write64(word, value);
    }
    void repair() {
      for (const auto& [word, value] : std::exchange(honest, {})) m.domain->memory.write64(word, value);
      bring_up();
      invalidate();
    }

    Machine& m;
    DriverOptions options;
    xen::VirtualUnit unit;
    guest::GuestTableMemory tables;
    std::unique_ptr<TableDriver> driver;
    std::unique_ptr<xen::VirtualDevices> devices;
    std::unique_ptr<PageTable> table;
    std::vector<RegisterWrite> registers;
    std::uint64_t status_page = 0;
    std::uint32_t tail = 0;
    std::uint32_t fence = 0;
    std::map<Gpa, std::uint64_t> honest;  // what spoilt words were
  };

  static void expect_within_guest(Machine& m, Iova address) {
    for (const RequesterId device : {kNic, kDisk})
      for (const Access access : {Access::Read, Access::Write}) {
        const auto reached = m.dma(device, address, access);
        if (reached) ASSERT_TRUE(m.is_guests(*reached)) << std::hex << address.value() << " -> " << reached->value();
      }
  }
};
ON_STRATEGIES(Hostile, kVirtualUnits);

// The bench itself: without hostility the device reaches its buffer.
TEST_P(Hostile, TheHonestPartWorks) {
  Machine m(family(), strategy());
  Guest guest(m);
  for (const RequesterId device : {kNic, kDisk})
    EXPECT_EQ(m.dma(device, kAt + 0x5004_B), m.host_address(kBuffer + 0x5004_B));
  EXPECT_EQ(m.dma(kNic, kAt + 64_KiB), std::nullopt);
  EXPECT_EQ(m.domain->memory.read64(Gpa(guest.status_page)).value_or(0) & 0xffffffffU, guest.fence);
}

// Kills: output addresses that Xen or hardware takes from the guest unchecked; crashes on entries that no driver
// writes; a command ring that is trusted.
TEST_P(Hostile, GarbageNeverLeadsOutOfTheGuest) {
  for (const std::uint64_t seed : {std::uint64_t{21}, std::uint64_t{std::random_device{}()}}) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Rng rng(seed, "hostile");
    Machine m(family(), strategy());
    Guest guest(m);
    const std::vector<Gfn> pages = guest.pages_in_use();
    std::uint64_t reached = 0;
    const auto garbage = [&]() -> std::uint64_t {
      switch (rng.below(5)) {
        case 0:
          return rng.next();
        case 1:
          return rng.below(4096);
        case 2:  // points anywhere in or just beyond the guest, with flags
          return (rng.below(0x1200) << kPageLg2) | rng.below(4096) | (rng.chance(0.3) ? rng.next() << 52 : 0);
        case 3:  // points into the machine beyond the guest
          return (rng.below(1ULL << 24) << kPageLg2) | rng.below(16);
        default:
          return 1ULL << rng.below(64);
      }
    };
    for (int step = 0; step < 400; ++step) {
      SCOPED_TRACE(testing::Message() << "step " << step);
      const Gpa word =
          pages[rng.below(pages.size())].address() + Bytes(8 * (rng.chance(0.5) ? rng.below(16) : rng.below(512)));
      switch (rng.below(8)) {
        case 0:
        case 1:
          guest.spoil(word, garbage());
          break;
        case 2:
          guest.spoil(word, m.domain->memory.read64(word).value_or(0) ^ (1ULL << rng.below(64)));
          break;
        case 3: {
          CommandWords command;
          for (std::uint64_t& w : command.words) w = garbage();
          guest.put(command);
          guest.ring_doorbell();
          break;
        }
        case 4:
          guest.poke(8 * rng.below(family().mmio_bytes / 8), rng.chance(0.5) ? 8 : 4, garbage());
          break;
        case 5:
          guest.repair();  // so that there is something to break again
          break;
        default:
          guest.invalidate();
          break;
      }
      for (int probe = 0; probe < 3; ++probe) {
        Iova address(rng.chance(0.5) ? kAt.value() + rng.below(0x20000) : rng.next() >> (16 + rng.below(40)));
        address = address.aligned_down(2);
        bool fixed = false;
        for (const AddressRange& range : family().fixed_inputs)
          fixed |= range.overlaps({address.value(), address.value()});
        if (fixed) continue;
        reached += m.dma(kNic, address) ? 1U : 0U;
        expect_within_guest(m, address);
      }
      if (HasFatalFailure()) return;
    }
    EXPECT_GT(reached, 20U) << "the guest broke everything at once, and nothing was tested";
  }
}

// Every entry of the root leads back to the root. Kills: a walk that follows them for ever.
class HostileNested : public Hostile {};
ON_STRATEGIES(HostileNested, (std::array{Way(kNested)}));
TEST_P(HostileNested, WalksThroughTablesThatContainThemselvesEnd) {
  Machine m(family(), strategy());
  Guest guest(m);
  const std::uint64_t root = guest.table->root().address;
  const std::uint64_t in_guest = (Machine::kGuestMemory.value() - 1) & ~0xfffULL;
  std::uint64_t link = 0;
  for (std::uint64_t offset = 0; offset < kPageSize.value(); offset += 8)
    if (const auto entry = m.domain->memory.read64(Gpa(root + offset)); entry && *entry != 0) link = *entry;
  ASSERT_NE(link, 0U);
  link = (link & ~in_guest) | root;
  for (std::uint64_t offset = 0; offset < kPageSize.value(); offset += 8)
    m.domain->memory.write64(Gpa(root + offset), link);
  guest.invalidate();
  expect_within_guest(m, kAt);
  EXPECT_EQ(m.domain->memory.read64(Gpa(guest.status_page)).value_or(0) & 0xffffffffU, guest.fence)
      << "the guest goes on";
}

// The guest's root is memory of nobody, or of another guest. Kills: tables fetched from outside the guest.
TEST_P(Hostile, RootsOutsideTheGuestTranslateNothing) {
  Machine m(family(), strategy());
  Guest guest(m);
  const Hpa stranger = *m.other->memory.translate(Gpa(0x1000));
  for (const std::uint64_t root : {Machine::kGuestMemory.value(), stranger.value(), std::uint64_t{1} << 45}) {
    // A table that would translate, if anybody looked at it there.
    ContextSetting setting{.kind = is(kNested) ? ContextKind::Stage1 : ContextKind::Stage2, .domain = DomainTag(1)};
    (is(kNested) ? setting.stage1 : setting.stage2) = {root, guest.table->root().top_level};
    static_cast<void>(guest.driver->attach(kNic, setting, guest.tables));
    guest.invalidate();
    EXPECT_EQ(m.dma(kNic, kAt), std::nullopt) << std::hex << root;
    EXPECT_EQ(m.dma(kDisk, kAt), m.host_address(kBuffer)) << "the other device goes on";
  }
}

}  // namespace
}  // namespace iommu::strategy::test
