// SPDX-License-Identifier: Apache-2.0
#include "sim/translation/register_file.hpp"

#include <gtest/gtest.h>

namespace iommu {
namespace {

RegisterFile make() {
  return RegisterFile(
      {
          {.name = "ID", .offset = 0, .bytes = 4, .reset = 0x10, .writable = 0, .cleared_by_one = 0},
          {.name = "BASE", .offset = 8, .bytes = 8, .reset = 0, .writable = 0xfffffffffffff000, .cleared_by_one = 0},
          {.name = "STATUS", .offset = 16, .bytes = 4, .reset = 0xf, .writable = 0, .cleared_by_one = 0x5},
          {.name = "CONTROL", .offset = 20, .bytes = 4, .reset = 0, .writable = 0x80000000, .cleared_by_one = 0},
      },
      64);
}

// Kills: a write mask that is ignored, and halves that are swapped.
TEST(RegisterFile, HalvesOfA64BitRegisterAreItsLowAndHighWord) {
  RegisterFile file = make();
  file.write(8, 4, 0xabcdefff);
  file.write(12, 4, 0x12);
  EXPECT_EQ(file.read(8, 8), 0x12abcde000U);
  EXPECT_EQ(file.read(8, 4), 0xabcde000U);
  EXPECT_EQ(file.read(12, 4), 0x12U);
}

// Kills: clearing bits that read-only rows or zero bits of the write protect.
TEST(RegisterFile, OnlyClearableBitsAreClearedAndOnlyByOne) {
  RegisterFile file = make();
  file.write(16, 4, 0x3);
  EXPECT_EQ(file.read(16, 4), 0xeU);
  file.write(0, 4, 0xff);
  EXPECT_EQ(file.read(0, 4), 0x10U);
}

// Kills: an 8-byte write over two registers that loses one of them.
TEST(RegisterFile, OneAccessMayCoverTwoRegisters) {
  RegisterFile file = make();
  const RegisterChanges changes = file.write(16, 8, 0x80000000'00000001);
  ASSERT_EQ(changes.count, 2U);
  EXPECT_EQ(changes.items[0].row, 2U);
  EXPECT_EQ(changes.items[1].row, 3U);
  EXPECT_EQ(file.read(16, 8), 0x80000000'0000000eU);
}

// Kills: indexing past the table, or honouring accesses that hardware ignores.
TEST(RegisterFile, UnassignedUnalignedAndOversizedAccessesDoNothing) {
  RegisterFile file = make();
  EXPECT_EQ(file.write(4, 4, 1).count, 0U);
  EXPECT_EQ(file.write(10, 4, 1).count, 0U);
  EXPECT_EQ(file.write(8, 2, 1).count, 0U);
  EXPECT_EQ(file.write(1ULL << 40, 8, 1).count, 0U);
  EXPECT_EQ(file.read(~7ULL, 8), 0U);
  EXPECT_EQ(file.read(4, 4), 0U);
}

}  // namespace
}  // namespace iommu
