// SPDX-License-Identifier: Apache-2.0
// PCIe arithmetic without time or state: what a transfer costs on the wire and into which packets it is cut.
//
// Closed forms (per direction, payload P per packet):
//   raw rate            lanes * line rate * encoding
//   payload efficiency  P / (P + overhead) * (1 - DLLP share)
// Overheads are those of the published pcie-bench model [Neugebauer et al., SIGCOMM 2018, model/pcie.py]: 2 bytes of
// framing and 6 of data link layer around each packet, 4 bytes of common header, and the part that depends on the kind.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "sim/base/address.hpp"
#include "sim/base/check.hpp"
#include "sim/base/units.hpp"
#include "sim/translation/request.hpp"

namespace iommu {

// Line rate and line coding of a PCIe generation [PCIe 6.0 §4.2, §4.4].
struct PcieGeneration {
  std::uint64_t transfers_per_second = 0;  // bits on one lane
  std::uint64_t coded_payload = 0;         // of `coded_total` bits on the line, so many are data
  std::uint64_t coded_total = 1;
};
inline constexpr unsigned kPcieGenerations = 6;
// clang-format off
inline constexpr std::array<PcieGeneration, kPcieGenerations> kPcieGenerationTable{{
    { 2'500'000'000,   8,  10},
    { 5'000'000'000,   8,  10},
    { 8'000'000'000, 128, 130},
    {16'000'000'000, 128, 130},
    {32'000'000'000, 128, 130},
    {64'000'000'000, 236, 256},  // flits: 236 of 256 bytes carry transaction layer packets [PCIe 6.0 §4.2.3]
}};
// clang-format on

enum class TlpKind : std::uint8_t { MemoryWrite, MemoryRead, CompletionWithData, Completion };

// 4 DW headers carry 64-bit addresses; 3 DW headers only reach the first 4 GiB.
enum class TlpAddressing : std::uint8_t { Bits32, Bits64 };
enum class EndToEndCrc : std::uint8_t { Absent, Present };

struct LinkParameters {
  unsigned generation = 3;             // 1 … 6
  unsigned lanes = 8;                  // 1, 2, 4, 8, 12, 16, 32
  Bytes max_payload{256};              // 128 … 4096, power of two: a write or completion carries no more
  Bytes max_read_request{512};         // 128 … 4096, power of two
  Bytes read_completion_boundary{64};  // 64 or 128: completions are cut at multiples of it
  EndToEndCrc ecrc = EndToEndCrc::Absent;
  TlpAddressing addressing = TlpAddressing::Bits64;
  // Part of the raw rate that acknowledgements, flow-control updates and skip sets take, in parts per thousand.
  std::uint32_t dllp_per_mille = 0;  // 0 … 500

  // Why the parameters cannot be; null when they can.
  [[nodiscard]] constexpr const char* problem() const;
};

inline constexpr Bytes kTlpFraming{2};
inline constexpr Bytes kTlpDataLink{6};  // sequence number and LCRC
inline constexpr Bytes kTlpCommonHeader{4};
inline constexpr Bytes kTlpEcrc{4};
inline constexpr Bytes kFlowControlUnit{16};  // one data credit [PCIe 6.0 §2.6.1]

[[nodiscard]] constexpr const char* LinkParameters::problem() const {
  const auto is_size = [](Bytes b) {
    const std::uint64_t v = b.value();
    return v >= 128 && v <= 4096 && (v & (v - 1)) == 0;
  };
  constexpr std::array<unsigned, 7> kWidths{1, 2, 4, 8, 12, 16, 32};
  if (generation < 1 || generation > kPcieGenerations) return "the PCIe generation is 1 to 6";
  if (std::find(kWidths.begin(), kWidths.end(), lanes) == kWidths.end())
    return "a link has 1, 2, 4, 8, 12, 16 or 32 lanes";
  if (!is_size(max_payload)) return "max_payload is a power of two from 128 to 4096 bytes";
  if (!is_size(max_read_request)) return "max_read_request is a power of two from 128 to 4096 bytes";
  const std::uint64_t boundary = read_completion_boundary.value();
  if (boundary != 64 && boundary != 128) return "read_completion_boundary is 64 or 128 bytes";
  if (dllp_per_mille > 500) return "dllp_per_mille is at most 500";
  return nullptr;
}

// Bytes on the wire beyond the payload.
[[nodiscard]] constexpr Bytes tlp_overhead(TlpKind kind, const LinkParameters& link) {
  const bool is_request = kind == TlpKind::MemoryWrite || kind == TlpKind::MemoryRead;
  const Bytes specific(is_request && link.addressing == TlpAddressing::Bits64 ? 12 : 8);
  const Bytes ecrc = link.ecrc == EndToEndCrc::Present ? kTlpEcrc : Bytes(0);
  return kTlpFraming + kTlpDataLink + kTlpCommonHeader + specific + ecrc;
}

// Payload travels in whole double words.
[[nodiscard]] constexpr Bytes tlp_size(TlpKind kind, Bytes payload, const LinkParameters& link) {
  return tlp_overhead(kind, link) + Bytes((payload.value() + 3) / 4 * 4);
}

[[nodiscard]] constexpr std::uint64_t raw_bits_per_second(const LinkParameters& link) {
  const PcieGeneration& g = kPcieGenerationTable[link.generation - 1];
  return g.transfers_per_second / g.coded_total * g.coded_payload * link.lanes +
         g.transfers_per_second % g.coded_total * g.coded_payload * link.lanes / g.coded_total;
}
// What packets get of the raw rate.
[[nodiscard]] constexpr std::uint64_t tlp_bits_per_second(const LinkParameters& link) {
  return raw_bits_per_second(link) / 1000 * (1000 - link.dllp_per_mille);
}
// Time on the wire, rounded up to a picosecond.
[[nodiscard]] constexpr Picoseconds serialisation_time(Bytes bytes, const LinkParameters& link) {
  const auto bits = static_cast<unsigned __int128>(bytes.value()) * 8;
  const std::uint64_t rate = tlp_bits_per_second(link);
  return Picoseconds(static_cast<std::int64_t>((bits * 1'000'000'000'000ULL + rate - 1) / rate));
}

// Data credits that a payload takes.
[[nodiscard]] constexpr std::uint32_t data_credits(Bytes payload) {
  return static_cast<std::uint32_t>((payload.value() + kFlowControlUnit.value() - 1) / kFlowControlUnit.value());
}

// How much of [address, address + left) the next packet carries: no packet is larger than `limit` or crosses a multiple
// of `boundary` (a power of two).
[[nodiscard]] constexpr Bytes next_part(std::uint64_t address, Bytes left, Bytes limit, Bytes boundary) {
  const Bytes to_boundary = boundary - Bytes(address & (boundary.value() - 1));
  return std::min({left, limit, to_boundary});
}
// Requests never cross a 4 KiB boundary [PCIe 6.0 §2.2.7].
[[nodiscard]] constexpr Bytes next_request(Iova address, Bytes left, Access access, const LinkParameters& link) {
  return next_part(address.value(), left, access == Access::Read ? link.max_read_request : link.max_payload, kPageSize);
}
// All completions of a request but the last end at a multiple of the read completion boundary [PCIe 6.0 §2.3.1.1].
[[nodiscard]] constexpr Bytes next_completion(std::uint64_t address, Bytes left, const LinkParameters& link) {
  if (left <= link.max_payload) return left;
  const std::uint64_t boundary = link.read_completion_boundary.value();
  const std::uint64_t end = (address + link.max_payload.value()) / boundary * boundary;
  return Bytes(end - address);
}

// The packets that one transfer of `length` bytes puts on the wire, both directions.
struct WireCost {
  std::uint32_t requests = 0;
  std::uint32_t completions = 0;
  Bytes upstream;    // device to root
  Bytes downstream;  // root to device
};
[[nodiscard]] constexpr WireCost wire_cost(Iova address, Bytes length, Access access, const LinkParameters& link) {
  WireCost cost;
  while (length > Bytes(0)) {
    const Bytes part = next_request(address, length, access, link);
    ++cost.requests;
    if (access == Access::Write) {
      cost.upstream += tlp_size(TlpKind::MemoryWrite, part, link);
    } else {
      cost.upstream += tlp_size(TlpKind::MemoryRead, Bytes(0), link);
      std::uint64_t at = address.value();
      for (Bytes left = part; left > Bytes(0);) {
        const Bytes data = next_completion(at, left, link);
        ++cost.completions;
        cost.downstream += tlp_size(TlpKind::CompletionWithData, data, link);
        at += data.value();
        left -= data;
      }
    }
    address = address + part;
    length -= part;
  }
  return cost;
}

}  // namespace iommu
