// SPDX-License-Identifier: Apache-2.0
// Strategies with one flat table in place of a tree of them, on units of their own.
//
// tce: a table for each bus, of entries that carry rights. Either a hypervisor owns it and guests ask for every entry,
// or the kernel writes it itself and invalidates the unit's cache only when its allocator has gone through the table:
// until then a device may go on using what was unmapped. gart: one aperture for all devices of the machine, without
// rights; what lies outside is not translated, and freed entries lead to a scratch page.
//
// ASSUMPTION(flat-001): a kernel that writes its own table runs on the bare machine: turning its addresses into the
// machine's costs nothing.
#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "sim/guest/aperture.hpp"
#include "sim/strategy/strategy.hpp"
#include "sim/xen/tce_calls.hpp"

namespace iommu::strategy {

namespace {

using guest::DmaStatus;
using guest::DmaUse;
using guest::IovaRange;
using guest::MapSegment;
using guest::ScatterEntry;

// A buffer's pages, at the addresses that it got.
std::vector<MapSegment> pages_of(const std::vector<ScatterEntry>& list, Iova first, Permissions permissions) {
  std::vector<MapSegment> segments;
  for (const ScatterEntry& piece : list) {
    const Gpa start = piece.address.aligned_down(kPageLg2);
    const Bytes whole = (piece.address - start + piece.length + kPageSize - 1_B) / kPageSize * kPageSize;
    segments.push_back({first, start, whole, permissions});
    first = first + whole;
  }
  return segments;
}

// Writes a table and makes the unit forget what it was.
class TableWriter {
 public:
  TableWriter() = default;
  TableWriter(const TableWriter&) = delete;
  TableWriter& operator=(const TableWriter&) = delete;
  virtual ~TableWriter() = default;
  // All or nothing. The memory is the guest's.
  virtual Task<bool> map(CpuPort& cpu, std::vector<MapSegment> segments) = 0;
  virtual Task<bool> unmap(CpuPort& cpu, IovaRange range) = 0;
  // What was unmapped before is nobody's any more.
  virtual Task<void> flush(CpuPort& cpu) = 0;
};

// The kernel's own stores.
class KernelWriter final : public TableWriter {
 public:
  KernelWriter(const StrategyEnvironment& environment, xen::IoContext& context)
      : environment_(environment), context_(context) {}

  Task<bool> map(CpuPort& cpu, std::vector<MapSegment> segments) override {
    TableEdit edit;
    for (const MapSegment& segment : segments)
      for (Bytes done; done < segment.length && edit.status == EditStatus::Ok; done += kPageSize)
        edit.merge(context_.table->map({.input = (segment.iova + done).value(),
                                        .output = environment_.domain.memory.translate(segment.address + done)->value(),
                                        .permissions = segment.permissions}));
    co_await environment_.xen.charge_edit(cpu, edit);
    co_return edit.status == EditStatus::Ok;
  }
  Task<bool> unmap(CpuPort& cpu, IovaRange range) override {
    const TableEdit edit = context_.table->unmap(range.first.value(), range.length, ReclaimTables::WhenCovered);
    co_await environment_.xen.charge_edit(cpu, edit);
    co_return edit.status == EditStatus::Ok;
  }
  Task<void> flush(CpuPort& cpu) override {
    co_await environment_.xen.flush_context(cpu, environment_.domain, context_);
  }

 private:
  StrategyEnvironment environment_;
  xen::IoContext& context_;
};

// Calls of the hypervisor: one entry by itself, up to 512 in a list. Each entry is invalidated by itself.
class CallingWriter final : public TableWriter {
 public:
  CallingWriter(const StrategyEnvironment& environment, xen::TceCalls& calls, std::uint32_t liobn)
      : environment_(environment), calls_(calls), liobn_(liobn) {}

  // ASSUMPTION(tce-002): filling the list costs nothing beside the call.
  Task<bool> map(CpuPort& cpu, std::vector<MapSegment> segments) override {
    std::vector<std::uint64_t> tces;
    for (const MapSegment& segment : segments)
      for (Bytes done; done < segment.length; done += kPageSize)
        tces.push_back(tce_of(segment.address + done, segment.permissions));
    const Iova first = segments.front().iova;
    bool all = true;
    for (std::size_t done = 0; all && done < tces.size();) {
      const std::size_t count = std::min<std::size_t>(xen::abi::kTcesPerList, tces.size() - done);
      const std::vector<std::uint64_t> some(tces.begin() + static_cast<std::ptrdiff_t>(done),
                                            tces.begin() + static_cast<std::ptrdiff_t>(done + count));
      all = co_await put(cpu, first + kPageSize * done, some);
      done += count;
    }
    if (!all) co_await calls_.stuff(cpu, liobn_, first, 0, tces.size());
    co_return all;
  }
  Task<bool> unmap(CpuPort& cpu, IovaRange range) override {
    const xen::abi::TceStatus status = co_await calls_.stuff(cpu, liobn_, range.first, 0, range.pages());
    co_return status == xen::abi::TceStatus::Success;
  }
  Task<void> flush(CpuPort&) override { co_return; }

 private:
  static std::uint64_t tce_of(Gpa page, Permissions permissions) {
    std::uint64_t tce = with<xen::abi::kTceValue, "page">(0, Gfn(page).value());
    tce = with<xen::abi::kTceValue, "Read">(tce, permissions.read ? 1 : 0);
    return with<xen::abi::kTceValue, "Write">(tce, permissions.write ? 1 : 0);
  }
  Task<bool> put(CpuPort& cpu, Iova first, std::vector<std::uint64_t> tces) {
    xen::abi::TceStatus status = xen::abi::TceStatus::NotEnoughResources;
    if (tces.size() == 1) {
      status = co_await calls_.put(cpu, liobn_, first, tces.front());
      co_return status == xen::abi::TceStatus::Success;
    }
    const auto list = take_page();
    if (!list) co_return false;
    for (std::size_t i = 0; i < tces.size(); ++i)
      environment_.domain.memory.write64(*list + Bytes(8) * i, xen::abi::big_endian(tces[i]));
    status = co_await calls_.put_indirect(cpu, liobn_, first, *list, tces.size());
    free_pages_.push_back(*list);
    co_return status == xen::abi::TceStatus::Success;
  }
  // A call that waits keeps its list.
  std::optional<Gpa> take_page() {
    if (free_pages_.empty()) return environment_.pages.allocate();
    const Gpa page = free_pages_.back();
    free_pages_.pop_back();
    return page;
  }
  StrategyEnvironment environment_;
  xen::TceCalls& calls_;
  std::uint32_t liobn_;
  std::vector<Gpa> free_pages_;
};

// When the unit's cache is invalidated.
enum class FlushAt : std::uint8_t {
  EveryEntry,  // by whoever writes it
  EveryMap,    // after its entries are written
  Wrap,        // when the allocator begins again, before it does
  WrapOrEnd,   // likewise, or has reached the end, but after entries are written
};

// One table, its allocator and its lock; devices share it.
class SharedWindow {
 public:
  SharedWindow(const StrategyEnvironment& environment, IovaRange range, FlushAt flush_at,
               std::unique_ptr<TableWriter> writer)
      : environment_(environment),
        flush_at_(flush_at),
        writer_(std::move(writer)),
        aperture_(range, flush_at == FlushAt::WrapOrEnd || flush_at == FlushAt::EveryMap ? guest::FreedAhead::Skipped
                                                                                         : guest::FreedAhead::Usable) {}

  void reserve(IovaRange range) { aperture_.reserve(range); }

  // nullopt: no run of pages is free, or the table refuses.
  Task<std::optional<Iova>> map(CpuPort& cpu, RequesterId device, std::vector<ScatterEntry> list,
                                Permissions permissions) {
    std::uint64_t pages = 0;
    for (const MapSegment& segment : pages_of(list, Iova(), permissions)) pages += segment.length / kPageSize;
    const Allocated allocated = co_await allocate(cpu, pages);
    if (!allocated.first) co_return std::nullopt;
    const std::vector<MapSegment> segments = pages_of(list, *allocated.first, permissions);
    for (const MapSegment& segment : segments) environment_.observer.on_map_called(cpu.now(), device, segment);
    const IovaRange range{*allocated.first, kPageSize * pages};
    const bool mapped = co_await writer_->map(cpu, segments);
    if (allocated.flush_is_due) co_await flush(cpu);
    if (!mapped) {
      environment_.observer.on_unmap_called(cpu.now(), device, range);
      environment_.observer.on_fenced(cpu.now(), device, range);
      co_await release(cpu, range);
      co_return std::nullopt;
    }
    environment_.observer.on_mapped(cpu.now(), device, range);
    co_return *allocated.first;
  }

  Task<bool> unmap(CpuPort& cpu, RequesterId device, IovaRange range) {
    environment_.observer.on_unmap_called(cpu.now(), device, range);
    const bool unmapped = co_await writer_->unmap(cpu, range);
    if (flush_at_ == FlushAt::EveryEntry)
      environment_.observer.on_fenced(cpu.now(), device, range);
    else
      unfenced_.push_back({device, range});
    co_await release(cpu, range);
    co_return unmapped;
  }

 private:
  struct Allocated {
    std::optional<Iova> first;
    bool flush_is_due = false;
  };
  struct Unfenced {
    RequesterId device;
    IovaRange range;
  };

  // [Linux 5.3 pci-calgary_64.c iommu_range_alloc; amd_gart_64.c alloc_iommu]
  Task<Allocated> allocate(CpuPort& cpu, std::uint64_t pages) {
    Allocated result;
    co_await cpu.acquire(lock_);
    co_await cpu.charge(CostId::ApertureAlloc);
    result.first = aperture_.allocate_ahead(pages);
    bool wraps = !result.first;
    if (!result.first) {
      if (flush_at_ == FlushAt::Wrap) co_await flush(cpu);
      co_await cpu.charge(CostId::ApertureAlloc);
      result.first = aperture_.allocate_again(pages);
    }
    if (flush_at_ == FlushAt::WrapOrEnd && aperture_.is_at_end()) wraps = true;
    cpu.release(lock_);
    result.flush_is_due = flush_at_ == FlushAt::EveryMap || (flush_at_ == FlushAt::WrapOrEnd && wraps);
    co_return result;
  }
  Task<void> release(CpuPort& cpu, IovaRange range) {
    co_await cpu.acquire(lock_);
    co_await cpu.charge(CostId::ApertureFree);
    aperture_.free(range.first, range.pages());
    cpu.release(lock_);
  }
  Task<void> flush(CpuPort& cpu) {
    const std::vector<Unfenced> covered = std::exchange(unfenced_, {});
    co_await writer_->flush(cpu);
    for (const Unfenced& entry : covered) environment_.observer.on_fenced(cpu.now(), entry.device, entry.range);
  }

  StrategyEnvironment environment_;
  FlushAt flush_at_;
  std::unique_ptr<TableWriter> writer_;
  guest::Aperture aperture_;
  SpinLock lock_{"aperture"};
  std::vector<Unfenced> unfenced_;
};

// How the rights that a buffer needs become those of its entries.
using EntryRights = Permissions (*)(Permissions wanted);

class WindowSpace final : public guest::PlacingSpace {
 public:
  WindowSpace(RequesterId device, const StrategyEnvironment& environment, SharedWindow& window, Iova last,
              EntryRights rights)
      : device_(device),
        memory_(environment.domain.memory),
        memory_size_(environment.domain.setting.memory),
        window_(window),
        last_(last),
        rights_(rights) {}

  [[nodiscard]] Iova last_address() const override { return last_; }

  Task<Placed> place(CpuPort& cpu, std::vector<ScatterEntry> list, Permissions permissions, DmaUse) override {
    Placed placed;
    if (!is_guests(list)) co_return placed;
    const std::uint64_t offset = list.front().address.offset_in(kPageLg2);
    Bytes length;
    for (const ScatterEntry& piece : list) length += piece.length;
    const auto first = co_await window_.map(cpu, device_, std::move(list), rights_(permissions));
    placed.status = first ? DmaStatus::Ok : DmaStatus::NoAddress;
    if (first) placed.address = *first + Bytes(offset);
    co_return placed;
  }
  Task<DmaStatus> withdraw(CpuPort& cpu, Iova address, Bytes length) override {
    const Iova first = address.aligned_down(kPageLg2);
    const Bytes whole = (address - first + length + kPageSize - 1_B) / kPageSize * kPageSize;
    const bool unmapped = co_await window_.unmap(cpu, device_, {first, whole});
    co_return unmapped ? DmaStatus::Ok : DmaStatus::Rejected;
  }

 private:
  // The guest's memory, in pieces that pages can join.
  [[nodiscard]] bool is_guests(const std::vector<ScatterEntry>& list) const {
    for (std::size_t i = 0; i < list.size(); ++i) {
      const Gpa end = list[i].address + list[i].length;
      if (list[i].length > memory_size_ || end < list[i].address) return false;
      if ((i != 0 && !list[i].address.is_aligned(kPageLg2)) || (i + 1 != list.size() && !end.is_aligned(kPageLg2)))
        return false;
      for (Gfn page(list[i].address); page <= Gfn(end - 1_B); page = page + 1)
        if (!memory_.translate(page.address())) return false;
    }
    return true;
  }
  RequesterId device_;
  GuestMemory& memory_;
  Bytes memory_size_;
  SharedWindow& window_;
  Iova last_;
  EntryRights rights_;
};

DriverOptions driver_of(const UnitFeatures& host, const StrategyOptions&) { return {.features = host}; }

class Tce final : public DmaStrategy {
 public:
  explicit Tce(const StrategyEnvironment& environment)
      : environment_(environment), calls_(environment.xen, environment.domain) {}

  Task<xen::Errno> start(CpuPort&) override { co_return xen::Errno::Ok; }
  Task<guest::DmaSpace*> attach(CpuPort& cpu, RequesterId device) override {
    if (!environment_.domain.devices.contains(device)) co_return nullptr;
    Bus& bus = buses_[device.bus()];
    if (bus.context == nullptr && !open(bus, device.bus())) co_return nullptr;
    const xen::Errno moved = co_await environment_.xen.reattach(cpu, environment_.domain, device, *bus.context);
    if (moved != xen::Errno::Ok) co_return nullptr;
    spaces_.push_back(
        std::make_unique<WindowSpace>(device, environment_, *bus.window, last_of(*bus.context), readable));
    co_return spaces_.back().get();
  }
  [[nodiscard]] StrategyCounters counters() const override {
    StrategyCounters counters;
    const xen::TceCounters& c = calls_.counters();
    counters.hypercalls = {{"put_tce", c.put}, {"put_tce_indirect", c.put_indirect}, {"stuff_tce", c.stuff}};
    return counters;
  }
  void reset_counters() override { calls_.reset_counters(); }

 private:
  struct Bus {
    xen::IoContext* context = nullptr;
    std::unique_ptr<SharedWindow> window;
  };
  // [Linux 5.3 tce_64.c tce_build; arch/powerpc pseries/iommu.c: reads are always allowed]
  static Permissions readable(Permissions wanted) { return {.read = true, .write = wanted.write}; }
  static Iova last_of(const xen::IoContext& context) { return Iova((1ULL << context.table->root().input_bits) - 1); }

  bool open(Bus& bus, unsigned number) {
    xen::Hypervisor& xen = environment_.xen;
    const auto next = static_cast<std::uint16_t>(kFirstContext + environment_.domain.private_contexts.size());
    auto made = xen.make_context(ContextNumber(next), ContextKind::Stage2, xen.heap());
    if (made.status != xen::Errno::Ok) return false;
    bus.context = made.context.get();
    environment_.domain.private_contexts.push_back(std::move(made.context));
    const bool by_kernel = environment_.options.table_owner == TableOwner::Kernel;
    std::unique_ptr<TableWriter> writer;
    if (by_kernel) {
      writer = std::make_unique<KernelWriter>(environment_, *bus.context);
    } else {
      calls_.add_window(number, *bus.context);
      writer = std::make_unique<CallingWriter>(environment_, calls_, number);
    }
    const IovaRange range{Iova(0), last_of(*bus.context) - Iova(0) + 1_B};
    bus.window = std::make_unique<SharedWindow>(environment_, range, by_kernel ? FlushAt::Wrap : FlushAt::EveryEntry,
                                                std::move(writer));
    bus.window->reserve({Iova(kHoleFirst), kHole});
    return true;
  }
  static constexpr std::uint16_t kFirstContext = 0x8000;  // for logs only: no guest can name them
  // Never addresses of DMA. [Linux 5.3 pci-calgary_64.c calgary_reserve_regions: 640 KiB to 1 MiB]
  static constexpr std::uint64_t kHoleFirst = 0xa0000;
  static constexpr Bytes kHole = 384_KiB;

  StrategyEnvironment environment_;
  xen::TceCalls calls_;
  std::map<unsigned, Bus> buses_;
  std::vector<std::unique_ptr<WindowSpace>> spaces_;
};

class Gart final : public DmaStrategy {
 public:
  explicit Gart(const StrategyEnvironment& environment) : environment_(environment) {}

  // The first pages take what drivers do that did not look whether mapping failed. [Linux 5.3 amd_gart_64.c
  // EMERGENCY_PAGES]
  Task<xen::Errno> start(CpuPort&) override {
    xen::IoContext& context = *environment_.domain.default_context;
    const std::uint64_t size = 1ULL << context.table->root().input_bits;
    last_ = environment_.xen.last_dfn().address() + (kPageSize - 1_B);
    const IovaRange range{last_ - Bytes(size - 1), Bytes(size)};
    const FlushAt flush_at =
        environment_.options.flush_at == ApertureFlush::Map ? FlushAt::EveryMap : FlushAt::WrapOrEnd;
    window_ = std::make_unique<SharedWindow>(environment_, range, flush_at,
                                             std::make_unique<KernelWriter>(environment_, context));
    window_->reserve({range.first, kEmergency});
    co_return xen::Errno::Ok;
  }
  Task<guest::DmaSpace*> attach(CpuPort&, RequesterId device) override {
    if (!window_ || !environment_.domain.devices.contains(device)) co_return nullptr;
    spaces_.push_back(std::make_unique<WindowSpace>(device, environment_, *window_, last_, everything));
    co_return spaces_.back().get();
  }

 private:
  static Permissions everything(Permissions) { return kReadWrite; }
  static constexpr Bytes kEmergency = 128_KiB;

  StrategyEnvironment environment_;
  Iova last_;
  std::unique_ptr<SharedWindow> window_;
  std::vector<std::unique_ptr<WindowSpace>> spaces_;
};

}  // namespace

const StrategyDescriptor kTce{
    .name = "tce",
    .description = "a flat table for each bus, written by the hypervisor or by the kernel itself",
    .own_unit = "tce",
    .default_context = xen::DefaultContext::Blocked,
    .host_driver = driver_of,
    .make = [](const StrategyEnvironment& environment) -> std::unique_ptr<DmaStrategy> {
      return std::make_unique<Tce>(environment);
    }};

const StrategyDescriptor kGart{
    .name = "gart",
    .description = "one aperture for all devices, without rights; nothing outside it is translated",
    .own_unit = "gart",
    .default_context = xen::DefaultContext::Blocked,
    .host_driver = driver_of,
    .make = [](const StrategyEnvironment& environment) -> std::unique_ptr<DmaStrategy> {
      return std::make_unique<Gart>(environment);
    }};

}  // namespace iommu::strategy
