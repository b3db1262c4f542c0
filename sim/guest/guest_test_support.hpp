// SPDX-License-Identifier: Apache-2.0
// For tests of guest software: an address space that a script controls, an observer that remembers, and a CPU that
// sleeps on a calendar.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "sim/base/calendar.hpp"
#include "sim/base/immediate_cpu.hpp"
#include "sim/guest/dma_api.hpp"
#include "sim/pcie/gate.hpp"

namespace iommu::guest::test {

inline constexpr RequesterId kDevice = RequesterId::bdf(0, 4, 0);

// An address space without tables. It refuses to map over what is mapped, as tables do, and fails the test when
// addresses are mapped again that a device may still reach.
class ScriptedSpace final : public DmaSpace {
 public:
  enum class Call : std::uint8_t { Map, SyncMap, Unmap, UnmapDeferred, Sync, FlushAll, Reclaim };
  struct Page {
    Gfn frame;
    Permissions permissions;
  };

  bool identity = false;
  bool deferrable = true;
  Iova last{(1ULL << 48) - 1};
  std::vector<IovaRange> kept_back{};  // never handed out
  std::optional<unsigned> maps_left;   // then NoMemory, after the first page of the segment
  bool unmap_fails = false;            // and changes nothing
  bool frees_tables = false;           // every unmap leaves one table to reclaim
  Gate* flush_gate = nullptr;          // flush_all() waits there
  std::vector<Call> calls;
  std::map<Dfn, Page> pages;         // what tables say
  std::map<Dfn, Gfn> reachable;      // what caches may still say: unmapped, not invalidated
  std::set<std::uint64_t> awaiting;  // freed tables whose invalidation is not over
  std::vector<std::uint64_t> reclaimed;

  [[nodiscard]] bool is_identity() const override { return identity; }
  [[nodiscard]] bool can_defer() const override { return deferrable; }
  [[nodiscard]] Iova last_address() const override { return last; }
  [[nodiscard]] std::vector<IovaRange> reserved() const override { return kept_back; }

  Task<DmaStatus> map(CpuPort&, MapSegment segment) override {
    calls.push_back(Call::Map);
    const bool fails = maps_left && (*maps_left)-- == 0;
    const std::uint64_t count = fails ? 1 : segment.length.value() >> kPageLg2;
    for (std::uint64_t i = 0; i < count; ++i) {
      const Dfn page = Dfn(segment.iova) + i;
      EXPECT_FALSE(reachable.contains(page)) << "page " << page.value() << " is mapped again before its fence";
      if (!pages.emplace(page, Page{Gfn(segment.address) + i, segment.permissions}).second)
        co_return DmaStatus::Rejected;
    }
    co_return fails ? DmaStatus::NoMemory : DmaStatus::Ok;
  }
  Task<DmaStatus> sync_map(CpuPort&, IovaRange) override {
    calls.push_back(Call::SyncMap);
    co_return DmaStatus::Ok;
  }
  Task<UnmapGather> unmap(CpuPort&, IovaRange range, Flush flush) override {
    calls.push_back(flush == Flush::Deferred ? Call::UnmapDeferred : Call::Unmap);
    UnmapGather gather;
    gather.range = range;
    for (std::uint64_t i = 0; i < range.pages() && !unmap_fails; ++i) {
      const auto page = pages.find(Dfn(range.first) + i);
      if (page == pages.end()) {
        gather.status = DmaStatus::Rejected;
        break;
      }
      reachable.emplace(page->first, page->second.frame);
      pages.erase(page);
    }
    if (unmap_fails) gather.status = DmaStatus::NoMemory;
    if (frees_tables) {
      gather.freed_tables.push_back(++tables_);
      awaiting.insert(tables_);
    }
    co_return gather;
  }
  Task<void> sync(CpuPort&, UnmapGather gather) override {
    calls.push_back(Call::Sync);
    for (std::uint64_t i = 0; i < gather.range.pages(); ++i) reachable.erase(Dfn(gather.range.first) + i);
    for (const std::uint64_t table : gather.freed_tables) awaiting.erase(table);
    co_return;
  }
  // What was unmapped before it began.
  Task<void> flush_all(CpuPort&) override {
    calls.push_back(Call::FlushAll);
    const std::map<Dfn, Gfn> covered = reachable;
    const std::set<std::uint64_t> tables = awaiting;
    if (flush_gate != nullptr) co_await flush_gate->wait();
    for (const auto& [page, frame] : covered) reachable.erase(page);
    for (const std::uint64_t table : tables) awaiting.erase(table);
  }
  void reclaim_tables(const std::vector<std::uint64_t>& tables) override {
    for (const std::uint64_t table : tables) {
      calls.push_back(Call::Reclaim);
      EXPECT_FALSE(awaiting.contains(table)) << "table " << table << " is reused before its fence";
      reclaimed.push_back(table);
    }
  }

  [[nodiscard]] std::size_t count(Call call) const {
    return static_cast<std::size_t>(std::count(calls.begin(), calls.end(), call));
  }

 private:
  std::uint64_t tables_ = 0;
};
using Call = ScriptedSpace::Call;

class Observer final : public MappingObserver {
 public:
  enum class What : std::uint8_t { MapCalled, Mapped, UnmapCalled, Fenced };
  struct Event {
    What what = What::MapCalled;
    Picoseconds when;
    IovaRange range;
    friend bool operator==(const Event&, const Event&) = default;
  };
  std::vector<Event> events;
  const ScriptedSpace* space = nullptr;

  void on_map_called(Picoseconds now, RequesterId device, MapSegment segment) override {
    EXPECT_EQ(device, kDevice);
    events.push_back({What::MapCalled, now, {segment.iova, segment.length}});
  }
  void on_mapped(Picoseconds now, RequesterId, IovaRange range) override {
    events.push_back({What::Mapped, now, range});
  }
  void on_unmap_called(Picoseconds now, RequesterId, IovaRange range) override {
    events.push_back({What::UnmapCalled, now, range});
  }
  void on_fenced(Picoseconds now, RequesterId, IovaRange range) override {
    events.push_back({What::Fenced, now, range});
    if (space == nullptr) return;
    for (std::uint64_t i = 0; i < range.pages(); ++i)
      EXPECT_FALSE(space->reachable.contains(Dfn(range.first) + i)) << "fenced while a device may still reach it";
  }
  [[nodiscard]] std::size_t count(What what) const {
    return static_cast<std::size_t>(
        std::count_if(events.begin(), events.end(), [&](const Event& e) { return e.what == what; }));
  }
};
using What = Observer::What;

// Work takes no time; sleeping and waiting for signals and locks park on the calendar.
class SleepingCpu final : public CpuPort, public SignalPort {
 public:
  SleepingCpu(CpuId id, Calendar& calendar) : CpuPort(id), calendar_(calendar) {}
  [[nodiscard]] Picoseconds now() const override { return calendar_.now(); }
  void release(SpinLock& lock) override {
    lock.held = !lock.waiters.empty();
    if (lock.held) resume(lock.waiters);
  }
  void raise(Signal& signal) override {
    if (signal.waiters.empty())
      signal.raised = true;
    else
      resume(signal.waiters);
  }
  [[nodiscard]] const CostCounts& charged() const { return charged_; }

 private:
  bool begin(CpuWait& wait) override {
    switch (wait.kind) {
      case CpuWaitKind::Charge:
        charged_.add(wait.cost, wait.times);
        return true;
      case CpuWaitKind::Acquire:
        if (!std::exchange(wait.lock->held, true)) return true;
        wait.lock->waiters.push_back(&wait);
        return false;
      case CpuWaitKind::Idle:
        if (std::exchange(wait.signal->raised, false)) return true;
        wait.signal->waiters.push_back(&wait);
        return false;
      case CpuWaitKind::SleepUntil:
        if (wait.until <= calendar_.now()) return true;
        calendar_.call_at<&SleepingCpu::wake>(wait.until, this, reinterpret_cast<std::uintptr_t>(&wait));
        return false;
      case CpuWaitKind::Poll:
        break;
    }
    ADD_FAILURE() << "nothing here polls";
    return true;
  }
  void wake(std::uint64_t wait) { reinterpret_cast<CpuWait*>(wait)->waiter.resume(); }
  void resume(std::deque<CpuWait*>& waiters) {
    CpuWait* next = waiters.front();
    waiters.pop_front();
    calendar_.resume_at(calendar_.now(), next->waiter);
  }
  Calendar& calendar_;
  CostCounts charged_;
};

}  // namespace iommu::guest::test
