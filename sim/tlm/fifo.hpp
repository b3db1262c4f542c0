// SPDX-License-Identifier: Apache-2.0
// A queue that stops allocating once it has grown to its working size.
#pragma once

#include <cstddef>
#include <vector>

#include "sim/base/check.hpp"

namespace iommu {

template <class T>
class Fifo {
 public:
  [[nodiscard]] bool is_empty() const { return size_ == 0; }
  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] T& front() { return items_[head_]; }
  // The i-th oldest.
  [[nodiscard]] T& operator[](std::size_t i) { return items_[(head_ + i) & (items_.size() - 1)]; }
  void push(T item) {
    if (size_ == items_.size()) grow();
    items_[(head_ + size_) & (items_.size() - 1)] = item;
    ++size_;
  }
  T pop() {
    SIM_CHECK(size_ > 0, "pop from an empty queue");
    const T item = items_[head_];
    head_ = (head_ + 1) & (items_.size() - 1);
    --size_;
    return item;
  }
  // The oldest that equals `item`, if there is one; those behind it move up.
  void remove(const T& item) {
    std::size_t i = 0;
    while (i < size_ && !((*this)[i] == item)) ++i;
    if (i == size_) return;
    for (; i + 1 < size_; ++i) (*this)[i] = (*this)[i + 1];
    --size_;
  }
  void clear() { head_ = size_ = 0; }

 private:
  void grow() {
    std::vector<T> larger(items_.empty() ? 16 : 2 * items_.size());
    for (std::size_t i = 0; i < size_; ++i) larger[i] = (*this)[i];
    items_.swap(larger);
    head_ = 0;
  }
  std::vector<T> items_;  // a power of two
  std::size_t head_ = 0;
  std::size_t size_ = 0;
};

}  // namespace iommu
