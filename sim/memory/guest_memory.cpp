// SPDX-License-Identifier: Apache-2.0
#include "sim/memory/guest_memory.hpp"

namespace iommu {

namespace {
constexpr std::uint64_t kWord = 8;

unsigned shift_of(Gpa address) { return static_cast<unsigned>(address.offset_in(3)) * 8; }
}  // namespace

std::optional<std::uint64_t> GuestMemory::read64(Gpa address) const {
  if (!address.is_aligned(3)) return std::nullopt;
  const auto host = translate(address);
  if (!host || !host_.contains(*host, kWord)) return std::nullopt;
  return host_.read64(*host);
}

bool GuestMemory::write64(Gpa address, std::uint64_t value) {
  if (!address.is_aligned(3)) return false;
  const auto host = translate(address);
  if (!host || !host_.contains(*host, kWord)) return false;
  host_.write64(*host, value);
  return true;
}

bool GuestMemory::write32(Gpa address, std::uint32_t value) {
  if (!address.is_aligned(2)) return false;
  const auto host = translate(address);
  if (!host || !host_.contains(*host, 4)) return false;
  host_.write32(*host, value);
  return true;
}

bool GuestMemory::contains(Gpa address, std::size_t bytes) const {
  if (bytes == 0) return true;
  const std::uint64_t last = address.value() + (bytes - 1);
  if (last < address.value()) return false;
  for (std::uint64_t page = address.value() >> kPageLg2; page <= last >> kPageLg2; ++page)
    if (!frames_.memory_frame(Gfn(page))) return false;
  return true;
}

bool GuestMemory::read(Gpa address, std::span<std::byte> into) const {
  if (!contains(address, into.size())) return false;
  for (std::size_t i = 0; i < into.size(); ++i) {
    const Gpa at = address + Bytes(i);
    const auto word = read64(at.aligned_down(3));
    if (!word) return false;
    into[i] = static_cast<std::byte>(*word >> shift_of(at));
  }
  return true;
}

bool GuestMemory::write(Gpa address, std::span<const std::byte> from) {
  if (!contains(address, from.size())) return false;
  for (std::size_t i = 0; i < from.size(); ++i) {
    const Gpa at = address + Bytes(i);
    const auto word = read64(at.aligned_down(3));
    if (!word) return false;
    const std::uint64_t cleared = *word & ~(0xffULL << shift_of(at));
    write64(at.aligned_down(3), cleared | static_cast<std::uint64_t>(from[i]) << shift_of(at));
  }
  return true;
}

}  // namespace iommu
