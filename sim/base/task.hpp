// SPDX-License-Identifier: Apache-2.0
// Task<T>: a coroutine that may take simulated time. Every `co_await` marks a point at which the world may change.
//
//   Task<Leaf> walk(...) { const Word e = co_await port.read64(a); ... co_return leaf; }
//   auto leaf = walk(...).run();            // tests: ports answer at once
//   Task<void> root = serve(); root.start();  // a root has an owner that keeps the Task until it is done
//
// The child starts inline inside await_ready() and a caller suspends only if the child does: a walk whose ports answer
// at once never leaves the stack, and stack depth stays constant without relying on tail calls. Rules: take arguments
// by value or guarantee their lifetime; `co_await` only as a full statement or initialiser; destroying a suspended Task
// destroys its frame, so whatever it parked itself in must be dropped first (see Calendar::clear).
#pragma once

#include <array>
#include <coroutine>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <optional>
#include <utility>

#include "sim/base/check.hpp"

namespace iommu {

namespace detail {

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(memory_sanitizer)
#define IOMMUSIM_NO_FRAME_POOL 1
#endif
#endif

// Free lists of coroutine frames by size class: a walk per DMA would otherwise be a malloc per DMA. Off under
// sanitizers, because a recycled frame hides use after free.
class FramePool {
 public:
  static void* allocate(std::size_t bytes) {
#ifndef IOMMUSIM_NO_FRAME_POOL
    const std::size_t size_class = (bytes + kStep - 1) / kStep;
    if (size_class < kClasses) {
      Node*& head = instance().free_[size_class];
      if (head != nullptr) return std::exchange(head, head->next);
      return ::operator new(size_class * kStep);
    }
#endif
    return ::operator new(bytes);
  }
  static void release(void* p, std::size_t bytes) noexcept {
#ifndef IOMMUSIM_NO_FRAME_POOL
    const std::size_t size_class = (bytes + kStep - 1) / kStep;
    if (size_class < kClasses) {
      auto* node = static_cast<Node*>(p);
      node->next = std::exchange(instance().free_[size_class], node);
      return;
    }
#endif
    (void)bytes;
    ::operator delete(p);
  }

 private:
  struct Node {
    Node* next;
  };
  static constexpr std::size_t kStep = 64;
  static constexpr std::size_t kClasses = 64;
  static FramePool& instance() {
    static FramePool pool;
    return pool;
  }
  FramePool() = default;
  ~FramePool() {
    for (Node* head : free_)
      while (head != nullptr) ::operator delete(std::exchange(head, head->next));
  }
  std::array<Node*, kClasses> free_{};
};

struct PromiseBase {
  std::coroutine_handle<> continuation;

  struct FinalAwaiter {
    bool await_ready() noexcept { return false; }
    template <class Promise>
    std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> h) noexcept {
      const auto next = h.promise().continuation;
      return next ? next : std::noop_coroutine();
    }
    void await_resume() noexcept {}
  };
  std::suspend_always initial_suspend() noexcept { return {}; }
  FinalAwaiter final_suspend() noexcept { return {}; }
  [[noreturn]] void unhandled_exception() noexcept { std::abort(); }

  static void* operator new(std::size_t bytes) { return FramePool::allocate(bytes); }
  static void operator delete(void* p, std::size_t bytes) noexcept { FramePool::release(p, bytes); }
};

}  // namespace detail

template <class T = void>
class [[nodiscard]] Task;

namespace detail {
template <class T>
struct Promise : PromiseBase {
  std::optional<T> result;
  Task<T> get_return_object();
  template <class U>
  void return_value(U&& value) {
    result.emplace(std::forward<U>(value));
  }
  T take() { return std::move(*result); }
};
template <>
struct Promise<void> : PromiseBase {
  Task<void> get_return_object();
  void return_void() {}
  void take() {}
};
}  // namespace detail

template <class T>
class [[nodiscard]] Task {
 public:
  using promise_type = detail::Promise<T>;
  using Handle = std::coroutine_handle<promise_type>;

  Task() = default;
  explicit Task(Handle h) : handle_(h) {}
  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, {})) {}
  Task& operator=(Task&& other) noexcept {
    if (this != &other) {
      destroy();
      handle_ = std::exchange(other.handle_, {});
    }
    return *this;
  }
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;
  ~Task() { destroy(); }

  // Awaiting: the child runs inline; only a child that parks suspends its caller.
  bool await_ready() {
    handle_.resume();
    return handle_.done();
  }
  void await_suspend(std::coroutine_handle<> caller) { handle_.promise().continuation = caller; }
  T await_resume() { return handle_.promise().take(); }

  // Runs a root until it first parks. The owner keeps the Task alive until done().
  void start() { handle_.resume(); }
  [[nodiscard]] bool is_valid() const { return static_cast<bool>(handle_); }
  [[nodiscard]] bool done() const { return handle_ && handle_.done(); }
  T result() { return handle_.promise().take(); }

  // For ports that answer at once (tests, functional runs): runs straight through.
  T run() && {
    handle_.resume();
    SIM_CHECK(handle_.done(), "a task that should run straight through has parked");
    return handle_.promise().take();
  }

 private:
  void destroy() {
    if (handle_) handle_.destroy();
    handle_ = {};
  }
  Handle handle_;
};

namespace detail {
template <class T>
Task<T> Promise<T>::get_return_object() {
  return Task<T>(std::coroutine_handle<Promise<T>>::from_promise(*this));
}
inline Task<void> Promise<void>::get_return_object() {
  return Task<void>(std::coroutine_handle<Promise<void>>::from_promise(*this));
}
}  // namespace detail

}  // namespace iommu
