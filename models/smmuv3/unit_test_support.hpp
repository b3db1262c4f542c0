// SPDX-License-Identifier: Apache-2.0
// For tests: a unit, the software that programs it, and memory between them.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "models/smmuv3/core.hpp"
#include "models/smmuv3/driver.hpp"
#include "models/smmuv3/spec.hpp"
#include "sim/memory/host_memory.hpp"
#include "sim/memory/host_table_memory.hpp"

namespace iommu::smmuv3::test {

inline constexpr RequesterId kNic = RequesterId::bdf(3, 0, 0);
inline constexpr RequesterId kDisk = RequesterId::bdf(0x80, 31, 7);

struct Unit {
  explicit Unit(const DriverOptions& options)
      : options_used(options), driver(options), core(compose(options.features)) {}

  DriverOptions options_used;
  HostMemory host{Bytes(1ULL << 38)};
  FrameAllocator frames{Mfn(0x1000), 0x8000};
  HostTableMemory memory{host, frames};
  Driver driver;
  Core core;
  ImmediateMemoryPort port{host};
  std::uint32_t tail = 0;

  void bring_up() {
    const auto writes = driver.bring_up(memory);
    ASSERT_TRUE(writes);
    for (const RegisterWrite& w : *writes) core.mmio_write(w.offset, w.bytes, w.value);
  }
  TranslationResponse translate(const TranslationRequest& request) { return core.translate(request, port).run(); }
  TranslationResponse translate(RequesterId requester, std::uint64_t address, Access access = Access::Read) {
    return translate({.requester = requester, .pasid = {}, .address = Iova(address), .access = access});
  }
  void put(const CommandWords& command) {
    const CommandRing ring = driver.ring();
    const std::uint64_t at = ring.base + std::uint64_t{tail % ring.entries} * kCommandBytes;
    memory.write64(at, command.words[0]);
    memory.write64(at + 8, command.words[1]);
    tail = (tail + 1) % (2 * ring.entries);
  }
  // Puts commands into the ring and returns what the core makes of each, up to the first it refuses.
  std::vector<CommandEffect> execute(const std::vector<CommandWords>& commands) {
    for (const CommandWords& command : commands) put(command);
    core.mmio_write(offset::kCmdqProd, 4, driver.tail_value(tail));
    return drain();
  }
  std::vector<CommandEffect> drain() {
    std::vector<CommandEffect> effects;
    while (core.has_command()) {
      const auto command = core.fetch_command(port).run();
      if (!command) break;
      EXPECT_NE(command->row, nullptr);
      effects.push_back(core.apply(*command));
    }
    return effects;
  }
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

inline std::string print(const TranslationResponse& response) {
  if (const auto* fault = std::get_if<Fault>(&response)) return std::string(fault->row->name);
  return std::to_string(std::get<Translation>(response).address.value());
}

inline DriverOptions options(ContextKind kind) {
  DriverOptions o;
  o.features.nested = kind == ContextKind::Nested;
  o.features.device_tlb = true;
  o.stage1 = kind == ContextKind::Stage1 || kind == ContextKind::Nested;
  return o;
}

}  // namespace iommu::smmuv3::test
