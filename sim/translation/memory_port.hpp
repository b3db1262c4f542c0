// SPDX-License-Identifier: Apache-2.0
// The only way out of a core: reads and writes of host memory that may take simulated time.
// A port implements begin(): it either performs the access at once and returns true, or keeps the access (whose storage
// lives in the waiting coroutine's frame), performs it when its time has come, and resumes `waiter`.
//
//   const MemoryResult entry = co_await port.read64(address, AccessKind::Stage2Entry);
//   if (entry.failed) ...   // no memory at that address, or poisoned: an architectural fault, never an abort
#pragma once

#include <array>
#include <coroutine>
#include <cstdint>
#include <span>

#include "sim/base/address.hpp"
#include "sim/base/check.hpp"

namespace iommu {

// Why memory is touched: statistics and timing (cacheability, queue) may differ by kind.
enum class AccessKind : std::uint8_t {
  DeviceTable,  // root, context, PASID entries; DTE; STE, CD
  Stage1Entry,
  Stage2Entry,
  Command,     // fetch from a command ring
  Completion,  // status write of a fence
  Event,       // event or fault record, message-signalled interrupt
  InterruptEntry,
  Data,  // the device's own DMA
};
inline constexpr std::size_t kAccessKinds = 8;

enum class MemoryOp : std::uint8_t { Read, Write, CompareExchange };

// One access of at most 64 bytes that does not cross a 64-byte line.
struct MemoryAccess {
  static constexpr std::size_t kMaxWords = 8;

  Hpa address;
  MemoryOp op = MemoryOp::Read;
  AccessKind kind = AccessKind::Data;
  std::uint8_t bytes = 8;  // 4 or a multiple of 8
  bool failed = false;     // set by the port
  // Read: filled by the port. Write: what to write. CompareExchange: [0] expected, replaced by what was found; [1]
  // desired.
  std::array<std::uint64_t, kMaxWords> words;
  std::coroutine_handle<> waiter;
};

struct MemoryResult {
  std::uint64_t value = 0;
  bool failed = false;
};
template <std::size_t N>
struct MemoryBlock {
  std::array<std::uint64_t, N> words{};
  bool failed = false;
};

class MemoryPort {
 public:
  MemoryPort() = default;
  MemoryPort(const MemoryPort&) = delete;
  MemoryPort& operator=(const MemoryPort&) = delete;
  virtual ~MemoryPort() = default;

  // Starts an access. True: it is complete. False: the port resumes access.waiter once it is.
  virtual bool begin(MemoryAccess& access) = 0;

  struct Awaiter {
    MemoryPort& port;
    MemoryAccess access;
    bool await_ready() { return port.begin(access); }
    void await_suspend(std::coroutine_handle<> caller) { access.waiter = caller; }
  };
  struct WordAwaiter : Awaiter {
    MemoryResult await_resume() const { return {this->access.words[0], this->access.failed}; }
  };
  struct StatusAwaiter : Awaiter {
    // True when the write reached memory.
    bool await_resume() const { return !this->access.failed; }
  };
  template <std::size_t N>
  struct BlockAwaiter : Awaiter {
    MemoryBlock<N> await_resume() const {
      MemoryBlock<N> block{{}, this->access.failed};
      for (std::size_t i = 0; i < N; ++i) block.words[i] = this->access.words[i];
      return block;
    }
  };

  [[nodiscard]] WordAwaiter read64(Hpa address, AccessKind kind) {
    WordAwaiter a{{*this, {}}};
    a.access.address = address;
    a.access.kind = kind;
    return a;
  }
  // N words, 8 * N bytes aligned.
  template <std::size_t N>
  [[nodiscard]] BlockAwaiter<N> read_block(Hpa address, AccessKind kind) {
    static_assert(N >= 1 && N <= MemoryAccess::kMaxWords);
    BlockAwaiter<N> a{{*this, {}}};
    a.access.address = address;
    a.access.kind = kind;
    a.access.bytes = 8 * N;
    return a;
  }
  [[nodiscard]] StatusAwaiter write64(Hpa address, std::uint64_t value, AccessKind kind) {
    return write(address, std::span(&value, 1), 8, kind);
  }
  [[nodiscard]] StatusAwaiter write32(Hpa address, std::uint32_t value, AccessKind kind) {
    const std::uint64_t word = value;
    return write(address, std::span(&word, 1), 4, kind);
  }
  [[nodiscard]] StatusAwaiter write(Hpa address, std::span<const std::uint64_t> words, std::uint8_t bytes,
                                    AccessKind kind) {
    SIM_CHECK(words.size() <= MemoryAccess::kMaxWords, "a memory access is at most 64 bytes");
    StatusAwaiter a{{*this, {}}};
    a.access.address = address;
    a.access.kind = kind;
    a.access.op = MemoryOp::Write;
    a.access.bytes = bytes;
    for (std::size_t i = 0; i < words.size(); ++i) a.access.words[i] = words[i];
    return a;
  }
  // Atomically replaces `expected` by `desired`; the result's value is what was found (equal to `expected` on success).
  [[nodiscard]] WordAwaiter compare_exchange64(Hpa address, std::uint64_t expected, std::uint64_t desired,
                                               AccessKind kind) {
    WordAwaiter a{{*this, {}}};
    a.access.address = address;
    a.access.kind = kind;
    a.access.op = MemoryOp::CompareExchange;
    a.access.words[0] = expected;
    a.access.words[1] = desired;
    return a;
  }
};

}  // namespace iommu
