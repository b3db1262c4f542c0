// SPDX-License-Identifier: Apache-2.0
// For tests of page tables: a small format to test editors with, table memory that can be watched and exhausted, and a
// reader that shares no code with the editor (the hardware walker).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "sim/base/bits.hpp"
#include "sim/memory/host_memory.hpp"
#include "sim/memory/host_table_memory.hpp"
#include "sim/translation/table_editor.hpp"
#include "sim/translation/walker.hpp"

namespace iommu::test {

// A made-up format with `levels` levels of 512 entries: presence is R or W, leaves up to `max_leaf`.
inline constexpr auto kPlainEntry = layout("plain", "made up", 64,
                                           {{"R", 0, 0},
                                            {"W", 1, 1},
                                            {"LEAF", 2, 2},
                                            {"A", 3, 3},
                                            {"D", 4, 4},
                                            {"ign", 11, 5, FieldKind::Ignored},
                                            {"ADDR", 51, 12},
                                            {"rsv", 63, 52, FieldKind::MustBeZero}});
static_assert(kPlainEntry.is_partition());

struct PlainFormat {
  Level max_leaf = 2;
  unsigned output_bits = 46;
  bool marks = false;  // keeps A and D

  [[nodiscard]] std::uint64_t entry_offset(Level level, std::uint64_t input) const {
    return (input >> span_lg2(level) & 511) * 8;
  }
  [[nodiscard]] unsigned span_lg2(Level level) const { return 12 + 9U * level; }
  [[nodiscard]] bool is_present(std::uint64_t entry) const {
    return get<kPlainEntry, "R">(entry) != 0 || get<kPlainEntry, "W">(entry) != 0;
  }
  [[nodiscard]] bool can_be_leaf(Level level) const { return level <= max_leaf; }
  [[nodiscard]] DecodedEntry decode(std::uint64_t entry, Level level, std::uint64_t, Access access) const {
    DecodedEntry d;
    if (!is_present(entry)) return d;
    d.address = get<kPlainEntry, "ADDR">(entry) << 12;
    const bool leaf = get<kPlainEntry, "LEAF">(entry) != 0;
    if ((entry & kPlainEntry.must_be_zero_mask()) != 0 || (d.address & ~bits_between(12, output_bits)) != 0 ||
        (leaf ? !can_be_leaf(level) : level == 0)) {
      d.kind = EntryKind::Malformed;
      return d;
    }
    d.allowed = {.read = get<kPlainEntry, "R">(entry) != 0, .write = get<kPlainEntry, "W">(entry) != 0};
    d.kind = leaf ? EntryKind::Leaf : EntryKind::Table;
    if (!d.allowed.allow(access)) d.kind = EntryKind::Denied;
    if (leaf)
      d.page_lg2 = static_cast<std::uint8_t>(span_lg2(level));
    else
      d.next_level = static_cast<Level>(level - 1);
    return d;
  }
  [[nodiscard]] std::optional<std::uint64_t> mark_used(std::uint64_t entry, Level, Access access) const {
    if (!marks) return std::nullopt;
    std::uint64_t marked = with<kPlainEntry, "A">(entry, 1);
    if (access == Access::Write && get<kPlainEntry, "LEAF">(entry) != 0) marked = with<kPlainEntry, "D">(marked, 1);
    if (marked == entry) return std::nullopt;
    return marked;
  }
  [[nodiscard]] std::uint64_t make_table(std::uint64_t address, Level) const {
    return address | pack<kPlainEntry>({{"R", 1}, {"W", 1}});
  }
  [[nodiscard]] std::uint64_t make_leaf(std::uint64_t address, Level, Permissions p) const {
    return address | with<kPlainEntry, "R">(0, p.read) | with<kPlainEntry, "W">(0, p.write) |
           with<kPlainEntry, "LEAF">(0, 1);
  }
};
static_assert(PageFormat<PlainFormat>);

// Table memory that tells of every write, fails the n-th allocation, and knows what is in use.
class WatchedTableMemory final : public TableMemory {
 public:
  explicit WatchedTableMemory(TableMemory& memory) : memory_(memory) {}

  std::function<void(std::uint64_t address)> on_write;  // after the write
  std::optional<std::uint64_t> allocations_left;        // nullopt: unlimited
  std::set<std::uint64_t> in_use;                       // 4 KiB pages

  std::uint64_t read64(std::uint64_t address) override { return memory_.read64(address); }
  void write64(std::uint64_t address, std::uint64_t value) override {
    memory_.write64(address, value);
    if (on_write) on_write(address);
  }
  void write128(std::uint64_t address, std::uint64_t low, std::uint64_t high) override {
    memory_.write128(address, low, high);
    if (on_write) on_write(address);
  }
  std::optional<std::uint64_t> allocate(unsigned pages_lg2 = 0) override {
    if (allocations_left) {
      if (*allocations_left == 0) return std::nullopt;
      --*allocations_left;
    }
    const auto first = memory_.allocate(pages_lg2);
    if (first)
      for (std::uint64_t i = 0; i < 1ULL << pages_lg2; ++i) in_use.insert(*first + i * kPageSize.value());
    return first;
  }
  void release(std::uint64_t address, unsigned pages_lg2 = 0) override {
    for (std::uint64_t i = 0; i < 1ULL << pages_lg2; ++i) in_use.erase(address + i * kPageSize.value());
    memory_.release(address, pages_lg2);
  }

 private:
  TableMemory& memory_;
};

// A machine with its table memory above 16 MiB.
struct TableBench {
  HostMemory host{Bytes(1ULL << 40)};
  FrameAllocator frames{Mfn(0x1000), 0x10000};
  HostTableMemory tables{host, frames};
  WatchedTableMemory memory{tables};

  void release(const std::vector<std::uint64_t>& pages) {
    for (const std::uint64_t page : pages) memory.release(page);
  }
};

// What hardware sees: output address and permissions of one input, by the functional walker.
template <PageFormat F>
std::optional<std::pair<std::uint64_t, Permissions>> translate(F format, TableRoot root, HostMemory& host,
                                                               std::uint64_t input) {
  ImmediateMemoryPort port(host);
  for (const Access access : {Access::Read, Access::Write}) {
    const WalkResult result = walk_tables(format, root, input, access, HostTables{port, AccessKind::Stage2Entry},
                                          Stage::Stage2, WalkTag{}, WalkAids{})
                                  .run();
    if (const auto* leaf = std::get_if<WalkLeaf>(&result)) return std::pair{leaf->address, leaf->allowed};
  }
  return std::nullopt;
}

}  // namespace iommu::test
