// SPDX-License-Identifier: Apache-2.0
// The keys of a platform. Every number is a row: value, source, mark.
#include "sim/scenario/schema.hpp"

namespace iommu::scenario {

namespace {

constexpr auto kLongest = Picoseconds(1'000'000'000'000);  // 1 s: no latency of a machine is longer
constexpr std::uint64_t kMostEntries = 1ULL << 24;

// Declares rows of T by what they hold.
template <class T>
struct Rows {
  std::vector<Key<T>> keys;

  template <class Access, class U>
  void add(const std::string& name, Access access, Type<U> type, const std::string& doc) {
    keys.push_back(Keys<T>::required(name, access, row_type(std::move(type)), doc));
  }
  void count(const std::string& name, Row<std::uint64_t> T::* member, std::uint64_t minimum, std::uint64_t maximum,
             const std::string& doc) {
    add(name, at(member), count_type({.minimum = minimum, .maximum = maximum}), doc);
  }
  void time(const std::string& name, Row<Picoseconds> T::* member, const std::string& doc) {
    add(name, at(member), time_type(0_ps, kLongest), doc);
  }
  template <class U>
  void object(const std::string& name, U T::* member, const ObjectSchema<U>& schema, const std::string& doc) {
    keys.push_back(Keys<T>::required(name, at(member), object_type(schema), doc));
  }
};

const ObjectSchema<CpuPlatform>& cpu_schema() {
  static const ObjectSchema<CpuPlatform> kSchema = [] {
    Rows<CpuPlatform> rows;
    rows.add("frequency", at(&CpuPlatform::frequency), frequency_type(), "converts costs that are given in cycles");
    return ObjectSchema<CpuPlatform>{"cpu", "The processors.", std::move(rows.keys)};
  }();
  return kSchema;
}

const ObjectSchema<MemoryPlatform>& memory_schema() {
  using M = MemoryPlatform;
  static const ObjectSchema<M> kSchema = [] {
    Rows<M> rows;
    rows.add("size", at(&M::size), size_type(16_MiB, Bytes(1ULL << 46)), "host memory; guests and Xen must fit");
    rows.add("llc_size", at(&M::llc_size), size_type(0_B, 64_GiB), "last-level cache; 0 B: none");
    rows.count("llc_ways", &M::llc_ways, 1, 1024, "its associativity");
    rows.time("llc_hit", &M::llc_hit, "an access whose lines are cached");
    rows.time("dram", &M::dram, "any other access, unloaded");
    rows.count("outstanding", &M::outstanding, 1, 65536, "accesses in service at once");
    rows.add("bandwidth", at(&M::bandwidth), rate_type(), "of all clients together");
    rows.add("dma_writes_allocate", at(&M::dma_writes_allocate), flag_type(),
             "DMA writes go into the last-level cache");
    return ObjectSchema<M>{"memory", "Host memory.", std::move(rows.keys)};
  }();
  return kSchema;
}

const ObjectSchema<PciePlatform>& pcie_schema() {
  using P = PciePlatform;
  static const ObjectSchema<P> kSchema = [] {
    Rows<P> rows;
    const auto tlp_sizes = size_choice_type({128_B, 256_B, 512_B, 1_KiB, 2_KiB, 4_KiB});
    rows.count("generation", &P::generation, 1, 6, "of PCIe");
    rows.add("lanes", at(&P::lanes), count_type({.minimum = 1, .maximum = 32}), "of the link");
    rows.add("max_payload", at(&P::max_payload), tlp_sizes, "most payload of one packet");
    rows.add("max_read_request", at(&P::max_read_request), tlp_sizes, "most bytes one read asks for");
    rows.add("read_completion_boundary", at(&P::read_completion_boundary), size_choice_type({64_B, 128_B}),
             "completions are cut at its multiples");
    rows.count("dllp_per_mille", &P::dllp_per_mille, 0, 500, "of the raw rate, for acknowledgements and flow control");
    rows.time("propagation", &P::propagation, "one way, without serialisation");
    const auto order_type = word_type<ReturnSequence>(
        {{"in_order", ReturnSequence::InOrder}, {"out_of_order", ReturnSequence::OutOfOrder}});
    rows.count("posted_headers", &P::posted_headers, 1, 65535, "writes the root port can hold");
    rows.count("posted_data", &P::posted_data, 1, 65535, "their payload, in units of 16 bytes");
    rows.count("nonposted_headers", &P::nonposted_headers, 1, 65535, "reads the root port can hold");
    rows.count("write_translations", &P::write_translations, 1, 65535,
               "translations of writes asked for and not yet used");
    rows.count("read_translations", &P::read_translations, 1, 65535, "the same, of reads");
    rows.add("read_translation_order", at(&P::read_translation_order), order_type,
             "whether a read uses its translation only after all older reads");
    rows.add("completion_order", at(&P::completion_order), order_type,
             "whether completions come back in the order of the reads");
    rows.add("reads_pass_writes", at(&P::reads_pass_writes), flag_type(), "whether a read overtakes older writes");
    rows.count("tags", &P::tags, 1, 65536, "reads in flight");
    rows.time("read_interval", &P::read_interval, "between the starts of two reads of the device");
    rows.time("write_interval", &P::write_interval, "between the starts of two writes of the device");
    rows.count("completion_headers", &P::completion_headers, 0, 65535,
               "completions the device can hold; 0: as many as its tags ask for");
    rows.count("completion_data", &P::completion_data, 0, 65535, "their payload, in units of 16 bytes; 0: the same");
    return ObjectSchema<P>{"pcie", "The link of a root port and the endpoint on it.", std::move(rows.keys)};
  }();
  return kSchema;
}

const ObjectSchema<CachePlatform>& cache_schema() {
  using C = CachePlatform;
  static const ObjectSchema<C> kSchema = [] {
    Rows<C> rows;
    rows.count("entries", &C::entries, 0, kMostEntries, "0: there is none");
    rows.count("ways", &C::ways, 0, kMostEntries, "entries per set; 0: fully associative");
    rows.add("replacement", at(&C::replacement),
             word_type<Replacement>(
                 {{"lru", Replacement::Lru}, {"tree_plru", Replacement::TreePlru}, {"random", Replacement::Random}}),
             "what is evicted");
    rows.add("index", at(&C::index),
             word_type<SetIndex>({{"low_bits", SetIndex::LowBits}, {"hashed", SetIndex::Hashed}}),
             "what chooses the set: low bits of the page number, or a hash of all of it and the tags");
    return ObjectSchema<C>{"cache", "A cache of the IOMMU.", std::move(rows.keys)};
  }();
  return kSchema;
}

struct AtReach {
  std::size_t index;
  CachePlatform& operator()(WalkCachePlatform& caches) const { return caches[index]; }
  const CachePlatform& operator()(const WalkCachePlatform& caches) const { return caches[index]; }
};

const ObjectSchema<WalkCachePlatform>& walk_cache_schema() {
  using K = Keys<WalkCachePlatform>;
  static const ObjectSchema<WalkCachePlatform> kSchema{
      "walk_cache",
      "Pointers to tables, remembered by how much of the address space one covers.",
      {K::required("reach_2m", AtReach{0}, object_type(cache_schema()), "pointers to tables of 4 KiB pages"),
       K::required("reach_1g", AtReach{1}, object_type(cache_schema()), "one level up"),
       K::required("reach_512g", AtReach{2}, object_type(cache_schema()), "two levels up"),
       K::required("reach_256t", AtReach{3}, object_type(cache_schema()), "three levels up")}};
  return kSchema;
}

using I = IommuPlatform;

void add_architecture(Rows<I>& rows) {
  rows.count("host_address_bits", &I::host_address_bits, 32, 52, "width of host addresses");
  rows.count("input_address_bits", &I::input_address_bits, 39, 57, "39, 48 or 57: three, four or five levels");
  rows.add("coherent_walks", at(&I::coherent_walks), flag_type(),
           "walks see the CPU's caches; if not, software flushes each line it writes");
  rows.add("command_ring_entries", at(&I::command_ring_entries),
           count_type({.minimum = 16, .maximum = 65536, .shape = CountRange::Shape::PowerOfTwo}),
           "of the invalidation queue");
}

void add_caches(Rows<I>& rows) {
  rows.object("iotlb", &I::iotlb, cache_schema(), "translations of the unit");
  rows.object("iotlb_large", &I::iotlb_large, cache_schema(),
              "translations of pages of 2 MiB and more; without entries they share iotlb");
  rows.object("first_level", &I::first_level, cache_schema(),
              "a small cache of each root port, in front of all others");
  rows.object("port_tlb", &I::port_tlb, cache_schema(),
              "the main translation cache of each root port, where the unit has parts at the ports and a shared one");
  rows.object("context_cache", &I::context_cache, cache_schema(), "decoded device-table entries");
  rows.object("stage1_walk_cache", &I::stage1_walk_cache, walk_cache_schema(), "of stage 1");
  rows.object("stage2_walk_cache", &I::stage2_walk_cache, walk_cache_schema(), "of stage 2");
  rows.object("stage2_leaf_cache", &I::stage2_leaf_cache, cache_schema(),
              "stage-2 translations of the addresses of stage-1 tables");
}

void add_timing(Rows<I>& rows) {
  rows.time("lookup_latency", &I::lookup_latency, "from the start of a lookup to hit or miss");
  rows.time("lookup_interval", &I::lookup_interval, "between lookups on one port");
  rows.count("lookup_ports", &I::lookup_ports, 1, 16, "lookups that may start together");
  rows.time("first_level_latency", &I::first_level_latency, "of the first-level cache");
  rows.time("port_tlb_latency", &I::port_tlb_latency, "of port_tlb, after a miss in the first level");
  rows.time("message_latency", &I::message_latency, "each way between a root port's part and the shared one");
  rows.time("walk_start", &I::walk_start, "from having a walker to its first read, walk-cache lookup included");
  rows.time("walk_interval", &I::walk_interval, "between the starts of two walks");
  rows.time("context_start", &I::context_start, "from having a context fetcher to its first read");
  rows.time("table_read_issue", &I::table_read_issue, "before each table read: path to memory");
  rows.count("walkers", &I::walkers, 1, 4096, "walks at once");
  rows.count("context_fetchers", &I::context_fetchers, 1, 4096, "device-table lookups at once");
  rows.count("miss_entries", &I::miss_entries, 1, 65535, "pages being missed on; equal pages share one");
  rows.count("request_queue", &I::request_queue, 1, 65536, "requests that wait for a lookup or a miss entry");
  rows.count("translation_slots", &I::translation_slots, 0, 65535,
             "translations that a root port has asked the shared part for, those to equal pages once; 0: no limit");
  rows.count("prefetch_pages", &I::prefetch_pages, 0, 8,
             "pages behind a missed one that idle walkers walk ahead of demand");
  rows.add("ordering", at(&I::ordering),
           word_type<RequestOrder>({{"in_order", RequestOrder::InOrder}, {"out_of_order", RequestOrder::OutOfOrder}}),
           "whether a hit may overtake an older miss");
  rows.count("hit_under_miss", &I::hit_under_miss, 0, 65535, "unanswered older misses that a hit may overtake");
}

void add_invalidation(Rows<I>& rows) {
  rows.time("fetch_start", &I::fetch_start, "from the doorbell's arrival to the first command read");
  rows.add("fetch_bytes", at(&I::fetch_bytes), size_choice_type({16_B, 32_B, 64_B}),
           "of the command ring, read at once");
  rows.time("decode", &I::decode, "per command, after its fetch");
  rows.time("scan", &I::scan, "per invalidation: finding and removing what it covers");
  rows.time("scan_entry", &I::scan_entry, "added per cache entry examined");
  rows.add(
      "drain", at(&I::drain),
      word_type<Drain>({{"translations", Drain::Translations}, {"translations_and_dma", Drain::TranslationsAndDma}}),
      "what a fence waits for");
  rows.time("register_write_latency", &I::register_write_latency, "from the CPU's store to the register");
}

const ObjectSchema<I>& iommu_schema() {
  static const ObjectSchema<I> kSchema = [] {
    Rows<I> rows;
    add_architecture(rows);
    add_caches(rows);
    add_timing(rows);
    add_invalidation(rows);
    return ObjectSchema<I>{"iommu", "Every IOMMU of the machine.", std::move(rows.keys)};
  }();
  return kSchema;
}

// A cost is given in cycles or as a time; cycles become time once the frequency is known (loader.cpp).
Type<CostRow> cost_type() {
  Type<CostRow> type;
  type.info.kind = ValueKind::Quantity;
  type.info.summary = "a number of cycles or a time";
  type.info.pattern = "^[0-9]+(\\.[0-9]+)? *(cycles|ps|ns|us|ms|s)$";
  type.info.is_row = true;
  type.read = [](Reader& reader, const Node& node) -> std::optional<CostRow> {
    const auto parts = read_row_parts(reader, node);
    if (!parts) return std::nullopt;
    const auto text = scalar_text(reader, *parts->value, "a cost such as '1300 cycles' or '430 ns'");
    if (!text) return std::nullopt;
    const bool is_cycles = text->ends_with("cycles");
    const ParsedQuantity parsed = parse_quantity(*text, is_cycles ? cycles_dimension() : time_dimension());
    if (const auto* problem = std::get_if<std::string>(&parsed)) {
      reader.diagnostics.error(parts->value->at, *problem + ", or in cycles");
      return std::nullopt;
    }
    const std::uint64_t amount = std::get<std::uint64_t>(parsed);
    constexpr std::uint64_t kMost = 1'000'000'000'000;  // 1 s, or as many cycles
    if (amount > kMost) {
      report_mismatch(reader, *parts->value, "a cost of at most 1 s");
      return std::nullopt;
    }
    CostRow row;
    row.time = is_cycles ? Picoseconds() : Picoseconds(static_cast<std::int64_t>(amount));
    row.value = is_cycles ? static_cast<double>(amount) : static_cast<double>(amount) / 1e3;
    row.unit = is_cycles ? "cycles" : "ns";
    row.source = parts->source;
    row.mark = parts->mark;
    return row;
  };
  type.write = [](const CostRow& row) {
    const Node value =
        row.unit == "cycles"
            ? Node::scalar(format_quantity(static_cast<std::uint64_t>(row.value), cycles_dimension()))
            : Node::scalar(format_quantity(static_cast<std::uint64_t>(row.time.value()), time_dimension()));
    return write_row(value, row.source, row.mark);
  };
  return type;
}

struct AtCost {
  CostId id;
  CostRow& operator()(CostTable& costs) const { return costs[id]; }
  const CostRow& operator()(const CostTable& costs) const { return costs[id]; }
};

const ObjectSchema<CostTable>& costs_schema() {
  static const ObjectSchema<CostTable> kSchema = [] {
    std::vector<Key<CostTable>> keys;
    for (const CostName& cost : kCostNames)
      keys.push_back(
          Keys<CostTable>::required(std::string(cost.key), AtCost{cost.id}, cost_type(), std::string(cost.meaning)));
    return ObjectSchema<CostTable>{"costs", "What work on a CPU costs. All rows are required.", std::move(keys)};
  }();
  return kSchema;
}

void collect_rows(const Node& node, const std::string& prefix, std::vector<PlatformRow>& rows) {
  for (const Entry& entry : node.entries) {
    const std::string name = prefix.empty() ? entry.key : prefix + "." + entry.key;
    const Node* mark = entry.value.find("mark");
    if (mark == nullptr) {
      collect_rows(entry.value, name, rows);
      continue;
    }
    PlatformRow row{name, entry.value.find("value")->text, entry.value.find("source")->text, Mark::Guess};
    for (const Mark candidate : {Mark::Found, Mark::Derived, Mark::Memory})
      if (to_string(candidate) == mark->text) row.mark = candidate;
    rows.push_back(std::move(row));
  }
}

}  // namespace

const ObjectSchema<Platform>& platform_schema() {
  using K = Keys<Platform>;
  static const ObjectSchema<Platform> kSchema = [] {
    ObjectSchema<Platform> schema{
        "platform",
        "A machine. Every number is `{value: …, source: …, mark: found, derived, memory or guess}`. With `extends`, "
        "what "
        "is given replaces rows of the preset; a bare value in place of a row is then marked a guess of the scenario.",
        {K::defaulted("extends", at(&Platform::extends), text_type("a preset"),
                      "file name in platforms/ without .yaml"),
         K::required("name", at(&Platform::name), name_type("a name"), "what reports call it"),
         K::defaulted("description", at(&Platform::description), text_type("text"), "which machine, and what for"),
         K::required("cpu", at(&Platform::cpu), object_type(cpu_schema()), "the processors"),
         K::required("memory", at(&Platform::memory), object_type(memory_schema()), "host memory"),
         K::required("pcie", at(&Platform::pcie), object_type(pcie_schema()), "the links"),
         K::required("iommu", at(&Platform::iommu), object_type(iommu_schema()), "the IOMMUs"),
         K::required("costs", at(&Platform::costs), object_type(costs_schema()), "what work on a CPU costs")}};
    schema.info.is_overlay = true;
    return schema;
  }();
  return kSchema;
}

std::vector<PlatformRow> platform_rows(const Platform& platform) {
  std::vector<PlatformRow> rows;
  collect_rows(write_object(platform, platform_schema()), "", rows);
  return rows;
}

}  // namespace iommu::scenario
