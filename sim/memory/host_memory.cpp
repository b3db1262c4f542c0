// SPDX-License-Identifier: Apache-2.0
#include "sim/memory/host_memory.hpp"

#include <algorithm>

namespace iommu {

namespace {
constexpr unsigned kMaxAddressLg2 = 52;

std::size_t word_in_page(Hpa address) { return address.offset_in(kPageLg2) / 8; }
}  // namespace

HostMemory::HostMemory(Bytes size) : size_(size) {
  SIM_CHECK(size.value() <= 1ULL << kMaxAddressLg2, "host memory is addressed with at most 52 bits");
}

bool HostMemory::contains(Hpa address, std::uint64_t bytes) const {
  const std::uint64_t first = address.value();
  return bytes <= size_.value() && first <= size_.value() - bytes;
}

const std::uint64_t* HostMemory::find(Hpa address) const {
  const std::uint64_t page = address.value() >> kPageLg2;
  const std::uint64_t segment = page >> (2 * kFanLg2);
  if (segment >= segments_.size() || !segments_[segment]) return nullptr;
  const auto& region = (*segments_[segment])[page >> kFanLg2 & (kFan - 1)];
  if (!region) return nullptr;
  const auto& data = (*region)[page & (kFan - 1)];
  return data ? &(*data)[word_in_page(address)] : nullptr;
}

std::uint64_t& HostMemory::touch(Hpa address) {
  const std::uint64_t page = address.value() >> kPageLg2;
  const std::uint64_t segment = page >> (2 * kFanLg2);
  if (segment >= segments_.size()) segments_.resize(segment + 1);
  if (!segments_[segment]) segments_[segment] = std::make_unique<Segment>();
  auto& region = (*segments_[segment])[page >> kFanLg2 & (kFan - 1)];
  if (!region) region = std::make_unique<Region>();
  auto& data = (*region)[page & (kFan - 1)];
  if (!data) {
    data = std::make_unique<Page>();
    ++touched_;
  }
  return (*data)[word_in_page(address)];
}

std::uint64_t HostMemory::read64(Hpa address) const {
  const std::uint64_t* word = find(address);
  return word != nullptr && contains(address, 8) ? *word : 0;
}

std::uint32_t HostMemory::read32(Hpa address) const {
  const std::uint64_t word = read64(address.aligned_down(3));
  return static_cast<std::uint32_t>(address.offset_in(3) == 4 ? word >> 32 : word);
}

void HostMemory::write64(Hpa address, std::uint64_t value) {
  if (!contains(address, 8)) return;
  if (write_hook_ != nullptr) write_hook_(write_context_, address);
  store64(address, value);
}

void HostMemory::write32(Hpa address, std::uint32_t value) {
  if (!contains(address, 4)) return;
  if (write_hook_ != nullptr) write_hook_(write_context_, address);
  store32(address, value);
}

void HostMemory::store64(Hpa address, std::uint64_t value) {
  touch(address) = value;
  if (!watchers_.empty()) {
    notify(address);
    notify(address + 4_B);
  }
}

void HostMemory::store32(Hpa address, std::uint32_t value) {
  std::uint64_t& word = touch(address.aligned_down(3));
  const unsigned shift = address.offset_in(3) == 4 ? 32 : 0;
  word = (word & ~(0xffffffffULL << shift)) | static_cast<std::uint64_t>(value) << shift;
  if (!watchers_.empty()) notify(address);
}

void HostMemory::clear_page(Mfn frame) {
  for (std::uint64_t offset = 0; offset < kPageSize.value(); offset += 8) {
    const Hpa word = frame.address() + Bytes(offset);
    if (find(word) == nullptr) return;  // never touched: zero already
    store64(word, 0);
  }
}

void HostMemory::perform(MemoryAccess& access) {
  access.failed = !contains(access.address, access.bytes);
  if (access.failed) {
    access.words.fill(0);
    return;
  }
  switch (access.op) {
    case MemoryOp::Read: {
      if (access.bytes == 4) {
        access.words[0] = read32(access.address);
        return;
      }
      // One look-up for all words of a line; a walk reads single words.
      const std::size_t count = access.bytes / 8U;
      const std::uint64_t* words = find(access.address);
      if (count == 1) {
        access.words[0] = words != nullptr ? *words : 0;
        return;
      }
      if (words != nullptr && word_in_page(access.address) + count <= std::tuple_size_v<Page>)
        std::copy_n(words, count, access.words.begin());
      else
        for (std::size_t i = 0; i < count; ++i) access.words[i] = read64(access.address + Bytes(8 * i));
      return;
    }
    case MemoryOp::Write:
      if (access.bytes == 4) {
        store32(access.address, static_cast<std::uint32_t>(access.words[0]));
        return;
      }
      for (std::size_t i = 0; i < access.bytes / 8U; ++i) store64(access.address + Bytes(8 * i), access.words[i]);
      return;
    case MemoryOp::CompareExchange: {
      const std::uint64_t found = read64(access.address);
      if (found == access.words[0]) store64(access.address, access.words[1]);
      access.words[0] = found;
      return;
    }
  }
}

void HostMemory::watch(Hpa word, std::function<void()> on_write) { watchers_[word.value()] = std::move(on_write); }

void HostMemory::unwatch(Hpa word) { watchers_.erase(word.value()); }

void HostMemory::notify(Hpa word_address) {
  const auto found = watchers_.find(word_address.value());
  if (found == watchers_.end()) return;
  const auto on_write = found->second;  // may remove itself
  on_write();
}

}  // namespace iommu
