// SPDX-License-Identifier: Apache-2.0
// A scenario as plain data: what a user wrote, with every default filled in and every name resolved. The keys and their
// documentation are declared in schema.cpp; scenarios/README.md is the table generated from there. This header knows no
// YAML and no simulation.
#pragma once

#include <array>
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

namespace iommu::scenario {

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
  Row<Bytes> size;      // host memory: guests and Xen's tables must fit
  Row<Bytes> llc_size;  // last-level cache that DMA and walks look up
  Row<std::uint64_t> llc_ways;
  Row<Picoseconds> llc_hit;        // service of an access whose lines are cached
  Row<Picoseconds> dram;           // service of any other, unloaded
  Row<std::uint64_t> outstanding;  // accesses in service at once
  Row<BitsPerSecond> bandwidth;
  Row<bool> dma_writes_allocate;  // DMA writes go into the last-level cache (DDIO) or around it
};

// Do things come back in the order in which they were asked for?
enum class ReturnSequence : std::uint8_t { InOrder, OutOfOrder };

// The link of one root port and the endpoint on it; all links alike. Names are those of LinkParameters,
// RootPortParameters and EndpointParameters.
struct PciePlatform {
  Row<std::uint64_t> generation;  // 1 to 6
  Row<std::uint64_t> lanes;
  Row<Bytes> max_payload;
  Row<Bytes> max_read_request;
  Row<Bytes> read_completion_boundary;
  Row<std::uint64_t> dllp_per_mille;  // of the raw rate, for acknowledgements and flow control
  Row<Picoseconds> propagation;       // one way, without serialisation
  // Root port.
  Row<std::uint64_t> posted_headers;
  Row<std::uint64_t> posted_data;  // units of 16 bytes
  Row<std::uint64_t> nonposted_headers;
  Row<std::uint64_t> write_translations;  // asked for and not yet used
  Row<std::uint64_t> read_translations;
  Row<ReturnSequence> read_translation_order;
  Row<ReturnSequence> completion_order;
  Row<bool> reads_pass_writes;
  // Endpoint.
  Row<std::uint64_t> tags;         // reads in flight
  Row<Picoseconds> read_interval;  // between the starts of two read operations
  Row<Picoseconds> write_interval;
  Row<std::uint64_t> completion_headers;  // room for completions; 0: as much as the tags can ask for
  Row<std::uint64_t> completion_data;     // units of 16 bytes
};

// Do translations leave the unit in the order in which they were asked for?
enum class RequestOrder : std::uint8_t { InOrder, OutOfOrder };
// Which DMA a fence waits for besides the translations in the unit.
enum class Drain : std::uint8_t { Translations, TranslationsAndDma };

struct CachePlatform {
  Row<std::uint64_t> entries;  // 0: absent
  Row<std::uint64_t> ways;     // 0: fully associative
  Row<Replacement> replacement;
  Row<SetIndex> index;
};

// Pointers to tables, by how much of the address space one entry covers.
inline constexpr std::size_t kWalkCacheReaches = 4;
using WalkCachePlatform = std::array<CachePlatform, kWalkCacheReaches>;  // 2 MiB, 1 GiB, 512 GiB, 256 TiB

// Names are those of IommuParameters in sim/tlm.
struct IommuPlatform {
  Row<std::uint64_t> host_address_bits;
  Row<std::uint64_t> input_address_bits;  // 39, 48 or 57: three, four or five levels
  Row<bool> coherent_walks;
  Row<std::uint64_t> command_ring_entries;

  CachePlatform iotlb;
  CachePlatform iotlb_large;  // pages of 2 MiB and more; absent: they share `iotlb`
  CachePlatform first_level;  // per root port, in front of everything
  CachePlatform port_tlb;     // per root port, behind it
  CachePlatform context_cache;
  WalkCachePlatform stage1_walk_cache;
  WalkCachePlatform stage2_walk_cache;
  CachePlatform stage2_leaf_cache;

  Row<Picoseconds> lookup_latency;
  Row<Picoseconds> lookup_interval;
  Row<std::uint64_t> lookup_ports;
  Row<Picoseconds> first_level_latency;
  Row<Picoseconds> port_tlb_latency;
  Row<Picoseconds> message_latency;
  Row<Picoseconds> walk_start;
  Row<Picoseconds> walk_interval;
  Row<Picoseconds> context_start;
  Row<Picoseconds> table_read_issue;
  Row<std::uint64_t> walkers;
  Row<std::uint64_t> context_fetchers;
  Row<std::uint64_t> miss_entries;
  Row<std::uint64_t> request_queue;
  Row<std::uint64_t> translation_slots;
  Row<std::uint64_t> prefetch_pages;
  Row<RequestOrder> ordering;
  Row<std::uint64_t> hit_under_miss;

  Row<Picoseconds> fetch_start;
  Row<Bytes> fetch_bytes;
  Row<Picoseconds> decode;
  Row<Picoseconds> scan;
  Row<Picoseconds> scan_entry;
  Row<Drain> drain;
  Row<Picoseconds> register_write_latency;
};

struct Platform {
  std::string name;
  std::string description;
  std::string extends;  // empty once loaded
  CpuPlatform cpu;
  MemoryPlatform memory;
  PciePlatform pcie;
  IommuPlatform iommu;
  CostTable costs;
};

// Topology ------------------------------------------------------------------------------------------------------------

// What a unit tells apart: single requester ids, only their buses, or nothing.
enum class UnitGranularity : std::uint8_t { Device, Bus, None };

struct IommuUnit {
  std::string name;
  std::vector<std::string> covers;  // root ports
  UnitGranularity isolation = UnitGranularity::Device;
};

struct RootPort {
  std::string name;
  bool acs = true;
};

// PciBridge: from PCI Express to a conventional PCI bus, which its devices share.
enum class SwitchKind : std::uint8_t { PcieSwitch, PciBridge };

struct PcieSwitch {
  std::string name;
  SwitchKind kind = SwitchKind::PcieSwitch;
  std::string upstream;     // root port or switch
  Picoseconds latency;      // added to every TLP, each way
  std::optional<bool> acs;  // of all downstream ports; a switch has it unless told otherwise, a bridge never
};

// Whether devices that nothing isolates from one another may belong to different domains.
enum class GroupSplit : std::uint8_t { Refused, Permitted };

// Devices that nothing isolates from one another: one, or several with what keeps them together.
struct IsolationGroup {
  std::vector<std::size_t> devices;  // indices, ascending
  std::vector<std::string> reasons;  // each once; empty for a single device
};

struct Topology {
  std::vector<IommuUnit> iommus;
  std::vector<RootPort> root_ports;
  std::vector<PcieSwitch> switches;
  GroupSplit group_split = GroupSplit::Refused;

  // Resolved, not a key.
  std::vector<IsolationGroup> groups;
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

// Dom0: the hardware domain, PVH. DomU: any other.
enum class DomainKind : std::uint8_t { DomU, Dom0 };

struct DomainSetting {
  std::string name;
  DomainKind kind = DomainKind::DomU;
  Bytes memory;
  std::uint64_t vcpus = 1;
  P2mSetting p2m;
  DmaApiSetting dma_api;
};

// Devices -------------------------------------------------------------------------------------------------------------

enum class WorkloadKind : std::uint8_t { Nic, RandomDma, Trace, Idle };
enum class NicDirection : std::uint8_t { Receive, Transmit };
enum class DmaDirection : std::uint8_t { Read, Write };

// A ring NIC and its driver: map, post, DMA, complete, unmap. One I/O is one packet.
struct NicWorkload {
  NicDirection direction = NicDirection::Receive;
  Bytes packet_size;
  Bytes buffer_size;                  // mapped per packet; at least packet_size
  std::uint64_t ring_entries = 256;   // power of two
  std::uint64_t map_batch = 1;        // buffers that the driver maps, and unmaps, with one sync
  std::optional<BitsPerSecond> rate;  // of payload; nullopt: saturate
  // The device, as NicParameters in sim/pcie.
  Bytes descriptor_size{16};
  Bytes completion_size{16};
  std::uint64_t fetch_batch = 8;
  std::uint64_t prefetch = 32;
  std::uint64_t payloads_in_flight = 32;
  std::uint64_t completion_batch = 4;
  std::uint64_t receive_buffer = 64;
  std::uint64_t interrupt_frames = 32;
  Picoseconds interrupt_delay;
};

enum class Pattern : std::uint8_t { Random, Sequential, Strided };

// A device that accesses places of a window that was mapped once. One I/O is one access.
struct RandomDmaWorkload {
  DmaDirection direction = DmaDirection::Read;
  Bytes window;
  Bytes access_size;
  Pattern pattern = Pattern::Random;
  Bytes stride = 4_KiB;     // Strided
  Bytes page_size = 4_KiB;  // 4 KiB or 2 MiB: what the window is mapped with where the strategy's tables allow
  std::uint64_t outstanding = 1;
  std::uint64_t stray = 0;  // so many accesses apart, one goes where nothing is mapped
};

// What a recorded DMA was for.
enum class TraceClass : std::uint8_t {
  SubmissionQueue,
  CompletionQueue,
  Data,
  PrpList,
  ShadowDoorbell,
  ReceiveBuffer,
  Other
};

// Replays a recorded driver. One I/O is one recorded DMA.
struct TraceWorkload {
  std::string file;      // as written: relative to the scenario file
  std::string resolved;  // path to open; never part of a result
  std::vector<TraceClass> drop{TraceClass::ShadowDoorbell};
  std::uint64_t dmas_in_flight = 16;
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
  std::uint64_t vcpu = 0;                        // of the domain: runs this device's driver
  std::uint64_t count = 1;                       // so many alike: device numbers and vCPUs count up from here
  bool acs = true;                               // isolated from the other functions of its slot
  std::vector<std::uint64_t> phantom_functions;  // function numbers whose ids its requests may carry as well
  WorkloadSetting workload;

  // Resolved, not keys.
  std::size_t domain_index = 0;
  std::size_t iommu_index = 0;
  std::size_t root_port_index = 0;
  std::vector<std::size_t> switch_path;  // indices of switches from the device up
  std::size_t group = 0;                 // index into Topology::groups
  // The id under which its requests reach the unit, when it is not its own: several devices may have it.
  std::optional<RequesterId> shared_id;
};

// Virtual interfaces --------------------------------------------------------------------------------------------------

// A guest's network interface whose other end is in another domain, which maps the packets' pages. One I/O is one
// packet, from its posting by the guest until the other end's reader has copied it.
struct VifSetting {
  std::string name;
  std::string frontend;  // the domain that sends
  std::string backend;   // the domain that receives
  Bytes packet_size{65536};
  std::uint64_t ring_slots = 256;
  std::uint64_t budget = 64;  // packets that the backend takes at a time
  std::uint64_t frontend_vcpu = 0;
  std::uint64_t map_vcpu = 0;   // of the backend: takes packets and maps their pages
  std::uint64_t read_vcpu = 1;  // copies them
  std::uint64_t unmap_vcpu = 2;

  // Resolved, not keys.
  std::size_t frontend_index = 0;
  std::size_t backend_index = 0;
};

// Strategies ----------------------------------------------------------------------------------------------------------

enum class StrategyKind : std::uint8_t {
  Passthrough,
  Swiotlb,
  Grants,
  PvIommu,
  Nested,
  EmulatedViommu,
  VirtioIommu,
  Tce,
  Gart
};
// What context 0 lets devices reach: the domain's memory, or nothing (dom0-iommu=dma=0).
enum class DefaultContext : std::uint8_t { Identity, Blocked };
// Who answers a trapped access: Xen itself, or a user-space device model behind it.
enum class TrapTarget : std::uint8_t { Xen, DeviceModel };
enum class TableOwner : std::uint8_t { Hypervisor, Kernel };
enum class ApertureFlush : std::uint8_t { Map, Wrap };
// Whether the devices are assigned to their guests, behind the IOMMU, or emulated for them by a device model.
enum class Endpoints : std::uint8_t { Physical, Virtual };
// What a virtio-iommu's guest tells of its mappings: each one in a request, or where its own page tables are.
enum class VirtioMapping : std::uint8_t { Requests, Tables };
// Who answers the doorbell of a nested guest's invalidations: a trap, or a ring of hardware that the guest owns.
enum class Doorbell : std::uint8_t { Xen, DeviceModel, GuestQueue };

// Of the PV-IOMMU hypercall; v3 stands for v1 to v3.
enum class RfcVersion : std::uint8_t { V7, V3 };
// Pages that a PV-IOMMU call may name: 4 KiB ones, or the sizes that hardware has.
enum class PageOrder : std::uint8_t { Single, Explicit };
// What a PV-IOMMU operation excludes while it works.
enum class LockGranularity : std::uint8_t { Context, Domain, Iommu };
enum class ShadowSync : std::uint8_t { CachingMode, WriteProtect };
// When Xen gives a guest's context its domain tag of a unit.
enum class TagAllocation : std::uint8_t { Creation, Attach };
// What a PV-IOMMU map that fails reports.
enum class ErrorReport : std::uint8_t { Count, Address };

struct StrategySetting {
  StrategyKind kind = StrategyKind::Passthrough;
  std::string label;                  // distinct per scenario; the kind's name unless set
  std::vector<std::string> families;  // of the scenario's, those it runs on; empty: all

  // PvIommu
  RfcVersion rfc_version = RfcVersion::V7;
  bool deferred_flush = false;     // unmap returns before the flush; the guest's flush queue asks for it
  std::uint64_t arena_order = 12;  // Xen's table pool for the domain: 2^order pages
  std::uint64_t max_contexts = 128;
  bool superpages = false;  // Xen coalesces aligned contiguous entries
  DefaultContext default_context = DefaultContext::Identity;
  PageOrder page_order = PageOrder::Single;
  std::uint64_t batch = 1;
  bool scatter = false;
  LockGranularity lock = LockGranularity::Context;
  TagAllocation tag_allocation = TagAllocation::Creation;
  ErrorReport error_report = ErrorReport::Count;
  std::vector<std::uint64_t> buses{0, 255};  // first and last whose devices may have contexts of their own
  bool shatter_reserve = false;              // Xen keeps the table pages that splitting its large pages takes
  std::uint64_t host_queues = 1;             // command rings over which Xen's driver spreads its CPUs
  // Nested: where a write to the guest's command doorbell goes.
  Doorbell doorbell = Doorbell::Xen;
  // EmulatedViommu, VirtioIommu
  TrapTarget placement = TrapTarget::Xen;
  // Absent: caching mode on families that have one, write protection on others.
  std::optional<ShadowSync> shadow;
  // Swiotlb
  Bytes pool_size = 64_MiB;            // of the guest's memory
  std::optional<std::uint64_t> areas;  // of the pool, each with a lock; nullopt: one a vCPU
  // VirtioIommu
  Endpoints endpoints = Endpoints::Physical;
  VirtioMapping mapping = VirtioMapping::Requests;
  // Tce
  TableOwner tables = TableOwner::Hypervisor;
  Bytes window{1ULL << 32};
  // Gart
  Bytes aperture = 64_MiB;
  ApertureFlush flush = ApertureFlush::Map;
};

// Scenario ------------------------------------------------------------------------------------------------------------

// How much is simulated: a number of I/Os or a time, after a warm-up that no metric includes. Exactly one of `ios` and
// `duration` is set, except for traces, which end by themselves.
struct MeasureSetting {
  std::optional<std::uint64_t> ios;  // over all devices
  std::optional<Picoseconds> duration;
  std::uint64_t warmup_ios = 0;
  bool tolerate_failures = false;  // of the DMA API and of I/Os: metrics, and no reason for a run to fail
  Picoseconds time_limit = Picoseconds(10'000'000'000'000);  // simulated; a run that reaches it fails
};

// One axis of variation, as text; see expand() in parser.hpp.
struct VarySetting {
  std::string key;                  // path of a key: "devices[0].workload.window"
  std::string label;                // name of the label in results; the key's last part unless set
  std::vector<std::string> values;  // as written
};

// A family that runs on a machine of its own instead of the scenario's.
struct FamilyPlatform {
  std::string family;
  std::string platform;  // name of a preset
};

// Which combinations of varied values are run.
enum class Sweep : std::uint8_t { Product, Each };

struct Scenario {
  std::string name;
  std::string description;
  std::uint64_t seed = 1;
  MeasureSetting measure;
  Platform platform;
  Topology topology;
  std::vector<DomainSetting> domains;
  std::vector<DeviceSetting> devices;
  std::vector<VifSetting> vifs;
  std::vector<StrategySetting> strategies;
  std::vector<std::string> families;             // as in the registry: "vtd"
  std::vector<FamilyPlatform> family_platforms;  // resolved already: `platform` is the machine of `families`
  Sweep sweep = Sweep::Product;
  std::vector<VarySetting> vary;

  // Resolved, not a key: `devices` before those that stand for several became several.
  std::vector<DeviceSetting> devices_as_written;
};

// Which of a scenario's runs this is.
struct RunSelection {
  std::size_t strategy = 0;  // index into Scenario::strategies
  std::string family;
  // What distinguishes this run in results: strategy, family, and one entry per varied key. Ordered.
  std::vector<std::pair<std::string, std::string>> labels;
};

}  // namespace iommu::scenario
