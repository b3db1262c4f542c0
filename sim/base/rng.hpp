// SPDX-License-Identifier: Apache-2.0
// Random numbers by named stream: every consumer draws from its own stream, so that adding one does not shift another's
// numbers. xoshiro256** seeded through splitmix64 (public domain algorithms by D. Blackman and S. Vigna).
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <string_view>

namespace iommu {

class Rng {
 public:
  // `stream` names the consumer, e.g. "nic0.workload".
  explicit constexpr Rng(std::uint64_t seed, std::string_view stream = {}) {
    std::uint64_t x = seed;
    for (const char c : stream) x = (x ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;  // FNV-1a step
    for (auto& word : state_) word = splitmix(x);
  }

  constexpr std::uint64_t next() {
    const std::uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
    const std::uint64_t t = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= t;
    state_[3] = std::rotl(state_[3], 45);
    return result;
  }
  // Uniform in [0, bound); bound > 0. Lemire's multiply-shift: its bias is below 2^-64 * bound.
  constexpr std::uint64_t below(std::uint64_t bound) {
    return static_cast<std::uint64_t>(static_cast<unsigned __int128>(next()) * bound >> 64);
  }
  constexpr bool chance(double probability) { return static_cast<double>(next() >> 11) * 0x1p-53 < probability; }

  // UniformRandomBitGenerator, for std::shuffle and the distributions of <random> in tests.
  using result_type = std::uint64_t;
  static constexpr result_type min() { return 0; }
  static constexpr result_type max() { return ~0ULL; }
  constexpr result_type operator()() { return next(); }

 private:
  static constexpr std::uint64_t splitmix(std::uint64_t& x) {
    std::uint64_t z = (x += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }
  std::array<std::uint64_t, 4> state_{};
};

}  // namespace iommu
