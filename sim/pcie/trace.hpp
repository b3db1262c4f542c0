// SPDX-License-Identifier: Apache-2.0
// Recorded driver traces: parsing, and what a run needs of them.
//
// A trace is CSV (plain or zstd), one event a line, as documented in scenarios/traces/README.md. The reader turns it
// into the operations of one device and its driver, in trace order: map calls, unmap calls and DMAs, each knowing which
// map it belongs to. Recorded invalidations are only counted, to be compared with those of a run; times are checked for
// order and then dropped, because they are the recording emulator's.
//
// A trace is hostile input: everything that makes no sense is one TraceError.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "sim/base/address.hpp"
#include "sim/base/ids.hpp"
#include "sim/base/units.hpp"
#include "sim/translation/request.hpp"

namespace iommu {

// what() is "file:line: message"; line 0 means the file as a whole.
class TraceError : public std::runtime_error {
 public:
  TraceError(std::string_view file, std::uint64_t line, std::string_view message);
  [[nodiscard]] const std::string& file() const { return file_; }
  [[nodiscard]] std::uint64_t line() const { return line_; }
  [[nodiscard]] const std::string& message() const { return message_; }

 private:
  std::string file_;
  std::uint64_t line_;
  std::string message_;
};

enum class TraceDmaClass : std::uint8_t {
  SubmissionQueue,
  CompletionQueue,
  Data,
  PrpList,
  ShadowDoorbell,
  ReceiveBuffer,
  Other,  // the recording device did not say
};
inline constexpr std::size_t kTraceDmaClasses = 7;

struct TraceSegment {
  Iova iova{};  // as recorded
  Bytes length{};
  Gpa physical{};
};

// One dma_map call of the driver.
struct TraceMap {
  std::uint32_t first_segment = 0;
  std::uint32_t segments = 1;  // adjacent in IOVA space, ascending
  std::uint32_t dmas = 0;      // DMAs of the trace that fall into it
  Bytes length{};
  Permissions permissions{};
  std::uint64_t line = 0;  // of its first segment
};
struct TraceUnmap {
  std::uint32_t map = 0;  // the call it undoes, always a whole one
};
struct TraceDma {
  Iova iova{};  // as recorded
  Bytes length{};
  std::uint32_t map = 0;      // the call it depends on
  std::uint32_t segment = 0;  // index into Trace::segments; the DMA lies within it
  Access access = Access::Read;
  TraceDmaClass kind = TraceDmaClass::Other;
};

enum class TraceOperationKind : std::uint8_t { Map, Unmap, Dma };
struct TraceOperation {
  TraceOperationKind kind = TraceOperationKind::Map;
  std::uint32_t index = 0;  // into the vector of its kind
};

// Invalidations that the recorded driver issued, in the words of the trace format.
struct RecordedInvalidations {
  std::uint64_t iotlb_page = 0;
  std::uint64_t iotlb_domain = 0;  // also by address-space tag
  std::uint64_t iotlb_global = 0;
  std::uint64_t device_tlb = 0;
  std::uint64_t context = 0;
  std::uint64_t interrupt_entry = 0;
  std::uint64_t fence = 0;
  std::uint64_t kick = 0;  // doorbell writes
};

struct Trace {
  std::string name;
  RequesterId requester;  // of the one device whose DMAs are in the trace
  std::vector<TraceOperation> operations;
  std::vector<TraceSegment> segments;
  std::vector<TraceMap> maps;
  std::vector<TraceUnmap> unmaps;
  std::vector<TraceDma> dmas;
  RecordedInvalidations recorded;
  std::array<std::uint64_t, kTraceDmaClasses> dropped{};  // DMA lines left out, by class
  std::uint64_t unsized_dmas = 0;                         // DMA lines without a size, given one by assumption
  std::uint64_t repeated_maps = 0;                        // left out, see ASSUMPTION(trace-005)
  std::uint64_t highest_physical = 0;                     // last guest-physical byte that a map names
  [[nodiscard]] std::span<const TraceSegment> segments_of(const TraceMap& map) const {
    return std::span(segments).subspan(map.first_segment, map.segments);
  }
};

// ASSUMPTION(trace-001): a DMA line without a size moves one cache line, cut at the end of its mapping. Recorders omit
// the size where the device model touches 2 to 8 bytes of a descriptor at a time; hardware moves whole lines.
// ASSUMPTION(trace-002): without class and size, a read of a page that the device may only read is a packet to be sent:
// as long as the rest of its mapping, at most `unsized_read`. ASSUMPTION(trace-003): a DMA whose direction was not
// recorded is a read if its class says so (submission queue, PRP list) or its page is read-only, a write if its class
// says so (completion queue, receive buffer, data) or its page is write-only. Else it touches a ring: at a multiple of
// 16 bytes it fetches a descriptor, elsewhere it writes one back. ASSUMPTION(trace-004): a mapping whose rights were
// not recorded has those that the recorder saw on its DMAs, all if none. ASSUMPTION(trace-005): mapping again exactly
// what is mapped is another domain's business (an MSI page) and is left out.
struct TraceOptions {
  // Shadow doorbells exist only under emulation.
  std::vector<TraceDmaClass> drop{TraceDmaClass::ShadowDoorbell};
  Bytes unsized_dma{64};
  Bytes unsized_read{1514};
};

// Throws TraceError.
[[nodiscard]] Trace read_trace(const std::string& path, const TraceOptions& options = {});

}  // namespace iommu
