// SPDX-License-Identifier: Apache-2.0
// The two units with flat tables. Both read one entry for a translation, have registers and no command queue: writing a
// register invalidates what they cache, and reading one tells when that is done.
#pragma once

#include <memory>

#include "models/flat/format.hpp"
#include "models/flat/table.hpp"
#include "sim/translation/family.hpp"

namespace iommu::flat {

class FlatCore : public IommuCore {
 public:
  [[nodiscard]] bool has_command() const final { return false; }
  Task<std::optional<Command>> fetch_command(MemoryPort& memory) final;
  CommandEffect apply(const Command& command) final;
  std::optional<InterruptMessage> fence_interrupt() final { return std::nullopt; }
  void invalidation_done() final { is_invalidating_ = false; }

 protected:
  // One entry of `table`, which translates `window`.
  template <class Format>
  static Task<TranslationResponse> walk_entry(TranslationRequest request, Window window, std::uint64_t table,
                                              MemoryPort& memory, WalkAids aids);
  RegisterEffect invalidate(std::vector<InvalidationScope> scopes);
  [[nodiscard]] bool is_invalidating() const { return is_invalidating_; }

 private:
  bool is_invalidating_ = false;
};

// Translation control entries: a table for each bus, which all its devices share.
class TceCore final : public FlatCore {
 public:
  explicit TceCore(const UnitFeatures& features) : features_(features) {}
  [[nodiscard]] bool is_translating() const override { return get<kBusTable, "enable">(bus_table_) != 0; }
  Task<ContextResult> find_context(TranslationRequest request, MemoryPort& memory) override;
  Task<TranslationResponse> walk(TranslationRequest request, Context context, MemoryPort& memory,
                                 WalkAids aids) override;
  // ASSUMPTION(tce-001): a fault interrupts nobody; the chip keeps its kind until the next one.
  std::optional<InterruptMessage> record(const Fault& fault) override;
  std::uint64_t mmio_read(std::uint64_t offset, unsigned bytes) override;
  RegisterEffect mmio_write(std::uint64_t offset, unsigned bytes, std::uint64_t value) override;

 private:
  RegisterEffect kill(std::uint64_t value);
  UnitFeatures features_;
  std::uint64_t bus_table_ = 0;
  std::uint64_t arbiter_ = 0xffff;
  std::uint32_t last_fault_ = 0;
};

// The graphics aperture: what lies outside it is not translated, nor refused.
class GartCore final : public FlatCore {
 public:
  explicit GartCore(const UnitFeatures& features) : features_(features) {}
  [[nodiscard]] bool is_translating() const override;
  [[nodiscard]] std::optional<TranslationResponse> answer_without_tables(
      const TranslationRequest& request) const override;
  Task<ContextResult> find_context(TranslationRequest request, MemoryPort& memory) override;
  Task<TranslationResponse> walk(TranslationRequest request, Context context, MemoryPort& memory,
                                 WalkAids aids) override;
  std::optional<InterruptMessage> record(const Fault& fault) override;
  std::uint64_t mmio_read(std::uint64_t offset, unsigned bytes) override;
  RegisterEffect mmio_write(std::uint64_t offset, unsigned bytes, std::uint64_t value) override;

 private:
  [[nodiscard]] Window aperture() const;
  UnitFeatures features_;
  std::uint64_t control_ = 0;
  std::uint64_t base_ = 0;
  std::uint64_t table_ = 0;
  bool has_error_ = false;
};

}  // namespace iommu::flat
