// Threads that share the items of a loop. Results never depend on which thread takes an item.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace splat {

class Pool {
 public:
  using Body = void (*)(void* data);

  // body(data) once on each of `threads` threads, the caller among them; returns when all are done.
  void run(int threads, Body body, void* data) {
    int helpers = threads - 1;
    while (static_cast<int>(workers_.size()) < helpers) start_worker();
    body_ = body;
    data_ = data;
    helpers_ = helpers;
    busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> guard(mutex_);
      round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    body(data);
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

  void work(int id, unsigned seen) {
    for (;;) {
      for (int spin = 0; spin < SPINS && round_.load(std::memory_order_acquire) == seen; ++spin) pause();
      if (round_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != seen; });
      }
      seen = round_.load(std::memory_order_acquire);
      if (id < helpers_) body_(data_);
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
  std::atomic<int> busy_{0};
  Body body_ = nullptr;
  void* data_ = nullptr;
  int helpers_ = 0;
};

// GNU OpenMP's entry point: function(data) once on each of up to num_threads threads, the caller among them.
using OpenMpParallel = void (*)(void (*function)(void*), void* data, unsigned num_threads, unsigned flags);

// Runs loops on at most `threads` threads: those of the OpenMP runtime that torch uses where there is one (they are
// awake, and a second set would compete with their spinning), else those of a pool. One thread needs neither.
struct Team {
  Pool* pool = nullptr;
  OpenMpParallel openmp = nullptr;
  int threads = 1;

  template <class Function>
  void loop(int n, const Function& function) const {
    if (threads <= 1 || n <= 1) {
      for (int i = 0; i < n; ++i) function(i);
      return;
    }
    Job<Function> job{&function, n, {0}, {false}};
    if (openmp) {
      openmp(&Job<Function>::take_items, &job, static_cast<unsigned>(threads < n ? threads : n), 0);
    } else {
      pool->run(threads < n ? threads : n, &Job<Function>::take_items, &job);
    }
    if (job.out_of_memory) throw std::bad_alloc();
  }

 private:
  template <class Function>
  struct Job {
    const Function* function;
    int size;
    std::atomic<int> next;
    std::atomic<bool> out_of_memory;
    static void take_items(void* data) {  // an exception must not leave a thread that is not the caller's
      Job& job = *static_cast<Job*>(data);
      try {
        for (int i; (i = job.next.fetch_add(1, std::memory_order_relaxed)) < job.size;) (*job.function)(i);
      } catch (const std::bad_alloc&) {
        job.out_of_memory = true;
      }
    }
  };
};

// The threads of a library: one set for all of its calls. A forked child has none of them (nor does its copy of the
// OpenMP runtime, which would wait for them) and perhaps a locked mutex, so that it must start with a set of its own.
struct Threads {
  OpenMpParallel openmp = nullptr;
  Pool pool;
  std::mutex pool_busy;
};

// The threads for one call. The pool serves one caller at a time; another one meanwhile works alone.
class TeamLease {
 public:
  TeamLease(Threads& of, int threads) : lock_(of.pool_busy, std::defer_lock) {
    team_.openmp = of.openmp;
    team_.pool = &of.pool;
    team_.threads = threads > 1 && (team_.openmp || lock_.try_lock()) ? threads : 1;
  }
  const Team& team() const { return team_; }

 private:
  std::unique_lock<std::mutex> lock_;
  Team team_;
};

}  // namespace splat
