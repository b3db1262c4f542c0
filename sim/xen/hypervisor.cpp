// SPDX-License-Identifier: Apache-2.0
#include "sim/xen/hypervisor.hpp"

#include <algorithm>
#include <bit>
#include <iterator>
#include <utility>

#include "sim/base/check.hpp"
#include "sim/base/rng.hpp"

namespace iommu::xen {

namespace {
constexpr unsigned kLargestBlockOrder = 18;           // 1 GiB
constexpr std::size_t kFirstReservedDomain = 0x7ff0;  // [xen/include/public/xen.h, DOMID_FIRST_RESERVED]

struct Block {
  Mfn first;
  unsigned order = 0;
};

// Host memory for `pages`, largest blocks first; empty when there is not enough.
std::vector<Block> allocate_blocks(FrameAllocator& frames, std::uint64_t pages) {
  std::vector<Block> blocks;
  unsigned order = kLargestBlockOrder;
  while (pages != 0) {
    order = std::min(order, static_cast<unsigned>(std::bit_width(pages) - 1));
    const auto first = frames.allocate(order);
    if (first) {
      blocks.push_back({*first, order});
      pages -= 1ULL << order;
    } else if (order == 0) {
      for (const Block& block : blocks) static_cast<void>(frames.release(block.first, block.order));
      return {};
    } else {
      --order;
    }
  }
  return blocks;
}

// Blocks cut to at most `order` and put in a random order, so that neighbours in the guest are strangers in the
// machine.
std::vector<Block> scatter(const std::vector<Block>& blocks, unsigned order, Rng& rng) {
  std::vector<Block> pieces;
  for (const Block& block : blocks) {
    const unsigned piece = std::min(block.order, order);
    for (std::uint64_t i = 0; i < 1ULL << (block.order - piece); ++i)
      pieces.push_back({block.first + (i << piece), piece});
  }
  for (std::size_t i = pieces.size(); i > 1; --i) std::swap(pieces[i - 1], pieces[rng.below(i)]);
  // Larger ones first keeps every piece aligned to its size in guest memory as well.
  std::vector<Block> ordered;
  for (unsigned size = order + 1; size-- > 0;)
    std::copy_if(pieces.begin(), pieces.end(), std::back_inserter(ordered),
                 [size](const Block& piece) { return piece.order == size; });
  return ordered;
}
}  // namespace

Hypervisor::Hypervisor(HostMemory& memory, FrameAllocator& frames, const HypervisorOptions& options)
    : memory_(memory), frames_(frames), options_(options), heap_(memory, frames) {
  SIM_CHECK(options.slice_pages > 0, "a slice makes progress");
}

Hypervisor::~Hypervisor() = default;

PhysicalUnit& Hypervisor::add_unit(const PhysicalUnitSetting& setting, MmioPort& registers) {
  SIM_CHECK(domains_.empty(), "units exist before domains, which hold a tag on each");
  units_.push_back(std::make_unique<PhysicalUnit>(setting, registers, memory_, frames_));
  return *units_.back();
}

Task<Errno> Hypervisor::bring_up(CpuPort& cpu) {
  for (const auto& unit : units_) {
    const Errno status = co_await unit->bring_up(cpu);
    if (status != Errno::Ok) co_return status;
  }
  co_return Errno::Ok;
}

std::string_view Hypervisor::refusal(const DomainSetting& setting) const {
  if (domains_.size() >= kFirstReservedDomain) return "no domain number is left";
  const bool is_hardware = setting.privilege == Privilege::HardwareDomain;
  if (is_hardware && std::any_of(domains_.begin(), domains_.end(), [](const auto& domain) {
        return domain->setting.privilege == Privilege::HardwareDomain;
      }))
    return "there is a hardware domain already";
  if (setting.hardware_mode == HardwareDomainMode::Strict) return {};
  if (!is_hardware) return "only the hardware domain may be other than strict";
  if (setting.default_context == DefaultContext::Blocked) return "a blocked context 0 is strict";
  if (setting.hardware_mode == HardwareDomainMode::Passthrough && setting.type == DomainType::Hvm)
    return "a hardware domain with frame numbers of its own cannot do without translation";
  return {};
}

Domain* Hypervisor::create_domain(const DomainSetting& wanted) {
  if (!refusal(wanted).empty()) return nullptr;
  DomainSetting setting = wanted;
  // Relaxed or not is no question for a domain whose frame numbers are its own. [xen/drivers/passthrough/iommu.c,
  // check_hwdom_reqs()]
  if (setting.type == DomainType::Hvm) setting.hardware_mode = HardwareDomainMode::Strict;
  const DomainId id(static_cast<std::uint16_t>(domains_.size()));
  auto domain = std::make_unique<Domain>(id, setting, memory_);
  if (!populate(*domain) || !build_default_context(*domain)) {
    destroy_unborn(*domain);
    return nullptr;
  }
  domains_.push_back(std::move(domain));
  return domains_.back().get();
}

bool Hypervisor::populate(Domain& domain) {
  const std::uint64_t pages = domain.setting.memory.value() >> kPageLg2;
  std::vector<Block> blocks = allocate_blocks(frames_, pages);
  if (blocks.empty() && pages != 0) return false;
  if (domain.setting.backing == Backing::Fragmented) {
    Rng rng(options_.seed, "p2m");
    blocks = scatter(blocks, domain.setting.page_lg2 - kPageLg2, rng);
  }
  Gfn next;
  for (const Block& block : blocks) {
    const std::uint64_t count = 1ULL << block.order;
    if (domain.setting.type == DomainType::Pv) next = Gfn(block.first.value());
    domain.p2m.add({next, count, block.first, FrameType::Ram});
    next = next + count;
  }
  return true;
}

bool Hypervisor::build_default_context(Domain& domain) {
  if (units_.empty()) return true;
  const HardwareDomainMode mode = domain.setting.hardware_mode;
  const ContextKind kind = mode == HardwareDomainMode::Passthrough ? ContextKind::Bypass : ContextKind::Stage2;
  NewContext made = make_context(ContextNumber(0), kind, heap_);
  if (made.status != Errno::Ok) return false;
  domain.default_context = std::move(made.context);
  if (domain.setting.default_context == DefaultContext::Blocked || kind == ContextKind::Bypass) return true;
  std::vector<P2mExtent> shown = domain.p2m.extents();
  // What Xen takes later, for tables of other domains, is shown as well: relaxed means no more than that Xen's own
  // image is out of reach. [xen/drivers/passthrough/x86/iommu.c, hwdom_iommu_map()]
  if (mode == HardwareDomainMode::Relaxed)
    for (const auto& [first, frames] : frames_.free_runs()) shown.push_back({Gfn(first.value()), frames, first});
  return std::all_of(shown.begin(), shown.end(), [&](const P2mExtent& extent) { return map_identity(domain, extent); });
}

bool Hypervisor::map_identity(Domain& domain, const P2mExtent& extent) {
  const TableEdit edit = domain.default_context->table->map({.input = extent.first.address().value(),
                                                             .output = extent.machine.address().value(),
                                                             .length = kPageSize * extent.pages,
                                                             .permissions = kReadWrite,
                                                             .max_page_lg2 = domain.setting.page_lg2});
  return edit.status == EditStatus::Ok;
}

// No device has seen anything of it.
void Hypervisor::destroy_unborn(Domain& domain) {
  if (IoContext* context = domain.default_context.get(); context != nullptr) {
    if (context->table)
      for (const std::uint64_t page : context->table->detach_all_tables()) context->table_memory->release(page);
    release_tags(*context);
  }
  for (const P2mExtent& extent : domain.p2m.extents())
    for (std::uint64_t i = 0; i < extent.pages; ++i) {
      const bool released = frames_.release(extent.machine + i);
      SIM_CHECK(released, "a domain's memory was allocated for it");
    }
}

Domain* Hypervisor::find_domain(DomainId id) {
  const auto found = std::find_if(domains_.begin(), domains_.end(), [&](const auto& d) { return d->id == id; });
  return found == domains_.end() ? nullptr : found->get();
}

// Whether one of a device's requester ids is somebody's already.
bool Hypervisor::is_taken(const DeviceSetting& device) const {
  const std::vector<RequesterId> wanted = device.functions();
  for (const auto& domain : domains_) {
    if (domain->devices.contains(device.requester)) return true;
    for (const auto& [requester, assigned] : domain->devices) {
      const std::vector<RequesterId> there = assigned.setting.functions();
      if (std::find_first_of(wanted.begin(), wanted.end(), there.begin(), there.end()) != wanted.end()) return true;
    }
  }
  return false;
}

bool Hypervisor::divides_group(const Domain& domain, const DeviceSetting& device) const {
  if (!device.group || options_.group_split == GroupSplit::Permitted) return false;
  return std::any_of(domains_.begin(), domains_.end(), [&](const auto& other) {
    return other.get() != &domain && std::any_of(other->devices.begin(), other->devices.end(), [&](const auto& there) {
             return there.first != device.requester && there.second.setting.group == device.group;
           });
  });
}

bool Hypervisor::has_sound_regions(const DeviceSetting& device) const {
  const std::uint64_t last = last_dfn().value();
  return std::all_of(device.reserved.begin(), device.reserved.end(), [last](const ReservedRegion& region) {
    return region.pages != 0 && region.first.value() <= last && region.pages - 1 <= last - region.first.value();
  });
}

Task<Errno> Hypervisor::assign_device(CpuPort& cpu, Domain& domain, DeviceSetting device) {
  if (device.unit >= units_.size() || !domain.default_context) co_return Errno::NoDevice;
  if (!has_sound_regions(device)) co_return Errno::Invalid;
  if (is_taken(device)) co_return Errno::Busy;
  if (divides_group(domain, device)) co_return Errno::NotPermitted;
  const RequesterId requester = device.requester;
  domain.devices[requester] = AssignedDevice{std::move(device), nullptr};
  Errno status = co_await settle_owed_fence(cpu, requester);
  if (status == Errno::Ok) {
    co_await release_from_quarantine(cpu, requester);
    status = co_await reattach(cpu, domain, requester, *domain.default_context);
  }
  if (status != Errno::Ok) domain.devices.erase(requester);
  co_return status;
}

Task<Errno> Hypervisor::move_device(CpuPort& cpu, Domain& from, Domain& to, RequesterId device) {
  const auto found = from.devices.find(device);
  if (found == from.devices.end()) co_return Errno::NoDevice;
  const DeviceSetting setting = found->second.setting;
  if (divides_group(to, setting)) co_return Errno::NotPermitted;
  const Errno left = co_await deassign_device(cpu, from, device);
  if (left != Errno::Ok) co_return left;
  co_return co_await assign_device(cpu, to, setting);
}

Dfn Hypervisor::last_dfn() const {
  std::uint64_t last = ~0ULL;
  for (const auto& unit : units_) last = std::min(last, unit->driver().max_input(TableKind::Stage2));
  return Dfn(Iova(last));
}

std::uint64_t Hypervisor::table_bytes() const {
  std::uint64_t pages = 0;
  const auto add = [&](const IoContext* context) {
    if (context != nullptr && context->table) pages += context->table->table_pages();
  };
  for (const auto& unit : units_) pages += unit->table_pages();
  for (const auto& domain : domains_) {
    add(domain->default_context.get());
    for (const auto& context : domain->private_contexts) add(context.get());
    if (!domain->pv) continue;
    for (const auto& context : domain->pv->slots) add(context.get());
  }
  for (const auto& [device, scratch] : quarantined_)
    for (const auto& [address, pages_lg2] : scratch.tables) pages += 1ULL << pages_lg2;
  return pages << kPageLg2;
}

}  // namespace iommu::xen
