// SPDX-License-Identifier: Apache-2.0
// The registers of a timed IOMMU as CPUs reach them. Writes are posted and arrive in the order in which they were
// issued; a read pushes earlier writes ahead of it, samples the register on arrival and takes a round trip.
#pragma once

#include <coroutine>
#include <cstdint>

#include "sim/base/calendar.hpp"
#include "sim/tlm/fifo.hpp"
#include "sim/translation/iommu_core.hpp"

namespace iommu {

struct MmioParameters {
  Picoseconds write_latency = 150_ns;  // >= 0: from the CPU's store leaving it to the register changing
  Picoseconds read_latency = 400_ns;   // >= 0: round trip; the register is sampled half-way
};

// Told what a register write asks for.
class RegisterListener {
 public:
  virtual ~RegisterListener() = default;
  virtual void on_register_effect(const RegisterEffect& effect) = 0;
};

class MmioTarget {
 public:
  MmioTarget(Calendar& calendar, IommuCore& core, RegisterListener& listener, const MmioParameters& parameters)
      : calendar_(calendar), core_(core), listener_(listener), parameters_(parameters) {}
  MmioTarget(const MmioTarget&) = delete;
  MmioTarget& operator=(const MmioTarget&) = delete;

  // Takes effect `delay` + write_latency from now, or right after the write before it if that is later.
  void write_register(std::uint64_t offset, unsigned bytes, std::uint64_t value, Picoseconds delay = {});

  // Awaitable read: `const std::uint64_t v = co_await target.read_register(offset, 4);`
  struct ReadAwaiter {
    MmioTarget& target;
    std::uint64_t offset;
    unsigned bytes;
    std::uint64_t value = 0;
    std::coroutine_handle<> waiter;
    bool await_ready() const { return false; }
    void await_suspend(std::coroutine_handle<> caller) {
      waiter = caller;
      target.issue(*this);
    }
    std::uint64_t await_resume() const { return value; }
  };
  [[nodiscard]] ReadAwaiter read_register(std::uint64_t offset, unsigned bytes) {
    return {*this, offset, bytes, 0, {}};
  }
  // A write that has arrived already, without time: for bring-up.
  void poke_register(std::uint64_t offset, unsigned bytes, std::uint64_t value);

  [[nodiscard]] const MmioParameters& parameters() const { return parameters_; }
  [[nodiscard]] std::uint64_t writes() const { return writes_; }
  [[nodiscard]] std::uint64_t reads() const { return reads_; }

 private:
  struct Write {
    std::uint64_t offset = 0;
    std::uint64_t value = 0;
    unsigned bytes = 0;
  };
  void arrive(std::uint64_t);
  void issue(ReadAwaiter& read);
  void sample(ReadAwaiter& read);

  Calendar& calendar_;
  IommuCore& core_;
  RegisterListener& listener_;
  MmioParameters parameters_;
  Fifo<Write> posted_;
  Picoseconds last_arrival_;
  std::uint64_t writes_ = 0;
  std::uint64_t reads_ = 0;
};

}  // namespace iommu
