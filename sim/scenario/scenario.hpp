// SPDX-License-Identifier: Apache-2.0
// A scenario as plain data: what a user wrote, with every default filled in and every name resolved. The keys and their
// documentation are declared in schema.cpp; scenarios/README.md is the table generated from there. This header knows no
// YAML and no simulation.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "sim/base/costs.hpp"
#include "sim/base/ids.hpp"
#include "sim/base/replacement.hpp"
#include "sim/base/units.hpp"
#include "sim/scenario/quantities.hpp"

namespace iommu {

// A platform number with its origin. Reports list every row.
template <class T>
struct Row {
  T value{};
  std::string text;  // as written: "46 ns"
  std::string source;
  Mark mark = Mark::Guess;
};

// Platform ------------------------------------------------------------------------------------------------------------

struct CpuPlatform {
  Row<Hertz> frequency;  // converts cost rows that are given in cycles
};

struct MemoryPlatform {
  Row<Bytes> size;      // host memory; domains and Xen's tables must fit
  Row<Bytes> llc_size;  // last-level cache that DMA and walks look up
  Row<std::uint64_t> llc_ways;
  Row<Picoseconds> llc_latency;    // request to data, hit
  Row<Picoseconds> dram_latency;   // request to data, miss, unloaded
  Row<std::uint64_t> outstanding;  // requests in flight
  Row<BitsPerSecond> bandwidth;    // DRAM
};

// Do read completions return in the order of their requests?
enum class CompletionOrder : std::uint8_t { InOrder, OutOfOrder };

// One link per device to its root port; all links alike.
struct PciePlatform {
  Row<std::uint64_t> generation;  // 3, 4 or 5
  Row<std::uint64_t> lanes;
  Row<Bytes> max_payload;
  Row<Bytes> max_read_request;
  Row<Bytes> read_completion_boundary;
  Row<std::uint64_t> posted_header_credits;
  Row<std::uint64_t> posted_data_credits;  // units of 16 bytes
  Row<std::uint64_t> nonposted_header_credits;
  Row<std::uint64_t> completion_header_credits;
  Row<std::uint64_t> completion_data_credits;  // units of 16 bytes
  Row<std::uint64_t> tags;                     // reads in flight
  Row<Picoseconds> propagation;                // one way, without serialisation
  Row<CompletionOrder> completion_order;
  Row<std::uint64_t> root_port_buffer;  // TLPs that the root port holds while they wait for the IOMMU
};

// Does a translated request overtake an older one whose walk is still running?
enum class RequestOrder : std::uint8_t { InOrder, OutOfOrder };

struct WalkCachePlatform {
  Row<std::uint64_t> entries;  // 0: absent
  Row<std::uint64_t> ways;
};

struct IommuPlatform {
  Row<std::uint64_t> host_address_bits;
  Row<std::uint64_t> input_address_bits;  // 39, 48 or 57: three, four or five levels
  Row<bool> coherent_walks;

  Row<std::uint64_t> iotlb_entries;
  Row<std::uint64_t> iotlb_ways;
  Row<Replacement> iotlb_replacement;
  Row<Picoseconds> iotlb_latency;   // lookup to answer
  Row<Picoseconds> iotlb_interval;  // between two lookups
  Row<std::uint64_t> context_cache_entries;
  Row<std::uint64_t> context_cache_ways;
  // Index: level whose entry is remembered, 1 = entries that point to last-level tables (2 MiB reach), upward.
  std::vector<WalkCachePlatform> stage1_walk_caches;
  std::vector<WalkCachePlatform> stage2_walk_caches;
  Row<std::uint64_t> stage2_leaf_entries;  // guest-physical to host-physical translations, for nested walks; 0: absent
  Row<std::uint64_t> stage2_leaf_ways;

  Row<std::uint64_t> walker_slots;
  Row<Picoseconds> walker_interval;  // between two walk starts
  Row<std::uint64_t> miss_entries;   // outstanding misses to different pages
  Row<std::uint64_t> request_queue;  // requests that wait for a lookup
  Row<RequestOrder> request_order;

  Row<std::uint64_t> command_ring_entries;
  Row<Picoseconds> command_decode;          // per command, after its fetch
  Row<Picoseconds> invalidation_scan;       // one pass over the caches
  Row<Picoseconds> register_write_latency;  // CPU write until the unit sees it
};

struct Platform {
  std::string name;
  std::string description;
  CpuPlatform cpu;
  MemoryPlatform memory;
  PciePlatform pcie;
  IommuPlatform iommu;
  CostTable costs;
};

// Topology ------------------------------------------------------------------------------------------------------------

struct IommuUnit {
  std::string name;
  std::vector<std::string> covers;  // root ports
};

struct RootPort {
  std::string name;
};

struct PcieSwitch {
  std::string name;
  std::string upstream;  // root port or switch
  Picoseconds latency;   // added to every TLP, each way
};

struct Topology {
  std::vector<IommuUnit> iommus;
  std::vector<RootPort> root_ports;
  std::vector<PcieSwitch> switches;
};

// Domains -------------------------------------------------------------------------------------------------------------

// How the p2m backs guest memory with host memory.
enum class P2mLayout : std::uint8_t { Contiguous, Fragmented };
enum class DmaPolicy : std::uint8_t { Strict, Lazy };

struct P2mSetting {
  Bytes page_size = 4_KiB;  // largest page in the p2m: 4 KiB, 2 MiB or 1 GiB
  P2mLayout layout = P2mLayout::Contiguous;
};

// The guest kernel's DMA API.
struct DmaApiSetting {
  DmaPolicy policy = DmaPolicy::Strict;
  std::uint64_t flush_queue_entries = 250;  // Lazy: a flush is due when so many ranges wait
  Picoseconds flush_timeout = 10_ms;        // Lazy: or when the oldest is this old
  bool leaf_hint = false;                   // unmap invalidates leaves only unless tables were freed
};

struct DomainSetting {
  std::string name;
  Bytes memory;
  std::uint64_t vcpus = 1;
  P2mSetting p2m;
  DmaApiSetting dma_api;
};

// Devices -------------------------------------------------------------------------------------------------------------

enum class WorkloadKind : std::uint8_t { Nic, RandomDma, Trace };
enum class NicDirection : std::uint8_t { Receive, Transmit };
enum class DmaDirection : std::uint8_t { Read, Write };

// A ring NIC and its driver: map, post, DMA, complete, unmap. One I/O is one packet.
struct NicWorkload {
  NicDirection direction = NicDirection::Receive;
  Bytes packet_size;
  Bytes buffer_size;                  // mapped per packet; at least packet_size
  std::uint64_t ring_entries = 256;   // power of two
  std::optional<BitsPerSecond> rate;  // of payload; nullopt: saturate
};

// A device that accesses random places of a window that was mapped once. One I/O is one access.
struct RandomDmaWorkload {
  DmaDirection direction = DmaDirection::Read;
  Bytes window;
  Bytes access_size;
  Bytes page_size = 4_KiB;  // 4 KiB or 2 MiB: what the window is mapped with where the strategy's tables allow
  std::uint64_t outstanding = 1;
};

// What a recorded DMA was for.
enum class TraceClass : std::uint8_t { SubmissionQueue, CompletionQueue, Data, PrpList, ShadowDoorbell, ReceiveBuffer };

// Replays a recorded driver. One I/O is one recorded DMA.
struct TraceWorkload {
  std::string file;      // as written: relative to the scenario file
  std::string resolved;  // path to open; never part of a result
  std::vector<TraceClass> drop{TraceClass::ShadowDoorbell};
  std::uint64_t outstanding = 16;
};

struct WorkloadSetting {
  WorkloadKind kind = WorkloadKind::Nic;
  NicWorkload nic;               // kind == Nic
  RandomDmaWorkload random_dma;  // kind == RandomDma
  TraceWorkload trace;           // kind == Trace
};

struct DeviceSetting {
  std::string name;
  RequesterId bdf;
  std::string upstream;  // root port or switch
  std::string domain;
  std::uint64_t vcpu = 0;  // of the domain: runs this device's driver
  WorkloadSetting workload;

  // Resolved, not keys.
  std::size_t domain_index = 0;
  std::size_t iommu_index = 0;
  std::size_t root_port_index = 0;
  std::vector<std::size_t> switch_path;  // indices of switches from the device up
};

// Strategies ----------------------------------------------------------------------------------------------------------

enum class StrategyKind : std::uint8_t { Passthrough, PvIommu, Nested, EmulatedViommu };
// Who answers a trapped access: Xen itself, or a user-space device model behind it.
enum class TrapTarget : std::uint8_t { Xen, DeviceModel };

struct StrategySetting {
  StrategyKind kind = StrategyKind::Passthrough;
  std::string label;  // distinct per scenario; the kind's name unless set

  // PvIommu
  bool deferred_flush = false;     // unmap returns before the flush; the guest's flush queue asks for it
  std::uint64_t arena_order = 12;  // Xen's table pool for the domain: 2^order pages
  std::uint64_t max_contexts = 128;
  bool superpages = false;  // Xen coalesces aligned contiguous entries
  // Nested: what a write to the guest's command doorbell traps to.
  TrapTarget doorbell = TrapTarget::Xen;
  // EmulatedViommu
  TrapTarget placement = TrapTarget::Xen;
};

// Scenario ------------------------------------------------------------------------------------------------------------

// How much is simulated: a number of I/Os or a time, after a warm-up that no metric includes. Exactly one of `ios` and
// `duration` is set, except for traces, which end by themselves.
struct MeasureSetting {
  std::optional<std::uint64_t> ios;  // over all devices
  std::optional<Picoseconds> duration;
  std::uint64_t warmup_ios = 0;
  Picoseconds time_limit = Picoseconds(10'000'000'000'000);  // simulated; a run that reaches it fails
};

// One axis of variation, as text; see expand() in parser.hpp.
struct VarySetting {
  std::string key;                  // path of a key: "devices[0].workload.window"
  std::string label;                // name of the label in results; the key's last part unless set
  std::vector<std::string> values;  // as written
};

struct Scenario {
  std::string name;
  std::string description;
  std::uint64_t seed = 1;
  MeasureSetting measure;
  Platform platform;
  Topology topology;
  std::vector<DomainSetting> domains;
  std::vector<DeviceSetting> devices;
  std::vector<StrategySetting> strategies;
  std::vector<std::string> families;  // as in the registry: "vtd"
  std::vector<VarySetting> vary;
};

// Which of a scenario's runs this is.
struct RunSelection {
  std::size_t strategy = 0;  // index into Scenario::strategies
  std::string family;
  // What distinguishes this run in results: strategy, family, and one entry per varied key. Ordered.
  std::vector<std::pair<std::string, std::string>> labels;
};

}  // namespace iommu
