// SPDX-License-Identifier: Apache-2.0
#include "sim/pcie/trace.hpp"

#include <gtest/gtest.h>
#include <unistd.h>
#include <zstd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "sim/base/rng.hpp"
#include "sim/pcie/text_lines.hpp"

namespace iommu {
namespace {

const std::string kMap = "10,map,00:04.0,4,10000,4096,,pa=7000;ctx=t\n";
const std::string kDma = "20,dma_read,00:04.0,4,10000,64,RW,sq;qmiss\n";

class TraceTest : public testing::Test {
 protected:
  ~TraceTest() override { std::filesystem::remove(path_); }
  Trace read(const std::string& text, const TraceOptions& options = {}, const std::string& suffix = ".csv") {
    std::filesystem::remove(path_);
    path_ = (std::filesystem::temp_directory_path() / ("iommusim_trace_test_" + std::to_string(getpid()) + suffix))
                .string();
    std::ofstream(path_, std::ios::binary) << text;
    return read_trace(path_, options);
  }
  // "line: message" of the error, or "none".
  std::string error_of(const std::string& text, const std::string& suffix = ".csv") {
    try {
      read(text, {}, suffix);
    } catch (const TraceError& error) {
      return std::to_string(error.line()) + ": " + error.message();
    }
    return "none";
  }
  static std::string compressed(const std::string& text) {
    std::string out(ZSTD_compressBound(text.size()), '\0');
    out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
    return out;
  }
  std::string path_ = "none";
};

// Mutants killed: decimal addresses; the physical address ignored; rights of the recorder ignored.
TEST_F(TraceTest, MapsAndDmasAreReadAsRecorded) {
  const Trace t =
      read("# iommu-trace v1 name=sample model=m\n" + kMap + "20,dma_read,00:04.0,4,10040,64,R,data;qhit\n");
  EXPECT_EQ(t.name, "sample");
  EXPECT_EQ(t.requester, RequesterId::bdf(0, 4, 0));
  ASSERT_EQ(t.maps.size(), 1U);
  EXPECT_EQ(t.segments[0].iova, Iova(0x10000));
  EXPECT_EQ(t.segments[0].physical, Gpa(0x7000));
  EXPECT_EQ(t.maps[0].permissions, kReadOnly);
  EXPECT_EQ(t.maps[0].dmas, 1U);
  ASSERT_EQ(t.dmas.size(), 1U);
  EXPECT_EQ(t.dmas[0].iova, Iova(0x10040));
  EXPECT_EQ(t.dmas[0].length, 64_B);
  EXPECT_EQ(t.dmas[0].kind, TraceDmaClass::Data);
  EXPECT_EQ(t.highest_physical, 0x7fffU);
}

// Mutants killed: one call per map line; segments in order of mapping instead of address; the call placed at its last
// line.
TEST_F(TraceTest, MapLinesThatOneUnmapCoversAreOneCallAtTheFirstLine) {
  const Trace t = read(
      "1,map,00:04.0,4,11000,4096,,pa=9000\n"
      "2,map,00:04.0,4,50000,4096,,pa=a000\n"
      "3,map,00:04.0,4,10000,4096,,pa=3000\n"
      "4,dma_write,00:04.0,4,11000,16,RW,cq\n"
      "5,unmap,00:04.0,4,10000,8192,,ctx=t\n");
  ASSERT_EQ(t.maps.size(), 2U);
  EXPECT_EQ(t.maps[0].segments, 2U);
  EXPECT_EQ(t.maps[0].length, 8_KiB);
  EXPECT_EQ(t.segments_of(t.maps[0])[0].physical, Gpa(0x3000));
  EXPECT_EQ(t.segments_of(t.maps[0])[1].physical, Gpa(0x9000));
  ASSERT_EQ(t.operations.size(), 4U);
  EXPECT_EQ(t.operations[0].kind, TraceOperationKind::Map);
  EXPECT_EQ(t.operations[0].index, 0U);
  EXPECT_EQ(t.operations[1].index, 1U);
  EXPECT_EQ(t.dmas[0].map, 0U);
  EXPECT_EQ(t.segments[t.dmas[0].segment].iova, Iova(0x11000));
  EXPECT_EQ(t.unmaps[0].map, 0U);
}

// Mutant killed: grouping what could not have been one call, which would map an address twice.
TEST_F(TraceTest, OneUnmapOfMappingsMadeApartIsRefused) {
  EXPECT_EQ(error_of("1,map,,4,11000,4096,,pa=9000\n"
                     "2,map,,4,10000,4096,,pa=3000\n"
                     "3,unmap,,4,11000,4096,,\n"
                     "4,map,,4,11000,4096,,pa=3000\n"
                     "5,unmap,,4,10000,8192,,\n"),
            "5: unmaps as one what line 2 and line 4 mapped apart");
}

// Mutants killed: a class that is dropped but counted as data; drop that also skips the check.
TEST_F(TraceTest, DroppedClassesAreCountedAndStillChecked) {
  const std::string bell = "30,dma_rw,00:04.0,4,10000,4,RW,dbbuf;qhit\n";
  const Trace t = read(kMap + kDma + bell);
  EXPECT_EQ(t.dmas.size(), 1U);
  EXPECT_EQ(t.dropped[static_cast<std::size_t>(TraceDmaClass::ShadowDoorbell)], 1U);
  EXPECT_EQ(read(kMap + kDma + bell, {.drop = {}}).dmas.size(), 2U);
  EXPECT_EQ(error_of(kMap + kDma + "30,dma_rw,00:04.0,4,90000,4,RW,dbbuf;qhit\n"),
            "3: DMA to 90000, which is not mapped");
}

// Mutants killed: sizes beyond the mapping; packet rule applied to ring accesses.
TEST_F(TraceTest, MissingSizesAndDirectionsFollowTheStatedAssumptions) {
  const Trace t = read(kMap +
                       "20,dma_rw,00:04.0,4,10010,,RW,qhit\n"    // descriptor fetch
                       "20,dma_rw,00:04.0,4,1001c,,RW,qhit\n"    // write-back
                       "20,dma_rw,00:04.0,4,10ff0,,RW,qhit\n"    // cut at the end of the mapping
                       "20,dma_read,00:04.0,4,10100,,R,qmiss\n"  // packet
                       "20,dma_rw,00:04.0,4,10008,,RW,prplist\n");
  EXPECT_EQ(t.unsized_dmas, 5U);
  EXPECT_EQ(t.dmas[0].access, Access::Read);
  EXPECT_EQ(t.dmas[0].length, 64_B);
  EXPECT_EQ(t.dmas[1].access, Access::Write);
  EXPECT_EQ(t.dmas[2].length, 16_B);
  EXPECT_EQ(t.dmas[3].length, Bytes(1514));
  EXPECT_EQ(t.dmas[4].access, Access::Read);
}

// Mutant killed: a DMA over two segments that is given the address of the first only.
TEST_F(TraceTest, DmaOverTwoMappingsIsSplitBetweenThem) {
  const Trace t = read(kMap + "11,map,00:04.0,4,11000,4096,,pa=20000\n20,dma_write,00:04.0,4,10fc0,128,RW,rxbuf\n");
  ASSERT_EQ(t.dmas.size(), 2U);
  EXPECT_EQ(t.dmas[0].length, 64_B);
  EXPECT_EQ(t.dmas[1].iova, Iova(0x11000));
  EXPECT_EQ(t.dmas[1].map, 1U);
}

// Mutant killed: a kind that counts into another.
TEST_F(TraceTest, RecordedInvalidationsAreCountedByKind) {
  const Trace t =
      read(kMap + kDma +
           "21,inval_iotlb,,4,10000,4096,,page;leaf\n21,inval_iotlb,,4,,,,domain\n21,inval_iotlb,,4,,,,asid\n"
           "21,inval_iotlb,,,,,,global\n21,inval_iotlb,,,,,,all_nh\n21,inval_devtlb,00:04.0,,10000,4096,,\n"
           "21,inval_context,,,,,,global\n21,inval_iec,,,,,,\n21,inval_wait,,,,,,sw\n21,inval_wait,,,,,,sw\n"
           "21,inval_kick,,,,,,tail=2\n21,reg,,,,,,GCMD=0x4\n");
  EXPECT_EQ(t.recorded.iotlb_page, 1U);
  EXPECT_EQ(t.recorded.iotlb_domain, 2U);
  EXPECT_EQ(t.recorded.iotlb_global, 2U);
  EXPECT_EQ(t.recorded.device_tlb, 1U);
  EXPECT_EQ(t.recorded.context, 1U);
  EXPECT_EQ(t.recorded.interrupt_entry, 1U);
  EXPECT_EQ(t.recorded.fence, 2U);
  EXPECT_EQ(t.recorded.kick, 1U);
}

struct Hostile {
  const char* what;
  std::string lines;  // after a map and a DMA, unless `bare`
  std::string expected;
  bool bare = false;
};
class HostileTrace : public TraceTest, public testing::WithParamInterface<Hostile> {};
// Mutant killed: any check that is left out, or that reports another line.
TEST_P(HostileTrace, GivesOneLineThatSaysWhereAndWhy) {
  const Hostile& h = GetParam();
  EXPECT_EQ(error_of(h.bare ? h.lines : kMap + kDma + h.lines), h.expected);
}
// clang-format off
INSTANTIATE_TEST_SUITE_P(Lines, HostileTrace, testing::Values(
  Hostile{"empty file", "", "0: the trace holds no DMA of a mapped device", true},
  Hostile{"version", "# iommu-trace v2 name=x\n", "1: the trace format version is not v1", true},
  Hostile{"columns", "30,map,00:04.0\n", "3: has fewer than 8 columns"},
  Hostile{"time text", "x,map,,,0,4096,,pa=0\n", "3: the time 'x' is not a number of 64 bits"},
  Hostile{"time sign", "-1,map,,,0,4096,,pa=0\n", "3: the time '-1' is not a number of 64 bits"},
  Hostile{"time order", "19,map,,,0,4096,,pa=0\n", "3: is earlier than the line before it"},
  Hostile{"event", "30,dance,,,,,,\n", "3: unknown event 'dance'"},
  Hostile{"dma event", "30,dma_dance,00:04.0,4,10000,64,RW,sq\n", "3: unknown event 'dma_dance'"},
  Hostile{"scope", "30,inval_iotlb,,,,,,some\n", "3: unknown scope 'some' of an IOTLB invalidation"},
  Hostile{"address", "30,map,,,zz,4096,,pa=0\n", "3: the address 'zz' is not a number of 64 bits"},
  Hostile{"long address", "30,map,,,11112222333344445,4096,,pa=0\n", "3: the address '11112222333344445' is not a number of 64 bits"},
  Hostile{"size", "30,map,,,20000,1e3,,pa=0\n", "3: the size '1e3' is not a number of 64 bits"},
  Hostile{"zero map", "30,map,,,20000,0,,pa=0\n", "3: maps zero bytes"},
  Hostile{"part of a page", "30,map,,,20000,100,,pa=0\n", "3: maps something other than whole 4 KiB pages"},
  Hostile{"wrapping map", "30,map,,,fffffffffffff000,8192,,pa=0\n", "3: maps past the end of the address space"},
  Hostile{"wrapping pa", "30,map,,,20000,8192,,pa=fffffffffffff000\n", "3: maps past the end of the address space"},
  Hostile{"no pa", "30,map,,,20000,4096,,ctx=x\n", "3: a map without its physical address (pa=)"},
  Hostile{"map twice", "30,map,,,10000,4096,,pa=8000\n", "3: maps 10000, which line 1 had mapped"},
  Hostile{"map around", "30,map,,,f000,12288,,pa=8000\n", "3: maps f000, which line 1 had mapped"},
  Hostile{"unmap nothing", "30,unmap,,,90000,4096,,\n", "3: unmaps 90000, which is not mapped"},
  Hostile{"unmap twice", "30,unmap,,,10000,4096,,\n31,unmap,,,10000,4096,,\n", "4: unmaps 10000, which is not mapped"},
  Hostile{"unmap zero", "30,unmap,,,10000,0,,\n", "3: unmaps zero bytes"},
  Hostile{"unmap too much", "30,unmap,,,10000,8192,,\n", "3: unmaps 11000, which is not mapped"},
  Hostile{"unmap part", "30,map,,,20000,8192,,pa=0\n31,unmap,,,20000,4096,,\n", "4: unmaps a part of what line 3 mapped"},
  Hostile{"wrapping unmap", "30,unmap,,,10000,18446744073709551615,,\n", "3: unmaps past the end of the address space"},
  Hostile{"dma unmapped", "30,dma_read,00:04.0,4,90000,64,RW,sq\n", "3: DMA to 90000, which is not mapped"},
  Hostile{"dma after unmap", "30,unmap,,,10000,4096,,\n31,dma_read,00:04.0,4,10000,64,RW,sq\n", "4: DMA to 10000, which is not mapped"},
  Hostile{"dma off the end", "30,dma_read,00:04.0,4,10fc0,128,RW,sq\n", "3: DMA to 11000, which is not mapped"},
  Hostile{"zero dma", "30,dma_read,00:04.0,4,10000,0,RW,sq\n", "3: DMA of zero bytes"},
  Hostile{"huge dma", "30,dma_read,00:04.0,4,10000,99999999,RW,sq\n", "3: one DMA of more than 1 MiB"},
  Hostile{"two devices", "30,dma_read,00:05.0,4,10000,64,RW,sq\n", "3: DMA of a second device; a trace is of one"},
  Hostile{"requester", "30,dma_read,0000:05.0,4,10000,64,RW,sq\n", "3: the requester is not of the form bb:dd.f"},
  Hostile{"device number", "30,dma_read,00:20.0,4,10000,64,RW,sq\n", "3: the requester has a device above 1f or a function above 7"},
  Hostile{"rights", "30,dma_read,00:04.0,4,10000,64,RX,sq\n", "3: the permissions 'RX' are none of R, W, RW"},
  Hostile{"long line", "30,reg,,,,,," + std::string(5000, 'x') + "\n", "3: a line is longer than 4096 bytes"},
  Hostile{"no line end", std::string(5000, 'x'), "3: a line is longer than 4096 bytes"}),
  [](const auto& info) {
    std::string name = info.param.what;
    for (char& c : name) if (c == ' ') c = '_';
    return name;
  });
// clang-format on

// Mutants killed: a truncated frame taken for the end; a corrupt one read on.
TEST_F(TraceTest, CompressedTraceIsReadAndDamageIsSaid) {
  std::string text = kMap + kDma;
  for (int i = 0; i < 5000; ++i) text += std::to_string(30 + i) + ",dma_read,00:04.0,4,10040,64,RW,data\n";
  const std::string good = compressed(text);
  EXPECT_EQ(read(good, {}, ".csv.zst").dmas.size(), 5001U);
  EXPECT_EQ(read(good + compressed("90000,reg,,,,,,x\n"), {}, ".csv.zst").dmas.size(), 5001U);  // frames in a row
  EXPECT_NE(error_of(good.substr(0, good.size() - 3), ".csv.zst").find("is truncated"), std::string::npos);
  EXPECT_NE(error_of(text, ".csv.zst").find("is not valid zstd"), std::string::npos);
  EXPECT_EQ(error_of("", ".csv.zst"), "0: is empty");
}

TEST_F(TraceTest, MissingFileIsOneLine) {
  try {
    (void)read_trace("no_such_directory/t.csv");
    FAIL();
  } catch (const TraceError& error) {
    EXPECT_STREQ(error.what(), "t.csv:0: there is no such file");
  }
}

// Whatever bytes a file holds, reading ends with a trace or a TraceError. Mutants killed: any unchecked index.
TEST_F(TraceTest, DamagedFilesNeverCrash) {
  const std::uint64_t seed = 20261121;
  RecordProperty("seed", std::to_string(seed));
  Rng rng(seed);
  std::string text = kMap + kDma + "30,unmap,00:04.0,4,10000,4096,,ctx=t\n40,inval_wait,,,,,,sw\n";
  const std::string packed = compressed(text);
  int errors = 0;
  for (int i = 0; i < 400; ++i) {
    std::string damaged = i % 2 == 0 ? text : packed;
    for (std::uint64_t n = rng.below(4) + 1; n > 0; --n)
      damaged[rng.below(damaged.size())] = static_cast<char>(rng.below(256));
    if (error_of(damaged, i % 2 == 0 ? ".csv" : ".csv.zst") != "none") ++errors;
  }
  EXPECT_GT(errors, 100);
}

// Mutants killed: a shipped cut that refers to maps outside it. Run from the root of the repository, as CTest does.
TEST_F(TraceTest, ShippedTracesAreConsistent) {
  for (const char* name : {"vtd-nvme-strict", "vtd-e1000e-strict"}) {
    const Trace t = read_trace(std::string("scenarios/traces/") + name + ".csv.zst");
    EXPECT_EQ(t.name, name);
    EXPECT_GT(t.dmas.size(), 10000U);
    EXPECT_EQ(t.recorded.iotlb_page, t.unmaps.size());
    EXPECT_EQ(t.recorded.fence, t.unmaps.size());
  }
}

// Mutants killed: no limit; a limit on the length of the last line only.
TEST_F(TraceTest, LinesOfAnyEndingAreDelivered) {
  (void)error_of("a\r\n\nb");
  TextLines lines(path_);
  EXPECT_EQ(lines.next(), "a");
  EXPECT_EQ(lines.next(), "");
  EXPECT_EQ(lines.next(), "b");
  EXPECT_EQ(lines.number(), 3U);
  EXPECT_EQ(lines.next(), std::nullopt);
  EXPECT_TRUE(lines.problem().empty());
}

}  // namespace
}  // namespace iommu
