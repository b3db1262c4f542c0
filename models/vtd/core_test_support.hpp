// SPDX-License-Identifier: Apache-2.0
// For tests of the core: a unit whose tables are written field by field from the layouts.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <vector>

#include "models/vtd/core.hpp"
#include "sim/translation/core_test_support.hpp"

namespace iommu::vtd::test {

using iommu::test::output_of;
using iommu::test::row_of;

enum class Setting : std::uint8_t { Legacy, LegacyPassThrough, FirstStage, SecondStage, Nested, PassThrough };
inline constexpr std::array kAllSettings{Setting::Legacy,     Setting::LegacyPassThrough,
                                         Setting::FirstStage, Setting::SecondStage,
                                         Setting::Nested,     Setting::PassThrough};

// Page tables of one address: entry addresses by level.
using Entries = std::array<std::uint64_t, 5>;

struct Shape {
  unsigned levels1 = 4, levels2 = 4;
  Level leaf1 = 0, leaf2 = 0;
};

// A unit of everything that can be composed, one device, and one mapped address.
class Bench : public iommu::test::HandBuiltTables {
 public:
  static constexpr RequesterId kDevice = RequesterId::bdf(3, 17, 5);  // upper half of a scalable root entry
  static constexpr std::uint64_t kInput = 0x4321'8765'4abc;
  static constexpr std::uint64_t kOutput = 0x12'3456'7000;
  static constexpr std::uint32_t kRidPasid = 0x4b;  // second directory entry, not its first table entry
  static constexpr std::uint64_t kDomain = 0x1234;
  static constexpr std::uint64_t kGuestTables = 0x20'0000'0000;  // where guest-physical first-stage tables begin
  static constexpr std::uint64_t kGuestOutput = 0x30'4050'6000;  // of the first stage of a nested setting

  static UnitFeatures everything() {
    UnitFeatures features;
    features.input_address_bits = 57;
    features.nested = true;
    features.device_tlb = true;
    features.accessed_dirty = true;
    return features;
  }
  static Identity full() { return compose(everything()); }

  explicit Bench(Setting setting, Shape shape = {}, Identity identity = full(), std::uint64_t input = kInput)
      : HandBuiltTables(0x100000),
        setting(setting),
        shape(shape),
        core(identity),
        request{.requester = kDevice, .pasid = {}, .address = Iova(input)} {
    build_device_tables();
    build_page_tables(input);
    set_root(setting == Setting::Legacy || setting == Setting::LegacyPassThrough ? TableMode::Legacy
                                                                                 : TableMode::Scalable);
    core.mmio_write(offset::kGcmd, 4, mask_of<kGcmd, "TE">);
  }

  [[nodiscard]] bool is_scalable() const { return setting != Setting::Legacy && setting != Setting::LegacyPassThrough; }
  void set_root(TableMode mode, std::uint64_t address = kRoot) {
    core.mmio_write(offset::kRtaddr, 8, with<kRtaddr, "TTM">(address, static_cast<std::uint64_t>(mode)));
    const std::uint64_t enabled = core.is_translating() ? mask_of<kGcmd, "TE"> : 0;
    core.mmio_write(offset::kGcmd, 4, enabled | mask_of<kGcmd, "SRTP">);
  }

  TranslationResponse translate() { return core.translate(request, port).run(); }
  TranslationResponse translate(std::uint64_t address, Access access = Access::Read) {
    request.address = Iova(address);
    request.access = access;
    return translate();
  }

  // Maps `input` through tables below `root` with a leaf at `leaf`; tables that exist are used.
  Entries map_second(std::uint64_t root, unsigned levels, std::uint64_t input, std::uint64_t output, Level leaf = 0) {
    Entries entries{};
    std::uint64_t table = root;
    for (unsigned level = levels - 1; level > leaf; --level) {
      entries[level] = entry_at(table, level, input);
      if (word(entries[level]) == 0) write(entries[level], page() | pack<kSecondStageTable>({{"R", 1}, {"W", 1}}));
      table = word(entries[level]) & mask_of<kSecondStageTable, "ADDR">;
    }
    entries[leaf] = entry_at(table, leaf, input);
    write(entries[leaf], output | pack<kSecondStagePage>({{"R", 1}, {"W", 1}, {"PS", leaf > 0 ? 1U : 0U}}));
    return entries;
  }
  // Guest tables of a nested setting: addresses in entries are guest-physical, the result is where they are in the
  // host.
  Entries map_first(std::uint64_t root, unsigned levels, std::uint64_t input, std::uint64_t output, Level leaf = 0) {
    Entries entries{};
    std::uint64_t table = root;
    for (unsigned level = levels - 1; level > leaf; --level) {
      entries[level] = entry_at(table, level, input);
      if (word(entries[level]) == 0) {
        const std::uint64_t next = page();
        write(entries[level], guest_address(next) | pack<kFirstStageTable>({{"P", 1}, {"RW", 1}, {"US", 1}}));
        table = next;
      } else {
        table = (word(entries[level]) & mask_of<kFirstStageTable, "ADDR">)-guest_address(0);
      }
    }
    entries[leaf] = entry_at(table, leaf, input);
    write(entries[leaf], output | pack<kFirstStagePage>({{"P", 1}, {"RW", 1}, {"US", 1}, {"PS", leaf > 0 ? 1U : 0U}}));
    return entries;
  }
  // Guest-physical address of a host page that holds a first-stage table; in a nested setting it is mapped there.
  std::uint64_t guest_address(std::uint64_t page) {
    if (setting != Setting::Nested) return page;
    if (page != 0 && !mapped_[page]) {
      mapped_[page] = true;
      guest_table_entries[page] = map_second(kStage2Root, shape.levels2, kGuestTables + page, page);
    }
    return kGuestTables + page;
  }

  // A PASID-table entry like the device's own, somewhere else.
  void set_process(std::uint64_t at) {
    const PasidTranslation type = setting == Setting::FirstStage    ? PasidTranslation::FirstStage
                                  : setting == Setting::SecondStage ? PasidTranslation::SecondStage
                                  : setting == Setting::Nested      ? PasidTranslation::Nested
                                                                    : PasidTranslation::PassThrough;
    set<kPasidEntry, "P">(at, 1);
    set<kPasidEntry, "PGTT">(at, static_cast<std::uint64_t>(type));
    set<kPasidEntry, "DID">(at, kDomain);
    set<kPasidEntry, "PWSNP">(at, 1);
    if (setting == Setting::SecondStage || setting == Setting::Nested) {
      set<kPasidEntry, "AW">(at, shape.levels2 - 2);
      set<kPasidEntry, "SSPTPTR">(at, kStage2Root >> 12);
    }
    if (setting == Setting::FirstStage || setting == Setting::Nested) {
      const auto mode = shape.levels1 == 5 ? FirstStageMode::FiveLevel : FirstStageMode::FourLevel;
      set<kPasidEntry, "FSPM">(at, static_cast<std::uint64_t>(mode));
      set<kPasidEntry, "FSPTPTR">(at, guest_address(kStage1Root) >> 12);
    }
  }

  static constexpr std::uint64_t kRoot = 0x10000, kContexts = 0x11000, kDirectory = 0x20000, kPasidTable = 0x30000,
                                 kStage1Root = 0x40000, kStage2Root = 0x41000;

  Setting setting;
  Shape shape;
  Core core;
  TranslationRequest request;
  std::uint64_t root_entry = 0, context = 0, directory = 0, process = 0;
  Entries stage1{}, stage2{};  // of the mapped address; stage 2 of a nested setting: of the first stage's output
  std::map<std::uint64_t, Entries> guest_table_entries;  // second-stage path to each first-stage table, by host page

 private:
  void build_device_tables() {
    const std::uint64_t devfn = kDevice.devfn();
    if (!is_scalable()) {
      root_entry = kRoot + kDevice.bus() * 16U;
      context = kContexts + devfn * 16;
      set<kRootEntry, "P">(root_entry, 1);
      set<kRootEntry, "CTP">(root_entry, kContexts >> 12);
      set<kContextEntry, "P">(context, 1);
      const auto type = setting == Setting::Legacy ? TranslationType::Untranslated : TranslationType::PassThrough;
      set<kContextEntry, "TT">(context, static_cast<std::uint64_t>(type));
      set<kContextEntry, "AW">(context, shape.levels2 - 2);
      set<kContextEntry, "DID">(context, kDomain);
      set<kContextEntry, "SSPTPTR">(context, kStage2Root >> 12);
      return;
    }
    root_entry = kRoot + kDevice.bus() * 16U + (devfn >= 128 ? 8 : 0);
    context = kContexts + devfn % 128 * 32;
    directory = kDirectory + kRidPasid / 64 * 8;
    process = kPasidTable + kRidPasid % 64 * 64;
    set<kScalableRootEntry, "P">(root_entry, 1);
    set<kScalableRootEntry, "CTP">(root_entry, kContexts >> 12);
    set<kScalableContextEntry, "P">(context, 1);
    set<kScalableContextEntry, "DTE">(context, 1);
    set<kScalableContextEntry, "PASIDE">(context, 1);
    set<kScalableContextEntry, "PASIDDIRPTR">(context, kDirectory >> 12);
    set<kScalableContextEntry, "RID_PASID">(context, kRidPasid);
    set<kPasidDirectoryEntry, "P">(directory, 1);
    set<kPasidDirectoryEntry, "SMPTBLPTR">(directory, kPasidTable >> 12);
    set_process(process);
  }

  // The mapped address leads to kOutput and, below a large page, to the same offset behind it.
  void build_page_tables(std::uint64_t input) {
    if (setting == Setting::FirstStage)
      stage1 = map_first(kStage1Root, shape.levels1, input, aligned(kOutput, shape.leaf1), shape.leaf1);
    if (setting == Setting::Legacy || setting == Setting::SecondStage)
      stage2 = map_second(kStage2Root, shape.levels2, input, aligned(kOutput, shape.leaf2), shape.leaf2);
    if (setting != Setting::Nested) return;
    stage1 = map_first(kStage1Root, shape.levels1, input, aligned(kGuestOutput, shape.leaf1), shape.leaf1);
    const std::uint64_t in_page = input & bits_between(0, 12 + 9U * shape.leaf1);
    const std::uint64_t guest = aligned(kGuestOutput, shape.leaf1) + in_page;
    stage2 = map_second(kStage2Root, shape.levels2, guest, aligned(kOutput, shape.leaf2), shape.leaf2);
  }

  std::map<std::uint64_t, bool> mapped_;
};

}  // namespace iommu::vtd::test
