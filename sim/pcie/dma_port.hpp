// SPDX-License-Identifier: Apache-2.0
// How a device model does DMA. One transfer is one device-level operation (a descriptor fetch, a payload, a
// completion); the port splits it into TLPs (page boundaries, MPS, MRRS), translates each and moves the data.
//
//   const DmaResult r = co_await dma.transfer({.requester = id, .address = iova, .length = 1500_B, .access =
//   Access::Write});
#pragma once

#include <coroutine>
#include <cstdint>
#include <optional>

#include "sim/base/units.hpp"
#include "sim/translation/request.hpp"

namespace iommu {

struct DmaTransfer {
  RequesterId requester{};
  std::optional<Pasid> pasid{};
  Iova address{};
  Bytes length{};  // > 0; the port refuses a transfer of nothing, or past the end of the address space, as faulted
  Access access = Access::Read;
  // Results, set by the port.
  bool faulted = false;     // at least one part was refused
  Picoseconds completed{};  // Read: last byte at the device. Write: last byte accepted by memory.
  std::coroutine_handle<> waiter{};
};

struct DmaResult {
  bool faulted = false;
  Picoseconds completed;
};

class DmaPort {
 public:
  virtual ~DmaPort() = default;
  // True when complete at once; false: `waiter` is resumed later.
  virtual bool begin(DmaTransfer& transfer) = 0;

  struct Awaiter {
    DmaPort& port;
    DmaTransfer dma;
    bool await_ready() { return port.begin(dma); }
    void await_suspend(std::coroutine_handle<> caller) { dma.waiter = caller; }
    DmaResult await_resume() const { return {dma.faulted, dma.completed}; }
  };
  [[nodiscard]] Awaiter transfer(DmaTransfer t) { return Awaiter{*this, t}; }
};

// Sees every DMA that memory accepts, at the moment it is accepted. The warden is one. `requester` is the device's own
// id, even where a bridge puts another in its place before the IOMMU.
class DmaObserver {
 public:
  virtual ~DmaObserver() = default;
  virtual void on_dma(Picoseconds now, RequesterId requester, std::optional<Pasid> pasid, Iova iova, Hpa target,
                      Bytes length, Access access) = 0;
};

}  // namespace iommu
