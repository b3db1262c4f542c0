// SPDX-License-Identifier: Apache-2.0
// A PCIe root port in time: buffers requests that arrived over its link, has each translated, gives it to memory, and
// returns read completions.
//
//   upstream link ─► posted buffer     ─► window of translations ─► memory            writes, in order throughout
//                 ─► non-posted buffer ─► window of translations ─► memory ─► completions ─► downstream link   reads
//
// The buffers are the credits that the port advertises. A window limits how many translations of a class are asked for
// and not yet used; where a class is in order, a translation is used only after all older ones of its class, so one
// miss holds up the hits behind it. Requests are submitted in order of arrival; when the IOMMU is full they stay in the
// buffer.
//
// Closed form, unloaded, direct link:  write  ser(write) + propagation + translation + memory
//                                      read   ser(read) + propagation + translation + memory + ser(completions) +
//                                      propagation
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "sim/base/calendar.hpp"
#include "sim/pcie/dma_port.hpp"
#include "sim/tlm/fifo.hpp"
#include "sim/tlm/in_flight.hpp"
#include "sim/tlm/memory_system.hpp"
#include "sim/tlm/pcie_link.hpp"
#include "sim/tlm/unit_request.hpp"

namespace iommu {

// Where a root port has addresses translated.
class TranslationPort {
 public:
  virtual ~TranslationPort() = default;
  [[nodiscard]] virtual bool can_accept() const = 0;
  // Calls back once, when a full port has room again.
  virtual void on_space(Calendar::Action action, void* context, std::uint64_t argument) = 0;
  // The request's `done` runs from the calendar, never inside.
  virtual void submit(UnitRequest& request) = 0;
  [[nodiscard]] virtual InFlightTracker& in_flight() = 0;
};

enum class ReturnOrder : std::uint8_t { InOrder, OutOfOrder };
// May a read overtake older writes on its way to memory? PCIe forbids it unless the request is marked relaxed.
enum class ReadsPassWrites : std::uint8_t { No, Yes };

struct RootPortParameters {
  LinkParameters link{};
  Picoseconds propagation = 150_ns;             // >= 0: one way, wire and both ends' pipelines, without serialisation
  Credits posted{.headers = 100, .data = 400};  // data: at least one max_payload
  std::uint32_t nonposted_headers = 64;         // 1 …
  std::uint32_t write_translations = 16;        // 1 …: asked for and not yet used
  std::uint32_t read_translations = 8;          // 1 …
  ReturnOrder read_translation_order = ReturnOrder::InOrder;
  ReturnOrder completion_order = ReturnOrder::InOrder;
  ReadsPassWrites reads_pass_writes = ReadsPassWrites::No;

  // Why the parameters cannot be; null when they can.
  [[nodiscard]] const char* problem() const;
};

// A request's journey. Owned by the root port; the sender fills the first part.
struct Tlp {
  // Who is told, from the calendar. Write: memory has accepted it, or it was dropped. Read: its last completion has
  // arrived.
  // Its argument is the packet, see PcieRootPort::tlp_at().
  Calendar::Action done = nullptr;
  void* context = nullptr;
  void* owner = nullptr;  // the sender's
  std::uint32_t bytes = 0;
  Picoseconds extra_latency;  // of switches between the sender and the root port, each way
  // The sender's own id where a bridge has put another into the request.
  std::optional<RequesterId> sender{};

  template <auto kMember, class T>
  void on_done(T* object) {
    done = [](void* self, std::uint64_t tlp) { (static_cast<T*>(self)->*kMember)(tlp); };
    context = object;
  }

  UnitRequest request;  // the sender sets request.translation; the rest is the root port's

  // Results.
  bool faulted = false;
  Picoseconds completed;

  struct Internal {
    DataTransfer data;
    std::uint64_t writes_before = 0;  // writes that arrived earlier
    InFlightTracker::Ticket ticket = 0;
    bool is_translated = false;
    bool has_data = false;
  } internal;
};

struct RootPortStatistics {
  std::uint64_t reads = 0;
  std::uint64_t writes = 0;
  std::uint64_t completions = 0;
  std::uint64_t faulted = 0;        // refused by the IOMMU
  std::uint64_t unbacked = 0;       // translated to where no memory is
  std::uint64_t iommu_full = 0;     // times that a request found the IOMMU full
  std::uint32_t most_buffered = 0;  // requests at once
};

class PcieRootPort {
 public:
  // References outlive the port; `observer` may be null. Destroying it drops requests: clear the calendar first.
  PcieRootPort(Calendar& calendar, TranslationPort& translation, MemorySystem::Port& memory,
               const RootPortParameters& parameters, DmaObserver* observer);
  PcieRootPort(const PcieRootPort&) = delete;
  PcieRootPort& operator=(const PcieRootPort&) = delete;

  // Sender's side: take credits, fill a TLP, send it.
  [[nodiscard]] CreditPool& credits(Access access) { return access == Access::Read ? nonposted_ : posted_; }
  [[nodiscard]] static Credits credits_for(Access access, std::uint32_t bytes);
  [[nodiscard]] Tlp& allocate();
  void send(Tlp& tlp);
  [[nodiscard]] static Tlp& tlp_at(std::uint64_t argument);
  // Back to the port, from `done` or later.
  void recycle(Tlp& tlp) { free_.push_back(&tlp); }

  [[nodiscard]] const RootPortParameters& parameters() const { return parameters_; }
  [[nodiscard]] LinkDirection& upstream() { return upstream_; }
  [[nodiscard]] LinkDirection& downstream() { return downstream_; }
  [[nodiscard]] const RootPortStatistics& statistics() const { return statistics_; }
  void reset_statistics();
  // A sender that found no credits is told once when some were freed; they arrive at credits().next_update().
  void on_credits(Calendar::Action action, void* context, std::uint64_t argument);
  // The upstream link takes turns: a sender that found it taken is called, first come first served, when it may send
  // one packet.
  [[nodiscard]] bool is_link_free() const { return turns_.is_empty() && upstream_.free_at() <= calendar_.now(); }
  void on_link(Calendar::Action action, void* context, std::uint64_t argument);

 private:
  // Requests of one class between arrival and use of the translation.
  struct Lane {
    Access access = Access::Read;
    std::uint32_t limit = 1;
    ReturnOrder order = ReturnOrder::InOrder;
    Fifo<Tlp*> waiting;
    Fifo<Tlp*> window;        // InOrder only
    std::uint32_t asked = 0;  // translations asked for and not yet used
    bool waits_for_space = false;
  };
  void arrive(std::uint64_t tlp);
  void submit_from(Lane& lane);
  void space(std::uint64_t lane);
  void translated(std::uint64_t tlp);
  void use(Tlp& tlp);
  void use_write(Tlp& tlp);
  void use_read(Tlp& tlp);
  void access_memory(Tlp& tlp);
  void release_reads();
  void memory_done(std::uint64_t tlp);
  void write_over(Tlp& tlp);
  void read_over(Tlp& tlp);
  void send_completions(Tlp& tlp);
  void finish(std::uint64_t tlp);
  void give_turn(std::uint64_t);
  void schedule_turn();
  void give_back(const Tlp& tlp);
  [[nodiscard]] Lane& lane_of(const Tlp& tlp) {
    return tlp.request.translation.access == Access::Read ? reads_ : writes_;
  }

  Calendar& calendar_;
  TranslationPort& translation_;
  MemorySystem::Port& memory_;
  RootPortParameters parameters_;
  DmaObserver* observer_;
  LinkDirection upstream_;
  LinkDirection downstream_;
  CreditPool posted_;
  CreditPool nonposted_;
  Lane reads_;
  Lane writes_;
  std::uint64_t writes_arrived_ = 0;
  std::uint64_t writes_used_ = 0;
  Fifo<Tlp*> reads_behind_writes_;
  Fifo<Tlp*> completions_;  // reads in order of arrival, when completions are in order
  std::uint32_t buffered_ = 0;
  struct Sender {
    Calendar::Action action = nullptr;
    void* context = nullptr;
    std::uint64_t argument = 0;
  };
  std::vector<Sender> credit_waiters_;
  Fifo<Sender> turns_;
  std::vector<std::unique_ptr<Tlp>> tlps_;  // grown to the most that were ever in flight
  std::vector<Tlp*> free_;
  RootPortStatistics statistics_;
};

}  // namespace iommu
