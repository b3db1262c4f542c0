// SPDX-License-Identifier: Apache-2.0
#include "sim/strategy/warden.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <string_view>
#include <utility>

namespace iommu::strategy {

namespace {
constexpr std::array<std::string_view, 4> kViolationNames{"page not mapped", "wrong frame", "no permission",
                                                          "unknown device"};
}  // namespace

std::string Violation::describe() const {
  std::array<char, 160> text{};
  std::snprintf(text.data(), text.size(), "%s: %s of %#llx by %02x:%02x.%u reached %#llx at %.3f ns",
                kViolationNames[static_cast<std::size_t>(kind)].data(), access == Access::Read ? "read" : "write",
                static_cast<unsigned long long>(address.value()), device.bus(), device.device(), device.function(),
                static_cast<unsigned long long>(target.value()), to_ns(time));
  return text.data();
}

void Warden::Ages::add(Picoseconds age) {
  ++count;
  sum_ps += static_cast<double>(age.value());
  max = std::max(max, age);
}

void Warden::add_device(RequesterId device, const FrameMap& frames, Addressing addressing) {
  devices_[device] = Device{&frames, addressing, {}, {}, {}};
}

void Warden::add_sibling(RequesterId device, RequesterId other) { siblings_[device] = other; }

void Warden::tolerate(RequesterId device, IsForeign is_foreign) {
  if (Device* known = find(device); known != nullptr) known->is_foreign = std::move(is_foreign);
}

Warden::Device* Warden::find(RequesterId device) {
  return const_cast<Device*>(std::as_const(*this).find(device));  // NOLINT(cppcoreguidelines-pro-type-const-cast)
}

const Warden::Device* Warden::find(RequesterId device) const {
  const auto sibling = siblings_.find(device);
  const auto found = devices_.find(sibling == siblings_.end() ? device : sibling->second);
  return found == devices_.end() ? nullptr : &found->second;
}

void Warden::on_map_called(Picoseconds, RequesterId device, guest::MapSegment segment) {
  Device* known = find(device);
  if (known == nullptr) return;
  for (std::uint64_t i = 0; i < segment.length.value() >> kPageLg2; ++i) {
    const auto frame = known->frames->memory_frame(Gfn(segment.address) + i);
    if (!frame) continue;  // not the guest's memory: no DMA through this page is legitimate
    const auto [page, is_new] = known->pages.try_emplace(Dfn(segment.iova) + i);
    if (!is_new && page->second.state == State::AwaitingFence)
      known->former.emplace(page->first, Former{page->second.permissions, page->second.frame, page->second.unmapped});
    page->second = {State::Mapping, segment.permissions, *frame, {}};
  }
}

void Warden::on_mapped(Picoseconds, RequesterId device, guest::IovaRange range) {
  Device* known = find(device);
  if (known == nullptr) return;
  for (std::uint64_t i = 0; i < range.pages(); ++i)
    if (const auto page = known->pages.find(Dfn(range.first) + i); page != known->pages.end())
      page->second.state = State::Mapped;
}

void Warden::on_unmap_called(Picoseconds now, RequesterId device, guest::IovaRange range) {
  Device* known = find(device);
  if (known == nullptr) return;
  for (std::uint64_t i = 0; i < range.pages(); ++i) {
    const auto page = known->pages.find(Dfn(range.first) + i);
    if (page == known->pages.end() || page->second.state == State::AwaitingFence) continue;
    page->second.state = State::AwaitingFence;
    page->second.unmapped = now;
  }
}

void Warden::on_fenced(Picoseconds now, RequesterId device, guest::IovaRange range) {
  Device* known = find(device);
  if (known == nullptr) return;
  for (std::uint64_t i = 0; i < range.pages(); ++i) {
    const auto [begin, end] = known->former.equal_range(Dfn(range.first) + i);
    for (auto former = begin; former != end; ++former) exposure_.add(now - former->second.unmapped);
    known->former.erase(begin, end);
    const auto page = known->pages.find(Dfn(range.first) + i);
    if (page == known->pages.end() || page->second.state != State::AwaitingFence) continue;
    exposure_.add(now - page->second.unmapped);
    known->pages.erase(page);
  }
}

void Warden::on_dma(Picoseconds now, RequesterId requester, std::optional<Pasid>, Iova iova, Hpa target, Bytes length,
                    Access access) {
  Violation where{ViolationKind::UnknownDevice, now, requester, iova, target, access};
  Device* device = find(requester);
  if (device == nullptr) return violate(where, ViolationKind::UnknownDevice);
  // The first byte of each page touched.
  for (std::uint64_t done = 0; done < length.value();) {
    where.address = iova + Bytes(done);
    where.target = target + Bytes(done);
    check_page(now, *device, where);
    done += kPageSize.value() - where.address.offset_in(kPageLg2);
  }
}

void Warden::check_page(Picoseconds now, Device& device, const Violation& where) {
  ++checked_;
  if (device.addressing == Addressing::GuestPhysical) {
    const auto frame = device.frames->memory_frame(Gfn(where.address.value() >> kPageLg2));
    if (!frame) return violate(device, where, ViolationKind::NotMapped);
    if (*frame != Mfn(where.target)) violate(device, where, ViolationKind::WrongFrame);
    return;
  }
  if (!device.former.empty())
    if (const Former* former = find_former(device, where)) return stale_.add(now - former->unmapped);
  const auto found = device.pages.find(Dfn(where.address));
  if (found == device.pages.end()) return violate(device, where, ViolationKind::NotMapped);
  const Page& page = found->second;
  if (page.frame != Mfn(where.target)) return violate(device, where, ViolationKind::WrongFrame);
  if (!page.permissions.allow(where.access)) return violate(device, where, ViolationKind::NoPermission);
  if (page.state == State::AwaitingFence) stale_.add(now - page.unmapped);
}

void Warden::violate(const Device& device, const Violation& violation, ViolationKind kind) {
  if (!device.is_foreign) return violate(violation, kind);
  ++strayed_;
  if (device.is_foreign(Mfn(violation.target))) ++foreign_;
}

const Warden::Former* Warden::find_former(const Device& device, const Violation& where) {
  const auto now = device.pages.find(Dfn(where.address));
  if (now != device.pages.end() && now->second.frame == Mfn(where.target)) return nullptr;
  const auto [begin, end] = device.former.equal_range(Dfn(where.address));
  const auto found = std::find_if(begin, end, [&](const auto& former) {
    return former.second.frame == Mfn(where.target) && former.second.permissions.allow(where.access);
  });
  return found == end ? nullptr : &found->second;
}

void Warden::violate(Violation violation, ViolationKind kind) {
  violation.kind = kind;
  if (!first_violation_) first_violation_ = violation;
  ++violations_;
}

WardenReport Warden::report() const {
  WardenReport report;
  report.checked = checked_;
  report.stale = stale_.count;
  report.violations = violations_;
  report.strayed = strayed_;
  report.foreign = foreign_;
  report.stale_age_max = stale_.max;
  report.exposures = exposure_.count;
  report.exposure_max = exposure_.max;
  if (stale_.count != 0) report.stale_age_mean_ps = stale_.sum_ps / static_cast<double>(stale_.count);
  if (exposure_.count != 0) report.exposure_mean_ps = exposure_.sum_ps / static_cast<double>(exposure_.count);
  report.first_violation = first_violation_;
  return report;
}

std::vector<MappedPages> Warden::mapped(RequesterId device) const {
  std::vector<MappedPages> runs;
  const Device* known = find(device);
  if (known == nullptr) return runs;
  std::vector<Dfn> pages;
  for (const auto& [page, ignored] : known->pages) pages.push_back(page);
  std::sort(pages.begin(), pages.end());
  for (const Dfn number : pages) {
    const Page& page = known->pages.at(number);
    const bool continues = !runs.empty() && Dfn(runs.back().first) + runs.back().pages == number &&
                           runs.back().state == page.state && runs.back().permissions == page.permissions;
    if (continues)
      ++runs.back().pages;
    else
      runs.push_back({number.address(), 1, page.state, page.permissions});
  }
  return runs;
}

std::optional<PageTruth> Warden::truth(RequesterId device, Iova address) const {
  const Device* known = find(device);
  if (known == nullptr) return std::nullopt;
  if (known->addressing == Addressing::GuestPhysical) {
    const auto frame = known->frames->memory_frame(Gfn(address.value() >> kPageLg2));
    return frame ? std::optional(PageTruth{PageState::Mapped, kReadWrite, *frame}) : std::nullopt;
  }
  const auto page = known->pages.find(Dfn(address));
  if (page == known->pages.end()) return std::nullopt;
  return PageTruth{page->second.state, page->second.permissions, page->second.frame};
}

void Warden::reset_counts() {
  checked_ = 0;
  strayed_ = 0;
  foreign_ = 0;
  stale_ = {};
  exposure_ = {};
}

}  // namespace iommu::strategy
