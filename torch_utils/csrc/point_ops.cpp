// What stands between the matrix products of layers over very many points, on CPU cores: GELU with its slope, attention
// among the children of one parent, and the division of points. Each reads and writes its numbers once. Numbers are
// float32 or bfloat16; sums are float32, rounded once at the end; bits depend neither on the threads nor on the batch.
#include <pthread.h>

#include <cstdint>
#include <cstring>

#include "numbers.h"
#include "pool.h"

namespace {

using splat::BFloat16;
using splat::narrow;
using splat::wide;

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

// hidden = GELU(z + bias) and, over z, its slope there. The normal distribution function is formula 7.1.26 of Abramowitz
// and Stegun, to 1e-7; it shares its exponential with the density.
template <class T>
void gelu_row(T* __restrict z, const float* __restrict bias, T* __restrict hidden, int64_t width) {
#pragma GCC ivdep
  for (int64_t c = 0; c < width; ++c) {
    const float x = wide(z[c]) + bias[c], size = x < 0 ? -x : x;
    const float e = exp_negative(-0.5f * x * x);
    const float t = 1.0f / (1.0f + 0.231641888f * size);
    const float tail = e * t * (0.127414796f + t * (-0.142248368f + t * (0.7107068705f + t * (-0.7265760135f +
                       t * 0.5307027145f))));
    const float below = x < 0 ? tail : 1.0f - tail;
    narrow(x * below, hidden[c]);
    narrow(below + x * e * 0.398942280f, z[c]);
  }
}

inline float lrelu(float x, float slope) { return x > 0 ? x : slope * x; }

// The first layers' sums over the edges of the points at one place: out[i][j] = lrelu(other[j] + own[i]). Points lie
// `in_step` apart, edges `out_step`.
template <class T>
void edge_sums_row(const T* other, const T* own, int64_t in_step, T* out, int64_t out_step, int64_t width, float slope) {
  for (int i = 0; i < CHILDREN; ++i)
    for (int j = 0; j < CHILDREN; ++j) {
      const T* __restrict a = other + j * in_step;
      const T* __restrict b = own + i * in_step;
      T* __restrict y = out + (CHILDREN * i + j) * out_step;
#pragma GCC ivdep
      for (int64_t c = 0; c < width; ++c) narrow(lrelu(wide(a[c]) + wide(b[c]), slope), y[c]);
    }
}

// Its transpose, where the results were `out`.
template <class T>
void edge_sums_grad_row(const T* out, const T* grad, int64_t out_step, T* g_other, T* g_own, int64_t in_step,
                        int64_t width, float slope) {
#pragma GCC ivdep
  for (int64_t c = 0; c < width; ++c) {
    float other[CHILDREN] = {}, own[CHILDREN] = {};
#pragma GCC unroll 16
    for (int k = 0; k < CHILDREN * CHILDREN; ++k) {
      const float g = wide(grad[k * out_step + c]) * (wide(out[k * out_step + c]) > 0 ? 1.0f : slope);
      other[k % CHILDREN] += g;
      own[k / CHILDREN] += g;
    }
#pragma GCC unroll 4
    for (int k = 0; k < CHILDREN; ++k) {
      narrow(other[k], g_other[k * in_step + c]);
      narrow(own[k], g_own[k * in_step + c]);
    }
  }
}

// y[i] = x[i] + bias + sum_j softmax_j(scores[i][j]) values[i][j] per channel; the shares overwrite the scores.
template <class T>
void attend_row(const T* __restrict x, const float* __restrict bias, T* __restrict scores, const T* __restrict values,
                int64_t step, T* __restrict y, int64_t width) {
#pragma GCC ivdep
  for (int64_t c = 0; c < width; ++c) {
    float s[CHILDREN], sum = 0.0f, found = 0.0f;
#pragma GCC unroll 4
    for (int j = 0; j < CHILDREN; ++j) s[j] = wide(scores[j * step + c]);
    const float a = s[0] > s[1] ? s[0] : s[1], b = s[2] > s[3] ? s[2] : s[3], most = a > b ? a : b;
#pragma GCC unroll 4
    for (int j = 0; j < CHILDREN; ++j) {
      s[j] = exp_negative(s[j] - most);
      sum += s[j];
    }
    const float factor = 1.0f / sum;
#pragma GCC unroll 4
    for (int j = 0; j < CHILDREN; ++j) {
      narrow(s[j] * factor, scores[j * step + c]);
      found += s[j] * wide(values[j * step + c]);
    }
    narrow(wide(x[c]) + bias[c] + found * factor, y[c]);
  }
}

template <class T>
void attend_grad_row(const T* __restrict grad, const T* __restrict shares, const T* __restrict values, int64_t step,
                     T* __restrict g_scores, T* __restrict g_values, int64_t width) {
#pragma GCC ivdep
  for (int64_t c = 0; c < width; ++c) {
    const float g = wide(grad[c]);
    float p[CHILDREN], v[CHILDREN], mean = 0.0f;
#pragma GCC unroll 4
    for (int j = 0; j < CHILDREN; ++j) {
      p[j] = wide(shares[j * step + c]);
      v[j] = wide(values[j * step + c]);
      mean += p[j] * v[j];
    }
#pragma GCC unroll 4
    for (int j = 0; j < CHILDREN; ++j) {
      narrow(g * p[j], g_values[j * step + c]);
      narrow(g * p[j] * (v[j] - mean), g_scores[j * step + c]);
    }
  }
}

// Child k of a point: lrelu(z[k] + bias[k]) + shared. Children lie `step` apart.
template <class T>
void divide_row(const T* z, const float* bias, const T* __restrict shared, T* y, int64_t step, int64_t width,
                float slope) {
  for (int k = 0; k < CHILDREN; ++k) {
    const T* __restrict own = z + k * width;
    const float* __restrict b = bias + k * width;
    T* __restrict child = y + k * step;
#pragma GCC ivdep
    for (int64_t c = 0; c < width; ++c) narrow(lrelu(wide(own[c]) + b[c], slope) + wide(shared[c]), child[c]);
  }
}

template <class T>
void divide_grad_row(const T* __restrict grad, int64_t step, const T* __restrict z, const float* __restrict bias,
                     T* __restrict g_z, T* __restrict g_shared, int64_t width, float slope) {
#pragma GCC ivdep
  for (int64_t c = 0; c < width; ++c) {
    float sum = 0.0f;
#pragma GCC unroll 4
    for (int k = 0; k < CHILDREN; ++k) {
      const float g = wide(grad[k * step + c]);
      sum += g;
      narrow(g * (wide(z[k * width + c]) + bias[k * width + c] > 0 ? 1.0f : slope), g_z[k * width + c]);
    }
    narrow(sum, g_shared[c]);
  }
}

// One set of threads for all calls; a forked child starts with a set of its own, see pool.h.
splat::Threads* threads = new splat::Threads;  // never freed: they sleep until the process ends
const int fork_handler = pthread_atfork(nullptr, nullptr, [] { threads = new splat::Threads; });

template <class Function>
void for_rows(int64_t rows, int count, const Function& function) {
  const splat::TeamLease lease(*threads, count);
  lease.team().loop(static_cast<int>((rows + CHUNK - 1) / CHUNK), [&](int k) {
    for (int64_t row = k * CHUNK; row < std::min<int64_t>((k + 1) * CHUNK, rows); ++row) function(row);
  });
}

// Where the first child of the row-th of `rows` points per family lies: families hold their children one after another.
inline int64_t first_child(int64_t row, int64_t rows) { return row / rows * CHILDREN * rows + row % rows; }

template <class T>
void gelu(T* z, const float* bias, T* hidden, int64_t rows, int64_t width, int count) {
  for_rows(rows, count, [=](int64_t m) { gelu_row(z + m * width, bias, hidden + m * width, width); });
}

template <class T>
void edge_sums(const T* first, T* weights, T* values, const int64_t* sizes, float slope, int count) {
  const int64_t families = sizes[0], rows = sizes[1], narrower = sizes[2], wider = sizes[3], width = narrower + wider;
  for_rows(families * rows, count, [=](int64_t m) {
    const int64_t step = 2 * width * rows, edge = m / rows * CHILDREN * CHILDREN * rows + m % rows;
    const T* other = first + first_child(m, rows) * 2 * width;
    edge_sums_row(other, other + width, step, weights + edge * narrower, narrower * rows, narrower, slope);
    edge_sums_row(other + narrower, other + width + narrower, step, values + edge * wider, wider * rows, wider, slope);
  });
}

template <class T>
void edge_sums_grad(const T* weights, const T* g_weights, const T* values, const T* g_values, T* g_first,
                    const int64_t* sizes, float slope, int count) {
  const int64_t families = sizes[0], rows = sizes[1], narrower = sizes[2], wider = sizes[3], width = narrower + wider;
  for_rows(families * rows, count, [=](int64_t m) {
    const int64_t step = 2 * width * rows, edge = m / rows * CHILDREN * CHILDREN * rows + m % rows;
    T* other = g_first + first_child(m, rows) * 2 * width;
    edge_sums_grad_row(weights + edge * narrower, g_weights + edge * narrower, narrower * rows, other, other + width,
                       step, narrower, slope);
    edge_sums_grad_row(values + edge * wider, g_values + edge * wider, wider * rows, other + narrower,
                       other + width + narrower, step, wider, slope);
  });
}

template <class T>
void attend(const T* x, const float* bias, T* scores, const T* values, T* y, const int64_t* sizes, int count) {
  const int64_t points = sizes[0], rows = sizes[1], width = sizes[2];  // a point's edges: [points, CHILDREN, rows]
  for_rows(points * rows, count, [=](int64_t m) {
    const int64_t edge = first_child(m, rows) * width;
    attend_row(x + m * width, bias, scores + edge, values + edge, rows * width, y + m * width, width);
  });
}

template <class T>
void attend_grad(const T* grad, const T* shares, const T* values, T* g_scores, T* g_values, const int64_t* sizes,
                 int count) {
  const int64_t points = sizes[0], rows = sizes[1], width = sizes[2];
  for_rows(points * rows, count, [=](int64_t m) {
    const int64_t edge = first_child(m, rows) * width;
    attend_grad_row(grad + m * width, shares + edge, values + edge, rows * width, g_scores + edge, g_values + edge,
                    width);
  });
}

template <class T>
void divide(const T* z, const float* bias, const T* shared, T* y, const int64_t* sizes, float slope, int count) {
  const int64_t families = sizes[0], rows = sizes[1], width = sizes[2];
  for_rows(families * rows, count, [=](int64_t m) {
    divide_row(z + m * CHILDREN * width, bias, shared + m * width, y + first_child(m, rows) * width, rows * width,
               width, slope);
  });
}

template <class T>
void divide_grad(const T* grad, const T* z, const float* bias, T* g_z, T* g_shared, const int64_t* sizes, float slope,
                 int count) {
  const int64_t families = sizes[0], rows = sizes[1], width = sizes[2];
  for_rows(families * rows, count, [=](int64_t m) {
    divide_grad_row(grad + first_child(m, rows) * width, rows * width, z + m * CHILDREN * width, bias,
                    g_z + m * CHILDREN * width, g_shared + m * width, width, slope);
  });
}

}  // namespace

// An entry point for each type. Shapes, with R rows of points in all scenes, 4 children and C features:
// gelu: z, hidden [rows, width]; bias [width].
// edge_sums: first [families, 4, R, 2 (other end, own), C1 + C2]; weights, values [families, 4, 4, R, C1 or C2].
// attend: x, y [points, R, C]; bias [C]; scores, values [points, 4, R, C].
// divide: z [families, R, 4 C]; bias [4 C]; shared [families, R, C]; y [families, 4, R, C].
#define ENTRY_POINTS(T, NAME)                                                                                         \
  void point_ops_gelu_##NAME(T* z, const float* bias, T* hidden, int64_t rows, int64_t width, int count) {            \
    gelu(z, bias, hidden, rows, width, count);                                                                        \
  }                                                                                                                   \
  void point_ops_edge_sums_##NAME(const T* first, T* weights, T* values, const int64_t* sizes, float slope,           \
                                  int count) {                                                                        \
    edge_sums(first, weights, values, sizes, slope, count);                                                           \
  }                                                                                                                   \
  void point_ops_edge_sums_grad_##NAME(const T* weights, const T* g_weights, const T* values, const T* g_values,      \
                                       T* g_first, const int64_t* sizes, float slope, int count) {                    \
    edge_sums_grad(weights, g_weights, values, g_values, g_first, sizes, slope, count);                               \
  }                                                                                                                   \
  void point_ops_attend_##NAME(const T* x, const float* bias, T* scores, const T* values, T* y, const int64_t* sizes, \
                               int count) {                                                                           \
    attend(x, bias, scores, values, y, sizes, count);                                                                 \
  }                                                                                                                   \
  void point_ops_attend_grad_##NAME(const T* grad, const T* shares, const T* values, T* g_scores, T* g_values,        \
                                    const int64_t* sizes, int count) {                                                \
    attend_grad(grad, shares, values, g_scores, g_values, sizes, count);                                              \
  }                                                                                                                   \
  void point_ops_divide_##NAME(const T* z, const float* bias, const T* shared, T* y, const int64_t* sizes,            \
                               float slope, int count) {                                                              \
    divide(z, bias, shared, y, sizes, slope, count);                                                                  \
  }                                                                                                                   \
  void point_ops_divide_grad_##NAME(const T* grad, const T* z, const float* bias, T* g_z, T* g_shared,                \
                                    const int64_t* sizes, float slope, int count) {                                   \
    divide_grad(grad, z, bias, g_z, g_shared, sizes, slope, count);                                                   \
  }

extern "C" {

void point_ops_use_openmp(void* parallel) { threads->openmp = reinterpret_cast<splat::OpenMpParallel>(parallel); }

ENTRY_POINTS(float, float32)
ENTRY_POINTS(BFloat16, bfloat16)

}  // extern "C"
