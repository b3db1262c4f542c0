// SPDX-License-Identifier: Apache-2.0
// Little-endian structures in guest memory; host and guest have the same byte order (guest_memory.cpp asserts it).
#pragma once

#include <optional>
#include <span>
#include <type_traits>

#include "sim/memory/guest_memory.hpp"

namespace iommu::virtio {

template <class T>
[[nodiscard]] std::optional<T> load(const GuestMemory& memory, Gpa from) {
  static_assert(std::is_trivially_copyable_v<T>);
  T value{};
  if (!memory.read(from, std::as_writable_bytes(std::span(&value, 1)))) return std::nullopt;
  return value;
}

template <class T>
[[nodiscard]] bool store(GuestMemory& memory, Gpa to, const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  return memory.write(to, std::as_bytes(std::span(&value, 1)));
}

}  // namespace iommu::virtio
