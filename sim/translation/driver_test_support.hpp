// SPDX-License-Identifier: Apache-2.0
// For tests of a family's driver: a unit under it, and random scopes for the commands between them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "sim/base/rng.hpp"
#include "sim/memory/host_memory.hpp"
#include "sim/memory/host_table_memory.hpp"
#include "sim/translation/core_test_support.hpp"
#include "sim/translation/invalidation.hpp"
#include "sim/translation/iommu_core.hpp"
#include "sim/translation/ring.hpp"
#include "sim/translation/table_driver.hpp"

namespace iommu::test {

[[nodiscard]] inline DriverOptions options(ContextKind kind, unsigned input_bits = 48) {
  DriverOptions o;
  o.features.input_address_bits = input_bits;
  o.features.nested = kind == ContextKind::Nested;
  o.features.device_tlb = true;
  o.stage1 = kind == ContextKind::Stage1 || kind == ContextKind::Nested;
  return o;
}

// A unit, the software that programs it, and memory between them.
template <typename Driver, typename Core>
struct DrivenUnit {
  template <typename Identity>
  DrivenUnit(const DriverOptions& o, const Identity& identity) : options_used(o), driver(o), core(identity) {}

  DriverOptions options_used;
  HostMemory host{Bytes(1ULL << 38)};
  FrameAllocator frames{Mfn(0x1000), 0x8000};
  HostTableMemory memory{host, frames};
  Driver driver;
  Core core;
  ImmediateMemoryPort port{host};
  std::uint32_t tail = 0;

  void bring_up() {
    const auto writes = driver.bring_up(memory);
    ASSERT_TRUE(writes);
    for (const RegisterWrite& w : *writes) core.mmio_write(w.offset, w.bytes, w.value);
  }
  TranslationResponse translate(const TranslationRequest& request) { return core.translate(request, port).run(); }
  TranslationResponse translate(RequesterId requester, std::uint64_t address, Access access = Access::Read) {
    return translate({.requester = requester, .pasid = {}, .address = Iova(address), .access = access});
  }

  // Attaches a device that was blocked; what the core finds for it then.
  std::optional<Context> attach(RequesterId device, const ContextSetting& setting) {
    const TableEdit edit = driver.attach(device, setting, memory);
    EXPECT_EQ(edit.status, EditStatus::Ok);
    EXPECT_TRUE(edit.added && !edit.modified);
    const ContextResult found = core.find_context({.requester = device, .pasid = {}, .address = Iova(0)}, port).run();
    const auto* context = std::get_if<Context>(&found);
    EXPECT_NE(context, nullptr) << std::get<Fault>(found).row->name;
    if (context == nullptr) return std::nullopt;
    EXPECT_EQ(context->kind, setting.kind);
    return *context;
  }
  // Of a page that is mapped read-only, or of any in bypass.
  void expect_mapped(RequesterId device, ContextKind kind, std::uint64_t input, std::uint64_t output) {
    const bool bypass = kind == ContextKind::Bypass;
    EXPECT_EQ(print(translate(device, input + 0x10)), std::to_string((bypass ? input : output) + 0x10));
    EXPECT_EQ(std::holds_alternative<Translation>(translate(device, input, Access::Write)), bypass);
  }
  void expect_detach_blocks(RequesterId device, std::uint64_t input, std::string_view row) {
    const TableEdit gone = driver.detach(device, memory);
    EXPECT_TRUE(gone.modified && !gone.added);
    EXPECT_EQ(print(translate(device, input)), row);
    EXPECT_EQ(driver.detach(device, memory).entries_written, 0U);
  }
  void expect_ring_holds(std::uint32_t entries) {
    const CommandRing ring = driver.ring();
    EXPECT_GE(ring.entries, entries);
    EXPECT_EQ(ring.base % (std::uint64_t{ring.entries} * ring.entry_bytes), 0U);
  }
  void expect_fence_writes_status() {
    const std::uint64_t at = 0x2000 + driver.ring().fence_bytes;
    const auto effects = execute({driver.encode_fence(at, 0xcafe)});
    ASSERT_EQ(effects.size(), 1U);
    ASSERT_TRUE(effects[0].fence && effects[0].fence->status);
    EXPECT_EQ(effects[0].fence->status->address, Hpa(at));
    EXPECT_EQ(effects[0].fence->status->data, 0xcafeU);
    EXPECT_EQ(effects[0].fence->status->bytes, driver.ring().fence_bytes);
    EXPECT_FALSE(effects[0].fence->interrupt || effects[0].fence->is_barrier);
  }

  // Into the ring, without telling the core.
  void put(const CommandWords& command) {
    const CommandRing ring = driver.ring();
    const RingIndices at{.format = {.entries = ring.entries, .entry_bytes = ring.entry_bytes, .full = ring.full}};
    for (unsigned w = 0; w < ring.entry_bytes / 8; ++w)
      memory.write64(ring.base + at.offset(tail) + 8 * w, command.words[w]);
    tail = at.next(tail);
  }
  // Puts commands into the ring and returns what the core makes of each, up to the first it refuses.
  std::vector<CommandEffect> execute(const std::vector<CommandWords>& commands) {
    for (const CommandWords& command : commands) put(command);
    core.mmio_write(driver.ring().tail_register, 8, driver.tail_value(tail));
    return drain();
  }
  std::vector<CommandEffect> drain() {
    std::vector<CommandEffect> effects;
    while (core.has_command()) {
      const auto command = core.fetch_command(port).run();
      if (!command) break;
      EXPECT_NE(command->row, nullptr);
      effects.push_back(core.apply(*command));
      core.completed();
    }
    return effects;
  }
  // What the core removes for the one command that the driver makes of a scope.
  std::vector<InvalidationScope> executed(const InvalidationScope& scope) {
    const auto effects = execute({driver.encode(scope)});
    EXPECT_EQ(effects.size(), 1U) << "the core refused a command";
    if (effects.empty()) return {};
    EXPECT_FALSE(effects[0].error);
    return effects[0].scopes;
  }
};

// With this many pages of memory bring-up fails, and keeps none.
template <typename Driver>
void expect_bring_up_fails(std::uint64_t pages) {
  HostMemory host(1_GiB);
  FrameAllocator frames(Mfn(0x200), pages);
  HostTableMemory memory(host, frames);
  Driver driver{DriverOptions{}};
  EXPECT_FALSE(driver.bring_up(memory)) << pages;
  EXPECT_EQ(frames.used(), 0U) << pages;
}

// Random scopes and the tags of cached entries that may lie in them.
class RandomScopes {
 public:
  explicit RandomScopes(std::uint64_t seed) : seed(seed), rng(seed) {}

  const std::uint64_t seed;
  Rng rng;

  template <typename T>
  std::optional<T> maybe(T value) {
    return rng.chance(0.6) ? std::optional(value) : std::nullopt;
  }
  DomainTag domain() { return DomainTag(static_cast<std::uint32_t>(rng.below(3))); }
  AsidTag asid() { return AsidTag(static_cast<std::uint32_t>(rng.below(3))); }

  // What any family can express; address spaces and further criteria are the caller's.
  InvalidationScope scope(std::span<const InvalidationKind> kinds, RequesterId device) {
    InvalidationScope s;
    s.kind = kinds[rng.below(kinds.size())];
    if (s.kind != InvalidationKind::DeviceTlb) s.domain = maybe(domain());
    if (s.kind == InvalidationKind::DeviceTlb || s.kind == InvalidationKind::Context) s.requester = device;
    const std::uint64_t first = rng.below(4096) << unit_lg2(s.kind);
    const std::uint64_t count = rng.chance(0.5) ? 1ULL << rng.below(12) : 1 + rng.below(3000);
    if (s.kind != InvalidationKind::Context && s.kind != InvalidationKind::ProcessContext)
      s.range = maybe(AddressRange{first, first + (count << unit_lg2(s.kind)) - 1});
    s.leaf_only = s.kind == InvalidationKind::Iotlb && rng.chance(0.3);
    return s;
  }

  // That what was removed is at least what was asked for, by probes in and around it.
  void expect_removed(const InvalidationScope& asked, std::span<const InvalidationScope> removed) {
    for (int probe = 0; probe < 40; ++probe) {
      const CacheTags entry = tags(asked.kind);
      if (!matches(asked, entry)) continue;
      EXPECT_TRUE(std::ranges::any_of(removed, [&](const InvalidationScope& s) { return matches(s, entry); }))
          << "seed " << seed << " kind " << static_cast<int>(asked.kind);
    }
  }

 private:
  static unsigned unit_lg2(InvalidationKind kind) { return kind == InvalidationKind::InterruptEntry ? 0 : kPageLg2; }
  CacheTags tags(InvalidationKind kind) {
    const std::uint64_t at = rng.below(8192) << unit_lg2(kind);
    const auto address_space = maybe(asid());
    return {.domain = domain(),
            .asid = address_space,
            .requester = RequesterId::bdf(3, 0, static_cast<unsigned>(rng.below(8))),
            .range = {at, at | bits_between(0, unit_lg2(kind))},
            .is_leaf = rng.chance(0.7),
            .is_global = address_space && rng.chance(0.3)};
  }
};

}  // namespace iommu::test
