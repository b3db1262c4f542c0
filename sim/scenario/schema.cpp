// SPDX-License-Identifier: Apache-2.0
#include "sim/scenario/schema.hpp"

#include "sim/scenario/nearest.hpp"

namespace iommu::scenario {

namespace {

constexpr auto kAnyTime = Picoseconds(1'000'000'000'000'000);  // 1000 s: longer than any simulation

const Words<StrategyKind> kStrategyWords{{"passthrough", StrategyKind::Passthrough},
                                         {"swiotlb", StrategyKind::Swiotlb},
                                         {"grants", StrategyKind::Grants},
                                         {"pv_iommu", StrategyKind::PvIommu},
                                         {"nested", StrategyKind::Nested},
                                         {"emulated_viommu", StrategyKind::EmulatedViommu},
                                         {"virtio_iommu", StrategyKind::VirtioIommu},
                                         {"tce", StrategyKind::Tce},
                                         {"gart", StrategyKind::Gart}};
const Words<WorkloadKind> kWorkloadWords{{"nic", WorkloadKind::Nic},
                                         {"random_dma", WorkloadKind::RandomDma},
                                         {"trace", WorkloadKind::Trace},
                                         {"idle", WorkloadKind::Idle}};
const Words<Doorbell> kDoorbellWords{
    {"xen", Doorbell::Xen}, {"device_model", Doorbell::DeviceModel}, {"guest_queue", Doorbell::GuestQueue}};
const Words<TrapTarget> kTrapWords{{"xen", TrapTarget::Xen}, {"device_model", TrapTarget::DeviceModel}};
const Words<TraceClass> kTraceClassWords{
    {"sq", TraceClass::SubmissionQueue}, {"cq", TraceClass::CompletionQueue},   {"data", TraceClass::Data},
    {"prplist", TraceClass::PrpList},    {"dbbuf", TraceClass::ShadowDoorbell}, {"rxbuf", TraceClass::ReceiveBuffer},
    {"other", TraceClass::Other}};

template <class E>
std::string word_of(const Words<E>& words, E wanted) {
  for (const auto& [name, value] : words)
    if (value == wanted) return name;
  return {};
}

Type<std::string> family_type() {
  Type<std::string> type = text_type("a hardware family");
  type.info.is_family = true;
  type.read = [](Reader& reader, const Node& node) -> std::optional<std::string> {
    const auto text = scalar_text(reader, node, "a hardware family");
    if (!text || std::ranges::find(reader.families, *text) != reader.families.end()) return text;
    std::string known;
    for (const std::string& family : reader.families) known += (known.empty() ? "" : ", ") + family;
    reader.diagnostics.error(node.at, "unknown family '" + text->substr(0, 40) + "'; expected one of " + known +
                                          did_you_mean(*text, reader.families));
    return std::nullopt;
  };
  return type;
}

// bus:device.function, as lspci writes it.
std::optional<RequesterId> parse_bdf(const std::string& text) {
  const auto digit = [&](std::size_t i, unsigned limit) -> std::optional<unsigned> {
    const char c = text[i];
    const unsigned value = c >= '0' && c <= '9'   ? static_cast<unsigned>(c - '0')
                           : c >= 'a' && c <= 'f' ? static_cast<unsigned>(c - 'a') + 10
                                                  : 99;
    return value < limit ? std::optional(value) : std::nullopt;
  };
  if (text.size() != 7 || text[2] != ':' || text[5] != '.') return std::nullopt;
  const auto bus_high = digit(0, 16);
  const auto bus_low = digit(1, 16);
  const auto device_high = digit(3, 2);
  const auto device_low = digit(4, 16);
  const auto function = digit(6, 8);
  if (!bus_high || !bus_low || !device_high || !device_low || !function) return std::nullopt;
  return RequesterId::bdf(*bus_high * 16 + *bus_low, *device_high * 16 + *device_low, *function);
}

std::string format_bdf(RequesterId id) {
  constexpr std::string_view kHex = "0123456789abcdef";
  std::string text = "00:00.0";
  text[0] = kHex[id.bus() >> 4];
  text[1] = kHex[id.bus() & 15U];
  text[3] = kHex[id.device() >> 4];
  text[4] = kHex[id.device() & 15U];
  text[6] = kHex[id.function()];
  return text;
}

Type<RequesterId> bdf_type() {
  Type<RequesterId> type;
  type.info.kind = ValueKind::Text;
  type.info.summary = "bus:device.function such as '03:00.0'";
  type.info.pattern = "^[0-9a-f]{2}:[01][0-9a-f]\\.[0-7]$";
  type.read = [info = type.info](Reader& reader, const Node& node) -> std::optional<RequesterId> {
    const auto text = scalar_text(reader, node, info.summary);
    if (!text) return std::nullopt;
    const auto id = parse_bdf(*text);
    if (!id) report_mismatch(reader, node, info.summary);
    return id;
  };
  type.write = [](const RequesterId& id) { return Node::scalar(format_bdf(id)); };
  return type;
}

const ObjectSchema<IommuUnit>& unit_schema() {
  using K = Keys<IommuUnit>;
  static const ObjectSchema<IommuUnit> kSchema{
      "iommu_unit",
      "One hardware IOMMU.",
      {K::required("name", at(&IommuUnit::name), name_type("a name"), "what reports call it"),
       K::required("covers", at(&IommuUnit::covers), list_type(name_type("a root port"), 1),
                   "the root ports whose devices it translates"),
       K::defaulted(
           "isolation", at(&IommuUnit::isolation),
           word_type<UnitGranularity>(
               {{"device", UnitGranularity::Device}, {"bus", UnitGranularity::Bus}, {"none", UnitGranularity::None}}),
           "what it tells apart: requester ids, buses alone, or nothing; devices that it does not tell apart "
           "share one context")}};
  return kSchema;
}

const ObjectSchema<RootPort>& root_port_schema() {
  using K = Keys<RootPort>;
  static const ObjectSchema<RootPort> kSchema{
      "root_port",
      "A PCIe root port; the platform's link stands below it.",
      {K::required("name", at(&RootPort::name), name_type("a name"), "what units and devices refer to"),
       K::defaulted("acs", at(&RootPort::acs), flag_type(),
                    "Access Control Services are on; without them all devices below are one isolation group")}};
  return kSchema;
}

const ObjectSchema<PcieSwitch>& switch_schema() {
  using K = Keys<PcieSwitch>;
  static const ObjectSchema<PcieSwitch> kSchema{
      "switch",
      "A PCIe switch between devices and a root port, or a bridge to a conventional PCI bus.",
      {K::required("name", at(&PcieSwitch::name), name_type("a name"), "what devices refer to"),
       K::defaulted(
           "kind", at(&PcieSwitch::kind),
           word_type<SwitchKind>({{"switch", SwitchKind::PcieSwitch}, {"pci_bridge", SwitchKind::PciBridge}}),
           "pci_bridge: requests of all devices below carry one requester id, that of function 0 of their bus"),
       K::required("upstream", at(&PcieSwitch::upstream), name_type("a root port or switch"),
                   "the root port or switch above"),
       K::required("latency", at(&PcieSwitch::latency), time_type(0_ps, 1_ms), "added to every TLP, each way"),
       K::optional("acs", at(&PcieSwitch::acs), flag_type(),
                   "Access Control Services are on at all downstream ports; on unless given, never of a pci_bridge; "
                   "without them all devices below are one isolation group")}};
  return kSchema;
}

const ObjectSchema<Topology>& topology_schema() {
  using K = Keys<Topology>;
  static const ObjectSchema<Topology> kSchema{
      "topology",
      "What is connected to what. Every device is behind exactly one IOMMU.",
      {K::required("iommus", at(&Topology::iommus), list_type(object_type(unit_schema()), 1), "the hardware units"),
       K::required("root_ports", at(&Topology::root_ports), list_type(object_type(root_port_schema()), 1),
                   "the root ports"),
       K::defaulted("switches", at(&Topology::switches), list_type(object_type(switch_schema()), 0),
                    "the switches and bridges"),
       K::defaulted("group_split", at(&Topology::group_split),
                    word_type<GroupSplit>({{"refused", GroupSplit::Refused}, {"permitted", GroupSplit::Permitted}}),
                    "whether devices that nothing isolates from one another may belong to different domains; the "
                    "warden then counts what reaches another domain's memory through a shared requester id")}};
  return kSchema;
}

const ObjectSchema<P2mSetting>& p2m_schema() {
  using K = Keys<P2mSetting>;
  static const ObjectSchema<P2mSetting> kSchema{
      "p2m",
      "How host memory backs a guest's.",
      {K::defaulted("page_size", at(&P2mSetting::page_size), size_choice_type({4_KiB, 2_MiB, 1_GiB}),
                    "largest page that maps guest memory, in the p2m and in Xen's stage-2 tables"),
       K::defaulted(
           "layout", at(&P2mSetting::layout),
           word_type<P2mLayout>({{"contiguous", P2mLayout::Contiguous}, {"fragmented", P2mLayout::Fragmented}}),
           "whether neighbouring pages of that size are neighbours in host memory or scattered")}};
  return kSchema;
}

const ObjectSchema<DmaApiSetting>& dma_api_schema() {
  using K = Keys<DmaApiSetting>;
  static const ObjectSchema<DmaApiSetting> kSchema{
      "dma_api",
      "The guest kernel's DMA API.",
      {K::defaulted("policy", at(&DmaApiSetting::policy),
                    word_type<DmaPolicy>({{"strict", DmaPolicy::Strict}, {"lazy", DmaPolicy::Lazy}}),
                    "strict: an unmap returns after its invalidation; lazy: ranges wait in a flush queue"),
       K::defaulted("flush_queue_entries", at(&DmaApiSetting::flush_queue_entries),
                    count_type({.minimum = 1, .maximum = 65536}), "lazy: so many waiting ranges cause a flush"),
       K::defaulted("flush_timeout", at(&DmaApiSetting::flush_timeout), time_type(1_us, kAnyTime),
                    "lazy: so long after the first waiting range a flush happens anyway"),
       K::defaulted("leaf_hint", at(&DmaApiSetting::leaf_hint), flag_type(),
                    "unmap asks to keep walk caches unless it freed a table")}};
  return kSchema;
}

const ObjectSchema<DomainSetting>& domain_schema() {
  using K = Keys<DomainSetting>;
  static const ObjectSchema<DomainSetting> kSchema{
      "domain",
      "A guest.",
      {K::required("name", at(&DomainSetting::name), name_type("a name"), "what devices and reports call it"),
       K::defaulted("kind", at(&DomainSetting::kind),
                    word_type<DomainKind>({{"domu", DomainKind::DomU}, {"dom0", DomainKind::Dom0}}),
                    "dom0: the hardware domain, PVH, hence strict; at most one"),
       K::required("memory", at(&DomainSetting::memory), size_type(4_MiB, Bytes(1ULL << 44)), "guest memory"),
       K::defaulted("vcpus", at(&DomainSetting::vcpus), count_type({.minimum = 1, .maximum = 256}), "virtual CPUs"),
       K::defaulted("p2m", at(&DomainSetting::p2m), object_type(p2m_schema()), "how host memory backs it"),
       K::defaulted("dma_api", at(&DomainSetting::dma_api), object_type(dma_api_schema()), "its kernel's DMA API")}};
  return kSchema;
}

using W = WorkloadSetting;

void add_nic_device_keys(std::vector<Key<W>>& keys) {
  using K = Keys<W>;
  const std::string kNic = "nic";
  const auto add_count = [&](const char* name, std::uint64_t NicWorkload::* member, const char* doc) {
    keys.push_back(K::defaulted(name, at(&W::nic, member), count_type({.minimum = 1, .maximum = 65536}), doc, kNic));
  };
  keys.push_back(K::defaulted("descriptor_size", at(&W::nic, &NicWorkload::descriptor_size), size_type(8_B, 128_B),
                              "bytes of a descriptor, read by the device", kNic));
  keys.push_back(K::defaulted("completion_size", at(&W::nic, &NicWorkload::completion_size), size_type(8_B, 128_B),
                              "bytes of a completion, written by the device", kNic));
  add_count("fetch_batch", &NicWorkload::fetch_batch, "most descriptors per fetch");
  add_count("prefetch", &NicWorkload::prefetch, "most descriptors fetched and not yet used");
  add_count("payloads_in_flight", &NicWorkload::payloads_in_flight, "packets whose payload is being moved");
  add_count("completion_batch", &NicWorkload::completion_batch, "most completions per write-back");
  add_count("receive_buffer", &NicWorkload::receive_buffer, "packets that wait in the device; more are dropped");
  add_count("interrupt_frames", &NicWorkload::interrupt_frames, "so many waiting completions raise an interrupt");
  keys.push_back(K::defaulted("interrupt_delay", at(&W::nic, &NicWorkload::interrupt_delay), time_type(0_ps, 10_ms),
                              "or the oldest having waited so long", kNic));
}

void add_nic_keys(std::vector<Key<W>>& keys) {
  using K = Keys<W>;
  const std::string kNic = "nic";
  keys.push_back(
      K::required("direction", at(&W::nic, &NicWorkload::direction),
                  word_type<NicDirection>({{"receive", NicDirection::Receive}, {"transmit", NicDirection::Transmit}}),
                  "receive: packets arrive and are written to memory; transmit: packets are read", kNic));
  keys.push_back(K::required("packet_size", at(&W::nic, &NicWorkload::packet_size), size_type(1_B, 4_MiB),
                             "payload of one packet", kNic));
  keys.push_back(K::required("buffer_size", at(&W::nic, &NicWorkload::buffer_size), size_type(1_B, 4_MiB),
                             "what the driver maps for one packet", kNic));
  keys.push_back(K::defaulted("ring_entries", at(&W::nic, &NicWorkload::ring_entries),
                              count_type({.minimum = 2, .maximum = 65536, .shape = CountRange::Shape::PowerOfTwo}),
                              "descriptors in the ring; as many buffers are posted", kNic));
  keys.push_back(
      K::defaulted("map_batch", at(&W::nic, &NicWorkload::map_batch), count_type({.minimum = 1, .maximum = 512}),
                   "most buffers that the driver maps, and unmaps, with one sync; 1: as Linux drivers do", kNic));
  keys.push_back(K::optional("rate", at(&W::nic, &NicWorkload::rate), rate_type(),
                             "payload offered by the network; without it, as fast as it goes", kNic));
  add_nic_device_keys(keys);
}

void add_random_dma_keys(std::vector<Key<W>>& keys) {
  using K = Keys<W>;
  const std::string kRandom = "random_dma";
  keys.push_back(K::required("access", at(&W::random_dma, &RandomDmaWorkload::direction),
                             word_type<DmaDirection>({{"read", DmaDirection::Read}, {"write", DmaDirection::Write}}),
                             "what the device does", kRandom));
  keys.push_back(K::required("window", at(&W::random_dma, &RandomDmaWorkload::window), size_type(4_KiB, 1024_GiB),
                             "size of the buffer, mapped once, that accesses fall into", kRandom));
  keys.push_back(K::required("access_size", at(&W::random_dma, &RandomDmaWorkload::access_size), size_type(1_B, 4_KiB),
                             "bytes of one access; aligned to its size", kRandom));
  keys.push_back(K::defaulted(
      "pattern", at(&W::random_dma, &RandomDmaWorkload::pattern),
      word_type<Pattern>(
          {{"random", Pattern::Random}, {"sequential", Pattern::Sequential}, {"strided", Pattern::Strided}}),
      "which place comes next", kRandom));
  keys.push_back(K::defaulted("stride", at(&W::random_dma, &RandomDmaWorkload::stride), size_type(1_B, 1_GiB),
                              "strided: distance of one access to the next", kRandom));
  keys.push_back(K::defaulted("page_size", at(&W::random_dma, &RandomDmaWorkload::page_size),
                              size_choice_type({4_KiB, 2_MiB}), "pages of the buffer and of its mapping", kRandom));
  keys.push_back(K::defaulted("outstanding", at(&W::random_dma, &RandomDmaWorkload::outstanding),
                              count_type({.minimum = 1, .maximum = 4096}), "accesses in flight", kRandom));
  keys.push_back(K::defaulted(
      "stray", at(&W::random_dma, &RandomDmaWorkload::stray), count_type({.minimum = 0, .maximum = 1'000'000'000}),
      "a faulty device: so many accesses apart, one goes where nothing is mapped; 0: none", kRandom));
}

void add_trace_keys(std::vector<Key<W>>& keys) {
  using K = Keys<W>;
  const std::string kTrace = "trace";
  keys.push_back(K::required("file", at(&W::trace, &TraceWorkload::file), text_type("a file name"),
                             "the recorded trace (.csv.zst), relative to the scenario", kTrace));
  keys.push_back(K::defaulted("drop", at(&W::trace, &TraceWorkload::drop),
                              list_type(word_type<TraceClass>(kTraceClassWords), 0),
                              "classes of recorded DMA to leave out; dbbuf exists only on emulated NVMe", kTrace));
  keys.push_back(K::defaulted("dmas_in_flight", at(&W::trace, &TraceWorkload::dmas_in_flight),
                              count_type({.minimum = 1, .maximum = 4096}), "most at once", kTrace));
}

const ObjectSchema<W>& workload_schema() {
  static const ObjectSchema<W> kSchema = [] {
    std::vector<Key<W>> keys{
        Keys<W>::required("kind", at(&W::kind), word_type<WorkloadKind>(kWorkloadWords), "which device model")};
    add_nic_keys(keys);
    add_random_dma_keys(keys);
    add_trace_keys(keys);
    return ObjectSchema<W>{"workload", "What a device does.", std::move(keys)};
  }();
  return kSchema;
}

const ObjectSchema<DeviceSetting>& device_schema() {
  using K = Keys<DeviceSetting>;
  static const ObjectSchema<DeviceSetting> kSchema{
      "device",
      "A PCIe endpoint and the guest driver that uses it.",
      {K::required("name", at(&DeviceSetting::name), name_type("a name"), "what reports call it"),
       K::required("bdf", at(&DeviceSetting::bdf), bdf_type(), "its requester id"),
       K::required("upstream", at(&DeviceSetting::upstream), name_type("a root port or switch"),
                   "the root port or switch it is plugged into"),
       K::required("domain", at(&DeviceSetting::domain), name_type("a domain"), "the guest it is assigned to"),
       K::defaulted("vcpu", at(&DeviceSetting::vcpu), count_type({.minimum = 0, .maximum = 255}),
                    "the guest's vCPU that runs its driver"),
       K::defaulted("count", at(&DeviceSetting::count), count_type({.minimum = 1, .maximum = 32}),
                    "so many alike; the device numbers of their BDFs and their vCPUs count up from those given"),
       K::defaulted("acs", at(&DeviceSetting::acs), flag_type(),
                    "isolated from the other functions of its slot; those without are one isolation group"),
       K::defaulted("phantom_functions", at(&DeviceSetting::phantom_functions),
                    list_type(count_type({.minimum = 0, .maximum = 7}), 0),
                    "further function numbers of its slot that are its own: Xen programs them alike"),
       K::required("workload", at(&DeviceSetting::workload), object_type(workload_schema()), "what it does")}};
  return kSchema;
}

const ObjectSchema<VifSetting>& vif_schema() {
  using K = Keys<VifSetting>;
  using V = VifSetting;
  const auto vcpu = count_type({.minimum = 0, .maximum = 255});
  static const ObjectSchema<V> kSchema{
      "vif",
      "A virtual network interface on which a guest sends: its packets' pages are granted to the other end's domain, "
      "which maps, reads and unmaps them. One I/O is one packet.",
      {K::required("name", at(&V::name), name_type("a name"), "what messages call it"),
       K::required("frontend", at(&V::frontend), name_type("a domain"), "the domain that sends"),
       K::required("backend", at(&V::backend), name_type("a domain"), "the domain that receives"),
       K::defaulted("packet_size", at(&V::packet_size), size_type(64_B, 64_KiB),
                    "of one packet as the stack hands it over, before any segmentation"),
       K::defaulted("ring_slots", at(&V::ring_slots),
                    count_type({.minimum = 16, .maximum = 4096, .shape = CountRange::Shape::PowerOfTwo}),
                    "pages under way"),
       K::defaulted("budget", at(&V::budget), count_type({.minimum = 1, .maximum = 4096}),
                    "packets that the backend takes at a time"),
       K::defaulted("frontend_vcpu", at(&V::frontend_vcpu), vcpu, "the sender's vCPU"),
       K::defaulted("map_vcpu", at(&V::map_vcpu), vcpu, "the backend's vCPU that takes and maps"),
       K::defaulted("read_vcpu", at(&V::read_vcpu), vcpu, "the backend's vCPU that reads"),
       K::defaulted("unmap_vcpu", at(&V::unmap_vcpu), vcpu, "the backend's vCPU that unmaps")}};
  return kSchema;
}

const ObjectSchema<StrategySetting>& strategy_schema() {
  using K = Keys<StrategySetting>;
  using S = StrategySetting;
  static const ObjectSchema<S> kSchema{
      "strategy",
      "How guests get their DMA translated. A bare name takes every default.",
      {K::required("kind", at(&S::kind), word_type<StrategyKind>(kStrategyWords), "which one"),
       K::defaulted("label", at(&S::label), name_type("a label"), "its column in reports; the kind unless given"),
       K::defaulted("families", at(&S::families), list_type(family_type(), 0),
                    "of the scenario's families, those it runs on; all unless given"),
       K::defaulted(
           "rfc_version", at(&S::rfc_version), word_type<RfcVersion>({{"v7", RfcVersion::V7}, {"v3", RfcVersion::V3}}),
           "of the hypercall; v3: the hardware domain only, 256 pages a call, one lock per domain", "pv_iommu"),
       K::defaulted("deferred_flush", at(&S::deferred_flush), flag_type(),
                    "an unmap returns before Xen flushes; the guest's flush queue asks for the flush (lazy only)",
                    "pv_iommu"),
       K::defaulted("arena_order", at(&S::arena_order), count_type({.minimum = 1, .maximum = 20}),
                    "Xen's pool of table pages for the domain: 2^order pages", "pv_iommu"),
       K::defaulted("max_contexts", at(&S::max_contexts), count_type({.minimum = 1, .maximum = 65534}),
                    "contexts that the domain may create", "pv_iommu"),
       K::defaulted("superpages", at(&S::superpages), flag_type(),
                    "Xen merges aligned contiguous entries into larger pages", "pv_iommu"),
       K::defaulted(
           "default_context", at(&S::default_context),
           word_type<DefaultContext>({{"identity", DefaultContext::Identity}, {"blocked", DefaultContext::Blocked}}),
           "what context 0 shows: the domain's memory, kept in step with it, or nothing (dom0-iommu=dma=0)",
           "pv_iommu"),
       K::defaulted(
           "host_queues", at(&S::host_queues), count_type({.minimum = 1, .maximum = 64}),
           "command rings over which Xen spreads its CPUs; 1: the unit's own, more: families with further ones",
           "pv_iommu"),
       K::defaulted("page_order", at(&S::page_order),
                    word_type<PageOrder>({{"single", PageOrder::Single}, {"explicit", PageOrder::Explicit}}),
                    "single: calls name 4 KiB pages, as in the RFC's code; explicit: large pages where hardware has "
                    "them and the "
                    "guest's buffers allow",
                    "pv_iommu"),
       K::defaulted(
           "batch", at(&S::batch), count_type({.minimum = 1, .maximum = 512}),
           "operations that one hypercall carries, with one flush; 1: a call each (a proposal, not in the RFC)",
           "pv_iommu"),
       K::defaulted("scatter", at(&S::scatter), flag_type(),
                    "a scatterlist is one hypercall with a list of frames (a proposal, not in the RFC)", "pv_iommu"),
       K::defaulted("lock", at(&S::lock),
                    word_type<LockGranularity>({{"context", LockGranularity::Context},
                                                {"domain", LockGranularity::Domain},
                                                {"iommu", LockGranularity::Iommu}}),
                    "what Xen locks while it changes a context and flushes: that context, all of the domain's, or all "
                    "behind the same unit",
                    "pv_iommu"),
       K::defaulted(
           "tag_allocation", at(&S::tag_allocation),
           word_type<TagAllocation>({{"creation", TagAllocation::Creation}, {"attach", TagAllocation::Attach}}),
           "when a context takes its domain tag (DID, DomainID, VMID): creation: of every unit, as in the RFC; "
           "attach: of a unit whose devices come to it, until the last one leaves (a proposal)",
           "pv_iommu"),
       K::defaulted(
           "error_report", at(&S::error_report),
           word_type<ErrorReport>({{"count", ErrorReport::Count}, {"address", ErrorReport::Address}}),
           "what a map that fails tells. count: how many pages it mapped, which the guest unmaps; address: Xen "
           "undoes the call and names the address that was refused (a proposal)",
           "pv_iommu"),
       K::defaulted(
           "buses", at(&S::buses), list_type(count_type({.minimum = 0, .maximum = 255}), 2),
           "first and last bus whose devices a domu may give contexts of their own; others stay in the default "
           "context, and reach the whole guest (a proposal)",
           "pv_iommu"),
       K::defaulted("shatter_reserve", at(&S::shatter_reserve), flag_type(),
                    "Xen sets aside the table pages that splitting large pages takes, so that an unmap cannot fail",
                    "pv_iommu"),
       K::defaulted("doorbell", at(&S::doorbell), word_type<Doorbell>(kDoorbellWords),
                    "xen, device_model: who answers the trapped doorbell of the guest's command ring; guest_queue: the "
                    "guest owns a ring of hardware (families that have those), and only configuration is trapped",
                    "nested"),
       K::defaulted("placement", at(&S::placement), word_type<TrapTarget>(kTrapWords), "where the unit is emulated",
                    "emulated_viommu, virtio_iommu"),
       K::optional("shadow", at(&S::shadow),
                   word_type<ShadowSync>(
                       {{"caching_mode", ShadowSync::CachingMode}, {"write_protect", ShadowSync::WriteProtect}}),
                   "how Xen learns what the guest maps. caching_mode: the guest invalidates after every map as well; "
                   "write_protect: every store to its tables traps. Without it caching_mode on families that have one, "
                   "else write_protect",
                   "emulated_viommu"),
       K::defaulted("pool_size", at(&S::pool_size), size_type(256_KiB, 1_GiB),
                    "bounce buffers of the guest; a power of two", "swiotlb"),
       K::optional("areas", at(&S::areas), count_type({.minimum = 1, .maximum = 4096}),
                   "parts of the pool that have a lock each, rounded up to a power of two; one a vCPU unless given",
                   "swiotlb"),
       K::defaulted("endpoints", at(&S::endpoints),
                    word_type<Endpoints>({{"physical", Endpoints::Physical}, {"virtual", Endpoints::Virtual}}),
                    "physical: the devices are assigned, their unit translates; virtual: a device model emulates them, "
                    "translates by software and copies",
                    "virtio_iommu"),
       K::defaulted(
           "mapping", at(&S::mapping),
           word_type<VirtioMapping>({{"requests", VirtioMapping::Requests}, {"tables", VirtioMapping::Tables}}),
           "requests: MAP and UNMAP say what the host's table holds; tables: the guest binds stage-1 tables of "
           "its own to its devices (a proposal, not in the standard), hardware walks them over the host's "
           "stage 2, and an unmap is an INVALIDATE request",
           "virtio_iommu"),
       K::defaulted("tables", at(&S::tables),
                    word_type<TableOwner>({{"hypervisor", TableOwner::Hypervisor}, {"kernel", TableOwner::Kernel}}),
                    "who writes them: the hypervisor by calls, or the bare machine's kernel, which flushes on wrap",
                    "tce"),
       K::defaulted("window", at(&S::window), size_type(32_MiB, Bytes(1ULL << 32)),
                    "addresses that the table of a bus translates; a power of two", "tce"),
       K::defaulted("aperture", at(&S::aperture), size_type(32_MiB, Bytes(1ULL << 31)),
                    "addresses that are translated; a power of two", "gart"),
       K::defaulted("flush", at(&S::flush),
                    word_type<ApertureFlush>({{"map", ApertureFlush::Map}, {"wrap", ApertureFlush::Wrap}}),
                    "when the unit's cache is flushed: after every map, or when the allocator begins again", "gart")}};
  return kSchema;
}

const ObjectSchema<MeasureSetting>& measure_schema() {
  using K = Keys<MeasureSetting>;
  static const ObjectSchema<MeasureSetting> kSchema{
      "measure",
      "How much is simulated: a number of I/Os or a time; a trace alone may run to its end.",
      {K::optional("ios", at(&MeasureSetting::ios), count_type({.minimum = 1, .maximum = 1'000'000'000}),
                   "measured I/Os of all devices together"),
       K::optional("duration", at(&MeasureSetting::duration), time_type(1_us, kAnyTime), "measured simulated time"),
       K::defaulted("warmup_ios", at(&MeasureSetting::warmup_ios), count_type({.minimum = 0, .maximum = 1'000'000'000}),
                    "I/Os before, which no metric includes"),
       K::defaulted("tolerate_failures", at(&MeasureSetting::tolerate_failures), flag_type(),
                    "calls of the DMA API that fail, and I/Os, are metrics and no reason for a run to fail"),
       K::defaulted("time_limit", at(&MeasureSetting::time_limit), time_type(1_us, kAnyTime),
                    "simulated time at which an unfinished run fails")}};
  return kSchema;
}

const ObjectSchema<VarySetting>& vary_schema() {
  using K = Keys<VarySetting>;
  static const ObjectSchema<VarySetting> kSchema{
      "vary",
      "One axis of a sweep: the scenario runs once per value (and per combination of axes).",
      {K::required("key", at(&VarySetting::key), text_type("a key such as devices[0].workload.window"),
                   "the key to set"),
       K::defaulted("label", at(&VarySetting::label), name_type("a label"),
                    "its name in reports; the last part of the key unless given"),
       K::required("values", at(&VarySetting::values), list_type(text_type("a value"), 1), "the values it takes")}};
  return kSchema;
}

const ObjectSchema<FamilyPlatform>& family_platform_schema() {
  using K = Keys<FamilyPlatform>;
  static const ObjectSchema<FamilyPlatform> kSchema{
      "family_platform",
      "The machine of one family.",
      {K::required("family", at(&FamilyPlatform::family), family_type(), "the family"),
       K::required("platform", at(&FamilyPlatform::platform), text_type("the name of a preset"), "its preset")}};
  return kSchema;
}

void collect(const ObjectInfo& object, std::vector<const ObjectInfo*>& all) {
  if (std::ranges::find(all, &object) != all.end()) return;
  all.push_back(&object);
  for (const KeyInfo& key : object.keys)
    if (key.type.object != nullptr) collect(*key.type.object, all);
}

}  // namespace

std::string to_string(StrategyKind kind) { return word_of(kStrategyWords, kind); }

std::string own_unit(StrategyKind kind) {
  return kind == StrategyKind::Tce || kind == StrategyKind::Gart ? to_string(kind) : std::string();
}
std::string to_string(RequesterId id) { return format_bdf(id); }

const ObjectSchema<Scenario>& scenario_schema() {
  using K = Keys<Scenario>;
  static const ObjectSchema<Scenario> kSchema{
      "scenario",
      "One file, one question. Every number has a unit, every key is checked.",
      {K::required("name", at(&Scenario::name), name_type("a name"), "names the folder of results"),
       K::defaulted("description", at(&Scenario::description), text_type("text"), "the question it answers"),
       K::defaulted("seed", at(&Scenario::seed), count_type({.minimum = 0, .maximum = ~0ULL >> 1}),
                    "of every random stream"),
       K::required("measure", at(&Scenario::measure), object_type(measure_schema()), "how much is simulated"),
       K::required("platform", at(&Scenario::platform), object_type(platform_schema(), "extends"),
                   "the machine: the name of a preset, or a preset with replacements"),
       K::required("topology", at(&Scenario::topology), object_type(topology_schema()), "what is connected to what"),
       K::required("domains", at(&Scenario::domains), list_type(object_type(domain_schema()), 1), "the guests"),
       K::required("devices", at(&Scenario::devices), list_type(object_type(device_schema()), 1),
                   "the devices and what they do"),
       K::defaulted("vifs", at(&Scenario::vifs), list_type(object_type(vif_schema()), 0), "virtual interfaces"),
       K::required("strategies", at(&Scenario::strategies), list_type(object_type(strategy_schema(), "kind"), 1),
                   "what is compared: one run each"),
       K::required("families", at(&Scenario::families), list_type(family_type(), 1), "hardware families: one run each"),
       K::defaulted("family_platforms", at(&Scenario::family_platforms),
                    list_type(object_type(family_platform_schema()), 0),
                    "families that run on a preset of their own instead of 'platform'"),
       K::defaulted("sweep", at(&Scenario::sweep),
                    word_type<Sweep>({{"product", Sweep::Product}, {"each", Sweep::Each}}),
                    "product: every combination of varied values; each: one key at a time, the others as written"),
       K::defaulted("vary", at(&Scenario::vary), list_type(object_type(vary_schema()), 0), "axes of a sweep")}};
  return kSchema;
}

std::vector<const ObjectInfo*> all_objects() {
  std::vector<const ObjectInfo*> all;
  collect(scenario_schema().info, all);
  return all;
}

namespace {

std::string escape_cell(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '|' ? "\\|" : std::string(1, c);
  return out;
}

std::string default_cell(const KeyInfo& key) {
  switch (key.need) {
    case Need::Required:
      return "required";
    case Need::Optional:
      return "—";
    case Need::Defaulted:
      return key.default_text == "~" || key.default_text.empty() ? "—" : "`" + escape_cell(key.default_text) + "`";
  }
  return {};
}

std::string type_cell(const KeyInfo& key) {
  std::string cell = key.type.summary;
  if (key.type.object != nullptr) {
    const std::string& name = key.type.object->name;
    cell = std::string(key.type.is_list ? "list of " : "") + "[" + name + "](#" + name + ")";
    if (!key.type.shorthand_key.empty()) cell += ", or its `" + key.type.shorthand_key + "` alone";
  }
  return escape_cell(cell);
}

}  // namespace

std::string schema_markdown() {
  std::string out;
  for (const ObjectInfo* object : all_objects()) {
    out +=
        "### " + object->name + "\n\n" + object->doc + "\n\n| key | value | default | meaning |\n|---|---|---|---|\n";
    for (const KeyInfo& key : object->keys) {
      const std::string only = key.only_for.empty() ? "" : " (" + key.only_for + ")";
      out += "| `" + key.name + "`" + only + " | " + type_cell(key) + " | " + default_cell(key) + " | " +
             escape_cell(key.doc) + " |\n";
    }
    out += "\n";
  }
  return out;
}

}  // namespace iommu::scenario
