// SPDX-License-Identifier: Apache-2.0
// A virtqueue in the hands of its driver: chains as they are meant, and everything that no driver may write.
#include "sim/virtio/device_queue.hpp"

#include <gtest/gtest.h>

#include <functional>

#include "sim/virtio/guest_values.hpp"

namespace iommu::virtio {
namespace {

constexpr std::uint16_t kEntries = 8;
constexpr QueuePlace kPlace{Gpa(0x1000), Gpa(0x2000), Gpa(0x3000), kEntries};
constexpr Gpa kTable{0x4000};
constexpr Gpa kNowhere{0x100000};

// Guest memory is the host's first 64 KiB, frame for frame.
class Frames final : public FrameMap {
 public:
  [[nodiscard]] std::optional<Mfn> memory_frame(Gfn frame) const override {
    return frame.value() < 16 ? std::optional(Mfn(0x100 + frame.value())) : std::nullopt;
  }
};

struct Bench {
  explicit Bench(DeviceQueue::Rules rules = {.indirect = DeviceQueue::Indirect::Allowed}, QueuePlace place = kPlace)
      : queue(memory, place, rules) {}

  template <class T>
  void put(Gpa at, const T& value) {
    EXPECT_TRUE(store(memory, at, value));
  }
  template <class T>
  T get(Gpa at) {
    return load<T>(memory, at).value();
  }
  void describe(std::uint16_t index, const Descriptor& descriptor, Gpa table = kPlace.descriptors) {
    put(table + Bytes(sizeof descriptor * index), descriptor);
  }
  void offer(std::uint16_t head) {
    put(kPlace.available_entry(available++), head);
    put(kPlace.driver + Bytes(kRingIndex), available);
  }
  std::optional<Defect> defect() {
    const auto popped = queue.pop();
    const auto* found = std::get_if<Defect>(&popped);
    return found != nullptr ? std::optional(*found) : std::nullopt;
  }
  std::optional<Chain> chain() {
    const auto popped = queue.pop();
    const auto* found = std::get_if<Chain>(&popped);
    return found != nullptr ? std::optional(*found) : std::nullopt;
  }

  HostMemory host{4_MiB};
  Frames frames;
  GuestMemory memory{host, frames};
  DeviceQueue queue;
  std::uint16_t available = 0;
};

constexpr Descriptor readable(std::uint64_t address, std::uint32_t length, std::optional<std::uint16_t> next = {}) {
  return {address, length, next ? kDescriptorNext : std::uint16_t{0}, next.value_or(0)};
}
constexpr Descriptor writable(std::uint64_t address, std::uint32_t length, std::optional<std::uint16_t> next = {}) {
  Descriptor d = readable(address, length, next);
  d.flags |= kDescriptorWrite;
  return d;
}
constexpr Descriptor indirect(Gpa table, std::uint32_t bytes) { return {table.value(), bytes, kDescriptorIndirect, 0}; }

// Kills: chains out of order, one too many, or one lost when the index wraps.
TEST(VirtioQueue, ChainsComeInTheOrderOfTheRing) {
  Bench b;
  for (std::uint16_t i = 0; i < kEntries; ++i) b.describe(i, readable(0x8000 + i, 1));
  for (std::uint32_t round = 0; round < 3 * 65536 / kEntries; ++round) {
    for (std::uint16_t i = 0; i < kEntries; ++i) b.offer(static_cast<std::uint16_t>((i * 3) % kEntries));
    for (std::uint16_t i = 0; i < kEntries; ++i) {
      const auto chain = b.chain();
      ASSERT_TRUE(chain);
      ASSERT_EQ(chain->head, (i * 3) % kEntries);
      ASSERT_TRUE(b.queue.push_used(chain->head, 7));
    }
    ASSERT_TRUE(std::holds_alternative<DeviceQueue::Empty>(b.queue.pop()));
  }
  EXPECT_EQ(b.get<std::uint16_t>(kPlace.device + Bytes(kRingIndex)), b.available);
  EXPECT_EQ(b.get<UsedElement>(kPlace.used_entry(1)).id, 3U);
  EXPECT_EQ(b.get<UsedElement>(kPlace.used_entry(1)).length, 7U);
}

// Kills: boundaries of buffers taken for boundaries of structures.
TEST(VirtioQueue, BuffersAreOneStretchOfBytes) {
  Bench b;
  b.describe(0, readable(0x8000, 3, 5));
  b.describe(5, readable(0x9ffe, 4, 2));  // over a page boundary
  b.describe(2, writable(0xb000, 1, 7));
  b.describe(7, writable(0xb010, 5));
  b.offer(0);
  const auto chain = b.chain();
  ASSERT_TRUE(chain);
  EXPECT_EQ(bytes_of(chain->readable), 7U);
  EXPECT_EQ(bytes_of(chain->writable), 6U);
  const std::array<std::byte, 7> sent{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4},
                                      std::byte{5}, std::byte{6}, std::byte{7}};
  ASSERT_TRUE(b.memory.write(Gpa(0x8000), std::span(sent).first(3)));
  ASSERT_TRUE(b.memory.write(Gpa(0x9ffe), std::span(sent).last(4)));
  std::array<std::byte, 5> got{};
  ASSERT_TRUE(read_from(b.memory, chain->readable, 1, got));
  EXPECT_TRUE(std::equal(got.begin(), got.end(), sent.begin() + 1));
  EXPECT_FALSE(read_from(b.memory, chain->readable, 3, got)) << "one byte short";
  ASSERT_TRUE(write_to(b.memory, chain->writable, 0, std::span(sent).first(6)));
  EXPECT_EQ(b.get<std::byte>(Gpa(0xb000)), std::byte{1});
  EXPECT_EQ(b.get<std::byte>(Gpa(0xb014)), std::byte{6});
  EXPECT_FALSE(write_to(b.memory, chain->writable, 0, sent));
}

// Kills: half a write that then fails.
TEST(VirtioQueue, AWriteThatCannotBeWholeChangesNothing) {
  Bench b;
  const std::array<Buffer, 2> buffers{Buffer{Gpa(0xb000), 4}, Buffer{kNowhere, 4}};
  const std::array<std::byte, 8> bytes{std::byte{1}, std::byte{1}, std::byte{1}, std::byte{1}};
  EXPECT_FALSE(write_to(b.memory, buffers, 0, bytes));
  EXPECT_EQ(b.get<std::byte>(Gpa(0xb000)), std::byte{0});
  const std::array<Buffer, 1> edge{Buffer{Gpa(0xfffc), 8}};
  EXPECT_FALSE(write_to(b.memory, edge, 0, bytes));
  EXPECT_EQ(b.get<std::byte>(Gpa(0xfffc)), std::byte{0});
  const std::array<Buffer, 1> wraps{Buffer{Gpa(~0ULL - 3), 8}};
  EXPECT_FALSE(write_to(b.memory, wraps, 0, bytes));
}

// [VIRTIO 1.3 §2.7.5.3.2] Kills: the write flag of the table's descriptor taken for the buffers'; normal descriptors
// before it dropped.
TEST(VirtioQueue, AnIndirectTableContinuesTheChain) {
  Bench b;
  b.describe(3, readable(0x8000, 4, 6));
  Descriptor table = indirect(kTable, 3 * sizeof(Descriptor));
  table.flags |= kDescriptorWrite;
  b.describe(6, table);
  b.describe(0, readable(0x8100, 4, 2), kTable);
  b.describe(2, writable(0x8200, 4), kTable);
  b.offer(3);
  const auto chain = b.chain();
  ASSERT_TRUE(chain);
  ASSERT_EQ(chain->readable.size(), 2U);
  EXPECT_EQ(chain->readable[1].address, Gpa(0x8100));
  ASSERT_EQ(chain->writable.size(), 1U);
  EXPECT_EQ(chain->head, 3U);
}

struct Defective {
  const char* name;
  Defect expected;
  void (*spoil)(Bench&);
};
constexpr Defective kDefects[] = {
    {"HeadOutside", Defect::BadIndex, [](Bench& b) { b.offer(kEntries); }},
    {"NextOutside", Defect::BadIndex, [](Bench& b) { b.describe(0, readable(0x8000, 4, kEntries)), b.offer(0); }},
    {"Loop", Defect::TooLong, [](Bench& b) { b.describe(0, readable(0x8000, 4, 0)), b.offer(0); }},
    {"LoopInATable", Defect::TooLong,
     [](Bench& b) {
       b.describe(0, indirect(kTable, 32));
       b.describe(0, readable(0x8000, 4, 1), kTable);
       b.describe(1, readable(0x8000, 4, 0), kTable);
       b.offer(0);
     }},
    {"LongerThanTheQueue", Defect::TooLong,
     [](Bench& b) {
       b.describe(0, indirect(kTable, 9 * sizeof(Descriptor)));
       for (std::uint16_t i = 0; i < 8; ++i)
         b.describe(i, readable(0x8000, 4, static_cast<std::uint16_t>(i + 1)), kTable);
       b.describe(8, readable(0x8000, 4), kTable);
       b.offer(0);
     }},
    {"IndexJump", Defect::IndexJump,
     [](Bench& b) { b.put(kPlace.driver + Bytes(kRingIndex), std::uint16_t{kEntries + 1}); }},
    {"EmptyBuffer", Defect::EmptyBuffer, [](Bench& b) { b.describe(0, readable(0x8000, 0)), b.offer(0); }},
    {"ReadableAfterWritable", Defect::ReadableAfterWritable,
     [](Bench& b) { b.describe(0, writable(0x8000, 4, 1)), b.describe(1, readable(0x8000, 4)), b.offer(0); }},
    {"NestedTables", Defect::BadIndirect,
     [](Bench& b) { b.describe(0, indirect(kTable, 16)), b.describe(0, indirect(kTable, 16), kTable), b.offer(0); }},
    {"TableWithNext", Defect::BadIndirect,
     [](Bench& b) {
       Descriptor d = indirect(kTable, 16);
       d.flags |= kDescriptorNext;
       b.describe(0, d), b.offer(0);
     }},
    {"HalfADescriptor", Defect::BadIndirect, [](Bench& b) { b.describe(0, indirect(kTable, 24)), b.offer(0); }},
    {"EmptyTable", Defect::BadIndirect, [](Bench& b) { b.describe(0, indirect(kTable, 0)), b.offer(0); }},
    {"NextOutsideTheTable", Defect::BadIndex,
     [](Bench& b) { b.describe(0, indirect(kTable, 32)), b.describe(0, readable(0x8000, 4, 2), kTable), b.offer(0); }},
    {"TableOutsideMemory", Defect::OutsideMemory, [](Bench& b) { b.describe(0, indirect(kNowhere, 32)), b.offer(0); }},
};

class VirtioQueueDefects : public testing::TestWithParam<Defective> {};
INSTANTIATE_TEST_SUITE_P(All, VirtioQueueDefects, testing::ValuesIn(kDefects),
                         [](const auto& info) { return std::string(info.param.name); });

// Kills, each by its row: an index, a length or a flag that is believed; a loop that is followed for ever.
TEST_P(VirtioQueueDefects, EndTheQueue) {
  Bench b;
  GetParam().spoil(b);
  EXPECT_EQ(b.defect(), GetParam().expected);
  EXPECT_EQ(b.defect(), GetParam().expected) << "nothing was taken";
}

TEST(VirtioQueue, TablesThatWereNotNegotiatedAreADefect) {
  Bench b({.indirect = DeviceQueue::Indirect::Refused});
  b.describe(0, indirect(kTable, 16));
  b.describe(0, readable(0x8000, 4), kTable);
  b.offer(0);
  EXPECT_EQ(b.defect(), Defect::BadIndirect);
}

// Kills: a ring outside memory read as zeros, or a used entry lost silently.
TEST(VirtioQueue, RingsOutsideMemoryAreADefect) {
  for (int part = 0; part < 3; ++part) {
    QueuePlace place = kPlace;
    (part == 0 ? place.descriptors : part == 1 ? place.driver : place.device) = kNowhere;
    Bench b({}, place);
    b.describe(0, readable(0x8000, 4));
    b.offer(0);
    if (part < 2)
      EXPECT_EQ(b.defect(), Defect::OutsideMemory);
    else
      EXPECT_FALSE(b.queue.push_used(0, 0));
  }
}

// [VIRTIO 1.3 §2.7.7.2] Kills: an event index compared with the wrong side of the step, or without wrapping.
TEST(VirtioQueue, TheDriverIsToldWhereItAskedToBe) {
  Bench b({.suppression = DeviceQueue::Suppression::ByEventIndex});
  EXPECT_FALSE(b.queue.take_notification()) << "nothing was used";
  b.put(kPlace.used_event(), std::uint16_t{1});
  ASSERT_TRUE(b.queue.push_used(0, 0));
  EXPECT_FALSE(b.queue.take_notification());
  ASSERT_TRUE(b.queue.push_used(0, 0));
  EXPECT_TRUE(b.queue.take_notification()) << "entry 1 was written";
  ASSERT_TRUE(b.queue.push_used(0, 0));
  EXPECT_FALSE(b.queue.take_notification());
  b.put(kPlace.used_event(), std::uint16_t{4});
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(b.queue.push_used(0, 0));
  EXPECT_TRUE(b.queue.take_notification()) << "passed on the way";
  EXPECT_TRUE(passes_event(0xffff, 2, 0xfffe));
  EXPECT_FALSE(passes_event(3, 2, 0xfffe));
  ASSERT_TRUE(b.queue.ask_for_notification());
  EXPECT_EQ(b.get<std::uint16_t>(kPlace.available_event()), 0U) << "as far as it has taken";
}

}  // namespace
}  // namespace iommu::virtio
