// SPDX-License-Identifier: Apache-2.0
// Worked by hand from the specification: every table word, input, output and event below was written down as bits, not
// made by the layouts, the formats or the driver. Raw words stand beside what they say.
#include <gtest/gtest.h>

#include "models/amdvi/core.hpp"
#include "sim/memory/host_memory.hpp"

namespace iommu::amdvi {
namespace {

constexpr std::uint64_t kDevices = 0x100000;  // device table
constexpr std::uint64_t kLog = 0x300000;      // event log
constexpr std::uint64_t kDevice = 0x0208;     // bus 2, device 1, function 0
constexpr std::uint64_t kSlot = kDevices + kDevice * 32;

class GoldenUnit : public testing::Test {
 protected:
  static Identity identity() {
    Identity id;
    // EFR: PreFSup, GTSup, IASup; HATS = 2 (six levels), GATS = 1 (five), GLXSup = 2; PASMax = 19; USSup; GIoSup;
    // HASup, HDSup.
    id.extended_features = 1UL << 0 | 1UL << 4 | 1UL << 6 | 2UL << 10 | 1UL << 12 | 2UL << 14 | 19UL << 32 | 1UL << 37 |
                           1UL << 48 | 1UL << 49 | 1UL << 52;
    return id;
  }
  GoldenUnit() {
    core_.mmio_write(0x0000, 8, kDevices | 0x1ff);            // all 2^16 entries
    core_.mmio_write(0x0010, 8, kLog | 8UL << 56);            // 256 events
    core_.mmio_write(0x0018, 8, 1UL | 1UL << 2 | 1UL << 16);  // IommuEn, EventLogEn, GTEn
  }
  void put(std::uint64_t address, std::uint64_t value) { host_.write64(Hpa(address), value); }
  std::uint64_t word(std::uint64_t address) const { return host_.read64(Hpa(address)); }

  TranslationResponse ask(std::uint64_t address, Access access, std::optional<Pasid> pasid = {}) {
    TranslationRequest request;
    request.requester = RequesterId(kDevice);
    request.address = Iova(address);
    request.access = access;
    request.pasid = pasid;
    return core_.translate(request, port_).run();
  }
  // The output; 0 for a fault.
  std::uint64_t output(std::uint64_t address, Access access = Access::Read, std::optional<Pasid> pasid = {}) {
    const TranslationResponse response = ask(address, access, pasid);
    const auto* translation = std::get_if<Translation>(&response);
    return translation == nullptr ? 0 : translation->address.value();
  }
  // The two words of the event that a refused request leaves.
  std::pair<std::uint64_t, std::uint64_t> event(std::uint64_t address, Access access, std::optional<Pasid> pasid = {}) {
    const TranslationResponse response = ask(address, access, pasid);
    const auto* fault = std::get_if<Fault>(&response);
    if (fault == nullptr) return {0, 0};
    const std::uint64_t tail = core_.mmio_read(0x2018, 8);
    core_.record(*fault);
    core_.write_events(port_).run();
    EXPECT_EQ(core_.mmio_read(0x2018, 8), tail + 16);
    return {word(kLog + tail), word(kLog + tail + 8)};
  }

  HostMemory host_{Bytes(1UL << 47)};
  Core core_{identity()};
  ImmediateMemoryPort port_{host_};
};

// Events: DeviceID 0208h, DomainID 0042h; flags PR = bit 52, RW = 53, PE = 54, RZ = 55; code 2 in bits 63:60. [§2.5.3]
constexpr std::uint64_t kPageFault = 0x2000'0042'0000'0208;
constexpr std::uint64_t kPr = 1UL << 52, kRw = 1UL << 53, kPe = 1UL << 54, kRz = 1UL << 55;

class GoldenHost : public GoldenUnit {
 protected:
  // V = TV = 1, Mode = 4, root 0x10000, IR = IW = 1; DomainID 0042h. [§2.2.2]
  GoldenHost() {
    put(kSlot, 0x6000'0000'0001'0803);
    put(kSlot + 8, 0x0042);
    // Input 0x7f12'3456'7abc: level 4 index 0xfe, level 3 index 0x48, level 2 index 0x1a2, level 1 index 0x167.
    put(0x10000 + 0xfe * 8, 0x6000'0000'0001'1601);   // PR, NextLevel 3, table 0x11000, IR IW
    put(0x11000 + 0x48 * 8, 0x6000'0000'0001'2401);   // NextLevel 2
    put(0x12000 + 0x1a2 * 8, 0x6000'0000'0001'3201);  // NextLevel 1
    put(0x13000 + 0x167 * 8, 0x2000'00ab'cdef'0001);  // NextLevel 0: page 0xab'cdef'0000, IR only
  }
};

TEST_F(GoldenHost, FourLevelsToAFourKilobytePage) {
  EXPECT_EQ(output(0x7f12'3456'7abc), 0xab'cdef'0abcU);
  EXPECT_EQ(event(0x7f12'3456'7abc, Access::Write), std::pair(kPageFault | kPr | kRw | kPe, 0x7f12'3456'7abcUL));
  EXPECT_EQ(event(0x7f12'3456'8abc, Access::Read), std::pair(kPageFault, 0x7f12'3456'8abcUL));  // index 0x168: absent
  EXPECT_EQ(event(0x7f12'3456'8abc, Access::Write), std::pair(kPageFault | kRw, 0x7f12'3456'8abcUL));
}
// Rights are the intersection over device table, directories and page. [§2.2.3]
TEST_F(GoldenHost, EachDirectoryAndTheDeviceEntryWithholdRights) {
  for (const std::uint64_t entry : {0x107f0UL, 0x11240UL, 0x12d10UL, kSlot}) {
    const std::uint64_t before = word(entry);
    put(entry, before & ~(1UL << 61));  // IR
    EXPECT_EQ(event(0x7f12'3456'7abc, Access::Read), std::pair(kPageFault | kPr | kPe, 0x7f12'3456'7abcUL));
    put(entry, before);
  }
  put(0x13000 + 0x167 * 8, 0x6000'00ab'cdef'0001);
  put(0x11000 + 0x48 * 8, 0x2000'0000'0001'2401);
  EXPECT_EQ(event(0x7f12'3456'7abc, Access::Write), std::pair(kPageFault | kPr | kRw | kPe, 0x7f12'3456'7abcUL));
  EXPECT_EQ(std::get<Translation>(ask(0x7f12'3456'7abc, Access::Read)).allowed, kReadOnly);
}
// Level 4 leads to level 1: bits 38:21 of the input must be zero. [§2.2.3]
TEST_F(GoldenHost, ASkippedLevelWantsItsAddressBitsZero) {
  put(0x10000 + 0xfe * 8, 0x6000'0000'0001'3201);  // NextLevel 1
  EXPECT_EQ(output(0x7f00'0016'7abc), 0xab'cdef'0abcU);
  EXPECT_EQ(event(0x7f00'0036'7abc, Access::Read), std::pair(kPageFault | kPr, 0x7f00'0036'7abcUL));  // bit 21
  EXPECT_EQ(event(0x7f40'0016'7abc, Access::Read), std::pair(kPageFault | kPr, 0x7f40'0016'7abcUL));  // bit 38
  EXPECT_EQ(event(0x0001'7f00'0016'7abc, Access::Read), std::pair(kPageFault | kPr, 0x0001'7f00'0016'7abcUL));  // Mode
}
// NextLevel 7: the lowest zero bit of the address, from bit 12, is half the page. [§2.2.3, Table 14]
TEST_F(GoldenHost, PageSizesOfNextLevelSeven) {
  put(0x13000 + 0x167 * 8, 0x6000'00ab'cdef'7e01);  // ones in 14:12, zero in 15: 64 KiB at 0xab'cdef'0000
  EXPECT_EQ(output(0x7f12'3456'7abc), 0xab'cdef'7abcU);
  EXPECT_EQ(std::get<Translation>(ask(0x7f12'3456'7abc, Access::Read)).page_lg2, 16);
  put(0x13000 + 0x167 * 8, 0x6000'00ab'cdee'0e01);  // zero in 12: 8 KiB at 0xab'cdee'0000
  EXPECT_EQ(output(0x7f12'3456'7abc), 0xab'cdee'1abcU);
  put(0x12000 + 0x1a2 * 8, 0x6000'00ab'ccff'fe01);  // ones in 23:12, zero in 24: 32 MiB at 0xab'cc00'0000
  EXPECT_EQ(output(0x7f12'3456'7abc), 0xab'cc56'7abcU);
  put(0x11000 + 0x48 * 8, 0x6000'00ab'ffff'fe01);  // zero in 34: 32 GiB at 0xa8'0000'0000
  EXPECT_EQ(output(0x7f12'3456'7abc), 0xaa'3456'7abcUL);
}
// A size that its level does not have: level 1 holds 8 KiB to 1 MiB, level 2 4 MiB to 512 MiB. [§2.2.3, Table 15]
TEST_F(GoldenHost, PageSizesOfOtherLevelsAreInvalid) {
  const auto refused = std::pair(kPageFault | kPr, 0x7f12'3456'7abcUL);
  put(0x13000 + 0x167 * 8, 0x6000'00ab'cdef'fe01);  // ones in 19:12, zero in 20: 2 MiB at level 1
  EXPECT_EQ(event(0x7f12'3456'7abc, Access::Read), refused);
  put(0x12000 + 0x1a2 * 8, 0x6000'00ab'cdef'fe01);  // 2 MiB at level 2 is NextLevel 0's
  EXPECT_EQ(event(0x7f12'3456'7abc, Access::Read), refused);
  put(0x12000 + 0x1a2 * 8, 0x6000'00ab'cdef'0e01);  // 8 KiB at level 2
  EXPECT_EQ(event(0x7f12'3456'7abc, Access::Read), refused);
  put(0x12000 + 0x1a2 * 8, 0x6000'00ab'dfff'fe01);  // ones in 28:12, zero in 29: 1 GiB is level 3's
  EXPECT_EQ(event(0x7f12'3456'7abc, Access::Read), refused);
}
// NextLevel 0 above level 1: 2 MiB, 1 GiB, 512 GiB. [§2.2.3, Table 15]
TEST_F(GoldenHost, DefaultPageSizesOfEachLevel) {
  put(0x12000 + 0x1a2 * 8, 0x6000'00ab'cdc0'0001);
  EXPECT_EQ(output(0x7f12'3456'7abc), 0xab'cdd6'7abcU);
  put(0x11000 + 0x48 * 8, 0x6000'00ab'c000'0001);
  EXPECT_EQ(output(0x7f12'3456'7abc), 0xab'f456'7abcU);
  put(0x10000 + 0xfe * 8, 0x6000'0080'0000'0001);
  EXPECT_EQ(output(0x7f12'3456'7abc), 0x92'3456'7abcU);
}
// NextLevel must be below its own level; bits 58:52 of a page and 60:52 of a directory are reserved. [§2.2.3]
TEST_F(GoldenHost, InvalidLevelsAndReservedBitsDiffer) {
  put(0x12000 + 0x1a2 * 8, 0x6000'0000'0001'3401);  // level 2 leads to level 2
  EXPECT_EQ(event(0x7f12'3456'7abc, Access::Read), std::pair(kPageFault | kPr, 0x7f12'3456'7abcUL));
  put(0x12000 + 0x1a2 * 8, 0x7000'0000'0001'3201);  // bit 60 of a directory
  EXPECT_EQ(event(0x7f12'3456'7abc, Access::Read), std::pair(kPageFault | kPr | kRz, 0x7f12'3456'7abcUL));
  put(0x12000 + 0x1a2 * 8, 0x6000'0000'0001'3201);
  put(0x13000 + 0x167 * 8, 0x3800'00ab'cdef'0001);  // bits 60 (FC) and 59 (U) of a page are not reserved
  EXPECT_EQ(output(0x7f12'3456'7abc), 0xab'cdef'0abcU);
  put(0x13000 + 0x167 * 8, 0x2400'00ab'cdef'0001);  // bit 58 is
  EXPECT_EQ(event(0x7f12'3456'7abc, Access::Read), std::pair(kPageFault | kPr | kRz, 0x7f12'3456'7abcUL));
}
// Code 4, Type 1 (master abort) in 58:57, the address of the entry. [§2.5.5]
TEST_F(GoldenHost, AnEntryThatIsNoMemoryIsAHardwareError) {
  put(0x12000 + 0x1a2 * 8, 0x6000'8000'0000'0201);  // a table beyond memory: 0x8000'0000'0000
  EXPECT_EQ(event(0x7f12'3456'7abc, Access::Read), std::pair(0x4200'0042'0000'0208UL, 0x8000'0000'0000UL + 0x167 * 8));
}
// HAD = 3: A = bit 5 of every entry, D = bit 6 of the page once written. [§2.2.2, §2.2.3]
TEST_F(GoldenHost, AccessedAndDirtyMarks) {
  put(kSlot, 0x6000'0000'0001'0803 | 3UL << 7);
  put(0x13000 + 0x167 * 8, 0x6000'00ab'cdef'0001);
  EXPECT_EQ(output(0x7f12'3456'7abc), 0xab'cdef'0abcU);
  EXPECT_EQ(word(0x10000 + 0xfe * 8), 0x6000'0000'0001'1621U);
  EXPECT_EQ(word(0x12000 + 0x1a2 * 8), 0x6000'0000'0001'3221U);
  EXPECT_EQ(word(0x13000 + 0x167 * 8), 0x6000'00ab'cdef'0021U);
  EXPECT_EQ(output(0x7f12'3456'7abc, Access::Write), 0xab'cdef'0abcU);
  EXPECT_EQ(word(0x12000 + 0x1a2 * 8), 0x6000'0000'0001'3221U);
  EXPECT_EQ(word(0x13000 + 0x167 * 8), 0x6000'00ab'cdef'0061U);
}
// Base 0x7f12'3456'0000, limit 0x7f12'3456'7fff (low bits count as ones), Allow = 0: EX = bit 103 decides. [§3.4.5]
TEST_F(GoldenHost, TheExclusionRangeIsForwarded) {
  core_.mmio_write(0x0020, 8, 0x7f12'3456'0001);
  core_.mmio_write(0x0028, 8, 0x7f12'3456'7000);
  EXPECT_EQ(output(0x7f12'3456'7abc), 0xab'cdef'0abcU);
  put(kSlot + 8, 0x0042 | 1UL << 39);
  EXPECT_EQ(output(0x7f12'3456'7fff), 0x7f12'3456'7fffUL);
  EXPECT_EQ(output(0x7f12'3456'0000, Access::Write), 0x7f12'3456'0000UL);
  EXPECT_EQ(event(0x7f12'3455'ffff, Access::Read), std::pair(kPageFault, 0x7f12'3455'ffffUL));
  EXPECT_EQ(event(0x7f12'3456'8000, Access::Read), std::pair(kPageFault, 0x7f12'3456'8000UL));
  put(kSlot + 8, 0x0042);
  core_.mmio_write(0x0020, 8, 0x7f12'3456'0003);  // Allow
  EXPECT_EQ(output(0x7f12'3456'7fff), 0x7f12'3456'7fffUL);
}

// Six levels: the topmost is indexed by bits 63:57. [§2.2.3, Table 15]
TEST_F(GoldenUnit, SixLevels) {
  put(kSlot, 0x6000'0000'0001'0c03);  // Mode 6
  put(kSlot + 8, 0x0042);
  // Input 0xfe00'0000'0000'1234: level 6 index 0x7f, then zeros.
  put(0x10000 + 0x7f * 8, 0x6000'0000'0001'1201);  // NextLevel 1: levels 5 to 2 skipped
  put(0x11000 + 1 * 8, 0x6000'0000'7777'0001);
  EXPECT_EQ(output(0xfe00'0000'0000'1234), 0x7777'0234U);
  put(0x10000 + 0x7f * 8, 0x6000'0000'0000'0001);  // no pages at level 6
  EXPECT_EQ(event(0xfe00'0000'0000'1234, Access::Read), std::pair(kPageFault | kPr, 0xfe00'0000'0000'1234UL));
}

// V = 1, TV = 1, Mode = 0, GV = bit 55, GIOV = bit 54, GLX = 57:56, IR, IW; GCR3 table 0x5_6789_a000: its bits 14:12
// (2) in 60:58, 30:15 (0xcf13) in 95:80, 51:31 (0xa) in 127:107. [§2.2.2, Table 7]
class GoldenGuest : public GoldenUnit {
 protected:
  static constexpr std::uint64_t kGcr3 = 0x5'6789'a000;
  static constexpr std::uint64_t kWord0 = 0x6000'0000'0000'0003 | 1UL << 55 | 1UL << 54 | 2UL << 58;
  static constexpr std::uint64_t kWord1 = 0x0042 | 0xcf13UL << 16 | 0xaUL << 43;

  void set_glx(std::uint64_t glx) {
    put(kSlot, kWord0 | glx << 56);
    put(kSlot + 8, kWord1);
  }
  // Guest tables at 0x20000 for input 0x0000'7f12'3456'7abc, as in GoldenHost, AMD64 entries: P RW US.
  void build_tables() {
    put(0x20000 + 0xfe * 8, 0x2'1007);
    put(0x21000 + 0x48 * 8, 0x2'2007);
    put(0x22000 + 0x1a2 * 8, 0x2'3007);
    put(0x23000 + 0x167 * 8, 0xab'cdef'0005);  // P US, not writable
  }
};
constexpr std::uint64_t kGn = 1UL << 48, kUs = 1UL << 50;

// PASID 0xa5321 of three levels: index 2 (bits 19:18), 0x129 (17:9), 0x121 (8:0). [§2.2.6]
TEST_F(GoldenGuest, OneTwoAndThreeLevelsOfGcr3) {
  build_tables();
  set_glx(2);
  put(kGcr3 + 2 * 8, 0x3'0001);
  put(0x30000 + 0x129 * 8, 0x3'1001);
  put(0x31000 + 0x121 * 8, 0x2'0001);
  EXPECT_EQ(output(0x7f12'3456'7abc, Access::Read, Pasid(0xa5321)), 0xab'cdef'0abcU);
  set_glx(1);  // 18 bits: PASID 0x25321
  put(kGcr3 + 0x129 * 8, 0x3'1001);
  EXPECT_EQ(output(0x7f12'3456'7abc, Access::Read, Pasid(0x25321)), 0xab'cdef'0abcU);
  EXPECT_EQ(event(0x7f12'3456'7abc, Access::Read, Pasid(0x65321)),
            std::pair(0x2000'5321'0006'0208 | kGn | kUs, 0x7f12'3456'7abcUL));
  set_glx(0);  // 9 bits: PASID 0x121
  put(kGcr3 + 0x121 * 8, 0x2'0001);
  EXPECT_EQ(output(0x7f12'3456'7abc, Access::Read, Pasid(0x121)), 0xab'cdef'0abcU);
  // No GIOV: requests without PASID are not the guest's. Mode 0 forwards them.
  put(kGcr3, 0x2'0001);
  EXPECT_EQ(output(0x7f12'3456'7abc), 0xab'cdef'0abcU);
  put(kSlot, word(kSlot) & ~(1UL << 54));
  EXPECT_EQ(output(0x7f12'3456'7abc), 0x7f12'3456'7abcUL);
}
// The event of a guest fault: GN, PASID in 47:32 and 19:16, US for user requests. [§2.5.3]
TEST_F(GoldenGuest, FaultsOfGuestTablesNameThePasid) {
  build_tables();
  set_glx(2);
  put(kGcr3 + 2 * 8, 0x3'0001);
  put(0x30000 + 0x129 * 8, 0x3'1001);
  put(0x31000 + 0x121 * 8, 0x2'0001);
  constexpr std::uint64_t kFault = 0x2000'5321'000a'0208 | kGn | kUs;
  EXPECT_EQ(event(0x7f12'3456'7abc, Access::Write, Pasid(0xa5321)),
            std::pair(kFault | kPr | kRw | kPe, 0x7f12'3456'7abcUL));
  EXPECT_EQ(event(0x7f12'3456'8abc, Access::Read, Pasid(0xa5321)), std::pair(kFault, 0x7f12'3456'8abcUL));
  put(0x22000 + 0x1a2 * 8, 0xab'cde0'1087);  // 2 MiB page at an address with bit 12 set: that is its PAT
  EXPECT_EQ(output(0x7f12'3456'7abc, Access::Write, Pasid(0xa5321)), 0xab'cdf6'7abcU);
  put(0x22000 + 0x1a2 * 8, 0xab'cde0'2087);  // bit 13 is reserved
  EXPECT_EQ(event(0x7f12'3456'7abc, Access::Read, Pasid(0xa5321)), std::pair(kFault | kPr | kRz, 0x7f12'3456'7abcUL));
  put(0x22000 + 0x1a2 * 8, 0xab'cde0'0083);  // a supervisor's page
  EXPECT_EQ(event(0x7f12'3456'7abc, Access::Read, Pasid(0xa5321)), std::pair(kFault | kPr | kPe, 0x7f12'3456'7abcUL));
}
// Accessed in every entry, dirty in the page. [§2.2.6]
TEST_F(GoldenGuest, GuestEntriesAreMarked) {
  build_tables();
  set_glx(0);
  put(kGcr3, 0x2'0001);
  put(0x23000 + 0x167 * 8, 0xab'cdef'0007);
  EXPECT_EQ(output(0x7f12'3456'7abc, Access::Write), 0xab'cdef'0abcU);
  EXPECT_EQ(word(0x20000 + 0xfe * 8), 0x2'1027U);
  EXPECT_EQ(word(0x23000 + 0x167 * 8), 0xab'cdef'0067U);
}
// Guest tables are guest-physical: host tables (Mode 3) map 0x4000'0000 + x to x for the tables, and the page. [§2.2.6]
TEST_F(GoldenGuest, NestedWalk) {
  put(kSlot, kWord0 | 3UL << 9 | 0x10000);
  put(kSlot + 8, kWord1);
  put(0x10000 + 1 * 8, 0x6000'0000'0001'1401);  // 0x4000'0000: NextLevel 2
  put(0x11000 + 0, 0x6000'0000'0000'0001);      // 2 MiB at 0
  put(0x10000 + 2 * 8, 0x6000'0000'0001'2401);  // 0x8000'0000
  put(0x12000 + 0, 0x6000'0000'0001'3201);      // NextLevel 1
  put(0x13000 + 5 * 8, 0x6000'00ab'cdef'0001);  // 0x8000'5000
  put(kGcr3, 0x4002'0001);                      // system-physical, its address guest-physical
  put(0x20000 + 0xfe * 8, 0x4002'1007);
  put(0x21000 + 0x48 * 8, 0x4002'2007);
  put(0x22000 + 0x1a2 * 8, 0x4002'3007);
  put(0x23000 + 0x167 * 8, 0x8000'5007);
  EXPECT_EQ(output(0x7f12'3456'7abc, Access::Write), 0xab'cdef'0abcU);
  EXPECT_EQ(std::get<Translation>(ask(0x7f12'3456'7abc, Access::Read)).page_lg2, 12);
  // A refusal of the host tables is reported at the guest-physical address, with the DomainID.
  put(0x13000 + 5 * 8, 0x2000'00ab'cdef'0001);
  EXPECT_EQ(event(0x7f12'3456'7abc, Access::Write), std::pair(kPageFault | kPr | kRw | kPe, 0x8000'5abcUL));
  put(0x11000 + 0, 0);
  EXPECT_EQ(event(0x7f12'3456'7abc, Access::Read), std::pair(kPageFault, 0x4002'0000UL + 0xfe * 8));
}

// Code 1 with RZ; code 3 with the entry's address; code 8. [§2.5.2, §2.5.4, §2.5.9]
TEST_F(GoldenUnit, EventsOfTheDeviceEntry) {
  put(kSlot, 0xe000'0000'0001'0803);  // bit 63
  EXPECT_EQ(event(0x5000, Access::Write), std::pair(0x1000'0000'0000'0208 | kRw | kRz, 0x5000UL));
  put(kSlot, 0xe000'0000'0001'0802);  // V = 0: forwarded, whatever else it holds
  EXPECT_EQ(output(0x5000), 0x5000U);
  put(kSlot, 0x6000'0000'0001'0801);  // TV = 0
  put(kSlot + 8, 0x0042);
  EXPECT_EQ(event(0x5000, Access::Read), std::pair(kPageFault, 0x5000UL));
  put(kSlot, 0x6000'0000'0001'0e03);  // Mode 7
  EXPECT_EQ(event(0x5000, Access::Read), std::pair(kPageFault | kPr, 0x5000UL));
  put(kSlot, 0x2000'0000'0000'0003);  // Mode 0, IR
  EXPECT_EQ(output(0x5000), 0x5000U);
  EXPECT_EQ(event(0x5000, Access::Write), std::pair(kPageFault | kPr | kRw | kPe, 0x5000UL));
  EXPECT_EQ(event(0xfee0'1000, Access::Read), std::pair(0x8000'0000'0000'0208UL, 0xfee0'1000UL));
  core_.mmio_write(0x0000, 8, 0x8000'0000'0000 | 0x1ff);  // a device table that is no memory
  EXPECT_EQ(event(0x5000, Access::Read), std::pair(0x3200'0000'0000'0208UL, 0x8000'0000'0000UL + 0x208 * 32));
  core_.mmio_write(0x0000, 8, kDevices | 3);  // 512 entries: DeviceID 0x208 is beyond
  EXPECT_EQ(event(0x5000, Access::Read), std::pair(0x2000'0000'0000'0208UL, 0x5000UL));
}

}  // namespace
}  // namespace iommu::amdvi
