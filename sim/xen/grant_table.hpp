// SPDX-License-Identifier: Apache-2.0
// Grants: a domain lets another use pages of its memory. The granting domain writes entries of a table in its own
// memory; the other one maps and unmaps them by hypercall. Where a domain's context 0 shows it nothing by itself, each
// granted frame has an IOMMU entry of its own, 1:1 (dfn = mfn), counted by reading and writing mappings.
//
//   GrantTables grants(xen);
//   grants.set_table(owner, pages);                                   // the owner writes entries there
//   co_await grants.call(cpu, user, kMapGrantRef, arguments, count);  // arguments in the user's memory
//
// [xen/common/grant_table.c: behaviour, not code]
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "sim/xen/grant_abi.hpp"
#include "sim/xen/hypervisor.hpp"

namespace iommu::xen {

struct GrantLimits {
  std::uint32_t table_pages = 64;             // [xen-command-line, gnttab_max_frames]
  std::uint32_t mappings = 1024 * 4096 / 16;  // [xen-command-line, gnttab_max_maptrack_frames; 16 bytes each]
};

struct GrantCounters {
  std::uint64_t map_calls = 0;
  std::uint64_t unmap_calls = 0;
  std::uint64_t maps = 0;           // that succeeded
  std::uint64_t unmaps = 0;         // likewise
  std::uint64_t entry_changes = 0;  // of IOMMU entries: each with a flush of its own
};

class GrantTables {
 public:
  // The hypervisor outlives it.
  explicit GrantTables(Hypervisor& xen, const GrantLimits& limits = {}) : xen_(xen), limits_(limits) {}

  // ASSUMPTION(grants-001): the pages of a table are memory of the domain itself; in Xen they are Xen's, shared with
  // it. Errno::Invalid: not the domain's memory. Errno::TooBig: more than the limit.
  Errno set_table(Domain& domain, std::vector<Gfn> pages);
  // grant_table_op: `count` structures from `arguments` on in the caller's memory; each gets a status of its own.
  Task<std::int64_t> call(CpuPort& cpu, Domain& caller, std::uint32_t command, Gpa arguments, std::uint32_t count);

  [[nodiscard]] const GrantCounters& counters() const { return counters_; }
  void reset_counters() { counters_ = {}; }

 private:
  enum class Use : std::uint8_t { HostWrite, HostRead, DeviceWrite, DeviceRead };
  static constexpr std::size_t kUses = 4;
  // A grant that is mapped: whose it is and how often, by use.
  struct Active {
    DomainId user;
    Mfn frame;
    std::array<std::uint8_t, kUses> pins{};
    [[nodiscard]] bool is_pinned() const;
    [[nodiscard]] bool is_written() const;
    // Xen keeps one bit of each count free and refuses when it is set.
    [[nodiscard]] bool is_near_overflow() const;
  };
  // What one handle of a user stands for; no flags: free.
  struct Mapping {
    std::uint32_t flags = 0;
    DomainId owner;
    std::uint32_t ref = 0;
  };
  // How many mappings of a frame read and write.
  struct FrameUse {
    std::uint32_t readers = 0;
    std::uint32_t writers = 0;
    [[nodiscard]] std::optional<Permissions> permissions() const;
  };
  struct Table {
    std::vector<Gfn> pages;
    std::map<std::uint32_t, Active> active;  // by reference
    std::vector<Mapping> mappings;           // by handle: of others' grants
    std::vector<std::uint32_t> free_handles;
    std::map<Mfn, FrameUse> frames;  // likewise
    SpinLock lock{"grant table"};
  };
  // What an unmap leaves to do once no translation cache knows the frame any more.
  struct Done {
    Domain* owner = nullptr;
    std::uint32_t ref = 0;
    std::uint32_t flags = 0;
  };
  struct Unmapped {
    abi::GrantStatus status = abi::GrantStatus::Okay;
    Done done;
  };
  struct Pinned {
    abi::GrantStatus status = abi::GrantStatus::Okay;
    Mfn frame;
  };

  Table& table_of(const Domain& domain);
  Task<std::int64_t> map(CpuPort& cpu, Domain& caller, Gpa arguments, std::uint32_t count);
  Task<std::int64_t> unmap(CpuPort& cpu, Domain& caller, Gpa arguments, std::uint32_t count);
  Task<abi::MapGrantRef> map_one(CpuPort& cpu, Domain& caller, abi::MapGrantRef request);
  Task<Unmapped> unmap_one(CpuPort& cpu, Domain& caller, abi::UnmapGrantRef request);
  Task<void> complete(CpuPort& cpu, Done done);
  Task<Pinned> pin(CpuPort& cpu, Domain& owner, DomainId user, abi::MapGrantRef request);
  void unpin(Domain& owner, std::uint32_t ref, std::uint32_t flags);
  Task<abi::GrantStatus> mark_entry(CpuPort& cpu, Domain& owner, DomainId user, abi::MapGrantRef request);
  void clear_marks(Domain& owner, std::uint32_t ref);
  Task<abi::GrantStatus> count_use(CpuPort& cpu, Domain& user, Domain& owner, Mfn frame, std::uint32_t flags);
  Task<abi::GrantStatus> uncount_use(CpuPort& cpu, Domain& user, Domain& owner, Mfn frame, std::uint32_t flags);
  Task<Errno> change_entry(CpuPort& cpu, Domain& user, Domain& owner, Mfn frame);
  [[nodiscard]] static std::optional<Gpa> entry_address(const Table& table, std::uint32_t ref);
  [[nodiscard]] std::optional<std::uint32_t> take_handle(Table& table) const;

  Hypervisor& xen_;
  GrantLimits limits_;
  std::map<DomainId, std::unique_ptr<Table>> tables_;
  GrantCounters counters_;
};

}  // namespace iommu::xen
