// SPDX-License-Identifier: Apache-2.0
// Host memory with time: a last-level cache, DRAM, a limit on accesses in service, a bandwidth.
//
// An access waits in arrival order until fewer than `outstanding` are in service and the bandwidth of those before it
// has been spent; it is then served in `llc_hit` or `dram` (all its lines in the cache, or not) and takes effect at the
// end of service: reads sample memory, writes become visible. Closed forms: unloaded latency = llc_hit or dram;
// saturated rate = min(outstanding / latency, bandwidth / bytes). Two misses to one line in service at the same time
// both go to DRAM.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "sim/base/calendar.hpp"
#include "sim/base/histogram.hpp"
#include "sim/memory/host_memory.hpp"
#include "sim/tlm/fifo.hpp"
#include "sim/tlm/line_tags.hpp"
#include "sim/translation/request.hpp"

namespace iommu {

// What an access does to the last-level cache.
enum class LlcPolicy : std::uint8_t {
  Bypass,    // goes to DRAM, whatever the cache holds
  Lookup,    // is served by the cache if the line is there, and leaves it as it is
  Allocate,  // the same, and a line that was not there is put in
};

struct MemoryParameters {
  Picoseconds llc_hit = 25_ns;                       // > 0: service time of an access whose lines are all cached
  Picoseconds dram = 80_ns;                          // > 0: service time of any other
  std::uint32_t outstanding = 128;                   // 1 …: accesses in service at once
  std::uint64_t bytes_per_second = 100'000'000'000;  // 1'000'000 …: all clients together
  Bytes llc_size = 16_MiB;                           // 0: no cache; a multiple of 64 * llc_ways
  std::uint32_t llc_ways = 16;                       // 1 …
  // By AccessKind. Data: DMA writes into the cache or around it (DDIO on, off); DMA reads never allocate.
  std::array<LlcPolicy, kAccessKinds> read_policy{LlcPolicy::Allocate, LlcPolicy::Allocate, LlcPolicy::Allocate,
                                                  LlcPolicy::Allocate, LlcPolicy::Allocate, LlcPolicy::Allocate,
                                                  LlcPolicy::Allocate, LlcPolicy::Lookup};
  std::array<LlcPolicy, kAccessKinds> write_policy{LlcPolicy::Allocate, LlcPolicy::Allocate, LlcPolicy::Allocate,
                                                   LlcPolicy::Allocate, LlcPolicy::Allocate, LlcPolicy::Allocate,
                                                   LlcPolicy::Allocate, LlcPolicy::Allocate};

  // Why the parameters cannot be; null when they can.
  [[nodiscard]] const char* problem() const;
};

struct MemoryCounts {
  std::uint64_t reads = 0;
  std::uint64_t writes = 0;  // compare-exchanges included
  std::uint64_t bytes = 0;
  std::uint64_t llc_hits = 0;
  Picoseconds waited;  // before service, summed
};
using MemoryCountsByKind = std::array<MemoryCounts, kAccessKinds>;

// An access of the kind that cores make, with a plain function instead of a coroutine waiting for it.
struct PostedAccess : MemoryAccess {
  Calendar::Action done = nullptr;  // may be null
  void* context = nullptr;
  std::uint64_t argument = 0;
};

// The payload of a DMA: moves no data, takes its time and bandwidth. Within one 4 KiB page.
struct DataTransfer {
  Hpa address;
  std::uint32_t bytes = 0;
  Access access = Access::Read;
  bool failed = false;              // set when done: no memory there
  Calendar::Action done = nullptr;  // runs when memory has served it; may be null
  void* context = nullptr;
  std::uint64_t argument = 0;

  template <auto kMember, class T>
  void on_done(T* object, std::uint64_t a = 0) {
    done = [](void* self, std::uint64_t x) { (static_cast<T*>(self)->*kMember)(x); };
    context = object;
    argument = a;
  }
};

class MemorySystem {
 public:
  // One client's way in: an IOMMU, a root port, a vCPU. All clients share the queue.
  class Port final : public MemoryPort {
   public:
    Port(MemorySystem& system, std::string name) : system_(system), name_(std::move(name)) {}

    bool begin(MemoryAccess& access) override;
    // The caller keeps the object in place until `done` has run.
    void post(PostedAccess& access);
    void post(DataTransfer& transfer);

    [[nodiscard]] const std::string& name() const { return name_; }
    [[nodiscard]] const MemoryCountsByKind& counts() const { return counts_; }
    // Within the completion of an access of this port (the resumed coroutine, `done`): how long it had waited for
    // service.
    [[nodiscard]] Picoseconds waited() const { return waited_; }

   private:
    friend class MemorySystem;
    MemorySystem& system_;
    std::string name_;
    MemoryCountsByKind counts_{};
    Picoseconds waited_;
  };

  // Destroying it drops accesses in service: clear the calendar first.
  MemorySystem(Calendar& calendar, HostMemory& memory, const MemoryParameters& parameters);
  MemorySystem(const MemorySystem&) = delete;
  MemorySystem& operator=(const MemorySystem&) = delete;

  // Lives as long as the system.
  Port& add_port(std::string name);
  [[nodiscard]] const std::vector<std::unique_ptr<Port>>& ports() const { return ports_; }
  [[nodiscard]] MemoryCountsByKind total() const;
  [[nodiscard]] HostMemory& host() { return memory_; }
  [[nodiscard]] const MemoryParameters& parameters() const { return parameters_; }
  // Software wrote these lines: they are in the cache. For software that writes without timed accesses.
  void touch_line(Hpa address) { tags_.fill(address); }
  [[nodiscard]] std::uint32_t in_service() const { return in_service_; }

 private:
  enum class Form : std::uint8_t { Awaited, Posted, Transfer };
  struct Item {
    void* object = nullptr;
    Port* port = nullptr;
    Picoseconds arrived{};
    std::uint32_t slot = 0;
    std::uint32_t bytes = 0;
    Hpa address;
    AccessKind kind = AccessKind::Data;
    bool is_write = false;
    bool allocates = false;
    Form form = Form::Awaited;
    Picoseconds waited{};
  };

  void arrive(const Item& item);
  void serve(const Item& item);
  void complete(std::uint64_t slot);
  [[nodiscard]] bool hits(const Item& item);
  void fill_lines(const Item& item);
  [[nodiscard]] Picoseconds transfer_time(std::uint32_t bytes) const;

  Calendar& calendar_;
  HostMemory& memory_;
  MemoryParameters parameters_;
  LineTags tags_;
  std::vector<std::unique_ptr<Port>> ports_;
  Fifo<Item> waiting_;
  std::vector<Item> slots_;          // accesses in service
  std::vector<std::uint32_t> free_;  // slots not in use
  std::uint32_t in_service_ = 0;
  Picoseconds bandwidth_free_;  // when the bandwidth of all accesses started so far is spent
};

}  // namespace iommu
