// SPDX-License-Identifier: Apache-2.0
// Synthetic traffic over a window of addresses that was mapped once.
#pragma once

#include <cstdint>
#include <optional>

#include "sim/base/check.hpp"
#include "sim/pcie/workload.hpp"

namespace iommu {

enum class DmaPattern : std::uint8_t {
  Random,      // uniform over all `access_size`-aligned places
  Sequential,  // one after the other, wrapping
  Strided,     // every `stride` bytes, wrapping with the phase moved on by one access
};

struct RandomDmaParameters {
  Iova base{};
  Bytes window{1 << 20};  // a multiple of access_size
  Bytes access_size{64};  // > 0
  Bytes stride{4096};     // Strided: a multiple of access_size, at most the window
  Access access = Access::Read;
  DmaPattern pattern = DmaPattern::Random;
  std::optional<std::uint64_t> operations{};  // nullopt: endless
  std::uint64_t stray = 0;  // so many accesses apart, one goes beyond the window, where nothing is mapped; 0: none

  // Why the parameters cannot be; null when they can.
  [[nodiscard]] constexpr const char* problem() const {
    if (access_size.value() == 0) return "an access has at least one byte";
    if (window < access_size || window.value() % access_size.value() != 0)
      return "the window is a multiple of the access size";
    if (base.value() + window.value() - 1 < base.value()) return "the window ends past the address space";
    if (pattern == DmaPattern::Strided &&
        (stride.value() == 0 || stride > window || stride.value() % access_size.value() != 0))
      return "the stride is a multiple of the access size and at most the window";
    return nullptr;
  }
};

class RandomDma final : public Workload {
 public:
  explicit RandomDma(const RandomDmaParameters& parameters)
      : parameters_(parameters), places_(parameters.window / parameters.access_size) {
    SIM_CHECK(parameters.problem() == nullptr, "traffic is validated with the scenario");
  }
  std::optional<DmaOperation> next(Rng& rng, Picoseconds /*now*/) override {
    if (parameters_.operations && made_ == *parameters_.operations) return std::nullopt;
    const Bytes offset(place(rng) * parameters_.access_size.value());
    ++made_;
    if (parameters_.stray != 0 && made_ % parameters_.stray == 0)
      return DmaOperation{parameters_.base + parameters_.window + offset, parameters_.access_size, parameters_.access};
    return DmaOperation{parameters_.base + offset, parameters_.access_size, parameters_.access};
  }

 private:
  std::uint64_t place(Rng& rng) {
    if (parameters_.pattern == DmaPattern::Random) return rng.below(places_);
    const std::uint64_t current = position_;
    const std::uint64_t step =
        parameters_.pattern == DmaPattern::Strided ? parameters_.stride / parameters_.access_size : 1;
    position_ += step;
    if (position_ >= places_) {
      phase_ = (phase_ + 1) % step;
      position_ = phase_;
    }
    return current;
  }
  RandomDmaParameters parameters_;
  std::uint64_t places_;
  std::uint64_t made_ = 0;
  std::uint64_t position_ = 0;
  std::uint64_t phase_ = 0;
};

}  // namespace iommu
