// SPDX-License-Identifier: Apache-2.0
// What a virtio-iommu manages: its endpoints, the domains that they are attached to (here: spaces, for Xen's domains
// are something else), and the mappings of each. A space with a physical endpoint inside has a real IOMMU context of
// its own, with machine frames and page references; virtual endpoints are translated by software, from the same
// mappings. [VIRTIO 1.3 §5.13.6] Or a space has tables of the driver's own, over which the unit nests: then its context
// has a first stage and no mappings.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <variant>
#include <vector>

#include "sim/virtio/iommu_abi.hpp"
#include "sim/xen/hypervisor.hpp"
#include "sim/xen/nested_contexts.hpp"
#include "sim/xen/virtual_unit.hpp"

namespace iommu::xen {

// Physical: an assigned device behind a hardware unit. Virtual: emulated by software, which asks translate().
enum class EndpointKind : std::uint8_t { Physical, Virtual };
enum class SpaceKind : std::uint8_t { Translated, Bypass, Tables };
// What endpoints reach that are attached to no space.
enum class Unattached : std::uint8_t { Blocked, Bypass };

struct VirtioSpacesSetting {
  // DeviceModel: each change of a real context is a call from user space.
  TrapTarget placement = TrapTarget::Xen;
  Unattached unattached = Unattached::Bypass;
  // Input addresses that no table translates.
  std::vector<AddressRange> interrupt_windows{};
  // Of all spaces together; more are refused, for they are host memory. [linux drivers/vfio/vfio_iommu_type1.c,
  // dma_entry_limit]
  std::uint64_t most_mappings = 65535;
};

// Addresses that a driver may not map for an endpoint.
struct ReservedAddresses {
  AddressRange range;
  virtio::ReservedMemory kind = virtio::ReservedMemory::Reserved;
};

class VirtioSpaces {
 public:
  using Status = virtio::RequestStatus;

  // Both outlive it. Units are up.
  VirtioSpaces(Hypervisor& xen, Domain& domain, VirtioSpacesSetting setting);

  // A device of the domain comes under the virtio-iommu's management, attached to nothing. Errno::NoDevice: it is not
  // the domain's; Busy: it is here already.
  Task<Errno> add_endpoint(CpuPort& cpu, RequesterId endpoint, EndpointKind kind);

  // Requests. Endpoints are named as the guest names them. A space has one set of tables: another one may only replace
  // it while no other endpoint is inside.
  Task<Status> attach(CpuPort& cpu, std::uint32_t space, std::uint32_t endpoint, SpaceKind kind,
                      GuestStage1 tables = {});
  // Of a space with tables: scopes of kind Iotlb and ProcessContext, in no tags but those of address spaces. Nothing
  // matching is cached any more when it returns, by the devices inside neither.
  Task<Status> invalidate(CpuPort& cpu, std::uint32_t space, std::vector<InvalidationScope> scopes);
  Task<Status> detach(CpuPort& cpu, std::uint32_t space, std::uint32_t endpoint);
  // The flags are known ones.
  Task<Status> map(CpuPort& cpu, virtio::MapRequest request);
  Task<Status> unmap(CpuPort& cpu, virtio::UnmapRequest request);
  // Ascending and disjoint; nullopt: no such endpoint.
  [[nodiscard]] std::optional<std::vector<ReservedAddresses>> reserved(std::uint32_t endpoint) const;

  Task<void> set_unattached(CpuPort& cpu, Unattached unattached);
  [[nodiscard]] Unattached unattached() const { return setting_.unattached; }
  // Every endpoint is attached to nothing.
  Task<void> detach_all(CpuPort& cpu);

  // Where an access of an endpoint leads, by what the driver mapped: for endpoints without a unit in front of them, and
  // for saying why a unit refused one.
  [[nodiscard]] std::variant<Gpa, virtio::FaultReason> translate(RequesterId endpoint, Iova address,
                                                                 Access access) const;

  [[nodiscard]] std::uint64_t page_sizes() const;
  // Of tables of a driver's own.
  [[nodiscard]] std::uint64_t table_page_sizes() const;
  [[nodiscard]] std::uint64_t last_input() const;
  [[nodiscard]] std::uint64_t mappings() const { return mappings_; }
  // Null: no such space, or nothing physical inside.
  [[nodiscard]] const IoContext* context_of(std::uint32_t space) const;
  [[nodiscard]] std::size_t spaces() const { return spaces_.size(); }

 private:
  struct Mapping {
    std::uint64_t last = 0;
    std::uint64_t physical = 0;
    std::uint32_t flags = 0;
  };
  using Mappings = std::map<std::uint64_t, Mapping>;  // by first address; disjoint
  struct Space {
    SpaceKind kind = SpaceKind::Translated;
    Mappings mappings{};
    GuestStage1 tables{};          // Tables
    IoContext* context = nullptr;  // from the first physical endpoint on
    std::uint32_t endpoints = 0;
  };
  struct Endpoint {
    RequesterId requester;
    EndpointKind kind = EndpointKind::Physical;
    std::optional<std::uint32_t> space{};
  };
  // Guest memory as machine memory, and how many entries of the p2m that took.
  struct Backing {
    std::vector<Hypervisor::Piece> pieces;
    std::uint64_t lookups = 0;
  };

  // Private contexts have no number that a guest could name.
  static constexpr ContextNumber kPrivateNumber{0xffff};
  [[nodiscard]] static Status to_status(Errno error);
  [[nodiscard]] Endpoint* find(std::uint32_t endpoint);
  [[nodiscard]] Status check(const Space& space, const virtio::MapRequest& request) const;
  [[nodiscard]] static bool has_mapping(const Mappings& mappings, AddressRange range);
  [[nodiscard]] bool is_reserved(const Space& space, AddressRange range) const;
  [[nodiscard]] std::optional<Backing> backing(std::uint64_t first, const Mapping& mapping) const;
  Task<Status> install(CpuPort& cpu, Space& space, std::uint64_t first, Mapping mapping);
  Task<Status> remove(CpuPort& cpu, Space& space, std::vector<AddressRange> ranges);
  Task<Status> enter(CpuPort& cpu, Endpoint& endpoint, Space& space);
  Task<Status> make_real(CpuPort& cpu, Space& space);
  Task<Status> make_nested(CpuPort& cpu, Space& space);
  Task<Status> exchange_tables(CpuPort& cpu, Space& space, GuestStage1 tables);
  Task<Errno> invalidate_on(CpuPort& cpu, const Space& space, std::size_t unit, std::vector<InvalidationScope> scopes);
  Task<void> abandon(CpuPort& cpu, std::uint32_t space);
  Task<void> drop_context(CpuPort& cpu, IoContext& context);
  Task<void> set_free(CpuPort& cpu, Endpoint& endpoint);
  Task<void> place_unattached(CpuPort& cpu, Endpoint& endpoint);
  Task<Status> move(CpuPort& cpu, Endpoint& endpoint, IoContext& context);
  Task<void> charge_call(CpuPort& cpu);
  Errno make_blocked_context();

  Hypervisor& xen_;
  Domain& domain_;
  VirtioSpacesSetting setting_;
  std::deque<Endpoint> endpoints_;  // they stay in place
  std::map<std::uint32_t, Space> spaces_;
  std::uint64_t mappings_ = 0;
  IoContext* blocked_ = nullptr;  // an empty context
};

}  // namespace iommu::xen
