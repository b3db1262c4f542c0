// SPDX-License-Identifier: Apache-2.0
// A guest's vCPU in the hands of an adversary: bytes choose hypercalls of both versions and of the proposals, sensible
// ones and others, give memory back, and let devices do DMA. Whatever they do, every call ends with a status, books
// balance, and no device reaches a page that is not its domain's.
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "sim/base/check.hpp"
#include "sim/base/fuzz_test_support.hpp"
#include "sim/xen/iommu_op_v3.hpp"
#include "sim/xen/xen_test_support.hpp"

namespace iommu::xen {
namespace {

using abi::Subop;
using iommu::test::FuzzInput;

constexpr RequesterId kCard = RequesterId::bdf(9, 0, 0);  // with a reserved region
constexpr RequesterId kHostCard = RequesterId::bdf(10, 0, 0);
constexpr Dfn kReserved{0x100000};
constexpr std::uint64_t kReservedPages = 2;
constexpr std::uint32_t kContexts = 4;
constexpr Gpa kLists{Machine::kArgument + kPageSize};

class HostileCaller {
 public:
  explicit HostileCaller(FuzzInput bytes)
      : in_(bytes), m_(*families()[in_.take(1) % families().size()], options(in_)), v3_(m_.xen) {
    m_.assign(m_.guest(), {.requester = kCard, .reserved = {{kReserved, kReservedPages}}});
    m_.assign(*m_.dom0, {.requester = kHostCard});
    const auto arena_order = static_cast<std::uint32_t>(2 + in_.take(1) % 6);
    static_cast<void>(m_.init(m_.guest(), kContexts, arena_order));
    static_cast<void>(v3_.set_up(*m_.dom0, kContexts, arena_order));
  }

  void run() {
    while (!in_.empty()) {
      step();
      probe();
    }
    check_books();
    for (Domain* domain : {&m_.guest(), m_.dom0})
      for (std::uint16_t context = 1; context <= kContexts; ++context)
        static_cast<void>(m_.free(*domain, context, abi::kFreeReattachDefault));
    SIM_CHECK(m_.xen.references().total() == 0, "contexts that are gone hold no page");
  }

 private:
  static MachineOptions options(FuzzInput& in) {
    const std::uint64_t choice = in.take(1);
    MachineOptions options;
    options.xen.coalesce = (choice & 1U) != 0 ? Coalesce::Yes : Coalesce::No;
    options.xen.slice_pages = 1 + (choice >> 1U) % 8 * 16;
    options.deferred = (choice & 16U) != 0 ? DeferredFlush::Offered : DeferredFlush::Unavailable;
    options.guest_page_lg2 = (choice & 32U) != 0 ? 21 : kPageLg2;
    options.default_context = (choice & 64U) != 0 ? DefaultContext::Blocked : DefaultContext::Identity;
    const std::uint64_t proposals = in.take(1);
    if ((proposals & 1U) != 0) options.op.batching = Batching::Offered;
    if ((proposals & 2U) != 0) options.op.scattered = ScatteredMap::Offered;
    if ((proposals & 4U) != 0) options.op.page_order = PageOrder::Explicit;
    if ((proposals & 8U) != 0)
      options.op.lock = (proposals & 16U) != 0 ? LockGranularity::Domain : LockGranularity::Iommu;
    if ((proposals & 32U) != 0) options.op.error_report = ErrorReport::Address;
    if ((proposals & 64U) != 0) options.xen.tag_allocation = TagAllocation::AtAttach;
    if ((proposals & 128U) != 0) options.op.buses = {.first = kNic.bus(), .last = kNic.bus()};
    return options;
  }

  std::uint16_t context() { return static_cast<std::uint16_t>(in_.take(1) % (kContexts + 2)); }
  std::uint32_t pages() { return static_cast<std::uint32_t>(in_.take(1) % 8 == 7 ? in_.take(4) : in_.take(1) % 48); }
  std::uint32_t flags() {
    if (in_.take(1) % 8 == 7) return static_cast<std::uint32_t>(in_.take(4));
    const auto choice = static_cast<std::uint32_t>(in_.take(1));
    return 1 + choice % 3 + (choice >= 0x80 ? abi::kMapAllOrNothing : 0U);
  }
  // Few tables, near each other, near the reserved region and near the end.
  Dfn address() {
    const std::uint64_t near[] = {0, 0x1f0, 0x400, kReserved.value() - 8, m_.xen.last_dfn().value() - 20, in_.take(8)};
    const std::uint64_t choice = in_.take(1);
    return Dfn(near[choice % 6] + (choice >> 3U));
  }
  Gfn frame() {
    const std::uint64_t choice = in_.take(2);
    return (choice & 0x8000U) != 0 ? Gfn(kGuestPages - 8 + choice % 16) : Gfn(choice % kGuestPages);
  }
  RequesterId device() {
    constexpr RequesterId kDevices[] = {kNic, kDisk, kCard, kHostCard, kAlien};
    return kDevices[in_.take(1) % 5];
  }

  void step() {
    switch (in_.take(1) % 12) {
      case 0:
        return any_call(m_.guest());
      case 1:
        return any_call(*m_.dom0);
      case 2:
        static_cast<void>(m_.map(m_.guest(), context(), address(), frame(), pages(), flags()));
        return;
      case 3:
        static_cast<void>(m_.unmap(m_.guest(), context(), address(), pages()));
        return;
      case 4:
        static_cast<void>(m_.unmap(m_.guest(), context(), address(), pages(), Subop::UnmapPagesDeferred));
        return;
      case 5:
        static_cast<void>(m_.try_alloc(m_.guest()));
        return;
      case 6:
        static_cast<void>(m_.free(m_.guest(), context(), static_cast<std::uint32_t>(in_.take(1) % 4)));
        return;
      case 7:
        static_cast<void>(m_.reattach(m_.guest(), device(), context()));
        return;
      case 8:
        return old_call();
      case 9:
        return batch();
      case 10:
        return scattered();
      default:
        return give_back();
    }
  }
  void batch() {
    abi::Batch argument{
        .ctx_no = context(), .flags = static_cast<std::uint16_t>(in_.take(1) % 4), .ops = kLists.value()};
    const auto count = static_cast<std::uint32_t>(in_.take(1) % 12);
    argument.nr_ops = count == 11 ? static_cast<std::uint32_t>(in_.take(4)) : count;
    argument.first = static_cast<std::uint32_t>(in_.take(1) % 8 == 7 ? in_.take(4) : 0);
    for (std::uint32_t i = 0; i < count; ++i) {
      abi::BatchOp op{.kind = static_cast<std::uint16_t>(in_.take(1) % 4), .map_flags = flags()};
      op.gfn = frame().value();
      op.dfn = address().value();
      op.pgsize = page_size();
      op.nr_pages = pages();
      m_.guest().memory.write(kLists + Bytes(i * sizeof op), std::as_bytes(std::span(&op, 1)));
    }
    static_cast<void>(m_.call(m_.guest(), Subop::Batch, argument));
  }
  void scattered() {
    abi::MapScattered argument{.ctx_no = context(), .dfn = address().value(), .frames = kLists.value()};
    const auto count = static_cast<std::uint32_t>(in_.take(1) % 24);
    argument.nr_frames = count == 23 ? static_cast<std::uint32_t>(in_.take(4)) : count;
    argument.map_flags = flags();
    for (std::uint32_t i = 0; i < count; ++i) m_.guest().memory.write64(kLists + Bytes(8 * i), frame().value());
    static_cast<void>(m_.call(m_.guest(), Subop::MapScattered, argument));
  }
  std::uint32_t page_size() {
    constexpr std::uint32_t kSizes[] = {1U << 12, 1U << 21, 1U << 30};
    const std::uint64_t choice = in_.take(1) % 8;
    return choice < 3 ? kSizes[choice] : choice == 7 ? static_cast<std::uint32_t>(in_.take(4)) : kSizes[0];
  }
  // Not the pages that carry arguments.
  void give_back() {
    const Gfn first = frame();
    if (first <= Gfn(kLists)) return;
    static_cast<void>(m_.xen.remove_memory(m_.cpu, m_.guest(), first, in_.take(1) % 8).run());
  }
  void put_words(Domain& domain, std::size_t words) {
    for (std::size_t word = 0; word < words; ++word)
      domain.memory.write64(Machine::kArgument + Bytes(8 * word), in_.take(in_.take(1) % 9U));
  }
  void any_call(Domain& domain) {
    put_words(domain, 6);
    const std::uint64_t choice = in_.take(1);
    const auto proposal = static_cast<std::uint32_t>(Subop::UnmapPagesDeferred);
    auto subop = static_cast<std::uint32_t>(choice % 16 + ((choice & 0x20U) != 0 ? proposal : 0));
    if ((choice & 0x80U) != 0) subop = static_cast<std::uint32_t>(in_.take(4));
    const Gpa at = (choice & 0x40U) != 0 ? Gpa(in_.take(8)) : Machine::kArgument;
    const auto status = static_cast<std::int32_t>(m_.raw(domain, subop, at));
    SIM_CHECK(status <= 0, "a status is 0 or a negative error");
  }
  void old_call() {
    put_words(*m_.dom0, 4);
    const std::int64_t status = v3_.call(m_.cpu, *m_.dom0, Machine::kArgument).run();
    SIM_CHECK(status <= 0, "a status is 0 or a negative error");
  }

  void probe() {
    const Dfn at = address();
    const RequesterId who = device();
    // Devices in one context share reserved regions.
    if (is_fixed(m_.family(), at) || (at >= kReserved && at < kReserved + kReservedPages)) return;
    const auto there = m_.reach(who, at);
    if (!there) return;
    const Domain& owner = who == kAlien ? *m_.other : who == kHostCard ? *m_.dom0 : m_.guest();
    const bool is_default = owner.devices.at(who).context == owner.default_context.get();
    SIM_CHECK(is_default || m_.xen.references().of(*there) > 0, "what a context maps is held");
    for (const auto& domain : m_.xen.domains())
      SIM_CHECK(domain.get() == &owner || !owns(*domain, *there), "a device reaches no other domain's memory");
    // Memory that a domain gave back while a context mapped it stays until it is unmapped.
    SIM_CHECK(!is_default || owns(owner, *there), "context 0 is the domain's memory");
  }
  void check_books() {
    SIM_CHECK(m_.xen.references().total() == explained_references(m_, m_.guest()) + explained_references(m_, *m_.dom0),
              "every reference has its mapping");
  }

  FuzzInput in_;
  Machine m_;
  IommuOpV3 v3_;
};

}  // namespace
}  // namespace iommu::xen

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  iommu::xen::expectations_are_fatal();
  iommu::xen::HostileCaller(iommu::test::FuzzInput(std::span(data, size))).run();
  return 0;
}
