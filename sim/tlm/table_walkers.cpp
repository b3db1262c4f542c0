// SPDX-License-Identifier: Apache-2.0
#include "sim/tlm/table_walkers.hpp"

#include <algorithm>
#include <bit>
#include <utility>

namespace iommu {

namespace {

// Which part of a latency an access belongs to.
Picoseconds& share_of(LatencySplit& split, AccessKind kind) {
  switch (kind) {
    case AccessKind::Stage1Entry:
      return split.stage1;
    case AccessKind::Stage2Entry:
      return split.stage2;
    default:
      return split.context;
  }
}

}  // namespace

bool WalkPort::begin(MemoryAccess& access) {
  settle();
  if (purpose_ == Purpose::Speculation && access.op != MemoryOp::Read) {
    access.failed = true;
    return true;
  }
  begun_ = calendar_.now() - std::exchange(lead_in_, Picoseconds{});
  kind_ = access.kind;
  is_open_ = true;
  if (access.op == MemoryOp::Read)
    ++reads_[static_cast<std::size_t>(access.kind)];
  else
    ++marks_;
  if (issue_ == Picoseconds{}) return memory_.begin(access);
  calendar_.at(
      calendar_.now() + issue_,
      [](void* self, std::uint64_t a) {
        // A timed memory port always parks: the walk is resumed by it.
        // NOLINTNEXTLINE(performance-no-int-to-ptr): calendar arguments are integers
        (void)static_cast<WalkPort*>(self)->memory_.begin(*reinterpret_cast<MemoryAccess*>(a));
      },
      this, reinterpret_cast<std::uint64_t>(&access));
  return false;
}

void WalkPort::settle() {
  if (!is_open_) return;
  is_open_ = false;
  const Picoseconds waited = memory_.waited();
  spent_.memory += waited;
  share_of(spent_, kind_) += calendar_.now() - begun_ - waited;
}

void WalkPort::reset(Picoseconds lead_in, Purpose purpose) {
  lead_in_ = lead_in;
  purpose_ = purpose;
  is_open_ = false;
  spent_ = {};
  reads_ = {};
  marks_ = 0;
}

TableWalkers::TableWalkers(Calendar& calendar, IommuCore& core, MemorySystem::Port& memory,
                           const IommuParameters& parameters, TranslationCaches& caches, WalkClient& client)
    : calendar_(calendar),
      core_(core),
      caches_(caches),
      client_(client),
      entries_(parameters.miss_entries),
      buckets_(std::bit_ceil(2 * parameters.miss_entries), 0) {
  for (std::uint32_t i = parameters.miss_entries; i-- > 0;) free_entries_.push_back(i);
  const IommuTiming& timing = parameters.timing;
  const auto build = [&]<class Job>(Pool<Job>& pool, std::uint32_t slots, Picoseconds interval, Picoseconds latency) {
    pool.interval = interval;
    pool.start_latency = latency;
    for (std::uint32_t i = 0; i < slots; ++i) {
      pool.slots.push_back(
          std::make_unique<typename Pool<Job>::Slot>(calendar, memory, timing.table_read_issue, caches));
      pool.free.push_back(slots - 1 - i);
    }
  };
  build(walks_, parameters.walkers, timing.walk_interval, timing.walk_start);
  build(contexts_, parameters.context_fetchers, Picoseconds{}, timing.context_start);
}

std::uint32_t& TableWalkers::bucket_of(const MissKey& key) {
  const std::uint64_t who = static_cast<std::uint64_t>(key.requester.value()) << 32 |
                            (key.pasid ? key.pasid->value() + 1ULL : 0) | static_cast<std::uint64_t>(key.type) << 24 |
                            static_cast<std::uint64_t>(key.mode.privileged) << 27 |
                            static_cast<std::uint64_t>(key.mode.execute) << 28;
  return buckets_[mix(key.page, who) & (buckets_.size() - 1)];
}

MissEntry* TableWalkers::find(const MissKey& key) {
  for (std::uint32_t i = bucket_of(key); i != 0; i = entries_[i - 1].next_in_bucket)
    if (entries_[i - 1].key == key && !entries_[i - 1].is_overtaken) return &entries_[i - 1];
  return nullptr;
}

MissEntry* TableWalkers::allocate(const MissKey& key, const WalkEpoch& began) {
  if (free_entries_.empty()) return nullptr;
  const std::uint32_t index = free_entries_.back();
  free_entries_.pop_back();
  MissEntry& entry = entries_[index];
  entry.key = key;
  entry.is_used = true;
  entry.is_walking = false;
  entry.is_overtaken = false;
  entry.accounts = nullptr;
  entry.purpose = WalkPort::Purpose::Demand;
  entry.draining.reset();
  entry.began = began;
  std::uint32_t& bucket = bucket_of(key);
  entry.next_in_bucket = bucket;
  bucket = index + 1;
  return &entry;
}

void TableWalkers::release(MissEntry& entry) {
  const auto index = static_cast<std::uint32_t>(&entry - entries_.data());
  std::uint32_t* link = &bucket_of(entry.key);
  while (*link != index + 1) link = &entries_[*link - 1].next_in_bucket;
  *link = entry.next_in_bucket;
  entry.is_used = false;
  free_entries_.push_back(index);
  walks_.free.push_back(entry.slot);
  dispatch<&TableWalkers::begin_walk>(walks_);
}

void TableWalkers::release(ContextFetch& fetch) {
  fetch.is_used = false;
  free_fetches_.push_back(&fetch);
  contexts_.free.push_back(fetch.slot);
  dispatch<&TableWalkers::begin_fetch>(contexts_);
}

void TableWalkers::start(MissEntry& entry) {
  walks_.waiting.push(&entry);
  dispatch<&TableWalkers::begin_walk>(walks_);
}

ContextFetch* TableWalkers::find_fetch(const TranslationRequest& request) {
  for (const auto& fetch : fetches_)
    if (fetch->is_used && !fetch->is_overtaken && fetch->who.requester == request.requester &&
        fetch->who.pasid == request.pasid)
      return fetch.get();
  return nullptr;
}

ContextFetch& TableWalkers::start_fetch(UnitRequest& first) {
  if (free_fetches_.empty()) {
    fetches_.push_back(std::make_unique<ContextFetch>());
    free_fetches_.push_back(fetches_.back().get());
  }
  ContextFetch& fetch = *free_fetches_.back();
  free_fetches_.pop_back();
  fetch.who = {first.translation.requester, first.translation.pasid, {}};
  fetch.is_used = true;
  fetch.is_overtaken = false;
  fetch.port = nullptr;
  fetch.requests.push(first);
  contexts_.waiting.push(&fetch);
  dispatch<&TableWalkers::begin_fetch>(contexts_);
  return fetch;
}

// Gives waiting jobs to free slots, no closer to each other than the interval.
template <auto kStart, class Job>
void TableWalkers::dispatch(Pool<Job>& pool) {
  while (!pool.waiting.is_empty() && !pool.free.empty()) {
    const std::uint32_t slot = pool.free.back();
    pool.free.pop_back();
    pool.slots[slot]->job = pool.waiting.pop();
    const Picoseconds start = std::max(calendar_.now(), pool.next_start);
    pool.next_start = start + pool.interval;
    calendar_.call_at<kStart>(start + pool.start_latency, this, slot);
  }
}

void TableWalkers::begin_walk(std::uint64_t index) {
  auto& slot = *walks_.slots[index];
  MissEntry& entry = *slot.job;
  slot.port.reset(walks_.start_latency, entry.purpose);
  slot.view.begin(entry.began.translations);
  entry.accounts = &slot.port;
  entry.slot = static_cast<std::uint32_t>(index);
  entry.is_walking = true;
  slot.root = run_walk(static_cast<std::uint32_t>(index));
  slot.root.start();
}

Task<void> TableWalkers::run_walk(std::uint32_t index) {
  auto& slot = *walks_.slots[index];
  MissEntry& entry = *slot.job;
  const WalkAids aids{.caches = &slot.view, .observer = nullptr};
  const TranslationResponse response = co_await core_.walk(entry.translation, entry.context, slot.port, aids);
  slot.port.settle();
  client_.walk_finished(entry, response);
}

void TableWalkers::begin_fetch(std::uint64_t index) {
  auto& slot = *contexts_.slots[index];
  slot.port.reset(contexts_.start_latency, WalkPort::Purpose::Demand);
  slot.job->port = &slot.port;
  slot.job->slot = static_cast<std::uint32_t>(index);
  slot.job->began = caches_.epoch();
  slot.root = run_fetch(static_cast<std::uint32_t>(index));
  slot.root.start();
}

Task<void> TableWalkers::run_fetch(std::uint32_t index) {
  auto& slot = *contexts_.slots[index];
  ContextFetch& fetch = *slot.job;
  const ContextResult result = co_await core_.find_context(fetch.requests.first()->translation, slot.port);
  slot.port.settle();
  client_.context_found(fetch, result);
}

}  // namespace iommu
