// SPDX-License-Identifier: Apache-2.0
// Grants: devices belong to a driver domain, a paravirtualised one under strict IOMMU rules, which reaches the guest's
// buffers by grant references only. The guest writes an entry of its grant table for each page of a buffer; the driver
// domain maps the references, which enters the frame in the IOMMU at its machine address; and back again.
//
// ASSUMPTION(grants-002): the guest's vCPU that runs a device's driver does the driver domain's work as well, and what
// passes between the two beside grants (ring, event channel) costs nothing. Rings of the device are the guest's too.
#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "sim/base/check.hpp"
#include "sim/guest/shared_pages.hpp"
#include "sim/strategy/strategy.hpp"
#include "sim/xen/grant_table.hpp"

namespace iommu::strategy {

namespace {

using guest::DmaStatus;
using guest::DmaUse;
using guest::MapSegment;
using guest::ScatterEntry;
using xen::abi::kGrantEntry;

constexpr Bytes kDriverDomainMemory = 1_MiB;  // for arguments of hypercalls
constexpr std::uint32_t kRefsPerPage = 512;
constexpr std::uint64_t kGrantableFrames = field_of<kGrantEntry, "frame">.value_mask();

std::int64_t status_of(xen::abi::GrantStatus status) { return static_cast<std::int64_t>(status); }

// The guest's side: who may use which of its pages.
class GrantIssuer {
 public:
  explicit GrantIssuer(const StrategyEnvironment& environment) : environment_(environment) {}

  // nullopt: no page for the table, Xen accepts no more, or the page has no name in an entry.
  Task<std::optional<std::uint32_t>> issue(CpuPort& cpu, xen::GrantTables& grants, Gfn page, Permissions permissions,
                                           DomainId user) {
    if (page.value() > kGrantableFrames || (free_.empty() && !grow(grants))) co_return std::nullopt;
    const std::uint32_t ref = free_.back();
    free_.pop_back();
    std::uint64_t entry = with<kGrantEntry, "frame">(0, page.value());
    entry = with<kGrantEntry, "domid">(entry, user.value());
    entry = with<kGrantEntry, "readonly">(entry, permissions.write ? 0 : 1);
    entry = with<kGrantEntry, "type">(entry, static_cast<std::uint64_t>(xen::abi::GrantType::PermitAccess));
    environment_.domain.memory.write64(address_of(ref), entry);
    co_await cpu.charge(CostId::GrantIssue);
    co_return ref;
  }
  // False, without effect: somebody still uses it.
  Task<bool> end(CpuPort& cpu, std::uint32_t ref) {
    co_await cpu.charge(CostId::GrantIssue);
    const std::uint64_t entry = environment_.domain.memory.read64(address_of(ref)).value_or(0);
    if (get<kGrantEntry, "reading">(entry) != 0 || get<kGrantEntry, "writing">(entry) != 0) co_return false;
    environment_.domain.memory.write64(address_of(ref), 0);
    free_.push_back(ref);
    co_return true;
  }

 private:
  [[nodiscard]] Gpa address_of(std::uint32_t ref) const {
    return pages_[ref / kRefsPerPage].address() + Bytes(8) * (ref % kRefsPerPage);
  }
  bool grow(xen::GrantTables& grants) {
    const auto page = environment_.pages.allocate();
    if (!page) return false;
    std::vector<Gfn> pages = pages_;
    pages.emplace_back(*page);
    if (grants.set_table(environment_.domain, pages) != xen::Errno::Ok) {
      static_cast<void>(environment_.pages.release(*page));
      return false;
    }
    const auto first = static_cast<std::uint32_t>(pages_.size() * kRefsPerPage);
    pages_ = std::move(pages);
    for (std::uint32_t ref = first + kRefsPerPage; ref > std::max(first, xen::abi::kReservedGrants); --ref)
      free_.push_back(ref - 1);
    return true;
  }
  StrategyEnvironment environment_;
  std::vector<Gfn> pages_;
  std::vector<std::uint32_t> free_;
};

// One granted page, mapped by the driver domain.
struct GrantedPage {
  std::uint32_t ref = 0;
  std::optional<std::uint32_t> handle;
  Hpa frame;
};

// Both sides of all devices of one guest.
class GrantedMemory {
 public:
  explicit GrantedMemory(const StrategyEnvironment& environment)
      : environment_(environment), grants_(environment.xen), issuer_(environment) {}

  bool create_driver_domain() {
    driver_ = environment_.xen.create_domain(
        {.name = "driver domain", .memory = kDriverDomainMemory, .default_context = xen::DefaultContext::Blocked});
    if (driver_ == nullptr) return false;
    for (std::uint64_t page = 0; page < kDriverDomainMemory / kPageSize; ++page)
      argument_pages_.push_back(Gfn(page).address());
    return true;
  }
  Task<bool> take_device(CpuPort& cpu, RequesterId device) {
    const xen::Errno moved = co_await environment_.xen.move_device(cpu, environment_.domain, *driver_, device);
    co_return moved == xen::Errno::Ok;
  }

  // Grants and maps every page, or none.
  Task<std::vector<GrantedPage>> map(CpuPort& cpu, std::vector<Gfn> pages, Permissions permissions) {
    std::vector<GrantedPage> granted;
    bool all = true;
    for (const Gfn page : pages) {
      const auto ref = co_await issuer_.issue(cpu, grants_, page, permissions, driver_->id);
      if (!ref) {
        all = false;
        break;
      }
      granted.push_back({*ref, std::nullopt, Hpa()});
    }
    for (std::size_t first = 0; all && first < granted.size(); first += kMapsPerCall)
      all = co_await map_some(cpu, granted, first, permissions);
    if (all) co_return granted;
    co_await unmap(cpu, granted);
    granted.clear();
    co_return granted;
  }
  // False: Xen or the grant table says that a page is still in use.
  Task<bool> unmap(CpuPort& cpu, std::vector<GrantedPage> pages) {
    bool all = true;
    for (std::size_t first = 0; first < pages.size(); first += kUnmapsPerCall) {
      const bool done = co_await unmap_some(cpu, pages, first);
      all = all && done;
    }
    for (const GrantedPage& page : pages) {
      const bool ended = co_await issuer_.end(cpu, page.ref);
      all = all && ended;
    }
    co_return all;
  }
  [[nodiscard]] const xen::GrantCounters& counters() const { return grants_.counters(); }
  void reset_counters() { grants_.reset_counters(); }

 private:
  // As many structures as a page holds.
  static constexpr std::size_t kMapsPerCall = kPageSize.value() / sizeof(xen::abi::MapGrantRef);
  static constexpr std::size_t kUnmapsPerCall = kPageSize.value() / sizeof(xen::abi::UnmapGrantRef);

  template <class T>
  bool write(Gpa page, std::size_t index, const T& argument) {
    return driver_->memory.write(page + Bytes(sizeof(T)) * index, std::as_bytes(std::span(&argument, 1)));
  }
  template <class T>
  T read(Gpa page, std::size_t index) {
    T argument;
    SIM_CHECK(driver_->memory.read(page + Bytes(sizeof(T)) * index, std::as_writable_bytes(std::span(&argument, 1))),
              "arguments lie in the driver domain's memory");
    return argument;
  }
  // A page for arguments; a call that waits keeps its own. nullopt: as many calls wait as the domain has pages.
  std::optional<Gpa> take_page() {
    if (argument_pages_.empty()) return std::nullopt;
    const Gpa page = argument_pages_.back();
    argument_pages_.pop_back();
    return page;
  }

  Task<bool> map_some(CpuPort& cpu, std::vector<GrantedPage>& pages, std::size_t first, Permissions permissions) {
    const std::size_t count = std::min(kMapsPerCall, pages.size() - first);
    const auto arguments = take_page();
    if (!arguments) co_return false;
    const Gpa at = *arguments;
    for (std::size_t i = 0; i < count; ++i) {
      xen::abi::MapGrantRef request;
      request.flags = xen::abi::kGrantDeviceMap | (permissions.write ? 0U : xen::abi::kGrantReadOnly);
      request.ref = pages[first + i].ref;
      request.dom = environment_.domain.id.value();
      write(at, i, request);
    }
    const std::int64_t called =
        co_await grants_.call(cpu, *driver_, static_cast<std::uint32_t>(xen::abi::GrantCommand::MapGrantRef), at,
                              static_cast<std::uint32_t>(count));
    bool all = called == 0;
    for (std::size_t i = 0; all && i < count; ++i) {
      const auto answer = read<xen::abi::MapGrantRef>(at, i);
      if (answer.status != status_of(xen::abi::GrantStatus::Okay)) {
        all = false;
        continue;
      }
      pages[first + i].handle = answer.handle;
      pages[first + i].frame = Hpa(answer.dev_bus_addr);
    }
    argument_pages_.push_back(at);
    co_return all;
  }
  Task<bool> unmap_some(CpuPort& cpu, const std::vector<GrantedPage>& pages, std::size_t first) {
    const auto arguments = take_page();
    if (!arguments) co_return false;
    const Gpa at = *arguments;
    std::uint32_t count = 0;
    for (std::size_t i = first; i < std::min(first + kUnmapsPerCall, pages.size()); ++i) {
      if (!pages[i].handle) continue;
      xen::abi::UnmapGrantRef request;
      request.dev_bus_addr = pages[i].frame.value();
      request.handle = *pages[i].handle;
      write(at, count++, request);
    }
    bool all = true;
    if (count != 0) {
      const std::int64_t called = co_await grants_.call(
          cpu, *driver_, static_cast<std::uint32_t>(xen::abi::GrantCommand::UnmapGrantRef), at, count);
      all = called == 0;
    }
    for (std::uint32_t i = 0; i < count; ++i)
      all = all && read<xen::abi::UnmapGrantRef>(at, i).status == status_of(xen::abi::GrantStatus::Okay);
    argument_pages_.push_back(at);
    co_return all;
  }

  StrategyEnvironment environment_;
  xen::GrantTables grants_;
  GrantIssuer issuer_;
  xen::Domain* driver_ = nullptr;
  std::vector<Gpa> argument_pages_;
};

class GrantedSpace final : public guest::PlacingSpace {
 public:
  GrantedSpace(RequesterId device, const StrategyEnvironment& environment, GrantedMemory& memory)
      : last_(environment.xen.last_dfn().address() + (kPageSize - 1_B)),
        memory_size_(environment.domain.setting.memory),
        memory_(memory),
        pages_(device, environment.observer) {}

  [[nodiscard]] Iova last_address() const override { return last_; }

  // Buffers whose frames do not follow one another in machine memory are refused: the device would need an address for
  // each, and a kernel on Xen bounces them. [Linux drivers/xen/swiotlb-xen.c, range_straddles_page_boundary]
  Task<Placed> place(CpuPort& cpu, std::vector<ScatterEntry> list, Permissions permissions, DmaUse) override {
    std::vector<Gfn> frames;
    Placed placed;
    for (const ScatterEntry& piece : list) {
      if (piece.length > memory_size_) co_return placed;
      for (Gfn page(piece.address); page <= Gfn(piece.address + piece.length - 1_B); page = page + 1)
        frames.push_back(page);
    }
    Buffer buffer;
    buffer.granted = co_await memory_.map(cpu, frames, permissions);
    if (buffer.granted.empty()) co_return placed;
    // A frame that may be written may be read.
    const Permissions allowed{.read = true, .write = permissions.write};
    for (std::size_t i = 0; i < frames.size(); ++i)
      buffer.pages.push_back({Iova(buffer.granted[i].frame.value()), frames[i].address(), kPageSize, allowed});
    for (std::size_t i = 1; i < frames.size(); ++i)
      if (buffer.granted[i].frame != buffer.granted[i - 1].frame + kPageSize) {
        co_await memory_.unmap(cpu, buffer.granted);
        co_return placed;
      }
    for (const ScatterEntry& piece : list) buffer.length += piece.length;
    placed = {DmaStatus::Ok, buffer.pages.front().iova + Bytes(list.front().address.offset_in(kPageLg2))};
    pages_.add(cpu.now(), buffer.pages);
    live_.emplace(placed.address, std::move(buffer));
    co_return placed;
  }

  Task<DmaStatus> withdraw(CpuPort& cpu, Iova address, Bytes length) override {
    const auto [begin, end] = live_.equal_range(address);
    const auto found = std::find_if(begin, end, [&](const auto& live) { return live.second.length == length; });
    if (found == end) co_return DmaStatus::Rejected;
    const Buffer buffer = std::move(found->second);
    live_.erase(found);
    pages_.begin_removal(cpu.now(), buffer.pages);
    const bool unmapped = co_await memory_.unmap(cpu, buffer.granted);
    pages_.end_removal(cpu.now(), buffer.pages);
    co_return unmapped ? DmaStatus::Ok : DmaStatus::Rejected;
  }

 private:
  struct Buffer {
    Bytes length;
    std::vector<GrantedPage> granted;
    guest::SharedPages::Pages pages;
  };
  Iova last_;
  Bytes memory_size_;
  GrantedMemory& memory_;
  guest::SharedPages pages_;
  std::multimap<Iova, Buffer> live_;
};

class Grants final : public DmaStrategy {
 public:
  explicit Grants(const StrategyEnvironment& environment) : environment_(environment), memory_(environment) {}

  Task<xen::Errno> start(CpuPort&) override {
    co_return memory_.create_driver_domain() ? xen::Errno::Ok : xen::Errno::NoMemory;
  }
  Task<guest::DmaSpace*> attach(CpuPort& cpu, RequesterId device) override {
    const bool taken = co_await memory_.take_device(cpu, device);
    if (!taken) co_return nullptr;
    spaces_.push_back(std::make_unique<GrantedSpace>(device, environment_, memory_));
    co_return spaces_.back().get();
  }
  [[nodiscard]] StrategyCounters counters() const override {
    StrategyCounters counters;
    counters.hypercalls = {{"grant_map", memory_.counters().map_calls},
                           {"grant_unmap", memory_.counters().unmap_calls}};
    return counters;
  }
  void reset_counters() override { memory_.reset_counters(); }

 private:
  StrategyEnvironment environment_;
  GrantedMemory memory_;
  std::vector<std::unique_ptr<GrantedSpace>> spaces_;
};

}  // namespace

const StrategyDescriptor kGrants{
    .name = "grants",
    .description = "a driver domain maps the guest's buffers by grant reference, an IOMMU entry a frame",
    .host_driver = [](const UnitFeatures& host, const StrategyOptions&) { return DriverOptions{.features = host}; },
    .make = [](const StrategyEnvironment& environment) -> std::unique_ptr<DmaStrategy> {
      return std::make_unique<Grants>(environment);
    }};

}  // namespace iommu::strategy
