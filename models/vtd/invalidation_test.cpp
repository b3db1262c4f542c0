// SPDX-License-Identifier: Apache-2.0
// The invalidation queue [§6.5.2]: every descriptor, every error, fences.
#include <gtest/gtest.h>

#include <initializer_list>
#include <set>
#include <string>

#include "models/vtd/core_test_support.hpp"
#include "sim/translation/invalidation.hpp"

namespace iommu::vtd::test {
namespace {

using Words = std::array<std::uint64_t, 4>;
constexpr std::uint64_t kQueue = 0x200000;
constexpr std::uint64_t kIqe = mask_of<kFsts, "IQE">;
constexpr std::uint64_t kMasked = mask_of<kEventControl, "IM">, kEventPending = mask_of<kEventControl, "IP">;

template <const auto& kLayout>
Words words(std::initializer_list<FieldValue> values) {
  const auto low = pack_record<kLayout>(values);
  return {low[0], low[1], 0, 0};
}

enum class Width : std::uint8_t { Narrow, Wide };

// A unit whose queue is on.
struct QueueUnit {
  explicit QueueUnit(TableMode mode = TableMode::Scalable, Width width = Width::Narrow, Identity id = Bench::full())
      : core(id), bytes(width == Width::Wide ? 32 : 16) {
    core.mmio_write(offset::kRtaddr, 8, with<kRtaddr, "TTM">(0x1000, static_cast<std::uint64_t>(mode)));
    core.mmio_write(offset::kGcmd, 4, mask_of<kGcmd, "SRTP">);
    core.mmio_write(offset::kIqa, 8, with<kIqa, "DW">(kQueue, width == Width::Wide ? 1 : 0));
    core.mmio_write(offset::kGcmd, 4, mask_of<kGcmd, "QIE">);
  }
  void write(std::uint64_t at, const Words& descriptor) {
    for (unsigned i = 0; i < bytes / 8; ++i) host.write64(Hpa(kQueue + at + 8 * i), descriptor[i]);
  }
  // Puts one descriptor at the tail and makes it visible.
  RegisterEffect submit(const Words& descriptor) {
    write(tail, descriptor);
    tail = (tail + bytes) % 4096;
    return core.mmio_write(offset::kIqt, 8, tail);
  }
  std::optional<Command> fetch() { return core.fetch_command(port).run(); }
  std::optional<CommandEffect> execute(const Words& descriptor) {
    submit(descriptor);
    const auto command = fetch();
    if (!command) return std::nullopt;
    return core.apply(*command);
  }
  [[nodiscard]] std::uint64_t head() { return core.mmio_read(offset::kIqh, 8); }
  [[nodiscard]] bool has_error() { return (core.mmio_read(offset::kFsts, 4) & kIqe) != 0; }
  [[nodiscard]] QueueError error() {
    return static_cast<QueueError>(get<kIqercd, "IQEI">(core.mmio_read(offset::kIqercd, 8)));
  }

  HostMemory host{Bytes(1ULL << 40)};
  Core core;
  iommu::test::TestPort port{host};
  unsigned bytes;
  std::uint64_t tail = 0;
};

struct Descriptor {
  std::string_view row;
  std::string_view what;
  Words words;
  std::vector<InvalidationScope> scopes;
};

const InvalidationScope kContexts{.kind = InvalidationKind::Context},
    kProcesses{.kind = InvalidationKind::ProcessContext}, kDevice{.kind = InvalidationKind::DeviceTlb},
    kInterrupts{.kind = InvalidationKind::InterruptEntry};
InvalidationScope with_domain(InvalidationScope s, std::uint32_t d) { return s.domain = DomainTag(d), s; }
InvalidationScope with_asid(InvalidationScope s, std::uint32_t a) { return s.asid = AsidTag(a), s; }
InvalidationScope of_range(InvalidationScope s, std::uint64_t first, std::uint64_t last) {
  return s.range = AddressRange{first, last}, s;
}
InvalidationScope leaf_only(InvalidationScope s) { return s.leaf_only = true, s; }
InvalidationScope stage1_only(InvalidationScope s) { return s.stage1_only = true, s; }
InvalidationScope of(InvalidationScope s, std::uint16_t source, std::uint16_t ignore = 0) {
  return s.requester = RequesterId(source), s.requester_ignore = ignore, s;
}

// clang-format off
const std::vector<Descriptor>& descriptors() {
  static const std::vector<Descriptor> all{
    {"cc_inv_dsc", "global", words<kContextCacheDescriptor>({{"TYPE", 1}, {"G", 1}}), {kContexts}},
    // Scalable-mode context entries have no domain-id: the domain does not narrow the command.
    {"cc_inv_dsc", "domain", words<kContextCacheDescriptor>({{"TYPE", 1}, {"G", 2}, {"DID", 7}}), {kContexts}},
    {"cc_inv_dsc", "device", words<kContextCacheDescriptor>({{"TYPE", 1}, {"G", 3}, {"DID", 7}, {"SID", 0x1234}, {"FM", 2}}), {of(kContexts, 0x1234, 6)}},
    {"pc_inv_dsc", "domain", words<kPasidCacheDescriptor>({{"TYPE", 7}, {"G", 0}, {"DID", 7}, {"PASID", 9}}), {with_domain(kProcesses, 7)}},
    {"pc_inv_dsc", "PASID", words<kPasidCacheDescriptor>({{"TYPE", 7}, {"G", 1}, {"DID", 7}, {"PASID", 0xfffff}}), {with_asid(with_domain(kProcesses, 7), 0xfffff)}},
    {"pc_inv_dsc", "global", words<kPasidCacheDescriptor>({{"TYPE", 7}, {"G", 3}, {"DID", 7}, {"PASID", 9}}), {kProcesses}},
    {"iotlb_inv_dsc", "global", words<kIotlbDescriptor>({{"TYPE", 2}, {"G", 1}, {"DID", 7}}), {{}}},
    {"iotlb_inv_dsc", "domain, draining", words<kIotlbDescriptor>({{"TYPE", 2}, {"G", 2}, {"DID", 7}, {"DW", 1}, {"DR", 1}}), {with_domain({}, 7)}},
    // With nesting, cached results of nested walks are tagged by first-stage input: those of the domain all go.
    {"iotlb_inv_dsc", "four pages", words<kIotlbDescriptor>({{"TYPE", 2}, {"G", 3}, {"DID", 7}, {"AM", 2}, {"ADDR", 0xb}}),
     {of_range(with_domain({}, 7), 0x8000, 0xbfff), stage1_only(with_domain({}, 7))}},
    {"iotlb_inv_dsc", "leaf only", words<kIotlbDescriptor>({{"TYPE", 2}, {"G", 3}, {"DID", 7}, {"IH", 1}, {"ADDR", 0xb}}),
     {leaf_only(of_range(with_domain({}, 7), 0xb000, 0xbfff)), stage1_only(with_domain({}, 7))}},
    {"p_iotlb_inv_dsc", "PASID", words<kPasidIotlbDescriptor>({{"TYPE", 6}, {"G", 2}, {"DID", 7}, {"PASID", 9}}), {with_asid(with_domain({}, 7), 9)}},
    {"p_iotlb_inv_dsc", "two pages, leaf only", words<kPasidIotlbDescriptor>({{"TYPE", 6}, {"G", 3}, {"DID", 7}, {"PASID", 9}, {"AM", 1}, {"IH", 1}, {"ADDR", 0x11}}),
     {leaf_only(of_range(with_asid(with_domain({}, 7), 9), 0x10000, 0x11fff))}},
    {"dev_tlb_inv_dsc", "one page", words<kDeviceTlbDescriptor>({{"TYPE", 3}, {"SID", 0x100}, {"ADDR", 5}}), {of_range(of(kDevice, 0x100), 0x5000, 0x5fff)}},
    {"dev_tlb_inv_dsc", "eight pages", words<kDeviceTlbDescriptor>({{"TYPE", 3}, {"SID", 0x100}, {"S", 1}, {"ADDR", 0b10011}}), {of_range(of(kDevice, 0x100), 0x10000, 0x17fff)}},
    {"dev_tlb_inv_dsc", "everything", words<kDeviceTlbDescriptor>({{"TYPE", 3}, {"SID", 0x100}, {"S", 1}, {"ADDR", (1ULL << 52) - 1}}), {of_range(of(kDevice, 0x100), 0, ~0ULL)}},
    {"p_dev_tlb_inv_dsc", "PASID, two pages", words<kPasidDeviceTlbDescriptor>({{"TYPE", 8}, {"SID", 0x100}, {"PASID", 9}, {"S", 1}, {"ADDR", 0b10100}}), {of_range(with_asid(of(kDevice, 0x100), 9), 0x14000, 0x15fff)}},
    {"p_dev_tlb_inv_dsc", "all PASIDs", words<kPasidDeviceTlbDescriptor>({{"TYPE", 8}, {"SID", 0x100}, {"PASID", 9}, {"G", 1}, {"ADDR", 5}}), {of_range(of(kDevice, 0x100), 0x5000, 0x5fff)}},
    {"iec_inv_dsc", "global", words<kInterruptDescriptor>({{"TYPE", 4}, {"IIDX", 5}}), {kInterrupts}},
    {"iec_inv_dsc", "four entries", words<kInterruptDescriptor>({{"TYPE", 4}, {"G", 1}, {"IM", 2}, {"IIDX", 0x107}}), {of_range(kInterrupts, 0x104, 0x107)}},
    {"inv_wait_dsc", "barrier", words<kWaitDescriptor>({{"TYPE", 5}, {"FN", 1}}), {}},
  };
  return all;
}
// clang-format on

// Exact scopes, over both widths of descriptor. Kills: a field taken from another place, a mask one too small.
TEST(VtdInvalidation, EachDescriptorYieldsItsScopes) {
  for (const Width width : {Width::Narrow, Width::Wide}) {
    for (const Descriptor& d : descriptors()) {
      QueueUnit unit(TableMode::Scalable, width);
      const auto effect = unit.execute(d.words);
      ASSERT_TRUE(effect) << d.row << " " << d.what;
      EXPECT_EQ(effect->scopes, d.scopes) << d.row << " " << d.what;
      EXPECT_EQ(unit.head(), unit.bytes);
      EXPECT_FALSE(unit.has_error());
    }
  }
}
TEST(VtdInvalidation, EveryCommandRowIsProduced) {
  std::set<std::string_view> produced;
  for (const Descriptor& d : descriptors()) {
    QueueUnit unit;
    unit.submit(d.words);
    const auto command = unit.fetch();
    ASSERT_TRUE(command && command->row != nullptr);
    EXPECT_EQ(command->row->name, d.row);
    produced.insert(command->row->name);
  }
  for (const CommandRow& row : kCommandRows) EXPECT_TRUE(produced.contains(row.name)) << row.name;
}

// In legacy mode the context cache knows domains, and there is no nesting to widen for.
TEST(VtdInvalidation, LegacyModeUsesDomainsOfContexts) {
  QueueUnit unit(TableMode::Legacy);
  const auto domain = unit.execute(words<kContextCacheDescriptor>({{"TYPE", 1}, {"G", 2}, {"DID", 7}}));
  EXPECT_EQ(domain->scopes, std::vector{with_domain(kContexts, 7)});
  const auto device = unit.execute(words<kContextCacheDescriptor>({{"TYPE", 1}, {"G", 3}, {"DID", 7}, {"SID", 5}}));
  EXPECT_EQ(device->scopes, std::vector{of(with_domain(kContexts, 7), 5)});
  const auto page = unit.execute(words<kIotlbDescriptor>({{"TYPE", 2}, {"G", 3}, {"DID", 7}, {"ADDR", 1}}));
  EXPECT_EQ(page->scopes, std::vector{of_range(with_domain({}, 7), 0x1000, 0x1fff)});
}

// What the unit cannot do exactly it does more widely.
TEST(VtdInvalidation, WithoutPageSelectionTheDomainIsInvalidated) {
  Identity identity = Bench::full();
  identity.cap = with<kCap, "PSI">(identity.cap, 0);
  QueueUnit unit(TableMode::Legacy, Width::Narrow, identity);
  const auto effect = unit.execute(words<kIotlbDescriptor>({{"TYPE", 2}, {"G", 3}, {"DID", 7}, {"ADDR", 1}}));
  ASSERT_TRUE(effect);
  EXPECT_EQ(effect->scopes, std::vector{with_domain({}, 7)});
}

// Errors --------------------------------------------------------------------------------------------------------------

// Each bit of each descriptor: flipped, it changes the type, means something, or is reserved and stops the queue.
// Against the layouts' own lists this would say nothing, so the reserved bits stand here once more. [§6.5.2]
TEST(VtdInvalidation, EachReservedBitStopsTheQueue) {
  const auto between = [](unsigned bit, unsigned low, unsigned high) { return bit >= low && bit <= high; };
  const std::map<std::string_view, std::function<bool(unsigned)>> reserved{
      {"cc_inv_dsc", [&](unsigned b) { return between(b, 6, 8) || between(b, 12, 15) || b >= 50; }},
      {"pc_inv_dsc", [&](unsigned b) { return between(b, 6, 8) || between(b, 12, 15) || b >= 52; }},
      {"iotlb_inv_dsc",
       [&](unsigned b) { return b == 8 || between(b, 12, 15) || between(b, 32, 63) || between(b, 71, 75); }},
      {"p_iotlb_inv_dsc",
       [&](unsigned b) { return between(b, 6, 8) || between(b, 12, 15) || between(b, 52, 63) || between(b, 71, 75); }},
      {"dev_tlb_inv_dsc",
       [&](unsigned b) { return between(b, 4, 8) || between(b, 21, 31) || between(b, 48, 51) || between(b, 65, 75); }},
      {"p_dev_tlb_inv_dsc", [&](unsigned b) { return between(b, 65, 74); }},
      {"iec_inv_dsc", [&](unsigned b) { return between(b, 5, 8) || between(b, 12, 26) || b >= 48; }},
      {"inv_wait_dsc", [&](unsigned b) { return b == 8 || between(b, 12, 31) || b == 64 || b == 65; }},
  };
  for (const Descriptor& d : descriptors()) {
    for (unsigned bit = 4; bit < 128; ++bit) {
      if (between(bit, 9, 11) || bit == 4 || bit == 5 || between(bit, 64, 69)) {
        if (d.row != "inv_wait_dsc" || bit < 64) continue;  // type, granularity and masks: other tests
        if (bit > 65) continue;
      }
      QueueUnit unit;
      Words flipped = d.words;
      flipped[bit / 64] ^= 1ULL << bit % 64;
      unit.submit(flipped);
      const bool refused = !unit.fetch();
      EXPECT_EQ(refused, reserved.at(d.row)(bit)) << d.row << " " << d.what << " bit " << bit;
      if (refused) EXPECT_EQ(unit.error(), QueueError::Reserved);
    }
  }
  for (unsigned word = 2; word < 4; ++word) {
    QueueUnit unit(TableMode::Scalable, Width::Wide);
    Words wide = descriptors()[0].words;
    wide[word] = 1ULL << 63;
    unit.submit(wide);
    EXPECT_FALSE(unit.fetch());
    EXPECT_EQ(unit.error(), QueueError::Reserved);
  }
}

struct Refused {
  std::string_view what;
  Words words;
  QueueError error;
  TableMode mode = TableMode::Scalable;
  void (*identity)(Identity&) = nullptr;
};
// Kills: a descriptor that the unit does not have and executes all the same, the wrong error information.
TEST(VtdInvalidation, WhatAUnitCannotDoStopsTheQueue) {
  const Words pasid_cache = words<kPasidCacheDescriptor>({{"TYPE", 7}, {"G", 3}});
  const Words pasid_iotlb = words<kPasidIotlbDescriptor>({{"TYPE", 6}, {"G", 2}});
  const Words device = words<kDeviceTlbDescriptor>({{"TYPE", 3}});
  const Words pasid_device = words<kPasidDeviceTlbDescriptor>({{"TYPE", 8}});
  const auto no_scalable = [](Identity& id) { id.ecap = with<kEcap, "SMTS">(id.ecap, 0); };
  const auto no_device = [](Identity& id) { id.ecap = with<kEcap, "DT">(id.ecap, 0); };
  const std::vector<Refused> all{
      {"type 0", {}, QueueError::InvalidType},
      {"type 9", {9, 0, 0, 0}, QueueError::InvalidType},
      {"upper bits of the type", {1 | 1 << 4 | 1 << 9, 0, 0, 0}, QueueError::InvalidType},
      {"context, G = 0", {1, 0, 0, 0}, QueueError::Reserved},
      {"IOTLB, G = 0", {2, 0, 0, 0}, QueueError::Reserved},
      {"PASID cache, G = 2", words<kPasidCacheDescriptor>({{"TYPE", 7}, {"G", 2}}), QueueError::Reserved},
      {"PASID IOTLB, G = 0", words<kPasidIotlbDescriptor>({{"TYPE", 6}}), QueueError::Reserved},
      {"PASID IOTLB, G = 1", words<kPasidIotlbDescriptor>({{"TYPE", 6}, {"G", 1}}), QueueError::Reserved},
      {"IOTLB, AM beyond MAMV", words<kIotlbDescriptor>({{"TYPE", 2}, {"G", 3}, {"AM", 19}}), QueueError::Reserved},
      {"PASID IOTLB, AM beyond MAMV", words<kPasidIotlbDescriptor>({{"TYPE", 6}, {"G", 3}, {"AM", 63}}),
       QueueError::Reserved},
      {"PASID cache in legacy mode", pasid_cache, QueueError::InvalidMode, TableMode::Legacy},
      {"PASID IOTLB in legacy mode", pasid_iotlb, QueueError::InvalidMode, TableMode::Legacy},
      {"PASID device TLB in legacy mode", pasid_device, QueueError::InvalidMode, TableMode::Legacy},
      {"PASID cache without scalable mode", pasid_cache, QueueError::InvalidType, TableMode::Legacy, no_scalable},
      {"device TLB without ATS", device, QueueError::InvalidType, TableMode::Scalable, no_device},
      {"PASID device TLB without ATS", pasid_device, QueueError::InvalidType, TableMode::Scalable, no_device},
  };
  for (const Refused& refused : all) {
    Identity identity = Bench::full();
    if (refused.identity != nullptr) refused.identity(identity);
    QueueUnit unit(refused.mode, Width::Narrow, identity);
    unit.submit(refused.words);
    EXPECT_FALSE(unit.fetch()) << refused.what;
    EXPECT_TRUE(unit.has_error()) << refused.what;
    EXPECT_EQ(unit.error(), refused.error) << refused.what;
    EXPECT_EQ(unit.head(), 0U) << "the head stays at the bad descriptor";
  }
}

// Kills: a queue that runs on after an error, that skips the bad descriptor, or that never runs again.
TEST(VtdInvalidation, AnErrorHoldsTheQueueUntilSoftwareHasMendedIt) {
  QueueUnit unit;
  unit.submit(descriptors()[0].words);
  unit.submit({});
  unit.submit(descriptors()[0].words);
  EXPECT_TRUE(unit.fetch());
  EXPECT_FALSE(unit.fetch());
  EXPECT_EQ(unit.head(), 16U);
  EXPECT_FALSE(unit.core.has_command());
  EXPECT_FALSE(unit.fetch());
  unit.write(16, descriptors()[0].words);
  EXPECT_FALSE(unit.core.has_command()) << "not before FSTS.IQE is cleared";
  EXPECT_TRUE(unit.core.mmio_write(offset::kFsts, 4, kIqe).commands_pending);
  EXPECT_EQ(unit.error(), QueueError::None);
  EXPECT_TRUE(unit.fetch());
  EXPECT_TRUE(unit.fetch());
  EXPECT_FALSE(unit.core.has_command());
  EXPECT_EQ(unit.head(), 48U);
}

// Kills: an error without the fault event, or one event for each attempt.
TEST(VtdInvalidation, AnErrorRaisesTheFaultEventOnce) {
  QueueUnit unit;
  unit.core.mmio_write(offset::kFeaddr, 4, 0xfee00000);
  unit.core.mmio_write(offset::kFedata, 4, 0x55);
  unit.core.mmio_write(offset::kFectl, 4, 0);
  unit.submit({});
  EXPECT_FALSE(unit.fetch());
  const auto message = unit.core.take_interrupt();
  ASSERT_TRUE(message);
  EXPECT_EQ(message->data, 0x55U);
  EXPECT_FALSE(unit.fetch());
  EXPECT_FALSE(unit.core.take_interrupt());
}

TEST(VtdInvalidation, ATailOutsideTheQueueIsAnError) {
  QueueUnit unit;
  unit.core.mmio_write(offset::kIqt, 8, 4096);  // the queue is one page
  EXPECT_FALSE(unit.fetch());
  EXPECT_EQ(unit.error(), QueueError::InvalidTail);
}
TEST(VtdInvalidation, AnOddTailOfWideDescriptorsIsAnError) {
  QueueUnit unit(TableMode::Scalable, Width::Wide);
  unit.core.mmio_write(offset::kIqt, 8, 48);
  EXPECT_TRUE(unit.has_error());
  EXPECT_EQ(unit.error(), QueueError::MisalignedTail);
}
// Software that changes the width under way must not make the unit read across a line, or the end of the queue.
TEST(VtdInvalidation, AnOddHeadOfWideDescriptorsIsAnError) {
  QueueUnit unit;
  for (unsigned i = 0; i < 255; ++i) {
    unit.submit(descriptors()[0].words);
    ASSERT_TRUE(unit.fetch());
  }
  unit.core.mmio_write(offset::kIqa, 8, with<kIqa, "DW">(kQueue, 1));
  unit.core.mmio_write(offset::kIqt, 8, 0);
  EXPECT_FALSE(unit.fetch());
  EXPECT_EQ(unit.error(), QueueError::MisalignedTail);
}
TEST(VtdInvalidation, WideDescriptorsNeedScalableMode) {
  Identity identity = Bench::full();
  identity.ecap = with<kEcap, "SMTS">(identity.ecap, 0);
  QueueUnit unit(TableMode::Legacy, Width::Wide, identity);
  EXPECT_EQ(unit.error(), QueueError::InvalidWidth);
}
TEST(VtdInvalidation, AQueueThatCannotBeReadIsAnError) {
  {
    QueueUnit unit;
    unit.port.failing.insert(kQueue);
    unit.submit(descriptors()[0].words);
    EXPECT_FALSE(unit.fetch());
    EXPECT_EQ(unit.error(), QueueError::FetchFailed);
  }
  QueueUnit unit;  // beyond the host's width
  unit.core.mmio_write(offset::kIqa, 8, 1ULL << 52);
  unit.submit(descriptors()[0].words);
  EXPECT_FALSE(unit.fetch());
  EXPECT_EQ(unit.error(), QueueError::FetchFailed);
}

// The ring ------------------------------------------------------------------------------------------------------------

TEST(VtdInvalidation, TheRingWrapsAtItsSize) {
  for (const Width width : {Width::Narrow, Width::Wide}) {
    QueueUnit unit(TableMode::Scalable, width);
    const unsigned entries = 4096 / unit.bytes;
    for (unsigned i = 0; i < 3 * entries + 1; ++i) {
      unit.submit(descriptors()[i % 2].words);
      ASSERT_TRUE(unit.fetch()) << i;
      EXPECT_EQ(unit.head(), (i + 1) % entries * unit.bytes);
    }
  }
}
TEST(VtdInvalidation, SwitchingTheQueueOffResetsItsHead) {
  QueueUnit unit;
  unit.submit(descriptors()[0].words);
  ASSERT_TRUE(unit.fetch());
  unit.submit(descriptors()[0].words);
  unit.core.mmio_write(offset::kGcmd, 4, 0);
  EXPECT_FALSE(unit.core.has_command());
  EXPECT_FALSE(unit.fetch());
  EXPECT_EQ(unit.head(), 0U);
  EXPECT_TRUE(unit.core.mmio_write(offset::kGcmd, 4, mask_of<kGcmd, "QIE">).commands_pending);
}
// A descriptor on its way when software takes the queue away is not executed. Kills: a head that moves in a queue that
// is off, or in another one.
TEST(VtdInvalidation, AQueueTakenAwayDuringAFetchYieldsNothing) {
  for (const bool moved : {false, true}) {
    QueueUnit unit;
    unit.port.before = [&](const MemoryAccess&) {
      if (moved)
        unit.core.mmio_write(offset::kIqa, 8, 0x300000);
      else
        unit.core.mmio_write(offset::kGcmd, 4, 0);
    };
    unit.submit(descriptors()[0].words);
    EXPECT_FALSE(unit.fetch());
    EXPECT_EQ(unit.head(), 0U);
    EXPECT_FALSE(unit.has_error());
  }
}
TEST(VtdInvalidation, AForgedCommandIsAnErrorAndDoesNothing) {
  QueueUnit unit;
  Command forged;
  forged.words = {~0ULL, ~0ULL, ~0ULL, ~0ULL};
  const CommandEffect effect = unit.core.apply(forged);
  EXPECT_TRUE(effect.error && effect.scopes.empty() && !effect.fence);
}

// Fences --------------------------------------------------------------------------------------------------------------

TEST(VtdFence, WritesItsStatusWhereAskedTo) {
  QueueUnit unit;
  const auto effect = unit.execute(
      words<kWaitDescriptor>({{"TYPE", 5}, {"SW", 1}, {"STDATA", 0xdeadbeef}, {"STADDR", 0x123456789cULL >> 2}}));
  ASSERT_TRUE(effect && effect->fence && effect->fence->status);
  EXPECT_EQ(effect->fence->status->address, Hpa(0x123456789c));
  EXPECT_EQ(effect->fence->status->data, 0xdeadbeefU);
  EXPECT_EQ(effect->fence->status->bytes, 4U);
  EXPECT_FALSE(effect->fence->interrupt || effect->fence->is_barrier);
}
TEST(VtdFence, WithoutStatusAndInterruptItOrdersOnly) {
  QueueUnit unit;
  const auto effect = unit.execute(words<kWaitDescriptor>({{"TYPE", 5}, {"FN", 1}}));
  ASSERT_TRUE(effect && effect->fence);
  EXPECT_TRUE(effect->fence->is_barrier);
  EXPECT_FALSE(effect->fence->interrupt || effect->fence->status);
}
// Kills: an interrupt for each of several unacknowledged completions, one that the mask does not hold, a pending one
// that outlives its acknowledgement.
TEST(VtdFence, InterruptsOnceUntilSoftwareAcknowledges) {
  QueueUnit unit;
  const auto effect = unit.execute(words<kWaitDescriptor>({{"TYPE", 5}, {"IF", 1}}));
  ASSERT_TRUE(effect && effect->fence);
  EXPECT_TRUE(effect->fence->interrupt && !effect->fence->is_barrier);
  unit.core.mmio_write(offset::kIeaddr, 4, 0xfee01000);
  unit.core.mmio_write(offset::kIeuaddr, 4, 1);
  unit.core.mmio_write(offset::kIedata, 4, 0x99);
  EXPECT_FALSE(unit.core.fence_interrupt()) << "masked out of reset";
  EXPECT_EQ(unit.core.mmio_read(offset::kIectl, 4), kMasked | kEventPending);
  EXPECT_EQ(unit.core.mmio_read(offset::kIcs, 4), 1U);
  unit.core.mmio_write(offset::kIectl, 4, 0);
  const auto message = unit.core.take_interrupt();
  ASSERT_TRUE(message);
  EXPECT_EQ(message->address, Hpa(0x1'fee0'1000));
  EXPECT_EQ(message->data, 0x99U);
  EXPECT_FALSE(unit.core.fence_interrupt()) << "the first completion is not acknowledged";
  unit.core.mmio_write(offset::kIcs, 4, 1);
  EXPECT_EQ(unit.core.mmio_read(offset::kIcs, 4), 0U);
  EXPECT_TRUE(unit.core.fence_interrupt());
  unit.core.mmio_write(offset::kIcs, 4, 1);
  unit.core.mmio_write(offset::kIectl, 4, kMasked);
  EXPECT_FALSE(unit.core.fence_interrupt());
  unit.core.mmio_write(offset::kIcs, 4, 1);
  EXPECT_EQ(unit.core.mmio_read(offset::kIectl, 4), kMasked);
}

// Tags of what is cached and scopes of what is invalidated meet: by domain-id, whatever device and stage.
TEST(VtdInvalidation, AScopeRemovesWhatTheContextTagged) {
  for (const Setting setting : {Setting::Legacy, Setting::FirstStage, Setting::SecondStage, Setting::Nested}) {
    Bench bench(setting);
    const auto found = bench.core.find_context(bench.request, bench.port).run();
    const Context context = std::get<Context>(found);
    const CacheTags tags{.domain = context.domain,
                         .asid = context.asid,
                         .requester = Bench::kDevice,
                         .range = {Bench::kInput & ~0xfffULL, Bench::kInput | 0xfff}};
    QueueUnit unit(setting == Setting::Legacy ? TableMode::Legacy : TableMode::Scalable);
    const auto removes = [&](const Words& descriptor) {
      const auto effect = unit.execute(descriptor);
      return std::any_of(effect->scopes.begin(), effect->scopes.end(),
                         [&](const InvalidationScope& s) { return matches(s, tags); });
    };
    const std::uint64_t page = Bench::kInput >> 12;
    EXPECT_TRUE(removes(words<kIotlbDescriptor>({{"TYPE", 2}, {"G", 2}, {"DID", Bench::kDomain}})));
    EXPECT_FALSE(removes(words<kIotlbDescriptor>({{"TYPE", 2}, {"G", 2}, {"DID", Bench::kDomain + 1}})));
    EXPECT_TRUE(removes(words<kIotlbDescriptor>({{"TYPE", 2}, {"G", 3}, {"DID", Bench::kDomain}, {"ADDR", page}})));
    const bool by_process = context.asid.has_value();
    if (setting == Setting::Legacy) continue;
    for (const std::uint64_t other : {0ULL, 1ULL}) {
      const Words own = words<kPasidIotlbDescriptor>(
          {{"TYPE", 6}, {"G", 3}, {"DID", Bench::kDomain}, {"PASID", Bench::kRidPasid + other}, {"ADDR", page}});
      EXPECT_EQ(removes(own), by_process && other == 0);
    }
  }
}

}  // namespace
}  // namespace iommu::vtd::test
