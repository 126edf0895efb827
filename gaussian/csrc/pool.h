// A team of threads that shares the items of a loop. Results never depend on which thread takes an item.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace splat {

class Pool {
 public:
  using Body = void (*)(void* context, int item);

  // body(context, i) for i in [0, n) on at most `threads` threads, the caller among them.
  void run(int threads, int n, Body body, void* context) {
    int helpers = (threads < n ? threads : n) - 1;
    if (helpers <= 0) {
      for (int i = 0; i < n; ++i) body(context, i);
      return;
    }
    while (static_cast<int>(workers_.size()) < helpers) start_worker();
    body_ = body;
    context_ = context;
    size_ = n;
    helpers_ = helpers;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> guard(mutex_);
      round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    take_items();
    for (int spin = 0; busy_.load(std::memory_order_acquire) > 0; ++spin)
      if (spin > SPINS) std::this_thread::yield();
  }

 private:
  static constexpr int SPINS = 2000;  // tens of microseconds: a worker that waits longer sleeps and leaves its core

  void start_worker() {
    int id = static_cast<int>(workers_.size());
    unsigned seen = round_.load(std::memory_order_relaxed);
    workers_.emplace_back([this, id, seen] { work(id, seen); });
  }

  void take_items() {
    for (int i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < size_;) body_(context_, i);
  }

  void work(int id, unsigned seen) {
    for (;;) {
      for (int spin = 0; spin < SPINS && round_.load(std::memory_order_acquire) == seen; ++spin) pause();
      if (round_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != seen; });
      }
      seen = round_.load(std::memory_order_acquire);
      if (id < helpers_) take_items();
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<unsigned> round_{0};
  std::atomic<int> next_{0}, busy_{0};
  Body body_ = nullptr;
  void* context_ = nullptr;
  int size_ = 0, helpers_ = 0;
};

// Runs loops on `threads` threads of a pool; one thread needs no pool.
struct Team {
  Pool* pool;
  int threads;

  template <class Function>
  void loop(int n, const Function& function) const {
    if (threads <= 1 || n <= 1) {
      for (int i = 0; i < n; ++i) function(i);
      return;
    }
    pool->run(
        threads, n, [](void* context, int i) { (*static_cast<const Function*>(context))(i); },
        const_cast<void*>(static_cast<const void*>(&function)));
  }
};

}  // namespace splat
