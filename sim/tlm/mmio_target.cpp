// SPDX-License-Identifier: Apache-2.0
#include "sim/tlm/mmio_target.hpp"

#include <algorithm>

namespace iommu {

void MmioTarget::write_register(std::uint64_t offset, unsigned bytes, std::uint64_t value, Picoseconds delay) {
  ++writes_;
  last_arrival_ = std::max(last_arrival_, calendar_.now() + delay + parameters_.write_latency);
  posted_.push({offset, value, bytes});
  calendar_.call_at<&MmioTarget::arrive>(last_arrival_, this);
}

void MmioTarget::arrive(std::uint64_t) {
  const Write write = posted_.pop();
  poke_register(write.offset, write.bytes, write.value);
}

void MmioTarget::poke_register(std::uint64_t offset, unsigned bytes, std::uint64_t value) {
  listener_.on_register_effect(core_.mmio_write(offset, bytes, value));
}

void MmioTarget::issue(ReadAwaiter& read) {
  ++reads_;
  const Picoseconds there = std::max(last_arrival_, calendar_.now() + parameters_.read_latency / 2);
  calendar_.at(
      there,
      [](void* awaiter, std::uint64_t) {
        auto& r = *static_cast<ReadAwaiter*>(awaiter);
        r.target.sample(r);
      },
      &read);
}

void MmioTarget::sample(ReadAwaiter& read) {
  read.value = core_.mmio_read(read.offset, read.bytes);
  calendar_.resume_at(calendar_.now() + (parameters_.read_latency - parameters_.read_latency / 2), read.waiter);
}

}  // namespace iommu
