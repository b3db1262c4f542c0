// SPDX-License-Identifier: Apache-2.0
#include "sim/memory/guest_memory.hpp"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <vector>

#include "sim/base/rng.hpp"

namespace iommu {
namespace {

// Guest pages in reverse order in host memory, every fifth missing.
class Frames final : public FrameMap {
 public:
  static constexpr std::uint64_t kPages = 16;
  [[nodiscard]] std::optional<Mfn> memory_frame(Gfn frame) const override {
    if (frame.value() >= kPages || frame.value() % 5 == 4) return std::nullopt;
    return Mfn(100 - frame.value());
  }
};

bool is_there(std::uint64_t address, std::size_t bytes) {
  if (bytes == 0) return true;
  for (std::uint64_t page = address >> kPageLg2; page <= (address + bytes - 1) >> kPageLg2; ++page)
    if (!Frames().memory_frame(Gfn(page))) return false;
  return true;
}

// Kills: bytes at the wrong place of a word, neighbours overwritten, a range that follows host instead of guest pages,
// and writes of which a part happens.
TEST(GuestMemory, ReadsAndWritesOfAnyRangeAgreeWithAnArrayOfBytes) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  Rng rng(seed);
  HostMemory host(1_MiB);
  const Frames frames;
  GuestMemory guest(host, frames);
  std::map<std::uint64_t, std::byte> expected;
  std::uint64_t refused = 0;
  for (int i = 0; i < 4000; ++i) {
    const std::uint64_t address = rng.below((Frames::kPages + 1) * kPageSize.value());
    const std::size_t bytes = rng.chance(0.1) ? rng.below(3 * kPageSize.value()) : rng.below(40);
    const bool is_memory = is_there(address, bytes);
    std::vector<std::byte> data(bytes);
    if (rng.below(2) == 0) {
      for (std::byte& byte : data) byte = static_cast<std::byte>(rng.next());
      ASSERT_EQ(guest.write(Gpa(address), data), is_memory) << address << " + " << bytes;
      refused += is_memory ? 0 : 1;
      for (std::size_t b = 0; b < bytes && is_memory; ++b) expected[address + b] = data[b];
      continue;
    }
    ASSERT_EQ(guest.read(Gpa(address), data), is_memory) << address << " + " << bytes;
    for (std::size_t b = 0; b < bytes && is_memory; ++b) {
      const auto found = expected.find(address + b);
      ASSERT_EQ(data[b], found == expected.end() ? std::byte{} : found->second) << address << " byte " << b;
    }
  }
  EXPECT_GT(refused, 100U);
}

// Kills: a word written byte by byte, which a watcher of the host word would see half-made.
TEST(GuestMemory, WholeWordBecomesVisibleAtOnce) {
  HostMemory host(1_MiB);
  const Frames frames;
  GuestMemory guest(host, frames);
  const Hpa word = *guest.translate(Gpa(0x1008));
  std::vector<std::uint64_t> seen;
  host.watch(word, [&] { seen.push_back(host.read64(word)); });
  std::array<std::byte, 8> ones{};
  ones.fill(std::byte{0x11});
  ASSERT_TRUE(guest.write(Gpa(0x1008), ones));
  EXPECT_EQ(seen, std::vector<std::uint64_t>{0x1111111111111111});
}

// Kills: an address that wraps around, and an empty range that is refused.
TEST(GuestMemory, RangesAtTheEndOfTheAddressSpaceAreRefused) {
  HostMemory host(1_MiB);
  const Frames frames;
  GuestMemory guest(host, frames);
  std::array<std::byte, 16> data{};
  EXPECT_FALSE(guest.read(Gpa(~0ULL - 7), data));
  EXPECT_FALSE(guest.write(Gpa(~0ULL - 7), data));
  EXPECT_TRUE(guest.read(Gpa(~0ULL), std::span(data).first(0)));
}

}  // namespace
}  // namespace iommu
