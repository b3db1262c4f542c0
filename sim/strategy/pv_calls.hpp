// SPDX-License-Identifier: Apache-2.0
// The guest's hypercall glue. Structures go through pages of guest memory, one for each call under way: a task that is
// preempted in its call must find its structure as it left it.
#pragma once

#include <optional>
#include <vector>

#include "sim/strategy/strategy.hpp"

namespace iommu::strategy {

[[nodiscard]] inline guest::DmaStatus to_dma_status(std::int64_t result) {
  if (result == 0) return guest::DmaStatus::Ok;
  const bool no_memory = result == static_cast<std::int64_t>(xen::Errno::NoMemory);
  return no_memory ? guest::DmaStatus::NoMemory : guest::DmaStatus::Rejected;
}

class IommuCalls {
 public:
  explicit IommuCalls(const StrategyEnvironment& environment) : environment_(environment) {}

  template <class T>
  struct Reply {
    std::int64_t status = 0;
    T argument{};
  };
  // The argument as Xen left it.
  template <class T>
  Task<Reply<T>> call(CpuPort& cpu, xen::abi::Subop subop, T argument) {
    return exchange(cpu, subop, argument);
  }
  // The same where Xen has the interface of v3.
  Task<Reply<xen::abi_v3::Operation>> call(CpuPort& cpu, xen::abi_v3::Operation operation) {
    return exchange(cpu, std::nullopt, operation);
  }
  [[nodiscard]] GuestMemory& memory() { return environment_.domain.memory; }
  [[nodiscard]] guest::GuestPages& pages() { return environment_.pages; }

 private:
  Task<std::int64_t> enter(CpuPort& cpu, std::optional<xen::abi::Subop> subop, Gpa argument) {
    if (!subop) return environment_.hypercall_v3->call(cpu, environment_.domain, argument);
    return environment_.hypercall.call(cpu, environment_.domain, static_cast<std::uint32_t>(*subop), argument);
  }
  template <class T>
  Task<Reply<T>> exchange(CpuPort& cpu, std::optional<xen::abi::Subop> subop, T argument) {
    Reply<T> reply;
    reply.status = static_cast<std::int64_t>(xen::Errno::NoMemory);
    const auto page = take_page();
    if (!page) co_return reply;
    GuestMemory& memory = environment_.domain.memory;
    memory.write(*page, std::as_bytes(std::span(&argument, 1)));
    reply.status = co_await enter(cpu, subop, *page);
    if (!memory.read(*page, std::as_writable_bytes(std::span(&reply.argument, 1))))
      reply.status = static_cast<std::int64_t>(xen::Errno::BadAddress);
    free_pages_.push_back(*page);
    co_return reply;
  }
  std::optional<Gpa> take_page() {
    if (free_pages_.empty()) return environment_.pages.allocate();
    const Gpa page = free_pages_.back();
    free_pages_.pop_back();
    return page;
  }
  StrategyEnvironment environment_;
  std::vector<Gpa> free_pages_;
};

}  // namespace iommu::strategy
