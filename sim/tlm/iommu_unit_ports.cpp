// SPDX-License-Identifier: Apache-2.0
// The timed IOMMU in two tiers: what is at its ports, and the way between them and the shared part. And walks ahead of
// demand, which serve the port whose miss caused them.
#include <utility>

#include "sim/tlm/iommu_unit.hpp"
#include "sim/tlm/unit_rules.hpp"

namespace iommu {

namespace {

// NOLINTNEXTLINE(performance-no-int-to-ptr): calendar arguments are integers
UnitRequest& from_argument(std::uint64_t argument) { return *reinterpret_cast<UnitRequest*>(argument); }
std::uint64_t to_argument(UnitRequest& request) { return reinterpret_cast<std::uint64_t>(&request); }

}  // namespace

// The way in ----------------------------------------------------------------------------------------------------------

void IommuUnit::enter_port(UnitRequest& request) {
  if (!caches_.has_first_level()) return look_up_port_tlb_later(request);
  calendar_.call_at<&IommuUnit::look_up_first_level>(calendar_.now() + parameters_.timing.first_level_latency, this,
                                                     to_argument(request));
}

void IommuUnit::look_up_first_level(std::uint64_t argument) {
  UnitRequest& request = from_argument(argument);
  request.split.lookup += parameters_.timing.first_level_latency;
  if (may_hit_at_port(request) &&
      answer_at_port(request, caches_.find_first_level(request.port, request.translation), PortLookup::First))
    return;
  look_up_port_tlb_later(request);
}

void IommuUnit::look_up_port_tlb_later(UnitRequest& request) {
  if (!caches_.has_port_tlb()) return leave_port(request);
  calendar_.call_at<&IommuUnit::look_up_port_tlb>(calendar_.now() + parameters_.timing.port_tlb_latency, this,
                                                  to_argument(request));
}

void IommuUnit::look_up_port_tlb(std::uint64_t argument) {
  UnitRequest& request = from_argument(argument);
  request.split.lookup += parameters_.timing.port_tlb_latency;
  if (may_hit_at_port(request) &&
      answer_at_port(request, caches_.find_port_tlb(request.port, request.translation), PortLookup::First))
    return;
  leave_port(request);
}

bool IommuUnit::may_hit_at_port(const UnitRequest& request) const {
  return core_.is_translating() && uses_caches(request.translation);
}

// True when what the port holds is an answer. One that had to wait for it missed, and is served by another one's walk.
bool IommuUnit::answer_at_port(UnitRequest& request, const CachedTranslation* found, PortLookup lookup) {
  if (found == nullptr || !found->allowed.allow(request.translation.access)) return false;
  const CachedTranslation translation = *found;
  if (translation.is_untried) caches_.count_first_use(request.port, request.translation);
  leave_queue();
  request.internal.sequence = next_sequence_++;
  ++statistics_.lookups;
  if (lookup == PortLookup::Again) {
    ++statistics_.misses;
    join(request);
  } else {
    ++statistics_.hits;
    ++statistics_.hits_by_page_lg2[translation.page_lg2];
  }
  answer(request, translation.at(request.translation.address));
  return true;
}

void IommuUnit::leave_port(UnitRequest& request) {
  if (parameters_.translation_slots != 0 && !request.internal.slot) {
    switch (slots_of(request.port).take(request, key_of(request.translation, mode_asked(request.translation)))) {
      case PortSlots::Outcome::Follows:
        ++statistics_.slot_merges;
        return;
      case PortSlots::Outcome::Waits:
        ++statistics_.slot_waits;
        return;
      case PortSlots::Outcome::HasSlot:
        break;
    }
  }
  request.internal.is_behind_port = true;
  if (parameters_.timing.message_latency == Picoseconds{}) return schedule_lookup(request);
  calendar_.call_at<&IommuUnit::arrive_at_shared>(calendar_.now() + parameters_.timing.message_latency, this,
                                                  to_argument(request));
}

void IommuUnit::arrive_at_shared(std::uint64_t request) { schedule_lookup(from_argument(request)); }

// The way out ---------------------------------------------------------------------------------------------------------

// Its answer is on its way, and is still subject to invalidations.
void IommuUnit::send_back(UnitRequest& request) {
  if (parameters_.timing.message_latency == Picoseconds{}) return arrive_at_port(request);
  returning_.push(&request);
  calendar_.call_at<&IommuUnit::arrive_next_at_port>(calendar_.now() + parameters_.timing.message_latency, this);
}

void IommuUnit::arrive_next_at_port(std::uint64_t) { arrive_at_port(*returning_.pop()); }

void IommuUnit::arrive_at_port(UnitRequest& request) {
  if (request.internal.fills_port)
    caches_.fill_port(request.port, request.translation, *request.internal.tag,
                      CachedTranslation::of(std::get<Translation>(request.response)), *request.internal.fills_port);
  const std::uint8_t port = request.port;
  UnitRequest* followers = request.internal.slot ? slots_of(port).release(request) : nullptr;
  conclude(request);
  hand_on(port, followers);
}

// A slot has become free. What its followers wait for is at the port now, or they must ask themselves.
void IommuUnit::hand_on(std::uint8_t port, UnitRequest* followers) {
  while (followers != nullptr) look_up_again(*std::exchange(followers, followers->internal.next));
  if (parameters_.translation_slots == 0) return;
  while (UnitRequest* next = slots_of(port).next()) look_up_again(*next);
}

void IommuUnit::look_up_again(UnitRequest& request) {
  if (may_hit_at_port(request)) {
    const auto* found = caches_.has_port_tlb()      ? caches_.find_port_tlb(request.port, request.translation)
                        : caches_.has_first_level() ? caches_.find_first_level(request.port, request.translation)
                                                    : nullptr;
    if (answer_at_port(request, found, PortLookup::Again)) return;
  }
  leave_port(request);
}

// Walks ahead ---------------------------------------------------------------------------------------------------------

// ASSUMPTION(tlm-002): pages next to a missed one are walked when its walk ends, each by an idle walker or not at all;
// what they bring is at the port at once. Units that walk ahead exist, their rules are not published.
void IommuUnit::prefetch_behind(const MissEntry& demanded, const Translation& translation) {
  const std::uint64_t page = 1ULL << translation.page_lg2;
  TranslationRequest request = demanded.translation;
  request.execute = mode_asked(request).execute;
  request.access = Access::Read;
  request.length = Bytes(1);
  request.address = request.address.aligned_down(translation.page_lg2);
  for (std::uint32_t n = 0; n < parameters_.prefetch_pages; ++n) {
    if (request.address.value() > ~0ULL - page) return;
    request.address = request.address + Bytes(page);
    if (!walkers_.has_idle_walker() || !walkers_.has_free_entry() || !blocked_.is_empty()) return;
    const MissKey key = key_of(request, demanded.key.mode);
    if (walkers_.find(key) != nullptr || caches_.holds(demanded.port, request, demanded.tag) ||
        core_.answer_without_tables(request))
      continue;
    MissEntry& entry = *walkers_.allocate(key, demanded.began);
    entry.context = demanded.context;
    entry.tag = demanded.tag;
    entry.translation = request;
    entry.port = demanded.port;
    entry.purpose = WalkPort::Purpose::Speculation;
    ++statistics_.prefetch_walks;
    walkers_.start(entry);
  }
}

void IommuUnit::keep_prefetched(const MissEntry& entry, const Translation& translation) {
  ++statistics_.prefetched;
  CachedTranslation kept = CachedTranslation::of(translation);
  const UnitRequest* waiting = entry.requests.first();
  while (waiting != nullptr && !kept.allowed.allow(waiting->translation.access)) waiting = waiting->internal.next;
  if (waiting != nullptr) ++statistics_.prefetch_used;
  kept.is_untried = waiting == nullptr;
  caches_.fill(entry.tag, entry.translation.address, kept, entry.began.translations);
  caches_.fill_port(entry.port, entry.translation, entry.tag, kept, entry.began.ports);
}

// A refusal is nobody's fault: whoever waits for the page meanwhile walks for itself.
void IommuUnit::prefetch_finished(MissEntry& entry, const TranslationResponse& response) {
  for (std::size_t kind = 0; kind < kAccessKinds; ++kind) statistics_.reads[kind] += entry.accounts->reads()[kind];
  const auto* translation = std::get_if<Translation>(&response);
  if (translation != nullptr) {
    if (is_cacheable(entry.translation, *translation)) keep_prefetched(entry, *translation);
  } else if (const auto stall = std::get<Fault>(response).stall) {
    core_.withdraw_stall(*stall);
  }
  const MissEntry finished = entry;
  UnitRequest* waiting = entry.requests.take();
  walkers_.release(entry);
  if (waiting != nullptr && translation != nullptr && !finished.is_overtaken) prefetch_behind(finished, *translation);
  while (waiting != nullptr) {
    UnitRequest& next = *std::exchange(waiting, waiting->internal.next);
    answer_merged(next, response, finished.began.ports);
  }
  if (finished.draining) draining_.leave(*finished.draining);
  readmit_blocked();
}

}  // namespace iommu
