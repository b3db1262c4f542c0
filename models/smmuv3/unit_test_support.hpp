// SPDX-License-Identifier: Apache-2.0
// For tests: a unit, the software that programs it, and memory between them.
#pragma once

#include <array>

#include "models/smmuv3/core.hpp"
#include "models/smmuv3/driver.hpp"
#include "models/smmuv3/spec.hpp"
#include "sim/translation/driver_test_support.hpp"

namespace iommu::smmuv3::test {

using iommu::test::options;
using iommu::test::print;

inline constexpr RequesterId kNic = RequesterId::bdf(3, 0, 0);
inline constexpr RequesterId kDisk = RequesterId::bdf(0x80, 31, 7);

struct Unit : iommu::test::DrivenUnit<Driver, Core> {
  explicit Unit(const DriverOptions& o) : DrivenUnit(o, compose(o.features)) {}

  // The event that the last fault left, consumed. All zero: none.
  std::array<std::uint64_t, 4> take_event() {
    core.write_events(port).run();
    std::array<std::uint64_t, 4> words{};
    const auto producer = get<kQueueProd, "WR">(core.mmio_read(offset::kEventqProd, 4));
    const auto consumer = get<kQueueCons, "RD">(core.mmio_read(offset::kEventqCons, 4));
    if (producer == consumer) return words;
    const std::uint64_t base = core.mmio_read(offset::kEventqBase, 8);
    const auto lg2 = static_cast<unsigned>(get<kQueueBase, "LOG2SIZE">(base));
    const std::uint64_t at = (base & mask_of<kQueueBase, "ADDR">)+(consumer & bits_between(0, lg2)) * kEventBytes;
    for (std::size_t i = 0; i < words.size(); ++i) words[i] = memory.read64(at + 8 * i);
    core.mmio_write(offset::kEventqCons, 4, (consumer + 1) & bits_between(0, lg2 + 1));
    return words;
  }
};

}  // namespace iommu::smmuv3::test
