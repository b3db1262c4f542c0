// SPDX-License-Identifier: Apache-2.0
// A guest that drives a virtual unit of its own, for tests: the family's driver over guest memory, a command ring
// behind trapped registers, and Xen's half of it (shadow or nested translation).
//
//   VirtualMachine<ShadowTranslation> v(family);
//   PageTable& table = v.attach(kNic);
//   v.map(table, Iova(0x5000), Gpa(0x7000));          // and the invalidation that caching mode asks for
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "sim/xen/nested_translation.hpp"
#include "sim/xen/shadow_translation.hpp"
#include "sim/xen/xen_test_support.hpp"

namespace iommu::xen {

// Pages of a guest's upper memory, for its tables.
class GuestPool final : public TableMemory {
 public:
  GuestPool(GuestMemory& memory, Gfn first, std::uint64_t pages) : memory_(memory), pages_(Mfn(first.value()), pages) {}
  std::uint64_t read64(std::uint64_t address) override { return memory_.read64(Gpa(address)).value_or(0); }
  void write64(std::uint64_t address, std::uint64_t value) override { memory_.write64(Gpa(address), value); }
  std::optional<std::uint64_t> allocate(unsigned pages_lg2) override {
    const auto first = pages_.allocate(pages_lg2);
    if (!first) return std::nullopt;
    const std::uint64_t address = first->address().value();
    const std::uint64_t end = address + (kPageSize.value() << pages_lg2);
    for (std::uint64_t at = address; at < std::min(end, used_end_); at += 8) write64(at, 0);
    used_end_ = std::max(used_end_, end);
    return address;
  }
  void release(std::uint64_t address, unsigned pages_lg2) override {
    EXPECT_TRUE(pages_.release(Mfn(Hpa(address)), pages_lg2));
  }

 private:
  GuestMemory& memory_;
  FrameAllocator pages_;
  std::uint64_t used_end_ = 0;  // memory beyond has never been written
};

class GuestQueue final : public QueueClient {
 public:
  GuestQueue(const TableDriver& driver, TableMemory& pool, MmioPort& registers, const GuestMemory& memory,
             std::uint64_t page)
      : QueueClient(driver, pool, registers, kLinuxQueue, page), memory_(memory) {}

 private:
  [[nodiscard]] Hpa status_host_address(std::uint64_t address) const override {
    return memory_.translate(Gpa(address)).value_or(Hpa(0));
  }
  const GuestMemory& memory_;
};

// A guest's kernel, as far as its unit is concerned.
class GuestKernel {
 public:
  GuestKernel(Machine& machine, VirtualUnit& unit, const DriverOptions& options)
      : machine_(machine),
        unit_(unit),
        pool_(machine.guest().memory, Gfn(kGuestPages / 2), kGuestPages / 2),
        driver_(machine.family().make_driver(options)),
        kind_(options.stage1 ? TableKind::Stage1 : TableKind::Stage2) {}

  void bring_up() {
    const auto writes = driver_->bring_up(pool_);
    ASSERT_TRUE(writes);
    for (const RegisterWrite& w : *writes) write(w.offset, w.bytes, w.value);
    queue_ = std::make_unique<GuestQueue>(*driver_, pool_, unit_, machine_.guest().memory, *pool_.allocate(0));
  }
  void write(std::uint64_t offset, unsigned bytes, std::uint64_t value) {
    unit_.write(machine_.cpu, offset, bytes, value).run();
  }
  void invalidate(std::vector<InvalidationScope> scopes) {
    if (!scopes.empty()) queue_->submit(machine_.cpu, std::move(scopes), Fence::Poll).run();
  }
  // The device's entry points at a table (an empty one, if none is given), and everybody has been told.
  PageTable& attach(RequesterId device, std::uint32_t tag, PageTable* table = nullptr) {
    if (table == nullptr) {
      tables_.push_back(driver_->create_table(kind_, pool_));
      table = tables_.back().get();
    }
    ContextSetting setting{.kind = kind_ == TableKind::Stage1 ? ContextKind::Stage1 : ContextKind::Stage2,
                           .domain = DomainTag(tag)};
    (kind_ == TableKind::Stage1 ? setting.stage1 : setting.stage2) = table->root();
    point(device, setting);
    return *table;
  }
  void point(RequesterId device, const ContextSetting& setting) {
    const auto old = settings_.find(device) == settings_.end() ? std::nullopt : std::optional(settings_[device]);
    EXPECT_EQ(driver_->attach(device, setting, pool_).status, EditStatus::Ok);
    settings_[device] = setting;
    invalidate(driver_->context_scopes(device, old));
  }
  void detach(RequesterId device) {
    driver_->detach(device, pool_);
    invalidate(driver_->context_scopes(device, settings_.at(device)));
    settings_.erase(device);
  }
  // The scope that a guest's driver invalidates a range of a device's table with.
  [[nodiscard]] InvalidationScope scope(RequesterId device, std::optional<AddressRange> range) const {
    InvalidationScope all{.kind = InvalidationKind::Iotlb, .domain = settings_.at(device).domain};
    for (const InvalidationScope& scope : driver_->context_scopes(device, settings_.at(device)))
      if (scope.kind == InvalidationKind::Iotlb && !scope.range) all = scope;
    all.range = range;
    return all;
  }
  TableDriver& driver() { return *driver_; }
  QueueClient& queue() { return *queue_; }
  GuestPool& pool() { return pool_; }
  [[nodiscard]] const ContextSetting& setting(RequesterId device) const { return settings_.at(device); }

 private:
  Machine& machine_;
  VirtualUnit& unit_;
  GuestPool pool_;
  std::unique_ptr<TableDriver> driver_;
  TableKind kind_;
  std::unique_ptr<GuestQueue> queue_;
  std::vector<std::unique_ptr<PageTable>> tables_;
  std::map<RequesterId, ContextSetting> settings_;
};

// `how`: of a shadow.
template <class Translation, ShadowSync how = ShadowSync::CachingMode>
class VirtualMachine {
 public:
  static constexpr bool kTraps = how == ShadowSync::WriteProtect;
  static constexpr bool kNested = std::is_same_v<Translation, NestedTranslation>;

  explicit VirtualMachine(const FamilyDescriptor& family, MachineOptions options = {},
                          TrapTarget target = TrapTarget::Xen)
      : machine(family, host_options(options)),
        unit(family, guest_options(family, options.features).features, machine.guest(), target),
        translation(make(machine, unit)),
        kernel(machine, unit, guest_options(family, options.features)) {
    unit.connect(*translation);
  }
  // Whether this family can do it at all.
  static bool is_possible(const FamilyDescriptor& family) {
    const UnitFeatures host = host_options({}).features;
    const UnitFeatures guest = guest_options(family, {}).features;
    return family.unsupported == nullptr || (family.unsupported(host).empty() && family.unsupported(guest).empty());
  }
  static MachineOptions host_options(MachineOptions options) {
    options.stage1 = kNested;
    options.features.nested = kNested;
    return options;
  }
  // Caching mode makes the guest announce new entries, where a family does not always ask for that. It cannot nest
  // further.
  static DriverOptions guest_options(const FamilyDescriptor& family, UnitFeatures features) {
    features.nested = false;
    features.caching_mode = true;
    features.caching_mode = !kTraps && (family.unsupported == nullptr || family.unsupported(features).empty());
    return {.features = features, .stage1 = kNested, .range_flush = RangeFlush::SmallestBlock};
  }

  void start() { kernel.bring_up(); }
  PageTable& attach(RequesterId device, std::uint32_t tag = 1) {
    EXPECT_EQ(translation->add_device(device), Errno::Ok);
    if (kTraps) unit.reconsider(machine.cpu).run();
    PageTable& table = kernel.attach(device, tag);
    settle();
    return table;
  }
  // The guest goes on after stores that may have trapped.
  void settle() { unit.settle(machine.cpu).run(); }
  void map(PageTable& table, RequesterId device, Dfn dfn, Gfn gfn, std::uint64_t pages = 1,
           Permissions permissions = kReadWrite) {
    const TableEdit edit = table.map({.input = dfn.address().value(),
                                      .output = gfn.address().value(),
                                      .length = kPageSize * pages,
                                      .permissions = permissions});
    EXPECT_EQ(edit.status, EditStatus::Ok);
    if (!kNested && !kTraps) kernel.invalidate({1, kernel.scope(device, bytes(dfn, pages))});
    settle();
  }
  void unmap(PageTable& table, RequesterId device, Dfn dfn, std::uint64_t pages = 1) {
    const TableEdit edit = table.unmap(dfn.address().value(), kPageSize * pages, ReclaimTables::WhenCovered);
    EXPECT_EQ(edit.status, EditStatus::Ok);
    kernel.invalidate({1, kernel.scope(device, bytes(dfn, pages))});
    for (const std::uint64_t page : edit.freed_tables) kernel.pool().release(page, 0);
  }
  void flush_all(RequesterId device) { kernel.invalidate({1, kernel.scope(device, std::nullopt)}); }
  static AddressRange bytes(Dfn dfn, std::uint64_t pages) {
    return {dfn.address().value(), (dfn + pages).address().value() - 1};
  }
  std::optional<Mfn> frame(Gfn gfn) { return machine.frame(machine.guest(), gfn); }

  Machine machine;
  VirtualUnit unit;
  std::unique_ptr<Translation> translation;
  GuestKernel kernel;

 private:
  static std::unique_ptr<Translation> make(Machine& machine, VirtualUnit& unit) {
    if constexpr (kNested)
      return std::make_unique<Translation>(machine.xen, machine.guest(), unit);
    else
      return std::make_unique<Translation>(machine.xen, machine.guest(), unit, machine.family(), how,
                                           ShadowLimits{.entries = 1U << 16, .pieces = 1U << 15, .removed_pages = 64});
  }
};

}  // namespace iommu::xen
