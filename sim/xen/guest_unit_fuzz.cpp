// SPDX-License-Identifier: Apache-2.0
// A guest with a virtual IOMMU, in the hands of an adversary: bytes edit its tables and rings, write and read trapped
// registers in any width, give commands and let devices do DMA. Whatever they do, every trap ends, and no device
// reaches memory that is not the guest's.
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "sim/base/check.hpp"
#include "sim/base/fuzz_test_support.hpp"
#include "sim/xen/virtual_machine_test_support.hpp"

namespace iommu::xen {
namespace {

using iommu::test::FuzzInput;

constexpr std::uint64_t kAt = 0x40000000;
constexpr Gfn kBuffer{0x123};
constexpr std::uint64_t kTablePages = 24;  // of the pool: what the guest's driver uses, and a little more

// Caches only the device tables: a mapping that Xen forgot to take away stays in the tables, not just in a cache.
template <class Translation, ShadowSync how = ShadowSync::CachingMode>
class HostileGuest {
 public:
  using Virtual = VirtualMachine<Translation, how>;

  HostileGuest(const FamilyDescriptor& family, FuzzInput bytes)
      : in_(bytes),
        v_(family, {.guest_page_lg2 = 21}, in_.take(1) % 2 == 0 ? TrapTarget::Xen : TrapTarget::DeviceModel),
        driver_(family.make_driver(Virtual::guest_options(family, {}))),
        mmio_bytes_(family.mmio_bytes) {
    for (const RequesterId device : {kNic, kDisk})
      SIM_CHECK(v_.translation->add_device(device) == Errno::Ok, "a device of the guest is accepted");
    if (Virtual::kTraps) v_.unit.reconsider(v_.machine.cpu).run();
    registers_ = *driver_->bring_up(pool());
    status_page_ = *pool().allocate(0);
    bring_up();
    table_ = driver_->create_table(kind(), pool());
    table_->map({.input = kAt, .output = kBuffer.address().value(), .length = 64_KiB});
    attach();
    invalidate();
  }

  void run() {
    SIM_CHECK(reach(kNic, Dfn(Iova(kAt))) == v_.frame(kBuffer), "an honest guest's device reaches its buffer");
    while (!in_.empty()) {
      step();
      v_.settle();
      probe();
    }
  }

 private:
  static constexpr TableKind kind() { return Virtual::kNested ? TableKind::Stage1 : TableKind::Stage2; }
  GuestPool& pool() { return v_.kernel.pool(); }
  GuestMemory& memory() { return v_.machine.guest().memory; }

  void poke(std::uint64_t offset, unsigned bytes, std::uint64_t value) {
    v_.unit.write(v_.machine.cpu, offset, bytes, value).run();
  }
  void bring_up() {
    for (const RegisterWrite& write : registers_) poke(write.offset, write.bytes, write.value);
    tail_ = 0;
  }
  void attach() {
    ContextSetting setting{.kind = Virtual::kNested ? ContextKind::Stage1 : ContextKind::Stage2,
                           .domain = DomainTag(1)};
    (Virtual::kNested ? setting.stage1 : setting.stage2) = table_->root();
    for (const RequesterId device : {kNic, kDisk}) static_cast<void>(driver_->attach(device, setting, pool()));
  }
  void put(const CommandWords& command) {
    const CommandRing ring = driver_->ring();
    for (std::size_t word = 0; word < ring.entry_bytes / 8; ++word)
      pool().write64(ring.base + std::uint64_t{tail_} * ring.entry_bytes + 8 * word, command.words[word]);
    tail_ = (tail_ + 1) % ring.entries;
  }
  void ring_doorbell() { poke(driver_->ring().tail_register, 8, driver_->tail_value(tail_)); }
  void invalidate() {
    for (const RequesterId device : {kNic, kDisk})
      for (const InvalidationScope& scope : driver_->context_scopes(device, std::nullopt)) put(driver_->encode(scope));
    put(driver_->encode({.kind = InvalidationKind::Iotlb}));
    put(driver_->encode_fence(status_page_, ++fence_));
    ring_doorbell();
  }

  Gpa table_word() {
    const std::uint64_t choice = in_.take(2);
    return Gfn(kGuestPages / 2 + choice % kTablePages).address() + Bytes(choice / kTablePages % 512 * 8);
  }
  // What looks like an entry, or does not.
  std::uint64_t value(std::uint64_t old) {
    const std::uint64_t choice = in_.take(1);
    switch (choice % 5) {
      case 0:
        return in_.take(8);
      case 1:
        return old ^ 1ULL << in_.take(1) % 64;
      case 2:  // to one of the tables
        return (old & kPageSize.value() - 1) | (kGuestPages / 2 + choice / 5 % kTablePages) << kPageLg2;
      case 3:  // around the end of the guest, and beyond
        return (old & kPageSize.value() - 1) | (kGuestPages - 8 + in_.take(1)) << kPageLg2;
      default:
        return 0;
    }
  }

  void step() {
    switch (in_.take(1) % 8) {
      case 0:
      case 1: {
        const Gpa word = table_word();
        static_cast<void>(memory().write64(word, value(memory().read64(word).value_or(0))));
        return;
      }
      case 2: {
        constexpr std::array<unsigned, 6> kWidths{4, 8, 4, 8, 1, 2};
        const unsigned width = kWidths[in_.take(1) % kWidths.size()];
        const std::uint64_t offset = in_.take(2) % mmio_bytes_;
        return poke(in_.take(1) % 4 == 0 ? offset : offset & ~7ULL, width, value(0));
      }
      case 3:
        v_.unit.read(v_.machine.cpu, in_.take(2) % mmio_bytes_, in_.take(1) % 2 == 0 ? 4 : 8).run();
        return;
      case 4: {
        CommandWords command;
        for (std::uint64_t& word : command.words) word = in_.take(in_.take(1) % 9U);
        put(command);
        return ring_doorbell();
      }
      case 5:
        return edit();
      case 6:
        bring_up();
        return attach();
      default:
        return invalidate();
    }
  }
  // As a driver does it, over whatever the tables have become.
  void edit() {
    const Iova at(kAt + (in_.take(1) << kPageLg2));
    if (in_.take(1) % 2 == 0) {
      const TableEdit edit = table_->unmap(at.value(), 4_KiB, ReclaimTables::WhenCovered);
      static_cast<void>(edit);
    } else {
      table_->map({.input = at.value(), .output = in_.take(2) << kPageLg2, .length = 4_KiB});
    }
    put(driver_->encode({.kind = InvalidationKind::Iotlb}));
    ring_doorbell();
  }

  std::optional<Mfn> reach(RequesterId device, Dfn at) { return v_.machine.reach(device, at); }
  void probe() {
    const Dfn at((in_.take(1) % 4 == 0 ? in_.take(5) : kAt >> kPageLg2) + in_.take(1) % 32);
    if (is_fixed(v_.machine.family(), at)) return;
    for (const RequesterId device : {kNic, kDisk}) {
      const auto there = reach(device, at);
      SIM_CHECK(!there || owns(v_.machine.guest(), *there), "a device reaches its guest's memory only");
    }
    const TranslationRequest virtual_device{.requester = kNic, .pasid = {}, .address = at.address()};
    static_cast<void>(v_.unit.translate(v_.machine.cpu, virtual_device).run());
    SIM_CHECK(reach(kAlien, Dfn(3)) == Machine::frame(*v_.machine.other, Gfn(3)), "another guest notices nothing");
  }

  FuzzInput in_;
  Virtual v_;
  std::unique_ptr<TableDriver> driver_;
  std::uint64_t mmio_bytes_;
  std::vector<RegisterWrite> registers_;
  std::unique_ptr<PageTable> table_;
  std::uint64_t status_page_ = 0;
  std::uint32_t tail_ = 0;
  std::uint32_t fence_ = 0;
};

void run(FuzzInput in) {
  const std::uint64_t choice = in.take(1);
  const FamilyDescriptor& family = *families()[choice % families().size()];
  if (choice < 86) {
    HostileGuest<NestedTranslation>(family, in).run();
  } else if (choice < 172) {
    HostileGuest<ShadowTranslation, ShadowSync::WriteProtect>(family, in).run();
  } else if (VirtualMachine<ShadowTranslation>::is_possible(family)) {
    HostileGuest<ShadowTranslation>(family, in).run();
  }
}

}  // namespace
}  // namespace iommu::xen

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  iommu::xen::expectations_are_fatal();
  iommu::xen::run(iommu::test::FuzzInput(std::span(data, size)));
  return 0;
}
