// SPDX-License-Identifier: Apache-2.0
#include "sim/tlm/software_endpoint.hpp"

#include <algorithm>

namespace iommu {

namespace {
constexpr std::uint64_t kLine = 64;  // bytes that CostId::CopyLine stands for
}  // namespace

void SoftwareEndpoint::start(strategy::SoftwareTranslation& translation) {
  server_ = serve(translation);
  server_.start();
}

bool SoftwareEndpoint::begin(DmaTransfer& transfer) {
  const std::uint64_t last = transfer.address.value() + (transfer.length.value() - 1);
  if (transfer.length == 0_B || last < transfer.address.value()) {
    ++statistics_.refused;
    transfer.faulted = true;
    transfer.completed = calendar_.now();
    return true;
  }
  queue_.push_back({&transfer, calendar_.now()});
  signals_.raise(work_);
  return false;
}

Task<void> SoftwareEndpoint::serve(strategy::SoftwareTranslation& translation) {
  for (;;) {
    co_await thread_.idle(work_);
    while (!queue_.empty()) {
      const Waiting next = queue_.front();
      queue_.pop_front();
      co_await move(translation, *next.transfer);
      next.transfer->completed = calendar_.now();
      ++statistics_.operations;
      statistics_.latency.add(calendar_.now() - next.submitted);
      if (next.transfer->faulted)
        ++statistics_.faulted;
      else
        statistics_.bytes += next.transfer->length.value();
      calendar_.resume_at(calendar_.now(), next.transfer->waiter);
    }
  }
}

// Page by page; what a refused page would have held is left out.
Task<void> SoftwareEndpoint::move(strategy::SoftwareTranslation& translation, DmaTransfer& transfer) {
  for (Bytes done; done < transfer.length;) {
    const Iova at = transfer.address + done;
    const Bytes piece = std::min(transfer.length - done, kPageSize - Bytes(at.offset_in(kPageLg2)));
    const std::optional<Hpa> host = co_await translation.translate(thread_, endpoint_, at, transfer.access);
    if (host) {
      co_await thread_.charge(CostId::CopyLine, (piece.value() + kLine - 1) / kLine);
      if (observer_ != nullptr)
        observer_->on_dma(calendar_.now(), transfer.requester, transfer.pasid, at, *host, piece, transfer.access);
    } else {
      transfer.faulted = true;
    }
    done += piece;
  }
}

}  // namespace iommu
