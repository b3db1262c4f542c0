// SPDX-License-Identifier: Apache-2.0
// For tests: one stream under a driver's setting, whose entry, descriptor and tables can be spoilt field by field.
#pragma once

#include <memory>
#include <optional>
#include <span>

#include "models/smmuv3/unit_test_support.hpp"

namespace iommu::smmuv3::test {

inline constexpr std::uint64_t kInput = 0x4000'3000, kOutput = 0x1234'5000;
inline constexpr std::uint64_t kNowhere = 1ULL << 40;  // within the OAS, outside memory

class StreamBench : public Unit {
 public:
  explicit StreamBench(ContextKind kind, DriverOptions o) : Unit(o) { set_up(kind); }
  explicit StreamBench(ContextKind kind) : StreamBench(kind, options(kind)) {}

  std::unique_ptr<PageTable> stage1, stage2;

  using Entry = std::array<std::uint64_t, 8>;
  [[nodiscard]] std::uint64_t ste_address() {
    const std::uint64_t base = core.mmio_read(offset::kStrtabBase, 8) & mask_of<kStrtabBase, "ADDR">;
    const std::uint64_t link = memory.read64(base + (kNic.value() >> 8) * kL1StdBytes);
    return (link & mask_of<kL1Std, "L2Ptr">)+(kNic.value() & 0xffU) * kSteBytes;
  }
  [[nodiscard]] std::uint64_t l1std_address() {
    return (core.mmio_read(offset::kStrtabBase, 8) & mask_of<kStrtabBase, "ADDR">)+(kNic.value() >> 8) * kL1StdBytes;
  }
  [[nodiscard]] std::uint64_t cd_address() {
    return get<kSte, "S1ContextPtr">(read(ste_address())) << field_of<kSte, "S1ContextPtr">.shift();
  }
  [[nodiscard]] Entry read(std::uint64_t address) {
    Entry entry{};
    for (std::size_t i = 0; i < entry.size(); ++i) entry[i] = memory.read64(address + 8 * i);
    return entry;
  }
  void write(std::uint64_t address, const Entry& entry) {
    for (std::size_t i = 0; i < entry.size(); ++i) memory.write64(address + 8 * i, entry[i]);
  }
  template <FieldName kName>
  void ste(std::uint64_t value) {
    Entry entry = read(ste_address());
    iommu::put<kSte, kName>(std::span<std::uint64_t>(entry), value);
    write(ste_address(), entry);
  }
  template <FieldName kName>
  void cd(std::uint64_t value) {
    const std::uint64_t at = cd_address();
    Entry entry = read(at);
    iommu::put<kCd, kName>(std::span<std::uint64_t>(entry), value);
    write(at, entry);
  }
  // The entry of `input` at a level of a table (as software sees it: nothing nested).
  [[nodiscard]] std::uint64_t entry_address(const PageTable& table, std::uint64_t input, Level level) {
    std::uint64_t at = table.root().address;
    for (Level l = table.root().top_level; l > level; --l)
      at = memory.read64(at + offset_of(table, l, input)) & bits_between(12, 48);
    return at + offset_of(table, level, input);
  }
  void set_entry(const PageTable& table, std::uint64_t input, Level level, std::uint64_t value) {
    memory.write64(entry_address(table, input, level), value);
  }
  [[nodiscard]] std::uint64_t entry(const PageTable& table, std::uint64_t input, Level level) {
    return memory.read64(entry_address(table, input, level));
  }
  [[nodiscard]] TranslationRequest request(Access access = Access::Read, std::uint64_t address = kInput) const {
    return {.requester = kNic, .pasid = {}, .address = Iova(address), .access = access};
  }
  [[nodiscard]] Fault fault(const TranslationRequest& r) {
    const TranslationResponse response = translate(r);
    EXPECT_TRUE(std::holds_alternative<Fault>(response));
    return std::holds_alternative<Fault>(response) ? std::get<Fault>(response) : Fault{};
  }
  // Faults, records, and returns the event.
  std::array<std::uint64_t, 4> event(const TranslationRequest& r) {
    core.record(fault(r));
    return take_event();
  }

 private:
  void set_up(ContextKind kind) {
    bring_up();
    stage1 = driver.create_table(TableKind::Stage1, memory);
    stage2 = driver.create_table(TableKind::Stage2, memory);
    // Tables and the page one to one, in pages of 4 KiB for tests to spoil.
    stage2->map({.input = Bytes(16_MiB).value(), .output = Bytes(16_MiB).value(), .length = 4_MiB});
    stage2->map({.input = kOutput, .output = kOutput});
    PageTable& mapped = kind == ContextKind::Stage2 ? *stage2 : *stage1;
    mapped.map({.input = kInput, .output = kOutput});
    const ContextSetting setting{
        .kind = kind, .domain = DomainTag(7), .stage1 = stage1->root(), .stage2 = stage2->root()};
    EXPECT_EQ(driver.attach(kNic, setting, memory).status, EditStatus::Ok);
  }
  static std::uint64_t offset_of(const PageTable& table, Level level, std::uint64_t input) {
    constexpr unsigned kIndex = 9;
    const unsigned bits = level == table.root().top_level ? kIndex + 4 : kIndex;  // concatenation widens the first
    return (input >> (12 + kIndex * level) & bits_between(0, bits)) * 8;
  }
};

// Fails the n-th access, counted from 0, and remembers where that was.
class FailingPort final : public MemoryPort {
 public:
  FailingPort(MemoryPort& memory, std::uint64_t n) : memory_(memory), left_(n) {}
  bool begin(MemoryAccess& access) override {
    if (left_-- == 0) {
      failed = access.address;
      kind = access.kind;
      access.failed = true;
      access.words = {};
      return true;
    }
    return memory_.begin(access);
  }
  std::optional<Hpa> failed;
  AccessKind kind = AccessKind::Data;

 private:
  MemoryPort& memory_;
  std::uint64_t left_;
};

}  // namespace iommu::smmuv3::test
