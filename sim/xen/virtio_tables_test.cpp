// SPDX-License-Identifier: Apache-2.0
// Tables of a driver's own, bound to endpoints of a virtio-iommu: hardware walks them over the domain's memory, and
// what leaves them is invalidated by request.
#include <gtest/gtest.h>

#include "sim/xen/virtio_test_support.hpp"
#include "sim/xen/virtual_machine_test_support.hpp"

namespace iommu::xen {
namespace {

using virtio::AttachTableRequest;
using virtio::InvalidateRequest;
using virtio::InvalidateScope;

constexpr RequesterId kNobody = RequesterId::bdf(9, 0, 0);
constexpr RequesterId kCard = RequesterId::bdf(9, 1, 0);
constexpr std::uint32_t kDomain = 7;
constexpr std::uint32_t kOther = 8;
using Nested = VirtualMachine<NestedTranslation>;

VirtioIommuSetting with_tables(const FamilyDescriptor& family) {
  VirtioIommuSetting setting;
  setting.tables = {family.binding, Nested::guest_options(family, {}).features};
  return setting;
}

// The guest writes tables with its family's driver.
struct TablesBench : VirtioBench {
  explicit TablesBench(const FamilyDescriptor& family, MachineOptions options = {},
                       std::uint64_t accepted = kAllFeatures)
      : VirtioBench(family, with_tables(family), Nested::host_options(options), accepted),
        binding(*family.binding),
        pool(m.guest().memory, Gfn(kGuestPages / 2), kGuestPages / 2),
        driver(family.make_driver(Nested::guest_options(family, options.features))) {
    if (binding.is_entry != nullptr) EXPECT_TRUE(driver->bring_up(pool));
  }
  std::unique_ptr<PageTable> make_table() { return driver->create_table(TableKind::Stage1, pool); }
  AttachTableRequest request_for(const PageTable& table, RequesterId endpoint, std::uint32_t domain = kDomain) {
    AttachTableRequest request{.domain = domain, .endpoint = endpoint.value(), .format = binding.format};
    if (binding.is_entry != nullptr) {
      const ContextSetting setting{.kind = ContextKind::Stage1, .domain = DomainTag(domain), .stage1 = table.root()};
      EXPECT_EQ(driver->attach(endpoint, setting, pool).status, EditStatus::Ok);
      const auto words = driver->entry_words(endpoint, pool);
      std::copy(words.begin(), words.end(), request.words.begin());
    } else {
      request.words = {0, table.root().address, 12 + 9 * (table.root().top_level + 1ULL)};
    }
    return request;
  }
  Status bind(const PageTable& table, RequesterId endpoint, std::uint32_t domain = kDomain) {
    return status_of(request_for(table, endpoint, domain));
  }
  static void enter(PageTable& table, std::uint64_t input, std::uint64_t output, std::uint64_t pages = 1) {
    EXPECT_EQ(table.map({.input = input, .output = output, .length = kPageSize * pages}).status, EditStatus::Ok);
  }
  static void remove(PageTable& table, std::uint64_t input, std::uint64_t pages = 1) {
    EXPECT_EQ(table.unmap(input, kPageSize * pages, ReclaimTables::WhenCovered).status, EditStatus::Ok);
  }
  static InvalidateRequest pages_of(std::uint64_t address, std::uint64_t pages, std::uint32_t domain = kDomain) {
    return {.scope = static_cast<std::uint8_t>(InvalidateScope::Address),
            .caches = virtio::kInvalidateTlb,
            .domain = domain,
            .address = address,
            .pages = pages,
            .page_lg2 = kPageLg2};
  }
  static InvalidateRequest whole(std::uint32_t domain = kDomain) {
    return {.scope = static_cast<std::uint8_t>(InvalidateScope::Domain),
            .caches = virtio::kInvalidateTlb,
            .domain = domain};
  }
  const TableBinding& binding;
  GuestPool pool;
  std::unique_ptr<TableDriver> driver;
};

class XenVirtioTables : public XenVirtio {};
XEN_ON_ALL_FAMILIES(XenVirtioTables);

// Kills: an INVALIDATE that is answered before its effect, or reaches the wrong pages; a map that needs a request.
TEST_P(XenVirtioTables, WhatLeavesATableIsGoneWhenInvalidateIsAnswered) {
  TablesBench b(family());
  const auto table = b.make_table();
  ASSERT_EQ(b.bind(*table, kNic), Status::Ok);
  EXPECT_EQ(b.reach(kNic, 0x7000), std::nullopt) << "bound, it reaches no memory of its own accord";
  const std::uint64_t exits = b.device.counters().traps.total();
  b.enter(*table, 0x40000000, 0x7000, 8);
  for (std::uint64_t at = 0; at < 0x8000; at += 0x1000)
    ASSERT_EQ(b.reach(kNic, 0x40000000 + at, Access::Write), b.frame(0x7000 + at));
  EXPECT_EQ(b.device.counters().traps.total(), exits);
  b.remove(*table, 0x40000000, 8);
  EXPECT_EQ(b.reach(kNic, 0x40001000), b.frame(0x8000)) << "caches are warm";
  EXPECT_EQ(b.status_of(TablesBench::pages_of(0x40001000, 1)), Status::Ok);
  EXPECT_EQ(b.reach(kNic, 0x40001000), std::nullopt);
  EXPECT_EQ(b.reach(kNic, 0x40000000), b.frame(0x7000)) << "just before";
  EXPECT_EQ(b.reach(kNic, 0x40002000), b.frame(0x9000)) << "just behind";
  EXPECT_EQ(b.status_of(TablesBench::pages_of(0x40003000, 3)), Status::Ok);
  for (const std::uint64_t gone : {0x40003000U, 0x40004000U, 0x40005000U}) EXPECT_EQ(b.reach(kNic, gone), std::nullopt);
  EXPECT_EQ(b.status_of(TablesBench::whole()), Status::Ok);
  for (std::uint64_t at = 0; at < 0x8000; at += 0x1000) EXPECT_EQ(b.reach(kNic, 0x40000000 + at), std::nullopt);
  EXPECT_EQ(b.m.xen.references().total(), 0U) << "what the guest maps takes nothing of Xen's";
}

// Behind a bridge, or a unit that tells buses apart only. Kills: an INVALIDATE that goes by the ids that are programmed
// for an endpoint alone, and so reaches no unit.
TEST_P(XenVirtioTables, InvalidateReachesAnEndpointWhoseIdIsShared) {
  TablesBench b(family());
  b.m.assign(b.m.guest(), {.requester = kCard, .shared_id = kCard});
  ASSERT_EQ(b.device.add_endpoint(b.m.cpu, kCard, EndpointKind::Physical).run(), Errno::Ok);
  const auto table = b.make_table();
  ASSERT_EQ(b.bind(*table, kCard), Status::Ok);
  b.enter(*table, 0x40000000, 0x7000);
  ASSERT_EQ(b.reach(kCard, 0x40000000), b.frame(0x7000));
  b.remove(*table, 0x40000000);
  EXPECT_EQ(b.status_of(TablesBench::pages_of(0x40000000, 1)), Status::Ok);
  EXPECT_EQ(b.reach(kCard, 0x40000000), std::nullopt);
}

// Kills: a flush by the guest's numbers, or of everything; tables of two domains mixed.
TEST_P(XenVirtioTables, InvalidateStaysWithinItsDomain) {
  TablesBench b(family());
  const auto one = b.make_table();
  const auto two = b.make_table();
  ASSERT_EQ(b.bind(*one, kNic, kDomain), Status::Ok);
  ASSERT_EQ(b.bind(*two, kDisk, kOther), Status::Ok);
  b.enter(*one, 0x5000, 0x7000);
  b.enter(*two, 0x5000, 0x9000);
  ASSERT_EQ(b.reach(kNic, 0x5000), b.frame(0x7000));
  ASSERT_EQ(b.reach(kDisk, 0x5000), b.frame(0x9000));
  ASSERT_TRUE(b.m.reach(kAlien, Dfn(3)));
  b.remove(*one, 0x5000);
  b.remove(*two, 0x5000);
  const DomainTag mine = b.m.guest().devices.at(kNic).context->tag_on(0);
  b.m.unit().forget_history();
  EXPECT_EQ(b.status_of(TablesBench::whole()), Status::Ok);
  ASSERT_FALSE(b.m.unit().applied.empty());
  for (const InvalidationScope& scope : b.m.unit().applied) EXPECT_EQ(scope.domain, mine);
  EXPECT_EQ(b.reach(kNic, 0x5000), std::nullopt);
  EXPECT_EQ(b.reach(kDisk, 0x5000), b.frame(0x9000)) << "still cached";
}

// Kills: endpoints of a domain that are not served from one set of tables, or keep what another's request removed.
TEST_P(XenVirtioTables, EndpointsOfOneDomainShareItsTables) {
  TablesBench b(family());
  const auto table = b.make_table();
  const auto other = b.make_table();
  const AttachTableRequest nic = b.request_for(*table, kNic);
  AttachTableRequest disk = nic;
  disk.endpoint = kDisk.value();
  ASSERT_EQ(b.status_of(nic), Status::Ok);
  ASSERT_EQ(b.status_of(disk), Status::Ok);
  b.enter(*table, 0x5000, 0x7000);
  for (const RequesterId endpoint : {kNic, kDisk}) ASSERT_EQ(b.reach(endpoint, 0x5000), b.frame(0x7000));
  EXPECT_EQ(b.bind(*other, kNic), Status::Invalid) << "the other endpoint is inside";
  EXPECT_EQ(b.reach(kNic, 0x5000), b.frame(0x7000));
  b.remove(*table, 0x5000);
  EXPECT_EQ(b.status_of(TablesBench::pages_of(0x5000, 1)), Status::Ok);
  for (const RequesterId endpoint : {kNic, kDisk}) EXPECT_EQ(b.reach(endpoint, 0x5000), std::nullopt);
}

// Kills: a new table beside which caches go on with the old one; a refusal that leaves neither.
TEST_P(XenVirtioTables, AloneInItsDomainAnEndpointMayExchangeItsTables) {
  TablesBench b(family());
  const auto first = b.make_table();
  const auto second = b.make_table();
  ASSERT_EQ(b.bind(*first, kNic), Status::Ok);
  b.enter(*first, 0x5000, 0x7000);
  ASSERT_EQ(b.reach(kNic, 0x5000), b.frame(0x7000));
  b.enter(*second, 0x6000, 0x8000);
  ASSERT_EQ(b.bind(*second, kNic), Status::Ok);
  EXPECT_EQ(b.reach(kNic, 0x5000), std::nullopt);
  EXPECT_EQ(b.reach(kNic, 0x6000), b.frame(0x8000));
  if (b.binding.is_entry != nullptr) return;
  AttachTableRequest narrow = b.request_for(*first, kNic);
  narrow.words[2] = 12 + 9;
  EXPECT_EQ(b.status_of(narrow), Status::Invalid) << "no unit walks one level";
  EXPECT_EQ(b.reach(kNic, 0x6000), b.frame(0x8000));
  EXPECT_EQ(b.device.spaces().context_of(kDomain)->stage1, second->root());
}

// What the guest names beyond its memory, the second stage refuses. Kills: a root or a page that Xen believes.
TEST_P(XenVirtioTables, TablesAndPagesOutsideTheGuestsMemoryLeadNowhere) {
  TablesBench b(family());
  const auto table = b.make_table();
  ASSERT_EQ(b.bind(*table, kNic), Status::Ok);
  b.enter(*table, 0x5000, kGuestPages << kPageLg2);
  b.enter(*table, 0x6000, 1ULL << 40);
  for (const std::uint64_t at : {0x5000U, 0x6000U}) EXPECT_EQ(b.reach(kNic, at), std::nullopt);
  for (const std::uint64_t nowhere : {kGuestPages << kPageLg2, std::uint64_t{1} << 40}) {
    const TableRoot root{nowhere, table->root().top_level, table->root().input_bits, table->root().granule_lg2};
    const auto hostile = b.driver->view_table(TableKind::Stage1, root, b.pool);
    EXPECT_EQ(b.bind(*hostile, kNic), Status::Ok);
    for (const std::uint64_t at : {0x5000U, 0x3000U, 0x7000U}) EXPECT_EQ(b.reach(kNic, at), std::nullopt);
  }
  EXPECT_EQ(b.m.reach(kAlien, Dfn(3)), b.m.frame(*b.m.other, Gfn(3)));
  ASSERT_EQ(b.bind(*table, kNic), Status::Ok);
  b.enter(*table, 0x7000, 0x9000);
  EXPECT_EQ(b.reach(kNic, 0x7000), b.frame(0x9000)) << "and with a sound one it works again";
}

// Kills: one check left out; a refused request that leaves a domain behind.
TEST_P(XenVirtioTables, UnsoundTablesAreRefusedAndChangeNothing) {
  TablesBench b(family());
  const auto table = b.make_table();
  const AttachTableRequest sound = b.request_for(*table, kNic);
  const auto refused = [&](auto change) {
    AttachTableRequest request = sound;
    change(request);
    return b.status_of(request);
  };
  EXPECT_EQ(refused([](auto& r) { r.format = 0; }), Status::Unsupported);
  EXPECT_EQ(refused([](auto& r) { ++r.format; }), Status::Unsupported);
  EXPECT_EQ(refused([](auto& r) { r.endpoint = kNobody.value(); }), Status::NoEntry);
  EXPECT_EQ(refused([](auto& r) { r.reserved[2] = 1; }), Status::Invalid);
  EXPECT_EQ(refused([](auto& r) { r.reserved1 = 1; }), Status::Invalid);
  EXPECT_EQ(refused([](auto& r) { r.words.back() = 1; }), Status::Invalid);
  EXPECT_EQ(refused([](auto& r) { r.words[3] = 1; }), Status::Invalid);
  if (b.binding.is_entry != nullptr) {
    EXPECT_EQ(refused([](auto& r) { r.words[0] = 0; }), Status::Invalid) << "not a valid entry";
    EXPECT_EQ(refused([](auto& r) { r.words[0] = ~0ULL; }), Status::Invalid) << "both stages";
  } else {
    EXPECT_EQ(refused([](auto& r) { r.words[0] = 1; }), Status::Invalid);
    EXPECT_EQ(refused([](auto& r) { r.words[1] += 8; }), Status::Invalid);
    EXPECT_EQ(refused([](auto& r) { r.words[1] = 1ULL << 60; }), Status::Invalid);
    for (const std::uint64_t width : {0ULL, 12ULL, 21ULL, 47ULL, 66ULL, ~0ULL})
      EXPECT_EQ(refused([&](auto& r) { r.words[2] = width; }), Status::Invalid) << width;
  }
  EXPECT_EQ(b.device.spaces().spaces(), 0U);
  EXPECT_EQ(b.reach(kNic, 0x7000), b.frame(0x7000)) << "as before, it bypasses";
  EXPECT_EQ(b.status_of(sound), Status::Ok);
}

// Kills: mappings in a domain with tables, or tables in one with mappings.
TEST_P(XenVirtioTables, ADomainHasMappingsOrTables) {
  TablesBench b(family());
  const auto table = b.make_table();
  ASSERT_EQ(b.bind(*table, kNic), Status::Ok);
  EXPECT_EQ(b.map(kDomain, 0x5000, 0x5fff, 0x7000), Status::Invalid);
  EXPECT_EQ(b.unmap(kDomain, 0, ~0ULL), Status::Invalid);
  EXPECT_EQ(b.attach(kDomain, kDisk), Status::Invalid);
  ASSERT_EQ(b.attach(kOther, kDisk), Status::Ok);
  EXPECT_EQ(b.bind(*table, kDisk, kOther), Status::Invalid);
  EXPECT_EQ(b.status_of(TablesBench::whole(kOther)), Status::Invalid);
  EXPECT_EQ(b.status_of(TablesBench::whole(9)), Status::NoEntry);
  EXPECT_EQ(b.map(kOther, 0x5000, 0x5fff, 0x7000), Status::Ok);
  EXPECT_EQ(b.reach(kDisk, 0x5000), b.frame(0x7000));
}

// Kills: one check left out; a range that wraps and becomes everything or nothing.
TEST_P(XenVirtioTables, UnsoundInvalidationsReachNoUnit) {
  TablesBench b(family());
  const auto table = b.make_table();
  ASSERT_EQ(b.bind(*table, kNic), Status::Ok);
  b.m.unit().forget_history();
  const auto answer = [&](InvalidateRequest request, auto change) {
    change(request);
    return b.status_of(request);
  };
  const InvalidateRequest pages = TablesBench::pages_of(0x5000, 1);
  EXPECT_EQ(answer(pages, [](auto& r) { r.scope = 2; }), Status::Unsupported) << "of a PASID";
  EXPECT_EQ(answer(pages, [](auto& r) { r.flags = virtio::kInvalidateByPasid; }), Status::Unsupported);
  EXPECT_EQ(answer(pages, [](auto& r) { r.flags = 1U << 4; }), Status::Invalid);
  for (const std::uint8_t scope : std::initializer_list<std::uint8_t>{0, 4, 255})
    EXPECT_EQ(answer(pages, [&](auto& r) { r.scope = scope; }), Status::Invalid);
  for (const std::uint8_t caches : std::initializer_list<std::uint8_t>{0, 1, 3, 6})
    EXPECT_EQ(answer(pages, [&](auto& r) { r.caches = caches; }), Status::Invalid);
  EXPECT_EQ(answer(pages, [](auto& r) { r.reserved[18] = 1; }), Status::Invalid);
  EXPECT_EQ(answer(pages, [](auto& r) { r.pages = 0; }), Status::Invalid);
  for (const std::uint8_t size : std::initializer_list<std::uint8_t>{0, 11, 13, 63, 64, 255})
    EXPECT_EQ(answer(pages, [&](auto& r) { r.page_lg2 = size; }), Status::Invalid) << int{size};
  EXPECT_EQ(answer(pages, [](auto& r) { r.address += 8; }), Status::Range);
  EXPECT_EQ(answer(pages, [](auto& r) { r.pages = 1ULL << 52; }), Status::Range);
  EXPECT_EQ(answer(pages, [](auto& r) { r.pages = ~0ULL; }), Status::Range);
  EXPECT_EQ(answer(pages, [](auto& r) { r.pages = (1ULL << 52) - 4; }), Status::Range) << "one too many";
  EXPECT_EQ(answer(TablesBench::whole(), [](auto& r) { r.caches = 0; }), Status::Invalid);
  EXPECT_EQ(answer(TablesBench::whole(), [](auto& r) { r.flags = virtio::kInvalidateById, r.id = 1ULL << 32; }),
            Status::Invalid);
  EXPECT_TRUE(b.m.unit().applied.empty());
  EXPECT_EQ(answer(pages, [](auto& r) { r.pages = (1ULL << 52) - 5; }), Status::Ok) << "up to the last page there is";
  EXPECT_FALSE(b.m.unit().applied.empty());
}

// Kills: an address space that is not the one named; process tables that stay cached though they were named.
TEST_P(XenVirtioTables, AddressSpacesAreNamedWhereTheTablesNameThem) {
  TablesBench b(family());
  const auto table = b.make_table();
  ASSERT_EQ(b.bind(*table, kNic), Status::Ok);
  b.enter(*table, 0x5000, 0x7000);
  ASSERT_TRUE(b.reach(kNic, 0x5000));
  b.remove(*table, 0x5000);
  InvalidateRequest request = TablesBench::pages_of(0x5000, 1);
  request.flags = virtio::kInvalidateById;
  request.id = kDomain + 1;
  if (b.binding.asid) {
    EXPECT_EQ(b.status_of(request), Status::Invalid);
    return;
  }
  EXPECT_EQ(b.status_of(request), Status::Ok);
  EXPECT_TRUE(b.reach(kNic, 0x5000)) << "another address space";
  request.id = kDomain;
  EXPECT_EQ(b.status_of(request), Status::Ok);
  EXPECT_EQ(b.reach(kNic, 0x5000), std::nullopt);
  b.m.unit().forget_history();
  InvalidateRequest all = TablesBench::whole();
  all.caches = virtio::kInvalidatePasidCache;
  EXPECT_EQ(b.status_of(all), Status::Ok);
  EXPECT_EQ(b.m.unit().count(InvalidationKind::ProcessContext), 1U);
  EXPECT_EQ(b.m.unit().count(InvalidationKind::Iotlb), 1U) << "what they lead to goes with them";
}

// Kills: a hint that is lost, or taken where none was given; global pages that an address space's flush is to take
// along and does not.
TEST_P(XenVirtioTables, FlagsReachTheUnit) {
  TablesBench b(family());
  const auto table = b.make_table();
  ASSERT_EQ(b.bind(*table, kNic), Status::Ok);
  const auto applied = [&](InvalidateRequest request, std::uint16_t flags) {
    request.flags = flags;
    request.id = kDomain;
    b.m.unit().forget_history();
    EXPECT_EQ(b.status_of(request), Status::Ok);
    EXPECT_GE(b.m.unit().count(InvalidationKind::Iotlb), 1U);
    return b.m.unit().applied.front();
  };
  const std::uint16_t by_id = b.binding.asid ? 0 : virtio::kInvalidateById;
  EXPECT_FALSE(applied(TablesBench::pages_of(0x5000, 1), by_id).leaf_only);
  EXPECT_TRUE(applied(TablesBench::pages_of(0x5000, 1), by_id | virtio::kInvalidateLeaf).leaf_only);
  EXPECT_TRUE(applied(TablesBench::whole(), by_id).asid);
  EXPECT_FALSE(applied(TablesBench::whole(), by_id | virtio::kInvalidateGlobal).asid) << "of all address spaces then";
}

// Kills: a detached endpoint that goes on under the tables; tags that every attachment uses up.
TEST_P(XenVirtioTables, DetachEndsItAndGivesEverythingBack) {
  TablesBench b(family());
  const auto table = b.make_table();
  b.enter(*table, 0x5000, 0x7000);
  const std::size_t contexts = b.m.guest().private_contexts.size();
  for (const std::uint8_t bypass : std::initializer_list<std::uint8_t>{1, 0}) {
    b.set_bypass(bypass);
    ASSERT_EQ(b.bind(*table, kNic), Status::Ok);
    ASSERT_EQ(b.reach(kNic, 0x5000), b.frame(0x7000));
    ASSERT_EQ(b.detach(kDomain, kNic), Status::Ok);
    EXPECT_EQ(b.reach(kNic, 0x5000), bypass == 1 ? std::optional(b.frame(0x5000)) : std::nullopt);
    EXPECT_EQ(b.status_of(TablesBench::whole()), Status::NoEntry);
    EXPECT_EQ(b.m.guest().private_contexts.size(), contexts);
  }
  ASSERT_EQ(b.bind(*table, kNic), Status::Ok);
  b.poke(virtio::offset::kStatus, 0);
  EXPECT_EQ(b.reach(kNic, 0x5000), std::nullopt) << "reset, it is blocked as before";
  EXPECT_EQ(b.m.guest().private_contexts.size(), contexts);
}

// Kills: requests served that were not negotiated; a property of a device that offers nothing of the kind.
TEST_P(XenVirtioTables, WithoutTheFeatureNothingOfItIsThere) {
  TablesBench b(family(), {}, ~(1ULL << virtio::kFeatureAttachTable));
  const auto table = b.make_table();
  const auto answer = b.ask(b.request_for(*table, kNic));
  EXPECT_TRUE(answer.was_used && answer.written == 0 && answer.is_untouched());
  EXPECT_EQ(b.ask(TablesBench::whole()).written, 0U);
  EXPECT_EQ(b.device.spaces().spaces(), 0U);
  VirtioBench plain(family());
  EXPECT_FALSE(plain.device.registers().is_negotiated(virtio::kFeatureAttachTable));
}

// Kills: an identity of the host's unit, where that is another; a property without the words it announces.
TEST_P(XenVirtioTables, ProbeTellsForWhichUnitTablesMustBe) {
  TablesBench b(family());
  const auto answer = b.ask(virtio::ProbeRequest{.endpoint = kNic.value()}, 512 + sizeof(virtio::RequestTail));
  ASSERT_EQ(answer.status(), Status::Ok);
  virtio::HardwareProperty property;
  std::memcpy(&property, answer.bytes.data(), sizeof property);
  const auto expected = b.binding.identity(Nested::guest_options(family(), {}).features);
  EXPECT_EQ(property.head.type, b.binding.property);
  EXPECT_EQ(property.head.length, 4 + 8 * expected.size());
  std::vector<std::uint64_t> words(expected.size());
  std::memcpy(words.data(), answer.bytes.data() + sizeof property, 8 * words.size());
  EXPECT_EQ(words, expected);
}

// Kills: what devices keep themselves left there, or removed before the unit's own caches.
TEST_P(XenVirtioTables, InvalidateReachesDeviceTlbsLast) {
  MachineOptions options;
  options.features.device_tlb = true;
  TablesBench b(family(), options);
  b.m.assign(b.m.guest(), {.requester = kCard, .device_tlb = true});
  ASSERT_EQ(b.device.add_endpoint(b.m.cpu, kCard, EndpointKind::Physical).run(), Errno::Ok);
  const auto table = b.make_table();
  ASSERT_EQ(b.bind(*table, kCard), Status::Ok);
  b.m.unit().forget_history();
  EXPECT_EQ(b.status_of(TablesBench::pages_of(0x5000, 1)), Status::Ok);
  ASSERT_FALSE(b.m.unit().applied.empty());
  EXPECT_EQ(b.m.unit().count(InvalidationKind::DeviceTlb), 1U);
  EXPECT_EQ(b.m.unit().applied.back().kind, InvalidationKind::DeviceTlb);
  EXPECT_EQ(b.m.unit().applied.back().requester, kCard);
  EXPECT_EQ(b.m.unit().applied.back().range, (AddressRange{0x5000, 0x5fff}));
}

// Kills: tables for a device that no unit translates for.
TEST_P(XenVirtioTables, EmulatedDevicesHaveNone) {
  TablesBench b(family());
  ASSERT_EQ(b.device.add_endpoint(b.m.cpu, kNobody, EndpointKind::Virtual).run(), Errno::Ok);
  const auto table = b.make_table();
  EXPECT_EQ(b.bind(*table, kNobody), Status::Unsupported);
  EXPECT_EQ(b.device.spaces().spaces(), 0U);
}

}  // namespace
}  // namespace iommu::xen
