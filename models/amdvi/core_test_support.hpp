// SPDX-License-Identifier: Apache-2.0
// For tests of the core: a unit whose tables are written field by field from the layouts.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "models/amdvi/core.hpp"
#include "sim/translation/core_test_support.hpp"

namespace iommu::amdvi::test {

using iommu::test::output_of;
using iommu::test::row_of;

using EventWords = std::array<std::uint64_t, 2>;

enum class Setting : std::uint8_t { Host, Guest, Nested, Forward };
inline constexpr std::array kAllSettings{Setting::Host, Setting::Guest, Setting::Nested, Setting::Forward};

struct Shape {
  unsigned mode = 4;  // of host tables
  unsigned guest_levels = 4;
  unsigned glx = 0;
  Level host_leaf = 0, guest_leaf = 0;
};

// Entry addresses by level.
using Entries = std::array<std::uint64_t, 6>;

// A unit of everything that can be composed and more, one device, one mapped address.
class Bench : public iommu::test::HandBuiltTables {
 public:
  static constexpr RequesterId kDevice = RequesterId::bdf(3, 17, 5);
  static constexpr std::uint64_t kInput = 0x4321'8765'4abc;
  static constexpr std::uint64_t kOutput = 0x12'3456'7000;
  static constexpr std::uint64_t kDomain = 0x1234;
  static constexpr std::uint64_t kGuestTables = 0x20'0000'0000;  // where guest-physical tables begin
  static constexpr std::uint64_t kGuestOutput = 0x30'4050'6000;  // of the guest tables of a nested setting
  static constexpr std::uint64_t kDeviceTable = 0x200000, kCommands = 0x20000, kEvents = 0x30000, kHostRoot = 0x40000,
                                 kGuestRoot = 0x41000, kGcr3 = 0x42000;
  static constexpr unsigned kEventEntries = 256;

  static Identity full() {
    UnitFeatures features;
    features.input_address_bits = 57;
    features.nested = true;
    features.device_tlb = true;
    features.accessed_dirty = true;
    Identity id = compose(features);
    constexpr unsigned kSixLevels = 2, kThreeGcr3Levels = 2, kPasid20 = 19;
    id.extended_features = with<kExtendedFeatures, "HATS">(id.extended_features, kSixLevels);
    id.extended_features = with<kExtendedFeatures, "GLXSup">(id.extended_features, kThreeGcr3Levels);
    id.extended_features = with<kExtendedFeatures, "PASMax">(id.extended_features, kPasid20);
    return id;
  }

  explicit Bench(Setting setting, Shape shape = {}, Identity identity = full(), std::uint64_t input = kInput)
      : HandBuiltTables(0x1000000),
        setting(setting),
        shape(shape),
        core(identity),
        request{.requester = kDevice, .pasid = {}, .address = Iova(input)},
        entry(kDeviceTable + std::uint64_t{kDevice.value()} * 32) {
    core.mmio_write(offset::kDeviceTableBase, 8, kDeviceTable | field_of<kDeviceTableBase, "Size">.value_mask());
    core.mmio_write(offset::kCommandBase, 8, with<kRingBase, "Len">(kCommands, 8));
    core.mmio_write(offset::kEventBase, 8, with<kRingBase, "Len">(kEvents, 8));
    build_entry();
    build_page_tables(input);
    enable();
  }

  void enable() {
    core.mmio_write(offset::kControl, 8,
                    pack<kControl>({{"IommuEn", 1}, {"EventLogEn", 1}, {"CmdBufEn", 1}, {"GTEn", 1}}));
  }
  template <FieldName kName>
  void control(std::uint64_t value) {
    core.mmio_write(offset::kControl, 8, with<kControl, kName>(reg(offset::kControl), value));
  }
  std::uint64_t reg(std::uint64_t at) { return core.mmio_read(at, 8); }

  TranslationResponse translate() { return core.translate(request, port).run(); }
  TranslationResponse translate(std::uint64_t address, Access access = Access::Read) {
    request.address = Iova(address);
    request.access = access;
    return translate();
  }

  // Records a response that is a fault; what the log holds then, in order.
  std::vector<EventWords> log(const TranslationResponse& response) {
    if (const auto* fault = std::get_if<Fault>(&response)) core.record(*fault);
    return events();
  }
  std::vector<EventWords> events() {
    core.write_events(port).run();
    std::vector<EventWords> found;
    const std::uint64_t tail = reg(offset::kEventTail);
    for (std::uint64_t at = reg(offset::kEventHead); at != tail; at = (at + 16) % (kEventEntries * 16))
      found.push_back({word(kEvents + at), word(kEvents + at + 8)});
    core.mmio_write(offset::kEventHead, 8, tail);
    return found;
  }

  // Puts a command into the ring and runs it; nullopt when the core refused it.
  std::optional<CommandEffect> execute(std::uint64_t low, std::uint64_t high) {
    const std::uint64_t tail = reg(offset::kCommandTail);
    write(kCommands + tail, low);
    write(kCommands + tail + 8, high);
    core.mmio_write(offset::kCommandTail, 8, (tail + 16) % (256 * 16));
    const auto command = core.fetch_command(port).run();
    if (!command) return std::nullopt;
    return core.apply(*command);
  }
  template <const auto& kLayout>
  std::optional<CommandEffect> execute(unsigned opcode, std::initializer_list<FieldValue> fields) {
    auto words = pack_record<kLayout>(fields);
    put<kLayout, "OpCode">(words, opcode);
    return execute(words[0], words[1]);
  }

  template <FieldName kName>
  void set_entry(std::uint64_t value) {
    set<kDeviceTableEntry, kName>(entry, value);
  }
  // Maps `input` through host tables below `root` with a leaf at `leaf`; tables that exist are used.
  Entries map_host(std::uint64_t input, std::uint64_t output, Level leaf = 0) {
    Entries entries{};
    std::uint64_t table = kHostRoot;
    for (unsigned level = shape.mode - 1; level > leaf; --level) {
      entries[level] = entry_at(table, level, input);
      if (word(entries[level]) == 0)
        write(entries[level], page() | pack<kHostTable>({{"PR", 1}, {"NextLevel", level}, {"IR", 1}, {"IW", 1}}));
      table = word(entries[level]) & mask_of<kHostTable, "Address">;
    }
    entries[leaf] = entry_at(table, leaf, input);
    write(entries[leaf], output | pack<kHostPage>({{"PR", 1}, {"IR", 1}, {"IW", 1}}));
    return entries;
  }
  Entries map_guest(std::uint64_t input, std::uint64_t output, Level leaf = 0) {
    Entries entries{};
    std::uint64_t table = kGuestRoot;
    for (unsigned level = shape.guest_levels - 1; level > leaf; --level) {
      entries[level] = entry_at(table, level, input);
      const std::uint64_t next = page();
      write(entries[level], guest_address(next) | pack<kGuestTable>({{"P", 1}, {"RW", 1}, {"US", 1}}));
      table = next;
    }
    entries[leaf] = entry_at(table, leaf, input);
    write(entries[leaf], output | pack<kGuestPage>({{"P", 1}, {"RW", 1}, {"US", 1}, {"PS", leaf > 0 ? 1U : 0U}}));
    return entries;
  }
  // GCR3 entries that lead from the device's table to `root` for a PASID; the addresses, topmost first.
  std::vector<std::uint64_t> set_gcr3(std::uint32_t pasid, std::uint64_t root) {
    std::vector<std::uint64_t> path;
    std::uint64_t table = kGcr3;
    for (unsigned level = shape.glx;; --level) {
      const std::uint64_t at = table + (pasid >> (9 * level) & 511) * 8;
      path.push_back(at);
      if (level == 0) {
        write(at, root | mask_of<kGcr3Entry, "V">);
        return path;
      }
      if (word(at) == 0) write(at, page() | mask_of<kGcr3Entry, "V">);
      table = word(at) & mask_of<kGcr3Entry, "Address">;
    }
  }
  // Guest-physical address of a host page that holds a guest table; in a nested setting it is mapped there.
  std::uint64_t guest_address(std::uint64_t host_page) {
    if (setting != Setting::Nested) return host_page;
    if (!guest_table_entries.contains(host_page))
      guest_table_entries[host_page] = map_host(kGuestTables + host_page, host_page);
    return kGuestTables + host_page;
  }

  Setting setting;
  Shape shape;
  Core core;
  TranslationRequest request;
  std::uint64_t entry;
  Entries guest_entries{}, host_entries{};  // of the mapped address; nested: host_entries of the guest tables' output
  std::vector<std::uint64_t> gcr3_entries;
  std::map<std::uint64_t, Entries> guest_table_entries;  // host path to each guest table, by host page

 private:
  void build_entry() {
    set_entry<"V">(1);
    set_entry<"TV">(1);
    set_entry<"IR">(1);
    set_entry<"IW">(1);
    set_entry<"I">(1);
    set_entry<"DomainID">(kDomain);
    if (setting == Setting::Host || setting == Setting::Nested) {
      set_entry<"Mode">(shape.mode);
      set_entry<"HostPTRoot">(kHostRoot >> 12);
    }
    if (setting == Setting::Guest || setting == Setting::Nested) {
      set_entry<"GV">(1);
      set_entry<"GIOV">(1);
      set_entry<"GLX">(shape.glx);
      set_entry<"GCR3a">(kGcr3 >> 12);
      set_entry<"GCR3b">(kGcr3 >> 15);
      set_entry<"GCR3c">(kGcr3 >> 31);
      set_entry<"GuestPagingMode">(shape.guest_levels == 5 ? kGuestFiveLevels : kGuestFourLevels);
    }
  }

  void build_page_tables(std::uint64_t input) {
    if (setting == Setting::Host) host_entries = map_host(input, aligned(kOutput, shape.host_leaf), shape.host_leaf);
    if (setting == Setting::Guest) {
      gcr3_entries = set_gcr3(0, kGuestRoot);
      guest_entries = map_guest(input, aligned(kOutput, shape.guest_leaf), shape.guest_leaf);
    }
    if (setting != Setting::Nested) return;
    gcr3_entries = set_gcr3(0, guest_address(kGuestRoot));
    guest_entries = map_guest(input, aligned(kGuestOutput, shape.guest_leaf), shape.guest_leaf);
    const std::uint64_t in_page = input & bits_between(0, 12 + 9U * shape.guest_leaf);
    const std::uint64_t guest = aligned(kGuestOutput, shape.guest_leaf) + in_page;
    host_entries = map_host(guest, aligned(kOutput, shape.host_leaf), shape.host_leaf);
  }
};

}  // namespace iommu::amdvi::test
