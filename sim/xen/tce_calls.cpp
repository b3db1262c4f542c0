// SPDX-License-Identifier: Apache-2.0
#include "sim/xen/tce_calls.hpp"

#include <vector>

namespace iommu::xen {

using abi::kTceValue;
using abi::TceStatus;

IoContext* TceCalls::find(std::uint32_t liobn) const {
  const auto found = windows_.find(liobn);
  return found == windows_.end() ? nullptr : found->second;
}

bool TceCalls::holds(const IoContext& context, Iova address, std::uint64_t count) const {
  const std::uint64_t pages = 1ULL << (context.table->root().input_bits - kPageLg2);
  const std::uint64_t first = Dfn(address).value();
  return address.is_aligned(kPageLg2) && first < pages && count <= pages - first;
}

TceCalls::Checked TceCalls::check(std::uint64_t tce) const {
  Checked result;
  if (kTceValue.must_be_zero_mask() & tce) {
    result.status = TceStatus::Parameter;
    return result;
  }
  const Permissions permissions{.read = iommu::get<kTceValue, "Read">(tce) != 0,
                                .write = iommu::get<kTceValue, "Write">(tce) != 0};
  if (permissions.none()) return result;
  const auto machine = domain_.memory.translate(Gpa(iommu::get<kTceValue, "page">(tce) << kPageLg2));
  if (machine)
    result.entry = Entry{*machine, permissions};
  else
    result.status = TceStatus::TooHard;
  return result;
}

// One entry, and its kill.
Task<TceStatus> TceCalls::set(CpuPort& cpu, IoContext& context, Iova page, std::optional<Entry> entry) {
  co_await cpu.acquire(context.lock);
  TableEdit edit;
  const auto before = context.table->lookup(page.value());
  if (before) edit = context.table->unmap(page.value(), kPageSize, ReclaimTables::WhenCovered);
  if (entry)
    edit.merge(context.table->map(
        {.input = page.value(), .output = entry->machine.value(), .permissions = entry->permissions}));
  if (entry && edit.status == EditStatus::Ok) xen_.take_reference(Mfn(entry->machine));
  co_await xen_.charge_edit(cpu, edit);
  TceStatus status = edit.status == EditStatus::Ok ? TceStatus::Success : TceStatus::Parameter;
  // Added entries are killed as well: the call does not look at what was there.
  edit.modified = edit.modified || edit.added;
  const AddressRange range{page.value(), page.value() + (kPageSize.value() - 1)};
  Errno flushed = Errno::Ok;
  if (edit.modified) flushed = co_await xen_.flush_edit(cpu, domain_, context, range, edit);
  if (flushed != Errno::Ok) status = TceStatus::Hardware;
  if (before && flushed == Errno::Ok)
    xen_.drop_reference(Mfn(Hpa(before->output)));
  else if (before)
    context.deferred_frames.push_back(Mfn(Hpa(before->output)));  // devices may still reach it
  cpu.release(context.lock);
  co_return status;
}

Task<TceStatus> TceCalls::put(CpuPort& cpu, std::uint32_t liobn, Iova address, std::uint64_t tce) {
  ++counters_.put;
  co_await cpu.charge(CostId::Hypercall);
  IoContext* context = find(liobn);
  if (context == nullptr) co_return TceStatus::TooHard;
  if (!holds(*context, address, 1)) co_return TceStatus::Parameter;
  const Checked checked = check(tce);
  if (checked.status != TceStatus::Success) co_return checked.status;
  co_await cpu.charge(CostId::P2mLookup);
  co_return co_await set(cpu, *context, address, checked.entry);
}

Task<TceStatus> TceCalls::put_indirect(CpuPort& cpu, std::uint32_t liobn, Iova address, Gpa list, std::uint64_t count) {
  ++counters_.put_indirect;
  co_await cpu.charge(CostId::Hypercall);
  IoContext* context = find(liobn);
  if (context == nullptr) co_return TceStatus::TooHard;
  if (count > abi::kTcesPerList || !list.is_aligned(kPageLg2) || !holds(*context, address, count))
    co_return TceStatus::Parameter;
  for (std::uint64_t i = 0; i < count; ++i) {
    const auto word = domain_.memory.read64(list + Bytes(8) * i);
    if (!word) co_return TceStatus::TooHard;
    const Checked checked = check(abi::big_endian(*word));
    if (checked.status != TceStatus::Success) co_return checked.status;
  }
  for (std::uint64_t i = 0; i < count; ++i) {
    // Read again: the guest may have changed it meanwhile, and nothing that it was checked for counts any more.
    const Iova page = address + kPageSize * i;
    const std::uint64_t word = domain_.memory.read64(list + Bytes(8) * i).value_or(0);
    const Checked checked = check(abi::big_endian(word));
    co_await cpu.charge(CostId::P2mLookup);
    if (checked.status != TceStatus::Success) {
      co_await set(cpu, *context, page, std::nullopt);
      co_return TceStatus::Parameter;
    }
    const TceStatus status = co_await set(cpu, *context, page, checked.entry);
    if (status != TceStatus::Success) co_return status;
  }
  co_return TceStatus::Success;
}

Task<TceStatus> TceCalls::stuff(CpuPort& cpu, std::uint32_t liobn, Iova address, std::uint64_t value,
                                std::uint64_t count) {
  ++counters_.stuff;
  co_await cpu.charge(CostId::Hypercall);
  IoContext* context = find(liobn);
  if (context == nullptr) co_return TceStatus::TooHard;
  const bool has_rights = iommu::get<kTceValue, "Read">(value) != 0 || iommu::get<kTceValue, "Write">(value) != 0;
  if (!holds(*context, address, count) || has_rights) co_return TceStatus::Parameter;
  for (std::uint64_t i = 0; i < count; ++i) co_await set(cpu, *context, address + kPageSize * i, std::nullopt);
  co_return TceStatus::Success;
}

Task<TceCalls::Got> TceCalls::get(CpuPort& cpu, std::uint32_t liobn, Iova address) {
  ++counters_.get;
  co_await cpu.charge(CostId::Hypercall);
  Got got;
  IoContext* context = find(liobn);
  if (context == nullptr) {
    got.status = TceStatus::TooHard;
    co_return got;
  }
  if (!holds(*context, address, 1)) {
    got.status = TceStatus::Parameter;
    co_return got;
  }
  co_await cpu.charge(CostId::TableRead);
  const auto leaf = context->table->lookup(address.value());
  const auto page = leaf ? domain_.p2m.frame_of(Mfn(Hpa(leaf->output))) : std::nullopt;
  if (page) {
    got.tce = with<kTceValue, "page">(0, page->value());
    got.tce = with<kTceValue, "Read">(got.tce, leaf->permissions.read ? 1 : 0);
    got.tce = with<kTceValue, "Write">(got.tce, leaf->permissions.write ? 1 : 0);
  }
  co_return got;
}

}  // namespace iommu::xen
