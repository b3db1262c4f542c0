// SPDX-License-Identifier: Apache-2.0
// A Xen domain as far as DMA is concerned: its memory, its devices, its IOMMU contexts.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "sim/base/ids.hpp"
#include "sim/memory/guest_memory.hpp"
#include "sim/xen/fault_throttle.hpp"
#include "sim/xen/io_context.hpp"
#include "sim/xen/p2m.hpp"
#include "sim/xen/table_arena.hpp"

namespace iommu::xen {

enum class Privilege : std::uint8_t { Guest, HardwareDomain };

// How guest memory is backed.
enum class Backing : std::uint8_t {
  Contiguous,  // as few extents as alignment allows
  Fragmented,  // pages of `page_lg2`, scattered
};

// What context 0 lets devices reach.
enum class DefaultContext : std::uint8_t {
  Identity,  // the domain's memory, at its guest-physical addresses
  Blocked,   // nothing but reserved regions
};

// Pv: its guest frames are machine frames. Hvm, PVH included: numbers of its own, from 0.
enum class DomainType : std::uint8_t { Hvm, Pv };

// What context 0 of the hardware domain shows. [xen-command-line, dom0-iommu]
enum class HardwareDomainMode : std::uint8_t {
  Strict,       // its own memory, kept in step with it; the only mode of an Hvm domain, and of every guest
  Relaxed,      // all host memory but what Xen had taken when it was created; never changes
  Passthrough,  // everything: its devices' requests are not translated
};

struct DomainSetting {
  std::string name;
  Bytes memory;
  Privilege privilege = Privilege::Guest;
  bool has_iommu = true;
  bool may_use_pv_iommu = true;
  Backing backing = Backing::Contiguous;
  unsigned page_lg2 = kPageLg2;  // 12, 21 or 30: largest page of the p2m, and of context 0
  DefaultContext default_context = DefaultContext::Identity;
  DomainType type = DomainType::Hvm;
  HardwareDomainMode hardware_mode = HardwareDomainMode::Strict;
};

enum class DeviceClass : std::uint8_t { Endpoint, Bridge };

struct DeviceSetting {
  RequesterId requester;
  std::size_t unit = 0;  // the physical unit in front of it
  DeviceClass device_class = DeviceClass::Endpoint;
  // Functions whose requests carry another id but belong to this device; they are attached with it.
  std::vector<RequesterId> phantom_functions{};
  std::vector<ReservedRegion> reserved{};
  bool device_tlb = false;  // uses ATS
  // The id under which the unit sees its requests where it is not the device's own, as behind a bridge that puts its id
  // there. Other devices may have it as well; the unit's one entry for it leads where the last one attached does.
  std::optional<RequesterId> shared_id{};
  // Devices that nothing isolates from one another have the same; nullopt: it is isolated from all.
  std::optional<std::size_t> group{};

  // All requester ids that are programmed for it alone. Bridges are accepted, but nothing is programmed for them.
  [[nodiscard]] std::vector<RequesterId> functions() const {
    if (device_class == DeviceClass::Bridge) return {};
    std::vector<RequesterId> all{requester};
    all.insert(all.end(), phantom_functions.begin(), phantom_functions.end());
    if (shared_id) std::erase(all, *shared_id);
    return all;
  }
  // All ids under which the unit may see its requests.
  [[nodiscard]] std::vector<RequesterId> seen_ids() const {
    std::vector<RequesterId> all = functions();
    if (shared_id) all.push_back(*shared_id);
    return all;
  }
};

struct AssignedDevice {
  DeviceSetting setting;
  IoContext* context = nullptr;
  FaultThrottle faults{};
};

// PV-IOMMU state, from the guest's init call on.
struct PvState {
  std::uint16_t contexts = 0;  // how many may exist beside context 0
  std::unique_ptr<TableArena> arena;
  unsigned arena_order = 0;
  std::vector<std::unique_ptr<IoContext>> slots;  // index: number - 1
};

struct Domain {
  Domain(DomainId domain_id, DomainSetting domain_setting, HostMemory& host)
      : id(domain_id), setting(std::move(domain_setting)), memory(host, p2m) {}

  DomainId id;
  DomainSetting setting;
  P2m p2m;
  GuestMemory memory;
  // Excludes changes of the p2m from one another. Lookups take no lock here: Xen's is a reader-writer lock, and readers
  // do not exclude each other.
  SpinLock p2m_lock{"p2m"};
  // Early versions of the hypercall hold it over every operation on contexts.
  SpinLock pv_lock{"pv contexts"};
  std::map<RequesterId, AssignedDevice> devices;
  std::unique_ptr<IoContext> default_context;  // null only on a machine without units
  std::optional<PvState> pv;
  // Contexts that Xen made for virtual units; they have no number the guest could name.
  std::vector<std::unique_ptr<IoContext>> private_contexts;
  // Freed, but a vCPU may still wait for their lock and must find them dying.
  std::vector<std::unique_ptr<IoContext>> retired_contexts;
  bool crashed = false;
};

// What cannot be mended is a guest's end; the hardware domain is told and goes on.
inline void crash_guest(Domain& domain) {
  if (domain.setting.privilege != Privilege::HardwareDomain) domain.crashed = true;
}

}  // namespace iommu::xen
