// SPDX-License-Identifier: Apache-2.0
// Grants: what maps, what is refused with which status, and which IOMMU entry a frame has meanwhile. Behaviour numbers
// are those of the list of testable behaviours.
#include "sim/xen/grant_table.hpp"

#include <gtest/gtest.h>

#include <array>
#include <map>
#include <random>

#include "sim/xen/xen_test_support.hpp"

namespace iommu::xen {
namespace {

using abi::GrantCommand;
using abi::GrantStatus;
using abi::kGrantEntry;

constexpr Gpa kArguments{0x2000};
constexpr Gfn kTablePage{0x30};

// A guest that grants, and a driver domain with a device that its context 0 shows nothing.
class XenGrants : public XenFamilies {
 protected:
  XenGrants() : m_(family()), grants_(m_.xen, {.mappings = 400}) {
    driver_ = m_.xen.create_domain({.name = "driver", .memory = 1_MiB, .default_context = DefaultContext::Blocked});
    EXPECT_EQ(m_.xen.move_device(m_.cpu, m_.guest(), *driver_, kNic).run(), Errno::Ok);
    EXPECT_EQ(grants_.set_table(m_.guest(), {kTablePage}), Errno::Ok);
  }
  ~XenGrants() override { EXPECT_FALSE(m_.cpu.would_block()) << "a lock was left held"; }

  static Gpa entry_of(std::uint32_t ref) { return kTablePage.address() + Bytes(8) * ref; }
  std::uint64_t entry(std::uint32_t ref) { return *m_.guest().memory.read64(entry_of(ref)); }
  void write_entry(std::uint32_t ref, std::uint64_t word) {
    EXPECT_TRUE(m_.guest().memory.write64(entry_of(ref), word));
  }
  void grant(std::uint32_t ref, Gfn frame, Permissions permissions = kReadWrite) {
    grant(ref, frame, permissions, *driver_);
  }
  void grant(std::uint32_t ref, Gfn frame, Permissions permissions, const Domain& user) {
    std::uint64_t word = with<kGrantEntry, "frame">(0, frame.value());
    word = with<kGrantEntry, "domid">(word, user.id.value());
    word = with<kGrantEntry, "readonly">(word, permissions.write ? 0 : 1);
    write_entry(ref, with<kGrantEntry, "type">(word, 1));
  }
  std::int64_t call(GrantCommand command, Gpa arguments, std::uint32_t count, Domain* caller = nullptr) {
    return grants_
        .call(m_.cpu, caller == nullptr ? *driver_ : *caller, static_cast<std::uint32_t>(command), arguments, count)
        .run();
  }
  abi::MapGrantRef map(abi::MapGrantRef request) {
    EXPECT_TRUE(driver_->memory.write(kArguments, std::as_bytes(std::span(&request, 1))));
    EXPECT_EQ(call(GrantCommand::MapGrantRef, kArguments, 1), 0);
    EXPECT_TRUE(driver_->memory.read(kArguments, std::as_writable_bytes(std::span(&request, 1))));
    return request;
  }
  abi::MapGrantRef map(std::uint32_t ref, Permissions permissions = kReadWrite) {
    return map({.flags = abi::kGrantDeviceMap | (permissions.write ? 0U : abi::kGrantReadOnly),
                .ref = ref,
                .dom = m_.guest().id.value()});
  }
  GrantStatus status(const abi::MapGrantRef& answer) { return static_cast<GrantStatus>(answer.status); }
  GrantStatus unmap_as(abi::UnmapGrantRef request) {
    EXPECT_TRUE(driver_->memory.write(kArguments, std::as_bytes(std::span(&request, 1))));
    EXPECT_EQ(call(GrantCommand::UnmapGrantRef, kArguments, 1), 0);
    EXPECT_TRUE(driver_->memory.read(kArguments, std::as_writable_bytes(std::span(&request, 1))));
    return static_cast<GrantStatus>(request.status);
  }
  GrantStatus unmap(const abi::MapGrantRef& mapped) {
    return unmap_as({.dev_bus_addr = mapped.dev_bus_addr, .handle = mapped.handle});
  }
  // Through the unit and its caches, as the device sees it.
  bool reaches(Gfn frame, Access access) {
    const Mfn machine = *m_.guest().p2m.memory_frame(frame);
    TranslationRequest request{.requester = kNic, .pasid = {}, .address = Iova(machine.address().value())};
    request.access = access;
    const TranslationResponse response = m_.unit().translate(request);
    const auto* translation = std::get_if<Translation>(&response);
    if (translation != nullptr) EXPECT_EQ(translation->address, machine.address());
    return translation != nullptr;
  }
  std::string rights(Gfn frame) {
    return std::string(reaches(frame, Access::Read) ? "r" : "-") + (reaches(frame, Access::Write) ? "w" : "-");
  }
  bool is_marked(std::uint32_t ref, bool reading, bool writing) {
    return get<kGrantEntry, "reading">(entry(ref)) == (reading ? 1 : 0) &&
           get<kGrantEntry, "writing">(entry(ref)) == (writing ? 1 : 0);
  }

  Machine m_;
  GrantTables grants_;
  Domain* driver_ = nullptr;
};
XEN_ON_ALL_FAMILIES(XenGrants);

// Behaviour 94. Kills: an entry per mapping; a last writer that leaves a writable entry; a reader that takes it with
// it; a change without its flush.
TEST_P(XenGrants, AFramesEntryFollowsItsReadersAndWriters) {
  const Gfn frame(0x55);
  grant(8, frame);
  EXPECT_EQ(rights(frame), "--");
  const auto reader = map(8, kReadOnly);
  ASSERT_EQ(status(reader), GrantStatus::Okay);
  EXPECT_EQ(reader.dev_bus_addr, m_.guest().p2m.memory_frame(frame)->address().value());
  EXPECT_EQ(rights(frame), "r-");
  EXPECT_TRUE(is_marked(8, true, false));
  const auto writer = map(8, kReadWrite);
  EXPECT_EQ(rights(frame), "rw");
  EXPECT_TRUE(is_marked(8, true, true));
  const auto second_writer = map(8, kReadWrite);
  EXPECT_EQ(grants_.counters().entry_changes, 2U) << "the second writer changes nothing";
  EXPECT_EQ(m_.references(m_.guest(), frame), 3U);
  EXPECT_EQ(unmap(writer), GrantStatus::Okay);
  EXPECT_EQ(rights(frame), "rw");
  EXPECT_EQ(unmap(second_writer), GrantStatus::Okay);
  EXPECT_EQ(rights(frame), "r-") << "the last writer is gone, its cached right as well";
  EXPECT_TRUE(is_marked(8, true, false));
  EXPECT_EQ(unmap(reader), GrantStatus::Okay);
  EXPECT_EQ(rights(frame), "--");
  EXPECT_TRUE(is_marked(8, false, false));
  EXPECT_EQ(grants_.counters().entry_changes, 4U);
  EXPECT_EQ(m_.references(m_.guest(), frame), 0U);
}

// One frame granted twice. Kills: counts by reference instead of by frame.
TEST_P(XenGrants, TwoReferencesToOneFrameShareItsEntry) {
  const Gfn frame(0x55);
  grant(8, frame);
  grant(9, frame, kReadOnly);
  const auto writer = map(8);
  const auto reader = map(9, kReadOnly);
  EXPECT_EQ(unmap(writer), GrantStatus::Okay);
  EXPECT_EQ(rights(frame), "r-");
  EXPECT_EQ(unmap(reader), GrantStatus::Okay);
  EXPECT_EQ(rights(frame), "--");
}

// Each change is flushed by itself. Kills: one flush for a call; flushes for what was not there before.
TEST_P(XenGrants, EachUnmapOfACallHasItsOwnFlush) {
  constexpr std::uint32_t kCount = 40;  // more than one batch
  std::vector<abi::UnmapGrantRef> requests;
  for (std::uint32_t i = 0; i < kCount; ++i) {
    grant(8 + i, Gfn(0x60 + i));
    const std::uint64_t flushes = m_.unit().count(InvalidationKind::Iotlb);
    const auto mapped = map(8 + i);
    EXPECT_EQ(m_.unit().count(InvalidationKind::Iotlb), flushes);
    EXPECT_EQ(rights(Gfn(0x60 + i)), "rw");
    requests.push_back({.dev_bus_addr = mapped.dev_bus_addr, .handle = mapped.handle});
  }
  const std::uint64_t before = m_.unit().fences;
  const std::uint64_t calls = m_.cpu.charged()[CostId::Hypercall];
  ASSERT_TRUE(driver_->memory.write(kArguments, std::as_bytes(std::span(requests))));
  EXPECT_EQ(call(GrantCommand::UnmapGrantRef, kArguments, kCount), 0);
  EXPECT_EQ(m_.unit().fences - before, kCount);
  EXPECT_EQ(m_.cpu.charged()[CostId::Hypercall] - calls, 1U);
  for (std::uint32_t i = 0; i < kCount; ++i) {
    EXPECT_EQ(rights(Gfn(0x60 + i)), "--");
    EXPECT_TRUE(is_marked(8 + i, false, false));
  }
}

// Kills: each of the checks left out; another domain's frame granted on; a refusal that leaves a mark, a handle, a
// reference or an entry.
TEST_P(XenGrants, BadGrantsAreRefusedWithoutATrace) {
  const Gfn frame(0x55);
  const auto refused = [&](GrantStatus wanted, std::uint32_t ref, std::uint64_t word, Permissions permissions) {
    if (ref < 512) write_entry(ref, word);
    EXPECT_EQ(status(map(ref, permissions)), wanted) << ref << " " << word;
    if (ref < 512) EXPECT_EQ(entry(ref), word);
    EXPECT_EQ(rights(frame), "--");
    EXPECT_EQ(m_.xen.references().total(), 0U);
  };
  grant(8, frame);
  const std::uint64_t good = entry(8);
  refused(GrantStatus::BadGrantReference, 512, 0, kReadWrite);
  refused(GrantStatus::BadGrantReference, ~0U, 0, kReadWrite);
  for (const std::uint64_t type : {0U, 2U, 3U})
    refused(GrantStatus::GeneralError, 8, with<kGrantEntry, "type">(good, type), kReadWrite);
  refused(GrantStatus::GeneralError, 8, with<kGrantEntry, "sub_page">(good, 1), kReadOnly);
  refused(GrantStatus::GeneralError, 8, with<kGrantEntry, "domid">(good, m_.guest().id.value()), kReadOnly);
  refused(GrantStatus::GeneralError, 8, with<kGrantEntry, "readonly">(good, 1), kReadWrite);
  refused(GrantStatus::BadPage, 8, with<kGrantEntry, "frame">(good, 0xffffffff), kReadOnly);
  const Gfn lent(kGuestPages + 1);
  ASSERT_TRUE(m_.guest().p2m.add({lent, 1, m_.frame(*m_.other, Gfn(9)), FrameType::Foreign}));
  refused(GrantStatus::GeneralError, 8, with<kGrantEntry, "frame">(good, lent.value()), kReadOnly);
  for (int i = 0; i < 401; ++i) ASSERT_EQ(status(map(8, kReadOnly)), GrantStatus::GeneralError) << "no handle is lost";
  write_entry(8, good);
  EXPECT_EQ(status(map({.flags = abi::kGrantReadOnly, .ref = 8, .dom = m_.guest().id.value()})),
            GrantStatus::BadGrantReference);
  EXPECT_EQ(status(map({.flags = abi::kGrantDeviceMap, .ref = 8, .dom = 0x7ff0})), GrantStatus::BadDomain);
  EXPECT_EQ(entry(8), good);
  EXPECT_EQ(status(map(8)), GrantStatus::Okay) << "nothing was used up";
}

// A grant is for one domain at a time. Kills: a second user of a pinned grant.
TEST_P(XenGrants, AnotherDomainMayNotMapAGrantThatIsInUse) {
  grant(8, Gfn(0x55));
  ASSERT_EQ(status(map(8)), GrantStatus::Okay);
  Domain* third = m_.xen.create_domain({.name = "third", .memory = 1_MiB, .default_context = DefaultContext::Blocked});
  grant(8, Gfn(0x55), kReadWrite, *third);  // the owner redirects it
  abi::MapGrantRef request{.flags = abi::kGrantDeviceMap, .ref = 8, .dom = m_.guest().id.value()};
  ASSERT_TRUE(third->memory.write(kArguments, std::as_bytes(std::span(&request, 1))));
  EXPECT_EQ(call(GrantCommand::MapGrantRef, kArguments, 1, third), 0);
  ASSERT_TRUE(third->memory.read(kArguments, std::as_writable_bytes(std::span(&request, 1))));
  EXPECT_EQ(status(request), GrantStatus::GeneralError);
}

// The owner changes the entry while it is in use. Kills: reading the frame again; trusting the marks on the way out.
TEST_P(XenGrants, WhatTheOwnerWritesLaterDoesNotMoveAMapping) {
  grant(8, Gfn(0x55));
  const auto first = map(8);
  grant(8, Gfn(0x66));
  const auto second = map(8);
  EXPECT_EQ(second.dev_bus_addr, first.dev_bus_addr);
  EXPECT_EQ(rights(Gfn(0x66)), "--");
  write_entry(8, ~0ULL);
  EXPECT_EQ(unmap(first), GrantStatus::Okay);
  EXPECT_EQ(unmap(second), GrantStatus::Okay);
  EXPECT_TRUE(is_marked(8, false, false));
  EXPECT_EQ(rights(Gfn(0x55)), "--");
  EXPECT_EQ(m_.xen.references().total(), 0U);
}

// Kills: counts that wrap to zero, which would free a frame in use.
TEST_P(XenGrants, CountsDoNotOverflow) {
  grant(8, Gfn(0x55));
  std::vector<abi::MapGrantRef> mapped;
  for (int i = 0; i < 128; ++i) mapped.push_back(map(8, kReadOnly));
  EXPECT_EQ(status(mapped.back()), GrantStatus::Okay);
  EXPECT_EQ(status(map(8, kReadOnly)), GrantStatus::GeneralError);
  EXPECT_EQ(status(map(8)), GrantStatus::GeneralError) << "whatever the use";
  EXPECT_EQ(unmap(mapped.front()), GrantStatus::Okay);
  EXPECT_EQ(status(map(8, kReadOnly)), GrantStatus::Okay);
}

TEST_P(XenGrants, HandlesRunOut) {
  for (std::uint32_t i = 0; i < 400; ++i) {
    grant(8 + i, Gfn(0x60 + i));
    ASSERT_EQ(status(map(8 + i, kReadOnly)), GrantStatus::Okay);
  }
  grant(408, Gfn(0x55));
  EXPECT_EQ(status(map(408)), GrantStatus::NoDeviceSpace);
  EXPECT_TRUE(is_marked(408, false, false));
  EXPECT_EQ(unmap_as({.dev_bus_addr = m_.guest().p2m.memory_frame(Gfn(0x61))->address().value(), .handle = 1}),
            GrantStatus::Okay);
  EXPECT_EQ(map(408).handle, 1U);
}

// Kills: unmapping twice; another handle's frame; an unmap of nothing that takes the mapping.
TEST_P(XenGrants, BadUnmapsAreRefused) {
  const Gfn frame(0x55);
  grant(8, frame);
  const auto mapped = map(8);
  EXPECT_EQ(unmap_as({.dev_bus_addr = mapped.dev_bus_addr, .handle = mapped.handle + 1}), GrantStatus::BadHandle);
  EXPECT_EQ(unmap_as({.dev_bus_addr = mapped.dev_bus_addr, .handle = ~0U}), GrantStatus::BadHandle);
  EXPECT_EQ(unmap_as({.dev_bus_addr = mapped.dev_bus_addr + 4096, .handle = mapped.handle}), GrantStatus::GeneralError);
  EXPECT_EQ(unmap_as({.handle = mapped.handle}), GrantStatus::Okay) << "nothing is named, nothing is done";
  EXPECT_EQ(rights(frame), "rw");
  EXPECT_EQ(unmap(mapped), GrantStatus::Okay);
  EXPECT_EQ(unmap(mapped), GrantStatus::BadHandle);
}

// One handle for a device and a CPU, given up one after the other. Kills: a mapping that ends with the first of them.
TEST_P(XenGrants, AMappingLivesUntilBothOfItsUsesEnd) {
  const Gfn frame(0x55);
  grant(8, frame);
  const auto mapped = map({.flags = abi::kGrantDeviceMap | abi::kGrantHostMap, .ref = 8, .dom = m_.guest().id.value()});
  ASSERT_EQ(status(mapped), GrantStatus::Okay);
  EXPECT_EQ(unmap(mapped), GrantStatus::Okay);
  EXPECT_EQ(m_.references(m_.guest(), frame), 1U);
  EXPECT_TRUE(is_marked(8, true, true)) << "the CPU may still write";
  EXPECT_EQ(unmap_as({.host_addr = 0x1000, .handle = mapped.handle}), GrantStatus::Okay);
  EXPECT_EQ(m_.references(m_.guest(), frame), 0U);
  EXPECT_EQ(rights(frame), "--");
  EXPECT_TRUE(is_marked(8, false, false));
}

// Kills: a success although no unit answered; a frame that its owner may give back while a device may write to it.
TEST_P(XenGrants, AnUnmapWithoutAnAnswerFailsAndKeepsTheFrame) {
  const Gfn frame(0x56);
  grant(9, frame);
  const auto mapped = map(9);
  ASSERT_EQ(status(mapped), GrantStatus::Okay);
  ASSERT_TRUE(reaches(frame, Access::Write));
  m_.xen.unit(0).lose_invalidations(1);
  EXPECT_EQ(unmap(mapped), GrantStatus::GeneralError);
  EXPECT_EQ(m_.references(m_.guest(), frame), 1U);
}

// Kills: arguments taken from Xen's memory, or from nowhere.
TEST_P(XenGrants, ArgumentsOutsideTheCallersMemoryFault) {
  const auto fault = static_cast<std::int64_t>(Errno::BadAddress);
  EXPECT_EQ(call(GrantCommand::MapGrantRef, Gpa((1_MiB).value()), 1), fault);
  EXPECT_EQ(call(GrantCommand::UnmapGrantRef, Gpa(~0ULL - 7), 1), fault);
  EXPECT_EQ(call(GrantCommand::MapGrantRef, Gpa((1_MiB).value()), 0), 0);
  EXPECT_EQ(call(static_cast<GrantCommand>(2), kArguments, 1), static_cast<std::int64_t>(Errno::NotImplemented));
  EXPECT_EQ(grants_.set_table(m_.guest(), {Gfn(1ULL << 40)}), Errno::Invalid);
  EXPECT_EQ(grants_.set_table(m_.guest(), std::vector<Gfn>(65, kTablePage)), Errno::TooBig);
  // The second structure lies outside: the first one is done all the same.
  grant(8, Gfn(0x55));
  abi::MapGrantRef request{.flags = abi::kGrantDeviceMap, .ref = 8, .dom = m_.guest().id.value()};
  const Gpa last = Gpa((1_MiB).value()) - Bytes(sizeof request);
  ASSERT_TRUE(driver_->memory.write(last, std::as_bytes(std::span(&request, 1))));
  EXPECT_EQ(call(GrantCommand::MapGrantRef, last, 2), fault);
  EXPECT_EQ(rights(Gfn(0x55)), "rw");
}

// Random life of grants against counts kept here. Kills: any step of the counting that depends on the order.
TEST_P(XenGrants, ChurnAgreesWithCounts) {
  for (const std::uint64_t seed : {std::uint64_t{7}, std::uint64_t{std::random_device{}()}}) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Rng rng(seed, "grants");
    constexpr std::uint32_t kRefs = 6;
    for (std::uint32_t i = 0; i < kRefs; ++i) grant(8 + i, Gfn(0x60 + i / 2));  // two references a frame
    struct Live {
      std::uint32_t ref;
      bool writes;
      abi::MapGrantRef mapped;
    };
    std::vector<Live> live;
    for (int step = 0; step < 300; ++step) {
      if (live.size() < 12 && rng.below(2) == 0) {
        const auto ref = static_cast<std::uint32_t>(8 + rng.below(kRefs));
        const bool writes = rng.below(2) == 0;
        live.push_back({ref, writes, map(ref, writes ? kReadWrite : kReadOnly)});
        ASSERT_EQ(status(live.back().mapped), GrantStatus::Okay);
      } else if (!live.empty()) {
        const std::size_t victim = rng.below(live.size());
        ASSERT_EQ(unmap(live[victim].mapped), GrantStatus::Okay);
        live.erase(live.begin() + static_cast<std::ptrdiff_t>(victim));
      }
      for (std::uint32_t frame = 0; frame < kRefs / 2; ++frame) {
        bool reads = false;
        bool writes = false;
        for (const Live& l : live)
          if ((l.ref - 8) / 2 == frame) {
            reads = true;
            writes = writes || l.writes;
          }
        ASSERT_EQ(rights(Gfn(0x60 + frame)), std::string(reads ? "r" : "-") + (writes ? "w" : "-")) << step;
      }
    }
    for (const Live& l : live) ASSERT_EQ(unmap(l.mapped), GrantStatus::Okay);
  }
}

}  // namespace
}  // namespace iommu::xen
