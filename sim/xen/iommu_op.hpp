// SPDX-License-Identifier: Apache-2.0
// The iommu_op hypercall: a guest's way to IOMMU contexts of its own. [PV-IOMMU RFC v7]
//
// Where the RFC's code departs from its own header or design, the header and design are followed:
//   init allocates no context and can be retried after -ENOMEM; more than 65534 contexts are -E2BIG; a context that
//   could not be freed stays usable; map and unmap stop at the first reserved page; a mapping without permissions and
//   an unsupported page size are -EINVAL; addresses beyond the reported limit are -EADDRNOTAVAIL; unknown flags are
//   refused; a remote command obeys the target's permission. An existing mapping is -EADDRINUSE, as in the code
//   (header: -EINVAL). `mapped` and `unmapped` add up over slices, so callers zero them.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "sim/xen/hypervisor.hpp"
#include "sim/xen/iommu_op_abi.hpp"
#include "sim/xen/pv_contexts.hpp"

namespace iommu::xen {

enum class DeferredFlush : std::uint8_t { Unavailable, Offered };
enum class Batching : std::uint8_t { Unavailable, Offered };
enum class ScatteredMap : std::uint8_t { Unavailable, Offered };

// What a map that fails tells: how much of it is there, or, with everything undone, which address was refused.
enum class ErrorReport : std::uint8_t { Count, Address };

// Of devices that a guest may move to contexts of its own; the hardware domain may move all that it has.
struct BusRange {
  std::uint8_t first = 0;
  std::uint8_t last = 0xff;
  [[nodiscard]] constexpr bool contains(unsigned bus) const { return first <= bus && bus <= last; }
  [[nodiscard]] constexpr bool is_all() const { return first == 0 && last == 0xff; }
};

// Which pages a call may name. The RFC's code takes 4 KiB ones only; its header has the size.
enum class PageOrder : std::uint8_t { Single, Explicit };

// What a map, an unmap or a flush excludes while it works, its flush included.
enum class LockGranularity : std::uint8_t {
  Context,  // others of the same context [RFC v4 and later]
  Domain,   // of the same domain [RFC v1 to v3]
  Iommu,    // of any context that a device behind the same unit uses
};

// What Xen offers beyond the RFC, and how it works.
struct IommuOpOptions {
  DeferredFlush deferred = DeferredFlush::Unavailable;
  Batching batching = Batching::Unavailable;
  ScatteredMap scattered = ScatteredMap::Unavailable;
  PageOrder page_order = PageOrder::Single;
  LockGranularity lock = LockGranularity::Context;
  ErrorReport error_report = ErrorReport::Count;
  BusRange buses{};
};

class IommuOp {
 public:
  IommuOp(Hypervisor& xen, const IommuOpOptions& options) : xen_(xen), contexts_(xen), options_(options) {}
  IommuOp(Hypervisor& xen, DeferredFlush deferred) : IommuOp(xen, IommuOpOptions{.deferred = deferred}) {}

  // The hypercall as the caller's vCPU executes it: trap, work, return value (0 or a negative Errno). `argument` is the
  // guest-physical address of the sub-operation's structure.
  Task<std::int64_t> call(CpuPort& cpu, Domain& caller, std::uint32_t subop, Gpa argument);

  struct Counters {
    std::array<std::uint64_t, abi::kRfcSubops> by_subop{};  // unmap_pages: deferred ones included
    std::uint64_t flush_context = 0;
    std::uint64_t batch = 0;
    std::uint64_t map_scattered = 0;
    std::uint64_t query_buses = 0;
    std::uint64_t batched_operations = 0;  // tried, in all batches
    std::uint64_t unknown = 0;
    std::uint64_t continuations = 0;
    [[nodiscard]] std::uint64_t total() const;
    [[nodiscard]] std::uint64_t of(abi::Subop subop) const { return by_subop[static_cast<std::size_t>(subop)]; }
  };
  [[nodiscard]] const Counters& counters() const { return counters_; }
  void reset_counters() { counters_ = {}; }

 private:
  // Whose contexts and frames an operation concerns, and in whose memory its argument lies.
  struct Call {
    Domain& caller;
    Domain& target;
    Gpa argument;
  };
  void count(std::uint32_t subop);
  Task<Errno> dispatch(CpuPort& cpu, Call call, std::uint32_t subop);
  Task<Errno> remote(CpuPort& cpu, Call call);
  Errno query(Call call) const;
  Errno query_buses(Call call) const;
  Errno init(Call call);
  Errno alloc_context(Call call);
  Task<Errno> free_context(CpuPort& cpu, Call call);
  Task<Errno> reattach_device(CpuPort& cpu, Call call);
  Task<Errno> map_pages(CpuPort& cpu, Call call);
  Task<Errno> unmap_pages(CpuPort& cpu, Call call, UnmapFlush flush);
  Task<Errno> flush_context(CpuPort& cpu, Call call);
  Task<Errno> batch(CpuPort& cpu, Call call);
  struct Sliced {
    Errno status = Errno::Ok;
    std::uint32_t operations = 0;
  };
  Task<Sliced> batch_slice(CpuPort& cpu, Call call, abi::Batch request);
  // One operation that is larger than a slice may be.
  Task<PagesDone> in_slices(CpuPort& cpu, Domain& domain, std::uint16_t context_number, PageOperation whole);
  Task<Errno> map_scattered(CpuPort& cpu, Call call);

  // Sizes that a call may name, each a bit.
  [[nodiscard]] std::uint32_t page_sizes() const;
  // log2 of a size that a call may name; nullopt: it may not.
  [[nodiscard]] std::optional<unsigned> page_lg2(std::uint32_t pgsize) const;
  [[nodiscard]] static bool is_aligned(std::uint64_t frames, unsigned order) {
    return (frames & ((1ULL << order) - 1)) == 0;
  }
  [[nodiscard]] BusRange buses_of(const Domain& domain) const;
  // Undoing needs no table only where pages are not merged.
  [[nodiscard]] bool can_undo() const;
  struct MapFlags {
    Permissions permissions;
    PartialMap partial = PartialMap::Kept;
  };
  [[nodiscard]] std::optional<MapFlags> map_flags_of(std::uint32_t map_flags) const;
  [[nodiscard]] std::optional<PageOperation> operation_of(const abi::BatchOp& op) const;
  // Units of 2^page_lg2 bytes that one slice may handle.
  [[nodiscard]] std::uint64_t slice_units(unsigned page_lg2) const;

  // Operations on a context under what the granularity excludes.
  Task<std::vector<PagesDone>> change(CpuPort& cpu, Domain& domain, IoContext& context,
                                      std::vector<PageOperation> operations, AfterRefusal after);
  Task<Errno> flush(CpuPort& cpu, Domain& domain, IoContext& context);
  Task<Errno> retry_flush(CpuPort& cpu, Domain& domain, IoContext& context);
  [[nodiscard]] std::vector<SpinLock*> locks_of(Domain& domain, const IoContext& context);
  // The guest executes the hypercall again, on its structure as it is now.
  Task<void> continue_call(CpuPort& cpu);

  Hypervisor& xen_;
  PvContexts contexts_;
  IommuOpOptions options_;
  Counters counters_;
};

}  // namespace iommu::xen
