// SPDX-License-Identifier: Apache-2.0
// Registers: identity, what software may write, command and status, register-based invalidation.
#include <gtest/gtest.h>

#include "models/vtd/core_test_support.hpp"
#include "models/vtd/family.hpp"
#include "models/vtd/register_rows.hpp"

namespace iommu::vtd::test {
namespace {

constexpr std::uint64_t kTes = mask_of<kGsts, "TES">, kRtps = mask_of<kGsts, "RTPS">, kQies = mask_of<kGsts, "QIES">;

constexpr std::uint64_t kSrtp = mask_of<kGcmd, "SRTP">, kQie = mask_of<kGcmd, "QIE">, kTe = mask_of<kGcmd, "TE">;
constexpr std::uint64_t kIcc = mask_of<kCcmd, "ICC">, kIvt = mask_of<kIotlb, "IVT">;
constexpr std::uint64_t kInterruptStatus = mask_of<kGsts, "IRTPS"> | mask_of<kGsts, "IRES"> | mask_of<kGsts, "CFIS">;

struct Unit {
  explicit Unit(Identity id = Bench::full()) : identity(id), core(id) {}
  Identity identity;
  Core core;
  std::uint64_t iotlb = get<kEcap, "IRO">(identity.ecap) * 16;

  std::uint64_t read(std::uint64_t at, unsigned bytes = 4) { return core.mmio_read(at, bytes); }
  RegisterEffect write(std::uint64_t at, std::uint64_t value, unsigned bytes = 4) {
    return core.mmio_write(at, bytes, value);
  }
  RegisterEffect invalidate_context(std::uint64_t granularity, std::uint64_t did = 0, std::uint64_t sid = 0,
                                    std::uint64_t fm = 0) {
    return write(offset::kCcmd,
                 pack<kCcmd>({{"ICC", 1}, {"CIRG", granularity}, {"DID", did}, {"SID", sid}, {"FM", fm}}), 8);
  }
  RegisterEffect invalidate_iotlb(std::uint64_t granularity, std::uint64_t did = 0, std::uint64_t iva = 0) {
    write(iotlb, iva, 8);
    return write(iotlb + 8, pack<kIotlb>({{"IVT", 1}, {"IIRG", granularity}, {"DID", did}}), 8);
  }
};

// Kills: a descriptor of the family whose MMIO is smaller than its registers.
TEST(VtdRegisters, EveryComposedUnitFitsTheMmioOfTheFamily) {
  for (const unsigned bits : {39U, 48U, 57U}) {
    UnitFeatures features = Bench::everything();
    features.input_address_bits = bits;
    EXPECT_LE(register_bytes(compose(features)), family().mmio_bytes);
  }
}

// Features and what software reads of them. Kills: a capability composed into the wrong field.
TEST(VtdRegisters, CapabilitiesFollowTheFeatures) {
  UnitFeatures f;
  const auto cap = [&] { return compose(f).cap; };
  const auto ecap = [&] { return compose(f).ecap; };
  EXPECT_EQ((get<kCap, "CM">(cap())), 0U);
  f.caching_mode = true;
  EXPECT_EQ((get<kCap, "CM">(cap())), 1U);
  EXPECT_EQ((get<kEcap, "DT">(ecap())), 0U);
  f.device_tlb = true;
  EXPECT_EQ((get<kEcap, "DT">(ecap())), 1U);
  EXPECT_EQ((get<kEcap, "NEST">(ecap())), 0U);
  f.nested = true;
  EXPECT_EQ((get<kEcap, "NEST">(ecap())), 1U);
  EXPECT_EQ((get<kEcap, "SSADS">(ecap())), 0U);
  f.accessed_dirty = true;
  EXPECT_EQ((get<kEcap, "SSADS">(ecap())), 1U);
  EXPECT_EQ((get<kEcap, "C">(ecap())), 1U);
  f.coherent_walks = false;
  EXPECT_EQ((get<kEcap, "C">(ecap())), 0U);
  EXPECT_EQ((get<kCap, "SSLPS">(cap())), 3U);
  f.superpages = false;
  EXPECT_EQ((get<kCap, "SSLPS">(cap())), 0U);
  for (const auto& [bits, widths] : {std::pair{39U, 0b0010U}, {48U, 0b0110U}, {57U, 0b1110U}}) {
    f.input_address_bits = bits;
    EXPECT_EQ((get<kCap, "MGAW">(cap())) + 1, bits);
    EXPECT_EQ((get<kCap, "SAGAW">(cap())), widths);
    EXPECT_EQ((get<kCap, "FS5LP">(cap())), bits == 57 ? 1U : 0U);
  }
}
TEST(VtdRegisters, ImpossibleFeaturesAreNamed) {
  UnitFeatures f;
  EXPECT_EQ(unsupported(f), "");
  f.input_address_bits = 40;
  EXPECT_NE(unsupported(f).find("input_address_bits"), std::string::npos);
  f.input_address_bits = 39;
  EXPECT_EQ(unsupported(f), "");
  f.nested = true;
  EXPECT_NE(unsupported(f).find("nested"), std::string::npos);
  f = {};
  for (const unsigned bits : {35U, 53U}) {
    f.host_address_bits = bits;
    EXPECT_NE(unsupported(f).find("host_address_bits"), std::string::npos);
  }
}

// Every register: software changes writable bits and no others. Kills: status or capability that software can write,
// reserved bits that stay set.
TEST(VtdRegisters, SoftwareWritesOnlyWhatARowAllows) {
  struct Row {
    std::uint64_t at;
    unsigned bytes;
    std::uint64_t writable;  // reads back as written
  };
  const std::vector<Row> rows{
      {offset::kVer, 4, 0},
      {offset::kCap, 8, 0},
      {offset::kEcap, 8, 0},
      {offset::kGsts, 4, 0},
      {offset::kRtaddr, 8, ~0ULL << 10},
      {offset::kFsts, 4, 0},
      {offset::kFectl, 4, 1ULL << 31},
      {offset::kFedata, 4, 0xffffffff},
      {offset::kFeaddr, 4, 0xfffffffc},
      {offset::kFeuaddr, 4, 0xffffffff},
      {offset::kIqh, 8, 0},
      {offset::kIqt, 8, 0x7fff0},
      {offset::kIqa, 8, ~0xfffULL | 0x807},
      {offset::kIcs, 4, 0},
      {offset::kIectl, 4, 1ULL << 31},
      {offset::kIedata, 4, 0xffffffff},
      {offset::kIeaddr, 4, 0xfffffffc},
      {offset::kIeuaddr, 4, 0xffffffff},
      {offset::kIqercd, 8, 0},
  };
  for (const Row& row : rows) {
    Unit unit;
    const std::uint64_t before = unit.read(row.at, row.bytes);
    unit.write(row.at, 0, row.bytes);
    const std::uint64_t cleared = unit.read(row.at, row.bytes);
    EXPECT_EQ(cleared, before & ~row.writable) << std::hex << row.at;
    unit.write(row.at, ~0ULL, row.bytes);
    EXPECT_EQ(unit.read(row.at, row.bytes) & ~(row.at == offset::kIqt ? 0x10ULL : 0ULL),
              ((before & ~row.writable) | row.writable) & ~(row.at == offset::kIqt ? 0x10ULL : 0ULL))
        << std::hex << row.at;
  }
}
TEST(VtdRegisters, UnassignedAndMisalignedAccessesReadAsZero) {
  Unit unit;
  for (const std::uint64_t at : {0x30ULL, 0x4cULL, 0xff0ULL, 0x1000ULL, ~0ULL - 7, 1ULL << 40}) {
    EXPECT_EQ(unit.read(at, 4), 0U) << std::hex << at;
    unit.write(at, ~0ULL, 4);
    EXPECT_EQ(unit.read(at & ~7ULL, 8) & (at % 8 == 4 ? ~0ULL << 32 : 0xffffffffULL), 0U) << std::hex << at;
  }
  EXPECT_EQ(unit.read(offset::kCap + 1, 4), 0U);
  EXPECT_EQ(unit.read(offset::kCap, 2), 0U);
  EXPECT_EQ(unit.read(offset::kCap, 4) | unit.read(offset::kCap + 4, 4) << 32, unit.identity.cap);
}

// Kills: a command that disturbs another's status, SRTP that does not say so, a status without its effect.
TEST(VtdRegisters, GlobalCommandsShowInTheGlobalStatus) {
  Unit unit;
  EXPECT_EQ(unit.read(offset::kGsts), 0U);
  EXPECT_TRUE(unit.write(offset::kGcmd, kSrtp).configuration_changed);
  EXPECT_EQ(unit.read(offset::kGsts), kRtps);
  unit.write(offset::kGcmd, kQie);
  EXPECT_EQ(unit.read(offset::kGsts), kRtps | kQies);
  EXPECT_TRUE(unit.write(offset::kGcmd, kQie | kTe).configuration_changed);
  EXPECT_EQ(unit.read(offset::kGsts), kRtps | kQies | kTes);
  EXPECT_FALSE(unit.write(offset::kGcmd, kQie | kTe).configuration_changed);
  EXPECT_TRUE(unit.core.is_translating());
  unit.write(offset::kGcmd, kTe);
  EXPECT_EQ(unit.read(offset::kGsts), kRtps | kTes);
  unit.write(offset::kGcmd, 0);
  EXPECT_EQ(unit.read(offset::kGsts), kRtps);
  EXPECT_FALSE(unit.core.is_translating());
  EXPECT_EQ(unit.read(offset::kGcmd), 0U) << "write-only";
}
// ESRTPS: setting the root invalidates everything. [CAP_REG.ESRTPS]
TEST(VtdRegisters, SettingTheRootInvalidatesWhereTheUnitSaysSo) {
  for (const std::uint64_t enhanced : {0ULL, 1ULL}) {
    Identity identity = Bench::full();
    identity.cap = with<kCap, "ESRTPS">(identity.cap, enhanced);
    Unit unit(identity);
    const auto scopes = unit.write(offset::kGcmd, kSrtp).scopes;
    EXPECT_EQ(scopes.size(), enhanced != 0 ? 3U : 0U);
    for (const InvalidationScope& scope : scopes) EXPECT_EQ(scope, InvalidationScope{.kind = scope.kind});
  }
}
// A unit without interrupt remapping does not pretend that it has any.
TEST(VtdRegisters, InterruptRemappingIsEnabledOnlyWhereItExists) {
  const std::uint64_t all = mask_of<kGcmd, "SIRTP"> | mask_of<kGcmd, "IRE"> | mask_of<kGcmd, "CFI">;
  Unit without;
  without.write(offset::kGcmd, all);
  EXPECT_EQ(without.read(offset::kGsts), 0U);
  Identity identity = Bench::full();
  identity.ecap = with<kEcap, "IR">(identity.ecap, 1);
  Unit unit(identity);
  unit.write(offset::kGcmd, all);
  EXPECT_EQ(unit.read(offset::kGsts), kInterruptStatus);
}

// Register-based invalidation
// ------------------------------------------------------------------------------------------

constexpr std::uint64_t kGlobal = 1, kDomainwide = 2, kSelective = 3;

// Kills: a granularity taken for another, a busy bit that clears before the invalidation is done.
TEST(VtdRegisterInvalidation, ContextCommandsYieldTheirScope) {
  Unit unit;
  const DomainTag domain(7);
  const RequesterId source(0x1234);
  EXPECT_EQ(unit.invalidate_context(kGlobal).scopes, std::vector{InvalidationScope{.kind = InvalidationKind::Context}});
  EXPECT_NE(unit.read(offset::kCcmd, 8) & kIcc, 0U);
  EXPECT_EQ((get<kCcmd, "CAIG">(unit.read(offset::kCcmd, 8))), kGlobal);
  unit.core.invalidation_done();
  EXPECT_EQ(unit.read(offset::kCcmd, 8) & kIcc, 0U);
  EXPECT_EQ(unit.invalidate_context(kDomainwide, 7).scopes,
            std::vector({InvalidationScope{.kind = InvalidationKind::Context, .domain = domain}}));
  constexpr std::array<std::uint16_t, 4> kIgnored{0, 0b100, 0b110, 0b111};
  for (std::uint64_t fm = 0; fm < 4; ++fm) {
    const InvalidationScope expected{
        .kind = InvalidationKind::Context, .domain = domain, .requester = source, .requester_ignore = kIgnored[fm]};
    EXPECT_EQ(unit.invalidate_context(kSelective, 7, 0x1234, fm).scopes, std::vector({expected})) << fm;
  }
}
TEST(VtdRegisterInvalidation, IotlbCommandsYieldTheirScope) {
  Unit unit;
  EXPECT_EQ(unit.invalidate_iotlb(kGlobal).scopes, std::vector({InvalidationScope{}}));
  EXPECT_NE(unit.read(unit.iotlb + 8, 8) & kIvt, 0U);
  EXPECT_EQ((get<kIotlb, "IAIG">(unit.read(unit.iotlb + 8, 8))), kGlobal);
  unit.core.invalidation_done();
  EXPECT_EQ(unit.read(unit.iotlb + 8, 8) & kIvt, 0U);
  EXPECT_EQ(unit.invalidate_iotlb(kDomainwide, 9).scopes, std::vector({InvalidationScope{.domain = DomainTag(9)}}));
  const InvalidationScope page{.domain = DomainTag(9), .range = AddressRange{0x8000, 0xbfff}, .leaf_only = true};
  const std::uint64_t iva = 0xa000 | pack<kIva>({{"AM", 2}, {"IH", 1}});
  EXPECT_EQ(unit.invalidate_iotlb(kSelective, 9, iva).scopes, std::vector({page}));
}
// What the unit cannot do exactly it does more widely, and says so.
TEST(VtdRegisterInvalidation, WithoutPageSelectionTheDomainIsInvalidated) {
  Identity identity = Bench::full();
  identity.cap = with<kCap, "PSI">(identity.cap, 0);
  Unit unit(identity);
  EXPECT_EQ(unit.invalidate_iotlb(kSelective, 9, 0x1000).scopes,
            std::vector({InvalidationScope{.domain = DomainTag(9)}}));
  EXPECT_EQ((get<kIotlb, "IAIG">(unit.read(unit.iotlb + 8, 8))), kDomainwide);
}
// Kills: an invalidation that seems to have been done, or a busy bit on which software would wait for ever.
TEST(VtdRegisterInvalidation, WhatCannotBeDoneReportsThatNothingWas) {
  const auto refuses = [](Unit& unit, const std::string& why, std::uint64_t granularity, std::uint64_t iva) {
    EXPECT_TRUE(unit.invalidate_iotlb(granularity, 0, iva).scopes.empty()) << why;
    const std::uint64_t iotlb = unit.read(unit.iotlb + 8, 8);
    EXPECT_EQ((get<kIotlb, "IVT">(iotlb) | get<kIotlb, "IAIG">(iotlb)), 0U) << why;
  };
  const auto refuses_context = [](Unit& unit, const std::string& why, std::uint64_t granularity) {
    EXPECT_TRUE(unit.invalidate_context(granularity).scopes.empty()) << why;
    const std::uint64_t command = unit.read(offset::kCcmd, 8);
    EXPECT_EQ((get<kCcmd, "ICC">(command) | get<kCcmd, "CAIG">(command)), 0U) << why;
  };
  Unit unit;
  refuses(unit, "reserved granularity", 0, 0);
  refuses_context(unit, "reserved granularity", 0);
  refuses(unit, "mask beyond MAMV", kSelective, get<kCap, "MAMV">(unit.identity.cap) + 1);
  unit.write(offset::kGcmd, kQie);
  refuses(unit, "queue on", kGlobal, 0);
  refuses_context(unit, "queue on", kGlobal);
  Unit scalable;
  scalable.write(offset::kRtaddr, with<kRtaddr, "TTM">(0, 1), 8);
  scalable.write(offset::kGcmd, kSrtp);
  refuses(scalable, "scalable mode", kGlobal, 0);
  refuses_context(scalable, "scalable mode", kGlobal);
  Identity version6 = Bench::full();
  version6.version = static_cast<std::uint32_t>(pack<kVer>({{"MAX", 6}}));
  Unit queue_only(version6);
  refuses(queue_only, "version 6", kGlobal, 0);
  refuses_context(queue_only, "version 6", kGlobal);
}

// A write of one half commands nothing unless it carries the command bit; the upper half alone does.
TEST(VtdRegisterInvalidation, TheHalfWithTheCommandBitCommands) {
  Unit unit;
  EXPECT_TRUE(unit.write(offset::kCcmd, 0x12340007).scopes.empty());
  const auto scopes = unit.write(offset::kCcmd + 4, pack<kCcmd>({{"ICC", 1}, {"CIRG", kDomainwide}}) >> 32).scopes;
  EXPECT_EQ(scopes, std::vector({InvalidationScope{.kind = InvalidationKind::Context, .domain = DomainTag(7)}}));
}

}  // namespace
}  // namespace iommu::vtd::test
