// SPDX-License-Identifier: Apache-2.0
#include "sim/strategy/virtual_interface.hpp"

#include <algorithm>
#include <utility>

#include "sim/base/check.hpp"

namespace iommu::strategy {

VirtualInterface::VirtualInterface(xen::Hypervisor& xen, SignalPort& signals, xen::Domain& sender,
                                   xen::Domain& receiver, VirtualInterfaceCpus cpus,
                                   const VirtualInterfaceSetting& setting)
    : xen_(xen), signals_(signals), sender_(sender), receiver_(receiver), cpus_(cpus), setting_(setting) {
  SIM_CHECK(setting.budget > 0 && setting.packet_size > 0_B, "a batch has packets, and a packet bytes");
}

bool VirtualInterface::prepare(guest::GuestPages& sender_pages) {
  if (slots_per_packet() > setting_.ring_slots) return false;
  // ASSUMPTION(vif-001): the receiver maps at addresses right above its memory, as Linux's unpopulated pages are.
  const Gfn first(receiver_.setting.memory.value() >> kPageLg2);
  if (receiver_.p2m.absent(first) < setting_.ring_slots) return false;
  for (std::uint32_t i = 0; i < setting_.ring_slots; ++i) {
    const auto page = sender_pages.allocate();
    const auto machine = page ? sender_.p2m.memory_frame(Gfn(*page)) : std::nullopt;
    if (!machine) return false;
    slots_.push_back({*machine, first + i});
    free_.push_back(i);
  }
  return true;
}

void VirtualInterface::start() {
  threads_.push_back(map());
  threads_.push_back(read());
  threads_.push_back(unmap());
  threads_.push_back(send());
  for (Task<void>& thread : threads_) thread.start();
}

void VirtualInterface::wake(Sleeper& sleeper) {
  if (std::exchange(sleeper.sleeps, false)) signals_.raise(sleeper.signal);
}

// The guest -------------------------------------------------------------------------------------------------------

Task<void> VirtualInterface::send() {
  while (sent_ < setting_.packets) {
    while (free_.size() >= slots_per_packet() && sent_ < setting_.packets) co_await post();
    if (sent_ == setting_.packets) co_return;
    sender_sleep_.sleeps = true;
    co_await cpus_.send.idle(sender_sleep_.signal);
    co_await cpus_.send.charge(CostId::Interrupt);
    const std::uint32_t freed = std::exchange(freed_, 0);
    co_await cpus_.send.charge(CostId::GrantIssue, freed);
    co_await cpus_.send.charge(CostId::DriverComplete, freed);
  }
}

// One packet: a grant and a ring entry a page. The other end is notified when it sleeps.
Task<void> VirtualInterface::post() {
  co_await cpus_.send.charge(CostId::StackWork);
  Packet packet{.slots = {free_.end() - static_cast<std::ptrdiff_t>(slots_per_packet()), free_.end()},
                .posted = cpus_.send.now()};
  free_.resize(free_.size() - packet.slots.size());
  co_await cpus_.send.charge(CostId::GrantIssue, packet.slots.size());
  co_await cpus_.send.charge(CostId::DriverSubmit, packet.slots.size());
  posted_.push_back(std::move(packet));
  ++sent_;
  if (!map_sleep_.sleeps) co_return;
  co_await cpus_.send.charge(CostId::Hypercall);
  wake(map_sleep_);
}

// The receiver ----------------------------------------------------------------------------------------------------

Task<void> VirtualInterface::map() {
  CpuPort& cpu = cpus_.map;
  while (true) {
    if (posted_.empty()) {
      map_sleep_.sleeps = true;
      co_await cpu.idle(map_sleep_.signal);
      co_await cpu.charge(CostId::Interrupt);
    }
    const std::size_t count = std::min<std::size_t>(setting_.budget, posted_.size());
    std::deque<Packet> batch;
    for (std::size_t i = 0; i < count; ++i) {
      batch.push_back(std::move(posted_.front()));
      posted_.pop_front();
    }
    co_await cpu.charge(CostId::Hypercall, 2);  // copy the headers, map the pages
    co_await cpu.charge(CostId::GrantCopy, batch.size());
    for (Packet& packet : batch) {
      const bool mapped = co_await map_pages(packet.slots);
      packet.failed = !mapped;
    }
    for (Packet& packet : batch) {
      co_await cpu.charge(CostId::StackWork);
      mapped_.push_back(std::move(packet));
      wake(read_sleep_);
    }
  }
}

Task<bool> VirtualInterface::map_pages(std::vector<std::uint32_t> slots) {
  bool all = true;
  for (const std::uint32_t s : slots) {
    co_await cpus_.map.charge(CostId::GrantEntry);
    co_await cpus_.map.charge(CostId::GrantTrack);
    const xen::Errno status =
        co_await xen_.add_memory(cpus_.map, receiver_, {slots_[s].mapped, 1, slots_[s].page, xen::FrameType::Foreign});
    slots_[s].is_mapped = status == xen::Errno::Ok;
    all = all && slots_[s].is_mapped;
  }
  co_return all;
}

Task<void> VirtualInterface::read() {
  CpuPort& cpu = cpus_.read;
  while (true) {
    if (mapped_.empty()) {
      read_sleep_.sleeps = true;
      co_await cpu.idle(read_sleep_.signal);
    }
    const Packet packet = std::move(mapped_.front());
    mapped_.pop_front();
    if (!packet.failed) co_await cpu.charge(CostId::PageCopy, packet.slots.size());
    complete(packet);
    used_.insert(used_.end(), packet.slots.begin(), packet.slots.end());
    wake(unmap_sleep_);
  }
}

void VirtualInterface::complete(const Packet& packet) {
  if (meter_ != nullptr) ++meter_->completed;
  if (packet.failed) {
    ++statistics_.failed;
    return;
  }
  ++statistics_.packets;
  statistics_.bytes += setting_.packet_size.value();
  statistics_.latency.add(cpus_.read.now() - packet.posted);
}

Task<void> VirtualInterface::unmap() {
  CpuPort& cpu = cpus_.unmap;
  while (true) {
    if (used_.empty()) {
      unmap_sleep_.sleeps = true;
      co_await cpu.idle(unmap_sleep_.signal);
    }
    const std::vector<std::uint32_t> batch = std::exchange(used_, {});
    co_await cpu.charge(CostId::Hypercall);
    for (const std::uint32_t s : batch) {
      if (!std::exchange(slots_[s].is_mapped, false)) continue;
      co_await cpu.charge(CostId::GrantTrack);
      co_await cpu.charge(CostId::GrantEntry);
      const xen::Errno status = co_await xen_.remove_memory(cpu, receiver_, slots_[s].mapped, 1);
      SIM_CHECK(status == xen::Errno::Ok, "what was mapped can be unmapped");
    }
    free_.insert(free_.end(), batch.begin(), batch.end());
    freed_ += static_cast<std::uint32_t>(batch.size());
    if (!sender_sleep_.sleeps) continue;
    co_await cpu.charge(CostId::Hypercall);
    wake(sender_sleep_);
  }
}

}  // namespace iommu::strategy
