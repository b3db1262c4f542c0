// SPDX-License-Identifier: Apache-2.0
#include "sim/tlm/iommu_unit.hpp"

#include <algorithm>
#include <utility>

#include "sim/tlm/unit_rules.hpp"

namespace iommu {

namespace {

// NOLINTNEXTLINE(performance-no-int-to-ptr): calendar arguments are integers
UnitRequest& from_argument(std::uint64_t argument) { return *reinterpret_cast<UnitRequest*>(argument); }
std::uint64_t to_argument(UnitRequest& request) { return reinterpret_cast<std::uint64_t>(&request); }

// Answers whoever would read memory with failure, and remembers that it wanted to: tells a translation that needs no
// tables from one that does.
class NoMemory final : public MemoryPort {
 public:
  bool begin(MemoryAccess& access) override {
    was_used_ = true;
    access.failed = true;
    access.words.fill(0);
    return true;
  }
  [[nodiscard]] bool was_used() const { return was_used_; }

 private:
  bool was_used_ = false;
};

}  // namespace

IommuUnit::IommuUnit(Calendar& calendar, IommuCore& core, MemorySystem::Port& memory, const IommuParameters& parameters,
                     const MmioParameters& mmio, std::uint64_t seed)
    : calendar_(calendar),
      core_(core),
      parameters_(parameters),
      caches_(parameters, seed, statistics_),
      walkers_(calendar, core, memory, parameters, caches_, *this),
      registers_(calendar, core, *this, mmio),
      memory_(memory),
      has_ports_(caches_.has_first_level() || caches_.has_port_tlb() || parameters.translation_slots != 0 ||
                 parameters.timing.message_latency != Picoseconds{}),
      slots_(parameters.ports, PortSlots(parameters.translation_slots)),
      lookup_starts_(parameters.lookup_ports, Picoseconds{} - parameters.timing.lookup_interval) {
  SIM_CHECK(parameters.problem() == nullptr, "IOMMU parameters are validated with the scenario");
  const InvalidationEnvironment environment{calendar,  core,       memory,   *this,
                                            draining_, in_flight_, scanner_, statistics_};
  invalidation_.push_back(std::make_unique<InvalidationUnit>(environment, core, parameters));
  for (CommandQueue* queue : core.further_queues())
    invalidation_.push_back(std::make_unique<InvalidationUnit>(environment, *queue, parameters));
}

void IommuUnit::connect(DeviceTlbPort& device_tlbs) {
  for (const auto& queue : invalidation_) queue->connect(device_tlbs);
}

// The way in --------------------------------------------------------------------------------------------------------

void IommuUnit::submit(UnitRequest& request) {
  SIM_CHECK(can_accept(), "submit() to a full request queue");
  request.internal = {};
  request.arrival = calendar_.now();
  request.split = {};
  request.context_missed = false;
  request.path = UnitPath::Hit;
  ++pending_;
  ++statistics_.requests;
  admit(request);
}

void IommuUnit::admit(UnitRequest& request) {
  ++queued_;
  if (parameters_.ordering == Ordering::InOrder) order_.push(&request);
  if (has_ports_) return enter_port(request);
  schedule_lookup(request);
}

void IommuUnit::on_space(Calendar::Action action, void* context, std::uint64_t argument) {
  space_waiters_.push({action, context, argument});
}

// A place in the queue is free again.
void IommuUnit::leave_queue() {
  --queued_;
  if (space_waiters_.is_empty() || !can_accept()) return;
  const SpaceWaiter waiter = space_waiters_.pop();
  calendar_.at(calendar_.now(), waiter.action, waiter.context, waiter.argument);
}

void IommuUnit::schedule_lookup(UnitRequest& request) {
  const Picoseconds start = std::max(calendar_.now(), lookup_starts_[next_port_] + parameters_.timing.lookup_interval);
  lookup_starts_[next_port_] = start;
  next_port_ = (next_port_ + 1) % lookup_starts_.size();
  calendar_.call_at<&IommuUnit::look_up>(start + parameters_.timing.lookup_latency, this, to_argument(request));
}

void IommuUnit::look_up(std::uint64_t argument) {
  UnitRequest& request = from_argument(argument);
  request.internal.sequence = next_sequence_++;
  request.split.lookup += parameters_.timing.lookup_latency;
  leave_queue();
  resolve(request);
}

void IommuUnit::resolve(UnitRequest& request) {
  if (!core_.is_translating())
    return answer_uncached(request, Translation{Hpa(request.translation.address.value()), 63, kReadWrite, {}, true});
  if (const Context* context = caches_.find_context(request.translation))
    return with_context(request, *context, caches_.epoch());
  if (const auto fixed = core_.answer_without_tables(request.translation)) return answer_uncached(request, *fixed);
  want_context(request);
}

// From no cache and no table.
void IommuUnit::answer_uncached(UnitRequest& request, const TranslationResponse& response) {
  request.path = UnitPath::Bypass;
  ++statistics_.bypassed;
  answer(request, response);
}

void IommuUnit::want_context(UnitRequest& request) {
  request.context_missed = true;
  mark_missed(request);
  if (ContextFetch* fetch = walkers_.find_fetch(request.translation))
    fetch->requests.push(request);
  else
    walkers_.start_fetch(request);
}

// `began`: when the context was looked for. What is learnt through it is as old as that.
void IommuUnit::with_context(UnitRequest& request, const Context& context, const WalkEpoch& began) {
  request.internal.tag = context.stage1_tag(context.mode_of(request.translation));
  const bool is_direct = context.kind == ContextKind::Bypass || request.translation.type == AddressType::Translated;
  const CachedTranslation* found = nullptr;
  if (!is_direct && uses_caches(request.translation))
    found = caches_.find(*request.internal.tag, request.translation.address);
  const bool is_hit = found != nullptr && found->allowed.allow(request.translation.access);
  if (!is_hit)
    if (const auto fixed = core_.answer_without_tables(request.translation)) return answer_uncached(request, *fixed);
  if (is_direct) return translate_directly(request, context, began);
  if (!request.internal.is_counted) {
    request.internal.is_counted = true;
    ++statistics_.lookups;
    ++(is_hit ? statistics_.hits : statistics_.misses);
    ++(is_hit ? statistics_.iotlb.hits : statistics_.iotlb.misses);
    if (is_hit) ++statistics_.hits_by_page_lg2[found->page_lg2];
    if (found != nullptr && !is_hit) ++statistics_.permission_misses;
  } else if (is_hit) {
    // It had missed and waited; another request's walk has brought the page meanwhile.
    join(request);
  }
  if (!is_hit) return miss(request, context, began);
  if (found->is_untried) caches_.count_first_use(*request.internal.tag, request.translation.address);
  if (has_ports_) request.internal.fills_port = began.ports;
  answer(request, found->at(request.translation.address));
}

// Contexts that translate nothing, and addresses translated before: the core answers from the context alone.
void IommuUnit::translate_directly(UnitRequest& request, const Context& context, const WalkEpoch& began) {
  NoMemory no_memory;
  Task<TranslationResponse> walk = core_.walk(request.translation, context, no_memory, {});
  walk.start();
  if (no_memory.was_used() || !walk.done()) return miss(request, context, began);
  answer_uncached(request, walk.result());
}

void IommuUnit::mark_missed(UnitRequest& request) {
  if (request.internal.is_missed) return;
  request.internal.is_missed = true;
  ++outstanding_misses_;
}

void IommuUnit::miss(UnitRequest& request, const Context& context, const WalkEpoch& began) {
  mark_missed(request);
  // What an ATS request asks for shows in its answer, however it is checked.
  const bool is_plain = request.translation.type == AddressType::Untranslated;
  const MissKey key =
      key_of(request.translation, is_plain ? request.internal.tag->mode : mode_asked(request.translation));
  if (MissEntry* entry = walkers_.find(key)) {
    join(request);
    entry->requests.push(request);
    return;
  }
  MissEntry* entry = walkers_.allocate(key, began);
  if (entry == nullptr) return block(request);
  request.path = UnitPath::Miss;
  entry->context = context;
  entry->tag = *request.internal.tag;
  entry->translation = request.translation;
  entry->port = request.port;
  entry->requests.push(request);
  walkers_.start(*entry);
}

// Served by a walk that another request started.
void IommuUnit::join(UnitRequest& request) {
  if (std::exchange(request.path, UnitPath::Merged) != UnitPath::Merged) ++statistics_.merges;
}

void IommuUnit::block(UnitRequest& request) {
  ++queued_;
  blocked_.push(&request);
}

// Miss entries have become free. What was found before is void by now: the requests start again at the context.
void IommuUnit::readmit_blocked() {
  while (!blocked_.is_empty() && walkers_.has_free_entry()) {
    UnitRequest& request = *blocked_.pop();
    leave_queue();
    resolve(request);
  }
}

// What walks bring --------------------------------------------------------------------------------------------------

void IommuUnit::context_found(ContextFetch& fetch, const ContextResult& result) {
  const auto& port = *fetch.port;
  ++statistics_.context_fetches;
  std::uint32_t reads = 0;
  for (std::size_t kind = 0; kind < kAccessKinds; ++kind) {
    statistics_.reads[kind] += port.reads()[kind];
    reads += port.reads()[kind];
  }
  statistics_.marks += port.marks();
  const LatencySplit spent = port.spent();
  const auto* context = std::get_if<Context>(&result);
  UnitRequest* request = fetch.requests.take();
  if (context != nullptr) caches_.fill_context(request->translation, *context, fetch.began.contexts);
  const WalkEpoch began = fetch.began;
  walkers_.release(fetch);

  UnitRequest& first = *request;
  first.internal.context_reads += reads;
  first.split.context += spent.context + spent.stage1;
  first.split.stage2 += spent.stage2;
  first.split.memory += spent.memory;
  while (request != nullptr) {
    UnitRequest& next = *std::exchange(request, request->internal.next);
    if (context != nullptr) {
      with_context(next, *context, began);
    } else if (&next == &first) {
      answer(next, std::get<Fault>(result));
    } else {
      // A refusal may depend on the kind of request: each has a look of its own.
      want_context(next);
    }
  }
}

void IommuUnit::walk_finished(MissEntry& entry, const TranslationResponse& response) {
  if (entry.purpose == WalkPort::Purpose::Speculation) return prefetch_finished(entry, response);
  count_walk(entry, response);
  const auto* translation = std::get_if<Translation>(&response);
  const bool is_kept = translation != nullptr && is_cacheable(entry.translation, *translation);
  if (is_kept) cache(entry, *translation);
  std::optional<MissEntry> demanded;
  if (is_kept && parameters_.prefetch_pages != 0 && !entry.is_overtaken) demanded = entry;
  UnitRequest* request = entry.requests.take();
  const Epoch began = entry.began.ports;
  walkers_.release(entry);

  UnitRequest* others = request->internal.next;
  if (is_kept && has_ports_) request->internal.fills_port = began;
  answer(*request, response);
  while (others != nullptr) {
    UnitRequest& next = *std::exchange(others, others->internal.next);
    answer_merged(next, response, began);
  }
  readmit_blocked();
  if (demanded) prefetch_behind(*demanded, *translation);
}

void IommuUnit::cache(const MissEntry& entry, const Translation& translation) {
  const Iova address(entry.key.page << kPageLg2);
  if (caches_.was_removed_needlessly(entry.tag, address, translation)) ++statistics_.invalidation.induced_misses;
  caches_.fill(entry.tag, address, translation, entry.began.translations);
}

// The walk serves every request to the page that it permits; others, and all after a fault, walk for themselves.
void IommuUnit::answer_merged(UnitRequest& request, const TranslationResponse& response, Epoch began) {
  const auto* translation = std::get_if<Translation>(&response);
  if (translation == nullptr || !translation->allowed.allow(request.translation.access)) return resolve(request);
  Translation own = *translation;
  own.address = translation->address.aligned_down(kPageLg2) + Bytes(request.translation.address.offset_in(kPageLg2));
  if (has_ports_ && is_cacheable(request.translation, own)) request.internal.fills_port = began;
  answer(request, own);
}

// The way out -------------------------------------------------------------------------------------------------------

void IommuUnit::answer(UnitRequest& request, const TranslationResponse& response) {
  if (const auto* fault = std::get_if<Fault>(&response)) {
    if (fault->stall || fault->awaits_stall) return stall(request, *fault);
    ++statistics_.faulted;
    write_down(*fault);
  }
  request.response = response;
  if (request.internal.is_behind_port) return send_back(request);
  if (request.internal.slot) return arrive_at_port(request);  // retried, and its port knows the page by now
  conclude(request);
}

void IommuUnit::conclude(UnitRequest& request) {
  request.internal.is_answered = true;
  if (parameters_.ordering == Ordering::InOrder) return release_in_order();
  if (!request.internal.is_missed && outstanding_misses_ > parameters_.hit_under_miss) {
    request.internal.to_pass = outstanding_misses_ - parameters_.hit_under_miss;
    held_.push(&request);
    return;
  }
  finish(request);
}

void IommuUnit::release_in_order() {
  while (!order_.is_empty() && order_.front()->internal.is_answered) finish(*order_.pop());
}

// Nobody will hold what faulted: a stall is over before software hears of it.
void IommuUnit::record(Fault fault) {
  if (fault.stall && core_.withdraw_stall(*fault.stall)) fault.stall.reset();
  write_down(fault);
}

void IommuUnit::request_page(const PageRequest& request) {
  if (const auto answer = core_.record_page_request(request)) invalidation_.front()->respond(*answer);
  core_acted();
}

void IommuUnit::write_down(const Fault& fault) {
  ++statistics_.faults[fault.row];
  if (const auto interrupt = core_.record(fault)) post_interrupt(*interrupt);
  if (fault_listener_ != nullptr) fault_listener_(fault_listener_self_, fault);
  core_acted();
}

void IommuUnit::core_acted() {
  while (const auto interrupt = core_.take_interrupt()) post_interrupt(*interrupt);
  if (is_writing_events_ || !core_.has_events()) return;
  is_writing_events_ = true;
  event_writer_ = write_events();
  event_writer_.start();
}

// Software is told of records once they are in memory.
Task<void> IommuUnit::write_events() {
  while (core_.has_events()) {
    co_await core_.write_events(memory_);
    while (const auto interrupt = core_.take_interrupt()) post_interrupt(*interrupt);
    ++event_rounds_;
    resume_recorded();
  }
  is_writing_events_ = false;
  resume_recorded();
}

// The round that is under way may have begun before the waiter's records were there: it waits for the next as well.
void IommuUnit::when_recorded(std::coroutine_handle<> waiter) { record_waiters_.push({event_rounds_ + 2, waiter}); }

void IommuUnit::resume_recorded() {
  while (!record_waiters_.is_empty() && (!is_writing_events_ || record_waiters_.front().round <= event_rounds_))
    calendar_.resume_at(calendar_.now(), record_waiters_.pop().waiter);
}

void IommuUnit::finish(UnitRequest& request) {
  const bool was_missed = request.internal.is_missed;
  const std::uint64_t sequence = request.internal.sequence;
  if (was_missed) --outstanding_misses_;
  deliver(request);
  if (was_missed && !held_.is_empty()) release_held(sequence);
}

// Held hits are in lookup order, and an older one never waits for more misses than a younger one.
void IommuUnit::release_held(std::uint64_t answered_sequence) {
  for (std::size_t i = 0; i < held_.size(); ++i)
    if (held_[i]->internal.sequence > answered_sequence && held_[i]->internal.to_pass > 0) --held_[i]->internal.to_pass;
  while (!held_.is_empty() && held_.front()->internal.to_pass == 0) deliver(*held_.pop());
}

void IommuUnit::deliver(UnitRequest& request) {
  request.completed = calendar_.now();
  --pending_;
  count_answer(request);
  if (request.internal.draining) draining_.leave(*request.internal.draining);
  if (request.internal.was_woken) wake_deferred();
  request.done(request.context, request.argument);
}

void IommuUnit::count_walk(const MissEntry& entry, const TranslationResponse& response) {
  const WalkPort& port = *entry.accounts;
  UnitRequest& first = *entry.requests.first();
  ++statistics_.walks;
  std::uint64_t reads = 0;
  for (std::size_t kind = 0; kind < kAccessKinds; ++kind) {
    statistics_.reads[kind] += port.reads()[kind];
    reads += port.reads()[kind];
  }
  statistics_.marks += port.marks();
  first.split.context += port.spent().context;
  first.split.stage1 += port.spent().stage1;
  first.split.stage2 += port.spent().stage2;
  first.split.memory += port.spent().memory;
  statistics_.reads_per_miss.add(reads + first.internal.context_reads);
  statistics_.context_reads_per_miss.add(first.internal.context_reads);
  statistics_.stage1_reads_per_miss.add(port.reads()[static_cast<std::size_t>(AccessKind::Stage1Entry)]);
  statistics_.stage2_reads_per_miss.add(port.reads()[static_cast<std::size_t>(AccessKind::Stage2Entry)]);
  if (const auto* translation = std::get_if<Translation>(&response))
    ++statistics_.misses_by_page_lg2[translation->page_lg2];
}

void IommuUnit::count_answer(UnitRequest& request) {
  LatencySplit& split = request.split;
  const Picoseconds total = request.completed - request.arrival;
  split.queue = total - (split.total() - split.queue);
  statistics_.latency.add(total);
  if (split.stalled != Picoseconds{}) statistics_.stalls.wait.add(split.stalled);
  if (request.path == UnitPath::Merged) statistics_.merged_wait.add(total - split.lookup - split.stalled);
  if (request.path != UnitPath::Miss) return;
  statistics_.miss_cost.add(total - split.lookup - split.stalled);
  statistics_.miss_queue.add(split.queue);
  statistics_.miss_context.add(split.context);
  statistics_.miss_stage1.add(split.stage1);
  statistics_.miss_stage2.add(split.stage2);
  statistics_.miss_memory.add(split.memory);
}

// Interrupts --------------------------------------------------------------------------------------------------------

void IommuUnit::post_interrupt(const InterruptMessage& message) {
  if (free_interrupt_writes_.empty()) {
    free_interrupt_writes_.push_back(static_cast<std::uint32_t>(interrupt_writes_.size()));
    interrupt_writes_.push_back(std::make_unique<InterruptWrite>());
  }
  const std::uint32_t slot = free_interrupt_writes_.back();
  free_interrupt_writes_.pop_back();
  InterruptWrite& write = *interrupt_writes_[slot];
  write.message = message;
  write.access.address = message.address;
  write.access.op = MemoryOp::Write;
  write.access.kind = AccessKind::Event;
  write.access.bytes = 4;
  write.access.words[0] = message.data;
  write.access.done = [](void* self, std::uint64_t s) { static_cast<IommuUnit*>(self)->interrupt_written(s); };
  write.access.context = this;
  write.access.argument = slot;
  memory_.post(write.access);
}

void IommuUnit::interrupt_written(std::uint64_t slot) {
  free_interrupt_writes_.push_back(static_cast<std::uint32_t>(slot));
  if (interrupts_ != nullptr) interrupts_->raise(interrupt_writes_[slot]->message);
}

// Invalidation ------------------------------------------------------------------------------------------------------

void IommuUnit::on_register_effect(const RegisterEffect& effect) {
  if (effect.configuration_changed) {
    InvalidationScope everything;
    everything.kind = InvalidationKind::Context;
    take_effect(everything);
  }
  resolve_stalls(effect.resolutions);
  if (!effect.scopes.empty()) invalidation_.front()->invalidate_by_register(effect.scopes);
  if (effect.commands_pending) invalidation_.front()->on_doorbell();
  for (const std::uint32_t queue : effect.further_queues) invalidation_[1 + queue]->on_doorbell();
  core_acted();
}

std::uint32_t IommuUnit::entries_examined(const InvalidationScope& scope) const {
  return caches_.entries_examined(scope);
}

void IommuUnit::take_effect(const InvalidationScope& scope) {
  caches_.erase(scope);
  switch (scope.kind) {
    case InvalidationKind::Iotlb:
      overtake_walks(scope);
      break;
    case InvalidationKind::Context:
    case InvalidationKind::ProcessContext:
      overtake_contexts(scope);
      break;
    case InvalidationKind::DeviceTlb:
    case InvalidationKind::InterruptEntry:
      return;
  }
  drain_answered(scope);
  outdate_stalls(scope);
}

// Walks that have read table entries may hold what they said before the invalidation. Those still waiting for a walker
// will read later, and are safe.
void IommuUnit::overtake_walks(const InvalidationScope& scope) {
  walkers_.for_each_miss([&](MissEntry& entry) {
    const std::uint64_t first = entry.key.page << kPageLg2;
    const CacheTags tags{.domain = entry.tag.domain,
                         .asid = entry.tag.asid,
                         .requester = entry.key.requester,
                         .range = {first, first + kPageSize.value() - 1},
                         .is_global = entry.tag.asid.has_value()};  // for all that is known yet
    if (!entry.is_walking || !matches(scope, tags)) return;
    overtake(entry);
  });
}

void IommuUnit::overtake(MissEntry& entry) {
  entry.is_overtaken = true;
  drain(entry.requests.first());
  // Nobody may wait for a speculative walk, and it reads tables all the same.
  if (entry.purpose == WalkPort::Purpose::Speculation && !entry.draining) entry.draining = draining_.enter();
}

// Everything that has used or is reading the old context: fetches (whose domain nobody knows yet) and misses, walking
// or not.
void IommuUnit::overtake_contexts(const InvalidationScope& scope) {
  InvalidationScope by_requester = scope;
  by_requester.domain.reset();
  by_requester.asid.reset();
  walkers_.for_each_fetch([&](ContextFetch& fetch) {
    if (!matches(by_requester, fetch.who.tags())) return;
    fetch.is_overtaken = true;
    drain(fetch.requests.first());
  });
  walkers_.for_each_miss([&](MissEntry& entry) {
    const WalkTag tag = entry.context.context_tag();
    const CacheTags tags{.domain = tag.domain, .asid = tag.asid, .requester = entry.key.requester, .range = {}};
    if (!matches(scope, tags)) return;
    overtake(entry);
  });
}

bool IommuUnit::may_concern(const InvalidationScope& covered, const UnitRequest& request) {
  if (!request.internal.tag) return true;  // the tags are not at hand
  InvalidationScope scope = covered;
  // Under which address space a context was found is not at hand either; taking too much is safe.
  if (scope.kind == InvalidationKind::ProcessContext) scope.asid.reset();
  const std::uint64_t first = request.translation.address.aligned_down(kPageLg2).value();
  return matches(scope, {.domain = request.internal.tag->domain,
                         .asid = request.internal.tag->asid,
                         .requester = request.translation.requester,
                         .range = {first, first + kPageSize.value() - 1},
                         .is_global = request.internal.tag->asid.has_value()});
}

// Requests that hold a translation and wait for their turn to leave.
void IommuUnit::drain_answered(const InvalidationScope& scope) {
  const auto drain_if_covered = [&](UnitRequest& request) {
    if (request.internal.is_answered && may_concern(scope, request)) drain_one(request);
  };
  for (std::size_t i = 0; i < order_.size(); ++i) drain_if_covered(*order_[i]);
  for (std::size_t i = 0; i < held_.size(); ++i) drain_if_covered(*held_[i]);
  for (std::size_t i = 0; i < returning_.size(); ++i)
    if (may_concern(scope, *returning_[i])) drain_one(*returning_[i]);
}

void IommuUnit::drain(UnitRequest* chain) {
  for (; chain != nullptr; chain = chain->internal.next) drain_one(*chain);
}

void IommuUnit::drain_one(UnitRequest& request) {
  if (!request.internal.draining) request.internal.draining = draining_.enter();
}

}  // namespace iommu
