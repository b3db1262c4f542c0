// SPDX-License-Identifier: Apache-2.0
// One direction of a PCIe link in time, and the flow-control credits of one traffic class.
//
// Closed forms: a packet of n bytes that finds the wire free arrives serialisation_time(n) + propagation later; back to
// back, packets arrive one serialisation time apart.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "sim/base/calendar.hpp"
#include "sim/pcie/tlp.hpp"
#include "sim/tlm/fifo.hpp"

namespace iommu {

class LinkDirection {
 public:
  LinkDirection(const LinkParameters& link, Picoseconds propagation) : link_(link), propagation_(propagation) {}

  // Puts a packet on the wire behind those before it; returns when its last bit arrives.
  Picoseconds send(Picoseconds now, Bytes size) {
    const Picoseconds time = serialisation_time(size, link_);
    free_at_ = std::max(now, free_at_) + time;
    busy_ += time;
    bytes_ += size;
    ++packets_;
    return free_at_ + propagation_;
  }
  // When the wire is free for the next packet.
  [[nodiscard]] Picoseconds free_at() const { return free_at_; }
  [[nodiscard]] const LinkParameters& link() const { return link_; }
  [[nodiscard]] Picoseconds propagation() const { return propagation_; }

  // Since the last reset_statistics().
  [[nodiscard]] Picoseconds busy() const { return busy_; }
  [[nodiscard]] Bytes bytes() const { return bytes_; }
  [[nodiscard]] std::uint64_t packets() const { return packets_; }
  void reset_statistics() {
    busy_ = {};
    bytes_ = {};
    packets_ = 0;
  }

 private:
  LinkParameters link_;
  Picoseconds propagation_;
  Picoseconds free_at_;
  Picoseconds busy_;
  Bytes bytes_;
  std::uint64_t packets_ = 0;
};

struct Credits {
  std::uint32_t headers = 0;
  std::uint32_t data = 0;  // units of 16 bytes
};

// Credits as the sender sees them: what the receiver frees can be used once the update has crossed the link. Updates in
// transit cost no events; a sender that runs dry asks when to look again.
class CreditPool {
 public:
  CreditPool(Credits granted, Picoseconds update_latency) : available_(granted), update_latency_(update_latency) {}

  // Takes credits if they are there.
  [[nodiscard]] bool take(Picoseconds now, Credits wanted) {
    collect(now);
    if (available_.headers < wanted.headers || available_.data < wanted.data) return false;
    available_.headers -= wanted.headers;
    available_.data -= wanted.data;
    return true;
  }
  void give_back(Picoseconds now, Credits freed) { updates_.push({now + update_latency_, freed}); }
  // When the next update arrives; nullopt when none is in transit.
  [[nodiscard]] std::optional<Picoseconds> next_update() {
    if (updates_.is_empty()) return std::nullopt;
    return updates_.front().when;
  }
  [[nodiscard]] Credits available(Picoseconds now) {
    collect(now);
    return available_;
  }

 private:
  struct Update {
    Picoseconds when;
    Credits freed;
  };
  void collect(Picoseconds now) {
    while (!updates_.is_empty() && updates_.front().when <= now) {
      const Update update = updates_.pop();
      available_.headers += update.freed.headers;
      available_.data += update.freed.data;
    }
  }
  Credits available_;
  Picoseconds update_latency_;
  Fifo<Update> updates_;
};

}  // namespace iommu
