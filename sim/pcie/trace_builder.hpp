// SPDX-License-Identifier: Apache-2.0
// Turns trace events, in order, into a Trace: keeps what is mapped, finds out which map lines were one call, and
// refuses what no driver and device can have done. Knows nothing of files.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "sim/pcie/trace.hpp"

namespace iommu {

class TraceBuilder {
 public:
  // Each returns why the event is impossible; empty when it is not.
  using Problem = std::string;

  Problem map(std::uint64_t line, Iova iova, Bytes length, Gpa physical, std::optional<Permissions> permissions);
  Problem unmap(Iova iova, Bytes length);
  // The range must be mapped. `seen` are the rights that the recorder saw.
  Problem dma(Iova iova, Bytes length, Access access, TraceDmaClass kind, std::optional<Permissions> seen);
  // Bytes from `iova` to the end of its mapping; nullopt when it is not mapped.
  [[nodiscard]] std::optional<Bytes> mapped_from(Iova iova) const;

  // Everything but name, requester and what was only counted.
  [[nodiscard]] Trace finish();

 private:
  // One map line.
  struct Segment {
    TraceSegment where{};
    std::uint64_t line = 0;
    std::uint32_t operation = 0;   // index of its own map operation
    std::uint32_t free_since = 0;  // operation that last unmapped some of its range, plus one
    std::uint32_t call = 0;        // first segment of the call it belongs to
    std::optional<Permissions> permissions{};
    Permissions seen{};
  };
  struct Operation {
    TraceOperationKind kind = TraceOperationKind::Map;
    std::uint32_t index = 0;  // Map: segment; Unmap: first segment of the call; Dma: index into dmas_
  };
  // Where a segment went in the finished trace.
  struct Place {
    std::uint32_t map = 0;
    std::uint32_t segment = 0;
  };
  using Live = std::map<std::uint64_t, std::uint32_t>;  // first byte -> segment
  [[nodiscard]] Live::const_iterator live_at(std::uint64_t address) const;
  [[nodiscard]] std::uint32_t last_unmap_of(std::uint64_t first, std::uint64_t last) const;
  void remember_unmap(std::uint64_t first, std::uint64_t last);
  [[nodiscard]] std::vector<Place> group_calls(Trace& trace) const;
  [[nodiscard]] std::uint64_t last_byte(std::uint32_t segment) const;

  std::vector<Segment> segments_;
  std::vector<Operation> operations_;
  std::vector<TraceDma> dmas_;  // segment: index into segments_
  Live live_;
  struct Unmapped {
    std::uint64_t last = 0;
    std::uint32_t operation_after = 0;
  };
  std::map<std::uint64_t, Unmapped> unmapped_;  // by first byte, disjoint
  std::uint64_t repeated_maps_ = 0;
};

}  // namespace iommu
