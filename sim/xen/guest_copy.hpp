// SPDX-License-Identifier: Apache-2.0
// Structures of hypercalls, in guest memory. False: an address is not the guest's memory.
#pragma once

#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "sim/memory/guest_memory.hpp"

namespace iommu::xen {

template <class T>
bool copy_in(const GuestMemory& memory, Gpa from, T& into) {
  static_assert(std::is_trivially_copyable_v<T>);
  return memory.read(from, std::as_writable_bytes(std::span(&into, 1)));
}
template <class T>
bool copy_out(GuestMemory& memory, Gpa to, const T& from) {
  static_assert(std::is_trivially_copyable_v<T>);
  return memory.write(to, std::as_bytes(std::span(&from, 1)));
}
template <class T>
bool copy_in(const GuestMemory& memory, Gpa from, std::vector<T>& into) {
  static_assert(std::is_trivially_copyable_v<T>);
  return memory.read(from, std::as_writable_bytes(std::span(into)));
}

}  // namespace iommu::xen
