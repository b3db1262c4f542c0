// SPDX-License-Identifier: Apache-2.0
// Properties of page-table editing, over every registered format and depth, against an oracle that knows only
// intervals. A property is a function that returns what went wrong, so that each can be shown to fail on a deliberately
// wrong format or memory (the mutants at the end).
#include "sim/translation/table_editor.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <iterator>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "models/amdvi/format.hpp"
#include "models/vtd/format.hpp"
#include "sim/base/rng.hpp"
#include "sim/translation/table_test_support.hpp"

namespace iommu {
namespace {

using test::PlainFormat;
using test::TableBench;
using testing::HasSubstr;

constexpr std::uint64_t k2M = 2_MiB .value();
constexpr std::uint64_t k1G = 1_GiB .value();

// What is mapped, as intervals of input with a constant distance to their output.
class IntervalOracle {
 public:
  struct Piece {
    std::uint64_t end = 0;
    std::uint64_t offset = 0;  // output - input, modulo 2^64
    Permissions permissions;
    friend bool operator==(const Piece&, const Piece&) = default;
  };
  using Pieces = std::map<std::uint64_t, Piece>;

  // Bytes mapped before the first byte that is mapped already.
  std::uint64_t map(std::uint64_t input, std::uint64_t output, std::uint64_t length, Permissions permissions) {
    const auto next = pieces_.upper_bound(input);
    if (next != pieces_.begin() && std::prev(next)->second.end > input) return 0;
    if (next != pieces_.end()) length = std::min(length, next->first - input);
    if (length > 0) pieces_[input] = {input + length, output - input, permissions};
    return length;
  }
  // Bytes unmapped before the first byte that is not mapped.
  std::uint64_t unmap(std::uint64_t input, std::uint64_t length) {
    std::uint64_t done = 0;
    while (done < length) {
      const std::uint64_t at = input + done;
      auto piece = pieces_.upper_bound(at);
      if (piece == pieces_.begin() || (--piece)->second.end <= at) break;
      const auto [start, old] = *piece;
      const std::uint64_t end = std::min(old.end, input + length);
      pieces_.erase(piece);
      if (start < at) pieces_[start] = {at, old.offset, old.permissions};
      if (end < old.end) pieces_[end] = old;
      done = end - input;
    }
    return done;
  }
  // Neighbours that continue each other are one piece.
  [[nodiscard]] static Pieces merged(const Pieces& pieces) {
    Pieces result;
    for (const auto& [start, piece] : pieces) {
      if (!result.empty()) {
        auto& last = *result.rbegin();
        if (last.second.end == start && last.second.offset == piece.offset &&
            last.second.permissions == piece.permissions) {
          last.second.end = piece.end;
          continue;
        }
      }
      result[start] = piece;
    }
    return result;
  }
  [[nodiscard]] const Pieces& pieces() const { return pieces_; }
  [[nodiscard]] std::optional<std::pair<std::uint64_t, Permissions>> at(std::uint64_t input) const {
    auto piece = pieces_.upper_bound(input);
    if (piece == pieces_.begin() || (--piece)->second.end <= input) return std::nullopt;
    return std::pair{input + piece->second.offset, piece->second.permissions};
  }

 private:
  Pieces pieces_;
};

IntervalOracle::Pieces pieces_of(const PageTable& table) {
  IntervalOracle::Pieces pieces;
  table.for_each_leaf({}, [&](const MappedLeaf& leaf) {
    pieces[leaf.input] = {leaf.input + (1ULL << leaf.page_lg2), leaf.output - leaf.input, leaf.permissions};
  });
  return IntervalOracle::merged(pieces);
}

// Random requests that crowd around the boundaries of every level, so that merging, splitting and stopping happen
// often.
struct RequestSource {
  Rng rng;
  TableGeometry geometry;
  bool write_only = false;
  bool one_gib_pages = false;

  std::uint64_t input() {
    const unsigned high = geometry.input_bits;
    const std::array<std::uint64_t, 5> centres{k2M, k1G, 1ULL << std::min(39U, high - 1), (1ULL << high) - k1G,
                                               (1ULL << high) - k2M};
    const std::uint64_t centre = centres[rng.below(centres.size())];
    const std::uint64_t page = rng.below(4) == 0 ? k2M : kPageSize.value();
    return (centre + rng.below(5) * page - 2 * page) & ((1ULL << high) - 1) & ~(page - 1);
  }
  std::uint64_t length() {
    constexpr std::array<std::uint64_t, 3> kUnits{kPageSize.value(), kPageSize.value() * 509, k2M};
    return (1 + rng.below(4)) * kUnits[rng.below(kUnits.size())];
  }
  MapRequest map() {
    MapRequest request;
    request.input = input();
    request.length = Bytes(length());
    // Half of the time output and input are congruent, so that larger pages are possible.
    request.output = (rng.below(64) * k1G) + (rng.chance(0.5) ? request.input & (k1G - 1) : rng.below(4) << kPageLg2);
    const std::uint64_t choice = rng.below(write_only ? 3 : 2);
    request.permissions = choice == 0 ? kReadWrite : choice == 1 ? kReadOnly : kWriteOnly;
    constexpr std::array kLargest{12U, 21U, 30U};
    request.max_page_lg2 = kLargest[rng.below(kLargest.size())];
    // A gigabyte only where it is one page, or the test would take minutes.
    if (one_gib_pages && rng.chance(0.2)) {
      request.input &= ~(k1G - 1);
      request.output &= ~(k1G - 1);
      request.length = Bytes(k1G);
      request.max_page_lg2 = 30;
    }
    request.coalesce = rng.chance(0.5) ? Coalesce::Yes : Coalesce::No;
    return request;
  }
};

template <PageFormat F>
bool has_write_only(F format) {
  return format.decode(format.make_leaf(0, 0, kWriteOnly), 0, 0, Access::Read).kind == EntryKind::Denied;
}

std::string at_seed(std::uint64_t seed, const std::string& what) {
  return what + " (seed " + std::to_string(seed) + ")";
}

// Property: after any sequence of edits the table maps what the oracle says, counts what it did, and holds exactly the
// memory that it says it holds.
template <PageFormat F>
std::string random_edits_agree(F format, TableGeometry geometry, std::uint64_t seed) {
  TableBench bench;
  const auto table = TableEditor<F>::create(format, geometry, bench.memory);
  RequestSource source{Rng(seed), geometry, has_write_only(format), format.can_be_leaf(2)};
  IntervalOracle oracle;
  const std::uint64_t limit = 1ULL << geometry.input_bits;
  for (int step = 0; step < 120; ++step) {
    TableEdit edit;
    std::uint64_t expected = 0;
    std::uint64_t wanted = 0;
    if (source.rng.chance(0.6)) {
      const MapRequest request = source.map();
      wanted = request.length.value();
      edit = table->map(request);
      expected =
          oracle.map(request.input, request.output, std::min(wanted, limit - request.input), request.permissions);
    } else {
      const std::uint64_t input = source.input();
      wanted = source.length();
      const auto reclaim = source.rng.chance(0.5) ? ReclaimTables::WhenCovered : ReclaimTables::WhenEmpty;
      edit = table->unmap(input, Bytes(wanted), reclaim);
      expected = oracle.unmap(input, std::min(wanted, limit - input));
    }
    bench.release(edit.freed_tables);
    if (edit.pages_done != expected >> kPageLg2) return at_seed(seed, "pages_done differs from the oracle");
    if ((edit.status == EditStatus::Ok) != (expected == wanted)) return at_seed(seed, "status differs from the oracle");
    if (edit.entries_written == 0 && expected > 0) return at_seed(seed, "an edit without a write");
    if (bench.memory.in_use.size() != table->table_pages()) return at_seed(seed, "a table page leaked or went twice");
    if (pieces_of(*table) != IntervalOracle::merged(oracle.pieces())) return at_seed(seed, "leaves differ");
    const std::uint64_t probe = source.input();
    if (test::translate(format, table->root(), bench.host, probe) != oracle.at(probe))
      return at_seed(seed, "the hardware walker disagrees");
  }
  const auto all = table->detach_all_tables();
  if (std::set(all.begin(), all.end()) != bench.memory.in_use)
    return at_seed(seed, "detached tables are not all tables");
  return {};
}

// Property: hardware that walks between any two writes of an edit sees, for each page, the state before or after the
// edit.
template <PageFormat F>
std::string every_write_is_hitless(F format, TableGeometry geometry, std::uint64_t seed, TableBench& bench,
                                   TableMemory& memory) {
  const auto table = TableEditor<F>::create(format, geometry, memory);
  RequestSource source{Rng(seed), geometry, has_write_only(format), format.can_be_leaf(2)};
  std::vector<std::uint64_t> probes;
  using Seen = std::vector<std::optional<std::pair<std::uint64_t, Permissions>>>;
  const auto look = [&] {
    Seen seen;
    for (const std::uint64_t probe : probes) seen.push_back(test::translate(format, table->root(), bench.host, probe));
    return seen;
  };
  int splits = 0;
  for (int step = 0; step < 100; ++step) {
    MapRequest request = source.map();
    const bool maps = source.rng.chance(0.5);
    if (!maps) request.length = std::min(request.length, 4_MiB);
    probes.clear();
    const std::uint64_t last = request.input + request.length.value() - kPageSize.value();
    for (const std::uint64_t edge : {request.input, last, request.input & ~(k2M - 1), request.input & ~(k1G - 1)})
      for (int i = -2; i <= 2; ++i) {
        const std::uint64_t probe = edge + static_cast<std::uint64_t>(i) * kPageSize.value();
        if (probe >> geometry.input_bits == 0) probes.push_back(probe);
      }
    const Seen before = look();
    std::vector<Seen> during;
    // Writes to tables that hardware knew before matter most; of them, and of the others, some of many.
    const std::set<std::uint64_t> old_tables = bench.memory.in_use;
    std::array<int, 2> writes{};
    bench.memory.on_write = [&](std::uint64_t address) {
      int& count = writes.at(old_tables.contains(address & ~(kPageSize.value() - 1)) ? 1 : 0);
      if (++count < 24 || count % 61 == 0) during.push_back(look());
    };
    TableEdit edit = maps ? table->map(request) : table->unmap(request.input, request.length, ReclaimTables::WhenEmpty);
    bench.memory.on_write = nullptr;
    if (!maps && edit.tables_allocated > 0) ++splits;
    const Seen after = look();
    for (const Seen& seen : during)
      for (std::size_t i = 0; i < probes.size(); ++i)
        if (seen[i] != before[i] && seen[i] != after[i]) return at_seed(seed, "a write showed hardware a third state");
    bench.release(edit.freed_tables);
  }
  if (splits == 0 && format.can_be_leaf(1)) return at_seed(seed, "no large page was ever split: the test is vacuous");
  return {};
}

// Property: wherever memory runs out, the edit stops with NoMemory, what was mapped before still is, and no page leaks.
template <PageFormat F>
std::string running_out_of_memory_is_harmless(F format, TableGeometry geometry, TableMemory& memory,
                                              TableBench& bench) {
  const Permissions rw = kReadWrite;
  for (std::uint64_t allowed = 0; allowed < 24; ++allowed) {
    bench.memory.allocations_left.reset();
    const auto table = TableEditor<F>::create(format, geometry, memory);
    const bool large = format.can_be_leaf(2);
    const std::uint64_t block = large ? k1G : k2M;
    IntervalOracle oracle;
    table->map({.input = 0, .output = 0, .length = Bytes(block), .permissions = rw, .max_page_lg2 = 30});
    oracle.map(0, 0, block, rw);
    bench.memory.allocations_left = allowed;
    bool ran_out = false;
    for (std::uint64_t i = 0; i < 4; ++i) {
      const std::uint64_t input = block + i * (k1G + k2M);
      const TableEdit edit = table->map({.input = input, .output = k1G, .length = 12_KiB, .permissions = rw});
      oracle.map(input, k1G, edit.pages_done << kPageLg2, rw);
      ran_out |= edit.status == EditStatus::NoMemory;
    }
    const TableEdit split = table->unmap(kPageSize.value() * 3, 4_KiB, ReclaimTables::WhenEmpty);
    oracle.unmap(kPageSize.value() * 3, split.pages_done << kPageLg2);
    if (split.status == EditStatus::NoMemory && split.entries_written != 0) return "a failed split wrote entries";
    ran_out |= split.status == EditStatus::NoMemory;
    if (pieces_of(*table) != IntervalOracle::merged(oracle.pieces())) return "translations changed when memory ran out";
    if (bench.memory.in_use.size() != table->table_pages()) return "a table page leaked when memory ran out";
    bench.memory.allocations_left.reset();
    bench.release(table->detach_all_tables());
    if (!ran_out) return {};
  }
  return "memory never sufficed";
}

// Every format in every depth. ----------------------------------------------------------------------------------------

struct Plain4 {
  static PlainFormat format() { return {}; }
  static TableGeometry geometry() { return {.top_level = 3, .input_bits = 48, .root_pages_lg2 = 0}; }
};
struct Plain4Kib {
  static PlainFormat format() { return {.max_leaf = 0}; }
  static TableGeometry geometry() { return {.top_level = 2, .input_bits = 39, .root_pages_lg2 = 0}; }
};
// Two concatenated root tables.
struct PlainConcatenated {
  struct Format : PlainFormat {
    [[nodiscard]] std::uint64_t entry_offset(Level level, std::uint64_t input) const {
      return (input >> span_lg2(level) & (level == 2 ? 1023 : 511)) * 8;
    }
  };
  static Format format() { return {}; }
  static TableGeometry geometry() { return {.top_level = 2, .input_bits = 40, .root_pages_lg2 = 1}; }
};
template <unsigned kLevels>
struct VtdSecondStage {
  static vtd::SecondStageFormat format() { return vtd::SecondStageFormat({.host_address_bits = 46, .large_pages = 3}); }
  static TableGeometry geometry() {
    return {.top_level = kLevels - 1, .input_bits = 12 + 9 * kLevels, .root_pages_lg2 = 0};
  }
};
struct VtdSecondStageSmallPages {
  static vtd::SecondStageFormat format() { return vtd::SecondStageFormat({.host_address_bits = 46}); }
  static TableGeometry geometry() { return {.top_level = 3, .input_bits = 48, .root_pages_lg2 = 0}; }
};
template <unsigned kLevels>
struct VtdFirstStage {
  static vtd::FirstStageFormat format() {
    return vtd::FirstStageFormat({.host_address_bits = 46, .one_gib_pages = kLevels == 5});
  }
  // The lower half of the canonical addresses.
  static TableGeometry geometry() {
    return {.top_level = kLevels - 1, .input_bits = 11 + 9 * kLevels, .root_pages_lg2 = 0};
  }
};
template <unsigned kLevels>
struct AmdViHost {
  static amdvi::HostFormat format() { return amdvi::HostFormat({.output_bits = 46}); }
  static TableGeometry geometry() {
    return {.top_level = kLevels - 1, .input_bits = 12 + 9 * kLevels, .root_pages_lg2 = 0};
  }
};
struct AmdViHostSmallPages {
  static amdvi::HostFormat format() { return amdvi::HostFormat({.output_bits = 46, .large_pages = false}); }
  static TableGeometry geometry() { return {.top_level = 3, .input_bits = 48, .root_pages_lg2 = 0}; }
};
template <unsigned kLevels>
struct AmdViGuest {
  static amdvi::GuestFormat format() { return amdvi::GuestFormat({.host_address_bits = 46}); }
  // The lower half of the canonical addresses.
  static TableGeometry geometry() {
    return {.top_level = kLevels - 1, .input_bits = 11 + 9 * kLevels, .root_pages_lg2 = 0};
  }
};

template <class Case>
class TableEditing : public testing::Test {
 protected:
  TableBench bench;
  auto create() {
    using Format = decltype(Case::format());
    return TableEditor<Format>::create(Case::format(), Case::geometry(), bench.memory);
  }
};
using Cases =
    testing::Types<Plain4, Plain4Kib, PlainConcatenated, VtdSecondStage<3>, VtdSecondStage<4>, VtdSecondStage<5>,
                   VtdSecondStageSmallPages, VtdFirstStage<4>, VtdFirstStage<5>, AmdViHost<3>, AmdViHost<4>,
                   AmdViHost<5>, AmdViHostSmallPages, AmdViGuest<4>, AmdViGuest<5>>;
TYPED_TEST_SUITE(TableEditing, Cases);

TYPED_TEST(TableEditing, AgreesWithAnIntervalOracle) {
  for (std::uint64_t seed = 1; seed <= 3; ++seed)
    EXPECT_EQ(random_edits_agree(TypeParam::format(), TypeParam::geometry(), seed), "");
}
TYPED_TEST(TableEditing, AgreesWithAnIntervalOracleOnAFreshSeed) {
  const std::uint64_t seed = std::random_device{}();
  EXPECT_EQ(random_edits_agree(TypeParam::format(), TypeParam::geometry(), seed), "");
}
TYPED_TEST(TableEditing, NeverShowsHardwareAThirdState) {
  for (std::uint64_t seed = 1; seed <= 2; ++seed) {
    TableBench bench;
    EXPECT_EQ(every_write_is_hitless(TypeParam::format(), TypeParam::geometry(), seed, bench, bench.memory), "");
  }
}
TYPED_TEST(TableEditing, RunningOutOfMemoryAnywhereIsHarmless) {
  EXPECT_EQ(
      running_out_of_memory_is_harmless(TypeParam::format(), TypeParam::geometry(), this->bench.memory, this->bench),
      "");
}

// Kills: an editor that forgets a level, or a format whose can_be_leaf and make_leaf disagree.
TYPED_TEST(TableEditing, MapsEveryPageSizeAtTheFirstAndTheLastAddress) {
  const auto format = TypeParam::format();
  for (Level level = 0; level <= 2; ++level) {
    if (!format.can_be_leaf(level)) continue;
    const auto table = this->create();
    const unsigned lg2 = format.span_lg2(level);
    const std::uint64_t size = 1ULL << lg2;
    const std::uint64_t top = (1ULL << TypeParam::geometry().input_bits) - size;
    for (const std::uint64_t input : {std::uint64_t{0}, top}) {
      const TableEdit edit =
          table->map({.input = input, .output = 8 * k1G, .length = Bytes(size), .max_page_lg2 = lg2});
      EXPECT_EQ(edit.status, EditStatus::Ok);
      EXPECT_EQ(edit.pages_done, size >> kPageLg2);
      EXPECT_EQ(table->lookup(input + size - 1),
                (MappedLeaf{input, 8 * k1G, static_cast<std::uint8_t>(lg2), kReadWrite}));
      EXPECT_EQ(test::translate(format, table->root(), this->bench.host, input + size - 4)->first, 8 * k1G + size - 4);
    }
    EXPECT_FALSE(table->lookup(size));
    EXPECT_FALSE(table->lookup(top - 1));
  }
}

// [xen/drivers/passthrough/vtd/iommu.c: contiguity markers]. Kills: an editor that merges on count alone (the
// permissions or the output do not follow on), and one that merges only in ascending order.
TYPED_TEST(TableEditing, MergesFiveHundredAndTwelvePagesInAnyOrder) {
  if (!TypeParam::format().can_be_leaf(1)) GTEST_SKIP() << "no larger pages in this format";
  std::vector<std::uint64_t> order(512);
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), Rng(7));
  const auto table = this->create();
  TableEdit all;
  for (const std::uint64_t i : order)
    all.merge(table->map({.input = k1G + (i << kPageLg2), .output = k2M + (i << kPageLg2), .coalesce = Coalesce::Yes}));
  EXPECT_EQ(all.pages_done, 512U);
  EXPECT_TRUE(all.structure_changed && all.modified && all.added);
  EXPECT_EQ(all.freed_tables.size(), 1U);
  EXPECT_EQ(table->lookup(k1G), (MappedLeaf{k1G, k2M, 21, kReadWrite}));
}
TYPED_TEST(TableEditing, DoesNotMergeWhatIsNotOneLargerPage) {
  const auto table = this->create();
  const auto page = [&](std::uint64_t base, std::uint64_t i, std::uint64_t output, Permissions permissions) {
    return table->map({.input = base + (i << kPageLg2),
                       .output = output + (i << kPageLg2),
                       .permissions = permissions,
                       .coalesce = Coalesce::Yes});
  };
  TableEdit all;
  for (std::uint64_t i = 0; i < 512; ++i) {
    all.merge(page(0, i, k2M, i == 300 ? kReadOnly : kReadWrite));          // one page differs in rights
    all.merge(page(k2M, i, k2M + kPageSize.value(), kReadWrite));           // output not aligned
    all.merge(page(2 * k2M, i, i == 511 ? 8 * k2M : 4 * k2M, kReadWrite));  // the last page does not follow on
  }
  EXPECT_EQ(all.pages_done, 3 * 512U);
  EXPECT_TRUE(all.freed_tables.empty());
  EXPECT_FALSE(all.modified);
}

// interfaces §6, behaviours 71 and 72. Kills: an editor that links the new table before it is full.
TYPED_TEST(TableEditing, UnmappingInsideALargePageKeepsItsNeighbours) {
  const auto format = TypeParam::format();
  const Level level = format.can_be_leaf(2) ? 2 : format.can_be_leaf(1) ? 1 : 0;
  if (level == 0) GTEST_SKIP() << "no larger pages in this format";
  const auto table = this->create();
  const std::uint64_t size = 1ULL << format.span_lg2(level);
  table->map({.input = size, .output = 4 * size, .length = Bytes(size), .permissions = kReadOnly, .max_page_lg2 = 30});
  const std::uint64_t hole = size + 5 * kPageSize.value();
  const TableEdit edit = table->unmap(hole, 4_KiB, ReclaimTables::WhenEmpty);
  EXPECT_EQ(edit.status, EditStatus::Ok);
  EXPECT_EQ(edit.tables_allocated, level);
  EXPECT_EQ(edit.entries_written, 512U * level + 2);
  EXPECT_TRUE(edit.modified && edit.structure_changed);
  EXPECT_FALSE(test::translate(format, table->root(), this->bench.host, hole));
  for (const std::uint64_t near : {hole - 1, hole + kPageSize.value(), size, 2 * size - 1}) {
    const auto seen = test::translate(format, table->root(), this->bench.host, near);
    ASSERT_TRUE(seen);
    EXPECT_EQ(*seen, (std::pair{near + 3 * size, kReadOnly}));
  }
}

// Kills: an editor that frees tables page by page although the driver modelled does not, and the reverse.
TYPED_TEST(TableEditing, TablesGoAsTheReclaimPolicySays) {
  for (const auto reclaim : {ReclaimTables::WhenCovered, ReclaimTables::WhenEmpty}) {
    const auto table = this->create();
    table->map({.input = k2M, .output = k2M, .length = Bytes(k2M)});
    const std::uint64_t with_leaves = table->table_pages();
    const TableEdit half = table->unmap(k2M, 1_MiB, reclaim);
    EXPECT_TRUE(half.freed_tables.empty());
    const TableEdit rest = table->unmap(k2M + 1_MiB .value(), 1_MiB, reclaim);
    EXPECT_EQ(rest.structure_changed, reclaim == ReclaimTables::WhenEmpty);
    EXPECT_EQ(table->table_pages(),
              reclaim == ReclaimTables::WhenEmpty ? 1ULL << TypeParam::geometry().root_pages_lg2 : with_leaves);
  }
}
TYPED_TEST(TableEditing, OneCallThatCoversATableTakesItAwayByOneWrite) {
  const auto table = this->create();
  table->map({.input = k2M, .output = k2M, .length = Bytes(k2M)});
  table->map({.input = 2 * k2M, .output = 0});
  const TableEdit edit = table->unmap(k2M, Bytes(k2M), ReclaimTables::WhenCovered);
  EXPECT_EQ(edit.pages_done, 512U);
  EXPECT_EQ(edit.entries_written, 1U);
  EXPECT_EQ(edit.freed_tables.size(), 1U);
  EXPECT_TRUE(edit.structure_changed && edit.modified);
  EXPECT_FALSE(table->lookup(k2M));
  EXPECT_TRUE(table->lookup(2 * k2M));
}
// Linux leaves emptied tables behind; a larger page then replaces them. Kills: an editor that forgets to free them, or
// that does not say that walk caches point to them.
TYPED_TEST(TableEditing, ALargePageReplacesAnEmptiedTable) {
  if (!TypeParam::format().can_be_leaf(1)) GTEST_SKIP() << "no larger pages in this format";
  const auto table = this->create();
  table->map({.input = k1G, .output = k2M});
  table->unmap(k1G, 4_KiB, ReclaimTables::WhenCovered);
  const TableEdit edit = table->map({.input = k1G, .output = k2M, .length = Bytes(k2M), .max_page_lg2 = 21});
  EXPECT_EQ(edit.status, EditStatus::Ok);
  EXPECT_EQ(edit.entries_written, 1U);
  EXPECT_EQ(edit.freed_tables.size(), 1U);
  EXPECT_TRUE(edit.structure_changed && edit.modified && edit.added);
  EXPECT_EQ(table->lookup(k1G)->page_lg2, 21);
}

// The caller charges CPU time per entry, line and table. Kills: a counter that counts pages instead.
TYPED_TEST(TableEditing, CountsEntriesLinesAndTables) {
  const auto table = this->create();
  const unsigned levels = TypeParam::geometry().top_level + 1U;
  const TableEdit first = table->map({.input = k1G, .output = 0});
  EXPECT_EQ(first.tables_allocated, levels - 1);
  EXPECT_EQ(first.entries_written, levels);
  EXPECT_EQ(first.lines_touched, 64 * (levels - 1) + 1);
  const TableEdit line = table->map({.input = k1G + 8 * kPageSize.value(), .output = 0, .length = 32_KiB});
  EXPECT_EQ(line.entries_written, 8U);
  EXPECT_EQ(line.lines_touched, 1U);
  const TableEdit two = table->unmap(k1G + 15 * kPageSize.value(), 4_KiB, ReclaimTables::WhenCovered);
  EXPECT_EQ(two.lines_touched, 1U);
  EXPECT_TRUE(two.modified && !two.added && !two.structure_changed);
}

// Everything a guest can ask for is answered. Kills: an editor that masks an address to its width.
TYPED_TEST(TableEditing, RefusesWhatItCannotStore) {
  const auto table = this->create();
  const std::uint64_t limit = 1ULL << TypeParam::geometry().input_bits;
  EXPECT_EQ(table->map({.input = limit, .output = 0}).status, EditStatus::OutOfRange);
  EXPECT_EQ(table->map({.input = ~0ULL << kPageLg2, .output = 0, .length = 8_KiB}).status, EditStatus::OutOfRange);
  EXPECT_EQ(table->map({.input = 0, .output = 1ULL << 46}).status, EditStatus::OutOfRange);
  EXPECT_EQ(table->map({.input = 0, .output = 1ULL << 62}).status, EditStatus::OutOfRange);
  EXPECT_EQ(table->map({.input = 0, .output = 0, .permissions = {}}).status, EditStatus::OutOfRange);
  EXPECT_EQ(table->map({.input = 1, .output = 0}).status, EditStatus::OutOfRange);
  EXPECT_EQ(table->map({.input = 0, .output = 0, .length = 100_B}).status, EditStatus::OutOfRange);
  EXPECT_EQ(table->unmap(limit, 4_KiB, ReclaimTables::WhenEmpty).status, EditStatus::OutOfRange);
  EXPECT_EQ(table->unmap(0, 4_KiB, ReclaimTables::WhenEmpty).status, EditStatus::NotMapped);
  EXPECT_EQ(table->map({.input = 0, .output = 0, .length = 0_B}).status, EditStatus::Ok);
  EXPECT_EQ(table->table_pages(), 1ULL << TypeParam::geometry().root_pages_lg2);
  const TableEdit clipped = table->map({.input = limit - kPageSize.value(), .output = 0, .length = 8_KiB});
  EXPECT_EQ(clipped.status, EditStatus::OutOfRange);
  EXPECT_EQ(clipped.pages_done, 1U);
  EXPECT_FALSE(table->lookup(limit));
}

// A hypervisor reads a guest's tables through a view. Kills: a view that allocates or that counts foreign pages as its
// own.
TYPED_TEST(TableEditing, AViewReadsWhatAnotherEditorWrote) {
  using Format = decltype(TypeParam::format());
  const auto table = this->create();
  table->map({.input = k2M, .output = k1G, .length = Bytes(3 * k2M), .max_page_lg2 = 21});
  this->bench.memory.allocations_left = 0;
  const auto view =
      TableEditor<Format>::view(TypeParam::format(), table->root(), TypeParam::geometry(), this->bench.memory);
  EXPECT_EQ(pieces_of(*view), pieces_of(*table));
  EXPECT_EQ(view->lookup(k2M), table->lookup(k2M));
  EXPECT_EQ(view->table_pages(), 0U);
  EXPECT_EQ(view->unmap(k2M, Bytes(k2M), ReclaimTables::WhenEmpty).status, EditStatus::Ok);
  EXPECT_FALSE(table->lookup(k2M));
  EXPECT_TRUE(view->detach_all_tables().empty());
}

// What a hostile guest can write: a root whose entries all point to itself. Kills: a scan without a bound.
TEST(TableScan, StopsAtItsBoundInATableThatContainsItself) {
  TableBench bench;
  const auto table = TableEditor<PlainFormat>::create({}, Plain4::geometry(), bench.memory);
  for (std::uint64_t i = 0; i < 512; ++i)
    bench.memory.write64(table->root().address + 8 * i, PlainFormat{}.make_table(table->root().address, 3));
  std::uint64_t leaves = 0;
  const LeafScan first = table->scan_leaves({}, 1000, [&](const MappedLeaf&) { ++leaves; });
  EXPECT_LE(first.entries_read, 1000U);
  ASSERT_TRUE(first.resume_at);
  const LeafScan second =
      table->scan_leaves({.first = *first.resume_at, .last = ~0ULL}, 1000, [](const MappedLeaf&) {});
  ASSERT_TRUE(second.resume_at);
  EXPECT_GT(*second.resume_at, *first.resume_at);
}
// Kills: a scan that reads a table entry again for each of its leaves.
TEST(TableScan, ReadsEachEntryOnce) {
  TableBench bench;
  const auto table = TableEditor<PlainFormat>::create({}, Plain4::geometry(), bench.memory);
  table->map({.input = k1G, .output = 0, .length = Bytes(k2M + 8192)});
  std::uint64_t leaves = 0;
  const std::uint64_t reads =
      table->for_each_leaf({.first = k1G, .last = k1G + 2 * k2M - 1}, [&](const MappedLeaf&) { ++leaves; });
  EXPECT_EQ(leaves, 514U);
  EXPECT_EQ(reads, 1U + 1 + 2 + 2 * 512);
}
// The rights of a page are those of its whole path, as hardware intersects them.
TEST(TableScan, IntersectsTheRightsOfThePath) {
  TableBench bench;
  const auto table = TableEditor<PlainFormat>::create({}, Plain4::geometry(), bench.memory);
  table->map({.input = 0, .output = 0});
  const std::uint64_t root = table->root().address;
  bench.memory.write64(root, with<test::kPlainEntry, "W">(bench.memory.read64(root), 0));
  EXPECT_EQ(table->lookup(0)->permissions, kReadOnly);
}

// Mutants: each property above must fail on something wrong. ----------------------------------------------------------

// Two inputs share an entry.
struct AliasingFormat : PlainFormat {
  [[nodiscard]] std::uint64_t entry_offset(Level level, std::uint64_t input) const {
    return (input >> span_lg2(level) & 255) * 8;
  }
};
// Read-only leaves can be written.
struct GenerousFormat : PlainFormat {
  [[nodiscard]] std::uint64_t make_leaf(std::uint64_t address, Level level, Permissions) const {
    return PlainFormat::make_leaf(address, level, kReadWrite);
  }
};
// A 2 MiB leaf decodes as a 4 KiB page.
struct ShortPageFormat : PlainFormat {
  [[nodiscard]] DecodedEntry decode(std::uint64_t entry, Level level, std::uint64_t input, Access access) const {
    DecodedEntry d = PlainFormat::decode(entry, level, input, access);
    d.page_lg2 = kPageLg2;
    return d;
  }
};
TEST(TableEditingMutant, WrongFormatsFailTheOracle) {
  EXPECT_NE(random_edits_agree(AliasingFormat{}, Plain4::geometry(), 1), "");
  EXPECT_NE(random_edits_agree(GenerousFormat{}, Plain4::geometry(), 1), "");
  EXPECT_NE(random_edits_agree(ShortPageFormat{}, Plain4::geometry(), 1), "");
}

// Memory in which the contents of a new table arrive after the write that links it: what an editor that links first
// would do.
class LinkFirstMemory final : public TableMemory {
 public:
  explicit LinkFirstMemory(TableMemory& memory) : memory_(memory) {}
  std::uint64_t read64(std::uint64_t address) override {
    const auto held = held_.find(address);
    return held != held_.end() ? held->second : memory_.read64(address);
  }
  void write64(std::uint64_t address, std::uint64_t value) override {
    if (fresh_.contains(address & ~(kPageSize.value() - 1))) {
      held_[address] = value;
      return;
    }
    memory_.write64(address, value);
    fresh_.clear();
    for (const auto& [late, contents] : std::exchange(held_, {})) memory_.write64(late, contents);
  }
  std::optional<std::uint64_t> allocate(unsigned pages_lg2) override {
    const auto page = memory_.allocate(pages_lg2);
    if (page && has_root_) fresh_.insert(*page);
    has_root_ = true;
    return page;
  }
  void release(std::uint64_t address, unsigned pages_lg2) override { memory_.release(address, pages_lg2); }

 private:
  TableMemory& memory_;
  bool has_root_ = false;
  std::set<std::uint64_t> fresh_;
  std::map<std::uint64_t, std::uint64_t> held_;
};
TEST(TableEditingMutant, LinkingBeforeFillingFailsTheHitlessProperty) {
  TableBench bench;
  LinkFirstMemory link_first(bench.memory);
  EXPECT_THAT(every_write_is_hitless(PlainFormat{}, Plain4::geometry(), 1, bench, link_first),
              HasSubstr("third state"));
}

// Memory that keeps what it is given back: the leak of an editor that drops an allocation on failure.
class HoardingMemory final : public TableMemory {
 public:
  explicit HoardingMemory(TableMemory& memory) : memory_(memory) {}
  std::uint64_t read64(std::uint64_t address) override { return memory_.read64(address); }
  void write64(std::uint64_t address, std::uint64_t value) override { memory_.write64(address, value); }
  std::optional<std::uint64_t> allocate(unsigned pages_lg2) override { return memory_.allocate(pages_lg2); }
  void release(std::uint64_t, unsigned) override {}

 private:
  TableMemory& memory_;
};
TEST(TableEditingMutant, LeakingOnFailureFailsTheMemoryProperty) {
  TableBench bench;
  HoardingMemory hoarding(bench.memory);
  EXPECT_THAT(running_out_of_memory_is_harmless(PlainFormat{}, Plain4::geometry(), hoarding, bench),
              HasSubstr("leaked"));
}

}  // namespace
}  // namespace iommu
