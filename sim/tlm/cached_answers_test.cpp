// SPDX-License-Identifier: Apache-2.0
// What the timed caches may answer after an invalidation, over all families and all caches.
#include <gtest/gtest.h>

#include <map>

#include "sim/base/rng.hpp"
#include "sim/tlm/family_unit_test_support.hpp"
#include "sim/tlm/test_machine.hpp"

namespace iommu::test {
namespace {

constexpr std::uint64_t kBase = 0x4000'0000;
constexpr std::uint64_t kPages = 32;

IommuParameters every_cache(Rng& rng) {
  IommuParameters p;
  p.iotlb = {.entries = 16, .ways = 4};
  p.iotlb_large = {.entries = rng.chance(0.5) ? 4U : 0U, .ways = 0};
  p.first_level = {.entries = rng.chance(0.5) ? 4U : 0U, .ways = 0};
  p.port_tlb = {.entries = rng.chance(0.5) ? 8U : 0U, .ways = 0};
  p.timing.message_latency = rng.chance(0.5) ? 8_ns : 0_ps;
  p.translation_slots = static_cast<std::uint32_t>(rng.below(4));
  p.prefetch_pages = static_cast<std::uint32_t>(rng.below(3));
  for (std::size_t level = 0; level < IommuParameters::kLevels; ++level) {
    p.stage1_walk_cache[level] = {.entries = 4, .ways = 0};
    p.stage2_walk_cache[level] = {.entries = 4, .ways = 0};
  }
  p.stage2_leaf_cache = {.entries = 8, .ways = 0};
  return p;
}

// Software maps, unmaps and remaps pages, invalidates what it changed and waits for the fence, while two devices of one
// address space go on. Kills: a cached answer, in any cache, older than the last fence over its page; the wrong command
// for it; walks, messages or prefetches that put an old answer back.
TEST(CachedAnswers, NeverOutliveTheFenceOverThem) {
  for (const FamilyDescriptor* family : families()) {
    for (std::uint64_t seed = 1; seed <= 8; ++seed) {
      SCOPED_TRACE(std::string(family->name) + " seed " + std::to_string(seed));
      Rng rng(seed, family->name);
      DriverOptions options;
      options.stage1 = rng.chance(0.5);
      const auto kind = options.stage1 ? TableKind::Stage1 : TableKind::Stage2;
      FamilyUnit u(*family, options, every_cache(rng));
      const auto table = u.driver->create_table(kind, u.tables);
      const ContextSetting setting{.kind = options.stage1 ? ContextKind::Stage1 : ContextKind::Stage2,
                                   .domain = DomainTag(5),
                                   .stage1 = options.stage1 ? table->root() : TableRoot{},
                                   .stage2 = options.stage1 ? TableRoot{} : table->root()};
      for (const RequesterId device : {u.kNic, u.kDisk})
        ASSERT_EQ(u.driver->attach(device, setting, u.tables).status, EditStatus::Ok);
      std::map<std::uint64_t, std::uint64_t> mapped;  // page to frame, as of the last fence
      for (std::uint32_t round = 1; round <= 40; ++round) {
        for (std::uint64_t i = rng.below(6); i > 0 && u.unit.can_accept(); --i)
          (void)u.submit(kBase + rng.below(kPages) * kPageSize.value(), rng.chance(0.5) ? u.kNic : u.kDisk);
        u.calendar.run_until(u.calendar.now() + Picoseconds(static_cast<std::int64_t>(rng.below(500'000))));
        const std::uint64_t page = kBase + rng.below(kPages) * kPageSize.value();
        if (mapped.erase(page) != 0)
          ASSERT_EQ(table->unmap(page, kPageSize, ReclaimTables::WhenCovered).status, EditStatus::Ok);
        if (rng.chance(0.6)) {
          mapped[page] = 0x1'0000'0000 + rng.below(1U << 16U) * kPageSize.value();
          ASSERT_EQ(table->map({.input = page, .output = mapped[page]}).status, EditStatus::Ok);
        }
        u.invalidate({.kind = InvalidationKind::Iotlb,
                      .domain = setting.domain,
                      .range = AddressRange{page, page + kPageSize.value() - 1}});
        u.fence(round);
        u.ring_doorbell();
        while (u.status() != round) ASSERT_TRUE(u.calendar.step(Picoseconds(INT64_MAX)));
        const std::size_t probe = u.submit(page, rng.chance(0.5) ? u.kNic : u.kDisk);
        while (!u.is_done(probe)) ASSERT_TRUE(u.calendar.step(Picoseconds(INT64_MAX)));
        const auto expected = mapped.find(page);
        EXPECT_EQ(u.address(probe), expected == mapped.end() ? std::nullopt : std::optional(Hpa(expected->second)));
      }
      u.run();
      EXPECT_EQ(u.unit.pending(), 0U);
    }
  }
}

// Kinds of request ---------------------------------------------------------------------------------------------------

// A unit of two devices with one address space, one of which may have its reads made fetches or its requests
// privileged, under pages and tables that deny by kind. Whatever is cached or under way, each request gets what the
// core alone answers. Kills: a kind that the IOTLB, a port, a walk cache, a stage-2 leaf or a walk that is joined does
// not tell apart; a walk ahead for another kind than the demand's.
TEST(CachedAnswers, RequestsOfEveryKindGetWhatTheCoreAloneAnswers) {
  using testing_core::kEntry;
  using testing_core::Machine;
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Rng rng(seed, "kinds");
    Machine m(every_cache(rng));
    const RequesterId other(0x0200);
    const bool nested = rng.chance(0.5);
    const Hpa stage1 = m.tables.allocate();
    const Hpa root = nested ? stage1 : m.root;
    if (nested)
      for (std::uint64_t at = 0; at < 1ULL << 23; at += kPageSize.value()) m.tables.map(m.root, at, at);
    for (const RequesterId device : {Machine::kNic, other})
      m.tables.attach(m.core, device, nested ? ContextKind::Nested : ContextKind::Stage2, stage1, m.root,
                      Machine::kDomain);
    if (rng.chance(0.7)) m.core.fetches = other;
    if (rng.chance(0.5)) m.core.privileged = other;
    const auto deny = [&](Hpa slot) {
      std::uint64_t entry = m.host().read64(slot);
      entry = with<kEntry, "NX">(entry, rng.chance(0.3) ? 1 : 0);
      m.host().write64(slot, with<kEntry, "P">(entry, rng.chance(0.2) ? 1 : 0));
    };
    constexpr std::uint64_t kSpan = 4;  // pages under each of three tables
    const auto address_of = [](std::uint64_t page) {
      return kBase + (page / kSpan << (kPageLg2 + 9)) + (page % kSpan << kPageLg2);
    };
    for (std::uint64_t page = 0; page < 3 * kSpan; ++page) {
      const Permissions rights = rng.chance(0.2) ? kWriteOnly : rng.chance(0.4) ? kReadOnly : kReadWrite;
      m.tables.map(root, address_of(page), 0x40'0000 + page * kPageSize.value(), rights);
      std::uint64_t leaf = m.host().read64(m.tables.leaf_slot());
      leaf = with<kEntry, "G">(leaf, rng.chance(0.3) ? 1 : 0);
      m.host().write64(m.tables.leaf_slot(), leaf);
      deny(m.tables.leaf_slot());
      if (!nested) continue;
      m.tables.map(m.root, 0x40'0000 + page * kPageSize.value(), 0x60'0000 + page * kPageSize.value());
      deny(m.tables.leaf_slot());
    }
    const testing_core::Format format;
    Hpa table = root;
    for (Level level = 3; level > 1; --level)
      table = Hpa(get<kEntry, "ADDR">(m.host().read64(table + Bytes(format.entry_offset(level, kBase)))) << kPageLg2);
    for (std::uint64_t i = 0; i < 3; ++i) deny(table + Bytes(format.entry_offset(1, address_of(i * kSpan))));
    ImmediateMemoryPort port(m.host());
    for (int round = 0; round < 60; ++round) {
      std::vector<std::size_t> asked;
      for (std::uint64_t n = 1 + rng.below(4); n > 0; --n) {
        TranslationRequest r{.requester = rng.chance(0.5) ? other : Machine::kNic,
                             .pasid = {},
                             .address = Iova(address_of(rng.below(3 * kSpan)) + 8 * rng.below(64)),
                             .length = 8_B,
                             .access = rng.chance(0.3) ? Access::Write : Access::Read};
        r.execute = rng.chance(0.3);
        r.privileged = rng.chance(0.2);
        asked.push_back(m.submit(r));
      }
      m.run();
      for (const std::size_t id : asked) {
        const TranslationRequest& r = m.request(id).translation;
        const TranslationResponse alone = m.core.translate(r, port).run();
        const auto* expected = std::get_if<Translation>(&alone);
        EXPECT_EQ(m.address(id), expected == nullptr ? std::nullopt : std::optional(expected->address))
            << "round " << round << " write " << (r.access == Access::Write) << " execute " << r.execute;
      }
    }
  }
}

// Entries -------------------------------------------------------------------------------------------------------------

struct Entry {
  WalkTag tag;
  std::uint64_t page = 0;
  bool is_global = false;
};

// What an invalidation must remove, in the words of the architectures rather than of the tags.
bool must_go(const InvalidationScope& s, const Entry& e) {
  if (s.domain && *s.domain != e.tag.domain) return false;
  if (s.range && (e.page < s.range->first >> kPageLg2 || e.page > s.range->last >> kPageLg2)) return false;
  if (s.stage1_only && !e.tag.asid) return false;
  if (!s.asid) return true;
  if (e.tag.asid && e.is_global) return s.global_pages;
  return s.asid == e.tag.asid;
}

// Random fills and invalidations against a list. Kills: a global page under one address space only, or across domains;
// an invalidation that spares what it must remove, or removes what stays by its definition.
TEST(CachedAnswers, EntriesLiveExactlyUntilAnInvalidationNamesThem) {
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Rng rng(seed, "entries");
    IommuParameters p;
    p.iotlb = {.entries = 4096, .ways = 0};
    IommuStatistics statistics;
    TranslationCaches caches(p, seed, statistics);
    std::vector<Entry> live;
    const auto random_entry = [&] {
      Entry e;
      e.tag.domain = DomainTag(static_cast<std::uint32_t>(rng.below(2)));
      if (rng.chance(0.8)) e.tag.asid = AsidTag(static_cast<std::uint32_t>(rng.below(3)));
      e.page = rng.below(6);
      // Whether a page of an address space is global is the same for all of its domain: software may not differ.
      e.is_global = e.tag.asid && e.page < 3;
      return e;
    };
    const auto serves = [](const Entry& cached, const Entry& asked) {
      return cached.page == asked.page && cached.tag.domain == asked.tag.domain &&
             (cached.tag.asid == asked.tag.asid || (cached.is_global && asked.tag.asid));
    };
    for (int step = 0; step < 60; ++step) {
      if (rng.chance(0.6)) {
        const Entry e = random_entry();
        Translation t{Hpa(e.page << kPageLg2), kPageLg2, kReadWrite, {}, false};
        t.attributes.is_global = e.is_global;
        caches.fill(e.tag, Iova(e.page << kPageLg2), t, caches.epoch().translations);
        live.push_back(e);
      } else {
        InvalidationScope s;
        if (rng.chance(0.7)) s.domain = DomainTag(static_cast<std::uint32_t>(rng.below(2)));
        if (rng.chance(0.5)) s.asid = AsidTag(static_cast<std::uint32_t>(rng.below(3)));
        if (rng.chance(0.5)) s.range = AddressRange{rng.below(6) << kPageLg2, (6ULL << kPageLg2) - 1};
        s.global_pages = s.asid && rng.chance(0.5);
        s.stage1_only = !s.asid && rng.chance(0.5);
        caches.erase(s);
        std::erase_if(live, [&](const Entry& e) { return must_go(s, e); });
      }
      const Entry asked = random_entry();
      const bool expected = std::ranges::any_of(live, [&](const Entry& e) { return serves(e, asked); });
      EXPECT_EQ(caches.find(asked.tag, Iova(asked.page << kPageLg2)) != nullptr, expected) << "step " << step;
    }
  }
}

}  // namespace
}  // namespace iommu::test
