// SPDX-License-Identifier: Apache-2.0
// For tests of a family's core: memory in which tables are built by hand, field by field, and a memory port that fails
// or interferes on demand.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <variant>

#include "sim/base/bits.hpp"
#include "sim/memory/host_memory.hpp"
#include "sim/translation/memory_port.hpp"
#include "sim/translation/request.hpp"

namespace iommu::test {

// Answers at once; counts, fails chosen accesses, and lets a test act just before an access.
class TestPort final : public MemoryPort {
 public:
  explicit TestPort(HostMemory& memory) : memory_(memory) {}
  bool begin(MemoryAccess& access) override {
    ++accesses;
    ++by_kind_[static_cast<std::size_t>(access.kind)];
    if (before) before(access);
    const std::uint64_t at = access.address.value();
    const bool is_swap = access.op == MemoryOp::CompareExchange;
    access.failed = accesses == fail_access || failing.contains(at) || (is_swap && failing_swaps.contains(at));
    if (!access.failed) memory_.perform(access);
    return true;
  }
  [[nodiscard]] std::uint64_t count(AccessKind kind) const { return by_kind_[static_cast<std::size_t>(kind)]; }
  void reset_counts() { accesses = 0, by_kind_ = {}; }

  std::uint64_t accesses = 0;
  std::set<std::uint64_t> failing, failing_swaps;  // addresses that no access, or no swap, reaches
  std::uint64_t fail_access = 0;                   // counted from 1
  std::function<void(MemoryAccess&)> before;

 private:
  HostMemory& memory_;
  std::array<std::uint64_t, kAccessKinds> by_kind_{};
};

// Memory that a test writes tables into, without the formats and the driver that the product uses.
class HandBuiltTables {
 public:
  // page() hands out pages above `last_used`.
  explicit HandBuiltTables(std::uint64_t last_used) : next_page_(last_used) {}

  HostMemory host{Bytes(1ULL << 47)};
  TestPort port{host};

  [[nodiscard]] std::uint64_t word(std::uint64_t address) const { return host.read64(Hpa(address)); }
  void write(std::uint64_t address, std::uint64_t value) { host.write64(Hpa(address), value); }
  // One field of the record at `address`.
  template <const auto& kLayout, FieldName kName>
  void set(std::uint64_t address, std::uint64_t value) {
    constexpr Field field = field_of<kLayout, kName>;
    const std::uint64_t at = address + 8 * field.word();
    write(at, (word(at) & ~field.mask()) | (value & field.value_mask()) << field.shift());
  }
  // Bit `bit` of the record at `address`, whatever it means.
  void flip(std::uint64_t address, unsigned bit) {
    write(address + bit / 64 * 8, word(address + bit / 64 * 8) ^ 1ULL << bit % 64);
  }
  // A page that nothing uses yet.
  std::uint64_t page() { return next_page_ += kPageSize.value(); }
  // In tables of 512 entries.
  [[nodiscard]] static std::uint64_t entry_at(std::uint64_t table, unsigned level, std::uint64_t input) {
    return table + (input >> (12 + 9 * level) & 511) * 8;
  }

 protected:
  [[nodiscard]] static std::uint64_t aligned(std::uint64_t address, Level leaf) {
    return address >> (12 + 9 * leaf) << (12 + 9 * leaf);
  }

 private:
  std::uint64_t next_page_;
};

[[nodiscard]] inline std::string row_of(const TranslationResponse& response) {
  const auto* fault = std::get_if<Fault>(&response);
  return fault == nullptr ? std::string("translated") : std::string(fault->row->name);
}
// The output address; nullopt for a fault.
[[nodiscard]] inline std::optional<std::uint64_t> output_of(const TranslationResponse& response) {
  const auto* translation = std::get_if<Translation>(&response);
  return translation == nullptr ? std::nullopt : std::optional(translation->address.value());
}
// The output address or the fault's row.
[[nodiscard]] inline std::string print(const TranslationResponse& response) {
  const auto output = output_of(response);
  return output ? std::to_string(*output) : row_of(response);
}

}  // namespace iommu::test
