// SPDX-License-Identifier: Apache-2.0
#include "sim/memory/guest_memory.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

namespace iommu {

namespace {
constexpr std::uint64_t kWord = 8;
using WordBytes = std::array<std::byte, kWord>;
static_assert(std::endian::native == std::endian::little, "guest memory is little-endian, and so is the host");
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
  note_store(address, Bytes(kWord));
  return true;
}

bool GuestMemory::write32(Gpa address, std::uint32_t value) {
  if (!address.is_aligned(2)) return false;
  const auto host = translate(address);
  if (!host || !host_.contains(*host, 4)) return false;
  host_.write32(*host, value);
  note_store(address, 4_B);
  return true;
}

void GuestMemory::clear_page(Gfn frame) {
  const auto host = frames_.memory_frame(frame);
  if (!host) return;
  host_.clear_page(*host);
  note_store(frame.address(), kPageSize);
}

bool GuestMemory::contains(Gpa address, std::size_t bytes) const {
  if (bytes == 0) return true;
  const std::uint64_t last = address.value() + (bytes - 1);
  if (last < address.value()) return false;
  for (std::uint64_t page = address.value() >> kPageLg2; page <= last >> kPageLg2; ++page)
    if (!frames_.memory_frame(Gfn(page))) return false;
  return true;
}

// Calls visit(aligned host word, first byte in it, bytes of it, offset in the range) for each word that the range
// touches, page by page: whoever moves hypercall arguments and ring entries pays for words, not for bytes.
template <class Visit>
bool GuestMemory::for_each_word(Gpa address, std::size_t bytes, Visit&& visit) const {
  for (std::size_t done = 0; done < bytes;) {
    const auto host = translate(address + Bytes(done));
    if (!host) return false;
    const std::size_t page_end = std::min(bytes, done + kPageSize.value() - host->offset_in(kPageLg2));
    for (Hpa at = *host; done < page_end;) {
      const Hpa word = at.aligned_down(3);
      if (!host_.contains(word, kWord)) return false;
      const std::size_t first = at.offset_in(3);
      const std::size_t count = std::min(kWord - first, page_end - done);
      visit(word, first, count, done);
      done += count;
      at = at + Bytes(count);
    }
  }
  return true;
}

bool GuestMemory::read(Gpa address, std::span<std::byte> into) const {
  if (!contains(address, into.size())) return false;
  return for_each_word(address, into.size(), [&](Hpa word, std::size_t first, std::size_t count, std::size_t done) {
    const WordBytes bytes = std::bit_cast<WordBytes>(host_.read64(word));
    std::memcpy(into.data() + done, bytes.data() + first, count);
  });
}

bool GuestMemory::write(Gpa address, std::span<const std::byte> from) {
  if (!contains(address, from.size())) return false;
  const bool done =
      for_each_word(address, from.size(), [&](Hpa word, std::size_t first, std::size_t count, std::size_t offset) {
        WordBytes bytes{};
        if (count < kWord) bytes = std::bit_cast<WordBytes>(host_.read64(word));
        std::memcpy(bytes.data() + first, from.data() + offset, count);
        host_.write64(word, std::bit_cast<std::uint64_t>(bytes));
      });
  for (std::size_t at = 0; done && at < from.size();) {
    const Gpa part = address + Bytes(at);
    const std::size_t length = std::min(from.size() - at, kPageSize.value() - part.offset_in(kPageLg2));
    note_store(part, Bytes(length));
    at += length;
  }
  return done;
}

}  // namespace iommu
