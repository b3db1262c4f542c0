// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

namespace iommu::test {

// The bytes of a fuzzer's run, to take choices from; zeros follow them.
class FuzzInput {
 public:
  explicit FuzzInput(std::span<const std::uint8_t> data) : data_(data) {}
  [[nodiscard]] bool empty() const { return data_.empty(); }
  std::uint64_t take(unsigned count) {
    std::uint64_t value = 0;
    for (unsigned i = 0; i < count && !data_.empty(); ++i) {
      value |= std::uint64_t{data_[0]} << 8 * i;
      data_ = data_.subspan(1);
    }
    return value;
  }

 private:
  std::span<const std::uint8_t> data_;
};

}  // namespace iommu::test
