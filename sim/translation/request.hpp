// SPDX-License-Identifier: Apache-2.0
// What a device asks of an IOMMU and what it is told: request, translation, architectural fault.
#pragma once

#include <bit>
#include <cstdint>
#include <optional>
#include <string_view>
#include <variant>

#include "sim/base/address.hpp"
#include "sim/base/ids.hpp"
#include "sim/base/units.hpp"

namespace iommu {

enum class Access : std::uint8_t { Read, Write };

// PCIe AT field: an ordinary DMA, an ATS translation request, or a DMA that carries an address translated before.
enum class AddressType : std::uint8_t { Untranslated, TranslationRequest, Translated };

struct Permissions {
  bool read = false;
  bool write = false;
  // Of entries on the way of a walk, where the format tells instruction fetches from reads. One entry that says so
  // suffices, for either; no finished translation has them.
  bool execute_never = false;
  bool never_written = false;  // by anybody whose right to write would forbid execution

  [[nodiscard]] constexpr bool allow(Access a) const { return a == Access::Read ? read : write; }
  [[nodiscard]] constexpr bool none() const { return !read && !write; }
  friend constexpr Permissions operator&(Permissions a, Permissions b) {
    return {.read = a.read && b.read,
            .write = a.write && b.write,
            .execute_never = a.execute_never || b.execute_never,
            .never_written = a.never_written || b.never_written};
  }
  friend constexpr bool operator==(Permissions, Permissions) = default;
};
inline constexpr Permissions kReadWrite{.read = true, .write = true};
inline constexpr Permissions kReadOnly{.read = true, .write = false};
inline constexpr Permissions kWriteOnly{.read = false, .write = true};

struct TranslationRequest {
  RequesterId requester;
  std::optional<Pasid> pasid;  // absent: a request without PASID
  Iova address;
  Bytes length{4};  // does not cross a 4 KiB boundary
  Access access = Access::Read;
  AddressType type = AddressType::Untranslated;
  bool privileged = false;  // PASID prefix "privileged mode requested"
  bool execute = false;     // PASID prefix "execute requested": a read fetches instructions; a write is one of data
};

// As whose and as what an access is checked. Rights to a page differ by it, so cached ones are told apart by it.
struct AccessMode {
  bool privileged = false;
  bool execute = false;  // reads are instruction fetches
  // In one comparison: part of the keys of caches.
  friend constexpr bool operator==(AccessMode a, AccessMode b) {
    return std::bit_cast<std::uint16_t>(a) == std::bit_cast<std::uint16_t>(b);
  }
};

// What the request says of itself; its context may override that.
[[nodiscard]] constexpr AccessMode mode_asked(const TranslationRequest& request) {
  return {.privileged = request.privileged, .execute = request.execute && request.access == Access::Read};
}

struct MemoryAttributes {
  bool snoop = false;      // accesses are forced coherent by the entry
  bool is_global = false;  // stage 1: the same in every address space of its domain
  friend constexpr bool operator==(MemoryAttributes, MemoryAttributes) = default;
};

struct Translation {
  Hpa address;  // of the first byte asked for
  std::uint8_t page_lg2 =
      kPageLg2;         // log2 of the largest naturally aligned block around `address` with one translation
  Permissions allowed;  // what a cached copy of this translation may be used for
  MemoryAttributes attributes;
  // True when remapping took no part (pass-through context, translation off); caches may then hold nothing.
  bool is_bypass = false;
  bool executable = false;  // of an ATS request that asked to execute: it may
};

enum class Stage : std::uint8_t { Context, Stage1, Stage2 };

// What kind of event a fault row is, in words that hold for every family: software and statistics use these.
enum class FaultClass : std::uint8_t {
  ContextNotPresent,
  ContextInvalid,  // reserved or unsupported settings in a device or process table entry
  NotPresent,
  Permission,
  Reserved,      // malformed page-table entry
  AddressSize,   // input outside what the tables translate
  MemoryAccess,  // the table itself could not be read or written
  Blocked,       // the request type is not allowed here
  Interrupt,     // interrupt remapping
  Command,       // malformed command
};

// One row per architectural fault; families declare their rows in spec.hpp.
struct FaultRow {
  unsigned code = 0;      // as recorded by hardware
  std::string_view name;  // the specification's mnemonic
  FaultClass kind = FaultClass::Blocked;
  bool qualified = false;  // software may suppress recording through the table entry (VT-d FPD and its counterparts)
  std::string_view citation;
  std::string_view meaning;
};

// What the requester is told of a transaction that ends without translation.
enum class Termination : std::uint8_t {
  Abort,
  ReadsZero,  // success: reads give zero, writes are dropped
};

// A transaction that faulted and waits until software resumes it names itself by its requester and this.
using StallTag = std::uint16_t;

struct Fault {
  const FaultRow* row = nullptr;
  Stage stage = Stage::Context;
  Iova address;
  std::optional<Gpa> gpa;  // stage-1 output that stage 2 refused
  Access access = Access::Read;
  RequesterId requester;
  std::optional<Pasid> pasid;
  AddressType type = AddressType::Untranslated;
  bool privileged = false;
  bool execute = false;
  // True when the entry that faulted asks hardware to process but not to record it.
  bool suppressed = false;
  std::optional<Hpa> table_entry{};  // the entry that could not be read or written, where memory failed
  std::uint64_t family_bits = 0;     // what only the family reads back when it records the fault
  Termination termination = Termination::Abort;
  // Set: the transaction is not over; it waits for a StallResolution. Whoever cannot hold transactions terminates it,
  // and withdraws the stall.
  std::optional<StallTag> stall{};
  // The transaction is to stall, but every tag is taken: it waits, unrecorded, until one is free, and is then
  // translated anew. Whoever cannot hold transactions terminates it.
  bool awaits_stall = false;
};

using TranslationResponse = std::variant<Translation, Fault>;

}  // namespace iommu
