// SPDX-License-Identifier: Apache-2.0
// A hypervisor that owns the flat tables of its guests: they ask for every entry by call. A window is named by a number
// (LIOBN) and is the table of one bus.
//
//   TceCalls calls(xen, domain);
//   calls.add_window(bus, context);
//   co_await calls.put(cpu, bus, Iova(0x5000), tce);
//
// [Linux 5.3 arch/powerpc/kvm/book3s_64_vio.c: behaviour, not code]
#pragma once

#include <cstdint>
#include <map>
#include <optional>

#include "sim/xen/hypervisor.hpp"
#include "sim/xen/tce_abi.hpp"

namespace iommu::xen {

struct TceCounters {
  std::uint64_t put = 0;
  std::uint64_t put_indirect = 0;
  std::uint64_t stuff = 0;
  std::uint64_t get = 0;
};

class TceCalls {
 public:
  // Both outlive it.
  TceCalls(Hypervisor& xen, Domain& domain) : xen_(xen), domain_(domain) {}
  void add_window(std::uint32_t liobn, IoContext& context) { windows_[liobn] = &context; }

  // H_PUT_TCE. Without rights: the page is unmapped, mapped or not.
  Task<abi::TceStatus> put(CpuPort& cpu, std::uint32_t liobn, Iova address, std::uint64_t tce);
  // H_PUT_TCE_INDIRECT: as many entries from a list in the guest's memory. All are looked at before any is written; one
  // that fails later is cleared, and those before it stay.
  Task<abi::TceStatus> put_indirect(CpuPort& cpu, std::uint32_t liobn, Iova address, Gpa list, std::uint64_t count);
  // H_STUFF_TCE: one value, which has no rights, for all.
  Task<abi::TceStatus> stuff(CpuPort& cpu, std::uint32_t liobn, Iova address, std::uint64_t value, std::uint64_t count);
  struct Got {
    abi::TceStatus status = abi::TceStatus::Success;
    std::uint64_t tce = 0;
  };
  // H_GET_TCE: zero where nothing is mapped.
  Task<Got> get(CpuPort& cpu, std::uint32_t liobn, Iova address);

  [[nodiscard]] const TceCounters& counters() const { return counters_; }
  void reset_counters() { counters_ = {}; }

 private:
  struct Entry {
    Hpa machine;
    Permissions permissions;
  };
  struct Checked {
    abi::TceStatus status = abi::TceStatus::Success;
    std::optional<Entry> entry;  // absent: no rights
  };
  [[nodiscard]] IoContext* find(std::uint32_t liobn) const;
  [[nodiscard]] bool holds(const IoContext& context, Iova address, std::uint64_t count) const;
  [[nodiscard]] Checked check(std::uint64_t tce) const;
  Task<abi::TceStatus> set(CpuPort& cpu, IoContext& context, Iova page, std::optional<Entry> entry);

  Hypervisor& xen_;
  Domain& domain_;
  std::map<std::uint32_t, IoContext*> windows_;
  TceCounters counters_;
};

}  // namespace iommu::xen
