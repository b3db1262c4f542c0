// SPDX-License-Identifier: Apache-2.0
// The warden knows what software believes about every page a device may reach, and checks every DMA that memory accepts
// against it. It takes no part in the simulation.
//
// A page is free; or being mapped (the tables may show it already, the device may use it); or mapped to one machine
// frame with permissions; or unmapped and awaiting its fence. A DMA to an awaiting page is *stale*: the hazard that
// deferred invalidation leaves open. A DMA to a free page, to another frame, or without permission is a *violation*:
// somebody's bug, and the run must fail. Software that invalidates late may map a page anew before its fence: DMA that
// still reaches the frame of an earlier mapping is stale until that fence.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "sim/guest/dma_space.hpp"
#include "sim/memory/guest_memory.hpp"
#include "sim/pcie/dma_port.hpp"

namespace iommu::strategy {

// What a device's addresses mean when software maps nothing.
enum class Addressing : std::uint8_t { Mapped, GuestPhysical };

enum class ViolationKind : std::uint8_t { NotMapped, WrongFrame, NoPermission, UnknownDevice };

struct Violation {
  ViolationKind kind = ViolationKind::NotMapped;
  Picoseconds time;
  RequesterId device;
  Iova address;
  Hpa target;
  Access access = Access::Read;
  [[nodiscard]] std::string describe() const;
};

struct WardenReport {
  std::uint64_t checked = 0;  // pages of DMAs
  std::uint64_t stale = 0;    // of them through an unmapped page before its fence
  std::uint64_t violations = 0;
  // Of devices that tolerate() names: pages that nothing of the device's own domain leads to, and of them those of
  // another domain's memory. Never violations.
  std::uint64_t strayed = 0;
  std::uint64_t foreign = 0;
  Picoseconds stale_age_max;  // unmap to DMA
  double stale_age_mean_ps = 0;
  // From unmap to fence, for every page that was unmapped, used meanwhile or not.
  std::uint64_t exposures = 0;
  Picoseconds exposure_max;
  double exposure_mean_ps = 0;
  std::optional<Violation> first_violation;
};

// Being mapped: the device may use it already. AwaitingFence: it must not any more, but still can.
enum class PageState : std::uint8_t { Mapping, Mapped, AwaitingFence };

// What software believes about one page of a device.
struct PageTruth {
  PageState state = PageState::Mapped;
  Permissions permissions;
  Mfn frame;
};

// Pages that follow one another with equal state and rights.
struct MappedPages {
  Iova first;
  std::uint64_t pages = 0;
  PageState state = PageState::Mapped;
  Permissions permissions;
};

class Warden final : public DmaObserver, public guest::MappingObserver {
 public:
  // `frames` says which machine frame backs the guest's memory; it outlives the warden.
  void add_device(RequesterId device, const FrameMap& frames, Addressing addressing);

  // The device uses what is mapped for `other`, a device of the warden already: both have one requester id.
  void add_sibling(RequesterId device, RequesterId other);
  // The device shares a requester id with a device of another domain, and somebody has decided to live with that: what
  // it reaches through the other's tables is counted. `is_foreign` says whether a frame is another domain's memory.
  using IsForeign = std::function<bool(Mfn frame)>;
  void tolerate(RequesterId device, IsForeign is_foreign);

  void on_map_called(Picoseconds now, RequesterId device, guest::MapSegment segment) override;
  void on_mapped(Picoseconds now, RequesterId device, guest::IovaRange range) override;
  void on_unmap_called(Picoseconds now, RequesterId device, guest::IovaRange range) override;
  void on_fenced(Picoseconds now, RequesterId device, guest::IovaRange range) override;
  void on_dma(Picoseconds now, RequesterId requester, std::optional<Pasid> pasid, Iova iova, Hpa target, Bytes length,
              Access access) override;

  [[nodiscard]] WardenReport report() const;
  // What is mapped, in ascending order; nothing for a device whose addresses are guest-physical.
  [[nodiscard]] std::vector<MappedPages> mapped(RequesterId device) const;
  // nullopt: free, or outside the guest's memory.
  [[nodiscard]] std::optional<PageTruth> truth(RequesterId device, Iova address) const;
  // Forgets counts, keeps the truth: a report then covers what follows (after a warm-up). Violations are kept.
  void reset_counts();

 private:
  using State = PageState;
  struct Page {
    State state = State::Mapping;
    Permissions permissions;
    Mfn frame;
    Picoseconds unmapped;
  };
  // An earlier mapping of a page that is mapped anew before its fence.
  struct Former {
    Permissions permissions;
    Mfn frame;
    Picoseconds unmapped;
  };
  struct Device {
    const FrameMap* frames = nullptr;
    Addressing addressing = Addressing::Mapped;
    std::unordered_map<Dfn, Page> pages;
    std::unordered_multimap<Dfn, Former> former;
    IsForeign is_foreign{};  // empty: nothing is tolerated
  };
  struct Ages {
    std::uint64_t count = 0;
    double sum_ps = 0;
    Picoseconds max;
    void add(Picoseconds age);
  };
  void check_page(Picoseconds now, Device& device, const Violation& where);
  // A former mapping that allows it; null: there is none.
  [[nodiscard]] static const Former* find_former(const Device& device, const Violation& where);
  void violate(const Device& device, const Violation& violation, ViolationKind kind);
  void violate(Violation violation, ViolationKind kind);
  Device* find(RequesterId device);
  [[nodiscard]] const Device* find(RequesterId device) const;

  std::unordered_map<RequesterId, Device> devices_;
  std::unordered_map<RequesterId, RequesterId> siblings_;
  std::uint64_t checked_ = 0;
  std::uint64_t violations_ = 0;
  std::uint64_t strayed_ = 0;
  std::uint64_t foreign_ = 0;
  Ages stale_;
  Ages exposure_;
  std::optional<Violation> first_violation_;
};

}  // namespace iommu::strategy
