// SPDX-License-Identifier: Apache-2.0
// What holds for every family: its driver and its core understand each other through the seams alone.
#include "models/families.hpp"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "sim/memory/host_memory.hpp"
#include "sim/memory/host_table_memory.hpp"

namespace iommu {
namespace {

constexpr RequesterId kDevice = RequesterId::bdf(3, 0, 0);

// Kills: a family that is listed but not found, found under a wrong name, or listed twice.
TEST(Families, AreFoundByTheirOwnNameAndNoOther) {
  std::set<std::string_view> names;
  for (const FamilyDescriptor* family : families()) {
    EXPECT_TRUE(names.insert(family->name).second) << family->name;
    EXPECT_EQ(find_family(family->name), family);
  }
  EXPECT_FALSE(names.empty());
  EXPECT_EQ(find_family("vt"), nullptr);
  EXPECT_EQ(find_family(""), nullptr);
}

// Rows are told apart by name in reports and coverage lists. Kills: a row without source, or one copied twice.
TEST(Families, RowsAreNamedOnceAndCited) {
  for (const FamilyDescriptor* family : families()) {
    EXPECT_FALSE(family->specification.empty());
    std::set<std::string_view> faults, commands;
    for (const FaultRow& row : family->fault_rows) {
      EXPECT_TRUE(faults.insert(row.name).second) << family->name << " " << row.name;
      EXPECT_FALSE(row.citation.empty() || row.meaning.empty()) << family->name << " " << row.name;
    }
    for (const CommandRow& row : family->command_rows) {
      EXPECT_TRUE(commands.insert(row.name).second) << family->name << " " << row.name;
      EXPECT_FALSE(row.citation.empty()) << family->name << " " << row.name;
    }
    EXPECT_FALSE(faults.empty() || commands.empty()) << family->name;
  }
}

class FamilyUnit : public testing::TestWithParam<const FamilyDescriptor*> {
 protected:
  HostMemory host_{Bytes(1ULL << 38)};
  FrameAllocator frames_{Mfn(0x1000), 0x4000};
  HostTableMemory memory_{host_, frames_};
  ImmediateMemoryPort port_{host_};

  TranslationResponse translate(IommuCore& core, std::uint64_t address) {
    return core.translate({.requester = kDevice, .pasid = {}, .address = Iova(address)}, port_).run();
  }
};

// Kills: a descriptor whose core and driver are of different features or modes; registers beyond mmio_bytes.
TEST_P(FamilyUnit, CoreReadsWhatTheDriverWrites) {
  const FamilyDescriptor& family = *GetParam();
  for (const bool stage1 : {false, true}) {
    DriverOptions options;
    options.stage1 = stage1;
    ASSERT_EQ(family.unsupported(options.features), "");
    const auto core = family.make_core(options.features);
    const auto driver = family.make_driver(options);
    const auto writes = driver->bring_up(memory_);
    ASSERT_TRUE(writes);
    for (const RegisterWrite& write : *writes) {
      EXPECT_LE(write.offset + write.bytes, family.mmio_bytes);
      core->mmio_write(write.offset, write.bytes, write.value);
    }
    ASSERT_TRUE(core->is_translating());
    const auto table = driver->create_table(stage1 ? TableKind::Stage1 : TableKind::Stage2, memory_);
    ASSERT_NE(table, nullptr);
    table->map({.input = 0x40000000, .output = 0x12345000});
    const ContextSetting setting{.kind = stage1 ? ContextKind::Stage1 : ContextKind::Stage2,
                                 .domain = DomainTag(5),
                                 .stage1 = table->root(),
                                 .stage2 = table->root()};
    ASSERT_EQ(driver->attach(kDevice, setting, memory_).status, EditStatus::Ok);
    const TranslationResponse hit = translate(*core, 0x40000123);
    ASSERT_TRUE(std::holds_alternative<Translation>(hit)) << std::get<Fault>(hit).row->name;
    EXPECT_EQ(std::get<Translation>(hit).address, Hpa(0x12345123));
    const TranslationResponse miss = translate(*core, 0x40001000);
    ASSERT_TRUE(std::holds_alternative<Fault>(miss));
    const FaultRow* row = std::get<Fault>(miss).row;
    EXPECT_TRUE(row >= family.fault_rows.data() && row < family.fault_rows.data() + family.fault_rows.size());
  }
}
INSTANTIATE_TEST_SUITE_P(All, FamilyUnit, testing::ValuesIn(families().begin(), families().end()),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace iommu
