// SPDX-License-Identifier: Apache-2.0
// A virtual network interface: a guest sends packets whose pages it grants; a driver in another domain (Dom0) takes
// them in batches, maps the pages, hands the packets to its stack, and unmaps the pages when the reader has copied
// them. Each mapping and unmapping changes the p2m of that domain, one page at a time, under its lock: where its
// context 0 shows its memory to devices, a page that goes costs a flush on every unit that the context is used on.
//
//   VirtualInterface vif(xen, signals, guest, dom0, {guest_cpu, map_cpu, read_cpu, unmap_cpu}, {.packet_size =
//   64_KiB}); vif.prepare(guest_pages);  vif.start();
//
// As Linux has it [drivers/net/xen-netback/netback.c]: xenvif_tx_action() copies the headers of a batch in one
// hypercall and maps all its pages in another; xenvif_tx_dealloc_action(), a kernel thread of its own, unmaps what has
// been freed since in one. As Xen has it [xen/arch/x86/hvm/grant_table.c, mm/p2m-ept.c]: each page is its own p2m
// entry; a new entry is added (no flush unless not-present entries are cached), one that goes is first dropped from
// CPUs by IPI and then flushed from IOMMUs, each with its wait, before the next.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "sim/base/cpu_port.hpp"
#include "sim/base/histogram.hpp"
#include "sim/base/task.hpp"
#include "sim/guest/guest_table_memory.hpp"
#include "sim/pcie/workload.hpp"
#include "sim/xen/hypervisor.hpp"

namespace iommu::strategy {

struct VirtualInterfaceSetting {
  Bytes packet_size{65536};
  std::uint32_t ring_slots = 256;  // pages under way
  std::uint32_t budget = 64;       // packets of a batch
  std::uint64_t packets = ~0ULL;   // stop after so many
};

// Who does what; several may be one. The last three are the receiving domain's.
struct VirtualInterfaceCpus {
  CpuPort& send;
  CpuPort& map;
  CpuPort& read;
  CpuPort& unmap;
};

struct VirtualInterfaceStatistics {
  std::uint64_t packets = 0;
  std::uint64_t failed = 0;  // a page could not be mapped
  std::uint64_t bytes = 0;
  Histogram latency;  // posted to copied
};

class VirtualInterface {
 public:
  // All outlive it.
  VirtualInterface(xen::Hypervisor& xen, SignalPort& signals, xen::Domain& sender, xen::Domain& receiver,
                   VirtualInterfaceCpus cpus, const VirtualInterfaceSetting& setting);
  VirtualInterface(const VirtualInterface&) = delete;
  VirtualInterface& operator=(const VirtualInterface&) = delete;

  // False: the sender has no pages for its ring, or the receiver no free addresses above its memory.
  [[nodiscard]] bool prepare(guest::GuestPages& sender_pages);
  void start();
  [[nodiscard]] bool is_done() const { return statistics_.packets + statistics_.failed >= setting_.packets; }
  // Counts packets there as well; outlives the interface.
  void connect(IoMeter& meter) { meter_ = &meter; }
  [[nodiscard]] const VirtualInterfaceStatistics& statistics() const { return statistics_; }
  void reset_statistics() { statistics_ = {}; }

 private:
  struct Slot {
    Mfn page;    // the sender's
    Gfn mapped;  // where the receiver maps it
    bool is_mapped = false;
  };
  struct Packet {
    std::vector<std::uint32_t> slots;
    Picoseconds posted;
    bool failed = false;
  };
  // A thread that sleeps while its queue is empty.
  struct Sleeper {
    Signal signal;
    bool sleeps = false;
  };
  Task<void> send();
  Task<void> map();
  Task<void> read();
  Task<void> unmap();
  Task<void> post();
  Task<bool> map_pages(std::vector<std::uint32_t> slots);
  void complete(const Packet& packet);
  void wake(Sleeper& sleeper);
  [[nodiscard]] std::size_t slots_per_packet() const {
    return (setting_.packet_size.value() + kPageSize.value() - 1) >> kPageLg2;
  }

  xen::Hypervisor& xen_;
  SignalPort& signals_;
  xen::Domain& sender_;
  xen::Domain& receiver_;
  VirtualInterfaceCpus cpus_;
  VirtualInterfaceSetting setting_;
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_;
  std::deque<Packet> posted_;
  std::deque<Packet> mapped_;
  std::vector<std::uint32_t> used_;  // to be unmapped
  Sleeper sender_sleep_, map_sleep_, read_sleep_, unmap_sleep_;
  std::uint64_t sent_ = 0;
  std::uint32_t freed_ = 0;  // slots that the sender has not seen come back yet
  IoMeter* meter_ = nullptr;
  VirtualInterfaceStatistics statistics_;
  std::vector<Task<void>> threads_;
};

}  // namespace iommu::strategy
