// SPDX-License-Identifier: Apache-2.0
// The hypercall's first three versions: what they do differently. Numbers are those of the interface's list of testable
// behaviours.
#include "sim/xen/iommu_op_v3.hpp"

#include <gtest/gtest.h>

#include <array>

#include "sim/xen/xen_test_support.hpp"

namespace iommu::xen {
namespace {

using abi_v3::Operation;
using abi_v3::Subop;

constexpr RequesterId kHostCard = RequesterId::bdf(10, 0, 0);

struct HostMachine {
  explicit HostMachine(const FamilyDescriptor& family, const MachineOptions& options = {})
      : m(family, options), op(m.xen) {
    m.assign(*m.dom0, {.requester = kHostCard});
    EXPECT_EQ(op.set_up(*m.dom0, 4, 6), Errno::Ok);
  }
  Errno call(Domain& caller, Operation& operation) {
    EXPECT_TRUE(caller.memory.write(Machine::kArgument, std::as_bytes(std::span(&operation, 1))));
    const auto status = static_cast<Errno>(op.call(m.cpu, caller, Machine::kArgument).run());
    EXPECT_TRUE(caller.memory.read(Machine::kArgument, std::as_writable_bytes(std::span(&operation, 1))));
    return status;
  }
  static Operation operation(Subop subop, std::uint16_t context = 0, std::uint32_t flags = 0) {
    Operation operation;
    operation.subop_id = static_cast<std::uint16_t>(subop);
    operation.ctx_no = context;
    operation.flags = flags;
    return operation;
  }
  std::uint16_t attached() {
    Operation alloc = operation(Subop::AllocContext);
    EXPECT_EQ(call(*m.dom0, alloc), Errno::Ok);
    EXPECT_EQ(reattach(kHostCard, alloc.ctx_no), Errno::Ok);
    return alloc.ctx_no;
  }
  Errno reattach(RequesterId device, std::uint16_t context) {
    Operation move = operation(Subop::ReattachDevice, context);
    move.device = {
        .seg = 0, .bus = static_cast<std::uint8_t>(device.bus()), .devfn = static_cast<std::uint8_t>(device.devfn())};
    return call(*m.dom0, move);
  }
  Machine::Pages map(std::uint16_t context, Dfn dfn, Gfn gfn, std::uint32_t pages,
                     std::uint32_t flags = abi_v3::kReadable | abi_v3::kWriteable) {
    Operation map = operation(Subop::MapPages, context, flags);
    map.map_pages = {.gfn = gfn.value(), .dfn = dfn.value(), .nr_pages = pages, .mapped = 77};
    const Errno status = call(*m.dom0, map);
    return {status, map.map_pages.mapped};
  }
  Machine::Pages unmap(std::uint16_t context, Dfn dfn, std::uint32_t pages) {
    Operation unmap = operation(Subop::UnmapPages, context);
    unmap.unmap_pages = {.dfn = dfn.value(), .nr_pages = pages, .unmapped = 77};
    const Errno status = call(*m.dom0, unmap);
    return {status, unmap.unmap_pages.unmapped};
  }
  Machine m;
  IommuOpV3 op;
};

class XenV3 : public XenFamilies {};
XEN_ON_ALL_FAMILIES(XenV3);

// Kills: the later versions' rule, that any domain may.
TEST_P(XenV3, OnlyTheHardwareDomainMay) {
  HostMachine h(family());
  for (std::uint16_t subop = 0; subop < 10; ++subop) {
    Operation operation;
    operation.subop_id = subop;
    EXPECT_EQ(h.call(h.m.guest(), operation), Errno::NotPermitted) << subop;
  }
}
// Kills: each of the two conditions left out.
TEST_P(XenV3, WithoutAnIommuEveryCallIsNotPermitted) {
  HostMachine h(family());
  Operation noop;
  ASSERT_EQ(h.call(*h.m.dom0, noop), Errno::Ok);
  h.m.dom0->setting.has_iommu = false;
  EXPECT_EQ(h.call(*h.m.dom0, noop), Errno::NotPermitted);
  HostMemory host{1_GiB};
  FrameAllocator frames{Mfn(0x100), 0x10000};
  Hypervisor xen(host, frames, {});
  Domain* dom0 = xen.create_domain({.name = "dom0", .memory = 1_MiB, .privilege = Privilege::HardwareDomain});
  ASSERT_NE(dom0, nullptr);
  IommuOpV3 op(xen);
  EXPECT_EQ(op.call(h.m.cpu, *dom0, Machine::kArgument).run(), static_cast<std::int64_t>(Errno::NotPermitted));
}
TEST_P(XenV3, UnknownSubopsAreInvalidAndArgumentsOutsideMemoryBadAddresses) {
  HostMachine h(family());
  for (const std::uint16_t subop : std::array<std::uint16_t, 3>{8, 9, 0xffff}) {
    Operation operation;
    operation.subop_id = subop;
    EXPECT_EQ(h.call(*h.m.dom0, operation), Errno::Invalid) << subop;
  }
  for (const Gpa at : {Gpa(~0ULL), Gpa(4ULL << 20), Gpa((4ULL << 20) - 16)})
    EXPECT_EQ(h.op.call(h.m.cpu, *h.m.dom0, at).run(), static_cast<std::int64_t>(Errno::BadAddress));
}
TEST_P(XenV3, QueryTellsContextsPagesAndTheFixedLimit) {
  HostMachine h(family());
  Operation query = h.operation(Subop::QueryCapabilities);
  EXPECT_EQ(h.call(*h.m.dom0, query), Errno::Ok);
  EXPECT_EQ(query.query.max_ctx_no, 4U);
  EXPECT_EQ(query.query.max_nr_pages, 256U);
  EXPECT_EQ(query.query.max_iova_addr, (1ULL << 39) - 1);
}
// Behaviour 65.
TEST_P(XenV3, MoreThan256PagesAreTooBig) {
  HostMachine h(family());
  const std::uint16_t context = h.attached();
  EXPECT_EQ(h.map(context, Dfn(0x1000), Gfn(0), 257).status, Errno::TooBig);
  EXPECT_EQ(h.m.xen.references().total(), 0U);
  const auto mapped = h.map(context, Dfn(0x1000), Gfn(0), 256);
  EXPECT_EQ(mapped.status, Errno::Ok);
  EXPECT_EQ(mapped.done, 256U);
  EXPECT_EQ(h.unmap(context, Dfn(0x1000), 257).status, Errno::TooBig);
  EXPECT_EQ(h.m.reach(kHostCard, Dfn(0x10ff)), h.m.frame(*h.m.dom0, Gfn(255)));
  const auto unmapped = h.unmap(context, Dfn(0x1000), 256);
  EXPECT_EQ(unmapped.status, Errno::Ok);
  EXPECT_EQ(unmapped.done, 256U);
  EXPECT_EQ(h.m.reach(kHostCard, Dfn(0x10ff)), std::nullopt);
}
TEST_P(XenV3, AddressesBeyondTheFixedLimitAreRefused) {
  HostMachine h(family());
  const std::uint16_t context = h.attached();
  const Dfn last{Iova(abi_v3::kLastAddress)};
  EXPECT_EQ(h.map(context, last + 1, Gfn(0), 1).status, Errno::AddressNotAvailable);
  EXPECT_EQ(h.map(context, last + 2, Gfn(0), 1).status, Errno::AddressNotAvailable);
  EXPECT_EQ(h.map(context, Dfn(~0ULL), Gfn(0), 1).status, Errno::AddressNotAvailable);
  const auto across = h.map(context, last, Gfn(5), 2);
  EXPECT_EQ(across.status, Errno::AddressNotAvailable);
  EXPECT_EQ(across.done, 1U);
  EXPECT_EQ(h.m.reach(kHostCard, last), h.m.frame(*h.m.dom0, Gfn(5)));
  EXPECT_EQ(h.m.reach(kHostCard, last + 1), std::nullopt);
}
// Behaviour 33 (up to v6).
TEST_P(XenV3, DevicesOfOthersAreNoEntry) {
  HostMachine h(family());
  const std::uint16_t context = h.attached();
  EXPECT_EQ(h.reattach(kNic, context), Errno::NoEntry);
  Operation segment = h.operation(Subop::ReattachDevice, 0);
  segment.device = {.seg = 1,
                    .bus = static_cast<std::uint8_t>(kHostCard.bus()),
                    .devfn = static_cast<std::uint8_t>(kHostCard.devfn())};
  EXPECT_EQ(h.call(*h.m.dom0, segment), Errno::NoEntry) << "of another segment";
  EXPECT_EQ(h.m.reach(kNic, Dfn(3)), h.m.frame(h.m.guest(), Gfn(3)));
}
TEST_P(XenV3, FreeingWorksAsInLaterVersions) {
  HostMachine h(family());
  const std::uint16_t context = h.attached();
  ASSERT_EQ(h.map(context, Dfn(0x1000), Gfn(7), 3).status, Errno::Ok);
  Operation zero = h.operation(Subop::FreeContext, 0);
  EXPECT_EQ(h.call(*h.m.dom0, zero), Errno::Invalid);
  Operation free = h.operation(Subop::FreeContext, context);
  EXPECT_EQ(h.call(*h.m.dom0, free), Errno::Busy);
  free = h.operation(Subop::FreeContext, context, abi_v3::kTeardownReattachDefault);
  EXPECT_EQ(h.call(*h.m.dom0, free), Errno::Ok);
  EXPECT_EQ(h.call(*h.m.dom0, free), Errno::NoEntry);
  EXPECT_EQ(h.m.xen.references().total(), 0U);
  EXPECT_EQ(h.m.reach(kHostCard, Dfn(3)), h.m.frame(*h.m.dom0, Gfn(3)));
}
TEST_P(XenV3, NumbersRunOut) {
  HostMachine h(family());
  for (std::uint16_t expected = 1; expected <= 4; ++expected) {
    Operation alloc = h.operation(Subop::AllocContext, 0, abi_v3::kCreateClone);
    EXPECT_EQ(h.call(*h.m.dom0, alloc), Errno::Ok);
    EXPECT_EQ(alloc.ctx_no, expected);
  }
  Operation alloc = h.operation(Subop::AllocContext);
  EXPECT_EQ(h.call(*h.m.dom0, alloc), Errno::NoSpace);
}
// The sub-operation that v4 dropped. Kills: a machine frame that is told to the guest.
TEST_P(XenV3, LookupTellsTheGuestsOwnFrame) {
  HostMachine h(family());
  const std::uint16_t context = h.attached();
  ASSERT_EQ(h.map(context, Dfn(0x1000), Gfn(70), 2).status, Errno::Ok);
  Operation lookup = h.operation(Subop::LookupPage, context);
  lookup.lookup_page = {.gfn = 0, .dfn = 0x1001};
  const std::uint64_t read = h.m.cpu.charged()[CostId::TableRead];
  EXPECT_EQ(h.call(*h.m.dom0, lookup), Errno::Ok);
  EXPECT_EQ(lookup.lookup_page.gfn, 71U);
  EXPECT_EQ(h.m.cpu.charged()[CostId::TableRead] - read, 1U);
  const std::uint64_t alias = h.m.xen.last_dfn().value() + 1 + 0x1000;
  for (const std::uint64_t nothing : std::array<std::uint64_t, 5>{0x1002, 0, 1ULL << 50, ~0ULL, alias}) {
    lookup.lookup_page = {.gfn = 0, .dfn = nothing};
    EXPECT_EQ(h.call(*h.m.dom0, lookup), Errno::NoEntry) << nothing;
  }
  Operation zero = h.operation(Subop::LookupPage, 0);
  EXPECT_EQ(h.call(*h.m.dom0, zero), Errno::Invalid);
}
// Kills: the first frame of a large page told for all of them.
TEST_P(XenV3, LookupWithinAMergedPageTellsThePagesOwnFrame) {
  HostMachine h(family(), {.xen = {.coalesce = Coalesce::Yes}});
  const std::uint16_t context = h.attached();
  ASSERT_EQ(h.m.frame(*h.m.dom0, Gfn(512)).value() % 512, 0U) << "this test is about a page that merges";
  for (std::uint64_t i = 0; i < 512; i += 256)
    ASSERT_EQ(h.map(context, Dfn(0x1000 + i), Gfn(512 + i), 256).status, Errno::Ok);
  ASSERT_EQ(h.m.context(*h.m.dom0, context).table->lookup(Dfn(0x1000).address().value())->page_lg2, 21);
  Operation lookup = h.operation(Subop::LookupPage, context);
  lookup.lookup_page = {.gfn = 0, .dfn = 0x1000 + 300};
  EXPECT_EQ(h.call(*h.m.dom0, lookup), Errno::Ok);
  EXPECT_EQ(lookup.lookup_page.gfn, 512U + 300);
}
TEST_P(XenV3, InvalidContextsAndPermissionsAreInvalid) {
  HostMachine h(family());
  const std::uint16_t context = h.attached();
  const auto mapped = h.map(0, Dfn(0x1000), Gfn(7), 1);
  EXPECT_EQ(mapped.status, Errno::Invalid);
  EXPECT_EQ(mapped.done, 0U) << "not what the caller left there";
  EXPECT_EQ(h.map(9, Dfn(0x1000), Gfn(7), 1).status, Errno::Invalid);
  EXPECT_EQ(h.map(context, Dfn(0x1000), Gfn(7), 1, 0).status, Errno::Invalid);
  const auto unmapped = h.unmap(0, Dfn(3), 1);
  EXPECT_EQ(unmapped.status, Errno::Invalid);
  EXPECT_EQ(unmapped.done, 0U);
  EXPECT_EQ(h.unmap(context, Dfn(0x1000), 1).status, Errno::NoEntry);
}
// One lock per domain over each operation: two vCPUs wait for each other's flushes even in different contexts, which
// later versions do not. Kills: a lock that is dropped for the flush.
TEST_P(XenV3, OperationsOfOneDomainWaitForEachOther) {
  HostMachine h(family());
  Operation first = h.operation(Subop::AllocContext);
  ASSERT_EQ(h.call(*h.m.dom0, first), Errno::Ok);
  const std::uint16_t context = h.attached();
  ASSERT_EQ(h.map(context, Dfn(0x1000), Gfn(7), 2).status, Errno::Ok);
  h.m.unit().execution = CachingUnit::Execution::OnRequest;
  Stepper stepper(h.m.host);
  Operation unmap = h.operation(Subop::UnmapPages, context);
  unmap.unmap_pages = {.dfn = 0x1000, .nr_pages = 1, .unmapped = 0};
  Operation map = h.operation(Subop::MapPages, first.ctx_no, abi_v3::kReadable);
  map.map_pages = {.gfn = 9, .dfn = 0x1000, .nr_pages = 1, .mapped = 0};
  ASSERT_TRUE(h.m.dom0->memory.write(Gpa(0x20000), std::as_bytes(std::span(&unmap, 1))));
  ASSERT_TRUE(h.m.dom0->memory.write(Gpa(0x21000), std::as_bytes(std::span(&map, 1))));
  auto unmapping = h.op.call(stepper.add_cpu(), *h.m.dom0, Gpa(0x20000));
  unmapping.start();
  stepper.run();
  auto mapping = h.op.call(stepper.add_cpu(), *h.m.dom0, Gpa(0x21000));
  mapping.start();
  stepper.run();
  EXPECT_FALSE(unmapping.done() || mapping.done());
  EXPECT_TRUE(h.m.dom0->pv_lock.held);
  h.m.unit().execute();
  stepper.run();
  EXPECT_TRUE(unmapping.done() && mapping.done());
}

}  // namespace
}  // namespace iommu::xen
