// SPDX-License-Identifier: Apache-2.0
// Every cause of an event has a way to arise. The ways are one table, in the order in which a unit checks: from it
// follow that each row is produced, that the earlier of two causes wins, what SA and SE hold back, and what the log
// says of each.
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "models/amdvi/core_test_support.hpp"

namespace iommu::amdvi::test {
namespace {

struct FaultCase {
  std::string_view row;
  std::string_view what;
  void (*break_it)(Bench&);
  void (*identity)(Identity&) = nullptr;
};

void reads(Bench& b) { b.request.access = Access::Read; }
void writes(Bench& b) { b.request.access = Access::Write; }
void unreadable(Bench& b, std::uint64_t at) { b.port.failing.insert(at); }
void unmarkable(Bench& b, std::uint64_t at) { b.port.failing_swaps.insert(at); }
void typed(Bench& b, AddressType type) { b.request.type = type; }
void at_interrupts(Bench& b, AddressType type) {
  typed(b, type);
  b.request.pasid.reset();
  b.request.address = Iova(0xfee01000);
  reads(b);
}
template <const auto& kLayout, FieldName kName>
void set(Bench& b, std::uint64_t at, std::uint64_t value) {
  b.set<kLayout, kName>(at, value);
}
void rights(Bench& b, std::uint64_t at, std::uint64_t read, std::uint64_t write) {
  set<kHostPage, "IR">(b, at, read);
  set<kHostPage, "IW">(b, at, write);
}
// The host entry that leads to the guest table which holds this entry.
std::uint64_t host_leaf_of(Bench& b, std::uint64_t guest_entry) {
  return b.guest_table_entries.at(guest_entry & ~std::uint64_t{0xfff})[0];
}
void short_device_table(Bench& b) { b.core.mmio_write(offset::kDeviceTableBase, 8, Bench::kDeviceTable); }
template <FieldName kName, std::uint64_t kValue>
void feature(Identity& id) {
  id.extended_features = with<kExtendedFeatures, kName>(id.extended_features, kValue);
}
constexpr std::uint64_t kBeyond48 = 1ULL << 48;
constexpr auto kUntranslated = AddressType::Untranslated;
constexpr auto kTranslation = AddressType::TranslationRequest;
constexpr auto kTranslated = AddressType::Translated;

// clang-format off
const std::vector<FaultCase> kEntryCases{
    {"IO_PAGE_FAULT.device", "beyond the device table", [](Bench& b) { typed(b, kUntranslated); short_device_table(b); }},
    {"INVALID_DEVICE_REQUEST.tr_device", "translation request beyond the device table", [](Bench& b) { typed(b, kTranslation); short_device_table(b); }},
    {"DEV_TAB_HARDWARE_ERROR", "entry unreadable", [](Bench& b) { unreadable(b, b.entry); }},
    {"ILLEGAL_DEV_TABLE_ENTRY.reserved", "low", [](Bench& b) { b.flip(b.entry, 2); }},
    {"ILLEGAL_DEV_TABLE_ENTRY.reserved", "high", [](Bench& b) { b.flip(b.entry, 63); }},
    {"ILLEGAL_DEV_TABLE_ENTRY.reserved", "PPR without EPHSup", [](Bench& b) { b.set_entry<"PPR">(1); }, feature<"EPHSup", 0>},
    {"ILLEGAL_DEV_TABLE_ENTRY.reserved", "GPRP without EPHSup", [](Bench& b) { b.set_entry<"GPRP">(1); }, feature<"EPHSup", 0>},
    {"ILLEGAL_DEV_TABLE_ENTRY.reserved", "GIOV without GIoSup", [](Bench& b) { b.set_entry<"GIOV">(1); }, feature<"GIoSup", 0>},
    {"ILLEGAL_DEV_TABLE_ENTRY.reserved", "SATS without SATSSup", [](Bench& b) { b.set_entry<"SATS">(1); }, feature<"SATSSup", 0>},
};
const std::vector<FaultCase> kGuestEntryCases{
    {"ILLEGAL_DEV_TABLE_ENTRY.level", "GLX reserved", [](Bench& b) { b.set_entry<"GLX">(3); }},
    {"ILLEGAL_DEV_TABLE_ENTRY.level", "GLX beyond GLXSup", [](Bench& b) { b.set_entry<"GLX">(2); }, feature<"GLXSup", 1>},
    {"ILLEGAL_DEV_TABLE_ENTRY.level", "GuestPagingMode reserved", [](Bench& b) { b.set_entry<"GuestPagingMode">(2); }},
    {"ILLEGAL_DEV_TABLE_ENTRY.level", "GuestPagingMode beyond GATS", [](Bench& b) { b.set_entry<"GuestPagingMode">(1); }, feature<"GATS", 0>},
};
const std::vector<FaultCase> kRequestCases{
    {"INVALID_DEVICE_REQUEST.translated", "I clear", [](Bench& b) { typed(b, kTranslated); b.set_entry<"I">(0); }},
    {"INVALID_DEVICE_REQUEST.tr_disabled", "I clear", [](Bench& b) { typed(b, kTranslation); b.set_entry<"I">(0); }},
    {"INVALID_DEVICE_REQUEST.interrupt_range", "reads", [](Bench& b) { at_interrupts(b, kUntranslated); }},
    {"INVALID_DEVICE_REQUEST.interrupt_range", "writes two bytes", [](Bench& b) { at_interrupts(b, kUntranslated); writes(b); b.request.length = Bytes(2); }},
    {"INVALID_DEVICE_REQUEST.tr_interrupt_range", "translation request", [](Bench& b) { at_interrupts(b, kTranslation); b.set_entry<"I">(1); }},
    {"IO_PAGE_FAULT.untranslated", "TV clear", [](Bench& b) { b.set_entry<"TV">(0); typed(b, kUntranslated); b.request.address = Iova(Bench::kInput); }},
};
const std::vector<FaultCase> kModeCases{
    {"IO_PAGE_FAULT.mode", "reserved", [](Bench& b) { b.set_entry<"Mode">(7); }},
    {"IO_PAGE_FAULT.mode", "beyond HATS", [](Bench& b) { b.set_entry<"Mode">(6); }, feature<"HATS", 1>},
};
const std::vector<FaultCase> kHostCases{
    {"IO_PAGE_FAULT.pasid", "no guest tables", [](Bench& b) { b.request.pasid = Pasid(1); }},
    {"IO_PAGE_FAULT.host_denied", "IR clear in the device entry", [](Bench& b) { reads(b); b.set_entry<"IR">(0); b.request.pasid.reset(); }},
    {"IO_PAGE_FAULT.host_denied", "IW clear in the device entry", [](Bench& b) { writes(b); b.set_entry<"IW">(0); b.request.pasid.reset(); }},
    {"IO_PAGE_FAULT.range", "beyond Mode", [](Bench& b) { b.request.address = Iova(Bench::kInput | kBeyond48); }},
    {"PAGE_TAB_HARDWARE_ERROR.host", "top unreadable", [](Bench& b) { unreadable(b, b.host_entries[3]); }},
    {"IO_PAGE_FAULT.host_absent", "top", [](Bench& b) { set<kHostTable, "PR">(b, b.host_entries[3], 0); }},
    {"IO_PAGE_FAULT.host_denied", "top", [](Bench& b) { reads(b); rights(b, b.host_entries[3], 0, 1); }},
    {"IO_PAGE_FAULT.host_level", "top leads to itself", [](Bench& b) { set<kHostTable, "NextLevel">(b, b.host_entries[3], 4); }},
    {"IO_PAGE_FAULT.host_level", "top leads up", [](Bench& b) { set<kHostTable, "NextLevel">(b, b.host_entries[3], 6); }},
    {"IO_PAGE_FAULT.host_size", "top, a page too small", [](Bench& b) { set<kHostTable, "NextLevel">(b, b.host_entries[3], 7); set<kHostTable, "Address">(b, b.host_entries[3], 0); }},
    {"IO_PAGE_FAULT.host_skipped", "top skips two levels", [](Bench& b) { set<kHostTable, "NextLevel">(b, b.host_entries[3], 1); }},
    {"IO_PAGE_FAULT.host_reserved", "top", [](Bench& b) { b.flip(b.host_entries[3], 52); }},
    {"IO_PAGE_FAULT.host_reserved", "top, FC is of pages", [](Bench& b) { b.flip(b.host_entries[3], 60); }},
    {"PAGE_TAB_HARDWARE_ERROR.host", "top cannot be marked", [](Bench& b) { b.set_entry<"HAD">(1); unmarkable(b, b.host_entries[3]); }},
    {"PAGE_TAB_HARDWARE_ERROR.host", "next unreadable", [](Bench& b) { unreadable(b, b.host_entries[2]); }},
    {"IO_PAGE_FAULT.host_absent", "next", [](Bench& b) { set<kHostTable, "PR">(b, b.host_entries[2], 0); }},
    {"IO_PAGE_FAULT.host_denied", "next", [](Bench& b) { writes(b); rights(b, b.host_entries[2], 1, 0); rights(b, b.host_entries[3], 1, 1); }},
    {"IO_PAGE_FAULT.host_skipped", "next skips one level", [](Bench& b) { set<kHostTable, "NextLevel">(b, b.host_entries[2], 1); }},
    {"PAGE_TAB_HARDWARE_ERROR.host", "page unreadable", [](Bench& b) { unreadable(b, b.host_entries[0]); }},
    {"IO_PAGE_FAULT.host_absent", "page", [](Bench& b) { set<kHostPage, "PR">(b, b.host_entries[0], 0); }},
    {"IO_PAGE_FAULT.host_denied", "page", [](Bench& b) { reads(b); rights(b, b.host_entries[0], 0, 0); b.set_entry<"IR">(1); rights(b, b.host_entries[3], 1, 1); }},
    {"IO_PAGE_FAULT.host_size", "page too large", [](Bench& b) { set<kHostPage, "NextLevel">(b, b.host_entries[0], 7); set<kHostPage, "Address">(b, b.host_entries[0], 0xff); }},
    {"IO_PAGE_FAULT.host_level", "page leads on", [](Bench& b) { set<kHostPage, "NextLevel">(b, b.host_entries[0], 1); }},
    {"IO_PAGE_FAULT.host_reserved", "page", [](Bench& b) { b.flip(b.host_entries[0], 58); }},
    {"PAGE_TAB_HARDWARE_ERROR.host", "page cannot be marked dirty", [](Bench& b) { writes(b); b.set_entry<"HAD">(2); unmarkable(b, b.host_entries[0]); }},
};
const std::vector<FaultCase> kGcr3Cases{
    {"IO_PAGE_FAULT.pasid", "beyond GLX", [](Bench& b) { b.request.pasid = Pasid(512); }},
    {"PAGE_TAB_HARDWARE_ERROR.guest", "GCR3 entry unreadable", [](Bench& b) { b.request.pasid.reset(); unreadable(b, b.gcr3_entries[0]); }},
    {"IO_PAGE_FAULT.gcr3_absent", "GCR3 entry", [](Bench& b) { set<kGcr3Entry, "V">(b, b.gcr3_entries[0], 0); }},
    {"IO_PAGE_FAULT.gcr3_reserved", "low", [](Bench& b) { b.flip(b.gcr3_entries[0], 1); }},
    {"IO_PAGE_FAULT.gcr3_reserved", "high", [](Bench& b) { b.flip(b.gcr3_entries[0], 52); }},
    {"IO_PAGE_FAULT.host_denied", "IR clear in the device entry", [](Bench& b) { reads(b); b.set_entry<"IR">(0); }},
    {"IO_PAGE_FAULT.guest_absent", "not canonical", [](Bench& b) { b.request.address = Iova(Bench::kInput | 1ULL << 47); }},
};
const std::vector<FaultCase> kGuestCases{
    {"PAGE_TAB_HARDWARE_ERROR.guest", "top unreadable", [](Bench& b) { unreadable(b, b.guest_entries[3]); }},
    {"IO_PAGE_FAULT.guest_absent", "top", [](Bench& b) { set<kGuestTable, "P">(b, b.guest_entries[3], 0); }},
    {"IO_PAGE_FAULT.guest_user", "top", [](Bench& b) { set<kGuestTable, "US">(b, b.guest_entries[3], 0); }},
    {"IO_PAGE_FAULT.guest_user", "privilege without PASID is none", [](Bench& b) { set<kGuestTable, "US">(b, b.guest_entries[3], 0); b.request.privileged = true; b.request.pasid.reset(); }},
    {"IO_PAGE_FAULT.guest_denied", "top", [](Bench& b) { writes(b); set<kGuestTable, "RW">(b, b.guest_entries[3], 0); }},
    {"IO_PAGE_FAULT.guest_reserved", "a page of 512 GiB", [](Bench& b) { set<kGuestTable, "PS">(b, b.guest_entries[3], 1); }},
    {"PAGE_TAB_HARDWARE_ERROR.guest", "top cannot be marked", [](Bench& b) { unmarkable(b, b.guest_entries[3]); }},
    {"PAGE_TAB_HARDWARE_ERROR.guest", "next unreadable", [](Bench& b) { unreadable(b, b.guest_entries[2]); }},
    {"IO_PAGE_FAULT.guest_reserved", "a misaligned page of 1 GiB", [](Bench& b) { set<kGuestPage, "PS">(b, b.guest_entries[2], 1); set<kGuestPage, "Address">(b, b.guest_entries[2], 2); }},
    {"IO_PAGE_FAULT.guest_absent", "page", [](Bench& b) { set<kGuestPage, "P">(b, b.guest_entries[0], 0); }},
    {"IO_PAGE_FAULT.guest_user", "page", [](Bench& b) { set<kGuestPage, "US">(b, b.guest_entries[0], 0); }},
    {"IO_PAGE_FAULT.guest_denied", "page", [](Bench& b) { writes(b); b.set_entry<"IW">(1); set<kGuestPage, "RW">(b, b.guest_entries[0], 0); }},
    {"PAGE_TAB_HARDWARE_ERROR.guest", "page cannot be marked", [](Bench& b) { writes(b); unmarkable(b, b.guest_entries[0]); }},
};
// Of the host path to the topmost guest table, and of the output.
const std::vector<FaultCase> kNestedCases{
    {"IO_PAGE_FAULT.host_absent", "topmost guest table", [](Bench& b) { set<kHostPage, "PR">(b, host_leaf_of(b, b.guest_entries[3]), 0); }},
    {"IO_PAGE_FAULT.host_denied", "topmost guest table not readable", [](Bench& b) { rights(b, host_leaf_of(b, b.guest_entries[3]), 0, 1); }},
    {"IO_PAGE_FAULT.host_reserved", "topmost guest table", [](Bench& b) { b.flip(host_leaf_of(b, b.guest_entries[3]), 55); }},
    {"PAGE_TAB_HARDWARE_ERROR.guest", "topmost guest entry unreadable", [](Bench& b) { unreadable(b, b.guest_entries[3]); }},
    {"IO_PAGE_FAULT.host_denied", "topmost guest table not writable for a mark", [](Bench& b) { rights(b, host_leaf_of(b, b.guest_entries[3]), 1, 0); }},
    {"PAGE_TAB_HARDWARE_ERROR.host", "next guest table's host entry unreadable", [](Bench& b) { unreadable(b, host_leaf_of(b, b.guest_entries[2])); }},
    {"IO_PAGE_FAULT.guest_absent", "page", [](Bench& b) { set<kGuestPage, "P">(b, b.guest_entries[0], 0); }},
    {"IO_PAGE_FAULT.range", "output beyond Mode", [](Bench& b) { b.flip(b.guest_entries[0], 49); },
     [](Identity& id) { id.misc_info0 = static_cast<std::uint32_t>(with<kMiscInfo0, "PAsize">(id.misc_info0, 52)); }},
    {"PAGE_TAB_HARDWARE_ERROR.host", "output's entry unreadable", [](Bench& b) { unreadable(b, b.host_entries[0]); }},
    {"IO_PAGE_FAULT.host_absent", "output", [](Bench& b) { set<kHostPage, "PR">(b, b.host_entries[0], 0); }},
    {"IO_PAGE_FAULT.host_denied", "output", [](Bench& b) { reads(b); b.set_entry<"IR">(1); rights(b, b.host_entries[0], 0, 1); }},
};
const std::vector<FaultCase> kForwardCases{
    {"IO_PAGE_FAULT.pasid", "no guest tables", [](Bench& b) { b.request.pasid = Pasid(1); }},
    {"IO_PAGE_FAULT.host_denied", "IW clear", [](Bench& b) { writes(b); b.set_entry<"IW">(0); b.request.pasid.reset(); }},
};
// clang-format on

// The cases of a setting in the order of checks.
std::vector<FaultCase> cases_of(Setting setting) {
  std::vector<FaultCase> all = kEntryCases;
  const auto add = [&](const std::vector<FaultCase>& more) { all.insert(all.end(), more.begin(), more.end()); };
  const bool guest = setting == Setting::Guest || setting == Setting::Nested;
  if (guest) add(kGuestEntryCases);
  add(kRequestCases);
  add(kModeCases);
  if (guest) add(kGcr3Cases);
  if (setting == Setting::Host) add(kHostCases);
  if (setting == Setting::Guest) add(kGuestCases);
  if (setting == Setting::Nested) add(kNestedCases);
  if (setting == Setting::Forward) add(kForwardCases);
  return all;
}

Identity identity_of(std::initializer_list<const FaultCase*> cases) {
  Identity identity = Bench::full();
  for (const FaultCase* c : cases)
    if (c->identity != nullptr) c->identity(identity);
  return identity;
}

// A bench with cases applied in the given order.
struct Broken : Bench {
  Broken(Setting setting, std::initializer_list<const FaultCase*> cases) : Bench(setting, {}, identity_of(cases)) {
    for (const FaultCase* c : cases) c->break_it(*this);
  }
};

// Without this, a case may fault for another reason than its own. Kills: a bench that never translates.
TEST(AmdViFaults, NothingFaultsUnbroken) {
  for (const Setting setting : kAllSettings)
    for (const Access access : {Access::Read, Access::Write}) {
      Bench bench(setting);
      EXPECT_EQ(row_of(bench.translate(Bench::kInput, access)), "translated") << static_cast<int>(setting);
      EXPECT_TRUE(bench.events().empty());
    }
}
TEST(AmdViFaults, EachCaseIsItsRow) {
  for (const Setting setting : kAllSettings)
    for (const FaultCase& c : cases_of(setting)) {
      Broken bench(setting, {&c});
      EXPECT_EQ(row_of(bench.translate()), c.row) << static_cast<int>(setting) << " " << c.what;
    }
}

// Rows that nothing produces. Kills: a row whose condition the core forgot, and a check that hides another.
TEST(AmdViFaults, EveryRowIsProduced) {
  std::set<std::string_view> produced;
  std::set<unsigned> logged;
  for (const Setting setting : kAllSettings)
    for (const FaultCase& c : cases_of(setting)) {
      Broken bench(setting, {&c});
      const TranslationResponse response = bench.translate();
      if (const auto* fault = std::get_if<Fault>(&response)) produced.insert(fault->row->name);
    }
  // Those that no request causes.
  Bench bench(Setting::Host);
  (void)bench.execute(0, 0);
  bench.core.device_tlb_timed_out(Bench::kDevice, Hpa(Bench::kCommands));
  bench.control<"CmdBufEn">(0), bench.control<"CmdBufEn">(1);
  bench.port.failing.insert(Bench::kCommands);
  bench.core.mmio_write(offset::kCommandHead, 8, 0);
  (void)bench.core.fetch_command(bench.port).run();
  for (const EventWords& event : bench.events())
    logged.insert(static_cast<unsigned>(get<kTranslationEvent, "EventCode">(event)));
  for (const FaultRow& row : kFaultRows)
    EXPECT_TRUE(produced.contains(row.name) || (row.kind == FaultClass::Command && logged.contains(row.code)))
        << row.name << " was never produced";
}

// Each pair of one setting: the one that is checked first is reported. Kills: any two checks in exchanged order.
TEST(AmdViFaults, TheEarlierOfTwoFaultsIsReported) {
  for (const Setting setting : kAllSettings) {
    const auto cases = cases_of(setting);
    for (std::size_t first = 0; first < cases.size(); ++first)
      for (std::size_t later = first + 1; later < cases.size(); ++later) {
        // The expected one last, so that its own condition holds.
        Broken bench(setting, {&cases[later], &cases[first]});
        EXPECT_EQ(row_of(bench.translate()), cases[first].row)
            << static_cast<int>(setting) << " " << cases[first].what << " before " << cases[later].what;
      }
  }
}

// A page fault of a translation request is an answer without rights and no event; other events remain. [§2.1.3.2]
TEST(AmdViFaults, TranslationRequestsArePageFaultedSilently) {
  for (const Setting setting : kAllSettings)
    for (const FaultCase& c : cases_of(setting)) {
      if (c.row == "IO_PAGE_FAULT.device" || c.row.starts_with("INVALID_DEVICE_REQUEST")) continue;
      Broken bench(setting, {&c});
      bench.request.type = AddressType::TranslationRequest;
      const TranslationResponse response = bench.translate();
      if (!c.row.starts_with("IO_PAGE_FAULT")) {
        EXPECT_EQ(row_of(response), c.row) << c.what;
        continue;
      }
      // GCR3 entries are part of the context, which cannot be without rights.
      if (const auto* fault = std::get_if<Fault>(&response))
        EXPECT_TRUE(fault->suppressed && (c.row.find("gcr3") != std::string_view::npos || c.row.ends_with("pasid")));
      else
        EXPECT_TRUE(std::get<Translation>(response).allowed.none()) << c.what;
      EXPECT_TRUE(bench.log(response).empty());
    }
}

// SA holds back page faults of an entry that could be read; SE all but the first until the entry is invalidated.
// Kills: SA held against hardware errors, SE that forgets to begin anew.
TEST(AmdViFaults, SuppressionIsOfPageFaultsOnly) {
  for (const Setting setting : kAllSettings)
    for (const FaultCase& c : cases_of(setting)) {
      Broken all(setting, {&c});
      all.set_entry<"SA">(1);
      const TranslationResponse response = all.translate();
      ASSERT_EQ(row_of(response), c.row) << c.what;
      const bool page_fault = c.row.starts_with("IO_PAGE_FAULT") && c.row != "IO_PAGE_FAULT.device";
      EXPECT_EQ(std::get<Fault>(response).suppressed, page_fault) << c.row << " " << c.what;
      EXPECT_EQ(all.log(response).size(), page_fault ? 0U : 1U);

      Broken one(setting, {&c});
      one.set_entry<"SE">(1);
      EXPECT_EQ(one.log(one.translate()).size(), 1U) << c.row << " " << c.what;
      EXPECT_EQ(one.log(one.translate()).size(), page_fault ? 0U : 1U) << c.row << " " << c.what;
      EXPECT_TRUE(one.execute<kInvalidateDevice>(kOpInvalidateDevtabEntry, {{"DeviceID", Bench::kDevice.value()}}));
      EXPECT_EQ(one.log(one.translate()).size(), 1U) << c.row << " " << c.what;
    }
}

// What the log says of each case: who, where, how and why. Bit positions stand here once more. [§2.5]
TEST(AmdViFaults, EachCaseIsLoggedWithItsRequest) {
  struct Flags {
    bool present, permission, reserved;
    unsigned type;
  };
  const auto flags_of_name = [](std::string_view row) -> Flags {
    const bool denied = row.ends_with("_denied") || row.ends_with("_user");
    const bool reserved = row.ends_with("reserved");
    const bool absent = row.ends_with("_absent") || row.ends_with(".device") || row.ends_with(".pasid") ||
                        row.ends_with(".untranslated");
    const bool one = row.ends_with(".translated") || row.ends_with("tr_disabled") || row.ends_with("_ERROR") ||
                     row.starts_with("PAGE_TAB");
    return {!absent, denied, reserved, row.ends_with("tr_device") ? 2U : one ? 1U : 0U};
  };
  constexpr std::array<std::pair<std::string_view, std::uint64_t>, 5> kCodes{{{"ILLEGAL_DEV_TABLE_ENTRY", 1},
                                                                              {"IO_PAGE_FAULT", 2},
                                                                              {"DEV_TAB", 3},
                                                                              {"PAGE_TAB", 4},
                                                                              {"INVALID_DEVICE_REQUEST", 8}}};
  for (const Setting setting : kAllSettings)
    for (const FaultCase& c : cases_of(setting)) {
      Broken bench(setting, {&c});
      std::uint64_t touched = 0;
      bench.port.before = [&](const MemoryAccess& a) { touched = a.address.value(); };
      const TranslationResponse response = bench.translate();
      const std::uint64_t last = touched;
      const auto& fault = std::get<Fault>(response);
      const auto events = bench.log(response);
      ASSERT_EQ(events.size(), 1U);
      const auto bit = [&](unsigned n) { return (events[0][0] >> n & 1) != 0; };
      const std::string where =
          std::to_string(static_cast<int>(setting)) + " " + std::string(c.row) + " " + std::string(c.what);
      std::uint64_t code = 0;
      for (const auto& [prefix, value] : kCodes)
        if (c.row.starts_with(prefix)) code = value;
      const Flags flags = flags_of_name(c.row);
      EXPECT_EQ(events[0][0] >> 60, code) << where;
      EXPECT_EQ(events[0][0] & 0xffff, Bench::kDevice.value()) << where;
      EXPECT_EQ(bit(56), bench.request.type == AddressType::TranslationRequest) << where;
      if (code != 8) EXPECT_EQ(bit(53), bench.request.access == Access::Write) << where;
      if (code == 2) {
        EXPECT_EQ(bit(52), flags.present) << where;
        EXPECT_EQ(bit(54), flags.permission) << where;
      }
      if (code <= 2) EXPECT_EQ(bit(55), flags.reserved) << where;
      if (code == 3 || code == 4 || code == 8) EXPECT_EQ(events[0][0] >> 57 & 7, flags.type) << where;
      const bool is_guest = fault.stage == Stage::Stage1 || c.row.find("gcr3") != std::string_view::npos ||
                            c.row.ends_with(".guest") || c.row.ends_with(".pasid");
      if (code == 2 || code == 4) {
        EXPECT_EQ(bit(48), is_guest) << where;
        const std::uint64_t pasid = bench.request.pasid ? bench.request.pasid->value() : 0;
        const std::uint64_t expected = is_guest ? pasid : c.row == "IO_PAGE_FAULT.device" ? 0 : Bench::kDomain;
        EXPECT_EQ(events[0][0] >> 32 & 0xffff, expected) << where;
      }
      const std::uint64_t address = fault.gpa ? fault.gpa->value() : bench.request.address.value();
      EXPECT_EQ(events[0][1], code == 3 || code == 4 ? last : address) << where;
      EXPECT_EQ(events[0][0] & bits_between(20, 32), 0U) << where;
    }
}

using Rows = std::vector<std::string>;
Rows repeat(Rows rows, const Rows& more, unsigned times = 1) {
  while (times-- > 0) rows.insert(rows.end(), more.begin(), more.end());
  return rows;
}

// Memory fails at access 1, 2, 3 … of a translation: a hardware error that names the entry of that access, nothing
// touched after it, and no success before all accesses were good. Kills: a read whose failure is ignored, an event that
// names another entry.
TEST(AmdViFaults, MemoryFailingAtEachAccessIsTheErrorOfThatEntry) {
  const std::string table = "DEV_TAB_HARDWARE_ERROR";
  const std::string host = "PAGE_TAB_HARDWARE_ERROR.host", guest = "PAGE_TAB_HARDWARE_ERROR.guest";
  const Rows path{host, host, host, host};
  const Rows guest_level = repeat(repeat(repeat(path, {guest}), path), {guest});  // read, and once more for the mark
  const std::map<Setting, Rows> expected{
      {Setting::Forward, {table}},
      {Setting::Host, repeat({table}, {host, host}, 4)},
      {Setting::Guest, repeat({table, guest}, {guest, guest}, 4)},
      {Setting::Nested, repeat(repeat({table, guest}, guest_level, 4), path)},
  };
  for (const auto& [setting, rows] : expected)
    for (std::uint64_t n = 1;; ++n) {
      Bench bench(setting);
      if (setting == Setting::Host) bench.set_entry<"HAD">(3);
      std::uint64_t touched = 0;
      bench.port.before = [&](const MemoryAccess& a) { touched = a.address.value(); };
      bench.port.fail_access = n;
      const TranslationResponse response = bench.translate();
      EXPECT_EQ(bench.port.accesses, std::min<std::uint64_t>(n, rows.size()));
      if (n > rows.size()) {
        EXPECT_EQ(row_of(response), "translated") << static_cast<int>(setting) << " access " << n;
        break;
      }
      EXPECT_EQ(row_of(response), rows[n - 1]) << static_cast<int>(setting) << " access " << n;
      const std::uint64_t entry = touched;
      const auto events = bench.log(response);
      ASSERT_EQ(events.size(), 1U);
      EXPECT_EQ(events[0][1], entry) << static_cast<int>(setting) << " access " << n;
    }
}

}  // namespace
}  // namespace iommu::amdvi::test
