// What native code for very many points shares: numbers, functions, and threads for loops over rows.
#pragma once

#include <pthread.h>

#include <cstdint>
#include <cstring>

#include "numbers.h"
#include "pool.h"

namespace splat {

constexpr int CHILDREN = 4;  // of a parent
constexpr int64_t CHUNK = 64;  // rows that a thread takes at once

// e^x for x <= 0, to 3e-7 of it; 0 below e^-88. NaN stays NaN.
inline float exp_negative(float x) {
  float y = x * 1.44269504f;
  y = y < -127.0f ? -127.0f : y;  // the scale of -127 is 0
  const float shifted = y + 12582912.0f;  // 1.5 * 2^23: the sum's last bits are y, rounded to a whole number
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  const float f = y - (shifted - 12582912.0f);  // -0.5 .. 0.5
  const float power = 1.0f + f * (0.693147181f + f * (0.240226507f + f * (0.0555041087f + f * (0.00961812911f +
                      f * (0.00133335581f + f * 0.000154035304f)))));
  const uint32_t scale_bits = (bits - 0x4b400000u + 127u) << 23;
  float scale;
  std::memcpy(&scale, &scale_bits, sizeof scale);
  return power * scale;
}

inline float lrelu(float x, float slope) { return x > 0 ? x : slope * x; }

// One set of threads for all calls; a forked child starts with a set of its own, see pool.h.
inline Threads* threads = new Threads;  // never freed: they sleep until the process ends
inline const int fork_handler = pthread_atfork(nullptr, nullptr, [] { threads = new Threads; });

template <class Function>
void for_rows(int64_t rows, int count, const Function& function) {
  const TeamLease lease(*threads, count);
  lease.team().loop(static_cast<int>((rows + CHUNK - 1) / CHUNK), [&](int k) {
    for (int64_t row = k * CHUNK; row < std::min<int64_t>((k + 1) * CHUNK, rows); ++row) function(row);
  });
}

}  // namespace splat
